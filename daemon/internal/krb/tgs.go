package krb

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jcmturner/gokrb5/v8/crypto"
	"github.com/jcmturner/gokrb5/v8/iana"
	"github.com/jcmturner/gokrb5/v8/iana/asnAppTag"
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

// maxRealms is how many realms a ticket may lead through: MIT's limit of
// referrals.
const maxRealms = 10

// errTGTRefused marks a refusal that new TGTs may cure.
var errTGTRefused = errors.New("the KDC refuses the TGT")

// obtain gets a service ticket, from the TGT of the client's realm on along
// trusts and referrals. Without a realm the service is looked for in the
// client's first. TGTs that a KDC refuses, because a realm's key changed for
// example, are replaced once.
func (e *Engine) obtain(ctx context.Context, src source, server Principal) (*ticket, error) {
	w := &walk{e: e, src: src}
	t, err := w.to(ctx, server)
	if errors.Is(err, errTGTRefused) && len(w.used) > 0 && e.again(src.tgtKey(), w.used[0]) {
		e.log.Warn("a KDC refuses a TGT, logging in again", "principal", src.client.String(), "error", err)
		w = &walk{e: e, src: src, unwanted: w.used}
		t, err = w.to(ctx, server)
	}
	return t, err
}

// refusedTGT is one that was replaced because a KDC refused it.
type refusedTGT struct {
	tgt *ticket
	at  time.Time
}

// again reports whether a TGT that was refused is to be replaced. If that was
// done a moment ago, another one would be refused as well.
func (e *Engine) again(key ticketKey, tgt *ticket) bool {
	now := e.now()
	e.mu.Lock()
	defer e.mu.Unlock()
	last, ok := e.refused[key]
	if ok && last.tgt != tgt && now.Sub(last.at) < earlyPause {
		return false
	}
	if last.tgt != tgt {
		e.refused[key] = refusedTGT{tgt, now}
	}
	return true
}

// walk leads from the client's realm to a service's.
type walk struct {
	e        *Engine
	src      source
	used     []*ticket // TGTs on the way
	unwanted []*ticket // TGTs not to be used
}

// to returns a ticket for a service.
func (w *walk) to(ctx context.Context, server Principal) (*ticket, error) {
	tgt, err := w.e.tgt(ctx, w.src, w.unwanted...)
	if err != nil {
		return nil, err
	}
	w.used = append(w.used, tgt)
	if server.Realm != "" {
		if tgt, err = w.cross(ctx, tgt, server.Realm); err != nil {
			return nil, err
		}
		return w.refer(ctx, tgt, server)
	}
	t, err := w.refer(ctx, tgt, server)
	if api.CodeOf(err) != api.SPNUnknown {
		return t, err
	}
	// As MIT's library does at last: the realm may be named like the domain.
	_, domain, _ := strings.Cut(server.Components[1], ".")
	realm := strings.ToUpper(strings.TrimSuffix(domain, "."))
	if realm == "" || realm == w.src.client.Realm || w.visited(realm) {
		return nil, err
	}
	if tgt, cerr := w.cross(ctx, tgt, realm); cerr == nil {
		return w.refer(ctx, tgt, server)
	}
	return nil, err
}

func (w *walk) visited(realm string) bool {
	return slices.ContainsFunc(w.used, func(t *ticket) bool { return t.grants() == realm })
}

// refer asks the TGS of a TGT's realm for a service, and follows its referrals
// (RFC 6806, 8).
func (w *walk) refer(ctx context.Context, tgt *ticket, server Principal) (*ticket, error) {
	for {
		server.Realm = tgt.grants()
		t, err := w.e.tgsExchange(ctx, w.src, tgt, server)
		if err != nil || !t.isTGT() {
			return t, err
		}
		if tgt, err = w.step(ctx, t, server); err != nil {
			return nil, err
		}
	}
}

