package login

import (
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/web"
)

// TestJazzUser: whom the two pages name.
func TestJazzUser(t *testing.T) {
	for body, want := range map[string]string{
		"https://elm.corp.example:9443/jts/users/build":                   "build",
		"https://elm.corp.example:9443/jts/users/build\r\n":               "build",
		"https://elm.corp.example/jazz/team/users/tester1%40corp.example": "tester1@corp.example",
		"{ \"userId\": \"kdyoung\",\n \"roles\": [\n \"JazzAdmins\"]\n}":  "kdyoung",
		`{"userId":null}`: "", `{"roles":[]}`: "", "": "", " \n": "",
	} {
		if got, err := jazzUser([]byte(body)); got != want || err != nil {
			t.Errorf("%q: %q %v, want %q", body, got, err, want)
		}
	}
	for _, body := range []string{
		"<html>", "build", "https://elm.corp.example/jts/roles/build", "/jts/users/build", "https:users/build",
		"https://elm.corp.example/jts/users/a%zz", `{"userId":"a","userId":"b"}`, "{", "https://a/users/b\nhttps://a/users/c",
	} {
		if got, err := jazzUser([]byte(body)); err == nil {
			t.Errorf("%q names %q", body, got)
		}
	}
}

const requirementsServices = `<?xml version="1.0" encoding="UTF-8"?>
<rdf:Description xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" xmlns:jfs="http://jazz.net/xmlns/prod/jazz/jfs/1.0/" xmlns:jp06="http://jazz.net/xmlns/prod/jazz/process/0.6/"
  xmlns:oslc_rm="http://open-services.net/xmlns/rm/1.0/" xmlns:other="http://other.example/" rdf:about="https://elm.corp.example/rm/rootservices">
<other:version>9</other:version><oslc_rm:version>7.0.2</oslc_rm:version><oslc_rm:buildVersion>7.0.2b</oslc_rm:buildVersion>
<jfs:currentUser rdf:resource="https://elm.corp.example/jts/whoami"/><jp06:projectAreas rdf:resource="https://elm.corp.example/rm/process/project-areas"/>
</rdf:Description>`

// TestRootServices: what an application says of itself to anybody, and what of that is
// believed.
func TestRootServices(t *testing.T) {
	home, err := url.Parse("https://elm.corp.example/rm")
	if err != nil {
		t.Fatal(err)
	}
	s, ok := readRootServices([]byte(requirementsServices))
	if probe, users := s.pages(home); !ok || s.version != "7.0.2" || probe != "/rm/process/project-areas" || users != "/jts/whoami" {
		t.Errorf("%+v %t, pages %q %q", s, ok, probe, users)
	}
	for name, change := range map[string][2]string{
		"its own whoami":         {"/jts/whoami", "/rm/whoami"},
		"users elsewhere":        {"https://elm.corp.example/jts/whoami", "https://other.example/jts/whoami"},
		"users with a query":     {"/jts/whoami", "/jts/whoami;CANARY-1"},
		"no page of this one":    {"/rm/process", "/qm/process"},
		"page with an escape":    {"/rm/process", "/rm/..%2fprocess"},
		"no pages":               {"projectAreas", "areas"},
		"another begins so":      {"/rm/process", "/rm2/process"},
		"a user that is no page": {"https://elm.corp.example/jts/whoami", "mailto:a@b"},
	} {
		s, ok := readRootServices([]byte(strings.ReplaceAll(requirementsServices, change[0], change[1])))
		if probe, users := s.pages(home); !ok || probe != "" || users != "" {
			t.Errorf("%s: %t, pages %q %q", name, ok, probe, users)
		}
	}
	for _, body := range []string{"", "<html><body>jazz.net</body></html>", `<a xmlns="http://jazz.net/x"><version>7</version></a>`, `<users xmlns="http://other.example/?jazz.net/"/>`} {
		if s, ok := readRootServices([]byte(body)); ok {
			t.Errorf("%q is one: %+v", body, s)
		}
	}
	if s, _ := readRootServices([]byte(`<x xmlns="http://jazz.net/y"><version>CANARY-1</version><currentUser/></x>`)); s.version != "" {
		t.Errorf("any text is a version: %q", s.version)
	}
}

