package e2e

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

// member is a product of Atlassian's family as the tests here know it.
type member struct {
	kind, name string
	start      func(rig.AtlassianOptions) (*rig.Atlassian, error)
	login      string // the login page
	whoami     string // below the product, says who asks
	named      string // what it says, with the name in place of USER
	options    string // what a site needs beside url and kind
	// taken are the ways in which passwords are taken, in the words of the option
	// login; what is not there is refused by the configuration, which says why.
	taken []string
}

var members = []member{
	{kind: "jira", name: "Jira", start: rig.StartJira, login: "/login.jsp", whoami: "/rest/api/2/myself", named: `"name":"USER"`, taken: []string{"rest", "tsv", "form"}},
	{kind: "confluence", name: "Confluence", start: rig.StartConfluence, login: "/login.action", whoami: "/rest/api/user/current", named: `"username":"USER"`, taken: []string{"tsv", "form"}},
	{kind: "bitbucket", name: "Bitbucket", start: rig.StartBitbucket, login: "/login", whoami: "/plugins/servlet/applinks/whoami", named: "USER", taken: []string{"tsv", "form"}},
	{kind: "bamboo", name: "Bamboo", start: rig.StartBamboo, login: "/userlogin!doDefault.action", whoami: "/rest/api/latest/currentUser.json", named: `"name":"USER"`, taken: []string{"tsv", "form"}},
	{kind: "crucible", name: "Crucible", start: rig.StartCrucible, login: "/login", whoami: "/profile", named: `/user/USER"`, taken: []string{"form"},
		options: "probe_url = \"profile\"\nidentity_regexp = 'id=\"headerUserDetails\"><a href=\"[^\"]*/user/([^\"]+)\"'"},
}

// waysIn are the ways in which the family takes passwords, or has taken them.
var waysIn = []string{"rest", "tsv", "form"}

// table is a site at a product that takes passwords in one of its ways, "" for the
// one that is found.
func (m member) table(site, url, credential, taken string, more ...string) string {
	lines := append([]string{fmt.Sprintf("[site.%s]\nurl = %q\nkind = %q\ninsecure_http = true\nrecheck = \"0s\"", site, url, m.kind), m.options}, more...)
	if credential != "" {
		lines = append(lines, fmt.Sprintf("credential = %q", credential))
	}
	if m.kind == "jira" && taken == "form" { // which is there, beside what is found
		lines = append(lines, `login = "form"`)
	}
	return strings.Join(lines, "\n") + "\n"
}

// userTable is the table of a user with a password.
func userTable(name, user string) string {
	return fmt.Sprintf("[credential.%s]\nusername = %q\n", name, user)
}

// local asks hosts of the domain localhost, all of which are this machine.
var local = &http.Client{
	Transport:     &http.Transport{DialContext: rig.DialLocalhost, DisableKeepAlives: true},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

// get makes a request as a script does, with the lines that header prints, and
// returns status and body.
func get(t *testing.T, c *http.Client, url, header string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	must(t, err)
	for line := range strings.Lines(header) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		req.Header.Add(name, value)
	}
	resp, err := c.Do(req)
	must(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	must(t, err)
	return resp.StatusCode, string(body)
}

// tells reports whether an answer of a product's whoami names a user.
func (m member) tells(status int, body, user string) bool {
	return status == http.StatusOK && strings.Contains(body, strings.ReplaceAll(m.named, "USER", user))
}

// names fails unless a product takes what header prints for that user's.
func (m member) names(t *testing.T, url, header, user string) {
	t.Helper()
	if status, body := get(t, local, url+m.whoami, header); !m.tells(status, body, user) {
		t.Errorf("%s answers %d and does not name %s: %.300s", url+m.whoami, status, user, body)
	}
}

// passwords is how many a product has looked at, or refused unseen.
func passwords(n rig.AtlassianCounts) int {
	return n.Logins + n.Forms + n.TwoStepLogins + n.SecondFactors + n.Refused + n.Denied + n.Disabled
}

// lock has somebody else send wrong passwords for a user until the product wants a
// CAPTCHA solved.
func (m member) lock(t *testing.T, a *rig.Atlassian, user string) {
	t.Helper()
	path := m.whoami
	switch m.kind { // Basic is for the API alone
	case "crucible":
		path = "/rest-service/users-v1/" + user
	case "bitbucket":
		path = "/rest/api/latest/users"
	}
	for range 10 {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, a.URL()+path, nil)
		must(t, err)
		req.SetBasicAuth(user, "CANARY-old")
		resp, err := local.Do(req)
		must(t, err)
		resp.Body.Close()
		if a.Counts().Denied > 0 {
			return
		}
	}
	t.Fatal("no CAPTCHA comes")
}

