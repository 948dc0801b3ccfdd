package keeper

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/login"
	"github.com/sessionctl/sessionctl/daemon/internal/secret"
	"github.com/sessionctl/sessionctl/daemon/internal/web"
)

// noKDC is what logins have while no KDC of the realm answers.
var noKDC = &api.Error{Code: api.KDCUnreachable, Detail: "no KDC", Err: gone(realmOutage + "CORP.EXAMPLE")}

// long has a site asked for so often that what keeps it from being asked is as long
// as it becomes.
func (f *fleet) long(t *testing.T, sites ...int) {
	t.Helper()
	for range 20 {
		for _, i := range sites {
			f.ask(t, i)
		}
		pass(time.Minute)
	}
}

// openUntil returns until when a circuit is open, zero if it is closed.
func (f *fleet) openUntil(name string) time.Time {
	f.circuits.mu.Lock()
	defer f.circuits.mu.Unlock()
	if c := f.circuits.all[name]; c != nil {
		return c.until
	}
	return time.Time{}
}

const sharedOrigin = "https://" + shared

// TestTrialThatFailsLater: a flight that has had an answer from the origin, and then
// fails by itself, shows that the origin is there: its neighbours do not wait.
func TestTrialThatFailsLater(t *testing.T) {
	for name, fail := range map[string]func(b *backend){
		"no KDC": func(b *backend) { b.ticketE = noKDC },
		"slow": func(b *backend) {
			b.loginE, b.delay = &api.Error{Code: api.Timeout, Detail: "no answer in time"}, 20*time.Second
		},
		"broken": func(b *backend) { b.loginE = &api.Error{Code: api.NetworkError, Detail: "the connection was closed"} },
		"elsewhere": func(b *backend) {
			b.loginE = &api.Error{Code: api.NetworkError, Detail: "elsewhere", Err: gone("https://other.corp.example")}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := sharing(t, 3, func(i int, _ *backend, s *Site) {
					if i > 0 {
						s.Realm = ""
					}
				})
				f.together(t, 0, 1)
				pass(6 * time.Minute)
				f.out(shared, true)
				f.long(t, 0, 1, 2)
				if s, err := f.ask(t, 1); err != nil || !s.Stale {
					t.Fatalf("stale: %v, %v", s.Stale, err)
				}
				pass(time.Until(f.openUntil(sharedOrigin)) + 1)
				f.all[0].kill()
				f.all[0].site.set(func() { fail(f.all[0]) })
				f.out(shared, false)
				f.Refresh(t.Context(), "s0", f.List()[0].Session.Generation, false) // the trial
				if at := f.openUntil(sharedOrigin); !at.IsZero() {
					t.Fatalf("the origin is left alone for %v", time.Until(at))
				}
				f.useAtOnce(t, 2) // had none
				since := time.Now()
				for s, err := f.ask(t, 1); err != nil || s.Stale; s, err = f.ask(t, 1) {
					if time.Since(since) > maxBackOff {
						t.Fatalf("flagged for %v, though the origin answers", time.Since(since))
					}
					pass(time.Second)
				}
			})
		})
	}
}

