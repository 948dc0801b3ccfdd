//go:debug x509usefallbackroots=1

package login

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/web"
)

// The redirect matrix: a site leads elsewhere in every way there is, with every
// status, while every kind of credential is on its way. What arrives anywhere is
// recorded, after TLS, and searched.

// turn is one way to lead elsewhere.
type turn struct {
	change string // of the origin, as the matrix counts it
	base   string // the site's origin
	host   string // base's host, as it is dialled
	to     string // the origin in the Location field
	code   api.Code
	// own says that to is another spelling of the site's own origin: it is
	// followed.
	own bool
}

var statuses = []int{302, 303, 307, 308}

var changes = []string{"scheme", "port", "sub-domain", "parent", "sibling", "foreign", "trailing dot", "case", "userinfo", "IDN", "IP"}

// turns are those of a site with that scheme.
func turns(scheme string) []turn {
	const jira = "jira.corp.example"
	other, port, otherPort := "http", "443", "80"
	if scheme == "http" {
		other, port, otherPort = "https", "80", "443"
	}
	at := func(change, host, to string, code api.Code) turn {
		return turn{change, scheme + "://" + host, host, to, code, code == ""}
	}
	away := func(change, to string) turn { return at(change, jira, scheme+"://"+to, api.SSORedirect) }
	same := func(change, to string) turn { return at(change, jira, scheme+"://"+to, "") }
	return []turn{
		at("scheme", jira, other+"://"+jira, api.InsecureRedirect),
		at("scheme", jira, other+"://"+jira+":"+port, api.InsecureRedirect),
		at("scheme", jira, "ftp://"+jira, api.SSORedirect),
		away("port", jira+":8443"),
		away("port", jira+":"+otherPort),
		same("port", jira+":"+port), // the default, said aloud
		away("sub-domain", "sub."+jira),
		at("sub-domain", jira, "//sub."+jira, api.SSORedirect),
		away("parent", "corp.example"),
		away("sibling", "wiki.corp.example"),
		away("sibling", "evil-"+jira),
		away("foreign", "evil.example"),
		away("foreign", jira+".evil.example"),
		// The same name of the DNS, said in full: a certificate has to be for it all the
		// same, and a ticket is for it.
		same("trailing dot", jira+"."),
		away("trailing dot", jira+".."),
		away("trailing dot", "evil.example."),
		same("case", "JIRA.Corp.Example"),
		at("case", jira, strings.ToUpper(scheme)+"://"+jira, ""),
		away("case", "EVIL.example"),
		away("userinfo", "user:pw@"+jira),
		away("userinfo", "user@"+jira),
		away("userinfo", jira+"@evil.example"),
		away("userinfo", jira+":"+port+"@evil.example"),
		away("IDN", "jir\u0430.corp.example"), // a Cyrillic letter
		away("IDN", "xn--jir-6cd.corp.example"),
		// A wide letter, which UTS 46 makes a "j": whoever judges, dials or asks a proxy
		// has to mean the same host.
		same("IDN", "\uff4aira.corp.example"),
		at("IDN", "xn--bcher-kva.corp.example", scheme+"://b\u00fccher.corp.example", ""),
		at("IDN", "xn--bcher-kva.corp.example", scheme+"://bucher.corp.example", api.SSORedirect),
		away("IP", "127.0.0.1"),
		away("IP", "[::1]"),
		// Other spellings of an address are not worked out.
		at("IP", "127.0.0.1", scheme+"://2130706433", api.SSORedirect),
		at("IP", "127.0.0.1", scheme+"://[::ffff:127.0.0.1]", api.SSORedirect),
		at("IP", "127.0.0.1", scheme+"://127.0.0.2", api.SSORedirect),
		at("IP", "[::1]", scheme+"://[0:0:0:0:0:0:0:1]", api.SSORedirect),
	}
}

// A secret is looked for in what arrives where it is not meant for.
type secretText struct{ text, owner string }

const (
	atSite, atProxy = "site", "proxy"

	bearer        = "CANARY-bearer"
	liveCookie    = "CANARY-session"
	siteToken     = "CANARY-site-token-" // of a length that base64 needs no padding for
	proxyToken    = "CANARY-proxy-token"
	proxyPassword = "CANARY-proxy-password"
	proxyAddress  = "proxy.corp.example:3128"
)

