package replica

import (
	"fmt"
	"time"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/clock"
	"github.com/almanacdb/almanac/internal/command"
	"github.com/almanacdb/almanac/internal/dispatch"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/keys"
	"github.com/almanacdb/almanac/internal/plant"
	"github.com/almanacdb/almanac/internal/timeline"
	"github.com/almanacdb/almanac/internal/wire"
)

// firing makes events fall due: the orderer's one timer for the range (E2, E11).
type firing struct {
	partitions []base.PartitionID
	nextDue    int64      // ms of the first pending event; 0: nothing is pending
	dirty      bool       // nextDue must be looked up again
	wanted     bool       // a timestamp is wanted for an advance
	asked      bool       // it has been asked for
	flying     bool       // an advance of this term was appended and is not answered yet
	last       clock.Mono // when the last advance was appended
	acks       []*timeline.Ack
	roundSince clock.Mono // hand-out waits for a round begun then or later; 0: for none
}

// minAdvanceGap is the least time between two advances of a range.
const minAdvanceGap = time.Millisecond

func (f *firing) reset() {
	*f = firing{partitions: f.partitions}
}

// partitionsOf lists the partitions in a topic range's span.
func partitionsOf(d *base.RangeDescriptor) []base.PartitionID {
	if d.Topic == 0 {
		return nil
	}
	from, err1 := keys.DecodePartition(d.Span.Start)
	to, err2 := keys.DecodePartition(d.Span.End)
	if err1 != nil || err2 != nil || from.Topic != to.Topic {
		return nil
	}
	var parts []base.PartitionID
	for p := from.Partition; p < to.Partition; p++ {
		parts = append(parts, base.PartitionID{Topic: from.Topic, Partition: p})
	}
	return parts
}

// firingWake returns when the first pending event will be due by the last oracle time
// seen here plus monotonic time: never early by the oracle, since that is never ahead.
func (r *Replica) firingWake() clock.Mono {
	f := &r.firing
	if !r.serving || f.nextDue == 0 || f.wanted || f.asked || f.flying || r.asks.retryAt != 0 {
		return 0
	}
	at := clock.Mono(1) // no oracle time is known yet: ask for it at once
	if ms, received, ok := r.env.OracleAnchor(); ok {
		// Bounded, so that a due time far off, or long past, does not overflow the clock.
		ahead := min(max(0, f.nextDue-ms), int64(24*time.Hour/time.Millisecond))
		at = received.Add(time.Duration(ahead) * time.Millisecond)
	}
	return max(at, f.last.Add(minAdvanceGap), 1)
}

func (r *Replica) firingPoke(now clock.Mono) {
	if at := r.firingWake(); at != 0 && at <= now {
		r.firing.wanted = true
	}
}

// advance proposes to raise the range's clock to t, if that makes something due.
func (r *Replica) advance(now clock.Mono, t base.Timestamp) {
	f := &r.firing
	if plant.On(plant.FiresEarly) {
		t += base.TimestampAt(2000)
	}
	if f.nextDue == 0 || t.Millis() < f.nextDue {
		return // the timer is set anew from the oracle time just seen
	}
	env, err := command.Encode(command.Header{Kind: command.KindAdvance, Time: t}, nil)
	if err != nil {
		panic(fmt.Sprintf("invariant violated: an advance does not encode: %v", err))
	}
	f.flying, f.last = true, now
	term := r.status.Term
	r.append(&Proposal{Envelope: env, Done: func(command.Result, error) {
		if r.status.Term == term { // one of an earlier term says nothing of the present one
			r.firing.flying = false
		}
	}}, 0)
}

// lookForDue follows the clock and publishes: what is pending, and what can go out.
func (r *Replica) lookForDue() error {
	f := &r.firing
	clockMS := r.state.Clock.Millis()
	if !f.dirty && (f.nextDue == 0 || clockMS < f.nextDue) {
		return nil
	}
	f.dirty, f.nextDue = false, 0
	for _, p := range f.partitions {
		due, ok, err := timeline.NextDue(r.opts.Engine, p, clockMS)
		if err != nil {
			return err
		}
		if ok && (f.nextDue == 0 || due < f.nextDue) {
			f.nextDue = due
		}
	}
	r.events.Raised()
	return nil
}

// pump hands out what is due, under the lease or a quorum round (E7). True means that
// more is ready.
func (r *Replica) pump(now clock.Mono) bool {
	if r.events == nil {
		return false
	}
	err := r.lookForDue()
	more := false
	if err == nil && !r.events.Idle() {
		asked := false
		more, err = r.events.Pump(now, r.opts.Engine, r.state.Clock.Millis(), func() bool {
			asked = true
			return r.confirmHandOut(now)
		}, r.emit)
		if !asked {
			r.firing.roundSince = 0 // an old round says nothing about what comes next
		}
	}
	if err != nil {
		r.fatal(fmt.Errorf("range %d cannot read its timelines: %w", r.id, err))
		return false
	}
	return more
}

// confirmHandOut says whether this is surely still the orderer: by its lease, or by a
// round begun since it last asked. If not, a round is under way then.
func (r *Replica) confirmHandOut(now clock.Mono) bool {
	f := &r.firing
	if r.machine.HasLease(now) || f.roundSince != 0 && r.machine.ConfirmedSince(f.roundSince) {
		f.roundSince = 0
		return true
	}
	if f.roundSince == 0 {
		f.roundSince = now
		r.machine.StartRound(now)
	}
	return false
}

func (r *Replica) emit(out dispatch.Out) { r.env.SendSession(r.id, out) }

// SessionOpen opens or refreshes a gateway's hand-out session.
type SessionOpen struct {
	Gateway base.NodeID
	Request wire.SessionOpen
	Done    func(error) // on the worker; must not block
}

// SessionClose closes a hand-out session.
type SessionClose struct {
	Session dispatch.SessionID
}

func (r *Replica) openSession(now clock.Mono, o *SessionOpen) {
	switch {
	case !r.status.Orderer:
		o.Done(r.notLeader())
	case !r.serving:
		r.holdEarly(o, o.Done)
	case r.events == nil:
		o.Done(fault.New(fault.Invalid, "range %d holds no events", r.id).OnRange(r.id))
	default:
		o.Done(r.openLanes(now, o))
	}
}

func (r *Replica) openLanes(now clock.Mono, o *SessionOpen) error {
	m := &o.Request
	parts := make([]base.PartitionID, len(m.Partitions))
	for i, p := range m.Partitions {
		parts[i] = base.PartitionID{Topic: m.Topic, Partition: p}
		if !r.state.Descriptor.Span.ContainsKey(keys.Partition(parts[i])) {
			return fault.New(fault.WrongRange, "partition %v is not in range %d", parts[i], r.id).OnRange(r.id)
		}
	}
	id := dispatch.SessionID{Gateway: o.Gateway, ID: m.Session}
	return r.events.Open(now, r.opts.Engine, id, parts, m.Group, m.Granted)
}

func (r *Replica) closeSession(c SessionClose) {
	if r.events != nil {
		r.events.Close(c.Session)
	}
}
