package keeper

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/url"
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

var (
	days = flag.Int("days", 1, "how long TestDays lasts")
	seed = flag.Uint64("seed", 0, "of what happens in TestDays; 0: another one each time")
)

// world is 1,000 sites on 50 origins, their realm, and the machine's clocks.
type world struct {
	start time.Time
	rand  *rand.Rand

	mu      sync.Mutex
	asleep  time.Duration // so far
	stepped time.Duration // what the wall clock is wrong by
	noKDC   bool
	origins [50]struct {
		down  bool
		asked int // since it is down
	}
	most   int           // requests at an origin while it was down
	second map[int64]int // probes and logins by the second
}

func (w *world) wall() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return time.Now().Add(w.asleep + w.stepped)
}

func (w *world) boot() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return time.Since(w.start) + w.asleep
}

func (w *world) set(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

// gone is the cause of a failure that others share.
type gone string

func (g gone) Error() string  { return string(g) }
func (g gone) Outage() string { return string(g) }

// habit is how a site is used.
type habit int

const (
	busy     habit = iota // every minute
	hourly                // by cron
	once                  // in the morning
	never                 // by nobody
	kept                  // by nobody, and kept alive
	mistaken              // every minute, with a wrong password
)

// host is one of the sites, and what really becomes of its sessions.
type host struct {
	w      *world
	url    *url.URL
	entry  *entry
	habit  habit
	origin int
	// How its sessions end: so long after the login, unused, and by their cookie.
	absolute, idle, maxAge time.Duration

	mu         sync.Mutex
	token      string
	born, used time.Duration // since the machine was started
	dead       time.Duration // when the present one was ended by hand, 0 if not
	broken     bool          // answers 503
	ended      int           // sessions that were found dead
	logins     int
	planned    int // made while the old one lived, near the end that the keeper expects
	needless   int // or not
	unproven   int // of those, after a login that could not be proven
	proven     bool
	mistaken   int // near an end that the keeper expects wrongly
	probes     int
	refused    int
	wanted     time.Time // when somebody has asked for it last; sleep does not count
	asked      time.Time // and when the site was asked last
}

// end returns when the present session ends, as far as that is certain by now.
func (h *host) end() time.Duration {
	end := time.Duration(1 << 62)
	for _, d := range []struct{ from, life time.Duration }{{h.born, h.absolute}, {h.used, h.idle}, {h.used, h.maxAge}} {
		if d.life > 0 {
			end = min(end, d.from+d.life)
		}
	}
	if h.dead > 0 {
		end = min(end, h.dead)
	}
	return end
}

// reach is the way to the site, and what stands in it.
func (h *host) reach(ctx context.Context) error {
	select {
	case <-time.After(50 * time.Millisecond):
	case <-ctx.Done():
		return ctx.Err()
	}
	h.mu.Lock()
	h.asked = time.Now()
	h.mu.Unlock()
	h.w.mu.Lock()
	defer h.w.mu.Unlock()
	h.w.second[time.Now().Unix()]++
	if o := &h.w.origins[h.origin]; o.down {
		o.asked++
		return &api.Error{Code: api.NetworkError, Detail: "refused", Err: gone(web.OriginOf(h.url).String())}
	}
	return nil
}

func (h *host) Takes() []login.Means { return nil }

func (h *host) Login(ctx context.Context, x *web.Exchange, p login.Password) error {
	if err := h.reach(ctx); err != nil {
		return err
	}
	now := h.w.boot()
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.broken {
		return &api.Error{Code: api.Maintenance, Detail: "503"}
	}
	if p != nil {
		if _, err := p.Take(ctx); err != nil {
			return err
		}
		h.refused++
		return &api.Error{Code: api.BadCredentials, Detail: "wrong"}
	}
	h.w.mu.Lock()
	noKDC := h.w.noKDC
	h.w.mu.Unlock()
	if noKDC {
		return &api.Error{Code: api.KDCUnreachable, Detail: "no KDC", Err: gone("realm CORP.EXAMPLE")}
	}
	h.logins++
	switch left := h.end() - now; {
	case h.token == "":
	case left <= 0:
		h.ended++
	case h.entry.expects(5 * time.Minute):
		h.planned++
		if left > 15*time.Minute {
			h.mistaken++
		}
	case !h.proven: // an outage, or the agent's end, came between the login and its proof
		h.unproven++
	default:
		h.needless++
	}
	h.token, h.born, h.used, h.dead = fmt.Sprintf("CANARY-%d", h.logins), now, now, 0
	h.proven = false
	h.set(x)
	return nil
}

// expects reports whether the keeper expects the end of the session soon.
func (e *entry) expects(soon time.Duration) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return !e.endAt.IsZero() && e.endAt.Sub(e.k.clock.Now()) <= soon
}

