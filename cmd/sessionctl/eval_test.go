package main

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
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
	`=CANARY-`,
	`CANARY-:~`,
	`CANARY-a:~root:~/b`,
	`\CANARY-\`,
	`'CANARY-'`,
	`"CANARY-"`,
	"`CANARY-`",
	`$CANARY-`,
	`CANARY-$((1+1))$[1+1]`,
	`CANARY-[!a-z]*[[:alpha:]]`,
	`CANARY-@(a|b)+(c)!(d)`,
	`CANARY-**/*(.)`,
	`CANARY-';touch pwned;'`,
	`CANARY-";touch pwned;"`,
	`CANARY-)&&touch pwned;(`,
	"CANARY-`touch pwned`}; touch pwned; {",
	`CANARY-‘single’‚‛ “double”„`,
	`CANARY-` + strings.Repeat("0123456789abcdef", 500),
	`CANARY-export V00_COOKIE=x PATH=. IFS=x`,
}

// hostileFiles are what a pattern could match in the directory.
var hostileFiles = []string{
	"CANARY-", "CANARY-x", "a", "b", "c d", "-n", "=", "~", "`touch pwned`", "$(touch pwned)", "'", ";touch pwned;",
	"V05_COOKIE=`sessionctl", "v05;`&&{", "V05_COOKIE;}", "{ export x;}", "`", "~root", "=ls",
	"V05_COOKIE=CANARY-';touch pwned;'", "V05_COOKIE='CANARY-';touch pwned;''&&export", "export", "sessionctl", "raw", "COOKIE=`touch pwned`&&export", "unset",
}

// family is how a kind of shell is written.
type family struct {
	ways []string // how the code is evaluated, %s being the site and its flags
	set  string   // sets the variable %s to %s and exports it
	keep string   // keeps the status of the way in the environment, as st
	dump string   // writes the environment to the file $OUT/%s
	// throws: a command that fails ends the script, before its output could
	// unset anything.
	throws bool
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
	elvishFamily = family{
		ways: []string{"set st = 0; try { eval (sessionctl cookie %s | slurp) } catch { set st = 1 }"},
		set:  "set-env %s %s", keep: "set-env st $st", dump: `/usr/bin/env -0 >$E:OUT/%s`, throws: true,
	}
	nuFamily = family{
		ways: []string{`try { sessionctl cookie %s | from json | load-env; $env.st = "0" } catch { $env.st = "1" }`},
		set:  `$env.%s = "%s"`, dump: `^/usr/bin/env -0 o> $"($env.OUT)/%s"`, throws: true,
	}
	fishFamily = family{
		ways: []string{`eval (sessionctl cookie %s)`, `eval "$(sessionctl cookie %s)"`, `sessionctl cookie %s | source`},
		set:  "set -gx %s %s", keep: "set -gx st $status", dump: `/usr/bin/env -0 >"$OUT"/%s`,
	}
)

// nuProgram is where .ci/install-rigs puts npm's nu.
const nuProgram = "/var/cache/sessionctl-rigs/node_modules/@nushell/linux-x64/bin/nu"

var shells = []struct {
	name    string
	command []string
	family  family
	options []string // lines to begin the script with, one variant each
}{
	{"dash", []string{"dash"}, posixFamily, []string{"set -f", "set -u"}},
	{"bash", []string{"bash"}, posixFamily, []string{"set -f", "set -u", "set -o pipefail", "shopt -s nullglob", "shopt -s failglob", "shopt -s extglob dotglob globstar", "set -o posix", "set -k"}},
	{"zsh", []string{"zsh", "-f"}, posixFamily, []string{"set -f", "set -u", "setopt null_glob", "setopt extended_glob", "setopt sh_word_split", "setopt magic_equal_subst", "setopt ignore_braces", "setopt glob_assign", "emulate sh", "emulate ksh"}},
	{"ksh93", []string{"ksh93"}, posixFamily, []string{"set -f", "set -u", "set -o globstar", "set -o pipefail"}},
	{"mksh", []string{"mksh"}, posixFamily, []string{"set -f", "set -u", "set -o posix", "set -k"}},
	{"busybox", []string{"busybox", "sh"}, posixFamily, []string{"set -f", "set -u", "set -o pipefail"}},
	{"yash", []string{"yash"}, posixFamily, []string{"set -f", "set -u", "set -o nullglob", "set -o extendedglob", "set -o brace-expand", "set -o posixly-correct"}},
	{"tcsh", []string{"tcsh", "-f"}, cshFamily, []string{"set noglob", "set nonomatch", "set backslash_quote"}},
	{"fish", []string{"fish", "--no-config"}, fishFamily, []string{"set -g IFS ''", "set -g IFS a"}},
	{"elvish", []string{"elvish", "-norc"}, elvishFamily, nil},
	{"nu", []string{nuProgram, "-n", "--no-std-lib"}, nuFamily, nil},
}

// oddIFS are settings under which the code may fail, but never in silence.
var oddIFS = []string{
	"", "\n", "\t", ":", ",;", "=", "_", "&", "'", `"`, " \"'", "-", "/-.|", `\`, "$(", "$`", "aeo", "0123456789", " \t", ",\t", " \t\n*?[]", ":/",
	";", "|", ";|&", "`", "()", "{", "}", "{};",
}

type evaluation struct {
	t     *testing.T
	argv  []string
	dir   string // where the shell runs
	out   string // where it leaves what it saw
	env   []string
	files []string
	// prints: the shell names in its messages what it takes for a file's name.
	prints bool
}

func newEvaluation(t *testing.T, argv []string, socket string) *evaluation {
	t.Helper()
	if argv[0] == nuProgram {
		daemontest.Require(t, filepath.Dir(filepath.Dir(nuProgram))+"/package.json")
	} else {
		daemontest.Require(t, argv[0])
	}
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
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	err := cmd.Run()
	if exit, ok := err.(*exec.ExitError); err != nil && (!ok || !exit.Exited()) {
		e.t.Fatal(err)
	}
	if !e.prints && strings.Contains(output.String(), "CANARY-") {
		e.t.Errorf("a value was printed: %q by %q", output.String(), script)
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

// values are the cookies of the matrix: hostile ones, every printable byte of
// ASCII at the start, doubled, between and at the end, and in UTF-8 every byte
// from 0x80 that it knows.
func values() []string {
	all := slices.Clone(hostileValues)
	for c := ' '; c < 0x7f; c++ {
		all = append(all, fmt.Sprintf("%[1]cCANARY-%[1]c%[1]c x%[1]cy %[1]c", c))
	}
	for r := rune(0x80); r < 0x100; r += 8 {
		all = append(all, fmt.Sprintf("%cCANARY-%c%c%c%c%c%c%c", r, r+1, r+2, r+3, r+4, r+5, r+6, r+7))
	}
	// The first bytes 0xc4 to 0xf4.
	for r := rune(0x100); r < 0x800; r += 0x40 {
		all = append(all, fmt.Sprintf("CANARY-%c", r))
	}
	for r := rune(0x800); r < 0x10000; r += 0x1000 {
		all = append(all, fmt.Sprintf("CANARY-%c", r))
	}
	for r := rune(0x10000); r < 0x110000; r += 0x40000 {
		all = append(all, fmt.Sprintf("CANARY-%c", r))
	}
	return all
}

// refused are cookies with each byte that raw never prints.
func refused() (all []string) {
	for c := byte(1); c != 0; c++ {
		if c < ' ' || c >= 0x7f {
			all = append(all, "CANARY-"+string([]byte{c})+"x")
		}
	}
	return all
}

// setting is a way to evaluate the code, and in what shape the shell is then.
type setting struct {
	way, prologue, ifs string
	locale             string // C.UTF-8 by default
	loud               bool   // whether the shell may fail instead
}

func (s setting) String() string {
	return fmt.Sprintf("%s after %q, IFS %q, locale %q", s.way, s.prologue, s.ifs, s.locale)
}

// evaluate returns what the shell held for each site.
func (e *evaluation) evaluate(f family, s setting, names []string) map[string]map[string]string {
	e.t.Helper()
	held := map[string]map[string]string{}
	for len(names) > 0 {
		lines := []string{s.prologue}
		if strings.HasPrefix(f.keep, "set-env") {
			lines = append(lines, "var st = 0")
		}
		for _, name := range names {
			variable, _, _ := strings.Cut(name, " ")
			lines = append(lines, fmt.Sprintf(f.set, api.CookieVariable(variable), "CANARY-OLD"), fmt.Sprintf(s.way, name), f.keep, fmt.Sprintf(f.dump, variable))
		}
		status := e.run(strings.Join(lines, "\n")+"\n", "NEWIFS="+s.ifs, "LC_ALL="+cmp.Or(s.locale, "C.UTF-8"))
		n := 0
		for ; n < len(names); n++ {
			variable, _, _ := strings.Cut(names[n], " ")
			got := e.environment(variable)
			if got == nil {
				// The script ended here: the others have one of their own.
				held[names[n]] = map[string]string{"st": fmt.Sprint(status)}
				n++
				break
			}
			held[names[n]] = got
		}
		names = names[n:]
	}
	return held
}

// settings are all shapes of a shell.
func settings(f family, options []string) (all []setting) {
	for _, way := range f.ways {
		all = append(all, setting{way: way})
	}
	for _, way := range f.ways {
		for _, option := range options {
			all = append(all, setting{way: way, prologue: option})
		}
	}
	if f.keep == posixFamily.keep {
		for _, way := range f.ways {
			all = append(all, setting{way: way, prologue: "unset IFS"})
			for _, ifs := range oddIFS {
				all = append(all, setting{way: way, prologue: "IFS=$NEWIFS", ifs: ifs, loud: !strings.Contains(way, `"`)})
			}
		}
		all = append(all, setting{way: `eval "$(sessionctl cookie %s --inline)"`}, setting{way: `sessionctl cookie %s --inline >"$OUT/code"; . "$OUT/code"`})
	}
	return all
}

// torture asks for all of the matrix, an hour's work, instead of a sample.
var torture = os.Getenv("SHELL_TORTURE") != ""

// What a shell holds after eval $(sessionctl cookie SITE) is the cookie, byte
// for byte, or the shell knows that it failed; under an IFS that is not odd,
// it is the cookie. Of the settings but the plain ones, make test takes some.
func TestEval(t *testing.T) {
	sites := map[string]site{}
	for i, v := range values() {
		name := fmt.Sprintf("v%02d", i)
		sites[name] = live(name, v)
	}
	for i, v := range refused() {
		name := fmt.Sprintf("r%02d", i)
		sites[name] = live(name, v)
	}
	socket := serve(t, sites)
	names := slices.Sorted(maps.Keys(sites))
	seed := rand.Uint64()
	t.Logf("seed %d, SHELL_TORTURE: %v", seed, torture)

	for _, shell := range shells {
		t.Run(shell.name, func(t *testing.T) {
			t.Parallel()
			e := newEvaluation(t, shell.command, socket)
			random := rand.New(rand.NewPCG(seed, 0))
			// A few of those that raw refuses, and n of those that it does not.
			some := func(n int) (picked []string) {
				first := len(refused())
				for _, k := range random.Perm(len(names) - first)[:n] {
					picked = append(picked, names[first+k])
				}
				return append(picked, names[random.IntN(first)])
			}
			exact, loud := 0, 0
			all := settings(shell.family, shell.options)
			if shell.name != "yash" { // see TestResidues
				all = append(all, setting{way: shell.family.ways[0], locale: "C"})
			}
			for _, s := range all {
				asked := names
				switch plainly := s.prologue == "" && s.way == shell.family.ways[0]; {
				case torture && s.ifs != "":
					asked = names[len(refused()):]
				case torture:
				case plainly:
					asked = some(60)
				case random.IntN(2) == 0:
					continue
				default:
					asked = some(3)
				}
				for name, got := range e.evaluate(shell.family, s, asked) {
					value := string(sites[name].session.Headers[0].Value)
					failed := got["st"] != "0" && got["st"] != ""
					switch {
					case failed && (s.loud || name[0] == 'r'):
						loud++
					case name[0] == 'v' && got["st"] == "0" && got[api.CookieVariable(name)] == value:
						exact++
					default:
						t.Errorf("%v: %q with status %q, want %q", s, got[api.CookieVariable(name)], got["st"], value)
					}
				}
			}
			t.Logf("%d exact, %d loud", exact, loud)
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
					if shell.name == "elvish" {
						set += "\nvar st = 0"
					}
					e.run(strings.Join([]string{set, code, shell.family.keep, fmt.Sprintf(shell.family.dump, "out")}, "\n")+"\n", failure.env)
					got := e.environment("out")
					if got == nil || got["st"] == "0" || got["st"] == "" || variable != "" && got[variable] != "" && !shell.family.throws {
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
