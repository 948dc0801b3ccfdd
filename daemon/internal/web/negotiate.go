package web

import (
	"cmp"
	"context"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/url"

	"github.com/sessionctl/sessionctl/api"
)

// Negotiator starts security contexts for the Negotiate scheme (RFC 4559).
type Negotiator interface {
	// Initiate makes a context for a service such as "HTTP/host", with a new
	// token every time.
	Initiate(ctx context.Context, spn string, o InitiateOptions) (Negotiation, error)
}

// InitiateOptions say what a context is to be like.
type InitiateOptions struct {
	// Fresh asks for a new service ticket first.
	Fresh bool
	// Bindings is the application data of channel bindings (RFC 5056), nil
	// without any.
	Bindings []byte
	// Mutual asks the service to prove itself.
	Mutual bool
	// Exact says that no other name of the host is tried, which the DNS would
	// have to tell: the SPN is as a person configured it, or the service has to
	// prove that it is this one.
	Exact bool
}

// Negotiation is one security context, good for one request.
type Negotiation interface {
	// Token returns the initial SPNEGO token.
	Token() []byte
	// Verify checks the server's answer. It reports whether the server proved
	// itself. The error says why the server refused, or that its proof is wrong.
	Verify(token []byte) (mutual bool, err error)
}

// MutualPolicy says whether a service has to prove itself (RFC 4120, section
// 3.2.4).
type MutualPolicy string

// The policies, as a configuration writes them. "" is MutualIfOffered.
const (
	// MutualOff asks for no proof and looks at none.
	MutualOff MutualPolicy = "off"
	// MutualIfOffered asks for a proof and checks it if it comes.
	MutualIfOffered MutualPolicy = "if-offered"
	// MutualRequired takes no answer to a token without a proof.
	MutualRequired MutualPolicy = "required"
)

// Valid reports whether there is such a policy.
func (p MutualPolicy) Valid() bool {
	switch p {
	case "", MutualOff, MutualIfOffered, MutualRequired:
		return true
	}
	return false
}

const negotiateScheme = "negotiate"

// maxCommonField is how long a header field may be before servers refuse it:
// Apache takes 8,190 bytes, Tomcat 8 KiB for all fields together.
const maxCommonField = 6 << 10

// SPN returns the service principal name of a URL's host: as configured, in
// lower case, no port, never from the DNS (RFC 4559, section 4.1).
func SPN(u *url.URL) string { return "HTTP/" + canonicalHost(u.Hostname()) }

// spn returns the service principal name for a URL, and whether a person
// configured it. Options.SPN is of the site's own host and of no other: a
// login host is another service.
func (x *Exchange) spn(u *url.URL) (spn string, exact bool) {
	if x.o.SPN != "" && OriginOf(u).Host == OriginOf(x.o.Base).Host {
		return x.o.SPN, true
	}
	return SPN(u), false
}

// field returns a token as the value of an Authorization field.
func field(n Negotiation) string {
	return "Negotiate " + base64.StdEncoding.EncodeToString(n.Token())
}

// negotiate makes a request and answers a Negotiate challenge: at most two
// tokens for one URL in the life of the exchange, the second with a new
// service ticket, because a service whose key changed refuses the old one. Over
// TLS each is made when the connection that is to carry it stands, and bound to
// the certificate which that one shows: somebody with another certificate of the
// same name gets no token that he could pass on.
func (x *Exchange) negotiate(ctx context.Context, u *url.URL) (*Response, error) {
	r, err := x.send(ctx, Request{URL: u})
	if err != nil {
		return nil, err
	}
	spn, exact := x.spn(u)
	r.spn = spn
	key := OriginOf(u).String() + requestPath(u)
	for fresh := false; x.challenged(r) && x.tokens[key] < maxTokens; fresh = true {
		x.tokens[key]++
		var n Negotiation
		var bindings []byte
		token := func(c *x509.Certificate) (_ string, err error) {
			if n != nil {
				return "", &api.Error{Code: api.NetworkError, Detail: OriginOf(u).String() + " broke the connection off that carried the token", Remedy: checkSite}
			}
			if bindings, err = x.o.Bindings.bindings(u, c); err != nil {
				return "", err
			}
			n, err = x.initiate(ctx, spn, exact, InitiateOptions{Fresh: fresh, Bindings: bindings})
			if err != nil {
				return "", err
			}
			return field(n), nil
		}
		request := Request{URL: u, token: token}
		if u.Scheme != secureScheme {
			value, err := token(nil)
			if err != nil {
				return nil, err
			}
			request = Request{URL: u, Header: http.Header{"Authorization": {value}}}
		}
		next, err := x.ask(ctx, request)
		if err != nil {
			return nil, err
		}
		next.spn = spn
		if err := tooLarge(Shown(u), next.Status, field(n)); err != nil {
			return nil, err
		}
		if err := x.judge(next, n, bindings != nil); err != nil {
			return nil, err
		}
		x.keep(next)
		next.SetCookies += r.SetCookies
		r = next
	}
	return r, nil
}

