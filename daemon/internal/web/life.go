package web

import (
	"net/url"
	"slices"
	"time"
)

// Living returns how many cookies still live at a time. An Authorization field
// counts as one: nothing says when it ends.
func (j *Jar) Living(now time.Time) int {
	n := 0
	if !j.authorization.Empty() {
		n++
	}
	for _, e := range j.entries {
		if c := e.cookie; c.Expires.IsZero() || c.Expires.After(now) {
			n++
		}
	}
	return n
}

// NextExpiry returns when the next of the cookies that live at a time ends;
// zero if none says.
func (j *Jar) NextExpiry(at time.Time) time.Time {
	var next time.Time
	for _, e := range j.entries {
		if x := e.cookie.Expires; x.After(at) && (next.IsZero() || x.Before(next)) {
			next = x
		}
	}
	return next
}

// Ends returns when the first, and when the last of the cookies for u ends that
// live at a time, and for how long that last one was set. First is zero if none
// says; last and life, if one does not, or if there are none.
func (j *Jar) Ends(u *url.URL, at time.Time) (first, last time.Time, life time.Duration) {
	open := false
	for _, e := range j.entries {
		c, x := e.cookie, e.cookie.Expires
		switch {
		case !c.fits(u) || !x.IsZero() && !x.After(at):
			continue
		case x.IsZero():
			open = true
		case first.IsZero() || x.Before(first):
			first = x
		}
		if x.After(last) {
			last, life = x, x.Sub(e.from.Time)
		}
	}
	if open {
		return first, time.Time{}, 0
	}
	return first, last, life
}

// Without returns the cookies that are none of those in another jar, and do not
// stand in for one: of the same value, unless that is short, and nobody's secret, or
// of the same name for the same domain.
func (j *Jar) Without(other *Jar) *Jar {
	k := new(Jar)
	for _, e := range j.entries {
		c := e.cookie
		if !slices.ContainsFunc(other.entries, func(o jarEntry) bool {
			d := o.cookie
			v := c.Value.Reveal()
			return len(v) >= 8 && v == d.Value.Reveal() ||
				c.Name == d.Name && !c.HostOnly && !d.HostOnly && c.Domain == d.Domain
		}) {
			k.entries = append(k.entries, e)
		}
	}
	return k
}

// Shift returns the jar as it would be had the clock shown d more when the
// cookies came: what is left of a Max-Age stays, and a date is what it is.
func (j *Jar) Shift(d time.Duration) *Jar {
	k := &Jar{slices.Clone(j.entries), j.authorization}
	for i, e := range k.entries {
		from := e.from
		from.Time = from.Time.Add(d)
		if u, err := url.Parse(from.URL); err == nil {
			if c := ParseCookie(string(from.Line), u, from.Time); c != nil {
				k.entries[i] = jarEntry{c, from}
			}
		}
	}
	return k
}
