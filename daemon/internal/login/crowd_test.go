package login

import (
	"context"
	"encoding/xml"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/rig"
	"github.com/sessionctl/sessionctl/daemon/internal/web"
)

// What Crowd says in several tests.
const (
	crowdConfig  = "GET rest/usermanagement/1/config/cookie"
	crowdSession = "POST rest/usermanagement/1/session"
	crowdAsks    = `WWW-Authenticate: Basic realm="Crowd REST Service"`

	cookieSettings = `{"domain":".corp.example","name":"crowd.token_key","secure":false}`
	tokenXML       = `<?xml version="1.0" encoding="UTF-8" standalone="yes"?><session expand="user"><token>CANARY-token</token><user name="alice"><active>true</active></user></session>`
	noUserXML      = `<error><reason>USER_NOT_FOUND</reason><message>CANARY-body</message></error>`
)

// ssoToken returns the value of the token's cookie for a URL, "" if there is none.
func ssoToken(t *testing.T, x *web.Exchange, u string) string {
	t.Helper()
	for _, c := range x.Jar().Cookies(mustURL(t, x, u), time.Now()) {
		if c.Name == "crowd.token_key" {
			return c.Value.Reveal()
		}
	}
	return ""
}

// onlyToken fails the test if there is another cookie in the jar.
func onlyToken(t *testing.T, what string, x *web.Exchange) {
	t.Helper()
	for pair := range cookieValues(x.Jar()) {
		if !strings.HasPrefix(pair, "crowd.token_key=") {
			t.Errorf("%s: %s is in the session", what, pair)
		}
	}
}

func restCrowd() *crowd {
	return &crowd{Via: viaREST, Token: "crowd.token_key", User: "alice", proof: proof{ProbeURL: "me", IdentityJSON: "name"}}
}