// cross returns a TGT for a realm, along the trusts between it and the one that
// a TGT is for (RFC 4120, 1.2).
func (w *walk) cross(ctx context.Context, tgt *ticket, realm string) (*ticket, error) {
	var unknown error
	for tgt.grants() != realm {
		// The farthest first: a KDC may know a way of its own.
		var next *ticket
		for _, to := range w.ahead(tgt.grants(), realm) {
			t, err := w.crossed(ctx, tgt, to)
			if err == nil {
				next = t
				break
			}
			if api.CodeOf(err) != api.SPNUnknown {
				return nil, err
			}
			unknown = err
		}
		if next == nil {
			e := *api.AsError(unknown)
			e.Detail = fmt.Sprintf("there is no way for %s to the realm %s: %s", w.src.client, realm, e.Detail)
			e.Remedy = "have the realms trust each other, or name the way in [capaths] of krb5.conf"
			return nil, &e
		}
		var err error
		if tgt, err = w.step(ctx, next, ticketGrantingAt(realm, tgt.grants())); err != nil {
			return nil, err
		}
	}
	return tgt, nil
}

// ahead lists the realms on the way that may be asked for next, the farthest
// first: from [capaths], else only the end.
func (w *walk) ahead(from, to string) []string {
	way := w.src.config.CAPath(w.src.client.Realm, to)
	if i := slices.Index(way, from); i >= 0 {
		way = way[i+1:]
	} else if from != w.src.client.Realm {
		way = nil
	}
	realms := []string{to}
	for _, r := range slices.Backward(way) {
		if r != to && r != from {
			realms = append(realms, r)
		}
	}
	return realms
}

// crossed returns a cross-realm TGT, from memory if it is at hand.
func (w *walk) crossed(ctx context.Context, tgt *ticket, to string) (*ticket, error) {
	server := ticketGrantingAt(to, tgt.grants())
	key := ticketKey{w.src.client.String(), w.src.fingerprint(), server.String()}
	return w.e.ticket(ctx, w.src.config, key, w.unwanted, serviceTime, func(ctx context.Context) (*ticket, error) {
		return w.e.tgsExchange(ctx, w.src, tgt, server)
	})
}

// step goes on with a TGT that a KDC has answered with.
func (w *walk) step(ctx context.Context, tgt *ticket, asked Principal) (*ticket, error) {
	lost := func(what string) error {
		return &api.Error{Code: api.SPNUnknown, Detail: fmt.Sprintf("the KDCs refer %s to %s, %s", asked, tgt.grants(), what),
			Remedy: "ask the administrators of the realms; [domain_realm] in krb5.conf may name the service's realm"}
	}
	switch {
	case w.visited(tgt.grants()):
		return nil, lost("where it was asked for already")
	case len(w.used) == maxRealms:
		return nil, lost("and so on without end")
	}
	if _, err := w.e.kdcsOf(w.src.config, tgt.grants()); err != nil {
		e := *api.AsError(err)
		e.Detail = fmt.Sprintf("the KDC of %s refers %s to %s: %s", tgt.server.Realm, asked, tgt.grants(), e.Detail)
		return nil, &e
	}
	w.used = append(w.used, tgt)
	if key := (ticketKey{w.src.client.String(), w.src.fingerprint(), tgt.server.String()}); !w.e.holds(key) {
		w.e.keep(ctx, key, tgt) // also when it came as a referral
	}
	return tgt, nil
}

// holds reports whether a usable ticket of a key is at hand.
func (e *Engine) holds(key ticketKey) bool {
	t := e.cached(key)
	return t != nil && t.usable(e.now())
}

// grants returns the realm whose services a TGT is good for.
func (t *ticket) grants() string { return t.server.Components[1] }

