package e2e

import (
	"bufio"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

// ssoPassword is fred's at the identity provider.
const ssoPassword = "CANARY-fred"

// ssoSites are the sites of an ssoHome, all of which the provider corp logs in
// to.
var ssoSites = []string{"app1", "app2", "app3"}

// ssoHome is a home with an identity provider and three applications.
type ssoHome struct {
	*home
	*rig.SSO
	user string
}

// newSSO makes an ssoHome. Who logs in is fred with a password, or build with a
// keytab.
func newSSO(t *testing.T, o rig.SSOOptions, byTicket bool) *ssoHome {
	t.Helper()
	w := inProcess(t)
	s := &ssoHome{user: "fred"}
	kind, credential := "form", "fred"
	if byTicket {
		o.Keytab = w.kdc.Keytab("HTTP/localhost")
		kind, credential, s.user = "spnego", "build", "build"
	}
	o.Applications = len(ssoSites)
	var err error
	s.SSO, err = rig.StartSSO(o)
	must(t, err)
	t.Cleanup(s.Stop)
	s.AddUser("fred", ssoPassword)
	config := fmt.Sprintf(`
[credential.fred]
username = "fred"

[idp.corp]
url           = %q
kind          = %q
credential    = %q
insecure_http = true
login_url     = "/sso"
probe_url     = "/whoami"
identity_json = "user"
`, s.Provider.URL()+"/", kind, credential)
	for i, site := range ssoSites {
		config += fmt.Sprintf(`
[site.%s]
url           = %q
kind          = "form"
idp           = "corp"
insecure_http = true
probe_url     = "/whoami"
identity_json = "user"
`, site, s.Applications[i].URL()+"/")
	}
	s.home = newHome(t, w, config)
	return s
}

// known makes the names of the hosts known to all that this test starts, and to
// nothing else: a mount namespace of this thread has its own /etc/hosts.
func (s *ssoHome) known(t *testing.T) {
	t.Helper()
	hosts := write(t, filepath.Join(s.dir, "hosts"), s.HostsFile())
	must(t, os.Chmod(hosts, 0o644))
	runtime.LockOSThread() // for good: the thread ends with the test
	must(t, syscall.Unshare(syscall.CLONE_NEWNS))
	must(t, syscall.Mount("none", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""))
	must(t, syscall.Mount(hosts, "/etc/hosts", "", syscall.MS_BIND, ""))
}

// whoami asks an application with nothing but what raw printed for its Cookie
// field.
func (s *ssoHome) whoami(t *testing.T, site int, cookie string) string {
	t.Helper()
	u, err := url.Parse(s.Applications[site].URL())
	must(t, err)
	c, err := s.Dial(t.Context(), "tcp", u.Host)
	must(t, err)
	defer c.Close()
	fmt.Fprintf(c, "GET /whoami HTTP/1.1\r\nHost: %s\r\nConnection: close\r\nCookie: %s\r\n\r\n", u.Host, strings.TrimSuffix(cookie, "\n"))
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	must(t, err)
	defer resp.Body.Close()
	body, err := bufio.NewReader(resp.Body).ReadString('\n')
	if resp.StatusCode != http.StatusOK || err != nil {
		return resp.Status
	}
	return strings.TrimSpace(body)
}

// all calls sessionctl for every site at once, n times each.
func (s *ssoHome) all(t *testing.T, n int, verb ...string) [][]result {
	t.Helper()
	results := make([][]result, len(ssoSites))
	var calls sync.WaitGroup
	for i, site := range ssoSites {
		results[i] = make([]result, n)
		for j := range n {
			calls.Go(func() { results[i][j] = s.sessionctl(t, append(slices.Clone(verb), site)...) })
		}
	}
	calls.Wait()
	return results
}

// served fails unless every site hands its user's session to everybody who asks.
func (s *ssoHome) served(t *testing.T, n int) (cookies []string) {
	t.Helper()
	for i, results := range s.all(t, n, "raw") {
		for _, r := range results {
			if r.status != 0 || r.stdout != results[0].stdout || s.whoami(t, i, r.stdout) != `{"user":"`+s.user+`"}` {
				t.Errorf("%s: %v", ssoSites[i], r)
			}
		}
		cookies = append(cookies, results[0].stdout)
	}
	return cookies
}

// counted fails unless so many logins and new sessions of applications have come
// since the last time.
func (s *ssoHome) counted(t *testing.T, before *rig.SSOCounts, logins, sessions int) {
	t.Helper()
	n := s.Counts()
	if n.Logins-before.Logins != logins || n.Sessions-before.Sessions != sessions || n.Failures != before.Failures {
		t.Errorf("%d logins, %d sessions at applications, %d refused passwords; want %d, %d and none",
			n.Logins-before.Logins, n.Sessions-before.Sessions, n.Failures-before.Failures, logins, sessions)
	}
	*before = n
}

// entitle gives the agent what the provider wants. That logs in at app1.
func (s *ssoHome) entitle(t *testing.T) {
	t.Helper()
	if s.user == "fred" {
		if r := s.run(t, ssoPassword+"\n", filepath.Join(bin, "sessionctl"), "login", "app1", "--password-stdin"); r.status != 0 {
			t.Fatalf("%v", r)
		}
	}
}

// TestIdP: one login at the identity provider serves all its sites, whatever dies.
func TestIdP(t *testing.T) {
	for _, c := range []struct {
		name     string
		o        rig.SSOOptions
		byTicket bool
	}{
		{"tickets", rig.SSOOptions{}, false},
		{"kerberos", rig.SSOOptions{}, true},
		{"domain", rig.SSOOptions{Domain: "corp.localhost"}, false},
		{"direct", rig.SSOOptions{Domain: "corp.localhost", Direct: true}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.o.Domain != "" {
				rig.Require(t, "root")
			}
			s := newSSO(t, c.o, c.byTicket)
			if c.o.Domain != "" {
				s.known(t)
			}
			a := s.start(t)
			s.entitle(t)
			s.ok(t, "logout", "app1", "--idp")
			n := s.Counts()

			// All are cold.
			first := s.served(t, 3)
			s.counted(t, &n, 1, 3)
			s.secretOfTheProvider(t)

			// A session at an application dies.
			s.Applications[0].End()
			s.ok(t, "reject", "app1")
			second := s.served(t, 2)
			s.counted(t, &n, 0, 1)
			if second[0] == first[0] || second[1] != first[1] || second[2] != first[2] {
				t.Errorf("%q after %q", second, first)
			}

			// The provider's dies: nobody notices who has a session.
			s.Provider.End()
			s.all(t, 2, "reject")
			if third := s.served(t, 2); !slices.Equal(third, second) {
				t.Errorf("%q after %q", third, second)
			}
			s.counted(t, &n, 0, 0)

			// All die: one login.
			for _, h := range s.Applications {
				h.End()
			}
			s.all(t, 2, "reject")
			third := s.served(t, 2)
			s.counted(t, &n, 1, 3)

			// The agent starts anew. The provider's session is still there.
			a.stop(t)
			a = s.start(t)
			if fourth := s.served(t, 1); !slices.Equal(fourth, third) {
				t.Errorf("%q after %q", fourth, third)
			}
			s.Applications[1].End()
			s.ok(t, "reject", "app2")
			s.served(t, 1)
			s.counted(t, &n, 0, 1)

			// A logout drops one site's session, and says what goes on; or all end.
			r := s.sessionctl(t, "logout", "app3")
			if r.status != 0 || !strings.Contains(r.stderr, "corp") || !strings.Contains(r.stderr, "--idp") {
				t.Errorf("%v", r)
			}
			s.served(t, 1)
			s.counted(t, &n, 0, 1)
			if r := s.sessionctl(t, "logout", "app3", "--idp"); r.status != 0 {
				t.Errorf("%v", r)
			}
			// What is changed is the provider, and its sites if their sessions end.
			s.rewrite(t, "[idp.corp]\n", "[idp.corp]\nkeep_alive = false\nrecheck = \"5m\"\n")
			if got := s.reload(t); got != "[] [idp corp] []" {
				t.Errorf("a reload says %s", got)
			}
			if out := s.ok(t, "list"); strings.Contains(out, "live") {
				t.Errorf("after logout --idp:\n%s", out)
			}
			s.served(t, 2)
			s.counted(t, &n, 1, 3)
			s.secretOfTheProvider(t)
			a.stop(t)
		})
	}
}

