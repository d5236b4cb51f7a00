package replica

import (
	"fmt"
	"testing"
	"time"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/clock"
	"github.com/almanacdb/almanac/internal/command"
	"github.com/almanacdb/almanac/internal/effect"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/host"
	"github.com/almanacdb/almanac/internal/keys"
)

// stored reads the range's state record.
func (g *rig) stored() *command.State {
	g.t.Helper()
	b, ok, err := g.eng.Get(keys.RangeState(g.r.id))
	g.must(err)
	if !ok {
		return &command.State{}
	}
	st, err := command.DecodeState(b)
	g.must(err)
	return st
}

func TestS1TheStateRecordIsInTheBatchThatItDescribes(t *testing.T) {
	g := newRig(t, userRange)
	g.serve()
	for i := range 5 {
		name := fmt.Sprint("k", i)
		p, o := proposal(put(name, "1"))
		done := p.Done
		p.Done = func(res command.Result, err error) {
			if st := g.stored(); g.value(name) != "1" || st.LastStamp != res.Stamp || st.Applied.Index < g.m.st.LastIndex {
				t.Errorf("in the answer to %s: value %q, record %+v", name, g.value(name), st)
			}
			done(res, err)
		}
		g.turn(p)
		g.grant(base.Timestamp(100 + i))
		g.commit()
		if o.done != 1 || g.stored().Applied != g.r.state.Applied {
			t.Fatalf("%v, record at %v, applied %v", o, g.stored().Applied, g.r.state.Applied)
		}
	}
	// A power cut loses values and record together, back to a flush.
	g.must(g.eng.Flush())
	durable := g.stored().Applied
	g.do(put("k9", "1"), 500)
	cut := g.eng.CrashClone(nil)
	b, _, err := cut.Get(keys.RangeState(userRange))
	g.must(err)
	st, err := command.DecodeState(b)
	g.must(err)
	g.eng = cut
	if st.Applied != durable || g.value("k9") != "" || g.value("k4") != "1" {
		t.Errorf("after a power cut: applied %v, flushed %v, values %q %q", st.Applied, durable, g.value("k9"), g.value("k4"))
	}
}

// fill commits n writes, and ticks often enough that a truncation is considered.
func (g *rig) fill(n int) {
	g.t.Helper()
	for range n {
		p, _ := proposal(put("a", "1"))
		g.turn(p)
		g.grant(base.Timestamp(100 + g.m.st.LastIndex))
	}
	g.commit()
	for range 9 {
		g.tick(time.Millisecond)
	}
}

func TestS1ALogIsTruncatedOnlyBelowWhatIsDurable(t *testing.T) {
	g := newRig(t, userRange)
	log := g.logs.Log(userRange)
	g.serve()
	g.fill(40)
	if first := log.First(); first != 11 {
		t.Fatalf("nothing is durable, and the log begins at %d", first)
	}
	g.must(g.eng.Flush())
	durable := g.r.state.Applied.Index
	g.fill(4)
	first := log.First()
	if applied := g.r.state.Applied.Index; first <= 11 || first > durable+1 || first > applied-8+1 {
		t.Errorf("the log begins at %d; durable %d, applied %d", first, durable, applied)
	}
	if mark := log.Truncated(); mark.Term != g.m.entry(mark.Index).Term {
		t.Errorf("truncated at %v", mark)
	}
}

func TestS1NothingIsTruncatedWhileASnapshotIsSent(t *testing.T) {
	g := newRig(t, userRange)
	log := g.logs.Log(userRange)
	g.serve()
	g.fill(2)
	at := g.r.state.Applied
	p, _ := proposal(put("a", "2"))
	g.turn(p)
	g.m.commitTo(g.m.st.LastIndex)
	snap := func(to base.ReplicaID) effect.Message {
		return effect.Message{Range: userRange, From: 101, To: to, Term: g.m.st.Term, Snapshot: &effect.SnapshotMeta{}}
	}
	g.m.early = []effect.Message{snap(102), snap(103)}
	g.grant(base.Timestamp(100 + g.m.st.LastIndex)) // with entries that are applied in the same turn
	if len(g.env.sent) != 1 || g.env.sent[0].Snapshot.Mark != at || g.env.sent[0].To != 102 {
		t.Fatalf("sent %+v", g.env.sent)
	}
	if len(g.m.reports) != 1 || g.m.reports[0] != (SnapshotSent{To: 103}) {
		t.Errorf("the second: %+v", g.m.reports)
	}
	g.must(g.eng.Flush())
	g.fill(60)
	g.must(g.eng.Flush())
	g.fill(8)
	if log.First() != 11 {
		t.Fatalf("the log begins at %d", log.First())
	}
	g.turn(SnapshotSent{To: 102, OK: true})
	for range 9 {
		g.tick(time.Millisecond)
	}
	if log.First() == 11 || g.m.reports[1] != (SnapshotSent{To: 102, OK: true}) {
		t.Errorf("afterwards it begins at %d; reports %+v", log.First(), g.m.reports)
	}
}

