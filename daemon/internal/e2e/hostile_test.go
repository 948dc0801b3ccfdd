package e2e

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sessionctl/sessionctl/api"
	pb "github.com/sessionctl/sessionctl/api/sessionctl/v1"
	"github.com/sessionctl/sessionctl/client"
	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

// fate is what becomes of an agent with a good session at a site that turns
// hostile.
type fate struct {
	probe api.Code // why the session could not be proved; "": it was; dead: it is none any more
	login api.Code // why nobody could log in; "": somebody could
}

// dead is for a site that disowns the session: as far as anybody can tell it is
// what the site says to a stranger. The login that follows is refused.
const dead api.Code = "dead"

// fatesOf tells the fates at the sites of each kind of login. Where a session is
// dead, the answer is one that strangers get, too: 401, a redirect, or another
// page instead of the user's name; or it names another user.
var fatesOf = func() map[string]map[string]fate {
	all := map[string]map[string]fate{}
	for _, c := range []struct {
		spnego, form, jira fate
		kinds              []string
	}{
		{fate{api.NetworkError, api.NetworkError}, fate{api.NetworkError, api.NetworkError}, fate{api.NetworkError, api.NetworkError}, []string{
			"100 Continue without end", "103 Early Hints without end", "50,000 cookies", "HTTP/0.9", "HTTP/2 frames", "NUL bytes in the head", "binary junk",
			"chunk extension without end", "chunk of any size", "chunk of no size", "chunks full of extensions", "closes at once",
			"closes before the status line", "closes in a chunk", "closes in the body", "closes in the head", "closes in the status line", "cookie of 1 MB",
			"head line of 100 MB and more", "head line without a name", "head lines without end", "negative length", "negative status",
			"other transfer coding", "resets at once", "resets before the status line", "resets in the body", "status in words", "status line without end",
			"status of four digits", "trailer without end", "two lengths", "two status lines",
		}},
		{fate{api.TLSError, api.TLSError}, fate{api.TLSError, api.TLSError}, fate{api.TLSError, api.TLSError}, []string{
			"SSH instead of TLS", "TLS 1.0", "TLS 1.1", "alerts without end", "certificate chain of 5,000", "certificate for another name",
			"certificate for clients", "certificate of an unknown authority", "certificate signed with SHA-1", "certificate that is not yet valid",
			"certificate with a critical riddle", "certificate without a name", "demands a client certificate", "expired certificate",
			"handshake message of 16 MB", "handshake records without end", "plain text instead of TLS", "self-signed certificate",
		}},
		{fate{dead, api.NoChallenge}, fate{dead, api.UnexpectedStatus}, fate{api.Maintenance, api.Maintenance}, []string{
			"attribute of 1 MB", "character references", "forms without end", "inputs without end", "login forms without end", "login page with a refresh", "nested fieldsets", "nested tags",
			"nested templates", "page in UTF-16", "tag without end", "too short a length",
		}},
		{fate{api.UnexpectedStatus, api.NoChallenge}, fate{api.UnexpectedStatus, api.UnexpectedStatus}, fate{api.UnexpectedStatus, api.UnexpectedStatus}, []string{
			"redirects to nowhere", "redirects to what is no URL", "status 000", "status 099", "status 204", "status 205", "status 206", "status 300",
			"status 304", "status 305",
		}},
		{fate{api.Timeout, api.Timeout}, fate{api.Timeout, api.Timeout}, fate{api.Timeout, api.Timeout}, []string{
			"103 Early Hints in drips", "body in drips", "body of 10 GB that stops", "body that stops", "head in drips", "head that stops", "never answers",
			"never shakes hands", "shakes hands slowly",
		}},
		{fate{api.UnexpectedStatus, api.NoChallenge}, fate{api.UnexpectedStatus, api.UnexpectedStatus}, fate{api.UnexpectedStatus, api.Maintenance}, []string{
			"attributes without end", "body of 10 GB", "body without end", "brotli by name", "chunks without end", "deflate bomb", "gzip bomb",
			"gzip in gzip bomb", "options without end",
		}},
		{fate{api.Server5xx, api.Server5xx}, fate{api.Server5xx, api.Server5xx}, fate{api.Server5xx, api.Server5xx}, []string{
			"10,000 head lines", "5,000 cookies on an error page", "folded head lines", "login reasons of 200 KB", "status 500", "status 999",
			"takes the cookies on an error page",
		}},
		{fate{api.UnexpectedStatus, api.UnexpectedStatus}, fate{api.UnexpectedStatus, api.UnexpectedStatus}, fate{api.UnexpectedStatus, api.UnexpectedStatus}, []string{
			"101 without an upgrade", "another protocol, and silence", "status 407", "status 418",
		}},
		{fate{dead, api.LoginOKButProbeFailed}, fate{dead, api.LoginOKButProbeFailed}, fate{api.UnexpectedStatus, api.UnexpectedStatus}, []string{
			"JSON 1 MB deep", "JSON objects 1 MB deep", "JSON of many members", "empty 200",
		}},
		{fate{dead, api.RedirectLoop}, fate{dead, api.RedirectLoop}, fate{api.UnexpectedStatus, api.UnexpectedStatus}, []string{
			"redirects to 200 KB", "redirects to and fro", "redirects to ever longer", "redirects to itself",
		}},
		{fate{dead, api.SSORedirect}, fate{dead, api.SSORedirect}, fate{dead, api.SSORedirect}, []string{
			"redirects to another host", "redirects to data:", "redirects to file:", "redirects to javascript:",
		}},
		// What does not look as Jira's own has no say there.
		{fate{dead, api.WrongIdentity}, fate{dead, api.WrongIdentity}, fate{api.UnexpectedStatus, api.UnexpectedStatus}, []string{
			"session of a number", "session of another user", "user name full of controls",
		}},
		{fate{dead, api.WrongIdentity}, fate{dead, api.WrongIdentity}, fate{dead, api.UnexpectedStatus}, []string{
			"session of two users",
		}},
		{fate{dead, api.NegotiateRejected}, fate{dead, api.ChallengeUnsupported}, fate{dead, api.ChallengeUnsupported}, []string{
			"401 Negotiate for ever", "401 Negotiate refused for ever", "401 Negotiate with a broken token",
		}},
		{fate{api.RateLimited, api.RateLimited}, fate{api.RateLimited, api.RateLimited}, fate{api.RateLimited, api.RateLimited}, []string{
			"429 for less than nothing", "429 until nobody knows when", "429 until the year 9999",
		}},
		{fate{dead, api.NoChallenge}, fate{dead, api.BadCredentials}, fate{dead, api.Maintenance}, []string{
			"login page for ever",
		}},
		{fate{dead, api.NoChallenge}, fate{dead, api.UnexpectedStatus}, fate{api.UnexpectedStatus, api.UnexpectedStatus}, []string{
			"401 with junk", "401 without a challenge",
		}},
		{fate{api.Maintenance, api.Maintenance}, fate{api.Maintenance, api.Maintenance}, fate{api.Maintenance, api.Maintenance}, []string{
			"503 for more than numbers hold", "503 for ten years",
		}},
		{fate{dead, api.NoChallenge}, fate{dead, api.SSORedirect}, fate{dead, api.Maintenance}, []string{
			"login page to another host", "login page to javascript:",
		}},
		{fate{dead, api.MutualAuthFailed}, fate{dead, api.ChallengeUnsupported}, fate{dead, api.ChallengeUnsupported}, []string{
			"401 Negotiate with a long token",
		}},
		{fate{"", api.NegotiateRejected}, fate{"", ""}, fate{"", ""}, []string{
			"401 only for tokens",
		}},
		{fate{dead, api.NTLMOnly}, fate{dead, api.ChallengeUnsupported}, fate{dead, api.ChallengeUnsupported}, []string{
			"401 with NTLM alone",
		}},
		{fate{api.Forbidden, api.UnexpectedStatus}, fate{api.Forbidden, api.UnexpectedStatus}, fate{api.UnexpectedStatus, api.UnexpectedStatus}, []string{
			"403 and nothing else",
		}},
		{fate{dead, api.LoginOKButProbeFailed}, fate{dead, api.LoginOKButProbeFailed}, fate{dead, api.LoginOKButProbeFailed}, []string{
			"JSON of many messages",
		}},
		{fate{dead, api.ChallengeUnsupported}, fate{dead, api.ChallengeUnsupported}, fate{dead, api.ChallengeUnsupported}, []string{
			"challenges of 200 KB",
		}},
		{fate{"", api.NetworkError}, fate{"", api.NetworkError}, fate{"", api.NetworkError}, []string{
			"closes at the password or token",
		}},
		{fate{"", api.LoginOKButProbeFailed}, fate{"", ""}, fate{"", ""}, []string{
			"false proof for a token",
		}},
		{fate{dead, api.NoChallenge}, fate{dead, api.InsecureRedirect}, fate{dead, api.Maintenance}, []string{
			"login page to http",
		}},
		{fate{dead, api.NoChallenge}, fate{dead, api.UnexpectedStatus}, fate{dead, api.Maintenance}, []string{
			"login page to no URL",
		}},
		{fate{"", ""}, fate{"", api.SSORedirect}, fate{"", api.SSORedirect}, []string{
			"redirects the password",
		}},
		{fate{dead, api.InsecureRedirect}, fate{dead, api.InsecureRedirect}, fate{dead, api.InsecureRedirect}, []string{
			"redirects to http",
		}},
		{fate{dead, api.RedirectLoop}, fate{dead, api.ChallengeUnsupported}, fate{dead, api.ChallengeUnsupported}, []string{
			"redirects with a challenge",
		}},
		{fate{dead, api.WrongIdentity}, fate{dead, api.WrongIdentity}, fate{api.UnexpectedStatus, api.UnexpectedStatus}, []string{
			"user name of 1 MB",
		}},
	} {
		for _, kind := range c.kinds {
			all[kind] = map[string]fate{"spnego": c.spnego, "form": c.form, "jira": c.jira}
		}
	}
	return all
}()

