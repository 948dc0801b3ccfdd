package keeper

import (
	"cmp"
	"context"
	"net/url"
	"slices"
	"strconv"
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

// look finds out what the site is like, if its driver can. A product that no longer
// says what it is, or whose pages are hidden just now, is still taken for what it was.
// What holds a secret is the server's word, and is not taken.
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
	f.Version, f.Path, f.Probe, f.Users = printable(f.Version), api.Clean(f.Path), api.Clean(f.Probe), api.Clean(f.Users)
	secrets = append(slices.Clone(secrets), e.secrets()...)
	for _, v := range []*string{&f.Version, &f.Path, &f.Probe, &f.Users} {
		if slices.ContainsFunc(secrets, func(s string) bool { return s != "" && strings.Contains(*v, s) }) {
			*v = ""
		}
	}
	if old := e.findings(); old.Product != "" && f.Product == "" {
		f.Product, f.Version, f.Path = old.Product, old.Version, cmp.Or(f.Path, old.Path)
		f.Login, f.Gate = cmp.Or(f.Login, old.Login), cmp.Or(f.Gate, old.Gate)
		f.Probe, f.Users = cmp.Or(f.Probe, old.Probe), cmp.Or(f.Users, old.Users)
	}
	return f, nil
}

// secrets are the passwords that the site may have seen.
func (e *entry) secrets() (all []string) {
	for ; e != nil; e = e.provider {
		for _, p := range []*Password{e.site.Password, e.site.Fallback} {
			if p == nil {
				continue
			}
			if pw, err := p.Load(); err == nil {
				all = append(all, pw.Reveal())
			}
		}
	}
	return all
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
	e.mu.Lock()
	defer e.mu.Unlock()
	e.glanced = time.Time{}
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
	f, seen := e.findings(), known != nil
	looked := !e.fresh(known)
	if looked {
		now, err := e.glance(ctx, seen || glance, glance, secrets())
		switch {
		case err == nil:
			f, seen = now, true
		case !seen && !glance:
			return nil, err
		}
	}
	s, err := begin(f)
	if err != nil && !looked && outdated(api.CodeOf(err), f) && !spent() {
		if now, lerr := e.glance(ctx, glance, glance, secrets()); lerr == nil && now != f {
			f = now
			s, err = begin(f)
		}
	}
	if err == nil && seen {
		e.remember(f)
	}
	return s, err
}

// glance is look; a short one where it is not needed, and if it is seldom, one that
// is had once in a while at most.
func (e *entry) glance(ctx context.Context, short, seldom bool, secrets []string) (login.Findings, error) {
	now := e.k.clock.Now()
	e.mu.Lock()
	since := now.Sub(e.glanced)
	e.mu.Unlock()
	if seldom && 0 <= since && since < usualRecheck {
		return login.Findings{}, &api.Error{Code: api.NotCached, Detail: "somebody has looked just now"}
	}
	if short {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, probeTimeout)
		defer cancel()
	}
	f, err := e.look(ctx, secrets)
	if err != nil {
		e.log.Debug("the site could not be looked at", "code", api.CodeOf(err))
	}
	if code := api.CodeOf(err); code == "" || code == api.Timeout { // else it costs little
		e.mu.Lock()
		e.glanced = now
		e.mu.Unlock()
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
// into it, also in the forms that web addresses and quotes give them.
func redactedError(err error, secrets []string) error {
	if err == nil || len(secrets) == 0 {
		return err
	}
	f := *api.AsError(err)
	for _, s := range secrets {
		if len(s) < 4 { // it is in many a word
			continue
		}
		quoted := strconv.Quote(s)
		for _, form := range []string{s, url.PathEscape(s), url.QueryEscape(s), (&url.URL{Path: s}).EscapedPath(), quoted[1 : len(quoted)-1], api.Clean(s), printable(s)} {
			f.Detail, f.Remedy = strings.ReplaceAll(f.Detail, form, redacted), strings.ReplaceAll(f.Remedy, form, redacted)
		}
	}
	f.Err = err
	return &f
}
