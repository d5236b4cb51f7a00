package replica

import (
	"bytes"
	"testing"
	"time"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/clock"
	"github.com/almanacdb/almanac/internal/fault"
)

func TestK3NoStampIsAskedForBeforeTheFirstEntryOfTheTermIsApplied(t *testing.T) {
	g := newRig(t, userRange)
	g.m.lead()
	g.turn()
	p, o := proposal(put("a", "1"))
	b, read := barrier(0)
	g.turn(p, b)
	if len(g.env.asks) != 0 || o.done+read.done != 0 {
		t.Fatalf("asks %v before the first entry is applied; write %v, read %v", g.env.asks, o, read)
	}
	g.commit()
	if len(g.env.asks) != 1 || g.env.asks[0].n != 2 {
		t.Fatalf("after it, asks are %v", g.env.asks)
	}
}

func TestK3AStampAskedForBeforeARequestCameIsNotUsedForIt(t *testing.T) {
	g := newRig(t, userRange)
	g.serve()
	p1, o1 := proposal(put("a", "1"))
	g.turn(p1)
	p2, o2 := proposal(put("b", "1"))
	b, read := barrier(0)
	// The grant is in the mailbox before the later requests, and behind them.
	g.turn(p2, g.take(0, 100, nil), b)
	g.m.lease = true
	g.commit()
	if o1.done != 1 || o2.done+read.done != 0 {
		t.Fatalf("first %v, second %v, read %v", o1, o2, read)
	}
	if len(g.env.asks) != 1 || g.env.asks[0].n != 2 {
		t.Fatalf("asks for the later ones: %v", g.env.asks)
	}
	g.grant(200)
	g.commit()
	if o2.result.Stamp != 201 || read.reply.At != 200 {
		t.Errorf("second %v at %d, read %v", o2, o2.result.Stamp, read)
	}
}

func TestK3StampsOfAnEarlierTermAreNotUsed(t *testing.T) {
	g := newRig(t, userRange)
	g.serve()
	p, o := proposal(put("a", "1"))
	g.turn(p)
	g.m.follow(102, 99)
	g.m.commitTo(99)
	g.turn()
	if o.done != 1 || o.kind() != fault.NotLeader {
		t.Fatalf("at step-down: %v", o)
	}
	g.serve()
	p, o = proposal(put("a", "2"))
	g.turn(p)
	last := g.m.st.LastIndex
	g.grant(100) // of the earlier term
	if g.m.st.LastIndex != last || o.done != 0 {
		t.Fatalf("an old grant was used: %v", o)
	}
	g.grant(200)
	g.commit()
	if o.done != 1 || o.result.Stamp != 200 {
		t.Errorf("%v", o)
	}
}

func TestK3StampsAskedForByAnEarlierReplicaOfTheRangeAreNotUsed(t *testing.T) {
	removed, made := newRig(t, userRange), newRig(t, userRange)
	for _, g := range []*rig{removed, made} {
		g.serve()
		p, _ := proposal(put("a", "1"))
		g.turn(p)
		made.now = made.now.Add(time.Second)
	}
	last := made.m.st.LastIndex
	if made.turn(removed.take(0, 100, nil)); made.m.st.LastIndex != last {
		t.Error("a grant to a removed replica was used")
	}
}

func TestK3StampsRiseInTheLogWhenGrantsComeOutOfOrder(t *testing.T) {
	g := newRig(t, userRange)
	g.serve()
	var outs []*outcome
	for _, name := range []string{"a", "b", "c"} {
		p, o := proposal(put(name, "1"))
		outs = append(outs, o)
		g.turn(p)
	}
	if len(g.env.asks) != 3 {
		t.Fatalf("asks: %v", g.env.asks)
	}
	g.turn(g.take(2, 300, nil))
	g.turn(g.take(0, 100, nil)) // too low by now: asks again
	g.turn(g.take(0, 200, nil))
	g.grant(400)
	g.grant(500)
	g.commit()
	var last base.Timestamp
	for i := g.m.st.LastIndex - 2; i <= g.m.st.LastIndex; i++ {
		if s := g.stampOf(i); s <= last {
			t.Errorf("stamp %d after %d", s, last)
		} else {
			last = s
		}
	}
	for i, o := range outs {
		if o.done != 1 || o.err != nil || o.result.Refusal != nil {
			t.Errorf("write %d: %v", i, o)
		}
	}
}

// refusedAtApply makes the next stamp too low by the time that it is applied, which no
// sound orderer does: what apply does about it is the backstop.
func refusedAtApply(g *rig, o *outcome, p *Proposal) {
	g.t.Helper()
	g.turn(p)
	g.grant(100)
	g.r.state.LastStamp = 150
}

