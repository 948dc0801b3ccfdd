package store

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mapping is what the kernel says of the mapping that an address is in
// (proc_pid_smaps(5)): its name, and its flags of two letters.
type mapping struct {
	name  string
	flags []string
}

func mappingAt(t *testing.T, address uintptr) (m mapping) {
	t.Helper()
	smaps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	inside := false
	for line := range strings.Lines(string(smaps)) {
		var from, to uintptr
		fields := strings.Fields(line)
		if n, _ := fmt.Sscanf(fields[0], "%x-%x", &from, &to); n == 2 {
			inside = from <= address && address < to
			if inside && len(fields) > 5 {
				m.name = fields[5]
			}
		} else if inside && fields[0] == "VmFlags:" {
			m.flags = fields[1:]
		}
	}
	return m
}

func addressOf(b []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(b))) }

// readByKernel reads memory as a debugger does.
func readByKernel(t *testing.T, address uintptr, n int) ([]byte, error) {
	t.Helper()
	f, err := os.Open("/proc/self/mem")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, n)
	_, err = f.ReadAt(b, int64(address))
	return b, err
}

// withoutFiles calls do while the process can open no file, so that memfd_secret(2) fails.
func withoutFiles(t *testing.T, do func()) {
	t.Helper()
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Max: limit.Max}); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
			t.Fatal(err)
		}
	}()
	do()
}

// memfdSecret is the number of memfd_secret(2); golang.org/x/sys names it where there is
// such a call only.
const memfdSecret = 447

// hasSecret tells whether this system has memfd_secret(2).
func hasSecret(t *testing.T) bool {
	t.Helper()
	if !slices.Contains([]string{"amd64", "arm64", "riscv64"}, runtime.GOARCH) {
		return false
	}
	fd, _, err := unix.Syscall(memfdSecret, unix.O_CLOEXEC, 0, 0)
	if err != 0 {
		t.Logf("no memfd_secret(2) here: %v", err)
		return false
	}
	unix.Close(int(fd))
	return true
}

// TestKeyMemory: keys are in memory of memfd_secret(2) where that exists, which not even
// the kernel reads for anybody; else in memory that is left out of core files, and is
// locked if it may be.
func TestKeyMemory(t *testing.T) {
	page, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(page)
	mayLock := unix.Mlock(page) == nil // what is secret counts as locked
	key := []byte("CANARY-key")
	for _, c := range []struct {
		name   string
		secret bool
		make   func(do func())
	}{
		{"as it is here", hasSecret(t) && mayLock, func(do func()) { do() }},
		{"without memfd_secret", false, func(do func()) { withoutFiles(t, do) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			var m *keyMemory
			size := os.Getpagesize() + len(key) // the last page counts too
			c.make(func() { m = newKeyMemory(size) })
			if !bytes.Equal(m.bytes, make([]byte, size)) {
				t.Fatal("it is not 0")
			}
			at := m.bytes[os.Getpagesize():]
			copy(at, key)
			is := mappingAt(t, addressOf(at))
			if secret := strings.HasSuffix(is.name, "/secretmem"); secret != c.secret {
				t.Errorf("the memory is %+v", is)
			}
			if !slices.Contains(is.flags, "dd") {
				t.Errorf("it may be in a core file: %+v", is)
			}
			if mayLock && !slices.Contains(is.flags, "lo") {
				t.Errorf("it may be swapped: %+v", is)
			}
			got, err := readByKernel(t, addressOf(at), len(key))
			if c.secret && err == nil || !c.secret && !bytes.Equal(got, key) {
				t.Errorf("/proc/self/mem: %q, %v", got, err)
			}
			m.free()
			if !bytes.Equal(m.bytes, make([]byte, size)) {
				t.Errorf("after free it holds %q", bytes.Trim(m.bytes, "\x00"))
			}
		})
	}
}

// newKeys returns a keyring, and where its keys are.
func newKeys(t *testing.T) (*keyring, uintptr) {
	t.Helper()
	k, err := newKeyring([]byte("CANARY-master key of 32 bytes...."), make([]byte, idSize))
	if err != nil {
		t.Fatal(err)
	}
	return k, addressOf(k.index)
}

// TestKeyMemoryEnds: the memory of a keyring is there as long as that, and no longer.
func TestKeyMemoryEnds(t *testing.T) {
	for _, c := range []struct {
		name string
		make func(do func())
	}{
		{"as it is here", func(do func()) { do() }},
		{"without memfd_secret", func(do func()) { withoutFiles(t, do) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			var k *keyring
			var at uintptr
			c.make(func() { k, at = newKeys(t) })
			is := mappingAt(t, at)
			for _, key := range [][]byte{k.index, k.mac, k.set, k.check} {
				if got := mappingAt(t, addressOf(key)); got.name != is.name || !slices.Contains(got.flags, "dd") {
					t.Errorf("a key is in %+v, the first in %+v", got, is)
				}
			}
			before := k.recordKey("sessions", "CANARY-name")
			for range 5 {
				runtime.GC()
			}
			if got := mappingAt(t, at); !slices.Equal(got.flags, is.flags) {
				t.Fatalf("it is gone while it is used: %+v", got)
			}
			if !bytes.Equal(k.recordKey("sessions", "CANARY-name"), before) {
				t.Error("its keys are others")
			}
			k = nil
			for end := time.Now().Add(10 * time.Second); slices.Contains(mappingAt(t, at).flags, "dd"); {
				if time.Now().After(end) {
					t.Fatal("it is not gone")
				}
				runtime.GC()
			}
		})
	}
}
