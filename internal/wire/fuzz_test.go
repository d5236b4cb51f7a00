package wire

import (
	"encoding/binary"
	"hash/crc32"
	"maps"
	"reflect"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/fuzztest"
)

// seeds is how many drawn values of a kind each corpus starts with.
const seeds = 5

// Frames come from other nodes. The checksum is made to fit, so that it hides no parser.
func FuzzDecodeMessages(f *testing.F) {
	for i := range 10 * seeds {
		f.Add(AppendFrame(nil, rapid.SliceOfN(messageGen, 1, 3).Example(i)))
	}
	f.Fuzz(func(t *testing.T, frame []byte) {
		if len(frame) >= frameHeader {
			binary.LittleEndian.PutUint32(frame[1:], crc32.Checksum(frame[frameHeader:], castagnoli))
		}
		var msgs []Message
		var err error
		fuzztest.Bounded(t, len(frame), func() { msgs, err = DecodeMessages(frame) })
		if err != nil {
			if fault.KindOf(err) != fault.Corrupt {
				t.Errorf("got %v", err)
			}
			return
		}
		again, err := DecodeMessages(AppendFrame(nil, msgs))
		normal(reflect.ValueOf(&msgs))
		if err != nil || !reflect.DeepEqual(again, msgs) {
			t.Errorf("%x is %+v, then %+v, %v", frame, msgs, again, err)
		}
	})
}

// What calls and replies carry comes from other nodes: Barrier and BarrierReply, Stamps and
// StampsReply, and so on; bodyGens has them all.
func FuzzDecodeBody(f *testing.F) {
	gens := bodyGens()
	names := slices.Sorted(maps.Keys(gens))
	empty := make([]Body, len(names))
	for kind, name := range names {
		for i := range seeds {
			b := gens[name].Example(i)
			f.Add(byte(kind), b.Append(nil))
			empty[kind] = fresh(b)
		}
	}
	f.Fuzz(func(t *testing.T, kind byte, b []byte) {
		if int(kind) >= len(names) {
			return
		}
		x := fresh(empty[kind])
		var err error
		fuzztest.Bounded(t, len(b), func() { err = x.Decode(b) })
		if err != nil {
			if k := fault.KindOf(err); k != fault.Corrupt && k != fault.Unimplemented {
				t.Errorf("%s: got %v", names[kind], err)
			}
			return
		}
		again := fresh(x)
		err = again.Decode(x.Append(nil))
		if err != nil || !reflect.DeepEqual(again, x) {
			t.Errorf("%x is %s %+v, then %+v, %v", b, names[kind], x, again, err)
		}
	})
}

// Node descriptors come from other nodes, and stand in the catalogue.
func FuzzDecodeNodeDescriptor(f *testing.F) {
	f.Add(AppendNodeDescriptor(nil, &base.NodeDescriptor{Node: 300, Address: "10.0.0.1:7400", Peer: "10.0.0.1:7401", Version: "1"}))
	f.Fuzz(func(t *testing.T, b []byte) {
		n, err := DecodeNodeDescriptor(b)
		if err != nil {
			return
		}
		if again, err := DecodeNodeDescriptor(AppendNodeDescriptor(nil, &n)); err != nil || again != n {
			t.Errorf("%x is %+v, then %+v, %v", b, n, again, err)
		}
	})
}
