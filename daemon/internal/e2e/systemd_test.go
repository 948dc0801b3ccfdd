package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

// unitDir is where the unit files are, and unitFiles their names.
const unitDir = "../../../systemd/user"

var unitFiles = []string{"sessiond.service", "sessiond.socket", "sessionctl-jar@.service"}

// The users of the machine.
const (
	alice   = 4242
	mallory = 4343
)

// machine is a systemd that runs, with the programs and the units installed.
type machine struct {
	*rig.Systemd
	ctx context.Context
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	rig.Require(t, "root", "mount", "pivot_root", "nsenter", "systemd", "systemctl", "journalctl")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	s, err := rig.StartSystemd(ctx, filepath.Join(t.TempDir(), "systemd"))
	must(t, err)
	m := &machine{s, ctx}
	t.Cleanup(func() {
		if t.Failed() {
			journal, err := m.Journal(context.WithoutCancel(ctx))
			t.Logf("the journal (%v):\n%s", err, journal)
		}
		must(t, m.Stop())
	})
	must(t, m.AddUser("alice", alice))
	must(t, m.AddUser("mallory", mallory))
	built := programs(t)
	for name, mode := range map[string]fs.FileMode{"sessionctl": 0o755, "sessionctl-admin": 0o755, "sessiond": 0o711} {
		m.install(t, "usr/bin/"+name, filepath.Join(built, name), mode, 0)
	}
	for _, name := range unitFiles {
		m.install(t, "usr/lib/systemd/user/"+name, filepath.Join(unitDir, name), 0o644, 0)
	}
	return m
}

// programs returns the directory of the programs as users get them: the race
// detector's memory is more than the unit allows.
func programs(t *testing.T) string {
	t.Helper()
	if raceFlag != "-race" {
		return bin
	}
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "go", "build", "-race=false", "-o", dir, "../../../cmd/...")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return dir
}

func (m *machine) install(t *testing.T, to, from string, mode fs.FileMode, owner int) {
	t.Helper()
	b, err := os.ReadFile(from)
	must(t, err)
	must(t, m.WriteFile(to, b, mode, owner))
}

// as calls a program as a user, without any environment.
func (m *machine) as(t *testing.T, uid int, program string, args ...string) result {
	t.Helper()
	return finish(t, m.Command(m.ctx, uid, nil, program, args...), "")
}

// raw asks for the session's Cookie header as alice and says how long it took.
func (m *machine) raw(t *testing.T, why string) string {
	t.Helper()
	begin := time.Now()
	r := m.as(t, alice, "/usr/bin/sessionctl", "raw", "app")
	t.Logf("raw, %s: %v", why, time.Since(begin).Round(time.Millisecond))
	if r.status != 0 {
		t.Fatalf("raw, %s: %v", why, r)
	}
	return r.stdout
}

// systemctl calls systemctl --user as alice.
func (m *machine) systemctl(t *testing.T, args ...string) result {
	t.Helper()
	env := []string{fmt.Sprintf("XDG_RUNTIME_DIR=/run/user/%d", alice)}
	return finish(t, m.Command(m.ctx, alice, env, "systemctl", append([]string{"--user"}, args...)...), "")
}

// manage calls systemctl --user as alice, which must not fail.
func (m *machine) manage(t *testing.T, args ...string) {
	t.Helper()
	if r := m.systemctl(t, args...); r.status != 0 {
		t.Fatalf("systemctl --user %s: %v", strings.Join(args, " "), r)
	}
}

// wantUnit compares properties of a unit of alice.
func (m *machine) wantUnit(t *testing.T, unit string, properties ...string) {
	t.Helper()
	for _, p := range properties {
		name, want, _ := strings.Cut(p, "=")
		if r := m.systemctl(t, "show", "-P", name, unit); strings.TrimSpace(r.stdout) != want {
			t.Errorf("%s: want %s, got %v", unit, p, r)
		}
	}
}

