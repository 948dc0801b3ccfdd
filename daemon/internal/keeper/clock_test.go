package keeper

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/login"
	"github.com/sessionctl/sessionctl/daemon/internal/secret"
	"github.com/sessionctl/sessionctl/daemon/internal/web"
)

// machine has the clocks of the machine that an agent runs on.
type machine struct {
	began time.Time
	mu    sync.Mutex
	slept time.Duration // while timers stood still
	wrong time.Duration // what the wall clock is ahead of the truth
	run   string        // since it was started, "" if it does not say
}

// reboot starts the machine anew.
func (m *machine) reboot() {
	began := m.now()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.began, m.run = began, m.run+"'"
}

// now is the true time, which servers know.
func (m *machine) now() time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	return time.Now().Add(m.slept)
}

func (m *machine) wall() time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	return time.Now().Add(m.slept + m.wrong)
}

func (m *machine) boot() time.Duration { return m.now().Sub(m.began) }

func (m *machine) suspend(d time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.slept += d
}

func (m *machine) step(d time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.wrong += d
}

// setRight sets the wall clock to the truth.
func (m *machine) setRight() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.wrong = 0
}

// backend is a site as its server sees it: it knows how long its sessions live, and
// when it was asked.
type backend struct {
	*site
	f              *fleet
	absolute, idle time.Duration // after which a session is dead: so old, so long unused; 0: never
	documented     login.Life

	mu         sync.Mutex
	token      string
	born, used time.Time
	log        []asked
}

// asked is when a server was asked for what.
type asked struct {
	at    time.Time
	login bool
}

// configure has a site log in to the backend.
func (b *backend) configure(s *Site) {
	s.Recheck, s.RecheckSet, s.Driver, s.Setup = 0, false, b, "1"
	s.Ready = func() error {
		b.site.mu.Lock()
		defer b.site.mu.Unlock()
		return b.ready
	}
	s.Forgive = func(context.Context) error {
		b.site.set(func() { b.ready = nil })
		return nil
	}
}

func (b *backend) Life() login.Life { return b.documented }

