package rig

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
)

// SSOOptions say what kind of single sign-on an SSO has.
type SSOOptions struct {
	// Applications is how many there are.
	Applications int
	// Keytab is the bytes of a keytab file with the key of its SPN. The provider
	// then asks for Negotiate; without it, it shows a form.
	Keytab []byte
	// Domain is the domain of all hosts, such as corp.localhost, and of the
	// provider's cookie. "": each host is localhost, and the cookie is the
	// provider's own.
	Domain string
	// Direct lets the applications take the provider's cookie itself for a login,
	// as those of Crowd do; it needs a Domain. Otherwise the cookie means nothing
	// to them, although it comes, and they want a ticket.
	Direct bool
	// Always makes the applications look for that cookie at every request, and not
	// only at the first.
	Always bool
}

// SSO is an identity provider and the applications that rely on it, in this
// process: several hosts under one SSO domain.
//
// Redirects and tickets are those of the CAS protocol 3.0 (apereo.github.io/cas),
// as LemonLDAP::NG as provider and mod_auth_cas as application speak it: a page
// without a session leads to the provider (302); that logs in, with a form
// (2.1, 2.2) or with Negotiate (401), sets its cookie, and leads back with a
// ticket in the query; the application redeems the ticket, sets a cookie of its
// own, and leads to the page without the ticket (302). LemonLDAP's cookie has the
// domain of all hosts.
//
// The applications of Crowd take the provider's cookie in place of a ticket
// (confluence.atlassian.com/crowd: Overview of SSO). They look at the request's
// cookie and not at their own session to see who comes, at every request if
// session.validationinterval is 0 (The crowd.properties file); else they remember
// in their own session that it was good.
//
// The provider:
//
//	GET  /sso[?return=URL]   302 to URL, else 200; without a session the login
//	POST /sso[?return=URL]   303 to URL, else 200; or 200 with the form again
//	GET  /whoami             {"user":"…"}, else 401
//	GET  /logout             ends the provider's session, and no application's
//
// An application:
//
//	GET /whoami              {"user":"…"}, else 302 to the provider
//	GET /logout              ends this application's session
//	GET any other            a page for users, else 302 to the provider
//
// Every secret that it makes up begins with CANARY-.
type SSO struct {
	Provider     *SSOHost
	Applications []*SSOHost

	options  SSOOptions
	acceptor *Acceptor // nil: a form

	mu      sync.Mutex
	users   map[string]string // name → password
	names   map[string]string // what applications are told instead of a name
	forms   map[string]bool   // login tickets that are out
	tickets map[string]ssoTicket
	counts  SSOCounts
}

// SSOCounts is what happened since an SSO was made.
type SSOCounts struct {
	Logins   int // good ones at the provider, by password or Negotiate
	Failures int // refused passwords
	Tickets  int // given out by the provider
	Sessions int // begun at applications
}

// ssoTicket is good once, for one application (CAS protocol, 3.1.1).
type ssoTicket struct{ user, origin string }

// SSOHost is one of an SSO's hosts: http on a free port of 127.0.0.1.
type SSOHost struct {
	webServer
	sso   *SSO
	name  string
	serve func(http.ResponseWriter, *http.Request)

	sessions map[string]string // cookie → user; guarded by the SSO's lock, like all that follows
	failing  int
}

// StartSSO starts a provider that knows nobody yet, and its applications.
func StartSSO(o SSOOptions) (*SSO, error) {
	if o.Domain == "" && o.Direct || !o.Direct && o.Always {
		return nil, errors.New("rig: an application can only look at a cookie that it gets and takes")
	}
	s := &SSO{options: o, users: make(map[string]string), names: make(map[string]string),
		forms: make(map[string]bool), tickets: make(map[string]ssoTicket)}
	s.Provider = s.host("idp")
	s.Provider.serve = s.provider
	for i := range o.Applications {
		a := s.host(fmt.Sprint("app", i+1))
		a.serve = func(w http.ResponseWriter, r *http.Request) { s.application(w, r, a) }
		s.Applications = append(s.Applications, a)
	}
	if o.Keytab != nil {
		var err error
		if s.acceptor, err = NewAcceptor(o.Keytab, s.Provider.SPN()); err != nil {
			return nil, err
		}
	}
	for _, h := range s.hosts() {
		if err := h.Start(); err != nil {
			s.Stop()
			return nil, err
		}
	}
	return s, nil
}

