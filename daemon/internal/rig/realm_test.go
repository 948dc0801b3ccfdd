package rig_test

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

// realmServer is what Samba and Heimdal have in common with MIT's KDC.
type realmServer interface {
	rig.Realm
	Dir() string
	Env() []string
	Start(ctx context.Context) error
	Stop()
	AddPrincipal(ctx context.Context, name, password string, attributes ...rig.Attribute) error
	AddService(ctx context.Context, spn string, attributes ...rig.Attribute) error
	Modify(ctx context.Context, name string, attributes ...rig.Attribute) error
	Rekey(ctx context.Context, name, password string) error
	Delete(ctx context.Context, name string) error
	Keytab(ctx context.Context, path string, names ...string) error
	Counts() (rig.Counts, error)
}

var _ realmServer = (*rig.MITKDC)(nil)

// realmTest is a client of a realm.
type realmTest struct {
	*testing.T
	realmServer
}

func (t realmTest) in(name string) string { return filepath.Join(t.Dir(), name) }

func (t realmTest) client(name string, args ...string) (output, failure string) {
	t.Helper()
	return runWith(t.T, t.Env(), name, args...)
}

// login gets a TGT with the keytab at path.
func (t realmTest) login(path, name string) (failure string) {
	t.Helper()
	_, failure = t.client("kinit", "-kt", path, name)
	return failure
}

// passwordLogin gets a TGT with a password.
func (t realmTest) passwordLogin(name, password string) (failure string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "kinit", name)
	cmd.Env = append(append(os.Environ(), t.Env()...), "LC_ALL=C")
	cmd.Stdin = strings.NewReader(password + "\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		return err.Error() + ": " + string(out)
	}
	return ""
}

// counted runs do and returns by how much it raised the counts.
func (t realmTest) counted(do func()) rig.Counts {
	t.Helper()
	before, err := t.Counts()
	must(t.T, err)
	do()
	after, err := t.Counts()
	must(t.T, err)
	return rig.Counts{
		AS: after.AS - before.AS, ASTGT: after.ASTGT - before.ASTGT,
		PreauthFailed: after.PreauthFailed - before.PreauthFailed, TGS: after.TGS - before.TGS,
	}
}

// testRealm runs the tests that every KDC has to pass. The KDC has no principal of
// ours yet, and runs. What kinit says of principals that are Disabled, Expired and
// PasswordExpired is theirs.
func testRealm(t *testing.T, k realmServer, refusals [3]string) {
	test := func(name string, f func(t realmTest)) {
		t.Run(name, func(t *testing.T) { f(realmTest{t, k}) })
	}
	ctx := t.Context()
	must(t, k.AddPrincipal(ctx, "svc", "CANARY-svc"))
	must(t, k.AddService(ctx, "HTTP/localhost"))
	must(t, k.Keytab(ctx, filepath.Join(k.Dir(), "both.keytab"), "svc", "HTTP/localhost"))
	test("tickets", testRealmTickets)
	test("passwords", testRealmPasswords)
	test("attributes", func(t realmTest) { testRealmAttributes(t, refusals) })
	test("enctypes", testRealmEnctypes)
	test("new keys", testRealmNewKeys)
	test("UDP", testRealmUDP)
	test("one process", testRealmOneProcess)
	test("errors", testRealmErrors)
	test("stop and start", testRealmStopAndStart)
}

func testRealmTickets(t realmTest) {
	info, err := os.Stat(t.in("both.keytab"))
	must(t.T, err)
	if info.Mode() != 0o600 {
		t.Errorf("keytab has mode %v", info.Mode())
	}
	got := t.counted(func() {
		if failure := t.login(t.in("both.keytab"), "svc@"+t.Realm()); failure != "" {
			t.Fatal(failure)
		}
		// The keytab of a service has the key of the ticket for it.
		if _, failure := t.client("kvno", "-k", t.in("both.keytab"), "HTTP/localhost"); failure != "" {
			t.Error(failure)
		}
		if out, failure := t.client("kvno", "-S", "HTTP", "localhost"); !strings.Contains(out, "HTTP/localhost@"+t.Realm()) {
			t.Errorf("host-based: %s%s", out, failure)
		}
	})
	// kinit asks twice: the first answer is that pre-authentication is needed.
	if want := (rig.Counts{AS: 2, ASTGT: 1, TGS: 1}); got != want {
		t.Errorf("counts %+v, want %+v", got, want)
	}
	got = t.counted(func() {
		if _, failure := t.client("kvno", "HTTP/unknown.test"); !strings.Contains(failure, "not found in Kerberos database") {
			t.Errorf("unknown service: %q", failure)
		}
	})
	if got != (rig.Counts{}) {
		t.Errorf("counts of a refusal %+v", got)
	}
	if _, failure := t.client("kinit", "-r", "2d", "-kt", t.in("both.keytab"), "svc"); failure != "" {
		t.Fatal(failure)
	}
	if _, failure := t.client("kinit", "-R"); failure != "" {
		t.Errorf("renewal: %s", failure)
	}
}

