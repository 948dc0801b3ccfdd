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
	r.mu.Lock()
	defer r.mu.Unlock()
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
	ticketE error // of logins by ticket
	probeE  error
	ready   error  // what keeps the credential from being used
	extra   string // a further Set-Cookie line of each login
	probed  func() // what a probe does first
	takes   bool   // a proof takes the cookies away
	// names says what a probe calls the user, given its cookie before and after
	// it, instead of user.
	names func(before, after string) string

	url   *url.URL      // its own; nil: siteURL
	attrs func() string // further attributes of its cookie, with their semicolon

	directory *directory                                  // judges passwords; nil: it logs in by ticket
	page      error                                       // what the login page says before a password is taken
	taken     func(context.Context, login.Password) error // what happens to a password instead of a verdict

	logins, probes int
}

func (s *site) set(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

func (s *site) tally() (logins, probes int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.logins, s.probes
}

func (s *site) issue(x *web.Exchange) {
	s.current = "CANARY-" + time.Now().String()
	line := "session=" + s.current
	if s.life > 0 {
		line += fmt.Sprintf("; Max-Age=%.0f", s.life.Seconds())
	}
	if s.attrs != nil {
		line += s.attrs()
	}
	x.Jar().Set(s.at(), []string{line, s.extra}, x.Now())
}

func (s *site) at() *url.URL {
	if s.url == nil {
		return siteURL
	}
	return s.url
}

// wait makes no timer where there is nothing to wait for: one that is due as soon as it
// is made is run by the goroutine that selects on it, and go1.26's race detector crashes
// when two of a bubble do so at once.
func (s *site) wait(ctx context.Context) error {
	if s.delay == 0 {
		return ctx.Err()
	}
	select {
	case <-time.After(s.delay):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *site) Takes() []login.Means { return []login.Means{login.Ticket} }

func (s *site) Login(ctx context.Context, x *web.Exchange, p login.Password) error {
	if p != nil {
		if err := s.password(ctx, p); err != nil {
			return err
		}
	} else if err := s.wait(ctx); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.logins++
	if s.loginE != nil {
		return s.loginE
	}
	if p == nil && s.ticketE != nil {
		return s.ticketE
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
	if s.probed != nil {
		s.probed()
	}
	switch {
	case s.probeE != nil:
		return login.Identity{}, s.probeE
	case s.current == "" || !strings.Contains(x.Jar().Header(s.at(), x.Now()), "session="+s.current):
		return login.Identity{}, &api.Error{Code: api.Expired, Detail: "401"}
	}
	before := s.current
	if s.rotate {
		s.issue(x)
	}
	if s.takes {
		x.Jar().Set(s.at(), []string{"session=; Max-Age=0"}, x.Now())
	}
	if s.names != nil {
		return login.Identity{Name: s.names(before, s.current)}, nil
	}
	return login.Identity{Name: s.user}, nil
}

// named is the site as a keeper sees it.
func (s *site) named(name string) Site {
	if s.user == "" {
		s.user = "build"
	}
	return Site{
		Name: name, Kind: "test", URL: s.at(), Account: "build@CORP.EXAMPLE",
		Ready: func() error { return s.ready }, Forgive: func(context.Context) error { s.ready = nil; return nil },
		Fingerprint: "f1", Expect: login.Expectation{Names: []string{"Build"}}, Recheck: 5 * time.Minute, RecheckSet: true, Driver: s,
		Exchange: func(jar *web.Jar, _ bool) *web.Exchange {
			return web.NewExchange(web.Options{Base: s.at()}, jar)
		},
	}
}

var siteURL = &url.URL{Scheme: "https", Host: "app.corp.example", Path: "/"}

// agent is a keeper with one site.
type agent struct {
	*Keeper
	site    *site
	records *records
}

func start(t *testing.T, s *site, r *records) *agent {
	return &agent{Keeper: keep(t, r, NewLatches(newRecords(), mac), s.named("app")), site: s, records: r}
}

// keep starts a keeper whose log holds no secret.
func keep(t *testing.T, r *records, l *Latches, sites ...Site) *Keeper {
	var log bytes.Buffer
	k := New(Options{
		Sites: sites, Records: r, Latches: l,
		Log: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	t.Cleanup(func() {
		k.Close()
		if strings.Contains(log.String(), "CANARY") {
			t.Errorf("a secret is in the log:\n%s", log.String())
		}
	})
	return k
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
	if l, p := a.site.tally(); l != logins || p != probes {
		t.Errorf("%d logins, %d probes; want %d, %d", l, p, logins, probes)
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
		if _, err := a.Login(t.Context(), "app", LoginOptions{}); err != nil {
			t.Errorf("login: %v", err)
		}
		a.get(t)
	})
}

// TestLoginLimit: a site whose sessions die at once is left alone for a while.
func TestLoginLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dying, well := new(site), new(site)
		k := keep(t, newRecords(), NewLatches(newRecords(), mac), dying.named("dying"), well.named("well"))
		ends := func(name string, s *site) error {
			served, err := k.Get(t.Context(), name, GetOptions{})
			if err != nil {
				return err
			}
			s.set(func() { s.current = "" })
			_, err = k.Refresh(t.Context(), name, served.Generation, false)
			return err
		}
		logins := func(n int) {
			t.Helper()
			if got, _ := dying.tally(); got != n {
				t.Errorf("%d logins, want %d", got, n)
			}
		}
		for range maxLogins - 1 { // the first one is the get's
			if err := ends("dying", dying); err != nil {
				t.Fatal(err)
			}
			pass(time.Second)
		}
		logins(maxLogins)
		err := ends("dying", dying)
		if e := api.AsError(err); e == nil || e.Code != api.Quota || !strings.Contains(e.Detail, "10 sessions have died within 1m0s") || e.Remedy == "" {
			t.Errorf("got %v", err)
		}
		if sum := k.List()[0]; sum.State != None || sum.Session != nil || !sum.RetryTime.After(time.Now()) {
			t.Errorf("no back-off: %+v", sum)
		}
		// Neither a person nor another site is limited by that; nor does a person's
		// login count.
		for range 2 * maxLogins {
			for _, name := range []string{"dying", "well"} {
				if _, err := k.Login(t.Context(), name, LoginOptions{}); err != nil {
					t.Fatalf("%s, by a person: %v", name, err)
				}
			}
		}
		if err := ends("well", well); err != nil {
			t.Error(err)
		}
		logins(3 * maxLogins)
		dying.set(func() { dying.current = "" })
		if _, err := k.Refresh(t.Context(), "dying", k.List()[0].Session.Generation, false); api.CodeOf(err) != api.Quota {
			t.Errorf("after that: %v", err)
		}
		for time.Since(k.entries["dying"].recent[0]) < loginWindow-patience {
			if _, err := k.Get(t.Context(), "dying", GetOptions{}); api.CodeOf(err) != api.Quota {
				t.Fatalf("got %v", err)
			}
			pass(time.Second)
		}
		logins(3 * maxLogins)
		// As they grow old, they count no more.
		pass(5 * time.Minute) // also of the back-off
		if _, err := k.Get(t.Context(), "dying", GetOptions{}); err != nil {
			t.Errorf("later: %v", err)
		}
		logins(3*maxLogins + 1)
	})
	synctest.Test(t, func(t *testing.T) { // slowly enough
		a := start(t, new(site), newRecords())
		for range 5 * maxLogins {
			first := a.get(t)
			a.site.set(func() { a.site.current = "" })
			pass(loginWindow / maxLogins)
			if _, err := a.Refresh(t.Context(), "app", first.Generation, false); err != nil {
				t.Fatal(err)
			}
		}
		if logins, _ := a.site.tally(); logins != 5*maxLogins+1 {
			t.Errorf("%d logins", logins)
		}
		var err error
		for range maxLogins {
			a.site.set(func() { a.site.current = "" })
			_, err = a.Refresh(t.Context(), "app", a.List()[0].Session.Generation, false)
			if err != nil {
				break
			}
		}
		if api.CodeOf(err) != api.Quota {
			t.Errorf("and then at once: %v", err)
		}
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

// TestProofTakesCookiesAway: a proof after which there is no cookie proves
// nothing.
func TestProofTakesCookiesAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := start(t, &site{takes: true}, newRecords())
		_, err := a.Get(t.Context(), "app", GetOptions{})
		if e := api.AsError(err); e == nil || e.Code != api.LoginOKButProbeFailed || !strings.Contains(e.Detail, "taking the cookies away") {
			t.Errorf("got %v", err)
		}
		if len(a.records.data) != 0 {
			t.Error("it was stored")
		}
		jar := new(web.Jar)
		jar.Set(siteURL, []string{"session=" + a.site.current}, time.Now())
		if _, err := a.Login(t.Context(), "app", LoginOptions{Adopt: jar}); api.CodeOf(err) != api.Expired {
			t.Errorf("adopted: %v", err)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		a := start(t, &site{}, newRecords())
		first := a.get(t)
		a.site.probed = func() { a.site.takes = a.site.probes == 2 }
		pass(5 * time.Minute)
		if s := a.get(t); s.Generation == first.Generation || header(s) != "session="+a.site.current {
			t.Errorf("served %q", header(s))
		}
		a.count(t, 2, 3)
	})
}

// TestSecretAsName: a site that sends a secret back as the user's name has it
// shown nowhere: not at a login, nor later, nor to who brings the cookie.
func TestSecretAsName(t *testing.T) {
	for name, names := range map[string]func(before, after string) string{
		"password":            func(_, _ string) string { return rightPassword },
		"password in a text":  func(_, _ string) string { return "<" + rightPassword + ">" },
		"cookie":              func(before, _ string) string { return before },
		"cookie in a text":    func(before, _ string) string { return "user " + before + "!" },
		"cookie of the proof": func(_, after string) string { return after },
		"both":                func(before, _ string) string { return before + rightPassword },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := startTeam(t, rightPassword, rightPassword)
				jira := m.sites["jira"]
				m.want(t, m.get(t, "jira"), "")
				pass(5 * time.Minute)
				jira.set(func() { jira.names, jira.rotate = names, true })
				hidden := func(err error) {
					t.Helper()
					e := shown(t, err)
					m.want(t, e, api.WrongIdentity, "[redacted]")
					if e != nil && strings.Contains(e.Remedy, "[redacted]") {
						t.Errorf("remedy %q", e.Remedy)
					}
				}
				hidden(m.get(t, "jira")) // a proof, a login and its proof
				if _, probes := jira.tally(); probes != 3 {
					t.Errorf("%d probes", probes)
				}
				hidden(m.List()[0].Failure)
				jar := new(web.Jar)
				jar.Set(siteURL, []string{"session=" + jira.current}, time.Now())
				hidden(m.login(t, "jira", LoginOptions{Adopt: jar}))
				m.want(t, m.restarted(t).get(t, "jira"), api.WrongIdentity)
			})
		})
	}
	synctest.Test(t, func(t *testing.T) { // what is in many a name is no secret
		a := start(t, &site{user: "somebody1", extra: "n=1"}, newRecords())
		_, err := a.Get(t.Context(), "app", GetOptions{})
		if e := api.AsError(err); e == nil || e.Code != api.WrongIdentity || !strings.Contains(e.Detail, "somebody1") {
			t.Errorf("got %v", err)
		}
	})
	synctest.Test(t, func(t *testing.T) { // one that is offered, and not stored
		m := startTeam(t, newPassword, "")
		m.sites["jira"].names = func(_, _ string) string { return newPassword }
		m.want(t, m.login(t, "jira", LoginOptions{Password: []byte(newPassword)}), api.WrongIdentity, "[redacted]")
	})
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
		a.count(t, 2, 2)
	})
}

