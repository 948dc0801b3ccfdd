package web

import (
	"bufio"
	"context"
	"crypto"
	"crypto/elliptic"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/secret"
)

// A gateway is a proxy on loopback (RFC 9110, sections 7.6 and 9.3.6). It asks
// for credentials with challenges, if there are any, until admit says yes to
// them; it removes them from what it passes on, and knows no token twice.
type gateway struct {
	*httptest.Server
	challenges []string
	admit      func(credentials string) bool
	refusal    string // the Proxy-Authenticate field after credentials; "": the challenges again
	proof      string // the Proxy-Authenticate field of what it lets through
	// connect answers CONNECT instead.
	connect func(http.ResponseWriter, *http.Request)

	mu       sync.Mutex
	requests []string // "METHOD scheme://host CREDENTIALS"
	seen     map[string]bool
	conns    map[string]bool
	tunnels  sync.WaitGroup
}

func newGateway(t *testing.T, g *gateway) *gateway {
	t.Helper()
	g.seen, g.conns = map[string]bool{}, map[string]bool{}
	g.Server = httptest.NewUnstartedServer(g)
	g.Config.ErrorLog = log.New(io.Discard, "", 0)
	t.Cleanup(func() { g.Close(); g.tunnels.Wait() })
	return g
}

func (g *gateway) start() *gateway { g.Start(); return g }

// credentials returns those of all requests, in their order, "-" for none.
func (g *gateway) credentials() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	var all []string
	for _, r := range g.requests {
		_, c, _ := strings.Cut(r[strings.Index(r, "//"):], " ")
		all = append(all, c)
	}
	return all
}

