package rig_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

// startApache starts Apache for the realm of a fresh KDC. A ticket of svc is in
// the KDC's ticket cache.
func startApache(t *testing.T, maxAge time.Duration) (*rig.Apache, *rig.MITKDC) {
	t.Helper()
	rig.Require(t, "apache2", "mod_auth_gssapi", "mod_ssl", "curl")
	k := startMIT(t)
	if failure := kinit(t, k, keytab(k, "svc"), "svc"); failure != "" {
		t.Fatal(failure)
	}
	a, err := rig.StartApache(t.Context(), t.TempDir(), rig.ApacheOptions{
		Krb5ConfFile: k.Krb5ConfFile(), KeytabFile: keytab(k, "http"), SessionMaxAge: maxAge,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Stop)
	return a, k
}

type answer struct {
	status, user, location, body string
	challenges                   []string
}

// curl asks with a ticket. Options before the URL are added.
func curl(t *testing.T, a *rig.Apache, k *rig.MITKDC, args ...string) answer {
	t.Helper()
	head := filepath.Join(t.TempDir(), "head")
	args = append([]string{"-sS", "--negotiate", "-u", ":", "-D", head, "--cacert", a.CAFile()}, args...)
	body, failure := run(t, k, "curl", args...)
	if failure != "" {
		t.Fatal(failure)
	}
	b, err := os.ReadFile(head)
	must(t, err)
	got := answer{body: strings.TrimSpace(body)}
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSpace(line)
		if version, status, ok := strings.Cut(line, " "); ok && strings.HasPrefix(version, "HTTP/") {
			got = answer{status: status[:3], body: got.body}
		}
		switch name, value, _ := strings.Cut(line, ": "); name {
		case "X-Remote-User":
			got.user = value
		case "Location":
			got.location = value
		case "WWW-Authenticate":
			scheme, _, _ := strings.Cut(value, " ")
			got.challenges = append(got.challenges, scheme)
		}
	}
	return got
}

func hits(t *testing.T, a *rig.Apache, prefix string) rig.Hits {
	t.Helper()
	h, err := a.Hits(prefix)
	must(t, err)
	return h
}

// get asks without a ticket, as a client without Kerberos would.
func get(t *testing.T, url string, edit func(*http.Request)) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "GET", url, nil)
	must(t, err)
	if edit != nil {
		edit(req)
	}
	tr := &http.Transport{DisableKeepAlives: true}
	res, err := tr.RoundTrip(req)
	must(t, err)
	defer res.Body.Close()
	_, err = io.Copy(io.Discard, res.Body)
	must(t, err)
	return res
}

func TestApachePages(t *testing.T) {
	a, k := startApache(t, 0)
	for _, page := range []string{"/spnego/", "/nosess/", "/basic/"} {
		for _, base := range []string{a.URL(), a.TLSURL()} {
			if got := curl(t, a, k, base+page); got.status != "200" || got.user != "svc@"+realm {
				t.Errorf("%s%s: %+v", base, page, got)
			}
			if got := curl(t, a, k, base+page+"whoami"); got.body != `{"user":"svc@`+realm+`"}` {
				t.Errorf("%s%swhoami: %+v", base, page, got)
			}
		}
	}
	if got := curl(t, a, k, a.URL()+"/deny/"); got.status != "401" {
		t.Errorf("/deny/: %+v", got)
	}
	if got := curl(t, a, k, a.URL()+"/redir/1"); got.status != "302" || got.location != a.URL()+"/spnego/" {
		t.Errorf("/redir/1: %+v", got)
	}
	_, port, err := net.SplitHostPort(strings.TrimPrefix(a.URL(), "http://"))
	must(t, err)
	if got := curl(t, a, k, a.URL()+"/redir/foreign"); got.status != "302" || got.location != "http://127.0.0.1:"+port+"/spnego/" {
		t.Errorf("/redir/foreign: %+v", got)
	}

	for from, to := range map[string]string{
		a.URL() + "/redir/tls": a.TLSURL() + "/spnego/",
		a.TLSURL() + "/tohttp": a.URL() + "/spnego/",
	} {
		if got := curl(t, a, k, from); got.status != "302" || got.location != to {
			t.Errorf("%s: %+v, want %s", from, got, to)
		}
	}

	for page, want := range map[string]string{
		"/plain/": "", "/spnego/": "Negotiate", "/nosess/": "Negotiate", "/basic/": "Negotiate,Basic", "/deny/": "Negotiate",
	} {
		var schemes []string
		res := get(t, a.URL()+page, nil)
		for _, challenge := range res.Header.Values("WWW-Authenticate") {
			scheme, _, _ := strings.Cut(challenge, " ")
			schemes = append(schemes, scheme)
		}
		if got := strings.Join(schemes, ","); got != want || (res.StatusCode == 401) != (want != "") {
			t.Errorf("%s without a ticket: %s, challenges %q, want %q", page, res.Status, got, want)
		}
	}
	res := get(t, a.URL()+"/basic/", func(r *http.Request) { r.SetBasicAuth("svc", "CANARY-svc") })
	if res.StatusCode != 200 || res.Header.Get("X-Remote-User") != "svc@"+realm {
		t.Errorf("/basic/ with a password: %s, %q", res.Status, res.Header.Get("X-Remote-User"))
	}
	res = get(t, a.URL()+"/basic/", func(r *http.Request) { r.SetBasicAuth("svc", "CANARY-wrong") })
	if res.StatusCode != 401 {
		t.Errorf("/basic/ with a wrong password: %s", res.Status)
	}
}

