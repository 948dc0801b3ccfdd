package web

import (
	"bufio"
	"bytes"
	"context"
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
	"time"

	"go.uber.org/goleak"

	"github.com/sessionctl/sessionctl/api"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// tokens is a Negotiator that counts its tokens and remembers how they were
// asked for. The server's proof "good" is right, "accepted" is none, "refused"
// and "rejected" are refusals, all else is wrong.
type tokens struct {
	mu      sync.Mutex
	name    string // in the tokens
	size    int    // of a token, at least
	spns    []string
	fresh   []bool
	options []InitiateOptions
	err     error
}

func (n *tokens) Initiate(ctx context.Context, spn string, o InitiateOptions) (Negotiation, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	n.spns, n.fresh, n.options = append(n.spns, spn), append(n.fresh, o.Fresh), append(n.options, o)
	token := fmt.Sprintf("CANARY-%stoken-%d", n.name, len(n.spns))
	return negotiation(token + strings.Repeat(".", max(0, n.size-len(token)))), n.err
}

type negotiation string

func (t negotiation) Token() []byte { return []byte(t) }

func (negotiation) Verify(b []byte) (bool, error) {
	switch string(b) {
	case "good":
		return true, nil
	case "accepted":
		return false, nil
	case "rejected":
		return false, &api.Error{Code: api.NegotiateRejected, Remedy: "x"}
	case "refused":
		return false, &api.Error{Code: api.ServiceKeyMismatch, Remedy: "x"}
	}
	return false, &api.Error{Code: api.MutualAuthFailed, Remedy: "x"}
}

func answer(s string) string { return "Negotiate " + base64.StdEncoding.EncodeToString([]byte(s)) }

// names resolves every name to the loopback address, the port staying as it is.
func names(ctx context.Context, network, address string) (net.Conn, error) {
	_, port, _ := net.SplitHostPort(address)
	return new(net.Dialer).DialContext(ctx, network, "127.0.0.1:"+port)
}

// serve starts a site under the name app.corp.example and returns its URL.
func serve(t *testing.T, h http.HandlerFunc) *url.URL {
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	u := at(t, s.URL)
	u.Host = "app.corp.example:" + u.Port()
	return u
}

func exchange(t *testing.T, base *url.URL, n Negotiator, hosts ...Origin) *Exchange {
	x := NewExchange(Options{Base: base, InsecureHTTP: true, UserAgent: "test/1", Negotiate: n, LoginHosts: hosts, Dial: names}, new(Jar))
	t.Cleanup(x.Close)
	return x
}

func want(t *testing.T, err error, code api.Code) {
	t.Helper()
	if api.CodeOf(err) != code {
		t.Errorf("got %v, want code %s", err, code)
	}
	if err != nil && api.AsError(err).Remedy == "" {
		t.Errorf("%v: no next step", err)
	}
}

func TestNegotiate(t *testing.T) {
	var seen []string
	u := serve(t, func(w http.ResponseWriter, r *http.Request) {
		seen = append(seen, r.Host+" "+r.Header.Get("Authorization"))
		if r.Header.Get("Authorization") == "" {
			w.Header().Add("WWW-Authenticate", `Basic realm="a, b"`)
			w.Header().Add("WWW-Authenticate", "negotiate")
			w.Header().Add("Set-Cookie", "s=early")
			w.WriteHeader(401)
			return
		}
		w.Header().Set("WWW-Authenticate", answer("good"))
		w.Header().Add("Set-Cookie", "s=CANARY-session; HttpOnly")
	})
	n := &tokens{}
	x := exchange(t, u, n)
	r, err := x.Get(t.Context(), u)
	if err != nil || r.Status != 200 || !r.Negotiated || !r.Mutual {
		t.Fatalf("%+v %v", r, err)
	}
	if got := x.Jar().Header(u, time.Now()); got != "s=CANARY-session" {
		t.Errorf("cookies: %q", got)
	}
	if !slices.Equal(n.spns, []string{"HTTP/app.corp.example"}) {
		t.Errorf("SPNs: %q", n.spns)
	}
	if len(seen) != 2 || !strings.HasPrefix(seen[1], u.Host+" Negotiate ") {
		t.Errorf("the server saw %q", seen)
	}
}

// TestTwoTokensAtMost is about a server that asks for ever, as Tomcat does
// with a ticket it cannot decrypt (facts: 501 requests from other clients).
func TestTwoTokensAtMost(t *testing.T) {
	var requests atomic.Int32
	u := serve(t, func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		w.Header().Set("WWW-Authenticate", "Negotiate")
		w.WriteHeader(401)
	})
	n := &tokens{}
	x := exchange(t, u, n)
	for range 3 {
		r, err := x.Get(t.Context(), u)
		if err != nil {
			t.Fatal(err)
		}
		want(t, r.Refused(), api.NegotiateRejected)
	}
	if !slices.Equal(n.fresh, []bool{false, true}) {
		t.Errorf("tokens asked for (fresh): %v", n.fresh)
	}
	if requests.Load() != 5 { // 3 questions, 2 tokens
		t.Errorf("%d requests", requests.Load())
	}
}

