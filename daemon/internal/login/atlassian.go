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
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/web"
)

// atlassian is what the kinds of Atlassian's Data Center products have in common.
// With a ticket they log in where a gate such as IWAAC asks for Negotiate, with a
// password in one of the ways that there were over the years. Which of them, and
// where the product is, is found out by asking it.
type atlassian struct {
	// LoginURL is the login page: it asks for Negotiate, or shows a form. Absolute,
	// or relative to the site's url, as all of these.
	LoginURL string `toml:"login_url" for:"login"`
	// Generation is how passwords are taken: "rest", "tsv" or "form". Default: as
	// found.
	Generation string `toml:"login" for:"login"`
	// StatusURL says whether the product is running ("Jira status endpoint"). Empty:
	// there is none.
	StatusURL string `toml:"status_url"`

	product *product
	found   Findings
}

// product is what makes a product of the family differ from the others.
type product struct {
	kind, name string
	// legacy is how it took passwords before the two-step login, and marker a text of
	// a login page that still does (atlassian/dc-app-performance-toolkit).
	legacy, marker     string        // marker is "", as every page has it, where there is no two-step login
	username, password string        // the login form's fields
	action             string        // where that leads
	idle               time.Duration // how long a session lives unused, as documented; 0: it is not
	// whoami reads the answer that names the user: "" for nobody, an error for
	// another text.
	whoami func(body []byte) (string, error)
	// beside are members of that answer of which one stands beside the name. Empty:
	// the answer is the name alone.
	beside []string
}

// How passwords are taken.
const (
	byREST = "rest" // by JSON to Jira's session resource
	byTSV  = "tsv"  // by JSON to the two-step login, which all products have by now
	byForm = "form" // by the form of the login page
)

// Whom a gate asks for Negotiate.
const (
	gateForAll     = "Negotiate"
	gateForWindows = "Negotiate for " + windows
	// windows is the word that IWAAC looks for in a User-Agent, as shipped. It names
	// no browser, of which the products would want an Origin.
	windows = "Windows NT"
)

// application is a product that names its user at a resource, and ends a session
// where a person does: Confluence, Bitbucket, Bamboo.
type application struct {
	atlassian
	// TSVURL takes passwords in the two-step login.
	TSVURL string `toml:"tsv_url" for:"login"`
	// ProbeURL names the user.
	ProbeURL string `toml:"probe_url"`
	// LogoutURL ends the session that asks for it.
	LogoutURL string `toml:"logout_url"`
}

// tsv is where all products have the two-step login.
const tsv = "rest/tsv/1.0/authenticate"

// Check implements Checker.
func (a *application) Check(o web.Options, identity string) error {
	return errors.Join(a.names(identity), a.check(o, byTSV, byForm),
		permitted(o, "tsv_url", a.TSVURL), permitted(o, "probe_url", a.ProbeURL), permitted(o, "logout_url", a.LogoutURL))
}

// As implements Detector.
func (a *application) As(f Findings) Driver {
	d := *a
	d.found = f
	return &d
}

// Login implements Driver.
func (a *application) Login(ctx context.Context, x *web.Exchange, p Password) error {
	switch {
	case p == nil:
		return a.ticket(ctx, x)
	case a.generation() == byTSV:
		return a.twoStep(ctx, x, p, a.TSVURL, a.ProbeURL)
	}
	return a.form(ctx, x, p, a.Probe)
}

// Probe implements Driver.
func (a *application) Probe(ctx context.Context, x *web.Exchange) (Identity, error) {
	return a.whoami(ctx, x, a.ProbeURL)
}

// Logout implements Logouter.
func (a *application) Logout(ctx context.Context, x *web.Exchange) error {
	return a.logout(ctx, x, a.LogoutURL, a.Probe)
}

// names refuses an identity setting that says that nobody is named.
func (a *atlassian) names(identity string) error {
	if identity == Unproven {
		return fmt.Errorf("identity = %q is not for %s, which always names the user", Unproven, a.product.name)
	}
	return nil
}

