package keeper

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/login"
)

// recovery is how long after the end of its cause a failure to write is mended.
const recovery = 5 * time.Second

// errFull is what a store says whose disk is full.
var errFull = &api.Error{Code: api.StoreFailed, Detail: "no space left on device", Remedy: "make room"}

// disk is a store whose disk has faults.
type disk struct {
	*records

	mu         sync.Mutex
	full       error            // of writes
	late       bool             // which are done all the same
	blind      error            // of reads
	unreadable map[string]bool  // records that do not open, by key
	takes      time.Duration    // a write
	quota      map[string]bool  // keys for which there is no room, in a store that is full of records
	tries      []time.Time      // to write
	busy, most int              // writes at a time
	hung       <-chan time.Time // no write before that
}

func newDisk(r *records) *disk {
	return &disk{records: r, unreadable: map[string]bool{}, quota: map[string]bool{}}
}

func (d *disk) set(f func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f()
}

func (d *disk) Load(key string) ([]byte, uint64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.blind != nil:
		return nil, 0, d.blind
	case d.unreadable[key]:
		return nil, 0, &api.Error{Code: api.StoreDamaged, Detail: "a record does not open"}
	}
	return d.records.Load(key)
}

func (d *disk) Swap(ctx context.Context, key string, revision uint64, record []byte) (uint64, error) {
	var takes time.Duration
	var hung <-chan time.Time
	d.set(func() {
		d.tries = append(d.tries, time.Now())
		d.busy++
		d.most = max(d.most, d.busy)
		takes, hung = d.takes, d.hung
	})
	defer d.set(func() { d.busy-- })
	if err := sleep(ctx, takes); err != nil {
		return 0, err
	}
	if hung != nil {
		select {
		case <-hung:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.unreadable[key] {
		if revision != 0 {
			return 0, errors.New("conflict")
		}
		_, revision, _ = d.records.Load(key)
	}
	switch {
	case d.quota[key]:
		return 0, &api.Error{Code: api.StoreFull, Detail: "the store takes no more records"}
	case d.full != nil && !d.late:
		return 0, d.full
	}
	next, err := d.records.Swap(ctx, key, revision, record)
	if err == nil {
		delete(d.unreadable, key)
		err = d.full
	}
	return next, err
}

// since counts the tries since a time.
func (d *disk) since(t time.Time) (n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, at := range d.tries {
		if !at.Before(t) {
			n++
		}
	}
	return n
}

// stored returns the generation of the session that a store has for an entry, "" for
// none.
func (e *entry) stored(r *records) string {
	record, _, _ := r.Load(e.key())
	s, err := decodeSession(record, e.site.Fingerprint, e.k.clock, e.site.URL)
	if err != nil {
		return ""
	}
	return s.Generation
}

// writing counts the writes under way.
func (d *disk) writing() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.busy
}

// settle lets time pass, and what is then due be done.
func settle(d time.Duration) {
	pass(d)
	synctest.Wait()
}

// onDisk starts a fleet whose sessions are on a disk.
func onDisk(t *testing.T, n int) (*fleet, *disk) {
	f := startFleet(t, n, nil)
	d := newDisk(f.sessions)
	f.Keeper.o.Records = d
	return f, d
}

// TestDurableAgain: a session that was served although it could not be stored is
// stored soon after that is possible again: it stays what it is, the site is not
// asked, and whoever watches it is told.
func TestDurableAgain(t *testing.T) {
	for name, fault := range map[string]func(*disk){
		"full":               func(d *disk) { d.full = errFull },
		"done and not known": func(d *disk) { d.full, d.late = errFull, true },
		"damaged, not mended": func(d *disk) {
			d.full, d.blind = &api.Error{Code: api.StoreDamaged}, &api.Error{Code: api.StoreDamaged}
		},
		"neither read nor not": func(d *disk) { d.full, d.blind = errFull, errors.New("input/output error") },
	} {
		for _, outage := range []time.Duration{time.Nanosecond, 100 * time.Millisecond, 2 * time.Second, 7 * time.Minute / 3} {
			t.Run(name+" for "+outage.String(), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					f, d := onDisk(t, 1)
					var log bytes.Buffer
					f.entries["s0"].log = slog.New(slog.NewTextHandler(&log, nil))
					f.serve(t, 0)
					if _, err := f.Delete(t.Context(), "s0", DeleteOptions{}); err != nil || log.Len() == 0 {
						t.Error(err)
					}
					d.set(func() { fault(d) })
					s := f.serve(t, 0)
					if l := f.List()[0]; !s.NotDurable || !l.NotDurable || l.State != Live {
						t.Fatalf("not flagged: %v, %+v", s.NotDurable, l)
					}
					w := f.watched(t)
					settle(outage)
					d.set(func() { d.full, d.late, d.blind = nil, false, nil })
					began := f.now()
					settle(recovery)
					if l := f.List()[0]; l.NotDurable || l.Session.Generation != s.Generation || !l.Session.ProveTime.Equal(s.ProveTime) {
						t.Errorf("then %+v", l)
					}
					if last := w.last(t); last.NotDurable || last.Generation != s.Generation {
						t.Errorf("the watcher has %+v", last)
					}
					w.stop()
					if told := len(w.got); told > 3+int(outage/watchRecheck) {
						t.Errorf("the watcher was told %d times", told)
					}
					f.count(t, began, 0, 0)
					if got := f.entries["s0"].stored(f.sessions); got != s.Generation {
						t.Errorf("stored is %q", got)
					}
					if said := strings.Count(log.String(), "the session is not durable"); said != 1 || strings.Count(log.String(), "the session is durable again") != 1 {
						t.Errorf("it says\n%s", &log)
					}
					quiet := time.Now()
					settle(time.Minute)
					if n := d.since(quiet); n != 0 {
						t.Errorf("%d writes after that", n)
					}
					f.sessions = f.sessions.clone() // as a crash leaves it
					f.start(t)
					if got := f.serve(t, 0); got.Generation != s.Generation {
						t.Error("after a restart it is another session")
					}
				})
			})
		}
	}
}