func FuzzJazz(f *testing.F) {
	f.Add([]byte(requirementsServices))
	f.Add([]byte("https://elm.corp.example/jts/users/build"))
	f.Add([]byte(`{"userId":"build"}`))
	home, err := url.Parse("https://elm.corp.example/rm")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		s, _ := readRootServices(body)
		if s.version != "" && !versionText.MatchString(s.version) {
			t.Errorf("version %q", s.version)
		}
		if probe, users := s.pages(home); (probe == "") != (users == "") || probe != "" && (!strings.HasPrefix(probe, "/rm/") || strings.HasPrefix(users, "/rm/")) {
			t.Errorf("pages %q %q", probe, users)
		}
		_, _ = jazzUser(body)
	})
}

// TestJazzHeaders: what changes something needs the value of the session's cookie of
// that application.
func TestJazzHeaders(t *testing.T) {
	u, err := url.Parse("https://elm.corp.example/ccm/oslc/x")
	if err != nil {
		t.Fatal(err)
	}
	now, jar := time.Now(), new(web.Jar)
	jar.Set(u, []string{"JSESSIONID=CANARY-root; Path=/", "JSESSIONID=CANARY-ccm; Path=/ccm", "JSESSIONID=CANARY-qm; Path=/qm", "LtpaToken2=CANARY-ltpa; Path=/"}, now)
	for method, want := range map[string]bool{"GET": false, "HEAD": false, "OPTIONS": false, "POST": true, "PUT": true, "PATCH": true, "DELETE": true, "": true} {
		got := New("jazz").(Companion).Headers(Asked{Method: method, URL: u, Cookies: jar.Cookies(u, now)})
		if want != slices.Equal(got, []Header{{Name: "X-Jazz-CSRF-Prevent", Value: "CANARY-ccm", Secret: true}}) || !want && got != nil {
			t.Errorf("%q: %v", method, got)
		}
	}
	if got := New("jazz").(Companion).Headers(Asked{Method: "POST", URL: u}); got != nil {
		t.Errorf("without a session: %v", got)
	}
}

// TestJazzSettles: of the cookies of a login those stay that are a session's of this
// application.
func TestJazzSettles(t *testing.T) {
	at := func(raw string) *url.URL {
		u, err := url.Parse(raw)
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	x := web.NewExchange(web.Options{Base: at("https://elm.corp.example/rm")}, new(web.Jar))
	defer x.Close()
	names := func(j *web.Jar) (all []string) {
		for _, l := range j.Lines() {
			name, _, _ := strings.Cut(string(l.Line), ";")
			all = append(all, name)
		}
		slices.Sort(all)
		return all
	}
	fill := func() {
		*x.Jar() = web.Jar{}
		x.Jar().Set(at("https://elm.corp.example/rm/x"), []string{
			"LtpaToken2=1; Path=/", "JSESSIONID=rm; Path=/rm", "JAZZ_AUTH_TOKEN=1; Path=/rm", "JSESSIONID=jts; Path=/jts", "route=1; Path=/", "deep=1; Path=/rm/web", "like=1; Path=/rm2",
			"WASReqURL=1; Path=/", "WASReLoginURL=1; Path=/", "WASPostParam=1; Path=/rm", "jfs-request-token-0af=1; Path=/rm", "X-com-ibm-team-foundation-auth-loop-avoidance=false; Path=/rm", "WASOidcState123=1; Path=/",
			"jazzop_sso_cookie=1; Path=/", "jazzop_sso_cookie_idp=1; Path=/", "oidc_bsc=1; Path=/",
		}, time.Now())
		// The authorization server on another port of that host, which cookies do not see.
		x.Jar().Set(at("https://elm.corp.example:9643/jazzop"), []string{"other=1; Path=/", "LtpaToken2=1; Path=/jazzop"}, time.Now())
	}
	own := []string{"JAZZ_AUTH_TOKEN=1", "JSESSIONID=rm", "LtpaToken2=1", "LtpaToken2=1", "deep=1", "route=1"}
	fill()
	New("jazz").(*jazz).settle(x)
	if got := names(x.Jar()); !slices.Equal(got, own) {
		t.Errorf("settled %q, want %q", got, own)
	}
	fill()
	New("jazz").(*jazz).As(Findings{Users: "/jts/whoami"}).(*jazz).settle(x)
	if got := names(x.Jar()); !slices.Equal(got, slices.Insert(slices.Clone(own), 1, "JSESSIONID=jts")) {
		t.Errorf("settled with another one's users %q", got)
	}
	fill()
	provider := New("jazz").(Provider).Provider().(*jazzSSO)
	if got, want := names(provider.own(x.Jar())), []string{"LtpaToken2=1", "LtpaToken2=1", "jazzop_sso_cookie=1", "jazzop_sso_cookie_idp=1", "oidc_bsc=1"}; !slices.Equal(got, want) {
		t.Errorf("the provider's %q, want %q", got, want)
	}
	if got, want := names(provider.Shared(x.Jar())), []string{"LtpaToken2=1", "LtpaToken2=1"}; !slices.Equal(got, want) {
		t.Errorf("shared %q, want %q", got, want)
	}
	adopted := provider.Adopt(x.Jar(), at("https://elm.corp.example/jts"), time.Now())
	if got := adopted.Header(at("https://elm.corp.example/ccm"), time.Now()); got != "LtpaToken2=1" {
		t.Errorf("adopted %q", got)
	}
}

// TestJazzCheck: options that contradict one another, or lead elsewhere.
func TestJazzCheck(t *testing.T) {
	base, err := url.Parse("https://elm.corp.example/ccm")
	if err != nil {
		t.Fatal(err)
	}
	for want, c := range map[string]struct {
		change   func(*jazz)
		identity string
	}{
		"":                         {func(*jazz) {}, ""},
		"which names the user":     {func(*jazz) {}, Unproven},
		"exclude each other":       {func(j *jazz) { j.AppPassword, j.JASForm = true, true }, ""},
		"not the name of a cookie": {func(j *jazz) { j.SSOCookie = "a=b" }, ""},
		"probe_url":                {func(j *jazz) { j.ProbeURL = "https://other.example/whoami" }, ""},
		"logout_url":               {func(j *jazz) { j.LogoutURL = "http://elm.corp.example/logout" }, ""},
	} {
		j := New("jazz").(*jazz)
		c.change(j)
		if err := j.Check(web.Options{Base: base}, c.identity); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", want, err)
		}
	}
}

