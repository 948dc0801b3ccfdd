package e2e

import (
	"bytes"
	"encoding/base64"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/sessionctl/sessionctl/client/clienttest"
)

const execValue = "CANARY-0123456789"

// execAs returns a command of `exec` at a fake agent's site "app".
func execAs(t *testing.T) func(args ...string) *exec.Cmd {
	t.Helper()
	agent, err := clienttest.Start()
	must(t, err)
	t.Cleanup(func() { must(t, agent.Close()) })
	agent.AddSite(clienttest.Site{Name: "app", URL: "https://app.corp.example/", Login: func() (clienttest.Session, error) {
		return clienttest.Session{Header: http.Header{"Cookie": {"s=" + execValue}}}, nil
	}})
	return func(args ...string) *exec.Cmd {
		cmd := exec.CommandContext(t.Context(), filepath.Join(bin, "sessionctl"), append([]string{"exec"}, args...)...)
		cmd.Env = []string{"SESSIONCTL_SOCKET=" + agent.Socket(), "PATH=" + os.Getenv("PATH"), "APP_COOKIE=old"}
		return cmd
	}
}

// TestExec: the command's own streams, status and end, with and without
// --redact; failures of sessionctl's own are 125, 126 and 127.
func TestExec(t *testing.T) {
	app := execAs(t)
	dir := t.TempDir()
	plain := write(t, filepath.Join(dir, "plain"), "not executable")
	for _, redact := range []bool{false, true} {
		shown := "s=" + execValue
		call := func(args ...string) *exec.Cmd { return app(args...) }
		if redact {
			shown = "[redacted]"
			call = func(args ...string) *exec.Cmd { return app(append([]string{"--redact"}, args...)...) }
		}
		for _, c := range []struct {
			args   []string
			stdin  string
			status int
			stdout string
		}{
			{[]string{"app", "--", "sh", "-c", `echo "$APP_COOKIE"; env | grep -c ^APP_COOKIE=`}, "", 0, shown + "\n1\n"},
			{[]string{"app", "--var", "X", "--", "sh", "-c", `echo "$X $APP_COOKIE"`}, "", 0, shown + " old\n"},
			{[]string{"app", "--", "cat"}, "through\x00\xff", 0, "through\x00\xff"},
			{[]string{"app", "--", "sh", "-c", "exit 3"}, "", 3, ""},
			{[]string{"app", "--", "sh", "-c", "echo out; kill -TERM $$"}, "", -int(syscall.SIGTERM), "out\n"},
			{[]string{"app", "--", "sh", "-c", "kill -KILL $$"}, "", -int(syscall.SIGKILL), ""},
			{[]string{"app", "--", "sh", "-c", "ulimit -c 0; kill -ABRT $$"}, "", -int(syscall.SIGABRT), ""},
			{[]string{"app", "--", "sh", "-c", "ulimit -c 0; kill -SEGV $$"}, "", -int(syscall.SIGSEGV), ""},
			{[]string{"app", "--", "env", "-u", "SESSIONCTL_SOCKET", "-u", "PATH"}, "", 0, "APP_COOKIE=" + shown + "\n"},
			{[]string{"app", "--", "printf", "%s.", "--redact", "--", "--var=a"}, "", 0, "--redact.--.--var=a."},
			{[]string{"app", "--", "no-such-program-CANARY"}, "", 127, ""},
			{[]string{"app", "--", dir + "/none"}, "", 127, ""},
			{[]string{"app", "--", plain}, "", 126, ""},
			{[]string{"app", "--", dir}, "", 126, ""},
			{[]string{"app"}, "", 125, ""},
			{[]string{"app", "--"}, "", 125, ""},
			{[]string{"app", "true"}, "", 125, ""},
			{[]string{"nothing", "--", "echo", "ran"}, "", 125, ""},
			{[]string{"app", "--socket", "/nonexistent/a.sock", "--timeout", "1s", "--", "echo", "ran"}, "", 125, ""},
		} {
			cmd := call(c.args...)
			got := finish(t, cmd, c.stdin)
			if state := cmd.ProcessState.Sys().(syscall.WaitStatus); state.Signaled() {
				got.status = -int(state.Signal())
			}
			if got.status != c.status || got.stdout != c.stdout || strings.Contains(got.stderr, "CANARY") || (c.status >= 125) != (got.stderr != "") {
				t.Errorf("redact %v, %q: %v", redact, c.args, got)
			}
		}
	}
}

