package e2e

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	pb "github.com/sessionctl/sessionctl/api/sessionctl/v1"
	"github.com/sessionctl/sessionctl/client"
	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

// site is one more [site.NAME] at a page of the world.
func (w *world) site(name, page string, more ...string) string {
	s := fmt.Sprintf("\n[site.%s]\nurl = %q\nkind = \"spnego\"\ninsecure_http = true\n", name, w.url+page)
	if !strings.Contains(strings.Join(more, "\n"), "credential") {
		s += "credential = \"build\"\n"
	}
	if !strings.Contains(strings.Join(more, "\n"), "identity") {
		s += "identity_json = \"user\"\nprobe_url = \"whoami\"\n"
	}
	return s + strings.Join(more, "\n") + "\n"
}

func credential(name, account, keytab string) string {
	return fmt.Sprintf("\n[credential.%s]\nprincipal = \"%s@%s\"\nkeytab = %q\n", name, account, realm, keytab)
}

// TestRefusals: what no retry cures. One attempt, one code, one next step; and
// the other site is served all the while.
func TestRefusals(t *testing.T) {
	inBothWorlds(t, func(t *testing.T, w *world) {
		gone := filepath.Join(t.TempDir(), "gone.keytab")
		h := newHome(t, w,
			credential("wrong", "wrong", w.addKeytab(t, "wrong", false)), w.site("wrong", "/spnego/", `credential = "wrong"`), w.site("wrong2", "/spnego/", `credential = "wrong"`),
			credential("nobody", "nobdy", renamed(t, w.keytab, "build", "nobdy")), w.site("nobody", "/spnego/", `credential = "nobody"`),
			credential("gone", "gone", gone), w.site("gone", "/spnego/", `credential = "gone"`),
			strings.Replace(w.site("spn", "/spnego/"), "localhost", "127.0.0.1", 1),
			w.site("missing", "/missing/"),
			w.site("open", "/plain/"),
			w.site("person", "/spnego/", `identity = "somebody"`, "identity_json = \"user\"\nprobe_url = \"whoami\""),
			w.site("deny", "/deny/"),
			w.site("nosess", "/nosess/"),
			w.site("foreign", "/redir/foreign"),
		)
		a := h.start(t)

		before := w.counts(t)
		h.fails(t, 5, "bad_credentials", "raw", "wrong")
		h.fails(t, 5, "latched", "raw", "wrong")
		h.fails(t, 5, "latched", "raw", "wrong2")
		a.stop(t)
		h.start(t) // the refusal stands
		h.fails(t, 5, "latched", "raw", "wrong2")
		if n := w.counts(t).PreauthFailed - before.PreauthFailed; n != 1 {
			t.Errorf("the refused key was tried %d times", n)
		}
		h.fails(t, 5, "bad_credentials", "login", "wrong", "--retry")
		if n := w.counts(t).PreauthFailed - before.PreauthFailed; n != 2 {
			t.Errorf("the refused key was tried %d times after --retry", n)
		}

		r := h.fails(t, 5, "principal_unknown", "raw", "nobody")
		if !strings.Contains(r.stderr, "nobdy@"+realm) {
			t.Errorf("the principal is not named: %v", r)
		}
		if r := h.fails(t, 5, "keytab_unreadable", "raw", "gone"); !strings.Contains(r.stderr, gone) {
			t.Errorf("the file is not named: %v", r)
		}
		if r := h.fails(t, 5, "spn_unknown", "raw", "spn"); !strings.Contains(r.stderr, "HTTP/127.0.0.1") {
			t.Errorf("the SPN is not named: %v", r)
		}
		h.fails(t, 5, "unexpected_status", "raw", "missing")
		h.fails(t, 5, "no_challenge", "raw", "open")
		if r := h.fails(t, 5, "wrong_identity", "raw", "person"); !strings.Contains(r.stderr, "build@"+realm) {
			t.Errorf("the identity is not named: %v", r)
		}
		h.fails(t, 5, "negotiate_rejected", "raw", "deny")
		h.fails(t, 5, "no_session_cookie", "raw", "nosess")
		if r := h.fails(t, 5, "sso_redirect", "raw", "foreign"); !strings.Contains(r.stderr, "http://127.0.0.1") {
			t.Errorf("the host is not named: %v", r)
		}
		h.fails(t, 4, "unknown_site", "raw", "elsewhere")
		if got := whoami(t, w, h.ok(t, "raw", "app")); got != me {
			t.Errorf("the good site is not served: %s", got)
		}
	})
}

