package login

import (
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"unicode"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/secret"
	"github.com/sessionctl/sessionctl/daemon/internal/web"
)

var _ = register("basic", func() Driver { return &basicAuth{} })

// basicAuth is any site that asks for a password by the Basic scheme (RFC 7617). Its
// login_url does. The session is the cookies that the site sets, if it knows the user
// by them alone; else the Authorization field, in which anybody can read the password.
type basicAuth struct{ proof }

// Check implements Checker.
func (b *basicAuth) Check(o web.Options, identity string) error {
	return cmp.Or(ownHost(o, "login_url", b.LoginURL), ownHost(o, "probe_url", b.ProbeURL), b.proof.Check(o, identity))
}

// ownHost returns what is wrong with an option that holds a URL, if that is not the
// site's own origin's.
func ownHost(o web.Options, option, ref string) error {
	if u, err := web.Resolve(o.Base, ref); err != nil || web.OriginOf(u) != web.OriginOf(o.Base) {
		return errors.New(option + " is on another host, which never gets the password by Basic")
	}
	return nil
}

// Takes implements Driver.
func (*basicAuth) Takes() []Means { return []Means{Secret} }

// LoginPage implements Paged.
func (b *basicAuth) LoginPage() string { return b.LoginURL }

// Login implements Driver.
func (b *basicAuth) Login(ctx context.Context, x *web.Exchange, p Password) error {
	u, err := x.URL(b.LoginURL)
	if err != nil {
		return err
	}
	r, err := x.Get(ctx, u)
	if err != nil {
		return err
	}
	if err := asksByBasic(x, r); err != nil {
		return err
	}
	r, field, err := answerBasic(ctx, x, r, p)
	if err != nil {
		return err
	}
	// What is there does not get the password, and the cookies need nothing of it.
	if _, err := x.Follows(r); err != nil {
		return err
	}
	if x.Jar().Len() > 0 {
		if enough, err := b.enough(ctx, x, p, field); enough || err != nil {
			return err
		}
	}
	x.Jar().Authorize(field)
	return nil
}

// asksByBasic returns why the answer to a stranger is no reason to send a password to
// where it is from, nil if it is one.
func asksByBasic(x *web.Exchange, r *web.Response) error {
	if err := web.StatusError(r); err != nil {
		return err
	}
	switch {
	case web.OriginOf(r.URL) != web.OriginOf(base(x)):
		return &api.Error{Code: api.SSORedirect, Detail: "the login leads to " + r.Shown() + ", but a password by Basic stays at the site's own host",
			Remedy: "write the host that asks for the password in the site's url"}
	case r.Status < 400, r.Status == http.StatusUnauthorized && len(r.Challenges) == 0:
		return &api.Error{Code: api.NoChallenge, Detail: fmt.Sprintf("%s answers %d without asking for a password by Basic (User-Agent %q)", r.Shown(), r.Status, x.UserAgent()),
			Remedy: "point login_url at a page that asks for one; if the site has a login form, use kind = \"form\""}
	case r.Status != http.StatusUnauthorized:
		return &api.Error{Code: api.UnexpectedStatus, Detail: fmt.Sprintf("%s answers %d", r.Shown(), r.Status), Remedy: "check the site's url and login_url"}
	case basicChallenge(r) == nil:
		return &api.Error{Code: api.ChallengeUnsupported, Detail: r.Shown() + " asks for another login than by Basic",
			Remedy: "point login_url at a page that asks for a password by Basic; where the site asks for Negotiate, use kind = \"spnego\""}
	}
	return nil
}

// enough reports whether the cookies of x are the session of whose password is in the
// field. They may be a stranger's, too, whom the site has a name for: if that is not the
// username, the password has to lead to the same one.
func (b *basicAuth) enough(ctx context.Context, x *web.Exchange, p Password, field secret.String) (bool, error) {
	byCookies, err := b.proof.Probe(ctx, x)
	switch {
	case err != nil:
		return false, temporary(err)
	case byCookies.Unproven, lower(byCookies.Name) == lower(p.User()):
		return true, nil
	}
	other := x.Bare()
	defer other.Close()
	other.Jar().Authorize(field)
	byPassword, err := b.Probe(ctx, other)
	switch {
	case api.CodeOf(err) == api.BadCredentials:
		return false, err
	case err != nil:
		return false, temporary(err)
	}
	return byCookies == byPassword, nil
}

