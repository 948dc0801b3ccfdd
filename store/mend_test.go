package store

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sessionctl/sessionctl/api"
)

// broken makes a store with records, and damages its file.
func broken(t *testing.T, records int, damage func(file []byte) []byte) (path string, file []byte) {
	t.Helper()
	path = newPath(t)
	s := mustOpen(t, path)
	for i := range records {
		mustSwap(t, s.Bucket("sessions"), fmt.Sprint("CANARY-", i), 0, bytes.Repeat([]byte{byte(i)}, 400))
	}
	mustSwap(t, s.Bucket("latches"), "one", 0, []byte("CANARY-refused"))
	mustClose(t, s)
	file, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	file = damage(file)
	if err := os.WriteFile(path, file, 0o600); err != nil {
		t.Fatal(err)
	}
	return path, file
}

// aside returns the damaged files that are kept.
func asides(t *testing.T, path string) []string {
	t.Helper()
	names, err := filepath.Glob(path + ".bad-*")
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// rootsGone damages both of bbolt's meta pages, so that nothing can be found from them.
func rootsGone(file []byte) []byte {
	clear(file[:2*os.Getpagesize()])
	return file
}

// TestMend: in the place of a damaged store comes a new one with what can be saved, at
// its revisions; the damaged file is kept; and it is said.
func TestMend(t *testing.T) {
	path, file := broken(t, 200, rootsGone)
	_, err := Open(path, Options{Key: keyBeside(path)})
	wantError(t, err, api.StoreDamaged, path)
	var log logBuffer
	s, err := Mend(path, Options{Key: keyBeside(path), Log: log.logger()})
	if err != nil {
		t.Fatal(err)
	}
	st := s.Status()
	if st.Err != nil || st.Records < 197 || !strings.Contains(st.Warning, fmt.Sprintf("%d records were saved", st.Records)) {
		t.Errorf("%+v", st)
	}
	kept := asides(t, path)
	if len(kept) != 1 || !strings.Contains(st.Warning, kept[0]) || !strings.Contains(log.String(), "was damaged") || strings.Contains(log.String()+st.Warning, "CANARY") {
		t.Errorf("%q, the warning %q, the log %s", kept, st.Warning, &log)
	}
	if was, err := os.ReadFile(kept[0]); err != nil || !bytes.Equal(was, file) {
		t.Errorf("the damaged file was changed, %v", err)
	}
	good := 0
	err = s.Bucket("sessions").Range(func(name string, record []byte, revision uint64) bool {
		var i int
		if _, err := fmt.Sscanf(name, "CANARY-%d", &i); err != nil || !bytes.Equal(record, bytes.Repeat([]byte{byte(i)}, 400)) || revision != uint64(i+1) {
			t.Errorf("%s: %d bytes, revision %d", name, len(record), revision)
		}
		good++
		return true
	})
	if err != nil || good < 196 {
		t.Errorf("%d records, %v", good, err)
	}
	if r := mustSwap(t, s.Bucket("sessions"), "new", 0, []byte("x")); r <= 200 {
		t.Errorf("revision %d is given out again", r)
	}
	mustClose(t, s)
	s = mustOpen(t, path)
	if st := s.Status(); st.Warning != "" || st.Records < 198 {
		t.Errorf("at the next start: %+v", st)
	}
	mustClose(t, s)
	wantOnly(t, path, kept...)
}

// wantOnly is wantNoTemporary with further files.
func wantOnly(t *testing.T, path string, more ...string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 2+len(more) {
		t.Errorf("%d files: %v", len(entries), entries)
	}
}

// TestMendKeepsThree: of many damaged files the last ones are kept.
func TestMendKeepsThree(t *testing.T) {
	path := newPath(t)
	mustClose(t, mustOpen(t, path))
	for range 5 {
		if err := os.WriteFile(path, []byte("CANARY garbage"), 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := Mend(path, Options{Key: keyBeside(path)})
		if err != nil {
			t.Fatal(err)
		}
		if st := s.Status(); st.Records != 0 || !strings.Contains(st.Warning, "0 records were saved") {
			t.Errorf("%+v", st)
		}
		mustClose(t, s)
	}
	if kept := asides(t, path); len(kept) != maxAside {
		t.Errorf("%q", kept)
	}
}

// TestMendNot: a store that only cannot be opened now is not touched.
func TestMendNot(t *testing.T) {
	t.Run("another key", func(t *testing.T) {
		path, file := broken(t, 3, func(file []byte) []byte { return file })
		other := filepath.Join(t.TempDir(), "other.key")
		if err := os.WriteFile(other, make([]byte, keySize), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Mend(path, Options{Key: KeyFile(other)})
		wantError(t, err, api.StoreKeyMissing, path)
		if was, err := os.ReadFile(path); err != nil || !bytes.Equal(was, file) || asides(t, path) != nil {
			t.Errorf("the store was touched, %v", err)
		}
	})
	t.Run("another key, and damaged", func(t *testing.T) {
		path, file := broken(t, 30, rootsGone)
		other := filepath.Join(t.TempDir(), "other.key")
		if err := os.WriteFile(other, make([]byte, keySize), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Mend(path, Options{Key: KeyFile(other)})
		wantError(t, err, api.StoreKeyMissing, path, "nothing in it opens")
		if was, err := os.ReadFile(path); err != nil || !bytes.Equal(was, file) || asides(t, path) != nil {
			t.Errorf("the store was touched, %v", err)
		}
	})
	t.Run("in use", func(t *testing.T) {
		path, _ := broken(t, 3, rootsGone)
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
			t.Fatal(err)
		}
		_, err = Mend(path, Options{Key: keyBeside(path), LockTimeout: time.Millisecond})
		if code := api.CodeOf(err); code != api.StoreLocked || asides(t, path) != nil {
			t.Errorf("%v", err)
		}
	})
	t.Run("no key", func(t *testing.T) {
		path, _ := broken(t, 3, rootsGone)
		if err := os.Remove(keyBeside(path).path()); err != nil {
			t.Fatal(err)
		}
		_, err := Mend(path, Options{Key: keyBeside(path)})
		wantError(t, err, api.StoreKeyMissing)
		if asides(t, path) != nil {
			t.Error("put aside without a key")
		}
	})
}

// TestProbed: what looks at the store before it is used has the say, and the lock.
func TestProbed(t *testing.T) {
	path, file := broken(t, 20, func(file []byte) []byte { return file })
	looks := 0
	probe := func(f *os.File) error {
		looks++
		seen := make([]byte, len(file))
		if _, err := f.ReadAt(seen, 0); err != nil || !bytes.Equal(seen, file) {
			t.Errorf("another file, %v", err)
		}
		if looks == 1 {
			return errors.New("it would end whoever maps it")
		}
		return nil
	}
	_, err := Open(path, Options{Key: keyBeside(path), Probe: probe})
	wantError(t, err, api.StoreDamaged, path, "would end whoever")
	s, err := Open(path, Options{Key: keyBeside(path), Probe: probe})
	if err != nil || looks != 2 {
		t.Fatalf("%v, %d looks", err, looks)
	}
	_, err = Open(path, Options{Key: keyBeside(path), Probe: probe, LockTimeout: time.Millisecond})
	wantError(t, err, api.StoreLocked, path)
	if looks != 2 {
		t.Error("somebody looks at a store in use")
	}
	mustClose(t, s)
}