// renamed makes a keytab for another principal out of one for a name of the
// same length.
func renamed(t *testing.T, keytab, from, to string) string {
	b, err := os.ReadFile(keytab)
	must(t, err)
	path := filepath.Join(t.TempDir(), "renamed.keytab")
	return write(t, path, strings.ReplaceAll(string(b), from, to))
}

// TestOutages: what passes by itself. Status 7, within the caller's time, and
// nothing is lost.
func TestOutages(t *testing.T) {
	inBothWorlds(t, func(t *testing.T, w *world) {
		h := newHome(t, w, w.site("second", "/spnego/"), strings.Replace(w.site("closed", "/"), w.url, "http://localhost:1", 1))
		h.start(t)
		first := h.ok(t, "raw", "app")
		h.fails(t, 7, "network_error", "raw", "closed")

		// Tickets live on; only a new one needs the KDC.
		w.stopKDC(t)
		h.ok(t, "refresh", "app")
		w.startKDC(t)
		if got := whoami(t, w, h.ok(t, "raw", "app")); got != me {
			t.Errorf("after the outage: %s", got)
		}
		if got := whoami(t, w, first); got != me {
			t.Errorf("the first session: %s", got)
		}
	})
}

// TestNoKDC: the KDC is out of reach before there is any ticket.
func TestNoKDC(t *testing.T) {
	inBothWorlds(t, func(t *testing.T, w *world) {
		h := newHome(t, w)
		h.start(t)
		w.stopKDC(t)
		r := h.fails(t, 7, "kdc_unreachable", "raw", "app")
		if !strings.Contains(r.stderr, realm) {
			t.Errorf("the realm is not named: %v", r)
		}
		w.startKDC(t)
		h.ok(t, "login", "app")
	})
}

// TestSilentKDC: a KDC that takes connections and never answers.
func TestSilentKDC(t *testing.T) {
	w := inProcess(t)
	h := newHome(t, w)
	h.start(t)
	must(t, w.kdc.SetMode(rig.Silent))
	begin := time.Now()
	h.fails(t, 7, "deadline", "raw", "app", "--timeout", "500ms")
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("the caller waited %v", took)
	}
	// Another caller's patience ends with the agent's own.
	h.fails(t, 7, "kdc_unreachable", "raw", "app")
	must(t, w.kdc.SetMode(rig.Garbage))
	h.fails(t, 7, "kdc_unreachable", "login", "app")
	must(t, w.kdc.SetMode(rig.Answering))
	h.ok(t, "login", "app")
}

// TestNoAgent: nobody listens.
func TestNoAgent(t *testing.T) {
	h := newHome(t, &world{krb5Conf: "/dev/null", url: "http://localhost:1"})
	for _, verb := range [][]string{{"raw", "app"}, {"header", "app"}, {"status"}, {"list"}, {"get", "app"}} {
		if r := h.fails(t, 3, "no_agent", verb...); !strings.Contains(r.stderr, "sessiond") {
			t.Errorf("it does not say how to start one: %v", r)
		}
	}
	r := h.run(t, "", "sh", "-c", `APP_COOKIE=old; export APP_COOKIE; eval $(sessionctl cookie app); echo "$? [$APP_COOKIE]"`)
	if strings.TrimSpace(r.stdout) != "3 []" && strings.TrimSpace(r.stdout) != "1 []" {
		t.Errorf("eval without an agent: %v", r)
	}
}

