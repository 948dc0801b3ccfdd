package e2e

import (
	"bytes"
	"os"
	"path/filepath"
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

// TestDamagedStore: an agent whose store is damaged serves all the same, says what has
// happened, keeps the damaged file, and has lost no more than the damage has taken. The
// file may be such that it ends whoever maps it.
func TestDamagedStore(t *testing.T) {
	w := newJira(t)
	h := w.home(t)
	a := h.start(t)
	cookie := h.ok(t, "raw", "jira")
	a.stop(t)
	good, err := os.ReadFile(h.store)
	must(t, err)
	for i, damage := range []func(b []byte) []byte{
		func(b []byte) []byte { clear(b[:2*os.Getpagesize()]); return b },                                // bbolt's meta pages
		func(b []byte) []byte { return b[:len(b)/2] },                                                    // cut off
		func(b []byte) []byte { return []byte("no bbolt file") },                                         // another file
		func(b []byte) []byte { copy(b[4*os.Getpagesize()+8:], "\xff\xff\xff\xff"); return b },           // one page's head
		func(b []byte) []byte { copy(b[2*os.Getpagesize():], make([]byte, os.Getpagesize())); return b }, // one page
	} {
		must(t, os.WriteFile(h.store, damage(bytes.Clone(good)), 0o600))
		logins := w.Counts().KerberosLogins
		a := h.start(t)
		got := h.ok(t, "raw", "jira")
		if i == 0 && (got != cookie || w.Counts().KerberosLogins != logins) {
			t.Error("the session was not saved from the damaged file")
		}
		status, aside := h.ok(t, "status"), h.store+".bad-"
		kept, err := filepath.Glob(aside + "*")
		must(t, err)
		if said := strings.Contains(status, aside) && strings.Contains(status, "records were saved"); i < 3 && (!said || len(kept) == 0) {
			t.Errorf("%d: %d files are kept; %s", i, len(kept), status)
		}
		h.ok(t, "rekey")
		a.stop(t)
		noSecrets(t, a)
		for _, name := range kept {
			must(t, os.Remove(name))
		}
	}
}