// host returns a host of the SSO domain.
func (s *SSO) host(name string) *SSOHost {
	if name += "." + s.options.Domain; s.options.Domain == "" {
		name = "localhost"
	}
	return &SSOHost{sso: s, name: name, sessions: make(map[string]string)}
}

func (s *SSO) hosts() []*SSOHost { return append([]*SSOHost{s.Provider}, s.Applications...) }

// Stop ends all hosts.
func (s *SSO) Stop() {
	for _, h := range s.hosts() {
		h.Stop()
	}
}

// Dial connects to the hosts by their names, which no resolver need know, and to
// nothing else.
func (s *SSO) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	name, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(s.hosts(), func(h *SSOHost) bool { return h.name == name }) {
		return nil, &net.DNSError{Err: "rig: no host of this SSO", Name: name, IsNotFound: true}
	}
	return new(net.Dialer).DialContext(ctx, network, net.JoinHostPort("127.0.0.1", port))
}

// HostsFile returns what makes the names known, in the form of hosts(5).
func (s *SSO) HostsFile() string {
	line := "127.0.0.1 localhost"
	for _, h := range s.hosts() {
		if h.name != "localhost" {
			line += " " + h.name
		}
	}
	return line + "\n"
}

// AddUser adds a user, or changes a user's password. Who comes by Negotiate needs
// neither.
func (s *SSO) AddUser(name, password string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.users[name] = password
}

// Rename makes the provider tell applications another name of a user than it knows
// itself.
func (s *SSO) Rename(user, other string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.names[user] = other
}

// Counts returns what happened so far.
func (s *SSO) Counts() SSOCounts {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.counts
}

// URL returns http://name:port, without a slash at its end.
func (h *SSOHost) URL() string { return strings.Replace(h.origin(), "localhost", h.name, 1) }

// SPN returns the host's service principal name, HTTP/name.
func (h *SSOHost) SPN() string { return "HTTP/" + h.name }

// Start starts the host after Stop, on the same port, with its sessions.
func (h *SSOHost) Start() error { return h.start(h) }

// End ends all of the host's sessions. What the provider let into applications
// before goes on there, unless they look at its cookie always.
func (h *SSOHost) End() {
	h.sso.mu.Lock()
	defer h.sso.mu.Unlock()
	clear(h.sessions)
}

// Sessions returns how many live.
func (h *SSOHost) Sessions() int {
	h.sso.mu.Lock()
	defer h.sso.mu.Unlock()
	return len(h.sessions)
}

// Fail makes the host answer everything with a status, 503 for one; 0 ends that.
func (h *SSOHost) Fail(status int) {
	h.sso.mu.Lock()
	defer h.sso.mu.Unlock()
	h.failing = status
}

// ServeHTTP implements http.Handler.
func (h *SSOHost) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.count(r)
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	if err := r.ParseForm(); err != nil {
		http.Error(w, "the form cannot be read", http.StatusBadRequest)
		return
	}
	h.sso.mu.Lock()
	defer h.sso.mu.Unlock()
	if h.failing != 0 {
		http.Error(w, "out of order", h.failing)
		return
	}
	h.serve(w, r)
}

const (
	providerCookie    = "sso"
	applicationCookie = "JSESSIONID"
)

// session returns whose session a cookie of the request is, "" for nobody's.
func (h *SSOHost) session(r *http.Request, cookie string) string {
	c, err := r.Cookie(cookie)
	if err != nil {
		return ""
	}
	return h.sessions[c.Value]
}