func TestApacheTLS(t *testing.T) {
	a, _ := startApache(t, 0)
	pem, err := os.ReadFile(a.CAFile())
	must(t, err)
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		t.Fatal("no certificate in CAFile")
	}
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, DisableKeepAlives: true}
	req, err := http.NewRequestWithContext(t.Context(), "GET", a.TLSURL()+"/plain/", nil)
	must(t, err)
	res, err := tr.RoundTrip(req)
	must(t, err)
	res.Body.Close()
	if res.StatusCode != 200 {
		t.Error(res.Status)
	}
	if res, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req); err == nil {
		res.Body.Close()
		t.Error("accepted without the authority")
	}
}

func TestApacheHits(t *testing.T) {
	a, k := startApache(t, 0)
	jar := filepath.Join(t.TempDir(), "jar")
	get(t, a.URL()+"/spnego/?q=,x", nil) // a challenge
	// curl sends the token at once, without waiting for a challenge.
	if got := curl(t, a, k, "-c", jar, a.URL()+"/spnego/"); got.status != "200" {
		t.Errorf("login: %+v", got)
	}
	get(t, a.URL()+"/spnego/whoami", func(r *http.Request) { r.Header.Set("Cookie", "a=b") })
	get(t, a.URL()+"/basic/", func(r *http.Request) { r.SetBasicAuth("svc", "CANARY-svc") })
	get(t, a.URL()+"/nosess/,hit,", func(r *http.Request) { r.Header.Set("Authorization", "Bearer x") })
	for prefix, want := range map[string]rig.Hits{
		"/spnego/":       {Total: 3, Negotiate: 1, Cookie: 1},
		"/spnego/whoami": {Total: 1, Cookie: 1},
		"/basic/":        {Total: 1, Basic: 1},
		"/nosess/,":      {Total: 1},
		"/plain/":        {},
		"/":              {Total: 5, Negotiate: 1, Basic: 1, Cookie: 1},
	} {
		if got := hits(t, a, prefix); got != want {
			t.Errorf("%s: %+v, want %+v", prefix, got, want)
		}
	}
	for _, file := range []string{"error.log", "apache2.out"} {
		b, err := os.ReadFile(filepath.Join(a.Dir(), file))
		must(t, err)
		if s := string(b); strings.Contains(s, "CANARY-") || strings.Contains(s, "MagBearerToken") || strings.Contains(s, "Negotiate YII") {
			t.Errorf("a secret in %s", file)
		}
	}
}

// session logs in at /spnego/ and returns the cookie.
func session(t *testing.T, a *rig.Apache, k *rig.MITKDC) string {
	t.Helper()
	jar := filepath.Join(t.TempDir(), "jar")
	if got := curl(t, a, k, "-c", jar, a.URL()+"/spnego/"); got.status != "200" {
		t.Fatalf("login: %+v", got)
	}
	b, err := os.ReadFile(jar)
	must(t, err)
	for line := range strings.Lines(string(b)) {
		if fields := strings.Split(strings.TrimSpace(line), "\t"); len(fields) == 7 && fields[5] == "gssapi_session" {
			return fields[5] + "=" + fields[6]
		}
	}
	t.Fatal("no session cookie")
	return ""
}

func withCookie(cookie string) func(*http.Request) {
	return func(r *http.Request) { r.Header.Set("Cookie", cookie) }
}

func TestApacheRestart(t *testing.T) {
	a, k := startApache(t, 0)
	cookie := session(t, a, k)
	for _, step := range []struct {
		name   string
		do     func() error
		status int
	}{
		{"as it is", func() error { return nil }, 200},
		{"stopped and started", func() error { a.Stop(); return a.Start(t.Context()) }, 200},
		{"restarted with the same key", func() error { return a.Restart(t.Context(), false) }, 200},
		{"restarted with a new key", func() error { return a.Restart(t.Context(), true) }, 401},
	} {
		must(t, step.do())
		res := get(t, a.URL()+"/spnego/", withCookie(cookie))
		if res.StatusCode != step.status {
			t.Errorf("%s: %s, want %d", step.name, res.Status, step.status)
		}
	}
	if got := hits(t, a, "/spnego/"); got.Total != 5 || got.Cookie != 4 {
		t.Errorf("counts over restarts: %+v", got)
	}
	if res := get(t, a.URL()+"/nosess/", withCookie(session(t, a, k))); res.StatusCode != 401 {
		t.Errorf("/nosess/ with the cookie of /spnego/: %s", res.Status)
	}
	if err := a.Start(t.Context()); err == nil {
		t.Error("started twice")
	}
	a.Stop()
	if conn, err := net.Dial("tcp", strings.TrimPrefix(a.URL(), "http://")); err == nil {
		conn.Close()
		t.Error("a stopped Apache accepts connections")
	}
}