// slow reports whether nothing but the agent's own clock ends a meeting.
func slow(kind string) bool { return fatesOf[kind]["spnego"].login == api.Timeout }

// Limits of issue and design: of one call, of Negotiate tokens for one URL, of
// what the memory of the agent grows by in all meetings.
const (
	hostileTime   = 30 * time.Second
	hostileTokens = 2
	hostileMemory = 32 << 10 // KiB
)

// hostileSite is one site of the agent, in front of which somebody will be
// hostile.
type hostileSite struct {
	name, kind, driver string
	front              *rig.Hostile
	generation         string
}

func (s *hostileSite) String() string { return s.driver + ", " + s.kind }

// TestHostileServers: an agent has a good session at each of many sites, which
// then turn hostile, each in its own way. Nothing hangs or grows, no session is
// lost unless the site disowns it, and no secret comes to light. The agent is a
// process of its own, so that its memory is nobody else's.
func TestHostileServers(t *testing.T) {
	w := inProcess(t)
	authority, err := rig.NewAuthority()
	must(t, err)
	sites, config := hostileSites(t, w, authority)
	h := newHome(t, w, config)
	h.extraEnv = []string{"SSL_CERT_FILE=" + write(t, filepath.Join(t.TempDir(), "ca.pem"), string(authority.PEM()))}
	a := h.start(t)
	c := &client.Client{Socket: h.socket}
	defer c.Close()
	sessions, err := c.Sessions()
	must(t, err)
	for _, s := range sites {
		r := &pb.LoginRequest{Site: s.name}
		if s.driver != "spnego" {
			r.Password = []byte(password)
		}
		resp, err := sessions.Login(t.Context(), r)
		if err != nil {
			t.Fatalf("%v: before it turns hostile: %v", s, err)
		}
		s.generation = resp.GetSession().GetGeneration()
	}

	before, begin := memory(t, a, "VmRSS"), time.Now()
	var meetings sync.WaitGroup
	quick := make(chan struct{}, 1)
	for _, s := range sites {
		meetings.Go(func() {
			if !slow(s.kind) {
				quick <- struct{}{}
				defer func() { <-quick }()
			}
			s.meet(t, sessions)
		})
	}
	meetings.Wait()
	peak := memory(t, a, "VmHWM")
	t.Logf("%d kinds at %d sites in %v: the agent had %d KiB before, %d at most, %d after", len(fatesOf), len(sites), time.Since(begin).Round(time.Second), before, peak, memory(t, a, "VmRSS"))
	if raceFlag == "-race" {
		t.Log("the race detector takes several times the agent's own memory: that is not judged")
	} else if peak-before > hostileMemory {
		t.Errorf("the agent's memory grew by %d KiB", peak-before)
	}

	for _, s := range sites {
		meetings.Go(func() { s.recover(t, sessions) })
	}
	meetings.Wait()
	noSecrets(t, a)

	// All has ended at the site's side too, and so in the agent, whose last words
	// are a list of its goroutines.
	ctx, cancel := context.WithTimeout(t.Context(), hostileTime)
	defer cancel()
	for _, s := range sites {
		if err := s.front.Idle(ctx); err != nil {
			t.Errorf("%v: %v", s, err)
		}
	}
	h.ok(t, "status")
	must(t, a.cmd.Process.Signal(syscall.SIGQUIT))
	<-a.done
	if left := regexp.MustCompile(`(?m)^(net/http|crypto/tls|.*/internal/(web|login))\.\S*`).FindAllString(a.log.String(), -1); left != nil || !strings.Contains(a.log.String(), "goroutine 1 ") {
		t.Errorf("still at work: %v", slices.Compact(slices.Sorted(slices.Values(left))))
	}

	// What was proven outlives the agent.
	h.start(t)
	for _, s := range sites {
		s.served(t, sessions, false)
	}
}