// tgsExchange is the TGS exchange (RFC 4120, 3.3): a ticket for a service from a
// TGT of its realm. The KDC may answer with a TGT of another realm instead. A KDC
// whose clock differs from what is known of it is asked twice.
func (e *Engine) tgsExchange(ctx context.Context, src source, tgt *ticket, server Principal) (*ticket, error) {
	body := e.body(src, server, nametype.KRB_NT_SRV_HST, etypes(src.config, "tgs", src.rc4), tgt.offset)
	if len(server.Components) == 2 && server.Components[0] == "krbtgt" {
		body.SName.NameType = nametype.KRB_NT_SRV_INST
	}
	types.SetFlag(&body.KDCOptions, flags.Canonicalize)
	t, r, err := e.tgsAsk(ctx, src, tgt, body)
	if err == nil && r != nil && r.ErrorCode == errorcode.KRB_AP_ERR_SKEW && src.config.KDCTimeSync() && r.STime.Unix() > 0 {
		// The time is not proven. A wrong one makes the next authenticator useless
		// to everybody, and this exchange fail.
		known := *tgt
		known.offset = clockOffset(r.STime, e.now())
		e.log.Warn("a KDC's clock has changed; the agent makes allowance", "realm", tgt.grants(), "offset", known.offset)
		body.Nonce = nonce()
		if t, r, err = e.tgsAsk(ctx, src, &known, body); t != nil {
			e.replace(tgt, &known)
		}
	}
	if err != nil {
		return nil, err
	}
	if r != nil {
		return nil, e.tgsRefused(r, server)
	}
	// A KDC that canonicalizes may answer with a service's own name (RFC 6806, 6),
	// but not with a TGT of its own realm, which would lead nowhere.
	if t.isTGT() && t.grants() == tgt.grants() {
		return nil, badReply("TGS-REQ", "the ticket is for "+t.server.String())
	}
	return t, nil
}

// renewed renews a TGT (RFC 4120, 3.3.3.1).
func (e *Engine) renewed(ctx context.Context, src source, tgt *ticket) (*ticket, error) {
	body := e.body(src, tgt.server, nametype.KRB_NT_SRV_INST, etypes(src.config, "tgs", src.rc4), tgt.offset)
	types.SetFlag(&body.KDCOptions, flags.Renew)
	body.RTime = time.Time{} // as the ticket has it
	t, r, err := e.tgsAsk(ctx, src, tgt, body)
	switch {
	case err != nil:
		return nil, err
	case r != nil:
		return nil, e.tgsRefused(r, tgt.server)
	case !t.server.equal(tgt.server):
		return nil, badReply("TGS-REQ", "the ticket is for "+t.server.String())
	}
	return t, nil
}

// tgsAsk sends a TGS-REQ and returns the KDC's ticket, or its KRB-ERROR.
func (e *Engine) tgsAsk(ctx context.Context, src source, tgt *ticket, body messages.KDCReqBody) (*ticket, *messages.KRBError, error) {
	kdcs, err := e.kdcsOf(src.config, tgt.grants())
	if err != nil {
		return nil, nil, err
	}
	encoded := encodeBody(body)
	et, err := crypto.GetEtype(tgt.key.KeyType)
	if err != nil {
		return nil, nil, fmt.Errorf("session key of the TGT: %w", err)
	}
	sum, err := et.GetChecksumHash(tgt.key.KeyValue, encoded, keyusage.TGS_REQ_PA_TGS_REQ_AP_REQ_AUTHENTICATOR_CHKSUM)
	if err != nil {
		return nil, nil, fmt.Errorf("checksum of KDC-REQ-BODY: %w", err)
	}
	_, ap, err := e.apReq(tgt, types.Checksum{CksumType: et.GetHashID(), Checksum: sum}, false)
	if err != nil {
		return nil, nil, err
	}
	message := der(0x60|asnAppTag.TGSREQ, der(0x30, // with the very bytes that the checksum is of
		[]byte{0xa1, 3, 2, 1, iana.PVNO},
		[]byte{0xa2, 3, 2, 1, msgtype.KRB_TGS_REQ},
		der(0xa3, der(0x30, der(0x30, []byte{0xa1, 3, 2, 1, byte(patype.PA_TGS_REQ)}, der(0xa2, der(0x04, ap))))),
		der(0xa4, encoded)))
	r, err := kdcs.exchange(ctx, message, false)
	switch {
	case err != nil:
		return nil, nil, err
	case r.refusal != nil:
		return nil, r.refusal, nil
	case r.tgs == nil:
		return nil, nil, badReply("TGS-REQ", "an AS-REP came")
	}
	t, err := e.ticketFrom(&r.tgs.KDCRepFields, body, tgt.client, body.EType, tgt.key, keyusage.TGS_REP_ENCPART_SESSION_KEY)
	if errors.Is(err, errUndecipherable) {
		err = badReply("TGS-REQ", err.Error())
	}
	if err != nil {
		return nil, nil, err
	}
	if t.server.Realm != tgt.grants() {
		return nil, nil, badReply("TGS-REQ", "the ticket is for "+t.server.String())
	}
	t.offset = tgt.offset
	return t, nil, nil
}

