package web

import (
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http/httpproxy"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/secret"
)

// Proxy is an HTTP proxy that all requests of an exchange go through: those to
// https sites in a tunnel (CONNECT; RFC 9110, section 9.3.6), those to http
// sites with the whole URL. It gets credentials of its own, and only once it
// has asked for them. Negotiate goes before Basic; what is chosen is not changed
// when it fails. Several exchanges may share a Proxy: it is not changed.
type Proxy struct {
	// URL is http://HOST:PORT, or https for TLS on the way to the proxy. A user
	// in it is not looked at: UserPassword makes one a Password.
	URL *url.URL
	// Negotiate answers the proxy's Negotiate challenges; nil: they are left
	// unanswered. It need not be of the realm that the site is in.
	Negotiate Negotiator
	// SPN is the proxy's service principal name; "": that of URL's host.
	SPN string
	// Mutual says whether the proxy has to prove itself.
	Mutual MutualPolicy
	// Password answers the proxy's Basic challenges; nil: they are left
	// unanswered.
	Password ProxyPassword
	// InsecureBasic lets the password go in clear to a proxy on another machine.
	InsecureBasic bool
}

// AcceptedFor is how long a proxy's acceptance of a password lets exchanges send
// it at once. After that, and before the first acceptance, one sends it alone and
// the others wait for its verdict.
const AcceptedFor = time.Minute

// ProxyPassword lends an exchange the password of an account at a proxy. After
// each Take that returns no error there is one call of Accepted or of Refused,
// within the same request.
//
// A password that the proxy refuses is sent once. The exception is one that it
// has accepted less than AcceptedFor ago and takes no longer: each exchange that
// has it may have one request on its way, which nobody can call back, when the
// first refusal comes. None is sent after that.
type ProxyPassword interface {
	// User is whose password it is.
	User() string
	// Take returns the password. After an error, an *api.Error, there is no
	// attempt.
	Take(ctx context.Context) (secret.String, error)
	// Refusal returns what has come to stand against the password since Take, nil
	// if nothing: it must not be sent again then.
	Refusal() error
	// Accepted says that the proxy has accepted the password. The exchange then
	// sends it with its further requests.
	Accepted(ctx context.Context)
	// Refused says that the attempt failed: err has the code ProxyAuthFailed if
	// the proxy refused the password. With any other code nobody knows what the
	// proxy makes of it, or whether it has seen it. A later request of the
	// exchange may be refused, too, after Accepted.
	Refused(ctx context.Context, err error)
}

// CheckProxy returns what keeps a URL from being that of a proxy, with the code
// ConfigInvalid. The error does not quote the URL, which may hold a password.
func CheckProxy(u *url.URL) error {
	if u.Scheme != "http" && u.Scheme != secureScheme || u.Hostname() == "" || strings.Trim(OriginOf(u).Host, hostBytes) != "" ||
		strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" {
		return &api.Error{Code: api.ConfigInvalid, Detail: "the proxy's url is not http://HOST:PORT or https://HOST:PORT", Remedy: "correct the proxy's url"}
	}
	return nil
}

// ProxyFromEnvironment returns the URL of the proxy that the environment names
// for requests to u, nil if none: https_proxy, http_proxy and no_proxy, also in
// upper case, as curl reads them. It may hold a user and a password. Errors have
// the code ConfigInvalid and quote nothing.
func ProxyFromEnvironment(u *url.URL) (*url.URL, error) {
	c := httpproxy.FromEnvironment()
	wrong := func(err error) (*url.URL, error) {
		return nil, &api.Error{Code: api.ConfigInvalid, Detail: "the environment variable for proxies of " + u.Scheme + " does not hold the URL of a proxy",
			Remedy: "write " + u.Scheme + "_proxy=http://HOST:PORT in the agent's environment, or remove the variable", Err: err}
	}
	value := c.HTTPProxy
	if u.Scheme == secureScheme {
		value = c.HTTPSProxy
	}
	if _, err := url.Parse(value); err != nil { // which httpproxy takes for no proxy, unless this helps:
		if _, err := url.Parse("http://" + value); err != nil {
			return wrong(nil) // err quotes the variable
		}
	}
	p, err := c.ProxyFunc()(u)
	if err != nil {
		return wrong(nil)
	}
	if p == nil {
		return nil, nil
	}
	if err := CheckProxy(p); err != nil {
		return wrong(err)
	}
	return p, nil
}

// UserPassword lends the user and the password of a proxy's URL until a proxy
// refuses them: no exchange tries them after that in the life of this process.
func UserPassword(u *url.Userinfo) ProxyPassword {
	password, _ := u.Password()
	return &userPassword{user: u.Username(), password: secret.New(password), told: make(chan struct{})}
}

