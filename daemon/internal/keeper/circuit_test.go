package keeper

import (
	"context"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/web"
)

const shared = "shared.corp.example"

// sharing are n sites of one origin and realm, that take a moment to answer.
func sharing(t *testing.T, n int, each func(i int, b *backend, s *Site)) *fleet {
	return startFleet(t, n, func(i int, b *backend, s *Site) {
		b.url.Host, b.url.Path = shared, "/"+s.Name+"/"
		b.delay, s.Realm = 200*time.Millisecond, "CORP.EXAMPLE"
		if each != nil {
			each(i, b, s)
		}
	})
}

func (f *fleet) out(host string, down bool) { f.set(func() { f.down[host] = down }) }

// callers ask for sites' sessions every so often for a while, each for itself, and
// judge what they get.
func (f *fleet) callers(t *testing.T, d, every time.Duration, judge func(i int, s Served, err error, took time.Duration), sites ...int) {
	t.Helper()
	var wg sync.WaitGroup
	for _, i := range sites {
		wg.Go(func() {
			pass(time.Duration(i) * 7 * time.Millisecond)
			for end := time.Now().Add(d); time.Now().Before(end); pass(every) {
				before := time.Now()
				s, err := f.ask(t, i)
				judge(i, s, err, time.Since(before))
			}
		})
	}
	wg.Wait()
}

// requests is how often servers were asked since a time.
func (f *fleet) requests(since time.Time) (n int) {
	for _, b := range f.all {
		logins, probes := b.since(since)
		n += logins + probes
	}
	return n
}

// TestSharedOutage: 50 sites at an origin that nobody reaches. One of them tries at
// a time, for all.
func TestSharedOutage(t *testing.T) {
	const n, living = 50, 30
	synctest.Test(t, func(t *testing.T) {
		f := sharing(t, n, nil)
		before := f.together(t, numbers(0, living)...)
		f.out(shared, true)
		pass(6 * time.Minute) // the first find out
		since := f.now()
		f.set(func() { f.most = 0 })
		refused := 0
		var mu sync.Mutex
		f.callers(t, 2*time.Hour, 13*time.Second, func(i int, s Served, err error, took time.Duration) {
			mu.Lock()
			defer mu.Unlock()
			switch {
			case i < living && (err != nil || !s.Stale || s.Generation != before[i]):
				t.Errorf("s%d: stale: %v, %v", i, s.Stale, err)
			case i >= living && (api.CodeOf(err) != api.NetworkError || !strings.Contains(err.Error(), "next attempt in ") && took == 0):
				t.Errorf("s%d: after %v: %v", i, took, err)
			case i >= living:
				refused++
			}
		}, numbers(0, n)...)
		// A back-off step is two and a half minutes in the mean, once it is long.
		if r := f.requests(since); r < 20 || r > 120 {
			t.Errorf("%d requests in two hours", r)
		}
		f.mu.Lock()
		if f.most > 1 {
			t.Errorf("%d trials at once", f.most)
		}
		f.most = 0
		f.mu.Unlock()
		for i, s := range f.List() {
			if s.RetryTime.IsZero() || api.CodeOf(s.Failure) != api.NetworkError || (i < living) != (s.State == Stale) {
				t.Errorf("s%d: state %d, retry %v, %v", i, s.State, s.RetryTime, s.Failure)
			}
		}

		// It comes back, and nobody asks: those in use are looked after.
		f.out(shared, false)
		since = f.now()
		pass(maxBackOff + 5*time.Second)
		f.mu.Lock()
		if f.most > maxBackground {
			t.Errorf("%d at once when it is back", f.most)
		}
		f.mu.Unlock()
		for i, s := range f.List()[:living] {
			if s.State != Live || s.Session.Generation != before[i] {
				t.Errorf("s%d: state %d", i, s.State)
			}
			if logins, probes := f.all[i].since(since); logins != 0 || probes > 3 {
				t.Errorf("s%d: %d logins, %d probes", i, logins, probes)
			}
		}
		f.together(t, numbers(0, n)...)
	})
}

