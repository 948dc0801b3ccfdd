package e2e

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const toolsPage = "docs/tools.md"

// states are the columns of the table of tools, and how a test names them.
var states = []struct {
	column string
	named  *regexp.Regexp
}{
	{"warm", regexp.MustCompile(`\b(warm|again)\b`)},
	{"cold", regexp.MustCompile(`\bcold\b`)},
	{"expired", regexp.MustCompile(`\b(expired|dropped|stale)\b`)},
	{"refused", regexp.MustCompile(`\brefused\b`)},
	{"no agent", regexp.MustCompile(`\b(no|without an) agent\b|no_agent`)},
}

// TestToolsTable: docs/tools.md says of each tool what the tests that it names prove:
// not more, and not less.
func TestToolsTable(t *testing.T) {
	all := testsOf(t)
	var packages []string // the programs
	for line := range strings.Lines(readPage(t, "daemon/internal/rig/packages.txt")) {
		if name, _, ok := strings.Cut(strings.TrimSpace(line), " "); ok && name != "#" {
			packages = append(packages, strings.TrimSuffix(strings.TrimPrefix(name, nodeModules+"/"), "/package.json"))
		}
	}
	page := readPage(t, toolsPage)
	quoted := regexp.MustCompile("`([^`]+)`")
	head := ""
	for _, s := range states {
		head += " | " + s.column
	}
	if !strings.Contains(page, head+" | tests |\n") {
		t.Fatalf("there is no table with %s | tests |", head)
	}
	rows := 0
	for line := range strings.Lines(page) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		if len(cells) != len(states)+4 || !strings.Contains(cells[len(cells)-1], "`") {
			continue
		}
		rows++
		tool := strings.TrimSpace(cells[0])
		var said []string // in the tests
		for _, m := range quoted.FindAllStringSubmatch(cells[len(cells)-1], -1) {
			test, ok := all[m[1]]
			if !ok {
				t.Errorf("%s: there is no %s", tool, m[1])
			}
			said = append(said, test...)
		}
		for _, m := range quoted.FindAllStringSubmatch(cells[2], -1) {
			if !slices.ContainsFunc(said, func(s string) bool { return strings.Contains(s, m[1]) }) {
				t.Errorf("%s: the tests do not name %s", tool, m[1])
			}
			if m[1] != "go" && !slices.Contains(packages, m[1]) {
				t.Errorf("%s: no package brings %s", tool, m[1])
			}
		}
		for i, s := range states {
			want := "–"
			if slices.ContainsFunc(said, s.named.MatchString) {
				want = "✓"
			}
			if got := strings.TrimSpace(cells[3+i]); got != want {
				t.Errorf("%s, %s: the page has %s, the tests %s", tool, s.column, got, want)
			}
		}
	}
	if rows < 5 {
		t.Errorf("only %d rows found", rows)
	}

	// Each page that is about a tool is linked.
	others := []string{"atlassian", "cookies", "crowd", "forms", "jazz", "jira", "sessions", "store", "tools"}
	files, err := filepath.Glob(filepath.Join(repository, "docs", "*.md"))
	must(t, err)
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".md")
		if linked := strings.Contains(page, "]("+name+".md"); linked == slices.Contains(others, name) {
			t.Errorf("%s.md: linked %v", name, linked)
		}
	}
	// So is each program that a test needs and is no server, shell utility or tool of
	// the tests' own.
	servers := regexp.MustCompile(`^(krb5kdc|kdb5_util|kadmin\.local|ktutil|kvno|apache2|mod_.*|squid|dnsmasq|samba|py_samba|sssd_kcm|faketime|strace|perl|curl-config|unshare|npm|gcc|mount|pivot_root|nsenter` +
		`|systemd-.*|systemctl|journalctl|java|protoc|py_gssapi|/usr/.*|/var/cache/sessionctl-rigs/(usr|git-).*)$`)
	for _, name := range packages {
		if !servers.MatchString(name) && !strings.Contains(page, "`"+name+"`") {
			t.Errorf("no row has %s", name)
		}
	}
}

// testsOf returns what the tests of the whole repository say: by a test's name the
// literals of its own and of what it uses of the same file, or of a function whose name
// begins with test. Comments and the names of variables do not count.
func testsOf(t *testing.T) map[string][]string {
	t.Helper()
	type declaration struct {
		said string // its literals
		uses []string
	}
	all := map[string][]string{}
	shared := map[string]declaration{}
	files := map[string]map[string]declaration{}
	must(t, filepath.WalkDir(repository, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		source, err := os.ReadFile(path)
		must(t, err)
		set := token.NewFileSet()
		file, err := parser.ParseFile(set, path, source, parser.SkipObjectResolution)
		must(t, err)
		files[path] = map[string]declaration{}
		for _, d := range file.Decls {
			var it declaration
			var names []string
			ast.Inspect(d, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.ValueSpec:
					for _, name := range n.Names {
						names = append(names, name.Name)
					}
				case *ast.BasicLit:
					it.said += n.Value + "\n"
				case *ast.Ident:
					it.uses = append(it.uses, n.Name)
				}
				return true
			})
			if f, ok := d.(*ast.FuncDecl); ok {
				names = []string{f.Name.Name}
			}
			for _, name := range names {
				files[path][name] = it
				if strings.HasPrefix(name, "test") {
					shared[name] = it
				}
			}
		}
		return nil
	}))
	for _, file := range files {
		for name := range file {
			if !strings.HasPrefix(name, "Test") {
				continue
			}
			seen := map[string]bool{}
			for left := []string{name}; len(left) > 0; {
				next := left[0]
				left = left[1:]
				it, ok := file[next]
				if !ok {
					it, ok = shared[next]
				}
				if ok && !seen[next] {
					seen[next] = true
					all[name] = append(all[name], it.said)
					left = append(left, it.uses...)
				}
			}
		}
	}
	return all
}
