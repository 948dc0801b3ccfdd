package login

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/rig"
	"github.com/sessionctl/sessionctl/daemon/internal/web"
)

// answers is a site below /app: what it answers, by method and path. It notes
// what it is asked, and sees that nothing goes to another host, that only a
// login page gets a token, and that resources are asked for JSON.
type answers struct {
	t     *testing.T
	say   map[string]http.HandlerFunc
	asked []string
}

func (a *answers) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := strings.TrimPrefix(r.URL.Path, "/app/")
	a.asked = append(a.asked, r.Method+" "+path)
	if !strings.HasPrefix(r.Host, "app.corp.example:") {
		a.t.Errorf("%s was asked", r.Host)
	}
	if path == "rest/auth/1/session" || path == "status" {
		if r.Header.Get("Authorization") != "" || r.Header.Get("Accept") != "application/json" {
			a.t.Errorf("%s %s has Authorization %q, Accept %q", r.Method, path, r.Header.Get("Authorization"), r.Header.Get("Accept"))
		}
	}
	if say := a.say[r.Method+" "+path]; say != nil {
		say(w, r)
		return
	}
	http.NotFound(w, r)
}

// says answers with a status, a body and fields such as "Name: value".
func says(status int, body string, fields ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		for _, f := range fields {
			name, value, _ := strings.Cut(f, ": ")
			w.Header().Add(name, value)
		}
		w.WriteHeader(status)
		io.WriteString(w, body)
	}
}

// What Jira, and what stands in front of it, says in several tests.
const (
	resource = "rest/auth/1/session"
	question = "GET " + resource
	attempt  = "POST " + resource
	logout   = "DELETE " + resource
	status   = "GET status"

	failed    = "X-Seraph-LoginReason: AUTHENTICATED_FAILED"
	denied    = "X-Seraph-LoginReason: AUTHENTICATION_DENIED"
	picture   = "X-Authentication-Denied-Reason: CAPTCHA_CHALLENGE; login-url=https://CANARY-host/login.jsp"
	noRights  = "X-Seraph-LoginReason: AUTHORISATION_FAILED"
	out       = "X-Seraph-LoginReason: OUT"
	fine      = "X-Seraph-LoginReason: OK"
	nobody    = "X-AUSERNAME: anonymous"
	user      = "X-AUSERNAME: build"
	request   = "X-AREQUESTID: 720x1x1"
	forgery   = "XSRF check failed CANARY-body"
	challenge = `WWW-Authenticate: Negotiate`
	basic     = `WWW-Authenticate: Basic realm="CANARY-realm"`

	text      = `{"errorMessages":["CANARY-body"]}`
	page      = `<html><p>Back soon, CANARY-body</html>`
	loginForm = `<html><form method=post><input name=os_username value=CANARY-body><input type=password name=os_password></form></html>`
	session   = `{"session":{"name":"JSESSIONID","value":"CANARY-session"},"loginInfo":{"loginCount":1}}`
	cookie    = "Set-Cookie: JSESSIONID=CANARY-session; Path=/app; HttpOnly"
	me        = `{"self":"https://CANARY-host","name":"build"}`

	foreignLocation = "Location: https://login.foreign.example/CANARY?CANARY=1"
)

// stranger is what Jira says to whoever has no session.
var stranger = says(401, text, nobody, request, `WWW-Authenticate: OAuth realm="CANARY-realm"`)

// toHTTPS redirects to the same path with https.
func toHTTPS(w http.ResponseWriter, r *http.Request) {
	http.Redirect(w, r, "https://"+r.Host+r.URL.Path+"?CANARY=1", http.StatusMovedPermanently)
}

