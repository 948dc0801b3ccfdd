package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/sessionctl/sessionctl/api"
	pb "github.com/sessionctl/sessionctl/api/sessionctl/v1"
)

// aSession is one that a cookie file can hold.
func aSession(value string) *pb.Session {
	return &pb.Session{
		Site: "app", User: "build" + evil, Generation: "of " + value, Url: "https://app.corp.example/x",
		Headers: []*pb.Header{{Name: "Cookie", Value: []byte("s=" + value), Secret: true}},
		Cookies: []*pb.Cookie{{Name: []byte("s"), Value: []byte(value), Domain: "app.corp.example", Path: "/x/", Secure: true, HttpOnly: true, HostOnly: true}},
	}
}

// sessionsAgent gives app a session; of others it says that they are latched, or what
// their name is.
type sessionsAgent struct {
	pb.UnimplementedSessionServiceServer
}

func (sessionsAgent) GetSession(_ context.Context, r *pb.GetSessionRequest) (*pb.GetSessionResponse, error) {
	code, grpcCode := api.Latched, codes.FailedPrecondition
	switch r.GetSite() {
	case "app":
		return &pb.GetSessionResponse{Session: aSession("CANARY-1")}, nil
	case "tab":
		return &pb.GetSessionResponse{Session: aSession("CANARY\t1")}, nil
	case "token":
		s := aSession("")
		s.Cookies, s.Headers = nil, []*pb.Header{{Name: "Authorization", Value: []byte("Bearer CANARY-1"), Secret: true}}
		return &pb.GetSessionResponse{Session: s}, nil
	case "busy":
		code, grpcCode = api.Quota, codes.ResourceExhausted
	}
	st, err := status.New(grpcCode, "refused"+evil).WithDetails(&errdetails.ErrorInfo{
		Domain: api.ErrorDomain, Reason: code.Reason(), Metadata: map[string]string{"remedy": "look" + evil}})
	if err != nil {
		return nil, err
	}
	return nil, st.Err()
}

func serveSessions(t *testing.T) {
	t.Helper()
	l, socket := listen(t)
	serveOn(t, l, func(g *grpc.Server) { pb.RegisterSessionServiceServer(g, sessionsAgent{}) })
	t.Setenv(api.SocketVariable, socket)
}

// jarText is what a file with the session has, but for the expiry.
func jarText(site, value string, end time.Time) string {
	return fmt.Sprintf("# Netscape HTTP Cookie File\n# session of %s, written by sessionctl\napp.corp.example\tFALSE\t/x\tTRUE\t%d\ts\t%s\n", site, end.Unix(), value)
}

// jarIn fails unless the file holds that session, for its owner alone, and returns
// when its cookie ends.
func jarIn(t *testing.T, file, value string) (end time.Time) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Split(string(b), "\t")
	if len(f) != 7 {
		t.Fatalf("%q", b)
	}
	unix, err := strconv.ParseInt(f[4], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	end = time.Unix(unix, 0)
	onlyOne(t, file, jarText("app", value, end))
	return end
}

// TestJar: wherever it is written to, only its owner can read it, and it is nowhere
// else.
func TestJar(t *testing.T) {
	serveSessions(t)
	run := t.TempDir()
	t.Setenv("XDG_RUNTIME_DIR", run)
	own := filepath.Join(run, "sessionctl", "jars", "app.txt")
	if path, err := jarPath("app"); err != nil || path != own {
		t.Errorf("%q, %v", path, err)
	}
	named := filepath.Join(t.TempDir(), "cookies")
	for _, c := range []struct {
		file string
		args []string
		mode os.FileMode // of a file that is there; 0: none
	}{{own, []string{"app"}, 0}, {named, []string{"app", named}, 0}, {named, []string{"app", named}, 0o644}, {own, []string{"app"}, 0o400}} {
		if c.mode != 0 {
			if err := os.WriteFile(c.file, []byte("an old one"), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(c.file, c.mode); err != nil {
				t.Fatal(err)
			}
		}
		if out, errs, exit := call(append([]string{"jar"}, c.args...)...); out != "" || errs != "" || exit != 0 { // cron would mail it
			t.Errorf("%q: %d %q %q", c.args, exit, out, errs)
		}
		if left := time.Until(jarIn(t, c.file, "CANARY-1")); left > softLife || left < softLife-time.Minute {
			t.Errorf("it ends in %v", left)
		}
		for dir := filepath.Dir(own); dir != run; dir = filepath.Dir(dir) {
			if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
				t.Errorf("%s: %v, %v", dir, info, err)
			}
		}
	}
	if _, errs, exit := call("jar", "app", named, "--httponly"); exit != 0 {
		t.Errorf("%d %s", exit, errs)
	}
	if b, err := os.ReadFile(named); err != nil || !strings.Contains(string(b), "\n#HttpOnly_app.corp.example\tFALSE\t") {
		t.Errorf("%q, %v", b, err)
	}
}

