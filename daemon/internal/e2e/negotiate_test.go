package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

// front starts something in front of a site, which may change its answers. trust
// is for the site's TLS; with it, the front has TLS of its own.
func front(t *testing.T, site string, trust *tls.Config, change func(*http.Response)) *httptest.Server {
	t.Helper()
	to, err := url.Parse(site)
	must(t, err)
	transport := &http.Transport{TLSClientConfig: trust, DisableKeepAlives: true}
	return serve(t, trust != nil, &httputil.ReverseProxy{
		Transport: transport,
		Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(to) },
		ModifyResponse: func(r *http.Response) error {
			change(r)
			return nil
		},
	})
}

// TestMutualAuth: the policies against a site that proves itself, one that does
// not, and one that shows the proof that another client was given.
func TestMutualAuth(t *testing.T) {
	inBothWorlds(t, func(t *testing.T, w *world) {
		var first string
		var mu sync.Mutex
		silent := front(t, w.url, nil, func(r *http.Response) {
			if r.StatusCode == http.StatusOK {
				r.Header.Del("WWW-Authenticate")
			}
		})
		liar := front(t, w.url, nil, func(r *http.Response) {
			mu.Lock()
			defer mu.Unlock()
			if proof := r.Header.Get("WWW-Authenticate"); r.StatusCode == http.StatusOK && proof != "" {
				if first == "" {
					first = proof
				}
				r.Header.Set("WWW-Authenticate", first)
			}
		})
		kinds := map[string]string{"honest": w.url, "silent": named(t, silent.URL, "localhost"), "liar": named(t, liar.URL, "localhost")}
		policies := []string{"", "off", "if-offered", "required"}
		var sites []string
		for kind, address := range kinds {
			for _, policy := range policies {
				option := ""
				if policy != "" {
					option = fmt.Sprintf("mutual_auth = %q", policy)
				}
				sites = append(sites, strings.Replace(w.site(kind+policy, "/spnego/", option), w.url, address, 1))
			}
		}
		h := newHome(t, w, sites...)
		h.start(t)
		// The liar's first visitor gets a proof of its own.
		h.ok(t, "raw", "liarif-offered")
		h.ok(t, "logout", "liarif-offered")
		for _, policy := range policies {
			h.ok(t, "raw", "honest"+policy)
			refused := func(site, detail, remedy string) {
				t.Helper()
				r := h.fails(t, 5, "mutual_auth_failed", "raw", site)
				if !strings.Contains(r.stderr, detail) || !strings.Contains(r.stderr, remedy) {
					t.Errorf("%s: %v", site, r)
				}
			}
			if policy == "required" {
				refused("silent"+policy, "HTTP/localhost", `mutual_auth = "if-offered"`)
			} else {
				h.ok(t, "raw", "silent"+policy)
			}
			if policy == "off" {
				h.ok(t, "raw", "liar"+policy)
			} else {
				refused("liar"+policy, "HTTP/localhost", "\n  next: ")
			}
		}
	})
}

