package e2e

import (
	"os"
	"strings"
	"testing"
)

// TestRekeyStore: the store is written anew when somebody asks for it, with the sessions
// that there are, and while they are served; and by itself when the agent ends after a
// logout.
func TestRekeyStore(t *testing.T) {
	w := newJira(t)
	h := w.home(t)
	a := h.start(t)
	cookie := h.ok(t, "raw", "jira")
	file := h.store
	before, err := os.Stat(file)
	must(t, err)
	if out := h.ok(t, "status"); strings.Contains(out, "written anew") {
		t.Errorf("%s", out)
	}
	if out := h.ok(t, "rekey"); !strings.HasPrefix(out, "ok: ") || !strings.Contains(out, "was written anew: ") {
		t.Errorf("%s", out)
	}
	if out := h.ok(t, "status"); !strings.Contains(out, "written anew") {
		t.Errorf("%s", out)
	}
	rekeyed, err := os.Stat(file)
	must(t, err)
	if os.SameFile(before, rekeyed) || rekeyed.Mode().Perm() != 0o600 {
		t.Errorf("%v", rekeyed.Mode())
	}
	logins := w.Counts().KerberosLogins
	if got := h.ok(t, "raw", "jira"); got != cookie {
		t.Error("another session is served")
	}
	a.stop(t)
	a = h.start(t)
	if got := h.ok(t, "raw", "jira"); got != cookie || w.Counts().KerberosLogins != logins {
		t.Error("the session is not in the new file")
	}
	h.ok(t, "logout", "jira")
	a.stop(t)
	purged, err := os.Stat(file)
	must(t, err)
	if os.SameFile(rekeyed, purged) {
		t.Error("the logout's session was not purged")
	}
	noSecrets(t, a)
}