type userPassword struct {
	user     string
	password secret.String

	mu       sync.Mutex
	underway int           // attempts that wait for their verdict
	told     chan struct{} // closed by the next verdict
	accepted time.Time
	refused  error
}

// User implements ProxyPassword.
func (p *userPassword) User() string { return p.user }

// Take implements ProxyPassword.
func (p *userPassword) Take(ctx context.Context) (secret.String, error) {
	for {
		p.mu.Lock()
		told, err := p.told, p.refused
		lent := err == nil && (p.underway == 0 || time.Since(p.accepted) < AcceptedFor)
		if lent {
			p.underway++
		}
		p.mu.Unlock()
		if lent || err != nil {
			return p.password, err
		}
		select {
		case <-told:
		case <-ctx.Done():
			return secret.String{}, &api.Error{Code: api.Timeout, Detail: "another request with the password of " + p.user + " is still under way", Remedy: "try again", Err: ctx.Err()}
		}
	}
}

// Refusal implements ProxyPassword.
func (p *userPassword) Refusal() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.refused
}

// Accepted implements ProxyPassword.
func (p *userPassword) Accepted(context.Context) { p.end(nil) }

// Refused implements ProxyPassword.
func (p *userPassword) Refused(_ context.Context, err error) { p.end(err) }

func (p *userPassword) end(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case err == nil:
		p.accepted = time.Now()
	case api.CodeOf(err) == api.ProxyAuthFailed:
		p.refused = err
	}
	p.underway = max(p.underway-1, 0)
	close(p.told)
	p.told = make(chan struct{})
}

// name is the proxy as messages call it, without the user of its URL.
func (p *Proxy) name() string { return "the proxy " + OriginOf(p.URL).String() }

func (p *Proxy) spn() string { return cmp.Or(p.SPN, SPN(p.URL)) }

// helpless is the failure of having no credentials for the proxy. It never has
// the code that err has: BadCredentials, say, would be taken for the site's word
// about the site's own credential.
func (p *Proxy) helpless(err error) error {
	reason := api.AsError(err)
	e := &api.Error{Code: api.ProxyAuthFailed, Detail: "no credentials for " + p.name() + ": " + reason.Detail,
		Remedy: cmp.Or(reason.Remedy, "see to the proxy's credential"), Err: err}
	switch {
	case reason.Code == api.NoSecret:
		e.Code = api.ProxyAuthRequired
	case reason.Code.Temporary(), reason.Code == api.Deadline:
		e.Code = api.ProxyError
	}
	return e
}

// InClear reports whether what is sent to a proxy of that URL can be read on the
// way.
func InClear(u *url.URL) bool {
	host := OriginOf(u).Host
	ip, err := netip.ParseAddr(host)
	return u.Scheme != secureScheme && host != "localhost" && (err != nil || !ip.IsLoopback())
}

const (
	basicScheme   = "basic"
	authorization = "Proxy-Authorization"
	authenticate  = "Proxy-Authenticate"
)

// passage is a proxy and what one exchange has learnt about it. Only the
// exchange's own goroutine uses it.
type passage struct {
	*Proxy
	// scheme is that of the credentials, once the proxy has asked for some: from
	// then on it gets them at once, instead of a 407 each time.
	scheme string
	basic  secret.String // the field's value
	// pending says that Basic waits for its verdict.
	pending bool
	// refusal is why the proxy lets nothing through. It is final: no exchange
	// asks the same proxy for ever.
	refusal error
}

// attempt is one request through a proxy. net/http calls its methods from the
// goroutine that dials, which the end of the request does not end.
type attempt struct {
	*Proxy
	ctx       context.Context // of the request
	scheme    string
	basic     secret.String
	fresh     bool // a new service ticket
	tunnel    bool
	userAgent string

	mu sync.Mutex
	// reaching says that the proxy is being dialled, or has not yet answered
	// CONNECT: what fails now is not the site's failure.
	reaching bool
	tokens   int
	context  Negotiation // of the last token
	sent     string      // the last credentials, "" if none
	status   int         // of the proxy's answer, 0 if none
	// lent says that a password waits for the proxy's verdict, settled that it has
	// been told.
	lent, settled bool
}

type attemptKey struct{}

// attemptOf returns the attempt that a context belongs to.
func attemptOf(ctx context.Context) *attempt {
	a, _ := ctx.Value(attemptKey{}).(*attempt)
	return a
}

// demand is a proxy's 407.
type demand struct{ challenges []Challenge }

func (*demand) Error() string { return "the proxy answers 407" }