// TestNewestIsStored: what is stored in the end is the session that is served, also if
// there was another one meanwhile, or the clock was set.
func TestNewestIsStored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, d := onDisk(t, 1)
		first := f.serve(t, 0)
		d.set(func() { d.full = errFull })
		second, err := f.Refresh(t.Context(), "s0", "", true)
		if err != nil || second.Generation == first.Generation || !second.NotDurable {
			t.Fatalf("%+v, %v", second, err)
		}
		settle(time.Second)
		f.step(time.Hour)
		f.serve(t, 0)
		settle(3 * rewriteInterval)
		d.set(func() { d.full = nil })
		settle(recovery)
		if got := f.entries["s0"].stored(f.sessions); got != second.Generation {
			t.Errorf("stored is %q, not %q", got, second.Generation)
		}
		f.start(t)
		if s := f.serve(t, 0); s.Generation != second.Generation || s.ProveTime.Before(f.now()) {
			t.Errorf("after a restart: %+v", s)
		}
	})
}

// TestManyNotDurable: a thousand sessions that cannot be stored cost one try in a
// while, and are stored soon after that is possible again, some at a time; one of
// which there is no room for holds up no other.
func TestManyNotDurable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const k = 1000
		f, d := onDisk(t, k)
		d.set(func() {
			d.full = errFull
			for i := range 3 {
				d.quota[f.entries[f.configured[i].Name].key()] = true
			}
		})
		for i := range k {
			if s := f.serve(t, i); !s.NotDurable {
				t.Fatal("not flagged")
			}
		}
		settle(rewriteInterval)
		began := time.Now()
		settle(time.Minute)
		if n := d.since(began); n < int(time.Minute/rewriteInterval)-1 || n > int(time.Minute/rewriteInterval)+1+3*maxBackground {
			t.Errorf("%d tries in a minute", n)
		}
		d.set(func() { d.full, d.takes, d.most = nil, 20*time.Millisecond, 0 })
		requests := f.now()
		settle(recovery)
		flagged := 0
		for _, s := range f.List() {
			if s.NotDurable {
				flagged++
			}
		}
		if flagged != 3 || d.most > maxBackground {
			t.Errorf("%d are still flagged; %d writes at a time", flagged, d.most)
		}
		d.set(func() { clear(d.quota) })
		settle(recovery)
		if slices.ContainsFunc(f.List(), func(s Summary) bool { return s.NotDurable }) {
			t.Error("one is still flagged")
		}
		for i := range k {
			if logins, probes := f.all[i].since(requests); logins+probes != 0 {
				t.Fatalf("s%d was asked", i)
			}
		}
	})
}

