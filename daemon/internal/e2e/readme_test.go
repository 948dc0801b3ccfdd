package e2e

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/login"
)

// TestReadme: what the README says of the agent is so. Its examples are tried
// with those of the other pages.
func TestReadme(t *testing.T) {
	readme := readPage(t, "README.md")
	w := inProcess(t)
	h := newHome(t, w)

	t.Run("first screen", func(t *testing.T) {
		const columns, lines = 120, 40
		screen, _, _ := strings.Cut(readme, "\n## ")
		n := 0
		for line := range strings.Lines(screen) {
			n += max(1, (len([]rune(line))-1+columns-1)/columns)
		}
		if n > lines {
			t.Errorf("the first heading comes after %d lines of %d columns", n, columns)
		}
		for _, command := range []string{"make demo", "make test"} {
			if !strings.Contains(screen, "\n    "+command) {
				t.Errorf("%s does not stand there", command)
			}
		}
		// Its table is the one that list prints.
		head, _, _ := strings.Cut(strings.TrimPrefix(blocks(t, "README.md", "")[0].text, "$ sessionctl list\n"), "\n")
		h.start(t)
		if got := h.ok(t, "list"); !slices.Equal(strings.Fields(head), strings.Fields(got[:strings.Index(got, "\n")])) {
			t.Errorf("list prints another table than %q:\n%s", head, got)
		}
	})

	t.Run("options", func(t *testing.T) {
		all := readme
		for _, page := range []string{atlassianPage, crowdPage, jazzPage, formsPage} {
			all += "\n" + readPage(t, page)
		}
		documented := optionTables(all)
		for table, want := range optionsInCode(t) {
			if table == "token" { // whose Check refuses it
				want = slices.DeleteFunc(want, func(o string) bool { return o == "login_url" })
			}
			slices.Sort(want)
			got := documented[table]
			slices.Sort(got)
			if got = slices.Compact(got); !slices.Equal(got, want) {
				t.Errorf("%s: documented are %s, there are %s", table, got, want)
			}
			delete(documented, table)
		}
		for table := range documented {
			t.Errorf("there is no table or kind %s", table)
		}
		kinds := regexp.MustCompile("(?m)^\\| `kind` \\| (.*) \\|$").FindStringSubmatch(readme)
		for _, kind := range login.Kinds() {
			if kinds == nil || !strings.Contains(kinds[1], "`"+kind+"`") {
				t.Errorf("kind %s is not listed: %s", kind, kinds)
			}
		}
		// What their credential may be.
		means := regexp.MustCompile("(?m)^\\| `credential` \\| .*: (.*) takes a principal, (.*) a username, the others either \\|$").FindStringSubmatch(readme)
		if means == nil {
			t.Fatal("it is not said what a credential may be")
		}
		for _, kind := range login.Kinds() {
			if kind == "crowd" {
				continue // depends on where it logs in: TestCrowdMeans
			}
			takes := login.New(kind).Takes()
			for i, one := range []login.Means{login.Ticket, login.Secret} {
				if alone := slices.Equal(takes, []login.Means{one}); alone != strings.Contains(means[i+1], "`"+kind+"`") {
					t.Errorf("%s takes %q; the README has %q", kind, takes, means[0])
				}
			}
		}
		// The defaults that have a value; those of pages of Atlassian's are in a table of
		// their own (TestAtlassianTables).
		for _, kind := range login.Kinds() {
			for option, value := range defaults(login.New(kind)) {
				if slices.Contains(slices.Collect(maps.Values(familySites)), kind) && option != "tsv_url" && option != "session_url" {
					continue
				}
				if !regexp.MustCompile("(?m)^\\| `" + option + "` \\|.*default " + regexp.QuoteMeta("`"+value+"`")).MatchString(all) {
					t.Errorf("the default of %s for kind %s is %q", option, kind, value)
				}
			}
		}
	})

	t.Run("exit statuses", func(t *testing.T) {
		for text, status := range map[string]int{"ok": api.ExitOK, "other": api.ExitOther, "usage": api.ExitUsage, "no agent": api.ExitNoAgent,
			"unknown site": api.ExitUnknown, "a person must act": api.ExitPerson, "this verb is not allowed": api.ExitDenied, "try later": api.ExitLater} {
			if !strings.Contains(readme, fmt.Sprintf("%d %s", status, text)) {
				t.Errorf("%d %s", status, text)
			}
		}
	})

	t.Run("message", func(t *testing.T) {
		h := newHome(t, w, credential("wrong", "svc-build", w.addKeytab(t, "svc-build", false)), strings.Replace(w.site("x", "/spnego/", `credential = "wrong"`), "site.x", "site.wrong", 1))
		h.start(t)
		r := h.fails(t, 5, "bad_credentials", "raw", "wrong")
		said := regexp.MustCompile(`, "[A-Z_]+"`).ReplaceAllString(r.stderr, "") // the KDC's own words
		if said = strings.NewReplacer("wrong", "app", "\n", "\n    ", w.url+"/spnego/", "https://app.corp.example/login").Replace(said); !strings.Contains(readme, strings.TrimSpace(said)) {
			t.Errorf("the README shows another message than:\n%s", r.stderr)
		}
	})
}

