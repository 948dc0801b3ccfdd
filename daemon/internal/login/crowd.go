package login

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/web"
)

var _ = register("crowd", func() Driver { return &crowd{Token: "crowd.token_key"} })

// crowd is the single sign-on of Atlassian Crowd. Its session is the SSO token
// alone: the cookie from which all applications of an SSO domain learn who comes
// (Crowd documentation, "Overview of SSO"). Whatever else a login or a proof sets
// belongs to one application, and is dropped.
//
// Crowd itself has nothing that says to a visitor whose token it is, so the proof is
// that of an application.
type crowd struct {
	// Via says who logs in: "", the form of Crowd's console; one of ssoApplications,
	// which the site's url is then of; "rest", the credential being an application's
	// name and password at Crowd (Crowd REST API, "usermanagement/1/session").
	Via string `toml:"via"`
	// Token is the cookie's name.
	Token string `toml:"token"`
	// Domain is the SSO domain, for a token that did not come as a cookie. Default:
	// what Crowd says, else the parent domain of the site's host.
	Domain string `toml:"domain" for:"login"`
	// User is whose token it is to be, via rest.
	User string `toml:"user" for:"login"`
	// RemoteAddress is the address of the agent as the applications see it, via rest:
	// the validation factor that Crowd compares. Default: none.
	RemoteAddress string `toml:"remote_address" for:"login"`
	// LogoutURL ends the token, if no application does.
	LogoutURL string `toml:"logout_url"`
	proof

	found Findings
}

// viaREST is the via of a login that no user makes.
const viaREST = "rest"

// ssoApplications are the kinds that can have Crowd's single sign-on.
var ssoApplications = []string{"jira", "confluence", "bitbucket", "bamboo", "crucible"}

// by returns the driver that logs in and proves, nil if there is none of that name.
func (c *crowd) by() Driver {
	switch {
	case c.Via == "":
		f := &form{proof: c.proof}
		// As versions 2 and 3 have it; of later ones the form is not known.
		f.LoginURL = cmp.Or(c.LoginURL, "console/login.action")
		return f
	case c.Via == viaREST:
		return &crowdREST{c.proof, c}
	case !slices.Contains(ssoApplications, c.Via):
		return nil
	}
	switch d := New(c.Via).(type) {
	case *jira:
		d.LoginURL = cmp.Or(c.LoginURL, d.LoginURL)
		return d.As(c.found)
	case *crucible:
		d.LoginURL = cmp.Or(c.LoginURL, d.LoginURL)
		d.ProbeURL, d.IdentityJSON, d.IdentityHeader, d.IdentityRegexp = c.ProbeURL, c.IdentityJSON, c.IdentityHeader, c.IdentityRegexp
		return d.As(c.found)
	case *application:
		d.LoginURL, d.ProbeURL = cmp.Or(c.LoginURL, d.LoginURL), cmp.Or(c.ProbeURL, d.ProbeURL)
		return d.As(c.found)
	default:
		panic("login: via " + c.Via + " is no application")
	}
}