func TestMinValidity(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := start(t, &site{life: 10 * time.Minute}, newRecords())
		a.get(t)
		pass(4 * time.Minute) // six are left
		for _, c := range []struct {
			valid  time.Duration
			pass   time.Duration
			logins int
		}{
			{time.Minute, 0, 1}, {5 * time.Minute, 0, 1}, {7 * time.Minute, 0, 2}, {7 * time.Minute, 0, 2},
			// More than the site ever gives: half of it is enough.
			{time.Hour, 0, 2}, {time.Hour, 4 * time.Minute, 2}, {time.Hour, time.Minute, 3}, {time.Hour, 0, 3},
		} {
			pass(c.pass)
			if _, err := a.Get(t.Context(), "app", GetOptions{MinValidity: c.valid}); err != nil {
				t.Fatal(err)
			}
			if a.site.logins != c.logins {
				t.Errorf("%+v: %d logins", c, a.site.logins)
			}
		}
	})
	// A cookie with a fixed end, proved again and again: renewed in time.
	synctest.Test(t, func(t *testing.T) {
		a := start(t, &site{life: 10 * time.Hour}, newRecords())
		for range 12 * 12 {
			s, err := a.Get(t.Context(), "app", GetOptions{MinValidity: time.Hour})
			if err != nil || time.Until(s.ExpireTime) < time.Hour {
				t.Fatalf("%v left, %v", time.Until(s.ExpireTime), err)
			}
			pass(5 * time.Minute)
		}
		if a.site.logins != 2 {
			t.Errorf("%d logins in twelve hours", a.site.logins)
		}
	})
	// Many cold callers who want more than there is: one login.
	synctest.Test(t, func(t *testing.T) {
		a := start(t, &site{life: 10 * time.Minute, delay: time.Second}, newRecords())
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				if _, err := a.Get(t.Context(), "app", GetOptions{MinValidity: time.Hour}); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		a.count(t, 1, 1)
	})
}

