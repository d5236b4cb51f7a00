package engine

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/keys"
)

func timeline(p base.Partition) []byte {
	return keys.AppendPrefix(nil, keys.FamilyTimeline, keys.Partition(base.PartitionID{Topic: 7, Partition: p}))
}

func TestSequencesCut(t *testing.T) {
	s := newSequences()
	write := func(p base.Partition, bytes int64) { s.of(append(timeline(p), 1), nil).bytes.Add(bytes) }
	for round := range 8 {
		write(3, 2*busyBytes)
		write(5, 2*busyBytes)
		write(4, busyBytes/2) // less than is worth a file, however long
		if round == 0 {
			write(9, 2*busyBytes) // once
		}
		s.flushing()
		after := func(p base.Partition) []byte { return []byte(end(string(timeline(p)))) }
		nine := timeline(9)
		if round > 1 {
			nine = nil
		}
		for _, tc := range []struct{ start, want []byte }{
			{[]byte{1}, timeline(3)},
			{[]byte{byte(keys.FamilyTimeline)}, timeline(3)},
			{timeline(2), timeline(3)},
			{timeline(3), after(3)},
			{append(timeline(3), 0xff), after(3)},
			{after(3), timeline(5)},
			{append(timeline(4), 1), timeline(5)},
			{append(timeline(5), 1), after(5)},
			{after(5), nine},
			{timeline(10), nil},
			{keys.AppendPrefix(nil, keys.FamilyMessageID, nil), nil},
		} {
			if got := s.cut(tc.start); !bytes.Equal(got, tc.want) {
				t.Errorf("round %d: a file from %x ends at %x, want %x", round, tc.start, got, tc.want)
			}
		}
	}
	if q := s.of(keys.AppendVersion(nil, keys.User(2, []byte("a")), 1), nil); q != nil {
		t.Errorf("a user's key is of a sequence: %q", q.prefix)
	}
	for range 64 {
		s.flushing()
	}
	if len(s.all) != 0 {
		t.Errorf("%d sequences are remembered although nothing is written", len(s.all))
	}
}

// What is appended to several partitions side by side is hardly ever written anew by
// compactions, which move it; and all of it can be read. Without files of their own it is
// written about twice more.
func TestSequencesAreHardlyRewritten(t *testing.T) {
	e := mustOpenPebble(t, Options{MemtableBytes: 16 << 20, FS: vfs.NewMem()})
	defer e.Close()
	const partitions, batches, events = 8, 240, 8
	payload, random := make([]byte, 12<<10), rand.NewChaCha8([32]byte{})
	number := uint64(0)
	for range batches {
		for p := range base.Partition(partitions) {
			b := e.NewBatch(false)
			for range events {
				number++
				key := keys.AppendPosition(timeline(p), base.Position{DueMS: int64(number), Seq: number})
				random.Read(payload)
				if err := b.Set(key, payload); err != nil {
					t.Fatal(err)
				}
				meta := keys.AppendPrefix(nil, keys.FamilyPartition, fmt.Appendf(nil, "%d", p))
				if err := b.Set(meta, key); err != nil {
					t.Fatal(err)
				}
			}
			if err := b.Commit(false); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := e.Flush(); err != nil {
		t.Fatal(err)
	}
	p := e.(*Pebble)
	m := p.db.Metrics()
	for m.Compact.NumInProgress > 0 {
		runtime.Gosched()
		m = p.db.Metrics()
	}
	var flushed, rewritten uint64
	for i := range m.Levels {
		flushed += m.Levels[i].TableBytesFlushed
		rewritten += m.Levels[i].TableBytesCompacted
	}
	t.Logf("%d flushes of %d KiB, %d compactions, %d of them moves, wrote %d KiB", m.Flush.Count, flushed>>10, m.Compact.Count, m.Compact.MoveCount, rewritten>>10)
	if m.Compact.Count == 0 || rewritten > flushed/8 {
		t.Errorf("flushes wrote %d bytes, and %d compactions %d", flushed, m.Compact.Count, rewritten)
	}
	tables, err := p.db.SSTables()
	if err != nil {
		t.Fatal(err)
	}
	mixed := 0
	for _, level := range tables {
		for _, f := range level {
			if bytes.Compare(f.Smallest.UserKey, timeline(1)) < 0 && bytes.Compare(f.Largest.UserKey, timeline(1)) > 0 && f.Size > 64<<10 {
				mixed++
			}
		}
	}
	if mixed > 0 {
		t.Errorf("%d files hold several partitions", mixed)
	}
	it, err := e.NewIter([]byte{byte(keys.FamilyTimeline)}, []byte{byte(keys.FamilyTimeline) + 1})
	if err != nil {
		t.Fatal(err)
	}
	defer it.Close()
	n := 0
	for ok := it.First(); ok; ok = it.Next() {
		n++
	}
	if n != partitions*batches*events || it.Error() != nil {
		t.Errorf("read %d events of %d: %v", n, partitions*batches*events, it.Error())
	}
}
