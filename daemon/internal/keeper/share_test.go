package keeper

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/login"
	"github.com/sessionctl/sessionctl/daemon/internal/web"
)

// crowd is an identity provider whose token its sites take for a login, as those of
// Crowd do: each looks at the token with every request, and begins a session of its
// own beside it.
type crowd struct {
	keeper *Keeper
	url    *url.URL
	apps   []*crowdApp
	reload func(setup string)

	mu             sync.Mutex
	token          string // that is good; "": none
	logins, probes int
	ready          error // what keeps its credential from being used
}

type crowdApp struct {
	crowd *crowd
	url   *url.URL
	// Under crowd.mu:
	session string // its own
	begun   int    // sessions
	probes  int
	refuses bool   // tokens, of whomever
	plants  string // a token that it sets with each proof
	kills   bool   // tokens that it gets
	slow    bool   // a second goes by before its answer arrives
}

func (c *crowd) set(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f()
}

func (c *crowd) Takes() []login.Means { return []login.Means{login.Ticket} }

func (c *crowd) Login(ctx context.Context, x *web.Exchange, _ login.Password) error {
	if err := sleep(ctx, 100*time.Millisecond); err != nil {
		return err
	}
	c.set(func() {
		c.logins++
		c.token = fmt.Sprintf("CANARY-token%d", c.logins)
		x.Jar().Set(c.url, []string{"token=" + c.token + "; Domain=corp.example", "other=CANARY-own"}, x.Now())
	})
	return nil
}

// named returns whose session a header is.
func (c *crowd) named(header string) (login.Identity, error) {
	if c.token == "" || !strings.Contains(header, "token="+c.token) {
		return login.Identity{}, &api.Error{Code: api.Expired, Detail: "401"}
	}
	return login.Identity{Name: "build"}, nil
}

func (c *crowd) Probe(_ context.Context, x *web.Exchange) (login.Identity, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.probes++
	return c.named(x.Jar().Header(c.url, x.Now()))
}

func (c *crowd) Shared(j *web.Jar) *web.Jar { return j.Named("token") }

func (c *crowd) Adopt(j *web.Jar, base *url.URL, now time.Time) *web.Jar {
	values := j.Named("token").Values()
	if len(values) == 0 {
		return nil
	}
	made := new(web.Jar)
	made.Set(base, []string{"token=" + values[0] + "; Domain=corp.example"}, now)
	return made
}

func (c *crowd) Refused() string { return "look at the domain" }

func (a *crowdApp) Takes() []login.Means { return nil }

func (a *crowdApp) Login(context.Context, *web.Exchange, login.Password) error {
	panic("a member has nothing to log in with")
}

func (a *crowdApp) Probe(ctx context.Context, x *web.Exchange) (login.Identity, error) {
	id, err := a.answer(x)
	a.crowd.mu.Lock()
	slow := a.slow
	a.crowd.mu.Unlock()
	if slow {
		sleep(ctx, time.Second)
	}
	return id, err
}

func (a *crowdApp) answer(x *web.Exchange) (login.Identity, error) {
	c := a.crowd
	c.mu.Lock()
	defer c.mu.Unlock()
	a.probes++
	header := x.Jar().Header(a.url, x.Now())
	id, err := c.named(header)
	if a.refuses {
		id, err = login.Identity{}, &api.Error{Code: api.Expired, Detail: "401"}
	}
	if a.plants != "" {
		x.Jar().Set(a.url, []string{"token=" + a.plants + "; Domain=corp.example"}, x.Now())
	}
	if a.kills {
		c.token = ""
		return login.Identity{}, &api.Error{Code: api.Expired, Detail: "401"}
	}
	if err == nil && (a.session == "" || !strings.Contains(header, "app="+a.session)) {
		a.begun++
		a.session = fmt.Sprintf("CANARY-app%d", a.begun)
		x.Jar().Set(a.url, []string{"app=" + a.session}, x.Now())
	}
	return id, err
}

func startCrowd(t *testing.T, hosts ...string) *crowd {
	c := &crowd{url: &url.URL{Scheme: "https", Host: "crowd.corp.example", Path: "/"}}
	site := func(name string, u *url.URL, d login.Driver) Site {
		s := (&site{url: u}).named(name)
		s.Driver = d
		return s
	}
	var sites []Site // as they are set up at first
	for i, host := range hosts {
		a := &crowdApp{crowd: c, url: &url.URL{Scheme: "https", Host: host, Path: "/"}}
		s := site(fmt.Sprintf("app%d", i), a.url, a)
		s.IdP = "crowd"
		c.apps, sites = append(c.apps, a), append(sites, s)
	}
	provider := site("crowd", c.url, c)
	provider.Ready = func() error {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.ready
	}
	c.reload = func(setup string) {
		anew := slices.Clone(sites)
		for i := range anew {
			anew[i].Setup = setup
		}
		c.keeper.Reconfigure(anew, []Site{provider})
	}
	var log countingLog
	c.keeper = New(Options{Sites: sites, IdPs: []Site{provider}, Records: newRecords(), Latches: NewLatches(newRecords(), mac), Log: log.logger()})
	t.Cleanup(func() {
		c.keeper.Close()
		if log.canary.Load() {
			t.Error("a secret is in the log")
		}
	})
	return c
}