func base64Of(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

// secrets are all credentials of the matrix, as they look on the way.
var secrets = []secretText{
	{"CANARY-password", atSite}, {base64Of("build:CANARY-password"), atSite}, {base64Of(siteToken), atSite},
	{liveCookie, atSite}, {"CANARY-domain", atSite}, {bearer, atSite},
	{proxyPassword, atProxy}, {base64Of("robot:" + proxyPassword), atProxy}, {base64Of(proxyToken), atProxy},
}

// step is one way to go where a site leads, with a credential.
type step struct {
	credential string
	name       string
	// path is of the site's URL. What is below /before/ redirects everybody, below
	// /after/ who brings a credential.
	path string
	// proxy is the scheme that a proxy on the way asks for; "": there is none.
	proxy string
	// leads: it is the proxy that redirects.
	leads bool
	// negotiates: tokens may be sent to the site.
	negotiates bool
	run        func(ctx context.Context, x *web.Exchange) error
	// own is how the step ends when it is led to the site's own origin, away how
	// otherwise; nil: as the exchange judges.
	own, away func(t turn, status int) api.Code
	// text is the credential. It arrives where it belongs so many times when all
	// goes on there, and when it does not; -1: once or more.
	text           string
	sent, sentAway int
}

func always(c api.Code) func(turn, int) api.Code { return func(turn, int) api.Code { return c } }

// notAgain: a body with a password is not sent again.
func notAgain(_ turn, status int) api.Code {
	if status == http.StatusTemporaryRedirect || status == http.StatusPermanentRedirect {
		return api.UnexpectedStatus
	}
	return ""
}

func logIn(kind string, p Password) func(context.Context, *web.Exchange) error {
	return func(ctx context.Context, x *web.Exchange) error { return New(kind).Login(ctx, x, p) }
}

// logInBy is logIn at a product that takes passwords so.
func logInBy(kind, login string) func(context.Context, *web.Exchange) error {
	return func(ctx context.Context, x *web.Exchange) error {
		return memberOf(kind).driver(login).Login(ctx, x, new(lent))
	}
}

func get(ctx context.Context, x *web.Exchange) error {
	u, err := x.URL("")
	if err != nil {
		return err
	}
	_, err = x.Get(ctx, u)
	return err
}

// walk follows redirects by hand, as a driver does, with a header in each
// request, or only in the first.
func walk(h http.Header, each bool) func(context.Context, *web.Exchange) error {
	return func(ctx context.Context, x *web.Exchange) error {
		u, err := x.URL("")
		if err != nil {
			return err
		}
		r, err := x.Send(ctx, web.Request{URL: u, Header: h})
		if err != nil {
			return err
		}
		to, err := x.Follows(r)
		if err != nil {
			// A driver that does not ask is stopped as well.
			if u, err := r.URL.Parse(r.Header.Get("Location")); err == nil {
				if _, err := x.Send(ctx, web.Request{URL: u, Header: h}); err == nil {
					return fmt.Errorf("a request to %s goes out", web.Shown(u))
				}
			}
			return err
		}
		if !each {
			_, err = x.Get(ctx, to)
			return err
		}
		_, err = x.Send(ctx, web.Request{URL: to, Header: h})
		return err
	}
}

func probe(kind string) func(context.Context, *web.Exchange) error {
	return func(ctx context.Context, x *web.Exchange) error {
		_, err := driverOf(kind).Probe(ctx, x)
		return err
	}
}

func logOut(kind string) func(context.Context, *web.Exchange) error {
	return func(ctx context.Context, x *web.Exchange) error { return driverOf(kind).(Logouter).Logout(ctx, x) }
}

// driverOf is New with the options that a kind cannot be without.
func driverOf(kind string) Driver {
	if kind == "crucible" {
		return memberOf(kind).driver("")
	}
	return New(kind)
}

// steps are the matrix's third side.
func steps() []step {
	const password, negotiate, cookie, bear, proxy = "password", "Negotiate", "cookie", "bearer", "proxy"
	basic, token := base64Of("build:CANARY-password"), base64Of(siteToken)
	header := http.Header{"Authorization": {"Bearer " + bearer}}
	proxyBasic, proxyNegotiate := base64Of("robot:"+proxyPassword), base64Of(proxyToken)
	// A redirect as the answer to CONNECT leads nowhere.
	connect := func(t turn, _ int) api.Code {
		if strings.HasPrefix(t.base, "https:") {
			return api.ProxyError
		}
		return t.code
	}
	all := []step{
		{credential: password, name: "form", path: "/before/form", run: logIn("form", new(lent)), text: "CANARY-password", sent: 1},
		{credential: password, name: "form's answer", path: "/after/form", run: logIn("form", new(lent)), own: notAgain, text: "CANARY-password", sent: 1, sentAway: 1},
		{credential: password, name: "jira", path: "/before/jira", run: logIn("jira", new(lent)), own: always(api.UnexpectedStatus), text: "CANARY-password"},
		{credential: password, name: "jira's answer", path: "/after/jira", run: logIn("jira", new(lent)), own: always(api.UnexpectedStatus), text: "CANARY-password", sent: 1, sentAway: 1},
		{credential: password, name: "Basic", path: "/before/gate", run: logIn("spnego", new(lent)), text: basic, sent: 1},
		{credential: password, name: "Basic's answer", path: "/after/gate", run: logIn("spnego", new(lent)), text: basic, sent: 1, sentAway: 1},

		{credential: negotiate, name: "Get", path: "/before/gate", negotiates: true, run: get, text: token, sent: 1},
		{credential: negotiate, name: "Get's answer", path: "/after/gate", negotiates: true, run: get, text: token, sent: 1, sentAway: 1},
		{credential: negotiate, name: "spnego", path: "/before/gate", negotiates: true, run: logIn("spnego", nil), text: token, sent: 1},
		{credential: negotiate, name: "spnego's answer", path: "/after/gate", negotiates: true, run: logIn("spnego", nil), text: token, sent: 1, sentAway: 1},
		{credential: negotiate, name: "jira", path: "/before/jira", negotiates: true, run: logIn("jira", nil), text: token, sent: 1},
		{credential: negotiate, name: "jira's answer", path: "/after/jira", negotiates: true, run: logIn("jira", nil), text: token, sent: 1, sentAway: 1},
		{credential: negotiate, name: "Get through a proxy", path: "/before/gate", proxy: "Basic", negotiates: true, run: get, text: token, sent: 1},

		{credential: cookie, name: "Get", path: "/before/page", run: get, text: liveCookie, sent: 2, sentAway: 1},
		{credential: cookie, name: "Send", path: "/before/page", run: walk(nil, true), text: liveCookie, sent: 2, sentAway: 1},
		{credential: cookie, name: "probe of spnego", path: "/before/gate", run: probe("spnego"), own: always(api.Expired), away: always(api.Expired), text: liveCookie, sent: 1, sentAway: 1},
		{credential: cookie, name: "probe of jira", path: "/before/jira", run: probe("jira"), own: always(api.UnexpectedStatus), away: always(api.Expired), text: liveCookie, sent: 1, sentAway: 1},
		{credential: cookie, name: "logout of jira", path: "/before/jira", run: logOut("jira"), own: always(api.UnexpectedStatus), away: always(api.UnexpectedStatus), text: liveCookie, sent: 1, sentAway: 1},

		{credential: cookie, name: "Get through a proxy", path: "/before/page", proxy: "Basic", run: get, text: liveCookie, sent: 2, sentAway: 1},

		{credential: bear, name: "in each request", path: "/before/page", run: walk(header, true), text: bearer, sent: 2, sentAway: 1},
		{credential: bear, name: "in the first request", path: "/before/page", run: walk(header, false), text: bearer, sent: 1, sentAway: 1},

		{credential: proxy, name: "Basic", path: "/before/page", proxy: "Basic", run: get, text: proxyBasic, sent: -1, sentAway: -1},
		{credential: proxy, name: "Negotiate", path: "/before/page", proxy: "Negotiate", run: get, text: proxyNegotiate, sent: -1, sentAway: -1},
		{credential: proxy, name: "Basic, and the proxy leads", path: "/before/page", proxy: "Basic", leads: true, run: get, own: connect, away: connect, text: proxyBasic, sent: -1, sentAway: -1},
		{credential: proxy, name: "Negotiate, and the proxy leads", path: "/before/page", proxy: "Negotiate", leads: true, run: get, own: connect, away: connect, text: proxyNegotiate, sent: -1, sentAway: -1},
	}
	// Bitbucket and Bamboo are drivers as Confluence's, with other paths.
	for _, kind := range []string{"jira", "confluence", "crucible"} {
		before, after := "/before/"+kind, "/after/"+kind
		all = append(all,
			step{credential: password, name: kind + "'s form", path: before, run: logInBy(kind, byForm), text: "CANARY-password", sent: 1},
			step{credential: password, name: kind + "'s form's answer", path: after, run: logInBy(kind, byForm), own: notAgain, text: "CANARY-password", sent: 1, sentAway: 1})
		if kind != "crucible" {
			all = append(all,
				step{credential: password, name: kind + ", two-step", path: before, run: logInBy(kind, byTSV), own: always(api.UnexpectedStatus), text: "CANARY-password"},
				step{credential: password, name: kind + ", two-step, answer", path: after, run: logInBy(kind, byTSV), own: always(api.UnexpectedStatus), text: "CANARY-password", sent: 1, sentAway: 1})
		}
		if kind != "jira" {
			// The probe decides what the logout says, and it is led elsewhere, too.
			lives := always(map[string]api.Code{"confluence": api.UnexpectedStatus}[kind])
			all = append(all,
				step{credential: negotiate, name: kind, path: before, negotiates: true, run: logIn(kind, nil), text: token, sent: 1},
				step{credential: negotiate, name: kind + "'s answer", path: after, negotiates: true, run: logIn(kind, nil), text: token, sent: 1, sentAway: 1},
				step{credential: cookie, name: "probe of " + kind, path: before, run: probe(kind), own: always(cmp.Or(lives(turn{}, 0), api.Expired)), away: always(api.Expired), text: liveCookie, sent: 1, sentAway: 1},
				step{credential: cookie, name: "logout of " + kind, path: before, run: logOut(kind), own: lives, away: always(""), text: liveCookie, sent: 2, sentAway: 2})
		}
	}
	return all
}

// TestRedirectMatrix: no credential leaves its origin.
func TestRedirectMatrix(t *testing.T) {
	certificate, err := certify()
	if err != nil {
		t.Fatal(err)
	}
	type cell struct {
		change     string
		status     int
		credential string
	}
	cells, exchanges := map[cell]bool{}, 0
	for _, scheme := range []string{"https", "http"} {
		for _, turn := range turns(scheme) {
			for i, status := range statuses {
				if scheme == "http" && i%2 == 1 {
					continue // where every cell counts is https
				}
				for _, s := range steps() {
					name := fmt.Sprintf("%s, %s -> %s, %d, %s, %s", turn.change, turn.base, turn.to, status, s.credential, s.name)
					tread(t, name, certificate, turn, status, s)
					if scheme == "https" {
						cells[cell{turn.change, status, s.credential}] = true
					}
					exchanges++
				}
			}
		}
	}
	for _, change := range changes {
		for _, status := range statuses {
			for _, credential := range []string{"password", "Negotiate", "cookie", "bearer", "proxy"} {
				if !cells[cell{change, status, credential}] {
					t.Errorf("no cell for %s × %d × %s", change, status, credential)
				}
			}
		}
	}
	if len(cells) < 220 {
		t.Errorf("%d cells", len(cells))
	}
	t.Logf("%d cells, %d exchanges", len(cells), exchanges)
}

// tread goes one step where one turn leads.
func tread(t *testing.T, name string, certificate *tls.Config, turn turn, status int, s step) {
	t.Helper()
	base, err := url.Parse(turn.base + s.path)
	if err != nil {
		t.Fatal(err)
	}
	g := newGround(certificate, turn, status, s)
	site, proxy := &recordedTokens{prefix: siteToken}, &recordedTokens{prefix: proxyToken}
	o := web.Options{Base: base, InsecureHTTP: true, UserAgent: "test/1", Dial: g.dial}
	if s.negotiates {
		o.Negotiate = site
	}
	if s.proxy != "" {
		o.Proxy = &web.Proxy{URL: &url.URL{Scheme: "http", Host: proxyAddress}, InsecureBasic: true,
			Negotiate: proxy, Password: web.UserPassword(url.UserPassword("robot", proxyPassword))}
	}
	jar := new(web.Jar)
	if s.credential == "cookie" {
		jar.Set(base, []string{"s=" + liveCookie + "; Path=/", "d=CANARY-domain; Domain=corp.example; Path=/"}, time.Now())
	}
	x := web.NewExchange(o, jar)
	err = s.run(t.Context(), x)
	x.Close()
	g.close()
	code, end, sent := turn.code, s.away, s.sentAway
	if turn.own {
		end, sent = s.own, s.sent
	}
	if end != nil {
		code = end(turn, status)
	}
	if api.CodeOf(err) != code || code == "" && err != nil {
		t.Errorf("%s: %v, want %q", name, err, code)
	}
	if text := fmt.Sprint(err); strings.Contains(text, "CANARY") || strings.Contains(text, "pw@") {
		t.Errorf("%s: the message shows a secret: %s", name, text)
	}
	// Every request has had its answer, so all of it has been read.
	g.mu.Lock()
	defer g.mu.Unlock()
	arrived := 0
	scheme, _, _ := strings.Cut(turn.base, ":")
	for place, got := range g.arrived {
		owner := g.owner(place)
		for _, secret := range secrets {
			n := bytes.Count(got.Bytes(), []byte(secret.text))
			switch {
			// A proxy carries what is for an http site in clear.
			case n > 0 && owner != secret.owner && !(owner == atProxy && scheme == "http"):
				t.Errorf("%s: LEAK of %s (%s) to %s", name, s.credential, secret.text, place)
			case owner == secret.owner && secret.text == s.text:
				arrived += n
			}
		}
		if owner == "" {
			t.Errorf("%s: %d bytes to %s", name, got.Len(), place)
		}
	}
	if sent >= 0 && arrived != sent || sent < 0 && arrived == 0 {
		t.Errorf("%s: the credential arrives %d times where it belongs, want %d", name, arrived, sent)
	}
	for _, spn := range site.spns {
		if spn != "HTTP/"+strings.Trim(turn.host, "[]") {
			t.Errorf("%s: a token for %s", name, spn)
		}
	}
	if slices.ContainsFunc(proxy.spns, func(spn string) bool { return spn != "HTTP/proxy.corp.example" }) {
		t.Errorf("%s: the proxy's tokens are for %s", name, proxy.spns)
	}
}

// recordedTokens is a Negotiator that writes down for whom it made tokens.
type recordedTokens struct {
	prefix string
	spns   []string
}

func (n *recordedTokens) Initiate(_ context.Context, spn string, _ web.InitiateOptions) (web.Negotiation, error) {
	n.spns = append(n.spns, spn)
	return recordedToken(n.prefix + spn), nil
}

type recordedToken string

func (t recordedToken) Token() []byte             { return []byte(t) }
func (recordedToken) Verify([]byte) (bool, error) { return true, nil }

// ground is the whole network of one step: whatever address is dialled, there is a
// server, with TLS or without, as whoever comes begins. All of them are the
// site's twins, so that a login that goes astray would go on there.
type ground struct {
	turn   turn
	status int
	step   step

	server      *http.Server
	certificate *tls.Config
	running     sync.WaitGroup

	mu        sync.Mutex
	listeners map[string]net.Listener  // by address
	arrived   map[string]*bytes.Buffer // by SCHEME://ADDRESS, after TLS
}

func newGround(certificate *tls.Config, turn turn, status int, s step) *ground {
	g := &ground{turn: turn, status: status, step: s, certificate: certificate, listeners: map[string]net.Listener{}, arrived: map[string]*bytes.Buffer{}}
	g.server = &http.Server{
		Handler:  g,
		ErrorLog: log.New(io.Discard, "", 0),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, arrivalKey{}, c)
		},
	}
	return g
}

