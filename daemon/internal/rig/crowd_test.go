package rig_test

import (
	"encoding/base64"
	"encoding/xml"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/publicsuffix"

	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

func startCrowd(t *testing.T, o rig.CrowdOptions) *rig.Crowd {
	t.Helper()
	c, err := rig.StartCrowd(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Stop)
	c.AddUser("fred", "CANARY-password")
	c.AddUser("wilma", "")
	c.AddApplication("jira", "CANARY-application")
	return c
}

func wantCrowd(t *testing.T, c *rig.Crowd, want rig.CrowdCounts) {
	t.Helper()
	if n := c.Counts(); n != want {
		t.Errorf("counts %+v, want %+v", n, want)
	}
}

// crowdApplication asks the REST API as an application does.
type crowdApplication struct {
	*visitor
	name, password string
}

func newApplication(t *testing.T, c *rig.Crowd) *crowdApplication {
	return &crowdApplication{&visitor{t: t, base: c.URL() + "/rest/usermanagement/1/"}, "jira", "CANARY-application"}
}

func (a *crowdApplication) ask(method, path, body string) *reply {
	a.t.Helper()
	basic := base64.StdEncoding.EncodeToString([]byte(a.name + ":" + a.password))
	r := a.do(method, path, body, "Authorization", "Basic "+basic, "Content-Type", "application/xml", "Accept", "application/xml")
	if strings.Contains(r.text(), "CANARY-application") {
		a.t.Errorf("%s %s: the answer repeats the application's password", method, path)
	}
	return r
}

// from are the factors of an address.
func from(address string) string {
	return "<validation-factors><validation-factor><name>remote_address</name><value>" + address + "</value></validation-factor></validation-factors>"
}

func credentials(user, password, address string) string {
	return "<authentication-context><username><![CDATA[" + user + "]]></username><password><![CDATA[" + password + "]]></password>" + from(address) + "</authentication-context>"
}

// A token is a function of its user and factors, for as long as it lives.
func TestCrowdTokens(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	c := startCrowd(t, rig.CrowdOptions{Timeout: time.Hour, Now: func() time.Time { return now }})
	here, there := rig.Factors{RemoteAddress: "10.0.0.1"}, rig.Factors{RemoteAddress: "10.0.0.2", ForwardedFor: "10.0.0.9"}
	good := func(token, user string, f rig.Factors) {
		t.Helper()
		if u, ok := c.Validate(token, f); u != user || ok != (user != "") {
			t.Errorf("%q %v, want %q", u, ok, user)
		}
	}
	token, ok := c.Login("fred", "CANARY-password", here)
	if ok, _ := regexp.MatchString(`^CANARY-[0-9A-F]{32}$`, token); !ok {
		t.Errorf("token %q", token)
	}
	if again, _ := c.Login("fred", "CANARY-password", there); !ok || again != token {
		t.Errorf("%q, then %q", token, again)
	}
	if minted := c.Mint("fred", here); minted != token {
		t.Errorf("%q, then %q", token, minted)
	}
	for _, p := range []string{"CANARY-wrong", ""} {
		if tok, ok := c.Login("fred", p, here); ok || tok != "" {
			t.Errorf("%q is taken", p)
		}
	}
	if _, ok := c.Login("wilma", "", here); ok {
		t.Error("no password is taken for a password")
	}
	other := c.Mint("wilma", here)
	if other == token || c.Mint("barney", here) != "" {
		t.Error("a token of the wrong user")
	}
	good(token, "fred", here)
	good(token, "fred", there) // bound to nothing
	good(other, "wilma", here)
	good("", "", here)
	good("CANARY-other", "", here)
	wantCrowd(t, c, rig.CrowdCounts{Logins: 2, Refused: 3, Minted: 2, Validations: 5, Dead: 2})

	// A question makes it live on; without one it dies.
	now = now.Add(59 * time.Minute)
	good(token, "fred", here)
	now = now.Add(59 * time.Minute)
	good(other, "", here)
	good(token, "fred", here)
	if c.Tokens() != 1 {
		t.Errorf("%d tokens", c.Tokens())
	}
	now = now.Add(time.Hour)
	good(token, "", here)
	next := c.Mint("fred", here)
	if next == token {
		t.Error("a token lives again")
	}

	c.Logout(token) // is none any more
	c.Logout(next)
	good(next, "", here)
	other, next = c.Mint("wilma", here), c.Mint("fred", here)
	c.KillToken("fred")
	good(next, "", here)
	good(other, "wilma", here)
	if n := c.CountsOf(""); n != c.Counts() || n.Logouts != 1 || c.CountsOf("crowd") != (rig.CrowdCounts{}) {
		t.Errorf("%+v", n)
	}
	if line := c.CookieLine("CANARY-x"); line != "crowd.token_key=CANARY-x; Path=/; HttpOnly" {
		t.Error(line)
	}
	if line := c.CookieLine(""); line != "crowd.token_key=; Path=/; Max-Age=0; HttpOnly" {
		t.Error(line)
	}
}

// With "Require consistent client IP address" a token is good for one address,
// and X-Forwarded-For counts if a trusted proxy sends it.
func TestCrowdSameIP(t *testing.T) {
	c := startCrowd(t, rig.CrowdOptions{SameIP: true, TrustedProxies: []string{"10.0.0.1", "10.1.0.0/16"}})
	const client = "192.0.2.7"
	token := c.Mint("fred", rig.Factors{RemoteAddress: client})
	for _, f := range []rig.Factors{
		{client, ""},
		{client, "192.0.2.8"}, // who is no proxy may say what it likes
		{"10.0.0.1", client},
		{"10.1.2.3", client},
		{"10.0.0.1", "192.0.2.8, " + client}, // the rightmost that is not trusted
		{"10.0.0.1", client + ", 10.1.9.9"},
		{"10.0.0.1", client + ",10.1.9.9 , 10.0.0.1"},
	} {
		if user, ok := c.Validate(token, f); user != "fred" || !ok {
			t.Errorf("%v is refused", f)
		}
		if c.Mint("fred", f) != token {
			t.Errorf("%v gets another token", f)
		}
	}
	for _, f := range []rig.Factors{
		{},
		{"192.0.2.8", ""},
		{"192.0.2.8", client}, // from nobody's proxy
		{"10.0.0.1", ""},
		{"10.0.0.1", client + ", 192.0.2.8"},
		{"10.2.0.1", client},
		{"10.0.0.1", client + ", unknown"},
		{"10.0.0.1", "10.0.0.1"},
	} {
		if user, ok := c.Validate(token, f); user != "" || ok {
			t.Errorf("%v is taken", f)
		}
		if c.Mint("fred", f) == token {
			t.Errorf("%v gets the same token", f)
		}
	}
	if user, _ := c.Validate(token, rig.Factors{RemoteAddress: client}); user != "fred" {
		t.Error("the token died of questions from elsewhere")
	}
}

func TestCrowdREST(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.FixedZone("", 3600))
	c := startCrowd(t, rig.CrowdOptions{SameIP: true, Now: func() time.Time { return now }})
	a := newApplication(t, c)
	r := a.ask("POST", "session", credentials("fred", "CANARY-password", "192.0.2.7")).want(201,
		`<session expand="user"><token>CANARY-`, `</token><user name="fred"><link href="`+c.URL()+`/rest/usermanagement/1/user?username=fred" rel="self"></link><active>true</active></user>`,
		`<created-date>2026-01-01T00:00:00.000+01:00</created-date><expiry-date>2026-01-01T00:30:00.000+01:00</expiry-date></session>`, "Content-Type: application/xml")
	var session struct {
		Token string `xml:"token"`
	}
	if err := xml.Unmarshal([]byte(r.body), &session); err != nil {
		t.Fatal(err)
	}
	token := session.Token
	if r.header.Get("Location") != a.base+"session/"+token {
		t.Errorf("Location %q", r.header.Get("Location"))
	}
	if r.cookie("crowd.token_key") != "" {
		t.Error("an application sets its cookies itself")
	}
	a.ask("POST", "session", credentials("fred", "CANARY-password", "192.0.2.7")).want(201, ">"+token+"<")
	a.ask("POST", "session?validate-password=false", credentials("fred", "", "192.0.2.7")).want(201, ">"+token+"<")
	if user, ok := c.Validate(token, rig.Factors{RemoteAddress: "192.0.2.7"}); user != "fred" || !ok {
		t.Error("the token of the REST API is none")
	}
	a.ask("POST", "session", credentials("fred", "CANARY-wrong", "192.0.2.7")).want(400, "<error><reason>INVALID_USER_AUTHENTICATION</reason><message>Failed to authenticate principal, password was invalid</message></error>")
	a.ask("POST", "session?validate-password=true", credentials("fred", "", "192.0.2.7")).want(400, "INVALID_USER_AUTHENTICATION")
	a.ask("POST", "session", credentials("bar<ney", "CANARY-wrong", "192.0.2.7")).want(400, "<reason>USER_NOT_FOUND</reason>", "bar&lt;ney")
	a.ask("POST", "session?validate-password=false", credentials("barney", "", "")).want(400, "USER_NOT_FOUND")
	a.ask("POST", "session", "<authentication-context>").want(400)
	wantCrowd(t, c, rig.CrowdCounts{Logins: 2, Refused: 3, Minted: 1, Validations: 1})

	now = now.Add(20 * time.Minute)
	a.ask("GET", "session/"+token, "").want(200, `name="fred"`, "00:30:00.000") // looks only
	a.ask("POST", "session/"+token, from("192.0.2.7")).want(200, `name="fred"`, ">"+token+"<", "00:50:00.000")
	a.ask("POST", "session/"+token, from("192.0.2.8")).want(400, "INVALID_SSO_TOKEN")
	a.ask("POST", "session/"+token, "<validation-factors/>").want(400, "INVALID_SSO_TOKEN")
	const forwarded = "<validation-factor><name>X-Forwarded-For</name><value>192.0.2.8</value></validation-factor></validation-factors>"
	a.ask("POST", "session/"+token, strings.Replace(from("192.0.2.7"), "</validation-factors>", forwarded, 1)).want(200) // no trusted proxy sends it
	a.ask("POST", "session/"+token, "nonsense").want(400)
	a.ask("POST", "session/CANARY-other", from("192.0.2.7")).want(404, "<reason>INVALID_SSO_TOKEN</reason>")
	a.ask("GET", "session/CANARY-other", "").want(404, "INVALID_SSO_TOKEN")

	a.ask("POST", "authentication?username=fred", "<password><value>CANARY-password</value></password>").want(200, `<user name="fred">`)
	a.ask("POST", "authentication?username=fred", "<password><value>CANARY-wrong</value></password>").want(400, "INVALID_USER_AUTHENTICATION")
	a.ask("POST", "authentication?username=fred", "").want(400)

	a.ask("DELETE", "session/"+token, "").want(204)
	a.ask("DELETE", "session/"+token, "").want(204)
	a.ask("POST", "session/"+token, from("192.0.2.7")).want(404)
	keep, end := c.Mint("fred", rig.Factors{RemoteAddress: "192.0.2.1"}), c.Mint("fred", rig.Factors{RemoteAddress: "192.0.2.2"})
	a.ask("DELETE", "session?username=fred&exclude="+keep, "").want(204)
	a.ask("GET", "session/"+keep, "").want(200)
	a.ask("GET", "session/"+end, "").want(404)
	a.ask("DELETE", "session?username=fred", "").want(204)
	a.ask("GET", "session/"+keep, "").want(404)
	if n := c.CountsOf("jira"); n != (rig.CrowdCounts{Logins: 2, Refused: 4, Minted: 1, Validations: 6, Dead: 4, Logouts: 1}) {
		t.Errorf("%+v", n)
	}

	a.ask("GET", "user/attribute", "").want(404)
	a.ask("PUT", "session", "").want(405)
	a.get("session/x").want(401)
}

