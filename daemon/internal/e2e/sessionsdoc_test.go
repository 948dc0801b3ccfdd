package e2e

import (
	"bytes"
	"context"
	"fmt"
	"go/ast"
	"go/constant"
	"go/format"
	"go/parser"
	"go/token"
	"math"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/sessionctl/sessionctl/api"
	pb "github.com/sessionctl/sessionctl/api/sessionctl/v1"
	"github.com/sessionctl/sessionctl/daemon"
	"github.com/sessionctl/sessionctl/daemon/internal/login"
	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

const sessionsPage = "docs/sessions.md"

// oneLine is a text whose line breaks do not count.
func oneLine(text string) string { return strings.Join(strings.Fields(text), " ") }

// sessionsSection returns what stands under a heading of the page.
func sessionsSection(t *testing.T, title string) string {
	t.Helper()
	return section(t, sessionsPage, title)
}

// sessionsBlock returns the only block in a language under a heading.
func sessionsBlock(t *testing.T, title, language string) string {
	t.Helper()
	return sectionBlock(t, sessionsPage, title, language)
}

// shown is a command that the page shows, and what comes of it.
type shown struct{ command, output string }

// transcripts returns the commands under a heading of docs/sessions.md.
func transcripts(t *testing.T, title string) []shown { return shownIn(t, sessionsPage, title) }

// shownIn returns the commands under a heading of a page.
func shownIn(t *testing.T, page, title string) (all []shown) {
	t.Helper()
	for _, text := range sectionBlocks(t, page, title, "console") {
		for line := range strings.Lines(text) {
			if command, ok := strings.CutPrefix(line, "$ "); ok {
				all = append(all, shown{command: strings.TrimSpace(command)})
			} else if len(all) > 0 {
				all[len(all)-1].output += line
			}
		}
	}
	return all
}

// spans are lengths of time as sessionctl prints them.
var spans = regexp.MustCompile(`\b(\d+h)?(\d+m)?\d+(\.\d+)?s\b`)

// plain is what sessionctl said, but for lengths of time, the lines of files, and
// how wide columns are.
func plain(text string) string {
	text = regexp.MustCompile(`\.toml:\d+:`).ReplaceAllString(text, ".toml:N:")
	return regexp.MustCompile(` +`).ReplaceAllString(spans.ReplaceAllString(text, "TIME"), " ")
}

// same runs a command of the page in a shell, with programs pass and wl-paste that
// know a secret, and holds what it says to what the page shows. The replacements are
// pairs of what is here and what it is on the page.
func (s shown) same(t *testing.T, h *home, secret string, replace ...string) {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"pass", "wl-paste"} {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\necho '"+secret+"'\n"), 0o700))
	}
	back := slices.Clone(replace)
	slices.Reverse(back)
	cmd := exec.CommandContext(t.Context(), "sh", "-c", strings.NewReplacer(back...).Replace(s.command))
	cmd.Dir = dir
	cmd.Env = []string{"SESSIONCTL_SOCKET=" + h.socket, "PATH=" + dir + ":" + bin + ":" + os.Getenv("PATH")}
	r := finish(t, cmd, "")
	r.stdout = regexp.MustCompile("(?m)^warning: .*insecure_http.*\n").ReplaceAllString(r.stdout, "") // the page has https
	got, want := plain(strings.NewReplacer(replace...).Replace(r.stderr+r.stdout)), plain(s.output)
	if strings.TrimRight(got, "\n") != strings.TrimRight(want, "\n") { // an answer need not end with one
		t.Errorf("%s says (%d):\n%s\nthe page has:\n%s", s.command, r.status, got, want)
	}
}

// withoutTLS is a configuration of the page for the rigs, which have no TLS.
func withoutTLS(config string, replace ...string) string {
	return strings.NewReplacer(replace...).Replace(regexp.MustCompile(`(?m)^url .*$`).ReplaceAllString(config, "$0\ninsecure_http = true"))
}

// numbered are the constants of some source files.
type numbered map[string]ast.Expr

func constants(t *testing.T, pattern string) numbered {
	t.Helper()
	files, err := filepath.Glob(filepath.FromSlash(pattern))
	must(t, err)
	all := numbered{}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		must(t, err)
		ast.Inspect(parsed, func(n ast.Node) bool {
			if spec, ok := n.(*ast.ValueSpec); ok && len(spec.Values) == len(spec.Names) {
				for i, name := range spec.Names {
					all[name.Name] = spec.Values[i]
				}
			}
			return true
		})
	}
	return all
}

