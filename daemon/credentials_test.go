package daemon

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sessionctl/sessionctl/api"
	pb "github.com/sessionctl/sessionctl/api/sessionctl/v1"
	"github.com/sessionctl/sessionctl/daemon/internal/keeper"
	"github.com/sessionctl/sessionctl/daemon/internal/login"
	"github.com/sessionctl/sessionctl/daemon/internal/peer"
	"github.com/sessionctl/sessionctl/daemon/internal/rig"
	"github.com/sessionctl/sessionctl/daemon/internal/web"
	"github.com/sessionctl/sessionctl/store"
)

// manager is a systemd that asks for credentials at an agent.
type manager struct {
	*running
	at  string
	log *lockedLog
}

type lockedLog struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// manage starts an agent that has a socket for credentials.
func manage(t *testing.T, config *Config) *manager {
	t.Helper()
	m := &manager{at: filepath.Join(shortDir(t), "credentials.sock"), log: &lockedLog{}}
	l, err := net.Listen("unix", m.at)
	if err != nil {
		t.Fatal(err)
	}
	m.running = run(t, Options{Config: config, Credentials: l, Log: slog.New(slog.NewTextHandler(m.log, nil))})
	return m
}

// dial calls as systemd does: from an address that names unit and credential.
func (m *manager) dial(t *testing.T, name string) *net.UnixConn {
	t.Helper()
	from := &net.UnixAddr{Name: fmt.Sprintf("@%x/unit/%s", rand.Uint64(), name), Net: "unix"}
	c, err := net.DialUnix("unix", from, &net.UnixAddr{Name: m.at, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	return c
}

// limit is what systemd takes at most (systemd.exec(5)).
const limit = 1 << 20

// read reads as systemd does, which is refused if there is too much.
func read(t *testing.T, c *net.UnixConn) (credential string, refused bool) {
	t.Helper()
	b, err := io.ReadAll(io.LimitReader(c, limit+1))
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if len(b) > limit {
		if len(bytes.Trim(b, "\x00")) > 0 {
			t.Error("there is something in a refusal")
		}
		return "", true
	}
	return string(b), false
}

// TestCredentials: units get the sessions that they may have, as raw prints them, and
// whatever is refused, is refused in a way that keeps the unit from starting.
func TestCredentials(t *testing.T) {
	rig.Require(t, "root") // which systemd is
	form := startForm(t)
	site := func(name, more string) string {
		return fmt.Sprintf("[site.%s]\nurl = %q\nkind = \"form\"\ninsecure_http = true\nprobe_url = \"whoami\"\nidentity_json = \"user\"\n%s\n", name, form.URL()+"/app/", more)
	}
	m := manage(t, loaded(t,
		site("app", "credential = \"anna\"\nallow = [\"unit:app.service\", \"unit:both@1.service\", \"user:root\"]"),
		site("other", "credential = \"anna\"\nallow = [\"unit:other.service\"]"),
		site("roots", "credential = \"anna\"\nallow = [\"user:root\", \"gid:0\"]"),
		site("shared", "[[site.shared.use]]\ncredential = \"bert\"\nallow = [\"unit:bert.service\"]\n[[site.shared.use]]\ncredential = \"anna\"\nallow = [\"unit:app.service\"]"),
	))
	if _, err := m.sessions.Login(t.Context(), &pb.LoginRequest{Site: "app", Password: []byte("CANARY-anna")}); err != nil {
		t.Fatal(err)
	}
	s, err := m.sessions.GetSession(t.Context(), &pb.GetSessionRequest{Site: "app"})
	if err != nil {
		t.Fatal(err)
	}
	want, err := cookieValue(s.GetSession())
	if err != nil || len(want) == 0 {
		t.Fatal(err)
	}
	for _, name := range []string{"app.service/app", "both@1.service/app", "app.service/app"} {
		if got, refused := read(t, m.dial(t, name)); refused || got != string(want) {
			t.Errorf("%s: %q, refused %v", name, got, refused)
		}
	}
	if got, refused := read(t, m.dial(t, "app.service/shared")); refused || got == "" || got == string(want) {
		t.Errorf("by a use: %q, refused %v", got, refused)
	}
	for name, said := range map[string]string{
		"app.service/other":    `code=unknown_site`,
		"app.service/none":     `code=unknown_site`,
		"app.service/roots":    `add \"unit:app.service\" to the site's allow, then: sessionctl reload`,
		"both@2.service/app":   `add \"unit:both@2.service\" to`,
		"other.service/other2": `unit=other.service site=other2`,
		"bert.service/shared":  `code=no_secret`,
		"app.socket/app":       `nothing is handed over as a credential`,
		"app.service/a b\"\n":  `site="a b\"\n"`,
	} {
		before := len(m.log.String())
		if got, refused := read(t, m.dial(t, name)); !refused {
			t.Errorf("%s: %q", name, got)
		}
		if got := m.log.String()[before:]; !strings.Contains(got, said) {
			t.Errorf("%s: the log lacks %q: %s", name, said, got)
		}
	}
	// A unit's rule is for systemd alone.
	if s, err := m.sessions.GetSession(t.Context(), &pb.GetSessionRequest{Site: "other"}); api.CodeOf(err) != api.UnknownSite {
		t.Errorf("root has a unit's session: %v %v", s.GetSession().GetSite(), err)
	}
	// Many at a time.
	var all sync.WaitGroup
	for i := range 50 {
		c := m.dial(t, fmt.Sprintf("x%d.service/app", i))
		all.Go(func() {
			if got, refused := read(t, c); !refused {
				t.Errorf("refused: %q", got)
			}
		})
	}
	all.Wait()
	m.stop()
	if log := m.log.String(); strings.Contains(log, "CANARY") || strings.Contains(log, string(want)) || !strings.Contains(log, `msg="a session is handed over to a unit" unit=app.service site=app user=anna`) {
		t.Errorf("the log holds a secret, or not what happened:\n%s", log)
	}
}

// TestCredentialsOfUsers: the name of the other end is worth what its user is.
func TestCredentialsOfUsers(t *testing.T) {
	rig.Require(t, "root") // to be somebody else
	m := manage(t, loaded(t, almText, "credential = \"anna\"\nallow = [\"unit:app.service\", \"uid:4242\"]\n"))
	for _, path := range []string{filepath.Dir(m.at), m.at} { // with all doors open
		if err := os.Chmod(path, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // for good, so that the thread ends, and with it who it is
		if _, _, errno := syscall.RawSyscall(syscall.SYS_SETRESUID, 4242, 4242, 4242); errno != 0 {
			t.Error(errno)
			return
		}
		if credential, refused := read(t, m.dial(t, "app.service/alm")); !refused {
			t.Errorf("got %q", credential)
		}
	}()
	<-done
	if log := m.log.String(); !strings.Contains(log, "uid 4242 is not root") || strings.Contains(log, "app.service") {
		t.Errorf("the log: %s", log)
	}
}

// TestCredentialsEnd: who has called by the time the agent is about to end gets what
// there is until its end, and is refused then.
func TestCredentialsEnd(t *testing.T) {
	rig.Require(t, "root")
	for name, inTime := range map[string]bool{"in time": true, "too late": false} {
		t.Run(name, func(t *testing.T) {
			form := startForm(t)
			asked, release := make(chan struct{}, 10), make(chan struct{})
			slow := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				asked <- struct{}{}
				select {
				case <-release:
					form.ServeHTTP(w, r)
				case <-r.Context().Done():
				}
			}))
			defer slow.Close()
			dir := shortDir(t)
			if err := os.WriteFile(filepath.Join(dir, "password.anna"), []byte("CANARY-anna"), 0o600); err != nil {
				t.Fatal(err)
			}
			t.Setenv("CREDENTIALS_DIRECTORY", dir)
			config := loaded(t, fmt.Sprintf("[site.app]\nurl = \"%s/app/\"\nkind = \"form\"\ncredential = \"anna\"\ninsecure_http = true\nprobe_url = \"whoami\"\nidentity_json = \"user\"\nallow = [\"unit:app.service\"]\n", slow.URL))
			st, err := store.Open(filepath.Join(dir, "state", "store.db"), store.Options{Key: store.KeyFile(filepath.Join(dir, "key"))})
			if err != nil {
				t.Fatal(err)
			}
			defer st.Close()
			log := slog.New(slog.DiscardHandler)
			latches := keeper.NewLatches(st.Bucket("latches"), func(data ...[]byte) []byte { return st.MAC("latch", data...) })
			s := &service{config: config, log: log, now: time.Now, replaced: make(chan struct{}),
				secrets: &secrets{latches: latches, records: st.Bucket("passwords"), clock: keeper.NewClock(), passwords: map[passwordKey]*keeper.Password{}, inURLs: map[string]web.ProxyPassword{}}}
			sites, idps := config.keeperSites(s.secrets)
			s.keeper = keeper.New(keeper.Options{Sites: sites, IdPs: idps, Records: st.Bucket("sessions"), Lives: st.Bucket("lives"), Latches: latches, Log: log, Clock: s.secrets.clock})
			defer s.keeper.Close()

			m := &manager{at: filepath.Join(dir, "credentials.sock")}
			l, err := net.Listen("unix", m.at)
			if err != nil {
				t.Fatal(err)
			}
			wire := newCodec()
			defer wire.stop()
			ctx, giveUp := context.WithCancel(t.Context())
			defer giveUp()
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				s.handOver(ctx, l, wire)
			}()
			c := m.dial(t, "app.service/app")
			<-asked
			l.Close()
			if inTime {
				close(release)
			} else {
				giveUp()
			}
			if got, refused := read(t, c); refused == inTime || (got != "") != inTime {
				t.Errorf("got %q, refused %v", got, refused)
			}
			<-ended
		})
	}
}

