package keeper

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/login"
	"github.com/sessionctl/sessionctl/daemon/internal/web"
)

// domainWide has the identity provider's session cookie sent to its whole domain.
func (d *domain) domainWide() {
	d.idp.site.attrs = func() string { return "; Domain=corp.example; Path=/" }
}

// hostile has the server of a member do something else: begin when a browser comes
// without a ticket, end when it has one, beside setting the member's own session.
func (d *domain) hostile(i int, begin, end func(w http.ResponseWriter, r *http.Request)) {
	b := d.all[i]
	d.net.handle(b.url.Host, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("ticket") != "" {
			b.site.set(func() { b.current = fmt.Sprintf("CANARY-hostile-%d", time.Now().UnixNano()) })
			w.Header().Add("Set-Cookie", "session="+b.current+"; Path=/")
			end(w, r)
			return
		}
		begin(w, r)
	})
}

// toSSO sends a browser to the identity provider, as all do.
func toSSO(w http.ResponseWriter, r *http.Request) {
	http.Redirect(w, r, "http://"+ssoHost+"/auth?to="+r.Host, http.StatusFound)
}

func nothingMore(http.ResponseWriter, *http.Request) {}

// provider is the identity provider's session as the agent has it.
func (d *domain) provider() *Session {
	p := d.Keeper.idps["sso"]
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.session
}

// keepsOut checks that a value is in no session that is served or stored, but for
// those of the identity provider if it is its own.
func (d *domain) keepsOut(t *testing.T, value string, own bool) {
	t.Helper()
	synctest.Wait()
	if s := d.provider(); !own && s != nil && slices.ContainsFunc(s.jar.Values(), func(v string) bool { return strings.Contains(v, value) }) {
		t.Errorf("%q is in the identity provider's session", value)
	}
	for _, s := range d.List() {
		if s.Session != nil && slices.ContainsFunc(s.Session.jar.Values(), func(v string) bool { return strings.Contains(v, value) }) {
			t.Errorf("%q is in the session of %s", value, s.Site.Name)
		}
	}
	key := d.Keeper.idps["sso"].key()
	d.sessions.mu.Lock()
	defer d.sessions.mu.Unlock()
	for k, record := range d.sessions.data {
		s, err := decodeSession(record, "f1", d.clock, siteURL)
		if err != nil {
			t.Error(err)
		} else if (k != key || !own) && slices.ContainsFunc(s.jar.Values(), func(v string) bool { return strings.Contains(v, value) }) {
			t.Errorf("%q is stored as a part of %q", value, k)
		}
	}
	if bytes.Contains(fmt.Append(nil, d.List()), []byte(value)) {
		t.Errorf("%q is in a summary", value)
	}
}

// manySessions is an identity provider that knows several sessions, takes the first
// of those that it is shown, and sets it anew. Its tickets say whose it is. It is to be
// shown none but the agent's.
func (d *domain) manySessions(t *testing.T, users map[string]string) {
	d.net.handle(ssoHost, func(w http.ResponseWriter, r *http.Request) {
		d.idp.site.mu.Lock()
		defer d.idp.site.mu.Unlock()
		for c := range strings.SplitSeq(r.Header.Get("Cookie"), "; ") {
			v, _ := strings.CutPrefix(c, "session=")
			who := users[v]
			if who != "" {
				t.Errorf("the identity provider is shown a session of %s's", who)
			}
			if v == d.idp.current {
				who = d.idp.user
			}
			if who != "" {
				w.Header().Add("Set-Cookie", "session="+v+"; Path=/")
				http.Redirect(w, r, fmt.Sprintf("http://%s/?ticket=%s", r.URL.Query().Get("to"), who), http.StatusFound)
				return
			}
		}
		fmt.Fprint(w, "who are you?")
	})
}

// ticketed is a member whose session is whose the ticket is.
func (d *domain) ticketed(i int) {
	b := d.all[i]
	d.net.handle(b.url.Host, func(w http.ResponseWriter, r *http.Request) {
		b.site.mu.Lock()
		defer b.site.mu.Unlock()
		who := r.URL.Query().Get("ticket")
		if who == "" {
			toSSO(w, r)
			return
		}
		b.current, b.user = "CANARY-of-"+who+"-"+fmt.Sprint(time.Now().UnixNano()), who
		http.SetCookie(w, &http.Cookie{Name: "session", Value: b.current, Path: "/"})
	})
}

