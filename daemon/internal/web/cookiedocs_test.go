package web

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/publicsuffix"

	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

const cookiesPage = "../../../docs/cookies.md"

// differences are the rows of the page's table: what stands in their first column,
// and a dialogue that shows it, of whose last request the Cookie field counts.
var differences = []struct {
	what string
	said dialogue
}{
	{"`s=a b`", dialogue{"> s=a b", "<"}},
	{"`s=a,b`", dialogue{"> s=a,b", "<"}},
	{"`s=a\"b`", dialogue{`> s=a"b`, "<"}},
	{"`s=a\\b`", dialogue{`> s=a\b`, "<"}},
	{"`s={\"k\":1}`", dialogue{`> s={"k":1}`, "<"}},
	{"`s=\"a;b\"`: ends at the semicolon", dialogue{`> s="a;b"`, "<"}},
	{"`s=é`, and all bytes from 0x80", dialogue{"> s=é", "<"}},
	{"`s=a` TAB `b`", dialogue{"> s=a\tb", "<"}},
	{"`s  =  1`: white space around", dialogue{"> s  =  1", "<"}},
	{"`a b=c`: a space in the name", dialogue{"> a b=c", "<"}},
	{"`v`: no name", dialogue{"> v", "<"}},
	{"`=v`: no name", dialogue{"> =v", "<"}},
	{"`s=a` 0x01 `b`: a control byte", dialogue{"> s=a\x01b", "<"}},
	{"`s=1; x=` 0x01: a control byte in an attribute", dialogue{"> s=1; x=\x01", "<"}},
	{"4097 bytes of name and value", dialogue{"> s=" + strings.Repeat("x", 4096), "<"}},
	{"a Path of 1025 bytes, at `/a/b`", dialogue{"> s=1; Path=/" + strings.Repeat("x", 1024), "<"}},
	{"200 cookies for a host, 20 a response", many20()},
	{"`Max-Age=+60; Expires=` a past date", dialogue{"> s=1; Max-Age=+60; Expires=Thu, 01 Jan 1970 00:00:00 GMT", "<"}},
	{"`Expires=Thu Jan 1 00:00:00 1970`: such a date is past", dialogue{"> s=1; Expires=Thu Jan 1 00:00:00 1970", "<"}},
	{"`Expires=1 Jan 1970 00:00`: no date without seconds", dialogue{"> s=1; Expires=1 Jan 1970 00:00", "<"}},
	{"`Expires=31 Jun 1970 00:00:00 GMT`: no such day", dialogue{"> s=1; Expires=31 Jun 1970 00:00:00 GMT", "<"}},
	{"`Domain=corp.example; Domain=`, at another host", dialogue{"> s=1; Domain=corp.example; Domain=", "https://wiki.corp.example/a/b <"}},
	{"`Domain=.`", dialogue{"> s=1; Domain=.", "<"}},
	{"`Domain=bücher.example`, not as an A-label", dialogue{"https://www.xn--bcher-kva.example/ > s=1; Domain=bücher.example", "https://www.xn--bcher-kva.example/ <"}},
	{"github.io, a public suffix, sets `Domain=github.io`; below it", dialogue{"https://github.io/ > s=1; Domain=github.io", "https://x.github.io/ <"}},
	{"`s=1` and `s=2`, one with `Domain=` the host", dialogue{"> s=1; Domain=app.corp.example", "> s=2", "<"}},
	{"the host with a dot at its end sets, the host without asks", dialogue{"https://app.corp.example./a/b > s=1", "<"}},
	{"`Path = /a/b`, at `/a`", dialogue{"> s=1; Path = /a/b", "https://app.corp.example/a <"}},
	{"`Path=/a/`, at `/a`", dialogue{"> s=1; Path=/a/", "https://app.corp.example/a <"}},
	{"`Path=\"/c\"`, at `/a/b`", dialogue{`> s=1; Path="/c"`, "<"}},
	{"`Path=/a%62`, at `/a%62`", dialogue{"> s=1; Path=/a%62", "https://app.corp.example/a%62 <"}},
	{"set at `/a%2Fb/c` without Path, at `/a/b/`", dialogue{"https://app.corp.example/a%2Fb/c > s=1", "https://app.corp.example/a/b/ <"}},
	{"order: `a`, `b`, then `a` again", dialogue{"> a=1", "> b=2", "> a=3", "<"}},
	{"order: `a` with Domain, then `bb`", dialogue{"> a=1; Domain=corp.example", "> bb=2", "<"}},
	{"`SameSite=None` without Secure", dialogue{"> s=1; SameSite=None", "<"}},
	{"`__Secure-s=1` without Secure", dialogue{"> __Secure-s=1", "<"}},
	{"`__Host-s=1; Secure` without Path", dialogue{"> __Host-s=1; Secure", "<"}},
	{"`__host-s=1; Secure; Path=/; Domain=` the host", dialogue{"> __host-s=1; Secure; Path=/; Domain=app.corp.example", "<"}},
	{"`__Http-s=1; Secure` without HttpOnly", dialogue{"> __Http-s=1; Secure", "<"}},
	{"`s=1; Secure; Domain=corp.example` over http, at https", dialogue{"http://app.corp.example/ > s=1; Secure; Domain=corp.example", "https://app.corp.example/ <"}},
	{"`s=1; Secure` over http at localhost", dialogue{"http://localhost/ > s=1; Secure", "http://localhost/ <"}},
	{"over https `s=1; Secure`, over http `s=2`, both with Domain", dialogue{"> s=1; Secure; Domain=corp.example", "http://app.corp.example/a/b > s=2; Domain=corp.example", "<"}},
	{"over https `s=1; Secure` with Domain, over http `s=2` without; at http", dialogue{"> s=1; Secure; Domain=corp.example", "http://app.corp.example/a/b > s=2", "http://app.corp.example/a/b <"}},
	{"over https `s=1; Secure`, deleted over http", dialogue{"> s=1; Secure; Domain=corp.example", "http://app.corp.example/a/b > s=; Domain=corp.example; Max-Age=0", "<"}},
	{"over https `s=1`, over http `s=2`, both with Domain", dialogue{"> s=1; Domain=corp.example", "http://app.corp.example/a/b > s=2; Domain=corp.example", "<"}},
	{"set over https without Secure, at http", dialogue{"> s=1", "http://app.corp.example/a/b <"}},
	{"set over https with Domain, without Secure, at http", dialogue{"> s=1; Domain=corp.example", "http://app.corp.example/a/b <"}},
	{"set over http, at https", dialogue{"http://app.corp.example/a/b > s=1", "<"}},
	{"set at port 8443, at port 443", dialogue{"https://app.corp.example:8443/ > s=1", "https://app.corp.example/ <"}},
	{"set at port 443 of 127.0.0.1 with `Domain=127.0.0.1`, at port 8443", dialogue{"https://127.0.0.1/ > s=1; Domain=127.0.0.1", "https://127.0.0.1:8443/ <"}},
}