// TestReached: what the end of a trial says about the origin, and about the KDCs.
func TestReached(t *testing.T) {
	const realm = realmOutage + "CORP.EXAMPLE"
	for name, c := range map[string]struct {
		err                *api.Error
		others             bool // not a trial, but a flight that was under way
		origin, realmThere bool
	}{
		"success":                  {nil, false, true, true},
		"401":                      {&api.Error{Code: api.Expired}, false, true, true},
		"401 after a ticket":       {&api.Error{Code: api.NegotiateRejected}, false, true, true},
		"refused password":         {&api.Error{Code: api.BadCredentials}, false, true, true},
		"403":                      {&api.Error{Code: api.Forbidden}, false, true, true},
		"429":                      {&api.Error{Code: api.RateLimited}, false, true, true},
		"503":                      {&api.Error{Code: api.Maintenance}, false, true, true},
		"500":                      {&api.Error{Code: api.Server5xx}, false, true, true},
		"503 of another flight":    {&api.Error{Code: api.Maintenance}, true, true, true},
		"slow":                     {&api.Error{Code: api.Timeout}, false, true, false},
		"slow, another flight":     {&api.Error{Code: api.Timeout}, true, false, false},
		"broken":                   {&api.Error{Code: api.NetworkError}, false, true, false},
		"no KDC":                   {noKDC, false, true, false},
		"no KDC of another flight": {noKDC, true, false, false},
		"the origin is out":        {api.AsError(outOfReach(at(shared))), false, false, false},
		"another origin is out":    {api.AsError(outOfReach(at("other.corp.example"))), false, true, false},
		"a file":                   {&api.Error{Code: api.KeytabUnreadable}, false, false, false},
		"the store":                {&api.Error{Code: api.StoreFailed}, false, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			now := time.Unix(1<<31, 0)
			needs := []string{sharedOrigin, realm}
			all := circuits{all: map[string]*circuit{}}
			for _, n := range needs {
				all.all[n] = &circuit{failures: 3, until: now.Add(-1), why: &api.Error{Code: api.NetworkError}}
			}
			trial, other := new(flight), new(flight)
			if h := all.hold(needs, now, trial); h != nil {
				t.Fatalf("held: %+v", h)
			}
			if h := all.hold(needs, now, other); h == nil || h.trial != trial {
				t.Fatalf("two trials: %+v", h)
			}
			ended := trial
			if c.others {
				ended = other
			}
			all.settle(needs, ended, c.err, now)
			for n, there := range map[string]bool{sharedOrigin: c.origin, realm: c.realmThere} {
				if closed := all.all[n] == nil; closed != there {
					t.Errorf("%s: closed: %v, want %v", n, closed, there)
				}
			}
			if c.others {
				return
			}
			for n, open := range all.all { // and nobody waits for a trial that is over
				if open.trial != nil {
					t.Errorf("%s: there is still a trial", n)
				}
			}
		})
	}
}

// TestReloadEndsWaiting: whoever reloads has mended something: nothing waits for the
// end of a back-off, of whatever kind, and of sites that are as before.
func TestReloadEndsWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := sharing(t, 4, func(i int, b *backend, _ *Site) {
			if i == 3 {
				b.url.Host, b.loginE = "own.corp.example", &api.Error{Code: api.Server5xx, Detail: "500"}
			}
		})
		before := f.together(t, 0)
		f.out(shared, true)
		f.long(t, 0, 1, 3)
		for f.openUntil(sharedOrigin).Before(f.now().Add(time.Minute)) {
			pass(time.Second)
			f.ask(t, 1)
		}
		f.out(shared, false)
		f.all[3].site.set(func() { f.all[3].loginE = nil })
		if _, err := f.Get(t.Context(), "s3", GetOptions{CachedOnly: true}); api.CodeOf(err) != api.NotCached {
			t.Fatal(err)
		}
		e := f.entries["s0"]
		f.Reconfigure(f.configured, nil)
		if f.entries["s0"] != e {
			t.Fatal("another entry")
		}
		f.useAtOnce(t, 1)
		pass(spread + time.Second) // nobody asks
		if s := f.List()[0]; s.State != Live || s.Session.Generation != before[0] {
			t.Errorf("state %d", s.State)
		}
		f.useAtOnce(t, 3)
		f.useAtOnce(t, 2)
	})
}

// TestResumeAtAMember: a person has mended the identity provider.
func TestResumeAtAMember(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := startDomain(t, 2, "")
		d.idp.site.set(func() { d.idp.loginE = answered(t, 503, http.Header{"Retry-After": {"3600"}}) })
		d.ask(t, 0)
		pass(time.Minute)
		d.idp.site.set(func() { d.idp.loginE = nil })
		since := d.now()
		if _, err := d.ask(t, 0); api.CodeOf(err) != api.Maintenance {
			t.Fatal(err)
		}
		if logins, _ := d.idp.since(since); logins != 0 {
			t.Fatalf("%d logins", logins)
		}
		d.Resume("s0")
		d.useAtOnce(t, 0)
		d.useAtOnce(t, 1)
	})
}

