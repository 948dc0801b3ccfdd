package rig

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// JazzOptions are the settings of a Jazz server.
type JazzOptions struct {
	// Host and JASHost are the names that the applications and the Jazz
	// Authorization Server are reached by, such as elm.corp.localhost for clients
	// with DialLocalhost; "": localhost.
	Host, JASHost string
	// Auth is how the applications ask for a login: "form" (also ""), "basic",
	// "jas", "negotiate" (the container's SPNEGO), "bearer" (a Bearer challenge
	// without X-JSA headers) or "jauth".
	Auth string
	// Redirect is the status of redirects that lead to a login: 302 (also 0), 303
	// or 307 (jenkinsci/teamconcert-plugin, HttpUtils.java knows them).
	Redirect int
	// FailDirect answers a wrong password with the page authfailed and 200, and not
	// with a redirect to it (the same).
	FailDirect bool
	// Delegated are the contexts that delegate their login to the JTS by OAuth 1.0a;
	// nil: rm, with the logins by form and Negotiate, and none with the others.
	Delegated []string
	// Context is the JTS's context root; "": jts.
	Context string
	// Keytab is a keytab file's bytes with keys of HTTP/ and the Host (for the login
	// "negotiate"), and of HTTP/ and the JASHost (for JAS.Kerberos).
	Keytab []byte
	// FailOver leads who brings a bad token to the form: Liberty's
	// disableFailOverToAppAuthType=false.
	FailOver bool
	// JAS is the Jazz Authorization Server of the login "jas".
	JAS JazzJAS
	// LTPA is how long a login is good from its beginning, whatever its use; 0: 2
	// hours (Open Liberty's ltpa expiration, 120m). JAS's access tokens live as long
	// (jazz.net's Deployment wiki, ELMAndOAuth20: expires_in 7200).
	LTPA time.Duration
	// Idle is how long a JSESSIONID lives without a request; 0: 30 minutes, Liberty's
	// httpSession invalidationTimeout.
	Idle time.Duration
	// NoLTPA: there is no single sign-on cookie. The form's login is then the
	// JSESSIONID of one application, and the container Tomcat, whose form is shown in
	// place and wants j_security_check after it; a login by Basic is good for its
	// request alone, and so is a Negotiate token, as with Liberty's
	// disableLtpaCookie=true.
	NoLTPA bool
	// CookieName is the single sign-on cookie's name, Liberty's ssoCookieName; "":
	// LtpaToken2.
	CookieName string
	// LogoutTracked ends the single sign-on cookie's value at a logout: Liberty's
	// trackLoggedOutSSOCookies=true.
	LogoutTracked bool
	// Now is the clock; nil: time.Now.
	Now func() time.Time
}

// JazzJAS are the settings of a Jazz Authorization Server.
type JazzJAS struct {
	// Kerberos asks for Negotiate before anything else (IBM's documentation,
	// "Configuring JAS for Kerberos/SPNEGO").
	Kerberos bool
	// Agent has to be part of the User-Agent of who is asked for Negotiate (the same,
	// "Authentication Filters"); "": any.
	Agent string
	// NoBasic shows the form to who sends a password by Basic.
	NoBasic bool
	// External is what it delegates logins to: "saml", "oidc" or "" for nothing. The
	// applications then take application passwords.
	External string
}

// JazzModes are states that make life hard for clients. They can be combined; the
// zero value is a healthy server.
type JazzModes struct {
	// FailAfterLogin is the status of whatever a logged-in user asks an application
	// for; 0: none. FailOnce: of one request only.
	FailAfterLogin int
	FailOnce       bool
	// ForeignRedirect is an absolute URL that a good login leads to.
	ForeignRedirect string
	// WrongUser is whom whoami names, whoever asks.
	WrongUser string
	// ReuseState: the next state, or OAuth request token, counts as used.
	ReuseState bool
	// Consent: the user has to approve an application that delegates its login.
	Consent bool
	// Unavailable is the status of all answers of the applications; 0: none.
	Unavailable int
	// InsecureRedirect leads all requests to https.
	InsecureRedirect bool
	// HideRootservices: there is no rootservices document.
	HideRootservices bool
}

