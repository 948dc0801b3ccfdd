package web

import (
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"net/url"

	"github.com/sessionctl/sessionctl/api"
)

// BindingPolicy says whether Negotiate tokens are bound to the TLS connection
// that carries them (RFC 5056), by its end point (RFC 5929, section 4): a token
// that somebody in the middle passes on to the site is then worth nothing.
type BindingPolicy string

// The policies, as a configuration writes them. "" is BindingsAuto.
const (
	// BindingsAuto binds wherever there is TLS and a certificate whose hash is
	// defined.
	BindingsAuto BindingPolicy = "auto"
	// BindingsOff binds nothing, for sites behind a front that ends TLS.
	BindingsOff BindingPolicy = "off"
	// BindingsRequired sends no token that is not bound.
	BindingsRequired BindingPolicy = "required"
)

// Valid reports whether there is such a policy.
func (p BindingPolicy) Valid() bool {
	switch p {
	case "", BindingsAuto, BindingsOff, BindingsRequired:
		return true
	}
	return false
}

// bindings returns what binds a token for u to a connection that shows a
// certificate, nil without TLS; nil if nothing is to.
func (p BindingPolicy) bindings(u *url.URL, c *x509.Certificate) ([]byte, error) {
	if p == BindingsOff {
		return nil, nil
	}
	if b := endPoint(c); b != nil || p != BindingsRequired {
		return b, nil
	}
	e := &api.Error{Code: api.BadChannelBinding, Detail: Shown(u) + " asks for a token without TLS, to which nothing can be bound",
		Remedy: `use https, or set channel_bindings = "auto"`}
	if c != nil {
		e.Detail = "the certificate of " + OriginOf(u).String() + " is signed with an algorithm for which channel bindings are not defined"
		e.Remedy = `ask whoever runs the site for a certificate signed with RSA or ECDSA and SHA-2, or set channel_bindings = "auto"`
	}
	return nil, e
}

// endPoint returns the tls-server-end-point bindings of a certificate, nil if
// RFC 5929, section 4.1, leaves them undefined: for signatures without a hash
// of their own, such as Ed25519, and for those that crypto/x509 does not know.
func endPoint(c *x509.Certificate) []byte {
	if c == nil {
		return nil
	}
	const prefix = "tls-server-end-point:"
	switch c.SignatureAlgorithm {
	case x509.MD5WithRSA, x509.SHA1WithRSA, x509.DSAWithSHA1, x509.ECDSAWithSHA1, // too weak: the RFC takes SHA-256
		x509.SHA256WithRSA, x509.SHA256WithRSAPSS, x509.DSAWithSHA256, x509.ECDSAWithSHA256:
		sum := sha256.Sum256(c.Raw)
		return append([]byte(prefix), sum[:]...)
	case x509.SHA384WithRSA, x509.SHA384WithRSAPSS, x509.ECDSAWithSHA384:
		sum := sha512.Sum384(c.Raw)
		return append([]byte(prefix), sum[:]...)
	case x509.SHA512WithRSA, x509.SHA512WithRSAPSS, x509.ECDSAWithSHA512:
		sum := sha512.Sum512(c.Raw)
		return append([]byte(prefix), sum[:]...)
	}
	return nil
}