// TestJarPath: without a directory for it, a file has to be named.
func TestJarPath(t *testing.T) {
	fallback := "/run/user/" + strconv.Itoa(os.Geteuid())
	for _, run := range []string{"", "relative"} {
		t.Setenv("XDG_RUNTIME_DIR", run)
		path, err := jarPath("app")
		if _, missing := os.Stat(fallback); missing != nil {
			if api.CodeOf(err) != api.InvalidRequest || !strings.Contains(err.Error(), fallback) {
				t.Errorf("%q, %v", path, err)
			}
		} else if err != nil || path != fallback+"/sessionctl/jars/app.txt" {
			t.Errorf("%q, %v", path, err)
		}
	}
}

// TestJarRefusals: what is wrong with the file is said, and what is there stays.
func TestJarRefusals(t *testing.T) {
	serveSessions(t)
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	open := t.TempDir()
	must(os.Chmod(open, 0o775))
	must(os.Mkdir(in("directory"), 0o700))
	must(syscall.Mkfifo(in("pipe"), 0o600))
	must(os.WriteFile(in("file"), []byte("old"), 0o600))
	must(os.Symlink(in("file"), in("link")))
	must(os.Symlink("/dev/stdout", in("stdout"))) // itself is no place to make mistakes
	for _, c := range []struct {
		args []string
		said string
		exit int
	}{
		{nil, "one SITE is needed", api.ExitUsage},
		{[]string{"app", "a", "b"}, "at most one FILE", api.ExitUsage},
		{[]string{"app", ""}, "empty", api.ExitUsage},
		{[]string{"../app"}, "site", api.ExitUsage},
		{[]string{"https://app.corp.example/"}, "site", api.ExitUsage},
		{[]string{"app", in("directory")}, "no ordinary file", api.ExitUsage},
		{[]string{"app", in("pipe")}, "no ordinary file", api.ExitUsage},
		{[]string{"app", in("link")}, "no ordinary file", api.ExitUsage},
		{[]string{"app", in("stdout")}, "no ordinary file", api.ExitUsage},
		{[]string{"app", filepath.Join(open, "x")}, "others can write in " + open, api.ExitUsage},
		{[]string{"app", "/tmp/sessionctl-no-such.txt"}, "others can write in /tmp", api.ExitUsage},
		{[]string{"app", in("none/x")}, in("none/x") + " cannot be written: no such file or directory", api.ExitOther},
		{[]string{"app", in("none/x"), "--keep"}, "no such file or directory (unknown)", api.ExitOther},
		{[]string{"tab", in("file")}, "not printable ASCII, which not every reader of a cookie file takes as it is (unprintable)", api.ExitOther},
		{[]string{"token", in("file")}, "(per_request_only)", api.ExitPerson},
		{[]string{"other", in("file"), "--keep"}, "refused?[2J?? (latched)", api.ExitPerson},
		{[]string{"busy", in("file")}, "refused?[2J?? (quota)", api.ExitLater},
		{[]string{"app", in("file"), "--socket", in("none.sock")}, "(no_agent)", api.ExitNoAgent},
		{[]string{"app", in("file"), "--keep=CANARY-1"}, "--keep", api.ExitUsage},
	} {
		out, errs, exit := call(append([]string{"jar"}, c.args...)...)
		if out != "" || exit != c.exit || !strings.Contains(errs, c.said) || !strings.Contains(errs, "\n  next: ") || strings.ContainsAny(errs, "\x1b\u202e") || strings.Contains(errs, "CANARY") || strings.Contains(errs, "removed") {
			t.Errorf("%q: %d %q %q", c.args, exit, out, errs)
		}
	}
	if b, err := os.ReadFile(in("file")); err != nil || string(b) != "old" {
		t.Errorf("%q, %v", b, err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 5 {
		t.Errorf("%v, %v", entries, err)
	}
	if os.Geteuid() == 0 {
		must(os.Chown(dir, 4242, 4242))
		if _, errs, exit := call("jar", "app", in("file")); exit != api.ExitUsage || !strings.Contains(errs, dir+" belongs to uid 4242") {
			t.Errorf("%d %q", exit, errs)
		}
	}
}

// TestOwnDirectory: nobody else can put another directory in the place of the file's.
func TestOwnDirectory(t *testing.T) {
	shared := filepath.Join(t.TempDir(), "shared")
	below := filepath.Join(shared, "jars")
	link := filepath.Join(t.TempDir(), "link")
	if err := errors.Join(os.MkdirAll(below, 0o700), os.Symlink(below, link)); err != nil {
		t.Fatal(err)
	}
	for mode, refused := range map[fs.FileMode]bool{0o700: false, 0o755: false, 0o777: true, 0o775: true, 0o777 | fs.ModeSticky: false} {
		if err := os.Chmod(shared, mode); err != nil {
			t.Fatal(err)
		}
		for _, dir := range []string{below, link} {
			if err := ownDirectory(dir); (err != nil) != refused || refused && !strings.Contains(err.Error(), "others can write in "+shared) {
				t.Errorf("%s below %v: %v", dir, mode, err)
			}
		}
	}
	if os.Geteuid() == 0 {
		if err := errors.Join(os.Chmod(shared, 0o755), os.Chown(shared, 4242, 4242)); err != nil {
			t.Fatal(err)
		}
		if err := ownDirectory(below); err == nil || !strings.Contains(err.Error(), shared+" belongs to uid 4242") {
			t.Errorf("below somebody else's: %v", err)
		}
	}
}

// TestJarOfADeadSession: a file that this program has written for a site goes when the
// agent has no session of it; nobody else's does, nor when the agent could not say.
func TestJarOfADeadSession(t *testing.T) {
	serveSessions(t)
	file := filepath.Join(t.TempDir(), "cookies")
	for _, c := range []struct {
		site, of string
		goes     bool
	}{{"other", "other", true}, {"tab", "tab", true}, {"token", "token", true}, {"other", "another", false}, {"busy", "busy", false}, {"other", "", false}} {
		text := jarText(c.of, "CANARY-old", time.Now())
		if c.of == "" {
			text = "# Netscape HTTP Cookie File\n"
		}
		must(os.WriteFile(file, []byte(text), 0o600))
		_, errs, exit := call("jar", c.site, file)
		_, err := os.Lstat(file)
		if gone := errors.Is(err, os.ErrNotExist); exit == 0 || gone != c.goes || strings.Contains(errs, file+" is removed: there is no session for it\n") != c.goes || strings.Contains(errs, "CANARY") {
			t.Errorf("%s with a file of %s: %d, gone: %t, %s", c.site, c.of, exit, gone, errs)
		}
	}
}

// TestJarDialect: what some reader would pass over, or send as something else, is
// refused; what all take is not.
func TestJarDialect(t *testing.T) {
	type change func(*pb.Session, *pb.Cookie)
	value := func(v string) change {
		return func(_ *pb.Session, c *pb.Cookie) { c.Value = []byte(v) }
	}
	many := func(n int, v string) change {
		return func(s *pb.Session, c *pb.Cookie) {
			s.Cookies = nil
			for i := range n {
				s.Cookies = append(s.Cookies, &pb.Cookie{Name: fmt.Appendf(nil, "c%02d", i), Value: []byte(v), Domain: "app.corp.example", Path: "/"})
			}
		}
	}
	for name, c := range map[string]struct {
		change
		line string // "": it is refused
	}{
		"as it is":          {value("v"), "app.corp.example\tFALSE\t/x\tTRUE\t7\ts\tv\n"},
		"empty value":       {value(""), "app.corp.example\tFALSE\t/x\tTRUE\t7\ts\t\n"},
		"quotes and such":   {value(`it's "a\b" $(x), y = #`), "\ts\tit's \"a\\b\" $(x), y = #\n"},
		"domain":            {func(_ *pb.Session, c *pb.Cookie) { c.HostOnly, c.Domain = false, "Corp.Example" }, "app.corp.example\tFALSE\t/x\t"},
		"root":              {func(_ *pb.Session, c *pb.Cookie) { c.Path = "/" }, "\t/\tTRUE\t7"},
		"no path":           {func(_ *pb.Session, c *pb.Cookie) { c.Path = "" }, "\t/\tTRUE\t7"},
		"not secure":        {func(_ *pb.Session, c *pb.Cookie) { c.Secure = false }, "\tTRUE\t7\t"},
		"http":              {func(s *pb.Session, c *pb.Cookie) { c.Secure, s.Url = false, "http://App.corp.example:8080/x" }, "app.corp.example\tFALSE\t/x\tFALSE\t7\t"},
		"end":               {func(_ *pb.Session, c *pb.Cookie) { c.ExpireTime = timestamppb.New(time.Unix(9, 0)) }, "\t9\ts"},
		"longest":           {value(strings.Repeat("v", maxJarCookie-1)), "vvv\n"},
		"fifty":             {many(50, "v"), "\tc49\tv\n"},
		"tab":               {value("a\tb"), ""},
		"line feed":         {value("a\nb"), ""},
		"carriage return":   {value("a\rb"), ""},
		"NUL":               {value("a\x00b"), ""},
		"DEL":               {value("a\x7fb"), ""},
		"UTF-8":             {value("é"), ""},
		"Latin-1":           {value("\xe9"), ""},
		"space before":      {value(" v"), ""},
		"space after":       {value("v "), ""},
		"no name":           {func(_ *pb.Session, c *pb.Cookie) { c.Name = nil }, ""},
		"line feed in path": {func(_ *pb.Session, c *pb.Cookie) { c.Path = "/\n" }, ""},
		"too long":          {value(strings.Repeat("v", maxJarCookie)), ""},
		"too long a line":   {func(_ *pb.Session, c *pb.Cookie) { c.Path = "/" + strings.Repeat("p", 5000) }, ""},
		"too many":          {many(51, "v"), ""},
		"too much":          {many(3, strings.Repeat("v", 4000)), ""},
		"__Host- by http":   {func(s *pb.Session, c *pb.Cookie) { c.Name, c.Secure, s.Url = []byte("__Host-s"), false, "http://app/" }, ""},
		"__Host- by https":  {func(_ *pb.Session, c *pb.Cookie) { c.Name = []byte("__Host-s") }, "\t__Host-s\t"},
		"__Secure- by http": {func(s *pb.Session, c *pb.Cookie) {
			c.Name, c.Secure, s.Url = []byte("__Secure-s"), false, "http://app/"
		}, ""},
		"tab in the host":    {func(s *pb.Session, _ *pb.Cookie) { s.Url = "https://app%09x/" }, ""},
		"no host":            {func(s *pb.Session, _ *pb.Cookie) { s.Url = "" }, ""},
		"no cookie, at last": {func(s *pb.Session, _ *pb.Cookie) { s.Cookies, s.Headers = nil, nil }, ""},
	} {
		s := aSession("CANARY-1")
		c.change(s, s.Cookies[0])
		var b bytes.Buffer
		err := writeJar(&b, s, time.Unix(7, 0), false, "")
		switch code := api.CodeOf(err); {
		case c.line == "" && code != api.Unprintable && code != api.NoSessionCookie && !(strings.Contains(name, "host") && code == api.Unknown):
			t.Errorf("%s: %v", name, err)
		case c.line != "" && (err != nil || !strings.HasPrefix(b.String(), jarHead) || !strings.Contains(b.String(), c.line)):
			t.Errorf("%s: %v, %q", name, err, b.String())
		}
		if err != nil && (strings.Contains(err.Error(), "CANARY") || api.AsError(err).Remedy == "") {
			t.Errorf("%s: %+v", name, err)
		}
	}
}

// FuzzJar: whatever a cookie has, a file that is written has one line for it, of which
// every reader sees the same seven fields.
func FuzzJar(f *testing.F) {
	f.Add([]byte("s"), []byte("v"), "https://app.corp.example/", "/", true)
	f.Add([]byte("s"), []byte("v"), "http://#", "/", false)
	f.Add([]byte("a\tb"), []byte("c\nd"), "http://x%09/", "x", false)
	f.Fuzz(func(t *testing.T, name, value []byte, url, path string, secure bool) {
		s := aSession("")
		s.Headers[0].Value = []byte("x")
		s.Url = url
		s.Cookies[0] = &pb.Cookie{Name: name, Value: value, Domain: "corp.example", Path: path, Secure: secure}
		var b bytes.Buffer
		if writeJar(&b, s, time.Unix(7, 0), false, "") != nil {
			return
		}
		line, ok := strings.CutPrefix(b.String(), jarHead)
		field := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		if !ok || strings.Count(line, "\n") != 1 || len(field) != 7 || field[5] != string(name) || field[6] != string(value) || field[0] == "" || strings.HasPrefix(field[0], "#") {
			t.Errorf("%q", b.String())
		}
	})
}

// followed is a keeper in a bubble, whose agent says what the test tells it to.
type followed struct {
	*jarKeeper
	t    *testing.T
	out  *lockedText
	says chan any                  // a *pb.Session or an error
	ways atomic.Int32              // calls that were made
	down atomic.Pointer[api.Error] // of a call that cannot be made
}

func (f *followed) Recv() (*pb.WatchSessionResponse, error) {
	switch v := (<-f.says).(type) {
	case *pb.Session:
		return &pb.WatchSessionResponse{Session: v}, nil
	case error:
		return nil, v
	}
	return nil, io.EOF
}

func newFollowed(t *testing.T) (f *followed, stop func()) {
	f = &followed{t: t, out: new(lockedText), says: make(chan any)}
	f.jarKeeper = &jarKeeper{site: "app", file: filepath.Join(t.TempDir(), "cookies"), life: keptLife, stderr: f.out, say: true,
		watch: func(context.Context) (sessions, error) {
			f.ways.Add(1)
			if down := f.down.Load(); down != nil {
				return nil, down
			}
			return f, nil
		}}
	if err := f.take(aSession("CANARY-1")); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- f.keep(ctx) }()
	return f, func() {
		t.Helper()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("keep ended with %v", err)
		}
		close(f.says) // which a call that has ended no longer reads
		synctest.Wait()
	}
}