// TestProvenAllTheWhile: trying again disturbs nobody: not who asks, nor the proofs, be
// it that a session is used or kept alive.
func TestProvenAllTheWhile(t *testing.T) {
	hour := func(fault func(*disk)) (used, kept, waited int) {
		synctest.Test(t, func(t *testing.T) {
			f, d := onDisk(t, 2)
			f.reload(1, func(s *Site) { s.KeepAlive, s.Setup = true, "2" })
			f.serve(t, 1)
			d.set(func() { fault(d) })
			for i := range 2 {
				f.Refresh(t.Context(), f.configured[i].Name, "", true)
			}
			began := f.now()
			for range 3600 {
				asked := time.Now()
				s := f.serve(t, 0)
				took := time.Since(asked)
				if took > 0 { // a proof waits for its write, or that before
					waited++
				}
				if took > storeTimeout || s.NotDurable != (d.full != nil || d.hung != nil) {
					t.Fatalf("not durable: %v, after %v", s.NotDurable, took)
				}
				settle(time.Second)
			}
			_, used = f.all[0].since(began)
			_, kept = f.all[1].since(began)
		})
		return used, kept, waited
	}
	wantUsed, wantKept, _ := hour(func(*disk) {})
	for name, c := range map[string]struct {
		fault  func(*disk)
		waited int
	}{
		"full": {func(d *disk) { d.full = errFull }, 0},
		"hung": {func(d *disk) { d.hung = make(chan time.Time) }, 12},
	} {
		if used, kept, waited := hour(c.fault); used < wantUsed-3 || used > wantUsed+3 || kept < wantKept-3 || kept > wantKept+3 || waited > c.waited {
			t.Errorf("%s: %d and %d proofs in an hour, else %d and %d; %d callers waited", name, used, kept, wantUsed, wantKept, waited)
		}
	}
}

// TestLogoutIsStored: a session that ended while the store could not be written does not
// come back at the next start, whatever becomes of its site meanwhile.
func TestLogoutIsStored(t *testing.T) {
	never := func(*testing.T, *fleet) {}
	for name, c := range map[string]struct {
		meanwhile func(*testing.T, *fleet)
		again     bool // there is another session
	}{
		"nothing": {never, false},
		"at once, by the agent's end": {func(t *testing.T, f *fleet) {
			f.Keeper.o.Records.(*disk).set(func() { f.Keeper.o.Records.(*disk).full = nil })
			f.Close()
		}, false},
		"its setup":       {func(_ *testing.T, f *fleet) { f.reload(0, otherSetup) }, false},
		"its fingerprint": {func(_ *testing.T, f *fleet) { f.reload(0, otherFingerprint) }, false},
		"its account":     {func(_ *testing.T, f *fleet) { f.reload(0, otherAccount) }, false},
		"its account, and back": {func(_ *testing.T, f *fleet) {
			before := f.configured[0]
			f.reload(0, otherAccount)
			settle(time.Second)
			f.reload(0, func(s *Site) { *s = before })
		}, false},
		"it is removed": {func(_ *testing.T, f *fleet) { f.Reconfigure(f.configured[1:], nil) }, false},
		"it is removed, and comes back": {func(_ *testing.T, f *fleet) {
			f.Reconfigure(f.configured[1:], nil)
			settle(time.Second)
			f.Reconfigure(f.configured, nil)
			if s := f.List()[0]; s.Session != nil {
				t.Error("it is there again")
			}
		}, false},
		"it is removed in the end": {func(_ *testing.T, f *fleet) {
			settle(3 * rewriteInterval)
			f.Reconfigure(f.configured[1:], nil)
			settle(3 * rewriteInterval)
		}, false},
		"another login": {func(t *testing.T, f *fleet) {
			if s := f.serve(t, 0); !s.NotDurable {
				t.Error("not flagged")
			}
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f, d := onDisk(t, 2)
				before, e := f.serve(t, 0), f.entries["s0"]
				var log bytes.Buffer
				e.log = slog.New(slog.NewTextHandler(&log, nil))
				f.serve(t, 1)
				d.set(func() { d.full = errFull })
				_, err := f.Delete(t.Context(), "s0", DeleteOptions{})
				if a := api.AsError(err); a == nil || a.Code != api.StoreFailed || !strings.Contains(a.Detail, "could not be removed yet, which is tried again: no space left") || a.Remedy != "make room" {
					t.Errorf("%v", err)
				}
				if s := f.List()[0]; s.Session != nil || s.NotDurable || s.State != None {
					t.Errorf("%+v", s)
				}
				if e.stored(f.sessions) != before.Generation {
					t.Fatal("it could be removed")
				}
				settle(time.Second)
				c.meanwhile(t, f)
				d.set(func() { d.full = nil })
				settle(recovery)
				if got := e.stored(f.sessions); (got != "") != c.again || got == before.Generation {
					t.Errorf("stored is %q", got)
				}
				if removed := strings.Count(log.String(), "could not be removed"); removed != 1 {
					t.Errorf("it says\n%s", &log)
				}
				quiet := time.Now()
				settle(time.Minute)
				if n := d.since(quiet); n != 0 || f.unwritten.at(e.key()) != nil {
					t.Errorf("%d writes after that", n)
				}
				if s := f.entries["s1"]; s.stored(f.sessions) == "" {
					t.Error("so is another site's")
				}
			})
		})
	}
}

