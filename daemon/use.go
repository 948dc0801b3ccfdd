package daemon

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/login"
	"github.com/sessionctl/sessionctl/daemon/internal/web"
)

// resolver finds what the tables of a configuration name, and puts their sites
// together.
type resolver struct {
	c                    *Config
	d                    *decoder
	credentials          map[string]*Credential
	proxies, environment map[string]*proxy
}

// mistake is an error about a table.
func mistake(e *entry, heading string) func(format string, args ...any) error {
	return func(format string, args ...any) error {
		return configError(e.file, heading+"."+e.Name+": "+fmt.Sprintf(format, args...))
	}
}

// idp puts an identity provider together.
func (r resolver) idp(e *entry) error {
	wrong := mistake(e, "idp")
	who, err := r.user(e, useTable{Credential: e.table.Credential, Identity: e.table.Identity, Fallback: e.table.Fallback}, wrong)
	if err != nil {
		return err
	}
	if p, ok := who.driver.(login.Provider); ok {
		who.driver = p.Provider()
		if err := r.check(e, who, e.table.Identity, wrong); err != nil {
			return err
		}
	}
	if _, ok := who.driver.(login.Authorizer); ok {
		return wrong("the kind %s has no cookies, and so nothing that could log in to a site", e.Kind)
	}
	e.users = []*user{who}
	return r.finish(e, "idp", wrong)
}

// site puts a site together.
func (r resolver) site(e *entry, idps map[string]*Site) error {
	wrong := mistake(e, "site")
	t := e.table
	if t.IdP != "" {
		if err := r.member(e, idps, wrong); err != nil {
			return err
		}
	}
	uses, rules := t.Use, e.useRules
	if t.Credential != "" {
		uses = append(slices.Clip(uses), useTable{Credential: t.Credential, Identity: t.Identity, Fallback: t.Fallback})
		rules = append(slices.Clip(rules), e.ownRules)
	}
	by := map[string]useTable{} // credential → the first use of it
	for i, u := range uses {
		if first, ok := by[u.Credential]; ok {
			if first.Identity != u.Identity || first.Fallback != u.Fallback {
				return wrong("two of its users have credential %s, and another identity or fallback: they are one user, with one session", u.Credential)
			}
			same := slices.IndexFunc(e.users, func(x *user) bool { return x.credential.Name == u.Credential })
			e.uses = append(e.uses, use{rules[i], e.users[same]})
			continue
		}
		by[u.Credential] = u
		mistaken := wrong
		if i < len(t.Use) {
			mistaken = func(format string, args ...any) error {
				return wrong("use: entry %d: "+format, append([]any{i + 1}, args...)...)
			}
		}
		who, err := r.user(e, u, mistaken)
		if err != nil {
			return err
		}
		if len(t.Use) > 0 {
			who.id += "/" + who.credential.Name
		}
		for _, other := range e.users {
			if other.credential.account() == who.credential.account() {
				return wrong("credential.%s and credential.%s are both %s: name one of them in both places", other.credential.Name, who.credential.Name, who.credential.account())
			}
		}
		e.users = append(e.users, who)
		e.uses = append(e.uses, use{rules[i], who})
	}
	if option := t.forTickets(); option != "" && !slices.ContainsFunc(e.users, func(u *user) bool { return u.credential.means() == login.Ticket }) {
		return wrong("%s is for tickets, and credential.%s is %s", option, e.users[0].credential.Name, login.Secret)
	}
	return r.finish(e, "site", wrong)
}

