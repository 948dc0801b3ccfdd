package login

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"time"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/web"
)

var _ = register("jira", func() Driver {
	return &jira{
		atlassian:  atlassian{product: jiraProduct, LoginURL: "login.jsp", StatusURL: "status"},
		SessionURL: "rest/auth/1/session", TSVURL: tsv,
	}
})

// A session lives for 300 minutes unused, and has no other limit (Atlassian
// knowledge base, 604209887 and 1217298787).
var jiraProduct = &product{
	kind: "jira", name: "Jira", legacy: byREST, marker: "login-form-remember-me", username: "os_username", password: "os_password", action: "login.jsp", idle: 300 * time.Minute,
	beside: []string{"self", "loginInfo"},
	whoami: func(body []byte) (string, error) { return jsonPath(body, "name") },
}

// jira is Atlassian Jira Data Center. Its session is proven by the session resource
// (Jira REST API, "auth/1/session"), whose second request also ends the probation of
// a new session (JRASERVER-31322).
type jira struct {
	atlassian
	// SessionURL takes POST, GET and DELETE as rest/auth/1/session does.
	SessionURL string `toml:"session_url"`
	// TSVURL takes passwords in the two-step login.
	TSVURL string `toml:"tsv_url" for:"login"`
}

// Check implements Checker.
func (j *jira) Check(o web.Options, identity string) error {
	return errors.Join(j.names(identity), j.check(o, byREST, byTSV, byForm), permitted(o, "session_url", j.SessionURL), permitted(o, "tsv_url", j.TSVURL))
}

// As implements Detector.
func (j *jira) As(f Findings) Driver {
	d := *j
	d.found = f
	return &d
}

// Login implements Driver.
func (j *jira) Login(ctx context.Context, x *web.Exchange, p Password) error {
	switch {
	case p == nil:
		return j.ticket(ctx, x)
	case j.generation() == byTSV:
		return j.twoStep(ctx, x, p, j.TSVURL, j.SessionURL)
	case j.generation() == byForm:
		return j.form(ctx, x, p, j.Probe)
	}
	return j.rest(ctx, x, p)
}

// rest logs in by JSON.
func (j *jira) rest(ctx context.Context, x *web.Exchange, p Password) error {
	u, err := x.URL(j.SessionURL)
	if err != nil {
		return err
	}
	if err := j.there(ctx, x, j.SessionURL); err != nil {
		return err
	}
	r, err := j.sendJSON(ctx, x, p, u, map[string]any{})
	if err != nil {
		return err
	}
	if err := j.refusal(x, r, p); err != nil {
		return err
	}
	if r.Status != http.StatusOK {
		return j.unexpected(r)
	}
	var login struct {
		Session struct{ Name, Value string }
	}
	if json.Unmarshal(r.Body, &login) != nil || login.Session.Name == "" {
		return &api.Error{Code: api.UnexpectedStatus, Detail: r.Shown() + " answers a password with 200, but not with a session", Remedy: checkPages}
	}
	p.Accepted()
	// The answer repeats the cookie. Only the one that was set counts, and it has
	// to be that session.
	if !slices.ContainsFunc(x.Jar().Cookies(r.URL, x.Now()), func(c *web.Cookie) bool {
		return c.Name == login.Session.Name && c.Value.Reveal() == login.Session.Value
	}) {
		return &api.Error{Code: api.NoSessionCookie, Detail: r.Shown() + " accepts the password but sets no session cookie", Remedy: noCookie}
	}
	return nil
}

// Probe implements Driver.
func (j *jira) Probe(ctx context.Context, x *web.Exchange) (Identity, error) {
	return j.whoami(ctx, x, j.SessionURL)
}

// Logout implements Logouter.
func (j *jira) Logout(ctx context.Context, x *web.Exchange) error {
	u, err := x.URL(j.SessionURL)
	if err != nil {
		return err
	}
	r, err := x.Send(ctx, j.request(x, http.MethodDelete, u))
	if err != nil {
		return err
	}
	if err := web.StatusError(r); err != nil {
		return err
	}
	switch h := hear(r); {
	case r.Status == http.StatusNoContent, h.stranger(): // 401: it was none any more
		return nil
	case h.forged():
		return j.forged(r)
	}
	return j.unexpected(r)
}
