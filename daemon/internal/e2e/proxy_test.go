package e2e

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

// What lies behind the proxy, by names that only the proxy can resolve; httptest
// has a certificate for them. The proxy's service has a name in its own realm,
// where gate has an account; anna has a password there.
const (
	siteHost     = "web.example.com"
	originHost   = "origin.example.com"
	proxyRealm   = "PROXY.EXAMPLE"
	proxySPN     = "HTTP/squid.proxy.example"
	annaPassword = "CANARY-anna b:%c"
)

// proxied is a world behind a proxy of another realm, which asks for Negotiate or
// Basic. Its url is what the agent uses, and nobody else can.
type proxied struct {
	*world
	direct      *world // the site by its real address
	service     string // that the sites' tickets are for
	proxyURL    string
	proxyKeytab string
	proxyCounts func(*testing.T) rig.ProxyCounts
	stopProxy   func()
	origin      *recorder
	originURL   string
	originTLS   string
}

// recorder is a site that writes down what it is sent. It asks for Negotiate and
// takes no token, and below /407/ it answers as a proxy does.
type recorder struct {
	mu   sync.Mutex
	seen []http.Header
}

// ServeHTTP implements http.Handler.
func (r *recorder) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	r.seen = append(r.seen, req.Header.Clone())
	r.mu.Unlock()
	if strings.HasPrefix(req.URL.Path, "/407/") {
		w.Header()["Proxy-Authenticate"] = []string{"Negotiate", `Basic realm="x"`}
		w.WriteHeader(http.StatusProxyAuthRequired)
		return
	}
	w.Header().Set("WWW-Authenticate", "Negotiate")
	w.WriteHeader(http.StatusUnauthorized)
}

// sent returns how many requests had each header field.
func (r *recorder) sent() map[string]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := map[string]int{"": len(r.seen)}
	for _, h := range r.seen {
		for name := range h {
			n[name]++
		}
	}
	return n
}

// named returns a URL of another host on the same port.
func named(t *testing.T, address, host string) string {
	t.Helper()
	u, err := url.Parse(address)
	must(t, err)
	u.Host = net.JoinHostPort(host, u.Port())
	return u.String()
}

// record starts the recording site, under http and https, and adds its authority
// to those in caFile.
func (p *proxied) record(t *testing.T) {
	t.Helper()
	p.origin = new(recorder)
	plain, secure := serve(t, false, p.origin), serve(t, true, p.origin)
	p.originURL, p.originTLS = named(t, plain.URL, originHost), named(t, secure.URL, originHost)
	var authorities []byte
	if p.caFile != "" {
		var err error
		authorities, err = os.ReadFile(p.caFile)
		must(t, err)
	}
	authorities = append(authorities, certificatePEM(secure)...)
	p.caFile = write(t, filepath.Join(t.TempDir(), "authorities.pem"), string(authorities))
}

// serve starts a web server in this process.
func serve(t *testing.T, secure bool, h http.Handler) *httptest.Server {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = log.New(io.Discard, "", 0) // clients that hang up in the handshake
	if secure {
		s.StartTLS()
	} else {
		s.Start()
	}
	t.Cleanup(s.Close)
	return s
}

func certificatePEM(s *httptest.Server) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
}

// proxiedInProcess is a proxied world that needs nothing but Go.
func proxiedInProcess(t *testing.T) *proxied {
	t.Helper()
	names, err := rig.NewDNS()
	must(t, err)
	t.Cleanup(names.Close)
	for _, host := range []string{siteHost, originHost} {
		names.Host(host, netip.MustParseAddr("127.0.0.1"))
	}
	// The proxy is in this process, the agent is not.
	old := net.DefaultResolver
	net.DefaultResolver = names.Resolver()
	t.Cleanup(func() { net.DefaultResolver = old })

	dir := t.TempDir()
	w := inProcess(t)
	k, err := rig.NewKDC(proxyRealm)
	must(t, err)
	t.Cleanup(k.Close)
	k.AddPrincipal("gate", password)
	k.AddService(proxySPN)
	must(t, rig.Krb5Conf{Realms: []rig.Realm{w.kdc, k}}.WriteFile(filepath.Join(dir, "krb5.conf")))
	acceptor, err := rig.NewAcceptor(k.Keytab(proxySPN), proxySPN)
	must(t, err)
	proxy, err := rig.StartProxy(rig.ProxyOptions{Acceptor: acceptor, Users: map[string]string{"anna": annaPassword}})
	must(t, err)
	t.Cleanup(proxy.Close)

	// The pages of the site are under https, too, and one of them takes passwords.
	s := &both{site: siteHandler(t, w)}
	plain, secure := serve(t, false, s), serve(t, true, s)
	p := &proxied{
		direct: &world{url: named(t, plain.URL, "localhost")}, service: "HTTP/localhost",
		proxyURL: proxy.URL(), proxyKeytab: write(t, filepath.Join(dir, "gate.keytab"), string(k.Keytab("gate"))),
		proxyCounts: func(*testing.T) rig.ProxyCounts { return proxy.Counts() },
		stopProxy:   proxy.Close,
	}
	p.world = &world{
		krb5Conf: filepath.Join(dir, "krb5.conf"), keytab: w.keytab, counts: w.counts,
		url: named(t, plain.URL, siteHost), tlsURL: named(t, secure.URL, siteHost),
		hits: s.hits,
	}
	p.record(t)
	return p
}

