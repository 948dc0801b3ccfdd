package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"

	"github.com/sessionctl/sessionctl/api"
)

// maxGroup bounds the swaps of one commit.
const maxGroup = 256

// swap is a write that waits for its turn.
type swap struct {
	bucket, name string
	revision     uint64
	record       []byte
	done         chan outcome // of capacity 1: the writer waits for nobody
}

// outcome is what became of a swap.
type outcome struct {
	revision uint64
	err      error
}

// Swap stores the record under the name if the stored one is at revision, 0
// meaning that there is none, and returns the new revision; a nil record
// removes it and returns 0. Revisions only grow, over all buckets, and never
// repeat. A record that does not open counts as none.
//
// It returns when the record is on the disk. Errors are ErrConflict, those of
// code StoreFailed or StoreDamaged (the stored record is then the old or the
// new one), or that of ctx, whose end stops the waiting, not the write.
func (b *Bucket) Swap(ctx context.Context, name string, revision uint64, record []byte) (newRevision uint64, err error) {
	if err := ctx.Err(); err != nil {
		return 0, fmt.Errorf("write to the store: %w", err)
	}
	s := b.s
	w := &swap{b.name, name, revision, bytes.Clone(record), make(chan outcome, 1)}
	select {
	case s.swaps <- w:
	case <-ctx.Done():
		return 0, fmt.Errorf("write to the store: %w", ctx.Err())
	case <-s.closing:
		return 0, failed(s.path, errClosed)
	}
	select {
	case o := <-w.done:
		return o.revision, o.err
	case <-ctx.Done():
		return 0, fmt.Errorf("write to the store: %w", ctx.Err())
	}
}

// write is the one writer: it commits swaps, those that came while it was
// busy in one transaction with one sync.
func (s *Store) write() {
	defer close(s.stopped)
	if !s.verified { // not just written anew
		s.verify()
	}
	for {
		select {
		case w := <-s.swaps:
			s.commit(s.group(w))
		case done := <-s.rewrites:
			err := s.rekey()
			s.note(&s.unpurged, err)
			done <- err
		case done := <-s.looks:
			err := s.inPlace()
			done <- look{s.sets.records(), err}
		case <-s.stale.due:
			s.purge()
		case <-s.damage():
			s.heal()
		case <-s.retry:
			s.retry = nil
		case <-s.closing:
			if s.stale.removed {
				s.purge()
			}
			return
		}
	}
}

// group adds to a first swap those that wait already.
func (s *Store) group(first *swap) []*swap {
	group := []*swap{first}
	for len(group) < maxGroup {
		select {
		case w := <-s.swaps:
			group = append(group, w)
		default:
			return group
		}
	}
	return group
}

// commit applies the swaps and tells each what became of it.
func (s *Store) commit(group []*swap) {
	outcomes, err := s.try(group)
	if err != nil && s.file.isBroken() {
		outcomes, err = s.try(group) // which heals it first, if it can
	}
	s.note(&s.trouble, err)
	for i, w := range group {
		clear(w.record)
		if err != nil {
			w.done <- outcome{0, err}
		} else {
			w.done <- outcomes[i]
		}
	}
}

// try applies the swaps in one transaction. When that fails all of them have failed,
// also those that were in conflict with a write that is now undone.
func (s *Store) try(group []*swap) ([]outcome, error) {
	if err := s.inPlace(); err != nil {
		return nil, err
	}
	if err := s.ensureDataKeys(group); err != nil {
		s.reread()
		return nil, err
	}
	outcomes := make([]outcome, len(group))
	next, last := maps.Clone(s.sets), s.last
	err := s.file.update(func(t txn) (changed bool, err error) {
		for i, w := range group {
			revision, wrote, err := s.apply(t, w, next)
			if err != nil && !errors.Is(err, ErrConflict) && api.CodeOf(err) != api.StoreFull {
				return false, err
			}
			outcomes[i] = outcome{revision, err}
			changed = changed || wrote
		}
		if changed {
			last = t.sequence()
			err = t.putSets(s.keys.sealSets(next, last))
		}
		return changed, err
	})
	if err != nil {
		s.reread()
		return nil, err
	}
	s.sets, s.last = next, last
	return outcomes, nil
}

// reread takes the set hashes from the file: a commit that has failed at its last step is
// in it.
func (s *Store) reread() {
	var sealed []byte
	err := s.file.view(func(t txn) error {
		if s.file.committed.Swap(int64(t.tx.ID())) < int64(t.tx.ID()) {
			sealed = t.sets()
		}
		return nil
	})
	if err != nil || sealed == nil {
		return
	}
	if stored, last, err := s.keys.openSets(sealed); err == nil {
		s.sets, s.last = stored, max(s.last, last)
	}
}

// maxRecords is how many records a store takes.
const maxRecords = 10_000

// apply does one swap inside a transaction, which leaves these sets.
func (s *Store) apply(t txn, w *swap, after sets) (revision uint64, wrote bool, err error) {
	key := s.keys.recordKey(w.bucket, w.name)
	raw, err := t.record(w.bucket, key)
	if err != nil {
		return 0, false, err
	}
	var current uint64
	if raw != nil {
		if _, _, current, err = s.openRecord(w.bucket, key, raw, t.sequence()); err != nil {
			s.log.Warn("a record that cannot be opened counts as missing", "bucket", w.bucket, "error", err)
			current = 0
		}
	}
	switch {
	case current != w.revision:
		return 0, false, ErrConflict
	case w.record == nil && raw == nil:
		return 0, false, nil
	case w.record == nil:
		if err := t.putStale(); err != nil { // should it die before the purge
			return 0, false, err
		}
		s.stale.remove()
		after.remove(s.keys, w.bucket, key, raw)
		return 0, true, t.remove(w.bucket, key)
	case raw == nil && after.records() >= maxRecords:
		return 0, false, &api.Error{Code: api.StoreFull, Detail: fmt.Sprintf("store %s has %d records, and takes no more", s.path, maxRecords),
			Remedy: "see what fills it: sessionctl list; sessions of sites that nobody needs any more go with: sessionctl logout SITE"}
	}
	if raw != nil {
		after.remove(s.keys, w.bucket, key, raw)
	}
	sequence, err := t.nextSequence()
	if err != nil {
		return 0, false, err
	}
	d := s.dataKeys[w.bucket] // made by ensureDataKeys
	sealed := s.keys.seal(d, w.bucket, key, w.name, sequence, w.record)
	after.put(s.keys, w.bucket, key, sealed)
	return sequence, true, t.put(w.bucket, key, sealed)
}

// ensureDataKeys makes the buckets that do not exist yet, each with its data
// key. That is a transaction of its own, so that a key is used only when it is
// certainly stored.
func (s *Store) ensureDataKeys(group []*swap) error {
	for _, w := range group {
		if _, ok := s.dataKeys[w.bucket]; ok || w.record == nil {
			continue
		}
		var d dataKey
		err := s.file.update(func(t txn) (changed bool, err error) {
			// It may be there: an earlier commit can have failed late.
			wrapped, err := t.wrappedKeys()
			if err != nil {
				return false, err
			}
			if old, ok := wrapped[w.bucket]; ok {
				d, err = s.keys.unwrap(format, w.bucket, old)
				return false, err
			}
			var sealed []byte
			if d, sealed, err = s.keys.newDataKey(w.bucket, firstGeneration); err != nil {
				return false, err
			}
			return true, t.addBucket(w.bucket, sealed)
		})
		if err != nil {
			return err
		}
		s.mu.Lock()
		s.dataKeys[w.bucket] = d
		s.mu.Unlock()
	}
	return nil
}