// TestJiraAnswers: what Jira says to a password, and what that means for the
// password.
func TestJiraAnswers(t *testing.T) {
	type verdict struct {
		code           api.Code
		back, accepted bool
	}
	refused, captcha := verdict{code: api.BadCredentials}, verdict{code: api.Captcha}
	strange, notAsked := verdict{code: api.UnexpectedStatus}, verdict{code: api.UnexpectedStatus, back: true}
	forbidden, lost := verdict{code: api.Forbidden, accepted: true}, verdict{code: api.NoSessionCookie, accepted: true}
	good := verdict{accepted: true}
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		want   verdict
	}{
		"session":                            {says(200, session, cookie, fine, user), good},
		"session, nothing of Seraph":         {says(200, session, cookie), good},
		"session beside others":              {says(200, session, "Set-Cookie: AWSALB=CANARY-lb; Path=/", cookie), good},
		"a reason that only looks like one":  {says(200, session, cookie, "X-Seraph-LoginReason: NOT_AUTHENTICATED_FAILED"), good},
		"another denial":                     {says(200, session, cookie, "X-Authentication-Denied-Reason: CANARY CAPTCHA_CHALLENGE"), good},
		"captcha, as captured":               {says(403, page, denied, picture, "Set-Cookie: JSESSIONID=CANARY-other;path=/app;HttpOnly"), captcha},
		"captcha and a wrong password":       {says(401, text, failed, picture), captcha},
		"captcha and no right":               {says(403, text, "X-Seraph-LoginReason: AUTHORISATION_FAILED, AUTHENTICATION_DENIED"), captcha},
		"captcha, Basic disabled":            {says(403, "Basic Authentication has been disabled, CANARY-body", picture), captcha},
		"captcha, to a foreign host":         {says(302, "", picture, foreignLocation), captcha},
		"wrong":                              {says(401, text, failed, "WWW-Authenticate: JIRA REST POST"), refused},
		"wrong, 200":                         {says(200, "", failed), refused}, // JRA-41559
		"wrong, 200 and a session":           {says(200, session, failed, cookie), refused},
		"wrong, 403":                         {says(403, text, failed), refused},
		"wrong, 403 and a user":              {says(403, text, failed, user), refused},
		"wrong, 404":                         {says(404, text, failed), refused},
		"wrong, 429":                         {says(429, text, failed), refused},
		"wrong, 503":                         {says(503, text, failed), refused},
		"wrong, 500":                         {says(500, text, failed), refused},
		"wrong, to a foreign host":           {says(302, "", failed, foreignLocation), refused},
		"wrong, Basic disabled":              {says(403, "Basic Authentication has been disabled, CANARY-body", failed), refused},
		"wrong, several values":              {says(200, session, cookie, "X-Seraph-LoginReason: OK,AUTHENTICATED_FAILED"), refused},
		"wrong, several fields":              {says(200, session, cookie, fine, failed), refused},
		"wrong, lower case":                  {says(200, session, cookie, "X-Seraph-LoginReason: OUT ,\t authenticated_failed , OK"), refused},
		"401, by nobody knows whom":          {says(401, ""), strange},
		"401, by a gateway":                  {says(401, `{"message":"CANARY"}`), strange},
		"401":                                {says(401, "", request), refused},
		"401, not wrong":                     {says(401, text, fine), refused},
		"401 and a user":                     {says(401, text, user), refused},
		"401 and a challenge":                {says(401, page, challenge, request), refused},
		"401 and only a challenge":           {says(401, page, challenge), strange},
		"401, Basic disabled":                {says(401, "Basic Authentication has been disabled, CANARY-body", nobody), refused},
		"401, XSRF":                          {says(401, forgery, nobody), refused},
		"429":                                {says(429, text, request, "Retry-After: CANARY"), verdict{code: api.RateLimited, back: true}},
		"503":                                {says(503, page), verdict{code: api.Maintenance, back: true}},
		"500":                                {says(500, page), verdict{code: api.Server5xx}},
		"502":                                {says(502, page), verdict{code: api.Server5xx}},
		"504":                                {says(504, page), verdict{code: api.Server5xx}},
		"to a foreign host":                  {says(302, "", foreignLocation), verdict{code: api.SSORedirect}},
		"to https":                           {toHTTPS, verdict{code: api.InsecureRedirect}},
		"elsewhere":                          {says(303, session, cookie, "Location: /app/CANARY-path;CANARY?CANARY"), strange},
		"nowhere":                            {says(302, ""), strange},
		"Basic disabled":                     {says(403, `{"message":"Basic Authentication has been disabled on this instance."}`, nobody), verdict{code: api.BasicDisabled, back: true}},
		"Basic disabled, and a user":         {says(403, `{"message":"Basic Authentication has been disabled on this instance."}`, user), verdict{code: api.BasicDisabled, back: true}},
		"XSRF":                               {says(403, forgery), verdict{code: api.CSRF403, back: true}},
		"XSRF, and a user":                   {says(403, forgery, user), verdict{code: api.CSRF403, back: true}},
		"no right":                           {says(403, text, noRights), forbidden},
		"no right, 401":                      {says(401, text, noRights), forbidden},
		"no right, 200":                      {says(200, page, noRights), forbidden},
		"no right, elsewhere":                {says(302, "", noRights, "Location: /app/CANARY"), forbidden},
		"no right, to a foreign host":        {says(302, "", noRights, foreignLocation), verdict{code: api.SSORedirect}},
		"no right, by the user's name":       {says(403, text, user), forbidden},
		"403":                                {says(403, text), strange},
		"403 and nobody":                     {says(403, text, nobody), strange},
		"404":                                {says(404, page), notAsked},
		"405":                                {says(405, page), notAsked},
		"410":                                {says(410, page), notAsked},
		"404 and a user":                     {says(404, page, user), notAsked},
		"400":                                {says(400, text), strange},
		"415":                                {says(415, text), strange},
		"201 and a session":                  {says(201, session, cookie), strange},
		"204":                                {says(204, "", cookie), strange},
		"200 without JSON":                   {says(200, loginForm, cookie), strange},
		"200 with JSON and more":             {says(200, session+"CANARY", cookie), strange},
		"200 with nothing":                   {says(200, "", cookie), strange},
		"200 without a session":              {says(200, `{"user":"CANARY"}`, cookie), strange},
		"200 with a session without a name":  {says(200, `{"session":{"value":"CANARY-session"}}`, cookie), strange},
		"session, no cookie":                 {says(200, session), lost},
		"session, another value":             {says(200, session, "Set-Cookie: JSESSIONID=CANARY-other; Path=/app"), lost},
		"session, another name":              {says(200, session, "Set-Cookie: jsessionid=CANARY-session; Path=/app"), lost},
		"session, value and name of two":     {says(200, session, "Set-Cookie: JSESSIONID=CANARY-other; Path=/app", "Set-Cookie: other=CANARY-session; Path=/app"), lost},
		"session, for another path":          {says(200, session, "Set-Cookie: JSESSIONID=CANARY-session; Path=/other"), lost},
		"session, a cookie that has expired": {says(200, session, cookie+"; Max-Age=0"), lost},
	} {
		jiraAttempt(t, name, c.answer, lent{taken: true, back: c.want.back, accepted: c.want.accepted}, c.want.code)
	}
	// Whatever the status is, a CAPTCHA is one, and each header says it alone.
	for _, code := range []int{200, 302, 400, 401, 403, 404, 405, 429, 500, 503} {
		for _, header := range []string{denied, picture} {
			jiraAttempt(t, fmt.Sprint(header, " with ", code), says(code, session, cookie, header), lent{taken: true}, api.Captcha)
		}
	}
}

