package keeper

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sessionctl/sessionctl/daemon/internal/login"
)

// lifeAndDeath is one way of a session to its end: it is used for a while, then not, then it is
// found dead and made anew.
func (f *fleet) lifeAndDeath(t *testing.T, i int, used, unused time.Duration) {
	t.Helper()
	f.serve(t, i)
	f.use(t, used, time.Minute, i)
	pass(unused)
	f.all[i].kill()
	old := f.List()[i].Session.Generation
	for range 12 { // it is in use again, so it is noticed
		if s := f.serve(t, i); s.Generation != old {
			return
		}
		pass(time.Minute)
	}
	t.Fatalf("s%d: nobody has found its session dead", i)
}

// near checks what List says of a life, 0 for nothing learned.
func near(t *testing.T, what string, got time.Duration, learned bool, want time.Duration) {
	t.Helper()
	if learned != (want > 0) || want > 0 && (got < want*4/5 || got > want*6/5) {
		t.Errorf("%s: %v (learned: %v), want %v", what, got, learned, want)
	}
}

// lives checks both.
func (f *fleet) lives(t *testing.T, i int, age, idle time.Duration) {
	t.Helper()
	s := f.List()[i]
	near(t, s.Site.Name+": life", s.Life, s.LifeLearned, age)
	near(t, s.Site.Name+": idle", s.Idle, s.IdleLearned, idle)
}

// TestDeathsTeach: two deaths that agree within 20 % set a life; others do not.
func TestDeathsTeach(t *testing.T) {
	const m, h = time.Minute, time.Hour
	type lived struct{ used, unused time.Duration }
	for name, c := range map[string]struct {
		deaths    []lived
		age, idle time.Duration
	}{
		"none":                  {nil, 0, 0},
		"one":                   {[]lived{{h, 0}}, 0, 0},
		"two that agree":        {[]lived{{60 * m, 0}, {65 * m, 0}}, 60 * m, 0},
		"two that do not":       {[]lived{{h, 0}, {90 * m, 0}}, 0, 0},
		"three that do not":     {[]lived{{h, 0}, {2 * h, 0}, {4 * h, 0}}, 0, 0},
		"the last two agree":    {[]lived{{4 * h, 0}, {h, 0}, {h, 0}}, h, 0},
		"the first and last do": {[]lived{{h, 0}, {4 * h, 0}, {h, 0}}, 0, 0},
		"unused":                {[]lived{{20 * m, h}, {20 * m, h}}, 0, h},
		"unused, twice as long": {[]lived{{20 * m, h}, {20 * m, 2 * h}}, 0, 0},
		"unused, far longer":    {[]lived{{20 * m, h}, {20 * m, h}, {20 * m, 9 * h}, {20 * m, 9 * h}}, 0, h},
		"never proven again":    {[]lived{{0, 4 * m}, {0, 4 * m}}, 0, 270 * time.Second},
		"of both kinds":         {[]lived{{2 * h, 0}, {20 * m, 9 * h}, {2 * h, 0}, {20 * m, 9 * h}}, 2 * h, 0}, // unused, it was too old anyway
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := startFleet(t, 1, nil)
				for _, d := range c.deaths {
					f.lifeAndDeath(t, 0, d.used, d.unused)
				}
				f.lives(t, 0, c.age, c.idle)
			})
		})
	}
}

// TestLearnedFromTheSite: a site whose sessions live so long, or so long unused, and
// callers who do not know.
func TestLearnedFromTheSite(t *testing.T) {
	for name, c := range map[string]struct {
		absolute, idle, every time.Duration
		kept                  bool
		age, unused           time.Duration // learned in the end
		atMost                int           // logins in two days
	}{
		"absolute": {absolute: 2 * time.Hour, every: time.Minute, age: 2 * time.Hour, atMost: 27},
		// Asked for more rarely than its sessions live unused: all that can be known.
		"idle, hourly": {idle: 30 * time.Minute, every: time.Hour, unused: 55 * time.Minute, atMost: 49},
		// Kept alive, it finds the rhythm in which they live on.
		"idle, kept alive": {idle: 30 * time.Minute, every: 3 * time.Hour, kept: true, atMost: 49},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := startFleet(t, 1, func(_ int, b *backend, s *Site) { b.absolute, b.idle, s.KeepAlive = c.absolute, c.idle, c.kept })
				f.use(t, 48*time.Hour, c.every, 0)
				if !c.kept {
					f.lives(t, 0, c.age, c.unused)
				}
				if logins, _ := f.all[0].tally(); logins > c.atMost {
					t.Errorf("%d logins in two days", logins)
				}
				since := f.now()
				f.use(t, 24*time.Hour, c.every, 0)
				if logins, _ := f.all[0].since(since); c.kept && logins > 1 {
					t.Errorf("%d logins on the third day", logins)
				}
			})
		})
	}
}

