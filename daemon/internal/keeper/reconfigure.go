package keeper

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"time"
)

// Reconfigure applies a configuration: of sites and identity providers that are
// set up as before nothing changes; the others are set up anew, once the work
// under way for them is done. They keep their session if its Fingerprint is the
// same. What is gone is purged from the store.
func (k *Keeper) Reconfigure(sites, idps []Site) {
	k.reloading.Lock()
	defer k.reloading.Unlock()
	k.mu.Lock()
	defer k.mu.Unlock()
	k.idps, _ = k.replace(k.idps, idps, true)
	k.entries, k.order = k.replace(k.entries, sites, false)
	// Somebody may have mended what nobody could reach.
	k.circuits.clear()
	for _, e := range k.all() {
		e.resume()
	}
}

// replace returns the entries for a configuration in the place of others. The
// caller holds the lock.
func (k *Keeper) replace(old map[string]*entry, sites []Site, providers bool) (next map[string]*entry, order []*entry) {
	next = make(map[string]*entry, len(sites))
	keys := map[string]bool{}
	for _, s := range sites {
		s.ID, s.isIdP = cmp.Or(s.ID, s.Name), providers
		e, provider := old[s.ID], k.idps[s.IdP]
		if e == nil || e.provider != provider || e.site.Setup != s.Setup || e.site.Fingerprint != s.Fingerprint {
			before := cmp.Or(k.unwritten.at(s.key()), e) // somebody who is gone may have left something to remove
			e = &entry{k: k, site: s, provider: provider, log: k.o.Log.With("site", s.Name), changed: make(chan struct{}), shifted: k.clock.shifted.Load(), turn: make(chan struct{}, 1)}
			e.takeOver(before)
		}
		next[s.ID] = e
		order = append(order, e)
		keys[e.key()] = true
	}
	gone := map[*entry]*flight{}
	for id, e := range old {
		if next[id] != e {
			if under := e.retire(); !keys[e.key()] {
				gone[e] = under
			}
		}
	}
	k.flights.Go(func() {
		for e, under := range gone {
			if under != nil {
				<-under.done
			}
			e.purge()
		}
	})
	return next, order
}

// takeOver makes the entry the successor of another, nil for none. Until the work
// under way for that is done, it counts as the entry's own.
func (e *entry) takeOver(old *entry) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if old == nil {
		if e.site.KeepAlive {
			e.k.agenda.put(e, e.k.clock.Now().Add(rand.N(spread)))
		}
		return
	}
	old.mu.Lock()
	defer old.mu.Unlock()
	under := old.flight
	if under == nil {
		e.inherit(old)
		return
	}
	f := &flight{login: under.login, done: make(chan struct{})}
	e.flight = f
	e.k.flights.Go(func() {
		<-under.done
		e.mu.Lock()
		defer e.mu.Unlock()
		old.mu.Lock()
		defer old.mu.Unlock()
		e.inherit(old)
		f.moot = true // those who waited see for themselves
		e.end(f)
	})
}

// inherit takes what another entry has that still holds. The caller holds both
// locks, and the other entry has no flight any more.
func (e *entry) inherit(old *entry) {
	if old.loaded && e.key() == old.key() {
		e.loaded, e.revision = true, old.revision
		if e.site.Fingerprint == old.site.Fingerprint {
			if d := time.Duration(e.k.clock.shifted.Load() - old.shifted); d != 0 { // the clock was set meanwhile
				old.shift(d)
			}
			e.session, e.proofs, e.stale = old.session, old.proofs, old.stale
			e.found.Store(old.found.Load())
			e.doubted, e.settled, e.doubts, e.ended, e.glanced = old.doubted, old.settled, slices.Clone(old.doubts), old.ended, old.glanced
			e.lost = old.lost
			e.life, e.lifeUnwritten, e.asked, e.recent, e.shifted = old.life, old.lifeUnwritten, old.asked, slices.Clone(old.recent), old.shifted
			e.plan()
		}
		e.unwritten = old.unwritten
		e.k.unwritten.put(e, e.unwritten || e.lifeUnwritten)
	}
	e.schedule()
}

// retire ends an entry, and returns the flight that is still under way for it.
func (e *entry) retire() *flight {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.retired = true
	e.k.agenda.put(e, time.Time{})
	e.k.deaths.forget(e)
	if e.flight == nil {
		close(e.changed) // watchers look for the new one
		e.changed = make(chan struct{})
	}
	return e.flight
}

// purge drops what is stored of an entry that was retired, if nobody has its place.
func (e *entry) purge() error {
	e.k.reloading.Lock() // nobody takes it meanwhile
	defer e.k.reloading.Unlock()
	e.k.mu.RLock()
	replaced := slices.ContainsFunc(e.k.all(), func(o *entry) bool { return o.key() == e.key() })
	e.k.mu.RUnlock()
	if replaced {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.k.unwritten.put(e, false)
		return nil
	}
	e.mu.Lock()
	e.load()
	e.mu.Unlock()
	if err := e.forget(); err != nil {
		return err
	}
	return e.writeLife(nil)
}
