package oracle

import (
	"fmt"
	"time"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/clock"
)

// Phase says how far the oracle has come.
type Phase uint8

// Phases.
const (
	Idle      Phase = iota // this node does not lead the system range
	Anchoring              // collecting the voters' wall clocks
	Starting               // the first entry of the term is not applied yet
	Waiting                // oracle time has not passed an earlier oracle's bound
	Issuing                // timestamps are issued, up to the persisted bound
)

var phases = [...]string{"idle", "anchoring", "starting", "waiting", "issuing"}

// String returns the phase as `cluster status` shows it.
func (p Phase) String() string {
	if int(p) < len(phases) {
		return phases[p]
	}
	return fmt.Sprintf("phase_%d", uint8(p))
}

// Phase returns how far the oracle has come.
func (o *Oracle) Phase() Phase {
	switch {
	case o.term == 0:
		return Idle
	case !o.anchored:
		return Anchoring
	case !o.ready:
		return Starting
	case !o.serving:
		return Waiting
	}
	return Issuing
}

// EventKind says what happened.
type EventKind uint8

// Event kinds.
const (
	Anchored           EventKind = iota + 1 // Voters told their clocks
	RoundFailed                             // only Voters answered, no majority
	WaitingForBound                         // an earlier oracle's bound is By ahead of oracle time
	ContinuedFromBound                      // oracle time moved forward By, to an earlier oracle's bound
	Serving                                 // timestamps are issued, By after the first entry of the term
	SteppedForward                          // oracle time was too far behind and moved forward By
	HandedOver                              // own clock is By ahead of the median; Node is to lead
	BoundRetried                            // a proposed bound was not applied for By
)

var eventKinds = [...]string{
	Anchored: "anchored", RoundFailed: "round failed",
	WaitingForBound: "waiting for bound", ContinuedFromBound: "continued from bound",
	Serving: "serving", SteppedForward: "stepped forward", HandedOver: "handed over",
	BoundRetried: "bound retried",
}

// String returns the kind in words.
func (k EventKind) String() string {
	if int(k) < len(eventKinds) && eventKinds[k] != "" {
		return eventKinds[k]
	}
	return fmt.Sprintf("event_%d", uint8(k))
}

// Event is something worth a log line or a metric. Which fields are set is told by
// the kind.
type Event struct {
	Kind   EventKind
	By     time.Duration
	Node   base.NodeID
	Voters int
}

// String returns the event as one line.
func (e Event) String() string {
	s := e.Kind.String()
	if e.Node != 0 {
		s += fmt.Sprintf(" node=%d", e.Node)
	}
	if e.Voters != 0 {
		s += fmt.Sprintf(" voters=%d", e.Voters)
	}
	if e.By != 0 {
		s += fmt.Sprintf(" by=%v", e.By)
	}
	return s
}

func (o *Oracle) emit(e Event) { o.events = append(o.events, e) }

// Counters count since the oracle was made, over all terms.
type Counters struct {
	Issued       uint64        // timestamps
	Rounds       uint64        // rounds of samples with a majority
	RoundsFailed uint64        // rounds without
	Steps        uint64        // forward steps
	SteppedBy    time.Duration // their sum
	Continued    uint64        // takeovers that moved oracle time forward to a bound
	Transfers    uint64        // leadership handed over because of this node's clock
	BoundRetries uint64        // proposed bounds not applied in time
	BoundStalls  uint64        // requests refused because the bound was used up
}

// VoterClock is a voter's wall clock as the last round that it answered found it.
type VoterClock struct {
	Node    base.NodeID
	Known   bool          // it answered the last round
	Ahead   time.Duration // of the median; negative: behind
	Outside bool          // farther from the median than the maximum clock offset
}

// Status is the oracle as `cluster status` shows it.
type Status struct {
	Phase   Phase
	Term    uint64
	TimeMS  int64         // oracle time, milliseconds since 1970; 0 before the anchor
	Ahead   time.Duration // of the median, still to be slewed off; negative: behind
	Bound   base.Timestamp
	Latest  base.Timestamp // see Oracle.Latest
	Clocks  []VoterClock   // by node
	Counted Counters
}

// Status returns the present state; its slices are the caller's.
func (o *Oracle) Status(now clock.Mono) Status {
	o.observe(now)
	s := Status{Phase: o.Phase(), Term: o.term, Latest: o.Latest(), Counted: o.counters}
	if o.anchored {
		_, paid := o.time.elapsed(o.now)
		s.TimeMS, s.Ahead = o.time.ms(o.now), o.time.debt-paid
	}
	if o.ready {
		s.Bound = o.bound
	}
	for i, c := range o.round.clocks {
		s.Clocks = append(s.Clocks, VoterClock{
			Node: o.round.voters[i], Known: c.known, Ahead: c.ahead,
			Outside: c.known && c.ahead.Abs() > o.offset(),
		})
	}
	return s
}
