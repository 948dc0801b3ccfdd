package store

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sessionctl/sessionctl/api"
)

// recovery is how long after the end of a fault a store may still refuse writes.
const recovery = 5 * time.Second

// order is what a child is to do with its store, a line of JSON.
type order struct {
	Do           string // load, swap, rekey, status, close
	Bucket, Name string
	Revision     uint64
	Record       []byte
}

// answer is what came of it, one more.
type answer struct {
	Revision uint64
	Record   []byte
	Warning  string // of status
	Records  int    // of status
	Err      *api.Error
}

// childOrders takes orders from standard input. What Open or Mend says is the first
// answer.
func childOrders(path, how string) error {
	// Where only a parent may trace a process, strace may trace this one too.
	_ = unix.Prctl(unix.PR_SET_PTRACER, ^uintptr(0), 0, 0, 0)
	begin := map[string]func(string, Options) (*Store, error){"open": Open, "mend": Mend}[how]
	s, err := begin(path, Options{Key: keyBeside(path), Log: slog.New(slog.NewTextHandler(os.Stderr, nil))})
	out := json.NewEncoder(os.Stdout)
	if err := out.Encode(answer{Err: asError(err)}); err != nil || s == nil {
		return err
	}
	for in := json.NewDecoder(os.Stdin); ; {
		var o order
		if err := in.Decode(&o); err != nil {
			return err
		}
		var a answer
		var err error
		b := s.Bucket(o.Bucket)
		switch o.Do {
		case "load":
			a.Record, a.Revision, err = b.Load(o.Name)
		case "swap":
			a.Revision, err = b.Swap(context.Background(), o.Name, o.Revision, o.Record)
		case "rekey":
			err = s.Rekey(context.Background())
		case "status":
			st := s.Status()
			a.Warning, a.Records, err = st.Warning, st.Records, st.Err
		case "close":
			return errors.Join(s.Close(), out.Encode(answer{}))
		}
		if errors.Is(err, ErrConflict) {
			err = &api.Error{Code: "conflict"}
		}
		a.Err = asError(err)
		if err := out.Encode(a); err != nil {
			return err
		}
	}
}

func asError(err error) *api.Error {
	if err == nil {
		return nil
	}
	e := *api.AsError(err)
	e.Err = nil
	return &e
}

// subject is a child that takes orders, and what it has acknowledged.
type subject struct {
	t    *testing.T
	cmd  *exec.Cmd
	path string
	in   *json.Encoder
	out  *json.Decoder
	pipe io.Closer
	have map[string]answer // by bucket/name
}

// end ends the child, with a signal if it is not under strace, which would not take it
// along, or by the end of its orders.
func (s *subject) end(kill bool) {
	if kill {
		s.cmd.Process.Kill()
	}
	s.pipe.Close()
	s.cmd.Wait()
}

// startSubject starts a child that opens the store, or mends it first, under these
// arguments of strace, if there are any.
func startSubject(t *testing.T, path, how string, traced ...string) (*subject, *api.Error) {
	t.Helper()
	cmd := newChild(t, "orders", path, how)
	if len(traced) > 0 {
		underStrace(t, cmd, slices.Concat([]string{"-o", "/dev/null"}, traced)...)
	}
	stdin, stdout := startPiped(t, cmd)
	cmd.WaitDelay = 10 * time.Second
	s := &subject{t: t, cmd: cmd, path: path, in: json.NewEncoder(stdin), out: json.NewDecoder(stdout), pipe: stdin, have: map[string]answer{}}
	t.Cleanup(func() {
		s.end(len(traced) == 0)
		if said := fmt.Sprint(cmd.Stderr); t.Failed() || strings.Contains(said, "panic") || strings.Contains(said, "DATA RACE") {
			t.Logf("the child said: %s", said)
		}
	})
	return s, s.answer().Err
}

func (s *subject) answer() (a answer) {
	s.t.Helper()
	if err := s.out.Decode(&a); err != nil {
		s.end(true)
		s.t.Fatalf("the child: %v: %s", err, s.cmd.Stderr)
	}
	return a
}

func (s *subject) do(o order) answer {
	s.t.Helper()
	if err := s.in.Encode(o); err != nil {
		s.t.Fatal(err)
	}
	return s.answer()
}

