package rig

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"
)

// AtlassianOptions are the settings of one of Atlassian's products.
type AtlassianOptions struct {
	// Host is the name that it is reached by; "": localhost. Who visits it by
	// another name has to know that it is 127.0.0.1.
	Host        string
	ContextPath string // such as "/jira"; "" for the root
	// Version is what it says it is; "": one of the generation that TwoStep says.
	Version string
	// TwoStep: two-step verification has taken the place of the login form, as it
	// did in Jira 10.2, Confluence 9, Bitbucket 9 and Bamboo 10.1
	// (atlassian/dc-app-performance-toolkit, commits of 2024).
	TwoStep bool
	// NoRestLogin: Jira's login resource takes no logins. It is in the REST
	// documentation of Jira 10 still; that it goes some day is a guess.
	NoRestLogin bool
	// Keytab is a keytab file's bytes with keys of HTTP/ and the Host; nil: it
	// knows no Kerberos.
	Keytab []byte
	// Guard says who is asked for Negotiate; nil: with a Keytab, everybody who
	// gets the login page.
	Guard *IWAAC
	// Crowd knows users and passwords too, and its tokens are logins; nil: none.
	Crowd *Crowd
	// CrowdInterval is how long an answer of Crowd about a token is good for the
	// session that it was asked for; 0: Crowd is asked at every request
	// (session.validationinterval; "The crowd.properties file").
	CrowdInterval time.Duration
	// Now is the clock of sessions and logins; nil: time.Now.
	Now func() time.Time
	// MaxFailures is how many wrong passwords in a row bring the CAPTCHA
	// ("Maximum Authentication Attempts Allowed" in Jira's general
	// configuration); 0: as shipped, which is 3, and 5 for Bitbucket.
	MaxFailures int
}

// AtlassianModes are the states and configurations of a product that make life
// hard for its clients. They can be combined; the zero value is a product as
// installed.
type AtlassianModes struct {
	// Maintenance: 503 everywhere, and MAINTENANCE at /status (Atlassian, "Jira
	// status endpoint"). Crucible has a page with status 200
	// (atlassian/dc-app-performance-toolkit).
	Maintenance bool
	// Starting: STARTING at /status, with 200 (the same page), and a page with 200
	// everywhere else, which is a guess.
	Starting bool
	// ServerError: 500 everywhere, and ERROR at /status.
	ServerError bool
	// RetryAfter above 0: 429 under /rest, with this time in whole seconds
	// (Atlassian, "Improving instance stability with rate limiting"; the headers
	// are those that JiraPS#505 and python-jira read).
	RetryAfter time.Duration
	// RateLimit above 0: each user has this many requests under /rest in a minute,
	// and is told how many are left (the same page).
	RateLimit int
	// LoginPage: 200 with the login page, whatever is asked for.
	LoginPage bool
	// EmptyRefusal: a wrong password is answered by 200 without a body
	// (JRA-41559), at Jira's login resource and by Basic.
	EmptyRefusal bool
	// BasicDisabled: passwords are refused by 403 before anybody looks at them
	// (atlassian/data-center-helm-charts#1101). Whether Jira refuses them to the
	// login resource too is not documented; this one does.
	BasicDisabled bool
	// SSO is where pages and logins by JSON redirect to, an absolute URL; the rest
	// of /rest passes, as with oauth2-proxy in front.
	SSO string
	// IdentityProvider is where the login page redirects to, an absolute URL, and
	// all that the login options name (Atlassian's "SSO for Atlassian Server and
	// Data Center"; knowledge base, article 957972845).
	IdentityProvider string
	// LegacyLogin: a product with two-step verification has its old form back
	// (-Datlassian.authentication.legacy.mode=true).
	LegacyLogin bool
	// SecondFactor: all users are enrolled for two-step verification.
	SecondFactor bool
	// EnrolmentForced: no user is enrolled, and nobody gets in without that
	// (-Datlassian.authentication.2sv.enforcement.enabled=true; Atlassian's EAP
	// guide to two-step verification).
	EnrolmentForced bool
	// WebSudo: whatever users ask for wants their password once more, and not only
	// what is for administrators.
	WebSudo bool
	// NoPermission: nobody may use the product, whatever the password
	// (AUTHORISATION_FAILED in com.atlassian.seraph.auth.LoginReason).
	NoPermission bool
	// NoAnonymous: Confluence is for users only, also what says who asks
	// (dapplo/Dapplo.Confluence#35).
	NoAnonymous bool
	// NoProbation: new sessions have their full life at once, as before the
	// change of JRASERVER-31322.
	NoProbation bool
	// TwoNodes: requests go to one of two nodes, neither of which knows the
	// other's sessions, as a sticky cookie says.
	TwoNodes bool
	// RootRedirect: the server's root leads to the context path.
	RootRedirect bool
	// NoSession: a good login sets no cookie and keeps no session.
	NoSession bool
	// Anonymous: a good login's session is nobody's (pycontribs/jira#424).
	Anonymous bool
}

