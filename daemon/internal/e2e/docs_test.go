package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

// The pages are tried out as they stand. How a fenced block is tried is said by
// its language: toml is a configuration of the agent, ini a krb5.conf, systemd a
// unit; sh is commands for a shell; js, python, groovy and go are programs; console
// and text are not run, nor is powershell, which Debian does not have, so that its page
// says so. If the line before a block begins with a file's name, `name.sh`, the block
// is that file.
const (
	repository = "../../.."
	siteURL    = "https://jira.corp.example/jira" // on the pages
	keytabFile = "/home/build/build.keytab"
	cacheName  = "FILE:/tmp/krb5cc_1000"
	loginFile  = "/usr/local/lib/portal_login.py"
)

var pages = slices.Concat([]string{"README.md", "docs/jira.md", atlassianPage, crowdPage, iwaacPage, jazzPage, formsPage, "docs/kerberos.md", "docs/clients.md", "docs/cookies.md",
	sessionsPage, storePage}, toolPages)

// toolPages are those whose commands TestShellsPage, TestCurlPage, TestFilesDoc, TestGitPage
// and the like run, each with its tool.
var toolPages = []string{"docs/shells.md", curlPage, filesPage, gitPage, goPage, bazelPage, systemdPage, nodePage, pythonPage, toolsPage}

// block is a fenced block of a page.
type block struct{ page, language, file, text string }

func readPage(t *testing.T, page string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(repository, page))
	must(t, err)
	return string(b)
}

// blocks returns the blocks of a page that are in a language; "": all.
func blocks(t *testing.T, page, language string) []block {
	t.Helper()
	var found []block
	var b *block
	name, last := regexp.MustCompile("^`([a-z_]+\\.[a-z0-9]+)`"), ""
	for line := range strings.Lines(readPage(t, page)) {
		fence, fenced := strings.CutPrefix(line, "```")
		switch {
		case fenced && b == nil:
			b = &block{page: page, language: strings.TrimSpace(fence)}
			if m := name.FindStringSubmatch(last); m != nil {
				b.file = m[1]
			}
		case fenced:
			if language == "" || b.language == language {
				found = append(found, *b)
			}
			b = nil
		case b != nil:
			b.text += line
		}
		if strings.TrimSpace(line) != "" {
			last = line
		}
	}
	if b != nil {
		t.Errorf("%s: a block does not end", page)
	}
	return found
}

// section returns what stands under a heading of a page.
func section(t *testing.T, page, title string) string {
	t.Helper()
	_, text, ok := strings.Cut(readPage(t, page), "\n## "+title+"\n")
	if !ok {
		t.Fatalf("%s: there is no section %s", page, title)
	}
	text, _, _ = strings.Cut(text, "\n## ")
	return text
}

// sectionBlocks returns the texts of a section's blocks in a language.
func sectionBlocks(t *testing.T, page, title, language string) (texts []string) {
	t.Helper()
	for _, m := range regexp.MustCompile("(?s)\n```"+language+"\n(.*?\n)```\n").FindAllStringSubmatch(section(t, page, title), -1) {
		texts = append(texts, m[1])
	}
	return texts
}

// sectionBlock returns the text of a section's only block in a language.
func sectionBlock(t *testing.T, page, title, language string) string {
	t.Helper()
	found := sectionBlocks(t, page, title, language)
	if len(found) != 1 {
		t.Fatalf("%s, %s: %d blocks in %s", page, title, len(found), language)
	}
	return found[0]
}

// program returns the block that is a file.
func program(t *testing.T, file string) block {
	t.Helper()
	for _, page := range pages {
		for _, b := range blocks(t, page, "") {
			if b.file == file {
				return b
			}
		}
	}
	t.Fatalf("no page has %s", file)
	return block{}
}

// tried are the blocks that TestExamples, TestIWAACExamples, TestWatchExample,
// TestTestingExamples, TestTicketExamples, TestJazzScripts, TestCommandExample, TestNodeService,
// TestPythonService, TestJarReaders and TestLoadCredential run.
var tried = []string{"ticket.service", "issues.sh", "search.mjs", "issue.py", "report.py", "issue.go", "watch.go", "fake_test.go", "lab_test.go",
	"get.py", "get.groovy", "fetch.groovy", "create.sh", "workitems.py", "portal_login.py", "sessionctl.mjs", "myself.mjs", "sessionctl.proto", "sessionctl_auth.py", "myself.py", "read_jar.py",
	"report.service", "report.sh", "watch.service", "watch.sh"}

// TestBlocks: no block goes untried, unless its language says so.
func TestBlocks(t *testing.T) {
	var files []string
	for _, page := range pages {
		for _, b := range blocks(t, page, "") {
			switch b.language {
			case "toml", "ini", "sh", "console", "text", "":
			case "csh", "fish", "elvish", "nu": // TestShellsPage of cmd/sessionctl runs them
			case "js", "python", "groovy", "go", "systemd":
				if b.file == "" {
					t.Errorf("%s: a program or unit without a name:\n%s", page, b.text)
				}
			case "powershell":
				name := "This"
				if b.file != "" {
					name = "`" + b.file + "`"
				}
				if !strings.Contains(oneLine(readPage(t, page)), name+" is for PowerShell 7. No test runs it") {
					t.Errorf("%s: nobody says that this is not tried:\n%s", page, b.text)
				}
				continue
			default:
				t.Errorf("%s: a block in %q, of which nobody knows how to try it", page, b.language)
			}
			if b.file != "" {
				files = append(files, b.file)
			}
		}
	}
	slices.Sort(files)
	if !slices.Equal(files, slices.Sorted(slices.Values(tried))) {
		t.Errorf("the pages have %s; tried are %s", files, tried)
	}
}