// put stores a record, whatever is there, and takes note of it if that worked.
func (s *subject) put(bucket, name string, record []byte) *api.Error {
	s.t.Helper()
	key := bucket + "/" + name
	for range 2 { // a write that has failed may have been done
		a := s.do(order{Do: "swap", Bucket: bucket, Name: name, Revision: s.have[key].Revision, Record: record})
		switch {
		case a.Err == nil && record == nil:
			delete(s.have, key)
			return nil
		case a.Err == nil:
			s.have[key] = answer{Revision: a.Revision, Record: record}
			return nil
		case a.Err.Code != "conflict":
			return a.Err
		}
		found := s.do(order{Do: "load", Bucket: bucket, Name: name})
		if found.Err != nil {
			return found.Err
		}
		s.have[key] = answer{Revision: found.Revision, Record: found.Record}
	}
	s.t.Fatalf("%s: conflicts without end", key)
	return nil
}

// mustPut is put without a failure.
func (s *subject) mustPut(bucket, name string, record []byte) {
	s.t.Helper()
	if err := s.put(bucket, name, record); err != nil {
		s.t.Fatalf("%s/%s: %v", bucket, name, err)
	}
}

// fill puts records of several sizes in two buckets.
func (s *subject) fill() {
	s.t.Helper()
	for i := range 24 {
		s.mustPut([]string{"sessions", "latches"}[i%2], fmt.Sprint("CANARY-name-", i), faultRecord(i, 100+i*i*10))
	}
}

func faultRecord(n, size int) []byte {
	return append(fmt.Appendf(nil, "CANARY-record-%d ", n), bytes.Repeat([]byte{byte(n)}, size)...)
}

// reads wants all to be there that was acknowledged. The write of a name in unsure has
// failed: it is as it was, or as the write would have made it.
func (s *subject) reads(unsure map[string][]byte) {
	s.t.Helper()
	for key, want := range s.have {
		bucket, name, _ := strings.Cut(key, "/")
		got := s.do(order{Do: "load", Bucket: bucket, Name: name})
		s.compare(key, want, got, unsure)
	}
	if st := s.do(order{Do: "status"}); st.Err != nil || st.Warning != "" {
		s.t.Errorf("status: error %v, warning %q", st.Err, st.Warning)
	}
}

func (s *subject) compare(key string, want, got answer, unsure map[string][]byte) {
	s.t.Helper()
	if got.Err != nil {
		s.t.Errorf("%s: %v", key, got.Err)
		return
	}
	if got.Revision == want.Revision && bytes.Equal(got.Record, want.Record) {
		return
	}
	if other, ok := unsure[key]; ok && bytes.Equal(got.Record, other) && (got.Revision > want.Revision || other == nil) {
		return
	}
	s.t.Errorf("%s: revision %d with %d bytes; want %d with %d", key, got.Revision, len(got.Record), want.Revision, len(want.Record))
}

// wantFailed checks that an error has the code and tells what to do.
func wantFailed(t *testing.T, what string, err *api.Error) {
	t.Helper()
	switch {
	case err == nil:
		t.Errorf("%s: it worked, want %s", what, api.StoreFailed)
	case err.Code != api.StoreFailed || err.Detail == "":
		t.Errorf("%s: %s (%s), want %s", what, err.Code, err.Detail, api.StoreFailed)
	case err.Remedy == "":
		t.Errorf("%s: %q has no remedy", what, err.Detail)
	}
}

// What a fault does to writes in place; a rewrite it makes fail always.
const (
	allFail  = iota
	someFail // those that make the file longer
	noneFail
)

// faulty does all kinds of writes while the disk has a fault, looks that reads go on, and
// returns the writes that have failed.
func (s *subject) faulty(writes int) (unsure map[string][]byte) {
	s.t.Helper()
	unsure = map[string][]byte{}
	try := func(bucket, name string, record []byte) {
		err := s.put(bucket, name, record)
		if err != nil {
			unsure[bucket+"/"+name] = record
		}
		if writes == allFail || writes == someFail && err != nil {
			wantFailed(s.t, bucket+"/"+name, err)
		} else if err != nil {
			s.t.Errorf("%s/%s: %v", bucket, name, err)
		}
		s.reads(unsure)
	}
	try("sessions", "CANARY-name-0", faultRecord(100, 50))
	try("sessions", "CANARY-name-2", nil)
	try("latches", "CANARY-new", faultRecord(101, 300))
	try("sessions", "CANARY-grows", faultRecord(102, 400_000))
	try("another", "CANARY-new", faultRecord(103, 30))
	wantFailed(s.t, "rekey", s.do(order{Do: "rekey"}).Err)
	s.reads(unsure)
	return unsure
}

