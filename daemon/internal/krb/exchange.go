package krb

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jcmturner/gofork/encoding/asn1"
	"github.com/jcmturner/gokrb5/v8/crypto"
	"github.com/jcmturner/gokrb5/v8/iana"
	"github.com/jcmturner/gokrb5/v8/iana/errorcode"
	"github.com/jcmturner/gokrb5/v8/iana/keyusage"
	"github.com/jcmturner/gokrb5/v8/iana/msgtype"
	"github.com/jcmturner/gokrb5/v8/iana/nametype"
	"github.com/jcmturner/gokrb5/v8/iana/patype"
	"github.com/jcmturner/gokrb5/v8/messages"
	"github.com/jcmturner/gokrb5/v8/types"
	"github.com/sessionctl/sessionctl/api"
)

// maxSkew is how far clocks may differ (RFC 4120, 8.2).
const maxSkew = 5 * time.Minute

// authenticate is the AS exchange (RFC 4120, 3.1): a TGT for a principal from
// its long-term keys, in two messages at most. At most one of them carries
// pre-authentication.
func (e *Engine) authenticate(ctx context.Context, client Principal, long keys) (*ticket, error) {
	kdcs, err := e.kdcsOf(client.Realm)
	if err != nil {
		return nil, err
	}
	req := messages.ASReq{KDCReqFields: messages.KDCReqFields{
		PVNO:    iana.PVNO,
		MsgType: msgtype.KRB_AS_REQ,
		ReqBody: e.body(ticketGranting(client.Realm), nametype.KRB_NT_SRV_INST, long.etypes()),
	}}
	req.ReqBody.CName = client.name(nametype.KRB_NT_PRINCIPAL)

	message, err := req.Marshal()
	if err != nil {
		return nil, fmt.Errorf("encode AS-REQ: %w", err)
	}
	r, err := kdcs.exchange(ctx, message, false)
	if err != nil {
		return nil, err
	}
	if r.refusal == nil || r.refusal.ErrorCode != errorcode.KDC_ERR_PREAUTH_REQUIRED {
		t, err := e.ticketGranted(r, req, client, long, false)
		if refused, ok := errors.AsType[*api.Error](err); ok && refused.Code.Refusal() {
			e.verdict(ctx, client, long.keys[0], err)
		}
		return t, err
	}
	var key types.EncryptionKey
	if req.PAData, key, err = e.preauthentication(r.refusal.EData, client, long); err != nil {
		return nil, err
	}
	if message, err = req.Marshal(); err != nil {
		return nil, fmt.Errorf("encode AS-REQ: %w", err)
	}
	if err := e.latch.Begin(ctx, Verifier(client), client.String(), secretOf(key)); err != nil {
		return nil, err
	}
	r, err = kdcs.exchange(ctx, message, true)
	if errors.Is(err, errDelivered) {
		e.latch.Lost(Verifier(client), client.String(), secretOf(key), err)
		return nil, err
	}
	var t *ticket
	if err == nil {
		t, err = e.ticketGranted(r, req, client, long, true)
	}
	e.verdict(ctx, client, key, err)
	return t, err
}

// ticketGranted reads the KDC's answer to an AS-REQ, which may have carried
// pre-authentication.
func (e *Engine) ticketGranted(r reply, req messages.ASReq, client Principal, long keys, attempt bool) (*ticket, error) {
	switch {
	case r.refusal != nil:
		return nil, e.asRefused(r.refusal, client, long, attempt)
	case r.as == nil:
		return nil, badReply("AS-REQ", "a TGS-REP came")
	}

	rep := &r.as.KDCRepFields
	key, ok := long.find(rep.EncPart.EType)
	if !ok {
		return nil, badReply("AS-REQ", "it is encrypted with "+enctypeNames([]int32{rep.EncPart.EType}))
	}
	t, err := e.ticketFrom(rep, req.ReqBody, client, key, keyusage.AS_REP_ENCPART)
	if errors.Is(err, errUndecipherable) {
		// Without pre-authentication this is where a wrong key shows.
		return nil, &api.Error{Code: api.BadCredentials, Err: err,
			Detail: fmt.Sprintf("the KDC's answer for %s does not open with the keytab's key, version %d", client, long.kvno),
			Remedy: "make a new keytab"}
	}
	if err != nil {
		return nil, err
	}
	if !t.server.equal(ticketGranting(client.Realm)) {
		return nil, badReply("AS-REQ", "the ticket is for "+t.server.String())
	}
	if offset := t.auth.Sub(e.now()); offset > maxSkew || offset < -maxSkew {
		return nil, skewed("the KDC", offset)
	}
	return t, nil
}

