package rig

import (
	"crypto/rand"
	"encoding/hex"
	"net/http"
	"strings"
	"time"
)

// Until its second request a session is on probation (JRASERVER-31322 and
// Atlassian's blog, "Getting rid of unwanted HTTP sessions").
const (
	probation              = time.Minute
	probationAuthenticated = 10 * time.Minute
)

// rememberedFor is how long a cookie remembers a user ("autologin.cookie.age" in
// seraph-config.xml as shipped with Jira).
const rememberedFor = 14 * 24 * time.Hour

// atlassianSession is a session in one node's Tomcat.
type atlassianSession struct {
	id       string
	tag      string // X-ASESSIONID, which is no credential
	xsrf     string // what forms have to bring back
	user     string // "" for nobody
	requests int    // the one that began it included
	used     time.Time

	token   string    // of Crowd, that it rests on; "" for none
	checked time.Time // when Crowd said that it is good

	refusal  string // of the last login, for Bitbucket's page
	elevated bool   // the password was given once more
}

// alive reports whether a session is not idle for too long.
func (a *Atlassian) alive(s *atlassianSession) bool {
	limit := a.product.idle
	if a.product.probation && s.requests < 2 && !a.modes.NoProbation {
		limit = probation
		if s.user != "" {
			limit = probationAuthenticated
		}
	}
	return a.now().Sub(s.used) < limit
}

// newSession begins a session on a node. The token against forgery ends in lin for
// a user and in lout for nobody (ten captures of Jira and Confluence).
func (a *Atlassian) newSession(node int, user string) *atlassianSession {
	state := "lout"
	if user != "" {
		state = "lin"
	}
	s := &atlassianSession{
		id: secretID(), tag: sessionTag(), xsrf: "CANARY-" + rand.Text()[:16] + "_" + randomHex(20) + "_" + state,
		user: user, requests: 1, used: a.now(),
	}
	a.nodes[node][s.id] = s
	return s
}

// begin gives a request a session of nobody, if it has none and may have one. That
// everybody gets one is what JRASERVER-31322 is about.
func (a *Atlassian) begin(c *atlassianCall) {
	if c.session == nil && !c.cookieless {
		c.session = a.newSession(c.node, "")
		a.sessionCookies(c)
	}
}

// attach finds the session that a request belongs to. Any request keeps it
// alive, as in any servlet container. Of several session cookies the first that
// is valid counts.
func (a *Atlassian) attach(c *atlassianCall) {
	node := a.nodes[c.node]
	for _, cookie := range c.CookiesNamed(a.product.sessionCookie) {
		s := node[cookie.Value]
		if s == nil || !a.alive(s) {
			delete(node, cookie.Value)
			c.stale = true
			continue
		}
		s.requests++
		s.used = a.now()
		c.session, c.user, c.stale = s, s.user, false
		break
	}
	if a.crowd != nil {
		a.single(c)
	}
	if c.user == "" {
		a.remember(c)
	}
}

// single is single sign-on by Crowd: an application looks at the cookie of the
// request, and not at its own session, to see who comes. In the session it notes
// that a token was good, and asks again after a while (the Crowd client's cookie
// code, and "The crowd.properties file"). Who sends the session's cookie alone is
// refused then; that it is good until then is a guess.
func (a *Atlassian) single(c *atlassianCall) {
	token := ""
	if cookie, err := c.Cookie(crowdCookie); err == nil {
		token = cookie.Value
	}
	s := c.session
	resting := s != nil && s.user != "" && s.token != ""
	switch {
	case token == "" && !resting:
		return
	case resting && (token == "" || token == s.token) && a.now().Sub(s.checked) < a.crowdInterval:
		return
	}
	user, ok := "", false
	if token != "" {
		user, ok = a.crowd.Validate(token, factorsOf(c.Request))
	}
	switch {
	case ok && s != nil && s.user == user:
		s.token, s.checked = token, a.now()
	case ok:
		a.counts.CrowdSessions++
		c.token, c.stale = token, false
		a.enter(c, user)
	case resting: // the session was the token's
		delete(a.nodes[c.node], s.id)
		c.session, c.user, c.stale = nil, "", true
	}
}

// remember logs in whom a cookie remembers: on any request, without a word
// (Atlassian's documentation of the cookies of Jira, Confluence, Bitbucket and
// FishEye).
func (a *Atlassian) remember(c *atlassianCall) {
	for _, cookie := range c.CookiesNamed(a.product.rememberCookie) {
		if user, known := a.remembered[cookie.Value]; known {
			a.counts.Remembered++
			c.stale = false
			a.enter(c, user)
			return
		}
	}
}

// balance chooses the node of a request. The load balancer gives out a new
// sticky cookie with every answer, as an AWS Application Load Balancer does
// (its documentation, "Sticky sessions"); without one the next node gets the
// request.
func (a *Atlassian) balance(c *atlassianCall) {
	if !a.modes.TwoNodes {
		return
	}
	c.node = 1 - a.lastNode
	if cookie, err := c.Cookie("AWSALB"); err == nil {
		if node, known := a.sticky[cookie.Value]; known {
			c.node = node
		}
	}
	a.lastNode = c.node
	value := secretID()
	a.sticky[value] = c.node
	c.setCookie("AWSALB=" + value + "; Expires=" + a.now().Add(7*24*time.Hour).UTC().Format(http.TimeFormat) + "; Path=/")
}

