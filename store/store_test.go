package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/bbolt"

	"github.com/sessionctl/sessionctl/api"
)

func TestRoundTrip(t *testing.T) {
	path := newPath(t)
	s := mustOpen(t, path)
	sessions, tickets := s.Bucket("sessions"), s.Bucket("tickets")
	wantAbsent(t, sessions, "jira")

	r1 := mustSwap(t, sessions, "jira", 0, []byte("one"))
	r2 := mustSwap(t, tickets, "jira", 0, []byte("two"))
	r3 := mustSwap(t, sessions, "empty", 0, []byte{})
	r4 := mustSwap(t, sessions, "jira", r1, []byte("three"))
	r5 := mustSwap(t, sessions, "", 0, []byte("no name"))
	if !(0 < r1 && r1 < r2 && r2 < r3 && r3 < r4 && r4 < r5) {
		t.Errorf("revisions %d %d %d %d %d do not grow", r1, r2, r3, r4, r5)
	}
	mac := s.MAC("latch", []byte("CANARY-secret"))

	check := func(s *Store) {
		t.Helper()
		sessions := s.Bucket("sessions")
		wantRecord(t, sessions, "jira", "three", r4)
		wantRecord(t, s.Bucket("tickets"), "jira", "two", r2)
		wantRecord(t, sessions, "", "no name", r5)
		wantRecord(t, sessions, "empty", "", r3)
		if got, _, _ := sessions.Load("empty"); got == nil {
			t.Error("an empty record is loaded as nil, which means none")
		}
		wantAbsent(t, s.Bucket("tickets"), "empty")
		wantAbsent(t, s.Bucket("latches"), "jira")
		if !bytes.Equal(s.MAC("latch", []byte("CANARY-secret")), mac) {
			t.Error("the MAC has changed")
		}
		st := s.Status()
		if st.Path != path || st.Format != format || st.Records != 4 || st.Err != nil ||
			st.KeySource != "key file "+filepath.Join(filepath.Dir(path), "master.key") {
			t.Errorf("status %+v", st)
		}
		if info, err := os.Stat(path); err != nil || info.Size() != st.SizeBytes || info.Mode() != 0o600 {
			t.Errorf("file %v, %v; status has size %d", info, err, st.SizeBytes)
		}
	}
	check(s)
	record, _, _ := sessions.Load("jira")
	mustClose(t, s)
	if string(record) != "three" {
		t.Error("a loaded record does not outlive the store")
	}
	s = mustOpen(t, path)
	check(s)

	// A removed record comes back with a revision of its own.
	mustSwap(t, s.Bucket("sessions"), "jira", r4, nil)
	wantAbsent(t, s.Bucket("sessions"), "jira")
	if r := mustSwap(t, s.Bucket("sessions"), "jira", 0, []byte("again")); r <= r5 {
		t.Errorf("revision %d after %d", r, r5)
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 2 {
		t.Errorf("beside store and key there is something: %v, %v", entries, err)
	}
}

func TestSwapConflicts(t *testing.T) {
	s := mustOpen(t, newPath(t))
	b := s.Bucket("sessions")
	wantConflict := func(revision uint64, record []byte) {
		t.Helper()
		if r, err := b.Swap(t.Context(), "a", revision, record); !errors.Is(err, ErrConflict) || r != 0 {
			t.Errorf("Swap at %d: %d, %v; want ErrConflict", revision, r, err)
		}
	}
	wantConflict(1, []byte("x")) // not there
	wantConflict(1, nil)
	mustSwap(t, b, "a", 0, nil) // nothing to remove: no conflict
	r1 := mustSwap(t, b, "a", 0, []byte("one"))
	wantConflict(0, []byte("x")) // there
	wantConflict(0, nil)
	r2 := mustSwap(t, b, "a", r1, []byte("two"))
	wantConflict(r1, []byte("x")) // older
	wantConflict(r1, nil)
	wantConflict(r2+1, []byte("x")) // not given out
	wantRecord(t, b, "a", "two", r2)
}

func TestSwapConcurrently(t *testing.T) {
	const workers, rounds = 16, 20
	s := mustOpen(t, newPath(t))
	b := s.Bucket("sessions")
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for done := 0; done < rounds; {
				record, revision, err := b.Load("counter")
				if err != nil {
					t.Error(err)
					return
				}
				n, _ := strconv.Atoi(string(record))
				_, err = b.Swap(t.Context(), "counter", revision, []byte(strconv.Itoa(n+1)))
				switch {
				case err == nil:
					done++
				case !errors.Is(err, ErrConflict):
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if record, _, err := b.Load("counter"); string(record) != strconv.Itoa(workers*rounds) {
		t.Errorf("counter is %s, %v; want %d", record, err, workers*rounds)
	}
}

func TestRange(t *testing.T) {
	s := mustOpen(t, newPath(t))
	b := s.Bucket("sessions")
	want := make(map[string]uint64)
	for i := range 3*rangeStep + 1 {
		name := fmt.Sprint("name ", i)
		want[name] = mustSwap(t, b, name, 0, []byte("of "+name))
	}
	got := make(map[string]uint64)
	err := b.Range(func(name string, record []byte, revision uint64) bool {
		if string(record) != "of "+name {
			t.Errorf("%s has record %s", name, record)
		}
		// The store may be used from in here, for writing too.
		if name == "name 7" {
			revision = mustSwap(t, b, name, revision, []byte("of "+name))
			want[name] = revision
		}
		if _, seen := got[name]; seen {
			t.Errorf("%s was seen twice", name)
		}
		got[name] = revision
		return true
	})
	if err != nil || !maps.Equal(got, want) {
		t.Errorf("Range: %v, %v; want %v", got, err, want)
	}
	n := 0
	if err := b.Range(func(string, []byte, uint64) bool { n++; return n < 5 }); err != nil || n != 5 {
		t.Errorf("Range that stops: %d records, %v", n, err)
	}
	if err := s.Bucket("none").Range(func(string, []byte, uint64) bool { t.Error("a record of nothing"); return false }); err != nil {
		t.Error(err)
	}
}

func TestMAC(t *testing.T) {
	s, other := mustOpen(t, newPath(t)), mustOpen(t, newPath(t))
	sum := func(s *Store, purpose string, data ...string) string {
		var parts [][]byte
		for _, d := range data {
			parts = append(parts, []byte(d))
		}
		return string(s.MAC(purpose, parts...))
	}
	base := sum(s, "a", "b", "c")
	if len(base) != 32 || base != sum(s, "a", "b", "c") {
		t.Error("a MAC is not 32 bytes that stay the same")
	}
	for name, m := range map[string]string{
		"other purpose": sum(s, "x", "b", "c"), "joined": sum(s, "a", "bc"), "moved": sum(s, "ab", "c"),
		"more": sum(s, "a", "b", "c", ""), "other store": sum(other, "a", "b", "c"),
	} {
		if m == base {
			t.Errorf("%s: the same MAC", name)
		}
	}
}

// What waits together is committed together, and each learns its own result.
func TestGroupCommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := newPath(t)
		s, err := open(path, Options{Key: keyBeside(path)})
		if err != nil {
			t.Fatal(err)
		}
		s.verify()
		before := commits(t, s)
		b := s.Bucket("sessions")
		var wg sync.WaitGroup
		for i := range 64 {
			wg.Go(func() {
				if _, err := b.Swap(t.Context(), fmt.Sprint(i), 0, []byte("x")); err != nil {
					t.Error(err)
				}
			})
		}
		for i := range 8 {
			wg.Go(func() {
				if _, err := b.Swap(t.Context(), fmt.Sprint("conflict ", i), 99, []byte("x")); !errors.Is(err, ErrConflict) {
					t.Errorf("got %v, want ErrConflict", err)
				}
			})
		}
		synctest.Wait() // all of them are waiting for a writer
		go s.write()
		wg.Wait()
		// One transaction makes the bucket with its key, one has the records.
		if n := commits(t, s) - before; n != 2 {
			t.Errorf("64 writes took %d transactions, want 2", n)
		}
		if n := s.Status().Records; n != 64 {
			t.Errorf("%d records, want 64", n)
		}
		before = commits(t, s)
		if _, err := b.Swap(t.Context(), "0", 99, []byte("x")); !errors.Is(err, ErrConflict) {
			t.Error(err)
		}
		if n := commits(t, s) - before; n != 0 {
			t.Errorf("a conflict took %d transactions", n)
		}
		mustClose(t, s)
	})
}

func TestSwapContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := newPath(t)
		s, err := open(path, Options{Key: keyBeside(path)})
		if err != nil {
			t.Fatal(err)
		}
		s.verify()
		b := s.Bucket("sessions")

		// Nobody takes the write: it is not done.
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := b.Swap(ctx, "not taken", 0, []byte("x")); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want the deadline", err)
		}
		// The writer has taken it: it is done, though nobody waits any more,
		// and what the caller does to its buffer has no influence.
		ctx, cancel = context.WithCancel(t.Context())
		buffer := []byte("kept")
		result := make(chan error, 1)
		go func() {
			_, err := b.Swap(ctx, "taken", 0, buffer)
			result <- err
		}()
		w := <-s.swaps
		cancel()
		if err := <-result; !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want the cancellation", err)
		}
		copy(buffer, "gone")
		s.commit([]*swap{w})
		wantRecord(t, b, "taken", "kept", 1)
		wantAbsent(t, b, "not taken")

		go s.write()
		if _, err := b.Swap(ctx, "too late", 0, []byte("x")); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want the cancellation", err)
		}
		wantAbsent(t, b, "too late")
		mustClose(t, s)
	})
}

// No test can see a power failure; these are what bbolt syncs by.
func TestSyncs(t *testing.T) {
	db := mustOpen(t, newPath(t)).file.db
	if db.NoSync || db.NoFreelistSync || db.NoGrowSync {
		t.Error("a commit returns before it is on the disk")
	}
}

