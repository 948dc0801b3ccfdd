package login

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"slices"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/secret"
	"github.com/sessionctl/sessionctl/daemon/internal/web"
)

func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == loginProgram {
		logInAsProgram()
		return
	}
	goleak.VerifyTestMain(m)
}

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

type kindTest struct {
	kind   string
	means  Means
	driver Driver
	site   func(b behaviour, foreign string) http.HandlerFunc
	codes  map[behaviour]api.Code // where Login or the Probe after it must end
}

// kindTests has, for every kind and every means it takes, its fake site and the
// driver's options. A kind without an entry fails the test.
var kindTests = slices.Concat(familyTests(), jazzTests(), []kindTest{
	{
		kind: "spnego", means: Ticket,
		driver: &spnego{proof{LoginURL: "login", ProbeURL: "me", IdentityJSON: "user.name"}},
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
	{
		kind: "form", means: Secret,
		driver: &form{proof: proof{LoginURL: "login", ProbeURL: "me", IdentityJSON: "user.name"}},
		site:   formSite,
		codes: map[behaviour]api.Code{
			good: "", refused: api.BadCredentials, anonymous: api.Expired, keepsNothing: api.NoSessionCookie,
			unchallenged: api.UnexpectedStatus, toForeignHost: api.SSORedirect, down: api.Maintenance, limited: api.RateLimited, forbidden: api.Forbidden,
		},
	},
	{
		kind: "crowd", means: Secret, // the console's form
		driver: &crowd{Token: "s", proof: proof{LoginURL: "login", ProbeURL: "me", IdentityJSON: "user.name"}},
		site:   formSite,
		codes: map[behaviour]api.Code{
			good: "", refused: api.BadCredentials, anonymous: api.Expired, keepsNothing: api.NoSessionCookie,
			unchallenged: api.UnexpectedStatus, toForeignHost: api.SSORedirect, down: api.Maintenance, limited: api.RateLimited, forbidden: api.Forbidden,
		},
	},
	{
		kind: "crowd", means: Ticket, driver: &crowd{Via: "jira", Token: "JSESSIONID"}, site: jiraSite,
		codes: map[behaviour]api.Code{
			good: "", refused: api.NegotiateRejected, anonymous: api.Expired, keepsNothing: api.NoSessionCookie,
			unchallenged: api.NoChallenge, toForeignHost: api.SSORedirect, down: api.Maintenance, limited: api.RateLimited, forbidden: api.Forbidden,
		},
	},
	{
		kind: "crowd", means: Secret, // an application's own
		driver: &crowd{Via: viaREST, User: "build", Token: "s", proof: proof{ProbeURL: "me", IdentityJSON: "user.name"}},
		site:   crowdRESTSite,
		codes: map[behaviour]api.Code{
			good: "", refused: api.BadCredentials, anonymous: api.Expired, keepsNothing: api.UnexpectedStatus,
			unchallenged: api.UnexpectedStatus, toForeignHost: api.SSORedirect, down: api.Maintenance, limited: api.RateLimited, forbidden: api.Forbidden,
		},
	},
	{
		kind: "token", means: Secret,
		driver: &token{Scheme: "Bearer", proof: proof{ProbeURL: "me", IdentityJSON: "user.name"}},
		site:   tokenSite,
		codes: map[behaviour]api.Code{
			good: "", refused: api.BadCredentials, anonymous: api.BadCredentials, keepsNothing: "", // nothing is kept in any case
			unchallenged: api.LoginOKButProbeFailed, toForeignHost: api.SSORedirect, down: api.Maintenance, limited: api.RateLimited, forbidden: api.Forbidden,
		},
	},
	{
		kind: "basic", means: Secret,
		driver: &basicAuth{proof{LoginURL: "login", ProbeURL: "me", IdentityJSON: "user.name"}},
		site:   basicSite,
		codes: map[behaviour]api.Code{
			good: "", refused: api.BadCredentials, anonymous: api.Expired, keepsNothing: "", // the password is the session
			unchallenged: api.NoChallenge, toForeignHost: api.SSORedirect, down: api.Maintenance, limited: api.RateLimited, forbidden: api.Forbidden,
		},
	},
	{
		kind: "command", means: Secret,
		driver: &command{Command: thisProgram(loginProgram), Timeout: maxCommandTime, proof: proof{LoginURL: "login", ProbeURL: "me", IdentityJSON: "user.name"}},
		site:   commandSite,
		codes: map[behaviour]api.Code{
			good: "", refused: api.BadCredentials, anonymous: api.Expired, keepsNothing: api.NoSessionCookie,
			// What it wants the program knows.
			unchallenged: "", toForeignHost: api.SSORedirect, down: api.Maintenance, limited: api.RateLimited, forbidden: api.Forbidden,
		},
	},
})

// jiraSite is what of Jira every kind has: rig.Atlassian, which jira_test.go asks,
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
			w.Header().Set("X-AUSERNAME", "anonymous")
			w.WriteHeader(http.StatusUnauthorized)
		case r.Method == http.MethodPost:
			login(w)
			w.Write([]byte(`{"session":{"name":"JSESSIONID","value":"CANARY-session"}}`))
		case r.Header.Get("Cookie") == "" || b == anonymous:
			w.Header().Set("X-AUSERNAME", "anonymous")
			w.WriteHeader(http.StatusUnauthorized)
		default:
			w.Write([]byte(`{"self":"x","name":"build"}`))
		}
	}
}