func testRealmPasswords(t realmTest) {
	for name, password := range map[string]string{"svc": "CANARY-svc", "odd": `CANARY-"quo ted" \n $x %s 'u'`} {
		if name != "svc" {
			must(t.T, t.AddPrincipal(t.Context(), name, password))
		}
		if failure := t.passwordLogin(name, password); failure != "" {
			t.Errorf("%s: kinit says %q", name, failure)
		}
	}
	got := t.counted(func() {
		if failure := t.passwordLogin("svc", "CANARY-wrong"); !strings.Contains(failure, "Password incorrect") {
			t.Errorf("wrong password: kinit says %q", failure)
		}
	})
	if got.ASTGT != 0 || got.PreauthFailed != 1 {
		t.Errorf("counts of a wrong password %+v", got)
	}
}

func testRealmAttributes(t realmTest, refusals [3]string) {
	ctx, file := t.Context(), t.in("changing.keytab")
	must(t.T, t.AddPrincipal(ctx, "changing", "CANARY-x", rig.Disabled))
	must(t.T, t.Keytab(ctx, file, "changing"))
	for i, test := range []struct{ set, unset rig.Attribute }{
		{rig.Disabled, rig.Enabled},
		{rig.Expired, rig.NotExpired},
		{rig.PasswordExpired, rig.PasswordValid},
	} {
		if i > 0 { // AddPrincipal did it
			must(t.T, t.Modify(ctx, "changing", test.set))
		}
		if failure := t.login(file, "changing"); !strings.Contains(failure, refusals[i]) {
			t.Errorf("%s: kinit says %q", test.set, failure)
		}
		must(t.T, t.Modify(ctx, "changing", test.unset))
		if failure := t.login(file, "changing"); failure != "" {
			t.Errorf("%s: kinit says %q", test.unset, failure)
		}
	}
	if err := t.Modify(ctx, "svc", "-no_such_attribute"); err == nil {
		t.Error("an unknown attribute was taken")
	}
}

// enctypesOf returns the enctypes of a principal's keys in a keytab.
func (t realmTest) enctypesOf(path, principal string) []string {
	t.Helper()
	list, failure := t.client("klist", "-ekt", path)
	if failure != "" {
		t.Fatal(failure)
	}
	var enctypes []string
	for line := range strings.Lines(list) {
		if _, enctype, ok := strings.Cut(line, " "+principal+"@"+t.Realm()+" ("); ok {
			enctype, _, _ = strings.Cut(enctype, ")")
			enctypes = append(enctypes, strings.TrimPrefix(enctype, "DEPRECATED:"))
		}
	}
	return enctypes
}

func testRealmEnctypes(t realmTest) {
	if failure := t.login(t.in("both.keytab"), "svc"); failure != "" {
		t.Fatal(failure)
	}
	for _, test := range []struct {
		attribute rig.Attribute
		enctype   string
	}{
		{rig.AES256Only, "aes256-cts-hmac-sha1-96"},
		{rig.AES128Only, "aes128-cts-hmac-sha1-96"},
	} {
		spn, file := "HTTP/"+test.enctype, t.in(test.enctype+".keytab")
		must(t.T, t.AddService(t.Context(), spn, test.attribute))
		must(t.T, t.Keytab(t.Context(), file, spn))
		if got := t.enctypesOf(file, spn); len(got) != 1 || got[0] != test.enctype {
			t.Errorf("%s: keytab holds %v", test.enctype, got)
		}
		if _, failure := t.client("kvno", "-k", file, spn); failure != "" {
			t.Error(failure)
		}
	}
}

