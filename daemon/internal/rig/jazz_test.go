package rig_test

import (
	"crypto/rand"
	"encoding/base64"
	"io"
	"maps"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

// jazzClient visits a Jazz server with cookies of its own, and follows redirects one
// by one.
type jazzClient struct {
	t      *testing.T
	jar    http.CookieJar
	header []string // of all requests, names and values in turn
	sent   int      // requests
	at     string   // the URL of the last one
}

func newJazzClient(t *testing.T, header ...string) *jazzClient {
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	return &jazzClient{t: t, jar: jar, header: header}
}

func (b *jazzClient) do(method, ref, body string, header ...string) *reply {
	b.t.Helper()
	req, err := http.NewRequestWithContext(b.t.Context(), method, ref, strings.NewReader(body))
	if err != nil {
		b.t.Fatal(err)
	}
	header = append(b.header[:len(b.header):len(b.header)], header...)
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	b.sent++
	b.at = ref
	transport := &http.Transport{DialContext: rig.DialLocalhost, DisableKeepAlives: true}
	client := &http.Client{Jar: b.jar, Transport: transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := client.Do(req)
	if err != nil {
		b.t.Fatal(err)
	}
	defer resp.Body.Close()
	page, err := io.ReadAll(resp.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	a := &reply{b.t, resp.StatusCode, resp.Header, string(page)}
	for _, password := range []string{"CANARY-password", "CANARY-wrong", "CANARY-application"} {
		if strings.Contains(a.text(), password) && !strings.Contains(ref, password) {
			b.t.Errorf("%s %s: the answer repeats %s", method, ref, password)
		}
	}
	return a
}

func (b *jazzClient) get(ref string, header ...string) *reply {
	b.t.Helper()
	return b.do("GET", ref, "", header...)
}

// leads fails the test unless the answer redirects exactly there.
func (a *reply) leads(to string) *reply {
	a.t.Helper()
	if l := a.header.Get("Location"); l != to {
		a.t.Errorf("leads to %q, want %q", l, to)
	}
	return a
}

// next follows a redirect, without the header fields of what led to it.
func (b *jazzClient) next(a *reply) *reply {
	b.t.Helper()
	to, err := url.Parse(a.header.Get("Location"))
	if a.status/100 != 3 || err != nil || to.String() == "" {
		b.t.Fatalf("no redirect: %d %v", a.status, a.header)
	}
	from, err := url.Parse(b.at)
	if err != nil {
		b.t.Fatal(err)
	}
	return b.get(from.ResolveReference(to).String())
}

// walk gets a page and follows redirects to their end.
func (b *jazzClient) walk(ref string, header ...string) *reply {
	b.t.Helper()
	a := b.get(ref, header...)
	for range 10 {
		if a.status/100 != 3 {
			return a
		}
		a = b.next(a)
	}
	b.t.Fatalf("redirected without end: %s", ref)
	return nil
}

// check sends the form of a login.
func (b *jazzClient) check(context, password string) *reply {
	b.t.Helper()
	return b.do("POST", context+"/j_security_check", url.Values{"j_username": {"fred"}, "j_password": {password}}.Encode(),
		"Content-Type", "application/x-www-form-urlencoded; charset=utf-8")
}

// logIn is the form's whole login, with good credentials.
func (b *jazzClient) logIn(context string) {
	b.t.Helper()
	b.walk(context+"/whoami").want(200, "X-Com-Ibm-Team-Repository-Web-Auth-Msg: authrequired")
	a := b.check(context, "CANARY-password")
	for a.status/100 == 3 {
		a = b.next(a)
	}
	a.want(200, "/users/fred")
}

// session is the JSESSIONID of a context.
func (b *jazzClient) session(context string) string {
	b.t.Helper()
	u, err := url.Parse(context + "/")
	if err != nil {
		b.t.Fatal(err)
	}
	for _, c := range b.jar.Cookies(u) {
		if c.Name == "JSESSIONID" {
			return c.Value
		}
	}
	return ""
}

func startJazz(t testing.TB, o rig.JazzOptions) *rig.Jazz {
	t.Helper()
	j, err := rig.StartJazz(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(j.Stop)
	j.AddUser("fred", "CANARY-password")
	return j
}

// wantJazz compares all counts but Requests, if want has none.
func wantJazz(t *testing.T, j *rig.Jazz, want rig.JazzCounts) {
	t.Helper()
	n := j.Counts()
	if want.Requests == 0 {
		n.Requests = 0
	}
	sessions := maps.Equal(n.Sessions, want.Sessions)
	n.Sessions, want.Sessions = nil, nil
	if !sessions || !equalCounts(n, want) {
		t.Errorf("counts %+v %v, want %+v", n, j.Counts().Sessions, want)
	}
}

func equalCounts(a, b rig.JazzCounts) bool {
	return a.Requests == b.Requests && a.Logins == b.Logins && a.Failures == b.Failures && a.Passwords == b.Passwords && a.Tokens == b.Tokens &&
		a.StateReused == b.StateReused && a.PasswordsInURL == b.PasswordsInURL && a.Preemptive == b.Preemptive && a.Logouts == b.Logouts
}

const (
	required = "X-Com-Ibm-Team-Repository-Web-Auth-Msg: authrequired"
	failed   = "X-Com-Ibm-Team-Repository-Web-Auth-Msg: authfailed"
)

// basicOf is the Authorization field of Basic.
func basicOf(name, password string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(name+":"+password))
}

func good() string  { return basicOf("fred", "CANARY-password") }
func wrong() string { return basicOf("fred", "CANARY-wrong") }

// What is public says which login there is, before any.
func TestJazzRootservices(t *testing.T) {
	for auth, sso := range map[string]string{"form": "false", "jas": "true"} {
		j := startJazz(t, rig.JazzOptions{Auth: auth, Context: "jts2", Delegated: []string{"rm"}})
		b := newJazzClient(t)
		for _, context := range []string{"jts2", "ccm", "qm", "rm", "gc"} {
			by := j.URL(context)
			if context == "rm" {
				by = j.URL("jts2")
			}
			a := b.get(j.URL(context)+"/rootservices").want(200, "<jd:jsaSsoEnabled>"+sso+"</jd:jsaSsoEnabled>", `oauthUserAuthorizationUrl rdf:resource="`+by+`/oauth-authorize"`,
				`currentUser rdf:resource="`+by+`/whoami"`, "<jfs:oauthRealmName>Jazz<", "application/rdf+xml")
			if len(a.header.Values("Set-Cookie")) != 0 {
				t.Errorf("%s: cookies %q", context, a.header)
			}
		}
		b.get(j.URL("jts") + "/rootservices").want(404)
		j.Set(rig.JazzModes{HideRootservices: true})
		b.get(j.URL("ccm") + "/rootservices").want(404)
	}
}

// Every way of asking for a login is told without a password, and takes none.
func TestJazzChallenges(t *testing.T) {
	_, keytabFile := tokens(t)
	for _, c := range []struct {
		name    string
		o       rig.JazzOptions
		context string
		status  int // where redirects end
		want    []string
		never   string
	}{
		{"form", rig.JazzOptions{}, "ccm", 200, []string{required, "JazzFormAuth=Form; Path=/ccm"}, "Www-Authenticate"},
		{"form by 303", rig.JazzOptions{Redirect: 303}, "qm", 200, []string{required, "JazzFormAuth=Form; Path=/qm"}, "Www-Authenticate"},
		{"form by 307", rig.JazzOptions{Redirect: 307}, "gc", 200, []string{required}, "Www-Authenticate"},
		{"form of Tomcat", rig.JazzOptions{NoLTPA: true}, "ccm", 200, []string{required, "JazzFormAuth=Form; Path=/ccm"}, "WASReqURL"},
		{"delegated", rig.JazzOptions{}, "rm", 401, []string{"Www-Authenticate: OAuth realm=", "X-Jazz-Web-Oauth-Url: ", "/jts/oauth-authorize?oauth_token=", "CRJZS0360I"}, "JSA"},
		{"not delegated", rig.JazzOptions{Delegated: []string{}}, "rm", 200, []string{required, "JazzFormAuth=Form; Path=/rm"}, "OAuth"},
		{"basic", rig.JazzOptions{Auth: "basic"}, "rm", 401, []string{"Www-Authenticate: Basic realm="}, "Bearer"},
		{"jas", rig.JazzOptions{Auth: "jas"}, "rm", 401, []string{`Www-Authenticate: Basic realm="JSA"`, `Www-Authenticate: Bearer realm="JSA"`, "X-Jsa-Authorization-Url: ", "X-Jsa-Authorization-Redirect: "}, "App-Password"},
		{"jas of another", rig.JazzOptions{Auth: "jas", JAS: rig.JazzJAS{External: "saml"}}, "ccm", 401, []string{"X-Jsa-Authorization-Redirect: "}, "App-Password"},
		{"bearer", rig.JazzOptions{Auth: "bearer"}, "ccm", 401, []string{`Www-Authenticate: Bearer realm="JSA"`}, "X-Jsa"},
		{"jauth", rig.JazzOptions{Auth: "jauth"}, "ccm", 401, []string{"Www-Authenticate: JAuth realm=", "/jts/jauth-issue-token"}, "JSA"},
		{"negotiate", rig.JazzOptions{Auth: "negotiate", Keytab: keytabFile}, "ccm", 401, []string{"Www-Authenticate: Negotiate"}, "Basic"},
		{"negotiate, delegated", rig.JazzOptions{Auth: "negotiate", Keytab: keytabFile}, "rm", 401, []string{"OAuth realm="}, "Negotiate"},
	} {
		t.Run(c.name, func(t *testing.T) {
			j := startJazz(t, c.o)
			for _, path := range []string{"/whoami", "/authenticated/identity", "/oslc/workitems/catalog?a=b&c=d"} {
				a := newJazzClient(t).walk(j.URL(c.context)+path).want(c.status, c.want...)
				if strings.Contains(a.text(), c.never) {
					t.Errorf("%s: %s in %s", path, c.never, a.text())
				}
				first := newJazzClient(t).get(j.URL(c.context) + path)
				if want := c.o.Redirect; want != 0 && first.status != want {
					t.Errorf("%s: status %d, want %d", path, first.status, want)
				}
				if !strings.HasPrefix(first.cookie("JSESSIONID"), "JSESSIONID=CANARY-") { // of nobody
					t.Errorf("%s: %q", path, first.header)
				}
			}
			n := j.Counts()
			wantJazz(t, j, rig.JazzCounts{Requests: n.Requests, Sessions: map[string]int{}})
		})
	}
}

func TestJazzRefuses(t *testing.T) {
	for _, o := range []rig.JazzOptions{
		{Auth: "ntlm"}, {Redirect: 301}, {Delegated: []string{"jts"}}, {Delegated: []string{"am"}}, {JAS: rig.JazzJAS{External: "ldap"}},
		{Auth: "negotiate"}, {Auth: "jas", JAS: rig.JazzJAS{Kerberos: true}}, {Keytab: []byte("CANARY-none")}, {NoLTPA: true, FailOver: true},
	} {
		if j, err := rig.StartJazz(o); err == nil {
			j.Stop()
			t.Errorf("%+v starts", o)
		}
	}
	j := startJazz(t, rig.JazzOptions{Auth: "jas"})
	if err := j.Start(); err == nil {
		t.Error("Jazz starts twice")
	}
	newJazzClient(t).get(j.URL("am") + "/whoami").want(404)
	newJazzClient(t).get(j.JASURL() + "/").want(404)
	newJazzClient(t).do("POST", j.URL("ccm")+"/whoami", "a=%zz", "Content-Type", "application/x-www-form-urlencoded").want(400)
}

// Sessions outlive a stop, and names are those that were asked for.
func TestJazzHosts(t *testing.T) {
	j := startJazz(t, rig.JazzOptions{Auth: "jas", Host: "elm.corp.localhost", JASHost: "jas.corp.localhost"})
	if both := j.URL("ccm") + " " + j.JASURL(); !regexp.MustCompile(`^http://elm\.corp\.localhost:\d+/ccm http://jas\.corp\.localhost:\d+$`).MatchString(both) {
		t.Error(both)
	}
	if j.SPN() != "HTTP/elm.corp.localhost" || j.JASSPN() != "HTTP/jas.corp.localhost" {
		t.Error(j.SPN(), j.JASSPN())
	}
	b := newJazzClient(t)
	b.walk(authorization(b.get(j.URL("ccm")+"/whoami")), "Authorization", good())
	b.get(j.URL("ccm")+"/whoami").want(200, j.URL("jts")+"/users/fred")
	j.Stop()
	if err := j.Start(); err != nil {
		t.Fatal(err)
	}
	b.get(j.URL("ccm") + "/whoami").want(200)
	wantJazz(t, j, rig.JazzCounts{Logins: 1, Passwords: 1, Sessions: map[string]int{"ccm": 1}})
	if n := j.Hits("/ccm/"); n.Basic != 0 || n.Total != 5 {
		t.Errorf("%+v", n)
	}
}

// Each life ends when it must: that of a login whatever its use, that of a session and
// of a delegated login by its use.
func TestJazzLife(t *testing.T) {
	now := time.Now()
	clock := func() time.Time { return now }
	j := startJazz(t, rig.JazzOptions{Now: clock, LTPA: time.Hour, Idle: 10 * time.Minute})
	b := newJazzClient(t)
	b.logIn(j.URL("ccm"))
	before := b.session(j.URL("ccm"))
	for range 11 {
		now = now.Add(5 * time.Minute)
		b.get(j.URL("ccm") + "/whoami").want(200)
	}
	if b.session(j.URL("ccm")) != before {
		t.Error("a session in use has another id")
	}
	now = now.Add(5*time.Minute - time.Second)
	b.get(j.URL("ccm") + "/whoami").want(200)
	now = now.Add(time.Second) // the hour is over, the session is not
	if a := b.get(j.URL("ccm")+"/whoami").want(302, "/secure/authenticated/identity"); a.cookie("JSESSIONID") != "" {
		t.Errorf("the session has died with the login: %q", a.header)
	}

	// An idle session is a new one, and nobody logs in for that.
	b.logIn(j.URL("ccm"))
	before = b.session(j.URL("ccm"))
	now = now.Add(10 * time.Minute)
	b.get(j.URL("ccm")+"/whoami").want(200, "JSESSIONID=CANARY-")
	if b.session(j.URL("ccm")) == before {
		t.Error("an idle session has its id still")
	}
	wantJazz(t, j, rig.JazzCounts{Logins: 2, Passwords: 2, Sessions: map[string]int{"ccm": 2}})

	// The delegated login slides, whatever becomes of the JTS's.
	b.get(j.URL("rm") + "/whoami").want(401)
	b.walk(b.get(j.URL("rm")+"/whoami").header.Get("X-jazz-web-oauth-url")).want(200, "JAZZ_AUTH_TOKEN=CANARY-")
	for range 4 {
		now = now.Add(5 * time.Hour)
		b.get(j.URL("rm")+"/process/project-areas").want(200, "JAZZ_AUTH_TOKEN=CANARY-")
	}
	now = now.Add(6 * time.Hour)
	b.get(j.URL("rm")+"/whoami").want(401, "jfs-oauth-access-token0=; Max-Age=0")

	// At JAS: the login, and the sessions that it began.
	s := startJazz(t, rig.JazzOptions{Auth: "jas", Now: clock, Idle: time.Hour})
	b = newJazzClient(t)
	b.walk(authorization(b.get(s.URL("ccm")+"/whoami")), "Authorization", good()).want(200, "/users/fred")
	for range 3 {
		now = now.Add(39 * time.Minute)
		b.get(s.URL("ccm") + "/whoami").want(200)
	}
	now = now.Add(3 * time.Minute)
	again := authorization(b.get(s.URL("ccm") + "/whoami").want(401))
	b.walk(again+"&prompt=none").want(200, "X-Jsa-Login-Required: true")
}

func TestJazzDrops(t *testing.T) {
	j := startJazz(t, rig.JazzOptions{})
	b := newJazzClient(t)
	b.logIn(j.URL("ccm"))
	b.walk(b.get(j.URL("rm") + "/whoami").header.Get("X-jazz-web-oauth-url")).want(200)
	b.get(j.URL("rm") + "/process/project-areas").want(200)
	before := b.session(j.URL("ccm"))
	j.DropApps()
	b.get(j.URL("ccm") + "/whoami").want(200)
	if b.session(j.URL("ccm")) == before {
		t.Error("the session was not dropped")
	}
	b.walk(b.get(j.URL("rm") + "/whoami").want(401).header.Get("X-jazz-web-oauth-url")).want(200)
	b.get(j.URL("rm") + "/process/project-areas").want(200)
	j.DropSessions()
	b.get(j.URL("ccm") + "/whoami").want(302)
	b.walk(b.get(j.URL("rm")+"/whoami").want(401).header.Get("X-jazz-web-oauth-url")).want(200, required)
	wantJazz(t, j, rig.JazzCounts{Logins: 1, Passwords: 1, Sessions: map[string]int{"ccm": 2, "jts": 2, "rm": 2}})
}

// LtpaToken2's value outlives a logout unless the container keeps a list of such.
func TestJazzLogout(t *testing.T) {
	for _, tracked := range []bool{false, true} {
		for _, path := range []string{"/service/com.ibm.team.repository.service.internal.ILogoutRestService", "/auth/logout"} {
			j := startJazz(t, rig.JazzOptions{LogoutTracked: tracked, CookieName: "ElmToken"})
			b := newJazzClient(t)
			b.do("POST", j.URL("ccm")+path, "").want(302) // nobody
			b.logIn(j.URL("ccm"))
			u, _ := url.Parse(j.URL("ccm") + "/")
			var kept []string
			for _, c := range b.jar.Cookies(u) {
				kept = append(kept, c.Name+"="+c.Value)
			}
			b.do("POST", j.URL("ccm")+path, "").want(200, `ElmToken=""; Expires=Thu, 01 Dec 1994`)
			b.get(j.URL("ccm") + "/whoami").want(302)
			status := 200
			if tracked {
				status = 302
			}
			newJazzClient(t).get(j.URL("ccm")+"/whoami", "Cookie", strings.Join(kept, "; ")).want(status)
			if n := j.Counts(); n.Logouts != 1 {
				t.Errorf("%d logouts", n.Logouts)
			}
		}
	}
}

// Whatever is no GET brings the session's id in a header too.
func TestJazzForgery(t *testing.T) {
	j := startJazz(t, rig.JazzOptions{})
	b := newJazzClient(t)
	items := j.URL("ccm") + "/oslc/contexts/_sampleAreaOfNoSecrets/workitems"
	b.do("POST", items, `{"dc:title":"One"}`).want(302, "/secure/authenticated/identity?redirectPath=%2Fccm%2Foslc")
	b.logIn(j.URL("ccm"))
	b.get(j.URL("ccm")+"/oslc/workitems/catalog").want(200, items, "application/xml")
	b.get(j.URL("qm") + "/whoami").want(200)
	for _, header := range [][]string{nil, {"X-Jazz-CSRF-Prevent", "1"}, {"X-Jazz-CSRF-Prevent", b.session(j.URL("qm"))}} {
		for _, method := range []string{"POST", "PUT", "DELETE", "PATCH"} {
			b.do(method, items, `{"dc:title":"One"}`, header...).want(403, "X-Jazz-CSRF-Prevent")
		}
	}
	b.get(items).want(200, `"oslc_cm:totalCount":1`)
	token := []string{"X-Jazz-CSRF-Prevent", b.session(j.URL("ccm"))}
	b.do("POST", items, `{"dc:title":"One"}`, token...).want(201, "Location: "+j.URL("ccm")+"/resource/itemName/com.ibm.team.workitem.WorkItem/2", `"dc:title":"One"`)
	b.do("POST", items, `{"dc:title":" "}`, token...).want(400)
	b.do("DELETE", items, "", token...).want(405)
	b.get(items).want(200, `"oslc_cm:totalCount":2`, `{"dc:identifier":2,"dc:title":"One"}`)
	// The session that the token is of has died, and its successor is not known yet.
	j.DropApps()
	b.do("POST", items, `{"dc:title":"Two"}`, token...).want(403)
	b.do("POST", items, `{"dc:title":"Two"}`, token...).want(403)
	b.do("POST", items, `{"dc:title":"Two"}`, "X-Jazz-CSRF-Prevent", b.session(j.URL("ccm"))).want(201)
}

func TestJazzModes(t *testing.T) {
	j := startJazz(t, rig.JazzOptions{})
	b := newJazzClient(t)
	j.Set(rig.JazzModes{Unavailable: 503})
	b.get(j.URL("ccm")+"/rootservices").want(503, "CRJAZ1972E")
	b.get(j.URL("ccm") + "/whoami").want(503)
	j.Set(rig.JazzModes{InsecureRedirect: true})
	b.get(j.URL("ccm")+"/whoami?a=b").want(302, "Location: https://localhost:", "/ccm/whoami?a=b")
	j.Set(rig.JazzModes{ForeignRedirect: "https://evil.example/"})
	b.walk(j.URL("ccm")+"/whoami").want(200, required)
	b.check(j.URL("ccm"), "CANARY-password").want(302, "Location: https://evil.example/", "LtpaToken2=CANARY-")
	j.Set(rig.JazzModes{FailAfterLogin: 500, FailOnce: true})
	b.get(j.URL("ccm") + "/whoami").want(500)
	b.get(j.URL("ccm") + "/whoami").want(200)
	j.Set(rig.JazzModes{FailAfterLogin: 502})
	b.get(j.URL("ccm") + "/whoami").want(502)
	b.get(j.URL("ccm") + "/whoami").want(502)
	newJazzClient(t).get(j.URL("ccm") + "/whoami").want(302)
	j.Set(rig.JazzModes{WrongUser: "bob"})
	if a := b.get(j.URL("ccm") + "/whoami"); a.body != j.URL("jts")+"/users/bob" {
		t.Errorf("%q", a.body)
	}
	b.get(j.URL("ccm")+"/authenticated/identity").want(200, `"userId":"bob"`)
	j.Set(rig.JazzModes{})
	b.get(j.URL("ccm")+"/authenticated/identity").want(200, `{"roles":["JazzUsers"],"userId":"fred"}`, "text/json")
	b.get(j.URL("ccm")+"/authenticated/identity?redirectPath=//evil.example/").want(200, "fred")
}

// FuzzJazz: whatever comes without a right password gets an answer, no session of a
// user's, and is led nowhere else.
func FuzzJazz(f *testing.F) {
	var all []*rig.Jazz
	for _, o := range []rig.JazzOptions{{}, {NoLTPA: true}, {Auth: "basic"}, {Auth: "jas"}, {Auth: "jas", JAS: rig.JazzJAS{External: "saml"}}} {
		j := startJazz(f, o)
		j.AddUser("fred", "CANARY-"+rand.Text())
		all = append(all, j)
	}
	f.Add("GET", "/rm/oauthCallback?oauth_token=x&oauth_verifier=", "", "jfs-request-token-x=", "")
	f.Add("GET", "/ccm/secure/authenticated/identity?redirectPath=//x", "", "LtpaToken2=x; JSESSIONID=", "Basic eDp5")
	f.Add("GET", "/ccm/jsa?code=&state=&appPassword=true", "", "", "Basic Og==")
	f.Add("POST", "/ccm/x/j_security_check", "j_username=fred&j_password=", "WASReqURL=http://:1/ccm", "Negotiate YA==")
	f.Add("POST", "/jts/oauth-authorize", "oauth_token=x&authorize=true", "WASReqURL=//x", "Bearer x")
	f.Add("DELETE", "/qm/oslc/contexts/x/workitems", "", "JAZZ_AUTH_TOKEN=", "")
	f.Fuzz(func(t *testing.T, method, path, body, cookie, authorization string) {
		for _, j := range all {
			r, err := http.NewRequestWithContext(t.Context(), method, "http://localhost"+path, strings.NewReader(body))
			if err != nil {
				return
			}
			r.Header = http.Header{"Content-Type": {"application/x-www-form-urlencoded"}, "Cookie": {cookie}, "Authorization": {authorization}}
			w := httptest.NewRecorder()
			j.ServeHTTP(w, r)
			if w.Code < 200 || w.Code > 599 {
				t.Errorf("status %d", w.Code)
			}
			if n := j.Counts(); n.Logins != 0 || len(n.Sessions) != 0 {
				t.Errorf("logged in: %+v", n)
			}
			if to := w.Header().Get("Location"); to != "" && !strings.HasPrefix(to, strings.TrimSuffix(j.URL("ccm"), "ccm")) {
				t.Errorf("leads to %q", to)
			}
			j.DropSessions()
		}
	})
}
