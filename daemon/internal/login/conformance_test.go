package login

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf8"

	"go.uber.org/goleak"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/secret"
	"github.com/sessionctl/sessionctl/daemon/internal/web"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// behaviour is what a fake site of any kind can be told to do.
type behaviour int

const (
	good          behaviour = iota
	refused                 // the credential
	anonymous               // after the login, the probe finds nobody
	keepsNothing            // no cookie
	unchallenged            // nobody is asked to log in
	toForeignHost           // the login leads elsewhere
	down                    // 503
	limited                 // 429
	forbidden               // 403 after the login
)

// kindTests has, for every kind and every means it takes, its fake site and the
// driver's options. A kind without an entry fails the test.
var kindTests = []struct {
	kind   string
	means  Means
	driver Driver
	site   func(b behaviour, foreign string) http.HandlerFunc
	codes  map[behaviour]api.Code // where Login or the Probe after it must end
}{
	{
		kind: "spnego", means: Ticket,
		driver: &spnego{LoginURL: "login", ProbeURL: "me", IdentityJSON: "user.name"},
		site:   negotiateSite,
		codes: map[behaviour]api.Code{
			good: "", refused: api.NegotiateRejected, anonymous: api.Expired, keepsNothing: api.NoSessionCookie,
			unchallenged: api.NoChallenge, toForeignHost: api.SSORedirect, down: api.Maintenance, limited: api.RateLimited, forbidden: api.Forbidden,
		},
	},
	{
		kind: "jira", means: Ticket, driver: New("jira"), site: jiraSite,
		codes: map[behaviour]api.Code{
			good: "", refused: api.NegotiateRejected, anonymous: api.Expired, keepsNothing: api.NoSessionCookie,
			unchallenged: api.NoChallenge, toForeignHost: api.SSORedirect, down: api.Maintenance, limited: api.RateLimited, forbidden: api.Forbidden,
		},
	},
	{
		kind: "jira", means: Secret, driver: New("jira"), site: jiraSite,
		codes: map[behaviour]api.Code{
			good: "", refused: api.BadCredentials, anonymous: api.Expired, keepsNothing: api.NoSessionCookie,
			// A POST is a login whether or not there is a gate.
			unchallenged: "", toForeignHost: api.SSORedirect, down: api.Maintenance, limited: api.RateLimited, forbidden: api.Forbidden,
		},
	},
}

// jiraSite is what of Jira every kind has: rig.Jira, which jira_test.go asks,
// has the rest.
func jiraSite(b behaviour, foreign string) http.HandlerFunc {
	login := func(w http.ResponseWriter) {
		if b != keepsNothing {
			w.Header().Set("Set-Cookie", "JSESSIONID=CANARY-session; Path=/app; HttpOnly")
		}
		if b == forbidden {
			w.Header().Set("X-Seraph-LoginReason", "AUTHORISATION_FAILED")
			w.WriteHeader(http.StatusForbidden)
		}
	}
	negotiate := negotiateSite(b, foreign)
	return func(w http.ResponseWriter, r *http.Request) {
		switch {
		case b == down, b == limited:
			negotiate(w, r)
		case b == toForeignHost:
			http.Redirect(w, r, foreign, http.StatusFound)
		case r.URL.Path == "/app/status":
			w.Write([]byte(`{"state":"RUNNING"}`))
		case r.URL.Path == "/app/login.jsp" && b == unchallenged:
			w.Write([]byte("please log in"))
		case r.URL.Path == "/app/login.jsp" && (r.Header.Get("Authorization") == "" || b == refused):
			w.Header().Set("WWW-Authenticate", "Negotiate")
			w.WriteHeader(http.StatusUnauthorized)
		case r.URL.Path == "/app/login.jsp":
			login(w)
		case r.URL.Path != "/app/rest/auth/1/session":
			http.NotFound(w, r)
		case r.Method == http.MethodPost && b == refused:
			w.WriteHeader(http.StatusUnauthorized)
		case r.Method == http.MethodPost:
			login(w)
			w.Write([]byte(`{"session":{"name":"JSESSIONID","value":"CANARY-session"}}`))
		case r.Header.Get("Cookie") == "" || b == anonymous:
			w.WriteHeader(http.StatusUnauthorized)
		default:
			w.Write([]byte(`{"name":"build"}`))
		}
	}
}

// lent is a password as a login gets it.
type lent struct {
	taken, back bool
	err         error
}

func (*lent) User() string { return "build" }
func (l *lent) Take(context.Context) (secret.String, error) {
	l.taken = true
	return secret.New("CANARY-password"), l.err
}
func (l *lent) GiveBack() { l.back = true }

