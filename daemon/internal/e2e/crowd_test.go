package e2e

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

// crowdDomain is the domain of the single sign-on.
const crowdDomain = ".corp.localhost"

// crowdSites are the members of the single sign-on here.
var crowdSites = []string{"jira", "wiki", "builds"}

// crowdWorld is a Crowd with a Jira, a Confluence and a Bamboo, and the home of an
// agent that has them as members of one identity provider.
type crowdWorld struct {
	*world
	*home
	crowd   *rig.Crowd
	members map[string]member
	apps    map[string]*rig.Atlassian
	user    string // who logs in: alice by password, or build by ticket
	at      string // where the provider is proven
}

// crowdOptions are the settings of a crowdWorld.
type crowdOptions struct {
	crowd rig.CrowdOptions
	// twoStep: the applications take passwords so.
	twoStep bool
	// user logs in.
	user string
	// far is where the applications see the agent come from, by their names: an
	// address of this machine. Without one it is 127.0.0.1.
	far map[string]string
	// idp are the lines of the provider's table, member those of each site's.
	idp    func(*crowdWorld) string
	member string
}

// via is a provider that logs in at one of its applications.
func via(site string) func(*crowdWorld) string {
	return func(c *crowdWorld) string {
		c.at = site
		return fmt.Sprintf("url = %q\nvia = %q\ncredential = %q", c.apps[site].URL(), c.members[site].kind, c.user)
	}
}

// byConsole is a provider that logs in at Crowd's own console. Jira says whose token
// it is.
func byConsole(c *crowdWorld) string {
	return fmt.Sprintf("url = %q\ncredential = %q\n%s", c.crowd.URL(), c.user, c.proof())
}

// proof has Jira say whose token it is.
func (c *crowdWorld) proof() string {
	c.at = "jira"
	u, err := url.Parse(c.apps["jira"].URL())
	if err != nil {
		panic(err)
	}
	return fmt.Sprintf("login_hosts = [\"http://%s\"]\nprobe_url = %q\nidentity_json = \"name\"", u.Host, c.apps["jira"].URL()+"/rest/auth/1/session")
}

func newCrowd(t *testing.T, o crowdOptions) *crowdWorld {
	t.Helper()
	c := &crowdWorld{world: inProcess(t), members: map[string]member{"jira": members[0], "wiki": members[1], "builds": members[3]}, apps: map[string]*rig.Atlassian{}, user: o.user}
	o.crowd.Host, o.crowd.Domain = "crowd"+crowdDomain, crowdDomain
	var err error
	c.crowd, err = rig.StartCrowd(o.crowd)
	must(t, err)
	t.Cleanup(c.crowd.Stop)
	c.crowd.AddUser("alice", alicePassword)
	c.crowd.AddUser("build", "")
	config := userTable("alice", "alice") + userTable("application", "agents")
	for _, site := range crowdSites {
		host := site + crowdDomain
		options := rig.AtlassianOptions{Host: host, Crowd: c.crowd, TwoStep: o.twoStep}
		if site == "jira" {
			options.ContextPath = "/jira"
		}
		c.kdc.AddService("HTTP/" + host)
		options.Keytab, options.Guard = c.kdc.Keytab("HTTP/"+host), &rig.IWAAC{Agent: "Windows NT"}
		c.apps[site], err = c.members[site].start(options)
		must(t, err)
		t.Cleanup(c.apps[site].Stop)
		config += c.members[site].table(site, c.apps[site].URL(), "", "", `idp = "crowd"`, o.member)
	}
	config += "[idp.crowd]\nkind = \"crowd\"\ninsecure_http = true\n" + o.idp(c) + "\n"
	c.home = newHome(t, c.world, config)
	c.extraEnv = []string{"http_proxy=" + c.way(t, o.far)}
	return c
}

// way is a forward proxy that knows the hosts of the single sign-on, which resolvers
// do not, and adds nothing to a request. It comes from another address to some.
func (c *crowdWorld) way(t *testing.T, far map[string]string) string {
	p, err := rig.StartProxy(rig.ProxyOptions{Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		name, _, _ := strings.Cut(address, ".")
		return reach(cmp.Or(far[name], "127.0.0.1"))(ctx, network, address)
	}})
	must(t, err)
	t.Cleanup(p.Close)
	return p.URL()
}

