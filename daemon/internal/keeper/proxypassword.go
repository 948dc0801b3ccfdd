package keeper

import (
	"context"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/secret"
)

// ProxyPassword lends a password to one exchange for a proxy that asks for it
// (web.ProxyPassword). A refusal is of the credential, as a site's is. A password
// that was accepted before is lent to all at once and without a word in the store;
// any other to one at a time, after it is written down.
type ProxyPassword struct {
	p        *Password
	secret   secret.String
	offered  bool // not the stored one
	begun    bool // an attempt is written down
	accepted bool
}

// AtProxy returns the password as an exchange with a proxy takes it.
func (p *Password) AtProxy() *ProxyPassword { return &ProxyPassword{p: p} }

// Offer is AtProxy for another password, to be kept once the proxy has accepted
// it.
func (p *Password) Offer(pw secret.String) *ProxyPassword {
	return &ProxyPassword{p: p, secret: pw, offered: true}
}

// Forgive lifts a refusal that stands against the password at its verifier.
func (p *Password) Forgive(ctx context.Context) error { return p.AtProxy().Forgive(ctx) }

// User implements web.ProxyPassword.
func (a *ProxyPassword) User() string { return a.p.user }

// Take implements web.ProxyPassword.
func (a *ProxyPassword) Take(ctx context.Context) (secret.String, error) {
	if err := a.ready(); err != nil {
		return secret.String{}, err
	}
	if a.known() {
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
	if err == nil && !a.known() {
		if err = a.p.latches.Begin(ctx, a.p.verifier(), a.p.user, []byte(a.secret.Reveal())); err == nil {
			a.begun = true
			return a.secret, nil
		}
	}
	<-a.p.turn
	return a.secret, err
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
	return a.p.latches.check(true, a.p.verifier(), a.p.user, []byte(a.secret.Reveal()))
}

// Forgive lifts a refusal that stands against the password.
func (a *ProxyPassword) Forgive(ctx context.Context) error {
	if err := a.load(); err != nil {
		return err
	}
	return a.p.latches.Clear(ctx, a.p.verifier(), a.p.user, []byte(a.secret.Reveal()))
}

func (a *ProxyPassword) known() bool {
	past := a.p.latches.past(a.p.verifier(), a.p.user, []byte(a.secret.Reveal()))
	return past.Accepted && !past.Refused
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
	if refused {
		err = &api.Error{Code: api.BadCredentials, Detail: api.AsError(err).Detail, Remedy: api.AsError(err).Remedy}
	}
	switch {
	case a.begun && (err == nil || refused):
		_ = l.End(ctx, a.p.verifier(), a.p.user, pw, err)
	case a.begun:
		l.Lost(a.p.verifier(), a.p.user, pw, err)
	case refused:
		_ = l.refuse(ctx, a.p.verifier(), a.p.user, pw, api.AsError(err))
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
	}
	return &api.Error{Code: api.InvalidRequest, Detail: "the proxy has not asked for a password", Remedy: "check the site's proxy: sessionctl check-config"}
}
