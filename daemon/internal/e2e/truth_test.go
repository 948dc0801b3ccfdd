package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	"github.com/sessionctl/sessionctl/api"
	pb "github.com/sessionctl/sessionctl/api/sessionctl/v1"
	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

// failure returns the agent's error behind a gRPC status, or what our client has made
// of it: code, detail and remedy. nil is none; a status without a code of ours is one
// of code "".
func failure(err error) *api.Error {
	var e *api.Error
	if err == nil || errors.As(err, &e) {
		return e
	}
	e = &api.Error{Detail: status.Convert(err).Message(), Err: err}
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok && info.GetDomain() == api.ErrorDomain {
			e.Code, e.Remedy = api.CodeOfReason(info.GetReason()), info.GetMetadata()["remedy"]
		}
	}
	return e
}

// getSession asks the agent for a site's session.
func getSession(ctx context.Context, c *grpc.ClientConn, site string) (*pb.Session, error) {
	r, err := pb.NewSessionServiceClient(c).GetSession(ctx, &pb.GetSessionRequest{Site: site})
	return r.GetSession(), err
}

// realSite is a site behind Negotiate on a real server.
type realSite struct {
	*server
	stop, start func(*testing.T)
}

// realSites are those servers whose sessions survive that they are stopped.
func realSites(t *testing.T, g *ground) map[string]*realSite {
	rig.Require(t, append(rig.TomcatNeeds(), "apache2", "mod_auth_gssapi", "mod_ssl")...)
	a, err := rig.StartApache(t.Context(), filepath.Join(g.dir, "apache"), rig.ApacheOptions{Krb5ConfFile: g.krb5Conf, KeytabFile: g.keytab})
	must(t, err)
	t.Cleanup(a.Stop)
	c, err := rig.StartTomcat(t.Context(), filepath.Join(g.dir, "tomcat"), rig.TomcatOptions{Krb5ConfFile: g.krb5Conf, KeytabFile: g.keytab, KeepSessions: true})
	must(t, err)
	t.Cleanup(c.Stop)
	return map[string]*realSite{
		"Apache": {
			server: &server{
				config: negotiating(a.URL()+"/spnego/", ""),
				whoami: a.URL() + "/spnego/whoami",
				logins: func(t *testing.T) int {
					n, err := a.Hits("/")
					must(t, err)
					return n.Negotiate
				},
				forget: func(t *testing.T) { must(t, a.Restart(t.Context(), true)) },
			},
			stop:  func(*testing.T) { a.Stop() },
			start: func(t *testing.T) { must(t, a.Start(t.Context())) },
		},
		"Tomcat": {
			server: &server{
				config: negotiating(c.URL()+"/spn/", ""),
				whoami: c.URL() + "/spn/whoami",
				logins: func(t *testing.T) int {
					n, err := c.Hits(t.Context(), "/")
					must(t, err)
					return n.Negotiate
				},
				forget: func(t *testing.T) { must(t, c.ForgetSessions(t.Context())) },
			},
			stop:  func(*testing.T) { c.Stop() },
			start: func(t *testing.T) { must(t, c.Start(t.Context())) },
		},
	}
}