func many20() dialogue {
	var d dialogue
	for i := range 10 {
		d = append(d, "> "+strings.Join(flood(fmt.Sprintf("s%d-", i), 20, ""), "\n"))
	}
	return append(d, "<")
}

// A saying is one request, and the Set-Cookie fields of its response.
type saying struct {
	url   string
	lines []string
}

func (d dialogue) sayings() []saying {
	var all []saying
	for _, step := range d {
		s := saying{url: rfcSite}
		if strings.HasPrefix(step, "http") {
			s.url, step, _ = strings.Cut(step, " ")
		}
		if line, ok := strings.CutPrefix(step, "> "); ok {
			s.lines = strings.Split(line, "\n")
		}
		all = append(all, s)
	}
	return all
}

// stage plays the server of all names: http at one port, https at another. It says
// its Set-Cookie fields raw, one saying a request, and notes each Cookie field.
type stage struct {
	plain, secure string // ports
	trusted       *tls.Config

	mu    sync.Mutex
	said  []saying
	heard []string
}

func newStage(t *testing.T) *stage {
	s := new(stage)
	a, b := httptest.NewServer(s), httptest.NewTLSServer(s)
	t.Cleanup(a.Close)
	t.Cleanup(b.Close)
	s.plain, s.secure = at(t, a.URL).Port(), at(t, b.URL).Port()
	s.trusted = trusting(b)
	return s
}