// units of package time, in nanoseconds.
var units = map[string]time.Duration{"Millisecond": time.Millisecond, "Second": time.Second, "Minute": time.Minute, "Hour": time.Hour}

func (c numbered) value(t *testing.T, e ast.Expr) constant.Value {
	t.Helper()
	switch e := e.(type) {
	case *ast.BasicLit:
		return constant.MakeFromLiteral(e.Value, e.Kind, 0)
	case *ast.ParenExpr:
		return c.value(t, e.X)
	case *ast.BinaryExpr:
		x, y, op := c.value(t, e.X), c.value(t, e.Y), e.Op
		if op == token.QUO {
			op = token.QUO_ASSIGN // of integers
		}
		return constant.BinaryOp(x, op, y)
	case *ast.SelectorExpr:
		if u, ok := units[e.Sel.Name]; ok {
			return constant.MakeInt64(int64(u))
		}
	case *ast.Ident:
		if c[e.Name] != nil {
			return c.value(t, c[e.Name])
		}
	}
	t.Fatalf("%#v is no constant that can be read", e)
	return nil
}

// of returns a constant's value, as a number.
func (c numbered) of(t *testing.T, name string) float64 {
	t.Helper()
	if c[name] == nil {
		t.Fatalf("there is no constant %s", name)
	}
	n, _ := constant.Float64Val(constant.ToFloat(c.value(t, c[name])))
	return n
}

// words is a length of time as the page has it.
func words(d time.Duration) string {
	for _, unit := range []struct {
		name string
		d    time.Duration
	}{{"hour", time.Hour}, {"minute", time.Minute}, {"second", time.Second}} {
		switch n := d / unit.d; {
		case n == 0 || d%unit.d != 0:
		case n == 1:
			return "1 " + unit.name
		default:
			return fmt.Sprintf("%d %ss", n, unit.name)
		}
	}
	return d.String()
}

// function returns the source of a function.
func function(t *testing.T, file, name string) string {
	t.Helper()
	set := token.NewFileSet()
	parsed, err := parser.ParseFile(set, filepath.FromSlash(file), nil, 0)
	must(t, err)
	for _, d := range parsed.Decls {
		if f, ok := d.(*ast.FuncDecl); ok && f.Name.Name == name {
			var b bytes.Buffer
			must(t, format.Node(&b, set, f))
			return b.String()
		}
	}
	t.Fatalf("%s has no function %s", file, name)
	return ""
}

