package login

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/web"
)

// member is a product of Atlassian's family as tests know it, below /app.
type member struct {
	kind, name         string
	login, action      string // paths: of the login page, and of where its form leads
	probe, logout      string
	username, password string // the form's fields
	cookie             string
	me, nobody         http.HandlerFunc // the probe's answers
}

// family are the products with a login form. Their paths, fields and cookies are
// those of the documents and scripts that the kinds name.
var family = []member{
	{"jira", "Jira", "login.jsp", "login.jsp", "rest/auth/1/session", "rest/auth/1/session", "os_username", "os_password", "JSESSIONID",
		says(200, me, user, request), stranger},
	{"confluence", "Confluence", "login.action", "dologin.action", "rest/api/user/current", "logout.action", "os_username", "os_password", "JSESSIONID",
		says(200, `{"type":"known","username":"build","userKey":"CANARY-key"}`, user), says(200, `{"type":"anonymous","displayName":"Anonymous"}`, nobody)},
	{"bitbucket", "Bitbucket", "login", "j_atl_security_check", "plugins/servlet/applinks/whoami", "j_atl_security_logout", "j_username", "j_password", "BITBUCKETSESSIONID",
		says(200, "build\n", user, request), says(200, "", request)},
	{"bamboo", "Bamboo", "userlogin!doDefault.action", "userlogin.action", "rest/api/latest/currentUser", "userLogout.action", "os_username", "os_password", "JSESSIONID",
		says(200, `{"name":"build","fullName":"Build","email":"CANARY@corp.example"}`, user), says(401, `{"message":"CANARY-body","status-code":401}`)},
	{"crucible", "Crucible", "login", "login", "profile", "logout", "username", "password", "FESESSIONID",
		says(200, `<p>Hello, <b id=me>build</b></p>`), says(200, `<title>Login</title><form name="loginform" method="POST" action="/app/login"><input name=username><input type=password name=password></form>`)},
}

// The two-step login, which all of them but Crucible have.
const (
	twoStepPath    = "POST rest/tsv/1.0/authenticate"
	twoStepDone    = `{"next":"https://CANARY-host/"}`
	twoStepRefused = `{"captchaRequired":false,"message":"CANARY-body"}`
)

// session is the field that a good login has.
func (m member) session() string {
	return "Set-Cookie: " + m.cookie + "=CANARY-session; Path=/app; HttpOnly"
}

// form is a login page of the generation before the two-step login, with what else
// stands in its form.
func (m member) form(more string) string {
	return fmt.Sprintf(`<html><title>Log in</title><form id="loginForm" class="loginform login-form-remember-me" method="post" action="/app/%s">
<input name=%s><input type=password name=%s><input type=hidden name=atl_token value="CANARY-token">
%s<input type=submit name=login value="Log in"></form></html>`, m.action, m.username, m.password, more)
}

// driver returns the product's driver for a site that takes passwords so.
func (m member) driver(login string) Driver {
	d := New(m.kind)
	if c, ok := d.(*crucible); ok {
		c.ProbeURL, c.IdentityRegexp = m.probe, "<b id=me>([^<]*)</b>"
	}
	return d.(Detector).As(Findings{Login: login})
}

// memberOf returns the product of a kind.
func memberOf(kind string) member {
	return family[slices.IndexFunc(family, func(m member) bool { return m.kind == kind })]
}

// twoStepFamily are the products with the two-step login.
func twoStepFamily() []member {
	return slices.DeleteFunc(slices.Clone(family), func(m member) bool { return m.kind == "crucible" })
}

// site is the product, and a gate that asks everybody and shows the form with that.
func (m member) site(b behaviour, foreign string) http.HandlerFunc {
	negotiate := negotiateSite(b, foreign)
	in := func(status int, body string, fields ...string) http.HandlerFunc {
		if b != keepsNothing {
			fields = append(fields, m.session())
		}
		return says(status, body, fields...)
	}
	return func(w http.ResponseWriter, r *http.Request) {
		path := strings.TrimPrefix(r.URL.Path, "/app/")
		answer := http.NotFound
		switch known := r.Header.Get("Cookie") != ""; {
		case b == down, b == limited:
			answer = negotiate
		case b == toForeignHost:
			answer = http.RedirectHandler(foreign, http.StatusFound).ServeHTTP
		case path == m.login && r.Method == http.MethodGet && b == unchallenged:
			answer = says(200, "please log in")
		case path == m.login && r.Method == http.MethodGet && r.Header.Get("Authorization") != "" && b != refused:
			answer = in(200, "")
		case path == m.login && r.Method == http.MethodGet:
			answer = says(401, m.form(""), challenge)
		case r.Method+" "+path == twoStepPath && b == refused:
			answer = says(401, twoStepRefused)
		case r.Method+" "+path == twoStepPath:
			answer = in(200, twoStepDone)
		case r.Method == http.MethodPost && b == refused:
			answer = says(200, m.form(""))
		case r.Method == http.MethodPost:
			answer = in(302, "", "Location: /app/home")
		case path == m.probe && known && b == forbidden:
			answer = says(403, text, user)
		case path == m.probe && known && b != anonymous:
			answer = m.me
		case path == m.probe:
			answer = m.nobody
		}
		answer(w, r)
	}
}

// familyTests are the family's entries in kindTests, but for Jira's of old.
func familyTests() []kindTest {
	codes := func(means Means, login string) map[behaviour]api.Code {
		c := map[behaviour]api.Code{
			good: "", refused: api.BadCredentials, anonymous: api.Expired, keepsNothing: api.NoSessionCookie,
			unchallenged: api.UnexpectedStatus, toForeignHost: api.SSORedirect, down: api.Maintenance, limited: api.RateLimited, forbidden: api.Forbidden,
		}
		switch {
		case means == Ticket:
			c[refused], c[unchallenged] = api.NegotiateRejected, api.NoChallenge
		case login == byTSV:
			c[anonymous], c[unchallenged] = api.SecondFactor, ""
		}
		return c
	}
	var tests []kindTest
	for _, m := range family {
		if m.kind != "jira" {
			tests = append(tests, kindTest{m.kind, Ticket, m.driver(""), m.site, codes(Ticket, "")})
		}
		tests = append(tests, kindTest{m.kind, Secret, m.driver(byForm), m.site, codes(Secret, byForm)})
	}
	for _, m := range twoStepFamily() {
		tests = append(tests, kindTest{m.kind, Secret, m.driver(byTSV), m.site, codes(Secret, byTSV)})
	}
	return tests
}

// verdict is how a login with a password ends, and what that means for the password.
type verdict struct {
	code           api.Code
	back, accepted bool
}

