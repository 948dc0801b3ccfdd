package keeper

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/web"
)

// watcher is somebody who watches the session of an agent.
type watcher struct {
	mu   sync.Mutex
	got  []Served
	err  error
	over bool
	stop context.CancelFunc
}

func (a *agent) watch(t *testing.T) *watcher {
	w := new(watcher)
	var ctx context.Context
	ctx, w.stop = context.WithCancel(t.Context())
	go func() {
		err := a.Watch(ctx, "app", func(s Served) error {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.got = append(w.got, s)
			return nil
		})
		w.mu.Lock()
		defer w.mu.Unlock()
		w.err, w.over = err, true
	}()
	synctest.Wait()
	return w
}

// last is what the watcher was given last.
func (w *watcher) last(t *testing.T) Served {
	t.Helper()
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.over {
		t.Fatalf("the watch has ended: %v", w.err)
	}
	if len(w.got) == 0 {
		t.Fatal("nothing was handed over")
	}
	return w.got[len(w.got)-1]
}

// generations are the sessions that the watcher was given, in order.
func (w *watcher) generations() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var g []string
	for _, s := range w.got {
		g = append(g, s.Generation)
	}
	return slices.Compact(g)
}

// times is how often something was handed over.
func (w *watcher) times() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.got)
}

func (w *watcher) ended(t *testing.T, code api.Code) {
	t.Helper()
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.over || api.CodeOf(w.err) != code {
		t.Errorf("over: %v, %v; want code %s", w.over, w.err, code)
	}
}

// honoured checks that the watcher has, unflagged, what the site honours now.
func (w *watcher) honoured(t *testing.T, a *agent) {
	t.Helper()
	s := w.last(t)
	a.site.mu.Lock()
	defer a.site.mu.Unlock()
	if header(s) != "session="+a.site.current || s.Stale {
		t.Errorf("the watcher has %q (stale: %v), the site honours %q", header(s), s.Stale, a.site.current)
	}
}

func TestWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := start(t, &site{delay: time.Second}, newRecords())
		both := []*watcher{a.watch(t), a.watch(t)}
		pass(3 * time.Second)
		a.count(t, 1, 1) // the first login is theirs
		honoured := func() {
			t.Helper()
			for _, w := range both {
				w.honoured(t, a)
			}
		}
		honoured()

		_, err := a.Refresh(t.Context(), "app", "", true)
		if err != nil {
			t.Fatal(err)
		}
		honoured()

		// Ended at the site, and somebody else finds out.
		a.site.set(func() { a.site.current = "" })
		if _, err := a.Refresh(t.Context(), "app", both[0].last(t).Generation, false); err != nil {
			t.Fatal(err)
		}
		honoured()

		a.site.set(func() { a.site.current = "CANARY-browser" })
		jar, err := web.Adopt(siteURL, []byte("session=CANARY-browser"), time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := a.Login(t.Context(), "app", LoginOptions{Adopt: jar}); err != nil {
			t.Fatal(err)
		}
		honoured()
		a.count(t, 3, 5)
		for _, w := range both {
			if g := w.generations(); len(g) != 4 {
				t.Errorf("%d sessions were handed over, want 4", len(g))
			}
		}

		// Each ends on its own.
		both[0].stop()
		both[0].ended(t, api.Deadline)
		if _, err := a.Refresh(t.Context(), "app", "", true); err != nil {
			t.Fatal(err)
		}
		both[1].honoured(t, a)
		both[1].stop()
		both[1].ended(t, api.Deadline)
	})
}

