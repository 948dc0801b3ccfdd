package rig_test

import (
	"bytes"
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

const realm = "RIG.TEST"

// startMIT starts a KDC with principal svc, its keytab svc.keytab, and
// HTTP/localhost with http.keytab, both in the KDC's directory.
func startMIT(t *testing.T, options ...rig.MITOption) *rig.MITKDC {
	t.Helper()
	return startRealm(t, realm, options...)
}

func startRealm(t *testing.T, realm string, options ...rig.MITOption) *rig.MITKDC {
	t.Helper()
	rig.Require(t, "krb5kdc", "kdb5_util", "kadmin.local", "kinit", "kvno")
	k, err := rig.StartMIT(t.Context(), t.TempDir(), realm, options...)
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
	return runWith(t, k.Env(), name, args...)
}

func runWith(t *testing.T, env []string, name string, args ...string) (output, failure string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Env = append(os.Environ(), env...)
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
		{"hwauth", rig.HardwareAuth, "-requires_hwauth", "preauthentication failure", ""},
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
		{rig.AES128Only, "aes128-cts-hmac-sha1-96"},
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
		"no realm":          rig.Krb5Conf{}.WriteFile(filepath.Join(t.TempDir(), "krb5.conf")),
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

func TestMITRC4Only(t *testing.T) {
	k := startMIT(t)
	must(t, k.AddPrincipal(t.Context(), "old", "CANARY-x", rig.RC4Only))
	must(t, k.Keytab(t.Context(), keytab(k, "old"), "old"))
	if list, failure := run(t, k, "klist", "-ekt", keytab(k, "old")); strings.Count(list, "old@") != 1 || !strings.Contains(list, "arcfour-hmac") {
		t.Errorf("keytab holds %s%s", list, failure)
	}
	if failure := kinit(t, k, keytab(k, "old"), "old"); failure != "" {
		t.Error(failure)
	}
}

func TestMITEnctypes(t *testing.T) {
	k := startMIT(t, rig.WithEnctypes("arcfour-hmac", "aes128-cts-hmac-sha1-96"))
	if failure := kinit(t, k, keytab(k, "svc"), "svc"); failure != "" {
		t.Error(failure)
	}
	list, failure := run(t, k, "klist", "-ekt", keytab(k, "http"))
	if strings.Count(list, "HTTP/localhost@") != 2 || !strings.Contains(list, "arcfour-hmac") || !strings.Contains(list, "aes128-cts-hmac-sha1-96") {
		t.Errorf("keytab holds %s%s", list, failure)
	}
}

func TestMITRenewal(t *testing.T) {
	k := startMIT(t)
	if _, failure := run(t, k, "kinit", "-r", "2d", "-kt", keytab(k, "svc"), "svc"); failure != "" {
		t.Fatal(failure)
	}
	if _, failure := run(t, k, "kinit", "-R"); failure != "" {
		t.Error(failure)
	}
	if _, failure := run(t, k, "kinit", "-l", "1h", "-kt", keytab(k, "svc"), "svc"); failure != "" {
		t.Fatal(failure)
	}
	if _, failure := run(t, k, "kinit", "-R"); !strings.Contains(failure, "can't fulfill requested option") {
		t.Errorf("a ticket that is not renewable: kinit -R says %q", failure)
	}
}

// clientTrace runs kinit and returns what libkrb5 says that it does (KRB5_TRACE).
func clientTrace(t *testing.T, k *rig.MITKDC) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "trace")
	t.Setenv("KRB5_TRACE", file)
	if failure := kinit(t, k, keytab(k, "svc"), "svc"); failure != "" {
		t.Fatal(failure)
	}
	b, err := os.ReadFile(file)
	must(t, err)
	return string(b)
}

