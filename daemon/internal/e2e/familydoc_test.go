package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sessionctl/sessionctl/daemon/internal/login"
	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

const (
	atlassianPage = "docs/atlassian.md"
	crowdPage     = "docs/crowd.md"
	iwaacPage     = "docs/iwaac.md"
)

// What the users of the pages prove themselves with.
const (
	familyPassword = "CANARY-alice"
	familyToken    = "CANARY-token"
)

// family is Atlassian's products as the pages of the family have them, and the home
// of somebody who does what these say.
type family struct {
	*world
	*home
	crowd    *rig.Crowd // nil: there is none
	products map[string]*rig.Atlassian
	keytab   string   // of svc-build
	back     []string // what is here, and what it is on the pages
}

// familyOptions say what the family is like.
type familyOptions struct {
	domain  string                                     // of the hosts, ".corp.localhost"; "": all are localhost
	crowd   *rig.CrowdOptions                          // nil: there is none
	product func(site string, o *rig.AtlassianOptions) // changes a product; nil: leaves them so
	keytab  bool                                       // products ask for tickets, as IWAAC does
}

// familySites are the sites of the pages, and what is there.
var familySites = map[string]string{"jira": "jira", "wiki": "confluence", "git": "bitbucket", "builds": "bamboo", "reviews": "crucible"}

var familyStarts = map[string]func(rig.AtlassianOptions) (*rig.Atlassian, error){
	"jira": rig.StartJira, "confluence": rig.StartConfluence, "bitbucket": rig.StartBitbucket, "bamboo": rig.StartBamboo, "crucible": rig.StartCrucible,
}

func newFamily(t *testing.T, o familyOptions) *family {
	t.Helper()
	f := &family{world: inProcess(t), products: map[string]*rig.Atlassian{}}
	f.kdc.AddPrincipal("svc-build", "CANARY-svc-build")
	f.keytab = write(t, filepath.Join(t.TempDir(), "svc-build.keytab"), string(f.kdc.Keytab("svc-build")))
	f.home = newHome(t, f.world)
	if o.crowd != nil {
		var err error
		f.crowd, err = rig.StartCrowd(*o.crowd)
		must(t, err)
		t.Cleanup(f.crowd.Stop)
		f.crowd.AddUser("svc-build", "")
		f.crowd.AddUser("alice", familyPassword)
		f.crowd.AddUser("ci", familyPassword)
		f.back = append(f.back, strings.TrimSuffix(f.crowd.URL(), "/crowd"), "https://crowd.corp.example")
	}
	if o.domain != "" { // which resolvers do not know
		p, err := rig.StartProxy(rig.ProxyOptions{Dial: rig.DialLocalhost})
		must(t, err)
		t.Cleanup(p.Close)
		f.extraEnv = []string{"http_proxy=" + p.URL()}
	}
	for site, kind := range familySites {
		options := rig.AtlassianOptions{Crowd: f.crowd}
		if site == "jira" {
			options.ContextPath = "/jira"
		}
		spn := "HTTP/localhost"
		if o.domain != "" {
			options.Host = site + o.domain
			spn = "HTTP/" + options.Host
			f.kdc.AddService(spn)
		}
		if o.keytab {
			options.Keytab, options.Guard = f.kdc.Keytab(spn), &rig.IWAAC{Agent: "Windows NT"}
		}
		if o.product != nil {
			o.product(site, &options)
		}
		a, err := familyStarts[kind](options)
		must(t, err)
		t.Cleanup(a.Stop)
		if f.crowd == nil {
			a.AddUser("svc-build", "")
			a.AddUser("alice", familyPassword)
		}
		f.products[site] = a
		f.back = append(f.back, strings.TrimSuffix(a.URL(), options.ContextPath), "https://"+site+".corp.example")
	}
	return f
}

// here is a text of the pages for this family.
func (f *family) here(text string) string {
	back := slices.Clone(f.back)
	slices.Reverse(back)
	pairs := append(back, keytabFile, f.keytab)
	for i := 0; i < len(back); i += 2 {
		pairs = append(pairs, `"`+strings.TrimPrefix(back[i], "https://")+`"`, `"`+back[i+1]+`"`) // in login_hosts
	}
	return strings.NewReplacer(pairs...).Replace(text)
}