// pass lets time pass.
func (f *followed) pass(d time.Duration) {
	ctx, cancel := context.WithTimeout(f.t.Context(), d)
	defer cancel()
	<-ctx.Done()
	synctest.Wait()
}

// tell makes the agent say something.
// lockedText is what a keeper says while the test reads.
type lockedText struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *lockedText) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *lockedText) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func (l *lockedText) Reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text.Reset()
}

func (f *followed) tell(v any) {
	f.says <- v
	synctest.Wait()
}

// wants fails unless the file has that session, "" for none, and this was said.
func (f *followed) wants(when, value string, said ...string) {
	f.t.Helper()
	if b, err := os.ReadFile(f.file); value == "" && !errors.Is(err, os.ErrNotExist) || value != "" && !strings.HasSuffix(string(b), "\ts\t"+value+"\n") {
		f.t.Errorf("%s: the file has %q, %v", when, b, err)
	}
	var lines []string
	for line := range strings.Lines(f.out.String()) {
		lines = append(lines, strings.TrimSuffix(line, "\n"))
	}
	f.out.Reset()
	if strings.Join(lines, "|") != strings.Join(said, "|") {
		f.t.Errorf("%s: said %q, want %q", when, lines, said)
	}
}

// TestJarKeep: the file follows the agent's word.
func TestJarKeep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, stop := newFollowed(t)
		in := "sessionctl: app: the session of build?[2J?? is in " + f.file
		removed := "sessionctl: app: " + f.file + " is removed: there is no session for it"
		f.wants("at first", "CANARY-1", in)
		f.tell(aSession("CANARY-1"))
		f.wants("the same", "CANARY-1")
		f.tell(aSession("CANARY-2"))
		f.wants("another", "CANARY-2", in)
		renewed := aSession("CANARY-3")
		renewed.Generation = "of CANARY-2"
		f.tell(renewed)
		f.wants("a cookie that was renewed", "CANARY-3")

		// It ends, and is latched.
		latched := &api.Error{Code: api.Latched, Detail: "an earlier refusal stands", Remedy: "sessionctl login app"}
		said := []string{"sessionctl: app: an earlier refusal stands (latched)", "  next: sessionctl login app", removed}
		f.tell(latched)
		f.wants("latched", "", said...)
		for range 10 {
			f.tell(latched)
		}
		f.wants("still latched", "")
		f.tell(aSession("CANARY-4"))
		f.wants("logged in again", "CANARY-4", in)
		f.tell(latched)
		f.wants("latched again", "", said...)
		f.tell(aSession("CANARY-5"))
		f.wants("and back", "CANARY-5", in)

		// What this dialect cannot hold is no session for it.
		f.tell(aSession("CANARY\té"))
		f.wants("unprintable", "", "sessionctl: app: a cookie holds a character that is not printable ASCII, which not every reader of a cookie file takes as it is (unprintable)",
			"  next: take another form: sessionctl header app, or sessionctl get app -o curl", removed)
		f.pass(10 * keepLook)
		f.wants("and stays so", "")
		f.tell(aSession("CANARY-6"))
		f.wants("mended", "CANARY-6", in)
		stop()
		f.wants("at the end", "CANARY-6")
	})
}

