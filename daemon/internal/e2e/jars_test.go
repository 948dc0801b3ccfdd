package e2e

import (
	"bufio"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

const filesPage = "docs/files.md"

// jarWorld is a site app.corp.test, and all other hosts, behind a proxy, through which
// every reader of cookie files finds names that no resolver knows. Its session is a
// host-only cookie s, below /base; a cookie d, which is corp.test's; and one that is
// for deeper pages alone.
type jarWorld struct {
	*home
	hand   string // the directory of what makes the site go this way or that
	proxy  *httptest.Server
	value  atomic.Pointer[string] // of the s that is good
	any    atomic.Bool            // every s is good
	asked  atomic.Int32           // for /base/page
	missed atomic.Int32           // of these without a session
	mu     sync.Mutex
	cookie map[string]string // Cookie by host and path, of the last request
}

const (
	jarSite  = "http://app.corp.test/base/"
	hostOnly = "s=CANARY-1" // the cookie that only the site gets
)

func newJarWorld(t *testing.T) *jarWorld {
	t.Helper()
	w := &jarWorld{hand: t.TempDir(), cookie: map[string]string{}}
	w.proxy = httptest.NewServer(w)
	t.Cleanup(w.proxy.Close)
	w.home = annasHome(t, "CANARY-anna", `
[site.app]
url           = "`+jarSite+`"
kind          = "command"
credential    = "anna"
insecure_http = true
command       = ["/bin/sh", "PROGRAM"]
probe_url     = "whoami"
identity_json = "user"
`)
	w.extraEnv = append(w.extraEnv, "http_proxy="+w.proxy.URL)
	program := write(t, filepath.Join(w.hand, "login.sh"), `
printf x >>"`+w.hand+`/logins"
if [ -e "`+w.hand+`/refuse" ]; then
  echo '{"version": 1, "error": {"code": "bad_credentials", "detail": "no", "password_used": true}}'
  exit
fi
read -r value <"`+w.hand+`/value"
printf '{"version": 1, "set_cookie": ['
printf '{"url": "`+jarSite+`", "line": "s=%s; Path=/base/; HttpOnly"}, ' "$value"
printf '{"url": "`+jarSite+`", "line": "d=CANARY-d; Domain=corp.test; Path=/"}, '
printf '{"url": "`+jarSite+`", "line": "deep=CANARY-deep; Path=/base/deep"}]}'
`)
	w.rewrite(t, "PROGRAM", program)
	w.become(t, "CANARY-1")
	return w
}

// become makes another s good, which the next login brings.
func (w *jarWorld) become(t *testing.T, value string) {
	t.Helper()
	w.value.Store(&value)
	write(t, filepath.Join(w.hand, "value"), value+"\n")
}

func (w *jarWorld) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	cookie := strings.ReplaceAll(strings.Join(r.Header["Cookie"], " and "), " ", "")
	fields := strings.Split(cookie, ";")
	known := r.Host == "app.corp.test" && (slices.Contains(fields, "s="+*w.value.Load()) || w.any.Load() && strings.Contains(cookie, "s=CANARY-"))
	w.mu.Lock()
	w.cookie[r.Host+r.URL.Path] = cookie
	w.mu.Unlock()
	switch r.URL.Path {
	case "/base/whoami":
		if !known {
			rw.WriteHeader(http.StatusUnauthorized)
			return
		}
		fmt.Fprint(rw, anna)
	case "/base/page":
		w.asked.Add(1)
		if !known {
			w.missed.Add(1)
			fmt.Fprint(rw, "nobody")
			return
		}
		fmt.Fprint(rw, "anna")
	case "/base/away":
		http.Redirect(rw, r, "http://foreign.test/base/x", http.StatusFound)
	default:
		fmt.Fprint(rw, "a page")
	}
}

// got returns the Cookie header of the last request for a URL, without spaces.
func (w *jarWorld) got(t *testing.T, url string) string {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	c, ok := w.cookie[strings.TrimPrefix(url, "http://")]
	if !ok {
		t.Errorf("nobody has asked for %s", url)
	}
	return c
}