// TestJazzChallenges: what each answer to a stranger is.
func TestJazzChallenges(t *testing.T) {
	base, err := url.Parse("https://elm.corp.example/ccm")
	if err != nil {
		t.Fatal(err)
	}
	const authorize = "https://jas.corp.example/oidc/endpoint/jazzop/authorize?client_id=0&state=CANARY-state"
	for name, c := range map[string]struct {
		status int
		header http.Header
		path   string
		by     string
		gate   bool
		code   api.Code
	}{
		"form":             {200, http.Header{"X-Com-Ibm-Team-Repository-Web-Auth-Msg": {"authrequired"}}, "/ccm/auth/authrequired", byForm, false, ""},
		"form, no field":   {200, nil, "/ccm/auth/authrequired", byForm, false, ""},
		"form at once":     {401, http.Header{"X-Com-Ibm-Team-Repository-Web-Auth-Msg": {"authrequired"}, "Www-Authenticate": {`Basic realm="x"`}}, "/ccm/whoami", byForm, false, ""},
		"basic":            {401, http.Header{"Www-Authenticate": {`Basic realm="x"`}}, "/ccm/whoami", byBasic, false, ""},
		"jas":              {401, http.Header{"Www-Authenticate": {`Basic realm="JSA"`, `Bearer realm="JSA"`}, "X-Jsa-Authorization-Redirect": {authorize}}, "/ccm/whoami", byJAS, false, ""},
		"jas folded":       {401, http.Header{"Www-Authenticate": {`Basic realm="JSA", Bearer realm="JSA"`}, "X-Jsa-Authorization-Redirect": {authorize}}, "/ccm/whoami", byJAS, false, ""},
		"jas elsewhere":    {401, http.Header{"Www-Authenticate": {`Bearer realm="JSA"`}, "X-Jsa-Authorization-Redirect": {"https://other.example/authorize?x"}}, "/ccm/whoami", "", false, api.SSORedirect},
		"jas in clear":     {401, http.Header{"Www-Authenticate": {`Bearer realm="JSA"`}, "X-Jsa-Authorization-Redirect": {strings.Replace(authorize, "https", "http", 1)}}, "/ccm/whoami", "", false, api.InsecureRedirect},
		"bearer alone":     {401, http.Header{"Www-Authenticate": {`Bearer realm="x"`}}, "/ccm/whoami", "", false, api.ChallengeUnsupported},
		"jauth":            {401, http.Header{"Www-Authenticate": {`JAuth realm="x", token_uri="https://elm.corp.example/jts/jauth-issue-token"`}}, "/ccm/whoami", "", false, api.ChallengeUnsupported},
		"nothing":          {401, nil, "/ccm/whoami", "", false, api.ChallengeUnsupported},
		"digest":           {401, http.Header{"Www-Authenticate": {`Digest realm="x"`}}, "/ccm/whoami", "", false, api.ChallengeUnsupported},
		"kerberos":         {401, http.Header{"Www-Authenticate": {`Negotiate`}}, "/ccm/whoami", byNegotiate, true, ""},
		"kerberos, basic":  {401, http.Header{"Www-Authenticate": {`Negotiate`, `Basic realm="x"`}}, "/ccm/whoami", byNegotiate, true, ""},
		"oauth":            {401, http.Header{"Www-Authenticate": {`OAuth realm="x"`}, "X-Jazz-Web-Oauth-Url": {"https://elm.corp.example/jts/oauth-authorize?oauth_token=1"}}, "/ccm/whoami", byOAuth, false, ""},
		"oauth elsewhere":  {401, http.Header{"Www-Authenticate": {`OAuth realm="x"`}, "X-Jazz-Web-Oauth-Url": {"https://other.example/jts/oauth-authorize"}}, "/ccm/whoami", "", false, api.SSORedirect},
		"oauth, no URL":    {401, http.Header{"Www-Authenticate": {`OAuth realm="x"`}, "X-Jazz-Web-Oauth-Url": {"https://%zz/"}}, "/ccm/whoami", "", false, api.UnexpectedStatus},
		"consent":          {200, nil, "/jts/oauth-authorize", "", false, api.ConsentRequired},
		"open":             {200, nil, "/ccm/whoami", "", false, api.NoChallenge},
		"not there":        {404, nil, "/ccm/whoami", "", false, api.UnexpectedStatus},
		"starting":         {503, nil, "/ccm/whoami", "", false, api.Maintenance},
		"broken":           {500, nil, "/ccm/whoami", "", false, api.Server5xx},
		"too many":         {429, nil, "/ccm/whoami", "", false, api.RateLimited},
		"starting, a form": {503, http.Header{"X-Com-Ibm-Team-Repository-Web-Auth-Msg": {"authrequired"}}, "/ccm/whoami", "", false, api.Maintenance},
	} {
		x := web.NewExchange(web.Options{Base: base, LoginHosts: []web.Origin{{Scheme: "https", Host: "jas.corp.example", Port: "443"}}}, new(web.Jar))
		r := &web.Response{URL: web.Below(&url.URL{Scheme: "https", Host: "elm.corp.example"}, c.path), Status: c.status, Header: c.header}
		r.Challenges = web.ParseChallenges(c.header["Www-Authenticate"])
		got, err := New("jazz").(*jazz).challenged(x, r)
		if api.CodeOf(err) != c.code || err == nil && (got.by != c.by || got.gate != c.gate || (got.next != nil) != (c.by == byJAS || c.by == byOAuth)) {
			t.Errorf("%s: %+v %v, want %q %t %q", name, got, err, c.by, c.gate, c.code)
		}
		if err != nil && strings.Contains(err.Error(), "CANARY") {
			t.Errorf("%s: %v", name, err)
		}
		x.Close()
	}
}