// secretOfTheProvider fails if anything of the provider's session is handed out.
func (s *ssoHome) secretOfTheProvider(t *testing.T) {
	t.Helper()
	for i, site := range ssoSites {
		for _, args := range [][]string{{"raw", site}, {"header", site}, {"raw", s.Applications[i].URL() + "/whoami"},
			{"get", site, "-o", "json"}, {"get", site, "-o", "netscape"}, {"list", "-o", "json"}, {"status", "-o", "json"}} {
			if out := s.ok(t, args...); strings.Contains(out, "sso") || args[0] != "list" && args[0] != "status" && !strings.Contains(out, "JSESSIONID") {
				t.Errorf("%v: %s", args, out)
			}
		}
	}
	// It is no site, by name or by URL.
	for _, name := range []string{"corp", s.Provider.URL() + "/", s.Provider.URL() + "/whoami"} {
		s.fails(t, 4, "unknown_site", "raw", name)
	}
	if s.Provider.Sessions() == 0 {
		t.Error("the provider has no session")
	}
}

// TestIdPRefuses: three sites and a wrong password make one attempt. The way out
// is that of every site.
func TestIdPRefuses(t *testing.T) {
	s := newSSO(t, rig.SSOOptions{}, false)
	a := s.start(t)
	if r := s.fails(t, 5, "no_secret", "raw", "app2"); !strings.Contains(r.stderr, "sessionctl login app2 --password-stdin") {
		t.Errorf("%v", r)
	}
	s.entitle(t)
	s.ok(t, "logout", "app1", "--idp")
	s.AddUser("fred", "CANARY-new")
	refused := func(attempts int) {
		t.Helper()
		for i, results := range s.all(t, 3, "raw") {
			for _, r := range results {
				if r.status != 5 || r.stdout != "" || !strings.Contains(r.stderr, "(bad_credentials)") && !strings.Contains(r.stderr, "(latched)") ||
					!strings.Contains(r.stderr, "corp") || !strings.Contains(r.stderr, "sessionctl login "+ssoSites[i]+" ") || !strings.Contains(r.stderr, "--retry") {
					t.Errorf("%s: %v", ssoSites[i], r)
				}
			}
		}
		if n := s.Counts(); n.Failures != attempts || n.Logins != 1 {
			t.Errorf("%+v, want %d refused attempts", n, attempts)
		}
	}
	refused(1)
	a.stop(t)
	a = s.start(t)
	refused(1)
	if r := s.sessionctl(t, "login", "app2"); r.status != 5 || s.Counts().Failures != 1 {
		t.Errorf("a login without --retry: %v", r)
	}

	// The same password once more, which a person asks for: wrong again, then right.
	if r := s.sessionctl(t, "login", "app3", "--retry"); r.status != 5 || !strings.Contains(r.stderr, "(bad_credentials)") {
		t.Errorf("%v", r)
	}
	refused(2)
	s.AddUser("fred", ssoPassword)
	refused(2)
	s.ok(t, "login", "app3", "--retry")
	s.served(t, 2)
	if n := s.Counts(); n.Failures != 2 || n.Logins != 2 {
		t.Errorf("%+v", n)
	}
	a.stop(t)
	for _, secret := range []string{ssoPassword, "CANARY-new"} {
		if strings.Contains(a.log.String(), secret) {
			t.Errorf("%s is in the log", secret)
		}
	}
}

