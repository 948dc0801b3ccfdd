package api

import (
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// TestEveryCodeHasAClass reads code.go: a code without a line in the table
// would end as exit status 1.
func TestEveryCodeHasAClass(t *testing.T) {
	f, err := parser.ParseFile(token.NewFileSet(), "code.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	codes := map[Code]bool{}
	ast.Inspect(f, func(n ast.Node) bool {
		v, ok := n.(*ast.ValueSpec)
		if !ok || len(v.Values) != 1 {
			return true
		}
		if id, ok := v.Type.(*ast.Ident); ok && id.Name == "Code" {
			s, err := strconv.Unquote(v.Values[0].(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			codes[Code(s)] = true
		}
		return true
	})
	if len(codes) < 40 {
		t.Fatalf("only %d codes found", len(codes))
	}
	for c := range codes {
		if _, ok := classes[c]; !ok {
			t.Errorf("%s has no class", c)
		}
		if c.Exit() < ExitOther || c.Exit() > ExitLater || c.GRPC() == 0 || c.GRPC() > 16 {
			t.Errorf("%s: exit %d, gRPC %d", c, c.Exit(), c.GRPC())
		}
		if CodeOfReason(c.Reason()) != c {
			t.Errorf("%s does not survive the wire", c)
		}
		if string(c) != strings.ToLower(string(c)) || strings.ContainsAny(string(c), " -") {
			t.Errorf("%s is not in snake case", c)
		}
	}
	for c, temporary := range map[Code]bool{NoAgent: true, Timeout: true, Quota: true, Deadline: true, UntrustedSocket: false, Latched: false, UnknownSite: false, Unknown: false} {
		if c.Temporary() != temporary {
			t.Errorf("%s: temporary %v", c, !temporary)
		}
	}
	if Code("new_one").Exit() != ExitOther {
		t.Error("a code of the future")
	}
}

func TestError(t *testing.T) {
	e := &Error{Code: Denied, Detail: "not you"}
	wrapped := fmt.Errorf("calling: %w", e)
	if AsError(wrapped) != e || CodeOf(wrapped) != Denied || e.Error() != "not you (denied)" || (&Error{Code: Denied}).Error() != "denied" {
		t.Errorf("%v", wrapped)
	}
	if !errors.Is(wrapped, &Error{Code: Denied}) || errors.Is(wrapped, &Error{Code: Unknown}) {
		t.Error("errors.Is does not ask for the code")
	}
	for err, code := range map[error]Code{context.DeadlineExceeded: Timeout, context.Canceled: Deadline, errors.New("x"): Unknown} {
		if CodeOf(fmt.Errorf("y: %w", err)) != code {
			t.Errorf("%v: %s", err, CodeOf(err))
		}
	}
	if CodeOf(nil) != "" || AsError(nil) != nil {
		t.Error("nil")
	}
}

func TestSiteNames(t *testing.T) {
	for name, variable := range map[string]string{"jira": "JIRA_COOKIE", "my-app.x": "MY_APP_X_COOKIE", "A_1": "A_1_COOKIE", "9lives": ""} {
		if !ValidSite(name) || CookieVariable(name) != variable {
			t.Errorf("%q: %v %q", name, ValidSite(name), CookieVariable(name))
		}
	}
	for _, name := range []string{"", ".", "-x", "_x", "a b", "a/b", "é", "a\n", "a$b", "a`b", strings.Repeat("x", MaxSiteName+1)} {
		if ValidSite(name) {
			t.Errorf("%q may name a site", name)
		}
	}
	if !ValidSite(strings.Repeat("x", MaxSiteName)) {
		t.Error("the longest name")
	}
}

func FuzzSiteNames(f *testing.F) {
	f.Add("jira")
	f.Add("9.a-b_c")
	f.Fuzz(func(t *testing.T, name string) {
		if !ValidSite(name) {
			return
		}
		if strings.ContainsAny(name, " \t\n$`'\"\\*?[]{}()<>|&;#~=!/:") {
			t.Errorf("a shell would look at %q", name)
		}
		for i, c := range CookieVariable(name) {
			if !(c == '_' || 'A' <= c && c <= 'Z' || i > 0 && '0' <= c && c <= '9') {
				t.Errorf("%q makes the variable %q", name, CookieVariable(name))
			}
		}
	})
}

func TestFindSocket(t *testing.T) {
	t.Setenv(SocketVariable, "")
	own := UserSocket(os.Geteuid())
	if own != fmt.Sprintf("/run/user/%d/sessionctl/agent.sock", os.Geteuid()) {
		t.Errorf("%s", own)
	}
	want := SystemSocket
	if _, err := os.Lstat(own); err == nil {
		want = own
	}
	if got := FindSocket(""); got != want {
		t.Errorf("%s, want %s", got, want)
	}
	t.Setenv(SocketVariable, "/env.sock")
	if FindSocket("") != "/env.sock" || FindSocket("/named.sock") != "/named.sock" {
		t.Error("the order is wrong")
	}
	// A file, never a name without an owner.
	t.Setenv(SocketVariable, "@env")
	if FindSocket("") != "./@env" || FindSocket("@named") != "./@named" {
		t.Error("a leading @")
	}
}

func TestNoSocket(t *testing.T) {
	own := UserSocket(os.Geteuid())
	for _, c := range []struct {
		path   string
		err    error
		remedy string
	}{
		{"/x/agent.sock", syscall.ENOENT, "systemctl --user status sessiond.service"},
		{SystemSocket, syscall.ENOENT, "systemctl --user start sessiond.socket"},
		{SystemSocket, syscall.EACCES, "the group that may use " + SystemSocket},
		{"/x/agent.sock", syscall.EACCES, "it belongs to another user's agent; use your own"},
	} {
		e := AsError(NoSocket(c.path, c.err))
		if e.Code != NoAgent || !strings.Contains(e.Detail, c.path) || !strings.Contains(e.Remedy, c.remedy) {
			t.Errorf("%s: %v: %+v", c.path, c.err, e)
		}
		// The system's was looked for because the user's own is not there.
		if both := strings.Contains(e.Detail, own); both != (c.path == SystemSocket && c.err == syscall.ENOENT && !exists(own)) {
			t.Errorf("%s: %v: %s", c.path, c.err, e.Detail)
		}
	}
}

func TestCheckSocket(t *testing.T) {
	dir, err := os.MkdirTemp("", "api")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "agent.sock")
	check := func(what string, path string, code Code) {
		t.Helper()
		servers, err := CheckSocket(path)
		if CodeOf(err) != code || (err == nil) != (servers != nil) {
			t.Errorf("%s: %v %v, want %q", what, servers, err, code)
		}
		if err != nil && AsError(err).Remedy == "" {
			t.Errorf("%s: no next step", what)
		}
	}
	check("nothing there", path, NoAgent)
	check("no directory", filepath.Join(dir, "x", "agent.sock"), NoAgent)
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	check("a good one", path, "")
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	check("a file", filepath.Join(dir, "file"), UntrustedSocket)
	if err := os.Symlink(path, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	check("a link", filepath.Join(dir, "link"), UntrustedSocket)
	for _, mode := range []os.FileMode{0o770, 0o777 | os.ModeSticky, 0o722} {
		if err := os.Chmod(dir, mode); err != nil {
			t.Fatal(err)
		}
		check("directory "+mode.String(), path, UntrustedSocket)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	check("a readable directory", path, "")
	if os.Geteuid() != 0 {
		return // what follows gives files away
	}
	if err := os.Chown(path, 4242, 0); err != nil {
		t.Fatal(err)
	}
	if servers, err := CheckSocket(path); err != nil || len(servers) != 3 || servers[2] != 4242 {
		t.Errorf("a service's socket below root's directory: %v %v", servers, err)
	}
	if err := os.Chown(dir, 4242, 0); err != nil {
		t.Fatal(err)
	}
	check("somebody's directory", path, UntrustedSocket)
	if _, err := CheckSocket(path); !strings.Contains(AsError(err).Remedy, "another user's agent; use your own (sessionctl without --socket), or run as that user") {
		t.Errorf("somebody's directory: %+v", err)
	}
}
