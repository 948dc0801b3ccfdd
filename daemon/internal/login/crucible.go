package login

import (
	"context"
	"errors"

	"github.com/sessionctl/sessionctl/daemon/internal/web"
)

var _ = register("crucible", func() Driver {
	return &crucible{atlassian: atlassian{product: crucibleProduct, LoginURL: "login"}, LogoutURL: "logout"}
})

var crucibleProduct = &product{kind: "crucible", name: "Crucible", legacy: byForm, username: "username", password: "password", action: "login"}

// crucible is Atlassian Fisheye, or Crucible, or both in one. No resource is known
// that names the user, and no documented life of a session.
type crucible struct {
	atlassian
	// ProbeURL, and one of the others, are as those of kind form.
	ProbeURL       string `toml:"probe_url"`
	IdentityJSON   string `toml:"identity_json"`
	IdentityHeader string `toml:"identity_header"`
	IdentityRegexp string `toml:"identity_regexp"`
	// LogoutURL ends the session that asks for it.
	LogoutURL string `toml:"logout_url"`
}

func (c *crucible) proof() *proof {
	return &proof{ProbeURL: c.ProbeURL, IdentityJSON: c.IdentityJSON, IdentityHeader: c.IdentityHeader, IdentityRegexp: c.IdentityRegexp}
}

// Check implements Checker.
func (c *crucible) Check(o web.Options, identity string) error {
	switch {
	case c.Generation == byREST:
		return errors.New(`login = "rest" is not supported: what Crucible's auth/login gives is a parameter of URLs (FEAUTH), not a session; leave it out`)
	case c.ProbeURL == "":
		return errors.New("probe_url is missing: no page of Fisheye and Crucible is known that names the user; point it at one that needs a login")
	}
	return errors.Join(c.check(o, byForm), permitted(o, "logout_url", c.LogoutURL), c.proof().Check(o, identity))
}

// As implements Detector.
func (c *crucible) As(f Findings) Driver {
	d := *c
	d.found = f
	return &d
}

// Login implements Driver.
func (c *crucible) Login(ctx context.Context, x *web.Exchange, p Password) error {
	if p == nil {
		return c.ticket(ctx, x)
	}
	return c.form(ctx, x, p, c.Probe)
}

// Probe implements Driver. Strangers get the login page with status 200, and a
// server in maintenance has such a page, too.
func (c *crucible) Probe(ctx context.Context, x *web.Exchange) (Identity, error) {
	u, err := x.URL(c.ProbeURL)
	if err != nil {
		return Identity{}, err
	}
	r, err := x.Send(ctx, web.Request{URL: u})
	if err != nil {
		return Identity{}, err
	}
	if err := c.dead(x, r); err != nil {
		return Identity{}, err
	}
	if err := c.announced(r); err != nil {
		return Identity{}, err
	}
	if c.showsLogin(r) {
		return Identity{}, expired(r, "answers 200 with the login page")
	}
	return c.proof().judge(ctx, x, r)
}

// Logout implements Logouter.
func (c *crucible) Logout(ctx context.Context, x *web.Exchange) error {
	return c.logout(ctx, x, c.LogoutURL, c.Probe)
}