// wantMode compares the mode and the owner of a file.
func (m *machine) wantMode(t *testing.T, name string, mode fs.FileMode) {
	t.Helper()
	fi, err := m.Files.Lstat(name)
	must(t, err)
	if owner := fi.Sys().(*syscall.Stat_t).Uid; fi.Mode() != mode || owner != alice {
		t.Errorf("%s is %v of uid %d, want %v of alice", name, fi.Mode(), owner, mode)
	}
}

// agent returns the agent's process id inside.
func (m *machine) agent(t *testing.T) string {
	t.Helper()
	pid := strings.TrimSpace(m.systemctl(t, "show", "-P", "MainPID", "sessiond.service").stdout)
	if n, err := strconv.Atoi(pid); err != nil || n <= 1 {
		t.Fatalf("no agent runs: %q", pid)
	}
	return pid
}

// TestUserUnits goes through the life of an agent under systemd --user.
func TestUserUnits(t *testing.T) {
	const (
		configFile = "home/alice/.config/sessionctl/sessiond.toml"
		socketDir  = "run/user/4242/sessionctl"
		socket     = socketDir + "/agent.sock"
		store      = "home/alice/.local/state/sessionctl"
	)
	m := newMachine(t)
	w := inProcess(t)
	h := newHome(t, w)
	b, err := os.ReadFile(h.config)
	must(t, err)
	config := []byte(strings.ReplaceAll(string(b), w.keytab, "/home/alice/build.keytab"))
	must(t, m.WriteFile(configFile, config, 0o600, alice))
	m.install(t, "home/alice/build.keytab", w.keytab, 0o600, alice)
	m.install(t, "etc/krb5.conf", w.krb5Conf, 0o644, 0)
	must(t, m.StartUser(m.ctx, alice))
	logins := func(want int) {
		t.Helper()
		if n := w.hits(t, "/").Negotiate; n != want {
			t.Errorf("%d logins, want %d", n, want)
		}
	}

	// The socket alone is there…
	m.manage(t, "enable", "--now", "sessiond.socket")
	m.wantUnit(t, "sessiond.service", "ActiveState=inactive", "MainPID=0")
	m.wantMode(t, socketDir, fs.ModeDir|0o700)
	m.wantMode(t, socket, fs.ModeSocket|0o600)
	// …and the first call starts the agent.
	first := m.raw(t, "the first call")
	if got := whoami(t, w, first); got != me {
		t.Fatalf("the site answers %s", got)
	}
	m.wantUnit(t, "sessiond.service", "ActiveState=active", "SubState=running")
	m.wantMode(t, store, fs.ModeDir|0o700)
	m.wantMode(t, store+"/store.db", 0o600)
	m.wantMode(t, store+"/store.key", 0o600)

	t.Run("sandbox", func(t *testing.T) {
		pid := m.agent(t)
		b, err := m.Files.ReadFile("proc/" + pid + "/status")
		must(t, err)
		for _, want := range []string{"Uid:\t4242\t4242\t4242\t4242\n", "NoNewPrivs:\t1\n", "Seccomp:\t2\n", "CapEff:\t0000000000000000\n", "CapBnd:\t0000000000000000\n"} {
			if !strings.Contains(string(b), want) {
				t.Errorf("the agent's status lacks %q:\n%s", want, b)
			}
		}
		b, err = m.Files.ReadFile("proc/" + pid + "/mountinfo")
		must(t, err)
		for _, want := range []string{` / / ro,`, ` /home/alice/.local/state/sessionctl rw,`} {
			if !strings.Contains(string(b), want) {
				t.Errorf("the agent's mounts lack %q:\n%s", want, b)
			}
		}
		for _, file := range []string{"environ", "maps", "mem"} {
			if r := m.as(t, alice, "/bin/cat", "/proc/"+pid+"/"+file); r.status == 0 || !strings.Contains(r.stderr, "Permission denied") {
				t.Errorf("alice reads %s of the agent: %v", file, r)
			}
		}
		if r := m.as(t, alice, "/bin/cat", "/proc/self/environ", "/proc/self/maps"); r.status != 0 {
			t.Errorf("alice's own: %v", r)
		}
	})

	t.Run("cookie file", func(t *testing.T) {
		const jar = socketDir + "/jars/app.txt"
		m.manage(t, "enable", "--now", "sessionctl-jar@app.service")
		_, value, _ := strings.Cut(strings.TrimSpace(first), "=")
		if r := m.as(t, alice, "/usr/bin/timeout", "20", "/bin/sh", "-c", `until grep -qsF -- "$0" "$1"; do :; done`, value, "/"+jar); r.status != 0 {
			t.Errorf("the file does not get the session: %v", r)
		}
		m.wantMode(t, jar, 0o600)
		m.manage(t, "disable", "--now", "sessionctl-jar@app.service")
		m.wantUnit(t, "sessionctl-jar@app.service", "ActiveState=inactive", "Result=success")
	})

	t.Run("another user", func(t *testing.T) {
		refused := func(uid, status int) {
			t.Helper()
			r := m.as(t, uid, "/usr/bin/sessionctl", "raw", "app", "--socket", "/"+socket)
			if r.status != status || r.stdout != "" {
				t.Errorf("uid %d, want status %d: %v", uid, status, r)
			}
		}
		if r := m.as(t, mallory, "/usr/bin/sessionctl", "raw", "app"); r.status != 3 || r.stdout != "" {
			t.Errorf("without an agent of mallory's own: %v", r)
		}
		refused(mallory, 3) // by the directory
		// With all doors open, by the kernel's word: in the agent's user namespace
		// there is nobody but alice.
		must(t, m.Files.Chmod("run/user/4242", 0o755))
		must(t, m.Files.Chown(socketDir, 0, 0))
		must(t, m.Files.Chmod(socketDir, 0o755))
		must(t, m.Files.Chmod(socket, 0o666))
		refused(mallory, 6)
		if again := m.raw(t, "all doors open"); again != first {
			t.Error("alice has another session")
		}
		must(t, m.Files.Chmod("run/user/4242", 0o700))
		must(t, m.Files.Chown(socketDir, alice, alice))
		must(t, m.Files.Chmod(socketDir, 0o700))
		must(t, m.Files.Chmod(socket, 0o600))
	})

	t.Run("restart", func(t *testing.T) {
		before := m.agent(t)
		m.manage(t, "restart", "sessiond.service")
		// A new agent has it proven first, and the site answers with another value.
		if again := m.raw(t, "after restart"); whoami(t, w, again) != me || m.agent(t) == before {
			t.Error("the session is lost, or the agent is the old one")
		}
		logins(1)
	})

	t.Run("reload", func(t *testing.T) {
		before := m.agent(t)
		configured := func(sites int, failure string) {
			t.Helper()
			r := m.as(t, alice, "/usr/bin/sessionctl", "status", "-o", "json")
			var got struct {
				Sites      int
				ReloadCode string `json:"reload_code"`
			}
			if err := json.Unmarshal([]byte(r.stdout), &got); err != nil || got.Sites != sites || got.ReloadCode != failure {
				t.Errorf("want %d sites and the code %q: %v", sites, failure, r)
			}
			m.wantUnit(t, "sessiond.service", "ActiveState=active", "SubState=running", "MainPID="+before)
		}
		must(t, m.WriteFile(configFile, append(config, w.site("again", "/spnego/")...), 0o600, alice))
		m.manage(t, "reload", "sessiond.service")
		configured(2, "")
		// What is wrong, whoever reloads learns.
		must(t, m.WriteFile(configFile, []byte("[site.app\n"), 0o600, alice))
		if r := m.systemctl(t, "reload", "sessiond.service"); r.status == 0 {
			t.Errorf("with a broken configuration: %v", r)
		}
		configured(2, "config_invalid")
		must(t, m.WriteFile(configFile, config, 0o600, alice))
		m.manage(t, "reload", "sessiond.service")
		configured(1, "")
		if again := m.raw(t, "after reload"); whoami(t, w, again) != me {
			t.Error("the session is lost")
		}
		logins(1)
		journal, err := m.Journal(m.ctx)
		must(t, err)
		for _, said := range []string{"added: again", "removed: again", "/" + configFile + ":1: ", "; the old configuration stays in use (config_invalid)"} {
			if !strings.Contains(journal, said) {
				t.Errorf("the journal lacks %q", said)
			}
		}
	})

	// A Go program that panics ends as it does with SIGQUIT: status 2.
	for restarts, signal := range []string{"KILL", "QUIT"} {
		t.Run("crash by "+signal, func(t *testing.T) {
			before := m.agent(t)
			if r := m.as(t, alice, "/bin/kill", "-"+signal, before); r.status != 0 {
				t.Fatal(r)
			}
			if again := m.raw(t, "after "+signal); whoami(t, w, again) != me || m.agent(t) == before {
				t.Error("the session is lost, or the agent is the old one")
			}
			m.wantUnit(t, "sessiond.service", fmt.Sprintf("NRestarts=%d", restarts+1))
			logins(1)
		})
	}

	// systemd allows five starts in ten seconds; this forgets them.
	forgive := func() { m.manage(t, "reset-failed", "sessiond.service") }
	forgive()

	t.Run("stop", func(t *testing.T) {
		m.manage(t, "stop", "sessiond.service")
		m.wantUnit(t, "sessiond.service", "ActiveState=inactive", "Result=success", "ExecMainStatus=0")
		m.wantUnit(t, "sessiond.socket", "ActiveState=active")
		m.wantMode(t, socket, fs.ModeSocket|0o600)
		if again := m.raw(t, "after stop"); whoami(t, w, again) != me {
			t.Error("the session is lost")
		}
		logins(1)
	})

	t.Run("store removed", func(t *testing.T) {
		m.manage(t, "stop", "sessiond.service")
		must(t, m.Files.RemoveAll(store))
		if got := whoami(t, w, m.raw(t, "without a store")); got != me {
			t.Errorf("the site answers %s", got)
		}
		m.wantMode(t, store, fs.ModeDir|0o700)
		logins(2)
	})

	t.Run("broken configuration", func(t *testing.T) {
		m.manage(t, "stop", "sessiond.service")
		forgive()
		must(t, m.WriteFile(configFile, []byte("[site.app\n"), 0o600, alice))
		const patience = 3 * time.Second
		begin := time.Now()
		r := m.as(t, alice, "/usr/bin/sessionctl", "raw", "app", "--timeout", patience.String())
		took := time.Since(begin)
		wantFailure(t, r, 3, "no_agent")
		t.Logf("the caller knew after %v", took.Round(time.Millisecond))
		if took > patience+time.Second {
			t.Errorf("the caller waited %v", took)
		}
		m.wantUnit(t, "sessiond.service", "ActiveState=failed", "Result=exit-code", "ExecMainStatus=5", "MainPID=0")
		m.wantUnit(t, "sessiond.socket", "ActiveState=failed") // nothing starts the service any more
		journal, err := m.Journal(m.ctx)
		must(t, err)
		starts := strings.Count(journal, "]: sessiond: /"+configFile+":1: ")
		t.Logf("%d starts with the broken configuration", starts)
		if starts < 1 || starts > 5 {
			t.Errorf("%d starts, want 1 to 5", starts)
		}

		// Mended, it goes on as the message says.
		must(t, m.WriteFile(configFile, config, 0o600, alice))
		forgive()
		m.manage(t, "start", "sessiond.socket")
		if got := whoami(t, w, m.raw(t, "mended")); got != me {
			t.Errorf("the site answers %s", got)
		}
		logins(2)
	})

	m.manage(t, "disable", "--now", "sessiond.socket")
	m.wantUnit(t, "sessiond.service", "ActiveState=inactive", "Result=success")
	if _, err := m.Files.Lstat(socket); err == nil {
		t.Error("the socket stays behind")
	}
	journal, err := m.Journal(m.ctx)
	must(t, err)
	if !strings.Contains(journal, "logged in") || strings.Contains(journal, "CANARY") {
		t.Error("the journal lacks the agent's messages, or holds a secret")
	}
}