// close ends all servers, and waits for them.
func (g *ground) close() {
	g.server.Close()
	g.running.Wait()
}

// dial is web.Options.Dial.
func (g *ground) dial(ctx context.Context, network, address string) (net.Conn, error) {
	address = strings.ToLower(address)
	g.mu.Lock()
	l := g.listeners[address]
	if l == nil {
		var err error
		if l, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			g.mu.Unlock()
			return nil, err
		}
		g.listeners[address] = l
		g.running.Go(func() { g.server.Serve(arrivals{l, g, address}) })
	}
	g.mu.Unlock()
	return new(net.Dialer).DialContext(ctx, "tcp", l.Addr().String())
}

// owner says whose place SCHEME://ADDRESS is: of the site or of the proxy, or of
// somebody else.
func (g *ground) owner(place string) string {
	scheme, address, _ := strings.Cut(place, "://")
	if address == proxyAddress {
		return atProxy
	}
	host, port, _ := net.SplitHostPort(address)
	base, _, _ := strings.Cut(g.turn.base, "://")
	if scheme == base && port == map[string]string{"https": "443", "http": "80"}[base] &&
		strings.TrimSuffix(host, ".") == strings.Trim(g.turn.host, "[]") {
		return atSite
	}
	return ""
}

// arrivals makes every connection an arrival.
type arrivals struct {
	net.Listener
	g       *ground
	address string
}