// overdue reports whether the end of a session has passed that the keeper expects.
func (e *entry) overdue(s *Session) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.session == s && !e.endAt.IsZero() && e.k.clock.Now().After(e.endAt)
}

func (h *host) set(x *web.Exchange) {
	line := "session=" + h.token
	if h.maxAge > 0 {
		line += fmt.Sprintf("; Max-Age=%.0f", h.maxAge.Seconds())
	}
	x.Jar().Set(h.url, []string{line}, x.Now())
}

// lives reports whether a session of the site is good, and if not, since when.
func (h *host) lives(header string, now time.Duration) (ok bool, since time.Duration) {
	if header != "session="+h.token {
		return false, h.born // another took its place
	}
	end := h.end()
	return now < end, end
}

func (h *host) Probe(ctx context.Context, x *web.Exchange) (login.Identity, error) {
	if err := h.reach(ctx); err != nil {
		return login.Identity{}, err
	}
	now := h.w.boot()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.probes++
	if h.broken {
		return login.Identity{}, &api.Error{Code: api.Maintenance, Detail: "503"}
	}
	if ok, _ := h.lives(x.Jar().Header(h.url, x.Now()), now); !ok {
		return login.Identity{}, &api.Error{Code: api.Expired, Detail: "401"}
	}
	h.used, h.proven = now, true
	if h.maxAge > 0 && h.absolute == 0 && h.idle == 0 && h.origin%2 == 0 { // a sliding cookie
		h.set(x)
	} else if h.maxAge > 0 {
		h.used = h.born
	}
	return login.Identity{Name: "build"}, nil
}

