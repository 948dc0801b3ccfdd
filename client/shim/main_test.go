package shim

import (
	"bytes"
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"

	sessionctlv1 "github.com/sessionctl/sessionctl/api/sessionctl/v1"
)

func TestMain(m *testing.M) {
	// What a developer has set must not decide a test.
	for _, v := range []string{"SESSIONCTL_SOCKET", "SESSIONCTL_SHELL"} {
		os.Unsetenv(v)
	}
	goleak.VerifyTestMain(m)
}

// socketPath returns a path for a socket in a directory of its own.
func socketPath(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "shim")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "agent.sock")
}

func listen(t *testing.T, socket string) net.Listener {
	t.Helper()
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// agent is a SessionService whose answers are functions.
type agent struct {
	sessionctlv1.UnimplementedSessionServiceServer
	get     func(context.Context, *sessionctlv1.GetSessionRequest) (*sessionctlv1.GetSessionResponse, error)
	refresh func(context.Context, *sessionctlv1.RefreshSessionRequest) (*sessionctlv1.RefreshSessionResponse, error)
}

func (a *agent) GetSession(ctx context.Context, r *sessionctlv1.GetSessionRequest) (*sessionctlv1.GetSessionResponse, error) {
	return a.get(ctx, r)
}

func (a *agent) RefreshSession(ctx context.Context, r *sessionctlv1.RefreshSessionRequest) (*sessionctlv1.RefreshSessionResponse, error) {
	return a.refresh(ctx, r)
}

// serve serves a on l with grpc-go until the test ends.
func serve(t *testing.T, l net.Listener, a *agent) *grpc.Server {
	t.Helper()
	s := grpc.NewServer()
	sessionctlv1.RegisterSessionServiceServer(s, a)
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
	return s
}

// session of a site with one cookie.
func sessionOf(site, cookie string) *sessionctlv1.GetSessionResponse {
	return &sessionctlv1.GetSessionResponse{Session: &sessionctlv1.Session{
		Site: site, Generation: "g1",
		Headers: []*sessionctlv1.Header{{Name: "Cookie", Value: []byte(cookie), Secret: true}},
	}}
}

// clock stands still until somebody sleeps.
type clock struct {
	now    time.Time
	pauses []time.Duration
	during func(pause int) // called while sleeping
}

func (c *clock) sleep(d time.Duration) {
	c.now = c.now.Add(d)
	c.pauses = append(c.pauses, d)
	if c.during != nil {
		c.during(len(c.pauses))
	}
}

func callerAt(socket string, timeout time.Duration, c *clock) *caller {
	c.now = time.Now()
	return &caller{socket: socket, deadline: c.now.Add(timeout), now: func() time.Time { return c.now }, sleep: c.sleep}
}

// run runs sessionctl inside the test's process.
func run(stdin string, args ...string) (stdout, stderr string, status int) {
	var out, err bytes.Buffer
	status = Run(append([]string{"sessionctl"}, args...), strings.NewReader(stdin), &out, &err)
	return out.String(), err.String(), status
}
