package web

import (
	"bufio"
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sessionctl/sessionctl/api"
)

// authority signs certificates for every host of corp.example.
type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

func newAuthority(t *testing.T, key crypto.Signer) *authority {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{cert, key}
}

func (a *authority) issue(t *testing.T, algorithm x509.SignatureAlgorithm) tls.Certificate {
	t.Helper()
	key := ecKey(t, elliptic.P256())
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: serial, DNSNames: []string{"app.corp.example", "login.corp.example", "proxy.corp.example"}, SignatureAlgorithm: algorithm,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func (a *authority) trust() *tls.Config {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return &tls.Config{RootCAs: pool}
}

func ecKey(t *testing.T, curve elliptic.Curve) *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// serveTLS starts a site under https://app.corp.example that shows the
// certificates in turn, one for each connection. The context of each request
// holds, under shown{}, the one that its connection showed, in DER.
func serveTLS(t *testing.T, h http.HandlerFunc, certs ...tls.Certificate) *url.URL {
	t.Helper()
	var mu sync.Mutex
	next := 0
	byPeer := map[string][]byte{}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		der := byPeer[r.RemoteAddr]
		mu.Unlock()
		h(w, r.WithContext(context.WithValue(r.Context(), shown{}, der)))
	}))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.TLS = &tls.Config{GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		mu.Lock()
		defer mu.Unlock()
		c := &certs[next%len(certs)]
		next++
		byPeer[hello.Conn.RemoteAddr().String()] = c.Certificate[0]
		return c, nil
	}}
	s.StartTLS()
	t.Cleanup(s.Close)
	u := at(t, s.URL)
	u.Host = "app.corp.example:" + u.Port()
	return u
}

type shown struct{}

// secureExchange is exchange for a site with TLS.
func secureExchange(t *testing.T, o Options, trust *tls.Config) *Exchange {
	o.Dial = names
	x := NewExchange(o, new(Jar))
	x.transport.TLSClientConfig = trust
	t.Cleanup(x.Close)
	return x
}

// gate asks for Negotiate and gives these answers to the tokens, one each, the
// last one for ever: a status and what its Negotiate challenge says. Every
// response sets the cookie s to the number of tokens seen.
type gate struct {
	answers []verdict
	tokens  []string
}

type verdict struct {
	status int
	proof  string
}

func (g *gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	v := verdict{status: 401}
	if a := r.Header.Get("Authorization"); a != "" {
		v = g.answers[min(len(g.tokens), len(g.answers)-1)]
		g.tokens = append(g.tokens, a)
	}
	w.Header().Set("Set-Cookie", fmt.Sprintf("s=%d; path=/", len(g.tokens)))
	w.Header().Set("Location", "/")
	switch {
	case v.proof != "":
		w.Header().Set("WWW-Authenticate", answer(v.proof))
	case v.status == 401:
		w.Header().Set("WWW-Authenticate", "Negotiate")
	}
	w.WriteHeader(v.status)
}

