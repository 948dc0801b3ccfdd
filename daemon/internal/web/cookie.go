package web

import (
	"cmp"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode"

	"golang.org/x/net/publicsuffix"

	"github.com/sessionctl/sessionctl/daemon/internal/secret"
)

// Limits of RFC 6265bis, sections 5.5 and 5.6.
const (
	maxCookieSize    = 4096 // name and value together
	maxAttributeSize = 1024
	maxCookieLife    = 400 * 24 * time.Hour
)

const secureScheme = "https"

// Cookie is one cookie as the server set it, with all its attributes
// (draft-ietf-httpbis-rfc6265bis-22, section 5.7: "RFC 6265bis" from here on).
type Cookie struct {
	Name     string
	Value    secret.String
	Domain   string // lower case, no leading dot
	Path     string
	HostOnly bool
	Secure   bool
	HTTPOnly bool
	SameSite string    // as sent, "" if absent
	Expires  time.Time // zero: with the session

	origin Origin // where it came from
}

// Origin returns whose response set the cookie.
func (c *Cookie) Origin() Origin { return c.origin }

// ParseCookie reads one Set-Cookie field value that a response from u carried
// at the time now. It returns nil for what a browser would ignore. The value
// stays byte for byte what the server sent: never unquoted, never re-quoted.
// A cookie whose Expires is not after now is the server's wish to delete one.
func ParseCookie(line string, u *url.URL, now time.Time) *Cookie {
	if strings.ContainsFunc(line, isControl) {
		return nil
	}
	pair, attrs, _ := strings.Cut(line, ";")
	name, value, ok := strings.Cut(pair, "=")
	if !ok {
		name, value = "", pair
	}
	name, value = trimWSP(name), trimWSP(value)
	if name == "" && value == "" || len(name)+len(value) > maxCookieSize {
		return nil
	}
	c := &Cookie{Name: name, Value: secret.New(value), HostOnly: true, origin: OriginOf(u)}
	c.Domain = c.origin.Host
	var domain, path string
	var maxAge, expires time.Time
	for attrs != "" {
		var a string
		a, attrs, _ = strings.Cut(attrs, ";")
		key, val, _ := strings.Cut(a, "=")
		val = trimWSP(val)
		if len(val) > maxAttributeSize {
			continue
		}
		switch lower(trimWSP(key)) {
		case "expires":
			if t, ok := parseCookieDate(val); ok {
				expires = t
			}
		case "max-age":
			if t, ok := maxAgeTime(val, now); ok {
				maxAge = t
			}
		case "domain":
			domain = lower(strings.TrimPrefix(val, "."))
		case "path":
			path = val
		case "secure":
			c.Secure = true
		case "httponly":
			c.HTTPOnly = true
		case "samesite":
			c.SameSite = val
		}
	}
	if c.Expires = maxAge; maxAge.IsZero() {
		c.Expires = expires
	}
	if limit := now.Add(maxCookieLife); c.Expires.After(limit) {
		c.Expires = limit
	}
	if c.Path = path; !strings.HasPrefix(path, "/") {
		c.Path = defaultPath(u)
	}
	switch {
	case domain == "":
	case isIP(c.Domain) && strings.Trim(domain, "[]") == c.Domain, domain == c.Domain && isPublicSuffix(domain):
		// An address, or a public suffix, may set cookies for itself alone.
	case strings.ContainsFunc(domain, notASCII), isPublicSuffix(domain), !domainMatch(c.Domain, domain):
		return nil
	default:
		c.Domain, c.HostOnly = domain, false
	}
	if c.Secure && c.origin.Scheme != secureScheme || !c.Secure && lower(c.SameSite) == "none" || !c.keepsPrefix(path) {
		return nil
	}
	return c
}