func (g *gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	credentials := r.Header.Get("Proxy-Authorization")
	target := "https://" + r.Host
	if r.Method != http.MethodConnect {
		target = r.URL.Scheme + "://" + r.URL.Host
	}
	g.mu.Lock()
	g.conns[r.RemoteAddr] = true
	if credentials == "" {
		credentials = "-"
	}
	g.requests = append(g.requests, r.Method+" "+target+" "+credentials)
	replayed := g.seen[credentials] && strings.HasPrefix(credentials, "Negotiate ")
	g.seen[credentials] = true
	g.mu.Unlock()
	if len(g.challenges) > 0 && (credentials == "-" || replayed || g.admit == nil || !g.admit(credentials)) {
		w.Header()["Proxy-Authenticate"] = g.challenges
		if credentials != "-" && g.refusal != "" {
			w.Header()["Proxy-Authenticate"] = []string{g.refusal}
		}
		w.Header().Set("Set-Cookie", "proxy=CANARY; path=/")
		w.WriteHeader(http.StatusProxyAuthRequired)
		return
	}
	if g.proof != "" {
		w.Header().Set("Proxy-Authenticate", g.proof)
	}
	switch {
	case r.Method != http.MethodConnect:
		r.Header.Del("Proxy-Authorization")
		r.RequestURI = ""
		out, err := (&http.Transport{DialContext: names, DisableKeepAlives: true}).RoundTrip(r)
		if err != nil {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		defer out.Body.Close()
		for name, values := range out.Header {
			w.Header()[name] = append(w.Header()[name], values...)
		}
		w.WriteHeader(out.StatusCode)
		io.Copy(w, out.Body)
	case g.connect != nil:
		g.connect(w, r)
	default:
		site, err := names(r.Context(), "tcp", r.Host)
		if err != nil {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		client, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			panic(err)
		}
		io.WriteString(client, "HTTP/1.1 200 Connection established\r\n")
		w.Header().Write(client)
		io.WriteString(client, "\r\n")
		pass := func(to io.Writer, from io.Reader) {
			io.Copy(to, from)
			site.Close()
			client.Close()
		}
		g.tunnels.Go(func() { pass(site, rw) })
		g.tunnels.Go(func() { pass(client, site) })
	}
}

// anyToken admits whoever has a token.
func anyToken(credentials string) bool { return strings.HasPrefix(credentials, "Negotiate ") }

const proxyPassword = "CANARY-proxy-password"

var basicCredentials = "Basic " + base64.StdEncoding.EncodeToString([]byte("robot:"+proxyPassword))

// ledger is a ProxyPassword that writes down what becomes of it.
type ledger struct {
	password string // "": proxyPassword
	err      error
	stands   error // what Refusal returns
	events   []string
}

func (*ledger) User() string { return "robot" }

func (l *ledger) Take(context.Context) (secret.String, error) {
	l.events = append(l.events, "take")
	if l.password != "" {
		return secret.New(l.password), l.err
	}
	return secret.New(proxyPassword), l.err
}

func (l *ledger) Refusal() error { return l.stands }

func (l *ledger) Accepted(ctx context.Context) {
	l.events = append(l.events, strings.TrimSpace("accepted "+errorText(ctx.Err())))
}

func (l *ledger) Refused(ctx context.Context, err error) {
	l.events = append(l.events, strings.TrimSpace("refused "+string(api.CodeOf(err))+" "+errorText(ctx.Err())))
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// A recorder is a site that remembers the fields that no site may see, and asks
// for Negotiate if it is told to.
type recorder struct {
	t    *testing.T
	gate *gate
	host string
	hits int
}

func (s *recorder) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.hits++
	dump := fmt.Sprint(r.Header, r.URL, r.Host)
	if strings.Contains(dump, "Proxy-") || strings.Contains(dump, "CANARY-proxy") || strings.Contains(dump, basicCredentials) {
		s.t.Errorf("the site sees what is for the proxy: %s", dump)
	}
	if s.host != "" && r.Host != s.host {
		s.t.Errorf("Host: %q, want %q", r.Host, s.host)
	}
	if s.gate != nil {
		s.gate.ServeHTTP(w, r)
	}
}

// sites runs a test with an http site and with an https site. The recorder
// serves both.
func sites(t *testing.T, run func(t *testing.T, s *recorder, u *url.URL, trust *tls.Config)) {
	ca := newAuthority(t, ecKey(t, elliptic.P256()))
	for _, scheme := range []string{"http", "https"} {
		t.Run(scheme, func(t *testing.T) {
			s := &recorder{t: t}
			u := (*url.URL)(nil)
			if scheme == "http" {
				u = serve(t, s.ServeHTTP)
			} else {
				u = serveTLS(t, s.ServeHTTP, ca.issue(t, x509.ECDSAWithSHA256))
			}
			s.host = u.Host
			run(t, s, u, ca.trust())
		})
	}
}

// noCanary looks for secrets in what a person would read.
func noCanary(t *testing.T, err error) {
	t.Helper()
	if err == nil {
		return
	}
	e := api.AsError(err)
	if text := fmt.Sprintf("%v %s %s", err, e.Detail, e.Remedy); strings.Contains(text, "CANARY") {
		t.Errorf("a message holds a secret: %s", text)
	}
}

// TestTwoRealms: site and proxy both want Negotiate, each with its own
// principal. The proxy is asked without credentials first; after that it gets a
// token at once, a new one for each request or tunnel, on a new connection.
func TestTwoRealms(t *testing.T) {
	sites(t, func(t *testing.T, s *recorder, u *url.URL, trust *tls.Config) {
		s.gate = &gate{answers: []verdict{{401, ""}, {200, "good"}}}
		g := newGateway(t, &gateway{challenges: []string{`Basic realm="p, q"`, "negotiate"}, admit: anyToken}).start()
		site, proxy, password := &tokens{}, &tokens{name: "proxy-"}, &ledger{}
		x := secureExchange(t, Options{Base: u, InsecureHTTP: true, Negotiate: site, Proxy: &Proxy{URL: at(t, g.URL), Negotiate: proxy, Password: password}}, trust)
		r, err := x.Get(t.Context(), u)
		if err != nil || r.Status != 200 || !r.Mutual {
			t.Fatalf("%+v %v", r, err)
		}
		if got := x.Jar().Header(u, time.Now()); got != "s=2" {
			t.Errorf("cookies: %q", got)
		}
		if want := []string{"HTTP/app.corp.example", "HTTP/app.corp.example"}; !slices.Equal(site.spns, want) {
			t.Errorf("the site's SPNs: %q", site.spns)
		}
		if want := []string{"HTTP/127.0.0.1", "HTTP/127.0.0.1", "HTTP/127.0.0.1"}; !slices.Equal(proxy.spns, want) {
			t.Errorf("the proxy's SPNs: %q", proxy.spns)
		}
		if slices.Contains(proxy.fresh, true) {
			t.Errorf("new service ticket for the proxy: %v", proxy.fresh)
		}
		want := []string{"-", answer("CANARY-proxy-token-1"), answer("CANARY-proxy-token-2"), answer("CANARY-proxy-token-3")}
		if got := g.credentials(); !slices.Equal(got, want) {
			t.Errorf("the proxy saw %q", got)
		}
		if len(g.conns) != 4 {
			t.Errorf("%d connections for 4 requests", len(g.conns))
		}
		if password.events != nil {
			t.Errorf("Basic, though Negotiate was at hand: %q", password.events)
		}
		if u.Scheme == "https" && site.options[0].Bindings == nil {
			t.Error("not bound to the site's certificate")
		}
		// A stranger goes through the proxy too, as somebody new.
		bare := x.Bare()
		defer bare.Close()
		bare.transport.TLSClientConfig = trust
		if r, err := bare.Send(t.Context(), Request{URL: u}); err != nil || r.Status != 401 {
			t.Errorf("%+v %v", r, err)
		}
		if got := g.credentials()[4:]; !slices.Equal(got, []string{"-", answer("CANARY-proxy-token-4")}) {
			t.Errorf("then the proxy saw %q", got)
		}
	})
}

// TestProxySPN: the proxy's configured SPN is for the proxy, the site's for the
// site.
func TestProxySPN(t *testing.T) {
	sites(t, func(t *testing.T, s *recorder, u *url.URL, trust *tls.Config) {
		s.gate = &gate{answers: []verdict{{200, "good"}}}
		g := newGateway(t, &gateway{challenges: []string{"Negotiate"}, admit: anyToken}).start()
		site, proxy := &tokens{}, &tokens{name: "proxy-"}
		x := secureExchange(t, Options{Base: u, InsecureHTTP: true, Negotiate: site, SPN: "HTTP/site", Proxy: &Proxy{URL: at(t, g.URL), Negotiate: proxy, SPN: "HTTP/proxy", Mutual: MutualOff}}, trust)
		if _, err := x.Get(t.Context(), u); err != nil {
			t.Fatal(err)
		}
		if o := proxy.options[0]; proxy.spns[0] != "HTTP/proxy" || !o.Exact || o.Mutual || o.Bindings != nil {
			t.Errorf("for the proxy: %q %+v", proxy.spns, o)
		}
		if o := site.options[0]; site.spns[0] != "HTTP/site" || !o.Exact || !o.Mutual {
			t.Errorf("for the site: %q %+v", site.spns, o)
		}
	})
	// Without one, another name of the proxy's host is tried only where nobody has
	// to prove that he is the service.
	for policy, exact := range map[MutualPolicy]bool{MutualOff: false, MutualIfOffered: false, MutualRequired: true} {
		g := newGateway(t, &gateway{challenges: []string{"Negotiate"}, admit: anyToken}).start()
		proxy := &tokens{}
		u := at(t, "http://site.example/")
		x := secureExchange(t, Options{Base: u, InsecureHTTP: true, Proxy: &Proxy{URL: at(t, g.URL), Negotiate: proxy, Mutual: policy}}, nil)
		// What becomes of the request is other tests' matter.
		_, _ = x.Get(t.Context(), u)
		if len(proxy.options) == 0 || proxy.options[0].Exact != exact {
			t.Errorf("%s: %+v", policy, proxy.options)
		}
	}
}

// TestProxyBasic: the password is lent once, goes with every later request, and
// never to the site.
func TestProxyBasic(t *testing.T) {
	sites(t, func(t *testing.T, s *recorder, u *url.URL, trust *tls.Config) {
		s.gate = &gate{answers: []verdict{{200, "good"}}}
		g := newGateway(t, &gateway{challenges: []string{"Negotiate", `Basic realm="p"`}, admit: func(c string) bool { return c == basicCredentials }}).start()
		password := &ledger{}
		x := secureExchange(t, Options{Base: u, InsecureHTTP: true, Negotiate: &tokens{}, Proxy: &Proxy{URL: at(t, g.URL), Password: password}}, trust)
		if r, err := x.Get(t.Context(), u); err != nil || r.Status != 200 {
			t.Fatalf("%+v %v", r, err)
		}
		if r, err := x.Send(t.Context(), Request{Method: "POST", URL: u, Body: []byte("x")}); err != nil || r.Status != 401 {
			t.Fatalf("%+v %v", r, err)
		}
		if got := g.credentials(); !slices.Equal(got, []string{"-", basicCredentials, basicCredentials, basicCredentials}) {
			t.Errorf("the proxy saw %q", got)
		}
		if !slices.Equal(password.events, []string{"take", "accepted"}) {
			t.Errorf("%q", password.events)
		}
	})
}

// TestProxyEndless: a proxy that asks for ever gets two tokens, or one password,
// in the life of an exchange.
func TestProxyEndless(t *testing.T) {
	sites(t, func(t *testing.T, s *recorder, u *url.URL, trust *tls.Config) {
		for _, c := range []struct {
			name, challenge, refusal string
			want                     []string
			fresh                    []bool
			events                   []string
			says                     string
		}{
			{"Negotiate", "Negotiate", "", []string{"-", answer("CANARY-proxy-token-1"), answer("CANARY-proxy-token-2")}, []bool{false, true}, nil, "without saying why"},
			{"reason", "Negotiate", answer("refused"), []string{"-", answer("CANARY-proxy-token-1"), answer("CANARY-proxy-token-2")}, []bool{false, true}, nil, "service_key_mismatch"},
			{"other scheme next", "Negotiate", "NTLM", []string{"-", answer("CANARY-proxy-token-1")}, []bool{false}, nil, "without saying why"},
			{"no fallback", "Negotiate", `Basic realm="x"`, []string{"-", answer("CANARY-proxy-token-1")}, []bool{false}, nil, "without saying why"},
			{"Basic", `Basic realm="x"`, "", []string{"-", basicCredentials}, nil, []string{"take", "refused proxy_auth_failed"}, "the password of robot"},
		} {
			g := newGateway(t, &gateway{challenges: []string{c.challenge}, refusal: c.refusal}).start()
			proxy, password := &tokens{name: "proxy-"}, &ledger{}
			x := secureExchange(t, Options{Base: u, InsecureHTTP: true, Proxy: &Proxy{URL: at(t, g.URL), Negotiate: proxy, Password: password}}, trust)
			for range 3 {
				_, err := x.Get(t.Context(), u)
				want(t, err, api.ProxyAuthFailed)
				noCanary(t, err)
				e := api.AsError(err)
				if text := e.Detail + string(api.CodeOf(e.Err)); !strings.Contains(text, "the proxy "+g.URL) || !strings.Contains(text, c.says) {
					t.Errorf("%s: %v (%v)", c.name, err, e.Err)
				}
			}
			if got := g.credentials(); !slices.Equal(got, c.want) {
				t.Errorf("%s: the proxy saw %q, want %q", c.name, got, c.want)
			}
			if !slices.Equal(proxy.fresh, c.fresh) || !slices.Equal(password.events, c.events) {
				t.Errorf("%s: tokens %v, password %q", c.name, proxy.fresh, password.events)
			}
			if x.Jar().Len() != 0 {
				t.Errorf("%s: a refusing proxy has set a cookie", c.name)
			}
		}
		if s.hits != 0 {
			t.Errorf("%d requests reached the site", s.hits)
		}
	})
}

// TestProxySecondToken: a stale service ticket for the proxy is replaced.
func TestProxySecondToken(t *testing.T) {
	sites(t, func(t *testing.T, s *recorder, u *url.URL, trust *tls.Config) {
		stale := []string{answer("CANARY-proxy-token-1"), answer("CANARY-proxy-token-2"), answer("CANARY-proxy-token-4")}
		g := newGateway(t, &gateway{challenges: []string{"Negotiate"}, admit: func(c string) bool { return !slices.Contains(stale, c) }}).start()
		proxy := &tokens{name: "proxy-"}
		p := &Proxy{URL: at(t, g.URL), Negotiate: proxy}
		x := secureExchange(t, Options{Base: u, InsecureHTTP: true, Proxy: p}, trust)
		_, err := x.Get(t.Context(), u)
		want(t, err, api.ProxyAuthFailed)
		x = secureExchange(t, Options{Base: u, InsecureHTTP: true, Proxy: p}, trust)
		if _, err := x.Get(t.Context(), u); err != nil { // token 3
			t.Fatal(err)
		}
		if _, err := x.Send(t.Context(), Request{URL: u, Body: []byte("x")}); err != nil { // tokens 4 and 5
			t.Fatal(err)
		}
		if !slices.Equal(proxy.fresh, []bool{false, true, false, false, true}) {
			t.Errorf("%v", proxy.fresh)
		}
		if s.hits != 2 {
			t.Errorf("%d requests reached the site", s.hits)
		}
	})
}

// TestProxyAuthRequired: nothing to answer with, or nothing that may go there.
func TestProxyAuthRequired(t *testing.T) {
	sites(t, func(t *testing.T, s *recorder, u *url.URL, trust *tls.Config) {
		many := make([]string, 10_000)
		for i := range many {
			many[i] = fmt.Sprintf("x%d", i)
		}
		for _, c := range []struct {
			name       string
			challenges []string
			proxy      Proxy
			user       string
			says       string
		}{
			{"no credential", []string{"Negotiate", `Basic realm="x"`}, Proxy{}, "", "asks for negotiate, basic"},
			{"another scheme", []string{`Digest realm="x", nonce="y"`, "NTLM"}, Proxy{Negotiate: &tokens{}, Password: &ledger{}}, "", "asks for digest, ntlm"},
			{"no challenge", []string{""}, Proxy{Negotiate: &tokens{}}, "", "does not say"},
			{"10,000 challenges", []string{strings.Join(many, ",")}, Proxy{Negotiate: &tokens{}}, "", "x0, x1, x2, x3, x4, x5, x6, x7 and others"},
			{"password in clear", []string{`Basic realm="x"`}, Proxy{URL: at(t, "http://proxy.corp.example"), Password: &ledger{}}, "", "in clear"},
			{"password of a URL", []string{"Basic"}, Proxy{URL: at(t, "http://robot:CANARY-proxy-password@127.0.0.1")}, "", "asks for basic"},
			{"user with a colon", []string{"Basic"}, Proxy{Password: UserPassword(url.UserPassword("a:b", proxyPassword))}, "", "colon"},
		} {
			g := newGateway(t, &gateway{challenges: c.challenges}).start()
			p := c.proxy
			if p.URL == nil {
				p.URL = at(t, g.URL)
			} else {
				p.URL = &url.URL{Scheme: "http", User: p.URL.User, Host: p.URL.Hostname() + ":" + at(t, g.URL).Port()}
			}
			x := secureExchange(t, Options{Base: u, InsecureHTTP: true, Proxy: &p}, trust)
			for range 2 {
				_, err := x.Get(t.Context(), u)
				if want(t, err, api.ProxyAuthRequired); err == nil || !strings.Contains(err.Error(), "the proxy "+OriginOf(p.URL).String()+" ") || !strings.Contains(err.Error(), c.says) || len(err.Error()) > 300 {
					t.Errorf("%s: %v", c.name, err)
				}
				noCanary(t, err)
			}
			if got := g.credentials(); !slices.Equal(got, []string{"-"}) {
				t.Errorf("%s: the proxy saw %q", c.name, got)
			}
			if l, ok := p.Password.(*ledger); ok && l.events != nil {
				t.Errorf("%s: %q", c.name, l.events)
			}
		}
	})
}

// TestProxyTooManyChallenges: a head beyond all limits is cut off, not read.
func TestProxyTooManyChallenges(t *testing.T) {
	sites(t, func(t *testing.T, s *recorder, u *url.URL, trust *tls.Config) {
		g := newGateway(t, &gateway{challenges: slices.Repeat([]string{`Negotiate realm="xxxxxxxxxx"`}, 10_000)}).start()
		proxy := &tokens{}
		x := secureExchange(t, Options{Base: u, InsecureHTTP: true, Proxy: &Proxy{URL: at(t, g.URL), Negotiate: proxy}}, trust)
		_, err := x.Get(t.Context(), u)
		if code := api.CodeOf(err); code != api.ProxyError && code != api.NetworkError || !strings.Contains(err.Error(), "the proxy "+g.URL) || proxy.spns != nil {
			t.Errorf("%v, tokens %q", err, proxy.spns)
		}
	})
}

// TestInsecureBasic: a password goes in clear to another machine only if that
// is allowed; over TLS it may go anywhere.
func TestInsecureBasic(t *testing.T) {
	ca := newAuthority(t, ecKey(t, elliptic.P256()))
	sites(t, func(t *testing.T, s *recorder, u *url.URL, trust *tls.Config) {
		s.gate = &gate{answers: []verdict{{200, "good"}}}
		trust.RootCAs.AddCert(ca.cert)
		for _, scheme := range []string{"http", "https"} {
			g := newGateway(t, &gateway{challenges: []string{"Basic"}, admit: func(c string) bool { return c == basicCredentials }})
			if scheme == "https" {
				g.TLS = &tls.Config{Certificates: []tls.Certificate{ca.issue(t, x509.ECDSAWithSHA256)}}
				g.StartTLS()
			} else {
				g.Start()
			}
			to := at(t, g.URL)
			to.Host = "proxy.corp.example:" + to.Port()
			password, site := &ledger{}, &tokens{}
			x := secureExchange(t, Options{Base: u, InsecureHTTP: true, Negotiate: site, Proxy: &Proxy{URL: to, Password: password, InsecureBasic: scheme == "http"}}, trust)
			if r, err := x.Get(t.Context(), u); err != nil || r.Status != 200 {
				t.Errorf("%s: %+v %v", scheme, r, err)
			}
			if !slices.Equal(password.events, []string{"take", "accepted"}) {
				t.Errorf("%s: %q", scheme, password.events)
			}
			if u.Scheme == "http" && site.options[0].Bindings != nil {
				t.Errorf("%s: the token for an http site is bound to the proxy's certificate", scheme)
			}
		}
	})
	for raw, clear := range map[string]bool{"http://localhost:3128": false, "http://127.0.0.2": false, "http://[::1]:1": false, "https://proxy": false,
		"http://proxy": true, "http://10.0.0.1": true, "http://localhost.evil.example": true, "http://127.0.0.1.evil.example": true} {
		if got := InClear(at(t, raw)); got != clear {
			t.Errorf("%s in clear: %t", raw, got)
		}
	}
}

// TestSites407: what only a proxy may say has no effect when a site says it,
// directly or through a tunnel.
func TestSites407(t *testing.T) {
	sites(t, func(t *testing.T, s *recorder, u *url.URL, trust *tls.Config) {
		hostile := func(w http.ResponseWriter, r *http.Request) {
			s.ServeHTTP(w, r)
			w.Header()["Proxy-Authenticate"] = []string{"Negotiate", `Basic realm="x"`}
			w.Header().Set("Set-Cookie", "s=1")
			w.WriteHeader(407)
		}
		var to *url.URL
		if u.Scheme == "http" {
			to = serve(t, hostile)
		} else {
			ca := newAuthority(t, ecKey(t, elliptic.P256()))
			trust.RootCAs.AddCert(ca.cert)
			to = serveTLS(t, hostile, ca.issue(t, x509.ECDSAWithSHA256))
		}
		s.host = to.Host
		g := newGateway(t, &gateway{}).start()
		for _, through := range []bool{false, true} {
			proxy, password := &tokens{}, &ledger{}
			o := Options{Base: to, InsecureHTTP: true, Negotiate: &tokens{}}
			if through {
				if to.Scheme == "http" {
					continue // a forwarded 407 is the proxy's, as far as anybody can tell
				}
				o.Proxy = &Proxy{URL: at(t, g.URL), Negotiate: proxy, Password: password}
			}
			x := secureExchange(t, o, trust)
			_, err := x.Get(t.Context(), to)
			want(t, err, api.UnexpectedStatus)
			if proxy.spns != nil || password.events != nil || x.Jar().Len() != 0 {
				t.Errorf("through a proxy %t: tokens %q, password %q, %d cookies", through, proxy.spns, password.events, x.Jar().Len())
			}
		}
		if want := 1; u.Scheme == "http" && s.hits != want || u.Scheme == "https" && s.hits != 2 {
			t.Errorf("%d requests", s.hits)
		}
	})
}

// TestConnectAnswers: what a proxy may answer to CONNECT instead of a tunnel.
func TestConnectAnswers(t *testing.T) {
	write := func(answer string) func(http.ResponseWriter, *http.Request) {
		return func(w http.ResponseWriter, _ *http.Request) {
			c, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			io.WriteString(c, answer)
			c.Close()
		}
	}
	var toProxy int
	for name, c := range map[string]struct {
		answer string
		code   api.Code
		says   string
	}{
		"redirect":          {"HTTP/1.1 302 CANARY\r\nLocation: https://CANARY.example/\r\nSet-Cookie: s=CANARY\r\nContent-Length: 0\r\n\r\n", api.ProxyError, "answers 302"},
		"forbidden":         {"HTTP/1.1 403 CANARY\r\nContent-Length: 6\r\n\r\nCANARY", api.ProxyError, "answers 403"},
		"bad gateway":       {"HTTP/1.1 502 CANARY\r\n\r\n", api.ProxyError, "answers 502"},
		"unavailable":       {"HTTP/1.1 503 CANARY\r\n\r\n", api.ProxyError, "answers 503"},
		"gateway timeout":   {"HTTP/1.1 504\r\n\r\n", api.ProxyError, "answers 504"},
		"created":           {"HTTP/1.1 201 CANARY\r\n\r\n", api.ProxyError, "answers 201"},
		"401":               {"HTTP/1.1 401 CANARY\r\nWWW-Authenticate: Negotiate\r\n\r\n", api.ProxyError, "answers 401"},
		"no HTTP":           {"CANARY\r\n\r\n", api.ProxyError, "not HTTP"},
		"nothing":           {"", api.ProxyError, "closed"},
		"too long":          {"HTTP/1.1 200 OK\r\nX: " + strings.Repeat("CANARY", maxHeaderBytes), api.ProxyError, "no answer"},
		"plain HTTP behind": {"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 200 CANARY\r\nSet-Cookie: s=CANARY\r\nContent-Length: 0\r\n\r\n", api.NetworkError, "through the proxy"},
	} {
		g := newGateway(t, &gateway{connect: write(c.answer)}).start()
		u := at(t, "https://app.corp.example/")
		x := secureExchange(t, Options{Base: u, Negotiate: &tokens{}, Proxy: &Proxy{URL: at(t, g.URL)}}, nil)
		_, err := x.Get(t.Context(), u)
		if want(t, err, c.code); err == nil || !strings.Contains(err.Error(), "the proxy "+g.URL) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
		noCanary(t, err)
		if x.Jar().Len() != 0 {
			t.Errorf("%s: cookies", name)
		}
		toProxy += len(g.credentials())
	}
	if toProxy != 11 {
		t.Errorf("%d requests for 11 answers", toProxy)
	}
}

// TestPlainBehindConnect: a proxy that opens a tunnel to itself and waits for
// TLS before it speaks HTTP.
func TestPlainBehindConnect(t *testing.T) {
	g := newGateway(t, &gateway{connect: func(w http.ResponseWriter, _ *http.Request) {
		c, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
		rw.Reader.Peek(1) // the ClientHello
		io.WriteString(c, "HTTP/1.1 200 OK\r\nSet-Cookie: s=CANARY\r\nContent-Length: 0\r\n\r\n")
	}}).start()
	u := at(t, "https://app.corp.example/")
	x := secureExchange(t, Options{Base: u, Negotiate: &tokens{}, Proxy: &Proxy{URL: at(t, g.URL)}}, nil)
	_, err := x.Get(t.Context(), u)
	if want(t, err, api.TLSError); err == nil || !strings.Contains(err.Error(), "https://app.corp.example does not speak TLS, through the proxy "+g.URL) {
		t.Errorf("%v", err)
	}
	noCanary(t, err)
}

// TestProxyOutOfReach: it is the proxy that is named, not the site.
func TestProxyOutOfReach(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	nobody := "127.0.0.1:" + fmt.Sprint(l.Addr().(*net.TCPAddr).Port)
	plain := newGateway(t, &gateway{}).start()
	stranger := newGateway(t, &gateway{})
	stranger.StartTLS() // an unknown authority
	for _, site := range []string{"http://app.corp.example/", "https://app.corp.example/"} {
		for proxy, c := range map[string]struct {
			dial func(context.Context, string, string) (net.Conn, error)
			says string
		}{
			"http://" + nobody: {nil, "connection refused"},
			"http://proxy.invalid:3128": {func(context.Context, string, string) (net.Conn, error) {
				return nil, &net.DNSError{Err: "no such host", Name: "proxy.invalid", IsNotFound: true}
			}, "does not resolve"},
			"https://" + at(t, plain.URL).Host: {nil, "does not speak TLS"},
			stranger.URL:                       {nil, "unknown authority"},
		} {
			u := at(t, site)
			x := NewExchange(Options{Base: u, InsecureHTTP: true, Dial: c.dial, Proxy: &Proxy{URL: at(t, proxy)}}, new(Jar))
			_, err := x.Get(t.Context(), u)
			x.Close()
			if want(t, err, api.ProxyError); err == nil || !strings.Contains(err.Error(), "the proxy "+proxy) || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "app.corp") {
				t.Errorf("%s through %s: %v", site, proxy, err)
			}
		}
	}
}