// TestAdoptedWithoutKDC: that a person's cookie is good says nothing about KDCs, but
// the origin is there.
func TestAdoptedWithoutKDC(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := sharing(t, 3, nil)
		for _, b := range f.all {
			b.site.set(func() { b.loginE = noKDC })
		}
		f.long(t, 0, 1)
		f.ask(t, 0)
		until := f.openUntil(realmOutage + "CORP.EXAMPLE")
		if !until.After(f.now()) {
			pass(time.Minute)
			f.ask(t, 0)
		}
		f.all[0].site.set(func() { f.all[0].current = "CANARY-browser" })
		adopted := func() LoginOptions {
			jar := new(web.Jar)
			jar.Set(f.all[0].url, []string{"session=CANARY-browser"}, f.now())
			return LoginOptions{Adopt: jar}
		}
		until = f.openUntil(realmOutage + "CORP.EXAMPLE")
		if _, err := f.Login(t.Context(), "s0", adopted()); err != nil {
			t.Fatal(err)
		}
		if at := f.openUntil(realmOutage + "CORP.EXAMPLE"); until.IsZero() || !at.Equal(until) {
			t.Errorf("the realm was left alone until %v, now until %v", until, at)
		}
		f.out(shared, true)
		f.Refresh(t.Context(), "s0", f.List()[0].Session.Generation, false)
		if f.openUntil(sharedOrigin).IsZero() {
			t.Fatal("the origin's circuit is closed in an outage")
		}
		f.out(shared, false)
		if _, err := f.Login(t.Context(), "s0", adopted()); err != nil {
			t.Fatal(err)
		}
		if !f.openUntil(sharedOrigin).IsZero() {
			t.Error("the origin is left alone though it has answered")
		}
	})
}

// TestFailedLoginHoldsNoProofs: a site that wants no logins for now is asked about the
// session that lives.
func TestFailedLoginHoldsNoProofs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := startFleet(t, 1, nil)
		f.serve(t, 0)
		e := answered(t, 429, http.Header{"Retry-After": {"3600"}})
		f.all[0].site.set(func() { f.all[0].loginE = e })
		if _, err := f.Refresh(t.Context(), "s0", "", true); api.CodeOf(err) != api.RateLimited {
			t.Fatal(err)
		}
		since := f.now().Add(1)
		f.use(t, 50*time.Minute, time.Minute, 0) // never flagged
		if logins, probes := f.all[0].since(since); logins != 0 || probes < 9 {
			t.Errorf("%d logins, %d probes", logins, probes)
		}
		// But it holds logins.
		f.all[0].kill()
		for range 5 {
			f.ask(t, 0)
			pass(time.Minute)
		}
		if logins, _ := f.all[0].since(since); logins > 1 {
			t.Errorf("%d logins", logins)
		}
	})
}

// TestNoLoginWithoutKDC: a session that is found dead is not made anew while the realm
// is known to be out of reach.
func TestNoLoginWithoutKDC(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := startFleet(t, 2, func(_ int, _ *backend, s *Site) { s.Realm = "CORP.EXAMPLE" })
		s := f.serve(t, 0)
		for _, b := range f.all {
			b.site.set(func() { b.loginE = noKDC })
		}
		f.long(t, 1)
		for f.openUntil(realmOutage + "CORP.EXAMPLE").Before(f.now().Add(10 * time.Second)) {
			pass(time.Second)
			f.ask(t, 1)
		}
		f.all[0].kill()
		since := f.now()
		_, err := f.Refresh(t.Context(), "s0", s.Generation, false)
		if api.CodeOf(err) != api.KDCUnreachable || !strings.Contains(err.Error(), "next attempt in ") {
			t.Errorf("%v", err)
		}
		if logins, probes := f.all[0].since(since); logins != 0 || probes != 1 {
			t.Errorf("%d logins, %d probes", logins, probes)
		}
		// A person need not wait.
		f.Refresh(t.Context(), "s0", "", true)
		if logins, _ := f.all[0].since(since); logins != 1 {
			t.Errorf("%d logins", logins)
		}
	})
}

// TestStepInAnOutage: what is left alone is so for as long as before the clock was
// set.
func TestStepInAnOutage(t *testing.T) {
	for _, by := range []time.Duration{24 * time.Hour, -24 * time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			f := sharing(t, 1, nil)
			f.out(shared, true)
			f.long(t, 0)
			var left time.Duration
			for left < 30*time.Second {
				pass(time.Second)
				f.ask(t, 0)
				left = f.openUntil(sharedOrigin).Sub(f.Keeper.clock.Now())
			}
			f.step(by)
			f.List()
			since := f.now()
			if again := f.openUntil(sharedOrigin).Sub(f.Keeper.clock.Now()); again != left {
				t.Errorf("%v: left alone for %v, was %v", by, again, left)
			}
			f.ask(t, 0)
			f.count(t, since, 0, 0)
			f.out(shared, false)
			pass(left + 1)
			f.useAtOnce(t, 0)
		})
	}
}

