// Package clock is the only way to time. Everything below the faces takes a Clock, so
// that a whole cluster runs under a Manual one.
package clock

import (
	"sync"
	"time"
)

// Mono is monotonic time since an arbitrary start in this process. It never steps;
// leases and timers are measured in it.
type Mono time.Duration

// Add returns m + d.
func (m Mono) Add(d time.Duration) Mono { return m + Mono(d) }

// Sub returns m − n.
func (m Mono) Sub(n Mono) time.Duration { return time.Duration(m - n) }

// Clock tells monotonic and wall time. Wall time is used only to anchor the oracle.
type Clock interface {
	Mono() Mono
	WallMS() int64 // milliseconds since 1970; may step in either direction
}

// System is the machine's clock.
type System struct{ start time.Time }

// NewSystem returns the machine's clock, its monotonic time starting now. Mono never
// returns 0, so that 0 can mean "never".
func NewSystem() *System { return &System{start: time.Now().Add(-time.Second)} }

// Mono implements Clock.
func (c *System) Mono() Mono { return Mono(time.Since(c.start)) }

// WallMS implements Clock.
func (c *System) WallMS() int64 { return time.Now().UnixMilli() }

// Manual is a clock that moves only when told. Safe for concurrent use.
type Manual struct {
	mu     sync.Mutex
	mono   Mono
	wallNS int64
}

// NewManual returns a manual clock at one second of monotonic time.
func NewManual(wallMS int64) *Manual {
	return &Manual{mono: Mono(time.Second), wallNS: wallMS * 1e6}
}

// Mono implements Clock.
func (c *Manual) Mono() Mono {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mono
}

// WallMS implements Clock.
func (c *Manual) WallMS() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.wallNS / 1e6
}

// Advance moves both times forward; d must not be negative.
func (c *Manual) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mono = c.mono.Add(d)
	c.wallNS += int64(d)
}

// StepWall moves wall time alone, in either direction.
func (c *Manual) StepWall(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wallNS += int64(d)
}
