package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"

	"github.com/sessionctl/sessionctl/api"
	pb "github.com/sessionctl/sessionctl/api/sessionctl/v1"
	"github.com/sessionctl/sessionctl/daemon/daemontest"
)

// gitSites are sites that git could use: code with cookies, feed with a password in
// each request, plain without TLS.
type gitSites struct {
	pb.UnimplementedSessionServiceServer
	moved string // the URL of code, if it is another one now
}

func (g *gitSites) GetSession(_ context.Context, r *pb.GetSessionRequest) (*pb.GetSessionResponse, error) {
	cookie := []*pb.Cookie{{Name: []byte("sid"), Value: []byte("CANARY-sid"), Domain: "code.corp.example", HostOnly: true, Path: "/", Secure: true}}
	cookieHeader := []*pb.Header{{Name: "Cookie", Value: []byte("sid=CANARY-sid"), Secret: true}}
	url := "https://code.corp.example/bitbucket"
	if g.moved != "" {
		url = g.moved
	}
	switch r.GetSite() {
	case "feed":
		return &pb.GetSessionResponse{Session: &pb.Session{Site: "feed", User: "alice", Generation: "g", Url: "https://feed.corp.example/",
			Headers: []*pb.Header{{Name: "Authorization", Value: []byte("Basic YTpDQU5BUlktcHc="), Secret: true}}}}, nil
	case "plain":
		url = "http://code.corp.example/"
	case "none":
		cookieHeader = nil
	}
	return &pb.GetSessionResponse{Session: &pb.Session{Site: r.GetSite(), User: "alice", Generation: "g", Url: url, Headers: cookieHeader, Cookies: cookie}}, nil
}

// gitHome is a user with a configuration of git, whose text is returned by read.
func gitHome(t *testing.T, config string) (g *gitSites, read func() string) {
	t.Helper()
	daemontest.Require(t, "git")
	dir := t.TempDir()
	for name, value := range map[string]string{"HOME": dir, "XDG_CONFIG_HOME": dir, "XDG_RUNTIME_DIR": dir, "GIT_CONFIG_NOSYSTEM": "1", "LC_ALL": "C",
		"PATH": dir + string(os.PathListSeparator) + os.Getenv("PATH")} {
		t.Setenv(name, value)
	}
	for file, text := range map[string]string{".gitconfig": config, "git-credential-sessionctl": "#!/bin/false\n"} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	g = new(gitSites)
	l, socket := listen(t)
	serveOn(t, l, func(s *grpc.Server) { pb.RegisterSessionServiceServer(s, g) })
	t.Setenv(api.SocketVariable, socket)
	return g, func() string {
		b, err := os.ReadFile(filepath.Join(dir, ".gitconfig"))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
}

const aGitConfig = "[user]\n\tname = Alice\n[credential]\n\thelper = store\n"

func TestGitSetup(t *testing.T) {
	_, read := gitHome(t, aGitConfig)
	const shown = `sessionctl.code.url = https://code.corp.example/bitbucket
credential.https://code.corp.example/bitbucket.helper = 
credential.https://code.corp.example/bitbucket.helper = sessionctl
credential.https://code.corp.example/bitbucket.useHttpPath = true
http.https://code.corp.example/bitbucket.cookieFile = JAR
http.https://code.corp.example/bitbucket.saveCookies = false
`
	jar := filepath.Join(os.Getenv("XDG_RUNTIME_DIR"), "sessionctl", "jars", "code.txt")
	out, errs, exit := call("git-setup", "code")
	if out != strings.ReplaceAll(shown, "JAR", jar) || exit != 0 ||
		errs != "  next: have the cookie file kept fresh: systemctl --user enable --now sessionctl-jar@code.service, or: sessionctl jar code --keep\n" {
		t.Fatalf("%q %q %d", out, errs, exit)
	}
	if info, err := os.Stat(jar); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info, err)
	}
	if b, err := os.ReadFile(jar); err != nil || !strings.Contains(string(b), "CANARY-sid") {
		t.Errorf("%q %v", b, err)
	}
	// git reads it as it is meant: for what is below the URL, and nothing else.
	for url, want := range map[string]string{
		"https://code.corp.example/bitbucket/scm/x.git": jar, "https://code.corp.example/bitbucket": jar,
		"https://code.corp.example/bitbucket2/x.git": "", "https://code.corp.example/": "", "https://code.corp.example:444/bitbucket/x": "",
		"https://sub.code.corp.example/bitbucket/x": "", "http://code.corp.example/bitbucket/x": "", "https://elsewhere.example/bitbucket": "",
	} {
		b, err := exec.Command("git", "config", "--get-urlmatch", "http.cookieFile", url).Output()
		if got := strings.TrimSuffix(string(b), "\n"); got != want {
			t.Errorf("%s: %q %v", url, got, err)
		}
	}
	done := read()
	if !strings.HasPrefix(done, aGitConfig) {
		t.Errorf("%s", done)
	}
	// Once more changes nothing.
	out, errs, exit = call("git-setup", "code", "--global")
	if out != "" || exit != 0 || !strings.HasPrefix(errs, "sessionctl: code: git is set up already\n") || read() != done {
		t.Errorf("%q %q %d", out, errs, exit)
	}
	// Nor does another site's, nor what the user adds.
	if _, _, exit := call("git-setup", "feed"); exit != 0 || strings.Contains(strings.TrimPrefix(read(), done), "cookieFile") {
		t.Errorf("%d\n%s", exit, read())
	}
	if _, _, exit := call("git-setup", "feed", "--undo"); exit != 0 || read() != done {
		t.Errorf("%d\n%s", exit, read())
	}
	if out, err := exec.Command("git", "config", "--global", "--add", "credential.https://code.corp.example/bitbucket.helper", "cache").CombinedOutput(); err != nil {
		t.Fatalf("%s", out)
	}
	// Without an agent, and in another session of the user's.
	t.Setenv(api.SocketVariable, "/nonexistent/agent.sock")
	t.Setenv("XDG_RUNTIME_DIR", "/run/elsewhere")
	out, errs, exit = call("git-setup", "code", "--undo")
	if strings.Count(out, "removed ") != 6 || errs != "" || exit != 0 {
		t.Errorf("%q %q %d", out, errs, exit)
	}
	if got, want := read(), aGitConfig+"[credential \"https://code.corp.example/bitbucket\"]\n\thelper = cache\n"; got != want {
		t.Errorf("%s\nwant:\n%s", got, want)
	}
	if _, errs, exit := call("git-setup", "code", "--undo"); exit != 0 || errs != "sessionctl: code: there is nothing to undo in this configuration\n" {
		t.Errorf("%q %d", errs, exit)
	}
}