// outcome is what comes of a login.
type outcome struct {
	name  string
	modes func(foreign string) rig.AtlassianModes
	more  string // of the site
	// code is what the login ends with, "" for none.
	code func(m member, taken string, byTicket bool) string
	says string // in the message
}

func always(code string) func(member, string, bool) string {
	return func(member, string, bool) string { return code }
}

var outcomes = []outcome{
	{name: "good", code: always("")},
	{name: "refused", code: func(m member, _ string, byTicket bool) string {
		switch {
		case !byTicket:
			return "bad_credentials"
		case m.kind == "bitbucket" || m.kind == "crucible": // their gate says nothing of why it shows the login page
			return "login_ok_but_probe_failed"
		}
		return "forbidden" // a good ticket of nobody
	}},
	{name: "captcha", code: func(_ member, _ string, byTicket bool) string {
		if byTicket {
			return "" // a ticket is not asked for it
		}
		return "captcha"
	}},
	{name: "expired", code: always("")},
	{name: "anonymous", modes: func(string) rig.AtlassianModes { return rig.AtlassianModes{Anonymous: true} }, code: func(_ member, taken string, byTicket bool) string {
		if taken == "tsv" && !byTicket {
			return "second_factor_required" // it may be one, unannounced
		}
		return "login_ok_but_probe_failed"
	}},
	{name: "another user", more: `identity = "somebody"`, code: always("wrong_identity"), says: "not somebody's"},
	{name: "maintenance", modes: func(string) rig.AtlassianModes { return rig.AtlassianModes{Maintenance: true} }, code: always("maintenance")},
	{name: "foreign host", modes: func(foreign string) rig.AtlassianModes { return rig.AtlassianModes{SSO: foreign} }, code: always("sso_redirect"), says: "login_hosts"},
	// The login page alone leads there. Who needs no page logs in all the same.
	{name: "identity provider", modes: func(foreign string) rig.AtlassianModes { return rig.AtlassianModes{IdentityProvider: foreign} }, code: func(_ member, taken string, byTicket bool) string {
		if byTicket || taken == "form" {
			return "sso_redirect"
		}
		return ""
	}, says: "login_hosts"},
}

// matrixCell is one login at one product.
type matrixCell struct {
	m        member
	taken    string
	byTicket bool
	outcome
	*home
	site, credential string
	product          *rig.Atlassian
}

func (c *matrixCell) user() string {
	if c.byTicket {
		return "build"
	}
	return "alice"
}

// login has the agent log in with what it did not have before.
func (c *matrixCell) login(t *testing.T) result {
	t.Helper()
	if c.byTicket {
		return c.sessionctl(t, "login", c.site)
	}
	secret := alicePassword
	if c.name == "refused" {
		secret = "CANARY-wrong"
	}
	return c.bring(t, c.site, secret)
}

// spent are the logins and the passwords or tickets that have reached the product
// since n.
func (c *matrixCell) spent(n rig.AtlassianCounts) (logins, secrets int) {
	now := c.product.Counts()
	logins, secrets = now.Begun()-n.Begun(), passwords(now)-passwords(n)
	if c.byTicket {
		return logins, now.Tokens - n.Tokens
	}
	return logins, secrets
}

// TestAtlassianMatrix: each product, by each way in which it takes passwords, with a
// ticket and with a password, and what may come of it.
func TestAtlassianMatrix(t *testing.T) {
	cells, impossible := 0, 0
	defer func() { t.Logf("%d cells; %d more cannot be, and the configuration says so", cells, impossible) }()
	for _, m := range members {
		for _, taken := range waysIn {
			t.Run(m.kind+" "+taken, func(t *testing.T) {
				if slices.Contains(m.taken, taken) {
					cells += m.matrix(t, taken)
					return
				}
				// The configuration has no such login: neither means nor outcome is left.
				h := newHome(t, inProcess(t), userTable("alice", "alice"), m.table("it", "http://localhost:1", "alice", "", fmt.Sprintf("login = %q", taken)))
				r := h.fails(t, 5, "config_invalid", "check-config", h.config)
				why := `no way to log in at ` + m.name
				if m.kind == "crucible" && taken == "rest" {
					why = "FEAUTH"
				}
				if !strings.Contains(r.stderr, why) {
					t.Errorf("%q is not said: %v", why, r)
				}
				impossible += 2 * len(outcomes)
			})
		}
	}
}