// AtlassianCounts is what happened at a product since it was made.
type AtlassianCounts struct {
	Logins        int // good ones at Jira's login resource
	Forms         int // good ones at the login page, by persons
	TwoStepLogins int // good ones by JSON, with one step
	SecondFactors int // right passwords after which a second step is asked for
	Basic         int // requests with a good Basic header, each of which is a login (JRASERVER-27047)
	Bearer        int // requests with a good personal access token
	Refused       int // wrong passwords
	Denied        int // passwords not looked at, because of the CAPTCHA
	Disabled      int // passwords not looked at, because Basic is disabled

	Tokens         int // Negotiate tokens
	KerberosLogins int // good logins by one
	CrowdSessions  int // sessions begun for a token of Crowd
	Remembered     int // sessions begun for a cookie that remembers the user

	Logouts int
	Created int // issues and pages

	Sessions int // users' sessions that live now, on all nodes
}

// Begun is how many users' sessions began, by whatever way; those of personal
// access tokens, which end with their request, are left out.
func (n AtlassianCounts) Begun() int {
	return n.Logins + n.Forms + n.TwoStepLogins + n.Basic + n.KerberosLogins + n.CrowdSessions + n.Remembered
}

// Atlassian is a model of one of Atlassian's Data Center products in this process,
// on a free port of 127.0.0.1: its sessions, logins and headers, and enough of its
// REST API for common clients. No product was at hand to measure, so each
// behaviour names the public document, issue, code or capture that tells of it, or
// says that it is a guess. What the products have in common is in this file and
// those beside it whose names begin with atlassian; what is one product's own is
// in its file.
//
// Every secret that it makes up begins with CANARY-, so that tests can look for
// it where it must not be: a session id is CANARY- and 32 hexadecimal digits.
type Atlassian struct {
	webServer
	product       *product
	host          string
	context       string
	noRestLogin   bool
	acceptor      *Acceptor // nil: no Kerberos
	guard         *IWAAC
	from          []netip.Prefix // the guard's From
	crowd         *Crowd
	crowdInterval time.Duration
	now           func() time.Time
	maxFailures   int
	id            string // in the manifest

	mu         sync.Mutex
	version    string
	twoStep    bool
	modes      AtlassianModes
	accounts   map[string]*atlassianAccount
	tokens     map[string]string // personal access tokens → users
	remembered map[string]string // cookies → users
	feauth     map[string]string // Crucible's tokens → users
	nodes      [2]map[string]*atlassianSession
	sticky     map[string]int // the load balancer's cookies
	lastNode   int            // where the last request went
	requests   int
	counts     AtlassianCounts

	issues      []*jiraIssue
	attachments int
	pages       []confluencePage
}

