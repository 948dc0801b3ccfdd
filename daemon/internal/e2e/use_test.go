package e2e

import (
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/sessionctl/sessionctl/api"
	pb "github.com/sessionctl/sessionctl/api/sessionctl/v1"
	"github.com/sessionctl/sessionctl/client"
	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

// The users of this machine who share the Jira, and who they are there. Nothing
// but their numbers counts.
const (
	aliceUID = 4242
	bobUID   = 4243
	otherUID = 4244
)

const bobPassword = "CANARY-bob"

// open lets every user of the machine at the agent's socket, as that of a system
// service does.
func (h *home) open(t *testing.T) {
	t.Helper()
	for path, mode := range map[string]fs.FileMode{h.dir: 0o755, filepath.Dir(h.socket): 0o755, h.socket: 0o666} {
		must(t, os.Chmod(path, mode))
	}
}

// callAs calls sessionctl as another user.
func (h *home) callAs(t *testing.T, uid uint32, args ...string) result {
	t.Helper()
	cmd := exec.Command(filepath.Join(bin, "sessionctl"), args...)
	cmd.Env = []string{"SESSIONCTL_SOCKET=" + h.socket}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	cmd.Dir = "/"
	return finish(t, cmd, "")
}

// rpc returns a client for calls by the test's own user, who runs the agent.
func (h *home) rpc(t *testing.T) pb.SessionServiceClient {
	t.Helper()
	c := &client.Client{Socket: h.socket}
	t.Cleanup(func() { c.Close() })
	sessions, err := c.Sessions()
	must(t, err)
	return sessions
}

// named asks Jira whose a cookie is.
func (j *jiraWorld) named(t *testing.T, cookie string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, j.Atlassian.URL()+"/rest/auth/1/session", nil)
	must(t, err)
	req.Header.Set("Cookie", strings.TrimSpace(cookie))
	resp, err := http.DefaultClient.Do(req)
	must(t, err)
	defer resp.Body.Close()
	buf := make([]byte, 4096)
	n, _ := resp.Body.Read(buf)
	_, rest, _ := strings.Cut(string(buf[:n]), `"name":"`)
	name, _, _ := strings.Cut(rest, `"`)
	return name
}

// shared is a home with one Jira of two users.
func (j *jiraWorld) shared(t *testing.T, more ...string) *home {
	t.Helper()
	rig.Require(t, "root")
	j.AddUser("bob", bobPassword)
	return newHome(t, j.world, fmt.Sprintf(`
[credential.alice]
username = "alice"

[credential.bob]
username = "bob"

[site.jira]
url           = %q
kind          = "jira"
insecure_http = true
recheck       = "0s"

[[site.jira.use]]
allow      = ["uid:%d"]
credential = "alice"

[[site.jira.use]]
allow      = ["uid:%[3]d", "uid:%[2]d"]
credential = "bob"
%[4]s`, j.Atlassian.URL(), aliceUID, bobUID, strings.Join(more, "\n")))
}

// bring gives the agent a password.
func bring(t *testing.T, sessions pb.SessionServiceClient, site, credential, password string) *pb.Session {
	t.Helper()
	resp, err := sessions.Login(t.Context(), &pb.LoginRequest{Site: site, Credential: credential, Password: []byte(password)})
	must(t, err)
	return resp.GetSession()
}

