package rig_test

import (
	"context"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"net"
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

const (
	twoStepPath = "/rest/tsv/1.0/authenticate"
	formType    = "application/x-www-form-urlencoded"
)

// atlassian is what tests know of a product.
type atlassian struct {
	name, typeID   string
	start          func(rig.AtlassianOptions) (*rig.Atlassian, error)
	login, action  string // the login page, and where its form goes
	user, password string // the form's fields
	remember       string
	picture        string
	marker         string // by which the toolkit knows the form
	refused        []string
	home           string
	cookie         string
	remembers      string // the cookie of remember-me
	captcha        int    // after so many failures
	idle           time.Duration
	whoami         string
	known, nobody  func(*reply)
	logout         string // by GET
	private        string // a resource for users
	captchaBasic   []string
	legacyOnly     bool
}

// says returns a check of an answer's status and texts.
func says(status int, texts ...string) func(*reply) {
	return func(a *reply) {
		a.t.Helper()
		a.want(status, texts...)
	}
}

// exactly is says for a whole body.
func exactly(status int, body string) func(*reply) {
	return func(a *reply) {
		a.t.Helper()
		if a.want(status); a.body != body {
			a.t.Errorf("body %q, want %q", a.body, body)
		}
	}
}

var atlassians = []atlassian{
	{
		name: "Jira", typeID: "jira", start: rig.StartJira, login: "/login.jsp", action: "/login.jsp",
		user: "os_username", password: "os_password", remember: "os_cookie", picture: "os_captcha", marker: "login-form-remember-me",
		refused: []string{"200", "X-Seraph-Loginreason: AUTHENTICATED_FAILED"}, home: "/secure/Dashboard.jspa",
		cookie: "JSESSIONID", remembers: "seraph.rememberme.cookie", captcha: 3, idle: 300 * time.Minute,
		whoami: sessionPath, known: says(200, `"name":"fred"`, "X-Ausername: fred"), nobody: says(401, "X-Ausername: anonymous"),
		private: "/rest/api/2/issue/LAB-2", captchaBasic: []string{"403", "X-Seraph-Loginreason: AUTHENTICATION_DENIED", "CAPTCHA_CHALLENGE"},
	},
	{
		name: "Confluence", typeID: "confluence", start: rig.StartConfluence, login: "/login.action", action: "/dologin.action",
		user: "os_username", password: "os_password", remember: "os_cookie", picture: "os_captcha", marker: "loginform",
		refused: []string{"200", "X-Seraph-Loginreason: AUTHENTICATED_FAILED"}, home: "/index.action",
		cookie: "JSESSIONID", remembers: "seraph.confluence", captcha: 3, idle: time.Hour,
		whoami: "/rest/api/user/current", known: says(200, `"type":"known"`, `"username":"fred"`, "X-Ausername: fred"), nobody: says(200, `"type":"anonymous"`),
		logout: "/logout.action", private: "/rest/api/content/65538",
		captchaBasic: []string{"401", "X-Seraph-Loginreason: AUTHENTICATION_DENIED", "Basic Authentication Failure - Reason : AUTHENTICATION_DENIED"},
	},
	{
		name: "Bitbucket", typeID: "stash", start: rig.StartBitbucket, login: "/login", action: "/j_atl_security_check",
		user: "j_username", password: "j_password", remember: "_atl_remember_me", picture: "captcha", marker: "j_username",
		refused: []string{"302", "/login?next="}, home: "/dashboard",
		cookie: "BITBUCKETSESSIONID", remembers: "_atl_bitbucket_remember_me", captcha: 5, idle: 30 * time.Minute,
		whoami: "/plugins/servlet/applinks/whoami", known: exactly(200, "fred"), nobody: exactly(200, ""),
		logout: "/j_atl_security_logout", private: "/rest/api/1.0/projects/LAB",
		captchaBasic: []string{"401", "CaptchaRequiredAuthenticationException", `Basic realm="Atlassian Bitbucket"`},
	},
	{
		name: "Bamboo", typeID: "bamboo", start: rig.StartBamboo, login: "/userlogin!doDefault.action", action: "/userlogin.action",
		user: "os_username", password: "os_password", remember: "os_cookie", picture: "captcha", marker: "loginForm",
		refused: []string{"200", "X-Seraph-Loginreason: AUTHENTICATED_FAILED"}, home: "/start.action",
		cookie: "JSESSIONID", remembers: "seraph.bamboo", captcha: 3, idle: 30 * time.Minute,
		whoami: "/rest/api/latest/currentUser.json", known: says(200, `"name":"fred"`), nobody: says(401),
		logout: "/userLogout.action", private: "/rest/api/latest/plan/LAB-PLAN",
		captchaBasic: []string{"403", "X-Seraph-Loginreason: AUTHENTICATION_DENIED"},
	},
	{
		name: "Crucible", typeID: "fecru", start: rig.StartCrucible, login: "/login", action: "/login",
		user: "username", password: "password", remember: "rememberme", picture: "captcha", marker: "loginform",
		refused: []string{"200", "loginform"}, home: "/",
		cookie: "FESESSIONID", remembers: "remember", captcha: 3, idle: 30 * time.Minute,
		whoami: "/profile", known: says(200, "headerUserDetails", "/user/fred"), nobody: says(200, "Guest |", "loginform"),
		logout: "/logout", private: "/rest-service/reviews-v1/CR-2", captchaBasic: []string{"403", `"error"`, "CAPTCHA"}, legacyOnly: true,
	},
}

// each runs a test for each product, whose base has a context path.
func each(t *testing.T, test func(t *testing.T, p atlassian)) {
	for _, p := range atlassians {
		t.Run(p.name, func(t *testing.T) { test(t, p) })
	}
}

// run starts a product with the user fred.
func (p *atlassian) run(t testing.TB, o rig.AtlassianOptions) *rig.Atlassian {
	t.Helper()
	a, err := p.start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Stop)
	a.AddUser("fred", "CANARY-password")
	return a
}

var field = regexp.MustCompile(`<input ([^>]*)>`)

