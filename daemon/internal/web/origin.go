package web

import (
	"errors"
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

// String returns the origin as it stands in a URL. Bytes that no host name has
// are shown as "?".
func (o Origin) String() string {
	o.Host = strings.Map(func(r rune) rune {
		if strings.ContainsRune(hostBytes, r) {
			return r
		}
		return '?'
	}, o.Host)
	if o.Scheme == secureScheme && o.Port == "443" || o.Scheme == "http" && o.Port == "80" {
		if strings.Contains(o.Host, ":") {
			return o.Scheme + "://[" + o.Host + "]"
		}
		return o.Scheme + "://" + o.Host
	}
	return o.Scheme + "://" + net.JoinHostPort(o.Host, o.Port)
}

var errNotOrigin = errors.New("not HOST, HOST:PORT or https://HOST:PORT")

// hostBytes are what host names, IPv4 and IPv6 addresses are made of.
const hostBytes = "abcdefghijklmnopqrstuvwxyz0123456789.:_-"

// ParseOrigin reads an entry of login_hosts: HOST, HOST:PORT or a URL without
// path. Without a scheme https is meant. The error does not quote s, which may
// hold a password.
func ParseOrigin(s string) (Origin, error) {
	full := s
	if !strings.Contains(s, "://") {
		full = secureScheme + "://" + s
	}
	u, err := url.Parse(full)
	if err != nil || u.Hostname() == "" || u.Scheme != "http" && u.Scheme != secureScheme ||
		u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" {
		return Origin{}, errNotOrigin
	}
	o := OriginOf(u)
	if strings.Trim(o.Host, hostBytes) != "" {
		return Origin{}, errNotOrigin
	}
	return o, nil
}

func canonicalHost(h string) string {
	h = strings.TrimSuffix(strings.ToLower(h), ".")
	if a, err := idna.Lookup.ToASCII(h); err == nil {
		return a
	}
	return h
}