// optionTables returns the options of the README's tables, by kind; those of all
// sites under "site", of their users under "use", of credentials under
// "credential", and so on. Those of identity providers it has in words.
func optionTables(readme string) map[string][]string {
	all := map[string][]string{}
	head := regexp.MustCompile("^\\| (?:kinds? ([^|]*)|`\\[(?:\\[site\\.NAME\\.(use)\\]|([a-z]+)\\.NAME)\\]`) \\|")
	row := regexp.MustCompile("^\\| (`[a-z0-9_]+`(?: · `[a-z0-9_]+`)*) \\|")
	var tables []string
	for line := range strings.Lines(readme) {
		if m := head.FindStringSubmatch(line); m != nil {
			tables = strings.Split(strings.ReplaceAll(m[1]+m[2]+m[3], "`", ""), ", ")
		} else if !strings.HasPrefix(line, "|") {
			tables = nil
		} else if m := row.FindStringSubmatch(line); m != nil {
			for _, table := range tables {
				all[table] = append(all[table], strings.Split(strings.ReplaceAll(m[1], "`", ""), " · ")...)
			}
		}
	}
	without := regexp.MustCompile("`\\[idp\\.NAME\\]` takes what `\\[site\\.NAME\\]` takes, but not ([^.]*)\\.").FindStringSubmatch(readme)
	for _, option := range all["site"] {
		if without != nil && !strings.Contains(without[1], "`"+option+"`") {
			all["idp"] = append(all["idp"], option)
		}
	}
	return all
}

// optionsInCode returns the same from the structs that the configuration is
// decoded into.
func optionsInCode(t *testing.T) map[string][]string {
	t.Helper()
	all := map[string][]string{}
	file, err := parser.ParseFile(token.NewFileSet(), "../../configfile.go", nil, 0)
	must(t, err)
	// Tables by the names of their types, and what they have in common.
	structs := map[string]*ast.StructType{}
	ast.Inspect(file, func(n ast.Node) bool {
		if spec, ok := n.(*ast.TypeSpec); ok {
			structs[spec.Name.Name], _ = spec.Type.(*ast.StructType)
		}
		return true
	})
	var keys func(s *ast.StructType) []string
	keys = func(s *ast.StructType) (all []string) {
		for _, field := range s.Fields.List {
			if field.Names == nil {
				all = append(all, keys(structs[field.Type.(*ast.Ident).Name])...)
				continue
			}
			tag, err := strconv.Unquote(field.Tag.Value)
			must(t, err)
			all = append(all, reflect.StructTag(tag).Get("toml"))
		}
		return all
	}
	for name, s := range structs {
		if table, ok := strings.CutSuffix(name, "Table"); ok {
			all[table] = keys(s)
		}
	}
	all["idp"] = all["entry"] // that is its whole table
	delete(all, "entry")
	if len(all) != 5 {
		t.Fatalf("configfile.go has the tables %v", all)
	}
	for _, kind := range login.Kinds() {
		all[kind] = nil
		for option := range options(login.New(kind)) {
			all[kind] = append(all[kind], option)
		}
	}
	return all
}

// options returns a driver's options with what they are now.
func options(d login.Driver) map[string]string {
	all := map[string]string{}
	v := reflect.ValueOf(d).Elem()
	for _, f := range reflect.VisibleFields(v.Type()) {
		if name := f.Tag.Get("toml"); name != "" {
			all[name] = fmt.Sprint(v.FieldByIndex(f.Index))
		}
	}
	return all
}

// defaults returns those of a driver's options that are set, as TOML.
func defaults(d login.Driver) map[string]string {
	all := map[string]string{}
	v := reflect.ValueOf(d).Elem()
	for _, f := range reflect.VisibleFields(v.Type()) {
		name, field := f.Tag.Get("toml"), v.FieldByIndex(f.Index)
		switch {
		case name == "" || field.IsZero():
		case field.Kind() == reflect.String:
			all[name] = strconv.Quote(field.String())
		default:
			all[name] = fmt.Sprint(field)
		}
	}
	return all
}
