package login

import (
	"bytes"
	"cmp"
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

var _ = register("jazz", func() Driver {
	return &jazz{SSOCookie: "LtpaToken2", LogoutURL: "service/com.ibm.team.repository.service.internal.ILogoutRestService"}
})

// jazz is one application of an IBM Engineering Lifecycle Management server, also
// known as Jazz: change management (/ccm), quality management (/qm), requirements
// management (/rm), global configurations (/gc), or the Jazz Team Server (/jts). The
// site's url is its context root.
//
// How it wants a login is what a stranger is told who asks for a protected page
// (Jazz.net Deployment wiki, "Native Client Authentication", as its readers quote it:
// IBM/ELM-Python-Client, httpops.py; jenkinsci/teamconcert-plugin, HttpUtils.java). A
// way may lead to another: Requirements Management sends to the Jazz Team Server,
// which then has its form.
type jazz struct {
	// ProbeURL is a protected page that names the user. Default: whoami; where the root
	// services say that another application has that, a page of this one, and whoami
	// there.
	ProbeURL string `toml:"probe_url"`
	// SSOCookie is the cookie of the application server's single sign-on (Open
	// Liberty, "ssoCookieName").
	SSOCookie string `toml:"sso_cookie"`
	// LogoutURL ends the application's session.
	LogoutURL string `toml:"logout_url"`
	// AppPassword says that the password is an application password, as users make
	// them at a Jazz Authorization Server that leaves passwords to another provider.
	AppPassword bool `toml:"app_password" for:"login"`
	// JASForm sends the password to the authorization server's form, not by Basic.
	JASForm bool `toml:"jas_form" for:"login"`

	found Findings
}

// Check implements Checker.
func (j *jazz) Check(o web.Options, identity string) error {
	switch {
	case identity == Unproven:
		return fmt.Errorf("identity = %q is not for Jazz, which names the user", Unproven)
	case !cookieText(j.SSOCookie) || strings.Contains(j.SSOCookie, "="):
		return errors.New("sso_cookie is not the name of a cookie")
	case j.AppPassword && j.JASForm:
		return errors.New("app_password and jas_form exclude each other: an application password goes to no form")
	}
	return errors.Join(permitted(o, "probe_url", j.ProbeURL), permitted(o, "logout_url", j.LogoutURL))
}

// Takes implements Driver.
func (*jazz) Takes() []Means { return []Means{Ticket, Secret} }

// As implements Detector.
func (j *jazz) As(f Findings) Driver {
	d := *j
	d.found = f
	return &d
}

// What a session lives on, as documented: the token of the single sign-on for two
// hours, whether it is used or not (Open Liberty, "ltpa", expiration), an HTTP session
// for half an hour of rest ("httpSession", invalidationTimeout), and a login that was
// delegated to the Jazz Team Server for six (IBM, "Jazz Authentication token
// expiration").
const (
	ltpaLife      = 2 * time.Hour
	httpIdle      = 30 * time.Minute
	delegatedIdle = 6 * time.Hour
)

// Life implements Lasting.
func (j *jazz) Life() Life {
	switch way := j.found.Login; {
	case strings.HasPrefix(way, byOAuth) && j.users() != "": // whose server has the other life
		return Life{Idle: delegatedIdle, Absolute: ltpaLife}
	case strings.HasPrefix(way, byOAuth):
		return Life{Idle: delegatedIdle}
	case strings.HasPrefix(way, byJAS):
		return Life{Idle: httpIdle}
	case way == byForm, j.found.Gate != "":
		return Life{Absolute: ltpaLife}
	}
	return Life{}
}

// csrfHeader goes with what changes something. Its value is that of the cookie
// sessionID (jazz.net forum, on X-Jazz-CSRF-Prevent).
const (
	csrfHeader = "X-Jazz-CSRF-Prevent"
	sessionID  = "JSESSIONID"
)

// Headers implements Companion.
func (*jazz) Headers(r Asked) []Header {
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions:
		return nil
	}
	for _, c := range r.Cookies { // the one of the longest path comes first
		if c.Name == sessionID {
			return []Header{{Name: csrfHeader, Value: c.Value.Reveal(), Secret: true}}
		}
	}
	return nil
}