func (l arrivals) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &arrival{Conn: c, g: l.g, address: l.address}, nil
}

type arrivalKey struct{}

// arrival is a connection at a server. It records what is read, and speaks TLS if
// the first byte is that of a handshake (RFC 8446, section 5.1).
type arrival struct {
	net.Conn
	g       *ground
	address string

	begin sync.Once
	plain net.Conn // what TLS protects
	place string
}

func (c *arrival) Read(p []byte) (int, error) {
	c.begin.Do(func() {
		first := make([]byte, 1)
		n, _ := io.ReadFull(c.Conn, first)
		c.plain, c.place = &begun{c.Conn, first[:n]}, "http://"+c.address
		if first[0] == 22 {
			c.plain, c.place = tls.Server(c.plain, c.g.certificate), "https://"+c.address
		}
	})
	n, err := c.plain.Read(p)
	c.g.mu.Lock()
	defer c.g.mu.Unlock()
	if c.g.arrived[c.place] == nil {
		c.g.arrived[c.place] = new(bytes.Buffer)
	}
	c.g.arrived[c.place].Write(p[:n])
	return n, err
}

func (c *arrival) Write(p []byte) (int, error) { return c.plain.Write(p) }

// begun is a connection of which something has been read.
type begun struct {
	net.Conn
	first []byte
}

