// Package rig holds what the agent is tested against: an in-process KDC with
// the acceptor of a service, fake sites, and real servers as child processes.
// Each behaviour that is imitated names the public fact behind it.
//
// It is no test itself: it never imports testing, so that programs for users
// can start the same rigs. The agent's own code never imports it.
package rig

import (
	"cmp"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jcmturner/gofork/encoding/asn1"
	"github.com/jcmturner/gokrb5/v8/asn1tools"
	"github.com/jcmturner/gokrb5/v8/crypto"
	"github.com/jcmturner/gokrb5/v8/iana"
	"github.com/jcmturner/gokrb5/v8/iana/asnAppTag"
	"github.com/jcmturner/gokrb5/v8/iana/errorcode"
	"github.com/jcmturner/gokrb5/v8/iana/etypeID"
	"github.com/jcmturner/gokrb5/v8/iana/flags"
	"github.com/jcmturner/gokrb5/v8/iana/keyusage"
	"github.com/jcmturner/gokrb5/v8/iana/msgtype"
	"github.com/jcmturner/gokrb5/v8/iana/nametype"
	"github.com/jcmturner/gokrb5/v8/iana/patype"
	"github.com/jcmturner/gokrb5/v8/messages"
	"github.com/jcmturner/gokrb5/v8/types"
)

// Enctypes of a KDC: aes256-cts-hmac-sha1-96, aes128-cts-hmac-sha1-96 (RFC
// 3962), aes128-cts-hmac-sha256-128 and aes256-cts-hmac-sha384-192 (RFC 8009).
const (
	AES256SHA1 = etypeID.AES256_CTS_HMAC_SHA1_96
	AES128SHA1 = etypeID.AES128_CTS_HMAC_SHA1_96
	AES128SHA2 = etypeID.AES128_CTS_HMAC_SHA256_128
	AES256SHA2 = etypeID.AES256_CTS_HMAC_SHA384_192
)

// defaultEtypes are MIT's default supported_enctypes (kdc.conf(5)).
var defaultEtypes = []int32{AES256SHA1, AES128SHA1}

// maxMessage is the largest request that the KDC reads, in bytes.
const maxMessage = 64 << 10

// skew is how far a client's clock may be off: MIT's default clockskew.
const skew = 5 * time.Minute

// Mode is how a KDC behaves on its port.
type Mode int

// What a KDC on the network can be like.
const (
	Answering  Mode = iota // as RFC 4120 says
	Silent                 // takes requests, never answers
	Refusing               // nobody listens
	Garbage                // answers with bytes that are no Kerberos message
	HugeLength             // announces an answer of 3 GiB: RFC 4120, 7.2.2 leaves the length to the sender
)

// Counts is what a KDC was asked, and answered, since it was made.
type Counts struct {
	AS            int // AS-REQs
	ASTGT         int // TGTs issued by the AS
	PreauthFailed int // pre-authentications refused
	TGS           int // tickets issued by the TGS
}

// KDC is a Kerberos KDC (RFC 4120) for one realm, in this process, over TCP on
// a free port of 127.0.0.1. It demands pre-authentication by encrypted
// timestamp of every principal. Its methods may be used while it serves; those
// that name a principal panic if there is none.
type KDC struct {
	realm string
	addr  string

	serving sync.WaitGroup

	mu         sync.Mutex
	principals map[string]*account
	aliases    map[string]string // name asked for → name in the ticket
	listener   net.Listener      // nil while refusing
	conns      map[net.Conn]bool
	closed     bool
	mode       Mode
	now        func() time.Time
	life       time.Duration
	counts     Counts
}

// account is a principal's entry in the database.
type account struct {
	name    []string
	salt    string
	kvno    int
	keys    []types.EncryptionKey // the best first
	refusal int32                 // KRB-ERROR code of every AS-REQ, 0: none
}

func (a *account) key(etype int32) (types.EncryptionKey, bool) {
	i := slices.IndexFunc(a.keys, func(k types.EncryptionKey) bool { return k.KeyType == etype })
	if i < 0 {
		return types.EncryptionKey{}, false
	}
	return a.keys[i], true
}

