package rig

import (
	"encoding/json"
	"html"
	"net/http"
	"net/url"
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

// Texts of the REST APIs.
const (
	notAuthenticated = "You are not authenticated. Authentication required to perform this operation."
	basicDisabled    = "Basic Authentication has been disabled on this instance."
	basicFailure     = "Basic Authentication Failure - Reason : "
)

// atlassianAccount is a user.
type atlassianAccount struct {
	password string // "" for none
	failures int    // in a row
	logins   int
	failed   int       // in all
	lastFail time.Time // zero: never
	last     time.Time // login
	previous time.Time // the one before
	full     time.Time // when the bucket of requests is full again
}

// judge checks a password and returns what Seraph says. After too many failures
// in a row it is not even looked at (Atlassian's page "Cookie-based
// authentication", CAPTCHAs), unless a picture was solved; such an attempt counts
// as a failed one (go-jira/jira#8). Crowd is asked about whom it may know.
func (a *Atlassian) judge(c *atlassianCall, name, password string, solved bool) string {
	account := a.accounts[name]
	if account == nil && a.crowd != nil {
		account = &atlassianAccount{} // the directory tells the product who its users are
		a.accounts[name] = account
	}
	if account == nil {
		a.counts.Refused++
		return seraphFailed
	}
	if solved {
		account.failures = min(account.failures, a.maxFailures-1)
	}
	reason := seraphOK
	switch {
	case account.failures >= a.maxFailures:
		reason = seraphDenied
		a.counts.Denied++
	case !a.right(c, account, name, password):
		reason = seraphFailed
		a.counts.Refused++
		account.failures++
	case a.modes.NoPermission:
		return seraphForbidden
	default:
		account.failures = 0
		return seraphOK
	}
	account.failed++
	account.lastFail = a.now()
	return reason
}

// right reports whether a password is right here or, if it is not, in Crowd.
func (a *Atlassian) right(c *atlassianCall, account *atlassianAccount, name, password string) bool {
	if account.password != "" && account.password == password {
		return true
	}
	if a.crowd == nil {
		return false
	}
	token, ok := a.crowd.Login(name, password, factorsOf(c.Request))
	c.token = token
	return ok
}

// legacy reports whether the login page has a form that it sends itself.
func (a *Atlassian) legacy() bool { return !a.twoStep || a.modes.LegacyLogin }

// atlassianForm is a login form of before two-step verification.
type atlassianForm struct {
	action string // where it goes
	// html is the form, with ACTION, CONTEXT, DESTINATION, TOKEN and PICTURE in place
	// of what differs.
	html string

	user, password, remember, destination string // the fields' names
	// picture is the field for what a picture says. Its name is a guess in all
	// products.
	picture string
	// token: atl_token has to be that of the session.
	token bool
	// inPlace: pages show the form themselves instead of leading to it.
	inPlace bool
	// back: a refused login leads back to the form (302), which says so then.
	back bool
}

// loginURL is the login page that leads back to a path.
func (a *Atlassian) loginURL(path string) string {
	return a.context + a.product.login + "?" + a.product.form.destination + "=" + url.QueryEscape(path)
}

// loginForm answers where the login page is and where its form goes: who is
// logged in already goes where the login leads.
func (a *Atlassian) loginForm(c *atlassianCall) {
	switch {
	case a.modes.IdentityProvider != "":
		c.redirect(a.modes.IdentityProvider)
	case c.Method == http.MethodPost:
		a.formLogin(c)
	case c.Method != http.MethodGet && c.Method != http.MethodHead:
		c.page(http.StatusMethodNotAllowed, "Method Not Allowed (405)")
	case c.user != "":
		c.redirect(a.landing(c.URL.Query().Get(a.product.form.destination)))
	default:
		a.loginPage(c)
	}
}

// landing is where a login leads.
func (a *Atlassian) landing(destination string) string {
	return a.context + localPath(destination, a.product.home)
}

// loginPage is the page with the password form, with the names that Atlassian's
// dc-app-performance-toolkit fills in and by which it tells it from the page of
// two-step verification. That is made by a script, so that nothing of a form is in
// it, but how it looks is a guess.
func (a *Atlassian) loginPage(c *atlassianCall) {
	a.begin(c)
	if !a.legacy() {
		a.show(c, "Log in", `<div id="login-root"></div><noscript>JavaScript is needed to log in.</noscript>`)
		return
	}
	destination := c.URL.Query().Get(a.product.form.destination)
	if a.product.form.inPlace && c.path != a.product.login {
		destination = c.path
	}
	picture, message, token := "", "", ""
	if c.session != nil {
		token = c.session.xsrf
		switch reason := c.session.refusal; reason {
		case "":
		case seraphDenied:
			picture = `<img class="captcha-image" src="` + a.context + `/captcha" alt=""><input name="` + a.product.form.picture + `" type="text">`
			fallthrough
		default:
			message = `<div class="aui-message error">` + html.EscapeString(a.message(reason)) + `</div>`
		}
		c.session.refusal = ""
	}
	a.show(c, "Log in", message+strings.NewReplacer("ACTION", a.context+a.product.form.action, "CONTEXT", a.context, "DESTINATION", html.EscapeString(destination),
		"TOKEN", token, "PICTURE", picture).Replace(a.product.form.html))
}

// message is what a page says of a refused login (Bitbucket's API says the same;
// of other products' pages no text is known).
func (a *Atlassian) message(reason string) string {
	switch reason {
	case seraphDenied:
		return "CAPTCHA required. Your " + a.product.name + " account has been locked. To unlock it and log in again you must solve a CAPTCHA."
	case seraphForbidden:
		return "You are not currently licensed to use " + a.product.name + ". Please contact your administrator for further assistance."
	}
	return "Authentication failed. Please check your credentials and try again."
}

// formLogin is a person at the login page. The password is looked at as elsewhere,
// and if a picture is to be solved, only if something is said of it (Atlassian's
// page "Cookie-based authentication", CAPTCHAs).
func (a *Atlassian) formLogin(c *atlassianCall) {
	form, ok := c.form()
	if !ok {
		return
	}
	f := a.product.form
	switch {
	case !a.legacy(): // what then becomes of the form's address is a guess
		a.loginPage(c)
		return
	case f.token && (c.session == nil || form.Get("atl_token") != c.session.xsrf):
		// In the words of Bamboo's and Jira's pages (Atlassian, "Form token handling").
		c.page(http.StatusForbidden, "XSRF Security Token Missing")
		return
	}
	name := form.Get(f.user)
	if reason := a.judge(c, name, form.Get(f.password), form.Get(f.picture) != ""); reason != seraphOK {
		a.begin(c)
		if c.session != nil {
			c.session.refusal = reason
		}
		if a.product.seraph {
			c.header.Set(seraphReason, reason)
		}
		if f.back {
			c.redirect(a.loginURL(form.Get(f.destination)))
			return
		}
		a.loginPage(c)
		return
	}
	a.counts.Forms++
	a.login(c, name, form.Get(f.remember) != "")
	c.redirect(a.landing(form.Get(f.destination)))
}

// isTwoStep reports whether a path is the login of two-step verification, which is
// found under two versions.
func isTwoStep(path string) bool {
	return path == "/rest/tsv/1.0/authenticate" || path == "/rest/tsv/latest/authenticate"
}

// twoStepLogin is the login by JSON that the page of two-step verification sends.
// The fields and answers are those of Bitbucket's OpenAPI document, which has no
// texts; that the other products' are the same is a guess, for which their pages
// speak.
func (a *Atlassian) twoStepLogin(c *atlassianCall) {
	switch {
	case c.Method != http.MethodPost:
		c.page(http.StatusMethodNotAllowed, "Method Not Allowed (405)")
		return
	case !a.takes(c, "application/json"):
		return
	}
	var in struct {
		Username, Password, TargetURL, CaptchaID, CaptchaChallenge string
		RememberMe                                                 bool
	}
	if err := json.Unmarshal(c.body, &in); err != nil {
		c.json(http.StatusBadRequest, map[string]string{"message": "The request is not JSON."})
		return
	}
	switch reason := a.judge(c, in.Username, in.Password, in.CaptchaID != "" && in.CaptchaChallenge != ""); {
	case reason == seraphForbidden:
		a.product.forbidden(a, c) // a guess
	case reason != seraphOK:
		// Whether the wrong password that is one too many says so already is not
		// known; here the next does.
		c.json(http.StatusUnauthorized, map[string]any{"captchaRequired": reason == seraphDenied, "message": a.message(reason)})
	case a.modes.SecondFactor || a.modes.EnrolmentForced:
		a.counts.SecondFactors++
		c.token = "" // nobody is logged in yet
		next := "TOTP_CODE_VERIFICATION"
		if !a.modes.SecondFactor {
			next = "ENROLLMENT"
		}
		c.json(http.StatusPreconditionFailed, map[string]string{"conversationId": secretID(), "nextLoginStep": next})
	default:
		a.counts.TwoStepLogins++
		a.login(c, in.Username, in.RememberMe)
		c.json(http.StatusOK, map[string]string{"next": a.origin() + a.landing(in.TargetURL)})
	}
}

// basic logs in by a Basic header, if there is one and nobody is logged in: a
// session of its own for every request (JRASERVER-27047). It reports whether
// the request goes on; otherwise it has been answered.
func (a *Atlassian) basic(c *atlassianCall) bool {
	name, password, ok := c.BasicAuth()
	if !ok || c.user != "" {
		return true
	}
	if a.modes.BasicDisabled {
		a.disabled(c)
		return false
	}
	reason := a.judge(c, name, password, false)
	if reason == seraphOK {
		a.counts.Basic++
		a.login(c, name, false)
		return true
	}
	if a.product.seraph {
		c.header.Set(seraphReason, reason)
	}
	a.product.refused(a, c, reason)
	return false
}

// bearer logs in by a personal access token, for this request: its session is
// dead when the answer arrives (support.atlassian.com, "Creating cookie-based
// sessions with PAT tokens"), although its cookie comes with it
// (community.atlassian.com, question 2094301). A token that nobody knows is no
// login; of that no header of Seraph's tells (measured by others with Jira 10.3.24:
// 401, but for searches, which find nothing).
func (a *Atlassian) bearer(c *atlassianCall) bool {
	scheme, token, _ := strings.Cut(c.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") || c.user != "" {
		return true
	}
	user, known := a.tokens[token]
	switch {
	case known:
		a.counts.Bearer++
		a.enter(c, user)
		delete(a.nodes[c.node], c.session.id)
		return true
	case strings.HasSuffix(c.path, "/search"):
		return true
	}
	a.product.unauthorized(a, c)
	return false
}

// disabled refuses a password unseen, in the words of
// atlassian/data-center-helm-charts#1101.
func (a *Atlassian) disabled(c *atlassianCall) {
	a.counts.Disabled++
	c.json(http.StatusForbidden, map[string]string{"message": basicDisabled})
}

// basicRefused is how Jira's API answers a password sent by Basic. That Bamboo's
// does the same is a guess.
func basicRefused(a *Atlassian, c *atlassianCall, reason string) {
	status := http.StatusForbidden
	switch {
	case reason == seraphFailed && a.modes.EmptyRefusal:
		c.status = http.StatusOK
		return
	case reason == seraphFailed:
		// As quoted in jira-node/node-jira-client#314.
		a.challenge(c)
		status = http.StatusUnauthorized
	case reason == seraphDenied:
		// As captured in chronos-timetracker#107 and Jit#12.
		a.captcha(c)
	}
	c.page(status, basicFailure+reason)
}

// captcha adds what the captures chronos-timetracker#107 and Jit#12 agree on: a
// new session cookie, written unlike all others, and where the picture is.
func (a *Atlassian) captcha(c *atlassianCall) {
	c.session = a.newSession(c.node, "")
	c.setCookie(a.product.sessionCookie + "=" + c.session.id + ";path=" + a.cookiePath() + ";HttpOnly")
	c.header.Set("X-Authentication-Denied-Reason", "CAPTCHA_CHALLENGE; login-url="+a.URL()+a.product.login)
	a.challenge(c)
}

// challenge names a scheme that needs an application link (the same captures).
func (a *Atlassian) challenge(c *atlassianCall) {
	c.header.Set("WWW-Authenticate", `OAuth realm="`+url.QueryEscape(a.URL())+`"`)
}