// product is what tells Atlassian's products apart. Paths are below the context
// path.
type product struct {
	name   string // on its pages
	typeID string // in the manifest
	// version is what is installed as long as nothing else is said; twoStep the
	// same with two-step verification, "" where there is none.
	version, twoStep string
	// metas: pages tell version and context path (ajs-version-number and others).
	metas bool

	idle time.Duration
	// probation: a session has its full life only at its second request
	// (JRASERVER-31322).
	probation   bool
	maxFailures int

	sessionCookie, rememberCookie string
	xsrfCookie                    string // "" for none
	// seraph: X-Seraph-LoginReason says how a login went, and a dead cookie under
	// /rest is not taken for none.
	seraph bool
	// ausername: X-AUSERNAME names the user, and if there is none says nobody.
	ausername bool
	nobody    string // "" for no header

	login   string // the login page, which is where gates ask for Negotiate
	form    atlassianForm
	home    string   // where a login leads to
	private []string // pages that only users get, by the beginnings of their paths
	admin   []string // those that want the password once more
	webSudo webSudo
	status  string // tells whether the product runs; "" for none
	logout  string // a page that ends the session; "" for none
	// loggedOut is where that leads.
	loggedOut string
	// tokenAlways: whatever is no GET under /rest wants X-Atlassian-Token.
	tokenAlways bool

	// welcome is a user's page, with USER in place of the name.
	welcome string
	// quirks: a login sets cookies that are hard to read.
	quirks bool
	// rest answers what is under /rest and is not common to all.
	rest func(*Atlassian, *atlassianCall)
	// page answers another path of its own; false: there is none.
	page func(*Atlassian, *atlassianCall) bool
	// refused answers a password sent by Basic.
	refused func(a *Atlassian, c *atlassianCall, reason string)
	// unauthorized wants a login.
	unauthorized func(*Atlassian, *atlassianCall)
	// forbidden is for a known user without the right to use the product.
	forbidden func(*Atlassian, *atlassianCall)
}

// startAtlassian starts a product that has no user yet.
func startAtlassian(p *product, o AtlassianOptions) (*Atlassian, error) {
	a := &Atlassian{
		product:       p,
		host:          cmp.Or(o.Host, "localhost"),
		context:       strings.TrimSuffix(o.ContextPath, "/"),
		noRestLogin:   o.NoRestLogin,
		guard:         o.Guard,
		crowd:         o.Crowd,
		crowdInterval: o.CrowdInterval,
		now:           o.Now,
		maxFailures:   cmp.Or(o.MaxFailures, p.maxFailures),
		id:            newUUID(),
		accounts:      make(map[string]*atlassianAccount),
		tokens:        make(map[string]string),
		remembered:    make(map[string]string),
		feauth:        make(map[string]string),
		sticky:        make(map[string]int),
	}
	if a.now == nil {
		a.now = time.Now
	}
	for i := range a.nodes {
		a.nodes[i] = make(map[string]*atlassianSession)
	}
	if err := a.install(o.Version, o.TwoStep); err != nil {
		return nil, err
	}
	if o.Guard != nil {
		for _, s := range o.Guard.From {
			network, err := trustedNetwork(s)
			if err != nil {
				return nil, fmt.Errorf("rig: the guard's address: %w", err)
			}
			a.from = append(a.from, network)
		}
	}
	if o.Keytab != nil {
		acceptor, err := NewAcceptor(o.Keytab, a.SPN())
		if err != nil {
			return nil, err
		}
		a.acceptor = acceptor
	}
	return a, nil
}

// install sets the version.
func (a *Atlassian) install(version string, twoStep bool) error {
	shipped := a.product.version
	if twoStep {
		shipped = a.product.twoStep
	}
	if shipped == "" {
		return errors.New("rig: " + a.product.name + " has no two-step verification")
	}
	a.version, a.twoStep = cmp.Or(version, shipped), twoStep
	return nil
}

// Start starts the product after Stop, on the same port, with its sessions.
func (a *Atlassian) Start() error { return a.start(a) }

// URL returns the base URL: http://host:port and the context path, without a slash
// at its end.
func (a *Atlassian) URL() string { return a.origin() + a.context }

