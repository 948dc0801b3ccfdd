package krb

import (
	"crypto/md5"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/jcmturner/gokrb5/v8/crypto"
	"github.com/jcmturner/gokrb5/v8/gssapi"
	"github.com/jcmturner/gokrb5/v8/iana/chksumtype"
	"github.com/jcmturner/gokrb5/v8/iana/errorcode"
	"github.com/jcmturner/gokrb5/v8/iana/keyusage"
	"github.com/jcmturner/gokrb5/v8/messages"
	"github.com/jcmturner/gokrb5/v8/spnego"
	"github.com/jcmturner/gokrb5/v8/types"

	"github.com/sessionctl/sessionctl/api"
)

// Context is one attempt to show a principal to a service: a token, and what
// its answer is checked with. A token works once.
type Context struct {
	token  []byte
	server Principal
	key    types.EncryptionKey
	auth   types.Authenticator
	bound  bool // to channel bindings
	now    func() time.Time
}

// newContext builds a SPNEGO NegTokenInit (RFC 4178, 4.2.1) with Kerberos as
// its one mechanism: an AP-REQ (RFC 4121, 4.1) that delegates nothing.
func (e *Engine) newContext(t *ticket, o InitiateOptions) (*Context, error) {
	// RFC 4121, 4.1.1: length of the channel bindings, bindings, flags.
	sum := make([]byte, 24)
	binary.LittleEndian.PutUint32(sum, 16)
	if o.Bindings != nil {
		hash := bindingsHash(o.Bindings)
		copy(sum[4:], hash[:])
	}
	contextFlags := uint32(gssapi.ContextFlagInteg)
	if o.Mutual {
		contextFlags |= gssapi.ContextFlagMutual
	}
	binary.LittleEndian.PutUint32(sum[20:], contextFlags)
	auth, ap, err := e.apReq(t, types.Checksum{CksumType: chksumtype.GSSAPI, Checksum: sum}, o.Mutual)
	if err != nil {
		return nil, err
	}
	mech := der(0x60, oidKRB5, []byte{0x01, 0x00}, ap) // TOK_ID of an AP-REQ
	token := der(0x60, oidSPNEGO, der(0xa0, der(0x30,
		der(0xa0, der(0x30, oidKRB5)),
		der(0xa2, der(0x04, mech)))))
	return &Context{token: token, server: t.server, key: t.key, auth: auth, bound: o.Bindings != nil, now: e.now}, nil
}

// The OIDs of SPNEGO (RFC 4178) and Kerberos (RFC 4121), in DER.
var (
	oidSPNEGO = []byte("\x06\x06\x2b\x06\x01\x05\x05\x02")
	oidKRB5   = []byte("\x06\x09\x2a\x86\x48\x86\xf7\x12\x01\x02\x02")
)

// bindingsHash is the MD5 of channel bindings without addresses (RFC 4121,
// 4.1.1.2).
func bindingsHash(applicationData []byte) [md5.Size]byte {
	b := make([]byte, 16, 20+len(applicationData))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(applicationData)))
	return md5.Sum(append(b, applicationData...))
}

// Token returns the token, not in base64.
func (c *Context) Token() []byte { return c.token }

// Verify checks the service's answer, a SPNEGO NegTokenResp (RFC 4178,
// 4.2.2). It returns true if the answer proves that the service has the
// ticket's key, false if the service accepted without a proof. A service that
// refuses, or proves wrongly, gives an *api.Error of code ClockSkew, Replay,
// ServiceKeyMismatch, NegotiateRejected or MutualAuthFailed.
func (c *Context) Verify(token []byte) (mutual bool, err error) {
	unproven := func(what string) (bool, error) {
		return false, &api.Error{Code: api.MutualAuthFailed,
			Detail: "the answer of " + c.server.String() + " does not prove who it is: " + what,
			Remedy: "check that the URL leads to the real service"}
	}
	if len(token) > maxReply {
		return unproven(fmt.Sprintf("it has %d bytes", len(token)))
	}
	var answer spnego.SPNEGOToken
	if err := decode(token, answer.Unmarshal); err != nil || !answer.Resp {
		return unproven("it is no NegTokenResp")
	}
	resp := &answer.NegTokenResp
	var mech spnego.KRB5Token
	if len(resp.ResponseToken) > 0 {
		if err := safely(func() error { return mech.Unmarshal(resp.ResponseToken) }); err != nil {
			mech = spnego.KRB5Token{}
		}
	}
	switch {
	case mech.IsKRBError():
		return false, c.refused(&mech.KRBError)
	case resp.State() == spnego.NegStateReject:
		return false, &api.Error{Code: api.NegotiateRejected,
			Detail: c.server.String() + " refuses the token and gives no reason",
			Remedy: "check the service's keytab, its SPN and its clock; its own log knows why"}
	case resp.State() != spnego.NegStateAcceptCompleted:
		return false, &api.Error{Code: api.NegotiateRejected,
			Detail: fmt.Sprintf("%s asks for another round of Negotiate (state %d)", c.server, resp.State()),
			Remedy: "have the service accept Kerberos in one round"}
	case len(resp.ResponseToken) == 0:
		return false, nil
	case !mech.IsAPRep():
		return unproven("it holds no AP-REP")
	}
	var plain []byte
	err = safely(func() (err error) {
		plain, err = crypto.DecryptEncPart(mech.APRep.EncPart, c.key, keyusage.AP_REP_ENCPART)
		return err
	})
	if err != nil {
		return unproven("its AP-REP does not open with the session key")
	}
	var part messages.EncAPRepPart
	if err := decode(plain, part.Unmarshal); err != nil {
		return unproven("its AP-REP is malformed")
	}
	if part.CTime.Unix() != c.auth.CTime.Unix() || part.Cusec != c.auth.Cusec {
		return unproven("its AP-REP is for another token")
	}
	return true, nil
}

// refused says what a service's KRB-ERROR means.
func (c *Context) refused(k *messages.KRBError) error {
	refused := func(code api.Code, what, remedy string) error {
		return &api.Error{Code: code, Detail: c.server.String() + " " + what + ": " + describe(k), Remedy: remedy, Err: refusal(k.ErrorCode)}
	}
	switch k.ErrorCode {
	case errorcode.KRB_AP_ERR_SKEW:
		return skewed(c.server.String(), k.STime.Sub(c.now()))
	case errorcode.KRB_AP_ERR_REPEAT:
		return refused(api.Replay, "has seen the token before", "try again; if it stays, look for a proxy that repeats requests")
	case errorcode.KRB_AP_ERR_BAD_INTEGRITY, // MIT: another key of the same version
		errorcode.KRB_AP_ERR_NOT_US, // MIT: only keys of other SPNs
		errorcode.KRB_AP_ERR_MODIFIED, errorcode.KRB_AP_ERR_BADKEYVER, errorcode.KRB_AP_ERR_NOKEY:
		return refused(api.ServiceKeyMismatch, "cannot open the ticket, its keytab is stale or another's",
			"have the service's administrator renew its keytab, or see whether the SPN is that service's")
	case errorcode.KRB_ERR_GENERIC: // MIT: among others, bindings that are not the channel's
		if c.bound {
			return refused(api.BadChannelBinding, "refuses the token that is bound to the TLS connection",
				`if something in front of the service ends TLS, set channel_bindings = "off"`)
		}
	}
	return refused(api.NegotiateRejected, "refuses the token", "ask the service's administrator")
}
