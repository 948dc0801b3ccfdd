package rig_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

// fakeTB records what Require does to a test.
type fakeTB struct{ failed, skipped string }

func (f *fakeTB) Helper()                           {}
func (f *fakeTB) Name() string                      { return "TestX/part" }
func (f *fakeTB) Fatalf(format string, args ...any) { f.failed = fmt.Sprintf(format, args...) }
func (f *fakeTB) Skipf(format string, args ...any)  { f.skipped = fmt.Sprintf(format, args...) }

// only leaves nothing on PATH but the named programs. It cannot hide what lies
// in sbin, which Require also looks at.
func only(t *testing.T, names ...string) {
	dir := t.TempDir()
	for _, name := range names {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir)
}

func TestRequire(t *testing.T) {
	const needs = "TestX/part: needs zsh (Debian package zsh), ksh93 (Debian package ksh93u+m)"
	for _, test := range []struct {
		name, rigs      string
		present         []string
		failed, skipped string
	}{
		{name: "all there", present: []string{"zsh", "ksh93"}},
		{name: "all there and required", rigs: "require", present: []string{"zsh", "ksh93"}},
		{name: "missing", skipped: needs},
		{name: "missing and required", rigs: "require", failed: needs},
	} {
		t.Run(test.name, func(t *testing.T) {
			only(t, test.present...)
			list := filepath.Join(t.TempDir(), "skipped")
			t.Setenv("SESSIONCTL_RIGS", test.rigs)
			t.Setenv("SESSIONCTL_SKIPPED", list)
			var tb fakeTB
			rig.Require(&tb, "zsh", "ksh93")
			rig.Require(&tb, "zsh", "ksh93")
			if tb.failed != test.failed || tb.skipped != test.skipped {
				t.Errorf("failed %q, skipped %q", tb.failed, tb.skipped)
			}
			said, err := os.ReadFile(list)
			if err != nil && !os.IsNotExist(err) {
				t.Fatal(err)
			}
			want := ""
			if test.skipped != "" {
				want = strings.Repeat(test.skipped+"\n", 2)
			}
			if string(said) != want {
				t.Errorf("list of skipped tests: %q", said)
			}
		})
	}
}

func TestRequireSaysWhenItCannotSay(t *testing.T) {
	only(t)
	t.Setenv("SESSIONCTL_RIGS", "")
	t.Setenv("SESSIONCTL_SKIPPED", filepath.Join(t.TempDir(), "no", "such", "directory"))
	var tb fakeTB
	rig.Require(&tb, "zsh")
	if tb.skipped != "" || !strings.HasPrefix(tb.failed, "say that the test is skipped: ") {
		t.Errorf("failed %q, skipped %q", tb.failed, tb.skipped)
	}
}

func TestRequireRoot(t *testing.T) {
	t.Setenv("SESSIONCTL_RIGS", "")
	t.Setenv("SESSIONCTL_SKIPPED", "")
	want := "TestX/part: needs root"
	if os.Geteuid() == 0 {
		want = ""
	}
	var tb fakeTB
	rig.Require(&tb, "root")
	if tb.failed != "" || tb.skipped != want {
		t.Errorf("failed %q, skipped %q", tb.failed, tb.skipped)
	}
}

func TestMissingRefusesUnknownNames(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("a name without a package was let through")
		}
	}()
	rig.Missing("no-such-program")
}