// initiate makes a context for a service; exact says that a person configured
// the SPN. A name from the DNS proves nothing about the host that was asked for,
// so that none is tried where the service has to prove itself.
func (x *Exchange) initiate(ctx context.Context, spn string, exact bool, o InitiateOptions) (Negotiation, error) {
	required := x.o.Mutual == MutualRequired
	o.Mutual, o.Exact = x.o.Mutual != MutualOff, exact || required
	n, err := x.o.Negotiate.Initiate(ctx, spn, o)
	if required && !exact && api.CodeOf(err) == api.SPNUnknown {
		e := *api.AsError(err)
		e.Remedy = `use the host name that the service is registered under, or name it with spn: with mutual_auth = "required" no other name of the host is tried`
		return nil, &e
	}
	if err != nil {
		return nil, err
	}
	return n, nil
}

func (x *Exchange) challenged(r *Response) bool {
	return x.o.Negotiate != nil && r.Status == http.StatusUnauthorized && FindChallenge(r.Challenges, negotiateScheme) != nil
}

// judge reads the server's verdict on a token. A server that answers with a
// proof must have the right one, whatever the status.
func (x *Exchange) judge(r *Response, n Negotiation, bound bool) error {
	mutual, verdict := x.o.Mutual.proof(r.Challenges, n)
	if r.Status == http.StatusUnauthorized {
		r.refusal = api.AsError(verdict)
		if verdict == nil {
			r.refusal = &api.Error{Code: api.NegotiateRejected, Detail: Shown(r.URL) + " refused the ticket for " + r.spn + " without saying why", Remedy: askKeytab(r.spn)}
		}
		if bound && r.refusal.Code == api.NegotiateRejected {
			e := *r.refusal
			e.Remedy += `; if something in front of the site ends TLS, set channel_bindings = "off"`
			r.refusal = &e
		} else if x.o.Bindings == BindingsOff && r.certificate != nil && r.refusal.Code == api.NegotiateRejected {
			e := *r.refusal
			e.Remedy += `; if the site demands channel bindings (IIS: Extended Protection), set channel_bindings = "auto"`
			r.refusal = &e
		}
		return nil
	}
	if verdict != nil {
		return verdict
	}
	if x.o.Mutual == MutualRequired && !mutual {
		if StatusError(r) == nil {
			return unproven(Shown(r.URL), r.spn)
		}
		// What stands in front of a service that is down cannot prove anything,
		// and sets no cookie.
		r.Header.Del("Set-Cookie")
		r.SetCookies = 0
		return nil
	}
	r.Negotiated, r.Mutual = true, mutual
	return nil
}

// proof returns what challenges say about a token: whether the service proved
// itself, or why it refused.
func (p MutualPolicy) proof(cs []Challenge, n Negotiation) (mutual bool, err error) {
	answer := ""
	for _, c := range cs {
		if c.Scheme == negotiateScheme && answer == "" {
			answer = c.Token
		}
	}
	if answer == "" {
		return false, nil
	}
	token, err := base64.StdEncoding.DecodeString(answer)
	if err != nil {
		err = &api.Error{Code: api.NegotiateRejected, Detail: "the server's Negotiate answer is not base64", Remedy: askNegotiate, Err: err}
	} else {
		mutual, err = n.Verify(token)
	}
	if p == MutualOff && api.CodeOf(err) == api.MutualAuthFailed {
		return false, nil
	}
	return mutual, err
}

// unproven is the failure of a service that gave no proof where one is
// required.
func unproven(who, spn string) error {
	return &api.Error{Code: api.MutualAuthFailed, Detail: who + " accepted the ticket for " + spn + " without proving that it is that service",
		Remedy: `check that the URL leads to the real service; if it never proves itself, set mutual_auth = "if-offered"`}
}

// tooLarge returns why a request failed if it was for the length of its token.
func tooLarge(who string, status int, token string) error {
	if status != http.StatusBadRequest && status != http.StatusRequestHeaderFieldsTooLarge || len(token) <= maxCommonField {
		return nil
	}
	return &api.Error{Code: api.UnexpectedStatus, Detail: fmt.Sprintf("%s answers %d to a token of %d bytes, more than many servers take", who, status, len(token)),
		Remedy: "set no_pac = true, if nobody there needs the group memberships in the ticket, or have the limit on header fields raised"}
}

// askKeytab is what to do about a refusal without a reason.
func askKeytab(spn string) string {
	return "ask whether the service's keytab fits " + spn + " and whether this user may log in there"
}

// Refused returns why a chain ended with 401.
func (r *Response) Refused() error {
	if r.refusal != nil {
		return r.refusal
	}
	at := Shown(r.URL)
	if FindChallenge(r.Challenges, negotiateScheme) != nil {
		return &api.Error{Code: api.NegotiateRejected, Detail: at + " still asks for Negotiate after two tokens", Remedy: askKeytab(cmp.Or(r.spn, SPN(r.URL)))}
	}
	switch {
	case len(r.Challenges) == 0:
		return &api.Error{Code: api.NoChallenge, Detail: at + " answers 401 without a challenge",
			Remedy: "check login_url and user_agent: some gates ask only certain agents"}
	case len(r.Challenges) == 1 && r.Challenges[0].Scheme == "ntlm":
		return &api.Error{Code: api.NTLMOnly, Detail: at + " offers only NTLM", Remedy: askNegotiate}
	}
	return &api.Error{Code: api.ChallengeUnsupported, Detail: at + " offers only " + schemes(r.Challenges), Remedy: askNegotiate}
}
