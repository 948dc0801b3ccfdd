package daemon

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"google.golang.org/grpc"

	pb "github.com/sessionctl/sessionctl/api/sessionctl/v1"
	"github.com/sessionctl/sessionctl/client"
	"github.com/sessionctl/sessionctl/daemon/internal/secret"
)

func init() { roles["agent"] = serveAgain }

// serveAgain is an agent of the configuration in a directory. For each line that it gets
// it says when its garbage was collected next.
func serveAgain(args []string, in io.Reader, out io.Writer) error {
	config, err := LoadConfig(filepath.Join(args[0], "sessiond.toml"))
	if err != nil {
		return err
	}
	l, err := Listen(filepath.Join(args[0], "agent.sock"))
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	fmt.Fprintln(out, "ready")
	go func() {
		defer stop()
		for lines := bufio.NewScanner(in); lines.Scan(); {
			runtime.AddCleanup(new([64]byte), func(struct{}) { fmt.Fprintln(out, "collected") }, struct{}{})
			fmt.Fprintln(out, "waiting")
		}
	}()
	return Run(ctx, l, Options{Config: config, Store: filepath.Join(args[0], "state", "store.db"), Log: slog.New(slog.DiscardHandler)})
}

// copies counts how often some bytes stand in the memory of a process.
func copies(t *testing.T, pid int, wanted []byte) (n int) {
	t.Helper()
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	for line := range strings.Lines(string(maps)) {
		if !strings.Contains(line, " rw") {
			continue
		}
		var from, to int64
		if _, err := fmt.Sscanf(line, "%x-%x", &from, &to); err != nil {
			t.Fatal(err)
		}
		// Overlapping pieces, in which no copy is seen twice.
		const step = 1 << 20
		for at := from; at < to; at += step {
			piece := make([]byte, min(step+int64(len(wanted))-1, to-at))
			if m, err := mem.ReadAt(piece, at); err == nil || m > 0 {
				n += bytes.Count(piece[:m], wanted)
			}
		}
	}
	return n
}

// calls are those that TestCopies makes.
const calls = 2000

// TestCopies: few copies of a cookie are left in the memory of an agent that has
// served it often.
func TestCopies(t *testing.T) {
	form := startForm(t)
	dir := shortDir(t)
	text := fmt.Sprintf("[credential.anna]\nusername = \"anna\"\n[site.app]\nurl = %q\nkind = \"form\"\ncredential = \"anna\"\ninsecure_http = true\nprobe_url = \"whoami\"\nidentity_json = \"user\"\n", form.URL()+"/app/")
	if err := os.WriteFile(filepath.Join(dir, "sessiond.toml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	pid, in, out := again(t, exe, nil, "agent", dir)
	line(t, out)
	c := &client.Client{Socket: filepath.Join(dir, "agent.sock")}
	defer c.Close()
	sessions, err := c.Sessions()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sessions.Login(t.Context(), &pb.LoginRequest{Site: "app", Password: []byte("CANARY-anna")}); err != nil {
		t.Fatal(err)
	}
	var cookie []byte
	for range calls {
		r, err := sessions.GetSession(t.Context(), &pb.GetSessionRequest{Site: "app"}, grpc.WaitForReady(true))
		if err != nil || len(r.GetSession().GetCookies()) == 0 {
			t.Fatalf("%v %v", r, err)
		}
		cookie = r.GetSession().GetCookies()[0].GetValue()
	}
	before := copies(t, pid, cookie)
	fmt.Fprintln(in)
	if got := line(t, out); got == "waiting" { // it may have come first
		if _, err := sessions.GetSession(t.Context(), &pb.GetSessionRequest{Site: "app"}); err != nil {
			t.Fatal(err)
		}
	}
	line(t, out)
	n := copies(t, pid, cookie)
	for last := -1; n != last; { // the second collection may be under way
		last, n = n, copies(t, pid, cookie)
	}
	t.Logf("copies (erasing build: %v) of a cookie of %d bytes after %d calls: %d at once, %d when it is quiet", secret.Erasing, len(cookie), calls, before, n)
	if n == 0 {
		t.Error("the live session is not seen: nothing was measured")
	}
	if n > 300 {
		t.Errorf("%d copies", n)
	}
}