// Who is no application, or one from elsewhere, learns nothing.
func TestCrowdApplications(t *testing.T) {
	c := startCrowd(t, rig.CrowdOptions{})
	token := c.Mint("fred", rig.Factors{})
	c.AddApplication("elsewhere", "CANARY-application", "192.0.2.1")
	c.AddApplication("home", "CANARY-application", "192.0.2.1", "127.0.0.1")
	for _, x := range []struct {
		name, password string
		status         int
		text           string
	}{
		{"jira", "CANARY-application", 200, "fred"},
		{"home", "CANARY-application", 200, "fred"},
		{"jira", "CANARY-none", 401, `Www-Authenticate: Basic realm="Crowd REST Service"`},
		{"fred", "CANARY-password", 401, "Application failed to authenticate"}, // a user is no application
		{"crowd", "", 401, ""},
		{"", "", 401, ""},
		{"elsewhere", "CANARY-application", 403, "Client with address &#34;127.0.0.1&#34; is forbidden from making requests to the application, elsewhere."},
	} {
		a := newApplication(t, c)
		a.name, a.password = x.name, x.password
		if r := a.ask("GET", "session/"+token, "").want(x.status, x.text); x.status != 200 && strings.Contains(r.text(), "fred") {
			t.Errorf("%s learns of fred", x.name)
		}
	}
	v := newVisitor(t, c.URL())
	v.get("/rest/usermanagement/1/config/cookie").want(401)
	basic := "Basic " + base64.StdEncoding.EncodeToString([]byte("jira:CANARY-application"))
	v.post("/rest/usermanagement/1/session", "{}", "Authorization", basic).want(415)
	for name, of := range map[string]func(){
		"no password": func() { c.AddApplication("bamboo", "") },
		"taken":       func() { c.AddApplication("crowd", "CANARY-application") },
		"unknown":     func() { c.CountsOf("bamboo") },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			of()
		}()
	}
}

