package keeper

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/login"
)

// useQuickly is use, and checks that no caller waits.
func (f *fleet) useQuickly(t *testing.T, d, every time.Duration, i int) (sessions []Served) {
	t.Helper()
	for end := time.Now().Add(d); time.Now().Before(end); pass(every) {
		before := time.Now()
		s := f.serve(t, i)
		if wait := time.Since(before); wait > 0 {
			t.Fatalf("a caller waited for %v", wait)
		}
		if len(sessions) == 0 || sessions[len(sessions)-1].Generation != s.Generation {
			sessions = append(sessions, s)
		}
	}
	return sessions
}

// TestProvenAhead: a session in use is proven before its proof is too old, so that
// no caller waits; one that nobody uses, once more at most.
func TestProvenAhead(t *testing.T) {
	for name, c := range map[string]struct {
		recheck    time.Duration
		set        bool
		documented time.Duration // idle life
		every      time.Duration // what that comes to
	}{
		"usual":              {0, false, 0, 5 * time.Minute},
		"a long idle life":   {0, false, 5 * time.Hour, 5 * time.Minute},
		"a short idle life":  {0, false, 8 * time.Minute, 2 * time.Minute},
		"set":                {time.Minute, true, 0, time.Minute},
		"set longer":         {2 * time.Hour, true, 8 * time.Minute, 2 * time.Hour},
		"set to hardly ever": {7 * 24 * time.Hour, true, 0, 7 * 24 * time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := startFleet(t, 1, func(_ int, b *backend, s *Site) {
					b.delay, b.documented = time.Second, login.Life{Idle: c.documented}
					s.Recheck, s.RecheckSet = c.recheck, c.set
				})
				f.serve(t, 0)
				since := f.now()
				f.useQuickly(t, 10*c.every, c.every/20, 0)
				if logins, probes := f.all[0].since(since); logins != 0 || probes < 8 || probes > 13 {
					t.Errorf("%d logins, %d probes in ten times %v", logins, probes, c.every)
				}
				if f.List()[0].CheckTime.IsZero() {
					t.Error("a session in use is not to be looked after")
				}
				since = f.now()
				pass(7*24*time.Hour + 3*c.every)
				if logins, probes := f.all[0].since(since); logins != 0 || probes > 1 {
					t.Errorf("%d logins, %d probes in a week in which nobody asked", logins, probes)
				}
				if at := f.List()[0].CheckTime; !at.IsZero() {
					t.Errorf("a session that nobody uses is to be looked after at %v", at)
				}
			})
		})
	}
}

// TestProvenBeforeEachUse: a recheck of 0 is for callers; behind their backs a site
// is asked no more often than others.
func TestProvenBeforeEachUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := startFleet(t, 1, func(_ int, b *backend, s *Site) { s.Recheck, s.RecheckSet = 0, true })
		f.serve(t, 0)
		since := f.now().Add(1)
		for range 10 {
			pass(time.Second)
			f.serve(t, 0)
		}
		f.count(t, since, 0, 10)
		since = f.now()
		pass(7 * 24 * time.Hour)
		if _, probes := f.all[0].since(since.Add(1)); probes > 1 {
			t.Errorf("%d probes in a week in which nobody asked", probes)
		}
	})
}

// TestBackgroundLimit: what comes due at once is not asked at once, and all of it is
// asked.
func TestBackgroundLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := startFleet(t, fleetSize, func(_ int, b *backend, _ *Site) { b.delay = 2 * time.Second })
		f.together(t, numbers(0, fleetSize)...)
		f.most = 0
		since := f.now()
		f.suspend(time.Hour)
		pass(2 * time.Minute)
		for i, b := range f.all {
			if logins, probes := b.since(since); logins != 0 || probes != 1 {
				t.Errorf("s%d: %d logins, %d probes", i, logins, probes)
			}
		}
		if f.most != maxBackground {
			t.Errorf("%d at once, want %d", f.most, maxBackground)
		}
	})
}

// lasting says when the sessions of a site end for certain.
var lasting = map[string]func(*backend){
	"cookie of an hour": func(b *backend) { b.life, b.absolute = time.Hour, time.Hour },
	"cookie with a date": func(b *backend) {
		b.absolute = time.Hour
		b.attrs = func() string { return "; Expires=" + b.f.now().Add(time.Hour).UTC().Format(http.TimeFormat) }
	},
	"documented":             func(b *backend) { b.absolute, b.documented = time.Hour, login.Life{Absolute: time.Hour} },
	"cookie of four minutes": func(b *backend) { b.life, b.absolute = 4*time.Minute, 4*time.Minute },
}

