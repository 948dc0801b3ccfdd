package shim

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/sessionctl/sessionctl/api"
	sessionctlv1 "github.com/sessionctl/sessionctl/api/sessionctl/v1"
	"github.com/sessionctl/sessionctl/daemon/daemontest"
)

func TestMethods(t *testing.T) {
	if methodGetSession != sessionctlv1.SessionService_GetSession_FullMethodName || methodRefreshSession != sessionctlv1.SessionService_RefreshSession_FullMethodName {
		t.Error("the methods are not those of the service")
	}
}

func TestCall(t *testing.T) {
	socket := socketPath(t)
	var got *sessionctlv1.GetSessionRequest
	var md metadata.MD
	var left time.Duration
	serve(t, listen(t, socket), &agent{get: func(ctx context.Context, r *sessionctlv1.GetSessionRequest) (*sessionctlv1.GetSessionResponse, error) {
		got = r
		md, _ = metadata.FromIncomingContext(ctx)
		deadline, _ := ctx.Deadline()
		left = time.Until(deadline)
		return sessionOf("jira", "JSESSIONID=CANARY-ok"), nil
	}})
	out, errs, exit := run("", "raw", "jira", "--socket", socket, "--min-validity=90s", "--cached", "--timeout", "2m")
	if out != "JSESSIONID=CANARY-ok\n" || errs != "" || exit != 0 {
		t.Fatalf("%q, %q, %d", out, errs, exit)
	}
	if got.Site != "jira" || got.Url != "" || got.MinValidity.AsDuration() != 90*time.Second || !got.CachedOnly {
		t.Errorf("the request: %v", got)
	}
	if ua := md.Get("user-agent"); len(ua) != 1 || ua[0] != "sessionctl/"+api.Version {
		t.Errorf("user agent %q", ua)
	}
	if left <= time.Minute || left > 2*time.Minute {
		t.Errorf("the agent was given %v of 2m", left)
	}
	run("", "raw", "--socket", socket, "https://jira.corp.example/x")
	if got.Site != "" || got.Url != "https://jira.corp.example/x" || got.MinValidity != nil || got.CachedOnly {
		t.Errorf("the request by URL: %v", got)
	}
}

// A session that ends too soon, because the site's always do, is served with
// a warning.
func TestEndsSooner(t *testing.T) {
	socket := socketPath(t)
	end := time.Now().Add(time.Hour)
	serve(t, listen(t, socket), &agent{get: func(_ context.Context, r *sessionctlv1.GetSessionRequest) (*sessionctlv1.GetSessionResponse, error) {
		s := sessionOf("jira", "a=CANARY-1")
		if r.Site != "unknown" {
			s.Session.ExpireTime = timestamppb.New(end)
		}
		return s, nil
	}})
	warning := "sessionctl: jira: the session ends at " + end.UTC().Format(time.RFC3339) + ", sooner than asked: the site's sessions do not live longer\n"
	for args, want := range map[string]string{
		"raw jira --min-validity 2h":    warning,
		"header jira --min-validity 2h": warning,
		"raw jira --min-validity 30m":   "",
		"raw jira":                      "",
		"raw unknown --min-validity 2h": "",
	} {
		if out, errs, exit := run("", append(strings.Fields(args), "--socket", socket)...); !strings.Contains(out, "a=CANARY-1\n") || errs != want || exit != 0 {
			t.Errorf("%s: %q, %q, %d; want %q", args, out, errs, exit, want)
		}
	}
}