// jazzTests are the kind's entries among those of all kinds: by its form, and by the
// container's Negotiate.
func jazzTests() []kindTest {
	codes := map[behaviour]api.Code{
		good: "", refused: api.BadCredentials, anonymous: api.Expired, keepsNothing: api.NoSessionCookie,
		unchallenged: api.NoChallenge, toForeignHost: api.SSORedirect, down: api.Maintenance, limited: api.RateLimited, forbidden: api.Forbidden,
	}
	byTicket := maps.Clone(codes)
	byTicket[refused] = api.NegotiateRejected
	return []kindTest{
		{kind: "jazz", means: Secret, driver: New("jazz"), site: jazzSite(false), codes: codes},
		{kind: "jazz", means: Ticket, driver: New("jazz"), site: jazzSite(true), codes: byTicket},
	}
}

// jazzSite is what of Jazz every kind has: rig.Jazz, which jazz_model_test.go asks,
// has the rest.
func jazzSite(ticket bool) func(behaviour, string) http.HandlerFunc {
	return func(b behaviour, foreign string) http.HandlerFunc {
		negotiate := negotiateSite(b, foreign)
		begin := func(w http.ResponseWriter) {
			if b != keepsNothing {
				w.Header().Set("Set-Cookie", "LtpaToken2=CANARY-session; Path=/")
			}
		}
		answer := func(w http.ResponseWriter) {
			switch b {
			case forbidden:
				w.WriteHeader(http.StatusForbidden)
			case anonymous:
			default:
				w.Write([]byte("http://app.corp.example/jts/users/build"))
			}
		}
		return func(w http.ResponseWriter, r *http.Request) {
			_, err := r.Cookie("LtpaToken2")
			switch {
			case b == down, b == limited:
				negotiate(w, r)
			case r.URL.Path == "/app/auth/authrequired", r.URL.Path == "/app/auth/authfailed":
				w.Header().Set("X-com-ibm-team-repository-web-auth-msg", strings.TrimPrefix(r.URL.Path, "/app/auth/"))
			case r.URL.Path == "/app/j_security_check" && b == refused:
				http.Redirect(w, r, "/app/auth/authfailed", http.StatusFound)
			case r.URL.Path == "/app/j_security_check":
				begin(w)
				http.Redirect(w, r, "/app/whoami", http.StatusFound)
			case r.URL.Path != "/app/whoami":
				http.NotFound(w, r)
			case err == nil:
				answer(w)
			case b == unchallenged, b == toForeignHost:
				negotiate(w, r)
			case !ticket:
				http.Redirect(w, r, "/app/auth/authrequired", http.StatusFound)
			case b == refused, r.Header.Get("Authorization") == "":
				w.Header().Set("WWW-Authenticate", "Negotiate")
				w.WriteHeader(http.StatusUnauthorized)
			default:
				begin(w)
				answer(w)
			}
		}
	}
}

