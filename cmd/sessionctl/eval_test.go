package main

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/daemontest"
)

// hostileValues are cookies that a careless shell would change or run.
var hostileValues = []string{
	`CANARY-plain`,
	`JSESSIONID=CANARY-1; atl.token=CANARY-2|x`,
	`CANARY-it's`,
	`CANARY-"quoted"; b="c d"`,
	`CANARY-'"'"'`,
	`CANARY-*`,
	`*CANARY-`,
	`CANARY-?[a-z]*`,
	`CANARY-two  blanks   three`,
	` CANARY-blank before and after `,
	`CANARY-$(touch pwned)`,
	"CANARY-`touch pwned`",
	`CANARY-;touch pwned;`,
	`CANARY-&touch pwned&`,
	`CANARY-|touch pwned`,
	`CANARY->pwned`,
	`CANARY-$HOME${HOME}$$`,
	`~CANARY-`,
	`CANARY-a=~root/b`,
	`CANARY-=~`,
	`CANARY-!!!ls!$`,
	`CANARY-{a,b}{1..3}`,
	`CANARY-\n\\\'\"\`,
	`CANARY-%s%n%41`,
	`CANARY-#comment`,
	`CANARY-é€😀`,
	`CANARY-(x)<(y)^z`,
	`touch pwned CANARY-`,
	`-CANARY-`,
}

// hostileFiles are what a pattern could match in the directory.
var hostileFiles = []string{
	"CANARY-", "CANARY-x", "a", "b", "c d", "-n", "=", "~", "`touch pwned`", "$(touch pwned)", "'", ";touch pwned;",
	"V05_COOKIE=CANARY-';touch pwned;'", "V05_COOKIE='CANARY-';touch pwned;'", "export", "sessionctl", "raw", "COOKIE=`touch pwned`&&export", "unset",
}

// family is how a kind of shell is written.
type family struct {
	ways []string // how the code is evaluated, %s being the site and its flags
	set  string   // sets the variable %s to %s and exports it
	keep string   // keeps the status of the way in the environment, as st
	dump string   // writes the environment to the file $OUT/%s
}

var (
	posixFamily = family{
		ways: []string{`eval $(sessionctl cookie %s)`, `eval "$(sessionctl cookie %s)"`, "eval `sessionctl cookie %s`"},
		set:  "%s=%s;export %[1]s", keep: "st=$?;export st", dump: `/usr/bin/env -0 >"$OUT"/%s`,
	}
	cshFamily = family{
		ways: []string{"eval `sessionctl cookie %s`", "eval \"`sessionctl cookie %s`\""},
		set:  "setenv %s %s", keep: "setenv st $status", dump: `/usr/bin/env -0 >"$OUT"/%s`,
	}
	fishFamily = family{
		ways: []string{`eval (sessionctl cookie %s)`, `eval "$(sessionctl cookie %s)"`, `sessionctl cookie %s | source`},
		set:  "set -gx %s %s", keep: "set -gx st $status", dump: `/usr/bin/env -0 >"$OUT"/%s`,
	}
)

var shells = []struct {
	name    string
	command []string
	family  family
	options []string // lines to begin the script with, one variant each
}{
	{"dash", []string{"dash"}, posixFamily, []string{"set -f", "set -u"}},
	{"bash", []string{"bash"}, posixFamily, []string{"set -f", "set -u", "shopt -s nullglob", "shopt -s failglob", "shopt -s extglob dotglob", "set -o posix", "set -k"}},
	{"zsh", []string{"zsh", "-f"}, posixFamily, []string{"set -f", "setopt null_glob", "setopt sh_word_split", "setopt magic_equal_subst"}},
	{"ksh93", []string{"ksh93"}, posixFamily, []string{"set -f", "set -o globstar"}},
	{"mksh", []string{"mksh"}, posixFamily, []string{"set -f"}},
	{"busybox", []string{"busybox", "sh"}, posixFamily, []string{"set -f"}},
	{"yash", []string{"yash"}, posixFamily, []string{"set -f", "set -o nullglob", "set -o posixly-correct"}},
	{"tcsh", []string{"tcsh", "-f"}, cshFamily, []string{"set noglob"}},
	{"fish", []string{"fish", "--no-config"}, fishFamily, nil},
}