// check returns what is wrong with the options that all have.
func (a *atlassian) check(o web.Options, generations ...string) error {
	var err error
	if a.Generation != "" && !slices.Contains(generations, a.Generation) {
		err = fmt.Errorf("login = %q is no way to log in at %s: leave it out, or write one of %q", a.Generation, a.product.name, generations)
	}
	return errors.Join(err, permitted(o, "login_url", a.LoginURL), permitted(o, "status_url", a.StatusURL))
}

// Takes implements Driver.
func (*atlassian) Takes() []Means { return []Means{Ticket, Secret} }

// Life implements Lasting.
func (a *atlassian) Life() Life { return Life{Idle: a.product.idle} }

// LoginPage implements Paged.
func (a *atlassian) LoginPage() string { return a.LoginURL }

// browser finds the agents that the products take for a browser's pages (Atlassian
// knowledge base, "REST API calls with a browser User-Agent header may fail CSRF
// checks").
var browser = regexp.MustCompile(`^Mozilla/.*\b(Firefox|Chrome|Safari|Edg|OPR)/`)

// Headers implements Companion: forms without the token are refused, whoever sends
// them (Atlassian, "Form token handling"), and so is what a browser seems to send
// from a page that it does not name.
func (*atlassian) Headers(r Asked) []Header {
	var fields []Header
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions:
		return nil
	case http.MethodPost, "":
		if r.URL != nil && browser.MatchString(r.UserAgent) {
			fields = []Header{{Name: "Origin", Value: web.OriginOf(r.URL).String()}}
		}
	}
	return append(fields, Header{Name: "X-Atlassian-Token", Value: "no-check"})
}

// generation is how the site takes passwords.
func (a *atlassian) generation() string {
	return cmp.Or(a.Generation, a.found.Login, a.product.legacy)
}

// ticket logs in by Negotiate.
func (a *atlassian) ticket(ctx context.Context, x *web.Exchange) error {
	u, err := x.URL(a.LoginURL)
	if err != nil {
		return err
	}
	if a.found.Gate != gateForAll {
		x.Present(windows)
	}
	r, err := x.Get(ctx, u)
	if err != nil {
		return err
	}
	switch h := hear(r); {
	case h.captcha():
		return a.captcha(x, r)
	case r.Negotiated && (h.says(authenticatedFailed) || h.says(authorisationFailed)):
		return &api.Error{Code: api.Forbidden, Detail: fmt.Sprintf("%s accepts the ticket, but %s does not let its user in", r.Shown(), a.product.name),
			Remedy: "see that " + a.product.name + " has a user of the principal's name, with the right to use it"}
	case r.Negotiated && x.Jar().Len() > 0:
		return nil // whatever the page is that a user lands on
	}
	if err := web.StatusError(r); err != nil {
		return err
	}
	if err := a.announced(r); err != nil {
		return err
	}
	if r.Negotiated {
		return &api.Error{Code: api.NoSessionCookie, Detail: r.Shown() + " accepts the ticket but sets no cookie", Remedy: noCookie}
	}
	if err := a.asleep(ctx, x, r); err != nil {
		return err
	}
	return negotiated(x, r)
}

// asleep is for a login page that is none: the product may say that it is not running
// yet, or no longer; and where there is none, the context path may be wrong.
func (a *atlassian) asleep(ctx context.Context, x *web.Exchange, page *web.Response) error {
	switch {
	case page.Status == http.StatusNotFound:
		return a.unexpected(page)
	case page.Status != http.StatusOK:
		return nil
	}
	r, state, err := a.status(ctx, x)
	switch {
	case err != nil:
		return err
	case state != "" && state != running:
		return a.notRunning(r)
	}
	return nil
}

const noCookie = "see that no proxy on the way takes cookies away"