// reader is somebody who does what the pages say, with a Jira in this process
// behind a front that counts and can get in the way.
type reader struct {
	*jiraWorld
	*home
	front    string                           // its URL
	keytab   string                           // of svc-build
	spy      string                           // a directory, first in PATH
	requests atomic.Int32                     // to the REST API, that the agent does not make
	drop     atomic.Int32                     // before so many more of them all sessions end
	refuse   atomic.Bool                      // all of them get 401
	instead  atomic.Pointer[http.HandlerFunc] // answers in Jira's place; nil: Jira does

	mu       sync.Mutex
	windows  map[string]bool // paths asked for by a "Windows NT"
	ordinary map[string]bool // and by others
}

func newReader(t *testing.T) *reader {
	r := &reader{jiraWorld: newJira(t), spy: t.TempDir(), windows: map[string]bool{}, ordinary: map[string]bool{}}
	r.kdc.AddPrincipal("svc-build", "CANARY-svc-build")
	r.AddUser("svc-build", "")
	r.keytab = write(t, filepath.Join(t.TempDir(), "svc-build.keytab"), string(r.kdc.Keytab("svc-build")))
	r.front = frontOf(t, r.jiraWorld, func(w http.ResponseWriter, req *http.Request, next http.Handler) {
		r.mu.Lock()
		seen := r.ordinary
		if strings.Contains(req.UserAgent(), "Windows NT") {
			seen = r.windows
		}
		seen[req.URL.Path] = true
		r.mu.Unlock()
		if answer := r.instead.Load(); answer != nil {
			(*answer)(w, req)
			return
		}
		if strings.HasPrefix(req.URL.Path, "/jira/rest/api/") {
			r.requests.Add(1)
			if r.drop.Add(-1) == 0 {
				r.DropSessions()
			}
			if r.refuse.Load() {
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
		}
		next.ServeHTTP(w, req)
	})
	r.home = newHome(t, r.world)
	return r
}

// here is a text of the pages for the reader's own place.
func (r *reader) here(text string) string {
	return strings.NewReplacer(siteURL, r.front+"/jira", keytabFile, r.keytab).Replace(text)
}

// configure writes the configuration of a page; n says which of them, from 0.
func (r *reader) configure(t *testing.T, page string, n int) {
	t.Helper()
	text := blocks(t, page, "toml")[n].text
	write(t, r.config, regexp.MustCompile(`(?m)^url .*$`).ReplaceAllString(r.here(text), "$0\ninsecure_http = true"))
}

func (r *reader) logins() int {
	c := r.Counts()
	return c.KerberosLogins + c.Logins
}

// command is one that the reader calls in a directory.
func (r *reader) command(t *testing.T, dir string, argv ...string) *exec.Cmd {
	cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
	cmd.Dir = dir
	cmd.Env = []string{
		"SESSIONCTL_SOCKET=" + r.socket, "PATH=" + r.spy + ":" + bin + ":" + os.Getenv("PATH"), "KRB5_CONFIG=" + r.krb5Conf,
		// Where localhost is ::1 first, Node.js 18 tries nothing else.
		"NODE_OPTIONS=--dns-result-order=ipv4first",
	}
	return cmd
}

// spyOn puts a program in front of one that writes down how it was called.
func (r *reader) spyOn(t *testing.T, program string) {
	t.Helper()
	path, err := exec.LookPath(program)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(r.spy, program), fmt.Appendf(nil, `#!/bin/sh
printf '%%s\n' "$0" "$@" >>'%[1]s/arguments'
env >>'%[1]s/environment'
exec '%[2]s' "$@"
`, r.spy, path), 0o700))
}

// spied returns what was written down: "arguments" or "environment".
func (r *reader) spied(t *testing.T, what string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(r.spy, what))
	must(t, err)
	return string(b)
}

// ticketCache returns the name of a ticket cache of alice, which an agent writes.
func (w *world) ticketCache(t *testing.T) string {
	t.Helper()
	w.kdc.AddPrincipal("alice", "CANARY-alice")
	keytab := write(t, filepath.Join(t.TempDir(), "alice.keytab"), string(w.kdc.Keytab("alice")))
	h := newHome(t, w, credential("alice", "alice", keytab), fmt.Sprintf("export = [\"uid:%d\"]", os.Getuid()))
	a := h.start(t)
	name := "FILE:" + filepath.Join(t.TempDir(), "cc")
	h.ok(t, "ccache", "alice", name)
	a.stop(t)
	return name
}

// TestConfigurations: check-config has nothing to say against any example, nor
// against any krb5.conf.
func TestConfigurations(t *testing.T) {
	r := newReader(t)
	seen := 0
	cache := r.ticketCache(t)
	program := portalLogin(t)
	for _, page := range pages {
		for _, b := range blocks(t, page, "toml") {
			seen++
			file := write(t, filepath.Join(t.TempDir(), "sessiond.toml"), strings.NewReplacer(keytabFile, r.keytab, cacheName, cache, loginFile, program).Replace(b.text))
			want := fmt.Sprintf("ok: %d sites", len(regexp.MustCompile(`(?m)^\[site\.`).FindAllString(b.text, -1)))
			if out := r.ok(t, "check-config", file); !strings.Contains(out, want) {
				t.Errorf("%s:\n%s\n%s", page, b.text, out)
			}
		}
	}
	if seen < 3 {
		t.Errorf("only %d configurations found", seen)
	}
	r.configure(t, "docs/jira.md", 0)
	conf := slices.Concat(blocks(t, "docs/jira.md", "ini"), blocks(t, "docs/kerberos.md", "ini"))
	if len(conf) != 2 {
		t.Fatalf("%d krb5.conf found", len(conf))
	}
	for _, b := range conf {
		r.krb5Conf = write(t, filepath.Join(t.TempDir(), "krb5.conf"), b.text)
		if out := r.ok(t, "check-config", r.config); strings.Contains(out, "krb5.conf:") {
			t.Errorf("%s: %s", b.page, out)
		}
	}
	write(t, r.krb5Conf, "[libdefaults]\n dns_lookup_kdc = false\n"+strings.ReplaceAll(conf[0].text, "kdc =", "no ="))
	if got := r.sessionctl(t, "check-config", r.config); got.status != 5 || !strings.Contains(got.stderr, "(krb5conf_invalid)") {
		t.Errorf("without a KDC: %v", got)
	}
}