// encodeBody encodes a KDC-REQ-BODY (RFC 4120, 5.4.1) without the fields that a
// TGS-REQ of ours never has.
func encodeBody(b messages.KDCReqBody) []byte {
	var name, etypes []byte
	for _, component := range b.SName.NameString {
		name = append(name, der(0x1b, []byte(component))...)
	}
	for _, id := range b.EType {
		etypes = append(etypes, derInt(int64(id))...)
	}
	at := func(tag byte, t time.Time) []byte {
		if t.IsZero() {
			return nil
		}
		return der(tag, der(0x18, t.UTC().AppendFormat(nil, "20060102150405Z")))
	}
	return der(0x30,
		der(0xa0, der(3, []byte{0}, b.KDCOptions.Bytes)),
		der(0xa2, der(0x1b, []byte(b.Realm))),
		der(0xa3, der(0x30, der(0xa0, derInt(int64(b.SName.NameType))), der(0xa1, der(0x30, name)))),
		at(0xa5, b.Till),
		at(0xa6, b.RTime),
		der(0xa7, derInt(int64(b.Nonce))),
		der(0xa8, der(0x30, etypes)))
}

// tgsRefused says what a KRB-ERROR means in a TGS exchange.
func (e *Engine) tgsRefused(k *messages.KRBError, server Principal) error {
	switch k.ErrorCode {
	case errorcode.KDC_ERR_S_PRINCIPAL_UNKNOWN:
		return &api.Error{Code: api.SPNUnknown,
			Detail: "the KDC does not know the service " + server.String() + ": " + describe(k),
			Remedy: "use the host name that the service is registered under, name it with spn, or have it registered", Err: refusal(k.ErrorCode)}
	case errorcode.KRB_AP_ERR_SKEW:
		return skewed("the KDC", k.STime.Sub(e.now()))
	case errorcode.KDC_ERR_ETYPE_NOSUPP:
		return &api.Error{Code: api.EtypeUnsupported,
			Detail: "the KDC has no key of " + server.String() + " for any enctype that was asked for: " + describe(k),
			Remedy: "have the service get AES keys; if that cannot be, rc4 = true lets the agent use arcfour-hmac, which is broken", Err: refusal(k.ErrorCode)}
	}
	err := &api.Error{Code: api.KDCError, Detail: "the KDC refuses a ticket for " + server.String() + ": " + describe(k),
		Remedy: "ask the realm's administrator", Err: refusal(k.ErrorCode)}
	switch k.ErrorCode {
	case errorcode.KDC_ERR_SERVICE_EXP, errorcode.KDC_ERR_PRINCIPAL_NOT_UNIQUE, errorcode.KDC_ERR_NULL_KEY, errorcode.KDC_ERR_CANNOT_POSTDATE,
		errorcode.KDC_ERR_NEVER_VALID, errorcode.KDC_ERR_POLICY, errorcode.KDC_ERR_BADOPTION, errorcode.KDC_ERR_CLIENT_REVOKED,
		errorcode.KDC_ERR_SERVICE_REVOKED, errorcode.KDC_ERR_SERVICE_NOTYET, errorcode.KDC_ERR_MUST_USE_USER2USER,
		errorcode.KDC_ERR_PATH_NOT_ACCEPTED, errorcode.KDC_ERR_SVC_UNAVAILABLE: // about the service, or the account
	default:
		// MIT says 60 of a TGT that it cannot open, others say what is amiss.
		err.Err = errTGTRefused
	}
	return err
}
