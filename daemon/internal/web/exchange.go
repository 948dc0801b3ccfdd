package web

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/sessionctl/sessionctl/api"
)

// Limits against a hostile or broken server.
const (
	maxHops        = 10
	maxHeaderBytes = 256 << 10
	maxBodyBytes   = 1 << 20
	maxTokens      = 2 // Negotiate tokens for one URL, and of one request for the proxy
)

// Options say how an Exchange may behave.
type Options struct {
	// Base is the site's own URL. Its origin may get credentials.
	Base *url.URL
	// LoginHosts are further origins that may take part in a login.
	LoginHosts []Origin
	// InsecureHTTP lets credentials and sessions go over http.
	InsecureHTTP bool
	// UserAgent is sent with every request. Empty: what the driver presents.
	UserAgent string
	// ForwardedFor is sent with every request as X-Forwarded-For, if it is not empty:
	// whose address the site is to see.
	ForwardedFor string
	// Negotiate answers Negotiate challenges; nil: they are left unanswered.
	Negotiate Negotiator
	// SPN is the service principal name of Base's host, "" for the one that SPN
	// computes. Other hosts keep theirs.
	SPN string
	// Mutual says whether a service has to prove itself.
	Mutual MutualPolicy
	// Bindings says whether tokens are bound to the TLS connection.
	Bindings BindingPolicy
	// Proxy is what all requests go through; nil: nothing. What the Host field
	// and the site's SPN hold does not depend on it.
	Proxy *Proxy
	// Dial replaces the dialling of TCP connections.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Now replaces time.Now.
	Now func() time.Time
}

// Exchange is one dialogue with a site: requests one after the other that
// share cookies and connections. Two exchanges share no connection, so that a
// server or a proxy which binds a login to a connection (IIS, Squid) can lend it
// neither to a probe nor to another user.
// It is not safe for concurrent use. Close it.
type Exchange struct {
	o         Options
	transport *http.Transport
	proxy     *passage // nil: none
	jar       *Jar
	userAgent string
	tokens    map[string]int // Negotiate tokens spent, by URL
	lent      *Jar           // nil: none
	lenders   []Origin
	visited   bool        // one of them was asked
	connected atomic.Bool // there was a connection
}

// NewExchange starts a dialogue with the cookies of jar, which it changes.
func NewExchange(o Options, jar *Jar) *Exchange {
	if o.Now == nil {
		o.Now = time.Now
	}
	x := &Exchange{
		o: o,
		transport: &http.Transport{
			DisableCompression:     true, // the size limit is for what we read
			MaxResponseHeaderBytes: maxHeaderBytes,
			TLSHandshakeTimeout:    10 * time.Second,
			// HTTP/2 stays off (RFC 4559 authenticates connections of HTTP/1.1).
			Protocols: http1Only(),
		},
		jar:       jar,
		userAgent: cmp.Or(o.UserAgent, product()),
		tokens:    map[string]int{},
	}
	dial := o.Dial
	if dial == nil {
		dial = (&net.Dialer{}).DialContext
	}
	x.transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := dial(ctx, network, address)
		x.connected.CompareAndSwap(false, err == nil)
		return c, err
	}
	if o.Proxy != nil {
		x.proxy = &passage{Proxy: o.Proxy}
		o.Proxy.through(x.transport)
	}
	return x
}

// product is what the agent calls itself (RFC 9110, section 10.1.5).
func product() string { return "sessionctl/" + api.Version }

func http1Only() *http.Protocols {
	p := new(http.Protocols)
	p.SetHTTP1(true)
	return p
}

// Close ends the connections.
func (x *Exchange) Close() { x.transport.CloseIdleConnections() }

// Jar returns the cookies, all responses so far considered, but for those that are
// lent.
func (x *Exchange) Jar() *Jar { return x.jar }

// Lend has the exchange use a second jar of cookies, which it changes: of some
// origins, which get nothing else, and whose cookies it keeps. The others get those
// too, as far as the cookies are for them, but cannot replace or delete any.
func (x *Exchange) Lend(jar *Jar, origins []Origin) { x.lent, x.lenders = jar, origins }

// Visited reports whether an origin was asked whose cookies are lent.
func (x *Exchange) Visited() bool { return x.visited }

// cookies returns the cookies for a request to u.
func (x *Exchange) cookies(u *url.URL) string {
	now := x.o.Now()
	switch {
	case x.lent == nil:
		return x.jar.Header(u, now)
	case slices.Contains(x.lenders, OriginOf(u)):
		x.visited = true
		return x.lent.Header(u, now)
	}
	own := x.jar.Cookies(u, now)
	for _, c := range x.lent.Cookies(u, now) {
		if !slices.ContainsFunc(own, c.same) {
			own = append(own, c)
		}
	}
	slices.SortStableFunc(own, func(a, b *Cookie) int { return len(b.Path) - len(a.Path) })
	return CookieHeader(own)
}

