package main

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"net"
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

// aCache is what the tests take for a ticket cache.
const aCache = cacheVersion + "CANARY-cache"

// tickets is the TicketService of an agent that exports aCache to build, and to
// others what confused says.
type tickets struct {
	pb.UnimplementedTicketServiceServer
	asked chan string
}

// confused are answers with which programs could do nothing, by what is said of
// them.
var confused = map[string]func(*pb.ExportCacheResponse){
	"no ticket cache":                      func(r *pb.ExportCacheResponse) { r.Cache = nil },
	"no ticket cache, but bytes":           func(r *pb.ExportCacheResponse) { r.Cache = []byte("CANARY-bytes") },
	"a ticket cache of 3145728 bytes":      func(r *pb.ExportCacheResponse) { r.Cache = append([]byte(aCache), make([]byte, 3<<20-len(aCache))...) },
	"a ticket without an end":              func(r *pb.ExportCacheResponse) { r.EndTime = nil },
	"a ticket without an end, but nanos":   func(r *pb.ExportCacheResponse) { r.EndTime.Nanos = -1 },
	"a ticket without an end, but in 9999": func(r *pb.ExportCacheResponse) { r.EndTime = year9999 },
	"a ticket that has ended":              func(r *pb.ExportCacheResponse) { r.EndTime = timestamppb.New(time.Now().Add(-time.Second)) },
}

var year9999 = timestamppb.New(time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC))

func (s tickets) ExportCache(_ context.Context, r *pb.ExportCacheRequest) (*pb.ExportCacheResponse, error) {
	s.asked <- r.GetPrincipal()
	end := time.Now().Add(10 * time.Hour)
	resp := &pb.ExportCacheResponse{Cache: []byte(aCache), Principal: "build@CORP.EXAMPLE" + evil,
		EndTime: timestamppb.New(end), RefreshTime: timestamppb.New(end.Add(-time.Hour))}
	confuse := confused[r.GetPrincipal()]
	switch {
	case r.GetPrincipal() == "flood":
		resp.Cache = append(resp.GetCache(), make([]byte, 8<<20)...)
	case confuse != nil:
		confuse(resp)
	case r.GetPrincipal() != "build":
		st, err := status.New(codes.Unavailable, "no KDC answers"+evil).WithDetails(&errdetails.ErrorInfo{
			Domain: api.ErrorDomain, Reason: api.KDCUnreachable.Reason(), Metadata: map[string]string{"remedy": "look" + evil}})
		if err != nil {
			return nil, err
		}
		return nil, st.Err()
	}
	return resp, nil
}

// exporting serves an agent that exports, and returns whom it was asked for.
func exporting(t *testing.T) (asked chan string) {
	t.Helper()
	l, socket := listen(t)
	s := tickets{asked: make(chan string, 1)}
	serveOn(t, l, func(g *grpc.Server) { pb.RegisterTicketServiceServer(g, s) })
	t.Setenv(api.SocketVariable, socket)
	return s.asked
}

func serveOn(t *testing.T, l net.Listener, register func(*grpc.Server)) {
	t.Helper()
	g := grpc.NewServer()
	register(g)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := g.Serve(l); err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(func() {
		g.Stop()
		<-done
	})
}

// onlyOne fails unless the directory holds the file alone, with that content and
// for its owner only.
func onlyOne(t *testing.T, file, content string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(file))
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 1 {
		t.Errorf("left behind: %v", entries)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Lstat(file)
	if err != nil {
		t.Fatal(err)
	}
	if st := info.Sys().(*syscall.Stat_t); string(b) != content || info.Mode() != 0o600 || int(st.Uid) != os.Geteuid() {
		t.Errorf("%q, %v, of uid %d", b, info.Mode(), st.Uid)
	}
}

