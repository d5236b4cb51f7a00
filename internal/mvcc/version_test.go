package mvcc

import (
	"reflect"
	"testing"

	"pgregory.net/rapid"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/fault"
)

func TestVersionRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		mod := rapid.Uint64Range(1, uint64(base.MaxTimestamp)).Draw(t, "mod")
		want := KeyValue{
			Value:          rapid.SliceOf(rapid.Byte()).Draw(t, "value"),
			CreateRevision: base.Timestamp(rapid.Uint64Range(1, mod).Draw(t, "create")),
			ModRevision:    base.Timestamp(mod),
			Version:        rapid.Int64Min(1).Draw(t, "version"),
			Lease:          rapid.Int64().Draw(t, "lease"),
		}
		var got KeyValue
		live, err := decodeVersion(appendVersion(nil, &want), want.ModRevision, &got)
		if err != nil || !live || !reflect.DeepEqual(got, want) {
			t.Fatalf("got %+v, %v, %v; want %+v", got, live, err, want)
		}
	})
}

func TestVersionSize(t *testing.T) {
	created := KeyValue{CreateRevision: base.MaxTimestamp, ModRevision: base.MaxTimestamp, Version: 1}
	if n := len(appendVersion(nil, &created)); n != 3 {
		t.Errorf("a new key without lease costs %d bytes besides its value, want 3", n)
	}
	if len(tombstone) != 1 {
		t.Errorf("a tombstone costs %d bytes, want 1", len(tombstone))
	}
}

func TestVersionDamage(t *testing.T) {
	var kv KeyValue
	for _, b := range [][]byte{
		{}, {4}, {0x80}, {3}, {1, 0}, // flags
		{0}, {0, 0x80}, {0, 11, 1}, // age: missing, cut, above the timestamp
		{0, 0}, {0, 0, 0}, {0, 0, 0x80}, // version count: missing, zero, cut
		{2, 0, 1}, {2, 0, 1, 0x80}, {2, 0, 1, 0}, // lease: missing, cut, zero
	} {
		if _, err := decodeVersion(b, 10, &kv); fault.KindOf(err) != fault.Corrupt {
			t.Errorf("%x: got %v, want a corrupt fault", b, err)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		b := rapid.SliceOf(rapid.Byte()).Draw(t, "bytes")
		if _, err := decodeVersion(b, 1<<40, &kv); err != nil && fault.KindOf(err) != fault.Corrupt {
			t.Fatal(err)
		}
	})
}
