package login

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/web"
)

// Login implements Driver.
func (j *jazz) Login(ctx context.Context, x *web.Exchange, p Password) error {
	if err := j.login(ctx, x, p); err != nil {
		return err
	}
	j.settle(x)
	return nil
}

// login is Login with all cookies that came.
func (j *jazz) login(ctx context.Context, x *web.Exchange, p Password) error {
	j.present(x)
	l := &jazzLogin{j: j, x: x, p: p}
	r, err := l.start(ctx)
	if err != nil {
		return err
	}
	before := cookieValues(x.Jar())
	if r.Negotiated {
		clear(before)
	}
	if err := l.pass(ctx, r); err != nil {
		return err
	}
	if x.Jar().Authorization().Empty() && !newCookie(x, before) {
		return &api.Error{Code: api.NoSessionCookie, Detail: web.Shown(l.home) + " ends the login without a new cookie", Remedy: noCookie}
	}
	return nil
}

// Enter implements Member.
func (j *jazz) Enter(ctx context.Context, x *web.Exchange) error {
	if err := j.walkIn(ctx, x); err != nil {
		return err
	}
	j.settle(x)
	return nil
}

// walkIn begins a session with the cookies of a single sign-on alone.
func (j *jazz) walkIn(ctx context.Context, x *web.Exchange) error {
	l := &jazzLogin{j: j, x: x}
	r, err := l.start(ctx)
	if err != nil {
		return err
	}
	for range maxWays {
		if l.arrived(r) {
			return l.named(ctx)
		}
		c, err := j.challenged(x, r)
		switch {
		case err != nil:
			return err
		case c.by == byOAuth:
			l.delegated = true
			r, err = x.GetUntil(ctx, c.next, l.isHome)
		case c.by == byJAS:
			l.jas = true
			r, err = l.silent(ctx, c)
		default:
			return expired(r, "does not take the session of the single sign-on")
		}
		if err != nil {
			return err
		}
	}
	return loginAgain(r)
}

// maxWays is how many ways of logging in may lead to one another.
const maxWays = 5

// jazzLogin is one login.
type jazzLogin struct {
	j    *jazz
	x    *web.Exchange
	p    Password // nil: by a ticket, or nobody's
	home *url.URL // the protected page

	sent      *url.URL // where the password went, nil: nowhere yet
	in        bool     // a login was good, as far as can be seen
	again     bool     // the way was gone once more after that
	jas       bool     // the authorization server has let in
	delegated bool     // another server was asked whether this one may act
}

// start asks for the protected page.
func (l *jazzLogin) start(ctx context.Context) (r *web.Response, err error) {
	if l.home, err = l.x.URL(l.j.protected()); err != nil {
		return nil, err
	}
	return l.x.Get(ctx, l.home)
}

// isHome reports whether a hop leads back to the protected page, which the proof asks
// for anyhow.
func (l *jazzLogin) isHome(u *url.URL) bool {
	return web.OriginOf(u) == web.OriginOf(l.home) && u.Path == l.home.Path
}

// arrived reports whether an answer is the end of a login that was good, as far as it
// can be seen: the protected page, the way there, or what an application shows when
// another one has let it act (oauthCallback).
func (l *jazzLogin) arrived(r *web.Response) bool {
	if to, err := l.x.Follows(r); err == nil && to != nil {
		return true // GetUntil follows all others
	}
	return r.Status == http.StatusOK && authMessage(r) == "" && !formLogin(r) && !loginRequired(r) && !asksForPassword(r) &&
		web.OriginOf(r.URL) == web.OriginOf(l.home) && !strings.HasSuffix(r.URL.Path, "/oauth-authorize")
}