// TestRemovalIsNoLogin: while a removal is tried again, nobody is told that there is a
// login.
func TestRemovalIsNoLogin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, d := onDisk(t, 1)
		f.serve(t, 0)
		d.set(func() { d.full = errFull })
		f.Delete(t.Context(), "s0", DeleteOptions{})
		d.set(func() { d.hung = make(chan time.Time) })
		settle(rewriteInterval + time.Second)
		if s := f.List()[0]; d.writing() != 1 || s.State != None {
			t.Errorf("state %d, %d writes", s.State, d.writing())
		}
		f.all[0].set(func() { f.all[0].ready = &api.Error{Code: api.Latched} })
		if s := f.List()[0]; d.writing() != 1 || s.State != Latched {
			t.Errorf("state %d, %d writes", s.State, d.writing())
		}
	})
}

// TestMendedStore: a store that was mended may have lost the record, or have an earlier
// one back, or one that does not open. The next proof puts that right, and a logout
// removes whatever is there.
func TestMendedStore(t *testing.T) {
	for damage, do := range map[string]func(d *disk, e *entry, early *records){
		"lost": func(d *disk, e *entry, _ *records) {
			delete(d.data, e.key())
			delete(d.rev, e.key())
		},
		"earlier": func(d *disk, e *entry, early *records) {
			d.data[e.key()], d.rev[e.key()] = early.data[e.key()], early.rev[e.key()]
		},
		"unreadable": func(d *disk, e *entry, _ *records) { d.unreadable[e.key()] = true },
	} {
		for then, next := range map[string]func(*testing.T, *fleet, *disk){
			"a proof": func(*testing.T, *fleet, *disk) { settle(5 * time.Minute) },
			"another value": func(_ *testing.T, f *fleet, _ *disk) {
				f.all[0].set(func() { f.all[0].rotate = true })
				settle(5 * time.Minute)
			},
			"on a full disk":  func(t *testing.T, f *fleet, d *disk) { full(t, f, d, 5*time.Minute) },
			"a logout":        func(t *testing.T, f *fleet, _ *disk) { f.Delete(t.Context(), "s0", DeleteOptions{}) },
			"a logout on one": func(t *testing.T, f *fleet, d *disk) { full(t, f, d, 0) },
		} {
			t.Run(damage+", then "+then, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					f, d := onDisk(t, 1)
					f.serve(t, 0)
					early, e := f.sessions.clone(), f.entries["s0"]
					s, err := f.Refresh(t.Context(), "s0", "", true)
					if err != nil {
						t.Fatal(err)
					}
					d.set(func() { do(d, e, early) })
					began := time.Now()
					f.Mended()
					next(t, f, d)
					want := s.Generation
					if strings.HasPrefix(then, "a logout") {
						want = ""
					} else if got := f.serve(t, 0); got.Generation != s.Generation || got.NotDurable {
						t.Errorf("served: %v, not durable: %v", got.Generation == s.Generation, got.NotDurable)
					}
					if got := e.stored(f.sessions); got != want || d.unreadable[e.key()] {
						t.Errorf("stored is %q, not %q", got, want)
					}
					most := 12
					if then == "on a full disk" {
						most += int(5 * time.Minute / rewriteInterval)
					}
					if n := d.since(began); n < 1 || n > most {
						t.Errorf("%d writes", n)
					}
				})
			})
		}
	}
}

