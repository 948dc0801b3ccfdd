package krb

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jcmturner/gofork/encoding/asn1"
	"github.com/jcmturner/gokrb5/v8/crypto"
	"github.com/jcmturner/gokrb5/v8/iana"
	"github.com/jcmturner/gokrb5/v8/iana/errorcode"
	"github.com/jcmturner/gokrb5/v8/iana/flags"
	"github.com/jcmturner/gokrb5/v8/iana/keyusage"
	"github.com/jcmturner/gokrb5/v8/iana/msgtype"
	"github.com/jcmturner/gokrb5/v8/iana/nametype"
	"github.com/jcmturner/gokrb5/v8/iana/patype"
	"github.com/jcmturner/gokrb5/v8/messages"
	"github.com/jcmturner/gokrb5/v8/types"

	"github.com/sessionctl/sessionctl/api"
)

// authenticate is the AS exchange (RFC 4120, 3.1): a TGT for a principal from
// its long-term key, in two messages at most unless the clocks differ. At most
// one key is tried.
func (e *Engine) authenticate(ctx context.Context, src source) (*ticket, error) {
	kdcs, err := e.kdcsOf(src.config, src.client.Realm)
	if err != nil {
		return nil, err
	}
	if len(src.etypes) == 0 {
		return nil, &api.Error{Code: api.EtypeUnsupported, Detail: "the enctypes in krb5.conf leave none that the agent speaks", Remedy: "mend permitted_enctypes in krb5.conf"}
	}
	x := &asExchange{e: e, kdcs: kdcs, src: src}
	r, err := x.ask(ctx, nil)
	if err != nil {
		return nil, err
	}
	if r.refusal != nil && x.learn(r.refusal) && r.refusal.ErrorCode != errorcode.KDC_ERR_PREAUTH_REQUIRED {
		// The KDC's clock is known now: for it, the request was of another time.
		if r, err = x.ask(ctx, nil); err != nil {
			return nil, err
		}
	}
	if r.refusal == nil || r.refusal.ErrorCode != errorcode.KDC_ERR_PREAUTH_REQUIRED {
		t, err := x.granted(r, false)
		if refused, ok := errors.AsType[*api.Error](err); ok && refused.Code.Refusal() {
			e.verdict(ctx, src, src.first(), err)
		}
		return t, err
	}
	key, echo, err := x.preauthentication(r.refusal.EData)
	if err != nil {
		return nil, err
	}
	secret := src.secret(key)
	if err := e.latch.Begin(ctx, Verifier(src.client), src.client.String(), secret); err != nil {
		return nil, err
	}
	// Also after a panic, of which nobody knows what became.
	lost := true
	defer func() {
		if lost {
			e.latch.Lost(Verifier(src.client), src.client.String(), secret, &api.Error{Code: api.KDCError, Detail: "the attempt broke off"})
		}
	}()
	t, err := x.attempt(ctx, key, echo)
	lost = false
	if errors.Is(err, errDelivered) {
		e.latch.Lost(Verifier(src.client), src.client.String(), secret, err)
		return nil, err
	}
	e.verdict(ctx, src, key, err)
	return t, err
}

// first returns a key of the source, for a refusal before any was tried.
func (s source) first() types.EncryptionKey {
	if len(s.keys) == 0 {
		return types.EncryptionKey{} // a password is one secret in any case
	}
	return s.keys[0]
}

// asExchange is one AS exchange.
type asExchange struct {
	e      *Engine
	kdcs   *realmKDCs
	src    source
	req    messages.ASReq
	offset time.Duration // of the KDC's clock, as it says without proof
}