// protected returns the page that a session is proven at.
func (j *jazz) protected() string {
	if j.users() != "" {
		return j.found.Probe
	}
	return cmp.Or(j.ProbeURL, "whoami")
}

// users returns the page that names the user, "" if the other one does. An application
// password is good for one application.
func (j *jazz) users() string {
	if j.ProbeURL != "" || j.AppPassword {
		return ""
	}
	return j.found.Users
}

// Probe implements Driver.
func (j *jazz) Probe(ctx context.Context, x *web.Exchange) (Identity, error) {
	defer j.settle(x)
	return j.prove(ctx, x)
}

// prove is Probe that keeps all cookies.
func (j *jazz) prove(ctx context.Context, x *web.Exchange) (Identity, error) {
	r, err := j.get(ctx, x, j.protected())
	if err != nil {
		return Identity{}, err
	}
	if j.users() == "" {
		return j.judge(x, r)
	}
	if err := j.refuses(x, r); err != nil {
		return Identity{}, err
	}
	if r, err = j.get(ctx, x, j.users()); err != nil {
		return Identity{}, err
	}
	return j.judge(x, r)
}

func (j *jazz) get(ctx context.Context, x *web.Exchange, ref string) (*web.Response, error) {
	u, err := x.URL(ref)
	if err != nil {
		return nil, err
	}
	return x.Send(ctx, web.Request{URL: u, Header: jazzHeader()})
}

// jazzHeader is what a native client asks for (ELM-Python-Client): an answer that
// programs can read.
func jazzHeader() http.Header { return http.Header{"Accept": {"text/json, text/plain, */*;q=0.8"}} }

// refuses judges an answer to a session: nil if it is let in. Any of the server's ways
// to ask for a login, whatever the status, says that the session is over.
func (j *jazz) refuses(x *web.Exchange, r *web.Response) error {
	if err := web.StatusError(r); err != nil {
		return err
	}
	to, _ := x.Follows(r) // wherever to
	switch {
	case authMessage(r) != "":
		return expired(r, "asks for a login")
	case r.Status == http.StatusUnauthorized && !x.Jar().Authorization().Empty() && web.FindChallenge(r.Challenges, "basic") != nil:
		return &api.Error{Code: api.BadCredentials, Detail: r.Shown() + " refuses the password"}
	case r.Status == http.StatusUnauthorized, to != nil:
		return expired(r, fmt.Sprintf("answers %d to the session", r.Status))
	case r.Status == http.StatusForbidden:
		return noRole(r)
	case r.Status != http.StatusOK:
		return unexpectedJazz(r)
	case asksForPassword(r):
		return expired(r, "answers 200 with a login page")
	case !readable(r):
		return unreadable(r)
	}
	return nil
}

func noRole(r *web.Response) error {
	return &api.Error{Code: api.Forbidden, Detail: r.Shown() + " answers 403",
		Remedy: "ask the server's administrator whether the user has a role such as JazzUsers, and a licence; check probe_url"}
}

// judge reads the answer of the page that names the user.
func (j *jazz) judge(x *web.Exchange, r *web.Response) (Identity, error) {
	if err := j.refuses(x, r); err != nil {
		return Identity{}, err
	}
	name, err := jazzUser(r.Body)
	switch {
	case errors.Is(err, errTwice):
		return Identity{}, contradiction(r)
	case err != nil:
		return Identity{}, &api.Error{Code: api.UnexpectedStatus, Detail: r.Shown() + " answers 200, but not with a user of Jazz", Remedy: checkContext}
	case name == "":
		return Identity{}, expired(r, "answers 200 without naming a user")
	}
	return Identity{Name: name}, nil
}

// jazzUser returns whom an answer names: of whoami, the URI of a user's page, such as
// https://elm.example/jts/users/build (ELM-Python-Client, _app.py, user_uritoname_resolver);
// of authenticated/identity, {"userId":"build",…}. "" is nobody.
func jazzUser(body []byte) (string, error) {
	if body = bytes.TrimSpace(body); len(body) == 0 {
		return "", nil
	}
	if body[0] == '{' {
		return jsonPath(json.RawMessage(body), "userId")
	}
	u, err := url.Parse(string(body))
	if err != nil || !u.IsAbs() || u.Host == "" {
		return "", errors.New("not a user")
	}
	page, name, _ := cutLast(u.EscapedPath(), "/")
	if !strings.HasSuffix(page, "/users") {
		return "", errors.New("not a user")
	}
	return url.PathUnescape(name)
}

