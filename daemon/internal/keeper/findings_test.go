package keeper

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/login"
	"github.com/sessionctl/sessionctl/daemon/internal/secret"
	"github.com/sessionctl/sessionctl/daemon/internal/web"
)

// product is a site that can be of two generations, and has to be logged in to as it
// is.
type product struct {
	*site
	now       login.Findings // what it is; under the site's lock
	detectE   error
	detected  int
	spent     int // passwords that were taken
	gives     bool
	wrongWay  api.Code // of a login as it is not
	loggedIn  []string // as which generation
	askedPath []string // of exchanges
	hangs     bool     // when it is looked at
	echo      bool     // its version is the last password
}

// asFound is its driver.
type asFound struct {
	*product
	found login.Findings
}

func (p *product) Detect(ctx context.Context, x *web.Exchange) (login.Findings, error) {
	p.mu.Lock()
	hangs := p.hangs
	p.detected++
	p.mu.Unlock()
	if hangs {
		<-ctx.Done()
		return login.Findings{}, api.AsError(ctx.Err())
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.echo && p.spent > 0 {
		return login.Findings{Product: "jira", Version: "9CANARY-password", Login: p.now.Login}, nil
	}
	return p.now, p.detectE
}

// Probe finds the session where the product is, and nothing elsewhere.
func (a asFound) Probe(ctx context.Context, x *web.Exchange) (login.Identity, error) {
	u, _ := x.URL("")
	a.mu.Lock()
	here := strings.Trim(u.Path, "/") == strings.Trim(a.now.Path, "/")
	a.mu.Unlock()
	if !here {
		return login.Identity{}, &api.Error{Code: api.UnexpectedStatus, Detail: "404"}
	}
	return a.site.Probe(ctx, x)
}

func (p *product) As(f login.Findings) login.Driver { return asFound{p, f} }

func (a asFound) Login(ctx context.Context, x *web.Exchange, pw login.Password) error {
	if pw != nil {
		if _, err := pw.Take(ctx); err != nil {
			return err
		}
		a.set(func() { a.spent++ })
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	u, _ := x.URL("")
	a.askedPath = append(a.askedPath, u.Path)
	a.loggedIn = append(a.loggedIn, a.found.Login)
	if a.found.Login != a.now.Login {
		if a.gives {
			pw.GiveBack()
		}
		return &api.Error{Code: a.wrongWay, Detail: "404" + a.says()}
	}
	if pw != nil {
		pw.Accepted()
	}
	a.logins++
	a.issue(x)
	return nil
}

// says is what a hostile site has to say about a password.
func (p *product) says() string {
	if p.echo {
		return " CANARY-password"
	}
	return ""
}

func startProduct(t *testing.T, p *product, r, lives *records, pw *Password) *Keeper {
	if p.site == nil {
		p.site = new(site)
	}
	s := p.named("app")
	s.Driver, s.Password = p, pw
	var log countingLog
	k := New(Options{Sites: []Site{s}, Records: r, Lives: lives, Latches: NewLatches(newRecords(), mac), Log: log.logger()})
	t.Cleanup(func() {
		k.Close()
		if log.canary.Load() {
			t.Error("a secret is in the log")
		}
	})
	return k
}

// TestFindings: a site is looked at before the first login, and not again until that
// no longer leads to one; also not by an agent that is started anew.
func TestFindings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &product{now: login.Findings{Product: "jira", Version: "9.12.1", Path: "/jira", Login: "rest"}, wrongWay: api.UnexpectedStatus}
		r, lives := newRecords(), newRecords()
		k := startProduct(t, p, r, lives, nil)
		get := func(wantLogins, wantDetected int) {
			t.Helper()
			s, err := k.Get(t.Context(), "app", GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if p.logins != wantLogins || p.detected != wantDetected || s.Home().Path != "/jira" {
				t.Errorf("%d logins, looked at %d times, at %v; want %d, %d", p.logins, p.detected, s.Home(), wantLogins, wantDetected)
			}
			if f := k.List()[0].Found; f != p.now {
				t.Errorf("%+v", f)
			}
		}
		get(1, 1)
		p.set(func() { p.current = "" })
		pass(5 * time.Minute)
		get(2, 1)
		k.Close()
		k = startProduct(t, p, r, lives, nil)
		p.set(func() { p.current = "" })
		get(3, 1)

		// It is upgraded.
		p.set(func() { p.current, p.now.Login, p.now.Version = "", "tsv", "10.3.1" })
		pass(5 * time.Minute)
		get(4, 2)
		if want := "rest rest rest rest tsv"; strings.Join(p.loggedIn, " ") != want {
			t.Errorf("logged in as %v, want %s", p.loggedIn, want)
		}
		for _, path := range p.askedPath {
			if path != "/jira/" && path != "/jira" {
				t.Errorf("at %s", path)
			}
		}
	})
}