// full has the disk full for a while, in which the session is proven, if it lasts, or
// ended.
func full(t *testing.T, f *fleet, d *disk, outage time.Duration) {
	d.set(func() { d.full = errFull })
	if outage > 0 {
		settle(outage - 2*rewriteInterval)
		f.Refresh(t.Context(), "s0", f.List()[0].Session.Generation, false)
		if !f.serve(t, 0).NotDurable {
			t.Error("not flagged")
		}
	} else {
		f.Delete(t.Context(), "s0", DeleteOptions{})
	}
	settle(2 * rewriteInterval)
	d.set(func() { d.full = nil })
	settle(recovery)
}

// TestLifeIsStoredLater: nor is what was learned lost, or what is to be forgotten kept.
func TestLifeIsStoredLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := neighbours(t, 1)
		d := newDisk(f.learned)
		f.Keeper.o.Lives = d
		d.set(func() { d.full = errFull })
		for range 2 {
			f.lifeAndDeath(t, 0, time.Hour, 0)
		}
		settle(time.Hour)
		f.reload(0, otherSetup)
		d.set(func() { d.full = nil })
		settle(recovery)
		f.learned = f.learned.clone()
		f.start(t)
		f.lives(t, 0, time.Hour, 0)

		d = newDisk(f.learned)
		f.Keeper.o.Lives = d
		d.set(func() { d.full = errFull })
		f.lifeAndDeath(t, 0, 2*time.Hour, 0)
		f.reload(0, otherFingerprint) // what was learned is of no use any more
		settle(recovery)
		if f.unwritten.at(f.entries["s0"].key()) != nil {
			t.Error("it is tried for ever")
		}
		e := f.entries["s0"]
		f.Reconfigure(nil, nil)
		synctest.Wait()
		if n := f.recordsLeft(e); n != 1 {
			t.Errorf("%d records are left", n)
		}
		d.set(func() { d.full = nil })
		settle(recovery)
		if n := f.recordsLeft(e); n != 0 {
			t.Errorf("%d records are left in the end", n)
		}
	})
}

// TestRefusalIsStoredLater: of a password that was accepted before, and was tried
// although that could not be written down; the next start knows of its refusal.
func TestRefusalIsStoredLater(t *testing.T) {
	for _, late := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			m := startTeam(t, rightPassword, rightPassword)
			m.want(t, m.get(t, "jira"), "") // accepted
			d := newDisk(m.latches)
			m.password.latches.records = d
			d.set(func() { d.full, d.late = errFull, late })
			m.directory.change(newPassword)
			m.want(t, m.get(t, "wiki"), api.BadCredentials)
			m.tried(t, 2)
			settle(time.Minute)
			if n := d.since(time.Time{}); n > 2*int(time.Minute/rewriteInterval)+8 {
				t.Errorf("%d tries to write", n)
			}
			d.set(func() { d.full = nil })
			settle(recovery)
			quiet := time.Now()
			m.want(t, m.restarted(t).get(t, "wiki"), api.Latched)
			m.tried(t, 2)
			settle(time.Minute)
			if n := d.since(quiet); n != 0 || m.unwritten.latches || m.unwritten.timer != nil {
				t.Errorf("%d writes after that", n)
			}
		})
	}
}

