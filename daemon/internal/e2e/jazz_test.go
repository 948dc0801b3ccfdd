package e2e

import (
	"cmp"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

// jazzPath is a way in which a Jazz server lets programs log in.
type jazzPath struct {
	name      string
	o         rig.JazzOptions
	context   string
	more      string // of the site
	found     string // in the words of list
	requests  int    // of a login with its proof, at most
	noSession bool   // each request is a login of its own
	noRedir   bool   // nothing redirects after a login
	oneTime   bool   // there is something that is good once
	// unsaid: that the server has accepted a password shows in nothing but what it lets
	// the user see then. If it shows an error, nobody knows.
	unsaid bool
}

// byTicket reports whether build logs in by a ticket, and not alice by a password.
func (p jazzPath) byTicket() bool { return p.o.Auth == "negotiate" || p.o.JAS.Kerberos }

// secret is alice's password there.
func (p jazzPath) secret() string {
	if p.o.JAS.External != "" {
		return elmAppPassword
	}
	return elmPassword
}

func (p jazzPath) user() string {
	if p.byTicket() {
		return "build"
	}
	return "alice"
}

var jazzPaths = []jazzPath{
	{name: "form 302", context: "ccm", found: "form", requests: 6},
	{name: "form 303", o: rig.JazzOptions{Redirect: 303}, context: "qm", found: "form", requests: 6},
	{name: "form 307", o: rig.JazzOptions{Redirect: 307}, context: "gc", found: "form", requests: 6},
	{name: "form failing at once", o: rig.JazzOptions{FailDirect: true}, context: "jts", found: "form", requests: 6},
	{name: "form of Tomcat", o: rig.JazzOptions{NoLTPA: true}, context: "ccm", found: "form", requests: 6, unsaid: true},
	{name: "basic with a token", o: rig.JazzOptions{Auth: "basic"}, context: "ccm", found: "basic", requests: 6, noRedir: true, unsaid: true},
	{name: "basic alone", o: rig.JazzOptions{Auth: "basic", NoLTPA: true}, context: "ccm", found: "basic", requests: 6, noSession: true, noRedir: true, unsaid: true},
	{name: "JAS by Basic", o: rig.JazzOptions{Auth: "jas"}, context: "ccm", found: "jas", requests: 7, oneTime: true},
	{name: "JAS by its form", o: rig.JazzOptions{Auth: "jas", JAS: rig.JazzJAS{NoBasic: true}}, context: "ccm", more: "jas_form = true", found: "jas", requests: 7, oneTime: true},
	{name: "application password, SAML", o: rig.JazzOptions{Auth: "jas", JAS: rig.JazzJAS{External: "saml"}}, context: "ccm", more: "app_password = true", found: "jas-app", requests: 7, noRedir: true, oneTime: true},
	{name: "application password, OIDC", o: rig.JazzOptions{Auth: "jas", JAS: rig.JazzJAS{External: "oidc"}}, context: "qm", more: "app_password = true", found: "jas-app", requests: 7, noRedir: true, oneTime: true},
	{name: "delegated, by form", context: "rm", found: "oauth+form", requests: 10, oneTime: true},
	{name: "delegated, by JAS", o: rig.JazzOptions{Auth: "jas", Delegated: []string{"rm"}}, context: "rm", found: "oauth+jas", requests: 10, oneTime: true},
	{name: "Kerberos at the container", o: rig.JazzOptions{Auth: "negotiate"}, context: "ccm", requests: 6, noRedir: true},
	{name: "Kerberos at JAS", o: rig.JazzOptions{Auth: "jas", JAS: rig.JazzJAS{Kerberos: true}}, context: "ccm", found: "jas", requests: 7, oneTime: true},
}

// jazzCell is a login at a Jazz server of its own, by one path, with one end.
type jazzCell struct {
	jazzPath
	jazzEnd
	*home
	*rig.Jazz
	site, foreign string
}

// jazzEnd is what comes of a login.
type jazzEnd struct {
	name   string
	cannot func(jazzPath) string // why that cannot be; "" if it can
	check  func(*jazzCell, *testing.T)
	// restarted looks at what is left after the agent's restart; nil: nothing.
	restarted func(*jazzCell, *testing.T)
}

func can(jazzPath) string { return "" }

var jazzEnds = []jazzEnd{
	{"good", can, (*jazzCell).good, nil},
	{"wrong password", can, (*jazzCell).refused, (*jazzCell).stillRefused},
	{"password changed", func(p jazzPath) string {
		if p.byTicket() {
			return "a ticket has no password that could change"
		}
		return ""
	}, (*jazzCell).changed, (*jazzCell).stillRefused},
	{"expired", func(p jazzPath) string {
		if p.noSession {
			return "the server keeps no session that could expire"
		}
		return ""
	}, (*jazzCell).expired, nil},
	{"killed at the application", func(p jazzPath) string {
		if p.noSession {
			return "the server keeps no session that could be killed"
		}
		return ""
	}, (*jazzCell).killed, nil},
	{"wrong user", can, (*jazzCell).wrongUser, nil},
	{"foreign host", func(p jazzPath) string {
		if p.noRedir {
			return "a good login is answered in place, or by the application itself, and leads nowhere"
		}
		return ""
	}, (*jazzCell).ledAway, nil},
	{"error in the middle", can, (*jazzCell).broken, nil},
	{"error before it", can, (*jazzCell).away, nil},
	{"state reused", func(p jazzPath) string {
		if !p.oneTime {
			return "nothing in it is good once alone"
		}
		return ""
	}, (*jazzCell).reused, nil},
}

// TestJazzMatrix: each way to log in at Jazz, and what may come of it.
func TestJazzMatrix(t *testing.T) {
	cells, impossible := 0, 0
	requests := map[string]string{}
	for _, p := range jazzPaths {
		t.Run(p.name, func(t *testing.T) {
			n := p.matrix(t, requests)
			cells += n
			impossible += len(jazzEnds) - n
		})
	}
	for _, p := range jazzPaths {
		t.Logf("%-28s %s", p.name, requests[p.name])
	}
	t.Logf("%d cells; %d more cannot be", cells, impossible)
}

// jazzSite is the table of a site of a Jazz server, with the login_hosts that it needs.
func jazzSite(j *rig.Jazz, name, context string, more ...string) string {
	lines := append([]string{fmt.Sprintf("[site.%s]\nurl = %q\nkind = \"jazz\"\ninsecure_http = true\nrecheck = \"0s\"", name, j.URL(context)), jazzHosts(j)}, more...)
	return strings.Join(lines, "\n") + "\n"
}

// jazzHosts names the authorization server, if there is one.
func jazzHosts(j *rig.Jazz) string {
	if strings.HasSuffix(j.JASURL(), "localhost") || j.JASURL() == "" {
		return ""
	}
	return fmt.Sprintf("login_hosts = [%q]", j.JASURL())
}

// newJazz starts a server with alice, and build if a keytab is given.
func newJazz(t *testing.T, w *world, o rig.JazzOptions) *rig.Jazz {
	t.Helper()
	if o.Auth == "negotiate" || o.JAS.Kerberos {
		o.Keytab = w.kdc.Keytab("HTTP/localhost")
	}
	j, err := rig.StartJazz(o)
	must(t, err)
	t.Cleanup(j.Stop)
	j.AddUser("alice", elmPassword)
	j.AddAppPassword("alice", elmAppPassword)
	return j
}

// matrix runs what can come of a path's logins, by one agent, and returns how many
// there are.
func (p jazzPath) matrix(t *testing.T, requests map[string]string) int {
	foreign := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		t.Errorf("a foreign host was asked: %s %s %v", r.Method, r.URL, r.Header)
	}))
	defer foreign.Close()
	w := inProcess(t)
	p.o.LogoutTracked = true
	config := ""
	var cells []*jazzCell
	for i, end := range jazzEnds {
		if why := end.cannot(p); why != "" {
			t.Logf("%s: cannot be: %s", end.name, why)
			continue
		}
		c := &jazzCell{jazzPath: p, jazzEnd: end, Jazz: newJazz(t, w, p.o), site: fmt.Sprintf("site%d", i), foreign: foreign.URL}
		credential := "build"
		if p.byTicket() {
			if end.name != "wrong password" {
				c.AddUser("build", "")
			}
		} else {
			credential = fmt.Sprintf("alice%d", i)
			config += userTable(credential, "alice")
		}
		config += jazzSite(c.Jazz, c.site, p.context, fmt.Sprintf("credential = %q", credential), p.more)
		cells = append(cells, c)
	}
	h := newHome(t, w, config)
	passwords := t.TempDir()
	h.extraEnv = []string{"CREDENTIALS_DIRECTORY=" + passwords}
	for _, c := range cells {
		password := p.secret()
		if c.jazzEnd.name == "wrong password" {
			password = "CANARY-wrong"
		}
		write(t, filepath.Join(passwords, "password.alice"+strings.TrimPrefix(c.site, "site")), password+"\n")
	}
	a := h.start(t)
	t.Run("first", func(t *testing.T) {
		for _, c := range cells {
			c.home = h
			t.Run(c.jazzEnd.name, func(t *testing.T) {
				t.Parallel()
				c.check(c, t)
				c.clean(t)
				if c.jazzEnd.name == "good" {
					requests[p.name] = c.cost(t)
				}
			})
		}
	})
	a.stop(t)
	noSecrets(t, a)
	a = h.start(t)
	for _, c := range cells {
		if c.restarted != nil {
			t.Run("restarted "+c.jazzEnd.name, func(t *testing.T) { c.restarted(c, t) })
		}
	}
	a.stop(t)
	noSecrets(t, a)
	return len(cells)
}

