package rig

import (
	"encoding/json"
	"net/http"
	"net/url"
	"time"
)

// jira is Jira Data Center.
var jira = product{
	name: "Jira", typeID: "jira", version: "9.12.0", twoStep: "10.3.15", metas: true,
	idle:      300 * time.Minute, // WEB-INF/web.xml as shipped (Atlassian's knowledge base, article 604209887)
	probation: true, maxFailures: 3,
	sessionCookie: "JSESSIONID", rememberCookie: "seraph.rememberme.cookie", xsrfCookie: "atlassian.xsrf.token",
	seraph: true, ausername: true, nobody: "anonymous",
	login: "/login.jsp", home: "/secure/Dashboard.jspa", status: "/status",
	private: []string{"/secure/"}, admin: []string{"/secure/admin/"},
	webSudo: webSudo{
		page: "/secure/admin/WebSudoAuthenticate!default.jspa", action: "/secure/admin/WebSudoAuthenticate.jspa",
		password: "webSudoPassword", destination: "webSudoDestination",
	},
	form: atlassianForm{
		action: "/login.jsp", user: "os_username", password: "os_password", remember: "os_cookie", destination: "os_destination", picture: "os_captcha",
		html: `<form id="login-form" action="ACTION" method="post">
<input id="login-form-username" name="os_username" type="text">
<input id="login-form-password" name="os_password" type="password">
<input id="login-form-remember-me" name="os_cookie" type="checkbox" value="true">
PICTURE
<input name="os_destination" type="hidden" value="DESTINATION">
<input name="user_role" type="hidden" value="">
<input name="atl_token" type="hidden" value="TOKEN">
<input id="login-form-submit" name="login" type="submit" value="Log In">
</form>`,
	},
	welcome: `<p>Logged in as <span id="header-details-user-fullname">USER</span>.</p>`,
	quirks:  true,
	rest:    (*Atlassian).jiraREST,
	refused: basicRefused,
	unauthorized: func(a *Atlassian, c *atlassianCall) {
		a.unauthorized(c, notAuthenticated)
	},
	forbidden: func(_ *Atlassian, c *atlassianCall) {
		c.header.Set(seraphReason, seraphForbidden)
		c.errors(http.StatusForbidden, "You do not have the permission to use Jira.")
	},
}

// StartJira starts a Jira that has a few issues and no user yet. JQL is not
// interpreted: a search finds every issue that the user may see.
func StartJira(o AtlassianOptions) (*Atlassian, error) {
	j, err := startAtlassian(&jira, o)
	if err != nil {
		return nil, err
	}
	j.addIssue(jiraIssue{summary: "An issue that everybody may read", kind: "Task", public: true})
	j.addIssue(jiraIssue{summary: "An issue for users", kind: "Bug"})
	j.addIssue(jiraIssue{summary: "Another issue for users", kind: "Task"})
	return j, j.Start()
}

// sessionPath is the login resource (Jira's REST documentation, "auth/1/session").
const sessionPath = "/rest/auth/1/session"

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

// session answers the login resource.
func (j *Atlassian) session(c *atlassianCall) {
	switch {
	case c.Method == http.MethodPost && !j.noRestLogin:
		j.jsonLogin(c)
	case c.Method == http.MethodGet:
		if c.user == "" {
			j.unauthorized(c, notAuthenticated)
			return
		}
		c.json(http.StatusOK, map[string]any{
			"self":      j.URL() + "/rest/api/latest/user?username=" + url.QueryEscape(c.user),
			"name":      c.user,
			"loginInfo": j.account(c.user).info(),
		})
	case c.Method == http.MethodDelete:
		if c.user == "" {
			j.unauthorized(c, notAuthenticated)
			return
		}
		j.leave(c)
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
	reason := j.judge(c, credentials.Username, credentials.Password, false)
	if reason == seraphOK {
		j.counts.Logins++
		j.login(c, credentials.Username, false)
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

func (j *Atlassian) unauthorized(c *atlassianCall, messages ...string) {
	j.challenge(c)
	c.errors(http.StatusUnauthorized, messages...)
}

// errors answers with the error collection of Jira's REST API.
func (c *atlassianCall) errors(status int, messages ...string) {
	c.json(status, map[string]any{"errorMessages": messages, "errors": struct{}{}})
}
