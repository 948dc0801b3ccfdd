package keeper

import (
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sessionctl/sessionctl/api"
)

// rewriteInterval is how long after writes that failed they are tried again.
const rewriteInterval = 2 * time.Second

// unwritten are the entries whose records the store did not take: its disk is full, or
// it is being mended. Until it does, memory has what holds, and the writes are tried
// again: one of them, and the others only if that works.
type unwritten struct {
	k *Keeper

	mu      sync.Mutex
	entries map[string]*entry // by key
	latches bool              // some of them, too
	timer   *time.Timer       // nil: there is nothing to do
	closed  bool
}

// put takes note of whether an entry has something to write. The caller holds the
// entry's lock.
func (u *unwritten) put(e *entry, pending bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	switch key := e.key(); {
	case pending:
		u.entries[key] = e
		u.arm()
	case u.entries[key] == e: // and not its successor
		delete(u.entries, key)
	}
}

// at returns the entry of a key that has something to write, nil if none has.
func (u *unwritten) at(key string) *entry {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.entries[key]
}

// latch has latches written again, too.
func (u *unwritten) latch() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.latches = true
	u.arm()
}

// arm sets the timer, if none is set. The caller holds the lock.
func (u *unwritten) arm() {
	if u.timer == nil && !u.closed {
		u.timer = time.AfterFunc(rewriteInterval, u.again)
	}
}

// Mended has all that is known stored again: the store was damaged, and may have lost any
// of its records, or have others back.
func (k *Keeper) Mended() {
	k.mu.RLock()
	all := k.all()
	k.mu.RUnlock()
	for _, e := range all {
		e.mu.Lock()
		if e.loaded && !e.retired {
			e.unwritten = true
			e.lifeUnwritten = k.o.Lives != nil && (e.life != lifetimes{} || e.found.Load() != nil)
			k.unwritten.put(e, true)
		}
		e.mu.Unlock()
	}
	k.o.Latches.again()
	k.unwritten.latch()
}

// close ends it.
func (u *unwritten) close() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.closed = true
	if u.timer != nil {
		u.timer.Stop()
	}
}

// again is what the timer does.
func (u *unwritten) again() {
	u.mu.Lock()
	if u.closed {
		u.mu.Unlock()
		return
	}
	u.k.flights.Add(1) // before Close waits for them
	defer u.k.flights.Done()
	u.mu.Unlock()
	u.write()
	u.mu.Lock()
	defer u.mu.Unlock()
	u.timer = nil
	if u.latches || len(u.entries) > 0 {
		u.arm()
	}
}

// write tries all writes, until one shows that the store takes none.
func (u *unwritten) write() {
	u.mu.Lock()
	entries, latches := slices.Collect(maps.Values(u.entries)), u.latches
	u.latches = false // a failure sets it again
	u.mu.Unlock()
	var failed atomic.Bool
	if latches {
		err := u.k.o.Latches.rewrite()
		failed.Store(refusesAll(err))
		if err == nil {
			u.k.o.Log.Info("what became of secrets is stored now")
		}
	}
	for n := 1; len(entries) > 0 && !failed.Load(); n = maxBackground {
		n = min(n, len(entries))
		var wg sync.WaitGroup
		for _, e := range entries[:n] {
			wg.Go(func() {
				if refusesAll(e.rewrite()) {
					failed.Store(true)
				}
			})
		}
		wg.Wait()
		entries = entries[n:]
	}
}

// refusesAll reports whether the failure of one write says that others would fail,
// too. A full store still takes what replaces a record.
func refusesAll(err error) bool { return err != nil && api.CodeOf(err) != api.StoreFull }

// rewrite brings the entry's records to what memory has; those of one that was
// retired, and that nobody has the place of, are removed.
func (e *entry) rewrite() error {
	e.mu.Lock()
	gone, life := e.retired && e.flight == nil, e.lifeUnwritten
	e.mu.Unlock()
	if gone {
		return e.purge()
	}
	if err := e.restore(func(*Session) bool { return e.unwritten }); err != nil {
		return err
	}
	if life {
		return e.saveLife()
	}
	return nil
}

// restore stores the session once more as it is, or removes what is stored if there
// is none: if that is due, and no other work under way, which does so itself. due is
// called with the lock held.
func (e *entry) restore(due func(*Session) bool) error {
	e.mu.Lock()
	s := e.session
	if e.flight != nil || e.retired || !due(s) {
		e.mu.Unlock()
		return nil
	}
	f := &flight{moot: true, done: make(chan struct{})}
	e.flight = f
	before := e.unwritten
	if s != nil {
		t := *s
		s = &t
	}
	e.mu.Unlock()
	err := e.keep(s)
	e.mu.Lock()
	defer e.mu.Unlock()
	if s != nil {
		e.session = s.at(e.k.clock.shifted.Load())
	}
	if before != e.unwritten { // who watches is told
		e.end(f)
		return err
	}
	e.flight = nil // nothing has changed that anybody waits for, nor when it is due
	close(f.done)
	return err
}

// keep brings the stored record to what is about to be served, nil for nothing. Only a
// flight calls it, so nobody else changes the record meanwhile. If it fails, it is
// tried again.
func (e *entry) keep(s *Session) error {
	var record []byte
	failed, done := "the stored session could not be removed", "the stored session is removed now"
	if s != nil {
		s.stored = s.shifted
		record = encodeSession(s, e.site.Fingerprint, e.k.clock)
		failed, done = "the session is not durable", "the session is durable again"
	}
	e.mu.Lock()
	revision := e.revision
	e.mu.Unlock()
	revision, err := swap(e.k.ctx, e.k.o.Records, e.key(), revision, record, nil)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.loaded, e.revision = true, revision // whatever it was, it is this from now on
	switch {
	case err != nil && !e.unwritten:
		e.log.Error(failed, "err", err)
	case err == nil && e.unwritten:
		e.log.Info(done)
	}
	e.unwritten = err != nil
	e.k.unwritten.put(e, e.unwritten || e.lifeUnwritten)
	return err
}