// clean fails if a password stood in a URL, or came to who had not asked for it.
func (c *jazzCell) clean(t *testing.T) {
	t.Helper()
	if n := c.Counts(); n.PasswordsInURL != 0 || n.Preemptive != 0 || c.byTicket() && n.Passwords != 0 || !c.byTicket() && n.Tokens != 0 {
		t.Errorf("%+v", n)
	}
}

// login has the agent log in, which does not wait for the end of a back-off as who asks
// for a session does.
func (c *jazzCell) login(t *testing.T) result {
	t.Helper()
	r := c.sessionctl(t, "login", c.site)
	if strings.Contains(r.stdout+r.stderr, "CANARY") {
		t.Errorf("a secret shows: %v", r)
	}
	return r
}

// loggedIn is login, which must not fail.
func (c *jazzCell) loggedIn(t *testing.T) {
	t.Helper()
	if r := c.login(t); r.status != 0 || !strings.HasPrefix(r.stderr, "sessionctl: "+c.site+": logged in as "+c.user()) {
		t.Fatalf("%v", r)
	}
}

// heals has the server be as it should, and the agent log in with what it has. If
// nobody knows what became of the password, a person has to say so.
func (c *jazzCell) heals(t *testing.T, unsaid bool) {
	t.Helper()
	c.Set(rig.JazzModes{})
	if unsaid {
		secrets := c.secrets(c.Counts())
		wantFailure(t, c.login(t), 5, "latched")
		if n := c.Counts(); c.secrets(n) != secrets {
			t.Errorf("%+v", n)
		}
		if r := c.sessionctl(t, "login", c.site, "--retry"); r.status != 0 {
			t.Errorf("%v", r)
		}
	} else {
		c.loggedIn(t)
	}
	c.names(t, c.ok(t, "header", c.site))
}