// SPN returns the host's service principal name, HTTP/name.
func (a *Atlassian) SPN() string { return "HTTP/" + a.host }

// origin returns http://host:port.
func (a *Atlassian) origin() string {
	return strings.Replace(a.webServer.origin(), "localhost", a.host, 1)
}

// SetModes replaces all modes.
func (a *Atlassian) SetModes(m AtlassianModes) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.modes = m
}

// Upgrade installs another version, "" for the one that comes with the generation
// of the login, and starts the product anew, which ends all sessions. It panics if
// the product has no two-step verification.
func (a *Atlassian) Upgrade(version string, twoStep bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.install(version, twoStep); err != nil {
		panic(err)
	}
	a.endAll()
}

// AddUser adds a user, or replaces one. Without a password the user logs in by
// Kerberos only.
func (a *Atlassian) AddUser(name, password string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.accounts[name] = &atlassianAccount{password: password}
}

// AddToken gives a user a personal access token.
func (a *Atlassian) AddToken(user, token string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.account(user)
	a.tokens[token] = user
}

// RevokeTokens ends all personal access tokens of a user.
func (a *Atlassian) RevokeTokens(user string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	maps.DeleteFunc(a.tokens, func(_, u string) bool { return u == user })
}

// SetPassword changes a user's password, which ends the user's sessions on all
// nodes (since Jira 9.11; Atlassian's knowledge base, article 1217298787), and what
// remembers the user.
func (a *Atlassian) SetPassword(name, password string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.account(name).password = password
	for _, node := range a.nodes {
		maps.DeleteFunc(node, func(_ string, s *atlassianSession) bool { return s.user == name })
	}
	maps.DeleteFunc(a.remembered, func(_, user string) bool { return user == name })
}

// SolveCaptcha is what a person does with a browser: a login whose CAPTCHA is
// solved forgets the failures before it.
func (a *Atlassian) SolveCaptcha(name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.account(name).failures = 0
}

// DropSessions ends all sessions on all nodes, as a restart does. Cookies that
// remember users are good still.
func (a *Atlassian) DropSessions() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.endAll()
}

func (a *Atlassian) endAll() {
	for _, node := range a.nodes {
		clear(node)
	}
}

// Counts returns what happened so far.
func (a *Atlassian) Counts() AtlassianCounts {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := a.counts
	for _, node := range a.nodes {
		for _, s := range node {
			if s.user != "" && a.alive(s) {
				n.Sessions++
			}
		}
	}
	return n
}

// account returns a user's account and panics if there is none.
func (a *Atlassian) account(name string) *atlassianAccount {
	account := a.accounts[name]
	if account == nil {
		panic("rig: no user " + name + " of " + a.product.name)
	}
	return account
}

// maxBody is the largest request body that is read, in bytes.
const maxBody = 1 << 20

// ServeHTTP implements http.Handler.
func (a *Atlassian) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.count(r)
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		http.Error(w, "the body cannot be read", http.StatusBadRequest)
		return
	}
	c := a.answer(r, body)
	maps.Copy(w.Header(), c.header)
	w.WriteHeader(c.status)
	w.Write(c.reply)
}

// answer handles a request, one at a time.
func (a *Atlassian) answer(r *http.Request, body []byte) *atlassianCall {
	a.mu.Lock()
	defer a.mu.Unlock()
	path, here := strings.CutPrefix(r.URL.Path, a.context)
	c := &atlassianCall{Request: r, path: path, body: body, header: make(http.Header)}
	a.balance(c)
	switch {
	case a.modes.RootRedirect && r.URL.Path == "/" && a.context != "":
		c.redirect(a.context + "/")
		return c
	case !here || path != "" && path[0] != '/':
		c.cookieless = true
		c.page(http.StatusNotFound, "Not Found (404)")
	case path == a.product.status && path != "":
		a.status(c)
	case a.modes.Maintenance && a.product.status == "":
		c.html(http.StatusOK, a.product.name+" Maintenance", "<p>Back soon.</p>")
		return c
	case a.modes.Maintenance:
		c.cookieless = true
		c.page(http.StatusServiceUnavailable, a.product.name+" is in maintenance")
	case a.modes.Starting:
		c.html(http.StatusOK, a.product.name+" is starting up", "<p>Please wait.</p>")
		return c
	case a.modes.ServerError:
		c.cookieless = true
		c.page(http.StatusInternalServerError, "Internal Server Error (500)")
	case a.modes.LoginPage:
		a.loginPage(c)
	default:
		a.attach(c)
		a.handle(c)
	}
	a.stamp(c)
	return c
}

