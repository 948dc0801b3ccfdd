package web

import (
	"net/url"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/publicsuffix"

	"github.com/sessionctl/sessionctl/daemon/internal/secret"
)

// Limits of RFC 6265bis, section 5.6.
const (
	maxCookieSize      = 4096 // name and value together
	maxAttributeSize   = 1024
	maxCookieLife      = 400 * 24 * time.Hour
	maxCookies         = 200 // of one jar: our own, against a server that never stops
	secureScheme       = "https"
	hostPrefix         = "__host-"
	secureCookiePrefix = "__secure-"
)

// Cookie is one cookie as the server set it, with all its attributes
// (draft-ietf-httpbis-rfc6265bis, section 5.7).
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

// ParseCookie reads one Set-Cookie field value that a response from u carried
// at the time now. It returns nil for what a browser would ignore. The value
// stays byte for byte what the server sent: never unquoted, never re-quoted.
// A cookie whose Expires is not after now is the server's wish to delete one.
func ParseCookie(line string, u *url.URL, now time.Time) *Cookie {
	for i := range len(line) {
		if c := line[i]; c < 0x20 && c != '\t' || c == 0x7f {
			return nil
		}
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
	c := &Cookie{Name: name, Value: secret.New(value), origin: OriginOf(u)}
	host := c.origin.Host
	var domain string
	var maxAge, expires time.Time
	for attrs != "" {
		var a string
		a, attrs, _ = strings.Cut(attrs, ";")
		key, val, _ := strings.Cut(a, "=")
		key, val = strings.ToLower(trimWSP(key)), trimWSP(val)
		if len(val) > maxAttributeSize {
			continue
		}
		switch key {
		case "expires":
			if t, ok := parseCookieDate(val); ok {
				expires = t
			}
		case "max-age":
			if t, ok := maxAgeTime(val, now); ok {
				maxAge = t
			}
		case "domain":
			domain = strings.ToLower(strings.TrimPrefix(val, "."))
		case "path":
			c.Path = val
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

	pathGiven := c.Path
	if c.Path == "" || c.Path[0] != '/' {
		c.Path = defaultPath(u)
	}
	c.Domain, c.HostOnly = host, true
	switch {
	case domain == "", domain == host && isPublicSuffix(domain):
		// A public suffix may set cookies for itself, not for what is below it.
	case isPublicSuffix(domain), !domainMatch(host, domain):
		return nil
	default:
		c.Domain, c.HostOnly = domain, false
	}
	https := c.origin.Scheme == secureScheme
	if c.Secure && !https {
		return nil
	}
	lower := strings.ToLower(name)
	if name == "" {
		lower = strings.ToLower(value) // "=__Host-x=1" must not pass for one
	}
	switch {
	case strings.HasPrefix(lower, secureCookiePrefix):
		if name == "" || !c.Secure {
			return nil
		}
	case strings.HasPrefix(lower, hostPrefix):
		if name == "" || !c.Secure || domain != "" || pathGiven != "/" {
			return nil
		}
	}
	return c
}

// fits reports whether a browser would send the cookie to u, and more: a
// cookie that came over https never goes over http, and a host-only cookie
// keeps to its port, so that two servers on one host do not share sessions.
func (c *Cookie) fits(u *url.URL) bool {
	o := OriginOf(u)
	if c.HostOnly {
		if o.Host != c.Domain || o.Port != c.origin.Port {
			return false
		}
	} else if !domainMatch(o.Host, c.Domain) {
		return false
	}
	if (c.Secure || c.origin.Scheme == secureScheme) && o.Scheme != secureScheme {
		return false
	}
	return pathMatch(requestPath(u), c.Path)
}

// same reports whether c replaces d (RFC 6265bis, section 5.7, step 23), one
// port of a host being apart from another.
func (c *Cookie) same(d *Cookie) bool {
	return c.Name == d.Name && c.Domain == d.Domain && c.Path == d.Path && c.HostOnly == d.HostOnly &&
		(!c.HostOnly || c.origin.Port == d.origin.Port)
}

func trimWSP(s string) string { return strings.Trim(s, " \t") }

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
	if n == 0 {
		return time.Unix(1, 0), true
	}
	return now.Add(time.Duration(n) * time.Second), true
}

// domainMatch is RFC 6265bis, section 5.1.3.
func domainMatch(host, domain string) bool {
	if host == domain {
		return true
	}
	return strings.HasSuffix(host, "."+domain) && !isIP(host)
}

func isIP(host string) bool {
	return strings.Contains(host, ":") || strings.Trim(host, "0123456789.") == ""
}

// isPublicSuffix reports whether a cookie for all of domain would be shared by
// strangers. A name of one label (intranet hosts) counts as one.
func isPublicSuffix(domain string) bool {
	if isIP(domain) {
		return false
	}
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
		day < 1 || day > 31 || year < 1601 || hour > 23 || minute > 59 || second > 59 {
		return time.Time{}, false
	}
	t := time.Date(year, time.Month(month), day, hour, minute, second, 0, time.UTC)
	return t, t.Day() == day // no 31st of June
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
	if !ok || !ok2 || len(a) > 2 || len(b) > 2 || !allDigits(a) || !allDigits(b) {
		return false
	}
	return dateNumber(a, 1, 2, h) && dateNumber(b, 1, 2, m) && dateNumber(c, 1, 2, sec)
}

func allDigits(s string) bool { return s != "" && strings.Trim(s, "0123456789") == "" }

func dateMonth(s string, n *int) bool {
	if len(s) < 3 {
		return false
	}
	i := strings.Index("janfebmaraprmayjunjulaugsepoctnovdec", strings.ToLower(s[:3]))
	if i < 0 || i%3 != 0 {
		return false
	}
	*n = i/3 + 1
	return true
}