// recovered wants everything to work again soon, and nothing to be lost, now and after
// another start.
func (s *subject) recovered(unsure map[string][]byte) {
	s.t.Helper()
	began := time.Now()
	err := s.put("sessions", "CANARY-name-0", faultRecord(104, 60))
	for err != nil && time.Since(began) < recovery {
		err = s.put("sessions", "CANARY-name-0", faultRecord(104, 60))
	}
	if err != nil {
		s.t.Fatalf("%v after the fault: %v", time.Since(began), err)
	}
	delete(unsure, "sessions/CANARY-name-0")
	s.reads(unsure)
	for key, record := range unsure {
		bucket, name, _ := strings.Cut(key, "/")
		s.mustPut(bucket, name, record)
	}
	s.mustPut("later", "CANARY-name", faultRecord(105, 70))
	s.reads(nil)
	if err := s.do(order{Do: "rekey"}).Err; err != nil {
		s.t.Errorf("rekey after the fault: %v", err)
	}
	s.mustPut("sessions", "CANARY-afterwards", faultRecord(106, 80))
	s.reads(nil)
	s.reopened()
}

// reopened ends the child in the middle of its life, and opens the store here.
func (s *subject) reopened() {
	s.t.Helper()
	s.end(filepath.Base(s.cmd.Path) != "strace")
	if said := fmt.Sprint(s.cmd.Stderr); strings.Contains(said, "goroutine ") {
		s.t.Errorf("the child said: %s", said)
	}
	st, err := Open(s.path, Options{Key: keyBeside(s.path)})
	if err != nil {
		s.t.Fatal(err)
	}
	defer mustClose(s.t, st)
	for key, want := range s.have {
		bucket, name, _ := strings.Cut(key, "/")
		record, revision, err := st.Bucket(bucket).Load(name)
		s.compare(key, want, answer{Revision: revision, Record: record, Err: asError(err)}, nil)
	}
	if st := st.Status(); st.Err != nil || st.Warning != "" || st.Records != len(s.have) {
		s.t.Errorf("at the next start: error %v, warning %q, %d records; want %d", st.Err, st.Warning, st.Records, len(s.have))
	}
	if err := st.file.view(func(t txn) error { return checkTree(t.tx) }); err != nil {
		s.t.Errorf("tree: %v", err)
	}
	if left, err := filepath.Glob(filepath.Join(filepath.Dir(s.path), ".*")); err != nil || left != nil {
		s.t.Errorf("left over: %v, %v", left, err)
	}
}

// fault makes system calls of a process fail until its end is called, which returns how
// many did.
func fault(t *testing.T, pid int, inject ...string) (end func() int) {
	t.Helper()
	out := filepath.Join(t.TempDir(), "calls")
	args := []string{"-f", "-p", strconv.Itoa(pid), "-o", out, "-e", "signal=none"}
	for _, i := range inject {
		args = append(args, "-e", "inject="+i)
	}
	cmd := exec.CommandContext(t.Context(), "strace", args...)
	said, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	first, err := bufio.NewReader(said).ReadString('\n')
	if err != nil || !strings.Contains(first, "attached") {
		t.Fatalf("strace said %q, %v", first, err)
	}
	return sync.OnceValue(func() int {
		cmd.Process.Signal(unix.SIGINT)
		cmd.Wait()
		b, err := os.ReadFile(out)
		if err != nil {
			t.Error(err)
		}
		return bytes.Count(b, []byte("(INJECTED)"))
	})
}