// enter makes the request, and a new session, a user's. The session that the
// request came with ends: an id is never kept over a login (OWASP, Session
// Management Cheat Sheet).
func (a *Atlassian) enter(c *atlassianCall, name string) {
	if c.session != nil {
		delete(a.nodes[c.node], c.session.id)
	}
	account := a.accounts[name]
	if account == nil { // Crowd's
		account = &atlassianAccount{}
		a.accounts[name] = account
	}
	account.logins++
	account.previous, account.last = account.last, a.now()
	if a.product.seraph {
		c.header.Set(seraphReason, seraphOK)
	}
	c.user = name
	if a.modes.Anonymous {
		name = ""
	}
	c.session = a.newSession(c.node, name)
	if a.modes.NoSession {
		delete(a.nodes[c.node], c.session.id)
		c.cookieless = true
		return
	}
	c.session.token, c.session.checked = c.token, a.now()
	a.sessionCookies(c)
}

// login is enter after a login, as opposed to a session that begins because of a
// cookie. If Crowd has given a token it sets that cookie too.
func (a *Atlassian) login(c *atlassianCall, name string, remember bool) {
	a.enter(c, name)
	if c.cookieless {
		return
	}
	if c.token != "" {
		c.setCookie(a.crowd.CookieLine(c.token))
	}
	cookie, path := a.product.rememberCookie, a.cookiePath()
	switch {
	case remember:
		value := secretID() + "%3A" + randomHex(20) // as captures of seraph.rememberme.cookie have it
		a.remembered[value] = name
		c.setCookie(cookie + "=" + value + "; Expires=" + a.now().Add(rememberedFor).UTC().Format(http.TimeFormat) + "; Path=" + path + "; HttpOnly")
	case a.product.quirks:
		// Quirks that a cookie parser has to bear: a deletion as old Tomcats write it
		// (org.apache.tomcat.util.http.ServerCookie), of the remember-me cookie that
		// was not asked for, and a value with "|" and an escaped colon, as captures of
		// Jira's AJS.conglomerate.cookie and seraph.rememberme.cookie have them.
		c.setCookie(cookie + `=""; Expires=Thu, 01-Jan-1970 00:00:10 GMT; Path=` + path)
		c.setCookie("AJS.conglomerate.cookie=|streams.view.10000=full-view|last%3Aproject=" + projectKey + "; Path=" + path)
	}
}

// leave ends the request's session and what would bring it back.
func (a *Atlassian) leave(c *atlassianCall) {
	if c.user == "" {
		return
	}
	a.counts.Logouts++
	for _, cookie := range c.CookiesNamed(a.product.rememberCookie) {
		delete(a.remembered, cookie.Value)
		c.setCookie(cookie.Name + "=; Max-Age=0; Path=" + a.cookiePath() + "; HttpOnly")
	}
	if c.session.token != "" {
		// One logout counts for Crowd and all its applications ("Logging in to
		// Crowd").
		a.crowd.Logout(c.session.token)
		c.setCookie(a.crowd.CookieLine(""))
	}
	delete(a.nodes[c.node], c.session.id)
	c.session, c.user = nil, ""
	if a.product.seraph {
		c.header.Set(seraphReason, seraphOut)
	}
}

// sessionCookies sets the cookies of a session, as captured after a good login
// (Atlassian's page "Cookie-based authentication" has the first).
func (a *Atlassian) sessionCookies(c *atlassianCall) {
	c.setCookie(a.product.sessionCookie + "=" + c.session.id + "; Path=" + a.cookiePath() + "; HttpOnly")
	if a.product.xsrfCookie != "" {
		c.setCookie(a.product.xsrfCookie + "=" + c.session.xsrf + "; Path=" + a.cookiePath())
	}
}

// cookiePath is the Path of the product's cookies: the context path.
func (a *Atlassian) cookiePath() string {
	if a.context == "" {
		return "/"
	}
	return a.context
}

// ForgetUsers ends what remembers users: the cookies of remember-me and Crucible's
// tokens, as an administrator does ("Clear all tokens").
func (a *Atlassian) ForgetUsers() {
	a.mu.Lock()
	defer a.mu.Unlock()
	clear(a.remembered)
	clear(a.feauth)
}

// secretID returns an unguessable value: CANARY- and 32 hexadecimal digits.
func secretID() string { return "CANARY-" + strings.ToUpper(randomHex(16)) }

// sessionTag returns a value for X-ASESSIONID.
func sessionTag() string { return strings.ToLower(rand.Text()[:7]) }

func randomHex(bytes int) string {
	b := make([]byte, bytes)
	rand.Read(b)
	return hex.EncodeToString(b)
}

// newUUID returns an identifier in the form of RFC 9562.
func newUUID() string {
	s := randomHex(16)
	return s[:8] + "-" + s[8:12] + "-4" + s[13:16] + "-a" + s[17:20] + "-" + s[20:]
}
