package timeline

import (
	"slices"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/effect"
	"github.com/almanacdb/almanac/internal/fault"
)

// ApplyAck settles events for groups and answers each position, in the order of the
// batches. clock is the range's clock after this command raised it: only events due by
// it can be acked. Nothing in the command refuses it as a whole; every error is fatal.
func ApplyAck(v effect.View, clock base.Timestamp, a *Ack) ([]AckOutcome, error) {
	return applyAck(v, clock, MaxAckedWindow, a)
}

func applyAck(v effect.View, clock base.Timestamp, window uint32, a *Ack) ([]AckOutcome, error) {
	n := 0
	for i := range a.Batches {
		n += len(a.Batches[i].Positions)
	}
	outcomes := make([]AckOutcome, n)
	rest := outcomes
	for i := range a.Batches {
		b := &a.Batches[i]
		if err := ackBatch(v, clock.Millis(), window, b, rest[:len(b.Positions)]); err != nil {
			return nil, fatal(err)
		}
		rest = rest[len(b.Positions):]
	}
	return outcomes, nil
}

func ackBatch(
	v effect.View, clockMS int64, window uint32, b *AckBatch, out []AckOutcome,
) (err error) {
	p := newPartition(b.Partition)
	g, ok, err := p.readGroup(v, b.Group)
	if err != nil {
		return err
	}
	a := acker{
		v: v, p: p, g: g, window: window,
		wanted: make([]wanted, 0, len(out)),
		marks:  &positions{},
	}
	for i, pos := range b.Positions {
		switch {
		case !ok:
			out[i] = AckNotFound
		case pos.Compare(g.Cursor) <= 0:
			out[i] = AckAlready
		case pos.DueMS > clockMS:
			out[i] = AckNotFound
		default:
			a.wanted = append(a.wanted, wanted{pos: pos, out: &out[i]})
		}
	}
	if len(a.wanted) == 0 {
		return nil
	}
	sortWanted(a.wanted)
	if a.events, err = p.events(v, g.Cursor, endOf(clockMS)); err != nil {
		return err
	}
	defer closeInto(&err, a.events)
	if g.Acked > 0 {
		if a.marks, err = p.acked(v, g.Group, g.Cursor, endOf(clockMS)); err != nil {
			return err
		}
		defer closeInto(&err, a.marks)
	}
	if err := a.advance(); err != nil {
		return err
	}
	if err := a.markRest(); err != nil {
		return err
	}
	if a.g == g {
		return nil
	}
	return v.Set(p.groupKey(g.Group), appendGroup(nil, &a.g))
}

// wanted is one position to ack, with the place of its outcome.
type wanted struct {
	pos base.Position
	out *AckOutcome
}

// sortWanted brings acks into timeline order. Of equal positions the first in the
// command stays first: it wins.
func sortWanted(w []wanted) {
	cmp := func(a, b wanted) int { return a.pos.Compare(b.pos) }
	if !slices.IsSortedFunc(w, cmp) {
		slices.SortStableFunc(w, cmp)
	}
}

// acker carries out the acks of one group in one partition. wanted shrinks from the
// front as acks are answered; events and marks, those above the cursor when the command
// began, are walked alongside.
type acker struct {
	v      effect.View
	p      *partition
	g      Group
	window uint32 // bound on g.Acked
	wanted []wanted
	events *positions
	marks  *positions // empty if the group had none
}

// advance moves the cursor over events that are settled, by these acks or before, up to
// the first that is not. Marks are deleted as the cursor passes them, and none is
// written for an ack that it passes at once.
func (a *acker) advance() error {
	for ; a.events.ok; a.events.next() {
		pos := a.events.at
		a.missing(pos)
		marked, err := a.unmark(pos)
		if err != nil {
			return err
		}
		if !a.take(pos, marked) && !marked {
			if skip, err := a.withdrawn(); !skip || err != nil {
				return err
			}
		}
		a.g.Cursor = pos
	}
	return a.events.err
}

// unmark deletes the marks up to pos, where the walk stands, and says whether pos had
// one: then the cursor passes it.
func (a *acker) unmark(pos base.Position) (found bool, err error) {
	for ; a.marks.ok && a.marks.at.Compare(pos) <= 0; a.marks.next() {
		if a.g.Acked == 0 {
			return false, fault.New(fault.Corrupt,
				"group %d has more acked marks in partition %v than it counts", a.g.Group, a.p.id)
		}
		if err := a.v.Delete(a.p.ackedKey(a.g.Group, a.marks.at)); err != nil {
			return false, err
		}
		a.g.Acked--
		found = a.marks.at == pos
	}
	return found, a.marks.err
}

// markRest answers the acks above the cursor: it marks those that name an event not yet
// settled, lowest positions first, while the window has room.
func (a *acker) markRest() error {
	for len(a.wanted) > 0 {
		pos := a.wanted[0].pos
		a.events.seek(pos)
		if a.events.err != nil {
			return a.events.err
		}
		if !a.events.ok || a.events.at != pos {
			a.answer(AckNotFound)
			continue
		}
		settled, err := a.marked(pos)
		if err != nil {
			return err
		}
		if !settled && a.g.Acked >= a.window {
			a.answer(AckWindowFull)
			continue
		}
		a.take(pos, settled)
		if settled {
			continue
		}
		if err := a.v.Set(a.p.ackedKey(a.g.Group, pos), nil); err != nil {
			return err
		}
		a.g.Acked++
	}
	return nil
}

// answer takes the first of the acks left and answers it.
func (a *acker) answer(o AckOutcome) {
	*a.wanted[0].out = o
	a.wanted = a.wanted[1:]
}

// take answers the acks of pos, which stand at the front of wanted, and says whether
// there were any. The first settles the event unless it was settled before.
func (a *acker) take(pos base.Position, settled bool) bool {
	found := false
	for len(a.wanted) > 0 && a.wanted[0].pos == pos {
		if settled {
			a.answer(AckAlready)
		} else {
			a.answer(AckDone)
		}
		settled, found = true, true
	}
	return found
}

// missing answers the acks below pos, where the walk found no event.
func (a *acker) missing(pos base.Position) {
	for len(a.wanted) > 0 && a.wanted[0].pos.Compare(pos) < 0 {
		a.answer(AckNotFound)
	}
}

// marked says whether pos was in the acked window when the command began.
func (a *acker) marked(pos base.Position) (bool, error) {
	a.marks.seek(pos)
	return a.marks.ok && a.marks.at == pos, a.marks.err
}

// withdrawn says whether the walk stands on an event that nobody is to get, which a
// cursor passes without an ack.
func (a *acker) withdrawn() (bool, error) {
	value, err := a.events.value()
	if err != nil {
		return false, err
	}
	flags, err := eventFlags(a.events.at, value)
	return flags&(FlagCancelled|FlagSkipped) != 0, err
}