// TestEndedBySomebody: sessions that somebody ends soon after their login teach
// nothing: no life, and no haste.
func TestEndedBySomebody(t *testing.T) {
	for _, after := range []time.Duration{time.Second, 50 * time.Second, minGap - time.Second} {
		for _, proven := range []time.Duration{0, time.Minute, minAge - time.Minute} {
			t.Run(fmt.Sprint(proven, " and ", after), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					f := startFleet(t, 1, nil)
					for range 4 {
						s, err := f.Refresh(t.Context(), "s0", "", true)
						if err != nil {
							t.Fatal(err)
						}
						if proven > 0 {
							pass(proven)
							if _, err := f.Refresh(t.Context(), "s0", s.Generation, false); err != nil {
								t.Fatal(err)
							}
						}
						pass(after)
						f.all[0].kill()
						f.reportedDead(t, 0)
						pass(time.Minute)
					}
					f.lives(t, 0, 0, 0)
					e := f.entries["s0"]
					e.mu.Lock()
					defer e.mu.Unlock()
					if d := e.recheck(); d != usualRecheck {
						t.Errorf("a proof is good for %v", d)
					}
				})
			})
		}
	}
}

// TestFalseLife: at a site that ends an older session with each login, which nobody
// can ask any more, a life that was learned from chance is found out all the same.
func TestFalseLife(t *testing.T) {
	for _, restart := range []bool{false, true} {
		t.Run(fmt.Sprint("restart ", restart), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := startFleet(t, 1, nil)
				for range 2 {
					f.lifeAndDeath(t, 0, time.Hour, 0)
				}
				f.lives(t, 0, time.Hour, 0)
				if restart {
					f.start(t)
				}
				since := f.now()
				f.use(t, 24*time.Hour, time.Minute, 0)
				if s := f.List()[0]; s.Life < 20*time.Hour {
					t.Errorf("life %v", s.Life)
				}
				if logins, _ := f.all[0].since(since); logins > 3 {
					t.Errorf("%d logins in a day", logins)
				}
			})
		})
	}
}

// TestTrueLife: one that holds is tried ever more rarely: after one session that was
// made anew because of it, three, seven and so on.
func TestTrueLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := startFleet(t, 1, func(_ int, b *backend, _ *Site) { b.absolute = time.Hour })
		f.use(t, 4*time.Hour, 20*time.Second, 0)
		f.lives(t, 0, time.Hour, 0)
		f.start(t)
		var left []int // which sessions were left to their end, of those that were made
		n, last := 0, f.serve(t, 0)
		for range 40 * 60 * 3 {
			s := f.serve(t, 0)
			if s.Generation != last.Generation {
				if n > 0 && s.LoginTime.Sub(last.LoginTime) >= time.Hour {
					left = append(left, n)
				}
				n, last = n+1, s
			}
			pass(20 * time.Second)
		}
		if want := []int{1, 3, 7, 15, 31}; !slices.Equal(left, want) {
			t.Errorf("of %d sessions, %v were left to their end, want %v", n, left, want)
		}
		f.lives(t, 0, time.Hour, 0)
	})
}

// TestShortestRecheck: however short what is learned, or documented, is, nobody is asked
// all the time.
func TestShortestRecheck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := startFleet(t, 2, func(i int, b *backend, _ *Site) {
			if i == 1 {
				b.documented = login.Life{Idle: 20 * time.Second}
			}
		})
		f.learned.data[f.entries["s0"].key()] = []byte(`{"v":1,"fingerprint":"f1","idle":{"learned":20000000000}}`)
		for i := range 2 {
			if s := f.List()[i]; s.Idle != 20*time.Second || s.IdleLearned != (i == 0) {
				t.Errorf("s%d: idle %v, learned: %v", i, s.Idle, s.IdleLearned)
			}
			since := f.now()
			f.use(t, 10*time.Minute, time.Second, i)
			if _, probes := f.all[i].since(since); probes > 26 {
				t.Errorf("s%d: %d probes in ten minutes", i, probes)
			}
		}
	})
}

// TestSameAgeAtOnce: sessions of one origin that were made at once, and die at once,
// teach: that is their life.
func TestSameAgeAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := startFleet(t, 2, func(i int, b *backend, _ *Site) {
			b.url.Host, b.url.Path, b.absolute = shared, fmt.Sprintf("/%d/", i), 2*time.Hour
		})
		f.use(t, 5*time.Hour, time.Minute, 0, 1)
		for i := range 2 {
			f.lives(t, i, 2*time.Hour, 0)
		}
	})
}