// oddIFS are settings under which the code may fail, but never in silence. One
// that holds a backtick is not among them: it takes the inner call out of its
// substitution, so that the variable stays as it was and the cookie goes to
// standard output. No text that is split at backticks could prevent that.
var oddIFS = []string{"", "\n", ":", "=", "_", "&", "'", ` "'`, "/-.", "$(", "aeo", "0123456789", " \t\n*?[]", ";|"}

type evaluation struct {
	t     *testing.T
	argv  []string
	dir   string // where the shell runs
	out   string // where it leaves what it saw
	env   []string
	files []string
}

func newEvaluation(t *testing.T, argv []string, socket string) *evaluation {
	t.Helper()
	daemontest.Require(t, argv[0])
	file, err := exec.LookPath(argv[0])
	if err != nil {
		t.Fatal(err)
	}
	e := &evaluation{t: t, argv: append([]string{file}, argv[1:]...), dir: t.TempDir(), out: t.TempDir()}
	for _, name := range hostileFiles {
		if err := os.WriteFile(filepath.Join(e.dir, name), nil, 0o600); err != nil && name != "$(touch pwned)" {
			t.Fatal(err)
		}
	}
	e.files = e.list()
	e.env = []string{"PATH=" + bin + ":/usr/bin:/bin", "HOME=" + e.out, "SHELL=/nonexistent", "LC_ALL=C.UTF-8", "OUT=" + e.out, "SESSIONCTL_SOCKET=" + socket}
	return e
}

func (e *evaluation) list() (names []string) {
	entries, err := os.ReadDir(e.dir)
	if err != nil {
		e.t.Fatal(err)
	}
	for _, f := range entries {
		names = append(names, f.Name())
	}
	return names
}

// run runs a script and returns the shell's exit status. Nothing that a value
// or a file is named may have run.
func (e *evaluation) run(script string, env ...string) int {
	e.t.Helper()
	file := filepath.Join(e.out, "script")
	if err := os.WriteFile(file, []byte(script), 0o600); err != nil {
		e.t.Fatal(err)
	}
	cmd := exec.CommandContext(e.t.Context(), e.argv[0], append(e.argv[1:], file)...)
	cmd.Dir, cmd.Env = e.dir, append(slices.Clone(e.env), env...)
	var stdout bytes.Buffer
	cmd.Stdout = &stdout
	err := cmd.Run()
	if exit, ok := err.(*exec.ExitError); err != nil && (!ok || !exit.Exited()) {
		e.t.Fatal(err)
	}
	if strings.Contains(stdout.String(), "CANARY-") {
		e.t.Errorf("a value was printed: %q", stdout.String())
	}
	if got := e.list(); !slices.Equal(got, e.files) {
		e.t.Errorf("a value was run: %q", got)
		e.files = got
	}
	return cmd.ProcessState.ExitCode()
}

// environment reads back what the script left, nil if it did not come so far.
func (e *evaluation) environment(name string) map[string]string {
	b, err := os.ReadFile(filepath.Join(e.out, name))
	if err != nil {
		return nil
	}
	os.Remove(filepath.Join(e.out, name))
	m := map[string]string{}
	for v := range strings.SplitSeq(string(b), "\x00") {
		if key, value, ok := strings.Cut(v, "="); ok {
			m[key] = value
		}
	}
	return m
}