func (c *begun) Read(p []byte) (int, error) {
	if len(c.first) > 0 {
		n := copy(p, c.first)
		c.first = c.first[n:]
		return n, nil
	}
	return c.Conn.Read(p)
}

// ServeHTTP is every server there is.
func (g *ground) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodConnect {
		b, _ := io.ReadAll(r.Body) // what breaks off is recorded as far as it came
		r.Body = io.NopCloser(bytes.NewReader(b))
	}
	place := r.Context().Value(arrivalKey{}).(*arrival).place
	owner := g.owner(place)
	when, page, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	if when != "before" && when != "after" {
		when, page = "", strings.TrimPrefix(r.URL.Path, "/")
	}
	brings := r.Header.Get("Authorization") != "" || r.Method == http.MethodPost
	switch {
	case owner == atProxy && r.Header.Get("Proxy-Authorization") == "":
		w.Header().Set("Proxy-Authenticate", cmp.Or(map[string]string{"Basic": `Basic realm="p"`}[g.step.proxy], "Negotiate"))
		w.WriteHeader(http.StatusProxyAuthRequired)
	case owner == atProxy && g.step.leads && (r.Method == http.MethodConnect || when == "before"):
		g.lead(w, "page")
	case owner == atProxy:
		g.pass(w, r)
	case owner == atSite && when == "before":
		g.lead(w, page)
	case owner == atSite && when == "after" && brings:
		w.Header().Add("Set-Cookie", "s="+liveCookie+"; Path=/")
		g.lead(w, page)
	default:
		g.page(w, r, page, owner, brings)
	}
}