// TestShellExamples runs the commands that a page has for a shell, but for those
// with Kerberos' own programs (TestTicketExamples) and those for Jazz
// (TestJazzScripts).
func TestShellExamples(t *testing.T) {
	want := map[string][]string{
		"docs/jira.md":    {`"name":"svc-build"`, `"key":"LAB-2"`, `(?s)"key":"LAB-[0-9]+".*"filename":"build.log"`},
		"docs/clients.md": {`"key":"LAB-2"`},
	}
	for _, shell := range []string{"dash", "bash"} {
		t.Run(shell, func(t *testing.T) {
			rig.Require(t, shell, "curl")
			r := newReader(t)
			r.spyOn(t, "curl")
			r.configure(t, "docs/jira.md", 0)
			a := r.start(t)
			for _, page := range pages {
				if page == "docs/kerberos.md" || page == jazzPage || slices.Contains(toolPages, page) {
					continue
				}
				i := 0
				for _, b := range blocks(t, page, "sh") {
					if b.file != "" {
						continue
					}
					if i == len(want[page]) {
						t.Fatalf("%s: nobody knows what is to come of:\n%s", page, b.text)
					}
					got := finish(t, r.command(t, t.TempDir(), shell, "-c", r.here(b.text)), "")
					if got.status != 0 || got.stderr != "" || !regexp.MustCompile(want[page][i]).MatchString(got.stdout) {
						t.Errorf("%s: %v\n%s", page, got, b.text)
					}
					i++
				}
				if i != len(want[page]) {
					t.Errorf("%s: %d examples", page, i)
				}
			}
			if n := r.logins(); n != 1 {
				t.Errorf("%d logins", n)
			}
			if args := r.spied(t, "arguments"); strings.Contains(args, "CANARY") || !strings.Contains(args, "\n@-\n") {
				t.Errorf("curl was called with\n%s", args)
			}
			// Where it logs in, and only there, the agent calls itself so.
			r.mu.Lock()
			defer r.mu.Unlock()
			if got := slices.Sorted(maps.Keys(r.windows)); !slices.Equal(got, []string{"/jira/login.jsp", "/jira/secure/Dashboard.jspa"}) || r.ordinary["/jira/secure/Dashboard.jspa"] {
				t.Errorf("a Windows NT asked for %s", got)
			}
			a.stop(t)
			noSecrets(t, a)
		})
	}
}

