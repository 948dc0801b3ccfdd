package main

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/sessionctl/sessionctl/api"
	pb "github.com/sessionctl/sessionctl/api/sessionctl/v1"
	"github.com/sessionctl/sessionctl/daemon/daemontest"
)

// agent is a fake whose every word tries to drive the terminal.
type agent struct {
	pb.UnimplementedSessionServiceServer
	pb.UnimplementedTicketServiceServer
	pb.UnimplementedAgentServiceServer
	login time.Time
}

const evil = "\x1b[2J\u202e\n"

func (a *agent) session(site string) (*pb.Session, error) {
	s := hostile()
	s.Site, s.User, s.LoginTime = site, "build"+evil, timestamppb.New(a.login)
	switch site {
	case "app", "9lives":
	case "soon":
		s.ExpireTime = timestamppb.New(a.login.Add(time.Hour))
	case "empty":
		s.Headers, s.Cookies = nil, nil
	default:
		st, err := status.New(codes.NotFound, "no site"+evil).WithDetails(&errdetails.ErrorInfo{
			Domain: api.ErrorDomain, Reason: api.UnknownSite.Reason(), Metadata: map[string]string{"remedy": "look" + evil}})
		if err != nil {
			return nil, err
		}
		return nil, st.Err()
	}
	return s, nil
}

func (a *agent) GetSession(_ context.Context, r *pb.GetSessionRequest) (*pb.GetSessionResponse, error) {
	s, err := a.session(r.GetSite())
	return &pb.GetSessionResponse{Session: s}, err
}

func (a *agent) Login(_ context.Context, r *pb.LoginRequest) (*pb.LoginResponse, error) {
	s, err := a.session(r.GetSite())
	return &pb.LoginResponse{Session: s}, err
}

func (a *agent) RefreshSession(_ context.Context, r *pb.RefreshSessionRequest) (*pb.RefreshSessionResponse, error) {
	s, err := a.session(r.GetSite())
	return &pb.RefreshSessionResponse{Session: s}, err
}

func (a *agent) DeleteSession(_ context.Context, r *pb.DeleteSessionRequest) (*pb.DeleteSessionResponse, error) {
	_, err := a.session(r.GetSite())
	return &pb.DeleteSessionResponse{HadSession: true, Idp: "sso" + evil}, err
}

func (a *agent) ListSessions(context.Context, *pb.ListSessionsRequest) (*pb.ListSessionsResponse, error) {
	return &pb.ListSessionsResponse{Sessions: []*pb.SessionSummary{
		{Site: "app", Kind: "spnego" + evil, Url: "https://app.corp.example/" + evil, User: "build" + evil, State: pb.SessionState_SESSION_STATE_LIVE, IdentityUnproven: true,
			Credential: "c" + evil, Idp: "i" + evil},
		{Site: "other", Code: "denied" + evil, Detail: "seen" + evil, Remedy: "do" + evil, NotDurable: true},
	}, Idps: []*pb.SessionSummary{{Site: "sso" + evil, Kind: "form" + evil, Detail: "seen" + evil, Code: "denied" + evil}}}, nil
}

func (a *agent) ListTickets(context.Context, *pb.ListTicketsRequest) (*pb.ListTicketsResponse, error) {
	return &pb.ListTicketsResponse{Tickets: []*pb.Ticket{{Client: "c" + evil, Server: "s" + evil, Enctype: "e" + evil}}}, nil
}

func (a *agent) GetStatus(context.Context, *pb.GetStatusRequest) (*pb.GetStatusResponse, error) {
	return &pb.GetStatusResponse{Version: api.Version + evil, ConfigFiles: []string{"f" + evil}, Warnings: []string{"w" + evil},
		Store: &pb.StoreStatus{Path: "p" + evil, KeySource: "k" + evil}, ReloadCode: "denied" + evil, ReloadDetail: "d" + evil}, nil
}

func (a *agent) Reload(context.Context, *pb.ReloadRequest) (*pb.ReloadResponse, error) {
	return &pb.ReloadResponse{Added: []string{"a" + evil}, Changed: []string{"c" + evil}, Removed: []string{"r" + evil}, Warnings: []string{"w" + evil}}, nil
}

func listen(t *testing.T) (net.Listener, string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "admin")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "agent.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	return l, path
}

// serve serves a fake agent and makes its socket the one that is found.
func serve(t *testing.T) (socket string) {
	t.Helper()
	l, socket := listen(t)
	s := grpc.NewServer()
	a := &agent{login: time.Now()}
	pb.RegisterSessionServiceServer(s, a)
	pb.RegisterTicketServiceServer(s, a)
	pb.RegisterAgentServiceServer(s, a)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := s.Serve(l); err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(func() {
		s.Stop()
		<-done
	})
	t.Setenv(api.SocketVariable, socket)
	return socket
}

