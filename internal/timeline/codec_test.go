package timeline

import (
	"encoding/hex"
	"errors"
	"math"
	"testing"

	"pgregory.net/rapid"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/fault"
)

var testPartition = base.PartitionID{Topic: 7, Partition: 3}

// records decodes bytes as each kind of record.
var records = map[string]func([]byte) error{
	"event": func(b []byte) error {
		_, err := decodeEvent(base.Position{DueMS: 5, Seq: 9}, b)
		return err
	},
	"flags": func(b []byte) error { _, err := eventFlags(base.Position{}, b); return err },
	"meta":  func(b []byte) error { _, err := decodeMeta(testPartition, b); return err },
	"index": func(b []byte) error { _, err := decodeIndex(testPartition, b); return err },
	"group": func(b []byte) error { _, err := decodeGroup(testPartition, 4, b); return err },
}

func fullEvent() *NewEvent {
	return &NewEvent{
		MessageID: "id", OrderingKey: []byte("key"),
		Headers: []Header{{Name: "a", Value: []byte("1")}, {Name: "b"}},
		Payload: []byte("payload"),
	}
}

// The bytes on disk are decided once: these must never change.
func TestRecordsOnDisk(t *testing.T) {
	tests := []struct {
		record, want string
		got          []byte
	}{
		{"event", "010000" + "0000000000000102" + "026964" + "036b6579" + "02" + "01610131" + "016200" + "077061796c6f6164",
			appendEvent(nil, fullEvent(), 0x102)},
		{"event", "010000" + "0000000000000001" + "00000000", appendEvent(nil, &NewEvent{}, 1)},
		{"meta", "01" + "03" + "02" + "ac02", appendMeta(nil, &Stats{NextSeq: 3, Events: 2, Bytes: 300})},
		{"index", "01" + "0000000000000005" + "0000000000000009", appendIndex(nil, base.Position{DueMS: 5, Seq: 9})},
		{"group", "01" + "02" + "06" + "0000000000000005" + "0000000000000009" + "8101" + "00",
			appendGroup(nil, &Group{Start: StartLatest, Generation: 6, Cursor: base.Position{DueMS: 5, Seq: 9}, Acked: 129})},
	}
	for _, tt := range tests {
		if got := hex.EncodeToString(tt.got); got != tt.want {
			t.Errorf("%s is\n%s on disk, want\n%s", tt.record, got, tt.want)
		}
		if err := records[tt.record](tt.got); err != nil {
			t.Errorf("%s: %v", tt.record, err)
		}
	}
}

func TestDamagedRecordsAreCorrupt(t *testing.T) {
	good := map[string][]byte{
		"event": appendEvent(nil, fullEvent(), 1<<40),
		"meta":  appendMeta(nil, &Stats{NextSeq: 300, Events: 2, Bytes: 1 << 30}),
		"index": appendIndex(nil, base.Position{DueMS: 5, Seq: 9}),
		"group": appendGroup(nil, &Group{Start: StartLatest, Cursor: base.Position{DueMS: 5, Seq: 9}, Acked: 129}),
	}
	isCorrupt := func(err error) bool { return errors.Is(err, fault.New(fault.Corrupt, "")) }
	for name, b := range good {
		decode := records[name]
		for n := range b {
			if !isCorrupt(decode(b[:n])) {
				t.Errorf("%s cut to %d bytes is not corrupt", name, n)
			}
		}
		if !isCorrupt(decode(append(b[:len(b):len(b)], 0))) {
			t.Errorf("%s with a byte left over is not corrupt", name)
		}
		newer := append([]byte{b[0] + 1}, b[1:]...)
		if !isCorrupt(decode(newer)) {
			t.Errorf("%s of an unknown format version is not corrupt", name)
		}
		if name == "meta" || name == "group" {
			// The last number in a longer form: equal records must have equal bytes.
			long := append(b[:len(b)-1:len(b)-1], b[len(b)-1]|0x80, 0)
			if !isCorrupt(decode(long)) {
				t.Errorf("%s with a padded number is not corrupt", name)
			}
		}
		for i := range b {
			for bit := range 8 {
				flipped := append([]byte(nil), b...)
				flipped[i] ^= 1 << bit
				if err := decode(flipped); err != nil && !isCorrupt(err) {
					t.Errorf("%s with bit %d.%d flipped: %v", name, i, bit, err)
				}
			}
		}
	}
}