// TestExamples runs the programs: they do their job, survive that Jira drops all
// sessions in the middle of it, by one login, do not go on as nobody, and take
// the second refusal for an answer.
func TestExamples(t *testing.T) {
	const summaries = "LAB-1 An issue that everybody may read\nLAB-2 An issue for users\nLAB-3 Another issue for users\n"
	const issue = `\{.*"key":"LAB-2".*\}` + "\n"
	keys := []string{"LAB-1", "LAB-2", "LAB-3"}
	one := func(command ...string) func(*testing.T, *reader) []string {
		return func(_ *testing.T, r *reader) []string {
			return append(command, "jira", r.here(siteURL+"/rest/api/2/issue/LAB-2"))
		}
	}
	issues := func(shell string) func(*testing.T, *reader) []string {
		return func(*testing.T, *reader) []string { return []string{shell, "issues.sh"} }
	}
	for _, c := range []struct {
		name, file string
		needs      []string
		argv       func(*testing.T, *reader) []string
		stdin      string
		drop       int32  // before this request
		want       string // a regular expression
	}{
		{name: "dash", file: "issues.sh", needs: []string{"dash", "curl"}, argv: issues("dash"), stdin: strings.Join(keys, "\n") + "\n", drop: 2, want: "LAB-1 200\nLAB-2 200\nLAB-3 200\n"},
		{name: "bash", file: "issues.sh", needs: []string{"bash", "curl"}, argv: issues("bash"), stdin: strings.Join(keys, "\n") + "\n", drop: 2, want: "LAB-1 200\nLAB-2 200\nLAB-3 200\n"},
		{name: "Node.js", file: "search.mjs", needs: []string{"node"}, drop: 1, want: summaries,
			argv: func(*testing.T, *reader) []string {
				return []string{"node", "search.mjs", "type = Bug and status = Closed"}
			}},
		{name: "Python", file: "issue.py", needs: []string{"python3"}, drop: 2, want: summaries,
			argv: func(*testing.T, *reader) []string { return append([]string{"python3", "issue.py"}, keys...) }},
		{name: "python-jira", file: "report.py", needs: []string{"jirashell"}, drop: 3, want: summaries,
			argv: func(t *testing.T, _ *reader) []string {
				return []string{interpreter(t, "jirashell"), "report.py", "project = LAB"}
			}},
		{name: "python-jira, dropped before it begins", file: "report.py", needs: []string{"jirashell"}, drop: 1, want: summaries,
			argv: func(t *testing.T, _ *reader) []string {
				return []string{interpreter(t, "jirashell"), "report.py", "project = LAB"}
			}},
		{name: "Go", file: "issue.go", drop: 2, want: summaries,
			argv: func(*testing.T, *reader) []string { return append([]string{"./issue"}, keys...) }},
		{name: "PycURL", file: "get.py", needs: []string{"py_curl"}, drop: 1, want: issue, argv: one("/usr/bin/python3", "get.py")},
		{name: "Groovy", file: "get.groovy", needs: []string{"groovy", "/usr/lib/jvm/default-java"}, drop: 1, want: issue, argv: one("groovy", "get.groovy")},
		{name: "HttpClient", file: "fetch.groovy", needs: []string{"groovy", "/usr/lib/jvm/default-java"}, drop: 1, want: issue, argv: one("groovy", "fetch.groovy")},
	} {
		t.Run(c.name, func(t *testing.T) {
			rig.Require(t, c.needs...)
			r := newReader(t)
			r.configure(t, "docs/jira.md", 0)
			a := r.start(t)
			dir := t.TempDir()
			r.save(t, dir, c.file)
			if slices.Contains(c.needs, "curl") {
				r.spyOn(t, "curl")
			}
			run := func() result {
				t.Helper()
				got := finish(t, r.command(t, dir, c.argv(t, r)...), c.stdin)
				if strings.Contains(got.stdout+got.stderr, "CANARY") {
					t.Errorf("a secret shows: %v", got)
				}
				return got
			}
			for _, step := range []struct {
				name   string
				drop   int32
				logins int
			}{{"cold", 0, 1}, {"again", 0, 0}, {"dropped", c.drop, 1}} {
				before := r.logins()
				r.drop.Store(step.drop)
				if got := run(); got.status != 0 || !regexp.MustCompile("^(?:"+c.want+")$").MatchString(got.stdout) {
					t.Errorf("%s: %v", step.name, got)
				}
				if n := r.logins() - before; n != step.logins {
					t.Errorf("%s: %d logins", step.name, n)
				}
				if step.drop > 0 && r.drop.Load() >= 0 {
					t.Errorf("%s: the sessions were not dropped", step.name)
				}
			}

			before := r.requests.Load()
			r.refuse.Store(true)
			if got := run(); got.status == 0 {
				t.Errorf("refused: %v", got)
			}
			r.refuse.Store(false)
			if n := r.requests.Load() - before; n < 1 || n > 2 {
				t.Errorf("refused: %d requests", n)
			}

			a.stop(t)
			noSecrets(t, a)
			before = r.requests.Load()
			if got := run(); got.status == 0 {
				t.Errorf("without an agent: %v", got)
			}
			if n := r.requests.Load() - before; n != 0 {
				t.Errorf("without an agent: %d requests", n)
			}
			if n := r.logins(); n != 2 {
				t.Errorf("%d logins in all", n)
			}
			if slices.Contains(c.needs, "curl") {
				for _, what := range []string{"arguments", "environment"} {
					if strings.Contains(r.spied(t, what), "CANARY") {
						t.Errorf("a secret is in curl's %s", what)
					}
				}
			}
		})
	}
}

// save writes a file of the pages into a directory; one in Go it builds.
func (r *reader) save(t *testing.T, dir, file string) {
	t.Helper()
	path := write(t, filepath.Join(dir, file), r.here(program(t, file).text))
	if filepath.Ext(file) != ".go" {
		return
	}
	goTool(t, []string{path}, "vet")
	goTool(t, []string{path}, "build", "-o", strings.TrimSuffix(path, ".go"))
}

// goTool calls go for the package that the files make. It is one of this module,
// but nowhere except in the overlay.
func goTool(t *testing.T, files []string, command string, flags ...string) (out string) {
	t.Helper()
	root, err := filepath.Abs(repository)
	must(t, err)
	replace := map[string]string{}
	for _, file := range files {
		replace[filepath.Join(root, "docs", filepath.Base(file))] = file
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	must(t, err)
	args := slices.Concat([]string{command, "-overlay", write(t, filepath.Join(t.TempDir(), "overlay.json"), string(overlay))}, flags, []string{"./docs"})
	cmd := exec.CommandContext(t.Context(), "go", args...)
	cmd.Dir = root
	b, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("go %s of %s: %v\n%s", command, files, err, b)
	}
	return string(b)
}

// TestTestingExamples: the tests that docs/clients.md shows pass for its program.
func TestTestingExamples(t *testing.T) {
	dir := t.TempDir()
	var files []string
	for _, file := range []string{"issue.go", "fake_test.go", "lab_test.go"} {
		files = append(files, write(t, filepath.Join(dir, file), program(t, file).text))
	}
	goTool(t, files, "vet")
	out := goTool(t, files, "test", "-v")
	for _, name := range []string{"TestRefused", "TestDropped"} {
		if !strings.Contains(out, "--- PASS: "+name+" ") {
			t.Errorf("%s has not passed:\n%s", name, out)
		}
	}
}

// interpreter returns what runs a script, as its first line says: the one that
// has the script's libraries.
func interpreter(t *testing.T, script string) string {
	t.Helper()
	path, err := exec.LookPath(script)
	must(t, err)
	b, err := os.ReadFile(path)
	must(t, err)
	line, _, _ := strings.Cut(string(b), "\n")
	name, ok := strings.CutPrefix(line, "#!")
	if !ok || !filepath.IsAbs(name) {
		t.Fatalf("%s begins with %q", path, line)
	}
	return name
}