func TestCrowdCookieConfig(t *testing.T) {
	for domain, want := range map[string]struct{ json, xml string }{
		"":                {`{"domain":"","secure":false,"name":"crowd.token_key"}`, "<cookie-config><secure>false</secure><name>crowd.token_key</name></cookie-config>"},
		".corp.localhost": {`{"domain":".corp.localhost","secure":false,"name":"crowd.token_key"}`, "<cookie-config><domain>.corp.localhost</domain><secure>"},
	} {
		o := rig.CrowdOptions{Domain: domain}
		if domain != "" {
			o.Host = "crowd.corp.localhost"
		}
		c := startCrowd(t, o)
		a := newApplication(t, c)
		a.base = strings.Replace(a.base, "crowd.corp.localhost", "localhost", 1)
		a.ask("GET", "config/cookie", "").want(200, want.xml, "application/xml")
		basic := "Basic " + base64.StdEncoding.EncodeToString([]byte("jira:CANARY-application"))
		a.get("config/cookie", "Authorization", basic, "Accept", "application/json").want(200, want.json, "Content-Type: application/json")
	}
}

func newCrowdBrowser(t *testing.T) *ssoBrowser {
	jar, err := cookiejar.New(&cookiejar.Options{PublicSuffixList: publicsuffix.List})
	if err != nil {
		t.Fatal(err)
	}
	return &ssoBrowser{t: t, jar: jar, o: http.Transport{DialContext: rig.DialLocalhost, DisableKeepAlives: true}}
}

