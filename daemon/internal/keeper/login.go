package keeper

import (
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/login"
	"github.com/sessionctl/sessionctl/daemon/internal/web"
)

// work proves the session, or makes a new one, and publishes it. Unless it is
// forced, there is no end of logins that a site undoes, or somebody who may use
// the session.
func (e *entry) work(f *flight, old *Session) *api.Error {
	if !f.login {
		s, err := e.proveAsFound(old)
		switch code := api.CodeOf(err); {
		case err == nil:
			e.lived(old.at(s.shifted), s.ProveTime)
			e.publish(s, old)
			if f.ahead {
				f.notAhead = e.renewAhead(f)
			}
			return nil
		case code != api.Expired && code != api.WrongIdentity:
			// The site could not say. The session stays.
			e.log.Warn("the session could not be proved", "code", code, "detail", api.AsError(err).Detail)
			e.mu.Lock()
			e.stale = true
			e.mu.Unlock()
			return api.AsError(err)
		default:
			e.mu.Lock()
			e.ended, e.lost = e.k.clock.Now(), old.jar
			e.mu.Unlock()
			e.log.Info("the session has ended", "code", code, "detail", api.AsError(err).Detail)
			e.died(old.at(e.k.clock.shifted.Load()), e.k.clock.Now())
			e.forget()
		}
	}
	if err := e.goOn(f); err != nil {
		return err
	}
	if f.force {
		return e.renew(nil)
	}
	if e.dyingAtOnce() {
		return &api.Error{Code: api.Quota, Detail: fmt.Sprintf("%d sessions have died within %v of their login", maxLogins, loginWindow),
			Remedy: "find out who ends them: the site, or a caller that logs out there"}
	}
	if err := e.renew(nil); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.recent = append(e.recent[max(0, len(e.recent)-maxLogins+1):], e.k.clock.Now())
	return nil
}

// dyingAtOnce reports whether there were too many automatic logins of late.
func (e *entry) dyingAtOnce() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.recent) < maxLogins {
		return false
	}
	d := e.k.clock.Now().Sub(e.recent[0])
	return 0 <= d && d < loginWindow
}

// renewAhead makes a session anew that was just proven, if it is near its end. If
// that fails, it serves on.
func (e *entry) renewAhead(f *flight) *api.Error {
	e.mu.Lock()
	due := e.renewal(e.k.clock.Now())
	e.mu.Unlock()
	if !due {
		return nil
	}
	err := e.goOn(f)
	if err == nil {
		err = e.renew(nil)
	}
	if err == nil {
		return nil
	}
	wait, _ := web.RetryAfter(err)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.notAheadUntil = e.k.clock.Now().Add(wait + e.interval())
	e.plan()
	return err
}

// renew logs in and publishes the new session. A password that is offered takes
// the place of the stored one.
func (e *entry) renew(offered *attempt) *api.Error {
	if offered == nil {
		if err := e.ready(e.attempt(nil)); err != nil { // nobody is asked
			return e.remedied(e.throughIdP(err), nil)
		}
	}
	started := e.k.clock.Now()
	s, err := e.login(offered)
	if err != nil {
		e.k.failures.Add(1)
		f := e.remedied(err, offered)
		if offered != nil && offered.unkept != nil {
			f.Detail += "; the password was accepted, but could not be stored"
		}
		e.log.Warn("the login failed", "code", f.Code, "detail", f.Detail)
		return f
	}
	e.k.logins.Add(1)
	e.log.Info("logged in", "user", s.Identity, "generation", s.Generation, "took", e.k.clock.Now().Sub(started).Round(time.Millisecond))
	e.publish(s, nil)
	if offered != nil && offered.unkept != nil {
		return &api.Error{Code: api.StoreFailed, Detail: "logged in as " + s.Identity + ", but the password could not be stored: " + api.AsError(offered.unkept).Detail,
			Remedy: "see that the store can be written: sessionctl status; then bring the password again", Err: offered.unkept}
	}
	return nil
}