// TestShortLivedCookie: one of several cookies ends soon. What is served then
// was proven as it is; in an outage it is served without that cookie; and it
// causes no logins.
func TestShortLivedCookie(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := start(t, &site{extra: "lb=node1; Max-Age=2"}, newRecords())
		first := a.get(t)
		for range 20 {
			if _, err := a.Get(t.Context(), "app", GetOptions{MinValidity: time.Hour}); err != nil {
				t.Fatal(err)
			}
		}
		pass(3 * time.Second)
		if s := a.get(t); s.Stale || header(s) != "session="+a.site.current || s.Generation != first.Generation {
			t.Errorf("%+v: %s", s, header(s))
		}
		a.count(t, 1, 2)

		b := start(t, &site{extra: "lb=node1; Max-Age=2"}, newRecords())
		b.get(t)
		b.site.set(func() { b.site.probeE = &api.Error{Code: api.Maintenance} })
		pass(3 * time.Second)
		if s := b.get(t); !s.Stale || header(s) != "session="+b.site.current {
			t.Errorf("in an outage: %+v: %s", s, header(s))
		}
	})
}

// TestForcedWhileProbing: a forced refresh that meets probes of others still
// brings a new session.
func TestForcedWhileProbing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := start(t, &site{delay: time.Second}, newRecords())
		a.entries["app"].site.Recheck = 0
		first := a.get(t)
		stop := make(chan struct{})
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
						a.Get(t.Context(), "app", GetOptions{})
					}
				}
			})
		}
		pass(500 * time.Millisecond) // in the middle of a probe
		s, err := a.Refresh(t.Context(), "app", "", true)
		if err != nil || s.Generation == first.Generation {
			t.Errorf("the old session came: %v", err)
		}
		close(stop)
		wg.Wait()
	})
}