// jiraAttempt gives a password to a Jira that answers so.
func jiraAttempt(t *testing.T, name string, answer http.HandlerFunc, want lent, code api.Code) {
	t.Helper()
	a := &answers{t: t, say: map[string]http.HandlerFunc{question: stranger, attempt: answer}}
	x := exchangeWith(t, a, new(web.Jar), nil)
	p := new(lent)
	err := New("jira").Login(t.Context(), x, p)
	quiet(t, name, err)
	if api.CodeOf(err) != code || *p != want {
		t.Errorf("%s: %v, want %q; the password: %+v, want %+v", name, err, code, *p, want)
	}
	if want := []string{question, attempt}; !slices.Equal(a.asked, want) {
		t.Errorf("%s: asked %q, want %q", name, a.asked, want)
	}
	switch {
	case code == "" && !strings.Contains(x.Jar().Header(mustURL(t, x, resource), time.Now()), "JSESSIONID=CANARY-session"):
		t.Errorf("%s: the session is not in the jar", name)
	case code == api.Captcha && !strings.Contains(api.AsError(err).Remedy, ".corp.example:"+mustURL(t, x, "").Port()+"/app/login.jsp "):
		t.Errorf("%s: the remedy does not name the login page: %+v", name, err)
	case code == api.BadCredentials && !strings.Contains(err.Error(), "build"):
		t.Errorf("%s: the message does not say whose password: %v", name, err)
	}
}

