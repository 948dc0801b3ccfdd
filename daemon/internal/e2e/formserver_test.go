package e2e

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

// serverUsers may log in at the servers of this file.
var serverUsers = map[string]string{"anna": "CANARY-anna", "bert": "CANARY-bert"}

// anna is what these servers answer to her.
const anna = `{"user":"anna"}`

// passwordServer is a real server with a page that wants a password.
type passwordServer struct {
	name, kind string
	url        string               // of the page, with a slash at the end
	passwords  func(*testing.T) int // that have arrived there
	forget     func(*testing.T)     // ends all sessions
}

func startTomcat(t *testing.T) *rig.Tomcat {
	t.Helper()
	rig.Require(t, append(rig.TomcatNeeds(), "curl")...)
	s, err := rig.StartTomcat(t.Context(), t.TempDir(), rig.TomcatOptions{Users: serverUsers})
	must(t, err)
	t.Cleanup(s.Stop)
	return s
}

func startApache(t *testing.T) *rig.Apache {
	t.Helper()
	rig.Require(t, "apache2", "mod_ssl", "mod_auth_form", "mod_session_crypto", "curl")
	a, err := rig.StartApache(t.Context(), t.TempDir(), rig.ApacheOptions{Users: serverUsers})
	must(t, err)
	t.Cleanup(a.Stop)
	return a
}

func tomcatPage(s *rig.Tomcat, kind string) *passwordServer {
	page := "/" + kind + "/"
	return &passwordServer{
		name: "Tomcat " + strings.ToUpper(kind), kind: kind, url: s.URL() + page,
		passwords: func(t *testing.T) int {
			t.Helper()
			posts, err := s.Posts(t.Context(), page)
			must(t, err)
			hits, err := s.Hits(t.Context(), page)
			must(t, err)
			return posts + hits.Basic
		},
		forget: func(t *testing.T) {
			s.Stop()
			must(t, s.Start(t.Context()))
		},
	}
}

func apachePage(a *rig.Apache, kind, page string) *passwordServer {
	return &passwordServer{
		name: "mod_auth_" + kind + " " + page, kind: kind, url: a.URL() + page,
		passwords: func(t *testing.T) int {
			t.Helper()
			posts, err := a.Posts(page)
			must(t, err)
			hits, err := a.Hits(page)
			must(t, err)
			return posts + hits.Basic
		},
		forget: func(t *testing.T) { must(t, a.Restart(t.Context(), true)) },
	}
}

// site is the server's as a site of anna's.
func (s *passwordServer) site(name string, more ...string) string {
	return fmt.Sprintf(`
[site.%s]
url           = %q
kind          = %q
credential    = "anna"
insecure_http = true
probe_url     = "whoami"
identity_json = "user"
recheck       = "0s"
%s
`, name, s.url, s.kind, strings.Join(more, "\n"))
}

// annasHome has the sites, and the password of anna in a file.
func annasHome(t *testing.T, password string, sites ...string) *home {
	t.Helper()
	h := newHome(t, &world{})
	write(t, h.config, "[credential.anna]\nusername = \"anna\"\n"+strings.Join(sites, ""))
	dir := t.TempDir()
	h.extraEnv = []string{"CREDENTIALS_DIRECTORY=" + dir}
	write(t, filepath.Join(dir, "password.anna"), password+"\n")
	return h
}

// changePassword writes another password into the file, which the agent reads when it
// starts.
func (a *agent) changePassword(t *testing.T, password string) *agent {
	t.Helper()
	a.stop(t)
	_, dir, _ := strings.Cut(a.extraEnv[0], "=")
	write(t, filepath.Join(dir, "password.anna"), password+"\n")
	return a.home.start(t)
}

// counted returns a function that fails the test unless so many passwords have arrived
// since its last call.
func (s *passwordServer) counted(t *testing.T) func(when string, want int) {
	before := s.passwords(t)
	return func(when string, want int) {
		t.Helper()
		now := s.passwords(t)
		if now-before != want {
			t.Errorf("%s: %d passwords, want %d", when, now-before, want)
		}
		before = now
	}
}

