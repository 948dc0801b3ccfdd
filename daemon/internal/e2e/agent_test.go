package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestMasterKeyFromSystemd: the key that systemd hands over
// (systemd.exec(5), LoadCredential=) seals the store; no key file is made, and
// no other key opens it.
func TestMasterKeyFromSystemd(t *testing.T) {
	w := inProcess(t)
	h := newHome(t, w)
	credentials := filepath.Join(h.dir, "credentials")
	must(t, os.Mkdir(credentials, 0o700))
	write(t, filepath.Join(credentials, "master"), "CANARY-master-key-of-32-bytes-or-more")
	h.extraEnv = []string{"CREDENTIALS_DIRECTORY=" + credentials}
	a := h.start(t)
	h.ok(t, "raw", "app")
	if out := h.ok(t, "status"); !strings.Contains(out, "credential master") {
		t.Errorf("status: %s", out)
	}
	a.stop(t)
	if _, err := os.Stat(strings.TrimSuffix(h.store, ".db") + ".key"); !os.IsNotExist(err) {
		t.Errorf("a key file was made: %v", err)
	}
	one := func(after string) { // whose cookie each proof changes
		t.Helper()
		if who := whoami(t, w, h.ok(t, "raw", "app")); who != me || w.hits(t, "/").Negotiate != 1 {
			t.Errorf("another session after %s, of %s", after, who)
		}
	}
	b := h.start(t)
	one("the restart")
	b.stop(t)

	write(t, filepath.Join(credentials, "master"), "CANARY-another-key-of-32-bytes-or-more")
	for _, env := range [][]string{h.extraEnv, nil} { // another key; no key at all
		cmd := exec.Command(filepath.Join(bin, "sessiond"), "--config", h.config, "--store", h.store, "--socket", h.socket)
		cmd.Env = append((&home{dir: h.dir, krb5Conf: h.krb5Conf}).env(), env...)
		r := finish(t, cmd, "")
		if r.status != 5 || !strings.Contains(r.stderr, "(store_key_missing)") || !strings.Contains(r.stderr, "\n  next: ") {
			t.Errorf("%v: %v", env, r)
		}
	}
	write(t, filepath.Join(credentials, "master"), "CANARY-master-key-of-32-bytes-or-more")
	h.start(t)
	one("the failed starts")
}

// TestGracefulStop: a call under way is answered before the agent ends.
func TestGracefulStop(t *testing.T) {
	asked, answer := make(chan struct{}), make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(asked)
		<-answer
		w.WriteHeader(http.StatusNotFound)
	}))
	defer s.Close()
	w := inProcess(t)
	w.url = strings.Replace(s.URL, "127.0.0.1", "localhost", 1)
	h := newHome(t, w)
	a := h.start(t)
	done := make(chan result)
	go func() { done <- h.sessionctl(t, "raw", "app") }()
	<-asked
	must(t, a.cmd.Process.Signal(syscall.SIGTERM))
	for range 100 { // callers that come too late are turned away or served, not hung
		if r := h.sessionctl(t, "status", "--timeout", "2s"); r.status != 0 {
			break
		}
	}
	close(answer)
	wantFailure(t, <-done, 5, "unexpected_status")
	<-a.done
	if a.err != nil {
		t.Errorf("the agent ended with %v", a.err)
	}
	if _, err := os.Lstat(h.socket); !os.IsNotExist(err) {
		t.Errorf("the socket stays: %v", err)
	}
}

// TestFlags of sessiond.
func TestFlags(t *testing.T) {
	sessiond := func(args ...string) result {
		return finish(t, exec.Command(filepath.Join(bin, "sessiond"), args...), "")
	}
	if r := sessiond("--help"); r.status != 0 || !strings.Contains(r.stdout, "--config") {
		t.Errorf("%v", r)
	}
	if r := sessiond("--version"); r.status != 0 || !strings.HasPrefix(r.stdout, "sessiond ") {
		t.Errorf("%v", r)
	}
	for _, args := range [][]string{{"--no-such-flag"}, {"extra"}, {"--log-level", "loud"}} {
		if r := sessiond(args...); r.status != 2 || !strings.Contains(r.stderr, "next: sessiond --help") {
			t.Errorf("%v: %v", args, r)
		}
	}
	cmd := exec.Command(filepath.Join(bin, "sessiond"))
	cmd.Env = []string{}
	wantFailure(t, finish(t, cmd, ""), 5, "config_invalid")
	// The example in the help is a configuration.
	_, example, _ := strings.Cut(sessiond("--help").stdout, "A configuration:\n")
	example, _, _ = strings.Cut(example, "\nA site that")
	w := inProcess(t)
	h := newHome(t, w)
	write(t, h.config, strings.NewReplacer("/home/build/build.keytab", w.keytab, "svc-build", "build").Replace(example))
	if out := h.ok(t, "check-config", h.config); !strings.Contains(out, "ok: 1 sites") {
		t.Error(out)
	}
}

