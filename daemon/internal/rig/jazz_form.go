package rig

import (
	"net/http"
	"net/url"
	"strings"
)

// What an application says of the form's login, and where (jenkinsci/
// teamconcert-plugin, HttpUtils.java; dixudx/rtcclient).
const (
	webAuthMessage = "X-com-ibm-team-repository-web-auth-msg"
	reqURLCookie   = "WASReqURL"
)

// hasForm reports whether there is a form at an application: also where the container
// asks for a token and falls back to it.
func (j *Jazz) hasForm(c *jazzCall) bool {
	return (j.o.Auth == "form" || j.o.Auth == "negotiate" && j.o.FailOver) && !j.delegates(c.context)
}

// formPage answers what belongs to the form's login; false: it is none of that.
func (j *Jazz) formPage(c *jazzCall) bool {
	switch {
	case c.path == "/auth/authrequired": // whatever the method: the recording has a POST
		j.loginForm(c, "authrequired")
	case c.path == "/auth/authfailed":
		j.loginForm(c, "authfailed")
	case strings.HasSuffix(c.path, "/j_security_check"): // rtcclient has it below /authenticated
		j.securityCheck(c)
	default:
		return false
	}
	return true
}

// loginForm is the page of the login, which a script fills in with a form. It says, by
// a cookie's path, where the form goes (IBM/ELM-Python-Client's httpops.py).
func (j *Jazz) loginForm(c *jazzCall, message string) {
	if message == "authrequired" {
		c.setCookie("JazzFormAuth=Form; Path=/" + c.context)
	}
	c.set(webAuthMessage, message)
	c.page(http.StatusOK, "Jazz", "<noscript>Javascript is either disabled or not available in your Browser</noscript>")
}

// isIdentity reports whether a path is the container's own to protect. All others the
// application leads there.
func isIdentity(path string) bool {
	return path == "/authenticated/identity" || path == "/secure/authenticated/identity"
}

// toLogin leads to the login, as the recording of IBM/ELM-Python-Client has it.
func (j *Jazz) toLogin(c *jazzCall) {
	if !isIdentity(c.path) {
		c.redirect(j.o.Redirect, j.URL(c.context)+"/secure/authenticated/identity?redirectPath="+url.QueryEscape(c.URL.RequestURI()))
		return
	}
	if j.o.Auth == "negotiate" {
		user, ok := j.negotiate(c, j.acceptor)
		if !ok {
			return
		}
		if user != "" {
			j.issue(c, user)
			c.user, c.session.user = user, user
			j.counts.Sessions[c.context]++
			j.resource(c)
			return
		}
	}
	if j.o.NoLTPA { // Tomcat shows the form in place
		c.session.saved = c.URL.RequestURI()
		j.loginForm(c, "authrequired")
		return
	}
	c.setCookie(reqURLCookie + "=" + withoutHost(j.origin()) + c.URL.RequestURI() + "; Path=/; HttpOnly")
	c.redirect(j.o.Redirect, j.URL(c.context)+"/auth/authrequired")
}

// withoutHost is an origin as WASReqURL has it: the recording has
// https://:9443/jts/secure/…
func withoutHost(origin string) string { return strings.Replace(origin, "localhost", "", 1) }

// securityCheck is where the form goes. Liberty needs no page before it, and leads to
// the context root then (Open Liberty, FormLoginExtensionProcessor.java).
func (j *Jazz) securityCheck(c *jazzCall) {
	to := j.URL(c.context) + "/"
	if saved := c.value(reqURLCookie); saved != "" && !j.o.NoLTPA {
		var ok bool
		if to, ok = savedURL(saved, j.base()); !ok {
			c.page(http.StatusInternalServerError, "Error 500", "<p>The URL of the original request is of another host.</p>")
			return
		}
	}
	user := c.Form.Get("j_username")
	good := j.right(user, c.Form.Get("j_password"))
	switch {
	case !good && (j.o.FailDirect || j.o.NoLTPA):
		j.loginForm(c, "authfailed")
	case !good:
		c.redirect(http.StatusFound, j.URL(c.context)+"/auth/authfailed")
	case j.o.NoLTPA:
		j.tomcat(c, user)
	default:
		j.issue(c, user)
		c.setCookie(reqURLCookie + deleted)
		j.lead(c, http.StatusFound, to)
	}
}

// tomcat is a good login with the container Tomcat: it needs the session that the
// protected page began, gives it another id, and leads to that page, where the login
// begins to count (apache/tomcat, FormAuthenticator.java; IBM's juno client for Jazz
// goes there for that reason).
func (j *Jazz) tomcat(c *jazzCall, user string) {
	j.find(c)
	switch {
	case c.session == nil:
		c.page(http.StatusRequestTimeout, "Error 408", "<p>The time allowed for the login process has been exceeded.</p>")
	case c.session.saved == "":
		c.page(http.StatusBadRequest, "Error 400", "<p>Invalid direct reference to form login page</p>")
	default:
		saved := c.session.saved
		delete(j.sessions[c.context], c.session.id)
		s := j.newSession(c, "")
		s.saved, s.pending = saved, user
		j.lead(c, http.StatusSeeOther, saved)
	}
}

// savedURL returns where a saved URL leads on a server. One of another host is an error
// (Open Liberty: WASReqURL's host is checked, and a RuntimeException thrown).
func savedURL(saved, base string) (string, bool) {
	u, err := url.Parse(saved)
	b, _ := url.Parse(base)
	if err != nil || b == nil || u.Hostname() != "" && u.Hostname() != b.Hostname() {
		return "", false
	}
	return base + u.RequestURI(), true
}

// lead leads on after a login.
func (j *Jazz) lead(c *jazzCall, status int, to string) {
	if j.modes.ForeignRedirect != "" {
		to = j.modes.ForeignRedirect
	}
	c.redirect(status, to)
}