// siteHandler lends the handler of a world's site to other servers.
func siteHandler(t *testing.T, w *world) http.Handler {
	t.Helper()
	s, err := rig.StartSite(w.kdc.Keytab("HTTP/localhost"))
	must(t, err)
	s.Stop() // it answers by its handler alone
	return s
}

// both is a site with one more page, /both/ of Apache, which takes a password in
// the place of a ticket.
type both struct {
	site http.Handler

	mu     sync.Mutex
	basics int
}

const bothCookie = "both_session=CANARY-both"

// ServeHTTP implements http.Handler.
func (b *both) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !strings.HasPrefix(r.URL.Path, "/both/") {
		b.site.ServeHTTP(w, r)
		return
	}
	user, pw, basic := r.BasicAuth()
	if basic {
		b.mu.Lock()
		b.basics++
		b.mu.Unlock()
	}
	switch {
	case strings.Contains(r.Header.Get("Cookie"), bothCookie):
	case basic && user == "build" && pw == password:
		w.Header().Set("Set-Cookie", bothCookie+"; path=/both/")
	default:
		w.Header()["Www-Authenticate"] = []string{"Negotiate", `Basic realm="rig"`}
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	fmt.Fprint(w, me)
}

func (b *both) hits(*testing.T, string) rig.Hits {
	b.mu.Lock()
	defer b.mu.Unlock()
	return rig.Hits{Basic: b.basics}
}

// proxiedByServers is the same world of two of MIT's KDCs, Apache and Squid.
func proxiedByServers(t *testing.T) *proxied {
	t.Helper()
	rig.Require(t, "krb5kdc", "kdb5_util", "kadmin.local", "apache2", "mod_auth_gssapi", "mod_ssl", "squid")
	dir, ctx := t.TempDir(), t.Context()
	k, err := rig.StartMIT(ctx, filepath.Join(dir, "kdc"), realm)
	must(t, err)
	t.Cleanup(k.Stop)
	proxyKDC, err := rig.StartMIT(ctx, filepath.Join(dir, "proxykdc"), proxyRealm)
	must(t, err)
	t.Cleanup(proxyKDC.Stop)
	must(t, k.AddPrincipal(ctx, "build", password))
	must(t, k.AddService(ctx, "HTTP/"+siteHost))
	must(t, proxyKDC.AddPrincipal(ctx, "gate", password))
	must(t, proxyKDC.AddService(ctx, proxySPN))
	keytab, gate := filepath.Join(dir, "build.keytab"), filepath.Join(dir, "gate.keytab")
	http, squid := filepath.Join(dir, "http.keytab"), filepath.Join(dir, "squid.keytab")
	must(t, k.Keytab(ctx, keytab, "build"))
	must(t, k.Keytab(ctx, http, "HTTP/"+siteHost))
	must(t, proxyKDC.Keytab(ctx, gate, "gate"))
	must(t, proxyKDC.Keytab(ctx, squid, proxySPN))
	krb5Conf := filepath.Join(dir, "krb5.conf")
	must(t, rig.Krb5Conf{Realms: []rig.Realm{k, proxyKDC}}.WriteFile(krb5Conf))
	a, err := rig.StartApache(ctx, filepath.Join(dir, "apache"), rig.ApacheOptions{Krb5ConfFile: k.Krb5ConfFile(), KeytabFile: http, Hosts: []string{siteHost}})
	must(t, err)
	t.Cleanup(a.Stop)
	s, err := rig.StartSquid(ctx, filepath.Join(dir, "squid"), rig.SquidOptions{
		Krb5ConfFile: proxyKDC.Krb5ConfFile(), KeytabFile: squid, SPN: proxySPN + "@" + proxyRealm,
		Users: map[string]string{"anna": annaPassword},
		Hosts: "127.0.0.1 " + siteHost + " " + originHost + "\n",
	})
	must(t, err)
	t.Cleanup(s.Stop)
	p := &proxied{
		direct: &world{url: a.URL()}, service: "HTTP/" + siteHost, proxyURL: s.URL(), proxyKeytab: gate, stopProxy: s.Stop,
		proxyCounts: func(t *testing.T) rig.ProxyCounts {
			hits, err := s.Hits(context.WithoutCancel(ctx))
			must(t, err)
			return countSquid(hits)
		},
	}
	p.world = &world{
		krb5Conf: krb5Conf, keytab: keytab, url: named(t, a.URL(), siteHost), tlsURL: named(t, a.TLSURL(), siteHost), caFile: a.CAFile(),
		counts: func(t *testing.T) rig.Counts {
			c, err := k.Counts()
			must(t, err)
			return c
		},
		hits: func(t *testing.T, prefix string) rig.Hits {
			h, err := a.Hits(prefix)
			must(t, err)
			return h
		},
	}
	p.record(t)
	return p
}