// jazzNames fails unless an application takes what header prints for a user's. Of its
// pages that name the user, this is the one that all of them have.
func jazzNames(t *testing.T, j *rig.Jazz, context, header, user string) {
	t.Helper()
	if status, body := get(t, local, j.URL(context)+"/authenticated/identity", header); status != http.StatusOK || !strings.Contains(body, fmt.Sprintf(`"userId":%q`, user)) {
		t.Errorf("%s answers %d, and does not name %s: %.200s", context, status, user, body)
	}
}

// names fails unless the server takes what header prints for the user's.
func (c *jazzCell) names(t *testing.T, header string) {
	t.Helper()
	jazzNames(t, c.Jazz, c.context, header, c.user())
	for _, shown := range []string{header, c.ok(t, "get", c.site, "-o", "json")} {
		if found := notServed.FindString(shown); found != "" {
			t.Errorf("%s is handed out: %s", found, shown)
		}
	}
	if c.noSession != strings.Contains(header, "Authorization: Basic ") || c.noSession == strings.Contains(header, "Cookie: ") {
		t.Errorf("%s", header)
	}
}

// secrets are the passwords or tokens that the server, or anybody else, has seen.
func (c *jazzCell) secrets(n rig.JazzCounts) int {
	if c.byTicket() {
		return n.Tokens
	}
	return n.Passwords
}

