package e2e

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
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

// bin is where TestMain puts the programs. Everybody may enter it, because one
// test calls them as another user.
var bin string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "sessionctl-e2e")
		if err != nil {
			panic(err)
		}
		defer os.RemoveAll(dir)
		if err := os.Chmod(dir, 0o755); err != nil {
			panic(err)
		}
		bin = dir
		for _, p := range []struct{ name, race, cgo string }{
			{"sessionctl", "-race=false", "0"}, {"sessionctl-admin", "-race=false", "0"}, {"sessiond", raceFlag, "0"}, {"sessionlab", raceFlag, "0"},
		} {
			if p.race == "-race" {
				p.cgo = "1" // which the race detector needs
			}
			cmd := exec.Command("go", "build", p.race, "-o", filepath.Join(dir, p.name), "../../../cmd/"+p.name)
			cmd.Env = append(os.Environ(), "CGO_ENABLED="+p.cgo)
			if out, err := cmd.CombinedOutput(); err != nil {
				fmt.Fprintf(os.Stderr, "%s: %v\n%s", p.name, err, out)
				return 1
			}
		}
		return m.Run()
	}())
}

// lookAtSources makes go test's cache depend on all sources of the programs,
// which it cannot know: they are built by a child. What is looked at before
// the tests run does not count, so newHome calls it.
var lookAtSources = sync.OnceFunc(func() {
	root := filepath.Join("..", "..", "..")
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() && d.Name() != "." && d.Name() != ".." && strings.HasPrefix(d.Name(), ".") {
			return cmp.Or(err, filepath.SkipDir)
		}
		if name := d.Name(); strings.HasSuffix(name, ".go") || name == "go.mod" || name == "go.sum" {
			_, err = os.Stat(path)
		}
		return err
	})
	if err != nil {
		panic(err)
	}
})

// realm is the realm of every KDC here.
const realm = "CORP.EXAMPLE"

// password of the service account. Its keytab holds keys made from it.
const password = "CANARY-password"