// TestWatchExample: the service is told of the next session.
func TestWatchExample(t *testing.T) {
	r := newReader(t)
	r.configure(t, "docs/jira.md", 0)
	r.start(t)
	dir := t.TempDir()
	r.save(t, dir, "watch.go")
	cmd := r.command(t, dir, "./watch")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	lines := bufio.NewScanner(out)
	for i := range 2 {
		if !lines.Scan() || lines.Text() != "svc-build has a session, with 2 headers for each request" {
			t.Fatalf("%q", lines.Text())
		}
		if i == 0 {
			r.DropSessions()
			r.ok(t, "reject", "jira")
		}
	}
	must(t, cmd.Process.Kill())
	lines.Scan()
	_ = cmd.Wait() // it was killed
	if n := r.logins(); n != 2 {
		t.Errorf("%d logins", n)
	}
}

// TestKeytabExample: the keytab that docs/jira.md makes from a password is good,
// also for an account whose salt is not made of its name.
func TestKeytabExample(t *testing.T) {
	rig.Require(t, "krb5kdc", "kdb5_util", "kadmin.local", "ktutil", "kinit")
	dir := t.TempDir()
	k, err := rig.StartMIT(t.Context(), filepath.Join(dir, "kdc"), realm)
	must(t, err)
	t.Cleanup(k.Stop)
	must(t, k.AddPrincipal(t.Context(), "svc-build", password, "-e aes256-cts-hmac-sha1-96:norealm"))
	keytab := filepath.Join(dir, "build.keytab")
	var typed strings.Builder
	for _, b := range blocks(t, "docs/jira.md", "console") {
		for line := range strings.Lines(b.text) {
			if command, ok := strings.CutPrefix(line, "ktutil:  "); ok {
				typed.WriteString(strings.ReplaceAll(command, keytabFile, keytab))
			} else if strings.HasPrefix(line, "Password for svc-build@") {
				typed.WriteString(password + "\n")
			}
		}
	}
	call := func(stdin string, argv ...string) result {
		cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
		cmd.Env = append([]string{"PATH=" + os.Getenv("PATH")}, k.Env()...)
		return finish(t, cmd, stdin)
	}
	if r := call(typed.String(), "ktutil"); r.status != 0 || r.stderr != "" {
		t.Fatalf("%v", r)
	}
	if r := call("", "kinit", "-kt", keytab, "svc-build@"+realm); r.status != 0 {
		t.Errorf("%v", r)
	}
}

// TestKrb5ConfOptions: the options of [libdefaults] that docs/kerberos.md lists are
// those that count.
func TestKrb5ConfOptions(t *testing.T) {
	source, err := os.ReadFile("../krb/config_options.go")
	must(t, err)
	list := regexp.MustCompile(`(?s)\nvar scalars = \[\]string\{(.*?)\n\}`).FindSubmatch(source)
	row := regexp.MustCompile("(?m)^\\| `\\[libdefaults\\]` \\| (.*) \\|$").FindStringSubmatch(readPage(t, "docs/kerberos.md"))
	if list == nil || row == nil {
		t.Fatal("no options found")
	}
	code := strings.FieldsFunc(string(list[1]), func(r rune) bool { return strings.ContainsRune("\", \n\t", r) })
	page := strings.Fields(strings.ReplaceAll(row[1], "`", ""))
	slices.Sort(code)
	slices.Sort(page)
	if !slices.Equal(code, page) || len(code) < 10 {
		t.Errorf("the page lists %s, there are %s", page, code)
	}
}

// visitor is somebody who does what docs/kerberos.md says, in the real world.
type visitor struct {
	*world
	*home
	keytab string // of svc-build
}

func newVisitor(t *testing.T, w *world) *visitor {
	v := &visitor{world: w, home: newHome(t, w)}
	v.keytab = w.addKeytab(t, "svc-build", true)
	w.addKeytab(t, "svc-report", true)
	return v
}

// here is a text of the page for the visitor's own place.
func (v *visitor) here(text string) string {
	return strings.NewReplacer("https://app.corp.example", v.url, keytabFile, v.keytab, "uid:1000", fmt.Sprintf("uid:%d", os.Getuid())).Replace(text)
}

// configure writes the configuration of the page's section.
func (v *visitor) configure(t *testing.T, section string) {
	t.Helper()
	v.write(t, v.block(t, section, "toml"))
}

// write writes a configuration, of sites without TLS.
func (v *visitor) write(t *testing.T, text string) {
	t.Helper()
	write(t, v.config, regexp.MustCompile(`(?m)^(url +=.*/spnego/")$`).ReplaceAllString(v.here(text), "$1\ninsecure_http = true"))
}

// block returns the text of a section's only block in a language.
func (v *visitor) block(t *testing.T, title, language string) string {
	t.Helper()
	return sectionBlock(t, "docs/kerberos.md", title, language)
}

// says checks that a block of the page shows what sessionctl says.
func (v *visitor) says(t *testing.T, section string, r result) {
	t.Helper()
	if shown := v.block(t, section, "console"); r.status != 0 || r.stderr == "" || !strings.HasSuffix(shown, "\n"+r.stderr) {
		t.Errorf("%v\nthe page has:\n%s", r, shown)
	}
}