// spent fails unless so many logins have come since before, each with a password or
// token that was good.
func (c *jazzCell) spent(t *testing.T, before rig.JazzCounts, logins int) {
	t.Helper()
	n := c.Counts()
	got, secrets := n.Logins-before.Logins, c.secrets(n)-c.secrets(before)
	if c.noSession && got == secrets && got >= logins {
		return // each request is one
	}
	if got != logins || secrets != logins || n.Failures != before.Failures {
		t.Errorf("%d logins by %d secrets, want %d: %+v", got, secrets, logins, n)
	}
}

// crowd asks for the session ten times at once. All get the same.
func (c *jazzCell) crowd(t *testing.T) string {
	t.Helper()
	results := make([]result, 10)
	var calls sync.WaitGroup
	for i := range results {
		calls.Go(func() { results[i] = c.sessionctl(t, "header", c.site) })
	}
	calls.Wait()
	for _, r := range results {
		if r.status != 0 || r.stdout != results[0].stdout {
			t.Errorf("%v, and to another %v", r, results[0])
		}
	}
	c.names(t, results[0].stdout)
	return results[0].stdout
}

func (c *jazzCell) good(t *testing.T) {
	c.loggedIn(t)
	found := c.listed(t, c.site)
	if found.Product != "jazz" || found.Version != "7.0.2" || found.PasswordLogin != c.found || (found.Gate == "Negotiate") != c.byTicket() || found.State != "live" {
		t.Errorf("found %+v", found)
	}
	c.crowd(t)
	c.crowd(t)
	c.spent(t, rig.JazzCounts{}, 1)
}

// cost is how many requests one more login makes, which nobody has to look around for.
func (c *jazzCell) cost(t *testing.T) string {
	t.Helper()
	c.ok(t, "logout", c.site)
	before := c.Counts()
	c.loggedIn(t)
	n := c.Counts()
	requests := n.Requests - before.Requests
	if requests > c.requests {
		t.Errorf("a login makes %d requests, want at most %d", requests, c.requests)
	}
	c.spent(t, before, 1)
	return fmt.Sprintf("%2d requests, at most %2d; sessions begun %v", requests, c.requests, sessionsBegun(n))
}

func sessionsBegun(n rig.JazzCounts) string {
	var all []string
	for _, context := range slices.Sorted(maps.Keys(n.Sessions)) {
		all = append(all, fmt.Sprintf("%s %d", context, n.Sessions[context]))
	}
	return strings.Join(all, ", ")
}

// refused: one attempt, whoever asks again.
func (c *jazzCell) refused(t *testing.T) {
	if c.byTicket() { // a good ticket of nobody that the server knows
		wantFailure(t, c.login(t), 5, "negotiate_rejected")
	} else {
		c.fails(t, 5, "bad_credentials", "header", c.site)
		if n := c.Counts(); n.Passwords != 1 {
			t.Errorf("%+v", n)
		}
	}
	c.stillRefused(t)
}

func (c *jazzCell) stillRefused(t *testing.T) {
	before := c.Counts()
	for range 3 {
		if c.byTicket() {
			c.fails(t, 5, "negotiate_rejected", "header", c.site)
		} else {
			c.fails(t, 5, "latched", "header", c.site)
		}
	}
	n := c.Counts()
	if c.byTicket() { // which locks nobody out
		t.Logf("3 calls: %d tokens", n.Tokens-before.Tokens)
	} else if n.Failures != 1 || n.Passwords != before.Passwords {
		t.Errorf("%+v after %+v", n, before)
	}
	if n.Logins != before.Logins {
		t.Errorf("%+v after %+v", n, before)
	}
	c.clean(t)
}