// TestImpatientCaller: whoever has less time than a probe may take is served
// what lives, flagged.
func TestImpatientCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := start(t, &site{}, newRecords())
		a.get(t)
		a.site.set(func() { a.site.delay = time.Hour })
		pass(5 * time.Minute)
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		if s, err := a.Get(ctx, "app", GetOptions{}); err != nil || !s.Stale {
			t.Errorf("%+v %v", s, err)
		}
	})
}

// TestDeadByThen: what the work has found out by half of a caller's time counts.
func TestDeadByThen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := start(t, &site{}, newRecords())
		first := a.get(t)
		pass(5 * time.Minute)
		a.site.set(func() { a.site.current, a.site.delay = "gone", 4*time.Second })
		ctx, cancel := context.WithTimeout(t.Context(), 14*time.Second)
		defer cancel()
		// Four seconds for the probe, eight for the login and its probe.
		if s, err := a.Get(ctx, "app", GetOptions{}); err != nil || s.Generation == first.Generation {
			t.Errorf("served what the probe had found dead: %+v %v", s, err)
		}
	})
}

// TestFailedLoginFlagsTheOld: a session that was due for a proof is flagged when
// it is served because a login failed.
func TestFailedLoginFlagsTheOld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := start(t, &site{life: time.Hour, delay: time.Second}, newRecords())
		a.get(t)
		pass(45 * time.Minute)
		a.site.set(func() { a.site.loginE = &api.Error{Code: api.KDCUnreachable} })
		if s, err := a.Get(t.Context(), "app", GetOptions{MinValidity: 20 * time.Minute}); err != nil || !s.Stale {
			t.Errorf("for min_validity: %+v %v", s, err)
		}
		go a.Refresh(t.Context(), "app", "", true)
		synctest.Wait()
		if s, err := a.Get(t.Context(), "app", GetOptions{}); err != nil || !s.Stale {
			t.Errorf("beside a forced login: %+v %v", s, err)
		}
	})
}

