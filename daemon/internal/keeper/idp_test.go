package keeper

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/web"
)

// internet connects exchanges with servers in memory, by http.
type internet struct {
	mu       sync.Mutex
	handlers map[string]http.HandlerFunc // by host
	down     map[string]bool
	server   *http.Server
	conns    chan net.Conn
	over     chan struct{}
}

func newInternet() *internet {
	n := &internet{handlers: map[string]http.HandlerFunc{}, down: map[string]bool{}, conns: make(chan net.Conn), over: make(chan struct{})}
	n.server = &http.Server{Handler: n}
	go n.server.Serve(n)
	return n
}

func (n *internet) close() { n.server.Close() }

func (n *internet) Accept() (net.Conn, error) {
	select {
	case c := <-n.conns:
		return c, nil
	case <-n.over:
		return nil, net.ErrClosed
	}
}
func (n *internet) Close() error   { close(n.over); return nil }
func (n *internet) Addr() net.Addr { return new(net.TCPAddr) }

func (n *internet) handle(host string, h http.HandlerFunc) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.handlers[host] = h
}

func (n *internet) url(host, path string) *url.URL {
	return &url.URL{Scheme: "http", Host: host, Path: path}
}

func (n *internet) dial(ctx context.Context, _, address string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	down := n.down[host]
	n.mu.Unlock()
	if down {
		return nil, errors.New("refused")
	}
	here, there := net.Pipe()
	select {
	case n.conns <- there:
		return here, nil
	case <-n.over:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (n *internet) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	n.mu.Lock()
	h := n.handlers[r.Host]
	n.mu.Unlock()
	if h == nil {
		http.NotFound(w, r)
		return
	}
	h(w, r)
}

const ssoHost = "sso.corp.example"

// domain is an SSO domain: an identity provider, and applications which send a
// browser without a session there, as Crowd's or a CAS server's clients do
// (apereo.github.io/cas: CAS Protocol, "Web flow diagram").
type domain struct {
	*fleet

	mu      sync.Mutex
	walks   int  // sessions that applications have made
	visits  int  // to the identity provider
	rotates bool // it gives its session a new cookie with each visit
	deaf    bool // applications do not take its word
	tickets int
}

// domainCookie is one that the identity provider sets for its whole domain.
const domainCookie = "CANARY-domain"

func startDomain(t *testing.T, members int, secret string) *domain {
	n := newInternet()
	t.Cleanup(n.close)
	d := new(domain)
	d.fleet = newFleet(members, func(i int, b *backend, s *Site) {
		b.url = n.url(fmt.Sprintf("app%d.corp.example", i), "/")
		s.IdP, s.IdPOrigins = "sso", []web.Origin{web.OriginOf(n.url(ssoHost, "/"))}
		n.handle(b.url.Host, func(w http.ResponseWriter, r *http.Request) { d.app(b, w, r) })
	})
	d.idp = &backend{f: d.fleet, site: &site{url: n.url(ssoHost, "/"), delay: 100 * time.Millisecond, extra: "sso=" + domainCookie + "; Domain=corp.example"}}
	if d.secret = secret; secret != "" {
		d.idp.directory = &directory{right: rightPassword}
	}
	n.handle(ssoHost, d.sso)
	d.net = n
	d.start(t)
	return d
}

// app is what an application answers.
func (d *domain) app(b *backend, w http.ResponseWriter, r *http.Request) {
	b.site.mu.Lock()
	defer b.site.mu.Unlock()
	d.mu.Lock()
	defer d.mu.Unlock()
	c, err := r.Cookie("session")
	switch {
	case err == nil && c.Value == b.current && b.current != "":
	case d.deaf: // it has a session for everybody
		http.SetCookie(w, &http.Cookie{Name: "session", Value: "anonymous"})
	case r.URL.Query().Get("ticket") != "":
		d.walks++
		b.current = fmt.Sprintf("CANARY-app-%d", d.walks)
		http.SetCookie(w, &http.Cookie{Name: "session", Value: b.current, Path: "/"})
		http.Redirect(w, r, "/", http.StatusFound)
	default:
		http.SetCookie(w, &http.Cookie{Name: "before", Value: "login"})
		http.Redirect(w, r, "http://"+ssoHost+"/auth?to="+r.Host, http.StatusFound)
	}
}

// sso is what the identity provider answers.
func (d *domain) sso(w http.ResponseWriter, r *http.Request) {
	d.idp.site.mu.Lock()
	defer d.idp.site.mu.Unlock()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.visits++
	// As a cookie parser would, but for the spaces in a value.
	if d.idp.current == "" || !strings.Contains(r.Header.Get("Cookie"), "session="+d.idp.current) {
		http.SetCookie(w, &http.Cookie{Name: "seen", Value: "yes"})
		fmt.Fprint(w, "who are you?")
		return
	}
	if d.rotates {
		d.idp.current = fmt.Sprintf("CANARY-idp-%d", d.visits)
		w.Header().Add("Set-Cookie", "session="+d.idp.current)
	}
	d.tickets++
	http.Redirect(w, r, fmt.Sprintf("http://%s/?ticket=%d", r.URL.Query().Get("to"), d.tickets), http.StatusFound)
}

// is checks how often the identity provider was logged in to so far, and how often
// members were entered.
func (d *domain) is(t *testing.T, logins, walks int) {
	t.Helper()
	synctest.Wait()
	l, _ := d.idp.since(d.began)
	d.mu.Lock()
	defer d.mu.Unlock()
	if l != logins || d.walks != walks {
		t.Errorf("%d logins at the identity provider, %d sessions of members; want %d, %d", l, d.walks, logins, walks)
	}
	for _, b := range d.all {
		if l, _ := b.since(d.began); l > 0 {
			t.Error("the driver of a member has logged in")
		}
	}
}

// members are the numbers of all.
func (d *domain) members() []int { return numbers(0, len(d.all)) }

func (d *domain) killMembers() {
	for _, b := range d.all {
		b.kill()
	}
}

// reported has all members' sessions looked at, because requests were refused.
func (d *domain) reported(t *testing.T) {
	t.Helper()
	var wg sync.WaitGroup
	for i, s := range d.List() {
		wg.Go(func() {
			if _, err := d.Refresh(t.Context(), d.configured[i].Name, s.Session.Generation, false); err != nil {
				t.Errorf("%s: %v", d.configured[i].Name, err)
			}
		})
	}
	wg.Wait()
}

// TestOneLoginForAllMembers: whatever dies, nobody logs in more than once, and
// what is the identity provider's stays there.
func TestOneLoginForAllMembers(t *testing.T) {
	const k = 50
	synctest.Test(t, func(t *testing.T) {
		d := startDomain(t, k, "")
		d.together(t, d.members()...)
		d.is(t, 1, k)

		theirs := []string{domainCookie, d.idp.current}
		for i := range k {
			s := d.serve(t, i)
			if len(s.Cookies(d.idp.url, d.Keeper.clock.Now())) > 0 {
				t.Errorf("s%d: cookies for the identity provider are served", i)
			}
			record, _, _ := d.sessions.Load(d.entries[d.configured[i].Name].key())
			for _, c := range theirs {
				if strings.Contains(fmt.Sprint(s.jar.Values()), c) || bytes.Contains(record, []byte(c)) {
					t.Errorf("s%d: the session has a cookie of the identity provider's", i)
				}
			}
			if h := web.CookieHeader(s.Cookies(d.all[i].url, d.Keeper.clock.Now())); !strings.Contains(h, "session="+d.all[i].current) {
				t.Errorf("s%d: %q", i, h)
			}
		}

		d.all[3].kill()
		d.reported(t)
		d.is(t, 1, k+1)

		d.idp.kill() // members do not notice
		d.reported(t)
		d.is(t, 1, k+1)

		d.killMembers() // now they do
		d.reported(t)
		d.is(t, 2, 2*k+1)

		d.start(t) // both are kept over a restart
		d.all[3].kill()
		d.together(t, d.members()...)
		d.reported(t)
		d.is(t, 2, 2*k+2)
	})
}

// TestIdPRefused: one attempt for all members; and a person at any of them mends it
// for all.
func TestIdPRefused(t *testing.T) {
	const k = 20
	for name, retry := range map[string]LoginOptions{"retry": {Retry: true}, "another password": {Retry: true, Password: []byte(rightPassword)}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := startDomain(t, k, wrongPassword)
				for range 3 {
					d.callers(t, 1, time.Minute, func(i int, _ Served, err error, _ time.Duration) {
						e := api.AsError(err)
						if e == nil || e.Code != api.Latched && e.Code != api.BadCredentials || !strings.HasSuffix(e.Remedy, "sessionctl login "+d.configured[i].Name+" --retry") ||
							!strings.Contains(e.Detail, "identity provider sso") {
							t.Errorf("s%d: %+v", i, e)
						}
					}, d.members()...)
					pass(time.Hour)
				}
				d.start(t)
				if _, err := d.ask(t, 0); api.CodeOf(err) != api.Latched {
					t.Errorf("after a restart: %v", err)
				}
				for i, s := range d.List() {
					if s.State != Latched {
						t.Errorf("s%d: state %d", i, s.State)
					}
				}
				if n := d.idp.directory.tried(); n != 1 {
					t.Errorf("%d attempts", n)
				}
				if retry.Password == nil {
					d.idp.directory.change(wrongPassword)
				}
				if _, err := d.Login(t.Context(), "s7", retry); err != nil {
					t.Fatal(err)
				}
				d.together(t, d.members()...)
				if n := d.idp.directory.tried(); n != 2 {
					t.Errorf("%d attempts", n)
				}
			})
		})
	}
}