// exposure is the most that systemd may find to say against the service: 0 is
// best, 10 worst.
const exposure = 1.7

// TestUnitsAreSound: systemd itself has nothing to say against the units.
func TestUnitsAreSound(t *testing.T) {
	rig.Require(t, "systemd-analyze")
	dir := t.TempDir()
	var files []string
	for _, name := range unitFiles {
		b, err := os.ReadFile(filepath.Join(unitDir, name))
		must(t, err)
		files = append(files, write(t, filepath.Join(dir, name), strings.ReplaceAll(string(b), "/usr/bin/", bin+"/")))
	}
	analyze := func(args ...string) result {
		cmd := exec.CommandContext(t.Context(), "systemd-analyze", append([]string{"--user", "--no-pager"}, args...)...)
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "XDG_RUNTIME_DIR=" + dir, "LC_ALL=C.UTF-8"}
		return finish(t, cmd, "")
	}
	if r := analyze(append([]string{"verify"}, files...)...); r.status != 0 || r.stdout+r.stderr != "" {
		t.Errorf("verify: %v", r)
	}
	r := analyze("security", "--offline=true", files[0])
	found := regexp.MustCompile(`Overall exposure level for sessiond\.service: ([0-9.]+)`).FindStringSubmatch(r.stdout)
	if found == nil {
		t.Fatalf("security: %v", r)
	}
	level, err := strconv.ParseFloat(found[1], 64)
	must(t, err)
	t.Logf("exposure %v", level)
	if level > exposure {
		t.Errorf("exposure %v, want at most %v: %v", level, exposure, r)
	}
}

