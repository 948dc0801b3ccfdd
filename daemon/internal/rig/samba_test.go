package rig_test

import (
	"os"
	"slices"
	"testing"

	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

// TestSamba is one test, because a domain takes seconds to make.
func TestSamba(t *testing.T) {
	rig.Require(t, append(rig.SambaNeeds(), "kinit", "kvno")...)
	k, err := rig.StartSamba(t.Context(), t.TempDir(), "AD.TEST")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Stop)
	const revoked = "credentials have been revoked"
	testRealm(t, k, [3]string{revoked, revoked, "Password has expired"})
	t.Run("groups", func(t *testing.T) { testSambaGroups(realmTest{t, k}, k) })
	t.Run("names", func(t *testing.T) { testSambaNames(realmTest{t, k}) })
	t.Run("RC4", func(t *testing.T) { testSambaRC4(realmTest{t, k}) })
	t.Run("again", func(t *testing.T) {
		if _, err := rig.StartSamba(t.Context(), k.Dir(), "AD.TEST"); err == nil {
			t.Error("made a domain over another one")
		}
	})
}

// cacheSize returns the size of a ticket cache with nothing but a new TGT.
func (t realmTest) cacheSize(user string) int64 {
	t.Helper()
	if failure := t.passwordLogin(user, "CANARY-"+user); failure != "" {
		t.Fatal(failure)
	}
	info, err := os.Stat(t.in("krb5cc"))
	must(t.T, err)
	return info.Size()
}

func testSambaGroups(t realmTest, k *rig.Samba) {
	ctx := t.Context()
	for _, user := range []string{"many", "none"} {
		must(t.T, k.AddPrincipal(ctx, user, "CANARY-"+user))
	}
	must(t.T, k.AddGroups(ctx, "many", 990))
	must(t.T, k.AddGroups(ctx, "many", 10))
	if err := k.AddGroups(ctx, "nosuch", 1); err == nil {
		t.Error("added groups to nobody")
	}
	// The PAC has 8 octets for each group of the domain ([MS-PAC] 2.2.2).
	none, many := t.cacheSize("none"), t.cacheSize("many")
	if grown := many - none; grown < 1000*8 || grown > 1000*8+100 {
		t.Errorf("caches of %d and %d octets", none, many)
	}
	if _, failure := t.client("kvno", "HTTP/localhost"); failure != "" {
		t.Error(failure)
	}
}

// In Active Directory a user's name is the same in any case.
func testSambaNames(t realmTest) {
	ctx := t.Context()
	must(t.T, t.AddPrincipal(ctx, "Jürgen.K", "CANARY-ü"))
	for _, name := range []string{"Jürgen.K", "jürgen.k"} {
		if failure := t.passwordLogin(name, "CANARY-ü"); failure != "" {
			t.Errorf("%s: kinit says %q", name, failure)
		}
	}
}

func testSambaRC4(t realmTest) {
	ctx := t.Context()
	file := t.in("rc4.keytab")
	must(t.T, t.AddService(ctx, "HTTP/old", rig.RC4Only))
	must(t.T, t.Keytab(ctx, file, "HTTP/old"))
	if got := t.enctypesOf(file, "HTTP/old"); !slices.Equal(got, []string{"arcfour-hmac"}) {
		t.Errorf("keytab holds %v", got)
	}
	if failure := t.login(t.in("both.keytab"), "svc"); failure != "" {
		t.Error(failure)
	}
	if _, failure := t.client("kvno", "-k", file, "HTTP/old"); failure != "" {
		t.Error(failure)
	}
}