// bring gives the credential a password that a person brings, and logs in with
// it.
func (e *entry) bring(password []byte, retry bool) *api.Error {
	ctx, cancel := context.WithTimeout(e.k.ctx, loginTimeout)
	defer cancel()
	if err := e.site.Bring(ctx, password, retry); err != nil {
		e.k.failures.Add(1)
		f := e.remedied(err, &attempt{offered: true})
		e.log.Warn("the password was not taken", "code", f.Code, "detail", f.Detail)
		return f
	}
	return e.renew(nil)
}

// ready returns what keeps the site's credential from being used. a is nil
// unless that is a password.
func (e *entry) ready(a *attempt) error {
	if p := e.provider; p != nil {
		if p.living() { // a token that a person brought, with nothing to log in with
			return nil
		}
		return p.ready(p.attempt(nil))
	}
	if a != nil {
		return a.ready()
	}
	if err := e.site.Ready(); err != nil {
		return err
	}
	return e.k.o.Latches.Check(e.site.verifier(), e.site.Account, nil)
}

// forgive lifts the refusals that stand against the credential.
func (e *entry) forgive(ctx context.Context, offered *attempt) error {
	if e.site.ForgiveProxy != nil {
		if err := e.site.ForgiveProxy(ctx); err != nil && api.CodeOf(err) != api.NoSecret {
			return err
		}
	}
	if a := e.attempt(offered); a != nil {
		return a.forgive(ctx)
	}
	if err := e.site.Forgive(ctx); err != nil {
		return err
	}
	if e.site.Fallback != nil {
		if err := (&attempt{p: e.site.Fallback, site: &e.site}).forgive(ctx); err != nil && api.CodeOf(err) != api.NoSecret {
			return err
		}
	}
	return e.k.o.Latches.Clear(ctx, e.site.verifier(), e.site.Account, nil)
}

// attempt returns what lends a login its password: what is offered, else the
// stored one; nil if the credential is none.
func (e *entry) attempt(offered *attempt) *attempt {
	if offered == nil && e.site.Password != nil {
		return &attempt{p: e.site.Password, site: &e.site}
	}
	return offered
}

// login makes a new session and proves it.
func (e *entry) login(offered *attempt) (s *Session, err error) {
	if p := e.provider; p != nil {
		ctx, cancel := context.WithTimeout(e.k.ctx, loginTimeout)
		defer cancel()
		return e.enter(ctx, p)
	}
	a := e.attempt(offered)
	if err := e.ready(a); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(e.k.ctx, loginTimeout)
	defer cancel()
	if a != nil {
		// Also after a panic, which is no verdict.
		err = &api.Error{Code: api.Unknown, Detail: "the login broke off"}
		defer func() {
			if err := a.end(context.WithoutCancel(ctx), err); err != nil {
				e.log.Error("what became of a password is not stored", "err", err)
			}
		}()
	}
	s, err = e.anySession(ctx, a)
	if a == nil && e.site.Fallback != nil && noUse(api.CodeOf(err)) {
		return e.fallBack(ctx, err)
	}
	if a == nil && api.CodeOf(err) == api.Captcha {
		if err := e.k.o.Latches.refuse(context.WithoutCancel(ctx), e.site.verifier(), e.site.Account, nil, api.AsError(err)); err != nil {
			e.log.Error("a latch is not stored", "err", err)
		}
	}
	return s, err
}

// noUse reports whether a failure says that a site has no use for tickets, or the
// realm none of the site.
func noUse(c api.Code) bool {
	switch c {
	case api.NoChallenge, api.ChallengeUnsupported, api.NTLMOnly, api.SPNUnknown, api.ServiceKeyMismatch, api.NegotiateRejected:
		return true
	}
	return false
}

// fallBack logs in with the site's other credential, a password, because of why
// its own is of no use.
func (e *entry) fallBack(ctx context.Context, why error) (s *Session, err error) {
	a := &attempt{p: e.site.Fallback, site: &e.site}
	e.log.Info("the site has no use for a ticket, falling back to a password", "code", api.CodeOf(why), "detail", api.AsError(why).Detail)
	if err := a.ready(); err != nil {
		f := *api.AsError(err)
		f.Detail = "falling back to a password, because " + api.AsError(why).Detail + ": " + f.Detail
		return nil, &f
	}
	err = &api.Error{Code: api.Unknown, Detail: "the login broke off"} // also after a panic
	defer func() {
		if err := a.end(context.WithoutCancel(ctx), err); err != nil {
			e.log.Error("what became of a password is not stored", "err", err)
		}
	}()
	return e.anySession(ctx, a)
}

