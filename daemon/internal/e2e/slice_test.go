package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

// TestEvalThenCurl is what the project is for: a keytab, one line in a shell,
// and curl gets the page as the right user with nothing but the cookie.
func TestEvalThenCurl(t *testing.T) {
	inBothWorlds(t, func(t *testing.T, w *world) {
		rig.Require(t, "curl")
		h := newHome(t, w)
		a := h.start(t)
		for _, shell := range []string{"dash", "bash", "zsh", "ksh93", "mksh", "busybox"} {
			t.Run(shell, func(t *testing.T) {
				rig.Require(t, shell)
				args := []string{"-c", `
set -e
eval $(sessionctl cookie app)
printf 'Cookie: %s\n' "$APP_COOKIE" | curl -sSf -H @- "$0"`, w.url + "/spnego/whoami"}
				if shell == "busybox" {
					args = append([]string{"sh"}, args...)
				}
				r := h.run(t, "", shell, args...)
				if r.status != 0 || strings.TrimSpace(r.stdout) != me {
					t.Errorf("%v", r)
				}
			})
		}
		if r := h.run(t, "", "sh", "-c", `sessionctl header app | curl -sSf -H @- "$0"`, w.url+"/spnego/whoami"); strings.TrimSpace(r.stdout) != me {
			t.Errorf("header: %v", r)
		}
		if n := w.hits(t, "/").Negotiate; n != 1 {
			t.Errorf("%d tokens were sent", n)
		}
		a.stop(t)
	})
}

// TestOneLogin: any number of callers cause one login.
func TestOneLogin(t *testing.T) {
	inBothWorlds(t, func(t *testing.T, w *world) {
		h := newHome(t, w)
		h.start(t)
		before := w.counts(t)
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				if r := h.sessionctl(t, "raw", "app"); r.status != 0 {
					t.Errorf("%v", r)
				}
			})
		}
		wg.Wait()
		c, hits := w.counts(t), w.hits(t, "/spnego/")
		as, tgt, tgs := c.AS-before.AS, c.ASTGT-before.ASTGT, c.TGS-before.TGS
		t.Logf("50 cold callers: %d AS messages, %d TGT, %d TGS, %d requests with a token, %d in all", as, tgt, tgs, hits.Negotiate, hits.Total)
		if as > 2 || tgt != 1 || tgs != 1 || hits.Negotiate != 1 {
			t.Errorf("more than one login: %+v %+v", c, hits)
		}
	})
}

// TestRestartWithoutKDC: what was proven is served after a restart, with one
// probe at most and no KDC.
func TestRestartWithoutKDC(t *testing.T) {
	inBothWorlds(t, func(t *testing.T, w *world) {
		h := newHome(t, w, `recheck = "0s"`)
		a := h.start(t)
		first := h.ok(t, "raw", "app")
		a.stop(t)
		w.stopKDC(t)
		hits, counts := w.hits(t, "/"), w.counts(t)
		h.start(t)
		if got := whoami(t, w, h.ok(t, "raw", "app")); got != me {
			t.Errorf("after the restart: %s (before: %s)", got, first)
		}
		now := w.hits(t, "/")
		if n := now.Total - hits.Total - 1; n > 1 || now.Negotiate != hits.Negotiate { // one is whoami's
			t.Errorf("%d requests for a restored session, %d with a token", n, now.Negotiate-hits.Negotiate)
		}
		if w.counts(t) != counts {
			t.Error("a KDC was asked")
		}

		// With the site down too, it is served and flagged.
		w.stopSite(t)
		r := h.sessionctl(t, "raw", "app")
		if r.status != 0 || r.stdout == "" || !strings.Contains(r.stderr, "stale") {
			t.Errorf("site and KDC down: %v", r)
		}
		w.startSite(t)
		w.startKDC(t)
	})
}

