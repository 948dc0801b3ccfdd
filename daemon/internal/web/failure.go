package web

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/sessionctl/sessionctl/api"
)

// Next steps that several failures share.
const (
	askAgain     = "ask again later; if it stays so, ask whoever runs the site"
	checkSite    = "check the site's url and whether the site is up, then ask again"
	checkTLS     = "ask whoever runs the site to mend its certificate, or check the site's url"
	checkProxy   = "check the proxy's url and whether the proxy is up, then ask again"
	askNegotiate = "ask whoever runs the site to enable Kerberos (Negotiate) there"
)

// transportError gives a failed request its code. Its texts are ours, the
// kernel's or fixed ones of crypto/tls: net/http quotes what the server sent,
// which may be a cookie.
func (x *Exchange) transportError(ctx context.Context, u *url.URL, err error) error {
	o := OriginOf(u)
	e := classify(ctx, o.String(), err)
	switch connected := x.connected.Load(); {
	case e.Code == api.DNSError, e.Code == api.TLSError, !connected && (e.Code == api.NetworkError || e.Code == api.Timeout):
		e.Err = &unreachable{o, err}
	}
	return e
}

// unreachable is the cause of a failure that everybody has at an origin: no name, no
// connection, or no TLS.
type unreachable struct {
	origin Origin
	err    error
}

func (e *unreachable) Error() string { return e.err.Error() }
func (e *unreachable) Unwrap() error { return e.err }

// Outage names what is out of reach: an origin, as Origin.String has it.
func (e *unreachable) Outage() string { return e.origin.String() }

// classify is transportError for whoever did not answer.
func classify(ctx context.Context, o string, err error) *api.Error {
	var dns *net.DNSError
	var unknownCA x509.UnknownAuthorityError
	var hostname x509.HostnameError
	var invalid x509.CertificateInvalidError
	var verify *tls.CertificateVerificationError
	var record tls.RecordHeaderError
	var op *net.OpError
	var netErr net.Error
	e := &api.Error{Code: api.TLSError, Remedy: checkTLS, Err: err}
	switch {
	case errors.As(err, &dns) && !dns.IsTimeout:
		e.Code, e.Detail, e.Remedy = api.DNSError, "the host name of "+o+" does not resolve", "check the site's url and this machine's DNS"
	case errors.As(err, &unknownCA):
		e.Detail, e.Remedy = o+" shows a certificate of an unknown authority", "add the authority's certificate to this machine's trust store"
	case errors.As(err, &hostname):
		e.Detail = o + " shows a certificate for another name"
	case errors.As(err, &invalid):
		if invalid.Reason != x509.Expired { // whose detail is two times
			invalid.Detail = "" // names from the certificate
		}
		e.Detail = o + " shows an invalid certificate: " + strings.TrimSuffix(invalid.Error(), ": ")
	case errors.As(err, &verify):
		e.Detail = o + " shows a certificate that cannot be verified"
	case errors.As(err, &record):
		e.Detail, e.Remedy = o+" does not speak TLS", "check scheme and port of the site's url"
	case ctx.Err() != nil, errors.As(err, &netErr) && netErr.Timeout():
		e.Code, e.Detail, e.Remedy = api.Timeout, "no answer from "+o+" in time", checkSite
	case errors.As(err, &op) && (op.Op == "remote error" || op.Op == "local error"): // an alert of crypto/tls
		e.Detail = "no TLS with " + o + ": " + op.Err.Error()
	case strings.HasPrefix(err.Error(), "tls: "):
		e.Detail = "no TLS with " + o + ": the handshake failed"
	default:
		e.Code, e.Detail, e.Remedy = api.NetworkError, "no answer from "+o+": "+cause(err), checkSite
	}
	return e
}

// cause says in fixed words what broke a request.
func cause(err error) string {
	var errno syscall.Errno
	var op *net.OpError
	switch {
	case errors.As(err, &errno):
		return errno.Error()
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), err.Error() == "http: server closed idle connection":
		return "the connection was closed"
	case errors.As(err, &op):
		return "the connection failed"
	case strings.Contains(err.Error(), "server response headers exceeded"):
		return "the head of its answer is too long"
	}
	return "its answer is not HTTP"
}

// StatusError returns the error that a status means wherever it appears, nil
// for those that only a driver can judge.
func StatusError(r *Response) error {
	at := Shown(r.URL)
	switch {
	case r.Status == http.StatusTooManyRequests:
		return r.later(&api.Error{Code: api.RateLimited, Detail: at + " answers 429", Remedy: "ask again later, and less often"})
	case r.Status == http.StatusServiceUnavailable:
		return r.later(&api.Error{Code: api.Maintenance, Detail: at + " answers 503", Remedy: askAgain})
	case r.Status >= 500:
		return &api.Error{Code: api.Server5xx, Detail: at + " answers " + strconv.Itoa(r.Status), Remedy: askAgain}
	}
	return nil
}

// later adds to an error what the server says of when to come again, in seconds or
// as a date (RFC 9110, section 10.2.3). A date is by the server's own clock.
func (r *Response) later(e *api.Error) error {
	var wait time.Duration
	v := r.Header.Get("Retry-After")
	if n, err := strconv.Atoi(v); err == nil {
		wait = time.Duration(min(max(n, 0), int(maxRetryAfter/time.Second))) * time.Second
	} else if t, err := http.ParseTime(v); err == nil {
		now, err := http.ParseTime(r.Header.Get("Date"))
		if err != nil {
			now = r.received
		}
		wait = min(t.Sub(now), maxRetryAfter)
	}
	if wait > 0 {
		e.Detail += ", retry after " + wait.Round(time.Second).String()
		e.Err = &retryAfter{wait}
	}
	return e
}

// maxRetryAfter is the longest time that a server is believed to mean.
const maxRetryAfter = time.Hour

// retryAfter is the cause of an error that says when to come again.
type retryAfter struct{ wait time.Duration }

func (e *retryAfter) Error() string { return "retry after " + e.wait.String() }

// RetryAfter returns how long the server that an error is from wants to be left
// alone, an hour at most, if it says so.
func RetryAfter(err error) (time.Duration, bool) {
	var r *retryAfter
	if errors.As(err, &r) {
		return r.wait, true
	}
	return 0, false
}

// Shown returns the response's URL as it may stand in a message.
func (r *Response) Shown() string { return Shown(r.URL) }