func mustURL(t *testing.T, x *web.Exchange, ref string) *url.URL {
	t.Helper()
	u, err := x.URL(ref)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// TestJiraThere: who gets the password. Only Jira itself: what stands in front
// of it is told from it by what it says to a stranger.
func TestJiraThere(t *testing.T) {
	running := says(200, `{"state":"RUNNING"}`)
	for name, c := range map[string]struct {
		stranger http.HandlerFunc
		status   http.HandlerFunc
		code     api.Code // "": it gets the password
		says     string
	}{
		"Jira":                            {stranger, nil, "", ""},
		"Jira, by its Seraph header":      {says(401, page, out), nil, "", ""},
		"Jira, by the request's number":   {says(401, page, request), nil, "", ""},
		"Jira, by nobody's name":          {says(401, page, nobody), nil, "", ""},
		"Jira, by somebody's name":        {says(401, page, user), nil, "", ""},
		"Jira, by its JSON":               {says(401, text), nil, "", ""},
		"Jira, by JSON and a challenge":   {says(401, text, basic), nil, "", ""},
		"Jira, 200 and JSON":              {says(200, me, user), nil, "", ""},
		"Jira, 200 and a page":            {says(200, page, request), running, api.UnexpectedStatus, "answers 200"},
		"Jira, 403":                       {says(403, page, nobody), nil, api.UnexpectedStatus, "answers 403"},
		"Jira, 404":                       {says(404, page, request), nil, api.UnexpectedStatus, "answers 404"},
		"Jira, 404 and JSON":              {says(404, text, request), nil, api.UnexpectedStatus, "answers 404"},
		"a gateway's JSON":                {says(401, `{"message":"CANARY"}`), nil, api.UnexpectedStatus, "answers 401"},
		"a gateway's JSON and challenge":  {says(401, `{"message":"CANARY"}`, "WWW-Authenticate: Key"), nil, api.ChallengeUnsupported, "wants a login"},
		"403":                             {says(403, text), nil, api.UnexpectedStatus, "answers 403"},
		"404":                             {says(404, text), nil, api.UnexpectedStatus, "answers 404"},
		"204":                             {says(204, ""), nil, api.UnexpectedStatus, "answers 204"},
		"400 and a challenge":             {says(400, text, basic), nil, api.UnexpectedStatus, "answers 400"},
		"401 with a page":                 {says(401, page), nil, api.UnexpectedStatus, "answers 401"},
		"401 with nothing":                {says(401, ""), nil, api.UnexpectedStatus, "answers 401"},
		"a gate":                          {says(401, page, basic), nil, api.ChallengeUnsupported, "before Jira is reached"},
		"a gate that speaks Negotiate":    {says(401, "", challenge), nil, api.ChallengeUnsupported, "before Jira is reached"},
		"429":                             {says(429, text, request), nil, api.RateLimited, ""},
		"503":                             {says(503, text, request), nil, api.Maintenance, ""},
		"500":                             {says(500, text, request), nil, api.Server5xx, ""},
		"to a foreign host":               {says(302, "", foreignLocation), nil, api.SSORedirect, "login.foreign.example"},
		"to a foreign host, by Jira":      {says(302, "", foreignLocation, request, nobody), nil, api.SSORedirect, "login.foreign.example"},
		"to https":                        {toHTTPS, nil, api.InsecureRedirect, "write https in the site's url"},
		"elsewhere":                       {says(302, "", "Location: /app/login.jsp?CANARY"), nil, api.UnexpectedStatus, "answers 302"},
		"elsewhere, by Jira":              {says(301, "", "Location: /jira/CANARY", request, nobody), nil, api.UnexpectedStatus, "answers 301"},
		"a page, Jira running":            {says(200, page), running, api.UnexpectedStatus, "session answers 200 with a page"},
		"JSON, Jira running":              {says(200, me), running, api.UnexpectedStatus, "session answers 200 with a page"},
		"a page, Jira starting":           {says(200, page), says(200, `{"state":"STARTING"}`), api.Maintenance, "status does not say that Jira is running"},
		"a page, Jira stopping":           {says(200, page), says(200, `{"state":"STOPPING"}`), api.Maintenance, "status does not say that Jira is running"},
		"a page, no state":                {says(200, page), says(200, `{}`), api.Maintenance, "status does not say that Jira is running"},
		"a page, Jira in maintenance":     {says(200, page), says(503, `{"state":"MAINTENANCE"}`), api.Maintenance, "status answers 503"},
		"a page, 503, but running":        {says(200, page), says(503, `{"state":"RUNNING"}`), api.Maintenance, "status answers 503"},
		"a page, Jira broken":             {says(200, page), says(500, `{"state":"ERROR"}`), api.Server5xx, "status answers 500"},
		"a page, 429":                     {says(200, page), says(429, ``), api.RateLimited, "status answers 429"},
		"a page everywhere":               {says(200, page), says(200, page), api.Maintenance, "session shows a page that is not Jira's"},
		"a page, 404":                     {says(200, page), says(404, `{"state":"RUNNING"}`), api.Maintenance, "session shows a page that is not Jira's"},
		"a page, redirected":              {says(200, page), says(302, ``, foreignLocation), api.Maintenance, "session shows a page that is not Jira's"},
		"a page, a state of another kind": {says(200, page), says(200, `{"state":{"CANARY":1}}`), api.Maintenance, "session shows a page that is not Jira's"},
	} {
		a := &answers{t: t, say: map[string]http.HandlerFunc{question: c.stranger, status: c.status, attempt: says(200, session, cookie)}}
		p := new(lent)
		err := New("jira").Login(t.Context(), exchangeWith(t, a, new(web.Jar), anyToken{}), p)
		quiet(t, name, err)
		want, asked := lent{}, []string{question}
		switch {
		case c.code == "":
			want, asked = lent{taken: true, accepted: true}, append(asked, attempt)
		case c.status != nil:
			asked = append(asked, status)
		}
		if api.CodeOf(err) != c.code || *p != want || !slices.Equal(a.asked, asked) {
			t.Errorf("%s: %v, want %q; asked %q, want %q; the password: %+v", name, err, c.code, a.asked, asked, *p)
		}
		if err != nil && !strings.Contains(err.Error()+api.AsError(err).Remedy, c.says) {
			t.Errorf("%s: %v, want %q", name, err, c.says)
		}
	}
	// A password that is not lent is not sent.
	a := &answers{t: t, say: map[string]http.HandlerFunc{question: stranger}}
	latched := &api.Error{Code: api.Latched, Detail: "x", Remedy: "x"}
	if err := New("jira").Login(t.Context(), exchangeWith(t, a, new(web.Jar), nil), &lent{err: latched}); !errors.Is(err, latched) || !slices.Equal(a.asked, []string{question}) {
		t.Errorf("not lent: %v; asked %q", err, a.asked)
	}
}

// account is a password of a user of a test's own.
type account struct {
	offered
	name string
}

func (a *account) User() string { return a.name }

// TestJiraRequest: what goes to Jira with a password.
func TestJiraRequest(t *testing.T) {
	for configured, agent := range map[string]string{
		"":                                     "sessionctl/" + api.Version,
		"Mozilla/5.0 (Windows NT 10.0) corp/1": "Mozilla/5.0 (Windows NT 10.0) corp/1",
	} {
		for _, c := range [][2]string{
			{"build", `CANARY-password`},
			{`CORP\bü"ild`, `CANARY-"\'<>&{}[]%s ü日` + "\u2028\t\x01" + `\u0041`},
			{"a&b=<c>@corp.example", " CANARY- "},
		} {
			a := &answers{t: t, say: map[string]http.HandlerFunc{
				question: func(w http.ResponseWriter, r *http.Request) {
					if got := r.UserAgent(); got != agent {
						t.Errorf("the question has User-Agent %q, want %q", got, agent)
					}
					w.Header().Set("Set-Cookie", "AWSALB=CANARY-lb; Path=/")
					stranger(w, r)
				},
				attempt: func(w http.ResponseWriter, r *http.Request) {
					for name, want := range map[string]string{
						"Content-Type": "application/json", "X-Atlassian-Token": "no-check", "User-Agent": agent, "Origin": "", "Referer": "", "Cookie": "AWSALB=CANARY-lb",
					} {
						if got := r.Header.Get(name); got != want {
							t.Errorf("%s: %q, want %q", name, got, want)
						}
					}
					body, err := io.ReadAll(r.Body)
					var got map[string]string
					if err = errors.Join(err, json.Unmarshal(body, &got)); err != nil || !maps.Equal(got, map[string]string{"username": c[0], "password": c[1]}) {
						t.Errorf("Jira gets %q (%v), want %q", got, err, c)
					}
					if r.URL.RawQuery != "" {
						t.Errorf("a query: %s", r.URL)
					}
					says(200, session, cookie)(w, r)
				},
			}}
			if err := New("jira").Login(t.Context(), exchangeAs(t, a, configured, nil), &account{offered{text: c[1]}, c[0]}); err != nil {
				t.Error(err)
			}
			if !slices.Equal(a.asked, []string{question, attempt}) {
				t.Errorf("asked %q", a.asked)
			}
		}
	}
}

// exchangeAs is exchangeWith under a configured User-Agent, "" for none.
func exchangeAs(t *testing.T, h http.Handler, agent string, n web.Negotiator) *web.Exchange {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Host = "app.corp.example:80"
		h.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	base, err := url.Parse(s.URL + "/app")
	if err != nil {
		t.Fatal(err)
	}
	x := web.NewExchange(web.Options{Base: base, InsecureHTTP: true, UserAgent: agent, Negotiate: n}, new(web.Jar))
	t.Cleanup(x.Close)
	return x
}

// TestJiraTicket: what a gate and Jira say to a ticket.
func TestJiraTicket(t *testing.T) {
	const begin = "GET login.jsp"
	// gate asks for a token and then answers so.
	gate := func(answer http.HandlerFunc) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Authorization") == "" {
				says(401, page, challenge)(w, r)
				return
			}
			answer(w, r)
		}
	}
	toHome, loop := says(302, "", cookie, "Location: /app/home"), says(401, page, challenge)
	for name, c := range map[string]struct {
		login, home http.HandlerFunc
		code        api.Code
	}{
		"200":                                {gate(says(200, page, cookie, fine, user)), nil, ""},
		"landing page":                       {gate(toHome), says(200, page), ""},
		"no landing page":                    {gate(toHome), nil, ""},
		"landing page forbidden":             {gate(toHome), says(403, page), ""},
		"landing page broken":                {gate(toHome), says(500, page), ""},
		"landing page away":                  {gate(toHome), says(503, page), ""},
		"landing page asks again":            {gate(toHome), loop, ""},
		"404 with a cookie":                  {gate(says(404, page, cookie)), nil, ""},
		"no cookie":                          {gate(says(200, page, fine, user)), nil, api.NoSessionCookie},
		"no cookie, 404":                     {gate(says(404, page)), nil, api.NoSessionCookie},
		"no cookie, asks again":              {gate(says(302, "", "Location: /app/home")), loop, api.NoSessionCookie},
		"no cookie, away":                    {gate(says(503, page)), nil, api.Maintenance},
		"no cookie, broken":                  {gate(says(502, page)), nil, api.Server5xx},
		"no cookie, limited":                 {gate(says(429, page)), nil, api.RateLimited},
		"captcha":                            {gate(says(200, loginForm, cookie, denied)), nil, api.Captcha},
		"captcha, by its reason":             {gate(says(403, page, cookie, picture)), nil, api.Captcha},
		"captcha, after a redirect":          {gate(toHome), says(200, page, denied), api.Captcha},
		"captcha without a gate":             {says(503, page, cookie, denied), nil, api.Captcha},
		"no such user":                       {gate(says(200, loginForm, cookie, failed)), nil, api.Forbidden},
		"no such user, no cookie":            {gate(says(401, loginForm, failed)), nil, api.NegotiateRejected},
		"no such user, 503":                  {gate(says(503, loginForm, cookie, failed)), nil, api.Forbidden},
		"no right":                           {gate(says(200, loginForm, cookie, noRights)), nil, api.Forbidden},
		"no right, no cookie":                {gate(says(403, loginForm, noRights)), nil, api.Forbidden},
		"no right, after a redirect":         {gate(toHome), says(403, page, noRights), api.Forbidden},
		"nobody asks, login page":            {says(200, loginForm, cookie, nobody), nil, api.NoChallenge},
		"nobody asks, and says that I am no": {says(200, loginForm, cookie, failed, noRights), nil, api.NoChallenge},
		"nobody asks, 404":                   {says(404, page, cookie), nil, api.UnexpectedStatus},
		"nobody asks, 503":                   {says(503, page, cookie), nil, api.Maintenance},
		"nobody asks, 500":                   {says(500, page, cookie), nil, api.Server5xx},
		"refused":                            {says(401, page, cookie, challenge), nil, api.NegotiateRejected},
		"another scheme":                     {says(401, page, cookie, basic), nil, api.ChallengeUnsupported},
		"to a foreign host":                  {gate(says(302, "", cookie, foreignLocation)), nil, api.SSORedirect},
	} {
		a := &answers{t: t, say: map[string]http.HandlerFunc{begin: c.login, "GET home": c.home}}
		err := New("jira").Login(t.Context(), exchangeWith(t, a, new(web.Jar), anyToken{}), nil)
		quiet(t, name, err)
		if api.CodeOf(err) != c.code {
			t.Errorf("%s: %v, want %q", name, err, c.code)
		}
		if a.asked[0] != begin || slices.ContainsFunc(a.asked, func(s string) bool { return s != begin && s != "GET home" && s != status }) {
			t.Errorf("%s: asked %q", name, a.asked)
		}
	}
	// IWAAC looks for a word in the User-Agent, and Jira for a browser's name.
	for configured, agent := range map[string]string{"": "sessionctl/" + api.Version + " (Windows NT)", "corp/1": "corp/1"} {
		a := &answers{t: t, say: map[string]http.HandlerFunc{"GET gate/begin": func(w http.ResponseWriter, r *http.Request) {
			if got := r.UserAgent(); got != agent {
				t.Errorf("User-Agent %q, want %q", got, agent)
			}
			gate(says(200, page, cookie))(w, r)
		}}}
		d := New("jira").(*jira)
		d.LoginURL = "gate/begin"
		if err := d.Login(t.Context(), exchangeAs(t, a, configured, anyToken{}), nil); err != nil || len(a.asked) != 2 {
			t.Errorf("%v; asked %q", err, a.asked)
		}
	}
}

