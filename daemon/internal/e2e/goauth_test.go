package e2e

import (
	"archive/zip"
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

const goPage = "docs/go.md"

// modules is a server of Go modules (https://go.dev/ref/mod#goproxy-protocol) that
// serves nobody without a session, beside the application that sessions come from.
//
//	/mod/    401 without a session
//	/moved/  302 to the login
//	/mute/   403 without a session, which says nothing about it
type modules struct {
	*rig.Form
	*home
	url    string // https://127.0.0.1:port
	caFile string

	mu   sync.Mutex
	seen []string // path's end and status of each request for a module
}

const goModule = "corp.example/lib"

// moduleFiles are what the server has of a module.
func moduleFiles(t *testing.T) map[string]string {
	t.Helper()
	const mod = "module " + goModule + "\n\ngo 1.24\n"
	var archive bytes.Buffer
	z := zip.NewWriter(&archive)
	for name, text := range map[string]string{"go.mod": mod, "lib.go": "package lib\n"} {
		w, err := z.Create(goModule + "@v1.0.0/" + name)
		must(t, err)
		_, err = w.Write([]byte(text))
		must(t, err)
	}
	must(t, z.Close())
	return map[string]string{
		"@v/list": "v1.0.0\n", "@v/v1.0.0.info": `{"Version":"v1.0.0"}`, "@v/v1.0.0.mod": mod, "@v/v1.0.0.zip": archive.String(),
	}
}

// newModules starts the server and makes a home with the site "mods" there, a site
// "plain" without TLS and a site "away" at a host that is not there.
func newModules(t *testing.T) *modules {
	t.Helper()

	f, err := rig.StartForm()
	must(t, err)
	t.Cleanup(f.Stop)
	f.AddUser("anna", serverUsers["anna"])
	m := &modules{Form: f}
	files := moduleFiles(t)
	s := serve(t, true, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { m.answer(w, r, files) }))
	m.url = s.URL
	dir := t.TempDir()
	m.caFile = write(t, filepath.Join(dir, "ca.pem"), string(certificatePEM(s)))
	write(t, filepath.Join(dir, "password.anna"), serverUsers["anna"])
	m.home = newHome(t, &world{krb5Conf: "/dev/null"})
	m.extraEnv = []string{"SSL_CERT_FILE=" + m.caFile, "CREDENTIALS_DIRECTORY=" + dir}
	write(t, m.config, fmt.Sprintf(`
[credential.anna]
username = "anna"

[site.mods]
url           = %q
kind          = "form"
credential    = "anna"
probe_url     = "whoami"
identity_json = "user"
recheck       = "0s"

[site.plain]
url           = %q
kind          = "form"
credential    = "anna"
insecure_http = true
probe_url     = "whoami"
identity_json = "user"

[site.away]
url           = "https://127.0.0.1:1/"
kind          = "form"
credential    = "anna"
identity_json = "user"
`, m.url+"/app/", f.URL()+"/app/"))
	return m
}

// knows reports whether a request is a user's.
func (m *modules) knows(r *http.Request) bool {
	probe := httptest.NewRequest(http.MethodGet, "/app/whoami", nil)
	probe.Header["Cookie"] = r.Header["Cookie"]
	w := httptest.NewRecorder()
	m.Form.ServeHTTP(w, probe)
	return w.Code == http.StatusOK
}

func (m *modules) answer(w http.ResponseWriter, r *http.Request, files map[string]string) {
	kind, rest, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/"+goModule+"/")
	file, found := files[rest]
	status := http.StatusOK
	switch refusals := map[string]int{"mod": http.StatusUnauthorized, "moved": http.StatusFound, "mute": http.StatusForbidden}; {
	case refusals[kind] == 0:
		m.Form.ServeHTTP(w, r)
		return
	case !m.knows(r):
		status = refusals[kind]
	case !found:
		status = http.StatusNotFound
	}
	m.mu.Lock()
	m.seen = append(m.seen, fmt.Sprint(filepath.Ext(rest), " ", status))
	m.mu.Unlock()
	switch status {
	case http.StatusFound:
		w.Header().Set("Location", "/login")
	case http.StatusUnauthorized:
		// What go joins by commas.
		w.Header()["Www-Authenticate"] = []string{"Negotiate", `Basic realm="x, y"`}
		w.Header()["Set-Cookie"] = []string{"anonymous=CANARY-a; Path=/", "other=CANARY-b; Path=/"}
	}
	w.WriteHeader(status)
	if status == http.StatusOK {
		_, _ = w.Write([]byte(file))
	}
}

// requests returns what was asked for since it was last called.
func (m *modules) requests() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := strings.Join(m.seen, ", ")
	m.seen = nil
	return all
}

