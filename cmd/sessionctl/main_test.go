package main

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"go.uber.org/goleak"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sessionctl/sessionctl/api"
	sessionctlv1 "github.com/sessionctl/sessionctl/api/sessionctl/v1"
)

// bin is the directory that holds sessionctl, built as it is released.
var bin string

func TestMain(m *testing.M) {
	for _, v := range []string{"SESSIONCTL_SOCKET", "SESSIONCTL_SHELL", "SESSIONCTL_VERSION"} {
		os.Unsetenv(v)
	}
	os.Exit(func() int {
		var err error
		if bin, err = os.MkdirTemp("", "sctl"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(bin)
		build := exec.Command("go", "build", "-trimpath", "-buildmode=exe", "-ldflags", "-s -w -X github.com/sessionctl/sessionctl/api.Version=v0.0.0-test", "-o", filepath.Join(bin, "sessionctl"), ".")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "%v\n%s", err, out)
			return 1
		}
		code := m.Run()
		if err := goleak.Find(); code == 0 && err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
		return code
	}())
}

// The command is what it is for: small, static, and linked with next to
// nothing.
func TestBinary(t *testing.T) {
	file := filepath.Join(bin, "sessionctl")
	st, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	if st.Size() > 2e6 {
		t.Errorf("%d bytes, more than 2 MB", st.Size())
	}
	f, err := elf.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if f.Type != elf.ET_EXEC {
		t.Errorf("ELF type %v: position independent code starts more slowly", f.Type)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP || p.Type == elf.PT_DYNAMIC {
			t.Errorf("not static: it has %v", p.Type)
		}
	}
	list := exec.Command("go", "list", "-deps", "-f", "{{if not .Standard}}own {{end}}{{.ImportPath}}", ".")
	list.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := list.Output()
	if err != nil {
		t.Fatal(err)
	}
	never := []string{"net", "crypto", "fmt", "encoding/json", "encoding/binary", "os/exec", "os/signal", "os/user", "reflect", "runtime/debug", "runtime/cgo", "log", "flag", "text", "html", "regexp", "testing", "embed", "math/big", "vendor"}
	const module = "github.com/sessionctl/sessionctl/"
	ours := []string{module + "api", module + "client/shim", module + "cmd/sessionctl"}
	deps := strings.Fields(strings.ReplaceAll(string(out), "own ", "own:"))
	if len(deps) < 20 {
		t.Fatalf("go list names only %q", deps)
	}
	for _, dep := range deps {
		if own, ok := strings.CutPrefix(dep, "own:"); ok {
			if !slices.Contains(ours, own) {
				t.Errorf("links %s", own)
			}
			continue
		}
		for _, n := range never {
			if dep == n || strings.HasPrefix(dep, n+"/") {
				t.Errorf("links %s", dep)
			}
		}
	}
}

// site is what the fake agent knows of a site: a session, or a failure.
type site struct {
	session *sessionctlv1.Session
	code    api.Code
	detail  string
	remedy  string
}

// fakeAgent serves sites by name, and by URL those whose URL is the one asked
// for.
type fakeAgent struct {
	sessionctlv1.UnimplementedSessionServiceServer
	sites map[string]site
}

func (a *fakeAgent) GetSession(_ context.Context, r *sessionctlv1.GetSessionRequest) (*sessionctlv1.GetSessionResponse, error) {
	s, err := a.find(r.GetSite(), r.GetUrl())
	if err == nil && r.GetCachedOnly() {
		err = site{code: api.NotCached, detail: "nothing at hand"}.err()
	}
	if err != nil {
		return nil, err
	}
	return &sessionctlv1.GetSessionResponse{Session: s}, nil
}

func (a *fakeAgent) RefreshSession(_ context.Context, r *sessionctlv1.RefreshSessionRequest) (*sessionctlv1.RefreshSessionResponse, error) {
	s, err := a.find(r.GetSite(), r.GetUrl())
	if err != nil {
		return nil, err
	}
	return &sessionctlv1.RefreshSessionResponse{Session: s}, nil
}

