package keeper

import (
	"context"
	"errors"
	"time"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/secret"
	"github.com/sessionctl/sessionctl/daemon/internal/web"
)

// ProxyPassword lends a password to one exchange for a proxy that asks for it
// (web.ProxyPassword). A refusal is of the credential, as a site's is; an
// acceptance makes the password known at this proxy only.
//
// One that this process has seen accepted less than web.AcceptedFor ago is lent to
// all at once and without a word in the store. Any other is lent to one at a time,
// after it is written down: if the agent dies before the verdict, it counts as
// refused, for a known password, too. If only the verdict is lost, or the answer is
// none, a known password stays known, and the next one tries it alone: a site that
// is down behind the proxy must not keep it from the others.
//
// So a refused password is sent once. The exception is one that was accepted less
// than web.AcceptedFor ago: those on their way when the first refusal comes cannot
// be called back, and if the agent dies before it has written that refusal, there
// is one more after its restart.
type ProxyPassword struct {
	p        *Password
	proxy    string // the proxy as a verifier
	secret   secret.String
	offered  bool // not the stored one
	begun    bool // an attempt is written down
	accepted bool
	unproven error // what became of the last attempt, if nobody knows
}

// AtProxy returns the password as an exchange takes it with the proxy of an
// address, by which is remembered what that proxy makes of it.
func (p *Password) AtProxy(address string) *ProxyPassword {
	return &ProxyPassword{p: p, proxy: "[proxy " + address + "]"}
}

// Offer is AtProxy for another password, to be kept once the proxy has accepted
// it.
func (p *Password) Offer(address string, pw secret.String) *ProxyPassword {
	a := p.AtProxy(address)
	a.secret, a.offered = pw, true
	return a
}

// User implements web.ProxyPassword.
func (a *ProxyPassword) User() string { return a.p.user }

// Take implements web.ProxyPassword.
func (a *ProxyPassword) Take(ctx context.Context) (secret.String, error) {
	if err := a.ready(); err != nil {
		return secret.String{}, err
	}
	if a.fresh() {
		return a.secret, nil
	}
	wait, cancel := context.WithTimeout(ctx, turnTimeout)
	defer cancel()
	select {
	case a.p.turn <- struct{}{}:
	case <-wait.Done():
		return secret.String{}, &api.Error{Code: api.Timeout, Detail: "another login with the password of " + a.p.user + " is still under way", Remedy: "try again", Err: wait.Err()}
	}
	err := a.ready() // what became of it meanwhile counts
	if err == nil && ctx.Err() != nil {
		err = api.AsError(ctx.Err()) // nobody would wait for the outcome
	}
	if err == nil && !a.fresh() {
		if err = a.p.latches.Begin(ctx, a.p.verifier(), a.p.user, []byte(a.secret.Reveal())); err == nil {
			a.begun = true
			return a.secret, nil
		}
	}
	<-a.p.turn
	if err != nil {
		return secret.String{}, err
	}
	return a.secret, nil
}

// load reads the password, unless it is offered.
func (a *ProxyPassword) load() (err error) {
	if !a.offered {
		a.secret, err = a.p.Load()
	}
	return err
}

// ready returns what stands against trying the password.
func (a *ProxyPassword) ready() error {
	if err := a.load(); err != nil {
		return err
	}
	return a.Refusal()
}

// Refusal implements web.ProxyPassword.
func (a *ProxyPassword) Refusal() error {
	if err := a.p.latches.check(true, a.p.verifier(), a.p.user, []byte(a.secret.Reveal())); err != nil {
		return err
	}
	return a.p.latches.Check(a.proxy, a.p.user, []byte(a.secret.Reveal()))
}

// Forgive lifts a refusal that stands against the password.
func (a *ProxyPassword) Forgive(ctx context.Context) error {
	if err := a.load(); err != nil {
		return err
	}
	pw := []byte(a.secret.Reveal())
	return errors.Join(a.p.latches.Clear(ctx, a.p.verifier(), a.p.user, pw), a.p.latches.Clear(ctx, a.proxy, a.p.user, pw))
}

// known reports whether the proxy has accepted the password, and not refused it
// since.
func (a *ProxyPassword) known() bool {
	return a.p.latches.past(a.proxy, a.p.user, []byte(a.secret.Reveal())) == verdicts{Accepted: true}
}

// fresh reports whether it has done so lately.
func (a *ProxyPassword) fresh() bool {
	return a.known() && time.Since(a.p.latches.seen(a.proxy, a.p.user, []byte(a.secret.Reveal()))) < web.AcceptedFor
}

// Accepted implements web.ProxyPassword.
func (a *ProxyPassword) Accepted(ctx context.Context) {
	a.accepted = true
	a.end(ctx, nil)
}

// Refused implements web.ProxyPassword.
func (a *ProxyPassword) Refused(ctx context.Context, err error) { a.end(ctx, err) }

// end writes down what became of an attempt. Where that fails, it holds for the
// life of this process.
func (a *ProxyPassword) end(ctx context.Context, err error) {
	ctx, l, pw := context.WithoutCancel(ctx), a.p.latches, []byte(a.secret.Reveal())
	refused := api.CodeOf(err) == api.ProxyAuthFailed
	a.unproven = nil
	switch {
	case err == nil:
		if a.begun { // else it may have been sent before a refusal, and takes none back
			_ = l.End(ctx, a.p.verifier(), a.p.user, pw, nil)
			_ = l.note(ctx, a.proxy, a.p.user, pw, verdicts{Accepted: true})
		}
		l.see(a.proxy, a.p.user, pw)
	case refused:
		bad := &api.Error{Code: api.BadCredentials, Detail: api.AsError(err).Detail, Remedy: api.AsError(err).Remedy}
		if a.begun {
			_ = l.End(ctx, a.p.verifier(), a.p.user, pw, bad)
		} else {
			_ = l.refuse(ctx, a.p.verifier(), a.p.user, pw, bad)
		}
		_ = l.note(ctx, a.proxy, a.p.user, pw, verdicts{Accepted: l.past(a.proxy, a.p.user, pw).Accepted, Refused: true})
	case a.begun && a.known():
		a.unproven = err
		_ = l.End(ctx, a.p.verifier(), a.p.user, pw, &api.Error{Code: api.Unknown}) // no verdict
	default:
		a.unproven = err
		switch past := l.past(a.p.verifier(), a.p.user, pw); {
		case !a.begun:
		case past.Accepted && !past.Refused: // elsewhere: the doubt is about this proxy
			_ = l.End(ctx, a.p.verifier(), a.p.user, pw, &api.Error{Code: api.Unknown})
			_ = l.doubt(ctx, a.proxy, a.p.user, pw, verdicts{}, err)
		default:
			l.Lost(a.p.verifier(), a.p.user, pw, err)
		}
	}
	if a.begun {
		a.begun = false
		<-a.p.turn
	}
}

// Kept keeps an offered password that the proxy has accepted; err is how the
// exchange ended, which counts only if the proxy has not.
func (a *ProxyPassword) Kept(ctx context.Context, err error) error {
	switch {
	case a.accepted:
		return a.p.Store(ctx, a.secret)
	case err != nil:
		return err
	case a.unproven != nil:
		return a.unproven
	}
	return &api.Error{Code: api.InvalidRequest, Detail: "the proxy has not asked for a password", Remedy: "check the site's proxy: sessionctl check-config"}
}
