package daemon

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sessionctl/sessionctl/store"
)

// stoppedProbe is the name of a program that is a probe, and stops itself when it has
// begun: it says so to the pipe beside it.
const (
	stoppedProbe = "stopped-probe"
	stoppedPipe  = "stopped"
)

// This test binary is sessiond's where ProbeBy starts it.
func init() {
	if len(os.Args) != 2 || os.Args[1] != ProbeVerb {
		return
	}
	if filepath.Base(os.Args[0]) == stoppedProbe {
		os.Exit(Probe(stopper{}))
	}
	os.Exit(Probe(os.Stdout))
}

// stopper is standard output of a process that stops after each write.
type stopper struct{}

func (stopper) Write(b []byte) (int, error) {
	n, err := os.Stdout.Write(b)
	pipe := filepath.Join(filepath.Dir(os.Args[0]), stoppedPipe)
	return n, errors.Join(err, os.WriteFile(pipe, fmt.Appendln(nil, os.Getpid()), 0), unix.Kill(os.Getpid(), unix.SIGSTOP))
}

// storeWith makes a store with a record of that size, and closes it.
func storeWith(t *testing.T, size int) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "store.db")
	s, err := store.Open(path, store.Options{Key: store.KeyFile(path + ".key")})
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Bucket("sessions").Swap(t.Context(), "CANARY-name", 0, make([]byte, size))
	if err = errors.Join(err, s.Close()); err != nil {
		t.Fatal(err)
	}
	return path
}

