package timeline

import (
	"bytes"
	"testing"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/fuzztest"
)

func wantCorrupt(t *testing.T, err error) {
	t.Helper()
	if err != nil && fault.KindOf(err) != fault.Corrupt {
		t.Errorf("got %v", err)
	}
}

// Events are read from the state store.
func FuzzDecodeEvent(f *testing.F) {
	f.Add(appendEvent(nil, fullEvent(), 0x102), int64(5), uint64(9))
	f.Add(appendEvent(nil, &NewEvent{}, 1), int64(0), uint64(0))
	f.Fuzz(func(t *testing.T, b []byte, due int64, seq uint64) {
		pos := base.Position{DueMS: due, Seq: seq}
		var e Event
		var err error
		fuzztest.Bounded(t, len(b), func() { e, err = decodeEvent(pos, b) })
		flags, flagged := eventFlags(pos, b)
		wantCorrupt(t, err)
		wantCorrupt(t, flagged)
		if err != nil {
			return
		}
		if flagged != nil || flags != e.Flags {
			t.Errorf("the flags alone are %v, %v; in the event %v", flags, flagged, e.Flags)
		}
		if e.Flags != 0 || e.FirstSeq != seq {
			return // not a new event
		}
		again := appendEvent(nil, &NewEvent{MessageID: e.MessageID, OrderingKey: e.OrderingKey, Headers: e.Headers, Payload: e.Payload}, e.Revision)
		if !bytes.Equal(again, b) {
			t.Errorf("%x is encoded as %x", b, again)
		}
	})
}

// Meta records, the index of message ids and groups are read from the state store.
func FuzzDecodeRecords(f *testing.F) {
	f.Add(appendMeta(nil, &Stats{NextSeq: 300, Events: 2, Bytes: 1 << 30}))
	f.Add(appendIndex(nil, base.Position{DueMS: 5, Seq: 9}))
	f.Add(appendGroup(nil, &Group{Start: StartLatest, Generation: 6, Cursor: base.Position{DueMS: 5, Seq: 9}, Acked: 129}))
	f.Fuzz(func(t *testing.T, b []byte) {
		same := func(again []byte) {
			t.Helper()
			if !bytes.Equal(again, b) {
				t.Errorf("%x is encoded as %x", b, again)
			}
		}
		m, err := decodeMeta(testPartition, b)
		if wantCorrupt(t, err); err == nil {
			same(appendMeta(nil, &m))
		}
		pos, err := decodeIndex(testPartition, b)
		if wantCorrupt(t, err); err == nil {
			same(appendIndex(nil, pos))
		}
		g, err := decodeGroup(testPartition, 4, b)
		if wantCorrupt(t, err); err == nil {
			same(appendGroup(nil, &g))
		}
	})
}
