package rig

import (
	"encoding/base64"
	"fmt"
	"html"
	"net/http"
	"net/url"
	"strings"
)

// Paths of the console, below the context path.
const (
	crowdLogin   = "/console/login.action"
	crowdCheck   = "/console/j_security_check"
	crowdSecure  = "/console/secure/console.action"
	crowdProfile = "/console/user/viewprofile.action"
	crowdLogoff  = "/console/logoff.action"
)

// console answers people. Who comes is what the request's token says (Atlassian's
// knowledge base, "Logging out intermittently from Crowd Administration Console"),
// and a login here is one for all applications, as a logout is (Crowd's
// documentation, "Logging in to Crowd"). Where the login and the logout lead to,
// the address of the logout and how a page names its user are guesses: no source
// shows them.
func (c *Crowd) console(w http.ResponseWriter, r *http.Request, path string, body []byte) {
	user, token := c.visitor(r)
	switch {
	case path == crowdCheck && r.Method == http.MethodPost:
		c.consoleLogin(w, r, body)
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		crowdPage(w, http.StatusMethodNotAllowed, "Method Not Allowed")
	case path == "" || path == "/" || path == "/console" || path == "/console/":
		c.lead(w, crowdSecure)
	case path == crowdLogoff:
		c.logout(c.applications[crowdItself], token)
		w.Header().Add("Set-Cookie", c.CookieLine(""))
		c.lead(w, crowdLogin)
	case path == crowdLogin && user == "" && c.acceptor != nil:
		c.consoleNegotiate(w, r)
	case path == crowdLogin && user == "":
		c.loginForm(w, r)
	case path == crowdLogin:
		c.lead(w, crowdSecure)
	case path != crowdSecure && path != crowdProfile:
		crowdPage(w, http.StatusNotFound, "Not Found")
	case user == "":
		c.lead(w, crowdLogin)
	default:
		consolePage(w, "Atlassian Crowd", fmt.Sprintf(`<p>Logged in as <a id="profile" href="%s">%s</a>.</p> <a href="%s">Log out</a>`,
			crowdContext+crowdProfile, html.EscapeString(user), crowdContext+crowdLogoff))
	}
}

// visitor returns who comes with which token, "" for nobody.
func (c *Crowd) visitor(r *http.Request) (user, token string) {
	for _, cookie := range r.CookiesNamed(crowdCookie) {
		if t := c.validate(c.applications[crowdItself], cookie.Value, factorsOf(r)); t != nil {
			return t.user, cookie.Value
		}
	}
	return "", ""
}

// loginForm is the login page of Crowd 2 and 3, as detection scripts for it know
// it; that of later versions is not known.
func (c *Crowd) loginForm(w http.ResponseWriter, r *http.Request) {
	message := ""
	if r.URL.Query().Has("error") {
		message = `<p class="error">Your username and password could not be verified.</p>`
	}
	w.Header().Add("Set-Cookie", "JSESSIONID="+secretID()+"; Path="+crowdContext+"; HttpOnly")
	consolePage(w, "Atlassian Crowd - Login", message+fmt.Sprintf(`
<form name="login" method="post" action="%s">
<input type="text" name="j_username">
<input type="password" name="j_password">
<input type="submit" value="Log In">
</form>`, crowdContext+crowdCheck))
}

// consoleLogin takes the form. A refused password leads back to it, as Spring
// Security does by default.
func (c *Crowd) consoleLogin(w http.ResponseWriter, r *http.Request, body []byte) {
	form, err := url.ParseQuery(string(body))
	if err != nil {
		crowdPage(w, http.StatusBadRequest, "Bad Request")
		return
	}
	token, ok := c.login(c.applications[crowdItself], form.Get("j_username"), form.Get("j_password"), factorsOf(r))
	if !ok {
		c.lead(w, crowdLogin+"?error=true")
		return
	}
	c.enter(w, token)
}

// consoleNegotiate logs in by a Negotiate token (RFC 4559).
func (c *Crowd) consoleNegotiate(w http.ResponseWriter, r *http.Request) {
	scheme, sent, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	answer, token := "Negotiate", ""
	if b, err := base64.StdEncoding.DecodeString(sent); err == nil && strings.EqualFold(scheme, "Negotiate") {
		principal, reply, err := c.acceptor.Accept(b)
		answer += " " + base64.StdEncoding.EncodeToString(reply)
		if err == nil {
			user, _, _ := strings.Cut(principal, "@")
			token = c.mint(c.applications[crowdItself], user, factorsOf(r))
		}
	}
	w.Header().Set("WWW-Authenticate", answer)
	if token == "" {
		crowdPage(w, http.StatusUnauthorized, "Unauthorized")
		return
	}
	c.enter(w, token)
}

// enter sets the token, and a session's cookie that nobody looks at.
func (c *Crowd) enter(w http.ResponseWriter, token string) {
	w.Header().Add("Set-Cookie", "JSESSIONID="+secretID()+"; Path="+crowdContext+"; HttpOnly")
	w.Header().Add("Set-Cookie", c.CookieLine(token))
	c.lead(w, crowdSecure)
}

func (c *Crowd) lead(w http.ResponseWriter, path string) {
	w.Header().Set("Location", c.URL()+path)
	w.WriteHeader(http.StatusFound)
}

func consolePage(w http.ResponseWriter, title, body string) {
	w.Header().Set("Content-Type", "text/html;charset=UTF-8")
	fmt.Fprintf(w, "<!DOCTYPE html>\n<html><head><title>%s</title></head><body>%s\n<p>Version:&nbsp;3.5.0</p></body></html>\n", title, body)
}
