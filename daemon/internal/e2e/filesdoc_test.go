package e2e

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

// TestFilesDoc: the lines of docs/files.md work as they stand; it names every format,
// and the unit that there is. Its Python program is one of TestJarReaders.
func TestFilesDoc(t *testing.T) {
	rig.Require(t, "curl")
	w := newJarWorld(t)
	w.start(t)
	run := t.TempDir()
	lines := blocks(t, filesPage, "sh")
	if len(lines) != 1 {
		t.Fatalf("%d blocks", len(lines))
	}
	text := strings.NewReplacer("jar jira", "jar app", "jira.txt", "app.txt", siteURL+"/rest/api/2/myself", jarSite+"page").Replace(lines[0].text)
	if r := w.run(t, "", "env", "http_proxy="+w.proxy.URL, "XDG_RUNTIME_DIR="+run, "sh", "-e", "-c", text); r.status != 0 || r.stdout != "anna" || r.stderr != "" {
		t.Errorf("%v", r)
	}
	if _, err := os.Stat(filepath.Join(run, "sessionctl", "jars", "app.txt")); err != nil {
		t.Error(err)
	}

	var named []string
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z]+)` \\|").FindAllStringSubmatch(section(t, filesPage, "Formats"), -1) {
		named = append(named, m[1])
	}
	formats := strings.Join(named, ", ")
	if help := w.ok(t, "get", "--help"); !strings.Contains(help, "FORMAT") || !strings.Contains(help, formats+" ") {
		t.Errorf("the page has the formats %s:\n%s", formats, help)
	}
	for _, format := range named {
		if out := w.ok(t, "get", "app", "-o", format); !strings.Contains(out, "CANARY-1") {
			t.Errorf("-o %s: %s", format, out)
		}
	}

	readers := section(t, filesPage, "Readers")
	for _, r := range jarReaders {
		for _, arg := range r.argv {
			if option := regexp.MustCompile(`--(load-cookies|session-read-only)`).FindString(arg); option != "" && !strings.Contains(readers, option) {
				t.Errorf("%s: the page does not have %s", r.name, option)
			}
		}
	}
	unit, err := os.ReadFile(filepath.Join(repository, "systemd", "user", "sessionctl-jar@.service"))
	must(t, err)
	if !strings.Contains(string(unit), "\nExecStart=/usr/bin/sessionctl jar %i --keep\n") || !strings.Contains(section(t, filesPage, "Keep it fresh"), "--now sessionctl-jar@jira.service\n") {
		t.Errorf("the unit is another one:\n%s", unit)
	}
}
