package rig

import (
	"encoding/json"
	"fmt"
	"html"
	"net/http"
	"net/url"
	"strings"
	"sync"
)

// Form is a small web application with a login form, in this process, on a free
// port of 127.0.0.1 under the name localhost. It is no product's model: it does
// what RFC 6265 and OWASP's cheat sheets on session management, authentication
// and cross-site request forgery ask of any such application.
//
//	GET  /app/        a page for users, else 302 to the login
//	GET  /app/whoami  {"user":"…"}, else 302 to the login
//	GET  /login       the form: username, password and two hidden fields
//	POST /login       303 to where the login leads, or 200 with the form again
//	POST /logout      303 to the login
//
// Every secret that it makes up begins with CANARY-.
type Form struct {
	webServer

	mu       sync.Mutex
	users    map[string]string // name → password
	sessions map[string]*formSession
	counts   FormCounts
}

// FormCounts is what happened at a Form since it was made.
type FormCounts struct {
	Logins   int // good ones
	Failures int // wrong passwords
	Sessions int // users' sessions that live now
}

// formSession is a session, of nobody before the login.
type formSession struct {
	user  string
	token string // what forms have to bring back
}

// StartForm starts a form application that knows nobody yet.
func StartForm() (*Form, error) {
	f := &Form{users: make(map[string]string), sessions: make(map[string]*formSession)}
	return f, f.Start()
}

// URL returns http://localhost:port, without a slash at its end.
func (f *Form) URL() string { return f.origin() }

// Start starts the application after Stop, on the same port, with its sessions.
func (f *Form) Start() error { return f.start(f) }

// AddUser adds a user, or changes a user's password.
func (f *Form) AddUser(name, password string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.users[name] = password
}

// DropSessions ends all sessions.
func (f *Form) DropSessions() {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.sessions)
}

// Counts returns what happened so far.
func (f *Form) Counts() FormCounts {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.counts
	for _, s := range f.sessions {
		if s.user != "" {
			n.Sessions++
		}
	}
	return n
}

// ServeHTTP implements http.Handler.
func (f *Form) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.count(r)
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	if err := r.ParseForm(); err != nil {
		http.Error(w, "the form cannot be read", http.StatusBadRequest)
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.session(r)
	switch {
	case r.URL.Path == "/login" && r.Method == http.MethodGet:
		if s == nil {
			s = f.begin(w, "")
		}
		f.form(w, s, r.URL.Query().Get("next"), "")
	case r.URL.Path == "/login" && r.Method == http.MethodPost:
		f.login(w, r, s)
	case r.URL.Path == "/logout" && r.Method == http.MethodPost:
		f.logout(w, r, s)
	case !strings.HasPrefix(r.URL.Path, "/app/"):
		http.NotFound(w, r)
	case s == nil || s.user == "":
		http.Redirect(w, r, "/login?next="+url.QueryEscape(r.URL.Path), http.StatusFound)
	case r.URL.Path == "/app/whoami":
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(map[string]string{"user": s.user})
	default:
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		fmt.Fprintf(w, `<!DOCTYPE html>
<html><head><title>The application</title></head><body><p>Welcome, %s.</p>
<form action="/logout" method="post"><input type="hidden" name="csrf_token" value="%s"><button>Log out</button></form>
</body></html>
`, html.EscapeString(s.user), s.token)
	}
}

const formCookie = "sessionid"

// session returns the request's session, nil if it has none.
func (f *Form) session(r *http.Request) *formSession {
	c, err := r.Cookie(formCookie)
	if err != nil {
		return nil
	}
	return f.sessions[c.Value]
}

// begin makes a session and sets its cookie.
func (f *Form) begin(w http.ResponseWriter, user string) *formSession {
	id := secretID()
	s := &formSession{user: user, token: secretID()}
	f.sessions[id] = s
	w.Header().Add("Set-Cookie", formCookie+"="+id+"; Path=/; HttpOnly; SameSite=Lax")
	return s
}

// end ends the request's session.
func (f *Form) end(r *http.Request) {
	if c, err := r.Cookie(formCookie); err == nil {
		delete(f.sessions, c.Value)
	}
}

// form is the login page: with status 200, whether it comes for the first time
// or because the password was wrong.
func (f *Form) form(w http.ResponseWriter, s *formSession, next, message string) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	fmt.Fprintf(w, `<!DOCTYPE html>
<html><head><title>Log in</title></head><body><p class="error">%s</p>
<form action="/login" method="post">
<input type="hidden" name="csrf_token" value="%s">
<input type="hidden" name="next" value="%s">
<input type="text" name="username" autocomplete="username">
<input type="password" name="password" autocomplete="current-password">
<button type="submit">Log in</button>
</form></body></html>
`, message, s.token, html.EscapeString(next))
}

// own reports whether a form is from the session's own pages.
func own(r *http.Request, s *formSession) bool {
	return s != nil && r.PostForm.Get("csrf_token") == s.token
}

func (f *Form) login(w http.ResponseWriter, r *http.Request, s *formSession) {
	if !own(r, s) {
		http.Error(w, "the form is not from this site", http.StatusForbidden)
		return
	}
	name, next := r.PostForm.Get("username"), r.PostForm.Get("next")
	if password, known := f.users[name]; !known || r.PostForm.Get("password") != password {
		f.counts.Failures++
		f.form(w, s, next, "Wrong user name or password.") // which of them is nobody's business
		return
	}
	f.counts.Logins++
	f.end(r) // a session id is never kept over a login
	f.begin(w, name)
	http.Redirect(w, r, localPath(next, "/app/"), http.StatusSeeOther)
}

func (f *Form) logout(w http.ResponseWriter, r *http.Request, s *formSession) {
	if !own(r, s) {
		http.Error(w, "the form is not from this site", http.StatusForbidden)
		return
	}
	f.end(r)
	w.Header().Add("Set-Cookie", formCookie+"=; Path=/; Max-Age=0; HttpOnly; SameSite=Lax")
	http.Redirect(w, r, "/login", http.StatusSeeOther)
}
