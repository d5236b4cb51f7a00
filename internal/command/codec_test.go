package command

import (
	"bytes"
	"encoding/binary"
	"reflect"
	"testing"

	"pgregory.net/rapid"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/keys"
	"github.com/almanacdb/almanac/internal/mvcc"
	"github.com/almanacdb/almanac/internal/timeline"
)

func mustEncode(t interface{ Fatalf(string, ...any) }, h Header, body any) []byte {
	env, err := Encode(h, body)
	if err != nil {
		t.Fatalf("encode kind %d: %v", h.Kind, err)
	}
	return env
}

func TestCommandRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		k := drawKind(t)
		h, body := drawHeader(t, k), drawBody(t, k)
		env := mustEncode(t, h, body)
		c, err := Decode(env)
		if err != nil {
			t.Fatalf("decode: %v", err)
		}
		if got, err := DecodeHeader(env); err != nil || got != h || c.Header != h {
			t.Fatalf("header came back as %+v and %+v, %v; want %+v", got, c.Header, err, h)
		}
		if normal(c.Body) != normal(body) {
			t.Fatalf("body came back as\n%s; want\n%s", normal(c.Body), normal(body))
		}
		reads, writes, err := Touches(env)
		if err != nil || !reflect.DeepEqual(reads, c.Reads) || !reflect.DeepEqual(writes, c.Writes) {
			t.Fatalf("touches %v, %v, %v; want %v, %v", reads, writes, err, c.Reads, c.Writes)
		}
		again := mustEncode(t, c.Header, c.Body)
		if !bytes.Equal(again, env) {
			t.Fatalf("encodes to %x, then to %x", env, again)
		}
	})
}

func TestListsAreDerivedFromEveryBranch(t *testing.T) {
	p := func(k string) base.Span { return base.PointSpan([]byte(k)) }
	wide := base.Span{Start: []byte("m"), End: []byte("n")}
	nested := &mvcc.Txn{
		Compares: []mvcc.Compare{{Span: p("c2")}},
		Then:     []mvcc.Op{{Kind: mvcc.OpPut, Span: p("w3")}},
		Else:     []mvcc.Op{{Kind: mvcc.OpDelete, Span: wide}},
	}
	env := mustEncode(t, Header{Kind: KindTxn}, &mvcc.Txn{
		Compares: []mvcc.Compare{{Span: p("c1")}},
		Then:     []mvcc.Op{{Kind: mvcc.OpPut, Span: p("w1")}, {Kind: mvcc.OpTxn, Txn: nested}},
		Else:     []mvcc.Op{{Kind: mvcc.OpRange, Span: wide}, {Kind: mvcc.OpPut, Span: p("w4")}},
	})
	reads, writes, err := Touches(env)
	if err != nil || !reflect.DeepEqual(reads, []base.Span{p("c1"), p("c2"), wide}) ||
		!reflect.DeepEqual(writes, []base.Span{p("w1"), p("w3"), wide, p("w4")}) {
		t.Errorf("reads %q, writes %q, %v", reads, writes, err)
	}

	id := base.PartitionID{Topic: 4, Partition: 2}
	want := []base.Span{base.PointSpan(keys.Partition(id))}
	for k, body := range map[Kind]any{
		KindPublish:     &timeline.Publish{Batches: []timeline.Batch{{Partition: id}}},
		KindAck:         &timeline.Ack{Batches: []timeline.AckBatch{{Partition: id}}},
		KindCreateGroup: &timeline.CreateGroup{Partitions: []base.PartitionID{id}},
	} {
		reads, writes, err := Touches(mustEncode(t, Header{Kind: k}, body))
		if err != nil || reads != nil || !reflect.DeepEqual(writes, want) {
			t.Errorf("kind %d: reads %q, writes %q, %v", k, reads, writes, err)
		}
	}
}

// Key bytes stand in the lists alone.
func TestKeysAreWrittenOnce(t *testing.T) {
	key := bytes.Repeat([]byte("k"), 1000)
	env := mustEncode(t, Header{Kind: KindTxn}, &mvcc.Txn{
		Then: []mvcc.Op{{Kind: mvcc.OpPut, Span: base.PointSpan(key), Value: []byte("v")}},
	})
	if len(env) > len(key)+headerSize+16 {
		t.Errorf("a put of a %d byte key takes %d bytes", len(key), len(env))
	}
}