// request is one request to a server, until done is called; an error if it does
// not get there.
func (b *backend) request(login bool) (done func(), err error) {
	b.f.mu.Lock()
	defer b.f.mu.Unlock()
	b.f.underway++
	b.f.most = max(b.f.most, b.f.underway)
	if b.f.down[b.at().Host] {
		err = outOfReach(b.at())
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.log = append(b.log, asked{b.f.now(), login})
	return func() {
		b.f.mu.Lock()
		defer b.f.mu.Unlock()
		b.f.underway--
	}, err
}

// outOfReach is what everybody has at an origin.
func outOfReach(u *url.URL) error {
	return &api.Error{Code: api.NetworkError, Detail: "refused", Err: gone(web.OriginOf(u).String())}
}

func (b *backend) Login(ctx context.Context, x *web.Exchange, p login.Password) error {
	done, err := b.request(true)
	defer done()
	if err != nil {
		return cmp.Or(b.site.wait(ctx), err)
	}
	return b.site.Login(ctx, x, p)
}

func (b *backend) Probe(ctx context.Context, x *web.Exchange) (login.Identity, error) {
	done, err := b.request(false)
	defer done()
	if err != nil {
		return login.Identity{}, cmp.Or(b.site.wait(ctx), err)
	}
	b.site.set(b.age)
	return b.site.Probe(ctx, x)
}

// age ends the session whose time is over.
func (b *backend) age() {
	now := b.f.now()
	switch {
	case b.token != b.current:
		b.token, b.born = b.current, now
	case b.absolute > 0 && now.Sub(b.born) >= b.absolute, b.idle > 0 && now.Sub(b.used) >= b.idle:
		b.current = ""
	}
	b.used = now
}

// since counts the requests since a time.
func (b *backend) since(t time.Time) (logins, probes int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, a := range b.log {
		switch {
		case a.at.Before(t):
		case a.login:
			logins++
		default:
			probes++
		}
	}
	return logins, probes
}

// kill ends the session at its server.
func (b *backend) kill() { b.site.set(func() { b.current = "" }) }

// fleet is an agent with some sites, each with its own server.
type fleet struct {
	*Keeper
	*machine
	configured                 []Site
	all                        []*backend
	idp                        *backend // of all sites; nil: none
	secret                     string   // the idp's stored password
	net                        *internet
	sessions, latches, learned *records

	mu             sync.Mutex
	down           map[string]bool // hosts that cannot be reached
	underway, most int             // requests at a time
}

// newFleet returns n sites "s0", "s1", …, of hosts of their own, and no agent yet.
// each, if it is not nil, changes them.
func newFleet(n int, each func(i int, b *backend, s *Site)) *fleet {
	f := &fleet{machine: &machine{began: time.Now(), run: "this"}, sessions: newRecords(), latches: newRecords(), learned: newRecords(), down: map[string]bool{}}
	for i := range n {
		b := &backend{f: f, site: new(site)}
		b.url = &url.URL{Scheme: "https", Host: fmt.Sprintf("s%d.corp.example", i), Path: "/"}
		s := b.named(fmt.Sprintf("s%d", i))
		b.configure(&s)
		if each != nil {
			each(i, b, &s)
			s.URL = b.url
		}
		f.all, f.configured = append(f.all, b), append(f.configured, s)
	}
	return f
}

// start starts an agent, with a clock that shows what the machine's does; or a new
// one with what the store holds.
func (f *fleet) start(t *testing.T) *fleet {
	if f.Keeper != nil {
		f.Close()
	}
	clock, l := newClock(f.wall, f.boot), NewLatches(f.latches, mac)
	clock.run = f.run
	exchange := func(b *backend) func(*web.Jar, bool) *web.Exchange {
		o := web.Options{Base: b.url}
		if f.net != nil {
			o.InsecureHTTP, o.Dial, o.LoginHosts = true, f.net.dial, []web.Origin{web.OriginOf(f.idp.url)}
		}
		return func(jar *web.Jar, _ bool) *web.Exchange {
			o := o
			o.Now = clock.Steady()
			return web.NewExchange(o, jar)
		}
	}
	for i, b := range f.all {
		f.configured[i].Exchange = exchange(b)
	}
	var idps []Site
	if f.idp != nil {
		s := f.idp.named("sso")
		f.idp.configure(&s)
		s.Exchange = exchange(f.idp)
		if f.secret != "" {
			s.Password = NewPassword("office", "build", "", newRecords(), l)
			if err := s.Password.Store(t.Context(), secret.New(f.secret)); err != nil {
				t.Fatal(err)
			}
		}
		idps = append(idps, s)
	}
	var log countingLog
	k := New(Options{Sites: f.configured, IdPs: idps, Records: f.sessions, Lives: f.learned, Latches: l, Log: log.logger(), Clock: clock})
	f.Keeper = k
	t.Cleanup(func() {
		k.Close()
		if log.canary.Load() {
			t.Error("a secret is in the log")
		}
	})
	return f
}

// startFleet is newFleet, started.
func startFleet(t *testing.T, n int, each func(i int, b *backend, s *Site)) *fleet {
	return newFleet(n, each).start(t)
}

// ask asks for the session of a site.
func (f *fleet) ask(t *testing.T, i int) (Served, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	s, err := f.Get(ctx, f.configured[i].Name, GetOptions{})
	shown(t, err)
	return s, err
}

// serve asks for the session of a site, and checks that one comes which is not
// flagged.
func (f *fleet) serve(t *testing.T, i int) Served {
	t.Helper()
	s, err := f.ask(t, i)
	if err != nil || s.Stale {
		t.Fatalf("%s: stale: %v, %v", f.configured[i].Name, s.Stale, err)
	}
	return s
}

// use has sessions in use for a while: each is asked for every so often.
func (f *fleet) use(t *testing.T, d, every time.Duration, sites ...int) {
	t.Helper()
	for end := time.Now().Add(d); time.Now().Before(end); pass(every) {
		for _, i := range sites {
			f.serve(t, i)
		}
	}
}

// together asks for the sessions of some sites at once, twice, so that they are in use.
func (f *fleet) together(t *testing.T, sites ...int) (generations map[int]string) {
	t.Helper()
	var mu sync.Mutex
	generations = map[int]string{}
	for range 2 {
		var wg sync.WaitGroup
		for _, i := range sites {
			wg.Go(func() {
				s, err := f.ask(t, i)
				if err != nil || s.Stale {
					t.Errorf("%s: stale: %v, %v", f.configured[i].Name, s.Stale, err)
					return
				}
				mu.Lock()
				defer mu.Unlock()
				generations[i] = s.Generation
			})
		}
		wg.Wait()
		pass(time.Second)
	}
	return generations
}

// numbers are those from, to before to.
func numbers(from, to int) []int {
	var n []int
	for i := from; i < to; i++ {
		n = append(n, i)
	}
	return n
}

// count checks how often servers were asked since a time, all together.
func (f *fleet) count(t *testing.T, since time.Time, logins, probes int) {
	t.Helper()
	synctest.Wait()
	l, p := 0, 0
	for _, b := range f.all {
		bl, bp := b.since(since)
		l, p = l+bl, p+bp
	}
	if l != logins || p != probes {
		t.Errorf("%d logins, %d probes; want %d, %d", l, p, logins, probes)
	}
}

// reproven checks that sessions were proven once each since a time, within a
// time, spread, and no other.
func (f *fleet) reproven(t *testing.T, since time.Time, within time.Duration, sites ...int) {
	t.Helper()
	synctest.Wait()
	var times []time.Time
	for i, b := range f.all {
		logins, probes := b.since(since)
		want := 0
		if slices.Contains(sites, i) {
			want = 1
		}
		if logins != 0 || probes != want {
			t.Errorf("%s: %d logins, %d probes; want 0, %d", f.configured[i].Name, logins, probes, want)
		}
		b.mu.Lock()
		for _, a := range b.log {
			if !a.at.Before(since) {
				times = append(times, a.at)
			}
		}
		b.mu.Unlock()
	}
	slices.SortFunc(times, time.Time.Compare)
	for i, at := range times {
		if at.Sub(since) > within {
			t.Errorf("asked %v after it", at.Sub(since))
		}
		if i > 0 && at.Equal(times[i-1]) {
			t.Errorf("two are asked at the same instant, %v after it", at.Sub(since))
		}
	}
	if n := len(times); n > 20 && times[n-1].Sub(times[0]) < spread/2 {
		t.Errorf("%d are asked within %v", n, times[n-1].Sub(times[0]))
	}
}

// 100 sites, of which half are in use.
const fleetSize, inUse = 100, 50

// startUsed is an agent of fleetSize sites: the first inUse of them are in use, the
// others were so. Their cookies are of each sort in turn.
func startUsed(t *testing.T) (*fleet, map[int]string) {
	f := startFleet(t, fleetSize, func(i int, b *backend, _ *Site) {
		b.delay = 100 * time.Millisecond
		switch i % 3 {
		case 0:
			b.life = 30 * time.Hour
		case 1:
			b.attrs = func() string { return "; Expires=" + b.f.now().Add(30*time.Hour).UTC().Format(http.TimeFormat) }
		}
	})
	generations := f.together(t, numbers(0, fleetSize)...)
	pass(20 * time.Minute)
	now := f.now()
	f.together(t, numbers(0, inUse)...)
	f.most = 0
	pass(time.Second)
	f.count(t, now, 0, inUse)
	return f, generations
}

// TestClockSteps: whatever somebody sets the clock to, no session ages by it.
func TestClockSteps(t *testing.T) {
	const day = 24 * time.Hour
	for _, by := range []time.Duration{time.Hour, -time.Hour, 3 * day, -3 * day, 365 * day, -365 * day} {
		t.Run(by.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f, before := startUsed(t)
				dated := func(i int) bool { return by > time.Hour && i%3 == 1 } // a date is what it is
				since := f.now()
				f.step(by)
				pass(35 * time.Second)
				var want []int
				for i := range inUse {
					if !dated(i) {
						want = append(want, i)
					}
				}
				for i, b := range f.all {
					if dated(i) { // dead by now, and made anew if it is used
						b.log = nil
					}
				}
				f.reproven(t, since, 35*time.Second, want...)
				if f.most > maxBackground {
					t.Errorf("%d at once", f.most)
				}
				if d := f.Keeper.clock.Now().Sub(f.wall()); d.Abs() > maxDrift {
					t.Errorf("the agent's time is off by %v", d)
				}
				for i := range fleetSize {
					if dated(i) {
						continue
					}
					if s := f.serve(t, i); s.Generation != before[i] {
						t.Errorf("s%d: another session", i)
					}
				}
				// Back to the truth, as NTP does it.
				f.step(-by)
				pass(time.Minute)
				for i := range fleetSize {
					if s := f.serve(t, i); !dated(i) && s.Generation != before[i] {
						t.Errorf("s%d: another session after the clock was set right", i)
					}
				}
			})
		})
	}
}