// TestPlannedRenewal: a session in use whose end is known is made anew ahead of it,
// once in its life, behind its callers' backs.
func TestPlannedRenewal(t *testing.T) {
	for name, lasts := range lasting {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := startFleet(t, 1, func(_ int, b *backend, _ *Site) {
					lasts(b)
					b.delay = time.Second
				})
				b := f.all[0]
				f.serve(t, 0)
				const lives = 20
				sessions := f.useQuickly(t, lives*b.absolute, b.absolute/100, 0)
				// Of each life, three quarters at least are used; the last one may not have
				// been asked for yet.
				logins, _ := b.tally()
				if n := len(sessions); logins < lives || logins > lives*4/3+1 || n != logins && n != logins-1 {
					t.Errorf("%d logins and %d sessions in %d lives", logins, len(sessions), lives)
				}
				for i := range len(sessions) - 1 {
					lived := sessions[i+1].LoginTime.Sub(sessions[i].LoginTime)
					if lived < b.absolute*3/4-10*time.Second || lived > b.absolute {
						t.Errorf("made anew after %v", lived)
					}
				}
				since := f.now()
				pass(7 * 24 * time.Hour)
				if logins, probes := b.since(since); logins > 1 || probes > 3 {
					t.Errorf("%d logins, %d probes in a week in which nobody asked", logins, probes)
				}
			})
		})
	}
}

// TestRenewalThatFails: the old session serves on, unflagged, and the site is left
// alone in between; when it works again, no caller has noticed.
func TestRenewalThatFails(t *testing.T) {
	for _, code := range []api.Code{api.KDCUnreachable, api.BadCredentials, api.Maintenance} {
		t.Run(string(code), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := startFleet(t, 1, func(_ int, b *backend, _ *Site) {
					b.absolute, b.documented = 2*time.Hour, login.Life{Absolute: time.Hour}
				})
				b := f.all[0]
				first := f.serve(t, 0)
				b.set(func() { b.loginE = &api.Error{Code: code} })
				f.useQuickly(t, 50*time.Minute, time.Minute, 0)
				since := f.now()
				if s := f.useQuickly(t, time.Hour, 10*time.Second, 0); len(s) != 1 || s[0].Generation != first.Generation {
					t.Error("another session")
				}
				if logins, _ := b.since(since); logins < 2 || logins > 30 {
					t.Errorf("%d attempts in an hour", logins)
				}
				b.set(func() { b.loginE = nil })
				if s := f.useQuickly(t, 9*time.Minute, 10*time.Second, 0); s[len(s)-1].Generation == first.Generation {
					t.Error("it is not made anew after that")
				}
			})
		})
	}
}

// TestSlidingCookies: a cookie that each proof prolongs has no end that anybody
// knows.
func TestSlidingCookies(t *testing.T) {
	for _, life := range []time.Duration{90 * time.Second, 4 * time.Minute, 6 * time.Minute, 30 * time.Minute, 3 * time.Hour} {
		t.Run(life.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := startFleet(t, 1, func(_ int, b *backend, _ *Site) { b.life, b.rotate = life, true })
				f.use(t, 24*time.Hour, 20*time.Second, 0)
				if logins, probes := f.all[0].tally(); logins != 1 || probes > 24*60*3 {
					t.Errorf("%d logins, %d probes in a day", logins, probes)
				}
			})
		})
	}
}

// TestShortLives: sessions of less than a minute are made when they are needed, not
// all the time.
func TestShortLives(t *testing.T) {
	for name, lasts := range map[string]func(*backend){
		"cookie":  func(b *backend) { b.life = 30 * time.Second },
		"session": func(b *backend) { b.documented = login.Life{Absolute: 30 * time.Second} },
		"idle":    func(b *backend) { b.documented = login.Life{Idle: 20 * time.Second} },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := startFleet(t, 1, func(_ int, b *backend, _ *Site) { lasts(b) })
				for range 10 {
					f.serve(t, 0)
					pass(7 * time.Minute)
				}
				if logins, probes := f.all[0].tally(); logins > 20 || probes > 40 {
					t.Errorf("%d logins, %d probes for ten calls", logins, probes)
				}
				since := f.now()
				f.use(t, 10*time.Minute, time.Second, 0)
				if logins, probes := f.all[0].since(since); logins > 21 || probes > 150 {
					t.Errorf("%d logins, %d probes in ten minutes", logins, probes)
				}
			})
		})
	}
}

