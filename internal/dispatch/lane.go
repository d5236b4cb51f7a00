package dispatch

import (
	"math"
	"slices"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/effect"
	"github.com/almanacdb/almanac/internal/timeline"
)

// lane is one group's hand-out in one partition. Every due event is in exactly one
// place: after scan (not looked at yet), in flight, returned, or settled.
type lane struct {
	partition base.PartitionID
	group     base.GroupID
	sessions  []*session
	turn      int // whose turn it is among sessions

	cursor    base.Position // the group's cursor as last applied
	marks     int           // acked positions above the cursor, as last applied
	scan      base.Position // everything at or before it was picked or settled
	skipMarks bool          // there may be acked marks above scan
	more      bool          // there may be due events above scan

	flight   map[base.Position]*delivery
	returned []returned // by position
}

type delivery struct {
	session *session
	attempt uint32
}

// returned is a delivery that came back unacked; attempt is the last one made.
type returned struct {
	pos     base.Position
	attempt uint32
}

type pick struct {
	event   timeline.Event
	attempt uint32
}

func comparePos(r returned, p base.Position) int { return r.pos.Compare(p) }

// ready says that something may be picked and somebody has credit for it.
func (l *lane) ready() bool {
	return (l.more || len(l.returned) > 0) && l.credit() > 0
}

func (l *lane) credit() int {
	n := 0
	for _, s := range l.sessions {
		n += s.credit()
	}
	return n
}

// withCredit counts the sessions that have credit.
func (l *lane) withCredit() int {
	n := 0
	for _, s := range l.sessions {
		if s.credit() > 0 {
			n++
		}
	}
	return n
}

// nextSession returns the next session in turn that has credit; there must be one.
func (l *lane) nextSession() *session {
	for {
		l.turn = (l.turn + 1) % len(l.sessions)
		if s := l.sessions[l.turn]; s.credit() > 0 {
			return s
		}
	}
}

// forgettable says that nothing would be lost with the lane: not even how often an
// event was handed out.
func (l *lane) forgettable() bool { return len(l.sessions) == 0 && len(l.returned) == 0 }

// leave takes a session out; what it holds returns.
func (l *lane) leave(s *session) {
	i := slices.Index(l.sessions, s)
	if i < 0 {
		return
	}
	l.sessions = slices.Delete(l.sessions, i, i+1)
	var held []base.Position
	for pos, del := range l.flight {
		if del.session == s {
			held = append(held, pos)
		}
	}
	slices.SortFunc(held, base.Position.Compare) // a map has no order of its own
	for _, pos := range held {
		l.giveBack(pos)
	}
}

// giveBack moves an event from in flight to returned.
func (l *lane) giveBack(pos base.Position) {
	del := l.flight[pos]
	delete(l.flight, pos)
	i, found := slices.BinarySearchFunc(l.returned, pos, comparePos)
	if !found {
		l.returned = slices.Insert(l.returned, i, returned{pos: pos, attempt: del.attempt})
	}
}

// settledAmong returns those of the positions that are settled: the group's cursor has
// passed them, or they are marked.
func settledAmong(r effect.Reader, p base.PartitionID, rec timeline.Group, positions []base.Position) ([]base.Position, error) {
	var above []base.Position
	for _, pos := range positions {
		if pos.Compare(rec.Cursor) > 0 {
			above = append(above, pos)
		}
	}
	if len(above) == 0 {
		return positions, nil
	}
	marked := make(map[base.Position]bool, len(above))
	if rec.Acked > 0 {
		from := before(slices.MinFunc(above, base.Position.Compare))
		to := slices.MaxFunc(above, base.Position.Compare)
		err := timeline.AckedAbove(r, p, rec.Group, from, to, func(pos base.Position) bool {
			marked[pos] = true
			return true
		})
		if err != nil {
			return nil, err
		}
	}
	return slices.DeleteFunc(slices.Clone(positions), func(pos base.Position) bool {
		return pos.Compare(rec.Cursor) > 0 && !marked[pos]
	}), nil
}

