package rig

import (
	"net/http"
	"strconv"
	"strings"
	"time"
)

// bitbucket is Bitbucket Data Center.
var bitbucket = product{
	name: "Bitbucket", typeID: "stash", version: "8.19.13", twoStep: "9.4.5",
	idle:        30 * time.Minute, // server.session.timeout (Atlassian's knowledge base, articles 779171650 and 858780629)
	maxFailures: 5,                // the same, articles 779171704 and 939513152
	// JSESSIONID before Bitbucket 5.
	sessionCookie: "BITBUCKETSESSIONID", rememberCookie: "_atl_bitbucket_remember_me",
	// X-AUSERNAME is on every answer to a user, also on a 404
	// (community.developer.atlassian.com/t/24422), and on none to nobody
	// (jenkinsci/stashnotifier-plugin#263).
	ausername: true,
	login:     "/login", home: "/dashboard", status: "/status",
	// A saved page has it as a link, and the toolkit follows it; where it leads is a
	// guess.
	logout: "/j_atl_security_logout", loggedOut: "/login?logout",
	private: []string{"/dashboard", "/getting-started", "/admin", "/profile", "/account"},
	admin:   []string{"/admin"},
	webSudo: webSudo{page: "/websudo", action: "/websudo", password: "j_password", destination: "next"},
	form: atlassianForm{
		action: "/j_atl_security_check", user: "j_username", password: "j_password", remember: "_atl_remember_me", destination: "next", picture: "captcha",
		html: `<form id="login-form" action="ACTION" method="post">
<input id="j_username" name="j_username" type="text">
<input id="j_password" name="j_password" type="password">
<input id="_atl_remember_me" name="_atl_remember_me" type="checkbox">
PICTURE
<input name="next" type="hidden" value="DESTINATION">
<input id="submit" name="submit" type="submit" value="Log in">
</form>`,
		// 302 to the login is how a public scanner knows a refusal (SCMKit).
		back: true,
	},
	welcome: `<span id="current-user" data-username="USER">USER</span> <a href="CONTEXT/j_atl_security_logout" class="logout-link">Log out</a>`,
	rest:    (*Atlassian).bitbucketREST,
	page:    (*Atlassian).bitbucketPage,
	refused: func(a *Atlassian, c *atlassianCall, reason string) {
		c.header.Set("WWW-Authenticate", `Basic realm="Atlassian Bitbucket"`)
		switch reason {
		case seraphDenied:
			c.exception(http.StatusUnauthorized, "com.atlassian.bitbucket.auth.CaptchaRequiredAuthenticationException", a.message(reason))
		case seraphForbidden:
			a.product.forbidden(a, c)
		default:
			c.exception(http.StatusUnauthorized, "com.atlassian.bitbucket.auth.IncorrectPasswordAuthenticationException", a.message(reason))
		}
	},
	// Of an unknown token no capture is known; it is answered like a wrong password.
	unauthorized: func(a *Atlassian, c *atlassianCall) { a.product.refused(a, c, seraphFailed) },
	forbidden: func(a *Atlassian, c *atlassianCall) {
		c.exception(http.StatusUnauthorized, "com.atlassian.bitbucket.auth.NoAccessAuthenticationException", a.message(seraphForbidden))
	},
}

// StartBitbucket starts a Bitbucket that has two projects and no user yet. Its
// errors are those that vriesdemichael/bitbucket-data-center-cli has recorded.
func StartBitbucket(o AtlassianOptions) (*Atlassian, error) {
	a, err := startAtlassian(&bitbucket, o)
	if err != nil {
		return nil, err
	}
	return a, a.Start()
}

const notPermitted = "You are not permitted to access this resource"

// exception answers with an error as Bitbucket's REST API writes it.
func (c *atlassianCall) exception(status int, name, message string) {
	c.json(status, map[string]any{"errors": []any{map[string]any{"context": nil, "message": message, "exceptionName": name}}})
}

// bitbucketREST answers what is under /rest (Bitbucket's REST API documentation).
func (a *Atlassian) bitbucketREST(c *atlassianCall) {
	path, _ := strings.CutPrefix(c.path, "/rest/api/1.0/")
	path, _ = strings.CutPrefix(path, "/rest/api/latest/")
	key, one := strings.CutPrefix(path, "projects/")
	switch {
	case c.Method != http.MethodGet:
		c.page(http.StatusMethodNotAllowed, "Method Not Allowed (405)")
	case path == "application-properties": // for everybody
		c.json(http.StatusOK, map[string]any{"version": a.version, "buildNumber": strconv.Itoa(a.buildNumber()), "displayName": "Bitbucket"})
	case path == "projects":
		found := []any{a.repositories("PUB", true)}
		if c.user != "" {
			found = append(found, a.repositories(projectKey, false))
		}
		c.json(http.StatusOK, map[string]any{"size": len(found), "limit": 25, "isLastPage": true, "start": 0, "values": found})
	case one && (key == "PUB" || key == projectKey && c.user != ""):
		c.json(http.StatusOK, a.repositories(key, key == "PUB"))
	case one && key != projectKey:
		c.exception(http.StatusNotFound, "com.atlassian.bitbucket.project.NoSuchProjectException", "Project "+strconv.Quote(key)+" does not exist.")
	case path == "users" && c.user == "":
		c.exception(http.StatusUnauthorized, "com.atlassian.plugins.rest.api.security.exception.AuthenticationRequiredException", notPermitted)
	case path == "users":
		found := []any{}
		for name := range a.accounts {
			found = append(found, map[string]any{"name": name, "slug": name, "active": true, "type": "NORMAL"})
		}
		c.json(http.StatusOK, map[string]any{"size": len(found), "limit": 25, "isLastPage": true, "start": 0, "values": found})
	case one || strings.HasPrefix(path, "admin/"): // whether somebody is logged in or not
		c.exception(http.StatusUnauthorized, "com.atlassian.bitbucket.AuthorisationException", notPermitted)
	default:
		c.page(http.StatusNotFound, "Not Found (404)")
	}
}

func (a *Atlassian) repositories(key string, public bool) map[string]any {
	return map[string]any{"key": key, "id": len(key), "name": key, "public": public, "type": "NORMAL"}
}

// bitbucketPage answers the servlet that says who asks: in plain text, and to
// nobody with nothing, which is a guess. A personal access token is none there
// (Bitbucket's documentation, "HTTP access tokens": since 8.19.12 they work under
// /rest and /scm only, and elsewhere lead to the login).
func (a *Atlassian) bitbucketPage(c *atlassianCall) bool {
	if c.path != "/plugins/servlet/applinks/whoami" {
		return false
	}
	scheme, _, _ := strings.Cut(c.Header.Get("Authorization"), " ")
	switch {
	case c.user == "" && strings.EqualFold(scheme, "Bearer"):
		c.redirect(a.loginURL(c.path))
	case a.modes.NoPermission && c.user != "":
		a.product.forbidden(a, c)
	case a.wantsSudo(c):
		a.toWebSudo(c)
	default:
		c.content(http.StatusOK, "text/plain;charset=UTF-8", []byte(c.user))
	}
	return true
}