// matrix runs what can come of the logins at a product that takes passwords in one
// way, by one agent, and returns how many there are.
func (m member) matrix(t *testing.T, taken string) int {
	foreign := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		t.Errorf("a foreign host was asked: %s %s", r.Method, r.URL.Path)
	}))
	defer foreign.Close()
	w := inProcess(t)
	var cells []*matrixCell
	config := ""
	for i, o := range outcomes {
		for _, byTicket := range []bool{true, false} {
			means := "password"
			if byTicket {
				means = "ticket"
			}
			c := &matrixCell{m: m, taken: taken, byTicket: byTicket, outcome: o, site: fmt.Sprintf("%s%d", means, i), credential: "build"}
			options := rig.AtlassianOptions{TwoStep: taken == "tsv"}
			if byTicket {
				options.Keytab, options.Guard = w.kdc.Keytab("HTTP/localhost"), &rig.IWAAC{Agent: "Windows NT"}
			} else {
				c.credential = fmt.Sprintf("alice%d", i)
				config += userTable(c.credential, "alice")
			}
			var err error
			c.product, err = m.start(options)
			must(t, err)
			t.Cleanup(c.product.Stop)
			c.product.AddUser("alice", alicePassword)
			if c.name != "refused" {
				c.product.AddUser("build", "CANARY-build")
			}
			if o.modes != nil {
				c.product.SetModes(o.modes(foreign.URL))
			}
			config += m.table(c.site, c.product.URL(), c.credential, taken, o.more)
			cells = append(cells, c)
		}
	}
	h := newHome(t, w, config)
	a := h.start(t)
	for _, c := range cells {
		c.home = h
		t.Run(c.name+" by "+strings.Trim(c.site, "0123456789"), c.check)
	}
	a.stop(t)
	noSecrets(t, a)
	return len(cells)
}

func (c *matrixCell) check(t *testing.T) {
	if c.name == "captcha" {
		c.m.lock(t, c.product, c.user())
	}
	before, basic := c.product.Counts(), c.product.Hits("").Basic
	defer func() {
		if c.product.Hits("").Basic != basic {
			t.Error("the agent has sent a password by Basic")
		}
	}()
	r := c.login(t)
	code := c.code(c.m, c.taken, c.byTicket)
	if code == "" {
		c.good(t, before, r)
		return
	}
	status := 5
	if code == "maintenance" {
		status = 7
	}
	wantFailure(t, r, status, code)
	if !strings.Contains(r.stderr, c.says) {
		t.Errorf("%q is not said: %v", c.says, r)
	}
	logins, secrets := c.spent(before)
	wantLogins, wantSecrets := 0, 1
	switch c.name {
	case "anonymous":
		wantLogins = 1
		if c.byTicket && c.m.kind != "crucible" { // the page that users land on leads nobody to the gate again
			wantLogins, wantSecrets = 2, 2
		}
	case "another user":
		wantLogins = 1
	case "maintenance", "foreign host":
		wantSecrets = 0
	case "identity provider": // the gate is in front of the page
		if wantLogins = 1; !c.byTicket {
			wantLogins, wantSecrets = 0, 0
		}
	}
	if logins != wantLogins || secrets != wantSecrets {
		t.Errorf("%d logins and %d secrets have reached the product, want %d and %d: %+v", logins, secrets, wantLogins, wantSecrets, c.product.Counts())
	}
	if c.byTicket {
		t.Logf("%s: %d logins, %d tokens", code, logins, secrets)
		return
	}
	// A password that was refused, or that nobody looks at before a person acts,
	// is not sent again.
	next := c.login(t)
	again, secretsAgain := c.spent(before)
	t.Logf("%s: %d logins, %d passwords; then %.80q: %d, %d", code, logins, secrets, next.stderr, again, secretsAgain)
	switch c.name {
	case "refused", "captcha":
		wantFailure(t, next, 5, "latched")
		if secretsAgain != 1 {
			t.Errorf("%d passwords have reached the product", secretsAgain)
		}
	}
}

// good checks a session that is there, and what becomes of it if the product
// forgets it.
func (c *matrixCell) good(t *testing.T, before rig.AtlassianCounts, r result) {
	if r.status != 0 || strings.Contains(r.stderr, "CANARY") {
		t.Fatalf("%v", r)
	}
	header := c.ok(t, "header", c.site)
	c.m.names(t, c.product.URL(), header, c.user())
	if !strings.Contains(header, "Cookie: ") || strings.Contains(header, "Authorization") {
		t.Errorf("%s", header)
	}
	want := 1
	if c.name == "expired" {
		want = 2
		c.product.DropSessions()
	}
	headers := make([]string, 10)
	var calls sync.WaitGroup
	for i := range headers {
		calls.Go(func() { headers[i] = c.sessionctl(t, "header", c.site).stdout })
	}
	calls.Wait()
	for _, got := range headers {
		if got != headers[0] || (got == header) != (want == 1) {
			t.Errorf("%q after %q", got, header)
		}
	}
	c.m.names(t, c.product.URL(), headers[0], c.user())
	logins, secrets := c.spent(before)
	t.Logf("%d logins, %d secrets, 12 callers, %d requests in all", logins, secrets, c.product.Hits("").Total)
	if logins != want || secrets != want {
		t.Errorf("%d logins by %d secrets, want %d: %+v", logins, secrets, want, c.product.Counts())
	}
}