// changed: the password that was good is refused once.
func (c *jazzCell) changed(t *testing.T) {
	c.loggedIn(t)
	before := c.Counts()
	c.AddUser("alice", "CANARY-new")
	c.AddAppPassword("nobody", elmAppPassword)
	c.DropSessions()
	c.fails(t, 5, "bad_credentials", "header", c.site)
	if n := c.Counts(); n.Passwords != before.Passwords+1 {
		t.Errorf("%+v after %+v", n, before)
	}
	c.stillRefused(t)
}

// expired: what the server has forgotten heals by one login.
func (c *jazzCell) expired(t *testing.T) {
	c.loggedIn(t)
	first := c.crowd(t)
	before := c.Counts()
	c.DropSessions()
	if second := c.crowd(t); second == first {
		t.Error("the session is as before")
	}
	c.spent(t, before, 1)
}

// killed: the application alone has forgotten. With the token of the single sign-on, it
// begins another session by itself.
func (c *jazzCell) killed(t *testing.T) {
	c.loggedIn(t)
	first := c.crowd(t)
	before := c.Counts()
	c.DropApps()
	if second := c.crowd(t); second == first {
		t.Error("the session is as before")
	}
	logins := 1
	if strings.Contains(first, "LtpaToken2=") && c.context != "rm" {
		logins = 0
	}
	c.spent(t, before, logins)
}

// wrongUser: nothing is served of another's session, and the password is good.
func (c *jazzCell) wrongUser(t *testing.T) {
	c.Set(rig.JazzModes{WrongUser: "mallory"})
	r := c.login(t)
	wantFailure(t, r, 5, "wrong_identity")
	if !strings.Contains(r.stderr, "mallory") {
		t.Errorf("%v", r)
	}
	c.goesOn(t, 5, "wrong_identity", c.unsaid)
	c.heals(t, c.unsaid)
}

// goesOn: whoever asks next gets the same answer, for a password at most, which is good;
// and for none if that is not known.
func (c *jazzCell) goesOn(t *testing.T, status int, code string, unsaid bool) {
	t.Helper()
	const calls = 2
	want := calls
	if unsaid {
		want = 0
		if status == 7 {
			status, code = 5, "latched"
		}
	}
	before := c.Counts()
	for range calls {
		r := c.sessionctl(t, "header", c.site)
		if r.status != status || r.stdout != "" || !strings.Contains(r.stderr, "("+code+")") || strings.Contains(r.stderr, "CANARY") {
			t.Errorf("%v", r)
		}
	}
	n := c.Counts()
	t.Logf("%s: %d calls, %d secrets", code, calls, c.secrets(n)-c.secrets(before))
	if c.secrets(n)-c.secrets(before) > want || n.Failures != 0 {
		t.Errorf("%+v after %+v", n, before)
	}
}

// ledAway: a login that leads to another host ends there, without a word to that.
func (c *jazzCell) ledAway(t *testing.T) {
	c.Set(rig.JazzModes{ForeignRedirect: c.foreign})
	r := c.login(t)
	wantFailure(t, r, 5, "sso_redirect")
	if !strings.Contains(r.stderr, strings.TrimPrefix(c.foreign, "http://")) {
		t.Errorf("%v", r)
	}
	if n := c.Counts(); c.secrets(n) != 1 || n.Failures != 0 {
		t.Errorf("%+v", n)
	}
	// Somebody's page that a JAS leads to may be that of a refusal.
	c.heals(t, c.unsaid || !c.byTicket() && strings.HasSuffix(c.found, "jas"))
	if n := c.Counts(); c.secrets(n) > 2 {
		t.Errorf("%+v", n)
	}
}