// ask sends an AS-REQ with pre-authentication, which then is an attempt, or
// without.
func (x *asExchange) ask(ctx context.Context, preauth types.PADataSequence) (reply, error) {
	tgs := ticketGranting(x.src.client.Realm)
	x.req = messages.ASReq{KDCReqFields: messages.KDCReqFields{
		PVNO:    iana.PVNO,
		MsgType: msgtype.KRB_AS_REQ,
		PAData:  slices.Clone(preauth),
		ReqBody: x.e.body(x.src, tgs, nametype.KRB_NT_SRV_INST, x.src.etypes, x.offset),
	}}
	x.req.ReqBody.CName = x.src.client.name(nametype.KRB_NT_PRINCIPAL)
	if x.src.noPAC {
		x.req.PAData = append(x.req.PAData, types.PAData{PADataType: patype.PA_PAC_REQUEST, PADataValue: noPAC})
	}
	message, err := x.req.Marshal()
	if err != nil {
		return reply{}, fmt.Errorf("encode AS-REQ: %w", err)
	}
	return x.kdcs.exchange(ctx, message, preauth != nil)
}

// noPAC is a KERB-PA-PAC-REQUEST of false (MS-KILE, 2.2.3).
var noPAC = []byte{0x30, 0x05, 0xa0, 0x03, 0x01, 0x01, 0x00}

// learn takes the KDC's time from a KRB-ERROR, and reports whether the request
// has to be made anew for it. Nothing proves that time; it is used for this
// exchange alone, whose end does (as MIT does: kdc_timesync in krb5.conf(5)).
func (x *asExchange) learn(k *messages.KRBError) bool {
	switch k.ErrorCode {
	case errorcode.KDC_ERR_PREAUTH_REQUIRED, errorcode.KRB_AP_ERR_SKEW, errorcode.KDC_ERR_NEVER_VALID:
	default:
		return false
	}
	if k.STime.Unix() <= 0 || !x.src.config.KDCTimeSync() {
		return false
	}
	offset := clockOffset(k.STime, x.e.now())
	changed := offset != x.offset
	x.offset = offset
	return changed
}

// clockOffset returns how far a peer's clock is from this machine's. Peers tell
// their time in whole seconds, so a smaller difference is none.
func clockOffset(theirs, ours time.Time) time.Duration {
	if d := theirs.Sub(ours); d.Abs() >= 2*time.Second {
		return d.Round(time.Second)
	}
	return 0
}

// attempt tries a key: once more only if all that the KDC minded was the time.
func (x *asExchange) attempt(ctx context.Context, key types.EncryptionKey, echo types.PADataSequence) (*ticket, error) {
	for again := true; ; again = false {
		stamp, err := x.encryptedTimestamp(key)
		if err != nil {
			return nil, err
		}
		r, err := x.ask(ctx, append(types.PADataSequence{stamp}, echo...))
		if err != nil {
			return nil, err
		}
		if again && r.refusal != nil && r.refusal.ErrorCode != errorcode.KDC_ERR_PREAUTH_REQUIRED && x.learn(r.refusal) {
			continue
		}
		return x.granted(r, true)
	}
}

// granted reads the KDC's answer to an AS-REQ, which may have carried
// pre-authentication.
func (x *asExchange) granted(r reply, attempt bool) (*ticket, error) {
	src := x.src
	switch {
	case r.refusal != nil:
		return nil, x.e.asRefused(r.refusal, src, attempt)
	case r.as == nil:
		return nil, badReply("AS-REQ", "a TGS-REP came")
	}
	rep := &r.as.KDCRepFields
	key, err := src.keyFor(rep.EncPart.EType, rep.PAData)
	if err != nil {
		return nil, badReply("AS-REQ", "it is encrypted with "+enctypeNames([]int32{rep.EncPart.EType}))
	}
	t, err := x.e.ticketFrom(rep, x.req.ReqBody, src.client, src.etypes, key, keyusage.AS_REP_ENCPART)
	if errors.Is(err, errUndecipherable) && attempt {
		// The KDC has accepted the key: somebody has changed the answer.
		return nil, &api.Error{Code: api.KDCError, Detail: "the KDC's answer for " + src.client.String() + " does not open with " + src.what() + ", which it has just accepted",
			Remedy: "look for what changes messages on the way to the KDC", Err: errDelivered}
	}
	if errors.Is(err, errUndecipherable) {
		// Without pre-authentication this is where a wrong key shows.
		return nil, &api.Error{Code: api.BadCredentials, Err: err,
			Detail: "the KDC's answer for " + src.client.String() + " does not open with " + src.what(), Remedy: src.remedy()}
	}
	if err != nil {
		return nil, err
	}
	if !t.server.equal(ticketGranting(src.client.Realm)) {
		return nil, badReply("AS-REQ", "the ticket is for "+t.server.String())
	}
	t.offset = clockOffset(t.auth, x.e.now())
	switch off := t.offset.Abs() > maxSkew; {
	case off && !src.config.KDCTimeSync():
		return nil, skewed("the KDC", t.offset)
	case off:
		x.e.log.Warn("this machine's clock is not the KDC's; the agent makes allowance", "realm", src.client.Realm, "offset", t.offset)
	}
	return t, nil
}

