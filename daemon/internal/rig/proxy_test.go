package rig_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

// behind is an origin, with and without TLS, that says who it was asked by.
type behind struct {
	plain, tls *httptest.Server

	mu     sync.Mutex
	leaked bool // a Proxy-Authorization came
}

func newBehind(t *testing.T) *behind {
	b := new(behind)
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.leaked = b.leaked || r.Header.Get("Proxy-Authorization") != ""
		io.WriteString(w, "origin "+r.URL.Path+" "+r.Host+" "+r.Header.Get("Authorization"))
	})
	b.plain, b.tls = httptest.NewServer(h), httptest.NewTLSServer(h)
	t.Cleanup(b.plain.Close)
	t.Cleanup(b.tls.Close)
	return b
}

// through is a client of a proxy. Its credentials are a function because a token
// is good for one request.
type through struct {
	t           *testing.T
	transport   *http.Transport
	credentials func() string // "": none
	tunnelled   http.Header   // of the last answer to CONNECT
}

// httptestRoots vouch for every TLS server of httptest: they share a certificate.
var httptestRoots = sync.OnceValue(func() *x509.CertPool {
	s := httptest.NewTLSServer(http.NotFoundHandler())
	defer s.Close()
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	return roots
})

func newThrough(t *testing.T, p *rig.Proxy, credentials func() string) *through {
	t.Helper()
	u, err := url.Parse(p.URL())
	if err != nil {
		t.Fatal(err)
	}
	c := &through{t: t, credentials: credentials}
	c.transport = &http.Transport{
		Proxy:           http.ProxyURL(u),
		TLSClientConfig: &tls.Config{RootCAs: httptestRoots(), ServerName: "example.com"}, // which their certificate is for
		GetProxyConnectHeader: func(context.Context, *url.URL, string) (http.Header, error) {
			return c.header(), nil
		},
		OnProxyConnectResponse: func(_ context.Context, _ *url.URL, _ *http.Request, resp *http.Response) error {
			c.tunnelled = resp.Header
			return nil
		},
	}
	t.Cleanup(c.transport.CloseIdleConnections)
	return c
}

func (c *through) header() http.Header {
	h := make(http.Header)
	if v := c.credentials(); v != "" {
		h.Set("Proxy-Authorization", v)
	}
	return h
}

