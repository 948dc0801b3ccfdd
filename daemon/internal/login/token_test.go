package login

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/rig"
	"github.com/sessionctl/sessionctl/daemon/internal/web"
)

const personalToken = "CANARY-NjM2OTQ2MTU4Mzg5Ol+/~.-_=="

// tokens answers who brings a token, and who does not.
func tokens(with, without http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			with(w, r)
		} else {
			without(w, r)
		}
	}
}

// tokenSite names whoever brings a token.
func tokenSite(b behaviour, foreign string) http.HandlerFunc {
	negotiate := negotiateSite(b, foreign)
	return func(w http.ResponseWriter, r *http.Request) {
		switch {
		case b == down, b == limited:
			negotiate(w, r)
		case b == toForeignHost:
			http.Redirect(w, r, foreign, http.StatusFound)
		case b == unchallenged:
			w.Write([]byte(`{"user":{"name":"build"}}`))
		case r.Header.Get("Authorization") != "Bearer CANARY-password", b == refused:
			w.WriteHeader(http.StatusUnauthorized)
		case b == forbidden:
			w.WriteHeader(http.StatusForbidden)
		case b == anonymous:
			w.Write([]byte(`{"user":null}`))
		default:
			w.Write([]byte(`{"user":{"name":"build"}}`))
		}
	}
}

// TestTokenAnswers: what a site says to a token, and what that means for it.
func TestTokenAnswers(t *testing.T) {
	refused, good, unseen := lent{taken: true}, lent{taken: true, accepted: true}, lent{taken: true, back: true}
	unknown := says(401, page, `WWW-Authenticate: OAuth realm="CANARY"`) // measured: no word of Seraph's
	for name, c := range map[string]struct {
		stranger, token http.HandlerFunc
		code            api.Code
		want            lent
	}{
		"good":                    {says(401, text), says(200, me, user), "", good},
		"good, cookies":           {says(401, text, cookie), says(200, me, user, cookie), "", good},
		"strangers are anonymous": {says(200, `{"type":"anonymous"}`), says(200, me), "", good},
		"strangers get a page":    {says(200, loginForm), says(200, me), "", good},
		"strangers get 403":       {says(403, page), says(200, me), "", good},
		"strangers go elsewhere":  {says(302, page, foreignLocation), says(200, me), api.SSORedirect, lent{}},
		"strangers go to a login": {says(302, page, "Location: /app/login"), says(200, me), "", good},
		"unknown":                 {says(401, text), unknown, api.BadCredentials, refused},
		"anonymous":               {says(200, `{"type":"anonymous"}`), says(200, `{"type":"anonymous"}`), api.BadCredentials, refused},
		"a login page":            {says(200, loginForm), says(200, loginForm), api.BadCredentials, refused},
		"to the login":            {says(302, page, "Location: /app/login?1"), says(302, page, "Location: /app/login?2"), api.SSORedirect, unseen},
		"to another login":        {says(302, page, "Location: /app/login"), says(302, page, "Location: /app/other"), api.BadCredentials, refused},
		"to the login, refused":   {says(401, text), says(302, page, "Location: /app/login"), api.BadCredentials, refused},
		"to a gate":               {says(302, page, foreignLocation), says(302, page, foreignLocation), api.SSORedirect, lent{}},
		"to a gate now":           {says(401, text), says(302, page, foreignLocation), api.SSORedirect, unseen},
		"to https":                {toHTTPS, toHTTPS, api.InsecureRedirect, lent{}},
		"a gate":                  {says(401, page, challenge), says(401, page, challenge), api.ChallengeUnsupported, unseen},
		"a gate, two schemes":     {says(401, page, challenge, basic), says(401, page, challenge, basic), api.ChallengeUnsupported, unseen},
		"a gate, no more":         {says(401, page, challenge), says(401, text), api.BadCredentials, refused},
		"a gate for strangers":    {says(401, page, challenge), says(200, me), "", good},
		"asked for tokens":        {says(401, page, "WWW-Authenticate: Bearer"), says(401, page, "WWW-Authenticate: bearer"), api.BadCredentials, refused},
		"asked for better tokens": {says(401, page, "WWW-Authenticate: Bearer"), says(401, page, `WWW-Authenticate: Bearer error="CANARY"`), api.BadCredentials, refused},
		"anybody is named":        {says(200, me), says(200, me), api.LoginOKButProbeFailed, lent{}},
		"away":                    {says(503, page), nil, api.Maintenance, lent{}},
		"limited":                 {says(429, page), nil, api.RateLimited, lent{}},
		"broken":                  {says(500, page), nil, api.Server5xx, lent{}},
		"not there":               {says(404, page), nil, api.UnexpectedStatus, lent{}},
		"away now":                {says(401, text), says(503, page), api.Maintenance, unseen},
		"limited now":             {says(401, text), says(429, page), api.RateLimited, unseen},
		"broken now":              {says(401, text), says(500, page), api.Server5xx, refused},
		"no right":                {says(401, text), says(403, page), api.Forbidden, refused},
	} {
		a := &answers{t: t, say: map[string]http.HandlerFunc{"GET me": tokens(c.token, c.stranger)}}
		x := exchangeWith(t, a, new(web.Jar), nil)
		d := &token{Scheme: "Bearer", proof: proof{ProbeURL: "me", IdentityJSON: "name"}}
		p := &account{offered{text: personalToken}, "build"}
		err := d.Login(t.Context(), x, p)
		quiet(t, name, err)
		if api.CodeOf(err) != c.code || p.lent != c.want {
			t.Errorf("%s: %v, want %q; the token: %+v", name, err, c.code, p.lent)
		}
		if code := api.CodeOf(err); code == api.BadCredentials && !strings.Contains(err.Error(), "build") {
			t.Errorf("%s: the message does not say whose token: %v", name, err)
		}
		if err != nil {
			continue
		}
		if x.Jar().Len() != 0 || x.Jar().Authorization().Reveal() != "Bearer "+personalToken {
			t.Errorf("%s: %d cookies", name, x.Jar().Len())
		}
		if id, err := d.Probe(t.Context(), x); err != nil || id.Name != "build" {
			t.Errorf("%s: %+v %v", name, id, err)
		}
		// It is taken back at the site.
		a.say["GET me"] = unknown
		if _, err := d.Probe(t.Context(), x); api.CodeOf(err) != api.Expired || strings.Contains(err.Error(), "cookie") {
			t.Errorf("%s, then: %v", name, err)
		}
	}
}

