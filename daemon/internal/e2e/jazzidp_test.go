package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	pb "github.com/sessionctl/sessionctl/api/sessionctl/v1"
	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

// jazzMembers are the applications of one server, all of which its provider logs in to.
var jazzMembers = []string{"ccm", "qm", "rm", "gc", "jts"}

// jazzServer is a Jazz server, and the home of an agent that has its applications as
// members of one identity provider.
type jazzServer struct {
	*home
	*rig.Jazz
	user string
}

func newJazzServer(t *testing.T, o rig.JazzOptions, more string) *jazzServer {
	t.Helper()
	w := inProcess(t)
	s := &jazzServer{Jazz: newJazz(t, w, o), user: "alice"}
	if o.Auth == "negotiate" || o.JAS.Kerberos {
		s.user = "build"
		s.AddUser("build", "")
	}
	config := userTable("alice", "alice") + fmt.Sprintf("[idp.elm]\nurl = %q\nkind = \"jazz\"\ncredential = %q\ninsecure_http = true\n%s\n%s\n", s.URL("jts"), s.user, jazzHosts(s.Jazz), more)
	for _, context := range jazzMembers {
		config += jazzSite(s.Jazz, context, context, `idp = "elm"`)
	}
	s.home = newHome(t, w, config)
	return s
}

// entitle gives the agent the password, which the provider logs in with.
func (s *jazzServer) entitle(t *testing.T, site string) {
	t.Helper()
	var r result
	if s.user == "build" {
		r = s.sessionctl(t, "login", site)
	} else {
		r = s.bring(t, site, elmPassword)
	}
	if r.status != 0 || r.stderr != "sessionctl: "+site+": logged in as "+s.user+"\n" {
		t.Fatalf("%v", r)
	}
}

// all asks for every member's session at once, n times each. All who ask for the same
// get the same, which the application takes.
func (s *jazzServer) all(t *testing.T, n int) map[string]string {
	t.Helper()
	results := map[string][]result{}
	var calls sync.WaitGroup
	for _, site := range jazzMembers {
		some := make([]result, n)
		results[site] = some
		for i := range some {
			calls.Go(func() { some[i] = s.sessionctl(t, "header", site) })
		}
	}
	calls.Wait()
	headers := map[string]string{}
	for site, some := range results {
		for _, r := range some {
			if r.status != 0 || r.stdout != some[0].stdout {
				t.Errorf("%s: %v, and to another %v", site, r, some[0])
			}
		}
		headers[site] = some[0].stdout
		jazzNames(t, s.Jazz, site, headers[site], s.user)
	}
	return headers
}

// since fails unless so many logins have come since the last time, and each member has
// begun as many sessions. The provider is proven at the Jazz Team Server, where
// delegated logins pass, too, so that more begin there.
func (s *jazzServer) since(t *testing.T, before *rig.JazzCounts, logins, sessions int) {
	t.Helper()
	n := s.Counts()
	secrets := n.Passwords + n.Tokens - before.Passwords - before.Tokens
	t.Logf("%d logins by %d secrets, %d requests; sessions begun: %s, before: %s", n.Logins-before.Logins, secrets, n.Requests-before.Requests, sessionsBegun(n), sessionsBegun(*before))
	if n.Logins-before.Logins != logins || secrets != logins || n.Failures != before.Failures || n.PasswordsInURL+n.Preemptive != 0 {
		t.Errorf("%+v after %+v, want %d logins", n, *before, logins)
	}
	for _, site := range jazzMembers {
		if begun := n.Sessions[site] - before.Sessions[site]; begun != sessions && (site != "jts" || begun < sessions) {
			t.Errorf("%s has begun %d sessions, want %d", site, begun, sessions)
		}
	}
	*before = n
}

// notServed matches the cookies that are no application's: those of the authorization
// server, and those of a login under way.
var notServed = regexp.MustCompile(`jazzop|oidc_bsc|WASReq|WASRe|WASPost|WASOidc|jfs-request-token|auth-loop-avoidance`)