// calling is a listener whose calls the test makes.
type calling struct {
	net.Listener
	made chan net.Conn
}

func (c calling) Accept() (net.Conn, error) {
	conn, ok := <-c.made
	if !ok {
		return nil, net.ErrClosed
	}
	return conn, nil
}

// refused reads like systemd what is one too many bytes for it.
func refused(t *testing.T, c net.Conn) {
	t.Helper()
	if n, err := io.CopyN(io.Discard, c, limit+1); err != nil {
		t.Errorf("after %d bytes: %v", n, err)
	}
	c.Close()
}

// TestRefusalStalls: a systemd that does not read for hours gets the whole refusal when
// it does; and however many do not, they hold up nobody.
func TestRefusalStalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &service{log: slog.New(slog.DiscardHandler)}
		l := calling{made: make(chan net.Conn)}
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			s.handOver(t.Context(), l, codec{})
		}()
		begin := time.Now()
		call := func() net.Conn {
			here, there := net.Pipe() // which is nobody's
			l.made <- there
			return here
		}
		var stalled []net.Conn
		for range maxRefusals - 1 {
			stalled = append(stalled, call())
		}
		refused(t, call())
		if waited := time.Since(begin); waited != 0 {
			t.Errorf("others held it up for %v", waited)
		}
		<-time.After(3 * time.Hour)
		for _, c := range stalled {
			refused(t, c)
		}
		close(l.made)
		<-ended
	})
}

