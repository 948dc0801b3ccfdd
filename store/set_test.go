package store

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"go.etcd.io/bbolt"

	"github.com/sessionctl/sessionctl/api"
)

// TestChangedSets: what somebody does to the records of a store while it is closed is
// noticed at the next start, also where each record that is left is one that the store
// has written; and only once.
func TestChangedSets(t *testing.T) {
	records := func(tx *bbolt.Tx, bucket string) *bbolt.Bucket {
		return tx.Bucket(bucketRecords).Bucket([]byte(bucket))
	}
	for name, c := range map[string]struct {
		edit func(tx *bbolt.Tx, k *keyring, old map[string][]byte) error
		want string // "": nothing is noticed
	}{
		"nothing": {func(*bbolt.Tx, *keyring, map[string][]byte) error { return nil }, ""},
		"a record was removed": {func(tx *bbolt.Tx, k *keyring, _ map[string][]byte) error {
			return records(tx, "sessions").Delete(k.recordKey("sessions", "a"))
		}, "records of sessions are"},
		"an older version was put back": {func(tx *bbolt.Tx, k *keyring, old map[string][]byte) error {
			key := k.recordKey("latches", "one")
			return records(tx, "latches").Put(key, old["latches/"+string(key)])
		}, "records of latches are"},
		"what was removed was put back": {func(tx *bbolt.Tx, k *keyring, old map[string][]byte) error {
			key := k.recordKey("sessions", "gone")
			return records(tx, "sessions").Put(key, old["sessions/"+string(key)])
		}, "records of sessions are"},
		"two of them": {func(tx *bbolt.Tx, k *keyring, old map[string][]byte) error {
			one, gone := k.recordKey("latches", "one"), k.recordKey("sessions", "gone")
			return errors.Join(records(tx, "latches").Put(one, old["latches/"+string(one)]), records(tx, "sessions").Put(gone, old["sessions/"+string(gone)]))
		}, "records of latches, sessions are"},
		"a record was moved": {func(tx *bbolt.Tx, k *keyring, _ map[string][]byte) error {
			b := records(tx, "sessions")
			v := bytes.Clone(b.Get(k.recordKey("sessions", "a")))
			return errors.Join(b.Delete(k.recordKey("sessions", "a")), b.Put(k.recordKey("sessions", "z"), v))
		}, "records of sessions are"},
		"a bucket was emptied": {func(tx *bbolt.Tx, k *keyring, _ map[string][]byte) error {
			return errors.Join(tx.Bucket(bucketRecords).DeleteBucket([]byte("latches")), tx.Bucket(bucketKeys).Delete([]byte("latches")))
		}, "records of latches are"},
		"the hashes were removed": {func(tx *bbolt.Tx, _ *keyring, _ map[string][]byte) error {
			return tx.Bucket(bucketMeta).Delete(metaSets)
		}, "cannot be read: they are missing"},
		"the hashes were changed": {func(tx *bbolt.Tx, _ *keyring, _ map[string][]byte) error {
			v := bytes.Clone(tx.Bucket(bucketMeta).Get(metaSets))
			v[len(v)/2] ^= 1
			return tx.Bucket(bucketMeta).Put(metaSets, v)
		}, "cannot be read: its seal is broken"},
		"the counter was set back": {func(tx *bbolt.Tx, _ *keyring, _ map[string][]byte) error {
			return tx.Bucket(bucketMeta).SetSequence(tx.Bucket(bucketMeta).Sequence() - 1)
		}, "counter was set"},
	} {
		path := newPath(t)
		s := mustOpen(t, path)
		for i := range 300 { // more than a step
			mustSwap(t, s.Bucket("sessions"), fmt.Sprint(i), 0, []byte("CANARY-record"))
		}
		a := mustSwap(t, s.Bucket("sessions"), "a", 0, []byte("CANARY-a"))
		gone := mustSwap(t, s.Bucket("sessions"), "gone", 0, []byte("CANARY-gone"))
		one := mustSwap(t, s.Bucket("latches"), "one", 0, []byte("CANARY-refused"))
		old := sealed(t, s)
		mustSwap(t, s.Bucket("latches"), "one", one, []byte("CANARY-again"))
		mustSwap(t, s.Bucket("sessions"), "gone", gone, nil)
		s.stale.removed = false // or it would be written anew, and the old versions open no more
		mustClose(t, s)
		if _, ok := old["sessions/"+string(s.keys.recordKey("sessions", "a"))]; !ok || a == 0 {
			t.Fatal("nothing is known of the records")
		}
		edit(t, path, func(tx *bbolt.Tx) error { return c.edit(tx, s.keys, old) })

		var log logBuffer
		for again := range 2 {
			s, err := Open(path, Options{Key: keyBeside(path), Log: log.logger()})
			if err != nil {
				t.Fatal(err)
			}
			st := s.Status()
			want := c.want
			if again > 0 {
				want = ""
			}
			if (st.Warning == "") != (want == "") || !strings.Contains(st.Warning, want) || st.Err != nil {
				t.Errorf("%s, %d: %q %v, want %q", name, again, st.Warning, st.Err, want)
			}
			if record, _, err := s.Bucket("sessions").Load("0"); err != nil || string(record) != "CANARY-record" {
				t.Errorf("%s: %q %v", name, record, err)
			}
			mustSwap(t, s.Bucket("other"), fmt.Sprint(again), 0, []byte("x")) // from now on these are the records
			mustClose(t, s)
		}
		if strings.Contains(log.String(), "CANARY") || (c.want != "") != strings.Contains(log.String(), "level=ERROR") {
			t.Errorf("%s: the log says %s", name, &log)
		}
	}
}