// get returns status, header and body, and for a tunnel that was refused the
// error's text as the body.
func (c *through) get(u string) (int, http.Header, string) {
	c.t.Helper()
	req, err := http.NewRequestWithContext(c.t.Context(), "GET", u, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Basic of-the-origin")
	if req.URL.Scheme == "http" {
		for name, values := range c.header() {
			req.Header[name] = values
		}
	}
	resp, err := c.transport.RoundTrip(req)
	if err != nil {
		return 0, nil, err.Error()
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, string(b)
}

func startProxy(t *testing.T, o rig.ProxyOptions) *rig.Proxy {
	t.Helper()
	p, err := rig.StartProxy(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

func TestProxy(t *testing.T) {
	b := newBehind(t)
	p := startProxy(t, rig.ProxyOptions{})
	c := newThrough(t, p, func() string { return "Basic CANARY-unasked" })
	for _, origin := range []*httptest.Server{b.plain, b.tls} {
		host := strings.TrimPrefix(strings.TrimPrefix(origin.URL, "https://"), "http://")
		if status, _, body := c.get(origin.URL + "/a"); status != 200 || body != "origin /a "+host+" Basic of-the-origin" {
			t.Errorf("%s: %d %s", origin.URL, status, body)
		}
	}
	b.plain.Close()
	b.tls.Close()
	if status, _, _ := c.get(b.plain.URL + "/a"); status != 503 {
		t.Errorf("an origin that is gone: %d", status)
	}
	c.transport.CloseIdleConnections()
	if _, _, body := c.get(b.tls.URL + "/a"); !strings.Contains(body, "Service Unavailable") {
		t.Errorf("a tunnel to an origin that is gone: %s", body)
	}
	p.Refuse(403)
	if status, _, _ := c.get(b.plain.URL + "/a"); status != 403 {
		t.Errorf("refused: %d", status)
	}
	if _, _, body := c.get(b.tls.URL + "/a"); !strings.Contains(body, "Forbidden") {
		t.Errorf("a refused tunnel: %s", body)
	}
	if b.leaked {
		t.Error("the origin saw a Proxy-Authorization")
	}
	// A request that is for no proxy.
	p.Refuse(0)
	if status := newVisitor(t, p.URL()).get("/a").status; status != 400 {
		t.Errorf("a request for the proxy itself: %d", status)
	}
}

func TestProxyBasic(t *testing.T) {
	b := newBehind(t)
	p := startProxy(t, rig.ProxyOptions{Users: map[string]string{"ann": "CANARY-ann"}})
	credentials := ""
	c := newThrough(t, p, func() string { return credentials })
	for _, bad := range []string{"", "Basic " + base64.StdEncoding.EncodeToString([]byte("ann:CANARY-wrong")), "Basic ?", "Negotiate YWJj"} {
		credentials = bad
		if status, h, body := c.get(b.plain.URL); status != 407 || h.Get("Proxy-Authenticate") != `Basic realm="proxy"` || strings.Contains(body, "CANARY-") {
			t.Errorf("%q: %d %v %s", bad, status, h, body)
		}
		if status, _, body := c.get(b.tls.URL); status != 0 || !strings.Contains(body, "Proxy Authentication Required") || c.tunnelled.Get("Proxy-Authenticate") != `Basic realm="proxy"` {
			t.Errorf("%q: %d %v %s", bad, status, c.tunnelled, body)
		}
	}
	credentials = "basic " + base64.StdEncoding.EncodeToString([]byte("ann:CANARY-ann"))
	for _, origin := range []*httptest.Server{b.plain, b.tls} {
		if status, _, body := c.get(origin.URL); status != 200 {
			t.Errorf("%s: %d %s", origin.URL, status, body)
		}
	}
	if got, want := p.Counts(), (rig.ProxyCounts{Requests: 5, Connects: 5, Challenged: 8, Tokens: 2, Basics: 4}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if b.leaked {
		t.Error("the origin saw a Proxy-Authorization")
	}
}

func TestProxyNegotiate(t *testing.T) {
	k := newKDC(t)
	k.AddService(service)
	keys := k.Keytab(service)
	acceptor := func() *rig.Acceptor {
		a, err := rig.NewAcceptor(keys, service)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	fresh := func() string {
		return "Negotiate " + base64.StdEncoding.EncodeToString(token{"", true, time.Now()}.make(t, keys))
	}
	none := func() string { return "" }
	verdictOf := func(h http.Header) string {
		t.Helper()
		b64, ok := strings.CutPrefix(h.Get("Proxy-Authenticate"), "Negotiate ")
		b, err := base64.StdEncoding.DecodeString(b64)
		if !ok || err != nil {
			return h.Get("Proxy-Authenticate")
		}
		kind, _ := verdict(t, b)
		return kind
	}

	t.Run("per request", func(t *testing.T) {
		b := newBehind(t)
		p := startProxy(t, rig.ProxyOptions{Acceptor: acceptor(), Tokens: true, Challenges: []string{"NTLM", "Negotiate"}})
		c := newThrough(t, p, fresh)
		for range 2 {
			if status, h, body := c.get(b.plain.URL); status != 200 || verdictOf(h) != "AP-REP" {
				t.Errorf("%d %v %s", status, h, body)
			}
		}
		if status, _, body := c.get(b.tls.URL); status != 200 || verdictOf(c.tunnelled) != "AP-REP" {
			t.Errorf("%d %v %s", status, c.tunnelled, body)
		}
		c.credentials = none
		status, h, _ := c.get(b.plain.URL)
		if status != 407 || !reflect.DeepEqual(h.Values("Proxy-Authenticate"), []string{"NTLM", "Negotiate"}) {
			t.Errorf("the same connection without a token: %d %v", status, h)
		}
		old := fresh()
		c.credentials = func() string { return old }
		c.get(b.plain.URL)
		status, h, _ = c.get(b.plain.URL)
		h.Set("Proxy-Authenticate", h.Values("Proxy-Authenticate")[1])
		if status != 407 || verdictOf(h) != "KRB-ERROR" {
			t.Errorf("replayed token: %d %v", status, h)
		}
		want := []rig.ProxyConnection{{Requests: 5, Tokens: 4, Users: []string{"svc@RIG.TEST"}}, {Requests: 1, Tokens: 1, Users: []string{"svc@RIG.TEST"}}}
		if got := p.Connections(); !reflect.DeepEqual(got, want) {
			t.Errorf("connections %+v, want %+v", got, want)
		}
		if b.leaked {
			t.Error("the origin saw a Proxy-Authorization")
		}
	})
	t.Run("per connection", func(t *testing.T) {
		b := newBehind(t)
		p := startProxy(t, rig.ProxyOptions{Acceptor: acceptor(), ConnectionBound: true})
		c := newThrough(t, p, fresh)
		if status, h, _ := c.get(b.plain.URL); status != 200 || h.Get("Proxy-Authenticate") != "" {
			t.Errorf("%d %v", status, h)
		}
		c.credentials = none
		if status, _, _ := c.get(b.plain.URL); status != 200 {
			t.Errorf("the same connection without a token: %d", status)
		}
		c.transport.CloseIdleConnections()
		if status, h, _ := c.get(b.plain.URL); status != 407 || verdictOf(h) != "Negotiate" {
			t.Errorf("another connection without a token: %d %v", status, h)
		}
	})
	t.Run("endless", func(t *testing.T) {
		b := newBehind(t)
		p := startProxy(t, rig.ProxyOptions{Acceptor: acceptor(), Endless: true})
		c := newThrough(t, p, fresh)
		for range 3 {
			if status, h, _ := c.get(b.plain.URL); status != 407 || verdictOf(h) != "Negotiate" {
				t.Errorf("%d %v", status, h)
			}
		}
		if got, want := p.Counts(), (rig.ProxyCounts{Requests: 3, Challenged: 3, Tokens: 3}); got != want {
			t.Errorf("%+v, want %+v", got, want)
		}
	})
}

func TestProxyOverTLS(t *testing.T) {
	b := newBehind(t)
	certificate := b.tls.TLS.Certificates[0]
	p := startProxy(t, rig.ProxyOptions{TLS: &tls.Config{Certificates: []tls.Certificate{certificate}}})
	c := newThrough(t, p, func() string { return "" })
	for _, origin := range []*httptest.Server{b.plain, b.tls} {
		if status, _, body := c.get(origin.URL); status != 200 {
			t.Errorf("%s: %d %s", origin.URL, status, body)
		}
	}
	c = newThrough(t, p, func() string { return "" })
	c.transport.TLSClientConfig = nil
	if _, _, body := c.get(b.plain.URL); !strings.Contains(body, "x509") {
		t.Errorf("an unknown authority: %s", body)
	}
}

// Close ends tunnels that wait.
func TestProxyCloses(t *testing.T) {
	b := newBehind(t)
	p := startProxy(t, rig.ProxyOptions{})
	c := newThrough(t, p, func() string { return "" })
	for _, origin := range []*httptest.Server{b.plain, b.tls} {
		if status, _, body := c.get(origin.URL); status != 200 {
			t.Fatalf("%d %s", status, body)
		}
	}
	p.Close()
	if _, _, body := c.get(b.tls.URL); !strings.Contains(body, "refused") {
		t.Errorf("after the end: %s", body)
	}
}