// TestCrowdREST: what Crowd says to an application, and what that means for its
// password.
func TestCrowdREST(t *testing.T) {
	stranger := says(401, page, crowdAsks, "Set-Cookie: JSESSIONID=CANARY-other; Path=/app")
	settings, made := says(200, cookieSettings, "Set-Cookie: JSESSIONID=CANARY-other; Path=/app"), says(201, tokenXML)
	good, unseen := lent{taken: true, accepted: true}, lent{taken: true, back: true}
	all := []string{crowdConfig, crowdConfig, crowdSession}
	for name, c := range map[string]struct {
		stranger, settings, session http.HandlerFunc
		code                        api.Code
		lent                        lent
		says                        string
	}{
		"good":                      {stranger, settings, made, "", good, ""},
		"no domain":                 {stranger, says(200, `{"domain":"","name":"crowd.token_key","secure":false}`), made, "", good, ""},
		"null domain":               {stranger, says(200, `{"domain":null,"name":"crowd.token_key"}`), made, "", good, ""},
		"nobody asks":               {settings, nil, nil, api.UnexpectedStatus, lent{}, "answers 200, not as"},
		"not Crowd":                 {says(404, page), nil, nil, api.UnexpectedStatus, lent{}, "/crowd"},
		"another challenge":         {says(401, page, challenge), nil, nil, api.UnexpectedStatus, lent{}, "answers 401"},
		"elsewhere":                 {says(302, page, "Location: /app/CANARY"), nil, nil, api.UnexpectedStatus, lent{}, "answers 302"},
		"foreign":                   {says(302, page, foreignLocation), nil, nil, api.SSORedirect, lent{}, "login.foreign.example"},
		"https":                     {toHTTPS, nil, nil, api.InsecureRedirect, lent{}, ""},
		"away":                      {says(503, page), nil, nil, api.Maintenance, lent{}, ""},
		"limited":                   {says(429, page), nil, nil, api.RateLimited, lent{}, ""},
		"broken":                    {says(500, page), nil, nil, api.Server5xx, lent{}, ""},
		"wrong":                     {stranger, stranger, nil, api.BadCredentials, lent{taken: true}, "the application build"},
		"wrong, no challenge":       {stranger, says(401, page), nil, api.BadCredentials, lent{taken: true}, "the application build"},
		"address":                   {stranger, says(403, page), nil, api.Forbidden, unseen, "remote addresses"},
		"away now":                  {stranger, says(503, page), nil, api.Maintenance, unseen, ""},
		"limited now":               {stranger, says(429, page), nil, api.RateLimited, unseen, ""},
		"broken now":                {stranger, says(500, page), nil, api.Server5xx, lent{taken: true}, ""},
		"foreign now":               {stranger, says(302, page, foreignLocation), nil, api.SSORedirect, lent{taken: true}, ""},
		"a page":                    {stranger, says(200, page), nil, api.UnexpectedStatus, lent{taken: true}, "not as Crowd's"},
		"no settings":               {stranger, says(200, `{}`), nil, api.UnexpectedStatus, lent{taken: true}, "not as Crowd's"},
		"a name that is none":       {stranger, says(200, `{"name":"a; Domain=b"}`), nil, api.UnexpectedStatus, lent{taken: true}, "not as Crowd's"},
		"a domain that is none":     {stranger, says(200, `{"name":"crowd.token_key","domain":"a; CANARY"}`), nil, api.UnexpectedStatus, lent{taken: true}, "not as Crowd's"},
		"404 now":                   {stranger, says(404, page), nil, api.UnexpectedStatus, lent{taken: true}, "answers 404"},
		"another name":              {stranger, says(200, `{"name":"CANARY-password"}`), nil, api.ConfigInvalid, good, "set token to it"},
		"a long name":               {stranger, says(200, `{"name":"`+strings.Repeat("CANARY", 1<<16)+`"}`), nil, api.ConfigInvalid, good, "set token to it"},
		"secure, and http":          {stranger, says(200, `{"name":"crowd.token_key","secure":true}`), nil, api.ConfigInvalid, good, "Secure SSO cookie"},
		"another domain":            {stranger, says(200, `{"name":"crowd.token_key","domain":"CANARY-password.example"}`), made, api.ConfigInvalid, good, "Crowd's SSO domain is none"},
		"a public domain":           {stranger, says(200, `{"name":"crowd.token_key","domain":"example"}`), made, api.ConfigInvalid, good, "Crowd's SSO domain is none"},
		"no such user":              {stranger, settings, says(400, noUserXML), api.Forbidden, good, `"alice": USER_NOT_FOUND`},
		"no right":                  {stranger, settings, says(403, noUserXML), api.Forbidden, good, `"alice": USER_NOT_FOUND`},
		"no right, a page":          {stranger, settings, says(403, page), api.Forbidden, good, `no token for "alice"`},
		"a reason like the secret":  {stranger, settings, says(400, `<error><reason>CANARY</reason></error>`), api.Forbidden, good, `no token for "alice"`},
		"a reason that is none":     {stranger, settings, says(400, `<error><reason>CANARY-reason</reason></error>`), api.Forbidden, good, `no token for "alice"`},
		"no token, 401":             {stranger, settings, stranger, api.UnexpectedStatus, good, "answers 401"},
		"no token, 200":             {stranger, settings, says(200, tokenXML), api.UnexpectedStatus, good, "answers 200"},
		"no token, 503":             {stranger, settings, says(503, page), api.Maintenance, good, ""},
		"no token, foreign":         {stranger, settings, says(302, page, foreignLocation), api.SSORedirect, good, ""},
		"no token, a page":          {stranger, settings, says(201, page), api.UnexpectedStatus, good, "answers 201"},
		"no token, JSON":            {stranger, settings, says(201, `{"token":"CANARY"}`), api.UnexpectedStatus, good, "answers 201"},
		"no token, empty":           {stranger, settings, says(201, `<session><token/></session>`), api.UnexpectedStatus, good, "answers 201"},
		"no token, another element": {stranger, settings, says(201, `<user><token>CANARY</token></user>`), api.UnexpectedStatus, good, "answers 201"},
		"a token with attributes":   {stranger, settings, says(201, `<session><token>CANARY; Domain=b</token></session>`), api.UnexpectedStatus, good, "answers 201"},
		"a token on two lines":      {stranger, settings, says(201, "<session><token>CANARY\r\nb</token></session>"), api.UnexpectedStatus, good, "answers 201"},
	} {
		a := &answers{t: t, say: map[string]http.HandlerFunc{
			crowdConfig:  tokens(c.settings, c.stranger),
			crowdSession: c.session,
		}}
		x := exchangeWith(t, a, new(web.Jar), nil)
		p := new(lent)
		err := restCrowd().Login(t.Context(), x, p)
		quiet(t, name, err)
		want := all
		switch {
		case c.settings == nil:
			want = all[:1]
		case c.session == nil:
			want = all[:2]
		}
		if api.CodeOf(err) != c.code || *p != c.lent || !slices.Equal(a.asked, want) {
			t.Errorf("%s: %v, want %q; asked %q, want %q; the password: %+v", name, err, c.code, a.asked, want, *p)
		}
		if err != nil && !strings.Contains(err.Error()+api.AsError(err).Remedy, c.says) {
			t.Errorf("%s: %v, want %q", name, err, c.says)
		}
		if err != nil {
			continue
		}
		onlyToken(t, name, x)
		if got := ssoToken(t, x, "http://wiki.corp.example/x"); got != "CANARY-token" {
			t.Errorf("%s: another host of the domain gets %q", name, got)
		}
	}
	// The configuration's domain counts more than Crowd's.
	a := &answers{t: t, say: map[string]http.HandlerFunc{
		crowdConfig:  tokens(says(200, `{"name":"crowd.token_key","domain":"other.example"}`), stranger),
		crowdSession: made,
	}}
	c, x := restCrowd(), exchangeWith(t, a, new(web.Jar), nil)
	c.Domain = ".corp.example"
	if err := c.Login(t.Context(), x, new(lent)); err != nil || ssoToken(t, x, "http://wiki.corp.example/") == "" {
		t.Errorf("domain: %v", err)
	}
	// A password that is not lent is not sent, nor one that Basic cannot say.
	latched := &api.Error{Code: api.Latched, Detail: "x", Remedy: "x"}
	for _, c := range []struct {
		p    Password
		code api.Code
	}{{&lent{err: latched}, api.Latched}, {&account{offered{text: "CANARY-password"}, "a:b"}, api.ConfigInvalid}} {
		x := exchangeWith(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Authorization") != "" || r.Method != http.MethodGet {
				t.Errorf("%s %s goes out", r.Method, r.URL)
			}
			stranger(w, r)
		}), new(web.Jar), nil)
		if err := restCrowd().Login(t.Context(), x, c.p); api.CodeOf(err) != c.code {
			t.Errorf("%v, want %s", err, c.code)
		}
	}
}

