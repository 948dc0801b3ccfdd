package keeper

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/secret"
	"github.com/sessionctl/sessionctl/daemon/internal/web"
)

const aProxy = "http://proxy.corp.example:3128"

// gate is a password for a proxy, over a store that outlives restarts.
type gate struct {
	latches, stored *records
	*Password
}

func newGate(t *testing.T, stored string) *gate {
	g := &gate{latches: newRecords(), stored: newRecords()}
	g.restart()
	if err := g.Store(t.Context(), secret.New(stored)); err != nil {
		t.Fatal(err)
	}
	return g
}

func (g *gate) restart() {
	g.latches, g.stored = g.latches.clone(), g.stored.clone()
	g.Password = NewPassword("corp", "person", "", g.stored, NewLatches(g.latches, mac))
}

// take is one exchange's first request through the proxy.
func (g *gate) take(t *testing.T, verdict error) api.Code {
	t.Helper()
	p := g.AtProxy(aProxy)
	if _, err := p.Take(t.Context()); err != nil {
		return api.CodeOf(err)
	}
	if verdict == nil {
		p.Accepted(t.Context())
	} else {
		p.Refused(t.Context(), verdict)
	}
	return api.CodeOf(verdict)
}

var (
	proxyRefuses = &api.Error{Code: api.ProxyAuthFailed, Detail: "the proxy refuses it"}
	proxyIsLost  = &api.Error{Code: api.ProxyError, Detail: "the connection broke"}
)

// TestProxyPassword: one attempt of a password that a proxy refuses, over
// exchanges and restarts.
func TestProxyPassword(t *testing.T) {
	g := newGate(t, wrongPassword)
	if got := g.take(t, proxyRefuses); got != api.ProxyAuthFailed {
		t.Fatal(got)
	}
	for range 3 {
		if got := g.take(t, nil); got != api.Latched {
			t.Errorf("then %q", got)
		}
		g.restart()
	}
	if err := g.AtProxy(aProxy).Forgive(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := g.take(t, nil); got != "" {
		t.Errorf("after a person's word: %q", got)
	}
	// An accepted one is known: no word in the store for each request that comes soon.
	g.latches.failing = errors.New("disk full")
	for range 3 {
		if got := g.take(t, nil); got != "" {
			t.Errorf("known: %q", got)
		}
	}
	g.latches.failing = nil
	if got := g.take(t, proxyRefuses); got != api.ProxyAuthFailed {
		t.Error(got)
	}
	if got := g.take(t, nil); got != api.Latched {
		t.Errorf("refused after all: %q", got)
	}
}

// TestProxyPasswordLost: nobody knows what became of an attempt.
func TestProxyPasswordLost(t *testing.T) {
	g := newGate(t, rightPassword)
	if got := g.take(t, proxyIsLost); got != api.ProxyError {
		t.Fatal(got)
	}
	if got := g.take(t, nil); got != api.Latched {
		t.Errorf("then %q", got)
	}
	// Killed in the middle.
	g = newGate(t, rightPassword)
	if _, err := g.AtProxy(aProxy).Take(t.Context()); err != nil {
		t.Fatal(err)
	}
	g.restart()
	if got := g.take(t, nil); got != api.Latched {
		t.Errorf("after a kill: %q", got)
	}
}

// TestProxyPasswordTurns: a password that nobody knows goes to one at a time.
func TestProxyPasswordTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(t, wrongPassword)
		var mu sync.Mutex
		taken, latched := 0, 0
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				p := g.AtProxy(aProxy)
				_, err := p.Take(t.Context())
				mu.Lock()
				if err == nil {
					taken++
				} else if api.CodeOf(err) == api.Latched {
					latched++
				}
				mu.Unlock()
				if err == nil {
					pass(time.Second)
					p.Refused(t.Context(), proxyRefuses)
				}
			})
		}
		wg.Wait()
		if taken != 1 || latched != 19 {
			t.Errorf("%d attempts, %d told of the refusal", taken, latched)
		}
	})
}

// atOnce has 20 exchanges take the password at the same time. It returns how many
// requests were underway at once before any had its verdict, how many there were in
// the end, and how many exchanges were told of a refusal.
func (g *gate) atOnce(t *testing.T, verdict error) (first, sent, latched int) {
	t.Helper()
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			p := g.AtProxy(aProxy)
			_, err := p.Take(t.Context())
			mu.Lock()
			if err == nil {
				sent++
			} else if api.CodeOf(err) == api.Latched {
				latched++
			}
			mu.Unlock()
			if err != nil {
				return
			}
			pass(100 * time.Millisecond)
			if verdict == nil {
				p.Accepted(t.Context())
			} else {
				p.Refused(t.Context(), verdict)
			}
		})
	}
	synctest.Wait()
	mu.Lock()
	first = sent
	mu.Unlock()
	wg.Wait()
	return first, sent, latched
}

