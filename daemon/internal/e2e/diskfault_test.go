package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sessionctl/sessionctl/api"
	pb "github.com/sessionctl/sessionctl/api/sessionctl/v1"
	"github.com/sessionctl/sessionctl/client"
	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

// recovery is how long after the end of a fault a session may still not be in the store.
const recovery = 5 * time.Second

// smallDisk mounts a file system of so many bytes, in a namespace of its own, and returns
// where it is, and what runs a shell command there, where it is $1.
func smallDisk(t *testing.T, size int) (dir string, shell func(command string)) {
	t.Helper()
	rig.Require(t, "unshare", "nsenter")
	at := t.TempDir()
	run := func(flags ...string) (string, bool) {
		cmd := exec.CommandContext(t.Context(), "unshare", append(flags, "sh", "-c",
			`mount -t tmpfs -o mode=0700,size="$2" tmpfs "$1" && echo mounted && exec cat`, "sh", at, strconv.Itoa(size))...)
		stdin, err := cmd.StdinPipe()
		must(t, err)
		stdout, err := cmd.StdoutPipe()
		must(t, err)
		must(t, cmd.Start())
		t.Cleanup(func() {
			stdin.Close()
			cmd.Wait()
		})
		line, _ := bufio.NewReader(stdout).ReadString('\n')
		return strconv.Itoa(cmd.Process.Pid), line == "mounted\n"
	}
	enter := []string{"-m"}
	pid, ok := run("-m")
	if !ok { // who is not root may in a name space of users
		enter = []string{"-U", "--preserve-credentials", "-m"}
		pid, ok = run("-Urm")
	}
	if !ok {
		rig.Require(t, "root")
		t.Fatal("root may not mount anything here")
	}
	return filepath.Join("/proc", pid, "root", at), func(command string) {
		t.Helper()
		args := slices.Concat([]string{"-t", pid}, enter, []string{"sh", "-c", command, "sh", at})
		if out, err := exec.CommandContext(t.Context(), "nsenter", args...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", command, err, out)
		}
	}
}

// fillDisk leaves no room on a disk until it is freed.
func fillDisk(t *testing.T, dir string) (free func()) {
	t.Helper()
	name := filepath.Join(dir, "filler")
	f, err := os.Create(name)
	must(t, err)
	for size := 64 << 10; size > 0; {
		if _, err := f.Write(make([]byte, size)); err != nil {
			size /= 2
		}
	}
	must(t, f.Close())
	return func() { must(t, os.Remove(name)) }
}

// limit sets a limit of the agent (prlimit(2)) and returns what takes it back.
func (a *agent) limit(t *testing.T, resource int, soft uint64) (end func()) {
	t.Helper()
	var old unix.Rlimit
	must(t, unix.Prlimit(a.cmd.Process.Pid, resource, nil, &old))
	must(t, unix.Prlimit(a.cmd.Process.Pid, resource, &unix.Rlimit{Cur: soft, Max: old.Max}, nil))
	return func() {
		t.Helper()
		must(t, unix.Prlimit(a.cmd.Process.Pid, resource, &old, nil))
	}
}

// durable tells of each site whether its session is in the store; a site without a
// session is not there.
func (h *home) durable(t *testing.T) map[string]bool {
	t.Helper()
	var list struct {
		Sessions []struct {
			Site       string
			State      string
			NotDurable bool `json:"not_durable"`
		}
	}
	out := h.ok(t, "status", "-o", "json")
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	sites := map[string]bool{}
	for _, s := range list.Sessions {
		if s.State == "live" || s.State == "stale" {
			sites[s.Site] = !s.NotDurable
		}
	}
	return sites
}

// becomesDurable wants the sessions of sites in the store soon, by itself.
func (h *home) becomesDurable(t *testing.T, sites ...string) {
	t.Helper()
	began := time.Now()
	for {
		now := h.durable(t)
		if !slices.ContainsFunc(sites, func(s string) bool { return !now[s] }) {
			return
		}
		if time.Since(began) > recovery {
			t.Fatalf("%v after the fault: %v", recovery, now)
		}
	}
}