// TestOutlived: a life that was thought too short is raised by what lives longer.
func TestOutlived(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := startFleet(t, 1, nil)
		for range 2 {
			f.lifeAndDeath(t, 0, 20*time.Minute, time.Hour)
		}
		f.lives(t, 0, 0, time.Hour)
		f.use(t, 20*time.Minute, time.Minute, 0)
		pass(2 * time.Hour)
		f.use(t, time.Minute, time.Minute, 0)
		f.lives(t, 0, 0, 2*time.Hour)
		f.start(t) // and that is kept
		f.lives(t, 0, 0, 2*time.Hour)
		// And nothing shorter than what is known raises it.
		pass(time.Hour)
		f.use(t, time.Minute, time.Minute, 0)
		f.lives(t, 0, 0, 2*time.Hour)
	})
}

// neighbours are sites of one origin that have learned a life of four hours.
func neighbours(t *testing.T, n int) *fleet {
	f := startFleet(t, n, func(i int, b *backend, _ *Site) {
		b.url.Host, b.url.Path = shared, fmt.Sprintf("/%d/", i)
	})
	for i := n - 1; i >= 0; i-- { // so that the first one's session is the youngest
		for range 2 {
			f.lifeAndDeath(t, i, 4*time.Hour, 0)
		}
		f.lives(t, i, 4*time.Hour, 0)
	}
	return f
}

// TestServerStartedAnew: sessions of one origin that die at once say nothing of how
// long they live, in whatever order that is found, and however many they are.
func TestServerStartedAnew(t *testing.T) {
	for n := 2; n <= 5; n++ {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := neighbours(t, n)
				for range 3 {
					// Sessions of many ages, all in use.
					for i := range n {
						if _, err := f.Refresh(t.Context(), f.configured[i].Name, "", true); err != nil {
							t.Fatal(err)
						}
						f.use(t, 17*time.Minute, time.Minute, numbers(0, i+1)...)
					}
					f.use(t, 20*time.Minute, time.Minute, numbers(0, n)...)
					for _, b := range f.all {
						b.kill()
					}
					f.use(t, 12*time.Minute, time.Minute, numbers(0, n)...)
					for i := range n {
						f.lives(t, i, 4*time.Hour, 0)
					}
				}
			})
		})
	}
}

// TestTeachesNothing: ends that a person has brought about.
func TestTeachesNothing(t *testing.T) {
	for name, end := range map[string]func(t *testing.T, f *fleet) error{
		"logout":  func(t *testing.T, f *fleet) error { _, err := f.Delete(t.Context(), "s0", DeleteOptions{}); return err },
		"refresh": func(t *testing.T, f *fleet) error { _, err := f.Refresh(t.Context(), "s0", "", true); return err },
		"login":   func(t *testing.T, f *fleet) error { _, err := f.Login(t.Context(), "s0", LoginOptions{}); return err },
		"forced after its death": func(t *testing.T, f *fleet) error {
			f.all[0].kill()
			_, err := f.Refresh(t.Context(), "s0", "", true)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := startFleet(t, 1, nil)
				for range 3 {
					f.use(t, time.Hour, time.Minute, 0)
					if err := end(t, f); err != nil {
						t.Fatal(err)
					}
				}
				f.lives(t, 0, 0, 0)
			})
		})
	}
}

// TestLifeIsKept: what was learned is there after a restart, unless the site is
// another one, and as well as it can be without a store.
func TestLifeIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := neighbours(t, 1)
		f.start(t)
		f.lives(t, 0, 4*time.Hour, 0)
		// Half of what sets a life is kept, too.
		f.lifeAndDeath(t, 0, time.Hour, 0)
		f.start(t)
		f.lives(t, 0, 4*time.Hour, 0)
		f.lifeAndDeath(t, 0, time.Hour, 0)
		f.lives(t, 0, time.Hour, 0)

		f.configured[0].Fingerprint = "f2"
		f.start(t)
		f.lives(t, 0, 0, 0)
		f.lifeAndDeath(t, 0, 2*time.Hour, 0)
		f.lifeAndDeath(t, 0, 2*time.Hour, 0)
		f.start(t)
		f.lives(t, 0, 2*time.Hour, 0)

		f.learned.mu.Lock()
		f.learned.failing = errors.New("the disk is full")
		f.learned.mu.Unlock()
		f.lifeAndDeath(t, 0, time.Hour, 0)
		f.lifeAndDeath(t, 0, time.Hour, 0)
		f.lives(t, 0, time.Hour, 0) // in memory
		f.start(t)
		f.lives(t, 0, 2*time.Hour, 0)

		f.learned = newRecords()
		f.learned.data[f.entries["s0"].key()] = []byte("{") // damaged
		f.start(t)
		f.lives(t, 0, 0, 0)
	})
}

// TestDocumentedLife: until something is learned, what the kind documents counts.
func TestDocumentedLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := startFleet(t, 1, func(_ int, b *backend, _ *Site) {
			b.documented = login.Life{Idle: 5 * time.Hour, Absolute: 10 * time.Hour}
		})
		if s := f.List()[0]; s.Life != 10*time.Hour || s.Idle != 5*time.Hour || s.LifeLearned || s.IdleLearned {
			t.Errorf("%+v", s)
		}
		for range 2 {
			f.lifeAndDeath(t, 0, time.Hour, 0)
		}
		if s := f.List()[0]; !s.LifeLearned || s.Life > 70*time.Minute || s.Idle != 5*time.Hour || s.IdleLearned {
			t.Errorf("%+v", s)
		}
	})
}