// JazzCounts is what happened at a Jazz server, and its JAS, since it was made.
type JazzCounts struct {
	Requests int
	Logins   int // good ones, with a password or a token
	Failures int // refused passwords and tokens
	// Passwords is how many requests brought one, whoever they went to.
	Passwords int
	Tokens    int // of Negotiate
	// Sessions is how many users' sessions began, by context.
	Sessions map[string]int
	// StateReused is how often a state or OAuth request token came a second time.
	StateReused int
	// PasswordsInURL is how many requests had one in the URL.
	PasswordsInURL int
	// Preemptive is how many passwords by Basic nobody had asked for: at an
	// application without Basic, or at JAS with prompt=none.
	Preemptive int
	// Silent is how often JAS was asked with prompt=none.
	Silent  int
	Logouts int
}

// Jazz is a model of a server of IBM's Engineering Lifecycle Management (ELM, once
// CLM), in this process, on a free port of 127.0.0.1: the contexts jts, ccm, qm, rm
// and gc, and with the login "jas" a Jazz Authorization Server on a port of its own.
// No such server was at hand to measure, so each behaviour names the public document,
// recording or code that tells of it, or says that it is a guess. What it serves is
// http, so that no cookie is Secure.
//
//	GET  {context}/rootservices  what there is, for everybody
//	GET  {context}/whoami        the URI of the user
//	GET  {context}/oslc/workitems/catalog, {context}/process/project-areas
//	GET, POST {context}/oslc/contexts/{area}/workitems
//	     any other path is a page for users
//
// Every secret that it makes up begins with CANARY-.
type Jazz struct {
	webServer               // of the applications
	jas           webServer // started with the login "jas" only
	o             JazzOptions
	acceptor      *Acceptor // of the applications; nil: no Kerberos
	jasAcceptor   *Acceptor
	clients       map[string]string // ids of JAS's clients → contexts
	contextClient map[string]string // the other way round

	mu           sync.Mutex
	modes        JazzModes
	users        map[string]string                  // name → password, "" for none
	appPasswords map[string]string                  // → user
	sessions     map[string]map[string]*jazzSession // by context and JSESSIONID
	ltpa         map[string]jazzToken               // by the single sign-on cookie
	sso          map[string]jazzToken               // by JAS's
	states       map[string]*jazzState
	codes        map[string]jazzCode
	requests     map[string]*jazzRequestToken // of OAuth 1.0a
	grants       map[string]*jazzGrant        // by JAZZ_AUTH_TOKEN
	items        map[string][]string          // titles of work items, by context
	counts       JazzCounts
}

// jazzContexts are the applications' context roots but for the JTS's (IBM's
// documentation; they are as installed).
var jazzContexts = []string{"ccm", "qm", "rm", "gc"}

