package e2e

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

// listed is what list says of a site.
type listed struct {
	Site          string `json:"site"`
	State         string `json:"state"`
	Product       string `json:"product"`
	Version       string `json:"version"`
	Path          string `json:"path"`
	PasswordLogin string `json:"password_login"`
	Gate          string `json:"gate"`
	Code          string `json:"code"`
}

// listed returns what list says of a site.
func (h *home) listed(t *testing.T, site string) listed {
	t.Helper()
	var all []listed
	must(t, json.Unmarshal([]byte(h.ok(t, "list", "-o", "json")), &all))
	for _, l := range all {
		if l.Site == site {
			return l
		}
	}
	t.Fatalf("there is no %s", site)
	return listed{}
}

// bring gives the agent a password, or a token, by way of a site.
func (h *home) bring(t *testing.T, site, secret string, more ...string) result {
	t.Helper()
	return h.run(t, secret+"\n", filepath.Join(bin, "sessionctl"), append([]string{"login", site, "--password-stdin"}, more...)...)
}

// append adds tables to the agent's configuration.
func (h *home) append(t *testing.T, tables ...string) {
	t.Helper()
	b, err := os.ReadFile(h.config)
	must(t, err)
	write(t, h.config, string(b)+"\n"+strings.Join(tables, "\n"))
}

// alone is a home with a product that alice has a password at, as the site it, and
// a world for both.
func (m member) alone(t *testing.T, o rig.AtlassianOptions, more ...string) (*home, *rig.Atlassian) {
	t.Helper()
	a, err := m.start(o)
	must(t, err)
	t.Cleanup(a.Stop)
	a.AddUser("alice", alicePassword)
	return newHome(t, inProcess(t), userTable("alice", "alice"), m.table("it", a.URL(), "alice", "", more...)), a
}

// TestUpgrade: a product takes passwords in another way than it did. The agent finds
// out at its next login, without another attempt at the password, and keeps what it
// has found.
func TestUpgrade(t *testing.T) {
	for _, m := range members {
		if m.kind == "crucible" {
			continue // which has one way alone
		}
		before := m.taken[len(m.taken)-1]
		if m.kind == "jira" {
			before = "rest"
		}
		for _, c := range []struct {
			name          string
			newer         bool // before
			first, second string
		}{
			{"upgrade", false, before, "tsv"},
			{"back again", true, "tsv", before},
		} {
			t.Run(m.kind+" "+c.name, func(t *testing.T) {
				h, a := m.alone(t, rig.AtlassianOptions{TwoStep: c.newer})
				g := h.start(t)
				if r := h.bring(t, "it", alicePassword); r.status != 0 {
					t.Fatalf("%v", r)
				}
				found := h.listed(t, "it")
				if found.Product != m.kind || found.Version == "" || found.PasswordLogin != c.first || found.State != "live" {
					t.Errorf("%+v", found)
				}
				looked := a.Hits("/rest/applinks/").Total
				if looked != 1 {
					t.Errorf("the site was looked at %d times", looked)
				}
				first := a.Counts()

				a.Upgrade("", !c.newer)
				m.names(t, a.URL(), h.ok(t, "header", "it"), "alice")
				n := a.Counts()
				attempts := passwords(n) - passwords(first)
				now := h.listed(t, "it")
				t.Logf("%s %s, %s → %s, %s: %d passwords, looked at %d times", m.kind, found.Version, found.PasswordLogin, now.Version, now.PasswordLogin,
					attempts, a.Hits("/rest/applinks/").Total-looked)
				if m.kind == "jira" && !c.newer {
					// Its login of before is still there, so that nobody has to look.
					if attempts != 1 || now != found {
						t.Errorf("%d passwords, %+v after %+v", attempts, now, found)
					}
					return
				}
				if attempts != 1 || n.Begun()-first.Begun() != 1 || n.Refused != 0 {
					t.Errorf("%d passwords have reached the product: %+v", attempts, n)
				}
				if now.PasswordLogin != c.second || now.Version == found.Version || now.State != "live" {
					t.Errorf("%+v after %+v", now, found)
				}
				if looked = a.Hits("/rest/applinks/").Total; looked != 2 {
					t.Errorf("the site was looked at %d times", looked)
				}

				// What is found outlives the agent.
				g.stop(t)
				g = h.start(t)
				if again := h.listed(t, "it"); again.Version != now.Version || again.PasswordLogin != now.PasswordLogin || again.Product != now.Product {
					t.Errorf("after the restart: %+v", again)
				}
				a.DropSessions()
				m.names(t, a.URL(), h.ok(t, "header", "it"), "alice")
				if n := a.Counts(); passwords(n)-passwords(first) != 2 {
					t.Errorf("%+v", n)
				}
				if n := a.Hits("/rest/applinks/").Total; n != looked {
					t.Errorf("the site was looked at %d times", n)
				}
				g.stop(t)
				noSecrets(t, g)
			})
		}
	}
}

