package web

import (
	"context"
	"encoding/base64"
	"net/http"
	"net/url"

	"github.com/sessionctl/sessionctl/api"
)

// Negotiator starts security contexts for the Negotiate scheme (RFC 4559).
type Negotiator interface {
	// Initiate makes a context for a service such as "HTTP/host", with a new
	// token every time. Fresh asks for a new service ticket too.
	Initiate(ctx context.Context, spn string, fresh bool) (Negotiation, error)
}

// Negotiation is one security context, good for one request.
type Negotiation interface {
	// Token returns the initial SPNEGO token.
	Token() []byte
	// Verify checks the server's answer. It reports whether the server proved
	// itself. The error says why the server refused, or that its proof is wrong.
	Verify(token []byte) (mutual bool, err error)
}

const negotiateScheme = "negotiate"

// SPN returns the service principal name of a URL's host: as configured, in
// lower case, no port, never from the DNS (RFC 4559, section 4.1).
func SPN(u *url.URL) string { return "HTTP/" + canonicalHost(u.Hostname()) }

// negotiate makes a request and answers a Negotiate challenge: at most two
// tokens for one URL in the life of the exchange, the second with a new
// service ticket, because a service whose key changed refuses the old one.
func (x *Exchange) negotiate(ctx context.Context, u *url.URL) (*Response, error) {
	r, err := x.send(ctx, Request{URL: u})
	if err != nil {
		return nil, err
	}
	setCookies := r.SetCookies
	key := OriginOf(u).String() + requestPath(u)
	for fresh := false; x.challenged(r) && x.tokens[key] < maxTokens; fresh = true {
		x.tokens[key]++
		n, err := x.o.Negotiate.Initiate(ctx, SPN(u), fresh)
		if err != nil {
			return nil, err
		}
		r, err = x.send(ctx, Request{URL: u, Header: http.Header{"Authorization": {"Negotiate " + base64.StdEncoding.EncodeToString(n.Token())}}})
		if err != nil {
			return nil, err
		}
		setCookies += r.SetCookies
		r.SetCookies = setCookies
		if err := r.judge(n); err != nil {
			return nil, err
		}
	}
	return r, nil
}

func (x *Exchange) challenged(r *Response) bool {
	return x.o.Negotiate != nil && r.Status == http.StatusUnauthorized && FindChallenge(r.Challenges, negotiateScheme) != nil
}

// judge reads the server's verdict on a token. A server that answers with a
// proof must have the right one, whatever the status.
func (r *Response) judge(n Negotiation) error {
	var mutual bool
	var verdict error
	if c := FindChallenge(r.Challenges, negotiateScheme); c != nil && c.Token != "" {
		token, err := base64.StdEncoding.DecodeString(c.Token)
		if err != nil {
			verdict = &api.Error{Code: api.NegotiateRejected, Detail: "the server's Negotiate answer is not base64", Remedy: askNegotiate, Err: err}
		} else {
			mutual, verdict = n.Verify(token)
		}
	}
	if r.Status == http.StatusUnauthorized {
		if r.refusal = verdict; verdict == nil {
			r.refusal = &api.Error{Code: api.NegotiateRejected, Detail: Shown(r.URL) + " refused the ticket for " + SPN(r.URL) + " without saying why",
				Remedy: "ask whether the service's keytab fits " + SPN(r.URL) + " and whether this user may log in there"}
		}
		return nil
	}
	r.Negotiated, r.Mutual = true, mutual
	return verdict
}
