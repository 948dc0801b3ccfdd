package store

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// keyMemory is memory for keys that lies outside Go's heap, which copies and forgets to
// clear: out of reach of all but this process (memfd_secret(2)), or, where the kernel
// has no such thing, at least in no core file and, if its limit allows, not in swap.
type keyMemory struct{ bytes []byte }

// newKeyMemory returns memory for n bytes, which are 0. It lasts until free, or until
// nobody has the keyMemory any more: who keeps bytes keeps that too.
func newKeyMemory(n int) *keyMemory {
	b, err := mapSecret(n)
	if err != nil {
		b, err = unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	}
	if err != nil {
		return &keyMemory{make([]byte, n)} // nothing else would be there for the records either
	}
	// What is secret already refuses both.
	_, _ = unix.Madvise(b, unix.MADV_DONTDUMP), unix.Mlock(b)
	m := &keyMemory{b[:n]}
	runtime.AddCleanup(m, unmap, b)
	return m
}

func unmap(b []byte) {
	clear(b)
	_ = unix.Munmap(b)
}

// free clears the memory, which is of no use afterwards. It goes with m.
func (m *keyMemory) free() { clear(m.bytes) }
