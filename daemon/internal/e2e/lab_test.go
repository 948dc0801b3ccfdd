package e2e

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

// runLab calls sessionlab in an environment that has only the given programs
// beside a shell's own.
func runLab(t *testing.T, lab string, programs []string, args ...string) result {
	t.Helper()
	lookAtSources()
	path := t.TempDir()
	for _, p := range programs {
		found, err := exec.LookPath(p)
		must(t, err)
		must(t, os.Symlink(found, filepath.Join(path, p)))
	}
	cmd := exec.CommandContext(t.Context(), lab, args...)
	cmd.Env = []string{"PATH=" + path, "TMPDIR=" + t.TempDir()}
	return finish(t, cmd, "")
}

// TestDemo: the demonstration is right with curl and without it, and says so by
// its status; a step that goes wrong is a failure.
func TestDemo(t *testing.T) {
	for name, programs := range map[string][]string{"curl": {"sh", "curl"}, "no curl": {"sh"}} {
		t.Run(name, func(t *testing.T) {
			if name == "curl" {
				rig.Require(t, "curl")
			}
			r := runLab(t, filepath.Join(bin, "sessionlab"), programs, "--demo", "--once")
			if r.status != 0 || r.stderr != "" {
				t.Errorf("%v", r)
			}
			if n := strings.Count(r.stdout, "\n  → logins at Jira in this step: "); n != 6 || !strings.Contains(r.stdout, "20 scripts") {
				t.Errorf("%d steps in:\n%s", n, r.stdout)
			}
			for _, state := range []string{"none", "live"} { // what the first and the last step are about
				if !regexp.MustCompile(`(?m)^  jira +jira +svc-build.* ` + state + ` `).MatchString(r.stdout) {
					t.Errorf("no row of jira, %s, in:\n%s", state, r.stdout)
				}
			}
			if used := strings.Contains(r.stdout, "| curl "); used != (name == "curl") {
				t.Errorf("curl is used: %v", used)
			}
			if strings.Contains(r.stdout, "CANARY") {
				t.Error("a secret is shown")
			}
		})
	}
	t.Run("wrong", func(t *testing.T) {
		dir := t.TempDir()
		b, err := os.ReadFile(filepath.Join(bin, "sessionlab"))
		must(t, err)
		must(t, os.WriteFile(filepath.Join(dir, "sessionlab"), b, 0o700))
		if r := runLab(t, filepath.Join(dir, "sessionlab"), []string{"sh"}, "--demo", "--once"); r.status == 0 || !strings.Contains(r.stderr, "make build") {
			t.Errorf("without sessionctl: %v", r)
		}
		for _, program := range []string{"sessionctl", "sessionctl-admin"} {
			// It says what is wanted of the first step, and logs nobody in.
			must(t, os.WriteFile(filepath.Join(dir, program), []byte("#!/bin/sh\necho 'jira jira x none -'\n"), 0o700))
		}
		if r := runLab(t, filepath.Join(dir, "sessionlab"), []string{"sh"}, "--demo", "--once"); r.status == 0 || !strings.Contains(r.stderr, "step 2") {
			t.Errorf("with a sessionctl that does nothing: %v", r)
		}
	})
}