// Now returns the time on the exchange's clock.
func (x *Exchange) Now() time.Time { return x.o.Now() }

// UserAgent returns what the exchange calls itself.
func (x *Exchange) UserAgent() string { return x.userAgent }

// Present adds a comment to what the exchange calls itself from now on, for
// gates that look for a word in it. A User-Agent that the site's configuration
// names stays as it is.
func (x *Exchange) Present(comment string) {
	if x.o.UserAgent == "" {
		x.userAgent = product() + " (" + comment + ")"
	}
}

// URL resolves a reference against the site's own URL. A reference that starts
// with "/" starts at the host; any other continues the URL's path.
func (x *Exchange) URL(ref string) (*url.URL, error) { return Resolve(x.o.Base, ref) }

// Below has the exchange go on at a path below the site's own URL, such as
// "/jira".
func (x *Exchange) Below(path string) { x.o.Base = Below(x.o.Base, path) }

// Below returns the URL at a path below another, such as "/jira", or that itself if
// the path is empty.
func Below(u *url.URL, path string) *url.URL {
	if path == "" {
		return u
	}
	b := *u
	if b.Path == "" {
		b.Path = "/" // or JoinPath leaves it out
	}
	return b.JoinPath(path)
}

// Resolve is Exchange.URL for a given site URL.
func Resolve(base *url.URL, ref string) (*url.URL, error) {
	r, err := url.Parse(ref)
	if err != nil {
		return nil, err
	}
	b := *base
	if !strings.HasSuffix(b.Path, "/") {
		b.Path, b.RawPath = b.Path+"/", ""
	}
	if ref == "" {
		b = *base
	}
	return b.ResolveReference(r), nil
}

// Response is the last response of a chain. Its Body is at most 1 MiB.
type Response struct {
	URL        *url.URL
	Status     int
	Header     http.Header
	Body       []byte
	Cut        bool // there was more of the body
	Challenges []Challenge
	// Negotiated says that a Negotiate token was accepted somewhere in the
	// chain.
	Negotiated bool
	// Mutual says that the service proved itself with a valid AP-REP.
	Mutual bool
	// SetCookies counts the Set-Cookie fields of the whole chain.
	SetCookies int

	received    time.Time         // by the exchange's clock
	certificate *x509.Certificate // that the site showed; nil without TLS
	spn         string            // for which tokens were made
	refusal     *api.Error        // why the last Negotiate token was not accepted
}

// Get requests a URL, follows redirects as far as they stay at allowed
// origins, and answers Negotiate challenges there. Every hop is judged from
// zero.
func (x *Exchange) Get(ctx context.Context, u *url.URL) (*Response, error) {
	return x.GetUntil(ctx, u, func(*url.URL) bool { return false })
}

// GetUntil is Get that does not go where end says: the redirect there is the last
// response.
func (x *Exchange) GetUntil(ctx context.Context, u *url.URL, end func(*url.URL) bool) (*Response, error) {
	var prev *url.URL
	var sum Response
	seen := map[string]int{}
	for range maxHops {
		if err := x.allow(prev, u); err != nil {
			return nil, err
		}
		if seen[u.String()]++; seen[u.String()] > 2 {
			break
		}
		r, err := x.negotiate(ctx, u)
		if err != nil {
			return nil, err
		}
		r.Negotiated = r.Negotiated || sum.Negotiated
		r.Mutual = r.Mutual || sum.Mutual
		r.SetCookies += sum.SetCookies
		sum = *r
		next := redirect(r)
		if next == nil || end(next) {
			return r, nil
		}
		prev, u = u, next
	}
	return nil, &api.Error{Code: api.RedirectLoop, Detail: "redirected without end, last to " + Shown(u),
		Remedy: "log in there with a browser to see where it should end; check url and login_url"}
}

// Request is one request of a driver.
type Request struct {
	Method string // "": GET
	URL    *url.URL
	Header http.Header // beside what every request has
	Body   []byte

	// token makes the Authorization field of a request over TLS for the
	// certificate that its connection shows. Called a second time it fails.
	token func(*x509.Certificate) (string, error)
}

// Send makes a request with the cookies alone: no token, no redirect.
func (x *Exchange) Send(ctx context.Context, r Request) (*Response, error) {
	if err := x.allow(nil, r.URL); err != nil {
		return nil, err
	}
	return x.send(ctx, r)
}

