package e2e

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sessionctl/sessionctl/daemon/internal/krb/ccache"
	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

// exported is one more [credential.exported] of build, whose tickets a user may
// have.
func exported(w *world, uid int) string {
	return credential("exported", "build", w.keytab) + fmt.Sprintf("export = [\"uid:%d\"]\n", uid)
}

// renewable makes the home's krb5.conf ask for tickets that can be renewed.
func (h *home) renewable(t *testing.T) {
	t.Helper()
	b, err := os.ReadFile(h.krb5Conf)
	must(t, err)
	h.krb5Conf = write(t, filepath.Join(h.dir, "krb5.conf"), strings.Replace(string(b), "[libdefaults]", "[libdefaults]\n renew_lifetime = 7d", 1))
}

// readCache reads a ticket cache, which must hold one TGT of build.
func readCache(t *testing.T, file string) ccache.Credential {
	t.Helper()
	b, err := os.ReadFile(file)
	must(t, err)
	c, err := ccache.Parse(b)
	must(t, err)
	if len(c.Credentials) != 1 || c.Credentials[0].Client.String() != "build@"+realm || c.Credentials[0].Server.String() != "krbtgt/"+realm+"@"+realm {
		t.Fatalf("the cache holds %v", c.Credentials)
	}
	return c.Credentials[0]
}

// secretIn fails if a text has bytes that must not be in it, in one of the forms
// that programs print bytes in.
func secretIn(t *testing.T, where, text string, secret []byte) {
	t.Helper()
	for _, form := range []string{string(secret), hex.EncodeToString(secret), strings.ToUpper(hex.EncodeToString(secret)), base64.StdEncoding.EncodeToString(secret), fmt.Sprint(secret), fmt.Sprintf("%q", secret)} {
		if strings.Contains(text, form) {
			t.Errorf("%s has the secret", where)
		}
	}
}

// TestCCache: what sessionctl writes is to MIT's programs a cache as kinit makes
// it.
func TestCCache(t *testing.T) {
	rig.Require(t, "kinit", "kvno", "curl")
	inBothWorlds(t, func(t *testing.T, w *world) {
		if w.kdc != nil {
			w.kdc.SetRenewLife(7 * 24 * time.Hour)
		}
		h := newHome(t, w, exported(w, os.Getuid()))
		h.renewable(t)
		a := h.start(t)
		dir := t.TempDir()
		file := filepath.Join(dir, "cc")
		write(t, file, "an old one")
		must(t, os.Chmod(file, 0o644))
		old, err := os.Stat(file)
		must(t, err)

		r := h.sessionctl(t, "ccache", "build", file)
		if r.status != 0 || r.stdout != "" || r.stderr != "" {
			t.Fatalf("%v", r)
		}
		now, err := os.Stat(file)
		must(t, err)
		if st := now.Sys().(*syscall.Stat_t); now.Mode() != 0o600 || int(st.Uid) != os.Geteuid() || os.SameFile(old, now) {
			t.Errorf("mode %v, uid %d, the old file: %t", now.Mode(), st.Uid, os.SameFile(old, now))
		}
		if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
			t.Errorf("left behind: %v, %v", entries, err)
		}
		tgt := readCache(t, file)
		person := h.onTerminal(t, "ccache", "build", file)
		person.until(t, "sessionctl: a ticket of build@"+realm+" is in "+file+" until ")
		if status := person.end(t); status != 0 {
			t.Errorf("on a terminal: status %d", status)
		}
		for where, text := range map[string]string{"the agent's log": a.log.String(), "the command's message": person.screen.String()} {
			secretIn(t, where, text, tgt.Key)
			secretIn(t, where, text, tgt.Ticket)
		}
		if left := time.Until(tgt.RenewTill); left < 6*24*time.Hour || left > 7*24*time.Hour {
			t.Errorf("it can be renewed for %v", left)
		}

		mit := func(program string, args ...string) string {
			t.Helper()
			r := h.run(t, "", "env", append([]string{"KRB5CCNAME=" + file, program}, args...)...)
			if r.status != 0 {
				t.Fatalf("%s: %v", program, r)
			}
			return r.stdout
		}
		list := mit("klist", "-ef")
		for _, want := range []string{"Default principal: build@" + realm + "\n", "krbtgt/" + realm + "@" + realm + "\n", "renew until ", "Flags: ", "Etype (skey, tkt): aes256-cts"} {
			if !strings.Contains(list, want) {
				t.Errorf("klist does not print %q:\n%s", want, list)
			}
		}
		if flags := regexp.MustCompile(`Flags: (\w+)`).FindStringSubmatch(list); flags == nil || !strings.Contains(flags[1], "R") || !strings.Contains(flags[1], "I") {
			t.Errorf("flags %v", flags)
		}
		mit("klist", "-s")
		if out := mit("kvno", "HTTP/localhost"); !strings.HasPrefix(out, "HTTP/localhost@"+realm+": kvno = ") {
			t.Error(out)
		}
		tokens := w.hits(t, "/spnego/").Negotiate
		if got := strings.TrimSpace(mit("curl", "-sSf", "--negotiate", "-u", ":", w.url+"/spnego/whoami")); got != me {
			t.Errorf("curl --negotiate: %s", got)
		}
		if n := w.hits(t, "/spnego/").Negotiate - tokens; n != 1 {
			t.Errorf("curl sent %d tokens", n)
		}
		mit("kinit", "-R")
		if renewed := readCache(t, file); bytes.Equal(renewed.Ticket, tgt.Ticket) || !renewed.RenewTill.Equal(tgt.RenewTill) {
			t.Errorf("renewed till %v, before %v", renewed.RenewTill, tgt.RenewTill)
		}
		if got := strings.TrimSpace(mit("curl", "-sSf", "--negotiate", "-u", ":", w.url+"/spnego/whoami")); got != me {
			t.Errorf("curl --negotiate after kinit -R: %s", got)
		}

		// The agent's own TGT is what was given, and is given again: one login.
		logins := w.counts(t).ASTGT
		if r := h.run(t, "", "env", "KRB5CCNAME=FILE:"+file, "sessionctl", "ccache", "build@"+realm); r.status != 0 || r.stdout != "" {
			t.Errorf("by $KRB5CCNAME: %v", r)
		}
		if again := readCache(t, file); !bytes.Equal(again.Ticket, tgt.Ticket) || w.counts(t).ASTGT != logins {
			t.Error("another login for the same ticket")
		}
		// Nor is it another one for who writes the name otherwise.
		for _, name := range []string{"BUILD", "Build@" + strings.ToLower(realm)} {
			must(t, os.Remove(file))
			h.ok(t, "ccache", name, file)
			if again := readCache(t, file); !bytes.Equal(again.Ticket, tgt.Ticket) || w.counts(t).ASTGT != logins {
				t.Errorf("%s has another ticket", name)
			}
		}
		a.stop(t)
		secretIn(t, "the agent's log", a.log.String(), tgt.Key)
		secretIn(t, "the agent's log", a.log.String(), []byte(password))
		if !strings.Contains(a.log.String(), "a TGT is handed over") {
			t.Error("the log does not tell who got a TGT")
		}
	})
}

