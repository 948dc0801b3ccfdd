package e2e

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sessionctl/sessionctl/api"
	pb "github.com/sessionctl/sessionctl/api/sessionctl/v1"
	"github.com/sessionctl/sessionctl/client"
)

// service returns a client for questions about the agent itself.
func (h *home) service(t *testing.T) pb.AgentServiceClient {
	t.Helper()
	c := &client.Client{Socket: h.socket}
	t.Cleanup(func() { c.Close() })
	agent, err := c.Agent()
	must(t, err)
	return agent
}

// reload has the agent read its configuration again, and returns what is new,
// changed and gone.
func (h *home) reload(t *testing.T) string {
	t.Helper()
	r, err := h.service(t).Reload(t.Context(), &pb.ReloadRequest{})
	if err != nil {
		t.Errorf("reload: %v", err)
	}
	return fmt.Sprint(r.GetAdded(), r.GetChanged(), r.GetRemoved())
}

// generations are the labels of the sessions at hand, by their sites.
func generations(t *testing.T, sessions pb.SessionServiceClient) map[string]string {
	t.Helper()
	all, err := sessions.ListSessions(t.Context(), &pb.ListSessionsRequest{})
	must(t, err)
	of := map[string]string{}
	for _, s := range all.GetSessions() {
		of[s.GetSite()] = s.GetGeneration()
	}
	return of
}

// TestReload: what a session depends on ends it, and nothing else does.
func TestReload(t *testing.T) {
	j := newJira(t)
	h := j.home(t)
	a := h.start(t)
	sessions := h.rpc(t)
	if r := h.givePassword(t, alicePassword); r.status != 0 {
		t.Fatalf("%v", r)
	}
	for _, site := range []string{"app", "jira", "tracker"} {
		h.ok(t, "raw", site)
	}
	logins := func() int { c := j.Counts(); return c.Logins + c.KerberosLogins + j.hits(t, "/").Negotiate }
	ticket := "credential    = \"build\"\ninsecure_http = true\nrecheck       = \"0s\""
	for _, c := range []struct {
		what     string
		old, new string
		reloaded string
		site     string // whose session ends, "" for none
	}{
		{"nothing", "", "", "[] [] []", ""},
		{"a comment", "[site.jira]", "# the tracker of the team\n[site.jira]", "[] [] []", ""},
		{"how often it is asked", ticket, ticket + "\nuser_agent = \"Windows NT build\"", "[] [jira] []", ""},
		{"looked after", "user_agent = \"Windows NT build\"", "user_agent = \"Windows NT build\"\nkeep_alive = true", "[] [jira] []", ""},
		{"who may use it", ticket, ticket + "\nallow = [\"uid:0\", \"uid:4242\"]", "[] [jira] []", ""},
		{"its url", "credential    = \"alice\"", "login_hosts = []\ncredential    = \"alice\"", "[] [tracker] []", "tracker"},
		{"an option", `probe_url     = "/spnego/whoami"`, `probe_url     = "whoami"`, "[] [app] []", "app"},
		{"its kind", "kind          = \"jira\"\n" + ticket,
			"kind = \"spnego\"\nlogin_url = \"login.jsp\"\nprobe_url = \"rest/auth/1/session\"\nidentity_json = \"name\"\n" + ticket, "[] [jira] []", "jira"},
		{"a new site", "[credential.alice]", j.world.site("new", "/spnego/") + "\n[credential.alice]", "[new] [] []", ""},
	} {
		before, was := generations(t, sessions), logins()
		h.rewrite(t, c.old, c.new)
		if c.old == "" { // between all letters
			write(t, h.config, h.text(t))
		}
		if got := h.reload(t); got != c.reloaded {
			t.Errorf("%s: %s, want %s", c.what, got, c.reloaded)
		}
		for site := range before {
			h.ok(t, "raw", site)
		}
		after := generations(t, sessions)
		for site, generation := range before {
			if ended := after[site] != generation; ended != (site == c.site) {
				t.Errorf("%s: the session of %s is another one: %t", c.what, site, ended)
			}
		}
		if n := logins() - was; (n > 0) != (c.site != "") {
			t.Errorf("%s: %d logins", c.what, n)
		}
	}
	st, err := h.service(t).GetStatus(t.Context(), &pb.GetStatusRequest{})
	must(t, err)
	if st.GetSites() != 4 || st.GetReloadCode() != "" || st.GetLoadTime().AsTime().Before(st.GetStartTime().AsTime()) {
		t.Errorf("the status is %v", st)
	}
	a.stop(t)
	noSecrets(t, a)
}

