package rig

import (
	"net/http"
	"strings"
	"time"
)

// crucible is Crucible with FishEye. It has no two-step verification, and knows no
// Seraph. Its login page is that of FishEye 1.5.2, which was saved in
// georgegoh/CLUMP; that of later versions is not known.
var crucible = product{
	name: "Crucible", typeID: "fecru", version: "4.9.4",
	idle:        30 * time.Minute, // a guess: Jetty's default
	maxFailures: 3,                // Atlassian's documentation, page 960155694
	// "FishEye and Crucible cookies" (confluence.atlassian.com, page 960155664).
	sessionCookie: "FESESSIONID", rememberCookie: "remember",
	login: "/login", home: "/",
	logout: "/logout", loggedOut: "/", // guesses
	private: []string{"/profile", "/cru/", "/browse/", "/admin/"},
	form: atlassianForm{
		action: "/login", user: "username", password: "password", remember: "rememberme", destination: "origUrl", picture: "captcha",
		// rememberme is hidden: Crucible always remembers.
		html: `<form name="loginform" method="POST" action="ACTION" accept-charset="UTF-8">
<input type="hidden" name="origUrl" value="DESTINATION">
<input type="text" name="username">
<input type="password" name="password">
<input type="hidden" name="rememberme" value="yes">
PICTURE
<input type="submit" value="Log in">
</form>
<div id="headerUserDetails">Guest | <a href="CONTEXT/login">Log in</a></div>`,
		inPlace: true, // a public client of FishEye
	},
	welcome: `<div id="headerUserDetails"><a href="CONTEXT/user/USER">USER</a> | <a href="CONTEXT/logout">Log out</a></div>`,
	rest:    (*Atlassian).crucibleREST,
	page:    (*Atlassian).cruciblePage,
	// That Basic is refused like a login by REST is a guess.
	refused: func(a *Atlassian, c *atlassianCall, reason string) {
		c.json(http.StatusForbidden, map[string]string{"error": a.message(reason)})
	},
	unauthorized: func(_ *Atlassian, c *atlassianCall) {
		c.json(http.StatusUnauthorized, map[string]string{"error": "Log in first."})
	},
	forbidden: func(a *Atlassian, c *atlassianCall) {
		c.json(http.StatusForbidden, map[string]string{"error": a.message(seraphForbidden)})
	},
}

// StartCrucible starts a Crucible that has two reviews and no user yet.
func StartCrucible(o AtlassianOptions) (*Atlassian, error) {
	a, err := startAtlassian(&crucible, o)
	if err != nil {
		return nil, err
	}
	return a, a.Start()
}

// cruciblePage is the page that everybody may see, which tells who that is.
func (a *Atlassian) cruciblePage(c *atlassianCall) bool {
	switch {
	case c.path != "" && c.path != "/":
		return false
	case c.user != "":
		a.welcome(c)
	default:
		a.show(c, "Crucible", `<div id="headerUserDetails">Guest | <a href="`+a.loginURL("/")+`">Log in</a></div>`)
	}
	return true
}

// crucibleREST answers the REST APIs (developer.atlassian.com, "Authenticating REST
// requests", and the vendor's command line for reviews). A token of theirs is a
// parameter and no cookie, and does not expire.
func (a *Atlassian) crucibleREST(c *atlassianCall) {
	if token := c.URL.Query().Get("FEAUTH"); token != "" && c.user == "" {
		user, known := a.feauth[token]
		if !known {
			a.product.unauthorized(a, c)
			return
		}
		c.user = user
	}
	review, isReview := strings.CutPrefix(c.path, "/rest-service/reviews-v1/")
	user, isUser := strings.CutPrefix(c.path, "/rest-service/users-v1/")
	login := c.path == "/rest-service-fecru/auth/login" || c.path == "/rest-service/auth-v1/login"
	switch {
	case login && c.Method == http.MethodPost:
		a.tokenLogin(c)
	case c.Method != http.MethodGet:
		c.page(http.StatusMethodNotAllowed, "Method Not Allowed (405)")
	case c.path == "/rest-service-fecru/server-v1":
		c.json(http.StatusOK, map[string]any{"isCrucible": true, "isFishEye": true, "version": map[string]string{"releaseNumber": a.version}})
	case isReview && (review == "CR-1" || review == "CR-2" && c.user != ""):
		c.json(http.StatusOK, map[string]any{"permaId": map[string]string{"id": review}, "projectKey": "CR", "name": "A review"})
	case isUser && c.user != "" && a.accounts[user] != nil:
		c.json(http.StatusOK, map[string]any{"userData": map[string]string{"userName": user, "displayName": user}})
	case c.user == "" && (isReview || isUser):
		a.product.unauthorized(a, c)
	default:
		c.page(http.StatusNotFound, "Not Found (404)")
	}
}

// tokenLogin gives out a token, in the form of the vendor's example.
func (a *Atlassian) tokenLogin(c *atlassianCall) {
	form, ok := c.form()
	if !ok {
		return
	}
	name := form.Get("userName")
	if reason := a.judge(c, name, form.Get("password"), false); reason != seraphOK {
		a.product.refused(a, c, reason)
		return
	}
	token := name + ":1:CANARY-" + randomHex(16)
	a.feauth[token] = name
	c.json(http.StatusOK, map[string]string{"token": token})
}