func TestK3AStampRefusedAtApplyIsTriedAgain(t *testing.T) {
	g := newRig(t, userRange)
	g.serve()
	p, o := proposal(put("a", "1"))
	refusedAtApply(g, o, p)
	first := g.m.entry(g.m.st.LastIndex)
	was := bytes.Clone(first.Data)
	g.commit()
	if o.done != 0 || len(g.env.asks) != 1 || g.value("a") != "" {
		t.Fatalf("after the refusal: %v, asks %v, value %q", o, g.env.asks, g.value("a"))
	}
	g.grant(200)
	if !bytes.Equal(first.Data, was) {
		t.Error("the entry that stands in the log was changed")
	}
	g.commit()
	if o.done != 1 || o.result.Stamp != 200 || g.value("a") != "1" {
		t.Errorf("%v, value %q", o, g.value("a"))
	}
}

func TestK3AStampRefusedAtApplyIsNotTriedAgainByWhoNoLongerOrders(t *testing.T) {
	g := newRig(t, userRange)
	g.serve()
	p, o := proposal(put("a", "1"))
	refusedAtApply(g, o, p)
	g.m.follow(102, 99)
	g.m.commitTo(99)
	g.turn()
	if o.done != 1 || o.err != nil || o.result.Refusal == nil || o.result.Refusal.Kind != fault.Restamp {
		t.Fatalf("%v", o)
	}
	g.serve()
	if len(g.env.asks) != 0 || g.value("a") != "" {
		t.Errorf("asks %v, value %q", g.env.asks, g.value("a"))
	}
}

func TestK3AnswersFollowWhatIsAppliedAtTheIndex(t *testing.T) {
	cases := []struct {
		name string
		end  func(g *rig)
		want fault.Kind
	}{
		{"applied in its own term", func(g *rig) { g.commit() }, 0},
		{"applied after the orderer changed", func(g *rig) {
			g.m.follow(102, 99)
			g.commit()
		}, 0},
		{"another term's entry", func(g *rig) {
			g.m.follow(102, g.m.st.Commit, put("b", "1"))
			g.commit()
		}, fault.NotLeader},
		{"a snapshot over it", func(g *rig) {
			g.m.follow(102, g.m.st.Commit)
			mark := base.LogMark{Index: 40, Term: g.m.st.Term}
			s, _ := g.arrived(mark, mark)
			g.turn(s)
		}, fault.UnknownOutcome},
		{"a deadline", func(g *rig) { g.tick(2 * time.Second) }, fault.UnknownOutcome},
		{"a stop", func(g *rig) { g.r.Stop() }, fault.UnknownOutcome},
		{"storage that fails", func(g *rig) {
			g.failure = fault.New(fault.Internal, "disk")
			g.commit()
			g.r.Stop()
		}, fault.UnknownOutcome},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			g := newRig(t, userRange)
			g.serve()
			p, o := proposal(put("a", "1"))
			p.Deadline = g.now.Add(time.Second)
			g.turn(p)
			g.grant(100)
			if o.done != 0 {
				t.Fatalf("answered before it was committed: %v", o)
			}
			c.end(g)
			if o.done != 1 || o.kind() != c.want {
				t.Fatalf("%v", o)
			}
			if c.want == 0 && (o.result.Stamp != 100 || g.value("a") != "1") {
				t.Errorf("%v, value %q", o, g.value("a"))
			}
			if c.want == fault.NotLeader && g.value("a") != "" {
				t.Errorf("denied, and done")
			}
			if g.failure == nil {
				g.commit()
			}
			g.r.Stop()
			if o.done != 1 {
				t.Errorf("later: %v", o)
			}
		})
	}
}

func TestK10WhatWasNotAppendedIsDefinitelyNotDone(t *testing.T) {
	cases := []struct {
		name string
		end  func(g *rig)
		want fault.Kind
	}{
		{"its time ran out while a timestamp was asked for", func(g *rig) { g.tick(2 * time.Second) }, fault.Deadline},
		{"the oracle fails until its time runs out", func(g *rig) {
			g.turn(g.take(0, 0, fault.New(fault.Unavailable, "no oracle")))
			g.tick(2 * time.Second)
		}, fault.Deadline},
		{"too much is in the log", func(g *rig) {
			g.m.busy = fault.New(fault.Busy, "too much")
			g.grant(100)
		}, fault.Busy},
		{"the orderer stepped down", func(g *rig) { g.m.follow(102, 99); g.turn() }, fault.NotLeader},
		{"the orderer stepped down in the turn of the grant", func(g *rig) { g.m.follow(102, 99); g.grant(100) }, fault.NotLeader},
		{"a stop", func(g *rig) { g.r.Stop() }, fault.Stopped},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			g := newRig(t, userRange)
			g.serve()
			p, o := proposal(put("a", "1"))
			p.Deadline = g.now.Add(time.Second)
			g.turn(p)
			c.end(g)
			if o.done != 1 || o.kind() != c.want {
				t.Fatalf("%v", o)
			}
			g.m.busy = nil
			for len(g.env.asks) > 0 {
				g.grant(500)
			}
			g.commit()
			if g.r.Stop(); o.done != 1 || g.value("a") != "" {
				t.Errorf("later: %v, value %q", o, g.value("a"))
			}
		})
	}
}