// TestDiskFault: while the disk refuses what the store asks of it, reads go on and writes
// fail with a code; right after that all works again, and what was acknowledged is there.
func TestDiskFault(t *testing.T) {
	Require(t, "strace")
	const changes = "pwrite64,ftruncate,fdatasync,fsync,renameat,linkat,unlinkat"
	for _, c := range []struct {
		name   string
		inject []string
		writes int
		remedy string
	}{
		{name: "no write", inject: []string{"pwrite64:error=EIO"}},
		{name: "no sync", inject: []string{"fdatasync,fsync:error=EIO"}},
		{name: "every second write", inject: []string{"pwrite64:error=EIO:when=2+2", "fdatasync:error=EIO"}},
		{name: "the last sync", inject: []string{"fdatasync:error=EIO:when=2+2", "fdatasync,fsync:error=EIO:when=1+2"}},
		{name: "full", inject: []string{"pwrite64:error=ENOSPC"}, remedy: "df "},
		{name: "quota", inject: []string{"pwrite64:error=EDQUOT"}, remedy: "df "},
		{name: "read-only", inject: []string{changes + ":error=EROFS"}},
		{name: "no rename", inject: []string{"renameat,renameat2:error=EIO"}, writes: noneFail},
		{name: "no new file's sync", inject: []string{"fsync:error=EIO"}, writes: someFail},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s, err := startSubject(t, newPath(t), "open")
			if err != nil {
				t.Fatal(err)
			}
			s.fill()
			end := fault(t, s.cmd.Process.Pid, c.inject...)
			unsure := s.faulty(c.writes)
			if c.remedy != "" {
				if err := s.put("sessions", "CANARY-name-0", faultRecord(1, 1)); err == nil || !strings.Contains(err.Remedy, c.remedy) {
					t.Errorf("%v", err)
				}
			}
			if n := end(); n == 0 {
				t.Error("there was no fault")
			}
			s.recovered(unsure)
		})
	}
}

// TestCrashAfterFault: the power goes after the disk has refused something. What was
// acknowledged before and afterwards is there, as in TestCrashImages.
func TestCrashAfterFault(t *testing.T) {
	Require(t, "strace")
	target, every := 300, 4 // of the syncs one is looked at
	if torture {
		target, every = 20_000, 1
	}
	images, faults := 0, map[string]int{}
	for seed := uint64(1); images < target; seed++ {
		r := rand.New(rand.NewPCG(seed, 1))
		var inject []string
		for _, call := range []string{"fdatasync", "pwrite64", "fsync", "ftruncate", "renameat", "linkat"} {
			if seed%7 == 0 || r.IntN(3) == 0 || call == "fdatasync" && seed%2 == 1 {
				inject = append(inject, "-e", fmt.Sprintf("inject=%s:error=EIO:when=%d..%d+%d", call, 1+r.IntN(6), 10+r.IntN(40), 2+r.IntN(4)))
			}
		}
		c := crash{t: t, seed: seed, mode: "faults", plan: planSteps(seed, faultKinds), inject: inject, perSync: 4, every: every, kinds: map[string]int{}, faults: faults}
		c.run()
		if t.Failed() {
			t.Fatalf("seed %d, %v", seed, inject)
		}
		images += c.images
	}
	t.Logf("%d images, faults: %v", images, faults)
	if faults["fdatasync"] == 0 {
		t.Error("no sync has failed")
	}
}

// limit sets a limit of a child and returns what takes it back.
func (s *subject) limit(resource int, soft uint64) (end func()) {
	s.t.Helper()
	var old unix.Rlimit
	if err := unix.Prlimit(s.cmd.Process.Pid, resource, nil, &old); err != nil {
		s.t.Fatal(err)
	}
	if err := unix.Prlimit(s.cmd.Process.Pid, resource, &unix.Rlimit{Cur: soft, Max: old.Max}, nil); err != nil {
		s.t.Fatal(err)
	}
	return func() {
		s.t.Helper()
		if err := unix.Prlimit(s.cmd.Process.Pid, resource, &old, nil); err != nil {
			s.t.Fatal(err)
		}
	}
}

// TestFileSizeLimit: a write that reaches the limit is cut short, the next one refused.
// Neither is anything but a failure, wherever in a page the limit is.
func TestFileSizeLimit(t *testing.T) {
	for _, beyond := range []int64{0, 1, 100, 512, 4095, 4096, 5000, 70_000} {
		t.Run(fmt.Sprint(beyond), func(t *testing.T) {
			t.Parallel()
			s, err := startSubject(t, newPath(t), "open")
			if err != nil {
				t.Fatal(err)
			}
			s.fill()
			info, statErr := os.Stat(s.path)
			if statErr != nil {
				t.Fatal(statErr)
			}
			end := s.limit(unix.RLIMIT_FSIZE, uint64(info.Size()+beyond))
			unsure := map[string][]byte{}
			refused := 0
			for i := range 60 {
				if t.Failed() {
					break
				}
				name := fmt.Sprint("CANARY-more-", i)
				if err := s.put("sessions", name, faultRecord(i, 3000+i*500)); err != nil {
					wantFailed(t, name, err)
					unsure["sessions/"+name] = faultRecord(i, 3000+i*500)
					refused++
				}
			}
			if refused == 0 {
				t.Error("nothing was refused")
			}
			s.reads(unsure)
			end()
			s.recovered(unsure)
		})
	}
}