// configure writes a configuration of the pages.
func (f *family) configure(t *testing.T, text string) {
	t.Helper()
	write(t, f.config, f.here(withoutTLS(text)))
}

// same runs commands of the pages.
func (f *family) same(t *testing.T, secret string, commands ...shown) {
	t.Helper()
	for _, c := range commands {
		c.same(t, f.home, secret, f.back...)
	}
}

// cookies are the names of a site's cookies, sorted.
func (f *family) cookies(t *testing.T, site string) (names []string) {
	t.Helper()
	for pair := range strings.SplitSeq(f.ok(t, "raw", site), ";") {
		name, _, _ := strings.Cut(strings.TrimSpace(pair), "=")
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// program runs a program of the pages in a directory.
func (f *family) program(t *testing.T, dir string, argv ...string) result {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
	cmd.Dir = dir
	cmd.Env = []string{"SESSIONCTL_SOCKET=" + f.socket, "PATH=" + bin + ":" + os.Getenv("PATH")}
	return finish(t, cmd, "")
}

// TestIWAACExamples: each program of docs/iwaac.md does its job at each product, behind
// a gate with the rules that the page names, by one ticket shown at each.
func TestIWAACExamples(t *testing.T) {
	rows := regexp.MustCompile("(?m)^\\| ([A-Z][A-Za-z, ]*) \\| `(/[^`]*)` \\| `([a-z]+) (https://[^`]*)` \\|$").FindAllStringSubmatch(section(t, iwaacPage, "The sites"), -1)
	if len(rows) != len(familySites) {
		t.Fatalf("%d products of %d", len(rows), len(familySites))
	}
	asked := map[string]string{} // by the gate, at each site
	for _, row := range rows {
		asked[row[3]] = row[2]
	}
	want := map[string]string{"jira": `"key":"LAB-2"`, "wiki": `"username":"svc-build"`, "git": "svc-build", "builds": `"name":"svc-build"`, "reviews": `"id":"CR-2"`}
	for _, c := range []struct {
		name, needs, file string
		argv              []string
	}{
		{"PycURL", "py_curl", "get.py", []string{"/usr/bin/python3", "get.py"}},
		{"Groovy", "groovy", "get.groovy", []string{"groovy", "get.groovy"}},
		{"HttpClient", "groovy", "fetch.groovy", []string{"groovy", "fetch.groovy"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			rig.Require(t, c.needs)
			if c.needs == "groovy" {
				rig.Require(t, "/usr/lib/jvm/default-java")
			}
			f := newFamily(t, familyOptions{keytab: true, product: func(site string, o *rig.AtlassianOptions) { o.Guard.URIs = []string{asked[site]} }})
			f.configure(t, sectionBlock(t, iwaacPage, "The sites", "toml"))
			a := f.start(t)
			dir := t.TempDir()
			write(t, filepath.Join(dir, c.file), program(t, c.file).text)
			run := func(site, url string) result {
				t.Helper()
				return f.program(t, dir, append(slices.Clone(c.argv), site, f.here(url))...)
			}
			for _, row := range append(rows, rows[0]) { // once more at the first
				if r := run(row[3], row[4]); r.status != 0 || r.stderr != "" || !strings.Contains(r.stdout, want[row[3]]) || strings.Contains(r.stdout, "CANARY") {
					t.Errorf("%s: %v", row[1], r)
				}
			}
			for site, a := range f.products {
				if n := a.Counts(); n.KerberosLogins != 1 || n.Tokens != 1 || n.Begun() != 1 {
					t.Errorf("%s: %+v", site, n)
				}
			}
			a.stop(t)
			noSecrets(t, a)
		})
	}
}

// TestInTheDomain: the ticket of somebody who has logged in will do.
func TestInTheDomain(t *testing.T) {
	rig.Require(t, "py_curl")
	f := newFamily(t, familyOptions{keytab: true})
	f.configure(t, strings.ReplaceAll(sectionBlock(t, iwaacPage, "In the domain and outside", "toml"), cacheName, f.ticketCache(t)))
	f.start(t)
	dir := t.TempDir()
	write(t, filepath.Join(dir, "get.py"), program(t, "get.py").text)
	if r := f.program(t, dir, "/usr/bin/python3", "get.py", "jira", f.products["jira"].URL()+"/rest/api/2/myself"); r.status != 0 || !strings.Contains(r.stdout, `"name":"alice"`) {
		t.Errorf("%v", r)
	}
}

// TestAtlassianTables: what docs/atlassian.md says of the kinds' options and of how
// long their sessions live is so.
func TestAtlassianTables(t *testing.T) {
	cell := func(text string) string { return strings.Trim(text, "` ") }
	row := regexp.MustCompile("(?m)^\\| `(jira|confluence|bitbucket|bamboo|crucible)` \\| (.*) \\|$")
	seen := 0
	for _, m := range row.FindAllStringSubmatch(section(t, atlassianPage, "What is found out"), -1) {
		kind, cells := m[1], strings.Split(m[2], " | ")
		have := options(login.New(kind))
		if len(cells) != 4 {
			t.Fatalf("%s: %q", kind, cells)
		}
		seen++
		want := map[string]string{"login_url": cell(cells[0]), "probe_url": cell(cells[1]), "logout_url": cell(cells[2]), "status_url": cell(cells[3])}
		switch kind {
		case "jira":
			if cells[1] != "`session_url`" || cells[2] != "`session_url`" {
				t.Errorf("%q", cells)
			}
			delete(want, "probe_url")
			delete(want, "logout_url")
		case "crucible":
			if cells[1] != "yours" || have["probe_url"] != "" || cells[3] != "none" {
				t.Errorf("%q", cells)
			}
			want["probe_url"], want["status_url"] = "", ""
		}
		for option, value := range want {
			if have[option] != value {
				t.Errorf("%s of %s is %q, not %q", option, kind, have[option], value)
			}
		}
	}
	for _, m := range row.FindAllStringSubmatch(section(t, atlassianPage, "Proof and life"), -1) {
		kind, cells := m[1], strings.Split(m[2], " | ")
		var idle time.Duration
		if l, ok := login.New(kind).(login.Lasting); ok {
			idle = l.Life().Idle
		}
		seen++
		if want := map[string]time.Duration{"5 hours": 5 * time.Hour, "1 hour": time.Hour, "30 minutes": 30 * time.Minute, "not documented": 0}; idle != want[cells[2]] {
			t.Errorf("the idle limit of %s is %v, not %q", kind, idle, cells[2])
		}
	}
	if seen != 2*len(familySites) {
		t.Errorf("%d rows", seen)
	}
}

// TestAtlassianByPassword: the second configuration of docs/atlassian.md, at products
// of either generation, and the logout.
func TestAtlassianByPassword(t *testing.T) {
	rig.Require(t, "curl")
	f := newFamily(t, familyOptions{product: func(site string, o *rig.AtlassianOptions) { o.TwoStep = site == "git" || site == "builds" }})
	f.configure(t, sectionBlocks(t, atlassianPage, "Configuration", "toml")[1])
	a := f.start(t)
	f.same(t, familyPassword, shownIn(t, atlassianPage, "Configuration")...)
	f.ok(t, "raw", "builds")
	for site, generation := range map[string]string{"wiki": "form", "git": "tsv", "builds": "tsv"} {
		n := f.products[site].Counts()
		if n.Begun() != 1 || n.Forms+n.TwoStepLogins != 1 || (n.Forms == 1) != (generation == "form") || n.Remembered != 0 {
			t.Errorf("%s: %+v", site, n)
		}
	}
	f.same(t, "", shownIn(t, atlassianPage, "Logout")...)
	for site, n := range map[string]int{"wiki": 0, "git": 1} {
		if got := f.products[site].Counts().Sessions; got != n {
			t.Errorf("%s: %d sessions", site, got)
		}
	}
	// What is remembered is looked at again when a login fails.
	f.products["wiki"].Upgrade("", true)
	f.ok(t, "refresh", "wiki")
	if n := f.products["wiki"].Counts(); n.TwoStepLogins != 1 || n.Refused != 0 {
		t.Errorf("after an upgrade: %+v", n)
	}
	a.stop(t)
	noSecrets(t, a)
}

// TestAtlassianList: what was found out is shown as docs/atlassian.md shows it.
func TestAtlassianList(t *testing.T) {
	const title = "What is found out"
	f := newFamily(t, familyOptions{keytab: true, product: func(site string, o *rig.AtlassianOptions) {
		if site == "git" {
			o.ContextPath = "/bitbucket"
		}
	}})
	f.products["git"].SetModes(rig.AtlassianModes{RootRedirect: true})
	f.configure(t, sectionBlocks(t, atlassianPage, "Configuration", "toml")[0])
	f.start(t)
	for _, site := range []string{"wiki", "git", "builds", "reviews"} {
		f.ok(t, "raw", site)
		if n := f.products[site].Counts(); n.KerberosLogins != 1 || n.Begun() != 1 {
			t.Errorf("%s: %+v", site, n)
		}
	}
	// The page shows the first site alone.
	commands := shownIn(t, atlassianPage, title)
	if len(commands) != 1 {
		t.Fatalf("%d commands", len(commands))
	}
	var got strings.Builder
	for line := range strings.Lines(f.ok(t, commands[0].command[len("sessionctl "):])) {
		if name, _, _ := strings.Cut(line, " "); name == "SITE" || name == "wiki" {
			got.WriteString(line)
		}
	}
	if got, want := plain(got.String()), plain(commands[0].output); got != want {
		t.Errorf("list says:\n%s\nthe page has:\n%s", got, want)
	}
	json := f.ok(t, "list", "-o", "json")
	fields := regexp.MustCompile("`-o json` has ([^:]*):").FindStringSubmatch(oneLine(section(t, atlassianPage, title)))
	if fields == nil {
		t.Fatal("no fields")
	}
	for field := range strings.SplitSeq(strings.ReplaceAll(fields[1], " and ", ", "), ", ") {
		if !strings.Contains(json, `"`+strings.Trim(field, "`")+`": "`) {
			t.Errorf("no %s in %s", field, json)
		}
	}
	if !strings.Contains(json, `"path": "/bitbucket"`) {
		t.Errorf("%s", json)
	}
	if r := f.sessionctl(t, "login", "reviews"); r.status != 0 || !regexp.MustCompile(`^sessionctl: reviews: logged in as svc-build@[A-Z.]+ \(identity unproven\)\n$`).MatchString(r.stderr) {
		t.Errorf("%v", r)
	}
	// Another product than the configuration says.
	f.rewrite(t, `kind       = "bitbucket"`, `kind       = "jira"`)
	f.ok(t, "reload")
	if r := f.fails(t, 5, "config_invalid", "raw", "git"); !strings.Contains(r.stderr, `kind = "bitbucket"`) {
		t.Errorf("%v", r)
	}
}

// TestSecondFactorExample: what docs/atlassian.md shows of a second factor, and one
// of its ways out.
func TestSecondFactorExample(t *testing.T) {
	f := newFamily(t, familyOptions{product: func(site string, o *rig.AtlassianOptions) { o.TwoStep = site != "reviews" }})
	f.products["wiki"].SetModes(rig.AtlassianModes{SecondFactor: true})
	f.configure(t, sectionBlocks(t, atlassianPage, "Configuration", "toml")[1])
	f.start(t)
	if r := f.run(t, familyPassword+"\n", filepath.Join(bin, "sessionctl"), "login", "git", "--password-stdin"); r.status != 0 {
		t.Fatalf("%v", r)
	}
	f.same(t, "", shownIn(t, atlassianPage, "A second factor")...)
	f.fails(t, 5, "latched", "header", "wiki")
	f.ok(t, "raw", "builds") // with the same password
	if n := f.products["wiki"].Counts(); n.SecondFactors != 1 {
		t.Errorf("%+v", n)
	}
	f.products["wiki"].SetModes(rig.AtlassianModes{})
	f.ok(t, "login", "wiki", "--retry")
}

// TestTokenExample: a personal access token as docs/atlassian.md has it, at each
// product that has them.
func TestTokenExample(t *testing.T) {
	const title = "Personal access tokens"
	f := newFamily(t, familyOptions{})
	for _, site := range []string{"jira", "wiki", "git", "builds"} {
		f.products[site].AddToken("alice", familyToken)
	}
	text := sectionBlock(t, atlassianPage, title, "toml")
	f.configure(t, text)
	a := f.start(t)
	f.same(t, familyToken, shownIn(t, atlassianPage, title)...)
	if header := f.ok(t, "header", "wiki"); !strings.Contains(header, "Authorization: Bearer "+familyToken+"\n") || strings.Contains(header, "Cookie:") {
		t.Errorf("%s", header)
	}
	for _, command := range []string{"eval $(sessionctl cookie wiki)", "sessionctl get wiki -o netscape", "sessionctl get wiki -o httpie", `eval "$(sessionctl get wiki -o env)"`} {
		if r := f.run(t, "", "sh", "-c", command); r.status == 0 || !strings.Contains(r.stderr, "(per_request_only)") || r.stdout != "" {
			t.Errorf("%s: %v", command, r)
		}
	}
	for _, format := range []string{"json", "curl"} {
		if out := f.ok(t, "get", "wiki", "-o", format); !strings.Contains(out, familyToken) {
			t.Errorf("%s: %s", format, out)
		}
	}
	a.stop(t)
	noSecrets(t, a)
	for site, kind := range map[string]string{"jira": "jira", "git": "bitbucket", "builds": "bamboo"} {
		one := strings.NewReplacer("site.wiki", "site."+site, "https://wiki.corp.example/", f.products[site].URL()+"/", `"confluence"`, `"`+kind+`"`).Replace(text)
		f.configure(t, one)
		a := f.start(t)
		if r := f.run(t, familyToken+"\n", filepath.Join(bin, "sessionctl"), "login", site, "--password-stdin", "--retry"); r.status != 0 {
			t.Errorf("%s: %v", kind, r)
		}
		a.stop(t)
	}
	f.products["wiki"].RevokeTokens("alice")
	f.configure(t, text)
	f.start(t)
	if r := f.sessionctl(t, "reject", "wiki"); r.status != 5 || !strings.Contains(r.stderr, "(bad_credentials)") {
		t.Errorf("revoked: %v", r)
	}
}

// TestCrucibleExample: the page that names the user, at the root and below a context
// path.
func TestCrucibleExample(t *testing.T) {
	t.Run("below", func(t *testing.T) {
		f := newFamily(t, familyOptions{product: func(_ string, o *rig.AtlassianOptions) { o.ContextPath = "/fecru" }})
		f.configure(t, strings.Replace(sectionBlock(t, atlassianPage, "Fisheye and Crucible", "toml"), "corp.example/", "corp.example/fecru", 1))
		f.start(t)
		if r := f.run(t, familyPassword+"\n", filepath.Join(bin, "sessionctl"), "login", "reviews", "--password-stdin"); r.status != 0 || r.stderr != "sessionctl: reviews: logged in as alice\n" {
			t.Errorf("%v", r)
		}
	})
	f := newFamily(t, familyOptions{})
	f.configure(t, sectionBlock(t, atlassianPage, "Fisheye and Crucible", "toml"))
	f.start(t)
	if r := f.run(t, familyPassword+"\n", filepath.Join(bin, "sessionctl"), "login", "reviews", "--password-stdin"); r.status != 0 || r.stderr != "sessionctl: reviews: logged in as alice\n" {
		t.Errorf("%v", r)
	}
	f.rewrite(t, `probe_url`, "login = \"rest\"\nprobe_url")
	if r := f.sessionctl(t, "reload"); r.status != 5 || !strings.Contains(r.stderr, "FEAUTH") {
		t.Errorf("%v", r)
	}
}

// crowdFamily is a family whose logins are Crowd's.
func crowdFamily(t *testing.T, o familyOptions, crowd rig.CrowdOptions) *family {
	t.Helper()
	o.domain = ".corp.localhost"
	crowd.Host, crowd.Domain = "crowd"+o.domain, o.domain
	o.crowd = &crowd
	return newFamily(t, o)
}

// TestCrowdExample: three sites, one ticket, as docs/crowd.md has it; what happens when
// the token dies, and when a site forgets; and the logouts.
func TestCrowdExample(t *testing.T) {
	rig.Require(t, "curl")
	f := crowdFamily(t, familyOptions{keytab: true}, rig.CrowdOptions{})
	f.configure(t, sectionBlock(t, crowdPage, "One login for all", "toml"))
	a := f.start(t)
	f.same(t, "", shownIn(t, crowdPage, "One login for all")...)
	own := map[string][]string{
		"jira": {"JSESSIONID", "atlassian.xsrf.token", "crowd.token_key"}, "wiki": {"JSESSIONID", "atlassian.xsrf.token", "crowd.token_key"}, "git": {"BITBUCKETSESSIONID", "crowd.token_key"},
	}
	begun := func(site string) int { return f.products[site].Counts().CrowdSessions }
	logins := func(want int) {
		t.Helper()
		got := 0
		for _, a := range f.products {
			got += a.Counts().KerberosLogins
		}
		if n := f.crowd.Counts(); got != want || n.Minted != want || n.Logins+n.Refused != 0 {
			t.Errorf("%d tickets shown, want %d; Crowd: %+v", got, want, n)
		}
	}
	for site, want := range own {
		got := f.cookies(t, site)
		if got = slices.DeleteFunc(got, func(n string) bool { return !slices.Contains(want, n) }); !slices.Equal(got, want) {
			t.Errorf("%s: %s", site, got)
		}
	}
	logins(1)
	if wiki, git := begun("wiki"), begun("git"); wiki != 1 || git != 1 {
		t.Errorf("%d and %d sessions", wiki, git)
	}
	f.products["wiki"].DropSessions()
	f.ok(t, "reject", "wiki")
	logins(1)
	if n := begun("wiki"); n != 2 {
		t.Errorf("%d sessions", n)
	}
	f.crowd.KillToken("svc-build")
	for _, site := range []string{"wiki", "git", "jira"} {
		f.ok(t, "reject", site)
	}
	logins(2)
	if wiki, git := begun("wiki"), begun("git"); wiki != 3 || git != 2 {
		t.Errorf("%d and %d sessions", wiki, git)
	}
	commands := shownIn(t, crowdPage, "Logout")
	f.same(t, "", commands[0])
	if f.crowd.Tokens() != 1 {
		t.Error("the logout of a member has ended the token")
	}
	f.same(t, "", commands[1])
	if f.crowd.Tokens() != 0 {
		t.Error("the token lives on")
	}
	logins(2)
	// A host outside the SSO domain.
	f.rewrite(t, "//wiki.corp.localhost", "//localhost")
	f.ok(t, "reload")
	f.fails(t, 5, "login_ok_but_probe_failed", "raw", "wiki")
	a.stop(t)
	noSecrets(t, a)
}

// TestCrowdMeans: what logs in where is what docs/crowd.md says.
func TestCrowdMeans(t *testing.T) {
	rows := regexp.MustCompile("(?m)^\\| (none|`.*?`) \\| .* \\| (.*) \\|$").FindAllStringSubmatch(section(t, crowdPage, "Where the agent logs in"), -1)
	seen := 0
	if len(rows) < 4 {
		t.Fatalf("%d rows", len(rows))
	}
	for _, row := range rows[1:4] { // after the head
		for via := range strings.SplitSeq(strings.NewReplacer("`", "", "none", "").Replace(row[1]), ", ") {
			d := login.New("crowd")
			reflect.ValueOf(d).Elem().FieldByName("Via").SetString(via)
			seen++
			if takes := d.Takes(); slices.Contains(takes, login.Ticket) != strings.Contains(row[2], "principal") || !slices.Contains(takes, login.Secret) || !strings.Contains(row[2], "username") {
				t.Errorf("via %q takes %q, the page has %q", via, takes, row[2])
			}
		}
	}
	if seen != 7 {
		t.Errorf("%d ways", seen)
	}
}

// TestCrowdItself: the other two places where docs/crowd.md logs in.
func TestCrowdItself(t *testing.T) {
	t.Run("console", func(t *testing.T) {
		f := crowdFamily(t, familyOptions{}, rig.CrowdOptions{})
		f.configure(t, sectionBlock(t, crowdPage, "Where the agent logs in", "toml"))
		f.start(t)
		if r := f.run(t, familyPassword+"\n", filepath.Join(bin, "sessionctl"), "login", "wiki", "--password-stdin"); r.status != 0 || r.stderr != "sessionctl: wiki: logged in as alice\n" {
			t.Errorf("%v", r)
		}
		if n := f.crowd.CountsOf("crowd"); n.Logins != 1 {
			t.Errorf("%+v", n)
		}
	})
	t.Run("rest", func(t *testing.T) {
		const title, here = "What an application's password is worth", "127.0.0.1"
		f := crowdFamily(t, familyOptions{}, rig.CrowdOptions{SameIP: true})
		f.crowd.AddApplication("agents", "CANARY-agents", "192.0.2.99")
		f.configure(t, strings.ReplaceAll(sectionBlock(t, crowdPage, title, "toml"), "192.0.2.10", here))
		a := f.start(t)
		login := func() result {
			return f.run(t, "CANARY-agents\n", filepath.Join(bin, "sessionctl"), "login", "wiki", "--password-stdin")
		}
		wantFailure(t, login(), 5, "forbidden")
		f.crowd.AddApplication("agents", "CANARY-agents", here)
		f.same(t, "CANARY-agents", shownIn(t, crowdPage, title)...)
		if n := f.crowd.CountsOf("agents"); n.Minted != 1 || n.Logins+n.Refused != 0 {
			t.Errorf("%+v", n)
		}
		a.stop(t)
		noSecrets(t, a)
		// For another address than that of the requests.
		f.rewrite(t, `"`+here+`"`, `"192.0.2.10"`)
		f.start(t)
		if r := f.sessionctl(t, "login", "wiki"); r.status != 5 || !strings.Contains(r.stderr, "(login_ok_but_probe_failed)") {
			t.Errorf("%v", r)
		}
	})
}

// TestBrowsersToken: the three steps of docs/crowd.md with the token of a browser on
// another machine, which Crowd has bound to that.
func TestBrowsersToken(t *testing.T) {
	const title, browser = "A browser's token", "192.0.2.7"
	f := crowdFamily(t, familyOptions{}, rig.CrowdOptions{SameIP: true, TrustedProxies: []string{"127.0.0.1"}})
	token := f.crowd.Mint("alice", rig.Factors{RemoteAddress: browser})
	cookie := "JSESSIONID=CANARY-browser; crowd.token_key=" + token
	text := sectionBlock(t, crowdPage, title, "toml")
	f.configure(t, regexp.MustCompile(`(?m)^forwarded_for .*\n`).ReplaceAllString(text, ""))
	a := f.start(t)
	r := f.run(t, cookie+"\n", filepath.Join(bin, "sessionctl"), "login", "wiki", "--cookie-stdin")
	wantFailure(t, r, 5, "expired")
	a.stop(t)
	f.configure(t, text)
	a = f.start(t)
	r = f.run(t, "JSESSIONID=CANARY-browser\n", filepath.Join(bin, "sessionctl"), "login", "wiki", "--cookie-stdin")
	if wantFailure(t, r, 5, "expired"); !strings.Contains(r.stderr, "the cookie is no login") {
		t.Errorf("without the token: %v", r)
	}
	f.same(t, cookie, shownIn(t, crowdPage, title)...)
	for _, site := range []string{"wiki", "jira"} {
		header := f.ok(t, "header", site)
		for _, want := range []string{"JSESSIONID=", "atlassian.xsrf.token=", "crowd.token_key=" + token, "\nX-Forwarded-For: " + browser + "\n"} {
			if !strings.Contains(header, want) {
				t.Errorf("%s: no %s", site, want)
			}
		}
		if strings.Contains(header, "CANARY-browser") {
			t.Errorf("%s has the browser's own session", site)
		}
	}
	if n := f.crowd.Counts(); n.Minted != 1 || n.Logins != 0 {
		t.Errorf("%+v", n)
	}
	f.crowd.KillToken("alice")
	f.fails(t, 5, "no_secret", "reject", "wiki")
	a.stop(t)
	noSecrets(t, a)
}

// TestTwoUsersOfOneConfluence: as docs/crowd.md has them, with Crowd behind.
func TestTwoUsersOfOneConfluence(t *testing.T) {
	const title = "Two users on one Confluence"
	f := crowdFamily(t, familyOptions{}, rig.CrowdOptions{})
	f.configure(t, sectionBlock(t, crowdPage, title, "toml"))
	f.start(t)
	f.same(t, familyPassword, shownIn(t, crowdPage, title)...)
	if r := f.run(t, familyPassword+"\n", filepath.Join(bin, "sessionctl"), "login", "wiki", "--credential", "alice", "--password-stdin"); r.status != 0 || r.stderr != "sessionctl: wiki: logged in as alice\n" {
		t.Errorf("%v", r)
	}
	if n := f.crowd.Tokens(); n != 2 {
		t.Errorf("%d tokens", n)
	}
}