// withheld fails if one of them is handed out.
func (s *jazzServer) withheld(t *testing.T) {
	t.Helper()
	for _, site := range jazzMembers {
		for _, args := range [][]string{{"raw", site}, {"header", site}, {"cookie", site}, {"header", s.URL(site) + "/web/projects"}, {"get", site, "-o", "json"},
			{"get", site, "-o", "netscape"}, {"get", site, "-o", "curl"}, {"list", "-o", "json"}, {"status", "-o", "json"}} {
			if out := s.ok(t, args...); notServed.MatchString(out) {
				t.Errorf("%v: %s", args, out)
			}
		}
	}
	for _, name := range []string{"elm", s.JASURL() + "/oidc/endpoint/jazzop/authorize"} { // which are no sites
		if r := s.sessionctl(t, "raw", name); r.status != 4 || r.stdout != "" {
			t.Errorf("%s: %v", name, r)
		}
	}
}

// TestJazzServer: one login serves all applications of a server, whatever dies.
func TestJazzServer(t *testing.T) {
	for name, v := range map[string]struct {
		o    rig.JazzOptions
		more string
	}{
		"form":            {rig.JazzOptions{}, ""},
		"form, tracked":   {rig.JazzOptions{LogoutTracked: true}, ""},
		"JAS":             {rig.JazzOptions{Auth: "jas"}, ""},
		"JAS, its form":   {rig.JazzOptions{Auth: "jas", JAS: rig.JazzJAS{NoBasic: true}}, "jas_form = true"},
		"JAS, delegated":  {rig.JazzOptions{Auth: "jas", Delegated: []string{"rm"}}, ""},
		"ticket":          {rig.JazzOptions{Auth: "negotiate"}, ""},
		"ticket, for JAS": {rig.JazzOptions{Auth: "jas", JAS: rig.JazzJAS{Kerberos: true}}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := newJazzServer(t, v.o, v.more)
			a := s.start(t)
			var n rig.JazzCounts
			s.entitle(t, "qm")
			first := s.all(t, 3)
			s.since(t, &n, 1, 1)
			s.withheld(t)
			ids := map[string]bool{}
			for site, header := range first {
				id := regexp.MustCompile(`JSESSIONID=([^;\n]+)`).FindString(header)
				if id == "" || ids[id] {
					t.Errorf("%s: %s", site, header)
				}
				ids[id] = true
			}

			// All die: one login, whoever asks.
			s.DropSessions()
			second := s.all(t, 20)
			s.since(t, &n, 1, 1)
			for site, header := range second {
				if header == first[site] {
					t.Errorf("%s is as before", site)
				}
			}

			// The applications forget: none.
			s.DropApps()
			third := s.all(t, 20)
			s.since(t, &n, 0, 1)
			s.withheld(t)

			// The agent starts anew.
			a.stop(t)
			noSecrets(t, a)
			a = s.start(t)
			if again := s.all(t, 1); again["qm"] != third["qm"] {
				t.Errorf("%s after the restart, %s before", again["qm"], third["qm"])
			}
			s.since(t, &n, 0, 0)

			// A logout of one site.
			r := s.sessionctl(t, "logout", "ccm")
			t.Logf("%s", r.stderr)
			if r.status != 0 || !strings.Contains(r.stderr, "elm") || !strings.Contains(r.stderr, "sessionctl logout ccm --idp") || s.Counts().Logouts != 0 {
				t.Errorf("%v", r)
			}
			s.ok(t, "header", "ccm")
			if m := s.Counts(); m.Logins != n.Logins || m.Sessions["ccm"] != n.Sessions["ccm"]+1 {
				t.Errorf("%+v after %+v", m, n)
			}

			// And of all. What the provider's logout did is said.
			r = s.sessionctl(t, "logout", "ccm", "--idp")
			t.Logf("%s", r.stderr)
			ended := v.o.LogoutTracked
			if r.status != 0 || s.Counts().Logouts != 1 || strings.Contains(r.stderr, "the identity provider has ended the session") != ended ||
				!ended && !strings.Contains(r.stderr, "goes on until it expires") {
				t.Errorf("%v: %+v", r, s.Counts())
			}
			if out := s.ok(t, "list"); strings.Contains(out, " live ") {
				t.Errorf("after logout --idp:\n%s", out)
			}
			n = s.Counts()
			s.all(t, 1)
			s.since(t, &n, 1, 1)
			a.stop(t)
			noSecrets(t, a)
		})
	}
}