// TestCredentialExamples: the three credentials of docs/kerberos.md at one site.
func TestCredentialExamples(t *testing.T) {
	inBothWorlds(t, func(t *testing.T, w *world) {
		v := newVisitor(t, w)
		alice := newHome(t, w, credential("alice", "alice", w.addKeytab(t, "alice", true)), fmt.Sprintf("export = [\"uid:%d\"]", os.Getuid()))
		alice.start(t)
		cache := "FILE:" + filepath.Join(v.dir, "cc")
		alice.ok(t, "ccache", "alice", cache)
		text := strings.ReplaceAll(v.block(t, "Credentials", "toml"), cacheName, cache)
		for name, user := range map[string]string{"build": "svc-build", "alice": "alice", "report": "svc-report"} {
			one := strings.Replace(text, `= "report"`, fmt.Sprintf("= %q", name), 1)
			v.write(t, one)
			a := v.start(t)
			if name == "report" {
				v.fails(t, 5, "no_secret", "raw", "app")
				v.says(t, "Credentials", v.run(t, password+"\n", filepath.Join(bin, "sessionctl"), "login", "app", "--password-stdin"))
			}
			if got, want := whoami(t, w, v.ok(t, "raw", "app")), strings.Replace(me, "build", user, 1); got != want {
				t.Errorf("%s: %s", name, got)
			}
			a.stop(t)
		}
	})
}

// TestSiteExample: the site that needs everything. Its SPN is another than that
// of its URL, it proves itself; and where the KDC does not know the SPN, the password
// is asked for that is there instead.
func TestSiteExample(t *testing.T) {
	rig.Require(t, "krb5kdc", "kdb5_util", "kadmin.local", "apache2", "mod_auth_gssapi", "mod_ssl")
	dir := t.TempDir()
	k, err := rig.StartMIT(t.Context(), filepath.Join(dir, "kdc"), realm)
	must(t, err)
	t.Cleanup(k.Stop)
	const spn = "HTTP/www.corp.example"
	must(t, k.AddService(t.Context(), spn))
	must(t, k.AddPrincipal(t.Context(), "svc-build", password))
	keytab, http := filepath.Join(dir, "build.keytab"), filepath.Join(dir, "http.keytab")
	must(t, k.Keytab(t.Context(), keytab, "svc-build"))
	must(t, k.Keytab(t.Context(), http, spn))
	a, err := rig.StartApache(t.Context(), filepath.Join(dir, "apache"), rig.ApacheOptions{Krb5ConfFile: k.Krb5ConfFile(), KeytabFile: http})
	must(t, err)
	t.Cleanup(a.Stop)
	w := &world{krb5Conf: k.Krb5ConfFile(), keytab: keytab, url: a.URL()}
	v := &visitor{world: w, home: newHome(t, w), keytab: keytab}
	v.configure(t, "What a site may need")
	agent := v.start(t)
	if got := whoami(t, w, v.ok(t, "raw", "app")); got != strings.Replace(me, "build", "svc-build", 1) {
		t.Errorf("%s", got)
	}
	v.ok(t, "logout", "app")
	agent.stop(t)
	must(t, k.Delete(t.Context(), spn))
	must(t, os.RemoveAll(filepath.Dir(v.store))) // with the service ticket
	v.start(t)
	if r := v.fails(t, 5, "no_secret", "raw", "app"); !strings.Contains(r.stderr, "falling back to a password, because the KDC does not know the service "+spn) {
		t.Errorf("%v", r)
	}
}

// TestProxyExample: the password of docs/kerberos.md is brought to the proxy.
func TestProxyExample(t *testing.T) {
	w := inProcess(t)
	v := newVisitor(t, w)
	p, err := rig.StartProxy(rig.ProxyOptions{Users: map[string]string{"anna": "CANARY-anna"}})
	must(t, err)
	t.Cleanup(p.Close)
	v.write(t, strings.ReplaceAll(v.block(t, "Proxies", "toml"), "https://gate.example:3129", p.URL()))
	v.start(t)
	v.fails(t, 5, "proxy_auth_required", "raw", "app")
	v.says(t, "Proxies", v.run(t, "CANARY-anna\n", filepath.Join(bin, "sessionctl"), "login", "app", "--proxy", "--password-stdin"))
	if got := whoami(t, w, v.ok(t, "raw", "app")); got != strings.Replace(me, "build", "svc-build", 1) {
		t.Errorf("%s", got)
	}
	if n := p.Counts().Basics; n < 2 {
		t.Errorf("the proxy has seen the password %d times", n)
	}
}