// formSite is an application with a login form, which form_test.go has more of.
func formSite(b behaviour, foreign string) http.HandlerFunc {
	negotiate := negotiateSite(b, foreign)
	return func(w http.ResponseWriter, r *http.Request) {
		_, err := r.Cookie("s")
		switch {
		case b == down, b == limited:
			negotiate(w, r)
		case r.URL.Path == "/app/me" && err != nil:
			http.Redirect(w, r, "/app/login", http.StatusFound)
		case r.URL.Path == "/app/me" && b == forbidden:
			w.WriteHeader(http.StatusForbidden)
		case r.URL.Path == "/app/me":
			negotiate(w, r)
		case r.URL.Path == "/app/home", b == unchallenged:
			w.Write([]byte("please log in"))
		case b == toForeignHost:
			http.Redirect(w, r, foreign, http.StatusFound)
		case r.Method == http.MethodGet, b == refused:
			w.Write([]byte(`<form method=post><input name=u><input type=password name=p><button>Log in</button></form>`))
		default:
			if b != keepsNothing {
				w.Header().Set("Set-Cookie", "s=CANARY-session; Path=/app")
			}
			http.Redirect(w, r, "/app/home", http.StatusSeeOther)
		}
	}
}

// lent is a password as a login gets it.
type lent struct {
	taken, back, accepted bool
	err                   error
}

func (*lent) User() string { return "build" }
func (l *lent) Take(context.Context) (secret.String, error) {
	l.taken = true
	return secret.New("CANARY-password"), l.err
}
func (l *lent) GiveBack() { l.back = true }
func (l *lent) Accepted() { l.accepted = true }

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

func (anyToken) Initiate(context.Context, string, web.InitiateOptions) (web.Negotiation, error) {
	return anyToken{}, nil
}
func (anyToken) Token() []byte               { return []byte("CANARY-token") }
func (anyToken) Verify([]byte) (bool, error) { return true, nil }

// exchangeWith starts a dialogue with a handler as https is not: in clear, on
// loopback, under the name app.corp.example.
func exchangeWith(t *testing.T, h http.Handler, jar *web.Jar, n web.Negotiator, loginHosts ...web.Origin) *web.Exchange {
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	u, err := url.Parse(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	x := web.NewExchange(web.Options{
		Base: &url.URL{Scheme: "http", Host: "app.corp.example:" + u.Port(), Path: "/app"}, LoginHosts: loginHosts, InsecureHTTP: true, UserAgent: "test/1", Negotiate: n,
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
