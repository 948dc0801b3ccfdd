package keeper

import (
	"cmp"
	"context"
	"log/slog"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/web"
)

// patience is how long a caller waits for the end of a back-off rather than
// being told to come again.
const patience = 2 * time.Second

// entry is the one session of a site and user, and the work under way for it.
type entry struct {
	k        *Keeper
	site     Site
	provider *entry // the identity provider whose session logs in, nil if there is none
	log      *slog.Logger

	mu        sync.Mutex
	loaded    bool     // the stored record is known
	unread    bool     // it could not be read yet
	revision  uint64   // of the stored record
	session   *Session // nil: none
	proofs    int      // probes that found the session alive
	stale     bool
	unwritten bool       // the stored record is not what is served
	failure   *api.Error // why the last login or probe failed, nil after a success
	failures  int        // in a row
	retryAt   time.Time  // the end of the back-off
	noLogin   bool       // which is of logins, not of probes
	flight    *flight
	recent    []time.Time   // automatic logins that succeeded, the last maxLogins
	changed   chan struct{} // closed at the end of each flight
	retired   bool          // a reload has put another in its place, or none
	shifted   int64         // what Clock.shifted was for its times
	// Of an identity provider: turn is of the site that has its cookies alone, which
	// none needs while they are steady, the same after a visit as before.
	turn   chan struct{}
	steady atomic.Bool

	asked   time.Time // when it was last handed out
	endAt   time.Time // when it ends, as far as known; zero: it is not
	renewAt time.Time // when it is made anew, ahead of that
	// notAheadUntil is when that is tried again after it has failed.
	notAheadUntil time.Time
	life          lifetimes
	lifeUnwritten bool // its stored record is not what was learned
	plans         int  // sessions made anew, or not, because of what was learned
	// found is what the site is like, nil if nobody has looked yet.
	found   atomic.Pointer[finding]
	glanced time.Time // when somebody has had a short look last
	// ended is when a session of the site was found dead last, lost what it had.
	ended time.Time
	lost  *web.Jar
	// doubted is how often the provider had another session, or none, and settled how
	// often the session has been proven to know of.
	doubted, settled int
	doubts           []time.Time // when the provider's was doubted because of this one, of late

	// Of the agenda, and under its lock:
	due  time.Time // zero: it is not listed
	slot int
}

// flight is one probe or login, with everybody who waits for it.
type flight struct {
	login bool // a login from the start, not a probe
	moot  bool // its one caller's own, and it has failed; or the agent's, about what is there
	launchOptions
	needs   []string // what others need, too
	doubted int      // what the entry's was when it began
	done    chan struct{}
	err     *api.Error
	// notAhead is why a session that lives could not be made anew.
	notAhead *api.Error
}

// launchOptions say what a flight is for.
type launchOptions struct {
	force      bool // see Keeper.Refresh
	ahead      bool // a session that is near its end is made anew after the probe
	background bool // nobody waits for it: it is one of maxBackground
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
	case e.proofs < w.proof, e.stale, e.doubted != e.settled, s.restored, s.changed(now), e.overtaken(s):
		return aProbe
	case s.ProveTime.After(now), now.Sub(s.ProveTime) >= cmp.Or(w.fresh, e.goodFor()):
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
		e.k.checkClock()
		e.mu.Lock()
		if e.retired {
			e.mu.Unlock()
			return Served{}, errRetired
		}
		e.load()
		now := e.k.clock.Now()
		n := e.need(w, now)
		if n == nothing || e.satisfies(w, n, waited) {
			served := e.handOut(now)
			e.mu.Unlock()
			return served, nil
		}
		// What lives may be served, flagged, while nothing better can be had.
		old := e.served()
		old.Stale = true
		alive := !w.strict && e.session != nil && e.session.Generation != w.not && !e.session.ended(now) && !e.overtaken(e.session)
		usable := alive && n != aLogin
		if w.cachedOnly {
			if usable {
				e.handOut(now)
			}
			e.mu.Unlock()
			if usable {
				return old, nil
			}
			return Served{}, &api.Error{Code: api.NotCached, Detail: "no session is at hand", Remedy: "ask without the limit to what is cached"}
		}
		f := e.flight
		if f == nil {
			var h *held
			if f, h = e.launch(n, launchOptions{force: w.force}); h != nil {
				if alive {
					e.handOut(now)
				}
				e.mu.Unlock()
				switch {
				case alive:
					return old, nil
				case h.trial != nil: // its outcome tells
					select {
					case <-h.trial.done:
					case <-ctx.Done():
						return Served{}, callerError(ctx.Err())
					}
				case h.wait > patience:
					return Served{}, h.failure()
				default:
					if err := sleep(ctx, h.wait); err != nil {
						return Served{}, callerError(err)
					}
				}
				continue
			}
		}
		known := e.stale
		if usable && known {
			e.handOut(now)
		}
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
		if e.isRetired() { // another configuration counts
			return Served{}, errRetired
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
	now := e.k.clock.Now()
	if e.session == nil || e.session.ended(now) || e.overtaken(e.session) {
		return Served{}, false
	}
	s := e.handOut(now)
	s.Stale = s.Stale || e.need(want{}, now) != nothing
	return s, true
}

func (e *entry) served() Served {
	return Served{Session: e.session, Stale: e.stale, NotDurable: e.unwritten}
}

// handOut returns the session for a caller. From now on it counts as used; and if
// it is near its end, it is made anew behind the caller's back. The caller holds
// the lock.
func (e *entry) handOut(now time.Time) Served {
	e.asked = now
	switch {
	case e.flight != nil || e.session == nil || e.retired:
	case e.renewal(now) && e.hold(aLogin, now, nil) == nil:
		e.launch(aProbe, launchOptions{ahead: true})
	case e.k.agenda.at(e).IsZero():
		e.schedule()
	}
	return e.served()
}

func (e *entry) isRetired() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.retired
}

