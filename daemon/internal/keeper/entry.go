package keeper

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/login"
	"github.com/sessionctl/sessionctl/daemon/internal/web"
)

// patience is how long a caller waits for the end of a back-off rather than
// being told to come again.
const patience = 2 * time.Second

// entry is the one session of a site and user, and the work under way for it.
type entry struct {
	k    *Keeper
	site Site
	log  *slog.Logger

	mu         sync.Mutex
	loaded     bool
	revision   uint64   // of the stored record
	session    *Session // nil: none
	proofs     int      // probes that found the session alive
	stale      bool
	notDurable bool
	failure    *api.Error // why the last login or probe failed, nil after a success
	failures   int        // in a row
	retryAt    time.Time  // the end of the back-off
	flight     *flight
	recent     []time.Time   // automatic logins that succeeded, the last maxLogins
	changed    chan struct{} // closed at the end of each flight
}

// flight is one probe or login, with everybody who waits for it.
type flight struct {
	login bool // a login from the start, not a probe
	moot  bool // its one caller's own, and it has failed
	done  chan struct{}
	err   *api.Error
}

// want is what one caller needs.
type want struct {
	minValidity time.Duration
	cachedOnly  bool
	strict      bool          // an error rather than a stale session
	force       bool          // no waiting for the end of a back-off
	not         string        // any generation but this
	proof       int           // at least this many proofs
	fresh       time.Duration // a proof that is no older will do; 0: as the site has it
}

// need is what has to happen before a session can be served.
type need int

const (
	nothing need = iota
	aProbe
	aLogin
)

func (e *entry) need(w want, now time.Time) need {
	s := e.session
	switch {
	case s == nil, s.Generation == w.not, s.ended(now), s.endsWithin(w.minValidity, now):
		return aLogin
	case e.proofs < w.proof, e.stale, s.changed(now):
		return aProbe
	case s.ProveTime.After(now), now.Sub(s.ProveTime) >= cmp.Or(w.fresh, e.site.Recheck):
		return aProbe
	}
	return nothing
}

// satisfies reports whether the session is what a caller wants after a flight
// that it has waited for: whatever a login brought, and whatever a probe proved
// unless only a login could have helped.
func (e *entry) satisfies(w want, n need, waited *flight) bool {
	return waited != nil && e.session != nil && e.session.Generation != w.not && e.proofs >= w.proof &&
		(waited.login || n == aProbe)
}

// get is the heart: serve, join the work under way, or start it.
func (e *entry) get(ctx context.Context, w want) (Served, error) {
	var waited *flight
	for {
		if err := ctx.Err(); err != nil {
			return Served{}, callerError(err)
		}
		e.mu.Lock()
		e.load()
		now := time.Now()
		n := e.need(w, now)
		if n == nothing || e.satisfies(w, n, waited) {
			served := e.served()
			e.mu.Unlock()
			return served, nil
		}
		// What lives may be served, flagged, while nothing better can be had.
		old := e.served()
		old.Stale = true
		alive := !w.strict && e.session != nil && e.session.Generation != w.not && !e.session.ended(now)
		usable := alive && n != aLogin
		if w.cachedOnly {
			e.mu.Unlock()
			if usable {
				return old, nil
			}
			return Served{}, &api.Error{Code: api.NotCached, Detail: "no session is at hand", Remedy: "ask without the limit to what is cached"}
		}
		f := e.flight
		if f == nil {
			if wait := e.retryAt.Sub(now); wait > 0 && !w.force {
				held := e.held(wait)
				e.mu.Unlock()
				if alive {
					return old, nil
				}
				if wait > patience {
					return Served{}, held
				}
				if err := sleep(ctx, wait); err != nil {
					return Served{}, callerError(err)
				}
				continue
			}
			f = e.launch(n, w.force)
		}
		known := e.stale
		e.mu.Unlock()
		if usable && known {
			return old, nil // that the site is silent is known; the probe goes on without us
		}
		enough, err := e.wait(ctx, f, usable)
		if err == nil && enough {
			// Half of the caller's time is over. What the work has found out so far
			// counts: a session that is dead by now is gone.
			if s, ok := e.lives(); ok && s.Generation == old.Generation {
				return s, nil
			}
			_, err = e.wait(ctx, f, false)
		}
		if err != nil {
			return Served{}, callerError(err)
		}
		if f.err != nil {
			if !w.strict {
				if s, ok := e.lives(); ok {
					return s, nil
				}
			}
			return Served{}, f.err
		}
		if !f.moot {
			waited = f
		}
	}
}