// goCommand runs go with nothing in its module cache, and with the wrapper in
// GOAUTH's place that writes down how it was called.
func (m *modules) goCommand(t *testing.T, goauth, proxy string, args ...string) (r result, calls string) {
	t.Helper()
	dir := t.TempDir()
	log := filepath.Join(dir, "calls")
	wrapper := filepath.Join(dir, "goauth")
	must(t, os.WriteFile(wrapper, []byte("#!/bin/sh\necho \"$@\" >>'"+log+"'\nexec \"$@\"\n"), 0o700))
	cmd := exec.CommandContext(t.Context(), "go", args...)
	cmd.Dir = dir
	cmd.Env = append(m.goEnv(dir), "GOAUTH="+strings.Replace(goauth, "sessionctl ", wrapper+" sessionctl ", 1), "GOPROXY="+proxy)
	r = finish(t, cmd, "")
	return r, strings.TrimSpace(readIfThere(t, log))
}

// goEnv is the environment of a go command that knows the server's authority.
func (m *modules) goEnv(dir string) []string {
	return []string{"SESSIONCTL_SOCKET=" + m.socket, "PATH=" + bin + ":" + os.Getenv("PATH"), "HOME=" + dir, "GOPATH=" + filepath.Join(dir, "gopath"),
		"GOCACHE=" + filepath.Join(dir, "cache"), "GOFLAGS=-modcacherw", "GOSUMDB=off", "GOTOOLCHAIN=local", "GOENV=off", "GOTELEMETRY=off", "SSL_CERT_FILE=" + m.caFile}
}

// download has go fetch the module's one version.
func (m *modules) download(t *testing.T, goauth, kind string, flags ...string) (r result, calls string) {
	t.Helper()
	return m.goCommand(t, goauth, m.url+"/"+kind, append(append([]string{"mod", "download"}, flags...), goModule+"@v1.0.0")...)
}

// warmly downloads until the first call has been answered in time, which a busy
// machine may need more than one attempt for.
func (m *modules) warmly(t *testing.T, goauth, kind string) (r result, calls string) {
	t.Helper()
	for range 20 {
		m.requests()
		if r, calls = m.download(t, goauth, kind); calls == goauth {
			break
		}
	}
	return r, calls
}

// TestGoauth: a real go command, and a server of modules that wants a session.
func TestGoauth(t *testing.T) {
	m := newModules(t)
	const goauth = "sessionctl goauth mods"
	const all = ".info 200, .mod 200, .zip 200"
	ok := func(what string, r result) {
		t.Helper()
		if r.status != 0 || strings.Contains(r.stdout+r.stderr, "CANARY") {
			t.Fatalf("%s: %v", what, r)
		}
	}
	refused := func(what string, r result, status string) {
		t.Helper()
		if r.status == 0 || !strings.Contains(r.stderr, status) || strings.Contains(r.stdout+r.stderr, "CANARY") {
			t.Errorf("%s: %v", what, r)
		}
	}

	// No agent: go goes on as nobody.
	r, calls := m.download(t, goauth, "mod")
	refused("no agent", r, "401 Unauthorized")
	if seen := m.requests(); seen != ".info 401, .info 401" || calls != goauth+"\n"+goauth+" "+m.url+"/mod/"+goModule+"/@v/v1.0.0.info" {
		t.Errorf("no agent: %s after\n%s", seen, calls)
	}
	if r, _ := m.download(t, goauth, "mod", "-x"); !strings.Contains(r.stderr, "(no_agent)") {
		t.Errorf("go does not say why: %v", r)
	}

	m.start(t)
	m.requests()
	// Cold: the refusal brings the login, and what go sends from then on.
	r, calls = m.download(t, goauth, "mod")
	ok("cold", r)
	if seen := m.requests(); seen != ".info 401, "+all || strings.Count(calls, "\n") != 1 {
		t.Errorf("cold: %s after\n%s", seen, calls)
	}
	if n := m.Counts(); n.Logins != 1 {
		t.Errorf("cold: %+v", n)
	}
	// Warm: the first call is the only one.
	for _, kind := range []string{"mod", "moved", "mute"} {
		r, calls = m.warmly(t, goauth, kind)
		ok("warm", r)
		if seen := m.requests(); seen != all || calls != goauth {
			t.Errorf("warm, %s: %s after\n%s", kind, seen, calls)
		}
	}
	// A version that is not there is no reason to log in.
	r, _ = m.goCommand(t, goauth, m.url+"/mod", "mod", "download", goModule+"@v1.2.3")
	refused("no such version", r, "404 Not Found")
	if n := m.Counts(); n.Logins != 1 || n.Sessions != 1 {
		t.Errorf("404: %+v", n)
	}
	// A 403 that says nothing ends no session that lives, nor is there another.
	before := m.ok(t, "raw", "mods")
	if r := m.run(t, "HTTP/2.0 403 Forbidden\n\n", filepath.Join(bin, "sessionctl"), "goauth", "mods", m.url+"/mute/"); r.stdout != m.url+"\n\nCookie: "+before+"\n" || r.status != 0 {
		t.Errorf("403: %v", r)
	}

	// Stale: the agent asks the site, and logs in once.
	m.DropSessions()
	m.requests()
	r, _ = m.download(t, goauth, "mod")
	ok("stale", r)
	if seen := m.requests(); seen != ".info 401, "+all || m.Counts().Logins != 2 {
		t.Errorf("stale: %s, %+v", seen, m.Counts())
	}
	// A report about a session that lives is not believed.
	if r := m.run(t, "HTTP/2.0 401 Unauthorized\n\n", filepath.Join(bin, "sessionctl"), "goauth", "mods", m.url+"/mod/"); r.status != 0 || m.Counts().Logins != 2 {
		t.Errorf("a false report: %v, %+v", r, m.Counts())
	}

	// A host that is none of the sites, or only one that go may not send to.
	for _, goauth := range []string{"sessionctl goauth away", "sessionctl goauth plain", "sessionctl goauth away plain"} {
		r, _ = m.download(t, goauth, "mod")
		refused(goauth, r, "401 Unauthorized")
		if seen := m.requests(); seen != ".info 401, .info 401" {
			t.Errorf("%s: %s", goauth, seen)
		}
	}
	// Among several, and before netrc.
	r, _ = m.download(t, "sessionctl goauth away mods; netrc", "mod")
	ok("several", r)

	// Refused: the session is dead and the password is wrong. go gets none, and
	// does not send the dead one again.
	m.DropSessions()
	m.AddUser("anna", "CANARY-another")
	m.requests()
	if r := m.run(t, "HTTP/2.0 401 Unauthorized\n\n", filepath.Join(bin, "sessionctl"), "goauth", "mods", m.url+"/mod/"); r.status != 0 || r.stdout != m.url+"\n\n\n" || !strings.Contains(r.stderr, "(bad_credentials)") {
		t.Errorf("refused: %v", r)
	}
	for range 3 {
		r, _ = m.download(t, goauth, "mod", "-x")
		refused("latched", r, "401 Unauthorized")
		if !strings.Contains(r.stderr, "(latched)") || !strings.Contains(r.stderr, "next: ") {
			t.Errorf("latched: %v", r)
		}
	}
	if n := m.Counts(); n.Failures != 1 || n.Logins != 2 {
		t.Errorf("latched: %+v", n)
	}
}

