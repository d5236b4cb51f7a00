package logstore

import (
	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/effect"
	"github.com/almanacdb/almanac/internal/plant"
)

// Recovery is what a replica starts with, by rule S4.
type Recovery struct {
	HardState effect.HardState
	// Reset says that the log must be reset to the applied mark before it is used: what
	// it holds is older than, or differs from, what was applied.
	Reset bool
}

// Extent is what Recover asks of a log; *Log has it.
type Extent interface {
	First() uint64
	Last() uint64
	Term(i uint64) (uint64, error)
}

// Recover reconciles what the log store saved of a range with the mark that its state
// store has applied, after a stop of any kind. The error is fault.Corrupt if entries
// between the two are missing, or what reading the log failed with.
func Recover(r base.RangeID, saved effect.HardState, log Extent, applied base.LogMark) (Recovery, error) {
	rec := Recovery{HardState: saved}
	if applied.Term > saved.Term {
		rec.HardState.Term, rec.HardState.Vote = applied.Term, 0
	}
	first, last := log.First(), log.Last()
	switch {
	case first > applied.Index+1:
		return rec, corrupt(r, "it starts at index %d but only %d is applied", first, applied.Index)
	case last < applied.Index:
		rec.Reset = true
	default:
		term, err := log.Term(applied.Index)
		if err != nil {
			return rec, err
		}
		rec.Reset = term != applied.Term
	}
	if rec.Reset {
		last = applied.Index
	}
	rec.HardState.Commit = max(applied.Index, min(saved.Commit, last))
	if plant.On(plant.CommitNotRaised) {
		rec.HardState.Commit = saved.Commit
	}
	return rec, nil
}
