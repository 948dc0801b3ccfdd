package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// Rekey writes the store anew, with other data keys: what is left of the old file on
// the disk opens with none of the new ones, and nothing that was removed is in the new
// file. Reads go on meanwhile, writes wait. A crash leaves the old file or the new one.
//
// The master key stays, as does what MAC returns. The error has the code StoreFailed or
// StoreDamaged, and the old file is then used on; or it is that of ctx, whose end stops
// the waiting, not the work.
func (s *Store) Rekey(ctx context.Context) error {
	done := make(chan error, 1)
	select {
	case s.rewrites <- done:
	case <-ctx.Done():
		return fmt.Errorf("rewrite of the store: %w", ctx.Err())
	case <-s.closing:
		return failed(s.path, errClosed)
	case <-s.current().broken:
		return s.current().damage()
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

// purge rewrites the file because of what was removed.
func (s *Store) purge() {
	if err := s.rewrite(); err != nil {
		s.log.Warn("removed records could not be purged from the store yet", "store", s.path, "error", err)
		s.stale.after(purgeRetry)
	}
}

// rewriteStep is how many records are copied in one transaction.
const rewriteStep = 256

// rewrite is Rekey in the writer, so that nothing is written meanwhile.
func (s *Store) rewrite() (err error) {
	began := time.Now()
	keys, wrapped := make(map[string]dataKey), make(map[string][]byte)
	for bucket, old := range s.dataKeys {
		if keys[bucket], wrapped[bucket], err = s.keys.newDataKey(bucket, old.generation+1); err != nil {
			return failed(s.path, err)
		}
	}
	tmp, err := os.CreateTemp(filepath.Dir(s.path), "."+filepath.Base(s.path)+".*")
	if err != nil {
		return failed(s.path, err)
	}
	name := tmp.Name()
	defer os.Remove(name) // once it has its name, there is nothing
	next, err := fillFile(s.path, tmp, s.keys.header(format), wrapped, s.log)
	if err != nil {
		return err
	}
	copied, err := s.copyTo(next, keys)
	if err == nil {
		err = next.fd.Sync()
	}
	next.db.NoSync = false
	if err == nil {
		err = os.Rename(name, s.path)
	}
	if err != nil {
		return errors.Join(next.result(err), next.close())
	}
	s.mu.Lock()
	old := s.file
	s.file, s.dataKeys, s.rewrote = next, keys, time.Now()
	s.mu.Unlock()
	s.stale, s.sets = staleness{timer: s.stale.timer}, copied
	// The name is on the disk only now. A crash before that leaves the old file, in
	// which all is that was promised so far.
	err = errors.Join(syncDir(filepath.Dir(s.path)), old.close())
	s.log.Info("the store was written anew", "store", s.path, "records", copied.records(), "took", time.Since(began).Round(time.Millisecond))
	if err != nil {
		return failed(s.path, err)
	}
	return nil
}

// copyTo copies all records that open to another file, under other keys. Those that do
// not open are left behind, and said.
func (s *Store) copyTo(next *file, keys map[string]dataKey) (copied sets, err error) {
	copied = sets{}
	lost := 0
	for bucket := range keys {
		var after []byte
		for {
			var step []entry
			var last uint64
			if err := s.file.view(func(t txn) (err error) {
				step, err = t.records(bucket, after, rewriteStep)
				last = t.sequence()
				return err
			}); err != nil {
				return nil, err
			}
			err := next.update(func(t txn) (bool, error) {
				if err := t.setSequence(last); err != nil {
					return false, err
				}
				for _, e := range step {
					name, record, sequence, err := s.openRecord(bucket, e.key, e.value, last)
					if err != nil {
						lost++
						continue
					}
					sealed := s.keys.seal(keys[bucket], bucket, e.key, name, sequence, record)
					clear(record)
					if err := t.put(bucket, e.key, sealed); err != nil {
						return false, err
					}
					copied.put(s.keys, bucket, e.key, sealed)
				}
				return true, t.putSets(s.keys.sealSets(copied, last))
			})
			if err != nil {
				return nil, err
			}
			if len(step) < rewriteStep {
				break
			}
			after = step[len(step)-1].key
		}
	}
	if lost > 0 {
		s.log.Warn("records that could not be opened were left out of the new store", "store", s.path, "records", lost)
	}
	return copied, nil
}
