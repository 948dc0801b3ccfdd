package e2e

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/sessionctl/sessionctl/client"
	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

// alice logs in at Jira with a password, build with a ticket.
const alicePassword = "CANARY-alice's <pässword> & \"more\""

// jiraWorld is the in-process world with a Jira behind IWAAC.
type jiraWorld struct {
	*world
	*rig.Atlassian
	clock atomic.Int64 // how far Jira's clock is ahead
}

func newJira(t *testing.T) *jiraWorld {
	j := &jiraWorld{world: inProcess(t)}
	var err error
	j.Atlassian, err = rig.StartJira(rig.AtlassianOptions{
		ContextPath: "/jira", Keytab: j.kdc.Keytab("HTTP/localhost"), Guard: &rig.IWAAC{Agent: "Windows NT", URIs: []string{"/login.jsp"}},
		Now: func() time.Time { return time.Now().Add(time.Duration(j.clock.Load())) },
	})
	must(t, err)
	t.Cleanup(j.Atlassian.Stop)
	j.AddUser("build", "")
	j.AddUser("alice", alicePassword)
	return j
}

// home has two sites at Jira beside "app": "jira" by keytab, "tracker" by
// password. They ask Jira before each answer, so that what Jira forgets is
// noticed at once; the given lines are the tracker's too.
func (j *jiraWorld) home(t *testing.T, tracker ...string) *home {
	return newHome(t, j.world, fmt.Sprintf(`
[site.jira]
url           = %q
kind          = "jira"
credential    = "build"
insecure_http = true
recheck       = "0s"

[credential.alice]
username = "alice"

[site.tracker]
url           = %[1]q
kind          = "jira"
credential    = "alice"
insecure_http = true
recheck       = "0s"
%s`, j.Atlassian.URL(), strings.Join(tracker, "\n")))
}

// rewrite replaces a text in the agent's configuration.
func (h *home) rewrite(t *testing.T, old, text string) {
	t.Helper()
	b, err := os.ReadFile(h.config)
	must(t, err)
	if !bytes.Contains(b, []byte(old)) {
		t.Fatalf("%q is not in the configuration", old)
	}
	write(t, h.config, strings.ReplaceAll(string(b), old, text))
}

// givePassword stores alice's password in the agent.
func (h *home) givePassword(t *testing.T, password string) result {
	t.Helper()
	return h.run(t, password+"\n", filepath.Join(bin, "sessionctl"), "login", "tracker", "--password-stdin")
}

// user asks Jira who one is, with curl as a script would.
func (j *jiraWorld) user(t *testing.T, h *home, site string) string {
	t.Helper()
	rig.Require(t, "curl")
	r := h.run(t, "", "sh", "-c", `sessionctl header "$0" | curl -sS -H @- "$1"`, site, j.Atlassian.URL()+"/rest/api/2/myself")
	_, rest, _ := strings.Cut(r.stdout, `"name":"`)
	name, _, _ := strings.Cut(rest, `"`)
	if name == "" {
		t.Errorf("%s: Jira names nobody: %v", site, r)
	}
	return name
}

// noSecrets looks for what must not be there in what the agent has written.
func noSecrets(t *testing.T, a *agent) {
	t.Helper()
	must(t, filepath.WalkDir(a.dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || path == a.config {
			return err
		}
		b, err := os.ReadFile(path)
		if bytes.Contains(b, []byte("CANARY")) {
			t.Errorf("a secret is in %s", filepath.Base(path))
		}
		return err
	}))
	if i := strings.Index(a.log.String(), "CANARY"); i >= 0 {
		t.Errorf("a secret is in the log: %.200s", a.log.String()[i:])
	}
}

func TestJiraByTicket(t *testing.T) {
	j := newJira(t)
	h := j.home(t)
	a := h.start(t)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() { h.sessionctl(t, "raw", "jira") })
	}
	wg.Wait()
	if name := j.user(t, h, "jira"); name != "build" {
		t.Errorf("Jira names %s", name)
	}
	if c := j.Counts(); c.KerberosLogins != 1 || c.Tokens != 1 {
		t.Errorf("20 callers: %+v", c)
	}
	// What the gate gives goes with every request, sticky cookies and all.
	for _, name := range []string{"JSESSIONID=", "atlassian.xsrf.token=", "crowd.token_key="} {
		if !strings.Contains(h.ok(t, "raw", "jira"), name) {
			t.Errorf("no %s", name)
		}
	}
	// A form wants the token that only a caller of ours sends.
	rig.Require(t, "curl")
	attach := func(token string) string {
		return h.run(t, "", "sh", "-c", `sessionctl header jira | `+token+` | curl -sS -o /dev/null -w '%{http_code}' -H @- -F "file=@$1;filename=x" "$0"`,
			j.Atlassian.URL()+"/rest/api/2/issue/LAB-1/attachments", h.config).stdout
	}
	if with, without := attach("cat"), attach("grep -v X-Atlassian-Token"); with != "200" || without != "403" {
		t.Errorf("an attachment with the token: %s, without: %s", with, without)
	}
	if out := h.ok(t, "get", "jira", "-o", "json"); strings.Contains(out, `"user": "build"`) == false {
		t.Errorf("%s", out)
	}
	a.stop(t)
	noSecrets(t, a)
}

