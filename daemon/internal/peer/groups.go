package peer

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// peerGroups asks for the supplementary groups of the peer (SO_PEERGROUPS,
// linux 4.13), for which x/sys/unix has no function. The kernel says
// with ERANGE how large the answer would have been.
func peerGroups(fd int) ([]uint32, error) {
	groups := make([]uint32, 64)
	for {
		size := uint32(len(groups) * 4)
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&groups[0])), uintptr(unsafe.Pointer(&size)), 0)
		switch errno {
		case 0:
			return groups[:size/4], nil
		case unix.ERANGE:
			groups = make([]uint32, size/4)
		default:
			return nil, errno
		}
	}
}