// TestCCache: wherever it is written to, only its owner can read it, and it is
// nowhere else.
func TestCCache(t *testing.T) {
	asked := exporting(t)
	file := filepath.Join(t.TempDir(), "cc")
	for _, c := range []struct {
		name string
		env  string
		args []string
		mode os.FileMode // of a file that is there; 0: none
	}{
		{"named", "/nonexistent/cc", []string{"build", file}, 0},
		{"named with its type", "", []string{"build", "FILE:" + file}, 0},
		{"environment", file, []string{"build"}, 0},
		{"environment with its type", "FILE:" + file, []string{"build"}, 0},
		{"over one that all can read", "", []string{"build", file}, 0o644},
		{"over one that nobody can read", "", []string{"build", file}, 0o000},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Setenv("KRB5CCNAME", c.env)
			tmp, untouched := t.TempDir(), time.Unix(1e9, 0)
			if err := os.Chtimes(tmp, untouched, untouched); err != nil {
				t.Fatal(err)
			}
			t.Setenv("TMPDIR", tmp)
			os.Remove(file)
			if c.mode != 0 || strings.HasPrefix(c.name, "over") {
				if err := os.WriteFile(file, []byte("an old and much longer one"), 0o600); err != nil {
					t.Fatal(err)
				}
				if err := os.Chmod(file, c.mode); err != nil {
					t.Fatal(err)
				}
			}
			out, errs, exit := call(append([]string{"ccache"}, c.args...)...)
			if out != "" || exit != 0 || errs != "" { // cron would mail it
				t.Errorf("%d %q %q", exit, out, errs)
			}
			if p := <-asked; p != "build" {
				t.Errorf("asked for %q", p)
			}
			onlyOne(t, file, aCache)
			if info, err := os.Stat(tmp); err != nil || !info.ModTime().Equal(untouched) {
				t.Errorf("the ticket was in the directory for temporary files: %v, %v", info.ModTime(), err)
			}
		})
	}
}