// TestDays: sites of all sorts in a day, or as many as -days says, with outages,
// expiries, restarts, sleep and wrong clocks.
func TestDays(t *testing.T) {
	seed := cmp.Or(*seed, uint64(time.Now().UnixNano()))
	t.Logf("-seed %d", seed)
	synctest.Test(t, func(t *testing.T) {
		w := &world{start: time.Now(), rand: rand.New(rand.NewPCG(seed, 0)), second: map[int64]int{}}
		var clock *Clock
		l := NewLatches(newRecords(), mac)
		passwords := newRecords()
		wrong := NewPassword("build", "build", "", passwords, l)
		if err := wrong.Store(t.Context(), secret.New("CANARY-wrong")); err != nil {
			t.Fatal(err)
		}
		var hosts []*host
		var sites []Site
		for i := range 1000 {
			h := &host{w: w, origin: i % len(w.origins), habit: [10]habit{busy, busy, busy, hourly, hourly, once, once, never, kept, mistaken}[i/100]}
			h.url = &url.URL{Scheme: "https", Host: fmt.Sprintf("app%d.corp.example", h.origin), Path: fmt.Sprintf("/%d/", i)}
			switch (i / len(w.origins)) % 5 {
			case 0:
				h.absolute = 8 * time.Hour
			case 1:
				h.absolute = time.Hour
			case 2:
				h.idle = 30 * time.Minute
			case 3:
				h.maxAge = 2 * time.Hour
			}
			s := Site{
				Name: fmt.Sprintf("site%d", i), Kind: "test", URL: h.url, Account: "build@CORP.EXAMPLE", Fingerprint: "f", Setup: "s", Realm: "CORP.EXAMPLE", KeepAlive: h.habit == kept,
				Expect: login.Expectation{Names: []string{"build"}}, Driver: h,
				Ready: func() error { return nil }, Forgive: func(context.Context) error { return nil },
				Exchange: func(jar *web.Jar, _ bool) *web.Exchange {
					return web.NewExchange(web.Options{Base: h.url, Now: clock.Steady()}, jar)
				},
			}
			if h.habit == mistaken {
				s.Account, s.Realm, s.Password = "build", "", wrong
			}
			hosts, sites = append(hosts, h), append(sites, s)
		}
		var log countingLog
		records, lives := newRecords(), newRecords()
		var agent sync.RWMutex // locked while it is started anew
		var k *Keeper
		start := func() {
			agent.Lock()
			defer agent.Unlock()
			if k != nil {
				k.Close()
			}
			clock = newClock(w.wall, w.boot)
			clock.run = "this"
			k = New(Options{Sites: sites, Records: records, Lives: lives, Latches: l, Log: log.logger(), Clock: clock})
			for i, h := range hosts {
				h.mu.Lock()
				h.entry = k.entries[sites[i].Name]
				h.mu.Unlock()
			}
		}
		start()
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		var calls, failed, latched, flagged, unknowable atomic.Int64
		ask := func(i int) {
			agent.RLock()
			defer agent.RUnlock()
			h := hosts[i]
			calls.Add(1)
			c, cancel := context.WithTimeout(ctx, 30*time.Second)
			defer cancel()
			s, err := k.Get(c, sites[i].Name, GetOptions{})
			h.mu.Lock()
			h.wanted = time.Now()
			h.mu.Unlock()
			switch code := api.CodeOf(err); {
			case err == nil && s.Stale:
				flagged.Add(1)
			case err == nil:
				now := w.boot()
				h.mu.Lock()
				ok, since := h.lives(web.CookieHeader(s.Cookies(h.url, clock.Now())), now)
				h.mu.Unlock()
				proven := now - clock.Now().Sub(s.ProveTime)
				switch {
				case ok:
				case proven > since+time.Second: // the proof is measured a little later
					t.Errorf("%s: a session that was dead at its proof is handed out", sites[i].Name)
				case now-proven > usualRecheck:
					t.Errorf("%s: a dead session is handed out %v after its proof", sites[i].Name, now-proven)
				default:
					unknowable.Add(1)
					if h.entry.overdue(s.Session) && now-proven > 31*time.Second {
						t.Errorf("%s: a dead session is handed out after the end that is known, %v after its proof", sites[i].Name, now-proven)
					}
				}
			case ctx.Err() != nil:
			case h.habit == mistaken && (code == api.Latched || code == api.BadCredentials):
				latched.Add(1)
			case !code.Temporary() && code != api.LoginOKButProbeFailed: // it was ended between the two
				t.Errorf("%s: %v", sites[i].Name, err)
			default:
				failed.Add(1)
			}
		}
		every := map[habit]time.Duration{busy: time.Minute, hourly: time.Hour, mistaken: time.Minute}
		for i, h := range hosts {
			begin := time.Duration(w.rand.Int64N(int64(time.Minute)))
			jitter := rand.New(rand.NewPCG(seed, uint64(i)))
			running.Go(func() {
				if !wait(ctx, begin) || h.habit == never || h.habit == kept {
					return
				}
				for {
					ask(i)
					if h.habit == once || !wait(ctx, every[h.habit]/2+time.Duration(jitter.Int64N(int64(every[h.habit])))) {
						return
					}
				}
			})
		}
		begin := time.Now()
		for restarts := 0; time.Since(begin) < time.Duration(*days)*24*time.Hour; {
			if time.Since(begin) > time.Duration(restarts)*24*time.Hour+12*time.Hour {
				restarts++
				start()
			}
			pass(time.Duration(w.rand.Int64N(int64(20 * time.Minute))))
			w.mishap(t, hosts)
			if t.Failed() {
				break
			}
		}
		cancel()
		running.Wait()
		k.Close()

		var logins, firsts, ended, planned, needless, unproven, wrongly, probes, most int
		for i, h := range hosts {
			logins, ended, planned, needless, probes = logins+h.logins, ended+h.ended, planned+h.planned, needless+h.needless, probes+h.probes
			wrongly, unproven = wrongly+h.mistaken, unproven+h.unproven
			if h.logins > 0 {
				firsts++
			}
			switch {
			case h.habit == never && h.logins+h.probes+h.refused > 0:
				t.Errorf("site %d: nobody uses it, and there are %d logins, %d probes", i, h.logins, h.probes)
			case h.habit == kept && h.probes < 30**days: // half of an idle limit of half an hour
				t.Errorf("site %d: it is to be kept alive, and there are %d logins, %d probes", i, h.logins, h.probes)
			case h.habit != kept && h.asked.After(h.wanted.Add(minUse+time.Minute)):
				t.Errorf("site %d: asked %v after its last use", i, h.asked.Sub(h.wanted))
			}
		}
		refused := 0
		for _, h := range hosts {
			refused += h.refused
		}
		for _, n := range w.second {
			most = max(most, n)
		}
		t.Logf("%d calls: %d latched, %d failed, %d flagged, %d with a session that died since its proof", calls.Load(), latched.Load(), failed.Load(), flagged.Load(), unknowable.Load())
		t.Logf("%d logins = %d first + %d after a death + %d planned (%d too early) + %d after one without a proof; %d probes; at most %d requests in a second, %d at an origin that was down", logins, firsts, ended, planned, wrongly, unproven, probes, most, w.most)
		if needless > 0 || logins != firsts+ended+planned+unproven {
			t.Errorf("%d logins for nothing", needless)
		}
		if wrongly*50 > logins {
			t.Errorf("%d of %d logins were planned too early", wrongly, logins)
		}
		if refused != 1 {
			t.Errorf("%d attempts with the refused password", refused)
		}
		if most > 150 {
			t.Errorf("%d requests in a second", most)
		}
		// Those under way when it goes down, and then one at the end of each back-off,
		// which are 2½ minutes in the mean and together at most half an hour.
		if w.most > 80 {
			t.Errorf("%d requests at an origin while it was down", w.most)
		}
		// Nobody can know that a session was ended by hand since its proof, nor of what
		// age the first ones die.
		if unknowable.Load()*200 > calls.Load() {
			t.Errorf("%d of %d sessions were dead", unknowable.Load(), calls.Load())
		}
		if log.canary.Load() {
			t.Error("a secret is in the log")
		}
	})
}