func (g *ground) lead(w http.ResponseWriter, page string) {
	w.Header().Set("Location", g.turn.to+"/"+page)
	w.WriteHeader(g.status)
}

// page is what a site has, and its twins: a gate, a form, a Jira and a page.
func (g *ground) page(w http.ResponseWriter, r *http.Request, page, owner string, brings bool) {
	value := liveCookie
	if owner != atSite {
		value = "theirs"
	}
	_, err := r.Cookie("s")
	known := err == nil
	if brings {
		w.Header().Add("Set-Cookie", "s="+value+"; Path=/")
	}
	kind, at, _ := strings.Cut(page, "/")
	i := slices.IndexFunc(family, func(m member) bool { return m.kind == kind })
	switch {
	case i >= 0 && at == family[i].login && !known && !brings:
		w.Header()["Www-Authenticate"] = []string{"Negotiate"}
		w.Header().Set("X-AUSERNAME", "anonymous")
		w.WriteHeader(http.StatusUnauthorized)
		fmt.Fprintf(w, `<form method=post><input name=%s><input type=password name=%s></form>`, family[i].username, family[i].password)
	case i >= 0 && at == family[i].probe && kind != "jira" && !known:
		w.Header().Set("X-AUSERNAME", "anonymous")
		w.WriteHeader(http.StatusUnauthorized)
	case page == "gate":
		if !known && !brings {
			w.Header()["Www-Authenticate"] = []string{"Negotiate", `Basic realm="x"`}
			w.WriteHeader(http.StatusUnauthorized)
		}
	case page == "form" && !known && !brings:
		io.WriteString(w, `<form method=post><input name=u><input type=password name=p><button>Log in</button></form>`)
	case page == "jira/rest/auth/1/session" && brings:
		fmt.Fprintf(w, `{"session":{"name":"s","value":%q}}`, value)
	case page == "jira/rest/auth/1/session" && known:
		io.WriteString(w, `{"self":"x","name":"build"}`)
	case page == "jira/rest/auth/1/session":
		w.Header().Set("X-AUSERNAME", "anonymous")
		w.WriteHeader(http.StatusUnauthorized)
	default:
		io.WriteString(w, "welcome")
	}
}

