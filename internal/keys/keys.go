// Package keys owns the encoding of every key on disk. A logical key says what a
// record is about (a system record, a user key, a topic's partition); a physical key
// is (family, logical key, suffix) and orders bytewise, so that a range owns the same
// logical span in each family. The encoding is on disk for ever.
package keys

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/almanacdb/almanac/internal/base"
)

// Family is the first byte of a physical key.
type Family byte

// Families. FamilyRangeState and FamilyRequestID are by range id and not part of any
// logical span; all others are. Those marked † are reserved.
const (
	FamilyRangeState Family = 0x01 // state record, by range id
	FamilyRequestID  Family = 0x02 // † answered request ids, by range id
	FamilyVersion    Family = 0x10 // key versions, suffix: inverted timestamp
	FamilyLock       Family = 0x11 // † transaction locks
	FamilyTxn        Family = 0x12 // † transaction records
	FamilyPartition  Family = 0x20 // partition meta: next sequence, next due
	FamilyTimeline   Family = 0x21 // events, suffix: position
	FamilyMessageID  Family = 0x22 // message id → position
	FamilyMoved      Family = 0x23 // † first sequence → position, once moved
	FamilyGroup      Family = 0x24 // consumer group record with its cursor, suffix: group id
	FamilyAcked      Family = 0x25 // acked window, suffix: group id, position
	FamilyRetry      Family = 0x26 // † retry list
	FamilyDead       Family = 0x27 // † dead letters
	FamilyDedup      Family = 0x28 // † dedup buckets
	FamilyIntent     Family = 0x29 // † intents
	FamilyTimer      Family = 0x2a // † timers
)

// SpanFamilies lists the families that a range's logical span covers, in key order.
var SpanFamilies = []Family{
	FamilyVersion, FamilyLock, FamilyTxn, FamilyPartition, FamilyTimeline, FamilyMessageID,
	FamilyMoved, FamilyGroup, FamilyAcked, FamilyRetry, FamilyDead, FamilyDedup,
	FamilyIntent, FamilyTimer,
}

// First bytes of logical keys.
const (
	tagKeyspace = 0x02
	tagTopic    = 0x03
)

// AppendOrdered appends n so that byte order is number order: a length byte, then the
// minimal big-endian bytes.
func AppendOrdered(b []byte, n uint64) []byte {
	var buf [8]byte
	binary.BigEndian.PutUint64(buf[:], n)
	i := 0
	for i < 8 && buf[i] == 0 {
		i++
	}
	b = append(b, byte(8-i))
	return append(b, buf[i:]...)
}

// DecodeOrdered reads what AppendOrdered wrote and returns the rest.
func DecodeOrdered(b []byte) (n uint64, rest []byte, err error) {
	if len(b) == 0 || b[0] > 8 || len(b) < 1+int(b[0]) {
		return 0, nil, fmt.Errorf("ordered number is cut short: %x", b)
	}
	l := int(b[0])
	if l > 0 && b[1] == 0 {
		return 0, nil, fmt.Errorf("ordered number is not minimal: %x", b)
	}
	for _, c := range b[1 : 1+l] {
		n = n<<8 | uint64(c)
	}
	return n, b[1+l:], nil
}

// User returns the logical key of a key in a keyspace.
func User(ks base.KeyspaceID, key []byte) []byte {
	b := make([]byte, 0, 11+len(key))
	b = AppendOrdered(append(b, tagKeyspace), uint64(ks))
	return append(b, key...)
}

// DecodeUser splits a logical key that User made; key aliases logical.
func DecodeUser(logical []byte) (ks base.KeyspaceID, key []byte, err error) {
	if len(logical) == 0 || logical[0] != tagKeyspace {
		return 0, nil, fmt.Errorf("logical key %x is not in a keyspace", logical)
	}
	n, rest, err := DecodeOrdered(logical[1:])
	return base.KeyspaceID(n), rest, err
}

// KeyspaceSpan returns the logical span of a whole keyspace.
func KeyspaceSpan(ks base.KeyspaceID) base.Span {
	start := User(ks, nil)
	return base.Span{Start: start, End: base.PrefixEnd(start)}
}

// UserSpan returns the logical span of [start, end) in a keyspace; an empty end means
// to the end of the keyspace.
func UserSpan(ks base.KeyspaceID, start, end []byte) base.Span {
	s := base.Span{Start: User(ks, start)}
	if len(end) == 0 {
		s.End = KeyspaceSpan(ks).End
	} else {
		s.End = User(ks, end)
	}
	return s
}

// Partition returns the logical key of a partition.
func Partition(p base.PartitionID) []byte {
	b := make([]byte, 0, 20)
	b = AppendOrdered(append(b, tagTopic), uint64(p.Topic))
	return AppendOrdered(b, uint64(p.Partition))
}

// DecodePartition reads a logical key that Partition made.
func DecodePartition(logical []byte) (base.PartitionID, error) {
	if len(logical) == 0 || logical[0] != tagTopic {
		return base.PartitionID{}, fmt.Errorf("logical key %x is not a partition", logical)
	}
	t, rest, err := DecodeOrdered(logical[1:])
	if err != nil {
		return base.PartitionID{}, err
	}
	p, rest, err := DecodeOrdered(rest)
	if err != nil || len(rest) != 0 || p > 1<<32-1 {
		return base.PartitionID{}, fmt.Errorf("logical key %x is not a partition", logical)
	}
	return base.PartitionID{Topic: base.TopicID(t), Partition: base.Partition(p)}, nil
}