// TestSilentProxy: it costs the time of its caller and no more; nothing of it
// stays after Close, which goleak sees.
func TestSilentProxy(t *testing.T) {
	sites(t, func(t *testing.T, s *recorder, u *url.URL, trust *tls.Config) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		asked, ended := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(ended)
			c, err := l.Accept()
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			http.ReadRequest(bufio.NewReader(c))
			close(asked)
			io.Copy(io.Discard, c) // until the agent hangs up
		}()
		ctx, cancel := context.WithCancel(t.Context())
		x := secureExchange(t, Options{Base: u, InsecureHTTP: true, Proxy: &Proxy{URL: at(t, "http://"+l.Addr().String()), Negotiate: &tokens{}}}, trust)
		go func() { <-asked; cancel() }()
		_, err = x.Get(ctx, u)
		if err == nil || !strings.Contains(err.Error(), "the proxy http://"+l.Addr().String()) {
			t.Errorf("%v", err)
		}
		x.Close()
		<-ended
		l.Close()
	})
}

// TestHelpless: trouble with the proxy's credential does not look like the
// site's word about the site's, and is no reason to try another scheme.
func TestHelpless(t *testing.T) {
	sites(t, func(t *testing.T, s *recorder, u *url.URL, trust *tls.Config) {
		g := newGateway(t, &gateway{challenges: []string{"Negotiate, Basic"}, admit: anyToken}).start()
		for of, code := range map[api.Code]api.Code{
			api.KDCUnreachable: api.ProxyError, api.Timeout: api.ProxyError, api.NoSecret: api.ProxyAuthRequired, api.BadCredentials: api.ProxyAuthFailed,
			api.PasswordExpired: api.ProxyAuthFailed, api.Latched: api.ProxyAuthFailed, api.KeytabUnreadable: api.ProxyAuthFailed, api.SPNUnknown: api.ProxyAuthFailed,
		} {
			cause := &api.Error{Code: of, Detail: "the cause"}
			password := &ledger{err: cause}
			for _, p := range []*Proxy{{Negotiate: &tokens{err: cause}, Password: password}, {Password: password}} {
				p.URL = at(t, g.URL)
				before := len(g.credentials())
				x := secureExchange(t, Options{Base: u, InsecureHTTP: true, Proxy: p}, trust)
				_, err := x.Get(t.Context(), u)
				if want(t, err, code); err == nil || !strings.Contains(err.Error(), "no credentials for the proxy "+g.URL+": the cause") || !errors.Is(err, cause) {
					t.Errorf("%s: %v", of, err)
				}
				if got := g.credentials()[before:]; !slices.Equal(got, []string{"-"}) {
					t.Errorf("%s: the proxy saw %q", of, got)
				}
				if p.Negotiate != nil && password.events != nil {
					t.Errorf("%s: a password instead: %q", of, password.events)
				}
			}
			if !slices.Equal(password.events, []string{"take"}) {
				t.Errorf("%s: %q", of, password.events)
			}
		}
	})
}