func TestLargeAnswer(t *testing.T) {
	socket := socketPath(t)
	cookie := "CANARY-" + strings.Repeat("x", 3<<20)
	serve(t, listen(t, socket), &agent{get: func(context.Context, *sessionctlv1.GetSessionRequest) (*sessionctlv1.GetSessionResponse, error) {
		return sessionOf("jira", cookie), nil
	}})
	if out, errs, exit := run("", "raw", "jira", "--socket", socket); out != cookie+"\n" || exit != 0 {
		t.Errorf("%d bytes, %q, %d", len(out), errs, exit)
	}
	cookie += cookie
	out, errs, exit := run("", "raw", "jira", "--socket", socket)
	if out != "" || exit != api.ExitOther || !strings.Contains(errs, "longer than 4194304 bytes") || strings.Contains(errs, "CANARY-") {
		t.Errorf("%d bytes, %q, %d", len(out), errs, exit)
	}
}

func TestStatus(t *testing.T) {
	socket := socketPath(t)
	var fail error
	serve(t, listen(t, socket), &agent{get: func(context.Context, *sessionctlv1.GetSessionRequest) (*sessionctlv1.GetSessionResponse, error) {
		return nil, fail
	}})
	for c := codes.Canceled; c <= codes.Unauthenticated; c++ {
		want := api.Unknown
		switch c {
		case codes.DeadlineExceeded:
			want = api.Deadline
		case codes.Unavailable:
			want = api.NoAgent
		}
		fail = status.Error(c, "naïve\n100 % \x1b[31m")
		_, err := callerAt(socket, time.Minute, new(clock)).call(methodGetSession, nil)
		if api.CodeOf(err) != want {
			t.Errorf("gRPC status %v: %v, want %s", c, err, want)
		}
		if want != api.Deadline && !strings.Contains(err.Error(), "naïve?100 % ?[31m") {
			t.Errorf("gRPC status %v: the message became %q", c, err)
		}
	}
	for _, code := range []api.Code{api.Latched, api.UnknownSite, api.Denied, api.KDCUnreachable, api.Quota, api.Deadline, "code_of_a_newer_agent"} {
		s, err := status.New(codes.Code(code.GRPC()), "what was seen").WithDetails(
			&errdetails.Help{},
			&errdetails.ErrorInfo{Reason: "OTHER", Domain: "elsewhere.example"},
			&errdetails.ErrorInfo{Reason: code.Reason(), Domain: api.ErrorDomain, Metadata: map[string]string{"site": "jira", "remedy": "do\tthis"}})
		if err != nil {
			t.Fatal(err)
		}
		fail = s.Err()
		var clock clock
		_, err = callerAt(socket, time.Minute, &clock).call(methodGetSession, nil)
		var e *api.Error
		if !errors.As(err, &e) || e.Code != code || e.Detail != "what was seen" || e.Remedy != "do?this" {
			t.Errorf("%s became %#v", code, err)
		}
		if len(clock.pauses) != 0 {
			t.Errorf("%s was retried: the agent had answered", code)
		}
	}
	s, err := status.New(codes.Unavailable, "x").WithDetails(&errdetails.ErrorInfo{Reason: "\x1b]0;", Domain: api.ErrorDomain})
	if err != nil {
		t.Fatal(err)
	}
	fail = s.Err()
	if _, errs, exit := run("", "raw", "jira", "--socket", socket); errs != "sessionctl: jira: x (unknown)\n" || exit != api.ExitOther {
		t.Errorf("an odd reason: %q, %d", errs, exit)
	}
}

// The agent is replaced while a call is under way: the call is made again.
func TestRestart(t *testing.T) {
	socket := socketPath(t)
	begun := make(chan struct{})
	old := serve(t, listen(t, socket), &agent{get: func(ctx context.Context, _ *sessionctlv1.GetSessionRequest) (*sessionctlv1.GetSessionResponse, error) {
		close(begun)
		<-ctx.Done()
		return nil, ctx.Err()
	}})
	var group sync.WaitGroup
	defer group.Wait()
	group.Go(func() {
		<-begun
		old.Stop()
	})
	clock := clock{during: func(pause int) {
		if pause == 1 {
			group.Wait() // the old socket is gone
		}
		if pause == 3 {
			serve(t, listen(t, socket), &agent{get: func(context.Context, *sessionctlv1.GetSessionRequest) (*sessionctlv1.GetSessionResponse, error) {
				return sessionOf("jira", "CANARY-second"), nil
			}})
		}
	}}
	message, err := callerAt(socket, time.Minute, &clock).call(methodGetSession, getSession{site: "jira"}.encode())
	if err != nil {
		t.Fatal(err)
	}
	if s, err := decodeSession(message); err != nil || s.headers[0].value != "CANARY-second" {
		t.Errorf("%v, %v", s, err)
	}
	if want := []time.Duration{20e6, 32e6, 51.2e6}; !slices.Equal(clock.pauses, want) {
		t.Errorf("pauses %v, want %v", clock.pauses, want)
	}
}

