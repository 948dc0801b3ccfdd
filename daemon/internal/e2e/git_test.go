package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

// newGit is a git that knows capability[] (2.46 and later), and its tests.
const newGit = "/var/cache/sessionctl-rigs/git-2.47/"

// gits are the programs by which git is run: the installed one, which is older than
// 2.46, and the new one.
func gits(t *testing.T) map[string]string {
	rig.Require(t, "git", newGit+"ready")
	return map[string]string{"git 2.39": "git", "git 2.47": newGit + "bin-wrappers/git"}
}

// gitPassword is alice's, and her token too.
const gitPassword = "CANARY-git-password"

// certified makes an authority and has it certify a server on loopback that is called
// names, too. caFile is for those who are to trust it.
func certified(t *testing.T, names ...string) (config *tls.Config, caFile string) {
	t.Helper()
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageCertSign, IsCA: true, BasicConstraintsValid: true}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "localhost"}, NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, DNSNames: append([]string{"localhost"}, names...)}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	must(t, err)
	der, err := x509.CreateCertificate(rand.Reader, leaf, ca, key.Public(), caKey)
	must(t, err)
	caFile = write(t, filepath.Join(t.TempDir(), "ca.pem"), string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: caDER})))
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}, caFile
}

// gitServer has repositories by git's smart protocol (gitprotocol-http(5)), served by
// git http-backend to alice alone, who is known by the cookie that a login by Basic
// sets, or by what each request has: a password, or a token.
type gitServer struct {
	by          string // cookie, basic or token
	url, caFile string
	backend     http.Handler

	mu       sync.Mutex
	password string
	sessions map[string]bool
	made     int
	asked    []string // requests for the repository without a login
	logins   int      // requests for /login with a password
	secrets  int      // other requests with a password or token
	probes   int      // requests without, but for the repository
}

// startGit starts a server with an empty repository at /scm/x.git.
func startGit(t *testing.T, by string) *gitServer {
	t.Helper()
	root := t.TempDir()
	run := exec.Command("git", "init", "--quiet", "--bare", "--initial-branch=main", filepath.Join(root, "x.git"))
	out, err := run.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v", out, err)
	}
	out, err = exec.Command("git", "-C", filepath.Join(root, "x.git"), "config", "http.receivepack", "true").CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v", out, err)
	}
	git, err := exec.LookPath("git")
	must(t, err)
	s := &gitServer{by: by, password: gitPassword, sessions: make(map[string]bool),
		backend: http.StripPrefix("/scm", &cgi.Handler{Path: git, Args: []string{"http-backend"}, Dir: root, Stderr: io.Discard,
			Env: []string{"GIT_PROJECT_ROOT=" + root, "GIT_HTTP_EXPORT_ALL=1", "HOME=" + root}, Logger: log.New(io.Discard, "", 0)})}
	config, caFile := certified(t)
	h := httptest.NewUnstartedServer(s)
	h.TLS, h.Config.ErrorLog = config, log.New(io.Discard, "", 0)
	h.StartTLS()
	t.Cleanup(h.Close)
	_, port, err := net.SplitHostPort(h.Listener.Addr().String())
	must(t, err)
	s.url, s.caFile = "https://localhost:"+port, caFile
	return s
}

// forget ends all sessions.
func (s *gitServer) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.sessions)
}

// change changes alice's password, or her token.
func (s *gitServer) change(password string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.password = password
}

func (s *gitServer) known(r *http.Request) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, password, _ := r.BasicAuth()
	switch s.by {
	case "basic":
		return password == s.password
	case "token":
		return r.Header.Get("Authorization") == "Bearer "+s.password
	}
	c, err := r.Cookie("sid")
	return err == nil && s.sessions[c.Value]
}

// login returns a new session if the password is right.
func (s *gitServer) login(r *http.Request) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if user, password, _ := r.BasicAuth(); user != "alice" || password != s.password {
		return ""
	}
	s.made++
	id := fmt.Sprintf("CANARY-git-session-%d", s.made)
	s.sessions[id] = true
	return id
}

func (s *gitServer) count(r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch secret := r.Header.Get("Authorization") != ""; {
	case secret && r.URL.Path == "/login":
		s.logins++
	case secret:
		s.secrets++
	case !strings.HasPrefix(r.URL.Path, "/scm/"):
		s.probes++
	}
}

// counted returns how often something was asked since it was called last.
func (s *gitServer) counted() (logins, secrets, probes int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	logins, secrets, probes = s.logins, s.secrets, s.probes
	s.logins, s.secrets, s.probes = 0, 0, 0
	return logins, secrets, probes
}