// TestDeathsAreForgotten: what a reload has replaced or removed is not kept for its
// deaths.
func TestDeathsAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := sharing(t, 2, nil)
		remembered := func() (n int) {
			f.deaths.mu.Lock()
			defer f.deaths.mu.Unlock()
			for _, m := range f.deaths.last {
				n += len(m)
			}
			return n
		}
		for range 20 {
			f.together(t, 0, 1)
			pass(time.Minute)
			for i := range 2 {
				f.all[i].kill()
				f.reportedDead(t, i)
			}
			if n := remembered(); n != 2 {
				t.Fatalf("%d deaths are remembered, of 2 sessions", n)
			}
			f.reload(0, otherSetup)
		}
		f.Reconfigure(nil, nil)
		if n := remembered(); n != 0 {
			t.Errorf("%d deaths are remembered, of no session", n)
		}
	})
}

// TestRetryAfterOfARenewal: a server that wants no logins for an hour has none for an
// hour, also while the session lives.
func TestRetryAfterOfARenewal(t *testing.T) {
	for _, kept := range []bool{false, true} {
		t.Run(fmt.Sprint("kept ", kept), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := startFleet(t, 1, func(_ int, b *backend, s *Site) {
					b.documented, s.KeepAlive = login.Life{Absolute: time.Hour}, kept
				})
				f.use(t, 40*time.Minute, time.Minute, 0)
				e := answered(t, 429, http.Header{"Retry-After": {"3600"}})
				f.all[0].site.set(func() { f.all[0].loginE = e })
				since := f.now()
				f.use(t, time.Hour, 20*time.Second, 0)
				if logins, _ := f.all[0].since(since); logins != 1 {
					t.Errorf("%d attempts in the hour", logins)
				}
				f.all[0].site.set(func() { f.all[0].loginE = nil })
				f.use(t, time.Hour, 20*time.Second, 0)
				if logins, _ := f.all[0].since(since); logins < 2 {
					t.Error("it is not made anew after that")
				}
			})
		})
	}
}

// TestRetryAfterOutlivesTheSession: it holds also when the session ends before it, and
// however often that is proven meanwhile.
func TestRetryAfterOutlivesTheSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := startFleet(t, 1, func(_ int, b *backend, _ *Site) { b.life = time.Hour })
		b := f.all[0]
		f.use(t, 40*time.Minute, time.Minute, 0)
		e := answered(t, 429, http.Header{"Retry-After": {"3600"}})
		b.site.set(func() { b.loginE = e })
		since, end := f.now(), f.List()[0].Session.ExpireTime
		for range 4 * 60 * 3 {
			f.ask(t, 0)
			pass(20 * time.Second)
		}
		b.mu.Lock()
		defer b.mu.Unlock()
		var attempts []time.Time
		for _, a := range b.log {
			if a.login && !a.at.Before(since) {
				attempts = append(attempts, a.at)
			}
		}
		if len(attempts) < 3 || !attempts[0].Before(end) {
			t.Fatalf("attempts at %v, and the session has ended at %v", attempts, end)
		}
		for i := range len(attempts) - 1 {
			if d := attempts[i+1].Sub(attempts[i]); d < time.Hour {
				t.Errorf("the next attempt after %v", d)
			}
		}
	})
}