// Permit judges a step that a page at from leads to, the action of its form for
// one, as Follows judges a redirect.
func (x *Exchange) Permit(from, to *url.URL) error { return x.allow(from, to) }

// Follows returns where a response redirects to, nil if nowhere; an error if
// the exchange may not go there.
func (x *Exchange) Follows(r *Response) (*url.URL, error) {
	to := redirect(r)
	if to == nil {
		return nil, nil
	}
	return to, x.allow(r.URL, to)
}

// redirect returns where r leads, nil if nowhere.
func redirect(r *Response) *url.URL {
	switch r.Status {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
	default:
		return nil
	}
	loc := r.Header.Get("Location")
	if loc == "" {
		return nil
	}
	u, err := r.URL.Parse(loc)
	if err != nil {
		return nil
	}
	u.Fragment = ""
	return u
}

// allow judges one request before it is made; from leads there, or is nil.
func (x *Exchange) allow(from, u *url.URL) error {
	if from == nil {
		return x.o.Permit(u)
	}
	if from.Scheme == secureScheme && u.Scheme == "http" {
		return &api.Error{Code: api.InsecureRedirect, Detail: Shown(from) + " leads from https to " + OriginOf(u).String(),
			Remedy: "point url or login_url at a page that stays on https"}
	}
	if err := x.o.Permit(u); err != nil {
		e := *api.AsError(err)
		e.Detail = Shown(from) + " " + e.Detail
		return &e
	}
	return nil
}

// Permit reports whether credentials and cookies may go to u: an error's
// detail continues a sentence whose subject is what names u.
func (o Options) Permit(u *url.URL) error {
	if u.Scheme != "http" && u.Scheme != secureScheme || u.Hostname() == "" {
		return &api.Error{Code: api.SSORedirect, Detail: "leads to what is not a web address",
			Remedy: "check url, login_url and probe_url"}
	}
	to, base := OriginOf(u), OriginOf(o.Base)
	switch {
	case to.Scheme != secureScheme && !o.InsecureHTTP:
		return &api.Error{Code: api.InsecureRedirect, Detail: "leads to " + to.String() + ", where the session would go in clear",
			Remedy: "use https, or allow it for this site with insecure_http = true"}
	case u.User != nil:
		return &api.Error{Code: api.SSORedirect, Detail: "leads to a URL with a user name in it, at " + to.String(),
			Remedy: "point url or login_url at a page without that"}
	case to == base, slices.Contains(o.LoginHosts, to):
		return nil
	case to.Host == base.Host && base.Scheme == "http" && to.Scheme == secureScheme:
		return &api.Error{Code: api.InsecureRedirect, Detail: "leads to " + to.String() + ", but the site's url is http",
			Remedy: "write https in the site's url"}
	}
	return &api.Error{Code: api.SSORedirect, Detail: "leads to " + to.String() + ", which is not one of the site's hosts",
		Remedy: "if that host belongs to the login, add \"" + to.String() + "\" to the site's login_hosts"}
}

// send makes one request and keeps the cookies of its response.
func (x *Exchange) send(ctx context.Context, r Request) (*Response, error) {
	resp, err := x.ask(ctx, r)
	if err != nil {
		return nil, err
	}
	x.keep(resp)
	return resp, nil
}

// keep takes the cookies of a response.
func (x *Exchange) keep(r *Response) {
	jar := x.jar
	if x.lent != nil && slices.Contains(x.lenders, OriginOf(r.URL)) {
		jar = x.lent
	}
	jar.Set(r.URL, r.Header["Set-Cookie"], x.o.Now())
}