// TestWatchKeepsTheSessionProven: nobody else asks, and a session that dies is
// replaced within one recheck.
func TestWatchKeepsTheSessionProven(t *testing.T) {
	for name, c := range map[string]struct{ life, within time.Duration }{
		"dead at the site":  {0, 5 * time.Minute},
		"cookie at its end": {7 * time.Minute, 2 * time.Second}, // which is known
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := start(t, &site{life: c.life}, newRecords())
				w := a.watch(t)
				first := w.last(t)
				pass(7*time.Minute - time.Second)
				a.count(t, 1, 2)
				a.site.set(func() { a.site.current, a.site.life = "", 0 })
				pass(c.within)
				w.honoured(t, a)
				if g := w.generations(); len(g) != 2 || g[0] != first.Generation {
					t.Errorf("%d sessions were handed over, want 2", len(g))
				}
				for range 24 {
					pass(5 * time.Minute)
					if age := time.Since(w.last(t).ProveTime); age > 5*time.Minute {
						t.Fatalf("the proof is %v old", age)
					}
				}
				if logins, _ := a.site.tally(); logins != 2 {
					t.Errorf("%d logins", logins)
				}
			})
		})
	}
}

// TestWatchWithoutRecheck: a site that is asked before each use is not asked all
// the time because somebody watches.
func TestWatchWithoutRecheck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := start(t, &site{}, newRecords())
		a.entries["app"].site.Recheck = 0
		both := []*watcher{a.watch(t), a.watch(t)}
		pass(time.Hour)
		for _, w := range both {
			w.honoured(t, a)
			if n := w.times(); n > 300 {
				t.Errorf("%d times handed over in an hour", n)
			}
		}
		if logins, probes := a.site.tally(); logins != 1 || probes < 60 || probes > 121 {
			t.Errorf("%d logins, %d probes in an hour", logins, probes)
		}
	})
}

func TestWatchEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := start(t, &site{loginE: &api.Error{Code: api.KDCUnreachable}}, newRecords())
		a.watch(t).ended(t, api.KDCUnreachable)
		w := a.watch(t)
		pass(patience) // the back-off
		w.ended(t, api.KDCUnreachable)
		a.site.set(func() { a.site.loginE = nil })
		if _, err := a.Login(t.Context(), "app", LoginOptions{}); err != nil {
			t.Fatal(err)
		}

		// There was one, and there is none to be had any more.
		w = a.watch(t)
		w.last(t)
		a.site.set(func() { a.site.current, a.site.loginE = "", &api.Error{Code: api.BadCredentials} })
		pass(5 * time.Minute)
		w.ended(t, api.BadCredentials)

		// Whom it is handed to may end it.
		a.site.set(func() { a.site.loginE = nil })
		broken := errors.New("the connection is gone")
		if err := a.Watch(t.Context(), "app", func(Served) error { return broken }); err != broken {
			t.Errorf("got %v", err)
		}
		if err := a.Watch(t.Context(), "other", func(Served) error { return nil }); api.CodeOf(err) != api.UnknownSite {
			t.Errorf("got %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		if err := a.Watch(ctx, "app", func(Served) error { return nil }); api.CodeOf(err) != api.Deadline {
			t.Errorf("got %v", err)
		}
	})
}

func TestWatchInAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := start(t, &site{}, newRecords())
		w := a.watch(t)
		first := w.last(t)
		a.site.set(func() { a.site.probeE = &api.Error{Code: api.NetworkError} })
		pass(5 * time.Minute)
		if s := w.last(t); !s.Stale || s.Generation != first.Generation {
			t.Errorf("not the old one, flagged: %+v", s)
		}
		pass(2 * time.Hour)
		if s := w.last(t); !s.Stale || s.Generation != first.Generation {
			t.Errorf("not the old one, flagged: %+v", s)
		}
		// One at the end of each back-off, of half of maxBackOff on average.
		if _, n := a.site.tally(); n < 24 || n > 80 {
			t.Errorf("%d probes in two hours", n)
		}
		if n := w.times(); n > 100 {
			t.Errorf("%d times handed over in two hours", n)
		}
		a.site.set(func() { a.site.probeE = nil })
		pass(10 * time.Minute) // the back-off, and then a recheck
		w.honoured(t, a)
		if logins, _ := a.site.tally(); logins != 1 {
			t.Errorf("%d logins", logins)
		}
		if g := w.generations(); len(g) != 1 {
			t.Errorf("%d sessions", len(g))
		}
	})
}

