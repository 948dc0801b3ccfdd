package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

const formsPage = "docs/forms.md"

// formsPassword is alice's at every site of the page.
const formsPassword = "CANARY-forms"

// portalLogin saves the program of docs/forms.md as one that the agent may run.
func portalLogin(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	must(t, os.Chmod(dir, 0o755)) // whatever the umask is
	file := filepath.Join(dir, "portal_login.py")
	must(t, os.WriteFile(file, []byte(program(t, "portal_login.py").text), 0o755))
	return file
}

// formsHome is somebody who has set up a site of the page.
func formsHome(t *testing.T, title string, replace ...string) *home {
	t.Helper()
	h := newHome(t, inProcess(t))
	write(t, h.config, withoutTLS(sectionBlock(t, formsPage, title, "toml"), replace...))
	return h
}

// TestFormExample: the first example of docs/forms.md, with the right password and
// with a wrong one.
func TestFormExample(t *testing.T) {
	const title = "A form"
	site, err := rig.StartForm()
	must(t, err)
	t.Cleanup(site.Stop)
	site.AddUser("alice", formsPassword)
	h := formsHome(t, title, "https://board.corp.example", site.URL())
	a := h.start(t)
	for _, code := range []string{"bad_credentials", "latched"} {
		wantFailure(t, h.bring(t, "board", "CANARY-wrong"), 5, code)
	}
	for _, c := range shownIn(t, formsPage, title) {
		c.same(t, h, formsPassword)
	}
	h.ok(t, "raw", "board")
	if n := site.Counts(); n.Logins != 1 || n.Failures != 1 {
		t.Errorf("%+v", n)
	}
	a.stop(t)
	noSecrets(t, a)
}

// TestFormServers: Tomcat and mod_auth_form as docs/forms.md has them set up, with the
// right password and with a wrong one.
func TestFormServers(t *testing.T) {
	users := map[string]string{"alice": formsPassword}
	try := func(t *testing.T, title, site string, posts func() (int, error), replace ...string) {
		h := formsHome(t, title, replace...)
		a := h.start(t)
		before, err := posts()
		must(t, err)
		for _, code := range []string{"bad_credentials", "latched"} {
			wantFailure(t, h.bring(t, site, "CANARY-wrong"), 5, code)
		}
		if r := h.bring(t, site, formsPassword); r.status != 0 || r.stderr != "sessionctl: "+site+": logged in as alice\n" {
			t.Errorf("%v", r)
		}
		h.ok(t, "raw", site)
		if n, err := posts(); n-before != 2 || err != nil {
			t.Errorf("%d passwords went out, %v", n-before, err)
		}
		a.stop(t)
		noSecrets(t, a)
	}
	t.Run("Tomcat", func(t *testing.T) {
		rig.Require(t, rig.TomcatNeeds()...)
		s, err := rig.StartTomcat(t.Context(), filepath.Join(t.TempDir(), "tomcat"), rig.TomcatOptions{Users: users})
		must(t, err)
		t.Cleanup(s.Stop)
		try(t, "Tomcat", "reports", func() (int, error) { return s.Posts(t.Context(), "/form") }, "https://reports.corp.example/reports", s.URL()+"/form")
	})
	t.Run("mod_auth_form", func(t *testing.T) {
		rig.Require(t, "apache2", "mod_auth_form", "mod_session_crypto")
		s, err := rig.StartApache(t.Context(), filepath.Join(t.TempDir(), "apache"), rig.ApacheOptions{Users: users})
		must(t, err)
		t.Cleanup(s.Stop)
		for _, page := range []string{"/form/", "/inline/"} {
			try(t, "Apache's mod_auth_form", "files", func() (int, error) { return s.Posts(page) }, "https://files.corp.example/private/", s.URL()+page)
		}
	})
}

// feed is a site that asks for a password with each request.
type feed struct {
	mu       sync.Mutex
	password string
	sent     map[string]int // passwords by path
	cookies  bool           // it sets one, and takes that
}