func TestRefusalWithReason(t *testing.T) {
	u := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") == "" {
			w.Header().Set("WWW-Authenticate", "Negotiate")
		} else {
			w.Header().Set("WWW-Authenticate", answer("refused"))
		}
		w.WriteHeader(401)
	})
	r, err := exchange(t, u, &tokens{}).Get(t.Context(), u)
	if err != nil {
		t.Fatal(err)
	}
	want(t, r.Refused(), api.ServiceKeyMismatch)
}

// TestFalseProof: a server that shows a wrong AP-REP is not the service,
// however friendly its page and its redirects are.
func TestFalseProof(t *testing.T) {
	for _, status := range []int{200, 302, 500} {
		u := serve(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("WWW-Authenticate", "Negotiate")
			if r.Header.Get("Authorization") == "" {
				w.WriteHeader(401)
				return
			}
			w.Header().Set("WWW-Authenticate", answer("forged"))
			w.Header().Set("Location", "/next")
			w.WriteHeader(status)
		})
		_, err := exchange(t, u, &tokens{}).Get(t.Context(), u)
		want(t, err, api.MutualAuthFailed)
	}
}

func TestTokenError(t *testing.T) {
	u := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("WWW-Authenticate", "Negotiate")
		w.WriteHeader(401)
	})
	_, err := exchange(t, u, &tokens{err: &api.Error{Code: api.KDCUnreachable, Remedy: "x"}}).Get(t.Context(), u)
	want(t, err, api.KDCUnreachable)
}

