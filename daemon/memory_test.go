package daemon

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	pb "github.com/sessionctl/sessionctl/api/sessionctl/v1"
)

// roles are what this test binary can be when a test starts it again, by the name in
// $SESSIONCTL_TEST_ROLE. A role lasts until its standard input ends.
var roles = map[string]func(args []string, in io.Reader, out io.Writer) error{
	"open":   func(_ []string, in io.Reader, out io.Writer) error { return stay(in, out) },
	"closed": func(_ []string, in io.Reader, out io.Writer) error { return errors.Join(CloseMemory(), stay(in, out)) },
	"thief":  steal,
}

const roleVariable = "SESSIONCTL_TEST_ROLE"

// stay says what its memory is open to, and a child's core limit.
func stay(in io.Reader, out io.Writer) error {
	limits, err := exec.Command("cat", "/proc/self/limits").Output()
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(limits)) {
		if strings.HasPrefix(line, "Max core file size") {
			fmt.Fprintf(out, "%d %v\n", len(MemoryWarnings()), strings.Fields(line)[4:6])
		}
	}
	_, err = io.Copy(io.Discard, in)
	return err
}

// steal says by which ways it gets at the memory of a process: environ, maps, mem, ptrace.
func steal(args []string, _ io.Reader, out io.Writer) error {
	var pid int
	if _, err := fmt.Sscan(args[0], &pid); err != nil {
		return err
	}
	for _, name := range []string{"environ", "maps", "mem"} {
		f, err := os.Open(fmt.Sprintf("/proc/%d/%s", pid, name))
		if err == nil && name != "mem" {
			_, err = f.Read(make([]byte, 1))
		}
		if err == nil {
			fmt.Fprint(out, name, " ")
		} else if !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.EPERM) {
			return err
		}
	}
	runtime.LockOSThread()       // which the tracer is
	err := unix.PtraceSeize(pid) // which does not stop it
	if err == nil {
		fmt.Fprint(out, "ptrace ")
	} else if !errors.Is(err, unix.EPERM) {
		return err
	}
	fmt.Fprintln(out, "end")
	return nil
}

// again starts this test binary in a role. It is stopped with the test.
func again(t *testing.T, exe string, as *syscall.Credential, role string, args ...string) (pid int, in io.Writer, out *bufio.Reader) {
	t.Helper()
	cmd := exec.Command(exe, args...)
	cmd.Env = append(os.Environ(), roleVariable+"="+role)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: as, Pdeathsig: syscall.SIGKILL}
	var said bytes.Buffer
	cmd.Stderr = &said
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	runtime.LockOSThread() // or Pdeathsig comes early
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stdin.Close()
		io.Copy(io.Discard, pipe)
		if err := cmd.Wait(); err != nil {
			t.Errorf("%s: %v: %s", role, err, &said)
		}
	})
	return cmd.Process.Pid, stdin, bufio.NewReader(pipe)
}

func line(t *testing.T, r *bufio.Reader) string {
	t.Helper()
	text, err := r.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSuffix(text, "\n")
}

// TestCloseMemory: no other process of the same user gets at the memory of a process
// that has closed it, and neither it nor its children leave core files. For root this
// cannot be, so root's test has another user.
func TestCloseMemory(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var as *syscall.Credential
	if os.Geteuid() == 0 {
		as = &syscall.Credential{Uid: 4242, Gid: 4242}
		// Where that user may run it.
		dir := shortDir(t)
		binary, err := os.ReadFile(exe)
		if err == nil {
			exe = filepath.Join(dir, "daemon.test")
			err = errors.Join(os.Chmod(dir, 0o755), os.WriteFile(exe, binary, 0o755))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	yama, err := os.ReadFile("/proc/sys/kernel/yama/ptrace_scope")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	free := len(yama) == 0 || string(bytes.TrimSpace(yama)) == "0"
	for _, c := range []struct {
		role, gets string
		warnings   string
	}{{"open", "environ maps mem ptrace end", "1"}, {"closed", "end", "0 [0 0]"}} {
		pid, _, out := again(t, exe, as, c.role)
		if got := line(t, out); !strings.HasPrefix(got, c.warnings) && c.role == "closed" {
			t.Errorf("%s: warnings and a child's core limits: %s, want %s", c.role, got, c.warnings)
		} else if c.role == "open" && strings.HasPrefix(got, "0") {
			t.Errorf("an open process has no warning: %s", got)
		}
		_, _, thief := again(t, exe, as, "thief", fmt.Sprint(pid))
		got := line(t, thief)
		if c.role == "open" && !free { // Yama keeps ptrace and mem from all but parents
			got, c.gets = strings.Join(slices.DeleteFunc(strings.Fields(got), func(s string) bool { return s == "mem" || s == "ptrace" }), " "), "environ maps end"
		}
		if got != c.gets {
			t.Errorf("%s: another process gets at %q, want %q", c.role, got, c.gets)
		}
		limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
		if err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(string(limits), "Max core file size        0                    0  "); c.role == "closed" && n != 1 {
			t.Errorf("core files are not off:\n%s", limits)
		}
	}
}

// TestMemoryWarnings: status passes on what the start has found.
func TestMemoryWarnings(t *testing.T) {
	// A child that was started as another user has closed it (setuid(2) after vfork(2)).
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	found := MemoryWarnings()
	if len(found) == 0 || !strings.Contains(found[0], "memory is open") {
		t.Fatalf("%q", found)
	}
	r := run(t, Options{Config: loaded(t), Warnings: found})
	st, err := r.agent.GetStatus(t.Context(), &pb.GetStatusRequest{})
	if err != nil || !slices.Contains(st.GetWarnings(), found[0]) {
		t.Errorf("%q, %v", st.GetWarnings(), err)
	}
}
