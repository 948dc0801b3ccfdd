package rig_test

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jcmturner/gokrb5/v8/client"
	"github.com/jcmturner/gokrb5/v8/config"
	gokrb5keytab "github.com/jcmturner/gokrb5/v8/keytab"
	"github.com/jcmturner/gokrb5/v8/spnego"

	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

const (
	sessionPath = "/rest/auth/1/session"
	goodLogin   = `{"username":"fred","password":"CANARY-password"}`
	badLogin    = `{"username":"fred","password":"CANARY-wrong"}`
	firefox     = "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"
)

// clock is a clock that tests turn.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *clock { return &clock{now: time.Date(2025, 3, 4, 5, 6, 7, 0, time.UTC)} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// newJira starts a Jira with the user fred.
func newJira(t testing.TB, o rig.AtlassianOptions) *rig.Atlassian {
	t.Helper()
	j, err := rig.StartJira(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(j.Stop)
	j.AddUser("fred", "CANARY-password")
	return j
}

// basic is the header of Basic authentication as fred.
func basic(password string) []string {
	return []string{"Authorization", "Basic " + base64.StdEncoding.EncodeToString([]byte("fred:"+password))}
}

// TestJiraLoginPage: what a person does with a browser, the CAPTCHA included.
func TestJiraLoginPage(t *testing.T) {
	j := newJira(t, rig.AtlassianOptions{ContextPath: "/jira"})
	v := newVisitor(t, j.URL())
	for range 4 {
		v.do("POST", sessionPath, badLogin, "Content-Type", "application/json")
	}
	v.do("POST", sessionPath, goodLogin, "Content-Type", "application/json").want(403)
	const form = "application/x-www-form-urlencoded"
	v.do("POST", "/login.jsp", "os_username=fred&os_password=CANARY-wrong", "Content-Type", form).want(200, "os_captcha", "X-Seraph-Loginreason: AUTHENTICATION_DENIED")
	v.do("POST", "/login.jsp", "os_username=fred&os_password=CANARY-wrong&os_captcha=solved", "Content-Type", form).want(200, "os_password", "X-Seraph-Loginreason: AUTHENTICATED_FAILED")
	v.do("POST", sessionPath, goodLogin, "Content-Type", "application/json").want(403)
	var login struct{ Username, Password string }
	if err := json.Unmarshal([]byte(goodLogin), &login); err != nil {
		t.Fatal(err)
	}
	fill := url.Values{"os_username": {login.Username}, "os_password": {login.Password}, "os_captcha": {"solved"}, "os_destination": {"/secure/a.jspa"}}
	v.do("POST", "/login.jsp", fill.Encode(), "Content-Type", form).want(302, "Location: /jira/secure/a.jspa", "Set-Cookie: JSESSIONID=")
	v.get("/rest/api/2/myself").want(200, login.Username)
	newVisitor(t, j.URL()).do("POST", sessionPath, goodLogin, "Content-Type", "application/json").want(200)
	if c := j.Counts(); c.Forms != 1 {
		t.Errorf("%+v", c)
	}
}

func TestJiraLogin(t *testing.T) {
	now := newClock()
	j := newJira(t, rig.AtlassianOptions{ContextPath: "/jira", Now: now.Now})
	v := newVisitor(t, j.URL())
	v.get(sessionPath).want(401, `"You are not authenticated. Authentication required to perform this operation."`, "X-Ausername: anonymous", "_lout; Path=/jira")
	v.post(sessionPath, badLogin).want(401, `{"errorMessages":["Login failed"],"errors":{}}`, "X-Seraph-Loginreason: AUTHENTICATED_FAILED", "JIRA REST POST")
	v.post(sessionPath, `{"username":"nobody","password":"CANARY-password"}`).want(401, "Login failed")
	v.post(sessionPath, `{"username":`).want(400)
	v.do("POST", sessionPath, goodLogin, "Content-Type", "text/plain", "X-Atlassian-Token", "no-check").want(415)
	v.do("PUT", sessionPath, goodLogin, "Content-Type", "application/json").want(405)

	now.advance(time.Hour)
	login := v.post(sessionPath, goodLogin).want(200, "X-Seraph-Loginreason: OK", "X-Ausername: fred", "X-Asessionid: ", "X-Arequestid: 366x")
	var got struct {
		Session   struct{ Name, Value string }
		LoginInfo map[string]any
	}
	login.into(&got)
	if want := "JSESSIONID=" + got.Session.Value + "; Path=/jira; HttpOnly"; login.cookie("JSESSIONID") != want || got.Session.Name != "JSESSIONID" {
		t.Errorf("the cookie is %q, want %q", login.cookie("JSESSIONID"), want)
	}
	for name, form := range map[string]string{
		"JSESSIONID":               `^JSESSIONID=CANARY-[0-9A-F]{32}; Path=/jira; HttpOnly$`,
		"atlassian.xsrf.token":     `^atlassian\.xsrf\.token=CANARY-[0-9A-Z]+_[0-9a-f]{40}_lin; Path=/jira$`,
		"seraph.rememberme.cookie": `^seraph\.rememberme\.cookie=""; Expires=Thu, 01-Jan-1970 00:00:10 GMT; Path=/jira$`,
		"AJS.conglomerate.cookie":  `^AJS\.conglomerate\.cookie=\|.*%3A.*; Path=/jira$`,
	} {
		if line := login.cookie(name); !regexp.MustCompile(form).MatchString(line) {
			t.Errorf("%s: %q", name, line)
		}
	}
	if want := map[string]any{"loginCount": 1.0, "failedLoginCount": 1.0, "lastFailedLoginTime": "2025-03-04T05:06:07.000+0000"}; fmt.Sprint(got.LoginInfo) != fmt.Sprint(want) {
		t.Errorf("loginInfo %v, want %v", got.LoginInfo, want)
	}
	v.get(sessionPath).want(200, `"name":"fred"`, `/jira/rest/api/latest/user?username=fred`, `"loginCount":1`)
	v.get("/rest/api/2/myself").want(200, `"name":"fred"`)
	v.get("/rest/api/2/serverInfo").want(200, `"versionNumbers":[9,12,0]`, `"deploymentType":"Server"`)
	v.get("/secure/Dashboard.jspa").want(200, "fred")

	// A second login ends the first session, and tells when that was.
	old := got.Session.Value
	v.post(sessionPath, goodLogin).want(200, `"previousLoginTime":"2025-03-04T06:06:07.000+0000"`, `"loginCount":2`)
	bare := &visitor{t: t, base: j.URL()}
	bare.get("/rest/api/2/myself", "Cookie", "JSESSIONID="+old).want(401, "os_authType was 'any' and an invalid cookie was sent.")

	v.do("DELETE", sessionPath, "").want(204, "X-Seraph-Loginreason: OUT", "_lout")
	v.do("DELETE", sessionPath, "").want(401)
	if n, want := j.Counts(), (rig.AtlassianCounts{Logins: 2, Refused: 2, Logouts: 1}); n != want {
		t.Errorf("counts %+v, want %+v", n, want)
	}
	if n := j.Hits("/jira/rest/auth/"); n.Total != 11 || n.Cookie != 10 {
		t.Errorf("hits %+v", n)
	}
	newVisitor(t, strings.TrimSuffix(j.URL(), "/jira")).get("/jiraffe").want(404)
}

func TestJiraSessionLife(t *testing.T) {
	now := newClock()
	j := newJira(t, rig.AtlassianOptions{Now: now.Now})
	login := func() *visitor {
		v := newVisitor(t, j.URL())
		v.post(sessionPath, goodLogin).want(200, "Path=/;")
		return v
	}
	for _, c := range []struct {
		name        string
		noProbation bool
		idle        []time.Duration // each but the last is followed by a request that is served
		dead        bool
	}{
		{"probation", false, []time.Duration{10*time.Minute - time.Second}, false},
		{"over probation", false, []time.Duration{10 * time.Minute}, true},
		{"used once", false, []time.Duration{0, 300*time.Minute - time.Second}, false},
		{"idle", false, []time.Duration{0, 300 * time.Minute}, true},
		{"use keeps alive", false, []time.Duration{0, 200 * time.Minute, 200 * time.Minute}, false},
		{"no probation", true, []time.Duration{300*time.Minute - time.Second}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			j.DropSessions()
			j.SetModes(rig.AtlassianModes{NoProbation: c.noProbation})
			v := login()
			for i, d := range c.idle {
				now.advance(d)
				if n := j.Counts().Sessions; (n == 1) != (i < len(c.idle)-1 || !c.dead) {
					t.Errorf("after %v: %d sessions", d, n)
				}
				if i == len(c.idle)-1 && c.dead {
					v.get("/rest/api/2/myself").want(401, "invalid cookie")
					return
				}
				v.get("/rest/api/2/myself").want(200)
			}
		})
	}
	j.SetModes(rig.AtlassianModes{})
	v := newVisitor(t, j.URL())
	v.get("/login.jsp").want(200, "JSESSIONID=")
	now.advance(59 * time.Second)
	if a := v.get("/login.jsp").want(200); a.cookie("JSESSIONID") != "" {
		t.Error("a session of nobody did not live for 59 s")
	}
	v = newVisitor(t, j.URL())
	v.get("/login.jsp").want(200)
	now.advance(time.Minute)
	if a := v.get("/login.jsp").want(200); a.cookie("JSESSIONID") == "" {
		t.Error("a session of nobody lives for 60 s after its first request")
	}
}