// needs returns what work needs that others need, too. See circuits.
func (e *entry) needs(n need) []string {
	all := []string{web.OriginOf(e.site.URL).String()}
	if n == aLogin {
		all = append(all, e.realm()...)
	}
	return all
}

// realm is what only logins need.
func (e *entry) realm() []string {
	if e.site.Realm == "" {
		return nil
	}
	return []string{realmOutage + e.site.Realm}
}

// hold returns what stands against work now, nil if nothing does: a failure of its
// own, or what others have seen (see circuits.hold). The caller holds the lock.
func (e *entry) hold(n need, now time.Time, f *flight) *held {
	if wait := e.retryAt.Sub(now); wait > 0 && (n == aLogin || !e.noLogin) {
		return &held{wait: wait, why: e.failure}
	}
	return e.k.circuits.hold(e.needs(n), now, f)
}

// failure is the answer for who cannot wait.
func (h *held) failure() *api.Error {
	f := *h.why
	f.Detail += "; next attempt in " + max(h.wait.Round(time.Second), time.Second).String()
	return &f
}

// launch starts the work, unless something stands against it. The caller holds the
// lock.
func (e *entry) launch(n need, o launchOptions) (*flight, *held) {
	f := &flight{login: n == aLogin, launchOptions: o, needs: e.needs(n), doubted: e.doubted, done: make(chan struct{})}
	if h := e.hold(n, e.k.clock.Now(), f); h != nil && !o.force {
		return nil, h
	}
	e.flight = f
	session := e.session
	if o.background {
		e.k.background.Add(1)
	}
	e.k.flights.Go(func() {
		err := e.safely(func() *api.Error { return e.work(f, session) })
		guarded := err != nil && e.guarded(f, err.Code)
		e.mu.Lock()
		defer e.mu.Unlock()
		now := e.k.clock.Now()
		f.err = err
		opened := e.k.circuits.settle(f.needs, f, cmp.Or(err, f.notAhead), now)
		switch {
		case err == nil && f.notAhead == nil && !f.login && e.noLogin && e.retryAt.After(now):
			// A proof says nothing about logins.
		case err == nil && f.notAhead == nil:
			e.failure, e.failures, e.retryAt = nil, 0, time.Time{}
		case err == nil: // renewAt says when the next attempt is
			e.failure, e.failures, e.retryAt, e.noLogin = f.notAhead, e.failures+1, time.Time{}, true
			if told, ok := web.RetryAfter(f.notAhead); ok { // also if the session ends before
				e.retryAt = now.Add(told)
			}
		default:
			e.failure, e.failures, e.retryAt, e.noLogin = err, e.failures+1, time.Time{}, f.login && !e.stale
			if !guarded && !opened {
				wait := backOff(e.failures)
				if told, ok := web.RetryAfter(err); ok { // nobody comes earlier, and not all at once
					wait += told
				}
				e.retryAt = now.Add(wait)
			}
		}
		if o.background {
			e.k.background.Add(-1)
		}
		e.end(f)
	})
	return f, nil
}

// goOn has a probe's flight go on with a login, unless something stands against
// that.
func (e *entry) goOn(f *flight) *api.Error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if f.login {
		return nil
	}
	f.login = true
	realm := e.realm()
	if h := e.k.circuits.hold(realm, e.k.clock.Now(), f); h != nil {
		return h.failure()
	}
	f.needs = append(f.needs, realm...)
	return nil
}

// end ends a flight. The caller holds the lock.
func (e *entry) end(f *flight) {
	e.flight = nil
	close(f.done)
	close(e.changed)
	e.changed = make(chan struct{})
	e.schedule()
}

