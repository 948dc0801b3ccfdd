package web

import (
	"net/url"
	"slices"
	"strings"
	"time"
)

// SetCookie is one Set-Cookie field as it came: the record from which a jar is
// made again. Line holds the secret.
type SetCookie struct {
	URL  string    `json:"url"`
	Line []byte    `json:"line"` // bytes, because a value need not be UTF-8
	Time time.Time `json:"time"`
}

// Jar holds the cookies of one session. The zero value is empty. It is not
// safe for concurrent use; a published session's jar is never changed again.
type Jar struct {
	entries []jarEntry // in the order of their creation
}

type jarEntry struct {
	cookie *Cookie
	from   SetCookie
}

// Set takes the Set-Cookie lines of a response from u.
func (j *Jar) Set(u *url.URL, lines []string, now time.Time) {
	for _, line := range lines {
		c := ParseCookie(line, u, now)
		if c == nil {
			continue
		}
		j.put(jarEntry{c, SetCookie{URL: u.String(), Line: []byte(line), Time: now}}, now)
	}
}

func (j *Jar) put(e jarEntry, now time.Time) {
	c := e.cookie
	if c.origin.Scheme != secureScheme {
		// http must not overlay what https set (RFC 6265bis, section 5.7, step 16).
		for _, o := range j.entries {
			if d := o.cookie; d.Secure && d.Name == c.Name && (domainMatch(c.Domain, d.Domain) || domainMatch(d.Domain, c.Domain)) && pathMatch(c.Path, d.Path) {
				return
			}
		}
	}
	i := slices.IndexFunc(j.entries, func(o jarEntry) bool { return c.same(o.cookie) })
	dead := !c.Expires.IsZero() && !c.Expires.After(now)
	switch {
	case dead && i >= 0:
		j.entries = slices.Delete(slices.Clone(j.entries), i, i+1)
	case dead:
	case i >= 0: // keeps its place: the creation time of the one it replaces
		j.entries = slices.Clone(j.entries)
		j.entries[i] = e
	default: // the oldest make room
		j.entries = append(slices.Clip(j.entries[max(0, len(j.entries)-maxCookies+1):]), e)
	}
}

// Cookies returns the cookies for a request to u at the time now: longer paths
// first, then older ones first (RFC 6265bis, section 5.8.3).
func (j *Jar) Cookies(u *url.URL, now time.Time) []*Cookie {
	var cs []*Cookie
	for _, e := range j.entries {
		if c := e.cookie; (c.Expires.IsZero() || c.Expires.After(now)) && c.fits(u) {
			cs = append(cs, c)
		}
	}
	slices.SortStableFunc(cs, func(a, b *Cookie) int { return len(b.Path) - len(a.Path) })
	return cs
}

// Header returns the value of the Cookie field for a request to u, "" if
// there is no cookie for it.
func (j *Jar) Header(u *url.URL, now time.Time) string {
	return CookieHeader(j.Cookies(u, now))
}

// CookieHeader joins cookies to the value of a Cookie field, each value as
// the server sent it.
func CookieHeader(cs []*Cookie) string {
	var b strings.Builder
	for i, c := range cs {
		if i > 0 {
			b.WriteString("; ")
		}
		if c.Name != "" {
			b.WriteString(c.Name)
			b.WriteByte('=')
		}
		b.WriteString(c.Value.Reveal())
	}
	return b.String()
}

// Values returns what the cookies hold, to be kept out of messages.
func (j *Jar) Values() []string {
	var values []string
	for _, e := range j.entries {
		values = append(values, e.cookie.Value.Reveal())
	}
	return values
}

// Len returns the number of cookies.
func (j *Jar) Len() int { return len(j.entries) }

// Clone returns a jar that can be changed without changing j.
func (j *Jar) Clone() *Jar { return &Jar{entries: slices.Clip(j.entries)} }

// Equal reports whether both jars came from the same lines.
func (j *Jar) Equal(k *Jar) bool {
	return slices.EqualFunc(j.entries, k.entries, func(a, b jarEntry) bool {
		return a.from.URL == b.from.URL && a.from.Time.Equal(b.from.Time) && string(a.from.Line) == string(b.from.Line)
	})
}

// Lines returns the lines that made the cookies now in the jar, for storing.
func (j *Jar) Lines() []SetCookie {
	lines := make([]SetCookie, len(j.entries))
	for i, e := range j.entries {
		lines[i] = e.from
	}
	return lines
}

// NewJar makes a jar from stored lines.
func NewJar(lines []SetCookie) *Jar {
	j := new(Jar)
	for _, l := range lines {
		if u, err := url.Parse(l.URL); err == nil {
			j.Set(u, []string{string(l.Line)}, l.Time)
		}
	}
	return j
}