// fill sends the login form as a person does: with what it has in hidden fields.
func (p *atlassian) fill(v *visitor, password string, more ...string) *reply {
	v.t.Helper()
	page := v.get(p.login).want(200, p.marker, `action="`)
	form := url.Values{p.user: {"fred"}, p.password: {password}}
	for _, input := range field.FindAllStringSubmatch(page.body, -1) {
		attr := map[string]string{}
		for _, a := range regexp.MustCompile(`(\w+)="([^"]*)"`).FindAllStringSubmatch(input[1], -1) {
			attr[a[1]] = a[2]
		}
		if attr["type"] == "hidden" && !(p.name == "Crucible" && attr["name"] == p.remember) {
			form.Set(attr["name"], attr["value"])
		}
	}
	for i := 0; i < len(more); i += 2 {
		form.Set(more[i], more[i+1])
	}
	return v.do("POST", p.action, form.Encode(), "Content-Type", formType)
}

// wantAll is want for a status among texts.
func (a *reply) wantAll(status string, texts ...string) *reply {
	a.t.Helper()
	if fmt.Sprint(a.status) != status {
		a.t.Errorf("status %d, want %s: %s", a.status, status, a.text())
	}
	return a.want(a.status, texts...)
}

func TestAtlassianForm(t *testing.T) {
	each(t, func(t *testing.T, p atlassian) {
		a := p.run(t, rig.AtlassianOptions{ContextPath: "/x"})
		v := newVisitor(t, a.URL())
		p.nobody(v.get(p.whoami))
		if r := v.get(p.private); r.status < 400 {
			t.Errorf("everybody gets what is for users: %s", r.text())
		}
		p.fill(v, "CANARY-wrong").wantAll(p.refused[0], p.refused[1:]...)
		p.nobody(v.get(p.whoami))
		in := p.fill(v, "CANARY-password").want(302, "Location: /x"+p.home)
		if want := regexp.MustCompile(`^` + p.cookie + `=CANARY-[0-9A-F]{32}; Path=/x; HttpOnly$`); !want.MatchString(in.cookie(p.cookie)) {
			t.Errorf("the cookie is %q", in.cookie(p.cookie))
		}
		if line := in.cookie(p.remembers); strings.Contains(line, "CANARY-") {
			t.Errorf("remembered unasked: %s", line)
		}
		p.known(v.get(p.whoami))
		v.get(p.private).want(200)
		v.get(p.home).want(200, "fred")
		v.get(p.login).want(302, "Location: /x"+p.home)
		v.do("PUT", p.login, "").want(405)
		if p.logout != "" {
			v.get(p.logout).want(302)
		} else {
			v.do("DELETE", p.whoami, "").want(204)
		}
		p.nobody(v.get(p.whoami))
		if p.logout != "" {
			v.get(p.logout).want(302) // once more
		}
		p.fill(v, "CANARY-password", "os_destination", "//other.example", "next", "//other.example", "origUrl", "//other.example").want(302, "Location: /x"+p.home)
		if n, want := a.Counts(), (rig.AtlassianCounts{Forms: 2, Refused: 1, Logouts: 1, Sessions: 1}); n != want || n.Begun() != 2 {
			t.Errorf("counts %+v, want %+v", n, want)
		}
		v.get("/none").want(404)
		v.get("/rest/none").want(404)
		a.SetPassword("fred", "CANARY-new")
		if r := v.get(p.whoami); strings.Contains(r.body, "fred") {
			t.Errorf("the session outlives the password: %s", r.text())
		}
		v.do("POST", p.action, "%zz", "Content-Type", formType).want(400)
	})
}

func TestAtlassianCaptcha(t *testing.T) {
	each(t, func(t *testing.T, p atlassian) {
		a := p.run(t, rig.AtlassianOptions{})
		v := newVisitor(t, a.URL())
		for range p.captcha {
			p.fill(v, "CANARY-wrong").wantAll(p.refused[0], p.refused[1:]...)
		}
		if page := v.get(p.login); strings.Contains(page.body, "captcha-image") {
			t.Error("a picture before it is time")
		}
		p.fill(v, "CANARY-password")
		if p.name == "Bitbucket" {
			v.get(p.login).want(200, "captcha-image", "CAPTCHA required")
		}
		p.nobody(v.get(p.whoami))
		(&visitor{t: t, base: a.URL()}).get(p.private, basic("CANARY-password")...).wantAll(p.captchaBasic[0], p.captchaBasic[1:]...)
		p.fill(v, "CANARY-wrong", p.picture, "read").wantAll(p.refused[0], p.refused[1:]...)
		p.fill(v, "CANARY-password").wantAll(p.refused[0])
		p.fill(v, "CANARY-password", p.picture, "read").want(302, p.home)
		p.known(v.get(p.whoami))
		if n, want := a.Counts(), (rig.AtlassianCounts{Forms: 1, Refused: p.captcha + 1, Denied: 3, Sessions: 1}); n != want {
			t.Errorf("counts %+v, want %+v", n, want)
		}
		a.AddUser("fred", "CANARY-password")
		for range p.captcha {
			p.fill(newVisitor(t, a.URL()), "CANARY-wrong")
		}
		a.SolveCaptcha("fred")
		p.fill(newVisitor(t, a.URL()), "CANARY-password").want(302, p.home)
	})
}