// TestManySites: one credential, many sites, all at once: one TGT.
func TestManySites(t *testing.T) {
	w := inProcess(t)
	var more []string
	for i := range 20 {
		more = append(more, w.site(fmt.Sprint("s", i), "/spnego/"))
	}
	h := newHome(t, w, more...)
	h.start(t)
	done := make(chan result)
	for i := range 20 {
		go func() { done <- h.sessionctl(t, "raw", fmt.Sprint("s", i)) }()
	}
	for range 20 {
		if r := <-done; r.status != 0 {
			t.Errorf("%v", r)
		}
	}
	if c := w.counts(t); c.ASTGT != 1 || c.TGS != 1 || w.hits(t, "/").Negotiate != 20 {
		t.Errorf("%+v, %+v", c, w.hits(t, "/"))
	}
}

// TestSocketOfSystemdIsLeftAlone: an agent started by hand takes neither the
// socket of an agent that systemd started, nor one that systemd holds for an
// agent to come.
func TestSocketOfSystemdIsLeftAlone(t *testing.T) {
	w := inProcess(t)
	h := newHome(t, w)
	must(t, os.Mkdir(filepath.Dir(h.socket), 0o700))
	l, err := net.Listen("unix", h.socket)
	must(t, err)
	defer l.Close()
	byHand := func() {
		t.Helper()
		cmd := exec.Command(filepath.Join(bin, "sessiond"), "--config", h.config, "--store", filepath.Join(h.dir, "other", "store.db"), "--socket", h.socket)
		cmd.Env = h.env()
		wantFailure(t, finish(t, cmd, ""), 5, "socket_in_use")
		if _, err := os.Lstat(h.socket); err != nil {
			t.Errorf("the socket is gone: %v", err)
		}
	}
	byHand()

	f, err := l.(*net.UnixListener).File()
	must(t, err)
	defer f.Close()
	// As systemd does it: sd_listen_fds(3).
	cmd := exec.Command("sh", "-c", `LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"`, "sh", filepath.Join(bin, "sessiond"), "--config", h.config, "--store", h.store)
	cmd.Env = h.env()
	cmd.ExtraFiles = []*os.File{f}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	must(t, cmd.Start())
	h.ok(t, "raw", "app")
	byHand()
	h.ok(t, "raw", "app")
	must(t, cmd.Process.Signal(syscall.SIGTERM))
	must(t, cmd.Wait())
	if _, err := os.Lstat(h.socket); err != nil {
		t.Errorf("the agent removed a socket that is not its own: %v", err)
	}
}

// TestMemoryIsClosed: neither the agent's own user nor a core file gets at its
// memory (prctl(2), PR_SET_DUMPABLE).
func TestMemoryIsClosed(t *testing.T) {
	w := inProcess(t)
	h := newHome(t, w)
	a := h.start(t)
	proc := fmt.Sprintf("/proc/%d/", a.cmd.Process.Pid)
	limits, err := os.ReadFile(proc + "limits")
	must(t, err)
	for line := range strings.Lines(string(limits)) {
		if f := strings.Fields(line); strings.HasPrefix(line, "Max core file size") && (f[4] != "0" || f[5] != "0") {
			t.Errorf("core files: %s", line)
		}
	}
	a.stop(t)
	if os.Geteuid() != 0 {
		b := h.start(t)
		if _, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", b.cmd.Process.Pid)); err == nil {
			t.Error("the environment of the agent can be read by its own user")
		}
		return
	}
	h = newHome(t, w)
	h.krb5Conf = write(t, filepath.Join(h.dir, "krb5.conf"), w.kdc.Krb5Conf())
	must(t, filepath.WalkDir(h.dir, func(path string, _ os.DirEntry, err error) error {
		return errors.Join(err, os.Chown(path, 4242, 4242))
	}))
	h.uid = 4242
	// The kernel gives the files of a process that is not dumpable to root
	// (proc(5)).
	b := h.start(t)
	st, err := os.Stat(fmt.Sprintf("/proc/%d/environ", b.cmd.Process.Pid))
	must(t, err)
	if uid := st.Sys().(*syscall.Stat_t).Uid; uid != 0 {
		t.Errorf("uid %d may read the memory of its agent", uid)
	}
}