// body is a KDC-REQ-BODY without options: no addresses, not forwardable, not
// renewable, names as they are.
func (e *Engine) body(server Principal, nameType int32, etypes []int32) messages.KDCReqBody {
	var nonce [4]byte
	rand.Read(nonce[:])
	return messages.KDCReqBody{
		KDCOptions: types.NewKrbFlags(),
		Realm:      server.Realm,
		SName:      server.name(nameType),
		Till:       e.now().Add(e.config.lifetime).UTC(),
		Nonce:      int(binary.BigEndian.Uint32(nonce[:]) >> 1), // KDCs want it in 31 bits
		EType:      etypes,
	}
}

// preauthentication answers a KDC's METHOD-DATA with an encrypted timestamp
// (RFC 4120, 5.2.7.2) under the first key that the KDC offers and the keytab
// has.
func (e *Engine) preauthentication(methodData []byte, client Principal, long keys) (types.PADataSequence, types.EncryptionKey, error) {
	var key types.EncryptionKey
	var offered types.PADataSequence
	var infos types.ETypeInfo2
	err := safely(func() error {
		if err := offered.Unmarshal(methodData); err != nil {
			return err
		}
		for _, pa := range offered {
			if pa.PADataType == patype.PA_ETYPE_INFO2 {
				return infos.Unmarshal(pa.PADataValue)
			}
		}
		return nil
	})
	if err != nil {
		return nil, key, badReply("AS-REQ", "its pre-authentication data is malformed")
	}
	if !offered.Contains(patype.PA_ENC_TIMESTAMP) {
		return nil, key, &api.Error{Code: api.KDCError,
			Detail: "the KDC asks of " + client.String() + " another kind of pre-authentication than the encrypted timestamp",
			Remedy: "have the realm's administrator allow the encrypted timestamp for it"}
	}
	var found bool
	var names []int32
	for _, info := range infos {
		names = append(names, info.EType)
		if key, found = long.find(info.EType); found {
			break
		}
	}
	if !found {
		return nil, key, &api.Error{Code: api.EtypeUnsupported,
			Detail: fmt.Sprintf("the KDC offers %s for %s, the keytab has %s", enctypeNames(names), client, enctypeNames(long.etypes())),
			Remedy: "make a new keytab with one of the KDC's enctypes"}
	}
	now := e.now().UTC()
	stamp, err := asn1.Marshal(types.PAEncTSEnc{PATimestamp: now, PAUSec: now.Nanosecond() / 1000})
	if err != nil {
		return nil, key, fmt.Errorf("encode PA-ENC-TS-ENC: %w", err)
	}
	encrypted, err := crypto.GetEncryptedData(stamp, key, keyusage.AS_REQ_PA_ENC_TIMESTAMP, noKVNO)
	if err != nil {
		return nil, key, fmt.Errorf("encrypt the timestamp: %w", err)
	}
	value, err := encrypted.Marshal()
	if err != nil {
		return nil, key, fmt.Errorf("encode PA-ENC-TIMESTAMP: %w", err)
	}
	answer := types.PADataSequence{{PADataType: patype.PA_ENC_TIMESTAMP, PADataValue: value}}
	for _, pa := range offered {
		if pa.PADataType == patype.PA_FX_COOKIE { // to be sent back as it is: RFC 6113, 5.2
			answer = append(answer, pa)
		}
	}
	return answer, key, nil
}