// roundTrip makes one request: directly, or as an attempt to get through the
// proxy. The cookies of its response are not yet kept.
func (x *Exchange) roundTrip(ctx context.Context, r Request, a *attempt) (*Response, error) {
	u := r.URL
	var content io.Reader
	if r.Body != nil {
		content = bytes.NewReader(r.Body)
	}
	var req *http.Request
	var unsent error // why there is no token, and with it no request
	traced := context.WithValue(ctx, attemptKey{}, a)
	if r.token != nil {
		// This is the last moment before the head goes out, and the only one that
		// knows which connection carries it: a new one, one that another request
		// has left, one in a tunnel.
		traced = httptrace.WithClientTrace(traced, &httptrace.ClientTrace{GotConn: func(c httptrace.GotConnInfo) {
			var value string
			value, unsent = r.token(c.Conn.(*tls.Conn).ConnectionState().PeerCertificates[0])
			if unsent != nil {
				c.Conn.Close() // nothing can be written after that
				return
			}
			req.Header.Set("Authorization", value)
		}})
	}
	req, err := http.NewRequestWithContext(traced, cmp.Or(r.Method, http.MethodGet), u.String(), content)
	if err != nil {
		return nil, &api.Error{Code: api.InvalidRequest, Detail: "no request can be made to " + Shown(u),
			Remedy: "check url, login_url and probe_url", Err: err}
	}
	if name := u.Hostname(); strings.ContainsFunc(name, func(r rune) bool { return r >= utf8.RuneSelf }) {
		// net/http tells proxies and the site another name than the one it dials
		// and Permit has judged: it does not map such letters (UTS 46).
		req.URL.Host = strings.Replace(u.Host, name, canonicalHost(name), 1)
		req.Host = req.URL.Host
	}
	req.Header.Set("User-Agent", x.userAgent)
	// Without Accept some gates answer a bare 401 (mod_auth_openidc).
	req.Header.Set("Accept", "text/html,application/json;q=0.9,*/*;q=0.8")
	// No cache on the way may answer for the site.
	req.Header.Set("Cache-Control", "no-cache")
	if x.o.ForwardedFor != "" {
		req.Header.Set("X-Forwarded-For", x.o.ForwardedFor)
	}
	if c := x.cookies(u); c != "" {
		req.Header.Set("Cookie", c)
	}
	if a := x.jar.Authorization(); !a.Empty() && OriginOf(u) == OriginOf(x.o.Base) {
		req.Header.Set("Authorization", a.Reveal())
	}
	maps.Copy(req.Header, r.Header)
	forwarded := a != nil && !a.tunnel // the proxy reads the request
	if forwarded {
		credentials, err := a.authorize()
		if err != nil {
			return nil, err
		}
		if credentials != "" {
			req.Header.Set(authorization, credentials)
		}
	}
	if r.token != nil || req.Header.Get("Authorization") != "" || req.Header.Get(authorization) != "" || r.Body != nil {
		// net/http sends a request again when a kept-alive connection breaks
		// under it; a token must not be sent twice, nor a password.
		x.transport.CloseIdleConnections()
	}
	failure := x.transportError
	if a != nil {
		failure = a.failure
	}
	resp, err := x.transport.RoundTrip(req)
	if unsent != nil {
		return nil, unsent
	}
	if err != nil {
		return nil, failure(ctx, u, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusSwitchingProtocols {
		// The body would be the connection itself, which heeds no context.
		return nil, &api.Error{Code: api.UnexpectedStatus, Detail: Shown(u) + " answers 101: it goes over to another protocol, for which nobody asked", Remedy: askAgain}
	}
	if forwarded {
		if err := a.judge(resp.StatusCode, resp.Header); err != nil {
			return nil, err
		}
	} else if resp.StatusCode == http.StatusProxyAuthRequired {
		return nil, &api.Error{Code: api.UnexpectedStatus, Detail: Shown(u) + " answers 407, as only a proxy on the way may",
			Remedy: "if there is one, name it as the site's proxy; else ask whoever runs the site"}
	}
	var body bytes.Buffer
	if _, err := io.Copy(&body, io.LimitReader(resp.Body, maxBodyBytes+1)); err != nil {
		return nil, failure(ctx, u, err)
	}
	cut := body.Len() > maxBodyBytes
	body.Truncate(min(body.Len(), maxBodyBytes))
	answer := &Response{
		Cut: cut,
		URL: u, Status: resp.StatusCode, Header: resp.Header, Body: body.Bytes(),
		Challenges: ParseChallenges(resp.Header["Www-Authenticate"]),
		SetCookies: len(resp.Header["Set-Cookie"]),
		received:   x.o.Now(),
	}
	if u.Scheme == secureScheme && resp.TLS != nil { // else the TLS is the proxy's
		answer.certificate = resp.TLS.PeerCertificates[0]
	}
	return answer, nil
}

// Shown is a web address as it may stand in a message: without query, fragment,
// user and parameters of the path (RFC 3986, section 3.3: ";jsessionid=…"),
// which may hold tokens, and in printable ASCII.
func Shown(u *url.URL) string {
	segments := strings.Split(u.Path, "/")
	for i, s := range segments {
		segments[i], _, _ = strings.Cut(s, ";")
	}
	return OriginOf(u).String() + (&url.URL{Path: strings.Join(segments, "/")}).EscapedPath()
}

// Bare starts a dialogue under the same rules without cookies and without
// tokens, to see what a stranger sees.
func (x *Exchange) Bare() *Exchange {
	o := x.o
	o.Negotiate = nil
	return NewExchange(o, new(Jar))
}
