package rig

import (
	"net/http"
	"net/url"
	"slices"
	"time"
)

// The cookies of a delegated login, as in the recording of IBM/ELM-Python-Client
// (dn_simple_createartifact_trace.html), DOORS Next 7.0.2.
const (
	authTokenCookie     = "JAZZ_AUTH_TOKEN"
	accessTokenCookie   = "jfs-oauth-access-token0"
	accessSecretCookie  = "jfs-oauth-access_token-secret0"
	requestTokenCookies = "jfs-request-token-"
)

// authTokenLife is how long a JAZZ_AUTH_TOKEN lives: "Jazz Authentication token
// expiration" is 6 hours. That it counts from the last use is a guess, for which
// speaks that the cookie comes with every answer.
const authTokenLife = 6 * time.Hour

// jazzRequestToken is an OAuth 1.0a request token. It is good once.
type jazzRequestToken struct {
	context        string
	secret         string // the cookie's value
	user, verifier string // "" before the authorization
	issued         time.Time
	used           bool
}

// requestTokenLife is how long a request token lives (Max-Age in another recording,
// elmclient-20220311-162751.html).
const requestTokenLife = 10 * time.Minute

// jazzGrant is a delegated login.
type jazzGrant struct {
	user string
	used time.Time
}

// delegates reports whether an application delegates its login to the JTS.
func (j *Jazz) delegates(context string) bool { return slices.Contains(j.o.Delegated, context) }

// granted returns who asks a delegating application, "" for nobody.
func (j *Jazz) granted(c *jazzCall) string {
	value := c.value(authTokenCookie)
	g := j.grants[value]
	if g == nil || j.o.Now().Sub(g.used) >= authTokenLife {
		return ""
	}
	g.used = j.o.Now()
	c.setCookie(authTokenCookie + "=" + value + "; Path=/" + c.context + "; HttpOnly")
	return g.user
}

// expired is how DOORS Next deletes a cookie.
func expired(name, context string) string {
	return name + "=; Max-Age=0; Expires=Thu, 01-Jan-1970 00:00:10 GMT; Path=/" + context
}

// oauthChallenge leads to the JTS, in the words of the recording.
func (j *Jazz) oauthChallenge(c *jazzCall) {
	token := randomHex(16)
	j.requests[token] = &jazzRequestToken{context: c.context, secret: secretID(), issued: j.o.Now(), used: j.modes.ReuseState}
	j.modes.ReuseState = false
	c.setCookie(expired(accessTokenCookie, c.context))
	c.setCookie(expired(accessSecretCookie, c.context))
	c.setCookie(requestTokenCookies + token + `="` + j.requests[token].secret + `"; Version=1; Max-Age=600; Path=/` + c.context + "; HttpOnly")
	c.set("WWW-Authenticate", "OAuth realm="+j.URL(j.o.Context)+"/oauth-authorize")
	c.set("X-jazz-web-oauth-url", j.URL(j.o.Context)+"/oauth-authorize?oauth_token="+token)
	c.set("Content-Type", "text/html;charset=UTF-8")
	c.w.WriteHeader(http.StatusUnauthorized)
	c.w.Write([]byte("Error 401: CRJZS0360I The remote authorization server is requesting user authorization to access the remote service provider&#39;s resources.\n"))
}

// oauthAuthorize is the JTS's page where a user lets an application in: without a
// question if an administrator trusts it (an approval that is sent is in an old RDM
// client's OAuthCommunicator.java).
func (j *Jazz) oauthAuthorize(c *jazzCall) {
	token := c.Form.Get("oauth_token")
	t := j.requests[token]
	if t == nil || j.o.Now().Sub(t.issued) >= requestTokenLife {
		c.page(http.StatusUnauthorized, "Error 401", "<p>The token is invalid.</p>") // a guess
		return
	}
	if j.modes.Consent && (c.Method != http.MethodPost || c.PostForm.Get("authorize") != "true") {
		c.page(http.StatusOK, "Authorize", `<form method="post" action="oauth-authorize"><input type="hidden" name="oauth_token" value="`+token+
			`"><button name="authorize" value="true">Allow</button><button name="authorize" value="false">Deny</button></form>`)
		return
	}
	t.user, t.verifier = c.user, randomHex(16)
	j.lead(c, http.StatusFound, j.URL(t.context)+"/oauthCallback?oauth_token="+url.QueryEscape(token)+"&oauth_verifier="+t.verifier)
}

// oauthCallback is where the JTS leads back to the application.
func (j *Jazz) oauthCallback(c *jazzCall) {
	token := c.Form.Get("oauth_token")
	t := j.requests[token]
	switch {
	case t == nil || t.context != c.context || t.verifier == "" || t.verifier != c.Form.Get("oauth_verifier") || c.value(requestTokenCookies+token) != t.secret:
		c.page(http.StatusUnauthorized, "Error 401", "<p>The token is invalid.</p>") // a guess
	case t.used:
		j.counts.StateReused++
		c.page(http.StatusUnauthorized, "Error 401", "<p>The token was used before.</p>") // a guess
	default:
		t.used = true
		value := secretID()
		j.grants[value] = &jazzGrant{user: t.user, used: j.o.Now()}
		for _, line := range []string{authTokenCookie + "=" + value, accessTokenCookie + "=" + secretID(), accessSecretCookie + "=" + secretID()} {
			c.setCookie(line + "; Path=/" + c.context + "; HttpOnly")
		}
		c.setCookie(expired(requestTokenCookies+token, c.context))
		c.page(http.StatusOK, "OAuth", "<p>You may close this window.</p>")
	}
}
