package arrows

import (
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files in testdata")

const module = "github.com/sessionctl/sessionctl"

// A rule forbids imports. Package names are relative to the module if they begin
// with "./"; "x/..." is x and everything below it.
type rule struct {
	from []string
	// never lists what may not be linked, directly or through others.
	never []string
	// only, if set, lists all that may be linked.
	only []string
	// direct looks at the packages' own imports, and not at what those import in
	// turn.
	direct bool
	// tests applies never to the imports of the packages' tests as well.
	tests bool
	// except lists packages of from that the rule leaves alone.
	except []string
	reason string
}

// std stands for the whole standard library.
const std = "std"

const (
	gokrb5 = "github.com/jcmturner/..."
	bbolt  = "go.etcd.io/bbolt/..."
	grpc   = "google.golang.org/grpc/..."
)

var rules = []rule{
	{
		from:   []string{"./api"},
		only:   []string{"./api", std},
		never:  []string{"net/...", "crypto/tls", "fmt", "encoding/json", "os/exec"},
		reason: "every part links api, the tiny command too",
	},
	{
		from:   []string{"./cmd/sessionctl", "./client/shim"},
		only:   []string{"./cmd/sessionctl", "./client/shim", "./api", std},
		never:  []string{"net/...", "crypto/tls", "fmt", "encoding/json", "os/exec"},
		reason: "sessionctl runs for every cookie: what it links costs start-up time each time",
	},
	{
		from:   []string{"./client/...", "./cmd/sessionctl-admin"},
		never:  []string{"./daemon/...", "./store/...", bbolt, gokrb5},
		reason: "clients know the agent by its API alone",
	},
	{
		from:   []string{"./store"},
		only:   []string{"./store", "./api", std, bbolt, "golang.org/x/..."},
		never:  []string{grpc},
		tests:  true,
		reason: "the store knows records, not sessions or protocols",
	},
	{
		from:   []string{"./daemon/internal/keeper", "./daemon/internal/login", "./daemon/internal/web", "./daemon/internal/krb", "./daemon/internal/peer", "./daemon/internal/secret"},
		never:  []string{"./daemon", "./store/...", bbolt},
		tests:  true,
		reason: "daemon wires the store to the small interfaces that its users declare",
	},
	{
		from:   []string{"./daemon/internal/login", "./daemon/internal/web", "./daemon/internal/krb"},
		never:  []string{"./daemon/internal/keeper", grpc},
		tests:  true,
		reason: "a login knows neither the sessions of others nor the callers",
	},
	{
		from:   []string{"./daemon/internal/web", "./daemon/internal/krb"},
		never:  []string{"./daemon/internal/login"},
		tests:  true,
		reason: "HTTP and Kerberos serve every kind of login and know none",
	},
	{
		from:   []string{"./daemon/internal/krb/..."},
		never:  []string{"./daemon/internal/web", "./daemon/internal/keeper", "./daemon/internal/login", "./store/...", grpc},
		tests:  true,
		reason: "tickets are made without HTTP, and kept by others",
	},
	{
		from:   []string{"./daemon/internal/krb/ccache"},
		only:   []string{"./daemon/internal/krb/ccache", "./api", std, "golang.org/x/sys/..."},
		reason: "gokrb5's reader of ticket caches cannot be trusted with a damaged one",
	},
	{
		from:   []string{"./cmd/sessiond", "./daemon"},
		never:  []string{"./daemon/daemontest/...", "./daemon/internal/rig/..."},
		reason: "the agent carries no test servers",
	},
	{
		from:   []string{"./cmd/sessionlab"},
		never:  []string{"./daemon", "./store/..."},
		direct: true,
		reason: "what the lab does, users' tests can do: through daemontest",
	},
	{
		from:   []string{"./..."},
		never:  []string{gokrb5},
		direct: true,
		except: []string{"./daemon/internal/krb", "./daemon/internal/rig"},
		tests:  true,
		reason: "gokrb5's types stay behind krb",
	},
	{
		from:   []string{"./..."},
		never:  []string{bbolt},
		direct: true,
		except: []string{"./store"},
		tests:  true,
		reason: "the engine of the store can be replaced",
	},
	{
		from:   []string{"./..."},
		never:  []string{"testing/...", "net/http/httptest"},
		reason: "production code does not link testing: it adds flags and weight",
	},
}

// binaries have a golden list of the third-party packages that they link.
var binaries = []string{"./cmd/sessionctl", "./cmd/sessionctl-admin", "./cmd/sessiond", "./cmd/sessionlab"}

// A pkg is what go list says about a package.
type pkg struct {
	ImportPath   string
	Dir          string
	Standard     bool
	GoFiles      []string
	Imports      []string // its own
	TestImports  []string
	XTestImports []string
	Deps         []string // all that it links
}

// list returns the packages that match the pattern, and with deps also all that
// those link, as they are built for linux/amd64, wherever the test runs.
func list(t *testing.T, args ...string) map[string]pkg {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", append([]string{"list", "-json=ImportPath,Dir,Standard,GoFiles,Imports,TestImports,XTestImports,Deps"}, args...)...)
	cmd.Dir = root(t)
	cmd.Env = append(os.Environ(), "GOOS=linux", "GOARCH=amd64", "CGO_ENABLED=0")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v: %s", err, stderr.String())
	}
	packages := make(map[string]pkg)
	for d := json.NewDecoder(strings.NewReader(string(out))); d.More(); {
		var p pkg
		if err := d.Decode(&p); err != nil {
			t.Fatal(err)
		}
		packages[p.ImportPath] = p
	}
	return packages
}