// firstKey returns the key of the first of the etypes that the account has.
// That is how MIT's KDC chooses (select_client_key, select_session_keytype).
func (a *account) firstKey(etypes []int32) (types.EncryptionKey, bool) {
	for _, etype := range etypes {
		if k, ok := a.key(etype); ok {
			return k, true
		}
	}
	return types.EncryptionKey{}, false
}

// NewKDC starts a KDC that knows nobody yet.
func NewKDC(realm string) (*KDC, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	k := &KDC{
		realm: realm, addr: ln.Addr().String(),
		principals: make(map[string]*account),
		aliases:    make(map[string]string),
		conns:      make(map[net.Conn]bool),
		now:        time.Now,
		life:       10 * time.Hour,
	}
	k.add("krbtgt/"+realm, "", []int32{AES256SHA1, AES128SHA1, AES256SHA2, AES128SHA2})
	k.listen(ln)
	return k, nil
}

// Addr returns the KDC's host:port.
func (k *KDC) Addr() string { return k.addr }

// Realm returns the KDC's realm.
func (k *KDC) Realm() string { return k.realm }

// Krb5Conf returns a krb5.conf for the realm, which MIT's programs understand
// as well.
func (k *KDC) Krb5Conf() string {
	return fmt.Sprintf(`[libdefaults]
    default_realm = %[1]s
    dns_lookup_kdc = false
    dns_lookup_realm = false
    dns_canonicalize_hostname = false
    rdns = false
    udp_preference_limit = 1

[realms]
    %[1]s = {
        kdc = %[2]s
    }
`, k.realm, k.addr)
}

// AddPrincipal adds a principal whose keys come from a password. Without
// etypes it gets MIT's default ones.
func (k *KDC) AddPrincipal(name, password string, etypes ...int32) { k.add(name, password, etypes) }

// AddService adds a principal with random keys.
func (k *KDC) AddService(spn string, etypes ...int32) { k.add(spn, "", etypes) }

func (k *KDC) add(name, password string, etypes []int32) {
	if len(etypes) == 0 {
		etypes = defaultEtypes
	}
	a := &account{name: strings.Split(name, "/")}
	// RFC 4120, 4: the default salt is the realm and the name's components.
	a.salt = k.realm + strings.Join(a.name, "")
	for _, etype := range etypes {
		a.keys = append(a.keys, types.EncryptionKey{KeyType: etype})
	}
	a.rekey(password)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.principals[name] = a
}

// rekey gives the account new keys of the enctypes it has.
func (a *account) rekey(password string) {
	keys := make([]types.EncryptionKey, len(a.keys))
	for i, old := range a.keys {
		keys[i] = newKey(old.KeyType)
		if password != "" {
			et, err := crypto.GetEtype(old.KeyType)
			if err != nil {
				panic(err)
			}
			value, err := et.StringToKey(password, a.salt, et.GetDefaultStringToKeyParams())
			if err != nil {
				panic(err)
			}
			keys[i].KeyValue = value
		}
	}
	a.kvno, a.keys = a.kvno+1, keys
}

// newKey makes a random key. gokrb5 makes aes256-sha2 keys of 24 bytes; RFC
// 8009, 5 says 32.
func newKey(etype int32) types.EncryptionKey {
	size := 32
	if etype == AES128SHA1 || etype == AES128SHA2 {
		size = 16
	}
	value := make([]byte, size)
	rand.Read(value)
	return types.EncryptionKey{KeyType: etype, KeyValue: value}
}

// Rekey gives a principal keys of the next version, random ones if the
// password is empty. The old ones are gone.
func (k *KDC) Rekey(name, password string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.account(name).rekey(password)
}

// Refuse makes the KDC answer each AS-REQ of a principal with a KRB-ERROR,
// before it asks for pre-authentication, as MIT's does (validate_as_request):
// 1 for an expired principal, 18 for a disabled or locked one, 23 for an
// expired password (measured with krb5 1.20). 0 ends that.
func (k *KDC) Refuse(name string, code int32) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.account(name).refusal = code
}

// Alias makes the KDC answer for one server's name with a ticket for another
// (RFC 6806, 8): for krbtgt and another realm this is a referral. The other
// name need not be in the database.
func (k *KDC) Alias(name, other string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.aliases[name] = other
}

// server returns the account that a ticket for a name is made for, or nil. It
// must be called with the lock held.
func (k *KDC) server(name string) *account {
	if other, ok := k.aliases[name]; ok {
		return &account{name: strings.Split(other, "/"), kvno: 1, keys: []types.EncryptionKey{newKey(AES256SHA1)}}
	}
	return k.principals[name]
}