// TestProxyMutual is the table of what each policy makes of a proxy's answer.
func TestProxyMutual(t *testing.T) {
	sites(t, func(t *testing.T, s *recorder, u *url.URL, trust *tls.Config) {
		for _, c := range []struct {
			policy MutualPolicy
			proof  string
			code   api.Code
		}{
			{"", "", ""}, {"", answer("good"), ""}, {"", answer("accepted"), ""}, {"", answer("forged"), api.MutualAuthFailed},
			{MutualOff, answer("forged"), ""}, {MutualRequired, "", api.MutualAuthFailed}, {MutualRequired, answer("accepted"), api.MutualAuthFailed},
			{MutualRequired, "Negotiate, " + answer("good"), ""},
		} {
			s.gate = &gate{answers: []verdict{{200, "good"}}}
			g := newGateway(t, &gateway{challenges: []string{"Negotiate"}, admit: anyToken, proof: c.proof}).start()
			x := secureExchange(t, Options{Base: u, InsecureHTTP: true, Negotiate: &tokens{}, Proxy: &Proxy{URL: at(t, g.URL), Negotiate: &tokens{}, Mutual: c.policy}}, trust)
			_, err := x.Get(t.Context(), u)
			if want(t, err, c.code); api.CodeOf(err) != c.code {
				t.Errorf("%q, %q: %v", c.policy, c.proof, err)
			}
			if err != nil && x.Jar().Len() != 0 {
				t.Errorf("%q, %q: cookies", c.policy, c.proof)
			}
		}
	})
}