// entitle gives the agent what the provider wants, which logs in at the site.
func (c *crowdWorld) entitle(t *testing.T, site string) {
	t.Helper()
	if c.user == "alice" {
		if r := c.bring(t, site, alicePassword); r.status != 0 || !strings.Contains(r.stderr, "logged in as alice") {
			t.Fatalf("%v", r)
		}
	}
}

// all calls sessionctl for every site at once, n times each.
func (c *crowdWorld) all(t *testing.T, n int, verb ...string) map[string][]result {
	t.Helper()
	results := map[string][]result{}
	var calls sync.WaitGroup
	for _, site := range crowdSites {
		some := make([]result, n)
		results[site] = some
		for i := range n {
			calls.Go(func() { some[i] = c.sessionctl(t, append(slices.Clone(verb), site)...) })
		}
	}
	calls.Wait()
	return results
}

// served fails unless every site hands its user's session to everybody who asks.
func (c *crowdWorld) served(t *testing.T, n int) map[string]string {
	t.Helper()
	headers := map[string]string{}
	for site, results := range c.all(t, n, "header") {
		for _, r := range results {
			if r.status != 0 || r.stdout != results[0].stdout {
				t.Errorf("%s: %v, and to another %v", site, r, results[0])
			}
		}
		headers[site] = results[0].stdout
		c.members[site].names(t, c.apps[site].URL(), headers[site], c.user)
	}
	return headers
}

// crowdSeen is what has come to Crowd and its applications.
type crowdSeen struct {
	logins  int            // tokens for a password, or a ticket
	begun   map[string]int // sessions of applications, for the token alone
	own     map[string]int // sessions of applications, by another login
	refused int
}

func (c *crowdWorld) seen() crowdSeen {
	n := c.crowd.Counts()
	s := crowdSeen{logins: n.Logins + n.Minted, refused: n.Refused, begun: map[string]int{}, own: map[string]int{}}
	for site, a := range c.apps {
		n := a.Counts()
		s.begun[site], s.own[site] = n.CrowdSessions, n.Begun()-n.CrowdSessions
	}
	return s
}

// since fails unless so many logins have come since the last time, and such sites
// have begun a session for the token each. The provider is proven at one of them, by
// the token alone, so that each such proof begins a session there, too.
func (c *crowdWorld) since(t *testing.T, before *crowdSeen, logins, proofs int, sites ...string) {
	t.Helper()
	n := c.seen()
	own := 0
	var seen []string
	for _, site := range crowdSites {
		own += n.own[site] - before.own[site]
		begun := n.begun[site] - before.begun[site]
		seen = append(seen, fmt.Sprintf("%d at %s", begun, site))
		want := 0
		if slices.Contains(sites, site) {
			want++
		}
		if site == c.at {
			want += proofs
		}
		if begun != want {
			t.Errorf("%s has begun %d sessions for the token, want %d", site, begun, want)
		}
	}
	t.Logf("%d logins; sessions begun for the token: %s", n.logins-before.logins, strings.Join(seen, ", "))
	if n.logins-before.logins != logins || own > logins || n.refused != before.refused {
		t.Errorf("%+v after %+v, want %d logins", n, *before, logins)
	}
	*before = n
}

