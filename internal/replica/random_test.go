package replica

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/command"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/keys"
	"github.com/almanacdb/almanac/internal/mvcc"
)

// world drives a replica at random, as its group, its clients and the oracle might, and
// checks every answer.
type world struct {
	*rig
	t        *rapid.T
	last     base.Timestamp // what the oracle issued last
	writes   []*write
	reads    []*read
	waits    []*outcome
	acked    uint64 // the highest index of an acknowledged write
	snapshot bool
	broken   bool
}

type write struct {
	*outcome
	name     string
	arrived  base.Timestamp // the oracle's last timestamp when it came
	deadline bool
}

type read struct {
	*outcome
	at     base.Timestamp // 0: fresh or newest
	newest bool
	issued base.Timestamp // the oracle's last timestamp when it came
	acked  uint64
	term   uint64
}

func (w *world) deadline() (at time.Duration) {
	if rapid.IntRange(0, 3).Draw(w.t, "deadline") == 0 {
		at = time.Duration(rapid.IntRange(1, 100).Draw(w.t, "ms")) * time.Millisecond
	}
	return at
}

func (w *world) write() any {
	x := &write{name: fmt.Sprint("k", len(w.writes)), arrived: w.last}
	p, o := proposal(put(x.name, x.name))
	x.outcome = o
	if d := w.deadline(); d > 0 {
		p.Deadline, x.deadline = w.now.Add(d), true
	}
	done := p.Done
	p.Done = func(res command.Result, err error) {
		done(res, err)
		if err == nil && res.Refusal == nil {
			w.acked = max(w.acked, w.r.state.Applied.Index)
			if res.Stamp <= x.arrived {
				w.t.Errorf("K3: %s has stamp %d, but %d was issued before it came", x.name, res.Stamp, x.arrived)
			}
		}
	}
	w.writes = append(w.writes, x)
	return p
}

func (w *world) read() any {
	x := &read{issued: w.last, acked: w.acked, term: w.m.st.Term}
	var b *Barrier
	switch rapid.IntRange(0, 2).Draw(w.t, "read") {
	case 0:
		b, x.outcome = newest()
		x.newest = true
	case 1:
		b, x.outcome = barrier(0)
	default:
		x.at = base.Timestamp(rapid.Uint64Range(1, max(1, uint64(w.last))).Draw(w.t, "at")) // K5
		b, x.outcome = barrier(x.at)
	}
	if d := w.deadline(); d > 0 {
		b.Deadline = w.now.Add(d)
	}
	b.Apply = rapid.Bool().Draw(w.t, "apply")
	done := b.Done
	b.Done = func(rep BarrierReply, err error) {
		done(rep, err)
		if err != nil {
			return
		}
		if rep.Mark.Index < x.acked {
			w.t.Errorf("K4: mark %v does not count index %d, acknowledged before the read", rep.Mark, x.acked)
		}
		if !x.newest && x.at == 0 && rep.At <= x.issued {
			w.t.Errorf("T4: stamped %d, but %d was issued before it came", rep.At, x.issued)
		}
		if b.Apply && w.r.state.Applied.Index < rep.Mark.Index {
			w.t.Errorf("answered at %v, applied is %v", rep.Mark, w.r.state.Applied)
		}
	}
	w.reads = append(w.reads, x)
	return b
}

// oracle answers one of the asks under way, or fails it.
func (w *world) oracle() any {
	if len(w.env.asks) == 0 {
		return nil
	}
	i := rapid.IntRange(0, len(w.env.asks)-1).Draw(w.t, "ask")
	if rapid.IntRange(0, 5).Draw(w.t, "fails") == 0 {
		return w.take(i, 0, fault.New(fault.Unavailable, "no oracle"))
	}
	n := w.env.asks[i].n
	first := w.last + 1
	w.last += base.Timestamp(n)
	return w.take(i, first, nil)
}