// TestLatchesOfAMendedStore: an earlier record that is there again takes nothing back,
// and one that could not be read meanwhile adds what it knows.
func TestLatchesOfAMendedStore(t *testing.T) {
	const realm, user = "realm:A", "build"
	one, two, three := []byte("CANARY-1"), []byte("CANARY-2"), []byte("CANARY-3")
	refusal := &api.Error{Code: api.BadCredentials, Detail: "refused"}
	damage := &api.Error{Code: api.StoreDamaged, Detail: "it is being mended"}
	check := func(t *testing.T, l *Latches, secret []byte, code api.Code) {
		t.Helper()
		if err := l.Check(realm, user, secret); api.CodeOf(err) != code {
			t.Errorf("%s: %v, want %q", secret, err, code)
		}
	}
	try := func(t *testing.T, l *Latches, secret []byte, verdict error) {
		t.Helper()
		if err := errors.Join(l.Begin(t.Context(), realm, user, secret), l.End(t.Context(), realm, user, secret, verdict)); err != nil {
			t.Fatal(err)
		}
	}

	t.Run("earlier", func(t *testing.T) {
		r := newRecords()
		l := NewLatches(r, mac)
		try(t, l, one, refusal)
		early := r.clone()
		try(t, l, two, refusal)
		if err := l.Clear(t.Context(), realm, user, one); err != nil {
			t.Fatal(err)
		}
		key := latchKey(realm, user)
		r.data[key], r.rev[key] = early.data[key], early.rev[key]
		try(t, l, three, refusal)
		for _, l := range []*Latches{l, NewLatches(r, mac)} {
			check(t, l, one, "") // a person has lifted it
			check(t, l, two, api.Latched)
			check(t, l, three, api.Latched)
		}
	})
	t.Run("lost", func(t *testing.T) {
		r := newRecords()
		l := NewLatches(r, mac)
		try(t, l, one, refusal)
		clear(r.data)
		clear(r.rev)
		try(t, l, two, refusal)
		check(t, NewLatches(r, mac), one, api.Latched)
		check(t, NewLatches(r, mac), two, api.Latched)
	})
	// What is written while the record cannot be read does not replace it when it can.
	unread := func(t *testing.T) (*Latches, *disk) {
		d := newDisk(newRecords())
		before := NewLatches(d, mac)
		try(t, before, one, refusal)
		try(t, before, two, refusal)
		if err := before.Begin(t.Context(), realm, user, three); err != nil { // and then the agent died
			t.Fatal(err)
		}
		d.set(func() { d.full, d.blind = damage, damage })
		return NewLatches(d, mac), d
	}
	mended := func(d *disk) { d.set(func() { d.full, d.blind = nil, nil }) }
	t.Run("unread", func(t *testing.T) {
		for _, first := range []string{"it is checked", "it is written"} {
			l, d := unread(t)
			check(t, l, two, api.StoreDamaged)
			if err := l.refuse(t.Context(), realm, user, nil, refusal); api.CodeOf(err) != api.StoreDamaged {
				t.Errorf("%v", err)
			}
			if l.End(t.Context(), realm, user, one, nil) == nil || l.End(t.Context(), realm, user, three, &api.Error{Code: api.ClockSkew}) == nil {
				t.Error("it is not stored")
			}
			check(t, l, two, api.StoreDamaged) // still
			mended(d)
			if first == "it is checked" {
				check(t, l, two, api.Latched)
			}
			if err := l.rewrite(); err != nil {
				t.Error(err)
			}
			for _, l := range []*Latches{l, NewLatches(d, mac)} {
				for _, secret := range [][]byte{one, two, three, nil} {
					check(t, l, secret, api.Latched)
				}
			}
		}
	})
	t.Run("replaced", func(t *testing.T) {
		l, d := unread(t)
		mended(d)
		d.set(func() { d.unreadable[latchKey(realm, user)] = true })
		try(t, l, two, &api.Error{Code: api.ClockSkew}) // no verdict
		if err := l.refuse(t.Context(), realm, user, one, refusal); err != nil {
			t.Fatal(err)
		}
		check(t, l, one, api.Latched)
		check(t, l, two, "")
	})
	t.Run("lifted", func(t *testing.T) {
		l, d := unread(t)
		d.set(func() { d.full = nil }) // it is mended right after the first look
		l.records = &oneLook{d}
		if err := l.Clear(t.Context(), realm, user, one); err != nil {
			t.Fatal(err)
		}
		for _, l := range []*Latches{l, NewLatches(d, mac)} {
			check(t, l, one, "")
			check(t, l, two, api.Latched)
			check(t, l, three, api.Latched)
		}
	})
}

