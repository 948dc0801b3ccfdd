package shim

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
	"unicode/utf8"

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
		{"elvish", "", elvish, true},
		{"", "pwsh", powershell, true},
		{"", "/usr/local/bin/nu", nu, true},
		{"nonsense", "", fish, false},
	} {
		t.Setenv("SESSIONCTL_SHELL", c.env)
		d, err := detectShell(c.flag)
		if d != c.want || (err == nil) != c.ok {
			t.Errorf("--shell %q, SESSIONCTL_SHELL=%q: %v", c.flag, c.env, err)
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
	if got != "JIRA_COOKIE=`sessionctl raw jira;`&&{ export JIRA_COOKIE;}" {
		t.Errorf("%s", got)
	}
	for i, c := range got {
		if !plain(string(c)) && !strings.ContainsRune("=`&;{} ", c) {
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

// psQuoted reads a string in single quotes as PowerShell does: each of five
// characters begins, ends, and twice in a row is kept once, the second.
// (CharTraits.IsSingleQuote and Tokenizer.ScanStringLiteral of
// PowerShell/PowerShell; no PowerShell was run.)
func psQuoted(s string) (value, rest string, ok bool) {
	const quotes = "'\u2018\u2019\u201a\u201b"
	isQuote := func(r rune) bool { return strings.ContainsRune(quotes, r) }
	runes := []rune(s)
	if len(runes) == 0 || !isQuote(runes[0]) {
		return "", "", false
	}
	var b strings.Builder
	for i := 1; i < len(runes); i++ {
		if isQuote(runes[i]) {
			if i+1 == len(runes) || !isQuote(runes[i+1]) {
				return b.String(), string(runes[i+1:]), true
			}
			i++
		}
		b.WriteRune(runes[i])
	}
	return "", "", false
}

func FuzzPowerShell(f *testing.F) {
	for _, s := range []string{"CANARY-plain", "it's", "‘a’ ‚b‛ ''", "’'‘", "`$x $(y) \"z\" “„”", "'; throw; '"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if !utf8.ValidString(s) || hasControl(s) {
			return // raw refuses it
		}
		code, ok := strings.CutPrefix(powershell.value("X", s), "$env:X = ")
		got, rest, closed := psQuoted(code)
		if !ok || !closed || rest != "" || got != s {
			t.Errorf("%q is read as %q, then %q", code, got, rest)
		}
	})
}

func FuzzNu(f *testing.F) {
	f.Add(`CANARY-"a\b" \u0041 / é😀`)
	f.Fuzz(func(t *testing.T, s string) {
		if !utf8.ValidString(s) || hasControl(s) {
			return // raw refuses it
		}
		var got map[string]string
		text := nu.value("X", s)
		if err := json.Unmarshal([]byte(text), &got); err != nil || len(got) != 1 || got["X"] != s {
			t.Errorf("%q: %q, %v", s, got, err)
		}
		// Nothing in there means anything to a shell that evaluates it by mistake.
		if inner := strings.TrimSuffix(strings.TrimPrefix(text, `{"X":"`), `"}`); strings.Trim(inner, `\0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz`) != "" {
			t.Errorf("%q becomes %s", s, text)
		}
	})
}

// Each word of the names that lead to a shell is known by one dialect only.
func TestShellsAreDistinct(t *testing.T) {
	seen := map[string]bool{}
	for _, d := range dialects {
		for _, name := range d.shells {
			if seen[name] || dialectOf(name) != d || shellName("/usr/bin/"+name) != name {
				t.Errorf("%s", name)
			}
			seen[name] = true
		}
	}
}