// TestCCacheRefusals: what cannot be written is said before a ticket is asked
// for, or leaves what was there.
func TestCCacheRefusals(t *testing.T) {
	asked := exporting(t)
	t.Setenv("KRB5CCNAME", "")
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	if err := os.Mkdir(in("directory"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(in("pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(in("file"), []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(in("file"), in("link")); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args  []string
		said  string
		exit  int
		asked bool
	}{
		{nil, "one PRINCIPAL is needed", api.ExitUsage, false},
		{[]string{"build", "a", "b"}, "at most one FILE", api.ExitUsage, false},
		{[]string{"build", ""}, "empty", api.ExitUsage, false},
		{[]string{"build", "FILE:"}, "empty", api.ExitUsage, false},
		{[]string{"build", "DIR:" + dir}, "type DIR", api.ExitUsage, false},
		{[]string{"build", "KEYRING:persistent:0"}, "type KEYRING", api.ExitUsage, false},
		{[]string{"build", "KCM:"}, "type KCM", api.ExitUsage, false},
		{[]string{"build", in("directory")}, "no ordinary file", api.ExitUsage, false},
		{[]string{"build", in("pipe")}, "no ordinary file", api.ExitUsage, false},
		{[]string{"build", in("link")}, "no ordinary file", api.ExitUsage, false},
		{[]string{"build", "/dev/null"}, "no ordinary file", api.ExitUsage, false},
		{[]string{"build", in("none/cc")}, in("none/cc") + " cannot be written: no such file or directory", api.ExitPerson, true},
		{[]string{"build", in("file/cc")}, in("file/cc") + " cannot be written: not a directory", api.ExitPerson, true},
		{[]string{"build", "--keep", in("none/cc")}, "no such file or directory (ccache_unusable)", api.ExitPerson, true},
		{[]string{"other", in("file")}, "no KDC answers?[2J?? (kdc_unreachable)", api.ExitLater, true},
		{[]string{"other", in("file"), "--keep"}, "no KDC answers?[2J?? (kdc_unreachable)", api.ExitLater, true},
		{[]string{"flood", in("file")}, "ResourceExhausted", api.ExitOther, true},
		{[]string{"build", in("file"), "--socket", in("none.sock")}, "no_agent", api.ExitNoAgent, false},
		{[]string{"build", in("file"), "--keep=CANARY-1"}, "--keep", api.ExitUsage, false},
	} {
		out, errs, exit := call(append([]string{"ccache"}, c.args...)...)
		if out != "" || exit != c.exit || !strings.Contains(errs, c.said) || !strings.Contains(errs, "\n  next: ") || strings.ContainsAny(errs, "\x1b\u202e") || strings.Contains(errs, "CANARY") {
			t.Errorf("%q: %d %q %q", c.args, exit, out, errs)
		}
		select {
		case p := <-asked:
			if !c.asked {
				t.Errorf("%q: asked for %s", c.args, p)
			}
		default:
			if c.asked {
				t.Errorf("%q: nothing was asked for", c.args)
			}
		}
	}
	after, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(in("file")); err != nil || string(b) != "old" || fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("%q, %v; %v, before %v", b, err, after, before)
	}
	if info, err := os.Lstat("/dev/null"); err != nil || info.Mode().IsRegular() {
		t.Errorf("/dev/null is now %v, %v", info.Mode(), err)
	}
}

// TestCCacheConfused: an answer without a ticket that lives never gets into the
// file.
func TestCCacheConfused(t *testing.T) {
	asked := exporting(t)
	file := filepath.Join(t.TempDir(), "cc")
	if err := os.WriteFile(file, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name := range confused {
		what, _, _ := strings.Cut(name, ",")
		want := "sessionctl: " + name + ": the agent answered with " + what + " (unknown)\n  next: see that it and sessionctl are of one release: sessionctl version\n"
		if out, errs, exit := call("ccache", name, file); out != "" || exit != api.ExitOther || errs != want {
			t.Errorf("%d %q %q, want %q", exit, out, errs, want)
		}
		<-asked
		onlyOne(t, file, "old")
	}
}

// TestCCacheSubject: messages begin with the principal as it was typed, whatever
// it is, but for what terminals do not take.
func TestCCacheSubject(t *testing.T) {
	asked := exporting(t)
	file := filepath.Join(t.TempDir(), "cc")
	const said = "no KDC answers?[2J?? (kdc_unreachable)\n  next: look?[2J??\n"
	for principal, want := range map[string]string{
		"other":                        "other: ",
		"other@CORP.EXAMPLE":           "other@CORP.EXAMPLE: ",
		"HTTP/a.corp.example":          "HTTP/a.corp.example: ",
		"https://u:p@a/":               "https://u:p@a/: ",
		"élan" + evil:                  "élan?[2J??: ",
		strings.Repeat("é", 200):       strings.Repeat("é", 200) + ": ",
		strings.Repeat("é", 201) + "x": strings.Repeat("é", 200) + "…: ",
		"":                             "",
	} {
		if _, errs, _ := call("ccache", principal, file); errs != "sessionctl: "+want+said {
			t.Errorf("%q: %q", principal, errs)
		}
		<-asked
	}
}

// TestCacheFile: where MIT's programs look (krb5_cc_default_name).
func TestCacheFile(t *testing.T) {
	cwd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	usual := "/tmp/krb5cc_" + strconv.Itoa(os.Getuid())
	if info, err := os.Lstat(usual); err == nil && !info.Mode().IsRegular() {
		usual = "" // on a strange machine, which the refusal is right about
	}
	for _, c := range []struct {
		env   string
		named []string
		want  string // empty: refused
	}{
		{"", nil, usual},
		{"/x/cc", nil, "/x/cc"},
		{"FILE:/x/cc", nil, "/x/cc"},
		{"/x/cc", []string{"/y/cc"}, "/y/cc"},
		{"DIR:/x", []string{"FILE:/y/cc"}, "/y/cc"},
		{"/x/cc", []string{""}, ""},
		{"FILE:", nil, ""},
		{"DIR:/x", nil, ""},
		{"KCM:", nil, ""},
		{"", []string{"cc"}, filepath.Join(cwd, "cc")},
		{"", []string{"FILE:a:b"}, filepath.Join(cwd, "a:b")},
		{"", []string{"/x/A:b"}, "/x/A:b"},
		{"", []string{"MEMORY:x"}, ""},
	} {
		t.Setenv("KRB5CCNAME", c.env)
		got, err := cacheFile(c.named)
		if got != c.want || (err == nil) != (c.want != "") || err != nil && api.CodeOf(err) != api.InvalidRequest {
			t.Errorf("KRB5CCNAME=%q, %q: %q, %v", c.env, c.named, got, err)
		}
	}
}

// TestCCacheWhole: who reads it while it is written anew finds one cache or the
// next, always whole.
func TestCCacheWhole(t *testing.T) {
	file := filepath.Join(t.TempDir(), "cc")
	cache := func(n int) []byte { return bytes.Repeat([]byte{byte(n)}, 64<<10) }
	if err := replace(file, cache(0)); err != nil {
		t.Fatal(err)
	}
	old, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	var reader sync.WaitGroup
	end := make(chan struct{})
	reads := 0
	reader.Go(func() {
		for {
			select {
			case <-end:
				return
			default:
			}
			b, err := os.ReadFile(file)
			if err != nil || len(b) != 64<<10 || !bytes.Equal(b, cache(int(b[0]))) {
				t.Errorf("read %d bytes, %v", len(b), err)
				return
			}
			reads++
		}
	})
	for n := range 100 {
		if err := replace(file, cache(n)); err != nil {
			t.Fatal(err)
		}
	}
	close(end)
	reader.Wait()
	if reads == 0 {
		t.Error("nothing was read meanwhile")
	}
	// Who has the first one open still reads that.
	var b bytes.Buffer
	if _, err := b.ReadFrom(old); err != nil || !bytes.Equal(b.Bytes(), cache(0)) {
		t.Errorf("the first one was changed: %d bytes, %v", b.Len(), err)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(filepath.Dir(file)); err != nil || len(entries) != 0 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

// kept is an exporter in a bubble, with an agent whose tickets live for an hour,
// if not for life, and are worth replacing after three quarters of it.
type kept struct {
	*exporter
	t     *testing.T
	out   *bytes.Buffer // what was said
	asked atomic.Int32
	life  time.Duration
	fail  error     // what the agent answers
	until time.Time // when not zero, the end of the only ticket there is
	// confuse, when not nil, changes what the agent answers.
	confuse func(*pb.ExportCacheResponse)
}

const life = time.Hour

// canary is the cache with the ticket that ends then.
func canary(end time.Time) string { return aCache + end.UTC().Format(time.RFC3339) }

func newKept(t *testing.T, life time.Duration) *kept {
	k := &kept{t: t, out: new(bytes.Buffer), life: life}
	k.exporter = &exporter{principal: "build", file: filepath.Join(t.TempDir(), "cc"), stderr: k.out, say: true, ask: func() (*pb.ExportCacheResponse, error) {
		k.asked.Add(1)
		if k.fail != nil {
			return nil, k.fail
		}
		end, refresh := time.Now().Add(k.life), time.Now().Add(k.life*3/4)
		if !k.until.IsZero() {
			end, refresh = k.until, time.Now().Add(time.Minute)
		}
		resp := &pb.ExportCacheResponse{Cache: []byte(canary(end)), Principal: "build@R" + evil,
			EndTime: timestamppb.New(end), RefreshTime: timestamppb.New(refresh)}
		if k.confuse != nil {
			k.confuse(resp)
		}
		return resp, nil
	}}
	if written, err := k.write(); err != nil || !written {
		t.Fatal(written, err)
	}
	return k
}

// run keeps it until the function it returns is called.
func (k *kept) run() (stop func()) {
	ctx, cancel := context.WithCancel(k.t.Context())
	done := make(chan error)
	go func() { done <- k.keep(ctx) }()
	return func() {
		k.t.Helper()
		cancel()
		if err := <-done; err != nil {
			k.t.Errorf("keep ended with %v", err)
		}
		if _, err := os.Stat(k.file); err != nil {
			k.t.Errorf("the file is not left: %v", err)
		}
	}
}

// pass lets time pass.
func (k *kept) pass(d time.Duration) {
	ctx, cancel := context.WithTimeout(k.t.Context(), d)
	defer cancel()
	k.asked.Add(0) // what the test did comes before what is then asked for
	<-ctx.Done()
	synctest.Wait()
}

func (k *kept) content() string {
	b, err := os.ReadFile(k.file)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// said returns the lines that were said since it was last called.
func (k *kept) said() (lines []string) {
	for line := range strings.Lines(k.out.String()) {
		lines = append(lines, line)
	}
	k.out.Reset()
	return lines
}

// TestKeep: the cache never holds a ticket that has ended, and the agent is asked
// no more often than there is a reason to.
func TestKeep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKept(t, life)
		stop := k.run()
		k.said()
		begin := time.Now()
		for time.Since(begin) < 24*time.Hour {
			k.pass(time.Minute)
			if left := time.Until(k.end); left < life/4 {
				t.Fatalf("after %v, %v are left", time.Since(begin), left)
			}
			if want := canary(k.end); k.content() != want {
				t.Fatalf("the file has %q, want %q", k.content(), want)
			}
		}
		if n := len(k.said()); k.asked.Load()-1 != 32 || n != 32 { // 24 h / 45 min
			t.Errorf("asked %d times, %d lines", k.asked.Load()-1, n)
		}
		stop()
	})
}

// TestKeepShort: of tickets that live for less than a few looks, too, the next one
// is there before the end.
func TestKeepShort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const short = 90 * time.Second
		k := newKept(t, short)
		stop := k.run()
		begin := time.Now()
		for time.Since(begin) < 10*short {
			k.pass(time.Second)
			if left := time.Until(k.end); left < short/4-keepPause || k.content() != canary(k.end) {
				t.Fatalf("after %v, %v are left in %q", time.Since(begin), left, k.content())
			}
		}
		if n := k.asked.Load() - 1; n > 10*4/3 {
			t.Errorf("asked %d times", n)
		}
		stop()
	})
}