// text is the agent's configuration.
func (h *home) text(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(h.config)
	must(t, err)
	return string(b)
}

// watching returns the sessions that a stream brings, and what ends it.
func watching(t *testing.T, sessions pb.SessionServiceClient, site string) (<-chan *pb.Session, <-chan error) {
	t.Helper()
	stream, err := sessions.WatchSession(t.Context(), &pb.WatchSessionRequest{Site: site})
	must(t, err)
	brought, end := make(chan *pb.Session, 100), make(chan error, 1)
	go func() {
		for {
			r, err := stream.Recv()
			if err != nil {
				end <- err
				return
			}
			brought <- r.GetSession()
		}
	}()
	return brought, end
}

// TestReloadEnds: what is gone, or somebody else's, is so at once, for those who
// watch too.
func TestReloadEnds(t *testing.T) {
	w := inProcess(t)
	h := newHome(t, w, w.site("gone", "/spnego/"), w.site("theirs", "/spnego/"), w.site("anew", "/spnego/"), w.site("stays", "/spnego/"))
	h.start(t)
	sessions := h.rpc(t)
	first, streams, ends := map[string]*pb.Session{}, map[string]<-chan *pb.Session{}, map[string]<-chan error{}
	for _, site := range []string{"gone", "theirs", "anew", "stays"} {
		streams[site], ends[site] = watching(t, sessions, site)
		select {
		case first[site] = <-streams[site]:
		case err := <-ends[site]:
			t.Fatalf("%s: %v", site, err)
		}
	}
	before := h.text(t)
	text := strings.Replace(before, w.site("gone", "/spnego/"), "", 1)
	text = strings.Replace(text, w.site("theirs", "/spnego/"), w.site("theirs", "/spnego/", `allow = ["uid:4242"]`), 1)
	text = strings.Replace(text, w.site("anew", "/spnego/"), w.site("anew", "/spnego/", `login_url = "/spnego/?"`), 1)
	write(t, h.config, text)
	negotiate := w.hits(t, "/").Negotiate
	if got := h.reload(t); got != "[] [anew theirs] [gone]" {
		t.Errorf("%s", got)
	}
	for site, want := range map[string]api.Code{"gone": api.UnknownSite, "theirs": api.UnknownSite, "anew": api.NoAgent} {
		select {
		case err := <-ends[site]:
			if api.CodeOf(err) != want {
				t.Errorf("the stream of %s ended with %v, want %s", site, err, want)
			}
			if e := api.AsError(err); want == api.UnknownSite && e.Detail != "no site "+site+" for this user" {
				t.Errorf("%s: %s", site, e.Detail)
			}
			if want == api.NoAgent && status.Code(api.AsError(err).Err) != codes.Unavailable {
				t.Errorf("%s: %v", site, err)
			}
		case <-time.After(time.Minute):
			t.Fatalf("the stream of %s goes on", site)
		}
	}
	h.fails(t, 4, "unknown_site", "raw", "gone")
	h.fails(t, 4, "unknown_site", "raw", "theirs")
	if n := w.hits(t, "/").Negotiate - negotiate; n > 1 { // anew, which was watched
		t.Errorf("%d logins without anybody who asks", n)
	}
	if s, err := sessions.GetSession(t.Context(), &pb.GetSessionRequest{Site: "anew"}); err != nil || s.GetSession().GetGeneration() == first["anew"].GetGeneration() {
		t.Errorf("anew: %v", err)
	}
	select {
	case s := <-streams["stays"]:
		t.Errorf("the stream of what stays brought %v", s)
	case err := <-ends["stays"]:
		t.Errorf("the stream of what stays ended: %v", err)
	default:
	}
	if s, err := sessions.GetSession(t.Context(), &pb.GetSessionRequest{Site: "stays"}); err != nil || s.GetSession().GetGeneration() != first["stays"].GetGeneration() {
		t.Errorf("stays: %v", err)
	}

	// What was gone is forgotten; what was somebody else's is not.
	write(t, h.config, before)
	h.reload(t)
	for site, want := range map[string]bool{"gone": true, "theirs": false} {
		s, err := sessions.GetSession(t.Context(), &pb.GetSessionRequest{Site: site})
		must(t, err)
		if anew := s.GetSession().GetGeneration() != first[site].GetGeneration(); anew != want {
			t.Errorf("%s: another session: %t", site, anew)
		}
	}
}

