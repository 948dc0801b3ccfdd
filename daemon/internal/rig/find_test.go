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
