package main

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/sessionctl/sessionctl/api"
	pb "github.com/sessionctl/sessionctl/api/sessionctl/v1"
	"github.com/sessionctl/sessionctl/client/shim"
	"github.com/sessionctl/sessionctl/daemon/daemontest"
)

func TestMain(m *testing.M) {
	os.Unsetenv(shim.VersionVariable)
	os.Unsetenv(api.SocketVariable)
	os.Exit(m.Run())
}

func call(args ...string) (stdout, stderr string, status int) {
	var out, errs bytes.Buffer
	status = run(args, &out, &errs)
	return out.String(), errs.String(), status
}

func TestUsageErrors(t *testing.T) {
	for _, args := range [][]string{
		{"no-such-verb"}, {"get"}, {"get", "a", "b"}, {"get", "app", "-o", "yaml"}, {"list", "extra"}, {"list", "--no-such-flag"},
		{"status", "--timeout", "soon"}, {"status", "--timeout", "0"}, {"status", "--timeout", "25h"}, {"status", "--socket="}, {"get", "app", "--min-validity", "-1s"},
		{"get", "app", "--url", "app"}, {"get", "app", "-o", ""}, {"get", "a=CANARY-1"}, {"get", "https://u:CANARY-p@a/"}, {"get", strings.Repeat("a", 120<<10)},
		{"get", "https://a/" + strings.Repeat("a", 120<<10)}, {"login", "https://a/"}, {"logout", "../x"}, {"CANARY-1"}, {"list", "--timeout", "CANARY-1"}, {"login", "app", "--retry=CANARY-1"},
		{"help", "no-such-verb"}, {"help", "get", "x"}, {"completion", "tcsh"}, {"completion", "bash", "x"}, {"login"}, {"refresh"}, {"logout", "a", "b"}, {"tickets", "x"}, {"check-config", "a", "b"}, {"version", "x"},
		{"reload", "x"}, {"status", "--watch=CANARY-1"}, {"login", "app", "--credential="}, {"login", "app", "--credential"}, {"login", "app", "--proxy", "--password-stdin", "--credential", "x"},
		{"logout", "app", "--idp=CANARY-1"}, {"logout", "--idp"}, {"reject", "app", "--credential", "x"},
	} {
		out, errs, status := call(args...)
		if status != api.ExitUsage || out != "" || !strings.HasPrefix(errs, "sessionctl: ") || !strings.Contains(errs, " (invalid_request)\n  next: ") || strings.Contains(errs, "CANARY") {
			t.Errorf("%.80q: %d %q %q", args, status, out, errs)
		}
	}
}

func TestHelp(t *testing.T) {
	out, _, status := call("help")
	if status != 0 {
		t.Fatalf("status %d", status)
	}
	for _, verb := range []string{"cookie", "raw", "header", "credential", "get", "list", "login", "refresh", "logout", "tickets", "status", "reload", "check-config", "version", "completion", "help"} {
		if !strings.Contains(out, "\n  "+verb+" ") {
			t.Errorf("help does not name %s", verb)
		}
		out, errs, status := call("help", verb)
		if status != 0 || len(out) < 40 {
			t.Errorf("help %s: %d %q %q", verb, status, out, errs)
		}
	}
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		if out, _, status := call("completion", shell); status != 0 || len(out) < 1000 {
			t.Errorf("completion %s: %d", shell, status)
		}
	}
	for _, args := range [][]string{{"--version"}, {"-v"}} {
		if out, _, status := call(args...); status != 0 || out != "sessionctl "+api.Version+"\n" {
			t.Errorf("%q: %d %q", args, status, out)
		}
	}
	if out, _, _ := call("help", "get"); strings.Contains(out, "`") || !strings.Contains(out, "--socket PATH") || !strings.Contains(out, "--timeout DURATION") || !strings.Contains(out, "--min-validity DURATION") {
		t.Errorf("the help of get: %s", out)
	}
	if out, _, status := call("__complete", "stat"); status != 0 || !strings.Contains(out, "status") {
		t.Errorf("complete: %q", out)
	}
}

func TestVersionSkew(t *testing.T) {
	t.Setenv(shim.VersionVariable, "v0.0.0-other")
	if _, errs, status := call("list"); status != api.ExitOther || !strings.Contains(errs, "(version_skew)") || !strings.Contains(errs, "v0.0.0-other") {
		t.Errorf("%d %s", status, errs)
	}
	t.Setenv(shim.VersionVariable, api.Version)
	if _, errs, status := call("list", "--socket", "/nonexistent/agent.sock"); status != api.ExitNoAgent {
		t.Errorf("%d %s", status, errs)
	}
}

func TestVersionWithoutAgent(t *testing.T) {
	out, _, status := call("version", "--socket", "/nonexistent/agent.sock")
	if status != 0 || out != "sessionctl "+api.Version+"\nagent      not running\n" {
		t.Errorf("%d %q", status, out)
	}
}

