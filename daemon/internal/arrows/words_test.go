package arrows

import (
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestOnePackageComment(t *testing.T) {
	packages := list(t, "./...")
	for _, path := range slices.Sorted(maps.Keys(packages)) {
		var with []string
		for _, name := range packages[path].GoFiles {
			f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(packages[path].Dir, name), nil, parser.PackageClauseOnly|parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			if f.Doc != nil {
				with = append(with, name)
			}
		}
		if len(with) != 1 {
			t.Errorf("%s: %d files with a package comment, want 1: %s", path, len(with), with)
		}
	}
}

// words that no file may hold; in pieces, so that this file does not.
var (
	unfinished = regexp.MustCompile(`\b(TO` + `DO|FIX` + `ME)\b`)
	sleep      = regexp.MustCompile(`\btime\.Sl` + `eep\(`)
)

func TestWords(t *testing.T) {
	dir := root(t)
	seen := 0
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() && (entry.Name() == ".git" || path == filepath.Join(dir, "bin")) {
			return fs.SkipDir
		}
		if !entry.Type().IsRegular() {
			return nil
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if !utf8.Valid(b) {
			return nil // a recording, not prose
		}
		seen++
		number := 0
		for line := range strings.Lines(string(b)) {
			number++
			if unfinished.MatchString(line) {
				t.Errorf("%s:%d: finish it: %s", path, number, strings.TrimSpace(line))
			}
			if strings.HasSuffix(path, "_test.go") && sleep.MatchString(line) {
				t.Errorf("%s:%d: wait for an event, or use testing/synctest: %s", path, number, strings.TrimSpace(line))
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if seen < 20 {
		t.Errorf("only %d files looked at", seen)
	}
}