// TestJazzServerRefuses: five sites and a wrong password make one attempt.
func TestJazzServerRefuses(t *testing.T) {
	for name, o := range map[string]rig.JazzOptions{"form": {}, "JAS": {Auth: "jas"}} {
		t.Run(name, func(t *testing.T) {
			s := newJazzServer(t, o, "")
			a := s.start(t)
			s.entitle(t, "rm")
			s.AddUser("alice", "CANARY-new")
			s.DropSessions()
			var calls sync.WaitGroup
			for _, site := range jazzMembers {
				for range 5 {
					calls.Go(func() {
						r := s.sessionctl(t, "header", site)
						if r.status != 5 || r.stdout != "" || !strings.Contains(r.stderr, "(bad_credentials)") && !strings.Contains(r.stderr, "(latched)") ||
							!strings.Contains(r.stderr, "sessionctl login "+site+" ") || strings.Contains(r.stderr, "CANARY") {
							t.Errorf("%s: %v", site, r)
						}
					})
				}
			}
			calls.Wait()
			a.stop(t)
			a = s.start(t)
			s.fails(t, 5, "latched", "header", "gc")
			if n := s.Counts(); n.Failures != 1 || n.Passwords != 2 || n.Logins != 1 {
				t.Errorf("%+v", n)
			}
			if r := s.bring(t, "gc", "CANARY-new"); r.status != 0 {
				t.Errorf("%v", r)
			}
			s.all(t, 1)
			a.stop(t)
			noSecrets(t, a)
		})
	}
}

// browser logs in at the Jazz Team Server as a person with a browser does, and returns
// the pairs of the cookies that it shows then.
func (s *jazzServer) browser(t *testing.T, user, password string) string {
	t.Helper()
	resp, err := local.PostForm(s.URL("jts")+"/j_security_check", url.Values{"j_username": {user}, "j_password": {password}})
	must(t, err)
	resp.Body.Close()
	for _, c := range resp.Header["Set-Cookie"] { // as it is, and not quoted anew
		if strings.HasPrefix(c, "LtpaToken2=") {
			pair, _, _ := strings.Cut(c, ";")
			return pair
		}
	}
	t.Fatalf("the browser's login: %s", resp.Status)
	return ""
}

// adopt gives the agent what a browser shows.
func (s *jazzServer) adopt(t *testing.T, site, cookie string) result {
	t.Helper()
	return s.run(t, "Cookie: "+cookie+"\n", filepath.Join(bin, "sessionctl"), "login", site, "--cookie-stdin")
}

// TestJazzAdopt: the token of a browser serves all applications, as the agent has no
// password, until it dies.
func TestJazzAdopt(t *testing.T) {
	s := newJazzServer(t, rig.JazzOptions{}, "")
	s.AddUser("bob", bobPassword)
	a := s.start(t)
	s.fails(t, 5, "no_secret", "header", "gc")
	cookie := s.browser(t, "alice", elmPassword)
	bobs := s.browser(t, "bob", bobPassword)
	n := s.Counts()
	for _, c := range []struct{ cookie, code string }{{"LtpaToken2=CANARY-dead", "expired"}, {bobs, "wrong_identity"}} {
		wantFailure(t, s.adopt(t, "qm", c.cookie), 5, c.code)
	}
	if r := s.adopt(t, "qm", "JSESSIONID=CANARY-of-the-browser; "+cookie+"; oidc_bsc=CANARY-x; jazzop_sso_cookie_1=CANARY-y"); r.status != 0 || !strings.Contains(r.stderr, "alice") {
		t.Fatalf("%v", r)
	}
	headers := s.all(t, 3)
	if m := s.Counts(); m.Logins != n.Logins || m.Passwords != n.Passwords || m.Failures != n.Failures {
		t.Errorf("%+v after %+v", m, n)
	}
	s.withheld(t)
	for site, header := range headers {
		if strings.Contains(header, "CANARY-of-the-browser") || site != "rm" && !strings.Contains(header, cookie) {
			t.Errorf("%s: %s", site, header)
		}
	}
	a.stop(t)
	noSecrets(t, a)
	a = s.start(t)
	s.all(t, 1)
	s.DropApps()
	s.all(t, 1)
	s.DropSessions()
	for _, site := range jazzMembers {
		s.fails(t, 5, "no_secret", "header", site)
	}
	if m := s.Counts(); m.Logins != n.Logins || m.Passwords != n.Passwords {
		t.Errorf("%+v after %+v", m, n)
	}
	if r := s.adopt(t, "rm", s.browser(t, "alice", elmPassword)); r.status != 0 {
		t.Errorf("%v", r)
	}
	s.all(t, 1)
	a.stop(t)
	noSecrets(t, a)

	// A server with an authorization server has no such token.
	jas := newJazzServer(t, rig.JazzOptions{Auth: "jas"}, "")
	b := jas.start(t)
	r := jas.adopt(t, "ccm", "JSESSIONID=CANARY-of-the-browser")
	t.Logf("%s", r.stderr)
	if r.status != 5 || strings.Contains(r.stderr, "CANARY") {
		t.Errorf("%v", r)
	}
	if n := jas.Counts(); n.Passwords+n.Logins != 0 {
		t.Errorf("%+v", n)
	}
	b.stop(t)
	noSecrets(t, b)
}