// TestOutageFromTheStart: 50 sites without a session wait for one trial, and all are
// served when it comes back.
func TestOutageFromTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := sharing(t, 50, nil)
		f.out(shared, true)
		if _, err := f.ask(t, 0); api.CodeOf(err) != api.NetworkError {
			t.Fatal(err)
		}
		since := f.now().Add(1)
		f.callers(t, time.Hour, 3*time.Second, func(i int, _ Served, err error, _ time.Duration) {
			if api.CodeOf(err) != api.NetworkError {
				t.Errorf("s%d: %v", i, err)
			}
		}, numbers(0, 50)...)
		if r := f.requests(since); r > 60 {
			t.Errorf("%d attempts in an hour", r)
		}
		f.out(shared, false)
		pass(maxBackOff)
		f.together(t, numbers(0, 50)...)
	})
}

// TestTrialWhoseCallerLeaves: it goes on, and counts.
func TestTrialWhoseCallerLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := sharing(t, 2, func(_ int, b *backend, _ *Site) { b.delay = 10 * time.Second })
		f.out(shared, true)
		for i := range 2 {
			f.ask(t, i)
		}
		pass(maxBackOff)
		f.out(shared, false)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := f.Get(ctx, "s0", GetOptions{}); api.CodeOf(err) != api.Deadline {
			t.Fatal(err)
		}
		since := f.now()
		go func() {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			f.Get(ctx, "s1", GetOptions{}) // waits for the trial, and leaves
		}()
		pass(2 * time.Second)
		f.count(t, since, 0, 0)
		pass(30 * time.Second)
		if s := f.List(); s[0].State != Live || !s[1].RetryTime.IsZero() {
			t.Errorf("%+v", s)
		}
		f.serve(t, 1)
	})
}

// TestOwnFailure: what one site of an origin answers says nothing about the others.
func TestOwnFailure(t *testing.T) {
	for _, e := range []error{
		&api.Error{Code: api.Maintenance}, &api.Error{Code: api.Server5xx}, &api.Error{Code: api.RateLimited}, &api.Error{Code: api.Timeout},
		&api.Error{Code: api.NetworkError, Detail: "elsewhere", Err: gone("https://other.corp.example")},
	} {
		synctest.Test(t, func(t *testing.T) {
			f := sharing(t, 2, nil)
			f.all[0].loginE = e
			for range 10 {
				if _, err := f.ask(t, 0); api.CodeOf(err) != api.CodeOf(e) {
					t.Fatal(err)
				}
				if s := f.List()[1]; !s.RetryTime.IsZero() {
					t.Fatalf("%v holds another site until %v", e, s.RetryTime)
				}
				pass(time.Minute)
			}
			f.serve(t, 1)
		})
	}
}

// TestRealmOutage: no KDC, no logins, but proofs; whoever proves a session has asked
// no KDC.
func TestRealmOutage(t *testing.T) {
	const living, cold = 10, 10
	noKDC := &api.Error{Code: api.KDCUnreachable, Detail: "no KDC", Err: gone("realm CORP.EXAMPLE")}
	synctest.Test(t, func(t *testing.T) {
		f := startFleet(t, living+cold, func(i int, b *backend, s *Site) { s.Realm, b.delay = "CORP.EXAMPLE", 100*time.Millisecond })
		f.together(t, numbers(0, living)...)
		for _, b := range f.all {
			b.set(func() { b.loginE = noKDC })
		}
		f.ask(t, living)
		since := f.now().Add(1)
		f.callers(t, 2*time.Hour, time.Minute, func(i int, s Served, err error, _ time.Duration) {
			switch {
			case i < living && (err != nil || s.Stale):
				t.Errorf("s%d: stale: %v, %v", i, s.Stale, err)
			case i >= living && api.CodeOf(err) != api.KDCUnreachable:
				t.Errorf("s%d: %v", i, err)
			}
		}, numbers(0, living+cold)...)
		logins, probes := 0, 0
		for _, b := range f.all {
			l, p := b.since(since)
			logins, probes = logins+l, probes+p
		}
		if logins < 20 || logins > 100 {
			t.Errorf("%d attempts to log in within two hours", logins)
		}
		if probes < living*20 {
			t.Errorf("%d probes", probes)
		}
		for _, b := range f.all {
			b.set(func() { b.loginE = nil })
		}
		pass(maxBackOff)
		f.together(t, numbers(0, living+cold)...)
	})
}

