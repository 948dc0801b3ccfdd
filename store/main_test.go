package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/bbolt"
	"go.uber.org/goleak"

	"github.com/sessionctl/sessionctl/api"
)

// childVariable names what a re-executed test binary does instead of testing.
const (
	childVariable = "STORE_TEST_CHILD"
	pathVariable  = "STORE_TEST_PATH"
	nameVariable  = "STORE_TEST_NAME"
)

func TestMain(m *testing.M) {
	if mode := os.Getenv(childVariable); mode != "" {
		if err := child(mode, os.Getenv(pathVariable)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	// A write that waits for a lock of bbolt's which a read has left, see update.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/sessionctl/sessionctl/store.(*file).write"))
}

// child is another process with the store.
func child(mode, path string) error {
	switch mode { // which open it themselves
	case "orders":
		return childOrders(path, os.Getenv(nameVariable))
	case "steps":
		return childSteps(path, os.Getenv(nameVariable), stepKinds, 1)
	case "faults": // which end before so many attempts
		return childSteps(path, os.Getenv(nameVariable), faultKinds, 1000)
	}
	s, err := Open(path, Options{Key: keyBeside(path), LockTimeout: time.Minute})
	if err != nil {
		return err
	}
	switch mode {
	case "hold": // until standard input ends
		fmt.Println("open")
		io.Copy(io.Discard, os.Stdin)
	case "put":
		name := os.Getenv(nameVariable)
		if _, err := s.Bucket("sessions").Swap(context.Background(), name, 0, []byte(name)); err != nil {
			return err
		}
	case "load":
		return childLoad(s)
	default:
		return errors.New("unknown mode " + mode)
	}
	return s.Close()
}

// newChild prepares this test binary to run as a child.
func newChild(t *testing.T, mode, path, name string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe)
	cmd.Env = append(os.Environ(), childVariable+"="+mode, pathVariable+"="+path, nameVariable+"="+name)
	cmd.Stderr = &bytes.Buffer{}
	return cmd
}

// startPiped starts a child, with pipes to it and from it.
func startPiped(t *testing.T, cmd *exec.Cmd) (stdin io.WriteCloser, stdout io.Reader) {
	t.Helper()
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err = cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return stdin, stdout
}

func childErr(cmd *exec.Cmd, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w: %s", err, cmd.Stderr)
}

// newPath returns where a store may be made.
func newPath(t testing.TB) string {
	return filepath.Join(t.TempDir(), "state", "store.db")
}

func keyBeside(path string) Key { return KeyFile(filepath.Join(filepath.Dir(path), "master.key")) }

func mustOpen(t testing.TB, path string) *Store {
	t.Helper()
	s, err := Open(path, Options{Key: keyBeside(path)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func mustClose(t testing.TB, s *Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func mustSwap(t testing.TB, b *Bucket, name string, revision uint64, record []byte) uint64 {
	t.Helper()
	r, err := b.Swap(t.Context(), name, revision, record)
	if err != nil {
		t.Fatalf("Swap %s at %d: %v", name, revision, err)
	}
	return r
}

func wantRecord(t testing.TB, b *Bucket, name string, record string, revision uint64) {
	t.Helper()
	got, r, err := b.Load(name)
	if err != nil || string(got) != record || r != revision {
		t.Errorf("Load %s: %.40q, %d, %v; want %.40q, %d", name, got, r, err, record, revision)
	}
}

func wantAbsent(t testing.TB, b *Bucket, name string) {
	t.Helper()
	if got, r, err := b.Load(name); got != nil || r != 0 || err != nil {
		t.Errorf("Load %s: %.40q, %d, %v; want nothing", name, got, r, err)
	}
}

// wantError checks the code of an error, and that its texts hold all of words.
func wantError(t testing.TB, err error, code api.Code, words ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("no error, want %s", code)
		return
	}
	if got := api.CodeOf(err); got != code {
		t.Errorf("code %s, want %s: %v", got, code, err)
	}
	e := api.AsError(err)
	for _, w := range words {
		if !strings.Contains(e.Detail+"\n"+e.Remedy, w) {
			t.Errorf("%q, remedy %q: want %q in it", e.Detail, e.Remedy, w)
		}
	}
}

// edit changes a closed store behind its back.
func edit(t testing.TB, path string, fn func(tx *bbolt.Tx) error) {
	t.Helper()
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(db.Update(fn), db.Close()); err != nil {
		t.Fatal(err)
	}
}

// commits returns the number of transactions committed so far.
func commits(t testing.TB, s *Store) int {
	t.Helper()
	var n int
	if err := s.file.view(func(tx txn) error { n = tx.tx.ID(); return nil }); err != nil {
		t.Fatal(err)
	}
	return n
}

// logBuffer is a log that can be read while it is written.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func (l *logBuffer) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug}))
}