// wait waits for the end of a flight. A caller who could be served without it
// waits no longer than half of its time, which is then enough.
func (e *entry) wait(ctx context.Context, f *flight, usable bool) (enough bool, err error) {
	var half <-chan time.Time
	if end, ok := ctx.Deadline(); ok && usable {
		t := time.NewTimer(time.Until(end) / 2)
		defer t.Stop()
		half = t.C
	}
	select {
	case <-f.done:
		return false, nil
	case <-half:
		return true, nil
	case <-ctx.Done():
		return false, ctx.Err()
	}
}

// lives returns the session if it may be served although the site or the KDC
// is out of reach.
func (e *entry) lives() (Served, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := time.Now()
	if e.session == nil || e.session.ended(now) {
		return Served{}, false
	}
	s := e.served()
	s.Stale = s.Stale || e.need(want{}, now) != nothing
	return s, true
}

func (e *entry) served() Served {
	return Served{Session: e.session, Stale: e.stale, NotDurable: e.notDurable}
}

// held is the answer during a back-off.
func (e *entry) held(wait time.Duration) error {
	h := *e.failure
	h.Detail += "; next attempt in " + max(wait.Round(time.Second), time.Second).String()
	return &h
}

// launch starts the work. The caller holds the lock.
func (e *entry) launch(n need, force bool) *flight {
	f := &flight{login: n == aLogin, done: make(chan struct{})}
	e.flight = f
	session := e.session
	e.k.flights.Go(func() {
		err := e.safely(func() *api.Error { return e.work(f.login, force, session) })
		guarded := err != nil && e.guarded(err.Code)
		e.mu.Lock()
		defer e.mu.Unlock()
		f.err = err
		if err == nil {
			e.failure, e.failures, e.retryAt = nil, 0, time.Time{}
		} else {
			e.failure, e.failures = err, e.failures+1
			if guarded {
				e.retryAt = time.Time{}
			} else {
				e.retryAt = time.Now().Add(backOff(e.failures))
			}
		}
		e.end(f)
	})
	return f
}

// end ends a flight. The caller holds the lock.
func (e *entry) end(f *flight) {
	e.flight = nil
	close(f.done)
	close(e.changed)
	e.changed = make(chan struct{})
}

