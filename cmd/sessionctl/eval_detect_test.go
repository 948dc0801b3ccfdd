package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sessionctl/sessionctl/daemon/daemontest"
)

// printed is what cookie prints for site jira in each family's language.
var printed = map[string]string{
	posixFamily.ways[0]:  "JIRA_COOKIE=`sessionctl raw jira;`&&{ export JIRA_COOKIE;}\n",
	cshFamily.ways[0]:    "setenv JIRA_COOKIE \"`sessionctl raw jira`\"\n",
	fishFamily.ways[0]:   "set -gx JIRA_COOKIE (sessionctl raw jira); and test -n \"$JIRA_COOKIE\"\n",
	elvishFamily.ways[0]: "unset-env JIRA_COOKIE; set-env JIRA_COOKIE (sessionctl raw jira)\n",
	nuFamily.ways[0]:     `{"JIRA_COOKIE":"CANARY\u002d1"}` + "\n",
}

// The shell that called is found, whatever $SHELL says and whatever it was
// called by.
func TestDetection(t *testing.T) {
	socket := serve(t, map[string]site{"jira": live("jira", "CANARY-1")})
	// nu and elvish have no ":"; a command after it keeps a shell from becoming
	// sessionctl instead of calling it.
	const script = "sessionctl cookie jira; /usr/bin/true"
	for _, shell := range shells {
		t.Run(shell.name, func(t *testing.T) {
			t.Parallel()
			e := newEvaluation(t, shell.command, socket)
			decoy := "/usr/bin/fish"
			if shell.name == "fish" {
				decoy = "/bin/sh"
			}
			want := printed[shell.family.ways[0]]
			check := func(what string, argv []string, name string) {
				t.Helper()
				cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
				cmd.Args[0] = name
				cmd.Dir = e.out
				cmd.Env = append(slices.Clone(e.env), "SHELL="+decoy)
				out, err := cmd.Output()
				if strings.ReplaceAll(string(out), bin+"/sessionctl", "sessionctl") != want || err != nil {
					t.Errorf("%s: %q, %v", what, out, err)
				}
			}
			run := func(what, script string) {
				t.Helper()
				check(what, append(append([]string{e.argv[0]}, e.argv[1:]...), "-c", script), e.argv[0])
			}
			run("as cron, make, ssh and editors call it", script)
			if shell.name != "busybox" && shell.name != "nu" { // their names are more than names
				// By its path, for /etc/profile sets PATH.
				check("a login shell", append(append([]string{e.argv[0]}, e.argv[1:]...), "-c", bin+"/"+script), "-"+filepath.Base(e.argv[0]))
			}
			for _, wrapper := range []string{"env", "nice", "timeout 60", "timeout 60 env nice", "setsid -w", "flock /dev/null", "timeout 60 timeout 60 timeout 60", "xargs -a operand"} {
				if err := os.WriteFile(filepath.Join(e.out, "operand"), []byte("jira\n"), 0o600); err != nil {
					t.Fatal(err)
				}
				call := wrapper + " sessionctl cookie jira; /usr/bin/true"
				if strings.HasPrefix(wrapper, "xargs") {
					call = wrapper + " sessionctl cookie; /usr/bin/true"
				}
				run(wrapper, call)
			}

			// A wrapper of a busybox' own, as on Alpine.
			daemontest.Require(t, "busybox")
			busybox, err := exec.LookPath("busybox")
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(busybox, filepath.Join(e.out, "timeout")); err != nil {
				t.Fatal(err)
			}
			run("busybox' timeout", "./timeout 60 sessionctl cookie jira; /usr/bin/true")

			// Its file is replaced while it runs, and it runs a script.
			own := filepath.Join(e.out, filepath.Base(e.argv[0]))
			// By another program: a file that this one has open for writing, as its
			// children may for a moment, cannot be run.
			cp := func(from, to string) {
				t.Helper()
				if out, err := exec.CommandContext(t.Context(), "cp", from, to).CombinedOutput(); err != nil {
					t.Fatalf("%v: %s", err, out)
				}
			}
			cp(e.argv[0], own)
			file := filepath.Join(e.out, "job")
			for _, prologue := range []string{"", "/usr/bin/rm " + own + "\n"} {
				head := "#!" + own + "\n"
				if shell.name == "busybox" {
					head = "#!" + own + " sh\n"
				}
				if err := os.WriteFile(file+".text", []byte(head+prologue+script+"\n"), 0o700); err != nil {
					t.Fatal(err)
				}
				cp(file+".text", file)
				check(fmt.Sprintf("a script with %q", prologue), []string{file}, file)
			}
		})
	}
}

// What names the shell goes before what is found, and what is found before
// $SHELL.
func TestDetectionOrder(t *testing.T) {
	daemontest.Require(t, "dash")
	fish, posix, csh := printed[fishFamily.ways[0]], printed[posixFamily.ways[0]], printed[cshFamily.ways[0]]
	for _, c := range []struct {
		script, want string
		env          []string
	}{
		{"sessionctl cookie jira; :", posix, []string{"SHELL=/usr/bin/fish"}},
		{"sessionctl cookie jira; :", fish, []string{"SHELL=/bin/sh", "SESSIONCTL_SHELL=fish"}},
		{"sessionctl cookie jira --shell tcsh; :", csh, []string{"SHELL=/bin/sh", "SESSIONCTL_SHELL=fish"}},
		// It is behind more wrappers than are looked through.
		{"timeout 9 timeout 9 timeout 9 timeout 9 sessionctl cookie jira; :", fish, []string{"SHELL=/usr/bin/fish"}},
		{"timeout 9 timeout 9 timeout 9 timeout 9 sessionctl cookie jira; :", posix, []string{"SHELL=/bin/false"}},
		{"timeout 9 timeout 9 timeout 9 timeout 9 sessionctl cookie jira; :", posix, nil},
	} {
		cmd := exec.CommandContext(t.Context(), "dash", "-c", c.script)
		cmd.Env = append([]string{"PATH=" + bin + ":/usr/bin:/bin"}, c.env...)
		if out, err := cmd.Output(); string(out) != c.want || err != nil {
			t.Errorf("%s with %q: %q, %v", c.script, c.env, out, err)
		}
	}
}