// TestStepWhileAtWork: somebody sets the clock while a site is asked, and somebody
// else notices.
func TestStepWhileAtWork(t *testing.T) {
	const year = 365 * 24 * time.Hour
	for _, by := range []time.Duration{year, -year} {
		for _, work := range []string{"login", "probe"} {
			t.Run(fmt.Sprint(work, by), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					f := startFleet(t, 2, func(_ int, b *backend, _ *Site) { b.life = 4 * time.Hour })
					f.serve(t, 1)
					if work == "probe" {
						f.serve(t, 0)
						pass(6 * time.Minute)
						f.serve(t, 1)
					}
					f.all[0].site.set(func() { f.all[0].delay = 2 * time.Second })
					answer := make(chan error, 1)
					go func() {
						_, err := f.ask(t, 0)
						answer <- err
					}()
					pass(time.Second)
					f.step(by)
					f.serve(t, 1) // looks at the clocks
					if err := <-answer; err != nil {
						t.Errorf("the caller got %v", err)
					}
					f.use(t, 30*time.Minute, time.Minute, 0, 1)
					for i, b := range f.all {
						if logins, _ := b.tally(); logins != 1 {
							t.Errorf("s%d: %d logins", i, logins)
						}
					}
				})
			})
		}
	}
}

// TestStepBackAndRestart: what is stored is of times to come.
func TestStepBackAndRestart(t *testing.T) {
	for _, by := range []time.Duration{-time.Hour, -365 * 24 * time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			f := startFleet(t, 1, func(_ int, b *backend, _ *Site) { b.life = 4 * time.Hour })
			before := f.serve(t, 0)
			pass(time.Minute)
			f.Close()
			f.step(by)
			f.start(t)
			since := f.now()
			if s := f.serve(t, 0); s.Generation != before.Generation {
				t.Errorf("%v: another session", by)
			}
			f.count(t, since, 0, 1) // it is not believed without a proof
			f.use(t, time.Hour, time.Minute, 0)
			if logins, probes := f.all[0].since(since); logins != 0 || probes < 12 || probes > 25 {
				t.Errorf("%v: %d logins, %d probes in an hour", by, logins, probes)
			}
		})
	}
}