func (s *gitServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.count(r)
	refuse := func() {
		scheme := "Basic"
		if s.by == "token" {
			scheme = "Bearer"
		}
		w.Header().Set("WWW-Authenticate", scheme+` realm="git"`)
		w.WriteHeader(http.StatusUnauthorized)
	}
	switch {
	case s.by == "cookie" && r.URL.Path == "/login":
		id := s.login(r)
		if id == "" {
			refuse()
			return
		}
		http.SetCookie(w, &http.Cookie{Name: "sid", Value: id, Path: "/", Secure: true, HttpOnly: true})
	case !s.known(r):
		if strings.HasPrefix(r.URL.Path, "/scm/") {
			s.mu.Lock()
			s.asked = append(s.asked, r.URL.Path)
			s.mu.Unlock()
		}
		refuse()
	case strings.HasPrefix(r.URL.Path, "/scm/"):
		s.backend.ServeHTTP(w, r)
	default:
		io.WriteString(w, `{"user":"alice"}`)
	}
}

// site is how an agent is told of the server.
func (s *gitServer) site() string {
	kind, login := "basic", `login_url = "login"`
	switch s.by {
	case "basic":
		login = `login_url = "api/me"`
	case "token":
		kind, login = "token", ""
	}
	return fmt.Sprintf("[credential.alice]\nusername = \"alice\"\n[site.code]\nurl = %q\nkind = %q\ncredential = \"alice\"\nprobe_url = \"api/me\"\nidentity_json = \"user\"\n%s\n", s.url+"/", kind, login)
}

// gitUser is somebody with a git, an agent, and nothing else.
type gitUser struct {
	*home
	git string
	env []string
	dir string // where alice's own files are
}

// newGitUser makes one whose agent is not running.
func newGitUser(t *testing.T, git, caFile string, config ...string) *gitUser {
	t.Helper()
	h := newHome(t, inProcess(t))
	write(t, h.config, strings.Join(config, "\n"))
	h.extraEnv = []string{"SSL_CERT_FILE=" + caFile}
	dir := t.TempDir()
	for _, d := range []string{"run", "bin"} {
		must(t, os.Mkdir(filepath.Join(dir, d), 0o700))
	}
	must(t, os.Symlink(filepath.Join(bin, "sessionctl"), filepath.Join(dir, "bin", "git-credential-sessionctl")))
	// A helper that keeps what it gets, as many have.
	write(t, filepath.Join(dir, ".gitconfig"), "[user]\n\tname = Alice\n\temail = alice@corp.example\n[credential]\n\thelper = store\n")
	return &gitUser{home: h, git: git, dir: dir, env: []string{
		"HOME=" + dir, "XDG_RUNTIME_DIR=" + filepath.Join(dir, "run"), "PATH=" + filepath.Join(dir, "bin") + ":" + bin + ":" + os.Getenv("PATH"), "LC_ALL=C",
		"SESSIONCTL_SOCKET=" + h.socket, "GIT_SSL_CAINFO=" + caFile, "GIT_TERMINAL_PROMPT=0", "GIT_CONFIG_NOSYSTEM=1", "GIT_TRACE=1",
	}}
}

// call runs a program in a directory of the user's, whatever comes of it. No secret
// may be in what it says.
func (u *gitUser) call(t *testing.T, stdin, program string, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env, cmd.Dir = u.env, u.dir
	r := finish(t, cmd, stdin)
	if strings.Contains(r.stderr, "CANARY") {
		t.Errorf("a secret is in a message: %v", r)
	}
	return r
}

// does runs git, which must not fail.
func (u *gitUser) does(t *testing.T, args ...string) {
	t.Helper()
	if r := u.call(t, "", u.git, args...); r.status != 0 {
		t.Fatalf("git %s: %v", strings.Join(args, " "), r)
	}
}

// fails runs git, which must fail, and say all of what is given.
func (u *gitUser) fails(t *testing.T, says []string, args ...string) {
	t.Helper()
	r := u.call(t, "", u.git, args...)
	if r.status == 0 {
		t.Errorf("git %s: %v", strings.Join(args, " "), r)
	}
	for _, s := range says {
		if !strings.Contains(r.stderr, s) {
			t.Errorf("git %s does not say %q: %v", strings.Join(args, " "), s, r)
		}
	}
}

// setup runs git-setup.
func (u *gitUser) setup(t *testing.T, args ...string) {
	t.Helper()
	if r := u.call(t, "", filepath.Join(bin, "sessionctl"), append([]string{"git-setup", "code"}, args...)...); r.status != 0 {
		t.Fatalf("%v", r)
	}
}

