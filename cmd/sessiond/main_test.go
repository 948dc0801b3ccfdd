package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sessionctl/sessionctl/api"
	pb "github.com/sessionctl/sessionctl/api/sessionctl/v1"
	"github.com/sessionctl/sessionctl/client"
	"github.com/sessionctl/sessionctl/daemon"
)

// TestMain is sessiond's where it starts itself.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == daemon.ProbeVerb {
		os.Exit(daemon.Probe(os.Stdout))
	}
	os.Exit(m.Run())
}

// TestPlaces: wherever a path comes from, it is absolute.
func TestPlaces(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	t.Setenv("HOME", "/home/build")
	for _, c := range []struct{ named, base, want string }{
		{"x.toml", "", filepath.Join(dir, "x.toml")}, {"../x.toml", "/base", filepath.Join(filepath.Dir(dir), "x.toml")}, {"/etc/x.toml", "/base", "/etc/x.toml"},
		{"", "/base", "/base/sessionctl/f"}, {"", "base", "/home/build/.config/sessionctl/f"}, {"", "", "/home/build/.config/sessionctl/f"},
	} {
		t.Setenv("XDG_CONFIG_HOME", c.base)
		if got, err := place(c.named, "XDG_CONFIG_HOME", ".config", "f"); err != nil || got != c.want {
			t.Errorf("%+v: %s %v", c, got, err)
		}
	}
	own := api.UserSocket(os.Geteuid())
	for _, c := range []struct{ named, runtime, want string }{
		{"run/agent.sock", "/run/x", filepath.Join(dir, "run/agent.sock")}, {"@agent", "", filepath.Join(dir, "@agent")},
		{"", "/run/x", "/run/x/sessionctl/agent.sock"}, {"", "run/x", own}, {"", "", own},
	} {
		t.Setenv("XDG_RUNTIME_DIR", c.runtime)
		if got, err := socketPlace(c.named); err != nil || got != c.want {
			t.Errorf("%+v: %s %v", c, got, err)
		}
	}
	t.Setenv("XDG_CONFIG_HOME", "")
	for _, home := range []string{"", "home/build"} {
		t.Setenv("HOME", home)
		if got, err := place("", "XDG_CONFIG_HOME", ".config", "f"); api.CodeOf(err) != api.ConfigInvalid || api.AsError(err).Remedy == "" {
			t.Errorf("HOME=%q: %q %v", home, got, err)
		}
	}
}