func testRealmNewKeys(t realmTest) {
	ctx := t.Context()
	file := t.in("rekeyed.keytab")
	must(t.T, t.AddPrincipal(ctx, "rekeyed", "CANARY-old"))
	must(t.T, t.AddService(ctx, "HTTP/rekeyed"))
	must(t.T, t.Keytab(ctx, file, "rekeyed", "HTTP/rekeyed"))
	before := len(t.enctypesOf(file, "rekeyed"))
	must(t.T, t.Rekey(ctx, "rekeyed", "CANARY-new"))
	got := t.counted(func() {
		if failure := t.login(file, "rekeyed"); !strings.Contains(failure, "Preauthentication failed") {
			t.Errorf("old keytab: kinit says %q", failure)
		}
	})
	if got.PreauthFailed != 1 {
		t.Errorf("counts of an old keytab %+v", got)
	}
	must(t.T, t.Keytab(ctx, file, "rekeyed"))
	if n := len(t.enctypesOf(file, "rekeyed")); n != 2*before {
		t.Errorf("keytab with both versions holds %d keys, before %d", n, before)
	}
	if failure := t.login(file, "rekeyed"); failure != "" {
		t.Errorf("keytab with both: kinit says %q", failure)
	}
	must(t.T, t.Rekey(ctx, "HTTP/rekeyed", ""))
	if _, failure := t.client("kvno", "-k", file, "HTTP/rekeyed"); failure == "" {
		t.Error("the old keytab has the key of a ticket for the new one")
	}
	must(t.T, t.Delete(ctx, "rekeyed"))
	if failure := t.login(file, "rekeyed"); !strings.Contains(failure, "not found in Kerberos database") {
		t.Errorf("after Delete: kinit says %q", failure)
	}
}

func testRealmUDP(t realmTest) {
	udp := filepath.Join(t.TempDir(), "krb5.conf")
	must(t.T, rig.Krb5Conf{Realms: []rig.Realm{t}, UDP: true}.WriteFile(udp))
	for _, test := range []struct{ config, network string }{{udp, "dgram"}, {t.in("krb5.conf"), "stream"}} {
		file := filepath.Join(t.TempDir(), "trace")
		env := append(t.Env(), "KRB5_CONFIG="+test.config, "KRB5_TRACE="+file)
		if _, failure := runWith(t.T, env, "kinit", "-kt", t.in("both.keytab"), "svc"); failure != "" {
			t.Error(failure)
		}
		said, err := os.ReadFile(file)
		must(t.T, err)
		if strings.Count(string(said), "bytes) from "+test.network+" "+t.Addr()) != 2 {
			t.Errorf("%s: %s", test.network, said)
		}
	}
}

// The kernel kills the process that the test started when the test dies, but not
// processes that this one has started.
func testRealmOneProcess(t realmTest) {
	files, err := filepath.Glob(t.in("*.pid"))
	must(t.T, err)
	if len(files) != 1 {
		t.Fatalf("pid files: %q", files)
	}
	b, err := os.ReadFile(files[0])
	must(t.T, err)
	pid := strings.TrimSpace(string(b))
	children, err := os.ReadFile(filepath.Join("/proc", pid, "task", pid, "children"))
	must(t.T, err)
	if len(children) > 0 {
		t.Errorf("process %s has children %s", pid, children)
	}
}

func testRealmErrors(t realmTest) {
	ctx := t.Context()
	for name, err := range map[string]error{
		"principal twice":   t.AddPrincipal(ctx, "svc", "CANARY-again"),
		"unknown principal": t.Keytab(ctx, t.in("x.keytab"), "nosuch"),
		"unknown to Modify": t.Modify(ctx, "nosuch", rig.Disabled),
		"unknown to Rekey":  t.Rekey(ctx, "nosuch", "CANARY-x"),
		"unknown to Delete": t.Delete(ctx, "nosuch"),
		"unknown attribute": t.AddPrincipal(ctx, "y", "CANARY-y", "-no_such_option"),
		"started twice":     t.Start(ctx),
	} {
		if err == nil {
			t.Errorf("%s: no error", name)
		} else if strings.Contains(err.Error(), "CANARY-") {
			t.Errorf("%s: the error shows a password: %v", name, err)
		}
	}
	if failure := t.passwordLogin("svc", "CANARY-svc"); failure != "" {
		t.Errorf("the failures changed a principal: kinit says %q", failure)
	}
}

func testRealmStopAndStart(t realmTest) {
	t.Stop()
	t.Stop()
	if conn, err := net.Dial("tcp", t.Addr()); err == nil {
		conn.Close()
		t.Fatal("a stopped KDC accepts connections")
	}
	got := t.counted(func() {
		if failure := t.login(t.in("both.keytab"), "svc"); !strings.Contains(failure, "Cannot contact any KDC") {
			t.Errorf("without KDC: kinit says %q", failure)
		}
		must(t.T, t.Start(t.Context()))
		if failure := t.login(t.in("both.keytab"), "svc"); failure != "" {
			t.Error(failure)
		}
	})
	if want := (rig.Counts{AS: 2, ASTGT: 1}); got != want {
		t.Errorf("counts %+v, want %+v", got, want)
	}
}