func TestAtlassianTwoStep(t *testing.T) {
	each(t, func(t *testing.T, p atlassian) {
		if p.legacyOnly {
			if _, err := p.start(rig.AtlassianOptions{TwoStep: true}); err == nil {
				t.Error("it has two-step verification")
			}
			return
		}
		a := p.run(t, rig.AtlassianOptions{ContextPath: "/x", TwoStep: true})
		v := newVisitor(t, a.URL())
		const options = "/rest/authconfig/latest/login-options"
		send := func(password, more string) *reply {
			t.Helper()
			return v.post(twoStepPath+"?os_authType=none", `{"username":"fred","password":"`+password+`"`+more+`}`, "X-Atlassian-Token", "no-check")
		}
		for _, path := range []string{p.login, p.action} {
			if page := v.get(path).want(200); strings.Contains(page.body, p.marker) || strings.Contains(page.body, "<form") {
				t.Errorf("%s has the old form: %s", path, page.body)
			}
		}
		v.get(options).want(200, `"type":"LOGIN_FORM"`, `"isLastPage":true`)
		v.do("POST", p.action, url.Values{p.user: {"fred"}, p.password: {"CANARY-password"}}.Encode(), "Content-Type", formType).want(200)
		send("CANARY-wrong", "").want(401, `"captchaRequired":false`, `"message":"`)
		p.nobody(v.get(p.whoami))
		in := send("CANARY-password", `,"rememberMe":false,"targetUrl":""`).want(200, `{"next":"`+a.URL()+p.home+`"}`)
		if in.cookie(p.cookie) == "" || strings.Contains(in.cookie(p.remembers), "CANARY-") {
			t.Errorf("cookies %q", in.header.Values("Set-Cookie"))
		}
		p.known(v.get(p.whoami))

		v = newVisitor(t, a.URL())
		for range p.captcha {
			send("CANARY-wrong", "").want(401, `"captchaRequired":false`)
		}
		send("CANARY-password", "").want(401, `"captchaRequired":true`)
		send("CANARY-password", `,"captchaId":"1","captchaChallenge":"read"`).want(200)
		a.SetModes(rig.AtlassianModes{SecondFactor: true})
		v = newVisitor(t, a.URL())
		send("CANARY-password", "").want(412, `"nextLoginStep":"TOTP_CODE_VERIFICATION"`, `"conversationId":"CANARY-`)
		p.nobody(v.get(p.whoami))
		send("CANARY-wrong", "").want(401)
		a.SetModes(rig.AtlassianModes{EnrolmentForced: true})
		send("CANARY-password", "").want(412, `"nextLoginStep":"ENROLLMENT"`)
		a.SetModes(rig.AtlassianModes{NoPermission: true})
		if r := send("CANARY-password", ""); r.status == 200 || r.status == 412 {
			t.Errorf("without the right to use it: %s", r.text())
		}
		a.SetModes(rig.AtlassianModes{})
		const login = `{"username":"fred","password":"CANARY-password"}`
		v.post("/rest/tsv/latest/authenticate", login, "X-Atlassian-Token", "no-check").want(200)
		v.post(twoStepPath, login, "X-Atlassian-Token", "no-check", "User-Agent", firefox).want(403, "XSRF check failed")
		v.do("POST", twoStepPath, login, "X-Atlassian-Token", "no-check", "Content-Type", "text/plain").want(415)
		v.post(twoStepPath, `[`, "X-Atlassian-Token", "no-check").want(400)
		v.get(twoStepPath).want(405)
		n := a.Counts()
		if want := (rig.AtlassianCounts{TwoStepLogins: 3, SecondFactors: 2, Refused: p.captcha + 2, Denied: 1, Sessions: 3}); n != want || n.Begun() != 3 {
			t.Errorf("counts %+v, want %+v", n, want)
		}

		a.SetModes(rig.AtlassianModes{LegacyLogin: true})
		v = newVisitor(t, a.URL())
		v.get(options).want(200, `"type":"LEGACY_LOGIN_FORM"`)
		send("CANARY-password", "").want(404)
		p.fill(v, "CANARY-password").want(302)
		a.SetModes(rig.AtlassianModes{IdentityProvider: "https://idp.example/"})
		v = newVisitor(t, a.URL())
		v.get(options).want(200, `"type":"IDP"`, "external-login")
		v.get(p.login).want(302, "Location: https://idp.example/")
		a.SetModes(rig.AtlassianModes{})

		v = newVisitor(t, a.URL())
		send("CANARY-password", "").want(200)
		a.Upgrade("", false)
		p.nobody(newVisitor(t, a.URL()).get(p.whoami))
		if r := v.get(p.whoami); strings.Contains(r.body, "fred") {
			t.Error("a session outlives a restart")
		}
		v = newVisitor(t, a.URL())
		v.get(options).want(404)
		send("CANARY-password", "").want(404)
		p.fill(v, "CANARY-password").want(302)
		a.Upgrade("12.3.4", true)
		newVisitor(t, a.URL()).get("/rest/applinks/1.0/manifest", "Accept", "application/json").want(200, `"version":"12.3.4"`)
	})
}

func TestAtlassianManifest(t *testing.T) {
	each(t, func(t *testing.T, p atlassian) {
		a := p.run(t, rig.AtlassianOptions{ContextPath: "/x"})
		v := newVisitor(t, a.URL())
		var inJSON, inXML struct {
			ID      string `json:"id" xml:"id"`
			TypeID  string `json:"typeId" xml:"typeId"`
			Version string `json:"version" xml:"version"`
			Build   int    `json:"buildNumber" xml:"buildNumber"`
			URL     string `json:"url" xml:"url"`
		}
		v.get("/rest/applinks/1.0/manifest", "Accept", "application/json").want(200, "Content-Type: application/json").into(&inJSON)
		if err := xml.Unmarshal([]byte(v.get("/rest/applinks/latest/manifest").want(200, "<manifest>").body), &inXML); err != nil {
			t.Fatal(err)
		}
		if inJSON != inXML || inJSON.TypeID != p.typeID || inJSON.Version == "" || inJSON.Build == 0 || inJSON.URL != a.URL() {
			t.Errorf("%+v, %+v", inJSON, inXML)
		}
		// How a script finds the context path.
		root := newVisitor(t, strings.TrimSuffix(a.URL(), "/x"))
		root.get("/").want(404)
		a.SetModes(rig.AtlassianModes{RootRedirect: true})
		root.get("/").want(302, "Location: /x/")
		if first := root.get("/x/"); p.name == "Crucible" {
			first.want(200, "/x/login")
		} else {
			first.want(302, "Location: /x"+p.home)
			root.get("/x"+p.home).want(302, "Location: /x"+p.login)
		}
		if page := root.get("/x" + p.login).want(200); strings.Contains(page.body, `name="ajs-context-path" content="/x"`) != (p.name == "Jira" || p.name == "Confluence") {
			t.Errorf("the context path in the head: %s", page.body)
		}
	})
}