// TestRedirects: where a chain may lead, and that nothing is sent where it may
// not.
func TestRedirects(t *testing.T) {
	var foreign atomic.Int32
	other := serve(t, func(w http.ResponseWriter, r *http.Request) {
		foreign.Add(1)
		w.Header().Set("WWW-Authenticate", "Negotiate")
		w.WriteHeader(401)
	})
	login := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") == "" {
			w.Header().Set("WWW-Authenticate", "Negotiate")
			w.WriteHeader(401)
			return
		}
		http.Redirect(w, r, r.URL.Query().Get("back"), http.StatusFound)
	})
	login.Host = "login.corp.example:" + login.Port()
	var base *url.URL
	base = serve(t, func(w http.ResponseWriter, r *http.Request) {
		to := map[string]string{
			"/other-port":   "http://app.corp.example:" + other.Port() + "/",
			"/other-host":   "http://evil.example:" + base.Port() + "/ok",
			"/sub-host":     "http://sub.app.corp.example:" + base.Port() + "/ok",
			"/suffix-host":  "http://app.corp.example.evil.example:" + base.Port() + "/ok",
			"/user-in-host": "http://app.corp.example:" + base.Port() + "@evil.example/",
			"/user":         "http://somebody@app.corp.example:" + base.Port() + "/ok",
			"/to-https":     "https://app.corp.example:" + base.Port() + "/ok",
			"/file":         "file:///etc/passwd",
			"/loop":         "/loop",
			"/pingpong":     "/pongping",
			"/pongping":     "/pingpong",
			"/fine":         "/ok",
			"/dot":          "http://APP.corp.example.:" + base.Port() + "/ok",
			"/login":        "http://login.corp.example:" + login.Port() + "/?back=" + url.QueryEscape("http://app.corp.example:"+base.Port()+"/ok"),
		}[r.URL.Path]
		if to != "" {
			w.Header().Set("Location", to)
			w.Header().Add("Set-Cookie", "hop=1; path=/")
			w.WriteHeader(302)
		}
	})
	for path, code := range map[string]api.Code{
		"/other-port": api.SSORedirect, "/other-host": api.SSORedirect, "/sub-host": api.SSORedirect, "/suffix-host": api.SSORedirect,
		"/user-in-host": api.SSORedirect, "/user": api.SSORedirect, "/to-https": api.InsecureRedirect, "/file": api.SSORedirect,
		"/loop": api.RedirectLoop, "/pingpong": api.RedirectLoop, "/fine": "", "/dot": "", "/login": "",
	} {
		n := &tokens{}
		x := exchange(t, base, n, OriginOf(login))
		u := *base
		u.Path = path
		r, err := x.Get(t.Context(), &u)
		if e := (*api.Error)(nil); errors.As(err, &e) && strings.Contains(e.Error(), "back=") {
			t.Errorf("%s: the message shows a query: %v", path, err)
		}
		if want(t, err, code); api.CodeOf(err) != code {
			t.Errorf("%s: %v, want %q", path, err, code)
		} else if err == nil && (r.Status != 200 || x.Jar().Header(base, time.Now()) != "hop=1") {
			t.Errorf("%s: status %d, cookies %q", path, r.Status, x.Jar().Header(base, time.Now()))
		}
		if path == "/login" && !r.Negotiated {
			t.Error("the login host was not negotiated with")
		}
	}
	if foreign.Load() != 0 {
		t.Errorf("%d requests to a foreign origin", foreign.Load())
	}
}

func TestNoHTTPUnlessAllowed(t *testing.T) {
	var requests atomic.Int32
	u := serve(t, func(http.ResponseWriter, *http.Request) { requests.Add(1) })
	x := NewExchange(Options{Base: u, Dial: names}, new(Jar))
	defer x.Close()
	_, err := x.Get(t.Context(), u)
	want(t, err, api.InsecureRedirect)
	_, err = x.Send(t.Context(), Request{URL: u})
	want(t, err, api.InsecureRedirect)
	if requests.Load() != 0 {
		t.Error("a request went over http")
	}
}

func TestHTTPSToHTTP(t *testing.T) {
	plain := serve(t, func(http.ResponseWriter, *http.Request) { t.Error("a request went over http") })
	x := NewExchange(Options{Base: at(t, "https://app.corp.example/"), InsecureHTTP: true, LoginHosts: []Origin{OriginOf(plain)}, Dial: names}, new(Jar))
	defer x.Close()
	want(t, x.allow(at(t, "https://app.corp.example/"), plain), api.InsecureRedirect)
}

// TestProbeSendsOnlyCookies: a probe proves the cookies and nothing else.
func TestProbeSendsOnlyCookies(t *testing.T) {
	connections := map[string]bool{}
	u := serve(t, func(w http.ResponseWriter, r *http.Request) {
		connections[r.RemoteAddr] = true
		if r.Header.Get("Authorization") != "" {
			t.Error("a probe carried a token")
		}
		if r.Header.Get("Cookie") != "s=1" {
			w.Header().Set("WWW-Authenticate", "Negotiate")
			w.WriteHeader(401)
			return
		}
		http.Redirect(w, r, "/elsewhere", http.StatusFound)
	})
	var j Jar
	j.Set(u, []string{"s=1; path=/"}, time.Now())
	for _, c := range []struct {
		jar    *Jar
		status int
	}{{&j, 302}, {new(Jar), 401}} {
		x := NewExchange(Options{Base: u, InsecureHTTP: true, Negotiate: &tokens{}, Dial: names}, c.jar)
		r, err := x.Send(t.Context(), Request{URL: u})
		x.Close()
		if err != nil || r.Status != c.status {
			t.Errorf("%+v %v, want %d", r, err, c.status)
		}
	}
	if len(connections) != 2 {
		t.Errorf("two exchanges shared a connection")
	}
}