// TestJiraByPassword: from no password to a session that heals by itself.
func TestJiraByPassword(t *testing.T) {
	j := newJira(t)
	h := j.home(t)
	a := h.start(t)
	if r := h.fails(t, 5, "no_secret", "raw", "tracker"); !strings.Contains(r.stderr, "sessionctl login tracker --password-stdin") {
		t.Errorf("%v", r)
	}
	for name, bad := range map[string]string{"empty": "", "two lines": "CANARY-a\nb", "not UTF-8": "CANARY-\xff", "too long": strings.Repeat("CANARY", 200)} {
		if r := h.givePassword(t, bad); r.status != 2 || strings.Contains(r.stderr, "CANARY") {
			t.Errorf("%s: %v", name, r)
		}
	}
	wantFailure(t, h.givePassword(t, "CANARY-wrong"), 5, "bad_credentials")
	wantFailure(t, h.givePassword(t, "CANARY-wrong"), 5, "latched")
	if r := h.givePassword(t, alicePassword); r.status != 0 || !strings.Contains(r.stderr, "logged in as alice") {
		t.Fatalf("%v", r)
	}
	if name := j.user(t, h, "tracker"); name != "alice" {
		t.Errorf("Jira names %s", name)
	}
	// A wrong one that somebody brings does no harm to what works.
	wantFailure(t, h.givePassword(t, "CANARY-other"), 5, "bad_credentials")
	if name := j.user(t, h, "tracker"); name != "alice" {
		t.Errorf("Jira names %s", name)
	}
	// Jira forgets; the agent is killed; neither asks a person.
	j.DropSessions()
	if name := j.user(t, h, "tracker"); name != "alice" {
		t.Errorf("Jira names %s", name)
	}
	must(t, a.cmd.Process.Signal(syscall.SIGKILL))
	<-a.done
	noSecrets(t, a)
	j.DropSessions()
	a = h.start(t)
	if name := j.user(t, h, "tracker"); name != "alice" {
		t.Errorf("Jira names %s", name)
	}
	if c := j.Counts(); c.Logins != 3 || c.Refused != 2 || c.Denied != 0 {
		t.Errorf("%+v", c)
	}
	// Jira's own list of sessions has one, and none after the logout.
	if r := h.sessionctl(t, "logout", "tracker"); r.status != 0 || !strings.Contains(r.stderr, "the site has ended the session") {
		t.Errorf("%v", r)
	}
	if c := j.Counts(); c.Logouts != 1 || c.Sessions != 0 {
		t.Errorf("%+v", c)
	}
	j.Stop()
	if r := h.sessionctl(t, "logout", "tracker"); r.status != 0 {
		t.Errorf("nothing to log out from: %v", r)
	}
	a.stop(t)
	noSecrets(t, a)
}

// TestLogoutAtADeadSite: what the site does not hear is dropped all the same,
// and the answer says so.
func TestLogoutAtADeadSite(t *testing.T) {
	j := newJira(t)
	h := j.home(t)
	h.start(t)
	h.ok(t, "raw", "jira")
	j.Stop()
	if r := h.sessionctl(t, "logout", "jira"); r.status != 0 || !strings.Contains(r.stderr, "the site has not ended it") || !strings.Contains(r.stderr, "(network_error)") {
		t.Errorf("%v", r)
	}
	if out := h.ok(t, "list", "-o", "json"); strings.Contains(out, `"generation"`) {
		t.Errorf("the session is still there: %s", out)
	}
	must(t, j.Start())
	if c := j.Counts(); c.Sessions != 1 || c.Logouts != 0 {
		t.Errorf("%+v", c)
	}
}

