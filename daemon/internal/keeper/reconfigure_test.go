package keeper

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/login"
	"github.com/sessionctl/sessionctl/daemon/internal/web"
)

// reload applies the present configuration with changes to one site.
func (f *fleet) reload(i int, change func(*Site)) {
	change(&f.configured[i])
	f.Reconfigure(f.configured, nil)
}

// What a reload may change.
func otherSetup(s *Site)       { s.Setup += "+" }
func otherFingerprint(s *Site) { s.Setup, s.Fingerprint = s.Setup+"+", s.Fingerprint+"+" }
func otherAccount(s *Site) {
	otherFingerprint(s)
	s.Account = "deploy@CORP.EXAMPLE"
}

// watched is a watcher of the first site.
func (f *fleet) watched(t *testing.T) *watcher {
	w := new(watcher)
	var ctx context.Context
	ctx, w.stop = context.WithCancel(t.Context())
	go w.follow(ctx, f.Keeper, f.configured[0].Name)
	synctest.Wait()
	return w
}

// follow watches a site's session until that ends.
func (w *watcher) follow(ctx context.Context, k *Keeper, site string) {
	err := k.Watch(ctx, site, func(s Served) error {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.got = append(w.got, s)
		return nil
	})
	w.mu.Lock()
	defer w.mu.Unlock()
	w.err, w.over = err, true
}

// recordsLeft returns how many records of an entry are stored.
func (f *fleet) recordsLeft(e *entry) (n int) {
	for _, r := range []*records{f.sessions, f.learned} {
		if record, _, _ := r.Load(e.key()); record != nil {
			n++
		}
	}
	return n
}

// TestReload: what a reload changes, and what it leaves.
func TestReload(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Site)
		same   bool // the entry itself goes on
		keeps  bool // its session does
		purges bool // what is stored under the former key goes
	}{
		"nothing":           {func(*Site) {}, true, true, false},
		"setup":             {otherSetup, false, true, false},
		"fingerprint":       {otherFingerprint, false, false, false},
		"fingerprint alone": {func(s *Site) { s.Fingerprint += "+" }, false, false, false},
		"account":           {otherAccount, false, false, true},
	} {
		for _, stale := range []bool{false, true} {
			t.Run(fmt.Sprint(name, " stale ", stale), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					f := neighbours(t, 2)
					before, neighbour := f.serve(t, 0), f.entries["s1"]
					w := f.watched(t)
					if stale {
						f.out(shared, true)
						pass(6 * time.Minute)
						if s := f.List()[0]; s.State != Stale {
							t.Fatalf("state %d", s.State)
						}
					}
					e := f.entries["s0"]
					pass(time.Second)
					since := f.now()
					f.reload(0, c.change)
					synctest.Wait()
					if (f.entries["s0"] == e) != c.same || f.entries["s1"] != neighbour {
						t.Errorf("another entry: %v, of its neighbour: %v", f.entries["s0"] != e, f.entries["s1"] != neighbour)
					}
					if left := f.recordsLeft(e); (left == 0) != c.purges {
						t.Errorf("%d records are left", left)
					}
					if stale && c.keeps {
						if s, err := f.ask(t, 0); err != nil || s.Generation != before.Generation || !s.Stale {
							t.Errorf("stale: %v, %v", s.Stale, err)
						}
					}
					if stale {
						f.out(shared, false)
						pass(maxBackOff + time.Second)
					}
					pass(time.Second)
					var wg sync.WaitGroup
					for range 100 {
						wg.Go(func() {
							if s, err := f.ask(t, 0); err != nil || (s.Generation == before.Generation) != c.keeps {
								t.Errorf("the same session: %v, %v", s.Session != nil && s.Generation == before.Generation, err)
							}
						})
					}
					wg.Wait()
					logins, _ := f.all[0].since(since)
					if (logins == 0) != c.keeps || logins > 1 && !stale {
						t.Errorf("%d logins", logins)
					}
					if s := f.List()[0]; s.LifeLearned != c.keeps || f.configured[0].Account != s.Site.Account {
						t.Errorf("learned: %v, account %s", s.LifeLearned, s.Site.Account)
					}
					// In an outage without a session a watch may end.
					if stale && !c.keeps {
						w.stop()
					} else if s := w.last(t); s.Generation != f.List()[0].Session.Generation {
						t.Error("the watcher has another session")
					}
					w.stop()
					f.start(t) // a restart sees the same
					if s := f.serve(t, 0); (s.Generation == before.Generation) != c.keeps {
						t.Error("after a restart it is another session")
					}
				})
			})
		}
	}
}