// TestCCacheClock: the cache tells MIT's programs how far the KDC's clock is off,
// as kinit would.
func TestCCacheClock(t *testing.T) {
	rig.Require(t, "krb5kdc", "kdb5_util", "kadmin.local", "kvno", "faketime")
	const off = 10 * time.Minute // twice what a KDC lets pass
	dir := t.TempDir()
	k, err := rig.StartMIT(t.Context(), filepath.Join(dir, "kdc"), realm, rig.WithClock(off))
	must(t, err)
	t.Cleanup(k.Stop)
	must(t, k.AddPrincipal(t.Context(), "build", password))
	must(t, k.AddService(t.Context(), "HTTP/localhost"))
	keytab := filepath.Join(dir, "build.keytab")
	must(t, k.Keytab(t.Context(), keytab, "build"))
	w := &world{krb5Conf: k.Krb5ConfFile(), keytab: keytab, url: "http://localhost:1"}
	h := newHome(t, w, exported(w, os.Getuid()))
	h.start(t)
	file := filepath.Join(dir, "cc")
	h.ok(t, "ccache", "build", file)
	kvno := func() result {
		return h.run(t, "", "env", "KRB5CCNAME="+file, "kvno", "HTTP/localhost")
	}
	b, err := os.ReadFile(file)
	must(t, err)
	if r := kvno(); r.status != 0 {
		t.Errorf("%v", r)
	}
	// It is the offset that does it.
	c, err := ccache.Parse(b)
	must(t, err)
	if d := c.Offset - off; d.Abs() > 5*time.Second {
		t.Errorf("offset %v, want %v", c.Offset, off)
	}
	c.Offset = 0
	without, err := c.Encode()
	must(t, err)
	write(t, file, string(without))
	if r := kvno(); r.status == 0 || !strings.Contains(r.stderr, "Clock skew too great") {
		t.Errorf("without the offset: %v", r)
	}
}

