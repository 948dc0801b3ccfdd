package rig

import (
	"cmp"
	"encoding/json"
	"fmt"
	"html"
	"io"
	"maps"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"
)

// AtlassianOptions are the settings of a Jira.
type AtlassianOptions struct {
	ContextPath string // such as "/jira"; "" for the root
	// Keytab is a keytab file's bytes with keys of HTTP/localhost; nil: Jira
	// knows no Kerberos.
	Keytab []byte
	// Guard says who is asked for Negotiate; nil: with a Keytab, everybody who
	// gets the login page.
	Guard *IWAAC
	// Now is the clock of sessions and logins; nil: time.Now.
	Now func() time.Time
	// MaxFailures is how many wrong passwords in a row bring the CAPTCHA
	// ("Maximum Authentication Attempts Allowed" in Jira's general
	// configuration); 0: 3.
	MaxFailures int
}

// AtlassianModes are the states and configurations of a Jira that make life hard for
// its clients. They can be combined; the zero value is a Jira as installed.
type AtlassianModes struct {
	// Maintenance: 503 everywhere, and MAINTENANCE at /status (Atlassian, "Jira
	// status endpoint").
	Maintenance bool
	// ServerError: 500 everywhere, and ERROR at /status.
	ServerError bool
	// RetryAfter above 0: 429 under /rest, with this time in whole seconds
	// (Atlassian, "Improving instance stability with rate limiting"; the headers
	// are those that JiraPS#505 and python-jira read).
	RetryAfter time.Duration
	// LoginPage: 200 with the login page, whatever is asked for.
	LoginPage bool
	// EmptyRefusal: a wrong password is answered by 200 without a body
	// (JRA-41559).
	EmptyRefusal bool
	// BasicDisabled: passwords are refused by 403 before anybody looks at them
	// (atlassian/data-center-helm-charts#1101). Whether Jira refuses them to the
	// login resource too is not documented; this one does.
	BasicDisabled bool
	// SSO is where pages and the login resource redirect to, an absolute URL; the
	// rest of /rest passes, as with oauth2-proxy in front.
	SSO string
	// NoPermission: nobody may use Jira, whatever the password
	// (AUTHORISATION_FAILED in com.atlassian.seraph.auth.LoginReason).
	NoPermission bool
	// NoProbation: new sessions have their full life at once, as before the
	// change of JRASERVER-31322.
	NoProbation bool
	// TwoNodes: requests go to one of two nodes, neither of which knows the
	// other's sessions, as a sticky cookie says.
	TwoNodes bool
	// NoSession: a good login sets no cookie and keeps no session.
	NoSession bool
	// Anonymous: a good login's session is nobody's (pycontribs/jira#424).
	Anonymous bool
}

// AtlassianCounts is what happened at a Jira since it was made.
type AtlassianCounts struct {
	Logins   int // good ones at the login resource
	Forms    int // good ones at the login page, by persons
	Basic    int // requests with a good Basic header, each of which is a login (JRASERVER-27047)
	Refused  int // wrong passwords, at the login resource or by Basic
	Denied   int // passwords not looked at, because of the CAPTCHA
	Disabled int // passwords not looked at, because Basic is disabled

	Tokens         int // Negotiate tokens
	KerberosLogins int // good logins by one

	Logouts int
	Created int // issues

	Sessions int // users' sessions that live now, on all nodes
}

// Jira is a model of Jira Data Center 9.12 in this process, on a free port of
// 127.0.0.1 under the name localhost: its sessions, logins and headers, and
// enough of its REST API for common clients. No Jira was at hand to measure, so
// each behaviour names the public document, issue or capture that tells of it.
//
// Every secret that it makes up begins with CANARY-, so that tests can look for
// it where it must not be: a session id is CANARY- and 32 hexadecimal digits.
// JQL is not interpreted: a search finds every issue that the user may see.
type Atlassian struct {
	webServer
	context     string
	acceptor    *Acceptor // nil: no Kerberos
	guard       *IWAAC
	now         func() time.Time
	maxFailures int

	mu       sync.Mutex
	modes    AtlassianModes
	accounts map[string]*atlassianAccount
	nodes    [2]map[string]*atlassianSession
	sticky   map[string]int // the load balancer's cookies
	lastNode int            // where the last request went
	requests int
	counts   AtlassianCounts

	issues      []*jiraIssue
	attachments int
}