// TestUpgradeTakesAway: Jira's login resource is gone after an upgrade. It has looked
// at no password, so that there is no attempt the less.
func TestUpgradeTakesAway(t *testing.T) {
	m := members[0]
	h, a := m.alone(t, rig.AtlassianOptions{})
	var gone atomic.Bool
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if gone.Load() && r.Method == http.MethodPost && r.URL.Path == "/rest/auth/1/session" {
			w.WriteHeader(http.StatusMethodNotAllowed)
			return
		}
		a.ServeHTTP(w, r)
	}))
	defer front.Close()
	url := strings.Replace(front.URL, "127.0.0.1", "localhost", 1)
	h.rewrite(t, a.URL(), url)
	g := h.start(t)
	if r := h.bring(t, "it", alicePassword); r.status != 0 {
		t.Fatalf("%v", r)
	}
	first := a.Counts()
	gone.Store(true)
	a.Upgrade("", true)
	m.names(t, url, h.ok(t, "header", "it"), "alice")
	if n, found := a.Counts(), h.listed(t, "it"); passwords(n)-passwords(first) != 1 || n.Refused != 0 || found.PasswordLogin != "tsv" || found.Version != "10.3.15" {
		t.Errorf("%+v: %+v", found, n)
	}
	g.stop(t)
	noSecrets(t, g)
}

// TestGateChanges: a gate comes, asks others than it did, or asks nobody any more.
func TestGateChanges(t *testing.T) {
	w := inProcess(t)
	keytab := w.kdc.Keytab("HTTP/localhost")
	for _, m := range members {
		t.Run(m.kind, func(t *testing.T) {
			gates := []struct {
				guard rig.IWAAC
				found string // "" where nobody is asked
			}{
				{rig.IWAAC{}, "Negotiate"},
				{rig.IWAAC{Agent: "Windows NT"}, "Negotiate for Windows NT"},
				{rig.IWAAC{Agent: "Corp-Bot"}, ""},
				{rig.IWAAC{Deny: []string{"Windows NT"}}, "Negotiate"},
			}
			var now atomic.Pointer[rig.Atlassian]
			front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { now.Load().ServeHTTP(w, r) }))
			defer front.Close()
			// Products take the ticket for the front's host, which has all ports.
			url := strings.Replace(front.URL, "127.0.0.1", "localhost", 1)
			h := newHome(t, w, m.table("it", url, "build", ""))
			g := h.start(t)
			known := "" // what has led to a session last
			for i, gate := range gates {
				a, err := m.start(rig.AtlassianOptions{Keytab: keytab, Guard: &gate.guard})
				must(t, err)
				t.Cleanup(a.Stop)
				a.AddUser("build", "")
				now.Store(a)
				if gate.found == "" {
					h.fails(t, 5, "no_challenge", "raw", "it")
				} else {
					m.names(t, url, h.ok(t, "header", "it"), "build")
				}
				n, looked := a.Counts(), a.Hits("/rest/applinks/").Total
				t.Logf("gate %d: %q, looked at %d times, %d tokens", i, h.listed(t, "it").Gate, looked, n.Tokens)
				known = cmp.Or(gate.found, known)
				if found := h.listed(t, "it").Gate; found != known || looked != 1 {
					t.Errorf("gate %d: %q is found, looked at %d times", i, found, looked)
				}
				if wantTokens := min(len(gate.found), 1); n.Tokens != wantTokens || n.KerberosLogins != wantTokens {
					t.Errorf("gate %d: %+v", i, n)
				}
			}
			g.stop(t)
			noSecrets(t, g)
		})
	}
}