// TestReloadRemoves: nothing of a site is left, and those who watch it are told; and
// it can come back.
func TestReloadRemoves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := neighbours(t, 2)
		before := f.serve(t, 0)
		w, e := f.watched(t), f.entries["s0"]
		all := f.configured
		f.Reconfigure(all[1:], nil)
		w.ended(t, api.UnknownSite)
		if n := f.recordsLeft(e); n != 0 {
			t.Errorf("%d records are left", n)
		}
		if _, err := f.ask(t, 0); api.CodeOf(err) != api.UnknownSite {
			t.Errorf("%v", err)
		}
		if l := f.List(); len(l) != 1 || l[0].Site.Name != "s1" {
			t.Errorf("%+v", l)
		}
		since := f.now()
		pass(24 * time.Hour)
		f.count(t, since, 0, 0) // s1 is not in use

		f.Reconfigure(all, nil)
		if s := f.serve(t, 0); s.Generation == before.Generation {
			t.Error("its session is there again")
		}
		if s := f.List(); s[0].LifeLearned || !s[1].LifeLearned {
			t.Errorf("%+v", s)
		}
	})
}

// failing is a backend that a credential cannot log in to.
type failing struct {
	*backend
	why error
}

func (f failing) Login(ctx context.Context, _ *web.Exchange, _ login.Password) error {
	done, _ := f.request(true)
	defer done()
	if err := f.site.wait(ctx); err != nil {
		return err
	}
	return f.why
}

// TestReloadAtWork: what is under way is finished and then judged; those who wait get
// what the new configuration gives.
func TestReloadAtWork(t *testing.T) {
	const probing = 6 * time.Minute
	refused := &api.Error{Code: api.BadCredentials, Detail: "the old credential"}
	away := &api.Error{Code: api.NetworkError, Detail: "away"}
	type changes []func(*Site)
	for name, c := range map[string]struct {
		after   time.Duration // of the first login, if that is done before
		why     *api.Error    // why the work that is under way fails
		changes changes
		logins  int // attempts in all
		stale   bool
	}{
		"login, setup":               {0, nil, changes{otherSetup}, 1, false},
		"login, fingerprint":         {0, nil, changes{otherFingerprint}, 2, false},
		"login, account":             {0, nil, changes{otherAccount}, 2, false},
		"login, setup twice":         {0, nil, changes{otherSetup, otherSetup}, 1, false},
		"login, both":                {0, nil, changes{otherSetup, otherFingerprint}, 2, false},
		"refused, setup":             {0, refused, changes{otherSetup}, 2, false},
		"refused, fingerprint":       {0, refused, changes{otherFingerprint}, 2, false},
		"refused, fingerprint twice": {0, refused, changes{otherFingerprint, otherFingerprint}, 2, false},
		"impossible, setup":          {0, away, changes{otherSetup}, 2, false},
		"probe, setup":               {probing, nil, changes{otherSetup}, 1, false},
		"probe, fingerprint":         {probing, nil, changes{otherFingerprint}, 2, false},
		"probe, setup twice":         {probing, nil, changes{otherSetup, otherSetup}, 1, false},
		"outage, setup":              {probing, away, changes{otherSetup}, 1, true},
		"outage, fingerprint":        {probing, away, changes{otherFingerprint}, 2, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := startFleet(t, 1, func(_ int, b *backend, s *Site) {
					if c.after == 0 && c.why != nil {
						s.Driver = failing{b, c.why}
					}
				})
				b := f.all[0]
				if c.after > 0 {
					f.serve(t, 0)
					pass(c.after)
					if c.why != nil {
						b.set(func() { b.probeE = c.why })
					}
				}
				b.set(func() { b.delay = 3 * time.Second })
				callers := make(chan error, 100)
				for range cap(callers) {
					go func() {
						s, err := f.ask(t, 0)
						if err == nil && s.Stale != c.stale {
							err = fmt.Errorf("stale: %v", s.Stale)
						}
						callers <- err
					}()
				}
				w := f.watched(t)
				for _, change := range c.changes {
					pass(time.Second)
					f.reload(0, func(s *Site) { change(s); s.Driver = b })
				}
				if !c.stale {
					time.AfterFunc(3*time.Second-time.Duration(len(c.changes))*time.Second+1, func() { b.set(func() { b.probeE = nil }) })
				}
				got(t, callers, "")
				if logins, _ := b.since(f.began); logins != c.logins {
					t.Errorf("%d logins, want %d", logins, c.logins)
				}
				if s, err := f.ask(t, 0); err != nil || s.Generation != w.last(t).Generation {
					t.Errorf("the watcher has another session: %v", err)
				}
				w.stop()
				f.start(t)
				if s, err := f.ask(t, 0); err != nil || s.Stale != c.stale {
					t.Errorf("after a restart: stale: %v, %v", s.Stale, err)
				}
				if logins, _ := b.since(f.began); logins != c.logins {
					t.Errorf("%d logins after a restart, want %d", logins, c.logins)
				}
			})
		})
	}
}

// TestReloadRemovesAtWork: whoever waits for a site that is removed is told so, and
// what the work under way leaves goes, too.
func TestReloadRemovesAtWork(t *testing.T) {
	for name, c := range map[string]struct{ comesBack, busy bool }{"idle": {false, false}, "login": {false, true}, "comes back": {true, true}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := startFleet(t, 1, func(_ int, b *backend, _ *Site) { b.delay = 3 * time.Second })
				e, all := f.entries["s0"], f.configured
				callers := make(chan error, 20)
				for range cap(callers) {
					go func() {
						_, err := f.ask(t, 0)
						callers <- err
					}()
				}
				pass(time.Second)
				if !c.busy {
					pass(10 * time.Second)
				}
				f.Reconfigure(nil, nil)
				code := api.Code("")
				if c.busy {
					code = api.UnknownSite
				}
				if c.comesBack {
					pass(time.Second)
					f.Reconfigure(all, nil)
					code = ""
				}
				got(t, callers, code)
				pass(10 * time.Second)
				if n := f.recordsLeft(e); (n > 0) != c.comesBack {
					t.Errorf("%d records are left", n)
				}
				if c.comesBack {
					s := f.serve(t, 0)
					f.start(t)
					if f.serve(t, 0).Generation != s.Generation {
						t.Error("its session was not stored")
					}
				}
			})
		})
	}
}