func TestHostileAnswers(t *testing.T) {
	big := strings.Repeat("x", 64<<10)
	u := serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/headers":
			for i := range 64 {
				w.Header().Set(fmt.Sprint("X-", i), big)
			}
		case "/body":
			for range 64 {
				fmt.Fprint(w, big)
			}
		case "/drip":
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		case "/early":
			c, _, _ := w.(http.Hijacker).Hijack()
			c.Close()
		}
	})
	get := func(ctx context.Context, path string) (*Response, error) {
		v := *u
		v.Path = path
		return exchange(t, u, nil).Get(ctx, &v)
	}
	_, err := get(t.Context(), "/headers")
	want(t, err, api.NetworkError)
	_, err = get(t.Context(), "/early")
	want(t, err, api.NetworkError)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err = get(ctx, "/drip")
	want(t, err, api.Timeout)
	if r, err := get(t.Context(), "/body"); err != nil || len(r.Body) != maxBodyBytes {
		t.Errorf("%v", err)
	}
}

func TestTransportErrors(t *testing.T) {
	get := func(raw string, dial func(context.Context, string, string) (net.Conn, error)) error {
		u := at(t, raw)
		x := NewExchange(Options{Base: u, InsecureHTTP: true, Dial: dial}, new(Jar))
		defer x.Close()
		_, err := x.Get(t.Context(), u)
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close() // nobody listens there now
	want(t, get("http://"+l.Addr().String(), nil), api.NetworkError)
	want(t, get("http://x.invalid", func(context.Context, string, string) (net.Conn, error) {
		return nil, &net.DNSError{Err: "no such host", Name: "x.invalid", IsNotFound: true}
	}), api.DNSError)
	plain := serve(t, func(http.ResponseWriter, *http.Request) {})
	want(t, get("https://"+plain.Host, names), api.TLSError)
	s := httptest.NewUnstartedServer(http.NotFoundHandler())
	s.Config.ErrorLog = nil
	s.StartTLS()
	defer s.Close()
	want(t, get(s.URL, nil), api.TLSError) // an unknown authority
}

func TestStatusError(t *testing.T) {
	for status, code := range map[int]api.Code{429: api.RateLimited, 503: api.Maintenance, 500: api.Server5xx, 502: api.Server5xx, 200: "", 401: "", 404: ""} {
		r := &Response{URL: at(t, "https://app.corp.example/x?CANARY-query"), Status: status, Header: http.Header{"Retry-After": {"120"}}}
		err := StatusError(r)
		want(t, err, code)
		if err != nil && strings.Contains(err.Error(), "CANARY") {
			t.Errorf("the message shows a query: %v", err)
		}
	}
}

func TestRefusedWithoutNegotiate(t *testing.T) {
	for challenge, code := range map[string]api.Code{"": api.NoChallenge, "NTLM": api.NTLMOnly, `Basic realm="x"`: api.ChallengeUnsupported, "Negotiate": api.NegotiateRejected} {
		r := &Response{URL: at(t, "https://app.corp.example/"), Challenges: ParseChallenges([]string{challenge})}
		want(t, r.Refused(), code)
	}
}

func TestParseOrigin(t *testing.T) {
	for in, out := range map[string]string{
		"login.corp.example": "https://login.corp.example", "LOGIN.corp.example.:8443": "https://login.corp.example:8443",
		"https://login.corp.example:443/": "https://login.corp.example", "http://login:80": "http://login", "[::1]:8443": "https://[::1]:8443",
		"bücher.example": "https://xn--bcher-kva.example",
	} {
		if o, err := ParseOrigin(in); err != nil || o.String() != out {
			t.Errorf("%q: %v %v, want %s", in, o, err, out)
		}
	}
	for _, in := range []string{"", "ftp://x", "https://x/path", "https://u:CANARY@x", "x?y", "https://", ":443",
		"*.corp.example", "a*b", "login host", "login.corp.example ", "a\tb", "a\u00a0b", "a\u202eb", "a\x00b", "a%b", "a%2eb", "[fe80::1%25eth0]"} {
		if o, err := ParseOrigin(in); err == nil {
			t.Errorf("%q gave %v", in, o)
		} else if strings.Contains(err.Error(), "CANARY") {
			t.Errorf("the message shows a password: %v", err)
		}
	}
}

func TestResolve(t *testing.T) {
	for _, c := range [][3]string{
		{"https://app/jira", "", "https://app/jira"}, {"https://app/jira", "rest/me", "https://app/jira/rest/me"},
		{"https://app/jira/", "rest/me?x=1", "https://app/jira/rest/me?x=1"}, {"https://app/jira", "/login", "https://app/login"},
		{"https://app", "me", "https://app/me"}, {"https://app/jira", "https://other/x", "https://other/x"},
	} {
		if u, err := Resolve(at(t, c[0]), c[1]); err != nil || u.String() != c[2] {
			t.Errorf("%s + %s: %v %v, want %s", c[0], c[1], u, err, c[2])
		}
	}
}

// listen starts a server that serves one connection after the other.
func listen(t *testing.T, serve func(net.Conn)) *url.URL {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { l.Close(); <-done })
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serve(c)
		}
	}()
	return &url.URL{Scheme: "http", Host: l.Addr().String(), Path: "/"}
}

