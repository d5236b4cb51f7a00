package logstore

import (
	"errors"
	"testing"

	"github.com/almanacdb/almanac/internal/base"
)

// A committer writes a batch before the worker publishes it. From when it may be gone, the
// log must not claim to hold what the batch truncates: who read it found it missing.
func TestTruncatedEntriesAreGivenUpBeforeTheyAreGone(t *testing.T) {
	s := open(t, newMem())
	l := s.Log(1)
	commit(t, s, func(b *Batch) { b.Append(l, entries(1, 60, 1)) })

	earlier := s.NewBatch()
	earlier.Append(l, entries(61, 3, 1))
	earlier.Seal()
	b := s.NewBatch()
	b.Truncate(l, base.LogMark{Index: 50, Term: 1})
	b.Seal()
	for _, w := range []*Batch{earlier, b} {
		if err := w.Write(true); err != nil {
			t.Fatal(err)
		}
	}
	check := func(when string, last uint64) {
		t.Helper()
		if l.First() != 51 || l.Last() != last || l.Truncated() != (base.LogMark{Index: 50, Term: 1}) {
			t.Fatalf("%s the log is [%d, %d]", when, l.First(), l.Last())
		}
		if _, err := l.Entries(40, 45, 1<<20); !errors.Is(err, ErrCompacted) {
			t.Fatalf("%s, reading what is gone: %v", when, err)
		}
		if e, err := l.Entries(l.First(), last+1, 1<<20); err != nil || len(e) != int(last-50) {
			t.Fatalf("%s, reading the rest: %d entries, %v", when, len(e), err)
		}
		if term, err := l.Term(50); err != nil || term != 1 {
			t.Fatalf("%s the term below the first entry: %d, %v", when, term, err)
		}
	}
	check("before it is published", 60)
	earlier.Publish()
	check("after an earlier batch was", 63)
	b.Publish()
	check("afterwards", 63)
}