func (a *fakeAgent) find(name, url string) (*sessionctlv1.Session, error) {
	s, ok := a.sites[name]
	for _, byURL := range a.sites {
		if url != "" && byURL.session.GetUrl() == url {
			s, ok = byURL, true
		}
	}
	if !ok {
		s = site{code: api.UnknownSite, detail: "no such site", remedy: "sessionctl list"}
	}
	if s.code != "" {
		return nil, s.err()
	}
	return s.session, nil
}

func (s site) err() error {
	info := &errdetails.ErrorInfo{Reason: s.code.Reason(), Domain: api.ErrorDomain, Metadata: map[string]string{}}
	if s.remedy != "" {
		info.Metadata["remedy"] = s.remedy
	}
	st, err := status.New(codes.Code(s.code.GRPC()), s.detail).WithDetails(info)
	if err != nil {
		return err
	}
	return st.Err()
}

// serve starts a fake agent and returns its socket.
func serve(t *testing.T, sites map[string]site) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "sock")
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "agent.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	sessionctlv1.RegisterSessionServiceServer(s, &fakeAgent{sites: sites})
	done := make(chan error)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
		os.RemoveAll(dir)
	})
	return socket
}

func live(name, cookie string) site {
	return site{session: &sessionctlv1.Session{Site: name, User: "svc", Generation: "g1", Url: "https://" + name + ".corp.example/",
		Headers: []*sessionctlv1.Header{{Name: "Cookie", Value: []byte(cookie), Secret: true}}}}
}

func TestScripts(t *testing.T) {
	jira := live("jira", `JSESSIONID="CANARY-a b"; it's=1!`)
	jira.session.Headers = append(jira.session.Headers, &sessionctlv1.Header{Name: "X-Atlassian-Token", Value: []byte("no-check")})
	stale := live("stale", "CANARY-stale")
	stale.session.Stale, stale.session.NotDurable = true, true
	empty := live("empty", "")
	none := live("none", "")
	none.session.Headers = nil
	injected := live("injected", "a=CANARY-1")
	injected.session.Headers = append(injected.session.Headers, &sessionctlv1.Header{Name: "X-Odd", Value: []byte("CANARY-1\r\nSet-Cookie: x")})
	odd := live("odd", "a=CANARY-1")
	odd.session.Headers[0].Name = "Cookie: x\nCookie"
	token := live("token", "")
	token.session.Headers = []*sessionctlv1.Header{{Name: "Authorization", Value: []byte("Bearer CANARY-token"), Secret: true}}
	sites := map[string]site{
		"token": token,
		"jira":  jira, "stale": stale, "empty": empty, "none": none, "injected": injected, "odd": odd,
		"newline": live("newline", "a=CANARY-1\nb=2"), "delete": live("delete", "a=CANARY-\x7f"), "tab": live("tab", "a=CANARY-\t"),
		"latched": {code: api.Latched, detail: "the KDC refused the key of svc@CORP.EXAMPLE", remedy: "sessionctl login latched --retry"},
		"down":    {code: api.KDCUnreachable, detail: "no KDC of CORP.EXAMPLE answers"},
		"denied":  {code: api.Denied, detail: "raw is not allowed"},
		"escape":  {code: api.Server5xx, detail: "\x1b[2J\nbad"},
	}
	socket := serve(t, sites)
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(e *testscript.Env) error {
			if err := os.Symlink(filepath.Join(bin, "sessionctl"), filepath.Join(e.WorkDir, "git-credential-sessionctl")); err != nil {
				return err
			}
			e.Setenv("PATH", bin+string(os.PathListSeparator)+e.Getenv("PATH"))
			e.Setenv("BIN", bin)
			e.Setenv("SESSIONCTL_SOCKET", socket)
			e.Setenv("AGENT", socket)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			// status N COMMAND… runs a command that must end with status N.
			"status": func(ts *testscript.TestScript, neg bool, args []string) {
				if neg || len(args) < 2 {
					ts.Fatalf("usage: status N command…")
				}
				err := ts.Exec(args[1], args[2:]...)
				got := 0
				if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
					got = exit.ExitCode()
				} else if err != nil {
					ts.Fatalf("%v", err)
				}
				if fmt.Sprint(got) != args[0] {
					ts.Fatalf("status %d, want %s", got, args[0])
				}
			},
		},
	})
}
