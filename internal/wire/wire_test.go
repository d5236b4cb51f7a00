package wire

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"
	"reflect"
	"testing"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/effect"
	"github.com/almanacdb/almanac/internal/fault"
	"pgregory.net/rapid"
)

// normal makes empty slices nil, in place: the codec does not tell them apart.
func normal(v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		if !v.IsNil() {
			normal(v.Elem())
		}
	case reflect.Struct:
		for i := range v.NumField() {
			normal(v.Field(i))
		}
	case reflect.Slice:
		if v.Len() == 0 {
			v.SetZero()
		}
		for i := range v.Len() {
			normal(v.Index(i))
		}
	}
}

var bytesGen = rapid.SliceOfN(rapid.Byte(), 0, 40)

var faultGen = rapid.Custom(func(t *rapid.T) *fault.Error {
	if rapid.Bool().Draw(t, "none") {
		return nil
	}
	return &fault.Error{
		Kind:   fault.Kind(rapid.Uint8().Draw(t, "kind")),
		Text:   rapid.String().Draw(t, "text"),
		Remedy: rapid.String().Draw(t, "remedy"),
		Leader: base.NodeID(rapid.Uint64().Draw(t, "leader")),
		Range:  base.RangeID(rapid.Uint64().Draw(t, "range")),
	}
})

var messageGen = rapid.Custom(func(t *rapid.T) Message {
	switch rapid.IntRange(1, 3).Draw(t, "message") {
	case tagReplication:
		m := rapid.Make[effect.Message]().Draw(t, "replication")
		if rapid.Bool().Draw(t, "consecutive") {
			for i := range m.Entries {
				m.Entries[i].Index, m.Entries[i].Term = m.Index+1+uint64(i), m.Term
			}
		}
		return Message{Replication: &m}
	case tagCall:
		c := rapid.Make[Call]().Draw(t, "call")
		return Message{Call: &c}
	default:
		return Message{Reply: &Reply{
			ID:    rapid.Uint64().Draw(t, "id"),
			Fault: faultGen.Draw(t, "fault"),
			Body:  bytesGen.Draw(t, "body"),
		}}
	}
})

func TestMessagesRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		msgs := rapid.SliceOfN(messageGen, 0, 5).Draw(t, "messages")
		prefix := bytesGen.Draw(t, "prefix")
		frame := AppendFrame(prefix[:len(prefix):len(prefix)], msgs)[len(prefix):]
		got, err := DecodeMessages(frame)
		if err != nil {
			t.Fatal(err)
		}
		normal(reflect.ValueOf(&msgs))
		if !reflect.DeepEqual(got, msgs) {
			t.Fatalf("got %+v, want %+v", got, msgs)
		}
		bound := 0
		for i := range msgs {
			bound += Size(&msgs[i])
		}
		if n := len(frame) - frameHeader; n > bound {
			t.Fatalf("%d bytes in the frame, Size says %d", n, bound)
		}
	})
}

// mutate changes bytes so that they differ from what was written.
func mutate(t *rapid.T, b []byte) []byte {
	b = append([]byte(nil), b...)
	if len(b) == 0 {
		return []byte{rapid.Byte().Draw(t, "only")}
	}
	at := rapid.IntRange(0, len(b)-1).Draw(t, "at")
	switch rapid.IntRange(0, 3).Draw(t, "mutation") {
	case 0:
		b[at] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
	case 1:
		b = b[:at]
	case 2:
		b = append(b, rapid.SliceOfN(rapid.Byte(), 1, 9).Draw(t, "more")...)
	case 3:
		huge := binary.AppendUvarint(nil, rapid.Uint64().Draw(t, "number"))
		b = append(append(b[:at:at], huge...), b[at+1:]...)
	}
	return b
}

// wantCorrupt accepts success: a decoder of bytes without a checksum may meet another
// valid encoding.
func wantCorrupt(t *rapid.T, err error) {
	if err != nil && fault.KindOf(err) != fault.Corrupt {
		t.Fatalf("error %v is of kind %v", err, fault.KindOf(err))
	}
}

func TestDamagedFramesAreCorrupt(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		msgs := rapid.SliceOfN(messageGen, 1, 3).Draw(t, "messages")
		frame := AppendFrame(nil, msgs)
		bad := mutate(t, frame)
		if string(bad) == string(frame) {
			return
		}
		if _, err := DecodeMessages(bad); fault.KindOf(err) != fault.Corrupt {
			t.Fatalf("a damaged frame gave %v", err)
		}
	})
}