// alone does something about the session while no other work is under way, and
// goes on with it when its caller has left. Those who meanwhile want the session
// wait for it, and then see for themselves. It returns the session that is there
// afterwards.
func (e *entry) alone(ctx context.Context, do func() *api.Error) (Served, error) {
	f := &flight{login: true, done: make(chan struct{})}
	for {
		e.mu.Lock()
		e.load()
		other := e.flight
		if other == nil {
			e.flight = f
			e.mu.Unlock()
			break
		}
		e.mu.Unlock()
		select {
		case <-other.done:
		case <-ctx.Done():
			return Served{}, callerError(ctx.Err())
		}
	}
	var err *api.Error // safe to read after f.done
	e.k.flights.Go(func() {
		err = e.safely(do)
		e.mu.Lock()
		defer e.mu.Unlock()
		f.moot = err != nil
		if err == nil && e.session != nil { // without one it says nothing about logins
			e.failure, e.failures, e.retryAt = nil, 0, time.Time{}
		}
		e.end(f)
	})
	select {
	case <-f.done:
	case <-ctx.Done():
		return Served{}, callerError(ctx.Err())
	}
	if err != nil {
		return Served{}, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.served(), nil
}

// safely does work; a driver that panics fails its own login, not the agent.
func (e *entry) safely(work func() *api.Error) (err *api.Error) {
	defer func() {
		if r := recover(); r != nil {
			e.log.Error("panic in a login", "panic", r, "stack", string(debug.Stack()))
			err = &api.Error{Code: api.Unknown, Detail: "the agent failed inside; its log has more"}
		}
	}()
	return work()
}

// guarded reports whether a failure needs no back-off, because the next
// attempt costs nobody anything: a latch answers, or a local file is read.
// So a mended file or a new key counts at once.
func (e *entry) guarded(c api.Code) bool {
	if e.site.Fallback != nil && e.ready(nil) == nil {
		return false // the site is asked before the password is
	}
	switch c {
	case api.Latched, api.NoSecret, api.StoreDamaged, api.KeytabUnreadable, api.CCacheUnusable, api.NoTicket, api.Krb5ConfInvalid:
		return true
	}
	return c.Refusal() && e.ready(e.attempt(nil)) != nil
}

// work proves the session, or makes a new one, and publishes it. Unless it is
// forced, there is no end of logins that a site undoes, or somebody who may use
// the session.
func (e *entry) work(makeNew, force bool, old *Session) *api.Error {
	if !makeNew {
		s, err := e.prove(old)
		switch code := api.CodeOf(err); {
		case err == nil:
			e.publish(s, old)
			return nil
		case code != api.Expired && code != api.WrongIdentity:
			// The site could not say. The session stays.
			e.log.Warn("the session could not be proved", "code", code, "detail", api.AsError(err).Detail)
			e.mu.Lock()
			e.stale = true
			e.mu.Unlock()
			return api.AsError(err)
		default:
			e.log.Info("the session has ended", "code", code, "detail", api.AsError(err).Detail)
			e.forget()
		}
	}
	if force {
		return e.renew(nil)
	}
	now := time.Now()
	if len(e.recent) == maxLogins && now.Sub(e.recent[0]) < loginWindow {
		return &api.Error{Code: api.Quota, Detail: fmt.Sprintf("%d sessions have died within %v of their login", maxLogins, loginWindow),
			Remedy: "find out who ends them: the site, or a caller that logs out there"}
	}
	if err := e.renew(nil); err != nil {
		return err
	}
	e.recent = append(e.recent[max(0, len(e.recent)-maxLogins+1):], now)
	return nil
}

// renew logs in and publishes the new session. A password that is offered takes
// the place of the stored one.
func (e *entry) renew(offered *attempt) *api.Error {
	started := time.Now()
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
	e.log.Info("logged in", "user", s.Identity, "generation", s.Generation, "took", time.Since(started).Round(time.Millisecond))
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

// remedied adds the ways out that only a person has. A password that was offered
// and refused is not at hand for the next attempt.
func (e *entry) remedied(err error, offered *attempt) *api.Error {
	f := *api.AsError(err)
	login := "sessionctl login " + e.site.Name
	p := e.site.password()
	if e.site.Bring != nil {
		p = e.site.Brought
	}
	bring := p != nil && p.file == ""
	captcha := errors.Is(err, &api.Error{Code: api.Captcha})
	stands := f.Code == api.Latched || f.Code == api.StoreDamaged || f.Code.Refusal()
	ways := e.waysAtProxy(&f)
	if bring && f.Code == api.NoSecret {
		ways = append(ways, login+" --password-stdin", login+" --cookie-stdin")
	}
	if bring && stands && !captcha {
		ways = append(ways, login+" --password-stdin")
	}
	switch {
	case !stands:
	case offered != nil:
		ways = append(ways, login+" --password-stdin --retry")
	default:
		ways = append(ways, login+" --retry")
	}
	way := strings.Join(ways, ", or: ")
	switch {
	case f.Remedy == "" || way == "":
		f.Remedy += way
	case captcha:
		f.Remedy += ", then: " + way
	default:
		f.Remedy += ", or: " + way
	}
	return &f
}

// waysAtProxy are the ways out of a failure to prove to the site's proxy who one
// is.
func (e *entry) waysAtProxy(f *api.Error) (ways []string) {
	if e.site.ForgiveProxy == nil || f.Code != api.ProxyAuthFailed && f.Code != api.ProxyAuthRequired {
		return nil
	}
	login, p := "sessionctl login "+e.site.Name, e.site.ProxyPassword
	why := api.CodeOf(f.Err) // of a credential that was not used
	if p != nil && p.file == "" && (f.Code == api.ProxyAuthFailed || why == api.NoSecret) {
		ways = append(ways, login+" --proxy --password-stdin")
	}
	if f.Code == api.ProxyAuthFailed && (p != nil || why == api.Latched || why.Refusal()) {
		ways = append(ways, login+" --retry")
	}
	return ways
}

// ready returns what keeps the site's credential from being used. a is nil
// unless that is a password.
func (e *entry) ready(a *attempt) error {
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
	s, err = e.newSession(ctx, a)
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
	return e.newSession(ctx, a)
}

// newSession logs in and proves the session. a is nil unless a password is lent.
func (e *entry) newSession(ctx context.Context, a *attempt) (*Session, error) {
	var lent login.Password // a nil *attempt in it would not be nil
	if a != nil {
		lent = a
	}
	x := e.site.Exchange(new(web.Jar), a == nil)
	err := e.site.Driver.Login(ctx, x, lent)
	x.Close()
	if err != nil {
		return nil, err
	}
	var secrets []string
	if a != nil {
		secrets = []string{a.secret.Reveal()}
	}
	s, err := e.probe(ctx, &Session{Site: e.site.Name, Generation: rand.Text(), LoginTime: time.Now(), jar: x.Jar()}, secrets...)
	if api.CodeOf(err) == api.Expired {
		return nil, &api.Error{Code: api.LoginOKButProbeFailed, Detail: "the login looked good, but " + api.AsError(err).Detail,
			Remedy: "check the site's url, and its probe_url and identity_… if it has them", Err: err}
	}
	return s, err
}

// adopt publishes a session that a person made elsewhere, if it is good.
func (e *entry) adopt(jar *web.Jar) *api.Error {
	s, err := e.prove(&Session{Site: e.site.Name, Generation: rand.Text(), LoginTime: time.Now(), jar: jar})
	if err != nil {
		f := *api.AsError(err)
		if f.Code == api.Expired {
			f.Detail, f.Remedy = "the cookie is no login: "+f.Detail, "log in with a browser once more, and take the Cookie header of a request that worked"
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
	d, ok := e.site.Driver.(login.Logouter)
	if !ok {
		return false, nil
	}
	ctx, cancel := context.WithTimeout(e.k.ctx, logoutTimeout)
	defer cancel()
	x := e.site.Exchange(s.jar.Clone(), false)
	defer x.Close()
	if err := d.Logout(ctx, x); err != nil {
		e.log.Warn("the site has not ended the session", "code", api.CodeOf(err), "detail", api.AsError(err).Detail)
		return false, api.AsError(err)
	}
	return true, nil
}

// prove asks the site about a session.
func (e *entry) prove(s *Session) (*Session, error) {
	ctx, cancel := context.WithTimeout(e.k.ctx, probeTimeout)
	defer cancel()
	return e.probe(ctx, s)
}

// probe returns the session as it is after a probe that proved it: Set-Cookie
// lines of the probe replace older values. Whatever of the secrets and cookies a
// site sends back as a name is not shown.
func (e *entry) probe(ctx context.Context, s *Session, secrets ...string) (*Session, error) {
	x := e.site.Exchange(s.jar.Clone(), false)
	defer x.Close()
	id, err := e.site.Driver.Probe(ctx, x)
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
	if x.Jar().Living(time.Now()) == 0 {
		return nil, &api.Error{Code: api.Expired, Detail: "the site answered the proof by taking the cookies away"}
	}
	p := *s
	p.Identity, p.Unproven, p.ProveTime, p.jar = id.Name, id.Unproven, time.Now(), x.Jar()
	if end := p.earliest(e.site.URL, p.ProveTime); !end.Equal(s.ExpireTime) {
		p.ExpireTime, p.life = end, end.Sub(p.ProveTime)
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
	return &api.Error{Code: api.WrongIdentity, Detail: "the site says the session is " + printable(id.Name) + "'s, not " + strings.Join(e.site.Expect.Names, "'s or ") + "'s",
		Remedy: "if that is the same person, set identity = \"" + printable(id.Name) + "\" for this site"}
}

// printable shortens what a server sent to what may stand in a message.
func printable(s string) string {
	r := []rune(api.Clean(s))
	return strings.ReplaceAll(string(r[:min(len(r), 80)]), `"`, "'")
}

// publish stores a proven session and then lets it be served. A session that
// differs from old in nothing but the time of its proof is not written again.
func (e *entry) publish(s, old *Session) {
	e.mu.Lock()
	notDurable, changed := e.notDurable, e.notDurable || old == nil || !old.jar.Equal(s.jar)
	e.mu.Unlock()
	if changed {
		err := e.swap(encodeSession(s, e.site.Fingerprint))
		if notDurable = err != nil; notDurable {
			e.log.Error("the session is not durable", "err", err)
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.session, e.stale, e.notDurable, e.proofs = s, false, notDurable, e.proofs+1
}

// swap replaces the stored record, or deletes it. Only a flight calls it, so
// nobody else changes the record meanwhile.
func (e *entry) swap(record []byte) error {
	e.mu.Lock()
	revision := e.revision
	e.mu.Unlock()
	revision, err := swap(e.k.ctx, e.k.o.Records, e.key(), revision, record)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.revision = revision
	return err
}

// load reads the stored session at first use. The caller holds the lock.
func (e *entry) load() {
	if e.loaded {
		return
	}
	e.loaded = true
	record, revision, err := e.k.o.Records.Load(e.key())
	if err != nil {
		e.log.Error("the stored session cannot be read", "err", err)
		return
	}
	e.revision = revision
	if record == nil {
		return
	}
	s, err := decodeSession(record, e.site.Fingerprint)
	if err != nil {
		e.log.Info("the stored session is not used", "why", err)
		return
	}
	s.Site = e.site.Name
	s.ExpireTime = s.earliest(e.site.URL, s.ProveTime)
	e.session = s
}

// forget removes the session everywhere.
func (e *entry) forget() *api.Error {
	e.mu.Lock()
	e.session, e.stale, e.notDurable = nil, false, false
	e.mu.Unlock()
	if err := e.swap(nil); err != nil {
		e.log.Error("the stored session could not be removed", "err", err)
		return &api.Error{Code: api.StoreFailed, Detail: "the stored session could not be removed: " + api.AsError(err).Detail, Err: err, Remedy: api.AsError(err).Remedy}
	}
	return nil
}

func (e *entry) summary() Summary {
	e.mu.Lock()
	e.load()
	next := e.session == nil && e.flight == nil // a login
	e.mu.Unlock()
	// What stands against it may have come, or gone, since the last one: by way of
	// another site, or a restart.
	var ready error
	if next {
		ready = e.ready(e.attempt(nil))
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	s := Summary{Site: e.site, Session: e.session, Failure: e.failure, NotDurable: e.notDurable}
	if e.retryAt.After(time.Now()) {
		s.RetryTime = e.retryAt
	}
	switch {
	case e.session != nil && e.stale:
		s.State = Stale
	case e.session != nil:
		s.State = Live
	case e.flight != nil:
		s.State = LoggingIn
	case ready != nil:
		s.Failure = e.remedied(ready, nil)
		if s.Failure.Code == api.Latched {
			s.State = Latched
		}
	case next && e.failure != nil && (e.failure.Code == api.Latched || e.failure.Code.Refusal()):
		s.Failure = nil // nothing stands any more
	}
	return s
}

func (e *entry) key() string { return e.site.Name + "\x00" + e.site.Account }

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