// TestMutual is the table of what each policy makes of an answer.
func TestMutual(t *testing.T) {
	for _, c := range []struct {
		policy  MutualPolicy
		answer  verdict
		asked   bool
		mutual  bool
		code    api.Code // of Get
		refused api.Code // of the response, if it is 401
		cookies string
	}{
		{MutualOff, verdict{200, ""}, false, false, "", "", "s=1"},
		{MutualOff, verdict{200, "accepted"}, false, false, "", "", "s=1"},
		{MutualOff, verdict{200, "forged"}, false, false, "", "", "s=1"},
		{MutualOff, verdict{200, "refused"}, false, false, api.ServiceKeyMismatch, "", "s=0"},
		{MutualOff, verdict{401, "refused"}, false, false, "", api.ServiceKeyMismatch, "s=2"},
		{"", verdict{200, ""}, true, false, "", "", "s=1"},
		{MutualIfOffered, verdict{200, ""}, true, false, "", "", "s=1"},
		{MutualIfOffered, verdict{200, "accepted"}, true, false, "", "", "s=1"},
		{MutualIfOffered, verdict{200, "good"}, true, true, "", "", "s=1"},
		{MutualIfOffered, verdict{200, "forged"}, true, false, api.MutualAuthFailed, "", "s=0"},
		{MutualIfOffered, verdict{503, ""}, true, false, "", "", "s=1"},
		{MutualIfOffered, verdict{401, "refused"}, true, false, "", api.ServiceKeyMismatch, "s=2"},
		{MutualRequired, verdict{200, "good"}, true, true, "", "", "s=1"},
		{MutualRequired, verdict{200, ""}, true, false, api.MutualAuthFailed, "", "s=0"},
		{MutualRequired, verdict{200, "accepted"}, true, false, api.MutualAuthFailed, "", "s=0"},
		{MutualRequired, verdict{200, "forged"}, true, false, api.MutualAuthFailed, "", "s=0"},
		{MutualRequired, verdict{302, ""}, true, false, api.MutualAuthFailed, "", "s=0"},
		{MutualRequired, verdict{403, ""}, true, false, api.MutualAuthFailed, "", "s=0"},
		{MutualRequired, verdict{503, ""}, true, false, "", "", "s=0"}, // an outage stays one
		{MutualRequired, verdict{401, "refused"}, true, false, "", api.ServiceKeyMismatch, "s=2"},
		{MutualRequired, verdict{401, ""}, true, false, "", api.NegotiateRejected, "s=2"},
	} {
		n := &tokens{}
		u := serve(t, (&gate{answers: []verdict{c.answer}}).ServeHTTP)
		x := NewExchange(Options{Base: u, InsecureHTTP: true, Negotiate: n, Mutual: c.policy, Dial: names}, new(Jar))
		r, err := x.Get(t.Context(), u)
		what := fmt.Sprintf("%q, %+v", c.policy, c.answer)
		if api.CodeOf(err) != c.code || err != nil && api.AsError(err).Remedy == "" {
			t.Errorf("%s: %v, want %q", what, err, c.code)
		}
		if got := x.Jar().Header(u, time.Now()); got != c.cookies {
			t.Errorf("%s: cookies %q, want %q", what, got, c.cookies)
		}
		if n.options[0].Mutual != c.asked {
			t.Errorf("%s: a proof asked for: %t", what, n.options[0].Mutual)
		}
		if err == nil && r.Mutual != c.mutual {
			t.Errorf("%s: proven %t", what, r.Mutual)
		}
		if c.refused != "" {
			want(t, r.Refused(), c.refused)
		}
		x.Close()
	}
	if MutualPolicy("x").Valid() || !MutualPolicy("").Valid() || !MutualRequired.Valid() || BindingPolicy("x").Valid() || !BindingPolicy("").Valid() || !BindingsOff.Valid() {
		t.Error("which policies there are")
	}
}

// TestTokenAmongChallenges: a server's proof counts wherever it stands, and the
// first if there are several.
func TestTokenAmongChallenges(t *testing.T) {
	for _, fields := range [][]string{
		{"Negotiate", answer("forged")}, {"Negotiate, " + answer("forged")}, {answer("forged"), answer("good")}, {`Basic realm="x, y"`, "negotiate " + strings.TrimPrefix(answer("forged"), "Negotiate ") + ", NTLM"},
	} {
		u := serve(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header()["Www-Authenticate"] = fields
			if r.Header.Get("Authorization") == "" {
				w.Header()["Www-Authenticate"] = []string{"Negotiate"}
				w.WriteHeader(401)
			}
		})
		_, err := exchange(t, u, &tokens{}).Get(t.Context(), u)
		want(t, err, api.MutualAuthFailed)
	}
	u := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("WWW-Authenticate", "Negotiate a-b")
		w.WriteHeader(401)
	})
	r, err := exchange(t, u, &tokens{}).Get(t.Context(), u)
	if err != nil {
		t.Fatal(err)
	}
	want(t, r.Refused(), api.NegotiateRejected)
}