// TestGitSetupExact: what was undone is as if it had never been done.
func TestGitSetupExact(t *testing.T) {
	_, read := gitHome(t, aGitConfig)
	for _, site := range []string{"code", "feed", "plain"} {
		if _, errs, exit := call("git-setup", site); exit != 0 || strings.Contains(errs, "not https") != (site == "plain") {
			t.Errorf("%s: %q %d", site, errs, exit)
		}
		if _, errs, exit := call("git-setup", site, "--undo"); exit != 0 || errs != "" || read() != aGitConfig {
			t.Errorf("%s: %q %d\n%s", site, errs, exit, read())
		}
	}
	file := filepath.Join(t.TempDir(), "other")
	if _, errs, exit := call("git-setup", "code", "--file", file); exit != 0 || read() != aGitConfig {
		t.Errorf("%q %d", errs, exit)
	}
	if b, err := os.ReadFile(file); err != nil || !strings.Contains(string(b), "helper = sessionctl") {
		t.Errorf("%s %v", b, err)
	}
	t.Chdir(t.TempDir())
	if _, errs, exit := call("git-setup", "code", "--local"); exit != api.ExitOther || !strings.Contains(errs, "git config: fatal: ") {
		t.Errorf("outside a repository: %q %d", errs, exit)
	}
}

// TestGitSetupConflict: where a line is there already nothing is written, and an undo
// removes nothing.
func TestGitSetupConflict(t *testing.T) {
	for name, theirs := range map[string]string{
		"helper":      "[credential \"https://code.corp.example/bitbucket\"]\n\thelper = store\n",
		"the same":    "[http \"https://code.corp.example/bitbucket\"]\n\tsaveCookies = false\n",
		"cookie file": "[http \"https://code.corp.example/bitbucket\"]\n\tcookieFile = /home/alice/cookies\n",
	} {
		t.Run(name, func(t *testing.T) {
			_, read := gitHome(t, theirs)
			if out, errs, exit := call("git-setup", "code"); out != "" || exit != api.ExitOther || !strings.Contains(errs, "already") || !strings.Contains(errs, "\n  next: ") {
				t.Errorf("%q %q %d", out, errs, exit)
			}
			if _, err := os.Stat(filepath.Join(os.Getenv("XDG_RUNTIME_DIR"), "sessionctl")); !os.IsNotExist(err) {
				t.Errorf("a cookie file was written: %v", err)
			}
			if _, _, exit := call("git-setup", "code", "--undo"); exit != 0 || read() != theirs {
				t.Errorf("%d\n%s", exit, read())
			}
		})
	}
	t.Run("moved", func(t *testing.T) {
		g, read := gitHome(t, "")
		if _, errs, exit := call("git-setup", "code"); exit != 0 {
			t.Fatalf("%q %d", errs, exit)
		}
		before := read()
		g.moved = "https://code2.corp.example/"
		if out, errs, exit := call("git-setup", "code"); out != "" || exit != api.ExitOther || !strings.Contains(errs, "next: sessionctl git-setup code --undo") || read() != before {
			t.Errorf("%q %q %d", out, errs, exit)
		}
		if _, _, exit := call("git-setup", "code", "--undo"); exit != 0 || read() != "" {
			t.Errorf("%d\n%s", exit, read())
		}
	})
	t.Run("no cookie", func(t *testing.T) {
		_, read := gitHome(t, "")
		if out, errs, exit := call("git-setup", "none"); out != "" || exit != api.NoSessionCookie.Exit() || !strings.Contains(errs, "(no_session_cookie)") || read() != "" {
			t.Errorf("%q %q %d", out, errs, exit)
		}
	})
	t.Run("no helper", func(t *testing.T) {
		gitHome(t, "")
		must(os.Remove(filepath.Join(os.Getenv("HOME"), "git-credential-sessionctl")))
		if out, errs, exit := call("git-setup", "code"); out != "" || exit != api.ExitOther || !strings.Contains(errs, "not in PATH") {
			t.Errorf("%q %q %d", out, errs, exit)
		}
	})
}