// countSquid counts what has come to Squid. A tunnel is there once it has ended.
func countSquid(hits []rig.SquidHit) (c rig.ProxyCounts) {
	for _, h := range hits {
		switch h.Method {
		case http.MethodConnect:
			c.Connects++
		default:
			c.Requests++
		}
		switch h.Scheme {
		case "Negotiate":
			c.Tokens++
		case "Basic":
			c.Basics++
		}
		if h.Status == http.StatusProxyAuthRequired {
			c.Challenged++
		}
	}
	return c
}

// behindProxies runs a test against the servers in this process and against the
// real ones.
func behindProxies(t *testing.T, f func(*testing.T, *proxied)) {
	t.Run("in-process", func(t *testing.T) { f(t, proxiedInProcess(t)) })
	t.Run("real", func(t *testing.T) { f(t, proxiedByServers(t)) })
}

// site is a [site.NAME] at a URL.
func (p *proxied) site(name, url string, more ...string) string {
	all := strings.Join(more, "\n")
	s := fmt.Sprintf("\n[site.%s]\nurl = %q\nkind = \"spnego\"\ncredential = \"build\"\nidentity_json = \"user\"\nprobe_url = \"whoami\"\n", name, url)
	if strings.HasPrefix(url, "http:") {
		s += "insecure_http = true\n"
	}
	if !strings.Contains(all, "spn =") && !strings.Contains(url, strings.TrimPrefix(p.service, "HTTP/")) {
		s += fmt.Sprintf("spn = %q\n", p.service)
	}
	return s + all + "\n"
}

// throughCorp is an option of a site.
const throughCorp = `proxy = "corp"`

// home makes a home with the proxy as [proxy.corp], with the name of a credential or
// "".
func (p *proxied) home(t *testing.T, credential string, more ...string) *home {
	t.Helper()
	h := newHome(t, p.world)
	h.extraEnv = []string{"SSL_CERT_FILE=" + p.caFile}
	var options string
	if credential != "" {
		options = fmt.Sprintf("credential = %q\n", credential)
	}
	if credential != "" && credential != "anna" { // a principal
		options += fmt.Sprintf("spn = %q\n", proxySPN)
	}
	write(t, h.config, fmt.Sprintf(`
[credential.build]
principal = "build@%s"
keytab    = %q

[credential.gate]
principal = "gate@%s"
keytab    = %q

[credential.anna]
username = "anna"

[proxy.corp]
url = %q
%s
%s`, realm, p.keytab, proxyRealm, p.proxyKeytab, p.proxyURL, options, strings.Join(more, "\n")))
	return h
}

// behind are the site's pages below a path, as site app by http and tls by https.
func (p *proxied) behind(page string, more ...string) string {
	more = append(more, throughCorp)
	return p.site("app", p.url+page, more...) + p.site("tls", p.tlsURL+page, more...)
}