// raw starts a server that answers every request with the same bytes and then
// closes the connection.
func raw(t *testing.T, answer string) *url.URL {
	return listen(t, func(c net.Conn) {
		http.ReadRequest(bufio.NewReader(c))
		io.WriteString(c, answer)
		c.Close()
	})
}

// TestMalformedAnswers: net/http's errors quote the server; ours do not.
func TestMalformedAnswers(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\n"
	for name, c := range map[string]struct{ answer, says string }{
		"no HTTP":           {"CANARY-session\r\n\r\n", "not HTTP"},
		"version":           {"HTTP/CANARY-session 200 OK\r\n\r\n", "not HTTP"},
		"status":            {"HTTP/1.1 CANARY-session\r\n\r\n", "not HTTP"},
		"field":             {ok + "Set-Cookie session=CANARY-session\r\n\r\n", "not HTTP"},
		"first field":       {ok + " Set-Cookie: session=CANARY-session\r\n\r\n", "not HTTP"},
		"field value":       {ok + "Set-Cookie: session=CANARY-session\x01\r\n\r\n", "not HTTP"},
		"length":            {ok + "Content-Length: CANARY-session\r\n\r\n", "not HTTP"},
		"lengths":           {ok + "Content-Length: 1\r\nContent-Length: CANARY-session\r\n\r\n", "not HTTP"},
		"transfer encoding": {ok + "Transfer-Encoding: CANARY-session\r\n\r\n", "not HTTP"},
		"chunk":             {ok + "Transfer-Encoding: chunked\r\n\r\nCANARY-session\r\n", "not HTTP"},
		"header too long":   {ok + "Set-Cookie: CANARY-session" + strings.Repeat("x", 2*maxHeaderBytes) + "\r\n\r\n", "too long"},
		"nothing":           {"", "connection was closed"},
		"half":              {ok + "Content-Length: 100\r\n\r\nCANARY-session", "connection was closed"},
	} {
		u := raw(t, c.answer)
		_, err := exchange(t, u, nil).Get(t.Context(), u)
		if want(t, err, api.NetworkError); err == nil || strings.Contains(err.Error(), "CANARY") || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %q", name, err, c.says)
		}
	}
}

// TestTLSErrors: what a certificate says does not reach a message either.
func TestTLSErrors(t *testing.T) {
	u := at(t, "https://app.corp.example/")
	cert := &x509.Certificate{DNSNames: []string{"CANARY-name"}}
	for says, err := range map[string]error{
		"another name":       x509.HostnameError{Certificate: cert, Host: "app.corp.example"},
		"unknown authority":  x509.UnknownAuthorityError{Cert: cert},
		"has expired":        x509.CertificateInvalidError{Cert: cert, Reason: x509.Expired, Detail: "current time 2026-05-01T12:00:00Z is after 2026-04-01T12:00:00Z"},
		"not authorized":     x509.CertificateInvalidError{Cert: cert, Reason: x509.CANotAuthorizedForThisName, Detail: "CANARY-name"},
		"cannot be verified": &tls.CertificateVerificationError{Err: errors.New("CANARY-name")},
		"handshake failed":   errors.New("tls: failed to parse certificate from server: CANARY-name"),
	} {
		got := new(Exchange).transportError(t.Context(), u, err)
		want(t, got, api.TLSError)
		if strings.Contains(got.Error(), "CANARY") || !strings.Contains(got.Error(), says) {
			t.Errorf("%v, want %q", got, says)
		}
	}
	// A server that speaks no TLS that we speak: its alert is a fixed text.
	s := httptest.NewUnstartedServer(http.NotFoundHandler())
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert, MaxVersion: tls.VersionTLS12}
	s.StartTLS()
	defer s.Close()
	x := NewExchange(Options{Base: at(t, s.URL)}, new(Jar))
	defer x.Close()
	x.transport.TLSClientConfig = s.Client().Transport.(*http.Transport).TLSClientConfig
	_, err := x.Get(t.Context(), at(t, s.URL))
	want(t, err, api.TLSError)
	if !strings.Contains(err.Error(), "bad certificate") && !strings.Contains(err.Error(), "handshake failure") {
		t.Errorf("%v", err)
	}
}

// TestShown: no session and nothing that a terminal obeys, however a server
// puts it into a Location.
func TestShown(t *testing.T) {
	for in, out := range map[string]string{
		"https://app.corp.example/a;jsessionid=CANARY/b;x=CANARY?CANARY#CANARY": "https://app.corp.example/a/b",
		"https://u:CANARY@app.corp.example:443/a%3Bjsessionid=CANARY":           "https://app.corp.example/a",
		"https://app.corp.example/\u202e%1b%0a":                                 "https://app.corp.example/%E2%80%AE%1B%0A",
		"https://a\u202eb\u0085.example:8443/":                                  "https://a?b?.example:8443/",
		"https://a%E2%80%AEb*.example/":                                         "https://a?b?.example/",
		"https://app.corp.example":                                              "https://app.corp.example",
	} {
		if got := Shown(at(t, in)); got != out {
			t.Errorf("%q is shown as %q, want %q", in, got, out)
		}
	}
}

// TestTokenOnce: a kept-alive connection that breaks under a token does not
// make net/http send the token again.
func TestTokenOnce(t *testing.T) {
	var mu sync.Mutex
	seen := map[string]int{}
	u := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if a := r.Header.Get("Authorization"); a != "" {
			mu.Lock()
			seen[a]++
			mu.Unlock()
			c, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			c.Close()
			return
		}
		w.Header().Set("WWW-Authenticate", "Negotiate")
		w.WriteHeader(401)
	})
	_, err := exchange(t, u, &tokens{}).Get(t.Context(), u)
	want(t, err, api.NetworkError)
	mu.Lock()
	defer mu.Unlock()
	if len(seen) != 1 || seen[answer("CANARY-token-1")] != 1 {
		t.Errorf("tokens seen: %v", seen)
	}
}

// TestNoCache: what a cache remembers proves nothing.
func TestNoCache(t *testing.T) {
	u := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		if got := r.Header.Get("Cache-Control"); got != "no-cache" {
			t.Errorf("Cache-Control: %q", got)
		}
	})
	x := exchange(t, u, nil)
	_, err := x.Get(t.Context(), u)
	want(t, err, "")
	_, err = x.Send(t.Context(), Request{URL: u})
	want(t, err, "")
}

func TestPermit(t *testing.T) {
	https := Options{Base: at(t, "https://app.corp.example/app"), LoginHosts: []Origin{{"https", "login.corp.example", "443"}}}
	clear := Options{Base: at(t, "http://app.corp.example"), InsecureHTTP: true}
	for _, c := range []struct {
		o    Options
		u    string
		code api.Code
	}{
		{https, "https://app.corp.example/x", ""}, {https, "https://APP.corp.example.:443/", ""}, {https, "https://login.corp.example/", ""},
		{https, "https://evil.example/", api.SSORedirect}, {https, "https://app.corp.example:8443/", api.SSORedirect},
		{https, "http://app.corp.example/", api.InsecureRedirect}, {https, "https://u@app.corp.example/", api.SSORedirect},
		{https, "ftp://app.corp.example/", api.SSORedirect}, {https, "/x", api.SSORedirect}, {https, "https://:443/", api.SSORedirect},
		{clear, "http://app.corp.example/", ""}, {clear, "https://app.corp.example/", api.InsecureRedirect}, {clear, "https://evil.example/", api.SSORedirect},
	} {
		want(t, c.o.Permit(at(t, c.u)), c.code)
	}
	// What to add to login_hosts is an entry that is enough, of a host that stands
	// there with another scheme, too.
	for _, u := range []string{"http://login.corp.example/x?y", "http://localhost:42891/sso", "https://login.corp.example:8443", "http://[::1]:8080/", "https://b\u00fccher.example"} {
		o := Options{Base: at(t, "https://app.corp.example/app"), InsecureHTTP: true, LoginHosts: []Origin{{"https", "login.corp.example", "443"}, {"https", "localhost", "42891"}}}
		err := o.Permit(at(t, u))
		want(t, err, api.SSORedirect)
		_, rest, _ := strings.Cut(api.AsError(err).Remedy, ` add "`)
		entry, _, ok := strings.Cut(rest, `" to the site's login_hosts`)
		host, bad := ParseOrigin(entry)
		if o.LoginHosts = append(o.LoginHosts, host); !ok || bad != nil || o.Permit(at(t, u)) != nil {
			t.Errorf("%s: %v", u, api.AsError(err).Remedy)
		}
	}
}

// TestSend: one request as the driver has it, with the cookies and without a
// token.
func TestSend(t *testing.T) {
	u := serve(t, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		for name, want := range map[string]string{"Content-Type": "text/x", "Accept": "a/b", "User-Agent": "test/1", "Cookie": "s=1", "Authorization": ""} {
			if got := r.Header.Get(name); got != want {
				t.Errorf("%s: %q, want %q", name, got, want)
			}
		}
		if r.Method != http.MethodPut || string(body) != "CANARY-body" || r.URL.RawQuery != "q=1" {
			t.Errorf("%s %s %q", r.Method, r.URL, body)
		}
		w.Header().Set("WWW-Authenticate", "Negotiate")
		w.Header().Set("Set-Cookie", "s=2; Path=/")
		w.WriteHeader(http.StatusUnauthorized)
		w.Write([]byte("no"))
	})
	n := new(tokens)
	x := exchange(t, u, n)
	x.Jar().Set(u, []string{"s=1; Path=/"}, noon)
	to := u.JoinPath("a")
	to.RawQuery = "q=1"
	r, err := x.Send(t.Context(), Request{Method: http.MethodPut, URL: to, Body: []byte("CANARY-body"), Header: http.Header{"Content-Type": {"text/x"}, "Accept": {"a/b"}}})
	if err != nil {
		t.Fatal(err)
	}
	if r.Status != 401 || !bytes.Equal(r.Body, []byte("no")) || r.URL.String() != to.String() || r.SetCookies != 1 || FindChallenge(r.Challenges, "negotiate") == nil || r.Negotiated || n.spns != nil {
		t.Errorf("%+v, tokens for %q", r, n.spns)
	}
	if got := x.Jar().Header(u, x.Now()); got != "s=2" {
		t.Errorf("cookies: %q", got)
	}
	_, err = x.Send(t.Context(), Request{URL: at(t, "http://foreign.example/")})
	want(t, err, api.SSORedirect)
	_, err = x.Send(t.Context(), Request{Method: "CANARY METHOD", URL: u})
	if want(t, err, api.InvalidRequest); err == nil || strings.Contains(err.Error(), "CANARY") {
		t.Errorf("%v", err)
	}
}

// TestBodyOnce: a kept-alive connection that breaks under a password does not
// make net/http send the password again, whatever the method.
func TestBodyOnce(t *testing.T) {
	var bodies atomic.Int32
	u := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength <= 0 {
			return
		}
		bodies.Add(1)
		c, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		c.Close()
	})
	for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodGet} {
		x := exchange(t, u, nil)
		if _, err := x.Send(t.Context(), Request{URL: u}); err != nil {
			t.Fatal(err)
		}
		bodies.Store(0)
		_, err := x.Send(t.Context(), Request{Method: method, URL: u, Body: []byte("CANARY-password")})
		want(t, err, api.NetworkError)
		if n := bodies.Load(); n != 1 {
			t.Errorf("%s: sent %d times", method, n)
		}
	}
}

// TestFollows: where an answer leads, and whether one may go there.
func TestFollows(t *testing.T) {
	x := NewExchange(Options{Base: at(t, "https://app.corp.example/app"), LoginHosts: []Origin{{"https", "login.corp.example", "443"}}}, new(Jar))
	defer x.Close()
	for _, c := range []struct {
		status   int
		location string
		to       string // "": nowhere
		code     api.Code
	}{
		{301, "/x", "https://app.corp.example/x", ""}, {302, "x?y#z", "https://app.corp.example/app/x?y", ""}, {303, "//login.corp.example/", "https://login.corp.example/", ""},
		{307, "https://app.corp.example:443/", "https://app.corp.example:443/", ""}, {308, "/x", "https://app.corp.example/x", ""}, {308, "", "", ""},
		{200, "/x", "", ""}, {201, "/x", "", ""}, {300, "/x", "", ""}, {304, "/x", "", ""}, {401, "/x", "", ""}, {302, "https://%zz/", "", ""},
		{302, "https://foreign.example/CANARY?CANARY", "https://foreign.example/CANARY?CANARY", api.SSORedirect},
		{302, "http://app.corp.example/", "http://app.corp.example/", api.InsecureRedirect},
		{302, "https://u:CANARY@app.corp.example/", "https://u:CANARY@app.corp.example/", api.SSORedirect},
		{302, "javascript:CANARY", "javascript:CANARY", api.SSORedirect},
	} {
		to, err := x.Follows(&Response{URL: at(t, "https://app.corp.example/app/from?CANARY"), Status: c.status, Header: http.Header{"Location": {c.location}}})
		if want(t, err, c.code); (to == nil) != (c.to == "") || to != nil && to.String() != c.to {
			t.Errorf("%d %q leads to %v, want %q", c.status, c.location, to, c.to)
		}
		if err != nil && (strings.Contains(err.Error(), "CANARY") || !strings.HasPrefix(err.Error(), "https://app.corp.example/app/from leads ")) {
			t.Errorf("%v", err)
		}
	}
}

// TestPermitFrom: a step that a page leads to is judged as a redirect is.
func TestPermitFrom(t *testing.T) {
	plain := Origin{"http", "login.corp.example", "80"}
	x := NewExchange(Options{Base: at(t, "https://app.corp.example/app"), LoginHosts: []Origin{plain}, InsecureHTTP: true}, new(Jar))
	defer x.Close()
	for _, c := range []struct {
		from, to string
		code     api.Code
	}{
		{"https://app.corp.example/", "https://app.corp.example/in", ""}, {"http://login.corp.example/", "http://login.corp.example/in", ""},
		{"http://login.corp.example/", "https://app.corp.example/", ""}, {"https://app.corp.example/", "http://login.corp.example/in", api.InsecureRedirect},
		{"https://app.corp.example/", "https://foreign.example/", api.SSORedirect},
	} {
		want(t, x.Permit(at(t, c.from), at(t, c.to)), c.code)
	}
}

// TestPresent: what an exchange calls itself.
func TestPresent(t *testing.T) {
	var agent string
	u := serve(t, func(_ http.ResponseWriter, r *http.Request) { agent = r.UserAgent() })
	plain := "sessionctl/" + api.Version
	for configured, steps := range map[string][][2]string{
		"":       {{"", plain}, {"Windows NT", plain + " (Windows NT)"}, {"X", plain + " (X)"}},
		"corp/1": {{"", "corp/1"}, {"Windows NT", "corp/1"}},
	} {
		x := NewExchange(Options{Base: u, InsecureHTTP: true, UserAgent: configured, Dial: names}, new(Jar))
		for i, s := range steps {
			if i > 0 {
				x.Present(s[0])
			}
			_, err := x.Send(t.Context(), Request{URL: u})
			if want(t, err, ""); agent != s[1] || x.UserAgent() != s[1] {
				t.Errorf("configured %q, presents %q: sent %q, says %q, want %q", configured, s[0], agent, x.UserAgent(), s[1])
			}
		}
		x.Close()
	}
}