// works makes a clone, a commit in it, pushes it and fetches it.
func (u *gitUser) works(t *testing.T, s *gitServer, clone string) {
	t.Helper()
	u.does(t, "clone", "--quiet", s.url+"/scm/x.git", clone)
	u.does(t, "-C", clone, "commit", "--quiet", "--allow-empty", "--message=made in "+clone)
	u.does(t, "-C", clone, "push", "--quiet", "origin", "HEAD:main")
	u.does(t, "-C", clone, "fetch", "--quiet")
}

// keepsNothing: no file of the user's but the cookie file has a secret.
func (u *gitUser) keepsNothing(t *testing.T) {
	t.Helper()
	must(t, filepath.WalkDir(u.dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if strings.Contains(string(b), "CANARY") && filepath.Base(path) != "code.txt" {
			t.Errorf("a secret is in %s", path)
		}
		return err
	}))
}

// TestGitByCookie: git at a site that takes a cookie.
func TestGitByCookie(t *testing.T) {
	for name, git := range gits(t) {
		t.Run(name, func(t *testing.T) {
			s := startGit(t, "cookie")
			u := newGitUser(t, git, s.caFile, s.site())
			u.setupNoAgent(t)
			a := u.start(t)
			if r := u.bring(t, "code", gitPassword); r.status != 0 {
				t.Fatalf("%v", r)
			}
			u.fails(t, []string{"git takes cookies from a file alone"}, "-c", "credential.helper=sessionctl", "clone", s.url+"/scm/x.git", "without")
			u.setup(t)
			u.works(t, s, "warm")

			// Cold: git-setup, or jar, logs in.
			u.ok(t, "logout", "code")
			u.setup(t)
			u.works(t, s, "cold")

			// Expired: git fails, and tells the agent. Who keeps the file fresh writes it.
			keep := exec.Command(filepath.Join(bin, "sessionctl"), "jar", "code", "--keep")
			keep.Env, keep.SysProcAttr = u.env, &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
			must(t, keep.Start())
			defer keep.Wait()
			defer keep.Process.Signal(syscall.SIGTERM)
			u.works(t, s, "expired")
			s.forget()
			u.fails(t, []string{"the session in there is looked at now: try again"}, "-C", "expired", "fetch")
			for u.call(t, "", u.git, "-C", "expired", "fetch").status != 0 { // until the file is written
				if t.Context().Err() != nil {
					t.Fatal("the cookie file was not written anew")
				}
			}
			u.works(t, s, "refused")
			must(t, keep.Process.Signal(syscall.SIGTERM))
			keep.Wait()

			// Refused: the password is another one, as git says with what to do.
			s.change("CANARY-other")
			s.forget()
			u.fails(t, []string{"(bad_credentials)", "told us to quit", "  next: "}, "-C", "refused", "fetch")
			u.fails(t, []string{"(latched)", "told us to quit", "  next: "}, "-C", "refused", "fetch")

			// No agent: what is in the file works on.
			if r := u.bring(t, "code", "CANARY-other"); r.status != 0 {
				t.Fatalf("%v", r)
			}
			u.setup(t)
			a.stop(t)
			u.works(t, s, "no agent")
			s.forget()
			u.fails(t, []string{"no agent", "  next: "}, "-C", "no agent", "fetch")

			u.setup(t, "--undo")
			b, err := os.ReadFile(filepath.Join(u.dir, ".gitconfig"))
			must(t, err)
			if strings.Contains(string(b), "sessionctl") {
				t.Errorf("%s", b)
			}
			u.keepsNothing(t)
			noSecrets(t, a)
		})
	}
}

// setupNoAgent is git-setup without an agent.
func (u *gitUser) setupNoAgent(t *testing.T) {
	t.Helper()
	r := u.call(t, "", filepath.Join(bin, "sessionctl"), "git-setup", "code")
	if r.status != 3 || r.stdout != "" || !strings.Contains(r.stderr, "  next: ") {
		t.Errorf("%v", r)
	}
}

