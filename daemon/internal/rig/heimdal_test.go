package rig_test

import (
	"context"
	"slices"
	"testing"

	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

func startHeimdal(t *testing.T) *rig.Heimdal {
	t.Helper()
	rig.Require(t, append(rig.HeimdalNeeds(), "kinit", "kvno")...)
	k, err := rig.StartHeimdal(t.Context(), t.TempDir(), realm)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Stop)
	return k
}

func TestHeimdal(t *testing.T) {
	testRealm(t, startHeimdal(t), [3]string{"KDC policy rejects request", "entry in database has expired", "Password has expired"})
}

func TestHeimdalWithoutPreauth(t *testing.T) {
	k := realmTest{t, startHeimdal(t)}
	must(t, k.AddPrincipal(t.Context(), "nopreauth", "CANARY-x", rig.NoPreauth))
	must(t, k.Keytab(t.Context(), k.in("keytab"), "nopreauth"))
	got := k.counted(func() {
		if failure := k.login(k.in("keytab"), "nopreauth"); failure != "" {
			t.Error(failure)
		}
	})
	if want := (rig.Counts{AS: 1, ASTGT: 1}); got != want {
		t.Errorf("counts %+v, want %+v", got, want)
	}
}

func TestHeimdalSHA2(t *testing.T) {
	k := realmTest{t, startHeimdal(t)}
	ctx, file := t.Context(), k.in("sha2.keytab")
	must(t, k.AddPrincipal(ctx, "sha2", "CANARY-sha2", rig.SHA2Only))
	must(t, k.AddService(ctx, "HTTP/all"))
	must(t, k.Keytab(ctx, file, "sha2", "HTTP/all"))
	const sha2 = "aes256-cts-hmac-sha384-192"
	if got := k.enctypesOf(file, "sha2"); !slices.Equal(got, []string{sha2}) {
		t.Errorf("keytab holds %v", got)
	}
	if got := k.enctypesOf(file, "HTTP/all"); len(got) != 4 || !slices.Contains(got, sha2) {
		t.Errorf("keytab of a service holds %v", got)
	}
	if failure := k.login(file, "sha2"); failure != "" {
		t.Error(failure)
	}
}

func TestHeimdalErrors(t *testing.T) {
	k := startHeimdal(t)
	if _, err := rig.StartHeimdal(t.Context(), k.Dir(), realm); err == nil {
		t.Error("made a realm over another one")
	}
	// A line break would end the command and begin another.
	for _, password := range []string{"CANARY-z\nx", "CANARY-ü"} {
		if err := k.AddPrincipal(t.Context(), "z", password); err == nil || err.Error() != "a name or password is not printable ASCII" {
			t.Errorf("%q: %v", password, err)
		}
	}
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := rig.StartHeimdal(over, t.TempDir(), realm); err == nil {
		t.Error("started in spite of an ended context")
	}
}