func (f *feed) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	user, password, ok := r.BasicAuth()
	if ok {
		f.sent[r.URL.Path]++
	}
	if c, err := r.Cookie("FEED"); f.cookies && err == nil && c.Value == "CANARY-session" {
		ok, user, password = true, "alice", f.password
	}
	if !ok || user != "alice" || password != f.password {
		w.Header().Set("WWW-Authenticate", `Basic realm="feed", charset="UTF-8"`)
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	if f.cookies {
		http.SetCookie(w, &http.Cookie{Name: "FEED", Value: "CANARY-session", Path: "/"})
	}
	fmt.Fprintf(w, `{"user":%q}`, user)
}

// passwords is how many have arrived.
func (f *feed) passwords() (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, k := range f.sent {
		n += k
	}
	return n
}

func (f *feed) change(password string, cookies bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.password, f.cookies = password, cookies
}

// TestBasicExample: what docs/forms.md says of Basic: the session is the header, and a
// changed password is found out by one request; or it is a cookie.
func TestBasicExample(t *testing.T) {
	const title = "Basic"
	f := &feed{password: formsPassword, sent: map[string]int{}}
	site := httptest.NewServer(f)
	t.Cleanup(site.Close)
	h := formsHome(t, title, "https://feed.corp.example", site.URL)
	a := h.start(t)
	for _, c := range shownIn(t, formsPage, title) {
		c.same(t, h, formsPassword)
	}
	if header := h.ok(t, "header", "feed"); !strings.Contains(header, "Authorization: Basic ") || strings.Contains(header, "Cookie:") {
		t.Errorf("%s", header)
	}
	f.change("CANARY-new", false)
	before := f.passwords()
	r := h.sessionctl(t, "reject", "feed")
	if r.status != 5 || !strings.Contains(r.stderr, "(bad_credentials)") || !strings.Contains(r.stderr, "--password-stdin") {
		t.Errorf("%v", r)
	}
	h.fails(t, 5, "latched", "header", "feed")
	if n := f.passwords() - before; n != 1 {
		t.Errorf("the old password went out %d times", n)
	}
	if r := h.bring(t, "feed", "CANARY-new"); r.status != 0 {
		t.Errorf("%v", r)
	}
	f.change("CANARY-new", true)
	h.ok(t, "logout", "feed")
	before = f.passwords()
	if raw := h.ok(t, "raw", "feed"); raw != "FEED=CANARY-session\n" {
		t.Errorf("%s", raw)
	}
	h.ok(t, "reject", "feed")
	if header := h.ok(t, "header", "feed"); strings.Contains(header, "Authorization") {
		t.Errorf("%s", header)
	}
	if n := f.passwords() - before; n != 1 {
		t.Errorf("the password went out %d times", n)
	}
	a.stop(t)
	noSecrets(t, a)
}

// portal is a site whose login takes JSON.
type portal struct {
	mu       sync.Mutex
	down     bool
	sessions map[string]bool
	logins   []int // statuses
}

func (p *portal) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch r.Method + " " + r.URL.Path {
	case "POST /api/login":
		var in struct{ Name, Secret string }
		status := http.StatusUnauthorized
		if err := json.NewDecoder(r.Body).Decode(&in); p.down {
			status = http.StatusServiceUnavailable
		} else if err != nil || r.Header.Get("Content-Type") != "application/json" {
			status = http.StatusBadRequest
		} else if in.Name == "alice" && in.Secret == formsPassword {
			status = http.StatusOK
			id := fmt.Sprint("CANARY-session-", len(p.logins))
			p.sessions[id] = true
			http.SetCookie(w, &http.Cookie{Name: "SID", Value: id, Path: "/", HttpOnly: true})
			http.SetCookie(w, &http.Cookie{Name: "theme", Value: "dark", Path: "/"})
		}
		p.logins = append(p.logins, status)
		w.WriteHeader(status)
	case "GET /api/me":
		if c, err := r.Cookie("SID"); err != nil || !p.sessions[c.Value] {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		fmt.Fprint(w, `{"name":"alice"}`)
	default:
		http.NotFound(w, r)
	}
}