// TestKeepConfused: an agent without a ticket that lives costs neither the one in
// the file, nor more than a few calls, nor the next one that it has.
func TestKeepConfused(t *testing.T) {
	for name, confuse := range confused {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := newKept(t, life)
				first := k.content()
				k.confuse = confuse
				stop := k.run()
				k.said()
				k.pass(2 * life)
				what, _, _ := strings.Cut(name, ",")
				if got := k.said(); len(got) != 2 || got[0] != "sessionctl: build: the agent answered with "+what+" (unknown)\n" {
					t.Errorf("said %q", got)
				}
				if got := k.content(); got != first {
					t.Errorf("the file has %.100q", got)
				}
				if n := k.asked.Load() - 1; n > int32(life*5/4/keepLook)+1 {
					t.Errorf("asked %d times", n)
				}
				k.confuse = nil
				k.pass(keepLook)
				if got := k.content(); got != canary(k.end) || time.Until(k.end) < life-keepLook {
					t.Errorf("the file still has %q", got)
				}
				stop()
			})
		})
	}
}

// TestKeepRefreshTime: whatever the agent takes for the time of the next one, there
// is one when the ticket ends, and the agent is not asked all the time.
func TestKeepRefreshTime(t *testing.T) {
	for name, refresh := range map[string]func() *timestamppb.Timestamp{
		"absent":       func() *timestamppb.Timestamp { return nil },
		"past":         func() *timestamppb.Timestamp { return timestamppb.New(time.Now().Add(-time.Hour)) },
		"now":          timestamppb.Now,
		"at once":      func() *timestamppb.Timestamp { return timestamppb.New(time.Now().Add(1)) },
		"after it":     func() *timestamppb.Timestamp { return timestamppb.New(time.Now().Add(2 * life)) },
		"in year 9999": func() *timestamppb.Timestamp { return year9999 },
		"out of range": func() *timestamppb.Timestamp { return &timestamppb.Timestamp{Seconds: math.MaxInt64, Nanos: -1} },
		"long ago":     func() *timestamppb.Timestamp { return &timestamppb.Timestamp{Seconds: math.MinInt64} },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := newKept(t, life)
				const most = int32(5 * life / 2 / keepPause)
				k.confuse = func(r *pb.ExportCacheResponse) {
					if k.asked.Load() <= 2*most { // else it might never end
						r.RefreshTime = refresh()
					}
				}
				stop := k.run()
				begin := time.Now()
				for time.Since(begin) < 2*life+life/2 {
					k.pass(time.Minute)
					if k.content() != canary(k.end) || !k.end.After(time.Now()) {
						t.Fatalf("after %v the file has %q", time.Since(begin), k.content())
					}
				}
				if n := k.asked.Load() - 1; n > most {
					t.Errorf("asked %d times", n)
				}
				stop()
			})
		})
	}
}