// noKVNO leaves the key's version out: a keytab's number may differ from the
// KDC's for the same key.
const noKVNO = 0

// errTGTRefused marks a refusal that a new TGT may cure.
var errTGTRefused = errors.New("the KDC refuses the TGT")

// serviceTicket is the TGS exchange (RFC 4120, 3.3): a ticket for a service
// from a TGT.
func (e *Engine) serviceTicket(ctx context.Context, tgt *ticket, server Principal) (*ticket, error) {
	kdcs, err := e.kdcsOf(server.Realm)
	if err != nil {
		return nil, err
	}
	req := messages.TGSReq{KDCReqFields: messages.KDCReqFields{
		PVNO:    iana.PVNO,
		MsgType: msgtype.KRB_TGS_REQ,
		ReqBody: e.body(server, nametype.KRB_NT_SRV_HST, allEtypes()),
	}}
	body, err := req.ReqBody.Marshal()
	if err != nil {
		return nil, fmt.Errorf("encode KDC-REQ-BODY: %w", err)
	}
	et, err := crypto.GetEtype(tgt.key.KeyType)
	if err != nil {
		return nil, fmt.Errorf("session key of the TGT: %w", err)
	}
	sum, err := et.GetChecksumHash(tgt.key.KeyValue, body, keyusage.TGS_REQ_PA_TGS_REQ_AP_REQ_AUTHENTICATOR_CHKSUM)
	if err != nil {
		return nil, fmt.Errorf("checksum of KDC-REQ-BODY: %w", err)
	}
	_, ap, err := e.apReq(tgt, types.Checksum{CksumType: et.GetHashID(), Checksum: sum}, false)
	if err != nil {
		return nil, err
	}
	req.PAData = types.PADataSequence{{PADataType: patype.PA_TGS_REQ, PADataValue: ap}}
	message, err := req.Marshal()
	if err != nil {
		return nil, fmt.Errorf("encode TGS-REQ: %w", err)
	}
	r, err := kdcs.exchange(ctx, message, false)
	if err != nil {
		return nil, err
	}
	switch {
	case r.refusal != nil:
		return nil, e.tgsRefused(r.refusal, server)
	case r.tgs == nil:
		return nil, badReply("TGS-REQ", "an AS-REP came")
	}
	t, err := e.ticketFrom(&r.tgs.KDCRepFields, req.ReqBody, tgt.client, tgt.key, keyusage.TGS_REP_ENCPART_SESSION_KEY)
	if err != nil {
		return nil, err
	}
	if name := t.server.Components; len(name) == 2 && name[0] == "krbtgt" {
		return nil, &api.Error{Code: api.SPNUnknown,
			Detail: fmt.Sprintf("the KDC of %s refers %s to the realm %s, and the agent follows no referrals", server.Realm, server, name[1]),
			Remedy: "use a principal of " + name[1]}
	}
	if !t.server.equal(server) {
		return nil, badReply("TGS-REQ", "the ticket is for "+t.server.String())
	}
	return t, nil
}

// apReq encodes an AP-REQ (RFC 4120, 5.5.1) with a new authenticator.
func (e *Engine) apReq(t *ticket, sum types.Checksum, mutual bool) (types.Authenticator, []byte, error) {
	var sequence [4]byte
	rand.Read(sequence[:])
	now := e.stamp()
	auth := types.Authenticator{
		AVNO:      iana.PVNO,
		CRealm:    t.client.Realm,
		CName:     t.client.name(nametype.KRB_NT_PRINCIPAL),
		Cksum:     sum,
		Cusec:     now.Nanosecond() / 1000,
		CTime:     now,
		SeqNumber: int64(binary.BigEndian.Uint32(sequence[:]) >> 2), // old peers read it as signed
	}
	req, err := messages.NewAPReq(t.sealed, t.key, auth)
	if err != nil {
		return auth, nil, fmt.Errorf("AP-REQ: %w", err)
	}
	if mutual {
		types.SetFlag(&req.APOptions, apMutualRequired)
	}
	b, err := req.Marshal()
	if err != nil {
		return auth, nil, fmt.Errorf("encode AP-REQ: %w", err)
	}
	return auth, b, nil
}