// TestCrowdSSO: one login serves three hosts, whatever dies.
func TestCrowdSSO(t *testing.T) {
	for _, v := range []struct {
		name string
		o    crowdOptions
	}{
		{"via jira by ticket", crowdOptions{user: "build", idp: via("jira")}},
		{"via jira by password", crowdOptions{user: "alice", idp: via("jira")}},
		{"via confluence by password in two steps", crowdOptions{user: "alice", idp: via("wiki"), twoStep: true}},
		{"via bamboo by ticket", crowdOptions{user: "build", idp: via("builds")}},
		{"console by password", crowdOptions{user: "alice", idp: byConsole}},
	} {
		t.Run(v.name, func(t *testing.T) {
			c := newCrowd(t, v.o)
			g := c.start(t)
			n := c.seen()
			c.entitle(t, "wiki")
			first := c.served(t, 3)
			c.since(t, &n, 1, 1, crowdSites...)
			for site, header := range first {
				if strings.Count(header, "crowd.token_key=") != 1 || !strings.Contains(header, "JSESSIONID=") {
					t.Errorf("%s: %s", site, header)
				}
			}

			// The token dies.
			c.crowd.KillToken(c.user)
			var answered int
			for site, results := range c.all(t, 34, "header") {
				for _, r := range results {
					if r.status == 0 && r.stdout != first[site] {
						answered++
					} else {
						t.Errorf("%s: %v", site, r)
					}
				}
			}
			t.Logf("%d calls are answered", answered)
			c.since(t, &n, 1, 1, crowdSites...)
			second := c.served(t, 1)

			// An application forgets: no login.
			c.apps["builds"].DropSessions()
			third := c.served(t, 2)
			if third["wiki"] != second["wiki"] {
				t.Errorf("%s after %s", third["wiki"], second["wiki"])
			}
			c.since(t, &n, 0, 0, "builds")

			// The agent starts anew.
			g.stop(t)
			noSecrets(t, g)
			g = c.start(t)
			c.served(t, 1)
			c.since(t, &n, 0, 0)

			// A logout.
			r := c.sessionctl(t, "logout", "wiki")
			t.Logf("%s", r.stderr)
			if r.status != 0 || !strings.Contains(r.stderr, "crowd") || !strings.Contains(r.stderr, "sessionctl logout wiki --idp") {
				t.Errorf("%v", r)
			}
			if c.crowd.Tokens() != 1 || c.crowd.Counts().Logouts != 0 {
				t.Errorf("%d tokens: %+v", c.crowd.Tokens(), c.crowd.Counts())
			}
			c.served(t, 1)
			c.since(t, &n, 0, 1, "wiki") // the provider's session was not proven since the restart
			r = c.sessionctl(t, "logout", "wiki", "--idp")
			t.Logf("%s", r.stderr)
			if r.status != 0 || !strings.Contains(r.stderr, "the identity provider has ended the session") {
				t.Errorf("%v", r)
			}
			if c.crowd.Tokens() != 0 {
				t.Errorf("%d tokens: %+v", c.crowd.Tokens(), c.crowd.Counts())
			}
			for site, header := range third {
				if status, body := get(t, local, c.apps[site].URL()+c.members[site].whoami, header); c.members[site].tells(status, body, c.user) {
					t.Errorf("%s still names the user", site)
				}
			}
			n = c.seen()
			c.served(t, 1)
			c.since(t, &n, 1, 1, crowdSites...)
			g.stop(t)
			noSecrets(t, g)
		})
	}
}

// TestCrowdRefuses: a wrong password is one attempt, whatever the number of sites.
func TestCrowdRefuses(t *testing.T) {
	for name, idp := range map[string]func(*crowdWorld) string{"via jira": via("jira"), "via confluence": via("wiki"), "console": byConsole} {
		t.Run(name, func(t *testing.T) {
			c := newCrowd(t, crowdOptions{user: "alice", idp: idp})
			g := c.start(t)
			c.entitle(t, "wiki")
			c.ok(t, "logout", "wiki", "--idp")
			c.crowd.AddUser("alice", "CANARY-new")
			for site, results := range c.all(t, 5, "raw") {
				for _, r := range results {
					if r.status != 5 || r.stdout != "" || !strings.Contains(r.stderr, "(bad_credentials)") && !strings.Contains(r.stderr, "(latched)") ||
						!strings.Contains(r.stderr, "at the identity provider crowd: ") || !strings.Contains(r.stderr, "sessionctl login "+site+" ") || strings.Contains(r.stderr, "CANARY") {
						t.Errorf("%s: %v", site, r)
					}
				}
			}
			n := c.seen()
			t.Logf("15 calls: %d attempts", n.refused)
			if n.refused != 1 || n.logins != 1 {
				t.Errorf("%+v", n)
			}
			if r := c.bring(t, "builds", "CANARY-new"); r.status != 0 {
				t.Errorf("%v", r)
			}
			c.served(t, 1)
			g.stop(t)
			noSecrets(t, g)
		})
	}
}

// browser logs in at the wiki as a person with a browser does, who comes from an
// address, and returns what it shows there then.
func (c *crowdWorld) browser(t *testing.T, from string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, c.apps["wiki"].URL()+"/dologin.action", strings.NewReader(url.Values{"os_username": {"alice"}, "os_password": {alicePassword}}.Encode()))
	must(t, err)
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	transport := &http.Transport{DialContext: reach(from), DisableKeepAlives: true}
	resp, err := transport.RoundTrip(req)
	must(t, err)
	resp.Body.Close()
	var pairs []string
	for _, k := range resp.Cookies() {
		pairs = append(pairs, k.Name+"="+k.Value)
	}
	if resp.StatusCode != http.StatusFound || !strings.Contains(strings.Join(pairs, "; "), "crowd.token_key=") {
		t.Fatalf("the browser's login: %s, %d cookies", resp.Status, len(pairs))
	}
	return strings.Join(pairs, "; ")
}

