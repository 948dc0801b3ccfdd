package store

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"time"
)

// Rekey writes the store anew, with other data keys: what is left of the old file on
// the disk opens with none of the new ones, and nothing that was removed is in the new
// file. Reads go on meanwhile, writes wait. A crash leaves the old file or the new one.
//
// The master key stays, as does what MAC returns. The error has the code StoreFailed,
// StoreLocked, StoreKeyMissing or StoreDamaged: the old file is then used on, or, if only
// its end has failed, the new one. Or it is that of ctx, whose end stops the waiting, not
// the work.
func (s *Store) Rekey(ctx context.Context) error {
	done := make(chan error, 1)
	select {
	case s.rewrites <- done:
	case <-ctx.Done():
		return fmt.Errorf("rewrite of the store: %w", ctx.Err())
	case <-s.closing:
		return failed(s.path, errClosed)
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("rewrite of the store: %w", ctx.Err())
	}
}

// When what was removed is purged: bbolt leaves it in pages that it uses again some
// day. After one removal there are often others.
const (
	purgeQuiet = 2 * time.Second  // after the last removal
	purgeLimit = 30 * time.Second // after the first
	purgeRetry = time.Minute      // after a failure
)

// staleness is what the file still holds of removed records. It is the writer's.
type staleness struct {
	removed bool
	since   time.Time
	timer   *time.Timer
	due     <-chan time.Time // nil: nothing is
}

// remove takes note of a removal.
func (s *staleness) remove() {
	now := time.Now()
	if !s.removed {
		s.removed, s.since = true, now
	}
	s.after(min(purgeQuiet, max(purgeLimit-now.Sub(s.since), 0)))
}

func (s *staleness) after(d time.Duration) {
	if s.timer == nil {
		s.timer = time.NewTimer(d)
	} else {
		s.timer.Reset(d)
	}
	s.due = s.timer.C
}

// rekey is Rekey in the writer.
func (s *Store) rekey() error {
	if err := s.inPlace(); err != nil {
		return err
	}
	_, err := s.rewrite()
	if err != nil && s.file.isBroken() {
		return s.inPlace() // healed, it is another file with other keys, too
	}
	return err
}

// purge rewrites the file because of what was removed.
func (s *Store) purge() {
	err := s.rekey()
	s.note(&s.unpurged, err)
	if err != nil {
		s.log.Warn("removed records could not be purged from the store yet", "store", s.path, "error", err)
		s.stale.after(purgeRetry)
	}
}

// rewriteStep is how many records are copied in one transaction.
const rewriteStep = 256

// rewritten is a file that takes the place of another, with all that the writer has to
// know of it.
type rewritten struct {
	*file
	keys   map[string]dataKey
	stored sets
	last   uint64 // sequence given out
	// differs says that the records of the old file were not those of its set hashes.
	differs bool
}

// rewrite puts a new file in the place of the old one, in the writer, so that nothing is
// written meanwhile. If something else has that place, it is kept under the name aside.
func (s *Store) rewrite() (aside string, err error) {
	began := time.Now()
	next := rewritten{keys: make(map[string]dataKey), stored: sets{}, last: s.last}
	wrapped := make(map[string][]byte)
	for bucket, old := range s.dataKeys {
		if next.keys[bucket], wrapped[bucket], err = s.keys.newDataKey(bucket, old.generation+1); err != nil {
			return "", failed(s.path, err)
		}
	}
	next, aside, err = replaceFile(s.path, s.file.fd, false, func(empty *os.File) (rewritten, error) {
		if next.file, err = fillFile(s.path, empty, s.keys.header(format), began, wrapped, s.log); err != nil {
			return rewritten{}, err
		}
		if err := s.copyTo(&next); err != nil {
			return rewritten{}, errors.Join(next.result(err), next.close())
		}
		return next, nil
	})
	if err != nil {
		return "", err
	}
	if next.differs { // the new hashes are of what was there, so it is said now or never
		s.warn(fmt.Sprintf("store %s: its records are not those that were written last: somebody else has changed the file, or it is damaged; a refused password may be tried once more", s.path))
	}
	err = s.use(next)
	s.log.Info("the store was written anew", "store", s.path, "records", s.sets.records(), "took", time.Since(began).Round(time.Millisecond))
	return aside, err
}

