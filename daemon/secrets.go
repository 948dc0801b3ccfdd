package daemon

import (
	"context"
	"time"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/keeper"
	"github.com/sessionctl/sessionctl/daemon/internal/krb"
	"github.com/sessionctl/sessionctl/daemon/internal/secret"
	"github.com/sessionctl/sessionctl/daemon/internal/web"
)

// secrets turn credentials into what sites and proxies take: tickets and
// passwords.
type secrets struct {
	engine    *krb.Engine // nil without principals
	passwords map[*Credential]*keeper.Password
}

// ticket returns a credential as the engine takes it.
func (s *secrets) ticket(c *Credential) krb.Credential {
	k := c.Credential
	if p := s.passwords[c]; p != nil {
		k.Password = func() (string, error) {
			pw, err := p.Load()
			return pw.Reveal(), err
		}
	}
	return k
}

// readyTime bounds the look at a credential, which may have to ask a service of
// this machine (KCM).
const readyTime = 5 * time.Second

// forKeeper puts a site together with what it logs in with.
func (s *Site) forKeeper(have *secrets) keeper.Site {
	options := web.Options{Base: s.URL, LoginHosts: s.loginHosts, InsecureHTTP: s.insecureHTTP, UserAgent: s.userAgent,
		SPN: s.spn, Mutual: s.mutual, Bindings: s.bindings}
	k := keeper.Site{
		Name: s.Name, Kind: s.Kind, URL: s.URL, Account: s.Credential.account(),
		Fingerprint: s.fingerprint, Expect: s.expect, Recheck: s.recheck, RecheckSet: true, Driver: s.driver,
	}
	if s.fallback != nil {
		k.Fallback = have.passwords[s.fallback]
	}
	if s.Credential.Username != "" {
		k.Password = have.passwords[s.Credential]
	} else {
		cred := have.ticket(s.Credential)
		cred.NoPAC = cred.NoPAC || s.noPAC
		options.Negotiate = negotiator{have.engine, cred}
		k.Ready = func() error {
			ctx, cancel := context.WithTimeout(context.Background(), readyTime)
			defer cancel()
			return have.engine.Ready(ctx, cred)
		}
		k.Forgive = func(ctx context.Context) error { return have.engine.Forgive(ctx, cred) }
		if p := have.passwords[s.Credential]; p != nil {
			k.Brought = p
			k.Bring = func(ctx context.Context, password []byte, retry bool) error {
				return have.bring(ctx, p, cred, password, retry)
			}
		}
	}
	if s.proxy != nil && s.proxy.credential != nil {
		k.ForgiveProxy = func(ctx context.Context) error { return have.forgiveProxy(ctx, s.proxy) }
		k.ProxyPassword = have.passwords[s.proxy.credential]
	}
	k.Exchange = func(jar *web.Jar, tickets bool) *web.Exchange {
		o := options
		if !tickets {
			o.Negotiate = nil
		}
		if s.proxy != nil {
			o.Proxy = s.proxy.forExchange(have)
		}
		return web.NewExchange(o, jar)
	}
	return k
}

// bring proves a password of a principal to its KDC, and keeps it.
func (s *secrets) bring(ctx context.Context, p *keeper.Password, cred krb.Credential, password []byte, retry bool) error {
	if err := p.Fixed(); err != nil {
		return err
	}
	cred.Password = func() (string, error) { return string(password), nil }
	if retry {
		if err := s.engine.Forgive(ctx, cred); err != nil {
			return err
		}
	}
	if err := s.engine.Authenticate(ctx, cred); err != nil {
		return err
	}
	return p.Store(ctx, secret.New(string(password)))
}

// forgiveProxy lifts what stands against a proxy's credential.
func (s *secrets) forgiveProxy(ctx context.Context, p *proxy) error {
	if p.credential.Username == "" {
		return s.engine.Forgive(ctx, s.ticket(p.credential))
	}
	return s.passwords[p.credential].AtProxy(p.address()).Forgive(ctx)
}

// bringToProxy proves a password to the proxy that a site is reached through, or
// to its realm, and keeps it.
func (s *secrets) bringToProxy(ctx context.Context, site *Site, password []byte, retry bool) error {
	remedy := "sessionctl check-config; the password is that of the credential of a [proxy.NAME]"
	if site.proxy == nil || site.proxy.credential == nil {
		return &api.Error{Code: api.InvalidRequest, Detail: "the site is not reached through a proxy that has a credential", Remedy: remedy}
	}
	p := s.passwords[site.proxy.credential]
	if p == nil {
		return &api.Error{Code: api.InvalidRequest, Detail: "the proxy's credential is no password", Remedy: remedy}
	}
	if err := keeper.CheckPassword(password); err != nil {
		return err
	}
	var err error
	if site.proxy.credential.Username == "" {
		err = s.bring(ctx, p, s.ticket(site.proxy.credential), password, retry)
	} else {
		err = s.offerToProxy(ctx, site, p, password, retry)
	}
	if e := api.AsError(err); err != nil && (e.Code == api.ProxyAuthFailed || e.Code == api.Latched || e.Code.Refusal()) {
		refused := *e
		again := "sessionctl login " + site.Name + " --proxy --password-stdin"
		refused.Remedy += ", or: " + again + ", or: " + again + " --retry"
		return &refused
	}
	return err
}

// offerTime bounds the request that shows a password to a proxy: others wait for
// its verdict.
const offerTime = 10 * time.Second

// offerToProxy has the proxy judge a password by a request to the site.
func (s *secrets) offerToProxy(ctx context.Context, site *Site, p *keeper.Password, password []byte, retry bool) error {
	if err := p.Fixed(); err != nil {
		return err
	}
	offer := p.Offer(site.proxy.address(), secret.New(string(password)))
	if retry {
		if err := offer.Forgive(ctx); err != nil {
			return err
		}
	}
	w := site.proxy.forExchange(s)
	w.Password = offer
	x := web.NewExchange(web.Options{Base: site.URL, InsecureHTTP: site.insecureHTTP, Proxy: w}, new(web.Jar))
	defer x.Close()
	limited, cancel := context.WithTimeout(ctx, offerTime)
	defer cancel()
	_, err := x.Send(limited, web.Request{URL: site.URL})
	return offer.Kept(ctx, err)
}

// address is what a proxy's verdicts are remembered by.
func (p *proxy) address() string { return web.OriginOf(p.url).String() }

// forExchange returns a proxy as an exchange takes it.
func (p *proxy) forExchange(have *secrets) *web.Proxy {
	w := &web.Proxy{URL: p.url, SPN: p.spn, Mutual: p.mutual, Password: p.inURL, InsecureBasic: p.insecureBasic}
	switch c := p.credential; {
	case c == nil:
	case c.Username != "":
		w.Password = have.passwords[c].AtProxy(p.address())
	default:
		w.Negotiate = negotiator{have.engine, have.ticket(c)}
	}
	return w
}

// negotiator lends one credential's tickets to an exchange.
type negotiator struct {
	engine     *krb.Engine
	credential krb.Credential
}

// Initiate implements web.Negotiator.
func (n negotiator) Initiate(ctx context.Context, spn string, o web.InitiateOptions) (web.Negotiation, error) {
	c, err := n.engine.Initiate(ctx, n.credential, spn, krb.InitiateOptions(o))
	if err != nil {
		return nil, err // not c: a nil *krb.Context in the interface would not be nil
	}
	return c, nil
}
