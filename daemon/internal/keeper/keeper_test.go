package keeper

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/login"
	"github.com/sessionctl/sessionctl/daemon/internal/web"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pass lets time pass on the clock of the test's bubble.
func pass(d time.Duration) { <-time.After(d) }

// records is a store in memory.
type records struct {
	mu      sync.Mutex
	data    map[string][]byte
	rev     map[string]uint64
	last    uint64
	writes  int
	failing error
	late    bool // fail after the change instead of before
}

func newRecords() *records { return &records{data: map[string][]byte{}, rev: map[string]uint64{}} }

func (r *records) Load(key string) ([]byte, uint64, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.data[key], r.rev[key], nil
}

func (r *records) Swap(_ context.Context, key string, revision uint64, record []byte) (uint64, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.rev[key] != revision:
		return 0, errors.New("conflict")
	case r.failing != nil && r.late && record != nil:
		// Done, and not known to be done: the disk took it, then the sync failed.
		r.last++
		r.data[key], r.rev[key] = record, r.last
		return 0, r.failing
	case r.failing != nil:
		return 0, r.failing
	case record == nil:
		delete(r.data, key)
		delete(r.rev, key)
		return 0, nil
	}
	r.writes++
	r.last++
	r.data[key], r.rev[key] = record, r.last
	return r.last, nil
}

func (r *records) clone() *records {
	return &records{data: maps.Clone(r.data), rev: maps.Clone(r.rev), last: r.last}
}

// site is a site in memory: it has one session cookie at a time, and a driver
// that gets it.
type site struct {
	mu      sync.Mutex
	current string        // the cookie it honours, "" for none
	user    string        // whose it is
	life    time.Duration // Max-Age of the cookie, 0 for none
	rotate  bool          // a new value with every probe
	delay   time.Duration // of logins and probes
	loginE  error
	probeE  error

	logins, probes int
}

func (s *site) set(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

func (s *site) issue(x *web.Exchange) {
	s.current = "CANARY-" + time.Now().String()
	line := "session=" + s.current
	if s.life > 0 {
		line += fmt.Sprintf("; Max-Age=%.0f", s.life.Seconds())
	}
	x.Jar().Set(siteURL, []string{line}, time.Now())
}

func (s *site) wait(ctx context.Context) error {
	select {
	case <-time.After(s.delay):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *site) Login(ctx context.Context, x *web.Exchange) error {
	if err := s.wait(ctx); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.logins++
	if s.loginE != nil {
		return s.loginE
	}
	s.issue(x)
	return nil
}

func (s *site) Probe(ctx context.Context, x *web.Exchange) (login.Identity, error) {
	if err := s.wait(ctx); err != nil {
		return login.Identity{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.probes++
	switch {
	case s.probeE != nil:
		return login.Identity{}, s.probeE
	case s.current == "" || x.Jar().Header(siteURL, time.Now()) != "session="+s.current:
		return login.Identity{}, &api.Error{Code: api.Expired, Detail: "401"}
	}
	if s.rotate {
		s.issue(x)
	}
	return login.Identity{Name: s.user}, nil
}

var siteURL = &url.URL{Scheme: "https", Host: "app.corp.example", Path: "/"}

// agent is a keeper with one site.
type agent struct {
	*Keeper
	site    *site
	records *records
}

func start(t *testing.T, s *site, r *records) *agent {
	if s.user == "" {
		s.user = "build"
	}
	var log bytes.Buffer
	a := &agent{site: s, records: r}
	a.Keeper = New(Options{
		Sites: []Site{{
			Name: "app", Kind: "test", URL: siteURL, Account: "build@CORP.EXAMPLE", Verifier: "realm:CORP.EXAMPLE",
			Fingerprint: "f1", Expect: login.Expectation{Names: []string{"Build"}}, Recheck: 5 * time.Minute, Driver: s,
			Exchange: func(jar *web.Jar, _ bool) *web.Exchange {
				return web.NewExchange(web.Options{Base: siteURL}, jar)
			},
		}},
		Records: r, Latches: NewLatches(newRecords(), mac), Log: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	t.Cleanup(func() {
		a.Close()
		if strings.Contains(log.String(), "CANARY") {
			t.Errorf("a cookie is in the log:\n%s", log.String())
		}
	})
	return a
}

func mac(data ...[]byte) []byte {
	h := hmac.New(sha256.New, []byte("CANARY-key"))
	for _, d := range data {
		h.Write([]byte{byte(len(d))})
		h.Write(d)
	}
	return h.Sum(nil)
}

// get asks for the session and checks that what comes is honoured by the site.
func (a *agent) get(t *testing.T) Served {
	t.Helper()
	s, err := a.Get(t.Context(), "app", GetOptions{})
	if err != nil {
		t.Fatalf("get: %v", err)
	}
	return s
}

func (a *agent) refused(t *testing.T, code api.Code) {
	t.Helper()
	if s, err := a.Get(t.Context(), "app", GetOptions{}); api.CodeOf(err) != code {
		t.Fatalf("got %v, %v; want code %s", s, err, code)
	}
}

func header(s Served) string {
	return web.CookieHeader(s.Cookies(siteURL, time.Now()))
}

func (a *agent) count(t *testing.T, logins, probes int) {
	t.Helper()
	a.site.mu.Lock()
	defer a.site.mu.Unlock()
	if a.site.logins != logins || a.site.probes != probes {
		t.Errorf("%d logins, %d probes; want %d, %d", a.site.logins, a.site.probes, logins, probes)
	}
}

func TestOneLoginForManyCallers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := start(t, &site{delay: time.Second}, newRecords())
		var wg sync.WaitGroup
		for i := range 1000 {
			wg.Go(func() {
				ctx := t.Context()
				if i%10 == 0 { // a caller that leaves cancels nothing
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, 100*time.Millisecond)
					defer cancel()
				}
				_, err := a.Get(ctx, "app", GetOptions{})
				if i%10 == 0 {
					if api.CodeOf(err) != api.Deadline {
						t.Errorf("a caller with too little time got %v", err)
					}
				} else if err != nil {
					t.Errorf("get: %v", err)
				}
			})
		}
		wg.Wait()
		a.count(t, 1, 1)
	})
}

func TestServedFromMemoryUntilRecheck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := start(t, &site{}, newRecords())
		first := a.get(t)
		pass(5*time.Minute - time.Second)
		a.get(t)
		a.count(t, 1, 1)
		pass(time.Second)
		if s := a.get(t); s.Generation != first.Generation || s.ProveTime.Equal(first.ProveTime) {
			t.Error("the recheck did not prove the same session")
		}
		a.count(t, 1, 2)
		if a.records.writes != 1 {
			t.Errorf("%d writes; a mere proof is not written", a.records.writes)
		}
	})
}