// broken: an error after the password is no refusal.
func (c *jazzCell) broken(t *testing.T) {
	c.Set(rig.JazzModes{FailAfterLogin: 500})
	wantFailure(t, c.login(t), 7, "server_5xx")
	if n := c.Counts(); !c.noSession && c.secrets(n) != 1 || n.Failures != 0 {
		t.Errorf("%+v", n)
	}
	// What takes application passwords leads on, whatever it makes of them.
	unsaid := c.unsaid || c.o.JAS.External != ""
	c.goesOn(t, 7, "server_5xx", unsaid)
	c.heals(t, unsaid)
}

// away: a server that cannot be asked gets no password.
func (c *jazzCell) away(t *testing.T) {
	c.Set(rig.JazzModes{Unavailable: 503})
	wantFailure(t, c.login(t), 7, "maintenance")
	if n := c.Counts(); c.secrets(n) != 0 {
		t.Errorf("%+v", n)
	}
	c.heals(t, false)
	c.spent(t, rig.JazzCounts{}, 1)
}

// reused: what was good once is fetched anew, and the password is not sent again; but an
// application password goes with it, so that the server has not looked at that.
func (c *jazzCell) reused(t *testing.T) {
	c.loggedIn(t)
	c.ok(t, "logout", c.site)
	before := c.Counts()
	c.Set(rig.JazzModes{ReuseState: true})
	c.loggedIn(t)
	c.names(t, c.ok(t, "header", c.site))
	n := c.Counts()
	if n.StateReused != 1 {
		t.Errorf("%+v", n)
	}
	if c.o.JAS.External != "" {
		before.Passwords++
	}
	c.spent(t, before, 1)
}

// jazzVariant is a Jazz server that wants something of its own, and what comes of a look
// at it.
type jazzVariant struct {
	name    string
	o       rig.JazzOptions
	modes   rig.JazzModes
	context string // "": ccm
	more    string // of the site
	ticket  bool   // build logs in by a ticket
	path    string // in the words of list, "" for none
	gate    string
	code    string // that the login ends with; "": none
	status  int    // with the code; 0: 5
	spent   int    // passwords that have reached the server, where there is a code
	strange bool   // not known for Jazz
	noHosts bool   // the authorization server is not among the login_hosts
}