func TestPatchInPlace(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		k := drawKind(t)
		h, body := drawHeader(t, k), drawBody(t, k)
		env := mustEncode(t, h, body)
		h.Stamp, h.Time = drawStamp(t, "new stamp"), drawStamp(t, "new time")
		SetStamp(env, h.Stamp)
		SetTime(env, h.Time)
		if want := mustEncode(t, h, body); !bytes.Equal(env, want) {
			t.Fatalf("patched %x, want %x", env, want)
		}
	})
}

func TestHeaderAllocatesNothing(t *testing.T) {
	env := mustEncode(t, Header{Kind: KindNoop}, nil)
	if n := testing.AllocsPerRun(100, func() { _, _ = DecodeHeader(env) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestEncodeRefuses(t *testing.T) {
	deep := &mvcc.Txn{}
	for range mvcc.MaxDepth {
		deep = &mvcc.Txn{Then: []mvcc.Op{{Kind: mvcc.OpTxn, Txn: deep}}}
	}
	op := func(op mvcc.Op) *mvcc.Txn { return &mvcc.Txn{Then: []mvcc.Op{op}} }
	for name, tt := range map[string]struct {
		kind Kind
		body any
	}{
		"unknown kind":    {0, nil},
		"later kind":      {KindRaiseFeature + 1, nil},
		"no body":         {KindTxn, nil},
		"nil body":        {KindTxn, (*mvcc.Txn)(nil)},
		"body by value":   {KindSetBound, SetBound{}},
		"other body":      {KindAck, &timeline.Publish{}},
		"body of a no-op": {KindNoop, &SetBound{}},
		"put of a span":   {KindTxn, op(mvcc.Op{Kind: mvcc.OpPut})},
		"unknown op":      {KindTxn, op(mvcc.Op{})},
		"missing nested":  {KindTxn, op(mvcc.Op{Kind: mvcc.OpTxn})},
		"nested too deep": {KindTxn, deep},
	} {
		if _, err := Encode(Header{Kind: tt.kind}, tt.body); fault.KindOf(err) != fault.Invalid {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if _, err := Encode(Header{Kind: KindTxn}, deep.Then[0].Txn); err != nil {
		t.Errorf("the deepest transaction: %v", err)
	}
}

func TestUnknownVersionsAreNamed(t *testing.T) {
	env := mustEncode(t, Header{Kind: KindNoop}, nil)
	for name, patch := range map[string]func(b []byte){
		"format":          func(b []byte) { b[offFormat] = 2 },
		"kind":            func(b []byte) { b[offKind] = byte(KindRaiseFeature) + 1 },
		"no kind":         func(b []byte) { b[offKind] = 0 },
		"command version": func(b []byte) { b[offVersion] = maxVersion + 1 },
	} {
		b := bytes.Clone(env)
		patch(b)
		if _, err := Decode(b); fault.KindOf(err) != fault.Unimplemented {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if _, err := DecodeState([]byte{stateFormat + 1}); fault.KindOf(err) != fault.Unimplemented {
		t.Errorf("state: %v", err)
	}
	if _, err := DecodeDescriptor([]byte{descriptorFormat + 1}); fault.KindOf(err) != fault.Unimplemented {
		t.Errorf("descriptor: %v", err)
	}
	if _, err := DecodeResult([]byte{resultFormat + 1}); fault.KindOf(err) != fault.Unimplemented {
		t.Errorf("result: %v", err)
	}
}

func drawState(t *rapid.T) *State {
	return &State{
		Descriptor: drawDescriptor(t),
		Replica:    base.ReplicaID(rapid.Uint64().Draw(t, "replica")),
		Applied:    base.LogMark{Index: rapid.Uint64().Draw(t, "index"), Term: rapid.Uint64().Draw(t, "term")},
		LastStamp:  drawStamp(t, "last stamp"), Clock: drawStamp(t, "clock"),
		Horizon: drawStamp(t, "horizon"), Bound: drawStamp(t, "bound"),
		FeatureLevel: rapid.Uint32().Draw(t, "feature level"),
	}
}

func TestStateRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := drawState(t)
		for tag := range rapid.IntRange(0, 3).Draw(t, "unknown") {
			want.Unknown = append(want.Unknown, byte(lastTag+1+tag))
			want.Unknown = appendBytes(want.Unknown, drawBytes(t, "value"))
		}
		b := EncodeState([]byte("before"), want)
		if !bytes.HasPrefix(b, []byte("before")) {
			t.Fatalf("what stood before is gone: %q", b)
		}
		got, err := DecodeState(b[len("before"):])
		if err != nil || normal(*got) != normal(*want) {
			t.Fatalf("got %+v, %v; want %+v", got, err, want)
		}
	})
}

// A later version's fields may stand anywhere and outlive this version's rewrite.
func TestUnknownFieldsSurvive(t *testing.T) {
	st := &State{Descriptor: base.RangeDescriptor{Range: 7}, Replica: 3}
	later := []byte{120, 3, 'n', 'e', 'w', 0xc8, 1, 0}
	b := EncodeState(nil, st)
	b = append([]byte{b[0]}, append(bytes.Clone(later), b[1:]...)...)
	got, err := DecodeState(b)
	if err != nil || !bytes.Equal(got.Unknown, later) || got.Replica != 3 || got.Descriptor.Range != 7 {
		t.Fatalf("got %+v, %v", got, err)
	}
	clear(b)
	got.Replica = 4
	again, err := DecodeState(EncodeState(nil, got))
	if err != nil || !bytes.Equal(again.Unknown, later) || again.Replica != 4 {
		t.Fatalf("after a rewrite: %+v, %v", again, err)
	}
}

func TestDamagedState(t *testing.T) {
	good := EncodeState(nil, &State{Replica: 3})
	for name, b := range map[string][]byte{
		"empty":            {},
		"no descriptor":    {stateFormat, tagReplica, 1, 3},
		"field twice":      append(bytes.Clone(good), tagReplica, 1, 3),
		"tag zero":         append(bytes.Clone(good), 0, 0),
		"cut":              good[:len(good)-1],
		"long number":      append(bytes.Clone(good), tagClock, 2, 0x80, 0),
		"trailing":         append(bytes.Clone(good), tagClock, 2, 1, 1),
		"no value":         append(bytes.Clone(good), tagClock, 0),
		"feature too high": append(bytes.Clone(good), tagFeatureLevel, 5, 0x80, 0x80, 0x80, 0x80, 0x10),
	} {
		if _, err := DecodeState(b); fault.KindOf(err) != fault.Corrupt {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func drawResult(t *rapid.T) *Result {
	r := &Result{Stamp: drawStamp(t, "stamp"), Clock: drawStamp(t, "clock")}
	if rapid.Bool().Draw(t, "refused") {
		r.Refusal = &fault.Error{
			Kind: fault.Kind(rapid.Byte().Draw(t, "kind")), Text: rapid.String().Draw(t, "text"),
			Remedy: rapid.String().Draw(t, "remedy"), Leader: base.NodeID(rapid.Uint64().Draw(t, "leader")),
			Range: base.RangeID(rapid.Uint64().Draw(t, "range")),
		}
	}
	if rapid.Bool().Draw(t, "txn") {
		r.Txn = drawTxnResult(t, 1)
	}
	r.Published = several(t, 3, "published", func(t *rapid.T) timeline.Published {
		return timeline.Published{Position: drawPosition(t), Duplicate: rapid.Bool().Draw(t, "duplicate")}
	})
	r.Acks = several(t, 3, "acks", func(t *rapid.T) timeline.AckOutcome {
		return timeline.AckOutcome(rapid.Byte().Draw(t, "outcome"))
	})
	return r
}

func drawTxnResult(t *rapid.T, depth int) *mvcc.TxnResult {
	kv := func(t *rapid.T) mvcc.KeyValue {
		return mvcc.KeyValue{
			Key: drawBytes(t, "key"), Value: drawBytes(t, "value"), CreateRevision: drawStamp(t, "create"),
			ModRevision: drawStamp(t, "mod"), Version: rapid.Int64().Draw(t, "version"),
			Lease: rapid.Int64().Draw(t, "lease"),
		}
	}
	op := func(t *rapid.T) mvcc.OpResult {
		o := mvcc.OpResult{Kind: mvcc.OpKind(rapid.IntRange(1, 4).Draw(t, "op"))}
		switch o.Kind {
		case mvcc.OpRange:
			o.Range = mvcc.RangeResult{
				KVs: several(t, 3, "kvs", kv), Count: rapid.Int64().Draw(t, "count"), More: rapid.Bool().Draw(t, "more"),
			}
		case mvcc.OpPut:
			o.Prev = several(t, 1, "prev", kv)
		case mvcc.OpDelete:
			o.Prev, o.Deleted = several(t, 2, "prev", kv), rapid.Int64().Draw(t, "deleted")
		case mvcc.OpTxn:
			if depth == 3 {
				o.Kind = mvcc.OpPut
			} else {
				o.Txn = drawTxnResult(t, depth+1)
			}
		}
		return o
	}
	return &mvcc.TxnResult{Succeeded: rapid.Bool().Draw(t, "succeeded"), Ops: several(t, 3, "ops", op)}
}

func TestResultRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := drawResult(t)
		got, err := DecodeResult(EncodeResult(nil, want))
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Fatalf("got %+v, %v; want %+v", got, err, want)
		}
	})
}

func TestDescriptorRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := drawDescriptor(t)
		got, err := DecodeDescriptor(EncodeDescriptor(nil, &want))
		if err != nil || normal(*got) != normal(want) {
			t.Fatalf("got %+v, %v; want %+v", got, err, want)
		}
	})
}

