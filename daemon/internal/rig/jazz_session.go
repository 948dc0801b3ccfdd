package rig

import (
	"net/http"
	"time"
)

// jazzSession is an application's session, of nobody before the login.
type jazzSession struct {
	id          string
	user        string
	begun, used time.Time
	// saved is where the login leads, with the container Tomcat, and pending the user who
	// has logged in and was not there yet.
	saved, pending string
}

// jazzToken is a login: the value of a single sign-on cookie. Its life does not depend
// on its use (Open Liberty's documentation of ltpa).
type jazzToken struct {
	user   string
	issued time.Time
}

// deleted is how WebSphere deletes a cookie (rtcclient #92 and ELMAndOAuth20 show it
// for WASReqURL).
const deleted = `=""; Expires=Thu, 01 Dec 1994 16:00:00 GMT; Path=/`

// newSession begins a session at the application, and sets its cookie. The value has a
// colon and what follows it, as in the recording of IBM/ELM-Python-Client
// (dn_simple_createartifact_trace.html).
func (j *Jazz) newSession(c *jazzCall, user string) *jazzSession {
	now := j.o.Now()
	s := &jazzSession{id: secretID() + ":" + randomHex(4), user: user, begun: now, used: now}
	j.sessions[c.context][s.id] = s
	if user != "" {
		j.counts.Sessions[c.context]++
	}
	c.setCookie("JSESSIONID=" + s.id + "; Path=/" + c.context + "; HttpOnly")
	return s
}

// find finds the session that the request comes with. A session that a password at JAS
// has begun ends when its access token does.
func (j *Jazz) find(c *jazzCall) {
	now := j.o.Now()
	s := j.sessions[c.context][c.value("JSESSIONID")]
	if s == nil || now.Sub(s.used) >= j.o.Idle || j.o.Auth == "jas" && s.user != "" && now.Sub(s.begun) >= j.o.LTPA {
		return
	}
	s.used = now
	c.session = s
}

// attach finds out who asks; false: it has answered. Everybody gets a session, also
// nobody (the recording).
func (j *Jazz) attach(c *jazzCall) bool {
	j.find(c)
	name, password, basic := c.BasicAuth()
	switch {
	case j.delegates(c.context):
		c.user = j.granted(c)
	case j.o.Auth == "jas":
		if c.session != nil {
			c.user = c.session.user
		}
		// A password that nobody asked for is taken (rtcclient #112).
		if basic && c.user == "" && j.right(name, password) {
			c.user = name
		}
	case j.o.NoLTPA && j.o.Auth == "negotiate":
		user, ok := j.negotiate(c, j.acceptor)
		if !ok {
			return false
		}
		c.user = user
	case j.o.NoLTPA && c.session != nil && j.o.Auth == "form":
		if c.session.pending != "" && c.URL.RequestURI() == c.session.saved {
			c.user, c.session.pending = c.session.pending, ""
		} else {
			c.user = c.session.user
		}
	case !j.o.NoLTPA:
		c.user = j.known(j.ltpa, c.value(j.o.CookieName))
	}
	if j.o.Auth == "basic" && basic && c.user == "" && !j.delegates(c.context) && j.right(name, password) {
		c.user = name
		// That a login by Basic sets it too is a guess: many containers do.
		j.issue(c, name)
	}
	switch {
	case c.session == nil || c.user != "" && c.session.user != "" && c.session.user != c.user:
		c.session = j.newSession(c, c.user)
	case c.user != "" && c.session.user == "":
		c.session.user = c.user
		j.counts.Sessions[c.context]++
	}
	return true
}

// known returns whose login a value is, "" for nobody's.
func (j *Jazz) known(tokens map[string]jazzToken, value string) string {
	if t, ok := tokens[value]; ok && j.o.Now().Sub(t.issued) < j.o.LTPA {
		return t.user
	}
	return ""
}

// issue sets the single sign-on cookie, if there is one. Its value has the characters
// of base64, as real ones have.
func (j *Jazz) issue(c *jazzCall, user string) {
	if j.o.NoLTPA {
		return
	}
	value := secretID() + "+/="
	j.ltpa[value] = jazzToken{user, j.o.Now()}
	c.setCookie(j.o.CookieName + "=" + value + "; Path=/; HttpOnly")
}

// logoutService is where IBM's own clients log out: by POST, or DOORS Next's by GET,
// and without a header against forgery.
const logoutService = "/service/com.ibm.team.repository.service.internal.ILogoutRestService"

// logout ends the application's session. The single sign-on cookie is deleted, but its
// value stays good unless the container keeps a list of such (Open Liberty,
// "Track logged out SSO cookies"), and JAS does not hear of it (jazz.net's Deployment
// wiki, LogoutJASSAMLOIDC).
func (j *Jazz) logout(c *jazzCall) {
	if c.user != "" {
		j.counts.Logouts++
	}
	delete(j.sessions[c.context], c.session.id)
	delete(j.grants, c.value(authTokenCookie))
	if j.o.LogoutTracked {
		delete(j.ltpa, c.value(j.o.CookieName))
	}
	c.setCookie(j.o.CookieName + deleted)
	c.page(http.StatusOK, "You are logged out", "")
}
