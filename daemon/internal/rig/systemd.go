package rig

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Systemd is systemd as the first process of namespaces of its own (PID, mount,
// cgroup, UTS, IPC), on a copy-on-write view of this machine's files. /run,
// /tmp and /etc/systemd are empty at the start; nothing of the machine is
// changed. The network is the machine's: servers on 127.0.0.1 are reached.
//
// It needs root, mount, pivot_root, nsenter, systemd and Linux 5.7. All of it
// ends with Stop, and with the test process in whatever way that ends.
type Systemd struct {
	// Files are those of the new system, by paths without the leading slash. A
	// symbolic link that leads out of it is not followed.
	Files *os.Root

	process *process
	cgroup  *cgroup
}

// StartSystemd starts systemd, with its journal and no other service, and
// returns when it is up. It makes the directory dir, over which it mounts the
// memory for files that change, out of the test's sight, and the file DIR.out.
func StartSystemd(ctx context.Context, dir string) (_ *Systemd, err error) {
	script, err := templateFiles.ReadFile("templates/systemd.sh")
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	// systemd tells its readiness to this socket (systemd(1), NOTIFY_SOCKET). An
	// abstract name is reached from everywhere on the same network.
	name := "@sessionctl-rig-" + rand.Text()
	ready, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		return nil, err
	}
	defer ready.Close()

	s := &Systemd{}
	if s.cgroup, err = newCgroup(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Stop())
		}
	}()
	cmd := exec.Command("sh", "-c", string(script), "systemd.sh", dir)
	cmd.Env = []string{"PATH=" + systemPath, "LC_ALL=C", "container=sessionctl-rig", "NOTIFY_SOCKET=" + name}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWCGROUP | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC,
		UseCgroupFD: true, CgroupFD: int(s.cgroup.dir.Fd()),
	}
	if s.process, err = startProcess("systemd", cmd, dir+".out"); err != nil {
		return nil, err
	}
	if err := s.ready(ctx, ready); err != nil {
		return nil, err
	}
	if s.Files, err = os.OpenRoot(fmt.Sprintf("/proc/%d/root", s.PID())); err != nil {
		return nil, err
	}
	return s, nil
}

// systemPath is the PATH inside.
const systemPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// ready waits for systemd's word.
func (s *Systemd) ready(ctx context.Context, socket *net.UnixConn) error {
	done := make(chan struct{})
	defer close(done)
	go func() {
		select {
		case <-ctx.Done():
		case <-s.process.ended:
		case <-done:
		}
		_ = socket.SetReadDeadline(time.Unix(1, 0)) // fails once the socket is closed
	}()
	buf := make([]byte, 4096)
	for {
		n, err := socket.Read(buf)
		if err != nil {
			select {
			case <-s.process.ended:
				err = fmt.Errorf("it has ended: %w", s.process.err)
			default:
				err = cmp.Or(ctx.Err(), err)
			}
			return fmt.Errorf("systemd does not come up: %w: %s", err, s.process.lastOutput())
		}
		for line := range strings.Lines(string(buf[:n])) {
			if strings.TrimSpace(line) == "READY=1" {
				return nil
			}
		}
	}
}

// Stop kills everything inside and waits until it is gone. It is called once.
func (s *Systemd) Stop() error {
	if s.Files != nil {
		s.Files.Close()
	}
	if s.process != nil {
		// The kernel ends a PID namespace with its first process, and that only
		// after all others.
		_ = s.process.cmd.Process.Kill() // an error means that it has ended already
		<-s.process.ended
	}
	return s.cgroup.remove()
}

// PID returns the process id of the systemd as the test sees it.
func (s *Systemd) PID() int { return s.process.cmd.Process.Pid }

// AddUser makes a user and a group of the same number, with an empty home
// directory /home/NAME, mode 0700.
func (s *Systemd) AddUser(name string, uid int) error {
	for file, line := range map[string]string{
		"etc/passwd": fmt.Sprintf("%s:x:%d:%d::/home/%s:/bin/sh\n", name, uid, uid, name),
		"etc/group":  fmt.Sprintf("%s:x:%d:\n", name, uid),
	} {
		b, err := s.Files.ReadFile(file)
		if err != nil {
			return err
		}
		if err := s.Files.WriteFile(file, append(b, line...), 0o644); err != nil {
			return err
		}
	}
	home := path.Join("home", name)
	if err := s.Files.Mkdir(home, 0o700); err != nil {
		return err
	}
	return s.Files.Chown(home, uid, uid)
}

