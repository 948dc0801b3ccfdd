package rig

import (
	"bytes"
	"encoding/base64"
	"net/http"
	"strings"
)

// The object identifiers of SPNEGO (RFC 4178) and of Kerberos (RFC 4121), one of which
// a token begins with after its length (RFC 2743, 3.1).
var (
	spnegoID   = []byte{0x06, 0x06, 0x2b, 0x06, 0x01, 0x05, 0x05, 0x02}
	kerberosID = []byte{0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x12, 0x01, 0x02, 0x02}
)

// isInitialToken reports whether b is the first token of SPNEGO or Kerberos.
func isInitialToken(b []byte) bool {
	head := b[:min(len(b), 20)]
	return len(b) > 0 && b[0] == 0x60 && (bytes.Contains(head, spnegoID) || bytes.Contains(head, kerberosID))
}

// negotiate logs in by a Negotiate token as Liberty does (Open Liberty:
// SpnegoService.java, SpnegoAuthenticator.java and Krb5Util.java; a failure is
// DenyReply.java's 403). false: it has answered; "": it goes on to the form.
func (j *Jazz) negotiate(c *jazzCall, a *Acceptor) (user string, ok bool) {
	authorization := c.Header.Get("Authorization")
	if authorization == "" {
		c.set("WWW-Authenticate", "Negotiate")
		c.page(http.StatusUnauthorized, "SPNEGO authentication is not supported.", "")
		return "", false
	}
	scheme, token, _ := strings.Cut(authorization, " ")
	if strings.EqualFold(scheme, "Negotiate") {
		j.counts.Tokens++
	}
	b, _ := base64.StdEncoding.DecodeString(token) // what is no base64 is no token
	if !isInitialToken(b) {
		// Also a password by Basic comes to this, and gets the page about NTLM.
		return j.refuse(c, http.StatusUnauthorized, "An NTLM Token was received.")
	}
	principal, reply, err := a.Accept(b)
	if err != nil {
		return j.refuse(c, http.StatusForbidden, "Error 403: AuthenticationFailed")
	}
	c.set("WWW-Authenticate", "Negotiate "+base64.StdEncoding.EncodeToString(reply))
	user, _, _ = strings.Cut(principal, "@")
	if _, known := j.users[user]; !known {
		return j.refuse(c, http.StatusForbidden, "Error 403: AuthenticationFailed") // a guess
	}
	j.counts.Logins++
	return user, true
}

// refuse answers a bad token, without another challenge, or goes on to the form.
func (j *Jazz) refuse(c *jazzCall, status int, title string) (user string, ok bool) {
	j.counts.Failures++
	if j.o.FailOver {
		return "", true
	}
	c.page(status, title, "")
	return "", false
}
