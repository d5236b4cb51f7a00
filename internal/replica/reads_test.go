package replica

import (
	"testing"
	"time"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/command"
	"github.com/almanacdb/almanac/internal/fault"
)

func TestK4NothingIsServedBeforeTheFirstEntryOfTheTermIsApplied(t *testing.T) {
	g := newRig(t, userRange)
	g.m.lead()
	g.m.lease, g.m.confirmed = true, g.now.Add(time.Hour)
	g.turn()
	b1, at := barrier(50)
	b2, fresh := newest()
	g.turn(b1, b2)
	if at.done+fresh.done != 0 {
		t.Fatalf("read at T %v, newest %v", at, fresh)
	}
	g.commit()
	if at.done != 1 || fresh.done != 1 || fresh.reply.Mark.Index < g.m.st.TermStart {
		t.Errorf("read at T %v, newest %v", at, fresh)
	}
}

func TestK4ABarrierCountsAllThatWasAppended(t *testing.T) {
	g := newRig(t, userRange)
	g.serve()
	g.m.lease = true
	p, _ := proposal(put("a", "1"))
	g.turn(p)
	// The grant and the read are in one turn: the write has a stamp below T and stands
	// at the index that the read is given.
	b, read := barrier(150)
	g.turn(g.take(0, 100, nil), b)
	if read.done != 1 || read.reply.Mark != (base.LogMark{Index: g.m.st.LastIndex, Term: g.m.st.Term}) || g.stampOf(read.reply.Mark.Index) != 100 {
		t.Errorf("%v", read)
	}
}

func TestK4APromisedWriteIsRestampedAndLaterPromisesWait(t *testing.T) {
	g := newRig(t, userRange)
	g.serve()
	g.m.lease = true
	p, o := proposal(put("a", "1"))
	g.turn(p)
	b1, before := barrier(100)
	g.turn(b1)
	if before.done != 1 {
		t.Fatalf("%v", before)
	}
	last := g.m.st.LastIndex
	g.grant(100) // not above what was promised
	if g.m.st.LastIndex != last {
		t.Fatal("a write at the promised timestamp was appended")
	}
	b2, behind := barrier(300)
	b3, fresh := newest()
	g.turn(b2, b3)
	if behind.done != 0 || fresh.done != 1 {
		t.Fatalf("a later read %v; the newest %v", behind, fresh)
	}
	g.grant(200)
	if behind.done != 1 || behind.reply.Mark.Index != last+1 || g.stampOf(last+1) != 200 {
		t.Errorf("after the append: %v, stamped %d", behind, g.stampOf(last+1))
	}
	g.commit()
	if o.done != 1 || o.result.Stamp != 200 {
		t.Errorf("the write: %v", o)
	}
}

func TestK4PromisesThatWaitGoOnWhenTheRestampedWriteIsGone(t *testing.T) {
	cases := []struct {
		name string
		end  func(g *rig)
	}{
		{"its time ran out", func(g *rig) { g.tick(2 * time.Second); g.turn() }},
		{"its time ran out after a failed fetch", func(g *rig) {
			g.turn(g.take(0, 0, fault.New(fault.Unavailable, "no oracle")))
			g.tick(2 * time.Second)
			g.turn()
		}},
		{"the log took no more", func(g *rig) { g.m.busy = fault.New(fault.Busy, "too much"); g.grant(400) }},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			g := newRig(t, userRange)
			g.serve()
			g.m.lease = true
			p, o := proposal(put("a", "1"))
			p.Deadline = g.now.Add(time.Second)
			g.turn(p)
			b1, _ := barrier(100)
			g.turn(b1)
			g.grant(100)
			b2, read := barrier(300)
			g.turn(b2)
			if read.done != 0 {
				t.Fatalf("%v", read)
			}
			c.end(g)
			if o.done != 1 || o.err == nil || read.done != 1 || read.err != nil || g.r.writes.behind != 0 {
				t.Errorf("write %v, read %v, behind %d", o, read, g.r.writes.behind)
			}
		})
	}
}

func TestK4WithoutALeaseARoundBegunAfterThePromiseConfirms(t *testing.T) {
	g := newRig(t, userRange)
	g.serve()
	rounds := len(g.m.rounds)
	g.m.confirmed = g.now
	b1, read := barrier(100)
	g.turn(b1)
	if read.done != 0 || len(g.m.rounds) != rounds+1 {
		t.Fatalf("%v after rounds %v", read, g.m.rounds)
	}
	// A second read that comes later is not confirmed by the first one's round.
	b2, later := newest()
	g.turn(b2)
	g.m.confirmed = g.m.rounds[rounds]
	g.turn()
	if read.done != 1 || later.done != 0 {
		t.Fatalf("first %v, second %v", read, later)
	}
	g.m.confirmed = g.m.rounds[len(g.m.rounds)-1]
	if g.turn(); later.done != 1 {
		t.Fatalf("second %v", later)
	}
	// The lease of later confirms too: nobody else led in between.
	b3, third := barrier(200)
	g.turn(b3)
	g.m.lease = true
	if g.turn(); third.done != 1 {
		t.Errorf("third %v", third)
	}
}