func TestMITTransport(t *testing.T) {
	for _, test := range []struct {
		name    string
		options []rig.MITOption
		tcp     bool
	}{
		{"tcp", nil, true},
		{"udp", []rig.MITOption{rig.WithUDP()}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			k := startMIT(t, test.options...)
			said := clientTrace(t, k)
			if strings.Contains(said, "TCP request to stream "+k.Addr()) != test.tcp ||
				strings.Contains(said, "Received answer") && strings.Contains(said, "from dgram "+k.Addr()) == test.tcp {
				t.Error(said)
			}
			if got, want := counts(t, k), (rig.Counts{AS: 2, ASTGT: 1}); got != want {
				t.Errorf("counts %+v, want %+v", got, want)
			}
		})
	}
}

// kinitClock matches what kinit says when it takes the KDC's clock for its own,
// which it learns from the demand for pre-authentication.
var kinitClock = regexp.MustCompile(`(?m)^\[\d+\] (\d+)\.\d+: Encrypted timestamp \(for (\d+)\.`)

func TestMITClock(t *testing.T) {
	rig.Require(t, "faketime")
	for _, test := range []struct {
		name         string
		offset, skew time.Duration
		refused      bool
	}{
		{"ahead", 10 * time.Minute, 0, true},
		{"behind", -10 * time.Minute, 0, true},
		{"inside the skew", time.Minute, 0, false},
		{"outside the skew", time.Minute, 3 * time.Second, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			options := []rig.MITOption{rig.WithClock(test.offset)}
			if test.skew != 0 {
				options = append(options, rig.WithClockSkew(test.skew))
			}
			k := startMIT(t, options...)
			m := kinitClock.FindStringSubmatch(clientTrace(t, k))
			if m == nil {
				t.Fatal("kinit sent no timestamp")
			}
			client, err := strconv.Atoi(m[1])
			must(t, err)
			server, err := strconv.Atoi(m[2])
			must(t, err)
			// The seconds that the exchange took are in it.
			if off := time.Duration(server-client) * time.Second; (off - test.offset).Abs() > 20*time.Second {
				t.Errorf("the KDC's clock is off by %s, want %s", off, test.offset)
			}

			// kvno does not forgive when it is not to learn the KDC's time.
			b, err := os.ReadFile(k.Krb5ConfFile())
			must(t, err)
			conf := filepath.Join(t.TempDir(), "krb5.conf")
			must(t, os.WriteFile(conf, bytes.Replace(b, []byte("[libdefaults]"), []byte("[libdefaults]\nkdc_timesync = 0"), 1), 0o600))
			_, failure := runWith(t, append(k.Env(), "KRB5_CONFIG="+conf), "kvno", "HTTP/localhost")
			if got := strings.Contains(failure, "Clock skew too great"); got != test.refused || (failure != "") != test.refused {
				t.Errorf("kvno says %q", failure)
			}
		})
	}
}

// tgs returns how many service tickets each of the KDCs has issued.
func tgs(t *testing.T, kdcs ...*rig.MITKDC) (n []int) {
	t.Helper()
	for _, k := range kdcs {
		n = append(n, counts(t, k).TGS)
	}
	return n
}