func TestDecodersTakeAnyBytes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := rapid.SliceOfN(rapid.Byte(), 0, 64).Draw(t, "bytes")
		if len(b) > 0 && rapid.Bool().Draw(t, "known version") {
			b[0] = 1
		}
		for name, decode := range records {
			if err := decode(b); err != nil && fault.KindOf(err) != fault.Corrupt {
				t.Fatalf("%s: %v", name, err)
			}
		}
	})
}

// A damaged length or count must be refused before it allocates.
func TestHugeLengthsAllocateNothing(t *testing.T) {
	huge := []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f}
	head := appendEvent(nil, &NewEvent{}, 1)[:11]
	for name, b := range map[string][]byte{
		"message id":   append(head[:11:11], huge...),
		"header count": append(append(head[:11:11], 0, 0), huge...),
		"64 GiB":       append(append(head[:11:11], 0, 0), 0x80, 0x80, 0x80, 0x80, 0x80, 0x02),
	} {
		allocs := testing.AllocsPerRun(10, func() {
			if _, err := decodeEvent(base.Position{}, b); err == nil {
				t.Fatalf("%s: decoded", name)
			}
		})
		if allocs > 8 { // the error itself
			t.Errorf("%s: %v allocations", name, allocs)
		}
	}
}

func TestEventRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := drawEvent(t)
		revision := base.Timestamp(rapid.Uint64().Draw(t, "revision"))
		pos := base.Position{
			DueMS: rapid.Int64Min(0).Draw(t, "due"),
			Seq:   rapid.Uint64().Draw(t, "seq"),
		}
		b := appendEvent(nil, &e, revision)
		got, err := decodeEvent(pos, b)
		if err != nil {
			t.Fatal(err)
		}
		wantSameEvent(t, got, stored(pos, revision, &e))
		flags, err := eventFlags(pos, b)
		if err != nil || flags != 0 {
			t.Fatalf("flags %v, %v", flags, err)
		}
	})
}

// A moved event keeps its first sequence, as a distance, and its flags.
func TestMovedEvent(t *testing.T) {
	b := appendEvent(nil, fullEvent(), 1)
	b[1], b[2] = byte(FlagCancelled|FlagGuarded), 5
	e, err := decodeEvent(base.Position{DueMS: 1, Seq: 9}, b)
	if err != nil || e.FirstSeq != 4 || e.Flags != FlagCancelled|FlagGuarded {
		t.Fatalf("got %+v, %v", e, err)
	}
	if _, err := decodeEvent(base.Position{DueMS: 1, Seq: 4}, b); fault.KindOf(err) != fault.Corrupt {
		t.Fatalf("a first sequence below 0 gives %v", err)
	}
}

func TestGroupRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := Group{
			Group:      base.GroupID(rapid.Uint64().Draw(t, "id")),
			Start:      StartRule(rapid.Byte().Draw(t, "start")),
			Generation: rapid.Uint64().Draw(t, "generation"),
			Cursor: base.Position{
				DueMS: rapid.Int64Range(0, math.MaxInt64).Draw(t, "due"),
				Seq:   rapid.Uint64().Draw(t, "seq"),
			},
			Acked: rapid.Uint32().Draw(t, "acked"),
		}
		got, err := decodeGroup(testPartition, g.Group, appendGroup(nil, &g))
		if err != nil || got != g {
			t.Fatalf("got %+v, %v; want %+v", got, err, g)
		}
	})
}
