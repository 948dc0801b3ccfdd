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
	"testing/synctest"
	"time"

	grpcpeer "google.golang.org/grpc/peer"

	"github.com/sessionctl/sessionctl/api"
	pb "github.com/sessionctl/sessionctl/api/sessionctl/v1"
	"github.com/sessionctl/sessionctl/client"
	"github.com/sessionctl/sessionctl/daemon/internal/keeper"
	"github.com/sessionctl/sessionctl/daemon/internal/peer"
	"github.com/sessionctl/sessionctl/daemon/internal/rig"
	"github.com/sessionctl/sessionctl/daemon/internal/web"
	"github.com/sessionctl/sessionctl/store"
)

// running is an agent in this process.
type running struct {
	socket, store string
	agent         pb.AgentServiceClient
	sessions      pb.SessionServiceClient
	end           func() // ends the agent, and returns when it has ended
	stop          func() // the same, after the client
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
	r.end = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	r.stop = sync.OnceFunc(func() {
		c.Close()
		r.end()
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
	form := startForm(t)
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
	key, _ := masterKey(r.store, nil)
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

// TestReloadLeft: a file that cannot be read to its end holds up nothing but the
// next reload.
func TestReloadLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun, end := 0, make(chan struct{})
		s := &service{log: slog.New(slog.DiscardHandler), turn: make(chan struct{}, 1), ending: make(chan struct{}), load: func() (*Config, error) {
			begun++
			<-end
			panic("it is broken")
		}}
		for _, want := range []string{"could not be read in time", "another reload is still under way"} {
			ctx, cancel := context.WithCancel(t.Context())
			answer := make(chan error)
			go func() {
				_, err := s.reload(ctx)
				answer <- err
			}()
			synctest.Wait()
			cancel()
			if e := api.AsError(<-answer); e.Code != api.Deadline || !strings.Contains(e.Detail, want) || e.Remedy == "" {
				t.Errorf("%v, want %s", e, want)
			}
			synctest.Wait()
		}
		if s.refused == nil || s.refused.Code != api.Deadline || begun != 1 {
			t.Errorf("the status says %v, and %d reloads have begun", s.refused, begun)
		}
		close(end)
		if _, err := s.reload(t.Context()); err == nil || !strings.Contains(err.Error(), "failed inside") || begun != 2 {
			t.Errorf("after that: %v", err)
		}
	})
}

// TestReloadAtEnd: what cannot be read does not keep the agent from ending,
// whoever asked for it.
func TestReloadAtEnd(t *testing.T) {
	for _, way := range []string{"RPC", "signal", "both"} {
		c, err := configure(t, map[string]string{"sessiond.toml": ""})
		if err != nil {
			t.Fatal(err)
		}
		begun, end := make(chan struct{}, 2), make(chan struct{})
		reload, answer := make(chan struct{}), make(chan error, 1)
		r := run(t, Options{Config: c, Reload: reload, Load: func() (*Config, error) {
			begun <- struct{}{}
			<-end
			return nil, errors.New("broken")
		}})
		if way != "RPC" {
			reload <- struct{}{}
			<-begun
		}
		if way != "signal" {
			go func() {
				_, err := r.agent.Reload(t.Context(), &pb.ReloadRequest{})
				answer <- err
			}()
		}
		if way == "RPC" {
			<-begun
		}
		r.end() // while it hangs, and the client that asked is there
		if way == "RPC" {
			if err := <-answer; !strings.Contains(fmt.Sprint(api.AsError(err).Err), "the agent is stopping") {
				t.Errorf("%s: it is answered by %v", way, err)
			}
		}
		r.stop()
		if way == "both" { // the second one may have come too late for an answer
			if err := <-answer; err == nil {
				t.Errorf("%s: it is answered", way)
			}
		}
		close(end)
	}
}