func TestAtlassianRemembers(t *testing.T) {
	each(t, func(t *testing.T, p atlassian) {
		now := newClock()
		a := p.run(t, rig.AtlassianOptions{ContextPath: "/x", Now: now.Now})
		v := newVisitor(t, a.URL())
		in := p.fill(v, "CANARY-password", p.remember, "true").want(302)
		if want := regexp.MustCompile(`^` + regexp.QuoteMeta(p.remembers) + `=CANARY-[0-9A-F]{32}%3A[0-9a-f]{40}; Expires=[^;]+; Path=/x; HttpOnly$`); !want.MatchString(in.cookie(p.remembers)) {
			t.Fatalf("%q", in.cookie(p.remembers))
		}
		cookie, _, _ := strings.Cut(in.cookie(p.remembers), ";")
		bare := &visitor{t: t, base: a.URL()}
		again := bare.get(p.whoami, "Cookie", cookie)
		p.known(again)
		if again.cookie(p.cookie) == "" {
			t.Error("no new session")
		}
		a.DropSessions()
		p.known(bare.get(p.whoami, "Cookie", cookie+"; "+p.cookie+"=dead"))
		out := newVisitor(t, a.URL())
		if p.logout != "" {
			out.get(p.logout, "Cookie", cookie).want(302, p.remembers+"=; Max-Age=0")
		} else {
			out.do("DELETE", p.whoami, "", "Cookie", cookie).want(204, p.remembers+"=; Max-Age=0")
		}
		p.nobody(bare.get(p.whoami, "Cookie", cookie))
		if n := a.Counts(); n.Remembered != 3 || n.Logouts != 1 || n.Forms != 1 {
			t.Errorf("%+v", n)
		}
		v = newVisitor(t, a.URL())
		cookie, _, _ = strings.Cut(p.fill(v, "CANARY-password", p.remember, "true").want(302).cookie(p.remembers), ";")
		a.ForgetUsers()
		p.nobody(bare.get(p.whoami, "Cookie", cookie))
		cookie, _, _ = strings.Cut(p.fill(newVisitor(t, a.URL()), "CANARY-password", p.remember, "true").want(302).cookie(p.remembers), ";")
		a.SetPassword("fred", "CANARY-new")
		p.nobody(bare.get(p.whoami, "Cookie", cookie))
	})
}

// TestAtlassianLife: how long a session lives unused, and on probation.
func TestAtlassianLife(t *testing.T) {
	each(t, func(t *testing.T, p atlassian) {
		now := newClock()
		a := p.run(t, rig.AtlassianOptions{Now: now.Now})
		probation := p.name == "Jira" || p.name == "Confluence"
		alive := func(v *visitor) bool { return strings.Contains(v.get(p.whoami).body, "fred") }
		login := func() *visitor {
			v := newVisitor(t, a.URL())
			p.fill(v, "CANARY-password").want(302)
			return v
		}
		v := login()
		now.advance(10*time.Minute - time.Second)
		if !alive(v) {
			t.Error("dead after 9 minutes")
		}
		v = login()
		now.advance(10 * time.Minute)
		if alive(v) == probation {
			t.Errorf("on probation: %v", probation)
		}
		v = login()
		if alive(v); !alive(v) {
			t.Error("dead at once")
		}
		now.advance(p.idle - time.Second)
		if !alive(v) {
			t.Errorf("dead before %v", p.idle)
		}
		now.advance(p.idle)
		if alive(v) {
			t.Errorf("alive after %v", p.idle)
		}
	})
}

func TestAtlassianBasic(t *testing.T) {
	each(t, func(t *testing.T, p atlassian) {
		a := p.run(t, rig.AtlassianOptions{})
		v := &visitor{t: t, base: a.URL()}
		v.get(p.private, basic("CANARY-password")...).want(200, p.cookie+"=CANARY-")
		refused := map[string][]string{
			"Jira":       {"401", "Basic Authentication Failure - Reason : AUTHENTICATED_FAILED"},
			"Confluence": {"401", "Basic Authentication Failure - Reason : AUTHENTICATED_FAILED"},
			"Bitbucket":  {"401", `"exceptionName":"com.atlassian.bitbucket.auth.IncorrectPasswordAuthenticationException"`, `"context":null`},
			"Bamboo":     {"401", "X-Seraph-Loginreason: AUTHENTICATED_FAILED"},
			"Crucible":   {"403", `"error":"Authentication failed.`},
		}[p.name]
		v.get(p.private, basic("CANARY-wrong")...).wantAll(refused[0], refused[1:]...)
		a.SetModes(rig.AtlassianModes{NoPermission: true})
		right := map[string][]string{
			"Jira":       {"403", "X-Seraph-Loginreason: AUTHORISATION_FAILED"},
			"Confluence": {"403", "X-Seraph-Loginreason: AUTHORISATION_FAILED", "Current user not permitted to use Confluence"},
			"Bitbucket":  {"401", "NoAccessAuthenticationException", "not currently licensed"},
			"Bamboo":     {"403", "X-Seraph-Loginreason: AUTHORISATION_FAILED"},
			"Crucible":   {"403", `"error"`, "licensed"},
		}[p.name]
		v.get(p.private, basic("CANARY-password")...).wantAll(right[0], right[1:]...)
		a.SetModes(rig.AtlassianModes{BasicDisabled: true})
		v.get(p.private, basic("CANARY-password")...).want(403, `{"message":"Basic Authentication has been disabled on this instance."}`)
		if n, want := a.Counts(), (rig.AtlassianCounts{Basic: 1, Refused: 1, Disabled: 1, Sessions: 1}); n != want {
			t.Errorf("counts %+v, want %+v", n, want)
		}
		// That says nothing of the login page.
		p.fill(newVisitor(t, a.URL()), "CANARY-password").want(302)
	})
}

// TestAtlassianTokens: personal access tokens.
func TestAtlassianTokens(t *testing.T) {
	each(t, func(t *testing.T, p atlassian) {
		a := p.run(t, rig.AtlassianOptions{})
		a.AddToken("fred", "CANARY-token")
		v := newVisitor(t, a.URL())
		got := v.get(p.private, "Authorization", "Bearer CANARY-token").want(200, p.cookie+"=CANARY-")
		if strings.Contains(got.text(), "CANARY-token") {
			t.Error("the answer repeats the token")
		}
		// The session that it came with is dead.
		if r := v.get(p.private); r.status == 200 {
			t.Error("a token makes a session")
		}
		if n, want := a.Counts(), (rig.AtlassianCounts{Bearer: 1}); n != want || n.Begun() != 0 {
			t.Errorf("counts %+v, want %+v", n, want)
		}
		bare := &visitor{t: t, base: a.URL()}
		unknown := bare.get(p.private, "Authorization", "Bearer CANARY-unknown").want(401)
		if reason := unknown.header.Get("X-Seraph-LoginReason"); reason != "" {
			t.Errorf("X-Seraph-LoginReason: %s", reason)
		}
		if p.name == "Jira" {
			bare.get("/rest/api/2/serverInfo", "Authorization", "Bearer CANARY-unknown").want(401)
			bare.get("/rest/api/2/search", "Authorization", "Bearer CANARY-unknown").want(200, `"total":1`)
			bare.get(p.private, "Authorization", "Bearer CANARY-token", "Cookie", "JSESSIONID=dead").want(401, "invalid cookie")
		}
		if p.name == "Bitbucket" {
			bare.get(p.whoami, "Authorization", "Bearer CANARY-token").want(302, "Location: /login?next=")
			bare.get("/rest/api/latest/application-properties", "Authorization", "Bearer CANARY-token").want(200, "X-Ausername: fred")
		}
		a.RevokeTokens("fred")
		bare.get(p.private, "Authorization", "Bearer CANARY-token").want(401)
	})
}

