package keeper

import (
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/secret"
)

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
	p := g.AtProxy()
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
	if err := g.Forgive(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := g.take(t, nil); got != "" {
		t.Errorf("after a person's word: %q", got)
	}
	// An accepted one is known: no word in the store for each request.
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
	if _, err := g.AtProxy().Take(t.Context()); err != nil {
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
				p := g.AtProxy()
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

// TestOffer: an offered password is kept only if the proxy has accepted it.
func TestOffer(t *testing.T) {
	g := newGate(t, wrongPassword)
	offer := g.Offer(secret.New(newPassword))
	if _, err := offer.Take(t.Context()); err != nil {
		t.Fatal(err)
	}
	offer.Refused(t.Context(), proxyRefuses)
	if err := offer.Kept(t.Context(), proxyRefuses); api.CodeOf(err) != api.ProxyAuthFailed {
		t.Error(err)
	}
	if err := g.Offer(secret.New(rightPassword)).Kept(t.Context(), nil); api.CodeOf(err) != api.InvalidRequest {
		t.Errorf("nobody asked: %v", err)
	}
	if pw, err := g.Load(); err != nil || pw.Reveal() != wrongPassword {
		t.Errorf("the stored password has changed: %v", err)
	}
	offer = g.Offer(secret.New(rightPassword))
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