// Scripts that ask a page who one is, by the cookies or by all header fields.
const (
	byCookie = `eval $(sessionctl cookie "$0") && curl -sS -b "$APP_COOKIE" "$1"`
	byHeader = `sessionctl header "$0" | curl -sS -H @- "$1"`
)

// wantAnna runs a script at the site app.
func (s *passwordServer) wantAnna(t *testing.T, h *home, script string) {
	t.Helper()
	r := h.run(t, "", "sh", "-c", script, "app", s.url+"whoami")
	if r.status != 0 || r.stderr != "" || strings.TrimSpace(r.stdout) != anna {
		t.Errorf("%s: %v", s.name, r)
	}
}

// formServers are those with a form, each in a state of its own.
func formServers(t *testing.T) []*passwordServer {
	a := startApache(t)
	return []*passwordServer{tomcatPage(startTomcat(t), "form"), apachePage(a, "form", "/form/"), apachePage(a, "form", "/inline/")}
}

// TestRealForms: whoever asks gets a good session by one login, which heals by one
// when the server has ended it.
func TestRealForms(t *testing.T) {
	for _, s := range formServers(t) {
		t.Run(s.name, func(t *testing.T) {
			h := annasHome(t, "CANARY-anna", s.site("app"))
			a := h.start(t)
			spent := s.counted(t)
			crowd := func() {
				var wg sync.WaitGroup
				for range 10 {
					wg.Go(func() { s.wantAnna(t, h, byCookie) })
				}
				wg.Wait()
			}
			crowd()
			spent("ten callers", 1)
			s.wantAnna(t, h, byHeader)
			crowd()
			spent("ten more", 0)
			s.forget(t)
			crowd()
			spent("after the server has ended the session", 1)
			a.stop(t)
			a = h.start(t)
			s.wantAnna(t, h, byCookie)
			spent("after the agent's restart", 0)
			a.stop(t)
			noSecrets(t, a)
		})
	}
}

// TestRealFormsInClear: without mod_session_crypto the cookie is the password, which the
// agent keeps as it keeps any cookie.
func TestRealFormsInClear(t *testing.T) {
	s := apachePage(startApache(t), "form", "/clear/")
	h := annasHome(t, "CANARY-anna", s.site("app"))
	a := h.start(t)
	if got := h.ok(t, "raw", "app"); got != "clear_session=rig-user=anna&rig-pw=CANARY-anna\n" {
		t.Errorf("%s", got)
	}
	s.wantAnna(t, h, byCookie)
	h.ok(t, "list")
	a.stop(t)
	noSecrets(t, a)
}

// TestRealFormsRefuse: a password that a real server refuses arrives there once,
// however many ask, for how many sites, and how often the agent starts.
func TestRealFormsRefuse(t *testing.T) {
	for _, s := range formServers(t) {
		t.Run(s.name, func(t *testing.T) {
			h := annasHome(t, "CANARY-wrong", s.site("app"), s.site("other"))
			a := h.start(t)
			spent := s.counted(t)
			h.fails(t, 5, "bad_credentials", "raw", "app")
			var wg sync.WaitGroup
			for range 10 {
				wg.Go(func() {
					h.fails(t, 5, "latched", "raw", "app")
					h.fails(t, 5, "latched", "raw", "other")
				})
			}
			wg.Wait()
			a.stop(t)
			a = h.start(t)
			h.fails(t, 5, "latched", "raw", "app")
			spent("refused", 1)
			a = a.changePassword(t, "CANARY-anna")
			s.wantAnna(t, h, byCookie)
			spent("the right one", 1)
			a.stop(t)
			noSecrets(t, a)
		})
	}
}

// TestRealFormsWrongUser: nothing is served of another user's session.
func TestRealFormsWrongUser(t *testing.T) {
	for _, s := range formServers(t) {
		t.Run(s.name, func(t *testing.T) {
			h := annasHome(t, "CANARY-anna", s.site("app", `identity = "bert"`))
			a := h.start(t)
			spent := s.counted(t)
			for range 3 {
				h.fails(t, 5, "wrong_identity", "raw", "app")
			}
			spent("another user's", 1)
			a.stop(t)
			h.rewrite(t, `identity = "bert"`, `identity = "anna"`)
			a = h.start(t)
			s.wantAnna(t, h, byCookie)
			a.stop(t)
			noSecrets(t, a)
		})
	}
}