// TestProxyTokenTooLarge is TestTokenTooLarge for proxies.
func TestProxyTokenTooLarge(t *testing.T) {
	sites(t, func(t *testing.T, s *recorder, u *url.URL, trust *tls.Config) {
		for size, code := range map[int]api.Code{9000: api.UnexpectedStatus, 100: ""} {
			refuse := func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(431) }
			g := newGateway(t, &gateway{challenges: []string{"Negotiate"}, admit: anyToken, connect: refuse}).start()
			if s.gate = nil; u.Scheme == "http" {
				s.gate = &gate{answers: []verdict{{431, ""}}}
			} else if code == "" {
				code = api.ProxyError
			}
			x := secureExchange(t, Options{Base: u, InsecureHTTP: true, Negotiate: &tokens{}, Proxy: &Proxy{URL: at(t, g.URL), Negotiate: &tokens{size: size}}}, trust)
			_, err := x.Get(t.Context(), u)
			if want(t, err, code); err != nil && strings.Contains(api.AsError(err).Remedy, "no_pac") != (code == api.UnexpectedStatus) {
				t.Errorf("%d bytes: %v", size, err)
			}
		}
	})
}

// TestProxyTokenOnce: a connection that breaks under credentials does not make
// net/http send them again; of a password nobody then knows what became of it.
func TestProxyTokenOnce(t *testing.T) {
	sites(t, func(t *testing.T, s *recorder, u *url.URL, trust *tls.Config) {
		for _, challenge := range []string{"Negotiate", "Basic"} {
			var mended atomic.Bool
			g := newGateway(t, &gateway{challenges: []string{challenge}, admit: func(string) bool {
				if !mended.Load() {
					panic(http.ErrAbortHandler)
				}
				return true
			}}).start()
			password := &ledger{}
			x := secureExchange(t, Options{Base: u, InsecureHTTP: true, Proxy: &Proxy{URL: at(t, g.URL), Negotiate: &tokens{name: "proxy-"}, Password: password}}, trust)
			_, err := x.Get(t.Context(), u)
			if err == nil || !strings.Contains(err.Error(), "the proxy "+g.URL) {
				t.Errorf("%v", err)
			}
			noCanary(t, err)
			want := answer("CANARY-proxy-token-1")
			if challenge == "Basic" {
				want = basicCredentials
			}
			if got := g.credentials(); !slices.Equal(got, []string{"-", want}) {
				t.Errorf("%s: the proxy saw %q", challenge, got)
			}
			if challenge == "Basic" && (len(password.events) != 2 || password.events[1] == "accepted" || password.events[1] == "refused proxy_auth_failed") {
				t.Errorf("%q", password.events)
			}
			// Later the same exchange asks for the password again, which the one who
			// lends it may refuse.
			mended.Store(true)
			if _, err := x.Get(t.Context(), u); err != nil {
				t.Error(err)
			}
			if challenge == "Basic" && (!slices.Equal(password.events[2:], []string{"take", "accepted"}) || !slices.Equal(g.credentials()[2:], []string{"-", basicCredentials})) {
				t.Errorf("then %q, and the proxy saw %q", password.events, g.credentials())
			}
		}
	})
}

