package login

import (
	"context"
	"fmt"
	"net/http"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/web"
)

var _ = register("spnego", func() Driver { return &spnego{} })

// spnego is any site that answers the Negotiate scheme with a session cookie
// (RFC 4559), such as Apache's mod_auth_gssapi with GssapiUseSessions. Its
// login_url asks for Negotiate.
type spnego struct{ proof }

// Takes implements Driver.
func (*spnego) Takes() []Means { return []Means{Ticket} }

// FallsBackTo implements Fallbacker: the site may offer Basic beside Negotiate
// (mod_auth_gssapi: GssapiBasicAuth).
func (*spnego) FallsBackTo() Means { return Secret }

// LoginPage implements Paged.
func (s *spnego) LoginPage() string { return s.LoginURL }

// Login implements Driver.
func (s *spnego) Login(ctx context.Context, x *web.Exchange, p Password) error {
	u, err := x.URL(s.LoginURL)
	if err != nil {
		return err
	}
	r, err := x.Get(ctx, u)
	if err != nil {
		return err
	}
	if p != nil {
		return fallBack(ctx, x, r, p)
	}
	if err := web.StatusError(r); err != nil {
		return err
	}
	return negotiated(x, r)
}

// negotiated judges the end of a login by Negotiate.
func negotiated(x *web.Exchange, r *web.Response) error {
	switch {
	case r.Status == http.StatusUnauthorized:
		return r.Refused()
	case r.Status == http.StatusForbidden && r.Negotiated:
		return &api.Error{Code: api.Forbidden, Detail: r.Shown() + " accepted the ticket and then answered 403",
			Remedy: "ask for this user's right to log in there"}
	case r.Status >= 400:
		return &api.Error{Code: api.UnexpectedStatus, Detail: fmt.Sprintf("%s answers %d", r.Shown(), r.Status),
			Remedy: "check the site's url and login_url"}
	case !r.Negotiated:
		return &api.Error{Code: api.NoChallenge, Detail: fmt.Sprintf("%s answers %d without asking for Negotiate (User-Agent %q)", r.Shown(), r.Status, x.UserAgent()),
			Remedy: "check login_url, and user_agent: some gates ask only certain agents, on certain pages, from certain addresses"}
	case x.Jar().Len() == 0:
		return &api.Error{Code: api.NoSessionCookie, Detail: r.Shown() + " accepts the ticket but sets no cookie",
			Remedy: "point login_url at a page that starts a session"}
	}
	return nil
}

// fallBack logs in with a password that a page asks for by Basic.
func fallBack(ctx context.Context, x *web.Exchange, r *web.Response, p Password) error {
	if err := web.StatusError(r); err != nil {
		return err
	}
	if basicChallenge(r) == nil {
		return &api.Error{Code: api.ChallengeUnsupported, Detail: r.Shown() + " does not ask for a password by Basic", Remedy: "leave out the site's fallback"}
	}
	r, _, err := answerBasic(ctx, x, r, p)
	if err != nil {
		return err
	}
	if next, err := x.Follows(r); err != nil {
		return err
	} else if next != nil {
		if r, err = x.Get(ctx, next); err != nil {
			return err
		}
	}
	switch {
	case r.Status >= 400:
		return &api.Error{Code: api.UnexpectedStatus, Detail: fmt.Sprintf("%s answers %d", r.Shown(), r.Status), Remedy: "check the site's url and login_url"}
	case x.Jar().Len() == 0:
		return &api.Error{Code: api.NoSessionCookie, Detail: r.Shown() + " answers the password without a cookie",
			Remedy: "point login_url at a page that starts a session"}
	}
	return nil
}