func TestJiraStaleCookie(t *testing.T) {
	j := newJira(t, rig.AtlassianOptions{ContextPath: "/jira"})
	v := newVisitor(t, j.URL())
	v.get("/rest/api/2/search").want(200, `"total":1`)
	v.get("/rest/api/2/issue/LAB-1").want(200)
	v.get("/rest/api/2/issue/LAB-2").want(401, "Login Required")
	v.get("/rest/api/2/myself").want(401, "You are not authenticated")
	v.post(sessionPath, goodLogin).want(200)
	v.get("/rest/api/2/search").want(200, `"total":3`)

	j.DropSessions()
	v.get("/rest/api/2/serverInfo").want(401, "os_authType was 'any' and an invalid cookie was sent.")
	v.get("/rest/api/2/myself", basic("CANARY-password")...).want(401, "invalid cookie")
	v.get(sessionPath).want(401, "You are not authenticated") // exempt, and begins another session
	v.get("/rest/api/2/search").want(200, `"total":1`)

	v.post(sessionPath, goodLogin).want(200)
	j.DropSessions()
	v.post(sessionPath, goodLogin).want(200) // in spite of the dead cookie
	v.get("/rest/api/2/myself").want(200)

	// Of two session cookies the living one counts.
	login := newVisitor(t, j.URL()).post(sessionPath, goodLogin).want(200)
	good, _, _ := strings.Cut(login.cookie("JSESSIONID"), ";")
	bare := &visitor{t: t, base: j.URL()}
	bare.get("/rest/api/2/myself", "Cookie", "JSESSIONID=CANARY-old; "+good).want(200)
	bare.get("/rest/api/2/myself", "Cookie", "JSESSIONID=CANARY-old").want(401)
}