func TestK4StepDownFailsQueuedReads(t *testing.T) {
	g := newRig(t, userRange)
	g.serve()
	p, o := proposal(put("a", "1"))
	b, promised := barrier(100)
	g.turn(p, b)
	g.grant(100)
	b1, unstamped := barrier(0)
	b2, blocked := barrier(300)
	b3, unconfirmed := newest()
	g.turn(b1, b2, b3)
	g.m.follow(103, 99)
	b4, sameTurn := barrier(400)
	b5, sameTurnNewest := newest()
	g.turn(b4, b5)
	for i, read := range []*outcome{promised, unstamped, blocked, unconfirmed, sameTurn, sameTurnNewest, o} {
		if read.done != 1 || read.kind() != fault.NotLeader || fault.As(read.err).Leader != 3 {
			t.Errorf("%d: %v", i, read)
		}
	}
}

func TestK4NewestCountsAllThatWasAcknowledged(t *testing.T) {
	g := newRig(t, userRange)
	g.serve()
	g.m.lease = true
	p, o := proposal(put("a", "1"))
	g.turn(p)
	g.grant(100)
	for o.done == 0 {
		g.commit()
	}
	b, read := newest()
	if g.turn(b); read.done != 1 || read.reply.Mark.Index < g.m.st.LastIndex || read.reply.At != 0 {
		t.Errorf("%v; the write stands at %d", read, g.m.st.LastIndex)
	}
}

func TestK4WaitsAreAnsweredWhenAppliedOrWhenTheTermIsOver(t *testing.T) {
	g := newRig(t, userRange)
	g.m.follow(102, 99, put("a", "1"), put("b", "1"))
	g.turn()
	w1, o1 := waitFor(base.LogMark{Index: 11, Term: g.m.st.Term})
	w2, o2 := waitFor(base.LogMark{Index: 12, Term: g.m.st.Term})
	w3, o3 := waitFor(base.LogMark{Index: 13, Term: g.m.st.Term})
	w4, o4 := waitFor(base.LogMark{Index: 13, Term: g.m.st.Term})
	w4.Deadline = g.now.Add(time.Second)
	g.turn(w1, w2, w3, w4)
	if o1.done+o2.done+o3.done+o4.done != 0 {
		t.Fatal("answered before anything is applied")
	}
	g.m.commitTo(12)
	g.turn()
	g.tick(2 * time.Second)
	if o1.err != nil || o2.err != nil || o1.done != 1 || o2.done != 1 || o3.done != 0 || o4.kind() != fault.Deadline {
		t.Fatalf("%v, %v, %v, %v", o1, o2, o3, o4)
	}
	g.m.follow(103, 12)
	if g.turn(); o3.done != 1 || o3.kind() != fault.NotLeader {
		t.Errorf("%v", o3)
	}
}

func TestK4ABarrierWithApplyIsAnsweredWhenApplied(t *testing.T) {
	g := newRig(t, userRange)
	g.serve()
	g.m.lease = true
	p, _ := proposal(put("a", "1"))
	g.turn(p)
	b, read := barrier(150)
	b.Apply = true
	g.turn(g.take(0, 100, nil), b)
	if read.done != 0 {
		t.Fatalf("%v", read)
	}
	value := ""
	done := b.Done
	b.Done = func(rep BarrierReply, err error) { value = g.value("a"); done(rep, err) }
	if g.commit(); read.done != 1 || read.err != nil || value != "1" {
		t.Errorf("%v; it read %q", read, value)
	}
}

// Who is told to read after a snapshot was installed finds its state shown: the horizon,
// and the stamp at which a read of the newest versions is made.
func TestK4AReadThatASnapshotAnswersSeesItsState(t *testing.T) {
	g := newRig(t, userRange)
	g.m.follow(102, 99)
	g.turn()
	mark := base.LogMark{Index: 40, Term: g.m.st.Term}
	w, o := waitFor(mark)
	shown := base.Timestamp(0)
	done := w.Done
	w.Done = func(err error) { shown = g.r.Visible().LastStamp; done(err) }
	s, _ := g.arrived(mark, mark)
	g.turn(w, s)
	if o.done != 1 || o.err != nil || shown != 900 {
		t.Errorf("%v; it saw the stamp %d", o, shown)
	}
}

func TestWritesOfAnotherKindNeedNoStamp(t *testing.T) {
	g := newRig(t, userRange)
	g.serve()
	env, err := command.Encode(command.Header{Kind: command.KindRaiseFeature}, &command.RaiseFeature{Level: 3})
	g.must(err)
	p, o := proposal(env)
	g.turn(p)
	g.commit()
	if len(g.env.asks) != 0 || o.done != 1 || o.err != nil || g.r.state.FeatureLevel != 3 {
		t.Errorf("asks %v, %v", g.env.asks, o)
	}
}