func TestAtlassianModes(t *testing.T) {
	each(t, func(t *testing.T, p atlassian) {
		now := newClock()
		a := p.run(t, rig.AtlassianOptions{ContextPath: "/x", Now: now.Now})
		user := newVisitor(t, a.URL())
		p.fill(user, "CANARY-password").want(302)
		p.known(user.get(p.whoami))
		guest := &visitor{t: t, base: a.URL()}
		status := "/status"
		if p.name == "Bamboo" {
			status = "/rest/api/latest/status"
		}
		modes := func(m rig.AtlassianModes) { a.SetModes(m) }

		if p.name == "Crucible" {
			guest.get(status).want(404)
			modes(rig.AtlassianModes{Maintenance: true})
			user.get(p.whoami).want(200, "Crucible Maintenance")
		} else {
			guest.get(status).want(200, `{"state":"RUNNING"}`)
			modes(rig.AtlassianModes{Maintenance: true})
			guest.get(status).want(503, `{"state":"MAINTENANCE"}`)
			user.get(p.whoami).want(503)
			modes(rig.AtlassianModes{Starting: true})
			guest.get(status).want(200, `{"state":"STARTING"}`)
			modes(rig.AtlassianModes{ServerError: true})
			guest.get(status).want(500, `{"state":"ERROR"}`)
		}
		modes(rig.AtlassianModes{ServerError: true})
		user.get(p.whoami).want(500)
		modes(rig.AtlassianModes{Starting: true})
		if r := user.get(p.whoami).want(200, "starting up"); r.header.Get("X-AUSERNAME") != "" || r.cookie(p.cookie) != "" {
			t.Errorf("the product itself answers: %s", r.text())
		}
		modes(rig.AtlassianModes{LoginPage: true})
		guest.get(p.whoami).want(200, `name="`+p.password+`"`)
		modes(rig.AtlassianModes{SSO: "https://sso.example/"})
		user.get(p.login).want(302, "Location: https://sso.example/", "_oauth2_proxy_csrf=")
		user.get(p.private).want(200) // REST passes
		modes(rig.AtlassianModes{IdentityProvider: "https://idp.example/"})
		guest.get(p.login).want(302, "Location: https://idp.example/")
		modes(rig.AtlassianModes{RetryAfter: 7 * time.Second})
		user.get(p.private).want(429, "Retry-After: 7", "X-Ratelimit-Limit: 10")

		modes(rig.AtlassianModes{RateLimit: 2})
		user.get(p.private).want(200, "X-Ratelimit-Remaining: 1", "X-Ratelimit-Limit: 2", "X-Ratelimit-Interval-Seconds: 60", "X-Ratelimit-Fillrate: 2")
		user.get(p.private).want(200, "X-Ratelimit-Remaining: 0")
		now.advance(time.Second / 2)
		user.get(p.private).want(429, "Retry-After: 30")
		now.advance(30 * time.Second)
		user.get(p.private).want(200, "X-Ratelimit-Remaining: 0")
		if r := guest.get("/rest/applinks/1.0/manifest").want(200); r.header.Get("X-RateLimit-Limit") != "" {
			t.Error("nobody is counted")
		}

		modes(rig.AtlassianModes{NoSession: true})
		v := newVisitor(t, a.URL())
		if in := p.fill(v, "CANARY-password").want(302); in.cookie(p.cookie) != "" {
			t.Errorf("a session: %s", in.cookie(p.cookie))
		}
		modes(rig.AtlassianModes{Anonymous: true})
		v = newVisitor(t, a.URL())
		p.fill(v, "CANARY-password").want(302, p.cookie+"=")
		p.nobody(v.get(p.whoami))
		modes(rig.AtlassianModes{NoPermission: true})
		if r := user.get(p.whoami); r.status == 200 {
			t.Errorf("without the right to use it: %s", r.text())
		}

		two := p.run(t, rig.AtlassianOptions{})
		two.SetModes(rig.AtlassianModes{TwoNodes: true})
		v = newVisitor(t, two.URL())
		p.fill(v, "CANARY-password").want(302, "AWSALB=CANARY-")
		for range 3 {
			p.known(v.get(p.whoami))
		}
	})
}

func TestAtlassianWebSudo(t *testing.T) {
	for name, w := range map[string]struct{ admin, page, action, password, destination string }{
		"Jira":       {"/secure/admin/ViewApplicationProperties.jspa", "/secure/admin/WebSudoAuthenticate!default.jspa", "/secure/admin/WebSudoAuthenticate.jspa", "webSudoPassword", "webSudoDestination"},
		"Confluence": {"/admin/console.action", "/authenticate.action", "/doauthenticate.action", "password", "destination"},
		"Bitbucket":  {"/admin", "/websudo", "/websudo", "j_password", "next"},
		"Bamboo":     {"/admin/administer.action", "/admin/webSudo.action", "/admin/webSudoSubmit.action", "password", "webSudoDestination"},
	} {
		t.Run(name, func(t *testing.T) {
			var p atlassian
			for _, q := range atlassians {
				if q.name == name {
					p = q
				}
			}
			a := p.run(t, rig.AtlassianOptions{})
			v := newVisitor(t, a.URL())
			v.get(w.page).want(302, p.login) // first of all a login
			p.fill(v, "CANARY-password").want(302)
			v.get(w.admin).want(302, "Location: "+w.page)
			p.known(v.get(p.whoami))
			a.SetModes(rig.AtlassianModes{WebSudo: true})
			v.get(p.whoami).want(302, "Location: "+w.page)
			v.get(w.page).want(200, `name="`+w.password+`"`)
			send := func(password string) *reply {
				return v.do("POST", w.action, url.Values{w.password: {password}, w.destination: {w.admin}}.Encode(), "Content-Type", formType).want(302)
			}
			if r := send("CANARY-wrong"); r.header.Get("X-Atlassian-WebSudo") != "" {
				t.Error("elevated by a wrong password")
			}
			v.get(w.admin).want(302, "Location: "+w.page)
			send("CANARY-password").want(302, "X-Atlassian-Websudo: Has-Authentication", "Location: "+w.admin)
			v.get(w.admin).want(200)
			p.known(v.get(p.whoami))

			a.Upgrade("", true)
			v = newVisitor(t, a.URL())
			v.post(twoStepPath, goodLogin, "X-Atlassian-Token", "no-check").want(200)
			v.get(p.private).want(401, `{"elevationMethods":["PASSWORD","TOTP"]}`)
		})
	}
}