// TestReloadSource: a service that watches is led on to the new session.
func TestReloadSource(t *testing.T) {
	w := inProcess(t)
	h := newHome(t, w)
	h.start(t)
	c := &client.Client{Socket: h.socket}
	defer c.Close()
	source, err := c.Watch(t.Context(), client.Query{Site: "app"})
	must(t, err)
	defer source.Close()
	first, err := source.Session()
	must(t, err)
	h.rewrite(t, `probe_url     = "/spnego/whoami"`, `probe_url     = "whoami"`)
	h.reload(t)
	until(t, "the new session", func() bool {
		s, err := source.Session()
		return err == nil && s.Generation != first.Generation
	})
}

// TestReloadWrong: a configuration that is wrong changes nothing, and is not
// forgotten.
func TestReloadWrong(t *testing.T) {
	w := inProcess(t)
	h := newHome(t, w)
	a := h.start(t)
	agent, sessions := h.service(t), h.rpc(t)
	h.ok(t, "raw", "app")
	before, right := generations(t, sessions), h.text(t)
	st, err := agent.GetStatus(t.Context(), &pb.GetStatusRequest{})
	must(t, err)
	loaded := st.GetLoadTime().AsTime()
	if loaded.IsZero() || st.GetReloadCode() != "" {
		t.Errorf("at the start: %v", st)
	}
	krb5 := h.krb5Conf
	for what, wrong := range map[string]struct{ config, code, want string }{
		"no TOML":  {right + "\n[site.app", "config_invalid", "sessiond.toml:"},
		"no kind":  {right + "\n[site.new]\nurl = \"https://new.example\"\n", "config_invalid", "site.new: kind is missing"},
		"no realm": {strings.Replace(right, "build@"+realm, "build@", 1), "config_invalid", "credential.build: "},
	} {
		write(t, h.config, wrong.config)
		_, err := agent.Reload(t.Context(), &pb.ReloadRequest{})
		if e := api.AsError(err); err == nil || string(e.Code) != wrong.code || !strings.Contains(e.Detail, wrong.want) || e.Remedy == "" {
			t.Errorf("%s: %v", what, err)
		}
		st, err := agent.GetStatus(t.Context(), &pb.GetStatusRequest{})
		must(t, err)
		if st.GetReloadCode() != wrong.code || !strings.Contains(st.GetReloadDetail(), wrong.want) || !st.GetLoadTime().AsTime().Equal(loaded) {
			t.Errorf("%s: the status is %v", what, st)
		}
		h.ok(t, "raw", "app")
		if got := generations(t, sessions); got["app"] != before["app"] || len(got) != 1 {
			t.Errorf("%s: the sessions are %v", what, got)
		}
	}
	if !strings.Contains(a.log.String(), "the old one stays in use") {
		t.Error("the log does not say so")
	}
	must(t, os.Remove(h.config))
	if _, err := agent.Reload(t.Context(), &pb.ReloadRequest{}); api.CodeOf(err) != api.ConfigInvalid {
		t.Errorf("without a file: %v", err)
	}
	write(t, h.config, right)
	conf, err := os.ReadFile(krb5)
	must(t, err)
	write(t, krb5, "[libdefaults]\nnonsense\n")
	if _, err := agent.Reload(t.Context(), &pb.ReloadRequest{}); api.CodeOf(err) != api.Krb5ConfInvalid {
		t.Errorf("krb5.conf: %v", err)
	}
	write(t, krb5, string(conf))
	// As systemd would ask for it, and no word comes back.
	must(t, a.cmd.Process.Signal(syscall.SIGHUP))
	until(t, "the configuration that is right", func() bool {
		st, err := agent.GetStatus(t.Context(), &pb.GetStatusRequest{})
		must(t, err)
		return st.GetReloadCode() == "" && st.GetReloadDetail() == "" && st.GetLoadTime().AsTime().After(loaded)
	})
	if got := generations(t, sessions); got["app"] != before["app"] {
		t.Errorf("the sessions are %v", got)
	}
	h.open(t)
	if os.Geteuid() == 0 {
		// Nobody else reloads.
		wantFailure(t, h.callAs(t, otherUID, "reload"), 6, "denied")
	}
	// What a person should look at, without keeping the rest from going on.
	h.rewrite(t, w.keytab, "/nonexistent/build.keytab")
	r, err := agent.Reload(t.Context(), &pb.ReloadRequest{})
	must(t, err)
	if !slices.ContainsFunc(r.GetWarnings(), func(w string) bool { return strings.Contains(w, "/nonexistent/build.keytab") }) ||
		!slices.ContainsFunc(r.GetWarnings(), func(w string) bool { return strings.Contains(w, "insecure_http") }) {
		t.Errorf("the warnings are %q", r.GetWarnings())
	}
}