// The checksum hides the parser from the test above; here it fits the damage.
func TestParserSurvivesAnyBytes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var body []byte
		for range rapid.IntRange(1, 4).Draw(t, "messages") {
			m := messageGen.Draw(t, "message")
			body = AppendMessage(body, &m)
		}
		for range rapid.IntRange(1, 4).Draw(t, "mutations") {
			body = mutate(t, body)
		}
		frame := append([]byte{FrameVersion, 0, 0, 0, 0}, body...)
		binary.LittleEndian.PutUint32(frame[1:], crc32.Checksum(body, castagnoli))
		_, err := DecodeMessages(frame)
		wantCorrupt(t, err)
	})
}

func TestUnknownFrameVersionNamesARemedy(t *testing.T) {
	frame := AppendFrame(nil, nil)
	frame[0]++
	_, err := DecodeMessages(frame)
	if f := fault.As(err); f.Kind != fault.Corrupt || f.Remedy == "" {
		t.Fatalf("got %+v", f)
	}
}

func TestCountsAreCheckedBeforeAllocation(t *testing.T) {
	d := decoder{b: append(appendUvarint(nil, 4), 1, 2, 3)}
	if ids := decodeIDs[base.ReplicaID](&d); ids != nil || d.err == nil {
		t.Fatalf("four identifiers in three bytes: %v", ids)
	}
	d = decoder{b: appendUvarint(nil, math.MaxUint64)}
	if n := d.count(1); n != 0 || d.err == nil {
		t.Fatalf("count accepted %d", n)
	}
	// A count that its bytes could hold, but whose first element does not parse, must
	// not allocate for all of them.
	body := append(appendUvarint(nil, 1<<20), bytes.Repeat([]byte{0xff}, 1<<20)...)
	d = decoder{b: body}
	ids := decodeIDs[base.ReplicaID](&d)
	if d.err == nil || cap(ids) > preallocated {
		t.Fatalf("allocated %d identifiers: %v", cap(ids), d.err)
	}
}

func TestDecodedMessagesAliasOnlyTheirFrame(t *testing.T) {
	data := []byte("data")
	frame := AppendFrame(nil, []Message{{Call: &Call{Method: MethodPropose, Body: data}}})
	data[0] = 'x'
	got, err := DecodeMessages(frame)
	if err != nil || string(got[0].Call.Body) != "data" {
		t.Fatalf("got %v, %v", got, err)
	}
	if c := cap(got[0].Call.Body); c != len("data") {
		t.Fatalf("capacity %d reaches into the next field", c)
	}
}

func TestEmptyMessagePanics(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Fatal("an empty message was encoded")
		}
	}()
	AppendMessage(nil, &Message{})
}

func TestConsecutiveEntriesCostTwoBytesEach(t *testing.T) {
	m := effect.Message{Type: 3, Range: 9, From: 1, To: 2, Term: 1 << 40, LogTerm: 1 << 40, Index: 1 << 50}
	sizeOf := func() int { return len(AppendMessage(nil, &Message{Replication: &m})) }
	m.Entries = append(m.Entries, base.Entry{Index: m.Index + 1, Term: m.Term, Type: base.EntryCommand})
	one := sizeOf()
	for i := range uint64(9) {
		m.Entries = append(m.Entries, base.Entry{Index: m.Index + 2 + i, Term: m.Term, Type: base.EntryCommand})
	}
	if n := sizeOf() - one; n != 18 {
		t.Fatalf("nine entries take %d bytes", n)
	}
}

func BenchmarkFrame(b *testing.B) {
	entry := base.Entry{Term: 7, Type: base.EntryCommand, Data: make([]byte, 256)}
	m := effect.Message{Type: 3, Range: 9, From: 1, To: 2, Term: 7, LogTerm: 7, Index: 1 << 20, Commit: 1 << 20}
	for i := range uint64(8) {
		entry.Index = m.Index + 1 + i
		m.Entries = append(m.Entries, entry)
	}
	msgs := []Message{{Replication: &m}, {Reply: &Reply{ID: 1 << 30, Body: make([]byte, 32)}}}
	var frame []byte
	b.Run("append", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			frame = AppendFrame(frame[:0], msgs)
		}
		b.SetBytes(int64(len(frame)))
	})
	b.Run("decode", func(b *testing.B) {
		b.ReportAllocs()
		b.SetBytes(int64(len(frame)))
		for b.Loop() {
			if _, err := DecodeMessages(frame); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func ExampleSize() {
	fmt.Println(Size(&Message{Call: &Call{Body: make([]byte, 100)}}))
	// Output: 148
}
