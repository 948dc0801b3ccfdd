package rig

import "testing"

func TestFindPythonModules(t *testing.T) {
	Require(t, "py_gssapi")
	if path, err := find("py_gssapi"); err != nil || path != python {
		t.Errorf("%q, %v", path, err)
	}
	if path, err := find("py_no_such_module"); err == nil {
		t.Errorf("a module that is nowhere: %q", path)
	}
}

func TestFindFiles(t *testing.T) {
	file := t.TempDir()
	if path, err := find(file); err != nil || path != file {
		t.Errorf("%q, %v", path, err)
	}
	if path, err := find(file + "/missing"); err == nil {
		t.Errorf("a file that is nowhere: %q", path)
	}
}

func TestNeed(t *testing.T) {
	for name, want := range map[string]string{
		"root":     "root",
		"squid":    "squid (Debian package squid)",
		heimdalKDC: heimdalKDC + " (Debian package heimdal-kdc, unpacked by .ci/install-rigs)",
	} {
		if got := need(name); got != want {
			t.Errorf("%q", got)
		}
	}
}