// through makes the transport use a proxy. Credentials go to it in the head of
// CONNECT, or with a request to an http site; nothing that a tunnel carries has
// any: what is set on the request itself reaches the site.
func (p *Proxy) through(t *http.Transport) {
	dial := t.DialContext
	t.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		a := attemptOf(ctx)
		a.reach(true)
		c, err := dial(ctx, network, address)
		if err == nil && !a.tunnel {
			a.reach(false)
		}
		return c, err
	}
	// Without the user, whom net/http would send unasked.
	t.Proxy = http.ProxyURL(&url.URL{Scheme: p.URL.Scheme, Host: p.URL.Host})
	t.GetProxyConnectHeader = func(ctx context.Context, _ *url.URL, _ string) (http.Header, error) {
		a := attemptOf(ctx)
		h := http.Header{"User-Agent": {a.userAgent}}
		value, err := a.authorize()
		if value != "" {
			h.Set(authorization, value)
		}
		return h, err
	}
	t.OnProxyConnectResponse = func(ctx context.Context, _ *url.URL, _ *http.Request, r *http.Response) error {
		a := attemptOf(ctx)
		a.reach(false)
		if err := a.judge(r.StatusCode, r.Header); err != nil {
			return err
		}
		if r.StatusCode != http.StatusOK {
			return &api.Error{Code: api.ProxyError, Detail: fmt.Sprintf("%s answers %d when asked for a connection to the site", a.name(), r.StatusCode),
				Remedy: "ask whoever runs the proxy whether it may and can reach the site"}
		}
		a.admit(ctx)
		return nil
	}
}

// admit tells at once that a proxy has accepted a password: others wait for that,
// and the site may take its time.
func (a *attempt) admit(ctx context.Context) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.lent && !a.settled {
		a.settled = true
		a.Password.Accepted(context.WithoutCancel(ctx))
	}
}

func (a *attempt) reach(now bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.reaching = now
}

// authorize returns the credentials for the proxy, "" if it has not asked for
// any: a new token each time, for net/http may dial again.
func (a *attempt) authorize() (string, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch a.scheme {
	case basicScheme:
		a.sent = a.basic.Reveal()
	case negotiateScheme:
		if a.tokens == maxTokens {
			return "", &api.Error{Code: api.ProxyError, Detail: a.name() + " ends the connections that it has just allowed", Remedy: checkProxy}
		}
		a.tokens++
		n, err := a.Negotiate.Initiate(a.ctx, a.spn(), InitiateOptions{Fresh: a.fresh, Mutual: a.Mutual != MutualOff, Exact: a.SPN != "" || a.Mutual == MutualRequired})
		if err != nil {
			return "", a.helpless(err)
		}
		a.context, a.sent = n, field(n)
	}
	return a.sent, nil
}

// judge reads the head of the proxy's answer. A *demand is a 407.
func (a *attempt) judge(status int, h http.Header) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.status = status
	challenges := ParseChallenges(h[authenticate])
	if status == http.StatusProxyAuthRequired {
		return &demand{challenges}
	}
	if err := tooLarge(a.name(), status, a.sent); err != nil {
		return err
	}
	if a.context == nil || a.tunnel && status != http.StatusOK {
		return nil
	}
	mutual, err := a.Mutual.proof(challenges, a.context)
	if err == nil && a.Mutual == MutualRequired && !mutual {
		err = unproven(a.name(), a.spn())
	}
	return err
}

// failure gives a request that failed on its way through the proxy its code,
// and says which of the two it was that failed.
func (a *attempt) failure(ctx context.Context, u *url.URL, err error) error {
	if e, ok := errors.AsType[*api.Error](err); ok {
		return e
	}
	if d, ok := errors.AsType[*demand](err); ok {
		return d
	}
	a.mu.Lock()
	blame := a.reaching
	a.mu.Unlock()
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "proxyconnect" { // dialling, and TLS with the proxy
		blame, err = true, op.Err
	}
	if blame {
		e := classify(ctx, a.name(), err)
		e.Code, e.Remedy = api.ProxyError, checkProxy
		return e
	}
	e := classify(ctx, OriginOf(u).String(), err)
	e.Detail += ", through " + a.name()
	return e
}

// ask makes one request, and answers the challenges of the proxy that it goes
// through, with two tokens at most. What a proxy has refused to pass on is
// passed on later as it is, the token for the site too: the site has not seen it.
func (x *Exchange) ask(ctx context.Context, r Request) (*Response, error) {
	p := x.proxy
	if p == nil {
		return x.roundTrip(ctx, r, nil)
	}
	for fresh := false; ; {
		if p.refusal != nil {
			return nil, p.refusal
		}
		if p.scheme == basicScheme && !p.pending {
			if err := p.Password.Refusal(); err != nil {
				p.refusal = p.helpless(err)
				return nil, p.refusal
			}
		}
		a := &attempt{Proxy: p.Proxy, ctx: ctx, scheme: p.scheme, basic: p.basic, fresh: fresh,
			tunnel: r.URL.Scheme == secureScheme, userAgent: x.userAgent, lent: p.pending}
		resp, err := x.pass(ctx, r, a)
		d, demanded := errors.AsType[*demand](err)
		if demanded {
			p.refusal = p.answer(ctx, a, d.challenges)
			fresh = a.context != nil
			continue
		}
		p.settle(ctx, a, err)
		return resp, err
	}
}