func TestJiraCaptcha(t *testing.T) {
	j := newJira(t, rig.AtlassianOptions{ContextPath: "/jira"})
	v := newVisitor(t, j.URL())
	v.post(sessionPath, badLogin).want(401)
	v.post(sessionPath, badLogin).want(401)
	v.post(sessionPath, goodLogin).want(200) // forgets them
	v = newVisitor(t, j.URL())
	v.post(sessionPath, badLogin).want(401)
	v.get("/rest/api/2/myself", basic("CANARY-wrong")...).want(401, "Basic Authentication Failure - Reason : AUTHENTICATED_FAILED")
	v.post(sessionPath, badLogin).want(401, "Login failed")
	seen := []string{
		"X-Seraph-Loginreason: AUTHENTICATION_DENIED", "X-Authentication-Denied-Reason: CAPTCHA_CHALLENGE; login-url=" + j.URL() + "/login.jsp",
		`Www-Authenticate: OAuth realm="http%3A%2F%2Flocalhost`, ";path=/jira;HttpOnly",
	}
	v.post(sessionPath, goodLogin).want(403, append(seen, "Login denied")...)
	v.get("/rest/api/2/myself", basic("CANARY-password")...).want(403, append(seen, "text/html")...)
	if n, want := j.Counts(), (rig.AtlassianCounts{Logins: 1, Refused: 5, Denied: 2, Sessions: 1}); n != want {
		t.Errorf("counts %+v, want %+v", n, want)
	}
	j.SolveCaptcha("fred")
	v.post(sessionPath, goodLogin).want(200, `"failedLoginCount":7`)

	one := newJira(t, rig.AtlassianOptions{MaxFailures: 1})
	v = newVisitor(t, one.URL())
	v.post(sessionPath, badLogin).want(401)
	v.post(sessionPath, goodLogin).want(403)
}

func TestJiraBasic(t *testing.T) {
	j := newJira(t, rig.AtlassianOptions{})
	v := &visitor{t: t, base: j.URL()}
	for range 3 {
		v.get("/rest/api/2/myself", basic("CANARY-password")...).want(200, `"name":"fred"`, "JSESSIONID=CANARY-")
	}
	if n := j.Counts(); n.Basic != 3 || n.Sessions != 3 {
		t.Errorf("3 requests by Basic: %+v", n)
	}
	if n := j.Hits("/rest/"); n.Basic != 3 || n.Total != 3 {
		t.Errorf("hits %+v", n)
	}
	j.AddUser("svc", "")
	v.post(sessionPath, `{"username":"svc","password":""}`).want(401)
}