// TestChannelBindings: MIT's acceptor, which demands them, with certificates of
// each kind that makes a difference; and a front that ends TLS.
func TestChannelBindings(t *testing.T) {
	rig.Require(t, "krb5kdc", "kdb5_util", "kadmin.local", "py_gssapi")
	dir, ctx := t.TempDir(), t.Context()
	k, err := rig.StartMIT(ctx, filepath.Join(dir, "kdc"), realm)
	must(t, err)
	t.Cleanup(k.Stop)
	must(t, k.AddPrincipal(ctx, "build", password))
	must(t, k.AddService(ctx, "HTTP/localhost"))
	keytab, service := filepath.Join(dir, "build.keytab"), filepath.Join(dir, "http.keytab")
	must(t, k.Keytab(ctx, keytab, "build"))
	must(t, k.Keytab(ctx, service, "HTTP/localhost"))
	var authorities []byte
	pool := x509.NewCertPool()
	trust := func(pem []byte) {
		authorities = append(authorities, pem...)
		pool.AppendCertsFromPEM(pem)
	}
	start := func(name string, o rig.GSSWebOptions) string {
		o.Krb5ConfFile, o.KeytabFile, o.SPN = k.Krb5ConfFile(), service, "HTTP/localhost"
		s, err := rig.StartGSSWeb(ctx, filepath.Join(dir, name), o)
		must(t, err)
		t.Cleanup(s.Stop)
		pem, err := os.ReadFile(s.CAFile())
		must(t, err)
		trust(pem)
		return s.URL()
	}
	var config strings.Builder
	site := func(name, address, policy string) {
		fmt.Fprintf(&config, "\n[site.%s]\nurl = %q\nkind = \"spnego\"\ncredential = \"build\"\nspn = \"HTTP/localhost\"\nprobe_url = \"whoami\"\nidentity_json = \"user\"\n", name, address+"/cbt/")
		if policy != "" {
			fmt.Fprintf(&config, "channel_bindings = %q\n", policy)
		}
	}
	servers := map[string]string{}
	for _, signature := range []x509.SignatureAlgorithm{x509.SHA256WithRSA, x509.ECDSAWithSHA384, x509.SHA1WithRSA} {
		name := signature.String()
		servers[name] = start(name, rig.GSSWebOptions{Signature: signature, RequireBindings: true})
		for _, policy := range []string{"auto", "required", "off"} {
			site(name+"-"+policy, servers[name], policy)
		}
	}
	lax := start("lax", rig.GSSWebOptions{})
	ending := front(t, lax, &tls.Config{RootCAs: pool}, func(*http.Response) {})
	trust(certificatePEM(ending))
	for _, policy := range []string{"auto", "required", "off"} {
		site("ended-"+policy, ending.URL, policy)
		site("lax-"+policy, lax, policy)
	}

	h := newHome(t, &world{krb5Conf: k.Krb5ConfFile(), keytab: keytab, url: "http://localhost:1"}, config.String(),
		"[site.clear]\nurl = \"http://localhost:1\"\nkind = \"spnego\"\ncredential = \"build\"\ninsecure_http = true\nidentity_json = \"user\"\nchannel_bindings = \"required\"\n")
	h.extraEnv = []string{"SSL_CERT_FILE=" + write(t, filepath.Join(dir, "authorities.pem"), string(authorities))}
	h.start(t)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, DisableKeepAlives: true}}
	served := func(name, address string, bound bool) {
		t.Helper()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, address+"/cbt/whoami", nil)
		must(t, err)
		req.Header.Set("Cookie", strings.TrimSuffix(h.ok(t, "raw", name), "\n"))
		resp, err := client.Do(req)
		must(t, err)
		defer resp.Body.Close()
		var session struct {
			User  string
			Bound bool
		}
		must(t, json.NewDecoder(resp.Body).Decode(&session))
		if session.User != "build@"+realm || session.Bound != bound {
			t.Errorf("%s: the server says %+v", name, session)
		}
	}
	for name, address := range servers {
		served(name+"-auto", address, true)
		served(name+"-required", address, true)
		h.fails(t, 5, "negotiate_rejected", "raw", name+"-off")
	}
	served("lax-off", lax, false)
	served("lax-required", lax, true)
	for _, policy := range []string{"auto", "required"} {
		if r := h.fails(t, 5, "bad_channel_binding", "raw", "ended-"+policy); !strings.Contains(r.stderr, `channel_bindings = "off"`) {
			t.Errorf("%v", r)
		}
	}
	served("ended-off", lax, false)
}

// TestBindingsNeedTLS: a token that has to be bound is not sent in clear.
func TestBindingsNeedTLS(t *testing.T) {
	w := inProcess(t)
	h := newHome(t, w, w.site("clear", "/spnego/", `channel_bindings = "required"`))
	h.start(t)
	h.fails(t, 5, "bad_channel_binding", "raw", "clear")
	if n := w.hits(t, "/").Negotiate; n != 0 {
		t.Errorf("%d tokens were sent", n)
	}
}

