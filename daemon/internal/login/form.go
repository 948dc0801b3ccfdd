package login

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"golang.org/x/net/html/charset"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/web"
)

var _ = register("form", func() Driver { return &form{} })

// form is any site with a login form of plain HTML. Its login_url shows the
// form, or redirects to it. The form is sent as a browser without scripts sends
// it (HTML standard, "Form submission"), but for a box that asks to remember the
// user: it stays unchecked, for a logout has to end the session.
//
// The password is taken only when nothing is left to guess: one form with one
// password field, a POST that is not multipart, no CAPTCHA, and a destination
// where credentials may go.
type form struct {
	// UsernameField and PasswordField name the fields of the form. Default: the
	// only visible password field, and the only text field before it.
	UsernameField string `toml:"username_field" for:"login"`
	PasswordField string `toml:"password_field" for:"login"`
	proof
}

// Check implements Checker.
func (f *form) Check(o web.Options, identity string) error {
	if f.PasswordField != "" && f.UsernameField == f.PasswordField {
		return errors.New("username_field and password_field name the same field")
	}
	return f.proof.Check(o, identity)
}

// Takes implements Driver.
func (*form) Takes() []Means { return []Means{Secret} }

// LoginPage implements Paged.
func (f *form) LoginPage() string { return f.LoginURL }

// errTooLate is for a 408: the site has not looked at the form, because the session
// that it was shown in has ended (RFC 9110, section 15.5.9; Tomcat's FormAuthenticator).
var errTooLate = errors.New("too late")

// Login implements Driver.
func (f *form) Login(ctx context.Context, x *web.Exchange, p Password) error {
	u, err := x.URL(f.LoginURL)
	if err != nil {
		return err
	}
	if err = f.login(ctx, x, u, p); errors.Is(err, errTooLate) {
		p.GiveBack()
		*x.Jar() = web.Jar{}
		err = f.login(ctx, x, u, p)
	}
	return err
}

// login shows itself the form at u, and sends it.
func (f *form) login(ctx context.Context, x *web.Exchange, u *url.URL, p Password) error {
	page, err := x.Get(ctx, u)
	if err != nil {
		return err
	}
	if err := web.StatusError(page); err != nil {
		return err
	}
	s, err := f.fill(x, page, p.User())
	if err != nil {
		return err
	}
	before := cookieValues(x.Jar())
	r, err := s.send(ctx, x, page, p)
	if err != nil {
		return err
	}
	if err := troubled(r, p); err != nil {
		return err
	}
	if r.Status == http.StatusRequestTimeout {
		return &api.Error{Code: api.UnexpectedStatus, Detail: r.Shown() + " answers 408: it has forgotten that it showed the form", Remedy: "see that no proxy on the way takes cookies away", Err: errTooLate}
	}
	err = f.answer(ctx, x, r, s, p.User(), before)
	if api.CodeOf(err) == api.NoSessionCookie && errors.Is(err, &api.Error{Code: api.Expired}) && r.Status == http.StatusOK && !shows(r) {
		// A page of its own may say that it was no good (Tomcat, form-error-page). Then
		// there is the form again where it was.
		if page, err := x.Get(ctx, u); err == nil && s.shownBy(page) != nil {
			return &api.Error{Code: api.BadCredentials, Detail: r.Shown() + " does not log in, and the login form is there again: it refuses the password of " + p.User()}
		}
	}
	return err
}

// shows reports whether a page has a form.
func shows(page *web.Response) bool {
	forms, _ := readForms(page)
	return len(forms) > 0
}