func TestJiraForgery(t *testing.T) {
	j := newJira(t, rig.AtlassianOptions{ContextPath: "/jira"})
	v := newVisitor(t, j.URL())
	v.post(sessionPath, goodLogin).want(200)
	origin := strings.TrimSuffix(j.URL(), "/jira")
	const form = "--b\r\nContent-Disposition: form-data; name=\"comment\"\r\n\r\nnot a file\r\n--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.txt\"\r\nContent-Type: text/plain\r\n\r\nhello\r\n--b--\r\n"
	const attachments = "/rest/api/2/issue/LAB-2/attachments"
	multipart := []string{"Content-Type", "multipart/form-data; boundary=b"}
	v.do("POST", attachments, form, multipart...).want(403, "XSRF check failed")
	for _, token := range []string{"no-check", "nocheck"} {
		v.do("POST", attachments, form, append(multipart, "X-Atlassian-Token", token)...).want(200, `"filename":"a.txt"`, `"size":5`)
	}
	v.get("/rest/api/2/issue/LAB-2").want(200, `"id":"10001"`, `"id":"10002"`, `"filename":"a.txt"`)
	v.do("POST", attachments, "nonsense", append(multipart, "X-Atlassian-Token", "no-check")...).want(400)

	search := func(header ...string) *reply { return v.post("/rest/api/2/search", `{"jql":""}`, header...) }
	search().want(200)
	search("User-Agent", "Windows NT").want(200)
	for _, header := range [][]string{
		{"X-Atlassian-Token", "no-check"},
		{"Origin", "http://other.example"},
		{"Origin", "null"},
		{"Referer", "http://other.example/jira/"},
		{"Origin", strings.Replace(origin, "localhost", "127.0.0.1", 1)},
	} {
		search(append(header, "User-Agent", firefox)...).want(403, "XSRF check failed")
	}
	search("User-Agent", firefox, "Origin", origin).want(200)
	search("User-Agent", firefox, "Referer", j.URL()+"/secure/Dashboard.jspa").want(200)
	v.get("/rest/api/2/search", "User-Agent", firefox).want(200)
	v.post(sessionPath, goodLogin, "User-Agent", firefox).want(403, "XSRF check failed")
}