// TestIdPAway: while the provider cannot be reached, who has a session keeps it;
// who needs one is told, and gets one soon after it is back.
func TestIdPAway(t *testing.T) {
	for name, o := range map[string]struct {
		code         string
		leave, again func(*testing.T, *rig.SSOHost)
	}{
		"stopped": {"network_error", func(_ *testing.T, h *rig.SSOHost) { h.Stop() }, func(t *testing.T, h *rig.SSOHost) { must(t, h.Start()) }},
		"503":     {"maintenance", func(_ *testing.T, h *rig.SSOHost) { h.Fail(503) }, func(_ *testing.T, h *rig.SSOHost) { h.Fail(0) }},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSSO(t, rig.SSOOptions{}, false)
			a := s.start(t)
			s.entitle(t)
			before := s.served(t, 1)
			n := s.Counts()

			o.leave(t, s.Provider)
			s.all(t, 1, "reject") // the applications say that they live
			if after := s.served(t, 1); !slices.Equal(after, before) {
				t.Errorf("%q after %q", after, before)
			}
			if out := s.ok(t, "list"); strings.Count(out, " live ") != len(ssoSites) {
				t.Errorf("a session that its application has proven is not live:\n%s", out)
			}
			s.Applications[0].End()
			for _, args := range [][]string{{"reject", "app1"}, {"raw", "app1"}, {"raw", "app1"}} {
				if r := s.sessionctl(t, args...); args[0] == "raw" && (r.status != 7 || !strings.Contains(r.stderr, "("+o.code+")")) {
					t.Errorf("%v: %v", args, r)
				}
			}
			if s.whoami(t, 1, s.ok(t, "raw", "app2")) != `{"user":"fred"}` {
				t.Error("app2 is not served")
			}
			s.counted(t, &n, 0, 0)

			o.again(t, s.Provider)
			deadline := time.Now().Add(time.Minute)
			for s.sessionctl(t, "raw", "app1").status != 0 && time.Now().Before(deadline) {
			}
			s.served(t, 1)
			s.counted(t, &n, 0, 1)
			a.stop(t)
		})
	}
}