// TestConfiguredSPN: it is for the site's own host and for no other.
func TestConfiguredSPN(t *testing.T) {
	login := serve(t, (&gate{answers: []verdict{{200, "good"}}}).ServeHTTP)
	login.Host = "login.corp.example:" + login.Port()
	g := &gate{answers: []verdict{{401, "rejected"}, {302, "good"}}}
	base := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.Host, "APP.corp.example.:") {
			t.Errorf("Host: %s", r.Host)
		}
		g.ServeHTTP(location{w, login.String()}, r)
	})
	n := &tokens{}
	x := NewExchange(Options{Base: base, InsecureHTTP: true, Negotiate: n, SPN: "HTTP/farm.corp.example@CORP.EXAMPLE", LoginHosts: []Origin{OriginOf(login)}, Dial: names}, new(Jar))
	defer x.Close()
	upper := *base
	upper.Host = "APP.corp.example.:" + base.Port()
	if r, err := x.Get(t.Context(), &upper); err != nil || r.Status != 200 || r.URL.Host != login.Host {
		t.Fatalf("%+v %v", r, err)
	}
	if want := []string{"HTTP/farm.corp.example@CORP.EXAMPLE", "HTTP/farm.corp.example@CORP.EXAMPLE", "HTTP/login.corp.example"}; !slices.Equal(n.spns, want) {
		t.Errorf("SPNs %q", n.spns)
	}
	if !n.options[0].Exact || !n.options[1].Exact || n.options[2].Exact {
		t.Errorf("%+v", n.options)
	}
	// Messages name the one that was asked for.
	u := serve(t, (&gate{answers: []verdict{{401, ""}}}).ServeHTTP)
	x = NewExchange(Options{Base: u, InsecureHTTP: true, Negotiate: n, SPN: "HTTP/farm.corp.example", Dial: names}, new(Jar))
	defer x.Close()
	for range 2 {
		r, err := x.Get(t.Context(), u)
		if err != nil {
			t.Fatal(err)
		}
		if e := api.AsError(r.Refused()); !strings.Contains(e.Remedy, "HTTP/farm.corp.example ") || e.Code != api.NegotiateRejected {
			t.Errorf("%v; %s", e, e.Remedy)
		}
	}
}

// location fixes the Location of a response.
type location struct {
	http.ResponseWriter
	to string
}

func (l location) WriteHeader(status int) {
	l.Header().Set("Location", l.to)
	l.ResponseWriter.WriteHeader(status)
}

// TestTokenTooLarge: many servers refuse long fields; the person learns how
// tickets get smaller.
func TestTokenTooLarge(t *testing.T) {
	for _, c := range []struct {
		status, size int
		code         api.Code
	}{
		{400, 9000, api.UnexpectedStatus}, {431, 9000, api.UnexpectedStatus}, {400, 700, ""}, {431, 700, ""}, {404, 9000, ""}, {200, 9000, ""},
	} {
		u := serve(t, (&gate{answers: []verdict{{c.status, ""}}}).ServeHTTP)
		_, err := exchange(t, u, &tokens{size: c.size}).Get(t.Context(), u)
		want(t, err, c.code)
		if err != nil && !strings.Contains(api.AsError(err).Remedy, "no_pac = true") {
			t.Errorf("remedy: %s", api.AsError(err).Remedy)
		}
	}
}

// TestEndPoint is RFC 5929, section 4.1, over all algorithms that crypto/x509
// knows.
func TestEndPoint(t *testing.T) {
	hashes := map[x509.SignatureAlgorithm]crypto.Hash{
		x509.MD5WithRSA: crypto.SHA256, x509.SHA1WithRSA: crypto.SHA256, x509.DSAWithSHA1: crypto.SHA256, x509.ECDSAWithSHA1: crypto.SHA256,
		x509.SHA256WithRSA: crypto.SHA256, x509.DSAWithSHA256: crypto.SHA256, x509.ECDSAWithSHA256: crypto.SHA256, x509.SHA256WithRSAPSS: crypto.SHA256,
		x509.SHA384WithRSA: crypto.SHA384, x509.ECDSAWithSHA384: crypto.SHA384, x509.SHA384WithRSAPSS: crypto.SHA384,
		x509.SHA512WithRSA: crypto.SHA512, x509.ECDSAWithSHA512: crypto.SHA512, x509.SHA512WithRSAPSS: crypto.SHA512,
	}
	for a := x509.UnknownSignatureAlgorithm; a < 64; a++ {
		if got, want := endPoint(&x509.Certificate{Raw: []byte("certificate"), SignatureAlgorithm: a}), bindingsOf(hashes[a], []byte("certificate")); !bytes.Equal(got, want) {
			t.Errorf("%v: %q, want %q", a, got, want)
		}
	}
	if endPoint(nil) != nil {
		t.Error("bindings without a certificate")
	}
	// A hash that does not come from this program's code:
	// printf certificate | sha256sum
	if got := fmt.Sprintf("%x", endPoint(&x509.Certificate{Raw: []byte("certificate"), SignatureAlgorithm: x509.SHA1WithRSA})[len("tls-server-end-point:"):]); got != "03d66dd08835c1ca3f128cceacd1f31ac94163096b20f445ae84285bc0832d72" {
		t.Errorf("SHA-256 is %s", got)
	}
}