// TestConflictInFailedGroup: all of a failed transaction has failed, also what was in
// conflict with what it would have changed.
func TestConflictInFailedGroup(t *testing.T) {
	path := newPath(t)
	s, err := open(path, Options{Key: keyBeside(path)}) // the writer is here
	if err != nil {
		t.Fatal(err)
	}
	commit := func(group ...*swap) {
		for _, w := range group {
			w.done = make(chan outcome, 1)
		}
		s.commit(group)
	}
	first := &swap{bucket: "sessions", name: "CANARY-name", record: []byte("CANARY-record")}
	commit(first)
	if o := <-first.done; o.err != nil {
		t.Fatal(o.err)
	}
	s.file.db.MaxSize = 1 // it grows no more
	stale := &swap{bucket: "sessions", name: "CANARY-name", revision: 99, record: []byte("x")}
	large := &swap{bucket: "sessions", name: "CANARY-large", record: make([]byte, 1<<20)}
	commit(stale, large)
	for _, w := range []*swap{stale, large} {
		wantError(t, (<-w.done).err, api.StoreFailed, path)
	}
	s.file.db.MaxSize = 0
	commit(stale, large)
	if o := <-stale.done; !errors.Is(o.err, ErrConflict) {
		t.Errorf("of its own: %v", o.err)
	}
	if o := <-large.done; o.err != nil {
		t.Error(o.err)
	}
	go s.write()
	mustClose(t, s)
}

// descriptors limits a child to the files that it has open, and so many more.
func (s *subject) descriptors(more int) (end func()) {
	s.t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", s.cmd.Process.Pid))
	if err != nil {
		s.t.Fatal(err)
	}
	open := map[string]bool{}
	for _, e := range entries {
		open[e.Name()] = true
	}
	n := 0
	for free := 0; open[strconv.Itoa(n)] || free < more; n++ {
		if !open[strconv.Itoa(n)] {
			free++
		}
	}
	return s.limit(unix.RLIMIT_NOFILE, uint64(n))
}

// TestOpenFilesLimit: without a free descriptor reads and plain writes go on, a rewrite
// fails, and with the first ones of those that it needs no write is promised too much.
func TestOpenFilesLimit(t *testing.T) {
	for more := range 4 {
		t.Run(fmt.Sprint(more), func(t *testing.T) {
			s, err := startSubject(t, newPath(t), "mend")
			if err != nil {
				t.Fatal(err)
			}
			s.fill()
			end := s.descriptors(more)
			unsure := map[string][]byte{}
			rewritten := s.do(order{Do: "rekey"}).Err
			if more == 0 || rewritten != nil {
				wantFailed(t, "rekey", rewritten)
			}
			s.reads(nil)
			for i := range 8 {
				bucket, record := []string{"sessions", "fresh"}[i%2], faultRecord(i, 20_000*(i%3))
				if i == 4 {
					record = nil
				}
				name := fmt.Sprint("CANARY-name-", i)
				if err := s.put(bucket, name, record); err != nil {
					unsure[bucket+"/"+name] = record
					if wantFailed(t, name, err); more == 0 {
						t.Errorf("a plain write: %v", err)
					}
				}
			}
			s.reads(unsure)
			end()
			s.recovered(unsure)
		})
	}
}

// startFaults are those that a start may meet.
var startFaults = []string{
	"pwrite64:error=EIO", "pwrite64:error=ENOSPC", "fdatasync:error=EIO", "fsync:error=EIO", "ftruncate:error=EIO",
	"fsync:error=EIO:when=2+2", "pwrite64:error=EIO:when=3+1", "mkdirat:error=ENOSPC", "linkat:error=EIO",
	"pwrite64,ftruncate,fdatasync,fsync,renameat,linkat,unlinkat,mkdirat:error=EROFS",
}