// TestCrowdRESTRequest: what Crowd gets, and nobody else.
func TestCrowdRESTRequest(t *testing.T) {
	const password = "CANARY-:\"<&>\u00fc"
	for _, user := range []string{"alice", `CORP\<b>&"'ü ]]>`} {
		for _, address := range []string{"", "192.0.2.7", "2001:db8::7"} {
			var posted []byte
			a := &answers{t: t, say: map[string]http.HandlerFunc{
				crowdConfig: func(w http.ResponseWriter, r *http.Request) {
					if name, pw, ok := r.BasicAuth(); ok && (name != "build" || pw != password) {
						t.Errorf("Crowd gets %q, %q", name, pw)
					} else if !ok {
						says(401, page, crowdAsks)(w, r)
						return
					}
					if r.Header.Get("Accept") != "application/json" {
						t.Errorf("Accept %q", r.Header.Get("Accept"))
					}
					says(200, cookieSettings)(w, r)
				},
				crowdSession: func(w http.ResponseWriter, r *http.Request) {
					if name, pw, _ := r.BasicAuth(); name != "build" || pw != password || r.URL.RawQuery != "validate-password=false" ||
						r.Header.Get("Content-Type") != "application/xml" || r.Header.Get("Accept") != "application/xml" || r.Header.Get("X-Atlassian-Token") != "no-check" {
						t.Errorf("Crowd gets %s %v", r.URL, r.Header)
					}
					posted, _ = io.ReadAll(r.Body)
					says(201, tokenXML)(w, r)
				},
				"GET me": func(w http.ResponseWriter, r *http.Request) {
					if r.Header.Get("Authorization") != "" || r.Header.Get("Cookie") != "crowd.token_key=CANARY-token" {
						t.Errorf("the application gets %v", r.Header)
					}
					says(200, me, cookie)(w, r)
				},
			}}
			c := restCrowd()
			c.User, c.RemoteAddress = user, address
			x := exchangeWith(t, a, new(web.Jar), nil)
			if err := c.Login(t.Context(), x, &account{offered{text: password}, "build"}); err != nil {
				t.Fatal(err)
			}
			var got struct {
				XMLName  xml.Name `xml:"authentication-context"`
				Username string   `xml:"username"`
				Password *string  `xml:"password"`
				Factors  struct {
					Factor []validationFactor `xml:"validation-factor"`
				} `xml:"validation-factors"`
			}
			var factors []validationFactor
			if address != "" {
				factors = []validationFactor{{"remote_address", address}}
			}
			if err := xml.Unmarshal(posted, &got); err != nil || got.Username != user || got.Password == nil || *got.Password != "" || !slices.Equal(got.Factors.Factor, factors) {
				t.Errorf("Crowd gets %s (%v)", posted, err)
			}
			id, err := c.Probe(t.Context(), x)
			if err != nil || id.Name != "build" {
				t.Errorf("%+v %v", id, err)
			}
			onlyToken(t, "proof", x)
		}
	}
}

// TestCrowdCookie: for which hosts a token is that did not come as a cookie.
func TestCrowdCookie(t *testing.T) {
	now := time.Now()
	for _, c := range []struct{ url, domain, hosts, others string }{
		{"https://crowd.corp.example/crowd", "", "crowd.corp.example wiki.corp.example corp.example a.b.corp.example", "example corp2.example"},
		{"https://crowd.corp.example:8443/crowd", "", "wiki.corp.example", ""},
		{"https://crowd.corp.example/crowd", ".corp.example", "crowd.corp.example wiki.corp.example", "example"},
		{"https://crowd.sso.corp.example/", "corp.example", "wiki.corp.example crowd.sso.corp.example", "example"},
		{"https://crowd.sso.corp.example/", "", "wiki.sso.corp.example", "wiki.corp.example"},
		{"https://corp.example/", "", "corp.example", "wiki.corp.example example"},
		{"https://crowd.co.uk/", "", "crowd.co.uk", "wiki.co.uk"},
		{"https://localhost/", "", "localhost", "wiki.localhost"},
		{"https://192.0.2.7/", "", "192.0.2.7", "192.0.2.8"},
		{"https://[2001:db8::7]/", "", "[2001:db8::7]", "[2001:db8::8]"},
		{"https://crowd.corp.example/", "other.example", "", ""},
		{"https://crowd.corp.example/", "example", "", ""},
		{"https://crowd.corp.example/", "corp.example; Path=/x", "", ""},
		{"https://crowd.corp.example/", "wiki.corp.example", "", ""},
	} {
		u, err := url.Parse(c.url)
		if err != nil {
			t.Fatal(err)
		}
		j := (&crowd{Token: "crowd.token_key"}).cookie(u, "CANARY-token", c.domain, now)
		if (j == nil) != (c.hosts == "") {
			t.Errorf("%s, %q: %v", c.url, c.domain, j)
		}
		if j == nil {
			continue
		}
		for _, scheme := range []string{"https", "http"} {
			for _, host := range slices.Concat(strings.Fields(c.hosts), strings.Fields(c.others)) {
				want := ""
				if slices.Contains(strings.Fields(c.hosts), host) && scheme == "https" {
					want = "crowd.token_key=CANARY-token"
				}
				if got := j.Header(&url.URL{Scheme: scheme, Host: host, Path: "/any/where"}, now); got != want {
					t.Errorf("%s, %q: %s://%s gets %q", c.url, c.domain, scheme, host, got)
				}
			}
		}
		line := string(j.Lines()[0].Line)
		if !strings.Contains(line, "; HttpOnly") || !strings.Contains(line, "; Secure") || strings.Contains(line, "Max-Age") || j.Len() != 1 {
			t.Errorf("%s: %s", c.url, line)
		}
	}
	u := &url.URL{Scheme: "http", Host: "crowd.corp.example:8095"}
	if j := (&crowd{Token: "crowd.token_key"}).cookie(u, "CANARY-token", "", now); j == nil || j.Header(&url.URL{Scheme: "http", Host: "wiki.corp.example"}, now) == "" {
		t.Error("http: no cookie")
	}
}