func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../../..")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "go.mod")); err != nil {
		t.Fatal(err)
	}
	return dir
}

// fits says whether an import path is meant by a pattern of a rule.
func fits(path, pattern string) bool {
	if rest, ok := strings.CutPrefix(pattern, "./"); ok {
		pattern = module + "/" + rest
	}
	below, subtree := strings.CutSuffix(pattern, "/...")
	return path == below || subtree && strings.HasPrefix(path, below+"/")
}

func fitsAny(path string, patterns []string) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool { return fits(path, pattern) })
}

// check returns what breaks the rule among packages, which hold everything that
// ours link, and one line for each name in the rule that no package has.
func check(r rule, ours, packages map[string]pkg) []string {
	var found []string
	for _, pattern := range slices.Concat(r.from, r.except) {
		if !slices.ContainsFunc(slices.Collect(maps.Keys(ours)), func(path string) bool { return fits(path, pattern) }) {
			found = append(found, pattern+" is missing")
		}
	}
	for _, path := range slices.Sorted(maps.Keys(ours)) {
		if !fitsAny(path, r.from) || fitsAny(path, r.except) {
			continue
		}
		p := ours[path]
		imports := p.Deps
		if r.direct {
			imports = p.Imports
		}
		for _, dep := range imports {
			allowed := r.only == nil || fitsAny(dep, r.only) ||
				packages[dep].Standard && slices.Contains(r.only, std)
			if !allowed || fitsAny(dep, r.never) {
				found = append(found, fmt.Sprintf("%s links %s%s", path, dep, through(path, dep, packages)))
			}
		}
		if !r.tests {
			continue
		}
		for _, dep := range slices.Concat(p.TestImports, p.XTestImports) {
			if fitsAny(dep, r.never) {
				found = append(found, fmt.Sprintf("a test of %s imports %s", path, dep))
			}
		}
	}
	return found
}

// through names the packages on a shortest way from one package to another.
func through(from, to string, packages map[string]pkg) string {
	before := map[string]string{from: ""}
	for next := []string{from}; len(next) > 0; next = next[1:] {
		for _, path := range packages[next[0]].Imports {
			if _, known := before[path]; known {
				continue
			}
			before[path] = next[0]
			next = append(next, path)
		}
	}
	var way []string
	for path := before[to]; path != "" && path != from; path = before[path] {
		way = append(way, path)
	}
	if len(way) == 0 {
		return ""
	}
	slices.Reverse(way)
	return " through " + strings.Join(way, ", ")
}