// TestStartFault: a disk that fails while the store is made lets it not start, says so,
// and leaves nothing that would be in the way later.
func TestStartFault(t *testing.T) {
	Require(t, "strace")
	for _, inject := range startFaults {
		t.Run(inject, func(t *testing.T) {
			t.Parallel()
			path := newPath(t)
			s, err := startSubject(t, path, "mend", "-e", "inject="+inject)
			if err == nil { // the start needs nothing of what fails
				s.reopened()
				return
			}
			if err.Code != api.StoreFailed && err.Code != api.StoreKeyMissing || err.Remedy == "" {
				t.Errorf("%s (%s), remedy %q", err.Code, err.Detail, err.Remedy)
			}
			if s, err = startSubject(t, path, "mend"); err != nil {
				t.Fatalf("after the fault: %s (%s)", err.Code, err.Detail)
			}
			s.fill()
			s.reopened()
		})
	}
}

// TestMendFault: a disk that fails while a damaged store is mended leaves the damaged
// file where it was, and the next start saves from it what is to be saved.
func TestMendFault(t *testing.T) {
	Require(t, "strace")
	for _, inject := range append(startFaults, "renameat:error=EIO", "renameat:error=EIO:when=2", "openat:error=EMFILE:when=60+1") {
		t.Run(inject, func(t *testing.T) {
			t.Parallel()
			path := newPath(t)
			s, err := startSubject(t, path, "mend")
			if err != nil {
				t.Fatal(err)
			}
			s.fill()
			s.reopened()
			file, readErr := os.ReadFile(path)
			if readErr != nil {
				t.Fatal(readErr)
			}
			page := os.Getpagesize()
			clear(file[:2*page]) // both of bbolt's meta pages
			if err := os.WriteFile(path, file, 0o600); err != nil {
				t.Fatal(err)
			}
			m, err := startSubject(t, path, "mend", "-e", "inject="+inject)
			if err != nil {
				if err.Code != api.StoreFailed && err.Code != api.StoreKeyMissing || err.Remedy == "" {
					t.Errorf("%s (%s), remedy %q", err.Code, err.Detail, err.Remedy)
				}
				if left, err := os.ReadFile(path); err != nil || !bytes.Equal(left, file) {
					t.Errorf("the damaged file has %d bytes now, %v", len(left), err)
				}
				if m, err = startSubject(t, path, "mend"); err != nil {
					t.Fatalf("after the fault: %s (%s)", err.Code, err.Detail)
				}
			}
			st := m.do(order{Do: "status"})
			if st.Err != nil || st.Records != len(s.have) || !strings.Contains(st.Warning, fmt.Sprintf("%d records were saved", len(s.have))) {
				t.Errorf("%d records, %v, %q", st.Records, st.Err, st.Warning)
			}
			aside, globErr := filepath.Glob(path + ".bad-*")
			if globErr != nil || len(aside) != 1 {
				t.Fatalf("aside: %v, %v", aside, globErr)
			}
			if kept, err := os.ReadFile(aside[0]); err != nil || !bytes.Equal(kept, file) {
				t.Errorf("aside are %d bytes, %v", len(kept), err)
			}
			m.have = s.have
			m.reopened()
		})
	}
}