// issue answers some asks with timestamps in the order of asking, and mails the answers in
// any order: what flies long is below what comes first.
func (w *world) issue() (items []any) {
	for range rapid.IntRange(0, len(w.env.asks)).Draw(w.t, "grants") {
		if g := w.oracle(); g != nil {
			items = append(items, g)
		}
	}
	return rapid.Permutation(items).Draw(w.t, "order")
}

func (w *world) group() {
	m := w.m
	switch rapid.IntRange(0, 9).Draw(w.t, "group") {
	case 0:
		keep := rapid.Uint64Range(m.st.Commit, m.st.LastIndex).Draw(w.t, "keep")
		m.follow(102, keep)
	case 1:
		if !m.st.Orderer {
			m.lead()
		}
	case 2:
		m.lease = rapid.Bool().Draw(w.t, "lease")
	case 3:
		m.busy = nil
		if rapid.IntRange(0, 2).Draw(w.t, "busy") == 0 {
			m.busy = fault.New(fault.Busy, "too much")
		}
	case 4, 5:
		if n := len(m.rounds); n > 0 && m.st.Orderer {
			m.confirmed = max(m.confirmed, m.rounds[n-1])
		}
	default:
		m.commitTo(rapid.Uint64Range(m.st.Commit, m.st.LastIndex).Draw(w.t, "commit"))
	}
}

func (w *world) step() {
	w.now = w.now.Add(10 * time.Microsecond)
	var items []any
	for range rapid.IntRange(0, 3).Draw(w.t, "items") {
		switch rapid.IntRange(0, 3).Draw(w.t, "item") {
		case 0:
			items = append(items, w.write())
		case 1:
			items = append(items, w.read())
		case 2:
			items = append(items, w.issue()...)
		default:
			mark := base.LogMark{Index: w.m.st.LastIndex + 1, Term: w.m.st.Term}
			wait, o := waitFor(mark)
			w.waits = append(w.waits, o)
			items = append(items, wait)
		}
	}
	if rapid.IntRange(0, 20).Draw(w.t, "snapshot") == 0 && !w.m.st.Orderer && !w.snapshot {
		// It holds no more than what this log holds, so that reads can be checked.
		mark := base.LogMark{Index: w.m.st.LastIndex + 3, Term: w.m.st.Term}
		s, f := w.arrived(mark, mark)
		s.State.LastStamp, s.State.Clock = w.r.state.LastStamp, w.r.state.Clock
		items = append(items, s)
		w.snapshot = true
		w.m.commitTo(w.m.handed) // what it covers is not handed out
		f.onInstall = func() {}
	}
	tick := rapid.IntRange(0, 9).Draw(w.t, "tick") == 0
	if tick {
		w.now = w.now.Add(time.Duration(rapid.IntRange(1, 50).Draw(w.t, "passes")) * time.Millisecond)
	}
	if rapid.IntRange(0, 3).Draw(w.t, "change") > 0 {
		w.group()
	}
	w.sameTime(tick, items...)
}

// checkAnswers checks that everything was answered exactly once, and that the answers are
// true of what is stored.
func (w *world) checkAnswers() {
	for _, x := range w.writes {
		stored := w.value(x.name) != ""
		switch {
		case x.done != 1:
			w.t.Errorf("%s was %v", x.name, x.outcome)
		case x.err == nil && x.result.Refusal == nil:
			if !stored && !w.snapshot && !w.broken {
				w.t.Errorf("%s was acknowledged, and is not stored", x.name)
			}
		case x.kind() != fault.UnknownOutcome:
			if stored {
				w.t.Errorf("%s was denied with %v, and is stored", x.name, x.outcome)
			}
		}
	}
	for i, x := range w.reads {
		if x.done != 1 {
			w.t.Errorf("read %d was %v", i, x.outcome)
		}
	}
	for i, o := range w.waits {
		if o.done != 1 {
			w.t.Errorf("wait %d was %v", i, o)
		}
	}
}

