package store

import (
	"hash/crc32"
	"sync"
	"testing"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/engine"
	"github.com/almanacdb/almanac/internal/keys"
	"github.com/almanacdb/almanac/internal/statestore"
	"github.com/almanacdb/almanac/internal/wire"
)

// Two nodes that each take themselves for the orderer may send a snapshot at once: the
// second one's first file drops the first one's while a file of that is being written.
func TestSnapshotsFromTwoSendersAtOnce(t *testing.T) {
	s := &Store{state: statestore.New(engine.NewMem(engine.MemOptions{}))}
	s.incoming.ranges = make(map[base.RangeID]*incoming)
	sst := func() []byte {
		w := engine.NewMem(engine.MemOptions{}).NewSST()
		if err := w.Set(keys.User(1, []byte("k")), nil); err != nil {
			t.Fatal(err)
		}
		b, err := w.Finish()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}()
	sum := crc32.Checksum(sst, crc32.MakeTable(crc32.Castagnoli))
	var senders sync.WaitGroup
	for from := range 3 {
		senders.Go(func() {
			for i := range 50 {
				m := &wire.SnapshotFile{Range: 7, ID: uint64(i)}
				for m.Seq = range 4 {
					in := s.incoming.begin(s, base.NodeID(from), m)
					if in == nil || in.add(statestore.File{Seq: m.Seq, Last: m.Seq == 3, Data: sst, Sum: sum}) != nil {
						break // another's came between
					}
				}
			}
		})
	}
	senders.Wait()
	if len(s.incoming.ranges) != 1 {
		t.Errorf("%d snapshots are being received", len(s.incoming.ranges))
	}
}
