package keeper

import (
	"cmp"
	"errors"
	"strings"

	"github.com/sessionctl/sessionctl/api"
	"github.com/sessionctl/sessionctl/daemon/internal/login"
	"github.com/sessionctl/sessionctl/daemon/internal/web"
)

// remedied adds the ways out that only a person has. A password that was offered
// and refused is not at hand for the next attempt.
func (e *entry) remedied(err error, offered *attempt) *api.Error {
	f := *api.AsError(err)
	if e.site.isIdP {
		return &f // the ways out are at its sites
	}
	verb := "sessionctl login " + e.site.Name
	if e.site.ID != e.site.Name && e.site.ID != "" { // one of several users
		verb += " --credential " + e.site.Credential
	}
	judge := cmp.Or(e.provider, e)
	p := judge.site.password()
	if judge.site.Bring != nil {
		p = judge.site.Brought
	}
	bring := p != nil && p.file == ""
	captcha := errors.Is(err, &api.Error{Code: api.Captcha})
	stands := f.Code == api.Latched || f.Code == api.StoreDamaged || f.Code.Refusal()
	ways := e.waysAtProxy(&f, verb)
	cookie := func() { // a browser's session will do
		if _, ok := e.site.Driver.(login.Authorizer); !ok {
			ways = append(ways, verb+" --cookie-stdin")
		}
	}
	switch more := errors.Is(err, &api.Error{Code: api.SecondFactor}); {
	case bring && f.Code == api.NoSecret:
		ways = append(ways, verb+" --password-stdin")
		cookie()
	case more && stands, f.Code == api.ChallengeUnsupported:
		cookie()
	case f.Code == api.AppPasswordRequired:
		ways = append(ways, verb+" --password-stdin")
		cookie()
	case bring && stands && !captcha:
		ways = append(ways, verb+" --password-stdin")
	}
	switch {
	case !stands:
	case offered != nil:
		ways = append(ways, verb+" --password-stdin --retry")
	default:
		ways = append(ways, verb+" --retry")
	}
	way := strings.Join(ways, ", or: ")
	switch page := judge.loginPage(); {
	case way == "":
	case captcha && f.Remedy != "": // says the page
		f.Remedy += ", then: " + way
	case f.Remedy == "" && stands && f.Code != api.StoreDamaged:
		f.Remedy = "see at " + page + " with a browser whether the account can log in, then: " + way
	case f.Remedy == "":
		f.Remedy = way
	case stands && f.Code != api.StoreDamaged:
		f.Remedy += " (the site's login page: " + page + "), or: " + way
	default:
		f.Remedy += ", or: " + way
	}
	return &f
}

// loginPage is where a person logs in with a browser.
func (e *entry) loginPage() string {
	page := web.Below(e.site.URL, e.findings().Path)
	if d, ok := e.driver().(login.Paged); ok {
		if u, err := web.Resolve(page, d.LoginPage()); err == nil {
			page = u
		}
	}
	return web.Shown(page)
}

// waysAtProxy are the ways out of a failure to prove to the site's proxy who one
// is.
func (e *entry) waysAtProxy(f *api.Error, login string) (ways []string) {
	if e.site.ForgiveProxy == nil || f.Code != api.ProxyAuthFailed && f.Code != api.ProxyAuthRequired {
		return nil
	}
	p := e.site.ProxyPassword
	why := api.CodeOf(f.Err) // of a credential that was not used
	if p != nil && p.file == "" && (f.Code == api.ProxyAuthFailed || why == api.NoSecret) {
		ways = append(ways, "sessionctl login "+e.site.Name+" --proxy --password-stdin")
	}
	if f.Code == api.ProxyAuthFailed && (p != nil || why == api.Latched || why.Refusal()) {
		ways = append(ways, login+" --retry")
	}
	return ways
}