// encryptedTimestamp is PA-ENC-TIMESTAMP (RFC 4120, 5.2.7.2).
func (x *asExchange) encryptedTimestamp(key types.EncryptionKey) (types.PAData, error) {
	now := x.e.now().Add(x.offset).UTC()
	stamp, err := asn1.Marshal(types.PAEncTSEnc{PATimestamp: now, PAUSec: now.Nanosecond() / 1000})
	if err != nil {
		return types.PAData{}, fmt.Errorf("encode PA-ENC-TS-ENC: %w", err)
	}
	encrypted, err := crypto.GetEncryptedData(stamp, key, keyusage.AS_REQ_PA_ENC_TIMESTAMP, noKVNO)
	if err != nil {
		return types.PAData{}, fmt.Errorf("encrypt the timestamp: %w", err)
	}
	value, err := encrypted.Marshal()
	if err != nil {
		return types.PAData{}, fmt.Errorf("encode PA-ENC-TIMESTAMP: %w", err)
	}
	return types.PAData{PADataType: patype.PA_ENC_TIMESTAMP, PADataValue: value}, nil
}

// noKVNO leaves the key's version out: a keytab's number may differ from the
// KDC's for the same key.
const noKVNO = 0

// preauthentication chooses, by the KDC's METHOD-DATA, the first key that it
// offers and the source has. echo is to be sent back.
func (x *asExchange) preauthentication(methodData []byte) (key types.EncryptionKey, echo types.PADataSequence, err error) {
	var offered types.PADataSequence
	if err := decode(methodData, offered.Unmarshal); err != nil {
		return key, nil, badReply("AS-REQ", "its pre-authentication data is malformed")
	}
	infos, err := etypeInfos(offered)
	if err != nil {
		return key, nil, err
	}
	if !offered.Contains(patype.PA_ENC_TIMESTAMP) {
		return key, nil, &api.Error{Code: api.KDCError,
			Detail: "the KDC asks of " + x.src.client.String() + " another kind of pre-authentication than the encrypted timestamp",
			Remedy: "have the realm's administrator allow the encrypted timestamp for it"}
	}
	for _, pa := range offered {
		if pa.PADataType == patype.PA_FX_COOKIE { // to be sent back as it is: RFC 6113, 5.2
			echo = append(echo, pa)
		}
	}
	var names []int32
	for _, info := range infos {
		names = append(names, info.EType)
		key, err := x.src.key(info.EType, info.Salt, info.S2KParams)
		if err == nil {
			return key, echo, nil
		}
		if !errors.Is(err, errNoSuchKey) {
			return key, nil, badReply("AS-REQ", err.Error())
		}
	}
	return key, nil, &api.Error{Code: api.EtypeUnsupported,
		Detail: fmt.Sprintf("the KDC offers %s for %s, the agent asks for %s", enctypeNames(names), x.src.client, enctypeNames(x.src.etypes)),
		Remedy: "make a new keytab with one of the KDC's enctypes, or mend permitted_enctypes in krb5.conf"}
}

// etypeInfos returns what PA-ETYPE-INFO2 says (RFC 4120, 5.2.7.5).
func etypeInfos(pas types.PADataSequence) (types.ETypeInfo2, error) {
	var infos types.ETypeInfo2
	for _, pa := range pas {
		if pa.PADataType == patype.PA_ETYPE_INFO2 {
			if err := decode(pa.PADataValue, infos.Unmarshal); err != nil {
				return nil, badReply("AS-REQ", "its pre-authentication data is malformed")
			}
			break
		}
	}
	return infos, nil
}

