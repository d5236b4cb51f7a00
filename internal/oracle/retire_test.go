package oracle

import (
	"testing"
	"time"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/clock"
)

// An oracle that retires brings its bound near within one window, issues all the while,
// and goes back to a whole window if the move comes to nothing.
func TestRetireBringsTheBoundNear(t *testing.T) {
	const step = 10 * time.Millisecond
	o := New(Options{})
	now := clock.Mono(time.Hour)
	o.Lead(3, 1, []base.NodeID{1}, now)
	wall := startMS
	tick := func() {
		for range 2 {
			e := o.Tick(now)
			if e.Sample {
				o.Sampled(1, wall, now)
			}
			if e.Bound != 0 {
				o.BoundApplied(e.Bound, now)
			}
		}
	}
	pass := func(d time.Duration, each func()) {
		for end := now.Add(d); now < end; {
			now, wall = now.Add(step), wall+step.Milliseconds()
			tick()
			each()
		}
	}
	issue := func() {
		if _, err := o.Issue(1, now); err != nil {
			t.Fatal(err)
		}
	}
	ahead := func() int64 { return o.bound.Millis() - o.time.ms(now) }
	o.Ready(0, now)
	tick()
	pass(3*time.Second, issue)
	if ahead() < window.Milliseconds()/2 {
		t.Fatalf("the bound is %d ms ahead", ahead())
	}
	if o.Retire(now) {
		t.Fatal("the bound is near at once")
	}
	near := false
	pass(window, func() {
		issue()
		near = o.Retire(now)
	})
	if !near || ahead() > window.Milliseconds()/10 {
		t.Fatalf("after one window the bound is %d ms ahead", ahead())
	}
	pass(2*window, issue)
	if ahead() < window.Milliseconds()/2 {
		t.Fatalf("the oracle stayed, and the bound is %d ms ahead", ahead())
	}
}