// TestJiraProbe: what ends a session, what does not, and whose it is.
func TestJiraProbe(t *testing.T) {
	const elsewhere = "gate/begin"
	running, back := says(200, `{"state":"RUNNING"}`), says(200, page)
	named := func(header, name string) http.HandlerFunc {
		b, err := json.Marshal(map[string]string{"name": name})
		if err != nil {
			t.Fatal(err)
		}
		return says(200, string(b), "X-AUSERNAME: "+header)
	}
	for name, c := range map[string]struct {
		answer   http.HandlerFunc
		status   http.HandlerFunc
		code     api.Code
		identity string
	}{
		"alive":                          {says(200, me, fine, user, request), nil, "", "build"},
		"alive, no headers":              {says(200, me), nil, "", "build"},
		"alive, and a form in JSON":      {says(200, `{"self":"x","name":"build","x":"<form><input type=password></form>"}`), nil, "", "build"},
		"alive, by its logins alone":     {says(200, `{"name":"build","loginInfo":{}}`), nil, "", "build"},
		"a name alone, by Jira":          {says(200, `{"name":"build"}`, request), nil, "", "build"},
		"a name alone":                   {says(200, `{"name":"build"}`), running, api.UnexpectedStatus, ""},
		"a gateway's health":             {says(200, `{"name":"edge-gateway","state":"CANARY"}`), back, api.Maintenance, ""},
		"alive, header in capitals":      {named("BUILD", "build"), nil, "", "build"},
		"alive, name in capitals":        {named("build", "Build"), nil, "", "Build"},
		"alive, header percent-encoded":  {named("B%C3%BC%2C%20%2B", "bü, +"), nil, "", "bü, +"},
		"alive, header form-encoded":     {named("b%C3%BC+ild", "bü ild"), nil, "", "bü ild"},
		"alive, header with a plus":      {named("A+b@corp.example", "a+b@corp.example"), nil, "", "a+b@corp.example"},
		"alive, header with a percent":   {named("100%", "100%"), nil, "", "100%"},
		"a number":                       {says(200, `{"name":4711}`, request), nil, "", "4711"},
		"two users":                      {named("CANARY-root", "build"), nil, api.WrongIdentity, ""},
		"two users, encoded":             {named("%72oot", "build"), nil, api.WrongIdentity, ""},
		"two users, other than ASCII":    {named("%C3%9Cser", "üser"), nil, api.WrongIdentity, ""},
		"two users, badly encoded":       {named("build%", "build"), nil, api.WrongIdentity, ""},
		"two users, two fields":          {says(200, me, user, "X-AUSERNAME: CANARY-root"), nil, api.WrongIdentity, ""},
		"a user and nobody":              {says(200, me, user, nobody), nil, api.WrongIdentity, ""},
		"a user, twice":                  {says(200, me, user, user), nil, "", "build"},
		"two names":                      {says(200, `{"name":"root","name":"build"}`, user), nil, api.WrongIdentity, ""},
		"nobody asks":                    {says(200, me, nobody), nil, api.Expired, ""},
		"no name":                        {says(200, `{"self":"CANARY"}`, request), nil, api.Expired, ""},
		"null":                           {says(200, `{"name":null}`, nobody), nil, api.Expired, ""},
		"empty name":                     {says(200, `{"name":""}`, request), nil, api.Expired, ""},
		"name of another kind":           {says(200, `{"name":{"CANARY":1}}`, request), nil, api.Expired, ""},
		"no name, by a proxy":            {says(200, `{"message":"CANARY, back soon"}`), back, api.Maintenance, ""},
		"no name, by a proxy, running":   {says(200, `{"message":"CANARY, back soon"}`), running, api.UnexpectedStatus, ""},
		"401 by nobody knows whom":       {says(401, ""), nil, api.UnexpectedStatus, ""},
		"401 by a gateway":               {says(401, `{"message":"CANARY"}`), nil, api.UnexpectedStatus, ""},
		"401 by Jira":                    {stranger, nil, api.Expired, ""},
		"401 by a gate":                  {says(401, page, challenge), nil, api.Expired, ""},
		"401 and a user":                 {says(401, text, user), nil, api.Expired, ""},
		"401, no right":                  {says(401, text, noRights), nil, api.Forbidden, ""},
		"403":                            {says(403, text), nil, api.UnexpectedStatus, ""},
		"403 by Jira":                    {says(403, text, request), nil, api.Expired, ""},
		"403, nobody":                    {says(403, text, nobody), nil, api.Expired, ""},
		"403 and a user":                 {says(403, text, user), nil, api.Forbidden, ""},
		"403, no right":                  {says(403, text, noRights), nil, api.Forbidden, ""},
		"no right":                       {says(200, me, noRights), nil, api.Forbidden, ""},
		"captcha":                        {says(200, me, denied), nil, api.Expired, ""},
		"captcha by its reason":          {says(200, me, picture), nil, api.Expired, ""},
		"wrong":                          {says(200, me, failed), nil, api.Expired, ""},
		"logged out":                     {says(200, me, out), nil, api.Expired, ""},
		"logged out, 404":                {says(404, page, "X-Seraph-LoginReason: OK, out"), nil, api.Expired, ""},
		"429":                            {says(429, text, out, nobody), nil, api.RateLimited, ""},
		"503":                            {says(503, text, out, nobody), nil, api.Maintenance, ""},
		"500":                            {says(500, text, out, nobody), nil, api.Server5xx, ""},
		"404":                            {says(404, me, request), nil, api.UnexpectedStatus, ""},
		"201":                            {says(201, me, user), nil, api.UnexpectedStatus, ""},
		"204":                            {says(204, "", user), nil, api.UnexpectedStatus, ""},
		"to the login page":              {says(302, "", "Location: /app/login.jsp?os_destination=CANARY"), nil, api.Expired, ""},
		"to a login page":                {says(303, "", "Location: /gate/login;CANARY?CANARY"), nil, api.Expired, ""},
		"to a login page, relative":      {says(307, "", "Location: login"), nil, api.Expired, ""},
		"to login_url":                   {says(302, "", "Location: /app/"+elsewhere+"?CANARY"), nil, api.Expired, ""},
		"to maintenance":                 {says(302, me, "Location: /app/maintenance.html?CANARY"), nil, api.UnexpectedStatus, ""},
		"to below a login page":          {says(302, me, "Location: /login/soon?login=CANARY"), nil, api.UnexpectedStatus, ""},
		"to a page that ends like login": {says(302, me, "Location: /app/nologin"), nil, api.UnexpectedStatus, ""},
		"to maintenance, by Jira":        {says(302, me, "Location: /app/maintenance.html", nobody), nil, api.UnexpectedStatus, ""},
		"to a foreign host":              {says(302, "", foreignLocation), nil, api.Expired, ""},
		"to https":                       {toHTTPS, nil, api.Expired, ""},
		"nowhere":                        {says(302, me), nil, api.UnexpectedStatus, ""},
		"login page":                     {says(200, loginForm, "Content-Type: text/html"), nil, api.Expired, ""},
		"page by Jira":                   {says(200, page, nobody), nil, api.Expired, ""},
		"nothing by Jira":                {says(200, "", request), nil, api.Expired, ""},
		"page, Jira running":             {says(200, page), running, api.UnexpectedStatus, ""},
		"page, Jira starting":            {says(200, page), says(200, `{"state":"STARTING"}`), api.Maintenance, ""},
		"page, Jira in maintenance":      {says(200, page), says(503, `{"state":"MAINTENANCE"}`), api.Maintenance, ""},
		"page, Jira broken":              {says(200, page), says(500, `{"state":"ERROR"}`), api.Server5xx, ""},
		"page everywhere":                {says(200, page), back, api.Maintenance, ""},
		"page, no status":                {says(200, page), says(404, page), api.Maintenance, ""},
		"JSON and more":                  {says(200, me+"CANARY"), back, api.Maintenance, ""},
	} {
		a := &answers{t: t, say: map[string]http.HandlerFunc{status: c.status, question: func(w http.ResponseWriter, r *http.Request) {
			if got := r.Header.Get("Cookie"); got != "JSESSIONID=CANARY-session" {
				t.Errorf("%s: Cookie %q", name, got)
			}
			c.answer(w, r)
		}}}
		x := exchangeWith(t, a, new(web.Jar), anyToken{})
		x.Jar().Set(mustURL(t, x, ""), []string{"JSESSIONID=CANARY-session; Path=/app"}, time.Now())
		d := New("jira").(*jira)
		if name == "to login_url" {
			d.LoginURL = elsewhere
		}
		id, err := d.Probe(t.Context(), x)
		quiet(t, name, err)
		if api.CodeOf(err) != c.code || id != (Identity{Name: c.identity}) {
			t.Errorf("%s: %+v %v, want %q %q", name, id, err, c.identity, c.code)
		}
		if text := map[string]string{"page by Jira": "not with a session", "no name": "without naming a user"}[name]; err != nil && !strings.Contains(err.Error(), text) {
			t.Errorf("%s: %v, want %q", name, err, text)
		}
		asked := []string{question}
		if c.status != nil {
			asked = append(asked, status)
		}
		if !slices.Equal(a.asked, asked) {
			t.Errorf("%s: asked %q, want %q", name, a.asked, asked)
		}
	}
}