// TestSetsSealed: every form of the sealed hashes that was not made here is an error.
func TestSetsSealed(t *testing.T) {
	k, _ := testKeyring(t)
	s := sets{}
	for i := range 20 {
		s.put(k, fmt.Sprint("bucket", i%3), []byte{byte(i)}, bytes.Repeat([]byte{byte(i)}, 50))
	}
	b := k.sealSets(s, 77)
	got, last, err := k.openSets(b)
	if err != nil || last != 77 || len(got) != 3 || got.records() != 20 {
		t.Fatalf("%v %d %v", got, last, err)
	}
	for bucket, h := range s {
		if got[bucket] != h {
			t.Errorf("%s: %v, want %v", bucket, got[bucket], h)
		}
	}
	for i := range 20 { // in any order
		s.remove(k, fmt.Sprint("bucket", i%3), []byte{byte(i)}, bytes.Repeat([]byte{byte(i)}, 50))
	}
	if len(s) != 0 {
		t.Errorf("left: %v", s)
	}
	for i := range b {
		damaged := bytes.Clone(b)
		damaged[i] ^= 1
		if _, _, err := k.openSets(damaged); err == nil {
			t.Errorf("byte %d was changed", i)
		}
		if _, _, err := k.openSets(b[:i]); err == nil {
			t.Errorf("cut to %d bytes", i)
		}
	}
	other, _ := testKeyring(t)
	if _, _, err := other.openSets(b); err == nil {
		t.Error("another store's open")
	}
}

// asFormat makes a closed store one of an older format.
func asFormat(t *testing.T, path string, k *keyring, older byte) {
	t.Helper()
	edit(t, path, func(tx *bbolt.Tx) error {
		meta, keys := tx.Bucket(bucketMeta), tx.Bucket(bucketKeys)
		wrapped := map[string][]byte{}
		err := keys.ForEach(func(bucket, raw []byte) error {
			key, err := k.wrap.Open(nil, nil, raw[4:], k.place(format, string(bucket), raw[:4]))
			wrapped[string(bucket)] = k.wrap.Seal(bytes.Clone(raw[:4]), nil, key, k.place(older, string(bucket), raw[:4]))
			return err
		})
		for bucket, raw := range wrapped {
			err = errors.Join(err, keys.Put([]byte(bucket), raw))
		}
		if older == 1 {
			err = errors.Join(err, meta.Delete(metaSets))
		}
		return errors.Join(err, meta.Put(metaFormat, []byte{older}), meta.Put(metaCheck, k.header(older).check))
	})
}

// TestOlderFormat: a store of an older format is written anew as it is opened, or saved
// from when it is damaged, and has lost nothing.
func TestOlderFormat(t *testing.T) {
	for older := byte(oldestFormat); older < format; older++ {
		t.Run(fmt.Sprint(older), func(t *testing.T) { testOlderFormat(t, older) })
	}
}

func testOlderFormat(t *testing.T, older byte) {
	path := newPath(t)
	s := mustOpen(t, path)
	revision := mustSwap(t, s.Bucket("sessions"), "a", 0, []byte("CANARY-a"))
	mac := s.MAC("x", []byte("y"))
	mustClose(t, s)
	asFormat(t, path, s.keys, older)
	damagedPath := newPath(t)
	old, err := os.ReadFile(path)
	if err == nil {
		err = errors.Join(os.MkdirAll(filepath.Dir(damagedPath), 0o700), os.WriteFile(damagedPath, rootsGone(old), 0o600), os.Link(filepath.Join(filepath.Dir(path), "master.key"), filepath.Join(filepath.Dir(damagedPath), "master.key")))
	}
	if err != nil {
		t.Fatal(err)
	}
	saved, err := Mend(damagedPath, Options{Key: keyBeside(damagedPath)})
	if err != nil {
		t.Fatal(err)
	}
	wantRecord(t, saved.Bucket("sessions"), "a", "CANARY-a", revision)
	mustClose(t, saved)
	for range 2 {
		s = mustOpen(t, path)
		record, got, err := s.Bucket("sessions").Load("a")
		if err != nil || got != revision || string(record) != "CANARY-a" || !bytes.Equal(s.MAC("x", []byte("y")), mac) {
			t.Errorf("%q %d %v, want revision %d", record, got, err, revision)
		}
		if st := s.Status(); st.Format != format || st.Warning != "" || st.RewriteTime.IsZero() {
			t.Errorf("%+v", st)
		}
		if r := mustSwap(t, s.Bucket("sessions"), "a", revision, []byte("CANARY-a")); r <= revision {
			t.Errorf("revision %d after %d", r, revision)
		} else {
			revision = r
		}
		mustClose(t, s)
	}
	wantNoTemporary(t, path)
	edit(t, path, func(tx *bbolt.Tx) error { return tx.Bucket(bucketMeta).Put(metaFormat, []byte{older}) })
	_, err = Open(path, Options{Key: keyBeside(path)})
	wantError(t, err, api.StoreDamaged, path, "header") // whose check is that of another format
	// One that somebody has from before does not help: the data keys know the format too.
	edit(t, path, func(tx *bbolt.Tx) error {
		return tx.Bucket(bucketMeta).Put(metaCheck, s.keys.header(older).check)
	})
	_, err = Open(path, Options{Key: keyBeside(path)})
	wantError(t, err, api.StoreDamaged, path, "data key")
}