// apMutualRequired is the bit of RFC 4120, 5.5.1.
const apMutualRequired = 2

// errUndecipherable is returned for an encrypted part that the key does not
// open.
var errUndecipherable = errors.New("the encrypted part does not open")

// ticketFrom checks a KDC-REP against its request (RFC 4120, 3.1.5 and 3.3.4)
// and takes the ticket out of it.
func (e *Engine) ticketFrom(rep *messages.KDCRepFields, body messages.KDCReqBody, client Principal, key types.EncryptionKey, usage uint32) (*ticket, error) {
	request := "TGS-REQ"
	if usage == keyusage.AS_REP_ENCPART {
		request = "AS-REQ"
	}
	var part messages.EncKDCRepPart
	var plain []byte
	err := safely(func() (err error) {
		plain, err = crypto.DecryptEncPart(rep.EncPart, key, usage)
		return err
	})
	if err != nil {
		return nil, errUndecipherable
	}
	if err := safely(func() error { return part.Unmarshal(plain) }); err != nil {
		return nil, badReply(request, "its encrypted part is malformed")
	}
	t := &ticket{
		client: principalOf(rep.CName, rep.CRealm),
		server: principalOf(part.SName, part.SRealm),
		sealed: rep.Ticket,
		key:    part.Key,
		auth:   part.AuthTime,
		end:    part.EndTime,
		renew:  part.RenewTill,
	}
	et, ok := enctypeOf(t.key.KeyType)
	switch {
	case part.Nonce != body.Nonce:
		return nil, badReply(request, "its nonce is another request's")
	case !t.client.equal(client):
		return nil, badReply(request, "it is for "+t.client.String())
	case len(t.sealed.SName.NameString) == 0 || !t.server.equal(principalOf(t.sealed.SName, t.sealed.Realm)):
		return nil, badReply(request, "the names inside and outside of the ticket differ")
	case !ok || len(t.key.KeyValue) != et.keySize:
		return nil, badReply(request, "the session key is "+enctypeNames([]int32{t.key.KeyType}))
	}
	return t, nil
}

func badReply(request, what string) error {
	return &api.Error{Code: api.KDCError, Detail: "the KDC's answer to an " + request + " is of no use: " + what,
		Remedy: "ask the realm's administrator"}
}

// skewed is the error for clocks that differ by offset.
func skewed(whose string, offset time.Duration) error {
	direction := "ahead of"
	if offset < 0 {
		direction, offset = "behind", -offset
	}
	return &api.Error{Code: api.ClockSkew,
		Detail: fmt.Sprintf("the clock of %s is %s %s this machine's", whose, offset.Round(time.Second), direction),
		Remedy: "set this machine's clock: timedatectl set-ntp true"}
}

// morePreauthRequired is KDC_ERR_MORE_PREAUTH_DATA_REQUIRED (RFC 6113, 5.2).
const morePreauthRequired = 91