// TestRefusalEnds: who does not read does not keep the agent from ending.
func TestRefusalEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, end := context.WithCancel(t.Context())
		here, there := net.Pipe()
		defer here.Close()
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			defer there.Close()
			refuse(ctx, there)
		}()
		<-time.After(time.Hour)
		begin := time.Now()
		end()
		<-ended
		if waited := time.Since(begin); waited != sendTime {
			t.Errorf("it waited for %v more", waited)
		}
	})
}

// sitting is a site that answers when it is told to.
type sitting struct {
	login.Driver
	at   *url.URL
	wait <-chan struct{}
}

func (s sitting) Takes() []login.Means { return []login.Means{login.Ticket} }

func (s sitting) Login(_ context.Context, x *web.Exchange, _ login.Password) error {
	if s.wait != nil {
		<-s.wait
	}
	x.Jar().Set(s.at, []string{"a=CANARY-live"}, x.Now())
	return nil
}

func (s sitting) Probe(context.Context, *web.Exchange) (login.Identity, error) {
	return login.Identity{Name: "anna"}, nil
}

// none keeps no records.
type none struct{}

func (none) Load(string) ([]byte, uint64, error) { return nil, 0, nil }

func (none) Swap(context.Context, string, uint64, []byte) (uint64, error) { return 1, nil }