// bindingsOf computes the bindings by another way than endPoint.
func bindingsOf(h crypto.Hash, der []byte) []byte {
	if h == 0 {
		return nil
	}
	w := h.New()
	w.Write(der)
	return w.Sum([]byte("tls-server-end-point:"))
}

// TestBindings is the table of the policies over real connections.
func TestBindings(t *testing.T) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaCA, ecCA, edCA := newAuthority(t, rsaKey), newAuthority(t, ecKey(t, elliptic.P384())), newAuthority(t, edKey)
	for _, c := range []struct {
		ca        *authority // nil: http
		algorithm x509.SignatureAlgorithm
		hash      crypto.Hash // 0: none is defined
	}{
		{rsaCA, x509.SHA256WithRSA, crypto.SHA256}, {rsaCA, x509.SHA512WithRSAPSS, crypto.SHA512}, {ecCA, x509.ECDSAWithSHA384, crypto.SHA384},
		{edCA, x509.PureEd25519, 0}, {nil, 0, 0},
	} {
		for _, policy := range []BindingPolicy{"", BindingsAuto, BindingsOff, BindingsRequired} {
			g := &gate{answers: []verdict{{200, "good"}}}
			var u *url.URL
			var expected []byte
			trust := &tls.Config{}
			if c.ca == nil {
				u = serve(t, g.ServeHTTP)
			} else {
				cert := c.ca.issue(t, c.algorithm)
				u, trust = serveTLS(t, g.ServeHTTP, cert), c.ca.trust()
				if policy != BindingsOff {
					expected = bindingsOf(c.hash, cert.Certificate[0])
				}
			}
			n := &tokens{}
			x := secureExchange(t, Options{Base: u, InsecureHTTP: true, Negotiate: n, Bindings: policy}, trust)
			_, err := x.Get(t.Context(), u)
			what := fmt.Sprintf("%v, %q", c.algorithm, policy)
			if policy == BindingsRequired && c.hash == 0 {
				if want(t, err, api.BadChannelBinding); len(n.spns) != 0 || len(g.tokens) != 0 {
					t.Errorf("%s: a token was made or sent", what)
				}
				continue
			}
			if err != nil {
				t.Errorf("%s: %v", what, err)
				continue
			}
			if got := n.options[0].Bindings; !bytes.Equal(got, expected) {
				t.Errorf("%s: bound to %q, want %q", what, got, expected)
			}
		}
	}
}

// TestTokenOfItsConnection: a token is bound to the certificate of the very
// connection that carries it, whatever another of the same name has shown. So
// nobody who lets one connection pass and ends the next himself, with a valid
// certificate of his own, gets a token that the genuine site would take from him;
// and where several machines answer for a name, each gets one that fits.
func TestTokenOfItsConnection(t *testing.T) {
	ca := newAuthority(t, ecKey(t, elliptic.P256()))
	first, second := ca.issue(t, x509.ECDSAWithSHA256), ca.issue(t, x509.ECDSAWithSHA256)
	for _, policy := range []BindingPolicy{BindingsAuto, BindingsRequired} {
		for _, through := range []bool{false, true} {
			var carriers [][]byte
			g := &gate{answers: []verdict{{401, ""}, {200, "good"}}}
			u := serveTLS(t, func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Authorization") != "" {
					carriers = append(carriers, bindingsOf(crypto.SHA256, r.Context().Value(shown{}).([]byte)))
				}
				g.ServeHTTP(w, r)
			}, first, second)
			n := &tokens{}
			o := Options{Base: u, Negotiate: n, Bindings: policy}
			if through { // there is TLS with the proxy, too
				p := newGateway(t, &gateway{challenges: []string{"Negotiate"}, admit: anyToken})
				p.TLS = &tls.Config{Certificates: []tls.Certificate{ca.issue(t, x509.ECDSAWithSHA256)}}
				p.StartTLS()
				to := at(t, p.URL)
				to.Host = "proxy.corp.example:" + to.Port()
				o.Proxy = &Proxy{URL: to, Negotiate: &tokens{name: "proxy-"}}
			}
			r, err := secureExchange(t, o, ca.trust()).Get(t.Context(), u)
			if err != nil || !r.Mutual {
				t.Fatalf("%s, through a proxy %t: %+v %v", policy, through, r, err)
			}
			var bound [][]byte
			for _, o := range n.options {
				bound = append(bound, o.Bindings)
			}
			// The first of all connections carried none.
			want := [][]byte{bindingsOf(crypto.SHA256, second.Certificate[0]), bindingsOf(crypto.SHA256, first.Certificate[0])}
			if !reflect.DeepEqual(bound, want) || !reflect.DeepEqual(carriers, want) {
				t.Errorf("%s, through a proxy %t: bound to %x, carried by %x, want %x", policy, through, bound, carriers, want)
			}
		}
	}
}

