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
	"syscall"
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
	case "faults":
		return childFaults(path, os.Getenv(nameVariable))
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
	case "loop":
		return childLoop(s)
	case "steps":
		return childSteps(s, path, os.Getenv(nameVariable))
	case "load":
		return childLoad(s)
	case "full":
		return childFull(s)
	default:
		return errors.New("unknown mode " + mode)
	}
	return s.Close()
}

// childLoop lets several goroutines write until the process is killed. Each
// write that returned is printed: writer, number, revision.
func childLoop(s *Store) error {
	b := s.Bucket("sessions")
	errs := make(chan error)
	for w := range loopWriters {
		go func() {
			name := loopName(w)
			record, revision, err := b.Load(name)
			n := 0
			if revision != 0 {
				n, err = loopNumber(w, record)
			}
			for err == nil {
				n++
				revision, err = b.Swap(context.Background(), name, revision, loopRecord(w, n))
				if err == nil {
					_, err = fmt.Fprintf(os.Stdout, "%d %d %d\n", w, n, revision)
				}
			}
			errs <- err
		}()
	}
	return <-errs
}

const loopWriters = 4

func loopName(w int) string { return fmt.Sprintf("CANARY-writer-%d", w) }

func loopRecord(w, n int) []byte {
	return append(fmt.Appendf(nil, "CANARY %d %d ", w, n), bytes.Repeat([]byte{'x'}, 100+n%4000)...)
}

func loopNumber(w int, record []byte) (n int, err error) {
	var who int
	if _, err := fmt.Sscanf(string(record), "CANARY %d %d ", &who, &n); err != nil {
		return 0, err
	}
	if !bytes.Equal(record, loopRecord(w, n)) {
		return 0, fmt.Errorf("record %d of writer %d is not what was written", n, w)
	}
	return n, nil
}

// childFull writes until the file may not grow any more, as on a full disk,
// and then looks at what still works.
func childFull(s *Store) error {
	ctx := context.Background()
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
		return err
	}
	small := limit
	small.Cur = 256 << 10
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &small); err != nil {
		return err
	}
	b := s.Bucket("sessions")
	record := bytes.Repeat([]byte{'x'}, 4000)
	revisions := make(map[string]uint64)
	var err error
	for i := 0; err == nil && i < 1000; i++ {
		name := fmt.Sprint("name ", i)
		var r uint64
		if r, err = b.Swap(ctx, name, 0, record); err == nil {
			revisions[name] = r
		}
	}
	if api.CodeOf(err) != api.StoreFailed {
		return fmt.Errorf("on a full disk: got %v, want store_failed", err)
	}
	if len(revisions) < 10 {
		return fmt.Errorf("only %d records fitted", len(revisions))
	}
	for name, want := range revisions {
		if got, r, err := b.Load(name); err != nil || r != want || !bytes.Equal(got, record) {
			return fmt.Errorf("%s after the failure: revision %d, want %d, error %v", name, r, want, err)
		}
	}
	// All of a failed transaction has failed, also what was in conflict.
	group := []*swap{
		{"sessions", "name 0", 99, []byte("x"), make(chan outcome, 1)},
		{"sessions", "big", 0, make([]byte, 1<<20), make(chan outcome, 1)},
	}
	s.commit(group)
	for _, w := range group {
		if o := <-w.done; api.CodeOf(o.err) != api.StoreFailed {
			return fmt.Errorf("%s in a failed transaction: got %v, want store_failed", w.name, o.err)
		}
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
		return err
	}
	if _, err := b.Swap(ctx, "afterwards", 0, record); err != nil {
		return fmt.Errorf("with space again: %w", err)
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
