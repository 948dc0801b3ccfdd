package rig

import (
	_ "embed"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

//go:embed packages.txt
var packagesText string

// packages maps each program, Apache module, Python module and file of packages.txt
// to the Debian package that brings it.
var packages = parsePackages(packagesText)

func parsePackages(text string) map[string]string {
	m := make(map[string]string)
	for line := range strings.Lines(text) {
		if name, pkg, ok := strings.Cut(strings.TrimSpace(line), " "); ok && name != "#" {
			m[name] = strings.TrimSpace(pkg)
		}
	}
	return m
}

// TB is what Require needs of a test (testing.TB has it).
type TB interface {
	Helper()
	Name() string
	Fatalf(format string, args ...any)
	Skipf(format string, args ...any)
}

// Require lets the test go on only if all the named programs, Apache modules
// (mod_…), Python modules (py_…) and files (/…) are on this machine; the name root
// asks for that user, keyrings for the kernel's. If one is missing, the test fails when $SESSIONCTL_RIGS is
// "require"; otherwise it is skipped, and a line that says so is added to the file
// that $SESSIONCTL_SKIPPED names, if it is set, so that the run can repeat it where
// nobody overlooks it.
func Require(tb TB, names ...string) {
	tb.Helper()
	// Both are read in any case: go test remembers a result together with the
	// variables that the test has read.
	rigs, skipped := os.Getenv("SESSIONCTL_RIGS"), os.Getenv("SESSIONCTL_SKIPPED")
	missing := Missing(names...)
	if len(missing) == 0 {
		return
	}
	var needs []string
	for _, name := range missing {
		needs = append(needs, need(name))
	}
	line := tb.Name() + ": needs " + strings.Join(needs, ", ")
	if rigs == "require" {
		tb.Fatalf("%s", line)
		return
	}
	if skipped != "" {
		if err := appendLine(skipped, line); err != nil {
			tb.Fatalf("say that the test is skipped: %v", err)
			return
		}
	}
	tb.Skipf("%s", line)
}

// need says what a missing name is, and where it comes from.
func need(name string) string {
	switch {
	case name == root, name == keyrings:
		return name
	case strings.HasPrefix(name, unpacked):
		return name + " (Debian package " + packages[name] + ", unpacked by .ci/install-rigs)"
	default:
		return name + " (Debian package " + packages[name] + ")"
	}
}

// Names by which Require and Missing know what no package brings: that user, and
// the kernel's keyrings (keyctl(2)), which many containers forbid.
const (
	root     = "root"
	keyrings = "keyrings"
)

// Missing returns those of the named programs, modules and files that are not on
// this machine, root if another user runs the test, and keyrings where there are none. A name that packages.txt does
// not hold is a mistake in the test, and panics.
func Missing(names ...string) []string {
	var missing []string
	for _, name := range names {
		if name == root {
			if os.Geteuid() != 0 {
				missing = append(missing, name)
			}
			continue
		}
		if name == keyrings {
			if _, err := unix.KeyctlGetKeyringID(unix.KEY_SPEC_THREAD_KEYRING, true); err != nil {
				missing = append(missing, name)
			}
			continue
		}
		if packages[name] == "" {
			panic("rig: " + name + " is not in packages.txt")
		}
		if _, err := find(name); err != nil {
			missing = append(missing, name)
		}
	}
	return missing
}

// python is Debian's own Python, and pythonModules where its packages bring
// modules for it. Another Python may stand before it in PATH.
const (
	python        = "/usr/bin/python3"
	pythonModules = "/usr/lib/python3/dist-packages"
)

// unpacked is where .ci/install-rigs unpacks what conflicts with packages that are
// installed.
const unpacked = "/var/cache/sessionctl-rigs/"

// find returns the path of a program, Apache module or file, and for a module of
// Debian's Python the path of that Python. An ordinary user's PATH often lacks the
// directories where Debian keeps its servers.
func find(name string) (string, error) {
	if strings.HasPrefix(name, "mod_") {
		path := filepath.Join(apacheModules, name+".so")
		_, err := os.Stat(path)
		return path, err
	}
	if module, ok := strings.CutPrefix(name, "py_"); ok {
		_, err := os.Stat(filepath.Join(pythonModules, module))
		return python, err
	}
	if filepath.IsAbs(name) {
		_, err := os.Stat(name)
		return name, err
	}
	path, err := exec.LookPath(name)
	if err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/local/sbin", "/usr/sbin", "/sbin"} {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path, nil
		}
	}
	return "", err
}

// appendLine adds one line in one write, because the tests of several packages
// run at the same time.
func appendLine(path, line string) error {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(line + "\n")
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	return err
}