// TestPasswordRefusedLater: a password that was accepted in an exchange, and that
// the proxy refuses then, was refused: neither this exchange nor any other sends it
// again.
func TestPasswordRefusedLater(t *testing.T) {
	sites(t, func(t *testing.T, s *recorder, u *url.URL, trust *tls.Config) {
		for _, fromURL := range []bool{false, true} {
			var changed atomic.Bool
			g := newGateway(t, &gateway{challenges: []string{"Basic"}, admit: func(string) bool { return !changed.Load() }}).start()
			written := &ledger{}
			p := &Proxy{URL: at(t, g.URL), Password: written}
			if fromURL {
				p.Password = UserPassword(url.UserPassword("robot", proxyPassword))
			}
			for range 3 {
				x := secureExchange(t, Options{Base: u, InsecureHTTP: true, Proxy: p}, trust)
				if _, err := x.Get(t.Context(), u); !changed.Swap(true) {
					want(t, err, "")
				} else {
					want(t, err, api.ProxyAuthFailed)
				}
				for range 2 {
					_, err := x.Send(t.Context(), Request{URL: u, Body: []byte("x")})
					want(t, err, api.ProxyAuthFailed)
				}
				if !fromURL {
					break
				}
			}
			got := g.credentials()
			if !slices.Equal(got[:3], []string{"-", basicCredentials, basicCredentials}) || slices.Contains(got[3:], basicCredentials) {
				t.Errorf("the proxy saw %q", got)
			}
			if !fromURL && !slices.Equal(written.events, []string{"take", "accepted", "refused proxy_auth_failed"}) {
				t.Errorf("%q", written.events)
			}
		}
	})
}

// TestPasswordRefusedElsewhere: an exchange that has a password sends it no more
// once it was refused to another one.
func TestPasswordRefusedElsewhere(t *testing.T) {
	sites(t, func(t *testing.T, s *recorder, u *url.URL, trust *tls.Config) {
		g := newGateway(t, &gateway{challenges: []string{"Basic"}, admit: func(string) bool { return true }}).start()
		password := &ledger{}
		x := secureExchange(t, Options{Base: u, InsecureHTTP: true, Proxy: &Proxy{URL: at(t, g.URL), Password: password}}, trust)
		if _, err := x.Get(t.Context(), u); err != nil {
			t.Fatal(err)
		}
		password.stands = &api.Error{Code: api.Latched, Detail: "refused elsewhere"}
		_, err := x.Send(t.Context(), Request{URL: u, Body: []byte("x")})
		if want(t, err, api.ProxyAuthFailed); err == nil || !strings.Contains(err.Error(), "refused elsewhere") {
			t.Errorf("%v", err)
		}
		if got := g.credentials(); !slices.Equal(got, []string{"-", basicCredentials}) {
			t.Errorf("the proxy saw %q", got)
		}
	})
}

// TestProxyInTrouble: which answers to a password are a verdict. After one that is
// none, the exchange asks for the password again.
func TestProxyInTrouble(t *testing.T) {
	sites(t, func(t *testing.T, s *recorder, u *url.URL, trust *tls.Config) {
		for status, forwarded := range map[int]bool{
			200: true, 204: true, 302: true, 304: true, 401: true, 403: true, 404: true,
			400: false, 405: false, 408: false, 418: false, 421: false, 429: false, 431: false, 451: false, 500: false, 501: false, 502: false, 503: false, 504: false, 511: false, 599: false,
		} {
			if u.Scheme == "https" && status == 200 {
				continue // a tunnel: TestProxyBasic
			}
			password := &ledger{}
			g := newGateway(t, &gateway{})
			g.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Proxy-Authorization") == "" {
					w.Header().Set("Proxy-Authenticate", "Basic")
					w.WriteHeader(http.StatusProxyAuthRequired)
					return
				}
				w.WriteHeader(status)
			})
			g.Start()
			x := secureExchange(t, Options{Base: u, InsecureHTTP: true, Proxy: &Proxy{URL: at(t, g.URL), Password: password}}, trust)
			r, err := x.Send(t.Context(), Request{URL: u})
			verdict := "refused proxy_error"
			if u.Scheme == "https" {
				want(t, err, api.ProxyError)
			} else if want(t, err, ""); err == nil && r.Status != status {
				t.Errorf("%d became %d", status, r.Status)
			} else if forwarded {
				verdict = "accepted"
			}
			if !slices.Equal(password.events, []string{"take", verdict}) {
				t.Errorf("%d: %q, want %q", status, password.events, verdict)
			}
			x.Send(t.Context(), Request{URL: u})
			if again := slices.Contains(password.events[2:], "take"); again != (verdict != "accepted") {
				t.Errorf("%d: then %q", status, password.events)
			}
		}
	})
}

// TestCallerLeaves: what became of a password is told though nobody waits for
// the answer.
func TestCallerLeaves(t *testing.T) {
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	p := &passage{Proxy: &Proxy{URL: at(t, "http://proxy"), Negotiate: &tokens{}}}
	for want, end := range map[string]func(){
		"accepted":                  func() { p.settle(cancelled, &attempt{status: 200}, nil) },
		"refused timeout":           func() { p.settle(cancelled, &attempt{}, &api.Error{Code: api.Timeout}) },
		"refused proxy_auth_failed": func() { p.answer(cancelled, &attempt{scheme: basicScheme}, nil) },
	} {
		password := &ledger{}
		p.Password, p.scheme, p.pending = password, basicScheme, true
		if end(); !slices.Equal(password.events, []string{want}) {
			t.Errorf("%q, want %q", password.events, want)
		}
	}
	// A dial that net/http goes on with makes no tokens for nobody.
	if value, err := (&attempt{Proxy: p.Proxy, ctx: cancelled, scheme: negotiateScheme}).authorize(); err == nil {
		t.Errorf("%q", value)
	}
}

// TestTunnelsThatBreak: net/http dials again when nothing went through a tunnel,
// as often as it takes; tokens end that.
func TestTunnelsThatBreak(t *testing.T) {
	n := &tokens{}
	a := &attempt{Proxy: &Proxy{URL: at(t, "http://proxy"), Negotiate: n}, ctx: t.Context(), scheme: negotiateScheme, tunnel: true}
	for range maxTokens {
		if _, err := a.authorize(); err != nil {
			t.Fatal(err)
		}
	}
	_, err := a.authorize()
	if want(t, err, api.ProxyError); len(n.spns) != maxTokens {
		t.Errorf("%d tokens", len(n.spns))
	}
}