// Check implements Checker.
func (c *crowd) Check(o web.Options, identity string) error {
	d := c.by()
	if d == nil {
		return fmt.Errorf("via = %q is neither %q nor an application: %s; without it the login is that of Crowd's console", c.Via, viaREST, strings.Join(ssoApplications, ", "))
	}
	application := slices.Contains(ssoApplications, c.Via)
	switch {
	case c.Token == "" || !cookieText(c.Token) || strings.Contains(c.Token, "="):
		return errors.New("token is not the name of a cookie")
	case c.Via == viaREST && c.User == "":
		return fmt.Errorf("user is missing: via = %q the application says whose token it wants", viaREST)
	case c.Via != viaREST && (c.User != "" || c.RemoteAddress != ""):
		return fmt.Errorf("user and remote_address are for via = %q; else the credential says who logs in", viaREST)
	case c.Via == viaREST && c.LoginURL != "":
		return fmt.Errorf("login_url is not for via = %q, which needs no page", viaREST)
	case c.Via == "jira" && c.ProbeURL != "":
		return errors.New("probe_url is not for via = \"jira\", whose session resource names the user")
	case application && c.Via != "crucible" && c.namesUser():
		return fmt.Errorf("identity_… is not for via = %q, which knows how it names the user", c.Via)
	case application && c.LogoutURL != "":
		return fmt.Errorf("logout_url is not for via = %q: the application's own logout ends the token", c.Via)
	case !application && c.ProbeURL == "":
		return errors.New("probe_url is missing: Crowd itself does not say whose token it is; name a page of an application with Crowd's single sign-on that does, such as Jira's /rest/auth/1/session with identity_json = \"name\", and its host in login_hosts")
	}
	if _, err := netip.ParseAddr(c.RemoteAddress); err != nil && c.RemoteAddress != "" {
		return errors.New("remote_address is not an IP address")
	}
	if err := errors.Join(permitted(o, "probe_url", c.ProbeURL), permitted(o, "logout_url", c.LogoutURL)); err != nil {
		return err
	}
	if home, err := c.home(o.Base); err == nil && c.Domain != "" && c.cookie(home, "x", c.Domain, time.Now()) == nil {
		return errors.New("domain is not one that the single sign-on can have: " + web.OriginOf(home).Host + " is not in it, or it is a public suffix")
	}
	return d.(Checker).Check(o, identity)
}

// namesUser reports whether an option says how the site names the user.
func (p *proof) namesUser() bool {
	return p.IdentityJSON != "" || p.IdentityHeader != "" || p.IdentityRegexp != ""
}

// Takes implements Driver.
func (c *crowd) Takes() []Means {
	if d := c.by(); d != nil {
		return d.Takes()
	}
	return []Means{Ticket, Secret} // Check says what is wrong
}

// LoginPage implements Paged.
func (c *crowd) LoginPage() string {
	if p, ok := c.by().(Paged); ok {
		return p.LoginPage()
	}
	return ""
}

// Detect implements Detector: it finds out what the application is like.
func (c *crowd) Detect(ctx context.Context, x *web.Exchange) (Findings, error) {
	d, ok := c.by().(Detector)
	if !ok {
		return Findings{}, nil
	}
	f, err := d.Detect(ctx, x)
	return f, wrongOption(err, "via")
}

// As implements Detector.
func (c *crowd) As(f Findings) Driver {
	d := *c
	d.found = f
	return &d
}

// Impersonates implements Impersonator.
func (c *crowd) Impersonates() string { return c.User }

// Login implements Driver.
func (c *crowd) Login(ctx context.Context, x *web.Exchange, p Password) error {
	if err := c.by().Login(ctx, x, p); err != nil {
		if e := *api.AsError(err); c.Via == "" && e.Code == api.UnexpectedStatus {
			e.Remedy += `; or log in via an application, as in: via = "jira"`
			return &e
		}
		return err
	}
	if c.keep(x); c.token(x.Jar()) == "" {
		return &api.Error{Code: api.NoSessionCookie, Detail: "the login at " + web.Shown(base(x)) + " sets no cookie " + c.Token,
			Remedy: "ask whether Crowd's single sign-on is switched on there, and under which name its cookie goes: that is the token option"}
	}
	return nil
}

// keep drops all cookies but the token.
func (c *crowd) keep(x *web.Exchange) { *x.Jar() = *x.Jar().Named(c.Token) }

// token returns the token in a jar, "" if there is none.
func (c *crowd) token(j *web.Jar) string {
	for _, l := range j.Named(c.Token).Lines() {
		if u, err := url.Parse(l.URL); err == nil {
			if k := web.ParseCookie(string(l.Line), u, l.Time); k != nil && strings.Trim(k.Value.Reveal(), `"`) != "" {
				return k.Value.Reveal()
			}
		}
	}
	return ""
}

// base returns the site's own URL.
func base(x *web.Exchange) *url.URL {
	u, err := x.URL("")
	if err != nil {
		panic(err) // "" is a reference
	}
	return u
}

// Probe implements Driver.
func (c *crowd) Probe(ctx context.Context, x *web.Exchange) (Identity, error) {
	id, err := c.by().Probe(ctx, x)
	c.keep(x)
	return id, err
}