// TestRealServers: what the agent says of a session is so, at real servers. One that
// was ended there heals by one login, whether a caller tells or the agent sees for
// itself; while a server is away the session is served and flagged; and no more when
// the server is back, without any login.
func TestRealServers(t *testing.T) {
	rig.Require(t, "krb5kdc", "kdb5_util", "kadmin.local")
	k, err := rig.StartMIT(t.Context(), filepath.Join(t.TempDir(), "kdc"), realm)
	must(t, err)
	g := newGround(t, k)
	user := g.build("")
	for name, s := range realSites(t, g) {
		t.Run(name, func(t *testing.T) {
			// negotiating has a session proven before each answer; told is the same
			// site, whose sessions are believed in until somebody complains.
			told := strings.ReplaceAll(s.config(user), "recheck = \"0s\"\n", "recheck = \"1h\"\n")
			h := s.at(t, user, strings.Replace(told, "[site.app]", "[site.told]", 1))
			h.start(t)
			c := h.dial(t)
			get := func(site string) *pb.Session {
				t.Helper()
				session, err := getSession(t.Context(), c, site)
				must(t, err)
				return session
			}
			report := func(of *pb.Session) (*pb.Session, error) {
				r, err := pb.NewSessionServiceClient(c).RefreshSession(t.Context(), &pb.RefreshSessionRequest{Site: of.GetSite(), Generation: of.GetGeneration()})
				return r.GetSession(), err
			}
			list := func(site string) *pb.SessionSummary {
				t.Helper()
				r, err := pb.NewSessionServiceClient(c).ListSessions(t.Context(), &pb.ListSessionsRequest{})
				must(t, err)
				for _, summary := range r.GetSessions() {
					if summary.GetSite() == site {
						return summary
					}
				}
				t.Fatalf("%s is not in the list", site)
				return nil
			}
			logins := s.logins(t)
			loggedIn := func(want int) {
				t.Helper()
				now := s.logins(t)
				if now-logins != want {
					t.Errorf("%d logins, want %d", now-logins, want)
				}
				logins = now
			}
			good := func(session *pb.Session, stale bool) {
				t.Helper()
				if session.GetStale() != stale {
					t.Errorf("%s: stale is %v", session.GetSite(), session.GetStale())
				}
				if stale {
					return // nobody is there to ask
				}
				if got := s.ask(t, string(session.GetHeaders()[0].GetValue())); got != user.user {
					t.Errorf("%s: the session is of %q", session.GetSite(), got)
				}
			}
			first := map[string]*pb.Session{}
			for _, site := range []string{"app", "told"} {
				first[site] = get(site)
				good(first[site], false)
			}
			loggedIn(2)

			s.forget(t)
			healed := map[string]*pb.Session{"app": get("app")}
			loggedIn(1)
			if got := get("told"); got.GetGeneration() != first["told"].GetGeneration() {
				t.Error("without a word from anybody the session is another one")
			}
			healed["told"], err = report(first["told"])
			must(t, err)
			loggedIn(1)
			if _, err := report(first["told"]); err != nil { // of what is gone already
				t.Error(err)
			}
			for site, session := range healed {
				if session.GetGeneration() == first[site].GetGeneration() {
					t.Errorf("%s: the old session is served", site)
				}
				good(session, false)
				healed[site] = get(site) // a proof may replace the cookie
				if healed[site].GetGeneration() != session.GetGeneration() {
					t.Errorf("%s: the session is another one again", site)
				}
			}
			loggedIn(0)

			s.stop(t)
			if e := failure(func() error { _, err := report(healed["told"]); return err }()); e == nil || e.Code != api.NetworkError {
				t.Errorf("a report about a server that is away: %v", e)
			}
			for site, session := range healed {
				now := get(site)
				good(now, true)
				if now.GetGeneration() != session.GetGeneration() || !bytes.Equal(now.GetHeaders()[0].GetValue(), session.GetHeaders()[0].GetValue()) {
					t.Errorf("%s: not the old session", site)
				}
				if l := list(site); l.GetState() != pb.SessionState_SESSION_STATE_STALE || l.GetCode() != string(api.NetworkError) {
					t.Errorf("%s: list says %v, %s", site, l.GetState(), l.GetCode())
				}
			}

			s.start(t)
			for site, session := range healed {
				due := list(site).GetRetryTime().AsTime() // the end of the back-off
				if now := time.Now(); due.Before(now) {
					due = now
				}
				var now *pb.Session
				until(t, site+" is flagged no more", func() bool {
					now = get(site)
					return !now.GetStale()
				})
				if late := time.Since(due); late > 2*time.Second { // a probe, on a busy machine
					t.Errorf("%s: flagged for %v after the back-off", site, late)
				}
				if now.GetGeneration() != session.GetGeneration() {
					t.Errorf("%s: another session", site)
				}
				good(now, false)
				if l := list(site); l.GetState() != pb.SessionState_SESSION_STATE_LIVE || l.GetCode() != "" {
					t.Errorf("%s: list says %v, %s", site, l.GetState(), l.GetCode())
				}
			}
			loggedIn(0)
		})
	}
}

