package web

import (
	"bytes"
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
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"sync"
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
// certificates in turn, one for each connection.
func serveTLS(t *testing.T, h http.HandlerFunc, certs ...tls.Certificate) *url.URL {
	t.Helper()
	var mu sync.Mutex
	next := 0
	s := httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.TLS = &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		mu.Lock()
		defer mu.Unlock()
		c := &certs[next%len(certs)]
		next++
		return c, nil
	}}
	s.StartTLS()
	t.Cleanup(s.Close)
	u := at(t, s.URL)
	u.Host = "app.corp.example:" + u.Port()
	return u
}

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

// TestBindingsFollowTheCertificate is about a name that two machines answer for,
// each with a certificate of its own: the first token is bound to the one that
// asked, the second to the one that refused it.
func TestBindingsFollowTheCertificate(t *testing.T) {
	ca := newAuthority(t, ecKey(t, elliptic.P256()))
	first, second := ca.issue(t, x509.ECDSAWithSHA256), ca.issue(t, x509.ECDSAWithSHA256)
	g := &gate{answers: []verdict{{401, ""}, {200, "good"}}}
	u := serveTLS(t, g.ServeHTTP, first, second, second)
	n := &tokens{}
	x := secureExchange(t, Options{Base: u, Negotiate: n}, ca.trust())
	r, err := x.Get(t.Context(), u)
	if err != nil || !r.Mutual {
		t.Fatalf("%+v %v", r, err)
	}
	var got [][]byte
	for _, o := range n.options {
		got = append(got, o.Bindings)
	}
	if want := [][]byte{bindingsOf(crypto.SHA256, first.Certificate[0]), bindingsOf(crypto.SHA256, second.Certificate[0])}; !reflect.DeepEqual(got, want) {
		t.Errorf("bound to %q, want %q", got, want)
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