// TestJazzUse: one application, two users with sessions of their own.
func TestJazzUse(t *testing.T) {
	rig.Require(t, "root")
	for name, o := range map[string]rig.JazzOptions{"form": {}, "JAS": {Auth: "jas"}} {
		t.Run(name, func(t *testing.T) {
			w := inProcess(t)
			j := newJazz(t, w, o)
			j.AddUser("bob", bobPassword)
			h := newHome(t, w, userTable("alice", "alice"), userTable("bob", "bob"), jazzSite(j, "ccm", "ccm"),
				fmt.Sprintf("[[site.ccm.use]]\nallow = [\"uid:%d\"]\ncredential = \"alice\"\n[[site.ccm.use]]\nallow = [\"uid:%d\"]\ncredential = \"bob\"\n", aliceUID, bobUID))
			a := h.start(t)
			h.open(t)
			sessions := h.rpc(t)
			passwords := map[string]string{"alice": elmPassword, "bob": bobPassword}
			for credential, password := range passwords {
				if s := bring(t, sessions, "ccm", credential, password); s.GetUser() != credential {
					t.Errorf("%v", s)
				}
			}
			served := func() map[string]string {
				t.Helper()
				headers := map[string]string{}
				for uid, user := range map[uint32]string{aliceUID: "alice", bobUID: "bob"} {
					r := h.callAs(t, uid, "header", "ccm")
					if r.status != 0 {
						t.Errorf("uid %d: %v", uid, r)
					}
					jazzNames(t, j, "ccm", r.stdout, user)
					headers[user] = r.stdout
				}
				wantFailure(t, h.callAs(t, otherUID, "header", "ccm"), 4, "unknown_site")
				return headers
			}
			first := served()
			if n := j.Counts(); n.Logins != 2 || n.Passwords != 2 || n.Sessions["ccm"] != 2 {
				t.Errorf("%+v", n)
			}
			j.DropSessions()
			second := served()
			if n := j.Counts(); n.Logins != 4 || n.Passwords != 4 || n.Failures != 0 || first["alice"] == second["alice"] || first["bob"] == second["bob"] {
				t.Errorf("%+v", n)
			}
			// One of them has another password now: the other has not.
			j.AddUser("bob", "CANARY-new")
			j.DropSessions()
			for _, code := range []string{"bad_credentials", "latched"} {
				wantFailure(t, h.callAs(t, bobUID, "header", "ccm"), 5, code)
			}
			if r := h.callAs(t, aliceUID, "header", "ccm"); r.status != 0 {
				t.Errorf("%v", r)
			}
			if n := j.Counts(); n.Failures != 1 || n.Passwords != 6 {
				t.Errorf("%+v", n)
			}
			a.stop(t)
			noSecrets(t, a)
		})
	}
}