// TestExecRedacts: on both streams, written in pieces, in base64; a prompt is
// seen while the command waits.
func TestExecRedacts(t *testing.T) {
	app := execAs(t)
	got := finish(t, app("--redact", "app", "--", "sh", "-c", `
		printf s=CANARY-; printf 012; printf 3456789.
		printf '%s' "$APP_COOKIE" | base64 -w0
		printf '%s' "${APP_COOKIE#s=}" >&2; echo CANARY-01234567 >&2`), "")
	if got.status != 0 || got.stdout != "[redacted].[redacted]" || got.stderr != "[redacted]CANARY-01234567\n" {
		t.Errorf("%v (base64: %s)", got, base64.StdEncoding.EncodeToString([]byte("s="+execValue)))
	}
	// As real encoders write it.
	for _, line := range []string{`printf '%s and more than a line holds of it, which is wrapped' "$APP_COOKIE" | base64`, `printf %s "$APP_COOKIE" | base64 -w 7`,
		`python3 -c 'import os, urllib.parse; print(urllib.parse.quote(os.environ["APP_COOKIE"]))'`, `python3 -c 'import os, json; print(json.dumps(os.environ["APP_COOKIE"]))'`,
		`bash -c 'printf %q "$APP_COOKIE"'`, `printf %s "$APP_COOKIE" | od -An -tx1 | tr -d ' \n'`} {
		if got := finish(t, app("--redact", "app", "--", "sh", "-c", line), ""); got.status != 0 || !strings.Contains(got.stdout, "[redacted]") {
			t.Errorf("%s: %v", line, got)
		}
	}
	// A full disk is no success, and what nohup has a command ignore stays ignored.
	if got := finish(t, app("--redact", "app", "--", "sh", "-c", "true"), ""); got.status != 0 {
		t.Errorf("%v", got)
	}
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	must(t, err)
	defer full.Close()
	lost := app("--redact", "app", "--", "echo", "all there is")
	var said bytes.Buffer
	lost.Stdout, lost.Stderr = full, &said
	if err := lost.Run(); lost.ProcessState.ExitCode() != 125 || !strings.Contains(said.String(), "no space left on device") {
		t.Errorf("onto a full disk: %v: %s", err, &said)
	}
	ignored := exec.CommandContext(t.Context(), "sh", "-c", `trap '' HUP INT; exec "$@"`, "sh")
	begun := app("--redact", "app", "--", "sh", "-c", "kill -HUP $$; kill -INT $$; echo lives")
	ignored.Args, ignored.Env = append(ignored.Args, begun.Args...), begun.Env
	if got := finish(t, ignored, ""); got.status != 0 || got.stdout != "lives\n" {
		t.Errorf("with signals ignored: %v", got)
	}
	cmd := app("--redact", "app", "--", "sh", "-c", `printf 'Name? '; read n; printf 'hello %s' "$n"`)
	stdin, err := cmd.StdinPipe()
	must(t, err)
	stdout, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	prompt := make([]byte, len("Name? "))
	for n := 0; n < len(prompt); { // hangs if the prompt is held back
		k, err := stdout.Read(prompt[n:])
		must(t, err)
		n += k
	}
	_, err = stdin.Write([]byte("me\n"))
	must(t, err)
	rest := make([]byte, 64)
	n, err := stdout.Read(rest)
	must(t, err)
	if string(prompt) != "Name? " || !strings.HasPrefix("hello me", string(rest[:n])) {
		t.Errorf("%q %q", prompt, rest[:n])
	}
	must(t, cmd.Wait())
	// Who reads no more is no reason to go on.
	head := exec.CommandContext(t.Context(), "sh", "-c", `"$@" | head -c 3`, "sh")
	endless := app("--redact", "app", "--", "yes")
	head.Args, head.Env = append(head.Args, endless.Args...), endless.Env
	if got := finish(t, head, ""); got.stdout != "y\ny" || got.stderr != "" {
		t.Errorf("a closed pipe: %v", got)
	}
	big := app("--redact", "app", "--", "head", "-c", "20000000", "/dev/zero")
	if got := finish(t, big, ""); got.status != 0 || len(got.stdout) != 20000000 {
		t.Errorf("%d bytes arrived", len(got.stdout))
	}
}

// TestExecSignals: what only sessionctl gets reaches the command, once.
func TestExecSignals(t *testing.T) {
	app := execAs(t)
	for _, args := range [][]string{{"app"}, {"--redact", "app"}} {
		cmd := app(append(args, "--", "sh", "-c", `n=0; trap 'n=$((n+1)); echo got' TERM; trap 'echo "$n"; exit 7' USR1; echo ready; while :; do sleep 1 & wait $!; kill $!; done 2>/dev/null`)...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		var errs bytes.Buffer
		cmd.Stderr = &errs
		stdout, err := cmd.StdoutPipe()
		must(t, err)
		must(t, cmd.Start())
		line := make([]byte, 64)
		_, err = stdout.Read(line)
		must(t, err)
		must(t, cmd.Process.Signal(syscall.SIGTERM))
		_, err = stdout.Read(line)
		must(t, err)
		must(t, cmd.Process.Signal(syscall.SIGUSR1))
		clear(line)
		n, err := stdout.Read(line)
		must(t, err)
		err = cmd.Wait()
		if cmd.ProcessState.ExitCode() != 7 || string(line[:n]) != "1\n" {
			t.Errorf("%q: %v %q %q", args, err, line[:n], errs.String())
		}
	}
}