// TestCredentialsWait: a site that never answers is refused after credentialTime, and
// one call more than there is room for is answered then.
func TestCredentialsWait(t *testing.T) {
	rig.Require(t, "root")
	text := ""
	for _, name := range []string{"dead", "live"} {
		text += fmt.Sprintf("[site.%s]\nurl = \"https://%s.corp.example/\"\nkind = \"form\"\ncredential = \"anna\"\nprobe_url = \"whoami\"\nidentity_json = \"user\"\nallow = [\"unit:app.service\"]\n", name, name)
	}
	config := loaded(t, text)
	m := &manager{at: filepath.Join(shortDir(t), "credentials.sock"), log: &lockedLog{}}
	real, err := net.Listen("unix", m.at)
	if err != nil {
		t.Fatal(err)
	}
	defer real.Close()
	wire := newCodec()
	defer wire.stop()
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		clock := keeper.NewClock()
		have := &secrets{clock: clock, passwords: map[passwordKey]*keeper.Password{}, inURLs: map[string]web.ProxyPassword{}}
		latches := keeper.NewLatches(none{}, func(...[]byte) []byte { return nil })
		have.latches, have.records = latches, none{}
		sites, _ := config.keeperSites(have)
		for i := range sites {
			d := sitting{at: sites[i].URL}
			if sites[i].Name == "dead" {
				d.wait = release
			}
			sites[i].Password, sites[i].Driver = nil, d
			sites[i].Ready, sites[i].Forgive = func() error { return nil }, func(context.Context) error { return nil }
		}
		s := &service{config: config, log: slog.New(slog.NewTextHandler(m.log, nil)), now: clock.Now, replaced: make(chan struct{}), secrets: have}
		s.keeper = keeper.New(keeper.Options{Sites: sites, Records: none{}, Lives: none{}, Latches: latches, Log: s.log, Clock: clock})
		defer s.keeper.Close()
		defer close(release)
		l := calling{made: make(chan net.Conn)}
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			s.handOver(t.Context(), l, wire)
		}()
		call := func(name string) (here *net.UnixConn, there net.Conn) {
			here = m.dial(t, name)
			there, err := real.Accept()
			if err != nil {
				t.Fatal(err)
			}
			return here, there
		}
		begin := time.Now()
		var dead []*net.UnixConn
		for range maxCredentials {
			here, there := call("app.service/dead")
			l.made <- there
			dead = append(dead, here)
		}
		here, there := call("app.service/live")
		l.made <- there // as soon as there is room
		if waited := time.Since(begin); waited != 30*time.Second {
			t.Errorf("there was room for one more after %v", waited)
		}
		if got, refused := read(t, here); refused || got != "a=CANARY-live" {
			t.Errorf("%q, refused %v", got, refused)
		}
		for _, c := range dead {
			if got, refused := read(t, c); !refused {
				t.Errorf("%q", got)
			}
		}
		if waited := time.Since(begin); waited != 30*time.Second {
			t.Errorf("the last one was refused after %v", waited)
		}
		close(l.made)
		<-ended
	})
	if log := m.log.String(); strings.Count(log, "code=deadline") != maxCredentials || strings.Contains(log, "CANARY") {
		t.Errorf("%d refusals: %.2000s", strings.Count(log, "code=deadline"), log)
	}
}

// TestUnitRules: a unit has a site's session if the site says so, and tickets never.
func TestUnitRules(t *testing.T) {
	config := loaded(t, almText, "credential = \"anna\"\n[[site.alm.use]]\ncredential = \"bert\"\nallow = [\"unit:app@1.service\"]\n")
	for unit, served := range map[string]bool{"app@1.service": true, "app@2.service": false} {
		if got := config.Sites[0].serves(peer.Caller{Unit: unit}); (got != nil) != served || served && got.credential.Name != "bert" {
			t.Errorf("%s: %+v", unit, got)
		}
	}
	for text, want := range map[string]string{
		almText + "credential = \"anna\"\nallow = [\"unit:app\"]\n":                                        `site.alm: allow: "unit:app": "app" is not the full name of a service`,
		"[credential.p]\nprincipal = \"p\"\nkeytab = \"/x\"\nexport = [\"uid:1\", \"unit:app.service\"]\n": `credential.p: export: "unit:app.service": what systemd loads for a unit is the session of a site`,
	} {
		if _, err := configure(t, map[string]string{"sessiond.toml": peopleText + text}); api.CodeOf(err) != api.ConfigInvalid || !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// TestCookieValue: what raw does not print is no credential.
func TestCookieValue(t *testing.T) {
	h := func(name, value string) *pb.Header { return &pb.Header{Name: name, Value: []byte(value)} }
	for _, c := range []struct {
		headers []*pb.Header
		want    string
		code    api.Code
	}{
		{[]*pb.Header{h("X-A", "b"), h("Cookie", "a=CANARY; b=\"é\"")}, "a=CANARY; b=\"é\"", ""},
		{[]*pb.Header{h("Authorization", "Bearer CANARY"), h("cookie", "a=CANARY")}, "a=CANARY", ""},
		{[]*pb.Header{h("Authorization", "Bearer CANARY")}, "", api.PerRequestOnly},
		{[]*pb.Header{h("X-A", "b"), h("Cookie", "")}, "", api.NoSessionCookie},
		{nil, "", api.NoSessionCookie},
		{[]*pb.Header{h("Cookie", "a=CANARY\nb")}, "", api.Unprintable},
		{[]*pb.Header{h("Cookie", "a=CANARY\x00b")}, "", api.Unprintable},
		{[]*pb.Header{h("Cookie", "a=CANARY\x7fb")}, "", api.Unprintable},
		{[]*pb.Header{h("Cookie", "a=CANARY\tb")}, "", api.Unprintable},
		{[]*pb.Header{h("Cookie", "a=CANARY\xffb")}, "", api.Unprintable},
	} {
		got, err := cookieValue(&pb.Session{Headers: c.headers})
		if string(got) != c.want || api.CodeOf(err) != c.code || err != nil && (strings.Contains(err.Error(), "CANARY") || api.AsError(err).Remedy == "") {
			t.Errorf("%v: %q %v", c.headers, got, err)
		}
	}
}
