package keeper

import (
	"context"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/web"
)

// idp returns the identity provider whose session logs in to the site, nil if it
// has none.
func (e *entry) idp() *entry {
	if e.site.IdP == "" {
		return nil
	}
	e.k.mu.RLock()
	defer e.k.mu.RUnlock()
	return e.k.idps[e.site.IdP]
}

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
	s, lent, err := e.visit(ctx, p, want{}, !p.steady.Load())
	if api.CodeOf(err) != api.Expired {
		return s, err
	}
	w := want{strict: true}
	p.mu.Lock()
	if p.session != nil && p.session.Generation == lent.Generation {
		w.proof = p.proofs + 1
	}
	p.mu.Unlock()
	if s, _, err = e.visit(ctx, p, w, true); api.CodeOf(err) == api.Expired {
		return nil, &api.Error{Code: api.LoginOKButProbeFailed, Detail: "the session at the identity provider " + p.site.Name + " is good, but " + api.AsError(err).Detail,
			Remedy: "check the site's url and idp; a site that wants the provider's own cookies with every request cannot be served", Err: err}
	}
	return s, err
}

// visit is enter with one session of the provider's. Alone, no other site has its
// cookies at the same time: a provider may change them at each visit.
func (e *entry) visit(ctx context.Context, p *entry, w want, alone bool) (*Session, Served, error) {
	if alone {
		select {
		case p.turn <- struct{}{}:
			defer func() { <-p.turn }()
		case <-ctx.Done():
			return nil, Served{}, callerError(ctx.Err())
		}
	}
	lent, err := p.get(ctx, w)
	if err != nil {
		return nil, Served{}, e.throughIdP(err)
	}
	s, err := e.enterWith(ctx, p, lent)
	return s, lent, err
}

// enterWith is enter with one session of the provider's.
func (e *entry) enterWith(ctx context.Context, p *entry, lent Served) (*Session, error) {
	began := e.k.clock.shifted.Load()
	x := e.site.Exchange(lent.jar.Clone(), false)
	defer x.Close()
	r, err := x.Get(ctx, e.site.URL)
	if err != nil {
		return nil, err
	}
	own, theirs := x.Jar().Split(e.site.IdPOrigins)
	p.absorb(lent.Session, theirs)
	if own.Living(x.Now()) == 0 {
		if err := web.StatusError(r); err != nil {
			return nil, err
		}
		return nil, &api.Error{Code: api.Expired, Detail: r.Shown() + " sets no cookie of the site's"}
	}
	return e.probe(ctx, e.newborn(own, began))
}

// absorb takes the cookies that a provider has set anew while its session was
// lent.
func (e *entry) absorb(lent *Session, jar *web.Jar) {
	if e.steady.Store(jar.Equal(lent.jar)); e.steady.Load() || jar.Len() == 0 {
		return
	}
	e.mu.Lock()
	if e.session != lent || e.flight != nil { // newer ones are there, or come
		e.mu.Unlock()
		return
	}
	s := *lent
	s.jar = jar
	s.ends(e.site.URL)
	f := &flight{moot: true, done: make(chan struct{})}
	e.flight = f
	e.mu.Unlock()
	e.store(&s)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.session = &s
	e.plan()
	e.end(f)
}

// throughIdP says of a failure that it is the identity provider's, and what a
// person can do about it at this site.
func (e *entry) throughIdP(err error) error {
	f := *api.AsError(err)
	f.Detail = "at the identity provider " + e.site.IdP + ": " + f.Detail
	return &f
}
