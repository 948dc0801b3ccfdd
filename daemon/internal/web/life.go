package web

import "time"

// Living returns how many cookies still live at a time.
func (j *Jar) Living(now time.Time) int {
	n := 0
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
