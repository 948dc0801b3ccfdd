package rig_test

import (
	"bufio"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

// initiator is MIT's GSSAPI as a client of HTTP@localhost, with the ticket in the
// KDC's ticket cache.
type initiator struct {
	token  string // its first one, in base64
	stdin  io.Writer
	stdout *bufio.Reader
}

const initiatorScript = `
import base64, sys, gssapi
bindings = None
if len(sys.argv) > 1:
    bindings = gssapi.raw.ChannelBindings(application_data=base64.b64decode(sys.argv[1]))
context = gssapi.SecurityContext(
    name=gssapi.Name("HTTP@localhost", gssapi.NameType.hostbased_service),
    usage="initiate",
    mech=gssapi.OID.from_int_seq("1.3.6.1.5.5.2"),
    channel_bindings=bindings,
)
print(base64.b64encode(context.step()).decode(), flush=True)
try:
    context.step(base64.b64decode(sys.stdin.readline()))
    print("complete" if context.complete else "incomplete")
except gssapi.exceptions.GSSError:
    print("refused")
`

// newInitiator makes an initiator. Without bindings it sends none; otherwise they
// are the application data of channel bindings.
func newInitiator(t *testing.T, k *rig.MITKDC, bindings []byte) *initiator {
	t.Helper()
	args := []string{"-c", initiatorScript}
	if bindings != nil {
		args = append(args, base64.StdEncoding.EncodeToString(bindings))
	}
	cmd := exec.Command("/usr/bin/python3", args...)
	cmd.Env = append(os.Environ(), k.Env()...)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	must(t, err)
	stdout, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() {
		stdin.Close()
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	})
	i := &initiator{stdin: stdin, stdout: bufio.NewReader(stdout)}
	i.token = i.line(t)
	return i
}

// finish has the initiator take the acceptor's answer. It returns "complete" if
// that proves who the acceptor is, and "refused" if it is a refusal.
func (i *initiator) finish(t *testing.T, token string) string {
	t.Helper()
	_, err := io.WriteString(i.stdin, token+"\n")
	must(t, err)
	return i.line(t)
}

func (i *initiator) line(t *testing.T) string {
	t.Helper()
	line, err := i.stdout.ReadString('\n')
	must(t, err)
	return strings.TrimSuffix(line, "\n")
}

func startGSSWeb(t *testing.T, k *rig.MITKDC, options rig.GSSWebOptions) *rig.GSSWeb {
	t.Helper()
	rig.Require(t, "py_gssapi")
	options.Krb5ConfFile, options.KeytabFile, options.SPN = k.Krb5ConfFile(), keytab(k, "http"), "HTTP/localhost"
	w, err := rig.StartGSSWeb(t.Context(), t.TempDir(), options)
	must(t, err)
	t.Cleanup(w.Stop)
	return w
}

// startLoggedInMIT starts a KDC with a ticket of svc in its ticket cache.
func startLoggedInMIT(t *testing.T) *rig.MITKDC {
	t.Helper()
	k := startMIT(t)
	if failure := kinit(t, k, keytab(k, "svc"), "svc"); failure != "" {
		t.Fatal(failure)
	}
	return k
}

// browser returns a client that trusts the server, with cookies of its own.
func browser(t *testing.T, w *rig.GSSWeb, version uint16) *http.Client {
	t.Helper()
	pem, err := os.ReadFile(w.CAFile())
	must(t, err)
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		t.Fatal("no certificate in CAFile")
	}
	jar, err := cookiejar.New(nil)
	must(t, err)
	return &http.Client{Jar: jar, Transport: &http.Transport{
		TLSClientConfig:   &tls.Config{RootCAs: pool, MinVersion: version, MaxVersion: version},
		DisableKeepAlives: true,
	}}
}

type webAnswer struct {
	status    int
	challenge string // all of WWW-Authenticate
	body      string
	tls       *tls.ConnectionState
}

