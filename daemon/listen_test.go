package daemon

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sessionctl/sessionctl/api"
)

// shortDir is a directory whose path leaves room for a socket's name.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "listen")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func TestListen(t *testing.T) {
	path := filepath.Join(shortDir(t), "sessionctl", "agent.sock")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, mode := range map[string]os.FileMode{path: os.ModeSocket | 0o600, filepath.Dir(path): os.ModeDir | 0o700, path + ".lock": 0o600} {
		if fi, err := os.Lstat(name); err != nil || fi.Mode() != mode {
			t.Errorf("%s: %v %v, want %v", name, fi.Mode(), err, mode)
		}
	}
	if _, err := api.CheckSocket(path); err != nil {
		t.Errorf("clients would not trust it: %v", err)
	}
	if _, err := Listen(path); api.CodeOf(err) != api.SocketInUse || !strings.Contains(err.Error(), fmt.Sprint(os.Getpid())) {
		t.Errorf("a second one: %v", err)
	}
	if c, err := net.Dial("unix", path); err != nil {
		t.Errorf("the first one is disturbed: %v", err)
	} else {
		c.Close()
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("the socket stays: %v", err)
	}
	l, err = Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
}

// TestListenAfterACrash: a socket that nobody listens on is replaced.
func TestListenAfterACrash(t *testing.T) {
	path := filepath.Join(shortDir(t), "agent.sock")
	old, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	old.(*net.UnixListener).SetUnlinkOnClose(false)
	old.Close()
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
}

// TestListenRace: of many agents that start at once, one gets the socket.
func TestListenRace(t *testing.T) {
	path := filepath.Join(shortDir(t), "agent.sock")
	var mu sync.Mutex
	var won []net.Listener
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			l, err := Listen(path)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				won = append(won, l)
			} else if api.CodeOf(err) != api.SocketInUse {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if len(won) != 1 {
		t.Fatalf("%d agents listen", len(won))
	}
	defer won[0].Close()
	if c, err := net.Dial("unix", path); err != nil {
		t.Error(err)
	} else {
		c.Close()
	}
}

// TestListenFullQueue: somebody who listens and has no time is alive.
func TestListenFullQueue(t *testing.T) {
	path := filepath.Join(shortDir(t), "agent.sock")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: path}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	for {
		c, err := net.Dial("unix", path)
		if err != nil {
			break
		}
		defer c.Close()
	}
	if l, err := Listen(path); api.CodeOf(err) != api.SocketInUse {
		if err == nil {
			l.Close()
		}
		t.Errorf("got %v", err)
	}
}

// TestCloseLeavesOthers: what stands at the path by the end may be another's.
func TestCloseLeavesOthers(t *testing.T) {
	path := filepath.Join(shortDir(t), "agent.sock")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	other, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the other's socket: %v", err)
	}
}

func TestListenRefuses(t *testing.T) {
	dir := shortDir(t)
	open := filepath.Join(dir, "open")
	if err := os.Mkdir(open, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(open, 0o777); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "agent.sock")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "l", "agent.sock")
	if err := os.Mkdir(filepath.Dir(link), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(file, link+".lock"); err != nil {
		t.Fatal(err)
	}
	for name, path := range map[string]string{
		"a directory open to all": filepath.Join(open, "agent.sock"),
		"a file":                  file,
		"no parent":               filepath.Join(dir, "a", "b", "agent.sock"),
		"a link for a lock":       link,
		"a path that is too long": filepath.Join(dir, strings.Repeat("x", 120)),
	} {
		l, err := Listen(path)
		if err == nil {
			l.Close()
		}
		if api.CodeOf(err) != api.SocketFailed {
			t.Errorf("%s: %v", name, err)
		}
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "precious" {
		t.Errorf("the file: %q %v", b, err)
	}
}

func init() { roles["passed"] = sayPassed }

// sayPassed says which sockets it was handed over.
func sayPassed(_ []string, _ io.Reader, out io.Writer) error {
	agent, credentials, err := Passed()
	if err != nil {
		return err
	}
	for name, l := range map[string]net.Listener{"agent": agent, "credentials": credentials} {
		if l == nil {
			continue
		}
		fmt.Fprintln(out, name, filepath.Base(l.Addr().String()))
		l.Close()
	}
	return nil
}

// TestPassed: what systemd hands over is told apart by its names, and stays where it
// is.
func TestPassed(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		names string // each on the network that it begins with
		want  string
		fails string
	}{
		{"", "", ""},
		{"unix-agent", "agent unix-agent\n", ""},
		{"unix-any", "agent unix-any\n", ""},
		{"unix-credentials", "credentials unix-credentials\n", ""},
		{"unix-credentials:unix-agent", "agent unix-agent\ncredentials unix-credentials\n", ""},
		{"unix-agent:unix-any", "", `"any" from systemd is one too many`},
		{"unix-credentials:unix-credentials", "", `"credentials" from systemd is one too many`},
		{"tcp-agent", "", `"agent" from systemd`},
		{"unixpacket-credentials", "", `"credentials" from systemd`},
	} {
		dir := shortDir(t)
		cmd := exec.Command("sh", "-c", `LISTEN_PID=$$ exec "$0"`, self)
		var paths, names []string
		for i, name := range strings.Split(c.names, ":") {
			network, called, ok := strings.Cut(name, "-")
			if !ok {
				continue
			}
			at := "127.0.0.1:0"
			if network != "tcp" {
				at = filepath.Join(dir, fmt.Sprint(i), name)
				if err := os.Mkdir(filepath.Dir(at), 0o700); err != nil {
					t.Fatal(err)
				}
				paths = append(paths, at)
			}
			l, err := net.Listen(network, at)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			f, err := l.(interface{ File() (*os.File, error) }).File()
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			cmd.ExtraFiles, names = append(cmd.ExtraFiles, f), append(names, called)
		}
		cmd.Env = []string{roleVariable + "=passed", fmt.Sprintf("LISTEN_FDS=%d", len(names)), "LISTEN_FDNAMES=" + strings.Join(names, ":"), "GOCOVERDIR=" + dir}
		out, err := cmd.CombinedOutput()
		lines := slices.Sorted(strings.Lines(string(out)))
		if c.fails == "" && (err != nil || strings.Join(lines, "") != c.want) || c.fails != "" && (err == nil || !strings.Contains(string(out), c.fails)) {
			t.Errorf("%q: %v: %s", c.names, err, out)
		}
		for _, path := range paths {
			if _, err := os.Lstat(path); err != nil {
				t.Errorf("%q: the socket is gone: %v", c.names, err)
			}
		}
	}
}
