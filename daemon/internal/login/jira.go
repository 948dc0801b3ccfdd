package login

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/web"
)

var _ = register("jira", func() Driver {
	return &jira{LoginURL: "login.jsp", SessionURL: "rest/auth/1/session"}
})

// jira is Atlassian Jira Data Center. With a ticket it logs in where a gate such
// as IWAAC asks for Negotiate, with a password by JSON. Both are proven by the
// session resource (Jira REST API, "auth/1/session"), whose second request also
// ends the probation of a new session (JRASERVER-31322).
type jira struct {
	// LoginURL asks for Negotiate. Absolute, or relative to the site's url.
	LoginURL string `toml:"login_url" for:"login"`
	// SessionURL takes POST, GET and DELETE as rest/auth/1/session does.
	SessionURL string `toml:"session_url"`
}

// Check implements Checker.
func (j *jira) Check(o web.Options, identity string) error {
	if identity == Unproven {
		return fmt.Errorf("identity = %q is not for Jira, which always names the user", Unproven)
	}
	return errors.Join(permitted(o, "login_url", j.LoginURL), permitted(o, "session_url", j.SessionURL))
}

// Takes implements Driver.
func (*jira) Takes() []Means { return []Means{Ticket, Secret} }

// Headers implements Companion: Jira refuses forms without the token, whoever
// sends them (Atlassian, "Form token handling").
func (*jira) Headers(r Asked) []Header {
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions:
		return nil
	}
	return []Header{{"X-Atlassian-Token", "no-check"}}
}

// Life implements Lasting: 300 minutes unused, and no other limit (Atlassian
// knowledge base, 604209887 and 1217298787).
func (*jira) Life() Life { return Life{Idle: 300 * time.Minute} }

// LoginPage implements Paged.
func (j *jira) LoginPage() string { return j.LoginURL }

// Login implements Driver.
func (j *jira) Login(ctx context.Context, x *web.Exchange, p Password) error {
	if p != nil {
		return j.password(ctx, x, p)
	}
	return j.ticket(ctx, x)
}

// ticket logs in by Negotiate.
func (j *jira) ticket(ctx context.Context, x *web.Exchange) error {
	u, err := x.URL(j.LoginURL)
	if err != nil {
		return err
	}
	// IWAAC asks only agents with this word, as shipped. It names no browser, of
	// which Jira would want an Origin.
	x.Present("Windows NT")
	r, err := x.Get(ctx, u)
	if err != nil {
		return err
	}
	switch s := seraph(r); {
	case s.captcha():
		return j.captcha(x, r)
	case r.Negotiated && (s.says(authenticatedFailed) || s.says(authorisationFailed)):
		return &api.Error{Code: api.Forbidden, Detail: r.Shown() + " accepts the ticket, but Jira does not let its user in",
			Remedy: "see that Jira has a user of the principal's name, with the right to use it"}
	case r.Negotiated && x.Jar().Len() > 0:
		return nil // whatever the page is that a user lands on
	}
	if err := web.StatusError(r); err != nil {
		return err
	}
	if r.Negotiated {
		return &api.Error{Code: api.NoSessionCookie, Detail: r.Shown() + " accepts the ticket but sets no cookie",
			Remedy: "see that no proxy on the way takes cookies away"}
	}
	return negotiated(x, r)
}

// password logs in by JSON. The password goes out only after Jira itself has
// answered at the same place, so that it is not spent on an outage, a gate, or
// where url redirects to.
func (j *jira) password(ctx context.Context, x *web.Exchange, p Password) error {
	u, err := x.URL(j.SessionURL)
	if err != nil {
		return err
	}
	if err := j.there(ctx, x, u); err != nil {
		return err
	}
	password, err := p.Take(ctx)
	if err != nil {
		return err
	}
	body, err := json.Marshal(map[string]string{"username": p.User(), "password": password.Reveal()})
	if err != nil {
		panic(err) // strings can be encoded
	}
	r, err := x.Send(ctx, web.Request{Method: http.MethodPost, URL: u, Body: body, Header: http.Header{
		"Content-Type": {"application/json"}, "Accept": {"application/json"}, "X-Atlassian-Token": {"no-check"},
	}})
	if err != nil {
		return err
	}
	return j.answer(x, r, p)
}