// TestSocketActivation: the agent serves on a socket that it is given, and
// leaves it to who made it.
func TestSocketActivation(t *testing.T) {
	rig.Require(t, "systemd-socket-activate")
	w := inProcess(t)
	h := newHome(t, w)
	must(t, os.Mkdir(filepath.Dir(h.socket), 0o700))
	args := []string{"-l", h.socket, "--fdname=agent"}
	for _, v := range h.env() {
		args = append(args, "-E", v)
	}
	cmd := exec.CommandContext(t.Context(), "systemd-socket-activate",
		append(args, filepath.Join(bin, "sessiond"), "--config", h.config, "--store", h.store, "--socket", filepath.Join(h.dir, "other.sock"))...)
	cmd.Env = h.env()
	said, err := cmd.StderrPipe()
	must(t, err)
	must(t, cmd.Start())
	lines := bufio.NewScanner(said)
	var log []string
	for lines.Scan() && !strings.HasPrefix(lines.Text(), "Listening on ") {
		log = append(log, lines.Text())
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for lines.Scan() {
			log = append(log, lines.Text())
		}
	}()
	if got := whoami(t, w, h.ok(t, "raw", "app")); got != me {
		t.Errorf("the site answers %s", got)
	}
	if _, err := os.Lstat(filepath.Join(h.dir, "other.sock")); err == nil {
		t.Error("it made a socket of its own")
	}
	// systemd-socket-activate has become the agent.
	must(t, cmd.Process.Signal(syscall.SIGTERM))
	<-ended
	if err := cmd.Wait(); err != nil {
		t.Errorf("the agent ended with %v:\n%s", err, strings.Join(log, "\n"))
	}
	if fi, err := os.Lstat(h.socket); err != nil || fi.Mode().Type() != fs.ModeSocket {
		t.Errorf("the socket after the agent's end: %v %v", fi, err)
	}
	if conn, err := net.Dial("unix", h.socket); err == nil {
		conn.Close()
		t.Error("somebody still listens")
	}
}
