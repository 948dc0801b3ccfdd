package rig

import (
	"crypto/md5"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/jcmturner/gofork/encoding/asn1"
	"github.com/jcmturner/gokrb5/v8/asn1tools"
	"github.com/jcmturner/gokrb5/v8/crypto"
	"github.com/jcmturner/gokrb5/v8/gssapi"
	"github.com/jcmturner/gokrb5/v8/iana"
	"github.com/jcmturner/gokrb5/v8/iana/asnAppTag"
	"github.com/jcmturner/gokrb5/v8/iana/chksumtype"
	"github.com/jcmturner/gokrb5/v8/iana/errorcode"
	"github.com/jcmturner/gokrb5/v8/iana/flags"
	"github.com/jcmturner/gokrb5/v8/iana/keyusage"
	"github.com/jcmturner/gokrb5/v8/iana/msgtype"
	"github.com/jcmturner/gokrb5/v8/keytab"
	"github.com/jcmturner/gokrb5/v8/messages"
	"github.com/jcmturner/gokrb5/v8/spnego"
	"github.com/jcmturner/gokrb5/v8/types"
)

// Acceptor is the service's side of Negotiate: it checks SPNEGO tokens with the
// keys of one SPN and answers as mod_auth_gssapi 1.6.4 on MIT krb5 1.20 does.
// It is safe for concurrent use.
type Acceptor struct {
	// Now is the service's clock; nil means time.Now.
	Now func() time.Time
	// Bindings is the application data of the channel's bindings (RFC 5056), such
	// as "tls-server-end-point:" and a certificate's hash (RFC 5929, 4). A token
	// that is bound to another channel is refused. One that is bound to none is
	// taken. nil: whatever a token is bound to, it is taken as bound to none.
	Bindings []byte
	// RequireBindings refuses tokens that are bound to no channel, as IIS does
	// with extended protection set to Require.
	RequireBindings bool
	// Windows answers KRB_AP_ERR_MODIFIED (41) where the service's key does not
	// open the ticket, as Windows does, and not 31 like MIT.
	Windows bool

	spn  types.PrincipalName
	keys *keytab.Keytab

	mu    sync.Mutex
	flags uint32
	bound bool
	last  Ticket
	seen  map[[sha256.Size]byte]bool // encrypted authenticators
}

// NewAcceptor makes the acceptor of a service from a keytab file's bytes.
func NewAcceptor(keytabFile []byte, spn string) (*Acceptor, error) {
	kt := keytab.New()
	if err := kt.Unmarshal(keytabFile); err != nil {
		return nil, errors.New("rig: malformed keytab")
	}
	return &Acceptor{
		spn:  types.PrincipalName{NameString: strings.Split(spn, "/")},
		keys: kt,
		seen: make(map[[sha256.Size]byte]bool),
	}, nil
}

// Accept checks a token. If it is good, principal is who sent it, and reply
// the NegTokenResp for the answer: with an AP-REP if the client wants mutual
// authentication. Else err says why not, and reply is a reject token. As
// measured with MIT krb5 1.20, it holds a KRB-ERROR if the client wants mutual
// authentication: 60 for wrong bindings, for the rest see below.
func (a *Acceptor) Accept(token []byte) (principal string, reply []byte, err error) {
	defer func() {
		if p := recover(); p != nil {
			principal, reply, err = "", RejectToken(), fmt.Errorf("rig: malformed token: %v", p)
		}
	}()
	var st spnego.SPNEGOToken
	var mech spnego.KRB5Token
	if err := st.Unmarshal(token); err != nil {
		return "", RejectToken(), err
	}
	if err := mech.Unmarshal(st.NegTokenInit.MechTokenBytes); err != nil {
		return "", RejectToken(), err
	}
	if !mech.IsAPReq() {
		return "", RejectToken(), errors.New("rig: no AP-REQ in the token")
	}
	principal, apRep, err := a.accept(&mech.APReq)
	if err != nil {
		e, ok := errors.AsType[messages.KRBError](err)
		if !ok || !types.IsFlagSet(&mech.APReq.APOptions, flags.APOptionMutualRequired) {
			return "", RejectToken(), err
		}
		b, merr := e.Marshal()
		if merr != nil {
			return "", RejectToken(), merr
		}
		return "", respond(spnego.NegStateReject, nil, mechToken(0x03, b)), err
	}
	if apRep == nil {
		return principal, respond(spnego.NegStateAcceptCompleted, gssapi.OIDKRB5.OID(), nil), nil
	}
	return principal, respond(spnego.NegStateAcceptCompleted, gssapi.OIDKRB5.OID(), mechToken(0x02, apRep)), nil
}

// Flags returns the context flags that the last good token asked for (RFC 4121,
// 4.1.1.1).
func (a *Acceptor) Flags() uint32 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.flags
}

// Bound says whether the last good token was bound to the channel of Bindings.
func (a *Acceptor) Bound() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.bound
}

// LastTicket returns the ticket of the last good token.
func (a *Acceptor) LastTicket() Ticket {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.last
}