// TestUnsentToken: where there is no token for a connection, not a byte of HTTP
// goes over it, directly or in a tunnel.
func TestUnsentToken(t *testing.T) {
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca, edCA := newAuthority(t, ecKey(t, elliptic.P256())), newAuthority(t, edKey)
	trust := ca.trust()
	trust.RootCAs.AddCert(edCA.cert)
	usual, undefined := ca.issue(t, x509.ECDSAWithSHA256), edCA.issue(t, x509.PureEd25519)
	for _, c := range []struct {
		second tls.Certificate
		err    error // of the Negotiator
		code   api.Code
		asked  int
	}{
		{undefined, nil, api.BadChannelBinding, 0},
		{usual, &api.Error{Code: api.KDCUnreachable, Remedy: "x"}, api.KDCUnreachable, 1},
	} {
		for _, through := range []bool{false, true} {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			got := make(chan string, 1)
			go func() {
				defer close(got)
				for i, cert := range []tls.Certificate{usual, c.second} {
					raw, err := l.Accept()
					if err != nil {
						return
					}
					conn := tls.Server(raw, &tls.Config{Certificates: []tls.Certificate{cert}})
					if i == 0 {
						http.ReadRequest(bufio.NewReader(conn))
						io.WriteString(conn, "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Negotiate\r\nContent-Length: 0\r\n\r\n")
					}
					b := make([]byte, 1)
					n, err := conn.Read(b) // the agent leaves or says something
					if i == 1 && (n > 0 || err == io.EOF) {
						got <- string(b[:n])
					}
					conn.Close()
				}
			}()
			u := at(t, "https://app.corp.example/")
			_, port, _ := net.SplitHostPort(l.Addr().String())
			u.Host += ":" + port
			n := &tokens{err: c.err}
			o := Options{Base: u, Negotiate: n, Bindings: BindingsRequired}
			if through {
				o.Proxy = &Proxy{URL: at(t, newGateway(t, &gateway{}).start().URL)}
			}
			x := secureExchange(t, o, trust)
			_, err = x.Get(t.Context(), u)
			x.Close()
			l.Close()
			if want(t, err, c.code); len(n.spns) != c.asked {
				t.Errorf("%s: %d tokens were asked for", c.code, len(n.spns))
			}
			if b, finished := <-got; !finished || b != "" {
				t.Errorf("%s, through a proxy %t: the connection ended properly %t, after %q", c.code, through, finished, b)
			}
		}
	}
}

// TestTokenNotRepeated: net/http may give a request the connection that another
// one has just left, and take a third when that breaks. The token stays with
// the first, and there is no other for what may have been understood already.
func TestTokenNotRepeated(t *testing.T) {
	ca := newAuthority(t, ecKey(t, elliptic.P256()))
	var seen []string
	u := serveTLS(t, func(w http.ResponseWriter, r *http.Request) {
		switch a := r.Header.Get("Authorization"); {
		case r.URL.Path == "/other":
		case a == "":
			w.Header().Set("WWW-Authenticate", "Negotiate")
			w.WriteHeader(401)
		default:
			seen = append(seen, a)
			panic(http.ErrAbortHandler)
		}
	}, ca.issue(t, x509.ECDSAWithSHA256))
	n := &tokens{}
	x := secureExchange(t, Options{Base: u, Negotiate: n}, ca.trust())
	var dials atomic.Int32
	x.transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		if dials.Add(1) == 2 { // for the token
			_, err := x.Send(t.Context(), Request{URL: u.JoinPath("other")})
			want(t, err, "")
		}
		return names(ctx, network, address)
	}
	_, err := x.Get(t.Context(), u)
	if want(t, err, api.NetworkError); len(n.spns) != 1 || len(seen) != 1 {
		t.Errorf("%d tokens made, %q sent", len(n.spns), seen)
	}
	if dials.Load() < 3 || err == nil || !strings.Contains(err.Error(), "that carried the token") {
		t.Errorf("%d connections: %v", dials.Load(), err)
	}
}

