package keeper

import (
	"errors"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/sessionctl/sessionctl/api"
)

// circuits keep many sites from asking, each for itself, what answers none of
// them: an origin that cannot be reached, the KDCs of a realm. While one is open
// nobody asks; then one flight tries (it is half open), and its outcome counts for
// all.
type circuits struct {
	mu  sync.Mutex
	all map[string]*circuit // by what is out of reach; closed ones are not there
}

type circuit struct {
	failures int // in a row
	until    time.Time
	why      *api.Error
	trial    *flight
}

// outage is the cause of a failure that everybody has who needs the same.
type outage interface {
	error
	// Outage names what is out of reach: an origin as web.Origin.String has it, or
	// a realm after realmOutage.
	Outage() string
}

const realmOutage = "realm "

// held says what keeps a flight from being started.
type held struct {
	wait   time.Duration // until it may be
	why    *api.Error
	trial  *flight // or whose outcome is to be waited for
	shared bool    // others are held, too
}

// after returns when the agenda tries again: of many who are held, not all at once.
func (h *held) after() time.Duration {
	among := time.Second
	if h.shared {
		among = min(max(h.wait, time.Second), spread)
	}
	return h.wait + rand.N(among)
}

// hold returns what stands against a flight that needs some things, nil if
// nothing does. Then f, if it is not nil, is the one that tries what of them is out
// of reach.
func (c *circuits) hold(needs []string, now time.Time, f *flight) *held {
	c.mu.Lock()
	defer c.mu.Unlock()
	var h *held
	for _, name := range needs {
		switch open := c.all[name]; {
		case open == nil:
		case open.until.After(now):
			if wait := open.until.Sub(now); h == nil || h.wait < wait {
				h = &held{wait: wait, why: open.why, shared: true}
			}
		case open.trial != nil && h == nil:
			h = &held{why: open.why, trial: open.trial, shared: true}
		}
	}
	if h == nil && f != nil {
		for _, name := range needs {
			if open := c.all[name]; open != nil {
				open.trial = f
			}
		}
	}
	return h
}

// settle counts the outcome of a flight, and reports whether a circuit holds the
// next one.
func (c *circuits) settle(needs []string, f *flight, err *api.Error, now time.Time) (opened bool) {
	var out outage
	failed := err != nil && errors.As(err, &out)
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, name := range needs {
		open := c.all[name]
		tried := open != nil && open.trial == f
		if tried {
			open.trial = nil
		}
		switch {
		case failed && out.Outage() == name:
			if open == nil {
				open = new(circuit)
				c.all[name] = open
			}
			open.fail(err, now)
			opened = true
		case open != nil && reached(name, tried, err):
			delete(c.all, name)
		}
	}
	return opened
}

// fail keeps the circuit open for a while, if another flight has not done so just
// now.
func (c *circuit) fail(err *api.Error, now time.Time) {
	if !c.until.After(now) {
		c.failures++
		c.until = now.Add(backOff(c.failures))
	}
	c.why = err
}

// reached reports whether a flight that ended so, not by an outage of what is
// named, shows that it is there again. An origin is asked first, whatever fails
// then; a KDC maybe never.
func reached(name string, tried bool, err *api.Error) bool {
	if err == nil {
		return true
	}
	switch err.Code {
	case api.RateLimited, api.Maintenance, api.Server5xx, api.Expired, api.WrongIdentity, api.BadCredentials, api.Captcha,
		api.Forbidden, api.LoginOKButProbeFailed, api.NoSessionCookie, api.UnexpectedStatus, api.NegotiateRejected:
		return true
	case api.Timeout, api.NetworkError, api.KDCUnreachable:
		return tried && !strings.HasPrefix(name, realmOutage)
	}
	return false
}

// forget closes what is open: a person has mended it, or says so.
func (c *circuits) forget(needs []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, name := range needs {
		delete(c.all, name)
	}
}

// clear closes all.
func (c *circuits) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.all)
}

// shift moves the circuits to a clock that shows d more.
func (c *circuits) shift(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, open := range c.all {
		open.until = open.until.Add(d)
	}
}

// maxBackOff is the longest time for which something is left alone after a
// failure that may pass. What comes back is noticed after that at the latest.
const maxBackOff = 5 * time.Minute

// backOff returns how long to leave something alone after n failures in a row:
// anything up to a limit that doubles, so that agents do not come back in step.
func backOff(n int) time.Duration {
	limit := min(time.Second<<min(n-1, 16), maxBackOff)
	return rand.N(limit) + time.Millisecond
}