// trusting is for a client that knows the certificate of a server and calls it by
// many names.
func trusting(s *httptest.Server) *tls.Config {
	known := x509.NewCertPool()
	known.AddCert(s.Certificate())
	return &tls.Config{RootCAs: known, ServerName: "example.com"} // as httptest has it
}

func (s *stage) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var b bytes.Buffer
	b.WriteString("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n")
	if len(s.heard) < len(s.said) {
		for _, line := range s.said[len(s.heard)].lines {
			b.WriteString("Set-Cookie: " + line + "\r\n")
		}
	}
	b.WriteString("\r\n")
	s.heard = append(s.heard, strings.Join(r.Header["Cookie"], " AND "))
	conn, _, err := w.(http.Hijacker).Hijack()
	if err != nil {
		return
	}
	defer conn.Close()
	if _, err := conn.Write(b.Bytes()); err != nil {
		return // the client says so
	}
}

// ask has a visitor make all requests of a dialogue and returns what it sent with
// the last one, as it stands in the table.
func (s *stage) ask(t *testing.T, d dialogue, visit func(*testing.T, []saying) error) string {
	t.Helper()
	s.mu.Lock()
	s.said, s.heard = d.sayings(), nil
	s.mu.Unlock()
	if err := visit(t, s.said); err != nil {
		t.Log(err)
		return "no answer"
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.heard) != len(s.said) {
		t.Fatalf("%d requests of %d", len(s.heard), len(s.said))
	}
	return cell(s.heard[len(s.heard)-1])
}

// cell is a Cookie field as it stands in the table.
func cell(cookies string) string {
	switch n := strings.Count(cookies, ";") + 1; {
	case cookies == "":
		return "nothing"
	case n > 9:
		return fmt.Sprintf("%d cookies", n)
	case len(cookies) > 99:
		return "sent"
	}
	return "`" + strings.ReplaceAll(cookies, "\t", "` TAB `") + "`"
}

func (s *stage) client(jar http.CookieJar) *http.Client {
	return &http.Client{Jar: jar, Transport: &http.Transport{
		DisableKeepAlives: true,
		TLSClientConfig:   s.trusted,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			_, port, _ := net.SplitHostPort(address)
			if port == "80" {
				port = s.plain
			} else {
				port = s.secure
			}
			return new(net.Dialer).DialContext(ctx, network, "127.0.0.1:"+port)
		},
	}}
}

// ours visits with the agent's jar.
func (s *stage) ours(t *testing.T, said []saying) error {
	var jar Jar
	client := s.client(nil)
	return visit(t, said, client, func(r *http.Request) {
		if h := jar.Header(r.URL, time.Now()); h != "" {
			r.Header.Set("Cookie", h)
		}
	}, func(r *http.Response) {
		jar.Set(r.Request.URL, r.Header["Set-Cookie"], time.Now())
	})
}

// netHTTP visits with net/http's.
func (s *stage) netHTTP(t *testing.T, said []saying) error {
	jar, err := cookiejar.New(&cookiejar.Options{PublicSuffixList: publicsuffix.List})
	if err != nil {
		t.Fatal(err)
	}
	return visit(t, said, s.client(jar), func(*http.Request) {}, func(*http.Response) {})
}

func visit(t *testing.T, said []saying, client *http.Client, before func(*http.Request), after func(*http.Response)) error {
	for _, x := range said {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, x.url, nil)
		if err != nil {
			return err
		}
		before(r)
		res, err := client.Do(r)
		if err != nil {
			return err
		}
		res.Body.Close()
		after(res)
	}
	return nil
}

