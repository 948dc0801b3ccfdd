package keeper

import (
	"container/heap"
	"math/rand/v2"
	"sync"
	"time"
)

// Limits of what the keeper does by itself.
const (
	// tick is how often the clocks are compared while there is something to look
	// after: timers stand still in a sleep of the machine.
	tick = 15 * time.Second
	// spread is over how long that is spread which all comes due at once, after a
	// sleep or a step of the clock.
	spread = 15 * time.Second
	// minInterval is how long a session is left alone at least, whatever its
	// site's recheck.
	minInterval = 30 * time.Second
	// minUse is how long a session counts as used after somebody has asked for it,
	// at least.
	minUse = 10 * time.Minute
	// maxBackground is how many sessions are looked after at once.
	maxBackground = 16
)

// agenda says which session is to be looked after when: a heap and one timer.
type agenda struct {
	k *Keeper

	mu     sync.Mutex
	queue  queue
	timer  *time.Timer // nil until there is something in the queue
	closed bool
	// What the clocks showed at the last tick: one that stands still in a sleep,
	// and the agent's.
	still, awake time.Time
}

// queue is a heap of entries by what is due first.
type queue []*entry

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].due.Before(q[j].due) }
func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].slot, q[j].slot = i, j
}
func (q *queue) Push(x any) {
	e := x.(*entry)
	e.slot = len(*q)
	*q = append(*q, e)
}
func (q *queue) Pop() any {
	e := (*q)[len(*q)-1]
	*q = (*q)[:len(*q)-1]
	e.due = time.Time{}
	return e
}

// put has a session looked after at a time; never, if that is zero.
func (a *agenda) put(e *entry, at time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch listed := !e.due.IsZero(); {
	case a.closed:
		return
	case at.IsZero() && listed:
		heap.Remove(&a.queue, e.slot)
	case at.IsZero():
	case listed:
		e.due = at
		heap.Fix(&a.queue, e.slot)
	default:
		e.due = at
		heap.Push(&a.queue, e)
	}
	a.arm()
}

// at returns when a session is looked after, zero for never.
func (a *agenda) at(e *entry) time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	return e.due
}

// arm sets the timer. The caller holds the lock.
func (a *agenda) arm() {
	switch {
	case len(a.queue) == 0:
		if a.timer != nil {
			a.timer.Stop()
			a.timer = nil
		}
		return
	case a.timer == nil: // it was idle, and may have slept
		a.still, a.awake = time.Now(), a.k.clock.Now()
	default:
		a.timer.Stop()
	}
	wait := min(max(a.queue[0].due.Sub(a.k.clock.Now()), 0), tick)
	a.timer = time.AfterFunc(wait, a.k.lookOut)
}

// close ends it.
func (a *agenda) close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.closed = true
	if a.timer != nil {
		a.timer.Stop()
	}
}

// take returns the sessions that are due. After a sleep, or if everything is to be
// looked at again, that is none: all are put off a little, each by another time.
// Since is the agent's time when the machine fell asleep, or a little earlier. If it
// is ok, there is one more flight, which the caller ends.
func (a *agenda) take(again bool) (due []*entry, slept time.Duration, since time.Time, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return nil, 0, time.Time{}, false
	}
	a.k.flights.Add(1) // before Close waits for them
	now, still := a.k.clock.Now(), time.Now()
	slept = now.Sub(a.awake) - still.Sub(a.still)
	since = a.awake.Add(still.Sub(a.still))
	a.still, a.awake = still, now
	if slept <= maxDrift {
		slept = 0
	}
	if slept > 0 || again {
		for _, e := range a.queue {
			e.due = now.Add(rand.N(spread))
		}
		heap.Init(&a.queue)
	}
	for len(a.queue) > 0 && !a.queue[0].due.After(now) {
		due = append(due, heap.Pop(&a.queue).(*entry))
	}
	a.arm()
	return due, slept, since, true
}