// accept checks an AP-REQ (RFC 4120, 3.2.3) and makes the AP-REP if one is
// wanted.
func (a *Acceptor) accept(req *messages.APReq) (principal string, apRep []byte, err error) {
	now := time.Now
	if a.Now != nil {
		now = a.Now
	}
	fail := func(code int32) (string, []byte, error) {
		return "", nil, krbError(now(), code, req.Ticket.Realm, req.Ticket.SName, "")
	}
	// The first three codes are measured at MIT krb5 1.20: a ticket for an SPN that
	// is not in the keytab, for a version that is not, and one that the key of its
	// version does not open. So is 34 for a replay.
	if !req.Ticket.SName.Equal(a.spn) {
		return fail(errorcode.KRB_AP_ERR_NOT_US)
	}
	key, known := a.key(req.Ticket.Realm, req.Ticket.EncPart)
	if !known {
		return fail(errorcode.KRB_AP_ERR_BADKEYVER)
	}
	if err := req.Ticket.Decrypt(key); err != nil {
		if a.Windows {
			return fail(errorcode.KRB_AP_ERR_MODIFIED)
		}
		return fail(errorcode.KRB_AP_ERR_BAD_INTEGRITY)
	}
	ticket := req.Ticket.DecryptedEncPart
	if err := req.DecryptAuthenticator(ticket.Key); err != nil {
		return fail(errorcode.KRB_AP_ERR_BAD_INTEGRITY)
	}
	auth := req.Authenticator
	switch {
	case !auth.CName.Equal(ticket.CName) || auth.CRealm != ticket.CRealm:
		return fail(errorcode.KRB_AP_ERR_BADMATCH)
	case auth.CTime.Sub(now()).Abs() > skew:
		return fail(errorcode.KRB_AP_ERR_SKEW)
	case now().Sub(ticket.EndTime) > skew:
		return fail(errorcode.KRB_AP_ERR_TKT_EXPIRED)
	case a.replayed(req.EncryptedAuthenticator.Cipher):
		return fail(errorcode.KRB_AP_ERR_REPEAT)
	}
	flagged, bindings := checksum(auth)
	bound := a.Bindings != nil && bindings == channel(a.Bindings)
	switch {
	case bound:
	case a.Bindings != nil && bindings != [md5.Size]byte{}:
		return fail(errorcode.KRB_ERR_GENERIC)
	case a.RequireBindings:
		return "", nil, errors.New("rig: a token that is bound to no channel")
	}
	a.mu.Lock()
	a.flags, a.bound, a.last = flagged, bound, ticketOf(req.Ticket, ticket)
	a.mu.Unlock()
	principal = ticket.CName.PrincipalNameString() + "@" + ticket.CRealm
	if !types.IsFlagSet(&req.APOptions, flags.APOptionMutualRequired) {
		return principal, nil, nil
	}
	b, err := asn1.Marshal(messages.EncAPRepPart{CTime: auth.CTime, Cusec: auth.Cusec, SequenceNumber: auth.SeqNumber})
	if err != nil {
		return "", nil, err
	}
	sealed, err := crypto.GetEncryptedData(asn1tools.AddASNAppTag(b, asnAppTag.EncAPRepPart), ticket.Key, keyusage.AP_REP_ENCPART, 0)
	if err != nil {
		return "", nil, err
	}
	if b, err = asn1.Marshal(messages.APRep{PVNO: iana.PVNO, MsgType: msgtype.KRB_AP_REP, EncPart: sealed}); err != nil {
		return "", nil, err
	}
	return principal, asn1tools.AddASNAppTag(b, asnAppTag.APREP), nil
}

// checksum returns the context flags and the bindings in an authenticator's
// checksum (RFC 4121, 4.1.1).
func checksum(auth types.Authenticator) (flags uint32, bindings [md5.Size]byte) {
	if sum := auth.Cksum.Checksum; auth.Cksum.CksumType == chksumtype.GSSAPI && len(sum) >= 24 {
		copy(bindings[:], sum[4:])
		flags = binary.LittleEndian.Uint32(sum[20:])
	}
	return flags, bindings
}

// channel is the hash of channel bindings without addresses (RFC 4121, 4.1.1.2).
func channel(data []byte) [md5.Size]byte {
	b := binary.LittleEndian.AppendUint32(make([]byte, 16), uint32(len(data)))
	return md5.Sum(append(b, data...))
}

// key returns the service's key of a ticket's enctype and version.
func (a *Acceptor) key(realm string, sealed types.EncryptedData) (types.EncryptionKey, bool) {
	for _, e := range a.keys.Entries {
		if e.Principal.Realm == realm && a.spn.Equal(types.PrincipalName{NameString: e.Principal.Components}) &&
			e.Key.KeyType == sealed.EType && int(e.KVNO) == sealed.KVNO {
			return e.Key, true
		}
	}
	return types.EncryptionKey{}, false
}

// replayed is MIT's replay cache: it knows an authenticator by its ciphertext.
func (a *Acceptor) replayed(authenticator []byte) bool {
	sum := sha256.Sum256(authenticator)
	a.mu.Lock()
	defer a.mu.Unlock()
	known := a.seen[sum]
	a.seen[sum] = true
	return known
}

// mechToken frames a Kerberos message as RFC 4121, 4.1 says; id is the first
// byte of its TOK_ID.
func mechToken(id byte, message []byte) []byte {
	b, err := asn1.Marshal(gssapi.OIDKRB5.OID())
	if err != nil {
		panic(err)
	}
	return asn1tools.AddASNAppTag(append(append(b, id, 0x00), message...), 0)
}

// respond encodes a NegTokenResp (RFC 4178, 4.2.2).
func respond(state spnego.NegState, mech asn1.ObjectIdentifier, token []byte) []byte {
	resp := spnego.NegTokenResp{NegState: asn1.Enumerated(state), SupportedMech: mech, ResponseToken: token}
	b, err := resp.Marshal()
	if err != nil {
		panic(err)
	}
	return b
}

// RejectToken is a NegTokenResp that rejects and tells nothing else, as
// mod_auth_gssapi sends it: oQcwBaADCgEC in base64.
func RejectToken() []byte {
	return []byte{0xa1, 0x07, 0x30, 0x05, 0xa0, 0x03, 0x0a, 0x01, 0x02}
}