// What a shell holds after eval $(sessionctl cookie SITE) is the cookie, byte
// for byte, or the shell knows that it failed.
func TestEval(t *testing.T) {
	sites := map[string]site{}
	for i, v := range hostileValues {
		name := fmt.Sprintf("v%02d", i)
		sites[name] = live(name, v)
	}
	socket := serve(t, sites)
	names := slices.Sorted(maps.Keys(sites))

	for _, shell := range shells {
		t.Run(shell.name, func(t *testing.T) {
			t.Parallel()
			e := newEvaluation(t, shell.command, socket)
			evaluate := func(way, prologue string, names []string, loud bool, env ...string) {
				t.Helper()
				lines := []string{prologue}
				for _, name := range names {
					variable := api.CookieVariable(name)
					lines = append(lines, fmt.Sprintf(shell.family.set, variable, "CANARY-OLD"), fmt.Sprintf(way, name),
						shell.family.keep, fmt.Sprintf(shell.family.dump, name))
				}
				e.run(strings.Join(lines, "\n")+"\n", env...)
				for _, name := range names {
					got := e.environment(name)
					want := string(sites[name].session.Headers[0].Value)
					switch {
					case loud && got != nil && got["st"] != "0" && got["st"] != "":
					case got == nil || got["st"] != "0" || got[api.CookieVariable(name)] != want:
						t.Errorf("%s after %q, %q: %q with status %q, want %q", way, prologue, env, got[api.CookieVariable(name)], got["st"], want)
					}
				}
			}
			for _, way := range shell.family.ways {
				evaluate(way, "", names, false)
			}
			for _, option := range shell.options {
				evaluate(shell.family.ways[0], option, names, false)
			}
			if shell.family.keep != posixFamily.keep {
				return
			}
			evaluate(posixFamily.ways[0], "unset IFS", names, false)
			for _, ifs := range oddIFS {
				if shell.name == "zsh" && ifs == "&" {
					continue // zsh: the assignment becomes one for export alone
				}
				evaluate(posixFamily.ways[0], "IFS=$NEWIFS", names[:12], true, "NEWIFS="+ifs)
				evaluate(posixFamily.ways[1], "IFS=$NEWIFS", names[:4], false, "NEWIFS="+ifs)
			}
		})
	}
}

// A failure is one for the shell, too, whatever fails: the old cookie is gone,
// the status is not 0, set -e ends the script.
func TestEvalFails(t *testing.T) {
	socket := serve(t, map[string]site{
		"latched": {code: api.Latched, detail: "refused"},
		"empty":   live("empty", ""),
	})
	for _, shell := range shells {
		t.Run(shell.name, func(t *testing.T) {
			t.Parallel()
			e := newEvaluation(t, shell.command, socket)
			for _, failure := range []struct{ args, variable, env string }{
				{"latched", "", ""},
				{"empty", "", ""},
				{"nosuch", "", ""},
				{"latched --nope", "", ""},
				{"latched --inline", "", ""},
				{"latched two", "", "X=1"},
				{"latched --var Mine", "Mine", ""},
				{"latched", "", "SESSIONCTL_SOCKET=/nonexistent/agent.sock"},
			} {
				variable := cmp.Or(failure.variable, api.CookieVariable(strings.Fields(failure.args)[0]))
				if failure.env == "X=1" {
					variable = "" // two operands: which one was meant is not known
				}
				for _, way := range shell.family.ways {
					code := fmt.Sprintf(way, failure.args)
					set := fmt.Sprintf(shell.family.set, cmp.Or(variable, "OTHER"), "CANARY-OLD")
					e.run(strings.Join([]string{set, code, shell.family.keep, fmt.Sprintf(shell.family.dump, "out")}, "\n")+"\n", failure.env)
					got := e.environment("out")
					if got == nil || got["st"] == "0" || got["st"] == "" || variable != "" && got[variable] != "" {
						t.Errorf("%s, %q: %s=%q, status %q", code, failure.env, variable, got[variable], got["st"])
					}
					if shell.family.keep != posixFamily.keep {
						continue
					}
					status := e.run(strings.Join([]string{"set -e", set, code, fmt.Sprintf(shell.family.dump, "out")}, "\n")+"\n", failure.env)
					if e.environment("out") != nil || status == 0 {
						t.Errorf("set -e; %s, %q: went on, status %d", code, failure.env, status)
					}
				}
			}
		})
	}
}