// TestHostileAgent: nothing that an agent or a site says reaches a terminal
// as it is, or makes a line of its own.
func TestHostileAgent(t *testing.T) {
	serve(t)
	for _, args := range [][]string{
		{"list"}, {"status"}, {"tickets"}, {"version"}, {"login", "app"}, {"refresh", "app"}, {"logout", "app"}, {"logout", "app", "--idp"}, {"reload"}, {"get", "nosuch"}, {"login", "nosuch"},
		{"__complete", "login", ""}, {"__complete", "login", "--credential", ""},
	} {
		out, errs, _ := call(args...)
		if out+errs == "" || strings.ContainsAny(out+errs, "\x1b\u202e") || strings.Contains(out+errs, "\n\n\n") {
			t.Errorf("%q: %q, %q", args, out, errs)
		}
	}
	if _, errs, exit := call("get", "nosuch"); errs != "sessionctl: nosuch: no site?[2J?? (unknown_site)\n  next: look?[2J??\n" || exit != api.ExitUnknown {
		t.Errorf("%q, %d", errs, exit)
	}
}

func TestList(t *testing.T) {
	serve(t)
	out, errs, exit := call("list")
	if lines := strings.Split(out, "\n"); exit != 0 || errs != "" || len(lines) != 6 ||
		!strings.HasSuffix(lines[1], "  idp i?[2J??, identity_unproven") || !strings.HasSuffix(lines[2], "  denied?[2J??, not_durable") || lines[4] != "  next: do?[2J??" {
		t.Errorf("%d %q\n%s", exit, errs, out)
	}
	if out, _, _ := call("list", "-o", "json"); strings.Count(out, `"identity_unproven": true`) != 1 {
		t.Errorf("%s", out)
	}
}

func TestSiteVerbs(t *testing.T) {
	serve(t)
	for verb, want := range map[string]string{
		"login":   "sessionctl: app: logged in as build?[2J??\n",
		"refresh": "sessionctl: app: the session of build?[2J?? was made ",
		"logout":  "sessionctl: app: the agent has forgotten the session",
	} {
		if out, errs, exit := call(verb, "app"); out != "" || exit != 0 || !strings.HasPrefix(errs, want) {
			t.Errorf("%s: %q, %q, %d", verb, out, errs, exit)
		}
		if out, errs, exit := call(verb, "nosuch"); out != "" || exit != api.ExitUnknown || !strings.HasPrefix(errs, "sessionctl: nosuch: no site") {
			t.Errorf("%s: %q, %q, %d", verb, out, errs, exit)
		}
	}
}

// TestEnvFailure: whatever goes wrong, eval removes the variable and fails.
func TestEnvFailure(t *testing.T) {
	serve(t)
	const gone = "unset APP_COOKIE&&false\n"
	for _, c := range []struct {
		args string
		out  string
		exit int
	}{
		{"get nosuch -o env", "unset NOSUCH_COOKIE&&false\n", api.ExitUnknown},
		{"get empty -o env", "unset EMPTY_COOKIE&&false\n", api.ExitPerson},
		{"get -o env 9lives", "false\n", api.ExitUsage},
		{"get app -o env --socket /nonexistent/agent.sock", gone, api.ExitNoAgent},
		{"get app -o env --no-such-flag", gone, api.ExitUsage},
		{"get app --output=env --timeout 0", gone, api.ExitUsage},
		{"get app -oenv -o yaml", gone, api.ExitUsage},
		{"get app x -o env", gone, api.ExitUsage},
		{"get -o env", "false\n", api.ExitUsage},
		{"get -o env a=b", "false\n", api.ExitUsage},
		{"get -o env https://nosuch.corp.example/x", "false\n", api.ExitUnknown},
		{"get nosuch", "", api.ExitUnknown},
		{"get nosuch -o curl", "", api.ExitUnknown},
		{"get empty -o httpie", "", api.ExitPerson},
	} {
		out, errs, exit := call(strings.Fields(c.args)...)
		if out != c.out || exit != c.exit || !strings.HasPrefix(errs, "sessionctl: ") {
			t.Errorf("%s: %q, %d; %q", c.args, out, exit, errs)
		}
	}
	t.Run("skew", func(t *testing.T) {
		t.Setenv("SESSIONCTL_VERSION", "v0.0.0-other")
		for _, args := range [][]string{{"get", "app", "-o", "env"}, {"get", "app", "-o", "env", "--flag-of-tomorrow"}} {
			if out, errs, exit := call(args...); out != gone || exit != api.ExitOther || !strings.Contains(errs, "(version_skew)") {
				t.Errorf("%q: %q, %q, %d", args, out, errs, exit)
			}
		}
	})
	t.Run("sh", func(t *testing.T) {
		daemontest.Require(t, "dash")
		out, _, _ := call("get", "nosuch", "-o", "env")
		got, err := exec.Command("dash", "-c", `NOSUCH_COOKIE=old; eval "$0"; echo "$? [$NOSUCH_COOKIE]"`, out).Output()
		if err != nil || string(got) != "1 []\n" {
			t.Errorf("%q, %v", got, err)
		}
	})
}

