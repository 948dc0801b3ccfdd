package e2e

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	pb "github.com/sessionctl/sessionctl/api/sessionctl/v1"
	"github.com/sessionctl/sessionctl/daemon"
	"github.com/sessionctl/sessionctl/daemon/internal/rig"
)

// dial connects to the agent as any gRPC client may, with nothing of ours.
func (h *home) dial(t *testing.T) *grpc.ClientConn {
	t.Helper()
	c, err := grpc.NewClient("unix:"+h.socket, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority("localhost"))
	must(t, err)
	t.Cleanup(func() { c.Close() }) // a second time it does nothing
	return c
}

// within runs the agent in this process, where it can be looked into.
func (h *home) within(t *testing.T) {
	t.Helper()
	config, err := daemon.LoadConfig(h.config, h.krb5Conf)
	must(t, err)
	l, err := daemon.Listen(h.socket)
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	log, done := &lockedBuffer{}, make(chan error)
	go func() {
		done <- daemon.Run(ctx, l, daemon.Options{Config: config, Store: h.store, Log: slog.New(slog.NewTextHandler(log, nil))})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("the agent said:\n%s", log)
		}
	})
}

// until waits until something is so.
func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	look, patience := time.NewTicker(5*time.Millisecond), time.NewTimer(30*time.Second)
	defer look.Stop()
	defer patience.Stop()
	for !is() {
		select {
		case <-look.C:
		case <-patience.C:
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// running counts the goroutines of this process that are in a function.
func running(function string) (n int) {
	var profile bytes.Buffer
	// In the form of debug=1: "12 @ 0x4711 …", and then the 12 goroutines' stack.
	pprof.Lookup("goroutine").WriteTo(&profile, 1)
	for stack := range strings.SplitSeq(profile.String(), "\n\n") {
		if !strings.Contains(stack, function+"+0x") {
			continue
		}
		number, _, _ := strings.Cut(stack, " @ ")
		k, err := strconv.Atoi(number[strings.LastIndex(number, "\n")+1:])
		if err != nil {
			panic(err)
		}
		n += k
	}
	return n
}

// inUse returns the memory of this process that is in use, in bytes.
func inUse() int64 {
	runtime.GC()
	runtime.GC() // what a sync.Pool holds goes with the second one
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}

// TestThousandCallers: a session has ended, a thousand want it, and the site takes
// its time with the one login. Some have none, some hang up: the login goes on for
// the others, who all get the same new session, and nothing of all that stays.
func TestThousandCallers(t *testing.T) {
	const (
		connections = 50
		patient     = 780 // callers with time
		shims       = 20  // calls of sessionctl
		leaving     = 100 // callers who hang up
		hasty       = 100 // callers with little time
		little      = 3 * time.Second
		slack       = 2 * time.Second // on a busy machine
		// growth is what the runtime may keep of that many goroutines that have ended,
		// in bytes: much less than they need while they wait.
		growth = 8 << 20
	)
	f, err := rig.StartForm()
	must(t, err)
	t.Cleanup(f.Stop)
	f.AddUser("anna", "CANARY-anna")
	var slow atomic.Bool
	answer := make(chan struct{})
	site := serve(t, false, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost && slow.Load() {
			<-answer
		}
		f.ServeHTTP(w, r)
	}))
	answerAll := sync.OnceFunc(func() { close(answer) })
	t.Cleanup(answerAll) // the server waits for its answers
	credentials := t.TempDir()
	write(t, filepath.Join(credentials, "password.anna"), "CANARY-anna\n")
	t.Setenv("CREDENTIALS_DIRECTORY", credentials)
	h := newHome(t, &world{krb5Conf: "/dev/null"})
	write(t, h.config, fmt.Sprintf(`
[credential.anna]
username = "anna"

[site.app]
url           = %q
kind          = "form"
credential    = "anna"
insecure_http = true
probe_url     = "whoami"
identity_json = "user"
recheck       = "0s"
`, named(t, site.URL, "localhost")+"/app/"))
	h.within(t)
	get := func(ctx context.Context, c *grpc.ClientConn) (*pb.Session, error) {
		r, err := pb.NewSessionServiceClient(c).GetSession(ctx, &pb.GetSessionRequest{Site: "app"})
		return r.GetSession(), err
	}
	conn := h.dial(t)
	old, err := get(t.Context(), conn)
	must(t, err)
	must(t, conn.Close())
	until(t, "the first caller's connection is gone", func() bool { return running("transport.(*http2Server).HandleStreams") == 0 })
	before, there := inUse(), goleak.IgnoreCurrent()

	f.DropSessions()
	slow.Store(true)
	var conns []*grpc.ClientConn
	for range connections {
		conns = append(conns, h.dial(t))
	}
	const waiting = "keeper.(*Keeper).Get"
	var stay, gone sync.WaitGroup
	patience, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	sessions, cookies := make(chan *pb.Session, patient), make(chan string, shims)
	for i := range patient {
		stay.Go(func() {
			s, err := get(patience, conns[i%connections])
			if err != nil {
				t.Errorf("a patient caller: %v", err)
				return
			}
			sessions <- s
		})
	}
	for range shims {
		stay.Go(func() {
			r := h.sessionctl(t, "raw", "app")
			if r.status != 0 || r.stderr != "" {
				t.Errorf("sessionctl: %v", r)
				return
			}
			cookies <- strings.TrimSuffix(r.stdout, "\n")
		})
	}
	leave, hangUp := context.WithCancel(t.Context())
	defer hangUp()
	for i := range leaving {
		gone.Go(func() {
			if _, err := get(leave, conns[i%connections]); status.Code(err) != codes.Canceled {
				t.Errorf("a caller who hangs up: %v", err)
			}
		})
	}
	until(t, "all with time are waiting", func() bool { return running(waiting) == patient+shims+leaving })
	for i := range hasty {
		gone.Go(func() {
			begin := time.Now()
			ctx, cancel := context.WithTimeout(t.Context(), little)
			defer cancel()
			if _, err := get(ctx, conns[i%connections]); status.Code(err) != codes.DeadlineExceeded {
				t.Errorf("a hasty caller: %v", err)
			}
			if took := time.Since(begin); took > little+slack {
				t.Errorf("a caller with %v waited %v", little, took)
			}
		})
	}
	until(t, "a thousand are waiting", func() bool { return running(waiting) == patient+shims+leaving+hasty })
	peak := inUse()
	begin := time.Now()
	hangUp()
	gone.Wait()
	if took := time.Since(begin); took > little+slack {
		t.Errorf("those who leave were gone after %v", took)
	}
	until(t, "the agent waits no more for those who left", func() bool { return running(waiting) == patient+shims })
	if c := f.Counts(); c.Logins != 1 {
		t.Fatalf("the login was not held: %+v", c)
	}

	begin = time.Now()
	answerAll()
	stay.Wait()
	t.Logf("%d callers answered in %v after the login, %d MiB in use while they waited", len(sessions)+len(cookies), time.Since(begin).Round(time.Millisecond), (peak-before)>>20)
	close(sessions)
	close(cookies)
	now, err := get(t.Context(), conns[0])
	must(t, err)
	if now.GetGeneration() == old.GetGeneration() || now.GetUser() != "anna" {
		t.Errorf("generation %s of %s after %s", now.GetGeneration(), now.GetUser(), old.GetGeneration())
	}
	for s := range sessions {
		if s.GetGeneration() != now.GetGeneration() || s.GetStale() {
			t.Errorf("a caller got generation %s (stale %v), not %s", s.GetGeneration(), s.GetStale(), now.GetGeneration())
		}
	}
	for c := range cookies {
		if c != string(now.GetHeaders()[0].GetValue()) {
			t.Error("sessionctl printed another cookie than the session's")
		}
	}
	if c := f.Counts(); c.Logins != 2 || c.Failures != 0 {
		t.Errorf("%+v", c)
	}

	for _, c := range conns {
		must(t, c.Close())
	}
	if err := goleak.Find(there); err != nil {
		t.Errorf("goroutines stay: %v", err)
	}
	conns, sessions = nil, nil
	if grown := inUse() - before; grown > growth {
		t.Errorf("%d KiB stay in use", grown>>10)
	} else {
		t.Logf("%d KiB more in use than before", grown>>10)
	}
}
