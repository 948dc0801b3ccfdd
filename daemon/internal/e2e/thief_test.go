package e2e

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	pb "github.com/sessionctl/sessionctl/api/sessionctl/v1"
	"github.com/sessionctl/sessionctl/client"
	"github.com/sessionctl/sessionctl/daemon/internal/rig"
	"github.com/sessionctl/sessionctl/daemon/internal/secret"
)

// thiefSites is how many sites the thief is after. Each has a cookie, and each cookie that
// something still refers to, two copies. Of what is free memory, all but a few is given
// back to the kernel.
const (
	thiefSites  = 200
	thiefCopies = thiefSites / 2
)

func thiefHost(i int) string { return fmt.Sprintf("host-%d.thief.example", i) }
func thiefUser(i int) string { return fmt.Sprintf("thief-user-%d", i) }

// TestThief: an agent logs in at many sites, and out again, while one session stays.
// Then whoever has all of its files, its log and its memory finds no cookie that was
// logged out in a file or in the log, no name in the store, and the master key in its own
// file only. How many copies of cookies its memory has is said.
func TestThief(t *testing.T) {
	rig.Require(t, "root") // to read the memory
	w := inProcess(t)
	jira, err := rig.StartJira(rig.AtlassianOptions{ContextPath: "/jira"})
	must(t, err)
	t.Cleanup(jira.Stop)
	// All names lead to that Jira, for who asks the proxy.
	proxy := httptest.NewServer(http.HandlerFunc(jira.ServeHTTP))
	t.Cleanup(proxy.Close)
	config := fmt.Sprintf("[proxy.corp]\nurl = %q\n", proxy.URL)
	for i := range thiefSites + 1 {
		jira.AddUser(thiefUser(i), thiefPassword(i))
		config += fmt.Sprintf("[credential.c%d]\nusername = %q\n[site.s%[1]d]\nurl = \"http://%s/jira\"\nkind = \"jira\"\ncredential = \"c%[1]d\"\ninsecure_http = true\nproxy = \"corp\"\n",
			i, thiefUser(i), thiefHost(i))
	}
	h := newHome(t, w, config)
	h.extraEnv = []string{"GODEBUG=gctrace=1"} // collections are in the log
	a := h.start(t)
	master, err := os.ReadFile(strings.TrimSuffix(h.store, ".db") + ".key")
	must(t, err)
	if n := a.remembers(t, master, nil, nil).master; n > 0 {
		t.Errorf("%d copies of the master key in memory, right after the start", n)
	}
	c := &client.Client{Socket: h.socket}
	t.Cleanup(func() { c.Close() })
	sessions, err := c.Sessions()
	must(t, err)
	get := func(i int) (cookies []string) {
		r, err := sessions.GetSession(t.Context(), &pb.GetSessionRequest{Site: fmt.Sprint("s", i)})
		if err != nil {
			t.Error(err)
		}
		for _, c := range r.GetSession().GetCookies() {
			if v := string(c.GetValue()); len(v) == cookieSize && strings.HasPrefix(v, cookiePrefix) {
				cookies = append(cookies, v)
			}
		}
		if len(cookies) == 0 {
			t.Errorf("site %d: no cookie to look for", i)
		}
		return cookies
	}
	// each does something for all sites but the last one, some at a time.
	each := func(do func(i int)) {
		var wg sync.WaitGroup
		places := make(chan struct{}, 8)
		for i := range thiefSites {
			places <- struct{}{}
			wg.Go(func() { do(i); <-places })
		}
		wg.Wait()
	}
	login := func(i int) {
		if _, err := sessions.Login(t.Context(), &pb.LoginRequest{Site: fmt.Sprint("s", i), Password: []byte(thiefPassword(i))}); err != nil {
			t.Errorf("site %d: %v", i, err)
		}
	}
	each(login)
	login(thiefSites)
	if t.Failed() {
		t.FailNow()
	}
	var mu sync.Mutex
	out, live := map[string]bool{}, map[string]bool{}
	each(func(i int) {
		for range 20 {
			for _, v := range get(i) {
				mu.Lock()
				out[v] = true
				mu.Unlock()
			}
		}
	})
	last := func() {
		for _, v := range get(thiefSites) {
			live[v] = true
		}
	}
	before := a.collected(t, last, master, out, live)

	logout := func(i int) {
		if _, err := sessions.DeleteSession(t.Context(), &pb.DeleteSessionRequest{Site: fmt.Sprint("s", i)}); err != nil {
			t.Errorf("site %d: %v", i, err)
		}
	}
	each(logout)
	login(0)
	for _, v := range get(0) {
		out[v] = true
	}
	purged := watchName(t, h.store)
	logout(0)
	purged()
	after := a.collected(t, last, master, out, live)
	if raceFlag == "-race" {
		t.Log("the race detector has memory of its own: that is not looked at")
	} else {
		t.Logf("erasing build: %v; %d cookies of %d sites", secret.Erasing, len(out), thiefSites)
		t.Logf("live:       %d copies in memory; %d of the master key", before.out, before.master)
		t.Logf("logged out: %d copies in memory, of %d cookies; %d of the cookie that lives; %d of the master key", after.out, after.cookies, after.live, after.master)
		if before.out < thiefSites || after.live == 0 {
			t.Error("live sessions are not seen: nothing was measured")
		}
		if after.out > thiefCopies || before.master+after.master > 0 {
			t.Errorf("%d copies of cookies that were logged out, and %d of the master key", after.out, max(before.master, after.master))
		}
	}

	// A thief knows more spellings than one.
	spelled := func(b []byte) [][]byte {
		return [][]byte{b, []byte(hex.EncodeToString(b)), []byte(strings.ToUpper(hex.EncodeToString(b))),
			[]byte(base64.StdEncoding.EncodeToString(b)), []byte(base64.URLEncoding.EncodeToString(b))}
	}
	look := func(what string, b []byte) {
		for _, key := range spelled(master) {
			if bytes.Contains(b, key) {
				t.Errorf("the master key is in %s", what)
			}
		}
		for v := range out {
			for _, v := range spelled([]byte(v)) {
				if bytes.Contains(b, v) {
					t.Fatalf("a cookie that was logged out is in %s", what)
				}
			}
		}
	}
	names := func(b []byte) (n int) {
		for i := range thiefSites + 1 {
			n += bytes.Count(b, []byte(thiefHost(i))) + bytes.Count(b, []byte(thiefUser(i)))
		}
		return n
	}
	look("the log", []byte(a.log.String()))
	for _, name := range []string{"environ", "cmdline"} {
		b, err := os.ReadFile(filepath.Join("/proc", fmt.Sprint(a.cmd.Process.Pid), name))
		must(t, err)
		look("its "+name, b)
	}
	for _, running := range []bool{true, false} {
		must(t, filepath.WalkDir(h.dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() || path == strings.TrimSuffix(h.store, ".db")+".key" {
				return err
			}
			b, err := os.ReadFile(path)
			look(path, b)
			switch n := names(b); {
			case path == h.config && n == 0:
				t.Error("the names are not even found in the configuration")
			case path != h.config && n > 0:
				t.Errorf("names are %d times in %s", n, path)
			}
			return err
		}))
		if running {
			a.stop(t)
		}
	}
	noSecrets(t, a)
}