// negotiateSite answers the Negotiate scheme as RFC 4559 has it and, after a
// login, sets a cookie as mod_auth_gssapi does with GssapiUseSessions.
func negotiateSite(b behaviour, foreign string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		switch {
		case b == down:
			w.WriteHeader(http.StatusServiceUnavailable)
		case b == limited:
			w.WriteHeader(http.StatusTooManyRequests)
		case r.URL.Path == "/app/me":
			if _, err := r.Cookie("s"); err != nil {
				w.Header().Set("WWW-Authenticate", "Negotiate")
				w.WriteHeader(http.StatusUnauthorized)
			} else if b == anonymous {
				w.Write([]byte(`{"user":null}`))
			} else {
				w.Write([]byte(`{"user":{"name":"build"}}`))
			}
		case b == unchallenged:
			w.Write([]byte("please log in"))
		case b == toForeignHost:
			http.Redirect(w, r, foreign, http.StatusFound)
		case r.Header.Get("Authorization") == "" || b == refused:
			w.Header().Set("WWW-Authenticate", "Negotiate")
			w.WriteHeader(http.StatusUnauthorized)
		default:
			if b != keepsNothing {
				w.Header().Set("Set-Cookie", "s=CANARY-session; Path=/app")
			}
			if b == forbidden {
				w.WriteHeader(http.StatusForbidden)
			}
		}
	}
}

// anyToken is a Negotiator whose tokens are not looked at.
type anyToken struct{}

func (anyToken) Initiate(context.Context, string, bool) (web.Negotiation, error) {
	return anyToken{}, nil
}
func (anyToken) Token() []byte               { return []byte("CANARY-token") }
func (anyToken) Verify([]byte) (bool, error) { return true, nil }

// exchangeWith starts a dialogue with a handler as https is not: in clear, on
// loopback, under the name app.corp.example.
func exchangeWith(t *testing.T, h http.Handler, jar *web.Jar, n web.Negotiator) *web.Exchange {
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	u, err := url.Parse(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	x := web.NewExchange(web.Options{
		Base: &url.URL{Scheme: "http", Host: "app.corp.example:" + u.Port(), Path: "/app"}, InsecureHTTP: true, UserAgent: "test/1", Negotiate: n,
		Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, u.Host)
		},
	}, jar)
	t.Cleanup(x.Close)
	return x
}

// TestKinds drives every kind through what every site can do.
func TestKinds(t *testing.T) {
	var covered []string
	for _, k := range kindTests {
		covered = append(covered, k.kind+string(k.means))
	}
	for _, kind := range Kinds() {
		for _, m := range New(kind).Takes() {
			if !slices.Contains(covered, kind+string(m)) {
				t.Errorf("kind %s with %s has no entry in kindTests", kind, m)
			}
		}
	}
	for _, k := range kindTests {
		kind := k.kind + " with " + string(k.means)
		for b := good; b <= forbidden; b++ {
			want, ok := k.codes[b]
			if !ok {
				t.Errorf("%s: no expectation for behaviour %d", kind, b)
			}
			var foreignRequests atomic.Int32
			foreign := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { foreignRequests.Add(1) }))
			var n web.Negotiator = anyToken{}
			var p Password
			if k.means == Secret {
				n, p = nil, new(lent)
			}
			x := exchangeWith(t, k.site(b, foreign.URL), new(web.Jar), n)
			err := k.driver.Login(t.Context(), x, p)
			if err == nil {
				var id Identity
				id, err = k.driver.Probe(t.Context(), x)
				if err == nil && id.Name != "build" {
					t.Errorf("%s, behaviour %d: identity %q", kind, b, id.Name)
				}
			}
			if api.CodeOf(err) != want {
				t.Errorf("%s, behaviour %d: %v, want %q", kind, b, err, want)
			}
			foreign.Close()
			if foreignRequests.Load() != 0 {
				t.Errorf("%s: a foreign host was asked", kind)
			}
		}
	}
	if New("no-such-kind") != nil || !slices.IsSorted(Kinds()) {
		t.Error("New or Kinds is wrong")
	}
}