// StartJazz starts a server that has no user yet.
func StartJazz(o JazzOptions) (*Jazz, error) {
	o.Host, o.JASHost = cmp.Or(o.Host, "localhost"), cmp.Or(o.JASHost, "localhost")
	o.Auth = cmp.Or(o.Auth, "form")
	o.Redirect = cmp.Or(o.Redirect, http.StatusFound)
	o.Context = cmp.Or(o.Context, "jts")
	o.LTPA, o.Idle = cmp.Or(o.LTPA, 2*time.Hour), cmp.Or(o.Idle, 30*time.Minute)
	o.CookieName = cmp.Or(o.CookieName, "LtpaToken2")
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Delegated == nil && (o.Auth == "form" || o.Auth == "negotiate") {
		o.Delegated = []string{"rm"}
	}
	j := &Jazz{
		o: o, clients: make(map[string]string), contextClient: make(map[string]string),
		users: make(map[string]string), appPasswords: make(map[string]string),
		sessions: make(map[string]map[string]*jazzSession),
		ltpa:     make(map[string]jazzToken), sso: make(map[string]jazzToken),
		states: make(map[string]*jazzState), codes: make(map[string]jazzCode),
		requests: make(map[string]*jazzRequestToken), grants: make(map[string]*jazzGrant),
		items: make(map[string][]string),
	}
	j.counts.Sessions = make(map[string]int)
	for _, context := range j.contexts() {
		id := randomHex(16)
		j.sessions[context], j.clients[id], j.contextClient[context] = make(map[string]*jazzSession), context, id
		j.items[context] = []string{"The first work item"}
	}
	for _, context := range o.Delegated {
		if context == o.Context || j.sessions[context] == nil {
			return nil, fmt.Errorf("rig: the context %q cannot delegate its login", context)
		}
	}
	switch {
	case !slices.Contains([]string{"form", "basic", "jas", "negotiate", "bearer", "jauth"}, o.Auth):
		return nil, fmt.Errorf("rig: no login %q of Jazz is known", o.Auth)
	case !slices.Contains([]int{http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect}, o.Redirect):
		return nil, fmt.Errorf("rig: Jazz does not lead to a login with status %d", o.Redirect)
	case !slices.Contains([]string{"", "saml", "oidc"}, o.JAS.External):
		return nil, fmt.Errorf("rig: a Jazz Authorization Server cannot delegate to %q", o.JAS.External)
	case o.NoLTPA && o.FailOver:
		return nil, errors.New("rig: a form needs a cookie to set")
	case o.Keytab == nil && (o.Auth == "negotiate" || o.JAS.Kerberos):
		return nil, errors.New("rig: without a keytab Jazz cannot ask for Negotiate")
	}
	if o.Keytab != nil {
		var err error
		if j.acceptor, err = NewAcceptor(o.Keytab, j.SPN()); err != nil {
			return nil, err
		}
		if j.jasAcceptor, err = NewAcceptor(o.Keytab, j.JASSPN()); err != nil {
			return nil, err
		}
	}
	return j, j.Start()
}

// contexts are all context roots.
func (j *Jazz) contexts() []string { return append([]string{j.o.Context}, jazzContexts...) }

// Start starts the server after Stop, and its JAS, on the same ports, with what they
// know.
func (j *Jazz) Start() error {
	if err := j.start(j); err != nil {
		return err
	}
	if j.o.Auth != "jas" {
		return nil
	}
	if err := j.jas.start(http.HandlerFunc(j.serveJAS)); err != nil {
		j.webServer.Stop()
		return err
	}
	return nil
}

// Stop ends the server and its JAS: connections are refused until Start.
func (j *Jazz) Stop() {
	j.webServer.Stop()
	j.jas.Stop()
}

// URL returns an application's URL: http://host:port/context.
func (j *Jazz) URL(context string) string { return j.base() + "/" + context }

// base returns the applications' origin.
func (j *Jazz) base() string { return strings.Replace(j.origin(), "localhost", j.o.Host, 1) }

// JASURL returns the Jazz Authorization Server's origin, http://host:port.
func (j *Jazz) JASURL() string { return strings.Replace(j.jas.origin(), "localhost", j.o.JASHost, 1) }

// SPN returns the applications' service principal name, HTTP/name.
func (j *Jazz) SPN() string { return "HTTP/" + j.o.Host }

// JASSPN returns the Jazz Authorization Server's service principal name.
func (j *Jazz) JASSPN() string { return "HTTP/" + j.o.JASHost }

// AddUser adds a user, or changes a user's password. Without a password the user
// comes by Kerberos only.
func (j *Jazz) AddUser(name, password string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.users[name] = password
}

// AddAppPassword gives a user an application password, which is good at all contexts.
func (j *Jazz) AddAppPassword(user, password string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.appPasswords[password] = user
}

// Set replaces all modes.
func (j *Jazz) Set(m JazzModes) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.modes = m
}

// DropSessions ends all sessions and logins, also JAS's, as a restart with new keys
// does.
func (j *Jazz) DropSessions() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.dropApps()
	clear(j.ltpa)
	clear(j.sso)
}

// DropApps ends the applications' sessions. The single sign-on's go on.
func (j *Jazz) DropApps() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.dropApps()
}

func (j *Jazz) dropApps() {
	for _, sessions := range j.sessions {
		clear(sessions)
	}
	clear(j.grants)
}

// Counts returns what happened so far.
func (j *Jazz) Counts() JazzCounts {
	j.mu.Lock()
	defer j.mu.Unlock()
	n := j.counts
	n.Sessions = maps.Clone(n.Sessions)
	return n
}