// TestReloadPipe: a pipe among the files holds nothing up: not a reload, nor what
// comes after it, nor the end of the agent. What the message says is next can be
// typed as it stands.
func TestReloadPipe(t *testing.T) {
	w := inProcess(t)
	h := newHome(t, w)
	a := h.start(t)
	cookie := h.ok(t, "raw", "app")
	pipe := filepath.Join(h.dir, "conf.d", "x.toml")
	must(t, os.Mkdir(filepath.Dir(pipe), 0o700))
	must(t, syscall.Mkfifo(pipe, 0o600))
	typed := func(r result) []string {
		_, next, _ := strings.Cut(r.stderr, "  next: mend it, then: sessionctl ")
		return strings.Fields(next)
	}
	r := h.fails(t, 5, "config_invalid", "reload")
	if next := typed(r); !strings.Contains(r.stderr, pipe+": not a regular file") || !slices.Equal(next, []string{"check-config", h.config}) {
		t.Fatalf("%v, next %q", r, next)
	}
	h.fails(t, 5, "config_invalid", typed(r)...)
	if out := h.ok(t, "status"); !strings.Contains(out, pipe+": not a regular file (config_invalid); mend that, then: sessionctl reload\n") {
		t.Errorf("%s", out)
	}
	must(t, a.cmd.Process.Signal(syscall.SIGHUP))
	until(t, "the second failure", func() bool { return strings.Count(a.log.String(), pipe) == 2 })
	must(t, os.Remove(pipe))
	write(t, pipe, w.site("new", "/spnego/"))
	r = h.fails(t, 4, "unknown_site", "raw", "new")
	if !strings.HasSuffix(r.stderr, "; a new site counts after: sessionctl reload\n") {
		t.Errorf("%v", r)
	}
	h.ok(t, typed(result{stderr: "  next: mend it, then: sessionctl check-config " + h.config})...)
	if got := h.reload(t); got != "[new] [] []" {
		t.Errorf("%s", got)
	}
	if h.ok(t, "raw", "app") != cookie {
		t.Error("another session")
	}
	must(t, os.Remove(pipe))
	must(t, syscall.Mkfifo(pipe, 0o600))
	must(t, a.cmd.Process.Signal(syscall.SIGHUP))
	a.stop(t)
}