// visit asks for a page, with a token if it is not empty.
func visit(t *testing.T, c *http.Client, address, token string) webAnswer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "GET", address, nil)
	must(t, err)
	if token != "" {
		req.Header.Set("Authorization", "Negotiate "+token)
	}
	res, err := c.Do(req)
	must(t, err)
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	must(t, err)
	return webAnswer{res.StatusCode, strings.Join(res.Header.Values("WWW-Authenticate"), "; "), string(b), res.TLS}
}

// The bindings are those of RFC 5929, 4.1, computed here from the certificate
// that the client sees.
func TestGSSWebBindings(t *testing.T) {
	k := startLoggedInMIT(t)
	endPoint := func(hash crypto.Hash, certificate []byte) []byte {
		h := hash.New()
		h.Write(certificate)
		return h.Sum([]byte("tls-server-end-point:"))
	}
	for _, test := range []struct {
		signature    x509.SignatureAlgorithm
		right, wrong crypto.Hash
		versions     []uint16
	}{
		{x509.SHA256WithRSA, crypto.SHA256, crypto.SHA384, []uint16{tls.VersionTLS12, tls.VersionTLS13}},
		{x509.ECDSAWithSHA384, crypto.SHA384, crypto.SHA256, []uint16{tls.VersionTLS12, tls.VersionTLS13}},
		{x509.SHA1WithRSA, crypto.SHA256, crypto.SHA1, []uint16{tls.VersionTLS12, tls.VersionTLS13}},
		{x509.SHA512WithRSA, crypto.SHA512, crypto.SHA256, []uint16{tls.VersionTLS13}},
		{x509.SHA384WithRSAPSS, crypto.SHA384, crypto.SHA256, []uint16{tls.VersionTLS13}},
		{x509.ECDSAWithSHA256, crypto.SHA256, crypto.SHA384, []uint16{tls.VersionTLS13}},
	} {
		w := startGSSWeb(t, k, rig.GSSWebOptions{RequireBindings: true, Signature: test.signature})
		for _, version := range test.versions {
			t.Run(test.signature.String()+", "+tls.VersionName(version), func(t *testing.T) {
				c := browser(t, w, version)
				got := visit(t, c, w.URL()+"/cbt/", "")
				if got.status != 401 || got.challenge != "Negotiate" || got.tls.Version != version {
					t.Fatalf("without a token: %+v", got)
				}
				certificate := got.tls.PeerCertificates[0]
				if certificate.SignatureAlgorithm != test.signature {
					t.Errorf("certificate signed with %v", certificate.SignatureAlgorithm)
				}

				client := newInitiator(t, k, endPoint(test.wrong, certificate.Raw))
				got = visit(t, c, w.URL()+"/cbt/", client.token)
				if token, ok := strings.CutPrefix(got.challenge, "Negotiate "); got.status != 401 || !ok ||
					client.finish(t, token) != "refused" {
					t.Errorf("wrong hash: %+v", got)
				}
				if got := visit(t, c, w.URL()+"/cbt/whoami", ""); got.status != 401 {
					t.Errorf("a session after a wrong hash: %+v", got)
				}

				client = newInitiator(t, k, endPoint(test.right, certificate.Raw))
				got = visit(t, c, w.URL()+"/cbt/", client.token)
				if token, ok := strings.CutPrefix(got.challenge, "Negotiate "); got.status != 200 || !ok ||
					client.finish(t, token) != "complete" {
					t.Errorf("right bindings: %+v", got)
				}
				got = visit(t, c, w.URL()+"/cbt/whoami", "")
				if who := whoami(t, got.body); got.status != 200 || got.challenge != "" ||
					who.User != "svc@"+realm || !who.Bound || who.Flags&0x800 == 0 {
					t.Errorf("whoami with the cookie: %+v", got)
				}
			})
		}
	}
}

func TestGSSWebRequiresBindings(t *testing.T) {
	k := startLoggedInMIT(t)
	w := startGSSWeb(t, k, rig.GSSWebOptions{RequireBindings: true})
	c := browser(t, w, tls.VersionTLS13)
	if got := visit(t, c, w.URL()+"/cbt/", newInitiator(t, k, nil).token); got.status != 401 || got.challenge != "Negotiate" {
		t.Errorf("without bindings: %+v", got)
	}
	if got := visit(t, c, w.URL()+"/cbt/whoami", ""); got.status != 401 {
		t.Errorf("a session all the same: %+v", got)
	}
}