// probeBy has a program look at a file, which is locked meanwhile.
func probeBy(t *testing.T, program, path string) error {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err == nil {
		defer f.Close()
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err != nil {
		t.Error(err)
		return nil
	}
	return ProbeBy(program)(f)
}

// What a page of bbolt begins with, and the fields of its elements. An element's distance
// is to its key, from where the element begins.
const (
	branchFlag, leafFlag = 1, 2
	bucketFlag           = 1 // of an element
	pageHead             = 16
	elementSize          = 16
)

// head returns what a page of bbolt begins with.
func head(id uint64, flags, count uint16, overflow uint32) []byte {
	b := binary.NativeEndian.AppendUint64(nil, id)
	b = binary.NativeEndian.AppendUint16(b, flags)
	b = binary.NativeEndian.AppendUint16(b, count)
	return binary.NativeEndian.AppendUint32(b, overflow)
}

// leafElement and branchElement return an element of a page.
func leafElement(flags uint32, distance, key, value int) []byte {
	b := binary.NativeEndian.AppendUint32(nil, flags)
	b = binary.NativeEndian.AppendUint32(b, uint32(distance))
	b = binary.NativeEndian.AppendUint32(b, uint32(key))
	return binary.NativeEndian.AppendUint32(b, uint32(value))
}

func branchElement(distance, key int, page uint64) []byte {
	b := binary.NativeEndian.AppendUint32(nil, uint32(distance))
	b = binary.NativeEndian.AppendUint32(b, uint32(key))
	return binary.NativeEndian.AppendUint64(b, page)
}

// bucket returns the value of a bucket with its first page, or with what stands in it.
func bucket(first uint64, inline ...[]byte) []byte {
	return slices.Concat(binary.NativeEndian.AppendUint64(nil, first), make([]byte, 8), slices.Concat(inline...))
}

// nested makes a leaf of records whose values stand in one another: to read all of them
// is to read the page thousands of times.
func nested(page []byte, id uint64, overflow uint32) {
	const count = 60_000
	const keys = pageHead + count*elementSize
	copy(page, head(id, leafFlag, count, overflow))
	for i := range count {
		at, key := pageHead+i*elementSize, keys+4*i
		binary.BigEndian.PutUint32(page[key:], uint32(i))
		copy(page[at:], leafElement(0, key-at, 4, len(page)-key-4))
	}
}

// maze makes a leaf with an inline bucket, and in that a bucket, as bbolt neither makes
// nor checks. Its pages stand in what else the leaf has: from each a hundred ways lead to
// the next.
func maze(page []byte, id uint64, overflow uint32) {
	const steps, ways = 10, 100
	size := os.Getpagesize()
	inner := bucket(id + 1)
	outer := bucket(0, head(0, leafFlag, 1, 0), leafElement(bucketFlag, elementSize, 1, len(inner)), []byte("a"), inner)
	copy(page, slices.Concat(head(id, leafFlag, 1, overflow), leafElement(bucketFlag, elementSize, 1, len(outer)), []byte("a"), outer))
	for step := range uint64(steps) {
		at := page[int(step+1)*size:]
		copy(at, head(id+1+step, branchFlag, ways, 0))
		for way := range ways {
			copy(at[pageHead+way*elementSize:], branchElement(elementSize*(ways-way), 1, id+2+step))
		}
	}
	copy(page[(steps+1)*size:], slices.Concat(head(id+1+steps, leafFlag, 1, 0), leafElement(0, elementSize, 1, 1)))
}

// TestProbeCPU: a file that would keep a probe busy for minutes, or for ever, is damaged,
// and nobody waits for that.
func TestProbeCPU(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for name, fill := range map[string]func(page []byte, id uint64, overflow uint32){"nested": nested, "maze": maze} {
		t.Run(name, func(t *testing.T) {
			path := storeWith(t, 8<<20)
			if err := probeBy(t, self, path); err != nil {
				t.Fatalf("as it is: %v", err)
			}
			file, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			size := os.Getpagesize()
			filled := 0
			for id := uint64(2); int(id) < len(file)/size; id++ {
				page := file[int(id)*size:]
				overflow := binary.NativeEndian.Uint32(page[12:])
				if binary.NativeEndian.Uint64(page) == id && int64(overflow)*int64(size) > 8<<20-1 {
					page = page[:(1+int(overflow))*size]
					clear(page)
					fill(page, id, overflow)
					filled++
					id += uint64(overflow)
				}
			}
			if filled != 1 {
				t.Fatalf("%d pages hold the record", filled)
			}
			if err := os.WriteFile(path, file, 0o600); err != nil {
				t.Fatal(err)
			}
			before := time.Now()
			err = probeBy(t, self, path)
			if took := time.Since(before); took > probeTime/2 {
				t.Errorf("it takes %v", took)
			}
			if err == nil || !strings.Contains(err.Error(), "has ended") {
				t.Errorf("got %v, want the end of the process", err)
			}
		})
	}
}

// TestProbeNobody: where nobody has looked at a file, nobody says that it is damaged.
func TestProbeNobody(t *testing.T) {
	path := storeWith(t, 10)
	if err := os.Truncate(path, int64(os.Getpagesize())); err != nil {
		t.Fatal(err)
	}
	for _, program := range []string{path + ".none", path, "/bin/false"} {
		if err := probeBy(t, program, path); err != nil {
			t.Errorf("%s: %v", program, err)
		}
	}
}

// TestProbeStopped: a probe that others keep from its work, or end, says nothing of the
// file.
func TestProbeStopped(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		stopped time.Duration // more than probeCPU, or nothing
		signal  unix.Signal
	}{
		"continued": {2 * time.Second, unix.SIGCONT},
		"killed":    {0, unix.SIGKILL},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			program, pipe := filepath.Join(dir, stoppedProbe), filepath.Join(dir, stoppedPipe)
			if err := errors.Join(os.Symlink(self, program), unix.Mkfifo(pipe, 0o600)); err != nil {
				t.Fatal(err)
			}
			told, err := os.OpenFile(pipe, os.O_RDWR, 0) // so that it does not wait for the other end
			if err != nil {
				t.Fatal(err)
			}
			defer told.Close()
			if err := told.SetReadDeadline(time.Now().Add(probeTime)); err != nil {
				t.Fatal(err)
			}
			path := storeWith(t, 10)
			done := make(chan error, 1)
			go func() { done <- probeBy(t, program, path) }()
			var pid int
			if _, err := fmt.Fscanln(told, &pid); err != nil {
				t.Fatal(err)
			}
			if err := unix.Waitid(unix.P_PID, pid, nil, unix.WSTOPPED|unix.WNOWAIT, nil); err != nil {
				t.Fatal(err)
			}
			if c.stopped > 0 {
				select {
				case err := <-done:
					t.Fatalf("it was given up: %v", err)
				case <-time.After(c.stopped):
				}
			}
			if err := unix.Kill(pid, c.signal); err != nil {
				t.Fatal(err)
			}
			if err := <-done; err != nil {
				t.Errorf("got %v", err)
			}
		})
	}
}