// TestTokenProducts: each product proves a token in its own way.
func TestTokenProducts(t *testing.T) {
	starts := map[string]func(rig.AtlassianOptions) (*rig.Atlassian, error){
		"jira": rig.StartJira, "confluence": rig.StartConfluence, "bitbucket": rig.StartBitbucket, "bamboo": rig.StartBamboo,
	}
	whoami := map[string]string{"jira": me, "confluence": `{"type":"known","username":"build"}`, "bitbucket": "build", "bamboo": me}
	for product := range tokenProducts {
		for _, twoStep := range []bool{false, true} {
			name := fmt.Sprintf("%s, two steps %v", product, twoStep)
			s, err := starts[product](rig.AtlassianOptions{ContextPath: "/app", TwoStep: twoStep})
			if err != nil {
				t.Fatal(err)
			}
			s.SetModes(rig.AtlassianModes{BasicDisabled: true})
			s.AddUser("build", "CANARY-password")
			s.AddToken("build", personalToken)
			base, err := url.Parse(s.URL())
			if err != nil {
				t.Fatal(err)
			}
			log := func(value string) (*token, *web.Exchange, lent, error) {
				x := web.NewExchange(web.Options{Base: base, InsecureHTTP: true}, new(web.Jar))
				t.Cleanup(x.Close)
				var d Detector = &token{Product: product, Scheme: "Bearer"}
				found, err := d.Detect(t.Context(), x)
				if err != nil || found.Product != product {
					t.Fatalf("%s: %+v %v", name, found, err)
				}
				k, p := d.As(found).(*token), &account{offered{text: value}, "build"}
				err = k.Login(t.Context(), x, p)
				quiet(t, name, err)
				return k, x, p.lent, err
			}
			if _, _, p, err := log("CANARY-wrong"); api.CodeOf(err) != api.BadCredentials || p != (lent{taken: true}) {
				t.Errorf("%s, wrong: %v; %+v", name, err, p)
			}
			d, x, p, err := log(personalToken)
			if err != nil || p != (lent{taken: true, accepted: true}) || x.Jar().Len() != 0 {
				t.Errorf("%s: %v; %+v; %d cookies", name, err, p, x.Jar().Len())
			}
			if id, err := d.Probe(t.Context(), x); err != nil || id.Name != "build" {
				t.Errorf("%s: %+v %v", name, id, err)
			}
			if n := s.Counts(); n.Bearer != 2 || n.Sessions != 0 || n.Begun() != 0 {
				t.Errorf("%s: %+v", name, n)
			}
			s.SetModes(rig.AtlassianModes{Maintenance: true})
			if _, err := d.Probe(t.Context(), x); api.CodeOf(err) != api.Maintenance {
				t.Errorf("%s, away: %v", name, err)
			}
			s.SetModes(rig.AtlassianModes{})
			s.RevokeTokens("build")
			if _, err := d.Probe(t.Context(), x); api.CodeOf(err) != api.Expired || strings.Contains(err.Error(), "cookie") {
				t.Errorf("%s, revoked: %v", name, err)
			}
			if _, _, p, err := log(personalToken); api.CodeOf(err) != api.BadCredentials || p != (lent{taken: true}) {
				t.Errorf("%s, revoked: %v; %+v", name, err, p)
			}
			s.Stop()
			if h := d.Headers(Asked{Method: http.MethodPost}); len(h) != 1 || h[0].Name != "X-Atlassian-Token" {
				t.Errorf("%s: %v", name, h)
			}
		}
		// A page that the configuration names comes first.
		a := &answers{t: t, say: map[string]http.HandlerFunc{"GET my/own": tokens(says(200, whoami[product], user), says(401, text))}}
		d := &token{Product: product, Scheme: "token", proof: proof{ProbeURL: "my/own"}}
		if err := d.Login(t.Context(), exchangeWith(t, a, new(web.Jar), nil), &account{offered{text: personalToken}, "build"}); err != nil {
			t.Errorf("%s: %v", product, err)
		}
		if !slices.Equal(slices.Compact(a.asked), []string{"GET my/own"}) {
			t.Errorf("%s: asked %q", product, a.asked)
		}
	}
	// At Bitbucket a page of something in front says nothing of the token.
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		code   api.Code
		user   string
	}{
		"user":            {says(200, "{}", "X-AUSERNAME: svc%2Bci%40corp.example"), "", "svc+ci@corp.example"},
		"user, as it is":  {says(200, "{}", "X-AUSERNAME: svc+ci@corp.example"), "", "svc+ci@corp.example"},
		"user, a percent": {says(200, "{}", "X-AUSERNAME: 100%"), "", "100%"},
		"nobody":          {says(200, "{}", request), api.Expired, ""},
		"anonymous":       {says(200, "{}", nobody), api.Expired, ""},
		"a page":          {says(200, page), api.Maintenance, ""},
		"no licence":      {says(401, `{"errors":[{"exceptionName":"com.atlassian.bitbucket.auth.NoAccessAuthenticationException"}]}`), api.Forbidden, ""},
		"refused":         {says(401, `{"errors":[{"exceptionName":"com.atlassian.bitbucket.auth.IncorrectPasswordAuthenticationException"}]}`), api.Expired, ""},
		"away":            {says(503, page, user), api.Maintenance, ""},
		"not there":       {says(404, page), api.UnexpectedStatus, ""},
	} {
		a := &answers{t: t, say: map[string]http.HandlerFunc{"GET rest/api/latest/application-properties": c.answer}}
		id, err := (&token{Product: "bitbucket"}).Probe(t.Context(), exchangeWith(t, a, new(web.Jar), nil))
		if quiet(t, name, err); api.CodeOf(err) != c.code || id.Name != c.user {
			t.Errorf("Bitbucket, %s: %+v %v, want %q", name, id, err, c.code)
		}
	}
	if h := (&token{}).Headers(Asked{Method: http.MethodPost}); h != nil {
		t.Error(h)
	}
	if f, err := (&token{}).Detect(t.Context(), nil); f != (Findings{}) || err != nil {
		t.Errorf("%+v %v", f, err)
	}
	// A site that is another product says so before a token goes out.
	s, err := rig.StartConfluence(rig.AtlassianOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	if _, err := (&token{Product: "jira"}).Detect(t.Context(), crowdExchange(t, s.URL(), new(web.Jar))); api.CodeOf(err) != api.ConfigInvalid {
		t.Errorf("Confluence is no Jira: %v", err)
	}
}