// answer judges what the site says to the form. Cookies are from before that.
func (f *form) answer(ctx context.Context, x *web.Exchange, r *web.Response, s *submission, user string, cookies map[string]bool) error {
	to, err := x.Follows(r)
	switch {
	case err != nil:
		return err
	case r.Status == http.StatusTemporaryRedirect, r.Status == http.StatusPermanentRedirect:
		return &api.Error{Code: api.UnexpectedStatus, Detail: fmt.Sprintf("%s answers %d: the password should be sent once more, elsewhere", r.Shown(), r.Status),
			Remedy: "point login_url at the page whose form leads there directly"}
	case to != nil:
		if r, err = x.Get(ctx, to); err != nil {
			return err
		}
		if err := web.StatusError(r); err != nil {
			return err
		}
	}
	if again := s.shownBy(r); again != nil {
		if again.captcha() {
			return wantsCaptcha(r)
		}
		if to != nil && newCookie(x, cookies) {
			// A login may lead back to the page that it began at, though that is the form.
			if _, err := f.Probe(ctx, x); err == nil || api.CodeOf(err).Temporary() {
				return err
			}
		}
		return &api.Error{Code: api.BadCredentials, Detail: r.Shown() + " shows the login form again: it refuses the password of " + user}
	}
	switch {
	case to != nil: // whatever the page is that a user lands on
	case r.Status == http.StatusUnauthorized:
		return &api.Error{Code: api.BadCredentials, Detail: r.Shown() + " answers 401 to the password of " + user}
	case r.Status >= 300:
		return &api.Error{Code: api.UnexpectedStatus, Detail: fmt.Sprintf("%s answers %d to the login form", r.Shown(), r.Status),
			Remedy: "log in there with a browser to see what it wants; check login_url"}
	}
	return sessionBegun(ctx, x, r, cookies, f.Probe)
}

// sessionBegun judges by the cookies whether a login that ended with r has begun a
// session. before are those from before it.
func sessionBegun(ctx context.Context, x *web.Exchange, r *web.Response, before map[string]bool, probe func(context.Context, *web.Exchange) (Identity, error)) error {
	if newCookie(x, before) {
		return nil
	}
	// A site may go on with the session it began before the login. Nobody else
	// can have chosen it, for x began without cookies; but it is a login only if
	// the probe says so. A 403 does not: strangers may get it, too.
	var err error
	if x.Jar().Len() > 0 {
		_, err = probe(ctx, x)
		if code := api.CodeOf(err); code != api.Expired && code != api.Forbidden {
			return err
		}
	}
	return &api.Error{Code: api.NoSessionCookie, Detail: r.Shown() + " ends the login without a new cookie",
		Remedy: "log in there with a browser to see what it answers; check login_url", Err: err}
}

// newCookie reports whether there is a cookie, or a value of one, that there was
// not before.
func newCookie(x *web.Exchange, before map[string]bool) bool {
	for c := range cookieValues(x.Jar()) {
		if !before[c] {
			return true
		}
	}
	return false
}

// cookieValues returns what is in a jar: NAME=VALUE.
func cookieValues(j *web.Jar) map[string]bool {
	values := map[string]bool{}
	for _, l := range j.Lines() {
		if u, err := url.Parse(l.URL); err == nil {
			if c := web.ParseCookie(string(l.Line), u, l.Time); c != nil {
				values[c.Name+"="+c.Value.Reveal()] = true
			}
		}
	}
	return values
}

// submission is a login form, ready to be sent but for the password.
type submission struct {
	form                       *htmlForm
	username, password, button *control // button may be nil
	action                     *url.URL // may have credentials
	charset                    string
	encode, decode             func(string) (string, error)
}

// maxPage is the longest login page. It is less than what is read of a
// response: a page that was cut off might lack a field.
const maxPage = 512 << 10