// twoStep logs in by JSON as the login page with a second factor does (Bitbucket
// Data Center's OpenAPI description, tsv; that the others have the same is read from
// scripts), as far as the password goes. ref takes the password, and proof names the
// user.
func (a *atlassian) twoStep(ctx context.Context, x *web.Exchange, p Password, ref, proof string) error {
	u, err := x.URL(ref)
	if err != nil {
		return err
	}
	if err := a.there(ctx, x, proof); err != nil {
		return err
	}
	query := u.Query()
	query.Set("os_authType", "none") // as the page has it: no other login counts
	u.RawQuery = query.Encode()
	before := cookieValues(x.Jar())
	r, err := a.sendJSON(ctx, x, p, u, map[string]any{"rememberMe": false, "targetUrl": ""})
	if err != nil {
		return err
	}
	if err := a.refusal(x, r, p); err != nil {
		return err
	}
	second := func(detail string) error {
		p.Accepted()
		return &api.Error{Code: api.SecondFactor, Detail: r.Shown() + " " + detail,
			Remedy: `make a personal access token there, and use it with kind = "token"; or log in with a principal and its keytab`}
	}
	step := hear(r).step
	var answer map[string]json.RawMessage
	switch {
	case r.Status == http.StatusPreconditionFailed && step == "ENROLLMENT":
		return second("accepts the password, but wants its user to set up a second factor first")
	case r.Status == http.StatusPreconditionFailed && step != "":
		return second("accepts the password, but wants a second factor")
	case r.Status != http.StatusOK:
		return a.unexpected(r)
	case json.Unmarshal(r.Body, &answer) != nil || answer == nil:
		return &api.Error{Code: api.UnexpectedStatus, Detail: r.Shown() + " answers a password with 200, but not as a login does", Remedy: checkPages}
	}
	p.Accepted()
	begun := newCookie(x, before)
	_, err = a.whoami(ctx, x, proof)
	switch {
	case api.CodeOf(err) != api.Expired:
		return err
	case !begun:
		return &api.Error{Code: api.NoSessionCookie, Detail: r.Shown() + " accepts the password but sets no session cookie", Remedy: noCookie}
	}
	// What a login whose second factor is missing looks like, if it is not announced.
	return second("accepts the password, but the login has no user: it may want a second factor")
}

// sendJSON takes the password, and sends it with what else the login wants.
func (a *atlassian) sendJSON(ctx context.Context, x *web.Exchange, p Password, u *url.URL, fields map[string]any) (*web.Response, error) {
	password, err := p.Take(ctx)
	if err != nil {
		return nil, err
	}
	fields["username"], fields["password"] = p.User(), password.Reveal()
	body, err := json.Marshal(fields)
	if err != nil {
		panic(err) // strings can be encoded
	}
	r := a.request(x, http.MethodPost, u)
	r.Header.Set("Content-Type", "application/json")
	r.Body = body
	return x.Send(ctx, r)
}

// request is a request to a resource.
func (a *atlassian) request(x *web.Exchange, method string, u *url.URL) web.Request {
	h := http.Header{"Accept": {"application/json"}}
	for _, f := range a.Headers(Asked{Method: method, URL: u, UserAgent: x.UserAgent()}) {
		h.Set(f.Name, f.Value)
	}
	return web.Request{Method: method, URL: u, Header: h}
}