// adopt gives the agent what a browser shows.
func (c *crowdWorld) adopt(t *testing.T, site, cookie string) result {
	t.Helper()
	return c.run(t, "Cookie: "+cookie+"\n", filepath.Join(bin, "sessionctl"), "login", site, "--cookie-stdin")
}

// TestCrowdAdopt: the token of a browser serves all sites, as the agent has no
// password, until it dies.
func TestCrowdAdopt(t *testing.T) {
	for name, idp := range map[string]func(*crowdWorld) string{"via jira": via("jira"), "console": byConsole} {
		t.Run(name, func(t *testing.T) {
			c := newCrowd(t, crowdOptions{user: "alice", idp: idp})
			g := c.start(t)
			c.fails(t, 5, "no_secret", "raw", "builds")
			cookie := c.browser(t, "127.0.0.1")
			n := c.seen()
			if r := c.adopt(t, "builds", "crowd.token_key=CANARY-dead"); r.status != 5 || strings.Contains(r.stderr, "CANARY") || !strings.Contains(r.stderr, "(expired)") {
				t.Errorf("a dead token: %v", r)
			}
			if r := c.adopt(t, "builds", cookie); r.status != 0 || !strings.Contains(r.stderr, "alice") {
				t.Fatalf("%v", r)
			}
			headers := c.served(t, 3)
			c.since(t, &n, 0, 1, crowdSites...)
			for site, header := range headers {
				for pair := range strings.SplitSeq(cookie, "; ") {
					if own := !strings.HasPrefix(pair, "crowd.token_key="); own == strings.Contains(header, pair) {
						t.Errorf("%s: of the browser's %.20s…: %t", site, pair, !own)
					}
				}
			}
			g.stop(t)
			g = c.start(t)
			if again := c.served(t, 1); again["wiki"] != headers["wiki"] {
				t.Errorf("%s after the restart", again["wiki"])
			}
			c.crowd.KillToken("alice")
			for site, results := range c.all(t, 3, "raw") {
				for _, r := range results {
					if r.status != 5 || !strings.Contains(r.stderr, "(no_secret)") || !strings.Contains(r.stderr, "sessionctl login "+site+" --") {
						t.Errorf("%s: %v", site, r)
					}
				}
			}
			// Another user's is none.
			c.crowd.AddUser("bob", "CANARY-bob")
			if r := c.adopt(t, "wiki", "crowd.token_key="+c.crowd.Mint("bob", rig.Factors{RemoteAddress: "127.0.0.1"})); r.status != 5 || !strings.Contains(r.stderr, "(wrong_identity)") || strings.Contains(r.stderr, "CANARY") {
				t.Errorf("%v", r)
			}
			if r := c.adopt(t, "wiki", c.browser(t, "127.0.0.1")); r.status != 0 {
				t.Errorf("%v", r)
			}
			c.served(t, 1)
			g.stop(t)
			noSecrets(t, g)
		})
	}
}

// reach connects to the hosts of the domain from an address of this machine.
func reach(from string) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		host, port, err := net.SplitHostPort(address)
		if err != nil || !strings.HasSuffix(host, crowdDomain) {
			return nil, fmt.Errorf("no way to %s", address)
		}
		d := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
		return d.DialContext(ctx, network, net.JoinHostPort("127.0.0.1", port))
	}
}