// replaceFile makes a file, lets fill write a store to it, and gives it the name path when
// it is on the disk. What has that name now is kept as putInPlace says. The new file's name
// is not synced.
func replaceFile(path string, own *os.File, damaged bool, fill func(empty *os.File) (rewritten, error)) (next rewritten, aside string, err error) {
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return rewritten{}, "", failed(path, err)
	}
	name := tmp.Name()
	defer os.Remove(name) // once it has its name, there is nothing
	if next, err = fill(tmp); err != nil {
		return rewritten{}, "", err
	}
	if err = next.fd.Sync(); err == nil {
		aside, err = putInPlace(name, path, own, damaged)
	}
	if err != nil {
		return rewritten{}, "", errors.Join(next.result(err), next.close())
	}
	return next, aside, nil
}

// seal writes what says which records the file holds, once they are all there.
func (r *rewritten) seal(k *keyring) error {
	return r.update(func(t txn) (bool, error) {
		return true, errors.Join(t.setSequence(r.last), t.putSets(k.sealSets(r.stored, r.last)))
	})
}

// use takes another file, which has the store's name now.
func (s *Store) use(next rewritten) error {
	next.db.NoSync = false
	s.mu.Lock()
	old := s.file
	s.file, s.dataKeys = next.file, next.keys
	s.mu.Unlock()
	s.stale, s.sets, s.last = staleness{timer: s.stale.timer}, next.stored, next.last
	// The name is on the disk only now. A crash before that leaves the old file, in
	// which all is that was promised so far.
	s.unsynced = true
	return errors.Join(s.syncName(), old.close())
}

// syncName writes the file's name to the disk, if that was not done yet.
func (s *Store) syncName() error {
	if !s.unsynced {
		return nil
	}
	if err := syncDir(filepath.Dir(s.path)); err != nil {
		return failed(s.path, err)
	}
	s.unsynced = false
	return nil
}

// copyTo copies all records to another file, under other keys. Those that do not open are
// said.
func (s *Store) copyTo(next *rewritten) error {
	lost, found := 0, sets{}
	for bucket, d := range next.keys {
		var after []byte
		for {
			var step []entry
			var last uint64
			if err := s.file.view(func(t txn) (err error) {
				step, err = t.records(bucket, after, rewriteStep)
				last = t.sequence()
				return err
			}); err != nil {
				return err
			}
			next.last = last
			err := next.update(func(t txn) (bool, error) {
				for _, e := range step {
					found.put(s.keys, bucket, e.key, e.value)
					name, record, sequence, err := s.openRecord(bucket, e.key, e.value, last)
					sealed := e.value // as it is, so that who asks for it learns that it is damaged
					if err == nil {
						sealed = s.keys.seal(d, bucket, e.key, name, sequence, record)
						clear(record)
					} else if lost++; len(e.value) == 0 {
						continue // a bucket, where none belongs
					}
					if err := t.put(bucket, e.key, sealed); err != nil {
						return false, err
					}
					next.stored.put(s.keys, bucket, e.key, sealed)
				}
				return true, nil
			})
			if err != nil {
				return err
			}
			if len(step) < rewriteStep {
				break
			}
			after = step[len(step)-1].key
		}
	}
	if err := next.seal(s.keys); err != nil { // where there were no records, too
		return err
	}
	// It was the file that it is thought to be, all the time.
	if err := s.file.check(); err != nil {
		return err
	}
	next.differs = s.verified && !maps.Equal(found, s.sets)
	if lost > 0 {
		s.log.Warn("records that cannot be opened are in the new store as they were", "store", s.path, "records", lost)
	}
	return nil
}
