package e2e

import (
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

// TestJiraCodes produces every failure that Jira, its gates and what is around
// it can make of a login, by ticket and by password.
func TestJiraCodes(t *testing.T) {
	const person, later = 5, 7
	foreign := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("a foreign host was asked") }))
	defer foreign.Close()
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	for _, c := range []struct {
		name         string
		code         string // of a login by ticket, "" for none
		passwordCode string // and by password
		status       int
		modes        rig.AtlassianModes
		setUp        func(*testing.T, *jiraWorld)
		config       func(j *jiraWorld, text string) string
		says         string // in both messages
	}{
		{name: "maintenance", code: "maintenance", passwordCode: "maintenance", status: later, modes: rig.AtlassianModes{Maintenance: true}},
		{name: "server error", code: "server_5xx", passwordCode: "server_5xx", status: later, modes: rig.AtlassianModes{ServerError: true}},
		{name: "rate limit", code: "rate_limited", passwordCode: "rate_limited", status: later, modes: rig.AtlassianModes{RetryAfter: 90 * time.Second}, says: "1m30s"},
		{name: "stopped", code: "network_error", passwordCode: "network_error", status: later, setUp: func(_ *testing.T, j *jiraWorld) { j.Stop() }},
		{name: "no such host", code: "dns_error", passwordCode: "dns_error", status: later, config: func(j *jiraWorld, text string) string {
			return strings.ReplaceAll(text, j.Atlassian.URL(), "http://jira.invalid/jira")
		}},
		{name: "no TLS", code: "tls_error", passwordCode: "tls_error", status: later, config: func(j *jiraWorld, text string) string {
			return strings.ReplaceAll(text, j.Atlassian.URL(), strings.Replace(j.Atlassian.URL(), "http:", "https:", 1))
		}},
		{name: "redirect to https", code: "insecure_redirect", passwordCode: "insecure_redirect", status: person, config: func(j *jiraWorld, text string) string {
			front := frontOf(t, j, func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
				http.Redirect(w, r, "https://"+r.Host+r.URL.Path, http.StatusMovedPermanently)
			})
			return strings.ReplaceAll(text, j.Atlassian.URL(), front+"/jira")
		}, says: "write https in the site's url"},
		{name: "SSO", code: "sso_redirect", passwordCode: "sso_redirect", status: person, modes: rig.AtlassianModes{SSO: foreign.URL}, says: "login_hosts"},
		{name: "everything is the login page", code: "no_challenge", passwordCode: "unexpected_status", status: person, modes: rig.AtlassianModes{LoginPage: true}},
		{name: "another gate's rule", code: "no_challenge", status: person, config: func(_ *jiraWorld, text string) string {
			return strings.ReplaceAll(text, `kind          = "jira"`, "kind = \"jira\"\nuser_agent = \"curl/8\"")
		}, says: `User-Agent "curl/8"`},
		{name: "no user of that name", code: "forbidden", status: person, setUp: func(t *testing.T, j *jiraWorld) {
			other, err := rig.StartJira(rig.AtlassianOptions{ContextPath: "/jira", Keytab: j.kdc.Keytab("HTTP/localhost")})
			must(t, err)
			t.Cleanup(other.Stop)
			other.AddUser("alice", alicePassword)
			j.Atlassian = other
		}},
		{name: "no right", code: "forbidden", passwordCode: "forbidden", status: person, modes: rig.AtlassianModes{NoPermission: true}},
		{name: "Basic disabled", passwordCode: "basic_disabled", status: person, modes: rig.AtlassianModes{BasicDisabled: true}, says: "Basic Authentication is disabled"},
		{name: "a browser's User-Agent, and a proxy that Jira does not know of", passwordCode: "csrf_403", status: person, config: func(j *jiraWorld, text string) string {
			front := frontOf(t, j, func(w http.ResponseWriter, r *http.Request, next http.Handler) { next.ServeHTTP(w, r) })
			text = strings.ReplaceAll(text, j.Atlassian.URL(), front+"/jira")
			return strings.ReplaceAll(text, `kind          = "jira"`, "kind = \"jira\"\nuser_agent = \"Mozilla/5.0 (Windows NT 10.0) Firefox/140.0\"")
		}},
		{name: "wrong password", passwordCode: "bad_credentials", status: person, setUp: func(_ *testing.T, j *jiraWorld) { j.SetPassword("alice", "CANARY-another") }},
		{name: "wrong password with status 200", passwordCode: "bad_credentials", status: person, modes: rig.AtlassianModes{EmptyRefusal: true},
			setUp: func(_ *testing.T, j *jiraWorld) { j.SetPassword("alice", "CANARY-another") }},
		{name: "no session", code: "login_ok_but_probe_failed", passwordCode: "no_session_cookie", status: person, modes: rig.AtlassianModes{NoSession: true}},
		{name: "anonymous after the login", code: "login_ok_but_probe_failed", passwordCode: "login_ok_but_probe_failed", status: person, modes: rig.AtlassianModes{Anonymous: true}},
		{name: "somebody else", code: "wrong_identity", passwordCode: "wrong_identity", status: person, config: func(_ *jiraWorld, text string) string {
			return strings.ReplaceAll(text, `kind          = "jira"`, "kind = \"jira\"\nidentity = \"somebody\"")
		}, says: "somebody"},
		{name: "another path", code: "unexpected_status", passwordCode: "unexpected_status", status: person, config: func(j *jiraWorld, text string) string {
			return strings.ReplaceAll(text, j.Atlassian.URL(), plain.URL+"/tracker")
		}, says: "site's url"},
		{name: "a gate before everything", passwordCode: "challenge_unsupported", status: person, config: func(j *jiraWorld, text string) string {
			front := frontOf(t, j, func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
				w.Header().Set("WWW-Authenticate", "Negotiate")
				w.WriteHeader(http.StatusUnauthorized)
			})
			return strings.ReplaceAll(text, j.Atlassian.URL(), front+"/jira")
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			j := newJira(t)
			if c.setUp != nil {
				c.setUp(t, j)
			}
			j.SetModes(c.modes)
			h := j.home(t)
			if c.config != nil {
				text, err := os.ReadFile(h.config)
				must(t, err)
				write(t, h.config, c.config(j, string(text)))
			}
			a := h.start(t)
			if c.code != "" {
				r := h.fails(t, c.status, c.code, "raw", "jira")
				if !strings.Contains(r.stderr, c.says) {
					t.Errorf("%q is not said: %v", c.says, r)
				}
			}
			if c.passwordCode != "" {
				r := h.givePassword(t, alicePassword)
				wantFailure(t, r, c.status, c.passwordCode)
				if !strings.Contains(r.stderr, c.says) {
					t.Errorf("%q is not said: %v", c.says, r)
				}
				if n := j.Counts(); n.Logins+n.Refused+n.Denied > 1 {
					t.Errorf("more than one attempt: %+v", n)
				}
			}
			a.stop(t)
			noSecrets(t, a)
		})
	}
}