// pass goes all the ways of logging in that lead to one another, from what a stranger
// is told who asks for the protected page.
func (l *jazzLogin) pass(ctx context.Context, r *web.Response) error {
	for range maxWays {
		if (l.in || l.p == nil && r.Negotiated) && l.arrived(r) {
			return l.named(ctx)
		}
		c, err := l.j.challenged(l.x, r)
		switch {
		case l.in && r.Status == http.StatusForbidden:
			return noRole(r)
		case err != nil && l.in && !l.again && r.Status >= 400 && r.Status < 500:
			// What the login has led to was good for once, and is used up. The server
			// knows the user by now.
			l.again = true
			if r, err = l.x.Get(ctx, l.home); err != nil {
				return err
			}
			continue
		case err != nil:
			return err
		case l.j.AppPassword && c.by != byOAuth && (c.by != byJAS || c.app == nil):
			return &api.Error{Code: api.ConfigInvalid, Detail: r.Shown() + " takes no application passwords",
				Remedy: "leave app_password out, and give the user's own password"}
		case c.by == byOAuth:
			l.delegated = true
			r, err = l.x.GetUntil(ctx, c.next, l.isHome)
		case c.by == byJAS && l.jas:
			r, err = l.silent(ctx, c)
		case c.by == byJAS:
			r, err = l.atJAS(ctx, c)
		case l.p == nil:
			return l.unasked(r, c)
		case l.sent != nil, c.by == byForm && authMessage(r) != authRequired:
			return loginAgain(r)
		case c.by == byForm:
			r, err = l.form(ctx, r)
		case c.by == byBasic:
			r, err = l.basic(ctx, r)
		default:
			return takesNoPassword(r)
		}
		if err != nil {
			return err
		}
		if !l.x.Jar().Authorization().Empty() {
			return nil
		}
	}
	return loginAgain(r)
}

// unasked is for a server that does not ask for the ticket that there is, or has not
// taken it.
func (l *jazzLogin) unasked(r *web.Response, c jazzChallenge) error {
	switch {
	case r.Negotiated:
		return &api.Error{Code: api.NegotiateRejected, Detail: r.Shown() + " does not take the ticket, and goes on to its form (Open Liberty, disableFailOverToAppAuthType)",
			Remedy: "compare the service's key, and the clocks; see the server's log"}
	case c.gate:
		return r.Refused()
	}
	return &api.Error{Code: api.NoChallenge, Detail: fmt.Sprintf("%s wants a login, but does not ask for Negotiate (User-Agent %q)", r.Shown(), l.x.UserAgent()),
		Remedy: "use a username with its password; or ask whether the server's authentication filter lets only certain agents use Kerberos, and set user_agent"}
}

// takesNoPassword is for a server that knows Kerberos alone.
func takesNoPassword(r *web.Response) error {
	return &api.Error{Code: api.ChallengeUnsupported, Detail: r.Shown() + " asks for Negotiate alone, and for no password",
		Remedy: "give the site a credential with a principal and its keytab"}
}

// loginAgain is for a server that asks for a login after one that looked good.
func loginAgain(r *web.Response) error {
	return &api.Error{Code: api.LoginOKButProbeFailed, Detail: r.Shown() + " asks for another login after one",
		Remedy: "log in there with a browser; see that no proxy on the way takes cookies away, and that the applications share the keys of their single sign-on"}
}

// named goes to the page that names the user, where another application has it: with
// an authorization server, that wants a session of its own, unless it was asked on the
// way.
func (l *jazzLogin) named(ctx context.Context) error {
	if l.j.users() == "" || !l.jas || l.delegated {
		return nil
	}
	u, err := l.x.URL(l.j.users())
	if err != nil {
		return err
	}
	r, err := l.x.Get(ctx, u)
	if err != nil {
		return err
	}
	c, err := l.j.challenged(l.x, r)
	if err != nil || c.by != byJAS {
		return nil // the proof says what it is
	}
	_, err = l.silent(ctx, c)
	return err
}