// is checks how often was logged in at the provider, and how many sessions the sites
// have begun in all.
func (c *crowd) is(t *testing.T, logins, begun int) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for _, a := range c.apps {
		n += a.begun
	}
	if c.logins != logins || n != begun {
		t.Errorf("%d logins, %d sessions of sites; want %d, %d", c.logins, n, logins, begun)
	}
}

// all has 100 callers do something at once, at one site after the other.
func (c *crowd) all(t *testing.T, do func(site string) (Served, error)) {
	t.Helper()
	var running sync.WaitGroup
	for i := range 100 {
		site, a := fmt.Sprintf("app%d", i%len(c.apps)), c.apps[i%len(c.apps)]
		running.Go(func() {
			s, err := do(site)
			if err != nil {
				t.Errorf("%s: %v", site, err)
				return
			}
			if h := web.CookieHeader(s.Cookies(a.url, time.Now())); !strings.Contains(h, "token=CANARY-") || !strings.Contains(h, "app=CANARY-") || strings.Contains(h, "other") {
				t.Errorf("%s is served %q", site, h)
			}
		})
	}
	running.Wait()
}

func (c *crowd) get(t *testing.T) {
	t.Helper()
	c.all(t, func(site string) (Served, error) { return c.keeper.Get(t.Context(), site, GetOptions{}) })
}

var crowdHosts = []string{"jira.corp.example", "wiki.corp.example", "crowd.corp.example"}

// TestSharedToken: one login for three sites, one of them on the host where it is
// made, and one more when the token has died.
func TestSharedToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := startCrowd(t, crowdHosts...)
		c.get(t)
		c.is(t, 1, 3)
		for _, a := range c.apps { // the request that begins a session, and its proof
			if a.probes != 2 {
				t.Errorf("%v was asked %d times", a.url, a.probes)
			}
		}
		if c.probes != 1 {
			t.Errorf("%d proofs of the token", c.probes)
		}

		c.set(func() { c.token = "" })
		c.all(t, func(site string) (Served, error) { return c.keeper.Refresh(t.Context(), site, "", false) })
		c.is(t, 2, 6)
		for _, a := range c.apps { // and the one that found its session dead
			if a.probes != 5 {
				t.Errorf("%v was asked %d times", a.url, a.probes)
			}
		}
		pass(time.Second)
		c.get(t)
		c.is(t, 2, 6)

		// What a site alone forgets costs no login, nor does its own proof.
		c.set(func() { c.apps[0].session = "" })
		c.all(t, func(site string) (Served, error) { return c.keeper.Refresh(t.Context(), site, "", false) })
		c.is(t, 2, 7)
	})
}

// TestTokenHealsForAll: who finds the token dead has it made anew for all sites, also
// for those that were proven a moment ago.
func TestTokenHealsForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := startCrowd(t, crowdHosts...)
		c.get(t)
		c.set(func() { c.token = "" })
		if _, err := c.keeper.Refresh(t.Context(), "app1", "", false); err != nil {
			t.Fatal(err)
		}
		for i, a := range c.apps {
			s, err := c.keeper.Get(t.Context(), fmt.Sprintf("app%d", i), GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			c.mu.Lock()
			if h := web.CookieHeader(s.Cookies(a.url, time.Now())); !strings.Contains(h, "token="+c.token) {
				t.Errorf("%v is served a token that is known to be dead", a.url)
			}
			c.mu.Unlock()
		}
		c.is(t, 2, 6)

		// Also if somebody reloads in between.
		c.set(func() { c.token = "" })
		if _, err := c.keeper.Refresh(t.Context(), "app1", "", false); err != nil {
			t.Fatal(err)
		}
		c.reload("another")
		synctest.Wait()
		for i, a := range c.apps {
			s, err := c.keeper.Get(t.Context(), fmt.Sprintf("app%d", i), GetOptions{})
			if h := web.CookieHeader(s.Cookies(a.url, time.Now())); err != nil || !strings.Contains(h, "token="+c.token) {
				t.Errorf("%v, %q", err, h)
			}
		}
		c.is(t, 3, 9)
	})
}

// TestTokenDiesMeanwhile: a proof that was under way when the token died, and was made
// anew for another site, does not count.
func TestTokenDiesMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := startCrowd(t, crowdHosts...)
		c.get(t)
		c.set(func() { c.apps[0].slow = true })
		done := make(chan struct{})
		go func() {
			defer close(done)
			c.keeper.Refresh(t.Context(), "app0", "", false) // is answered before the token dies, and late
		}()
		synctest.Wait()
		c.set(func() { c.token = "" })
		if _, err := c.keeper.Refresh(t.Context(), "app1", "", false); err != nil {
			t.Fatal(err)
		}
		<-done
		c.set(func() { c.apps[0].slow = false })
		s, err := c.keeper.Get(t.Context(), "app0", GetOptions{})
		if h := web.CookieHeader(s.Cookies(c.apps[0].url, time.Now())); err != nil || !strings.Contains(h, "token="+c.token) {
			t.Errorf("%v, %q", err, h)
		}
	})
}