func TestJiraModes(t *testing.T) {
	j := newJira(t, rig.AtlassianOptions{ContextPath: "/jira"})
	const myself, login, status = "/rest/api/2/myself", "/login.jsp", "/status"
	none := func(a *reply) { // no session
		t.Helper()
		if line := a.cookie("JSESSIONID"); line != "" {
			a.t.Errorf("a session cookie: %s", line)
		}
	}
	for name, c := range map[string]struct {
		modes rig.AtlassianModes
		test  func(user, guest *visitor)
	}{
		"as installed": {rig.AtlassianModes{}, func(user, guest *visitor) {
			guest.get(status).want(200, `{"state":"RUNNING"}`)
			user.get(login).want(302, "Location: /jira/secure/Dashboard.jspa")
			user.get(login+"?os_destination=%2Fsecure%2Fa.jspa").want(302, "Location: /jira/secure/a.jspa")
			user.get(login+"?os_destination=%2F%2Fother.example").want(302, "Location: /jira/secure/Dashboard.jspa")
			guest.get("/secure/a.jspa").want(302, "Location: /jira/login.jsp?os_destination=%2Fsecure%2Fa.jspa")
			guest.get("").want(302, "Location: /jira/secure/Dashboard.jspa")
			guest.get(login).want(200, `name="os_username"`, `name="os_password"`, "login-form-remember-me")
			guest.do("PUT", login, "os_username=fred").want(405)
		}},
		"maintenance": {rig.AtlassianModes{Maintenance: true}, func(user, guest *visitor) {
			guest.get(status).want(503, `{"state":"MAINTENANCE"}`)
			user.get(myself).want(503)
			none(guest.post(sessionPath, goodLogin).want(503))
		}},
		"server error": {rig.AtlassianModes{ServerError: true}, func(user, guest *visitor) {
			guest.get(status).want(500, `{"state":"ERROR"}`)
			user.get(myself).want(500)
			none(guest.post(sessionPath, goodLogin).want(500))
		}},
		"rate limited": {rig.AtlassianModes{RetryAfter: 7 * time.Second}, func(user, guest *visitor) {
			user.get(myself).want(429, "Retry-After: 7", "X-Ratelimit-Fillrate: ", "X-Ratelimit-Limit: ", "X-Ratelimit-Interval-Seconds: ")
			none(guest.post(sessionPath, goodLogin).want(429))
			guest.get(login).want(200)
		}},
		"login page": {rig.AtlassianModes{LoginPage: true}, func(user, guest *visitor) {
			user.get(myself).want(200, "os_password", "X-Ausername: anonymous")
			guest.post(sessionPath, goodLogin).want(200, "os_password")
		}},
		"empty refusal": {rig.AtlassianModes{EmptyRefusal: true}, func(user, guest *visitor) {
			if a := guest.post(sessionPath, badLogin).want(200, "X-Seraph-Loginreason: AUTHENTICATED_FAILED"); a.body != "" {
				t.Errorf("a body: %s", a.body)
			}
			guest.get(myself, basic("CANARY-wrong")...).want(200, "X-Seraph-Loginreason: AUTHENTICATED_FAILED")
			guest.post(sessionPath, goodLogin).want(200, `"JSESSIONID"`)
		}},
		"Basic disabled": {rig.AtlassianModes{BasicDisabled: true}, func(user, guest *visitor) {
			const text = `{"message":"Basic Authentication has been disabled on this instance."}`
			before := j.Counts()
			guest.post(sessionPath, goodLogin).want(403, text)
			guest.get(myself, basic("CANARY-wrong")...).want(403, text)
			user.get(myself).want(200)
			if n := j.Counts(); n.Disabled != 2 || n.Refused != before.Refused || n.Logins != before.Logins {
				t.Errorf("counts %+v", n)
			}
		}},
		"SSO": {rig.AtlassianModes{SSO: "https://sso.example/start"}, func(user, guest *visitor) {
			for _, path := range []string{login, "/secure/Dashboard.jspa", "/"} {
				none(guest.get(path).want(302, "Location: https://sso.example/start", "_oauth2_proxy_csrf="))
			}
			none(guest.post(sessionPath, goodLogin).want(302, "Location: https://sso.example/start"))
			user.get(myself).want(200)
		}},
		"no permission": {rig.AtlassianModes{NoPermission: true}, func(user, guest *visitor) {
			guest.post(sessionPath, goodLogin).want(403, "X-Seraph-Loginreason: AUTHORISATION_FAILED", "X-Ausername: anonymous")
			guest.post(sessionPath, badLogin).want(401, "AUTHENTICATED_FAILED")
			guest.get(myself, basic("CANARY-password")...).want(403, "X-Seraph-Loginreason: AUTHORISATION_FAILED")
			user.get(sessionPath).want(403, "X-Seraph-Loginreason: AUTHORISATION_FAILED", "X-Ausername: fred")
			user.get("/secure/Dashboard.jspa").want(403)
			user.do("DELETE", sessionPath, "").want(204)
		}},
		"no session": {rig.AtlassianModes{NoSession: true}, func(user, guest *visitor) {
			none(guest.post(sessionPath, goodLogin).want(200, `"JSESSIONID"`))
			guest.get(myself).want(401)
		}},
		"anonymous": {rig.AtlassianModes{Anonymous: true}, func(user, guest *visitor) {
			guest.post(sessionPath, goodLogin).want(200, "JSESSIONID=", "X-Seraph-Loginreason: OK")
			guest.get(sessionPath).want(401, "X-Ausername: anonymous", "You are not authenticated")
		}},
		"maintenance and two nodes": {rig.AtlassianModes{Maintenance: true, TwoNodes: true}, func(user, guest *visitor) {
			guest.get(status).want(503, "AWSALB=CANARY-")
		}},
	} {
		t.Run(name, func(t *testing.T) {
			j.SetModes(rig.AtlassianModes{})
			j.AddUser("fred", "CANARY-password")
			user := newVisitor(t, j.URL())
			user.post(sessionPath, goodLogin).want(200)
			j.SetModes(c.modes)
			c.test(user, newVisitor(t, j.URL()))
		})
	}
}

