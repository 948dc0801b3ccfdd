package rig_test

import (
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

// startSquid starts Squid before a fresh Apache, both in the realm of a fresh
// KDC. The ticket cache of the KDC holds a ticket of svc. What options lack of
// Kerberos is filled in.
func startSquid(t *testing.T, options rig.SquidOptions) (*rig.Squid, *rig.Apache, *rig.MITKDC) {
	t.Helper()
	rig.Require(t, "squid")
	a, k := startApache(t, 0)
	if !options.NoNegotiate {
		options.Krb5ConfFile, options.KeytabFile = k.Krb5ConfFile(), keytab(k, "http")
	}
	s, err := rig.StartSquid(t.Context(), t.TempDir(), options)
	must(t, err)
	t.Cleanup(s.Stop)
	return s, a, k
}

// curlVia has curl write nothing but the proxy's answer to CONNECT (000: none) and the
// last answer of all, such as "200 200".
func curlVia(t *testing.T, s *rig.Squid, a *rig.Apache, k *rig.MITKDC, args ...string) string {
	t.Helper()
	args = append([]string{"-s", "-o", "/dev/null", "-w", "%{http_connect} %{http_code}", "--cacert", a.CAFile(), "-x", s.URL()}, args...)
	// curl fails with status 56 when a CONNECT is refused, which -w tells as well.
	out, failure := run(t, k, "curl", args...)
	if failure != "" {
		var ok bool
		if out, ok = strings.CutPrefix(failure, "exit status 56: "); !ok {
			t.Fatal(failure)
		}
	}
	return out
}

func squidHits(t *testing.T, s *rig.Squid) []rig.SquidHit {
	t.Helper()
	hits, err := s.Hits(t.Context())
	must(t, err)
	return hits
}

func TestSquidNegotiate(t *testing.T) {
	s, a, k := startSquid(t, rig.SquidOptions{SPN: "HTTP/localhost@" + realm})
	host := strings.TrimPrefix(a.TLSURL(), "https://")
	for _, test := range []struct {
		args []string
		want string
		hits []rig.SquidHit
	}{
		{
			[]string{a.URL() + "/plain/?q=1"}, "000 407",
			[]rig.SquidHit{{Method: "GET", URL: a.URL() + "/plain/?q=1", Status: 407}},
		},
		{
			[]string{"--proxy-negotiate", "-U", ":", a.URL() + "/plain/"}, "000 200",
			[]rig.SquidHit{{Method: "GET", URL: a.URL() + "/plain/", Scheme: "Negotiate", User: "svc@" + realm, Status: 200}},
		},
		{
			[]string{a.TLSURL() + "/plain/"}, "407 000",
			[]rig.SquidHit{{Method: "CONNECT", URL: host, Status: 407}},
		},
		{
			// Proxy and site want a token each.
			[]string{"--proxy-negotiate", "-U", ":", "--negotiate", "-u", ":", a.TLSURL() + "/nosess/"}, "200 200",
			[]rig.SquidHit{{Method: "CONNECT", URL: host, Scheme: "Negotiate", User: "svc@" + realm, Status: 200}},
		},
		{
			[]string{"-U", "svc:CANARY-svc", a.URL() + "/plain/"}, "000 407",
			[]rig.SquidHit{{Method: "GET", URL: a.URL() + "/plain/", Scheme: "Basic", Status: 407}},
		},
	} {
		before := len(squidHits(t, s))
		if got := curlVia(t, s, a, k, test.args...); got != test.want {
			t.Errorf("%q: %s, want %s", test.args, got, test.want)
		}
		if got := squidHits(t, s)[before:]; !slices.Equal(got, test.hits) {
			t.Errorf("%q: hits %+v, want %+v", test.args, got, test.hits)
		}
	}
	hits, err := a.Hits("/")
	if err != nil || hits.Total != 2 || hits.Negotiate != 1 {
		t.Errorf("Apache saw %+v, %v", hits, err)
	}

	// A key that the KDC has and Squid lacks.
	must(t, k.Rekey(t.Context(), "HTTP/localhost", ""))
	if failure := kinit(t, k, keytab(k, "svc"), "svc"); failure != "" {
		t.Fatal(failure)
	}
	if got := curlVia(t, s, a, k, "--proxy-negotiate", "-U", ":", a.URL()+"/plain/"); got != "000 407" {
		t.Errorf("with a ticket that Squid cannot open: %s", got)
	}
	must(t, k.Keytab(t.Context(), keytab(k, "http"), "HTTP/localhost"))
	s.Stop()
	must(t, s.Start(t.Context()))
	if got := curlVia(t, s, a, k, "--proxy-negotiate", "-U", ":", a.URL()+"/plain/"); got != "000 200" {
		t.Errorf("with the new keytab: %s", got)
	}
	noSecrets(t, s)
}

func TestSquidBasic(t *testing.T) {
	s, a, k := startSquid(t, rig.SquidOptions{Users: map[string]string{"anna": "CANARY-a b:%c", "bert": "CANARY-bert"}})
	res := viaSquid(t, s, &http.Transport{DisableKeepAlives: true}, a.URL()+"/plain/", "")
	if got := res.Header.Values("Proxy-Authenticate"); res.StatusCode != 407 || !slices.Equal(got, []string{"Negotiate", `Basic realm="rig"`}) {
		t.Errorf("%s, challenges %q", res.Status, got)
	}
	for password, want := range map[string]string{
		"anna:CANARY-a b:%c": "200", "bert:CANARY-bert": "200", "anna:CANARY-bert": "407", "carl:CANARY-bert": "407", "anna:": "407",
	} {
		if got := curlVia(t, s, a, k, "-U", password, a.URL()+"/plain/"); got != "000 "+want {
			t.Errorf("%q: %s, want %s", password, got, want)
		}
		connect := map[string]string{"200": "200 200", "407": "407 000"}[want]
		if got := curlVia(t, s, a, k, "-U", password, a.TLSURL()+"/plain/"); got != connect {
			t.Errorf("%q, CONNECT: %s, want %s", password, got, connect)
		}
	}
	if got := curlVia(t, s, a, k, "--proxy-negotiate", "-U", ":", a.URL()+"/plain/"); got != "000 200" {
		t.Errorf("with a ticket: %s", got)
	}
	got := make(map[rig.SquidHit]int)
	for _, hit := range squidHits(t, s) {
		if hit.Method == "GET" {
			got[hit]++
		}
	}
	hit := rig.SquidHit{Method: "GET", URL: a.URL() + "/plain/", Scheme: "Basic", User: "bert", Status: 200}
	if got[hit] != 1 {
		t.Errorf("%+v is missing in %v", hit, got)
	}
	noSecrets(t, s)
}

// Squid knows the user of a connection, not of a request.
func TestSquidNegotiateBindsTheConnection(t *testing.T) {
	rig.Require(t, "py_gssapi")
	s, a, k := startSquid(t, rig.SquidOptions{})
	tr := &http.Transport{}
	defer tr.CloseIdleConnections()
	client := newInitiator(t, k, nil)
	for _, test := range []struct {
		tr            *http.Transport
		authorization string
		hit           rig.SquidHit
	}{
		{tr, "Negotiate " + client.token, rig.SquidHit{Scheme: "Negotiate", User: "svc@" + realm, Status: 200}},
		{tr, "", rig.SquidHit{User: "svc@" + realm, Status: 200}},
		{&http.Transport{DisableKeepAlives: true}, "", rig.SquidHit{Status: 407}},
	} {
		test.hit.Method, test.hit.URL = "GET", a.URL()+"/plain/"
		res := viaSquid(t, s, test.tr, a.URL()+"/plain/", test.authorization)
		hits := squidHits(t, s)
		if got := hits[len(hits)-1]; res.StatusCode != test.hit.Status || got != test.hit {
			t.Errorf("%s, %+v, want %+v", res.Status, got, test.hit)
		}
		if got := res.Header.Values("Proxy-Authenticate"); res.StatusCode == 200 && got != nil {
			t.Errorf("Squid answers %q: a proof of itself is news", got)
		}
	}
	if got, err := a.Hits("/"); err != nil || got.Total != 2 || got.Negotiate != 0 {
		t.Errorf("Apache saw %+v, %v", got, err)
	}
}

func TestSquidWithoutCredentials(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	nobody := "http://" + l.Addr().String()
	l.Close()
	s, a, k := startSquid(t, rig.SquidOptions{NoNegotiate: true, Hosts: "127.0.0.1 web.rig.test\n"})
	if got := curlVia(t, s, a, k, a.URL()+"/plain/"); got != "000 200" {
		t.Errorf("http: %s", got)
	}
	if got := curlVia(t, s, a, k, a.TLSURL()+"/plain/"); got != "200 200" {
		t.Errorf("CONNECT: %s", got)
	}
	web := strings.Replace(a.URL(), "localhost", "web.rig.test", 1)
	if got := curlVia(t, s, a, k, web+"/plain/"); got != "000 200" {
		t.Errorf("a name of the hosts file: %s", got)
	}
	if got := curlVia(t, s, a, k, "http://other.rig.test/"); got != "000 502" {
		t.Errorf("an unknown name: %s", got)
	}
	if got := curlVia(t, s, a, k, nobody+"/"); got != "000 503" {
		t.Errorf("a port where nobody listens: %s", got)
	}
	if got := squidHits(t, s); len(got) != 5 || got[0] != (rig.SquidHit{Method: "GET", URL: a.URL() + "/plain/", Status: 200}) {
		t.Errorf("%+v", got)
	}
}

// A tunnel is in the log when it has ended.
func TestSquidStop(t *testing.T) {
	s, a, _ := startSquid(t, rig.SquidOptions{NoNegotiate: true})
	if err := s.Start(t.Context()); err == nil {
		t.Error("started twice")
	}
	tunnel := func() net.Conn {
		conn, err := net.Dial("tcp", strings.TrimPrefix(s.URL(), "http://"))
		must(t, err)
		host := strings.TrimPrefix(a.URL(), "http://")
		_, err = io.WriteString(conn, "CONNECT "+host+" HTTP/1.1\r\nHost: "+host+"\r\n\r\n")
		must(t, err)
		const established = "HTTP/1.1 200 Connection established\r\n\r\n"
		answer := make([]byte, len(established))
		_, err = io.ReadFull(conn, answer)
		if err != nil || string(answer) != established {
			t.Fatalf("%q, %v", answer, err)
		}
		return conn
	}
	first, second := tunnel(), tunnel()
	if got := squidHits(t, s); len(got) != 0 {
		t.Errorf("while both tunnels are open: %+v", got)
	}
	must(t, first.Close())
	if got := squidHits(t, s); len(got) != 1 {
		t.Errorf("while one tunnel is open: %+v", got)
	}
	s.Stop()
	s.Stop()
	if n, err := second.Read(make([]byte, 1)); err == nil {
		t.Errorf("%d byte from a tunnel after Stop", n)
	}
	must(t, second.Close())
	if got := squidHits(t, s); len(got) != 1 {
		t.Errorf("after Stop: %+v", got)
	}
	if conn, err := net.Dial("tcp", strings.TrimPrefix(s.URL(), "http://")); err == nil {
		conn.Close()
		t.Error("a stopped Squid accepts connections")
	}
	must(t, s.Start(t.Context()))
	if res := viaSquid(t, s, &http.Transport{DisableKeepAlives: true}, a.URL()+"/plain/", ""); res.StatusCode != 200 {
		t.Errorf("started again: %s", res.Status)
	}
	if got := squidHits(t, s); len(got) != 2 {
		t.Errorf("after the new start: %+v", got)
	}
}

func TestSquidErrors(t *testing.T) {
	rig.Require(t, "squid")
	for name, options := range map[string]rig.SquidOptions{
		"no keytab":            {Krb5ConfFile: os.DevNull, KeytabFile: filepath.Join(t.TempDir(), "none")},
		"line break in SPN":    {Krb5ConfFile: os.DevNull, KeytabFile: os.DevNull, SPN: "HTTP/x\nhttp_port 1"},
		"colon in user name":   {NoNegotiate: true, Users: map[string]string{"a:b": "CANARY-x"}},
		"blank in user name":   {NoNegotiate: true, Users: map[string]string{"a b": "CANARY-x"}},
		"line break in a name": {NoNegotiate: true, Users: map[string]string{"a\nb": "CANARY-x"}},
	} {
		s, err := rig.StartSquid(t.Context(), t.TempDir(), options)
		if err == nil {
			s.Stop()
			t.Errorf("%s: started", name)
		} else if strings.Contains(err.Error(), "CANARY-") {
			t.Errorf("%s: the error shows a password: %v", name, err)
		}
	}
}

// viaSquid asks through Squid, with a header Proxy-Authorization if it is not
// empty.
func viaSquid(t *testing.T, s *rig.Squid, tr *http.Transport, address, authorization string) *http.Response {
	t.Helper()
	proxy, err := url.Parse(s.URL())
	must(t, err)
	tr.Proxy = http.ProxyURL(proxy)
	req, err := http.NewRequestWithContext(t.Context(), "GET", address, nil)
	must(t, err)
	if authorization != "" {
		req.Header.Set("Proxy-Authorization", authorization)
	}
	res, err := tr.RoundTrip(req)
	must(t, err)
	defer res.Body.Close()
	_, err = io.Copy(io.Discard, res.Body)
	must(t, err)
	return res
}

// noSecrets looks for passwords and tokens in all that Squid writes, and in its
// configuration.
func noSecrets(t *testing.T, s *rig.Squid) {
	t.Helper()
	entries, err := os.ReadDir(s.Dir())
	must(t, err)
	for _, entry := range entries {
		b, err := os.ReadFile(filepath.Join(s.Dir(), entry.Name()))
		must(t, err)
		if text := string(b); strings.Contains(text, "CANARY-") || strings.Contains(text, "YII") {
			t.Errorf("a secret in %s", entry.Name())
		}
	}
}