// TestAtlassianGate: who is asked for Negotiate at each product's login page.
func TestAtlassianGate(t *testing.T) {
	token, keytabFile := tokens(t)
	each(t, func(t *testing.T, p atlassian) {
		open := p.run(t, rig.AtlassianOptions{Keytab: keytabFile})
		open.AddUser("svc", "")
		v := newVisitor(t, open.URL())
		if a := v.get(p.login).want(401); a.header.Get("WWW-Authenticate") != "Negotiate" {
			t.Errorf("challenge %q", a.header.Values("WWW-Authenticate"))
		}
		v.get(p.login, "Authorization", token()).want(302, "Location: "+p.home, p.cookie+"=CANARY-", "Www-Authenticate: Negotiate ")
		if r := v.get(p.whoami); !strings.Contains(r.body, "svc") {
			t.Errorf("%s", r.text())
		}
		if n := open.Counts(); n.KerberosLogins != 1 || n.Begun() != 1 {
			t.Errorf("%+v", n)
		}

		guard := &rig.IWAAC{Agent: "Windows NT", Deny: []string{"HttpClient", p.name + "-"}, From: []string{"127.0.0.2", "127.1.0.0/16"}}
		gate := p.run(t, rig.AtlassianOptions{Keytab: keytabFile, Guard: guard})
		for _, c := range []struct {
			from, agent string
			asked       bool
		}{
			{"127.0.0.2", "sessionctl/1 (Windows NT)", true},
			{"127.1.2.3", "sessionctl/1 (Windows NT)", true},
			{"127.0.0.1", "sessionctl/1 (Windows NT)", false},
			{"127.0.0.2", "sessionctl/1", false},
			{"127.0.0.2", "Apache-HttpClient/4 (Windows NT)", false},
			{"127.0.0.2", p.name + "-1 (Windows NT)", false},
		} {
			r, w := httptest.NewRequestWithContext(t.Context(), "GET", p.login, nil), httptest.NewRecorder()
			r.RemoteAddr = c.from + ":1234"
			r.Header.Set("User-Agent", c.agent)
			gate.ServeHTTP(w, r)
			if asked := w.Header().Get("WWW-Authenticate") == "Negotiate"; asked != c.asked {
				t.Errorf("%s from %s: asked %v", c.agent, c.from, asked)
			}
		}
		if _, err := p.start(rig.AtlassianOptions{Guard: &rig.IWAAC{From: []string{"here"}}}); err == nil {
			t.Error("nonsense is an address")
		}
	})
}

// atlassianBrowser visits products by their names, all of which are 127.0.0.1.
func atlassianBrowser(t *testing.T) *ssoBrowser {
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	dial := func(ctx context.Context, network, address string) (net.Conn, error) {
		_, port, err := net.SplitHostPort(address)
		if err != nil {
			return nil, err
		}
		return new(net.Dialer).DialContext(ctx, network, net.JoinHostPort("127.0.0.1", port))
	}
	return &ssoBrowser{t: t, jar: jar, o: http.Transport{DialContext: dial, DisableKeepAlives: true}}
}