// set changes the portal, and says what logins came to so far.
func (p *portal) set(down bool) []int {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.down = down
	clear(p.sessions)
	return slices.Clone(p.logins)
}

// TestCommandExample: the program of docs/forms.md logs in, once for all who ask; a
// wrong password goes out once, and one that nobody looked at is tried again.
func TestCommandExample(t *testing.T) {
	rig.Require(t, "python3")
	p := &portal{sessions: map[string]bool{}}
	site := httptest.NewServer(p)
	t.Cleanup(site.Close)
	h := formsHome(t, "A program of your own", "https://portal.corp.example", site.URL, loginFile, portalLogin(t))
	a := h.start(t)
	if r := h.bring(t, "portal", formsPassword); r.status != 0 || r.stderr != "sessionctl: portal: logged in as alice\n" {
		t.Fatalf("%v", r)
	}
	var calls sync.WaitGroup
	for range 8 {
		calls.Go(func() {
			if raw := h.sessionctl(t, "raw", "portal"); !strings.Contains(raw.stdout, "SID=CANARY-session-") || !strings.Contains(raw.stdout, "theme=dark") {
				t.Errorf("%v", raw)
			}
		})
	}
	calls.Wait()
	p.set(false)
	h.ok(t, "reject", "portal") // which is dead
	if got := p.set(true); !slices.Equal(got, []int{200, 200}) {
		t.Errorf("logins: %d", got)
	}
	h.fails(t, 7, "maintenance", "reject", "portal")
	p.set(false)
	h.ok(t, "login", "portal") // the password was not used up
	for _, code := range []string{"bad_credentials", "latched"} {
		wantFailure(t, h.bring(t, "portal", "CANARY-wrong"), 5, code)
	}
	if got := p.set(false); !slices.Equal(got, []int{200, 200, 503, 200, 401}) {
		t.Errorf("logins: %d", got)
	}
	site.Close()
	if r := h.bring(t, "portal", formsPassword); r.status != 7 || !strings.Contains(r.stderr, "(network_error)") {
		t.Errorf("%v", r)
	}
	a.stop(t)
	noSecrets(t, a)
}