// TestJazzCSRF: what writes needs the JSESSIONID of its application in a header, which
// is there for whoever asks, and a secret.
func TestJazzCSRF(t *testing.T) {
	rig.Require(t, "curl")
	s := newJazzServer(t, rig.JazzOptions{}, "")
	a := s.start(t)
	s.entitle(t, "ccm")
	sessions := s.rpc(t)
	post := func(site, lines string) string {
		t.Helper()
		u := s.URL(site) + "/oslc/contexts/" + rigArea + "/workitems"
		r := s.run(t, lines, "curl", "-sS", "-H", "@-", "-H", "Content-Type: application/json", "-o", "/dev/null", "-w", "%{http_code}", "-d", `{"dc:title":"x"}`, u)
		return r.stdout + r.stderr
	}
	cookieLine := func(header string) string {
		return regexp.MustCompile(`(?m)^Cookie: .*\n`).FindString(header)
	}
	for _, site := range jazzMembers {
		header := s.ok(t, "header", site)
		id := regexp.MustCompile(`JSESSIONID=([^;\n]+)`).FindStringSubmatch(header)
		if id == nil || strings.Count(header, "JSESSIONID=") != 1 || !strings.Contains(header, "\nX-Jazz-CSRF-Prevent: "+id[1]+"\n") {
			t.Errorf("%s: %s", site, header)
			continue
		}
		if got := post(site, header); got != "201" {
			t.Errorf("%s: %s", site, got)
		}
		if got := post(site, cookieLine(header)); got != "403" {
			t.Errorf("%s without it: %s", site, got)
		}
		other := s.ok(t, "header", jazzMembers[(slices.Index(jazzMembers, site)+1)%len(jazzMembers)])
		if got := post(site, cookieLine(header)+regexp.MustCompile(`(?m)^X-Jazz.*\n`).FindString(other)); got != "403" {
			t.Errorf("%s with another application's: %s", site, got)
		}

		// The same in other forms, and by URL.
		u, err := url.Parse(s.URL(site))
		must(t, err)
		attributes := fmt.Sprintf("protocol=http\nhost=%s\npath=%s/oslc/x\n\n", u.Host, site)
		if r := s.run(t, attributes, filepath.Join(bin, "sessionctl"), "credential", "get"); !strings.Contains(r.stdout, "header[]=X-Jazz-CSRF-Prevent: "+id[1]+"\n") || notServed.MatchString(r.stdout) {
			t.Errorf("%v", r)
		}
		if got := s.ok(t, "header", s.URL(site)+"/oslc/x"); !strings.Contains(got, "X-Jazz-CSRF-Prevent: "+id[1]+"\n") {
			t.Errorf("%s", got)
		}
		if r := s.run(t, "", "sh", "-c", `sessionctl get "$0" -o curl | curl -sS -K - -H 'Content-Type: application/json' -o /dev/null -w '%{http_code}' -d '{"dc:title":"y"}' "$1"`,
			site, s.URL(site)+"/oslc/contexts/"+rigArea+"/workitems"); r.stdout != "201" {
			t.Errorf("%v", r)
		}
		var printed struct{ Headers map[string]string }
		must(t, json.Unmarshal([]byte(s.ok(t, "get", site, "-o", "json")), &printed))
		if printed.Headers["X-Jazz-CSRF-Prevent"] != id[1] {
			t.Errorf("%v", printed.Headers)
		}
		for method, want := range map[string]bool{http.MethodPost: true, http.MethodDelete: true, http.MethodGet: false, "": true} {
			resp, err := sessions.GetSession(t.Context(), &pb.GetSessionRequest{Site: site, Method: method})
			must(t, err)
			found := false
			for _, f := range resp.GetSession().GetHeaders() {
				if f.GetName() == "X-Jazz-CSRF-Prevent" {
					found = true
					if string(f.GetValue()) != id[1] || !f.GetSecret() {
						t.Errorf("%s %s: %v", method, site, f)
					}
				}
			}
			if found != want {
				t.Errorf("%s %s: the header is there: %t", method, site, found)
			}
		}
		if raw := s.ok(t, "raw", site); strings.Contains(raw, "X-Jazz") {
			t.Errorf("%s", raw)
		}
	}
	// An application that has forgotten begins another session by itself, whose id the
	// agent does not have before it is told to look.
	header := s.ok(t, "header", "qm")
	s.DropApps()
	if got := post("qm", header); got != "403" {
		t.Errorf("forgotten: %s", got)
	}
	s.ok(t, "reject", "qm")
	if got := post("qm", s.ok(t, "header", "qm")); got != "201" {
		t.Errorf("after reject: %s", got)
	}
	if n := s.Counts(); n.Logins != 1 {
		t.Errorf("%+v", n)
	}
	a.stop(t)
	noSecrets(t, a)
}