// The end of the session's second is on the server's own clock: wait for it.
func TestApacheSessionMaxAge(t *testing.T) {
	a, k := startApache(t, time.Second)
	cookie := session(t, a, k)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	poll := time.NewTicker(100 * time.Millisecond)
	defer poll.Stop()
	for get(t, a.URL()+"/spnego/", withCookie(cookie)).StatusCode != 401 {
		select {
		case <-poll.C:
		case <-ctx.Done():
			t.Fatal("the session does not end")
		}
	}
}

func TestApacheNewServiceKey(t *testing.T) {
	a, k := startApache(t, 0)
	must(t, k.Rekey(t.Context(), "HTTP/localhost", ""))
	if got := curl(t, a, k, a.URL()+"/nosess/"); got.status != "401" {
		t.Errorf("with a key that Apache lacks: %+v", got)
	}
	must(t, k.Keytab(t.Context(), keytab(k, "http"), "HTTP/localhost"))
	must(t, a.Restart(t.Context(), false))
	if got := curl(t, a, k, a.URL()+"/nosess/"); got.status != "200" {
		t.Errorf("with the new keytab: %+v", got)
	}
}

// One keytab with services of two realms, and host names beside localhost.
func TestApacheHosts(t *testing.T) {
	rig.Require(t, "apache2", "mod_auth_gssapi", "mod_ssl", "curl")
	a, b := startRealm(t, "ALPHA.TEST"), startRealm(t, "BETA.TEST")
	must(t, a.Trust(t.Context(), b))
	dir := t.TempDir()
	http := filepath.Join(dir, "http.keytab")
	for k, spn := range map[*rig.MITKDC]string{a: "HTTP/web.alpha.test", b: "HTTP/web.beta.test"} {
		must(t, k.AddService(t.Context(), spn))
		must(t, k.Keytab(t.Context(), http, spn))
	}
	must(t, rig.Krb5Conf{Realms: []rig.Realm{a, b}, Referrals: true}.WriteFile(a.Krb5ConfFile()))
	server, err := rig.StartApache(t.Context(), filepath.Join(dir, "apache"), rig.ApacheOptions{
		Krb5ConfFile: a.Krb5ConfFile(), KeytabFile: http, Hosts: []string{"web.beta.test"},
	})
	must(t, err)
	t.Cleanup(server.Stop)
	if failure := kinit(t, a, keytab(a, "svc"), "svc@ALPHA.TEST"); failure != "" {
		t.Fatal(failure)
	}
	on := func(base, host string) (url, resolve string) {
		scheme, port, _ := strings.Cut(base, "://localhost:")
		return scheme + "://" + host + ":" + port, host + ":" + port + ":127.0.0.1"
	}
	for _, host := range []string{"web.alpha.test", "web.beta.test"} {
		url, resolve := on(server.URL(), host)
		if got := curl(t, server, a, "--resolve", resolve, url+"/nosess/whoami"); got.body != `{"user":"svc@ALPHA.TEST"}` {
			t.Errorf("%s: %+v", host, got)
		}
		to, _ := on(server.TLSURL(), host)
		if got := curl(t, server, a, "--resolve", resolve, url+"/redir/tls"); got.location != to+"/spnego/" {
			t.Errorf("%s: to https: %+v", host, got)
		}
	}
	url, resolve := on(server.TLSURL(), "web.beta.test")
	if got := curl(t, server, a, "--resolve", resolve, url+"/nosess/"); got.user != "svc@ALPHA.TEST" {
		t.Errorf("https: %+v", got)
	}
	url, resolve = on(server.TLSURL(), "web.alpha.test")
	if _, failure := run(t, a, "curl", "-sS", "--cacert", server.CAFile(), "--resolve", resolve, url+"/plain/"); !strings.Contains(failure, "certificate") {
		t.Errorf("a host that the certificate does not name: curl says %q", failure)
	}
}

func TestApacheHeaderLimit(t *testing.T) {
	a, _ := startApache(t, 0)
	for length, status := range map[int]int{8191: 200, 8192: 400} {
		res := get(t, a.URL()+"/plain/", func(r *http.Request) {
			r.Header.Set("Authorization", strings.Repeat("x", length-len("Authorization: ")))
		})
		if res.StatusCode != status {
			t.Errorf("a header field of %d bytes: %s, want %d", length, res.Status, status)
		}
	}
}

func TestApacheErrors(t *testing.T) {
	a, k := startApache(t, 0)
	_, err := rig.StartApache(t.Context(), t.TempDir(), rig.ApacheOptions{Krb5ConfFile: k.Krb5ConfFile(), KeytabFile: filepath.Join(a.Dir(), "none")})
	if err == nil {
		t.Error("started without a keytab")
	}
	a.Stop()
	l, err := net.Listen("tcp", strings.TrimPrefix(a.TLSURL(), "https://"))
	must(t, err)
	defer l.Close()
	if err := a.Start(t.Context()); err == nil || !strings.Contains(err.Error(), "Address already in use") {
		t.Errorf("port in use: %v", err)
	}
}