// refusal is a credential whose secret its verifier refuses, at three sites.
type refusal struct {
	name     string
	code     api.Code
	sites    []string
	logins   []string   // where a person logs in at each of them, or what that begins with
	alone    bool       // what one of them refuses is not known of the others
	attempts func() int // refused ones, at the verifier
	change   func()     // another secret, which is refused as well; nil: there is none
	mend     func()     // the verifier takes the secret from now on
}

// crowd has a hundred callers ask for the sites, who are all refused, and returns
// what each site's last one was told.
func (r *refusal) crowd(t *testing.T, h *home) map[string]*api.Error {
	t.Helper()
	const callers, connections = 100, 4
	var conns []*grpc.ClientConn
	for range connections {
		conns = append(conns, h.dial(t))
	}
	told := map[string]*api.Error{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for i := range callers {
		wg.Go(func() {
			site := r.sites[i%len(r.sites)]
			_, err := getSession(t.Context(), conns[i%connections], site)
			e := failure(err)
			if e == nil || e.Code != r.code && e.Code != api.Latched {
				t.Errorf("%s: %v", site, err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			told[site] = e
		})
	}
	wg.Wait()
	for _, c := range conns {
		must(t, c.Close())
	}
	return told
}

// bringCaptcha is somebody else's script with an old password, until Jira wants a
// CAPTCHA solved.
func (j *jiraWorld) bringCaptcha(t *testing.T, user string) {
	t.Helper()
	for range 3 {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, j.Atlassian.URL()+"/rest/api/2/myself", nil)
		must(t, err)
		req.SetBasicAuth(user, "CANARY-old")
		resp, err := http.DefaultClient.Do(req)
		must(t, err)
		resp.Body.Close()
	}
	http.DefaultClient.CloseIdleConnections()
}

// wayOut finds the command by which a person lifts a refusal that stands.
var wayOut = regexp.MustCompile(`sessionctl (login \S+ --retry)(?:$|[ ,;])`)

// TestOneAttempt: what a verifier has refused is tried once, whoever asks, at
// whichever site, and however often the agent starts; another secret once more. The
// agent says where a person logs in, and how to lift the refusal, and that works.
func TestOneAttempt(t *testing.T) {
	j := newJira(t)
	w, credentials := j.world, t.TempDir()
	give := func(credential, password string) {
		write(t, filepath.Join(credentials, "password."+credential), password+"\n")
	}

	w.kdc.AddPrincipal("keyed", "CANARY-keyed-1")
	keytab := write(t, filepath.Join(t.TempDir(), "keyed.keytab"), string(w.kdc.Keytab("keyed")))
	w.kdc.Rekey("keyed", "CANARY-keyed-another")
	more := credential("keyed", "keyed", keytab)
	byKeytab := &refusal{name: "keytab", code: api.BadCredentials,
		attempts: func() int { return w.counts(t).PreauthFailed },
		change: func() {
			w.kdc.Rekey("keyed", "CANARY-keyed-2")
			write(t, keytab, string(w.kdc.Keytab("keyed")))
			w.kdc.Rekey("keyed", "CANARY-keyed-another")
		},
		mend: func() { w.kdc.Rekey("keyed", "CANARY-keyed-2") },
	}

	forms := make([]*rig.Form, 3)
	more += "[credential.anna]\nusername = \"anna\"\n"
	give("anna", "CANARY-anna-1")
	byForm := &refusal{name: "form", code: api.BadCredentials,
		attempts: func() (n int) {
			for _, f := range forms {
				n += f.Counts().Failures
			}
			return n
		},
		change: func() { give("anna", "CANARY-anna-2") },
		mend: func() {
			for _, f := range forms {
				f.AddUser("anna", "CANARY-anna-2")
			}
		},
	}

	more += "[credential.alice]\nusername = \"alice\"\n"
	give("alice", "CANARY-alice-1")
	others := 0
	byJSON := &refusal{name: "Jira", code: api.BadCredentials,
		attempts: func() int { return j.Counts().Refused - others },
		change:   func() { give("alice", "CANARY-alice-2") },
		mend:     func() { j.SetPassword("alice", "CANARY-alice-2") },
	}

	// Somebody else's script has brought about a CAPTCHA, before which the right
	// password is as good as any.
	j.AddUser("carol", "CANARY-carol")
	more += "[credential.carol]\nusername = \"carol\"\n"
	give("carol", "CANARY-carol")
	j.bringCaptcha(t, "carol")
	others = j.Counts().Refused
	byPicture := &refusal{name: "CAPTCHA", code: api.Captcha, alone: true,
		attempts: func() int { return j.Counts().Denied },
		mend:     func() { j.SolveCaptcha("carol") },
	}

	for i := range 3 {
		f, err := rig.StartForm()
		must(t, err)
		t.Cleanup(f.Stop)
		f.AddUser("anna", "CANARY-anna")
		forms[i] = f
		site := func(r *refusal, name, url, login, kind string) string {
			r.sites, r.logins = append(r.sites, fmt.Sprint(name, i)), append(r.logins, login)
			options := ""
			if kind != "jira" {
				options = "probe_url = \"whoami\"\nidentity_json = \"user\"\n"
			}
			return fmt.Sprintf("[site.%s%d]\nurl = %q\nkind = %q\ncredential = %q\ninsecure_http = true\n%s", name, i, url, kind, name, options)
		}
		more += site(byKeytab, "keyed", w.url+"/spnego/", w.url+"/spnego/", "spnego") +
			site(byForm, "anna", f.URL()+"/app/", f.URL()+"/", "form") +
			site(byJSON, "alice", j.Atlassian.URL(), j.Atlassian.URL(), "jira") +
			site(byPicture, "carol", j.Atlassian.URL(), j.Atlassian.URL()+"/login.jsp", "jira")
	}
	h := newHome(t, w, more)
	h.extraEnv = []string{"CREDENTIALS_DIRECTORY=" + credentials}

	all := []*refusal{byKeytab, byForm, byJSON, byPicture}
	told := map[*refusal]map[string]*api.Error{}
	a := h.start(t)
	restart := func(kill bool) {
		t.Helper()
		if kill {
			must(t, a.cmd.Process.Signal(syscall.SIGKILL))
			<-a.done
		} else {
			a.stop(t)
		}
		a = h.start(t)
	}
	once := func(when string, attempts int) {
		t.Helper()
		var wg sync.WaitGroup
		answers := make([]map[string]*api.Error, len(all))
		for i, r := range all {
			wg.Go(func() { answers[i] = r.crowd(t, h) })
		}
		wg.Wait()
		for i, r := range all {
			told[r] = answers[i]
			want := attempts
			if r.alone {
				want = len(r.sites)
			}
			if n := r.attempts(); n != want {
				t.Errorf("%s: %s: %d attempts, want %d", when, r.name, n, want)
			}
		}
	}
	once("cold", 1)
	for i := range 10 {
		restart(i%2 == 0)
		once(fmt.Sprintf("start %d", i+2), 1)
	}
	for _, r := range all {
		if r.change != nil {
			r.change()
		}
	}
	once("with other secrets", 2)
	restart(true)
	once("killed with other secrets", 2)

	for _, r := range all {
		t.Run(r.name, func(t *testing.T) {
			before := r.attempts()
			r.mend()
			for i, site := range r.sites {
				e := told[r][site]
				said := e.Detail + "\n" + e.Remedy
				if e.Code != api.Latched || !strings.Contains(said, r.logins[i]) {
					t.Errorf("%s: %q is not among what is said: %s (%s)", site, r.logins[i], said, e.Code)
				}
				command := wayOut.FindStringSubmatch(e.Remedy)
				if command == nil || command[1] != "login "+site+" --retry" {
					t.Errorf("%s: no way out: %s", site, e.Remedy)
				} else if i == 0 || r.alone {
					h.ok(t, strings.Fields(command[1])...)
				}
			}
			for _, site := range r.sites {
				h.ok(t, "raw", site)
			}
			if n := r.attempts(); n != before {
				t.Errorf("%d attempts more were refused", n-before)
			}
		})
	}
	a.stop(t)
	noSecrets(t, a)
}
