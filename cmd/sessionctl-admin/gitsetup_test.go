package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sessionctl/sessionctl/api"
	pb "github.com/sessionctl/sessionctl/api/sessionctl/v1"
	"github.com/sessionctl/sessionctl/daemon/daemontest"
)

// gitSites are sites that git could use: code with cookies, feed with a password in
// each request, plain without TLS.
type gitSites struct {
	pb.UnimplementedSessionServiceServer
	moved string // the URL of code, if it is another one now
	fail  bool   // there is no such site
}

func (g *gitSites) GetSession(_ context.Context, r *pb.GetSessionRequest) (*pb.GetSessionResponse, error) {
	if g.fail {
		st, err := status.New(codes.NotFound, "no such site").WithDetails(&errdetails.ErrorInfo{Domain: api.ErrorDomain, Reason: api.UnknownSite.Reason()})
		if err != nil {
			return nil, err
		}
		return nil, st.Err()
	}
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
	t.Run("another place for the cookie file", func(t *testing.T) {
		_, read := gitHome(t, aGitConfig)
		if _, errs, exit := call("git-setup", "code"); exit != 0 {
			t.Fatalf("%q %d", errs, exit)
		}
		before, old := read(), filepath.Join(os.Getenv("XDG_RUNTIME_DIR"), "sessionctl", "jars", "code.txt")
		t.Setenv("XDG_RUNTIME_DIR", t.TempDir())
		if out, errs, exit := call("git-setup", "code"); out != "" || exit != api.ExitOther || read() != before ||
			errs != "sessionctl: code: git is set up for this site with another cookie file: "+old+" (unknown)\n  next: sessionctl git-setup code --undo, with the same options, and then this again\n" {
			t.Errorf("%q %q %d", out, errs, exit)
		}
		if _, errs, exit := call("git-setup", "code", "--undo"); exit != 0 || errs != "" || read() != aGitConfig {
			t.Errorf("%q %d\n%s", errs, exit, read())
		}
		if _, errs, exit := call("git-setup", "code"); exit != 0 || strings.Contains(read(), old) {
			t.Errorf("%q %d\n%s", errs, exit, read())
		}
	})
}

// TestGitSetupMissing: what is not installed is said with what to do about it, after what
// the agent has to say.
func TestGitSetupMissing(t *testing.T) {
	g, read := gitHome(t, aGitConfig)
	home := os.Getenv("HOME")
	must(os.Remove(filepath.Join(home, "git-credential-sessionctl")))
	self, err := os.Executable()
	must(err)
	link := filepath.Join(filepath.Dir(self), "git-credential-sessionctl")
	if out, errs, exit := call("git-setup", "code"); out != "" || exit != api.ExitOther || read() != aGitConfig ||
		errs != "sessionctl: code: git would not find its helper: git-credential-sessionctl is not in PATH (unknown)\n  next: ln -s sessionctl '"+link+"'\n" {
		t.Errorf("%q %q %d", out, errs, exit)
	}
	g.fail = true
	if out, errs, exit := call("git-setup", "code"); out != "" || exit != api.ExitUnknown {
		t.Errorf("%q %q %d", out, errs, exit)
	}
	if out, errs, exit := call("git-setup", "code", "--socket", "/nonexistent/agent.sock"); out != "" || exit != api.ExitNoAgent {
		t.Errorf("%q %q %d", out, errs, exit)
	}
	g.fail = false

	// There it is, but PATH does not lead there.
	dir := filepath.Join(t.TempDir(), "a b's")
	must(os.Mkdir(dir, 0o700))
	there := filepath.Join(dir, "git-credential-sessionctl")
	if got, want := helperRemedy(dir), `ln -s sessionctl '`+filepath.Dir(dir)+`/a b'\''s/git-credential-sessionctl'`; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	must(os.WriteFile(there, []byte("#!/bin/sh\necho found\n"), 0o700))
	remedy := helperRemedy(dir)
	command, _, ok := strings.Cut(remedy, ", and in ")
	if !ok || !strings.HasPrefix(command, "export PATH=") {
		t.Fatalf("%q", remedy)
	}
	if out, err := exec.Command("sh", "-c", command+"; git-credential-sessionctl").CombinedOutput(); string(out) != "found\n" {
		t.Errorf("%q: %q %v", remedy, out, err)
	}

	// Without git there is nothing to set up, nor to undo.
	must(os.WriteFile(filepath.Join(home, "git-credential-sessionctl"), []byte("#!/bin/false\n"), 0o700))
	t.Setenv("PATH", home)
	for _, args := range [][]string{{"git-setup", "code"}, {"git-setup", "code", "--undo"}} {
		if out, errs, exit := call(args...); out != "" || exit != api.ExitOther || errs != "sessionctl: code: git is not in PATH (unknown)\n  next: install git\n" {
			t.Errorf("%q: %q %q %d", args, out, errs, exit)
		}
	}
}