// TestTokenGate: what stands in front of a product does not get the token, nor does it
// say that the token is wrong.
func TestTokenGate(t *testing.T) {
	unknown := map[string]http.HandlerFunc{
		"by the head":     says(401, page, request),
		"by the errors":   says(401, text),
		"by the reason":   says(401, "<p>Reason : AUTHENTICATED_FAILED CANARY-body"),
		"by its redirect": says(302, "", request, "Location: /app/login"),
	}
	for product, path := range tokenProducts {
		me := map[string]http.HandlerFunc{"confluence": says(200, `{"type":"known","username":"build"}`, user), "bitbucket": says(200, "{}", user)}[product]
		if me == nil {
			me = says(200, `{"name":"build"}`, user)
		}
		for name, c := range map[string]struct {
			gate http.HandlerFunc
			code api.Code
		}{
			"Negotiate":            {says(401, page, challenge), api.ChallengeUnsupported},
			"Basic":                {says(401, page, basic), api.ChallengeUnsupported},
			"to a foreign host":    {says(302, "", foreignLocation), api.SSORedirect},
			"to https":             {toHTTPS, api.InsecureRedirect},
			"to its own login":     {says(302, "", "Location: /oauth2/login?CANARY"), api.UnexpectedStatus},
			"a login page":         {says(200, `<form method=post><input name=a><input type=password name=b>CANARY-body</form>`), api.Maintenance},
			"a page":               {says(200, page), api.Maintenance},
			"a word":               {says(200, "CANARY-body"), api.Maintenance},
			"a 401":                {says(401, page), api.UnexpectedStatus},
			"about maintenance":    {says(200, `<title>Maintenance</title>`), api.Maintenance},
			"away":                 {says(503, page), api.Maintenance},
			"a broken one":         {says(500, page), api.Server5xx},
			"one that names users": {says(200, `{"name":"build","type":"known","username":"build"}`), api.Maintenance},
		} {
			for when, p := range map[string]lent{"before": {}, "with the token": {taken: true, back: true}} {
				label := product + ", " + name + ", " + when
				sent := 0
				without := c.gate
				if p.taken {
					without = says(401, text)
				}
				a := &answers{t: t, say: map[string]http.HandlerFunc{"GET " + path: tokens(func(w http.ResponseWriter, r *http.Request) {
					sent++
					c.gate(w, r)
				}, without)}}
				got := &account{offered{text: personalToken}, "build"}
				err := (&token{Product: product, Scheme: "Bearer"}).Login(t.Context(), exchangeWith(t, a, new(web.Jar), nil), got)
				quiet(t, label, err)
				if name == "a 401" || name == "a broken one" { // which may be about the token
					p.back = false
				}
				if api.CodeOf(err) != c.code || got.lent != p || sent > 0 != p.taken || sent > 1 {
					t.Errorf("%s: %v, want %q; the token: %+v, sent %d times", label, err, c.code, got.lent, sent)
				}
			}
		}
		for name, no := range unknown {
			a := &answers{t: t, say: map[string]http.HandlerFunc{"GET " + path: tokens(no, says(401, text))}}
			p := &account{offered{text: personalToken}, "build"}
			err := (&token{Product: product, Scheme: "Bearer"}).Login(t.Context(), exchangeWith(t, a, new(web.Jar), nil), p)
			quiet(t, name, err)
			if api.CodeOf(err) != api.BadCredentials || p.lent != (lent{taken: true}) {
				t.Errorf("%s, refused %s: %v; the token: %+v", product, name, err, p.lent)
			}
		}
		// A session of which the head names two users is nobody's.
		a := &answers{t: t, say: map[string]http.HandlerFunc{"GET " + path: tokens(me, says(401, text))}}
		d, x := &token{Product: product, Scheme: "Bearer"}, exchangeWith(t, a, new(web.Jar), nil)
		if err := d.Login(t.Context(), x, &account{offered{text: personalToken}, "build"}); err != nil {
			t.Errorf("%s: %v", product, err)
		}
		a.say["GET "+path] = func(w http.ResponseWriter, r *http.Request) {
			w.Header().Add("X-AUSERNAME", "build")
			w.Header().Add("X-AUSERNAME", "CANARY-root")
			me(w, r)
		}
		if _, err := d.Probe(t.Context(), x); api.CodeOf(err) != api.WrongIdentity {
			t.Errorf("%s, two users: %v", product, err)
		} else {
			quiet(t, product, err)
		}
	}
}