// world is a KDC and a site with the pages of rig.Apache, with the account
// build and its keytab.
type world struct {
	krb5Conf, keytab string
	url              string // http://localhost:port
	counts           func(*testing.T) rig.Counts
	hits             func(*testing.T, string) rig.Hits
	stopKDC          func(*testing.T)
	startKDC         func(*testing.T)
	forget           func(*testing.T) // the site forgets its sessions
	stopSite         func(*testing.T)
	startSite        func(*testing.T)
	addKeytab        func(t *testing.T, account string, right bool) string

	kdc            *rig.KDC // nil in the real world
	tlsURL, caFile string   // only in the real world
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, path, text string) string {
	t.Helper()
	must(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

// inProcess is a world that needs nothing but Go.
func inProcess(t *testing.T) *world {
	dir := t.TempDir()
	k, err := rig.NewKDC(realm)
	must(t, err)
	t.Cleanup(k.Close)
	k.AddPrincipal("build", password)
	k.AddService("HTTP/localhost")
	s, err := rig.StartSite(k.Keytab("HTTP/localhost"))
	must(t, err)
	t.Cleanup(s.Stop)
	return &world{
		kdc:      k,
		krb5Conf: write(t, filepath.Join(dir, "krb5.conf"), k.Krb5Conf()),
		keytab:   write(t, filepath.Join(dir, "build.keytab"), string(k.Keytab("build"))),
		url:      s.URL(),
		counts:   func(*testing.T) rig.Counts { return k.Counts() },
		hits:     func(_ *testing.T, prefix string) rig.Hits { return s.Hits(prefix) },
		stopKDC:  func(t *testing.T) { must(t, k.SetMode(rig.Refusing)) },
		startKDC: func(t *testing.T) { must(t, k.SetMode(rig.Answering)) },
		forget:   func(*testing.T) { s.ForgetSessions() },
		stopSite: func(*testing.T) { s.Stop() },
		startSite: func(t *testing.T) {
			must(t, s.Start())
		},
		addKeytab: func(t *testing.T, account string, right bool) string {
			k.AddPrincipal(account, password)
			kt := k.Keytab(account)
			if !right {
				k.Rekey(account, "CANARY-other")
			}
			return write(t, filepath.Join(dir, account+".keytab"), string(kt))
		},
	}
}

// realServers is the same world of MIT's KDC and Apache with mod_auth_gssapi.
func realServers(t *testing.T) *world {
	rig.Require(t, "krb5kdc", "kdb5_util", "kadmin.local", "apache2", "mod_auth_gssapi", "mod_ssl")
	dir := t.TempDir()
	k, err := rig.StartMIT(t.Context(), filepath.Join(dir, "kdc"), realm)
	must(t, err)
	t.Cleanup(k.Stop)
	must(t, k.AddPrincipal(t.Context(), "build", password))
	must(t, k.AddService(t.Context(), "HTTP/localhost"))
	keytab, http := filepath.Join(dir, "build.keytab"), filepath.Join(dir, "http.keytab")
	must(t, k.Keytab(t.Context(), keytab, "build"))
	must(t, k.Keytab(t.Context(), http, "HTTP/localhost"))
	a, err := rig.StartApache(t.Context(), filepath.Join(dir, "apache"), rig.ApacheOptions{Krb5ConfFile: k.Krb5ConfFile(), KeytabFile: http})
	must(t, err)
	t.Cleanup(a.Stop)
	return &world{
		krb5Conf: k.Krb5ConfFile(), keytab: keytab, url: a.URL(), tlsURL: a.TLSURL(), caFile: a.CAFile(),
		counts: func(t *testing.T) rig.Counts {
			c, err := k.Counts()
			must(t, err)
			return c
		},
		hits: func(t *testing.T, prefix string) rig.Hits {
			h, err := a.Hits(prefix)
			must(t, err)
			return h
		},
		stopKDC:   func(*testing.T) { k.Stop() },
		startKDC:  func(t *testing.T) { must(t, k.Start(t.Context())) },
		forget:    func(t *testing.T) { must(t, a.Restart(t.Context(), true)) },
		stopSite:  func(*testing.T) { a.Stop() },
		startSite: func(t *testing.T) { must(t, a.Start(t.Context())) },
		addKeytab: func(t *testing.T, account string, right bool) string {
			must(t, k.AddPrincipal(t.Context(), account, password))
			path := filepath.Join(dir, account+".keytab")
			must(t, k.Keytab(t.Context(), path, account))
			if !right {
				must(t, k.Rekey(t.Context(), account, "CANARY-other"))
			}
			return path
		},
	}
}

// inBothWorlds runs a test against the servers in this process and against the
// real ones.
func inBothWorlds(t *testing.T, f func(*testing.T, *world)) {
	t.Run("in-process", func(t *testing.T) { f(t, inProcess(t)) })
	t.Run("real", func(t *testing.T) { f(t, realServers(t)) })
}

// home is where one user's agent keeps its things.
type home struct {
	dir, config, store, socket string
	krb5Conf                   string
	extraEnv                   []string
	uid                        uint32 // who runs the agent, 0: who runs the test
}

// newHome makes a home with a site "app" at the world's /spnego/, plus what is
// given.
func newHome(t *testing.T, w *world, more ...string) *home {
	t.Helper()
	lookAtSources()
	dir, err := os.MkdirTemp("", "e2e") // short: a socket's path has at most 107 bytes
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	h := &home{dir: dir, config: filepath.Join(dir, "sessiond.toml"), store: filepath.Join(dir, "state", "store.db"),
		socket: filepath.Join(dir, "run", "agent.sock"), krb5Conf: w.krb5Conf}
	write(t, h.config, fmt.Sprintf(`
[credential.build]
principal = "build@%s"
keytab    = %q

[site.app]
url           = %q
kind          = "spnego"
credential    = "build"
insecure_http = true
login_url     = "/spnego/"
probe_url     = "/spnego/whoami"
identity_json = "user"
%s`, realm, w.keytab, w.url+"/spnego/", strings.Join(more, "\n")))
	return h
}

// env is the environment of the agent: nothing of the tests' own. With the race
// detector, a program would sleep for a second before it ends.
func (h *home) env() []string {
	return append([]string{"HOME=" + h.dir, "PATH=" + bin + ":" + os.Getenv("PATH"), "KRB5_CONFIG=" + h.krb5Conf, "GORACE=atexit_sleep_ms=0"}, h.extraEnv...)
}

// agent is a running sessiond.
type agent struct {
	*home
	cmd  *exec.Cmd
	log  *lockedBuffer
	done chan struct{}
	err  error
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// start starts the agent and waits until it says that it is ready, as it tells
// systemd (sd_notify(3)).
func (h *home) start(t *testing.T) *agent {
	t.Helper()
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(h.dir, "notify"), Net: "unixgram"})
	must(t, err)
	defer os.Remove(filepath.Join(h.dir, "notify"))
	must(t, os.Chmod(filepath.Join(h.dir, "notify"), 0o666))
	defer notify.Close()
	a := &agent{home: h, log: &lockedBuffer{}, done: make(chan struct{})}
	a.cmd = exec.Command(filepath.Join(bin, "sessiond"), "--config", h.config, "--store", h.store, "--socket", h.socket, "--log-level", "debug")
	a.cmd.Env = append(h.env(), "NOTIFY_SOCKET="+filepath.Join(h.dir, "notify"))
	a.cmd.Stdout, a.cmd.Stderr = a.log, a.log
	a.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if h.uid != 0 {
		a.cmd.SysProcAttr.Credential = &syscall.Credential{Uid: h.uid, Gid: h.uid}
		a.cmd.Dir = "/"
	}
	must(t, a.cmd.Start())
	go func() {
		a.err = a.cmd.Wait()
		close(a.done)
		notify.SetReadDeadline(time.Unix(1, 0))
	}()
	t.Cleanup(func() {
		a.cmd.Process.Kill()
		<-a.done
		if t.Failed() {
			t.Logf("the agent said:\n%s", a.log)
		}
		if strings.Contains(a.log.String(), "DATA RACE") {
			t.Errorf("a race in the agent:\n%s", a.log)
		}
	})
	must(t, notify.SetReadDeadline(time.Now().Add(30*time.Second)))
	buf := make([]byte, 100)
	n, err := notify.Read(buf)
	if err != nil || string(buf[:n]) != "READY=1" {
		t.Fatalf("the agent is not ready: %q %v\n%s", buf[:n], err, a.log)
	}
	return a
}

// stop ends the agent as systemd does and waits for it.
func (a *agent) stop(t *testing.T) {
	t.Helper()
	must(t, a.cmd.Process.Signal(syscall.SIGTERM))
	<-a.done
	if a.err != nil {
		t.Errorf("the agent ended with %v\n%s", a.err, a.log)
	}
}

// result is what a program left.
type result struct {
	status         int
	stdout, stderr string
}

func (r result) String() string {
	return fmt.Sprintf("status %d\nstdout: %s\nstderr: %s", r.status, r.stdout, r.stderr)
}

// run calls a program with an environment that holds nothing but where the
// agent is.
func (h *home) run(t *testing.T, stdin, program string, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = []string{"SESSIONCTL_SOCKET=" + h.socket, "PATH=" + bin + ":" + os.Getenv("PATH"), "KRB5_CONFIG=" + h.krb5Conf}
	return finish(t, cmd, stdin)
}

func finish(t *testing.T, cmd *exec.Cmd, stdin string) result {
	t.Helper()
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%s: %v", cmd.Path, err)
	}
	return result{cmd.ProcessState.ExitCode(), out.String(), errs.String()}
}