func TestJiraTwoNodes(t *testing.T) {
	j := newJira(t, rig.AtlassianOptions{ContextPath: "/jira"})
	j.SetModes(rig.AtlassianModes{TwoNodes: true})
	v := newVisitor(t, j.URL())
	login := v.post(sessionPath, goodLogin).want(200)
	last := login.cookie("AWSALB")
	for range 4 {
		next := v.get("/rest/api/2/myself").want(200).cookie("AWSALB")
		if next == last || !strings.HasPrefix(next, "AWSALB=CANARY-") || !strings.HasSuffix(next, "; Path=/") {
			t.Errorf("sticky cookie %q after %q", next, last)
		}
		last = next
	}
	session, _, _ := strings.Cut(login.cookie("JSESSIONID"), ";")
	sticky, _, _ := strings.Cut(login.cookie("AWSALB"), ";")
	bare := &visitor{t: t, base: j.URL()}
	bare.get("/rest/api/2/myself", "Cookie", session).want(401, "invalid cookie")
	bare.get("/rest/api/2/myself", "Cookie", session+"; "+sticky).want(200)
	if n := j.Counts().Sessions; n != 1 {
		t.Errorf("%d sessions", n)
	}
	j.SetPassword("fred", "CANARY-new")
	v.get("/rest/api/2/myself").want(401)
	v.post(sessionPath, goodLogin).want(401)
	v.post(sessionPath, `{"username":"fred","password":"CANARY-new"}`).want(200)
}

func TestJiraIssues(t *testing.T) {
	j := newJira(t, rig.AtlassianOptions{ContextPath: "/jira"})
	v := newVisitor(t, j.URL())
	const issue = `{"fields":{"project":{"key":"LAB"},"summary":"It is <new>","issuetype":{"name":"Bug"}}}`
	v.post("/rest/api/2/issue", issue).want(401)
	v.do("POST", "/rest/api/2/issue/LAB-1/attachments", "", "Content-Type", "multipart/form-data; boundary=b", "X-Atlassian-Token", "no-check").want(401)
	v.post(sessionPath, goodLogin).want(200)
	v.post("/rest/api/2/issue", issue).want(201, `"key":"LAB-4"`)
	v.post("/rest/api/2/issue", `{"fields":{"project":{"id":"10000"},"summary":"x","issuetype":{"id":"10001"}}}`).want(201, `"key":"LAB-5"`)
	v.post("/rest/api/2/issue", `{"fields":{}}`).want(400, `"project":`, `"summary":`, `"issuetype":`)
	v.post("/rest/api/2/issue", `[`).want(400)
	v.do("POST", "/rest/api/2/issue", issue).want(415)
	v.get("/rest/api/2/issue/LAB-4").want(200, `"name":"Bug"`, `"reporter":`, `"attachment":[]`)
	v.get("/rest/api/2/issue/10005").want(200, `"key":"LAB-5"`)
	v.get("/rest/api/2/issue/LAB-9").want(404, "Issue Does Not Exist")
	v.get("/rest/api/2/project/LAB").want(200, `"issueTypes":[`)
	v.get("/rest/api/2/project/10000").want(200)
	v.get("/rest/api/2/project/NONE").want(404)
	v.get("/rest/api/2/field").want(200, `"clauseNames":["summary"]`)
	v.get("/rest/api/2/issuetype").want(200, `"name":"Task"`)
	v.get("/rest/api/2/none").want(404)
	v.get("/none").want(404)
	w := httptest.NewRecorder()
	j.ServeHTTP(w, httptest.NewRequest("POST", "/jira/rest/api/2/search", strings.NewReader(strings.Repeat(" ", 1<<20+1))))
	if w.Code != http.StatusBadRequest {
		t.Errorf("a body over the limit: status %d", w.Code)
	}
	v.do("PUT", "/rest/api/2/issue/LAB-1", "{}").want(405)
	if n := j.Counts().Created; n != 2 {
		t.Errorf("%d issues created", n)
	}
	type page struct {
		StartAt, MaxResults, Total int
		Issues                     []struct{ Key string }
	}
	for query, want := range map[string]string{
		"":                         "{0 50 5 [{LAB-1} {LAB-2} {LAB-3} {LAB-4} {LAB-5}]}",
		"?startAt=3&maxResults=1":  "{3 1 5 [{LAB-4}]}",
		"?startAt=9":               "{5 50 5 []}",
		"?startAt=-1&maxResults=0": "{0 0 5 []}",
	} {
		var p page
		v.get("/rest/api/2/search" + query).want(200).into(&p)
		if got := fmt.Sprint(p); got != want {
			t.Errorf("search%s: %s, want %s", query, got, want)
		}
	}
	v.get("/rest/api/2/search?startAt=x").want(400)
	var p page
	v.post("/rest/api/2/search", `{"jql":"project = LAB","startAt":1,"maxResults":2,"fields":["*all"]}`).want(200).into(&p)
	if got, want := fmt.Sprint(p), "{1 2 5 [{LAB-2} {LAB-3}]}"; got != want {
		t.Errorf("search by POST: %s, want %s", got, want)
	}
	v.post("/rest/api/2/search", `nonsense`).want(400)
}