// listed returns the sessions that are to be looked after.
func (a *agenda) listed() []*entry {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]*entry(nil), a.queue...)
}

// lookOut is what the timer does: it looks at the clocks, and after the sessions
// that are due.
func (k *Keeper) lookOut() {
	stepped := k.checkClock()
	due, slept, since, ok := k.agenda.take(stepped)
	if !ok {
		return
	}
	defer k.flights.Done()
	if slept > 0 {
		k.o.Log.Info("the machine has slept", "for", slept.Round(time.Second))
		for _, e := range k.agenda.listed() { // nobody could ask
			e.mu.Lock()
			if !e.asked.After(since) {
				e.asked = e.asked.Add(slept)
			}
			e.mu.Unlock()
		}
	}
	for _, e := range due {
		if !e.lookAfter() {
			k.agenda.put(e, k.clock.Now().Add(time.Second+rand.N(time.Second)))
		}
	}
}

// checkClock takes over a step of the wall clock: it moves everything that was
// measured before to the new time, so that nothing ages by it, and has the
// sessions in use proven anew. It reports whether there was one.
func (k *Keeper) checkClock() bool {
	if k.clock.drift() == 0 {
		return false
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	all := k.all()
	for _, e := range all {
		e.mu.Lock()
		defer e.mu.Unlock()
	}
	d := k.clock.drift()
	if d == 0 { // another caller was faster
		return false
	}
	k.clock.step(d)
	for _, e := range all {
		e.shift(d)
	}
	k.circuits.shift(d)
	k.agenda.shift(d)
	k.o.Log.Warn("the clock was set", "by", d.Round(time.Millisecond))
	k.flights.Go(func() {
		for _, e := range all {
			e.restate()
		}
	})
	return true
}

// restate stores a session with its times as they are after a step of the clock, so
// that a restart finds them right.
func (e *entry) restate() {
	e.restore(func(s *Session) bool {
		return s != nil && !(s.restored && s.foreign) && s.stored != s.shifted && e.k.ctx.Err() == nil
	})
}

// shift moves the agenda to a clock that shows d more.
func (a *agenda) shift(d time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.awake = a.awake.Add(d)
	for _, e := range a.queue {
		e.due = e.due.Add(d)
	}
}

// shift moves what the entry remembers to a clock that shows d more. The caller
// holds the lock.
func (e *entry) shift(d time.Duration) {
	e.shifted += int64(d)
	for _, t := range []*time.Time{&e.retryAt, &e.asked, &e.renewAt, &e.endAt, &e.notAheadUntil, &e.ended, &e.glanced} {
		if !t.IsZero() {
			*t = t.Add(d)
		}
	}
	for _, times := range [][]time.Time{e.recent, e.doubts} {
		for i := range times {
			times[i] = times[i].Add(d)
		}
	}
	if e.session != nil {
		e.session = e.session.at(e.k.clock.shifted.Load())
	}
}

// used reports whether a session is in use: somebody has asked for it since its
// last proof, and not long ago. The caller holds the lock.
func (e *entry) used(now time.Time) bool {
	return e.session != nil && e.asked.After(e.session.ProveTime) && e.lately(now)
}

// lately reports whether somebody has asked for the session not long ago. The
// caller holds the lock.
func (e *entry) lately(now time.Time) bool { return now.Sub(e.asked) < max(minUse, 2*e.interval()) }

// interval is how often a session in use is proven. The caller holds the lock.
func (e *entry) interval() time.Duration { return max(e.recheck(), minInterval) }

// schedule puts the session on the agenda: ahead of the time when its proof is too
// old, or it ends. Whether it is used by then is seen then. The caller holds the
// lock, and there is no flight.
func (e *entry) schedule() {
	now := e.k.clock.Now()
	var at time.Time
	switch s := e.session; {
	case e.retired, e.k.ctx.Err() != nil:
	case s == nil && !e.site.KeepAlive:
	case s == nil, e.stale:
		h := e.hold(e.next(), now, nil)
		switch {
		case h != nil:
		case e.failure != nil && !e.failure.Code.Temporary():
			h = &held{wait: usualRecheck}
		default:
			h = &held{wait: minInterval}
		}
		at = now.Add(h.after())
	default:
		often := max(e.goodFor(), minInterval)
		ahead := min(probeTimeout, often/4) + rand.N(often/20) // nobody is to wait for it, nor all to come in step
		at = s.ProveTime.Add(often - ahead)
		if !e.renewAt.IsZero() && e.renewAt.Before(at) {
			at = e.renewAt
		}
		if at.Before(now) {
			at = now.Add(rand.N(time.Second))
		}
	}
	e.k.agenda.put(e, at)
}

// next is what a session needs to be looked after. The caller holds the lock.
func (e *entry) next() need {
	if e.session == nil || e.session.ended(e.k.clock.Now()) {
		return aLogin
	}
	return aProbe
}

// lookAfter does what is due about a session that is used. It reports false if
// that has to wait, because too much is under way.
func (e *entry) lookAfter() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.flight != nil || e.retired { // its end, or whoever took over, schedules
		return e.retired || e.busy()
	}
	e.load()
	now := e.k.clock.Now()
	n := e.next()
	switch s := e.session; {
	case e.used(now):
	case !e.site.KeepAlive:
		return true
	case s != nil && !e.stale && now.Sub(s.ProveTime) < e.keptFor() && !e.renewal(now):
		at := s.ProveTime.Add(e.keptFor())
		if !e.renewAt.IsZero() && e.renewAt.Before(at) {
			at = e.renewAt
		}
		e.k.agenda.put(e, at)
		return true
	}
	if e.k.background.Load() >= maxBackground { // only the agenda launches more of them
		return false
	}
	if _, h := e.launch(n, launchOptions{ahead: true, background: true}); h != nil {
		e.k.agenda.put(e, now.Add(h.after()))
	}
	return true
}

