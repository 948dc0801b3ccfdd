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

const realm = "RIG.TEST"

// startMIT starts a KDC with principal svc, its keytab svc.keytab, and
// HTTP/localhost with http.keytab, both in the KDC's directory.
func startMIT(t *testing.T) *rig.MITKDC {
	t.Helper()
	rig.Require(t, "krb5kdc", "kdb5_util", "kadmin.local", "kinit", "kvno")
	k, err := rig.StartMIT(t.Context(), t.TempDir(), realm)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Stop)
	must(t, k.AddPrincipal(t.Context(), "svc", "CANARY-svc"))
	must(t, k.AddService(t.Context(), "HTTP/localhost"))
	must(t, k.Keytab(t.Context(), keytab(k, "svc"), "svc"))
	must(t, k.Keytab(t.Context(), keytab(k, "http"), "HTTP/localhost"))
	return k
}

func keytab(k *rig.MITKDC, name string) string { return filepath.Join(k.Dir(), name+".keytab") }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// run runs a client of the realm and returns its output, "" and the text of the
// failure if it fails.
func run(t *testing.T, k *rig.MITKDC, name string, args ...string) (output, failure string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Env = append(os.Environ(), k.Env()...)
	cmd.Env = append(cmd.Env, "LC_ALL=C")
	b, err := cmd.CombinedOutput()
	if err != nil {
		return "", err.Error() + ": " + string(b)
	}
	return string(b), ""
}

func kinit(t *testing.T, k *rig.MITKDC, keytab, name string) (failure string) {
	t.Helper()
	_, failure = run(t, k, "kinit", "-kt", keytab, name)
	return failure
}

func counts(t *testing.T, k *rig.MITKDC) rig.Counts {
	t.Helper()
	c, err := k.Counts()
	must(t, err)
	return c
}

func TestMITTickets(t *testing.T) {
	k := startMIT(t)
	if failure := kinit(t, k, keytab(k, "svc"), "svc@"+realm); failure != "" {
		t.Fatal(failure)
	}
	if _, failure := run(t, k, "kvno", "HTTP/localhost"); failure != "" {
		t.Fatal(failure)
	}
	// kinit asks twice: the first answer is that pre-authentication is needed.
	if got, want := counts(t, k), (rig.Counts{AS: 2, ASTGT: 1, TGS: 1}); got != want {
		t.Errorf("counts %+v, want %+v", got, want)
	}
	if _, failure := run(t, k, "kvno", "HTTP/unknown.test"); !strings.Contains(failure, "not found in Kerberos database") {
		t.Errorf("unknown service: %q", failure)
	}
	if got := counts(t, k).TGS; got != 1 {
		t.Errorf("%d service tickets issued, want 1", got)
	}
}

func TestMITAttributes(t *testing.T) {
	k := startMIT(t)
	ctx := t.Context()
	for _, test := range []struct {
		name              string
		set, unset        rig.Attribute
		failure, afterAll string
	}{
		{"disabled", rig.Disabled, rig.Enabled, "credentials have been revoked", ""},
		{"expired", rig.Expired, rig.NotExpired, "entry in database has expired", ""},
		{"pwexpired", rig.PasswordExpired, rig.PasswordValid, "Password has expired", ""},
	} {
		must(t, k.AddPrincipal(ctx, test.name, "CANARY-x", test.set))
		must(t, k.Keytab(ctx, keytab(k, test.name), test.name))
		if failure := kinit(t, k, keytab(k, test.name), test.name); !strings.Contains(failure, test.failure) {
			t.Errorf("%s: kinit says %q", test.name, failure)
		}
		must(t, k.Modify(ctx, test.name, test.unset))
		if failure := kinit(t, k, keytab(k, test.name), test.name); failure != "" {
			t.Errorf("%s, undone: kinit says %q", test.name, failure)
		}
	}

	must(t, k.AddPrincipal(ctx, "nopreauth", "CANARY-x", rig.NoPreauth))
	must(t, k.Keytab(ctx, keytab(k, "nopreauth"), "nopreauth"))
	before := counts(t, k)
	if failure := kinit(t, k, keytab(k, "nopreauth"), "nopreauth"); failure != "" {
		t.Error(failure)
	}
	if got := counts(t, k); got.AS != before.AS+1 || got.ASTGT != before.ASTGT+1 {
		t.Errorf("without pre-authentication: counts %+v, before %+v", got, before)
	}

	for _, test := range []struct {
		attribute rig.Attribute
		enctype   string
	}{
		{rig.SHA2Only, "aes256-cts-hmac-sha384-192"},
		{rig.AES256Only, "aes256-cts-hmac-sha1-96"},
	} {
		file := filepath.Join(k.Dir(), test.enctype+".keytab")
		must(t, k.AddService(ctx, "HTTP/"+test.enctype, test.attribute))
		must(t, k.Keytab(ctx, file, "HTTP/"+test.enctype))
		list, failure := run(t, k, "klist", "-ekt", file)
		if strings.Count(list, "HTTP/"+test.enctype) != 1 || !strings.Contains(list, "("+test.enctype+")") {
			t.Errorf("%s: keytab holds %s%s", test.enctype, list, failure)
		}
	}
}