// sessionctl calls sessionctl.
func (h *home) sessionctl(t *testing.T, args ...string) result {
	t.Helper()
	return h.run(t, "", filepath.Join(bin, "sessionctl"), args...)
}

// ok calls sessionctl, which must not fail, and returns what it prints.
func (h *home) ok(t *testing.T, args ...string) string {
	t.Helper()
	r := h.sessionctl(t, args...)
	if r.status != 0 {
		t.Fatalf("sessionctl %s: %v", strings.Join(args, " "), r)
	}
	return r.stdout
}

// fails calls sessionctl, which must fail with a status, naming a code and a
// next step.
func (h *home) fails(t *testing.T, status int, code string, args ...string) result {
	t.Helper()
	r := h.sessionctl(t, args...)
	wantFailure(t, r, status, code)
	return r
}

func wantFailure(t *testing.T, r result, status int, code string) {
	t.Helper()
	if r.status != status || !strings.Contains(r.stderr, "("+code+")") || r.stdout != "" {
		t.Errorf("want status %d, code %s and nothing on stdout; got %v", status, code, r)
	}
	if status != 7 && !strings.Contains(r.stderr, "\n  next: ") {
		t.Errorf("no next step: %v", r)
	}
	if strings.Contains(r.stderr, "CANARY") {
		t.Errorf("a secret is in a message: %v", r)
	}
}

// whoami asks the site who one is with nothing but a Cookie header.
func whoami(t *testing.T, w *world, cookie string) string {
	t.Helper()
	c, err := net.Dial("tcp", strings.Replace(strings.TrimPrefix(w.url, "http://"), "localhost", "127.0.0.1", 1))
	must(t, err)
	defer c.Close()
	// By hand, because net/http would quote the cookie anew.
	fmt.Fprintf(c, "GET /spnego/whoami HTTP/1.0\r\nHost: localhost\r\nCookie: %s\r\n\r\n", strings.TrimSuffix(cookie, "\n"))
	s := bufio.NewScanner(c)
	var head, body string
	for s.Scan() {
		if head == "" {
			head = s.Text()
		}
		body = s.Text()
	}
	if !strings.Contains(head, " 200") {
		return head
	}
	return strings.TrimSpace(body)
}

const me = `{"user":"build@` + realm + `"}`
