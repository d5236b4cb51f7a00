package logstore

import (
	"bytes"
	"encoding/binary"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/effect"
	"github.com/almanacdb/almanac/internal/fault"
)

// What a read outside of the log returns.
var (
	ErrCompacted   = fault.New(fault.Compacted, "the log was truncated above this index")
	ErrUnavailable = fault.New(fault.Unavailable, "the log ends below this index")
)

// meta is what a handle knows without reading.
type meta struct {
	exists    bool // any record of the range is stored
	hard      effect.HardState
	truncated base.LogMark
	last      base.LogMark // equals truncated if the log is empty
}

// giveUp moves a log's beginning up to a mark within it.
func (m *meta) giveUp(mark base.LogMark) {
	if m.truncated.Index < mark.Index && mark.Index <= m.last.Index {
		m.truncated = mark
	}
}

// Log is the handle of one range's log. One worker at a time uses a handle; different
// handles may be used concurrently. What it answers changes only when a batch that wrote
// to it is published, but that what a sealed batch truncates is given up before.
type Log struct {
	s    *Store
	r    base.RangeID
	now  meta
	next meta   // what now becomes when b is published
	b    *Batch // the last batch that wrote to this log, until it is published

	givenUp base.LogMark // what the last batch that truncates removes, until it is published
}

// Range returns the range that the log is of.
func (l *Log) Range() base.RangeID { return l.r }

// First returns the first index held: the truncated index + 1.
func (l *Log) First() uint64 { return l.now.truncated.Index + 1 }

// Last returns the last index held; First − 1 if the log is empty.
func (l *Log) Last() uint64 { return l.now.last.Index }

// LastMark returns the index and term of the last entry; Truncated if the log is empty.
func (l *Log) LastMark() base.LogMark { return l.now.last }

// Truncated returns the mark up to which the log was dropped, or reset.
func (l *Log) Truncated() base.LogMark { return l.now.truncated }

// HardState returns what was saved last; zero if nothing was.
func (l *Log) HardState() effect.HardState { return l.now.hard }

// Exists says whether any record of the range is stored.
func (l *Log) Exists() bool { return l.now.exists }

// Initial returns the range's first state record, if the log carries one (S3).
func (l *Log) Initial() (record []byte, ok bool, err error) {
	key := appendRecord(nil, l.r, recordInitial)
	v, ok, err := l.s.e.Get(key)
	if err != nil || !ok {
		return nil, false, err
	}
	body, ok := unseal(key, v)
	if !ok {
		return nil, false, corrupt(l.r, "the first state record fails its checksum")
	}
	return body, true, nil
}

// Term returns the term of entry i, which lies in [First − 1, Last]; else the error is
// ErrCompacted or ErrUnavailable.
func (l *Log) Term(i uint64) (uint64, error) {
	switch {
	case i == l.now.last.Index:
		return l.now.last.Term, nil
	case i == l.now.truncated.Index:
		return l.now.truncated.Term, nil
	case i < l.now.truncated.Index:
		return 0, ErrCompacted
	case i > l.now.last.Index:
		return 0, ErrUnavailable
	}
	key := appendEntryKey(make([]byte, 0, 18), l.r, i)
	v, ok, err := l.s.e.Get(key)
	if err != nil {
		return 0, err
	}
	if !ok {
		return 0, corrupt(l.r, "entry %d is missing", i)
	}
	e, err := decodeEntry(l.r, i, key, v)
	return e.Term, err
}

// Entries returns consecutive entries from lo on, below hi: at least one, else no more
// than fit in maxBytes by base.Entry.Size. The caller owns them. The error is
// ErrCompacted or ErrUnavailable if the log does not hold all of [lo, hi), and
// fault.Corrupt if an entry is damaged or missing.
func (l *Log) Entries(lo, hi uint64, maxBytes int) ([]base.Entry, error) {
	switch {
	case lo >= hi:
		return nil, nil
	case lo < l.First():
		return nil, ErrCompacted
	case hi > l.Last()+1:
		return nil, ErrUnavailable
	}
	it, err := l.s.e.NewIter(appendEntryKey(nil, l.r, lo), appendEntryKey(nil, l.r, hi))
	if err != nil {
		return nil, err
	}
	defer it.Close()
	entries := make([]base.Entry, 0, min(hi-lo, 64))
	size, want := 0, lo
	for ok := it.First(); ok; ok = it.Next() {
		v, err := it.Value()
		if err != nil {
			return nil, err
		}
		index, err := l.entryIndex(it.Key())
		if err != nil {
			return nil, err
		}
		if index != want {
			return nil, corrupt(l.r, "entry %d is missing", want)
		}
		e, err := decodeEntry(l.r, index, it.Key(), v)
		if err != nil {
			return nil, err
		}
		if size += e.Size(); size > maxBytes && len(entries) > 0 {
			return entries, nil
		}
		e.Data = bytes.Clone(e.Data)
		entries = append(entries, e)
		want++
	}
	if err := it.Error(); err != nil {
		return nil, err
	}
	if want != hi {
		return nil, corrupt(l.r, "entry %d is missing", want)
	}
	return entries, nil
}

func (l *Log) entryIndex(key []byte) (uint64, error) {
	if len(key) != 18 || key[9] != recordEntry {
		return 0, corrupt(l.r, "key %x is no entry's", key)
	}
	return binary.BigEndian.Uint64(key[10:]), nil
}

// load reads the handle's meta at open; it stands on the range's first key.
func (l *Log) load(it iterator) error {
	l.now.exists = true
	ok := true
	for ; ok && bytes.HasPrefix(it.Key(), appendRange(nil, l.r)) && it.Key()[9] != recordEntry; ok = it.Next() {
		k := it.Key()
		v, err := it.Value()
		if err != nil {
			return err
		}
		switch k[9] {
		case recordHard:
			l.now.hard, err = decodeHard(l.r, k, v)
		case recordTruncated:
			t := &l.now.truncated
			err = decodeNumbers(l.r, "truncated mark", k, v, &t.Index, &t.Term)
		}
		if err != nil {
			return err
		}
	}
	if err := it.Error(); err != nil {
		return err
	}
	l.now.last = l.now.truncated
	if !ok || !bytes.HasPrefix(it.Key(), appendRecord(nil, l.r, recordEntry)) {
		return nil
	}
	return l.check(it)
}

// check reads all entries, the first of which it stands on: the engine may not read some
// of their files for long, and damage is better found at a start than by a slow follower.
func (l *Log) check(it iterator) error {
	want, prefix := l.First(), appendRecord(nil, l.r, recordEntry)
	for ok := true; ok && bytes.HasPrefix(it.Key(), prefix); ok = it.Next() {
		index, err := l.entryIndex(it.Key())
		if err != nil {
			return err
		}
		switch {
		case index != want && want == l.First():
			return corrupt(l.r, "it starts at index %d but was truncated at %d", index, l.now.truncated.Index)
		case index != want:
			return corrupt(l.r, "entry %d is missing", want)
		}
		v, err := it.Value()
		if err != nil {
			return err
		}
		e, err := decodeEntry(l.r, index, it.Key(), v)
		if err != nil {
			return err
		}
		l.now.last = base.LogMark{Index: e.Index, Term: e.Term}
		want++
	}
	return it.Error()
}

type iterator interface {
	Next() bool
	Key() []byte
	Value() ([]byte, error)
	Error() error
}