// TestKilled: a session survives kill -9 of the agent.
func TestKilled(t *testing.T) {
	w := inProcess(t)
	h := newHome(t, w)
	a := h.start(t)
	h.ok(t, "raw", "app")
	must(t, a.cmd.Process.Signal(syscall.SIGKILL))
	<-a.done
	h.start(t)
	// The new agent has it proven first, and Apache answers with another value.
	if again := h.ok(t, "raw", "app"); whoami(t, w, again) != me {
		t.Errorf("another session after kill -9")
	}
	if n := w.hits(t, "/").Negotiate; n != 1 {
		t.Errorf("%d logins", n)
	}
}

// TestSiteForgets: the site loses its sessions; the next call heals.
func TestSiteForgets(t *testing.T) {
	inBothWorlds(t, func(t *testing.T, w *world) {
		t.Run("seen by the agent", func(t *testing.T) {
			h := newHome(t, w, `recheck = "0s"`)
			h.start(t)
			if got := whoami(t, w, h.ok(t, "raw", "app")); got != me {
				t.Fatalf("at first: %s", got)
			}
			w.forget(t)
			if got := whoami(t, w, h.ok(t, "raw", "app")); got != me {
				t.Errorf("afterwards: %s", got)
			}
		})
		t.Run("reported by the caller", func(t *testing.T) {
			h := newHome(t, w)
			h.start(t)
			first := h.ok(t, "raw", "app")
			w.forget(t)
			if got := whoami(t, w, h.ok(t, "raw", "app")); got == me {
				t.Fatal("the site has not forgotten anything")
			}
			hits := w.hits(t, "/").Negotiate
			var wg sync.WaitGroup
			for range 10 {
				wg.Go(func() {
					if r := h.run(t, "url="+w.url+"/spnego/\n\n", filepath.Join(bin, "sessionctl"), "credential", "erase"); r.status != 0 {
						t.Errorf("erase: %v", r)
					}
				})
			}
			wg.Wait()
			again := h.ok(t, "raw", "app")
			if got := whoami(t, w, again); got != me || again == first {
				t.Errorf("afterwards: %s", got)
			}
			if n := w.hits(t, "/").Negotiate - hits; n != 1 {
				t.Errorf("%d logins after ten reports", n)
			}
		})
	})
}

// TestCredential is the git-style helper: attributes in, header[] out.
func TestCredential(t *testing.T) {
	w := inProcess(t)
	h := newHome(t, w)
	h.start(t)
	program := filepath.Join(bin, "sessionctl")
	r := h.run(t, "url="+w.url+"/spnego/whoami\n\n", program, "credential", "get")
	header, ok := strings.CutPrefix(strings.SplitN(r.stdout, "\n", 2)[0], "header[]=Cookie: ")
	if r.status != 0 || !ok || whoami(t, w, header) != me {
		t.Errorf("get: %v", r)
	}
	for _, in := range []string{"url=https://other.example/\n\n", "protocol=http\nhost=\n\n", "url=" + w.url + ".evil.example/\n\n"} {
		if r := h.run(t, in, program, "credential", "get"); r.stdout != "" {
			t.Errorf("%q got an answer: %v", in, r)
		}
	}
	if r := h.run(t, "url="+w.url+"/spnego/\npassword=CANARY-password\n\n", program, "credential", "store"); r.status != 0 || r.stdout != "" {
		t.Errorf("store: %v", r)
	}
}

