package login

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/web"
)

// proof is what the kinds that know no product have in common: the options that
// say how a session is proven, and the probe.
type proof struct {
	// LoginURL is where the login begins. Absolute, or relative to the site's url.
	LoginURL string `toml:"login_url" for:"login"`
	// ProbeURL is refused without a session and cheap with one. Default:
	// LoginURL.
	ProbeURL string `toml:"probe_url"`
	// One of these says where the probe's answer names the user.
	IdentityJSON   string `toml:"identity_json"`   // a path such as "user.name" or "users.0.name"
	IdentityHeader string `toml:"identity_header"` // a response header
	IdentityRegexp string `toml:"identity_regexp"` // applied to the body, the first group is the name
}

// Check implements Checker.
func (p *proof) Check(o web.Options, identity string) error {
	if err := errors.Join(permitted(o, "login_url", p.LoginURL), permitted(o, "probe_url", p.ProbeURL)); err != nil {
		return err
	}
	given := 0
	for _, v := range []string{p.IdentityJSON, p.IdentityHeader, p.IdentityRegexp} {
		if v != "" {
			given++
		}
	}
	switch {
	case given > 1:
		return errors.New("only one of identity_json, identity_header and identity_regexp can say who the user is")
	case given == 0 && identity != Unproven:
		return fmt.Errorf("nothing says how the site names the user: set identity_json, identity_header or identity_regexp; if it never does, set identity = %q", Unproven)
	case given == 1 && identity == Unproven:
		return fmt.Errorf("identity = %q contradicts the option that says how the site names the user", Unproven)
	}
	if p.IdentityRegexp != "" {
		re, err := regexp.Compile(p.IdentityRegexp)
		if err != nil {
			return fmt.Errorf("identity_regexp: %w", err)
		}
		if re.NumSubexp() < 1 {
			return errors.New("identity_regexp has no group (…) around the user's name")
		}
	}
	return nil
}

// permitted returns what is wrong with an option that holds a URL.
func permitted(o web.Options, option, ref string) error {
	u, err := web.Resolve(o.Base, ref)
	if err != nil {
		return errors.New(option + " is not a URL") // err would quote it
	}
	if err := o.Permit(u); err != nil {
		e := api.AsError(err)
		return errors.New(option + " " + e.Detail + "; " + e.Remedy)
	}
	return nil
}

// Probe implements Driver.
func (p *proof) Probe(ctx context.Context, x *web.Exchange) (Identity, error) {
	ref := p.ProbeURL
	if ref == "" {
		ref = p.LoginURL
	}
	u, err := x.URL(ref)
	if err != nil {
		return Identity{}, err
	}
	r, err := x.Send(ctx, web.Request{URL: u})
	if err != nil {
		return Identity{}, err
	}
	return p.judge(ctx, x, r)
}

// judge reads the answer to the probe's request.
func (p *proof) judge(ctx context.Context, x *web.Exchange, r *web.Response) (Identity, error) {
	if err := web.StatusError(r); err != nil {
		return Identity{}, err
	}
	to, _ := x.Follows(r) // wherever to
	switch {
	case r.Status == http.StatusForbidden:
		return Identity{}, &api.Error{Code: api.Forbidden, Detail: r.Shown() + " answers 403 to the session",
			Remedy: "point probe_url at a page that this user may read"}
	case r.Status == http.StatusUnauthorized, to != nil:
		return Identity{}, &api.Error{Code: api.Expired, Detail: fmt.Sprintf("%s answers %d to the session's cookies", r.Shown(), r.Status)}
	case r.Status != http.StatusOK:
		return Identity{}, &api.Error{Code: api.UnexpectedStatus, Detail: fmt.Sprintf("%s answers %d", r.Shown(), r.Status),
			Remedy: "check probe_url"}
	case !readable(r):
		return Identity{}, unreadable(r)
	}
	if p.IdentityJSON == "" && p.IdentityHeader == "" && p.IdentityRegexp == "" {
		return p.unproven(ctx, x, r.URL)
	}
	name, err := p.identity(r)
	if err != nil {
		return Identity{}, err
	}
	if name == "" {
		return Identity{}, &api.Error{Code: api.Expired, Detail: r.Shown() + " answers 200 without naming a user"}
	}
	return Identity{Name: name}, nil
}