// TestForbiddenAfterToken: a proxy that knows who asks, and refuses, need not
// prove who it is.
func TestForbiddenAfterToken(t *testing.T) {
	g := newGateway(t, &gateway{challenges: []string{"Negotiate"}, admit: anyToken, connect: func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusForbidden)
	}}).start()
	u := at(t, "https://app.corp.example/")
	x := secureExchange(t, Options{Base: u, Proxy: &Proxy{URL: at(t, g.URL), Negotiate: &tokens{}, Mutual: MutualRequired}}, nil)
	_, err := x.Get(t.Context(), u)
	want(t, err, api.ProxyError)
}

// TestForwardedGarbage: once a proxy is reached, what comes through it may be
// the site's; both are named.
func TestForwardedGarbage(t *testing.T) {
	proxy := raw(t, "CANARY\r\n\r\n")
	u := at(t, "http://app.corp.example/")
	x := secureExchange(t, Options{Base: u, InsecureHTTP: true, Proxy: &Proxy{URL: proxy}}, nil)
	_, err := x.Get(t.Context(), u)
	if want(t, err, api.NetworkError); err == nil || !strings.Contains(err.Error(), "no answer from http://app.corp.example: its answer is not HTTP, through the proxy http://"+proxy.Host) {
		t.Errorf("%v", err)
	}
	noCanary(t, err)
}

// TestTunnelReused: requests without credentials for the site share a tunnel,
// and the proxy's token.
func TestTunnelReused(t *testing.T) {
	ca := newAuthority(t, ecKey(t, elliptic.P256()))
	s := &recorder{t: t}
	u := serveTLS(t, s.ServeHTTP, ca.issue(t, x509.ECDSAWithSHA256))
	g := newGateway(t, &gateway{challenges: []string{"Negotiate"}, admit: anyToken}).start()
	proxy := &tokens{}
	p := &Proxy{URL: at(t, g.URL), Negotiate: proxy}
	for i := range 2 {
		x := secureExchange(t, Options{Base: u, Proxy: p}, ca.trust())
		for range 5 {
			if _, err := x.Get(t.Context(), u); err != nil {
				t.Fatal(err)
			}
		}
		// Another exchange, another tunnel: its user may be another one.
		if n := len(proxy.spns); n != i+1 {
			t.Errorf("%d tokens for %d tunnels", n, i+1)
		}
	}
	if s.hits != 10 {
		t.Errorf("%d requests", s.hits)
	}
}

// TestRedirectsThroughProxy: each hop gets what is its own: a site's token goes
// to that site, a tunnel to the tunnel's host, and to foreign hosts nothing at
// all, not even CONNECT.
func TestRedirectsThroughProxy(t *testing.T) {
	ca := newAuthority(t, ecKey(t, elliptic.P256()))
	login := &recorder{t: t, gate: &gate{answers: []verdict{{302, "good"}}}}
	var base *url.URL
	loginURL := serveTLS(t, func(w http.ResponseWriter, r *http.Request) {
		login.ServeHTTP(location{w, base.String() + "/in"}, r)
	}, ca.issue(t, x509.ECDSAWithSHA256))
	loginURL.Host = "login.corp.example:" + loginURL.Port()
	base = serveTLS(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/in":
		case "/foreign":
			http.Redirect(w, r, "https://foreign.example/", http.StatusFound)
		case "/clear":
			http.Redirect(w, r, "http://"+r.Host+"/", http.StatusFound)
		default:
			http.Redirect(w, r, loginURL.String(), http.StatusFound)
		}
	}, ca.issue(t, x509.ECDSAWithSHA256))
	g := newGateway(t, &gateway{challenges: []string{"Negotiate"}, admit: anyToken}).start()
	site := &tokens{}
	x := secureExchange(t, Options{Base: base, InsecureHTTP: true, LoginHosts: []Origin{OriginOf(loginURL)}, Negotiate: site, Proxy: &Proxy{URL: at(t, g.URL), Negotiate: &tokens{name: "proxy-"}}}, ca.trust())
	r, err := x.Get(t.Context(), base)
	if err != nil || r.URL.Path != "/in" || !r.Mutual {
		t.Fatalf("%+v %v", r, err)
	}
	if !slices.Equal(site.spns, []string{"HTTP/login.corp.example"}) {
		t.Errorf("%q", site.spns)
	}
	for path, code := range map[string]api.Code{"/foreign": api.SSORedirect, "/clear": api.InsecureRedirect} {
		_, err := x.Get(t.Context(), base.JoinPath(path))
		want(t, err, code)
	}
	for _, r := range g.requests {
		if !strings.HasPrefix(r, "CONNECT https://"+base.Host) && !strings.HasPrefix(r, "CONNECT https://"+loginURL.Host) {
			t.Errorf("the proxy was asked for %s", r)
		}
	}
}

// TestTunnelBindings: a token in a tunnel is bound to the site's certificate,
// though the proxy shows one as well.
func TestTunnelBindings(t *testing.T) {
	ca := newAuthority(t, ecKey(t, elliptic.P256()))
	cert := ca.issue(t, x509.ECDSAWithSHA256)
	u := serveTLS(t, (&gate{answers: []verdict{{200, "good"}}}).ServeHTTP, cert)
	g := newGateway(t, &gateway{})
	g.TLS = &tls.Config{Certificates: []tls.Certificate{ca.issue(t, x509.ECDSAWithSHA256)}}
	g.StartTLS()
	to := at(t, g.URL)
	to.Host = "proxy.corp.example:" + to.Port()
	site := &tokens{}
	x := secureExchange(t, Options{Base: u, Negotiate: site, Bindings: BindingsRequired, Proxy: &Proxy{URL: to}}, ca.trust())
	if _, err := x.Get(t.Context(), u); err != nil {
		t.Fatal(err)
	}
	if got, want := site.options[0].Bindings, bindingsOf(crypto.SHA256, cert.Certificate[0]); string(got) != string(want) {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestUserPassword(t *testing.T) {
	p := UserPassword(url.UserPassword("robot", proxyPassword))
	take := func(code api.Code) {
		t.Helper()
		pw, err := p.Take(t.Context())
		if want(t, err, code); err == nil && (pw.Reveal() != proxyPassword || p.User() != "robot") {
			t.Errorf("%q %q", p.User(), pw.Reveal())
		}
	}
	take("")
	p.Refused(t.Context(), &api.Error{Code: api.ProxyError}) // nobody knows
	take("")
	p.Accepted(t.Context())
	take("")
	p.Refused(t.Context(), &api.Error{Code: api.ProxyAuthFailed, Remedy: "x"})
	take(api.ProxyAuthFailed)
	if text := fmt.Sprintf("%v %+v", p, p); strings.Contains(text, "CANARY") {
		t.Error(text)
	}
}

// TestUserPasswordTurns: the password of a URL is sent by one exchange alone until
// the proxy has accepted it, and again when that is long ago.
func TestUserPasswordTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := UserPassword(url.UserPassword("robot", proxyPassword))
		var taken, stopped atomic.Int32
		all := func(verdict error) {
			taken.Store(0)
			stopped.Store(0)
			var wg sync.WaitGroup
			for range 20 {
				wg.Go(func() {
					if _, err := p.Take(t.Context()); err != nil {
						stopped.Add(1)
						return
					}
					taken.Add(1)
					<-time.After(time.Second)
					if verdict != nil {
						p.Refused(t.Context(), verdict)
					} else {
						p.Accepted(t.Context())
					}
				})
			}
			synctest.Wait()
		}
		begun := func(want int32) {
			t.Helper()
			if got := taken.Load(); got != want {
				t.Errorf("%d at once, want %d", got, want)
			}
			<-time.After(AcceptedFor / 2)
		}
		all(&api.Error{Code: api.ProxyError}) // nobody knows
		begun(1)
		if taken.Load() != 20 {
			t.Errorf("%d attempts of unknown outcome one after the other", taken.Load())
		}
		all(nil)
		begun(1)
		all(nil) // it is known
		begun(20)
		<-time.After(AcceptedFor)
		ctx, cancel := context.WithCancel(t.Context())
		if _, err := p.Take(ctx); err != nil {
			t.Error(err)
		}
		cancel()
		_, err := p.Take(ctx)
		want(t, err, api.Timeout)
		p.Refused(ctx, &api.Error{Code: api.ProxyError})
		all(&api.Error{Code: api.ProxyAuthFailed})
		begun(1)
		if taken.Load() != 1 || stopped.Load() != 19 || api.CodeOf(p.Refusal()) != api.ProxyAuthFailed {
			t.Errorf("%d attempts, %d told of the refusal", taken.Load(), stopped.Load())
		}
	})
}