// hostile is a session whose values a careless format would break.
func hostile() *pb.Session {
	end := timestamppb.New(time.Now().Add(time.Hour))
	cookie := func(name, value, domain, path string, hostOnly bool, expire *timestamppb.Timestamp) *pb.Cookie {
		return &pb.Cookie{Name: []byte(name), Value: []byte(value), Domain: domain, Path: path, Secure: true, HttpOnly: true, HostOnly: hostOnly, ExpireTime: expire}
	}
	return &pb.Session{
		Site: "app", User: "build", Generation: "g", Url: "https://app.corp.example/x",
		Headers: []*pb.Header{{Name: "Cookie", Value: []byte(`s=CANARY-it's "a\b" $(x); t=é*`), Secret: true}, {Name: "User-Agent", Value: []byte("curl/8")}},
		Cookies: []*pb.Cookie{
			cookie("s", `CANARY-it's "a\b" $(x)`, "app.corp.example", "/x/", true, nil),
			cookie("t", "é*", "corp.example", "/", false, end),
		},
	}
}

func TestJSON(t *testing.T) {
	var out bytes.Buffer
	if err := writeJSON(&out, hostile()); err != nil {
		t.Fatal(err)
	}
	var got jsonSession
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if got.Headers["Cookie"] != `s=CANARY-it's "a\b" $(x); t=é*` || len(got.Cookies) != 2 || got.Cookies[0].Value != `CANARY-it's "a\b" $(x)` || got.Cookies[1].ExpireTime == "" ||
		strings.Join(got.SecretHeaders, " ") != "Cookie" {
		t.Errorf("%+v", got)
	}
}

// TestNetscape: one line each, in the dialect of curl, wget, Python and aria2.
func TestNetscape(t *testing.T) {
	var out bytes.Buffer
	session := hostile()
	session.Cookies[1].Value = []byte("*")
	if err := writeNetscape(&out, session); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
	if len(lines) != 3 || lines[0] != "# Netscape HTTP Cookie File" {
		t.Fatalf("%q", lines)
	}
	for i, want := range [][]string{
		{"app.corp.example", "FALSE", "/x", "TRUE", "", "s", `CANARY-it's "a\b" $(x)`},
		{"app.corp.example", "FALSE", "/", "TRUE", "", "t", "*"},
	} {
		f := strings.Split(lines[i+1], "\t")
		if expiry, err := strconv.ParseInt(f[4], 10, 64); err != nil || expiry <= time.Now().Unix() {
			t.Errorf("expiry %q", f[4])
		}
		f[4] = ""
		if strings.Join(f, "|") != strings.Join(want, "|") {
			t.Errorf("got %q, want %q", f, want)
		}
	}
}

func TestEnvIsCodeForQuotedEval(t *testing.T) {
	for _, shell := range []string{"dash", "bash", "zsh", "ksh93", "mksh"} {
		t.Run(shell, func(t *testing.T) {
			daemontest.Require(t, shell)
			var out bytes.Buffer
			if err := writeEnv(&out, hostile()); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(shell, "-c", `eval "$(cat)"; printf %s "$APP_COOKIE"`)
			cmd.Stdin = &out
			cmd.Dir = t.TempDir()
			got, err := cmd.Output()
			if err != nil || string(got) != `s=CANARY-it's "a\b" $(x); t=é*` {
				t.Errorf("%q %v", got, err)
			}
		})
	}
}

func TestCurlAndHTTPie(t *testing.T) {
	var out bytes.Buffer
	if err := writeCurl(&out, hostile()); err != nil {
		t.Fatal(err)
	}
	if want := "header = \"Cookie: s=CANARY-it's \\\"a\\\\b\\\" $(x); t=é*\"\nheader = \"User-Agent: curl/8\"\n"; out.String() != want {
		t.Errorf("got %s, want %s", out.String(), want)
	}
	out.Reset()
	if err := writeHTTPie(&out, hostile()); err != nil {
		t.Fatal(err)
	}
	var got struct {
		Cookies []struct{ Name, Value, Domain string }
	}
	if err := json.Unmarshal(out.Bytes(), &got); err != nil || len(got.Cookies) != 2 || got.Cookies[1].Domain != "app.corp.example" || got.Cookies[0].Value != `CANARY-it's "a\b" $(x)` {
		t.Errorf("%+v %v", got, err)
	}
}

// TestPlaywright: the storage state has every field that Playwright wants, and no
// other (https://playwright.dev/docs/api/class-browsercontext#browser-context-storage-state).
func TestPlaywright(t *testing.T) {
	var out bytes.Buffer
	s := hostile()
	s.Cookies[1].ExpireTime = timestamppb.New(time.Unix(1900000000, 5e8))
	if err := writePlaywright(&out, s); err != nil {
		t.Fatal(err)
	}
	var got, want any
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(`{"cookies": [
		{"name": "s", "value": "CANARY-it's \"a\\b\" $(x)", "domain": "app.corp.example", "path": "/x/", "expires": -1, "httpOnly": true, "secure": true, "sameSite": "Lax"},
		{"name": "t", "value": "é*", "domain": ".corp.example", "path": "/", "expires": 1900000000, "httpOnly": true, "secure": true, "sameSite": "Lax"}
	], "origins": []}`), &want); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// TestNothingIsInjected: a value that would end a line is refused by every
