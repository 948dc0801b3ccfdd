package keeper

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/web"
)

// members returns the sites that an identity provider logs in to.
func (k *Keeper) members(p *entry) []*entry {
	k.mu.RLock()
	defer k.mu.RUnlock()
	var all []*entry
	for _, e := range k.order {
		if e.site.IdP == p.site.ID {
			all = append(all, e)
		}
	}
	return all
}

// enter logs in to a site by the session of its identity provider: with its
// cookies lent, the site sends a browser there and back. What the provider has set
// on the way stays the provider's. If the site does not take that session, it may
// have ended: it is proven, and another one is tried once.
func (e *entry) enter(ctx context.Context, p *entry) (*Session, error) {
	s, lent, err := e.visit(ctx, p, want{}, false)
	if lent.Session != nil && api.CodeOf(err) == api.Expired {
		w := want{strict: true}
		p.mu.Lock()
		if p.session != nil && p.session.Generation == lent.Generation {
			w.proof = p.proofs + 1
		}
		p.mu.Unlock()
		s, _, err = e.visit(ctx, p, w, true)
	}
	if err == nil {
		return s, nil
	}
	switch f := *api.AsError(err); f.Code {
	case api.Expired:
		return nil, &api.Error{Code: api.LoginOKButProbeFailed, Detail: "the session at the identity provider " + p.site.Name + " is good, but " + f.Detail,
			Remedy: "check the site's url and idp, and its probe_url and identity_… if it has them; a site that wants the provider's own cookies with every request cannot be served", Err: err}
	case api.SSORedirect:
		f.Remedy = "if that host is the site's identity provider, make it an [idp.NAME] and name that as the site's idp; else: " + f.Remedy
		return nil, &f
	}
	return s, err
}

// visitAlone is how long a site may keep its provider's cookies to itself. It may
// hang.
const visitAlone = 5 * time.Second

// visit is enter with one session of the provider's. No other site has its cookies
// at the same time if that is forced, and as long as nobody knows whether it changes
// them at each visit.
func (e *entry) visit(ctx context.Context, p *entry, w want, forced bool) (*Session, Served, error) {
	giveBack, alone := func() {}, forced || !p.steady.Load()
	if alone {
		select {
		case p.turn <- struct{}{}:
		case <-ctx.Done():
			return nil, Served{}, e.throughIdP(callerError(ctx.Err()))
		}
		giveBack = sync.OnceFunc(func() { <-p.turn })
		if !forced && p.steady.Load() {
			giveBack() // another visit has shown it meanwhile
		}
	}
	defer giveBack()
	lent, err := p.get(ctx, w)
	if err != nil {
		return nil, lent, e.throughIdP(err)
	}
	defer time.AfterFunc(visitAlone, giveBack).Stop()
	jar, shifted, err := e.walk(ctx, p, lent.Session)
	giveBack()
	if err != nil {
		return nil, lent, err
	}
	s, err := e.probe(ctx, e.newborn(jar, shifted))
	return s, lent, err
}

// walk returns the cookies that the site sets for who comes with the provider's,
// and what Clock.shifted was then. Whatever of them is the provider's stays its own.
func (e *entry) walk(ctx context.Context, p *entry, lent *Session) (*web.Jar, int64, error) {
	shifted := e.k.clock.shifted.Load()
	lent = lent.at(shifted, p.site.URL)
	theirs := lent.jar.Clone()
	x := e.site.Exchange(new(web.Jar), false)
	x.Lend(theirs, e.site.IdPOrigins)
	defer x.Close()
	r, err := x.Get(ctx, e.site.URL)
	p.absorb(lent, theirs, x.Visited())
	if err != nil {
		return nil, 0, err
	}
	own := x.Jar().Without(lent.jar).Without(theirs)
	if own.Living(x.Now()) == 0 {
		if err := web.StatusError(r); err != nil {
			return nil, 0, err
		}
		return nil, 0, &api.Error{Code: api.Expired, Detail: r.Shown() + " sets no cookie of the site's own"}
	}
	return own, shifted, nil
}

// absorb takes the cookies that a provider has set anew while its session was
// lent, once they are proven: the site that it was lent to chose what was asked
// there.
func (e *entry) absorb(lent *Session, jar *web.Jar, visited bool) {
	if jar.Equal(lent.jar) {
		if visited {
			e.steady.Store(true)
		}
		return
	}
	e.steady.Store(false)
	s := *lent
	s.jar = jar
	e.mu.Lock()
	if e.retired || e.session == nil || e.session.Generation != lent.Generation || e.flight != nil { // newer ones are there, or come
		e.mu.Unlock()
		return
	}
	f := &flight{moot: true, done: make(chan struct{})}
	e.flight = f
	e.mu.Unlock()
	_ = e.safely(func() *api.Error {
		if proven, err := e.prove(&s); err == nil {
			e.publish(proven, lent)
		}
		return nil
	})
	e.mu.Lock()
	defer e.mu.Unlock()
	e.end(f)
}

// throughIdP says of a failure that it is the identity provider's, and what a
// person can do about it at this site.
func (e *entry) throughIdP(err error) error {
	f := *api.AsError(err)
	if errors.Is(err, errRetired) || e.site.IdP == "" {
		return err
	}
	if f.Code == api.Deadline { // the flight's, not that of a caller
		f = api.Error{Code: api.Timeout, Detail: "no session in time", Remedy: "check the identity provider's url and whether it is up, then ask again", Err: err}
	}
	f.Detail = "at the identity provider " + e.site.IdP + ": " + f.Detail
	return &f
}