// jarReaders are programs that read a file, by the commands of docs/files.md. Of a
// host-only cookie, some give sub-domains their part.
var jarReaders = []struct {
	name   string
	needs  []string
	argv   []string // FILE and URL stand for themselves
	leaks  bool     // the host-only cookie, to sub-domains
	silent bool     // about a file that is not there
}{
	{"curl", []string{"curl"}, []string{"curl", "-sSL", "-b", "FILE", "URL"}, false, true},
	{"wget", []string{"wget"}, []string{"wget", "-q", "-O", "-", "--load-cookies", "FILE", "URL"}, false, false},
	{"aria2c", []string{"aria2c"}, []string{"sh", "-c", `d=$(mktemp -d) && aria2c -q -d "$d" -o page --load-cookies="$0" "$1" && cat "$d/page"; s=$?; rm -r "$d"; exit $s`, "FILE", "URL"}, false, true},
	{"python", []string{"python3"}, []string{"/usr/bin/python3", "PYTHON", "FILE", "URL"}, false, false},
	{"python, its own policy", []string{"python3"}, []string{"/usr/bin/python3", "-c", `
import http.cookiejar, sys, urllib.request
jar = http.cookiejar.MozillaCookieJar(sys.argv[1])
jar.load()
print(urllib.request.build_opener(urllib.request.HTTPCookieProcessor(jar)).open(sys.argv[2]).read().decode(), end="")
`, "FILE", "URL"}, true, false},
	{"requests", []string{"py_requests"}, []string{"/usr/bin/python3", "-c", `
import http.cookiejar, sys, requests
policy = http.cookiejar.DefaultCookiePolicy(strict_ns_domain=http.cookiejar.DefaultCookiePolicy.DomainStrictNonDomain)
session = requests.Session()
session.cookies = http.cookiejar.MozillaCookieJar(sys.argv[1], policy=policy)
session.cookies.load()
print(session.get(sys.argv[2], timeout=30).text, end="")
`, "FILE", "URL"}, true, false},
	{"HTTPie", []string{"http"}, []string{"http", "--ignore-stdin", "--follow", "--body", "--session-read-only=FILE", "GET", "URL"}, true, true},
}

// read makes a reader fetch a URL.
func (w *jarWorld) read(t *testing.T, argv []string, file, url string) result {
	t.Helper()
	line := []string{"http_proxy=" + w.proxy.URL, "HOME=" + w.dir, "LANG=C.UTF-8"}
	for _, arg := range argv {
		if arg == "PYTHON" {
			arg = write(t, filepath.Join(w.hand, "fetch.py"), sectionBlock(t, filesPage, "Python", "python"))
		}
		line = append(line, strings.NewReplacer("FILE", file, "URL", url).Replace(arg))
	}
	return w.run(t, "", "env", line...)
}

// file writes what a reader reads.
func (w *jarWorld) file(t *testing.T, reader string) string {
	t.Helper()
	dir := t.TempDir()
	must(t, os.Chmod(dir, 0o700))
	if file := filepath.Join(dir, "session.json"); reader == "HTTPie" {
		write(t, file, w.ok(t, "get", "app", "-o", "httpie"))
		return file
	}
	file := filepath.Join(dir, "app.txt")
	w.ok(t, "jar", "app", file)
	return file
}

// TestJarReaders: every reader has the session where it belongs, and only there.
func TestJarReaders(t *testing.T) {
	w := newJarWorld(t)
	a := w.start(t)
	for _, r := range jarReaders {
		t.Run(r.name, func(t *testing.T) {
			rig.Require(t, r.needs...)
			w.become(t, "CANARY-1")
			w.ok(t, "refresh", "app")
			file := w.file(t, r.name)
			fetch := func(url string) string {
				t.Helper()
				if got := w.read(t, r.argv, file, url); got.status != 0 || got.stderr != "" {
					t.Errorf("%s: %v", url, got)
				} else {
					return strings.TrimSpace(got.stdout)
				}
				return ""
			}
			if got := fetch(jarSite + "page"); got != "anna" {
				t.Errorf("warm: %q", got)
			}
			if got := w.got(t, jarSite+"page"); strings.Contains(got, "deep") {
				t.Errorf("it has got %q", got)
			}
			for _, c := range []struct {
				fetch, sees string
				host, d     bool
			}{
				{"http://app.corp.test/other", "http://app.corp.test/other", false, true},
				{"http://sub.app.corp.test/base/x", "http://sub.app.corp.test/base/x", r.leaks, r.leaks},
				{"http://other.corp.test/base/x", "http://other.corp.test/base/x", false, false},
				{jarSite + "away", "http://foreign.test/base/x", false, false},
			} {
				fetch(c.fetch)
				got := w.got(t, c.sees)
				if strings.Contains(got, hostOnly) != c.host || strings.Contains(got, "d=CANARY-d") != c.d || strings.Contains(got, "deep") || strings.Contains(got, "and") {
					t.Errorf("%s has got %q", c.sees, got)
				}
			}

			// The site forgets the session: nobody tells the reader.
			w.become(t, "CANARY-2")
			if got := fetch(jarSite + "page"); got != "nobody" {
				t.Errorf("expired: %q", got)
			}
			w.ok(t, "reject", "app")
			if file = w.file(t, r.name); fetch(jarSite+"page") != "anna" {
				t.Error("not the new session")
			}

			if r.name == "HTTPie" {
				return // which makes its file if there is none
			}
			must(t, os.Remove(file))
			got := w.read(t, r.argv, file, jarSite+"page")
			if said := got.status != 0 || got.stderr != ""; r.silent && (said || strings.TrimSpace(got.stdout) != "nobody") || !r.silent && strings.Contains(got.stdout, "anna") {
				t.Errorf("without a file: %v", got)
			}
		})
	}
	a.stop(t)
	noSecrets(t, a)
}

// keeping is a sessionctl jar --keep.
type keeping struct {
	cmd   *exec.Cmd
	lines *bufio.Reader
	all   strings.Builder
}

