package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/sessionctl/sessionctl/api"
)

// In a child that probes, descriptor 3 is the file. It opens no store, so it ends before
// TestMain.
func init() {
	if os.Getenv(childVariable) != "probe" {
		return
	}
	if err := Probe(os.NewFile(3, "store")); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// probeLimit is far more than a probe takes on a busy machine.
const probeLimit = 30 * time.Second

// atOnce lets a child with the race detector end without waiting a second.
const atOnce = "GORACE=atexit_sleep_ms=0"

// probe calls Probe in a child.
func probe(t testing.TB, f *os.File) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), probeLimit)
	defer cancel()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, exe)
	cmd.Env = append(os.Environ(), childVariable+"=probe", atOnce)
	cmd.ExtraFiles = []*os.File{f}
	cmd.Stderr = &bytes.Buffer{}
	err = childErr(cmd, cmd.Run())
	if ctx.Err() != nil {
		t.Fatal("the probe does not end")
	}
	return err
}

// lockedFile opens a file and locks it.
func lockedFile(t testing.TB, path string) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		t.Fatal(err)
	}
	return f
}

// A good file passes, and whoever has locked it has it locked after that.
func TestProbeKeepsLock(t *testing.T) {
	w := newWreck(t)
	f := lockedFile(t, w.path)
	if err := probe(t, f); err != nil {
		t.Errorf("a good file: %v", err)
	}
	_, err := Open(w.path, Options{Key: keyBeside(w.path), LockTimeout: time.Millisecond})
	wantError(t, err, api.StoreLocked, w.path)
	f.Close()
	if file, err := os.ReadFile(w.path); err != nil || !bytes.Equal(file, w.file) {
		t.Errorf("the file was changed, or %v", err)
	}
	mustOpen(t, w.path)
}

// A file that somebody else has locked is not looked at.
func TestProbeLocked(t *testing.T) {
	path := newPath(t)
	mustOpen(t, path)
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := probe(t, f); err == nil || !strings.Contains(err.Error(), "timeout") {
		t.Errorf("got %v, want a timeout", err)
	}
}

// What is no store, or has lost a part, does not pass.
func TestProbeStructure(t *testing.T) {
	for name, c := range map[string]struct {
		do   func(t *testing.T, path string)
		want string
	}{
		"nothing": {func(t *testing.T, path string) {
			if err := os.Truncate(path, 0); err != nil {
				t.Fatal(err)
			}
		}, "it is empty"},
		"a text": {func(t *testing.T, path string) {
			if err := os.WriteFile(path, bytes.Repeat([]byte("text\n"), 4000), 0o600); err != nil {
				t.Fatal(err)
			}
		}, "invalid database"},
		"without meta": {func(t *testing.T, path string) {
			edit(t, path, func(tx *bbolt.Tx) error { return tx.DeleteBucket(bucketMeta) })
		}, "meta: a part of it is missing"},
		"without id": {func(t *testing.T, path string) {
			edit(t, path, func(tx *bbolt.Tx) error { return tx.Bucket(bucketMeta).Delete(metaID) })
		}, "header: a part of it is missing"},
		"without keys": {func(t *testing.T, path string) {
			edit(t, path, func(tx *bbolt.Tx) error { return tx.DeleteBucket(bucketKeys) })
		}, "keys: a part of it is missing"},
		"without records": {func(t *testing.T, path string) {
			edit(t, path, func(tx *bbolt.Tx) error { return tx.DeleteBucket(bucketRecords) })
		}, "records: a part of it is missing"},
	} {
		t.Run(name, func(t *testing.T) {
			path := newPath(t)
			mustClose(t, mustOpen(t, path))
			c.do(t, path)
			if err := probe(t, lockedFile(t, path)); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want: %s", err, c.want)
			}
		})
	}
}

// TestProbeDamage: a file that passes kills no process that uses it; one that does not
// is told by an error or by the child's death.
func TestProbeDamage(t *testing.T) {
	w := newWreck(t)
	for class, damage := range damages {
		t.Run(class, func(t *testing.T) {
			r := rand.New(rand.NewPCG(6, uint64(len(class))))
			good, bad, dead := 0, 0, 0
			for range damagedFiles(500, 20) {
				file, what := damage.do(r, bytes.Clone(w.file))
				if err := os.WriteFile(w.path, file, 0o600); err != nil {
					t.Fatal(err)
				}
				f := lockedFile(t, w.path)
				err := probe(t, f)
				f.Close()
				exit, died := errors.AsType[*exec.ExitError](err)
				switch {
				case died && exit.ExitCode() != 1:
					dead++
				case err != nil:
					bad++
				default:
					good++
					cmd := newChild(t, "put", w.path, "CANARY-after")
					cmd.Env = append(cmd.Env, atOnce)
					err := childErr(cmd, cmd.Run())
					if exit, died := errors.AsType[*exec.ExitError](err); died && exit.ExitCode() != 1 {
						t.Errorf("%s: the probe passes it, and a process dies of it: %v", what, err)
					}
				}
			}
			if (class == "one page zeroed" || class == "cut off") && bad+dead == 0 {
				t.Error("no file is found to be bad")
			}
			t.Logf("%d passed, %d errors, %d deaths", good, bad, dead)
		})
	}
}