// decodeAll gives b to every decoder. None may panic, and what fails must fail as
// corrupt or as a format that is not known.
func decodeAll(t *rapid.T, b []byte) {
	_, _, touches := Touches(b)
	_, command := Decode(b)
	_, state := DecodeState(b)
	_, result := DecodeResult(b)
	_, descriptor := DecodeDescriptor(b)
	for _, err := range []error{touches, command, state, result, descriptor} {
		if k := fault.KindOf(err); err != nil && k != fault.Corrupt && k != fault.Unimplemented {
			t.Fatalf("%x: got %v", b, err)
		}
	}
}

func TestDecodersTakeAnyBytes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		decodeAll(t, rapid.SliceOf(rapid.Byte()).Draw(t, "bytes"))
		k := drawKind(t)
		for _, good := range [][]byte{
			mustEncode(t, drawHeader(t, k), drawBody(t, k)),
			EncodeState(nil, drawState(t)),
			EncodeResult(nil, drawResult(t)),
		} {
			cut := rapid.IntRange(0, len(good)-1).Draw(t, "cut")
			decodeAll(t, good[:cut:cut])
			bad := bytes.Clone(good)
			bad[rapid.IntRange(0, len(bad)-1).Draw(t, "at")] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
			decodeAll(t, bad)
		}
	})
}