// pass is what a proxy does (RFC 9110, sections 7.6 and 9.3.6).
func (g *ground) pass(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodConnect {
		r.Header.Del("Proxy-Authorization")
		r.RequestURI = ""
		out, err := (&http.Transport{DialContext: g.dial, DisableKeepAlives: true}).RoundTrip(r)
		if err != nil {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		defer out.Body.Close()
		for name, values := range out.Header {
			w.Header()[name] = values
		}
		w.WriteHeader(out.StatusCode)
		io.Copy(w, out.Body)
		return
	}
	site, err := g.dial(r.Context(), "tcp", r.Host)
	if err != nil {
		w.WriteHeader(http.StatusBadGateway)
		return
	}
	client, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(err)
	}
	io.WriteString(client, "HTTP/1.1 200 Connection established\r\n\r\n")
	pass := func(to io.Writer, from io.Reader) {
		io.Copy(to, from)
		site.Close()
		client.Close()
	}
	g.running.Go(func() { pass(site, rw) })
	g.running.Go(func() { pass(client, site) })
}

// certify makes a certificate for hosts, and the only one that this process
// trusts: the directive at the top of this file lets it replace the machine's
// authorities, which an exchange asks, once.
var certify = sync.OnceValues(func() (*tls.Config, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		DNSNames: []string{"jira.corp.example", "sub.jira.corp.example", "corp.example", "wiki.corp.example", "evil-jira.corp.example", "evil.example",
			"jira.corp.example.evil.example", "xn--jir-6cd.corp.example", "xn--bcher-kva.corp.example", "bucher.corp.example"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv4(127, 0, 0, 2), net.IPv6loopback},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	x509.SetFallbackRoots(pool)
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}, nil
})
