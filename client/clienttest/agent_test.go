package clienttest

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sessionctl/sessionctl/api"
	pb "github.com/sessionctl/sessionctl/api/sessionctl/v1"
	"github.com/sessionctl/sessionctl/client"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// logins make sessions with numbered cookies, or fail.
type logins struct {
	n    atomic.Int32
	fail atomic.Pointer[error]
}

func (l *logins) login() (Session, error) {
	n := l.n.Add(1)
	if err := l.fail.Load(); err != nil && *err != nil {
		return Session{}, *err
	}
	return Session{User: "build", Header: http.Header{"Cookie": {fmt.Sprintf("s=CANARY-%d", n)}, "User-Agent": {"x"}}}, nil
}

func start(t *testing.T, sites ...string) (*Agent, *logins) {
	t.Helper()
	a, err := Start()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
	l := &logins{}
	for i := 0; i < len(sites); i += 2 {
		a.AddSite(Site{Name: sites[i], URL: sites[i+1], Login: l.login})
	}
	return a, l
}

func get(t *testing.T, a *Agent, q client.Query) *client.Session {
	t.Helper()
	s, err := a.Client().Session(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func sessions(t *testing.T, a *Agent) pb.SessionServiceClient {
	t.Helper()
	s, err := a.Client().Sessions()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSessions(t *testing.T) {
	a, l := start(t, "jira", "https://jira.example/jira")
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if s, err := a.Client().Session(t.Context(), client.Query{Site: "jira"}); err != nil || s.Header().Get("Cookie") != "s=CANARY-1" {
				t.Errorf("%v, %v", s, err)
			}
		})
	}
	wg.Wait()
	s := get(t, a, client.Query{URL: "https://jira.example/jira/rest"})
	if s.Site != "jira" || s.User != "build" || s.URL != "https://jira.example/jira/rest" || s.Header().Get("User-Agent") != "x" ||
		time.Since(s.LoginTime) > time.Minute || time.Since(s.ProveTime) > time.Minute || !s.ExpireTime.IsZero() {
		t.Errorf("%+v", *s)
	}
	if l.n.Load() != 1 || a.Calls("GetSession") != 21 || a.Calls("RefreshSession") != 0 {
		t.Errorf("%d logins, %d calls", l.n.Load(), a.Calls("GetSession"))
	}
}

// TestRefresh: compare-and-refresh, as the real agent does it.
func TestRefresh(t *testing.T) {
	a, l := start(t, "jira", "https://jira.example")
	first := get(t, a, client.Query{Site: "jira"})
	refresh := func(dead *client.Session) *client.Session {
		t.Helper()
		s, err := a.Client().Refresh(t.Context(), dead)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	if s := refresh(first); s.Generation != first.Generation || l.n.Load() != 1 {
		t.Error("a living session is believed to be dead")
	}
	a.Expire("jira")
	if s := get(t, a, client.Query{Site: "jira"}); s.Generation != first.Generation {
		t.Error("the agent knows without a report")
	}
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if s, err := a.Client().Refresh(t.Context(), first); err != nil || s.Header().Get("Cookie") != "s=CANARY-2" {
				t.Errorf("%v, %v", s, err)
			}
		})
	}
	wg.Wait()
	second := refresh(first)
	if second.Generation == first.Generation || l.n.Load() != 2 {
		t.Errorf("%d logins", l.n.Load())
	}
	if s := refresh(second); s.Generation != second.Generation || l.n.Load() != 2 {
		t.Error("the new session is taken for dead")
	}
	// A late report about the first does not end the second, dead or not.
	a.Expire("jira")
	if s := refresh(first); s.Generation != second.Generation || l.n.Load() != 2 {
		t.Error("a report about another generation counts")
	}
	failure := error(&api.Error{Code: api.PasswordExpired, Detail: "detail of it", Remedy: "do this"})
	l.fail.Store(&failure)
	_, err := a.Client().Refresh(t.Context(), second)
	if e := api.AsError(err); e == nil || e.Code != api.PasswordExpired || e.Detail != "detail of it" || e.Remedy != "do this" {
		t.Errorf("%v", err)
	}
	failure = fmt.Errorf("no code")
	l.fail.Store(&failure)
	if _, err := a.Client().Session(t.Context(), client.Query{Site: "jira"}); api.CodeOf(err) != api.Unknown {
		t.Errorf("%v", err)
	}
	// By force, and whichever is current.
	l.fail.Store(nil)
	third := get(t, a, client.Query{Site: "jira"})
	resp, err := sessions(t, a).RefreshSession(t.Context(), &pb.RefreshSessionRequest{Site: "jira", Force: true})
	if err != nil || resp.GetSession().GetGeneration() == third.Generation {
		t.Errorf("%v, %v", resp, err)
	}
}