// TestDeathFoundLate: who finds out late that its token has died, and that there is
// another one, does not doubt that.
func TestDeathFoundLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := startCrowd(t, crowdHosts...)
		c.get(t)
		c.set(func() { c.token, c.apps[0].slow = "", true })
		done := make(chan struct{})
		go func() {
			defer close(done)
			if _, err := c.keeper.Refresh(t.Context(), "app0", "", false); err != nil {
				t.Error(err)
			}
		}()
		synctest.Wait()
		if _, err := c.keeper.Refresh(t.Context(), "app1", "", false); err != nil {
			t.Fatal(err)
		}
		<-done
		c.get(t)
		c.is(t, 2, 6)
		if c.probes != 3 { // of each login, and the one that found the token dead
			t.Errorf("%d proofs of the token", c.probes)
		}
	})
}

// TestPlantedToken: a site can neither replace nor take away what its provider shares.
func TestPlantedToken(t *testing.T) {
	for _, planted := range []string{"CANARY-planted", "; Max-Age=0"} {
		synctest.Test(t, func(t *testing.T) {
			c := startCrowd(t, crowdHosts...)
			c.apps[0].plants = planted
			for range 3 {
				c.get(t)
				for i, a := range c.apps {
					s, err := c.keeper.Refresh(t.Context(), fmt.Sprintf("app%d", i), "", false)
					if h := web.CookieHeader(s.Cookies(a.url, time.Now())); err != nil || !strings.Contains(h, "token="+c.token) || strings.Contains(h, "planted") {
						t.Errorf("%v, %q", err, h)
					}
				}
				pass(time.Hour)
			}
			c.is(t, 1, 3)
		})
	}
}

// TestSiteThatKillsTokens: each costs a login, so there are few.
func TestSiteThatKillsTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := startCrowd(t, crowdHosts...)
		c.get(t)
		c.set(func() { c.apps[0].kills = true })
		for range 60 { // a minute
			c.keeper.Refresh(t.Context(), "app0", "", true)
			pass(time.Second)
		}
		if c.logins > 1+2*maxDoubts {
			t.Errorf("%d logins in a minute", c.logins)
		}
		// The others go on.
		c.set(func() { c.apps[0].kills = false })
		c.get(t)
	})
}

// TestTokenThatIsNotTaken: the provider says that the token is good, so it is not
// logged in anew, and the site's answer says what to look at.
func TestTokenThatIsNotTaken(t *testing.T) {
	for name, host := range map[string]string{"refused": "jira.corp.example", "of another domain": "jira.example"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := startCrowd(t, host)
				c.apps[0].refuses = true
				for range 3 {
					_, err := c.keeper.Get(t.Context(), "app0", GetOptions{})
					if e := api.AsError(err); e.Code != api.LoginOKButProbeFailed || e.Remedy != c.Refused() {
						t.Errorf("%v, remedy %q", err, e.Remedy)
					}
					pass(time.Minute)
				}
				c.is(t, 1, 0)
			})
		})
	}
}

// TestTokenOfABrowser: a token that a person brings for one site is the provider's,
// and good for all.
func TestTokenOfABrowser(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := startCrowd(t, crowdHosts...)
		c.set(func() { c.token, c.ready = "CANARY-browser", &api.Error{Code: api.NoSecret, Detail: "no password"} })
		brought, err := web.Adopt(c.apps[0].url, []byte("token=CANARY-browser; app=CANARY-theirs"), time.Now())
		if err != nil {
			t.Fatal(err)
		}
		s, err := c.keeper.Login(t.Context(), "app0", LoginOptions{Adopt: brought})
		if h := web.CookieHeader(s.Cookies(c.apps[0].url, time.Now())); err != nil || !strings.Contains(h, "token=CANARY-browser") || strings.Contains(h, "theirs") {
			t.Errorf("%v, %q", err, h)
		}
		c.get(t)
		c.is(t, 0, 3)

		// One that is no login changes nothing.
		brought, _ = web.Adopt(c.apps[0].url, []byte("token=CANARY-wrong"), time.Now())
		if _, err := c.keeper.Login(t.Context(), "app1", LoginOptions{Adopt: brought}); api.CodeOf(err) != api.Expired || !strings.Contains(api.AsError(err).Remedy, c.Refused()) {
			t.Errorf("%v, remedy %q", err, api.AsError(err).Remedy)
		}
		c.get(t)
		c.is(t, 0, 3)

		// Without a token among them they are the site's own.
		brought, _ = web.Adopt(c.apps[0].url, []byte("app=CANARY-wrong"), time.Now())
		if _, err := c.keeper.Login(t.Context(), "app1", LoginOptions{Adopt: brought}); api.CodeOf(err) != api.Expired {
			t.Error(err)
		}
	})
}