// form logs in by the form of the login page, as kind form does.
func (a *atlassian) form(ctx context.Context, x *web.Exchange, p Password, probe func(context.Context, *web.Exchange) (Identity, error)) error {
	u, err := x.URL(a.LoginURL)
	if err != nil {
		return err
	}
	page, err := x.Get(ctx, u)
	if err != nil {
		return err
	}
	if hear(page).captcha() {
		return a.captcha(x, page)
	}
	if err := web.StatusError(page); err != nil {
		return err
	}
	if err := a.announced(page); err != nil {
		return err
	}
	s, err := (&form{UsernameField: a.product.username, PasswordField: a.product.password}).fill(x, page, p.User())
	switch {
	case api.CodeOf(err) == api.Captcha:
		return a.captcha(x, page)
	case api.CodeOf(err) == api.UnexpectedStatus:
		return cmp.Or(a.asleep(ctx, x, page), err)
	case err != nil:
		return err
	case !hear(page).own && a.found.Product != a.product.kind && !a.leadsIn(x, s.action):
		return &api.Error{Code: api.UnexpectedStatus, Detail: page.Shown() + " shows a login form of which nothing says that it is " + a.product.name + "'s",
			Remedy: `check login_url; if that form is what takes the password, use kind = "form"`}
	}
	// A logout has to end the session.
	s.form.controls = slices.DeleteFunc(s.form.controls, func(c *control) bool { return slices.Contains(rememberMe, c.name()) })
	before := cookieValues(x.Jar())
	r, err := s.send(ctx, x, page, p)
	if err != nil {
		return err
	}
	if err := a.refusal(x, r, p); err != nil {
		return err
	}
	switch to, _ := x.Follows(r); { // it may
	case r.Status == http.StatusTemporaryRedirect, r.Status == http.StatusPermanentRedirect, to == nil && r.Status != http.StatusOK:
		return a.unexpected(r)
	case to != nil && !a.toLogin(x, r): // a good login leads on, to whatever page
		return sessionBegun(ctx, x, r, before, probe)
	case to != nil:
		if r, err = x.Get(ctx, to); err != nil {
			return err
		}
	}
	switch again, h := s.shownBy(r), hear(r); {
	case h.captcha(), again != nil && again.captcha():
		return a.captcha(x, r)
	case h.wrong(), again != nil:
		return passwordRefused(r, p)
	}
	return sessionBegun(ctx, x, r, before, probe)
}

// leadsIn reports whether the action of a form is the product's.
func (a *atlassian) leadsIn(x *web.Exchange, action *url.URL) bool {
	own, err := x.URL(a.product.action)
	return err == nil && action.Path == own.Path
}

// rememberMe are the fields by which the products' forms ask for a session that
// outlives the browser's.
var rememberMe = []string{"os_cookie", "_atl_remember_me", "rememberme"}

// refusal judges what is said to a password, in the order of what counts more: nil
// if it is none of the refusals that all products share. What the login framework
// says counts before the status: it has looked at the password, or will not.
func (a *atlassian) refusal(x *web.Exchange, r *web.Response, p Password) error {
	h := hear(r)
	switch {
	case h.captcha():
		return a.captcha(x, r)
	case h.wrong(): // also with 200 and an empty body: JRA-41559
		return passwordRefused(r, p)
	}
	if err := troubled(r, p); err != nil {
		return err
	}
	if _, err := x.Follows(r); err != nil {
		return err
	}
	switch {
	case h.basicDisabled():
		p.GiveBack()
		return &api.Error{Code: api.BasicDisabled, Detail: r.Shown() + " takes no passwords: Basic Authentication is disabled on this instance",
			Remedy: "log in with a keytab, or ask " + a.product.name + "'s administrator to allow basic authentication for REST (Authentication methods)"}
	case h.forged():
		p.GiveBack()
		return a.forged(r)
	case h.noRight():
		p.Accepted()
		return a.noRight(r)
	case h.stranger():
		return passwordRefused(r, p)
	case r.Status == http.StatusNotFound, r.Status == http.StatusMethodNotAllowed, r.Status == http.StatusGone:
		p.GiveBack()
		return a.unexpected(r)
	}
	return nil
}

// there asks the resource that names the user without a session, to see whether it
// is the product that answers: so no password is spent on an outage, a gate, or where
// the site's url redirects to.
func (a *atlassian) there(ctx context.Context, x *web.Exchange, ref string) error {
	r, err := a.get(ctx, x, ref)
	if err != nil {
		return err
	}
	return a.answers(ctx, x, r)
}