// begin makes a session and sets its cookie.
func (h *SSOHost) begin(w http.ResponseWriter, user, cookie, attributes string) {
	id := secretID()
	h.sessions[id] = user
	w.Header().Add("Set-Cookie", cookie+"="+id+"; Path=/; HttpOnly"+attributes)
}

// end ends the session of a cookie of the request.
func (h *SSOHost) end(w http.ResponseWriter, r *http.Request, cookie, attributes string) {
	if c, err := r.Cookie(cookie); err == nil {
		delete(h.sessions, c.Value)
	}
	w.Header().Add("Set-Cookie", cookie+"=; Path=/; Max-Age=0; HttpOnly"+attributes)
	ssoPage(w, "<p>You have logged out.</p>")
}

func ssoPage(w http.ResponseWriter, body string) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	fmt.Fprintf(w, "<!DOCTYPE html>\n<html><head><title>SSO</title></head><body>%s</body></html>\n", body)
}

func ssoUser(w http.ResponseWriter, user string) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(map[string]string{"user": user})
}

// domain is the provider's cookie's Domain attribute.
func (s *SSO) domain() string {
	if s.options.Domain == "" {
		return ""
	}
	return "; Domain=" + s.options.Domain
}

// provider is the provider's pages.
func (s *SSO) provider(w http.ResponseWriter, r *http.Request) {
	user := s.Provider.session(r, providerCookie)
	to := r.URL.Query().Get("return")
	switch {
	case r.URL.Path == "/logout":
		s.Provider.end(w, r, providerCookie, s.domain())
	case r.URL.Path == "/whoami" && user == "":
		http.Error(w, "nobody", http.StatusUnauthorized)
	case r.URL.Path == "/whoami":
		ssoUser(w, user)
	case r.URL.Path != "/sso":
		http.NotFound(w, r)
	case to != "" && s.relies(to) == "": // what is not registered gets no ticket
		http.Error(w, "no application of this provider", http.StatusForbidden)
	case r.Method == http.MethodPost:
		s.byForm(w, r, to)
	case user != "":
		s.lead(w, r, user, to, http.StatusFound)
	case s.acceptor != nil:
		s.byNegotiate(w, r, to)
	default:
		s.form(w, to, "")
	}
}

// relies returns the origin of the application that a URL is at, "" for none.
func (s *SSO) relies(ref string) string {
	u, err := url.Parse(ref)
	if err != nil {
		return ""
	}
	origin := u.Scheme + "://" + u.Host
	if !slices.ContainsFunc(s.Applications, func(a *SSOHost) bool { return a.URL() == origin }) {
		return ""
	}
	return origin
}

// lead leads a user to where the login came from, with a ticket.
func (s *SSO) lead(w http.ResponseWriter, r *http.Request, user, to string, status int) {
	if to == "" {
		ssoPage(w, "<p>You are logged in.</p>")
		return
	}
	if !s.options.Direct {
		u, err := url.Parse(to)
		if err != nil {
			panic(err) // it was parsed before
		}
		id := secretID()
		s.tickets[id] = ssoTicket{s.told(user), s.relies(to)}
		s.counts.Tickets++
		q := u.Query()
		q.Set("ticket", id)
		u.RawQuery = q.Encode()
		to = u.String()
	}
	http.Redirect(w, r, to, status)
}

// told is what applications are told of a user.
func (s *SSO) told(user string) string { return cmp.Or(s.names[user], user) }