// TestLab: what the lab prints works in another shell, for each of its sites,
// and Ctrl-C leaves nothing behind.
func TestLab(t *testing.T) {
	lookAtSources()
	temporary, err := os.MkdirTemp("", "lab")
	must(t, err)
	defer os.RemoveAll(temporary)
	cmd := exec.Command(filepath.Join(bin, "sessionlab"))
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "TMPDIR=" + temporary}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	must(t, err)
	cmd.Stderr = os.Stderr
	must(t, cmd.Start())
	var said strings.Builder
	for lines := bufio.NewScanner(out); lines.Scan(); {
		said.WriteString(lines.Text() + "\n")
		if strings.HasPrefix(lines.Text(), "Ctrl-C") {
			break
		}
	}
	// Every line that is to be typed.
	var commands []string
	for _, m := range regexp.MustCompile(`(?m)^  ((?:export|sessionctl|echo) .*)$`).FindAllStringSubmatch(said.String(), -1) {
		commands = append(commands, m[1])
	}
	if len(commands) != 5 {
		t.Errorf("%d commands in:\n%s", len(commands), &said)
	}
	script := strings.Join(commands, "\n") + `
sessionctl raw app >/dev/null && sessionctl raw form >/dev/null && sessionctl list`
	shell := exec.CommandContext(t.Context(), "sh", "-c", "set -e\n"+script)
	shell.Env = []string{"PATH=" + os.Getenv("PATH")}
	r := finish(t, shell, "")
	if r.status != 0 || !strings.Contains(r.stdout, `"name":"svc-build"`) {
		t.Errorf("%v\n%s", r, script)
	}
	_, list, _ := strings.Cut(r.stdout, `"name":"svc-build"`)
	for site, user := range map[string]string{"jira": "svc-build", "tracker": "alice", "app": "svc-build@LAB.EXAMPLE", "form": "alice"} {
		if !regexp.MustCompile(`(?m)^` + site + ` +\w+ +` + regexp.QuoteMeta(user) + ` +live `).MatchString(list) {
			t.Errorf("no live session of %s at %s in:\n%s", user, site, list)
		}
	}
	must(t, cmd.Process.Signal(syscall.SIGINT))
	if err := cmd.Wait(); err != nil {
		t.Errorf("the lab ended with %v", err)
	}
	if left, err := os.ReadDir(temporary); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

func TestLabUsage(t *testing.T) {
	lab := filepath.Join(bin, "sessionlab")
	for _, args := range [][]string{{"--once"}, {"--no-such"}, {"x"}, {"fetch"}, {"fetch", "a", "b"}} {
		if r := runLab(t, lab, nil, args...); r.status != 2 || !strings.Contains(r.stderr, "sessionlab --help") || r.stdout != "" {
			t.Errorf("%v: %v", args, r)
		}
	}
	if r := runLab(t, lab, nil, "--help"); r.status != 0 || !strings.Contains(r.stdout, "--demo") {
		t.Errorf("%v", r)
	}
	if r := runLab(t, lab, nil, "fetch", "http://127.0.0.1:1/"); r.status != 1 || r.stdout != "" {
		t.Errorf("%v", r)
	}
}

// TestLabLeavesNothing: however it ends, no keytab and no store stay behind.
func TestLabLeavesNothing(t *testing.T) {
	lookAtSources()
	for name, end := range map[string]func(*exec.Cmd, *os.File){
		"the terminal is closed": func(cmd *exec.Cmd, _ *os.File) { cmd.Process.Signal(syscall.SIGHUP) },
		"it is stopped":          func(cmd *exec.Cmd, _ *os.File) { cmd.Process.Signal(syscall.SIGTERM) },
		"the pipe is closed":     func(_ *exec.Cmd, pipe *os.File) { pipe.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			temporary, err := os.MkdirTemp("", "lab")
			must(t, err)
			defer os.RemoveAll(temporary)
			r, w, err := os.Pipe()
			must(t, err)
			defer r.Close()
			cmd := exec.Command(filepath.Join(bin, "sessionlab"), "--demo")
			cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "TMPDIR=" + temporary}
			cmd.Stdout = w
			cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
			must(t, cmd.Start())
			w.Close()
			for lines := bufio.NewScanner(r); lines.Scan(); {
				if strings.HasPrefix(lines.Text(), "2. ") { // in the middle
					break
				}
			}
			end(cmd, r)
			cmd.Wait() // with a failure or not: nobody may be there to see it
			if left, err := os.ReadDir(temporary); err != nil || len(left) > 0 {
				t.Errorf("left behind: %v %v", left, err)
			}
		})
	}
}
