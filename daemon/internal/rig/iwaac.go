package rig

import (
	"encoding/base64"
	"net/http"
	"slices"
	"strings"
)

// IWAAC is a servlet filter in front of a Jira that asks for Negotiate by rules
// (Cleito's manual, "IWAAC integration for non-browser clients"). What the rules
// leave out reaches Jira as if there were no filter.
type IWAAC struct {
	// Agent must be part of the User-Agent: iwaac.agent.include.only, which is
	// "Windows NT" in the manual.
	Agent string
	// URIs are the paths where Kerberos is asked for, below the context path:
	// iwaac.uri.include.only, which is "/login.jsp" in the manual.
	URIs []string
}

// asks reports whether the filter's rules fit a request.
func (g *IWAAC) asks(c *atlassianCall) bool {
	return strings.Contains(c.UserAgent(), g.Agent) && slices.Contains(g.URIs, c.path)
}

// guarded reports whether Negotiate is asked for here. With a keytab and no filter
// the login page asks everybody.
func (j *Atlassian) guarded(c *atlassianCall) bool {
	switch {
	case j.acceptor == nil || c.user != "":
		return false
	case j.guard == nil:
		return c.path == loginPath
	default:
		return j.guard.asks(c)
	}
}

// negotiate logs in by a Negotiate token (RFC 4559). It reports whether the
// request goes on to Jira; otherwise it has been answered.
func (j *Atlassian) negotiate(c *atlassianCall) bool {
	scheme, token, _ := strings.Cut(c.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Negotiate") {
		c.header.Set("WWW-Authenticate", "Negotiate")
		c.page(http.StatusUnauthorized, "Unauthorized (401)")
		return false
	}
	j.counts.Tokens++
	b, err := base64.StdEncoding.DecodeString(token)
	if err != nil {
		c.header.Set("WWW-Authenticate", "Negotiate")
		c.page(http.StatusUnauthorized, "Unauthorized (401)")
		return false
	}
	principal, reply, err := j.acceptor.Accept(b)
	c.header.Set("WWW-Authenticate", "Negotiate "+base64.StdEncoding.EncodeToString(reply))
	if err != nil {
		c.page(http.StatusUnauthorized, "Unauthorized (401)")
		return false
	}
	// The name in Jira has to be the logon name in the directory (the IWAAC
	// manual's prerequisites): svc-build@CORP.EXAMPLE is svc-build.
	name, _, _ := strings.Cut(principal[:strings.LastIndexByte(principal, '@')], "/")
	reason := seraphOK
	switch {
	case j.accounts[name] == nil:
		reason = seraphFailed
	case j.modes.NoPermission:
		reason = seraphForbidden
	}
	if reason != seraphOK {
		// A login page with status 200 is how a gate says no to a good ticket
		// (pycontribs/jira#424: the client stays anonymous without an error).
		c.header.Set(seraphReason, reason)
		j.loginPage(c)
		return false
	}
	j.counts.KerberosLogins++
	j.login(c, name)
	if j.guard != nil && !c.cookieless {
		// The manual's third cookie, beside JSESSIONID and atlassian.xsrf.token.
		c.setCookie("crowd.token_key=" + secretID() + "; Path=/; HttpOnly")
	}
	return true
}