// SetClock makes the KDC use another clock.
func (k *KDC) SetClock(now func() time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.now = now
}

// SetTicketLife sets the longest life of new tickets, 10 hours at first.
func (k *KDC) SetTicketLife(life time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.life = life
}

// Counts returns what the KDC was asked so far. Whatever a client has had an
// answer for is counted.
func (k *KDC) Counts() Counts {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.counts
}

// account must be called with the lock held.
func (k *KDC) account(name string) *account {
	a := k.principals[name]
	if a == nil {
		panic("rig: no principal " + name)
	}
	return a
}

// Keytab returns a keytab file (MIT's format 0x502) with the current keys of
// principals.
func (k *KDC) Keytab(names ...string) []byte {
	k.mu.Lock()
	defer k.mu.Unlock()
	// https://web.mit.edu/kerberos/krb5-latest/doc/formats/keytab_file_format.html
	file := []byte{5, 2}
	for _, name := range names {
		a := k.account(name)
		for _, key := range a.keys {
			e := binary.BigEndian.AppendUint16(nil, uint16(len(a.name)))
			for _, s := range append([]string{k.realm}, a.name...) {
				e = binary.BigEndian.AppendUint16(e, uint16(len(s)))
				e = append(e, s...)
			}
			e = binary.BigEndian.AppendUint32(e, uint32(nametype.KRB_NT_PRINCIPAL))
			e = binary.BigEndian.AppendUint32(e, uint32(k.now().Unix()))
			e = append(e, byte(a.kvno))
			e = binary.BigEndian.AppendUint16(e, uint16(key.KeyType))
			e = binary.BigEndian.AppendUint16(e, uint16(len(key.KeyValue)))
			e = append(e, key.KeyValue...)
			e = binary.BigEndian.AppendUint32(e, uint32(a.kvno))
			file = binary.BigEndian.AppendUint32(file, uint32(len(e)))
			file = append(file, e...)
		}
	}
	return file
}

// SetMode changes how the KDC behaves, for connections it has as well. It
// fails if the port cannot be had back after Refusing.
func (k *KDC) SetMode(mode Mode) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.mode = mode
	switch {
	case mode == Refusing:
		k.hangUp()
	case k.listener == nil && !k.closed:
		ln, err := net.Listen("tcp", k.addr)
		if err != nil {
			return err
		}
		k.listen(ln)
	}
	return nil
}

// Close ends the KDC and waits until nothing of it runs.
func (k *KDC) Close() {
	k.mu.Lock()
	k.closed = true
	k.hangUp()
	k.mu.Unlock()
	k.serving.Wait()
}

// hangUp must be called with the lock held.
func (k *KDC) hangUp() {
	if k.listener != nil {
		k.listener.Close()
		k.listener = nil
	}
	for conn := range k.conns {
		conn.Close()
	}
}

func (k *KDC) listen(ln net.Listener) {
	k.listener = ln
	k.serving.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			k.mu.Lock()
			if k.listener == ln {
				k.conns[conn] = true
				k.serving.Go(func() { k.serve(conn) })
			} else {
				conn.Close()
			}
			k.mu.Unlock()
		}
	})
}

// serve answers one request (RFC 4120, 7.2.2).
func (k *KDC) serve(conn net.Conn) {
	defer func() {
		conn.Close()
		k.mu.Lock()
		delete(k.conns, conn)
		k.mu.Unlock()
	}()
	var size [4]byte
	if _, err := io.ReadFull(conn, size[:]); err != nil {
		return
	}
	n := binary.BigEndian.Uint32(size[:])
	if n > maxMessage {
		return
	}
	request := make([]byte, n)
	if _, err := io.ReadFull(conn, request); err != nil {
		return
	}
	k.mu.Lock()
	mode := k.mode
	k.mu.Unlock()
	switch mode {
	case Silent:
		io.Copy(io.Discard, conn) // until somebody hangs up
	case Garbage:
		conn.Write(framed([]byte("HTTP/1.1 400 Bad Request\r\n\r\n")))
	case HugeLength:
		conn.Write([]byte{0xc0, 0, 0, 0})
		io.Copy(io.Discard, conn)
	default:
		if reply, err := k.answer(request); err == nil {
			conn.Write(framed(reply))
		}
	}
}