// hostileSites makes a site for each kind of hostility and of login, and what
// the agent has to know of them. Each password is a credential of its own: a
// refusal latches it.
func hostileSites(t *testing.T, w *world, authority *rig.Authority) (sites []*hostileSite, config string) {
	spnego, err := rig.StartSite(w.kdc.Keytab("HTTP/localhost"))
	must(t, err)
	t.Cleanup(spnego.Stop)
	form, err := rig.StartForm()
	must(t, err)
	t.Cleanup(form.Stop)
	form.AddUser("build", password)
	jira, err := rig.StartJira(rig.AtlassianOptions{ContextPath: "/jira"})
	must(t, err)
	t.Cleanup(jira.Stop)
	jira.AddUser("build", password)

	if kinds := slices.Sorted(maps.Keys(fatesOf)); !slices.Equal(kinds, rig.HostileKinds()) {
		t.Fatalf("the table is about %q, the rig has %q", kinds, rig.HostileKinds())
	}
	for i, kind := range rig.HostileKinds() {
		for _, d := range []struct {
			driver  string
			handler http.Handler
			config  string
		}{
			{"spnego", spnego, "url = \"%s/spnego/\"\nlogin_url = \"/spnego/\"\nprobe_url = \"/spnego/whoami\"\nidentity_json = \"user\"\ncredential = \"build\"\n"},
			{"form", form, "url = \"%s/app/\"\nlogin_url = \"/login\"\nprobe_url = \"/app/whoami\"\nidentity_json = \"user\"\n"},
			{"jira", jira, "url = \"%s/jira\"\n"},
		} {
			front, err := rig.StartHostile(authority, d.handler)
			must(t, err)
			t.Cleanup(front.Stop)
			s := &hostileSite{name: d.driver + strconv.Itoa(i), kind: kind, driver: d.driver, front: front}
			sites = append(sites, s)
			config += fmt.Sprintf("\n[site.%s]\nkind = %q\nrecheck = \"0s\"\n"+d.config, s.name, s.driver, front.URL())
			if s.driver != "spnego" {
				config += fmt.Sprintf("credential = %q\n[credential.%[1]s]\nusername = \"build\"\n", s.name)
			}
		}
	}
	return sites, config
}