// TestStoredBeforeServed: no caller has a session that a crash could lose.
func TestStoredBeforeServed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := &slowRecords{newRecords(), make(chan struct{})}
		a := start(t, &site{}, slow.records)
		a.o.Records = slow
		served := false
		go func() {
			a.Get(t.Context(), "app", GetOptions{})
			served = true
		}()
		synctest.Wait()
		if served || a.List()[0].Session != nil {
			t.Error("served before it was stored")
		}
		close(slow.release)
		synctest.Wait()
		if !served {
			t.Error("not served after it was stored")
		}
	})
}

// slowRecords writes when it is told to.
type slowRecords struct {
	*records
	release chan struct{}
}

func (r *slowRecords) Swap(ctx context.Context, key string, revision uint64, record []byte) (uint64, error) {
	select {
	case <-r.release:
		return r.records.Swap(ctx, key, revision, record)
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

// TestHungDisk: a disk that never answers costs durability, not the session.
func TestHungDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := &slowRecords{newRecords(), make(chan struct{})}
		a := start(t, &site{}, slow.records)
		a.o.Records = slow
		begin := time.Now()
		if s := a.get(t); !s.NotDurable || time.Since(begin) != storeTimeout {
			t.Errorf("%+v after %v", s, time.Since(begin))
		}
	})
}

// TestNotReady: a credential that cannot be used costs the site no request.
func TestNotReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := start(t, &site{ready: &api.Error{Code: api.Latched, Detail: "refused", Remedy: "mend it"}}, newRecords())
		for range 50 {
			a.refused(t, api.Latched)
		}
		a.count(t, 0, 0)
		if e := a.List()[0].Failure; e.Remedy != "mend it"+loginPage+"sessionctl login app --retry" {
			t.Errorf("remedy %q", e.Remedy)
		}
		if _, err := a.Login(t.Context(), "app", LoginOptions{Retry: true}); err != nil {
			t.Error(err)
		}
		a.count(t, 1, 1)
	})
}

// TestPanic: a driver that panics fails its login, not the agent.
func TestPanic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := start(t, &site{}, newRecords())
		a.entries["app"].site.Exchange = func(*web.Jar, bool) *web.Exchange { panic("CANARY-free") }
		a.entries["app"].log = slog.New(slog.DiscardHandler)
		a.refused(t, api.Unknown)
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
		if _, err := a.Delete(t.Context(), "app", DeleteOptions{}); err != nil {
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
			a.site.ready = &api.Error{Code: api.Latched} // as the engine has it then
		})
		pass(maxBackOff + time.Minute) // it was in use: the probe goes on by itself
		state(Latched)
		// Lifted elsewhere: nothing stands any more.
		a.site.set(func() { a.site.ready = nil })
		state(None)
	})
}

func TestLatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRecords()
		l := NewLatches(r, mac)
		ctx := t.Context()
		wrong, right := []byte("CANARY-wrong"), []byte("CANARY-right")
		check := func(l *Latches, secret []byte, code api.Code) {
			t.Helper()
			if err := l.Check("realm:A", "build", secret); api.CodeOf(err) != code {
				t.Errorf("%s: %v, want %q", secret, err, code)
			}
		}
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		restarted := func() *Latches { return NewLatches(r.clone(), mac) }
		refusal := &api.Error{Code: api.BadCredentials, Detail: "the KDC refused the key"}

		// Begun, and the agent dies: a secret that was never accepted is not
		// tried again.
		check(l, wrong, "")
		must(l.Begin(ctx, "realm:A", "build", wrong))
		check(l, wrong, "") // it is under way: others join it
		check(restarted(), wrong, api.Latched)
		l.Lost("realm:A", "build", wrong, &api.Error{Code: api.KDCUnreachable, Detail: "silence"})
		check(l, wrong, api.Latched)
		check(restarted(), right, "")

		// Refused.
		must(l.End(ctx, "realm:A", "build", wrong, refusal))
		for _, l := range []*Latches{l, restarted()} {
			check(l, wrong, api.Latched)
			if err := l.Check("realm:A", "build", right, wrong); api.CodeOf(err) != api.Latched || !strings.Contains(err.Error(), "bad_credentials") {
				t.Errorf("one of two secrets: %v", err)
			}
			check(l, right, "")
			for _, c := range [][2]string{{"realm:B", "build"}, {"realm:A", "other"}} {
				if err := l.Check(c[0], c[1], wrong); err != nil {
					t.Errorf("%v: %v", c, err)
				}
			}
		}

		// No verdict: as if it had not been.
		must(l.Begin(ctx, "realm:A", "build", right))
		must(l.End(ctx, "realm:A", "build", right, &api.Error{Code: api.ClockSkew}))
		check(restarted(), right, "")

		// Accepted once, then nobody knows: again, and then slowly.
		must(l.Begin(ctx, "realm:A", "build", right))
		must(l.End(ctx, "realm:A", "build", right, nil))
		must(l.Begin(ctx, "realm:A", "build", right))
		l.Lost("realm:A", "build", right, &api.Error{Code: api.KDCUnreachable, Detail: "silence"})
		check(restarted(), right, "")
		must(l.Begin(ctx, "realm:A", "build", right))
		l.Lost("realm:A", "build", right, &api.Error{Code: api.KDCUnreachable, Detail: "silence"})
		check(l, right, api.KDCUnreachable)
		check(restarted(), right, api.KDCUnreachable)
		pass(unknownPause)
		check(l, right, "")
		must(l.End(ctx, "realm:A", "build", right, nil))

		// A person lifts one refusal, not others.
		must(l.End(ctx, "realm:A", "build", right, refusal))
		must(l.Clear(ctx, "realm:A", "build", wrong))
		for _, l := range []*Latches{l, restarted()} {
			check(l, wrong, "")
			check(l, right, api.Latched)
		}
		for _, b := range r.data {
			if bytes.Contains(b, []byte("CANARY")) {
				t.Errorf("a secret is in the record %s", b)
			}
		}

		// A store that cannot be written: a new secret is not tried, a refusal
		// stands for this process, and what was not lifted is not.
		r.failing = errors.New("no space left on device")
		if err := l.Begin(ctx, "realm:A", "build", wrong); api.CodeOf(err) != api.StoreFailed {
			t.Errorf("a secret would be tried though a refusal could be forgotten: %v", err)
		}
		check(l, wrong, "")
		if err := l.Clear(ctx, "realm:A", "build", right); err == nil {
			t.Error("Clear hid that nothing was lifted")
		}
		check(l, right, api.Latched)
		if err := l.End(ctx, "realm:A", "build", wrong, refusal); err == nil {
			t.Error("End hid that the refusal is not stored")
		}
		check(l, wrong, api.Latched)
		// One that was accepted before is worth more than the memory of it.
		r.failing = nil
		must(l.Clear(ctx, "realm:A", "build", right))
		r.failing = errors.New("no space left on device")
		must(l.Begin(ctx, "realm:A", "build", right))
		// But not once per restart of an agent that never could write.
		full := r.clone()
		full.failing = r.failing
		if err := NewLatches(full, mac).Begin(ctx, "realm:A", "build", right); api.CodeOf(err) != api.StoreFailed {
			t.Errorf("after a restart on a full disk: %v", err)
		}

		// A record that cannot be read: nothing is tried until a person says so.
		r.failing = nil
		for k := range r.data {
			r.data[k] = []byte("damaged")
		}
		l = NewLatches(r, mac)
		check(l, wrong, api.StoreDamaged)
		clear(r.rev) // as package store shows a damaged record
		must(l.Clear(ctx, "realm:A", "build", wrong))
		check(l, wrong, "")
	})
}