// A person at the console: a login there is one for all hosts of the domain.
func TestCrowdConsole(t *testing.T) {
	c := startCrowd(t, rig.CrowdOptions{Host: "crowd.corp.localhost", Domain: ".corp.localhost"})
	if ok, _ := regexp.MatchString(`^http://crowd\.corp\.localhost:\d+/crowd$`, c.URL()); !ok || c.SPN() != "HTTP/crowd.corp.localhost" {
		t.Errorf("%s %s", c.URL(), c.SPN())
	}
	b := newCrowdBrowser(t)
	b.get(c.URL()+"/").want(302, "Location: "+c.URL()+"/console/secure/console.action")
	b.get(c.URL()+"/console/secure/console.action").want(302, "Location: "+c.URL()+"/console/login.action")
	b.get(c.URL()+"/console/login.action").want(200, "<title>Atlassian Crowd - Login</title>", `name="j_username"`, `name="j_password"`,
		`<form name="login" method="post" action="/crowd/console/j_security_check">`, "JSESSIONID=CANARY-", "Version:&nbsp;3.5.0")
	send := func(password string) *reply {
		t.Helper()
		return b.visit(c.URL()+"/console/j_security_check", url.Values{"j_username": {"fred"}, "j_password": {password}})
	}
	r := send("CANARY-wrong").want(302, "Location: "+c.URL()+"/console/login.action?error=true")
	if r.cookie("crowd.token_key") != "" {
		t.Error("a token for a wrong password")
	}
	b.get(r.header.Get("Location")).want(200, "could not be verified", "j_password")
	r = send("CANARY-password").want(302, "Location: "+c.URL()+"/console/secure/console.action")
	if ok, _ := regexp.MatchString(`^crowd\.token_key=CANARY-[0-9A-F]{32}; Path=/; Domain=\.corp\.localhost; HttpOnly$`, r.cookie("crowd.token_key")); !ok {
		t.Errorf("cookie %q", r.cookie("crowd.token_key"))
	}
	b.get(r.header.Get("Location")).want(200, ">fred</a>", "/console/logoff.action")
	b.get(c.URL()+"/console/user/viewprofile.action").want(200, ">fred</a>")
	b.get(c.URL() + "/console/login.action").want(302)
	wiki, _ := url.Parse("http://wiki.corp.localhost/")
	cookies := b.jar.Cookies(wiki)
	if len(cookies) != 1 || cookies[0].Name != "crowd.token_key" {
		t.Fatalf("the wiki gets %v", cookies)
	}
	if user, _ := c.Validate(cookies[0].Value, rig.Factors{}); user != "fred" {
		t.Errorf("whose token: %q", user)
	}

	// The session's cookie alone is nobody's.
	stranger := newCrowdBrowser(t)
	own, _, _ := strings.Cut(r.cookie("JSESSIONID"), ";")
	stranger.get(c.URL()+"/console/secure/console.action", "Cookie", own).want(302)

	b.get(c.URL()+"/console/logoff.action").want(302, "crowd.token_key=; Path=/; Domain=.corp.localhost; Max-Age=0; HttpOnly")
	if _, ok := c.Validate(cookies[0].Value, rig.Factors{}); ok || len(b.jar.Cookies(wiki)) != 0 {
		t.Error("the logout is none for the wiki")
	}
	if n := c.CountsOf("crowd"); n.Logins != 1 || n.Refused != 1 || n.Logouts != 1 || n.Minted != 0 {
		t.Errorf("%+v", n)
	}

	b.get(c.URL()+"/status").want(200, `{"state":"RUNNING"}`)
	b.get(c.URL() + "/console/other").want(404)
	b.get(strings.TrimSuffix(c.URL(), "/crowd") + "/").want(404)
	b.visit(c.URL()+"/console/login.action", url.Values{}).want(405)
	b.visit(c.URL()+"/console/j_security_check", url.Values{}).want(302, "error=true")
	c.Fail(503)
	b.get(c.URL() + "/status").want(503)
	c.Fail(0)
	b.get(c.URL() + "/status").want(200)
	c.Stop()
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	b.get(c.URL() + "/status").want(200)
}

