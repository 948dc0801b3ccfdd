package rig

import (
	"encoding/xml"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"
)

const xsrfFailed = "XSRF check failed"

// rest answers what is under /rest: what is common to the products, or else what
// the product has.
func (a *Atlassian) rest(c *atlassianCall) {
	switch {
	case a.modes.RetryAfter > 0:
		a.limited(c, a.modes.RetryAfter, 10, 0)
		return
	case a.product.seraph && c.stale && !strings.HasPrefix(c.path, "/rest/auth/") && c.URL.Query().Get("os_authType") != "none":
		// An expired cookie is not taken for no cookie (Atlassian, "REST and
		// os_authType"), and beats any Authorization (pycontribs/jira#1904). To log
		// in is possible all the same (JRA-25405).
		c.cookieless = true
		a.challenge(c)
		c.html(http.StatusUnauthorized, "Unauthorized (401)", "<p>os_authType was 'any' and an invalid cookie was sent.</p>")
		return
	}
	if !a.basic(c) || !a.bearer(c) || a.exhausted(c) {
		return
	}
	switch {
	case a.product.tokenAlways && c.writes() && !c.noCheck():
		c.page(http.StatusForbidden, xsrfFailed)
	case a.common(c):
	case a.modes.NoPermission && c.user != "" && c.Method != http.MethodDelete:
		a.product.forbidden(a, c)
	case a.wantsSudo(c) && !(c.path == sessionPath && c.writes()): // who logs in or out
		a.toWebSudo(c)
	default:
		a.product.rest(a, c)
	}
}

// common answers what all products have, for everybody; false: it is something
// else.
func (a *Atlassian) common(c *atlassianCall) bool {
	switch {
	case isTwoStep(c.path) && a.legacy():
		c.page(http.StatusNotFound, "Not Found (404)")
	case isTwoStep(c.path):
		a.twoStepLogin(c)
	case c.Method != http.MethodGet:
		return false
	case c.path == "/rest/applinks/1.0/manifest" || c.path == "/rest/applinks/latest/manifest":
		c.jsonOrXML(http.StatusOK, a.manifest())
	case c.path == "/rest/authconfig/latest/login-options" && a.twoStep:
		a.loginOptions(c)
	default:
		return false
	}
	return true
}

// manifest is what products tell each other of themselves (imitations of FishEye
// and Stash, and an excerpt of Confluence's, in public repositories).
type manifest struct {
	XMLName         xml.Name `xml:"manifest" json:"-"`
	ID              string   `xml:"id" json:"id"`
	Name            string   `xml:"name" json:"name"`
	TypeID          string   `xml:"typeId" json:"typeId"`
	Version         string   `xml:"version" json:"version"`
	BuildNumber     int      `xml:"buildNumber" json:"buildNumber"`
	ApplinksVersion string   `xml:"applinksVersion" json:"applinksVersion"`
	Inbound         []string `xml:"inboundAuthenticationTypes" json:"inboundAuthenticationTypes"`
	Outbound        []string `xml:"outboundAuthenticationTypes" json:"outboundAuthenticationTypes"`
	PublicSignup    bool     `xml:"publicSignup" json:"publicSignup"`
	URL             string   `xml:"url" json:"url"`
}

func (a *Atlassian) manifest() manifest {
	auth := []string{"com.atlassian.applinks.api.auth.types.OAuthAuthenticationProvider"}
	return manifest{ID: a.id, Name: a.product.name, TypeID: a.product.typeID, Version: a.version, BuildNumber: a.buildNumber(),
		ApplinksVersion: "5.2.6", Inbound: auth, Outbound: auth, URL: a.URL()}
}

// loginOptions tells the login page what to offer (Bitbucket's OpenAPI document).
// That everybody may ask is a guess: the page has to.
func (a *Atlassian) loginOptions(c *atlassianCall) {
	option := map[string]any{"id": 1, "type": "LOGIN_FORM", "buttonText": "Log in", "loginLink": a.context + a.product.login}
	switch {
	case a.modes.IdentityProvider != "":
		option["type"], option["loginLink"] = "IDP", a.context+"/plugins/servlet/external-login/1"
	case a.legacy():
		option["type"] = "LEGACY_LOGIN_FORM"
	}
	c.json(http.StatusOK, map[string]any{"start": 0, "limit": 100, "size": 1, "isLastPage": true, "results": []any{option}})
}