// TestRealFormsLeadAway: a login that leads to another host begins and ends there
// without the password or a cookie.
func TestRealFormsLeadAway(t *testing.T) {
	tomcat, apache := startTomcat(t), startApache(t)
	apacheHits := func(prefix string) func(*testing.T) rig.Hits {
		return func(t *testing.T) rig.Hits {
			h, err := apache.Hits(prefix)
			must(t, err)
			return h
		}
	}
	for name, c := range map[string]struct {
		server    *passwordServer
		more      string
		passwords int
		there     func(*testing.T) rig.Hits // of the other host
		asked     int                       // under the site's own name
	}{
		"Tomcat, after the login": {tomcatPage(tomcat, "form"), `login_url = "away"`, 1, func(t *testing.T) rig.Hits {
			h, err := tomcat.Hits(t.Context(), "/open/")
			must(t, err)
			return h
		}, 0},
		"Apache, after the login":  {apachePage(apache, "form", "/away/"), "", 1, apacheHits("/away/"), 2},
		"Apache, before the login": {apachePage(apache, "form", "/abroad/"), "", 0, apacheHits("/login/form.html"), 0},
	} {
		t.Run(name, func(t *testing.T) {
			h := annasHome(t, "CANARY-anna", c.server.site("app", c.more))
			a := h.start(t)
			spent := c.server.counted(t)
			if r := h.fails(t, 5, "sso_redirect", "raw", "app"); !strings.Contains(r.stderr, "login_hosts") {
				t.Errorf("%v", r)
			}
			spent("led away", c.passwords)
			if n := c.there(t); n.Total != c.asked {
				t.Errorf("the other host was asked: %+v", n)
			}
			a.stop(t)
			noSecrets(t, a)
		})
	}
}

// TestRealFormsBreak: a server that breaks while somebody logs in has perhaps looked
// at the password, which is not sent again by itself. One that breaks later costs no
// session.
func TestRealFormsBreak(t *testing.T) {
	tomcat, apache := startTomcat(t), startApache(t)
	users := filepath.Join(apache.Dir(), "users")
	for _, page := range []string{"/form/", "/inline/"} {
		s := apachePage(apache, "form", page)
		t.Run(s.name, func(t *testing.T) {
			// Without its file, mod_authn_file can say nothing of any password.
			breakDown := func() { must(t, os.Rename(users, users+".away")) }
			mend := func() { must(t, os.Rename(users+".away", users)) }
			h := annasHome(t, "CANARY-anna", s.site("app"))
			a := h.start(t)
			spent := s.counted(t)
			breakDown()
			h.fails(t, 7, "server_5xx", "raw", "app")
			h.fails(t, 5, "latched", "raw", "app")
			mend()
			h.fails(t, 5, "latched", "raw", "app")
			spent("broken", 1)
			h.ok(t, "login", "app", "--retry")
			s.wantAnna(t, h, byCookie)
			spent("mended", 1)

			breakDown()
			if r := h.sessionctl(t, "raw", "app"); r.status != 0 || !strings.Contains(r.stdout, "_session=") {
				t.Errorf("broken with a session: %v", r)
			}
			if l := h.ok(t, "list"); !strings.Contains(l, "stale") || !strings.Contains(l, "server_5xx") {
				t.Errorf("%s", l)
			}
			mend()
			until(t, "the session is proven again", func() bool {
				r := h.sessionctl(t, "raw", "app")
				return r.status == 0 && r.stderr == ""
			})
			s.wantAnna(t, h, byCookie)
			spent("broken later", 0)
			a.stop(t)
			noSecrets(t, a)
		})
	}
	s := tomcatPage(tomcat, "form")
	t.Run(s.name, func(t *testing.T) {
		h := annasHome(t, "CANARY-anna", s.site("app", `login_url = "broken"`))
		a := h.start(t)
		spent := s.counted(t)
		h.fails(t, 7, "server_5xx", "raw", "app")
		h.fails(t, 5, "latched", "raw", "app")
		spent("broken", 1)
		a.stop(t)
		h.rewrite(t, `login_url = "broken"`, `login_url = "index.html"`)
		a = h.start(t)
		s.wantAnna(t, h, byCookie)
		spent("another page", 1)
		a.stop(t)
		noSecrets(t, a)
	})
}