var jazzVariants = []jazzVariant{
	{name: "form", path: "form"},
	{name: "form 303", o: rig.JazzOptions{Redirect: 303}, path: "form"},
	{name: "form 307", o: rig.JazzOptions{Redirect: 307}, path: "form"},
	{name: "form of Tomcat", o: rig.JazzOptions{NoLTPA: true}, path: "form"},
	{name: "another token's name", o: rig.JazzOptions{CookieName: "CorpToken"}, more: `sso_cookie = "CorpToken"`, path: "form"},
	{name: "context root renamed", o: rig.JazzOptions{Context: "jazz"}, context: "jazz", path: "form"},
	{name: "hidden rootservices", modes: rig.JazzModes{HideRootservices: true}, path: "form", strange: true},
	{name: "basic", o: rig.JazzOptions{Auth: "basic"}, path: "basic"},
	{name: "basic, hidden rootservices", o: rig.JazzOptions{Auth: "basic"}, modes: rig.JazzModes{HideRootservices: true}, code: "challenge_unsupported", strange: true},
	{name: "JAS", o: rig.JazzOptions{Auth: "jas"}, path: "jas"},
	{name: "JAS, its form", o: rig.JazzOptions{Auth: "jas", JAS: rig.JazzJAS{NoBasic: true}}, more: "jas_form = true", path: "jas"},
	{name: "JAS on another host", o: rig.JazzOptions{Auth: "jas"}, noHosts: true, code: "sso_redirect"},
	{name: "JAS, SAML", o: rig.JazzOptions{Auth: "jas", JAS: rig.JazzJAS{External: "saml"}}, code: "app_password_required"},
	{name: "JAS, OIDC", o: rig.JazzOptions{Auth: "jas", JAS: rig.JazzJAS{External: "oidc"}}, code: "app_password_required"},
	{name: "JAS, SAML, application password", o: rig.JazzOptions{Auth: "jas", JAS: rig.JazzJAS{External: "saml"}}, more: "app_password = true", path: "jas-app"},
	{name: "JAS without application passwords", o: rig.JazzOptions{Auth: "jas"}, more: "app_password = true", code: "config_invalid"},
	{name: "negotiate", o: rig.JazzOptions{Auth: "negotiate"}, ticket: true, gate: "Negotiate"},
	{name: "negotiate, a password", o: rig.JazzOptions{Auth: "negotiate"}, code: "challenge_unsupported"},
	{name: "negotiate at JAS", o: rig.JazzOptions{Auth: "jas", JAS: rig.JazzJAS{Kerberos: true}}, ticket: true, path: "jas", gate: "Negotiate"},
	{name: "negotiate at JAS, a password", o: rig.JazzOptions{Auth: "jas", JAS: rig.JazzJAS{Kerberos: true}}, code: "challenge_unsupported"},
	{name: "agent filter", o: rig.JazzOptions{Auth: "jas", JAS: rig.JazzJAS{Kerberos: true, Agent: "Corp-Bot"}}, ticket: true, code: "no_challenge"},
	{name: "agent filter, said so", o: rig.JazzOptions{Auth: "jas", JAS: rig.JazzJAS{Kerberos: true, Agent: "Corp-Bot"}}, more: `user_agent = "Corp-Bot/1"`, ticket: true, path: "jas", gate: "Negotiate"},
	{name: "agent filter, a password", o: rig.JazzOptions{Auth: "jas", JAS: rig.JazzJAS{Kerberos: true, Agent: "Corp-Bot"}}, path: "jas"},
	{name: "no Negotiate, a ticket", ticket: true, code: "no_challenge"},
	{name: "fail-over", o: rig.JazzOptions{Auth: "negotiate", FailOver: true}, ticket: true, gate: "Negotiate"},
	{name: "fail-over of nobody", o: rig.JazzOptions{Auth: "negotiate", FailOver: true}, more: `spn = "HTTP/localhost"`, ticket: true, code: "negotiate_rejected"},
	{name: "bearer", o: rig.JazzOptions{Auth: "bearer"}, code: "challenge_unsupported"},
	{name: "jauth", o: rig.JazzOptions{Auth: "jauth"}, code: "challenge_unsupported"},
	{name: "delegated", context: "rm", path: "oauth+form"},
	{name: "delegated to JAS", o: rig.JazzOptions{Auth: "jas", Delegated: []string{"rm"}}, context: "rm", path: "oauth+jas"},
	{name: "consent", modes: rig.JazzModes{Consent: true}, context: "rm", code: "consent_required", spent: 1},
	{name: "insecure redirect", modes: rig.JazzModes{InsecureRedirect: true}, code: "insecure_redirect"},
	{name: "starting up", modes: rig.JazzModes{Unavailable: 503}, code: "maintenance", status: 7},
	{name: "nothing there", context: "scm", code: "unexpected_status"},
}

