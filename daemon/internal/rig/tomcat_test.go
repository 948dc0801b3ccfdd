package rig_test

import (
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

// startTomcat starts Tomcat for the realm of a fresh KDC. A ticket of svc is in the
// KDC's ticket cache.
func startTomcat(t *testing.T) (*rig.Tomcat, *rig.MITKDC) {
	t.Helper()
	rig.Require(t, append(rig.TomcatNeeds(), "curl")...)
	k := startMIT(t)
	if failure := kinit(t, k, keytab(k, "svc"), "svc"); failure != "" {
		t.Fatal(failure)
	}
	s, err := rig.StartTomcat(t.Context(), t.TempDir(), rig.TomcatOptions{
		Krb5ConfFile: k.Krb5ConfFile(), KeytabFile: keytab(k, "http"),
	})
	must(t, err)
	t.Cleanup(s.Stop)
	return s, k
}

// tomcatCurl asks with a ticket, and returns the body and the status.
func tomcatCurl(t *testing.T, k *rig.MITKDC, args ...string) (body, status string) {
	t.Helper()
	out, failure := run(t, k, "curl", append([]string{"-sS", "--negotiate", "-u", ":", "-w", "\n%{http_code}"}, args...)...)
	if failure != "" {
		t.Fatal(failure)
	}
	i := strings.LastIndexByte(out, '\n')
	return strings.TrimSpace(out[:i]), out[i+1:]
}

func tomcatHits(t *testing.T, s *rig.Tomcat, prefix string) rig.Hits {
	t.Helper()
	h, err := s.Hits(t.Context(), prefix)
	must(t, err)
	return h
}

// tomcatSession logs in and returns the cookie.
func tomcatSession(t *testing.T, s *rig.Tomcat, k *rig.MITKDC) string {
	t.Helper()
	head, status := tomcatCurl(t, k, "-o", os.DevNull, "-D", "-", s.URL()+"/spn/")
	_, cookie, _ := strings.Cut(head, "Set-Cookie: ")
	cookie, attributes, _ := strings.Cut(cookie, "; ")
	if status != "200" || !strings.HasPrefix(cookie, "JSESSIONID=") || !strings.HasPrefix(attributes, "Path=/spn") {
		t.Fatalf("login: %s", head)
	}
	return cookie
}

func TestTomcat(t *testing.T) {
	s, k := startTomcat(t)
	ctx := t.Context()
	if err := s.Start(ctx); err == nil {
		t.Error("started twice")
	}
	res := get(t, s.URL()+"/open/", nil)
	if res.StatusCode != 200 || len(res.Header["Www-Authenticate"]) != 0 {
		t.Errorf("/open/: %s %v", res.Status, res.Header)
	}
	res = get(t, s.URL()+"/spn/?q=,x", nil)
	if res.StatusCode != 401 || res.Header.Get("Www-Authenticate") != "Negotiate" || res.Header.Get("Set-Cookie") != "" {
		t.Errorf("/spn/ without a ticket: %s %v", res.Status, res.Header)
	}
	if body, status := tomcatCurl(t, k, s.URL()+"/spn/whoami"); status != "200" || body != `{"user":"svc@`+realm+`"}` {
		t.Errorf("/spn/whoami: %s %s", status, body)
	}
	cookie := tomcatSession(t, s, k)
	for range 2 {
		if res := get(t, s.URL()+"/spn/", withCookie(cookie)); res.StatusCode != 200 {
			t.Errorf("with the session's cookie: %s", res.Status)
		}
	}
	get(t, s.URL()+"/spn/%0ahit%20-,-,/x", func(r *http.Request) { r.Header.Set("Authorization", "basic CANARY-x") })
	for prefix, want := range map[string]rig.Hits{
		"/spn/":       {Total: 6, Negotiate: 2, Basic: 1, Cookie: 2},
		"/spn/whoami": {Total: 1, Negotiate: 1},
		"/open/":      {Total: 1},
		"/":           {Total: 7, Negotiate: 2, Basic: 1, Cookie: 2},
		"/x":          {},
	} {
		if got := tomcatHits(t, s, prefix); got != want {
			t.Errorf("hits of %s: %+v, want %+v", prefix, got, want)
		}
	}

	for length, status := range map[int]int{7 << 10: 200, 8 << 10: 400} {
		res := get(t, s.URL()+"/open/", func(r *http.Request) { r.Header.Set("Authorization", strings.Repeat("x", length)) })
		if res.StatusCode != status {
			t.Errorf("a header of more than %d bytes: %s, want %d", length, res.Status, status)
		}
	}

	// Whatever has been answered is counted, at once.
	seen := tomcatHits(t, s, "/open/").Total
	askAtOnce(t, s.URL()+"/open/")
	if got := tomcatHits(t, s, "/open/").Total - seen; got != 200 {
		t.Errorf("%d of 200 requests counted", got)
	}

	must(t, s.ForgetSessions(ctx))
	if res := get(t, s.URL()+"/spn/", withCookie(cookie)); res.StatusCode != 401 {
		t.Errorf("a forgotten session: %s", res.Status)
	}
	cookie = tomcatSession(t, s, k)

	// What a keytab lacks is an endless challenge without a token.
	must(t, k.Rekey(ctx, "HTTP/localhost", ""))
	if failure := kinit(t, k, keytab(k, "svc"), "svc"); failure != "" {
		t.Fatal(failure)
	}
	before := tomcatHits(t, s, "/spn/")
	for range 3 {
		head, status := tomcatCurl(t, k, "-o", os.DevNull, "-D", "-", s.URL()+"/spn/")
		if status != "401" || !strings.Contains(head, "WWW-Authenticate: Negotiate\r\n") {
			t.Errorf("a key that Tomcat lacks: %s", head)
		}
	}
	if got := tomcatHits(t, s, "/spn/"); got.Negotiate < before.Negotiate+3 {
		t.Errorf("refused tokens: hits %+v, before %+v", got, before)
	}

	s.Stop()
	s.Stop()
	stopped := tomcatHits(t, s, "/")
	if conn, err := net.Dial("tcp", strings.TrimPrefix(s.URL(), "http://")); err == nil {
		conn.Close()
		t.Error("a stopped Tomcat accepts connections")
	}
	must(t, k.Keytab(ctx, keytab(k, "http"), "HTTP/localhost"))
	must(t, s.Start(ctx))
	if got := tomcatHits(t, s, "/"); got != stopped {
		t.Errorf("hits after a new start: %+v, before %+v", got, stopped)
	}
	if res := get(t, s.URL()+"/spn/", withCookie(cookie)); res.StatusCode != 401 {
		t.Errorf("a session of before Stop: %s", res.Status)
	}
	tomcatSession(t, s, k)

	s.Stop()
	l, err := net.Listen("tcp", "127.0.0.1:"+s.URL()[len("http://localhost:"):])
	must(t, err)
	defer l.Close()
	if err := s.Start(ctx); err == nil || !strings.Contains(err.Error(), "Address already in use") {
		t.Errorf("port in use: %v", err)
	}
	for _, file := range []string{"access.log", "tomcat.out"} {
		b, err := os.ReadFile(filepath.Join(s.Dir(), file))
		must(t, err)
		if text := string(b); strings.Contains(text, "CANARY-") || strings.Contains(text, "JSESSIONID=") || strings.Contains(text, "YII") {
			t.Errorf("a secret in %s", file)
		}
	}
}

// askAtOnce asks by 20 clients at once, ten times each.
func askAtOnce(t *testing.T, url string) {
	t.Helper()
	var clients sync.WaitGroup
	for range 20 {
		clients.Go(func() {
			for range 10 {
				req, err := http.NewRequestWithContext(t.Context(), "GET", url, nil)
				if err != nil {
					t.Error(err)
					return
				}
				res, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
				if err != nil {
					t.Error(err)
					return
				}
				res.Body.Close()
			}
		})
	}
	clients.Wait()
}

// A keytab with services of two realms, for any host name.
func TestTomcatHosts(t *testing.T) {
	rig.Require(t, append(rig.TomcatNeeds(), "curl")...)
	ctx := t.Context()
	a, b := startRealm(t, "ALPHA.TEST"), startRealm(t, "BETA.TEST")
	must(t, a.Trust(ctx, b))
	dir := t.TempDir()
	services := filepath.Join(dir, "http.keytab")
	for k, spn := range map[*rig.MITKDC]string{a: "HTTP/web.alpha.test", b: "HTTP/web.beta.test"} {
		must(t, k.AddService(ctx, spn))
		must(t, k.Keytab(ctx, services, spn))
	}
	s, err := rig.StartTomcat(ctx, filepath.Join(dir, "tomcat"), rig.TomcatOptions{Krb5ConfFile: a.Krb5ConfFile(), KeytabFile: services})
	must(t, err)
	t.Cleanup(s.Stop)
	must(t, rig.Krb5Conf{Realms: []rig.Realm{a, b}, Referrals: true}.WriteFile(a.Krb5ConfFile()))
	if failure := kinit(t, a, keytab(a, "svc"), "svc@ALPHA.TEST"); failure != "" {
		t.Fatal(failure)
	}
	port := s.URL()[len("http://localhost:"):]
	for _, host := range []string{"web.alpha.test", "web.beta.test"} {
		body, status := tomcatCurl(t, a, "--resolve", host+":"+port+":127.0.0.1", "http://"+host+":"+port+"/spn/whoami")
		if status != "200" || body != `{"user":"svc@ALPHA.TEST"}` {
			t.Errorf("%s: %s %s", host, status, body)
		}
	}
	_, err = rig.StartTomcat(ctx, filepath.Join(dir, "other"), rig.TomcatOptions{Krb5ConfFile: a.Krb5ConfFile(), KeytabFile: filepath.Join(dir, "none")})
	if err == nil {
		t.Error("started without a keytab")
	}
}