// keptFor is how often a session is proven that nobody uses, and that is to be
// kept alive. The caller holds the lock.
func (e *entry) keptFor() time.Duration {
	if idle, _ := e.idle(); idle > 0 {
		return max(idle/2, minInterval)
	}
	return e.interval()
}

// renewal reports whether the session is to be made anew ahead of its end. The
// caller holds the lock.
func (e *entry) renewal(now time.Time) bool { return !e.renewAt.IsZero() && !e.renewAt.After(now) }

// What is near its end is made anew: after three quarters of its life, and not
// more than renewAhead before its end. What lives shorter than minRenewable is
// not: it would be made anew all the time.
const (
	renewAhead   = 5 * time.Minute
	minRenewable = time.Minute
)

// plan says when the session is made anew ahead of its end, as far as that is
// known: its last cookie ends, or it is as old as the site's sessions become. The
// caller holds the lock.
func (e *entry) plan() {
	e.renewAt, e.endAt = time.Time{}, time.Time{}
	s := e.session
	if s == nil {
		return
	}
	end, span, learned := s.lastExpire, s.lastLife, false
	if life, l := e.lifetime(); life > 0 && (end.IsZero() || s.LoginTime.Add(life).Before(end)) {
		end, span, learned = s.LoginTime.Add(life), life, l
	}
	if e.endAt = end; !end.IsZero() && span >= minRenewable && !(learned && e.leftOut()) {
		ahead := min(span/4, renewAhead)
		e.renewAt = end.Add(-ahead + rand.N(ahead/2))
		if e.notAheadUntil.After(e.renewAt) {
			e.renewAt = e.notAheadUntil
		}
	}
}

// leftOut reports whether the session is left to its end although that is learned,
// to see whether it still holds: after one that was made anew, then after three,
// seven and so on. The caller holds the lock.
func (e *entry) leftOut() bool { return e.plans > 0 && e.plans&(e.plans+1) == 0 }