func TestArrows(t *testing.T) {
	ours, packages := list(t, "./..."), list(t, "-deps", "./...")
	for _, r := range rules {
		for _, found := range check(r, ours, packages) {
			t.Errorf("%s: %s", found, r.reason)
		}
	}
}

func TestThirdPartyPackages(t *testing.T) {
	for _, binary := range binaries {
		var deps strings.Builder
		packages := list(t, "-deps", binary)
		for _, path := range slices.Sorted(maps.Keys(packages)) {
			if !packages[path].Standard && !fits(path, "./...") && path != module {
				deps.WriteString(path + "\n")
			}
		}
		golden := filepath.Join("testdata", filepath.Base(binary)+".deps")
		if *update {
			if err := os.WriteFile(golden, []byte(deps.String()), 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range difference(deps.String(), string(want)) {
			t.Errorf("%s links %s: is it worth it? then go test ./daemon/internal/arrows -update", binary, path)
		}
		for _, path := range difference(string(want), deps.String()) {
			t.Errorf("%s no longer links %s: go test ./daemon/internal/arrows -update", binary, path)
		}
	}
}

// difference returns the lines of a that b does not have.
func difference(a, b string) []string {
	lines := slices.Collect(strings.Lines(a))
	other := slices.Collect(strings.Lines(b))
	lines = slices.DeleteFunc(lines, func(line string) bool { return slices.Contains(other, line) })
	for i := range lines {
		lines[i] = strings.TrimSpace(lines[i])
	}
	return lines
}

// TestCheck breaks each part of a rule once, in a small world of its own.
func TestCheck(t *testing.T) {
	ours := map[string]pkg{
		module + "/tiny": {Imports: []string{"os", module + "/mid"}, Deps: []string{"fmt", "os", "other.example/x", module + "/mid"}},
		module + "/mid":  {Imports: []string{"fmt", "other.example/x"}, Deps: []string{"fmt", "other.example/x"}, XTestImports: []string{"bolt.example/v2"}},
	}
	packages := maps.Clone(ours)
	packages["fmt"] = pkg{Standard: true}
	packages["os"] = pkg{Standard: true}
	for _, test := range []struct {
		name string
		rule rule
		want []string
	}{
		{"kept", rule{from: []string{"./tiny"}, never: []string{"net/...", "other.example"}}, nil},
		{"never", rule{from: []string{"./tiny"}, never: []string{"other.example/..."}},
			[]string{module + "/tiny links other.example/x through " + module + "/mid"}},
		{"never, standard", rule{from: []string{"./tiny"}, only: []string{std, "./mid", "other.example/..."}, never: []string{"fmt"}},
			[]string{module + "/tiny links fmt through " + module + "/mid"}},
		{"only", rule{from: []string{"./mid"}, only: []string{std}},
			[]string{module + "/mid links other.example/x"}},
		{"only, without the standard library", rule{from: []string{"./mid"}, only: []string{"other.example/x"}},
			[]string{module + "/mid links fmt"}},
		{"in a test", rule{from: []string{"./..."}, never: []string{"bolt.example/..."}, tests: true},
			[]string{"a test of " + module + "/mid imports bolt.example/v2"}},
		{"only in a test", rule{from: []string{"./..."}, never: []string{"bolt.example/..."}}, nil},
		{"direct, not through others", rule{from: []string{"./tiny"}, never: []string{"fmt"}, direct: true}, nil},
		{"except", rule{from: []string{"./..."}, never: []string{"bolt.example/..."}, tests: true, except: []string{"./mid"}}, nil},
		{"missing", rule{from: []string{"./tiny", "./gone"}, except: []string{"./gone/..."}},
			[]string{"./gone is missing", "./gone/... is missing"}},
	} {
		if got := check(test.rule, ours, packages); !slices.Equal(got, test.want) {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
	}
}