// TestNotSpent: a password that nobody has looked at, or that was right, is good
// for another attempt.
func TestNotSpent(t *testing.T) {
	for name, modes := range map[string]rig.AtlassianModes{
		"maintenance":                    {Maintenance: true},
		"rate limit":                     {RetryAfter: time.Second},
		"Basic disabled":                 {BasicDisabled: true},
		"no right":                       {NoPermission: true},
		"the login page with status 200": {LoginPage: true},
		"anonymous after the login":      {Anonymous: true},
	} {
		t.Run(name, func(t *testing.T) {
			j := newJira(t)
			j.SetModes(modes)
			h := j.home(t)
			h.start(t)
			if r := h.givePassword(t, alicePassword); r.status == 0 {
				t.Fatalf("%v", r)
			}
			j.SetModes(rig.AtlassianModes{})
			if r := h.givePassword(t, alicePassword); r.status != 0 {
				t.Errorf("%v", r)
			}
		})
	}
}

// TestSpent: one whose answer makes no sense is not, but by a person's word.
func TestSpent(t *testing.T) {
	j := newJira(t)
	var odd atomic.Bool
	front := frontOf(t, j, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if odd.Load() && r.Method == http.MethodPost {
			w.Write([]byte("<h1>Welcome</h1>"))
			return
		}
		next.ServeHTTP(w, r)
	})
	h := j.home(t)
	h.rewrite(t, j.Atlassian.URL(), front+"/jira")
	h.start(t)
	odd.Store(true)
	wantFailure(t, h.givePassword(t, alicePassword), 5, "unexpected_status")
	odd.Store(false)
	r := h.givePassword(t, alicePassword)
	wantFailure(t, r, 5, "latched")
	if !strings.Contains(r.stderr, "sessionctl login tracker --password-stdin --retry") {
		t.Errorf("%v", r)
	}
	if r := h.run(t, alicePassword, bin+"/sessionctl", "login", "tracker", "--password-stdin", "--retry"); r.status != 0 {
		t.Errorf("the way out: %v", r)
	}
}

// TestRefusedWithMore: a refusal is one, whatever else the answer says.
func TestRefusedWithMore(t *testing.T) {
	for name, add := range map[string]func(http.ResponseWriter) int{
		"a challenge": func(w http.ResponseWriter) int {
			w.Header().Add("WWW-Authenticate", "Negotiate")
			w.Header().Set("X-AUSERNAME", "anonymous")
			return http.StatusUnauthorized
		},
		"too many requests": func(w http.ResponseWriter) int {
			w.Header().Set("X-Seraph-LoginReason", "AUTHENTICATED_FAILED")
			return http.StatusTooManyRequests
		},
	} {
		t.Run(name, func(t *testing.T) {
			j := newJira(t)
			posts := 0
			front := frontOf(t, j, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				if r.Method != http.MethodPost {
					next.ServeHTTP(w, r)
					return
				}
				posts++
				w.WriteHeader(add(w))
			})
			h := j.home(t)
			h.rewrite(t, j.Atlassian.URL(), front+"/jira")
			a := h.start(t)
			wantFailure(t, h.givePassword(t, "CANARY-wrong"), 5, "bad_credentials")
			wantFailure(t, h.givePassword(t, "CANARY-wrong"), 5, "latched")
			a.stop(t)
			if posts != 1 {
				t.Errorf("%d attempts", posts)
			}
		})
	}
}

