package command

import (
	"bytes"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/effect"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/mvcc"
	"github.com/almanacdb/almanac/internal/plant"
	"github.com/almanacdb/almanac/internal/timeline"
)

// Apply applies one command to a range: to its keys and events through v, and to st.
// The caller sets st.Applied. Without answer, only what the state needs is done, and
// the result lacks what a client would have read; the state is the same to the byte.
//
// A command that is fenced off (unknown kind or version, wrong range, no stamp, a stamp
// at or below the last) changes nothing. One whose body is refused changes the clock
// and the last stamp only. Both yield Result.Refusal. An error is of storage or
// corruption: v and st are then to be dropped and the replica must stop.
func Apply(v effect.View, st *State, env []byte, answer bool) (Result, error) {
	c, err := Decode(env)
	if fault.KindOf(err) == fault.Unimplemented {
		return refuse(st, fault.As(err)), nil
	}
	if err != nil {
		return Result{}, err
	}
	if f := fence(st, c); f != nil {
		return refuse(st, f), nil
	}
	if c.Kind.raises() {
		st.Clock = max(st.Clock, c.Stamp, c.Time)
	}
	if c.Kind.Stamped() {
		st.LastStamp = c.Stamp
	}
	res := Result{Stamp: c.Stamp}
	err = evaluate(v, st, c, answer, &res)
	res.Clock = st.Clock
	if err != nil {
		if !refuses(fault.KindOf(err)) {
			return Result{}, err
		}
		res = refuse(st, fault.As(err))
	}
	return res, nil
}

func refuse(st *State, f *fault.Error) Result {
	own := *f // a fault may be shared
	return Result{Refusal: own.OnRange(st.Descriptor.Range), Clock: st.Clock}
}

// raises says whether commands of this kind raise the range's clock (E2).
func (k Kind) raises() bool { return k != KindNoop && k != KindSetBound }

// fence returns why a command may have no effect at all; nil if it may.
func fence(st *State, c *Command) *fault.Error {
	if c.Stamp > base.MaxTimestamp || c.Time > base.MaxTimestamp {
		return fault.New(fault.Invalid, "a command's stamp or time is above the highest timestamp")
	}
	r := &st.Descriptor
	if c.SpanEpoch != 0 && c.SpanEpoch != r.SpanEpoch {
		return fault.New(fault.WrongRange, "range %d is at span epoch %d, the command at %d",
			r.Range, r.SpanEpoch, c.SpanEpoch)
	}
	for _, list := range [2][]base.Span{c.Reads, c.Writes} {
		for _, s := range list {
			if !r.Span.Contains(s) {
				return fault.New(fault.WrongRange, "range %d does not own all that the command touches", r.Range)
			}
		}
	}
	switch {
	case !c.Kind.Stamped():
		if c.Stamp != 0 {
			return fault.New(fault.Invalid, "command kind %d carries no stamp, but has one", c.Kind)
		}
	case c.Stamp == 0:
		return fault.New(fault.Invalid, "command kind %d has no stamp", c.Kind)
	case c.Stamp <= st.LastStamp && !plant.On(plant.ApplyUnchecked):
		return fault.New(fault.Restamp, "stamp %d is not above the range's last, %d",
			uint64(c.Stamp), uint64(st.LastStamp))
	}
	return nil
}

// refuses says whether a fault of this kind from a body means that the body was
// refused without effect. The others speak of this replica alone.
func refuses(k fault.Kind) bool {
	switch k {
	case fault.Invalid, fault.NotFound, fault.AlreadyExists, fault.CompareFailed, fault.TooLarge,
		fault.WrongRange, fault.Locked, fault.Busy, fault.Compacted, fault.FutureRevision,
		fault.Unimplemented:
		return true
	}
	return false
}

// evaluate does what the command's body asks for.
func evaluate(v effect.View, st *State, c *Command, answer bool, res *Result) (err error) {
	switch body := c.Body.(type) {
	case *mvcc.Txn:
		res.Txn, err = mvcc.Apply(v, body, c.Stamp, st.Horizon, answer)
	case *timeline.Publish:
		res.Published, err = timeline.ApplyPublish(v, st.Clock, c.Stamp, body)
	case *timeline.Ack:
		res.Acks, err = timeline.ApplyAck(v, st.Clock, body)
	case *timeline.CreateGroup:
		err = timeline.ApplyCreateGroup(v, st.Clock, c.Stamp, body)
	case *SetHorizon:
		err = st.setHorizon(body)
	case *SetBound:
		st.Bound = max(st.Bound, body.Bound)
	case *RaiseFeature:
		st.FeatureLevel = max(st.FeatureLevel, body.Level)
	}
	return err
}

func (st *State) setHorizon(h *SetHorizon) error {
	own := st.Descriptor.Span
	if !bytes.Equal(h.Span.Start, own.Start) || !bytes.Equal(h.Span.End, own.End) {
		return fault.New(fault.WrongRange, "a horizon is for another span than the range's")
	}
	if h.Horizon > st.Clock {
		return fault.New(fault.FutureRevision, "horizon %d is above the range's clock, %d",
			uint64(h.Horizon), uint64(st.Clock))
	}
	if h.Horizon <= st.Horizon {
		return fault.New(fault.Compacted, "the history below %d is gone already, and %d is not above", uint64(st.Horizon), uint64(h.Horizon))
	}
	st.Horizon = h.Horizon
	return nil
}