// nameless is a driver whose site does not say whose a session is.
type nameless struct{ *backend }

func (d nameless) Probe(ctx context.Context, x *web.Exchange) (login.Identity, error) {
	_, err := d.backend.Probe(ctx, x)
	return login.Identity{Unproven: true}, err
}

// TestFixedSession: a member sets a cookie that would stand before the identity
// provider's, for somebody else's session there, and then sends the agent to it.
// Nobody becomes that other user.
func TestFixedSession(t *testing.T) {
	for _, unproven := range []bool{false, true} {
		t.Run(fmt.Sprint("unproven ", unproven), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := startDomain(t, 2, "")
				if unproven {
					for i := range d.configured {
						d.configured[i].Driver, d.configured[i].Expect = nameless{d.all[i]}, login.Expectation{Unproven: true}
					}
					d.start(t)
				}
				d.manySessions(t, map[string]string{"CANARY-EVIL": "mallory"})
				d.hostile(1, func(w http.ResponseWriter, r *http.Request) {
					w.Header().Add("Set-Cookie", "session=CANARY-EVIL; Domain=corp.example; Path=/auth")
					toSSO(w, r)
				}, nothingMore)
				d.ticketed(0)
				for range 10 {
					d.serve(t, 1)
					d.serve(t, 0)
					if who := d.all[0].user; who != "build" {
						t.Fatalf("the session is %s's", who)
					}
					if s := d.provider(); slices.Contains(s.jar.Values(), "CANARY-EVIL") {
						t.Fatal("the identity provider's session is somebody else's")
					}
					d.killMembers()
					pass(6 * time.Minute)
				}
				if logins, _ := d.idp.since(d.began); logins != 1 {
					t.Errorf("%d logins at the identity provider", logins)
				}
				d.serve(t, 0)
				if record, _, _ := d.sessions.Load(d.Keeper.idps["sso"].key()); bytes.Contains(record, []byte("EVIL")) {
					t.Error("it is stored as the identity provider's")
				}
			})
		})
	}
}

// TestMemberTakesIdPCookieAway: a member deletes or overwrites the identity provider's
// cookie, which is its domain's. The provider's session stays what it was.
func TestMemberTakesIdPCookieAway(t *testing.T) {
	for name, line := range map[string]string{
		"deletes":    "session=; Domain=corp.example; Path=/; Max-Age=0",
		"overwrites": "session=CANARY-EVIL; Domain=corp.example; Path=/",
		"shadows":    "session=CANARY-EVIL; Domain=corp.example; Path=/auth",
		"floods":     "",
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := startDomain(t, 2, "")
				d.domainWide()
				d.hostile(1, toSSO, func(w http.ResponseWriter, r *http.Request) {
					if line != "" {
						w.Header().Add("Set-Cookie", line)
						return
					}
					for i := range 300 {
						w.Header().Add("Set-Cookie", fmt.Sprintf("n%d=1; Domain=corp.example; Path=/", i))
					}
				})
				d.serve(t, 1)
				before := d.provider()
				for range 20 {
					if _, err := d.Refresh(t.Context(), "s1", "", true); err != nil {
						t.Fatal(err)
					}
					d.all[0].kill()
					if s := d.List()[0].Session; s != nil {
						if _, err := d.Refresh(t.Context(), "s0", s.Generation, false); err != nil {
							t.Fatal(err)
						}
					}
					d.serve(t, 0)
					pass(time.Minute)
				}
				if logins, _ := d.idp.since(d.began); logins != 1 {
					t.Errorf("%d logins at the identity provider", logins)
				}
				if s := d.provider(); s.Generation != before.Generation || !s.jar.Equal(before.jar) {
					t.Errorf("the identity provider's session has become another one")
				}
			})
		})
	}
}