// before returns the position just before pos.
func before(pos base.Position) base.Position {
	if pos.Seq > 0 {
		return base.Position{DueMS: pos.DueMS, Seq: pos.Seq - 1}
	}
	return base.Position{DueMS: pos.DueMS - 1, Seq: math.MaxUint64}
}

// settled takes settled positions out of flight and out of what returned.
func (l *lane) settled(rec timeline.Group, positions []base.Position) {
	l.cursor, l.marks = rec.Cursor, int(rec.Acked)
	for _, pos := range positions {
		delete(l.flight, pos)
		if i, ok := slices.BinarySearchFunc(l.returned, pos, comparePos); ok {
			l.returned = slices.Delete(l.returned, i, i+1)
		}
		if pos.Compare(l.scan) > 0 {
			// An ack for what an earlier orderer handed out.
			l.skipMarks = true
		}
	}
	if l.cursor.Compare(l.scan) > 0 {
		l.scan = l.cursor
	}
}

// pick chooses events to hand out: returned ones first, then those after scan. The
// number is bounded by credit, batch size and the acked window, so that an ack of
// what is handed out finds room. The lowest unsettled event needs none, for the cursor
// passes it at once: it is handed out even if acks of others have filled the window.
func (l *lane) pick(r effect.Reader, clockMS int64, o Options) ([]pick, error) {
	n := min(l.credit(), o.BatchEvents)
	picked, bytes, err := l.pickReturned(r, n, o.BatchBytes)
	if err != nil {
		return nil, err
	}
	open := len(l.flight) + len(l.returned) + len(picked)
	room := o.Window - l.marks - open
	if open == 0 {
		room = max(room, 1)
	}
	n = min(n-len(picked), room)
	if n <= 0 || !l.more || bytes >= o.BatchBytes {
		return picked, nil
	}
	return l.pickNew(r, clockMS, n, o.BatchBytes-bytes, picked)
}

func (l *lane) pickReturned(r effect.Reader, n, maxBytes int) (picked []pick, bytes int, err error) {
	taken := 0
	for taken < len(l.returned) && len(picked) < n && bytes < maxBytes {
		back := l.returned[taken]
		taken++
		ev, ok, err := timeline.ReadEvent(r, l.partition, back.pos)
		if err != nil {
			return nil, 0, err
		}
		if ok {
			bytes += len(ev.Payload)
			picked = append(picked, pick{event: ev, attempt: back.attempt + 1})
		}
	}
	l.returned = l.returned[taken:]
	return picked, bytes, nil
}

// pickNew picks from above scan, passing over what was acked already.
func (l *lane) pickNew(r effect.Reader, clockMS int64, n, maxBytes int, picked []pick) ([]pick, error) {
	start := len(picked)
	for l.more && len(picked) == start {
		from := l.scan
		_, err := timeline.ScanDue(r, l.partition, from, clockMS, n, maxBytes, func(ev timeline.Event) bool {
			picked = append(picked, pick{event: ev, attempt: 1})
			return true
		})
		if err != nil {
			return nil, err
		}
		if len(picked) == start {
			l.more, l.skipMarks = false, false
			break
		}
		l.scan = picked[len(picked)-1].event.Position
		if l.skipMarks {
			fresh, err := l.unacked(r, from, picked[start:])
			if err != nil {
				return nil, err
			}
			picked = picked[:start+len(fresh)]
		}
	}
	return picked, nil
}

// unacked filters out of picked, which lies in (from, scan], what was acked.
func (l *lane) unacked(r effect.Reader, from base.Position, picked []pick) ([]pick, error) {
	acked := make(map[base.Position]bool)
	err := timeline.AckedAbove(r, l.partition, l.group, from, l.scan, func(p base.Position) bool {
		acked[p] = true
		return true
	})
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(picked, func(p pick) bool { return acked[p.event.Position] }), nil
}

// unpick undoes pick: nothing of it was handed out.
func (l *lane) unpick(picked []pick) {
	for _, p := range picked {
		i, found := slices.BinarySearchFunc(l.returned, p.event.Position, comparePos)
		if !found {
			l.returned = slices.Insert(l.returned, i, returned{pos: p.event.Position, attempt: p.attempt - 1})
		}
	}
}