func TestMITNewKeys(t *testing.T) {
	k := startMIT(t)
	ctx := t.Context()
	must(t, k.Rekey(ctx, "svc", "CANARY-other"))
	if failure := kinit(t, k, keytab(k, "svc"), "svc"); !strings.Contains(failure, "Preauthentication failed") {
		t.Errorf("old keytab: kinit says %q", failure)
	}
	if got := counts(t, k).PreauthFailed; got != 1 {
		t.Errorf("%d refusals counted, want 1", got)
	}
	must(t, k.Keytab(ctx, keytab(k, "svc"), "svc"))
	if failure := kinit(t, k, keytab(k, "svc"), "svc"); failure != "" {
		t.Errorf("keytab with both: kinit says %q", failure)
	}
	must(t, k.Rekey(ctx, "HTTP/localhost", ""))
	if out, failure := run(t, k, "kvno", "HTTP/localhost"); !strings.Contains(out, "kvno = 2") {
		t.Errorf("after Rekey: %s%s", out, failure)
	}
	must(t, k.Delete(ctx, "svc"))
	if failure := kinit(t, k, keytab(k, "svc"), "svc"); !strings.Contains(failure, "not found in Kerberos database") {
		t.Errorf("after Delete: kinit says %q", failure)
	}
}

func TestMITStopAndStart(t *testing.T) {
	k := startMIT(t)
	if err := k.Start(t.Context()); err == nil {
		t.Error("started twice")
	}
	k.Stop()
	k.Stop()
	if conn, err := net.Dial("tcp", k.Addr()); err == nil {
		conn.Close()
		t.Fatal("a stopped KDC accepts connections")
	}
	if failure := kinit(t, k, keytab(k, "svc"), "svc"); !strings.Contains(failure, "Cannot contact any KDC") {
		t.Errorf("without KDC: kinit says %q", failure)
	}
	must(t, k.Start(t.Context()))
	if failure := kinit(t, k, keytab(k, "svc"), "svc"); failure != "" {
		t.Error(failure)
	}
	if got, want := counts(t, k), (rig.Counts{AS: 2, ASTGT: 1}); got != want {
		t.Errorf("counts %+v, want %+v", got, want)
	}
}

func TestMITErrors(t *testing.T) {
	k := startMIT(t)
	ctx := t.Context()
	for name, err := range map[string]error{
		"principal twice":   k.AddPrincipal(ctx, "svc", "CANARY-again"),
		"unknown principal": k.Keytab(ctx, keytab(k, "x"), "nosuch"),
		"unknown attribute": k.AddPrincipal(ctx, "y", "CANARY-y", "-no_such_option"),
		"realm twice":       func() error { _, err := rig.StartMIT(ctx, k.Dir(), realm); return err }(),
	} {
		if err == nil {
			t.Errorf("%s: no error", name)
		} else if strings.Contains(err.Error(), "CANARY-") {
			t.Errorf("%s: the error shows a password: %v", name, err)
		}
	}
	// A line break would end the command and begin another.
	if err := k.AddPrincipal(ctx, "z", "CANARY-z\nx"); err == nil || err.Error() != "control character in a name or password" {
		t.Errorf("line break in a password: %v", err)
	}
	over, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := rig.StartMIT(over, t.TempDir(), realm); err == nil {
		t.Error("started in spite of an ended context")
	}
	must(t, k.AddPrincipal(ctx, "odd", `CANARY-"quo ted" \n $x`))
	cmd := exec.CommandContext(ctx, "kinit", "odd")
	cmd.Env = append(os.Environ(), k.Env()...)
	cmd.Stdin = strings.NewReader(`CANARY-"quo ted" \n $x` + "\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("password with quotes and blanks: %v: %s", err, out)
	}
}