func (w *jarWorld) keeping(t *testing.T, file string) *keeping {
	t.Helper()
	k := &keeping{cmd: exec.CommandContext(t.Context(), filepath.Join(bin, "sessionctl"), "jar", "app", file, "--keep")}
	k.cmd.Env = []string{"SESSIONCTL_SOCKET=" + w.socket}
	k.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stderr, err := k.cmd.StderrPipe()
	must(t, err)
	must(t, k.cmd.Start())
	k.lines = bufio.NewReader(stderr)
	return k
}

// until reads what it says until a text comes.
func (k *keeping) until(t *testing.T, text string) {
	t.Helper()
	for {
		line, err := k.lines.ReadString('\n')
		k.all.WriteString(line)
		if strings.Contains(line, text) {
			return
		}
		if err != nil {
			t.Fatalf("%q does not come: %v\n%s", text, err, &k.all)
		}
	}
}

// TestJarKeep: the file follows the session, through its end, a refusal and a restart.
func TestJarKeep(t *testing.T) {
	rig.Require(t, "curl")
	w := newJarWorld(t)
	a := w.start(t)
	dir := t.TempDir()
	must(t, os.Chmod(dir, 0o700))
	file := filepath.Join(dir, "app.txt")
	curl := func(want string) {
		t.Helper()
		if r := w.read(t, jarReaders[0].argv, file, jarSite+"page"); r.status != 0 || r.stdout != want {
			t.Errorf("want %s: %v", want, r)
		}
	}
	k := w.keeping(t, file)
	k.until(t, "the session of anna is in "+file)
	curl("anna")
	w.become(t, "CANARY-2")
	curl("nobody")
	w.ok(t, "reject", "app")
	k.until(t, "the session of anna is in "+file)
	curl("anna")

	// Refused: a dead session does not stay in the file.
	w.become(t, "CANARY-3")
	write(t, filepath.Join(w.hand, "refuse"), "")
	w.sessionctl(t, "reject", "app")
	k.until(t, file+" is removed: there is no session for it")
	if _, err := os.Lstat(file); !os.IsNotExist(err) {
		t.Errorf("%v", err)
	}
	w.fails(t, 5, "bad_credentials", "jar", "app", file)
	must(t, os.Remove(filepath.Join(w.hand, "refuse")))
	w.ok(t, "login", "app", "--retry")
	k.until(t, "the session of anna is in "+file)
	curl("anna")

	// Without an agent it stays, and is still good.
	a.stop(t)
	k.until(t, "(no_agent)")
	w.fails(t, 3, "no_agent", "jar", "app", file)
	curl("anna")
	argv, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", k.cmd.Process.Pid))
	must(t, err)
	environment, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", k.cmd.Process.Pid))
	must(t, err)
	b := w.start(t)
	must(t, k.cmd.Process.Signal(syscall.SIGTERM))
	for {
		line, err := k.lines.ReadString('\n')
		if k.all.WriteString(line); err != nil {
			break
		}
	}
	if err := k.cmd.Wait(); err != nil {
		t.Errorf("it ended with %v", err)
	}
	curl("anna")
	if strings.Contains(string(argv)+string(environment)+k.all.String(), "CANARY") {
		t.Errorf("a secret shows: %s", &k.all)
	}
	b.stop(t)
	noSecrets(t, a)
	noSecrets(t, b)
}

// TestJarReplaced: of 100 curls, ten at a time, none is without cookies while the file
// is replaced again and again.
func TestJarReplaced(t *testing.T) {
	rig.Require(t, "curl")
	w := newJarWorld(t)
	w.any.Store(true)
	w.start(t)
	dir := t.TempDir()
	must(t, os.Chmod(dir, 0o700))
	file := filepath.Join(dir, "app.txt")
	k := w.keeping(t, file)
	k.until(t, "the session of anna is in "+file)
	stop, replaced := make(chan struct{}), make(chan int)
	go func() {
		n := 0
		for ; ; n++ {
			select {
			case <-stop:
				replaced <- n
				return
			default:
			}
			value := fmt.Sprintf("CANARY-%d", n+2)
			w.become(t, value)
			if r := w.sessionctl(t, "refresh", "app"); r.status != 0 {
				t.Errorf("%v", r)
			}
			for range 10 {
				if r := w.sessionctl(t, "jar", "app", file); r.status != 0 {
					t.Errorf("%v", r)
				}
			}
		}
	}()
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			for range 10 {
				if r := w.read(t, jarReaders[0].argv, file, jarSite+"page"); r.status != 0 || r.stdout != "anna" {
					t.Errorf("%v", r)
				}
			}
		})
	}
	wg.Wait()
	close(stop)
	n := <-replaced
	t.Logf("%d curls, %d without a session, while the file was replaced at least %d times", w.asked.Load(), w.missed.Load(), 11*n)
	if w.asked.Load() != 100 || w.missed.Load() != 0 || n == 0 {
		t.Errorf("%d of %d without a session, %d sessions", w.missed.Load(), w.asked.Load(), n)
	}
	must(t, k.cmd.Process.Signal(os.Interrupt))
	if err := k.cmd.Wait(); err != nil {
		t.Errorf("it ended with %v", err)
	}
}