func thiefPassword(i int) string { return fmt.Sprintf("CANARY-pässword of %d", i) }

// What the session IDs of the Jira look like.
const (
	cookiePrefix = "CANARY-"
	cookieSize   = len(cookiePrefix) + 32
)

// found is what was found in the memory of an agent: copies of cookies, and of how many,
// and of the master key.
type found struct{ out, cookies, live, master int }

// collected makes a last call and looks into the memory of the agent once that has
// collected its garbage twice and given back what is free.
func (a *agent) collected(t *testing.T, call func(), master []byte, out, live map[string]bool) (f found) {
	t.Helper()
	collections := func() int { return strings.Count(a.log.String(), "(forced)") }
	want := collections() + 2
	call()
	for last, done := (found{}), false; !done || f != last; {
		if t.Context().Err() != nil {
			t.Fatal("no garbage was collected")
		}
		last, done = f, collections() >= want
		f = a.remembers(t, master, out, live)
	}
	return f
}

// remembers looks into all memory of the agent, but for that of the race detector.
func (a *agent) remembers(t *testing.T, master []byte, out, live map[string]bool) (f found) {
	t.Helper()
	if raceFlag == "-race" {
		return found{}
	}
	proc := fmt.Sprintf("/proc/%d/", a.cmd.Process.Pid)
	maps, err := os.ReadFile(proc + "maps")
	must(t, err)
	mem, err := os.Open(proc + "mem")
	must(t, err)
	defer mem.Close()
	seen := map[string]bool{}
	for line := range strings.Lines(string(maps)) {
		if !strings.Contains(line, " r") || strings.Contains(line, "[v") { // the kernel's own
			continue
		}
		var from, to int64
		if _, err := fmt.Sscanf(line, "%x-%x", &from, &to); err != nil {
			t.Fatal(err)
		}
		// Overlapping pieces, in which no copy is seen twice.
		const step = 1 << 20
		piece := make([]byte, step+cookieSize-1)
		for at := from; at < to; at += step {
			n, _ := mem.ReadAt(piece[:min(int64(len(piece)), to-at)], at)
			b := piece[:n]
			f.master += bytes.Count(b[:min(n, step+len(master)-1)], master)
			for i := 0; ; i++ {
				next := bytes.Index(b[i:], []byte(cookiePrefix))
				if next < 0 || i+next+cookieSize > n {
					break
				}
				i += next
				switch v := string(b[i : i+cookieSize]); {
				case out[v]:
					f.out++
					seen[v] = true
				case live[v]:
					f.live++
				}
			}
		}
	}
	f.cookies = len(seen)
	return f
}

// watchName returns a function that waits until another file gets the name path.
func watchName(t *testing.T, path string) func() {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	must(t, err)
	f := os.NewFile(uintptr(fd), "inotify")
	t.Cleanup(func() { f.Close() })
	_, err = unix.InotifyAddWatch(fd, filepath.Dir(path), unix.IN_MOVED_TO)
	must(t, err)
	return func() {
		t.Helper()
		buf := make([]byte, 64<<10)
		for {
			n, err := f.Read(buf)
			must(t, err)
			for b := buf[:n]; len(b) >= unix.SizeofInotifyEvent; {
				size := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(b[12:]))
				if string(bytes.TrimRight(b[unix.SizeofInotifyEvent:size], "\x00")) == filepath.Base(path) {
					return
				}
				b = b[size:]
			}
		}
	}
}
