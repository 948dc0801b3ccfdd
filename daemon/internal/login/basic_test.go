package login

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/secret"
	"github.com/sessionctl/sessionctl/daemon/internal/web"
)

// basicSite asks for a password by Basic. It takes its own cookie instead, if it has
// set one.
func basicSite(b behaviour, foreign string) http.HandlerFunc {
	form := formSite(b, foreign)
	return func(w http.ResponseWriter, r *http.Request) {
		name, password, _ := r.BasicAuth()
		accepted := name == "build" && password == "CANARY-password" && b != refused
		_, err := r.Cookie("s")
		switch {
		case b == down, b == limited, b == toForeignHost, b == unchallenged:
			form(w, r)
		case r.URL.Path == "/app/me" && err == nil:
			form(w, r) // which knows the cookie
		case !accepted:
			w.Header().Set("WWW-Authenticate", `Basic realm="CANARY-realm"`)
			w.WriteHeader(http.StatusUnauthorized)
		case r.URL.Path == "/app/me":
			r.AddCookie(&http.Cookie{Name: "s"}) // the password is as good
			form(w, r)
		case b != keepsNothing:
			w.Header().Set("Set-Cookie", "s=CANARY-session; Path=/app")
		}
	}
}

const (
	asksPassword = `WWW-Authenticate: Basic realm="CANARY-realm"`
	anySession   = "Set-Cookie: s=CANARY-session; Path=/app"
)

// withPassword answers who brings an Authorization field, who a cookie, and who neither.
func withPassword(field, cookie, nothing http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Header.Get("Authorization") != "":
			field(w, r)
		case r.Header.Get("Cookie") != "":
			cookie(w, r)
		default:
			nothing(w, r)
		}
	}
}

// TestBasicAnswers: what a site says to a password by Basic, what the session is then,
// and what that means for the password.
func TestBasicAnswers(t *testing.T) {
	ask, named := says(401, page, asksPassword), says(200, `{"name":"build"}`)
	guest, away := says(200, `{"name":"guest"}`), says(503, page)
	used, unseen, kept := lent{taken: true}, lent{taken: true, back: true}, lent{}
	const cookies, field = "cookies", "field"
	for name, c := range map[string]struct {
		stranger, password http.HandlerFunc // at login_url
		me                 http.HandlerFunc // at probe_url
		code               api.Code
		want               lent
		session            string
	}{
		"no cookies":            {ask, says(200, page), withPassword(named, ask, ask), "", used, field},
		"cookies":               {ask, says(200, page, anySession), withPassword(named, named, ask), "", used, cookies},
		"cookies alone":         {ask, says(200, page, anySession), withPassword(ask, named, ask), "", used, cookies},
		"cookies of no use":     {ask, says(200, page, anySession), withPassword(named, ask, ask), "", used, field},
		"cookies, forbidden":    {ask, says(200, page, anySession), withPassword(named, says(403, page), ask), "", used, field},
		"cookies, hidden":       {ask, says(200, page, anySession), withPassword(named, says(404, page), ask), "", used, field},
		"cookies of a guest":    {ask, says(200, page, anySession), withPassword(named, guest, guest), "", used, field},
		"cookies from before":   {says(401, page, asksPassword, anySession), says(200, page), withPassword(named, named, ask), "", used, cookies},
		"cookies, then away":    {ask, says(200, page, anySession), withPassword(named, away, ask), api.Maintenance, used, ""},
		"password, then away":   {ask, says(200, page, anySession), withPassword(away, guest, ask), api.Maintenance, used, ""},
		"cookies of an alias":   {ask, says(200, page, anySession), withPassword(guest, guest, ask), "", used, cookies},
		"refused by the proof":  {ask, says(200, page, anySession), withPassword(ask, guest, ask), api.BadCredentials, used, ""},
		"no content":            {ask, says(204, ""), withPassword(named, ask, ask), "", used, field},
		"leads on":              {ask, says(302, "", anySession, "Location: /app/home"), withPassword(named, named, ask), "", used, cookies},
		"leads on, no cookies":  {ask, says(307, "", "Location: /app/home"), withPassword(named, ask, ask), "", used, field},
		"leads away":            {ask, says(302, "", anySession, foreignLocation), withPassword(named, named, ask), api.SSORedirect, used, ""},
		"beside Negotiate":      {says(401, page, challenge, asksPassword), says(200, page), withPassword(named, ask, ask), "", used, field},
		"wrong":                 {ask, ask, nil, api.BadCredentials, used, ""},
		"wrong, says no more":   {ask, says(401, page), nil, api.BadCredentials, used, ""},
		"wrong, with a cookie":  {ask, says(401, page, asksPassword, anySession), nil, api.BadCredentials, used, ""},
		"no right":              {ask, says(403, page), nil, api.UnexpectedStatus, used, ""},
		"not there":             {ask, says(404, page), nil, api.UnexpectedStatus, used, ""},
		"limited":               {ask, says(429, page), nil, api.RateLimited, unseen, ""},
		"away":                  {ask, away, nil, api.Maintenance, unseen, ""},
		"broken":                {ask, says(500, page), nil, api.Server5xx, used, ""},
		"asks for nothing":      {says(200, page), nil, nil, api.NoChallenge, kept, ""},
		"asks in no scheme":     {says(401, page), nil, nil, api.NoChallenge, kept, ""},
		"asks for Negotiate":    {says(401, page, challenge), nil, nil, api.ChallengeUnsupported, kept, ""},
		"asks for Digest":       {says(401, page, `WWW-Authenticate: Digest realm="Basic"`), nil, nil, api.ChallengeUnsupported, kept, ""},
		"asks with another 4xx": {says(403, page, asksPassword), nil, nil, api.UnexpectedStatus, kept, ""},
		"away at once":          {away, nil, nil, api.Maintenance, kept, ""},
		"leads away at once":    {says(302, "", foreignLocation), nil, nil, api.SSORedirect, kept, ""},
	} {
		a := &answers{t: t, say: map[string]http.HandlerFunc{
			"GET login": withPassword(c.password, c.stranger, c.stranger), "GET me": c.me,
			"GET home": withPassword(func(http.ResponseWriter, *http.Request) { t.Errorf("%s: the password follows a redirect", name) }, ask, ask),
		}}
		x := exchangeWith(t, a, new(web.Jar), nil)
		d := &basicAuth{proof{LoginURL: "login", ProbeURL: "me", IdentityJSON: "name"}}
		p := new(lent)
		err := d.Login(t.Context(), x, p)
		quiet(t, name, err)
		if api.CodeOf(err) != c.code || *p != c.want {
			t.Errorf("%s: %v, want %q; the password: %+v", name, err, c.code, *p)
		}
		if c.code == api.BadCredentials && c.me == nil && len(a.asked) != 2 {
			t.Errorf("%s: asked %q", name, a.asked)
		}
		if err != nil || c.code != "" {
			continue
		}
		want := ""
		if c.session == field {
			want = "Basic " + base64Of("build:CANARY-password")
		}
		if got := x.Jar().Authorization().Reveal(); got != want || (x.Jar().Len() > 0) != (c.session == cookies) {
			t.Errorf("%s: the session is %d cookies and the field %q, want %s", name, x.Jar().Len(), got, c.session)
		}
		if id, err := d.Probe(t.Context(), x); err != nil || id.Name != "build" && name != "cookies of an alias" {
			t.Errorf("%s: %+v %v", name, id, err)
		}
	}
}

