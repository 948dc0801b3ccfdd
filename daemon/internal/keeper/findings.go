package keeper

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/login"
	"github.com/sessionctl/sessionctl/daemon/internal/web"
)

// finding is what a site is like, and when that led to a session last.
type finding struct {
	login.Findings
	Time time.Time `json:"time"`
}

// findingLife is how long a finding is good for without another look: the site may
// have been upgraded, and still let everybody in.
const findingLife = 24 * time.Hour

// findings returns what is remembered of the site, zero if nothing is.
func (e *entry) findings() login.Findings {
	if f := e.found.Load(); f != nil {
		return f.Findings
	}
	return login.Findings{}
}

// as returns the driver for a site that is as found.
func (e *entry) as(f login.Findings) login.Driver {
	if d, ok := e.site.Driver.(login.Detector); ok {
		return d.As(f)
	}
	return e.site.Driver
}

// driver returns the driver for the site as it is remembered.
func (e *entry) driver() login.Driver { return e.as(e.findings()) }

// exchange starts a dialogue with the product, which is at a path below the site's
// URL.
func (e *entry) exchange(jar *web.Jar, tickets bool, path string) *web.Exchange {
	x := e.site.Exchange(jar, tickets)
	x.Below(path)
	return x
}

// look finds out what the site is like, if its driver can. Who sees less than is
// remembered has looked at a bad moment. What holds a secret is the server's word, and
// is not taken.
func (e *entry) look(ctx context.Context, secrets []string) (login.Findings, error) {
	d, ok := e.site.Driver.(login.Detector)
	if !ok {
		return login.Findings{}, nil
	}
	x := e.site.Exchange(new(web.Jar), false)
	defer x.Close()
	f, err := d.Detect(ctx, x)
	if err != nil {
		return login.Findings{}, err
	}
	if old := e.findings(); old.Product != "" && f.Product == "" {
		return old, nil
	}
	f.Version, f.Path = printable(f.Version), api.Clean(f.Path)
	for _, v := range []*string{&f.Version, &f.Path} {
		if slices.ContainsFunc(secrets, func(s string) bool { return s != "" && strings.Contains(*v, s) }) {
			*v = ""
		}
	}
	return f, nil
}

// remember keeps what has led to a session.
func (e *entry) remember(f login.Findings) {
	if _, ok := e.site.Driver.(login.Detector); !ok {
		return
	}
	if old := e.found.Load(); e.fresh(old) && old.Findings == f {
		return
	}
	e.found.Store(&finding{f, e.k.clock.Now()})
	e.log.Info("the site is known", "product", f.Product, "version", f.Version, "path", f.Path, "login", f.Login, "gate", f.Gate)
	e.saveLife()
}

// doubtFindings has the site looked at before the next login: a person says that
// something is wrong with it.
func (e *entry) doubtFindings() {
	if f := e.found.Load(); f != nil {
		e.found.Store(&finding{Findings: f.Findings})
	}
}

// fresh reports whether a finding needs no other look.
func (e *entry) fresh(f *finding) bool {
	if f == nil {
		return false
	}
	age := e.k.clock.Now().Sub(f.Time)
	return 0 <= age && age < findingLife
}

// asFound makes a session at a site as it is remembered, after a look at it if that is
// none, or old; and if that no longer leads to a session, as it is seen then, unless
// spent says that this cannot be repeated. What has led to one is remembered. With
// glance the session comes from elsewhere, so that it does not matter whether anything
// is seen.
func (e *entry) asFound(ctx context.Context, glance bool, secrets func() []string, spent func() bool, begin func(login.Findings) (*Session, error)) (*Session, error) {
	known := e.found.Load()
	f, seen := e.findings(), e.fresh(known)
	looked := !seen
	if looked {
		now, err := e.glance(ctx, glance, secrets())
		switch {
		case err == nil:
			f = now
		case known == nil && !glance:
			return nil, err
		}
	}
	s, err := begin(f)
	if err != nil && !looked && outdated(api.CodeOf(err), f) && !spent() {
		if now, lerr := e.glance(ctx, glance, secrets()); lerr == nil && now != f {
			f = now
			s, err = begin(f)
		}
	}
	if err == nil {
		e.remember(f)
	}
	return s, err
}

// glance is look; or a short one, which is had once in a while at most.
func (e *entry) glance(ctx context.Context, short bool, secrets []string) (login.Findings, error) {
	if !short {
		return e.look(ctx, secrets)
	}
	now := e.k.clock.Now()
	e.mu.Lock()
	since := now.Sub(e.glanced)
	again := since < 0 || since >= usualRecheck
	if again {
		e.glanced = now
	}
	e.mu.Unlock()
	if !again {
		return login.Findings{}, &api.Error{Code: api.NotCached, Detail: "somebody has looked just now"}
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	f, err := e.look(ctx, secrets)
	if err != nil {
		e.log.Debug("the site could not be looked at", "code", api.CodeOf(err))
	}
	return f, err
}

// outdated reports whether a failure may be the fault of what was found out of the
// site: it may have been changed since.
func outdated(c api.Code, f login.Findings) bool {
	switch c {
	case api.NoChallenge, api.ChallengeUnsupported, api.NTLMOnly, api.UnexpectedStatus, api.NoSessionCookie, api.BasicDisabled, api.CSRF403,
		api.LoginOKButProbeFailed, api.NegotiateRejected, api.SSORedirect, api.RedirectLoop, api.InsecureRedirect, api.ConfigInvalid:
		return true
	case api.Maintenance, api.Expired:
		return f.Product == "" // who knows what answers
	}
	return false
}

// redactedError is a failure without secrets, which a site's words may have brought
// into it.
func redactedError(err error, secrets []string) error {
	if err == nil || len(secrets) == 0 {
		return err
	}
	f := *api.AsError(err)
	for _, s := range secrets {
		if len(s) >= 4 { // a shorter one is in many a word
			f.Detail, f.Remedy = strings.ReplaceAll(f.Detail, s, redacted), strings.ReplaceAll(f.Remedy, s, redacted)
		}
	}
	f.Err = err
	return &f
}