// TestAdmin goes through the other verbs.
func TestAdmin(t *testing.T) {
	inBothWorlds(t, func(t *testing.T, w *world) {
		h := newHome(t, w)
		h.start(t)
		raw := strings.TrimSuffix(h.ok(t, "raw", "app"), "\n")

		for format, has := range map[string]string{
			"json": `"user": "build@` + realm + `"`, "netscape": "\t" + "gssapi_session" + "\t", "curl": `header = "Cookie: `,
			"env": "export APP_COOKIE='", "httpie": `"__meta__"`,
		} {
			if out := h.ok(t, "get", "app", "-o", format); !strings.Contains(out, has) {
				t.Errorf("get -o %s: %s", format, out)
			}
		}
		var session struct {
			Generation string
			Headers    map[string]string
		}
		must(t, json.Unmarshal([]byte(h.ok(t, "get", w.url+"/spnego/x")), &session))
		if session.Headers["Cookie"] != raw || session.Generation == "" {
			t.Errorf("get by URL: %+v", session)
		}
		if out := h.ok(t, "list"); !strings.Contains(out, "app") || !strings.Contains(out, "live") {
			t.Errorf("list: %s", out)
		}
		if out := h.ok(t, "status"); !strings.Contains(out, h.store) || !strings.Contains(out, "key file") {
			t.Errorf("status: %s", out)
		}
		if out := h.ok(t, "tickets"); !strings.Contains(out, "HTTP/localhost@"+realm) || !strings.Contains(out, "krbtgt/"+realm+"@"+realm) {
			t.Errorf("tickets: %s", out)
		}
		for _, verb := range []string{"status", "list", "tickets"} {
			var v any
			if err := json.Unmarshal([]byte(h.ok(t, verb, "-o", "json")), &v); err != nil {
				t.Errorf("%s -o json: %v", verb, err)
			}
		}
		h.ok(t, "refresh", "app")
		if again := h.ok(t, "get", "app"); strings.Contains(again, session.Generation) {
			t.Error("refresh left the session as it was")
		}
		h.ok(t, "logout", "app")
		if out := h.ok(t, "list"); !strings.Contains(out, "none") {
			t.Errorf("after logout: %s", out)
		}
		if r := h.sessionctl(t, "raw", "app", "--cached"); r.status != 7 {
			t.Errorf("after logout, cached: %v", r)
		}
		h.ok(t, "login", "app")
		if got := whoami(t, w, h.ok(t, "raw", "app")); got != me {
			t.Errorf("after login: %s", got)
		}
		if out := h.ok(t, "check-config", h.config); !strings.Contains(out, "ok: 1 sites") {
			t.Errorf("check-config: %s", out)
		}
		if out := h.ok(t, "version"); !strings.Contains(out, "agent") {
			t.Errorf("version: %s", out)
		}
	})
}

// TestNoSecretShows looks for the session, its key and the account's key where
// they must not be.
func TestNoSecretShows(t *testing.T) {
	w := inProcess(t)
	h := newHome(t, w, fmt.Sprintf("\n[site.broken]\nurl = %q\nkind = \"spnego\"\ncredential = \"build\"\ninsecure_http = true\nidentity_header = \"X-Remote-User\"\n", w.url+"/deny/"))
	a := h.start(t)
	cookie := strings.TrimSuffix(h.ok(t, "raw", "app"), "\n")
	_, value, _ := strings.Cut(cookie, "MagBearerToken=")
	value, _, _ = strings.Cut(value, "&")
	if !strings.HasPrefix(value, "CANARY-") {
		t.Fatalf("the cookie is %q", cookie)
	}
	var shown strings.Builder
	for _, args := range [][]string{{"status"}, {"list"}, {"tickets"}, {"status", "-o", "json"}, {"refresh", "app"}, {"raw", "broken"}, {"logout", "app"}} {
		r := h.sessionctl(t, args...)
		shown.WriteString(r.stdout + r.stderr)
	}
	for _, f := range []string{"cmdline", "environ"} {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", a.cmd.Process.Pid, f))
		if err == nil { // environ is closed to all but root: the agent is not dumpable
			shown.Write(b)
		}
	}
	a.stop(t)
	shown.WriteString(a.log.String())
	files := 0
	must(t, filepath.WalkDir(h.dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && path != h.config {
			files++
			b, err := os.ReadFile(path)
			must(t, err)
			shown.Write(b)
			shown.WriteString(path)
			if fi, _ := d.Info(); fi.Mode().Perm()&0o077 != 0 {
				t.Errorf("%s has mode %v", path, fi.Mode())
			}
		}
		return err
	}))
	if files < 3 { // store, key, lock
		t.Errorf("only %d files were looked at", files)
	}
	if i := strings.Index(shown.String(), "CANARY"); i >= 0 {
		t.Errorf("a secret shows: …%q…", shown.String()[max(0, i-200):i+40])
	}
}