// TestUse: one site, several users. Each caller gets the session of the first use
// that names it.
func TestUse(t *testing.T) {
	j := newJira(t)
	h := j.shared(t, fmt.Sprintf(`
[site.twin]
url           = %q
kind          = "jira"
credential    = "bob"
allow         = ["uid:%d"]
insecure_http = true
`, j.Atlassian.URL(), bobUID))
	a := h.start(t)
	h.open(t)
	sessions := h.rpc(t)

	// The operator is none of the users, and has to say who is meant.
	_, err := sessions.Login(t.Context(), &pb.LoginRequest{Site: "jira", Password: []byte(alicePassword)})
	if e := api.AsError(err); e == nil || e.Code != api.InvalidRequest || !strings.Contains(e.Detail, "alice, bob") || !strings.Contains(e.Remedy, "--credential") {
		t.Errorf("a login of nobody in particular: %v", err)
	}
	if _, err := sessions.Login(t.Context(), &pb.LoginRequest{Site: "jira", Credential: "build"}); api.CodeOf(err) != api.InvalidRequest {
		t.Errorf("a login of a credential that the site does not use: %v", err)
	}
	if _, err := sessions.LoginProxy(t.Context(), &pb.LoginProxyRequest{Site: "jira", Password: []byte(alicePassword)}); api.CodeOf(err) != api.InvalidRequest || !strings.Contains(err.Error(), "not reached through a proxy") {
		t.Errorf("a password for a proxy that is not there: %v", err) // which is no user's
	}
	for credential, password := range map[string]string{"alice": alicePassword, "bob": bobPassword} {
		if s := bring(t, sessions, "jira", credential, password); s.GetUser() != credential || len(s.GetHeaders())+len(s.GetCookies()) != 0 {
			t.Errorf("the operator, whom no use names, got %v", s)
		}
	}

	url := j.Atlassian.URL() + "/browse/X-1"
	logins := j.Counts().Logins
	for _, c := range []struct {
		uid        uint32
		site, want string
	}{{aliceUID, "jira", "alice"}, {bobUID, "jira", "bob"}, {bobUID, "twin", "bob"}, {aliceUID, url, "alice"}} {
		r := h.callAs(t, c.uid, "raw", c.site)
		if got := j.named(t, r.stdout); r.status != 0 || got != c.want {
			t.Errorf("uid %d at %s is %q, want %q: %d %s", c.uid, c.site, got, c.want, r.status, r.stderr)
		}
	}
	if n := j.Counts().Logins - logins; n != 1 { // at twin
		t.Errorf("%d logins, want 1", n)
	}
	if r := h.callAs(t, bobUID, "raw", url); r.status == 0 || !strings.Contains(r.stderr, "(ambiguous_site)") || !strings.Contains(r.stderr, "jira, twin") {
		t.Errorf("a URL of two sites that bob may use: %v", r)
	}
	// Who is in no use learns nothing, and neither does somebody about the users.
	wantFailure(t, h.callAs(t, otherUID, "raw", "jira"), 4, "unknown_site")
	wantFailure(t, h.callAs(t, otherUID, "raw", url), 4, "unknown_site")
	h.fails(t, 4, "unknown_site", "raw", "jira")
	for uid, want := range map[uint32][]string{aliceUID: {"alice"}, bobUID: {"bob", "bob"}, otherUID: nil} {
		out := h.callAs(t, uid, "list", "-o", "json").stdout
		if n := strings.Count(out, `"generation"`); n != len(want) {
			t.Errorf("uid %d sees %d sessions: %s", uid, n, out)
		}
		for _, name := range []string{"alice", "bob"} {
			if seen := strings.Contains(out, name); seen != (len(want) > 0 && want[0] == name) {
				t.Errorf("uid %d sees %s: %t", uid, name, seen)
			}
		}
	}
	all, err := sessions.ListSessions(t.Context(), &pb.ListSessionsRequest{})
	must(t, err)
	generation := map[string]string{}
	var order []string
	for _, s := range all.GetSessions() {
		order = append(order, s.GetSite()+"/"+s.GetCredential())
		generation[s.GetSite()+"/"+s.GetCredential()] = s.GetGeneration()
	}
	if got := strings.Join(order, " "); got != "app/build jira/alice jira/bob twin/bob" {
		t.Errorf("the operator sees %s", got)
	}

	// Which session one gets is not the caller's choice.
	for _, credential := range []string{"alice", "bob", "nobody"} {
		wantFailure(t, h.callAs(t, aliceUID, "refresh", "jira", "--credential", credential), 6, "denied")
		wantFailure(t, h.callAs(t, otherUID, "refresh", "jira", "--credential", credential), 4, "unknown_site")
	}

	// One user's session ends, the other's does not.
	if _, err := sessions.DeleteSession(t.Context(), &pb.DeleteSessionRequest{Site: "jira"}); api.CodeOf(err) != api.InvalidRequest {
		t.Errorf("a logout of nobody in particular: %v", err)
	}
	if _, err := sessions.DeleteSession(t.Context(), &pb.DeleteSessionRequest{Site: "jira", Credential: "alice", Idp: true}); api.CodeOf(err) != api.InvalidRequest {
		t.Errorf("a logout at an identity provider that is not there: %v", err)
	}
	if d, err := sessions.DeleteSession(t.Context(), &pb.DeleteSessionRequest{Site: "jira", Credential: "alice"}); err != nil || !d.GetHadSession() {
		t.Errorf("logout of alice: %v %v", d, err)
	}
	r, err := sessions.RefreshSession(t.Context(), &pb.RefreshSessionRequest{Site: "jira", Credential: "bob", Generation: generation["jira/bob"]})
	must(t, err)
	if s := r.GetSession(); s.GetGeneration() != generation["jira/bob"] || len(s.GetHeaders())+len(s.GetCookies()) != 0 {
		t.Errorf("bob's session after alice's logout: %v", s)
	}
	forced, err := sessions.RefreshSession(t.Context(), &pb.RefreshSessionRequest{Site: "jira", Credential: "bob", Force: true})
	must(t, err)
	bobs := forced.GetSession().GetGeneration()
	if bobs == generation["jira/bob"] {
		t.Error("a forced refresh of bob's session changed nothing")
	}
	if _, err := sessions.RefreshSession(t.Context(), &pb.RefreshSessionRequest{Site: "jira", Force: true}); api.CodeOf(err) != api.InvalidRequest {
		t.Errorf("a forced refresh of nobody in particular: %v", err)
	}
	if r := h.callAs(t, aliceUID, "raw", "jira"); j.named(t, r.stdout) != "alice" {
		t.Errorf("alice after her logout: %v", r)
	}

	// A restart keeps both.
	logins = j.Counts().Logins
	a.stop(t)
	a = h.start(t)
	h.open(t)
	for uid, want := range map[uint32]string{aliceUID: "alice", bobUID: "bob"} {
		if got := j.named(t, h.callAs(t, uid, "raw", "jira").stdout); got != want {
			t.Errorf("after the restart uid %d is %q", uid, got)
		}
	}
	if n := j.Counts().Logins - logins; n != 0 {
		t.Errorf("%d logins after the restart", n)
	}
	noSecrets(t, a)
}