// form sends the password as the login page's script does. The server has kept, in a
// cookie, where it is to lead to then, so that nothing but an answer to a protected
// page may come before it.
func (l *jazzLogin) form(ctx context.Context, page *web.Response) (*web.Response, error) {
	to, err := l.securityCheck(page)
	if err != nil {
		return nil, err
	}
	before := cookieValues(l.x.Jar().Named(l.j.SSOCookie))
	r, err := l.post(ctx, page, to)
	if err != nil {
		return nil, err
	}
	location, _ := r.URL.Parse(r.Header.Get("Location"))
	switch {
	case r.Status == http.StatusForbidden: // or a front that has had enough of wrong ones
		return nil, noRole(r)
	case r.Status == http.StatusUnauthorized, authMessage(r) == authFailed, location != nil && strings.HasSuffix(location.Path, "/auth/"+authFailed):
		return nil, passwordRefused(r, l.p)
	case r.Status == http.StatusTemporaryRedirect, r.Status == http.StatusPermanentRedirect:
		return nil, &api.Error{Code: api.UnexpectedStatus, Detail: fmt.Sprintf("%s answers %d: the password should be sent once more, elsewhere", r.Shown(), r.Status), Remedy: checkContext}
	case r.Status >= 400:
		return nil, unexpectedJazz(r)
	case r.SetCookies == 0 && (authMessage(r) == authRequired || location != nil && strings.HasSuffix(location.Path, "/auth/"+authRequired)):
		return nil, passwordRefused(r, l.p) // its login page is all that it says to a wrong one
	}
	l.in = true
	answer, err := l.goOn(ctx, r)
	asksAgain := err == nil && (authMessage(answer) != "" || answer.Status == http.StatusUnauthorized)
	if !asksAgain && began(l.x.Jar().Named(l.j.SSOCookie), before) {
		l.p.Accepted()
	}
	return answer, err
}

// began reports whether there is a cookie with a value that was not there before.
func began(jar *web.Jar, before map[string]bool) bool {
	for c := range cookieValues(jar) {
		if _, value, _ := strings.Cut(c, "="); !before[c] && strings.Trim(value, `"`) != "" {
			return true
		}
	}
	return false
}

// goOn follows what an answer to a password leads to, in the site's own scheme: behind
// a proxy that ends TLS some servers write http (rtcclient#92).
func (l *jazzLogin) goOn(ctx context.Context, r *web.Response) (*web.Response, error) {
	to, err := l.x.Follows(r)
	switch {
	case api.CodeOf(err) == api.InsecureRedirect:
		return l.x.Get(ctx, l.home)
	case err != nil:
		return nil, err
	case to == nil:
		return l.x.Get(ctx, l.home)
	case l.isHome(to):
		return r, nil
	}
	return l.x.GetUntil(ctx, to, l.isHome)
}

// securityCheck returns where the form of a page goes: the context of the server that
// asks, which the page's cookie names (ELM-Python-Client), or the page's own.
func (l *jazzLogin) securityCheck(page *web.Response) (*url.URL, error) {
	context, _, _ := strings.Cut(page.URL.Path, "/auth/")
	if i := strings.Index(page.URL.Path, "/authenticated/"); i >= 0 {
		context = page.URL.Path[:i]
	}
	for _, c := range l.x.Jar().Named("JazzFormAuth").Cookies(&url.URL{Scheme: page.URL.Scheme, Host: page.URL.Host, Path: page.URL.Path}, l.x.Now()) {
		context = strings.TrimRight(c.Path, "/")
	}
	to := &url.URL{Scheme: page.URL.Scheme, Host: page.URL.Host, Path: context + "/j_security_check"}
	if own := page.Header.Get("X-Com-Ibm-Team-Repository-Web-Auth-Uri"); own != "" {
		u, err := page.URL.Parse(own)
		if err != nil || !strings.HasSuffix(u.Path, "/j_security_check") {
			return nil, &api.Error{Code: api.UnexpectedStatus, Detail: page.Shown() + " names no place for a password", Remedy: checkContext}
		}
		to = u
	}
	return to, l.x.Permit(page.URL, to)
}