// TestMemberEchoesIdPCookie: a member sends the identity provider's cookie, which it
// was shown because of its domain, back as its own. It is served to nobody.
func TestMemberEchoesIdPCookie(t *testing.T) {
	for name, echo := range map[string]func(value string) string{
		"the same for the domain":      func(v string) string { return "session=" + v + "; Domain=corp.example; Path=/" },
		"for itself":                   func(v string) string { return "session=" + v + "; Path=/back" },
		"under another name":           func(v string) string { return "copy=" + v + "; Path=/" },
		"another value for the domain": func(string) string { return "session=CANARY-EVIL; Domain=corp.example; Path=/back" },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := startDomain(t, 1, "")
				d.domainWide()
				shown := false
				d.hostile(0, toSSO, func(w http.ResponseWriter, r *http.Request) {
					for _, c := range r.Cookies() {
						if c.Value == d.idp.current {
							shown = true
							w.Header().Add("Set-Cookie", echo(c.Value))
						}
					}
				})
				s := d.serve(t, 0)
				if !shown {
					t.Fatal("the member was not shown the cookie")
				}
				if h := web.CookieHeader(s.Cookies(d.all[0].url, d.Keeper.clock.Now())); h != "session="+d.all[0].current {
					t.Errorf("served %q", h)
				}
				d.keepsOut(t, d.idp.current, true)
				d.keepsOut(t, "EVIL", false)
			})
		})
	}
}

// TestMemberChoosesWhatIsAsked: a member sends the agent to a page of the identity
// provider that logs out, or logs somebody else in. The others are served as before,
// as the user of before, and the provider is not logged in to all the time.
func TestMemberChoosesWhatIsAsked(t *testing.T) {
	for name, c := range map[string]struct {
		at     func(d *domain, w http.ResponseWriter)
		logins int // in an hour, at most
	}{
		"logout": {func(d *domain, w http.ResponseWriter) { d.idp.current = "" }, 90},
		"clean logout": {func(d *domain, w http.ResponseWriter) {
			d.idp.current = ""
			w.Header().Add("Set-Cookie", "session=; Path=/; Max-Age=0")
		}, 90},
		"switch": {func(_ *domain, w http.ResponseWriter) {
			w.Header().Add("Set-Cookie", "session=CANARY-EVIL; Path=/")
		}, 1},
		"takes all away": {func(_ *domain, w http.ResponseWriter) { w.Header().Add("Set-Cookie", "session=; Path=/; Max-Age=0") }, 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := startDomain(t, 2, "")
				honest := d.sso
				d.net.handle(ssoHost, func(w http.ResponseWriter, r *http.Request) {
					if r.URL.Path != "/evil" {
						honest(w, r)
						return
					}
					d.idp.site.mu.Lock()
					defer d.idp.site.mu.Unlock()
					c.at(d, w)
				})
				d.net.handle(d.all[1].url.Host, func(w http.ResponseWriter, r *http.Request) {
					http.Redirect(w, r, "http://"+ssoHost+"/evil", http.StatusFound)
				})
				good := d.serve(t, 0)
				since := d.now().Add(1)
				for range 360 {
					if s, err := d.ask(t, 1); err == nil {
						t.Fatalf("the member has a session: %v", s.Session)
					}
					if s := d.serve(t, 0); s.Generation != good.Generation {
						t.Fatal("another session of the other member")
					}
					pass(10 * time.Second)
				}
				logins, probes := d.idp.since(since)
				if logins+1 > c.logins {
					t.Errorf("%d logins at the identity provider in an hour", logins)
				}
				if probes > 300 {
					t.Errorf("%d probes", probes)
				}
				d.keepsOut(t, "EVIL", false)
				d.all[0].kill() // and it still comes in
				d.reportedDead(t, 0)
				if who := d.all[0].user; who != "build" {
					t.Errorf("the session is %s's", who)
				}
			})
		})
	}
}

// reportedDead has a site's session looked at because somebody's request was refused,
// and checks that there is another one then.
func (f *fleet) reportedDead(t *testing.T, i int) Served {
	t.Helper()
	old := f.List()[i].Session.Generation
	s, err := f.Refresh(t.Context(), f.configured[i].Name, old, false)
	if err != nil || s.Generation == old {
		t.Fatalf("%s: the same session: %v, %v", f.configured[i].Name, err == nil, err)
	}
	return s
}