// TestFindingsAndPasswords: a password is spent once, whatever the site has become,
// unless nobody has looked at it.
func TestFindingsAndPasswords(t *testing.T) {
	for _, c := range []struct {
		code   api.Code
		gives  bool
		spent  int
		looked int
		want   api.Code
	}{
		{api.UnexpectedStatus, false, 1, 1, api.UnexpectedStatus},
		{api.UnexpectedStatus, true, 2, 2, ""},
		{api.BadCredentials, true, 1, 1, api.BadCredentials}, // says nothing about the site
		{api.Server5xx, false, 1, 1, api.Server5xx},
	} {
		synctest.Test(t, func(t *testing.T) {
			p := &product{now: login.Findings{Login: "rest"}, wrongWay: c.code, gives: c.gives}
			l := NewLatches(newRecords(), mac)
			pw := NewPassword("office", "build", "", newRecords(), l)
			if err := pw.Store(t.Context(), secret.New("CANARY-password")); err != nil {
				t.Fatal(err)
			}
			k := startProduct(t, p, newRecords(), newRecords(), pw)
			if _, err := k.Get(t.Context(), "app", GetOptions{}); err != nil {
				t.Fatal(err)
			}
			p.set(func() { p.current, p.now.Login, p.spent = "", "tsv", 0 })
			pass(5 * time.Minute)
			if _, err := k.Get(t.Context(), "app", GetOptions{}); api.CodeOf(err) != c.want {
				t.Errorf("%s: %v, want %q", c.code, err, c.want)
			}
			if p.spent != c.spent || p.detected != c.looked {
				t.Errorf("%s: %d passwords spent, looked at %d times; want %d, %d", c.code, p.spent, p.detected, c.spent, c.looked)
			}
		})
	}
}

// TestMoved: a product that is elsewhere now is found, and its session served from
// there, without a login.
func TestMoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &product{now: login.Findings{Product: "jira", Path: "/jira"}, wrongWay: api.UnexpectedStatus}
		r, lives := newRecords(), newRecords()
		k := startProduct(t, p, r, lives, nil)
		get := func(path string) {
			t.Helper()
			s, err := k.Get(t.Context(), "app", GetOptions{})
			if err != nil || s.Home().Path != path || s.Stale {
				t.Errorf("%v at %v, stale: %v; want %s", err, s.Home(), s.Stale, path)
			}
		}
		get("/jira")
		p.set(func() { p.now.Path = "/tracker" })
		pass(5 * time.Minute)
		get("/tracker")
		k.Close()
		k = startProduct(t, p, r, lives, nil)
		get("/tracker")
		k.Close()
		k = startProduct(t, p, r, lives, nil)
		p.set(func() { p.probeE = &api.Error{Code: api.NetworkError, Detail: "refused"} })
		if s, err := k.Get(t.Context(), "app", GetOptions{}); err != nil || !s.Stale || s.Home().Path != "/tracker" {
			t.Errorf("%v, at %v", err, s.Home())
		}
		if p.logins != 1 || k.List()[0].Found.Path != "/tracker" {
			t.Errorf("%d logins, found %+v", p.logins, k.List()[0].Found)
		}
	})
}