// TestJazzDetects: what a server wants is found out without a credential. Until there is
// a password nothing of the kind has reached it, and where a code comes of it none does.
func TestJazzDetects(t *testing.T) {
	w := inProcess(t)
	servers := make([]*rig.Jazz, len(jazzVariants))
	config := ""
	for i, v := range jazzVariants {
		j := newJazz(t, w, v.o)
		servers[i] = j
		j.Set(v.modes)
		credential := "build"
		if !v.ticket {
			credential = fmt.Sprintf("alice%d", i)
			config += userTable(credential, "alice")
		} else if v.name != "fail-over of nobody" {
			j.AddUser("build", "")
		}
		table := jazzSite(j, fmt.Sprintf("site%d", i), cmp.Or(v.context, "ccm"), fmt.Sprintf("credential = %q", credential), v.more)
		if v.noHosts {
			table = strings.Replace(table, jazzHosts(j), "", 1)
		}
		config += table
	}
	h := newHome(t, w, config)
	a := h.start(t)
	for i, v := range jazzVariants {
		t.Run(v.name, func(t *testing.T) {
			j, site := servers[i], fmt.Sprintf("site%d", i)
			secret := elmPassword
			if strings.HasPrefix(v.more, "app_password") {
				secret = elmAppPassword
			}
			var r result
			if v.ticket {
				r = h.sessionctl(t, "login", site)
			} else {
				h.fails(t, 5, "no_secret", "header", site)
				if n := j.Counts(); n.Passwords+n.Tokens+n.Logins+n.Failures != 0 {
					t.Errorf("without a password: %+v", n)
				}
				r = h.bring(t, site, secret)
			}
			n, found := j.Counts(), h.listed(t, site)
			t.Logf("%+v; %d requests; %s", found, n.Requests, r.stderr)
			if n.PasswordsInURL+n.Preemptive != 0 || v.ticket && n.Passwords != 0 || !v.ticket && n.Tokens != 0 {
				t.Errorf("%+v", n)
			}
			if found.PasswordLogin != v.path && v.code == "" || found.Gate != v.gate && v.code == "" || found.Product != "jazz" && v.code == "" && !v.strange {
				t.Errorf("found %+v", found)
			}
			if v.code == "" {
				if r.status != 0 || n.Logins != 1 || n.Passwords+n.Tokens != 1 || n.Failures != 0 {
					t.Errorf("%v: %+v", r, n)
				}
				return
			}
			wantFailure(t, r, cmp.Or(v.status, 5), v.code)
			if n.Passwords != v.spent {
				t.Errorf("%+v", n)
			}
		})
	}
	a.stop(t)
	noSecrets(t, a)
	t.Logf("%d variants", len(jazzVariants))
}

// TestJazzNeverInClear: at a site of https the password does not go over http, wherever
// the server leads; and a server that says http for its own https, as some do behind a
// proxy that ends TLS, does not keep anybody out.
func TestJazzNeverInClear(t *testing.T) {
	for _, c := range []struct {
		name    string
		o       rig.JazzOptions
		rewrite func(r *http.Response) string // what the server's origin becomes; "": stays http
		code    string
	}{
		{"a form", rig.JazzOptions{}, func(*http.Response) string { return "" }, "insecure_redirect"},
		{"JAS", rig.JazzOptions{Auth: "jas"}, func(*http.Response) string { return "" }, "insecure_redirect"},
		{"after the password", rig.JazzOptions{}, func(r *http.Response) string {
			if r.Request.Method == http.MethodPost {
				return "http"
			}
			return "https"
		}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := inProcess(t)
			j := newJazz(t, w, c.o)
			origin := strings.TrimSuffix(j.URL("ccm"), "/ccm")
			to, err := url.Parse(origin)
			must(t, err)
			posts := 0
			var front *httptest.Server
			front = serve(t, true, &httputil.ReverseProxy{
				Transport: &http.Transport{DisableKeepAlives: true},
				Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(to) },
				ModifyResponse: func(r *http.Response) error {
					if r.Request.Method == http.MethodPost {
						posts++
					}
					if scheme := c.rewrite(r); scheme != "" {
						r.Header.Set("Location", strings.Replace(r.Header.Get("Location"), origin, strings.Replace(front.URL, "https", scheme, 1), 1))
					}
					return nil
				},
			})
			h := newHome(t, w, userTable("alice", "alice"), fmt.Sprintf("[site.elm]\nurl = %q\nkind = \"jazz\"\ncredential = \"alice\"\n", front.URL+"/ccm"))
			h.extraEnv = []string{"SSL_CERT_FILE=" + write(t, filepath.Join(h.dir, "ca.pem"), string(certificatePEM(front)))}
			a := h.start(t)
			r := h.bring(t, "elm", elmPassword)
			n := j.Counts()
			if c.code != "" {
				wantFailure(t, r, 5, c.code)
				if n.Passwords != 0 {
					t.Errorf("%+v", n)
				}
			} else if r.status != 0 || n.Passwords != 1 || n.Logins != 1 || posts != 1 { // all of them over TLS
				t.Errorf("%v: %+v, %d over TLS", r, n, posts)
			}
			a.stop(t)
			noSecrets(t, a)
		})
	}
}
