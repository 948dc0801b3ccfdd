package api

import (
	"os"
	"path/filepath"
	"strconv"
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
func FindSocket(named string) string {
	if named != "" {
		return named
	}
	if s := os.Getenv(SocketVariable); s != "" {
		return s
	}
	user := UserSocket(os.Geteuid())
	var st syscall.Stat_t
	if syscall.Lstat(user, &st) == nil {
		return user
	}
	return SystemSocket
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
		return nil, noSocket(path, e)
	}
	if e := syscall.Lstat(path, &sock); e != nil {
		return nil, noSocket(path, e)
	}
	untrusted := func(what string) error {
		return &Error{Code: UntrustedSocket, Detail: what, Remedy: "start the agent with a socket in a directory of its own, mode 0700, and name it with --socket or " + SocketVariable}
	}
	switch {
	case dir.Uid != 0 && dir.Uid != self:
		return nil, untrusted(parent + " belongs to uid " + strconv.Itoa(int(dir.Uid)))
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

// noSocket says why there is no socket to talk to, and how to start an agent.
func noSocket(path string, err error) error {
	detail := "no agent: " + path + ": " + err.Error()
	if err == syscall.EACCES {
		return &Error{Code: NoAgent, Detail: detail, Err: err,
			Remedy: "ask for membership of the group that may use " + path}
	}
	return &Error{Code: NoAgent, Detail: detail, Remedy: StartHint, Err: err}
}

// StartHint tells a person how to start an agent.
const StartHint = "start one: systemctl --user start sessiond.socket, or run sessiond"
