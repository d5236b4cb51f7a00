package logstore

import (
	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/effect"
	"github.com/almanacdb/almanac/internal/engine"
	"github.com/almanacdb/almanac/internal/fault"
)

// Batch collects one turn's writes to any number of logs; they become durable together.
// Errors of the writing methods are kept and returned when it is written.
//
// A batch is filled and sealed by the worker that owns the logs, written by whoever
// commits, and published by the worker again: what its logs answer changes only then.
// Meanwhile the worker may fill the next one, which goes on from where this one ends;
// batches that share a log are written and published in the order in which they were
// sealed. Commit is all of it in one step.
type Batch struct {
	s      *Store
	b      engine.Batch
	logs   []staged
	sealed bool
	err    error
	key    []byte // buffers, reused
	val    []byte
}

// staged is a log in a batch.
type staged struct {
	l      *Log
	meta   meta         // what the log becomes; once sealed
	before meta         // what it would have become without this batch
	prev   *Batch       // the sealed batch that came before, nil if there is none
	upTo   base.LogMark // what the batch truncates
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
		switch {
		case l.b == nil:
			l.next = l.now
		case !l.b.sealed:
			b.keep(fault.New(fault.Internal, "log of range %d is written by two batches at once", l.r).OnRange(l.r))
		}
		b.logs = append(b.logs, staged{l: l, before: l.next, prev: l.b})
		l.b = b
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
	for i := range b.logs {
		if b.logs[i].l == l {
			b.logs[i].upTo = upTo
		}
	}
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

// Commit seals, writes and publishes the batch; sync waits until it is durable. An empty
// batch does nothing. The batch is finished afterwards.
func (b *Batch) Commit(sync bool) error {
	defer b.Close()
	b.Seal()
	if err := b.Write(sync); err != nil {
		return err
	}
	b.Publish()
	return nil
}

// Seal ends the filling of the batch. Until it is published, its logs go on in the next
// one from here. What it truncates is given up at once: whoever writes the batch removes
// it at any time from now on.
func (b *Batch) Seal() {
	for i := range b.logs {
		l := b.logs[i].l
		b.logs[i].meta = l.next
		if upTo := b.logs[i].upTo; upTo.Index > 0 {
			l.givenUp = upTo
			l.now.giveUp(upTo)
		}
	}
	b.sealed = true
}

// Sealed says whether Seal was called.
func (b *Batch) Sealed() bool { return b.sealed }

// Write hands a sealed batch to the engine; sync waits until it is durable, and with it
// all that was written before. If it fails, no later write succeeds: what is on disk is
// not known (S6). It may run on another goroutine than the rest.
func (b *Batch) Write(sync bool) error {
	if err := b.s.Failed(); err != nil {
		return err
	}
	err := b.err
	if err == nil && !b.b.Empty() {
		err = b.b.Commit(sync)
	}
	if err != nil {
		b.s.fail(err)
	}
	return err
}

// Publish makes the logs answer what was written. The batch is finished afterwards.
func (b *Batch) Publish() {
	for _, w := range b.logs {
		if w.upTo == w.l.givenUp {
			w.l.givenUp = base.LogMark{}
		}
		w.l.now = w.meta
		w.l.now.giveUp(w.l.givenUp)
		if w.l.b == b {
			w.l.b = nil
		}
	}
	b.logs = nil
	b.b.Close()
}

// Close drops a batch that was not published: its logs answer as before. Harmless
// afterwards.
func (b *Batch) Close() error {
	for _, w := range b.logs {
		if w.l.b == b {
			w.l.b, w.l.next = w.prev, w.before
		}
	}
	b.logs = nil
	return b.b.Close()
}