func TestMITTrust(t *testing.T) {
	ctx := t.Context()
	a, b := startRealm(t, "ALPHA.TEST"), startRealm(t, "BETA.TEST", rig.WithEnctypes("aes256-cts-hmac-sha1-96"))
	for k, spn := range map[*rig.MITKDC]string{a: "HTTP/web.alpha.test", b: "HTTP/web.beta.test"} {
		must(t, k.AddService(ctx, spn))
	}
	must(t, a.AddPrincipal(ctx, "nopreauth", "CANARY-x", rig.NoPreauth))
	must(t, a.Keytab(ctx, keytab(a, "nopreauth"), "nopreauth"))

	dir := t.TempDir()
	hosts, referrals := filepath.Join(dir, "hosts.conf"), filepath.Join(dir, "referrals.conf")
	must(t, rig.Krb5Conf{Realms: []rig.Realm{a, b}}.WriteFile(hosts))
	must(t, rig.Krb5Conf{Realms: []rig.Realm{a, b}, Referrals: true}.WriteFile(referrals))
	try := func(conf, keytab, principal string, kvno ...string) (failure string) {
		t.Helper()
		env := []string{"KRB5_CONFIG=" + conf} // with a ticket cache of its own
		if _, failure := runWith(t, env, "kinit", "-kt", keytab, principal); failure != "" {
			t.Fatal(failure)
		}
		_, failure = runWith(t, env, "kvno", kvno...)
		return failure
	}
	svcA, svcB := keytab(a, "svc"), keytab(b, "svc")
	if failure := try(referrals, svcA, "svc@ALPHA.TEST", "-S", "HTTP", "web.beta.test"); !strings.Contains(failure, "not found in Kerberos database") {
		t.Errorf("before they trust each other: kvno says %q", failure)
	}
	must(t, a.Trust(ctx, b))
	if err := a.Trust(ctx, b); err == nil {
		t.Error("trusted twice")
	}
	for _, test := range []struct {
		name, conf, keytab, principal string
		kvno                          []string
		issued                        []int
	}{
		{"realm of the host in krb5.conf", hosts, svcA, "svc@ALPHA.TEST", []string{"-S", "HTTP", "web.beta.test"}, []int{1, 1}},
		{"realm named", referrals, svcA, "svc@ALPHA.TEST", []string{"HTTP/web.beta.test@BETA.TEST"}, []int{1, 1}},
		{"referral", referrals, svcA, "svc@ALPHA.TEST", []string{"-S", "HTTP", "web.beta.test"}, []int{1, 1}},
		{"referral, the other way", referrals, svcB, "svc@BETA.TEST", []string{"-S", "HTTP", "web.alpha.test"}, []int{1, 1}},
		{"own realm", referrals, svcB, "svc@BETA.TEST", []string{"-S", "HTTP", "web.beta.test"}, []int{0, 1}},
		{"without pre-authentication", hosts, keytab(a, "nopreauth"), "nopreauth@ALPHA.TEST", []string{"krbtgt/BETA.TEST@ALPHA.TEST"}, []int{1, 0}},
	} {
		before := tgs(t, a, b)
		if failure := try(test.conf, test.keytab, test.principal, test.kvno...); failure != "" {
			t.Errorf("%s: %s", test.name, failure)
		}
		after := tgs(t, a, b)
		if got := []int{after[0] - before[0], after[1] - before[1]}; !slices.Equal(got, test.issued) {
			t.Errorf("%s: tickets issued by each KDC %d, want %d", test.name, got, test.issued)
		}
	}
	// A name that is not marked as a host's gets no referral.
	if failure := try(referrals, svcA, "svc@ALPHA.TEST", "HTTP/web.beta.test"); !strings.Contains(failure, "not found in Kerberos database") {
		t.Errorf("a name that is no host's: kvno says %q", failure)
	}
	// A stopped KDC stays stopped, and knows of the trust when it is started.
	c := startRealm(t, "GAMMA.TEST")
	must(t, c.AddService(ctx, "HTTP/web.gamma.test"))
	a.Stop()
	must(t, a.Trust(ctx, c))
	if failure := kinit(t, a, svcA, "svc"); !strings.Contains(failure, "Cannot contact any KDC") {
		t.Errorf("started by Trust: kinit says %q", failure)
	}
	must(t, a.Start(ctx))
	must(t, rig.Krb5Conf{Realms: []rig.Realm{a, b, c}, Referrals: true, UDP: true}.WriteFile(referrals))
	for _, host := range []string{"web.beta.test", "web.gamma.test"} {
		if failure := try(referrals, svcA, "svc@ALPHA.TEST", "-S", "HTTP", host); failure != "" {
			t.Errorf("%s: %s", host, failure)
		}
	}
}