// typed is the configuration of a principal that logs in with a password at two
// sites.
func typed(w *world) []string {
	return []string{
		fmt.Sprintf("[credential.typed]\nprincipal = \"typed@%s\"\n", realm),
		w.site("one", "/spnego/", `credential = "typed"`), w.site("two", "/spnego/", `credential = "typed"`),
	}
}

// TestPrincipalByPassword: a password that somebody brings becomes tickets, now and
// after a restart. What the KDC refuses it sees once.
func TestPrincipalByPassword(t *testing.T) {
	inBothWorlds(t, func(t *testing.T, w *world) {
		w.addKeytab(t, "typed", true)
		h := newHome(t, w, typed(w)...)
		a := h.start(t)
		give := func(site, password string, more ...string) result {
			t.Helper()
			return h.run(t, password+"\n", filepath.Join(bin, "sessionctl"), append([]string{"login", site, "--password-stdin"}, more...)...)
		}
		before := w.counts(t)
		refused := func(want int) {
			t.Helper()
			if n := w.counts(t).PreauthFailed - before.PreauthFailed; n != want {
				t.Errorf("the KDC refused %d passwords, want %d", n, want)
			}
		}
		if r := h.fails(t, 5, "no_secret", "raw", "one"); !strings.Contains(r.stderr, "sessionctl login one --password-stdin") {
			t.Errorf("%v", r)
		}
		if c := w.counts(t); c.AS != before.AS {
			t.Errorf("the KDC was asked without a password: %+v", c)
		}
		wantFailure(t, give("one", "CANARY-wrong"), 5, "bad_credentials")
		refused(1)
		wantFailure(t, give("two", "CANARY-wrong"), 5, "latched")
		a.stop(t)
		a = h.start(t)
		wantFailure(t, give("one", "CANARY-wrong"), 5, "latched")
		refused(1)
		wantFailure(t, give("one", "CANARY-wrong", "--retry"), 5, "bad_credentials")
		refused(2)
		if r := give("one", password); r.status != 0 || !strings.Contains(r.stderr, "logged in as typed@"+realm) {
			t.Fatalf("%v", r)
		}
		const user = `{"user":"typed@` + realm + `"}`
		if got := whoami(t, w, h.ok(t, "raw", "two")); got != user {
			t.Errorf("the other site names %s", got)
		}
		a.stop(t)

		// Tickets of another kind are not at hand: they take the password.
		h.rewrite(t, "principal = \"typed@"+realm+"\"\n", "principal = \"typed@"+realm+"\"\nno_pac = true\n")
		before = w.counts(t)
		a = h.start(t)
		h.ok(t, "refresh", "two")
		if got := whoami(t, w, h.ok(t, "raw", "two")); got != user {
			t.Errorf("after a restart: %s", got)
		}
		if c := w.counts(t); c.ASTGT != before.ASTGT+1 {
			t.Errorf("%d TGTs after a restart", c.ASTGT-before.ASTGT)
		}
		refused(0)
		a.stop(t)
		noSecrets(t, a)
	})
}