// TestReloadOfALatch: a changed credential is another one.
func TestReloadOfALatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := startFleet(t, 1, func(_ int, b *backend, _ *Site) { b.ready = &api.Error{Code: api.Latched, Detail: "refused"} })
		for range 3 {
			if _, err := f.ask(t, 0); api.CodeOf(err) != api.Latched {
				t.Fatal(err)
			}
		}
		if s := f.List()[0]; s.State != Latched {
			t.Errorf("state %d", s.State)
		}
		f.reload(0, otherSetup) // not the credential
		if _, err := f.ask(t, 0); api.CodeOf(err) != api.Latched {
			t.Fatal(err)
		}
		f.reload(0, func(s *Site) { otherAccount(s); s.Ready = func() error { return nil } })
		if s := f.List()[0]; s.State != None || s.Failure != nil {
			t.Errorf("state %d, %v", s.State, s.Failure)
		}
		f.useAtOnce(t, 0)
		if logins, _ := f.all[0].tally(); logins != 1 {
			t.Errorf("%d logins", logins)
		}
	})
}

// TestReloadOfABackOff: who has mended the configuration does not wait.
func TestReloadOfABackOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := startFleet(t, 1, func(_ int, b *backend, s *Site) { s.Driver = failing{b, &api.Error{Code: api.NoChallenge}} })
		for range 20 {
			f.ask(t, 0)
			pass(time.Minute)
		}
		f.reload(0, func(s *Site) { otherSetup(s); s.Driver = f.all[0] })
		f.useAtOnce(t, 0)
	})
}

// TestReloadKeepsAlive: looking after sessions begins and ends with the reload.
func TestReloadKeepsAlive(t *testing.T) {
	for _, had := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			f := startFleet(t, 1, nil)
			if had {
				f.serve(t, 0)
				pass(time.Hour)
			}
			keep := func(is bool) (logins, probes int) {
				f.reload(0, func(s *Site) { otherSetup(s); s.KeepAlive = is })
				pass(usualRecheck)
				since := f.now()
				pass(24 * time.Hour)
				return f.all[0].since(since)
			}
			f.all[0].kill()
			if _, probes := keep(true); probes < 24*12-10 || probes > 24*14 {
				t.Errorf("had a session: %v: %d probes in a day", had, probes)
			}
			if logins, probes := keep(false); logins+probes > 1 {
				t.Errorf("%d logins, %d probes in a day after that", logins, probes)
			}
		})
	}
}

// TestReloadOfAnIdP: a member logs in through whom the configuration names now.
func TestReloadOfAnIdP(t *testing.T) {
	const k = 3
	for name, c := range map[string]struct {
		change func(d *domain, sites, idps []Site) []Site // the identity providers then
		code   api.Code
		kept   bool // members' sessions
		logins int  // at the identity provider
	}{
		"nothing": {func(_ *domain, _, idps []Site) []Site { return idps }, "", true, 1},
		"its setup": {func(_ *domain, _, idps []Site) []Site {
			otherSetup(&idps[0])
			return idps
		}, "", true, 1},
		"its credential": {func(_ *domain, sites, idps []Site) []Site {
			otherFingerprint(&idps[0])
			for i := range sites {
				otherFingerprint(&sites[i])
			}
			return idps
		}, "", false, 2},
		"removed, members log in themselves": {func(d *domain, sites, idps []Site) []Site {
			for i := range sites {
				otherFingerprint(&sites[i])
				sites[i].IdP = ""
				sites[i].Driver = d.all[i]
			}
			return nil
		}, "", false, 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := startDomain(t, k, "")
				before := d.together(t, d.members()...)
				p := d.Keeper.idps["sso"]
				sites, idps := setUp(d.Keeper)("1")
				idps = c.change(d, sites, idps)
				d.Reconfigure(sites, idps)
				synctest.Wait()
				if record, _, _ := d.sessions.Load(p.key()); (record == nil) != (idps == nil) {
					t.Errorf("the identity provider's session is stored: %v", record != nil)
				}
				if n := len(d.IdPs()); n != len(idps) {
					t.Errorf("%d identity providers", n)
				}
				for i, g := range d.together(t, d.members()...) {
					if (g == before[i]) != c.kept {
						t.Errorf("s%d: the same session: %v", i, g == before[i])
					}
				}
				if logins, _ := d.idp.since(d.began); logins != c.logins {
					t.Errorf("%d logins at the identity provider", logins)
				}
			})
		})
	}
}