func TestDeadSessionHealsAtTheNextCheck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := start(t, &site{}, newRecords())
		first := a.get(t)
		a.site.set(func() { a.site.current = "" })
		pass(5 * time.Minute)
		if s := a.get(t); s.Generation == first.Generation || header(s) != "session="+a.site.current {
			t.Error("the dead session was served")
		}
		a.count(t, 2, 3)
	})
}

func TestReportedDead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := start(t, &site{delay: time.Second}, newRecords())
		first := a.get(t)

		// Not true: one probe, the same session.
		s, err := a.Refresh(t.Context(), "app", first.Generation, false)
		if err != nil || s.Generation != first.Generation {
			t.Fatalf("%v %v", s.Generation, err)
		}
		a.count(t, 1, 2)

		// True, and said by many: one probe, one login.
		a.site.set(func() { a.site.current = "" })
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				if s, err := a.Refresh(t.Context(), "app", first.Generation, false); err != nil || s.Generation == first.Generation {
					t.Errorf("%v", err)
				}
			})
		}
		wg.Wait()
		a.count(t, 2, 4)

		// Said too late: nothing.
		if s, err := a.Refresh(t.Context(), "app", first.Generation, false); err != nil || s.Generation == first.Generation {
			t.Errorf("%v", err)
		}
		a.count(t, 2, 4)
	})
}

func TestForcedRefresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := start(t, &site{}, newRecords())
		first := a.get(t)
		pass(time.Second)
		s, err := a.Refresh(t.Context(), "app", "", true)
		if err != nil || s.Generation == first.Generation {
			t.Fatalf("%v", err)
		}
		a.count(t, 2, 2)
		// One that fails leaves the old session to others.
		a.site.set(func() { a.site.loginE = &api.Error{Code: api.KDCUnreachable} })
		if _, err := a.Refresh(t.Context(), "app", "", true); api.CodeOf(err) != api.KDCUnreachable {
			t.Errorf("got %v", err)
		}
		if now := a.get(t); now.Generation != s.Generation {
			t.Error("the old session is gone")
		}
	})
}

func TestOutageServesWhatLives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := start(t, &site{life: time.Hour}, newRecords())
		first := a.get(t)
		a.site.set(func() { a.site.probeE = &api.Error{Code: api.NetworkError, Detail: "refused"} })
		pass(5 * time.Minute)
		for range 50 { // ten minutes
			s := a.get(t)
			if !s.Stale || s.Generation != first.Generation {
				t.Fatalf("not the old session, flagged: %+v", s)
			}
			pass(12 * time.Second)
		}
		synctest.Wait()
		a.site.mu.Lock()
		probes := a.site.probes
		a.site.mu.Unlock()
		if probes > 20 {
			t.Errorf("%d probes in ten minutes of an outage", probes)
		}
		// The end of the outage is seen within one step of the back-off.
		a.site.set(func() { a.site.probeE = nil })
		pass(5 * time.Minute)
		a.get(t)
		synctest.Wait()
		if s := a.get(t); s.Stale || s.Generation != first.Generation {
			t.Errorf("still stale: %+v", s)
		}
		// But not beyond the cookie's own life.
		a.site.set(func() {
			a.site.probeE = &api.Error{Code: api.NetworkError, Detail: "refused"}
			a.site.loginE = a.site.probeE
		})
		pass(time.Hour)
		a.refused(t, api.NetworkError)
	})
}

func TestFailuresBackOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := start(t, &site{loginE: &api.Error{Code: api.KDCUnreachable, Detail: "no KDC answers"}}, newRecords())
		begin := time.Now()
		for time.Since(begin) < time.Hour {
			a.refused(t, api.KDCUnreachable)
			pass(time.Second)
		}
		a.site.mu.Lock()
		logins := a.site.logins
		a.site.mu.Unlock()
		if logins < 10 || logins > 80 {
			t.Errorf("%d attempts in an hour", logins)
		}
		// A person does not have to wait for the back-off.
		a.site.set(func() { a.site.loginE = nil })
		if _, err := a.Login(t.Context(), "app", false); err != nil {
			t.Errorf("login: %v", err)
		}
		a.get(t)
	})
}

func TestCallersWaitForTheEndOfAShortBackOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := start(t, &site{loginE: &api.Error{Code: api.NetworkError}}, newRecords())
		a.refused(t, api.NetworkError)
		a.site.set(func() { a.site.loginE = nil })
		a.get(t) // the first step is at most a second
	})
}

func TestUnprovenIsNeverServed(t *testing.T) {
	for name, c := range map[string]struct {
		site *site
		code api.Code
	}{
		"wrong user":                {&site{user: "somebody"}, api.WrongIdentity},
		"nobody":                    {&site{probeE: &api.Error{Code: api.Expired}}, api.LoginOKButProbeFailed},
		"the probe cannot be asked": {&site{probeE: &api.Error{Code: api.Maintenance}}, api.Maintenance},
	} {
		synctest.Test(t, func(t *testing.T) {
			a := start(t, c.site, newRecords())
			a.refused(t, c.code)
			if _, err := a.Get(t.Context(), "app", GetOptions{CachedOnly: true}); api.CodeOf(err) != api.NotCached {
				t.Errorf("%s: cached: %v", name, err)
			}
			if len(a.records.data) != 0 {
				t.Errorf("%s: it was stored", name)
			}
		})
	}
}

// TestSessionOfSomebodyElse: a session that changes hands is dropped.
func TestSessionOfSomebodyElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := start(t, &site{}, newRecords())
		a.get(t)
		a.site.set(func() { a.site.user = "somebody" })
		pass(5 * time.Minute)
		a.refused(t, api.WrongIdentity)
		if len(a.records.data) != 0 {
			t.Error("it stayed in the store")
		}
	})
}

func TestRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &site{life: 8 * time.Hour}
		a := start(t, s, newRecords())
		first := a.get(t)
		pass(time.Hour)

		// One probe at most, no login.
		b := start(t, s, a.records.clone())
		s.set(func() { s.loginE = &api.Error{Code: api.KDCUnreachable} })
		if got := b.get(t); got.Generation != first.Generation || header(got) != header(first) {
			t.Error("another session after the restart")
		}
		b.count(t, 1, 2)

		// The site is down as well: what was proven before is served, flagged.
		s.set(func() { s.probeE = &api.Error{Code: api.NetworkError} })
		c := start(t, s, a.records.clone())
		if got := c.get(t); !got.Stale || header(got) != header(first) {
			t.Errorf("%+v", got)
		}

		// A configuration that means another session.
		d := start(t, s, a.records.clone())
		d.entries["app"].site.Fingerprint = "f2"
		d.refused(t, api.KDCUnreachable)

		// A record that is no session.
		e := start(t, s, a.records.clone())
		for k := range e.records.data {
			e.records.data[k] = []byte("{")
		}
		e.refused(t, api.KDCUnreachable)
	})
}