func TestExpectation(t *testing.T) {
	e := Expectation{Names: []string{"build", "build@CORP.EXAMPLE"}}
	for id, met := range map[Identity]bool{
		{Name: "build"}: true, {Name: "BUILD"}: true, {Name: "build@corp.example"}: true,
		{Name: "build@OTHER.EXAMPLE"}: false, {Name: "builder"}: false, {Name: ""}: false, {Unproven: true}: false, {Name: "build", Unproven: true}: false,
		{Name: "build@CORP.EXAMPLE\xff"}: false,
	} {
		if e.Met(id) != met {
			t.Errorf("%+v: %v", id, !met)
		}
	}
	// What Unicode folds to ASCII is another account's name; so is another byte.
	for want, got := range map[string]string{"task": "ta\u017fk", "kim": "\u212aim", "stra\u00dfe": "STRASSE", "\u00e9": "\u00c9", "a\xff": "a\xfe", "": ""} {
		if (Expectation{Names: []string{want}}).Met(Identity{Name: got}) {
			t.Errorf("%q passes for %q", got, want)
		}
	}
	u := Expectation{Unproven: true}
	if !u.Met(Identity{Unproven: true}) || u.Met(Identity{Name: "somebody"}) {
		t.Error("unproven")
	}
}

// TestSpnegoIdentity is about the three ways to find the user's name, and
// about pages that name nobody.
func TestSpnegoIdentity(t *testing.T) {
	for name, c := range map[string]struct {
		s            spnego
		header, body string
		status       int
		want         string
		code         api.Code
	}{
		"json":             {spnego{IdentityJSON: "$.user.0.name"}, "", `{"user":[{"name":"build"}]}`, 200, "build", ""},
		"json number":      {spnego{IdentityJSON: "id"}, "", `{"id":12345678901234567890}`, 200, "12345678901234567890", ""},
		"json absent":      {spnego{IdentityJSON: "user"}, "", `{"users":"x"}`, 200, "", api.Expired},
		"json object":      {spnego{IdentityJSON: "user"}, "", `{"user":{}}`, 200, "", api.Expired},
		"login page":       {spnego{IdentityJSON: "user"}, "", `<html>log in</html>`, 200, "", api.Expired},
		"header":           {spnego{IdentityHeader: "x-remote-user"}, " build ", "", 200, "build", ""},
		"header absent":    {spnego{IdentityHeader: "X-Other"}, "build", "", 200, "", api.Expired},
		"regexp":           {spnego{IdentityRegexp: `Logged in as <b>(\w+)</b>`}, "", "<p>Logged in as <b>build</b>", 200, "build", ""},
		"regexp no match":  {spnego{IdentityRegexp: `as (\w+)`}, "", "please log in", 200, "", api.Expired},
		"401":              {spnego{IdentityJSON: "user"}, "", `{"user":"build"}`, 401, "", api.Expired},
		"302":              {spnego{IdentityJSON: "user"}, "", `{"user":"build"}`, 302, "", api.Expired},
		"403":              {spnego{IdentityJSON: "user"}, "", `{"user":"build"}`, 403, "", api.Forbidden},
		"404":              {spnego{IdentityJSON: "user"}, "", `{"user":"build"}`, 404, "", api.UnexpectedStatus},
		"500":              {spnego{IdentityJSON: "user"}, "", `{"user":"build"}`, 500, "", api.Server5xx},
		"json, then more":  {spnego{IdentityJSON: "user"}, "", `{"user":"build"} <html>log in</html>`, 200, "", api.Expired},
		"two documents":    {spnego{IdentityJSON: "user"}, "", `{"user":"build"}{"user":"root"}`, 200, "", api.Expired},
		"cut off":          {spnego{IdentityJSON: "user"}, "", `{"user":"build"`, 200, "", api.Expired},
		"twice":            {spnego{IdentityJSON: "user"}, "", `{"user":"root","user":"build"}`, 200, "", api.WrongIdentity},
		"twice, escaped":   {spnego{IdentityJSON: "user"}, "", `{"user":"root","\u0075ser":"build"}`, 200, "", api.WrongIdentity},
		"twice above":      {spnego{IdentityJSON: "a.user"}, "", `{"a":{"user":"root"},"a":{"user":"build"}}`, 200, "", api.WrongIdentity},
		"twice, elsewhere": {spnego{IdentityJSON: "user"}, "", `{"x":1,"x":2,"user":"build","y":{"user":"x","user":"y"}}`, 200, "build", ""},
		"null":             {spnego{IdentityJSON: "user"}, "", `{"user":null}`, 200, "", api.Expired},
		"204":              {spnego{IdentityHeader: "X-Remote-User"}, "build", "", 204, "", api.UnexpectedStatus},
	} {
		x := exchangeWith(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-Remote-User", c.header)
			w.Header().Set("Location", "/login")
			w.WriteHeader(c.status)
			w.Write([]byte(c.body))
		}), new(web.Jar), nil)
		id, err := c.s.Probe(t.Context(), x)
		if id.Name != c.want || api.CodeOf(err) != c.code {
			t.Errorf("%s: %q %v, want %q %q", name, id.Name, err, c.want, c.code)
		}
	}
}

