// Package base is Almanac's vocabulary: identifiers, timestamps, positions, spans
// and descriptors. It owns the meaning of these words and nothing else; it imports
// only the standard library and does no I/O.
package base

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
)

// NodeID names a node for the life of the cluster. Never reused; 0 means none.
type NodeID uint64

// RangeID names a range. Never reused; 0 means none.
type RangeID uint64

// ReplicaID names one replica of a range. Unique within its range and never
// reused; 0 means none.
type ReplicaID uint64

// KeyspaceID names a keyspace. Never reused; 0 means none.
type KeyspaceID uint64

// TopicID names a topic. Never reused; 0 means none.
type TopicID uint64

// GroupID names a consumer group of a topic. Never reused; 0 means none.
type GroupID uint64

// Partition is the number of a partition within its topic, from 0.
type Partition uint32

// ClusterID names a cluster; a node accepts exactly one in its life (R7).
type ClusterID [16]byte

// String returns the id in hexadecimal.
func (c ClusterID) String() string { return hex.EncodeToString(c[:]) }

// IsZero says that no cluster has been accepted yet.
func (c ClusterID) IsZero() bool { return c == ClusterID{} }

// Well-known identifiers, fixed because they are on disk.
const (
	SystemRange     RangeID    = 1
	DefaultRange    RangeID    = 2
	SystemKeyspace  KeyspaceID = 1
	DefaultKeyspace KeyspaceID = 2
)

// PartitionID is a partition together with its topic.
type PartitionID struct {
	Topic     TopicID
	Partition Partition
}

// String returns "topic/partition".
func (p PartitionID) String() string { return fmt.Sprintf("%d/%d", p.Topic, p.Partition) }

// Position is where an event stands in its partition's timeline: by due time, then
// by sequence. The zero Position stands before every event.
type Position struct {
	DueMS int64 // milliseconds since 1970, oracle time
	Seq   uint64
}

// Compare orders positions as the timeline does.
func (p Position) Compare(q Position) int {
	switch {
	case p.DueMS != q.DueMS:
		if p.DueMS < q.DueMS {
			return -1
		}
		return 1
	case p.Seq < q.Seq:
		return -1
	case p.Seq > q.Seq:
		return 1
	}
	return 0
}

// String returns the position as users see it, "1763683200123-42".
func (p Position) String() string {
	return strconv.FormatInt(p.DueMS, 10) + "-" + strconv.FormatUint(p.Seq, 10)
}

// ParsePosition reads what String wrote.
func ParsePosition(s string) (Position, error) {
	due, seq, ok := strings.Cut(s, "-")
	if ok {
		d, err1 := strconv.ParseInt(due, 10, 64)
		n, err2 := strconv.ParseUint(seq, 10, 64)
		if err1 == nil && err2 == nil {
			return Position{DueMS: d, Seq: n}, nil
		}
	}
	return Position{}, fmt.Errorf("position %q is not of the form DUE_MS-SEQUENCE", s)
}

// Span is a contiguous set of logical keys, [Start, End). An empty End means no
// upper bound.
type Span struct {
	Start, End []byte
}

// PointSpan returns the span that holds key alone.
func PointSpan(key []byte) Span {
	end := make([]byte, len(key)+1)
	copy(end, key)
	return Span{Start: end[:len(key):len(key)], End: end}
}

// IsPoint says whether the span holds exactly one key.
func (s Span) IsPoint() bool {
	n := len(s.Start)
	return len(s.End) == n+1 && s.End[n] == 0 && bytes.Equal(s.End[:n], s.Start)
}

// ContainsKey says whether key lies in the span.
func (s Span) ContainsKey(key []byte) bool {
	return bytes.Compare(key, s.Start) >= 0 && (len(s.End) == 0 || bytes.Compare(key, s.End) < 0)
}

// Contains says whether all of t lies in s.
func (s Span) Contains(t Span) bool {
	if bytes.Compare(t.Start, s.Start) < 0 {
		return false
	}
	if len(s.End) == 0 {
		return true
	}
	return len(t.End) != 0 && bytes.Compare(t.End, s.End) <= 0
}

// Overlaps says whether s and t share a key.
func (s Span) Overlaps(t Span) bool {
	return (len(t.End) == 0 || bytes.Compare(s.Start, t.End) < 0) &&
		(len(s.End) == 0 || bytes.Compare(t.Start, s.End) < 0)
}

// PrefixEnd returns the first key after all keys with the given prefix; empty if
// there is none.
func PrefixEnd(prefix []byte) []byte {
	for i := len(prefix) - 1; i >= 0; i-- {
		if prefix[i] != 0xff {
			end := append([]byte(nil), prefix[:i+1]...)
			end[i]++
			return end
		}
	}
	return nil
}