// attempt gives a password to a product that answers so, and returns what it was
// asked.
func (m member) attempt(t *testing.T, name, login string, say map[string]http.HandlerFunc, want verdict) []string {
	t.Helper()
	name = m.kind + ", " + login + ": " + name
	a := &answers{t: t, say: say}
	x := exchangeWith(t, a, new(web.Jar), nil)
	p := new(lent)
	err := m.driver(login).Login(t.Context(), x, p)
	quiet(t, name, err)
	if lent := (lent{taken: true, back: want.back, accepted: want.accepted}); api.CodeOf(err) != want.code || *p != lent {
		t.Errorf("%s: %v, want %q; the password: %+v, want %+v", name, err, want.code, *p, lent)
	}
	switch page := " " + web.Shown(mustURL(t, x, m.login)) + " "; {
	case want.code == "" && !strings.Contains(x.Jar().Header(mustURL(t, x, m.probe), time.Now()), m.cookie+"=CANARY-session"):
		t.Errorf("%s: the session is not in the jar", name)
	case want.code == api.Captcha && !strings.Contains(api.AsError(err).Remedy, page):
		t.Errorf("%s: the remedy does not name the login page: %+v", name, err)
	case want.code == api.BadCredentials && !strings.Contains(err.Error(), "build"):
		t.Errorf("%s: the message does not say whose password: %v", name, err)
	}
	return a.asked
}

// exception is an error of Bitbucket's, as one client's live tests recorded them
// (vriesdemichael/bitbucket-data-center-cli).
func exception(name string) string {
	return `{"errors":[{"context":null,"message":"CANARY-body","exceptionName":"` + name + `"}]}`
}

const (
	bitbucketCaptcha  = "com.atlassian.bitbucket.auth.CaptchaRequiredAuthenticationException"
	bitbucketWrong    = "com.atlassian.bitbucket.auth.IncorrectPasswordAuthenticationException"
	bitbucketLicence  = "com.atlassian.bitbucket.auth.NoAccessAuthenticationException"
	bitbucketNoRight  = "com.atlassian.bitbucket.AuthorisationException"
	bitbucketStranger = "com.atlassian.plugins.rest.api.security.exception.AuthenticationRequiredException"
)

// refusals are what all products say to a password, however it was sent.
var refusals = map[string]struct {
	answer http.HandlerFunc
	want   verdict
}{
	"captcha, as captured at Jira":       {says(403, page, denied, picture), verdict{code: api.Captcha}},
	"captcha, as captured at Confluence": {says(401, page, denied, basic), verdict{code: api.Captcha}},
	"captcha, as captured at Bitbucket":  {says(401, exception(bitbucketCaptcha), request, basic), verdict{code: api.Captcha}},
	"captcha, 403 and another error":     {says(403, `{"errors":[{"message":"XSRF check failed"},{"exceptionName":"`+bitbucketCaptcha+`"}]}`), verdict{code: api.Captcha}},
	"captcha, in the two-step login":     {says(401, `{"captchaRequired":true,"message":"CANARY-body"}`), verdict{code: api.Captcha}},
	"captcha, by a refusal's text":       {says(403, "Basic Authentication Failure - Reason : AUTHENTICATION_DENIED, CANARY-body"), verdict{code: api.Captcha}},
	"captcha, 200":                       {says(200, page, denied), verdict{code: api.Captcha}},
	"captcha, 503":                       {says(503, page, picture), verdict{code: api.Captcha}},
	"wrong":                              {says(401, page, failed), verdict{code: api.BadCredentials}},
	"wrong, 200":                         {says(200, "", failed), verdict{code: api.BadCredentials}},
	"wrong, 503":                         {says(503, "", failed), verdict{code: api.BadCredentials}},
	"wrong, at Bitbucket":                {says(401, exception(bitbucketWrong), request), verdict{code: api.BadCredentials}},
	"wrong, at Bitbucket, in front":      {says(401, exception(bitbucketWrong)), verdict{code: api.BadCredentials}},
	"wrong, by a refusal's text":         {says(401, "<p>Reason : AUTHENTICATED_FAILED CANARY-body"), verdict{code: api.BadCredentials}},
	"wrong, in the two-step login":       {says(401, twoStepRefused), verdict{code: api.BadCredentials}},
	"401 by the product":                 {says(401, page, nobody), verdict{code: api.BadCredentials}},
	"401 by its framework":               {says(401, `{"message":"CANARY-body","status-code":401}`), verdict{code: api.BadCredentials}},
	"401 by a stranger":                  {says(401, `{"message":"CANARY-body"}`), verdict{code: api.UnexpectedStatus}},
	"401 by a gateway":                   {says(401, `{"statusCode":401,"message":"CANARY-body"}`), verdict{code: api.UnexpectedStatus}},
	"limited":                            {says(429, page, "Retry-After: 7"), verdict{code: api.RateLimited, back: true}},
	"away":                               {says(503, page), verdict{code: api.Maintenance, back: true}},
	"broken":                             {says(500, page), verdict{code: api.Server5xx}},
	"to a foreign host":                  {says(302, "", foreignLocation), verdict{code: api.SSORedirect}},
	"to https":                           {toHTTPS, verdict{code: api.InsecureRedirect}},
	"Basic disabled":                     {says(403, `{"message":"Basic Authentication has been disabled on this instance."}`, nobody), verdict{code: api.BasicDisabled, back: true}},
	"XSRF":                               {says(403, forgery, nobody), verdict{code: api.CSRF403, back: true}},
	"XSRF, and a user":                   {says(403, forgery, user), verdict{code: api.CSRF403, back: true}},
	"no right":                           {says(403, page, noRights), verdict{code: api.Forbidden, accepted: true}},
	"no right, by the user's name":       {says(403, page, user), verdict{code: api.Forbidden, accepted: true}},
	"no licence, at Bitbucket":           {says(401, exception(bitbucketLicence), request), verdict{code: api.Forbidden, accepted: true}},
	"no permission, at Bitbucket":        {says(401, exception(bitbucketNoRight), user), verdict{code: api.Forbidden, accepted: true}},
	"403":                                {says(403, page, nobody), verdict{code: api.UnexpectedStatus}},
	"404":                                {says(404, page), verdict{code: api.UnexpectedStatus, back: true}},
	"405":                                {says(405, page, request), verdict{code: api.UnexpectedStatus, back: true}},
	"400":                                {says(400, twoStepRefused), verdict{code: api.UnexpectedStatus}},
	"201":                                {says(201, twoStepDone), verdict{code: api.UnexpectedStatus}},
}

