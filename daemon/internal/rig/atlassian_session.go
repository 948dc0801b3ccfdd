package rig

import (
	"crypto/rand"
	"encoding/hex"
	"net/http"
	"strings"
	"time"
)

// How long a session lives without a request.
const (
	idle = 300 * time.Minute // WEB-INF/web.xml as shipped (Atlassian's knowledge base, article 604209887)
	// Until its second request a session is on probation (JRASERVER-31322 and
	// Atlassian's blog, "Getting rid of unwanted HTTP sessions").
	probation              = time.Minute
	probationAuthenticated = 10 * time.Minute
)

// atlassianSession is a session in one node's Tomcat.
type atlassianSession struct {
	id       string
	tag      string // X-ASESSIONID, which is no credential
	user     string // "" for nobody
	requests int    // the one that began it included
	used     time.Time
}

// alive reports whether a session is not idle for too long.
func (j *Atlassian) alive(s *atlassianSession) bool {
	limit := idle
	if s.requests < 2 && !j.modes.NoProbation {
		limit = probation
		if s.user != "" {
			limit = probationAuthenticated
		}
	}
	return j.now().Sub(s.used) < limit
}

// newSession begins a session on a node.
func (j *Atlassian) newSession(node int, user string) *atlassianSession {
	s := &atlassianSession{id: secretID(), tag: sessionTag(), user: user, requests: 1, used: j.now()}
	j.nodes[node][s.id] = s
	return s
}

// attach finds the session that a request belongs to. Any request keeps it
// alive, as in any servlet container. Of several session cookies the first that
// is valid counts.
func (j *Atlassian) attach(c *atlassianCall) {
	node := j.nodes[c.node]
	for _, cookie := range c.CookiesNamed("JSESSIONID") {
		s := node[cookie.Value]
		if s == nil || !j.alive(s) {
			delete(node, cookie.Value)
			c.stale = true
			continue
		}
		s.requests++
		s.used = j.now()
		c.session, c.user, c.stale = s, s.user, false
		return
	}
}

// balance chooses the node of a request. The load balancer gives out a new
// sticky cookie with every answer, as an AWS Application Load Balancer does
// (its documentation, "Sticky sessions"); without one the next node gets the
// request.
func (j *Atlassian) balance(c *atlassianCall) {
	if !j.modes.TwoNodes {
		return
	}
	c.node = 1 - j.lastNode
	if cookie, err := c.Cookie("AWSALB"); err == nil {
		if node, known := j.sticky[cookie.Value]; known {
			c.node = node
		}
	}
	j.lastNode = c.node
	value := secretID()
	j.sticky[value] = c.node
	c.setCookie("AWSALB=" + value + "; Expires=" + j.now().Add(7*24*time.Hour).UTC().Format(http.TimeFormat) + "; Path=/")
}

// login makes the request, and a new session, a user's. The session that the
// request came with ends: an id is never kept over a login (OWASP, Session
// Management Cheat Sheet).
func (j *Atlassian) login(c *atlassianCall, name string) {
	if c.session != nil {
		delete(j.nodes[c.node], c.session.id)
	}
	a := j.accounts[name]
	a.logins++
	a.previous, a.last = a.last, j.now()
	c.header.Set(seraphReason, seraphOK)
	c.user = name
	if j.modes.Anonymous {
		name = ""
	}
	c.session = j.newSession(c.node, name)
	if j.modes.NoSession {
		delete(j.nodes[c.node], c.session.id)
		c.cookieless = true
		return
	}
	j.sessionCookies(c)
	// Quirks that a cookie parser has to bear: a deletion as old Tomcats write it
	// (org.apache.tomcat.util.http.ServerCookie), of the remember-me cookie that
	// was not asked for, and a value with "|" and an escaped colon, as captures of
	// Jira's AJS.conglomerate.cookie and seraph.rememberme.cookie have them.
	c.setCookie(`seraph.rememberme.cookie=""; Expires=Thu, 01-Jan-1970 00:00:10 GMT; Path=` + j.cookiePath())
	c.setCookie("AJS.conglomerate.cookie=|streams.view.10000=full-view|last%3Aproject=" + projectKey + "; Path=" + j.cookiePath())
}

// sessionCookies sets the cookies of a session, as captured after a good login
// (Atlassian's page "Cookie-based authentication" has the first). The token
// against forgery ends in lin for a user and in lout for nobody.
func (j *Atlassian) sessionCookies(c *atlassianCall) {
	c.setCookie("JSESSIONID=" + c.session.id + "; Path=" + j.cookiePath() + "; HttpOnly")
	state := "lout"
	if c.session.user != "" {
		state = "lin"
	}
	c.setCookie("atlassian.xsrf.token=CANARY-" + rand.Text()[:16] + "_" + randomHex(20) + "_" + state + "; Path=" + j.cookiePath())
}

// cookiePath is the Path of Jira's cookies: the context path.
func (j *Atlassian) cookiePath() string {
	if j.context == "" {
		return "/"
	}
	return j.context
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