// TestKeepOutage: it is said once, nothing that lives is lost, and it ends by
// itself.
func TestKeepOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKept(t, life)
		stop := k.run()
		k.said()
		first := k.content()

		k.fail = &api.Error{Code: api.KDCUnreachable, Detail: "no KDC of R answers", Remedy: "look at the KDC"}
		k.pass(2 * time.Hour)
		if got := k.said(); len(got) != 2 || got[0] != "sessionctl: build: no KDC of R answers (kdc_unreachable)\n" || got[1] != "  next: look at the KDC\n" {
			t.Errorf("said %q", got)
		}
		if k.content() != first {
			t.Error("the old ticket is lost")
		}
		if k.asked.Load() < 100 {
			t.Errorf("tried %d times only", k.asked.Load())
		}
		// Something else is.
		k.fail = &api.Error{Code: api.NoAgent, Detail: "no agent", Remedy: "start it"}
		k.pass(time.Hour)
		if got := k.said(); len(got) != 2 || !strings.Contains(got[0], "(no_agent)") {
			t.Errorf("said %q", got)
		}
		k.fail = nil
		k.pass(time.Minute)
		if got := k.said(); len(got) != 1 || !strings.HasPrefix(got[0], "sessionctl: a ticket of build@R?[2J?? is in "+k.file+" until 2") {
			t.Errorf("said %q", got)
		}
		if k.content() == first {
			t.Error("nothing was written")
		}
		// The next one is news again.
		k.fail = &api.Error{Code: api.NoAgent, Detail: "no agent", Remedy: "start it"}
		k.pass(time.Hour)
		if got := k.said(); len(got) != 2 {
			t.Errorf("said %q", got)
		}
		stop()
	})
}