// TestBasicProbe: what a session that is the password dies of.
func TestBasicProbe(t *testing.T) {
	for name, c := range map[string]struct {
		me   http.HandlerFunc
		code api.Code
	}{
		"good":               {says(200, `{"name":"build"}`), ""},
		"refused":            {says(401, page, asksPassword), api.BadCredentials},
		"refused, and more":  {says(401, page, challenge+`, Basic realm="x"`), api.BadCredentials},
		"another scheme":     {says(401, page, challenge), api.Expired},
		"no scheme":          {says(401, page), api.Expired},
		"a login page":       {says(302, "", "Location: /app/in"), api.Expired},
		"another host":       {says(302, "", foreignLocation), api.Expired},
		"nobody":             {says(200, `{"name":""}`), api.Expired},
		"not with a 403":     {says(403, page, asksPassword), api.Forbidden},
		"away":               {says(503, page), api.Maintenance},
		"limited":            {says(429, page), api.RateLimited},
		"broken":             {says(500, page), api.Server5xx},
		"not there any more": {says(404, page), api.UnexpectedStatus},
	} {
		stranger := false
		a := &answers{t: t, say: map[string]http.HandlerFunc{"GET me": withPassword(c.me, nil, func(http.ResponseWriter, *http.Request) { stranger = true })}}
		x := exchangeWith(t, a, new(web.Jar), nil)
		x.Jar().Authorize(secret.New("Basic " + base64Of("build:CANARY-password")))
		_, err := (&basicAuth{proof{LoginURL: "login", ProbeURL: "me", IdentityJSON: "name"}}).Probe(t.Context(), x)
		quiet(t, name, err)
		if api.CodeOf(err) != c.code || stranger || err != nil && strings.Contains(err.Error(), "cookie") {
			t.Errorf("%s: %v, want %q", name, err, c.code)
		}
	}
	// A site that names nobody: a stranger is refused, who brings no password.
	for name, c := range map[string]struct {
		stranger http.HandlerFunc
		code     api.Code
	}{"refused": {says(401, page, asksPassword), ""}, "let in": {says(200, page), api.LoginOKButProbeFailed}} {
		a := &answers{t: t, say: map[string]http.HandlerFunc{"GET login": withPassword(says(200, page), nil, c.stranger)}}
		x := exchangeWith(t, a, new(web.Jar), nil)
		x.Jar().Authorize(secret.New("Basic " + base64Of("build:CANARY-password")))
		id, err := (&basicAuth{proof{LoginURL: "login"}}).Probe(t.Context(), x)
		if api.CodeOf(err) != c.code || err == nil && !id.Unproven || !slices.Equal(a.asked, []string{"GET login", "GET login"}) {
			t.Errorf("%s: %+v %v, asked %q", name, id, err, a.asked)
		}
	}
}

