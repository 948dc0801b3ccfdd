package keeper

import (
	"encoding/json"
	"sync"
	"time"

	"github.com/sessionctl/sessionctl/daemon/internal/login"
	"github.com/sessionctl/sessionctl/daemon/internal/web"
)

// lifetimes are what is known of how long a site's sessions live. It is learned from
// those that die: two deaths that agree set a span, and a session that outlives it
// raises it. Until then what the kind documents counts.
type lifetimes struct {
	// Age is how long sessions live after their login, Idle how long unused.
	Age, Idle span
}

// span is one length of life.
type span struct {
	Learned time.Duration `json:"learned,omitempty"` // 0: nothing is
	// Last is the length of the last life that ended, for the next to agree with.
	Last time.Duration `json:"last,omitempty"`
}

// agreement is by how much two lives may differ that set a span: the longer one
// is at most so much longer.
const agreement = 1.2

func agree(a, b time.Duration) bool { return float64(max(a, b)) <= agreement*float64(min(a, b)) }

// died takes note of a life of that length, or of at most that, and reports whether
// that changes anything.
func (s *span) died(length time.Duration, atMost bool) bool {
	before := *s
	if learned := min(length, s.Last); s.Last > 0 && agree(length, s.Last) && !(atMost && s.Learned > 0 && s.Learned < learned) {
		s.Learned = learned
	}
	s.Last = length
	return *s != before
}

// lived takes note of a life that goes on after that length.
func (s *span) lived(length time.Duration) bool {
	if s.Learned == 0 || length <= s.Learned {
		return false
	}
	s.Learned = length
	return true
}

// died takes note of the death of a session that lived for an age when it was last
// proven, and then died within a gap. A session that is used and dies all the same
// was old enough, if it has outlived such a gap before; if not, the gap was too
// long for it. What dies while nobody looks says only how long it lives unused at
// most.
func (l *lifetimes) died(age, gap, recheck time.Duration) bool {
	used := gap <= 2*recheck
	switch {
	case used && age >= gap:
		return age >= minAge && l.Age.died(age, false)
	case gap < minGap:
		return false
	case l.Age.Learned > 0 && age+gap >= l.Age.Learned: // of its age, however it was used
		return false
	}
	return l.Idle.died(gap, true)
}

// What dies younger, or after a shorter gap, was ended by somebody: a site is not
// asked, or logged in to, all the time because of that.
const (
	minAge = 15 * time.Minute
	minGap = 4 * minInterval
)

// lived takes note of a proof of a session, of that age and so long after the last
// one.
func (l *lifetimes) lived(age, gap time.Duration) bool {
	aged := l.Age.lived(age)
	return l.Idle.lived(gap) || aged
}

// documented is what a kind says about the site's sessions.
func (e *entry) documented() login.Life {
	if d, ok := e.driver().(login.Lasting); ok {
		return d.Life()
	}
	return login.Life{}
}

// lifetime returns how long the site's sessions live after their login, and
// whether that is learned; 0 if it is not known. The caller holds the lock.
func (e *entry) lifetime() (d time.Duration, learned bool) {
	if e.life.Age.Learned > 0 {
		return e.life.Age.Learned, true
	}
	return e.documented().Absolute, false
}

// idle returns how long they live unused.
func (e *entry) idle() (d time.Duration, learned bool) {
	if e.life.Idle.Learned > 0 {
		return e.life.Idle.Learned, true
	}
	return e.documented().Idle, false
}

// usualRecheck is how long a proof is good for, at most, where the configuration
// does not say.
const usualRecheck = 5 * time.Minute

// recheck returns how long a proof of the site's sessions is good for. The caller
// holds the lock.
func (e *entry) recheck() time.Duration {
	if e.site.RecheckSet {
		return e.site.Recheck
	}
	if idle, _ := e.idle(); idle > 0 {
		return min(usualRecheck, max(idle/4, minInterval))
	}
	return usualRecheck
}

// goodFor returns how long the proof of the session is good for: of one that has
// outlived its time, not long. The caller holds the lock.
func (e *entry) goodFor() time.Duration {
	if s := e.session; !e.endAt.IsZero() && s.ProveTime.Add(e.recheck()).After(e.endAt) {
		return min(e.recheck(), max(e.endAt.Sub(s.ProveTime), minInterval))
	}
	return e.recheck()
}

// lived takes note of a proof at a time of the session that was there.
func (e *entry) lived(old *Session, now time.Time) {
	if old.foreign {
		return
	}
	gap := now.Sub(old.ProveTime)
	if old.restored { // an agent that is not there does not look
		gap = 0
	}
	e.mu.Lock()
	changed := e.life.lived(now.Sub(old.LoginTime), gap)
	e.mu.Unlock()
	if changed {
		e.saveLife()
	}
}