// TestKeepOldTicket: while the agent has but the ticket that is written already,
// the file, to which others may have added theirs, is left alone.
func TestKeepOldTicket(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKept(t, life)
		stop := k.run()
		k.said()
		k.until = k.end
		if err := os.WriteFile(k.file, []byte("with a service ticket"), 0o600); err != nil {
			t.Fatal(err)
		}
		k.pass(life - time.Minute)
		if got := k.content(); got != "with a service ticket" {
			t.Errorf("the file now has %q", got)
		}
		if got := k.said(); len(got) != 1 || !strings.HasPrefix(got[0], "sessionctl: build: there is no newer ticket yet; this one ends at ") {
			t.Errorf("said %q", got)
		}
		// What is worse is said, too.
		k.fail = &api.Error{Code: api.KDCUnreachable, Detail: "no KDC"}
		k.pass(time.Hour)
		if got := k.said(); len(got) != 1 || !strings.Contains(got[0], "(kdc_unreachable)") {
			t.Errorf("said %q", got)
		}
		k.fail, k.until = nil, time.Time{}
		k.pass(time.Minute)
		if got := k.content(); !strings.HasPrefix(got, aCache) {
			t.Errorf("the file still has %q", got)
		}
		stop()
	})
}

// TestKeepGone: who cleans up temporary files does not end it; what cannot be
// written now is written later.
func TestKeepGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKept(t, life)
		dir := filepath.Join(t.TempDir(), "sub")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		k.file = filepath.Join(dir, "cc")
		stop := k.run()
		k.pass(keepLook)
		if got := k.content(); !strings.HasPrefix(got, aCache) {
			t.Errorf("it does not come back: %q", got)
		}
		k.said()
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		k.pass(life)
		if got := k.said(); len(got) != 2 || !strings.Contains(got[0], k.file+" cannot be written: no such file or directory") || strings.Contains(got[0], "CANARY") {
			t.Errorf("said %q", got)
		}
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		k.pass(keepLook)
		if got := k.content(); !strings.HasPrefix(got, aCache) {
			t.Errorf("it does not come back: %q", got)
		}
		if k.asked.Load() > 200 {
			t.Errorf("asked %d times", k.asked.Load())
		}
		stop()
	})
}