// TestTwoStepAnswers: what the two-step login says to a password.
func TestTwoStepAnswers(t *testing.T) {
	for _, m := range twoStepFamily() {
		path := "GET " + m.probe
		// known names the user to whoever has the session.
		known := func(cookie string, answer http.HandlerFunc) http.HandlerFunc {
			return func(w http.ResponseWriter, r *http.Request) {
				if strings.Contains(r.Header.Get("Cookie"), cookie+"=CANARY-session") {
					answer(w, r)
					return
				}
				m.nobody(w, r)
			}
		}
		for name, c := range refusals {
			asked := m.attempt(t, name, byTSV, map[string]http.HandlerFunc{path: m.nobody, twoStepPath: c.answer}, c.want)
			if !slices.Equal(asked, []string{path, twoStepPath}) {
				t.Errorf("%s, %s: asked %q", m.kind, name, asked)
			}
		}
		good, second := verdict{accepted: true}, verdict{code: api.SecondFactor, accepted: true}
		lb, sent := "Set-Cookie: AWSALB=CANARY-lb; Path=/", m.session()
		for name, c := range map[string]struct {
			answer, probe http.HandlerFunc
			want          verdict
		}{
			"good":                      {says(200, twoStepDone, sent, fine, user), known(m.cookie, m.me), good},
			"good, without a next page": {says(200, `{}`, sent), known(m.cookie, m.me), good},
			"good, beside others":       {says(200, twoStepDone, lb, sent), known(m.cookie, m.me), good},
			"code wanted":               {says(412, `{"conversationId":"CANARY-id","nextLoginStep":"TOTP_CODE_VERIFICATION"}`, sent), m.nobody, second},
			"enrolment wanted":          {says(412, `{"conversationId":"CANARY-id","nextLoginStep":"ENROLLMENT"}`), m.nobody, second},
			"another step wanted":       {says(412, `{"nextLoginStep":"CANARY"}`), m.nobody, second},
			"412, nothing wanted":       {says(412, `{"nextLoginStep":""}`), m.nobody, verdict{code: api.UnexpectedStatus}},
			"412, a step of no text":    {says(412, `{"nextLoginStep":{"CANARY":1}}`), m.nobody, verdict{code: api.UnexpectedStatus}},
			"412, by nobody knows whom": {says(412, page), m.nobody, verdict{code: api.UnexpectedStatus}},
			"200 with a page":           {says(200, page, sent), m.nobody, verdict{code: api.UnexpectedStatus}},
			"200 with null":             {says(200, "null", sent), m.nobody, verdict{code: api.UnexpectedStatus}},
			"200 with nothing":          {says(200, "", sent), m.nobody, verdict{code: api.UnexpectedStatus}},
			"anonymous":                 {says(200, twoStepDone, sent), m.nobody, second},
			"no cookie":                 {says(200, twoStepDone), m.nobody, verdict{code: api.NoSessionCookie, accepted: true}},
			"no right":                  {says(200, twoStepDone, sent), known(m.cookie, says(403, page, user)), verdict{code: api.Forbidden, accepted: true}},
			"no right to be seen":       {says(200, twoStepDone, sent), known(m.cookie, says(503, page)), verdict{code: api.Maintenance, accepted: true}},
		} {
			m.attempt(t, name, byTSV, map[string]http.HandlerFunc{path: c.probe, twoStepPath: c.answer}, c.want)
		}
		// A session that was begun before may be the user's afterwards.
		n := 0
		m.attempt(t, "the session before", byTSV, map[string]http.HandlerFunc{path: func(w http.ResponseWriter, r *http.Request) {
			if n++; n > 1 {
				m.me(w, r)
				return
			}
			w.Header().Set("Set-Cookie", strings.TrimPrefix(sent, "Set-Cookie: "))
			m.nobody(w, r)
		}, twoStepPath: says(200, twoStepDone)}, good)
	}
	// What a person has to do is said.
	for step, text := range map[string]string{"TOTP_CODE_VERIFICATION": "wants a second factor", "ENROLLMENT": "set up a second factor first"} {
		m := family[2]
		a := &answers{t: t, say: map[string]http.HandlerFunc{"GET " + m.probe: m.nobody, twoStepPath: says(412, `{"nextLoginStep":"`+step+`"}`)}}
		err := m.driver(byTSV).Login(t.Context(), exchangeWith(t, a, new(web.Jar), nil), new(lent))
		if e := api.AsError(err); e == nil || !strings.Contains(e.Detail, text) || !strings.Contains(e.Remedy, `kind = "token"`) {
			t.Errorf("%s: %+v", step, err)
		}
	}
}

// TestTwoStepThere: who gets the password in the two-step login.
func TestTwoStepThere(t *testing.T) {
	for _, m := range twoStepFamily() {
		running := says(200, `{"state":"RUNNING"}`)
		for name, c := range map[string]struct {
			stranger http.HandlerFunc
			status   http.HandlerFunc
			code     api.Code // "": it gets the password
		}{
			"the product":               {m.nobody, nil, ""},
			"its 401, by its header":    {says(401, page, nobody), nil, ""},
			"its 401, by its framework": {says(401, `{"message":"CANARY-body","status-code":401}`), nil, ""},
			"its 401, by its exception": {says(401, exception(bitbucketStranger)), nil, ""},
			"its 403":                   {says(403, `{"message":"CANARY-body","statusCode":403}`, nobody), nil, ""},
			"403 by nobody knows whom":  {says(403, `{"message":"CANARY-body"}`), nil, api.UnexpectedStatus},
			"401 by a gateway":          {says(401, `{"message":"CANARY-body","statusCode":401}`), nil, api.UnexpectedStatus},
			"a gate":                    {says(401, page, challenge), nil, api.ChallengeUnsupported},
			"404":                       {says(404, page, request), nil, api.UnexpectedStatus},
			"429":                       {says(429, page), nil, api.RateLimited},
			"503":                       {says(503, page), nil, api.Maintenance},
			"to a foreign host":         {says(302, "", foreignLocation), nil, api.SSORedirect},
			"to the login page":         {says(302, "", "Location: /app/"+m.login), nil, api.UnexpectedStatus},
			"to the login page, by it":  {says(302, "", "Location: /app/"+m.login+"?next=CANARY", request), nil, ""},
			"a page, running":           {says(200, page), running, api.UnexpectedStatus},
			"a page, starting":          {says(200, page), says(200, `{"state":"STARTING"}`), api.Maintenance},
			"a page everywhere":         {says(200, page), says(200, page), api.Maintenance},
			"a page about maintenance":  {says(200, `<title>Crucible Maintenance</title>`), nil, api.Maintenance},
		} {
			status := "GET " + map[string]string{"bamboo": "rest/api/latest/status"}[m.kind]
			if m.kind != "bamboo" {
				status += "status"
			}
			a := &answers{t: t, say: map[string]http.HandlerFunc{"GET " + m.probe: c.stranger, status: c.status, twoStepPath: says(401, twoStepRefused)}}
			p := new(lent)
			err := m.driver(byTSV).Login(t.Context(), exchangeWith(t, a, new(web.Jar), anyToken{}), p)
			name = m.kind + ": " + name
			quiet(t, name, err)
			want, asked := c.code, []string{"GET " + m.probe}
			switch {
			case c.code == "":
				want, asked = api.BadCredentials, append(asked, twoStepPath)
			case c.status != nil:
				asked = append(asked, status)
			}
			if api.CodeOf(err) != want || p.taken != (c.code == "") || !slices.Equal(a.asked, asked) {
				t.Errorf("%s: %v, want %q; asked %q, want %q; the password: %+v", name, err, want, a.asked, asked, *p)
			}
		}
		// A password that is not lent is not sent.
		a := &answers{t: t, say: map[string]http.HandlerFunc{"GET " + m.probe: m.nobody}}
		latched := &api.Error{Code: api.Latched, Detail: "x", Remedy: "x"}
		if err := m.driver(byTSV).Login(t.Context(), exchangeWith(t, a, new(web.Jar), nil), &lent{err: latched}); !errors.Is(err, latched) || len(a.asked) != 1 {
			t.Errorf("%s, not lent: %v; asked %q", m.kind, err, a.asked)
		}
	}
}

