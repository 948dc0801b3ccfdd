package rig

import (
	"encoding/json"
	"mime"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"time"
)

// What Seraph says of a login, and where (com.atlassian.seraph.auth.LoginReason
// in Jira's API documentation).
const (
	seraphReason    = "X-Seraph-LoginReason"
	seraphOK        = "OK"
	seraphOut       = "OUT"
	seraphFailed    = "AUTHENTICATED_FAILED"
	seraphDenied    = "AUTHENTICATION_DENIED"
	seraphForbidden = "AUTHORISATION_FAILED"
)

// Texts of Jira's REST API.
const (
	notAuthenticated = "You are not authenticated. Authentication required to perform this operation."
	basicDisabled    = "Basic Authentication has been disabled on this instance."
	xsrfFailed       = "XSRF check failed"
)

// sessionPath is the login resource (Jira's REST documentation, "auth/1/session").
const sessionPath = "/rest/auth/1/session"

// atlassianAccount is a user.
type atlassianAccount struct {
	password string // "" for none
	failures int    // in a row
	logins   int
	failed   int       // in all
	lastFail time.Time // zero: never
	last     time.Time // login
	previous time.Time // the one before
}

// info is the loginInfo of Jira's answers. What never happened is left out.
func (a *atlassianAccount) info() any {
	return struct {
		LastFailed string `json:"lastFailedLoginTime,omitempty"`
		Previous   string `json:"previousLoginTime,omitempty"`
		Logins     int    `json:"loginCount"`
		Failed     int    `json:"failedLoginCount"`
	}{jiraTime(a.lastFail), jiraTime(a.previous), a.logins, a.failed}
}

// jiraTime is how Jira writes a time; "" for none.
func jiraTime(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format("2006-01-02T15:04:05.000-0700")
}

// judge checks a password and returns what Seraph says. After too many failures
// in a row it is not even looked at (Atlassian's page "Cookie-based
// authentication", CAPTCHAs); such an attempt counts as a failed one
// (go-jira/jira#8).
func (j *Atlassian) judge(name, password string) string {
	a := j.accounts[name]
	if a == nil {
		j.counts.Refused++
		return seraphFailed
	}
	reason := seraphOK
	switch {
	case a.failures >= j.maxFailures:
		reason = seraphDenied
		j.counts.Denied++
	case a.password == "" || a.password != password:
		reason = seraphFailed
		j.counts.Refused++
		a.failures++
	case j.modes.NoPermission:
		return seraphForbidden
	default:
		a.failures = 0
		return seraphOK
	}
	a.failed++
	a.lastFail = j.now()
	return reason
}

// session answers the login resource.
func (j *Atlassian) session(c *atlassianCall) {
	switch c.Method {
	case http.MethodPost:
		j.jsonLogin(c)
	case http.MethodGet:
		if c.user == "" {
			j.unauthorized(c, notAuthenticated)
			return
		}
		c.json(http.StatusOK, map[string]any{
			"self":      j.URL() + "/rest/api/latest/user?username=" + url.QueryEscape(c.user),
			"name":      c.user,
			"loginInfo": j.account(c.user).info(),
		})
	case http.MethodDelete:
		if c.user == "" {
			j.unauthorized(c, notAuthenticated)
			return
		}
		j.counts.Logouts++
		delete(j.nodes[c.node], c.session.id)
		c.session, c.user = nil, ""
		c.header.Set(seraphReason, seraphOut)
		c.status = http.StatusNoContent
	default:
		c.page(http.StatusMethodNotAllowed, "Method Not Allowed (405)")
	}
}

// jsonLogin is the login by JSON (Atlassian's page "Cookie-based
// authentication").
func (j *Atlassian) jsonLogin(c *atlassianCall) {
	if j.modes.BasicDisabled {
		j.disabled(c)
		return
	}
	var credentials struct{ Username, Password string }
	if err := json.Unmarshal(c.body, &credentials); err != nil {
		c.errors(http.StatusBadRequest, "The request is not JSON.")
		return
	}
	reason := j.judge(credentials.Username, credentials.Password)
	if reason == seraphOK {
		j.counts.Logins++
		j.login(c, credentials.Username)
		c.json(http.StatusOK, map[string]any{
			"session":   map[string]string{"name": "JSESSIONID", "value": c.session.id},
			"loginInfo": j.account(credentials.Username).info(),
		})
		return
	}
	c.header.Set(seraphReason, reason)
	switch {
	case reason == seraphFailed && j.modes.EmptyRefusal:
		c.status = http.StatusOK
	case reason == seraphFailed:
		// The challenge is no scheme that anybody speaks, and hardly well-formed.
		c.header.Set("WWW-Authenticate", "JIRA REST POST")
		c.errors(http.StatusUnauthorized, "Login failed")
	case reason == seraphDenied:
		// This resource says it in JSON (ctco/zephyr-sync#19).
		j.captcha(c)
		c.errors(http.StatusForbidden, "Login denied")
	default:
		// 403 may mean that the password is right and the user is not let in (REST
		// documentation).
		c.errors(http.StatusForbidden, "Login denied")
	}
}

