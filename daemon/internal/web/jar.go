package web

import (
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/sessionctl/sessionctl/daemon/internal/secret"
)

// SetCookie is one Set-Cookie field as it came: the record from which a jar is
// made again. Line holds the secret.
type SetCookie struct {
	URL  string    `json:"url"`  // without its query
	Line []byte    `json:"line"` // bytes, because a value need not be UTF-8
	Time time.Time `json:"time"`
}

// Jar holds what one session sends: cookies, or an Authorization field in their
// place. A site that gets both may believe the wrong one. The zero value is empty. It
// is not safe for concurrent use; a published session's jar is never changed again.
type Jar struct {
	entries       []jarEntry // in the order of their creation
	authorization secret.String
}

type jarEntry struct {
	cookie *Cookie
	from   SetCookie
}

func (e jarEntry) size() int { return len(e.from.URL) + len(e.from.Line) }

// Limits of a jar. RFC 6265bis, section 5.7, leaves them open, and its
// predecessor asks for 50 cookies in a domain of 4096 bytes each, and 3000 in all.
// Browsers keep up to 180 in a domain, and what one of them shows can be adopted. A
// jar is one session at one site, not all that a user has in the Web: of domains
// it has a few. Less is no use: which cookie is one too many for its own limits,
// often 8 or 16 KiB a request, only the server knows.
const (
	maxCookies   = 400
	maxOfDomain  = 180
	maxJarSize   = 256 << 10 // bytes of lines and URLs
	maxEntrySize = 16 << 10
	maxLines     = 1000 // of one response, the last ones
)

// Set takes the Set-Cookie lines of a response from u. It puts out what has
// expired.
func (j *Jar) Set(u *url.URL, lines []string, now time.Time) {
	if len(lines) == 0 || !j.authorization.Empty() {
		return
	}
	j.entries = slices.DeleteFunc(slices.Clone(j.entries), func(e jarEntry) bool { return !e.cookie.alive(now) })
	// The query may hold secrets of a login, and has no part in a cookie's scope.
	from := (&url.URL{Scheme: u.Scheme, Host: u.Host}).String() + requestPath(u)
	for _, line := range lines[max(0, len(lines)-maxLines):] {
		c := ParseCookie(line, u, now)
		e := jarEntry{c, SetCookie{URL: from, Line: []byte(line), Time: now}}
		switch {
		case c == nil || e.size() > maxEntrySize || slices.ContainsFunc(j.entries, func(o jarEntry) bool { return c.overlays(o.cookie) }):
		case c.alive(now):
			j.put(e)
		default:
			j.entries = slices.DeleteFunc(j.entries, func(o jarEntry) bool { return c.same(o.cookie) })
		}
	}
}

// put adds an entry to entries that nobody else has. If it replaces one, it takes
// its place, which is the time of creation.
func (j *Jar) put(e jarEntry) {
	i := slices.IndexFunc(j.entries, func(o jarEntry) bool { return e.cookie.same(o.cookie) })
	if i < 0 {
		i = len(j.entries)
		j.entries = append(j.entries, e)
	}
	j.entries[i] = e
	for v := j.excess(i); v >= 0; v = j.excess(i) {
		j.entries = slices.Delete(j.entries, v, v+1)
		if v < i {
			i--
		}
	}
}

// excess returns which cookie makes room, -1 if none has to: never the newest,
// but one of where there are most, so that what one server sends without end
// costs no other's session; there first what is not Secure, then what was set
// longest ago (RFC 6265bis, section 5.7, but that a jar does not know when it was
// read).
func (j *Jar) excess(newest int) int {
	where := j.entries[newest].cookie.reach()
	size, beside := 0, 0
	for _, e := range j.entries {
		size += e.size()
		if e.cookie.reach() == where {
			beside++
		}
	}
	tooMany := len(j.entries) > maxCookies || beside > maxOfDomain
	if !tooMany && size <= maxJarSize {
		return -1
	}
	load := make(map[reach]int)
	for _, e := range j.entries {
		if tooMany {
			load[e.cookie.reach()]++
		} else {
			load[e.cookie.reach()] += e.size()
		}
	}
	first := -1
	for i, e := range j.entries {
		if i != newest && (first < 0 || before(e, j.entries[first], load)) {
			first = i
		}
	}
	return first
}

