package e2e

import (
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/sessionctl/sessionctl/client/clienttest"
	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

const curlPage = "docs/curl.md"

// TestCurlLife: `curl` with a session that is cold, warm, expired, refused, and
// without an agent; the secret is in no argument and not in the environment.
func TestCurlLife(t *testing.T) {
	rig.Require(t, "curl")
	r := newReader(t)
	r.configure(t, "docs/jira.md", 0)
	dir := t.TempDir()
	curl := func(args ...string) result {
		return finish(t, r.command(t, dir, append([]string{filepath.Join(bin, "sessionctl"), "curl", "jira", "-sS", "--fail"}, args...)...), "")
	}
	if got := curl("rest/api/2/myself"); got.status != 125 || got.stdout != "" || !strings.Contains(got.stderr, "(no_agent)") {
		t.Errorf("no agent: %v", got)
	}
	r.start(t)
	r.spyOn(t, "curl")
	for _, c := range []struct {
		state, url string
		logins     int
	}{{"cold", "rest/api/2/myself", 1}, {"warm", "/rest/api/2/myself", 0}, {"warm, in full", r.front + "/jira/rest/api/2/myself", 0}} {
		before := r.logins()
		if got := curl(c.url); got.status != 0 || !strings.Contains(got.stdout, `"svc-build"`) || got.stderr != "" {
			t.Errorf("%s: %v", c.state, got)
		}
		if n := r.logins() - before; n != c.logins {
			t.Errorf("%s: %d logins", c.state, n)
		}
	}
	cookie := strings.TrimSpace(r.ok(t, "raw", "jira"))
	for _, pair := range strings.Split(cookie, "; ") {
		_, value, _ := strings.Cut(pair, "=")
		if seen := r.spied(t, "arguments") + r.spied(t, "environment"); len(value) > 8 && strings.Contains(seen, value) {
			t.Errorf("curl was called with %s", seen)
		}
	}
	r.DropSessions()
	if got := curl("rest/api/2/myself"); got.status != 22 { // curl's own, for 401
		t.Errorf("expired: %v", got)
	}
	page := r.here(sectionBlock(t, curlPage, "Expiry and refusal", "sh"))
	if got := finish(t, r.command(t, dir, "sh", "-ec", page), ""); got.status != 0 || !strings.Contains(got.stdout, `"svc-build"`) {
		t.Errorf("after the page's commands: %v", got)
	}
	if got := finish(t, r.command(t, dir, filepath.Join(bin, "sessionctl"), "curl", "nothing", "x"), ""); got.status != 125 || got.stdout != "" || !strings.Contains(got.stderr, "(unknown_site)") {
		t.Errorf("not a site: %v", got)
	}
}

// TestCurlWithout: the key is refused, once, and curl does not run.
func TestCurlWithout(t *testing.T) {
	rig.Require(t, "curl")
	r := newReader(t)
	r.configure(t, "docs/jira.md", 0)
	r.kdc.Rekey("svc-build", "CANARY-other")
	r.start(t)
	for _, code := range []string{"bad_credentials", "latched", "latched"} {
		got := r.sessionctl(t, "curl", "jira", "-sS", "rest/api/2/myself")
		if got.status != 125 || got.stdout != "" || !strings.Contains(got.stderr, "("+code+")") || !strings.Contains(got.stderr, "sessionctl login jira --retry") {
			t.Errorf("refused, %s: %v", code, got)
		}
	}
	if n := r.kdc.Counts().PreauthFailed; n != 1 || r.requests.Load() != 0 {
		t.Errorf("refused: %d attempts, %d requests", n, r.requests.Load())
	}
}

// TestCurlPage runs what docs/curl.md has.
func TestCurlPage(t *testing.T) {
	rig.Require(t, "curl")
	r := newReader(t)
	r.configure(t, "docs/jira.md", 0)
	r.start(t)
	dir := t.TempDir()
	cookie := strings.TrimSpace(r.ok(t, "raw", "jira"))
	for i, text := range blocks(t, curlPage, "sh") {
		got := finish(t, r.command(t, dir, "sh", "-ec", r.here(text.text)), "")
		want := `"svc-build"`
		if i == 1 {
			want = `"key":"LAB-`
		}
		if got.status != 0 || !strings.Contains(got.stdout, want) {
			t.Errorf("%s: %v", text.text, got)
		}
		if strings.Contains(got.stdout, cookie) || i == 0 && !strings.Contains(got.stdout, "JIRA_COOKIE=[redacted]\n") {
			t.Errorf("not redacted: %v", got)
		}
	}
	made := finish(t, r.command(t, dir, filepath.Join(bin, "sessionctl"), "curl", "jira", "-sS", "-H", "Content-Type: application/json", "-d", "@-", "rest/api/2/issue"),
		`{"fields":{"project":{"key":"LAB"},"summary":"x","issuetype":{"name":"Bug"}}}`)
	if made.status != 0 || !strings.Contains(made.stdout, "LAB-") || r.Counts().Created != 2 {
		t.Errorf("from standard input: %v", made)
	}
	shown := sectionBlock(t, curlPage, "What curl is not told", "console")
	line, want, _ := strings.Cut(strings.TrimPrefix(shown, "$ "), "\n")
	if got := finish(t, r.command(t, dir, "sh", "-c", line), ""); got.status != 125 || got.stdout != "" || strings.TrimSpace(got.stderr) != strings.TrimSpace(want) {
		t.Errorf("%s: %v", line, got)
	}
}

// curlWorld is an agent that has a session for a server, which leads to
// strangers.
type curlWorld struct {
	r     *reader
	agent *clienttest.Agent
	right atomic.Int32 // requests to the site with the session
}

func newCurlWorld(t *testing.T) *curlWorld {
	rig.Require(t, "curl")
	agent, err := clienttest.Start()
	must(t, err)
	t.Cleanup(func() { must(t, agent.Close()) })
	return &curlWorld{r: &reader{home: &home{socket: agent.Socket()}, spy: t.TempDir()}, agent: agent}
}

const curlCookie = "JSESSIONID=CANARY-0123456789; short=1"

// site serves the session's owner; where /to/CODE/N leads is told by targets.
func (w *curlWorld) site(t *testing.T, name string, secure bool, targets func() []string) (ca string) {
	t.Helper()
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, q *http.Request) {
		if q.Header.Get("Cookie") == curlCookie {
			w.right.Add(1)
		}
		var code, n int
		if _, err := fmt.Sscanf(q.URL.Path, "/app/to/%d/%d", &code, &n); err == nil {
			rw.Header().Set("Location", targets()[n])
			rw.WriteHeader(code)
			return
		}
		fmt.Fprintf(rw, "%s %q\n", q.URL.Path, q.Header.Get("Cookie"))
	}))
	s.Config.ErrorLog = log.New(io.Discard, "", 0) // of clients that do not trust it
	scheme := "http"
	if secure {
		s.TLS, ca = certified(t)
		s.StartTLS()
		scheme = "https"
	} else {
		s.Start()
	}
	t.Cleanup(s.Close)
	_, port, err := net.SplitHostPort(s.Listener.Addr().String())
	must(t, err)
	w.agent.AddSite(clienttest.Site{Name: name, URL: scheme + "://localhost:" + port + "/app", Login: func() (clienttest.Session, error) {
		return clienttest.Session{Header: http.Header{"Cookie": {curlCookie}}}, nil
	}})
	return ca
}