// TestRotatedIdPCookieThatIsNoLogin: what the identity provider sets in a visit is
// its session only if a proof says so.
func TestRotatedIdPCookieThatIsNoLogin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := startDomain(t, 3, "")
		d.serve(t, 0)
		before := d.provider()
		honest := d.sso
		good := false
		d.net.handle(ssoHost, func(w http.ResponseWriter, r *http.Request) {
			if !good { // a login form's cookie in the place of the session
				w.Header().Add("Set-Cookie", "session=CANARY-form")
			}
			honest(w, r)
		})
		d.serve(t, 1)
		if s := d.provider(); !s.jar.Equal(before.jar) || s.Generation != before.Generation {
			t.Error("an unproven cookie is the session")
		}
		good, d.rotates = true, true
		d.serve(t, 2)
		if s := d.provider(); s.jar.Equal(before.jar) || s.Generation != before.Generation || !s.ProveTime.After(before.ProveTime) {
			t.Error("a proven one is not")
		}
		d.is(t, 1, 3)
	})
}

// TestIdPThatBeginsToRotate: members enter at once as long as the identity provider's
// cookies stay as they are, and one by one from the first time on that they do not.
func TestIdPThatBeginsToRotate(t *testing.T) {
	const k = 10
	synctest.Test(t, func(t *testing.T) {
		d := startDomain(t, k, "")
		d.together(t, d.members()...)
		d.is(t, 1, k)
		d.mu.Lock()
		d.rotates = true
		d.mu.Unlock()
		var logins []int
		for range 5 {
			d.killMembers()
			d.reported(t)
			n, _ := d.idp.since(d.began)
			logins = append(logins, n)
			pass(10 * time.Minute)
		}
		if logins[0] > 2 || logins[len(logins)-1] != logins[0] {
			t.Errorf("logins at the identity provider so far: %d", logins)
		}
	})
}

// TestHungMember: one that does not answer keeps the identity provider's cookies from
// the others for visitAlone, and no longer.
func TestHungMember(t *testing.T) {
	const k = 6
	synctest.Test(t, func(t *testing.T) {
		d := startDomain(t, k, "")
		d.rotates = true
		d.net.handle(d.all[0].url.Host, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
		for range 3 {
			began := time.Now()
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			go func() {
				defer cancel()
				d.Get(ctx, "s0", GetOptions{}) // and it goes on without him
			}()
			pass(time.Second / 2)
			d.together(t, numbers(1, k)...)
			if took := time.Since(began); took > visitAlone+4*time.Second {
				t.Errorf("the others have waited %v", took)
			}
			for i := 1; i < k; i++ {
				d.all[i].kill()
			}
			pass(10 * time.Minute)
		}
		if logins, _ := d.idp.since(d.began); logins != 1 {
			t.Errorf("%d logins at the identity provider", logins)
		}
	})
}

// TestSilentIdP: who has time left is told that the identity provider does not
// answer, not that his own time is over.
func TestSilentIdP(t *testing.T) {
	const k = 12 // more than have the provider's cookies in turn until the first gives up
	synctest.Test(t, func(t *testing.T) {
		d := startDomain(t, k, "")
		d.idp.site.set(func() { d.idp.delay = 5 * time.Minute })
		var wg sync.WaitGroup
		for i := range k {
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
				defer cancel()
				began := time.Now()
				_, err := d.Get(ctx, d.configured[i].Name, GetOptions{})
				e := api.AsError(err)
				if api.CodeOf(err) != api.Timeout || !strings.Contains(e.Detail, "identity provider sso") || strings.Contains(e.Detail, "caller") {
					t.Errorf("s%d: %+v", i, e)
				}
				if took := time.Since(began); took > loginTimeout+time.Second {
					t.Errorf("s%d: after %v", i, took)
				}
			})
		}
		wg.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		pass(maxBackOff)
		if _, err := d.Get(ctx, "s0", GetOptions{}); api.CodeOf(err) != api.Deadline { // his time is over
			t.Errorf("%v", err)
		}
	})
}