// TestIdPOutOfReach: members that live are served, unflagged; others say what is out
// of reach, and are back with it.
func TestIdPOutOfReach(t *testing.T) {
	const k = 10
	synctest.Test(t, func(t *testing.T) {
		d := startDomain(t, k, "")
		d.together(t, d.members()...)
		away := func(is bool) {
			d.net.mu.Lock()
			d.net.down[ssoHost] = is
			d.net.mu.Unlock()
			d.out(ssoHost, is)
		}
		away(true)
		d.all[0].kill()
		d.idp.kill()
		since := d.now()
		d.callers(t, time.Hour, time.Minute, func(i int, s Served, err error, _ time.Duration) {
			switch {
			case i > 0 && (err != nil || s.Stale):
				t.Errorf("s%d: stale: %v, %v", i, s.Stale, err)
			case i == 0 && err != nil && api.CodeOf(err) != api.NetworkError:
				t.Errorf("s0: %v", err)
			}
		}, d.members()...)
		if _, err := d.ask(t, 0); api.CodeOf(err) != api.NetworkError {
			t.Errorf("s0: %v", err)
		}
		if logins, probes := d.idp.since(since); logins+probes > 60 {
			t.Errorf("the identity provider was asked %d times", logins+probes)
		}
		away(false)
		d.callers(t, 2*maxBackOff, time.Minute, func(int, Served, error, time.Duration) {}, d.members()...)
		d.together(t, d.members()...)
		d.is(t, 1+d.failedLogins(), k+1)
	})
}

