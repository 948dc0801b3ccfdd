package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/sessionctl/sessionctl/api"
)

// pass lets time go by, in a bubble of synctest.
func pass(d time.Duration) { <-time.After(d) }

// sealed returns the sealed forms of all records of a file, by bucket and key.
func sealed(t *testing.T, s *Store) map[string][]byte {
	t.Helper()
	all := map[string][]byte{}
	err := s.file.view(func(t txn) error {
		records, err := t.root(bucketRecords)
		if err != nil {
			return err
		}
		return records.ForEachBucket(func(bucket []byte) error {
			return records.Bucket(bucket).ForEach(func(k, v []byte) error {
				all[string(bucket)+"/"+string(k)] = bytes.Clone(v)
				return nil
			})
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// wantNoTemporary wants nothing in a store's directory but the store and its key.
func wantNoTemporary(t *testing.T, path string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if name := e.Name(); name != filepath.Base(path) && name != "master.key" {
			t.Errorf("%s is left", name)
		}
	}
}

// TestRekey: the same records with the same revisions, under other keys, in another
// file; and what was there before is not in it, neither of what lives nor of what was
// removed or overwritten.
func TestRekey(t *testing.T) {
	path := newPath(t)
	s := mustOpen(t, path)
	revisions := map[string]uint64{}
	for i := range 300 {
		name := fmt.Sprintf("CANARY-%d", i)
		revisions[name] = mustSwap(t, s.Bucket("sessions"), name, 0, fmt.Appendf(nil, "record of %s", name))
	}
	mustSwap(t, s.Bucket("latches"), "one", 0, []byte("CANARY-latch"))
	for i := range 100 {
		name := fmt.Sprintf("CANARY-%d", i)
		if i%2 == 0 {
			mustSwap(t, s.Bucket("sessions"), name, revisions[name], nil)
			delete(revisions, name)
		} else {
			revisions[name] = mustSwap(t, s.Bucket("sessions"), name, revisions[name], fmt.Appendf(nil, "record of %s", name))
		}
	}
	before, mac := sealed(t, s), s.MAC("x", []byte("y"))
	if err := s.Rekey(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantNoTemporary(t, path)
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for key, value := range before {
		if bytes.Contains(raw, value[headerSize:]) {
			t.Errorf("%s is still in the file", key)
		}
	}
	for range 2 {
		if got := s.Status(); got.Records != len(revisions)+1 || got.Err != nil {
			t.Errorf("%+v", got)
		}
		for name, revision := range revisions {
			record, got, err := s.Bucket("sessions").Load(name)
			if err != nil || got != revision || string(record) != "record of "+name {
				t.Fatalf("%s: %q %d %v, want revision %d", name, record, got, err, revision)
			}
		}
		if !bytes.Equal(s.MAC("x", []byte("y")), mac) {
			t.Error("MAC gives another value")
		}
		last := uint64(0)
		for _, r := range revisions {
			last = max(last, r)
		}
		if r := mustSwap(t, s.Bucket("latches"), fmt.Sprint(last), 0, []byte("x")); r <= last {
			t.Errorf("revision %d is given out again", r)
		}
		mustSwap(t, s.Bucket("latches"), fmt.Sprint(last), mustRevision(t, s, "latches", fmt.Sprint(last)), nil)
		mustClose(t, s)
		s = mustOpen(t, path)
	}
	for bucket, d := range s.dataKeys {
		if d.generation < 2 {
			t.Errorf("bucket %s has generation %d", bucket, d.generation)
		}
	}
	mustClose(t, s)
}

func mustRevision(t *testing.T, s *Store, bucket, name string) uint64 {
	t.Helper()
	_, revision, err := s.Bucket(bucket).Load(name)
	if err != nil {
		t.Fatal(err)
	}
	return revision
}

// TestRekeyUnderLoad: who reads sees no gap, who writes waits, and everything that was
// acknowledged is there.
func TestRekeyUnderLoad(t *testing.T) {
	path := newPath(t)
	s := mustOpen(t, path)
	b := s.Bucket("sessions")
	const fixed = 500
	for i := range fixed {
		mustSwap(t, b, fmt.Sprint("fixed", i), 0, bytes.Repeat([]byte{byte(i)}, 500))
	}
	var stop atomic.Bool
	var load sync.WaitGroup
	for r := range 4 {
		load.Go(func() {
			for i := r; !stop.Load(); i++ {
				record, _, err := b.Load(fmt.Sprint("fixed", i%fixed))
				if err != nil || len(record) != 500 {
					t.Errorf("read: %d bytes, %v", len(record), err)
					return
				}
			}
		})
	}
	acknowledged := make([]uint64, 4)
	for w := range acknowledged {
		load.Go(func() {
			for n := uint64(1); !stop.Load(); n++ {
				r, err := b.Swap(t.Context(), fmt.Sprint("writer", w), acknowledged[w], fmt.Append(nil, n))
				if err != nil {
					t.Errorf("write: %v", err)
					return
				}
				acknowledged[w] = r
			}
		})
	}
	load.Go(func() {
		seen := 0
		for !stop.Load() {
			seen = 0
			if err := b.Range(func(string, []byte, uint64) bool { seen++; return true }); err != nil || seen < fixed {
				t.Errorf("range: %d records, %v", seen, err)
				return
			}
		}
	})
	for range 10 {
		if err := s.Rekey(t.Context()); err != nil {
			t.Error(err)
		}
	}
	stop.Store(true)
	load.Wait()
	mustClose(t, s)
	s = mustOpen(t, path)
	for w, want := range acknowledged {
		if got := mustRevision(t, s, "sessions", fmt.Sprint("writer", w)); got != want {
			t.Errorf("writer %d: revision %d, acknowledged %d", w, got, want)
		}
	}
	mustClose(t, s)
	wantNoTemporary(t, path)
}

// TestPurge: a while after a removal the file is written anew by itself, once for many
// removals, and at the end of the store at the latest.
func TestPurge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := newPath(t)
		s := mustOpen(t, path)
		b := s.Bucket("sessions")
		remove := func(name string) {
			mustSwap(t, b, name, mustRevision(t, s, "sessions", name), nil)
		}
		rewritten := func() time.Time { return s.Status().RewriteTime }
		for i := range 40 {
			mustSwap(t, b, fmt.Sprint(i), 0, []byte("CANARY-record"))
		}
		before := sealed(t, s)
		pass(time.Hour)
		if !rewritten().IsZero() {
			t.Error("written anew for nothing")
		}
		remove("0")
		first := time.Now()
		pass(purgeQuiet - time.Millisecond)
		remove("1")
		pass(purgeQuiet - time.Millisecond)
		if !rewritten().IsZero() {
			t.Error("too soon")
		}
		pass(time.Millisecond)
		synctest.Wait()
		if got := rewritten().Sub(first); got != 2*purgeQuiet-time.Millisecond {
			t.Errorf("written anew after %v", got)
		}
		raw, err := os.ReadFile(path)
		for key, value := range before {
			if err != nil || bytes.Contains(raw, value[headerSize:]) {
				t.Errorf("%s is still in the file, %v", key, err)
			}
		}
		// Removals without end do not put it off without end.
		first = time.Now()
		for i := 2; i < 38; i++ {
			remove(fmt.Sprint(i))
			pass(time.Second)
		}
		if got := rewritten().Sub(first); got < purgeLimit-2*time.Second || got > purgeLimit {
			t.Errorf("written anew after %v", got)
		}
		pass(time.Minute)
		synctest.Wait()
		before = sealed(t, s)
		remove("38")
		mustClose(t, s)
		raw, err = os.ReadFile(path)
		for key, value := range before {
			if err != nil || bytes.Contains(raw, value[headerSize:]) {
				t.Errorf("%s is still in the closed file, %v", key, err)
			}
		}
	})
}

// TestRewriteFails: where the directory takes no new file, the old one is used on, and
// a purge is tried again.
func TestRewriteFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := newPath(t)
		s := mustOpen(t, path)
		b := s.Bucket("sessions")
		mustSwap(t, b, "a", 0, []byte("CANARY-a"))
		mustSwap(t, b, "b", 0, []byte("CANARY-b"))
		mustSwap(t, b, "b", mustRevision(t, s, "sessions", "b"), nil)
		dir := filepath.Dir(path)
		away := dir + ".away"
		if err := os.Rename(dir, away); err != nil {
			t.Fatal(err)
		}
		wantError(t, s.Rekey(t.Context()), api.StoreFailed, path, "removed")
		_, err := b.Swap(t.Context(), "b", 0, []byte("CANARY-b"))
		wantError(t, err, api.StoreFailed, path, "removed")
		pass(purgeQuiet)
		synctest.Wait()
		if !s.Status().RewriteTime.IsZero() {
			t.Error("written anew where nothing is")
		}
		if record, _, err := b.Load("a"); err != nil || string(record) != "CANARY-a" {
			t.Errorf("%q %v", record, err)
		}
		if err := os.Rename(away, dir); err != nil {
			t.Fatal(err)
		}
		pass(purgeRetry)
		synctest.Wait()
		if s.Status().RewriteTime.IsZero() {
			t.Error("not tried again")
		}
		mustClose(t, s)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := s.Rekey(ctx); err == nil {
			t.Error("a closed store is written anew")
		}
		wantError(t, s.Rekey(t.Context()), api.StoreFailed, "closed")
	})
}