// TestWatchOfADriverThatPanics: what fails at once is left alone as well.
func TestWatchOfADriverThatPanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := start(t, &site{}, newRecords())
		w := a.watch(t)
		asked := 0
		a.site.set(func() {
			a.site.probed = func() { asked++; panic("a bug") }
		})
		pass(time.Hour)
		w.last(t)
		a.site.mu.Lock()
		defer a.site.mu.Unlock()
		if asked < 12 || asked > 40 { // at the end of each back-off
			t.Errorf("%d probes in an hour", asked)
		}
	})
}

// TestSlowWatcher: whoever is slow to take a session gets the newest next.
func TestSlowWatcher(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := start(t, &site{}, newRecords())
		given := make(chan Served) // not buffered: a hand-over lasts until it is read
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go a.Watch(ctx, "app", func(s Served) error {
			select {
			case given <- s:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
		synctest.Wait()
		var newest Served
		for range 5 {
			var err error
			if newest, err = a.Refresh(t.Context(), "app", "", true); err != nil {
				t.Fatal(err)
			}
			pass(time.Second)
		}
		if first := <-given; first.Generation == newest.Generation {
			t.Fatal("the hand-over of the first one was not under way")
		}
		if s := <-given; s.Generation != newest.Generation {
			t.Error("not the newest")
		}
	})
}

// TestLogoutWhileWatched: a session that is watched is asked for, so a new one is
// made.
func TestLogoutWhileWatched(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &logouter{site: new(site)}
		a := start(t, s.site, newRecords())
		a.entries["app"].site.Driver = s
		w := a.watch(t)
		first := w.last(t)
		if d, err := a.Delete(t.Context(), "app", DeleteOptions{}); !d.Ended || d.Refusal != nil || err != nil {
			t.Fatalf("%+v, %v", d, err)
		}
		w.honoured(t, a)
		if w.last(t).Generation == first.Generation {
			t.Error("the watcher was not given a new one")
		}
		a.count(t, 2, 2)
		w.stop()
		w.ended(t, api.Deadline)

		// Nobody watches: it stays ended.
		if _, err := a.Delete(t.Context(), "app", DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		pass(time.Hour)
		a.count(t, 2, 2)
	})
}

func TestAdopt(t *testing.T) {
	adopt := func(t *testing.T, a *agent, cookie string) (Served, error) {
		t.Helper()
		jar, err := web.Adopt(siteURL, []byte("Cookie: session="+cookie), time.Now())
		if err != nil {
			t.Fatal(err)
		}
		s, err := a.Login(t.Context(), "app", LoginOptions{Adopt: jar})
		shown(t, err)
		return s, err
	}
	t.Run("good", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			// The agent itself cannot log in.
			s := &site{current: "CANARY-browser", delay: time.Second, ready: &api.Error{Code: api.Latched, Detail: "refused"}}
			a := start(t, s, newRecords())
			a.refused(t, api.Latched)
			got, err := adopt(t, a, "CANARY-browser")
			if err != nil || got.Identity != "build" || header(got) != "session=CANARY-browser" || got.NotDurable {
				t.Fatalf("%+v, %v", got, err)
			}
			if sum := a.List()[0]; sum.State != Live || sum.Failure != nil {
				t.Errorf("state %d, %v", sum.State, sum.Failure)
			}
			if now := a.get(t); now.Generation != got.Generation {
				t.Error("another session is served")
			}
			a.count(t, 0, 1)
			b := start(t, s, a.records.clone())
			if now := b.get(t); now.Generation != got.Generation || header(now) != "session=CANARY-browser" {
				t.Error("another session after a restart")
			}
			b.count(t, 0, 2)
		})
	})
	for name, c := range map[string]struct {
		change func(*site)
		cookie string
		code   api.Code
		remedy bool
	}{
		"dead cookie":  {func(*site) {}, "CANARY-old", api.Expired, true},
		"another user": {func(s *site) { s.current, s.user = "CANARY-browser", "somebody" }, "CANARY-browser", api.WrongIdentity, true},
		"site down":    {func(s *site) { s.probeE = &api.Error{Code: api.NetworkError} }, "CANARY-browser", api.NetworkError, false},
		"site silent":  {func(s *site) { s.delay = time.Hour }, "CANARY-browser", api.Timeout, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := start(t, new(site), newRecords())
				before := a.get(t)
				record := string(a.records.data[a.entries["app"].key()])
				current := a.site.current
				a.site.set(func() { c.change(a.site) })
				begin := time.Now()
				_, err := adopt(t, a, c.cookie)
				if e := api.AsError(err); e == nil || e.Code != c.code || c.remedy && e.Remedy == "" {
					t.Fatalf("got %v, want %s", err, c.code)
				}
				if took := time.Since(begin); took > probeTimeout {
					t.Errorf("it took %v", took)
				}
				a.site.set(func() { a.site.current, a.site.user, a.site.probeE, a.site.delay = current, "build", nil, 0 })
				if now := a.get(t); now.Generation != before.Generation || now.Stale {
					t.Errorf("the old session did not stay: %+v", now)
				}
				if string(a.records.data[a.entries["app"].key()]) != record {
					t.Error("the store was written")
				}
				if sum := a.List()[0]; sum.State != Live || sum.Failure != nil {
					t.Errorf("state %d, %v", sum.State, sum.Failure)
				}
				if logins, _ := a.site.tally(); logins != 1 {
					t.Errorf("%d logins", logins)
				}
			})
		})
	}
	t.Run("beside a login", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			a := start(t, &site{delay: time.Second}, newRecords())
			var wg sync.WaitGroup
			wg.Go(func() { a.get(t) })
			synctest.Wait()
			wg.Go(func() {
				if _, err := adopt(t, a, "CANARY-old"); api.CodeOf(err) != api.Expired {
					t.Errorf("got %v", err)
				}
			})
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			jar, _ := web.Adopt(siteURL, []byte("session=CANARY-old"), time.Now())
			if _, err := a.Login(ctx, "app", LoginOptions{Adopt: jar}); api.CodeOf(err) != api.Deadline {
				t.Errorf("a caller without time got %v", err)
			}
			wg.Wait()
			a.get(t)
			a.count(t, 1, 2) // of the login, and of the cookie
		})
	})
}