func TestEndsSooner(t *testing.T) {
	serve(t)
	for args, warned := range map[string]bool{
		"get soon --min-validity 7200": true, "get soon --min-validity 30m": false, "get soon": false, "get app --min-validity 2h": false,
	} {
		out, errs, exit := call(strings.Fields(args)...)
		if out == "" || exit != 0 || strings.HasPrefix(errs, "sessionctl: soon: the session ends at ") != warned || !warned && errs != "" {
			t.Errorf("%s: %q, %d", args, errs, exit)
		}
	}
}

func TestCompletion(t *testing.T) {
	socket := serve(t)
	t.Setenv(api.SocketVariable, "/nonexistent/agent.sock")
	for _, c := range []struct {
		args []string
		has  string
		not  string
	}{
		{[]string{"raw", "--socket", socket, ""}, "app\t", ""},
		{[]string{"raw", "--socket=" + socket, "--cached", ""}, "app\t", ""},
		{[]string{"--socket", socket, "raw", ""}, "app\t", ""},
		{[]string{"raw", "--socket", socket, "--min-validity", "5", ""}, "app\t", ""},
		{[]string{"raw", "--socket", socket, "app", ""}, "", "app\t"},
		{[]string{"raw", "--socket", socket, "--min-validity", ""}, "", "app\t"},
		{[]string{"get", "--socket", socket, ""}, "app\t", ""},
		{[]string{"login", "--retry", "--socket", socket, ""}, "app\t", ""},
		{[]string{"raw", "--"}, "--min-validity\t", "--var"},
		{[]string{"raw", "app", "--c"}, "--cached\t", "--min-validity"},
		{[]string{"cookie", "-"}, "--inline\t", "--cached"},
		{[]string{"header", "--"}, "--timeout\t", "--cached"},
		{[]string{"credential", ""}, "erase\n", "app\t"},
		{[]string{"credential", "get", "--socket", socket, ""}, "", "app\t"},
		{[]string{"get", "app", "-o", ""}, "httpie\n", ""},
		{[]string{"login", "--socket", socket, "app", "--credential", ""}, "c?[2J??\tbuild", ""},
		{[]string{"logout", "--socket", socket, "--credential", ""}, "c?[2J??\tbuild", ""},
		{[]string{"refresh", "--socket", socket, "other", "--credential", ""}, ":", "build"},
		{[]string{"reload", ""}, ":", "app\t"},
		{[]string{"status", "--w"}, "--watch\t", "app\t"},
	} {
		out, _, exit := call(append([]string{"__complete"}, c.args...)...)
		if exit != 0 || !strings.Contains(out, c.has) || c.not != "" && strings.Contains(out, c.not) || strings.Contains(out, "`") {
			t.Errorf("%q: %d %q", c.args, exit, out)
		}
	}
	if out, _, _ := call("__complete", "raw", "--"); strings.Count(out, "--timeout\t") != 1 {
		t.Errorf("a flag is offered twice: %q", out)
	}
}

// TestFlood: an agent that sends and sends and never reads does not keep a
// command from ending in time.
func TestFlood(t *testing.T) {
	l, socket := listen(t)
	done := make(chan struct{})
	accepted := make(chan net.Conn, 1)
	go func() {
		defer close(done)
		c, err := l.Accept()
		if err != nil {
			return
		}
		accepted <- c
		f := http2.NewFramer(c, nil)
		for err = f.WriteSettings(); err == nil; err = f.WritePing(false, [8]byte{}) {
		}
	}()
	begin := time.Now()
	_, errs, exit := call("list", "--socket", socket, "--timeout", "1s")
	if took := time.Since(begin); exit != api.ExitLater || took > 4*time.Second {
		t.Errorf("%q, %d after %v", errs, exit, took)
	}
	l.Close()
	select {
	case c := <-accepted:
		c.Close()
	default:
		t.Error("it never connected")
	}
	<-done
}