// TestCrowdAddress: with "consistent client IP" a token is good for one address. An
// application that sees another one does not take it, and the message says what to
// look at; with forwarded_for and trusted proxies it does.
func TestCrowdAddress(t *testing.T) {
	const here, there = "127.0.0.1", "127.0.0.9"
	from := func(t *testing.T, c *crowdWorld, site, address, header string) bool {
		t.Helper()
		client := &http.Client{Transport: &http.Transport{DialContext: reach(address), DisableKeepAlives: true}, CheckRedirect: local.CheckRedirect}
		status, body := get(t, client, c.apps[site].URL()+c.members[site].whoami, header)
		return c.members[site].tells(status, body, c.user)
	}
	t.Run("refused", func(t *testing.T) {
		c := newCrowd(t, crowdOptions{user: "build", idp: via("jira"), crowd: rig.CrowdOptions{SameIP: true}, far: map[string]string{"wiki": there}})
		g := c.start(t)
		c.ok(t, "raw", "jira")
		c.ok(t, "raw", "builds")
		n := c.seen()
		r := c.fails(t, 5, "login_ok_but_probe_failed", "raw", "wiki")
		t.Logf("%s", r.stderr)
		for _, says := range []string{"crowd", "Require consistent client IP address", "forwarded_for", "Trusted proxy servers"} {
			if !strings.Contains(r.stderr, says) {
				t.Errorf("%q is not said: %v", says, r)
			}
		}
		if after := c.seen(); after.begun["wiki"] != 0 || after.logins != n.logins {
			t.Errorf("%+v after %+v", after, n)
		}
		c.ok(t, "raw", "builds")
		g.stop(t)
		noSecrets(t, g)
	})
	t.Run("forwarded", func(t *testing.T) {
		line := fmt.Sprintf("forwarded_for = %q", here)
		c := newCrowd(t, crowdOptions{user: "build", idp: via("jira"), crowd: rig.CrowdOptions{SameIP: true, TrustedProxies: []string{there}}, far: map[string]string{"wiki": there}, member: line})
		g := c.start(t)
		headers := c.served(t, 2)
		for site, header := range headers {
			if !strings.Contains(header, "X-Forwarded-For: "+here+"\n") {
				t.Errorf("%s: %s", site, header)
			}
		}
		if !from(t, c, "wiki", there, headers["wiki"]) {
			t.Error("the header is not taken from where the agent comes")
		}
		if from(t, c, "wiki", there, strings.Replace(headers["wiki"], "X-Forwarded-For: "+here+"\n", "", 1)) {
			t.Error("the wiki does not look at the address")
		}
		g.stop(t)
		noSecrets(t, g)
	})
	t.Run("browser elsewhere", func(t *testing.T) {
		line := fmt.Sprintf("forwarded_for = %q", there)
		o := crowdOptions{user: "alice", crowd: rig.CrowdOptions{SameIP: true, TrustedProxies: []string{here}}}
		o.idp = via("jira")
		c := newCrowd(t, o)
		g := c.start(t)
		cookie := c.browser(t, there)
		r := c.adopt(t, "wiki", cookie)
		wantFailure(t, r, 5, "expired")
		for _, says := range []string{"Require consistent client IP address", "forwarded_for"} {
			if !strings.Contains(r.stderr, says) {
				t.Errorf("%q is not said: %v", says, r)
			}
		}
		g.stop(t)
		o.idp = func(c *crowdWorld) string { return via("jira")(c) + "\n" + line }
		o.member = line
		c = newCrowd(t, o)
		g = c.start(t)
		if r := c.adopt(t, "wiki", c.browser(t, there)); r.status != 0 {
			t.Errorf("%v", r)
		}
		c.served(t, 1)
		g.stop(t)
		noSecrets(t, g)
	})
}