// failedLogins are those at the identity provider while it was out of reach.
func (d *domain) failedLogins() int {
	all, _ := d.idp.since(d.began)
	good, _ := d.idp.tally()
	return all - good + max(0, good-1)
}

// TestRotatedIdPCookies: what the identity provider sets while its session is lent is
// its session from then on.
func TestRotatedIdPCookies(t *testing.T) {
	const k = 5
	synctest.Test(t, func(t *testing.T) {
		d := startDomain(t, k, "")
		d.rotates = true
		for i := range k {
			d.serve(t, i)
		}
		d.is(t, 1, k)
		d.start(t)
		d.killMembers()
		pass(time.Hour)
		for i := range k {
			d.serve(t, i)
		}
		d.is(t, 1, 2*k)
	})
}

// TestRotatedAtOnce: members that enter at once do not take each other's cookie away.
func TestRotatedAtOnce(t *testing.T) {
	const k = 50
	synctest.Test(t, func(t *testing.T) {
		d := startDomain(t, k, "")
		d.rotates = true
		d.together(t, d.members()...)
		d.is(t, 1, k)
	})
}

// TestMemberThatIsDeaf: it takes nobody's word, which is its own fault; the
// identity provider is not logged in to over and over.
func TestMemberThatIsDeaf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := startDomain(t, 2, "")
		d.serve(t, 1)
		d.deaf = true
		for range 60 {
			if _, err := d.ask(t, 0); api.CodeOf(err) != api.LoginOKButProbeFailed {
				t.Fatalf("%v", err)
			}
			pass(time.Minute)
		}
		d.is(t, 1, 1)
		if _, probes := d.all[0].tally(); probes > 2*40 {
			t.Errorf("%d probes in an hour", probes)
		}
		d.deaf = false
		pass(maxBackOff)
		d.serve(t, 0)
		d.serve(t, 1)
	})
}