// Logout implements Logouter. It ends the token, and with it the user's sessions at
// all applications.
func (c *crowd) Logout(ctx context.Context, x *web.Exchange) error {
	d, token := c.by(), x.Jar().Named(c.Token)
	// An application may want a session of its own, and what came with it, in a logout.
	switch _, err := d.Probe(ctx, x); {
	case api.CodeOf(err) == api.Expired:
		return nil
	case err != nil:
		return err
	}
	if err := c.logout(ctx, x, d); err != nil {
		return err
	}
	// The cookie is gone from the jar. That says nothing of the token.
	*x.Jar() = *token
	switch _, err := d.Probe(ctx, x); {
	case api.CodeOf(err) == api.Expired:
		return nil
	case err != nil:
		return err
	}
	return &api.Error{Code: api.UnexpectedStatus, Detail: "the logout at " + web.Shown(base(x)) + " has not ended the token",
		Remedy: "log out there with a browser to see what it wants; check logout_url"}
}

func (c *crowd) logout(ctx context.Context, x *web.Exchange, d Driver) error {
	page := c.LogoutURL
	switch l, ok := d.(Logouter); {
	case ok:
		return l.Logout(ctx, x)
	case page == "" && c.Via == viaREST:
		return &api.Error{Code: api.ConfigInvalid, Detail: "Crowd ends a token only for an application's password, which a logout does not get",
			Remedy: "set logout_url to an application's logout, such as Confluence's /logout.action"}
	case page == "":
		page = "console/logoff.action" // which is not documented
	}
	u, err := x.URL(page)
	if err != nil {
		return err
	}
	r, err := x.Send(ctx, web.Request{URL: u})
	if err != nil {
		return err
	}
	return web.StatusError(r)
}

// Shared implements Sharer.
func (c *crowd) Shared(j *web.Jar) *web.Jar { return j.Named(c.Token) }

// Adopt implements Sharer.
func (c *crowd) Adopt(j *web.Jar, base *url.URL, now time.Time) *web.Jar {
	home, err := c.home(base)
	value := c.token(j)
	if err != nil || value == "" {
		return nil
	}
	return c.cookie(home, value, c.Domain, now)
}

// Refused implements Sharer.
func (c *crowd) Refused() string {
	look := `see that the site has Crowd's single sign-on, that its host is in Crowd's "SSO domain", and that "Secure SSO cookie" is off if the site is http; ` +
		`with "Require consistent client IP address" a token is good for one address: set forwarded_for at the sites that see another one, with the address that they see among Crowd's "Trusted proxy servers", or switch that off`
	if c.Via == viaREST {
		look += "; remote_address has to be the one that the sites see"
	}
	return look
}

// home returns the URL from which the token is set where no server sets it: of what
// proves it, which is an application of the single sign-on.
func (c *crowd) home(base *url.URL) (*url.URL, error) {
	if slices.Contains(ssoApplications, c.Via) {
		return base, nil
	}
	return web.Resolve(base, c.ProbeURL)
}

// cookie returns a jar with the token as applications set it (Atlassian, Crowd's
// client: Path=/, HttpOnly, no age). It is nil if u's host cannot set it for that
// domain. Without a domain it is for the parent domain of u's host, or for that host
// alone if others share the parent.
func (c *crowd) cookie(u *url.URL, value, domain string, now time.Time) *web.Jar {
	line := c.Token + "=" + value + "; Path=/; HttpOnly"
	if u.Scheme == "https" {
		line += "; Secure"
	}
	lines := []string{line + "; Domain=" + domain}
	if domain == "" {
		_, parent, _ := strings.Cut(u.Hostname(), ".")
		lines = []string{line + "; Domain=" + parent, line}
	}
	for _, l := range lines {
		j := new(web.Jar)
		if j.Set(u, []string{l}, now); j.Len() > 0 && !strings.Contains(domain, ";") {
			return j
		}
	}
	return nil
}

