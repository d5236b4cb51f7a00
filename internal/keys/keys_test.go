package keys

import (
	"bytes"
	"math"
	"testing"

	"pgregory.net/rapid"

	"github.com/almanacdb/almanac/internal/base"
)

// logical draws byte strings full of what the escaping must get right.
func logical() *rapid.Generator[[]byte] {
	return rapid.OneOf(
		rapid.SliceOfN(rapid.SampledFrom([]byte{0, 1, 2, 'a', 0xfe, 0xff}), 0, 6),
		rapid.SliceOf(rapid.Byte()),
	)
}

func families() *rapid.Generator[Family] { return rapid.SampledFrom(SpanFamilies) }

func TestOrderedNumbers(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n, m := rapid.Uint64().Draw(t, "n"), rapid.Uint64().Draw(t, "m")
		tail := rapid.SliceOf(rapid.Byte()).Draw(t, "tail")
		a, b := AppendOrdered(nil, n), AppendOrdered(nil, m)
		if got := bytes.Compare(a, b); (n < m) != (got < 0) || (n == m) != (got == 0) {
			t.Fatalf("%d and %d encode to %x and %x", n, m, a, b)
		}
		back, rest, err := DecodeOrdered(append(a, tail...))
		if err != nil || back != n || !bytes.Equal(rest, tail) {
			t.Fatalf("%d came back as %d, rest %x, %v", n, back, rest, err)
		}
	})
	for _, b := range [][]byte{{}, {1}, {9, 1, 1, 1, 1, 1, 1, 1, 1, 1}, {1, 0}, {2, 0, 1}, {0xff}} {
		if _, _, err := DecodeOrdered(b); err == nil {
			t.Errorf("%x was taken", b)
		}
	}
}

// Physical keys order as (logical key, newest first), round trip, and split before the
// suffix.
func TestVersionKeys(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l1, l2 := logical().Draw(t, "l1"), logical().Draw(t, "l2")
		t1 := base.Timestamp(rapid.Uint64().Draw(t, "t1"))
		t2 := base.Timestamp(rapid.Uint64().Draw(t, "t2"))
		k1, k2 := AppendVersion(nil, l1, t1), AppendVersion(nil, l2, t2)
		want := bytes.Compare(l1, l2)
		if want == 0 {
			want = bytes.Compare(AppendOrdered(nil, uint64(t2)), AppendOrdered(nil, uint64(t1)))
		}
		if got := bytes.Compare(k1, k2); got != want {
			t.Fatalf("%x@%d and %x@%d order %d, want %d", l1, t1, l2, t2, got, want)
		}
		f, l, suffix, err := Decode(k1)
		if err != nil || f != FamilyVersion || !bytes.Equal(l, l1) {
			t.Fatalf("%x came back as family %x, key %x, %v", l1, f, l, err)
		}
		if ts, err := VersionTimestamp(suffix); err != nil || ts != t1 {
			t.Fatalf("timestamp %d came back as %d, %v", t1, ts, err)
		}
		n := Split(k1)
		if !bytes.Equal(k1[n:], suffix) || !bytes.Equal(k1[:n], AppendPrefix(nil, FamilyVersion, l1)) {
			t.Fatalf("%x splits at %d", k1, n)
		}
		if !bytes.Equal(l1, l2) && bytes.HasPrefix(k1, AppendPrefix(nil, FamilyVersion, l2)) {
			t.Fatalf("the prefix of %x is a prefix of a version of %x", l2, l1)
		}
		if got := AppendVersionSuffix(k1[:n:n], t2); !bytes.Equal(got, AppendVersion(nil, l1, t2)) {
			t.Fatalf("suffix %d after the prefix of %x: %x", t2, l1, got)
		}
	})
}