// TestCrowdAdopt: a token that a browser shows becomes the provider's session.
func TestCrowdAdopt(t *testing.T) {
	now := time.Now()
	member, crowdURL := &url.URL{Scheme: "https", Host: "wiki.corp.example", Path: "/wiki"}, &url.URL{Scheme: "https", Host: "jira.corp.example", Path: "/jira"}
	for header, want := range map[string]string{
		"crowd.token_key=CANARY-token":                                  "crowd.token_key=CANARY-token",
		"JSESSIONID=CANARY-s; crowd.token_key=CANARY==; a=b":            "crowd.token_key=CANARY==",
		"JSESSIONID=CANARY-s":                                           "",
		"crowd.token_key=":                                              "",
		`crowd.token_key=""`:                                            "",
		"Crowd.token_key=CANARY-token":                                  "",
		"xcrowd.token_key=CANARY-token; crowd.token_key2=CANARY-token2": "",
	} {
		brought, err := web.Adopt(member, []byte(header), now)
		if err != nil {
			t.Fatal(err)
		}
		var s Sharer = &crowd{Via: "jira", Token: "crowd.token_key"}
		j := s.Adopt(brought, crowdURL, now)
		if want == "" {
			if j != nil {
				t.Errorf("%q: adopted", header)
			}
			continue
		}
		if j == nil || j.Len() != 1 {
			t.Errorf("%q: %v", header, j)
			continue
		}
		for _, u := range []*url.URL{member, crowdURL, {Scheme: "https", Host: "bamboo.corp.example"}} {
			if got := j.Header(u, now); got != want {
				t.Errorf("%q: %s gets %q", header, u, got)
			}
		}
		if got := j.Header(&url.URL{Scheme: "http", Host: "wiki.corp.example"}, now); got != "" {
			t.Errorf("%q: goes over http", header)
		}
		if got := s.Shared(j); !got.Equal(j) {
			t.Errorf("%q: shared is %v", header, got.Lines())
		}
	}
	var j web.Jar
	j.Set(crowdURL, []string{"JSESSIONID=CANARY-s", "crowd.token_key=CANARY-token; Domain=corp.example; Path=/"}, now)
	if got := (&crowd{Token: "crowd.token_key"}).Shared(&j).Header(member, now); got != "crowd.token_key=CANARY-token" {
		t.Errorf("shared: %q", got)
	}
	for _, c := range []*crowd{{}, restCrowd()} {
		text := c.Refused()
		for _, word := range []string{"SSO domain", "Secure SSO cookie", "Require consistent client IP address", "forwarded_for", "Trusted proxy"} {
			if !strings.Contains(text, word) {
				t.Errorf("the remedy does not name %s: %s", word, text)
			}
		}
		if strings.Contains(text, "remote_address") != (c.Via == viaREST) {
			t.Errorf("via %q: %s", c.Via, text)
		}
	}
}