// logouter is a site whose kind can log out.
type logouter struct {
	*site
	refusal error
	hangs   bool
	bug     bool
	asked   int
	release chan struct{} // if not nil: the answer, after the site has ended the session
}

func (s *logouter) Logout(ctx context.Context, x *web.Exchange) error {
	s.mu.Lock()
	s.asked++
	honoured := x.Jar().Header(siteURL, time.Now()) == "session="+s.current
	if honoured && s.refusal == nil && !s.hangs {
		s.current = ""
	}
	s.mu.Unlock()
	switch {
	case s.bug:
		panic("a bug")
	case s.hangs:
		<-ctx.Done()
		return ctx.Err()
	case s.release != nil:
		<-s.release
	}
	if !honoured {
		return &api.Error{Code: api.UnexpectedStatus, Detail: "whose session is that"}
	}
	return s.refusal
}

func TestLogout(t *testing.T) {
	for name, c := range map[string]struct {
		site    logouter
		without bool // the kind has no logout
		cold    bool // there is no session
		ended   bool
		code    api.Code // of the refusal
		err     api.Code
		took    time.Duration
		asked   int
	}{
		"ended":              {ended: true, asked: 1},
		"refused":            {site: logouter{refusal: &api.Error{Code: api.CSRF403, Detail: "403"}}, code: api.CSRF403, asked: 1},
		"site hangs":         {site: logouter{hangs: true}, code: api.Timeout, took: logoutTimeout, asked: 1},
		"no session":         {cold: true},
		"kind has no logout": {without: true},
		"driver panics":      {site: logouter{bug: true}, err: api.Unknown, asked: 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &c.site
				s.site = new(site)
				a := start(t, s.site, newRecords())
				if !c.without {
					a.entries["app"].site.Driver = s
				}
				var first string
				if !c.cold {
					first = a.get(t).Generation
				}
				begin := time.Now()
				type outcome struct {
					Deleted
					err error
				}
				done := make(chan outcome, 1)
				go func() {
					d, err := a.Delete(t.Context(), "app", DeleteOptions{})
					done <- outcome{d, err}
				}()
				synctest.Wait()
				if c.took > 0 { // nobody is served meanwhile what is about to end
					for range 20 {
						go func() {
							if now, err := a.Get(t.Context(), "app", GetOptions{}); err != nil || now.Generation == first {
								t.Errorf("served beside the logout: %v", err)
							}
						}()
					}
					if _, err := a.Get(t.Context(), "app", GetOptions{CachedOnly: true}); api.CodeOf(err) != api.NotCached {
						t.Errorf("from the cache: %v", err)
					}
				}
				o := <-done
				if o.Ended != c.ended || (o.Refusal == nil) != (c.code == "") || o.Refusal != nil && o.Refusal.Code != c.code || api.CodeOf(o.err) != c.err {
					t.Errorf("got %+v", o)
				}
				if o.err == nil && o.Had == c.cold {
					t.Errorf("there was a session: %v", o.Had)
				}
				if took := time.Since(begin); took != c.took {
					t.Errorf("it took %v", took)
				}
				if s.asked != c.asked {
					t.Errorf("the site was asked %d times", s.asked)
				}
				synctest.Wait()
				if c.took > 0 {
					a.count(t, 2, 2) // one login for all of them
					return
				}
				if sum := a.List()[0]; sum.State != None || sum.Session != nil || len(a.records.data) != 0 {
					t.Errorf("state %d; %d records", sum.State, len(a.records.data))
				}
				if now := a.get(t); now.Generation == first {
					t.Error("it was not dropped")
				}
			})
		})
	}
}

