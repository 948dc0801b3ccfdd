package api

import (
	"cmp"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// SystemSocket is where the system service listens.
const SystemSocket = "/run/sessionctl/agent.sock"

// SocketVariable is the environment variable that names the agent's socket.
const SocketVariable = "SESSIONCTL_SOCKET"

// UserSocket returns where the agent of a user listens. It does not use
// XDG_RUNTIME_DIR, which cron jobs lack.
func UserSocket(uid int) string {
	return "/run/user/" + strconv.Itoa(uid) + "/sessionctl/agent.sock"
}

// FindSocket returns the agent's socket for a caller: the one named, else
// $SESSIONCTL_SOCKET, else the user's own if it exists, else the system's.
// It looks no further: an agent that is found but does not know a site is the
// answer.
//
// The path names a file, also for those who take a leading @ for Linux's
// abstract namespace, whose names have no owner.
func FindSocket(named string) string {
	path := cmp.Or(named, os.Getenv(SocketVariable))
	if path == "" {
		path = UserSocket(os.Geteuid())
		if !exists(path) {
			return SystemSocket
		}
	}
	if strings.HasPrefix(path, "@") {
		path = "./" + path
	}
	return path
}

func exists(path string) bool {
	var st syscall.Stat_t
	return syscall.Lstat(path, &st) == nil
}

// CheckSocket tells whether an answer from the socket at path could be
// trusted: nobody but root, the caller and, below a directory of root's, the
// socket's owner could have put it there. It returns the uids that the
// listening process may have, or an error of code NoAgent or UntrustedSocket.
//
// A listener that systemd opened for an agent has uid 0 by SO_PEERCRED.
func CheckSocket(path string) (servers []uint32, err error) {
	self := uint32(os.Geteuid())
	var dir, sock syscall.Stat_t
	parent := filepath.Dir(path)
	if e := syscall.Stat(parent, &dir); e != nil {
		return nil, NoSocket(path, e)
	}
	if e := syscall.Lstat(path, &sock); e != nil {
		return nil, NoSocket(path, e)
	}
	untrusted := func(what string) error {
		return &Error{Code: UntrustedSocket, Detail: what, Remedy: "start the agent with a socket in a directory of its own, mode 0700, and name it with --socket or " + SocketVariable}
	}
	switch {
	case dir.Uid != 0 && dir.Uid != self:
		return nil, &Error{Code: UntrustedSocket, Detail: parent + " belongs to uid " + strconv.Itoa(int(dir.Uid)), Remedy: "that is " + useYourOwn}
	case dir.Mode&0o022 != 0:
		return nil, untrusted(parent + " can be written by others")
	case sock.Mode&syscall.S_IFMT != syscall.S_IFSOCK:
		return nil, untrusted(path + " is not a socket")
	}
	servers = []uint32{0, self}
	if sock.Uid != self && sock.Uid != 0 {
		if dir.Uid != 0 {
			return nil, untrusted(path + " belongs to uid " + strconv.Itoa(int(sock.Uid)))
		}
		servers = append(servers, sock.Uid)
	}
	return servers, nil
}

// useYourOwn is what to do about a socket in another user's directory.
const useYourOwn = "another user's agent; use your own (sessionctl without --socket), or run as that user"

// NoSocket is the error of code NoAgent for a socket that cannot be reached
// because of err: it says how to start an agent, or whose the socket is.
func NoSocket(path string, err error) error {
	e := &Error{Code: NoAgent, Detail: "no agent: " + path + ": " + err.Error(), Remedy: StartHint, Err: err}
	switch own := UserSocket(os.Geteuid()); {
	case err == syscall.EACCES && path == SystemSocket:
		e.Remedy = "ask for membership of the group that may use " + path
	case err == syscall.EACCES:
		e.Remedy = "it belongs to " + useYourOwn
	case path == SystemSocket && !exists(own):
		e.Detail += ", nor is there " + own
	}
	return e
}

// StartHint tells a person how to start an agent.
const StartHint = "start one: systemctl --user start sessiond.socket, or run sessiond; if it does not stay: systemctl --user status sessiond.service"

// LogHint tells a person where an agent says more.
const LogHint = "see the agent's log: journalctl --user -u sessiond.service"
