package login

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
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
	// Product is one of tokenProducts, which says by itself whose token it is.
	// "": the options of the proof say how.
	Product string `toml:"product"`
	// Scheme stands before the token.
	Scheme string `toml:"scheme" for:"login"`
	proof

	found Findings
}

// tokenProducts are the kinds whose products have such tokens (Atlassian, "Using
// personal access tokens"; for Bitbucket "HTTP access tokens"), each with a resource
// that says whose it is. Of Jira's session resource nobody says whether it takes a
// token; of "myself" it was measured (BFoerschner/knobas).
var tokenProducts = map[string]string{
	"jira":       "rest/api/2/myself",
	"confluence": "rest/api/user/current",
	"bitbucket":  "rest/api/latest/application-properties",
	"bamboo":     "rest/api/latest/currentUser",
}

// whoami returns where the site says whose token it is.
func (t *token) whoami() string { return cmp.Or(t.ProbeURL, tokenProducts[t.Product]) }

// by returns the driver of the product, nil if none is named.
func (t *token) by() Driver {
	if tokenProducts[t.Product] == "" {
		return nil
	}
	switch d := New(t.Product).(type) {
	case *jira:
		d.SessionURL = t.whoami()
		return d.As(t.found)
	case *application:
		d.ProbeURL = t.whoami()
		if t.Product == "bitbucket" {
			return &bitbucketToken{d.As(t.found).(*application)}
		}
		return d.As(t.found)
	default:
		panic("login: " + t.Product + " has no tokens")
	}
}

// bitbucketToken proves a token at Bitbucket, which takes none outside /rest and /scm
// (Bitbucket documentation, "HTTP access tokens"). No resource in there names the
// user, but the head of each answer does (community.developer.atlassian.com, topic
// 24422).
type bitbucketToken struct{ *application }

// judge reads the answer to the probe's request.
func (b *bitbucketToken) judge(ctx context.Context, x *web.Exchange, r *web.Response) (Identity, error) {
	if err := b.dead(x, r); err != nil {
		return Identity{}, err
	}
	h := hear(r)
	switch {
	case r.Status != http.StatusOK:
		return Identity{}, b.unexpected(r)
	case h.users:
		return Identity{}, contradiction(r)
	case !h.own:
		return Identity{}, b.page(ctx, x, r)
	case h.user == "":
		return Identity{}, expired(r, "answers 200 without naming a user")
	}
	if name, err := url.PathUnescape(h.user); err == nil {
		return Identity{Name: name}, nil
	}
	return Identity{Name: h.user}, nil
}

// answers returns nil if it is Bitbucket that answers a stranger so: everybody may
// read that resource.
func (b *bitbucketToken) answers(ctx context.Context, x *web.Exchange, r *web.Response) error {
	if r.Status == http.StatusOK && hear(r).own {
		return nil
	}
	return b.application.answers(ctx, x, r)
}

// Authorizes implements Authorizer.
func (t *token) Authorizes() string { return t.Scheme }