// TestHealFault: a store that is found damaged while the disk fails is healed when that
// works again, by itself.
func TestHealFault(t *testing.T) {
	Require(t, "strace")
	for _, inject := range []string{"fsync:error=EIO", "pwrite64:error=ENOSPC", "linkat,renameat,renameat2:error=EIO", "openat:error=EMFILE"} {
		t.Run(inject, func(t *testing.T) {
			t.Parallel()
			s, err := startSubject(t, newPath(t), "mend")
			if err != nil {
				t.Fatal(err)
			}
			s.fill()
			good, readErr := os.ReadFile(s.path)
			if readErr != nil {
				t.Fatal(readErr)
			}
			end := fault(t, s.cmd.Process.Pid, inject)
			if err := os.Truncate(s.path, int64(len(good))-1); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(s.path, bytes.Repeat([]byte{0xff}, len(good)), 0o600); err != nil {
				t.Fatal(err)
			}
			load := order{Do: "load", Bucket: "sessions", Name: "CANARY-name-0"}
			if a := s.do(load); a.Err == nil || a.Err.Code != api.StoreDamaged || a.Err.Remedy == "" {
				t.Errorf("load of a damaged store: %v", a.Err)
			}
			if a := s.do(order{Do: "swap", Bucket: "sessions", Name: "CANARY-x", Record: []byte("x")}); a.Err == nil || a.Err.Code != api.StoreDamaged {
				t.Errorf("swap into a damaged store: %v", a.Err)
			}
			if end() == 0 {
				t.Error("there was no fault")
			}
			began := time.Now()
			a := s.do(load)
			for a.Err != nil && time.Since(began) < recovery {
				a = s.do(load)
			}
			if a.Err != nil {
				t.Fatalf("%v after the fault: %v", recovery, a.Err)
			}
			// Nothing was left in the file to be saved.
			if st := s.do(order{Do: "status"}); st.Err != nil || !strings.Contains(st.Warning, "was damaged") {
				t.Errorf("%v, %q", st.Err, st.Warning)
			}
			s.have = map[string]answer{}
			s.mustPut("sessions", "CANARY-name-0", faultRecord(1, 100))
			if err := s.do(order{Do: "rekey"}).Err; err != nil {
				t.Error(err)
			}
			s.reopened()
		})
	}
}

// smallDisk mounts a file system of so many bytes, in a namespace of its own, and returns
// where it is, and what runs a shell command there, where it is $1.
func smallDisk(t *testing.T, size int) (dir string, shell func(command string)) {
	t.Helper()
	Require(t, "unshare", "nsenter")
	at := t.TempDir()
	run := func(flags ...string) (string, bool) {
		cmd := exec.CommandContext(t.Context(), "unshare", append(flags, "sh", "-c",
			`mount -t tmpfs -o mode=0700,size="$2" tmpfs "$1" && echo mounted && exec cat`, "sh", at, strconv.Itoa(size))...)
		stdin, stdout := startPiped(t, cmd)
		t.Cleanup(func() {
			stdin.Close()
			cmd.Wait()
		})
		line, _ := bufio.NewReader(stdout).ReadString('\n')
		return strconv.Itoa(cmd.Process.Pid), line == "mounted\n"
	}
	enter := []string{"-m"}
	pid, ok := run("-m")
	if !ok { // who is not root may in a name space of users
		enter = []string{"-U", "--preserve-credentials", "-m"}
		pid, ok = run("-Urm")
	}
	if !ok {
		Require(t, "root")
		t.Fatal("root may not mount anything here")
	}
	return filepath.Join("/proc", pid, "root", at), func(command string) {
		t.Helper()
		args := slices.Concat([]string{"-t", pid}, enter, []string{"sh", "-c", command, "sh", at})
		if out, err := exec.CommandContext(t.Context(), "nsenter", args...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", command, err, out)
		}
	}
}

