// Package statestore reads and moves what the state machines of a node keep in its
// engine without a write-ahead log: each range's state record, and a range's data as a
// snapshot. It refuses to know what the data means, and it writes nothing on its own:
// commands reach the engine through the batch that carries their state record (S1).
package statestore

import (
	"sync/atomic"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/command"
	"github.com/almanacdb/almanac/internal/effect"
	"github.com/almanacdb/almanac/internal/engine"
	"github.com/almanacdb/almanac/internal/keys"
)

// Store is the state store of a node. Safe for concurrent use.
type Store struct {
	e      engine.Engine
	staged atomic.Uint64 // numbers the installers, for the names of their files
}

// New returns the state store on an engine, which stays the caller's.
func New(e engine.Engine) *Store { return &Store{e: e} }

// Record is one range's state record, as command.EncodeState wrote it.
type Record struct {
	Range base.RangeID
	State []byte
}

// Records lists the state records in the order of their ranges.
func (s *Store) Records() ([]Record, error) {
	it, err := s.e.NewIter([]byte{byte(keys.FamilyRangeState)}, []byte{byte(keys.FamilyRangeState) + 1})
	if err != nil {
		return nil, err
	}
	defer it.Close()
	var rs []Record
	for ok := it.First(); ok; ok = it.Next() {
		r, err := keys.DecodeRangeState(it.Key())
		if err != nil {
			return nil, corruptKey(err)
		}
		v, err := it.Value()
		if err != nil {
			return nil, err
		}
		rs = append(rs, Record{Range: r, State: append([]byte(nil), v...)})
	}
	return rs, it.Error()
}

// Record returns a range's state record; ok is false if there is none.
func (s *Store) Record(r base.RangeID) (state []byte, ok bool, err error) {
	return s.e.Get(keys.RangeState(r))
}

// DurableApplied returns the mark that a range would have applied after a crash now. A
// log may be truncated up to it, not further (S1); ok is false if nothing is durable.
func (s *Store) DurableApplied(r base.RangeID) (mark base.LogMark, ok bool, err error) {
	b, ok, err := s.e.DurableGet(keys.RangeState(r))
	if err != nil || !ok {
		return base.LogMark{}, false, err
	}
	st, err := command.DecodeState(b)
	if err != nil {
		return base.LogMark{}, false, err
	}
	return st.Applied, true, nil
}

// DestroyRange deletes a range's data and its state record. The span is the one that
// the range owns now.
func DestroyRange(v effect.View, r base.RangeID, span base.Span) error {
	for _, f := range keys.SpanFamilies {
		lower, upper := keys.FamilySpan(f, span)
		if err := v.DeleteRange(lower, upper); err != nil {
			return err
		}
	}
	for _, f := range []keys.Family{keys.FamilyRangeState, keys.FamilyRequestID} {
		lower := keys.AppendRangeLocal(nil, f, r)
		if err := v.DeleteRange(lower, base.PrefixEnd(lower)); err != nil {
			return err
		}
	}
	return nil
}
