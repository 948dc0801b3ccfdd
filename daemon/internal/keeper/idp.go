package keeper

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/login"
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
	if d, ok := p.site.Driver.(login.Sharer); ok {
		return e.share(ctx, p, d)
	}
	s, lent, err := e.visit(ctx, p, want{}, false)
	if lent.Session != nil && api.CodeOf(err) == api.Expired {
		s, _, err = e.visit(ctx, p, p.provenAfter(lent.Session), true)
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
	f := e.findings()
	s, err := e.probe(ctx, e.newborn(jar, shifted, f.Path), f)
	return s, lent, err
}

// walk returns the cookies that the site sets for who comes with the provider's,
// and what Clock.shifted was then. Whatever of them is the provider's stays its own.
func (e *entry) walk(ctx context.Context, p *entry, lent *Session) (*web.Jar, int64, error) {
	shifted := e.k.clock.shifted.Load()
	lent = lent.at(shifted)
	theirs := lent.jar.Clone()
	x := e.exchange(new(web.Jar), false, e.findings().Path)
	x.Lend(theirs, e.site.IdPOrigins)
	defer x.Close()
	r, err := x.Get(ctx, web.Below(e.site.URL, e.findings().Path))
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
		if proven, err := e.prove(&s, e.findings()); err == nil {
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

// share logs in to a site with the cookies that its identity provider shares: the
// first proof has the site begin a session for them, and the second one is of that.
// A provider that was not proven since the site's last session died, or whose cookies
// the site does not take, is proven first, and logged in to anew if it is dead.
func (e *entry) share(ctx context.Context, p *entry, d login.Sharer) (*Session, error) {
	e.mu.Lock()
	ended, lost := e.ended, e.lost
	e.mu.Unlock()
	lent, err := p.get(ctx, want{})
	for tries := 0; err == nil; tries++ {
		another := lost == nil || d.Shared(lost).Len() == 0 || !d.Shared(lost).Equal(d.Shared(lent.jar)) // than what has died
		if tries > 0 || another || lent.ProveTime.After(ended) {
			e.settles(p, lent.Session)
			s, serr := e.asFound(ctx, true, noSecrets, func() bool { return false }, func(f login.Findings) (*Session, error) {
				return e.begin(ctx, d, lent.Session, f)
			})
			switch {
			case serr == nil || api.CodeOf(serr) != api.Expired:
				return s, serr
			case tries > 0:
				f := *api.AsError(serr)
				return nil, &api.Error{Code: api.LoginOKButProbeFailed, Detail: "the session at the identity provider " + p.site.Name + " is good, but " + f.Detail, Remedy: d.Refused(), Err: serr}
			}
		}
		if !e.mayDoubt() {
			return nil, &api.Error{Code: api.Quota, Detail: fmt.Sprintf("the session at the identity provider %s was doubted %d times within %v", p.site.Name, maxDoubts, loginWindow),
				Remedy: "find out who ends it: this site, a caller that logs out there, or an administrator"}
		}
		lent, err = p.get(ctx, p.provenAfter(lent.Session))
	}
	return nil, e.throughIdP(err)
}

// settles takes note that the flight under way uses the session that the provider has
// now, if that is the one.
func (e *entry) settles(p *entry, lent *Session) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.session == nil || p.session.Generation != lent.Generation {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.flight != nil {
		e.flight.doubted = e.doubted
	}
}

// provenAfter is the want of a session that is proven after one was handed out.
func (e *entry) provenAfter(lent *Session) want {
	w := want{strict: true}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.session != nil && e.session.Generation == lent.Generation {
		w.proof = e.proofs + 1
	}
	return w
}

// begin has a site begin a session for the cookies that its provider shares.
func (e *entry) begin(ctx context.Context, d login.Sharer, lent *Session, f login.Findings) (*Session, error) {
	path := f.Path
	home := web.Below(e.site.URL, path)
	shifted := e.k.clock.shifted.Load()
	if m, ok := e.as(f).(login.Member); ok {
		x := e.exchange(lent.at(shifted).jar.Clone(), false, path)
		defer x.Close()
		if err := m.Enter(ctx, x); err != nil {
			return nil, err
		}
		return e.probe(ctx, e.newborn(x.Jar(), shifted, path), f)
	}
	jar := d.Shared(lent.at(shifted).jar)
	if len(jar.Cookies(home, e.k.clock.Now())) == 0 {
		return nil, &api.Error{Code: api.LoginOKButProbeFailed, Detail: "what the identity provider " + e.provider.site.Name + " shares is not for " + web.OriginOf(home).String(), Remedy: d.Refused()}
	}
	s, err := e.probe(ctx, e.newborn(jar, shifted, path), f)
	if err != nil || s.jar.Equal(jar) {
		return s, err
	}
	return e.probe(ctx, s, f)
}

// sharedWith returns the provider's session among the cookies that a person has
// brought for the site, nil if it is not there.
func (e *entry) sharedWith(jar *web.Jar) *web.Jar {
	if e.provider == nil || jar == nil {
		return nil
	}
	d, ok := e.provider.site.Driver.(login.Sharer)
	if !ok {
		return nil
	}
	return d.Adopt(jar, web.Below(e.provider.site.URL, e.provider.findings().Path), e.k.clock.Now())
}

// maxDoubts is how often within loginWindow a site may have the session that its
// provider shares proven, and made anew: it could be the one that ends them.
const maxDoubts = 3

// mayDoubt counts a doubt, if there may be another.
func (e *entry) mayDoubt() bool {
	now := e.k.clock.Now()
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.doubts) >= maxDoubts {
		if d := now.Sub(e.doubts[0]); 0 <= d && d < loginWindow {
			return false
		}
	}
	e.doubts = append(e.doubts[max(0, len(e.doubts)-maxDoubts+1):], now)
	return true
}

// doubt has the sites of a provider that shares its session prove theirs before they
// are handed out again: it was theirs, too, and has ended, or is another one.
func (k *Keeper) doubt(p *entry) {
	if _, ok := p.site.Driver.(login.Sharer); !ok || !p.site.isIdP {
		return
	}
	for _, e := range k.members(p) {
		e.mu.Lock()
		e.doubted++
		e.mu.Unlock()
	}
}