// fill finds the login form of a page and judges it.
func (f *form) fill(x *web.Exchange, page *web.Response, user string) (*submission, error) {
	const (
		another  = "point login_url at the page with the login form; if scripts make that form, it cannot be used"
		byHand   = "log in there with a browser to see what the form wants; this kind gives it a username and a password"
		sendable = "point login_url at a page whose form sends its fields by POST, application/x-www-form-urlencoded"
	)
	switch page.Status {
	case http.StatusOK, http.StatusUnauthorized, http.StatusForbidden:
	default:
		return nil, unusable(page, fmt.Sprintf("answers %d", page.Status), "check the site's url and login_url")
	}
	if len(page.Body) > maxPage {
		return nil, unusable(page, "is too long for a login page", another)
	}
	forms, base := readForms(page)
	forms = slices.DeleteFunc(forms, func(h *htmlForm) bool { return f.passwordOf(h) == nil })
	switch {
	case len(forms) == 0 && basicChallenge(page) != nil:
		return nil, &api.Error{Code: api.ChallengeUnsupported, Detail: page.Shown() + " asks for the password by Basic, and shows no form",
			Remedy: "use kind = \"basic\", or point login_url at a page that shows the form to everybody"}
	case len(forms) == 0 && page.Status == http.StatusUnauthorized && len(page.Challenges) > 0:
		return nil, &api.Error{Code: api.ChallengeUnsupported, Detail: page.Shown() + " wants a login before it shows a form",
			Remedy: "log in with a principal and its keytab, or point login_url at a page that shows the form to everybody"}
	case len(forms) == 0:
		return nil, unusable(page, "shows no form with one password field to log in with", another)
	case len(forms) > 1:
		return nil, unusable(page, "shows more than one form that may be the login", "set username_field and password_field, or point login_url at a page with one login form")
	}
	h := forms[0]
	s := &submission{form: h, password: f.passwordOf(h), username: f.usernameOf(h), button: h.button()}
	if h.captcha() {
		return nil, wantsCaptcha(page)
	}
	if s.username == nil {
		return nil, unusable(page, "does not say which field of its login form is for the username", "set username_field to the field's name")
	}
	if slices.ContainsFunc(h.controls, func(c *control) bool {
		return c != s.username && c != s.password && c.missing()
	}) {
		return nil, unusable(page, "shows a login form that wants more than a username and a password", byHand)
	}
	if !strings.EqualFold(s.option("method"), http.MethodPost) {
		return nil, unusable(page, "shows a login form that is not sent by POST, so that the password would stand in a URL", sendable)
	}
	if t := strings.ToLower(s.option("enctype")); t == "multipart/form-data" || t == "text/plain" {
		return nil, unusable(page, "shows a login form of an encoding type that is not spoken here", sendable)
	}
	var err error
	if s.action, err = resolveAction(page.URL, base, s.option("action")); err != nil {
		return nil, unusable(page, "shows a login form that leads to what is not a web address", another)
	}
	if err := x.Permit(page.URL, s.action); err != nil {
		return nil, err
	}
	s.charset = h.charset(page)
	e, _ := charset.Lookup(s.charset)
	s.encode, s.decode = e.NewEncoder().String, e.NewDecoder().String
	if !s.exact(user) {
		return nil, unusable(page, "is not in an encoding that has all characters of the username", "ask for a page in UTF-8")
	}
	return s, nil
}

const urlencoded = "application/x-www-form-urlencoded"

func unusable(page *web.Response, what, remedy string) error {
	return &api.Error{Code: api.UnexpectedStatus, Detail: page.Shown() + " " + what, Remedy: remedy}
}

func wantsCaptcha(page *web.Response) error {
	return &api.Error{Code: api.Captcha, Detail: page.Shown() + " wants a CAPTCHA solved with the login",
		Remedy: "log in there with a browser; if it always wants one, this kind cannot log in"}
}

// passwordOf returns the field for the password, nil if the form is no login.
// Two are for a new password, as one is that says so.
func (f *form) passwordOf(h *htmlForm) *control {
	if f.UsernameField != "" && h.field(f.UsernameField) == nil {
		return nil
	}
	if f.PasswordField != "" {
		return h.field(f.PasswordField)
	}
	var found *control
	for _, c := range h.controls {
		if c.kind != "password" || c.disabled() || c.has("hidden") {
			continue
		}
		if found != nil {
			return nil
		}
		found = c
	}
	if found == nil || found.name() == f.UsernameField || found.autocompletes("new-password") {
		return nil
	}
	return h.field(found.name())
}

// usernameOf returns the field for the username, nil if it is not clear which.
func (f *form) usernameOf(h *htmlForm) *control {
	if f.UsernameField != "" {
		return h.field(f.UsernameField)
	}
	before := slices.Clone(h.controls[:slices.Index(h.controls, f.passwordOf(h))])
	fields := slices.DeleteFunc(before, func(c *control) bool {
		text := c.kind == "text" || c.kind == "email" || c.kind == "tel"
		return !text || h.field(c.name()) != c || c.has("readonly")
	})
	if len(fields) > 1 {
		fields = slices.DeleteFunc(fields, func(c *control) bool { return !c.autocompletes("username") })
	}
	if len(fields) != 1 {
		return nil
	}
	return fields[0]
}