// TestIdPSaysAnother: what the application says of the user counts, not what the
// provider says.
func TestIdPSaysAnother(t *testing.T) {
	s := newSSO(t, rig.SSOOptions{}, false)
	s.start(t)
	s.entitle(t)
	s.served(t, 1)
	s.Rename("fred", "barney")
	s.ok(t, "logout", "app2")
	if r := s.fails(t, 5, "wrong_identity", "raw", "app2"); !strings.Contains(r.stderr, "barney") {
		t.Errorf("%v", r)
	}
	if s.whoami(t, 0, s.ok(t, "raw", "app1")) != `{"user":"fred"}` {
		t.Error("app1 is not served")
	}
}

// TestIdPCookieAlways: an application that looks at the provider's cookie with
// every request cannot be served, for that cookie is nobody's but the agent's.
func TestIdPCookieAlways(t *testing.T) {
	rig.Require(t, "root")
	s := newSSO(t, rig.SSOOptions{Domain: "corp.localhost", Direct: true, Always: true}, false)
	s.known(t)
	s.start(t)
	r := s.run(t, ssoPassword+"\n", filepath.Join(bin, "sessionctl"), "login", "app1", "--password-stdin")
	wantFailure(t, r, 5, "login_ok_but_probe_failed")
	if !strings.Contains(r.stderr, "corp") {
		t.Errorf("%v", r)
	}
	n := s.Counts()
	for i, results := range s.all(t, 2, "raw") {
		for _, r := range results {
			if r.status == 0 || r.stdout != "" || !strings.Contains(r.stderr, "(login_ok_but_probe_failed)") {
				t.Errorf("%s: %v", ssoSites[i], r)
			}
		}
	}
	if after := s.Counts(); n.Logins != 1 || after.Logins != 1 {
		t.Errorf("%d logins, %d in the end: the password is good", n.Logins, after.Logins)
	}
}
