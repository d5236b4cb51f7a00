package replica

import (
	"testing"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/command"
	"github.com/almanacdb/almanac/internal/fault"
)

// A write of an earlier term that this orderer's log lost is answered by what is applied
// at its index, not by what is appended there: another replica may still hold it, come to
// order and commit it.
func TestWriteOfEarlierTermWaitsForItsIndex(t *testing.T) {
	why := fault.NotLeaderOf(7, 2)
	setUp := func() (q *writeQueue, early, late, behind *Proposal, answers map[*Proposal]error) {
		answers = make(map[*Proposal]error)
		propose := func() *Proposal {
			p := new(Proposal)
			p.Done = func(_ command.Result, err error) { answers[p] = err }
			return p
		}
		q = &writeQueue{}
		early, behind, late = propose(), propose(), propose()
		q.add(base.LogMark{Index: 12, Term: 2}, early)
		q.add(base.LogMark{Index: 13, Term: 2}, behind)
		q.add(base.LogMark{Index: 12, Term: 4}, late)
		if len(answers) != 0 {
			t.Fatalf("answered at once: %v", answers)
		}
		return q, early, late, behind, answers
	}

	q, early, late, behind, answers := setUp()
	if p := q.applied(base.LogMark{Index: 12, Term: 2}, why); p != early {
		t.Errorf("the write that was committed after all is not found, but %p", p)
	}
	if p := q.applied(base.LogMark{Index: 13, Term: 2}, why); p != behind || answers[late] == nil {
		t.Errorf("the one behind it is not found, but %p; the later one was answered %v", p, answers[late])
	}

	q, early, late, behind, answers = setUp()
	if p := q.applied(base.LogMark{Index: 12, Term: 4}, why); p != late || answers[early] == nil {
		t.Errorf("the later write is not found, but %p; the early one was answered %v", p, answers[early])
	}
	if answers[behind] != nil {
		t.Errorf("what waits above what is applied was answered: %v", answers[behind])
	}
	if p := q.applied(base.LogMark{Index: 13, Term: 4}, why); p != nil || answers[behind] == nil {
		t.Errorf("%p; the one that another took the place of was answered %v", p, answers[behind])
	}
}
