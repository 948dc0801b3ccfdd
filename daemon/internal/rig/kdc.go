// Package rig holds what the agent is tested against: an in-process KDC with
// the acceptor of a service, fake sites, and real servers as child processes.
// Each behaviour that is imitated names the public fact behind it.
//
// It is no test itself: it never imports testing, so that programs for users
// can start the same rigs. The agent's own code never imports it.
package rig

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jcmturner/gokrb5/v8/crypto"
	"github.com/jcmturner/gokrb5/v8/iana/etypeID"
	"github.com/jcmturner/gokrb5/v8/iana/nametype"
	"github.com/jcmturner/gokrb5/v8/types"
)

// Enctypes of a KDC: aes256-cts-hmac-sha1-96, aes128-cts-hmac-sha1-96 (RFC
// 3962), aes128-cts-hmac-sha256-128, aes256-cts-hmac-sha384-192 (RFC 8009) and
// arcfour-hmac (RFC 4757).
const (
	AES256SHA1 = etypeID.AES256_CTS_HMAC_SHA1_96
	AES128SHA1 = etypeID.AES128_CTS_HMAC_SHA1_96
	AES128SHA2 = etypeID.AES128_CTS_HMAC_SHA256_128
	AES256SHA2 = etypeID.AES256_CTS_HMAC_SHA384_192
	RC4        = etypeID.RC4_HMAC
)

// defaultEtypes are MIT's default supported_enctypes (kdc.conf(5)).
var defaultEtypes = []int32{AES256SHA1, AES128SHA1}

// krbtgtEtypes are those of a realm's own krbtgt and of the keys between
// realms. As in MIT's realms, rc4 is none of them.
var krbtgtEtypes = []int32{AES256SHA1, AES128SHA1, AES256SHA2, AES128SHA2}

// skew is how far a client's clock may be off: MIT's default clockskew.
const skew = 5 * time.Minute

// Counts is what a KDC was asked, and answered, since it was made.
type Counts struct {
	AS            int // AS-REQs
	ASTGT         int // TGTs issued by the AS
	PreauthFailed int // pre-authentications refused
	TGS           int // tickets issued by the TGS, all kinds
	Renewed       int // of those: renewed ones
	Referrals     int // of those: TGTs of other realms for who asked for something else
}

// Requests is how many messages have reached a KDC by each transport since it
// was made, whatever became of them.
type Requests struct{ UDP, TCP int }

// KDC is a Kerberos KDC (RFC 4120) for one realm, in this process, over TCP and
// UDP on a free port of 127.0.0.1. It demands pre-authentication by encrypted
// timestamp of every principal that NoPreauth has not named. Its methods may be
// used while it serves; those that name a principal panic if there is none.
type KDC struct {
	realm string
	addr  string

	serving sync.WaitGroup

	mu         sync.Mutex
	principals map[string]*account
	aliases    map[string]string   // name asked for → name in the ticket
	trusted    map[string]*account // realm → key of its krbtgt/REALM for this realm
	hosts      map[string]string   // host → realm that it is in
	routes     map[string]string   // realm → next realm on the way
	foldCase   bool
	listener   net.Listener   // nil while TCP is refused
	packets    net.PacketConn // nil while UDP is refused
	conns      map[net.Conn]bool
	closed     bool
	tcp, udp   Mode
	udpLimit   int // bytes
	now        func() time.Time
	life       time.Duration
	renewLife  time.Duration
	counts     Counts
	requests   Requests
	last       Ticket
}

// account is a principal's entry in the database.
type account struct {
	name       []string
	password   string // "": random keys
	salt       string
	iterations uint32 // 0: the enctype's default
	kvno       int
	keys       []types.EncryptionKey // the best first
	refusal    int32                 // KRB-ERROR code of every AS-REQ, 0: none
	noPreauth  bool
	pac        int // bytes
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
	ln, packets, err := listenBoth()
	if err != nil {
		return nil, err
	}
	k := &KDC{
		realm: realm, addr: ln.Addr().String(),
		principals: make(map[string]*account),
		aliases:    make(map[string]string),
		trusted:    make(map[string]*account),
		hosts:      make(map[string]string),
		routes:     make(map[string]string),
		conns:      make(map[net.Conn]bool),
		udpLimit:   4096, // MIT's kdc_max_dgram_reply_size (kdc.conf(5))
		now:        time.Now,
		life:       10 * time.Hour,
	}
	k.add("krbtgt/"+realm, "", krbtgtEtypes)
	k.listenTCP(ln)
	k.listenUDP(packets)
	return k, nil
}

// Addr returns the KDC's host:port.
func (k *KDC) Addr() string { return k.addr }

// Realm returns the KDC's realm.
func (k *KDC) Realm() string { return k.realm }