// TestRewriteLeavesDamage: a record that does not open stops nothing, and is still known
// to have been there.
func TestRewriteLeavesDamage(t *testing.T) {
	path := newPath(t)
	s := mustOpen(t, path)
	for _, name := range []string{"a", "b"} {
		mustSwap(t, s.Bucket("sessions"), name, 0, []byte("of "+name))
	}
	mustClose(t, s)
	edit(t, path, func(tx *bbolt.Tx) error {
		b := tx.Bucket(bucketRecords).Bucket([]byte("sessions"))
		key := s.keys.recordKey("sessions", "a")
		value := bytes.Clone(b.Get(key))
		value[len(value)-1] ^= 1
		return b.Put(key, value)
	})
	s = mustOpen(t, path)
	if err := s.Rekey(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, _, err := s.Bucket("sessions").Load("a")
	wantError(t, err, api.StoreDamaged)
	if record, _, err := s.Bucket("sessions").Load("b"); string(record) != "of b" || err != nil {
		t.Errorf("%q %v", record, err)
	}
	mustClose(t, s)
}

// TestRewriteIsLocked: the file that a rewrite puts there is locked as the first one was.
func TestRewriteIsLocked(t *testing.T) {
	path := newPath(t)
	s := mustOpen(t, path)
	mustSwap(t, s.Bucket("sessions"), "a", 0, []byte("x"))
	if err := s.Rekey(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, err := Open(path, Options{Key: keyBeside(path), LockTimeout: 10 * time.Millisecond})
	wantError(t, err, api.StoreLocked, path)
	if err := errors.Join(s.Close(), s.Close()); err != nil {
		t.Error(err)
	}
}

// TestLeftovers: what a rewrite that was broken off has left is removed at the next
// start, and not while somebody else is still at it.
func TestLeftovers(t *testing.T) {
	path := newPath(t)
	mustClose(t, mustOpen(t, path))
	dir := filepath.Dir(path)
	dead, alive, key := filepath.Join(dir, ".store.db.123"), filepath.Join(dir, ".store.db.456"), filepath.Join(dir, ".master.key.12")
	other, swap := filepath.Join(dir, ".other.db.789"), filepath.Join(dir, ".store.db.swp")
	for _, name := range []string{dead, alive, key, other, swap} {
		if err := os.WriteFile(name, []byte("CANARY"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.OpenFile(alive, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	mustClose(t, mustOpen(t, path))
	for name, want := range map[string]bool{dead: false, key: false, alive: true, other: true, swap: true} {
		if _, err := os.Stat(name); (err == nil) != want {
			t.Errorf("%s: %v", filepath.Base(name), err)
		}
	}
}