// TestGitSetupOrdinary: git would read a pipe for ever, and put a file into the place of a
// device.
func TestGitSetupOrdinary(t *testing.T) {
	_, read := gitHome(t, aGitConfig)
	pipe := filepath.Join(t.TempDir(), "pipe")
	link := pipe + "-link"
	must(unix.Mkfifo(pipe, 0o600))
	must(os.Symlink(pipe, link))
	fails := func(file string, args ...string) {
		t.Helper()
		if out, errs, exit := call(append([]string{"git-setup", "code"}, args...)...); out != "" || exit != api.ExitUsage ||
			errs != "sessionctl: code: "+file+" is no ordinary file (invalid_request)\n  next: sessionctl help\n" {
			t.Errorf("%q: %q %q %d", args, out, errs, exit)
		}
		if info, err := os.Stat(file); err != nil || info.Mode().Type() != os.ModeNamedPipe && !info.IsDir() {
			t.Errorf("%q: %v %v", args, info, err)
		}
	}
	for _, file := range []string{pipe, link, filepath.Dir(pipe)} {
		fails(file, "--file", file)
		fails(file, "--file", file, "--undo")
		t.Setenv("GIT_CONFIG_GLOBAL", file)
		fails(file)
		fails(file, "--global", "--undo")
	}
	must(os.Unsetenv("GIT_CONFIG_GLOBAL"))
	if read() != aGitConfig {
		t.Errorf("%s", read())
	}
	// A link to a file is followed, and stays.
	own := filepath.Join(t.TempDir(), "own")
	must(os.WriteFile(own, nil, 0o600))
	must(os.Remove(link))
	must(os.Symlink(own, link))
	if _, errs, exit := call("git-setup", "code", "--file", link); exit != 0 {
		t.Errorf("%q %d", errs, exit)
	}
	if to, err := os.Readlink(link); to != own || err != nil {
		t.Errorf("%q %v", to, err)
	}
	if b, err := os.ReadFile(own); err != nil || !strings.Contains(string(b), "helper = sessionctl") {
		t.Errorf("%s %v", b, err)
	}
}

// TestGitSetupForeign: what others have written into git's configuration is neither taken
// for ours nor removed.
func TestGitSetupForeign(t *testing.T) {
	const odd = "[sessionctl \"code\"]\n\turl = \"https://code.corp.example/\\n[credential]\\n\\thelper=x\"\n\turl = code\n\turl\n"
	t.Run("no URL", func(t *testing.T) {
		_, read := gitHome(t, odd+"[credential \"code\"]\n\thelper = sessionctl\n")
		before := read()
		out, errs, exit := call("git-setup", "code", "--undo")
		if out != "" || exit != 0 || strings.Count(errs, "\n") != 3 || strings.Count(errs, "sessionctl: code: sessionctl.code.url is no URL in one place, which stays\n") != 3 || read() != before {
			t.Errorf("%q %q %d\n%s", out, errs, exit, read())
		}
		if out, errs, exit := call("git-setup", "code"); out != "" || exit != api.ExitOther || !strings.Contains(errs, "with another URL") || read() != before {
			t.Errorf("%q %q %d\n%s", out, errs, exit, read())
		}
	})
	t.Run("no URL, and ours", func(t *testing.T) {
		_, read := gitHome(t, "")
		if _, errs, exit := call("git-setup", "code"); exit != 0 {
			t.Fatalf("%q %d", errs, exit)
		}
		must(os.WriteFile(filepath.Join(os.Getenv("HOME"), ".gitconfig"), []byte(odd+read()), 0o600))
		out, errs, exit := call("git-setup", "code", "--undo")
		if strings.Count(out, "removed ") != 6 || exit != 0 || strings.Count(errs, "\n") != 3 || read() != odd {
			t.Errorf("%q %q %d\n%s", out, errs, exit, read())
		}
	})
	t.Run("the same lines twice", func(t *testing.T) {
		_, read := gitHome(t, "")
		if _, errs, exit := call("git-setup", "feed"); exit != 0 {
			t.Fatalf("%q %d", errs, exit)
		}
		// An empty helper of the user's own, for a helper of the user's own.
		for _, v := range []string{"", "cache"} {
			if out, err := exec.Command("git", "config", "--global", "--add", "credential.https://feed.corp.example/.helper", v).CombinedOutput(); err != nil {
				t.Fatalf("%s", out)
			}
		}
		out, errs, exit := call("git-setup", "feed", "--undo")
		if exit != 0 || errs != "sessionctl: feed: credential.https://feed.corp.example/.helper is empty more than once, and stays so\n" || strings.Contains(out, ".helper = \n") {
			t.Errorf("%q %q %d", out, errs, exit)
		}
		if got := read(); got != "[credential \"https://feed.corp.example/\"]\n\thelper = \n\thelper = \n\thelper = cache\n" {
			t.Errorf("%s", got)
		}
	})
}