func TestCrowdCheck(t *testing.T) {
	named := proof{ProbeURL: "https://wiki.corp.example/me", IdentityJSON: "name"}
	o := web.Options{Base: &url.URL{Scheme: "https", Host: "crowd.corp.example", Path: "/crowd"},
		LoginHosts: []web.Origin{{Scheme: "https", Host: "wiki.corp.example", Port: "443"}}}
	for name, c := range map[string]struct {
		crowd    crowd
		identity string
		want     string
	}{
		"console":                {crowd{proof: named}, "", ""},
		"console, its login":     {crowd{LogoutURL: "x", proof: proof{LoginURL: "in", ProbeURL: "me", IdentityJSON: "name"}}, "", ""},
		"console, unproven":      {crowd{proof: proof{ProbeURL: "me"}}, Unproven, ""},
		"jira":                   {crowd{Via: "jira"}, "", ""},
		"jira, its login":        {crowd{Via: "jira", proof: proof{LoginURL: "in"}}, "", ""},
		"rest":                   {crowd{Via: "rest", User: "alice", RemoteAddress: "192.0.2.7", Domain: ".corp.example", LogoutURL: "https://wiki.corp.example/logout.action", proof: named}, "", ""},
		"no such via":            {crowd{Via: "spnego"}, "", `via = "spnego"`},
		"itself":                 {crowd{Via: "crowd"}, "", `via = "crowd"`},
		"token":                  {crowd{Token: "a=b", proof: named}, "", "token"},
		"token, none":            {crowd{Token: "-", proof: named}, "", "token"},
		"no proof":               {crowd{}, "", "probe_url is missing"},
		"no proof, rest":         {crowd{Via: "rest", User: "alice", proof: proof{IdentityJSON: "name"}}, "", "probe_url is missing"},
		"no name":                {crowd{proof: proof{ProbeURL: "me"}}, "", "identity_json"},
		"no name, rest":          {crowd{Via: "rest", User: "alice", proof: proof{ProbeURL: "me"}}, "", "identity_json"},
		"jira, unproven":         {crowd{Via: "jira"}, Unproven, "always names the user"},
		"jira, its proof":        {crowd{Via: "jira", proof: proof{ProbeURL: "me"}}, "", `probe_url is not for via = "jira"`},
		"jira, a name":           {crowd{Via: "jira", proof: proof{IdentityJSON: "name"}}, "", `identity_… is not for via = "jira"`},
		"jira, a logout":         {crowd{Via: "jira", LogoutURL: "x"}, "", "logout_url"},
		"jira, foreign":          {crowd{Via: "jira", proof: proof{LoginURL: "https://sso.example/"}}, "", "login_url"},
		"jira, a user":           {crowd{Via: "jira", User: "alice"}, "", "user and remote_address"},
		"console, an address":    {crowd{RemoteAddress: "192.0.2.7", proof: named}, "", "user and remote_address"},
		"rest, no user":          {crowd{Via: "rest", proof: named}, "", "user is missing"},
		"rest, a page":           {crowd{Via: "rest", User: "alice", proof: proof{LoginURL: "x", ProbeURL: "me", IdentityJSON: "name"}}, "", "login_url"},
		"rest, no address":       {crowd{Via: "rest", User: "alice", RemoteAddress: "here", proof: named}, "", "remote_address"},
		"foreign proof":          {crowd{proof: proof{ProbeURL: "https://sso.example/", IdentityJSON: "name"}}, "", "probe_url"},
		"foreign logout":         {crowd{LogoutURL: "https://sso.example/", proof: named}, "", "logout_url"},
		"another domain":         {crowd{Domain: "other.example", proof: named}, "", "domain"},
		"public domain":          {crowd{Via: "jira", Domain: "example"}, "", "domain"},
		"another domain, rest":   {crowd{Via: "rest", User: "alice", Domain: "crowd.corp.example", proof: named}, "", "wiki.corp.example"},
		"domain with attributes": {crowd{Domain: "corp.example; Path=/x", proof: named}, "", "domain"},
	} {
		switch c.crowd.Token {
		case "":
			c.crowd.Token = "crowd.token_key"
		case "-":
			c.crowd.Token = ""
		}
		if err := c.crowd.Check(o, c.identity); (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	for via, want := range map[string][]Means{"": {Secret}, "rest": {Secret}, "jira": {Ticket, Secret}, "nobody": {Ticket, Secret}} {
		if got := (&crowd{Via: via}).Takes(); !slices.Equal(got, want) {
			t.Errorf("via %q: takes %q", via, got)
		}
	}
	for via, want := range map[string]string{"": "console/login.action", "rest": "", "jira": "login.jsp"} {
		if got := (&crowd{Via: via}).LoginPage(); got != want {
			t.Errorf("via %q: login page %q", via, got)
		}
	}
	var i Impersonator = restCrowd()
	if i.Impersonates() != "alice" || New("crowd").(Impersonator).Impersonates() != "" {
		t.Error("impersonates the wrong one")
	}
}

// TestCrowdSession: of what a login and a proof set, the token alone stays.
func TestCrowdSession(t *testing.T) {
	const domainToken = "Set-Cookie: crowd.token_key=CANARY-token; Path=/; Domain=corp.example; HttpOnly"
	for name, c := range map[string]struct {
		fields []string
		code   api.Code
	}{
		"token":             {[]string{cookie, domainToken}, ""},
		"no token":          {[]string{cookie}, api.NoSessionCookie},
		"empty":             {[]string{cookie, "Set-Cookie: crowd.token_key=; Path=/"}, api.NoSessionCookie},
		"quoted, empty":     {[]string{cookie, `Set-Cookie: crowd.token_key=""; Path=/`}, api.NoSessionCookie},
		"taken away":        {[]string{cookie, domainToken, domainToken + "; Max-Age=0"}, api.NoSessionCookie},
		"with a balancer's": {[]string{cookie, "Set-Cookie: AWSALB=CANARY-lb; Path=/", domainToken}, ""},
	} {
		a := &answers{t: t, say: map[string]http.HandlerFunc{attempt: says(200, session, c.fields...), question: func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Cookie") == "" {
				says(401, text, nobody, request)(w, r)
				return
			}
			if r.Header.Get("Cookie") != "crowd.token_key=CANARY-token" {
				t.Errorf("%s: the proof has %q", name, r.Header.Get("Cookie"))
			}
			says(200, me, user, "Set-Cookie: JSESSIONID=CANARY-other; Path=/app", "Set-Cookie: atlassian.xsrf.token=CANARY_lin; Path=/app")(w, r)
		}}}
		x := exchangeWith(t, a, new(web.Jar), nil)
		d := &crowd{Via: "jira", Token: "crowd.token_key"}
		err := d.Login(t.Context(), x, new(lent))
		quiet(t, name, err)
		if api.CodeOf(err) != c.code {
			t.Errorf("%s: %v, want %q", name, err, c.code)
		}
		if err != nil {
			if !strings.Contains(err.Error(), "crowd.token_key") {
				t.Errorf("%s: %v does not name the cookie", name, err)
			}
			continue
		}
		for range 2 {
			onlyToken(t, name, x)
			if id, err := d.Probe(t.Context(), x); err != nil || id.Name != "build" {
				t.Errorf("%s: %+v %v", name, id, err)
			}
		}
		onlyToken(t, name, x)
	}
	// What the application says counts.
	a := &answers{t: t, say: map[string]http.HandlerFunc{question: stranger, attempt: says(401, text, failed)}}
	if err := (&crowd{Via: "jira", Token: "crowd.token_key"}).Login(t.Context(), exchangeWith(t, a, new(web.Jar), nil), new(lent)); api.CodeOf(err) != api.BadCredentials {
		t.Error(err)
	}
	// A page of Crowd's without a form: there are other ways.
	a = &answers{t: t, say: map[string]http.HandlerFunc{"GET console/login.action": says(200, page)}}
	p := new(lent)
	err := New("crowd").Login(t.Context(), exchangeWith(t, a, new(web.Jar), nil), p)
	if quiet(t, "console", err); api.CodeOf(err) != api.UnexpectedStatus || !strings.Contains(api.AsError(err).Remedy, `via = "jira"`) || p.taken {
		t.Errorf("console: %+v; %+v", api.AsError(err), p)
	}
}