// serverClock is what time it is at a server.
type serverClock struct{ ahead atomic.Int64 }

func (c *serverClock) now() time.Time       { return time.Now().Add(time.Duration(c.ahead.Load())) }
func (c *serverClock) pass(d time.Duration) { c.ahead.Add(int64(d)) }

// TestJazzLives: how long sessions live at a server is seen by the proof, and by nothing
// else here, as the agent's own time does not pass. The token of the single sign-on
// ends when its time is over, however busy the application's session is, and a delegated
// login with it, as the proof needs both; a session of Tomcat's ends by rest. The cookie
// that comes with each answer of a delegating application is taken over.
func TestJazzLives(t *testing.T) {
	for _, c := range []struct {
		name    string
		o       rig.JazzOptions
		context string
		step    time.Duration // between two who ask
		alive   int           // steps without a login
		last    time.Duration // one more step, after which it is over
	}{
		{"token, absolute", rig.JazzOptions{}, "ccm", 25 * time.Minute, 4, 25 * time.Minute},
		{"Tomcat, at rest", rig.JazzOptions{NoLTPA: true}, "ccm", 25 * time.Minute, 12, 35 * time.Minute},
		{"JAS, absolute", rig.JazzOptions{Auth: "jas"}, "ccm", 25 * time.Minute, 4, 25 * time.Minute},
		{"delegated, set anew", rig.JazzOptions{}, "rm", 25 * time.Minute, 4, 25 * time.Minute},
		{"delegated to JAS, set anew", rig.JazzOptions{Auth: "jas", Delegated: []string{"rm"}}, "rm", 25 * time.Minute, 4, 25 * time.Minute},
	} {
		t.Run(c.name, func(t *testing.T) {
			w, clock := inProcess(t), &serverClock{}
			c.o.Now = clock.now
			j := newJazz(t, w, c.o)
			h := newHome(t, w, userTable("alice", "alice"), jazzSite(j, "elm", c.context, `credential = "alice"`))
			a := h.start(t)
			if r := h.bring(t, "elm", elmPassword); r.status != 0 {
				t.Fatalf("%v", r)
			}
			ask := func(logins int) string {
				t.Helper()
				header := h.ok(t, "header", "elm")
				if n := j.Counts(); n.Logins != logins || n.Passwords != logins || n.Failures != 0 {
					t.Errorf("%+v, want %d logins", n, logins)
				}
				jazzNames(t, j, c.context, header, "alice")
				return header
			}
			first := ask(1)
			for i := range c.alive {
				clock.pass(c.step)
				if again := ask(1); again != first {
					t.Errorf("after %d steps: %s, and before %s", i+1, again, first)
				}
			}
			clock.pass(c.last)
			if second := ask(2); second == first {
				t.Error("the session is as before")
			}
			ask(2)
			a.stop(t)
			noSecrets(t, a)
		})
	}
	// A JSESSIONID at rest costs no login while the token lives.
	t.Run("token, at rest", func(t *testing.T) {
		w, clock := inProcess(t), &serverClock{}
		j := newJazz(t, w, rig.JazzOptions{Now: clock.now})
		h := newHome(t, w, userTable("alice", "alice"), jazzSite(j, "elm", "ccm", `credential = "alice"`))
		a := h.start(t)
		if r := h.bring(t, "elm", elmPassword); r.status != 0 {
			t.Fatalf("%v", r)
		}
		first := h.ok(t, "header", "elm")
		clock.pass(40 * time.Minute)
		second := h.ok(t, "header", "elm")
		if n := j.Counts(); n.Logins != 1 || n.Sessions["ccm"] != 2 || first == second {
			t.Errorf("%+v: %s after %s", n, second, first)
		}
		a.stop(t)
	})
}