// answer judges what Jira says to a password. What its login framework says
// counts before the status: it has looked at the password, or will not.
func (j *jira) answer(x *web.Exchange, r *web.Response, p Password) error {
	s := seraph(r)
	switch {
	case s.captcha():
		return j.captcha(x, r)
	case s.says(authenticatedFailed): // also with 200 and an empty body: JRA-41559
		return passwordRefused(r, p)
	}
	if err := web.StatusError(r); err != nil {
		if r.Status == http.StatusTooManyRequests || r.Status == http.StatusServiceUnavailable {
			p.GiveBack()
		}
		return err
	}
	if _, err := x.Follows(r); err != nil {
		return err
	}
	switch {
	case r.Status == http.StatusForbidden && bytes.Contains(r.Body, []byte("Basic Authentication has been disabled")):
		p.GiveBack()
		return &api.Error{Code: api.BasicDisabled, Detail: r.Shown() + " takes no passwords: Basic Authentication is disabled on this instance",
			Remedy: "log in with a keytab, or ask Jira's administrator to allow basic authentication for REST (Authentication methods)"}
	case r.Status == http.StatusForbidden && bytes.Contains(r.Body, []byte("XSRF check failed")):
		p.GiveBack()
		return forged(r)
	case s.says(authorisationFailed), r.Status == http.StatusForbidden && s.user != "":
		p.Accepted()
		return noRight(r)
	case unauthenticated(r):
		return passwordRefused(r, p)
	case r.Status == http.StatusNotFound, r.Status == http.StatusMethodNotAllowed, r.Status == http.StatusGone:
		p.GiveBack()
		return unexpected(r)
	case r.Status != http.StatusOK:
		return unexpected(r)
	}
	var login struct {
		Session struct{ Name, Value string }
	}
	if json.Unmarshal(r.Body, &login) != nil || login.Session.Name == "" {
		return &api.Error{Code: api.UnexpectedStatus, Detail: r.Shown() + " answers a password with 200, but not with a session",
			Remedy: "check session_url, and the context path in the site's url"}
	}
	p.Accepted()
	// The answer repeats the cookie. Only the one that was set counts, and it has
	// to be that session.
	if !slices.ContainsFunc(x.Jar().Cookies(r.URL, x.Now()), func(c *web.Cookie) bool {
		return c.Name == login.Session.Name && c.Value.Reveal() == login.Session.Value
	}) {
		return &api.Error{Code: api.NoSessionCookie, Detail: r.Shown() + " accepts the password but sets no session cookie",
			Remedy: "see that no proxy on the way takes cookies away"}
	}
	return nil
}

// there asks the session resource without a session, to see whether it is
// Jira's.
func (j *jira) there(ctx context.Context, x *web.Exchange, u *url.URL) error {
	r, err := x.Send(ctx, web.Request{URL: u, Header: http.Header{"Accept": {"application/json"}}})
	if err != nil {
		return err
	}
	if err := web.StatusError(r); err != nil {
		return err
	}
	if _, err := x.Follows(r); err != nil {
		return err
	}
	switch {
	case unauthenticated(r), r.Status == http.StatusOK && seraph(r).jira && json.Valid(r.Body):
		return nil
	case r.Status == http.StatusUnauthorized && len(r.Challenges) > 0:
		return &api.Error{Code: api.ChallengeUnsupported, Detail: r.Shown() + " wants a login before Jira is reached",
			Remedy: "log in with a principal and its keytab"}
	case r.Status == http.StatusOK:
		return j.page(ctx, x, r)
	}
	return unexpected(r)
}

// unauthenticated reports whether an answer is Jira's 401: by its headers, or,
// where a front keeps those to itself, by its collection of errors (Jira REST
// API, "Error responses"). A gate's 401 is another.
func unauthenticated(r *web.Response) bool {
	var errors struct{ ErrorMessages json.RawMessage } // as it is: there may be many
	return r.Status == http.StatusUnauthorized &&
		(seraph(r).jira || json.Unmarshal(r.Body, &errors) == nil && bytes.HasPrefix(errors.ErrorMessages, []byte("[")))
}

// page is for a page with status 200 where Jira would answer in another way: of
// something in front, such as a proxy that says "back soon". If the status
// resource is not Jira's either, Jira is away (Atlassian, "Jira status
// endpoint").
func (j *jira) page(ctx context.Context, x *web.Exchange, r *web.Response) error {
	u, err := x.URL("status")
	if err != nil {
		return err
	}
	away := func(r *web.Response, how string) error {
		return &api.Error{Code: api.Maintenance, Detail: r.Shown() + how,
			Remedy: "ask again later; if it stays so, look at that page with a browser, and check the site's url"}
	}
	answer, err := x.Send(ctx, web.Request{URL: u, Header: http.Header{"Accept": {"application/json"}}})
	if err != nil {
		return err
	}
	if err := web.StatusError(answer); err != nil {
		return err
	}
	var status struct{ State string }
	switch err := json.Unmarshal(answer.Body, &status); {
	case answer.Status != http.StatusOK, err != nil:
		return away(r, " shows a page that is not Jira's")
	case status.State != "RUNNING":
		return away(answer, " does not say that Jira is running")
	}
	return &api.Error{Code: api.UnexpectedStatus, Detail: r.Shown() + " answers 200 with a page",
		Remedy: "check session_url, and the context path in the site's url"}
}