// anySession makes a session at a site as it was found. What a password was spent on
// is not repeated.
func (e *entry) anySession(ctx context.Context, a *attempt) (*Session, error) {
	s, err := e.asFound(ctx, false, a.secrets, a.spent, func(f login.Findings) (*Session, error) { return e.newSession(ctx, a, f) })
	return s, redactedError(err, a.secrets())
}

// newSession logs in and proves the session. a is nil unless a password is lent.
func (e *entry) newSession(ctx context.Context, a *attempt, f login.Findings) (*Session, error) {
	var lent login.Password // a nil *attempt in it would not be nil
	if a != nil {
		lent = a
	}
	began := e.k.clock.shifted.Load()
	x := e.exchange(new(web.Jar), a == nil, f.Path)
	err := e.as(f).Login(ctx, x, lent)
	x.Close()
	if err != nil {
		return nil, err
	}
	s, err := e.probe(ctx, e.newborn(x.Jar(), began, f.Path), f, a.secrets()...)
	if api.CodeOf(err) == api.Expired {
		remedy := "check the site's url, and its probe_url and identity_… if it has them"
		if d, ok := e.site.Driver.(login.Sharer); ok {
			remedy += "; " + d.Refused()
		}
		return nil, &api.Error{Code: api.LoginOKButProbeFailed, Detail: "the login looked good, but " + api.AsError(err).Detail, Remedy: remedy, Err: err}
	}
	return s, err
}

// newborn returns a session that is not proven yet, from cookies that came while
// the agent's time was shifted so.
func (e *entry) newborn(jar *web.Jar, shifted int64, path string) *Session {
	now := e.k.clock.Now().Add(time.Duration(shifted - e.k.clock.shifted.Load()))
	var changes uint64
	if p := e.site.password(); p != nil {
		changes = p.changes.Load()
	}
	return &Session{secretAt: changes, Site: e.site.Name, Generation: rand.Text(), LoginTime: now, shifted: shifted, jar: jar, home: web.Below(e.site.URL, path), path: path}
}

// adopt publishes a session that a person made elsewhere, if it is good.
func (e *entry) adopt(jar *web.Jar) *api.Error {
	ctx, cancel := context.WithTimeout(e.k.ctx, loginTimeout)
	defer cancel()
	s, err := e.asFound(ctx, true, noSecrets, func() bool { return false }, func(f login.Findings) (*Session, error) {
		return e.prove(e.newborn(jar, e.k.clock.shifted.Load(), f.Path), f)
	})
	if err != nil {
		f := *api.AsError(err)
		if f.Code == api.Expired {
			f.Detail, f.Remedy = "the cookie is no login: "+f.Detail, "log in with a browser once more, and take the Cookie header of a request that worked"
			if d, ok := e.site.Driver.(login.Sharer); ok {
				f.Remedy += "; " + d.Refused()
			}
		}
		return &f
	}
	e.log.Info("a session was adopted", "user", s.Identity, "generation", s.Generation)
	e.publish(s, nil)
	return nil
}

// logout ends a session at the site. Neither an end nor a refusal: the kind
// cannot.
func (e *entry) logout(s *Session) (ended bool, refusal *api.Error) {
	d, ok := e.driver().(login.Logouter)
	if !ok {
		return false, nil
	}
	ctx, cancel := context.WithTimeout(e.k.ctx, logoutTimeout)
	defer cancel()
	x := e.exchange(s.jar.Clone(), false, s.path)
	defer x.Close()
	if err := d.Logout(ctx, x); err != nil {
		e.log.Warn("the site has not ended the session", "code", api.CodeOf(err), "detail", api.AsError(err).Detail)
		return false, api.AsError(err)
	}
	return true, nil
}