// TestJarKeepOutage: an agent that is away costs nothing, and is asked now and then;
// the cookies end by themselves if it stays away.
func TestJarKeepOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, stop := newFollowed(t)
		f.out.Reset()
		f.tell(aSession("CANARY-1"))
		f.tell(io.EOF)
		f.wants("its end", "CANARY-1", "sessionctl: app: the agent ended the call (no_agent)", "  next: "+api.StartHint)
		f.down.Store(&api.Error{Code: api.NoAgent, Detail: "no agent", Remedy: "start it"})
		f.ways.Store(0)
		f.pass(keptLife)
		f.wants("an hour later", "CANARY-1")
		if end := jarIn(t, f.file, "CANARY-1"); end.After(time.Now()) {
			t.Errorf("the cookie is good until %v, it is %v", end, time.Now())
		}
		if n := f.ways.Load(); n < 100 || n > 260 {
			t.Errorf("%d calls in an hour", n)
		}
		f.down.Store(nil)
		f.pass(lastRetry)
		f.tell(aSession("CANARY-1"))
		f.wants("it is back", "CANARY-1")
		if end := jarIn(t, f.file, "CANARY-1"); time.Until(end) < keptLife-time.Second {
			t.Errorf("the cookie ends in %v", time.Until(end))
		}
		// The next outage is news.
		f.tell(&api.Error{Code: api.NoAgent, Detail: "no agent", Remedy: "start it"})
		f.wants("away again", "CANARY-1", "sessionctl: app: no agent (no_agent)", "  next: start it")
		stop()
	})
}

