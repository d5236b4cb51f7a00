package admission

import (
	"container/list"
	"context"
	"sync"
	"time"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/fault"
)

// Gates let a bounded number of requests of this node into each range at a time, first
// come, first served, and refuse who would wait longer than a bounded time. So a request
// is answered within that time and what a full range needs for one, however many come;
// and a range that does not answer holds up nobody but its own. Safe for concurrent use.
type Gates struct {
	// Inside is how many requests may be in one range at once; 0: any number.
	Inside int
	// Waiting is how many may wait for a range.
	Waiting int
	// Patience is how long one may wait.
	Patience time.Duration
	// Refused, if set, is told of each request that was refused.
	Refused func()

	mu     sync.Mutex
	ranges map[base.RangeID]*gate
}

// gate is one range's; it is there while requests are inside.
type gate struct {
	inside int
	queue  list.List // of chan struct{}, closed to let a request in
}

// Enter waits until a request may go to a range. The error is Busy, or Cancelled; after
// nil the caller must Leave.
func (g *Gates) Enter(ctx context.Context, r base.RangeID) error {
	if g.Inside == 0 {
		return nil
	}
	g.mu.Lock()
	q := g.of(r)
	if q.inside < g.Inside {
		q.inside++
		g.mu.Unlock()
		return nil
	}
	if q.queue.Len() >= g.Waiting {
		g.mu.Unlock()
		return g.refuse(r)
	}
	turn := make(chan struct{})
	place := q.queue.PushBack(turn)
	g.mu.Unlock()
	return g.wait(ctx, r, q, place, turn)
}

// TryEnter is Enter that does not wait: false if the request would have to.
func (g *Gates) TryEnter(r base.RangeID) bool {
	if g.Inside == 0 {
		return true
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	q := g.of(r)
	if q.inside >= g.Inside {
		return false
	}
	q.inside++
	return true
}

// of returns a range's gate. Called with mu held, by who goes inside or waits.
func (g *Gates) of(r base.RangeID) *gate {
	q := g.ranges[r]
	if q == nil {
		if g.ranges == nil {
			g.ranges = make(map[base.RangeID]*gate)
		}
		q = &gate{}
		g.ranges[r] = q
	}
	return q
}

func (g *Gates) wait(ctx context.Context, r base.RangeID, q *gate, place *list.Element, turn chan struct{}) error {
	patience := time.NewTimer(g.Patience)
	defer patience.Stop()
	select {
	case <-turn:
		return nil
	case <-patience.C:
	case <-ctx.Done():
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	select {
	case <-turn: // just now
		return nil
	default:
	}
	q.queue.Remove(place)
	if ctx.Err() == context.Canceled {
		return fault.Wrap(fault.Cancelled, ctx.Err(), "the caller went away")
	}
	return g.refuse(r)
}

func (g *Gates) refuse(r base.RangeID) error {
	if g.Refused != nil {
		g.Refused()
	}
	return fault.New(fault.Busy, "range %d gets more requests than it can answer", r).OnRange(r).
		WithRemedy("back off and try again")
}

// Leave lets the next request in. Called once for each Enter that returned nil.
func (g *Gates) Leave(r base.RangeID) {
	if g.Inside == 0 {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	q := g.ranges[r]
	if next := q.queue.Front(); next != nil {
		q.queue.Remove(next)
		close(next.Value.(chan struct{}))
		return
	}
	if q.inside--; q.inside == 0 {
		delete(g.ranges, r)
	}
}
