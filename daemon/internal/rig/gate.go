package rig

import (
	"encoding/base64"
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// IWAAC is a servlet filter in front of a product that asks for Negotiate by rules:
// IWAAC's own (Cleito's manual, "IWAAC integration for non-browser clients"), and
// those that Kantega SSO Enterprise has besides. Whom the rules leave out reaches
// the product as if there were no filter.
type IWAAC struct {
	// Agent must be part of the User-Agent: iwaac.agent.include.only, which is
	// "Windows NT" in the manual; "": any.
	Agent string
	// URIs are the paths where Kerberos is asked for, below the context path:
	// iwaac.uri.include.only, which is "/login.jsp" in the manual. None: the login
	// page.
	URIs []string
	// Deny are agents that are not asked, by a part of the User-Agent. Kantega's
	// list as shipped has HttpClient, Java/, JIRA-, Confluence-, Axis/ and others
	// (its documentation, page 273121345).
	Deny []string
	// From are the addresses, or networks in CIDR notation, that are asked; none:
	// all (the same documentation).
	From []string
}

// guarded reports whether Negotiate is asked for here. With a keytab and no filter
// the login page asks everybody.
func (a *Atlassian) guarded(c *atlassianCall) bool {
	if a.acceptor == nil || c.user != "" {
		return false
	}
	uris := []string{a.product.login}
	g := a.guard
	if g == nil {
		return c.path == a.product.login
	}
	if len(g.URIs) > 0 {
		uris = g.URIs
	}
	return slices.Contains(uris, c.path) && strings.Contains(c.UserAgent(), g.Agent) &&
		!slices.ContainsFunc(g.Deny, func(part string) bool { return strings.Contains(c.UserAgent(), part) }) &&
		a.fromHere(c)
}

// fromHere reports whether a request comes from where the filter asks.
func (a *Atlassian) fromHere(c *atlassianCall) bool {
	at, err := netip.ParseAddr(factorsOf(c.Request).RemoteAddress)
	return len(a.from) == 0 || err == nil && slices.ContainsFunc(a.from, func(p netip.Prefix) bool { return p.Contains(at.Unmap()) })
}

// negotiate logs in by a Negotiate token (RFC 4559). It reports whether the
// request goes on to the product; otherwise it has been answered.
func (a *Atlassian) negotiate(c *atlassianCall) bool {
	scheme, token, _ := strings.Cut(c.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Negotiate") {
		c.header.Set("WWW-Authenticate", "Negotiate")
		c.page(http.StatusUnauthorized, "Unauthorized (401)")
		return false
	}
	a.counts.Tokens++
	b, err := base64.StdEncoding.DecodeString(token)
	if err != nil {
		c.header.Set("WWW-Authenticate", "Negotiate")
		c.page(http.StatusUnauthorized, "Unauthorized (401)")
		return false
	}
	principal, reply, err := a.acceptor.Accept(b)
	c.header.Set("WWW-Authenticate", "Negotiate "+base64.StdEncoding.EncodeToString(reply))
	if err != nil {
		c.page(http.StatusUnauthorized, "Unauthorized (401)")
		return false
	}
	// The name has to be the logon name in the directory (the IWAAC
	// manual's prerequisites): svc-build@CORP.EXAMPLE is svc-build.
	name, _, _ := strings.Cut(principal[:strings.LastIndexByte(principal, '@')], "/")
	reason := seraphOK
	c.token = a.minted(c, name)
	switch {
	case a.accounts[name] == nil && c.token == "":
		reason = seraphFailed
	case a.modes.NoPermission:
		reason = seraphForbidden
	}
	if reason != seraphOK {
		// A login page with status 200 is how a gate says no to a good ticket
		// (pycontribs/jira#424: the client stays anonymous without an error).
		if a.product.seraph {
			c.header.Set(seraphReason, reason)
		}
		a.loginPage(c)
		return false
	}
	a.counts.KerberosLogins++
	a.login(c, name, false)
	if a.guard != nil && a.crowd == nil && !c.cookieless {
		// The manual's third cookie, beside JSESSIONID and atlassian.xsrf.token.
		c.setCookie(crowdCookie + "=" + secretID() + "; Path=/; HttpOnly")
	}
	return true
}

// minted is Crowd's token for a user whom a ticket has proven: an application may
// ask for one without a password (Crowd's REST API, "validate-password"). That
// filters do so is a guess, from the cookie that they set. "": there is no Crowd,
// or it does not know the user.
func (a *Atlassian) minted(c *atlassianCall, name string) string {
	if a.crowd == nil {
		return ""
	}
	return a.crowd.Mint(name, factorsOf(c.Request))
}