// TestTokenText: what is no token is not sent.
func TestTokenText(t *testing.T) {
	for _, text := range []string{"", "Bearer CANARY-x", "CANARY-\u00fc", " CANARY-x", "CANARY-x\n", "CANARY-\x00", "CANARY-x\x7f"} {
		a := &answers{t: t, say: map[string]http.HandlerFunc{"GET me": tokens(func(http.ResponseWriter, *http.Request) { t.Errorf("%q goes out", text) }, says(401, ""))}}
		x := exchangeWith(t, a, new(web.Jar), nil)
		p := &account{offered{text: text}, "build"}
		err := (&token{Scheme: "Bearer", proof: proof{ProbeURL: "me", IdentityJSON: "name"}}).Login(t.Context(), x, p)
		quiet(t, "text", err)
		if api.CodeOf(err) != api.InvalidRequest || p.lent != (lent{taken: true, back: true}) || x.Jar().Living(x.Now()) != 0 {
			t.Errorf("%q: %v; %+v", text, err, p.lent)
		}
	}
	latched := &api.Error{Code: api.Latched, Detail: "x", Remedy: "x"}
	a := &answers{t: t, say: map[string]http.HandlerFunc{"GET me": tokens(func(http.ResponseWriter, *http.Request) { t.Error("a token that is not lent goes out") }, says(401, ""))}}
	if err := (&token{Scheme: "Bearer", proof: proof{ProbeURL: "me", IdentityJSON: "name"}}).Login(t.Context(), exchangeWith(t, a, new(web.Jar), nil), &lent{err: latched}); api.CodeOf(err) != api.Latched {
		t.Error(err)
	}
}

