package rig

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strings"
	"sync"
)

// Site is a web site behind Negotiate in this process, on a free port of
// 127.0.0.1 under the name localhost. It has the pages of Apache, of which it
// is a model: what mod_auth_gssapi 1.6.4 does there was measured with the real
// one, and the tests of the agent run against both.
type Site struct {
	webServer
	acceptor *Acceptor

	mu       sync.Mutex
	sessions map[string]string
}

// StartSite starts a site whose service is HTTP/localhost with the keys of a
// keytab file's bytes.
func StartSite(keytabFile []byte) (*Site, error) {
	a, err := NewAcceptor(keytabFile, "HTTP/localhost")
	if err != nil {
		return nil, err
	}
	s := &Site{acceptor: a, sessions: map[string]string{}}
	return s, s.Start()
}

// URL returns http://localhost:port, without a slash at its end.
func (s *Site) URL() string { return s.origin() }

// Start starts the site after Stop, on the same port, with its sessions.
func (s *Site) Start() error { return s.start(s) }

// ForgetSessions makes the site refuse every session it gave out before, as
// Apache does after a restart with another GssapiSessionKey.
func (s *Site) ForgetSessions() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.sessions)
}

const sessionCookie = "gssapi_session"

// ServeHTTP implements http.Handler.
func (s *Site) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.count(r)
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	page, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	switch page {
	case "plain":
		s.page(w, r, "")
	case "spnego", "nosess", "deny":
		s.protected(w, r, page, scheme, token)
	case "redir":
		foreign := strings.Replace(s.URL(), "localhost", "127.0.0.1", 1)
		to := map[string]string{"/redir/1": "/spnego/", "/redir/foreign": foreign + "/spnego/"}[r.URL.Path]
		if to == "" {
			http.NotFound(w, r)
			return
		}
		http.Redirect(w, r, to, http.StatusFound)
	default:
		http.NotFound(w, r)
	}
}

// protected is a page behind mod_auth_gssapi.
func (s *Site) protected(w http.ResponseWriter, r *http.Request, page, scheme, token string) {
	user := ""
	if page == "spnego" {
		user = s.session(r)
	}
	if user == "" && scheme == "Negotiate" {
		b, err := base64.StdEncoding.DecodeString(token)
		if err == nil {
			var reply []byte
			user, reply, _ = s.acceptor.Accept(b)
			// A success carries the AP-REP, a failure its reason.
			w.Header().Set("WWW-Authenticate", "Negotiate "+base64.StdEncoding.EncodeToString(reply))
		}
	}
	if user == "" || page == "deny" {
		if w.Header().Get("WWW-Authenticate") == "" || page == "deny" {
			w.Header().Set("WWW-Authenticate", "Negotiate")
		}
		if page == "spnego" {
			// GssapiUseSessions sets a cookie on the 401 already, which is no login.
			w.Header().Add("Set-Cookie", sessionCookie+"=expiry=1;path=/;httponly")
		}
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	if page == "spnego" {
		// A new value on every 200: the expiry slides.
		w.Header().Add("Set-Cookie", sessionCookie+"=MagBearerToken="+s.issue(user)+"&expiry=1;path=/;httponly")
	}
	s.page(w, r, user)
}

func (s *Site) page(w http.ResponseWriter, r *http.Request, user string) {
	if user != "" {
		w.Header().Set("X-Remote-User", user)
	}
	if strings.HasSuffix(r.URL.Path, "/whoami") {
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(map[string]string{"user": user})
		return
	}
	w.Header().Set("Content-Type", "text/html")
	w.Write([]byte("<html><body>a page of the site</body></html>\n"))
}

// session returns whose session the request's cookie is, "" for nobody's. As
// with mod_session_cookie all of the session is in the cookie, so that a new
// value does not end the old one's life.
func (s *Site) session(r *http.Request) string {
	c, err := r.Cookie(sessionCookie)
	if err != nil {
		return ""
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	value, _, _ := strings.Cut(strings.TrimPrefix(c.Value, "MagBearerToken="), "&")
	return s.sessions[value]
}

func (s *Site) issue(user string) string {
	id := "CANARY-" + rand.Text()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sessions[id] = user
	return id
}