// TestAttempts: one attempt per refused password, over callers, sites, and an
// agent that is killed; a CAPTCHA never comes.
func TestAttempts(t *testing.T) {
	j := newJira(t)
	h := j.home(t, fmt.Sprintf("[site.board]\nurl = %q\nkind = \"jira\"\ncredential = \"alice\"\ninsecure_http = true\nrecheck = \"0s\"", j.Atlassian.URL()))
	a := h.start(t)
	if r := h.givePassword(t, alicePassword); r.status != 0 {
		t.Fatalf("%v", r)
	}
	j.SetPassword("alice", "CANARY-new") // which ends her sessions
	callers := func() {
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() { wantPersonToAct(t, h.sessionctl(t, "raw", []string{"tracker", "board"}[i%2])) })
		}
		wg.Wait()
	}
	callers()
	must(t, a.cmd.Process.Signal(syscall.SIGKILL))
	<-a.done
	a = h.start(t)
	callers()
	c := j.Counts()
	t.Logf("8 callers, kill -9, 8 callers, 2 sites, an outdated password: %d attempt, %d denied by CAPTCHA", c.Refused, c.Denied)
	if c.Refused != 1 || c.Denied != 0 {
		t.Errorf("%+v", c)
	}
	// The way out.
	wantFailure(t, h.sessionctl(t, "login", "tracker", "--retry"), 5, "bad_credentials")
	if r := h.givePassword(t, "CANARY-new"); r.status != 0 {
		t.Errorf("%v", r)
	}
	for _, site := range []string{"tracker", "board"} {
		if name := j.user(t, h, site); name != "alice" {
			t.Errorf("Jira names %s", name)
		}
	}
	a.stop(t)
	noSecrets(t, a)
}

func wantPersonToAct(t *testing.T, r result) {
	t.Helper()
	if r.status != 5 || r.stdout != "" || !strings.Contains(r.stderr, "(bad_credentials)") || !strings.Contains(r.stderr, "--password-stdin") {
		t.Errorf("%v", r)
	}
}

// TestKilledInTheAttempt: the agent dies while Jira looks at a password. It
// cannot know what came of it, so that counts as a refusal, also of a password
// that was right before.
func TestKilledInTheAttempt(t *testing.T) {
	for _, accepted := range []bool{false, true} {
		t.Run(fmt.Sprintf("accepted before %v", accepted), func(t *testing.T) {
			j := newJira(t)
			arrived, hold := make(chan struct{}), make(chan struct{})
			var posts atomic.Int32
			var die atomic.Bool
			front := frontOf(t, j, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				next.ServeHTTP(w, r)
				if r.Method == http.MethodPost {
					posts.Add(1)
					if die.Swap(false) {
						close(arrived)
						<-hold
					}
				}
			})
			defer close(hold)
			h := j.home(t)
			h.rewrite(t, j.Atlassian.URL(), front+"/jira")
			a := h.start(t)
			login := func() result { return h.givePassword(t, "CANARY-wrong") }
			if accepted {
				if r := h.givePassword(t, alicePassword); r.status != 0 {
					t.Fatalf("%v", r)
				}
				j.SetPassword("alice", "CANARY-new")
				login = func() result { return h.sessionctl(t, "raw", "tracker") }
			}
			posts.Store(0)
			die.Store(true)
			lost := make(chan result, 1)
			go func() { lost <- login() }()
			<-arrived
			must(t, a.cmd.Process.Signal(syscall.SIGKILL))
			<-a.done
			a = h.start(t)
			<-lost // a script's call waits for the agent's return
			wantFailure(t, login(), 5, "latched")
			if posts.Load() != 1 {
				t.Errorf("%d attempts", posts.Load())
			}
			j.SetPassword("alice", alicePassword)
			if r := h.run(t, alicePassword+"\n", filepath.Join(bin, "sessionctl"), "login", "tracker", "--password-stdin", "--retry"); r.status != 0 {
				t.Errorf("the way out: %v", r)
			}
			a.stop(t)
		})
	}
}

// frontOf starts a proxy in front of Jira.
func frontOf(t *testing.T, j *jiraWorld, handle func(http.ResponseWriter, *http.Request, http.Handler)) string {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { handle(w, r, j.Atlassian) }))
	t.Cleanup(s.Close)
	u, err := url.Parse(s.URL)
	must(t, err)
	return "http://localhost:" + u.Port()
}