func framed(b []byte) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...)
}

// answer returns the reply to a message, or an error if it is none that a KDC
// answers.
func (k *KDC) answer(request []byte) (reply []byte, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("rig: malformed request: %v", p)
		}
	}()
	if len(request) == 0 {
		return nil, errors.New("rig: empty request")
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	switch int(request[0]) - 0x60 {
	case asnAppTag.ASREQ:
		reply, err = k.as(request)
	case asnAppTag.TGSREQ:
		reply, err = k.tgs(request)
	default:
		err = errors.New("rig: neither AS-REQ nor TGS-REQ")
	}
	if e, ok := errors.AsType[messages.KRBError](err); ok {
		return e.Marshal()
	}
	return reply, err
}

// fail returns a KRB-ERROR (RFC 4120, 5.9.1).
func (k *KDC) fail(code int32, server types.PrincipalName, text string) messages.KRBError {
	return krbError(k.now(), code, k.realm, server, text)
}

func krbError(now time.Time, code int32, realm string, server types.PrincipalName, text string) messages.KRBError {
	e := messages.NewKRBError(server, realm, code, text)
	e.STime = now.UTC()
	e.Susec = now.Nanosecond() / 1000
	return e
}

// as answers an AS-REQ (RFC 4120, 3.1). The texts are MIT's.
func (k *KDC) as(request []byte) ([]byte, error) {
	var req messages.ASReq
	if err := req.Unmarshal(request); err != nil {
		return nil, err
	}
	k.counts.AS++
	body := req.ReqBody
	tgs := body.SName
	client := k.principals[body.CName.PrincipalNameString()]
	krbtgt := k.account("krbtgt/" + k.realm)
	switch {
	case body.Realm != k.realm:
		return nil, k.fail(errorcode.KDC_ERR_WRONG_REALM, tgs, "WRONG_REALM")
	case client == nil:
		return nil, k.fail(errorcode.KDC_ERR_C_PRINCIPAL_UNKNOWN, tgs, "CLIENT_NOT_FOUND")
	case !slices.Equal(tgs.NameString, krbtgt.name):
		return nil, k.fail(errorcode.KDC_ERR_S_PRINCIPAL_UNKNOWN, tgs, "SERVER_NOT_FOUND")
	case client.refusal != 0:
		return nil, k.fail(client.refusal, tgs, "")
	}
	key, ok := client.firstKey(body.EType)
	if !ok {
		return nil, k.fail(errorcode.KDC_ERR_ETYPE_NOSUPP, tgs, "BAD_ENCRYPTION_TYPE")
	}
	info, err := asn1.Marshal(types.ETypeInfo2{{EType: key.KeyType, Salt: client.salt}})
	if err != nil {
		return nil, err
	}
	etypeInfo := types.PAData{PADataType: patype.PA_ETYPE_INFO2, PADataValue: info}

	i := slices.IndexFunc(req.PAData, func(pa types.PAData) bool { return pa.PADataType == patype.PA_ENC_TIMESTAMP })
	if i < 0 {
		e := k.fail(errorcode.KDC_ERR_PREAUTH_REQUIRED, tgs, "NEEDED_PREAUTH")
		e.EData, err = asn1.Marshal(types.PADataSequence{etypeInfo, {PADataType: patype.PA_ENC_TIMESTAMP, PADataValue: []byte{}}})
		return nil, cmp.Or(err, error(e))
	}
	var sealed types.EncryptedData
	if err := sealed.Unmarshal(req.PAData[i].PADataValue); err != nil {
		return nil, err
	}
	stampKey, _ := client.key(sealed.EType)
	plain, err := crypto.DecryptEncPart(sealed, stampKey, keyusage.AS_REQ_PA_ENC_TIMESTAMP)
	if err != nil {
		k.counts.PreauthFailed++
		return nil, k.fail(errorcode.KDC_ERR_PREAUTH_FAILED, tgs, "PREAUTH_FAILED")
	}
	var stamp types.PAEncTSEnc
	if err := stamp.Unmarshal(plain); err != nil {
		return nil, err
	}
	now := k.now().UTC()
	if stamp.PATimestamp.Sub(now).Abs() > skew {
		return nil, k.fail(errorcode.KRB_AP_ERR_SKEW, tgs, "PREAUTH_FAILED")
	}

	session, ok := krbtgt.firstKey(body.EType)
	if !ok {
		return nil, k.fail(errorcode.KDC_ERR_ETYPE_NOSUPP, tgs, "BAD_ENCRYPTION_TYPE")
	}
	issued := k.issue(k.server(tgs.PrincipalNameString()), k.realm, body.CName, newKey(session.KeyType), now, now, k.end(now, body.Till))
	types.SetFlag(&issued.part.Flags, flags.Initial)
	types.SetFlag(&issued.part.Flags, flags.PreAuthent)
	rep := messages.ASRep{KDCRepFields: messages.KDCRepFields{PVNO: iana.PVNO, MsgType: msgtype.KRB_AS_REP,
		PAData: types.PADataSequence{etypeInfo}, CRealm: k.realm, CName: body.CName}}
	if err := issued.fill(&rep.KDCRepFields, body.Nonce, key, keyusage.AS_REP_ENCPART, client.kvno); err != nil {
		return nil, err
	}
	k.counts.ASTGT++
	return rep.Marshal()
}