func (w *curlWorld) curl(t *testing.T, name string, args ...string) result {
	t.Helper()
	return finish(t, w.r.command(t, t.TempDir(), append([]string{filepath.Join(bin, "sessionctl"), "curl", name, "-sS", "--max-time", "20"}, args...)...), "")
}

// TestCurlRedirects: led to another port, name or scheme by any redirect, curl
// does not take the session there.
func TestCurlRedirects(t *testing.T) {
	w := newCurlWorld(t)
	stranger := newStranger(t, func(rw http.ResponseWriter, _ *http.Request) { fmt.Fprintln(rw, "stranger") })
	_, port, err := net.SplitHostPort(stranger.Listener.Addr().String())
	must(t, err)
	targets := []string{"http://localhost:" + port + "/port", "http://127.0.0.1:" + port + "/host", "//127.0.0.1:" + port + "/relative", "/app/here"}
	w.site(t, "plain", false, func() []string { return targets })
	ca := w.site(t, "tls", true, func() []string { return targets })
	for _, code := range []int{301, 302, 303, 307, 308} {
		for n, target := range targets {
			path := fmt.Sprintf("to/%d/%d", code, n)
			if got := w.curl(t, "plain", "-L", "-d", "body", path); got.status != 0 {
				t.Errorf("%d to %s: %v", code, target, got)
			} else if strings.HasPrefix(target, "/app") && !strings.Contains(got.stdout, curlCookie) {
				t.Errorf("%d on the same site: %v", code, got)
			}
			if saw, want := stranger.saw(t, path), 1; n < 3 && saw != want {
				t.Errorf("%d to %s: the stranger got %d requests", code, target, saw)
			}
		}
		if got := w.curl(t, "tls", "-L", "--cacert", ca, fmt.Sprintf("to/%d/0", code)); got.status != 1 || stranger.saw(t, "from https") != 0 {
			t.Errorf("from https to http: %v", got)
		}
	}
	if got := w.curl(t, "tls", "--cacert", ca, "here"); got.status != 0 || !strings.Contains(got.stdout, curlCookie) {
		t.Errorf("https: %v", got)
	}
	if got := w.curl(t, "tls", "here"); got.status != 60 {
		t.Errorf("an unknown CA: %v", got)
	}
}