// TestJazzLife: what is documented of each way.
func TestJazzLife(t *testing.T) {
	for f, want := range map[Findings]Life{
		{}:              {},
		{Login: byForm}: {Absolute: 2 * time.Hour},
		{Login: byJAS}:  {Idle: 30 * time.Minute}, {Login: byAppPassword}: {Idle: 30 * time.Minute},
		{Login: byOAuth + byForm}: {Idle: 6 * time.Hour}, {Login: byOAuth + byForm, Users: "/jts/whoami"}: {Idle: 6 * time.Hour, Absolute: 2 * time.Hour},
		{Login: byBasic}: {},
	} {
		if got := New("jazz").(Detector).As(f).(Lasting).Life(); got != want {
			t.Errorf("%+v: %+v, want %+v", f, got, want)
		}
		if got := New("jazz").(Provider).Provider().(Lasting).Life(); got != (Life{Absolute: 2 * time.Hour}) {
			t.Errorf("the provider's: %+v", got)
		}
	}
}

// TestJazzEvidence: what a server says to a password that is no word of it, or one
// that it did not look at. Only evidence makes it accepted, or not looked at: all else
// is an attempt that may have failed.
func TestJazzEvidence(t *testing.T) {
	answer := func(status int, header ...string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			for i := 0; i < len(header); i += 2 {
				w.Header().Add(header[i], header[i+1])
			}
			w.WriteHeader(status)
		}
	}
	const field = "X-com-ibm-team-repository-web-auth-msg"
	for name, c := range map[string]struct {
		post     http.HandlerFunc
		stranger string // a cookie that it gets
		code     api.Code
		accepted bool
		back     bool
	}{
		"good":                    {answer(302, "Location", "whoami", "Set-Cookie", "LtpaToken2=CANARY-new; Path=/"), "", "", true, false},
		"good, no redirect":       {answer(200, "Set-Cookie", "LtpaToken2=CANARY-new; Path=/"), "", "", true, false},
		"good, other scheme":      {answer(302, "Location", "https://app.corp.example/app/whoami", "Set-Cookie", "LtpaToken2=CANARY-new; Path=/"), "", "", true, false},
		"403":                     {answer(403), "", api.Forbidden, false, false},
		"400":                     {answer(400), "", api.UnexpectedStatus, false, false},
		"408":                     {answer(408), "", api.UnexpectedStatus, false, false},
		"404":                     {answer(404), "", api.UnexpectedStatus, false, false},
		"423":                     {answer(423), "", api.UnexpectedStatus, false, false},
		"429":                     {answer(429), "", api.RateLimited, false, true},
		"500":                     {answer(500), "", api.Server5xx, false, false},
		"307":                     {answer(307, "Location", "whoami"), "", api.UnexpectedStatus, false, false},
		"authfailed":              {answer(302, "Location", "auth/authfailed"), "", api.BadCredentials, false, false},
		"authfailed at once":      {answer(200, field, "authfailed"), "", api.BadCredentials, false, false},
		"authfailed with cookie":  {answer(200, field, "authfailed", "Set-Cookie", "LtpaToken2=CANARY-new; Path=/"), "", api.BadCredentials, false, false},
		"authfailed elsewhere":    {answer(302, "Location", "http://rtc.example/app/auth/authfailed"), "", api.BadCredentials, false, false},
		"asked again":             {answer(302, "Location", "auth/authrequired"), "", api.BadCredentials, false, false},
		"asked again at once":     {answer(200, field, "authrequired"), "", api.BadCredentials, false, false},
		"asked with a cookie":     {answer(302, "Location", "auth/authrequired", "Set-Cookie", "LtpaToken2=CANARY-dead; Path=/"), "", api.LoginOKButProbeFailed, false, false},
		"asked as a stranger":     {answer(302, "Location", "auth/authrequired"), "LtpaToken2=CANARY-stranger; Path=/", api.BadCredentials, false, false},
		"asked with an empty one": {answer(302, "Location", "auth/authrequired", "Set-Cookie", `LtpaToken2=""; Path=/`), "", api.LoginOKButProbeFailed, false, false},
		"not kept":                {answer(302, "Location", "whoami", "Set-Cookie", "LtpaToken2=CANARY-new; Path=/; Domain=corp.other.example"), "", api.NoSessionCookie, false, false},
		"asks by Basic then":      {answer(302, "Location", "basic"), "", api.LoginOKButProbeFailed, false, false},
		"away":                    {answer(302, "Location", "http://foreign.example/"), "", api.SSORedirect, false, false},
		"good, without a role":    {answer(302, "Location", "norole", "Set-Cookie", "LtpaToken2=CANARY-new; Path=/"), "", api.Forbidden, true, false},
	} {
		posts := 0
		x := exchangeWith(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			ltpa, _ := r.Cookie("LtpaToken2")
			switch {
			case r.Method == http.MethodPost:
				posts++
				c.post(w, r)
			case r.URL.Path == "/app/whoami" && ltpa != nil && ltpa.Value == "CANARY-new":
				w.Write([]byte("http://app.corp.example/jts/users/build"))
			case r.URL.Path == "/app/whoami":
				if c.stranger != "" {
					w.Header().Set("Set-Cookie", c.stranger)
				}
				http.Redirect(w, r, "/app/auth/authrequired", http.StatusFound)
			case r.URL.Path == "/app/norole":
				w.WriteHeader(http.StatusForbidden)
			case r.URL.Path == "/app/basic":
				answer(401, "WWW-Authenticate", `Basic realm="x"`)(w, r)
			default:
				w.Header().Set(field, "authrequired")
			}
		}), new(web.Jar), nil)
		p := new(lent)
		err := New("jazz").(Detector).As(Findings{Product: "jazz"}).Login(t.Context(), x, p)
		quiet(t, name, err)
		if api.CodeOf(err) != c.code || p.accepted != c.accepted || p.back != c.back || posts != 1 {
			t.Errorf("%s: %v, want %q; accepted %v, given back %v; %d posts", name, err, c.code, p.accepted, p.back, posts)
		}
	}
}

