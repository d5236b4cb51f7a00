package replica

import (
	"testing"
	"time"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/clock"
	"github.com/almanacdb/almanac/internal/command"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/oracle"
)

const wallMS = 1_700_000_000_000

func stampRequest(n int) (*StampRequest, *outcome) {
	o := new(outcome)
	return &StampRequest{N: n, Done: func(first base.Timestamp, err error) {
		o.done++
		o.reply.At, o.err = first, err
	}}, o
}

// sampled is the voters' wall clocks.
func sampled() (items []any) {
	for n := range 3 {
		items = append(items, ClockSample{Node: base.NodeID(n + 1), WallMS: wallMS})
	}
	return items
}

// issuing is the system range at an orderer whose oracle's bound is applied.
func issuing(t *testing.T) *rig {
	g := newRig(t, base.SystemRange)
	g.serve()
	g.turn(sampled()...)
	g.commit()
	if g.r.state.Bound == 0 {
		t.Fatal("no bound was applied")
	}
	return g
}

func TestT1StampsAreIssuedUnderTheLease(t *testing.T) {
	g := issuing(t)
	g.m.lease = true
	q, o := stampRequest(3)
	if g.turn(q); o.done != 1 || o.err != nil || o.reply.At.Millis() < wallMS {
		t.Errorf("%v", o)
	}
	q, later := stampRequest(1)
	if g.turn(q); later.reply.At < o.reply.At+3 {
		t.Errorf("%d after 3 from %d", later.reply.At, o.reply.At)
	}
}

func TestT1WithoutALeaseARoundBegunAfterTheRequestConfirms(t *testing.T) {
	g := issuing(t)
	rounds := len(g.m.rounds)
	g.m.confirmed = g.now
	q1, o1 := stampRequest(1)
	g.turn(q1)
	q2, o2 := stampRequest(1)
	g.turn(q2)
	if o1.done+o2.done != 0 || len(g.m.rounds) != rounds+1 {
		t.Fatalf("first %v, second %v, rounds %v", o1, o2, g.m.rounds)
	}
	g.m.confirmed = g.m.rounds[rounds]
	g.turn()
	if o1.done != 1 || o1.err != nil || o2.done != 0 || len(g.m.rounds) != rounds+2 {
		t.Fatalf("after the first round: first %v, second %v, rounds %v", o1, o2, g.m.rounds)
	}
	g.m.confirmed = g.m.rounds[rounds+1]
	if g.turn(); o2.done != 1 || o2.err != nil || o2.reply.At <= o1.reply.At {
		t.Errorf("after the second: %v", o2)
	}
}

func TestT1NoStampsWhileNotServing(t *testing.T) {
	g := newRig(t, base.SystemRange)
	q, o := stampRequest(1)
	if g.turn(q); o.kind() != fault.NotLeader {
		t.Errorf("not the orderer: %v", o)
	}
	g.m.lead()
	g.m.lease = true
	g.turn(sampled()...)
	q, o = stampRequest(1)
	if g.turn(q); o.done != 1 || o.kind() != fault.Unavailable {
		t.Errorf("before the first entry of the term: %v", o)
	}
	g.commit()
	user := newRig(t, userRange)
	user.serve()
	q, o = stampRequest(1)
	if user.turn(q); o.kind() != fault.Invalid {
		t.Errorf("another range: %v", o)
	}
}

func TestT3TheBoundCountsWhenItIsAppliedNotBefore(t *testing.T) {
	g := newRig(t, base.SystemRange)
	g.serve()
	g.m.lease = true
	g.turn(sampled()...)
	h, err := command.DecodeHeader(g.m.entry(g.m.st.LastIndex).Data)
	if err != nil || h.Kind != command.KindSetBound || h.Stamp != 0 || h.Time != 0 {
		t.Fatalf("the log ends with %+v, %v", h, err)
	}
	q, o := stampRequest(1)
	if g.turn(q); o.done != 1 || o.kind() != fault.Unavailable {
		t.Fatalf("with a bound that is only appended: %v", o)
	}
	g.commit()
	q, o = stampRequest(1)
	if g.turn(q); o.err != nil || o.reply.At >= g.r.state.Bound {
		t.Errorf("%v, bound %d", o, g.r.state.Bound)
	}
	if g.r.state.Clock != 0 {
		t.Errorf("the bound raised the clock to %v", g.r.state.Clock)
	}
}