// TestReloadSecret: a changed credential lifts what stood against the old one, and
// costs one attempt if it is wrong, too.
func TestReloadSecret(t *testing.T) {
	j := newJira(t)
	w := j.world
	bad, worse := w.addKeytab(t, "svc", false), w.addKeytab(t, "other", false)
	good := write(t, t.TempDir()+"/good.keytab", string(w.kdc.Keytab("svc")))
	h := j.home(t, credential("svc", "svc", bad), w.site("locked", "/spnego/", `credential = "svc"`))
	h.start(t)
	h.fails(t, 5, "bad_credentials", "raw", "locked")
	h.fails(t, 5, "latched", "raw", "locked")
	h.reload(t)
	h.fails(t, 5, "latched", "raw", "locked")
	// Another principal with a wrong key: it is tried once.
	h.rewrite(t, `principal = "svc@`+realm+"\"\nkeytab = \""+bad, `principal = "other@`+realm+"\"\nkeytab = \""+worse)
	h.reload(t)
	h.fails(t, 5, "bad_credentials", "raw", "locked")
	h.fails(t, 5, "latched", "raw", "locked")
	h.rewrite(t, `principal = "other@`+realm+"\"\nkeytab = \""+worse, `principal = "svc@`+realm+"\"\nkeytab = \""+good)
	if got := h.reload(t); got != "[] [locked] []" {
		t.Errorf("%s", got)
	}
	h.ok(t, "raw", "locked")
	if n := w.counts(t).PreauthFailed; n != 2 {
		t.Errorf("%d attempts with a wrong key, want 2", n)
	}

	// A password that is refused stays so when the site changes; that of another
	// user is another one.
	j.AddUser("bob", bobPassword)
	if r := h.givePassword(t, "CANARY-wrong"); r.status != 5 {
		t.Errorf("%v", r)
	}
	if r := h.givePassword(t, "CANARY-wrong"); r.status != 5 {
		t.Errorf("%v", r)
	}
	h.rewrite(t, "[site.tracker]\n", "[site.tracker]\nuser_agent = \"x\"\n")
	h.reload(t)
	if r := h.givePassword(t, "CANARY-wrong"); r.status != 5 || !strings.Contains(r.stderr, "(latched)") {
		t.Errorf("%v", r)
	}
	h.rewrite(t, `username = "alice"`, `username = "bob"`)
	h.reload(t)
	if r := h.givePassword(t, bobPassword); r.status != 0 {
		t.Errorf("%v", r)
	}
	if c := j.Counts(); c.Refused != 1 {
		t.Errorf("%d attempts with a refused password, want 1", c.Refused)
	}
}