// giveProxyPassword brings anna's password for the proxy of a site.
func (h *home) giveProxyPassword(t *testing.T, site, password string, more ...string) result {
	t.Helper()
	args := append([]string{"login", site, "--proxy", "--password-stdin"}, more...)
	return h.run(t, password+"\n", filepath.Join(bin, "sessionctl"), args...)
}

// keptQuiet ends the agent and looks for secrets in what it, and the calls before,
// have left: passwords as they are and as Basic sends them, and tokens.
func keptQuiet(t *testing.T, a *agent, shown ...string) {
	t.Helper()
	for _, args := range [][]string{{"list"}, {"status"}, {"list", "-o", "json"}, {"status", "-o", "json"}, {"tickets"}} {
		shown = append(shown, a.sessionctl(t, args...).String())
	}
	a.stop(t)
	noSecrets(t, a)
	shown = append(shown, a.log.String())
	for _, s := range shown {
		for _, secret := range []string{"CANARY", base64.StdEncoding.EncodeToString([]byte("anna:CANARY"))[:12], "Negotiate YI"} {
			if i := strings.Index(s, secret); i >= 0 {
				t.Errorf("%s shows: …%s…", secret, s[max(0, i-200):min(len(s), i+40)])
			}
		}
	}
}

// TestProxyInAnotherRealm: a session through a proxy, each of the two with a ticket
// of its own realm, by a whole URL and in a tunnel.
func TestProxyInAnotherRealm(t *testing.T) {
	behindProxies(t, func(t *testing.T, p *proxied) {
		h := p.home(t, "gate", p.behind("/spnego/"))
		a := h.start(t)
		for i, site := range []string{"app", "tls"} {
			if got := whoami(t, p.direct, h.ok(t, "raw", site)); got != me {
				t.Errorf("%s: the site names %s", site, got)
			}
			// A tunnel is told of when it ends, and what it was refused for at once.
			if c := p.proxyCounts(t); c.Basics != 0 || c.Tokens == 0 || c.Requests == 0 || c.Connects < i {
				t.Errorf("%s: the proxy saw %+v", site, c)
			}
		}
		tickets := h.ok(t, "tickets")
		for _, service := range []string{proxySPN + "@" + proxyRealm, "krbtgt/" + proxyRealm + "@" + proxyRealm, "@" + realm} {
			if !strings.Contains(tickets, service) {
				t.Errorf("no ticket for %s:\n%s", service, tickets)
			}
		}
		h.ok(t, "refresh", "app")
		keptQuiet(t, a)
	})
}

// TestProxyPassword: a proxy that is given a password. A wrong one is tried once,
// whoever asks and however often the agent starts.
func TestProxyPassword(t *testing.T) {
	behindProxies(t, func(t *testing.T, p *proxied) {
		h := p.home(t, "anna", p.behind("/spnego/"))
		a := h.start(t)
		var shown bytes.Buffer
		tried := func(want int) {
			t.Helper()
			if c := p.proxyCounts(t); c.Basics != want || c.Tokens != 0 {
				t.Errorf("the proxy saw %+v, want %d passwords", c, want)
			}
		}
		wants := func(r result, code, remedy string) {
			t.Helper()
			wantFailure(t, r, 5, code)
			if !strings.Contains(r.stderr, remedy) {
				t.Errorf("%q is not among the next steps: %v", remedy, r)
			}
			shown.WriteString(r.String())
		}
		wants(h.sessionctl(t, "raw", "app"), "proxy_auth_required", "sessionctl login app --proxy --password-stdin")
		tried(0)
		wants(h.giveProxyPassword(t, "app", "CANARY-wrong"), "proxy_auth_failed", "sessionctl login app --proxy --password-stdin")
		tried(1)
		wants(h.giveProxyPassword(t, "tls", "CANARY-wrong"), "proxy_auth_failed", "sessionctl login tls --proxy --password-stdin")
		a.stop(t)
		a = h.start(t)
		wants(h.giveProxyPassword(t, "app", "CANARY-wrong"), "proxy_auth_failed", "--proxy --password-stdin --retry")
		tried(1)
		wants(h.giveProxyPassword(t, "app", "CANARY-wrong", "--retry"), "proxy_auth_failed", "")
		tried(2)

		if r := h.giveProxyPassword(t, "tls", annaPassword); r.status != 0 || !strings.Contains(r.stderr, "kept") {
			t.Errorf("%v", r)
		}
		for _, site := range []string{"app", "tls"} {
			if got := whoami(t, p.direct, h.ok(t, "raw", site)); got != me {
				t.Errorf("%s: the site names %s", site, got)
			}
		}
		a.stop(t)
		a = h.start(t)
		h.ok(t, "refresh", "tls")
		keptQuiet(t, a, shown.String())
	})
}