// TestContextPath: a url without the context path, whose front page leads there.
func TestContextPath(t *testing.T) {
	rig.Require(t, "curl")
	for _, m := range members {
		for path, end := range map[string]string{"/" + m.kind: "", "/tools/" + m.kind: "/"} {
			t.Run(m.kind+path, func(t *testing.T) {
				h, a := m.alone(t, rig.AtlassianOptions{ContextPath: path})
				a.SetModes(rig.AtlassianModes{RootRedirect: true})
				origin := strings.TrimSuffix(a.URL(), path)
				h.rewrite(t, fmt.Sprintf("url = %q", a.URL()), fmt.Sprintf("url = %q", origin+end))
				g := h.start(t)
				if r := h.bring(t, "it", alicePassword); r.status != 0 {
					t.Fatalf("%v", r)
				}
				found := h.listed(t, "it")
				t.Logf("found %+v, by %d requests", found, a.Hits("").Total)
				if found.Path != path || found.Product != m.kind {
					t.Errorf("%+v", found)
				}

				// The cookies are those for the product's path.
				header := h.ok(t, "header", "it")
				m.names(t, a.URL(), header, "alice")
				if strings.Count(header, "Cookie: ") != 1 {
					t.Errorf("%s", header)
				}
				if by := h.ok(t, "header", a.URL()+m.whoami); by != strings.Replace(header, "X-Atlassian-Token: no-check\n", "", 1) && by != header {
					t.Errorf("by URL: %s; by name: %s", by, header)
				}
				var session struct{ URL string }
				must(t, json.Unmarshal([]byte(h.ok(t, "get", "it", "-o", "json")), &session))
				if strings.TrimSuffix(session.URL, "/") != a.URL() {
					t.Errorf("the session is for %s, not %s", session.URL, a.URL())
				}
				for name, script := range map[string]string{
					"header": `sessionctl header it | curl -sS -H @- "$0"`,
					"get":    `sessionctl get it -o curl | curl -sS -K - "$0"`,
					"cookie": `eval $(sessionctl cookie it) && curl -sS -b "$IT_COOKIE" "$0"`,
				} {
					r := h.run(t, "", "sh", "-c", script, strings.TrimSuffix(session.URL, "/")+m.whoami)
					if r.status != 0 || r.stderr != "" || !strings.Contains(r.stdout, strings.ReplaceAll(m.named, "USER", "alice")) {
						t.Errorf("%s: %v", name, r)
					}
				}
				// Another application of that host gets nothing of it.
				if r := h.sessionctl(t, "header", origin+"/other/"); strings.Contains(r.stdout, "Cookie") {
					t.Errorf("a cookie for another path: %v", r)
				}
				if n := a.Counts(); passwords(n) != 1 {
					t.Errorf("%+v", n)
				}

				// The path is remembered.
				g.stop(t)
				g = h.start(t)
				looked := a.Hits("/rest/applinks/").Total + a.Hits(path+"/rest/applinks/").Total
				a.DropSessions()
				m.names(t, a.URL(), h.ok(t, "header", "it"), "alice")
				if n := a.Hits("/rest/applinks/").Total + a.Hits(path+"/rest/applinks/").Total; n != looked {
					t.Errorf("the site was looked at again: %d, %d", looked, n)
				}
				h.ok(t, "logout", "it")
				if n := a.Counts(); n.Logouts != 1 || n.Sessions != 0 {
					t.Errorf("after the logout: %+v", n)
				}
				g.stop(t)
				noSecrets(t, g)
			})
		}
	}
}

// TestAnotherProduct: the kind is not what the site is.
func TestAnotherProduct(t *testing.T) {
	for i, m := range members {
		other := members[(i+1)%len(members)]
		t.Run(m.kind+" is no "+other.kind, func(t *testing.T) {
			h, a := m.alone(t, rig.AtlassianOptions{})
			h.rewrite(t, m.table("it", a.URL(), "alice", ""), other.table("it", a.URL(), "alice", ""))
			h.start(t)
			r := h.bring(t, "it", alicePassword)
			wantFailure(t, r, 5, "config_invalid")
			if !strings.Contains(r.stderr, "the site is "+m.name+" ") || !strings.Contains(r.stderr, fmt.Sprintf("kind = %q", m.kind)) {
				t.Errorf("%v", r)
			}
			if n := a.Counts(); passwords(n) != 0 {
				t.Errorf("%+v", n)
			}
		})
	}
}

