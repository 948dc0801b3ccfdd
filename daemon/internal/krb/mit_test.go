package krb_test

import (
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/krb"
	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

// TestMIT is about MIT's krb5kdc: every kind of key and every refusal that the
// in-process KDC is a model of.
func TestMIT(t *testing.T) {
	rig.Require(t, "krb5kdc", "kdb5_util", "kadmin.local")
	ctx := t.Context()
	dir := t.TempDir()
	k, err := rig.StartMIT(ctx, filepath.Join(dir, "kdc"), "RIG.TEST")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Stop)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(k.AddService(ctx, site))
	must(k.AddService(ctx, "HTTP/sha2.example", rig.SHA2Only))
	path := func(name string) string { return filepath.Join(dir, name+".keytab") }
	for name, attributes := range map[string][]rig.Attribute{
		"svc": nil, "sha2": {rig.SHA2Only}, "aes256": {rig.AES256Only}, "aes128": {"-e aes128-cts-hmac-sha1-96:normal"}, "aes128sha2": {"-e aes128-cts-hmac-sha256-128:normal"},
		"rc4": {"-e arcfour-hmac:normal"}, "Mixed.Case": nil, "expired": {rig.Expired}, "pwexpired": {rig.PasswordExpired}, "disabled": {rig.Disabled},
	} {
		must(k.AddPrincipal(ctx, name, password, attributes...))
		must(k.Keytab(ctx, path(name), name))
	}
	// An old key beside the new one: the highest version counts.
	must(k.AddPrincipal(ctx, "rolled", password))
	must(k.Keytab(ctx, path("rolled"), "rolled"))
	must(k.Rekey(ctx, "rolled", "CANARY-new"))
	must(k.Keytab(ctx, path("rolled"), "rolled"))
	must(k.AddPrincipal(ctx, "stale", password))
	must(k.Keytab(ctx, path("stale"), "stale"))
	must(k.Rekey(ctx, "stale", "CANARY-new"))
	must(k.AddPrincipal(ctx, "gone", password))
	must(k.Keytab(ctx, path("gone"), "gone"))
	must(k.Delete(ctx, "gone"))

	config, err := krb.LoadConfig(k.Krb5ConfFile())
	must(err)
	for _, c := range []struct {
		name, spn string
		code      api.Code
		as        int // messages
	}{
		{"svc", site, "", 2}, {"svc", "HTTP/sha2.example", "", 2}, {"sha2", site, "", 2}, {"sha2", "HTTP/sha2.example", "", 2},
		{"aes256", site, "", 2}, {"aes128", site, "", 2}, {"aes128sha2", site, "", 2}, {"Mixed.Case", site, "", 2}, {"rolled", site, "", 2},
		{"svc", "HTTP/unknown.example", api.SPNUnknown, 2},
		{"stale", site, api.BadCredentials, 2}, {"gone", site, api.PrincipalUnknown, 1}, {"expired", site, api.PrincipalExpired, 1},
		{"pwexpired", site, api.PasswordExpired, 1}, {"disabled", site, api.PrincipalDisabled, 1}, {"rc4", site, api.EtypeUnsupported, 0},
	} {
		before, err := k.Counts()
		must(err)
		e := krb.New(krb.Options{Config: config, Records: &records{}, Latch: &latch{}, Log: slog.New(slog.DiscardHandler)})
		p, err := krb.ParsePrincipal(c.name, "RIG.TEST")
		must(err)
		_, err = e.Initiate(ctx, krb.Credential{Principal: p, Keytab: path(c.name)}, c.spn, krb.InitiateOptions{Mutual: true})
		e.Close()
		if api.CodeOf(err) != c.code {
			t.Errorf("%s for %s: %v, want %q", c.name, c.spn, err, c.code)
		}
		after, cerr := k.Counts()
		must(cerr)
		if n := after.AS - before.AS; n != c.as {
			t.Errorf("%s for %s: %d AS messages, want %d", c.name, c.spn, n, c.as)
		}
	}

	// Two silent KDCs before the live one.
	silent := func() string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		must(err)
		t.Cleanup(func() { l.Close() })
		return l.Addr().String()
	}
	conf := "[realms]\n RIG.TEST = {\n  kdc = " + silent() + "\n  kdc = " + silent() + "\n  kdc = " + k.Addr() + "\n }\n"
	file := filepath.Join(dir, "silent.conf")
	must(os.WriteFile(file, []byte(conf), 0o600))
	config, err = krb.LoadConfig(file)
	must(err)
	e := krb.New(krb.Options{Config: config, Records: &records{}, Latch: &latch{}, Log: slog.New(slog.DiscardHandler)})
	defer e.Close()
	p, err := krb.ParsePrincipal("svc", "RIG.TEST")
	must(err)
	if _, err := e.Initiate(context.WithoutCancel(ctx), krb.Credential{Principal: p, Keytab: path("svc")}, site, krb.InitiateOptions{Mutual: true}); err != nil {
		t.Errorf("two silent KDCs: %v", err)
	}
}