// get requests a resource.
func (a *atlassian) get(ctx context.Context, x *web.Exchange, ref string) (*web.Response, error) {
	u, err := x.URL(ref)
	if err != nil {
		return nil, err
	}
	return x.Send(ctx, a.request(x, http.MethodGet, u))
}

// answers returns nil if it is the product that gives a stranger that answer, where
// it names the user; else who does.
func (a *atlassian) answers(ctx context.Context, x *web.Exchange, r *web.Response) error {
	if err := web.StatusError(r); err != nil {
		return err
	}
	if _, err := x.Follows(r); err != nil {
		return err
	}
	h := hear(r)
	_, read := a.product.whoami(r.Body)
	switch {
	case h.stranger(), h.own && (r.Status == http.StatusOK && read == nil || r.Status == http.StatusForbidden && json.Valid(r.Body) || a.toLogin(x, r)):
		return nil
	case r.Status == http.StatusUnauthorized && len(r.Challenges) > 0:
		return a.gated(r)
	case r.Status == http.StatusOK:
		return a.page(ctx, x, r)
	}
	return a.unexpected(r)
}

// gated is for a 401 of something in front.
func (a *atlassian) gated(r *web.Response) error {
	return &api.Error{Code: api.ChallengeUnsupported, Detail: fmt.Sprintf("%s wants a login before %s is reached", r.Shown(), a.product.name),
		Remedy: "log in with a principal and its keytab"}
}

// page is for a page with status 200 where the product would answer in another way:
// of something in front, such as a proxy that says "back soon". If the status
// resource is not the product's either, it is away.
func (a *atlassian) page(ctx context.Context, x *web.Exchange, r *web.Response) error {
	if err := a.announced(r); err != nil {
		return err
	}
	if a.StatusURL != "" {
		answer, state, err := a.status(ctx, x)
		switch {
		case err != nil:
			return err
		case answer == nil:
			return away(r, " shows a page that is not "+a.product.name+"'s")
		case state != running:
			return a.notRunning(answer)
		}
	}
	return &api.Error{Code: api.UnexpectedStatus, Detail: r.Shown() + " answers 200 with a page", Remedy: checkPages}
}

// running is what the status resource says of a product that serves.
const running = "RUNNING"

// status asks the status resource ("Jira status endpoint"). r is nil if there is none.
func (a *atlassian) status(ctx context.Context, x *web.Exchange) (r *web.Response, state string, err error) {
	if a.StatusURL == "" {
		return nil, "", nil
	}
	if r, err = a.get(ctx, x, a.StatusURL); err != nil {
		return nil, "", err
	}
	if err := web.StatusError(r); err != nil {
		return nil, "", err
	}
	var status struct{ State string }
	if r.Status != http.StatusOK || json.Unmarshal(r.Body, &status) != nil {
		return nil, "", nil
	}
	return r, status.State, nil
}

func (a *atlassian) notRunning(r *web.Response) error {
	return away(r, " does not say that "+a.product.name+" is running")
}

// announced is for a page that says that the product is in maintenance, with
// status 200 ("Crucible Maintenance"), and not for one of the product itself, which
// may be called so.
func (a *atlassian) announced(r *web.Response) error {
	if r.Status == http.StatusOK && !hear(r).own && maintenanceTitle.Match(r.Body) && !asksForPassword(r) {
		return away(r, " shows a page about maintenance")
	}
	return nil
}

var maintenanceTitle = regexp.MustCompile(`(?i)<title[^>]*>[^<]{0,100}\bmaintenance\b`)

func away(r *web.Response, how string) error {
	return &api.Error{Code: api.Maintenance, Detail: r.Shown() + how,
		Remedy: "ask again later; if it stays so, look at that page with a browser, and check the site's url"}
}

