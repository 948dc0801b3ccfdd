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
	rig.Require(t, "curl")
	w := realServers(t)
	plain := w.url
	w.url = w.tlsURL
	h := newHome(t, w)
	b, err := os.ReadFile(h.config)
	must(t, err)
	write(t, h.config, strings.Replace(string(b), "insecure_http = true\n", "", 1))

	stranger := h.start(t)
	if r := h.fails(t, 7, "tls_error", "raw", "app"); !strings.Contains(r.stderr, "unknown authority") {
		t.Errorf("%v", r)
	}
	if n := w.hits(t, "/").Total; n != 0 {
		t.Errorf("%d requests to a server that nobody vouches for", n)
	}
	stranger.stop(t)

	h.extraEnv = []string{"SSL_CERT_FILE=" + w.caFile}
	h.start(t)
	args := []string{"-c", `sessionctl header app | curl -sSf --cacert "$0" -H @- "$1"`, w.caFile, w.url + "/spnego/whoami"}
	if r := h.run(t, "", "sh", args...); strings.TrimSpace(r.stdout) != me {
		t.Errorf("%v", r)
	}
	// The cookie came over https: nothing else gets it.
	h.fails(t, 4, "unknown_site", "raw", plain+"/spnego/")
	if r := h.run(t, "", "sh", "-c", `sessionctl get app -o netscape >"$0" && curl -sSf --cacert "$1" -b "$0" "$2"`,
		filepath.Join(h.dir, "cookies"), w.caFile, w.url+"/spnego/whoami"); strings.TrimSpace(r.stdout) != me {
		t.Errorf("a cookie file: %v", r)
	}
}