// TestLoginAtRefusingIdP: a person who logs in at a member reads what to do at that
// member.
func TestLoginAtRefusingIdP(t *testing.T) {
	for name, c := range map[string]struct {
		o    LoginOptions
		code api.Code
		says []string
	}{
		"retry":            {LoginOptions{Retry: true}, api.BadCredentials, []string{"sessionctl login s1 --retry", "sessionctl login s1 --password-stdin"}},
		"password":         {LoginOptions{Password: []byte("CANARY-password-worse")}, api.BadCredentials, []string{"sessionctl login s1 --password-stdin --retry"}},
		"password latched": {LoginOptions{Password: []byte(wrongPassword)}, api.Latched, []string{"sessionctl login s1 --password-stdin --retry"}},
		"neither":          {LoginOptions{}, api.Latched, []string{"sessionctl login s1 --retry", "sessionctl login s1 --password-stdin"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := startDomain(t, 2, wrongPassword)
				d.ask(t, 0)
				pass(time.Minute)
				_, err := d.Login(t.Context(), "s1", c.o)
				e := shown(t, err)
				if api.CodeOf(err) != c.code || !strings.Contains(e.Detail, "identity provider sso") {
					t.Fatalf("%+v", e)
				}
				for _, s := range c.says {
					if !strings.Contains(e.Remedy, s) {
						t.Errorf("the remedy is %q, without %q", e.Remedy, s)
					}
				}
				if strings.Contains(e.Remedy, "login sso") {
					t.Errorf("the remedy %q names the identity provider, which nobody can log in to", e.Remedy)
				}
			})
		})
	}
}

// TestDeleteNamesALivingIdP: a session that does not go on is not named.
func TestDeleteNamesALivingIdP(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := startDomain(t, 2, "")
		d.idp.site.life, d.idp.site.extra = time.Hour, ""
		if got, err := d.Delete(t.Context(), "s0", DeleteOptions{}); err != nil || got.Had || got.IdP != "" {
			t.Errorf("before any login: %+v, %v", got, err)
		}
		d.serve(t, 0)
		if got, err := d.Delete(t.Context(), "s0", DeleteOptions{}); err != nil || !got.Had || got.IdP != "sso" {
			t.Errorf("%+v, %v", got, err)
		}
		d.start(t) // it is in the store
		if got, err := d.Delete(t.Context(), "s1", DeleteOptions{}); err != nil || got.Had || got.IdP != "sso" {
			t.Errorf("after a restart: %+v, %v", got, err)
		}
		pass(2 * time.Hour)
		if got, err := d.Delete(t.Context(), "s1", DeleteOptions{}); err != nil || got.IdP != "" {
			t.Errorf("after its end: %+v, %v", got, err)
		}
	})
}

// TestLocksInOneOrder: whoever looks at sessions while others reload and the clock is
// set: nobody waits for ever. An identity provider whose credential stands refused
// has everybody ask for what stands against it.
func TestLocksInOneOrder(t *testing.T) {
	var wrong atomic.Int64
	began := time.Now()
	clock := newClock(func() time.Time { return time.Now().Add(time.Duration(wrong.Load())) }, func() time.Duration { return time.Since(began) })
	refused := &api.Error{Code: api.Latched, Detail: "refused", Remedy: "mend it"}
	idp := (&site{}).named("sso")
	idp.Setup = "1"
	idp.Ready = func() error { return refused }
	var sites []Site
	for i := range 20 {
		s := (&site{}).named(fmt.Sprintf("s%d", i))
		s.Setup, s.IdP = "1", "sso"
		sites = append(sites, s)
	}
	var log countingLog
	k := New(Options{Sites: sites, IdPs: []Site{idp}, Records: newRecords(), Latches: NewLatches(newRecords(), mac), Log: log.logger(), Clock: clock})
	var wg sync.WaitGroup
	do := func(n int, f func(i int)) {
		for range n {
			wg.Go(func() {
				for i := range 300 {
					f(i)
				}
			})
		}
	}
	do(4, func(int) { k.List() })
	do(2, func(int) { k.IdPs() })
	do(2, func(i int) {
		other, again := idp, slices.Clone(sites)
		other.Setup = fmt.Sprint(i % 3)
		for j := range again {
			again[j].Setup = fmt.Sprint(i % 5)
		}
		k.Reconfigure(again, []Site{other})
	})
	do(2, func(i int) { wrong.Store(int64(i%7) * int64(time.Hour)) })
	do(4, func(i int) {
		if _, err := k.Get(t.Context(), sites[i%len(sites)].Name, GetOptions{}); api.CodeOf(err) != api.Latched {
			t.Errorf("%v", err)
		}
	})
	do(1, func(i int) { k.Resume(sites[i%len(sites)].Name) })
	done := make(chan struct{})
	go func() {
		wg.Wait()
		k.Close()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(time.Minute):
		b := make([]byte, 1<<20)
		t.Fatalf("somebody waits for ever:\n%s", b[:runtime.Stack(b, true)])
	}
}