// TestTomcatOutOfTurn: Tomcat takes a form only from whoever has asked for a page before
// and has been shown it.
func TestTomcatOutOfTurn(t *testing.T) {
	tomcat := startTomcat(t)
	s := tomcatPage(tomcat, "form")
	to, err := url.Parse(tomcat.URL())
	must(t, err)
	t.Run("session lost before the form", func(t *testing.T) {
		var lost atomic.Int32 // how many forms will come without their session
		front := serve(t, false, &httputil.ReverseProxy{
			Transport: &http.Transport{DisableKeepAlives: true},
			Rewrite: func(r *httputil.ProxyRequest) {
				r.SetURL(to)
				if r.In.Method == http.MethodPost && lost.Add(-1) >= 0 {
					r.Out.Header.Del("Cookie")
				}
			},
		})
		site := *s
		site.url = named(t, front.URL, "localhost") + "/form/"
		h := annasHome(t, "CANARY-anna", site.site("app"))
		a := h.start(t)
		spent := s.counted(t)
		// Tomcat answers 408, and has not looked at the password.
		lost.Store(2)
		if r := h.fails(t, 5, "unexpected_status", "raw", "app"); !strings.Contains(r.stderr, "answers 408") {
			t.Errorf("%v", r)
		}
		spent("lost twice", 2)
		lost.Store(1)
		h.ok(t, "login", "app", "--retry")
		site.wantAnna(t, h, byCookie)
		spent("lost once", 2)
		a.stop(t)
		noSecrets(t, a)
	})
	t.Run("no page before the form", func(t *testing.T) {
		h := annasHome(t, "CANARY-anna", s.site("app", `login_url = "j_security_check"`))
		a := h.start(t)
		spent := s.counted(t)
		if r := h.fails(t, 5, "unexpected_status", "raw", "app"); !strings.Contains(r.stderr, "answers 400") {
			t.Errorf("%v", r)
		}
		spent("no page", 0)
		a.stop(t)
	})
	// The page that has the form is as good as any, though it is there for users, too.
	t.Run("login page itself", func(t *testing.T) {
		h := annasHome(t, "CANARY-anna", s.site("app", `login_url = "login.html"`))
		a := h.start(t)
		spent := s.counted(t)
		s.wantAnna(t, h, byCookie)
		spent("the right password", 1)
		a = a.changePassword(t, "CANARY-wrong")
		h.ok(t, "logout", "app")
		h.fails(t, 5, "bad_credentials", "raw", "app")
		h.fails(t, 5, "latched", "raw", "app")
		spent("a wrong one", 1)
		a.stop(t)
		noSecrets(t, a)
	})
}

// basicServers are those that ask by Basic: Tomcat begins a session then, Apache does
// not, whatever cookie it sets.
func basicServers(t *testing.T) (tomcat *passwordServer, apache []*passwordServer) {
	a := startApache(t)
	return tomcatPage(startTomcat(t), "basic"), []*passwordServer{apachePage(a, "basic", "/password/"), apachePage(a, "basic", "/tracked/")}
}

// annasField is what Basic makes of her password.
var annasField = base64.StdEncoding.EncodeToString([]byte("anna:CANARY-anna"))

// noField looks for it where the agent writes.
func noField(t *testing.T, a *agent) {
	t.Helper()
	noSecrets(t, a)
	for _, text := range append(contents(t, a.dir), a.log.String()) {
		if strings.Contains(text, annasField) {
			t.Error("a password is in what the agent has written")
		}
	}
}