// pass makes a request through a proxy. If that panics, nobody knows what the proxy
// makes of a password.
func (x *Exchange) pass(ctx context.Context, r Request, a *attempt) (*Response, error) {
	ended := false
	defer func() {
		if !ended {
			x.proxy.settle(ctx, a, errors.New("the request broke off"))
		}
	}()
	resp, err := x.roundTrip(ctx, r, a)
	ended = true
	return resp, err
}

// answer decides about a proxy's 407: nil means that the request may be made
// again.
func (p *passage) answer(ctx context.Context, a *attempt, cs []Challenge) error {
	switch a.scheme {
	case "":
		return p.choose(ctx, cs)
	case basicScheme:
		err := &api.Error{Code: api.ProxyAuthFailed, Detail: p.name() + " refused the password of " + p.Password.User(),
			Remedy: "correct the password of " + p.Password.User() + " for the proxy"}
		p.pending = false
		p.Password.Refused(context.WithoutCancel(ctx), err)
		return err
	}
	if !a.fresh && FindChallenge(cs, negotiateScheme) != nil {
		return nil // once more, with a new service ticket
	}
	e := &api.Error{Code: api.ProxyAuthFailed, Detail: p.name() + " refused the ticket for " + p.spn() + " without saying why", Remedy: askKeytab(p.spn())}
	if _, err := p.Mutual.proof(cs, a.context); err != nil {
		reason := api.AsError(err)
		e.Detail, e.Remedy, e.Err = p.name()+" refused the ticket for "+p.spn()+": "+reason.Detail, reason.Remedy, err
	}
	return e
}

// choose picks what the first 407 is answered with.
func (p *passage) choose(ctx context.Context, cs []Challenge) error {
	refuse := func(detail, remedy string) error {
		return &api.Error{Code: api.ProxyAuthRequired, Detail: p.name() + " " + detail, Remedy: remedy}
	}
	switch {
	case len(cs) == 0:
		return refuse("answers 407 and does not say what it wants", "ask whoever runs the proxy")
	case p.Negotiate != nil && FindChallenge(cs, negotiateScheme) != nil:
		p.scheme = negotiateScheme
		return nil
	case p.Password == nil || FindChallenge(cs, basicScheme) == nil:
		return refuse("asks for "+schemes(cs)+", for which it has no credential here",
			"give the proxy a credential: a principal and its keytab for Negotiate, a username and its password for Basic")
	case InClear(p.URL) && !p.InsecureBasic:
		return refuse("asks for a password, which would go there in clear",
			"use an https url for the proxy, or allow it with insecure_basic = true")
	case strings.Contains(p.Password.User(), ":"):
		return refuse("asks for Basic, which takes no user name with a colon", "give the proxy another credential")
	}
	password, err := p.Password.Take(ctx)
	if err != nil {
		return p.helpless(err)
	}
	p.scheme, p.pending = basicScheme, true
	p.basic = secret.New("Basic " + base64.StdEncoding.EncodeToString([]byte(p.Password.User()+":"+password.Reveal())))
	return nil
}

// settle says what became of a password that was not refused.
func (p *passage) settle(ctx context.Context, a *attempt, err error) {
	if !p.pending {
		return
	}
	p.pending = false
	a.mu.Lock()
	status, settled := a.status, a.settled
	a.settled = true
	a.mu.Unlock()
	if settled {
		return
	}
	if ctx = context.WithoutCancel(ctx); admitted(a.tunnel, status) {
		p.Password.Accepted(ctx)
		return
	}
	if err == nil {
		err = &api.Error{Code: api.ProxyError, Detail: fmt.Sprintf("a request through %s is answered %d, which leaves open what the proxy makes of the password of %s", p.name(), status, p.Password.User()),
			Remedy: checkProxy}
	}
	p.Password.Refused(ctx, err)
	p.scheme, p.basic = "", secret.String{}
}

// admitted reports whether an answer shows that the proxy has looked at a password
// and let the request pass. A tunnel does. Of the answers to a whole URL, nobody
// can tell which are the proxy's. Those count that only follow its access check,
// which has just answered 407 to the same request without the password: success,
// redirects, 401 (a proxy says 407), 403 (RFC 9110, section 15.5.4: the credentials
// do not suffice) and 404. Any other, and above all 400, 429 and 5xx, may come from
// a proxy in trouble that has looked at nothing.
func admitted(tunnel bool, status int) bool {
	if tunnel {
		return status == http.StatusOK
	}
	switch status {
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound:
		return true
	}
	return status >= 200 && status < 400
}