func TestCalls(t *testing.T) {
	a, l := start(t, "jira", "https://jira.example", "wiki", "https://wiki.example")
	s := sessions(t, a)
	if _, err := s.GetSession(t.Context(), &pb.GetSessionRequest{Site: "jira", CachedOnly: true}); api.CodeOf(err) != api.NotCached || l.n.Load() != 0 {
		t.Errorf("%v after %d logins", err, l.n.Load())
	}
	if r, err := s.Login(t.Context(), &pb.LoginRequest{Site: "jira"}); err != nil || r.GetSession().GetUser() != "build" {
		t.Errorf("%v, %v", r, err)
	}
	if r, err := s.Login(t.Context(), &pb.LoginRequest{Site: "jira"}); err != nil || l.n.Load() != 2 {
		t.Errorf("%v, %v after %d logins", r, err, l.n.Load())
	}
	latched := error(&api.Error{Code: api.Latched, Detail: "refused", Remedy: "do this"})
	l.fail.Store(&latched)
	if _, err := s.GetSession(t.Context(), &pb.GetSessionRequest{Site: "wiki"}); api.CodeOf(err) != api.Latched {
		t.Errorf("%v", err)
	}
	list, err := s.ListSessions(t.Context(), &pb.ListSessionsRequest{})
	if err != nil || len(list.GetSessions()) != 2 {
		t.Fatalf("%v, %v", list, err)
	}
	if m := list.GetSessions()[0]; m.GetSite() != "jira" || m.GetUrl() != "https://jira.example" || m.GetState() != pb.SessionState_SESSION_STATE_LIVE || m.GetUser() != "build" || m.GetGeneration() == "" {
		t.Errorf("%v", m)
	}
	if m := list.GetSessions()[1]; m.GetSite() != "wiki" || m.GetState() != pb.SessionState_SESSION_STATE_LATCHED || m.GetCode() != "latched" || m.GetDetail() != "refused" || m.GetRemedy() != "do this" {
		t.Errorf("%v", m)
	}
	if d, err := s.DeleteSession(t.Context(), &pb.DeleteSessionRequest{Site: "jira"}); err != nil || !d.GetHadSession() || !d.GetEnded() {
		t.Error(err)
	}
	if _, err := s.GetSession(t.Context(), &pb.GetSessionRequest{Site: "jira", CachedOnly: true}); api.CodeOf(err) != api.NotCached {
		t.Errorf("after DeleteSession: %v", err)
	}
}

// TestValidity: a session that ends too soon is made anew.
func TestValidity(t *testing.T) {
	a, _ := start(t)
	n := 0
	a.AddSite(Site{Name: "jira", URL: "https://jira.example", Login: func() (Session, error) {
		n++
		return Session{Header: http.Header{"Cookie": {"s=CANARY-1"}}, ExpireTime: time.Now().Add(time.Hour), Stale: true, NotDurable: true, IdentityUnproven: true}, nil
	}})
	for _, q := range []struct {
		min    time.Duration
		logins int
	}{{0, 1}, {time.Minute, 1}, {2 * time.Hour, 2}, {0, 2}} {
		s := get(t, a, client.Query{Site: "jira", MinValidity: q.min})
		if n != q.logins || time.Until(s.ExpireTime) > time.Hour || s.ExpireTime.IsZero() || !s.Stale || !s.NotDurable || !s.IdentityUnproven {
			t.Errorf("%v: %d logins, %+v", q.min, n, *s)
		}
	}
}