func TestJiraStop(t *testing.T) {
	j := newJira(t, rig.AtlassianOptions{})
	v := newVisitor(t, j.URL())
	v.post(sessionPath, goodLogin).want(200)
	url := j.URL()
	j.Stop()
	if resp, err := http.Get(url + "/status"); err == nil {
		resp.Body.Close()
		t.Error("Jira answers while it is stopped")
	}
	j.Stop()
	if err := j.Start(); err != nil {
		t.Fatal(err)
	}
	if j.URL() != url {
		t.Errorf("%s was %s before", j.URL(), url)
	}
	v.get("/rest/api/2/myself").want(200)
	if err := j.Start(); err == nil {
		t.Error("Jira starts twice")
	}
}

// tokens returns a maker of Negotiate tokens of svc@RIG.TEST for HTTP/localhost,
// made by gokrb5's own client, and the service's keytab.
func tokens(t *testing.T) (token func() string, keytabFile []byte) {
	t.Helper()
	k := newKDC(t)
	k.AddPrincipal("svc", "CANARY-password", rig.AES256SHA1)
	k.AddService("HTTP/localhost", rig.AES256SHA1)
	conf, err := config.NewFromString(k.Krb5Conf())
	if err != nil {
		t.Fatal(err)
	}
	kt := gokrb5keytab.New()
	if err := kt.Unmarshal(k.Keytab("svc")); err != nil {
		t.Fatal(err)
	}
	c := client.NewWithKeytab("svc", k.Realm(), kt, conf, client.DisablePAFXFAST(true))
	t.Cleanup(c.Destroy)
	if err := c.Login(); err != nil {
		t.Fatal(err)
	}
	return func() string {
		t.Helper()
		tok, err := spnego.SPNEGOClient(c, "HTTP/localhost").InitSecContext()
		if err != nil {
			t.Fatal(err)
		}
		b, err := tok.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		return "Negotiate " + base64.StdEncoding.EncodeToString(b)
	}, k.Keytab("HTTP/localhost")
}

func TestJiraIWAAC(t *testing.T) {
	token, keytabFile := tokens(t)
	j := newJira(t, rig.AtlassianOptions{ContextPath: "/jira", Keytab: keytabFile, Guard: &rig.IWAAC{Agent: "Windows NT", URIs: []string{"/login.jsp"}}})
	v := newVisitor(t, j.URL())
	v.get("/login.jsp").want(200, "os_password") // another agent
	const agent = "sessionctl/1 (Windows NT)"
	v.get("/rest/api/2/serverInfo", "User-Agent", agent).want(200) // another URI
	if a := v.get("/login.jsp", "User-Agent", agent).want(401); a.header.Get("WWW-Authenticate") != "Negotiate" {
		t.Errorf("challenge %q", a.header.Values("WWW-Authenticate"))
	}
	v.get("/login.jsp", "User-Agent", agent, "Authorization", "Negotiate !").want(401)
	v.get("/login.jsp", "User-Agent", agent, "Authorization", "Negotiate "+base64.StdEncoding.EncodeToString([]byte("nonsense"))).want(401, "Negotiate oQcwBaADCgEC")

	// A good ticket of somebody whom Jira does not know.
	v.get("/login.jsp", "User-Agent", agent, "Authorization", token()).want(200, "os_password", "X-Seraph-Loginreason: AUTHENTICATED_FAILED", "X-Ausername: anonymous")
	j.AddUser("svc", "")
	j.SetModes(rig.AtlassianModes{NoPermission: true})
	v.get("/login.jsp", "User-Agent", agent, "Authorization", token()).want(200, "os_password", "X-Seraph-Loginreason: AUTHORISATION_FAILED")
	j.SetModes(rig.AtlassianModes{})

	good := token()
	v.get("/login.jsp?os_destination=%2Fsecure%2Fa.jspa", "User-Agent", agent, "Authorization", good).want(302,
		"Location: /jira/secure/a.jspa", "X-Seraph-Loginreason: OK", "X-Ausername: svc", "JSESSIONID=CANARY-", "_lin;", "crowd.token_key=CANARY-")
	v.get("/rest/api/2/issue/LAB-2").want(200) // the agent is asked for at the login only
	v.get(sessionPath).want(200, `"name":"svc"`, `"loginCount":1`)
	v.get("/login.jsp", "User-Agent", agent).want(302) // logged in already
	newVisitor(t, j.URL()).get("/login.jsp", "User-Agent", agent, "Authorization", good).want(401)
	if n, want := j.Counts(), (rig.AtlassianCounts{Tokens: 6, KerberosLogins: 1, Sessions: 1}); n != want {
		t.Errorf("counts %+v, want %+v", n, want)
	}
	if n := j.Hits("/jira/login.jsp"); n.Negotiate != 6 {
		t.Errorf("hits %+v", n)
	}
	j.SetModes(rig.AtlassianModes{NoSession: true})
	guest := newVisitor(t, j.URL())
	guest.get("/login.jsp", "User-Agent", agent, "Authorization", token()).want(302, "Location: /jira/secure/Dashboard.jspa")
	guest.get("/rest/api/2/myself").want(401)
}