// meet turns the site hostile and makes the agent prove its session there, and
// then log in. Afterwards the site is good again.
func (s *hostileSite) meet(t *testing.T, sessions pb.SessionServiceClient) {
	defer s.front.Turn("")
	want := fatesOf[s.kind][s.driver]
	report := want.probe
	if report == dead {
		report = want.login // which the agent tries at once
	}
	s.call(t, "a report", report, func(ctx context.Context) error {
		_, err := sessions.RefreshSession(ctx, &pb.RefreshSessionRequest{Site: s.name, Generation: s.generation})
		return err
	})
	s.call(t, "a login", want.login, func(ctx context.Context) error {
		resp, err := sessions.Login(ctx, &pb.LoginRequest{Site: s.name, Retry: true})
		if err == nil {
			s.generation = resp.GetSession().GetGeneration()
		}
		return err
	})
	if want.probe != dead {
		s.served(t, sessions, want.probe != "")
		return
	}
	_, err := sessions.GetSession(t.Context(), &pb.GetSessionRequest{Site: s.name, CachedOnly: true})
	if api.CodeOf(err) != api.NotCached {
		t.Errorf("%v: a session that the site disowns is still there: %v", s, err)
	}
}

// call makes a call that has to end in time with a code, or well with "".
func (s *hostileSite) call(t *testing.T, what string, want api.Code, do func(context.Context) error) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*hostileTime)
	defer cancel()
	s.front.Turn(s.kind)
	begin := time.Now()
	err := do(ctx)
	// The agent's own limit is exactly hostileTime; the machine may be busy.
	if took := time.Since(begin); took > hostileTime+2*time.Second {
		t.Errorf("%v: %s took %v", s, what, took)
	}
	if n := s.front.Tokens(); n > hostileTokens {
		t.Errorf("%v: %s sent %d tokens to one URL", s, what, n)
	}
	code := api.Code("")
	if err != nil {
		code = api.CodeOf(err)
		e := api.AsError(err)
		if strings.Contains(e.Error()+e.Remedy, "CANARY") || len(e.Detail) > 2<<10 || e.Detail != api.Clean(e.Detail) {
			t.Errorf("%v: %s: a message that must not be: %q", s, what, e)
		}
	}
	if code != want {
		t.Errorf("%v: %s ends with %q (%v), want %q", s, what, code, err, want)
	}
}