// A family's physical span holds the physical keys of a logical span, and no others,
// whatever their suffix.
func TestFamilySpanCoversItsKeys(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := base.Span{Start: logical().Draw(t, "start"), End: logical().Draw(t, "end")}
		l := logical().Draw(t, "key")
		switch rapid.IntRange(0, 3).Draw(t, "relate") {
		case 0:
			s = base.PointSpan(s.Start)
		case 1:
			l = s.Start
		case 2:
			l = append(bytes.Clone(s.End), l...)
		}
		f, g := families().Draw(t, "family"), families().Draw(t, "other family")
		k := append(AppendPrefix(nil, g, l), rapid.SliceOf(rapid.Byte()).Draw(t, "suffix")...)
		lower, upper := FamilySpan(f, s)
		physical := bytes.Compare(k, lower) >= 0 && bytes.Compare(k, upper) < 0
		if want := f == g && s.ContainsKey(l); physical != want {
			t.Fatalf("span %x in family %x: key %x in %x is covered: %v, want %v", s, f, l, g, physical, want)
		}
	})
}

func TestFamiliesAreInKeyOrder(t *testing.T) {
	for i, f := range SpanFamilies {
		if i > 0 && f <= SpanFamilies[i-1] {
			t.Errorf("family %x stands after %x", f, SpanFamilies[i-1])
		}
		if f == FamilyRangeState || f == FamilyRequestID {
			t.Errorf("family %x is by range id and in no span", f)
		}
	}
}

// Where a split is used, the engine relies on this: a prefix sorts before every key
// that has it, prefixes sort as the keys do, and a prefix is its own prefix.
func TestSplitIsConsistent(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		draw := func(label string) []byte {
			if rapid.Bool().Draw(t, label+" raw") {
				return rapid.SliceOfN(rapid.SampledFrom([]byte{0, 1, 0x10, 0x21, 0xff}), 0, 12).Draw(t, label)
			}
			k := AppendPrefix(nil, families().Draw(t, label+" family"), logical().Draw(t, label))
			return append(k, rapid.SliceOfN(rapid.Byte(), 0, 9).Draw(t, label+" suffix")...)
		}
		a, b := draw("a"), draw("b")
		n, m := Split(a), Split(b)
		if n < 0 || n > len(a) || Split(a[:n]) != n {
			t.Fatalf("%x splits at %d, its prefix at %d", a, n, Split(a[:n]))
		}
		if c := bytes.Compare(a[:n], b[:m]); c != 0 && c != bytes.Compare(a, b) {
			t.Fatalf("%x and %x order otherwise than their prefixes, of %d and %d bytes", a, b, n, m)
		}
	})
}

func TestUserKeys(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ks := base.KeyspaceID(rapid.Uint64Max(math.MaxUint64-1).Draw(t, "keyspace"))
		key, start, end := logical().Draw(t, "key"), logical().Draw(t, "start"), logical().Draw(t, "end")
		l := User(ks, key)
		gotKS, gotKey, err := DecodeUser(l)
		if err != nil || gotKS != ks || !bytes.Equal(gotKey, key) {
			t.Fatalf("%d %x came back as %d %x, %v", ks, key, gotKS, gotKey, err)
		}
		if !KeyspaceSpan(ks).ContainsKey(l) || KeyspaceSpan(ks+1).ContainsKey(l) {
			t.Fatalf("key %x of keyspace %d is in the wrong keyspace's span", key, ks)
		}
		in := bytes.Compare(key, start) >= 0 && (len(end) == 0 || bytes.Compare(key, end) < 0)
		if UserSpan(ks, start, end).ContainsKey(l) != in {
			t.Fatalf("key %x, span [%x, %x): want contained %v", key, start, end, in)
		}
		if _, err := DecodePartition(l); err == nil {
			t.Fatalf("user key %x was taken for a partition", l)
		}
	})
}