// TestTwoStepRequest: what goes to the two-step login with a password.
func TestTwoStepRequest(t *testing.T) {
	const windowsChrome = "Mozilla/5.0 (Windows NT 10.0) Chrome/140.0"
	for _, m := range twoStepFamily() {
		for agent, browser := range map[string]bool{"": false, "Mozilla/5.0 (Windows NT 10.0) corp/1": false, windowsChrome: true} {
			var origin string
			a := &answers{t: t, say: map[string]http.HandlerFunc{"GET " + m.probe: m.nobody, twoStepPath: func(w http.ResponseWriter, r *http.Request) {
				for name, want := range map[string]string{"Content-Type": "application/json", "Accept": "application/json", "X-Atlassian-Token": "no-check", "Authorization": "", "Origin": origin} {
					if got := r.Header.Get(name); got != want {
						t.Errorf("%s, %q: %s: %q, want %q", m.kind, agent, name, got, want)
					}
				}
				body, err := io.ReadAll(r.Body)
				var got map[string]any
				if err = errors.Join(err, json.Unmarshal(body, &got)); err != nil || len(got) != 4 ||
					got["username"] != `CORP\bü"ild` || got["password"] != "CANARY-\"<ü\u2028" || got["rememberMe"] != false || got["targetUrl"] != "" {
					t.Errorf("%s gets %q (%v)", m.kind, got, err)
				}
				if r.URL.RawQuery != "os_authType=none" {
					t.Errorf("%s: query %q", m.kind, r.URL.RawQuery)
				}
				says(401, twoStepRefused)(w, r)
			}}}
			x := exchangeAs(t, a, agent, nil)
			if browser {
				origin = web.OriginOf(mustURL(t, x, "")).String()
			}
			if err := m.driver(byTSV).Login(t.Context(), x, &account{offered{text: "CANARY-\"<ü\u2028"}, `CORP\bü"ild`}); api.CodeOf(err) != api.BadCredentials {
				t.Errorf("%s: %v", m.kind, err)
			}
		}
	}
}

// TestFormGeneration: what a login form of the family says to a password.
func TestFormGeneration(t *testing.T) {
	for _, m := range family {
		begin, action := "GET "+m.login, "POST "+m.action
		for name, c := range refusals {
			if name == "wrong, in the two-step login" || name == "captcha, in the two-step login" {
				continue // is no form's
			}
			asked := m.attempt(t, name, byForm, map[string]http.HandlerFunc{begin: says(200, m.form(""), nobody), action: c.answer}, c.want)
			if !slices.Equal(asked, []string{begin, action}) {
				t.Errorf("%s, %s: asked %q", m.kind, name, asked)
			}
		}
		picture := `<img class="captcha-image"><input name=captcha>`
		refused, captcha := verdict{code: api.BadCredentials}, verdict{code: api.Captcha}
		again := says(302, "", m.session(), "Location: /app/"+m.login+"?error")
		for name, c := range map[string]struct {
			answer, second http.HandlerFunc
			want           verdict
		}{
			"good":                         {says(302, "", m.session(), fine, "Location: /app/home"), nil, verdict{}},
			"good, 303":                    {says(303, "", m.session(), "Location: /app/home?CANARY"), nil, verdict{}},
			"good, 200":                    {says(200, page, m.session()), nil, verdict{}},
			"good, to the login page":      {again, says(200, page, user), verdict{}},
			"refused":                      {says(200, m.form(""), m.session()), nil, refused},
			"refused, to the login page":   {again, says(200, m.form("")), refused},
			"captcha in the form":          {says(200, m.form(picture), m.session()), nil, captcha},
			"captcha, to the login page":   {again, says(200, m.form(picture)), captcha},
			"captcha, by header, there":    {again, says(200, m.form(""), denied), captcha},
			"wrong, by header, there":      {again, says(200, page, failed), refused},
			"no cookie":                    {says(302, "", "Location: /app/home"), nil, verdict{code: api.NoSessionCookie}},
			"once more, elsewhere":         {says(307, "", "Location: /app/home"), nil, verdict{code: api.UnexpectedStatus}},
			"nowhere":                      {says(302, ""), nil, verdict{code: api.UnexpectedStatus}},
			"204":                          {says(204, "", m.session()), nil, verdict{code: api.UnexpectedStatus}},
			"once more, to the login page": {says(308, "", "Location: /app/"+m.login), nil, verdict{code: api.UnexpectedStatus}},
			"to a foreign host, later":     {again, says(302, "", foreignLocation), verdict{code: api.SSORedirect}},
		} {
			first := true
			m.attempt(t, name, byForm, map[string]http.HandlerFunc{begin: func(w http.ResponseWriter, r *http.Request) {
				if first || c.second == nil {
					first = false
					says(200, m.form(""), nobody)(w, r)
					return
				}
				c.second(w, r)
			}, action: c.answer, "GET " + m.probe: m.nobody}, c.want)
		}
		// What of a page stands against a login before a password is taken.
		for name, c := range map[string]struct {
			page http.HandlerFunc
			code api.Code
		}{
			"two-step":           {says(200, `<div id="root">CANARY-body</div>`, nobody), api.UnexpectedStatus},
			"another form":       {says(200, `<form method=post><input name=u><input type=password name=p></form>`), api.UnexpectedStatus},
			"captcha":            {says(200, m.form(picture)), api.Captcha},
			"captcha, by header": {says(200, m.form(""), denied), api.Captcha},
			"gate":               {says(401, page, challenge), api.ChallengeUnsupported},
			"maintenance":        {says(200, `<html><title>Crucible Maintenance</title>`), api.Maintenance},
			"away":               {says(503, page), api.Maintenance},
			"limited":            {says(429, page), api.RateLimited},
			"to a foreign host":  {says(302, "", foreignLocation), api.SSORedirect},
			"form to elsewhere":  {says(200, strings.ReplaceAll(m.form(""), "/app/", "https://login.foreign.example/")), api.SSORedirect},
		} {
			a := &answers{t: t, say: map[string]http.HandlerFunc{begin: c.page}}
			p := new(lent)
			err := m.driver(byForm).Login(t.Context(), exchangeWith(t, a, new(web.Jar), nil), p)
			quiet(t, name, err)
			if api.CodeOf(err) != c.code || *p != (lent{}) || a.asked[0] != begin || len(a.asked) > 2 {
				t.Errorf("%s, %s: %v, want %q; the password: %+v; asked %q", m.kind, name, err, c.code, *p, a.asked)
			}
		}
		// Nothing but the product's own form gets it. One sign of three is enough.
		for name, c := range map[string]struct {
			action, field string
			found         Findings
			taken         bool
		}{
			"by its action":          {action: "/app/" + m.action, taken: true},
			"by its head":            {action: "/app/in", field: nobody, taken: true},
			"by what was found":      {action: "/app/in", found: Findings{Product: m.kind}, taken: true},
			"a gate's":               {action: "/my.policy"},
			"a gate's, found aside":  {action: "/my.policy", found: Findings{Login: byForm, Gate: gateForAll}},
			"a gate's, named alike":  {action: "/oauth2/" + m.action},
			"a gate's, to the front": {action: "/app"},
		} {
			a := &answers{t: t, say: map[string]http.HandlerFunc{begin: says(200, strings.ReplaceAll(m.form(""), "/app/"+m.action, c.action), cmp.Or(c.field, "X-Another: x"))}}
			p := new(lent)
			c.found.Login = byForm
			d := m.driver("").(Detector).As(c.found)
			err := d.Login(t.Context(), exchangeWith(t, a, new(web.Jar), nil), p)
			quiet(t, name, err)
			if p.taken != c.taken || api.CodeOf(err) != api.UnexpectedStatus {
				t.Errorf("%s, %s: %v; the password: %+v", m.kind, name, err, *p)
			}
			if e := api.AsError(err); !c.taken && (!strings.Contains(e.Detail, m.name) || !strings.Contains(e.Remedy, "login_url") || !strings.Contains(e.Remedy, `kind = "form"`)) {
				t.Errorf("%s, %s: %+v", m.kind, name, e)
			}
		}
		// Hidden fields go along, and nothing that asks for a session beyond the browser's.
		more := `<input type=checkbox name=os_cookie value=true checked><input type=checkbox name=_atl_remember_me checked><input type=hidden name=rememberme value=yes><input type=hidden name=origUrl value=/x>`
		a := &answers{t: t, say: map[string]http.HandlerFunc{begin: says(200, m.form(more)), action: func(w http.ResponseWriter, r *http.Request) {
			want := url.Values{m.username: {"build"}, m.password: {"CANARY-password"}, "atl_token": {"CANARY-token"}, "origUrl": {"/x"}, "login": {"Log in"}}
			if err := r.ParseForm(); err != nil || r.PostForm.Encode() != want.Encode() || r.Header.Get("Origin") == "" {
				t.Errorf("%s gets %q (%v), want %q", m.kind, r.PostForm, err, want)
			}
			says(200, m.form(""))(w, r)
		}}}
		if err := m.driver(byForm).Login(t.Context(), exchangeWith(t, a, new(web.Jar), nil), new(lent)); api.CodeOf(err) != api.BadCredentials {
			t.Errorf("%s: %v", m.kind, err)
		}
	}
}