func TestAfterClose(t *testing.T) {
	path := newPath(t)
	s := mustOpen(t, path)
	b := s.Bucket("sessions")
	mustSwap(t, b, "a", 0, []byte("x"))
	mustClose(t, s)
	mustClose(t, s)
	_, err := b.Swap(t.Context(), "a", 0, []byte("y"))
	wantError(t, err, api.StoreFailed, path, "closed")
	_, _, err = b.Load("a")
	wantError(t, err, api.StoreFailed, path, "closed")
	wantError(t, b.Range(func(string, []byte, uint64) bool { return true }), api.StoreFailed, "closed")
	wantError(t, s.Status().Err, api.StoreFailed, "closed")
}

// Writers that are busy when the store is closed get an answer that is true.
func TestCloseWhileWriting(t *testing.T) {
	path := newPath(t)
	s := mustOpen(t, path)
	var mu sync.Mutex
	stored := make(map[string]uint64)
	var wg sync.WaitGroup
	first := make(chan struct{}, 16)
	for w := range 16 {
		wg.Go(func() {
			for i := 0; ; i++ {
				name := fmt.Sprint(w, " ", i)
				r, err := s.Bucket("sessions").Swap(t.Context(), name, 0, []byte(name))
				if err != nil {
					wantError(t, err, api.StoreFailed, "closed")
					return
				}
				mu.Lock()
				stored[name] = r
				mu.Unlock()
				if i == 0 {
					first <- struct{}{}
				}
			}
		})
	}
	for range 16 {
		<-first
	}
	mustClose(t, s)
	wg.Wait()
	s = mustOpen(t, path)
	got := make(map[string]uint64)
	err := s.Bucket("sessions").Range(func(name string, _ []byte, r uint64) bool { got[name] = r; return true })
	if err != nil || !maps.Equal(got, stored) {
		t.Errorf("%d records are stored, %d were acknowledged; %v", len(got), len(stored), err)
	}
}