// Probe implements Driver. Only a word of Jira's, or of a gate that wants a
// login, ends a session: what else may stand in front has no say.
func (j *jira) Probe(ctx context.Context, x *web.Exchange) (Identity, error) {
	u, err := x.URL(j.SessionURL)
	if err != nil {
		return Identity{}, err
	}
	r, err := x.Send(ctx, web.Request{URL: u, Header: http.Header{"Accept": {"application/json"}}})
	if err != nil {
		return Identity{}, err
	}
	if err := web.StatusError(r); err != nil {
		return Identity{}, err
	}
	s := seraph(r)
	dead := func(how string) (Identity, error) {
		return Identity{}, &api.Error{Code: api.Expired, Detail: r.Shown() + " " + how}
	}
	switch {
	case s.says(authorisationFailed), r.Status == http.StatusForbidden && s.user != "":
		return Identity{}, noRight(r)
	case unauthenticated(r), r.Status == http.StatusUnauthorized && len(r.Challenges) > 0: // Jira, or a gate
		return dead("answers 401 to the session's cookies")
	case s.captcha(), s.says(authenticatedFailed), s.says(loggedOut):
		return dead("says that the session's cookies are no login")
	case j.toLogin(x, r):
		return dead("sends the session's cookies to a login page")
	case r.Status == http.StatusForbidden && s.jira:
		return dead("answers 403 to the session's cookies, and names no user")
	case r.Status != http.StatusOK:
		return Identity{}, unexpected(r)
	}
	name, err := jsonPath(r.Body, "name")
	switch {
	case errors.Is(err, errTwice):
		return Identity{}, contradiction(r)
	case err != nil && asksForPassword(r):
		return dead("answers 200 with a login page")
	case name == "" && !s.jira:
		return Identity{}, j.page(ctx, x, r)
	case err != nil:
		return dead("answers 200, but not with a session")
	case name == "":
		return dead("answers 200 without naming a user")
	case s.anonymous:
		return dead("names a user, but says that nobody asks")
	case s.user != "" && s.user != name:
		// In the header the name may be percent-encoded, with "+" for a space or not.
		named := func(unescape func(string) (string, error)) bool {
			u, err := unescape(s.user)
			return err == nil && lower(u) == lower(name)
		}
		if !named(url.PathUnescape) && !named(url.QueryUnescape) {
			return Identity{}, contradiction(r)
		}
	}
	return Identity{Name: name}, nil
}

func contradiction(r *web.Response) error {
	return &api.Error{Code: api.WrongIdentity, Detail: r.Shown() + " names two users", Remedy: "ask whoever runs the site why: a cache on the way would explain it"}
}

// Logout implements Logouter.
func (j *jira) Logout(ctx context.Context, x *web.Exchange) error {
	u, err := x.URL(j.SessionURL)
	if err != nil {
		return err
	}
	r, err := x.Send(ctx, web.Request{Method: http.MethodDelete, URL: u, Header: http.Header{"Accept": {"application/json"}, "X-Atlassian-Token": {"no-check"}}})
	if err != nil {
		return err
	}
	if err := web.StatusError(r); err != nil {
		return err
	}
	switch {
	case r.Status == http.StatusNoContent, unauthenticated(r): // 401: it was none any more
		return nil
	case r.Status == http.StatusForbidden && bytes.Contains(r.Body, []byte("XSRF check failed")):
		return forged(r)
	}
	return unexpected(r)
}

func (j *jira) captcha(x *web.Exchange, r *web.Response) error {
	page := "the login page"
	if u, err := x.URL("login.jsp"); err == nil {
		page = web.Shown(u)
	}
	return &api.Error{Code: api.Captcha, Detail: r.Shown() + " wants a CAPTCHA solved before it looks at another login",
		Remedy: "log in with a browser at " + page + " and solve the picture; find out what sends a wrong password there"}
}

func passwordRefused(r *web.Response, p Password) error {
	return &api.Error{Code: api.BadCredentials, Detail: r.Shown() + " refuses the password of " + p.User()}
}

func forged(r *web.Response) error {
	return &api.Error{Code: api.CSRF403, Detail: r.Shown() + " takes the request for a forged one (XSRF check failed)",
		Remedy: "set no browser's user_agent for this site; ask Jira's administrator whether its base URL and its proxy's scheme and port agree"}
}

func noRight(r *web.Response) error {
	return &api.Error{Code: api.Forbidden, Detail: r.Shown() + " knows the user, who may not use this Jira", Remedy: "ask Jira's administrator for the right, or a licence"}
}

// unexpected is for a status that no rule names.
func unexpected(r *web.Response) error {
	return &api.Error{Code: api.UnexpectedStatus, Detail: fmt.Sprintf("%s answers %d", r.Shown(), r.Status),
		Remedy: "check session_url, and the context path in the site's url"}
}

// toLogin reports whether an answer leads to a login: to the login page, or to
// another host, as a gate leads whose own session has ended.
func (j *jira) toLogin(x *web.Exchange, r *web.Response) bool {
	to, err := x.Follows(r)
	switch {
	case err != nil:
		return true
	case to == nil:
		return false
	}
	login, err := x.URL(j.LoginURL)
	last := to.Path[strings.LastIndexByte(to.Path, '/')+1:]
	return err == nil && to.Path == login.Path || strings.HasPrefix(last, "login")
}
