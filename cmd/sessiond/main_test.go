package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sessionctl/sessionctl/api"
)

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
	if err := serve("empty.toml", "", "", true, 0, &out, &out); err != nil || !strings.Contains(out.String(), "read "+filepath.Join(dir, "empty.toml")) {
		t.Errorf("%v\n%s", err, &out)
	}
	long := strings.Repeat("x", 108)
	err := serve("empty.toml", long, "store.db", false, 0, &out, &out)
	if api.CodeOf(err) != api.SocketFailed || !strings.Contains(err.Error(), filepath.Join(dir, long)) {
		t.Errorf("%v", err)
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
