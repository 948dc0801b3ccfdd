package daemon

import (
	"maps"
	"net/url"
	"slices"
	"strings"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/krb"
	"github.com/sessionctl/sessionctl/daemon/internal/login"
	"github.com/sessionctl/sessionctl/daemon/internal/web"
)

// proxy is how a site is reached: a [proxy.NAME] of the configuration, or what
// the environment names.
type proxy struct {
	url           *url.URL
	credential    *Credential // nil: none
	spn           string
	mutual        web.MutualPolicy
	insecureBasic bool
	// inURL is the user and password in a URL of the environment, or nil.
	inURL web.ProxyPassword
}

// noProxy is the value of a site's proxy setting that leaves the environment's
// alone.
const noProxy = "none"

// newProxy reads a [proxy.NAME].
func newProxy(name string, t proxyTable, credentials map[string]*Credential) (*proxy, error) {
	wrong := func(detail string) (*proxy, error) {
		return nil, &api.Error{Code: api.ConfigInvalid, Detail: detail}
	}
	u, err := url.Parse(t.URL)
	switch {
	case name == noProxy:
		return wrong("none is what a site writes that has no proxy; choose another name")
	case t.URL == "":
		return wrong("url is missing")
	case err != nil:
		return wrong("url is not a web address")
	case u.User != nil:
		return wrong("url must not hold a user name or password; name a credential")
	case !web.MutualPolicy(t.MutualAuth).Valid():
		return wrong("mutual_auth is none of off, if-offered and required")
	}
	if err := web.CheckProxy(u); err != nil {
		return nil, err
	}
	if !validPort(web.OriginOf(u)) {
		return wrong("url " + noSuchPort)
	}
	p := &proxy{url: u, spn: t.SPN, mutual: web.MutualPolicy(t.MutualAuth), insecureBasic: t.InsecureBasic}
	if t.SPN != "" {
		if err := krb.CheckSPN(t.SPN); err != nil {
			return wrong("spn: " + api.AsError(err).Detail)
		}
	}
	if t.Credential != "" {
		if p.credential = credentials[t.Credential]; p.credential == nil {
			return wrong("there is no [credential." + t.Credential + "]")
		}
	}
	means := login.Means("")
	if p.credential != nil {
		means = p.credential.means()
	}
	switch {
	case t.SPN != "" && means != login.Ticket:
		return wrong("spn is for tickets: it wants a credential that is " + string(login.Ticket))
	case t.MutualAuth != "" && means != login.Ticket:
		return wrong("mutual_auth is for tickets: it wants a credential that is " + string(login.Ticket))
	case t.InsecureBasic && means != login.Secret:
		return wrong("insecure_basic is for passwords: it wants a credential that is " + string(login.Secret))
	case means == login.Secret && web.InClear(p.url) && !t.InsecureBasic:
		return wrong("its password would go over the network in clear, and so never goes: use an https url, or allow it with insecure_basic = true")
	}
	return p, nil
}

// siteProxy returns the proxy of a site by its setting: none, a name, or by
// default what the environment says, with the credentials of a [proxy.NAME] of
// the same address. Sites share what the environment says, by its text: a password
// in it that is refused at one is tried at no other.
func siteProxy(site *url.URL, setting string, proxies, environment map[string]*proxy) (*proxy, error) {
	switch {
	case setting == noProxy:
		return nil, nil
	case setting != "":
		if p := proxies[setting]; p != nil {
			return p, nil
		}
		e := &api.Error{Code: api.ConfigInvalid, Detail: "there is no [proxy." + setting + "]"}
		if strings.ContainsAny(setting, ":/@") { // and, maybe, a password
			e.Detail = `proxy is the NAME of a [proxy.NAME], which has the url, or "none"`
		}
		return nil, e
	}
	u, err := web.ProxyFromEnvironment(site)
	if err == nil && u != nil && !validPort(web.OriginOf(u)) {
		err = &api.Error{Code: api.ConfigInvalid, Detail: "the environment's proxy for " + site.Scheme + " " + noSuchPort,
			Remedy: "correct " + site.Scheme + "_proxy in the agent's environment"}
	}
	if err != nil {
		e := *api.AsError(err)
		e.Remedy += `, or set proxy = "none" in the site`
		return nil, &e
	}
	if u == nil {
		return nil, nil
	}
	for _, name := range slices.Sorted(maps.Keys(proxies)) {
		p := proxies[name]
		if u.User == nil && web.OriginOf(p.url) == web.OriginOf(u) {
			return p, nil
		}
	}
	p := environment[u.String()]
	if p == nil {
		p = &proxy{url: u}
		if u.User != nil {
			// The environment was written for tools that know no better.
			p.inURL, p.insecureBasic = web.UserPassword(u.User), true
		}
		environment[u.String()] = p
	}
	return p, nil
}