// TestTicketExamples runs what docs/kerberos.md has for other programs: the
// commands, the line for cron as cron does, and the unit as far as systemd judges
// it.
func TestTicketExamples(t *testing.T) {
	const section = "Tickets for other programs"
	t.Run("commands", func(t *testing.T) {
		rig.Require(t, "kinit", "curl")
		v := newVisitor(t, realServers(t))
		v.configure(t, section)
		v.start(t)
		user := t.TempDir()
		must(t, os.MkdirAll(filepath.Join(user, ".local", "bin"), 0o700))
		must(t, os.Symlink(filepath.Join(bin, "sessionctl"), filepath.Join(user, ".local", "bin", "sessionctl")))
		sh := func(text string) result {
			return v.run(t, "", "env", "HOME="+user, "sh", "-ec", v.here(text))
		}
		if r := sh(v.block(t, section, "sh")); r.status != 0 || !regexp.MustCompile(`(?s)Default principal: svc-build@.*krbtgt/.*\{"user":"svc-build@`).MatchString(r.stdout) {
			t.Errorf("%v", r)
		}
		must(t, os.Remove(filepath.Join(user, ".krb5cc")))
		line := strings.Fields(v.block(t, section, "text"))
		if r := sh(strings.Join(line[5:], " ") + "\nklist -s $HOME/.krb5cc"); r.status != 0 || r.stdout+r.stderr != "" {
			t.Errorf("%v", r)
		}
	})
	t.Run("unit", func(t *testing.T) {
		rig.Require(t, "systemd-analyze")
		dir := t.TempDir()
		unit := program(t, "ticket.service")
		args := []string{"--user", "--no-pager", "verify", write(t, filepath.Join(dir, unit.file), strings.ReplaceAll(unit.text, "%h/.local/bin", bin))}
		for _, name := range unitFiles {
			b, err := os.ReadFile(filepath.Join(unitDir, name))
			must(t, err)
			write(t, filepath.Join(dir, name), strings.ReplaceAll(string(b), "/usr/bin/sessiond", filepath.Join(bin, "sessiond")))
		}
		cmd := exec.CommandContext(t.Context(), "systemd-analyze", args...)
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "XDG_RUNTIME_DIR=" + dir, "LC_ALL=C.UTF-8"}
		if r := finish(t, cmd, ""); r.status != 0 || r.stdout+r.stderr != "" {
			t.Errorf("%v", r)
		}
		command := regexp.MustCompile(`(?m)^ExecStart=%h/\.local/bin/sessionctl (.*)$`).FindStringSubmatch(unit.text)
		if command == nil || !slices.Equal(strings.Fields(command[1]), []string{"ccache", "svc-build", "%t/krb5cc", "--keep"}) {
			t.Errorf("the unit runs %q", command)
		}
	})
}

// TestBrowserExample: what docs/jira.md says of a session from a browser, and of
// its end.
func TestBrowserExample(t *testing.T) {
	r := newReader(t)
	r.configure(t, "docs/jira.md", 1)
	r.start(t)
	r.SetPassword("alice", "CANARY-simple")
	resp, err := http.Post(r.front+"/jira/rest/auth/1/session", "application/json", strings.NewReader(`{"username":"alice","password":"CANARY-simple"}`))
	must(t, err)
	resp.Body.Close()
	http.DefaultClient.CloseIdleConnections()
	var pairs []string
	for _, c := range resp.Cookies() {
		pairs = append(pairs, c.Name+"="+c.Value)
	}
	got := r.run(t, strings.Join(pairs, "; ")+"\n", filepath.Join(bin, "sessionctl"), "login", "jira", "--cookie-stdin")
	if got.status != 0 || got.stderr != "sessionctl: jira: logged in as alice\n" {
		t.Errorf("%v", got)
	}
	r.ok(t, "raw", "jira")
	r.DropSessions()
	r.fails(t, 5, "no_secret", "reject", "jira")
}

// TestOutageExample: what docs/jira.md says of a session that Jira does not prove:
// it is served, with the warning that stands there, and no login is made.
func TestOutageExample(t *testing.T) {
	r := newReader(t)
	r.configure(t, "docs/jira.md", 0)
	r.rewrite(t, "insecure_http = true", "insecure_http = true\nrecheck = \"0s\"")
	r.start(t)
	page := strings.Join(strings.Fields(readPage(t, "docs/jira.md")), " ")
	first := r.ok(t, "raw", "jira")
	front := func(answer http.HandlerFunc) func() { return func() { r.instead.Store(&answer) } }
	status := func(n int) func() { return front(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(n) }) }
	for name, begin := range map[string]func(){
		"429": status(http.StatusTooManyRequests),
		"502": status(http.StatusBadGateway),
		"503": status(http.StatusServiceUnavailable),
		"a page": front(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/html")
			fmt.Fprint(w, "<h1>Back soon</h1>")
		}),
		"a redirect": front(func(w http.ResponseWriter, req *http.Request) { http.Redirect(w, req, "/soon", http.StatusFound) }),
		"403":        status(http.StatusForbidden),
		"404":        status(http.StatusNotFound),
		"no right":   func() { r.SetModes(rig.AtlassianModes{NoPermission: true}) },
	} {
		begin()
		got := r.sessionctl(t, "raw", "jira")
		warning := strings.TrimPrefix(strings.TrimSpace(got.stderr), "sessionctl: jira: ")
		if got.status != 0 || got.stdout != first || !strings.Contains(page, strconv.Quote(warning)) {
			t.Errorf("%s: %v", name, got)
		}
		r.instead.Store(nil)
		r.SetModes(rig.AtlassianModes{})
		r.ok(t, "reject", "jira") // which asks Jira, and ends the back-off
	}
	if n := r.logins(); n != 1 {
		t.Errorf("%d logins", n)
	}
}

