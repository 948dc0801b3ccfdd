package rig

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// trace is what a systemd would leave behind.
type trace struct {
	pidfd  int
	cgroup string // relative to the top of the hierarchy
}

func traceOf(t *testing.T, pid int) trace {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, group, _ := strings.Cut(string(b), "0::/")
	group = path.Dir(strings.TrimSpace(group)) // without init.scope
	if !strings.HasPrefix(path.Base(group), "sessionctl-rig-") || !exists(t, group) {
		t.Fatalf("systemd is not in a cgroup of its own:\n%s", b)
	}
	return trace{fd, group}
}

func exists(t *testing.T, cgroup string) bool {
	t.Helper()
	root, err := cgroupRoot()
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	var st unix.Stat_t
	err = unix.Fstatat(int(root.Fd()), cgroup, &st, 0)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return err == nil
}

func TestSystemd(t *testing.T) {
	Require(t, "root", "mount", "pivot_root", "nsenter", "systemd", "systemctl", "journalctl")
	before, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	s, err := StartSystemd(t.Context(), filepath.Join(t.TempDir(), "systemd"))
	if err != nil {
		t.Fatal(err)
	}
	stopped := false
	defer func() {
		if !stopped {
			s.Stop()
		}
	}()
	left := traceOf(t, s.PID())
	const name = "etc/sessionctl-rig/file"
	if err := s.WriteFile(name, []byte("inside\n"), 0o640, 4242); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat("/" + name); err == nil {
		t.Error("a file inside is on this machine")
	}
	if err := s.AddUser("alice", 4242); err != nil {
		t.Fatal(err)
	}
	if err := s.StartUser(t.Context(), 4242); err != nil {
		t.Fatal(err)
	}
	for command, want := range map[string]string{
		"cat /" + name:             "inside",
		"id":                       "uid=4242(alice) gid=4242(alice) groups=4242(alice)",
		"/usr/bin/env":             "A=b",
		"stat -c %a%u /" + name:    "6404242",
		"cat /proc/1/comm":         "systemd",
		"stat -c %U%a /home/alice": "alice700",
	} {
		args := strings.Fields(command)
		out, err := s.Command(t.Context(), 4242, []string{"A=b"}, args[0], args[1:]...).CombinedOutput()
		if err != nil || strings.TrimSpace(string(out)) != want {
			t.Errorf("%s: want %q, got %q, %v", command, want, out, err)
		}
	}
	if journal, err := s.Journal(t.Context()); err != nil || !strings.Contains(journal, "Started user@4242.service") {
		t.Errorf("the journal: %v\n%s", err, journal)
	}
	stopped = true
	if err := s.Stop(); err != nil {
		t.Error(err)
	}
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(left.pidfd), Events: unix.POLLIN}}, 0); n != 1 {
		t.Errorf("systemd runs after Stop: %v", err)
	}
	if exists(t, left.cgroup) {
		t.Errorf("the cgroup %s is left behind", left.cgroup)
	}
	after, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || string(after) != string(before) {
		t.Errorf("the mounts have changed (%v), from\n%sto\n%s", err, before, after)
	}
}

func TestSystemdDoesNotComeUp(t *testing.T) {
	Require(t, "root", "mount", "pivot_root", "nsenter", "systemd", "systemctl", "journalctl")
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := StartSystemd(t.Context(), file); err == nil {
		t.Error("it lives in a file")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := StartSystemd(ctx, filepath.Join(t.TempDir(), "systemd")); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// TestSystemdDiesWithTheTest kills a test process, which is this test again as a
// child, and waits until what it started is gone.
func TestSystemdDiesWithTheTest(t *testing.T) {
	Require(t, "root", "mount", "pivot_root", "nsenter", "systemd", "systemctl", "journalctl")
	const child = "RIG_TEST_SYSTEMD_CHILD"
	if dir := os.Getenv(child); dir != "" {
		s, err := StartSystemd(t.Context(), dir)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Println("PID", s.PID())
		_, _ = io.Copy(io.Discard, os.Stdin) // until killed
		return
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestSystemdDiesWithTheTest$")
	cmd.Env = append(os.Environ(), child+"="+filepath.Join(t.TempDir(), "systemd"))
	hold, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer hold.Close()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := 0
	for lines := bufio.NewScanner(out); pid == 0 && lines.Scan(); {
		_, _ = fmt.Sscanf(lines.Text(), "PID %d", &pid) // other lines are go test's
	}
	if pid == 0 {
		_ = cmd.Process.Kill()
		t.Fatal("the child did not start systemd")
	}
	left := traceOf(t, pid)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // always says that it was killed
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(left.pidfd), Events: unix.POLLIN}}, 10_000); n != 1 {
		t.Fatalf("systemd has outlived the test: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	poll := time.NewTicker(5 * time.Millisecond)
	defer poll.Stop()
	for exists(t, left.cgroup) {
		select {
		case <-poll.C:
		case <-ctx.Done():
			t.Fatalf("the cgroup %s has outlived the test", left.cgroup)
		}
	}
}