func TestRotatedCookiesAreStoredAndServed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := start(t, &site{rotate: true}, newRecords())
		first := a.get(t)
		for range 3 {
			pass(5 * time.Minute)
			if s := a.get(t); s.Generation != first.Generation || header(s) != "session="+a.site.current {
				t.Errorf("served %q, the site honours %q", header(s), a.site.current)
			}
		}
		b := start(t, a.site, a.records.clone())
		if got := b.get(t); header(got) != "session="+a.site.current {
			t.Error("the restart brought an old value back")
		}
	})
}

func TestExpiredCookieIsNotServed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := start(t, &site{life: 2 * time.Minute}, newRecords())
		first := a.get(t)
		pass(2 * time.Minute)
		if s := a.get(t); s.Generation == first.Generation {
			t.Error("a session without its cookie was served")
		}
		a.count(t, 2, 3)
	})
}

func TestMinValidity(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := start(t, &site{life: 10 * time.Minute}, newRecords())
		first := a.get(t)
		pass(6 * time.Minute)
		for _, c := range []struct {
			valid  time.Duration
			logins int
		}{{time.Minute, 1}, {5 * time.Minute, 2}, {5 * time.Minute, 2}, {time.Hour, 3}} {
			s, err := a.Get(t.Context(), "app", GetOptions{MinValidity: c.valid})
			if err != nil {
				t.Fatal(err)
			}
			if a.site.logins != c.logins || c.logins > 1 && s.Generation == first.Generation {
				t.Errorf("min validity %v: %d logins, want %d", c.valid, a.site.logins, c.logins)
			}
		}
	})
}

func TestStoreThatCannotBeWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, late := range []bool{false, true} {
			r := newRecords()
			r.failing, r.late = errors.New("no space left on device"), late
			a := start(t, &site{}, r)
			if s := a.get(t); !s.NotDurable {
				t.Error("not flagged")
			}
			r.mu.Lock()
			r.failing = nil
			r.mu.Unlock()
			pass(5 * time.Minute)
			if s := a.get(t); s.NotDurable || r.writes != 1 {
				t.Errorf("not written after the store had recovered (late: %v)", late)
			}
		}
	})
}

func TestDelete(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := start(t, &site{delay: time.Second}, newRecords())
		go a.Get(t.Context(), "app", GetOptions{}) // under way
		synctest.Wait()
		if err := a.Delete(t.Context(), "app"); err != nil {
			t.Fatal(err)
		}
		if len(a.records.data) != 0 || a.List()[0].Session != nil {
			t.Error("the session is still there")
		}
		a.get(t)
		a.count(t, 2, 2)
	})
}

func TestCachedOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := start(t, &site{}, newRecords())
		if _, err := a.Get(t.Context(), "app", GetOptions{CachedOnly: true}); api.CodeOf(err) != api.NotCached {
			t.Errorf("got %v", err)
		}
		a.get(t)
		pass(time.Hour)
		if _, err := a.Get(t.Context(), "app", GetOptions{CachedOnly: true}); err != nil {
			t.Errorf("got %v", err)
		}
		a.count(t, 1, 1)
	})
}

// TestSilentSite: a site that never answers costs a caller the agent's own
// limits, not for ever.
func TestSilentSite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := start(t, &site{delay: time.Hour}, newRecords())
		begin := time.Now()
		a.refused(t, api.Timeout)
		if took := time.Since(begin); took != loginTimeout {
			t.Errorf("the login took %v", took)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		a := start(t, &site{}, newRecords())
		a.get(t)
		a.site.set(func() { a.site.delay = time.Hour })
		pass(5 * time.Minute)
		begin := time.Now()
		if s := a.get(t); !s.Stale || time.Since(begin) != probeTimeout {
			t.Errorf("%+v after %v", s, time.Since(begin))
		}
		begin = time.Now()
		for range 100 { // nobody waits for the next probe
			a.get(t)
		}
		if took := time.Since(begin); took != 0 {
			t.Errorf("callers waited %v for a site that is known to be silent", took)
		}
	})
}

func TestUnknownSite(t *testing.T) {
	a := start(t, &site{}, newRecords())
	if _, err := a.Get(t.Context(), "other", GetOptions{}); api.CodeOf(err) != api.UnknownSite {
		t.Errorf("got %v", err)
	}
}