// WriteFile makes a file that belongs to a user. Directories that are missing
// are made for the same user, with mode 0755.
func (s *Systemd) WriteFile(name string, content []byte, mode fs.FileMode, uid int) error {
	var missing []string
	for dir := path.Dir(name); ; dir = path.Dir(dir) {
		_, err := s.Files.Stat(dir)
		if err == nil {
			break
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		missing = append([]string{dir}, missing...)
	}
	for _, dir := range missing {
		if err := errors.Join(s.Files.Mkdir(dir, 0o755), s.Files.Chown(dir, uid, uid)); err != nil {
			return err
		}
	}
	// Whatever the umask is.
	return errors.Join(s.Files.WriteFile(name, content, mode), s.Files.Chmod(name, mode), s.Files.Chown(name, uid, uid))
}

// StartUser starts a user's manager (systemd --user) and returns when it is up.
func (s *Systemd) StartUser(ctx context.Context, uid int) error {
	out, err := s.Command(ctx, 0, nil, "systemctl", "start", fmt.Sprintf("user@%d.service", uid)).CombinedOutput()
	if err != nil {
		return fmt.Errorf("start the manager of uid %d: %w: %s%s", uid, err, out, s.process.lastOutput())
	}
	return nil
}

// Journal returns what has been logged inside.
func (s *Systemd) Journal(ctx context.Context) (string, error) {
	sync, err := s.Command(ctx, 0, nil, "journalctl", "--sync").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("journalctl --sync: %w: %s", err, sync)
	}
	out, err := s.Command(ctx, 0, nil, "journalctl", "--no-pager", "-o", "short-monotonic").Output()
	return string(out), err
}

// Command returns a command that runs inside as a user without supplementary
// groups, with exactly the environment given. The program is a path inside, or
// a name on the usual path.
func (s *Systemd) Command(ctx context.Context, uid int, env []string, program string, args ...string) *exec.Cmd {
	id := strconv.Itoa(uid)
	enter := []string{"-t", strconv.Itoa(s.PID()), "-m", "-p", "-C", "-u", "-i", "-r", "-w", "-S", id, "-G", id, "--"}
	if !strings.Contains(program, "/") {
		enter = append(enter, "env", "PATH="+systemPath)
	}
	cmd := exec.CommandContext(ctx, "nsenter", append(append(enter, program), args...)...)
	cmd.Env = append([]string{}, env...) // not nil, which would be the test's own
	cmd.WaitDelay = time.Second
	return cmd
}

// cgroup is a cgroup (version 2) below the test's own. A process that outlives
// the test, if need be, removes it and what was made below it.
type cgroup struct {
	dir     *os.File
	remover *exec.Cmd
	hold    io.Closer // the remover's input, whose end it waits for
}

// removeCgroup removes the cgroup $1 of the hierarchy that is descriptor 3. Its
// processes have been killed, but may still be about to end.
const removeCgroup = `
cd /proc/self/fd/3
read -r _
tries=0
until find "$1" -depth -type d -exec rmdir {} +; do
  [ $((tries += 1)) -lt 100 ] || exit 1
  sleep 0.1
done
`

// newCgroup makes a cgroup. Whether and where this machine has the hierarchy
// mounted does not matter.
func newCgroup() (_ *cgroup, err error) {
	root, err := cgroupRoot()
	if err != nil {
		return nil, fmt.Errorf("cgroup2: %w", err)
	}
	defer root.Close()
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	_, own, ok := strings.Cut("\n"+string(b), "\n0::/") // cgroups(7)
	if !ok {
		return nil, errors.New("/proc/self/cgroup names no cgroup of version 2")
	}
	own, _, _ = strings.Cut(own, "\n")
	name := "./" + path.Join(own, "sessionctl-rig-"+rand.Text())

	c := &cgroup{remover: exec.Command("sh", "-c", removeCgroup, "sh", name)}
	c.remover.ExtraFiles = []*os.File{root}
	c.remover.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // out of reach of a terminal's ^C
	if c.hold, err = c.remover.StdinPipe(); err != nil {
		return nil, err
	}
	if err := unix.Mkdirat(int(root.Fd()), name, 0o755); err != nil {
		return nil, fmt.Errorf("make the cgroup %s: %w", name, err)
	}
	if err := c.remover.Start(); err != nil {
		return nil, errors.Join(err, unix.Unlinkat(int(root.Fd()), name, unix.AT_REMOVEDIR))
	}
	fd, err := unix.Openat(int(root.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, errors.Join(err, c.remove())
	}
	c.dir = os.NewFile(uintptr(fd), name)
	return c, nil
}

// remove removes a cgroup without living processes.
func (c *cgroup) remove() error {
	if c.dir != nil {
		c.dir.Close()
	}
	c.hold.Close()
	if err := c.remover.Wait(); err != nil {
		return fmt.Errorf("remove the cgroup %s: %w", c.remover.Args[len(c.remover.Args)-1], err)
	}
	return nil
}

// cgroupRoot opens the top of the hierarchy as this process sees it, in a mount
// that is attached nowhere.
func cgroupRoot() (*os.File, error) {
	fsfd, err := unix.Fsopen("cgroup2", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fsfd)
	if err := unix.FsconfigCreate(fsfd); err != nil {
		return nil, err
	}
	fd, err := unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "cgroup2"), nil
}