// TestCaptcha: a CAPTCHA that others have brought about stops the agent until a
// person has solved it.
func TestCaptcha(t *testing.T) {
	j := newJira(t)
	h := j.home(t)
	a := h.start(t)
	if r := h.givePassword(t, alicePassword); r.status != 0 {
		t.Fatalf("%v", r)
	}
	for range 3 { // somebody else's script, with an old password
		req, err := http.NewRequest(http.MethodGet, j.Atlassian.URL()+"/rest/api/2/myself", nil)
		must(t, err)
		req.SetBasicAuth("alice", "CANARY-old")
		resp, err := http.DefaultClient.Do(req)
		must(t, err)
		resp.Body.Close()
	}
	http.DefaultClient.CloseIdleConnections()
	j.DropSessions()
	r := h.fails(t, 5, "captcha", "raw", "tracker")
	if !strings.Contains(r.stderr, j.Atlassian.URL()+"/login.jsp") || !strings.Contains(r.stderr, "sessionctl login tracker --retry") {
		t.Errorf("%v", r)
	}
	for range 5 {
		h.fails(t, 5, "latched", "raw", "tracker")
	}
	a.stop(t)
	a = h.start(t)
	h.fails(t, 5, "latched", "raw", "tracker")
	if c := j.Counts(); c.Denied != 1 {
		t.Errorf("the agent went on: %+v", c)
	}
	j.SolveCaptcha("alice")
	if r := h.sessionctl(t, "login", "tracker", "--retry"); r.status != 0 {
		t.Errorf("%v", r)
	}
	if name := j.user(t, h, "tracker"); name != "alice" {
		t.Errorf("Jira names %s", name)
	}
	a.stop(t)
	noSecrets(t, a)
}

// TestAdopt: a session that a person made in a browser, proven like any other.
func TestAdopt(t *testing.T) {
	j := newJira(t)
	h := j.home(t)
	a := h.start(t)
	adopt := func(cookie string) result {
		return h.run(t, cookie+"\n", filepath.Join(bin, "sessionctl"), "login", "tracker", "--cookie-stdin")
	}
	browser := func(user, password string) string {
		resp, err := http.Post(j.Atlassian.URL()+"/rest/auth/1/session", "application/json", strings.NewReader(fmt.Sprintf(`{"username":%q,"password":%q}`, user, password)))
		must(t, err)
		resp.Body.Close()
		http.DefaultClient.CloseIdleConnections()
		var pairs []string
		for _, c := range resp.Cookies() {
			pairs = append(pairs, c.Name+"="+c.Value)
		}
		return strings.Join(pairs, "; ")
	}
	j.AddUser("bob", "CANARY-bob")
	j.SetPassword("alice", "CANARY-simple")
	for name, c := range map[string]struct {
		cookie, code string
		status       int
	}{
		"dead":         {"JSESSIONID=CANARY-dead", "expired", 5},
		"another user": {browser("bob", "CANARY-bob"), "wrong_identity", 5},
		"no pair":      {"CANARY", "invalid_request", 2},
		"twice":        {"JSESSIONID=CANARY-1; JSESSIONID=CANARY-2", "invalid_request", 2},
		"a CRLF":       {"JSESSIONID=CANARY-1\r\nX-Injected: 1", "invalid_request", 2},
	} {
		if r := adopt(c.cookie); r.status != c.status || !strings.Contains(r.stderr, "("+c.code+")") || strings.Contains(r.stderr, "CANARY") || r.stdout != "" {
			t.Errorf("%s: %v", name, r)
		}
	}
	if r := adopt("Cookie: " + browser("alice", "CANARY-simple")); r.status != 0 || !strings.Contains(r.stderr, "alice") {
		t.Fatalf("%v", r)
	}
	if name := j.user(t, h, "tracker"); name != "alice" {
		t.Errorf("Jira names %s", name)
	}
	// A dead one does not push out what lives.
	wantFailure(t, adopt("JSESSIONID=CANARY-dead"), 5, "expired")
	if name := j.user(t, h, "tracker"); name != "alice" {
		t.Errorf("Jira names %s", name)
	}
	for _, args := range [][]string{{"--cookie-stdin", "--retry"}, {"--cookie-stdin", "--password-stdin"}} {
		if r := h.run(t, "x\n", filepath.Join(bin, "sessionctl"), append([]string{"login", "tracker"}, args...)...); r.status != 2 {
			t.Errorf("%v: %v", args, r)
		}
	}
	a.stop(t)
	noSecrets(t, a)
}