// killed ends the agent as a crash does.
func (a *agent) killed(t *testing.T) {
	t.Helper()
	must(t, a.cmd.Process.Kill())
	<-a.done
}

// diskWorld is an agent with a store on a small disk, the session of "app" in it and that
// of "jira" not made yet.
type diskWorld struct {
	*jiraWorld
	h      *home
	a      *agent
	dir    string // of the disk
	shell  func(command string)
	app    string // what is served of app
	logins int    // at "app" and "jira" until now
}

func newDiskWorld(t *testing.T) *diskWorld {
	dir, shell := smallDisk(t, 1<<20)
	w := &diskWorld{jiraWorld: newJira(t), dir: dir, shell: shell}
	w.h = w.home(t)
	w.h.store = filepath.Join(dir, "state", "store.db")
	w.a = w.h.start(t)
	w.app = w.h.ok(t, "raw", "app")
	return w
}

// allLogins counts what each site has seen.
func (w *diskWorld) allLogins(t *testing.T) int {
	return w.hits(t, "/").Negotiate + w.Counts().KerberosLogins
}

// loggedIn wants a login served that cannot be stored: flagged, and no less good.
func (w *diskWorld) loggedIn(t *testing.T) (jira string) {
	t.Helper()
	jira = w.h.ok(t, "raw", "jira")
	w.logins = w.allLogins(t)
	for range 3 {
		if again := w.h.ok(t, "raw", "jira"); again != jira {
			t.Error("the session that is not durable was made again")
		}
		if w.h.ok(t, "raw", "app") == "" {
			t.Error("app is not served")
		}
	}
	if now := w.h.durable(t); now["jira"] || !now["app"] {
		t.Errorf("list: durable are %v", now)
	}
	if out := w.h.ok(t, "get", "jira", "-o", "json"); !strings.Contains(out, `"not_durable": true`) && !strings.Contains(out, `"not_durable":true`) {
		t.Error("get does not say that the session is not durable")
	}
	if out := w.h.ok(t, "list"); !strings.Contains(out, "not_durable") {
		t.Errorf("list: %s", out)
	}
	w.h.ok(t, "status")
	return jira
}

// recovers wants the session to be in the store soon after the fault, with no request,
// and to be there after a crash.
func (w *diskWorld) recovers(t *testing.T, jira string) {
	t.Helper()
	w.h.becomesDurable(t, "jira", "app")
	if n := w.allLogins(t); n != w.logins {
		t.Errorf("%d logins more", n-w.logins)
	}
	w.h.ok(t, "rekey")
	w.a.killed(t)
	b := w.h.start(t)
	if got := w.h.ok(t, "raw", "jira"); got != jira {
		t.Error("after a crash another session is served")
	}
	w.h.ok(t, "raw", "app")
	if n := w.allLogins(t); n != w.logins {
		t.Errorf("%d logins after a crash", n-w.logins)
	}
	if out := w.h.ok(t, "status"); strings.Contains(out, "was damaged") || strings.Contains(out, "not those that were written") {
		t.Errorf("%s", out)
	}
	noSecrets(t, w.a)
	noSecrets(t, b)
	w.a = b
	must(t, filepath.WalkDir(w.dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		text, err := os.ReadFile(path)
		if bytes.Contains(text, []byte("CANARY")) {
			t.Errorf("a secret is in %s", filepath.Base(path))
		}
		return err
	}))
}

// TestFullDisk: with no room on the disk a login is served and flagged; when there is
// room again the session gets into the store by itself.
func TestFullDisk(t *testing.T) {
	w := newDiskWorld(t)
	free := fillDisk(t, w.dir)
	// The file has free pages of its own, so that small writes may still find room.
	end := w.a.limit(t, unix.RLIMIT_FSIZE, 0)
	jira := w.loggedIn(t)
	w.h.fails(t, 7, "store_failed", "rekey")
	end()
	w.h.fails(t, 7, "store_failed", "rekey") // there still is no room for another file
	free()
	w.recovers(t, jira)
}