// kdcReq is a KDC-REQ (RFC 4120, 5.4.1) with its body as the sender encoded
// it, because a checksum covers those bytes.
type kdcReq struct {
	PVNO    int                  `asn1:"explicit,tag:1"`
	MsgType int                  `asn1:"explicit,tag:2"`
	PAData  types.PADataSequence `asn1:"explicit,optional,tag:3"`
	ReqBody asn1.RawValue        `asn1:"explicit,tag:4"`
}

// tgs answers a TGS-REQ (RFC 4120, 3.3).
func (k *KDC) tgs(request []byte) ([]byte, error) {
	var raw kdcReq
	if _, err := asn1.UnmarshalWithParams(request, &raw, fmt.Sprintf("application,explicit,tag:%d", asnAppTag.TGSREQ)); err != nil {
		return nil, err
	}
	var body messages.KDCReqBody
	if err := body.Unmarshal(raw.ReqBody.Bytes); err != nil {
		return nil, err
	}
	i := slices.IndexFunc(raw.PAData, func(pa types.PAData) bool { return pa.PADataType == patype.PA_TGS_REQ })
	if i < 0 {
		return nil, k.fail(errorcode.KDC_ERR_PADATA_TYPE_NOSUPP, body.SName, "NO_PREAUTH")
	}
	var ap messages.APReq
	if err := ap.Unmarshal(raw.PAData[i].PADataValue); err != nil {
		return nil, err
	}
	krbtgt := k.account("krbtgt/" + k.realm)
	tgtKey, ok := krbtgt.key(ap.Ticket.EncPart.EType)
	if !ok || ap.Ticket.EncPart.KVNO != krbtgt.kvno {
		return nil, k.fail(errorcode.KRB_AP_ERR_BADKEYVER, body.SName, "PROCESS_TGS")
	}
	if err := ap.Ticket.Decrypt(tgtKey); err != nil {
		return nil, k.fail(errorcode.KRB_AP_ERR_BAD_INTEGRITY, body.SName, "PROCESS_TGS")
	}
	tgt := ap.Ticket.DecryptedEncPart
	if err := ap.DecryptAuthenticator(tgt.Key); err != nil {
		return nil, k.fail(errorcode.KRB_AP_ERR_BAD_INTEGRITY, body.SName, "PROCESS_TGS")
	}
	now := k.now().UTC()
	auth := ap.Authenticator
	sum, err := crypto.GetChksumEtype(auth.Cksum.CksumType)
	switch {
	case !auth.CName.Equal(tgt.CName) || auth.CRealm != tgt.CRealm:
		return nil, k.fail(errorcode.KRB_AP_ERR_BADMATCH, body.SName, "PROCESS_TGS")
	case auth.CTime.Sub(now).Abs() > skew:
		return nil, k.fail(errorcode.KRB_AP_ERR_SKEW, body.SName, "PROCESS_TGS")
	case now.Sub(tgt.EndTime) > skew:
		return nil, k.fail(errorcode.KRB_AP_ERR_TKT_EXPIRED, body.SName, "PROCESS_TGS")
	case err != nil:
		return nil, k.fail(errorcode.KDC_ERR_SUMTYPE_NOSUPP, body.SName, "PROCESS_TGS")
	case !sum.VerifyChecksum(tgt.Key.KeyValue, raw.ReqBody.Bytes, auth.Cksum.Checksum, keyusage.TGS_REQ_PA_TGS_REQ_AP_REQ_AUTHENTICATOR_CHKSUM):
		return nil, k.fail(errorcode.KRB_AP_ERR_MODIFIED, body.SName, "PROCESS_TGS")
	}

	spn := body.SName.PrincipalNameString()
	server := k.server(spn)
	if server == nil || body.Realm != k.realm {
		return nil, k.fail(errorcode.KDC_ERR_S_PRINCIPAL_UNKNOWN, body.SName, "LOOKING_UP_SERVER")
	}
	session, ok := server.firstKey(body.EType)
	if !ok {
		return nil, k.fail(errorcode.KDC_ERR_ETYPE_NOSUPP, body.SName, "BAD_ENCRYPTION_TYPE")
	}
	end := k.end(now, body.Till)
	if end.After(tgt.EndTime) {
		end = tgt.EndTime
	}
	issued := k.issue(server, tgt.CRealm, tgt.CName, newKey(session.KeyType), tgt.AuthTime, now, end)
	types.SetFlag(&issued.part.Flags, flags.PreAuthent)
	rep := messages.TGSRep{KDCRepFields: messages.KDCRepFields{PVNO: iana.PVNO, MsgType: msgtype.KRB_TGS_REP,
		CRealm: tgt.CRealm, CName: tgt.CName}}
	// RFC 4120, 3.3.3: under the authenticator's subkey, if it has one.
	key, usage := tgt.Key, uint32(keyusage.TGS_REP_ENCPART_SESSION_KEY)
	if len(auth.SubKey.KeyValue) > 0 {
		key, usage = auth.SubKey, keyusage.TGS_REP_ENCPART_AUTHENTICATOR_SUB_KEY
	}
	if err := issued.fill(&rep.KDCRepFields, body.Nonce, key, usage, 0); err != nil {
		return nil, err
	}
	k.counts.TGS++
	return rep.Marshal()
}