// TestFamilyTicket: what a gate and a product say to a ticket, and what they are
// asked as.
func TestFamilyTicket(t *testing.T) {
	for _, m := range family {
		for name, c := range map[string]struct {
			login http.HandlerFunc
			code  api.Code
		}{
			"good":         {m.gate(says(200, page, m.session())), ""},
			"no such user": {m.gate(says(200, m.form(""), m.session(), failed)), api.Forbidden},
			"captcha":      {says(200, m.form(""), denied), api.Captcha},
			"nobody asks":  {says(200, m.form(""), m.session(), nobody), api.NoChallenge},
			"maintenance":  {says(200, `<title>Crucible Maintenance</title>`), api.Maintenance},
			"away":         {says(503, page), api.Maintenance},
			"refused":      {says(401, page, challenge), api.NegotiateRejected},
			"to elsewhere": {says(302, "", foreignLocation), api.SSORedirect},
			"no cookie":    {m.gate(says(200, page, user)), api.NoSessionCookie},
		} {
			a := &answers{t: t, say: map[string]http.HandlerFunc{"GET " + m.login: c.login}}
			err := m.driver("").Login(t.Context(), exchangeWith(t, a, new(web.Jar), anyToken{}), nil)
			quiet(t, name, err)
			if api.CodeOf(err) != c.code {
				t.Errorf("%s, %s: %v, want %q", m.kind, name, err, c.code)
			}
			if err != nil && c.code == api.Forbidden && !strings.Contains(err.Error(), m.name+" does not let its user in") {
				t.Errorf("%s, %s: %v", m.kind, name, err)
			}
		}
		plain := "sessionctl/" + api.Version
		for found, agent := range map[Findings]string{
			{}: plain + " (Windows NT)", {Gate: gateForWindows}: plain + " (Windows NT)", {Product: m.kind}: plain + " (Windows NT)", {Gate: gateForAll}: plain,
		} {
			a := &answers{t: t, say: map[string]http.HandlerFunc{"GET " + m.login: func(w http.ResponseWriter, r *http.Request) {
				if r.UserAgent() != agent {
					t.Errorf("%s, %+v: User-Agent %q, want %q", m.kind, found, r.UserAgent(), agent)
				}
				m.gate(says(200, page, m.session()))(w, r)
			}}}
			if err := New(m.kind).(Detector).As(found).Login(t.Context(), exchangeAs(t, a, "", anyToken{}), nil); err != nil || len(a.asked) != 2 {
				t.Errorf("%s, %+v: %v; asked %q", m.kind, found, err, a.asked)
			}
		}
	}
}

// gate asks for a token and then answers so.
func (member) gate(answer http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") == "" {
			says(401, page, challenge)(w, r)
			return
		}
		answer(w, r)
	}
}

