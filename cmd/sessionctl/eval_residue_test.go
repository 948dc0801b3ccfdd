package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/daemontest"
)

// The directory of these tests is hostile in earnest: there the value itself,
// quoted as other tools quote it, is code when eval has no quotes.
func TestHostileDirectory(t *testing.T) {
	socket := serve(t, map[string]site{"v05": live("v05", "CANARY-*")})
	for _, shell := range []string{"dash", "bash", "ksh93", "mksh", "busybox", "yash"} {
		t.Run(shell, func(t *testing.T) {
			argv := []string{shell}
			if shell == "busybox" {
				argv = append(argv, "sh")
			}
			e := newEvaluation(t, argv, socket)
			cmd := exec.CommandContext(t.Context(), e.argv[0], append(e.argv[1:], "-c", `eval $(sessionctl cookie v05 --inline)`)...)
			cmd.Dir, cmd.Env = e.dir, e.env
			out, err := cmd.CombinedOutput()
			if _, missing := os.Stat(filepath.Join(e.dir, "pwned")); missing != nil {
				t.Errorf("no file's name was run: %q, %v", out, err)
			}
		})
	}
}

// TestForeignDialects: what one shell is meant to get runs nothing in another that
// evaluates it by mistake, with quotes and without.
func TestForeignDialects(t *testing.T) {
	dir := t.TempDir()
	const ran = "CANARY-ran"
	socket := serve(t, map[string]site{"jira": live("jira", "JSESSIONID=CANARY-$(touch "+ran+")`touch "+ran+"`;a=\"'")})
	for _, shell := range shells {
		for _, meant := range []string{"sh", "csh", "fish", "elvish", "nu", "pwsh"} {
			for _, code := range []string{"eval $(sessionctl cookie jira --shell " + meant + ")", `eval "$(sessionctl cookie jira --shell ` + meant + `)"`, "eval `sessionctl cookie jira --shell " + meant + "`", "eval (sessionctl cookie jira --shell " + meant + ")"} {
				cmd := exec.CommandContext(t.Context(), shell.command[0], append(slices.Clone(shell.command[1:]), "-c", code)...)
				cmd.Dir = dir
				cmd.Env = []string{"PATH=" + bin + ":/usr/bin:/bin", "HOME=" + dir, "SESSIONCTL_SOCKET=" + socket, "LC_ALL=C.UTF-8"}
				_ = cmd.Run() // that it fails is right, mostly
				if _, err := os.Stat(filepath.Join(dir, ran)); err == nil {
					t.Fatalf("%s runs what is meant for %s: %s", shell.name, meant, code)
				}
			}
		}
	}
}

// What no text can prevent, as docs/shells.md has it. Where one of these is
// mended, the page can say less.
func TestResidues(t *testing.T) {
	sites := map[string]site{"jira": live("jira", "CANARY-1"), "latin": live("latin", "CANARY-\xe9")}
	var names []string
	for i, v := range hostileValues {
		names = append(names, fmt.Sprintf("v%02d", i))
		sites[names[i]] = live(names[i], v)
	}
	socket := serve(t, sites)
	unquoted := posixFamily.ways[0]

	// zsh with GLOB_SUBST expands tildes in an assignment, with GLOB_ASSIGN on
	// top patterns, too, and names what it does not find. What begins with "~"
	// or "=" is no Cookie header; ":~" and patterns may stand in one.
	t.Run("zsh GLOB_SUBST", func(t *testing.T) {
		e := newEvaluation(t, []string{"zsh", "-f"}, socket)
		e.prints = true
		tilde := func(v string) bool {
			return strings.HasPrefix(v, "~") || strings.HasPrefix(v, "=") || strings.Contains(v, ":~")
		}
		for prologue, residue := range map[string]func(string) bool{
			"setopt glob_subst": tilde,
			"emulate csh":       func(v string) bool { return tilde(v) || strings.ContainsAny(v, "*?[|(<^~#") },
		} {
			changed := 0
			for name, got := range e.evaluate(posixFamily, setting{way: unquoted, prologue: prologue}, names) {
				value := string(sites[name].session.Headers[0].Value)
				if held := got[api.CookieVariable(name)]; got["st"] != "0" || held != value {
					if !residue(value) {
						t.Errorf("%s: %q with status %q, want %q", prologue, held, got["st"], value)
					}
					if got["st"] == "0" {
						changed++
					}
				}
			}
			if changed == 0 {
				t.Errorf("%s: nothing was changed", prologue)
			}
		}
	})

	// yash cannot hold a byte that is no character, and does not say so. raw
	// does not print such a value.
	t.Run("yash", func(t *testing.T) {
		e := newEvaluation(t, []string{"yash"}, socket)
		cmd := exec.CommandContext(t.Context(), e.argv[0], "-c", "X=`printf 'CANARY-\\351'`&&printf %s \"$X\"")
		cmd.Env = e.env
		if out, err := cmd.Output(); err != nil || string(out) == "CANARY-\xe9" {
			t.Errorf("yash holds %q, %v", out, err)
		}
		for _, way := range posixFamily.ways {
			if got := e.evaluate(posixFamily, setting{way: way}, []string{"latin"})["latin"]; got["st"] == "0" || got["LATIN_COOKIE"] != "" {
				t.Errorf("%s: %q with status %q", way, got["LATIN_COOKIE"], got["st"])
			}
		}
	})

	// In the C locale those are all but ASCII: it cuts the value there.
	t.Run("yash in the C locale", func(t *testing.T) {
		e := newEvaluation(t, []string{"yash"}, socket)
		for name, got := range e.evaluate(posixFamily, setting{way: unquoted, locale: "C"}, names) {
			value := string(sites[name].session.Headers[0].Value)
			want := value
			if i := strings.IndexFunc(value, func(r rune) bool { return r > unicode.MaxASCII }); i >= 0 {
				want = value[:i]
			}
			if held := got[api.CookieVariable(name)]; got["st"] != "0" || held != want {
				t.Errorf("%q with status %q, want %q", held, got["st"], want)
			}
		}
	})

	// An IFS that holds the first letter of the variable's name makes it
	// another variable.
	t.Run("IFS of letters", func(t *testing.T) {
		e := newEvaluation(t, []string{"dash"}, socket)
		got := e.evaluate(posixFamily, setting{way: unquoted, prologue: "IFS=$NEWIFS", ifs: "J"}, []string{"jira"})["jira"]
		if got["st"] != "0" || got["JIRA_COOKIE"] != "CANARY-OLD" || got["IRA_COOKIE"] != "CANARY-1" {
			t.Errorf("%q, %q with status %q", got["JIRA_COOKIE"], got["IRA_COOKIE"], got["st"])
		}
	})

	// In zsh a brace needs no semicolon before it.
	t.Run("zsh IFS of backtick and semicolon", func(t *testing.T) {
		daemontest.Require(t, "zsh")
		cmd := exec.CommandContext(t.Context(), "zsh", "-f", "-c", "IFS='`;'; eval $(sessionctl cookie jira)")
		cmd.Env = []string{"PATH=" + bin + ":/usr/bin:/bin", "SESSIONCTL_SOCKET=" + socket}
		if out, err := cmd.Output(); string(out) != "CANARY-1\n" || err != nil {
			t.Errorf("%q, %v", out, err)
		}
	})
}