// answered is what web makes of an answer.
func answered(t *testing.T, status int, header http.Header) error {
	n := newInternet()
	defer n.close()
	n.handle("app.corp.example", func(w http.ResponseWriter, _ *http.Request) {
		for k, v := range header {
			w.Header()[k] = v
		}
		w.WriteHeader(status)
	})
	u := n.url("app.corp.example", "/")
	x := web.NewExchange(web.Options{Base: u, InsecureHTTP: true, Dial: n.dial}, new(web.Jar))
	defer x.Close()
	r, err := x.Send(t.Context(), web.Request{URL: u})
	if err != nil {
		t.Fatal(err)
	}
	return web.StatusError(r)
}

// TestRetryAfter: nobody comes before a server's time, nor much after; and nobody is
// sent away for long.
func TestRetryAfter(t *testing.T) {
	for name, c := range map[string]struct {
		status int
		after  string
		want   time.Duration
	}{
		"429":             {429, "120", 2 * time.Minute},
		"503":             {503, "1800", 30 * time.Minute},
		"date":            {503, "Sat, 01 Jan 2000 00:20:00 GMT", 20 * time.Minute},
		"for a year":      {429, "31536000", time.Hour},
		"not a number":    {429, "soon", 0},
		"nothing":         {503, "", 0},
		"not of a 500":    {500, "1800", 0},
		"negative number": {429, "-5", 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := http.Header{"Date": {"Sat, 01 Jan 2000 00:00:00 GMT"}}
				if c.after != "" {
					h.Set("Retry-After", c.after)
				}
				e := answered(t, c.status, h)
				f := startFleet(t, 20, func(_ int, b *backend, _ *Site) { b.loginE = e })
				starts := map[time.Time]bool{}
				for i := range f.all {
					f.ask(t, i)
					s := f.List()[i]
					if wait := s.RetryTime.Sub(f.now()); wait < c.want || wait > c.want+time.Second+time.Millisecond {
						t.Errorf("s%d is left alone for %v, want %v", i, wait, c.want)
					}
					starts[s.RetryTime] = true
				}
				if len(starts) < 15 {
					t.Errorf("20 sites come again at %d times", len(starts))
				}
			})
		})
	}
}

// TestForcedInAnOutage: a person does not wait for the end of a back-off; a success
// ends it for everybody.
func TestForcedInAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := sharing(t, 20, nil)
		old := f.serve(t, 0)
		f.out(shared, true)
		for range 10 { // the back-off becomes long
			f.Refresh(t.Context(), "s0", "", true)
			f.ask(t, 1)
			pass(time.Minute)
		}
		since := f.now()
		for range 3 {
			if _, err := f.Refresh(t.Context(), "s0", "", true); api.CodeOf(err) != api.NetworkError {
				t.Errorf("%v", err)
			}
		}
		f.count(t, since, 3, 0)
		if s, err := f.ask(t, 0); err != nil || !s.Stale || s.Generation != old.Generation {
			t.Errorf("the old session: stale: %v, %v", s.Stale, err)
		}
		f.out(shared, false)
		if s, err := f.Refresh(t.Context(), "s0", "", true); err != nil || s.Generation == old.Generation {
			t.Errorf("%v", err)
		}
		f.together(t, numbers(0, 20)...)
	})
}

// TestResume: a person has mended it.
func TestResume(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := sharing(t, 2, nil)
		f.out(shared, true)
		for range 10 {
			f.ask(t, 0)
			pass(time.Minute)
		}
		f.out(shared, false)
		f.Resume("s1")
		f.Resume("nowhere")
		f.useAtOnce(t, 1)
		f.useAtOnce(t, 0)
	})
}

// useAtOnce checks that a site's session is had without waiting for any back-off.
func (f *fleet) useAtOnce(t *testing.T, i int) {
	t.Helper()
	before := time.Now()
	f.serve(t, i)
	if d := time.Since(before); d > time.Second {
		t.Errorf("s%d: after %v", i, d)
	}
}