// TestSecondFactor: where a password is not enough, one is spent and no more. A token
// works beside it.
func TestSecondFactor(t *testing.T) {
	const pat = "CANARY-personal-access-token"
	for _, m := range members {
		if m.kind == "crucible" {
			continue // which has neither second factors nor tokens
		}
		for name, c := range map[string]struct {
			modes rig.AtlassianModes
			says  string
		}{
			"enrolled": {rig.AtlassianModes{SecondFactor: true}, "wants a second factor"},
			"forced":   {rig.AtlassianModes{EnrolmentForced: true}, "set up a second factor first"},
		} {
			t.Run(m.kind+" "+name, func(t *testing.T) {
				h, a := m.alone(t, rig.AtlassianOptions{TwoStep: true})
				a.SetModes(c.modes)
				a.AddToken("alice", pat)
				h.append(t, userTable("pat", "alice"), fmt.Sprintf("[site.beside]\nurl = %q\nkind = \"token\"\nproduct = %q\ncredential = \"pat\"\ninsecure_http = true\nrecheck = \"0s\"\n", a.URL(), m.kind))
				g := h.start(t)
				r := h.bring(t, "it", alicePassword)
				wantFailure(t, r, 5, "second_factor_required")
				if !strings.Contains(r.stderr, c.says) || !strings.Contains(r.stderr, `kind = "token"`) {
					t.Errorf("%v", r)
				}
				latched := func() {
					t.Helper()
					for range 3 {
						r := h.sessionctl(t, "raw", "it")
						if r.status != 5 || r.stdout != "" || strings.Contains(r.stderr, "CANARY") {
							t.Errorf("%v", r)
						}
						wantFailure(t, h.bring(t, "it", alicePassword), 5, "latched")
					}
					if n := a.Counts(); n.SecondFactors != 1 || passwords(n) != 1 || n.Begun() != 0 {
						t.Errorf("%+v", n)
					}
				}
				latched()
				t.Logf("%+v", a.Counts())

				// A token is asked for no second factor, and is no session.
				if r := h.bring(t, "beside", pat); r.status != 0 || !strings.Contains(r.stderr, "logged in as alice") {
					t.Fatalf("%v", r)
				}
				header := h.ok(t, "header", "beside")
				if !strings.Contains(header, "Authorization: Bearer "+pat+"\n") || strings.Contains(header, "Cookie") {
					t.Errorf("%s", header)
				}
				if m.kind == "bitbucket" { // whose tokens are for /rest and /scm
					if status, body := get(t, local, a.URL()+"/rest/api/latest/users", header); status != 200 || !strings.Contains(body, `"name":"alice"`) {
						t.Errorf("%d %s", status, body)
					}
				} else {
					m.names(t, a.URL(), header, "alice")
				}
				h.fails(t, 5, "per_request_only", "raw", "beside")

				// Neither does the other any harm, also after a restart.
				g.stop(t)
				noSecrets(t, g)
				g = h.start(t)
				latched()
				if again := h.ok(t, "header", "beside"); again != header {
					t.Errorf("after the restart: %s", again)
				}
				a.RevokeTokens("alice")
				n := a.Counts().Bearer
				h.fails(t, 5, "bad_credentials", "header", "beside")
				h.fails(t, 5, "latched", "header", "beside")
				if a.Counts().Bearer != n || a.Hits("").Basic != 0 {
					t.Errorf("%+v", a.Counts())
				}

				// The way out: the second factor is gone, and a person says so.
				a.SetModes(rig.AtlassianModes{})
				latched()
				if r := h.bring(t, "it", alicePassword, "--retry"); r.status != 0 {
					t.Errorf("%v", r)
				}
				m.names(t, a.URL(), h.ok(t, "header", "it"), "alice")
				g.stop(t)
				noSecrets(t, g)
			})
		}
	}
}