// TestStepAndRestart: somebody sets the clock just when the agent is started anew,
// and sets it right later. In one run of the machine that changes nothing; in
// another one nobody knows, but a session that lives is served, and none of that
// says how long sessions live.
func TestStepAndRestart(t *testing.T) {
	for _, by := range []time.Duration{time.Hour, -time.Hour, 80 * 24 * time.Hour, -80 * 24 * time.Hour} {
		for _, c := range []struct {
			name   string
			reboot func(f *fleet)
			known  bool
		}{
			{"the same run", func(*fleet) {}, true},
			{"another run", func(f *fleet) { f.reboot() }, false},
			{"nobody says", func(f *fleet) { f.run = "" }, false},
		} {
			t.Run(fmt.Sprint(c.name, by), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					f := startFleet(t, 1, func(_ int, b *backend, _ *Site) {
						if c.known { // else it may end, for all that is known
							b.life = 6 * time.Hour
						}
					})
					f.lifeAndDeath(t, 0, 4*time.Hour, 0)
					f.lifeAndDeath(t, 0, 4*time.Hour, 0)
					f.lives(t, 0, 4*time.Hour, 0)
					f.use(t, 20*time.Minute, time.Minute, 0)
					before := f.serve(t, 0)
					f.Close()
					f.step(by)
					c.reboot(f)
					f.start(t)
					since := f.now()
					if c.known {
						f.all[0].set(func() { f.all[0].probeE = outOfReach(f.all[0].at()) })
						if s, err := f.Get(t.Context(), "s0", GetOptions{}); err != nil || !s.Stale {
							t.Errorf("without a proof: %v, stale: %v", err, s.Stale)
						}
						pass(time.Minute)
						f.setRight()
						pass(time.Minute)
						f.all[0].set(func() { f.all[0].probeE = nil })
						pass(5 * time.Minute) // the longest back-off
						f.Get(t.Context(), "s0", GetOptions{})
						pass(time.Minute)
						f.use(t, 25*time.Minute, time.Minute, 0)
						s := f.serve(t, 0)
						if age := f.now().Sub(s.LoginTime); s.Generation != before.Generation || age < 50*time.Minute || age > time.Hour {
							t.Errorf("another session, or another time: %v after the login", age)
						}
						if logins, _ := f.all[0].since(since); logins != 0 {
							t.Errorf("%d logins", logins)
						}
					}
					f.use(t, 30*time.Minute, time.Minute, 0)
					f.setRight()
					f.use(t, time.Hour, time.Minute, 0)
					f.lives(t, 0, 4*time.Hour, 0)
				})
			})
		}
	}
}

