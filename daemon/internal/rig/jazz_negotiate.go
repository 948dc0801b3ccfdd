package rig

import (
	"bytes"
	"encoding/base64"
	"net/http"
	"strings"
)

// negotiate logs in by a Negotiate token as Liberty does (Open Liberty,
// SpnegoAuthenticator.java). false: it has answered; "": it goes on to the form.
func (j *Jazz) negotiate(c *jazzCall, a *Acceptor) (user string, ok bool) {
	scheme, token, _ := strings.Cut(c.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Negotiate") {
		c.set("WWW-Authenticate", "Negotiate")
		c.page(http.StatusUnauthorized, "SPNEGO authentication is not supported on this client", "")
		return "", false
	}
	j.counts.Tokens++
	b, err := base64.StdEncoding.DecodeString(token)
	if bytes.HasPrefix(b, []byte("NTLMSSP\x00")) {
		j.counts.Failures++
		c.page(http.StatusUnauthorized, "An NTLM Token was received", "")
		return "", false
	}
	if err == nil {
		principal, reply, aerr := a.Accept(b)
		if err = aerr; err == nil {
			user, _, _ = strings.Cut(principal, "@")
			if _, known := j.users[user]; known {
				j.counts.Logins++
				c.set("WWW-Authenticate", "Negotiate "+base64.StdEncoding.EncodeToString(reply))
				return user, true
			}
		}
	}
	j.counts.Failures++
	if j.o.FailOver {
		return "", true
	}
	// Whether this is 401 or 403 is not certain; that there is no challenge is a guess.
	c.page(http.StatusForbidden, "Error 403", "<p>Authentication failed.</p>")
	return "", false
}