// TestFamilyProbe: what ends a session, what does not, and whose it is. What Jira's
// answers mean is in TestJiraProbe.
func TestFamilyProbe(t *testing.T) {
	running := says(200, `{"state":"RUNNING"}`)
	type answer struct {
		answer, status http.HandlerFunc
		code           api.Code
		identity       string
	}
	for _, m := range family {
		rows := map[string]answer{
			"alive":                        {m.me, nil, "", "build"},
			"nobody":                       {m.nobody, nil, api.Expired, ""},
			"a login page":                 {says(200, m.form(""), nobody), nil, api.Expired, ""},
			"to the login page":            {says(302, "", "Location: /app/"+m.login+"?CANARY"), nil, api.Expired, ""},
			"to another login page":        {says(302, "", "Location: /app/userlogin.action"), nil, api.Expired, ""},
			"to a foreign host":            {says(302, "", foreignLocation), nil, api.Expired, ""},
			"401 by the product":           {says(401, page, nobody), nil, api.Expired, ""},
			"an invalid cookie":            {says(401, "os_authType was 'any' and an invalid cookie was sent. CANARY-body", out), nil, api.Expired, ""},
			"401 by a gate":                {says(401, page, challenge), nil, api.Expired, ""},
			"captcha":                      {says(200, page, denied), nil, api.Expired, ""},
			"no right":                     {says(403, page, noRights), nil, api.Forbidden, ""},
			"no right, by the user's name": {says(403, text, user), nil, api.Forbidden, ""},
			"WebSudo":                      {says(401, `{"elevationMethods":["PASSWORD","TOTP"]}`, nobody), nil, api.Forbidden, ""},
			"WebSudo, Jira's page":         {says(302, "", "Location: /app/secure/admin/WebSudoAuthenticate!default.jspa?CANARY", user), nil, api.Forbidden, ""},
			"WebSudo, Confluence's page":   {says(302, "", "Location: /app/authenticate.action?CANARY", user), nil, api.Forbidden, ""},
			"limited":                      {says(429, page, out), nil, api.RateLimited, ""},
			"away":                         {says(503, page, out), nil, api.Maintenance, ""},
			"broken":                       {says(500, page, out), nil, api.Server5xx, ""},
			"maintenance with 200":         {says(200, `<html><title>Crucible Maintenance</title>CANARY-body`), nil, api.Maintenance, ""},
			"packed":                       {says(200, "\x1f\x8bCANARY-body", user, "Content-Encoding: gzip"), nil, api.UnexpectedStatus, ""},
			"cut":                          {long(m.me), nil, api.UnexpectedStatus, ""},
			"404":                          {says(404, page, request), nil, api.UnexpectedStatus, ""},
		}
		add := func(name string, a http.HandlerFunc, status http.HandlerFunc, code api.Code, identity string) {
			rows[name] = answer{a, status, code, identity}
		}
		if m.kind != "crucible" {
			add("401 by nobody knows whom", says(401, page), nil, api.UnexpectedStatus, "")
			add("403, nobody", says(403, text, nobody), nil, api.Expired, "")
			add("two users in the head", func(w http.ResponseWriter, r *http.Request) {
				w.Header().Add("X-AUSERNAME", "CANARY-root")
				withUser(m.me)(w, r)
			}, nil, api.WrongIdentity, "")
			add("a gateway's health", says(200, `{"name":"edge","type":"known","username":"edge","state":"CANARY"}`), says(200, "{}"), api.Maintenance, "")
			add("a page in front", says(200, page), running, api.UnexpectedStatus, "")
			add("a page in front, away", says(200, page), says(200, page), api.Maintenance, "")
			add("a user in the head alone", says(200, map[string]string{"bitbucket": " ", "confluence": `{"type":"known"}`}[m.kind], user), nil, api.UnexpectedStatus, "")
		}
		switch m.kind {
		case "jira", "bamboo":
			delete(rows, "a user in the head alone")
			add("two users", says(200, `{"name":"build"}`, "X-AUSERNAME: CANARY-root"), nil, api.WrongIdentity, "")
		case "confluence":
			add("two users", says(200, `{"type":"known","username":"build"}`, "X-AUSERNAME: CANARY-root"), nil, api.WrongIdentity, "")
			add("two types", says(200, `{"type":"anonymous","type":"known","username":"build"}`, nobody), nil, api.WrongIdentity, "")
			add("anonymous with a name", says(200, `{"type":"anonymous","username":"build"}`, nobody), nil, api.Expired, "")
			add("no type", says(200, `{"username":"build"}`, request), nil, api.Expired, "")
		case "bitbucket":
			add("alive, with a line break", says(200, "bü ild\r\n", "X-AUSERNAME: b%C3%BC+ild"), nil, "", "bü ild")
			add("a word of somebody's", says(200, "build", "Content-Type: text/plain"), running, api.UnexpectedStatus, "")
			add("a word of somebody's, away", says(200, "Service temporarily unavailable", "Content-Type: text/plain"), says(200, "CANARY"), api.Maintenance, "")
			add("alive, by the request's number", says(200, "build", request), nil, "", "build")
			add("two users", says(200, "build", "X-AUSERNAME: CANARY-root"), nil, api.WrongIdentity, "")
			add("nothing, by nobody knows whom", says(200, ""), running, api.UnexpectedStatus, "")
			add("two lines", says(200, "build\nroot", request), nil, api.Expired, "")
			add("stranger", says(401, exception(bitbucketStranger)), nil, api.Expired, "")
			add("no permission", says(401, exception(bitbucketNoRight), user), nil, api.Forbidden, "")
			add("no permission, nobody", says(401, exception(bitbucketNoRight), request), nil, api.Expired, "")
			add("no licence", says(401, exception(bitbucketLicence), request), nil, api.Forbidden, "")
			add("captcha by its exception", says(401, exception(bitbucketCaptcha), request), nil, api.Expired, "")
			add("an exception of somebody else", says(401, exception("org.foreign.AuthorisationException")), nil, api.UnexpectedStatus, "")
		case "crucible":
			add("nobody by the expression", says(200, `<p>Guest |</p>`), nil, api.Expired, "")
			add("403", says(403, page), nil, api.Forbidden, "")
		}
		status := "GET status"
		if m.kind == "bamboo" {
			status = "GET rest/api/latest/status"
		}
		for name, c := range rows {
			a := &answers{t: t, say: map[string]http.HandlerFunc{status: c.status, "GET " + m.probe: func(w http.ResponseWriter, r *http.Request) {
				if got := r.Header.Get("Cookie"); got != m.cookie+"=CANARY-session" {
					t.Errorf("%s, %s: Cookie %q", m.kind, name, got)
				}
				c.answer(w, r)
			}}}
			x := exchangeWith(t, a, new(web.Jar), anyToken{})
			x.Jar().Set(mustURL(t, x, ""), []string{strings.TrimPrefix(m.session(), "Set-Cookie: ")}, time.Now())
			id, err := m.driver("").Probe(t.Context(), x)
			quiet(t, name, err)
			if api.CodeOf(err) != c.code || id != (Identity{Name: c.identity}) {
				t.Errorf("%s, %s: %+v %v, want %q %q", m.kind, name, id, err, c.identity, c.code)
			}
			asked := []string{"GET " + m.probe}
			if c.status != nil {
				asked = append(asked, status)
			}
			if !slices.Equal(a.asked, asked) {
				t.Errorf("%s, %s: asked %q, want %q", m.kind, name, a.asked, asked)
			}
		}
	}
}

// long is the answer with more behind it than is read.
func long(answer http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		answer(w, r)
		io.WriteString(w, strings.Repeat(" ", 1<<20))
	}
}

// withUser is the answer with its user's name in the head, too.
func withUser(answer http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Add("X-AUSERNAME", "build")
		answer(w, r)
	}
}