// cookieText reports whether all of a text can stand in a cookie (RFC 6265, section
// 4.1.1, cookie-octet).
func cookieText(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune(`",;\`, r) })
}

// crowdREST logs in as an application does that knows its users by other means: with
// its own name and password it has Crowd make a token for one of them. Such a password
// is worth those of all its users.
type crowdREST struct {
	proof
	c *crowd
}

// Takes implements Driver.
func (*crowdREST) Takes() []Means { return []Means{Secret} }

// Login implements Driver.
func (r *crowdREST) Login(ctx context.Context, x *web.Exchange, p Password) error {
	if strings.Contains(p.User(), ":") { // RFC 7617, section 2
		return &api.Error{Code: api.ConfigInvalid, Detail: "Basic has no way to say the application's name " + strconv.Quote(p.User()), Remedy: "use an application of another name"}
	}
	home, err := r.c.home(base(x))
	if err != nil {
		return err
	}
	// Crowd lets nobody in without a name and a password, and says so. Then it looks at
	// the address, and at the password last.
	answer, err := r.ask(ctx, x, http.MethodGet, "config/cookie", nil, "")
	switch {
	case err != nil:
		return err
	case answer.Status != http.StatusUnauthorized || web.FindChallenge(answer.Challenges, "basic") == nil:
		return notREST(answer)
	}
	password, err := p.Take(ctx)
	if err != nil {
		return err
	}
	authorization := "Basic " + base64.StdEncoding.EncodeToString([]byte(p.User()+":"+password.Reveal()))
	answer, err = r.ask(ctx, x, http.MethodGet, "config/cookie", nil, authorization)
	if err != nil {
		if answer != nil && (answer.Status == http.StatusTooManyRequests || answer.Status == http.StatusServiceUnavailable) {
			p.GiveBack()
		}
		return err
	}
	switch answer.Status {
	case http.StatusOK:
	case http.StatusUnauthorized:
		return &api.Error{Code: api.BadCredentials, Detail: answer.Shown() + " refuses the password of the application " + p.User()}
	case http.StatusForbidden:
		p.GiveBack()
		return &api.Error{Code: api.Forbidden, Detail: answer.Shown() + " does not let the application " + p.User() + " come from this machine",
			Remedy: "ask Crowd's administrator to add the agent's address to the application's remote addresses"}
	default:
		return notREST(answer)
	}
	config, err := parseCookieConfig(answer.Body)
	if err != nil {
		return notREST(answer)
	}
	p.Accepted()
	switch {
	case config.Name != r.c.Token:
		// Who has seen the password may answer with it, so that nothing of this is shown.
		return &api.Error{Code: api.ConfigInvalid, Detail: answer.Shown() + " has another name for the cookie than " + r.c.Token,
			Remedy: `ask Crowd's administrator for the name of the SSO cookie, and set token to it`}
	case config.Secure && home.Scheme != "https":
		return &api.Error{Code: api.ConfigInvalid, Detail: `Crowd's "Secure SSO cookie" is on, and probe_url is http`, Remedy: "point probe_url at an application with https, or ask Crowd's administrator to switch that off"}
	}
	body, err := xml.Marshal(newAuthenticationContext(r.c.User, r.c.RemoteAddress))
	if err != nil {
		panic(err) // strings can be encoded
	}
	answer, err = r.ask(ctx, x, http.MethodPost, "session?validate-password=false", body, authorization)
	if err != nil {
		return err
	}
	switch answer.Status {
	case http.StatusCreated:
	case http.StatusBadRequest, http.StatusForbidden:
		return &api.Error{Code: api.Forbidden, Detail: answer.Shown() + " gives the application " + p.User() + " no token for " + strconv.Quote(r.c.User) + crowdReason(answer.Body),
			Remedy: "check user, and ask Crowd's administrator whether that user may use this application"}
	default:
		return notREST(answer)
	}
	token, err := parseSession(answer.Body)
	if err != nil {
		return notREST(answer)
	}
	domain := cmp.Or(r.c.Domain, config.Domain)
	jar := r.c.cookie(home, token, domain, x.Now())
	if jar == nil {
		return &api.Error{Code: api.ConfigInvalid, Detail: "Crowd's SSO domain is none that " + web.OriginOf(home).Host + " is in", Remedy: "point probe_url at an application in Crowd's SSO domain; check domain"}
	}
	*x.Jar() = *jar
	return nil
}