// asRefused says what a KRB-ERROR means in an AS exchange.
// attempt says that the request carried pre-authentication.
func (e *Engine) asRefused(k *messages.KRBError, client Principal, long keys, attempt bool) error {
	refused := func(code api.Code, what, remedy string) error {
		return &api.Error{Code: code, Detail: what + ": " + describe(k), Remedy: remedy, Err: refusal(k.ErrorCode)}
	}
	switch k.ErrorCode {
	case errorcode.KDC_ERR_PREAUTH_FAILED, errorcode.KRB_AP_ERR_BAD_INTEGRITY:
		return refused(api.BadCredentials, fmt.Sprintf("the KDC refuses the keytab's key of %s, version %d", client, long.kvno),
			"make a new keytab; the old one will not be tried again")
	case errorcode.KDC_ERR_PREAUTH_REQUIRED, morePreauthRequired:
		if attempt { // what it got did not do
			return refused(api.BadCredentials, fmt.Sprintf("the KDC is not content with the keytab's key of %s, version %d", client, long.kvno),
				"make a new keytab; the old one will not be tried again")
		}
	case errorcode.KDC_ERR_C_PRINCIPAL_UNKNOWN:
		return refused(api.PrincipalUnknown, "the KDC does not know "+client.String(), "correct the principal, or ask the realm's administrator")
	case errorcode.KDC_ERR_CLIENT_REVOKED:
		return refused(api.PrincipalDisabled, client.String()+" is disabled or locked", "ask the realm's administrator")
	case errorcode.KDC_ERR_NAME_EXP:
		return refused(api.PrincipalExpired, client.String()+" has expired", "ask the realm's administrator")
	case errorcode.KDC_ERR_KEY_EXPIRED:
		return refused(api.PasswordExpired, "the password of "+client.String()+" has expired", "change it and make a new keytab")
	case errorcode.KDC_ERR_ETYPE_NOSUPP:
		return refused(api.EtypeUnsupported, "the KDC takes none of the keytab's keys of "+client.String()+" ("+enctypeNames(long.etypes())+")",
			"make a new keytab with one of the KDC's enctypes")
	case errorcode.KRB_AP_ERR_SKEW:
		return skewed("the KDC", k.STime.Sub(e.now()))
	}
	return refused(api.KDCError, "the KDC refuses a ticket for "+client.String(), "ask the realm's administrator")
}

// tgsRefused says what a KRB-ERROR means in a TGS exchange.
func (e *Engine) tgsRefused(k *messages.KRBError, server Principal) error {
	switch k.ErrorCode {
	case errorcode.KDC_ERR_S_PRINCIPAL_UNKNOWN:
		return &api.Error{Code: api.SPNUnknown,
			Detail: "the KDC does not know the service " + server.String() + ": " + describe(k),
			Remedy: "use the host name that the service is registered under, or have the SPN registered", Err: refusal(k.ErrorCode)}
	case errorcode.KRB_AP_ERR_SKEW:
		return skewed("the KDC", k.STime.Sub(e.now()))
	}
	err := &api.Error{Code: api.KDCError, Detail: "the KDC refuses a ticket for " + server.String() + ": " + describe(k),
		Remedy: "ask the realm's administrator", Err: refusal(k.ErrorCode)}
	switch k.ErrorCode {
	case errorcode.KDC_ERR_TGT_REVOKED, errorcode.KRB_AP_ERR_BAD_INTEGRITY, errorcode.KRB_AP_ERR_TKT_EXPIRED,
		errorcode.KRB_AP_ERR_TKT_NYV, errorcode.KRB_AP_ERR_MODIFIED, errorcode.KRB_AP_ERR_BADKEYVER, errorcode.KRB_AP_ERR_NOKEY:
		err.Err = errTGTRefused
	}
	return err
}

// refusal is the error code of a KRB-ERROR.
type refusal int32

func (r refusal) Error() string { return fmt.Sprintf("KRB-ERROR %d", int32(r)) }

// describe names a KRB-ERROR with the peer's own text, if it sent one.
func describe(k *messages.KRBError) string {
	// "(24) KDC_ERR_PREAUTH_FAILED and a sentence"
	name := strings.Join(strings.Fields(errorcode.Lookup(k.ErrorCode))[:2], " ")
	if text := strings.TrimRight(k.EText, "\x00"); text != "" {
		name += ", " + quote(text)
	}
	return "KRB-ERROR " + name
}