// TestLoginMeant: a password is for the site that somebody was asked about. To one
// that a reload has put in its place meanwhile it does not go, nor to one that is
// reached in another way.
func TestLoginMeant(t *testing.T) {
	meant, other := startForm(t), startForm(t)
	text := func(login, path, idp string) string {
		site := "\ninsecure_http = true\nkind = \"form\"\nprobe_url = \"/app/whoami\"\nidentity_json = \"user\"\n"
		all := "[credential.anna]\nusername = \"anna\"\n"
		if idp == "" {
			return all + "[site.app]\nurl = \"" + login + path + "\"\ncredential = \"anna\"" + site
		}
		return all + "[idp.sso]\nurl = \"" + idp + "/app/\"\ncredential = \"anna\"" + site + "[site.app]\nurl = \"" + login + path + "\"\nidp = \"sso\"" + site
	}
	elsewhere := strings.Replace(meant.URL(), "localhost", "127.0.0.1", 1)
	for name, c := range map[string]struct {
		old, text string
		want      api.Code
	}{
		"the same":          {text(meant.URL(), "/app/", ""), text(meant.URL(), "/app/", "") + "allow = [\"uid:0\", \"uid:5\"]\n", ""},
		"another host":      {text(meant.URL(), "/app/", ""), text(other.URL(), "/app/", ""), api.InvalidRequest},
		"another path":      {text(meant.URL(), "/app/", ""), text(meant.URL(), "/app", ""), api.InvalidRequest},
		"another provider":  {text(elsewhere, "/app/", meant.URL()), text(elsewhere, "/app/", other.URL()), api.InvalidRequest},
		"a provider at all": {text(meant.URL(), "/app/", ""), text(elsewhere, "/app/", other.URL()), api.InvalidRequest},
		"gone":              {text(meant.URL(), "/app/", ""), "", api.UnknownSite},
	} {
		t.Run(name, func(t *testing.T) {
			load := func(text string) *Config {
				c, err := configure(t, map[string]string{"sessiond.toml": text})
				if err != nil {
					t.Fatal(err)
				}
				return c
			}
			old, next := load(c.old), load(c.text)
			st, err := store.Open(filepath.Join(t.TempDir(), "state", "store.db"), store.Options{Key: store.KeyFile(filepath.Join(t.TempDir(), "key"))})
			if err != nil {
				t.Fatal(err)
			}
			defer st.Close()
			log := slog.New(slog.DiscardHandler)
			latches := keeper.NewLatches(st.Bucket("latches"), func(data ...[]byte) []byte { return st.MAC("latch", data...) })
			s := &service{config: old, log: log, self: uint32(os.Geteuid()), now: time.Now, replaced: make(chan struct{}),
				secrets: &secrets{latches: latches, records: st.Bucket("passwords"), clock: keeper.NewClock(), passwords: map[passwordKey]*keeper.Password{}, inURLs: map[string]web.ProxyPassword{}}}
			sites, idps := old.keeperSites(s.secrets)
			s.keeper = keeper.New(keeper.Options{Sites: sites, IdPs: idps, Records: st.Bucket("sessions"), Lives: st.Bucket("lives"), Latches: latches, Log: log, Clock: s.secrets.clock})
			defer s.keeper.Close()
			before := [2]rig.FormCounts{meant.Counts(), other.Counts()}
			ctx := &betimes{Context: own(t), then: sync.OnceFunc(func() { s.apply(next) })}
			_, err = s.Login(ctx, &pb.LoginRequest{Site: "app", Password: []byte("CANARY-anna")})
			if api.CodeOf(err) != c.want || s.current() != next {
				t.Errorf("%v, want %q", err, c.want)
			}
			if after := [2]rig.FormCounts{meant.Counts(), other.Counts()}; c.want != "" && after != before {
				t.Errorf("a password was tried: %+v, before %+v", after, before)
			}
			if stored, _, err := st.Bucket("passwords").Load("anna"); c.want != "" && stored != nil {
				t.Errorf("%d bytes are stored, %v", len(stored), err)
			}
		})
	}
}

// startForm starts a form application that knows anna.
func startForm(t *testing.T) *rig.Form {
	t.Helper()
	form, err := rig.StartForm()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(form.Stop)
	form.AddUser("anna", "CANARY-anna")
	return form
}

// betimes is a call's context that has something happen before the caller is
// known: when the service has looked at its configuration.
type betimes struct {
	context.Context
	then func()
}

func (b *betimes) Value(key any) any {
	b.then()
	return b.Context.Value(key)
}

// own is the context of a call by this process.
func own(t *testing.T) context.Context {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(shortDir(t), "socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	near, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	far, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	_, info, err := peer.Credentials().ServerHandshake(far)
	if err != nil {
		t.Fatal(err)
	}
	return grpcpeer.NewContext(t.Context(), &grpcpeer.Peer{AuthInfo: info})
}

// TestChanges: by name, whatever the sites' users.
func TestChanges(t *testing.T) {
	site := func(name, setup string) *Site { return &Site{Name: name, setup: setup} }
	resp := changes(&Config{Sites: []*Site{site("a", "1"), site("b", "1"), site("c", "1"), site("e", "1")}},
		&Config{Sites: []*Site{site("b", "1"), site("c", "2"), site("d", "1"), site("e", "2")}})
	if got := fmt.Sprint(resp.GetAdded(), resp.GetChanged(), resp.GetRemoved()); got != "[d] [c e] [a]" {
		t.Error(got)
	}
	// Identity providers come after the sites, and are none of them.
	resp = changes(&Config{Sites: []*Site{site("sso", "1")}, idps: []*Site{site("old", "1"), site("sso", "1")}},
		&Config{Sites: []*Site{site("new", "1"), site("sso", "1")}, idps: []*Site{site("new", "1"), site("sso", "2")}})
	if got := fmt.Sprintf("%q %q %q", resp.GetAdded(), resp.GetChanged(), resp.GetRemoved()); got != `["new" "idp new"] ["idp sso"] ["idp old"]` {
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