// ask requests a resource of the REST API. With an error for its status the answer
// comes, too.
func (*crowdREST) ask(ctx context.Context, x *web.Exchange, method, resource string, body []byte, authorization string) (*web.Response, error) {
	u, err := x.URL("rest/usermanagement/1/" + resource)
	if err != nil {
		return nil, err
	}
	h := http.Header{"Accept": {"application/json"}}
	if method != http.MethodGet {
		// The JSON of this API differs between versions.
		h = http.Header{"Accept": {"application/xml"}, "Content-Type": {"application/xml"}, "X-Atlassian-Token": {"no-check"}}
	}
	if authorization != "" {
		h.Set("Authorization", authorization)
	}
	r, err := x.Send(ctx, web.Request{Method: method, URL: u, Header: h, Body: body})
	if err != nil {
		return nil, err
	}
	if err := web.StatusError(r); err != nil {
		return r, err
	}
	_, err = x.Follows(r)
	return r, err
}

// notREST is for an answer that Crowd's REST API does not give.
func notREST(r *web.Response) error {
	return &api.Error{Code: api.UnexpectedStatus, Detail: fmt.Sprintf("%s answers %d, not as Crowd's REST API does", r.Shown(), r.Status),
		Remedy: "check the site's url, and the context path in it (/crowd)"}
}

// authenticationContext is who a token is for (Crowd REST API, XML).
type authenticationContext struct {
	XMLName  xml.Name           `xml:"authentication-context"`
	Username string             `xml:"username"`
	Password string             `xml:"password"` // none: it is not validated
	Factors  []validationFactor `xml:"validation-factors>validation-factor"`
}

type validationFactor struct {
	Name  string `xml:"name"`
	Value string `xml:"value"`
}

func newAuthenticationContext(user, address string) authenticationContext {
	a := authenticationContext{Username: user}
	if address != "" {
		a.Factors = []validationFactor{{"remote_address", address}}
	}
	return a
}

// cookieConfig is how applications set the cookie (Crowd REST API, "config/cookie").
type cookieConfig struct {
	Domain string `json:"domain"` // "" for each host alone
	Secure bool   `json:"secure"`
	Name   string `json:"name"`
}

// parseCookieConfig reads an answer in JSON.
func parseCookieConfig(body []byte) (c cookieConfig, err error) {
	if err := json.Unmarshal(body, &c); err != nil {
		return cookieConfig{}, err
	}
	if c.Name == "" || !cookieText(c.Name) || !cookieText(c.Domain) {
		return cookieConfig{}, errors.New("no settings of a cookie")
	}
	return c, nil
}

// parseSession returns the token in an answer in XML.
func parseSession(body []byte) (token string, err error) {
	var s struct {
		XMLName xml.Name `xml:"session"`
		Token   string   `xml:"token"`
	}
	if err := xml.Unmarshal(body, &s); err != nil {
		return "", err
	}
	if s.Token == "" || !cookieText(s.Token) {
		return "", errors.New("no token")
	}
	return s.Token, nil
}

// crowdReasons are words in which Crowd says why a user gets no token, as its clients
// know them.
var crowdReasons = []string{
	"APPLICATION_ACCESS_DENIED", "EXPIRED_CREDENTIAL", "INACTIVE_ACCOUNT", "INVALID_USER", "INVALID_USER_AUTHENTICATION", "PERMISSION_DENIED", "USER_NOT_FOUND",
}

// crowdReason returns why Crowd refuses, as the end of a sentence; "" if an answer
// does not say it in one of these words: others may be the password.
func crowdReason(body []byte) string {
	var e struct {
		XMLName xml.Name `xml:"error"`
		Reason  string   `xml:"reason"`
	}
	if xml.Unmarshal(body, &e) != nil || !slices.Contains(crowdReasons, e.Reason) {
		return ""
	}
	return ": " + e.Reason
}