// TestReloadRealm: a KDC that has moved is found after a reload, and the first
// principal of a configuration has an engine.
func TestReloadRealm(t *testing.T) {
	w := inProcess(t)
	h := newHome(t, w)
	full := h.text(t)
	write(t, h.config, "")
	h.krb5Conf = write(t, h.dir+"/krb5.conf", strings.ReplaceAll(w.kdc.Krb5Conf(), w.kdc.Addr(), "127.0.0.1:1"))
	h.start(t)
	if out := h.ok(t, "tickets"); strings.Contains(out, "build") {
		t.Errorf("%s", out)
	}
	write(t, h.config, full)
	if got := h.reload(t); got != "[app] [] []" {
		t.Errorf("%s", got)
	}
	if r := h.sessionctl(t, "raw", "app"); r.status != 7 || !strings.Contains(r.stderr, "(kdc_unreachable)") {
		t.Errorf("%v", r)
	}
	write(t, h.krb5Conf, w.kdc.Krb5Conf())
	h.reload(t)
	until(t, "a session", func() bool { return h.sessionctl(t, "raw", "app").status == 0 })
	// Without principals again: what was there is gone, and nothing breaks.
	write(t, h.config, "")
	if got := h.reload(t); got != "[] [] [app]" {
		t.Errorf("%s", got)
	}
	h.fails(t, 4, "unknown_site", "raw", "app")
	h.fails(t, 6, "denied", "ccache", "build@"+realm, h.dir+"/cc")
}

// TestReloadsUnderLoad: whoever calls while the configuration changes gets an
// answer of the one or of the other.
func TestReloadsUnderLoad(t *testing.T) {
	w := inProcess(t)
	h := newHome(t, w, w.site("steady", "/spnego/"), w.site("anew", "/spnego/"))
	base := h.text(t)
	h.start(t)
	sessions, agent := h.rpc(t), h.service(t)
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var answers, unknown atomic.Int64
	steady, err := sessions.GetSession(t.Context(), &pb.GetSessionRequest{Site: "steady"})
	must(t, err)
	for i := range 16 {
		site := []string{"app", "steady", "anew", "flaps"}[i%4]
		wg.Go(func() {
			for ctx.Err() == nil {
				r, err := sessions.GetSession(t.Context(), &pb.GetSessionRequest{Site: site})
				switch {
				case site == "flaps" && api.CodeOf(err) == api.UnknownSite:
					unknown.Add(1)
				case err != nil:
					t.Errorf("%s: %v", site, err)
				case r.GetSession().GetStale() || len(r.GetSession().GetHeaders()) == 0:
					t.Errorf("%s: %v", site, r)
				case site == "steady" && r.GetSession().GetGeneration() != steady.GetSession().GetGeneration():
					t.Error("the session of a site that does not change is another one")
				default:
					answers.Add(1)
				}
			}
		})
	}
	for i := range 50 {
		text := base
		if i%2 == 0 {
			text += w.site("flaps", "/spnego/")
		}
		if i%10 == 5 {
			text = strings.Replace(text, w.site("anew", "/spnego/"), w.site("anew", "/spnego/", fmt.Sprintf("login_url = \"/spnego/?%d\"", i)), 1)
		}
		write(t, h.config, text)
		if _, err := agent.Reload(t.Context(), &pb.ReloadRequest{}); err != nil {
			t.Errorf("reload %d: %v", i, err)
		}
		if i%10 == 0 { // one that is wrong
			write(t, h.config, text+"nonsense")
			if _, err := agent.Reload(t.Context(), &pb.ReloadRequest{}); api.CodeOf(err) != api.ConfigInvalid {
				t.Errorf("reload %d of nonsense: %v", i, err)
			}
		}
	}
	until(t, "answers", func() bool { return answers.Load() > 100 && unknown.Load() > 0 })
	stop()
	wg.Wait()
	t.Logf("%d answers, %d of a site that was not there", answers.Load(), unknown.Load())
}