// TestSpnegoIdentityHeaderTwice: a proxy that adds its own value to the one of
// the request behind it names two people.
func TestSpnegoIdentityHeaderTwice(t *testing.T) {
	x := exchangeWith(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header()["X-Remote-User"] = []string{"build", "root"}
	}), new(web.Jar), nil)
	if id, err := (&spnego{IdentityHeader: "X-Remote-User"}).Probe(t.Context(), x); api.CodeOf(err) != api.WrongIdentity {
		t.Errorf("%+v %v", id, err)
	}
}

// TestSpnegoUnproven: without a name, only the difference between with and
// without cookies proves anything.
func TestSpnegoUnproven(t *testing.T) {
	for name, c := range map[string]struct {
		without int
		code    api.Code
	}{"refused without": {401, ""}, "redirected without": {302, ""}, "the same without": {200, api.LoginOKButProbeFailed}, "down without": {503, api.Maintenance}} {
		jar := new(web.Jar)
		x := exchangeWith(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Cookie") == "" {
				w.WriteHeader(c.without)
			}
		}), jar, nil)
		base, err := x.URL("")
		if err != nil {
			t.Fatal(err)
		}
		jar.Set(base, []string{"s=CANARY-session; Path=/"}, time.Now())
		id, err := new(spnego).Probe(t.Context(), x)
		if api.CodeOf(err) != c.code || err == nil && !id.Unproven {
			t.Errorf("%s: %+v %v, want %q", name, id, err, c.code)
		}
	}
}

func TestSpnegoCheck(t *testing.T) {
	base := &url.URL{Scheme: "https", Host: "app.corp.example"}
	o := web.Options{Base: base, LoginHosts: []web.Origin{{Scheme: "https", Host: "login.corp.example", Port: "443"}}}
	json := func(login, probe string) spnego {
		return spnego{IdentityJSON: "user", LoginURL: login, ProbeURL: probe}
	}
	for name, c := range map[string]struct {
		s        spnego
		identity string
		want     string // in the message, "" if it is right
	}{
		"json": {json("", ""), "", ""}, "unproven": {spnego{}, Unproven, ""}, "nothing": {spnego{}, "", "identity_json"},
		"name without a way": {spnego{}, "build", "identity_json"}, "two ways": {spnego{IdentityJSON: "a", IdentityHeader: "b"}, "", "only one"},
		"unproven and a way": {spnego{IdentityJSON: "a"}, Unproven, "contradicts"}, "bad regexp": {spnego{IdentityRegexp: "("}, "", "identity_regexp"},
		"no group":      {spnego{IdentityRegexp: "x"}, "", "group"},
		"bad url":       {json("", "https://u:CANARY-password@x y/"), "", "probe_url"},
		"login host":    {json("https://login.corp.example/sso", "https://app.corp.example:443/me"), "", ""},
		"foreign login": {json("https://sso.corp.example/", ""), "", "login_url leads to https://sso.corp.example, which is not one of the site's hosts; if that host belongs to the login, add it to the site's login_hosts"},
		"foreign probe": {json("", "https://app.corp.example.evil.example/me"), "", "probe_url leads to https://app.corp.example.evil.example"},
		"http":          {json("", "http://app.corp.example/me"), "", "insecure_http"},
		"user in url":   {json("https://u:CANARY-password@app.corp.example/", ""), "", "user name"},
		"another kind":  {json("file:///etc/passwd", ""), "", "login_url leads to what is not a web address"},
	} {
		err := c.s.Check(o, c.identity)
		if (err == nil) != (c.want == "") || err != nil && (!strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "CANARY")) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func FuzzJSONPath(f *testing.F) {
	f.Add([]byte(`{"user":[{"name":"build"}]}`), "$.user.0.name")
	f.Add([]byte(`[1,[2,[3]]]`), "1.1.0")
	f.Fuzz(func(t *testing.T, doc []byte, path string) {
		name, err := jsonPath(doc, path)
		if err != nil && name != "" {
			t.Errorf("%q at %q gave %q and %v", doc, path, name, err)
		}
		// A name that is there is found, whatever it is called.
		member, _ := json.Marshal(map[string]string{path: "build"})
		if valid := utf8.ValidString(path) && !strings.ContainsAny(path, ".$"); valid {
			if name, err := jsonPath(member, path); err != nil || name != "build" {
				t.Errorf("%s at %q gave %q, %v", member, path, name, err)
			}
		}
	})
}