// exhausted counts a user's request, if there is a limit to them: a bucket that is
// full after a minute. It reports whether the request was one too many.
func (a *Atlassian) exhausted(c *atlassianCall) bool {
	limit := a.modes.RateLimit
	if limit == 0 || c.user == "" {
		return false
	}
	account, now := a.accounts[c.user], a.now()
	each := time.Minute / time.Duration(limit)
	// The time at which the bucket is full again says how full it is now.
	full := account.full
	if full.Before(now) {
		full = now
	}
	if full = full.Add(each); full.Sub(now) > time.Minute {
		a.limited(c, (full.Sub(now) - time.Minute + time.Second - 1).Truncate(time.Second), limit, 0)
		return true
	}
	account.full = full
	c.limits(limit, int((time.Minute-full.Sub(now))/each))
	return false
}

// limited answers a request that is one too many.
func (a *Atlassian) limited(c *atlassianCall, wait time.Duration, limit, remaining int) {
	c.cookieless = true
	c.header.Set("Retry-After", strconv.Itoa(int(wait/time.Second)))
	c.limits(limit, remaining)
	c.json(http.StatusTooManyRequests, map[string]string{"message": "Rate limit exceeded."})
}

// limits adds what an answer says about rates.
func (c *atlassianCall) limits(limit, remaining int) {
	for name, n := range map[string]int{"Limit": limit, "Remaining": remaining, "Interval-Seconds": 60, "FillRate": limit} {
		c.header.Set("X-RateLimit-"+name, strconv.Itoa(n))
	}
}

// takes checks what a POST brings: the resource is chosen by its type before the
// filters run (JAX-RS). false: it has been answered.
func (a *Atlassian) takes(c *atlassianCall, mediaType string) bool {
	switch {
	case c.mediaType() != mediaType:
		c.page(http.StatusUnsupportedMediaType, "Unsupported Media Type (415)")
	case a.forged(c):
		c.page(http.StatusForbidden, xsrfFailed)
	default:
		return true
	}
	return false
}

// browsers are the agents that are taken for a browser's pages (Atlassian's
// knowledge base, "REST API calls with a browser User-Agent header may fail CSRF
// checks").
var browsers = regexp.MustCompile(`^Mozilla/.*\b(Firefox|Chrome|Safari)/`)

// forged reports whether a POST may come from a foreign page: a form that does
// not say otherwise (Atlassian, "Form token handling"), or any POST of a browser
// that is not known to come from the product's own pages, whatever else it says
// (the article above).
func (a *Atlassian) forged(c *atlassianCall) bool {
	if !c.noCheck() {
		switch c.mediaType() {
		case "", "application/x-www-form-urlencoded", "multipart/form-data", "text/plain":
			return true
		}
	}
	return browsers.MatchString(c.UserAgent()) && !a.sameOrigin(c)
}

// noCheck reports whether a request says that it is no form.
func (c *atlassianCall) noCheck() bool {
	switch strings.ToLower(c.Header.Get("X-Atlassian-Token")) {
	case "no-check", "nocheck":
		return true
	}
	return false
}

// writes reports whether a request's method is one that changes things.
func (c *atlassianCall) writes() bool {
	return c.Method != http.MethodGet && c.Method != http.MethodHead && c.Method != http.MethodOptions
}

// sameOrigin compares with what the product takes for its own scheme, host and
// port.
func (a *Atlassian) sameOrigin(c *atlassianCall) bool {
	if origin := c.Header.Get("Origin"); origin != "" {
		return origin == a.origin()
	}
	u, err := url.Parse(c.Referer())
	return err == nil && u.Scheme+"://"+u.Host == a.origin()
}