// TestTokenStays: it goes to the site's own origin, wherever that leads.
func TestTokenStays(t *testing.T) {
	var strangers atomic.Int32
	foreign := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { strangers.Add(1) }))
	defer foreign.Close()
	to, err := url.Parse(foreign.URL)
	if err != nil {
		t.Fatal(err)
	}
	for name, hosts := range map[string][]web.Origin{"foreign": nil, "login host": {web.OriginOf(to)}} {
		site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, foreign.URL+"/me", http.StatusTemporaryRedirect)
		}))
		u, err := url.Parse(site.URL + "/app")
		if err != nil {
			t.Fatal(err)
		}
		x := web.NewExchange(web.Options{Base: u, LoginHosts: hosts, InsecureHTTP: true}, new(web.Jar))
		d := &token{Scheme: "Bearer", proof: proof{ProbeURL: "me", IdentityJSON: "name"}}
		if err := d.Login(t.Context(), x, &account{offered{text: personalToken}, "build"}); err == nil {
			t.Errorf("%s: logged in", name)
		}
		x.Close()
		site.Close()
	}
	if n := strangers.Load(); n != 0 {
		t.Errorf("%d requests to another host", n)
	}
}

func TestTokenCheck(t *testing.T) {
	o := web.Options{Base: &url.URL{Scheme: "https", Host: "jira.corp.example", Path: "/jira"},
		LoginHosts: []web.Origin{{Scheme: "https", Host: "sso.corp.example", Port: "443"}}}
	for name, c := range map[string]struct {
		token    token
		identity string
		want     string
	}{
		"proof":            {token{Scheme: "Bearer", proof: proof{ProbeURL: "me", IdentityJSON: "name"}}, "", ""},
		"unproven":         {token{Scheme: "token", proof: proof{ProbeURL: "me"}}, Unproven, ""},
		"product":          {token{Product: "jira", Scheme: "Bearer"}, "", ""},
		"its own proof":    {token{Product: "jira", Scheme: "Bearer", proof: proof{ProbeURL: "/jira/rest/api/latest/myself"}}, "", ""},
		"no product":       {token{Product: "spnego", Scheme: "Bearer"}, "", `product = "spnego"`},
		"crucible":         {token{Product: "crucible", Scheme: "Bearer"}, "", `product = "crucible"`},
		"two proofs":       {token{Product: "jira", Scheme: "Bearer", proof: proof{IdentityHeader: "X-AUSERNAME"}}, "", "identity_"},
		"no proof":         {token{Scheme: "Bearer"}, "", "identity_json"},
		"product unproven": {token{Product: "jira", Scheme: "Bearer"}, Unproven, "always names the user"},
		"a login":          {token{Scheme: "Bearer", proof: proof{LoginURL: "in", ProbeURL: "me", IdentityJSON: "name"}}, "", "login_url"},
		"no scheme":        {token{proof: proof{ProbeURL: "me", IdentityJSON: "name"}}, "", "scheme"},
		"two schemes":      {token{Scheme: "Bearer x", proof: proof{ProbeURL: "me", IdentityJSON: "name"}}, "", "scheme"},
		"foreign proof":    {token{Scheme: "Bearer", proof: proof{ProbeURL: "https://other.example/", IdentityJSON: "name"}}, "", "probe_url"},
		"another host":     {token{Scheme: "Bearer", proof: proof{ProbeURL: "https://sso.corp.example/me", IdentityJSON: "name"}}, "", "never gets the token"},
	} {
		if err := c.token.Check(o, c.identity); (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}