// TestGitByHeader: git at a site that takes a password or a token with each request.
func TestGitByHeader(t *testing.T) {
	for name, git := range gits(t) {
		for _, by := range []string{"basic", "token"} {
			t.Run(name+" by "+by, func(t *testing.T) {
				s := startGit(t, by)
				u := newGitUser(t, git, s.caFile, s.site())
				a := u.start(t)
				if r := u.bring(t, "code", gitPassword); r.status != 0 {
					t.Fatalf("%v", r)
				}
				u.setup(t)
				if by == "token" && git == "git" {
					u.fails(t, []string{"git takes no token of the scheme Bearer from a helper before its version 2.46"}, "clone", s.url+"/scm/x.git", "warm")
					return
				}
				u.works(t, s, "warm")
				u.ok(t, "logout", "code")
				u.works(t, s, "cold")

				// Expired, or revoked: git tells the agent, which finds it out once and for all.
				u.works(t, s, "expired")
				s.change("CANARY-changed")
				u.fails(t, []string{"Authentication failed"}, "-C", "expired", "fetch")
				u.fails(t, []string{"(latched)", "told us to quit", "  next: "}, "-C", "expired", "fetch")
				if r := u.bring(t, "code", "CANARY-changed"); r.status != 0 {
					t.Fatalf("%v", r)
				}
				u.works(t, s, "refused")

				// An erase is believed only if it is true.
				generation := u.ok(t, "get", "code", "-o", "json")
				if r := u.call(t, "url="+s.url+"/scm/x.git\nusername=alice\npassword=CANARY-wrong\n\n", u.git, "credential", "reject"); r.status != 0 {
					t.Errorf("%v", r)
				}
				if g := u.ok(t, "get", "code", "-o", "json"); generation == "" || field(g, "generation") != field(generation, "generation") {
					t.Errorf("an erase of what is not the agent's has ended the session: %s", g)
				}
				u.works(t, s, "no agent")

				a.stop(t)
				u.fails(t, []string{"no agent", "  next: "}, "-C", "no agent", "fetch")
				u.keepsNothing(t)
				noSecrets(t, a)
			})
		}
	}
}

// field returns a text member of JSON as sessionctl writes it.
func field(json, name string) string {
	_, rest, _ := strings.Cut(json, `"`+name+`": "`)
	value, _, _ := strings.Cut(rest, `"`)
	return value
}

// TestGitElsewhere: another host gets nothing, also if ours leads there.
func TestGitElsewhere(t *testing.T) {
	for name, git := range gits(t) {
		for _, by := range []string{"cookie", "basic"} {
			t.Run(name+" by "+by, func(t *testing.T) {
				s := startGit(t, by)
				var mu sync.Mutex
				var got []string
				other := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					mu.Lock()
					got = append(got, r.Header.Get("Cookie")+r.Header.Get("Authorization"))
					mu.Unlock()
					w.Header().Set("WWW-Authenticate", `Basic realm="other"`)
					w.WriteHeader(http.StatusUnauthorized)
				}))
				other.Start()
				t.Cleanup(other.Close)
				backend := s.backend
				s.backend = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if strings.Contains(r.URL.Path, "/led") {
						http.Redirect(w, r, other.URL+strings.TrimPrefix(r.URL.RequestURI(), "/scm"), http.StatusFound)
						return
					}
					backend.ServeHTTP(w, r)
				})
				u := newGitUser(t, git, s.caFile, s.site())
				u.start(t)
				if r := u.bring(t, "code", gitPassword); r.status != 0 {
					t.Fatalf("%v", r)
				}
				u.setup(t)
				u.fails(t, nil, "clone", other.URL+"/scm/x.git", "a")
				u.fails(t, nil, "clone", s.url+"/scm/led.git", "b")
				mu.Lock()
				defer mu.Unlock()
				if len(got) < 2 || strings.Join(got, "") != "" {
					t.Errorf("the other host got %q", got)
				}
			})
		}
	}
}