// TestProxyPasswordFromSystemd: a wrong password in the unit's credentials is tried
// once, over all sites; the right one counts at once.
func TestProxyPasswordFromSystemd(t *testing.T) {
	behindProxies(t, func(t *testing.T, p *proxied) {
		h := p.home(t, "anna", p.behind("/spnego/"))
		credentials := t.TempDir()
		file := write(t, filepath.Join(credentials, "password.anna"), "CANARY-wrong\n")
		h.extraEnv = append(h.extraEnv, "CREDENTIALS_DIRECTORY="+credentials)
		a := h.start(t)
		first := h.fails(t, 5, "proxy_auth_failed", "raw", "app")
		h.fails(t, 5, "proxy_auth_failed", "raw", "tls")
		a.stop(t)
		a = h.start(t)
		r := h.fails(t, 5, "proxy_auth_failed", "raw", "app")
		if c := p.proxyCounts(t); c.Basics != 1 {
			t.Errorf("the proxy saw %+v", c)
		}
		if !strings.Contains(r.stderr, "not tried again since") || !strings.Contains(r.stderr, "anna") || !strings.Contains(r.stderr, "sessionctl login app --retry") || strings.Contains(r.stderr, "--password-stdin") {
			t.Errorf("%v", r)
		}
		h.fails(t, 5, "proxy_auth_failed", "login", "tls", "--retry")
		if c := p.proxyCounts(t); c.Basics != 2 {
			t.Errorf("after --retry the proxy saw %+v", c)
		}
		fixed := h.giveProxyPassword(t, "app", annaPassword)
		wantFailure(t, fixed, 2, "invalid_request")
		if !strings.Contains(fixed.stderr, file) {
			t.Errorf("%v", fixed)
		}
		write(t, file, annaPassword+"\n")
		for _, site := range []string{"app", "tls"} {
			if got := whoami(t, p.direct, h.ok(t, "raw", site)); got != me {
				t.Errorf("%s: the site names %s", site, got)
			}
		}
		keptQuiet(t, a, first.String(), r.String(), fixed.String())
	})
}

// TestProxyPrincipalByPassword: the password of a principal at the proxy goes to
// its realm, not to the proxy.
func TestProxyPrincipalByPassword(t *testing.T) {
	behindProxies(t, func(t *testing.T, p *proxied) {
		h := p.home(t, "typed", fmt.Sprintf("[credential.typed]\nprincipal = \"gate@%s\"\n", proxyRealm), p.behind("/spnego/"))
		a := h.start(t)
		const bring = "sessionctl login app --proxy --password-stdin"
		first := h.fails(t, 5, "proxy_auth_required", "raw", "app")
		wrong := h.giveProxyPassword(t, "app", "CANARY-wrong")
		wantFailure(t, wrong, 5, "bad_credentials")
		for _, r := range []result{first, wrong} {
			if !strings.Contains(r.stderr, bring) {
				t.Errorf("%v", r)
			}
		}
		wantFailure(t, h.giveProxyPassword(t, "tls", "CANARY-wrong"), 5, "latched")
		if r := h.giveProxyPassword(t, "app", password); r.status != 0 {
			t.Fatalf("%v", r)
		}
		for _, site := range []string{"app", "tls"} {
			if got := whoami(t, p.direct, h.ok(t, "raw", site)); got != me {
				t.Errorf("%s: the site names %s", site, got)
			}
		}
		if c := p.proxyCounts(t); c.Basics != 0 || c.Tokens == 0 {
			t.Errorf("the proxy saw %+v", c)
		}
		keptQuiet(t, a, first.String(), wrong.String())
	})
}