// TestSessionsNumbers: each number on docs/sessions.md is the one in the code, and
// there is none that nobody has looked at.
func TestSessionsNumbers(t *testing.T) {
	keeper := constants(t, "../keeper/*.go")
	span := func(c numbered, name string) string { return words(time.Duration(c.of(t, name))) }
	k := func(name string) string { return span(keeper, name) }
	count := func(name string) string { return strconv.Itoa(int(keeper.of(t, name))) }
	jira := login.New("jira").(login.Lasting).Life().Idle
	text := oneLine(regexp.MustCompile("(?s)\n```.*?\n```\n").ReplaceAllString(readPage(t, sessionsPage), "\n"))
	for _, phrase := range []string{
		k("usualRecheck") + ", if nothing else is set",
		"where it is less than 1 minute, anything is", // as below
		"A login may take " + k("loginTimeout"),
		"a proof " + k("probeTimeout"),
		"`sessionctl` waits " + span(constants(t, "../../../client/shim/grammar.go"), "defaultTimeout"),
		"take more than " + span(constants(t, "../../service.go"), "maxDeadline"),
		"in the last " + k("minUse") + ", or twice its `recheck`",
		"Default: " + k("usualRecheck") + ", or a quarter of the site's idle limit",
		"no more than every " + k("minInterval"),
		"no more than " + count("maxBackground") + " sessions at once",
		"dies younger than " + k("minAge") + ", or after less than " + k("minGap"),
		"For `jira` " + words(jira) + " of that are documented",
		fmt.Sprintf("differ by %v %% at most", math.Round(100*(keeper.of(t, "agreement")-1))),
		"and " + k("renewAhead") + " before its end at most",
		"lives less than " + k("minRenewable") + " is not made anew ahead",
		"up to 1 second, then up to twice as long with each further failure", // as below
		"never more than " + k("maxBackOff"),
		"noticed within " + k("maxBackOff"),
		"waits up to " + k("patience") + " for the end of a back-off",
		"comes on top for that session, up to " + span(constants(t, "../web/failure.go"), "maxRetryAfter") + ".",
		"after " + count("maxLogins") + " logins in " + k("loginWindow"),
		"within about " + words(time.Duration(keeper.of(t, "tick")+keeper.of(t, "spread"))),
		"of more than " + k("maxDrift") + " is taken over",
		"after " + count("unknownTries") + " such attempts in a row only every " + k("unknownPause"),
		"the status is 0", "exit status 7: try later", "such as a 403 or a 404", "of a 429 or 503", "uid 990",
	} {
		before, after, ok := strings.Cut(text, phrase)
		if !ok {
			t.Errorf("the page does not say %q", phrase)
		}
		text = before + " … " + after
	}
	text = regexp.MustCompile("`[^`]*`").ReplaceAllString(text, "`…`")
	for _, m := range regexp.MustCompile(`.{0,40}[0-9].{0,20}`).FindAllString(text, -1) {
		t.Errorf("a number that nobody has looked at: %s", m)
	}
	// What has no constant of its own.
	page := oneLine(readPage(t, sessionsPage))
	for _, c := range []struct{ phrase, file, function, source string }{
		{"where it is less than 1 minute, anything is", "../keeper/session.go", "endsWithin", "s.life < time.Minute"},
		{"More than three quarters of the time that the site gives", "../keeper/session.go", "endsWithin", "d > s.life*3/4"},
		{"then half of that time is enough", "../keeper/session.go", "endsWithin", "d = s.life / 2"},
		{"waits for half of his time", "../keeper/entry.go", "wait", "time.Until(end) / 2"},
		{"or twice its `recheck` if that is longer", "../keeper/schedule.go", "lately", "max(minUse, 2*e.interval())"},
		{"a quarter of the site's idle limit if that is less", "../keeper/life.go", "recheck", "min(usualRecheck, max(idle/4, minInterval))"},
		{"in the last quarter of its life", "../keeper/schedule.go", "plan", "min(span/4, renewAhead)"},
		{"proven at half of the idle limit, if one is known", "../keeper/schedule.go", "keptFor", "max(idle/2, minInterval)"},
		{"up to 1 second, then up to twice as long", "../keeper/circuit.go", "backOff", "min(time.Second<<min(n-1, 16), maxBackOff)"},
		{"comes on top for that session", "../keeper/entry.go", "launch", "wait += told"},
	} {
		if !strings.Contains(page, c.phrase) {
			t.Errorf("the page does not say %q", c.phrase)
		}
		if !strings.Contains(function(t, c.file, c.function), c.source) {
			t.Errorf("%s has no %s any more: does %q still hold?", c.function, c.source, c.phrase)
		}
	}
}