// cutLast cuts a text at the last of its separators.
func cutLast(s, separator string) (before, after string, found bool) {
	i := strings.LastIndex(s, separator)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(separator):], true
}

// What the server says in the field that authMessage reads.
const (
	authRequired = "authrequired"
	authFailed   = "authfailed"
)

// authMessage returns what the server says of a login by form, whatever its status is:
// that it wants one, or refuses the one that it got.
func authMessage(r *web.Response) string {
	if m := strings.ToLower(strings.TrimSpace(r.Header.Get("X-Com-Ibm-Team-Repository-Web-Auth-Msg"))); m != "" {
		return m
	}
	// Where proxies take such fields away, the page's name says it.
	for _, m := range []string{authRequired, authFailed} {
		if strings.HasSuffix(r.URL.Path, "/auth/"+m) {
			return m
		}
	}
	return ""
}

// Logout implements Logouter. The application's own session ends. That the token of
// the single sign-on ends with it, only some servers care for (Open Liberty,
// "trackLoggedOutSSOCookies"), so that it is tried once more.
func (j *jazz) Logout(ctx context.Context, x *web.Exchange) error {
	before := x.Jar().Clone()
	if !before.Authorization().Empty() {
		return &api.Error{Code: api.UnexpectedStatus, Detail: "the session is the password itself, which is good until it is changed", Remedy: "change the password at the server, if somebody else may have it"}
	}
	if err := j.logout(ctx, x); err != nil {
		return err
	}
	*x.Jar() = *before
	if err := over(j.prove(ctx, x)); err != nil || j.users() == "" {
		return err
	}
	r, err := j.get(ctx, x, j.users()) // at another application, which takes the same token
	if err != nil {
		return err
	}
	return over(j.judge(x, r))
}

// logout asks the application to end its session.
func (j *jazz) logout(ctx context.Context, x *web.Exchange) error {
	u, err := x.URL(j.LogoutURL)
	if err != nil {
		return err
	}
	r, err := x.Send(ctx, web.Request{Method: http.MethodPost, URL: u, Header: jazzHeader(), Body: []byte{}})
	if err != nil {
		return err
	}
	return web.StatusError(r)
}

// over judges a proof after a logout.
func over(_ Identity, err error) error {
	switch {
	case api.CodeOf(err) == api.Expired:
		return nil
	case err != nil:
		return err
	}
	return &api.Error{Code: api.UnexpectedStatus, Detail: "the server has ended its session, but its single sign-on goes on until it expires",
		Remedy: "ask its administrator for trackLoggedOutSSOCookies, if a logout has to end that, too; check logout_url"}
}

// settle drops what a session has no use for after a login: what was for the login
// alone, and what is the authorization server's, which no tool is to have.
func (j *jazz) settle(x *web.Exchange) {
	if !x.Jar().Authorization().Empty() {
		return
	}
	home := base(x)
	roots := []string{home.Path}
	if users, err := x.URL(j.users()); err == nil && j.users() != "" {
		roots = append(roots, users.Path)
	}
	*x.Jar() = *x.Jar().Filter(func(c *web.Cookie) bool {
		switch {
		case transient(c.Name), ofJAS(c.Name):
			return false
		case c.Name == j.SSOCookie:
			return true
		}
		return c.Origin() == web.OriginOf(home) && slices.ContainsFunc(roots, func(root string) bool { return within(root, c.Path) || within(c.Path, root) })
	})
}

// within reports whether a path is another one, or below it.
func within(path, root string) bool {
	root = strings.TrimRight(root, "/")
	return path == root || strings.HasPrefix(path, root+"/")
}

// transient reports whether a cookie of that name is of a login under way (Open
// Liberty's sources; ELM-Python-Client's recorded trace). A stale WASReqURL of another
// host makes the server fail.
func transient(name string) bool {
	switch name {
	case "WASReqURL", "WASReLoginURL", "WASPostParam", "net-jazz-ajax-cookie-rememberUserId":
		return true
	}
	return slices.ContainsFunc([]string{"jfs-request-token-", "X-com-ibm-team-foundation-auth-", "WASOidcState", "WASOidcNonce", "WASOidcCode"},
		func(prefix string) bool { return strings.HasPrefix(name, prefix) })
}