// member puts a site together whose identity provider logs in to it.
func (r resolver) member(e *entry, idps map[string]*Site, wrong func(string, ...any) error) error {
	e.idp = idps[e.table.IdP]
	option := cmp.Or(e.table.forLogin(), r.d.forLogin(e))
	_, authorizer := e.driver.(login.Authorizer)
	_, sharer := e.driver.(login.Sharer)
	switch {
	case e.idp == nil:
		return wrong("there is no [idp.%s]", e.table.IdP)
	case authorizer:
		return wrong("the kind %s takes no cookies, and idp.%s has nothing else for it: give it a credential of its own, in the place of the idp", e.Kind, e.idp.Name)
	case sharer:
		return wrong("the kind %s is that of a provider, and no provider logs in to another: make it an [idp.%s] with a credential", e.Kind, e.Name)
	case option != "" && !r.d.idps[e.idp.Name].has(option):
		return wrong("%s is for the login, which is that of idp.%s, whose kind has no such option: leave it out", option, e.idp.Name)
	case option != "":
		return wrong("%s is for the login, which is that of idp.%s: set it there", option, e.idp.Name)
	case e.idp.URL.Scheme == "http" && !e.insecureHTTP:
		return wrong("idp.%s has an http url, over which the login of this site would go: set insecure_http = true here, too", e.idp.Name)
	case !e.idp.shares() && slices.Contains(e.idp.origins(), web.OriginOf(e.URL)):
		return wrong("%s is a host of idp.%s, whose cookies are never handed out, and so the site would have none: leave it out of the idp's login_hosts, or give one of the two a host name of its own",
			web.OriginOf(e.URL), e.idp.Name)
	}
	lender := e.idp.users[0]
	who := &user{id: e.Name, credential: lender.credential, driver: r.d.newDriver(e)}
	who.expect = expectation(e.table.Identity, lender)
	who.fingerprint = e.fingerprint(e.table.Identity) + "/" + e.idp.Name + "/" + lender.fingerprint
	if err := r.check(e, who, e.table.Identity, wrong); err != nil {
		return err
	}
	e.users = []*user{who}
	e.uses = []use{{e.ownRules, who}}
	return nil
}

// allowed says if an identity provider's sites are for different callers, and yet what
// one of them gets is a login at all.
func (r resolver) allowed(p *Site) {
	if !p.shares() {
		return
	}
	var first *Site
	var rules []string // of the first
	for _, s := range r.c.Sites {
		if s.idp != p {
			continue
		}
		var own []string
		for _, rule := range s.uses[0].allow {
			own = append(own, rule.String())
		}
		slices.Sort(own)
		switch own = slices.Compact(own); {
		case first == nil:
			first, rules = s, own
		case !slices.Equal(own, rules):
			r.warn("idp %s: its sites %s and %s have different allow, but whoever may use one of them gets the provider's cookie, which is a login at all of them: set the same allow for each", p.Name, first.Name, s.Name)
			return
		}
	}
}

// shares reports whether an identity provider's sites take its own cookies.
func (s *Site) shares() bool {
	_, ok := s.users[0].driver.(login.Sharer)
	return ok
}

// origins are where an identity provider's session is at home.
func (s *Site) origins() []web.Origin {
	return append([]web.Origin{web.OriginOf(s.URL)}, s.loginHosts...)
}

// hosts are the origins beside the site's own that take part in its logins.
func (s *Site) hosts() []web.Origin {
	if s.idp == nil {
		return s.loginHosts
	}
	return slices.Concat(s.loginHosts, s.idp.origins())
}

// user returns one user that logs in at a site itself.
func (r resolver) user(e *entry, u useTable, wrong func(string, ...any) error) (*user, error) {
	who := &user{id: e.Name, credential: r.credentials[u.Credential], driver: r.d.newDriver(e)}
	if who.credential == nil {
		return nil, wrong("there is no [credential.%s]", u.Credential)
	}
	takes := who.driver.Takes()
	if !slices.Contains(takes, who.credential.means()) {
		return nil, wrong("the kind %s does not log in with %s, as credential.%s has it; it wants %s",
			e.Kind, who.credential.means(), who.credential.Name, joinMeans(takes))
	}
	if e.noPAC && who.credential.Cache != "" {
		return nil, wrong(noPACOfCache)
	}
	if u.Fallback != "" {
		who.fallback = r.credentials[u.Fallback]
		switch {
		case who.fallback == nil:
			return nil, wrong("fallback: there is no [credential.%s]", u.Fallback)
		case who.credential.Username != "" || who.fallback.Username == "":
			return nil, wrong("fallback is a username with a password, for a site whose credential is a principal")
		case who.credential.byPassword():
			return nil, wrong("fallback: credential.%s has a password already, its principal having neither keytab nor ccache", who.credential.Name)
		case !login.FallsBack(who.driver):
			return nil, wrong("the kind %s does not log in with %s, so there is nothing to fall back to", e.Kind, login.Secret)
		}
	}
	who.expect = expectation(u.Identity, who)
	who.fingerprint = e.fingerprint(u.Identity) + "/" + who.credential.account()
	if who.fallback != nil {
		who.fingerprint += "/" + who.fallback.account()
	}
	return who, r.check(e, who, u.Identity, wrong)
}