// post takes the password and sends it to j_security_check (Jakarta Servlet, "Form
// Based Authentication").
func (l *jazzLogin) post(ctx context.Context, page *web.Response, to *url.URL) (*web.Response, error) {
	password, err := l.p.Take(ctx)
	if err != nil {
		return nil, err
	}
	h := jazzHeader()
	h.Set("Content-Type", urlencoded+"; charset=utf-8")
	h.Set("Origin", web.OriginOf(page.URL).String())
	l.sent = to
	body := url.Values{"j_username": {l.p.User()}, "j_password": {password.Reveal()}}
	r, err := l.x.Send(ctx, web.Request{Method: http.MethodPost, URL: to, Header: h, Body: []byte(body.Encode())})
	if err != nil {
		return nil, err
	}
	return r, troubled(r, l.p)
}

// basic sends the password in an Authorization field: to an application that knows
// nothing else, whose session that field is then, or to a server that lets others in.
func (l *jazzLogin) basic(ctx context.Context, r *web.Response) (*web.Response, error) {
	l.sent = r.URL
	switch {
	case l.delegated:
		answer, _, err := answerBasic(ctx, l.x, r, l.p)
		if err != nil {
			return nil, err
		}
		l.in = true
		return l.goOn(ctx, answer)
	case l.j.found.Product == "":
		return nil, &api.Error{Code: api.ChallengeUnsupported, Detail: r.Shown() + " asks for a password by Basic, and nothing says that it is Jazz's",
			Remedy: `check the context root in the site's url; if that is what takes the password, use kind = "basic"`}
	}
	answer, field, err := answerBasic(ctx, l.x, r, l.p)
	if err != nil {
		return nil, err
	}
	l.in = true
	if l.x.Jar().Named(l.j.SSOCookie).Len() > 0 {
		if _, err := l.j.prove(ctx, l.x); api.CodeOf(err) != api.Expired {
			return answer, err
		}
	}
	l.x.Jar().Authorize(field)
	return answer, nil
}

// atJAS logs in at the authorization server (OpenID Connect Core, section 3.1). Where
// that leads to is good for once.
func (l *jazzLogin) atJAS(ctx context.Context, c jazzChallenge) (*web.Response, error) {
	if c.app != nil && l.j.AppPassword && l.p != nil {
		return l.appPassword(ctx, c)
	}
	r, err := l.x.GetUntil(ctx, c.next, l.isHome)
	if err != nil {
		return nil, l.j.leftJAS(l.x, c, err)
	}
	if err := l.j.external(l.x, c, r); err != nil {
		return nil, err
	}
	switch negotiate := web.FindChallenge(r.Challenges, "negotiate") != nil; {
	case l.arrived(r), r.Negotiated && r.Status >= 400 && r.Status < 500 && r.Status != http.StatusUnauthorized && r.Status != http.StatusForbidden:
		l.jas, l.in = true, true
		return r, nil
	case r.Status == http.StatusForbidden && r.Negotiated:
		return nil, ticketRefused(r)
	case r.Status == http.StatusUnauthorized && l.p == nil:
		return nil, l.unasked(r, jazzChallenge{by: byJAS, gate: negotiate})
	case r.Status == http.StatusUnauthorized && negotiate && web.FindChallenge(r.Challenges, "basic") == nil:
		return nil, takesNoPassword(r)
	case r.Status != http.StatusUnauthorized && !formLogin(r):
		if err := web.StatusError(r); err != nil {
			return nil, err
		}
		return nil, unexpectedJAS(r)
	case l.p == nil:
		return nil, l.unasked(r, jazzChallenge{by: byForm})
	case l.sent != nil:
		return nil, loginAgain(r)
	case web.OriginOf(r.URL) != web.OriginOf(c.next):
		return nil, &api.Error{Code: api.SSORedirect, Detail: web.Shown(c.next) + " leads to a login at " + web.OriginOf(r.URL).String(), Remedy: "ask the server's administrator how native clients log in"}
	case l.j.JASForm:
		return l.jasForm(ctx, c, r)
	}
	l.sent = c.next
	answer, _, err := sendBasic(ctx, l.x, c.next, nil, l.p)
	switch {
	case err != nil:
		return nil, err
	case answer.Status == http.StatusUnauthorized:
		return nil, passwordRefused(answer, l.p)
	case answer.Status == http.StatusForbidden:
		return nil, noRole(answer)
	}
	return l.authorized(ctx, answer, &api.Error{Code: api.UnexpectedStatus, Detail: answer.Shown() + " does not let in who brings a password by Basic",
		Remedy: "log in there with a browser to see whether the user may; if its form lets in, set jas_form = true where the credential is: the password then goes to that"})
}