// TestFamilyLogout: a session has ended when nobody is there any more. Jira's, which
// says so itself, is in TestJiraLogout.
func TestFamilyLogout(t *testing.T) {
	for _, m := range family[1:] {
		for name, c := range map[string]struct {
			answer http.HandlerFunc
			probe  http.HandlerFunc
			code   api.Code
		}{
			"a page":              {says(200, page), m.nobody, ""},
			"to a page":           {says(302, "", "Location: /app/logout.vm"), m.nobody, ""},
			"to a foreign host":   {says(302, "", foreignLocation), m.nobody, ""},
			"none any more":       {says(401, page), m.nobody, ""},
			"lives on":            {says(200, page), m.me, api.UnexpectedStatus},
			"lives on, 404":       {says(404, page), m.me, api.UnexpectedStatus},
			"no right":            {says(200, page), says(403, page, user), api.Forbidden},
			"nobody knows":        {says(200, page), says(503, page), api.Maintenance},
			"XSRF":                {says(403, forgery, user), nil, api.CSRF403},
			"limited":             {says(429, page), nil, api.RateLimited},
			"away":                {says(503, page), nil, api.Maintenance},
			"broken":              {says(500, page), nil, api.Server5xx},
			"somebody else's now": {says(200, page), says(200, `{}`, "X-AUSERNAME: CANARY-root", noRights), api.Forbidden},
		} {
			a := &answers{t: t, say: map[string]http.HandlerFunc{"GET " + m.logout: func(w http.ResponseWriter, r *http.Request) {
				if !strings.Contains(r.Header.Get("Cookie"), m.cookie+"=CANARY-session") || r.URL.Query().Get("atl_token") != "CANARY|xsrf_lin" {
					t.Errorf("%s, %s: %q %s", m.kind, name, r.Header, r.URL)
				}
				c.answer(w, r)
			}, "GET " + m.probe: c.probe}}
			x := exchangeWith(t, a, new(web.Jar), anyToken{})
			x.Jar().Set(mustURL(t, x, ""), []string{strings.TrimPrefix(m.session(), "Set-Cookie: "), "atlassian.xsrf.token=CANARY|xsrf_lin; Path=/app"}, time.Now())
			err := m.driver("").(Logouter).Logout(t.Context(), x)
			quiet(t, name, err)
			if api.CodeOf(err) != c.code {
				t.Errorf("%s, %s: %v, want %q", m.kind, name, err, c.code)
			}
			asked := []string{"GET " + m.logout}
			if c.probe != nil {
				asked = append(asked, "GET "+m.probe)
			}
			if !slices.Equal(a.asked, asked) {
				t.Errorf("%s, %s: asked %q", m.kind, name, a.asked)
			}
		}
	}
}