func TestT3TheOracleStepsDownBeforeEntriesOfALaterTermAreApplied(t *testing.T) {
	g := issuing(t)
	bound := g.r.state.Bound
	q, o := stampRequest(1)
	g.turn(q) // waits for a round
	higher := bound + 1<<30
	env, err := command.Encode(command.Header{Kind: command.KindSetBound}, &command.SetBound{Bound: higher})
	g.must(err)
	g.m.follow(102, g.m.st.LastIndex, env)
	g.m.commitTo(g.m.st.LastIndex)
	g.turn()
	if o.done != 1 || o.kind() != fault.NotLeader {
		t.Fatalf("%v", o)
	}
	if g.r.state.Bound != higher || g.r.oracle.oracle.Latest() != 0 {
		t.Fatalf("bound %d, oracle %d", g.r.state.Bound, g.r.oracle.oracle.Latest())
	}
	// Leading again, it is above all that the other may have issued.
	g.serve()
	g.m.lease = true
	g.turn(sampled()...)
	g.commit()
	for g.now = g.now.Add(2 * time.Second); g.r.Wake(g.now) != 0 && g.r.Wake(g.now) <= g.now; {
		g.sameTime(false)
	}
	g.turn(sampled()...)
	g.commit()
	q, o = stampRequest(1)
	if g.turn(q); o.err != nil || o.reply.At < higher {
		t.Errorf("%v after an earlier oracle's bound %d", o, higher)
	}
}

func TestT1QueuedStampRequestsAreBoundedAndAnsweredAtAStop(t *testing.T) {
	g := issuing(t)
	var outs []*outcome
	for range 100 {
		q, o := stampRequest(1)
		outs = append(outs, o)
		g.r.Deliver(g.now, q)
	}
	waiting := 0
	for _, o := range outs {
		if o.done == 0 {
			waiting++
		} else if o.kind() != fault.Busy {
			t.Fatal(o)
		}
	}
	if waiting != 64 {
		t.Errorf("%d wait", waiting)
	}
	g.r.Stop()
	for _, o := range outs {
		if o.done != 1 || o.err == nil {
			t.Fatal(o)
		}
	}
}

func TestT2OnlyAnOrdererSamplesClocks(t *testing.T) {
	g := newRig(t, base.SystemRange)
	g.turn(sampled()...)
	if g.env.samples != 0 || g.r.Wake(g.now) != clock.Mono(0) {
		t.Fatalf("%d rounds of samples", g.env.samples)
	}
	g.m.lead()
	if g.turn(); g.env.samples != 1 {
		t.Errorf("%d rounds of samples at the start", g.env.samples)
	}
}

// A dead voter's clock is not waited for; a silent one's is, for one election timeout.
func TestT2OnlyAVoterThatMayAnswerIsWaitedFor(t *testing.T) {
	for _, dead := range []bool{true, false} {
		g := newRig(t, base.SystemRange)
		g.serve()
		g.turn(sampled()[:2]...)
		if dead {
			g.turn(ClockSample{Node: 3, Failed: true, Asked: g.now})
		}
		if at := g.r.Visible(); at.Oracle != nil && at.Oracle.Phase == oracle.Issuing {
			t.Fatal("bad script: the status is of the last tick")
		}
		if got := g.r.oracle.oracle.Phase() != oracle.Anchoring; got != dead {
			t.Errorf("with voter 3 dead %v: anchored %v", dead, got)
		}
	}
}

// Who follows a leader on a node that is gone may stand.
func TestTheMachineIsToldThatALeaderIsGone(t *testing.T) {
	g := newRig(t, base.DefaultRange)
	g.turn(PeerGone{Node: 2}, PeerGone{Node: 9})
	rep, _ := g.r.state.Descriptor.ReplicaOn(2)
	if len(g.m.gone) != 1 || g.m.gone[0] != rep.Replica {
		t.Errorf("told of %v, not of %d alone", g.m.gone, rep.Replica)
	}
}
