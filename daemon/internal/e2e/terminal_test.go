package e2e

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// terminal is a pseudo-terminal (pty(7)) with a program on it.
type terminal struct {
	master *os.File
	cmd    *exec.Cmd
	screen strings.Builder
}

// onTerminal runs sessionctl on a terminal of its own.
func (h *home) onTerminal(t *testing.T, args ...string) *terminal {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join(bin, "sessionctl"), args...)
	cmd.Env = []string{"SESSIONCTL_SOCKET=" + h.socket, "PATH=" + bin}
	return startOnTerminal(t, cmd)
}

// startOnTerminal starts a program on a terminal of its own.
func startOnTerminal(t *testing.T, cmd *exec.Cmd) *terminal {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	must(t, err)
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	must(t, err)
	must(t, unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0))
	slave, err := os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
	must(t, err)
	p := &terminal{master: master, cmd: cmd}
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = slave, slave, slave
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0}
	must(t, p.cmd.Start())
	slave.Close() // the program's end is then the screen's
	t.Cleanup(func() {
		p.cmd.Process.Kill()
		master.Close()
	})
	return p
}

// until reads what the program shows until a text comes.
func (p *terminal) until(t *testing.T, text string) {
	t.Helper()
	b := make([]byte, 4096)
	for !strings.Contains(p.screen.String(), text) {
		n, err := p.master.Read(b)
		if err != nil {
			t.Fatalf("%q does not come: %v\n%s", text, err, &p.screen)
		}
		p.screen.Write(b[:n])
	}
}

func (p *terminal) echoes(t *testing.T) bool {
	t.Helper()
	attr, err := unix.IoctlGetTermios(int(p.master.Fd()), unix.TCGETS)
	must(t, err)
	return attr.Lflag&unix.ECHO != 0
}

// end waits for the program's end and returns its status.
func (p *terminal) end(t *testing.T) int {
	t.Helper()
	var exit *exec.ExitError
	if err := p.cmd.Wait(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	// What is left on the screen; a terminal whose last program has gone is EIO.
	rest, _ := io.ReadAll(p.master)
	p.screen.Write(rest)
	return p.cmd.ProcessState.ExitCode()
}

// TestLoginOnATerminal: login asks for a password that is missing, shows nothing
// of it, and leaves the terminal as it was.
func TestLoginOnATerminal(t *testing.T) {
	j := newJira(t)
	h := j.home(t)
	a := h.start(t)

	p := h.onTerminal(t, "login", "tracker")
	p.until(t, "Password for tracker: ")
	if p.echoes(t) {
		t.Error("what is typed would be shown")
	}
	p.master.Write([]byte{26, 28, 3}) // Ctrl-Z and Ctrl-\ do nothing now; Ctrl-C
	if p.until(t, "interrupted"); !p.echoes(t) {
		t.Error("the terminal was left without echo")
	}
	if status := p.end(t); status != 130 {
		t.Errorf("status %d after Ctrl-C: %s", status, &p.screen)
	}

	p = h.onTerminal(t, "login", "tracker", "--cookie-stdin")
	p.until(t, "Cookie for tracker: ")
	p.master.Write([]byte("JSESSIONID=CANARY-"))
	p.master.Write([]byte(strings.Repeat("x", 4077) + "\n"))
	if p.until(t, "give it by a pipe"); p.end(t) != 2 {
		t.Errorf("a line that the terminal cuts: %s", &p.screen)
	}

	p = h.onTerminal(t, "login", "tracker")
	p.until(t, "Password for tracker: ")
	p.master.Write([]byte(alicePassword + "\n"))
	if p.until(t, "logged in as alice"); p.end(t) != 0 || strings.Contains(p.screen.String(), "CANARY") {
		t.Errorf("%s", &p.screen)
	}
	// With a password at hand nobody is asked.
	p = h.onTerminal(t, "login", "tracker")
	if p.until(t, "logged in as alice"); p.end(t) != 0 || strings.Contains(p.screen.String(), "Password for") {
		t.Errorf("%s", &p.screen)
	}
	a.stop(t)
	noSecrets(t, a)
}