func TestPartitionKeys(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		draw := func(label string) base.PartitionID {
			return base.PartitionID{
				Topic:     base.TopicID(rapid.Uint64Range(0, 300).Draw(t, label+" topic")),
				Partition: base.Partition(rapid.Uint32().Draw(t, label+" partition")),
			}
		}
		p, q := draw("p"), draw("q")
		a, b := Partition(p), Partition(q)
		if got, err := DecodePartition(a); err != nil || got != p {
			t.Fatalf("%v came back as %v, %v", p, got, err)
		}
		less := p.Topic < q.Topic || p.Topic == q.Topic && p.Partition < q.Partition
		if less != (bytes.Compare(a, b) < 0) {
			t.Fatalf("%v and %v encode to %x and %x", p, q, a, b)
		}
		from, to := draw("from").Partition, draw("to").Partition
		in := p.Partition >= from && p.Partition < to
		if PartitionSpan(p.Topic, from, to).ContainsKey(a) != in || q.Topic != p.Topic && PartitionSpan(q.Topic, 0, math.MaxUint32).ContainsKey(a) {
			t.Fatalf("partition %v, span [%d, %d): want contained %v", p, from, to, in)
		}
		if _, _, err := DecodeUser(a); err == nil {
			t.Fatalf("partition %v was taken for a user key", p)
		}
	})
}

func TestPositions(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		draw := func(label string) base.Position {
			return base.Position{
				DueMS: rapid.Int64Min(0).Draw(t, label+" due"),
				Seq:   rapid.Uint64().Draw(t, label+" sequence"),
			}
		}
		p, q := draw("p"), draw("q")
		a, b := AppendPosition(nil, p), AppendPosition(nil, q)
		if p.Compare(q) != bytes.Compare(a, b) {
			t.Fatalf("%v and %v encode to %x and %x", p, q, a, b)
		}
		got, rest, err := DecodePosition(append(a, 7))
		if err != nil || got != p || len(rest) != 1 {
			t.Fatalf("%v came back as %v, rest %x, %v", p, got, rest, err)
		}
		if _, _, err := DecodePosition(a[:15]); err == nil {
			t.Fatal("a position cut short was taken")
		}
	})
}

func TestRangeState(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := base.RangeID(rapid.Uint64().Draw(t, "range"))
		k := RangeState(r)
		if got, err := DecodeRangeState(k); err != nil || got != r {
			t.Fatalf("range %d came back as %d, %v", r, got, err)
		}
		for _, f := range SpanFamilies {
			if lower, _ := FamilySpan(f, base.Span{}); bytes.Compare(k, lower) >= 0 {
				t.Fatalf("the state record %x lies in family %x", k, f)
			}
		}
	})
}

// No bytes make a decoder panic, and what it takes encodes back to the same bytes.
func TestDecodersTakeAnyBytes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := rapid.OneOf(
			rapid.SliceOf(rapid.Byte()),
			rapid.SliceOfN(rapid.SampledFrom([]byte{0, 1, 2, 3, 0x10, 0xff}), 0, 12),
		).Draw(t, "bytes")
		if f, l, suffix, err := Decode(b); err == nil {
			if again := append(AppendPrefix(nil, f, l), suffix...); !bytes.Equal(again, b) {
				t.Fatalf("%x decodes to family %x, key %x, which encodes to %x", b, f, l, again)
			}
		}
		if ks, key, err := DecodeUser(b); err == nil && !bytes.Equal(User(ks, key), b) {
			t.Fatalf("%x decodes to %d %x", b, ks, key)
		}
		if p, err := DecodePartition(b); err == nil && !bytes.Equal(Partition(p), b) {
			t.Fatalf("%x decodes to %v", b, p)
		}
		if r, err := DecodeRangeState(b); err == nil && !bytes.Equal(RangeState(r), b) {
			t.Fatalf("%x decodes to %d", b, r)
		}
		if ts, err := VersionTimestamp(b); err == nil && !bytes.Equal(AppendVersionSuffix(nil, ts), b) {
			t.Fatalf("%x decodes to %d", b, ts)
		}
		if n := Split(b); n < 0 || n > len(b) {
			t.Fatalf("%x splits at %d", b, n)
		}
	})
}