// StartJira starts a Jira that has a few issues and no user yet.
func StartJira(o AtlassianOptions) (*Atlassian, error) {
	j := &Atlassian{
		context:     strings.TrimSuffix(o.ContextPath, "/"),
		guard:       o.Guard,
		now:         o.Now,
		maxFailures: cmp.Or(o.MaxFailures, 3),
		accounts:    make(map[string]*atlassianAccount),
		sticky:      make(map[string]int),
	}
	if j.now == nil {
		j.now = time.Now
	}
	for i := range j.nodes {
		j.nodes[i] = make(map[string]*atlassianSession)
	}
	j.addIssue(jiraIssue{summary: "An issue that everybody may read", kind: "Task", public: true})
	j.addIssue(jiraIssue{summary: "An issue for users", kind: "Bug"})
	j.addIssue(jiraIssue{summary: "Another issue for users", kind: "Task"})
	if o.Keytab != nil {
		a, err := NewAcceptor(o.Keytab, "HTTP/localhost")
		if err != nil {
			return nil, err
		}
		j.acceptor = a
	}
	return j, j.Start()
}

// Start starts Jira after Stop, on the same port, with its sessions.
func (j *Atlassian) Start() error { return j.start(j) }

// URL returns Jira's base URL: http://localhost:port and the context path,
// without a slash at its end.
func (j *Atlassian) URL() string { return j.origin() + j.context }

// SetModes replaces all modes.
func (j *Atlassian) SetModes(m AtlassianModes) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.modes = m
}

// AddUser adds a user, or replaces one. Without a password the user logs in by
// Kerberos only.
func (j *Atlassian) AddUser(name, password string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.accounts[name] = &atlassianAccount{password: password}
}

// SetPassword changes a user's password, which ends the user's sessions on all
// nodes (since Jira 9.11; Atlassian's knowledge base, article 1217298787).
func (j *Atlassian) SetPassword(name, password string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.account(name).password = password
	for _, node := range j.nodes {
		maps.DeleteFunc(node, func(_ string, s *atlassianSession) bool { return s.user == name })
	}
}

// SolveCaptcha is what a person does with a browser: a login whose CAPTCHA is
// solved forgets the failures before it.
func (j *Atlassian) SolveCaptcha(name string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.account(name).failures = 0
}

// DropSessions ends all sessions on all nodes, as a restart does.
func (j *Atlassian) DropSessions() {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, node := range j.nodes {
		clear(node)
	}
}

// Counts returns what happened so far.
func (j *Atlassian) Counts() AtlassianCounts {
	j.mu.Lock()
	defer j.mu.Unlock()
	n := j.counts
	for _, node := range j.nodes {
		for _, s := range node {
			if s.user != "" && j.alive(s) {
				n.Sessions++
			}
		}
	}
	return n
}

// account returns a user's account and panics if there is none.
func (j *Atlassian) account(name string) *atlassianAccount {
	a := j.accounts[name]
	if a == nil {
		panic("rig: no Jira user " + name)
	}
	return a
}

// maxBody is the largest request body that Jira reads, in bytes.
const maxBody = 1 << 20

// ServeHTTP implements http.Handler.
func (j *Atlassian) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	j.count(r)
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		http.Error(w, "the body cannot be read", http.StatusBadRequest)
		return
	}
	c := j.answer(r, body)
	maps.Copy(w.Header(), c.header)
	w.WriteHeader(c.status)
	w.Write(c.reply)
}

// answer handles a request, one at a time.
func (j *Atlassian) answer(r *http.Request, body []byte) *atlassianCall {
	j.mu.Lock()
	defer j.mu.Unlock()
	path, here := strings.CutPrefix(r.URL.Path, j.context)
	c := &atlassianCall{Request: r, path: path, body: body, header: make(http.Header)}
	j.balance(c)
	switch {
	case !here || path != "" && path[0] != '/':
		c.cookieless = true
		c.page(http.StatusNotFound, "Not Found (404)")
	case path == "/status":
		j.status(c)
	case j.modes.Maintenance:
		c.cookieless = true
		c.page(http.StatusServiceUnavailable, "Jira is in maintenance")
	case j.modes.ServerError:
		c.cookieless = true
		c.page(http.StatusInternalServerError, "Internal Server Error (500)")
	case j.modes.LoginPage:
		j.loginPage(c)
	default:
		j.attach(c)
		j.handle(c)
	}
	j.stamp(c)
	return c
}

// handle answers what reaches Jira.
func (j *Atlassian) handle(c *atlassianCall) {
	rest := strings.HasPrefix(c.path, "/rest/")
	if j.modes.SSO != "" && (!rest || c.path == sessionPath && c.Method == http.MethodPost) {
		c.cookieless = true
		c.setCookie("_oauth2_proxy_csrf=" + secretID() + "; Path=/; HttpOnly")
		c.redirect(j.modes.SSO)
		return
	}
	if j.guarded(c) && !j.negotiate(c) {
		return
	}
	switch {
	case rest:
		j.rest(c)
	case c.path == loginPath:
		j.loginForm(c)
	case strings.HasPrefix(c.path, "/secure/"):
		j.secure(c)
	case c.path == "" || c.path == "/":
		c.redirect(j.context + dashboard)
	default:
		c.page(http.StatusNotFound, "Not Found (404)")
	}
}