// checkReads checks that no version at or below a timestamp at which a read was allowed
// stands above the index that the read was given.
func (w *world) checkReads() {
	type version struct {
		stamp base.Timestamp
		index uint64
	}
	var versions []version
	var last base.Timestamp
	for i := range w.m.entries {
		e := &w.m.entries[i]
		if e.Type != base.EntryCommand {
			continue
		}
		h, err := command.DecodeHeader(e.Data)
		w.must(err)
		if h.Stamp <= last {
			w.t.Errorf("K3: stamp %d at index %d after %d", h.Stamp, e.Index, last)
		}
		last = h.Stamp
		versions = append(versions, version{h.Stamp, e.Index})
	}
	for _, x := range w.reads {
		if x.err != nil || x.done == 0 || x.newest {
			continue
		}
		for _, v := range versions {
			if v.stamp <= x.reply.At && v.index > x.reply.Mark.Index {
				w.t.Errorf("K4: a read at %d was given %v; a version of %d stands at %d", x.reply.At, x.reply.Mark, v.stamp, v.index)
			}
		}
	}
}

func TestK3K4RandomEvents(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := &world{rig: newRig(rt, userRange, func(o *Options) { o.MaxQueued = 8 }), t: rt, last: 1000}
		w.m.lead()
		for range rapid.IntRange(20, 150).Draw(rt, "steps") {
			w.step()
		}
		switch rapid.IntRange(0, 3).Draw(rt, "end") {
		case 0:
			w.broken = true
			w.failure = fault.New(fault.Internal, "disk")
			w.commit()
			w.failure = nil
		case 1: // stopped in the middle
		default:
			w.m.busy, w.m.lease = nil, true
			for range 5 {
				w.tick(200 * time.Millisecond)
				w.turn(w.issue()...)
				w.commit()
			}
		}
		w.r.Stop()
		w.checkAnswers()
		w.checkReads()
	})
}

// Versions that reads at T saw stay as they were: what a replica's engine shows at T when
// it has applied up to the mark is what it shows at the end.
func TestInvariant11AReadAtTGivesTheSameAnswerLater(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		g := newRig(rt, userRange)
		g.serve()
		g.m.lease = true
		last := base.Timestamp(1000)
		show := func(at base.Timestamp) (kvs []string) {
			res, err := mvcc.Range(g.eng, keys.KeyspaceSpan(2), mvcc.RangeOptions{At: at})
			g.must(err)
			for _, kv := range res.KVs {
				kvs = append(kvs, fmt.Sprintf("%s=%s", kv.Key, kv.Value))
			}
			return kvs
		}
		type view struct {
			at   base.Timestamp
			seen []string
		}
		var views []view
		for i := range rapid.IntRange(10, 80).Draw(rt, "steps") {
			var items []any
			switch rapid.IntRange(0, 4).Draw(rt, "step") {
			case 0, 1:
				p, _ := proposal(put(fmt.Sprint("k", i%3), fmt.Sprint(i)))
				items = append(items, p)
			case 2:
				at := base.Timestamp(rapid.Uint64Range(uint64(last)-4, uint64(last)).Draw(rt, "at"))
				b, _ := barrier(at)
				b.Apply = true
				b.Done = func(rep BarrierReply, err error) {
					if err == nil {
						views = append(views, view{rep.At, show(rep.At)})
					}
				}
				items = append(items, b)
			case 3:
				if n := len(g.env.asks); n > 0 {
					i := rapid.IntRange(0, n-1).Draw(rt, "ask")
					size := g.env.asks[i].n
					// Sometimes one that was issued long ago.
					first := last + 1
					if rapid.Bool().Draw(rt, "late") {
						first = last - base.Timestamp(size)
					}
					last = max(last, first+base.Timestamp(size))
					items = append(items, g.take(i, first, nil))
				}
			default:
				g.m.commitTo(rapid.Uint64Range(g.m.st.Commit, g.m.st.LastIndex).Draw(rt, "commit"))
			}
			g.turn(items...)
		}
		g.commit()
		for _, v := range views {
			if now := show(v.at); !slices.Equal(now, v.seen) {
				rt.Errorf("at %d a read saw %v, and now %v", v.at, v.seen, now)
			}
		}
	})
}
