package keeper

import (
	"os"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// maxDrift is how far the wall clock may be off before that counts as a step.
const maxDrift = 5 * time.Second

// Clock is the agent's time: the wall clock, as it goes on by itself. A step that
// somebody makes in it, or NTP, is taken over only when the keeper has made its
// sessions ready for it (Keeper.checkClock), so that none of them ages by it.
//
// What lets it go on is CLOCK_BOOTTIME (clock_gettime(2)), which nobody sets and
// which also counts the time that the machine sleeps.
type Clock struct {
	wall func() time.Time
	boot func() time.Duration
	// base is the agent's time at a boot time of 0, in nanoseconds since 1970.
	base atomic.Int64
	// shifted is the sum of the steps taken over, in nanoseconds.
	shifted atomic.Int64
	// run names the run of the machine that boot counts from; "" if nobody says.
	run string
}

// bootID names the run of the machine (random(4)).
const bootID = "/proc/sys/kernel/random/boot_id"

// NewClock returns a clock that shows the time.
func NewClock() *Clock {
	c := newClock(time.Now, bootTime)
	if id, err := os.ReadFile(bootID); err == nil {
		c.run = strings.TrimSpace(string(id))
	}
	return c
}

func newClock(wall func() time.Time, boot func() time.Duration) *Clock {
	c := &Clock{wall: wall, boot: boot}
	c.base.Store(wall().UnixNano() - int64(boot()))
	return c
}

func bootTime() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		panic(err) // Linux has it since 2.6.39
	}
	return time.Duration(t.Nano())
}

// Now returns the agent's time.
func (c *Clock) Now() time.Time { return time.Unix(0, c.base.Load()+int64(c.boot())) }

// Steady returns a clock that shows the agent's time as it is now, and takes over
// no step: for a dialogue, in which what has come once must not age by one.
func (c *Clock) Steady() func() time.Time {
	base := c.base.Load()
	return func() time.Time { return time.Unix(0, base+int64(c.boot())) }
}

// drift returns by how much the wall clock is ahead of the agent's time, if that
// is a step; else 0.
func (c *Clock) drift() time.Duration {
	d := c.wall().Sub(c.Now())
	if d.Abs() <= maxDrift {
		return 0
	}
	return d
}

// moment says which clock a time was taken from, for another agent to make sense of
// it: the run of the machine, and what the clock showed when that began.
type moment struct {
	Run   string `json:"run,omitempty"`
	Began int64  `json:"began,omitempty"` // in nanoseconds since 1970
}

// at returns that of the times of somebody for whom the clock was shifted so.
func (c *Clock) at(shifted int64) moment {
	return moment{c.run, c.base.Load() - c.shifted.Load() + shifted}
}

// since returns by how much the clock was set since a moment; false if the machine
// was started anew meanwhile, or nobody knows.
func (c *Clock) since(m moment) (d time.Duration, ok bool) {
	if m.Run == "" || m.Run != c.run {
		return 0, false
	}
	// Sub ends at what a duration holds.
	if d = time.Unix(0, c.base.Load()).Sub(time.Unix(0, m.Began)); d.Abs() <= maxDrift {
		return 0, true
	}
	return d, true
}

// step puts the agent's time forward, or back.
func (c *Clock) step(d time.Duration) {
	c.base.Add(int64(d))
	c.shifted.Add(int64(d))
}
