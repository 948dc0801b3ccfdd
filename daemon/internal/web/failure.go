package web

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/sessionctl/sessionctl/api"
)

// transportError gives a failed request its code.
func transportError(ctx context.Context, u *url.URL, err error) error {
	o := OriginOf(u).String()
	var dns *net.DNSError
	var unknownCA x509.UnknownAuthorityError
	var hostname x509.HostnameError
	var invalid x509.CertificateInvalidError
	var verify *tls.CertificateVerificationError
	var record tls.RecordHeaderError
	var alert tls.AlertError
	var netErr net.Error
	e := &api.Error{Err: err}
	switch {
	case errors.As(err, &dns) && !dns.IsTimeout:
		e.Code, e.Detail, e.Remedy = api.DNSError, "the host name of "+o+" does not resolve", "check the site's url and this machine's DNS"
	case errors.As(err, &unknownCA):
		e.Code, e.Detail, e.Remedy = api.TLSError, o+" shows a certificate of an unknown authority", "add the authority's certificate to this machine's trust store"
	case errors.As(err, &hostname):
		e.Code, e.Detail = api.TLSError, o+" shows a certificate for another name"
	case errors.As(err, &invalid):
		e.Code, e.Detail = api.TLSError, o+" shows an invalid certificate: "+invalid.Error()
	case errors.As(err, &verify), errors.As(err, &alert):
		e.Code, e.Detail = api.TLSError, "no TLS with "+o+": "+err.Error()
	case errors.As(err, &record), strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"):
		e.Code, e.Detail, e.Remedy = api.TLSError, o+" does not speak TLS", "check scheme and port of the site's url"
	case ctx.Err() != nil, errors.As(err, &netErr) && netErr.Timeout():
		e.Code, e.Detail = api.Timeout, "no answer from "+o+" in time"
	default:
		e.Code, e.Detail = api.NetworkError, "no answer from "+o+": "+rootCause(err)
	}
	return e
}

// rootCause is the innermost text of a network error: "connection refused"
// rather than the whole chain with addresses.
func rootCause(err error) string {
	for {
		next := errors.Unwrap(err)
		if next == nil {
			return err.Error()
		}
		err = next
	}
}

// StatusError returns the error that a status means wherever it appears, nil
// for those that only a driver can judge.
func StatusError(r *Response) error {
	at := shown(r.URL)
	switch {
	case r.Status == http.StatusTooManyRequests:
		e := &api.Error{Code: api.RateLimited, Detail: at + " answers 429"}
		if s := retryAfter(r); s != "" {
			e.Detail += ", retry after " + s
		}
		return e
	case r.Status == http.StatusServiceUnavailable:
		return &api.Error{Code: api.Maintenance, Detail: at + " answers 503"}
	case r.Status >= 500:
		return &api.Error{Code: api.Server5xx, Detail: at + " answers " + strconv.Itoa(r.Status)}
	}
	return nil
}

func retryAfter(r *Response) string {
	v := r.Header.Get("Retry-After")
	if n, err := strconv.Atoi(v); err == nil && n >= 0 && n < 1<<20 {
		return (time.Duration(n) * time.Second).String()
	}
	if t, err := http.ParseTime(v); err == nil {
		return t.UTC().Format(time.RFC3339)
	}
	return ""
}

// Refused returns why a chain ended with 401.
func (r *Response) Refused() error {
	if r.refusal != nil {
		return r.refusal
	}
	at := shown(r.URL)
	if FindChallenge(r.Challenges, negotiateScheme) != nil {
		return &api.Error{Code: api.NegotiateRejected, Detail: at + " still asks for Negotiate after two tokens"}
	}
	var schemes []string
	for _, c := range r.Challenges {
		schemes = append(schemes, c.Scheme)
	}
	switch {
	case len(schemes) == 0:
		return &api.Error{Code: api.NoChallenge, Detail: at + " answers 401 without a challenge",
			Remedy: "check login_url and user_agent: some gates ask only certain agents"}
	case len(schemes) == 1 && schemes[0] == "ntlm":
		return &api.Error{Code: api.NTLMOnly, Detail: at + " offers only NTLM", Remedy: "ask for Kerberos (Negotiate) to be enabled there"}
	}
	return &api.Error{Code: api.ChallengeUnsupported, Detail: at + " offers only " + strings.Join(schemes, ", ")}
}

// Shown returns the response's URL as it may stand in a message.
func (r *Response) Shown() string { return shown(r.URL) }