// TestJiraLogout: when a session has ended, and when nobody knows.
func TestJiraLogout(t *testing.T) {
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		code   api.Code
	}{
		"204":                      {says(204, "", out), ""},
		"none any more":            {stranger, ""},
		"401 by nobody knows whom": {says(401, ""), api.UnexpectedStatus},
		"none, by Jira's number":   {says(401, page, request, challenge), ""},
		"a gate":                   {says(401, page, challenge), api.UnexpectedStatus},
		"XSRF":                     {says(403, forgery, user), api.CSRF403},
		"XSRF, 400":                {says(400, forgery, user), api.UnexpectedStatus},
		"403":                      {says(403, text, user), api.UnexpectedStatus},
		"200":                      {says(200, page), api.UnexpectedStatus},
		"302":                      {says(302, "", "Location: /app/login.jsp"), api.UnexpectedStatus},
		"404":                      {says(404, page, request), api.UnexpectedStatus},
		"429":                      {says(429, text), api.RateLimited},
		"500":                      {says(500, page), api.Server5xx},
		"503":                      {says(503, page), api.Maintenance},
	} {
		a := &answers{t: t, say: map[string]http.HandlerFunc{logout: func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Cookie") != "JSESSIONID=CANARY-session" || r.Header.Get("X-Atlassian-Token") != "no-check" {
				t.Errorf("%s: %q", name, r.Header)
			}
			c.answer(w, r)
		}}}
		x := exchangeWith(t, a, new(web.Jar), anyToken{})
		x.Jar().Set(mustURL(t, x, ""), []string{"JSESSIONID=CANARY-session; Path=/app"}, time.Now())
		err := New("jira").(Logouter).Logout(t.Context(), x)
		quiet(t, name, err)
		if api.CodeOf(err) != c.code {
			t.Errorf("%s: %v, want %q", name, err, c.code)
		}
		if !slices.Equal(a.asked, []string{logout}) {
			t.Errorf("%s: asked %q", name, a.asked)
		}
	}
}