// whoami is the probe. Only a word of the product, or of a gate that wants a login,
// ends a session: what else may stand in front has no say.
func (a *atlassian) whoami(ctx context.Context, x *web.Exchange, ref string) (Identity, error) {
	r, err := a.get(ctx, x, ref)
	if err != nil {
		return Identity{}, err
	}
	return a.judge(ctx, x, r)
}

// judge reads the answer to the probe's request.
func (a *atlassian) judge(ctx context.Context, x *web.Exchange, r *web.Response) (Identity, error) {
	if err := a.dead(x, r); err != nil {
		return Identity{}, err
	}
	switch {
	case r.Status != http.StatusOK:
		return Identity{}, a.unexpected(r)
	case !readable(r):
		return Identity{}, unreadable(r)
	}
	h := hear(r)
	name, err := a.product.whoami(r.Body)
	switch {
	case h.users, errors.Is(err, errTwice):
		return Identity{}, contradiction(r)
	case err != nil && asksForPassword(r):
		return Identity{}, expired(r, "answers 200 with a login page")
	case !h.own && (name == "" || !a.full(r.Body)):
		return Identity{}, a.page(ctx, x, r)
	case err != nil:
		return Identity{}, expired(r, "answers 200, but not with a session")
	case name == "" && h.user != "":
		return Identity{}, &api.Error{Code: api.UnexpectedStatus, Detail: r.Shown() + " names a user in its head, and none in its answer", Remedy: checkPages}
	case name == "":
		return Identity{}, expired(r, "answers 200 without naming a user")
	case h.anonymous:
		return Identity{}, expired(r, "names a user, but says that nobody asks")
	case h.user != "" && h.user != name:
		// In the header the name may be percent-encoded, with "+" for a space or not.
		named := func(unescape func(string) (string, error)) bool {
			u, err := unescape(h.user)
			return err == nil && lower(u) == lower(name)
		}
		if !named(url.PathUnescape) && !named(url.QueryUnescape) {
			return Identity{}, contradiction(r)
		}
	}
	return Identity{Name: name}, nil
}

// full reports whether the answer that names the user has what the product tells
// beside the name: what stands in front, such as the health page of a gateway, may
// name somebody, too.
func (a *atlassian) full(body []byte) bool {
	return slices.ContainsFunc(a.product.beside, func(member string) bool {
		v, err := jsonStep(body, member)
		return err == nil && v != nil
	})
}

// dead judges an answer to a session's cookies, in the order of what counts more:
// nil if it says nothing against the session.
func (a *atlassian) dead(x *web.Exchange, r *web.Response) error {
	if err := web.StatusError(r); err != nil {
		return err
	}
	h := hear(r)
	switch {
	case h.noRight():
		return a.noRight(r)
	case h.elevation, toElevation(x, r):
		return &api.Error{Code: api.Forbidden, Detail: r.Shown() + " wants the password once more, as for an administrator (WebSudo)",
			Remedy: "have the site proven by a page that every user may read"}
	case h.stranger(), r.Status == http.StatusUnauthorized && len(r.Challenges) > 0: // the product, or a gate
		return expired(r, "answers 401 to the session's cookies")
	case h.captcha(), h.wrong(), h.says(loggedOut):
		return expired(r, "says that the session's cookies are no login")
	case a.toLogin(x, r):
		// Another host may be one of a page that says "back soon". But a gate whose own
		// session has ended leads elsewhere, too, and to keep what is dead would be worse
		// than a login, which spends no password on either.
		return expired(r, "sends the session's cookies to a login page")
	case r.Status == http.StatusForbidden && h.own:
		return expired(r, "answers 403 to the session's cookies, and names no user")
	}
	return nil
}

func expired(r *web.Response, how string) error {
	return &api.Error{Code: api.Expired, Detail: r.Shown() + " " + how}
}

