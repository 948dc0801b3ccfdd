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
	got chan *pb.LoginRequest
}

func (s logins) Login(_ context.Context, r *pb.LoginRequest) (*pb.LoginResponse, error) {
	s.got <- r
	if r.GetProxy() {
		return &pb.LoginResponse{}, nil
	}
	return &pb.LoginResponse{Session: &pb.Session{Site: r.GetSite(), User: "build"}}, nil
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
	s := logins{got: make(chan *pb.LoginRequest, 1)}
	serveOn(t, l, func(g *grpc.Server) { pb.RegisterSessionServiceServer(g, s) })
	t.Setenv(api.SocketVariable, socket)
	for _, c := range []struct {
		args  string
		stdin string
		said  string // begins with
		want  *pb.LoginRequest
	}{
		{"app --proxy --password-stdin", "CANARY-p\n", "sessionctl: app: the proxy's password is kept\n", &pb.LoginRequest{Proxy: true}},
		{"app --proxy --password-stdin --retry", "CANARY-p", "sessionctl: app: the proxy's password is kept\n", &pb.LoginRequest{Proxy: true, Retry: true}},
		{"app --password-stdin", "CANARY-p\n", "sessionctl: app: logged in as build\n", &pb.LoginRequest{}},
		{"app --proxy", "CANARY-p\n", "sessionctl: app: --proxy needs --password-stdin", nil},
		{"app --proxy --retry", "CANARY-p\n", "sessionctl: app: --proxy needs --password-stdin", nil},
		{"app --proxy --cookie-stdin", "CANARY-p\n", "sessionctl: app: --cookie-stdin stands alone", nil},
		{"app --proxy --cookie-stdin --password-stdin", "CANARY-p\n", "sessionctl: app: --cookie-stdin stands alone", nil},
		{"app --proxy --password-stdin", "\n", "sessionctl: app: standard input is empty", nil},
		{"app --proxy --password-stdin", strings.Repeat("CANARY-", 5000), "sessionctl: app: standard input is too long", nil},
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
				if c.want == nil || exit != 0 || got.GetSite() != "app" || string(got.GetPassword()) != "CANARY-p" || got.GetCookie() != nil || got.GetProxy() != c.want.GetProxy() || got.GetRetry() != c.want.GetRetry() {
					t.Errorf("%d; the agent got proxy %t, retry %t, a password of %d bytes", exit, got.GetProxy(), got.GetRetry(), len(got.GetPassword()))
				}
			default:
				if c.want != nil || exit != api.ExitUsage || !strings.Contains(errs, " (invalid_request)\n  next: ") {
					t.Errorf("%d %q, and the agent got nothing", exit, errs)
				}
			}
		})
	}
}