// Paths below the context path.
const (
	loginPath = "/login.jsp"
	dashboard = "/secure/Dashboard.jspa"
)

// status is the one resource that monitors ask, without a login (Atlassian,
// "Jira status endpoint").
func (j *Atlassian) status(c *atlassianCall) {
	c.cookieless = true
	status, state := http.StatusOK, "RUNNING"
	switch {
	case j.modes.Maintenance:
		status, state = http.StatusServiceUnavailable, "MAINTENANCE"
	case j.modes.ServerError:
		status, state = http.StatusInternalServerError, "ERROR"
	}
	c.json(status, map[string]string{"state": state})
}

// loginForm answers /login.jsp: who is logged in already goes where the login
// leads.
func (j *Atlassian) loginForm(c *atlassianCall) {
	switch {
	case c.Method == http.MethodPost:
		j.formLogin(c)
	case c.Method != http.MethodGet && c.Method != http.MethodHead:
		c.page(http.StatusMethodNotAllowed, "Method Not Allowed (405)")
	case c.user != "":
		c.redirect(j.context + localPath(c.URL.Query().Get("os_destination"), dashboard))
	default:
		j.loginPage(c)
	}
}

// loginPage is the page with the password form, with the names that Atlassian's
// dc-app-performance-toolkit fills in, and the box that tells it from the page
// of two-step verification.
func (j *Atlassian) loginPage(c *atlassianCall) {
	c.html(http.StatusOK, "Log in", fmt.Sprintf(`<form id="login-form" action="%s" method="post">
<input id="login-form-username" name="os_username" type="text">
<input id="login-form-password" name="os_password" type="password">
<input id="login-form-remember-me" name="os_cookie" type="checkbox" value="true">
<input name="os_destination" type="hidden" value="%s">
<input id="login-form-submit" name="login" type="submit" value="Log In">
</form>`, j.context+loginPath, html.EscapeString(c.URL.Query().Get("os_destination"))))
}

// secure is the web interface: a page for users, and the way to the login for
// everybody else.
func (j *Atlassian) secure(c *atlassianCall) {
	switch {
	case c.user == "":
		c.redirect(j.context + loginPath + "?os_destination=" + url.QueryEscape(c.path))
	case j.modes.NoPermission:
		j.forbidden(c)
	default:
		c.html(http.StatusOK, "Dashboard", `<p>Logged in as <span id="header-details-user-fullname">`+html.EscapeString(c.user)+`</span>.</p>`)
	}
}

// stamp adds what every answer has: the cookies of a session that begins, and
// the headers of Seraph, Jira's login framework (as captured in Jit#12,
// chronos-timetracker#107 and go-jira/jira#8).
func (j *Atlassian) stamp(c *atlassianCall) {
	if c.session == nil && !c.cookieless {
		// A session for everybody who has none is what JRASERVER-31322 is about.
		c.session = j.newSession(c.node, "")
		j.sessionCookies(c)
	}
	j.requests++
	now := j.now()
	c.header.Set("X-AREQUESTID", strconv.Itoa(now.Hour()*60+now.Minute())+"x"+strconv.Itoa(j.requests)+"x1")
	c.header.Set("X-AUSERNAME", url.QueryEscape(cmp.Or(c.user, "anonymous")))
	tag := sessionTag()
	if c.session != nil {
		tag = c.session.tag
	}
	c.header.Set("X-ASESSIONID", tag)
}

// atlassianCall is a request and what is known of it, and its answer.
type atlassianCall struct {
	*http.Request
	path    string // below the context path
	body    []byte
	node    int
	session *atlassianSession // nil: none that lives
	stale   bool              // the session cookie is of no living session
	user    string            // "" for nobody

	status     int
	header     http.Header
	reply      []byte
	cookieless bool // the answer begins no session
}

func (c *atlassianCall) setCookie(line string) { c.header.Add("Set-Cookie", line) }

func (c *atlassianCall) redirect(to string) {
	c.status = http.StatusFound
	c.header.Set("Location", to)
}

func (c *atlassianCall) html(status int, title, body string) {
	c.status = status
	c.header.Set("Content-Type", "text/html;charset=UTF-8")
	c.reply = []byte("<!DOCTYPE html>\n<html><head><title>" + title + "</title></head><body><h1>" + title + "</h1>\n" + body + "\n</body></html>\n")
}

func (c *atlassianCall) page(status int, title string) { c.html(status, title, "") }

func (c *atlassianCall) json(status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	c.status = status
	c.header.Set("Content-Type", "application/json;charset=UTF-8")
	c.reply = b
}