// handle answers what reaches the product.
func (a *Atlassian) handle(c *atlassianCall) {
	rest := isREST(c.path)
	login := c.path == a.product.login || c.path == a.product.form.action
	byJSON := c.Method == http.MethodPost && (c.path == sessionPath || isTwoStep(c.path))
	if a.modes.SSO != "" && (!rest || byJSON) {
		c.cookieless = true
		c.setCookie("_oauth2_proxy_csrf=" + secretID() + "; Path=/; HttpOnly")
		c.redirect(a.modes.SSO)
		return
	}
	if a.guarded(c) && !a.negotiate(c) {
		return
	}
	switch {
	case rest:
		a.rest(c)
	case login:
		a.loginForm(c)
	case c.path == a.product.logout && c.path != "":
		a.leave(c)
		c.redirect(a.context + a.product.loggedOut)
	case a.isWebSudo(c.path):
		a.elevate(c)
	case hasPrefix(c.path, a.product.private):
		a.private(c)
	case a.product.page != nil && a.product.page(a, c):
	case c.path == "" || c.path == "/":
		c.redirect(a.context + a.product.home)
	default:
		c.page(http.StatusNotFound, "Not Found (404)")
	}
}

// isREST reports whether a path is of an API: Crucible's are beside /rest.
func isREST(path string) bool {
	return strings.HasPrefix(path, "/rest/") || strings.HasPrefix(path, "/rest-service")
}

func hasPrefix(path string, prefixes []string) bool {
	for _, p := range prefixes {
		if strings.HasPrefix(path, p) {
			return true
		}
	}
	return false
}

// status is the one resource that monitors ask, without a login (Atlassian,
// "Jira status endpoint").
func (a *Atlassian) status(c *atlassianCall) {
	c.cookieless = true
	status, state := http.StatusOK, "RUNNING"
	switch {
	case a.modes.Maintenance:
		status, state = http.StatusServiceUnavailable, "MAINTENANCE"
	case a.modes.Starting:
		state = "STARTING"
	case a.modes.ServerError:
		status, state = http.StatusInternalServerError, "ERROR"
	}
	c.json(status, map[string]string{"state": state})
}

// private is a page for users, and the way to the login for everybody else.
func (a *Atlassian) private(c *atlassianCall) {
	switch {
	case c.user == "" && a.product.form.inPlace:
		a.loginPage(c)
	case c.user == "":
		c.redirect(a.loginURL(c.path))
	case a.modes.NoPermission:
		a.product.forbidden(a, c)
	case a.wantsSudo(c):
		a.toWebSudo(c)
	default:
		a.welcome(c)
	}
}

// stamp adds what every answer has: the cookies of a session that begins, and
// the headers of Seraph, the login framework (as captured in Jit#12,
// chronos-timetracker#107 and go-jira/jira#8).
func (a *Atlassian) stamp(c *atlassianCall) {
	a.begin(c)
	if !a.product.ausername && !a.product.seraph {
		return
	}
	a.requests++
	now := a.now()
	c.header.Set("X-AREQUESTID", strconv.Itoa(now.Hour()*60+now.Minute())+"x"+strconv.Itoa(a.requests)+"x1")
	tag := sessionTag()
	if c.session != nil {
		tag = c.session.tag
	}
	c.header.Set("X-ASESSIONID", tag)
	a.name(c)
}