// form is the login page, with status 200 and a login ticket that is good once
// (CAS protocol, 3.5.1).
func (s *SSO) form(w http.ResponseWriter, to, message string) {
	action := "/sso"
	if to != "" {
		action += "?return=" + url.QueryEscape(to)
	}
	id := secretID()
	s.forms[id] = true
	ssoPage(w, fmt.Sprintf(`<p class="error">%s</p>
<form action="%s" method="post">
<input type="hidden" name="lt" value="%s">
<input type="text" name="username" autocomplete="username">
<input type="password" name="password" autocomplete="current-password">
<button type="submit">Log in</button>
</form>`, message, html.EscapeString(action), id))
}

func (s *SSO) byForm(w http.ResponseWriter, r *http.Request, to string) {
	lt := r.PostForm.Get("lt")
	if s.acceptor != nil || !s.forms[lt] {
		http.Error(w, "the form is not from this site, or was sent before", http.StatusForbidden)
		return
	}
	delete(s.forms, lt)
	user := r.PostForm.Get("username")
	if password, known := s.users[user]; !known || r.PostForm.Get("password") != password {
		s.counts.Failures++
		s.form(w, to, "Wrong user name or password.")
		return
	}
	s.login(w, user)
	s.lead(w, r, user, to, http.StatusSeeOther)
}

func (s *SSO) byNegotiate(w http.ResponseWriter, r *http.Request, to string) {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	answer, user := "Negotiate", ""
	if b, err := base64.StdEncoding.DecodeString(token); err == nil && scheme == "Negotiate" {
		principal, reply, err := s.acceptor.Accept(b)
		answer += " " + base64.StdEncoding.EncodeToString(reply)
		if err == nil {
			user, _, _ = strings.Cut(principal, "@") // LemonLDAP::NG's krbRemoveDomain
		}
	}
	w.Header().Set("WWW-Authenticate", answer)
	if user == "" {
		http.Error(w, "log in", http.StatusUnauthorized)
		return
	}
	s.login(w, user)
	s.lead(w, r, user, to, http.StatusFound)
}

func (s *SSO) login(w http.ResponseWriter, user string) {
	s.counts.Logins++
	s.Provider.begin(w, user, providerCookie, s.domain())
}

// application is the pages of an application.
func (s *SSO) application(w http.ResponseWriter, r *http.Request, a *SSOHost) {
	user := a.session(r, applicationCookie)
	known := "" // by the provider's cookie
	if s.options.Direct {
		known = s.told(s.Provider.session(r, providerCookie))
	}
	query := r.URL.Query()
	switch {
	case r.URL.Path == "/logout":
		a.end(w, r, applicationCookie, "")
		return
	case s.options.Always && known == "":
		user = ""
	case known != "" && (user == "" || s.options.Always && user != known):
		s.enter(w, a, known)
		user = known
	case user == "" && query.Has("ticket"):
		s.redeem(w, r, a, query)
		return
	}
	switch {
	case user == "":
		http.Redirect(w, r, s.Provider.URL()+"/sso?return="+url.QueryEscape(a.URL()+r.URL.RequestURI()), http.StatusFound)
	case r.URL.Path == "/whoami":
		ssoUser(w, user)
	default:
		ssoPage(w, "<p>Welcome, "+html.EscapeString(user)+".</p>")
	}
}

// enter begins a session at an application.
func (s *SSO) enter(w http.ResponseWriter, a *SSOHost, user string) {
	s.counts.Sessions++
	a.begin(w, user, applicationCookie, "")
}

// redeem takes a ticket. The application asks the provider about it behind the
// visitor's back, which works also while that is stopped for visitors.
func (s *SSO) redeem(w http.ResponseWriter, r *http.Request, a *SSOHost, query url.Values) {
	id := query.Get("ticket")
	t, ok := s.tickets[id]
	delete(s.tickets, id)
	if !ok || t.origin != a.URL() {
		http.Error(w, "the provider does not know this ticket", http.StatusUnauthorized)
		return
	}
	s.enter(w, a, t.user)
	query.Del("ticket")
	u := *r.URL
	u.RawQuery = query.Encode()
	http.Redirect(w, r, a.URL()+u.String(), http.StatusFound)
}