// authorized follows an answer of the authorization server that has let in: it leads to
// the application, with a code (OpenID Connect Core, section 3.1.2.5). Otherwise it has
// not, for a reason.
func (l *jazzLogin) authorized(ctx context.Context, answer *web.Response, reason error) (*web.Response, error) {
	to, err := l.x.Follows(answer)
	switch {
	case to == nil, !to.Query().Has("code"):
		if err != nil {
			return nil, err
		}
		return nil, reason
	}
	l.p.Accepted()
	if err != nil {
		return nil, err
	}
	l.jas, l.in = true, true
	return l.goOn(ctx, answer)
}

// jasForm sends the password to the authorization server's form, and asks for the
// authorization again (IBM, "ELM and OAuth 2.0").
func (l *jazzLogin) jasForm(ctx context.Context, c jazzChallenge, page *web.Response) (*web.Response, error) {
	context, ok := strings.CutSuffix(page.URL.Path, formLoginPage)
	if !ok {
		context, _, _ = cutLast(context, "/")
	}
	own := func() *web.Jar { return l.x.Jar().Filter(func(c *web.Cookie) bool { return ofJAS(c.Name) }) }
	before := cookieValues(own())
	r, err := l.post(ctx, page, &url.URL{Scheme: page.URL.Scheme, Host: page.URL.Host, Path: context + "/j_security_check"})
	if err != nil {
		return nil, err
	}
	to, err := l.x.Follows(r)
	switch {
	case r.Status == http.StatusUnauthorized, to != nil && (to.Path == page.URL.Path || to.Query().Has("error")), formLogin(r):
		return nil, passwordRefused(r, l.p)
	case r.Status == http.StatusForbidden:
		return nil, noRole(r)
	case err != nil:
		return nil, err
	case r.Status >= 400:
		return nil, unexpectedJAS(r)
	}
	if r, err = l.x.Send(ctx, web.Request{URL: c.next}); err != nil {
		return nil, err
	}
	if err := web.StatusError(r); err != nil {
		return nil, err
	}
	reason := passwordRefused(r, l.p)
	if began(own(), before) { // it has let in, but not on
		l.p.Accepted()
		if reason = unexpectedJAS(r); r.Status == http.StatusOK && !formLogin(r) {
			reason = consentRequired(r, l.home)
		}
	}
	if r.Status == http.StatusForbidden {
		return nil, noRole(r)
	}
	return l.authorized(ctx, r, reason)
}

// formLoginPage is the end of the path of the authorization server's login page
// (Jazz Authorization Server, appConfig.xml, customLoginURL).
const formLoginPage = "/form/login"

// formLogin reports whether an answer is that page. It has no form in its text: a
// script makes it.
func formLogin(r *web.Response) bool {
	return strings.EqualFold(r.Header.Get("X-Com-Ibm-Team-Integration-Jazzop-Auth-Msg"), "form-login") || strings.HasSuffix(r.URL.Path, formLoginPage)
}

func unexpectedJAS(r *web.Response) error {
	return &api.Error{Code: api.UnexpectedStatus, Detail: fmt.Sprintf("%s answers %d, not as a Jazz Authorization Server does", r.Shown(), r.Status),
		Remedy: "log in at the site with a browser to see what it wants"}
}

// loginRequired reports whether an application says that the authorization server has
// no session.
func loginRequired(r *web.Response) bool {
	return strings.EqualFold(r.Header.Get("X-Jsa-Login-Required"), "true")
}

