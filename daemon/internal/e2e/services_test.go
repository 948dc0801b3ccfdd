package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
)

const (
	nodePage   = "docs/nodejs.md"
	pythonPage = "docs/python.md"
)

// job is what a service is told to do, a line of JSON: so many requests at once.
type job struct {
	Times  int    `json:"times"`
	Method string `json:"method"`
	URL    string `json:"url"`
	Body   string `json:"body"`
	// Cookie and Authorization are the program's own, in whose place the session is.
	Cookie        string `json:"cookie"`
	Authorization string `json:"authorization"`
}

// reply is what a service says of one request, a line of JSON.
type reply struct {
	Status            int
	User, Text, Shown string // Shown: how the answer's request is printed
	Code, Remedy      string
	Message           string
}

// service is a program that goes on running, and makes requests by what a page has.
type service struct {
	stdin  io.WriteCloser
	stdout *bufio.Scanner
	stderr *lockedBuffer
	wait   func() error
}

func startService(t *testing.T, cmd *exec.Cmd) *service {
	t.Helper()
	s := &service{stderr: &lockedBuffer{}}
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	s.stdin, s.stdout, cmd.Stderr = in, bufio.NewScanner(out), s.stderr
	s.stdout.Buffer(nil, 1<<20)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	must(t, cmd.Start())
	s.wait = cmd.Wait
	return s
}

// close ends the service, which nothing may keep alive then.
func (s *service) close(t *testing.T) {
	t.Helper()
	s.stdin.Close()
	for s.stdout.Scan() {
		t.Errorf("the service says %s", s.stdout.Bytes())
	}
	if err := s.wait(); err != nil || s.stderr.String() != "" {
		t.Errorf("%v: %s", err, s.stderr)
	}
}

// begin tells the service to do something.
func (s *service) begin(t *testing.T, times int, method, url, body string) {
	t.Helper()
	j := job{Times: times, Method: method, URL: url, Body: body}
	if strings.HasPrefix(url, "http://localhost:") {
		j.Cookie, j.Authorization = "JSESSIONID=own", "Bearer own"
	}
	b, err := json.Marshal(j)
	must(t, err)
	_, err = s.stdin.Write(append(b, '\n'))
	must(t, err)
}

// end returns what came of one request.
func (s *service) end(t *testing.T) reply {
	t.Helper()
	if !s.stdout.Scan() {
		t.Fatalf("the service has ended: %s", s.stderr)
	}
	if strings.Contains(s.stdout.Text(), "CANARY") {
		t.Errorf("a secret shows: %s", s.stdout.Text())
	}
	var o reply
	must(t, json.Unmarshal(s.stdout.Bytes(), &o))
	return o
}

func (s *service) do(t *testing.T, method, url, body string) reply {
	t.Helper()
	s.begin(t, 1, method, url, body)
	return s.end(t)
}

// stranger is a server on another host, which must get no secret. It writes down
// what it got.
type stranger struct {
	*httptest.Server
	mu     sync.Mutex
	header []http.Header
}

func newStranger(t *testing.T, handle http.HandlerFunc) *stranger {
	s := &stranger{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.header = append(s.header, r.Header)
		s.mu.Unlock()
		handle(w, r)
	}))
	t.Cleanup(s.Close)
	return s
}

// saw checks what the stranger got, and returns how many requests that were.
func (s *stranger) saw(t *testing.T, what string) int {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, h := range s.header {
		if h.Get("Cookie") != "" || h.Get("Authorization") != "" || h.Get("X-Atlassian-Token") != "" || strings.Contains(fmt.Sprint(h), "CANARY") {
			t.Errorf("%s: another host got %q", what, h)
		}
	}
	n := len(s.header)
	s.header = nil
	return n
}