// TestWrongPasswordAtHand: a principal's wrong password in the unit's credentials
// is tried once at the KDC, over sites and restarts.
func TestWrongPasswordAtHand(t *testing.T) {
	inBothWorlds(t, func(t *testing.T, w *world) {
		w.addKeytab(t, "typed", true)
		h := newHome(t, w, typed(w)...)
		credentials := t.TempDir()
		file := write(t, filepath.Join(credentials, "password.typed"), "CANARY-wrong\n")
		h.extraEnv = []string{"CREDENTIALS_DIRECTORY=" + credentials}
		before := w.counts(t)
		a := h.start(t)
		h.fails(t, 5, "bad_credentials", "raw", "one")
		h.fails(t, 5, "latched", "raw", "one")
		h.fails(t, 5, "latched", "raw", "two")
		a.stop(t)
		a = h.start(t)
		r := h.fails(t, 5, "latched", "raw", "two")
		if !strings.Contains(r.stderr, "sessionctl login two --retry") || strings.Contains(r.stderr, "--password-stdin") {
			t.Errorf("%v", r)
		}
		if n := w.counts(t).PreauthFailed - before.PreauthFailed; n != 1 {
			t.Errorf("the password was tried %d times", n)
		}
		write(t, file, password+"\n")
		h.ok(t, "raw", "one")
		h.ok(t, "raw", "two")
		if c := w.counts(t); c.PreauthFailed-before.PreauthFailed != 1 || c.ASTGT-before.ASTGT != 1 {
			t.Errorf("%+v, before %+v", c, before)
		}
		a.stop(t)
		noSecrets(t, a)
	})
}

// TestTicketCache: tickets that somebody gets with kinit. When they end, the next
// step that is printed helps as it stands.
func TestTicketCache(t *testing.T) {
	inBothWorlds(t, func(t *testing.T, w *world) {
		rig.Require(t, "kinit")
		dir := t.TempDir()
		caches := map[string]string{"file": "FILE:" + filepath.Join(dir, "cc"), "dir": "DIR:" + filepath.Join(dir, "collection")}
		must(t, os.Mkdir(filepath.Join(dir, "collection"), 0o700))
		var more []string
		for name, cache := range caches {
			more = append(more, fmt.Sprintf("[credential.%s]\nprincipal = \"build@%s\"\nccache = %q\n", name, realm, cache),
				w.site(name, "/spnego/", fmt.Sprintf("credential = %q", name)))
		}
		h := newHome(t, w, more...)
		h.start(t)
		kinit := func(command string) {
			t.Helper()
			if r := h.run(t, password+"\n", "sh", "-c", command); r.status != 0 {
				t.Fatalf("%s: %v", command, r)
			}
		}
		// next is the command in the next step of a failure.
		next := func(r result) string {
			t.Helper()
			_, command, ok := strings.Cut(r.stderr, "kinit -c ")
			command, _, _ = strings.Cut(command, "\n")
			if !ok {
				t.Fatalf("no kinit among the next steps: %v", r)
			}
			return "kinit -c " + command
		}
		for _, name := range []string{"file", "dir"} {
			failed := h.fails(t, 5, "ccache_unusable", "raw", name)
			command := next(failed)
			if !strings.Contains(failed.stderr, "as the agent's user: kinit -c ") {
				t.Errorf("%s: not said as whom: %v", name, failed)
			}
			kinit(strings.Replace(command, "kinit ", "kinit -l 5s ", 1)) // too little for anything
			command = next(h.fails(t, 5, "no_ticket", "raw", name))
			before := w.counts(t)
			kinit(command)
			files := contents(t, dir)
			if got := whoami(t, w, h.ok(t, "raw", name)); got != me {
				t.Errorf("%s: the site names %s", name, got)
			}
			if c := w.counts(t); c.ASTGT != before.ASTGT+1 {
				t.Errorf("%s: %d TGTs, but the one of kinit", name, c.ASTGT-before.ASTGT-1)
			}
			if !slices.Equal(files, contents(t, dir)) {
				t.Errorf("%s: the agent has changed what is its owner's", name)
			}
		}
		r := h.run(t, password+"\n", filepath.Join(bin, "sessionctl"), "login", "file", "--password-stdin")
		wantFailure(t, r, 2, "invalid_request")
	})
}

// contents returns all files below a directory with what is in them.
func contents(t *testing.T, dir string) (all []string) {
	t.Helper()
	must(t, filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		all = append(all, path, string(b))
		return err
	}))
	return all
}