// TestProbation: a new session that nobody uses lives as long as Jira's limit
// says, not the minutes of JRASERVER-31322.
func TestProbation(t *testing.T) {
	j := newJira(t)
	h := j.home(t)
	h.rewrite(t, `recheck       = "0s"`, "") // the default
	h.start(t)
	cookie := strings.TrimSpace(h.ok(t, "raw", "jira"))
	for _, c := range []struct {
		later  time.Duration
		status int
	}{{4 * time.Hour, http.StatusOK}, {5*time.Hour + time.Minute, http.StatusUnauthorized}} {
		j.clock.Add(int64(c.later))
		req, err := http.NewRequest(http.MethodGet, j.Atlassian.URL()+"/rest/api/2/myself", nil)
		must(t, err)
		req.Header.Set("Cookie", cookie)
		resp, err := http.DefaultClient.Do(req)
		must(t, err)
		resp.Body.Close()
		if resp.StatusCode != c.status {
			t.Errorf("after %v without a request: %s", c.later, resp.Status)
		}
	}
	http.DefaultClient.CloseIdleConnections()
}

// TestReject: the report of a script that was refused is checked, and heals once
// for all.
func TestReject(t *testing.T) {
	j := newJira(t)
	h := j.home(t)
	h.rewrite(t, `recheck       = "0s"`, "") // the default
	h.start(t)
	first := h.ok(t, "raw", "jira")
	if r := h.sessionctl(t, "reject", "jira"); r.status != 0 || h.ok(t, "raw", "jira") != first {
		t.Errorf("a session that lives was dropped: %v", r)
	}
	j.DropSessions()
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			if r := h.sessionctl(t, "reject", "jira"); r.status != 0 {
				t.Errorf("%v", r)
			}
		})
	}
	wg.Wait()
	if name := j.user(t, h, "jira"); name != "build" {
		t.Errorf("Jira names %s", name)
	}
	if c := j.Counts(); c.KerberosLogins != 2 {
		t.Errorf("%+v", c)
	}
}

// TestWatch: a service is told of each new session, and comes back by itself
// after a restart of the agent.
func TestWatch(t *testing.T) {
	j := newJira(t)
	h := j.home(t)
	a := h.start(t)
	c := &client.Client{Socket: h.socket}
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	source, err := c.Watch(ctx, client.Query{Site: "jira"})
	must(t, err)
	defer source.Close()
	next := func(old *client.Session) *client.Session {
		t.Helper()
		for {
			changed := source.Changed()
			if s, err := source.Session(); err == nil && s.Generation != old.Generation {
				return s
			}
			select {
			case <-changed:
			case <-ctx.Done():
				t.Fatal("no other session came")
			}
		}
	}
	first, err := source.Session()
	must(t, err)
	j.DropSessions()
	h.ok(t, "reject", "jira")
	second := next(first)
	begin := time.Now()
	a.stop(t)
	if took := time.Since(begin); took > 5*time.Second { // the drain time is 10 s
		t.Errorf("an open stream kept the agent from stopping for %v", took)
	}
	if s, err := source.Session(); err != nil || s.Generation != second.Generation {
		t.Errorf("while the agent is away: %v %v", s, err)
	}
	h.start(t)
	j.DropSessions()
	h.ok(t, "reject", "jira")
	next(second)
}

// TestPasswordFromSystemd: a unit's LoadCredential=password.NAME is the
// credential's password, read again at each login.
func TestPasswordFromSystemd(t *testing.T) {
	j := newJira(t)
	h := j.home(t)
	credentials := t.TempDir()
	file := write(t, filepath.Join(credentials, "password.alice"), "CANARY-wrong\n")
	h.extraEnv = []string{"CREDENTIALS_DIRECTORY=" + credentials}
	a := h.start(t)
	r := h.fails(t, 5, "bad_credentials", "raw", "tracker")
	if strings.Contains(r.stderr, "--password-stdin") || !strings.Contains(r.stderr, "--retry") {
		t.Errorf("%v", r)
	}
	wantFailure(t, h.givePassword(t, alicePassword), 2, "invalid_request")
	write(t, file, alicePassword+"\n")
	if name := j.user(t, h, "tracker"); name != "alice" {
		t.Errorf("Jira names %s", name)
	}
	must(t, os.Remove(file))
	j.DropSessions()
	h.fails(t, 5, "no_secret", "raw", "tracker")
	if c := j.Counts(); c.Refused != 1 || c.Logins != 1 {
		t.Errorf("%+v", c)
	}
	a.stop(t)
	noSecrets(t, a)
}