// fillDisk leaves no room on a disk until it is freed.
func fillDisk(t *testing.T, dir string) (free func()) {
	t.Helper()
	name := filepath.Join(dir, "filler")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	for size := 64 << 10; size > 0; {
		if _, err := f.Write(make([]byte, size)); err != nil {
			size /= 2
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := os.Remove(name); err != nil {
			t.Error(err)
		}
	}
}

// TestFullFileSystem: on a file system without room reads go on, writes fail with a
// code, and work again as soon as there is room.
func TestFullFileSystem(t *testing.T) {
	dir, _ := smallDisk(t, 1<<20)
	s, err := startSubject(t, filepath.Join(dir, "state", "store.db"), "mend")
	if err != nil {
		t.Fatal(err)
	}
	s.fill()
	for range 2 {
		free := fillDisk(t, dir)
		unsure := map[string][]byte{}
		refused := 0
		for i := range 30 {
			name := fmt.Sprint("CANARY-more-", i)
			if err := s.put("sessions", name, faultRecord(i, 9000)); err != nil {
				wantFailed(t, name, err)
				if !strings.Contains(err.Remedy, "df ") {
					t.Errorf("remedy %q", err.Remedy)
				}
				unsure["sessions/"+name] = faultRecord(i, 9000)
				refused++
			}
		}
		if refused == 0 {
			t.Error("nothing was refused")
		}
		wantFailed(t, "rekey", s.do(order{Do: "rekey"}).Err)
		s.reads(unsure)
		free()
		if err := s.do(order{Do: "rekey"}).Err; err != nil {
			t.Error(err)
		}
		s.reads(unsure)
	}
	s.recovered(nil)
}

// TestFullAtStart: no store comes to be on a full file system, and no damaged one is
// mended there or lost.
func TestFullAtStart(t *testing.T) {
	dir, _ := smallDisk(t, 1<<20)
	path := filepath.Join(dir, "state", "store.db")
	for _, room := range []int{0, 4096, 3 * 4096, 8 * 4096} {
		free := fillDisk(t, dir)
		if err := os.Truncate(filepath.Join(dir, "filler"), max(0, sizeOf(t, filepath.Join(dir, "filler"))-int64(room))); err != nil {
			t.Fatal(err)
		}
		st, err := Mend(path, Options{Key: keyBeside(path)})
		if err != nil {
			if e := api.AsError(err); e.Code != api.StoreFailed && e.Code != api.StoreKeyMissing || e.Remedy == "" {
				t.Errorf("%d bytes free: %s (%s), remedy %q", room, e.Code, e.Detail, e.Remedy)
			}
		} else {
			mustClose(t, st)
		}
		if room == 0 && err == nil {
			t.Error("a store was made on a full disk")
		}
		free()
		st, err = Mend(path, Options{Key: keyBeside(path)})
		if err != nil {
			t.Fatalf("%d bytes were free: %v", room, err)
		}
		mustSwap(t, st.Bucket("sessions"), "CANARY-name", 0, []byte("CANARY-record"))
		mustClose(t, st)

		good, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		clear(good[:2*os.Getpagesize()])
		if err := os.WriteFile(path, good, 0o600); err != nil {
			t.Fatal(err)
		}
		free = fillDisk(t, dir)
		_, err = Mend(path, Options{Key: keyBeside(path)})
		wantError(t, err, api.StoreFailed, "df ")
		free()
		if st, err = Mend(path, Options{Key: keyBeside(path)}); err != nil {
			t.Fatal(err)
		}
		if got, _, err := st.Bucket("sessions").Load("CANARY-name"); string(got) != "CANARY-record" || err != nil {
			t.Errorf("%q, %v", got, err)
		}
		mustClose(t, st)
		if err := os.RemoveAll(filepath.Dir(path)); err != nil {
			t.Fatal(err)
		}
	}
}

func sizeOf(t *testing.T, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

// TestReadOnlyStart: a store on a read-only file system does not open, and is as it was.
func TestReadOnlyStart(t *testing.T) {
	dir, shell := smallDisk(t, 1<<20)
	path := filepath.Join(dir, "state", "store.db")
	fresh := filepath.Join(dir, "fresh", "store.db")
	s := mustOpen(t, path)
	r := mustSwap(t, s.Bucket("sessions"), "CANARY-name", 0, []byte("CANARY-record"))
	mustClose(t, s)
	shell(`mount -o remount,ro tmpfs "$1"`)
	for what, begin := range map[string]func(string, Options) (*Store, error){"open": Open, "mend": Mend} {
		for _, p := range []string{path, fresh} {
			_, err := begin(p, Options{Key: keyBeside(p)})
			wantFailed(t, what, asError(err))
			if e := api.AsError(err); !strings.Contains(e.Detail, "read-only") {
				t.Errorf("%s: %q", what, e.Detail)
			}
		}
	}
	shell(`mount -o remount,rw tmpfs "$1"`)
	s = mustOpen(t, path)
	wantRecord(t, s.Bucket("sessions"), "CANARY-name", "CANARY-record", r)
	mustSwap(t, s.Bucket("sessions"), "CANARY-name", r, []byte("CANARY-record-2"))
	mustClose(t, s)
	mustClose(t, mustOpen(t, fresh))
}

// TestReadOnlyInUse: the directory of a store is read-only for a while, the open file
// is not: plain writes go on, a rewrite fails.
func TestReadOnlyInUse(t *testing.T) {
	dir, shell := smallDisk(t, 4<<20)
	path := filepath.Join(dir, "state", "store.db")
	s, err := startSubject(t, path, "mend")
	if err != nil {
		t.Fatal(err)
	}
	s.fill()
	shell(`mount --bind "$1/state" "$1/state" && mount -o remount,bind,ro "$1/state"`)
	unsure := s.faulty(noneFail)
	shell(`umount "$1/state"`)
	s.recovered(unsure)
}