// curl visits with curl, all requests in one process.
func (s *stage) curl(t *testing.T, said []saying) error {
	args := []string{"-q", "-sS", "--insecure", "--path-as-is", "--globoff", "--noproxy", "*", "--cookie", ""}
	for port, to := range map[string]string{"80": s.plain, "443": s.secure, "8443": s.secure} {
		args = append(args, "--connect-to", ":"+port+":127.0.0.1:"+to)
	}
	for _, x := range said {
		args = append(args, x.url)
	}
	cmd := exec.CommandContext(t.Context(), "curl", args...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// The columns of the table.
const (
	whatColumn = iota
	hereColumn
	browserColumn
	curlColumn
	netHTTPColumn
	columns
)

// table returns the rows of the page's table, by their first cell.
func table(t *testing.T) map[string][]string {
	t.Helper()
	page, err := os.ReadFile(cookiesPage)
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string][]string{}
	for line := range strings.Lines(string(page)) {
		line, ok := strings.CutPrefix(strings.TrimSpace(line), "| ")
		if cells := strings.Split(strings.TrimSuffix(line, " |"), " | "); ok && len(cells) == columns && cells[0] != "what" {
			if rows[cells[0]] != nil {
				t.Errorf("%s stands there twice", cells[0])
			}
			rows[cells[0]] = cells
		}
	}
	return rows
}

// column holds a column of the table to what a visitor sends.
func column(t *testing.T, column int, visitor func(*stage, *testing.T, []saying) error) {
	rows, s := table(t), newStage(t)
	for _, d := range differences {
		row := rows[d.what]
		if row == nil {
			t.Errorf("the page has no row %q", d.what)
			continue
		}
		if got := s.ask(t, d.said, func(t *testing.T, said []saying) error { return visitor(s, t, said) }); got != row[column] {
			t.Errorf("%s: %s, and the page says %s", d.what, got, row[column])
		}
	}
}

// TestCookiesPage: what docs/cookies.md says of the agent and of net/http is so, it
// has a row for each difference and no other, and names the limits.
func TestCookiesPage(t *testing.T) {
	t.Run("here", func(t *testing.T) { column(t, hereColumn, (*stage).ours) })
	t.Run("net/http", func(t *testing.T) { column(t, netHTTPColumn, (*stage).netHTTP) })
	rows := table(t)
	for what, row := range rows {
		if !slices.ContainsFunc(row[browserColumn:], func(c string) bool { return c != row[hereColumn] }) {
			t.Errorf("%s: no difference", what)
		}
		if !slices.ContainsFunc(differences, func(d struct {
			what string
			said dialogue
		}) bool {
			return d.what == what
		}) {
			t.Errorf("%s: not tried", what)
		}
	}
	page, err := os.ReadFile(cookiesPage)
	if err != nil {
		t.Fatal(err)
	}
	for _, limit := range []string{
		fmt.Sprintf("%d bytes of name and value", maxCookieSize), fmt.Sprintf("attribute's value %d bytes", maxAttributeSize),
		fmt.Sprintf("%d days", maxCookieLife/24/time.Hour), fmt.Sprintf("%d for one host", maxOfDomain), fmt.Sprintf("%d in a session", maxCookies),
		fmt.Sprintf("%d KiB", maxJarSize>>10), fmt.Sprintf("%d KiB of one Set-Cookie", maxEntrySize>>10),
	} {
		if !strings.Contains(strings.Join(strings.Fields(string(page)), " "), limit) {
			t.Errorf("the page does not say %q", limit)
		}
	}
}

// TestCookiesPageCurl: what docs/cookies.md says of curl is so.
func TestCookiesPageCurl(t *testing.T) {
	rig.Require(t, "curl")
	column(t, curlColumn, (*stage).curl)
	if t.Failed() {
		version, _ := exec.CommandContext(t.Context(), "curl", "--version").Output()
		t.Logf("the page is about another curl than this one: %s", version)
	}
}