// TestCommandProtocol: what a program gets and may say is what docs/forms.md has, and
// so is its environment.
func TestCommandProtocol(t *testing.T) {
	rig.Require(t, "python3")
	const title = "The program's input and output"
	var shown []map[string]any
	for _, text := range sectionBlocks(t, formsPage, title, "text") {
		if strings.HasPrefix(text, "{") {
			var object map[string]any
			if err := json.Unmarshal([]byte(text), &object); err != nil {
				t.Fatalf("%v: %s", err, text)
			}
			shown = append(shown, object)
		}
	}
	if len(shown) != 3 {
		t.Fatalf("%d objects", len(shown))
	}
	p := &portal{sessions: map[string]bool{}}
	site := httptest.NewServer(p)
	t.Cleanup(site.Close)
	dir := t.TempDir()
	must(t, os.Chmod(dir, 0o755))
	spy := filepath.Join(dir, "spy")
	must(t, os.WriteFile(spy, fmt.Appendf(nil, "#!/bin/sh\nenv >%[1]s/environment\npwd >%[1]s/directory\ntee %[1]s/input | %[2]s | tee %[1]s/output\n", dir, portalLogin(t)), 0o755))
	h := formsHome(t, "A program of your own", "https://portal.corp.example", site.URL, loginFile, spy)
	h.start(t)
	read := func(name string) string {
		t.Helper()
		b, err := os.ReadFile(filepath.Join(dir, name))
		must(t, err)
		return string(b)
	}
	members := func(name string) map[string]any {
		t.Helper()
		var object map[string]any
		must(t, json.Unmarshal([]byte(read(name)), &object))
		return object
	}
	same := func(what string, got, want map[string]any) {
		t.Helper()
		if g, w := slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)); !slices.Equal(g, w) {
			t.Errorf("%s has %s, the page has %s", what, g, w)
		}
	}
	if r := h.bring(t, "portal", formsPassword); r.status != 0 {
		t.Fatalf("%v", r)
	}
	input := members("input")
	same("the input", input, shown[0])
	for name, want := range map[string]any{"version": 1.0, "site": site.URL + "/", "login_url": site.URL + "/api/login", "username": "alice", "password": formsPassword} {
		if input[name] != want {
			t.Errorf("%s is %v", name, input[name])
		}
	}
	output := members("output")
	same("the output", output, shown[1])
	lines := output["set_cookie"].([]any)
	if len(lines) != 2 {
		t.Fatalf("%v", lines)
	}
	same("a cookie", lines[0].(map[string]any), shown[1]["set_cookie"].([]any)[0].(map[string]any))
	wantFailure(t, h.bring(t, "portal", "CANARY-wrong"), 5, "bad_credentials")
	output = members("output")
	same("the failure", output, shown[2])
	same("its error", output["error"].(map[string]any), shown[2]["error"].(map[string]any))

	environment := regexp.MustCompile("(?m)^(PWD|OLDPWD|SHLVL|_)=.*\n").ReplaceAllString(read("environment"), "") // the shell's own
	for variable := range strings.Lines(environment) {
		if !strings.Contains(oneLine(section(t, formsPage, "A program of your own")), "`"+strings.TrimSpace(variable)+"`") {
			t.Errorf("the page does not have %s", variable)
		}
	}
	if n := strings.Count(environment, "\n"); n != 3 || read("directory") != "/\n" {
		t.Errorf("%s in %s", environment, read("directory"))
	}
	// By hand, as the page has it.
	texts := sectionBlocks(t, formsPage, title, "text")
	byHand := strings.NewReplacer("https://portal.corp.example", site.URL, "…", formsPassword, "./portal_login.py", portalLogin(t)).Replace(texts[len(texts)-1])
	if r := h.run(t, "", "sh", "-c", byHand); r.status != 0 || !strings.Contains(r.stdout, "SID=CANARY-session") {
		t.Errorf("%v", r)
	}
}

// TestCommandMissing: without its program the agent says so, starts and is reloaded, and
// logs in when it is there; no password is used up before.
func TestCommandMissing(t *testing.T) {
	rig.Require(t, "python3")
	p := &portal{sessions: map[string]bool{}}
	site := httptest.NewServer(p)
	t.Cleanup(site.Close)
	program := portalLogin(t)
	h := formsHome(t, "A program of your own", "https://portal.corp.example", site.URL, loginFile, program)
	for why, missing := range map[string]struct{ lack, mend func() error }{
		"does not exist":      {func() error { return os.Rename(program, program+".away") }, func() error { return os.Rename(program+".away", program) }},
		"others can write to": {func() error { return os.Chmod(program, 0o775) }, func() error { return os.Chmod(program, 0o755) }},
	} {
		must(t, missing.lack())
		if r := h.sessionctl(t, "check-config", h.config); r.status != 5 || !strings.Contains(r.stderr, "(config_invalid)") || !strings.Contains(r.stdout, why) {
			t.Errorf("%s: %v", why, r)
		}
		a := h.start(t)
		if r := h.sessionctl(t, "reload"); r.status != 0 || !strings.Contains(r.stdout+r.stderr, why) {
			t.Errorf("%s: %v", why, r)
		}
		before := len(p.set(false))
		if r := h.bring(t, "portal", formsPassword); r.status != 5 || !strings.Contains(r.stderr, "(config_invalid)") || !strings.Contains(r.stderr, why) {
			t.Errorf("%s: %v", why, r)
		}
		must(t, missing.mend())
		if r := h.bring(t, "portal", formsPassword); r.status != 0 {
			t.Errorf("%s: %v", why, r)
		}
		if n := len(p.set(false)) - before; n != 1 {
			t.Errorf("%s: %d logins", why, n)
		}
		a.stop(t)
		noSecrets(t, a)
	}
}