// TestRequiredIsExact: where the service has to prove itself, no name from the
// DNS stands in for the one that was asked for, and the person learns what to do.
func TestRequiredIsExact(t *testing.T) {
	const kdcs = "the KDC's remedy"
	for _, c := range []struct {
		policy MutualPolicy
		spn    string
		exact  bool
		says   string
	}{
		{MutualRequired, "", true, "name it with spn"}, {MutualRequired, "HTTP/farm.corp.example", true, kdcs},
		{MutualIfOffered, "", false, kdcs}, {"", "", false, kdcs}, {MutualOff, "", false, kdcs}, {MutualOff, "HTTP/farm.corp.example", true, kdcs},
	} {
		u := serve(t, (&gate{answers: []verdict{{200, "good"}}}).ServeHTTP)
		n := &tokens{err: &api.Error{Code: api.SPNUnknown, Detail: "unknown", Remedy: kdcs}}
		o := Options{Base: u, InsecureHTTP: true, Negotiate: n, Mutual: c.policy, SPN: c.spn, Dial: names}
		for range 2 {
			x := NewExchange(o, new(Jar))
			_, err := x.Get(t.Context(), u)
			x.Close()
			if n.err != nil {
				if want(t, err, api.SPNUnknown); !strings.Contains(api.AsError(err).Remedy, c.says) || !strings.Contains(err.Error(), "unknown") {
					t.Errorf("%+v: %v; %s", c, err, api.AsError(err).Remedy)
				}
			} else {
				want(t, err, "")
			}
			if got := n.options[len(n.options)-1]; got.Exact != c.exact || got.Mutual != (c.policy != MutualOff) {
				t.Errorf("%+v: %+v", c, got)
			}
			n.err = nil
		}
		// A host that a login leads to has no spn to name, and no other name either.
		o.LoginHosts, o.Base = []Origin{OriginOf(u)}, at(t, "http://base.corp.example/")
		x := NewExchange(o, new(Jar))
		_, err := x.Get(t.Context(), u)
		x.Close()
		if want(t, err, ""); n.options[2].Exact != (c.policy == MutualRequired) {
			t.Errorf("%+v, at a login host: %+v", c, n.options[2])
		}
	}
}

// TestBoundTokenRefused: where a front ends TLS no bound token is ever right,
// and only a person can know.
func TestBoundTokenRefused(t *testing.T) {
	ca := newAuthority(t, ecKey(t, elliptic.P256()))
	for _, c := range []struct {
		policy BindingPolicy
		proof  string
		hint   bool
	}{{BindingsAuto, "", true}, {BindingsRequired, "rejected", true}, {BindingsOff, "", false}, {BindingsAuto, "refused", false}} {
		g := &gate{answers: []verdict{{401, c.proof}}}
		u := serveTLS(t, g.ServeHTTP, ca.issue(t, x509.ECDSAWithSHA256))
		r, err := secureExchange(t, Options{Base: u, Negotiate: &tokens{}, Bindings: c.policy}, ca.trust()).Get(t.Context(), u)
		if err != nil {
			t.Fatal(err)
		}
		e := api.AsError(r.Refused())
		if got := strings.Contains(e.Remedy, `channel_bindings = "off"`); got != c.hint || len(g.tokens) != 2 {
			t.Errorf("%q, %q: remedy %q after %d tokens", c.policy, c.proof, e.Remedy, len(g.tokens))
		}
	}
}

// TestTokenForm: a token goes out as RFC 4559, section 4.2, has it.
func TestTokenForm(t *testing.T) {
	g := &gate{answers: []verdict{{200, "good"}}}
	u := serve(t, g.ServeHTTP)
	if r, err := exchange(t, u, &tokens{size: 300}).Get(t.Context(), u); err != nil || r.SetCookies != 2 {
		t.Fatalf("%+v %v", r, err)
	}
	b, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(g.tokens[0], "Negotiate "))
	if err != nil || len(b) != 300 {
		t.Errorf("%q: %v", g.tokens[0], err)
	}
}