func TestJiraKerberosForAll(t *testing.T) {
	token, keytabFile := tokens(t)
	j := newJira(t, rig.AtlassianOptions{Keytab: keytabFile})
	j.AddUser("svc", "")
	v := newVisitor(t, j.URL())
	for range 3 {
		v.post(sessionPath, `{"username":"svc","password":"CANARY-wrong"}`).want(401)
	}
	v.get("/login.jsp").want(401, "Negotiate")
	v.get("/secure/Dashboard.jspa").want(302, "/login.jsp?os_destination=%2Fsecure%2FDashboard.jspa")
	a := v.get("/login.jsp", "Authorization", token()).want(302, "Location: /secure/Dashboard.jspa")
	if a.cookie("crowd.token_key") != "" {
		t.Error("a cookie of IWAAC without IWAAC")
	}
	v.get("/rest/api/2/myself").want(200, `"name":"svc"`)
	// A ticket is no password: the CAPTCHA neither stops it nor is it solved by it.
	v.post(sessionPath, `{"username":"svc","password":"CANARY-wrong"}`).want(403, "CAPTCHA_CHALLENGE")
	if _, err := rig.StartJira(rig.AtlassianOptions{Keytab: []byte("nonsense")}); err == nil {
		t.Error("a malformed keytab is taken")
	}
}

func TestJiraInParallel(t *testing.T) {
	j := newJira(t, rig.AtlassianOptions{})
	var clients sync.WaitGroup
	for i := range 8 {
		clients.Go(func() {
			w := httptest.NewRecorder()
			r := httptest.NewRequestWithContext(t.Context(), "POST", sessionPath, strings.NewReader(goodLogin))
			r.Header.Set("Content-Type", "application/json")
			j.ServeHTTP(w, r)
			if w.Code != http.StatusOK {
				t.Errorf("status %d", w.Code)
			}
			j.SetModes(rig.AtlassianModes{NoProbation: i%2 == 0})
			if n := j.Counts(); n.Logins < 1 || n.Sessions < 1 {
				t.Errorf("counts %+v", n)
			}
		})
	}
	clients.Wait()
	if n := j.Counts(); n.Logins != 8 || n.Sessions != 8 || j.Hits("/").Total != 8 {
		t.Errorf("counts %+v, hits %+v", n, j.Hits("/"))
	}
}

// Whatever is sent, Jira answers, and logs nobody in without a password.
func FuzzJira(f *testing.F) {
	j := newJira(f, rig.AtlassianOptions{ContextPath: "/jira"})
	j.SetPassword("fred", "CANARY-"+rand.Text())
	f.Add("POST", sessionPath, "application/json", badLogin, "JSESSIONID=x", "")
	f.Add("POST", "/rest/api/2/issue/LAB-1/attachments", "multipart/form-data; boundary=b", "--b\r\n\r\n--b--", "", "")
	f.Add("POST", "/rest/api/2/search", "application/json", `{"startAt":-1}`, "", "Basic eDp5")
	f.Add("GET", "/login.jsp?os_destination=//x", "", "", "AWSALB=x", "Negotiate x")
	f.Fuzz(func(t *testing.T, method, path, contentType, body, cookie, authorization string) {
		r, err := http.NewRequestWithContext(t.Context(), method, "http://localhost/jira"+path, strings.NewReader(body))
		if err != nil {
			return
		}
		r.Header = http.Header{
			"Content-Type": {contentType}, "Cookie": {cookie}, "Authorization": {authorization}, "X-Atlassian-Token": {"no-check"},
		}
		j.DropSessions()
		w := httptest.NewRecorder()
		j.ServeHTTP(w, r)
		if w.Code < 200 || w.Code > 599 {
			t.Errorf("status %d", w.Code)
		}
		if name := w.Header().Get("X-AUSERNAME"); name != "anonymous" {
			t.Errorf("logged in as %q", name)
		}
	})
}