// TestGatewayInTrouble: the 401 of something in front of Jira, JSON or not, is no
// word of Jira's either.
func TestGatewayInTrouble(t *testing.T) {
	j := newJira(t)
	var trouble atomic.Pointer[string]
	var posts atomic.Int32
	front := frontOf(t, j, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		body := trouble.Load()
		if body == nil {
			next.ServeHTTP(w, r)
			return
		}
		if r.Method == http.MethodPost {
			posts.Add(1)
		}
		w.WriteHeader(http.StatusUnauthorized)
		w.Write([]byte(*body))
	})
	h := j.home(t)
	h.rewrite(t, j.Atlassian.URL(), front+"/jira")
	h.start(t)
	if r := h.givePassword(t, alicePassword); r.status != 0 {
		t.Fatalf("%v", r)
	}
	first := h.ok(t, "raw", "tracker")
	for _, body := range []string{`{"message":"Unauthorized"}`, "401", "<h1>Unauthorized</h1>", ""} {
		trouble.Store(&body)
		if r := h.sessionctl(t, "raw", "tracker"); r.status != 0 || r.stdout != first {
			t.Errorf("%q: %v", body, r)
		}
	}
	h.sessionctl(t, "logout", "tracker")
	h.fails(t, 5, "unexpected_status", "raw", "tracker")
	trouble.Store(nil)
	h.ok(t, "login", "tracker")
	if posts.Load() != 0 {
		t.Error("the gateway was given the password")
	}
}

// TestBackSoon: a page with status 200 in front of everything is no word of
// Jira's: it ends no session and gets no password.
func TestBackSoon(t *testing.T) {
	j := newJira(t)
	var soon atomic.Bool
	var posts atomic.Int32
	front := frontOf(t, j, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		switch {
		case !soon.Load():
			next.ServeHTTP(w, r)
		case r.Method == http.MethodPost:
			posts.Add(1)
		default:
			w.Header().Set("Content-Type", "text/html")
			w.Write([]byte("<h1>Back soon</h1>"))
		}
	})
	h := j.home(t)
	h.rewrite(t, j.Atlassian.URL(), front+"/jira")
	h.start(t)
	if r := h.givePassword(t, alicePassword); r.status != 0 {
		t.Fatalf("%v", r)
	}
	first := h.ok(t, "raw", "tracker")
	soon.Store(true)
	if r := h.sessionctl(t, "raw", "tracker"); r.status != 0 || r.stdout != first || !strings.Contains(r.stderr, "stale") {
		t.Errorf("%v", r)
	}
	h.ok(t, "logout", "tracker")
	h.fails(t, 7, "maintenance", "raw", "tracker")
	soon.Store(false)
	h.ok(t, "login", "tracker")
	if posts.Load() != 0 {
		t.Error("the page was given the password")
	}
}

// TestJiraOutages: what lives is served, flagged, and costs no login.
func TestJiraOutages(t *testing.T) {
	j := newJira(t)
	h := j.home(t)
	h.start(t)
	if r := h.givePassword(t, alicePassword); r.status != 0 {
		t.Fatalf("%v", r)
	}
	sites := []string{"jira", "tracker"}
	first := map[string]string{}
	for _, site := range sites {
		first[site] = h.ok(t, "raw", site)
	}
	for name, modes := range map[string]rig.AtlassianModes{"maintenance": {Maintenance: true}, "500": {ServerError: true}, "429": {RetryAfter: time.Second}} {
		j.SetModes(modes)
		for _, site := range sites {
			if r := h.sessionctl(t, "get", site, "-o", "json"); r.status != 0 || !strings.Contains(r.stdout, `"stale": true`) {
				t.Errorf("%s, %s: %v", name, site, r)
			}
		}
	}
	j.SetModes(rig.AtlassianModes{})
	for _, site := range sites {
		// It asks Jira, at the latest when the back-off is over.
		until(t, site+" is proven", func() bool { return h.sessionctl(t, "reject", site).status == 0 })
		if got := h.ok(t, "raw", site); got != first[site] {
			t.Errorf("%s: another session", site)
		}
	}
	if c := j.Counts(); c.KerberosLogins != 1 || c.Logins != 1 {
		t.Errorf("%+v", c)
	}
}

// TestStickyCookies: behind a load balancer the session comes with the cookie
// that leads to its node.
func TestStickyCookies(t *testing.T) {
	j := newJira(t)
	j.SetModes(rig.AtlassianModes{TwoNodes: true})
	h := j.home(t)
	h.start(t)
	for i := range 4 {
		if name := j.user(t, h, "jira"); name != "build" {
			t.Errorf("call %d: Jira names %s", i, name)
		}
	}
	if c := j.Counts(); c.KerberosLogins != 1 {
		t.Errorf("%+v", c)
	}
	if !strings.Contains(h.ok(t, "raw", "jira"), "AWSALB=") {
		t.Error("no sticky cookie")
	}
}