// keyFor returns the long-term key that an AS-REP is encrypted with. The reply
// says itself how a password's key is made.
func (s source) keyFor(etype int32, pas types.PADataSequence) (types.EncryptionKey, error) {
	infos, err := etypeInfos(pas)
	if err != nil {
		return types.EncryptionKey{}, err
	}
	for _, info := range infos {
		if info.EType == etype {
			return s.key(etype, info.Salt, info.S2KParams)
		}
	}
	return s.key(etype, "", nil)
}

// body is a KDC-REQ-BODY: no addresses, names as they are, and the options that
// krb5.conf has for the client's realm. offset is that of the KDC's clock.
func (e *Engine) body(src source, server Principal, nameType int32, etypes []int32, offset time.Duration) messages.KDCReqBody {
	now, config := e.now().Add(offset).UTC(), src.config.ForRealm(src.client.Realm)
	b := messages.KDCReqBody{
		KDCOptions: types.NewKrbFlags(),
		Realm:      server.Realm,
		SName:      server.name(nameType),
		Till:       now.Add(config.TicketLifetime()),
		Nonce:      nonce(),
		EType:      etypes,
	}
	if config.Forwardable() {
		types.SetFlag(&b.KDCOptions, flags.Forwardable)
	}
	if config.Proxiable() {
		types.SetFlag(&b.KDCOptions, flags.Proxiable)
	}
	if life := config.RenewLifetime(); life > 0 {
		types.SetFlag(&b.KDCOptions, flags.Renewable)
		b.RTime = now.Add(life)
	}
	return b
}

// morePreauthRequired is KDC_ERR_MORE_PREAUTH_DATA_REQUIRED (RFC 6113, 5.2).
const morePreauthRequired = 91

// asRefused says what a KRB-ERROR means in an AS exchange.
// attempt says that the request carried pre-authentication.
func (e *Engine) asRefused(k *messages.KRBError, src source, attempt bool) error {
	client := src.client
	refused := func(code api.Code, what, remedy string) error {
		return &api.Error{Code: code, Detail: what + ": " + describe(k), Remedy: remedy, Err: refusal(k.ErrorCode)}
	}
	switch k.ErrorCode {
	case errorcode.KDC_ERR_PREAUTH_FAILED, errorcode.KRB_AP_ERR_BAD_INTEGRITY:
		if attempt { // else it is no KDC that says so
			return refused(api.BadCredentials, "the KDC refuses "+src.what(), src.remedy())
		}
	case errorcode.KDC_ERR_PREAUTH_REQUIRED, morePreauthRequired:
		if attempt { // what it got did not do
			return refused(api.BadCredentials, "the KDC is not content with "+src.what(), src.remedy())
		}
	case errorcode.KDC_ERR_C_PRINCIPAL_UNKNOWN:
		return refused(api.PrincipalUnknown, "the KDC does not know "+client.String(), "correct the principal, or ask the realm's administrator")
	case errorcode.KDC_ERR_CLIENT_REVOKED:
		return refused(api.PrincipalDisabled, client.String()+" is disabled or locked", "ask the realm's administrator")
	case errorcode.KDC_ERR_NAME_EXP:
		return refused(api.PrincipalExpired, client.String()+" has expired", "ask the realm's administrator")
	case errorcode.KDC_ERR_KEY_EXPIRED:
		return refused(api.PasswordExpired, "the password of "+client.String()+" has expired", "change it, and make a new keytab if there is one")
	case errorcode.KDC_ERR_ETYPE_NOSUPP:
		return refused(api.EtypeUnsupported, "the KDC takes none of the enctypes for "+client.String()+" ("+enctypeNames(src.etypes)+")",
			"make a new keytab with one of the KDC's enctypes, or mend permitted_enctypes in krb5.conf")
	case errorcode.KRB_AP_ERR_SKEW:
		return skewed("the KDC", k.STime.Sub(e.now()))
	}
	return refused(api.KDCError, "the KDC refuses a ticket for "+client.String(), "ask the realm's administrator")
}