// TestCommandCodes: what a program does and says is the code that docs/forms.md has, and
// the codes that it may say are those listed.
func TestCommandCodes(t *testing.T) {
	table := section(t, formsPage, "Codes")
	dir := t.TempDir()
	must(t, os.Chmod(dir, 0o755))
	program := filepath.Join(dir, "program")
	said := func(format string, args ...any) string { return "echo '" + fmt.Sprintf(format, args...) + "'" }
	for _, c := range []struct{ row, script, code string }{
		{"no JSON, or JSON with something else in it", "echo logged in", "unexpected_status"},
		{"no JSON, or JSON with something else in it", said(`{"version":1,"set_cookie":[],"more":1}`), "unexpected_status"},
		{"it takes longer than `timeout`", "exec cat /dev/zero >/dev/null", "timeout"},
		{"a cookie of a host that takes no part in the login", said(`{"version":1,"set_cookie":[{"url":"https://elsewhere.example/","line":"SID=1"}]}`), "sso_redirect"},
		{"a session that the site does not take", said(`{"version":1,"set_cookie":[{"url":"HERE/","line":"SID=1"}]}`), "login_ok_but_probe_failed"},
		{"the site has locked the account", said(`{"version":1,"error":{"code":"account_locked","detail":"locked","password_used":true}}`), "account_locked"},
	} {
		t.Run(c.code, func(t *testing.T) {
			if !regexp.MustCompile(`(?m)^\|.*`+regexp.QuoteMeta(c.row)+`.*\|$`).MatchString(table) || !strings.Contains(table, "`"+c.code+"`") {
				t.Error("the page does not have that")
			}
			p := &portal{sessions: map[string]bool{}}
			site := httptest.NewServer(p)
			t.Cleanup(site.Close)
			must(t, os.RemoveAll(program))
			must(t, os.WriteFile(program, []byte("#!/bin/sh\n"+strings.ReplaceAll(c.script, "HERE", site.URL)+"\n"), 0o755))
			h := formsHome(t, "A program of your own", "https://portal.corp.example", site.URL, loginFile, program)
			h.rewrite(t, "kind          = \"command\"\n", "kind          = \"command\"\ntimeout = 1\n")
			a := h.start(t)
			if r := h.bring(t, "portal", formsPassword); r.status == 0 || !strings.Contains(r.stderr, "("+c.code+")") {
				t.Errorf("%v", r)
			}
			if c.code == "account_locked" {
				wantFailure(t, h.bring(t, "portal", formsPassword), 5, "latched")
			}
			a.stop(t)
			noSecrets(t, a)
		})
	}
	source, err := os.ReadFile("../login/command.go")
	must(t, err)
	list := regexp.MustCompile(`(?s)\nvar commandRemedies = .*?\n}`).Find(source)
	row := regexp.MustCompile("(?m)^\\| `code` \\| one of (.*); another counts as `unknown` \\|$").FindStringSubmatch(readPage(t, formsPage))
	if list == nil || row == nil {
		t.Fatal("no codes found")
	}
	var code []string
	all := codeNames(t)
	for _, m := range regexp.MustCompile(`\tapi\.(\w+):`).FindAllSubmatch(list, -1) {
		for c, name := range all {
			if name == string(m[1]) {
				code = append(code, string(c))
			}
		}
	}
	page := strings.Split(strings.ReplaceAll(row[1], "`", ""), ", ")
	slices.Sort(code)
	slices.Sort(page)
	if !slices.Equal(code, page) || len(code) < 5 {
		t.Errorf("the page lists %s, there are %s", page, code)
	}
}
