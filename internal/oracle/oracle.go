// Package oracle is the source of timestamps: one machine per node, stepped by the
// worker that owns the system range, live while this node leads that range (T1–T4).
// It owns the anchor, its steering, the persisted bound and the order of timestamps.
// It refuses to know leases, messages and logs: the caller asks the voters for their
// wall clocks, proposes the bound, and — before it hands out what Issue returned —
// has checked the system range's leader lease, or finished a quorum round that began
// after the request arrived (T1).
//
// After any call that tells the oracle something, and at NextWake, call Tick and do
// what it returns; NextWake changes with every call. It is pure: monotonic time and
// wall clocks come with the calls.
package oracle

import (
	"time"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/clock"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/plant"
)

// MaxBatch is the most timestamps that one Issue returns: one millisecond's worth.
const MaxBatch = 1 << base.LogicalBits

// Options configure an oracle. Every node of a cluster must use the same Election.
// Zero fields take their defaults.
type Options struct {
	// MaxClockOffsetMS is how far a healthy node's wall clock may be off, in
	// milliseconds. Default 500.
	MaxClockOffsetMS int64
	// Election is one election timeout: how far ahead the bound is persisted, how
	// long a new oracle waits for an old bound, and how long a round of samples stays
	// open. Whole milliseconds, at least 2. Default 1 s.
	Election time.Duration
	// SampleEvery is the time between rounds once anchored. Default 1 s.
	SampleEvery time.Duration
	// SlewPerMille is by how much oracle time may run slower or faster than
	// monotonic time while it is steered, in thousandths. Default 1.
	SlewPerMille int
	// StepRounds is how many rounds in a row must find oracle time too far behind
	// before it steps forward. Default 3.
	StepRounds int
}

func (o *Options) setDefaults() {
	if o.MaxClockOffsetMS == 0 {
		o.MaxClockOffsetMS = 500
	}
	if o.Election == 0 {
		o.Election = time.Second
	}
	if o.SampleEvery == 0 {
		o.SampleEvery = time.Second
	}
	if o.SlewPerMille == 0 {
		o.SlewPerMille = 1
	}
	if o.StepRounds == 0 {
		o.StepRounds = 3
	}
}

// Validate says what is wrong with the options; nil if nothing.
func (o Options) Validate() error {
	o.setDefaults()
	switch {
	case o.MaxClockOffsetMS < 0:
		return fault.New(fault.Invalid, "the maximum clock offset is negative")
	case o.Election < 2*time.Millisecond || o.Election%time.Millisecond != 0:
		return fault.New(fault.Invalid, "the election timeout %v is not a whole number of at least 2 ms", o.Election)
	case o.SampleEvery < time.Millisecond:
		return fault.New(fault.Invalid, "the clock sampling interval %v is below 1 ms", o.SampleEvery)
	case o.SlewPerMille < 0 || o.SlewPerMille > 100:
		return fault.New(fault.Invalid, "a slew of %d ‰ is not between 0 and 100", o.SlewPerMille)
	case o.StepRounds < 0:
		return fault.New(fault.Invalid, "the number of rounds before a step is negative")
	}
	return nil
}

// Effects is what the oracle wants done.
type Effects struct {
	// Sample asks for the wall clocks of all voters, this node included. Report each
	// with Sampled, or with Failed if no answer will come; drop a reply that took longer
	// than one election timeout.
	Sample bool
	// Bound, if not 0, asks to propose SetBound. A lost proposal is asked for again.
	Bound base.Timestamp
	// Transfer, if not 0, asks to hand leadership of the system range to that node:
	// this node's wall clock is outside the offset and that node's is inside. Asked
	// for at most once a term.
	Transfer base.NodeID
	// Events is what happened, for logs and metrics. The slice is the caller's.
	Events []Event
}

// Oracle issues timestamps. Not safe for concurrent use.
type Oracle struct {
	opt      Options
	windowMS int64 // Election

	term     uint64 // 0: this node does not lead the system range
	self     base.NodeID
	now      clock.Mono // latest time seen; monotonic time never runs back
	time     pace
	anchored bool
	round    round
	behind   int // rounds in a row that found oracle time too far behind
	handed   bool

	ready   bool
	readyAt clock.Mono     // when the first entry of the term was applied
	floor   base.Timestamp // below it, earlier terms may have issued
	waiting bool           // for oracle time to pass the floor; said once
	serving bool           // the wait is over

	bound      base.Timestamp // persisted: all that is issued stays below
	proposed   base.Timestamp
	proposedAt clock.Mono
	latest     base.Timestamp // highest issued by this node, in any term

	retiring clock.Mono // until then the bound is kept near

	counters Counters
	events   []Event
}