// TestCodesTable: the codes that the pages explain are there, each once, with their
// exit statuses, and none that a login at Jira or a look at Kerberos can end with is
// missing.
func TestCodesTable(t *testing.T) {
	source, err := os.ReadFile(filepath.Join(repository, "api", "code.go"))
	must(t, err)
	names := map[string]string{} // of the constant → code
	for _, m := range regexp.MustCompile(`(?m)^\t(\w+) +Code = "([a-z0-9_]+)"`).FindAllStringSubmatch(string(source), -1) {
		names[m[1]] = m[2]
	}
	explained := map[string]bool{}
	var text strings.Builder
	for _, page := range pages {
		text.WriteString(readPage(t, page))
	}
	for _, row := range regexp.MustCompile("(?m)^\\| (`[a-z0-9_]+`(?: · `[a-z0-9_]+`)*) \\| ([0-9]) \\|").FindAllStringSubmatch(text.String(), -1) {
		for code := range strings.SplitSeq(row[1], " · ") {
			code = strings.Trim(code, "`")
			if explained[code] {
				t.Errorf("%s stands there twice", code)
			}
			explained[code] = true
			if !slices.Contains(slices.Collect(maps.Values(names)), code) {
				t.Errorf("there is no code %s", code)
			} else if status := strconv.Itoa(api.Code(code).Exit()); status != row[2] {
				t.Errorf("the exit status of %s is %s", code, status)
			}
		}
	}
	// What is not about a login, but about calls, the store and files of the agent.
	elsewhere := []string{"invalid_request", "config_invalid", "store_damaged", "store_failed", "store_full", "deadline", "not_cached", "unknown_site"}
	var files []string
	for _, pattern := range []string{"login/*.go", "keeper/*.go", "web/*.go", "krb/*.go", "krb/ccache/*.go"} {
		found, err := filepath.Glob(filepath.Join("..", pattern))
		must(t, err)
		files = append(files, found...)
	}
	used := map[string]bool{}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		b, err := os.ReadFile(file)
		must(t, err)
		for _, m := range regexp.MustCompile(`\bapi\.([A-Z]\w*)\b`).FindAllStringSubmatch(string(b), -1) {
			if code := names[m[1]]; code != "" {
				used[code] = true
			}
		}
	}
	for _, code := range slices.Sorted(maps.Keys(used)) {
		if !explained[code] && !slices.Contains(elsewhere, code) {
			t.Errorf("%s is not explained", code)
		}
	}
	if len(explained) < 20 || len(used) < 20 {
		t.Errorf("only %d codes explained and %d used", len(explained), len(used))
	}
}

// TestLinks: links between the pages lead somewhere, and each page can be reached
// from the README.
func TestLinks(t *testing.T) {
	seen := 0
	reached := map[string]bool{"README.md": true}
	for _, page := range pages {
		for _, m := range regexp.MustCompile(`\]\(([^)]+)\)`).FindAllStringSubmatch(readPage(t, page), -1) {
			if strings.HasPrefix(m[1], "https://") {
				continue // other people's
			}
			seen++
			file, anchor, _ := strings.Cut(m[1], "#")
			to := page
			if file != "" {
				to = filepath.Join(filepath.Dir(page), file)
			}
			if page == "README.md" {
				reached[to] = true
			}
			if !slices.Contains(pages, to) {
				t.Errorf("%s: there is no page %s", page, m[1])
			} else if anchor != "" && !slices.Contains(anchors(t, to), anchor) {
				t.Errorf("%s: there is no heading %s", page, m[1])
			}
		}
	}
	if seen < 20 {
		t.Errorf("only %d links found", seen)
	}
	here, err := filepath.Glob(filepath.Join(repository, "docs", "*"))
	must(t, err)
	for _, file := range here {
		if page := "docs/" + filepath.Base(file); !reached[page] {
			t.Errorf("the README does not lead to %s", page)
		}
	}
}

// anchors returns what a page's headings are called in links, as GitHub makes it.
func anchors(t *testing.T, page string) []string {
	t.Helper()
	text := readPage(t, page)
	for _, b := range blocks(t, page, "") {
		text = strings.Replace(text, b.text, "", 1) // a # in there is a comment
	}
	var all []string
	for _, m := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(text, -1) {
		name := regexp.MustCompile(`[^a-z0-9 _-]`).ReplaceAllString(strings.ToLower(m[1]), "")
		all = append(all, strings.ReplaceAll(name, " ", "-"))
	}
	return all
}

// TestCommandsNamed: the verbs and flags that the pages name are there.
func TestCommandsNamed(t *testing.T) {
	h := newHome(t, inProcess(t))
	help := h.ok(t, "help") + h.run(t, "", filepath.Join(bin, "sessionctl-admin"), "help").stdout
	verbs := map[string]string{} // with their own help
	flags := 0
	flag := regexp.MustCompile(`--[a-z-]+`)
	for _, page := range pages {
		text := readPage(t, page)
		for _, m := range regexp.MustCompile("\\bsessionctl ([a-z-]+)([^`\n|&;]*)").FindAllStringSubmatch(text, -1) {
			verb := m[1]
			if _, known := verbs[verb]; !known {
				if !strings.Contains(help, "  "+verb+" ") {
					t.Errorf("%s: there is no verb %s", page, verb)
				}
				r := h.sessionctl(t, verb, "--help")
				verbs[verb] = r.stdout + r.stderr
			}
			ours := m[2]
			if verb == "curl" || verb == "exec" { // what follows the site is another program's
				ours = regexp.MustCompile(`^( --[a-z-]+)*`).FindString(ours)
			}
			for _, f := range flag.FindAllString(ours, -1) {
				if flags++; !strings.Contains(verbs[verb], f) {
					t.Errorf("%s: %s has no flag %s", page, verb, f)
				}
			}
		}
		agent := h.run(t, "", filepath.Join(bin, "sessiond"), "--help").stdout
		for _, m := range regexp.MustCompile(`\bsessiond (--[a-z-]+)`).FindAllStringSubmatch(text, -1) {
			if !strings.Contains(agent, m[1]) {
				t.Errorf("%s: sessiond has no flag %s", page, m[1])
			}
		}
		makefile := readPage(t, "Makefile")
		for _, m := range regexp.MustCompile("(?:`|=require |    )make ([a-z]+)").FindAllStringSubmatch(text, -1) {
			if !regexp.MustCompile(`(?m)^\.PHONY: .*\b` + m[1] + `\b`).MatchString(makefile) {
				t.Errorf("%s: there is no target %s", page, m[1])
			}
		}
	}
	if len(verbs) < 10 || flags < 5 {
		t.Errorf("only %d verbs and %d flags found", len(verbs), flags)
	}
}