// TestRestoredIsProvenFirst: a session of the store may be dead, and the store not
// know: it is served after a proof, or flagged.
func TestRestoredIsProvenFirst(t *testing.T) {
	killed := func(t *testing.T) (f *fleet, dead string) {
		f = startFleet(t, 1, nil)
		dead = f.serve(t, 0).Generation
		pass(time.Minute)
		f.serve(t, 0)
		disk := f.sessions.clone() // the removal does not get there
		f.all[0].kill()
		f.all[0].site.set(func() { f.all[0].loginE = &api.Error{Code: api.Maintenance, Detail: "503"} })
		f.Refresh(t.Context(), "s0", dead, false)
		f.Close()
		f.sessions = disk
		return f.start(t), dead
	}
	t.Run("dead", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f, _ := killed(t)
			if s, err := f.Get(t.Context(), "s0", GetOptions{CachedOnly: true}); err != nil || !s.Stale {
				t.Errorf("unproven, it is served unflagged: %v", err)
			}
			if s, err := f.ask(t, 0); api.CodeOf(err) != api.Maintenance {
				t.Errorf("it is served: stale: %v, %v", s.Stale, err)
			}
			f.all[0].site.set(func() { f.all[0].loginE = nil })
			pass(time.Minute)
			f.serve(t, 0)
		})
	})
	t.Run("dead, in an outage", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f, dead := killed(t)
			f.out("s0.corp.example", true)
			for range 10 { // nobody can know
				if s, err := f.ask(t, 0); err != nil || !s.Stale || s.Generation != dead {
					t.Errorf("stale: %v, %v", s.Stale, err)
				}
				pass(time.Second)
			}
			f.out("s0.corp.example", false)
			f.all[0].site.set(func() { f.all[0].loginE = nil })
			pass(maxBackOff + time.Second)
			if s := f.serve(t, 0); s.Generation == dead {
				t.Error("the dead one is served")
			}
		})
	})
	t.Run("alive", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := startFleet(t, 1, nil)
			before := f.serve(t, 0)
			pass(time.Minute)
			f.start(t)
			f.out("s0.corp.example", true)
			if s, err := f.ask(t, 0); err != nil || !s.Stale || s.Generation != before.Generation {
				t.Errorf("stale: %v, %v", s.Stale, err)
			}
			f.out("s0.corp.example", false)
			pass(maxBackOff + time.Second)
			since := f.now()
			for range 5 { // and one proof is enough
				if s := f.serve(t, 0); s.Generation != before.Generation {
					t.Error("another session")
				}
			}
			if logins, probes := f.all[0].since(since); logins != 0 || probes > 1 {
				t.Errorf("%d logins, %d probes", logins, probes)
			}
		})
	})
}

// TestRestartTeachesNothing: that a session has outlived a restart does not say that
// nobody used it meanwhile.
func TestRestartTeachesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := startFleet(t, 1, nil)
		for range 2 {
			f.lifeAndDeath(t, 0, 20*time.Minute, time.Hour)
		}
		f.lives(t, 0, 0, time.Hour)
		for range 3 {
			// Proofs that change nothing are not written: for the store this is one long
			// gap.
			f.use(t, 5*time.Hour, time.Minute, 0)
			f.start(t)
			f.serve(t, 0)
			f.lives(t, 0, 0, time.Hour)
		}
	})
}

// TestStartedByAWrongClock: the machine starts with any time, and then NTP sets it
// right: no session is lost by that.
func TestStartedByAWrongClock(t *testing.T) {
	const years = 30 * 365 * 24 * time.Hour
	for _, wrong := range []time.Duration{-years, years} {
		for name, lasts := range map[string]func(*backend){
			"for the session": func(*backend) {},
			"four hours":      func(b *backend) { b.life = 4 * time.Hour },
		} {
			t.Run(fmt.Sprint(wrong, " ", name), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					f := startFleet(t, 1, func(_ int, b *backend, _ *Site) { lasts(b) })
					before := f.serve(t, 0)
					pass(time.Minute)
					f.step(wrong)
					f.start(t)
					if wrong < 0 || f.all[0].life == 0 {
						f.serve(t, 0)
					} else { // whoever asks gets another one: this one has ended by what anybody knows
						f.List()
					}
					pass(20 * time.Second)
					f.setRight()
					pass(20 * time.Second)
					s := f.serve(t, 0)
					if s.Generation != before.Generation {
						t.Error("another session")
					}
					if s.LoginTime.After(f.Keeper.clock.Now()) || s.ProveTime.After(f.Keeper.clock.Now()) {
						t.Errorf("from times to come: %v, %v", s.LoginTime, s.ProveTime)
					}
					since := f.now()
					f.use(t, time.Hour, time.Minute, 0)
					if logins, probes := f.all[0].since(since); logins != 0 || probes > 20 {
						t.Errorf("%d logins, %d probes in an hour", logins, probes)
					}
					f.start(t)
					if s := f.serve(t, 0); s.Generation != before.Generation {
						t.Error("another session after a restart")
					}
				})
			})
		}
	}
}

// TestStepProofRestart: what was stored before the clock was set is stored anew with
// the next proof.
func TestStepProofRestart(t *testing.T) {
	for _, by := range []time.Duration{time.Hour, 24 * time.Hour, -24 * time.Hour, 365 * 24 * time.Hour} {
		t.Run(by.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := startFleet(t, 1, func(_ int, b *backend, _ *Site) { b.life = 4 * time.Hour })
				before := f.serve(t, 0)
				pass(time.Minute)
				f.step(by)
				f.serve(t, 0)
				pass(10 * time.Minute)
				f.serve(t, 0) // proven
				writes := f.sessions.writes
				pass(10 * time.Minute)
				f.serve(t, 0)
				if f.sessions.writes != writes {
					t.Error("it is written with each proof")
				}
				f.start(t)
				if s := f.serve(t, 0); s.Generation != before.Generation {
					t.Error("another session after a restart")
				}
				if logins, _ := f.all[0].tally(); logins != 1 {
					t.Errorf("%d logins", logins)
				}
			})
		})
	}
}