// TestCrowdLogout: a logout has ended the token, or says that it has not.
func TestCrowdLogout(t *testing.T) {
	for name, c := range map[string]struct {
		crowd  *crowd
		logout string // the request that ends the token
		answer http.HandlerFunc
		ends   bool
		code   api.Code
		says   string
	}{
		"jira":               {&crowd{Via: "jira"}, logout, says(204, "", "Set-Cookie: crowd.token_key=; Path=/; Domain=corp.example; Max-Age=0"), true, "", ""},
		"jira, in vain":      {&crowd{Via: "jira"}, logout, says(204, "", "Set-Cookie: crowd.token_key=; Path=/; Domain=corp.example; Max-Age=0"), false, api.UnexpectedStatus, "has not ended"},
		"jira, refused":      {&crowd{Via: "jira"}, logout, says(403, forgery, user), false, api.CSRF403, ""},
		"console":            {&crowd{}, "GET console/logoff.action", says(302, "", foreignLocation), true, "", ""},
		"console, elsewhere": {&crowd{LogoutURL: "bye"}, "GET bye", says(200, page), true, "", ""},
		"console, in vain":   {&crowd{}, "GET console/logoff.action", says(404, page), false, api.UnexpectedStatus, "logout_url"},
		"console, away":      {&crowd{}, "GET console/logoff.action", says(503, page), false, api.Maintenance, ""},
		"rest":               {&crowd{Via: "rest", LogoutURL: "wiki/logout.action"}, "GET wiki/logout.action", says(200, page), true, "", ""},
		"rest, no way":       {&crowd{Via: "rest"}, "", nil, false, api.ConfigInvalid, "logout_url"},
	} {
		c.crowd.Token = "crowd.token_key"
		whoami := question
		if c.crowd.Via != "jira" {
			whoami, c.crowd.proof = "GET me", proof{ProbeURL: "me", IdentityJSON: "name"}
		}
		alive := true
		a := &answers{t: t, say: map[string]http.HandlerFunc{
			whoami: func(w http.ResponseWriter, r *http.Request) {
				if !alive || !strings.Contains(r.Header.Get("Cookie"), "crowd.token_key=CANARY-token") {
					says(401, text, nobody, request)(w, r)
					return
				}
				says(200, me, user, "Set-Cookie: JSESSIONID=CANARY-session; Path=/app")(w, r)
			},
			c.logout: func(w http.ResponseWriter, r *http.Request) {
				if got := r.Header.Get("Cookie"); !strings.Contains(got, "JSESSIONID=CANARY-session") || !strings.Contains(got, "crowd.token_key=CANARY-token") {
					t.Errorf("%s: the logout has %q", name, got)
				}
				alive = !c.ends
				c.answer(w, r)
			},
		}}
		j := new(web.Jar)
		x := exchangeWith(t, a, j, nil)
		j.Set(mustURL(t, x, ""), []string{"crowd.token_key=CANARY-token; Path=/; Domain=corp.example"}, time.Now())
		err := c.crowd.Logout(t.Context(), x)
		quiet(t, name, err)
		if api.CodeOf(err) != c.code || err != nil && !strings.Contains(err.Error()+api.AsError(err).Remedy, c.says) {
			t.Errorf("%s: %v, want %q", name, err, c.code)
		}
		if c.logout != "" && !slices.Contains(a.asked, c.logout) {
			t.Errorf("%s: asked %q", name, a.asked)
		}
		// A token that is dead needs no logout.
		if c.ends {
			a.asked = nil
			if err := c.crowd.Logout(t.Context(), x); err != nil || !slices.Equal(a.asked, []string{whoami}) {
				t.Errorf("%s, again: %v; asked %q", name, err, a.asked)
			}
		}
	}
}

// TestCrowdLogoutOutage: an outage says nothing of the token.
func TestCrowdLogoutOutage(t *testing.T) {
	for _, down := range []int{1, 2} { // the first proof, or that after the logout
		proofs := 0
		a := &answers{t: t, say: map[string]http.HandlerFunc{logout: says(204, ""), question: func(w http.ResponseWriter, r *http.Request) {
			if proofs++; proofs == down {
				says(503, page)(w, r)
			} else {
				says(200, me, user)(w, r)
			}
		}}}
		err := (&crowd{Via: "jira", Token: "crowd.token_key"}).Logout(t.Context(), exchangeWith(t, a, new(web.Jar), nil))
		if quiet(t, "logout", err); api.CodeOf(err) != api.Maintenance || slices.Contains(a.asked, logout) != (down == 2) {
			t.Errorf("proof %d: %v; asked %q", down, err, a.asked)
		}
	}
	if f, err := restCrowd().Detect(t.Context(), nil); f != (Findings{}) || err != nil {
		t.Errorf("via rest: %+v %v", f, err)
	}
}

// crowdRESTSite is Crowd's REST API, which crowd_test.go has more of, with an
// application beside it.
func crowdRESTSite(b behaviour, foreign string) http.HandlerFunc {
	negotiate := negotiateSite(b, foreign)
	return func(w http.ResponseWriter, r *http.Request) {
		_, _, named := r.BasicAuth()
		switch {
		case b == down, b == limited, r.URL.Path == "/app/me":
			negotiate(w, r)
		case b == toForeignHost:
			http.Redirect(w, r, foreign, http.StatusFound)
		case b == unchallenged:
			w.Write([]byte("who are you?"))
		case !named, b == refused:
			w.Header().Set("WWW-Authenticate", `Basic realm="Crowd REST Service"`)
			w.WriteHeader(http.StatusUnauthorized)
		case b == forbidden:
			w.WriteHeader(http.StatusForbidden)
		case r.Method == http.MethodGet:
			w.Write([]byte(`{"name":"s"}`))
		default:
			w.WriteHeader(http.StatusCreated)
			if b != keepsNothing {
				w.Write([]byte(`<session><token>CANARY-token</token></session>`))
			}
		}
	}
}

