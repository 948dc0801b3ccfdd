package e2e

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const gitPage = "docs/git.md"

// TestGitPage: the commands of docs/git.md say what stands there.
func TestGitPage(t *testing.T) {
	gits(t)
	s := startGit(t, "cookie")
	u := newGitUser(t, "git", s.caFile, s.site())
	u.env = slices.DeleteFunc(u.env, func(v string) bool { return strings.HasPrefix(v, "GIT_TRACE=") })
	a := u.start(t)
	if r := u.bring(t, "code", gitPassword); r.status != 0 {
		t.Fatalf("%v", r)
	}
	u.setup(t)
	u.works(t, s, "before")
	u.setup(t, "--undo")
	here := strings.NewReplacer("https://code.corp.example", s.url)
	there := strings.NewReplacer(s.url, "https://code.corp.example", filepath.Join(u.dir, "run"), "/run/user/1000", u.socket, "/run/user/1000/sessionctl/agent.sock")
	tried := 0
	try := func(title string, n int) {
		t.Helper()
		block := sectionBlocks(t, gitPage, title, "console")[n]
		tried++
		got := ""
		for line := range strings.Lines(block) {
			if command, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "$ "); ok {
				r := u.call(t, "", "sh", "-c", here.Replace(command)+" 2>&1")
				got += "$ " + command + "\n" + there.Replace(r.stdout)
			}
		}
		if got != block {
			t.Errorf("%s:\n%s\nthe page has:\n%s", title, got, block)
		}
	}
	const fails = "When it does not work"
	try("Set up", 0)
	s.forget()
	try(fails, 0)
	s.change("CANARY-other")
	s.forget()
	try(fails, 1)
	a.stop(t)
	try(fails, 2)
	try("Undo", 0)
	if n := len(blocks(t, gitPage, "")); n != tried {
		t.Errorf("the page has %d blocks, %d of them are tried", n, tried)
	}
}

// TestGitPageSuite: the page says of git's suite what TestGitSuite holds it to.
func TestGitPageSuite(t *testing.T) {
	text := section(t, gitPage, "git's own suite")
	passes, byLogins, rows := 0, 0, ""
	for _, c := range t0303 {
		switch c.why {
		case "":
			passes++
		case byLogin:
			byLogins++
		default:
			rows += "| " + c.name + " | " + c.why + " |\n"
		}
	}
	if !strings.Contains(text, "|---|---|\n"+rows+"\n") {
		t.Errorf("the table is not:\n%s", rows)
	}
	for _, want := range []string{fmt.Sprintf("%d of the %d cases pass", passes, len(t0303)), fmt.Sprintf("then %d do", passes+byLogins)} {
		if !strings.Contains(oneLine(text), want) {
			t.Errorf("the page does not say %q", want)
		}
	}
}