// TestFallbackBehindProxy: a site that offers Negotiate and Basic, and whose service
// the KDC does not know. A password goes there only if the site's fallback says so.
func TestFallbackBehindProxy(t *testing.T) {
	behindProxies(t, func(t *testing.T, p *proxied) {
		const unknown = `spn = "HTTP/unknown.corp.example"`
		h := p.home(t, "gate", "[credential.person]\nusername = \"build\"\n", p.behind("/both/", unknown, `fallback = "person"`),
			p.site("strict", p.url+"/both/", unknown, throughCorp), p.site("strict-tls", p.tlsURL+"/both/", unknown, throughCorp))
		a := h.start(t)
		basics := func(want int) {
			t.Helper()
			if n := p.hits(t, "/both/").Basic; n != want {
				t.Errorf("%d passwords were sent, want %d", n, want)
			}
		}
		for _, site := range []string{"strict", "strict-tls"} {
			if r := h.fails(t, 5, "spn_unknown", "raw", site); !strings.Contains(r.stderr, "HTTP/unknown.corp.example") {
				t.Errorf("the service is not named: %v", r)
			}
		}
		basics(0)
		give := func(site, password string) result {
			return h.run(t, password+"\n", filepath.Join(bin, "sessionctl"), "login", site, "--password-stdin")
		}
		r := h.fails(t, 5, "no_secret", "raw", "app")
		if !strings.Contains(r.stderr, "sessionctl login app --password-stdin") || !strings.Contains(r.stderr, "HTTP/unknown.corp.example") {
			t.Errorf("%v", r)
		}
		wantFailure(t, give("app", "CANARY-wrong"), 5, "bad_credentials")
		basics(1)
		wantFailure(t, give("tls", "CANARY-wrong"), 5, "latched")
		basics(1)
		if r := give("app", password); r.status != 0 {
			t.Fatalf("%v", r)
		}
		for _, site := range []string{"app", "tls"} {
			if out := h.ok(t, "get", site, "-o", "json"); !strings.Contains(out, `"user": "build@`+realm+`"`) {
				t.Errorf("%s: %s", site, out)
			}
		}
		basics(3)
		if c := p.proxyCounts(t); c.Basics != 0 {
			t.Errorf("the proxy was given a password: %+v", c)
		}
		keptQuiet(t, a)
	})
}

// TestProxyAuthorizationStaysThere: what is for the proxy does not reach the site,
// and an origin that plays the proxy gets nothing.
func TestProxyAuthorizationStaysThere(t *testing.T) {
	for _, credential := range []string{"gate", "anna"} {
		t.Run(credential, func(t *testing.T) {
			behindProxies(t, func(t *testing.T, p *proxied) {
				h := p.home(t, credential, p.behind("/spnego/"),
					p.site("http", p.originURL+"/", throughCorp), p.site("https", p.originTLS+"/", throughCorp),
					p.site("tunnel407", p.originTLS+"/407/", throughCorp),
					p.site("direct407", named(t, p.originURL, "localhost")+"/407/", `proxy = "none"`))
				a := h.start(t)
				if credential == "anna" {
					if r := h.giveProxyPassword(t, "app", annaPassword); r.status != 0 {
						t.Fatalf("%v", r)
					}
				}
				for _, site := range []string{"http", "https"} {
					h.fails(t, 5, "negotiate_rejected", "raw", site)
				}
				n := p.origin.sent()
				if n["Authorization"] < 4 {
					t.Errorf("the recording site saw %v: no tokens for it", n)
				}
				before := p.proxyCounts(t)
				for _, site := range []string{"tunnel407", "direct407"} {
					if r := h.fails(t, 5, "unexpected_status", "raw", site); !strings.Contains(r.stderr, "407") {
						t.Errorf("%v", r)
					}
				}
				after := p.proxyCounts(t)
				if after.Tokens+after.Basics-before.Tokens-before.Basics > 1 {
					t.Errorf("a 407 from behind the proxy was answered: %+v, before %+v", after, before)
				}
				n = p.origin.sent()
				if n["Proxy-Authorization"] != 0 || n["Proxy-Connection"] != 0 || n[""] < 8 {
					t.Errorf("the recording site saw %v", n)
				}
				keptQuiet(t, a)
			})
		})
	}
}