// TestBasicText: how names and passwords go out (RFC 7617, section 2.1), and which do
// not.
func TestBasicText(t *testing.T) {
	utf8Asked, latin := asksPassword+`, charset="utf-8"`, asksPassword+`, charset=ISO-8859-1`
	for name, c := range map[string]struct {
		challenge, user, password string
		code                      api.Code
		want                      lent
	}{
		"plain":               {asksPassword, "build", "CANARY-:x y", "", lent{taken: true}},
		"nothing said":        {asksPassword, "bü", "CANARY-€", "", lent{taken: true}},
		"UTF-8":               {utf8Asked, "bü", "CANARY-€", "", lent{taken: true}},
		"unknown":             {latin, "build", "CANARY-x", "", lent{taken: true}},
		"unknown, a password": {latin, "build", "CANARY-é", api.ChallengeUnsupported, lent{taken: true, back: true}},
		"unknown, a name":     {latin, "bü", "CANARY-x", api.ChallengeUnsupported, lent{taken: true, back: true}},
		"a colon":             {asksPassword, "a:b", "CANARY-x", api.ConfigInvalid, lent{}},
	} {
		var got []string
		a := &answers{t: t, say: map[string]http.HandlerFunc{"GET login": func(w http.ResponseWriter, r *http.Request) {
			if user, password, ok := r.BasicAuth(); ok {
				got = []string{user, password}
			} else {
				says(401, page, c.challenge)(w, r)
			}
		}}}
		p := &account{offered{text: c.password}, c.user}
		err := (&basicAuth{proof{LoginURL: "login", IdentityJSON: "name"}}).Login(t.Context(), exchangeWith(t, a, new(web.Jar), nil), p)
		quiet(t, name, err)
		if api.CodeOf(err) != c.code || p.lent != c.want {
			t.Errorf("%s: %v, want %q; the password: %+v", name, err, c.code, p.lent)
		}
		if want := []string{c.user, c.password}; err == nil && !slices.Equal(got, want) || err != nil && got != nil {
			t.Errorf("%s: %q arrived", name, got)
		}
	}
	latched := &api.Error{Code: api.Latched, Detail: "x", Remedy: "x"}
	a := &answers{t: t, say: map[string]http.HandlerFunc{"GET login": withPassword(func(http.ResponseWriter, *http.Request) {
		t.Error("a password that is not lent goes out")
	}, nil, says(401, page, asksPassword))}}
	if err := (&basicAuth{proof{LoginURL: "login"}}).Login(t.Context(), exchangeWith(t, a, new(web.Jar), nil), &lent{err: latched}); api.CodeOf(err) != api.Latched {
		t.Error(err)
	}
}

// TestBasicStays: another host that asks does not get the password, not even one that
// takes part in logins.
func TestBasicStays(t *testing.T) {
	foreign := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			t.Error("the password goes to another host")
		}
		says(401, page, asksPassword)(w, r)
	}))
	defer foreign.Close()
	site := httptest.NewServer(http.RedirectHandler(foreign.URL+"/login", http.StatusFound))
	defer site.Close()
	base, err := url.Parse(site.URL + "/app")
	if err != nil {
		t.Fatal(err)
	}
	to, err := url.Parse(foreign.URL)
	if err != nil {
		t.Fatal(err)
	}
	x := web.NewExchange(web.Options{Base: base, LoginHosts: []web.Origin{web.OriginOf(to)}, InsecureHTTP: true}, new(web.Jar))
	defer x.Close()
	p := new(lent)
	err = (&basicAuth{proof{LoginURL: "login", IdentityJSON: "name"}}).Login(t.Context(), x, p)
	quiet(t, "another host", err)
	if api.CodeOf(err) != api.SSORedirect || p.taken {
		t.Errorf("%v, taken %v", err, p.taken)
	}
}

func TestBasicCheck(t *testing.T) {
	o := web.Options{Base: &url.URL{Scheme: "https", Host: "app.corp.example", Path: "/app"},
		LoginHosts: []web.Origin{{Scheme: "https", Host: "sso.corp.example", Port: "443"}}}
	for name, c := range map[string]struct {
		p        proof
		identity string
		want     string
	}{
		"good":          {proof{LoginURL: "login", ProbeURL: "https://app.corp.example:443/me", IdentityJSON: "name"}, "", ""},
		"least":         {proof{}, Unproven, ""},
		"no proof":      {proof{LoginURL: "login"}, "", "identity_json"},
		"another login": {proof{LoginURL: "https://sso.corp.example/", IdentityJSON: "name"}, "", "login_url is on another host"},
		"another proof": {proof{ProbeURL: "https://sso.corp.example/me", IdentityJSON: "name"}, "", "probe_url is on another host"},
		"foreign proof": {proof{ProbeURL: "https://evil.example/me", IdentityJSON: "name"}, "", "probe_url is on another host"},
	} {
		if err := (&basicAuth{c.p}).Check(o, c.identity); (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}