// A command that is cut short, or longer than it says, is never taken.
func TestCommandsAreWhole(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		k := drawKind(t)
		env := mustEncode(t, drawHeader(t, k), drawBody(t, k))
		cut := rapid.IntRange(0, len(env)-1).Draw(t, "cut")
		if _, err := Decode(env[:cut:cut]); fault.KindOf(err) != fault.Corrupt {
			t.Fatalf("cut at %d of %d: got %v", cut, len(env), err)
		}
		if _, err := Decode(append(env, 0)); fault.KindOf(err) != fault.Corrupt {
			t.Fatalf("with a byte more: got %v", err)
		}
	})
}

// A count or length far above what follows allocates nothing for it; nor is a point
// taken that is none.
func TestDamagedCounts(t *testing.T) {
	huge := binary.AppendUvarint(nil, 1<<62)
	empty := mustEncode(t, Header{Kind: KindTxn}, &mvcc.Txn{})
	lists := empty[:headerSize:headerSize]
	for name, f := range map[string]func() error{
		"read list":  func() error { _, err := Decode(append(lists, huge...)); return err },
		"write list": func() error { _, err := Decode(append(append(lists, 0), huge...)); return err },
		"span":       func() error { _, err := Decode(append(append(lists, 1), huge...)); return err },
		"compares":   func() error { _, err := Decode(append(append(lists, 0, 0), huge...)); return err },
		"operations": func() error { _, err := Decode(append(append(lists, 0, 0, 0), huge...)); return err },
		"partitions": func() error {
			group := mustEncode(t, Header{Kind: KindCreateGroup}, &timeline.CreateGroup{})
			_, err := Decode(append(group[:len(group)-1:len(group)-1], huge...))
			return err
		},
		"point that does not end in zero": func() error {
			env := mustEncode(t, Header{Kind: KindTxn}, &mvcc.Txn{
				Then: []mvcc.Op{{Kind: mvcc.OpDelete, Span: base.PointSpan([]byte("k"))}},
			})
			env[bytes.IndexByte(env[headerSize:], 'k')+headerSize+1] = 1
			_, err := Decode(env)
			return err
		},
		"state":  func() error { _, err := DecodeState(append([]byte{1, 1}, huge...)); return err },
		"result": func() error { _, err := DecodeResult(append([]byte{1, 1, 1}, huge...)); return err },
	} {
		if err := f(); fault.KindOf(err) != fault.Corrupt {
			t.Errorf("%s: got %v", name, err)
		}
	}
}
