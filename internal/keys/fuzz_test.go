package keys

import (
	"bytes"
	"testing"

	"github.com/almanacdb/almanac/internal/base"
)

// Physical keys are read from the state store.
func FuzzDecode(f *testing.F) {
	user := User(base.DefaultKeyspace, []byte("a\x00b"))
	partition := Partition(base.PartitionID{Topic: 300, Partition: 7})
	f.Add(AppendVersion(nil, user, 1<<40))
	f.Add(AppendPosition(AppendPrefix(nil, FamilyTimeline, partition), base.Position{DueMS: 5, Seq: 9}))
	f.Add(AppendPrefix(nil, FamilyGroup, partition))
	f.Add(RangeState(7))
	f.Fuzz(func(t *testing.T, k []byte) {
		if n := Split(k); n < 0 || n > len(k) {
			t.Fatalf("the prefix of %x has %d bytes", k, n)
		}
		if r, err := DecodeRangeState(k); err == nil && !bytes.Equal(RangeState(r), k) {
			t.Errorf("%x is taken for range %d", k, r)
		}
		family, logical, suffix, err := Decode(k)
		if err != nil {
			return
		}
		again := append(AppendPrefix(nil, family, logical), suffix...)
		if !bytes.Equal(again, k) {
			t.Fatalf("%x is encoded as %x", k, again)
		}
		if ts, err := VersionTimestamp(suffix); err == nil && !bytes.Equal(AppendVersionSuffix(nil, ts), suffix) {
			t.Errorf("suffix %x is taken for %v", suffix, ts)
		}
		if pos, rest, err := DecodePosition(suffix); err == nil && !bytes.Equal(append(AppendPosition(nil, pos), rest...), suffix) {
			t.Errorf("suffix %x is taken for %v", suffix, pos)
		}
	})
}

// Logical keys come with commands from other nodes.
func FuzzDecodeLogical(f *testing.F) {
	f.Add(User(base.DefaultKeyspace, []byte("key")))
	f.Add(User(1<<60, nil))
	f.Add(Partition(base.PartitionID{Topic: 300, Partition: 1<<32 - 1}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if n, rest, err := DecodeOrdered(b); err == nil && !bytes.Equal(append(AppendOrdered(nil, n), rest...), b) {
			t.Errorf("%x is taken for the number %d", b, n)
		}
		if ks, key, err := DecodeUser(b); err == nil && !bytes.Equal(User(ks, key), b) {
			t.Errorf("%x is taken for key %x of keyspace %d", b, key, ks)
		}
		if p, err := DecodePartition(b); err == nil && !bytes.Equal(Partition(p), b) {
			t.Errorf("%x is taken for partition %v", b, p)
		}
	})
}
