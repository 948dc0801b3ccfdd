package main

import (
	"cmp"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/sessionctl/sessionctl/api"
)

const shellsPage = "../../docs/shells.md"

// pageBlocks returns the blocks of docs/shells.md in a language.
func pageBlocks(t *testing.T, language string) (texts []string) {
	t.Helper()
	page, err := os.ReadFile(shellsPage)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile("(?ms)^```"+language+"\n(.*?)^```$").FindAllStringSubmatch(string(page), -1) {
		texts = append(texts, m[1])
	}
	if len(texts) == 0 {
		t.Fatalf("%s has no block in %s", shellsPage, language)
	}
	return texts
}

// What docs/shells.md shows for a shell hands the cookie to curl by its input,
// and does not come to curl when there is none.
func TestShellsPage(t *testing.T) {
	const cookie = `JSESSIONID="CANARY-a  b\n"; it's=* $x`
	socket := serve(t, map[string]site{
		"jira":    live("jira", cookie),
		"latched": {code: api.Latched, detail: "refused"},
	})
	// A curl that tells what it got, in a home like that of the page.
	home := t.TempDir()
	tools := filepath.Join(home, ".local", "bin")
	if err := os.MkdirAll(tools, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(tools, "curl"), []byte("#!/bin/sh\ncat >\"$OUT\"/input; printf '%s\\n' \"$@\" >\"$OUT\"/arguments\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(filepath.Join(bin, "sessionctl"), filepath.Join(tools, "sessionctl")); err != nil {
		t.Fatal(err)
	}
	languages := map[string]string{"tcsh": "csh", "fish": "fish", "elvish": "elvish", "nu": "nu"}
	for _, shell := range shells {
		t.Run(shell.name, func(t *testing.T) {
			t.Parallel()
			language := cmp.Or(languages[shell.name], "sh")
			e := newEvaluation(t, shell.command, socket)
			took := func(name string) string {
				b, err := os.ReadFile(filepath.Join(e.out, name))
				if err == nil {
					err = os.Remove(filepath.Join(e.out, name))
				}
				if err != nil && !errors.Is(err, fs.ErrNotExist) {
					t.Fatal(err)
				}
				return string(b)
			}
			texts := pageBlocks(t, language)
			for _, script := range texts {
				path := tools + ":/usr/bin:/bin"
				if !strings.Contains(script, "curl") { // cron's
					path = "/usr/bin:/bin"
					_, use, _ := strings.Cut(texts[0], "\n")
					script += strings.Replace(use, "curl", tools+"/curl", 1)
				}
				env := []string{"HOME=" + home, "PATH=" + path}
				if status := e.run(script, env...); status != 0 {
					t.Errorf("status %d from %s", status, script)
				}
				input, arguments := took("input"), took("arguments")
				if strings.TrimSuffix(input, "\n") != "Cookie: "+cookie || !strings.HasPrefix(arguments, "-sS\n-H\n@-\nhttps://") || strings.Contains(arguments, "CANARY-") {
					t.Errorf("curl got %q and %q from %s", input, arguments, script)
				}
				script = strings.NewReplacer("cookie jira", "cookie latched", "JIRA_", "LATCHED_").Replace(script)
				if status := e.run(script, env...); status == 0 || took("input")+took("arguments") != "" {
					t.Errorf("without a session: status %d, or curl is called, from %s", status, script)
				}
			}
		})
	}
	t.Run("export hides a failure", func(t *testing.T) {
		e := newEvaluation(t, []string{"dash"}, socket)
		if status := e.run("set -e; export LATCHED_COOKIE=$(sessionctl raw latched)\nexit 9\n"); status != 9 {
			t.Errorf("status %d: it ends the script after all", status)
		}
	})
	t.Run("the constant line", func(t *testing.T) {
		if got := pageBlocks(t, "text")[0]; got != printed[posixFamily.ways[0]] {
			t.Errorf("the page has %q", got)
		}
	})
}