// TestKnownProxyPassword: a password that was accepted is taken by all at once for
// a while, without a word in the store; then one proves it for all. If it was
// changed meanwhile, that one is the only attempt.
func TestKnownProxyPassword(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(t, rightPassword)
		expect := func(when string, verdict error, first, sent, latched, writes int) {
			t.Helper()
			before := g.latches.writes
			a, b, c := g.atOnce(t, verdict)
			if a != first || b != sent || c != latched || g.latches.writes-before != writes {
				t.Errorf("%s: %d at once, %d in all, %d latched, %d writes; want %d, %d, %d, %d", when, a, b, c, g.latches.writes-before, first, sent, latched, writes)
			}
		}
		expect("unknown", nil, 1, 20, 0, 3)
		expect("known", nil, 20, 20, 0, 0)
		pass(web.AcceptedFor - time.Second)
		expect("still known", nil, 20, 20, 0, 0) // which renews it
		pass(web.AcceptedFor - time.Second)
		expect("still known", nil, 20, 20, 0, 0)
		pass(web.AcceptedFor)
		expect("long ago", nil, 1, 20, 0, 2)
		pass(web.AcceptedFor)
		expect("changed", proxyRefuses, 1, 1, 19, 3)
		g.restart()
		expect("refused", nil, 0, 0, 20, 0)

		// Changed right after an acceptance: those on their way, and no other.
		g = newGate(t, rightPassword)
		if got := g.take(t, nil); got != "" {
			t.Fatal(got)
		}
		holder := g.AtProxy(aProxy) // has it, and has no request on its way
		if _, err := holder.Take(t.Context()); err != nil {
			t.Fatal(err)
		}
		holder.Accepted(t.Context())
		if err := holder.Refusal(); err != nil {
			t.Error(err)
		}
		late := g.AtProxy(aProxy) // accepted before the change, and told after
		if _, err := late.Take(t.Context()); err != nil {
			t.Fatal(err)
		}
		if first, sent, _ := g.atOnce(t, proxyRefuses); first != 20 || sent != 20 {
			t.Errorf("%d, %d", first, sent)
		}
		late.Accepted(t.Context())
		if err := holder.Refusal(); api.CodeOf(err) != api.Latched {
			t.Errorf("who has it: %v", err)
		}
		expect("refused", nil, 0, 0, 20, 0)
		if err := g.AtProxy(aProxy).Forgive(t.Context()); err != nil {
			t.Fatal(err)
		}
		expect("after a person's word", proxyRefuses, 1, 1, 19, 2)
	})
}

// TestProxyPasswordRefusedLater: a later request of an exchange is refused.
func TestProxyPasswordRefusedLater(t *testing.T) {
	g := newGate(t, rightPassword)
	p := g.AtProxy(aProxy)
	if _, err := p.Take(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.Accepted(t.Context())
	p.Refused(t.Context(), proxyRefuses)
	for range 2 {
		if got := g.take(t, nil); got != api.Latched {
			t.Errorf("then %q", got)
		}
		g.restart()
	}
}

// TestKnownProxyPasswordKilled: an agent that dies under a request leaves a known
// password in doubt.
func TestKnownProxyPasswordKilled(t *testing.T) {
	g := newGate(t, rightPassword)
	if got := g.take(t, nil); got != "" {
		t.Fatal(got)
	}
	g.restart() // who died with nothing on its way leaves no doubt
	attempts := 0
	for range 5 {
		if _, err := g.AtProxy(aProxy).Take(t.Context()); err == nil {
			attempts++
		} else if api.CodeOf(err) != api.Latched {
			t.Error(err)
		}
		g.restart()
	}
	if attempts != 1 {
		t.Errorf("%d attempts in 5 lives", attempts)
	}
	if err := g.AtProxy(aProxy).Forgive(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := g.take(t, nil); got != "" {
		t.Errorf("after a person's word: %q", got)
	}
}

// TestKnownProxyPasswordLost: what becomes of a site behind the proxy leaves a known
// password known, over restarts; each next request is alone.
func TestKnownProxyPasswordLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(t, rightPassword)
		if got := g.take(t, nil); got != "" {
			t.Fatal(got)
		}
		for range 3 {
			g.restart()
			if first, sent, latched := g.atOnce(t, proxyIsLost); first != 1 || sent != 20 || latched != 0 {
				t.Errorf("%d at once, %d in all, %d latched", first, sent, latched)
			}
		}
	})
}