func TestFind(t *testing.T) {
	a, _ := start(t, "jira", "https://one.example/jira", "sub", "https://one.example/jira/sub/", "root", "https://one.example:8443", "twin1", "https://two.example", "twin2", "https://two.example/")
	for _, c := range []struct{ site, url, want string }{
		{"jira", "", "jira"},
		{"jira", "https://ONE.example:443/elsewhere", "jira"},
		{"", "https://one.example/jira", "jira"},
		{"", "https://one.example/jira/rest", "jira"},
		{"", "https://one.example/jira/sub/x", "sub"},
		{"", "https://one.example/jira/subway", "jira"},
		{"", "https://one.example:8443/x", "root"},
	} {
		if s := get(t, a, client.Query{Site: c.site, URL: c.url}); s.Site != c.want {
			t.Errorf("%v: found %s", c, s.Site)
		}
	}
	for _, c := range []struct {
		site, url string
		code      api.Code
	}{
		{"", "", api.InvalidRequest},
		{"jira", "https://two.example/", api.InvalidRequest},
		{"jira", "http://one.example/jira", api.InvalidRequest},
		{"jira", "/jira", api.InvalidRequest},
		{"", "ftp://one.example/jira", api.InvalidRequest},
		{"none", "", api.UnknownSite},
		{"none", "https://one.example/jira", api.UnknownSite},
		{"", "https://one.example/jirax", api.UnknownSite},
		{"", "https://two.example/x", api.AmbiguousSite},
	} {
		if _, err := a.Client().Session(t.Context(), client.Query{Site: c.site, URL: c.url}); api.CodeOf(err) != c.code {
			t.Errorf("%v: %v", c, err)
		}
	}
}

// TestWatch: the current session, then each change; the end, when there is none.
func TestWatch(t *testing.T) {
	a, l := start(t, "jira", "https://jira.example")
	s := sessions(t, a)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stream, err := s.WatchSession(ctx, &pb.WatchSessionRequest{Site: "jira"})
	if err != nil {
		t.Fatal(err)
	}
	next := func(cookie string) {
		t.Helper()
		m, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		for _, h := range m.GetSession().GetHeaders() {
			if h.GetSecret() != (h.GetName() == "Cookie") || h.GetSecret() && string(h.GetValue()) != cookie {
				t.Errorf("%s: got %v", cookie, h)
			}
		}
	}
	next("s=CANARY-1")
	a.Renew("jira")
	next("s=CANARY-2")
	if _, err := s.DeleteSession(t.Context(), &pb.DeleteSessionRequest{Site: "jira"}); err != nil {
		t.Error(err)
	}
	next("s=CANARY-3")
	latched := error(&api.Error{Code: api.Latched, Detail: "refused"})
	l.fail.Store(&latched)
	a.Renew("jira")
	if _, err := stream.Recv(); api.CodeOf(err) != api.Latched || l.n.Load() != 4 {
		t.Errorf("%v after %d logins", err, l.n.Load())
	}
	for site, code := range map[string]api.Code{"jira": api.Latched, "none": api.UnknownSite} {
		stream, err := s.WatchSession(ctx, &pb.WatchSessionRequest{Site: site})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); api.CodeOf(err) != code {
			t.Errorf("%s: %v", site, err)
		}
	}
	l.fail.Store(nil)
	if stream, err = s.WatchSession(ctx, &pb.WatchSessionRequest{Site: "jira"}); err != nil {
		t.Fatal(err)
	}
	next("s=CANARY-6")
	cancel()
	if _, err := stream.Recv(); api.CodeOf(err) != api.Deadline {
		t.Errorf("%v", err)
	}
}

