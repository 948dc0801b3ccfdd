//go:build amd64 || arm64 || riscv64

package store

import (
	"os"

	"golang.org/x/sys/unix"
)

// mapSecret maps memory of memfd_secret(2), which few architectures have.
func mapSecret(n int) ([]byte, error) {
	fd, err := unix.MemfdSecret(unix.O_CLOEXEC)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd) // the map stays
	page := os.Getpagesize()
	size := (n + page - 1) / page * page
	if err := unix.Ftruncate(fd, int64(size)); err != nil {
		return nil, err
	}
	return unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
}