// TestDotSegments: a URL is asked for as an HTTP client asks for it, and finds that
// site.
func TestDotSegments(t *testing.T) {
	w := inProcess(t)
	h := newHome(t, w)
	h.start(t)
	sessions := h.rpc(t)
	for _, path := range []string{"/spnego/../x", "/spnego/..", "/spnego/a/../../x", "/spnego/%2E%2e/x"} {
		h.fails(t, 4, "unknown_site", "raw", w.url+path)
	}
	for path, want := range map[string]string{"/x/../spnego/./whoami?a=/../b": "/spnego/whoami?a=/../b", "/spnego/x/%2e%2E/whoami": "/spnego/whoami"} {
		r, err := sessions.GetSession(t.Context(), &pb.GetSessionRequest{Url: strings.Replace(w.url, "localhost", "LOCALHOST.", 1) + path})
		must(t, err)
		if got := r.GetSession().GetUrl(); got != w.url+want {
			t.Errorf("%s: the session is for %s", path, got)
		}
	}
}

// TestIdPIsNobodys: the session of an identity provider is shown to the operator
// and found by nobody.
func TestIdPIsNobodys(t *testing.T) {
	j := newJira(t)
	h := j.shared(t, fmt.Sprintf(`
[idp.sso]
url           = "http://127.0.0.1:1/sso/"
kind          = "form"
credential    = "alice"
insecure_http = true
identity_json = "user"

[site.wiki]
url           = "http://localhost:1/wiki/"
kind          = "form"
idp           = "sso"
allow         = ["uid:%d"]
insecure_http = true
identity_json = "user"
`, aliceUID))
	h.start(t)
	h.open(t)
	sessions := h.rpc(t)
	all, err := sessions.ListSessions(t.Context(), &pb.ListSessionsRequest{})
	must(t, err)
	if idps := all.GetIdps(); len(idps) != 1 || idps[0].GetSite() != "sso" || idps[0].GetUser() != "alice" || idps[0].GetCredential() != "alice" || idps[0].GetIdp() != "" {
		t.Errorf("the operator sees the identity providers %v", idps)
	}
	for _, s := range all.GetSessions() {
		switch {
		case s.GetSite() == "sso":
			t.Errorf("the identity provider is a site: %v", s)
		case s.GetSite() == "wiki" && (s.GetIdp() != "sso" || s.GetCredential() != "alice"):
			t.Errorf("its site is %v", s)
		}
	}
	if out := h.callAs(t, aliceUID, "list", "-o", "json").stdout; !strings.Contains(out, "wiki") || strings.Contains(out, "127.0.0.1:1") {
		t.Errorf("alice sees %s", out)
	}
	for _, name := range []string{"sso", "http://127.0.0.1:1/sso/"} {
		for _, uid := range []uint32{0, aliceUID} {
			for _, verb := range []string{"raw", "login", "logout", "refresh", "reject"} {
				if verb != "raw" && strings.Contains(name, "/") {
					continue // they take names alone
				}
				wantFailure(t, h.callAs(t, uid, verb, name), 4, "unknown_site")
			}
		}
	}
	if st, err := h.service(t).GetStatus(t.Context(), &pb.GetStatusRequest{}); err != nil || st.GetSites() != 3 {
		t.Errorf("%v %v", st, err)
	}
}