// served asks for the session: it is the same as ever.
func (s *hostileSite) served(t *testing.T, sessions pb.SessionServiceClient, stale bool) {
	resp, err := sessions.GetSession(t.Context(), &pb.GetSessionRequest{Site: s.name})
	if got := resp.GetSession(); err != nil || got.GetGeneration() != s.generation || len(got.GetHeaders()) == 0 || stale && !got.GetStale() {
		t.Errorf("%v: a session %q is served (stale: %v, %v), want %q (stale: %v)", s, got.GetGeneration(), got.GetStale(), err, s.generation, stale)
	}
}

// recover has the agent notice that the site is good again.
func (s *hostileSite) recover(t *testing.T, sessions pb.SessionServiceClient) {
	if fatesOf[s.kind][s.driver].probe == dead {
		resp, err := sessions.Login(t.Context(), &pb.LoginRequest{Site: s.name, Retry: true})
		if err != nil {
			t.Errorf("%v: good again: %v", s, err)
		}
		s.generation = resp.GetSession().GetGeneration()
		return
	}
	if told[s.kind] {
		return // the agent does as it is told; it is asked after its restart
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*hostileTime)
	defer cancel()
	stream, err := sessions.WatchSession(ctx, &pb.WatchSessionRequest{Site: s.name})
	if err != nil {
		t.Errorf("%v: good again: %v", s, err)
		return
	}
	for {
		resp, err := stream.Recv()
		if got := resp.GetSession(); err != nil || got.GetGeneration() != s.generation {
			t.Errorf("%v: good again: %q (%v), want %q", s, got.GetGeneration(), err, s.generation)
			return
		} else if !got.GetStale() {
			return
		}
	}
}

// told are the kinds that tell the agent to stay away for long.
var told = map[string]bool{"503 for ten years": true, "503 for more than numbers hold": true, "429 until the year 9999": true}

// memory returns a line of /proc/PID/status (proc(5)), in KiB.
func memory(t *testing.T, a *agent, field string) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", a.cmd.Process.Pid))
	must(t, err)
	_, rest, _ := strings.Cut(string(b), field+":")
	n, err := strconv.Atoi(strings.Fields(rest)[0])
	must(t, err)
	return n
}