// format made of lines.
func TestNothingIsInjected(t *testing.T) {
	for _, evil := range []string{"a\nb", "a\rb", "a\x00b", "a\x1bb", "a\x7fb"} {
		s := hostile()
		s.Headers[0].Value, s.Cookies[0].Value = []byte(evil), []byte(evil)
		for name, write := range formats {
			var out bytes.Buffer
			err := write(&out, s)
			if lines := name != "json" && name != "httpie" && name != "playwright"; lines && api.CodeOf(err) != api.Unprintable {
				t.Errorf("%s with %q: %v %q", name, evil, err, out.String())
			} else if !lines && (err != nil || !json.Valid(out.Bytes()) || strings.ContainsFunc(out.String(), func(r rune) bool { return r < 0x20 && r != '\n' })) {
				t.Errorf("%s with %q: %v", name, evil, err)
			}
		}
	}
	s := hostile()
	s.Cookies[0].Value = []byte("a\tb")
	if err := writeNetscape(&bytes.Buffer{}, s); api.CodeOf(err) != api.Unprintable {
		t.Errorf("a tab in a cookie file: %v", err)
	}
	// JSON is text: what is not would come out as something else.
	s.Headers[0].Value, s.Cookies[0].Value = []byte("\xff"), []byte("\xff")
	for _, write := range []func(io.Writer, *pb.Session) error{writeJSON, writeHTTPie, writePlaywright} {
		if err := write(&bytes.Buffer{}, s); api.CodeOf(err) != api.Unprintable {
			t.Errorf("bytes that are not UTF-8 in JSON: %v", err)
		}
	}
	s.Site = "9lives"
	if err := writeEnv(&bytes.Buffer{}, s); err == nil {
		t.Error("a name that is no variable")
	}
}

func TestTerminalIsSafe(t *testing.T) {
	var errs bytes.Buffer
	status := fail(&errs, "app", &api.Error{Code: api.Denied, Detail: "a\x1b[2J\nb\u202e", Remedy: "c\u009b\x7f"})
	if errs.String() != "sessionctl: app: a?[2J?b? (denied)\n  next: c??\n" || status != api.ExitDenied {
		t.Errorf("%q, %d", errs.String(), status)
	}
}

// TestNoCookie: what has no cookie is no session, for all but JSON.
func TestNoCookie(t *testing.T) {
	for name, write := range formats {
		err := write(&bytes.Buffer{}, &pb.Session{Site: "app", Headers: []*pb.Header{{Name: "User-Agent", Value: []byte("x")}, {Name: "Cookie"}}})
		if name == "json" && err != nil || name != "json" && (api.CodeOf(err) != api.NoSessionCookie || !strings.HasSuffix(api.AsError(err).Remedy, ": sessionctl get app -o json")) {
			t.Errorf("%s: %+v", name, err)
		}
	}
	for name, write := range formats {
		var text bytes.Buffer
		err := write(&text, &pb.Session{Site: "app", Headers: []*pb.Header{{Name: "Authorization", Value: []byte("Bearer CANARY-token"), Secret: true}}})
		if name == "json" || name == "curl" {
			if err != nil || !strings.Contains(text.String(), "Bearer CANARY-token") {
				t.Errorf("%s of a token: %v, %s", name, err, text.String())
			}
		} else if api.CodeOf(err) != api.PerRequestOnly || text.Len() > 0 || !strings.HasSuffix(api.AsError(err).Remedy, ": sessionctl header app, or sessionctl get app with -o curl or json") {
			t.Errorf("%s of a token: %v, %s", name, err, text.String())
		}
	}
	s := hostile()
	s.Cookies[0].Name = nil
	if err := writeNetscape(&bytes.Buffer{}, s); api.CodeOf(err) != api.Unprintable {
		t.Errorf("a cookie without a name in a cookie file: %v", err)
	}
	s = hostile()
	s.Cookies[0].Path = "/\n"
	if err := writeNetscape(&bytes.Buffer{}, s); api.CodeOf(err) != api.Unprintable {
		t.Errorf("a line feed in a path: %v", err)
	}
}

// TestSiblings: programs are taken from beside this one's own file.
func TestSiblings(t *testing.T) {
	err := execSibling([]string{"no-such-sibling"})
	self, _ := os.Executable()
	if err == nil || !strings.Contains(err.Error(), "no-such-sibling") || filepath.Dir(self) == "" {
		t.Errorf("%v", err)
	}
}

// TestWrongLineForEval: whatever is wrong before -o env is read, an eval gets
// code that fails.
func TestWrongLineForEval(t *testing.T) {
	for _, args := range [][]string{
		{"get", "app", "--min-validity", "soon", "-o", "env"}, {"get", "app", "--bogus", "-oenv"}, {"get", "app", "--timeout", "0", "--output=env"},
		{"get", "app", "--url", "ftp://x", "-o", "env"}, {"get", "-o", "env"}, {"get", "a", "b", "-o", "env"},
	} {
		out, _, status := call(args...)
		if status != api.ExitUsage || !strings.HasSuffix(out, "false\n") {
			t.Errorf("%q: %d %q", args, status, out)
		}
	}
}