// expectation says who a session has to belong to, by an identity setting, else
// by what logs in.
func expectation(identity string, who *user) (e login.Expectation) {
	other := who.impersonates()
	switch {
	case identity == login.Unproven:
		e.Unproven = true
	case identity != "":
		e.Names = []string{identity}
	case other != "":
		e.Names = []string{other}
	default:
		e.Names = who.credential.names()
		if who.fallback != nil {
			e.Names = append(e.Names, who.fallback.Username)
		}
	}
	return e
}

// impersonates returns as whom the user logs in, if that is somebody else than the
// credential's account, "" if not.
func (u *user) impersonates() string {
	if d, ok := u.driver.(login.Impersonator); ok {
		return d.Impersonates()
	}
	return ""
}

// check has the driver look at its options. Of several mistakes the first is said.
func (r resolver) check(e *entry, who *user, identity string, wrong func(string, ...any) error) error {
	if c, ok := who.driver.(login.Checker); ok {
		if err := c.Check(web.Options{Base: e.URL, LoginHosts: e.hosts(), InsecureHTTP: e.insecureHTTP}, identity); err != nil {
			if several, ok := err.(interface{ Unwrap() []error }); ok {
				err = several.Unwrap()[0]
			}
			return wrong("%v", err)
		}
	}
	return nil
}

// way finds the proxy, and says what of the way to a site a person should look at.
func (r resolver) way(e *entry, heading string, wrong func(string, ...any) error) (err error) {
	s := e.Site
	if s.URL.Scheme == "http" && slices.ContainsFunc(s.users, func(u *user) bool { return u.fallback != nil }) {
		r.warn("%s %s: its fallback sends a password over the network in clear", heading, s.Name)
	}
	if s.proxy, err = siteProxy(s.URL, e.table.Proxy, r.proxies, r.environment); err != nil {
		x := api.AsError(wrong("%s", api.AsError(err).Detail))
		x.Remedy = cmp.Or(api.AsError(err).Remedy, x.Remedy) // the environment is not mended in the file
		return x
	}
	if s.proxy != nil && e.table.Proxy == "" {
		r.c.Notes = append(r.c.Notes, fmt.Sprintf("%s %s: proxy %s from the environment", heading, s.Name, web.OriginOf(s.proxy.url)))
	}
	if s.proxy != nil && s.proxy.inURL != nil && web.InClear(s.proxy.url) {
		r.warn("%s %s: the environment's proxy URL holds a password, which goes over the network in clear", heading, s.Name)
	}
	if s.insecureHTTP {
		r.warn("%s %s: insecure_http lets its session go over the network in clear", heading, s.Name)
	}
	return nil
}

func (r resolver) warn(format string, args ...any) {
	r.c.Warnings = append(r.c.Warnings, fmt.Sprintf(format, args...))
}

// finish finds the way to a site whose users are known, and takes down what they
// are made from.
func (r resolver) finish(e *entry, heading string, wrong func(string, ...any) error) error {
	if err := r.way(e, heading, wrong); err != nil {
		return err
	}
	made := e.table
	made.Allow, made.Use, made.Credential, made.Identity, made.Fallback = nil, nil, "", "", ""
	proxy := ""
	if e.proxy != nil {
		proxy = e.proxy.setup()
	}
	var all []string
	for _, u := range e.users {
		parts := []any{u.id, u.fingerprint, u.expect, made, e.options, proxy}
		if e.idp != nil {
			own := digest(parts...)
			u.setup = digest(own, e.idp.setup)
			all = append(all, own)
			continue
		}
		parts = append(parts, u.credential.setup)
		if u.fallback != nil {
			parts = append(parts, u.fallback.setup)
		}
		u.setup = digest(parts...)
		all = append(all, u.setup)
	}
	for _, u := range e.uses {
		all = append(all, u.user.id)
		for _, r := range u.allow {
			all = append(all, r.String())
		}
	}
	e.Site.setup = digest(all)
	return nil
}

// setup changes with anything that a proxy was made from. The URL may hold a
// password, of which a hash stays.
func (p *proxy) setup() string {
	parts := []any{p.url.String(), p.spn, p.mutual, p.insecureBasic}
	if p.credential != nil {
		parts = append(parts, p.credential.setup)
	}
	return digest(parts...)
}