// TestLatchesForget: of too many secrets those are forgotten first of which
// nothing is known, then those that were only refused; never what was accepted
// while there are others, nor an attempt of unknown outcome.
func TestLatchesForget(t *testing.T) {
	r := newRecords()
	l := NewLatches(r, mac)
	name := func(i int) []byte { return fmt.Appendf(nil, "CANARY-%d", i) }
	for i := range 3 * maxSecrets {
		if err := l.Begin(t.Context(), "realm:A", "build", name(i)); err != nil {
			t.Fatal(err)
		}
		var verdict error // 0 is accepted
		switch {
		case i == 1: // its outcome stays unknown
			continue
		case i == 2:
			verdict = &api.Error{Code: api.ClockSkew} // no verdict
		case i > 2:
			verdict = &api.Error{Code: api.BadCredentials}
		}
		if err := l.End(t.Context(), "realm:A", "build", name(i), verdict); err != nil {
			t.Fatal(err)
		}
		if known := l.known[latchKey("realm:A", "build")].find(l.hash("realm:A", "build", name(2))) != nil; i > 1 && known != (i < maxSecrets) {
			t.Errorf("after %d secrets the one without a verdict is known: %v", i+1, known)
		}
	}
	l = NewLatches(r, mac)
	for i, code := range map[int]api.Code{0: "", 1: api.Latched, 3: "", 3*maxSecrets - 1: api.Latched} {
		if err := l.Check("realm:A", "build", name(i)); api.CodeOf(err) != code {
			t.Errorf("%d: %v", i, err)
		}
	}
	if !l.past("realm:A", "build", name(0)).Accepted {
		t.Error("what was accepted is forgotten")
	}
	if n := len(l.known[latchKey("realm:A", "build")].secrets); n != maxSecrets {
		t.Errorf("%d secrets", n)
	}
}

// TestCallerOfAWriteLeaves: a write whose caller has left is done all the same,
// and the next one goes by it.
func TestCallerOfAWriteLeaves(t *testing.T) {
	r := newRecords()
	l := NewLatches(r, mac)
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	for _, ctx := range []context.Context{gone, t.Context()} {
		if err := l.End(ctx, "realm:A", "build", []byte("CANARY"), &api.Error{Code: api.BadCredentials}); err != nil {
			t.Error(err)
		}
	}
	r.failing, r.late = errors.New("the sync failed"), true
	if err := l.Clear(t.Context(), "realm:A", "build", []byte("CANARY")); err == nil {
		t.Error("a failed write was hidden")
	}
	r.failing = nil
	if err := l.End(t.Context(), "realm:A", "build", []byte("CANARY-2"), &api.Error{Code: api.BadCredentials}); err != nil {
		t.Errorf("the next write: %v", err)
	}
}

func FuzzDecodeSession(f *testing.F) {
	c := newClock(time.Now, bootTime)
	c.run = "this"
	j := new(web.Jar)
	j.Set(siteURL, []string{"s=CANARY-1; Max-Age=60"}, time.Unix(1<<31, 0))
	f.Add(encodeSession(&Session{Generation: "g", Identity: "build", LoginTime: time.Unix(1<<31, 0), jar: j}, "f1", c))
	f.Add([]byte(`{"v":1,"fingerprint":"f1","cookies":[{"url":":","line":"cw=="}]}`))
	f.Add([]byte(`{"v":1,"fingerprint":"f1","cookies":[],"clock":{"run":"this","began":-9223372036854775808}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := decodeSession(b, "f1", c, siteURL)
		if err != nil {
			return
		}
		again, err := decodeSession(encodeSession(s, "f1", c), "f1", c, siteURL)
		if err != nil || !again.jar.Equal(s.jar) || again.Generation != s.Generation {
			t.Errorf("%s does not survive another round: %v", b, err)
		}
	})
}