// TestServePaths: the flags' paths are made absolute before use, as the
// messages show.
func TestServePaths(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	if err := os.WriteFile("empty.toml", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := serve("empty.toml", "", "", true, false, 0, &out, &out); err != nil || !strings.Contains(out.String(), "read "+filepath.Join(dir, "empty.toml")) {
		t.Errorf("%v\n%s", err, &out)
	}
	long := strings.Repeat("x", 108)
	err := serve("empty.toml", long, "store.db", false, false, 0, &out, &out)
	if api.CodeOf(err) != api.SocketFailed || !strings.Contains(err.Error(), filepath.Join(dir, long)) {
		t.Errorf("%v", err)
	}
}

// TestCheckReadable: however many warnings krb5.conf gives cause for, --check has
// its result on its last line, and not far down.
func TestCheckReadable(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	t.Setenv("KRB5_CONFIG", filepath.Join(dir, "krb5.conf"))
	for name, text := range map[string]string{
		"agent.toml": "[credential.build]\nprincipal = \"build@CORP.EXAMPLE\"\nrc4 = true\n",
		"krb5.conf":  strings.Repeat("a\n", 1<<19),
	} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var out bytes.Buffer
	if err := serve("agent.toml", "", "", true, false, 0, &out, &out); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
	last := len(lines) - 1
	if last > 110 || out.Len() > 64<<10 || lines[last] != "ok: 0 sites" || !strings.HasPrefix(lines[1], "warning: credential build: rc4") ||
		lines[last-1] != fmt.Sprintf("warning: krb5.conf: and %d more warnings", 1<<19-100) {
		t.Errorf("%d bytes, %d lines, from %q to %q", out.Len(), len(lines), lines[:2], lines[last-1:])
	}
}

// TestNotes: the check and the log name a proxy that no file names, and not the
// user of its URL.
func TestNotes(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	t.Setenv("https_proxy", "http://user:CANARY-password@proxy.corp.example:3128")
	t.Setenv("no_proxy", "")
	text := "[credential.person]\nusername = \"person\"\n[site.app]\nurl = \"https://app.corp.example\"\nkind = \"jira\"\ncredential = \"person\"\n"
	if err := os.WriteFile("agent.toml", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	const note = "site app: proxy http://proxy.corp.example:3128 from the environment"
	var out bytes.Buffer
	if err := serve("agent.toml", "", "", true, false, 0, &out, &out); err != nil || !strings.Contains(out.String(), "\nnote: "+note+"\n") {
		t.Errorf("%v\n%s", err, &out)
	}
	if err := serve("agent.toml", strings.Repeat("x", 108), "store.db", false, false, 0, &out, &out); api.CodeOf(err) != api.SocketFailed || !strings.Contains(out.String(), `level=INFO msg="`+note) {
		t.Errorf("%v\n%s", err, &out)
	}
	if strings.Contains(out.String(), "CANARY") {
		t.Errorf("a secret shows:\n%s", &out)
	}
}

// TestHangup: SIGHUP makes the agent read its configuration again; one that is
// wrong changes nothing.
func TestHangup(t *testing.T) {
	dir, err := os.MkdirTemp("", "hup") // short: a socket's path has at most 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	t.Chdir(dir)
	// The agent says when it is ready as systemd wants to hear it (sd_notify(3)).
	at := filepath.Join(dir, "notify")
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: at, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	t.Setenv("NOTIFY_SOCKET", at)
	var log bytes.Buffer // of the agent, to be read after its end
	ended := make(chan error, 1)
	told := func(want string) {
		t.Helper()
		b := make([]byte, 4096)
		n, err := manager.Read(b)
		if err != nil {
			t.Fatalf("waiting for %s: %v", want, err)
		}
		if got, _, _ := strings.Cut(string(b[:n]), "\n"); got != want {
			t.Fatalf("told %q, want %s", b[:n], want)
		}
	}
	signal := func(s unix.Signal) {
		t.Helper()
		if err := unix.Kill(os.Getpid(), s); err != nil {
			t.Fatal(err)
		}
	}
	configure := func(text string) {
		t.Helper()
		if err := os.WriteFile("agent.toml", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}

	const site = "[credential.person]\nusername = \"person\"\n[site.app]\nurl = \"https://app.corp.example\"\nkind = \"jira\"\ncredential = \"person\"\nproxy = \"none\"\n"
	configure("")
	socket := filepath.Join(dir, "run", "agent.sock")
	go func() {
		err := serve("agent.toml", socket, "state/store.db", false, false, slog.LevelInfo, io.Discard, &log)
		ended <- err
		// After all that it has said: nobody waits for what it does not say any more.
		if last, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: at, Net: "unixgram"}); err == nil {
			last.Write([]byte("its end"))
			last.Close()
		}
	}()
	told("READY=1")
	c := &client.Client{Socket: socket}
	defer c.Close()
	configured := func(sites int32, failure api.Code) {
		t.Helper()
		agent, err := c.Agent()
		if err != nil {
			t.Fatal(err)
		}
		st, err := agent.GetStatus(t.Context(), &pb.GetStatusRequest{})
		if err != nil || st.GetSites() != sites || st.GetReloadCode() != string(failure) {
			t.Errorf("%d sites, %q, %v; want %d, %q", st.GetSites(), st.GetReloadCode(), err, sites, failure)
		}
	}
	configured(0, "")
	for _, step := range []struct {
		text    string
		sites   int32
		failure api.Code
	}{{site, 1, ""}, {"[site.app\n", 1, api.ConfigInvalid}, {"", 0, ""}} {
		configure(step.text)
		signal(unix.SIGHUP)
		told("RELOADING=1")
		told("READY=1")
		configured(step.sites, step.failure)
	}
	signal(unix.SIGTERM)
	told("STOPPING=1")
	if err := <-ended; err != nil {
		t.Errorf("it ended with %v", err)
	}
	if !strings.Contains(log.String(), filepath.Join(dir, "agent.toml")+":1: ") {
		t.Errorf("the log does not say what was wrong:\n%s", &log)
	}
}

// TestLogged: no text makes a line of the log long.
func TestLogged(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{ReplaceAttr: logged}))
	long := strings.Repeat("x", 4<<20)
	log.Warn(long, "detail", long, "error", errors.New(long), slog.Group("g", "detail", long), "short", "y")
	if n := out.Len(); n > 5*16<<10 || strings.Count(out.String(), "x…") != 4 || !strings.HasSuffix(out.String(), " short=y\n") {
		t.Errorf("a line of %d bytes", n)
	}
}

func TestUsage(t *testing.T) {
	for _, args := range [][]string{{"--no-such-flag"}, {"extra"}, {"--log-level", "loud"}, {"--socket"}} {
		var out, err bytes.Buffer
		if status := run(args, &out, &err); status != api.ExitUsage || out.Len() > 0 || !strings.Contains(err.String(), "next: sessiond --help") {
			t.Errorf("%q: status %d, %s%s", args, status, &out, &err)
		}
	}
}