func TestS2ASnapshotIsInstalledBeforeTheLogIsReset(t *testing.T) {
	g := newRig(t, userRange)
	g.m.follow(102, 99, put("a", "1"))
	g.commit()
	mark := base.LogMark{Index: 40, Term: g.m.st.Term}
	s, f := g.arrived(mark, mark)
	log := g.logs.Log(userRange)
	f.onInstall = func() {
		if log.Last() == 40 || log.Truncated() == mark {
			t.Error("the log was reset before the state is durable")
		}
	}
	g.r.Deliver(g.now, s)
	turn := &host.Turn{Batch: g.logs.NewBatch()}
	g.r.Collect(g.now, turn)
	if f.installed != 1 || log.Truncated() == mark || turn.Batch.Empty() {
		t.Fatalf("installed %d times; the log is at %v before the turn is saved", f.installed, log.Truncated())
	}
	g.must(turn.Batch.Commit(true))
	g.r.Finish(g.now)
	st := g.stored()
	if log.Truncated() != mark || st.Applied != mark || st.Replica != 101 || f.aborted != 0 {
		t.Errorf("log at %v, record %+v, aborted %d", log.Truncated(), st, f.aborted)
	}
	g.m.follow(102, 99, put("b", "2"))
	g.m.push(base.EntryCommand, g.m.st.Term, put("b", "3"))
	g.commit()
	if g.r.state.Applied.Index != 43 {
		t.Errorf("applied %v", g.r.state.Applied)
	}
}

func TestS2ASnapshotThatDoesNotMatchIsDropped(t *testing.T) {
	mark := base.LogMark{Index: 40, Term: 6}
	cases := []struct {
		name string
		make func(g *rig) (*SnapshotArrived, *files)
	}{
		{"another mark", func(g *rig) (*SnapshotArrived, *files) {
			return g.arrived(mark, base.LogMark{Index: 41, Term: 6})
		}},
		{"another range", func(g *rig) (*SnapshotArrived, *files) {
			s, f := g.arrived(mark, mark)
			s.State.Descriptor.Range = 99
			return s, f
		}},
		{"the machine does not want it", func(g *rig) (*SnapshotArrived, *files) {
			g.m.accept = false
			return g.arrived(mark, mark)
		}},
		{"the machine does not want it, and has other work", func(g *rig) (*SnapshotArrived, *files) {
			g.m.accept = false
			g.m.push(base.EntryNoop, 6, nil)
			return g.arrived(mark, mark)
		}},
	}
	for _, c := range cases {
		g := newRig(t, userRange)
		g.m.follow(102, 99)
		g.turn()
		s, f := c.make(g)
		g.turn(s)
		if f.installed != 0 || f.aborted != 1 || g.r.state.Applied.Index >= 40 || g.env.fatal != nil {
			t.Errorf("%s: installed %d, aborted %d, applied %v, %v", c.name, f.installed, f.aborted, g.r.state.Applied, g.env.fatal)
		}
	}
}

func TestS2OfTwoSnapshotsInATurnTheMachinesIsInstalled(t *testing.T) {
	g := newRig(t, userRange)
	g.m.follow(102, 99)
	g.turn()
	one, two := base.LogMark{Index: 40, Term: 6}, base.LogMark{Index: 30, Term: 6}
	s1, f1 := g.arrived(one, one)
	s2, f2 := g.arrived(two, two)
	g.r.Deliver(g.now, s1)
	g.m.accept = false // the machine keeps the newer one
	g.turn(s2)
	if g.env.fatal != nil || f1.installed != 1 || f2.installed != 0 || f2.aborted != 1 {
		t.Errorf("first installed %d, second installed %d and aborted %d: %v", f1.installed, f2.installed, f2.aborted, g.env.fatal)
	}
}

func TestS2AnInstallThatFailsStopsTheNode(t *testing.T) {
	g := newRig(t, userRange)
	g.m.follow(102, 99)
	g.turn()
	mark := base.LogMark{Index: 40, Term: 6}
	s, f := g.arrived(mark, mark)
	f.fail = fault.New(fault.Internal, "disk")
	w, o := waitFor(base.LogMark{Index: 12, Term: 99})
	g.turn(w, s)
	if g.env.fatal == nil || g.r.Wake(g.now) != clock.Mono(0) || g.logs.Log(userRange).Truncated() == mark {
		t.Errorf("%v, log at %v", g.env.fatal, g.logs.Log(userRange).Truncated())
	}
	if g.r.Stop(); o.done != 1 {
		t.Error(o)
	}
}

func TestAStopDropsWhatIsStaged(t *testing.T) {
	g := newRig(t, userRange)
	mark := base.LogMark{Index: 40, Term: 6}
	s, f := g.arrived(mark, mark)
	g.r.Deliver(g.now, s)
	g.r.Stop()
	if f.aborted != 1 || f.installed != 0 {
		t.Errorf("aborted %d", f.aborted)
	}
	s, f = g.arrived(mark, mark)
	if Refuse(s, nil); f.aborted != 1 {
		t.Errorf("refused, and aborted %d times", f.aborted)
	}
}