// TestSecondAgent: one socket, one store, one agent.
func TestSecondAgent(t *testing.T) {
	w := inProcess(t)
	h := newHome(t, w)
	a := h.start(t)
	first := h.ok(t, "raw", "app")
	pid := fmt.Sprint(a.cmd.Process.Pid)
	sessiond := func(store, socket string) result {
		cmd := exec.Command(filepath.Join(bin, "sessiond"), "--config", h.config, "--store", store, "--socket", socket)
		cmd.Env = h.env()
		return finish(t, cmd, "")
	}
	r := sessiond(h.store, h.socket)
	wantFailure(t, r, 5, "socket_in_use")
	if !strings.Contains(r.stderr, pid) {
		t.Errorf("the holder is not named: %v", r)
	}
	r = sessiond(h.store, filepath.Join(h.dir, "run2", "agent.sock"))
	if r.status != 5 || !strings.Contains(r.stderr, "(store_locked)") || !strings.Contains(r.stderr, pid) {
		t.Errorf("the same store: %v", r)
	}
	if again := h.ok(t, "raw", "app"); again != first {
		t.Error("the first agent lost its session")
	}
}

// TestConfiguration: what is wrong is quoted, with its file, and nothing runs.
func TestConfiguration(t *testing.T) {
	w := inProcess(t)
	for name, c := range map[string]struct{ from, to, want string }{
		"unknown key":    {"credential ", "credentials ", "credentials"},
		"no kind":        {"kind ", "kinds ", "kind is missing"},
		"not TOML":       {"[site.app]", "[site.app", "[site.app"},
		"wrong type":     {`insecure_http = true`, `insecure_http = "yes"`, "insecure_http"},
		"http":           {"insecure_http = true", "", "insecure_http = true"},
		"kind":           {`"spnego"`, `"spnogo"`, "spnego"},
		"credential":     {`credential    = "build"`, `credential = "bild"`, "credential.bild"},
		"no identity":    {`identity_json = "user"`, "", "identity_json"},
		"relative path":  {w.keytab, "build.keytab", "absolute"},
		"allow":          {`kind          =`, "allow = [\"nobody\"]\nkind =", "user:NAME"},
		"unknown user":   {`kind          =`, "allow = [\"user:no-such-user\"]\nkind =", "no-such-user"},
		"unknown option": {`identity_json = "user"`, "identity_json = \"user\"\nidentiy = \"x\"", "identiy"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHome(t, w)
			b, err := os.ReadFile(h.config)
			must(t, err)
			text := strings.Replace(string(b), c.from, c.to, 1)
			if text == string(b) {
				t.Fatal("nothing was changed")
			}
			write(t, h.config, text)
			r := h.fails(t, 5, "config_invalid", "check-config", h.config)
			if !strings.Contains(r.stderr, h.config) || !strings.Contains(r.stderr, c.want) {
				t.Errorf("it does not name %q and %s: %v", c.want, h.config, r)
			}
		})
	}
	t.Run("unreadable", func(t *testing.T) {
		h := newHome(t, w)
		must(t, os.Remove(h.config))
		h.fails(t, 5, "config_invalid", "check-config", h.config)
		must(t, os.Mkdir(h.config, 0o700))
		h.fails(t, 5, "config_invalid", "check-config", h.config)
	})
	t.Run("krb5.conf", func(t *testing.T) {
		h := newHome(t, w)
		h.krb5Conf = write(t, filepath.Join(t.TempDir(), "krb5.conf"), "[libdefaults]\nnonsense\n")
		if r := h.fails(t, 5, "krb5conf_invalid", "check-config", h.config); !strings.Contains(r.stderr, h.krb5Conf+":2") {
			t.Errorf("file and line are not named: %v", r)
		}
	})
	t.Run("keytab", func(t *testing.T) {
		h := newHome(t, &world{krb5Conf: w.krb5Conf, url: w.url, keytab: "/nonexistent/build.keytab"})
		r := h.sessionctl(t, "check-config", h.config)
		if r.status != 5 || !strings.Contains(r.stdout+r.stderr, "/nonexistent/build.keytab") {
			t.Errorf("%v", r)
		}
	})
	t.Run("realm", func(t *testing.T) {
		h := newHome(t, w)
		h.krb5Conf = write(t, filepath.Join(t.TempDir(), "krb5.conf"), "[libdefaults]\n default_realm = OTHER.EXAMPLE\n dns_lookup_kdc = false\n")
		r := h.sessionctl(t, "check-config", h.config)
		if r.status != 5 || !strings.Contains(r.stdout, "no KDC of the realm "+realm) {
			t.Errorf("%v", r)
		}
	})
}

