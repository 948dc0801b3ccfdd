package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

// TestHTTPS: the real site over TLS, with an authority that the agent's
// machine trusts or not.
func TestHTTPS(t *testing.T) {
	rig.Require(t, "krb5kdc", "kdb5_util", "kadmin.local", "apache2", "mod_auth_gssapi", "mod_ssl", "curl")
	dir := t.TempDir()
	k, err := rig.StartMIT(t.Context(), filepath.Join(dir, "kdc"), realm)
	must(t, err)
	t.Cleanup(k.Stop)
	must(t, k.AddPrincipal(t.Context(), "build", password))
	must(t, k.AddService(t.Context(), "HTTP/localhost"))
	keytab, http := filepath.Join(dir, "build.keytab"), filepath.Join(dir, "http.keytab")
	must(t, k.Keytab(t.Context(), keytab, "build"))
	must(t, k.Keytab(t.Context(), http, "HTTP/localhost"))
	a, err := rig.StartApache(t.Context(), filepath.Join(dir, "apache"), rig.ApacheOptions{Krb5ConfFile: k.Krb5ConfFile(), KeytabFile: http})
	must(t, err)
	t.Cleanup(a.Stop)
	h := newHome(t, &world{krb5Conf: k.Krb5ConfFile(), keytab: keytab, url: a.TLSURL()})
	b, err := os.ReadFile(h.config)
	must(t, err)
	write(t, h.config, strings.Replace(string(b), "insecure_http = true\n", "", 1))

	stranger := h.start(t)
	if r := h.fails(t, 7, "tls_error", "raw", "app"); !strings.Contains(r.stderr, "unknown authority") {
		t.Errorf("%v", r)
	}
	hits, err := a.Hits("/")
	must(t, err)
	if hits.Total != 0 {
		t.Errorf("%d requests to a server that nobody vouches for", hits.Total)
	}
	stranger.stop(t)

	h.extraEnv = []string{"SSL_CERT_FILE=" + a.CAFile()}
	h.start(t)
	args := []string{"-c", `sessionctl header app | curl -sSf --cacert "$0" -H @- "$1"`, a.CAFile(), a.TLSURL() + "/spnego/whoami"}
	if r := h.run(t, "", "sh", args...); strings.TrimSpace(r.stdout) != me {
		t.Errorf("%v", r)
	}
	// The cookie came over https: nothing else gets it.
	h.fails(t, 4, "unknown_site", "raw", a.URL()+"/spnego/")
	if r := h.run(t, "", "sh", "-c", `sessionctl get app -o netscape >"$0" && curl -sSf --cacert "$1" -b "$0" "$2"`,
		filepath.Join(dir, "cookies"), a.CAFile(), a.TLSURL()+"/spnego/whoami"); strings.TrimSpace(r.stdout) != me {
		t.Errorf("a cookie file: %v", r)
	}
}
