package replica

import (
	"testing"
	"time"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/fault"
)

// asked is a request of the replica that lost its stores, and its answer.
type asked struct {
	done   int
	answer RebuildAnswer
	err    error
}

func (g *rig) rebuildRequest(of base.ReplicaID) (*RebuildRequest, *asked) {
	a := &asked{}
	q := &RebuildRequest{Replica: of, Deadline: g.now.Add(time.Second), Done: func(answer RebuildAnswer, err error) {
		a.done++
		a.answer, a.err = answer, err
	}}
	return q, a
}

// The orderer answers only with the word of a quorum that came after the question, a lease
// is not enough, and only once it has applied what was its last index then: an entry that
// the lost replica acknowledged may be that one.
func TestRebuildTakesAQuorumAndAllThatWasAppended(t *testing.T) {
	g := newRig(t, userRange)
	g.serve()
	g.m.lease = true
	g.m.confirmed = g.now // before the question
	appended := g.m.push(base.EntryNoop, g.m.st.Term, nil)
	q, a := g.rebuildRequest(102)
	g.turn(q)
	if a.done != 0 || len(g.env.sent) != 0 || len(g.m.rounds) == 0 || g.m.rounds[len(g.m.rounds)-1] != g.now {
		t.Fatalf("with a lease alone: %+v, sent %d, rounds %v", a, len(g.env.sent), g.m.rounds)
	}
	g.m.confirmed = g.now
	g.turn()
	if a.done != 0 || len(g.env.sent) != 0 {
		t.Fatalf("not all is applied that was appended: %+v, sent %d", a, len(g.env.sent))
	}
	g.commit()
	want := RebuildAnswer{Term: g.m.st.Term, Orderer: true, Last: appended.Index}
	if a.done != 1 || a.err != nil || a.answer != want {
		t.Fatalf("%+v, want %+v", a, want)
	}
	if len(g.env.sent) != 1 || g.env.sent[0].To != 102 || g.env.sent[0].Snapshot.Mark != g.r.state.Applied {
		t.Fatalf("sent %+v", g.env.sent)
	}
	// While one snapshot is sent the next waits.
	q, a = g.rebuildRequest(103)
	g.turn(q)
	g.m.confirmed = g.now
	g.turn()
	if a.done != 0 {
		t.Fatalf("two snapshots at once: %+v", a)
	}
	g.env.noRoom = true // for one more among those of other ranges
	g.turn(SnapshotSent{To: 102, OK: true})
	if a.done != 0 {
		t.Fatalf("told of a snapshot that is not sent: %+v", a)
	}
	g.env.noRoom = false
	g.tick(time.Millisecond)
	if a.done != 1 || len(g.env.sent) != 2 {
		t.Fatalf("the second: %+v, sent %d", a, len(g.env.sent))
	}
}

// A follower, and a leader that does not serve yet, tell their term as it is in this turn.
func TestRebuildAnswersOfOthers(t *testing.T) {
	g := newRig(t, userRange)
	g.m.st.Term = 9
	q, a := g.rebuildRequest(102)
	g.turn(q)
	if a.done != 1 || a.answer != (RebuildAnswer{Term: 9}) {
		t.Errorf("a follower: %+v", a)
	}
	g.m.lead()
	q, a = g.rebuildRequest(102)
	g.turn(q)
	if a.done != 1 || a.answer != (RebuildAnswer{Term: 10}) {
		t.Errorf("a new leader: %+v", a)
	}
	for _, of := range []base.ReplicaID{101, 7} {
		q, a = g.rebuildRequest(of)
		g.turn(q)
		if a.done != 1 || fault.KindOf(a.err) != fault.Invalid {
			t.Errorf("replica %d: %+v", of, a)
		}
	}
}

// Every question is answered once, however its wait ends.
func TestRebuildQuestionsEnd(t *testing.T) {
	g := newRig(t, userRange)
	g.serve()
	first, a := g.rebuildRequest(102)
	second, b := g.rebuildRequest(102)
	g.turn(first, second)
	if a.done != 1 || fault.KindOf(a.err) != fault.Busy || b.done != 0 {
		t.Errorf("asked again: %+v, %+v", a, b)
	}
	g.m.follow(103, g.m.st.LastIndex)
	g.turn()
	if b.done != 1 || fault.KindOf(b.err) != fault.NotLeader || len(g.env.sent) != 0 {
		t.Errorf("it no longer orders: %+v", b)
	}
	g.serve()
	q, a := g.rebuildRequest(102)
	g.turn(q)
	g.tick(2 * time.Second)
	if a.done != 1 || fault.KindOf(a.err) != fault.Deadline {
		t.Errorf("out of time: %+v", a)
	}
	q, a = g.rebuildRequest(102)
	g.turn(q)
	g.r.Stop()
	if a.done != 1 || fault.KindOf(a.err) != fault.Stopped {
		t.Errorf("stopped: %+v", a)
	}
}