// TestGoauthTogether: many modules at once, many calls at once, one login.
func TestGoauthTogether(t *testing.T) {
	m := newModules(t)
	m.start(t)
	const callers = 8
	done := make(chan result)
	for range callers {
		go func() {
			r, _ := m.download(t, "sessionctl goauth mods", "mod")
			done <- r
		}()
	}
	for range callers {
		if r := <-done; r.status != 0 {
			t.Errorf("%v", r)
		}
	}
	if n := m.Counts(); n.Logins != 1 || n.Failures != 0 {
		t.Errorf("%+v", n)
	}
}

// TestGoPage: the page's commands do what it says, against a server of modules.
func TestGoPage(t *testing.T) {
	m := newModules(t)
	m.start(t)
	const host = "https://goproxy.corp.example"
	dir := t.TempDir()
	script := strings.NewReplacer(host+"/mods", m.url+"/mod", host, m.url, "corp.example/lib@v1.4.0", goModule+"@v1.0.0", "@v1.4.0", "@v1.0.0").
		Replace(sectionBlock(t, goPage, "Three lines", "sh"))
	cmd := exec.CommandContext(t.Context(), "sh", "-ec", script)
	cmd.Dir = dir
	cmd.Env = append(m.goEnv(dir), "GOENV="+filepath.Join(dir, "goenv"))
	if r := finish(t, cmd, ""); r.status != 0 {
		t.Fatalf("%v\n%s", r, script)
	}
	if m.Counts().Logins != 1 {
		t.Errorf("%+v", m.Counts())
	}
	// What go prints when it gets no session.
	m.DropSessions()
	m.AddUser("anna", "CANARY-another")
	shown := shownIn(t, goPage, "Expiry and refusal")
	if len(shown) != 3 {
		t.Fatalf("%d commands", len(shown))
	}
	here := strings.NewReplacer(host+"/mods", m.url+"/mod", host, m.url, "@v1.4.0", "@v1.0.0")
	there := strings.NewReplacer(m.url+"/mod", host+"/mods", m.url, host, "@v1.0.0", "@v1.4.0", "v1.0.0", "v1.4.0")
	m.fails(t, 5, "bad_credentials", "refresh", "mods") // its end has been noticed
	for _, s := range shown {
		cmd := exec.CommandContext(t.Context(), "sh", "-c", here.Replace(s.command))
		cmd.Dir = t.TempDir()
		cmd.Env = append(m.goEnv(cmd.Dir), "GOENV="+filepath.Join(dir, "goenv"))
		r := finish(t, cmd, "")
		got := there.Replace(r.stderr + r.stdout)
		got = regexp.MustCompile(`(?m)^# .*\n`).ReplaceAllString(got, "") // the requests that -x shows
		got = regexp.MustCompile(`(?m)^\d{4}/\d\d/\d\d \d\d:\d\d:\d\d `).ReplaceAllString(got, "")
		got = regexp.MustCompile(`since \S+Z:`).ReplaceAllString(got, "since 2026-11-22T20:00:00Z:")
		if strings.TrimRight(got, "\n") != strings.TrimRight(s.output, "\n") {
			t.Errorf("%s says (%d):\n%s\nthe page has:\n%s", s.command, r.status, got, s.output)
		}
	}
}

// readIfThere returns what stands in a file, "" if there is none.
func readIfThere(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return string(b)
}
