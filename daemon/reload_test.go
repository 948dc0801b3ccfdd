package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/sessionctl/sessionctl/api"
	pb "github.com/sessionctl/sessionctl/api/sessionctl/v1"
	"github.com/sessionctl/sessionctl/client"
	"github.com/sessionctl/sessionctl/daemon/internal/keeper"
	"github.com/sessionctl/sessionctl/daemon/internal/rig"
	"github.com/sessionctl/sessionctl/store"
)

// running is an agent in this process.
type running struct {
	socket, store string
	agent         pb.AgentServiceClient
	sessions      pb.SessionServiceClient
	stop          func()
}

// run starts an agent with options that lack only the places of its things.
func run(t *testing.T, o Options) *running {
	t.Helper()
	dir := shortDir(t)
	r := &running{socket: filepath.Join(dir, "agent.sock"), store: filepath.Join(dir, "state", "store.db")}
	l, err := Listen(r.socket)
	if err != nil {
		t.Fatal(err)
	}
	o.Store = r.store
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- Run(ctx, l, o) }()
	c := &client.Client{Socket: r.socket}
	r.stop = sync.OnceFunc(func() {
		c.Close()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(r.stop)
	if r.agent, err = c.Agent(); err != nil {
		t.Fatal(err)
	}
	if r.sessions, err = c.Sessions(); err != nil {
		t.Fatal(err)
	}
	return r
}

// TestReloadPurges: of a site that is gone nothing stays in the store, and of one
// that stays everything does.
func TestReloadPurges(t *testing.T) {
	form, err := rig.StartForm()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(form.Stop)
	form.AddUser("anna", "CANARY-anna")
	site := func(name string) string {
		return fmt.Sprintf("[site.%s]\nurl = %q\nkind = \"form\"\ncredential = \"anna\"\ninsecure_http = true\nprobe_url = \"whoami\"\nidentity_json = \"user\"\n", name, form.URL()+"/app/")
	}
	load := func(text string) *Config {
		c, err := configure(t, map[string]string{"sessiond.toml": "[credential.anna]\nusername = \"anna\"\n" + text})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	next := load(site("stays"))
	r := run(t, Options{Config: load(site("gone") + site("stays")), Load: func() (*Config, error) { return next, nil }})
	for _, name := range []string{"gone", "stays"} {
		if _, err := r.sessions.Login(t.Context(), &pb.LoginRequest{Site: name, Password: []byte("CANARY-anna")}); err != nil {
			t.Fatal(err)
		}
	}
	resp, err := r.agent.Reload(t.Context(), &pb.ReloadRequest{})
	if err != nil || fmt.Sprint(resp.GetAdded(), resp.GetChanged(), resp.GetRemoved()) != "[] [] [gone]" {
		t.Errorf("%v %v", resp, err)
	}
	if s, err := r.sessions.GetSession(t.Context(), &pb.GetSessionRequest{Site: "gone"}); api.CodeOf(err) != api.UnknownSite {
		t.Errorf("%v %v", s.GetSession().GetSite(), err)
	}
	r.stop()
	key, _ := masterKey(r.store)
	st, err := store.Open(r.store, store.Options{Key: key})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	for name, want := range map[string]bool{"gone": false, "stays": true} {
		record, _, err := st.Bucket("sessions").Load(name + "\x00anna")
		if err != nil || (record != nil) != want {
			t.Errorf("the record of %s: %d bytes, %v", name, len(record), err)
		}
	}
}

// TestReloadTold: systemd is told of each reload that a signal asks for, as
// sd_notify(3) wants it, also of one that changes nothing.
func TestReloadTold(t *testing.T) {
	socket := filepath.Join(shortDir(t), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	t.Setenv("NOTIFY_SOCKET", socket)
	told := func() string {
		buf := make([]byte, 200)
		n, err := l.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		return string(buf[:n])
	}
	c, err := configure(t, map[string]string{"sessiond.toml": ""})
	if err != nil {
		t.Fatal(err)
	}
	wrong := &api.Error{Code: api.ConfigInvalid, Detail: "sessiond.toml:5: it is wrong", Remedy: "mend it"}
	loads := []error{nil, wrong, nil}
	var log strings.Builder
	reload := make(chan struct{})
	r := run(t, Options{Config: c, Reload: reload, Log: slog.New(slog.NewTextHandler(&log, nil)), Load: func() (*Config, error) {
		err := loads[0]
		loads = loads[1:]
		if err != nil {
			return nil, err
		}
		return configure(t, map[string]string{"sessiond.toml": ""})
	}})
	if got := told(); got != "READY=1" {
		t.Errorf("at the start: %q", got)
	}
	var since int64
	for i, want := range []string{"", "config_invalid", ""} {
		reload <- struct{}{}
		var at int64
		if got := told(); !strings.HasPrefix(got, "RELOADING=1\n") {
			t.Errorf("reload %d: %q", i, got)
		} else if _, err := fmt.Sscanf(got, "RELOADING=1\nMONOTONIC_USEC=%d", &at); err != nil || at <= since {
			t.Errorf("reload %d: %q after %d: %v", i, got, since, err)
		}
		since = at
		if got := told(); got != "READY=1" {
			t.Errorf("reload %d: %q", i, got)
		}
		st, err := r.agent.GetStatus(t.Context(), &pb.GetStatusRequest{})
		if err != nil || st.GetReloadCode() != want || want != "" && st.GetReloadDetail() != wrong.Detail {
			t.Errorf("reload %d: %v %v", i, st, err)
		}
	}
	r.stop()
	if got := told(); got != "STOPPING=1" {
		t.Errorf("at the end: %q", got)
	}
	if n := strings.Count(log.String(), "sessiond.toml:5: it is wrong"); n != 1 {
		t.Errorf("the log says what is wrong %d times: %s", n, &log)
	}
}

// TestReloadRefused: by an agent that cannot, and while another one takes longer
// than the caller has.
func TestReloadRefused(t *testing.T) {
	c, err := configure(t, map[string]string{"sessiond.toml": ""})
	if err != nil {
		t.Fatal(err)
	}
	r := run(t, Options{Config: c})
	if _, err := r.agent.Reload(t.Context(), &pb.ReloadRequest{}); api.CodeOf(err) != api.InvalidRequest || !strings.Contains(err.Error(), "cannot read its configuration again") {
		t.Errorf("%v", err)
	}
	r.stop()

	begun, end := make(chan struct{}), make(chan struct{})
	r = run(t, Options{Config: c, Load: func() (*Config, error) {
		close(begun)
		<-end
		return nil, errors.New("broken")
	}})
	first := make(chan error)
	go func() {
		_, err := r.agent.Reload(t.Context(), &pb.ReloadRequest{})
		first <- err
	}()
	<-begun
	ctx, cancel := context.WithCancel(t.Context())
	second := make(chan error)
	go func() {
		_, err := r.agent.Reload(ctx, &pb.ReloadRequest{})
		second <- err
	}()
	// Meanwhile the others are served.
	if _, err := r.sessions.ListSessions(t.Context(), &pb.ListSessionsRequest{}); err != nil {
		t.Error(err)
	}
	cancel()
	if err := <-second; api.CodeOf(err) != api.Deadline {
		t.Errorf("the second one: %v", err)
	}
	close(end)
	if err := <-first; api.CodeOf(err) != api.Unknown || !strings.Contains(err.Error(), "broken") {
		t.Errorf("the first one: %v", err)
	}
}

// TestChanges: by name, whatever the sites' users.
func TestChanges(t *testing.T) {
	site := func(name, setup string) *Site { return &Site{Name: name, setup: setup} }
	resp := changes(&Config{Sites: []*Site{site("a", "1"), site("b", "1"), site("c", "1"), site("e", "1")}},
		&Config{Sites: []*Site{site("b", "1"), site("c", "2"), site("d", "1"), site("e", "2")}})
	if got := fmt.Sprint(resp.GetAdded(), resp.GetChanged(), resp.GetRemoved()); got != "[d] [c e] [a]" {
		t.Error(got)
	}
	if resp := changes(&Config{}, &Config{}); len(resp.GetAdded())+len(resp.GetChanged())+len(resp.GetRemoved()) != 0 {
		t.Error(resp)
	}
}

// TestPasswordFileStays: what systemd hands over is part of what makes a password.
func TestPasswordFileStays(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "password.anna"), []byte("CANARY-anna"), 0o600); err != nil {
		t.Fatal(err)
	}
	have := &secrets{passwords: map[passwordKey]*keeper.Password{}}
	cred := &Credential{Name: "anna", Username: "anna"}
	stored := have.password(cred)
	t.Setenv("CREDENTIALS_DIRECTORY", dir)
	if handed := have.password(cred); handed == stored || handed != have.password(cred) || handed.Fixed() == nil || stored.Fixed() != nil {
		t.Error("a password in a file and one in the store are one")
	}
}