// TestForeignUser: another user gets no answer about a site, however open the
// socket is.
func TestForeignUser(t *testing.T) {
	rig.Require(t, "root")
	w := inProcess(t)
	h := newHome(t, w, strings.Replace(w.site("shared", "/spnego/"), "kind", "allow = [\"gid:12345\"]\nkind", 1))
	h.start(t)
	h.ok(t, "raw", "app")
	as := func(uid uint32, groups []uint32, args ...string) result {
		cmd := exec.Command(filepath.Join(bin, "sessionctl"), args...)
		cmd.Env = []string{"SESSIONCTL_SOCKET=" + h.socket}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid, Groups: groups}}
		cmd.Dir = "/"
		return finish(t, cmd, "")
	}
	// The modes of the directory are the first wall that is met…
	if r := as(4242, nil, "raw", "app"); r.status != 3 || r.stdout != "" {
		t.Errorf("a closed directory: %v", r)
	}
	// …and the kernel's answer the one that counts.
	must(t, os.Chmod(h.dir, 0o755))
	must(t, os.Chmod(filepath.Dir(h.socket), 0o755))
	must(t, os.Chmod(h.socket, 0o666))
	for _, c := range []struct {
		uid    uint32
		groups []uint32
	}{{4242, nil}, {65534, nil}, {65534, []uint32{12345}}} {
		for _, verb := range [][]string{{"raw", "app"}, {"raw", w.url + "/spnego/"}, {"refresh", "app"}, {"logout", "app"}, {"login", "app"}} {
			if r := as(c.uid, c.groups, verb...); r.stdout != "" || r.status != 4 && c.uid != 65534 || r.status == 0 {
				t.Errorf("uid %d, %v: %v", c.uid, verb, r)
			}
		}
		if r := as(c.uid, c.groups, "tickets"); r.status != 6 {
			t.Errorf("uid %d: tickets: %v", c.uid, r)
		}
	}
	// One word for "not there" and "not yours".
	there, not := as(4242, nil, "raw", "app"), as(4242, nil, "raw", "xyz")
	if strings.ReplaceAll(there.stderr, "app", "xyz") != not.stderr {
		t.Errorf("the answers differ:\n%s\n%s", there.stderr, not.stderr)
	}
	// A supplementary group is enough for the site that allows it, and for that.
	if r := as(4242, []uint32{12345}, "raw", "shared"); r.status != 0 || whoami(t, w, r.stdout) != me {
		t.Errorf("a member of the group: %v", r)
	}
	if r := as(4242, []uint32{12345}, "raw", "app"); r.status != 4 {
		t.Errorf("a member of the group: %v", r)
	}
	if r := as(4242, []uint32{12345}, "logout", "shared"); r.status != 6 || !strings.Contains(r.stderr, "(denied)") {
		t.Errorf("logout by a member of the group: %v", r)
	}
	// Who runs the agent may make it log in at a site, and is not served by that.
	h.fails(t, 4, "unknown_site", "raw", "shared")
	c := &client.Client{Socket: h.socket}
	defer c.Close()
	sessions, err := c.Sessions()
	must(t, err)
	resp, err := sessions.Login(t.Context(), &pb.LoginRequest{Site: "shared"})
	must(t, err)
	if s := resp.GetSession(); s.GetGeneration() == "" || len(s.GetHeaders()) != 0 || len(s.GetCookies()) != 0 {
		t.Error("an operator whom the site does not allow got its session")
	}
	// A forced refresh of somebody else is a report: no login.
	hits := w.hits(t, "/").Negotiate
	for range 5 {
		if r := as(4242, []uint32{12345}, "refresh", "shared"); r.status != 0 {
			t.Errorf("refresh: %v", r)
		}
	}
	if n := w.hits(t, "/").Negotiate - hits; n != 0 {
		t.Errorf("%d logins by somebody who may not force any", n)
	}
	if r := as(4242, nil, "list"); strings.Contains(r.stdout, "app") {
		t.Errorf("list: %v", r)
	}
	if r := as(4242, nil, "status"); strings.Contains(r.stdout, h.store) {
		t.Errorf("status: %v", r)
	}
	// root runs the agent here, so it is the agent's own user.
	h.ok(t, "raw", "app")
}

