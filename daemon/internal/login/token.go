package login

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/secret"
	"github.com/sessionctl/sessionctl/daemon/internal/web"
)

var _ = register("token", func() Driver { return &token{Scheme: "Bearer"} })

// token is a personal access token, or any other that goes with each request in an
// Authorization field (RFC 6750, section 2.1). It stands for a session: there are no
// cookies beside it, and nothing that a logout could end. The token is the password
// of the site's credential.
type token struct {
	// Product is one of tokenProducts, which then has its own way to prove the token.
	// "": the options of the proof say how.
	Product string `toml:"product"`
	// Scheme stands before the token.
	Scheme string `toml:"scheme" for:"login"`
	proof

	found Findings
}

// tokenProducts are the kinds whose products have such tokens (Atlassian, "Using
// personal access tokens"; for Bitbucket "HTTP access tokens").
var tokenProducts = []string{"jira", "confluence", "bitbucket", "bamboo"}

// by returns the driver of the product, nil if none is named.
func (t *token) by() Driver {
	if !slices.Contains(tokenProducts, t.Product) {
		return nil
	}
	switch d := New(t.Product).(type) {
	case *jira:
		d.SessionURL = t.whoami()
		return d.As(t.found)
	case *application:
		d.ProbeURL = t.whoami()
		if found := d.As(t.found); t.Product != "bitbucket" {
			return found
		} else {
			return &bitbucketToken{found.(*application)}
		}
	default:
		panic("login: " + t.Product + " has no tokens")
	}
}

// whoami returns where the site names the user.
func (t *token) whoami() string {
	if t.ProbeURL != "" {
		return t.ProbeURL
	}
	if t.Product == "bitbucket" {
		return "rest/api/latest/application-properties"
	}
	switch d := New(t.Product).(type) {
	case *jira:
		// Of the session resource nobody says whether it takes a token; this one does
		// (measured by BFoerschner/knobas).
		return "rest/api/2/myself"
	case *application:
		return d.ProbeURL
	}
	return ""
}

// bitbucketToken proves a token at Bitbucket, which takes none outside /rest and /scm
// (Bitbucket documentation, "HTTP access tokens"). No resource in there names the
// user, but the head of each answer does (community.developer.atlassian.com, topic
// 24422).
type bitbucketToken struct{ *application }

// Probe implements Driver.
func (b *bitbucketToken) Probe(ctx context.Context, x *web.Exchange) (Identity, error) {
	u, err := x.URL(b.ProbeURL)
	if err != nil {
		return Identity{}, err
	}
	r, err := x.Send(ctx, b.request(x, http.MethodGet, u))
	if err != nil {
		return Identity{}, err
	}
	if err := b.dead(x, r); err != nil {
		return Identity{}, err
	}
	name := hear(r).user
	switch {
	case r.Status != http.StatusOK:
		return Identity{}, b.unexpected(r)
	case name == "":
		return Identity{}, expired(r, "answers 200 without naming a user")
	}
	if unescaped, err := url.PathUnescape(name); err == nil {
		name = unescaped
	}
	return Identity{Name: name}, nil
}

// Check implements Checker.
func (t *token) Check(o web.Options, identity string) error {
	switch {
	case t.Product != "" && t.by() == nil:
		return fmt.Errorf("product = %q is none that has tokens: %s; without it probe_url and identity_… say how the token is proven", t.Product, strings.Join(tokenProducts, ", "))
	case t.Product != "" && t.namesUser():
		return errors.New("identity_… is for tokens without a product, which knows how it names the user")
	case t.LoginURL != "":
		return errors.New("login_url is not for tokens, which need no login")
	case t.Scheme == "" || strings.Trim(t.Scheme, schemeText) != "":
		return errors.New("scheme is not one of an Authorization field, such as Bearer")
	}
	if err := permitted(o, "probe_url", t.ProbeURL); err != nil {
		return err
	}
	if u, err := web.Resolve(o.Base, t.ProbeURL); err == nil && web.OriginOf(u) != web.OriginOf(o.Base) {
		return errors.New("probe_url is on another host, which never gets the token")
	}
	if d, ok := t.by().(Checker); ok {
		return d.Check(o, identity)
	}
	return t.proof.Check(o, identity)
}

// schemeText is what names of schemes are made of (RFC 9110, section 5.6.2).
const schemeText = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789!#$%&'*+-.^_`|~"

// Takes implements Driver.
func (*token) Takes() []Means { return []Means{Secret} }

// Headers implements Companion.
func (t *token) Headers(r Asked) []Header {
	if d, ok := t.by().(Companion); ok {
		return d.Headers(r)
	}
	return nil
}

// Detect implements Detector: it finds out what the product is like.
func (t *token) Detect(ctx context.Context, x *web.Exchange) (Findings, error) {
	if d, ok := t.by().(Detector); ok {
		return d.Detect(ctx, x)
	}
	return Findings{}, nil
}

// As implements Detector.
func (t *token) As(f Findings) Driver {
	d := *t
	d.found = f
	return &d
}

// Probe implements Driver.
func (t *token) Probe(ctx context.Context, x *web.Exchange) (id Identity, err error) {
	if d := t.by(); d != nil {
		id, err = d.Probe(ctx, x)
	} else {
		id, err = t.proof.Probe(ctx, x)
	}
	if api.CodeOf(err) == api.Expired { // whose text is of cookies
		err = &api.Error{Code: api.Expired, Detail: web.Shown(base(x)) + " does not take the token", Err: err}
	}
	return id, err
}

// Login implements Driver. The token goes out only after the site has answered a
// stranger as one, so that it is not spent on an outage, and a page that anybody may
// read proves nothing.
func (t *token) Login(ctx context.Context, x *web.Exchange, p Password) error {
	stranger := x.Bare()
	defer stranger.Close()
	switch _, err := t.Probe(ctx, stranger); api.CodeOf(err) {
	case "":
		return &api.Error{Code: api.LoginOKButProbeFailed, Detail: "the proof at " + web.Shown(base(x)) + " succeeds without any token", Remedy: "point probe_url at a page that needs one"}
	case api.Expired, api.Forbidden:
	default:
		return err
	}
	value, err := p.Take(ctx)
	if err != nil {
		return err
	}
	if v := value.Reveal(); v == "" || strings.ContainsFunc(v, func(r rune) bool { return r <= ' ' || r > '~' }) {
		p.GiveBack()
		return &api.Error{Code: api.InvalidRequest, Detail: "the token of " + p.User() + " is not one: it has spaces in it, or characters other than ASCII",
			Remedy: "give the token alone, without " + t.Scheme}
	}
	x.Jar().Authorize(secret.New(t.Scheme + " " + value.Reveal()))
	_, err = t.Probe(ctx, x)
	switch api.CodeOf(err) {
	case "":
		p.Accepted()
	case api.RateLimited, api.Maintenance:
		p.GiveBack()
	case api.Expired:
		if gate := t.gate(ctx, stranger); gate != nil {
			p.GiveBack()
			return gate
		}
		return &api.Error{Code: api.BadCredentials, Detail: web.Shown(base(x)) + " refuses the token of " + p.User(), Err: err}
	}
	return err
}

// gate returns why a stranger gets no answer of the site itself: something in front
// leads elsewhere, and may not have looked at the token either.
func (t *token) gate(ctx context.Context, stranger *web.Exchange) error {
	u, err := stranger.URL(t.whoami())
	if err != nil {
		return err
	}
	r, err := stranger.Send(ctx, web.Request{URL: u})
	if err != nil {
		return err
	}
	_, err = stranger.Follows(r)
	return err
}
