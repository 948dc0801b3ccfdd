package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

// toolRun is how a tool gets the session of site app and asks for its page, which
// names the user.
type toolRun struct {
	name  string
	needs []string
	argv  []string
}

// toolRuns are the shells with the lines of docs/shells.md, the readers of cookie files
// with those of docs/files.md, and what else needs no more than a command line.
func toolRuns(t *testing.T, w *jarWorld) []toolRun {
	t.Helper()
	here := strings.NewReplacer("cookie jira", "cookie app", "JIRA_", "APP_", siteURL+"/rest/api/2/myself", jarSite+"page")
	line := func(language string) string { return here.Replace(blocks(t, "docs/shells.md", language)[0].text) }
	posix := line("sh")
	// Each as a script; tcsh -c goes on behind an exit.
	script := func(name, code string, argv ...string) toolRun {
		file := write(t, filepath.Join(w.hand, strings.ReplaceAll(name, " ", "")+".script"), code)
		needs := []string{"curl"}
		if argv[0] == "nu" {
			needs, argv[0] = append(needs, nodeModules+"/@nushell/linux-x64/package.json"), nodeModules+"/@nushell/linux-x64/bin/nu"
		} else if argv[0] != "sh" {
			needs = append(needs, argv[0])
		}
		return toolRun{name, needs, append(argv, file)}
	}
	// mksh has no printf of its own, as the page says.
	mksh := strings.Replace(posix, `printf 'Cookie: %s\n' "$APP_COOKIE"`, `print -r -- "Cookie: $APP_COOKIE"`, 1)
	runs := []toolRun{
		script("dash", posix, "dash"), script("bash", posix, "bash"), script("zsh", posix, "zsh", "-f"), script("ksh93", posix, "ksh93"),
		script("mksh", mksh, "mksh"), script("busybox", posix, "busybox", "sh"), script("yash", posix, "yash"),
		script("tcsh", line("csh"), "tcsh", "-f"), script("fish", line("fish"), "fish"), script("elvish", line("elvish"), "elvish", "-norc"),
		script("nu", line("nu"), "nu", "-n"),
		script("exec", `sessionctl exec app -- sh -c 'printf "Cookie: %s\n" "$APP_COOKIE" | curl -sS -H @- `+jarSite+`page'`, "sh"),
		script("header", `h=$(sessionctl header app) && printf '%s\n' "$h" | curl -sS -H @- `+jarSite+`page`, "sh"),
		script("get -o curl", `c=$(sessionctl get app -o curl) && printf '%s\n' "$c" | curl -sS -K - `+jarSite+`page`, "sh"),
		script("get -o env", `eval "$(sessionctl get app -o env)" || exit; printf 'Cookie: %s\n' "$APP_COOKIE" | curl -sS -H @- `+jarSite+`page`, "sh"),
	}
	for _, r := range jarReaders {
		file, take := filepath.Join(w.hand, "jar.txt"), `sessionctl jar app "$0" && exec "$@"`
		if r.name == "HTTPie" {
			file, take = filepath.Join(w.hand, "session.json"), `s=$(sessionctl get app -o httpie) && printf %s "$s" >"$0" && exec "$@"`
		}
		argv := []string{"sh", "-c", take, file}
		for _, arg := range r.argv {
			if arg == "PYTHON" {
				arg = write(t, filepath.Join(w.hand, "read_jar.py"), sectionBlock(t, filesPage, "Python", "python"))
			}
			argv = append(argv, strings.NewReplacer("FILE", file, "URL", jarSite+"page").Replace(arg))
		}
		runs = append(runs, toolRun{r.name, r.needs, argv})
	}
	return runs
}

// TestStates: what becomes of each tool with no agent, a cold, a warm and an expired
// session, and one that is refused: the user's page, or a failure that is said, and
// never the page that nobody gets without a word.
func TestStates(t *testing.T) {
	for i, r := range toolRuns(t, newJarWorld(t)) {
		t.Run(r.name, func(t *testing.T) {
			rig.Require(t, r.needs...)
			w := newJarWorld(t)
			r := toolRuns(t, w)[i]
			call := func() result {
				return w.run(t, "", "env", append([]string{"http_proxy=" + w.proxy.URL, "HOME=" + w.dir, "LANG=C.UTF-8"}, r.argv...)...)
			}
			logged := 0
			logins := func(when string, want int) {
				t.Helper()
				b, err := os.ReadFile(filepath.Join(w.hand, "logins"))
				must(t, err)
				if n := len(b) - logged; n != want {
					t.Errorf("%s: %d logins, want %d", when, n, want)
				}
				logged = len(b)
			}
			good := func(when string) {
				t.Helper()
				if got := call(); got.status != 0 || strings.TrimSpace(got.stdout) != "anna" || got.stderr != "" {
					t.Errorf("%s: %v", when, got)
				}
			}
			bad := func(when, code string) {
				t.Helper()
				asked := w.asked.Load()
				if got := call(); got.status == 0 || got.stdout != "" || !strings.Contains(got.stderr, "("+code+")") || strings.Contains(got.stderr, "CANARY") {
					t.Errorf("%s: %v", when, got)
				}
				if w.asked.Load() != asked {
					t.Errorf("%s: it asked for the page all the same", when)
				}
			}
			bad("no agent", "no_agent")
			w.start(t)
			good("cold")
			logins("cold", 1)
			good("warm")
			logins("warm", 0)
			// The first to ask gets the site's own answer, and reports it.
			w.become(t, "CANARY-2")
			if got := call(); strings.TrimSpace(got.stdout) != "nobody" {
				t.Errorf("expired: %v", got)
			}
			w.ok(t, "reject", "app")
			good("expired and reported")
			logins("expired", 1)
			write(t, filepath.Join(w.hand, "refuse"), "")
			w.become(t, "CANARY-3")
			w.fails(t, 5, "bad_credentials", "reject", "app")
			bad("refused", "latched")
			bad("refused", "latched")
			logins("refused", 1)
		})
	}
}