// before reports whether a makes room before b does.
func before(a, b jarEntry, load map[reach]int) bool {
	if x, y := load[a.cookie.reach()], load[b.cookie.reach()]; x != y {
		return x > y
	}
	if a.cookie.Secure != b.cookie.Secure {
		return b.cookie.Secure
	}
	return a.from.Time.Before(b.from.Time)
}

// Cookies returns the cookies for a request to u at the time now: longer paths
// first, then older ones first (RFC 6265bis, section 5.8.3).
func (j *Jar) Cookies(u *url.URL, now time.Time) []*Cookie {
	var cs []*Cookie
	for _, e := range j.entries {
		if c := e.cookie; c.alive(now) && c.fits(u) {
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
func CookieHeader(cs []*Cookie) string { return string(CookieField(cs)) }

// CookieField is CookieHeader in bytes that the caller can clear; there is no other
// copy of them.
func CookieField(cs []*Cookie) []byte {
	size := 0
	for _, c := range cs {
		size += len("; ") + len(c.Name) + len("=") + len(c.Value.Reveal())
	}
	b := make([]byte, 0, size)
	for i, c := range cs {
		if i > 0 {
			b = append(b, "; "...)
		}
		if c.Name != "" {
			b = append(b, c.Name...)
			b = append(b, '=')
		}
		b = append(b, c.Value.Reveal()...)
	}
	return b
}

// Authorize drops the cookies for the value of an Authorization field, such as
// "Bearer …" (RFC 6750, section 2.1). From now on the jar takes no cookies.
func (j *Jar) Authorize(value secret.String) { *j = Jar{authorization: value} }

// Authorization returns the value of the Authorization field, empty if there is
// none.
func (j *Jar) Authorization() secret.String { return j.authorization }

// Named returns the cookies of a name.
func (j *Jar) Named(name string) *Jar {
	return j.Filter(func(c *Cookie) bool { return c.Name == name })
}

// Filter returns the cookies that keep wants.
func (j *Jar) Filter(keep func(*Cookie) bool) *Jar {
	k := new(Jar)
	for _, e := range j.entries {
		if keep(e.cookie) {
			k.entries = append(k.entries, e)
		}
	}
	return k
}

// Add puts the cookies of another jar into this one.
func (j *Jar) Add(other *Jar) {
	j.entries = slices.Clone(j.entries)
	for _, e := range other.entries {
		j.put(e)
	}
}

// Values returns what is secret, to be kept out of messages.
func (j *Jar) Values() []string {
	var values []string
	if _, token, _ := strings.Cut(j.authorization.Reveal(), " "); token != "" {
		values = append(values, token)
	}
	for _, e := range j.entries {
		values = append(values, e.cookie.Value.Reveal())
	}
	return values
}

// Len returns the number of cookies.
func (j *Jar) Len() int { return len(j.entries) }

// Clone returns a jar that can be changed without changing j.
func (j *Jar) Clone() *Jar { return &Jar{slices.Clip(j.entries), j.authorization} }

// Equal reports whether both jars came from the same lines.
func (j *Jar) Equal(k *Jar) bool {
	return j.authorization.Reveal() == k.authorization.Reveal() && slices.EqualFunc(j.entries, k.entries, func(a, b jarEntry) bool {
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

// NewJar makes a jar from stored lines. What they did to one another is done.
func NewJar(lines []SetCookie) *Jar {
	j := new(Jar)
	for _, l := range lines {
		if u, err := url.Parse(l.URL); err == nil {
			if c := ParseCookie(string(l.Line), u, l.Time); c != nil {
				j.put(jarEntry{c, l})
			}
		}
	}
	return j
}