// TestReloadInALogin: a login that is under way goes on. Who waits for it gets its
// session, if that is still what the configuration says, and else that of the new
// one.
func TestReloadInALogin(t *testing.T) {
	j := newJira(t)
	var holding atomic.Bool
	held, release := make(chan struct{}, 10), make(chan struct{})
	url := frontOf(t, j, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Method == http.MethodPost && strings.HasSuffix(r.URL.Path, "/rest/auth/1/session") && holding.Load() {
			held <- struct{}{}
			<-release
		}
		next.ServeHTTP(w, r)
	}) + "/jira"
	h := j.home(t)
	h.rewrite(t, j.Atlassian.URL(), url)
	a := h.start(t)
	if r := h.givePassword(t, alicePassword); r.status != 0 {
		t.Fatalf("%v", r)
	}
	sessions := h.rpc(t)
	for _, c := range []struct {
		what, old, new string
		logins         int
	}{
		{"something else", "[site.jira]", "# a comment\n[site.jira]", 1},
		{"what leaves the session good", "[site.tracker]\n", "[site.tracker]\nuser_agent = \"x\"\n", 1},
		{"what ends the session", "[site.tracker]\n", "[site.tracker]\nlogin_hosts = [\"other.example\"]\n", 2},
	} {
		j.DropSessions()
		before := j.Counts().Logins
		holding.Store(true)
		answers := make(chan error)
		for range 5 {
			go func() {
				_, err := sessions.GetSession(t.Context(), &pb.GetSessionRequest{Site: "tracker"})
				answers <- err
			}()
		}
		<-held
		holding.Store(false)
		h.rewrite(t, c.old, c.new)
		h.reload(t)
		close(release)
		for range 5 {
			if err := <-answers; err != nil {
				t.Errorf("%s: %v", c.what, err)
			}
		}
		release = make(chan struct{})
		if n := j.Counts().Logins - before; n != c.logins {
			t.Errorf("%s: %d logins, want %d", c.what, n, c.logins)
		}
		if name := j.named(t, h.ok(t, "raw", "tracker")); name != "alice" {
			t.Errorf("%s: Jira names %q", c.what, name)
		}
	}
	a.stop(t)
	noSecrets(t, a)
}

// TestReloadNeverMixes: a name that is another user's session from one moment to the
// next never gives the old caller the new session, nor the new caller the old one.
func TestReloadNeverMixes(t *testing.T) {
	j := newJira(t)
	h := j.shared(t)
	site := func(credential string, uid int) string {
		return fmt.Sprintf("\n[site.shift]\nurl = %q\nkind = \"jira\"\ncredential = %q\nallow = [\"uid:%d\"]\ninsecure_http = true\n", j.Atlassian.URL(), credential, uid)
	}
	base := h.text(t)
	shifts := []string{base + site("alice", aliceUID), base + site("bob", bobUID)}
	write(t, h.config, shifts[0])
	h.start(t)
	h.open(t)
	sessions, agent := h.rpc(t), h.service(t)
	bring(t, sessions, "jira", "alice", alicePassword)
	bring(t, sessions, "jira", "bob", bobPassword)
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var served, denied atomic.Int64
	for uid, name := range map[uint32]string{aliceUID: "alice", bobUID: "bob"} {
		for range 2 {
			wg.Go(func() {
				for ctx.Err() == nil {
					r := h.callAs(t, uid, "header", "shift")
					switch {
					case r.status == 4 && strings.Contains(r.stderr, "(unknown_site)"):
						denied.Add(1)
					case r.status != 0:
						t.Errorf("%s: %v", name, r)
					default:
						served.Add(1)
						// It may have ended since, but it is nobody else's.
						_, cookie, _ := strings.Cut(strings.SplitN(r.stdout, "\n", 2)[0], ": ")
						if got := j.named(t, cookie); got != name && got != "" {
							t.Errorf("%s was served the session of %s", name, got)
						}
					}
				}
			})
		}
	}
	reload := func(text string) {
		write(t, h.config, text)
		if _, err := agent.Reload(t.Context(), &pb.ReloadRequest{}); err != nil {
			t.Errorf("%v", err)
		}
	}
	for i := range 40 {
		reload(shifts[i%2])
	}
	for range 4 { // both have had their turn
		for _, text := range shifts {
			before := served.Load()
			reload(text)
			until(t, "an answer", func() bool { return served.Load() > before })
		}
	}
	stop()
	wg.Wait()
	t.Logf("%d served, %d denied", served.Load(), denied.Load())
}