// TestIdPStorm: whoever does what, in whatever order: everybody gets an answer.
func TestIdPStorm(t *testing.T) {
	const k = 10
	synctest.Test(t, func(t *testing.T) {
		d := startDomain(t, k, "")
		again := setUp(d.Keeper)
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		var wg sync.WaitGroup
		do := func(f func(ctx context.Context, site string)) {
			for range 3 {
				wg.Go(func() {
					for wait(ctx, rand.N(20*time.Second)) {
						c, cancel := context.WithTimeout(ctx, rand.N(time.Minute))
						f(c, d.configured[rand.N(k)].Name)
						cancel()
					}
				})
			}
		}
		for range 5 {
			do(func(ctx context.Context, site string) { d.Get(ctx, site, GetOptions{}) })
		}
		do(func(ctx context.Context, site string) { d.Refresh(ctx, site, "", rand.N(2) == 0) })
		do(func(ctx context.Context, site string) { d.Login(ctx, site, LoginOptions{Retry: rand.N(2) == 0}) })
		do(func(ctx context.Context, site string) { d.Delete(ctx, site, DeleteOptions{IdP: rand.N(2) == 0}) })
		do(func(ctx context.Context, site string) { d.Watch(ctx, site, func(Served) error { return nil }) })
		do(func(context.Context, string) { d.List(); d.IdPs() })
		do(func(context.Context, string) { d.all[rand.N(k)].kill(); d.idp.kill() })
		do(func(context.Context, string) { d.step(rand.N(48*time.Hour) - 24*time.Hour) })
		do(func(context.Context, string) { d.Reconfigure(again(fmt.Sprint(rand.N(3)))) })
		wg.Wait()
		d.setRight()
		d.Reconfigure(again("1"))
		pass(2 * maxBackOff)
		for i := range k {
			if _, err := d.Refresh(t.Context(), d.configured[i].Name, "", false); err != nil {
				t.Errorf("s%d: %v", i, err)
			}
			d.serve(t, i)
		}
	})
}

// setUp returns the configuration of a keeper, with any Setup.
func setUp(k *Keeper) func(setup string) (sites, idps []Site) {
	sites, idps := k.order, slices.Collect(maps.Values(k.idps))
	return func(setup string) (s, p []Site) {
		for _, e := range sites {
			x := e.site
			x.Setup = setup
			s = append(s, x)
		}
		for _, e := range idps {
			x := e.site
			x.Setup = setup
			p = append(p, x)
		}
		return s, p
	}
}

// TestLogoutAtIdP: of a member, only the session here ends, and it says so; at the
// identity provider, all end.
func TestLogoutAtIdP(t *testing.T) {
	const k = 5
	synctest.Test(t, func(t *testing.T) {
		d := startDomain(t, k, "")
		d.together(t, d.members()...)
		got, err := d.Delete(t.Context(), "s0", DeleteOptions{})
		if err != nil || !got.Had || got.Ended || got.IdP != "sso" {
			t.Errorf("%+v, %v", got, err)
		}
		for i, s := range d.List() {
			if (s.Session == nil) != (i == 0) {
				t.Errorf("s%d: %v", i, s.Session)
			}
		}
		if s := d.IdPs(); len(s) != 1 || s[0].State != Live || s[0].Site.Name != "sso" {
			t.Errorf("%+v", s)
		}
		d.serve(t, 0)
		d.is(t, 1, k+1)

		got, err = d.Delete(t.Context(), "s0", DeleteOptions{IdP: true})
		if err != nil || !got.Had || got.IdP != "" {
			t.Errorf("%+v, %v", got, err)
		}
		for _, s := range append(d.List(), d.IdPs()...) {
			if s.Session != nil || s.State != None {
				t.Errorf("%s: state %d", s.Site.Name, s.State)
			}
		}
		if n := len(d.sessions.data); n != 0 {
			t.Errorf("%d sessions are stored", n)
		}
		d.together(t, d.members()...)
		d.is(t, 2, 2*k+1)
		// It is never handed out.
		if _, err := d.Get(t.Context(), "sso", GetOptions{}); api.CodeOf(err) != api.UnknownSite {
			t.Errorf("%v", err)
		}
	})
}

// TestSameNames: an identity provider may be called as a site is, and users of one
// site as each other; what is stored of one is not another's.
func TestSameNames(t *testing.T) {
	for name, first := range map[string]func(*domain){
		"idp":          func(d *domain) { d.configured[0].Name = "sso" },
		"users":        func(d *domain) { d.configured[0].Name = "app" },
		"both of them": func(d *domain) { d.configured[0].Name, d.configured[1].Name = "sso", "sso" },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := startDomain(t, 2, "")
				for i := range d.configured {
					d.configured[i].ID, d.configured[i].Name = d.configured[i].Name, "app"
				}
				first(d)
				d.start(t)
				get := func(i int) string {
					s, err := d.Get(t.Context(), d.configured[i].ID, GetOptions{})
					if err != nil {
						t.Fatal(err)
					}
					return s.Generation
				}
				before := []string{get(0), get(1)}
				d.start(t)
				if get(0) != before[0] || get(1) != before[1] {
					t.Error("a session is gone")
				}
				d.is(t, 1, 2)
				for range 2 {
					pass(time.Hour)
					get(0)
					get(1)
				}
				d.is(t, 1, 2)
			})
		})
	}
}