// TestSuspend: the machine sleeps for a night.
func TestSuspend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, before := startUsed(t)
		f.suspend(8 * time.Hour)
		since := f.now()
		pass(35 * time.Second)
		f.reproven(t, since, 35*time.Second, numbers(0, inUse)...)
		if f.most > maxBackground {
			t.Errorf("%d at once", f.most)
		}
		for i := range fleetSize {
			if s := f.serve(t, i); s.Generation != before[i] {
				t.Errorf("s%d: another session", i)
			}
		}
	})
}

// TestAskedAfterSuspend: who asks at once after a sleep has the session in use for
// as long as always, and no longer.
func TestAskedAfterSuspend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := startFleet(t, 1, nil)
		f.serve(t, 0)
		pass(time.Second)
		f.serve(t, 0)
		f.suspend(8 * time.Hour)
		pass(time.Second)
		f.serve(t, 0)
		since := f.now()
		pass(24 * time.Hour)
		if logins, probes := f.all[0].since(since.Add(time.Second)); logins != 0 || probes > 2 {
			t.Errorf("%d logins, %d probes, and nobody has asked", logins, probes)
		}
	})
}

// TestLivesAndClocks: a site's sessions live an hour, and no step or sleep has the
// agent believe anything else.
func TestLivesAndClocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := startFleet(t, 1, func(_ int, b *backend, _ *Site) { b.absolute, b.delay = time.Hour, time.Second })
		f.use(t, 3*time.Hour, time.Minute, 0)
		check := func(when string) {
			t.Helper()
			s := f.List()[0]
			if s.Life < 50*time.Minute || s.Life > time.Hour || !s.LifeLearned || s.Idle > time.Hour {
				t.Errorf("%s: life %v (learned: %v), idle %v", when, s.Life, s.LifeLearned, s.Idle)
			}
		}
		check("at first")
		for _, by := range []time.Duration{24 * time.Hour, -24 * time.Hour, 365 * 24 * time.Hour, -365 * 24 * time.Hour} {
			f.use(t, 17*time.Minute, time.Minute, 0)
			f.step(by)
			f.use(t, 3*time.Hour, time.Minute, 0)
			check("after a step by " + by.String())
			// And in the middle of a probe.
			if _, err := f.Refresh(t.Context(), "s0", "", false); err != nil {
				t.Fatal(err)
			}
			go f.Refresh(t.Context(), "s0", "", false)
			pass(time.Second / 2)
			f.step(by)
			f.List()
			f.use(t, 3*time.Hour, time.Minute, 0)
			check("after a step by " + by.String() + " during a probe")
		}
		for range 4 {
			f.suspend(8 * time.Hour)
			f.use(t, 2*time.Hour, time.Minute, 0)
		}
		check("after four nights")
	})
}

// TestDrift: a clock that NTP slews is not a step, and one that is set is.
func TestDrift(t *testing.T) {
	for _, c := range []struct {
		by   time.Duration
		want time.Duration
	}{{0, 0}, {maxDrift, 0}, {-maxDrift, 0}, {maxDrift + 1, maxDrift + 1}, {-maxDrift - 1, -maxDrift - 1}} {
		synctest.Test(t, func(t *testing.T) {
			m := &machine{began: time.Now()}
			c0 := newClock(m.wall, m.boot)
			m.step(c.by)
			if d := c0.drift(); d != c.want {
				t.Errorf("%v counts as a step of %v", c.by, d)
			}
			c0.step(c0.drift())
			if d := cmp.Or(c0.Now().Sub(m.wall()), 0); d != c.want-c.by {
				t.Errorf("%v: the agent's time is off by %v", c.by, d)
			}
		})
	}
}