// crowdExchange starts a dialogue as a host that all names lead to.
func crowdExchange(t *testing.T, base string, jar *web.Jar) *web.Exchange {
	t.Helper()
	u, err := url.Parse(base)
	if err != nil {
		t.Fatal(err)
	}
	x := web.NewExchange(web.Options{Base: u, InsecureHTTP: true, Dial: toLoopback}, jar)
	t.Cleanup(x.Close)
	return x
}

// toLoopback dials 127.0.0.1, whatever the name.
func toLoopback(ctx context.Context, network, address string) (net.Conn, error) {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	return new(net.Dialer).DialContext(ctx, network, net.JoinHostPort("127.0.0.1", port))
}

// TestCrowdRig logs in at a Crowd by its console, and by its REST API.
func TestCrowdRig(t *testing.T) {
	c, err := rig.StartCrowd(rig.CrowdOptions{Host: "crowd.corp.localhost", Domain: ".corp.localhost", SameIP: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Stop)
	c.AddUser("alice", "CANARY-right")
	c.AddApplication("build", "CANARY-application")
	c.AddApplication("elsewhere", "CANARY-application", "192.0.2.7")
	// The console's page of the user's own is the proof.
	profile := proof{ProbeURL: "console/user/viewprofile.action", IdentityRegexp: `id="profile"[^>]*>([^<]*)<`}
	for name, k := range map[string]struct {
		driver         crowd
		user, password string
		code           api.Code
		want           lent
		probe          api.Code
	}{
		"console":               {crowd{}, "alice", "CANARY-right", "", lent{taken: true}, ""},
		"console, wrong":        {crowd{}, "alice", "CANARY-wrong", api.BadCredentials, lent{taken: true}, ""},
		"rest":                  {crowd{Via: "rest", User: "alice", RemoteAddress: "127.0.0.1"}, "build", "CANARY-application", "", lent{taken: true, accepted: true}, ""},
		"rest, another address": {crowd{Via: "rest", User: "alice", RemoteAddress: "192.0.2.7"}, "build", "CANARY-application", "", lent{taken: true, accepted: true}, api.Expired},
		"rest, wrong":           {crowd{Via: "rest", User: "alice"}, "build", "CANARY-wrong", api.BadCredentials, lent{taken: true}, ""},
		"rest, no application":  {crowd{Via: "rest", User: "alice"}, "nobody", "CANARY-application", api.BadCredentials, lent{taken: true}, ""},
		"rest, no user":         {crowd{Via: "rest", User: "bob"}, "build", "CANARY-application", api.Forbidden, lent{taken: true, accepted: true}, ""},
		"rest, from elsewhere":  {crowd{Via: "rest", User: "alice"}, "elsewhere", "CANARY-application", api.Forbidden, lent{taken: true, back: true}, ""},
	} {
		d := k.driver
		d.Token, d.proof = "crowd.token_key", profile
		x := crowdExchange(t, c.URL(), new(web.Jar))
		p := &account{offered{text: k.password}, k.user}
		err := d.Login(t.Context(), x, p)
		quiet(t, name, err)
		if api.CodeOf(err) != k.code || p.lent != k.want {
			t.Errorf("%s: %v, want %q; the password: %+v", name, err, k.code, p.lent)
		}
		if err != nil {
			continue
		}
		onlyToken(t, name, x)
		id, err := d.Probe(t.Context(), x)
		if quiet(t, name, err); api.CodeOf(err) != k.probe || err == nil && id.Name != "alice" {
			t.Errorf("%s: %+v %v, want %q", name, id, err, k.probe)
		}
		if err != nil {
			continue
		}
		d.LogoutURL = "console/logoff.action"
		token := ssoToken(t, x, "")
		if _, alive := c.Validate(token, rig.Factors{RemoteAddress: "127.0.0.1"}); !alive {
			t.Errorf("%s: the token is dead", name)
		}
		if err := d.Logout(t.Context(), x); err != nil {
			t.Errorf("%s: logout: %v", name, err)
		}
		if _, alive := c.Validate(token, rig.Factors{RemoteAddress: "127.0.0.1"}); alive {
			t.Errorf("%s: the token lives", name)
		}
	}
	c.KillToken("alice")
	c.Fail(http.StatusServiceUnavailable)
	for _, via := range []string{"", "rest"} {
		d, p := &crowd{Via: via, User: "alice", Token: "crowd.token_key", proof: profile}, new(lent)
		if err := d.Login(t.Context(), crowdExchange(t, c.URL(), new(web.Jar)), p); api.CodeOf(err) != api.Maintenance || p.taken {
			t.Errorf("via %q, away: %v; %+v", via, err, p)
		}
	}
}

// TestCrowdApplications logs in via each application, in each of its ways, and goes
// on to another one with the token alone.
func TestCrowdApplications(t *testing.T) {
	for _, c := range []struct {
		kind    string
		start   func(rig.AtlassianOptions) (*rig.Atlassian, error)
		twoStep bool
		own     proof
	}{
		{"jira", rig.StartJira, false, proof{}},
		{"jira", rig.StartJira, true, proof{}},
		{"confluence", rig.StartConfluence, false, proof{}},
		{"confluence", rig.StartConfluence, true, proof{}},
		{"bitbucket", rig.StartBitbucket, false, proof{}},
		{"bitbucket", rig.StartBitbucket, true, proof{}},
		{"bamboo", rig.StartBamboo, false, proof{}},
		{"bamboo", rig.StartBamboo, true, proof{}},
		{"crucible", rig.StartCrucible, false, proof{ProbeURL: "profile/x", IdentityRegexp: `id="headerUserDetails"><a href="[^"]*">([^<]*)</a>`}},
	} {
		name := fmt.Sprintf("%s, two steps %v", c.kind, c.twoStep)
		sso, err := rig.StartCrowd(rig.CrowdOptions{Host: "crowd.corp.localhost", Domain: ".corp.localhost", SameIP: true})
		if err != nil {
			t.Fatal(err)
		}
		sso.AddUser("alice", "CANARY-right")
		first, err := c.start(rig.AtlassianOptions{Host: "first.corp.localhost", ContextPath: "/app", TwoStep: c.twoStep, NoRestLogin: c.twoStep, Crowd: sso})
		if err != nil {
			t.Fatal(err)
		}
		second, err := rig.StartConfluence(rig.AtlassianOptions{Host: "second.corp.localhost", Crowd: sso})
		if err != nil {
			t.Fatal(err)
		}
		var d Detector = &crowd{Via: c.kind, Token: "crowd.token_key", proof: c.own}
		found, err := d.Detect(t.Context(), crowdExchange(t, first.URL(), new(web.Jar)))
		if err != nil || found.Product != c.kind {
			t.Fatalf("%s: %+v %v", name, found, err)
		}
		k := d.As(found).(*crowd)
		wrong := &account{offered{text: "CANARY-wrong"}, "alice"}
		if err := k.Login(t.Context(), crowdExchange(t, first.URL(), new(web.Jar)), wrong); api.CodeOf(err) != api.BadCredentials || wrong.back || wrong.accepted {
			t.Errorf("%s, wrong: %v; %+v", name, err, wrong.lent)
		}
		x := crowdExchange(t, first.URL(), new(web.Jar))
		if err := k.Login(t.Context(), x, &account{offered{text: "CANARY-right"}, "alice"}); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		onlyToken(t, name, x)
		token := ssoToken(t, x, "")
		if id, err := k.Probe(t.Context(), x); err != nil || id.Name != "alice" {
			t.Errorf("%s: %+v %v", name, id, err)
		}
		onlyToken(t, name, x)
		// A member: one request with the token begins its session, and one proves it.
		member := crowdExchange(t, second.URL(), k.Shared(x.Jar()))
		for range 2 {
			if id, err := New("confluence").Probe(t.Context(), member); err != nil || id.Name != "alice" {
				t.Errorf("%s, member: %+v %v", name, id, err)
			}
		}
		if n := second.Counts(); n.CrowdSessions != 1 || n.Begun() != 1 || member.Jar().Len() < 2 {
			t.Errorf("%s, member: %+v, %d cookies", name, n, member.Jar().Len())
		}
		if n := sso.Counts(); n.Logins != 1 || n.Refused != 1 {
			t.Errorf("%s: %+v", name, n)
		}
		// A browser's token does for a login.
		brought, err := web.Adopt(mustURL(t, member, ""), []byte("a=b; crowd.token_key="+token), time.Now())
		if err != nil {
			t.Fatal(err)
		}
		adopted := k.Adopt(brought, mustURL(t, x, ""), time.Now())
		if id, err := k.Probe(t.Context(), crowdExchange(t, first.URL(), adopted)); err != nil || id.Name != "alice" {
			t.Errorf("%s, adopted: %+v %v", name, id, err)
		}
		if err := k.Logout(t.Context(), x); err != nil {
			t.Errorf("%s: logout: %v", name, err)
		}
		if _, alive := sso.Validate(token, rig.Factors{RemoteAddress: "127.0.0.1"}); alive {
			t.Errorf("%s: the token lives", name)
		}
		if _, err := New("confluence").Probe(t.Context(), member); api.CodeOf(err) != api.Expired {
			t.Errorf("%s, member after the logout: %v", name, err)
		}
		for _, s := range []interface{ Stop() }{first, second, sso} {
			s.Stop()
		}
	}
}

// TestCrowdWithoutSSO: an application that logs in by itself gives no token.
func TestCrowdWithoutSSO(t *testing.T) {
	j, err := rig.StartJira(rig.AtlassianOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(j.Stop)
	j.AddUser("alice", "CANARY-right")
	p := &account{offered{text: "CANARY-right"}, "alice"}
	err = (&crowd{Via: "jira", Token: "crowd.token_key"}).Login(t.Context(), crowdExchange(t, j.URL(), new(web.Jar)), p)
	if quiet(t, "no SSO", err); api.CodeOf(err) != api.NoSessionCookie || !p.accepted {
		t.Errorf("%v; %+v", err, p.lent)
	}
}

// FuzzCrowd: whatever Crowd answers, what comes of it can stand in a cookie, and in a
// message.
func FuzzCrowd(f *testing.F) {
	for _, body := range []string{tokenXML, noUserXML, cookieSettings, `<session><token><![CDATA[a]]></token></session>`, `<!DOCTYPE a [<!ENTITY b "c">]><session><token>&b;</token></session>`} {
		f.Add([]byte(body))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		token, err := parseSession(body)
		if (err == nil) != (token != "") {
			t.Errorf("token %q, %v", token, err)
		}
		c, err := parseCookieConfig(body)
		if (err == nil) != (c.Name != "") {
			t.Errorf("cookie %+v, %v", c, err)
		}
		for _, s := range []string{token, c.Name, c.Domain} {
			if (&http.Cookie{Name: "x", Value: s, Domain: "example", Quoted: false}).Valid() != nil {
				t.Errorf("%q cannot stand in a cookie", s)
			}
		}
		if reason := crowdReason(body); reason != api.Clean(reason) || len(reason) > 70 || strings.ContainsAny(reason, "\"'<>&;") {
			t.Errorf("reason %q", reason)
		}
	})
}