// TestKeepInTheWay: what could not be written when it was time is tried again at
// every look, not when it would have been time the next time.
func TestKeepInTheWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKept(t, life)
		stop := k.run()
		k.said()
		if err := os.Remove(k.file); err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(k.file, 0o700); err != nil {
			t.Fatal(err)
		}
		k.pass(life)
		if got := k.said(); len(got) != 2 || !strings.Contains(got[0], k.file+" cannot be written: ") {
			t.Errorf("said %q", got)
		}
		if k.asked.Load()-1 < 20 {
			t.Errorf("tried %d times only", k.asked.Load()-1)
		}
		if entries, err := os.ReadDir(filepath.Dir(k.file)); err != nil || len(entries) != 1 {
			t.Errorf("left behind: %v, %v", entries, err)
		}
		stop()
	})
}

// TestKeepEndsWhileAsking: a signal during a call is no failure.
func TestKeepEndsWhileAsking(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKept(t, life)
		k.said()
		ctx, cancel := context.WithCancel(t.Context())
		k.ask = func() (*pb.ExportCacheResponse, error) {
			cancel()
			return nil, ctx.Err()
		}
		if err := k.keep(ctx); err != nil {
			t.Error(err)
		}
		if got := k.said(); got != nil {
			t.Errorf("said %q", got)
		}
		if got := k.content(); !strings.HasPrefix(got, aCache) {
			t.Errorf("the file has %q", got)
		}
	})
}

func TestCCacheHelpAndCompletion(t *testing.T) {
	if out, _, exit := call("help"); exit != 0 || !strings.Contains(out, "\n  ccache ") {
		t.Errorf("%d %s", exit, out)
	}
	if out, _, exit := call("help", "ccache"); exit != 0 || !strings.Contains(out, "ccache PRINCIPAL [FILE]") || !strings.Contains(out, "--keep ") || !strings.Contains(out, "export list") || !strings.Contains(out, "status 0") {
		t.Errorf("%d %s", exit, out)
	}
	t.Setenv(api.SocketVariable, "/nonexistent/agent.sock")
	// The directives of cobra: 0 lets the shell complete files, 4 does not.
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{""}, ":4\n"}, {[]string{"build", ""}, ":0\n"}, {[]string{"--keep", "build", "/t"}, ":0\n"}, {[]string{"build", "/x", ""}, ":4\n"}, {[]string{"--k"}, "--keep\t"},
	} {
		if out, _, exit := call(append([]string{"__complete", "ccache"}, c.args...)...); exit != 0 || !strings.HasPrefix(out, c.want) {
			t.Errorf("%q: %d %q", c.args, exit, out)
		}
	}
}
