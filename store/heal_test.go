package store

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sessionctl/sessionctl/api"
)

const healed = 100

// healing opens a store that heals, with records of its number.
func healing(t *testing.T) (s *Store, path string, log *logBuffer) {
	t.Helper()
	path, log = newPath(t), &logBuffer{}
	s, err := Mend(path, Options{Key: keyBeside(path), Log: log.logger()})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range healed {
		wg.Go(func() {
			if _, err := s.Bucket("sessions").Swap(t.Context(), fmt.Sprint(i), 0, healedRecord(i)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	return s, path, log
}

func healedRecord(i int) []byte { return fmt.Appendf(nil, "CANARY-%d-%2000d", i, i) }

// present counts the records of a healing store, each of which must be right.
func present(t *testing.T, s *Store) (n int) {
	t.Helper()
	for i := range healed {
		record, _, err := s.Bucket("sessions").Load(fmt.Sprint(i))
		switch {
		case err != nil:
			t.Fatal(err)
		case record != nil && !bytes.Equal(record, healedRecord(i)):
			t.Fatalf("record %d is another one", i)
		case record != nil:
			n++
		}
	}
	return n
}

func overwrite(t *testing.T, path string, with []byte) {
	t.Helper()
	if err := os.WriteFile(path, with, 0); err != nil {
		t.Fatal(err)
	}
}

// TestHeal: whatever happens to the file of an open store, calls are answered, from a
// new file with what is left, and the damaged one is kept.
func TestHeal(t *testing.T) {
	old := newPath(t)
	foreign := mustOpen(t, old)
	mustSwap(t, foreign.Bucket("sessions"), "0", 0, []byte("CANARY-foreign"))
	mustClose(t, foreign)
	another, err := os.ReadFile(old)
	if err != nil {
		t.Fatal(err)
	}
	damages := map[string]func(t *testing.T, path string, before []byte){
		"cut to 1 byte": func(t *testing.T, path string, _ []byte) {
			if err := os.Truncate(path, 1); err != nil {
				t.Error(err)
			}
		},
		"cut to three pages": func(t *testing.T, path string, _ []byte) {
			if err := os.Truncate(path, int64(3*os.Getpagesize())); err != nil {
				t.Error(err)
			}
		},
		"an older one, of before a rekey": func(t *testing.T, path string, older []byte) { overwrite(t, path, older) },
		"zeros":                           func(t *testing.T, path string, whole []byte) { overwrite(t, path, make([]byte, len(whole))) },
		"no bbolt file":                   func(t *testing.T, path string, _ []byte) { overwrite(t, path, []byte("CANARY")) },
		"an older copy":                   func(t *testing.T, path string, older []byte) { overwrite(t, path, older) },
		"another store":                   func(t *testing.T, path string, _ []byte) { overwrite(t, path, another) },
		"nothing":                         func(t *testing.T, path string, _ []byte) { overwrite(t, path, nil) },
		"garbage in pages": func(t *testing.T, path string, whole []byte) {
			overwrite(t, path, bytes.Repeat([]byte{0xa5}, len(whole)))
		},
	}
	calls := map[string]func(t *testing.T, s *Store){
		"load": func(t *testing.T, s *Store) { present(t, s) },
		"swap": func(t *testing.T, s *Store) {
			if _, err := s.Bucket("sessions").Swap(t.Context(), "first", 0, []byte("x")); err != nil {
				t.Error(err)
			}
		},
		"range": func(t *testing.T, s *Store) {
			if err := s.Bucket("sessions").Range(func(string, []byte, uint64) bool { return true }); err != nil {
				t.Error(err)
			}
		},
		"status": func(t *testing.T, s *Store) {
			if st := s.Status(); st.Err != nil {
				t.Error(st.Err)
			}
		},
		"rekey": func(t *testing.T, s *Store) {
			if err := s.Rekey(t.Context()); err != nil {
				t.Error(err)
			}
		},
		"many": func(t *testing.T, s *Store) {
			var wg sync.WaitGroup
			for i := range 8 {
				wg.Go(func() {
					if _, _, err := s.Bucket("sessions").Load(fmt.Sprint(i)); err != nil {
						t.Error(err)
					}
				})
				wg.Go(func() {
					if _, err := s.Bucket("more").Swap(t.Context(), fmt.Sprint(i), 0, healedRecord(i)); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
		},
	}
	for damage, do := range damages {
		for call, first := range calls {
			t.Run(damage+", "+call, func(t *testing.T) {
				s, path, log := healing(t)
				older, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				if strings.Contains(damage, "rekey") {
					if err := s.Rekey(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
				last := mustSwap(t, s.Bucket("sessions"), "last", 0, []byte("x"))
				do(t, path, older)
				first(t, s)
				// What only reads may not have come upon it; what is written does.
				if r := mustSwap(t, s.Bucket("sessions"), "next", 0, []byte("x")); r <= last {
					t.Errorf("revision %d after %d", r, last)
				}
				n := present(t, s)
				select {
				case <-s.Healed():
				default:
					t.Error("nobody is told")
				}
				st := s.Status()
				if st.Err != nil || !strings.Contains(st.Warning, "was damaged") || strings.Count(log.String(), "put aside as "+path+".bad-") != 1 {
					t.Errorf("%v %q\n%s", st.Err, st.Warning, log)
				}
				if len(asides(t, path)) != 1 {
					t.Errorf("put aside: %q", asides(t, path))
				}
				if (damage == "an older copy" || strings.Contains(damage, "rekey")) && n != healed {
					t.Errorf("%d records are left", n)
				}
				mustClose(t, s)
				wantOnly(t, path, asides(t, path)...)
				s = mustOpen(t, path)
				if again := present(t, s); again != n || s.Status().Warning != "" {
					t.Errorf("%d records, then %d, %q", n, again, s.Status().Warning)
				}
				mustClose(t, s)
			})
		}
	}
}

// TestReclaim: a store whose file was removed, or has lost its name to another, is
// written anew with all that is in it.
func TestReclaim(t *testing.T) {
	for what, put := range map[string]func(path string) error{
		"nothing":      func(string) error { return nil },
		"garbage":      func(path string) error { return os.WriteFile(path, []byte("CANARY"), 0o644) },
		"empty":        func(path string) error { return os.WriteFile(path, nil, 0o600) },
		"a directory":  func(path string) error { return os.MkdirAll(filepath.Join(path, "in it"), 0o700) },
		"a link":       func(path string) error { return os.Symlink("elsewhere", path) },
		"a named pipe": func(path string) error { return unix.Mkfifo(path, 0o600) },
	} {
		for call, notice := range map[string]func(s *Store) error{
			"swap": func(s *Store) error {
				_, err := s.Bucket("sessions").Swap(t.Context(), "next", 0, []byte("x"))
				return err
			},
			"status": func(s *Store) error { return s.Status().Err },
			"rekey":  func(s *Store) error { return s.Rekey(t.Context()) },
		} {
			t.Run(what+", "+call, func(t *testing.T) {
				s, path, log := healing(t)
				if err := errors.Join(os.Remove(path), put(path)); err != nil {
					t.Fatal(err)
				}
				if n := present(t, s); n != healed {
					t.Errorf("%d records", n)
				}
				if err := notice(s); err != nil {
					t.Error(err)
				}
				want, kept := "was replaced by another", 1
				if what == "nothing" {
					want, kept = "was removed", 0
				}
				if st := s.Status(); !strings.Contains(st.Warning, want) || strings.Count(log.String(), want) != 1 || len(asides(t, path)) != kept {
					t.Errorf("%q %q\n%s", st.Warning, asides(t, path), log)
				}
				mustClose(t, s)
				wantOnly(t, path, asides(t, path)...)
				s = mustOpen(t, path)
				if n := present(t, s); n != healed || s.Status().Warning != "" {
					t.Errorf("%d records, %q", n, s.Status().Warning)
				}
				mustClose(t, s)
			})
		}
	}
}

// TestReclaimNot: another agent's store, and one whose key has gone too, stay as they
// are; reads go on, and so do writes once that is over.
func TestReclaimNot(t *testing.T) {
	s, path, _ := healing(t)
	swap := func() error {
		_, err := s.Bucket("sessions").Swap(t.Context(), "next", 0, []byte("x"))
		return err
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	other := mustOpen(t, path)
	wantError(t, swap(), api.StoreLocked, path)
	wantError(t, s.Rekey(t.Context()), api.StoreLocked, path)
	wantError(t, s.Status().Err, api.StoreLocked, path)
	if n := present(t, s); n != healed {
		t.Errorf("%d records", n)
	}
	mustClose(t, other)
	dir := filepath.Dir(path)
	if err := os.Rename(dir, dir+".away"); err != nil {
		t.Fatal(err)
	}
	wantError(t, swap(), api.StoreKeyMissing, path, "master.key", "bring that file back")
	if n := present(t, s); n != healed {
		t.Errorf("%d records", n)
	}
	if err := os.Rename(dir+".away", dir); err != nil {
		t.Fatal(err)
	}
	if err := swap(); err != nil {
		t.Error(err)
	}
	if len(asides(t, path)) != 1 { // the other's
		t.Errorf("%q", asides(t, path))
	}
	mustClose(t, s)
	wantOnly(t, path, asides(t, path)...)
}

// TestHealLater: where a damaged file cannot be replaced yet, calls say that it is
// damaged, and none waits; it is tried again every two seconds.
func TestHealLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, path, _ := healing(t)
		dir := filepath.Dir(path)
		if err := errors.Join(os.Truncate(path, 1), os.Rename(dir, dir+".away"), os.WriteFile(dir, nil, 0o600)); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			_, _, err := s.Bucket("sessions").Load("1")
			wantError(t, err, api.StoreDamaged, path)
			_, err = s.Bucket("sessions").Swap(t.Context(), "next", 0, []byte("x"))
			wantError(t, err, api.StoreDamaged, path)
			wantError(t, s.Status().Err, api.StoreDamaged, path)
			pass(healPause)
		}
		pass(healPause / 2) // not just now, that is
		if err := errors.Join(os.Remove(dir), os.Rename(dir+".away", dir)); err != nil {
			t.Fatal(err)
		}
		pass(healPause)
		synctest.Wait()
		mustSwap(t, s.Bucket("sessions"), "next", 0, []byte("x"))
		mustClose(t, s)
		wantOnly(t, path, asides(t, path)...)
	})
}

// TestStatusWaitsNot: Status does not wait for a writer that waits for the disk, before it
// has taken the question or after.
func TestStatusWaitsNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := newPath(t)
		s, err := open(path, Options{Key: keyBeside(path)})
		if err != nil {
			t.Fatal(err)
		}
		wantError(t, s.Status().Err, api.StoreFailed, "has not come back")
		taken := make(chan chan look)
		go func() { taken <- <-s.looks }()
		wantError(t, s.Status().Err, api.StoreFailed, "has not come back")
		<-taken
		go s.write()
		if err := s.Status().Err; err != nil {
			t.Error(err)
		}
		mustClose(t, s)
	})
}

// TestTrouble: a purge that fails is told until one works, whatever is written meanwhile.
func TestTrouble(t *testing.T) {
	path := filepath.Join(filepath.Dir(newPath(t)), strings.Repeat("s", 250)) // too long for a temporary file beside it
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	short := newPath(t)
	mustClose(t, mustOpen(t, short))
	if err := errors.Join(os.Rename(short, path), os.Rename(filepath.Join(filepath.Dir(short), "master.key"), filepath.Join(filepath.Dir(path), "master.key"))); err != nil {
		t.Fatal(err)
	}
	s := mustOpen(t, path)
	wantError(t, s.Rekey(t.Context()), api.StoreFailed)
	mustSwap(t, s.Bucket("sessions"), "a", 0, []byte("x"))
	wantError(t, s.Status().Trouble, api.StoreFailed, "too long")
	mustClose(t, s)
}

// TestWaitingOpener: who waits for the lock of a file that is written anew meanwhile does
// not get the one that has no name any more.
func TestWaitingOpener(t *testing.T) {
	a, path, _ := healing(t)
	for name, probe := range map[string]func(*os.File) error{"without a look": nil, "after one": func(*os.File) error { return nil }} {
		opened := make(chan error)
		go func() {
			b, err := Mend(path, Options{Key: keyBeside(path), LockTimeout: 300 * time.Millisecond, Probe: probe})
			if err == nil {
				err = errors.Join(errors.New("it was opened"), b.Close())
			}
			opened <- err
		}()
		for waiting := true; waiting; {
			if err := a.Rekey(t.Context()); err != nil {
				t.Error(err)
			}
			select {
			case err := <-opened:
				if api.CodeOf(err) != api.StoreLocked {
					t.Errorf("%s: %v", name, err)
				}
				waiting = false
			default:
			}
		}
	}
	if n := present(t, a); n != healed {
		t.Errorf("%d records", n)
	}
	mustClose(t, a)
}

// TestRewriteTells: what was changed in the file while it was in use is said when it is
// written anew, as no later start could see it.
func TestRewriteTells(t *testing.T) {
	s, path, log := healing(t)
	b := s.Bucket("latches")
	first := mustSwap(t, b, "one", 0, []byte("CANARY-pending"))
	old := sealed(t, s)["latches/"+string(s.keys.recordKey("latches", "one"))]
	mustSwap(t, b, "one", first, []byte("CANARY-refused"))
	file, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	refused := sealed(t, s)["latches/"+string(s.keys.recordKey("latches", "one"))]
	if len(old) != len(refused) || bytes.Count(file, refused) != 1 {
		t.Fatal("the record is not where it can be put back")
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err == nil {
		_, err = f.WriteAt(old, int64(bytes.Index(file, refused)))
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	if st := s.Status(); st.Warning != "" {
		t.Errorf("%q", st.Warning)
	}
	if err := s.Rekey(t.Context()); err != nil {
		t.Fatal(err)
	}
	if st := s.Status(); !strings.Contains(st.Warning, "not those that were written last") || !strings.Contains(log.String(), "not those that were written last") {
		t.Errorf("%q\n%s", st.Warning, log)
	}
	mustClose(t, s)
}

// TestAsides: the file that was put aside last is kept, whatever the names of others say,
// and so is what has a name of that kind, but not from here. The warnings of all are told.
func TestAsides(t *testing.T) {
	s, path, log := healing(t)
	notes := path + ".bad-notes of mine"
	for _, name := range []string{notes, path + ".bad-20380101T000000Z", path + ".bad-20380101T000001Z", path + ".bad-20380101T000002Z"} {
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for range 6 { // within a second or two
		if err := os.Truncate(path, 1); err != nil {
			t.Fatal(err)
		}
		mustSwap(t, s.Bucket("more"), "x", 0, []byte("x"))
		said := s.Status().Warning
		at := strings.LastIndex(said, path+".bad-")
		name, _, _ := strings.Cut(said[max(at, 0):], ",")
		if info, err := os.Stat(name); err != nil || info.Size() != 1 {
			t.Errorf("%q is not kept: %v", name, err)
		}
		mustSwap(t, s.Bucket("more"), "x", mustRevision(t, s, "more", "x"), nil)
	}
	if n := strings.Count(s.Status().Warning, "was damaged"); n != maxWarnings {
		t.Errorf("%d warnings\n%s", n, log)
	}
	if kept := asides(t, path); len(kept) != maxAside+1 || !slices.Contains(kept, notes) {
		t.Errorf("%q", kept)
	}
	mustClose(t, s)
}