// Krb5Conf returns a krb5.conf for the realm and for those of others, which
// MIT's programs understand as well. It makes clients use TCP, and says of no
// host which realm it is in.
func (k *KDC) Krb5Conf(others ...*KDC) string {
	var b strings.Builder
	fmt.Fprintf(&b, `[libdefaults]
    default_realm = %s
    dns_lookup_kdc = false
    dns_lookup_realm = false
    dns_canonicalize_hostname = false
    rdns = false
    udp_preference_limit = 1

[realms]
`, k.realm)
	for _, kdc := range append([]*KDC{k}, others...) {
		fmt.Fprintf(&b, "    %s = {\n        kdc = %s\n    }\n", kdc.realm, kdc.addr)
	}
	return b.String()
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
	a := &account{name: strings.Split(name, "/"), password: password, kvno: 1}
	// RFC 4120, 4: the default salt is the realm and the name's components.
	a.salt = k.realm + strings.Join(a.name, "")
	a.makeKeys(etypes)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.principals[name] = a
}

// etypes returns the enctypes of the account's keys.
func (a *account) etypes() []int32 {
	etypes := make([]int32, len(a.keys))
	for i, key := range a.keys {
		etypes[i] = key.KeyType
	}
	return etypes
}

// makeKeys makes the account's keys, from its password if it has one.
func (a *account) makeKeys(etypes []int32) {
	keys := make([]types.EncryptionKey, len(etypes))
	for i, etype := range etypes {
		keys[i] = newKey(etype)
		if a.password != "" {
			et, err := crypto.GetEtype(etype)
			if err != nil {
				panic(err)
			}
			parameters := et.GetDefaultStringToKeyParams()
			if a.iterations != 0 && etype != RC4 {
				parameters = fmt.Sprintf("%08x", a.iterations)
			}
			value, err := et.StringToKey(a.password, a.salt, parameters)
			if err != nil {
				panic(err)
			}
			keys[i].KeyValue = value
		}
	}
	a.keys = keys
}

// newKey makes a random key. gokrb5 makes aes256-sha2 keys of 24 bytes; RFC
// 8009, 5 says 32.
func newKey(etype int32) types.EncryptionKey {
	size := 32
	if etype == AES128SHA1 || etype == AES128SHA2 || etype == RC4 {
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
	a := k.account(name)
	a.password = password
	a.kvno++
	a.makeKeys(a.etypes())
}

// SetSalt makes the keys of a principal anew from its password and another salt
// than the default one, as a renamed principal has it. Their version stays.
func (k *KDC) SetSalt(name, salt string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	a := k.account(name)
	a.salt = salt
	a.makeKeys(a.etypes())
}

// SetIterations makes the keys of a principal anew from its password with
// another iteration count than the enctype's default. The KDC tells it to
// clients (s2kparams: RFC 3962, 4; RFC 8009, 4). Their version stays.
func (k *KDC) SetIterations(name string, n uint32) {
	k.mu.Lock()
	defer k.mu.Unlock()
	a := k.account(name)
	a.iterations = n
	a.makeKeys(a.etypes())
}

// NoPreauth lets a principal have a TGT without pre-authentication.
func (k *KDC) NoPreauth(name string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.account(name).noPreauth = true
}

// SetPACSize puts so many bytes into a principal's TGTs where AD has the PAC
// (MS-PAC 2.2.1: AD-WIN2K-PAC in AD-IF-RELEVANT), unless the AS-REQ says with
// PA-PAC-REQUEST that it wants none (MS-KILE 2.2.3). Tickets that the TGS makes
// carry what the TGT carries. 0, as at first, means none.
func (k *KDC) SetPACSize(name string, bytes int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.account(name).pac = bytes
}

// CaseInsensitive makes the KDC find principals and its realm in any case, as
// AD does. It answers with the client's name as it was asked for, or, if the
// request says canonicalize, as it is in the database (RFC 6806, 5), and with
// the realm in its own case.
func (k *KDC) CaseInsensitive(on bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.foldCase = on
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

// SetRenewLife sets how long after its start a new ticket can be renewed at
// most. 0, as at first: no ticket is renewable.
func (k *KDC) SetRenewLife(life time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.renewLife = life
}

// Counts returns what the KDC was asked so far. Whatever a client has had an
// answer for is counted, and also what was too big for UDP.
func (k *KDC) Counts() Counts {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.counts
}

// Requests returns how many messages came so far.
func (k *KDC) Requests() Requests {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.requests
}

// LastTicket returns the newest ticket that the KDC has issued.
func (k *KDC) LastTicket() Ticket {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.last
}

// account must be called with the lock held.
func (k *KDC) account(name string) *account {
	a := k.principals[name]
	if a == nil {
		panic("rig: no principal " + name)
	}
	return a
}

// find returns the account of a name that was asked for, or nil. It must be
// called with the lock held.
func (k *KDC) find(name string) *account {
	if a := k.principals[name]; a != nil || !k.foldCase {
		return a
	}
	for known, a := range k.principals {
		if strings.EqualFold(known, name) {
			return a
		}
	}
	return nil
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