// keepsPrefix reports whether the cookie is all that its name's prefix promises
// (RFC 6265bis, section 5.7, steps 20 to 22; for HttpOnly
// draft-ietf-httpbis-layered-cookies, "Store a Cookie"). Path is the attribute.
func (c *Cookie) keepsPrefix(path string) bool {
	// Without a name the value is all of the pair, and must not pass for a prefix.
	prefix := lower(cmp.Or(c.Name, c.Value.Reveal()))
	host := strings.HasPrefix(prefix, hostPrefix)
	http := strings.HasPrefix(prefix, "__http-") || strings.HasPrefix(prefix, hostPrefix+"http-")
	if !host && !http && !strings.HasPrefix(prefix, "__secure-") {
		return true
	}
	return c.Name != "" && c.Secure && (!host || c.HostOnly && path == "/") && (!http || c.HTTPOnly)
}

const hostPrefix = "__host-"

// alive reports whether the cookie has not expired.
func (c *Cookie) alive(now time.Time) bool { return c.Expires.IsZero() || c.Expires.After(now) }

// safe reports whether the cookie must never go over http: Secure, or come over
// https, which is more than RFC 6265bis asks for.
func (c *Cookie) safe() bool { return c.Secure || c.origin.Scheme == secureScheme }

// fits reports whether a browser would send the cookie to u, and more: a
// cookie that came over https never goes over http, and a host-only cookie
// keeps to its port, so that two servers on one host do not share sessions.
// A cookie with a Domain is meant for other servers: it goes to every port.
func (c *Cookie) fits(u *url.URL) bool {
	o := OriginOf(u)
	if c.HostOnly {
		if o.Host != c.Domain || o.Port != c.origin.Port {
			return false
		}
	} else if !domainMatch(o.Host, c.Domain) {
		return false
	}
	return (!c.safe() || o.Scheme == secureScheme) && pathMatch(requestPath(u), c.Path)
}

// reach is where a cookie goes: all hosts of a domain, or one port of one host.
type reach struct{ domain, port string }

func (c *Cookie) reach() reach {
	if c.HostOnly {
		return reach{c.Domain, c.origin.Port}
	}
	return reach{c.Domain, ""}
}

// same reports whether c replaces d (RFC 6265bis, section 5.7, step 23).
func (c *Cookie) same(d *Cookie) bool {
	return c.Name == d.Name && c.Path == d.Path && c.reach() == d.reach()
}

// overlays reports whether c came over http and would stand for, or beside, what
// came over https (RFC 6265bis, section 5.7, step 16).
func (c *Cookie) overlays(d *Cookie) bool {
	return c.origin.Scheme != secureScheme && d.safe() && c.Name == d.Name &&
		(domainMatch(c.Domain, d.Domain) || domainMatch(d.Domain, c.Domain)) && pathMatch(c.Path, d.Path)
}

// isControl: what may stand nowhere in a Set-Cookie field (RFC 6265bis, section
// 5.6, step 1).
func isControl(r rune) bool { return r < 0x20 && r != '\t' || r == 0x7f }

func notASCII(r rune) bool { return r > unicode.MaxASCII }

func trimWSP(s string) string { return strings.Trim(s, " \t") }

// lower leaves letters beyond ASCII alone, some of which strings.ToLower would
// make an "i" or a "k".
func lower(s string) string {
	return strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			r += 'a' - 'A'
		}
		return r
	}, s)
}

// maxAgeTime reads a Max-Age value (section 5.6.2).
func maxAgeTime(v string, now time.Time) (time.Time, bool) {
	digits := strings.TrimPrefix(v, "-")
	if digits == "" || strings.Trim(digits, "0123456789") != "" {
		return time.Time{}, false
	}
	if v[0] == '-' {
		return time.Unix(1, 0), true
	}
	n, err := strconv.ParseInt(v, 10, 64)
	if err != nil || n > int64(maxCookieLife/time.Second) {
		n = int64(maxCookieLife / time.Second)
	}
	return now.Add(time.Duration(n) * time.Second), true // 0 is over now
}