// New returns an oracle that does not lead. Options must have passed Validate.
func New(o Options) *Oracle {
	o.setDefaults()
	return &Oracle{opt: o, windowMS: o.Election.Milliseconds()}
}

// Lead says that this node became leader of the system range, before it applied its
// first entry of the term. Voters are copied.
func (o *Oracle) Lead(term uint64, self base.NodeID, voters []base.NodeID, now clock.Mono) {
	o.StepDown()
	o.observe(now)
	o.term, o.self = term, self
	o.time = pace{slew: int64(o.opt.SlewPerMille)}
	o.round = round{next: o.now}
	o.SetVoters(voters)
}

// SetVoters tells the voters of the system range after a membership change.
func (o *Oracle) SetVoters(voters []base.NodeID) { o.round.setVoters(voters) }

// Ready says that this leader has applied its first entry of the term. Bound is the
// persisted bound in the system range's state; no earlier term issued at or above it.
func (o *Oracle) Ready(bound base.Timestamp, now clock.Mono) {
	if o.term == 0 || o.ready {
		return
	}
	o.observe(now)
	o.ready, o.readyAt = true, o.now
	o.bound, o.floor = bound, max(bound, o.latest+1)
	o.proposed = bound
}

// StepDown says that this node no longer leads the system range. Call it before any
// entry of a later term is applied.
func (o *Oracle) StepDown() {
	o.term = 0
	o.ready, o.waiting, o.serving, o.anchored, o.handed = false, false, false, false, false
	o.behind, o.retiring, o.events = 0, 0, nil
	o.round = round{}
}

// Sampled reports a voter's wall clock; it counts as of now, its receipt, so delay
// can only make oracle time late, never early.
func (o *Oracle) Sampled(node base.NodeID, wallMS int64, now clock.Mono) {
	o.observe(now)
	if o.term != 0 {
		o.round.add(node, wallMS, o.now)
	}
}

// Failed reports that a voter will not answer what it was asked at that time, because the
// call to it failed. It may answer the next round.
func (o *Oracle) Failed(node base.NodeID, asked, now clock.Mono) {
	o.observe(now)
	if o.term != 0 {
		o.round.fail(node, asked)
	}
}

// BoundApplied reports an applied SetBound of this term. It must be applied here, not
// merely proposed or committed: a successor learns of it from the applied state.
func (o *Oracle) BoundApplied(b base.Timestamp, now clock.Mono) {
	o.observe(now)
	if o.ready {
		o.bound = max(o.bound, b)
	}
}

// Tick lets time pass and returns what to do.
func (o *Oracle) Tick(now clock.Mono) Effects {
	o.observe(now)
	var e Effects
	if o.term == 0 {
		return e
	}
	e.Transfer = o.finishRound()
	e.Sample = o.openRound()
	o.endWait()
	e.Bound = o.renewBound()
	e.Events, o.events = o.events, nil
	return e
}

// endWait starts service once oracle time has passed the floor, or one window after
// the first entry of the term, from the floor. By then the earlier oracle, which
// persisted its bound at most one window ahead, would have reached it too: so waiting
// makes events at most one window late, and going on makes none early.
func (o *Oracle) endWait() {
	if o.serving || !o.ready || !o.anchored {
		return
	}
	if ahead := msCeil(o.floor) - o.time.ms(o.now); ahead > 0 {
		if o.now < o.readyAt.Add(o.opt.Election) && !plant.On(plant.OracleJumps) {
			if !o.waiting {
				o.waiting = true
				o.emit(Event{Kind: WaitingForBound, By: millis(ahead)})
			}
			return
		}
		jump := o.time.raiseTo(msCeil(o.floor), o.now)
		o.proposed = o.bound // what is under way is of no use
		o.counters.Continued++
		o.emit(Event{Kind: ContinuedFromBound, By: jump})
	}
	o.serving = true
	o.emit(Event{Kind: Serving, By: o.now.Sub(o.readyAt)})
}

// Retire says that leadership is about to be handed over: for one election timeout the
// bound is kept a tenth of a window ahead, so that the successor hardly waits for it. It
// returns whether the bound is as near as that; ask again until it is.
func (o *Oracle) Retire(now clock.Mono) (near bool) {
	o.observe(now)
	o.retiring = o.now.Add(o.opt.Election)
	return !o.serving || o.bound.Millis()-o.time.ms(o.now) <= o.aheadMS()
}