// died takes note of the death of a session, found at a time. Used sessions of one
// origin that die at once, young and old, do so because the server was started
// anew: that says nothing about how long they live.
func (e *entry) died(old *Session, now time.Time) {
	d := death{e: e, age: old.ProveTime.Sub(old.LoginTime), from: old.ProveTime, to: now}
	gap := d.to.Sub(d.from)
	if old.restored || old.foreign || d.age < 0 || gap <= 0 { // nobody knows, or a clock was wrong
		return
	}
	e.mu.Lock()
	recheck := e.recheck()
	e.mu.Unlock()
	if gap <= 2*recheck {
		others := e.k.deaths.together(&d)
		for _, o := range others {
			o.undo()
		}
		if len(others) > 0 {
			return
		}
	}
	e.mu.Lock()
	d.before, d.counted = e.life, true
	changed := e.life.died(d.age, gap, recheck)
	e.mu.Unlock()
	if changed {
		e.saveLife()
	}
}

// undo forgets a death that turned out to be one of many.
func (d *death) undo() {
	d.e.mu.Lock()
	changed := d.counted && d.e.life != d.before
	if changed {
		d.e.life = d.before
	}
	d.counted = false
	d.e.mu.Unlock()
	if changed {
		d.e.saveLife()
	}
}

// death is when a session died, and of what age: after its last proof, and before
// it was found.
type death struct {
	e        *entry
	age      time.Duration
	from, to time.Time
	before   lifetimes // what was known then
	counted  bool      // so that it can be undone
}

// deaths are the last ones, by origin and session.
type deaths struct {
	mu   sync.Mutex
	last map[web.Origin]map[*entry]*death
}

// together takes note of a death, and returns those of other sessions of the
// origin that may have been at the same time, but at another age.
func (l *deaths) together(d *death) []*death {
	o := web.OriginOf(d.e.site.URL)
	l.mu.Lock()
	defer l.mu.Unlock()
	var others []*death
	for _, other := range l.last[o] {
		if other.e != d.e && !agree(d.age, other.age) && d.from.Before(other.to) && other.from.Before(d.to) {
			others = append(others, other)
		}
	}
	if l.last[o] == nil {
		l.last[o] = map[*entry]*death{}
	}
	l.last[o][d.e] = d
	return others
}

// forget drops what is known of an entry that is no more.
func (l *deaths) forget(e *entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.last[web.OriginOf(e.site.URL)], e)
}

// lifeVersion is the version of the stored form of a life.
const lifeVersion = 1

type lifeRecord struct {
	Version     int    `json:"v"`
	Fingerprint string `json:"fingerprint"`
	Age         span   `json:"age"`
	Idle        span   `json:"idle"`
	// Found is what the site is like; nil: nobody has looked.
	Found *finding `json:"found,omitempty"`
}

// loadLife reads what was learned before the agent was started. The caller holds
// the lock.
func (e *entry) loadLife() {
	if e.k.o.Lives == nil {
		return
	}
	record, _, err := e.k.o.Lives.Load(e.key())
	if err != nil {
		e.log.Warn("what was learned of the site's sessions cannot be read", "err", err)
		return
	}
	var r lifeRecord
	if record != nil && json.Unmarshal(record, &r) == nil && r.Version == lifeVersion && r.Fingerprint == e.site.Fingerprint {
		e.life = lifetimes{r.Age, r.Idle}
		e.found.Store(r.Found)
	}
}

// saveLife stores what was learned. If that fails, it is tried again.
func (e *entry) saveLife() error {
	e.mu.Lock()
	r := lifeRecord{lifeVersion, e.site.Fingerprint, e.life.Age, e.life.Idle, e.found.Load()}
	e.mu.Unlock()
	b, err := json.Marshal(r)
	if err != nil {
		panic(err) // nothing in the record can fail
	}
	return e.writeLife(b)
}

// writeLife replaces the stored record, or deletes it.
func (e *entry) writeLife(record []byte) error {
	if e.k.o.Lives == nil {
		return nil
	}
	_, revision, _ := e.k.o.Lives.Load(e.key()) // damaged: 0, it is replaced
	_, err := swap(e.k.ctx, e.k.o.Lives, e.key(), revision, record, nil)
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case err != nil && !e.lifeUnwritten:
		e.log.Warn("what was learned of the site's sessions is not stored", "err", err)
	case err == nil && e.lifeUnwritten:
		e.log.Info("what was learned of the site's sessions is stored now")
	}
	e.lifeUnwritten = err != nil
	e.k.unwritten.put(e, e.unwritten || e.lifeUnwritten)
	return err
}