// A record opens nowhere but where it was put.
func TestMovedRecords(t *testing.T) {
	put := func(tx *bbolt.Tx, bucket string, key, value []byte) error {
		return tx.Bucket(bucketRecords).Bucket([]byte(bucket)).Put(key, bytes.Clone(value))
	}
	get := func(tx *bbolt.Tx, bucket string, key []byte) []byte {
		return bytes.Clone(tx.Bucket(bucketRecords).Bucket([]byte(bucket)).Get(key))
	}
	// The keyring finds the places; whoever moves records finds them by looking.
	tests := map[string]struct {
		edit func(tx *bbolt.Tx, k *keyring, foreign []byte) error
		bad  []string // bucket/name
	}{
		"two names changed places": {func(tx *bbolt.Tx, k *keyring, _ []byte) error {
			a, b := k.recordKey("sessions", "a"), k.recordKey("sessions", "b")
			va, vb := get(tx, "sessions", a), get(tx, "sessions", b)
			return errors.Join(put(tx, "sessions", a, vb), put(tx, "sessions", b, va))
		}, []string{"sessions/a", "sessions/b"}},
		"copied to another bucket": {func(tx *bbolt.Tx, k *keyring, _ []byte) error {
			return put(tx, "tickets", k.recordKey("tickets", "a"), get(tx, "sessions", k.recordKey("sessions", "a")))
		}, []string{"tickets/a"}},
		"copied to another bucket under the same key": {func(tx *bbolt.Tx, k *keyring, _ []byte) error {
			a := k.recordKey("sessions", "a")
			return put(tx, "tickets", a, get(tx, "sessions", a))
		}, []string{"tickets/*"}},
		"from another store with the same master key": {func(tx *bbolt.Tx, k *keyring, foreign []byte) error {
			return put(tx, "sessions", k.recordKey("sessions", "a"), foreign)
		}, []string{"sessions/a"}},
		"the counter was set back": {func(tx *bbolt.Tx, k *keyring, _ []byte) error {
			return tx.Bucket(bucketMeta).SetSequence(3)
		}, []string{"tickets/a"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			path := newPath(t)
			s := mustOpen(t, path)
			other, err := Open(filepath.Join(filepath.Dir(path), "other.db"), Options{Key: keyBeside(path)})
			if err != nil {
				t.Fatal(err)
			}
			mustSwap(t, other.Bucket("sessions"), "a", 0, []byte("foreign"))
			var foreign []byte
			err = other.file.view(func(tx txn) error {
				foreign = get(tx.tx, "sessions", other.keys.recordKey("sessions", "a"))
				return nil
			})
			if err != nil || foreign == nil {
				t.Fatal(err)
			}
			mustClose(t, other)
			revisions := map[string]uint64{}
			for _, r := range []string{"sessions/a", "sessions/b", "sessions/c", "tickets/a"} {
				bucket, name, _ := strings.Cut(r, "/")
				revisions[r] = mustSwap(t, s.Bucket(bucket), name, 0, []byte("of "+r))
			}
			mustClose(t, s)
			edit(t, path, func(tx *bbolt.Tx) error { return test.edit(tx, s.keys, foreign) })

			s = mustOpen(t, path)
			inRange := map[string]bool{}
			for _, bucket := range []string{"sessions", "tickets"} {
				err := s.Bucket(bucket).Range(func(name string, record []byte, _ uint64) bool {
					inRange[bucket+"/"+name] = string(record) == "of "+bucket+"/"+name
					return true
				})
				hit := strings.Contains(strings.Join(test.bad, " "), bucket)
				if hit {
					wantError(t, err, api.StoreDamaged, bucket, path)
				} else if err != nil {
					t.Error(err)
				}
			}
			for r, revision := range revisions {
				bucket, name, _ := strings.Cut(r, "/")
				if strings.Contains(strings.Join(test.bad, " "), r) {
					_, _, err := s.Bucket(bucket).Load(name)
					wantError(t, err, api.StoreDamaged, bucket, path)
					if inRange[r] {
						t.Errorf("Range shows %s", r)
					}
					continue
				}
				wantRecord(t, s.Bucket(bucket), name, "of "+r, revision)
				if !inRange[r] {
					t.Errorf("Range does not show %s", r)
				}
			}
		})
	}
}