// TestRealBasic: the session is the cookies where they are enough, else the password.
func TestRealBasic(t *testing.T) {
	tomcat, apache := basicServers(t)
	for _, s := range apache {
		t.Run(s.name, func(t *testing.T) {
			h := annasHome(t, "CANARY-anna", s.site("app"))
			a := h.start(t)
			spent := s.counted(t)
			if got := h.ok(t, "header", "app"); got != "Authorization: Basic "+annasField+"\n" {
				t.Errorf("%s", got)
			}
			spent("the login and its proof", 2)
			s.wantAnna(t, h, byHeader)
			h.fails(t, 5, "per_request_only", "raw", "app")
			s.forget(t)
			s.wantAnna(t, h, byHeader)
			a.stop(t)
			noField(t, a)
		})
	}
	t.Run(tomcat.name, func(t *testing.T) {
		s := tomcat
		h := annasHome(t, "CANARY-anna", s.site("app"))
		a := h.start(t)
		spent := s.counted(t)
		crowd := func() {
			var wg sync.WaitGroup
			for range 10 {
				wg.Go(func() { s.wantAnna(t, h, byCookie) })
			}
			wg.Wait()
		}
		crowd()
		spent("one login", 1)
		s.wantAnna(t, h, byHeader)
		spent("served", 0)
		s.forget(t)
		crowd()
		spent("after the server has ended the session", 1)
		a.stop(t)
		noField(t, a)
	})
}

// TestRealBasicRefuse: TestRealFormsRefuse for Basic; and what comes before a password.
func TestRealBasicRefuse(t *testing.T) {
	tomcat, apache := basicServers(t)
	for _, s := range append(apache, tomcat) {
		t.Run(s.name, func(t *testing.T) {
			h := annasHome(t, "CANARY-wrong", s.site("app"), s.site("other"))
			a := h.start(t)
			spent := s.counted(t)
			h.fails(t, 5, "bad_credentials", "header", "app")
			h.fails(t, 5, "latched", "header", "app")
			h.fails(t, 5, "latched", "header", "other")
			a.stop(t)
			a = h.start(t)
			h.fails(t, 5, "latched", "header", "app")
			spent("refused", 1)
			a = a.changePassword(t, "CANARY-anna")
			s.wantAnna(t, h, byHeader)
			a.stop(t)
			noField(t, a)

			h = annasHome(t, "CANARY-anna", s.site("app", `identity = "bert"`))
			a = h.start(t)
			for range 2 {
				h.fails(t, 5, "wrong_identity", "header", "app")
			}
			a.stop(t)
			noField(t, a)
		})
	}
	t.Run("another host", func(t *testing.T) {
		s := *apache[0]
		s.url = strings.Replace(s.url, "/password/", "/abroad/", 1)
		h := annasHome(t, "CANARY-anna", s.site("app"))
		a := h.start(t)
		spent := s.counted(t)
		h.fails(t, 5, "sso_redirect", "header", "app")
		spent("led away", 0)
		a.stop(t)
		noField(t, a)
	})
}

// TestRealPasswordChanged: a password that is changed at the server ends the sessions
// that hold it, and the old one is tried once.
func TestRealPasswordChanged(t *testing.T) {
	apache := startApache(t)
	users := filepath.Join(apache.Dir(), "users")
	before, err := os.ReadFile(users)
	must(t, err)
	// From now on anna's is bert's.
	_, berts, _ := strings.Cut(string(before), "bert:")
	berts, _, _ = strings.Cut(berts, "\n")
	for _, s := range []*passwordServer{
		apachePage(apache, "form", "/form/"), apachePage(apache, "form", "/inline/"),
		apachePage(apache, "basic", "/password/"), apachePage(apache, "basic", "/tracked/"),
	} {
		t.Run(s.name, func(t *testing.T) {
			must(t, os.WriteFile(users, before, 0o600))
			h := annasHome(t, "CANARY-anna", s.site("app"))
			a := h.start(t)
			s.wantAnna(t, h, byHeader)
			spent := s.counted(t)
			must(t, os.WriteFile(users, []byte("anna:"+berts+"\n"), 0o600))
			h.fails(t, 5, "bad_credentials", "header", "app")
			var wg sync.WaitGroup
			for range 10 {
				wg.Go(func() { h.fails(t, 5, "latched", "header", "app") })
			}
			wg.Wait()
			a.stop(t)
			a = h.start(t)
			h.fails(t, 5, "latched", "header", "app")
			spent("the old password", 1)
			a = a.changePassword(t, "CANARY-bert")
			s.wantAnna(t, h, byHeader)
			a.stop(t)
			noField(t, a)
		})
	}
}