// troubled is web.StatusError of an answer to a password, which a server that is away, or
// has had too many requests, has not looked at.
func troubled(r *web.Response, p Password) error {
	err := web.StatusError(r)
	if err != nil && (r.Status == http.StatusTooManyRequests || r.Status == http.StatusServiceUnavailable) {
		p.GiveBack()
	}
	return err
}

// readable reports whether the whole of an answer can be read.
func readable(r *web.Response) bool { return !r.Cut && r.Header.Get("Content-Encoding") == "" }

// unreadable is for a 200 of which nobody can tell what it says: it is no refusal.
func unreadable(r *web.Response) error {
	return &api.Error{Code: api.UnexpectedStatus, Detail: r.Shown() + " answers 200 with more than is read, or packed, which nobody asked for",
		Remedy: "check probe_url"}
}

// unproven asks the same page without cookies: only if that is refused does
// the answer with cookies prove anything.
func (p *proof) unproven(ctx context.Context, x *web.Exchange, u *url.URL) (Identity, error) {
	bare := x.Bare()
	defer bare.Close()
	r, err := bare.Send(ctx, web.Request{URL: u})
	if err != nil {
		return Identity{}, err
	}
	if err := web.StatusError(r); err != nil {
		return Identity{}, err
	}
	if r.Status < 300 && !asksForPassword(r) { // a login page is a refusal, too
		return Identity{}, &api.Error{Code: api.LoginOKButProbeFailed, Detail: r.Shown() + " answers the same without any session",
			Remedy: "point probe_url at a page that needs a session"}
	}
	return Identity{Unproven: true}, nil
}

// errTwice: which of two names counts is for nobody to guess.
var errTwice = errors.New("the same member twice")

// identity finds the user's name in the probe's answer. Empty: nobody.
func (p *proof) identity(r *web.Response) (string, error) {
	ambiguous := func(option string) error {
		return &api.Error{Code: api.WrongIdentity, Detail: r.Shown() + " has more than one value where " + option + " points",
			Remedy: "ask whoever runs the site why, or find the name elsewhere with another probe_url"}
	}
	switch {
	case p.IdentityHeader != "":
		values := r.Header.Values(p.IdentityHeader)
		if len(values) > 1 {
			return "", ambiguous("identity_header")
		}
		return strings.TrimSpace(strings.Join(values, "")), nil
	case p.IdentityRegexp != "":
		if m := regexp.MustCompile(p.IdentityRegexp).FindSubmatch(r.Body); m != nil {
			return string(m[1]), nil
		}
		return "", nil
	}
	name, err := jsonPath(r.Body, p.IdentityJSON)
	switch {
	case errors.Is(err, errTwice):
		return "", ambiguous("identity_json")
	case err != nil:
		// A login page instead of JSON is how many sites say "who are you?".
		return "", &api.Error{Code: api.Expired, Detail: r.Shown() + " answers 200, but not with JSON", Err: err}
	}
	return name, nil
}

// jsonPath returns the string or number at a dotted path in a JSON document:
// names of members and indexes of elements, with "$." allowed in front. What
// is not there, or null, is "". The error is errTwice for a member on the path
// that occurs twice, another for what is not one document (RFC 8259).
func jsonPath(doc json.RawMessage, path string) (string, error) {
	if !json.Valid(doc) {
		return "", errors.New("not JSON")
	}
	var err error
	for step := range strings.SplitSeq(strings.TrimPrefix(strings.TrimPrefix(path, "$"), "."), ".") {
		if doc, err = jsonStep(doc, step); err != nil || doc == nil {
			return "", err
		}
	}
	d := json.NewDecoder(bytes.NewReader(doc))
	d.UseNumber()
	switch t, err := d.Token(); v := t.(type) {
	case string:
		return v, err
	case json.Number:
		return v.String(), err
	default:
		return "", err
	}
}

// jsonStep returns the member or element of that name, nil if there is none.
func jsonStep(doc json.RawMessage, step string) (found json.RawMessage, err error) {
	d := json.NewDecoder(bytes.NewReader(doc))
	open, err := d.Token()
	if open != json.Delim('{') && open != json.Delim('[') {
		return nil, err
	}
	for i := 0; d.More(); i++ {
		var name any = strconv.Itoa(i)
		if open == json.Delim('{') {
			if name, err = d.Token(); err != nil {
				return nil, err
			}
		}
		var v json.RawMessage
		if err := d.Decode(&v); err != nil {
			return nil, err
		}
		if name == step {
			if found != nil {
				return nil, errTwice
			}
			found = v
		}
	}
	return found, nil
}