// TestProxyPasswordAcceptedElsewhere: what a site or another proxy has accepted is
// not known at this one; what this one refuses is refused everywhere.
func TestProxyPasswordAcceptedElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		known := func() *gate { // at a site
			g := newGate(t, rightPassword)
			l, pw := g.Password.latches, []byte(rightPassword)
			if err := errors.Join(l.Begin(t.Context(), g.verifier(), g.user, pw), l.End(t.Context(), g.verifier(), g.user, pw, nil)); err != nil {
				t.Fatal(err)
			}
			return g
		}
		g := known()
		other := g.Password.AtProxy("http://other.corp.example")
		if _, err := other.Take(t.Context()); err != nil {
			t.Fatal(err)
		}
		other.Accepted(t.Context())
		if first, sent, latched := g.atOnce(t, proxyRefuses); first != 1 || sent != 1 || latched != 19 {
			t.Errorf("%d at once, %d in all, %d latched", first, sent, latched)
		}
		if _, err := other.Take(t.Context()); api.CodeOf(err) != api.Latched {
			t.Errorf("at the other proxy: %v", err)
		}
		// An answer that is lost, of a password that only the site knows.
		g = known()
		if got := g.take(t, proxyIsLost); got != api.ProxyError {
			t.Error(got)
		}
		if got := g.take(t, nil); got != api.Latched {
			t.Errorf("then %q", got)
		}
	})
}

// TestProxyPasswordForNobody: who has stopped waiting makes no attempt.
func TestProxyPasswordForNobody(t *testing.T) {
	g := newGate(t, rightPassword)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 20 { // the free turn and the ended context are both at hand
		if _, err := g.AtProxy(aProxy).Take(ctx); err == nil {
			t.Fatal("an attempt")
		}
	}
	if g.latches.writes != 0 {
		t.Errorf("%d writes", g.latches.writes)
	}
	if got := g.take(t, nil); got != "" {
		t.Errorf("then %q", got)
	}
}

// TestOffer: an offered password is kept only if the proxy has accepted it.
func TestOffer(t *testing.T) {
	g := newGate(t, wrongPassword)
	offer := g.Offer(aProxy, secret.New(newPassword))
	if _, err := offer.Take(t.Context()); err != nil {
		t.Fatal(err)
	}
	offer.Refused(t.Context(), proxyRefuses)
	if err := offer.Kept(t.Context(), proxyRefuses); api.CodeOf(err) != api.ProxyAuthFailed {
		t.Error(err)
	}
	if err := g.Offer(aProxy, secret.New(rightPassword)).Kept(t.Context(), nil); api.CodeOf(err) != api.InvalidRequest {
		t.Errorf("nobody asked: %v", err)
	}
	// The site's answer is at hand, and may be that of a proxy in trouble.
	unproven := g.Offer(aProxy, secret.New("CANARY-unproven"))
	if _, err := unproven.Take(t.Context()); err != nil {
		t.Fatal(err)
	}
	unproven.Refused(t.Context(), proxyIsLost)
	if err := unproven.Kept(t.Context(), nil); api.CodeOf(err) != api.ProxyError {
		t.Errorf("unproven: %v", err)
	}
	if pw, err := g.Load(); err != nil || pw.Reveal() != wrongPassword {
		t.Errorf("the stored password has changed: %v", err)
	}
	offer = g.Offer(aProxy, secret.New(rightPassword))
	if pw, err := offer.Take(t.Context()); err != nil || pw.Reveal() != rightPassword {
		t.Fatal(err)
	}
	offer.Accepted(t.Context())
	if err := offer.Kept(t.Context(), nil); err != nil {
		t.Error(err)
	}
	if pw, err := g.Load(); err != nil || pw.Reveal() != rightPassword {
		t.Errorf("the accepted password is not kept: %v", err)
	}
}

// TestProxyPasswordInDoubt: what one proxy leaves open about a password that another
// has accepted is remembered of that one alone.
func TestProxyPasswordInDoubt(t *testing.T) {
	const another = "http://another.example:3128"
	g := newGate(t, rightPassword)
	if got := g.take(t, nil); got != "" {
		t.Fatal(got)
	}
	at := func(address string, verdict error) api.Code {
		p := g.AtProxy(address)
		if _, err := p.Take(t.Context()); err != nil {
			return api.CodeOf(err)
		}
		if verdict == nil {
			p.Accepted(t.Context())
		} else {
			p.Refused(t.Context(), verdict)
		}
		return api.CodeOf(verdict)
	}
	if got := at(another, proxyIsLost); got != api.ProxyError {
		t.Fatal(got)
	}
	for range 2 {
		if got := at(another, nil); got != api.Latched {
			t.Errorf("there: %q", got)
		}
		if got := at(aProxy, nil); got != "" {
			t.Errorf("at the one that has accepted it: %q", got)
		}
		g.restart()
	}
	if err := g.AtProxy(another).Forgive(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := at(another, nil); got != "" {
		t.Errorf("after a person's word: %q", got)
	}
}