// TestCCacheRefused: who is not on the list learns nothing, and nobody is on it
// who is not named.
func TestCCacheRefused(t *testing.T) {
	w := inProcess(t)
	file := filepath.Join(t.TempDir(), "cc")
	h := newHome(t, w, credential("other", "other", w.addKeytab(t, "other", true))+"export = [\"uid:4243\"]\n")
	h.start(t)
	h.ok(t, "raw", "app") // the agent has a TGT
	before := w.counts(t)
	said := ""
	for _, principal := range []string{"build", "build@" + realm, "other", "OTHER", "nobody", "build@OTHER.EXAMPLE", "krbtgt/" + realm, "BUILD"} {
		// What stands in front is what was typed; the rest is the agent's.
		answer, ok := strings.CutPrefix(h.fails(t, 6, "denied", "ccache", principal, file).stderr, "sessionctl: "+principal+": ")
		said = cmp.Or(said, answer)
		if !ok || answer != said || strings.Contains(answer, principal) {
			t.Errorf("%s is told from others: %q", principal, answer)
		}
	}
	h.fails(t, 6, "denied", "ccache", "build", file, "--keep")
	h.fails(t, 2, "invalid_request", "ccache", "@", file)
	if w.counts(t) != before {
		t.Error("a KDC was asked")
	}
	if _, err := os.Lstat(file); !os.IsNotExist(err) {
		t.Errorf("a file was made: %v", err)
	}
}

// TestCCacheWithoutPassword: who can bring a password that is missing is told how,
// and nobody else which site it is for.
func TestCCacheWithoutPassword(t *testing.T) {
	const uid = 4242
	w := inProcess(t)
	byPassword := func(name, account string) string {
		return fmt.Sprintf("[credential.%s]\nprincipal = \"%s@%s\"\nexport = [\"uid:%d\", \"uid:%d\"]\n", name, account, realm, os.Getuid(), uid)
	}
	h := newHome(t, w, byPassword("secret", "build"), w.site("page", "/spnego/", `credential = "secret"`), byPassword("alone", "loner"))
	h.start(t)
	file := filepath.Join(t.TempDir(), "cc")
	next := func(r result) string {
		t.Helper()
		wantFailure(t, r, 5, "no_secret")
		_, next, _ := strings.Cut(r.stderr, "\n  next: ")
		return strings.TrimSpace(next)
	}
	if got := next(h.sessionctl(t, "ccache", "loner", file)); !strings.Contains(got, `set up a site with credential = "alone"`) {
		t.Errorf("without a site: %s", got)
	}
	t.Run("another user", func(t *testing.T) {
		rig.Require(t, "root")
		must(t, os.Chmod(h.dir, 0o755))
		must(t, os.Chmod(filepath.Dir(h.socket), 0o755))
		must(t, os.Chmod(h.socket, 0o666))
		cmd := exec.Command(filepath.Join(bin, "sessionctl"), "ccache", "build", file)
		cmd.Env = []string{"SESSIONCTL_SOCKET=" + h.socket}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		cmd.Dir = "/"
		if got := next(finish(t, cmd, "")); !strings.HasPrefix(got, "ask ") || strings.Contains(got, "page") {
			t.Errorf("told is %s", got)
		}
	})
	// The command as it stands there is what does it.
	command := strings.Fields(next(h.sessionctl(t, "ccache", "build", file)))
	if r := h.run(t, password, filepath.Join(bin, command[0]), command[1:]...); r.status != 0 {
		t.Errorf("%q: %v", command, r)
	}
	h.ok(t, "ccache", "build", file)
	readCache(t, file)
}

// TestCCacheOutages: without the agent or a KDC there is a status to act on. The
// ticket that lives is given all the same.
func TestCCacheOutages(t *testing.T) {
	inBothWorlds(t, func(t *testing.T, w *world) {
		file := filepath.Join(t.TempDir(), "cc")
		h := newHome(t, w, exported(w, os.Getuid()))
		if r := h.fails(t, 3, "no_agent", "ccache", "build", file); !strings.Contains(r.stderr, "sessiond") {
			t.Errorf("it does not say how to start one: %v", r)
		}
		a := h.start(t)
		w.stopKDC(t)
		if r := h.fails(t, 7, "kdc_unreachable", "ccache", "build", file); !strings.Contains(r.stderr, realm) {
			t.Errorf("the realm is not named: %v", r)
		}
		if _, err := os.Lstat(file); !os.IsNotExist(err) {
			t.Errorf("a file was made: %v", err)
		}
		w.startKDC(t)
		h.ok(t, "ccache", "build", file)
		tgt := readCache(t, file)
		w.stopKDC(t)
		must(t, os.Remove(file))
		h.ok(t, "ccache", "build", file)
		a.stop(t)
		b := h.start(t) // and over a restart
		h.ok(t, "ccache", "build", file)
		if again := readCache(t, file); !bytes.Equal(again.Ticket, tgt.Ticket) {
			t.Error("it is another ticket")
		}
		b.stop(t)
		h.fails(t, 3, "no_agent", "ccache", "build", file)
		if again := readCache(t, file); !bytes.Equal(again.Ticket, tgt.Ticket) {
			t.Error("a failure costs the cache that is there")
		}
		w.startKDC(t)
	})
}