func TestStates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := start(t, &site{delay: time.Second}, newRecords())
		state := func(want State) {
			t.Helper()
			if got := a.List()[0].State; got != want {
				t.Errorf("state %d, want %d", got, want)
			}
		}
		state(None)
		go a.Get(t.Context(), "app", GetOptions{})
		synctest.Wait()
		state(LoggingIn)
		pass(time.Minute)
		state(Live)
		a.site.set(func() { a.site.probeE = &api.Error{Code: api.NetworkError} })
		pass(5 * time.Minute)
		a.get(t)
		state(Stale)
		a.site.set(func() {
			a.site.probeE, a.site.current = nil, ""
			a.site.loginE = &api.Error{Code: api.BadCredentials}
		})
		pass(5 * time.Minute)
		a.get(t)
		pass(time.Minute)
		state(Latched)
	})
}

func TestLatches(t *testing.T) {
	r := newRecords()
	l := NewLatches(r, mac)
	ctx := t.Context()
	wrong, right := []byte("CANARY-wrong"), []byte("CANARY-right")
	if err := l.Check("realm:A", "build", wrong); err != nil {
		t.Fatal(err)
	}
	if err := l.Set(ctx, "realm:A", "build", wrong, &api.Error{Code: api.BadCredentials, Detail: "the KDC refused the key"}); err != nil {
		t.Fatal(err)
	}
	for _, l := range []*Latches{l, NewLatches(r.clone(), mac)} { // now, and after a restart
		err := l.Check("realm:A", "build", wrong)
		if api.CodeOf(err) != api.Latched || !strings.Contains(err.Error(), "bad_credentials") {
			t.Errorf("the refused secret: %v", err)
		}
		for _, c := range []struct {
			verifier, user string
			secret         []byte
		}{{"realm:A", "build", right}, {"realm:B", "build", wrong}, {"realm:A", "other", wrong}} {
			if err := l.Check(c.verifier, c.user, c.secret); err != nil {
				t.Errorf("%v: %v", c, err)
			}
		}
	}
	// A second refused secret does not make room for the first.
	if err := l.Set(ctx, "realm:A", "build", right, &api.Error{Code: api.BadCredentials}); err != nil {
		t.Fatal(err)
	}
	if api.CodeOf(l.Check("realm:A", "build", wrong)) != api.Latched {
		t.Error("the first refused secret was forgotten")
	}
	for _, b := range r.data {
		if bytes.Contains(b, []byte("CANARY")) {
			t.Errorf("a secret is in the record %s", b)
		}
	}
	if err := l.Clear(ctx, "realm:A", "build"); err != nil {
		t.Fatal(err)
	}
	if err := NewLatches(r, mac).Check("realm:A", "build", wrong); err != nil {
		t.Errorf("after Clear: %v", err)
	}
	// A record that cannot be read: nothing is tried until a person says so.
	for k := range r.data {
		r.data[k] = []byte("damaged")
	}
	l = NewLatches(r, mac)
	if err := l.Check("realm:A", "build", wrong); api.CodeOf(err) != api.StoreDamaged {
		t.Errorf("unreadable refusals: %v", err)
	}
	clear(r.rev) // as package store shows a damaged record
	if err := l.Clear(ctx, "realm:A", "build"); err != nil {
		t.Fatal(err)
	}
	if err := l.Check("realm:A", "build", wrong); err != nil {
		t.Errorf("after Clear: %v", err)
	}
	// A store that cannot be written: the refusal stands for this process.
	r.failing = errors.New("no space left on device")
	if err := l.Set(ctx, "realm:A", "build", wrong, &api.Error{Code: api.BadCredentials}); err == nil {
		t.Error("Set hid that the refusal is not stored")
	}
	if api.CodeOf(l.Check("realm:A", "build", wrong)) != api.Latched {
		t.Error("the refusal does not stand")
	}
}

func FuzzDecodeSession(f *testing.F) {
	j := new(web.Jar)
	j.Set(siteURL, []string{"s=CANARY-1; Max-Age=60"}, time.Unix(1<<31, 0))
	f.Add(encodeSession(&Session{Generation: "g", Identity: "build", LoginTime: time.Unix(1<<31, 0), jar: j}, "f1"))
	f.Add([]byte(`{"v":1,"fingerprint":"f1","cookies":[{"url":":","line":"cw=="}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := decodeSession(b, "f1")
		if err != nil {
			return
		}
		again, err := decodeSession(encodeSession(s, "f1"), "f1")
		if err != nil || !again.jar.Equal(s.jar) || again.Generation != s.Generation {
			t.Errorf("%s does not survive another round: %v", b, err)
		}
	})
}