// proveAsFound asks the site about a session; where the product is now, if it is no
// longer where the session was made.
func (e *entry) proveAsFound(old *Session) (*Session, error) {
	s, err := e.proveCarried(old, e.findings())
	if err == nil || api.CodeOf(err) == api.Expired || !outdated(api.CodeOf(err), e.findings()) {
		return s, err
	}
	ctx, cancel := context.WithTimeout(e.k.ctx, loginTimeout)
	defer cancel()
	f, lerr := e.glance(ctx, true, true, nil)
	if lerr != nil || f.Path == old.path {
		return s, err
	}
	moved := *old
	moved.home, moved.path = web.Below(e.site.URL, f.Path), f.Path
	s, err = e.proveCarried(&moved, f)
	if err == nil {
		e.remember(f)
	}
	return s, err
}

// keepShared returns what a site's proof has left of a session, with what its
// provider shares as it was: that is not the site's to replace, or take away.
func (e *entry) keepShared(before, after *web.Jar) *web.Jar {
	if e.provider == nil {
		return after
	}
	d, ok := e.provider.site.Driver.(login.Sharer)
	if !ok {
		return after
	}
	own := after.Without(d.Shared(after))
	own.Add(d.Shared(before))
	return own
}

// prove asks the site, which is as found, about a session.
func (e *entry) prove(s *Session, f login.Findings) (*Session, error) {
	ctx, cancel := context.WithTimeout(e.k.ctx, probeTimeout)
	defer cancel()
	return e.probe(ctx, s, f)
}

// probe returns the session as it is after a probe that proved it: Set-Cookie
// lines of the probe replace older values. Whatever of the secrets and cookies a
// site sends back as a name is not shown.
func (e *entry) probe(ctx context.Context, s *Session, f login.Findings, secrets ...string) (*Session, error) {
	s = s.at(e.k.clock.shifted.Load())
	x := e.exchange(s.jar.Clone(), false, s.path)
	defer x.Close()
	id, err := e.as(f).Probe(ctx, x)
	if err != nil {
		return nil, err
	}
	if !e.site.Expect.Met(id) {
		if p := e.site.password(); p != nil {
			if stored, err := p.Load(); err == nil {
				secrets = append(secrets, stored.Reveal())
			}
		}
		for _, v := range slices.Concat(secrets, s.jar.Values(), x.Jar().Values()) {
			if len(v) >= 4 && strings.Contains(id.Name, v) { // a shorter one is in many a name
				id.Name = redacted
			}
		}
		return nil, e.wrongIdentity(id)
	}
	jar := e.keepShared(s.jar, x.Jar())
	if jar.Living(x.Now()) == 0 {
		return nil, &api.Error{Code: api.Expired, Detail: "the site answered the proof by taking the cookies away"}
	}
	p := *s
	p.restored = false
	if now := x.Now(); p.LoginTime.After(now) { // by a clock that was wrong
		p.LoginTime = now
	}
	p.Identity, p.Unproven, p.ProveTime, p.jar = id.Name, id.Unproven, x.Now(), jar
	if p.ends(); !p.ExpireTime.Equal(s.ExpireTime) {
		p.life = p.ExpireTime.Sub(p.ProveTime)
	}
	return &p, nil
}

// redacted stands for what must not be shown.
const redacted = "[redacted]"

func (e *entry) wrongIdentity(id login.Identity) error {
	if id.Unproven {
		return &api.Error{Code: api.WrongIdentity, Detail: "the site does not say whose session it is",
			Remedy: "set identity = \"" + login.Unproven + "\" for this site to accept that"}
	}
	if id.Name == redacted {
		return &api.Error{Code: api.WrongIdentity, Detail: "the site names the user by a secret, " + redacted, Remedy: "find the name elsewhere in its answer: check identity_…"}
	}
	where := "for this site"
	if e.site.isIdP {
		where = "in [idp." + e.site.Name + "]"
	}
	return &api.Error{Code: api.WrongIdentity, Detail: "the site says the session is " + printable(id.Name) + "'s, not " + strings.Join(e.site.Expect.Names, "'s or ") + "'s",
		Remedy: "if that is the same person, set identity = \"" + printable(id.Name) + "\" " + where}
}

// printable shortens what a server sent to what may stand in a message.
func printable(s string) string {
	r := []rune(api.Clean(s[:min(len(s), 80*utf8.UTFMax)]))
	return strings.ReplaceAll(string(r[:min(len(r), 80)]), `"`, "'")
}