// TestCrowdREST: an application of Crowd has it make a token for a user, by XML. A
// wrong password of the application is sent once.
func TestCrowdREST(t *testing.T) {
	const secret = "CANARY-agents"
	c := newCrowd(t, crowdOptions{user: "build", crowd: rig.CrowdOptions{SameIP: true}, idp: func(c *crowdWorld) string {
		return fmt.Sprintf("url = %q\nvia = \"rest\"\ncredential = \"application\"\nuser = \"build\"\nremote_address = \"127.0.0.1\"\n%s", c.crowd.URL(), c.proof())
	}})
	c.crowd.AddApplication("agents", secret)
	g := c.start(t)
	c.fails(t, 5, "no_secret", "raw", "wiki")

	wantFailure(t, c.bring(t, "wiki", "CANARY-wrong"), 5, "bad_credentials")
	wantFailure(t, c.bring(t, "builds", "CANARY-wrong"), 5, "latched")
	if n := c.crowd.Hits("/crowd/rest/"); n.Basic != 1 {
		t.Errorf("a wrong password has been sent %d times: %+v", n.Basic, n)
	}
	before := c.crowd.Hits("/crowd/rest/")
	n := c.seen()
	if r := c.bring(t, "wiki", secret); r.status != 0 || !strings.Contains(r.stderr, "logged in as build") {
		t.Fatalf("%v", r)
	}
	headers := c.served(t, 3)
	c.since(t, &n, 1, 1, crowdSites...)
	after := c.crowd.Hits("/crowd/rest/")
	t.Logf("a login: %d requests to the REST API, %d of them with the application's password", after.Total-before.Total, after.Basic-before.Basic)
	if after.Total-before.Total != 3 || after.Basic-before.Basic != 2 {
		t.Errorf("%+v after %+v", after, before)
	}
	if m := c.crowd.CountsOf("agents"); m.Minted != 1 || m.Logins != 0 {
		t.Errorf("%+v", m)
	}
	for site, a := range c.apps {
		if n := a.Hits(""); n.Basic != 0 {
			t.Errorf("%s got the application's password: %+v", site, n)
		}
	}

	// The token dies: the password is there.
	c.crowd.KillToken("build")
	for site, results := range c.all(t, 5, "header") {
		for _, r := range results {
			if r.status != 0 || r.stdout == headers[site] {
				t.Errorf("%s: %v", site, r)
			}
		}
	}
	c.since(t, &n, 1, 1, crowdSites...)

	// So it does after a restart; nobody is told what a logout cannot do.
	g.stop(t)
	noSecrets(t, g)
	g = c.start(t)
	c.crowd.KillToken("build")
	c.served(t, 1)
	c.since(t, &n, 1, 1, crowdSites...)
	r := c.sessionctl(t, "logout", "wiki", "--idp")
	t.Logf("%s", r.stderr)
	if r.status != 0 || !strings.Contains(r.stderr, "not ended") && !strings.Contains(r.stderr, "logout_url") || c.crowd.Tokens() != 1 {
		t.Errorf("%d tokens: %v", c.crowd.Tokens(), r)
	}
	g.stop(t)
	noSecrets(t, g)

	// Its password is not its users', and it may come from elsewhere only.
	c.crowd.AddApplication("agents", secret, "192.0.2.1")
	g = c.start(t)
	if r := c.fails(t, 5, "forbidden", "raw", "wiki"); !strings.Contains(r.stderr, "remote addresses") {
		t.Errorf("%v", r)
	}
	c.crowd.AddApplication("agents", secret)
	c.served(t, 1)
	g.stop(t)
	noSecrets(t, g)
}

// TestCrowdUsers: two users on one Confluence that has the single sign-on, each with
// a session of their own.
func TestCrowdUsers(t *testing.T) {
	rig.Require(t, "root")
	c := newCrowd(t, crowdOptions{user: "alice", idp: via("jira")})
	c.crowd.AddUser("bob", bobPassword)
	wiki := c.apps["wiki"]
	c.append(t, userTable("bob", "bob"), members[1].table("team", wiki.URL(), "", ""),
		fmt.Sprintf("[[site.team.use]]\nallow = [\"uid:%d\"]\ncredential = \"alice\"\n[[site.team.use]]\nallow = [\"uid:%d\"]\ncredential = \"bob\"\n", aliceUID, bobUID))
	g := c.start(t)
	c.open(t)
	for credential, password := range map[string]string{"alice": alicePassword, "bob": bobPassword} {
		if r := c.bring(t, "team", password, "--credential", credential); r.status != 0 || !strings.Contains(r.stderr, "logged in as "+credential) {
			t.Fatalf("%v", r)
		}
	}
	headers := map[string]string{}
	both := func() {
		t.Helper()
		var calls sync.WaitGroup
		var mu sync.Mutex
		for uid, user := range map[uint32]string{aliceUID: "alice", bobUID: "bob"} {
			for range 3 {
				calls.Go(func() {
					r := c.callAs(t, uid, "header", "team")
					mu.Lock()
					defer mu.Unlock()
					if r.status != 0 {
						t.Errorf("%s: %v", user, r)
					}
					headers[user] = r.stdout
				})
			}
		}
		calls.Wait()
		for user, header := range headers {
			members[1].names(t, wiki.URL(), header, user)
			if strings.Count(header, "crowd.token_key=") != 1 {
				t.Errorf("%s: %s", user, header)
			}
		}
	}
	both()
	if n := c.seen(); n.logins != 2 || n.own["wiki"] != 2 || n.begun["wiki"] != 0 || c.crowd.Tokens() != 2 {
		t.Errorf("%+v, %d tokens", n, c.crowd.Tokens())
	}
	wantFailure(t, c.callAs(t, otherUID, "header", "team"), 4, "unknown_site")

	// One's token dies: the other notices nothing.
	bobs := headers["bob"]
	c.crowd.KillToken("alice")
	both()
	if n := c.seen(); n.logins != 3 || headers["bob"] != bobs {
		t.Errorf("%+v, bob has another session: %t", n, headers["bob"] != bobs)
	}
	t.Logf("%+v", c.seen())
	g.stop(t)
	noSecrets(t, g)
}