// silent asks the authorization server for what its session is good for, without a
// login (OpenID Connect Core, prompt=none).
func (l *jazzLogin) silent(ctx context.Context, c jazzChallenge) (*web.Response, error) {
	u := *c.next
	u.RawQuery += "&prompt=none" // as it came, and not encoded anew
	r, err := l.x.GetUntil(ctx, &u, l.isHome)
	switch {
	case err != nil:
		return nil, l.j.leftJAS(l.x, c, err)
	case loginRequired(r), r.Status == http.StatusUnauthorized, formLogin(r):
		return nil, expired(r, "says that the authorization server has no session")
	}
	if err := web.StatusError(r); err != nil {
		return nil, err
	}
	if r.Status >= 400 {
		return nil, unexpectedJAS(r)
	}
	return r, nil
}

// appPassword sends an application password to what takes it, which is at the
// application.
func (l *jazzLogin) appPassword(ctx context.Context, c jazzChallenge) (*web.Response, error) {
	if l.sent != nil && !l.again {
		return nil, loginAgain(c.page)
	}
	l.sent = c.app
	r, _, err := sendBasic(ctx, l.x, c.app, nil, l.p)
	switch {
	case err != nil:
		return nil, err
	case r.Status == http.StatusUnauthorized:
		e := api.AsError(passwordRefused(r, l.p))
		e.Remedy = "see at " + tokenManagement(c) + " whether the application password has expired, and is for this application"
		return nil, e
	case r.Status == http.StatusBadRequest && !l.again:
		// The state was used up before anybody has looked at the password. That is so
		// once at most.
		l.again = true
		l.p.GiveBack()
		return l.x.Get(ctx, l.home)
	case r.Status == http.StatusForbidden:
		return nil, noRole(r)
	case r.Status >= 400:
		return nil, unexpectedJazz(r)
	}
	if r, err = l.x.Get(ctx, l.home); err != nil {
		return nil, err
	}
	if !l.arrived(r) {
		if err := web.StatusError(r); err != nil {
			return nil, err
		}
		return nil, loginAgain(r)
	}
	l.p.Accepted()
	l.in = true
	return r, nil
}

// tokenManagement is where users make application passwords (IBM, "Application
// passwords").
func tokenManagement(c jazzChallenge) string {
	return strings.TrimSuffix(web.Shown(c.next), "/authorize") + "/personalTokenManagement"
}

// external returns an error if the authorization server leaves the login to another
// provider, by its cookies of OpenID Connect, or by a form of SAML (ELM-Python-Client).
func (j *jazz) external(x *web.Exchange, c jazzChallenge, r *web.Response) error {
	saml := bytes.Contains(r.Body, []byte(`name="SAMLRequest"`)) && r.Status == http.StatusOK
	if !saml && !leaves(x) {
		return nil
	}
	return j.wantsAppPassword(c, r.Shown()+" leaves the login to another provider")
}

// leaves reports whether the authorization server's cookies are of a login elsewhere.
func leaves(x *web.Exchange) bool {
	return x.Jar().Filter(func(c *web.Cookie) bool {
		return strings.HasPrefix(c.Name, "WASOidcState") || strings.HasPrefix(c.Name, "WASOidcNonce")
	}).Len() > 0
}

// leftJAS is a failure on the way to the authorization server and on from there: that
// leads to another host where persons log in.
func (j *jazz) leftJAS(x *web.Exchange, c jazzChallenge, err error) error {
	if api.CodeOf(err) != api.SSORedirect || c.by != byJAS || c.app == nil && !leaves(x) {
		return err
	}
	return j.wantsAppPassword(c, api.AsError(err).Detail)
}

func (j *jazz) wantsAppPassword(c jazzChallenge, detail string) error {
	return &api.Error{Code: api.AppPasswordRequired, Detail: detail,
		Remedy: "make an application password at " + tokenManagement(c) + ", set app_password = true for the site, and bring it"}
}
