package main

import (
	"context"
	"os"
	"strings"
	"testing"

	"google.golang.org/grpc"

	"github.com/sessionctl/sessionctl/api"
	pb "github.com/sessionctl/sessionctl/api/sessionctl/v1"
)

// logins is the SessionService of an agent to which everything may be brought.
type logins struct {
	pb.UnimplementedSessionServiceServer
	got chan brought
}

// brought is what LoginRequest and LoginProxyRequest have in common, and for
// which of them.
type brought struct {
	request interface {
		GetSite() string
		GetRetry() bool
		GetPassword() []byte
	}
	proxy bool
}

func (s logins) Login(_ context.Context, r *pb.LoginRequest) (*pb.LoginResponse, error) {
	s.got <- brought{r, false}
	return &pb.LoginResponse{Session: &pb.Session{Site: r.GetSite(), User: "build"}}, nil
}

func (s logins) LoginProxy(_ context.Context, r *pb.LoginProxyRequest) (*pb.LoginProxyResponse, error) {
	s.got <- brought{r, true}
	return &pb.LoginProxyResponse{}, nil
}

// typed makes text what stands on standard input.
func typed(t *testing.T, text string) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteString(text); err != nil { // a pipe holds that much
		t.Fatal(err)
	}
	w.Close()
	old := os.Stdin
	os.Stdin = r
	t.Cleanup(func() {
		os.Stdin = old
		r.Close()
	})
}

// TestLoginProxy: the proxy's password is told from the site's, and asked for.
func TestLoginProxy(t *testing.T) {
	l, socket := listen(t)
	s := logins{got: make(chan brought, 1)}
	serveOn(t, l, func(g *grpc.Server) { pb.RegisterSessionServiceServer(g, s) })
	t.Setenv(api.SocketVariable, socket)
	for _, c := range []struct {
		args  string
		stdin string
		said  string   // begins with
		want  *brought // of its request, whether to retry
	}{
		{"app --proxy --password-stdin", "CANARY-p\n", "sessionctl: app: the proxy's password is kept\n", &brought{&pb.LoginProxyRequest{}, true}},
		{"app --proxy --password-stdin --retry", "CANARY-p", "sessionctl: app: the proxy's password is kept\n", &brought{&pb.LoginProxyRequest{Retry: true}, true}},
		{"app --password-stdin", "CANARY-p\n", "sessionctl: app: logged in as build\n", &brought{&pb.LoginRequest{}, false}},
		{"app --proxy", "CANARY-p\n", "sessionctl: app: --proxy needs --password-stdin", nil},
		{"app --proxy --retry", "CANARY-p\n", "sessionctl: app: --proxy needs --password-stdin", nil},
		{"app --proxy --cookie-stdin", "CANARY-p\n", "sessionctl: app: --cookie-stdin stands alone", nil},
		{"app --proxy --cookie-stdin --password-stdin", "CANARY-p\n", "sessionctl: app: --cookie-stdin stands alone", nil},
		{"app --proxy --password-stdin", "\n", "sessionctl: app: standard input is empty", nil},
		{"app --proxy --password-stdin", strings.Repeat("CANARY-", 5000), "sessionctl: app: standard input is too long", nil},
		{"app --proxy --password-stdin --credential x", "CANARY-p\n", "sessionctl: app: a proxy has a credential of its own", nil},
		{"--proxy --password-stdin", "CANARY-p\n", "sessionctl: exactly one SITE is needed", nil},
		{"app --proxy=CANARY-p --password-stdin", "CANARY-p\n", "sessionctl: ", nil},
	} {
		t.Run(c.args, func(t *testing.T) {
			typed(t, c.stdin)
			out, errs, exit := call(append([]string{"login"}, strings.Fields(c.args)...)...)
			if out != "" || !strings.HasPrefix(errs, c.said) || strings.Contains(errs, "CANARY") {
				t.Errorf("%d %q %q", exit, out, errs)
			}
			select {
			case got := <-s.got:
				r := got.request
				if c.want == nil || exit != 0 || r.GetSite() != "app" || string(r.GetPassword()) != "CANARY-p" || got.proxy != c.want.proxy || r.GetRetry() != c.want.request.GetRetry() {
					t.Errorf("%d; the agent got proxy %t, retry %t, a password of %d bytes", exit, got.proxy, r.GetRetry(), len(r.GetPassword()))
				}
			default:
				if c.want != nil || exit != api.ExitUsage || !strings.Contains(errs, " (invalid_request)\n  next: ") {
					t.Errorf("%d %q, and the agent got nothing", exit, errs)
				}
			}
		})
	}
}