func TestJiraCheck(t *testing.T) {
	base, err := url.Parse("https://app.corp.example/app")
	if err != nil {
		t.Fatal(err)
	}
	o := web.Options{Base: base, LoginHosts: []web.Origin{{Scheme: "https", Host: "login.corp.example", Port: "443"}}}
	if got := New("jira").Takes(); !slices.Equal(got, []Means{Ticket, Secret}) {
		t.Errorf("takes %q", got)
	}
	for name, c := range map[string]struct {
		set      func(*jira)
		identity string
		wrong    []string // in the error
	}{
		"as made":               {func(*jira) {}, "", nil},
		"identity":              {func(*jira) {}, "build", nil},
		"login host":            {func(j *jira) { j.LoginURL, j.SessionURL = "https://login.corp.example/in", "/gate/session" }, "", nil},
		"unproven":              {func(*jira) {}, Unproven, []string{`identity = "unproven"`}},
		"foreign login_url":     {func(j *jira) { j.LoginURL = "https://foreign.example/?CANARY" }, "", []string{"login_url leads to https://foreign.example"}},
		"foreign session_url":   {func(j *jira) { j.SessionURL = "//foreign.example/CANARY" }, "", []string{"session_url leads to https://foreign.example"}},
		"session_url over http": {func(j *jira) { j.SessionURL = "http://app.corp.example/app/CANARY" }, "", []string{"session_url leads to http://app.corp.example", "insecure_http"}},
		"login_url is none":     {func(j *jira) { j.LoginURL = "https://CANARY:%zz/" }, "", []string{"login_url is not a URL"}},
		"both":                  {func(j *jira) { j.LoginURL, j.SessionURL = ":CANARY", "ftp://CANARY" }, "", []string{"login_url is", "session_url leads"}},
	} {
		j := New("jira").(*jira)
		c.set(j)
		err := j.Check(o, c.identity)
		if (err != nil) != (c.wrong != nil) || err != nil && strings.Contains(err.Error(), "CANARY") {
			t.Errorf("%s: %v", name, err)
		}
		for _, s := range c.wrong {
			if err == nil || !strings.Contains(err.Error(), s) {
				t.Errorf("%s: %v, want %q", name, err, s)
			}
		}
	}
}

// TestJiraHeaders: what changes something needs the token.
func TestJiraHeaders(t *testing.T) {
	token := []Header{{Name: "X-Atlassian-Token", Value: "no-check"}}
	for method, want := range map[string][]Header{"GET": nil, "HEAD": nil, "OPTIONS": nil, "POST": token, "PUT": token, "DELETE": token, "PATCH": token, "": token} {
		if got := New("jira").(Companion).Headers(Asked{Method: method}); !slices.Equal(got, want) {
			t.Errorf("%q: %v, want %v", method, got, want)
		}
	}
}