// formLogin is a person at the login page. If a picture is to be solved, a person
// solves it, so the password is looked at (Atlassian's page "Cookie-based
// authentication", CAPTCHAs).
func (j *Atlassian) formLogin(c *atlassianCall) {
	form, err := url.ParseQuery(string(c.body))
	if err != nil {
		c.page(http.StatusBadRequest, "Bad Request (400)")
		return
	}
	name := form.Get("os_username")
	if a := j.accounts[name]; a != nil {
		a.failures = min(a.failures, j.maxFailures-1)
	}
	if reason := j.judge(name, form.Get("os_password")); reason != seraphOK {
		c.header.Set(seraphReason, reason)
		j.loginPage(c)
		return
	}
	j.counts.Forms++
	j.login(c, name)
	c.redirect(j.context + localPath(form.Get("os_destination"), dashboard))
}

// basic logs in by a Basic header, if there is one and nobody is logged in: a
// session of its own for every request (JRASERVER-27047). It reports whether
// the request goes on; otherwise it has been answered.
func (j *Atlassian) basic(c *atlassianCall) bool {
	name, password, ok := c.BasicAuth()
	if !ok || c.user != "" {
		return true
	}
	if j.modes.BasicDisabled {
		j.disabled(c)
		return false
	}
	reason := j.judge(name, password)
	if reason == seraphOK {
		j.counts.Basic++
		j.login(c, name)
		return true
	}
	c.header.Set(seraphReason, reason)
	switch {
	case reason == seraphFailed && j.modes.EmptyRefusal:
		c.status = http.StatusOK
	case reason == seraphFailed:
		// As quoted in jira-node/node-jira-client#314.
		j.challenge(c)
		c.page(http.StatusUnauthorized, "Basic Authentication Failure - Reason : "+reason)
	case reason == seraphDenied:
		// As captured in chronos-timetracker#107 and Jit#12.
		j.captcha(c)
		c.page(http.StatusForbidden, "Basic Authentication Failure - Reason : "+reason)
	default:
		c.page(http.StatusForbidden, "Basic Authentication Failure - Reason : "+reason)
	}
	return false
}

// captcha adds what the captures chronos-timetracker#107 and Jit#12 agree on: a
// new session cookie, written unlike all others, and where the picture is.
func (j *Atlassian) captcha(c *atlassianCall) {
	c.session = j.newSession(c.node, "")
	c.setCookie("JSESSIONID=" + c.session.id + ";path=" + j.cookiePath() + ";HttpOnly")
	c.header.Set("X-Authentication-Denied-Reason", "CAPTCHA_CHALLENGE; login-url="+j.URL()+loginPath)
	j.challenge(c)
}

// challenge names a scheme that needs an application link (the same captures).
func (j *Atlassian) challenge(c *atlassianCall) {
	c.header.Set("WWW-Authenticate", `OAuth realm="`+url.QueryEscape(j.URL())+`"`)
}

// disabled refuses a password unseen, in the words of
// atlassian/data-center-helm-charts#1101.
func (j *Atlassian) disabled(c *atlassianCall) {
	j.counts.Disabled++
	c.json(http.StatusForbidden, map[string]string{"message": basicDisabled})
}

func (j *Atlassian) unauthorized(c *atlassianCall, messages ...string) {
	j.challenge(c)
	c.errors(http.StatusUnauthorized, messages...)
}

// forbidden is for a known user without the right to use Jira.
func (j *Atlassian) forbidden(c *atlassianCall) {
	c.header.Set(seraphReason, seraphForbidden)
	c.errors(http.StatusForbidden, "You do not have the permission to use Jira.")
}

// errors answers with the error collection of Jira's REST API.
func (c *atlassianCall) errors(status int, messages ...string) {
	c.json(status, map[string]any{"errorMessages": messages, "errors": struct{}{}})
}

// browsers are the agents that Jira takes for a browser's pages (Atlassian's
// knowledge base, "REST API calls with a browser User-Agent header may fail CSRF
// checks").
var browsers = regexp.MustCompile(`^Mozilla/.*\b(Firefox|Chrome|Safari)/`)

// forged reports whether a POST may come from a foreign page: a form that does
// not say otherwise (Atlassian, "Form token handling"), or any POST of a browser
// that is not known to come from Jira's own pages, whatever else it says (the
// article above).
func (j *Atlassian) forged(c *atlassianCall) bool {
	switch strings.ToLower(c.Header.Get("X-Atlassian-Token")) {
	case "no-check", "nocheck":
	default:
		switch c.mediaType() {
		case "", "application/x-www-form-urlencoded", "multipart/form-data", "text/plain":
			return true
		}
	}
	return browsers.MatchString(c.UserAgent()) && !j.sameOrigin(c)
}

// sameOrigin compares with what Jira takes for its own scheme, host and port.
func (j *Atlassian) sameOrigin(c *atlassianCall) bool {
	if origin := c.Header.Get("Origin"); origin != "" {
		return origin == j.origin()
	}
	u, err := url.Parse(c.Referer())
	return err == nil && u.Scheme+"://"+u.Host == j.origin()
}

// mediaType returns the request's media type in lower case, "" for none.
func (c *atlassianCall) mediaType() string {
	t, _, err := mime.ParseMediaType(c.Header.Get("Content-Type"))
	if err != nil {
		return ""
	}
	return t
}