func TestGrantsThatFailAreAskedForAgainALittleLater(t *testing.T) {
	g := newRig(t, userRange)
	g.serve()
	p, o := proposal(put("a", "1"))
	b, read := barrier(0)
	g.m.lease = true
	g.turn(p, b)
	failed := fault.New(fault.Unavailable, "no oracle")
	var gaps []time.Duration
	for range 6 {
		at := g.now
		g.turn(g.take(0, 0, failed))
		for len(g.env.asks) == 0 {
			wake := g.r.Wake(g.now)
			if wake <= g.now {
				t.Fatalf("wants to be woken at %v, it is %v", wake, g.now)
			}
			g.now = wake
			g.sameTime(false)
		}
		gaps = append(gaps, g.now.Sub(at))
	}
	for i, gap := range gaps {
		if gap < stampRetryMin || gap > stampRetryMax+time.Millisecond || i > 0 && gap < gaps[i-1]-time.Millisecond {
			t.Errorf("gaps between attempts: %v", gaps)
			break
		}
	}
	g.grant(100)
	g.commit()
	if o.done != 1 || o.result.Stamp != 101 || read.reply.At != 100 {
		t.Errorf("write %v, read %v", o, read)
	}
}

func TestQueuesAreBounded(t *testing.T) {
	g := newRig(t, userRange)
	g.m.lead()
	var outs []*outcome
	add := func(item any, o *outcome) { outs = append(outs, o); g.r.Deliver(g.now, item) }
	g.turn()
	for range 100 { // 64 are held
		add(proposal(put("a", "1")))
	}
	g.commit()
	for range 500 {
		add(proposal(put("a", "1")))
		add(barrier(0))
		add(newest())
		w, o := waitFor(base.LogMark{Index: 1000, Term: 99})
		add(w, o)
	}
	busy := 0
	for _, o := range outs {
		if o.done == 1 && o.kind() == fault.Busy {
			busy++
		}
	}
	if held := len(outs) - busy; held > 5*64 {
		t.Errorf("%d are held", held)
	}
	g.r.Stop()
	for i, o := range outs {
		if o.done != 1 {
			t.Fatalf("request %d was %v", i, o)
		}
	}
}

func waitFor(mark base.LogMark) (*Wait, *outcome) {
	o := new(outcome)
	return &Wait{Mark: mark, Done: func(err error) { o.done++; o.err = err }}, o
}

func TestABrokenReplicaAnswersNothingFromItsMemory(t *testing.T) {
	g := newRig(t, userRange)
	g.serve()
	g.m.lease = true
	p, o := proposal(put("a", "1"))
	queued, oq := proposal(put("b", "1"))
	w, waiting := waitFor(base.LogMark{Index: 12, Term: 99})
	g.turn(p, w)
	g.grant(100)
	g.turn(queued)
	g.failure = fault.New(fault.Internal, "disk")
	before := *g.r.Visible()
	g.commit()
	if g.env.fatal == nil || o.done != 1 || o.kind() != fault.UnknownOutcome {
		t.Fatalf("fatal %v, the write %v", g.env.fatal, o)
	}
	if waiting.done != 0 || oq.done != 0 {
		t.Fatalf("wait %v, queued %v", waiting, oq)
	}
	if v := g.r.Visible(); v.Applied != before.Applied {
		t.Errorf("shows %+v, but nothing was stored", v)
	}
	b, read := newest()
	p2, o2 := proposal(put("c", "1"))
	g.turn(b, p2, g.take(0, 200, nil))
	g.tick(time.Minute)
	if read.kind() != fault.Stopped || o2.kind() != fault.Stopped || g.r.Wake(g.now) != clock.Mono(0) {
		t.Errorf("read %v, write %v", read, o2)
	}
	g.r.Stop()
	for i, o := range []*outcome{o, oq, waiting, read, o2} {
		if o.done != 1 {
			t.Errorf("request %d: %v", i, o)
		}
	}
}