// TestBadMoment: who looks while the product is away forgets nothing, and what is
// served stays what it was.
func TestBadMoment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &product{now: login.Findings{Product: "jira", Version: "9.12.1", Path: "/jira"}, wrongWay: api.NoChallenge}
		k := startProduct(t, p, newRecords(), newRecords(), nil)
		before, err := k.Get(t.Context(), "app", GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		good := p.now
		p.set(func() { p.now = login.Findings{Login: "form"} }) // of a page in front
		if _, err := k.Refresh(t.Context(), "app", "", true); err == nil {
			t.Error("no failure")
		}
		p.set(func() { p.now = good })
		s, err := k.Get(t.Context(), "app", GetOptions{})
		if err != nil || s.Generation != before.Generation || s.Home().Path != "/jira" || k.List()[0].Found != good {
			t.Errorf("%v, at %v, found %+v", err, s.Home(), k.List()[0].Found)
		}
	})
}

// TestHiddenManifest: a product that no longer says what it is can still be found to
// take passwords in another way.
func TestHiddenManifest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &product{now: login.Findings{Product: "confluence", Version: "7.19.1", Login: "form"}, wrongWay: api.UnexpectedStatus}
		k := startProduct(t, p, newRecords(), newRecords(), nil)
		if _, err := k.Get(t.Context(), "app", GetOptions{}); err != nil {
			t.Fatal(err)
		}
		p.set(func() { p.current, p.now = "", login.Findings{Login: "tsv"} })
		pass(5 * time.Minute)
		_, err := k.Get(t.Context(), "app", GetOptions{})
		if f := k.List()[0].Found; err != nil || f.Product != "confluence" || f.Login != "tsv" {
			t.Errorf("%v, found %+v", err, f)
		}
	})
}

// TestHungLook: what is known is used when it is old and a look hangs.
func TestHungLook(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &product{now: login.Findings{Product: "jira", Login: "rest"}}
		k := startProduct(t, p, newRecords(), newRecords(), nil)
		if _, err := k.Get(t.Context(), "app", GetOptions{}); err != nil {
			t.Fatal(err)
		}
		p.set(func() { p.current, p.hangs = "", true })
		pass(2 * findingLife)
		for _, retry := range []bool{false, true} {
			p.set(func() { p.current = "" })
			began := time.Now()
			if _, err := k.Login(t.Context(), "app", LoginOptions{Retry: retry}); err != nil || time.Since(began) > probeTimeout+time.Second {
				t.Errorf("%v after %v", err, time.Since(began))
			}
		}
	})
}

// TestLookThatFailed: it does not keep the next one from being had, and a browser's
// session says nothing of how the site is.
func TestLookThatFailed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &product{now: login.Findings{Product: "jira", Path: "/jira"}, detectE: &api.Error{Code: api.NetworkError, Detail: "refused"}}
		k := startProduct(t, p, newRecords(), newRecords(), nil)
		p.set(func() { p.current = "CANARY-browser" })
		jar, err := web.Adopt(siteURL, []byte("session=CANARY-browser"), time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := k.Login(t.Context(), "app", LoginOptions{Adopt: jar}); api.CodeOf(err) != api.UnexpectedStatus {
			t.Error(err)
		}
		p.set(func() { p.detectE = nil })
		if s, err := k.Login(t.Context(), "app", LoginOptions{Adopt: jar}); err != nil || s.Home().Path != "/jira" {
			t.Error(err)
		}

		q := &product{now: login.Findings{}, detectE: &api.Error{Code: api.NetworkError, Detail: "refused"}}
		k = startProduct(t, q, newRecords(), newRecords(), nil)
		q.set(func() { q.current = "CANARY-browser" })
		if _, err := k.Login(t.Context(), "app", LoginOptions{Adopt: jar}); err != nil {
			t.Fatal(err)
		}
		q.set(func() { q.current, q.detectE, q.now.Login = "", nil, "tsv" })
		pass(5 * time.Minute)
		if _, err := k.Get(t.Context(), "app", GetOptions{}); err != nil {
			t.Error(err)
		}
	})
}