// Kerberos in front of the console.
func TestCrowdNegotiate(t *testing.T) {
	token, keytabFile := tokens(t)
	c := startCrowd(t, rig.CrowdOptions{Keytab: keytabFile})
	v := newVisitor(t, c.URL())
	const login = "/console/login.action"
	if a := v.get(login).want(401); a.header.Get("WWW-Authenticate") != "Negotiate" {
		t.Errorf("%q", a.header)
	}
	v.get(login, "Authorization", "Negotiate !").want(401)
	v.get(login, "Authorization", "Negotiate "+base64.StdEncoding.EncodeToString([]byte("nonsense"))).want(401, "Negotiate oQcwBaADCgEC")
	v.get(login, "Authorization", token()).want(401) // of nobody whom Crowd knows
	wantCrowd(t, c, rig.CrowdCounts{})
	c.AddUser("svc", "")
	v.get(login, "Authorization", token()).want(302, "crowd.token_key=CANARY-", "Www-Authenticate: Negotiate oR")
	v.get("/console/secure/console.action").want(200, ">svc</a>")
	wantCrowd(t, c, rig.CrowdCounts{Minted: 1, Validations: 1})
	v.do("POST", "/console/j_security_check", "%zz").want(400)
}

func TestCrowdRefuses(t *testing.T) {
	for _, o := range []rig.CrowdOptions{
		{Domain: ".corp.localhost"},
		{Host: "crowd.evilcorp.localhost", Domain: ".corp.localhost"},
		{TrustedProxies: []string{"proxy"}},
		{TrustedProxies: []string{"10.0.0.0/33"}},
		{Keytab: []byte("CANARY-none")},
	} {
		if c, err := rig.StartCrowd(o); err == nil {
			c.Stop()
			t.Errorf("%+v starts", o)
		}
	}
}

func TestDialLocalhost(t *testing.T) {
	c := startCrowd(t, rig.CrowdOptions{})
	host := strings.TrimSuffix(strings.TrimPrefix(c.URL(), "http://"), "/crowd")
	for _, address := range []string{host, "any.other." + host} {
		conn, err := rig.DialLocalhost(t.Context(), "tcp", address)
		if err != nil {
			t.Errorf("%s: %v", address, err)
			continue
		}
		conn.Close()
	}
	for _, address := range []string{"evil" + host, "corp.example:80"} {
		_, err := rig.DialLocalhost(t.Context(), "tcp", address)
		if dns, ok := err.(*net.DNSError); !ok || !dns.IsNotFound {
			t.Errorf("%s: %v", address, err)
		}
	}
	if _, err := rig.DialLocalhost(t.Context(), "tcp", "localhost"); err == nil {
		t.Error("no port")
	}
	// A proxy that knows the names serves clients that do not.
	p, err := rig.StartProxy(rig.ProxyOptions{Dial: rig.DialLocalhost})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	at, _ := url.Parse(p.URL())
	b := newCrowdBrowser(t)
	b.o = http.Transport{Proxy: http.ProxyURL(at), DisableKeepAlives: true}
	b.get("http://any.other."+host+"/crowd/status").want(200, "RUNNING")
	b.get("http://corp.example/").want(503)
}
