package keeper

import (
	"context"
	"net/url"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/login"
	"github.com/sessionctl/sessionctl/daemon/internal/web"
)

// findings returns what was found out of the site, zero if nobody has looked yet.
func (e *entry) findings() login.Findings {
	if f := e.found.Load(); f != nil {
		return *f
	}
	return login.Findings{}
}

// home is the URL of the product at the site.
func (e *entry) home() *url.URL { return web.Below(e.site.URL, e.findings().Path) }

// driver returns the driver for the site as it was found.
func (e *entry) driver() login.Driver {
	if d, ok := e.site.Driver.(login.Detector); ok {
		return d.As(e.findings())
	}
	return e.site.Driver
}

// exchange starts a dialogue with the product at the site.
func (e *entry) exchange(jar *web.Jar, tickets bool) *web.Exchange {
	x := e.site.Exchange(jar, tickets)
	x.Below(e.findings().Path)
	return x
}

// detect finds out what the site is like, if its driver can, and reports whether that
// is news.
func (e *entry) detect(ctx context.Context) (news bool, err error) {
	d, ok := e.site.Driver.(login.Detector)
	if !ok {
		return false, nil
	}
	x := e.site.Exchange(new(web.Jar), false)
	defer x.Close()
	f, err := d.Detect(ctx, x)
	if err != nil {
		return false, err
	}
	f.Version, f.Path = printable(f.Version), api.Clean(f.Path)
	if old := e.found.Swap(&f); old != nil && *old == f {
		return false, nil
	}
	e.log.Info("the site was looked at", "product", f.Product, "version", f.Version, "path", f.Path, "login", f.Login, "gate", f.Gate)
	e.saveLife()
	return true, nil
}

// detected has the site looked at, unless that was done before.
func (e *entry) detected(ctx context.Context) error {
	if e.found.Load() != nil {
		return nil
	}
	_, err := e.detect(ctx)
	return err
}

// glance is detected where the session comes from elsewhere: the site may show
// nothing to strangers.
func (e *entry) glance(ctx context.Context) {
	if err := e.detected(ctx); err != nil {
		e.log.Debug("the site could not be looked at", "code", api.CodeOf(err))
	}
}

// outdated reports whether a failed login may be the fault of what was found out of
// the site: it may have been changed since.
func outdated(c api.Code) bool {
	switch c {
	case api.NoChallenge, api.ChallengeUnsupported, api.UnexpectedStatus, api.NoSessionCookie, api.BasicDisabled, api.CSRF403,
		api.LoginOKButProbeFailed, api.NegotiateRejected:
		return true
	}
	return false
}
