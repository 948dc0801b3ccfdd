package keeper

import (
	"context"
	"crypto/rand"
	"log/slog"
	"runtime/debug"
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
}

// flight is one probe or login, with everybody who waits for it.
type flight struct {
	login bool // a login from the start, not a probe
	done  chan struct{}
	err   *api.Error
}

// want is what one caller needs.
type want struct {
	minValidity time.Duration
	cachedOnly  bool
	strict      bool   // an error rather than a stale session
	force       bool   // no waiting for the end of a back-off
	not         string // any generation but this
	proof       int    // at least this many proofs
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
	case s.ProveTime.After(now), now.Sub(s.ProveTime) >= e.site.Recheck:
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
			f = e.launch(n)
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
		waited = f
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
func (e *entry) launch(n need) *flight {
	f := &flight{login: n == aLogin, done: make(chan struct{})}
	e.flight = f
	session := e.session
	e.k.flights.Go(func() {
		err := e.safely(f.login, session)
		e.mu.Lock()
		defer e.mu.Unlock()
		f.err = err
		if err == nil {
			e.failure, e.failures, e.retryAt = nil, 0, time.Time{}
		} else {
			e.failure, e.failures = err, e.failures+1
			if guarded(err.Code) {
				e.retryAt = time.Time{}
			} else {
				e.retryAt = time.Now().Add(backOff(e.failures))
			}
		}
		e.flight = nil
		close(f.done)
	})
	return f
}

// safely is work; a driver that panics fails its own login, not the agent.
func (e *entry) safely(makeNew bool, old *Session) (err *api.Error) {
	defer func() {
		if r := recover(); r != nil {
			e.log.Error("panic in a login", "panic", r, "stack", string(debug.Stack()))
			err = &api.Error{Code: api.Unknown, Detail: "the agent failed inside; its log has more"}
		}
	}()
	return e.work(makeNew, old)
}

// guarded reports whether a failure needs no back-off, because the next
// attempt costs nobody anything: a latch answers, or a local file is read.
// So a mended file or a new key counts at once.
func guarded(c api.Code) bool {
	switch c {
	case api.Latched, api.StoreDamaged, api.KeytabUnreadable, api.Krb5ConfInvalid:
		return true
	}
	return c.Refusal()
}

// work proves the session, or makes a new one, and publishes it.
func (e *entry) work(makeNew bool, old *Session) *api.Error {
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
	started := time.Now()
	var s *Session
	err := e.site.Ready()
	if err == nil {
		s, err = e.login()
	}
	if err != nil {
		e.k.failures.Add(1)
		f := *api.AsError(err)
		if f.Code == api.Latched || f.Code == api.StoreDamaged || f.Code.Refusal() {
			f.Remedy = strings.TrimPrefix(f.Remedy+", or: ", ", or: ") + "sessionctl login " + e.site.Name + " --retry"
		}
		e.log.Warn("the login failed", "code", f.Code, "detail", f.Detail)
		return &f
	}
	e.k.logins.Add(1)
	e.log.Info("logged in", "user", s.Identity, "generation", s.Generation, "took", time.Since(started).Round(time.Millisecond))
	e.publish(s, nil)
	return nil
}

// login makes a new session and proves it.
func (e *entry) login() (*Session, error) {
	ctx, cancel := context.WithTimeout(e.k.ctx, loginTimeout)
	defer cancel()
	x := e.site.Exchange(new(web.Jar), true)
	err := e.site.Driver.Login(ctx, x)
	x.Close()
	if err != nil {
		return nil, err
	}
	s, err := e.probe(ctx, &Session{Site: e.site.Name, Generation: rand.Text(), LoginTime: time.Now(), jar: x.Jar()})
	if api.CodeOf(err) == api.Expired {
		return nil, &api.Error{Code: api.LoginOKButProbeFailed, Detail: "the login looked good, but " + api.AsError(err).Detail,
			Remedy: "check probe_url and how it names the user", Err: err}
	}
	return s, err
}

// prove asks the site about a session.
func (e *entry) prove(s *Session) (*Session, error) {
	ctx, cancel := context.WithTimeout(e.k.ctx, probeTimeout)
	defer cancel()
	return e.probe(ctx, s)
}

// probe returns the session as it is after a probe that proved it: Set-Cookie
// lines of the probe replace older values.
func (e *entry) probe(ctx context.Context, s *Session) (*Session, error) {
	x := e.site.Exchange(s.jar.Clone(), false)
	defer x.Close()
	id, err := e.site.Driver.Probe(ctx, x)
	if err != nil {
		return nil, err
	}
	if !e.site.Expect.Met(id) {
		return nil, e.wrongIdentity(id)
	}
	p := *s
	p.Identity, p.Unproven, p.ProveTime, p.jar = id.Name, id.Unproven, time.Now(), x.Jar()
	if end := p.earliest(e.site.URL, p.ProveTime); !end.Equal(s.ExpireTime) {
		p.ExpireTime, p.life = end, end.Sub(p.ProveTime)
	}
	return &p, nil
}

func (e *entry) wrongIdentity(id login.Identity) error {
	if id.Unproven {
		return &api.Error{Code: api.WrongIdentity, Detail: "the site does not say whose session it is",
			Remedy: "set identity = \"" + login.Unproven + "\" for this site to accept that"}
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
func (e *entry) forget() error {
	e.mu.Lock()
	e.session, e.stale, e.notDurable = nil, false, false
	e.mu.Unlock()
	if err := e.swap(nil); err != nil {
		e.log.Error("the stored session could not be removed", "err", err)
		return &api.Error{Code: api.StoreFailed, Detail: "the stored session could not be removed: " + api.AsError(err).Detail, Err: err, Remedy: api.AsError(err).Remedy}
	}
	return nil
}

// drop is forget for a caller: after the work under way.
func (e *entry) drop(ctx context.Context) error {
	for {
		e.mu.Lock()
		e.load()
		f := e.flight
		if f == nil {
			// A flight of its own, so that no login starts meanwhile.
			f = &flight{done: make(chan struct{})}
			e.flight = f
			e.mu.Unlock()
			err := e.forget()
			e.mu.Lock()
			e.flight = nil
			close(f.done)
			e.mu.Unlock()
			return err
		}
		e.mu.Unlock()
		select {
		case <-f.done:
		case <-ctx.Done():
			return callerError(ctx.Err())
		}
	}
}

func (e *entry) summary() Summary {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.load()
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
	case e.failure != nil && (e.failure.Code == api.Latched || e.failure.Code.Refusal()):
		s.State = Latched
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