// temporary returns an error if it may pass by itself.
func temporary(err error) error {
	if api.CodeOf(err).Temporary() {
		return err
	}
	return nil
}

// Probe implements Driver.
func (b *basicAuth) Probe(ctx context.Context, x *web.Exchange) (Identity, error) {
	if x.Jar().Authorization().Empty() {
		return b.proof.Probe(ctx, x)
	}
	u, err := x.URL(cmp.Or(b.ProbeURL, b.LoginURL))
	if err != nil {
		return Identity{}, err
	}
	r, err := x.Send(ctx, web.Request{URL: u})
	if err != nil {
		return Identity{}, err
	}
	if basicChallenge(r) != nil {
		return Identity{}, &api.Error{Code: api.BadCredentials, Detail: r.Shown() + " refuses the password", Remedy: "correct the password"}
	}
	id, err := b.judge(ctx, x, r)
	if api.CodeOf(err) == api.Expired { // whose text is of cookies
		err = &api.Error{Code: api.Expired, Detail: r.Shown() + " does not know the user by the password", Err: err}
	}
	return id, err
}

// basicChallenge returns the challenge of the Basic scheme that an answer is, nil if it
// is none.
func basicChallenge(r *web.Response) *web.Challenge {
	if r.Status != http.StatusUnauthorized {
		return nil
	}
	return web.FindChallenge(r.Challenges, "basic")
}

// answerBasic answers a challenge of the Basic scheme, once. The password goes to the URL
// that asked for it, and to no other. It returns what that says, which is no refusal,
// and the Authorization field. Whether the password was accepted shows in the proof
// alone: a page that says no may have any status.
func answerBasic(ctx context.Context, x *web.Exchange, r *web.Response, p Password) (*web.Response, secret.String, error) {
	r, field, err := sendBasic(ctx, x, r.URL, basicChallenge(r), p)
	switch {
	case err != nil:
	case r.Status == http.StatusUnauthorized:
		err = &api.Error{Code: api.BadCredentials, Detail: r.Shown() + " refuses the password of " + p.User(), Remedy: "correct the password"}
	case r.Status >= 400:
		err = &api.Error{Code: api.UnexpectedStatus, Detail: fmt.Sprintf("%s answers %d to the password of %s", r.Shown(), r.Status, p.User()), Remedy: "check the site's url and login_url"}
	}
	return r, field, err
}

// sendBasic takes the password and sends it to u, once. c is the challenge that u has
// answered with, nil if it has shown by other means that it takes Basic. Errors are of
// what keeps the password here, and of a server in trouble.
func sendBasic(ctx context.Context, x *web.Exchange, u *url.URL, c *web.Challenge, p Password) (*web.Response, secret.String, error) {
	none := secret.String{}
	if strings.Contains(p.User(), ":") { // RFC 7617, section 2
		return nil, none, &api.Error{Code: api.ConfigInvalid, Detail: "Basic has no way to say the username " + strconv.Quote(p.User()), Remedy: "use another username"}
	}
	// Without a charset the encoding is open, with one it is UTF-8, and no other
	// (RFC 7617, section 2.1).
	charset := ""
	if c != nil {
		charset = c.Params["charset"]
	}
	password, err := p.Take(ctx)
	if err != nil {
		return nil, none, err
	}
	pair := p.User() + ":" + password.Reveal()
	if charset != "" && lower(charset) != "utf-8" && strings.ContainsFunc(pair, func(c rune) bool { return c > unicode.MaxASCII }) {
		p.GiveBack()
		return nil, none, &api.Error{Code: api.ChallengeUnsupported, Detail: web.Shown(u) + " asks for a password in an encoding that Basic does not have",
			Remedy: "use a username and a password of ASCII characters, or ask whoever runs the site to say charset=\"UTF-8\""}
	}
	field := secret.New("Basic " + base64.StdEncoding.EncodeToString([]byte(pair)))
	r, err := x.Send(ctx, web.Request{URL: u, Header: http.Header{"Authorization": {field.Reveal()}}})
	if err != nil {
		return nil, none, err
	}
	if err := troubled(r, p); err != nil {
		return nil, none, err
	}
	return r, field, nil
}