// A socket that nobody listens on is retried for five seconds, and no longer
// than the caller's own time.
func TestRefused(t *testing.T) {
	socket := socketPath(t)
	l := listen(t, socket)
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	for _, c := range []struct{ timeout, atLeast, atMost time.Duration }{
		{time.Minute, 4 * time.Second, 5 * time.Second},
		{time.Second, time.Second / 2, time.Second},
	} {
		var clock clock
		_, err := callerAt(socket, c.timeout, &clock).call(methodGetSession, nil)
		if api.CodeOf(err) != api.NoAgent || api.AsError(err).Remedy != api.StartHint {
			t.Errorf("%v", err)
		}
		var sum time.Duration
		for _, p := range clock.pauses {
			sum += p
		}
		if sum < c.atLeast || sum > c.atMost || slices.Max(clock.pauses) > maxPause {
			t.Errorf("with %v: paused %v", c.timeout, clock.pauses)
		}
	}
}

func TestNoSocket(t *testing.T) {
	var clock clock
	socket := socketPath(t)
	_, err := callerAt(socket, time.Minute, &clock).call(methodGetSession, nil)
	if api.CodeOf(err) != api.NoAgent || len(clock.pauses) != 0 {
		t.Errorf("%v after %v", err, clock.pauses)
	}
	out, errs, exit := run("", "--socket", socket, "raw", "jira")
	want := "sessionctl: jira: no agent: " + socket + ": no such file or directory (no_agent)\n  next: " + api.StartHint + "\n"
	if out != "" || errs != want || exit != api.ExitNoAgent {
		t.Errorf("%q, %q, %d", out, errs, exit)
	}
}

func TestUntrustedDirectory(t *testing.T) {
	socket := socketPath(t)
	l := listen(t, socket)
	defer l.Close()
	if err := os.Chmod(socket[:len(socket)-len("/agent.sock")], 0o777); err != nil {
		t.Fatal(err)
	}
	if _, errs, exit := run("", "raw", "jira", "--socket", socket); !strings.Contains(errs, "(untrusted_socket)") || exit != api.ExitNoAgent {
		t.Errorf("%q, %d", errs, exit)
	}
}

// The socket is root's, but the process that listens is not.
func TestUntrustedPeer(t *testing.T) {
	daemontest.Require(t, "root") // to listen as another user
	socket := socketPath(t)
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	if err := syscall.Bind(fd, &syscall.SockaddrUnix{Name: socket}); err != nil {
		t.Fatal(err)
	}
	listening := make(chan error)
	go func() {
		// One thread changes its user, listens, and ends with its goroutine.
		runtime.LockOSThread()
		if _, _, e := syscall.RawSyscall(syscall.SYS_SETRESUID, 65534, 65534, 65534); e != 0 {
			listening <- e
			return
		}
		listening <- syscall.Listen(fd, 1)
	}()
	if err := <-listening; err != nil {
		t.Fatal(err)
	}
	if _, errs, exit := run("", "raw", "jira", "--socket", socket); !strings.Contains(errs, "served by uid 65534 (untrusted_socket)") || exit != api.ExitNoAgent {
		t.Errorf("%q, %d", errs, exit)
	}
}