func TestAtlassianCrowd(t *testing.T) {
	now := newClock()
	crowd, err := rig.StartCrowd(rig.CrowdOptions{Host: "crowd.corp.localhost", Domain: ".corp.localhost", SameIP: true, TrustedProxies: []string{"127.0.0.1"}, Now: now.Now})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(crowd.Stop)
	crowd.AddUser("anna", "CANARY-password")
	start := func(p atlassian, host string, interval time.Duration) *rig.Atlassian {
		a, err := p.start(rig.AtlassianOptions{Host: host + ".corp.localhost", ContextPath: "/x", Crowd: crowd, CrowdInterval: interval, Now: now.Now, TwoStep: !p.legacyOnly})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(a.Stop)
		return a
	}
	const login = `{"username":"anna","password":"CANARY-password"}`
	anna := func(r *reply) bool { return strings.Contains(r.body, "anna") }
	each(t, func(t *testing.T, p atlassian) {
		first, second := start(atlassians[0], "one", 0), start(p, "two", 10*time.Minute)
		b := atlassianBrowser(t)
		send := func(body string) *reply {
			req, err := http.NewRequestWithContext(t.Context(), "POST", first.URL()+twoStepPath, strings.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Content-Type", "application/json")
			resp, err := (&http.Client{Jar: b.jar, Transport: &b.o}).Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			return &reply{t: t, status: resp.StatusCode, header: resp.Header}
		}
		send(`{"username":"anna","password":"CANARY-wrong"}`).want(401)
		in := send(login).want(200)
		if line := in.cookie("crowd.token_key"); !strings.Contains(line, "Domain=.corp.localhost") {
			t.Fatalf("the token's cookie: %q", line)
		}
		if r := b.get(first.URL() + sessionPath); !anna(r) {
			t.Errorf("%s", r.text())
		}
		asked := crowd.Counts().Validations
		if r := b.get(first.URL() + sessionPath); !anna(r) || crowd.Counts().Validations != asked+1 {
			t.Error("Crowd is not asked at every request")
		}
		// The other product knows the token's user at the first request.
		r := b.get(second.URL() + p.whoami)
		if !anna(r) || r.cookie(p.cookie) == "" {
			t.Errorf("%s", r.text())
		}
		asked = crowd.Counts().Validations
		if r := b.get(second.URL() + p.whoami); !anna(r) || crowd.Counts().Validations != asked {
			t.Errorf("within the interval: %s", r.text())
		}
		session, _, _ := strings.Cut(r.cookie(p.cookie), ";")
		alone := atlassianBrowser(t)
		if r := alone.get(second.URL()+p.whoami, "Cookie", session); !anna(r) {
			t.Errorf("the session alone, within the interval: %s", r.text())
		}
		if n, want := second.Counts(), (rig.AtlassianCounts{CrowdSessions: 1, Sessions: 1}); n != want || n.Begun() != 1 {
			t.Errorf("counts %+v, want %+v", n, want)
		}
		// A dead token ends that at once, or when the interval has passed.
		crowd.KillToken("anna")
		if r := b.get(first.URL() + sessionPath); anna(r) {
			t.Errorf("a dead token: %s", r.text())
		}
		if r := b.get(second.URL() + p.whoami); !anna(r) {
			t.Errorf("a dead token, within the interval: %s", r.text())
		}
		now.advance(10 * time.Minute)
		if r := b.get(second.URL() + p.whoami); anna(r) {
			t.Errorf("a dead token, after the interval: %s", r.text())
		}

		// A token is bound to an address; a logout is one of all.
		b = atlassianBrowser(t)
		line := send(login).want(200).cookie("crowd.token_key")
		token, _, _ := strings.Cut(line, ";")
		if r := alone.get(second.URL()+p.whoami, "Cookie", token, "X-Forwarded-For", "192.0.2.1"); anna(r) {
			t.Errorf("from another address: %s", r.text())
		}
		if r := b.get(second.URL() + p.whoami); !anna(r) {
			t.Errorf("%s", r.text())
		}
		if p.logout != "" {
			b.get(second.URL()+p.logout).want(302, "crowd.token_key=;", "Domain=.corp.localhost")
			if r := alone.get(first.URL()+sessionPath, "Cookie", token); anna(r) {
				t.Errorf("after the logout: %s", r.text())
			}
		}
	})
	// A product's own user gets no token, and the session rests on none.
	a := start(atlassians[1], "three", 0)
	a.AddUser("fred", "CANARY-password")
	b := atlassianBrowser(t)
	b.visit(a.URL()+"/rest/api/user/current", nil).want(200, "anonymous")
	a.Upgrade("", false)
	in := b.visit(a.URL()+"/dologin.action", url.Values{"os_username": {"fred"}, "os_password": {"CANARY-password"}}).want(302)
	if in.cookie("crowd.token_key") != "" {
		t.Error("a token for who is not Crowd's")
	}
	b.get(a.URL()+"/rest/api/user/current").want(200, `"username":"fred"`)
}

// TestAtlassianCrowdByTicket: a filter that takes tickets gets Crowd's token.
func TestAtlassianCrowdByTicket(t *testing.T) {
	token, keytabFile := tokens(t)
	crowd, err := rig.StartCrowd(rig.CrowdOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(crowd.Stop)
	a, err := rig.StartConfluence(rig.AtlassianOptions{Keytab: keytabFile, Guard: &rig.IWAAC{}, Crowd: crowd})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Stop)
	v := newVisitor(t, a.URL())
	v.get("/login.action", "Authorization", token()).want(200, "AUTHENTICATED_FAILED") // Crowd does not know svc
	crowd.AddUser("svc", "")
	v.get("/login.action", "Authorization", token()).want(302, "crowd.token_key=CANARY-")
	v.get("/rest/api/user/current").want(200, `"username":"svc"`)
	crowd.KillToken("svc")
	v.get("/rest/api/user/current").want(401, "invalid cookie")
	if n := crowd.Counts(); n.Minted != 1 || n.Logins != 0 {
		t.Errorf("%+v", n)
	}
}

func TestConfluencePages(t *testing.T) {
	a := atlassians[1].run(t, rig.AtlassianOptions{})
	v := newVisitor(t, a.URL())
	v.get("/rest/api/content").want(200, `"size":1`)
	v.get("/rest/api/content/65537").want(200, "everybody")
	v.get("/rest/api/content/65538").want(404, `"statusCode":404`)
	const page = `{"type":"page","title":"It is <new>","space":{"key":"LAB"},"body":{"storage":{"value":"<p>hello</p>","representation":"storage"}}}`
	v.post("/rest/api/content", page).want(403, "XSRF check failed")
	v.post("/rest/api/content", page, "X-Atlassian-Token", "no-check").want(401)
	atlassians[1].fill(v, "CANARY-password").want(302)
	v.post("/rest/api/content", page, "X-Atlassian-Token", "no-check", "User-Agent", firefox).want(403)
	v.post("/rest/api/content", page, "X-Atlassian-Token", "no-check", "User-Agent", firefox, "Origin", a.URL()).want(200, `"id":"65539"`)
	v.post("/rest/api/content", `{}`, "X-Atlassian-Token", "no-check").want(400)
	v.do("POST", "/rest/api/content", page, "X-Atlassian-Token", "no-check").want(415)
	v.get("/rest/api/content/65539").want(200, "hello")
	v.get("/rest/api/content/x").want(404)
	v.get("/rest/api/content/65540").want(404)
	v.get("/rest/api/content").want(200, `"size":3`)
	v.do("DELETE", "/rest/api/content/65539", "", "X-Atlassian-Token", "no-check").want(405)
	if n := a.Counts().Created; n != 1 {
		t.Errorf("%d pages created", n)
	}
	a.SetModes(rig.AtlassianModes{NoAnonymous: true})
	newVisitor(t, a.URL()).get("/rest/api/user/current").want(403, "Not permitted to use confluence : null")
	v.get("/rest/api/user/current").want(200, `"username":"fred"`)
}

func TestBitbucketErrors(t *testing.T) {
	p := atlassians[2]
	a := p.run(t, rig.AtlassianOptions{})
	v := newVisitor(t, a.URL())
	const user = "X-Ausername: fred"
	v.get("/rest/api/1.0/projects").want(200, `"size":1`)
	v.get("/rest/api/1.0/projects/PUB").want(200, `"public":true`)
	v.get("/rest/api/1.0/projects/LAB").want(401, `"exceptionName":"com.atlassian.bitbucket.AuthorisationException"`)
	v.get("/rest/api/1.0/projects/NONE").want(404, "NoSuchProjectException")
	if r := v.get("/rest/api/1.0/users").want(401, "AuthenticationRequiredException"); r.header.Get("X-AUSERNAME") != "" {
		t.Errorf("X-AUSERNAME: %s", r.header.Get("X-AUSERNAME"))
	}
	p.fill(v, "CANARY-password").want(302)
	v.get("/rest/api/1.0/users").want(200, `"name":"fred"`, user)
	v.get("/rest/api/1.0/projects").want(200, `"size":2`)
	v.get("/rest/api/1.0/admin/users").want(401, "AuthorisationException", user)
	v.get("/rest/api/latest/application-properties").want(200, `"displayName":"Bitbucket"`)
	v.get("/rest/api/1.0/none").want(404, user)
	v.do("DELETE", "/rest/api/1.0/projects/LAB", "").want(405)
	a.SetModes(rig.AtlassianModes{NoPermission: true})
	v.get(p.whoami).want(401, "NoAccessAuthenticationException", user)
	// A dead session is nobody's, and no more.
	a.SetModes(rig.AtlassianModes{})
	a.DropSessions()
	p.nobody(v.get(p.whoami))
}

func TestBambooRepresentations(t *testing.T) {
	p := atlassians[3]
	a := p.run(t, rig.AtlassianOptions{})
	v := newVisitor(t, a.URL())
	v.get("/rest/api/latest/currentUser").want(401, "application/xml", "<status>")
	v.get("/rest/api/latest/server").want(401)
	// The form's token is its session's.
	v.do("POST", p.action, "os_username=fred&os_password=CANARY-password", "Content-Type", formType).want(403, "XSRF Security Token Missing")
	p.fill(v, "CANARY-password", "atl_token", "x").want(403)
	p.fill(v, "CANARY-password").want(302)
	v.get("/rest/api/latest/currentUser").want(200, "<user><name>fred</name>", "application/xml")
	v.get("/rest/api/latest/currentUser", "Accept", "application/json").want(200, `"name":"fred"`, `"fullName"`, `"email"`)
	v.get("/rest/api/latest/server.json").want(200, `"state":"RUNNING"`, `"reindexInProgress":false`)
	v.get("/rest/api/latest/none").want(404)
	v.do("DELETE", "/rest/api/latest/server", "").want(405)
	a.DropSessions()
	v.get("/rest/api/latest/currentUser").want(401, "invalid cookie")
}

func TestCrucibleTokens(t *testing.T) {
	p := atlassians[4]
	a := p.run(t, rig.AtlassianOptions{})
	v := newVisitor(t, a.URL())
	v.get("/").want(200, "Guest |")
	v.get("/browse/REPO/file.c").want(200, "loginform", `value="/browse/REPO/file.c"`)
	v.get("/rest-service/reviews-v1/CR-1").want(200)
	v.get("/rest-service/reviews-v1/CR-2").want(401)
	login := func(path, password string) *reply {
		return v.do("POST", path, url.Values{"userName": {"fred"}, "password": {password}}.Encode(), "Content-Type", formType)
	}
	login("/rest-service/auth-v1/login", "CANARY-wrong").want(403, `"error":"`)
	var got struct{ Token string }
	if err := json.Unmarshal([]byte(login("/rest-service-fecru/auth/login", "CANARY-password").want(200).body), &got); err != nil || !strings.HasPrefix(got.Token, "fred:") {
		t.Fatalf("%q, %v", got.Token, err)
	}
	bare := &visitor{t: t, base: a.URL()}
	feauth := "?FEAUTH=" + url.QueryEscape(got.Token)
	bare.get("/rest-service/reviews-v1/CR-2"+feauth).want(200, "CR-2")
	bare.get("/rest-service/users-v1/fred"+feauth).want(200, `"userName":"fred"`)
	bare.get("/rest-service-fecru/server-v1"+feauth).want(200, `"isCrucible":true`, "releaseNumber")
	a.DropSessions()
	bare.get("/rest-service/reviews-v1/CR-2" + feauth).want(200)
	a.ForgetUsers()
	bare.get("/rest-service-fecru/server-v1" + feauth).want(401)
	v.do("DELETE", "/rest-service/reviews-v1/CR-1", "").want(405)
	if n := a.Counts(); n.Begun() != 0 || n.Refused != 1 {
		t.Errorf("%+v", n)
	}
	p.fill(v, "CANARY-password").want(302)
	v.get("/").want(200, "/user/fred")
}

func TestJiraWithoutRestLogin(t *testing.T) {
	j := newJira(t, rig.AtlassianOptions{TwoStep: true, NoRestLogin: true})
	v := newVisitor(t, j.URL())
	v.post(sessionPath, goodLogin).want(405)
	v.post(twoStepPath, goodLogin).want(200)
	v.get(sessionPath).want(200, `"name":"fred"`)
	v.get("/rest/api/2/serverInfo").want(200, `"versionNumbers":[10,3,15]`)
	v.get("/rest/api/3/myself").want(302, "/login.jsp")
	v.do("DELETE", sessionPath, "").want(204)
}

// Whatever is sent, a product answers, and logs nobody in without a password.
func FuzzAtlassian(f *testing.F) {
	var all []*rig.Atlassian
	for _, p := range atlassians {
		for _, twoStep := range []bool{false, true} {
			if p.legacyOnly && twoStep {
				continue
			}
			a := p.run(f, rig.AtlassianOptions{ContextPath: "/x", TwoStep: twoStep})
			a.SetPassword("fred", "CANARY-of-nobody")
			all = append(all, a)
		}
		f.Add("POST", p.action, formType, p.user+"=fred&"+p.password+"=CANARY-wrong&"+p.picture+"=x", p.remembers+"=x", "")
		f.Add("GET", p.whoami, "", "", p.cookie+"=x", "Bearer x")
		f.Add("GET", p.private+"?FEAUTH=x", "", "", "crowd.token_key=x", "Basic eDp5")
	}
	f.Add("POST", twoStepPath, "application/json", badLogin, "", "")
	f.Add("POST", "/websudo", formType, "j_password=x", "", "")
	f.Fuzz(func(t *testing.T, method, path, contentType, body, cookie, authorization string) {
		for _, a := range all {
			r, err := http.NewRequestWithContext(t.Context(), method, "http://localhost/x"+path, strings.NewReader(body))
			if err != nil {
				return
			}
			r.Header = http.Header{
				"Content-Type": {contentType}, "Cookie": {cookie}, "Authorization": {authorization}, "X-Atlassian-Token": {"no-check"},
			}
			a.DropSessions()
			w := httptest.NewRecorder()
			a.ServeHTTP(w, r)
			if w.Code < 200 || w.Code > 599 {
				t.Errorf("status %d", w.Code)
			}
			if n := a.Counts(); n.Begun() != 0 || n.Sessions != 0 {
				t.Errorf("logged in: %+v", n)
			}
		}
	})
}