// domainMatch is RFC 6265bis, section 5.1.3.
func domainMatch(host, domain string) bool {
	return host == domain || strings.HasSuffix(host, "."+domain) && !isIP(host)
}

// isIP reports whether a host is an IP address: no name ends in a number.
func isIP(host string) bool {
	return strings.Contains(host, ":") || allDigits(host[strings.LastIndexByte(host, '.')+1:])
}

// isPublicSuffix reports whether a cookie for all of domain would be shared by
// strangers. A name of one label (intranet hosts) counts as one.
func isPublicSuffix(domain string) bool {
	suffix, _ := publicsuffix.PublicSuffix(domain)
	return suffix == domain
}

func requestPath(u *url.URL) string {
	if p := u.EscapedPath(); p != "" && p[0] == '/' {
		return p
	}
	return "/"
}

// defaultPath is RFC 6265bis, section 5.1.4.
func defaultPath(u *url.URL) string {
	p := requestPath(u)
	if i := strings.LastIndexByte(p, '/'); i > 0 {
		return p[:i]
	}
	return "/"
}

// pathMatch is RFC 6265bis, section 5.1.4.
func pathMatch(request, path string) bool {
	rest, ok := strings.CutPrefix(request, path)
	return ok && (rest == "" || path[len(path)-1] == '/' || rest[0] == '/')
}

// parseCookieDate is RFC 6265bis, section 5.1.1.
func parseCookieDate(s string) (time.Time, bool) {
	var hour, minute, second, day, month, year int
	var haveTime, haveDay, haveMonth, haveYear bool
	for _, t := range strings.FieldsFunc(s, isDateDelimiter) {
		switch {
		case !haveTime && dateTime(t, &hour, &minute, &second):
			haveTime = true
		case !haveDay && dateNumber(t, 1, 2, &day):
			haveDay = true
		case !haveMonth && dateMonth(t, &month):
			haveMonth = true
		case !haveYear && dateNumber(t, 2, 4, &year):
			haveYear = true
		}
	}
	switch {
	case 70 <= year && year <= 99:
		year += 1900
	case 0 <= year && year <= 69:
		year += 2000
	}
	if !haveTime || !haveDay || !haveMonth || !haveYear ||
		year < 1601 || hour > 23 || minute > 59 || second > 59 {
		return time.Time{}, false
	}
	t := time.Date(year, time.Month(month), day, hour, minute, second, 0, time.UTC)
	return t, t.Day() == day // no 31st of June, nor a 32nd
}

func isDateDelimiter(r rune) bool {
	return r == '\t' || 0x20 <= r && r <= 0x2f || 0x3b <= r && r <= 0x40 || 0x5b <= r && r <= 0x60 || 0x7b <= r && r <= 0x7e
}

// dateNumber reads min to max digits that no further digit follows.
func dateNumber(s string, least, most int, n *int) bool {
	i, v := 0, 0
	for i < len(s) && '0' <= s[i] && s[i] <= '9' {
		if i++; i > most {
			return false
		}
		v = v*10 + int(s[i-1]-'0')
	}
	if i < least {
		return false
	}
	*n = v
	return true
}

func dateTime(s string, h, m, sec *int) bool {
	a, rest, ok := strings.Cut(s, ":")
	b, c, ok2 := strings.Cut(rest, ":")
	if !ok || !ok2 || !allDigits(a) || !allDigits(b) {
		return false
	}
	return dateNumber(a, 1, 2, h) && dateNumber(b, 1, 2, m) && dateNumber(c, 1, 2, sec)
}

func allDigits(s string) bool { return s != "" && strings.Trim(s, "0123456789") == "" }

func dateMonth(s string, n *int) bool {
	if len(s) < 3 {
		return false
	}
	i := strings.Index("janfebmaraprmayjunjulaugsepoctnovdec", lower(s[:3]))
	if i < 0 || i%3 != 0 {
		return false
	}
	*n = i/3 + 1
	return true
}