// TestJazzProbeKeeps: of what a proof sets, a session keeps what Login leaves of a login.
func TestJazzProbeKeeps(t *testing.T) {
	jar := new(web.Jar)
	x := exchangeWith(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for _, line := range []string{"JAZZ_AUTH_TOKEN=CANARY-new; Path=/app", "WASReqURL=http://evil.example/; Path=/", "jazzop_sso_cookie=CANARY-op; Path=/", "oidc_bsc=CANARY-op; Path=/"} {
			w.Header().Add("Set-Cookie", line)
		}
		w.Write([]byte("http://app.corp.example/jts/users/build"))
	}), jar, nil)
	if id, err := New("jazz").Probe(t.Context(), x); err != nil || id.Name != "build" || jar.Len() != 1 || jar.Named("JAZZ_AUTH_TOKEN").Len() != 1 {
		t.Errorf("%+v %v, %d cookies", id, err, jar.Len())
	}
}

// TestJazzPlaces: the places that a server names for a password. It goes to none that
// is not the site's, and at the authorization server to where the application has sent
// us, and not where that leads to. A server of both, at one origin, is no problem.
func TestJazzPlaces(t *testing.T) {
	const authorize = "/oidc/endpoint/jazzop/authorize"
	for name, c := range map[string]struct {
		checkAt string // what the form's page names
		loginAt string // where the authorization server asks
		code    api.Code
		taken   bool
	}{
		"form":                 {"", "", "", true},
		"form, named":          {"/app/other/j_security_check", "", "", true},
		"form elsewhere":       {"http://evil.example/app/j_security_check", "", api.SSORedirect, false},
		"form of another path": {"/app/collect", "", api.UnexpectedStatus, false},
		"form of no URL":       {"http://%zz/j_security_check", "", api.UnexpectedStatus, false},
		"one origin":           {"", "/jazzop/form/login", "", true},
		"another origin":       {"", "http://other.corp.example/jazzop/form/login", api.SSORedirect, false},
		"a foreign one":        {"", "http://evil.example/jazzop/form/login", api.SSORedirect, false},
	} {
		begin := func(w http.ResponseWriter, r *http.Request) {
			w.Header().Add("Set-Cookie", "JSESSIONID=CANARY-app; Path=/app")
			w.Header().Add("Set-Cookie", "jazzop_sso_cookie=CANARY-op; Path=/")
			http.Redirect(w, r, "/app/whoami", http.StatusFound)
		}
		x := exchangeWith(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if !strings.HasPrefix(r.Host, "app.corp.example:") && !strings.HasPrefix(r.Host, "other.corp.example") {
				t.Errorf("%s: %s was asked", name, r.Host)
			}
			_, err := r.Cookie("JSESSIONID")
			password := r.Header.Get("Authorization") != "" || r.Method == http.MethodPost
			switch {
			case password && (c.loginAt == "") != (r.Method == http.MethodPost):
				t.Errorf("%s: the password goes to %s", name, r.URL.Path)
			case r.Method == http.MethodPost:
				begin(w, r)
			case r.URL.Path == authorize && password:
				http.Redirect(w, r, "/app/jsa?code=CANARY-code", http.StatusFound)
			case r.URL.Path == authorize:
				http.Redirect(w, r, c.loginAt, http.StatusFound)
			case r.URL.Path == "/app/jsa":
				begin(w, r)
			case r.URL.Path == "/app/whoami" && err == nil:
				w.Write([]byte("http://app.corp.example/jts/users/build"))
			case r.URL.Path == "/app/whoami" && c.loginAt != "":
				w.Header().Add("WWW-Authenticate", `Bearer realm="JSA"`)
				w.Header().Set("X-JSA-AUTHORIZATION-REDIRECT", "http://"+r.Host+authorize+"?client_id=0&state=CANARY-state")
				w.WriteHeader(http.StatusUnauthorized)
			case r.URL.Path == "/app/whoami":
				w.Header().Set("X-com-ibm-team-repository-web-auth-msg", "authrequired")
				if c.checkAt != "" {
					w.Header().Set("X-com-ibm-team-repository-web-auth-uri", c.checkAt)
				}
			}
		}), new(web.Jar), nil, web.Origin{Scheme: "http", Host: "other.corp.example", Port: "80"})
		p := new(lent)
		d := New("jazz").(Detector).As(Findings{Product: "jazz"})
		err := d.Login(t.Context(), x, p)
		quiet(t, name, err)
		if api.CodeOf(err) != c.code || p.taken != c.taken {
			t.Errorf("%s: %v, want %q; taken %v", name, err, c.code, p.taken)
		}
		if err != nil {
			continue
		}
		if id, err := d.Probe(t.Context(), x); err != nil || id.Name != "build" || x.Jar().Named("jazzop_sso_cookie").Len() > 0 {
			t.Errorf("%s: %+v %v", name, id, err)
		}
	}
}