// TestGates: filters in front of the products ask by rules of theirs. Whom they ask
// the agent finds out; where they do not ask it, it says who it was and where.
func TestGates(t *testing.T) {
	// As shipped with Kantega SSO Enterprise, in part.
	shipped := []string{"HttpClient", "Java/", "JIRA-", "Confluence-", "Axis/"}
	const elsewhere = "/plugins/servlet/sso"
	for _, m := range members {
		page := strings.ReplaceAll(m.login, "!", "%21") + " answers 200"
		cases := []struct {
			name, more string
			guard      rig.IWAAC
			gate       string // that is found
			code       string // "" for none
			says       string
		}{
			{name: "everybody", gate: "Negotiate"},
			{name: "the agent of IWAAC", guard: rig.IWAAC{Agent: "Windows NT", URIs: []string{m.login}}, gate: "Negotiate for Windows NT"},
			{name: "another agent", guard: rig.IWAAC{Agent: "Corp-Bot"}, code: "no_challenge", says: `(Windows NT)`},
			{name: "another agent, said so", guard: rig.IWAAC{Agent: "Corp-Bot"}, more: `user_agent = "Corp-Bot/1"`, gate: "Negotiate"},
			{name: "another URI", guard: rig.IWAAC{URIs: []string{elsewhere}}, code: "no_challenge", says: page},
			{name: "another URI, said so", guard: rig.IWAAC{URIs: []string{elsewhere}}, more: fmt.Sprintf("login_url = %q", elsewhere), gate: "Negotiate"},
			{name: "all but some agents", guard: rig.IWAAC{Deny: shipped}, gate: "Negotiate"},
			{name: "all but this agent", guard: rig.IWAAC{Deny: append(shipped, "sessionctl/")}, code: "no_challenge", says: `sessionctl/`},
			{name: "all but this agent, said so", guard: rig.IWAAC{Deny: append(shipped, "sessionctl/")}, more: `user_agent = "corp-job/1"`, gate: "Negotiate"},
			{name: "addresses of here", guard: rig.IWAAC{From: []string{"192.0.2.0/24", "127.0.0.0/8"}}, gate: "Negotiate"},
			{name: "other addresses", guard: rig.IWAAC{From: []string{"192.0.2.0/24"}}, code: "no_challenge", says: page},
			{name: "other addresses, a password", guard: rig.IWAAC{From: []string{"192.0.2.0/24"}}, more: `fallback = "alice"`},
		}
		t.Run(m.kind, func(t *testing.T) {
			w := inProcess(t)
			config := userTable("alice", "alice")
			products := make([]*rig.Atlassian, len(cases))
			for i, c := range cases {
				var err error
				products[i], err = m.start(rig.AtlassianOptions{Keytab: w.kdc.Keytab("HTTP/localhost"), Guard: &c.guard})
				must(t, err)
				t.Cleanup(products[i].Stop)
				products[i].AddUser("build", "")
				products[i].AddUser("alice", alicePassword)
				more := c.more
				if strings.HasPrefix(more, "fallback") {
					more += "\nidentity = \"alice\""
				}
				config += m.table(fmt.Sprintf("gate%d", i), products[i].URL(), "build", "", more)
			}
			h := newHome(t, w, config)
			g := h.start(t)
			for i, c := range cases {
				a, site := products[i], fmt.Sprintf("gate%d", i)
				t.Run(c.name, func(t *testing.T) {
					user, wantTokens, wantPasswords := "build", 1, 0
					if strings.HasPrefix(c.more, "fallback") {
						user, wantTokens, wantPasswords = "alice", 0, 1
						if r := h.sessionctl(t, "raw", site); r.status != 5 || !strings.Contains(r.stderr, "(no_secret)") {
							t.Errorf("%v", r)
						}
						if r := h.bring(t, site, alicePassword); r.status != 0 {
							t.Fatalf("%v", r)
						}
					}
					if c.code != "" {
						r := h.fails(t, 5, c.code, "raw", site)
						if !strings.Contains(r.stderr, c.says) || !strings.Contains(r.stderr, "User-Agent") {
							t.Errorf("%q is not said: %v", c.says, r)
						}
						t.Logf("%s", r.stderr)
						user, wantTokens = "", 0
					} else {
						header := h.ok(t, "header", site)
						m.names(t, a.URL(), header, user)
						if agent, ok := strings.CutPrefix(c.more, "user_agent = "); ok && !strings.Contains(header, "User-Agent: "+strings.Trim(agent, `"`)+"\n") {
							t.Errorf("%s", header)
						}
					}
					found, n := h.listed(t, site), a.Counts()
					if c.code == "" && (found.Gate != c.gate || found.Product != m.kind) {
						t.Errorf("%+v", found)
					}
					if n.Tokens != wantTokens || passwords(n) != wantPasswords || a.Hits("").Negotiate != wantTokens || a.Hits("").Basic != 0 {
						t.Errorf("%+v", n)
					}
				})
			}
			g.stop(t)
			noSecrets(t, g)
		})
	}
}