// TestRedactedError: a secret in no form in which it can get into a failure.
func TestRedactedError(t *testing.T) {
	for _, pw := range []string{"CANARY-plain", "CANARY pä\u200bss wort", "CANARY%de/f", `CANARY"ote\x`, "CANARY\u202ex"} {
		u := &url.URL{Scheme: "https", Host: "app", Path: "/x/" + pw}
		for _, text := range []string{pw, web.Shown(u), strconv.Quote(pw), api.Clean(pw), printable(pw), "q=" + url.QueryEscape(pw)} {
			err := redactedError(&api.Error{Code: api.SSORedirect, Detail: "leads to " + text, Remedy: text}, []string{pw})
			if e := api.AsError(err); strings.Contains(e.Detail+e.Remedy, "CANARY") || !strings.Contains(e.Detail, redacted) {
				t.Errorf("%q of %q: %+v", text, pw, e)
			}
		}
	}
}

// TestUpgradedAndOpen: what still lets everybody in is looked at once a day.
func TestUpgradedAndOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &product{now: login.Findings{Product: "jira", Version: "9.12.1"}}
		k := startProduct(t, p, newRecords(), newRecords(), nil)
		for day := range 3 {
			p.set(func() { p.current, p.now.Version = "", fmt.Sprintf("10.%d", day) })
			for range 4 {
				if _, err := k.Get(t.Context(), "app", GetOptions{}); err != nil {
					t.Fatal(err)
				}
				p.set(func() { p.current = "" })
				pass(6 * time.Hour)
			}
			if p.detected != day+1 || k.List()[0].Found.Version != fmt.Sprintf("10.%d", day) {
				t.Errorf("day %d: looked at %d times, %+v", day, p.detected, k.List()[0].Found)
			}
		}
	})
}

// TestPersonDoubtsFindings: who retries has the site looked at anew.
func TestPersonDoubtsFindings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &product{now: login.Findings{Product: "jira", Login: "rest"}, wrongWay: api.Server5xx} // which says nothing
		k := startProduct(t, p, newRecords(), newRecords(), nil)
		if _, err := k.Get(t.Context(), "app", GetOptions{}); err != nil {
			t.Fatal(err)
		}
		p.set(func() { p.now.Login = "tsv" })
		if _, err := k.Login(t.Context(), "app", LoginOptions{}); api.CodeOf(err) != api.Server5xx {
			t.Error(err)
		}
		if _, err := k.Login(t.Context(), "app", LoginOptions{Retry: true}); err != nil || p.detected != 2 {
			t.Errorf("%v, looked at %d times", err, p.detected)
		}
	})
}

// TestGlance: a browser's session does not wait for a site that hangs when it is
// looked at, and the next one not at all.
func TestGlance(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &product{hangs: true}
		k := startProduct(t, p, newRecords(), newRecords(), nil)
		p.set(func() { p.current = "CANARY-browser" })
		jar, err := web.Adopt(siteURL, []byte("session=CANARY-browser"), time.Now())
		if err != nil {
			t.Fatal(err)
		}
		for _, wait := range []time.Duration{probeTimeout, 0} {
			began := time.Now()
			if _, err := k.Login(t.Context(), "app", LoginOptions{Adopt: jar}); err != nil || time.Since(began) != wait {
				t.Errorf("%v after %v", err, time.Since(began))
			}
		}
	})
}