// testService runs a page's example, and a service made of it, through what may
// become of a session. install puts the page's files into a directory; example is
// the page's program, and driver one that does jobs.
func testService(t *testing.T, page string, install func(*testing.T, *reader, string), example, driver []string) {
	ready := func(t *testing.T) (*reader, string) {
		r := newReader(t)
		r.configure(t, "docs/jira.md", 0)
		dir := t.TempDir()
		install(t, r, dir)
		return r, dir
	}

	t.Run("example", func(t *testing.T) {
		r, dir := ready(t)
		a := r.start(t)
		run := func() result { return finish(t, r.command(t, dir, example...), "") }
		for _, step := range []struct {
			name         string
			drop         int32
			logins, asks int
		}{{"cold", 0, 1, 1}, {"warm", 0, 0, 1}, {"expired", 1, 1, 2}} {
			logins, asks := r.logins(), r.requests.Load()
			r.drop.Store(step.drop)
			if got := run(); got.status != 0 || got.stdout != "svc-build\n" || got.stderr != "" {
				t.Errorf("%s: %v", step.name, got)
			}
			if logins, asks = r.logins()-logins, r.requests.Load()-asks; logins != step.logins || int(asks) != step.asks {
				t.Errorf("%s: %d logins, %d requests", step.name, logins, asks)
			}
		}
		a.stop(t)
		noSecrets(t, a)
		before := r.requests.Load()
		if got := run(); got.status != 1 || !strings.Contains(got.stderr, "(no_agent)\n  next: systemctl --user start sessiond.socket, or run sessiond\n") ||
			strings.Contains(got.stderr, "CANARY") || r.requests.Load() != before {
			t.Errorf("no agent: %v", got)
		}
	})

	t.Run("refused", func(t *testing.T) {
		r, dir := ready(t)
		r.kdc.Rekey("svc-build", "CANARY-other")
		a := r.start(t)
		got := finish(t, r.command(t, dir, example...), "")
		// As the page shows it.
		shown := sectionBlock(t, page, "What it does", "text")
		shown = strings.NewReplacer("https://jira.corp.example/jira", r.front+"/jira").Replace(shown)
		said := regexp.MustCompile(`, "[A-Z_]+"`).ReplaceAllString(got.stderr, "") // the KDC's own words
		if got.status != 1 || !strings.Contains(said, shown) || strings.Contains(got.stdout+got.stderr, "CANARY") || r.requests.Load() != 0 {
			t.Errorf("the page shows\n%s\nbut %v after %d requests", shown, got, r.requests.Load())
		}
		s := startService(t, r.command(t, dir, driver...))
		for range 2 {
			if o := s.do(t, "GET", r.front+"/jira/rest/api/2/myself", ""); o.Code != "latched" || !strings.Contains(o.Remedy, "sessionctl login jira --retry") || o.Status != 0 {
				t.Errorf("%+v", o)
			}
		}
		s.close(t)
		if n := r.kdc.Counts(); n.PreauthFailed != 1 {
			t.Errorf("%+v", n)
		}
		a.stop(t)
		noSecrets(t, a)
	})

	t.Run("service", func(t *testing.T) {
		r, dir := ready(t)
		// localhost of the page is the site, the same server by its address is not.
		other := strings.Replace(r.front, "localhost", "127.0.0.1", 1)
		a := r.start(t)
		s := startService(t, r.command(t, dir, driver...))
		defer s.close(t)
		myself, public := r.front+"/jira/rest/api/2/myself", r.front+"/jira/rest/api/2/issue/LAB-1"
		// good makes a request that is answered as to the session's user, with so many
		// logins and requests to Jira's REST API.
		good := func(what, method, url, body string, status, logins, asks int) {
			t.Helper()
			l, n := r.logins(), int(r.requests.Load())
			if o := s.do(t, method, url, body); o.Status != status || o.User != "svc-build" {
				t.Errorf("%s: %+v", what, o)
			}
			if l, n = r.logins()-l, int(r.requests.Load())-n; l != logins || n != asks {
				t.Errorf("%s: %d logins, %d requests", what, l, n)
			}
		}
		good("cold", "GET", myself, "", 200, 1, 1)
		good("warm", "GET", myself, "", 200, 0, 1)
		r.DropSessions()
		good("expired", "GET", myself, "", 200, 1, 2)
		r.DropSessions()
		good("expired, and the page is for anybody", "GET", public, "", 200, 1, 2)
		r.DropSessions()
		good("expired, and the page leads to the login", "GET", r.front+"/jira/secure/Dashboard.jspa", "", 200, 1, 0)
		r.DropSessions()
		issue := `{"fields":{"project":{"key":"LAB"},"summary":"made once","issuetype":{"name":"Bug"}}}`
		good("expired, with a body", "POST", r.front+"/jira/rest/api/2/issue", issue, 201, 1, 2)
		if n := r.Counts().Created; n != 1 {
			t.Errorf("%d issues made", n)
		}

		// A page for anybody, by which only a header tells who asked.
		r.DropSessions()
		before := r.logins()
		pages := 0
		named := http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			if req.URL.Path != "/jira/page" {
				r.ServeHTTP(w, req)
				return
			}
			if req.Header.Get("Authorization") != "" || !strings.Contains(req.Header.Get("Cookie"), "CANARY") {
				t.Errorf("beside the session goes %q", req.Header)
			}
			pages++
			w.Header().Set("X-AUSERNAME", []string{"", "anonymous", "svc-build"}[min(pages, 2)])
		})
		r.instead.Store(&named)
		if o := s.do(t, "GET", r.front+"/jira/page", ""); o.Status != 200 || o.User != "svc-build" || pages != 2 || r.logins() != before+1 {
			t.Errorf("a page for anybody: %+v, asked for %d times, %d logins", o, pages, r.logins()-before)
		}
		r.instead.Store(nil)

		// The site goes on refusing: the agent finds the session alive.
		asked := r.requests.Load()
		r.refuse.Store(true)
		if o := s.do(t, "GET", myself, ""); o.Status != 401 || r.requests.Load() != asked+1 {
			t.Errorf("refused: %+v after %d requests", o, r.requests.Load()-asked)
		}
		r.refuse.Store(false)

		// What may have been done is not done again, but reported.
		r.DropSessions()
		logins, posts := r.logins(), 0
		instead := http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			if req.URL.Path == "/jira/do" {
				posts++
				http.Redirect(w, req, "/jira/login.jsp", http.StatusFound)
				return
			}
			r.ServeHTTP(w, req)
		})
		r.instead.Store(&instead)
		if o := s.do(t, "POST", r.front+"/jira/do", "x"); o.Status != 302 || posts != 1 || r.logins() != logins+1 {
			t.Errorf("in doubt: %+v, %d posts, %d logins", o, posts, r.logins()-logins)
		}
		r.instead.Store(nil)

		// Eight at once, by one login.
		r.DropSessions()
		logins = r.logins()
		s.begin(t, 8, "GET", myself, "")
		for range 8 {
			if o := s.end(t); o.Status != 200 || o.User != "svc-build" {
				t.Errorf("one of eight: %+v", o)
			}
		}
		if n := r.logins() - logins; n != 1 {
			t.Errorf("eight at once: %d logins", n)
		}

		// Redirects: inside the site, away, and back.
		answer := func(status int) http.HandlerFunc {
			return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) }
		}
		away := newStranger(t, answer(http.StatusUnauthorized))
		back := newStranger(t, func(w http.ResponseWriter, req *http.Request) { http.Redirect(w, req, myself, http.StatusFound) })
		leadTo := func(url string) {
			h := http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
				if req.URL.Path == "/jira/to" {
					http.Redirect(w, req, url, http.StatusFound)
					return
				}
				r.ServeHTTP(w, req)
			})
			r.instead.Store(&h)
		}
		logins = r.logins()
		leadTo("/jira/rest/api/2/myself")
		good("a redirect inside", "GET", r.front+"/jira/to", "", 200, 0, 0)
		leadTo(back.URL)
		good("a redirect away and back", "GET", r.front+"/jira/to", "", 200, 0, 0)
		if n := back.saw(t, "away and back"); n != 1 {
			t.Errorf("away and back: %d requests", n)
		}
		leadTo(away.URL)
		if o := s.do(t, "GET", r.front+"/jira/to", ""); o.Status != 401 || away.saw(t, "a redirect away") != 1 {
			t.Errorf("a redirect away: %+v", o)
		}
		r.instead.Store(nil)
		if o := s.do(t, "GET", away.URL, ""); o.Status != 401 || away.saw(t, "another host") != 1 {
			t.Errorf("another host: %+v", o)
		}
		if o := s.do(t, "GET", other+"/jira/rest/api/2/issue/LAB-1", ""); o.Status != 200 || o.User != "anonymous" {
			t.Errorf("the same server by another name: %+v", o)
		}
		if n := r.logins() - logins; n != 0 {
			t.Errorf("what others answer has made %d logins", n)
		}

		// The agent dies. Somebody is there who takes a call and ends: the service has
		// begun to ask before there is an agent again.
		must(t, a.cmd.Process.Kill())
		<-a.done
		must(t, os.Remove(r.socket))
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: r.socket, Net: "unix"})
		must(t, err)
		l.SetUnlinkOnClose(false)
		s.begin(t, 1, "GET", myself, "")
		c, err := l.Accept()
		must(t, err)
		must(t, l.Close())
		must(t, c.Close())
		a = r.start(t)
		if o := s.end(t); o.Status != 200 || o.User != "svc-build" {
			t.Errorf("the agent restarts: %+v", o)
		}

		a.stop(t)
		noSecrets(t, a)
		asked = r.requests.Load()
		if o := s.do(t, "GET", myself, ""); o.Code != "no_agent" || o.Remedy == "" || r.requests.Load() != asked {
			t.Errorf("no agent: %+v after %d requests", o, r.requests.Load()-asked)
		}
	})
}
