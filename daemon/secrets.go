package daemon

import (
	"context"
	"sync"
	"time"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/keeper"
	"github.com/sessionctl/sessionctl/daemon/internal/krb"
	"github.com/sessionctl/sessionctl/daemon/internal/secret"
	"github.com/sessionctl/sessionctl/daemon/internal/web"
)

// secrets turn credentials into what sites and proxies take: tickets and
// passwords. They outlive a configuration: what is known of a secret, and whose
// turn it is to try it, holds for sites of the old one and of the new one.
type secrets struct {
	latches *keeper.Latches
	records keeper.Records // of passwords
	clock   *keeper.Clock
	// newEngine makes the engine, of the first configuration that has principals.
	newEngine func(*krb.Config) *krb.Engine

	mu        sync.Mutex
	engine    *krb.Engine
	passwords map[passwordKey]*keeper.Password
	inURLs    map[string]web.ProxyPassword // by the text of a proxy's URL
}

// passwordKey is what makes a password the same one.
type passwordKey struct{ credential, account, file string }

// configure makes ready for a configuration. It cannot fail.
func (s *secrets) configure(c *Config) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case c.kerberos == nil:
	case s.engine == nil:
		s.engine = s.newEngine(c.kerberos)
	default:
		s.engine.Reconfigure(c.kerberos)
	}
}

// kerberos returns the engine, nil if there never were principals.
func (s *secrets) kerberos() *krb.Engine {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.engine
}

// close ends the engine.
func (s *secrets) close() {
	if e := s.kerberos(); e != nil {
		e.Close()
	}
}

// password returns the password of a credential, nil if it has none.
func (s *secrets) password(c *Credential) *keeper.Password {
	if !c.byPassword() {
		return nil
	}
	key := passwordKey{c.Name, c.account(), passwordFile(c.Name)}
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.passwords[key]
	if p == nil {
		p = keeper.NewPassword(key.credential, key.account, key.file, s.records, s.latches)
		s.passwords[key] = p
	}
	return p
}

// inURL returns the password in the URL of the environment's proxy, nil if it has
// none.
func (s *secrets) inURL(p *proxy) web.ProxyPassword {
	if p.inURL == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	text := p.url.String()
	if s.inURLs[text] == nil {
		s.inURLs[text] = p.inURL
	}
	return s.inURLs[text]
}

// ticket returns a credential as the engine takes it.
func (s *secrets) ticket(c *Credential) krb.Credential {
	k := c.Credential
	if p := s.password(c); p != nil {
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

// keeperSites are the sites and the identity providers as the keeper takes them.
func (c *Config) keeperSites(have *secrets) (sites, idps []keeper.Site) {
	for _, s := range c.Sites {
		for _, u := range s.users {
			sites = append(sites, s.forKeeper(u, have))
		}
	}
	for _, s := range c.idps {
		idps = append(idps, s.forKeeper(s.users[0], have))
	}
	return sites, idps
}

// forKeeper puts a site together with what a user of it logs in with.
func (s *Site) forKeeper(who *user, have *secrets) keeper.Site {
	options := web.Options{Base: s.URL, LoginHosts: s.hosts(), InsecureHTTP: s.insecureHTTP, UserAgent: s.userAgent, ForwardedFor: s.forwardedFor,
		SPN: s.spn, Mutual: s.mutual, Bindings: s.bindings}
	k := keeper.Site{
		ID: who.id, Name: s.Name, Kind: s.Kind, URL: s.URL, Credential: who.credential.Name, Account: who.credential.account(),
		Fingerprint: who.fingerprint, Setup: who.setup, Expect: who.expect,
		Recheck: s.recheck, RecheckSet: s.recheckSet, KeepAlive: s.keepAlive, Driver: who.driver,
	}
	if who.fallback != nil {
		k.Fallback = have.password(who.fallback)
	}
	switch {
	case s.idp != nil: // which logs in
		k.IdP, k.IdPOrigins = s.idp.users[0].id, s.idp.origins()
		k.Ready = func() error { return nil }
		k.Forgive = func(context.Context) error { return nil }
	case who.credential.Username != "":
		k.Password = have.password(who.credential)
	default:
		engine, cred := have.kerberos(), have.ticket(who.credential)
		k.Realm = cred.Principal.Realm
		cred.NoPAC = cred.NoPAC || s.noPAC
		options.Negotiate = negotiator{engine, cred}
		k.Ready = func() error {
			ctx, cancel := context.WithTimeout(context.Background(), readyTime)
			defer cancel()
			return engine.Ready(ctx, cred)
		}
		k.Forgive = func(ctx context.Context) error { return engine.Forgive(ctx, cred) }
		if p := have.password(who.credential); p != nil {
			k.Brought = p
			k.Bring = func(ctx context.Context, password []byte, retry bool) error {
				return have.bring(ctx, p, cred, password, retry)
			}
		}
	}
	if s.proxy != nil && s.proxy.credential != nil {
		k.ForgiveProxy = func(ctx context.Context) error { return have.forgiveProxy(ctx, s.proxy) }
		k.ProxyPassword = have.password(s.proxy.credential)
	}
	k.Exchange = func(jar *web.Jar, tickets bool) *web.Exchange {
		o := options
		o.Now = have.clock.Steady()
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
		if err := s.kerberos().Forgive(ctx, cred); err != nil {
			return err
		}
	}
	if err := s.kerberos().Authenticate(ctx, cred); err != nil {
		return err
	}
	return p.Store(ctx, secret.New(string(password)))
}

// forgiveProxy lifts what stands against a proxy's credential.
func (s *secrets) forgiveProxy(ctx context.Context, p *proxy) error {
	if p.credential.Username == "" {
		return s.kerberos().Forgive(ctx, s.ticket(p.credential))
	}
	return s.password(p.credential).AtProxy(p.address()).Forgive(ctx)
}

// bringToProxy proves a password to the proxy that a site is reached through, or
// to its realm, and keeps it. The name is that of the site which somebody logs in
// to; the site may be its identity provider.
func (s *secrets) bringToProxy(ctx context.Context, site *Site, name string, password []byte, retry bool) error {
	remedy := "sessionctl check-config; the password is that of the credential of a [proxy.NAME]"
	if site.proxy == nil || site.proxy.credential == nil {
		return &api.Error{Code: api.InvalidRequest, Detail: "the site is not reached through a proxy that has a credential", Remedy: remedy}
	}
	p := s.password(site.proxy.credential)
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
		again := "sessionctl login " + name + " --proxy --password-stdin"
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
	x := web.NewExchange(web.Options{Base: site.URL, InsecureHTTP: site.insecureHTTP, Proxy: w, Now: s.clock.Steady()}, new(web.Jar))
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
	w := &web.Proxy{URL: p.url, SPN: p.spn, Mutual: p.mutual, Password: have.inURL(p), InsecureBasic: p.insecureBasic}
	switch c := p.credential; {
	case c == nil:
	case c.Username != "":
		w.Password = have.password(c).AtProxy(p.address())
	default:
		w.Negotiate = negotiator{have.kerberos(), have.ticket(c)}
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