// TestLiftedWhileTried: what a person lifts may be under way.
func TestLiftedWhileTried(t *testing.T) {
	l := NewLatches(newRecords(), mac)
	for range 2 {
		if err := l.Begin(t.Context(), "realm:A", "build", []byte("CANARY-1")); err != nil {
			t.Fatal(err)
		}
		if err := l.Clear(t.Context(), "realm:A", "build", []byte("CANARY-1")); err != nil {
			t.Fatal(err)
		}
	}
}

// TestRoomForWhatIsRead: an account has no more secrets than it may, also if some were
// read late.
func TestRoomForWhatIsRead(t *testing.T) {
	d := newDisk(newRecords())
	l := NewLatches(d, mac)
	refuse := func(i int) {
		l.refuse(t.Context(), "realm:A", "build", fmt.Appendf(nil, "CANARY-%d", i), &api.Error{Code: api.BadCredentials})
	}
	for i := range maxSecrets {
		refuse(i)
	}
	d.set(func() { d.full, d.blind = errFull, errFull })
	l = NewLatches(d, mac)
	refuse(maxSecrets)
	d.set(func() { d.full, d.blind = nil, nil })
	if err := l.Check("realm:A", "build", fmt.Appendf(nil, "CANARY-%d", maxSecrets)); api.CodeOf(err) != api.Latched {
		t.Error(err)
	}
	if n := len(l.known[latchKey("realm:A", "build")].secrets); n != maxSecrets {
		t.Errorf("%d secrets", n)
	}
}

// oneLook is mended after one look at it.
type oneLook struct{ *disk }

func (d *oneLook) Load(key string) ([]byte, uint64, error) {
	defer d.set(func() { d.blind = nil })
	return d.disk.Load(key)
}

// TestTriedWithoutAStore: what refuses a try is a failure to write it down, as before,
// and trying to write again does not make a latch of it.
func TestTriedWithoutAStore(t *testing.T) {
	for _, late := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			m := startTeam(t, rightPassword, rightPassword)
			d := newDisk(m.latches)
			m.password.latches.records = d
			d.set(func() { d.full, d.late = errFull, late })
			m.want(t, m.get(t, "jira"), api.StoreFailed, "not tried")
			m.sites["wiki"].set(func() {
				m.sites["wiki"].taken = func(context.Context, login.Password) error { panic("it was tried") }
			})
			m.want(t, m.get(t, "wiki"), api.StoreFailed, "not tried")
			m.tried(t, 0)
			d.set(func() { d.full = nil })
			settle(recovery)
			m.want(t, m.restarted(t).get(t, "jira"), "")
		})
	}
}

// TestUnreadIsKept: a session that could not be read, as the store was about to be mended,
// is not taken for none: it is there when the store is.
func TestUnreadIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, d := onDisk(t, 1)
		s := f.serve(t, 0)
		f.start(t) // anew
		f.Keeper.o.Records = d
		d.set(func() {
			d.blind = &api.Error{Code: api.StoreDamaged, Detail: "it could not be mended yet"}
			d.full = d.blind
		})
		if got := f.List()[0]; got.Session != nil {
			t.Errorf("%v", got.State)
		}
		d.set(func() { d.blind, d.full = nil, nil })
		f.Mended()
		settle(recovery)
		if got := f.entries["s0"].stored(f.sessions); got != s.Generation {
			t.Errorf("stored is %q", got)
		}
		if got := f.serve(t, 0); got.Generation != s.Generation {
			t.Error("another session is served")
		}
	})
}

// TestLogoutWhileUnread: nor does a look at it bring a session back that could not be read
// when somebody logged it out.
func TestLogoutWhileUnread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, d := onDisk(t, 1)
		s := f.serve(t, 0)
		f.start(t) // anew
		f.Keeper.o.Records = d
		d.set(func() {
			d.blind = &api.Error{Code: api.StoreDamaged, Detail: "it could not be mended yet"}
			d.takes = 2 * time.Second // the removal waits for the mending
		})
		f.List()
		done := make(chan struct{})
		go func() {
			defer close(done)
			f.Delete(t.Context(), "s0", DeleteOptions{})
		}()
		settle(time.Second)
		d.set(func() { d.blind = nil })
		f.List()
		<-done
		if got := f.entries["s0"].stored(f.sessions); got != "" {
			t.Errorf("stored is %q", got)
		}
		if got := f.serve(t, 0); got.Generation == s.Generation {
			t.Error("the logged-out session is served")
		}
	})
}
