package daemon

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/coreos/go-systemd/v22/activation"
	"golang.org/x/sys/unix"

	"github.com/sessionctl/sessionctl/api"
)

// credentialsName is the name of the socket for credentials among those that systemd
// hands over (systemd.socket(5), FileDescriptorName=).
const credentialsName = "credentials"

// Passed returns the sockets that systemd hands over: the agent's own, and the one on
// which systemd asks for credentials of units, which is named "credentials"
// (FileDescriptorName= in its unit). What is not handed over is nil. It is to be
// called once.
func Passed() (agent, credentials net.Listener, err error) {
	var all []net.Listener
	defer func() {
		if err == nil {
			return
		}
		agent, credentials = nil, nil
		for _, l := range all {
			l.Close()
		}
	}()
	for _, f := range activation.Files(true) {
		l, err := net.FileListener(f)
		f.Close()
		if err != nil {
			return nil, nil, fmt.Errorf("socket %q from systemd: %w", f.Name(), err)
		}
		all = append(all, l)
		place := &agent
		if f.Name() == credentialsName {
			place = &credentials
		}
		unix, ok := l.(*net.UnixListener)
		if !ok || unix.Addr().Network() != "unix" || *place != nil {
			return nil, nil, fmt.Errorf("the socket %q from systemd is one too many: wanted are a Unix stream socket, and one more with FileDescriptorName=%s", f.Name(), credentialsName)
		}
		unix.SetUnlinkOnClose(false)
		*place = unix
	}
	if agent == nil {
		return nil, credentials, nil
	}
	// The lock keeps an agent started by hand from taking the socket away.
	lock, err := lockFile(agent.Addr().String())
	if err != nil {
		return nil, nil, err
	}
	return &lockedListener{Listener: agent, lock: lock}, credentials, nil
}

// Listen returns a new socket at path. A socket of a dead agent is replaced; one of a
// living agent is an error of code api.SocketInUse. The socket has mode 0600 from the
// moment it exists; its directory is made with mode 0700.
func Listen(path string) (net.Listener, error) {
	if len(path) > maxSocketPath {
		return nil, &api.Error{Code: api.SocketFailed, Detail: fmt.Sprintf("the socket's path is longer than %d bytes: %s", maxSocketPath, path),
			Remedy: "name a shorter one: sessiond --socket PATH"}
	}
	dir := filepath.Dir(path)
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		if errors.Is(err, os.ErrNotExist) {
			return nil, &api.Error{Code: api.SocketFailed, Detail: filepath.Dir(dir) + " does not exist",
				Remedy: "log in through a service that makes it (loginctl enable-linger), or name another place: sessiond --socket PATH", Err: err}
		}
		return nil, &api.Error{Code: api.SocketFailed, Detail: err.Error(), Remedy: "name another place: sessiond --socket PATH", Err: err}
	}
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return nil, &api.Error{Code: api.SocketFailed, Detail: dir + ": " + err.Error(), Err: err}
	}
	if st.Uid != uint32(os.Geteuid()) && st.Uid != 0 || st.Mode&0o022 != 0 {
		return nil, &api.Error{Code: api.SocketFailed, Detail: dir + " belongs to somebody else or can be written by others, who could put a socket of theirs in place of the agent's",
			Remedy: "name a path in a directory of your own, mode 0700: sessiond --socket PATH"}
	}
	lock, err := lockFile(path)
	if err != nil {
		return nil, err
	}
	// The lock says that no agent listens here, so what is left is a dead one's,
	// unless systemd listens for one that is not running yet.
	c, err := net.Dial("unix", path)
	if err == nil {
		c.Close()
	}
	// A queue that is full is one of somebody who listens.
	if !errors.Is(err, unix.ECONNREFUSED) && !errors.Is(err, unix.ENOENT) {
		lock.Close()
		return nil, &api.Error{Code: api.SocketInUse, Detail: "another process listens at " + path, Remedy: "use the agent that it starts: sessionctl status"}
	}
	if fi, err := os.Lstat(path); err == nil && fi.Mode().Type() != os.ModeSocket {
		lock.Close()
		return nil, &api.Error{Code: api.SocketFailed, Detail: path + " exists and is not a socket", Remedy: "remove it, or name another place: sessiond --socket PATH"}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		lock.Close()
		return nil, &api.Error{Code: api.SocketFailed, Detail: err.Error(), Err: err}
	}
	old := unix.Umask(0o177)
	l, err := net.Listen("unix", path)
	unix.Umask(old)
	if err != nil {
		lock.Close()
		return nil, &api.Error{Code: api.SocketFailed, Detail: err.Error(), Remedy: "name another place: sessiond --socket PATH", Err: err}
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // not what stands there by then
	own := &lockedListener{Listener: l, lock: lock}
	if own.file, err = os.Lstat(path); err != nil {
		own.Close()
		return nil, &api.Error{Code: api.SocketFailed, Detail: err.Error(), Err: err}
	}
	return own, nil
}

// maxSocketPath is the longest path that unix(7) takes.
const maxSocketPath = 107

// lockedListener keeps the lock as long as the socket.
type lockedListener struct {
	net.Listener
	lock *os.File
	file os.FileInfo // of the socket, if it is the agent's own
}

// Close removes the socket if it is still the agent's own, and then gives up
// the lock.
func (l *lockedListener) Close() error {
	err := l.Listener.Close()
	path := l.Addr().String()
	if now, lerr := os.Lstat(path); lerr == nil && l.file != nil && os.SameFile(now, l.file) {
		err = errors.Join(err, os.Remove(path))
	}
	return errors.Join(err, l.lock.Close())
}

// lockFile locks PATH.lock, which holds the agent's process id and stays:
// removing it would let two agents lock two files of that name.
func lockFile(path string) (*os.File, error) {
	name := path + ".lock"
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, &api.Error{Code: api.SocketFailed, Detail: err.Error(), Remedy: "name another place: sessiond --socket PATH", Err: err}
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer f.Close()
		if err != unix.EWOULDBLOCK {
			return nil, &api.Error{Code: api.SocketFailed, Detail: name + ": " + err.Error(), Err: err}
		}
		pid, _ := io.ReadAll(io.LimitReader(f, 20))
		holder := strings.TrimSpace(string(bytes.ToValidUTF8(pid, nil)))
		return nil, &api.Error{Code: api.SocketInUse, Detail: "an agent (pid " + holder + ") already listens at " + path,
			Remedy: "use it: sessionctl status"}
	}
	if err := errors.Join(f.Truncate(0), writePID(f)); err != nil {
		f.Close()
		return nil, &api.Error{Code: api.SocketFailed, Detail: err.Error(), Err: err}
	}
	return f, nil
}

func writePID(f *os.File) error {
	_, err := fmt.Fprintln(f, os.Getpid())
	return err
}