// send takes the password and sends the form of a page with it.
func (s *submission) send(ctx context.Context, x *web.Exchange, page *web.Response, p Password) (*web.Response, error) {
	password, err := p.Take(ctx)
	if err != nil {
		return nil, err
	}
	if !s.exact(password.Reveal()) {
		p.GiveBack()
		return nil, unusable(page, "is not in an encoding that has all characters of the password", "ask for a password of ASCII characters, or for a page in UTF-8")
	}
	header := http.Header{
		"Content-Type": {urlencoded},
		"Origin":       {web.OriginOf(page.URL).String()},
	}
	if web.OriginOf(page.URL) == web.OriginOf(s.action) {
		header.Set("Referer", page.Shown()) // without query: it may hold a token
	}
	return x.Send(ctx, web.Request{Method: http.MethodPost, URL: s.action, Header: header, Body: s.body(p.User(), password.Reveal())})
}

// option returns an attribute of the form; the button's own counts more.
func (s *submission) option(name string) string {
	if s.button != nil {
		if v := s.button.attr["form"+name]; v != "" {
			return v
		}
	}
	return s.form.attr[name]
}

// shownBy returns the login form if a page shows it again, else nil.
func (s *submission) shownBy(page *web.Response) *htmlForm {
	forms, _ := readForms(page)
	i := slices.IndexFunc(forms, func(h *htmlForm) bool {
		return h.field(s.username.name()) != nil && h.field(s.password.name()) != nil
	})
	if i < 0 {
		return nil
	}
	return forms[i]
}

// exact reports whether a text arrives as it is in the form's encoding.
func (s *submission) exact(text string) bool {
	b, err := s.encode(text)
	if err != nil {
		return false
	}
	back, err := s.decode(b)
	return err == nil && back == text
}

// body returns the form's entry list (HTML standard, "constructing the entry
// list") with the credentials, as application/x-www-form-urlencoded.
func (s *submission) body(username, password string) []byte {
	var b bytes.Buffer
	add := func(name, value string) {
		if b.Len() > 0 {
			b.WriteByte('&')
		}
		b.WriteString(s.escape(name))
		b.WriteByte('=')
		b.WriteString(s.escape(value))
	}
	for _, c := range s.form.controls {
		name := c.name()
		switch {
		case c.disabled():
		case c == s.username:
			add(name, username)
		case c == s.password:
			add(name, password)
		case c == s.button && c.kind == "image": // where it was clicked
			if name != "" {
				name += "."
			}
			add(name+"x", "0")
			add(name+"y", "0")
		case name == "":
		case c == s.button:
			add(name, c.attr["value"])
		case c.kind == "hidden" && strings.EqualFold(name, "_charset_"):
			add(name, s.charset)
		case !c.remembers():
			for _, v := range c.values() {
				add(name, v)
			}
		}
	}
	return b.Bytes()
}

var lineBreaks = strings.NewReplacer("\r\n", "\r\n", "\r", "\r\n", "\n", "\r\n")

func (s *submission) escape(text string) string {
	b, _ := s.encode(lineBreaks.Replace(text)) // what the encoding lacks becomes "&#…;", as in browsers
	return url.QueryEscape(b)
}

// resolveAction returns where a form leads. Without an action that is the page
// itself, whatever its base is.
func resolveAction(page *url.URL, base, action string) (*url.URL, error) {
	from, u := page, *page
	if action = strings.TrimSpace(action); action != "" {
		if b, err := page.Parse(strings.TrimSpace(base)); err == nil && (b.Scheme == "http" || b.Scheme == "https") {
			from = b
		}
		to, err := from.Parse(action)
		if err != nil {
			return nil, errors.New("not a URL") // err would quote it
		}
		u = *to
	}
	u.Fragment, u.RawFragment = "", ""
	return &u, nil
}