// TestCron: cron jobs have next to no environment; the agent is found all the
// same.
func TestCron(t *testing.T) {
	rig.Require(t, "root", "unshare")
	w := inProcess(t)
	h := newHome(t, w)
	// A /run of its own, in which the agent makes its socket where it is by
	// default.
	script := `
set -eu
mount -t tmpfs tmpfs /run
mkdir -m 0755 /run/user && mkdir -m 0700 /run/user/0
mkfifo "$1/log"
exec 3<>"$1/log"
env HOME="$1" KRB5_CONFIG="$3" "$2/sessiond" --config "$1/sessiond.toml" 2>&3 &
agent=$!
while read -r line <&3; do case $line in *"the agent serves"*) break ;; esac; done
env -i "$2/sessionctl" raw app
kill "$agent"
wait "$agent" || true
`
	cmd := exec.CommandContext(t.Context(), "unshare", "-m", "--kill-child", "sh", "-c", script, "sh", h.dir, bin, w.krb5Conf)
	r := finish(t, cmd, "")
	if r.status != 0 || whoami(t, w, r.stdout) != me {
		t.Errorf("%v", r)
	}
}

// TestKilledWhileRefused: the KDC refuses the key, and the agent dies before it
// hears of it. The key is not tried again.
func TestKilledWhileRefused(t *testing.T) {
	w := inProcess(t)
	// A relay that looks at the KDC after each request, and kills the agent
	// instead of handing on the refusal.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	var running atomic.Pointer[agent]
	killed := make(chan struct{})
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer client.Close()
				server, err := net.Dial("tcp", w.kdc.Addr())
				if err != nil {
					return
				}
				defer server.Close()
				serving.Go(func() { io.Copy(server, client) })
				answer := make([]byte, 64<<10)
				n, _ := server.Read(answer)
				if w.kdc.Counts().PreauthFailed > 0 {
					a := running.Load()
					a.cmd.Process.Kill()
					<-a.done
					close(killed)
					return
				}
				client.Write(answer[:n])
			})
		}
	})
	defer serving.Wait()
	defer l.Close()
	w.krb5Conf = write(t, filepath.Join(t.TempDir(), "krb5.conf"), strings.ReplaceAll(w.kdc.Krb5Conf(), w.kdc.Addr(), l.Addr().String()))
	h := newHome(t, w, credential("wrong", "wrong", w.addKeytab(t, "wrong", false)), w.site("wrong", "/spnego/", `credential = "wrong"`))
	running.Store(h.start(t))
	done := make(chan result)
	go func() { done <- h.sessionctl(t, "raw", "wrong", "--timeout", "3s") }()
	<-killed
	b := h.start(t)
	<-done // it may have reached the new agent
	h.fails(t, 5, "latched", "raw", "wrong")
	b.stop(t)
	h.start(t)
	h.fails(t, 5, "latched", "raw", "wrong")
	if n := w.counts(t).PreauthFailed; n != 1 {
		t.Errorf("the refused key was tried %d times", n)
	}
}