// TestEcho: what a site makes of a password is nowhere to be read.
func TestEcho(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &product{now: login.Findings{Login: "rest"}, wrongWay: api.UnexpectedStatus, gives: true}
		l := NewLatches(newRecords(), mac)
		pw := NewPassword("office", "build", "", newRecords(), l)
		if err := pw.Store(t.Context(), secret.New("CANARY-password")); err != nil {
			t.Fatal(err)
		}
		k := startProduct(t, p, newRecords(), newRecords(), pw) // looks at the log
		if _, err := k.Get(t.Context(), "app", GetOptions{}); err != nil {
			t.Fatal(err)
		}
		p.set(func() { p.echo, p.now.Login, p.current = true, "tsv", "" })
		pass(5 * time.Minute)
		_, err := k.Get(t.Context(), "app", GetOptions{})
		if text := fmt.Sprint(err, api.AsError(err), k.List()); strings.Contains(text, "CANARY-password") {
			t.Error(text)
		}
		p.set(func() { p.wrongWay, p.now.Login, p.current = api.BadCredentials, "form", "" })
		pass(5 * time.Minute)
		_, err = k.Get(t.Context(), "app", GetOptions{})
		if text := fmt.Sprint(err, api.AsError(err), k.List()); err == nil || strings.Contains(text, "CANARY-password") {
			t.Error(text)
		}
	})
}

// TestUndetected: what keeps a site from being looked at is the login's failure, and
// nothing is spent on it.
func TestUndetected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &product{detectE: &api.Error{Code: api.Maintenance, Detail: "503"}}
		k := startProduct(t, p, newRecords(), newRecords(), nil)
		if _, err := k.Get(t.Context(), "app", GetOptions{}); api.CodeOf(err) != api.Maintenance || len(p.loggedIn) > 0 {
			t.Errorf("%v, %v", err, p.loggedIn)
		}
		p.set(func() { p.detectE = nil })
		pass(time.Minute)
		if _, err := k.Get(t.Context(), "app", GetOptions{}); err != nil {
			t.Error(err)
		}
	})
}

// bearer is a site that takes a token with each request.
type bearer struct{ *site }

func (b bearer) Login(ctx context.Context, x *web.Exchange, p login.Password) error {
	pw, err := p.Take(ctx)
	if err != nil {
		return err
	}
	p.Accepted()
	x.Jar().Authorize(secret.New("Bearer " + pw.Reveal()))
	b.set(func() { b.logins++; b.current = pw.Reveal() })
	return nil
}

func (b bearer) Probe(_ context.Context, x *web.Exchange) (login.Identity, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.probes++
	x.Jar().Set(siteURL, []string{"session=CANARY-beside"}, x.Now())
	if b.current == "" || x.Jar().Authorization().Reveal() != "Bearer "+b.current {
		return login.Identity{}, &api.Error{Code: api.Expired, Detail: "401"}
	}
	return login.Identity{Name: b.user}, nil
}

// TestToken: a session without cookies is proven, stored and served as any other.
func TestToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := bearer{&site{user: "build"}}
		l := NewLatches(newRecords(), mac)
		pw := NewPassword("office", "build", "", newRecords(), l)
		if err := pw.Store(t.Context(), secret.New("CANARY-token")); err != nil {
			t.Fatal(err)
		}
		s := b.named("app")
		s.Driver, s.Password = b, pw
		r := newRecords()
		for restart := range 2 {
			k := keep(t, r, l, s)
			served, err := k.Get(t.Context(), "app", GetOptions{})
			if err != nil || served.Authorization().Reveal() != "Bearer CANARY-token" || len(served.Cookies(siteURL, time.Now())) > 0 {
				t.Fatalf("%v, cookies %v", err, served.Cookies(siteURL, time.Now()))
			}
			if b.logins != 1 || b.probes != restart+1 {
				t.Errorf("%d logins, %d probes", b.logins, b.probes)
			}
			k.Close()
		}
	})
}

// carrier is a site whose sessions are the password itself, as with the Basic scheme:
// each proof is an attempt.
type carrier struct {
	*site
	attempts *[]string
}

// tried counts an attempt, and refuses a wrong one.
func (c carrier) tried(password string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if *c.attempts = append(*c.attempts, password); password != c.current {
		return &api.Error{Code: api.BadCredentials, Detail: "401"}
	}
	return nil
}

func (c carrier) Login(ctx context.Context, x *web.Exchange, p login.Password) error {
	if p == nil {
		return &api.Error{Code: api.NoChallenge, Detail: "by Basic alone"}
	}
	pw, err := p.Take(ctx)
	if err != nil {
		return err
	}
	if err := c.tried(pw.Reveal()); err != nil {
		return err
	}
	p.Accepted()
	x.Jar().Authorize(secret.New("Basic " + base64.StdEncoding.EncodeToString([]byte("build:"+pw.Reveal()))))
	return nil
}

func (c carrier) Probe(ctx context.Context, x *web.Exchange) (login.Identity, error) {
	c.mu.Lock()
	delay, trouble := c.delay, c.probeE
	c.mu.Unlock()
	if err := sleep(ctx, delay); err != nil {
		return login.Identity{}, api.AsError(err)
	}
	if trouble != nil {
		return login.Identity{}, trouble
	}
	_, field, _ := strings.Cut(x.Jar().Authorization().Reveal(), " ")
	plain, err := base64.StdEncoding.DecodeString(field)
	if err != nil {
		return login.Identity{}, err
	}
	_, password, _ := strings.Cut(string(plain), ":")
	if err := c.tried(password); err != nil {
		return login.Identity{}, err
	}
	return login.Identity{Name: "build"}, nil
}

// TestPasswordInSession: a password that goes with each request, and is refused at a
// proof, is refused for good: no login tries it once more, nor another site's proof,
// nor the agent after a restart. Another password is no attempt of the old one.
func TestPasswordInSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := carrier{&site{user: "build"}, new([]string)}
		c.current = "CANARY-first"
		lr, r := newRecords(), newRecords()
		var pw *Password
		open := func() *Keeper {
			l := NewLatches(lr, mac)
			pw = NewPassword("office", "build", "", r, l)
			a, b := c.named("app"), c.named("other")
			a.Driver, a.Password = c, pw
			b.Driver, b.Password = c, pw
			return keep(t, r, l, a, b)
		}
		k := open()
		if err := pw.Store(t.Context(), secret.New("CANARY-first")); err != nil {
			t.Fatal(err)
		}
		get := func(name string, code api.Code, attempts ...string) {
			t.Helper()
			c.set(func() { *c.attempts = nil })
			_, err := k.Get(t.Context(), name, GetOptions{})
			synctest.Wait()
			if api.CodeOf(err) != code || !slices.Equal(*c.attempts, attempts) {
				t.Errorf("%s: %v, want %q; attempts %q, want %q", name, err, code, *c.attempts, attempts)
			}
			if err != nil && strings.Contains(err.Error(), "CANARY") {
				t.Errorf("%v", err)
			}
		}
		get("app", "", "CANARY-first", "CANARY-first") // the login, and its proof
		get("other", "", "CANARY-first", "CANARY-first")
		pass(time.Hour)
		c.set(func() { c.current = "CANARY-second" })
		get("app", api.Latched, "CANARY-first")
		get("app", api.Latched)
		get("other", api.Latched)
		k.Close()
		k = open()
		get("other", api.Latched)
		if err := pw.Store(t.Context(), secret.New("CANARY-second")); err != nil {
			t.Fatal(err)
		}
		get("app", "", "CANARY-second", "CANARY-second")
		pass(time.Hour)
		c.set(func() { c.current = "CANARY-third" })
		if err := pw.Store(t.Context(), secret.New("CANARY-third")); err != nil {
			t.Fatal(err)
		}
		get("app", "", "CANARY-third", "CANARY-third")
	})
}

// TestPasswordInSessions: of many sites whose sessions are one password, one finds out
// that it was changed, whether it is their credential or what they fall back to; and
// nobody is handed out a password that is known to be an old one.
func TestPasswordInSessions(t *testing.T) {
	for name, use := range map[string]func(s *Site, pw *Password){
		"credential": func(s *Site, pw *Password) { s.Password = pw },
		"fallback":   func(s *Site, pw *Password) { s.Fallback = pw },
	} {
		synctest.Test(t, func(t *testing.T) {
			c := carrier{&site{user: "build"}, new([]string)}
			c.current = "CANARY-first"
			l := NewLatches(newRecords(), mac)
			pw := NewPassword("office", "build", "", newRecords(), l)
			var sites []Site
			for i := range 8 {
				s := c.named(fmt.Sprintf("app%d", i))
				s.Driver = c
				use(&s, pw)
				sites = append(sites, s)
			}
			k := keep(t, newRecords(), l, sites...)
			if err := pw.Store(t.Context(), secret.New("CANARY-first")); err != nil {
				t.Fatal(err)
			}
			all := func(code api.Code, want string) {
				t.Helper()
				var asks sync.WaitGroup
				for i := range 8 {
					asks.Go(func() {
						served, err := k.Get(t.Context(), fmt.Sprintf("app%d", i), GetOptions{})
						if api.CodeOf(err) != code {
							t.Errorf("%s: %d: %v, want %q", name, i, err, code)
						}
						if err == nil && !served.carries(secret.New(want)) {
							t.Errorf("%s: %d: an old password is handed out", name, i)
						}
					})
				}
				asks.Wait()
			}
			all("", "CANARY-first")
			c.set(func() { c.current = "CANARY-second" })
			if err := pw.Store(t.Context(), secret.New("CANARY-second")); err != nil {
				t.Fatal(err)
			}
			all("", "CANARY-second")
			pass(time.Hour)
			c.set(func() { c.current, *c.attempts = "CANARY-third", nil })
			all(api.Latched, "")
			if len(*c.attempts) != 1 {
				t.Errorf("%s: attempts %q", name, *c.attempts)
			}
		})
	}
}

// TestPasswordInSessionHeld: a password that is known to be an old one is not handed
// out, though no proof of it can be had now, or none is wanted. A site that hangs while
// it is asked keeps the others waiting for a moment, and an agent that dies then has
// lost nothing.
func TestPasswordInSessionHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		well, ill := carrier{&site{user: "build"}, new([]string)}, carrier{&site{user: "build"}, new([]string)}
		well.current, ill.current = "CANARY-first", "CANARY-first"
		latches, sessions, passwords := newRecords(), newRecords(), newRecords()
		var pw *Password
		open := func() *Keeper {
			l := NewLatches(latches, mac)
			pw = NewPassword("office", "build", "", passwords, l)
			a, b := well.named("well"), ill.named("ill")
			a.Driver, a.Password, b.Driver, b.Password = well, pw, ill, pw
			return keep(t, sessions, l, a, b)
		}
		k := open()
		if err := pw.Store(t.Context(), secret.New("CANARY-first")); err != nil {
			t.Fatal(err)
		}
		get := func(name string, o GetOptions, code api.Code, stale bool) {
			t.Helper()
			served, err := k.Get(t.Context(), name, o)
			if api.CodeOf(err) != code || err == nil && served.Stale != stale {
				t.Errorf("%s: %v, want %q; stale %v", name, err, code, err == nil && served.Stale)
			}
		}
		get("well", GetOptions{}, "", false)
		get("ill", GetOptions{}, "", false)

		pass(time.Hour)
		ill.set(func() { ill.delay = time.Hour })
		go func() { _, _ = k.Get(context.Background(), "ill", GetOptions{}) }()
		synctest.Wait()
		began := time.Now()
		get("well", GetOptions{}, "", false)
		if waited := time.Since(began); waited > 2*proofAlone {
			t.Errorf("waited for another site for %v", waited)
		}
		k.Close()
		k = open()
		get("well", GetOptions{}, "", false)
		ill.set(func() { ill.delay, ill.probeE = 0, &api.Error{Code: api.Maintenance, Detail: "503"} })
		get("ill", GetOptions{}, "", true)

		ill.set(func() { ill.loginE = ill.probeE })
		if err := pw.Store(t.Context(), secret.New("CANARY-second")); err != nil {
			t.Fatal(err)
		}
		get("ill", GetOptions{CachedOnly: true}, api.NotCached, false)
		if served, err := k.Get(t.Context(), "ill", GetOptions{}); err == nil {
			t.Errorf("an old password is handed out: %v, stale %v", served.carries(secret.New("CANARY-first")), served.Stale)
		}
	})
}