// PartitionSpan returns the logical span of partitions [from, to) of a topic.
func PartitionSpan(t base.TopicID, from, to base.Partition) base.Span {
	return base.Span{
		Start: Partition(base.PartitionID{Topic: t, Partition: from}),
		End:   Partition(base.PartitionID{Topic: t, Partition: to}),
	}
}

// Escaping: 0x00 becomes 0x00 0xff; 0x00 0x01 terminates. So byte order is kept, and
// no terminated key is a prefix of another.

func appendEscaped(b, s []byte) []byte {
	for {
		i := bytes.IndexByte(s, 0)
		if i < 0 {
			return append(b, s...)
		}
		b = append(b, s[:i]...)
		b = append(b, 0, 0xff)
		s = s[i+1:]
	}
}

// AppendPrefix appends the physical prefix (family, logical key, terminator).
func AppendPrefix(b []byte, f Family, logical []byte) []byte {
	b = appendEscaped(append(b, byte(f)), logical)
	return append(b, 0, 1)
}

// prefixLen returns the length of the terminated prefix of a physical key, or -1.
func prefixLen(k []byte) int {
	for i := 1; i < len(k); {
		j := bytes.IndexByte(k[i:], 0)
		if j < 0 || i+j+1 >= len(k) {
			return -1
		}
		i += j
		if k[i+1] == 1 {
			return i + 2
		}
		i += 2
	}
	return -1
}

// Split returns the length of a physical key's prefix as the storage engine's bloom
// filters see it: for versions all before the suffix, else the whole key.
func Split(k []byte) int {
	if len(k) > 0 && Family(k[0]) == FamilyVersion {
		if n := prefixLen(k); n >= 0 {
			return n
		}
	}
	return len(k)
}

// Sequence returns the length of the prefix that a physical key shares with the others of
// its sequence: keys that are mostly written in their order, which are a partition's events.
// It is 0 for a key of none.
func Sequence(k []byte) int {
	if len(k) == 0 || Family(k[0]) != FamilyTimeline {
		return 0
	}
	return max(prefixLen(k), 0)
}

// Decode splits a physical key of a span family. logical is freshly allocated only
// when it had to be unescaped; suffix aliases k.
func Decode(k []byte) (f Family, logical, suffix []byte, err error) {
	n := prefixLen(k)
	if n < 0 {
		return 0, nil, nil, fmt.Errorf("physical key %x has no terminator", k)
	}
	esc := k[1 : n-2]
	if bytes.IndexByte(esc, 0) < 0 {
		return Family(k[0]), esc, k[n:], nil
	}
	logical = make([]byte, 0, len(esc))
	for i := 0; i < len(esc); i++ {
		logical = append(logical, esc[i])
		if esc[i] == 0 {
			if i+1 >= len(esc) || esc[i+1] != 0xff {
				return 0, nil, nil, fmt.Errorf("physical key %x is badly escaped", k)
			}
			i++
		}
	}
	return Family(k[0]), logical, k[n:], nil
}

// FamilySpan returns the physical bounds [lower, upper) of a logical span in a family.
func FamilySpan(f Family, s base.Span) (lower, upper []byte) {
	lower = appendEscaped([]byte{byte(f)}, s.Start)
	if len(s.End) == 0 {
		return lower, []byte{byte(f) + 1}
	}
	return lower, appendEscaped([]byte{byte(f)}, s.End)
}

// AppendVersion appends the physical key of a version: newer versions sort first.
func AppendVersion(b, logical []byte, ts base.Timestamp) []byte {
	return AppendVersionSuffix(AppendPrefix(b, FamilyVersion, logical), ts)
}

// AppendVersionSuffix appends the suffix of a version to a physical prefix.
func AppendVersionSuffix(b []byte, ts base.Timestamp) []byte {
	return binary.BigEndian.AppendUint64(b, ^uint64(ts))
}

// VersionTimestamp reads the timestamp out of a version's suffix.
func VersionTimestamp(suffix []byte) (base.Timestamp, error) {
	if len(suffix) != 8 {
		return 0, fmt.Errorf("version suffix %x is not 8 bytes", suffix)
	}
	return base.Timestamp(^binary.BigEndian.Uint64(suffix)), nil
}

// AppendPosition appends a position as a suffix: byte order is position order.
func AppendPosition(b []byte, p base.Position) []byte {
	b = binary.BigEndian.AppendUint64(b, uint64(p.DueMS))
	return binary.BigEndian.AppendUint64(b, p.Seq)
}

// DecodePosition reads what AppendPosition wrote and returns the rest.
func DecodePosition(b []byte) (base.Position, []byte, error) {
	if len(b) < 16 {
		return base.Position{}, nil, fmt.Errorf("position suffix %x is cut short", b)
	}
	return base.Position{
		DueMS: int64(binary.BigEndian.Uint64(b)),
		Seq:   binary.BigEndian.Uint64(b[8:]),
	}, b[16:], nil
}

// AppendRangeLocal appends the key of a record that is by range id.
func AppendRangeLocal(b []byte, f Family, r base.RangeID) []byte {
	return binary.BigEndian.AppendUint64(append(b, byte(f)), uint64(r))
}

// RangeState returns the key of a range's state record.
func RangeState(r base.RangeID) []byte { return AppendRangeLocal(nil, FamilyRangeState, r) }

// DecodeRangeState reads the range id out of a state record's key.
func DecodeRangeState(k []byte) (base.RangeID, error) {
	if len(k) != 9 || Family(k[0]) != FamilyRangeState {
		return 0, fmt.Errorf("physical key %x is not a range's state record", k)
	}
	return base.RangeID(binary.BigEndian.Uint64(k[1:])), nil
}