// TestAway: Stop and Restart keep the sessions, and Close leaves nothing.
func TestAway(t *testing.T) {
	a, l := start(t, "jira", "https://jira.example")
	first := get(t, a, client.Query{Site: "jira"})
	a.Stop()
	if _, err := (&client.Client{Socket: a.Socket()}).Session(t.Context(), client.Query{Site: "jira"}); api.CodeOf(err) != api.NoAgent {
		t.Errorf("%v", err)
	}
	a.Stop()
	for range 2 {
		if err := a.Restart(); err != nil {
			t.Fatal(err)
		}
		if s := get(t, a, client.Query{Site: "jira"}); s.Generation != first.Generation || l.n.Load() != 1 {
			t.Errorf("%v after %d logins", s, l.n.Load())
		}
	}
	if servers, err := api.CheckSocket(a.Socket()); err != nil {
		t.Errorf("%v, %v", servers, err)
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Dir(a.Socket())); !os.IsNotExist(err) {
		t.Errorf("the directory is left: %v", err)
	}
}

// TestLoginOutlivesCaller: who leaves does not end the login of others.
func TestLoginOutlivesCaller(t *testing.T) {
	a, _ := start(t)
	begun, finish := make(chan struct{}), make(chan struct{})
	a.AddSite(Site{Name: "jira", URL: "https://jira.example", Login: func() (Session, error) {
		close(begun)
		<-finish
		return Session{Header: http.Header{"Cookie": {"s=CANARY-1"}}}, nil
	}})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-begun
		cancel()
	}()
	if _, err := a.Client().Session(ctx, client.Query{Site: "jira"}); api.CodeOf(err) != api.Deadline {
		t.Errorf("%v", err)
	}
	// Nor does one who waits for it wait for ever.
	ctx, cancel = context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := a.Client().Session(ctx, client.Query{Site: "jira"}); api.CodeOf(err) != api.Deadline {
		t.Errorf("%v", err)
	}
	close(finish)
	get(t, a, client.Query{Site: "jira"})
}

// TestStopWaits: Stop does not leave a login behind.
func TestStopWaits(t *testing.T) {
	a, _ := start(t)
	begun, finish, stopped := make(chan struct{}), make(chan struct{}), make(chan struct{})
	var ended atomic.Bool
	a.AddSite(Site{Name: "jira", URL: "https://jira.example", Login: func() (Session, error) {
		close(begun)
		<-finish
		for range 1000 {
			runtime.Gosched()
		}
		ended.Store(true)
		return Session{}, nil
	}})
	go func() {
		defer close(stopped)
		<-begun
		a.Stop()
	}()
	// The caller loses the agent although its login goes on.
	if _, err := sessions(t, a).Login(t.Context(), &pb.LoginRequest{Site: "jira"}); api.CodeOf(err) != api.NoAgent {
		t.Errorf("%v", err)
	}
	close(finish)
	if <-stopped; !ended.Load() {
		t.Error("the login goes on")
	}
}

func TestMistakes(t *testing.T) {
	a, l := start(t, "jira", "https://jira.example")
	for name, mistake := range map[string]func(){
		"taken":    func() { a.AddSite(Site{Name: "jira", URL: "https://x.example", Login: l.login}) },
		"name":     func() { a.AddSite(Site{Name: "a b", URL: "https://x.example", Login: l.login}) },
		"URL":      func() { a.AddSite(Site{Name: "x", URL: "/x", Login: l.login}) },
		"no login": func() { a.AddSite(Site{Name: "x", URL: "https://x.example"}) },
		"Expire":   func() { a.Expire("x") },
		"Renew":    func() { a.Renew("x") },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			mistake()
		}()
	}
	get(t, a, client.Query{Site: "jira"}) // no lock is left behind
}
