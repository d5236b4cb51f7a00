package logstore

import (
	"testing"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/effect"
	"github.com/almanacdb/almanac/internal/fault"
)

// extent is a log of terms, the first of which is the truncated mark's.
type extent struct {
	truncated uint64
	terms     []uint64
}

func (e extent) First() uint64 { return e.truncated + 1 }
func (e extent) Last() uint64  { return e.truncated + uint64(len(e.terms)) - 1 }

func (e extent) Term(i uint64) (uint64, error) {
	if i < e.truncated {
		return 0, ErrCompacted
	}
	if i > e.Last() {
		return 0, ErrUnavailable
	}
	return e.terms[i-e.truncated], nil
}

func TestRecover(t *testing.T) {
	hs := func(term uint64, vote base.ReplicaID, commit uint64) effect.HardState {
		return effect.HardState{Term: term, Vote: vote, Commit: commit}
	}
	mark := func(index, term uint64) base.LogMark { return base.LogMark{Index: index, Term: term} }
	fresh := extent{0, []uint64{0}}
	log := extent{3, []uint64{1, 1, 2, 2}} // truncated at 3, holds 4..6
	for _, tc := range []struct {
		name    string
		saved   effect.HardState
		log     extent
		applied base.LogMark
		want    effect.HardState
		reset   bool
		kind    fault.Kind
	}{
		{name: "nothing yet", log: fresh},
		{name: "as saved", saved: hs(2, 3, 5), log: log, applied: mark(4, 1), want: hs(2, 3, 5)},
		{name: "applied is the truncated mark", saved: hs(2, 3, 3), log: log, applied: mark(3, 1), want: hs(2, 3, 3)},
		{name: "commit not saved after the last apply", saved: hs(2, 3, 4), log: log, applied: mark(6, 2), want: hs(2, 3, 6)},
		{name: "commit saved above what the log holds", saved: hs(2, 3, 9), log: log, applied: mark(5, 2), want: hs(2, 3, 6)},
		{name: "applied term above the saved one clears the vote", saved: hs(1, 3, 3), log: extent{3, []uint64{1}}, applied: mark(8, 4), want: hs(4, 0, 8), reset: true},
		{name: "same term keeps the vote", saved: hs(4, 3, 3), log: extent{3, []uint64{1}}, applied: mark(8, 4), want: hs(4, 3, 8), reset: true},
		{name: "snapshot installed, log not reset", saved: hs(5, 1, 6), log: log, applied: mark(7, 3), want: hs(5, 1, 7), reset: true},
		{name: "other term at applied", saved: hs(5, 1, 6), log: log, applied: mark(5, 3), want: hs(5, 1, 5), reset: true},
		{name: "other term at the last", saved: hs(5, 1, 6), log: log, applied: mark(6, 4), want: hs(5, 1, 6), reset: true},
		{name: "split: a vote came before the log", saved: hs(6, 2, 0), log: fresh, applied: mark(10, 5), want: hs(6, 2, 10), reset: true},
		{name: "hole between applied and log", saved: hs(2, 3, 5), log: log, applied: mark(2, 1), kind: fault.Corrupt},
		{name: "state lost, log truncated", saved: hs(2, 3, 5), log: log, kind: fault.Corrupt},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := Recover(1, tc.saved, tc.log, tc.applied)
			if fault.KindOf(err) != tc.kind {
				t.Fatalf("error %v", err)
			}
			if err == nil && (got.HardState != tc.want || got.Reset != tc.reset) {
				t.Fatalf("got %+v, want %+v, reset %v", got, tc.want, tc.reset)
			}
		})
	}
}