// TestProxyFromEnvironment: the variables that other tools know, in the agent's
// environment.
func TestProxyFromEnvironment(t *testing.T) {
	p := proxiedInProcess(t)
	sites := p.site("app", p.url+"/spnego/") + p.site("tls", p.tlsURL+"/spnego/")
	// This machine for Linux, but no loopback address, which no variable is about.
	here := named(t, p.url, "0.0.0.0") + "/spnego/"
	sites += p.site("local", here) + p.site("none", here, `proxy = "none"`)
	start := func(t *testing.T, config string, env ...string) *agent {
		t.Helper()
		h := p.home(t, "gate", sites)
		if config == "" {
			h.rewrite(t, p.proxyURL, "http://localhost:1")
		}
		h.extraEnv = append(h.extraEnv, env...)
		return h.start(t)
	}
	served := func(t *testing.T, a *agent, sites ...string) {
		t.Helper()
		for _, site := range sites {
			if got := whoami(t, p.direct, a.ok(t, "raw", site)); got != me {
				t.Errorf("%s: the site names %s", site, got)
			}
		}
	}
	t.Run("with the credential of its table", func(t *testing.T) {
		before := p.proxyCounts(t)
		a := start(t, "table", "http_proxy="+p.proxyURL, "HTTPS_PROXY="+p.proxyURL, "no_proxy=0.0.0.0,other.example")
		served(t, a, "app", "tls", "local")
		after := p.proxyCounts(t)
		if after.Tokens == before.Tokens || after.Basics != before.Basics || after.Connects == before.Connects || after.Requests == before.Requests {
			t.Errorf("the proxy saw %+v, before %+v", after, before)
		}
		keptQuiet(t, a)
	})
	t.Run("with a password in it", func(t *testing.T) {
		secret := (&url.URL{Scheme: "http", User: url.UserPassword("anna", annaPassword), Host: strings.TrimPrefix(p.proxyURL, "http://")}).String()
		before := p.proxyCounts(t)
		a := start(t, "", "http_proxy="+secret, "https_proxy="+secret)
		served(t, a, "app", "tls", "local")
		after := p.proxyCounts(t)
		if after.Tokens != before.Tokens || after.Basics == before.Basics {
			t.Errorf("the proxy saw %+v, before %+v", after, before)
		}
		keptQuiet(t, a)
	})
	t.Run("with a wrong password in it", func(t *testing.T) {
		wrong := strings.Replace(p.proxyURL, "://", "://anna:CANARY-wrong@", 1)
		before := p.proxyCounts(t)
		a := start(t, "", "http_proxy="+wrong)
		served(t, a, "none")
		first := a.fails(t, 5, "proxy_auth_failed", "raw", "app")
		second := a.fails(t, 5, "proxy_auth_failed", "raw", "local")
		if n := p.proxyCounts(t).Basics - before.Basics; n != 1 {
			t.Errorf("the password was tried %d times", n)
		}
		keptQuiet(t, a, first.String(), second.String())
	})
	t.Run("without any credential", func(t *testing.T) {
		a := start(t, "", "https_proxy="+p.proxyURL)
		if r := a.fails(t, 5, "proxy_auth_required", "raw", "tls"); !strings.Contains(r.stderr, p.proxyURL) {
			t.Errorf("the proxy is not named: %v", r)
		}
		served(t, a, "local") // https_proxy is not about it
		keptQuiet(t, a)
	})
	t.Run("that is none", func(t *testing.T) {
		h := p.home(t, "", sites)
		cmd := exec.Command(filepath.Join(bin, "sessiond"), "--config", h.config, "--store", h.store, "--socket", h.socket)
		cmd.Env = append(h.env(), "https_proxy=socks5://anna:CANARY-anna@localhost:1")
		r := finish(t, cmd, "")
		wantFailure(t, r, 5, "config_invalid")
		if !strings.Contains(r.stderr, "https_proxy") {
			t.Errorf("the variable is not named: %v", r)
		}
	})
}

