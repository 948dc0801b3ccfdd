package client

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sessionctl/sessionctl/api"
	pb "github.com/sessionctl/sessionctl/api/sessionctl/v1"
	"github.com/sessionctl/sessionctl/daemon/daemontest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// agent is a fake: it fails as it is told, in the form the API documents.
type agent struct {
	pb.UnimplementedAgentServiceServer
	pb.UnimplementedSessionServiceServer
	fail  func(context.Context) error
	calls atomic.Int32
	// conn is the last connection that was made to it.
	conn atomic.Pointer[net.Conn]
}

// Every call of the SessionService is answered as GetStatus is.
func (a *agent) answer(ctx context.Context) error {
	_, err := a.GetStatus(ctx, nil)
	return err
}

func (a *agent) Login(ctx context.Context, _ *pb.LoginRequest) (*pb.LoginResponse, error) {
	return &pb.LoginResponse{}, a.answer(ctx)
}

func (a *agent) DeleteSession(ctx context.Context, _ *pb.DeleteSessionRequest) (*pb.DeleteSessionResponse, error) {
	return &pb.DeleteSessionResponse{}, a.answer(ctx)
}

func (a *agent) RefreshSession(ctx context.Context, _ *pb.RefreshSessionRequest) (*pb.RefreshSessionResponse, error) {
	return &pb.RefreshSessionResponse{}, a.answer(ctx)
}

func (a *agent) GetSession(ctx context.Context, _ *pb.GetSessionRequest) (*pb.GetSessionResponse, error) {
	return &pb.GetSessionResponse{}, a.answer(ctx)
}

// listener remembers the connections that it accepts.
type listener struct {
	net.Listener
	agent *agent
}

func (l listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		l.agent.conn.Store(&c)
	}
	return c, err
}

func (a *agent) GetStatus(ctx context.Context, _ *pb.GetStatusRequest) (*pb.GetStatusResponse, error) {
	a.calls.Add(1)
	if a.fail != nil {
		if err := a.fail(ctx); err != nil {
			return nil, err
		}
	}
	return &pb.GetStatusResponse{Version: "v1"}, nil
}

func socketPath(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "client")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "agent.sock")
}

func (a *agent) serve(t *testing.T, path string) *grpc.Server {
	t.Helper()
	return serveOn(t, path, a)
}

// services are what a fake answers; base is the agent in it.
type services interface {
	pb.AgentServiceServer
	pb.SessionServiceServer
	base() *agent
}

func (a *agent) base() *agent { return a }

func serveOn(t *testing.T, path string, a services) *grpc.Server {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	pb.RegisterAgentServiceServer(s, a)
	pb.RegisterSessionServiceServer(s, a)
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.Serve(listener{l, a.base()})
	}()
	t.Cleanup(func() {
		s.Stop()
		<-done
	})
	return s
}

func ask(t *testing.T, c *Client) error {
	t.Helper()
	s, err := c.Agent()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_, err = s.GetStatus(ctx, &pb.GetStatusRequest{})
	return err
}

func coded(code api.Code, remedy string) error {
	st, err := status.New(codes.Code(code.GRPC()), "detail of it").WithDetails(&errdetails.ErrorInfo{
		Domain: api.ErrorDomain, Reason: code.Reason(), Metadata: map[string]string{"remedy": remedy}})
	if err != nil {
		panic(err)
	}
	return st.Err()
}