// TestJarKeepFresh: what the file has is good for half an hour at any time, though the
// agent has no news; a file that somebody removes, and one that could not be written,
// come back.
func TestJarKeepFresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, stop := newFollowed(t)
		f.tell(aSession("CANARY-1"))
		f.out.Reset()
		for range 24 * 12 {
			f.pass(5 * time.Minute)
			if left := time.Until(jarIn(t, f.file, "CANARY-1")); left < keptLife/2-keepLook {
				t.Fatalf("%v left", left)
			}
		}
		if n := f.ways.Load(); n != 1 {
			t.Errorf("%d calls", n)
		}
		must(os.Remove(f.file))
		f.pass(keepLook)
		f.wants("removed by somebody", "CANARY-1")

		must(os.Remove(f.file))
		must(os.Mkdir(f.file, 0o700))
		f.pass(keptLife)
		if said := f.out.String(); strings.Count(said, "\n") != 2 || !strings.Contains(said, f.file+" cannot be written: ") || strings.Contains(said, "CANARY") {
			t.Errorf("said %q", said)
		}
		f.out.Reset()
		must(os.Remove(f.file))
		f.pass(keepLook)
		f.wants("out of the way", "CANARY-1")

		must(os.Chmod(filepath.Dir(f.file), 0o777))
		f.tell(aSession("CANARY-2"))
		f.wants("a directory for all", "CANARY-1", "sessionctl: app: others can write in "+filepath.Dir(f.file)+": name a file in a directory of your own, or: chmod go-w "+filepath.Dir(f.file)+" (invalid_request)", "  next: sessionctl help")
		must(os.Chmod(filepath.Dir(f.file), 0o700))
		f.pass(keepLook)
		f.wants("a directory of one's own", "CANARY-2", "sessionctl: app: the session of build?[2J?? is in "+f.file)
		stop()
	})
}

// TestJarHelpAndCompletion: a site, then a file.
func TestJarHelpAndCompletion(t *testing.T) {
	if out, _, exit := call("help", "jar"); exit != 0 || !strings.Contains(out, "jar SITE [FILE]") || !strings.Contains(out, "--keep ") || !strings.Contains(out, "--httponly ") || !strings.Contains(out, "status 0") {
		t.Errorf("%d %s", exit, out)
	}
	serve(t)
	for _, c := range []struct {
		args []string
		want string
	}{{[]string{""}, "app\t"}, {[]string{"app", ""}, ":0\n"}, {[]string{"app", "x", ""}, ":4\n"}, {[]string{"--k"}, "--keep\t"}} {
		if out, _, exit := call(append([]string{"__complete", "jar"}, c.args...)...); exit != 0 || !strings.HasPrefix(out, c.want) {
			t.Errorf("%q: %d %q", c.args, exit, out)
		}
	}
}