// A name that begins with @ is a file's, not the abstract namespace's.
func TestNoAbstractSocket(t *testing.T) {
	t.Chdir(t.TempDir())
	abstract := listen(t, "@sessionctl-test")
	defer abstract.Close()
	l := listen(t, "./@sessionctl-test")
	serve(t, l, &agent{get: func(context.Context, *sessionctlv1.GetSessionRequest) (*sessionctlv1.GetSessionResponse, error) {
		return sessionOf("jira", "CANARY-file"), nil
	}})
	if out, errs, _ := run("", "raw", "jira", "--socket", "@sessionctl-test"); out != "CANARY-file\n" {
		t.Errorf("%q, %q", out, errs)
	}
}

func TestDeadline(t *testing.T) {
	socket := socketPath(t)
	serve(t, listen(t, socket), &agent{get: func(ctx context.Context, _ *sessionctlv1.GetSessionRequest) (*sessionctlv1.GetSessionResponse, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}})
	out, errs, exit := run("", "raw", "jira", "--socket", socket, "--timeout=50ms")
	if out != "" || exit != api.ExitLater || !strings.Contains(errs, "goes on in the agent (deadline)") {
		t.Errorf("%q, %q, %d", out, errs, exit)
	}
}

// goAwayListener tells when a GOAWAY frame was written.
type goAwayListener struct {
	net.Listener
	sent chan struct{}
}

func (l *goAwayListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	r, w := io.Pipe()
	go func() {
		frames := &reader{from: r}
		for told := false; ; {
			f, err := frames.frame()
			if err != nil {
				return
			}
			if f.kind == frameGoAway && !told {
				told = true
				close(l.sent)
			}
		}
	}()
	return &goAwayConn{c, w}, nil
}

type goAwayConn struct {
	net.Conn
	copy *io.PipeWriter
}

func (c *goAwayConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.copy.Write(b[:n])
	return n, err
}

func (c *goAwayConn) Close() error {
	c.copy.Close()
	return c.Conn.Close()
}

// A call that is under way when the agent is told to stop is still answered.
func TestGracefulStop(t *testing.T) {
	socket := socketPath(t)
	l := &goAwayListener{listen(t, socket), make(chan struct{})}
	var s *grpc.Server
	var group sync.WaitGroup
	defer group.Wait()
	s = serve(t, l, &agent{get: func(context.Context, *sessionctlv1.GetSessionRequest) (*sessionctlv1.GetSessionResponse, error) {
		group.Go(s.GracefulStop)
		<-l.sent
		return sessionOf("jira", "CANARY-last"), nil
	}})
	var clock clock
	message, err := callerAt(socket, time.Minute, &clock).call(methodGetSession, nil)
	if err != nil || !bytes.Contains(message, []byte("CANARY-last")) || len(clock.pauses) != 0 {
		t.Errorf("%q, %v after %v", message, err, clock.pauses)
	}
}

func TestGRPCTimeout(t *testing.T) {
	for d, want := range map[time.Duration]string{
		1: "1m", time.Millisecond: "1m", 1500 * time.Microsecond: "2m", 30 * time.Second: "30000m", maxDuration: "86400000m",
	} {
		if got := grpcTimeout(d); got != want || len(got) > 8+1 {
			t.Errorf("%v: %q, want %q", d, got, want)
		}
	}
}

// A person at a terminal is told once that an answer takes long; it comes all
// the same.
func TestSlowAnswer(t *testing.T) {
	socket := socketPath(t)
	told := make(chan struct{})
	serve(t, listen(t, socket), &agent{get: func(context.Context, *sessionctlv1.GetSessionRequest) (*sessionctlv1.GetSessionResponse, error) {
		<-told
		return sessionOf("jira", "a=CANARY-1"), nil
	}})
	c := newCaller(socket, time.Now().Add(time.Minute), func() { close(told) }) // a second time would panic
	c.slowAt = time.Now()
	if _, err := c.call(methodGetSession, nil); err != nil {
		t.Error(err)
	}
}