// TestFullDiskAlone: no limit, only a disk that is full, for sessions as large as they
// come.
func TestFullDiskAlone(t *testing.T) {
	w := newDiskWorld(t)
	// Each refresh needs pages while those of the one before are not free yet.
	free := fillDisk(t, w.dir)
	r := w.h.sessionctl(t, "rekey")
	wantFailure(t, r, 7, "store_failed")
	if !strings.Contains(r.stderr, "no space left") {
		t.Errorf("%v", r)
	}
	for range 5 {
		w.h.ok(t, "refresh", "app")
		w.h.ok(t, "raw", "jira")
	}
	w.logins = w.allLogins(t)
	jira := w.h.ok(t, "raw", "jira")
	free()
	w.recovers(t, jira)
}

// TestLogoutOnFullDisk: a session that was ended while its record could not be removed
// is removed as soon as that works, and not back after a crash.
func TestLogoutOnFullDisk(t *testing.T) {
	w := newDiskWorld(t)
	jira := w.h.ok(t, "raw", "jira")
	before := w.h.records(t)
	end := w.a.limit(t, unix.RLIMIT_FSIZE, 0)
	w.h.sessionctl(t, "logout", "jira") // which may say what could not be done
	if _, ok := w.h.durable(t)["jira"]; ok {
		t.Error("the session is there after its end")
	}
	end()
	for began := time.Now(); w.h.records(t) >= before; {
		if time.Since(began) > recovery {
			t.Fatalf("%v after the fault the record is still there", recovery)
		}
	}
	w.a.killed(t)
	w.logins = w.allLogins(t)
	b := w.h.start(t)
	if _, ok := w.h.durable(t)["jira"]; ok {
		t.Error("the session is back after a crash")
	}
	if got := w.h.ok(t, "raw", "jira"); got == jira || w.allLogins(t) == w.logins {
		t.Error("a session is served that was ended")
	}
	noSecrets(t, b)
}

// records returns how many the store has.
func (h *home) records(t *testing.T) int {
	t.Helper()
	var status struct{ Store struct{ Records int } }
	out := h.ok(t, "status", "-o", "json")
	if err := json.Unmarshal([]byte(out), &status); err != nil || status.Store.Records == 0 {
		t.Fatalf("%v: %s", err, out)
	}
	return status.Store.Records
}

// TestFileSizeLimit: an agent that may not write larger files (ulimit -f) lives, serves,
// and says what is wrong.
func TestFileSizeLimit(t *testing.T) {
	w := newDiskWorld(t)
	info, err := os.Stat(w.h.store)
	must(t, err)
	for _, size := range []int64{0, 100, 4096, info.Size() - 1} {
		end := w.a.limit(t, unix.RLIMIT_FSIZE, uint64(size))
		w.h.ok(t, "refresh", "app")
		w.h.fails(t, 7, "store_failed", "rekey")
		w.h.ok(t, "raw", "app")
		w.h.ok(t, "status")
		end()
		w.h.becomesDurable(t, "app")
	}
	end := w.a.limit(t, unix.RLIMIT_FSIZE, 0)
	jira := w.loggedIn(t)
	end()
	w.recovers(t, jira)
}

// TestReadOnlyDisk: an agent whose store is on a read-only file system does not start,
// and says why and what to do.
func TestReadOnlyDisk(t *testing.T) {
	w := newDiskWorld(t)
	w.a.stop(t)
	w.shell(`mount -o remount,ro tmpfs "$1"`)
	cmd := exec.Command(filepath.Join(bin, "sessiond"), "--config", w.h.config, "--store", w.h.store, "--socket", w.h.socket)
	cmd.Env = w.h.env()
	r := finish(t, cmd, "")
	if r.status == 0 || !strings.Contains(r.stderr, "(store_failed)") || !strings.Contains(r.stderr, "read-only") || !strings.Contains(r.stderr, "\n  next: ") {
		t.Errorf("%v", r)
	}
	w.shell(`mount -o remount,rw tmpfs "$1"`)
	w.logins = w.allLogins(t)
	b := w.h.start(t)
	w.h.ok(t, "raw", "app")
	// Whose directory is read-only while it runs cannot write anew, and goes on.
	w.shell(`mount --bind "$1/state" "$1/state" && mount -o remount,bind,ro "$1/state"`)
	w.h.fails(t, 7, "store_failed", "rekey")
	w.h.ok(t, "raw", "jira")
	w.h.ok(t, "status")
	w.shell(`umount "$1/state"`)
	w.h.becomesDurable(t, "app", "jira")
	w.h.ok(t, "rekey")
	noSecrets(t, b)
}

