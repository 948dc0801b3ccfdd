package rig

import (
	"fmt"
	"html"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// jazzCall is a request, and the way to answer it.
type jazzCall struct {
	*http.Request
	w       http.ResponseWriter
	context string       // the application's; "" at JAS
	path    string       // below the context
	session *jazzSession // nil: none that lives
	user    string       // "" for nobody
}

func (c *jazzCall) set(name, value string) { c.w.Header().Set(name, value) }

func (c *jazzCall) setCookie(line string) { c.w.Header().Add("Set-Cookie", line) }

func (c *jazzCall) redirect(status int, to string) {
	c.set("Location", to)
	c.w.WriteHeader(status)
}

func (c *jazzCall) page(status int, title, body string) {
	c.set("Content-Type", "text/html; charset=utf-8")
	c.w.WriteHeader(status)
	fmt.Fprintf(c.w, "<!DOCTYPE html>\n<html><head><title>%s</title></head><body><h1>%s</h1>%s</body></html>\n", title, title, body)
}

// value returns a cookie's, "" for none.
func (c *jazzCall) value(cookie string) string {
	if v, err := c.Cookie(cookie); err == nil {
		return v.Value
	}
	return ""
}

// arrive takes note of a request; nil: it has been answered. The lock is the caller's.
func (j *Jazz) arrive(w http.ResponseWriter, r *http.Request) *jazzCall {
	j.counts.Requests++
	if j.inURL(r.URL) {
		j.counts.PasswordsInURL++
	}
	c := &jazzCall{Request: r, w: w}
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	if err := r.ParseForm(); err != nil {
		c.page(http.StatusBadRequest, "Error 400", "")
		return nil
	}
	if _, _, ok := r.BasicAuth(); ok || r.Form.Has("j_password") || r.Form.Has("password") {
		j.counts.Passwords++
	}
	return c
}

// inURL reports whether a URL has a password, by its name or its value.
func (j *Jazz) inURL(u *url.URL) bool {
	q := u.Query()
	if q.Has("j_password") || q.Has("password") {
		return true
	}
	text, err := url.QueryUnescape(u.RequestURI())
	if err != nil {
		return false
	}
	for _, password := range j.users {
		if password != "" && strings.Contains(text, password) {
			return true
		}
	}
	return slices.ContainsFunc(slices.Collect(maps.Keys(j.appPasswords)), func(p string) bool { return strings.Contains(text, p) })
}

// right checks a password. An empty one is not looked at (Open Liberty's
// FormLoginExtensionProcessor.java), and there are none where JAS delegates logins.
func (j *Jazz) right(name, password string) bool {
	if password != "" && j.users[name] == password && j.o.JAS.External == "" {
		j.counts.Logins++
		return true
	}
	j.counts.Failures++
	return false
}

// ServeHTTP implements http.Handler, for the applications.
func (j *Jazz) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	j.count(r)
	j.mu.Lock()
	defer j.mu.Unlock()
	c := j.arrive(w, r)
	if c == nil {
		return
	}
	context, path, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	c.context, c.path = context, "/"+path
	if _, _, ok := r.BasicAuth(); ok && !j.asksBasic(c) {
		j.counts.Preemptive++
	}
	switch {
	case j.modes.Unavailable != 0:
		// The code is that of an application that is still starting, with 503.
		c.page(j.modes.Unavailable, fmt.Sprint("Error ", j.modes.Unavailable), "<p>CRJAZ1972E</p>")
	case j.modes.InsecureRedirect:
		c.redirect(http.StatusFound, strings.Replace(j.base(), "http:", "https:", 1)+r.URL.RequestURI())
	case j.sessions[context] == nil:
		c.page(http.StatusNotFound, "Error 404", "")
	case c.path == "/rootservices":
		j.rootservices(c)
	case j.hasForm(c) && j.formPage(c):
	case c.path == "/jsa" && j.o.Auth == "jas":
		j.jsa(c)
	case c.path == "/oauthCallback" && j.delegates(context):
		j.oauthCallback(c)
	default:
		j.protected(c)
	}
}

// asksBasic reports whether passwords by Basic have a place in an application, or at
// its address for application passwords.
func (j *Jazz) asksBasic(c *jazzCall) bool {
	return j.o.Auth == "basic" && !j.delegates(c.context) || c.path == "/jsa" && c.URL.Query().Has("appPassword")
}

// protected is what only users get.
func (j *Jazz) protected(c *jazzCall) {
	if !j.attach(c) {
		return
	}
	status := j.modes.FailAfterLogin
	switch {
	case c.user != "" && (c.path == "/auth/logout" || c.path == logoutService):
		j.logout(c)
	case c.user == "":
		j.challenge(c)
	case status != 0:
		if j.modes.FailOnce {
			j.modes.FailAfterLogin = 0
		}
		c.page(status, fmt.Sprint("Error ", status), "")
	case !j.genuine(c):
		// As OSLC's elm-compatibility document quotes ELM 7.1, shortened. Which
		// operations check it differs there; here all do.
		c.page(http.StatusForbidden, "Error 403", "<p>The permission has been denied because this request might have been forged by a malicious website. "+
			"To prove that it is not, add a new HTTP header with the name '"+csrfHeader+"'.</p>")
	default:
		j.resource(c)
	}
}

const csrfHeader = "X-Jazz-CSRF-Prevent"

// genuine reports whether a request is no forgery: all but GET, HEAD and OPTIONS
// bring the JSESSIONID in a header too. The page where consent is given is a
// browser's own form.
func (j *Jazz) genuine(c *jazzCall) bool {
	switch c.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions:
		return true
	}
	return c.path == "/oauth-authorize" || c.Header.Get(csrfHeader) == c.session.id
}

// challenge asks for a login.
func (j *Jazz) challenge(c *jazzCall) {
	switch {
	case j.delegates(c.context):
		j.oauthChallenge(c)
	case j.o.Auth == "form" || j.o.Auth == "negotiate":
		j.toLogin(c)
	case j.o.Auth == "basic":
		c.set("WWW-Authenticate", `Basic realm="`+html.EscapeString(j.URL(c.context))+`"`)
		c.page(http.StatusUnauthorized, "Error 401", "")
	case j.o.Auth == "jauth":
		// OSLC/oslc-client, OSLCClient.js, reads token_uri from it.
		c.set("WWW-Authenticate", fmt.Sprintf(`JAuth realm="%s", token_uri="%s/jauth-issue-token"`, j.base(), j.URL(j.o.Context)))
		c.page(http.StatusUnauthorized, "Error 401", "")
	default:
		j.jsaChallenge(c)
	}
}