// end returns when a ticket asked for until till ends.
func (k *KDC) end(now, till time.Time) time.Time {
	end := now.Add(k.life)
	if till.Before(end) && till.Unix() > 0 { // RFC 4120, 5.4.1: 1970 asks for the longest life
		return till
	}
	return end
}

// issued is a ticket that is about to be sealed.
type issued struct {
	realm  string
	server *account
	part   messages.EncTicketPart
}

func (k *KDC) issue(server *account, crealm string, cname types.PrincipalName, session types.EncryptionKey, auth, start, end time.Time) *issued {
	return &issued{k.realm, server, messages.EncTicketPart{
		Flags: types.NewKrbFlags(), Key: session, CRealm: crealm, CName: cname,
		AuthTime: auth, StartTime: start, EndTime: end,
	}}
}

// fill seals the ticket and puts it and the client's part into a reply.
func (i *issued) fill(rep *messages.KDCRepFields, nonce int, key types.EncryptionKey, usage uint32, kvno int) error {
	b, err := asn1.Marshal(i.part)
	if err != nil {
		return err
	}
	sealed, err := crypto.GetEncryptedData(asn1tools.AddASNAppTag(b, asnAppTag.EncTicketPart), i.server.keys[0], keyusage.KDC_REP_TICKET, i.server.kvno)
	if err != nil {
		return err
	}
	name := types.PrincipalName{NameType: nametype.KRB_NT_SRV_INST, NameString: i.server.name}
	rep.Ticket = messages.Ticket{TktVNO: iana.PVNO, Realm: i.realm, SName: name, EncPart: sealed}
	part := messages.EncKDCRepPart{
		Key: i.part.Key, LastReqs: []messages.LastReq{{LRValue: i.part.AuthTime}}, Nonce: nonce, Flags: i.part.Flags,
		AuthTime: i.part.AuthTime, StartTime: i.part.StartTime, EndTime: i.part.EndTime, SRealm: i.realm, SName: name,
	}
	if b, err = part.Marshal(); err != nil {
		return err
	}
	rep.EncPart, err = crypto.GetEncryptedData(b, key, usage, kvno)
	return err
}