// TestFailingDisk: while each write or sync of the agent fails, it serves, flagged; then
// all gets into the store by itself.
func TestFailingDisk(t *testing.T) {
	rig.Require(t, "root", "strace") // the agent lets nobody else trace it
	for _, inject := range []string{"pwrite64:error=EIO", "fdatasync,fsync:error=EIO", "pwrite64,ftruncate,fdatasync,fsync,renameat,linkat:error=EROFS"} {
		t.Run(inject, func(t *testing.T) {
			w := newDiskWorld(t)
			out := filepath.Join(t.TempDir(), "calls")
			strace := exec.CommandContext(t.Context(), "strace", "-f", "-p", strconv.Itoa(w.a.cmd.Process.Pid), "-o", out, "-e", "signal=none", "-e", "inject="+inject)
			said, err := strace.StderrPipe()
			must(t, err)
			must(t, strace.Start())
			if first, err := bufio.NewReader(said).ReadString('\n'); err != nil || !strings.Contains(first, "attached") {
				t.Fatalf("strace said %q, %v", first, err)
			}
			jira := w.loggedIn(t)
			w.h.fails(t, 7, "store_failed", "rekey")
			must(t, strace.Process.Signal(syscall.SIGINT))
			strace.Wait()
			calls, err := os.ReadFile(out)
			must(t, err)
			if !bytes.Contains(calls, []byte("(INJECTED)")) {
				t.Error("there was no fault")
			}
			w.recovers(t, jira)
		})
	}
}

// TestNoDescriptors: an agent that can open no further file serves whoever is connected,
// and everybody when it can again.
func TestNoDescriptors(t *testing.T) {
	w := newDiskWorld(t)
	c := &client.Client{Socket: w.h.socket}
	defer c.Close()
	sessions, err := c.Sessions()
	must(t, err)
	agent, err := c.Agent()
	must(t, err)
	get := func() {
		t.Helper()
		resp, err := sessions.GetSession(t.Context(), &pb.GetSessionRequest{Site: "app"})
		if err != nil || resp.GetSession().GetGeneration() == "" {
			t.Errorf("app: %v", err)
		}
	}
	get()
	end := w.a.limit(t, unix.RLIMIT_NOFILE, 0)
	get()
	if _, err := agent.Rekey(t.Context(), &pb.RekeyRequest{}); api.CodeOf(err) != api.StoreFailed {
		t.Errorf("rekey: %v", err)
	}
	status, err := agent.GetStatus(t.Context(), &pb.GetStatusRequest{})
	if err != nil || status.GetStore().GetRecords() == 0 {
		t.Errorf("status: %v, %v", status, err)
	}
	get()
	late := make(chan result) // who waits until the agent can answer
	go func() { late <- w.h.sessionctl(t, "raw", "app") }()
	get()
	end()
	if r := <-late; r.status != 0 {
		t.Errorf("%v", r)
	}
	began := time.Now()
	if got := w.h.ok(t, "raw", "app"); got != w.app && whoami(t, w.world, got) != me {
		t.Error("another session is served")
	}
	jira := w.h.ok(t, "raw", "jira")
	w.h.ok(t, "rekey")
	if took := time.Since(began); took > recovery {
		t.Errorf("it took %v to be well again", took)
	}
	w.logins = w.allLogins(t)
	w.recovers(t, jira)
}