// ofJAS reports whether a cookie of that name is the authorization server's session
// (IBM, "ELM and OAuth 2.0").
func ofJAS(name string) bool {
	return strings.HasPrefix(name, "jazzop_sso_cookie") || name == "oidc_bsc"
}

const checkContext = "check the context root in the site's url, such as /ccm or /jts, and probe_url"

// unexpectedJazz is for a status that no rule names.
func unexpectedJazz(r *web.Response) error {
	return &api.Error{Code: api.UnexpectedStatus, Detail: fmt.Sprintf("%s answers %d", r.Shown(), r.Status), Remedy: checkContext}
}

// Provider implements Provider.
func (j *jazz) Provider() Driver { return &jazzSSO{*j} }

// jazzSSO is the single sign-on of a server as an identity provider's session: the
// token that all of its applications take, and the cookies of its authorization
// server. It is proven by walking in with them at one application, whose own session
// is dropped.
type jazzSSO struct{ jazz }

// Check implements Checker.
func (s *jazzSSO) Check(o web.Options, identity string) error {
	if s.AppPassword {
		return errors.New("app_password is not for an idp, as such a password is good for one application: give each site a credential of its own, in the place of the idp")
	}
	return s.jazz.Check(o, identity)
}

// As implements Detector.
func (s *jazzSSO) As(f Findings) Driver {
	d := *s
	d.found = f
	return &d
}

// Life implements Lasting.
func (s *jazzSSO) Life() Life { return Life{Absolute: ltpaLife} }

// Login implements Driver.
func (s *jazzSSO) Login(ctx context.Context, x *web.Exchange, p Password) error {
	if err := s.login(ctx, x, p); err != nil {
		return err
	}
	*x.Jar() = *s.own(x.Jar())
	if x.Jar().Len() == 0 {
		return &api.Error{Code: api.NoSessionCookie, Detail: "the login at " + web.Shown(base(x)) + " sets no cookie that other applications take, such as " + s.SSOCookie,
			Remedy: "ask how the cookie of the server's single sign-on is called: that is the sso_cookie option; without one, give each site the credential, in the place of the idp"}
	}
	return nil
}

// Probe implements Driver.
func (s *jazzSSO) Probe(ctx context.Context, x *web.Exchange) (id Identity, err error) {
	defer func() { *x.Jar() = *s.own(x.Jar()) }()
	if err := s.walkIn(ctx, x); err != nil {
		return Identity{}, err
	}
	return s.prove(ctx, x)
}

// own returns the cookies of the single sign-on.
func (s *jazzSSO) own(jar *web.Jar) *web.Jar {
	return jar.Filter(func(c *web.Cookie) bool { return c.Name == s.SSOCookie || ofJAS(c.Name) })
}

// Logout implements Logouter.
func (s *jazzSSO) Logout(ctx context.Context, x *web.Exchange) error {
	before := x.Jar().Clone()
	switch err := s.walkIn(ctx, x); {
	case api.CodeOf(err) == api.Expired:
		return nil
	case err != nil:
		return err
	}
	if err := s.logout(ctx, x); err != nil {
		return err
	}
	*x.Jar() = *before
	return over(s.Probe(ctx, x))
}

// Shared implements Sharer. The authorization server's cookies are for walking in alone.
func (s *jazzSSO) Shared(jar *web.Jar) *web.Jar { return jar.Named(s.SSOCookie) }

// Adopt implements Sharer.
func (s *jazzSSO) Adopt(jar *web.Jar, base *url.URL, now time.Time) *web.Jar {
	values := jar.Named(s.SSOCookie).Values() // of whatever path: nobody knows where it was copied
	if len(values) == 0 || !cookieText(values[0]) {
		return nil
	}
	line := s.SSOCookie + "=" + values[0] + "; Path=/; HttpOnly"
	if base.Scheme == "https" {
		line += "; Secure"
	}
	adopted := new(web.Jar)
	adopted.Set(base, []string{line}, now)
	return adopted
}

// Refused implements Sharer.
func (s *jazzSSO) Refused() string {
	return "see that the site is an application of the same Jazz Team Server or authorization server, whose origin is in the idp's login_hosts, and that all of them share the keys of " + s.SSOCookie
}