// TestLaterFormat: a store of a format to come is left to the version that knows it.
func TestLaterFormat(t *testing.T) {
	path := newPath(t)
	s := mustOpen(t, path)
	mustSwap(t, s.Bucket("sessions"), "a", 0, []byte("CANARY-a"))
	mustClose(t, s)
	edit(t, path, func(tx *bbolt.Tx) error {
		meta := tx.Bucket(bucketMeta)
		return errors.Join(meta.Put(metaFormat, []byte{format + 1}), meta.Put(metaCheck, s.keys.header(format+1).check))
	})
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, open := range []func(string, Options) (*Store, error){Open, Mend} {
		_, err = open(path, Options{Key: keyBeside(path)})
		wantError(t, err, api.VersionSkew, path, "format 4", "formats 1 to 3")
	}
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(before, after) {
		t.Errorf("it was changed, %v", err)
	}
}

// TestHeaderBits: one bit of what the header says costs nothing: what opens with the
// master key is saved, be the header as it may.
func TestHeaderBits(t *testing.T) {
	path := newPath(t)
	s := mustOpen(t, path)
	revision := mustSwap(t, s.Bucket("sessions"), "a", 0, []byte("CANARY-a"))
	for range 5 { // so that no older page has the header, too
		revision = mustSwap(t, s.Bucket("sessions"), "a", revision, []byte("CANARY-a"))
	}
	mustClose(t, s)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range [][]byte{metaFormat, metaID, metaCheck} {
		for _, bit := range []int{0, 7} {
			if err := os.WriteFile(path, good, 0o600); err != nil {
				t.Fatal(err)
			}
			edit(t, path, func(tx *bbolt.Tx) error {
				v := bytes.Clone(tx.Bucket(bucketMeta).Get(name))
				v[len(v)/2] ^= 1 << bit
				return tx.Bucket(bucketMeta).Put(name, v)
			})
			s, err := Mend(path, Options{Key: keyBeside(path)})
			if err != nil {
				t.Errorf("bit %d of %s: %v", bit, name, err)
				continue
			}
			wantRecord(t, s.Bucket("sessions"), "a", "CANARY-a", revision)
			mustClose(t, s)
		}
	}
}

// TestHeaderAmongRecords: the data keys are found among records that are as long.
func TestHeaderAmongRecords(t *testing.T) {
	path := newPath(t)
	s := mustOpen(t, path)
	var wg sync.WaitGroup
	for i := range 600 {
		wg.Go(func() { // 19 bytes of name and record are 64 when they are sealed
			if _, err := s.Bucket("sessions").Swap(t.Context(), fmt.Sprintf("%09d", i), 0, []byte("CANARY-abc")); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	mustClose(t, s)
	file, err := os.ReadFile(path)
	if err == nil {
		err = os.WriteFile(path, rootsGone(file), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	s, err = Mend(path, Options{Key: keyBeside(path)})
	if err != nil {
		t.Fatal(err)
	}
	if n := s.Status().Records; n != 600 {
		t.Errorf("%d records", n)
	}
	mustClose(t, s)
}

// TestQuota: a full store takes no new record, but others in the place of old ones.
func TestQuota(t *testing.T) {
	s := mustOpen(t, newPath(t))
	b := s.Bucket("sessions")
	revision := mustSwap(t, b, "a", 0, []byte("x"))
	h := s.sets["sessions"]
	h.count = maxRecords
	s.sets["sessions"] = h
	_, err := b.Swap(t.Context(), "b", 0, []byte("x"))
	wantError(t, err, api.StoreFull, "10000", "sessionctl list")
	revision = mustSwap(t, b, "a", revision, []byte("y"))
	mustSwap(t, b, "a", revision, nil)
	mustSwap(t, b, "b", 0, []byte("x"))
	mustClose(t, s)
}

func FuzzSets(f *testing.F) {
	k, _ := testKeyring(f)
	s := sets{}
	s.put(k, "sessions", []byte("key"), make([]byte, headerSize))
	f.Add(k.sealSets(s, 1))
	f.Fuzz(func(t *testing.T, sealed []byte) {
		if s, _, err := k.openSets(sealed); err == nil && len(s) > 1 {
			t.Errorf("%v", s)
		}
	})
}
