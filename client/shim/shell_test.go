package shim

import (
	"os"
	"strings"
	"testing"

	"github.com/sessionctl/sessionctl/api"
)

func TestShellName(t *testing.T) {
	for path, want := range map[string]string{
		"/usr/bin/bash": "bash", "/usr/bin/bash (deleted)": "bash", "/bin/ksh93": "ksh", "/usr/bin/zsh-5.9": "zsh", "-bash": "bash",
		"/bin/busybox": "busybox", "/usr/bin/mksh-static": "mksh", "/bin/bsd-csh": "bsd-csh", "fish": "fish", "/usr/bin/python3.11": "python", "": "",
	} {
		if got := shellName(path); got != want {
			t.Errorf("%q: %q, want %q", path, got, want)
		}
	}
}

func TestProcessName(t *testing.T) {
	if _, parent := processName(os.Getpid()); parent != os.Getppid() {
		t.Errorf("parent %d, not %d", parent, os.Getppid())
	}
	if name, parent := processName(1 << 30); name != "" || parent != 0 {
		t.Errorf("no such process: %q, %d", name, parent)
	}
	for stat, want := range map[string]struct {
		name   string
		parent int
	}{
		"7 (sh) S 3 7 7 0": {"sh", 3}, "7 (a) b) (c) S 12 7": {"a) b) (c", 12}, "": {}, ")(": {}, "7 (x": {}, "7 (x)": {"x", 0}, "7 (x) S y": {"x", 0},
	} {
		if name, parent := parseStat(stat); name != want.name || parent != want.parent {
			t.Errorf("%q: %q, %d", stat, name, parent)
		}
	}
}

func FuzzStat(f *testing.F) {
	f.Add("7 (sh) S 3 7 7 0")
	f.Add("7 (a) b) (c) S 12 7")
	f.Fuzz(func(t *testing.T, name string) {
		if got, parent := parseStat("7 (" + name + ") S 12 7 7"); got != name || parent != 12 {
			t.Errorf("%q: %q, %d", name, got, parent)
		}
		parseStat(name)
	})
}

func TestDetectShell(t *testing.T) {
	t.Setenv("SHELL", "/usr/bin/fish")
	for _, c := range []struct {
		flag, env string
		want      *dialect
		ok        bool
	}{
		{"tcsh", "fish", csh, true},
		{"", "/usr/local/bin/fish", fish, true},
		{"bash", "nonsense", posix, true},
		{"elvish", "", nil, false},
		{"", "pwsh", nil, false},
	} {
		t.Setenv("SESSIONCTL_SHELL", c.env)
		d, err := detectShell(c.flag)
		if d != c.want || (err == nil) != c.ok {
			t.Errorf("--shell %q, SESSIONCTL_SHELL=%q: %v", c.flag, c.env, err)
		}
		if err != nil && !strings.Contains(api.AsError(err).Remedy, "sessionctl raw") {
			t.Errorf("%v does not name raw", err)
		}
	}
	t.Setenv("SESSIONCTL_SHELL", "")
	if d, err := detectShell("nonsense"); d == nil || api.CodeOf(err) != api.InvalidRequest {
		t.Errorf("an unknown shell: %v", err)
	}
}

// The text that an unquoted eval gets may hold nothing that a shell would
// change before it evaluates it.
func TestSetIsConstant(t *testing.T) {
	got := posix.set("JIRA_COOKIE", "sessionctl raw jira")
	if got != "JIRA_COOKIE=`sessionctl raw jira`&&export JIRA_COOKIE" {
		t.Errorf("%s", got)
	}
	for i, c := range got {
		if !plain(string(c)) && !strings.ContainsRune("=`& ", c) {
			t.Errorf("byte %d is %q", i, c)
		}
	}
}

func TestPlain(t *testing.T) {
	for word, want := range map[string]bool{
		"sessionctl": true, "/opt/a-b_c.d/x9": true, "": false, "a b": false, "~/x": false, "a*": false, "é": false, "a\n": false, "a=b": false, "$x": false, "a,b": false,
	} {
		if plain(word) != want {
			t.Errorf("%q: %v", word, !want)
		}
	}
}
