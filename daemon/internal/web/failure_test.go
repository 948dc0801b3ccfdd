package web

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/url"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sessionctl/sessionctl/api"
)

// TestOutage: what everybody has at an origin is an outage of it; a server that is
// there, and does not answer one request, is none.
func TestOutage(t *testing.T) {
	silent := func(c net.Conn) { // until the other end leaves
		defer c.Close()
		for b := make([]byte, 1); ; {
			if _, err := c.Read(b); err != nil {
				return
			}
		}
	}
	for name, c := range map[string]struct {
		url   func(t *testing.T) string
		dial  func(context.Context, string, string) (net.Conn, error)
		code  api.Code
		outed bool
	}{
		"refused": {func(t *testing.T) string {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			return "http://" + l.Addr().String()
		}, nil, api.NetworkError, true},
		"no answer to the connection": {func(*testing.T) string { return "http://app.corp.example" }, func(ctx context.Context, _, _ string) (net.Conn, error) {
			<-ctx.Done()
			return nil, &net.OpError{Op: "dial", Net: "tcp", Err: ctx.Err()}
		}, api.Timeout, true},
		"no name": {func(*testing.T) string { return "http://app.corp.example" }, func(context.Context, string, string) (net.Conn, error) {
			return nil, &net.DNSError{Err: "no such host", IsNotFound: true}
		}, api.DNSError, true},
		"no TLS": {func(t *testing.T) string {
			return "https" + listen(t, func(c net.Conn) { c.Write([]byte("SSH-2.0-x\r\n")); c.Close() }).String()[4:]
		}, nil, api.TLSError, true},
		"slow":                  {func(t *testing.T) string { return listen(t, silent).String() }, nil, api.Timeout, false},
		"closes the connection": {func(t *testing.T) string { return listen(t, func(c net.Conn) { c.Close() }).String() }, nil, api.NetworkError, false},
		"no HTTP": {func(t *testing.T) string {
			return listen(t, func(c net.Conn) { c.Write([]byte("SSH-2.0-x\r\n")); c.Close() }).String()
		}, nil, api.NetworkError, false},
	} {
		t.Run(name, func(t *testing.T) {
			u := at(t, c.url(t))
			x := NewExchange(Options{Base: u, InsecureHTTP: true, Dial: c.dial}, new(Jar))
			defer x.Close()
			limit := time.Minute // never, but of what does not answer
			if c.code == api.Timeout {
				limit = 300 * time.Millisecond
			}
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			_, err := x.Get(ctx, u)
			want(t, err, c.code)
			var out interface{ Outage() string }
			if got := errors.As(err, &out); got != c.outed {
				t.Errorf("an outage: %v; %v", got, err)
			}
			if c.outed && out.Outage() != OriginOf(u).String() {
				t.Errorf("of %q", out.Outage())
			}
		})
	}
}

// TestRetryAfterOf: a date is by the server's own clock, and nothing is for longer
// than an hour.
func TestRetryAfterOf(t *testing.T) {
	const date = "Sat, 01 Jan 2000 00:00:00 GMT"
	for name, c := range map[string]struct {
		status      int
		date, after string
		want        time.Duration // 0: it does not say
	}{
		"seconds":                       {429, "", "120", 2 * time.Minute},
		"seconds of a year":             {429, "", "31536000", time.Hour},
		"more than an int holds":        {429, "", "99999999999999999999", 0},
		"negative":                      {429, "", "-5", 0},
		"none":                          {429, "", "0", 0},
		"a date":                        {503, date, "Sat, 01 Jan 2000 00:20:00 GMT", 20 * time.Minute},
		"a date of next year":           {503, date, "Mon, 01 Jan 2001 00:00:00 GMT", time.Hour},
		"a date in the past":            {503, date, "Fri, 31 Dec 1999 00:00:00 GMT", 0},
		"a date, by a wrong clock":      {503, "Thu, 01 Jan 1970 00:00:00 GMT", "Thu, 01 Jan 1970 00:10:00 GMT", 10 * time.Minute},
		"a date without a clock":        {503, "", "Fri, 01 May 2026 12:05:00 GMT", 5 * time.Minute},
		"a date with a clock in ruins":  {503, "noon", "Fri, 01 May 2026 12:05:00 GMT", 5 * time.Minute},
		"of a status that has no later": {500, date, "120", 0},
		"a word":                        {429, date, "soon", 0},
	} {
		t.Run(name, func(t *testing.T) {
			r := &Response{URL: &url.URL{Scheme: "https", Host: "app.corp.example"}, Status: c.status, received: noon, Header: http.Header{"Retry-After": {c.after}}}
			if c.date != "" {
				r.Header.Set("Date", c.date)
			}
			err := StatusError(r)
			if err == nil {
				t.Fatal("no error")
			}
			if got, ok := RetryAfter(err); got != c.want || ok != (c.want > 0) {
				t.Errorf("%v, %v; want %v", got, ok, c.want)
			}
		})
	}
	if d, ok := RetryAfter(errors.New("something else")); d != 0 || ok {
		t.Errorf("%v, %v", d, ok)
	}
}

// TestReceivedByTheExchangesClock: what a date is compared with, where the server has
// no clock.
func TestReceivedByTheExchangesClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		here, there := net.Pipe()
		u := at(t, "http://app.corp.example/")
		x := NewExchange(Options{Base: u, InsecureHTTP: true, Now: func() time.Time { return noon },
			Dial: func(context.Context, string, string) (net.Conn, error) { return here, nil }}, new(Jar))
		defer x.Close()
		go func() {
			defer there.Close()
			there.Read(make([]byte, 4096))
			there.Write([]byte("HTTP/1.1 503 x\r\nRetry-After: Fri, 01 May 2026 12:05:00 GMT\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"))
		}()
		r, err := x.Get(t.Context(), u)
		if err != nil {
			t.Fatal(err)
		}
		if d, _ := RetryAfter(StatusError(r)); d != 5*time.Minute {
			t.Errorf("%v", d)
		}
	})
}