// mishap lets something go wrong, which rights itself after a while.
func (w *world) mishap(t *testing.T, hosts []*host) {
	long := time.Duration(w.rand.Int64N(int64(30 * time.Minute)))
	later := func(undo func()) { time.AfterFunc(long, undo) }
	n := w.rand.IntN(len(w.origins))
	stop := func() { w.set(func() { w.origins[n].down, w.origins[n].asked = true, 0 }) }
	start := func() {
		w.set(func() {
			w.origins[n].down, w.most = false, max(w.most, w.origins[n].asked)
		})
	}
	switch w.rand.IntN(8) {
	case 0, 1: // a server is away
		stop()
		later(start)
	case 2: // and comes back without its sessions
		stop()
		now := w.boot()
		for _, h := range hosts {
			if h.origin == n {
				h.mu.Lock()
				h.dead = max(now, 1)
				h.mu.Unlock()
			}
		}
		later(start)
	case 3: // an application is being updated
		h := hosts[w.rand.IntN(len(hosts))]
		h.mu.Lock()
		h.broken = true
		h.mu.Unlock()
		later(func() { h.mu.Lock(); h.broken = false; h.mu.Unlock() })
	case 4: // an administrator ends sessions
		now := w.boot()
		for range 10 {
			h := hosts[w.rand.IntN(len(hosts))]
			h.mu.Lock()
			h.dead = max(now, 1)
			h.mu.Unlock()
		}
	case 5:
		w.set(func() { w.noKDC = true })
		later(func() { w.set(func() { w.noKDC = false }) })
	case 6: // the lid is closed
		if w.rand.IntN(4) > 0 {
			return
		}
		w.set(func() { w.asleep += time.Duration(w.rand.Int64N(int64(2 * time.Hour))) })
	case 7: // the clock is set wrong, and right
		by := time.Duration(w.rand.Int64N(int64(2*365*24*time.Hour))) - 365*24*time.Hour
		w.set(func() { w.stepped += by })
		later(func() { w.set(func() { w.stepped -= by }) })
	}
}

// wait reports false if the context ends before.
func wait(ctx context.Context, d time.Duration) bool { return sleep(ctx, d) == nil }

// countingLog looks for secrets in what is logged, and keeps none of it.
type countingLog struct{ canary atomic.Bool }

func (l *countingLog) Write(b []byte) (int, error) {
	if strings.Contains(string(b), "CANARY") {
		l.canary.Store(true)
	}
	return len(b), nil
}

func (l *countingLog) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }
