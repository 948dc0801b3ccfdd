package keeper

import (
	"context"
	"strings"
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
}

// asFound is its driver.
type asFound struct {
	*product
	found login.Findings
}

func (p *product) Detect(_ context.Context, x *web.Exchange) (login.Findings, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.detected++
	return p.now, p.detectE
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
		return &api.Error{Code: a.wrongWay, Detail: "404"}
	}
	if pw != nil {
		pw.Accepted()
	}
	a.logins++
	a.issue(x)
	return nil
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
			if p.logins != wantLogins || p.detected != wantDetected || s.Home.Path != "/jira" {
				t.Errorf("%d logins, looked at %d times, at %v; want %d, %d", p.logins, p.detected, s.Home, wantLogins, wantDetected)
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
