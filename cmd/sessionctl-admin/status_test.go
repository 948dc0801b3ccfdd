package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/sessionctl/sessionctl/api"
	pb "github.com/sessionctl/sessionctl/api/sessionctl/v1"
)

// agentState is the AgentService of an agent.
type agentState struct {
	pb.UnimplementedAgentServiceServer
	status *pb.GetStatusResponse
	asked  func() // nil: nothing to do
	reload *pb.ReloadResponse
	err    *status.Status // of Reload
}

func (s agentState) GetStatus(context.Context, *pb.GetStatusRequest) (*pb.GetStatusResponse, error) {
	if s.asked != nil {
		s.asked()
	}
	return s.status, nil
}

func TestStatus(t *testing.T) {
	now := timestamppb.Now()
	st := &pb.GetStatusResponse{Version: api.Version, StartTime: now, Pid: 7, ConfigFiles: []string{"/a.toml"}, LoadTime: now, Sites: 3, Store: &pb.StoreStatus{Path: "/store.db"}}
	withUsers(t, st)
	out, errs, exit := call("status")
	for _, want := range []string{
		", pid 7, up ", "\nconfig  /a.toml\nread    0s ago\nstore ", "\n\nSITE  KIND ", "\nalm   jira ", "\napp: refused (latched)\n\nIDP  KIND  USER ", "\nsso  form  build  stale ", "\nsso: no answer (timeout)\n",
	} {
		if !strings.Contains(strings.ReplaceAll(out, "1s ago", "0s ago"), want) {
			t.Errorf("%q is missing", want)
		}
	}
	if exit != 0 || errs != "" || strings.Contains(out, "warning") || t.Failed() {
		t.Errorf("%d %q\n%s", exit, errs, out)
	}
	out, _, _ = call("status", "-o", "json")
	var got jsonStatus
	if err := json.Unmarshal([]byte(out), &got); err != nil || got.LoadTime != rfc3339(now) || len(got.Sessions) != 3 || len(got.IdPs) != 1 || got.IdPs[0].Site != "sso" || strings.Contains(out, `"reload_`) {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestStatusAfterReload: a reload that went wrong shows until one goes well.
func TestStatusAfterReload(t *testing.T) {
	withUsers(t, &pb.GetStatusResponse{Version: api.Version, StartTime: timestamppb.Now(), ReloadCode: "config_invalid", ReloadDetail: "/a.toml:3: unknown key \"x\""})
	out, _, exit := call("status")
	if exit != 0 || !strings.Contains(out, "\nwarning  the last reload failed, and the configuration from before is in use: /a.toml:3: unknown key \"x\" (config_invalid); mend that, then: sessionctl reload\n") {
		t.Errorf("%d\n%s", exit, out)
	}
	out, _, _ = call("status", "-o", "json")
	var got jsonStatus
	if err := json.Unmarshal([]byte(out), &got); err != nil || got.ReloadCode != "config_invalid" || got.ReloadDetail != "/a.toml:3: unknown key \"x\"" || got.LoadTime != "" {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestStatusOfOthers: who may not know more gets no rows without content.
func TestStatusOfOthers(t *testing.T) {
	s := withUsers(t, &pb.GetStatusResponse{Version: api.Version, StartTime: timestamppb.Now()})
	s.list.Idps = nil
	out, _, exit := call("status")
	if rows := regexp.MustCompile(`(?m)^\S+`).FindAllString(out, 3); exit != 0 || fmt.Sprint(rows) != "[agent socket SITE]" || strings.Contains(out, "IDP") || strings.Contains(out, "pid") {
		t.Errorf("%d %s\n%s", exit, rows, out)
	}
}

// watched is what a watch printed, while its time is the test's.
type watched struct {
	out, errs bytes.Buffer
	stop      context.CancelFunc
	done      chan error
	looks     atomic.Int32
	fail      error // of the next looks
}

func watching(t *testing.T) *watched {
	ctx, stop := context.WithCancel(t.Context())
	w := &watched{stop: stop, done: make(chan error, 1)}
	a := &app{stdout: &w.out, stderr: &w.errs}
	go func() {
		w.done <- a.watch(ctx, func() ([]byte, error) {
			return fmt.Appendf(nil, "look %d\n", w.looks.Add(1)), w.fail
		})
	}()
	synctest.Wait()
	return w
}

// pass lets n pauses go by.
func (w *watched) pass(n int) {
	w.looks.Add(0) // what the test did comes before the looks to come
	<-time.After(time.Duration(n) * watchPause)
	synctest.Wait()
}

// TestWatch: every two seconds for as long as nobody ends it, through outages.
func TestWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := watching(t)
		w.pass(1)
		if got := w.out.String(); got != "look 1\n\nlook 2\n" {
			t.Errorf("after one pause: %q", got)
		}
		w.fail = &api.Error{Code: api.NoAgent, Detail: "nobody there", Remedy: "start it"}
		w.pass(3)
		w.fail = nil
		w.pass(1)
		w.fail = &api.Error{Code: api.NoAgent, Detail: "nobody there"}
		w.pass(2)
		w.fail = &api.Error{Code: api.Deadline, Detail: "no answer"}
		w.pass(1)
		if out, errs := w.out.String(), w.errs.String(); out != "look 1\n\nlook 2\n\nlook 6\n" ||
			errs != "sessionctl: nobody there (no_agent)\n  next: start it\nsessionctl: nobody there (no_agent)\nsessionctl: no answer (deadline)\n" {
			t.Errorf("%q %q", out, errs)
		}
		w.fail = nil
		before, begin := w.looks.Load(), time.Now()
		w.pass(24 * 60 * 30)
		if n, took := w.looks.Load()-before, time.Since(begin); n != 24*60*30 || took != 24*time.Hour {
			t.Errorf("%d looks in %v", n, took)
		}
		w.stop()
		if err := <-w.done; err != nil {
			t.Errorf("it ends with %v", err)
		}
	})
}

// TestWatchFirst: what fails at once is a failure, and no watch.
func TestWatchFirst(t *testing.T) {
	a := &app{stdout: &bytes.Buffer{}, stderr: &bytes.Buffer{}}
	want := &api.Error{Code: api.NoAgent}
	if err := a.watch(t.Context(), func() ([]byte, error) { return nil, want }); err != want {
		t.Errorf("%v", err)
	}
	_, errs, exit := call("status", "--watch", "--socket", "/nonexistent/agent.sock")
	if exit != api.ExitNoAgent || !strings.HasPrefix(errs, "sessionctl: ") {
		t.Errorf("%d %q", exit, errs)
	}
}

type brokenPipe struct{}

func (brokenPipe) Write([]byte) (int, error) { return 0, errors.New("broken") }

// TestWatchUnread: nobody reads on, so it ends.
func TestWatchUnread(t *testing.T) {
	a := &app{stdout: brokenPipe{}, stderr: &bytes.Buffer{}}
	if err := a.watch(t.Context(), func() ([]byte, error) { return []byte("x"), nil }); err == nil {
		t.Error("it ended well")
	}
}

// TestWatchTerminal: on a terminal it draws over what was there.
func TestWatchTerminal(t *testing.T) {
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	terminal, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		a := &app{stdout: terminal, stderr: &bytes.Buffer{}}
		looks := 0
		if err := a.watch(ctx, func() ([]byte, error) {
			if looks++; looks == 3 {
				stop()
			}
			return []byte("look\n"), nil
		}); err != nil {
			t.Error(err)
		}
	})
	terminal.Close()
	got, err := io.ReadAll(master)
	if !errors.Is(err, unix.EIO) || string(got) != strings.Repeat("\x1b[H\x1b[Jlook\r\n", 2) {
		t.Errorf("%q %v", got, err)
	}
}

// TestWatchInterrupted: Ctrl-C is the way to end it, so that is no failure.
func TestWatchInterrupted(t *testing.T) {
	l, socket := listen(t)
	interrupt := func() {
		if err := unix.Kill(os.Getpid(), unix.SIGINT); err != nil {
			t.Error(err)
		}
	}
	serveOn(t, l, func(g *grpc.Server) {
		pb.RegisterSessionServiceServer(g, &users{list: several()})
		pb.RegisterAgentServiceServer(g, agentState{status: &pb.GetStatusResponse{Version: api.Version}, asked: interrupt})
	})
	if _, errs, exit := call("status", "--watch", "--socket", socket, "-o", "json"); exit != 0 || errs != "" {
		t.Errorf("%d %q", exit, errs)
	}
}