// TestFamilyOptions: what every kind of the family says of itself, and which options
// it takes.
func TestFamilyOptions(t *testing.T) {
	base, err := url.Parse("https://app.corp.example/app")
	if err != nil {
		t.Fatal(err)
	}
	o := web.Options{Base: base, LoginHosts: []web.Origin{{Scheme: "https", Host: "login.corp.example", Port: "443"}}}
	life := map[string]time.Duration{"jira": 5 * time.Hour, "confluence": time.Hour, "bitbucket": 30 * time.Minute, "bamboo": 30 * time.Minute, "crucible": 0}
	for _, m := range family {
		d := m.driver("")
		if got := d.Takes(); !slices.Equal(got, []Means{Ticket, Secret}) {
			t.Errorf("%s takes %q", m.kind, got)
		}
		if got := d.(Lasting).Life(); got != (Life{Idle: life[m.kind]}) {
			t.Errorf("%s: %+v", m.kind, got)
		}
		if got := d.(Paged).LoginPage(); got != m.login {
			t.Errorf("%s: login page %q", m.kind, got)
		}
		if err := d.(Checker).Check(o, ""); err != nil {
			t.Errorf("%s, as made: %v", m.kind, err)
		}
		if err := d.(Checker).Check(o, Unproven); err == nil || !strings.Contains(err.Error(), `identity = "unproven"`) {
			t.Errorf("%s: %v", m.kind, err)
		}
		for _, login := range []string{"", byForm, byTSV, byREST, "Form", "CANARY"} {
			d := m.driver("")
			family := familyOf(d)
			family.Generation = login
			good := login == "" || login == byForm || login == byTSV && m.kind != "crucible" || login == byREST && m.kind == "jira"
			if err := d.(Checker).Check(o, ""); (err == nil) != good {
				t.Errorf("%s, login = %q: %v", m.kind, login, err)
			} else if login == byREST && m.kind == "crucible" && !strings.Contains(err.Error(), "FEAUTH") {
				t.Errorf("%s: %v", m.kind, err)
			}
		}
	}
	// A URL in any option is the site's, or a login host's.
	for _, url := range []string{"https://foreign.example/?CANARY", "//foreign.example/CANARY", "ftp://app.corp.example/CANARY", ":CANARY"} {
		for name, set := range map[string]func(*application){
			"login_url": func(a *application) { a.LoginURL = url }, "tsv_url": func(a *application) { a.TSVURL = url }, "probe_url": func(a *application) { a.ProbeURL = url },
			"logout_url": func(a *application) { a.LogoutURL = url }, "status_url": func(a *application) { a.StatusURL = url },
		} {
			for _, m := range family[1:4] {
				a := New(m.kind).(*application)
				set(a)
				if err := a.Check(o, ""); err == nil || !strings.Contains(err.Error(), name+" ") || strings.Contains(err.Error(), "CANARY") {
					t.Errorf("%s, %s = %q: %v", m.kind, name, url, err)
				}
			}
		}
		for name, set := range map[string]func(*crucible){
			"login_url": func(c *crucible) { c.LoginURL = url }, "probe_url": func(c *crucible) { c.ProbeURL = url }, "logout_url": func(c *crucible) { c.LogoutURL = url },
		} {
			c := &crucible{atlassian: atlassian{product: crucibleProduct, LoginURL: "login"}, ProbeURL: "me", IdentityJSON: "name", LogoutURL: "logout"}
			set(c)
			if err := c.Check(o, ""); err == nil || !strings.Contains(err.Error(), name+" ") || strings.Contains(err.Error(), "CANARY") {
				t.Errorf("crucible, %s = %q: %v", name, url, err)
			}
		}
	}
	for name, c := range map[string]struct {
		d        *crucible
		identity string
		want     string
	}{
		"no probe":     {&crucible{IdentityJSON: "name"}, "", "probe_url is missing"},
		"no way":       {&crucible{ProbeURL: "me"}, "", "identity_json"},
		"unproven":     {&crucible{ProbeURL: "me"}, Unproven, ""},
		"two ways":     {&crucible{ProbeURL: "me", IdentityJSON: "name", IdentityHeader: "X"}, "", "only one"},
		"a contradict": {&crucible{ProbeURL: "me", IdentityJSON: "name"}, Unproven, "contradicts"},
	} {
		c.d.product = crucibleProduct
		if err := c.d.Check(o, c.identity); (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

// familyOf returns the options that all kinds of the family have.
func familyOf(d Driver) *atlassian {
	switch d := d.(type) {
	case *jira:
		return &d.atlassian
	case *application:
		return &d.atlassian
	case *crucible:
		return &d.atlassian
	}
	panic("no member of the family")
}

// TestOverrides: an option counts more than what was found.
func TestOverrides(t *testing.T) {
	m := family[1]
	for option, c := range map[string]struct{ found, asked string }{
		"":     {"", "GET login.action"},
		byForm: {byTSV, "GET login.action"},
		byTSV:  {byForm, "GET rest/api/user/current"},
	} {
		a := &answers{t: t}
		d := m.driver(c.found)
		familyOf(d).Generation = option
		d.Login(t.Context(), exchangeWith(t, a, new(web.Jar), nil), new(lent))
		if !slices.Equal(a.asked, []string{c.asked}) {
			t.Errorf("login = %q, found %q: asked %q", option, c.found, a.asked)
		}
	}
	a := &answers{t: t, say: map[string]http.HandlerFunc{"GET who": m.nobody, "POST second": says(401, twoStepRefused)}}
	d := m.driver(byTSV).(*application)
	d.TSVURL, d.ProbeURL = "second?x=1", "who"
	if err := d.Login(t.Context(), exchangeWith(t, a, new(web.Jar), nil), new(lent)); api.CodeOf(err) != api.BadCredentials || len(a.asked) != 2 {
		t.Errorf("%v; asked %q", err, a.asked)
	}
	// A driver for what was found leaves the one for the site as it is.
	for _, m := range family {
		d := m.driver("")
		if found := d.(Detector).As(Findings{Login: byForm, Gate: gateForAll}); familyOf(found).found.Login != byForm || familyOf(d).found != (Findings{}) {
			t.Errorf("%s: As changes the driver", m.kind)
		}
	}
}

// TestFamilyHeaders: what changes something needs the token, and what seems to come
// from a page of a browser's, that page's origin.
func TestFamilyHeaders(t *testing.T) {
	u, err := url.Parse("https://app.corp.example:8443/app/rest/x?CANARY")
	if err != nil {
		t.Fatal(err)
	}
	token, origin := Header{Name: "X-Atlassian-Token", Value: "no-check"}, Header{Name: "Origin", Value: "https://app.corp.example:8443"}
	for _, m := range family {
		for agent, browser := range map[string]bool{
			"": false, "corp/1": false, "Mozilla/5.0 (Windows NT 10.0)": false, "curl/8 Firefox/1": false, "sessionctl/1 (Windows NT)": false,
			"Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0":                                 true,
			"Mozilla/5.0 (Windows NT 10.0; Win64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0 Safari/537.36": true,
			"Mozilla/5.0 (Windows NT 10.0) Edg/140.0":                                                                true,
		} {
			for method, changes := range map[string]bool{"GET": false, "HEAD": false, "OPTIONS": false, "POST": true, "PUT": true, "DELETE": true, "": true} {
				var want []Header
				if browser && (method == "POST" || method == "") {
					want = append(want, origin)
				}
				if changes {
					want = append(want, token)
				}
				if got := m.driver("").(Companion).Headers(Asked{Method: method, URL: u, UserAgent: agent}); !slices.Equal(got, want) {
					t.Errorf("%s, %q as %q: %v, want %v", m.kind, method, agent, got, want)
				}
			}
		}
	}
}

// TestCrucibleUnproven: a login page with status 200 is a refusal.
func TestCrucibleUnproven(t *testing.T) {
	m := family[4]
	for name, c := range map[string]struct {
		with, without http.HandlerFunc
		code          api.Code
	}{
		"refused by a login page": {says(200, "welcome"), m.nobody, ""},
		"refused by a status":     {says(200, "welcome"), says(403, page), ""},
		"the same":                {says(200, "welcome"), says(200, "welcome"), api.LoginOKButProbeFailed},
		"dead":                    {m.nobody, m.nobody, api.Expired},
		"away":                    {says(200, `<title>Crucible Maintenance</title>`), m.nobody, api.Maintenance},
	} {
		a := &answers{t: t, say: map[string]http.HandlerFunc{"GET " + m.probe: func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Cookie") != "" {
				c.with(w, r)
				return
			}
			c.without(w, r)
		}}}
		x := exchangeWith(t, a, new(web.Jar), nil)
		x.Jar().Set(mustURL(t, x, ""), []string{"FESESSIONID=CANARY-session; Path=/app"}, time.Now())
		id, err := (&crucible{atlassian: atlassian{product: crucibleProduct, LoginURL: "login"}, ProbeURL: m.probe}).Probe(t.Context(), x)
		if api.CodeOf(err) != c.code || err == nil && id != (Identity{Unproven: true}) {
			t.Errorf("%s: %+v %v, want %q", name, id, err, c.code)
		}
	}
}

func FuzzErrorBody(f *testing.F) {
	for _, s := range []string{text, twoStepRefused, exception(bitbucketCaptcha), `{"nextLoginStep":"ENROLLMENT"}`, `{"elevationMethods":["PASSWORD"]}`, `{"status-code":401}`, `{"errors":[null,{}]}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		b := readErrorBody(body)
		if (b.captchaRequired || b.exceptions != nil || b.elevation) && !b.familiar || b.familiar && !json.Valid(body) {
			t.Errorf("%q: %+v", body, b)
		}
		// What one client's tests have in the same array beside it changes nothing.
		quoted, err := json.Marshal(string(body))
		if err != nil {
			t.Fatal(err)
		}
		if !readErrorBody(fmt.Appendf(nil, `{"errors":[{"message":%s},{"exceptionName":%q}]}`, quoted, bitbucketCaptcha)).throws(captchaRequired) {
			t.Errorf("%q hides an exception", body)
		}
	})
}

func FuzzBitbucketUser(f *testing.F) {
	f.Add([]byte("build\n"))
	f.Add([]byte(page))
	f.Fuzz(func(t *testing.T, body []byte) {
		if name, err := bitbucketUser(body); err != nil && name != "" || strings.ContainsAny(name, "\r\n<>\x00") || len(name) > 255 {
			t.Errorf("%q names %q (%v)", body, name, err)
		}
	})
}

func FuzzConfluenceUser(f *testing.F) {
	f.Add([]byte(`{"type":"known","username":"build"}`))
	f.Add([]byte(`{"type":"anonymous"}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		name, err := confluenceUser(body)
		if name == "" || err != nil {
			return
		}
		if kind, err := jsonPath(body, "type"); err != nil || kind != "known" {
			t.Errorf("%q names %q", body, name)
		}
	})
}

// TestStarting: a product that is not running yet shows another page than its login,
// and says so where monitors ask.
func TestStarting(t *testing.T) {
	for _, kind := range []string{"jira", "confluence", "bitbucket", "bamboo"} {
		for _, p := range []Password{nil, new(lent)} {
			d := New(kind).(Detector).As(Findings{Login: byForm})
			begin := "GET " + d.(Paged).LoginPage()
			status := "GET status"
			if kind == "bamboo" {
				status = "GET rest/api/latest/status"
			}
			for state, code := range map[string]api.Code{`{"state":"STARTING"}`: api.Maintenance, `{"state":"RUNNING"}`: "", page: ""} {
				a := &answers{t: t, say: map[string]http.HandlerFunc{begin: says(200, `<p>one moment</p>`), status: says(200, state)}}
				err := d.Login(t.Context(), exchangeWith(t, a, new(web.Jar), anyToken{}), p)
				if got := api.CodeOf(err); code != "" && got != code || code == "" && got != api.NoChallenge && got != api.UnexpectedStatus {
					t.Errorf("%s, %s: %v", kind, state, err)
				}
			}
		}
	}
}
