package rig_test

import (
	"context"
	"encoding/base64"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/net/publicsuffix"

	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

// ssoBrowser visits the hosts of an SSO by their names, with the cookies that a
// browser takes and sends. It follows no redirect by itself.
type ssoBrowser struct {
	t   *testing.T
	jar http.CookieJar
	o   http.Transport
}

func newSSOBrowser(t *testing.T, s *rig.SSO) *ssoBrowser {
	jar, err := cookiejar.New(&cookiejar.Options{PublicSuffixList: publicsuffix.List})
	if err != nil {
		t.Fatal(err)
	}
	return &ssoBrowser{t: t, jar: jar, o: http.Transport{DialContext: s.Dial, DisableKeepAlives: true}}
}

// visit sends a form, or without fields gets a page; header is names and values
// in turn.
func (b *ssoBrowser) visit(ref string, fields url.Values, header ...string) *reply {
	b.t.Helper()
	method, content := http.MethodGet, ""
	if fields != nil {
		method, content = http.MethodPost, fields.Encode()
		header = append(header, "Content-Type", "application/x-www-form-urlencoded")
	}
	req, err := http.NewRequestWithContext(b.t.Context(), method, ref, strings.NewReader(content))
	if err != nil {
		b.t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	client := &http.Client{Jar: b.jar, Transport: &b.o,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := client.Do(req)
	if err != nil {
		b.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	return &reply{b.t, resp.StatusCode, resp.Header, string(body)}
}

func (b *ssoBrowser) get(ref string, header ...string) *reply {
	b.t.Helper()
	return b.visit(ref, nil, header...)
}

// walk follows redirects to their end, and returns what it passed by host and
// status.
func (b *ssoBrowser) walk(ref string) (*reply, string) {
	b.t.Helper()
	var passed []string
	for range 10 {
		u, err := url.Parse(ref)
		if err != nil {
			b.t.Fatal(err)
		}
		a := b.get(ref)
		host, _, _ := strings.Cut(u.Hostname(), ".")
		passed = append(passed, host+" "+http.StatusText(a.status))
		if ref = a.header.Get("Location"); ref == "" {
			return a, strings.Join(passed, ", ")
		}
	}
	b.t.Fatalf("redirected without end: %v", passed)
	return nil, ""
}

// logIn sends the login form that a page shows.
func (b *ssoBrowser) logIn(page *reply, base, user, password string) *reply {
	b.t.Helper()
	action := regexp.MustCompile(`action="([^"]+)"`).FindStringSubmatch(page.body)
	lt := regexp.MustCompile(`name="lt" value="([^"]+)"`).FindStringSubmatch(page.body)
	if action == nil || lt == nil {
		b.t.Fatalf("no form in %s", page.body)
	}
	return b.visit(base+strings.ReplaceAll(action[1], "&amp;", "&"), url.Values{"lt": {lt[1]}, "username": {user}, "password": {password}})
}

func startSSO(t *testing.T, o rig.SSOOptions) *rig.SSO {
	t.Helper()
	s, err := rig.StartSSO(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	return s
}

func wantSSO(t *testing.T, s *rig.SSO, want rig.SSOCounts) {
	t.Helper()
	if n := s.Counts(); n != want {
		t.Errorf("counts %+v, want %+v", n, want)
	}
}

const ssoDomain = "corp.localhost"

func TestSSOTickets(t *testing.T) {
	s := startSSO(t, rig.SSOOptions{Applications: 2, Domain: ssoDomain})
	s.AddUser("fred", "CANARY-password")
	idp, one, two := s.Provider, s.Applications[0], s.Applications[1]
	if ok, _ := regexp.MatchString(`^http://app1\.corp\.localhost:\d+$`, one.URL()); !ok || one.SPN() != "HTTP/app1.corp.localhost" {
		t.Errorf("%s %s", one.URL(), one.SPN())
	}
	if want := "127.0.0.1 localhost idp.corp.localhost app1.corp.localhost app2.corp.localhost\n"; s.HostsFile() != want {
		t.Errorf("%q", s.HostsFile())
	}
	b := newSSOBrowser(t, s)
	back := "/sso?return=" + url.QueryEscape(one.URL()+"/whoami?a=b&c=d")
	b.get(one.URL()+"/whoami?a=b&c=d").want(302, "Location: "+idp.URL()+back)
	b.get(idp.URL() + "/whoami").want(401)
	page := b.get(idp.URL()+back).want(200, `name="username"`)

	// A refused password: the form again, with another login ticket.
	page = b.logIn(page, idp.URL(), "fred", "CANARY-wrong").want(200, "Wrong user name or password.")
	login := b.logIn(page, idp.URL(), "fred", "CANARY-password").want(303, "Location: "+one.URL()+"/whoami?a=b&c=d&ticket=CANARY-")
	if ok, _ := regexp.MatchString(`^sso=CANARY-[0-9A-F]{32}; Path=/; HttpOnly; Domain=corp\.localhost$`, login.cookie("sso")); !ok {
		t.Errorf("cookie %q", login.cookie("sso"))
	}
	b.logIn(page, idp.URL(), "fred", "CANARY-password").want(403) // sent before
	ticket := login.header.Get("Location")
	newSSOBrowser(t, s).get(strings.Replace(ticket, one.URL(), two.URL(), 1)).want(401) // another application's, and used up with that
	a, passed := b.walk(one.URL() + "/whoami?a=b&c=d")
	if a.want(200, `{"user":"fred"}`); passed != "app1 Found, idp Found, app1 Found, app1 OK" {
		t.Errorf("%s", passed)
	}
	wantSSO(t, s, rig.SSOCounts{Logins: 1, Failures: 1, Tickets: 2, Sessions: 1})
	b.get(one.URL()+"/").want(200, "Welcome, fred.")
	b.get(idp.URL()+"/whoami").want(200, `{"user":"fred"}`)

	// A second application: no login. Its cookie is its own, and the provider's
	// means nothing to it.
	a, passed = b.walk(two.URL() + "/")
	if a.want(200, "fred"); passed != "app2 Found, idp Found, app2 Found, app2 OK" {
		t.Errorf("%s", passed)
	}
	wantSSO(t, s, rig.SSOCounts{Logins: 1, Failures: 1, Tickets: 3, Sessions: 2})
	if n := two.Hits("/"); n.Cookie != 3 { // of three with cookies none was taken for a login
		t.Errorf("%+v", n)
	}

	// A ticket is good once.
	r := b.get(idp.URL()+"/sso?return="+url.QueryEscape(two.URL()+"/")).want(302, "ticket=")
	stranger := newSSOBrowser(t, s)
	in := stranger.get(r.header.Get("Location")).want(302, "JSESSIONID=CANARY-")
	if ok, _ := regexp.MatchString(`^JSESSIONID=CANARY-[0-9A-F]{32}; Path=/; HttpOnly$`, in.cookie("JSESSIONID")); !ok || in.header.Get("Location") != two.URL()+"/" {
		t.Errorf("%q %q", in.cookie("JSESSIONID"), in.header)
	}
	newSSOBrowser(t, s).get(r.header.Get("Location")).want(401)

	// Foreign places get no ticket, with a session or without.
	for _, to := range []string{"http://evil.example/", "http://app1.corp.localhost/", "//app1.corp.localhost", one.URL() + "@evil.example/", idp.URL() + "/", "%"} {
		b.get(idp.URL() + "/sso?return=" + url.QueryEscape(to)).want(403)
		newSSOBrowser(t, s).get(idp.URL() + "/sso?return=" + url.QueryEscape(to)).want(403)
	}
	b.get(idp.URL() + "/other").want(404)
	b.get(idp.URL()+"/sso").want(200, "You are logged in.")
}

func TestSSOEnds(t *testing.T) {
	s := startSSO(t, rig.SSOOptions{Applications: 2, Domain: ssoDomain})
	s.AddUser("fred", "CANARY-password")
	idp, one, two := s.Provider, s.Applications[0], s.Applications[1]
	b := newSSOBrowser(t, s)
	login := func() {
		t.Helper()
		b.logIn(b.get(idp.URL()+"/sso").want(200), idp.URL(), "fred", "CANARY-password").want(200, "You are logged in.")
	}
	in := func(h *rig.SSOHost, user string) {
		t.Helper()
		a, _ := b.walk(h.URL() + "/whoami")
		a.want(200, `{"user":"`+user+`"}`)
	}
	login()
	in(one, "fred")
	in(two, "fred")

	// An application's sessions end: no login for new ones.
	one.End()
	if one.Sessions() != 0 || two.Sessions() != 1 {
		t.Error("the wrong sessions have ended")
	}
	b.get(one.URL() + "/whoami").want(302)
	in(one, "fred")
	wantSSO(t, s, rig.SSOCounts{Logins: 1, Tickets: 3, Sessions: 3})

	// The provider's end: the applications' go on, and new ones need a login.
	idp.End()
	b.get(idp.URL() + "/whoami").want(401)
	in(one, "fred")
	two.End()
	if a, _ := b.walk(two.URL() + "/whoami"); !strings.Contains(a.body, "password") {
		t.Errorf("no login: %s", a.body)
	}
	login()
	in(two, "fred")
	b.get(idp.URL()+"/logout").want(200, "Max-Age=0", "Domain=corp.localhost")
	b.get(idp.URL() + "/whoami").want(401)
	in(two, "fred")
	b.get(two.URL()+"/logout").want(200, "Max-Age=0")
	b.get(two.URL() + "/whoami").want(302)
	wantSSO(t, s, rig.SSOCounts{Logins: 2, Tickets: 4, Sessions: 4})

	// Out of order, and away; sessions outlive both.
	login()
	idp.Fail(503)
	b.get(idp.URL() + "/whoami").want(503)
	in(one, "fred")
	idp.Fail(0)
	b.get(idp.URL() + "/whoami").want(200)
	idp.Stop()
	if c, err := s.Dial(t.Context(), "tcp", strings.TrimPrefix(idp.URL(), "http://")); err == nil {
		c.Close()
		t.Error("a stopped provider takes connections")
	}
	in(one, "fred")
	if err := idp.Start(); err != nil {
		t.Fatal(err)
	}
	b.get(idp.URL() + "/whoami").want(200)

	// Another name than the provider's own.
	s.Rename("fred", "barney")
	in(two, "barney")
	in(one, "fred")
	b.get(idp.URL()+"/whoami").want(200, `{"user":"fred"}`)
}

// The applications take the provider's cookie itself: at the first request, or
// at every one.
func TestSSODirect(t *testing.T) {
	for name, always := range map[string]bool{"first": false, "always": true} {
		t.Run(name, func(t *testing.T) {
			s := startSSO(t, rig.SSOOptions{Applications: 2, Domain: ssoDomain, Direct: true, Always: always})
			s.AddUser("fred", "CANARY-password")
			s.AddUser("wilma", "CANARY-password")
			idp, one := s.Provider, s.Applications[0]
			b := newSSOBrowser(t, s)
			a, passed := b.walk(one.URL() + "/whoami")
			if passed != "app1 Found, idp OK" {
				t.Error(passed)
			}
			b.logIn(a, idp.URL(), "fred", "CANARY-password").want(303, "Location: "+one.URL()+"/whoami")
			set := b.get(one.URL()+"/whoami").want(200, `{"user":"fred"}`, "JSESSIONID=")
			for _, h := range s.Applications {
				b.get(h.URL()+"/whoami").want(200, `{"user":"fred"}`)
			}
			wantSSO(t, s, rig.SSOCounts{Logins: 1, Sessions: 2})

			own, _, _ := strings.Cut(set.cookie("JSESSIONID"), ";")
			alone := newSSOBrowser(t, s).get(one.URL()+"/whoami", "Cookie", own)
			idp.End()
			after := b.get(one.URL() + "/whoami")
			if always {
				alone.want(302, "Location: "+idp.URL())
				after.want(302, "Location: "+idp.URL())
			} else {
				alone.want(200, "fred")
				after.want(200, "fred")
			}

			// The request's cookie says who comes.
			b.logIn(b.get(idp.URL()+"/sso"), idp.URL(), "wilma", "CANARY-password").want(200)
			want := "fred"
			if always {
				want = "wilma"
			}
			b.get(one.URL()+"/whoami").want(200, want)
		})
	}
}

// Hosts that differ in their port alone, and a provider that asks for Negotiate.
func TestSSONegotiate(t *testing.T) {
	token, keytabFile := tokens(t)
	s := startSSO(t, rig.SSOOptions{Applications: 1, Keytab: keytabFile})
	s.AddUser("fred", "CANARY-password")
	idp, one := s.Provider, s.Applications[0]
	b := newSSOBrowser(t, s)
	a, passed := b.walk(one.URL() + "/whoami")
	if a.want(401); passed != "localhost Found, localhost Unauthorized" || a.header.Get("WWW-Authenticate") != "Negotiate" {
		t.Errorf("%s %q", passed, a.header)
	}
	at := idp.URL() + "/sso?return=" + url.QueryEscape(one.URL()+"/whoami")
	b.get(at, "Authorization", "Negotiate !").want(401)
	b.get(at, "Authorization", "Negotiate "+base64.StdEncoding.EncodeToString([]byte("nonsense"))).want(401, "Negotiate oQcwBaADCgEC")
	b.get(at, "Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte("fred:CANARY-password"))).want(401)
	b.visit(idp.URL()+"/sso", url.Values{"username": {"fred"}, "password": {"CANARY-password"}}).want(403)
	wantSSO(t, s, rig.SSOCounts{})
	r := b.get(at, "Authorization", token()).want(302, "ticket=", "Www-Authenticate: Negotiate oR")
	if ok, _ := regexp.MatchString(`^sso=CANARY-[0-9A-F]{32}; Path=/; HttpOnly$`, r.cookie("sso")); !ok {
		t.Errorf("cookie %q", r.cookie("sso"))
	}
	a, _ = b.walk(r.header.Get("Location"))
	a.want(200, `{"user":"svc"}`)
	wantSSO(t, s, rig.SSOCounts{Logins: 1, Tickets: 1, Sessions: 1})
	if n := idp.Hits("/sso"); n.Negotiate != 3 || n.Basic != 1 || n.Total != 6 {
		t.Errorf("%+v", n)
	}
	if s.HostsFile() != "127.0.0.1 localhost\n" {
		t.Errorf("%q", s.HostsFile())
	}
}

func TestSSORefuses(t *testing.T) {
	for _, o := range []rig.SSOOptions{{Direct: true}, {Domain: ssoDomain, Always: true}, {Keytab: []byte("CANARY-none")}} {
		if s, err := rig.StartSSO(o); err == nil {
			s.Stop()
			t.Errorf("%+v starts", o)
		}
	}
	s := startSSO(t, rig.SSOOptions{Domain: ssoDomain})
	if _, err := s.Dial(context.Background(), "tcp", "other.localhost:80"); err == nil || !strings.Contains(err.Error(), "other.localhost") {
		t.Errorf("Dial: %v", err)
	} else if _, ok := err.(*net.DNSError); !ok {
		t.Errorf("Dial: %T", err)
	}
	if _, err := s.Dial(t.Context(), "tcp", "nowhere"); err == nil {
		t.Error("Dial without a port")
	}
	newSSOBrowser(t, s).visit(s.Provider.URL()+"/sso?a=%zz", url.Values{}).want(400)
	if err := s.Provider.Start(); err == nil {
		t.Error("a host starts twice")
	}
}
