package logstore

import (
	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/effect"
	"github.com/almanacdb/almanac/internal/engine"
	"github.com/almanacdb/almanac/internal/fault"
)

// Batch collects one turn's writes to any number of logs; they become durable together.
// Errors of the writing methods are kept and returned by Commit. Not safe for
// concurrent use; a log may stand in one open batch at a time.
type Batch struct {
	s    *Store
	b    engine.Batch
	logs []*Log
	err  error
	key  []byte // buffers, reused
	val  []byte
}

// NewBatch returns an empty batch, to be committed or closed.
func (s *Store) NewBatch() *Batch { return &Batch{s: s, b: s.e.NewBatch(false)} }

// Empty says whether nothing was written to the batch yet.
func (b *Batch) Empty() bool { return b.b.Empty() && b.err == nil }

func (b *Batch) keep(err error) {
	if b.err == nil {
		b.err = err
	}
}

// touch returns what l will be once the batch is committed, for the caller to change.
func (b *Batch) touch(l *Log) *meta {
	if l.b != b {
		if l.b != nil {
			b.keep(fault.New(fault.Internal, "log of range %d is written by two batches at once", l.r).OnRange(l.r))
		}
		l.b, l.next = b, l.now
		b.logs = append(b.logs, l)
	}
	return &l.next
}

func (b *Batch) set(key, value []byte) {
	b.key, b.val = key, value
	b.keep(b.b.Set(key, seal(key, value)))
}

// Append adds consecutive entries to the log. Whatever stood at and above the first of
// them is replaced.
func (b *Batch) Append(l *Log, entries []base.Entry) {
	if len(entries) == 0 {
		return
	}
	m := b.touch(l)
	if lo := entries[0].Index; lo <= m.truncated.Index || lo > m.last.Index+1 {
		b.keep(fault.New(fault.Internal, "log of range %d: append at %d to [%d, %d]",
			l.r, lo, m.truncated.Index+1, m.last.Index).OnRange(l.r))
		return
	}
	for i := range entries {
		e := &entries[i]
		if e.Index != entries[0].Index+uint64(i) {
			b.keep(fault.New(fault.Internal, "log of range %d: append with a gap at %d", l.r, e.Index).OnRange(l.r))
			return
		}
		b.set(appendEntryKey(b.key[:0], l.r, e.Index), appendEntry(sealed(b.val), e))
	}
	last := &entries[len(entries)-1]
	if m.last.Index > last.Index {
		b.deleteEntries(l.r, last.Index+1, m.last.Index)
	}
	m.last = base.LogMark{Index: last.Index, Term: last.Term}
	m.exists = true
}

// SetHardState saves hs.
func (b *Batch) SetHardState(l *Log, hs effect.HardState) {
	m := b.touch(l)
	b.set(appendRecord(b.key[:0], l.r, recordHard),
		appendNumbers(sealed(b.val), hs.Term, uint64(hs.Vote), hs.Commit))
	m.hard, m.exists = hs, true
}

// Truncate drops the entries up to and including upTo, whose term it remembers. A mark
// below what was dropped already changes nothing.
func (b *Batch) Truncate(l *Log, upTo base.LogMark) {
	m := b.touch(l)
	if upTo.Index <= m.truncated.Index {
		return
	}
	if upTo.Index > m.last.Index {
		b.keep(fault.New(fault.Internal, "log of range %d: truncation at %d above the last index %d",
			l.r, upTo.Index, m.last.Index).OnRange(l.r))
		return
	}
	b.deleteEntries(l.r, m.truncated.Index+1, upTo.Index)
	b.setTruncated(l, m, upTo)
}

// Reset empties the log; the next entry is the one after the mark.
func (b *Batch) Reset(l *Log, mark base.LogMark) {
	m := b.touch(l)
	b.deleteEntries(l.r, m.truncated.Index+1, m.last.Index)
	b.setTruncated(l, m, mark)
	m.last = mark
}

func (b *Batch) setTruncated(l *Log, m *meta, mark base.LogMark) {
	b.set(appendRecord(b.key[:0], l.r, recordTruncated), appendNumbers(sealed(b.val), mark.Index, mark.Term))
	m.truncated, m.exists = mark, true
}

// manyEntries is from when on one range delete is cheaper than a delete per entry.
const manyEntries = 32

func (b *Batch) deleteEntries(r base.RangeID, from, to uint64) {
	switch {
	case from > to:
	case to-from >= manyEntries:
		b.keep(b.b.DeleteRange(appendEntryKey(nil, r, from), appendEntryKey(nil, r, to+1)))
	default:
		for i := from; i <= to; i++ {
			b.key = appendEntryKey(b.key[:0], r, i)
			b.keep(b.b.Delete(b.key))
		}
	}
}

// SetInitial saves the range's first state record (S3).
func (b *Batch) SetInitial(l *Log, record []byte) {
	b.touch(l).exists = true
	b.set(appendRecord(b.key[:0], l.r, recordInitial), append(sealed(b.val), record...))
}

// DeleteRange deletes everything that the store holds of a range, tombstones excepted.
// Deletion waits for durability: see S3.
func (b *Batch) DeleteRange(r base.RangeID) {
	m := b.touch(b.s.Log(r))
	b.keep(b.b.DeleteRange(appendRange(nil, r), appendRecord(nil, r, 0xff)))
	*m = meta{}
}

// SetTombstone records that a replica was removed from this node for good.
func (b *Batch) SetTombstone(t Tombstone) {
	b.set(appendTombstone(b.key[:0], t.Range, t.Replica), sealed(b.val))
}

// SetNode saves the node record.
func (b *Batch) SetNode(record []byte) {
	b.set(append(b.key[:0], keyNode), append(sealed(b.val), record...))
}

// Commit applies the batch; sync waits until it is durable. If it fails the logs answer
// as before, and no later commit succeeds: what is on disk is not known (S6). An empty
// batch does nothing. The batch is finished afterwards.
func (b *Batch) Commit(sync bool) error {
	defer b.Close()
	if err := b.s.Failed(); err != nil {
		return err
	}
	if b.err == nil && !b.b.Empty() {
		b.err = b.b.Commit(sync)
	}
	if b.err != nil {
		b.s.fail(b.err)
		return b.err
	}
	for _, l := range b.logs {
		l.now = l.next
	}
	return nil
}

// Close drops a batch that was not committed; harmless after Commit.
func (b *Batch) Close() error {
	for _, l := range b.logs {
		if l.b == b {
			l.b = nil
		}
	}
	b.logs = nil
	return b.b.Close()
}