// alone does something about the session while no other work is under way, and
// goes on with it when its caller has left. Those who meanwhile want the session
// wait for it, and then see for themselves. It returns the session that is there
// afterwards.
func (e *entry) alone(ctx context.Context, do func() *api.Error) (Served, error) {
	f := &flight{login: true, done: make(chan struct{})}
	for {
		e.mu.Lock()
		if e.retired {
			e.mu.Unlock()
			return Served{}, errRetired
		}
		e.load()
		other := e.flight
		if other == nil {
			e.flight, f.doubted = f, e.doubted
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
			e.k.circuits.forget(e.needs(aProbe))
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

// guarded reports whether a flight's failure needs no back-off, because the next
// attempt costs nobody anything: a latch answers, or a local file is read.
// So a mended file or a new key counts at once.
func (e *entry) guarded(f *flight, c api.Code) bool {
	if e.site.Fallback != nil && e.ready(nil) == nil {
		return false // the site is asked before the password is
	}
	switch c {
	case api.Latched, api.NoSecret, api.StoreDamaged, api.KeytabUnreadable, api.CCacheUnusable, api.NoTicket, api.Krb5ConfInvalid:
		return true
	}
	return (f.login || c.Refusal()) && e.ready(e.attempt(nil)) != nil
}

// publish stores a proven session and then lets it be served. A session that
// differs from old in nothing but the time of its proof is not written again.
func (e *entry) publish(s, old *Session) {
	e.mu.Lock()
	changed := e.unwritten || old == nil || !old.jar.Equal(s.jar) || s.stored != s.shifted || old.path != s.path
	e.mu.Unlock()
	if changed {
		e.keep(s) // else it is served all the same
	}
	if old == nil {
		defer e.k.doubt(e) // without the lock
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.session, e.stale, e.proofs = s.at(e.k.clock.shifted.Load()), false, e.proofs+1
	if e.flight != nil {
		e.settled = e.flight.doubted
	}
	if old == nil {
		e.notAheadUntil = time.Time{}
		if _, learned := e.lifetime(); learned {
			e.plans++
		}
	}
	e.plan()
}

// load reads the stored session at first use, and again if that fails: the store may be
// about to be mended. The caller holds the lock.
func (e *entry) load() {
	if e.loaded {
		return
	}
	if !e.unread || e.life == (lifetimes{}) && e.found.Load() == nil { // nor has anything been learned since
		e.loadLife()
	}
	record, revision, err := e.k.o.Records.Load(e.key())
	if err != nil {
		if !e.unread {
			e.log.Error("the stored session cannot be read", "err", err)
		}
		e.unread = true
		return
	}
	e.loaded, e.unread = true, false
	e.revision = revision
	if record == nil {
		return
	}
	s, err := decodeSession(record, e.site.Fingerprint, e.k.clock, e.site.URL)
	if err != nil {
		e.log.Info("the stored session is not used", "why", err)
		return
	}
	s.Site = e.site.Name
	e.session = s
	e.plan()
}

// forget removes the session everywhere.
func (e *entry) forget() *api.Error {
	e.mu.Lock()
	// Nobody reads it any more, also if it could not be read so far.
	e.loaded, e.session, e.stale, e.renewAt, e.endAt = true, nil, false, time.Time{}, time.Time{}
	e.mu.Unlock()
	e.k.doubt(e)
	if err := e.keep(nil); err != nil {
		return &api.Error{Code: api.StoreFailed, Detail: "the session is gone, but what is stored of it could not be removed yet, which is tried again: " + api.AsError(err).Detail, Err: err,
			Remedy: cmp.Or(api.AsError(err).Remedy, "see that the store can be written: sessionctl status")}
	}
	return nil
}

func (e *entry) summary() Summary {
	e.mu.Lock()
	e.load()
	next := e.session == nil && !e.busy() // a login
	e.mu.Unlock()
	// What stands against it may have come, or gone, since the last one: by way of
	// another site, or a restart.
	var ready error
	if next {
		ready = e.ready(e.attempt(nil))
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	now := e.k.clock.Now()
	s := Summary{Site: e.site, Found: e.findings(), Session: e.session, Failure: e.failure, NotDurable: e.unwritten && e.session != nil}
	s.Life, s.LifeLearned = e.lifetime()
	s.Idle, s.IdleLearned = e.idle()
	if h := e.hold(e.next(), now, nil); h != nil && h.trial == nil {
		s.RetryTime = now.Add(h.wait)
		s.Failure = cmp.Or(s.Failure, h.why)
	}
	if e.lately(now) || e.site.KeepAlive {
		if s.CheckTime = e.k.agenda.at(e); e.flight != nil {
			s.CheckTime = now
		}
	}
	switch {
	case e.session != nil && (e.stale || e.need(want{}, now) != nothing && e.hold(aProbe, now, nil) != nil):
		s.State = Stale
	case e.session != nil:
		s.State = Live
	case e.busy():
		s.State = LoggingIn
	case ready != nil:
		s.Failure = e.remedied(e.throughIdP(ready), nil)
		if s.Failure.Code == api.Latched {
			s.State = Latched
		}
	case next && e.failure != nil && (e.failure.Code == api.Latched || e.failure.Code.Refusal()):
		s.Failure = nil // nothing stands any more
	}
	return s
}

// busy reports whether the site is asked for something. The caller holds the lock.
func (e *entry) busy() bool { return e.flight != nil && !e.flight.moot }

// key is that of the entry's records.
func (e *entry) key() string { return e.site.key() }

func (s *Site) key() string {
	key := s.ID + "\x00" + s.Account
	if s.isIdP { // which may have a site's name
		key = "idp\x00" + key
	}
	return key
}

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