// logout ends a session where a person does. What the page says may be anything: it
// is over if nobody is there afterwards.
func (a *atlassian) logout(ctx context.Context, x *web.Exchange, ref string, probe func(context.Context, *web.Exchange) (Identity, error)) error {
	u, err := x.URL(ref)
	if err != nil {
		return err
	}
	// The token against forged requests, as the page's own link has it (Atlassian,
	// "Form token handling").
	for _, c := range x.Jar().Cookies(u, x.Now()) {
		if c.Name == "atlassian.xsrf.token" {
			query := u.Query()
			query.Set("atl_token", c.Value.Reveal())
			u.RawQuery = query.Encode()
		}
	}
	r, err := x.Send(ctx, web.Request{URL: u})
	if err != nil {
		return err
	}
	if err := web.StatusError(r); err != nil {
		return err
	}
	if hear(r).forged() {
		return a.forged(r)
	}
	_, err = probe(ctx, x)
	switch {
	case err == nil:
		return &api.Error{Code: api.UnexpectedStatus, Detail: fmt.Sprintf("%s answers %d, and the session lives on", r.Shown(), r.Status),
			Remedy: "check logout_url"}
	case api.CodeOf(err) == api.Expired:
		return nil
	}
	return err
}

func (a *atlassian) captcha(x *web.Exchange, r *web.Response) error {
	page := "the login page"
	if u, err := x.URL(a.LoginURL); err == nil {
		page = web.Shown(u)
	}
	return &api.Error{Code: api.Captcha, Detail: r.Shown() + " wants a CAPTCHA solved before it looks at another login",
		Remedy: "log in with a browser at " + page + " and solve the picture; find out what sends a wrong password there"}
}

func contradiction(r *web.Response) error {
	return &api.Error{Code: api.WrongIdentity, Detail: r.Shown() + " names two users", Remedy: "ask whoever runs the site why: a cache on the way would explain it"}
}

func passwordRefused(r *web.Response, p Password) error {
	return &api.Error{Code: api.BadCredentials, Detail: r.Shown() + " refuses the password of " + p.User()}
}

func (a *atlassian) forged(r *web.Response) error {
	return &api.Error{Code: api.CSRF403, Detail: r.Shown() + " takes the request for a forged one (XSRF check failed)",
		Remedy: "set no browser's user_agent for this site; ask " + a.product.name + "'s administrator whether its base URL and its proxy's scheme and port agree"}
}

func (a *atlassian) noRight(r *web.Response) error {
	return &api.Error{Code: api.Forbidden, Detail: r.Shown() + " knows the user, who may not use this " + a.product.name,
		Remedy: "ask " + a.product.name + "'s administrator for the right, or a licence"}
}

const checkPages = "check the context path in the site's url, and the site's options that name pages"

// unexpected is for a status that no rule names.
func (a *atlassian) unexpected(r *web.Response) error {
	return &api.Error{Code: api.UnexpectedStatus, Detail: fmt.Sprintf("%s answers %d", r.Shown(), r.Status), Remedy: checkPages}
}

// toLogin reports whether an answer leads to a login: to the login page, or to
// another host, as a gate leads whose own session has ended.
func (a *atlassian) toLogin(x *web.Exchange, r *web.Response) bool {
	to, err := x.Follows(r)
	switch {
	case err != nil:
		return true
	case to == nil:
		return false
	}
	login, err := x.URL(a.LoginURL)
	last := to.Path[strings.LastIndexByte(to.Path, '/')+1:]
	return err == nil && to.Path == login.Path || strings.HasPrefix(last, "login") || strings.HasPrefix(last, "userlogin")
}

// toElevation reports whether an answer leads to a page that asks for the password
// once more (Atlassian, "WebSudo").
func toElevation(x *web.Exchange, r *web.Response) bool {
	to, err := x.Follows(r)
	return err == nil && to != nil && (bytes.Contains(bytes.ToLower([]byte(to.Path)), []byte("websudo")) || strings.HasSuffix(to.Path, "/authenticate.action"))
}