// TestKeptAlive: a session that nobody asks for is there all the same.
func TestKeptAlive(t *testing.T) {
	kept := func(idle time.Duration) func(int, *backend, *Site) {
		return func(_ int, b *backend, s *Site) {
			s.KeepAlive, b.idle, b.documented = true, idle, login.Life{Idle: idle}
		}
	}
	for name, c := range map[string]struct {
		idle time.Duration
		run  func(t *testing.T, f *fleet, b *backend)
	}{
		"at start": {0, func(t *testing.T, f *fleet, b *backend) {
			pass(spread)
			if logins, probes := b.tally(); logins != 1 || probes != 1 {
				t.Errorf("%d logins, %d probes", logins, probes)
			}
		}},
		"rhythm": {5 * time.Hour, func(t *testing.T, f *fleet, b *backend) {
			pass(10 * 24 * time.Hour)
			if logins, probes := b.tally(); logins != 1 || probes < 90 || probes > 110 {
				t.Errorf("%d logins, %d probes in 96 times half of its idle life", logins, probes)
			}
			if f.List()[0].CheckTime.IsZero() {
				t.Error("it is not to be looked after")
			}
		}},
		"rhythm without an idle life": {0, func(t *testing.T, f *fleet, b *backend) {
			pass(24 * time.Hour)
			if logins, probes := b.tally(); logins != 1 || probes < 24*12-10 || probes > 24*14 {
				t.Errorf("%d logins, %d probes in a day", logins, probes)
			}
		}},
		"death": {time.Hour, func(t *testing.T, f *fleet, b *backend) {
			for range 5 {
				pass(40 * time.Minute)
				b.kill()
			}
			pass(40 * time.Minute)
			if logins, _ := b.tally(); logins != 6 {
				t.Errorf("%d logins for 5 deaths", logins)
			}
		}},
		"outage": {0, func(t *testing.T, f *fleet, b *backend) {
			pass(time.Minute)
			f.set(func() { f.down[b.url.Host] = true })
			b.kill()
			pass(time.Hour)
			if logins, _ := b.since(f.now().Add(-time.Hour)); logins != 0 {
				t.Errorf("%d logins", logins)
			}
			f.set(func() { f.down[b.url.Host] = false })
			pass(maxBackOff + 10*time.Second)
			if logins, _ := b.tally(); logins != 2 {
				t.Errorf("%d logins", logins)
			}
		}},
		"login impossible": {0, func(t *testing.T, f *fleet, b *backend) {
			pass(time.Minute)
			b.kill()
			b.set(func() { b.loginE = &api.Error{Code: api.KDCUnreachable} })
			pass(24 * time.Hour)
			if logins, _ := b.tally(); logins < 24*60/5/2 || logins > 24*60 {
				t.Errorf("%d attempts in a day", logins)
			}
			b.set(func() { b.loginE = nil })
			pass(maxBackOff + 10*time.Second)
			f.useQuickly(t, time.Minute, time.Minute, 0)
		}},
		"latched": {0, func(t *testing.T, f *fleet, b *backend) {
			pass(time.Minute)
			b.kill()
			b.set(func() { b.ready = &api.Error{Code: api.Latched} })
			logins, _ := b.tally()
			pass(24 * time.Hour)
			if again, _ := b.tally(); again != logins {
				t.Errorf("%d attempts", again-logins)
			}
			b.set(func() { b.ready = nil }) // another keytab
			pass(usualRecheck + 10*time.Second)
			f.useQuickly(t, time.Minute, time.Minute, 0)
		}},
		"restart": {5 * time.Hour, func(t *testing.T, f *fleet, b *backend) {
			pass(time.Minute)
			f.start(t)
			pass(24 * time.Hour)
			if logins, probes := b.tally(); logins != 1 || probes < 9 || probes > 14 {
				t.Errorf("%d logins, %d probes", logins, probes)
			}
		}},
		"renewal": {0, func(t *testing.T, f *fleet, b *backend) {
			b.set(func() { b.life, b.current = time.Hour, "" })
			pass(24*time.Hour + usualRecheck)
			if logins, _ := b.tally(); logins < 24 || logins > 30 {
				t.Errorf("%d logins in a day", logins)
			}
		}},
		"renewal ahead of the rhythm": {5 * time.Hour, func(t *testing.T, f *fleet, b *backend) {
			b.set(func() { b.life = time.Hour })
			pass(spread)
			for range 24 * 60 {
				pass(time.Minute)
				if s := f.List()[0]; s.State != Live || s.Session.ended(f.Keeper.clock.Now()) {
					t.Fatalf("no session after %v", f.boot())
				}
			}
			if logins, _ := b.tally(); logins < 24 || logins > 30 {
				t.Errorf("%d logins in a day", logins)
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { f := startFleet(t, 1, kept(c.idle)); c.run(t, f, f.all[0]) })
		})
	}
}

// set changes what the servers share.
func (f *fleet) set(do func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	do()
}

// TestCloseWhileBusy: whatever is under way ends, and nothing begins after that.
func TestCloseWhileBusy(t *testing.T) {
	for _, after := range []time.Duration{0, time.Second, spread, time.Hour} {
		t.Run(fmt.Sprint(after), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := startFleet(t, 50, func(i int, b *backend, s *Site) {
					b.delay, s.KeepAlive = 3*time.Second, i%2 == 0
				})
				ctx, cancel := context.WithCancel(t.Context())
				var callers sync.WaitGroup
				for i := range 50 {
					callers.Go(func() {
						for ctx.Err() == nil {
							f.Get(ctx, f.configured[i].Name, GetOptions{})
							wait(ctx, time.Second)
						}
					})
				}
				pass(after)
				f.suspend(time.Hour)
				pass(spread + time.Second)
				before := time.Now()
				go f.Close() // a second time at the end
				f.Close()
				if d := time.Since(before); d > time.Second {
					t.Errorf("closing took %v", d)
				}
				cancel()
				callers.Wait()
				since := f.now()
				pass(24 * time.Hour)
				f.count(t, since.Add(time.Second), 0, 0)
			})
		})
	}
}