func TestProxyFromEnvironment(t *testing.T) {
	all := []string{"HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy", "REQUEST_METHOD"}
	for _, c := range []struct {
		env  map[string]string
		u    string
		want string // "": none, "!": an error
	}{
		{nil, "https://app.corp.example/", ""},
		{map[string]string{"HTTPS_PROXY": "http://proxy:3128"}, "https://app.corp.example/", "http://proxy:3128"},
		{map[string]string{"https_proxy": "proxy:3128"}, "https://app.corp.example/", "http://proxy:3128"},
		{map[string]string{"HTTPS_PROXY": "http://proxy:3128"}, "http://app.corp.example/", ""},
		{map[string]string{"http_proxy": "https://robot:CANARY@proxy:3128/"}, "http://app.corp.example/", "https://robot:CANARY@proxy:3128/"},
		{map[string]string{"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": "corp.example"}, "https://app.corp.example/", ""},
		{map[string]string{"HTTPS_PROXY": "http://proxy:3128", "no_proxy": "10.0.0.0/8,app.corp.example:8443"}, "https://app.corp.example:8443/", ""},
		{map[string]string{"HTTPS_PROXY": "http://proxy:3128", "no_proxy": "10.0.0.0/8,app.corp.example:8443"}, "https://app.corp.example/", "http://proxy:3128"},
		{map[string]string{"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": "*"}, "https://app.corp.example/", ""},
		{map[string]string{"HTTPS_PROXY": "http://proxy:3128"}, "https://127.0.0.1/", ""},
		{map[string]string{"HTTPS_PROXY": "socks5://robot:CANARY@proxy"}, "https://app.corp.example/", "!"},
		{map[string]string{"HTTPS_PROXY": "http://robot:CANARY@proxy:CANARY"}, "https://app.corp.example/", "!"},
		{map[string]string{"HTTPS_PROXY": "http://robot:CANARY@proxy/path?x"}, "https://app.corp.example/", "!"},
		{map[string]string{"HTTPS_PROXY": "CANARY\x7f"}, "https://app.corp.example/", "!"},
		{map[string]string{"HTTP_PROXY": "http://CANARY", "REQUEST_METHOD": "GET"}, "http://app.corp.example/", "!"},
	} {
		for _, name := range all {
			t.Setenv(name, c.env[name])
		}
		p, err := ProxyFromEnvironment(at(t, c.u))
		noCanary(t, err)
		switch {
		case c.want == "!":
			if want(t, err, api.ConfigInvalid); p != nil {
				t.Errorf("%v: %v", c.env, p)
			}
		case err != nil:
			t.Errorf("%v: %v", c.env, err)
		case p == nil && c.want != "", p != nil && p.String() != c.want:
			t.Errorf("%v: %v, want %q", c.env, p, c.want)
		}
	}
}

func TestCheckProxy(t *testing.T) {
	for raw, ok := range map[string]bool{"http://proxy": true, "https://proxy:8443/": true, "http://u:CANARY@[::1]:3128": true,
		"socks5://proxy": false, "proxy": false, "http://": false, "http://proxy/path": false, "http://u:CANARY@proxy?x": false, "http://proxy#x": false, "http://a*b": false} {
		if err := CheckProxy(at(t, raw)); (err == nil) != ok {
			t.Errorf("%s: %v", raw, err)
		} else {
			noCanary(t, err)
		}
	}
}

// TestUserOfProxyURL: net/http would send the user of a proxy's URL unasked.
func TestUserOfProxyURL(t *testing.T) {
	sites(t, func(t *testing.T, s *recorder, u *url.URL, trust *tls.Config) {
		g := newGateway(t, &gateway{}).start()
		to := at(t, g.URL)
		to.User = url.UserPassword("robot", proxyPassword)
		x := secureExchange(t, Options{Base: u, InsecureHTTP: true, Proxy: &Proxy{URL: to, Password: UserPassword(to.User)}}, trust)
		if _, err := x.Get(t.Context(), u); err != nil {
			t.Fatal(err)
		}
		if got := g.credentials(); !slices.Equal(got, []string{"-"}) {
			t.Errorf("the proxy saw %q", got)
		}
		g.Close()
		g.CloseClientConnections()
		_, err := x.Send(t.Context(), Request{URL: u, Body: []byte("x")})
		if want(t, err, api.ProxyError); err == nil || !strings.Contains(err.Error(), "the proxy "+g.URL+":") {
			t.Errorf("%v", errors.Unwrap(err))
		}
		noCanary(t, err)
	})
}

// TestHungTunnel: a proxy's word about a password counts when it is said, not when
// the site behind it has answered.
func TestHungTunnel(t *testing.T) {
	reached, end := make(chan struct{}), make(chan struct{})
	hung := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		close(reached)
		<-end
	}))
	defer hung.Close()
	defer close(end)
	live := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer live.Close()
	pool := x509.NewCertPool()
	pool.AddCert(hung.Certificate())
	pool.AddCert(live.Certificate())
	g := newGateway(t, &gateway{challenges: []string{`Basic realm="x"`}, admit: func(string) bool { return true }}).start()
	password := UserPassword(url.UserPassword("robot", "CANARY-password"))
	ask := func(ctx context.Context, site string) error {
		u := at(t, site)
		x := NewExchange(Options{Base: u, Proxy: &Proxy{URL: at(t, g.URL), Password: password}}, new(Jar))
		defer x.Close()
		x.transport.TLSClientConfig = &tls.Config{RootCAs: pool}
		_, err := x.Send(ctx, Request{URL: u})
		return err
	}
	ctx, cancel := context.WithCancel(t.Context())
	first := make(chan error, 1)
	go func() { first <- ask(ctx, hung.URL) }()
	<-reached
	if err := ask(t.Context(), live.URL); err != nil {
		t.Errorf("another site behind the proxy: %v", err)
	}
	cancel()
	<-first
}