// TestSessionsWords: the states, codes and settings that docs/sessions.md names are
// those that there are.
func TestSessionsWords(t *testing.T) {
	source, err := os.ReadFile(filepath.Join(repository, "api", "code.go"))
	must(t, err)
	var codes []api.Code
	for _, m := range regexp.MustCompile(`(?m)^\t\w+ +Code = "([a-z0-9_]+)"`).FindAllSubmatch(source, -1) {
		codes = append(codes, api.Code(m[1]))
	}
	code := regexp.MustCompile("`([a-z0-9_]+)`")
	// named are the words in backquotes between two texts.
	named := func(from, to string) (found []string) {
		t.Helper()
		_, text, ok := strings.Cut(oneLine(readPage(t, sessionsPage)), from)
		text, _, ended := strings.Cut(text, to)
		if !ok || !ended {
			t.Fatalf("there is no text between %q and %q", from, to)
		}
		for _, m := range code.FindAllStringSubmatch(text, -1) {
			found = append(found, m[1])
		}
		slices.Sort(found)
		return slices.Compact(found)
	}
	hold := func(what string, page, want []string) {
		t.Helper()
		slices.Sort(want)
		if len(want) < 3 || !slices.Equal(page, want) {
			t.Errorf("%s: the page has %s, there are %s", what, page, want)
		}
	}

	var refusals, outages []string
	for _, c := range codes {
		switch {
		case c.Refusal():
			refusals = append(refusals, string(c))
		case c == api.NotCached, c == api.StoreFailed, c == api.Deadline, c == api.Quota, c == api.NoAgent: // the agent's own
		case c.Temporary():
			outages = append(outages, string(c))
		}
	}
	hold("refusals", named("Refusals are ", ". From then on"), refusals)
	hold("outages", named("No other failure ends one:", "which only a login needs"), outages)

	var states, rows []string
	for _, name := range pb.SessionState_name {
		if state := strings.ToLower(strings.TrimPrefix(name, "SESSION_STATE_")); state != "unspecified" {
			states = append(states, state)
		}
	}
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z_]+)` \\|").FindAllStringSubmatch(sessionsSection(t, "What a caller gets"), -1) {
		rows = append(rows, m[1])
	}
	slices.Sort(rows)
	hold("states", rows, states)

	// What ends a session at a reload: the account, and what the fingerprint is of.
	tables, err := os.ReadFile("../../configfile.go")
	must(t, err)
	settings := []string{"identity", "idp"}
	for _, m := range regexp.MustCompile(`e\.table\.(\w+)`).FindAllStringSubmatch(function(t, "../../configfile.go", "fingerprint"), -1) {
		key := regexp.MustCompile(`(?m)^\t` + m[1] + ` +\S+ +.toml:"(\w+)"`).FindSubmatch(tables)
		if key == nil {
			t.Fatalf("no setting is kept in %s", m[1])
		}
		settings = append(settings, string(key[1]))
	}
	hold("settings", named("if its site has the same", "options of its kind"), settings)
	for _, setting := range named("Everything else changes around it:", "where the keytab") {
		if !regexp.MustCompile(`toml:"` + setting + `"`).Match(tables) {
			t.Errorf("there is no setting %s", setting)
		}
	}

	// Fields of answers.
	for _, field := range named("`-o json` has the same as", "What was learned") {
		if help := newHome(t, inProcess(t)).ok(t, "list", "--help"); !strings.Contains(help, field) {
			t.Errorf("list -o json has no %s", field)
		}
	}
}

// TestSessionsConfigurations: each configuration is one, and has the sites that it
// shows.
func TestSessionsConfigurations(t *testing.T) {
	krb5 := write(t, filepath.Join(t.TempDir(), "krb5.conf"), "")
	all := blocks(t, sessionsPage, "toml")
	for _, b := range all {
		c, err := daemon.LoadConfig(write(t, filepath.Join(t.TempDir(), "sessiond.toml"), b.text), krb5)
		if err != nil {
			t.Errorf("%v\n%s", err, b.text)
			continue
		}
		if n := len(regexp.MustCompile(`(?m)^\[site\.`).FindAllString(b.text, -1)); len(c.Sites) != n || n == 0 || len(c.Warnings) > 0 {
			t.Errorf("%d sites of %d, warnings %q:\n%s", len(c.Sites), n, c.Warnings, b.text)
		}
	}
	if len(all) != 3 {
		t.Errorf("%d configurations", len(all))
	}
}

// learned is an agent that has learned how long sessions live.
type learned struct {
	pb.UnimplementedSessionServiceServer
}

func (learned) ListSessions(context.Context, *pb.ListSessionsRequest) (*pb.ListSessionsResponse, error) {
	at := func(d time.Duration) *timestamppb.Timestamp { return timestamppb.New(time.Now().Add(d)) }
	live := pb.SessionState_SESSION_STATE_LIVE
	return &pb.ListSessionsResponse{Sessions: []*pb.SessionSummary{
		{Site: "app", Kind: "spnego", User: "svc-build", State: live, ProveTime: at(-12 * time.Second), CheckTime: at(4 * time.Minute), Life: durationpb.New(8 * time.Hour), LifeLearned: true},
		{Site: "jira", Kind: "jira", User: "svc-build", State: live, ProveTime: at(-12 * time.Second), CheckTime: at(4 * time.Minute), Idle: durationpb.New(login.New("jira").(login.Lasting).Life().Idle),
			Product: "jira", Version: "9.12.0", PasswordLogin: "rest", Gate: "Negotiate for Windows NT"},
		{Site: "wiki", Kind: "form", User: "alice", State: live, ProveTime: at(-9 * time.Hour), Idle: durationpb.New(90 * time.Minute), IdleLearned: true},
	}}, nil
}

// TestSessionsLives: list shows what was learned as the page has it.
func TestSessionsLives(t *testing.T) {
	h := newHome(t, inProcess(t))
	must(t, os.Mkdir(filepath.Dir(h.socket), 0o700))
	l, err := net.Listen("unix", h.socket)
	must(t, err)
	s := grpc.NewServer()
	pb.RegisterSessionServiceServer(s, learned{})
	done := make(chan error)
	go func() { done <- s.Serve(l) }()
	defer func() {
		s.Stop()
		must(t, <-done)
	}()
	transcripts(t, "Freshness")[0].same(t, h, "")
}

// TestSessionsOutage: a report, and what an outage looks like.
func TestSessionsOutage(t *testing.T) {
	r := newReader(t)
	r.configure(t, "docs/jira.md", 0)
	r.rewrite(t, "insecure_http = true", "insecure_http = true\nrecheck = \"0s\"")
	r.start(t)
	here := []string{r.front, "https://jira.corp.example"}
	r.ok(t, "raw", "jira")
	transcripts(t, "A session that has just died")[0].same(t, r.home, "", here...)
	down := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "60")
		w.WriteHeader(http.StatusServiceUnavailable)
	})
	r.instead.Store(&down)
	for _, s := range transcripts(t, "Outages") {
		s.same(t, r.home, "", here...)
	}
	for _, args := range [][]string{{"raw", "jira"}, {"raw", "jira", "--cached"}} {
		r.fails(t, 7, "maintenance", "reject", "jira") // also in the back-off
		if got := r.sessionctl(t, args...); got.status != 0 || !strings.Contains(got.stderr, "served stale") {
			t.Errorf("%s: %v", args, got)
		}
	}
	r.DropSessions()
	r.instead.Store(nil)
	r.ok(t, "refresh", "jira") // but no person
	r.ok(t, "logout", "jira")
	r.fails(t, 7, "not_cached", "raw", "jira", "--cached")
	if n := r.logins(); n != 2 {
		t.Errorf("%d logins", n)
	}
}

// TestSessionsKeepAlive: the session of the example is looked after by an agent of
// which nobody asks anything.
func TestSessionsKeepAlive(t *testing.T) {
	r := newReader(t)
	text := sessionsBlock(t, "Freshness", "toml")
	for _, c := range []struct{ old, new, want string }{{"", "", "check_time"}, {"keep_alive = true", "keep_alive = false", ""}} {
		write(t, r.config, withoutTLS(strings.Replace(text, c.old, c.new, 1), siteURL, r.front+"/jira"))
		a := r.start(t)
		if got := r.run(t, alicePassword+"\n", filepath.Join(bin, "sessionctl"), "login", "jira", "--password-stdin"); got.status != 0 {
			t.Fatalf("%v", got)
		}
		a.stop(t)
		a = r.start(t)
		if out := r.ok(t, "list", "-o", "json"); strings.Contains(out, "check_time") != (c.want != "") || !strings.Contains(out, `"live"`) {
			t.Errorf("%s: %s", c.new, out)
		}
		a.stop(t)
	}
	if n := r.logins(); n != 2 {
		t.Errorf("%d logins", n)
	}
}

// TestSessionsUse: the users of the example, by name and by URL, and the reload
// that the page shows.
func TestSessionsUse(t *testing.T) {
	rig.Require(t, "root")
	f, err := rig.StartForm()
	must(t, err)
	t.Cleanup(f.Stop)
	f.AddUser("ci", "CANARY-ci")
	f.AddUser("alice", "CANARY-alice")
	h := newHome(t, inProcess(t))
	here := []string{"https://wiki.corp.example", f.URL()}
	write(t, h.config, withoutTLS(sessionsBlock(t, "Several users of one site", "toml"), here...))
	h.start(t)
	h.open(t)
	transcripts(t, "Several users of one site")[0].same(t, h, "CANARY-ci")
	if r := h.run(t, "CANARY-alice\n", filepath.Join(bin, "sessionctl"), "login", "wiki", "--credential", "alice", "--password-stdin"); r.status != 0 {
		t.Fatalf("%v", r)
	}
	var page string
	if m := regexp.MustCompile("`sessionctl header (https://[^`]+)`").FindStringSubmatch(sessionsSection(t, "Several users of one site")); m != nil {
		page = strings.NewReplacer(here...).Replace(m[1])
	}
	for _, c := range []struct {
		uid, gid uint32
		want     string
	}{{990, 990, "ci"}, {1000, 1000, "alice"}, {otherUID, 990, "alice"}, {otherUID, otherUID, ""}} {
		for _, target := range []string{"wiki", page} {
			cmd := exec.CommandContext(t.Context(), filepath.Join(bin, "sessionctl"), "raw", target)
			cmd.Env = []string{"SESSIONCTL_SOCKET=" + h.socket}
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: c.uid, Gid: c.gid}}
			cmd.Dir = "/"
			r := finish(t, cmd, "")
			if c.want == "" {
				wantFailure(t, r, 4, "unknown_site")
				continue
			}
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, f.URL()+"/app/whoami", nil)
			must(t, err)
			req.Header.Set("Cookie", strings.TrimSpace(r.stdout))
			resp, err := http.DefaultTransport.RoundTrip(req)
			must(t, err)
			var body bytes.Buffer
			_, err = body.ReadFrom(resp.Body)
			must(t, err)
			resp.Body.Close()
			if r.status != 0 || oneLine(body.String()) != `{"user":"`+c.want+`"}` {
				t.Errorf("uid %d, gid %d: %v: %s", c.uid, c.gid, r, &body)
			}
		}
	}
	if n := f.Counts(); n.Logins != 2 || n.Failures != 0 {
		t.Errorf("%+v", n)
	}

	steps := transcripts(t, "Reload and restart")
	if len(steps) != 2 {
		t.Fatalf("%d reloads", len(steps))
	}
	before := h.ok(t, "list", "-o", "json")
	for i, key := range []string{"recheck", "recheckk"} {
		h.rewrite(t, "[[site.wiki.use]]\nallow      = [\"uid:990\"]", key+" = \"1m\"\n\n[[site.wiki.use]]\nallow      = [\"uid:990\"]")
		steps[i].same(t, h, "", h.config, "/home/build/.config/sessionctl/sessiond.toml")
	}
	if out := h.ok(t, "status"); !strings.Contains(out, "the last reload failed") {
		t.Errorf("%s", out)
	}
	generation := regexp.MustCompile(`"generation": "[^"]+"`)
	if after := h.ok(t, "list", "-o", "json"); !slices.Equal(generation.FindAllString(after, -1), generation.FindAllString(before, -1)) || !strings.Contains(before, "generation") {
		t.Errorf("%s\nafter the reload:\n%s", before, after)
	}
}