// TestGitStorm: however often git's helper is called for a session that lives, no login
// comes of it, and of a password that the site refuses one attempt.
func TestGitStorm(t *testing.T) {
	const row, atOnce = 50, 20
	start := func(t *testing.T, by string) (s *gitServer, u *gitUser, generation string) {
		rig.Require(t, "git")
		s = startGit(t, by)
		u = newGitUser(t, "git", s.caFile, s.site())
		u.start(t)
		if r := u.bring(t, "code", gitPassword); r.status != 0 {
			t.Fatalf("%v", r)
		}
		return s, u, field(u.ok(t, "get", "code", "-o", "json"), "generation")
	}
	// storm returns how many requests came of 50 calls in a row and 20 at once.
	storm := func(t *testing.T, s *gitServer, u *gitUser, operation, more string) (logins, secrets, probes int) {
		t.Helper()
		helper := filepath.Join(u.dir, "bin", "git-credential-sessionctl")
		request := "protocol=https\nhost=" + strings.TrimPrefix(s.url, "https://") + "\n" + more + "\n"
		s.counted()
		for range row {
			u.call(t, request, helper, operation)
		}
		logins, secrets, probes = s.counted()
		t.Logf("%s: %d logins, %d requests with a secret, %d probes for %d in a row", operation, logins, secrets, probes, row)
		var all sync.WaitGroup
		for range atOnce {
			all.Go(func() { u.call(t, request, helper, operation) })
		}
		all.Wait()
		l, q, p := s.counted()
		t.Logf("%s: %d logins, %d requests with a secret, %d probes for %d at once", operation, l, q, p, atOnce)
		return logins + l, secrets + q, probes + p
	}
	t.Run("cookie", func(t *testing.T) {
		s, u, generation := start(t, "cookie")
		for _, c := range []struct {
			operation, more string
			most            int // probes
		}{
			{"get", "", row + atOnce}, {"erase", "", row + atOnce}, {"erase", "generation=" + generation + "\n", row + atOnce},
			{"erase", "generation=another\n", 0}, {"erase", "state[]=sessionctl:generation=another\n", 0}, {"store", "", 0},
		} {
			if logins, secrets, probes := storm(t, s, u, c.operation, c.more); logins > 0 || secrets > 0 || probes > c.most {
				t.Errorf("%s %q: %d logins, %d secrets, %d probes", c.operation, c.more, logins, secrets, probes)
			}
		}
		if after := field(u.ok(t, "get", "code", "-o", "json"), "generation"); generation == "" || after != generation {
			t.Errorf("generation %q, then %q", generation, after)
		}
	})
	t.Run("basic", func(t *testing.T) {
		s, u, generation := start(t, "basic")
		for _, operation := range []string{"get", "erase"} {
			if logins, secrets, _ := storm(t, s, u, operation, ""); logins > 0 || secrets > row+atOnce {
				t.Errorf("%s: %d logins, %d secrets", operation, logins, secrets)
			}
		}
		if after := field(u.ok(t, "get", "code", "-o", "json"), "generation"); generation == "" || after != generation {
			t.Errorf("generation %q, then %q", generation, after)
		}
	})
	for _, by := range []string{"cookie", "basic", "token"} {
		for _, operations := range [][]string{{"get", "erase"}, {"erase", "get"}} {
			t.Run(by+" refused, "+operations[0], func(t *testing.T) {
				s, u, _ := start(t, by)
				s.change("CANARY-other")
				s.forget()
				attempts := 0
				for _, operation := range operations {
					logins, secrets, _ := storm(t, s, u, operation, "")
					attempts += logins + secrets
				}
				// A token is the session, too: it is refused by the probe, and by one login.
				if most := map[string]int{"cookie": 1, "basic": 1, "token": 2}[by]; attempts == 0 || attempts > most {
					t.Errorf("the secret was tried %d times", attempts)
				}
			})
		}
	}
}

// TestGitTrace: what git shows of a session when it is told to trace its requests.
func TestGitTrace(t *testing.T) {
	for name, git := range gits(t) {
		for _, by := range []string{"cookie", "basic"} {
			t.Run(name+" by "+by, func(t *testing.T) {
				s := startGit(t, by)
				backend := s.backend
				s.backend = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					http.SetCookie(w, &http.Cookie{Name: "renewed", Value: "CANARY-renewed"})
					backend.ServeHTTP(w, r)
				})
				u := newGitUser(t, git, s.caFile, s.site())
				u.start(t)
				if r := u.bring(t, "code", gitPassword); r.status != 0 {
					t.Fatalf("%v", r)
				}
				u.setup(t)
				sent := map[string]string{"cookie": "Send header: Cookie: sid=", "basic": "Send header: Authorization: Basic "}[by]
				for _, redact := range []string{"1", "0"} {
					cmd := exec.CommandContext(t.Context(), git, "ls-remote", s.url+"/scm/x.git")
					cmd.Dir = u.dir
					cmd.Env = append(u.env, "GIT_CURL_VERBOSE=1", "GIT_TRACE_CURL=1", "GIT_TRACE_SETUP=1", "GIT_TRACE2=1", "GIT_TRACE_PACKET=1", "GIT_TRACE_REDACT="+redact)
					r := finish(t, cmd, "")
					if r.status != 0 || strings.Contains(r.stderr, sent+"<redacted>") != (redact == "1") {
						t.Errorf("%v", r)
					}
					// What the site sends is never redacted, here and where libcurl takes it in.
					rest := strings.ReplaceAll(r.stderr, "CANARY-renewed", "")
					if !strings.Contains(r.stderr, "Recv header: Set-Cookie: renewed=CANARY-renewed") || redact == "1" && strings.Contains(rest, "CANARY") || by == "cookie" && redact == "0" && !strings.Contains(rest, "CANARY") {
						t.Errorf("redact %s: %v", redact, r)
					}
				}
			})
		}
	}
}