// TestCurlRefuses: nothing that could lead the session elsewhere is passed on,
// and what is refused is not repeated.
func TestCurlRefuses(t *testing.T) {
	w := newCurlWorld(t)
	stranger := newStranger(t, func(http.ResponseWriter, *http.Request) {})
	w.site(t, "plain", false, nil)
	elsewhere := stranger.URL + "/x"
	host := strings.TrimPrefix(stranger.URL, "http://")
	conf := write(t, filepath.Join(t.TempDir(), "rc"), "url = "+elsewhere+"\nlocation-trusted\n")
	for _, args := range [][]string{
		{elsewhere}, {"x", elsewhere}, {"x", "--", elsewhere}, {"--url", elsewhere, "x"}, {"x", "--next", elsewhere}, {"x", "-:", elsewhere}, {"-K", conf, "x"}, {"-sK" + conf, "x"},
		{"--config", conf, "x"}, {"-x", stranger.URL, "x"}, {"-x" + stranger.URL, "x"}, {"--proxy", stranger.URL, "x"}, {"--preproxy", stranger.URL, "x"}, {"--socks5", host, "x"},
		{"--connect-to", "::" + host, "x"}, {"--resolve", "localhost:80:127.0.0.1", "x"}, {"--location-trusted", "x"}, {"--location-t", "x"}, {"--locat", "x"},
		{"-k", "x"}, {"-sSkL", "x"}, {"--insecure", "x"}, {"-b", "a=CANARY-b", "x"}, {"-c", "jar", "x"}, {"-u", "a:CANARY-p", "x"}, {"-n", "x"}, {"--netrc", "x"}, {"-v", "x"}, {"-sv", "x"},
		{"--trace", "-", "x"}, {"--trace-ascii=-", "x"}, {"--libcurl", "x.c", "x"}, {"--unix-socket", "/x", "x"}, {"--abstract-unix-socket", "x", "x"}, {"--proxy-header", "A: b", "x"},
		{"--oauth2-bearer", "CANARY-t", "x"}, {"--CANARY-option", "x"}, {"-H", "cookie: a=CANARY-1", "x"}, {"-HCookie: CANARY", "x"}, {"-sHAuthorization: CANARY", "x"}, {"--header", "Cookie;", "x"},
		{"-H", "Cookie : a", "x"}, {"--proto-redir", "=all", "x"}, {"-q", "x"}, {"-d"}, {"x", "-d"}, {}, {"-s"}, {"http://localhost:1@" + host + "/"}, {"a b"}, {"a\\b"}, {"a\nb"}, {"ftp://x/"}, {"-" + "Z", "x"}, {"--parallel", "x"},
		{"-H", "Host: CANARY.example", "x"}, {"-H", "host:CANARY", "x"}, {"-H", "@" + conf, "x"}, {"-H@" + conf, "x"}, {"-H", "X: 1\r\nCookie: CANARY=2", "x"}, {"-A", "x\nCookie: CANARY=2", "x"},
		{"-X", "GET / HTTP/1.1\r\nX: CANARY", "x"}, {"--hsts", "x", "x"}, {"--doh-url", elsewhere, "x"}, {"--dns-servers", "127.0.0.1", "x"}, {"--interface", "lo", "x"}, {"--variable", "%X", "x"}, {"--expand-url", "x", "x"}, {"--haproxy-protocol", "x"},
	} {
		got := w.curl(t, "plain", args...)
		if got.status != 125 || got.stdout != "" || !strings.Contains(got.stderr, "(invalid_request)\n  next: ") || strings.Contains(got.stderr, "CANARY") {
			t.Errorf("%q: %v", args, got)
		}
	}
	if n := w.right.Load(); n != 0 {
		t.Errorf("the site got %d requests", n)
	}
	// A path that looks like more stays a path; a curlrc and a proxy have no say.
	must(t, os.WriteFile(filepath.Join(w.r.spy, ".curlrc"), []byte("location-trusted\nurl = "+elsewhere+"\n"), 0o600))
	for _, path := range []string{"//" + host + "/x", "/" + host, "x[1-3]", "to?u=" + elsewhere, "@" + host, ":80/", "..//" + host, "#http://" + host} {
		cmd := w.r.command(t, t.TempDir(), filepath.Join(bin, "sessionctl"), "curl", "plain", "-sS", path)
		cmd.Env = append(cmd.Env, "HOME="+w.r.spy, "CURL_HOME="+w.r.spy, "http_proxy="+stranger.URL, "ALL_PROXY="+stranger.URL)
		if got := finish(t, cmd, ""); got.status != 0 || !strings.Contains(got.stdout, curlCookie) {
			t.Errorf("%s: %v", path, got)
		}
	}
	if n := w.right.Load(); n != 8 {
		t.Errorf("the site got %d requests with the session", n)
	}
	if n := stranger.saw(t, "refused"); n != 0 {
		t.Errorf("a stranger got %d requests", n)
	}
}