// TestCCacheOfAnother: a user on the list gets a file of their own, where they may
// write one.
func TestCCacheOfAnother(t *testing.T) {
	rig.Require(t, "root")
	const uid = 4242
	w := inProcess(t)
	h := newHome(t, w, exported(w, uid))
	h.start(t)
	must(t, os.Chmod(h.dir, 0o755))
	must(t, os.Chmod(filepath.Dir(h.socket), 0o755))
	must(t, os.Chmod(h.socket, 0o666))
	own := filepath.Join(h.dir, "own")
	must(t, os.Mkdir(own, 0o700))
	must(t, os.Chown(own, uid, uid))
	sticky := filepath.Join(h.dir, "sticky")
	must(t, os.Mkdir(sticky, 0o700))
	must(t, os.Chmod(sticky, 0o777|os.ModeSticky))
	as := func(uid uint32, file string) result {
		cmd := exec.Command(filepath.Join(bin, "sessionctl"), "ccache", "build", file)
		cmd.Env = []string{"SESSIONCTL_SOCKET=" + h.socket}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		cmd.Dir = "/"
		return finish(t, cmd, "")
	}
	file := filepath.Join(own, "cc")
	if r := as(uid, file); r.status != 0 {
		t.Fatalf("%v", r)
	}
	readCache(t, file)
	info, err := os.Lstat(file)
	must(t, err)
	if st := info.Sys().(*syscall.Stat_t); st.Uid != uid || info.Mode() != 0o600 {
		t.Errorf("uid %d, mode %v", st.Uid, info.Mode())
	}
	// A directory that is not theirs, and one where somebody else took the name.
	foreign := write(t, filepath.Join(sticky, "cc"), "of another")
	for _, c := range []struct{ file, said string }{
		{filepath.Join(h.dir, "cc"), "permission denied"}, {foreign, "operation not permitted"},
	} {
		r := as(uid, c.file)
		wantFailure(t, r, 5, "ccache_unusable")
		if !strings.Contains(r.stderr, c.file+" cannot be written: "+c.said) {
			t.Errorf("%v", r)
		}
	}
	if b, err := os.ReadFile(foreign); err != nil || string(b) != "of another" {
		t.Errorf("%q, %v", b, err)
	}
	for _, dir := range []string{own, sticky} {
		if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
			t.Errorf("left behind in %s: %v, %v", dir, entries, err)
		}
	}
	// Neither others nor who runs the agent are on the list.
	wantFailure(t, as(4243, filepath.Join(sticky, "cc2")), 6, "denied")
	wantFailure(t, as(0, filepath.Join(h.dir, "cc2")), 6, "denied")
}

// TestCCacheKeep: it stays until it is told to end, which is no failure, and
// leaves the file.
func TestCCacheKeep(t *testing.T) {
	w := inProcess(t)
	h := newHome(t, w, exported(w, os.Getuid()))
	a := h.start(t)
	for _, signal := range []os.Signal{syscall.SIGTERM, os.Interrupt} {
		file := filepath.Join(t.TempDir(), "cc")
		cmd := exec.CommandContext(t.Context(), filepath.Join(bin, "sessionctl"), "ccache", "build", file, "--keep")
		cmd.Env = []string{"SESSIONCTL_SOCKET=" + h.socket}
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		stderr, err := cmd.StderrPipe()
		must(t, err)
		must(t, cmd.Start())
		lines := bufio.NewReader(stderr)
		line, err := lines.ReadString('\n')
		if err != nil || !strings.Contains(line, file) {
			t.Errorf("%q, %v", line, err)
		}
		readCache(t, file)
		argv, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", cmd.Process.Pid))
		must(t, err)
		environment, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", cmd.Process.Pid))
		must(t, err)
		secretIn(t, "its command line", string(argv), readCache(t, file).Key)
		secretIn(t, "its environment", string(environment), readCache(t, file).Key)
		must(t, cmd.Process.Signal(signal))
		rest, err := lines.ReadString(0)
		if rest != "" || err == nil {
			t.Errorf("it also said %q", rest)
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("%v: it ended with %v", signal, err)
		}
		readCache(t, file)
	}
	a.stop(t)
}