type webUser struct {
	User  string
	Bound bool
	Flags uint32
}

func whoami(t *testing.T, body string) webUser {
	t.Helper()
	var who webUser
	must(t, json.Unmarshal([]byte(body), &who))
	return who
}

func TestGSSWebWithoutRequiredBindings(t *testing.T) {
	k := startLoggedInMIT(t)
	rig.Require(t, "curl")
	w := startGSSWeb(t, k, rig.GSSWebOptions{})
	c := browser(t, w, tls.VersionTLS13)
	client := newInitiator(t, k, nil)
	got := visit(t, c, w.URL()+"/cbt/whoami", client.token)
	if who := whoami(t, got.body); got.status != 200 || who.User != "svc@"+realm || who.Bound || who.Flags == 0 || who.Flags&0x800 != 0 {
		t.Errorf("unbound token: %+v", got)
	}
	if got := visit(t, browser(t, w, tls.VersionTLS13), w.URL()+"/cbt/", client.token); got.status != 401 {
		t.Errorf("the same token again: %+v", got)
	}
	bound := newInitiator(t, k, []byte("tls-server-end-point:x"))
	if got := visit(t, browser(t, w, tls.VersionTLS13), w.URL()+"/cbt/", bound.token); got.status != 401 {
		t.Errorf("wrong bindings: %+v", got)
	}
	for name, token := range map[string]string{"no base64": "!", "no token": "AAAA"} {
		if got := visit(t, browser(t, w, tls.VersionTLS13), w.URL()+"/cbt/", token); got.status != 401 {
			t.Errorf("%s: %+v", name, got)
		}
	}
	if got := visit(t, c, w.URL()+"/", ""); got.status != 404 {
		t.Errorf("/: %+v", got)
	}

	// Both requests over one connection.
	page := w.URL() + "/cbt/whoami"
	out, failure := run(t, k, "curl", "-sS", "--negotiate", "-u", ":", "-w", "%{num_connects}\n", "--cacert", w.CAFile(), page, page)
	first, second, _ := strings.Cut(out, "\n1\n")
	second, ok := strings.CutSuffix(second, "\n0\n")
	if failure != "" || !ok || whoami(t, first).User != "svc@"+realm || first != second {
		t.Errorf("curl: %s%s", out, failure)
	}
	b, err := os.ReadFile(filepath.Join(w.Dir(), "gssweb.out"))
	must(t, err)
	if strings.Contains(string(b), client.token) || !strings.Contains(string(b), "GET /cbt/whoami") {
		t.Errorf("log: %s", b)
	}

	w.Stop()
	w.Stop()
	if conn, err := net.Dial("tcp", strings.TrimPrefix(w.URL(), "https://")); err == nil {
		conn.Close()
		t.Error("a stopped server accepts connections")
	}
}

func TestGSSWebErrors(t *testing.T) {
	k := startLoggedInMIT(t)
	rig.Require(t, "py_gssapi")
	good := rig.GSSWebOptions{Krb5ConfFile: k.Krb5ConfFile(), KeytabFile: keytab(k, "http"), SPN: "HTTP/localhost"}
	for name, edit := range map[string]func(*rig.GSSWebOptions){
		"no hash":           func(o *rig.GSSWebOptions) { o.Signature = x509.PureEd25519 },
		"no keytab":         func(o *rig.GSSWebOptions) { o.KeytabFile += ".none" },
		"SPN not in keytab": func(o *rig.GSSWebOptions) { o.SPN = "HTTP/other" },
		"no krb5.conf":      func(o *rig.GSSWebOptions) { o.Krb5ConfFile += ".none" },
	} {
		options := good
		edit(&options)
		if w, err := rig.StartGSSWeb(t.Context(), t.TempDir(), options); err == nil {
			w.Stop()
			t.Errorf("%s: started", name)
		}
	}
}