// aheadMS returns how far ahead of oracle time the bound is persisted.
func (o *Oracle) aheadMS() int64 {
	if o.now < o.retiring {
		return max(o.windowMS/10, 1)
	}
	return o.windowMS
}

// renewBound returns the bound to propose: one window ahead of oracle time, asked for
// when half of the present one is used, so that issuing need not stall on the log.
func (o *Oracle) renewBound() base.Timestamp {
	if o.renewAt() > o.now {
		return 0
	}
	ms := min(o.time.ms(o.now)+o.aheadMS(), base.MaxTimestamp.Millis())
	if o.proposed > o.bound {
		o.counters.BoundRetries++
		o.emit(Event{Kind: BoundRetried, By: o.now.Sub(o.proposedAt)})
	}
	o.proposed, o.proposedAt = base.TimestampAt(ms), o.now
	return o.proposed
}

// renewAt returns when the bound is next due to be proposed.
func (o *Oracle) renewAt() clock.Mono {
	if !o.ready || !o.anchored || o.bound >= base.TimestampAt(base.MaxTimestamp.Millis()) {
		return never
	}
	at := o.now
	if wait := o.bound.Millis() - o.aheadMS()/2 - o.time.ms(o.now); wait > 0 {
		at = o.now.Add(millis(wait))
	}
	if o.proposed > o.bound {
		at = max(at, o.proposedAt.Add(o.opt.Election/4))
	}
	return at
}

// Issue returns the first of n consecutive timestamps, first … first+n−1: strictly
// above everything issued before, in this and every earlier term, and below the
// persisted bound. The error is fault.Unavailable, and says what the oracle is waiting
// for, or fault.Invalid if n is not in 1 … MaxBatch.
func (o *Oracle) Issue(n int, now clock.Mono) (base.Timestamp, error) {
	o.observe(now)
	if n < 1 || n > MaxBatch {
		return 0, fault.New(fault.Invalid, "%d timestamps were asked for, not 1 to %d", n, MaxBatch)
	}
	if err := o.unavailable(); err != nil {
		return 0, err
	}
	first := max(o.latest+1, o.floor, base.TimestampAt(o.time.ms(o.now)))
	if first+base.Timestamp(n) > o.bound {
		o.counters.BoundStalls++
		return 0, fault.New(fault.Unavailable, "the oracle's bound is not yet persisted").
			WithRemedy("retry; if it lasts, the system range cannot commit: see cluster status")
	}
	o.latest = first + base.Timestamp(n) - 1
	o.counters.Issued += uint64(n)
	return first, nil
}

func (o *Oracle) unavailable() error {
	switch o.Phase() {
	case Idle:
		return fault.New(fault.Unavailable, "the oracle is not on this node").
			WithRemedy("ask the leader of the system range")
	case Anchoring:
		return fault.New(fault.Unavailable, "the oracle is anchoring: %d of %d voters told their clocks",
			o.round.answers(), len(o.round.voters)).WithRemedy("retry within an election timeout")
	case Starting:
		return fault.New(fault.Unavailable, "the oracle's node has not applied its first entry of the term").
			WithRemedy("retry; if it lasts, the system range has no majority")
	case Waiting:
		return fault.New(fault.Unavailable, "the oracle is waiting for an earlier oracle's bound").
			WithRemedy("retry within an election timeout")
	}
	return nil
}

// Latest returns a timestamp at or above all that this and earlier terms issued and
// below all to come; 0 while that is not known.
func (o *Oracle) Latest() base.Timestamp {
	if !o.ready {
		return 0
	}
	return max(o.latest, o.floor-1)
}

// NextWake returns when to call Tick next if nothing else happens; a time that is not
// after now means at once, 0 means never.
func (o *Oracle) NextWake(now clock.Mono) clock.Mono {
	o.observe(now)
	if o.term == 0 {
		return 0
	}
	at := min(o.round.wakeAt(o.opt.Election), o.renewAt())
	if o.ready && o.anchored && !o.serving {
		passed := o.now.Add(millis(msCeil(o.floor) - o.time.ms(o.now)))
		at = min(at, max(o.now, min(passed, o.readyAt.Add(o.opt.Election))))
	}
	return at
}

func (o *Oracle) observe(now clock.Mono) { o.now = max(o.now, now) }