// TestProxyFailures: what goes wrong on the way has a code of its own, names who
// failed, and says what to do next.
func TestProxyFailures(t *testing.T) {
	behindProxies(t, func(t *testing.T, p *proxied) {
		closed := "https://" + siteHost + ":1/"
		h := p.home(t, "gate",
			fmt.Sprintf("[proxy.open]\nurl = %q\n", p.proxyURL),
			"[proxy.down]\nurl = \"http://localhost:1\"\n",
			fmt.Sprintf("[proxy.nospn]\nurl = %q\ncredential = \"gate\"\nspn = \"HTTP/unknown.proxy.example\"\n", p.proxyURL),
			fmt.Sprintf("[proxy.proof]\nurl = %q\ncredential = \"gate\"\nspn = %q\nmutual_auth = \"required\"\n", p.proxyURL, proxySPN),
			fmt.Sprintf("[proxy.tls]\nurl = %q\ncredential = \"gate\"\n", strings.Replace(p.proxyURL, "http://", "https://", 1)),
			p.behind("/spnego/"),
			p.site("open", p.url+"/spnego/", `proxy = "open"`), p.site("open-tls", p.tlsURL+"/spnego/", `proxy = "open"`),
			p.site("down", p.url+"/spnego/", `proxy = "down"`), p.site("down-tls", p.tlsURL+"/spnego/", `proxy = "down"`),
			p.site("nospn", p.tlsURL+"/spnego/", `proxy = "nospn"`),
			p.site("speaks-tls", p.tlsURL+"/spnego/", `proxy = "tls"`),
			p.site("proof", p.url+"/spnego/", `proxy = "proof"`), p.site("proof-tls", p.tlsURL+"/spnego/", `proxy = "proof"`),
			p.site("closed", closed, throughCorp),
			p.site("nowhere", "https://nowhere.example.com/", throughCorp),
		)
		a := h.start(t)
		var shown []string
		for _, c := range []struct {
			site   string
			status int
			code   string
			words  []string
		}{
			{"open", 5, "proxy_auth_required", []string{"the proxy " + p.proxyURL, "negotiate, basic", "credential"}},
			{"open-tls", 5, "proxy_auth_required", []string{"the proxy " + p.proxyURL, "credential"}},
			{"down", 7, "proxy_error", []string{"the proxy http://localhost:1", "refused"}},
			{"down-tls", 7, "proxy_error", []string{"the proxy http://localhost:1", "refused"}},
			{"nospn", 5, "proxy_auth_failed", []string{"the proxy " + p.proxyURL, "HTTP/unknown.proxy.example", "spn"}},
			{"proof", 5, "mutual_auth_failed", []string{"the proxy " + p.proxyURL, proxySPN, `mutual_auth = "if-offered"`}},
			{"proof-tls", 5, "mutual_auth_failed", []string{"the proxy " + p.proxyURL, proxySPN, `mutual_auth = "if-offered"`}},
			{"speaks-tls", 7, "proxy_error", []string{"TLS", "the proxy https://localhost:"}},
			{"closed", 7, "proxy_error", []string{"the proxy " + p.proxyURL, "503"}},
			{"nowhere", 7, "proxy_error", []string{"the proxy " + p.proxyURL, "answers 50"}},
		} {
			r := h.fails(t, c.status, c.code, "raw", c.site)
			shown = append(shown, r.String())
			for _, word := range append(c.words, "\n  next: ") {
				if !strings.Contains(r.stderr, word) {
					t.Errorf("%s: %q is not said: %v", c.site, word, r)
				}
			}
		}
		// The proxy fails when a session lives: it is served, and flagged.
		first := h.ok(t, "raw", "tls")
		p.stopProxy()
		if r := h.sessionctl(t, "raw", "tls"); r.status != 0 || r.stdout != first {
			t.Errorf("with the proxy down: %v", r)
		}
		if r := h.fails(t, 7, "proxy_error", "refresh", "tls"); !strings.Contains(r.stderr, p.proxyURL) {
			t.Errorf("%v", r)
		}
		keptQuiet(t, a, shown...)
	})
}

// TestProxyRefuses: a proxy that lets nobody through, by each of the statuses that
// say so.
func TestProxyRefuses(t *testing.T) {
	proxy, err := rig.StartProxy(rig.ProxyOptions{})
	must(t, err)
	t.Cleanup(proxy.Close)
	w := inProcess(t)
	h := newHome(t, w)
	var sites strings.Builder
	statuses := []int{http.StatusForbidden, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout}
	for _, status := range statuses {
		fmt.Fprintf(&sites, "\n[site.s%d]\nurl = \"https://web.example.com/\"\nkind = \"spnego\"\ncredential = \"build\"\nidentity_json = \"user\"\nproxy = \"corp\"\n", status)
	}
	b, err := os.ReadFile(h.config)
	must(t, err)
	write(t, h.config, string(b)+fmt.Sprintf("\n[proxy.corp]\nurl = %q\n", proxy.URL())+sites.String())
	h.start(t)
	for _, status := range statuses {
		proxy.Refuse(status)
		r := h.fails(t, 7, "proxy_error", "raw", fmt.Sprint("s", status))
		if !strings.Contains(r.stderr, fmt.Sprint(status)) || !strings.Contains(r.stderr, proxy.URL()) || !strings.Contains(r.stderr, "\n  next: ask whoever runs the proxy") {
			t.Errorf("%v", r)
		}
	}
}