// Check implements Checker.
func (t *token) Check(o web.Options, identity string) error {
	switch {
	case t.Product != "" && t.by() == nil:
		return fmt.Errorf("product = %q is none that has tokens: %s; without it probe_url and identity_… say how the token is proven", t.Product, strings.Join(slices.Sorted(maps.Keys(tokenProducts)), ", "))
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
	if t.Product == "" && !t.namesUser() && identity != Unproven {
		return fmt.Errorf("nothing says how the token is proven: set product to one of %s; for another site set identity_json, identity_header or identity_regexp; if it never names the user, identity = %q",
			strings.Join(slices.Sorted(maps.Keys(tokenProducts)), ", "), Unproven)
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
	d, ok := t.by().(Detector)
	if !ok {
		return Findings{}, nil
	}
	f, err := d.Detect(ctx, x)
	f.Login, f.Gate = "", "" // which nobody uses here
	return f, wrongOption(err, "product")
}

// As implements Detector.
func (t *token) As(f Findings) Driver {
	d := *t
	d.found = f
	return &d
}

// prover is the driver of a product, as far as it proves a token.
type prover interface {
	get(ctx context.Context, x *web.Exchange, ref string) (*web.Response, error)
	judge(ctx context.Context, x *web.Exchange, r *web.Response) (Identity, error)
	answers(ctx context.Context, x *web.Exchange, r *web.Response) error
}

// prover returns the driver of the product, nil if none is named.
func (t *token) prover() prover {
	p, _ := t.by().(prover)
	return p
}

// Probe implements Driver.
func (t *token) Probe(ctx context.Context, x *web.Exchange) (Identity, error) {
	r, err := t.ask(ctx, x)
	if err != nil {
		return Identity{}, err
	}
	return t.judge(ctx, x, r)
}

// ask requests what says whose token it is.
func (t *token) ask(ctx context.Context, x *web.Exchange) (*web.Response, error) {
	if p := t.prover(); p != nil {
		return p.get(ctx, x, t.whoami())
	}
	u, err := x.URL(t.whoami())
	if err != nil {
		return nil, err
	}
	return x.Send(ctx, web.Request{URL: u})
}

// judge reads the answer to that.
func (t *token) judge(ctx context.Context, x *web.Exchange, r *web.Response) (id Identity, err error) {
	if p := t.prover(); p != nil {
		id, err = p.judge(ctx, x, r)
	} else {
		id, err = t.proof.judge(ctx, x, r)
	}
	if api.CodeOf(err) == api.Expired { // whose text is of cookies
		err = &api.Error{Code: api.Expired, Detail: web.Shown(base(x)) + " does not take the token", Err: err}
	}
	return id, err
}

// Login implements Driver. The token goes out only after the site itself has answered
// a stranger as one, so that it is not spent on an outage or a gate, and a page that
// anybody may read proves nothing.
func (t *token) Login(ctx context.Context, x *web.Exchange, p Password) error {
	stranger := x.Bare()
	defer stranger.Close()
	before, err := t.ask(ctx, stranger)
	if err != nil {
		return err
	}
	switch _, err := t.judge(ctx, stranger, before); api.CodeOf(err) {
	case "":
		return &api.Error{Code: api.LoginOKButProbeFailed, Detail: "the proof at " + web.Shown(base(x)) + " succeeds without any token", Remedy: "point probe_url at a page that needs one"}
	case api.Expired, api.Forbidden:
	default:
		return err
	}
	if p := t.prover(); p != nil {
		if err := p.answers(ctx, stranger, before); err != nil {
			return err
		}
	} else if _, err := stranger.Follows(before); err != nil {
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
	r, err := t.ask(ctx, x)
	if err != nil {
		return err
	}
	_, err = t.judge(ctx, stranger, r) // what that asks besides goes without the token
	switch api.CodeOf(err) {
	case "":
		p.Accepted()
	case api.RateLimited, api.Maintenance:
		p.GiveBack()
	case api.Expired:
		if other := t.elsewhere(ctx, stranger, before, r); other != nil {
			p.GiveBack()
			return other
		}
		return &api.Error{Code: api.BadCredentials, Detail: web.Shown(base(x)) + " refuses the token of " + p.User(),
			Remedy: "see there whether it has expired, or make a new one", Err: err}
	}
	return err
}

// elsewhere returns who answers a token so, if it is not the site: nobody has looked at
// the token then. Where no product is named, that is what answers everybody alike.
func (t *token) elsewhere(ctx context.Context, stranger *web.Exchange, before, r *web.Response) error {
	if p := t.prover(); p != nil {
		if h := hear(r); h.own || h.stranger() || h.wrong() || h.captcha() {
			return nil
		}
		return p.answers(ctx, stranger, r)
	}
	was, _ := stranger.Follows(before)
	to, err := stranger.Follows(r)
	switch {
	case err != nil:
		return err
	case to != nil && was != nil && web.Shown(to) == web.Shown(was):
		return &api.Error{Code: api.SSORedirect, Detail: r.Shown() + " leads to " + web.Shown(to) + ", with the token as without one",
			Remedy: "point probe_url at a resource that answers a token itself"}
	case r.Status == http.StatusUnauthorized && len(r.Challenges) > 0 && web.FindChallenge(r.Challenges, strings.ToLower(t.Scheme)) == nil && sameChallenges(before, r):
		return &api.Error{Code: api.ChallengeUnsupported, Detail: r.Shown() + " wants another login, with the token as without one",
			Remedy: "ask whoever runs the site whether tokens are taken there, and what stands in front; if it is only this token, give another"}
	}
	return nil
}

// sameChallenges reports whether two answers ask for the same schemes.
func sameChallenges(a, b *web.Response) bool {
	return slices.EqualFunc(a.Challenges, b.Challenges, func(a, b web.Challenge) bool { return a.Scheme == b.Scheme })
}