func TestErrors(t *testing.T) {
	a := &agent{}
	path := socketPath(t)
	a.serve(t, path)
	c := &Client{Socket: path}
	defer c.Close()
	if err := ask(t, c); err != nil {
		t.Fatal(err)
	}
	for _, code := range []api.Code{api.KDCUnreachable, api.BadCredentials, api.UnknownSite, api.Denied, api.Latched, "a_code_of_the_future"} {
		a.calls.Store(0)
		a.fail = func(context.Context) error { return coded(code, "do this") }
		e := api.AsError(ask(t, c))
		if e.Code != code || e.Detail != "detail of it" || e.Remedy != "do this" {
			t.Errorf("%s: %+v", code, e)
		}
		if n := a.calls.Load(); n != 1 {
			t.Errorf("%s: called %d times", code, n)
		}
	}
	for grpcCode, code := range map[codes.Code]api.Code{codes.DeadlineExceeded: api.Deadline, codes.Unimplemented: api.VersionSkew, codes.Internal: api.Unknown} {
		a.fail = func(context.Context) error { return status.Error(grpcCode, "x") }
		if err := ask(t, c); api.CodeOf(err) != code || api.AsError(err).Remedy == "" {
			t.Errorf("%v: %+v, want %s and a next step", grpcCode, err, code)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	a.fail = func(ctx context.Context) error {
		cancel()
		<-ctx.Done()
		return ctx.Err()
	}
	s, err := c.Agent()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.GetStatus(ctx, &pb.GetStatusRequest{}); api.CodeOf(err) != api.Deadline || api.AsError(err).Remedy == "" {
		t.Errorf("cancelled: %v", err)
	}
	// Another domain's reason is none of ours.
	a.fail = func(context.Context) error {
		st, _ := status.New(codes.Internal, "x").WithDetails(&errdetails.ErrorInfo{Domain: "other", Reason: "DENIED"})
		return st.Err()
	}
	if err := ask(t, c); api.CodeOf(err) != api.Unknown {
		t.Errorf("another domain: %v", err)
	}
}

func (a *agent) WatchSession(_ *pb.WatchSessionRequest, stream grpc.ServerStreamingServer[pb.WatchSessionResponse]) error {
	return a.answer(stream.Context())
}

// TestStreamErrors: they have the same form; only the end of a stream is io.EOF.
func TestStreamErrors(t *testing.T) {
	receive := func(ctx context.Context, fail func(*agent, context.Context) error) error {
		a := &agent{}
		a.fail = func(ctx context.Context) error { return fail(a, ctx) }
		path := socketPath(t)
		a.serve(t, path)
		c := &Client{Socket: path}
		defer c.Close()
		s, err := c.Sessions()
		if err != nil {
			t.Fatal(err)
		}
		stream, err := s.WatchSession(ctx, &pb.WatchSessionRequest{})
		if err != nil {
			return err
		}
		_, err = stream.Recv()
		return err
	}
	if err := receive(t.Context(), func(*agent, context.Context) error { return nil }); err != io.EOF {
		t.Errorf("the end: %v", err)
	}
	err := receive(t.Context(), func(*agent, context.Context) error { return coded(api.Latched, "do this") })
	if e := api.AsError(err); e.Code != api.Latched || e.Detail != "detail of it" || e.Remedy != "do this" {
		t.Errorf("%+v", e)
	}
	err = receive(t.Context(), func(*agent, context.Context) error {
		return status.Error(codes.Unavailable, "the agent is stopping")
	})
	if api.CodeOf(err) != api.NoAgent {
		t.Errorf("the agent stops: %v", err)
	}
	err = receive(t.Context(), func(a *agent, ctx context.Context) error {
		(*a.conn.Load()).Close()
		<-ctx.Done()
		return ctx.Err()
	})
	if api.CodeOf(err) != api.NoAgent {
		t.Errorf("the connection breaks: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for _, when := range []string{"under way", "before it began"} {
		err = receive(ctx, func(_ *agent, ctx context.Context) error {
			cancel()
			<-ctx.Done()
			return ctx.Err()
		})
		if api.CodeOf(err) != api.Deadline || !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled %s: %v", when, err)
		}
	}
}

func TestNoAgent(t *testing.T) {
	path := socketPath(t)
	c := &Client{Socket: path}
	defer c.Close()
	if err := ask(t, c); api.CodeOf(err) != api.NoAgent || api.AsError(err).Remedy == "" {
		t.Errorf("no socket: %v", err)
	}
	// A socket that nobody listens on any more.
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	var waited time.Duration
	c.pause = func(_ context.Context, d time.Duration) { waited += d }
	if err := ask(t, c); api.CodeOf(err) != api.NoAgent || !strings.Contains(err.Error(), path) {
		t.Errorf("a dead socket: %v", err)
	}
	if waited < 4*time.Second || waited > 5*time.Second {
		t.Errorf("waited %v for an agent that may be restarting", waited)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	c.pause = func(context.Context, time.Duration) { t.Error("waited for what is not there") }
	if err := ask(t, c); api.CodeOf(err) != api.NoAgent {
		t.Errorf("removed: %v", err)
	}
	// The client heals when an agent comes.
	(&agent{}).serve(t, path)
	if err := ask(t, c); err != nil {
		t.Errorf("an agent came: %v", err)
	}
}

// TestRestart: a call goes through while the agent restarts, even if it is
// under way then, and there is none for a while.
func TestRestart(t *testing.T) {
	path := socketPath(t)
	a := &agent{}
	s := a.serve(t, path)
	c := &Client{Socket: path}
	defer c.Close()
	if err := ask(t, c); err != nil {
		t.Fatal(err)
	}
	s.Stop()
	a.serve(t, path)
	if err := ask(t, c); err != nil {
		t.Error(err)
	}
}

func TestGap(t *testing.T) {
	path := socketPath(t)
	old := &agent{}
	var s *grpc.Server
	stopped := make(chan struct{})
	old.fail = func(ctx context.Context) error {
		go func() {
			defer close(stopped)
			s.Stop()
		}()
		<-ctx.Done()
		return ctx.Err()
	}
	s = old.serve(t, path)
	next := &agent{}
	pauses := 0
	c := &Client{Socket: path, pause: func(context.Context, time.Duration) {
		switch pauses++; pauses {
		case 1:
			<-stopped // the socket is gone
		case 4:
			next.serve(t, path)
		}
	}}
	defer c.Close()
	if err := ask(t, c); err != nil || pauses != 4 || old.calls.Load() != 1 || next.calls.Load() != 1 {
		t.Errorf("%v after %d pauses; the old agent was called %d times, the new one %d times", err, pauses, old.calls.Load(), next.calls.Load())
	}
}

// TestNotRepeated: the connection breaks inside a call. Those that do
// something are made once, whatever became of them.
func TestNotRepeated(t *testing.T) {
	path := socketPath(t)
	a := &agent{}
	a.serve(t, path)
	a.fail = func(ctx context.Context) error {
		(*a.conn.Load()).Close()
		<-ctx.Done()
		return ctx.Err()
	}
	c := &Client{Socket: path, pause: func(context.Context, time.Duration) {}}
	defer c.Close()
	s, err := c.Sessions()
	if err != nil {
		t.Fatal(err)
	}
	for name, call := range map[string]func() error{
		"Login":          func() error { _, err := s.Login(t.Context(), &pb.LoginRequest{}); return err },
		"DeleteSession":  func() error { _, err := s.DeleteSession(t.Context(), &pb.DeleteSessionRequest{}); return err },
		"RefreshSession": func() error { _, err := s.RefreshSession(t.Context(), &pb.RefreshSessionRequest{}); return err },
	} {
		a.calls.Store(0)
		if err := call(); api.CodeOf(err) != api.NoAgent || a.calls.Load() != 1 {
			t.Errorf("%s: %v after %d calls", name, err, a.calls.Load())
		}
	}
	a.calls.Store(0)
	if _, err := s.GetSession(t.Context(), &pb.GetSessionRequest{}); api.CodeOf(err) != api.NoAgent || a.calls.Load() < 5 {
		t.Errorf("GetSession: %v after %d calls", err, a.calls.Load())
	}
}

// TestServices: there is none without an agent, and one may be kept.
func TestServices(t *testing.T) {
	path := socketPath(t)
	c := &Client{Socket: path}
	defer c.Close()
	if s, err := c.Sessions(); s != nil || api.CodeOf(err) != api.NoAgent {
		t.Errorf("%v, %v", s, err)
	}
	if s, err := c.Tickets(); s != nil || api.CodeOf(err) != api.NoAgent {
		t.Errorf("%v, %v", s, err)
	}
	if s, err := c.Agent(); s != nil || api.CodeOf(err) != api.NoAgent {
		t.Errorf("%v, %v", s, err)
	}
	(&agent{}).serve(t, path)
	s, err := c.Agent()
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := s.GetStatus(t.Context(), &pb.GetStatusRequest{}); err != nil {
			t.Error(err)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
}

// A name that begins with @ is a file's, not the abstract namespace's.
func TestNoAbstractSocket(t *testing.T) {
	t.Chdir(t.TempDir())
	abstract, err := net.Listen("unix", "@sessionctl-client-test")
	if err != nil {
		t.Fatal(err)
	}
	defer abstract.Close()
	(&agent{}).serve(t, "./@sessionctl-client-test")
	c := &Client{Socket: "@sessionctl-client-test"}
	defer c.Close()
	if err := ask(t, c); err != nil {
		t.Error(err)
	}
}

func TestUntrusted(t *testing.T) {
	path := socketPath(t)
	(&agent{}).serve(t, path)
	if err := os.Chmod(filepath.Dir(path), 0o777); err != nil {
		t.Fatal(err)
	}
	c := &Client{Socket: path}
	defer c.Close()
	if err := ask(t, c); api.CodeOf(err) != api.UntrustedSocket {
		t.Errorf("a directory open to all: %v", err)
	}
	if err := os.Chmod(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := ask(t, c); err != nil {
		t.Errorf("closed again: %v", err)
	}
}

// TestUntrustedProcess: the socket looks right, but somebody else made it
// listen.
func TestUntrustedProcess(t *testing.T) {
	daemontest.Require(t, "root") // to listen as another user
	path := socketPath(t)
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	if err := syscall.Bind(fd, &syscall.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	// SO_PEERCRED shows who called listen(2).
	done := make(chan error)
	go func() {
		// The thread is thrown away with its identity: it is never unlocked.
		runtime.LockOSThread()
		if _, _, e := syscall.RawSyscall(syscall.SYS_SETRESUID, 4242, 4242, 4242); e != 0 {
			done <- e
			return
		}
		done <- syscall.Listen(fd, 1)
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	c := &Client{Socket: path}
	defer c.Close()
	if err := ask(t, c); api.CodeOf(err) != api.UntrustedSocket || !strings.Contains(err.Error(), "4242") {
		t.Errorf("got %v", err)
	}
}