// TestSSORedirectAtAMember: where a member leads to another host, the next step is to
// make that an identity provider.
func TestSSORedirectAtAMember(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := startDomain(t, 1, "")
		d.net.handle(d.all[0].url.Host, func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://login.corp.example/", http.StatusFound)
		})
		_, err := d.ask(t, 0)
		e := api.AsError(err)
		if api.CodeOf(err) != api.SSORedirect || !strings.Contains(e.Remedy, "[idp.NAME]") {
			t.Errorf("%+v", e)
		}
	})
}

// TestPanicInTheProofOfAVisit: a driver that panics where the identity provider's new
// cookies are proven costs those, and keeps nobody waiting.
func TestPanicInTheProofOfAVisit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := startDomain(t, 3, "")
		d.serve(t, 0)
		d.rotates = true
		panicked := false
		d.idp.site.set(func() {
			d.idp.probed = func() {
				if !panicked {
					panicked = true
					panic("the driver is broken")
				}
			}
		})
		for range 2 {
			d.serve(t, 1)
			d.serve(t, 2)
			d.killMembers()
			pass(10 * time.Minute)
		}
		if logins, _ := d.idp.since(d.began); !panicked || logins > 2 {
			t.Errorf("panicked: %v, %d logins at the identity provider", panicked, logins)
		}
	})
}

// TestHungOnTheWayBack: a member that takes its ticket and then does not answer does not
// cost the cookie that the identity provider has set on the way there.
func TestHungOnTheWayBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := startDomain(t, 2, "")
		d.rotates = true
		d.serve(t, 1)
		d.net.handle(d.all[0].url.Host, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Query().Get("ticket") == "" {
				toSSO(w, r)
				return
			}
			<-r.Context().Done()
		})
		for range 5 {
			if _, err := d.ask(t, 0); err == nil {
				t.Fatal("the hung member is served")
			}
			d.all[1].kill()
			pass(6 * time.Minute)
			d.serve(t, 1)
		}
		if logins, _ := d.idp.since(d.began); logins != 1 {
			t.Errorf("%d logins at the identity provider", logins)
		}
	})
}

// TestSilentProofOfAVisit: an identity provider that lets a member in, and then does
// not answer the proof of its new cookies, costs that member probeTimeout, and not its
// session.
func TestSilentProofOfAVisit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := startDomain(t, 3, "")
		d.rotates = true
		d.serve(t, 0)
		d.idp.site.set(func() { d.idp.delay = 10 * time.Minute })
		began := time.Now()
		d.serve(t, 1)
		if took := time.Since(began); took > probeTimeout+time.Second {
			t.Errorf("after %v", took)
		}
		d.idp.site.set(func() { d.idp.delay = 0 })
		d.serve(t, 2)
		if logins, _ := d.idp.since(d.began); logins > 2 {
			t.Errorf("%d logins at the identity provider", logins)
		}
	})
}

// TestManyMembersAtOnce: as soon as one visit has shown that the identity provider's
// cookies stay as they are, those who wait for their turn enter together.
func TestManyMembersAtOnce(t *testing.T) {
	const k = 200
	synctest.Test(t, func(t *testing.T) {
		d := startDomain(t, k, "")
		for _, b := range d.all {
			d.net.handle(b.url.Host, func(w http.ResponseWriter, r *http.Request) {
				pass(100 * time.Millisecond)
				d.app(b, w, r)
			})
		}
		began := time.Now()
		d.together(t, d.members()...)
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("after %v", took)
		}
		d.is(t, 1, k)
	})
}

// TestDeadMemberShowsNothing: a member that is down, so that nobody comes to the
// identity provider, does not show that its cookies stay as they are.
func TestDeadMemberShowsNothing(t *testing.T) {
	const k = 20
	synctest.Test(t, func(t *testing.T) {
		d := startDomain(t, k, "")
		d.rotates = true
		d.serve(t, 1)
		d.net.mu.Lock()
		d.net.down[d.all[0].url.Hostname()] = true
		d.net.mu.Unlock()
		if _, err := d.ask(t, 0); err == nil {
			t.Fatal("the dead member is served")
		}
		before := d.visits
		d.together(t, numbers(2, k)...)
		if n := d.visits - before; n != k-2 {
			t.Errorf("%d visits of %d members", n, k-2)
		}
		d.is(t, 1, k-1)
	})
}