// Each bit of a stored record counts, and damage stays where it is.
func TestBitFlips(t *testing.T) {
	path := newPath(t)
	s := mustOpen(t, path)
	r := mustSwap(t, s.Bucket("sessions"), "good", 0, []byte("good"))
	mustSwap(t, s.Bucket("sessions"), "bad", 0, []byte("bad"))
	key := s.keys.recordKey("sessions", "bad")
	mustClose(t, s)
	var size int
	edit(t, path, func(tx *bbolt.Tx) error {
		size = len(tx.Bucket(bucketRecords).Bucket([]byte("sessions")).Get(key))
		return nil
	})
	if want := headerSize + 12 + 4 + len("bad") + len("bad") + 16; size != want {
		t.Fatalf("the record has %d bytes, want %d", size, want)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	flip := func(i int) {
		if err := os.WriteFile(path, good, 0); err != nil {
			t.Fatal(err)
		}
		edit(t, path, func(tx *bbolt.Tx) error {
			b := tx.Bucket(bucketRecords).Bucket([]byte("sessions"))
			v := bytes.Clone(b.Get(key))
			v[i] ^= 1 << (i % 8)
			return b.Put(key, v)
		})
	}
	var log logBuffer
	for i := range size {
		flip(i)
		s, err := Open(path, Options{Key: keyBeside(path), Log: log.logger()})
		if err != nil {
			t.Fatal(err)
		}
		_, _, err = s.Bucket("sessions").Load("bad")
		wantError(t, err, api.StoreDamaged, "sessions", path, "login")
		wantRecord(t, s.Bucket("sessions"), "good", "good", r)
		mustClose(t, s)
	}
	flip(0)
	s, err = Open(path, Options{Key: keyBeside(path), Log: log.logger()})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	// What cannot be opened can be replaced.
	r = mustSwap(t, s.Bucket("sessions"), "bad", 0, []byte("anew"))
	wantRecord(t, s.Bucket("sessions"), "bad", "anew", r)
	if !strings.Contains(log.String(), "cannot be opened") {
		t.Errorf("the log does not tell of it: %s", &log)
	}
}

// Nothing that is put into a store can be read from its file, log or errors.
func TestCanaries(t *testing.T) {
	path := newPath(t)
	var log logBuffer
	s, err := Open(path, Options{Key: keyBeside(path), Log: log.logger()})
	if err != nil {
		t.Fatal(err)
	}
	var texts []string
	keep := func(err error) {
		t.Helper()
		if err == nil {
			t.Error("no error to look at")
			return
		}
		e := api.AsError(err)
		texts = append(texts, err.Error(), fmt.Sprintf("%+v %#v", err, err), e.Detail, e.Remedy, fmt.Sprint(e.Err))
	}
	const name, record, latched = "CANARY-name.corp.example", "CANARY-cookie-value", "CANARY-password"
	b := s.Bucket("sessions")
	r := mustSwap(t, b, name, 0, []byte(record))
	mustSwap(t, b, name+"2", 0, []byte(record))
	mustSwap(t, s.Bucket("latches"), "x", 0, s.MAC("latch", []byte(latched)))
	_, err = b.Swap(t.Context(), name, 0, []byte(record))
	keep(err)
	mustSwap(t, b, name, r, nil)
	_, err = Open(path, Options{Key: keyBeside(path), LockTimeout: time.Millisecond})
	keep(err)
	status := s.Status()
	texts = append(texts, fmt.Sprintf("%+v", status))
	mustClose(t, s)
	_, err = b.Swap(t.Context(), name, 0, []byte(record))
	keep(err)

	edit(t, path, func(tx *bbolt.Tx) error {
		sessions := tx.Bucket(bucketRecords).Bucket([]byte("sessions"))
		k, v := sessions.Cursor().First()
		v = bytes.Clone(v)
		v[len(v)-1] ^= 1
		return sessions.Put(bytes.Clone(k), v)
	})
	s, err = Open(path, Options{Key: keyBeside(path), Log: log.logger()})
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = s.Bucket("sessions").Load(name + "2")
	keep(err)
	keep(s.Bucket("sessions").Range(func(string, []byte, uint64) bool { return true }))
	mustSwap(t, s.Bucket("sessions"), name+"2", 0, []byte(record))
	mustClose(t, s)

	master, err := os.ReadFile(filepath.Join(filepath.Dir(path), "master.key"))
	if err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(raw, []byte("sessions")) {
		t.Error("the search finds nothing at all")
	}
	texts = append(texts, string(raw), log.String())
	for _, text := range texts {
		for _, secret := range []string{"CANARY", string(master), "corp.example", "cookie"} {
			if strings.Contains(text, secret) {
				t.Errorf("%.12q… is in %.200q", secret, text)
			}
		}
	}
	if !strings.Contains(log.String(), "made a new master key") {
		t.Errorf("the log does not tell of the new key: %s", &log)
	}
}