// TestSessionsIdP: the provider of the example logs in once for its sites, and ends
// as the page shows.
func TestSessionsIdP(t *testing.T) {
	const section = "Identity providers"
	s, err := rig.StartSSO(rig.SSOOptions{Applications: 2})
	must(t, err)
	t.Cleanup(s.Stop)
	s.AddUser("alice", "CANARY-alice")
	h := newHome(t, inProcess(t))
	write(t, h.config, withoutTLS(sessionsBlock(t, section, "toml"), "https://sso.corp.example", s.Provider.URL(),
		"https://wiki.corp.example", s.Applications[0].URL(), "https://board.corp.example", s.Applications[1].URL()))
	h.start(t)
	count := func(logins, sessions int) {
		t.Helper()
		if n := s.Counts(); n.Logins != logins || n.Sessions != sessions || n.Failures != 0 {
			t.Errorf("%+v; want %d logins, %d sessions", n, logins, sessions)
		}
	}
	if r := h.run(t, "CANARY-alice\n", filepath.Join(bin, "sessionctl"), "login", "wiki", "--password-stdin"); r.status != 0 {
		t.Fatalf("%v", r)
	}
	board := h.ok(t, "raw", "board")
	count(1, 2)
	if out := h.ok(t, "status"); !regexp.MustCompile(`(?m)^IDP .*\nsso `).MatchString(out) {
		t.Errorf("%s", out)
	}
	steps := transcripts(t, section)
	if len(steps) != 2 {
		t.Fatalf("%d commands", len(steps))
	}
	steps[0].same(t, h, "")
	if h.ok(t, "raw", "board") != board {
		t.Error("the logout at one site has ended the other's session")
	}
	h.ok(t, "raw", "wiki")
	count(1, 3)
	steps[1].same(t, h, "")
	h.ok(t, "raw", "wiki")
	h.ok(t, "raw", "board")
	count(2, 5)
}