// TestStepUnusedRestart: nor does it take a proof: a session that nobody uses outlives a
// restart as soon as anything has noticed that the clock was set.
func TestStepUnusedRestart(t *testing.T) {
	for name, c := range map[string]struct {
		unused time.Duration
		notice func(f *fleet)
	}{
		"by itself":   {time.Minute, func(*fleet) { pass(tick + time.Second) }},
		"by a status": {time.Hour, func(f *fleet) { f.List() }},
	} {
		for _, by := range []time.Duration{time.Hour, 24 * time.Hour, -24 * time.Hour, 365 * 24 * time.Hour} {
			t.Run(fmt.Sprint(name, " ", by), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					f := startFleet(t, 2, func(_ int, b *backend, _ *Site) { b.life = 4 * time.Hour })
					before := []Served{f.serve(t, 0), f.serve(t, 1)}
					pass(c.unused)
					since, writes := f.now(), f.sessions.writes
					f.step(by)
					c.notice(f)
					f.count(t, since, 0, 0)
					if n := f.sessions.writes - writes; n != len(before) {
						t.Errorf("%d writes of %d sessions", n, len(before))
					}
					f.start(t)
					for i, b := range before {
						if s := f.serve(t, i); s.Generation != b.Generation {
							t.Errorf("s%d: another session after a restart", i)
						}
					}
					f.count(t, since, 0, len(before))
				})
			})
		}
	}
}

// warnings counts what is logged as a warning, or worse.
type warnings struct {
	slog.Handler
	n *atomic.Int64
}

func (w warnings) Enabled(context.Context, slog.Level) bool { return true }

func (w warnings) Handle(_ context.Context, r slog.Record) error {
	if r.Level >= slog.LevelWarn {
		w.n.Add(1)
	}
	return nil
}

// TestKeptAliveAndLatched: a session that is to be there, and cannot be: nobody is
// asked, and nobody is told every few minutes.
func TestKeptAliveAndLatched(t *testing.T) {
	for name, begin := range map[string]func(t *testing.T) *fleet{
		"site": func(t *testing.T) *fleet {
			return startFleet(t, 1, func(_ int, b *backend, s *Site) {
				s.KeepAlive, b.ready = true, &api.Error{Code: api.Latched, Detail: "refused"}
			})
		},
		"member": func(t *testing.T) *fleet {
			d := startDomain(t, 1, wrongPassword)
			d.configured[0].KeepAlive = true
			return d.start(t)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := begin(t)
				var n atomic.Int64
				for _, e := range append(slices.Collect(maps.Values(f.entries)), slices.Collect(maps.Values(f.Keeper.idps))...) {
					e.mu.Lock()
					e.log = slog.New(warnings{slog.DiscardHandler, &n})
					e.mu.Unlock()
				}
				pass(24 * time.Hour)
				if s := f.List()[0]; s.State != Latched || s.CheckTime.IsZero() {
					t.Errorf("state %d, looked after at %v", s.State, s.CheckTime)
				}
				if _, failures := f.Counts(); failures > 2 {
					t.Errorf("%d failed logins", failures)
				}
				if n.Load() > 2 {
					t.Errorf("%d warnings in a day", n.Load())
				}
				if f.idp != nil && f.idp.directory.tried() != 1 {
					t.Errorf("%d attempts", f.idp.directory.tried())
				}
			})
		})
	}
}

// TestBroughtToAnotherSetup: what a person brings for a site does not go to one that has
// its name by then: neither if that is known at once, nor after a wait.
func TestBroughtToAnotherSetup(t *testing.T) {
	for name, o := range map[string]func(now time.Time) LoginOptions{
		"password": func(time.Time) LoginOptions { return LoginOptions{Password: []byte("CANARY-typed")} },
		"retry":    func(time.Time) LoginOptions { return LoginOptions{Retry: true} },
		"cookie": func(now time.Time) LoginOptions {
			jar := new(web.Jar)
			jar.Set(siteURL, []string{"session=CANARY-browser"}, now)
			return LoginOptions{Adopt: jar}
		},
	} {
		for _, waits := range []bool{false, true} {
			t.Run(fmt.Sprint(name, " waits ", waits), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					latches := NewLatches(newRecords(), mac)
					configured := func(setup, account string, b *site) Site {
						s := b.named("app")
						s.Setup, s.Fingerprint, s.Account = setup, setup, account
						s.Password = NewPassword(account, account, "", newRecords(), latches)
						if err := s.Password.Store(t.Context(), secret.New(rightPassword)); err != nil {
							t.Fatal(err)
						}
						return s
					}
					before := &site{delay: 20 * time.Second, directory: &directory{right: rightPassword}}
					after := &site{directory: &directory{right: "CANARY-other"}}
					k := keep(t, newRecords(), latches, configured("1", "anna", before))
					options := o(time.Now())
					options.Setup = "1"
					if !waits {
						k.Reconfigure([]Site{configured("2", "bert", after)}, nil)
					} else {
						ctx, cancel := context.WithTimeout(t.Context(), time.Second/2)
						k.Get(ctx, "app", GetOptions{}) // what it waits for goes on
						cancel()
						options.Setup = "" // not even if nobody says
					}
					answer := make(chan error, 1)
					go func() {
						_, err := k.Login(t.Context(), "app", options)
						answer <- err
					}()
					if waits {
						pass(time.Second)
						k.Reconfigure([]Site{configured("2", "bert", after)}, nil)
					}
					err := <-answer
					if e := api.AsError(err); api.CodeOf(err) != api.InvalidRequest || e.Remedy == "" {
						t.Errorf("%+v", e)
					}
					pass(time.Minute)
					if n := after.directory.tried(); n != 0 {
						t.Errorf("%d attempts at the other site", n)
					}
					if logins, probes := after.tally(); logins+probes != 0 {
						t.Errorf("%d logins, %d probes at the other site", logins, probes)
					}
					if slices.Contains(before.directory.attempts, "CANARY-typed") {
						t.Error("it went to the former site, which is no more")
					}
					if !waits { // who asks again brings it to where it belongs
						options = LoginOptions{Setup: "2", Password: []byte("CANARY-other")}
						if _, err := k.Login(t.Context(), "app", options); err != nil {
							t.Error(err)
						}
					}
				})
			})
		}
	}
}

// TestBroughtToAnotherIdP: nor to an identity provider that is set up anew.
func TestBroughtToAnotherIdP(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := startDomain(t, 2, rightPassword)
		d.idp.site.set(func() { d.idp.delay = 20 * time.Second })
		var wg sync.WaitGroup
		wg.Go(func() { d.ask(t, 0) }) // the identity provider is logged in to
		pass(time.Second)
		wg.Go(func() {
			if _, err := d.Login(t.Context(), "s1", LoginOptions{Password: []byte("CANARY-typed")}); api.CodeOf(err) != api.InvalidRequest {
				t.Errorf("%v", err)
			}
		})
		pass(time.Second)
		d.Reconfigure(setUp(d.Keeper)("2"))
		wg.Wait()
		pass(time.Minute)
		if slices.Contains(d.idp.directory.attempts, "CANARY-typed") {
			t.Error("the password went to an identity provider that was set up anew")
		}
	})
}

// diskRecords takes a while for each write, and tells of each.
type diskRecords struct {
	*records
	written chan struct{}
}

func (r *diskRecords) Swap(ctx context.Context, key string, revision uint64, record []byte) (uint64, error) {
	if err := sleep(ctx, 2*time.Millisecond); err != nil {
		return 0, err
	}
	defer func() { r.written <- struct{}{} }()
	return r.records.Swap(ctx, key, revision, record)
}

// TestPurgeHoldsNoReload: the next reload waits for what is being purged, not for all
// that is to be. That is a lock, so this runs in real time.
func TestPurgeHoldsNoReload(t *testing.T) {
	const k = 300
	f := startFleet(t, k, nil)
	for i := range k {
		f.serve(t, i)
	}
	disk := &diskRecords{f.sessions, make(chan struct{}, k)}
	f.Keeper.o.Records = disk
	f.Reconfigure(f.configured[:1], nil)
	for range 5 { // it is under way
		<-disk.written
	}
	f.Reconfigure(f.configured[:1], nil)
	if n := len(disk.written); n > k/2 {
		t.Errorf("it has waited for %d of %d", n, k)
	}
	f.Close()
}

func at(host string) *url.URL { return &url.URL{Scheme: "https", Host: host, Path: "/"} }
