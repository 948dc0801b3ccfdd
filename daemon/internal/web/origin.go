package web

import (
	"fmt"
	"net"
	"net/url"
	"strings"

	"golang.org/x/net/idna"
)

// Origin is scheme, host and port (RFC 6454): the unit that credentials are
// meant for.
type Origin struct {
	Scheme string // "http" or "https"
	Host   string // lower case, A-labels, no brackets, no trailing dot
	Port   string // never empty
}

// OriginOf returns the origin of an absolute http or https URL.
func OriginOf(u *url.URL) Origin {
	o := Origin{Scheme: strings.ToLower(u.Scheme), Host: canonicalHost(u.Hostname()), Port: u.Port()}
	if o.Port == "" {
		o.Port = "80"
		if o.Scheme == secureScheme {
			o.Port = "443"
		}
	}
	return o
}

// String returns the origin as it stands in a URL.
func (o Origin) String() string {
	if o.Scheme == secureScheme && o.Port == "443" || o.Scheme == "http" && o.Port == "80" {
		if strings.Contains(o.Host, ":") {
			return o.Scheme + "://[" + o.Host + "]"
		}
		return o.Scheme + "://" + o.Host
	}
	return o.Scheme + "://" + net.JoinHostPort(o.Host, o.Port)
}

// ParseOrigin reads an entry of login_hosts: HOST, HOST:PORT or a URL without
// path. Without a scheme https is meant.
func ParseOrigin(s string) (Origin, error) {
	full := s
	if !strings.Contains(s, "://") {
		full = secureScheme + "://" + s
	}
	u, err := url.Parse(full)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != secureScheme ||
		u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" {
		return Origin{}, fmt.Errorf("%q is not HOST, HOST:PORT or https://HOST:PORT", s)
	}
	return OriginOf(u), nil
}

func canonicalHost(h string) string {
	h = strings.TrimSuffix(strings.ToLower(h), ".")
	if a, err := idna.Lookup.ToASCII(h); err == nil {
		return a
	}
	return h
}