// TestJiraModel: the model of Jira, in the states that matter to a password.
func TestJiraModel(t *testing.T) {
	const right = "CANARY-\"&<ü"
	for name, c := range map[string]struct {
		modes    rig.AtlassianModes
		user     string // "": build
		password string // "": the right one
		before   int    // wrong ones before
		code     api.Code
		want     lent
		probe    api.Code
	}{
		"good":              {code: "", want: lent{taken: true, accepted: true}},
		"name with a space": {user: "bü ild+x", want: lent{taken: true, accepted: true}},
		"wrong":             {password: "CANARY-wrong", code: api.BadCredentials, want: lent{taken: true}},
		"wrong, 200":        {password: "CANARY-wrong", modes: rig.AtlassianModes{EmptyRefusal: true}, code: api.BadCredentials, want: lent{taken: true}},
		"captcha":           {before: 3, code: api.Captcha, want: lent{taken: true}},
		"no captcha yet":    {before: 2, want: lent{taken: true, accepted: true}},
		"Basic disabled":    {modes: rig.AtlassianModes{BasicDisabled: true}, code: api.BasicDisabled, want: lent{taken: true, back: true}},
		"no right":          {modes: rig.AtlassianModes{NoPermission: true}, code: api.Forbidden, want: lent{taken: true, accepted: true}},
		"no session":        {modes: rig.AtlassianModes{NoSession: true}, code: api.NoSessionCookie, want: lent{taken: true, accepted: true}},
		"anonymous":         {modes: rig.AtlassianModes{Anonymous: true}, want: lent{taken: true, accepted: true}, probe: api.Expired},
		"two nodes":         {modes: rig.AtlassianModes{TwoNodes: true}, want: lent{taken: true, accepted: true}},
		"SSO":               {modes: rig.AtlassianModes{SSO: "https://login.foreign.example/"}, code: api.SSORedirect, want: lent{taken: true}},
		"maintenance":       {modes: rig.AtlassianModes{Maintenance: true}, code: api.Maintenance},
		"broken":            {modes: rig.AtlassianModes{ServerError: true}, code: api.Server5xx},
		"limited":           {modes: rig.AtlassianModes{RetryAfter: time.Minute}, code: api.RateLimited},
	} {
		j, err := rig.StartJira(rig.AtlassianOptions{ContextPath: "/jira"})
		if err != nil {
			t.Fatal(err)
		}
		base, err := url.Parse(j.URL())
		if err != nil {
			t.Fatal(err)
		}
		p := &account{offered{text: right}, "build"}
		if c.user != "" {
			p.name = c.user
		}
		j.AddUser(p.name, right)
		ask := func(p Password, then func(context.Context, *jira, *web.Exchange)) error {
			x := web.NewExchange(web.Options{Base: base, InsecureHTTP: true}, new(web.Jar))
			defer x.Close()
			d := New("jira").(*jira)
			err := d.Login(t.Context(), x, p)
			if err == nil {
				then(t.Context(), d, x)
			}
			return err
		}
		for range c.before {
			ask(&account{offered{text: "CANARY-wrong"}, p.name}, func(context.Context, *jira, *web.Exchange) { t.Errorf("%s: a wrong password is right", name) })
		}
		j.SetModes(c.modes)
		if c.password != "" {
			p.text = c.password
		}
		err = ask(p, func(ctx context.Context, d *jira, x *web.Exchange) {
			id, err := d.Probe(ctx, x)
			if quiet(t, name, err); api.CodeOf(err) != c.probe || err == nil && id != (Identity{Name: p.name}) {
				t.Errorf("%s: %+v %v, want %q", name, id, err, c.probe)
			}
			if err != nil {
				return
			}
			if n := j.Counts(); n.Sessions != 1 {
				t.Errorf("%s: %+v", name, n)
			}
			// The second logout finds no session any more.
			for range 2 {
				if err := d.Logout(ctx, x); err != nil {
					t.Errorf("%s: logout: %v", name, err)
				}
			}
			if n := j.Counts(); n.Sessions != 0 || n.Logouts != 1 {
				t.Errorf("%s, after the logout: %+v", name, n)
			}
			if _, err := d.Probe(ctx, x); api.CodeOf(err) != api.Expired {
				t.Errorf("%s, after the logout: %v", name, err)
			}
		})
		quiet(t, name, err)
		if api.CodeOf(err) != c.code || p.lent != c.want {
			t.Errorf("%s: %v, want %q; the password: %+v, want %+v", name, err, c.code, p.lent, c.want)
		}
		j.Stop()
	}
}

// TestJiraProbation: a session that was proven after its login lives as long as
// Jira's documentation says; one that was not is dropped within ten minutes
// (JRASERVER-31322).
func TestJiraProbation(t *testing.T) {
	for _, proven := range []bool{true, false} {
		var asleep atomic.Int64
		now := func() time.Time { return time.Now().Add(time.Duration(asleep.Load())) }
		j, err := rig.StartJira(rig.AtlassianOptions{ContextPath: "/jira", Now: now})
		if err != nil {
			t.Fatal(err)
		}
		defer j.Stop()
		j.AddUser("build", "CANARY-right")
		base, err := url.Parse(j.URL())
		if err != nil {
			t.Fatal(err)
		}
		x := web.NewExchange(web.Options{Base: base, InsecureHTTP: true, Now: now}, new(web.Jar))
		defer x.Close()
		d := New("jira").(*jira)
		if err := d.Login(t.Context(), x, &account{offered{text: "CANARY-right"}, "build"}); err != nil {
			t.Fatal(err)
		}
		for step, wait := range []time.Duration{0, 11 * time.Minute, d.Life().Idle - time.Minute} {
			if step == 0 && !proven {
				continue
			}
			asleep.Add(int64(wait))
			if _, err := d.Probe(t.Context(), x); (err == nil) != proven {
				t.Errorf("proven after the login: %v; after another %v: %v", proven, wait, err)
			}
		}
	}
}