// TestLogoutWithCallers: callers of all kinds beside one logout after another.
// None has a session after the site has ended it.
func TestLogoutWithCallers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &logouter{site: &site{delay: time.Second}}
		a := start(t, s.site, newRecords())
		a.entries["app"].site.Driver = s
		for round := range 10 {
			pass(loginWindow / maxLogins) // more often, logins are refused
			s.release = make(chan struct{})
			first := a.get(t)
			deleted := make(chan error, 1)
			go func() {
				_, err := a.Delete(t.Context(), "app", DeleteOptions{})
				deleted <- err
			}()
			synctest.Wait()
			var wg sync.WaitGroup
			for range 20 {
				wg.Go(func() {
					if now, err := a.Get(t.Context(), "app", GetOptions{}); err != nil || now.Generation == first.Generation {
						t.Errorf("get: %v", err)
					}
				})
				wg.Go(func() {
					if now, err := a.Refresh(t.Context(), "app", first.Generation, false); err != nil || now.Generation == first.Generation {
						t.Errorf("refresh: %v", err)
					}
				})
			}
			synctest.Wait()
			close(s.release)
			if err := <-deleted; err != nil {
				t.Fatal(err)
			}
			wg.Wait()
			if a.site.logins != round+2 {
				t.Fatalf("%d logins in round %d", a.site.logins, round)
			}
		}
	})
}

// TestLogoutKeepsALatch: to end a session lifts no refusal, and does not hide it.
func TestLogoutKeepsALatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := start(t, &site{ready: &api.Error{Code: api.Latched, Detail: "refused"}}, newRecords())
		a.refused(t, api.Latched)
		if _, err := a.Delete(t.Context(), "app", DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		if sum := a.List()[0]; sum.State != Latched || sum.Failure == nil {
			t.Errorf("state %d, %v", sum.State, sum.Failure)
		}
		a.count(t, 0, 0)
	})
}

// TestLogoutAndAFullDisk: what stays in the store is said.
func TestLogoutAndAFullDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &logouter{site: new(site)}
		a := start(t, s.site, newRecords())
		a.entries["app"].site.Driver = s
		a.get(t)
		a.records.failing = errors.New("no space left on device")
		if _, err := a.Delete(t.Context(), "app", DeleteOptions{}); api.CodeOf(err) != api.StoreFailed {
			t.Errorf("got %v", err)
		}
		if s.asked != 1 || a.List()[0].Session != nil {
			t.Errorf("asked %d times, %v", s.asked, a.List()[0].Session)
		}
	})
}
