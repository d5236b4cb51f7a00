// Package placement decides where ranges live: it runs on the leader of the system
// range, keeps the catalogue of nodes, keyspaces, topics, groups and ranges as ordinary
// keys there, hears every node's heartbeat and answers what the node should change. It
// refuses to know clients; it reaches replicas only through the store (same-floor
// import).
package placement

import (
	"encoding/json"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/keys"
)

// System records are ordinary keys of the system keyspace: a table's name, a slash,
// the record's own key. Values are JSON, so that a later version may add fields.
const (
	tableCluster  = "cluster"   // the one Cluster record
	tableCounters = "counters"  // the one Counters record
	tableNode     = "node/"     // by node id
	tableKeyspace = "keyspace/" // by name
	tableTopic    = "topic/"    // by name
	tableGroup    = "group/"    // by topic id, then name
	tableRange    = "range/"    // by the span's end, so that a seek finds a key's range
	tableDropped  = "dropped/"  // by range id: its replicas are to be destroyed
)

// Cluster is the record that says the cluster was formed.
type Cluster struct {
	ID string `json:"id"`
}

// Counters hand out identifiers; each is the next one free.
type Counters struct {
	Node  base.NodeID  `json:"node"`
	Range base.RangeID `json:"range"`
	Topic base.TopicID `json:"topic"`
	Group base.GroupID `json:"group"`
}

// Keyspace is a keyspace's policy.
type Keyspace struct {
	ID       base.KeyspaceID `json:"id"`
	Name     string          `json:"name"`
	Protocol string          `json:"protocol"`
	Replicas int             `json:"replicas"` // 0: the default target
}

// Topic is a topic's policy.
type Topic struct {
	ID          base.TopicID `json:"id"`
	Name        string       `json:"name"`
	Partitions  uint32       `json:"partitions"`
	Replicas    int          `json:"replicas"`     // as asked for; 0: the default target
	RetentionMS int64        `json:"retention_ms"` // from an event's due time; 0: for ever
	Protocol    string       `json:"protocol"`
}

// Group is a consumer group of a topic.
type Group struct {
	ID    base.GroupID `json:"id"`
	Topic base.TopicID `json:"topic"`
	Name  string       `json:"name"`
	Start uint8        `json:"start"` // timeline.StartRule
	Ready bool         `json:"ready"` // its cursor stands in every partition
}

func systemKey(s string) []byte { return keys.User(base.SystemKeyspace, []byte(s)) }

func tableSpan(table string) base.Span {
	start := systemKey(table)
	return base.Span{Start: start, End: base.PrefixEnd(start)}
}

func orderedID(table string, ids ...uint64) []byte {
	b := systemKey(table)
	for _, id := range ids {
		b = keys.AppendOrdered(b, id)
	}
	return b
}

// ClusterKey returns the key of the cluster record.
func ClusterKey() []byte { return systemKey(tableCluster) }

// CountersKey returns the key of the counters.
func CountersKey() []byte { return systemKey(tableCounters) }

// NodeKey returns the key of a node's record.
func NodeKey(n base.NodeID) []byte { return orderedID(tableNode, uint64(n)) }

// KeyspaceKey returns the key of a keyspace's record.
func KeyspaceKey(name string) []byte { return systemKey(tableKeyspace + name) }

// TopicKey returns the key of a topic's record.
func TopicKey(name string) []byte { return systemKey(tableTopic + name) }

// TopicsSpan returns the span of all topic records.
func TopicsSpan() base.Span { return tableSpan(tableTopic) }

// GroupKey returns the key of a group's record.
func GroupKey(t base.TopicID, name string) []byte {
	return append(orderedID(tableGroup, uint64(t)), name...)
}

// GroupsSpan returns the span of a topic's group records.
func GroupsSpan(t base.TopicID) base.Span {
	start := orderedID(tableGroup, uint64(t))
	return base.Span{Start: start, End: base.PrefixEnd(start)}
}

// RangeKey returns the key of a range's record.
func RangeKey(s base.Span) []byte { return append(systemKey(tableRange), s.End...) }

// RangesSpan returns the span of all range records.
func RangesSpan() base.Span { return tableSpan(tableRange) }

// RangesAfter returns the span of the range records whose span ends after key: the
// first of them is the one that may hold key.
func RangesAfter(key []byte) base.Span {
	s := tableSpan(tableRange)
	s.Start = append(append(s.Start, key...), 0)
	return s
}

// DroppedKey returns the key of the record that a range was dropped.
func DroppedKey(r base.RangeID) []byte { return orderedID(tableDropped, uint64(r)) }

// Encode returns a record's value.
func Encode(record any) []byte {
	b, err := json.Marshal(record)
	if err != nil {
		panic("invariant violated: a system record does not encode: " + err.Error())
	}
	return b
}

// Decode reads a record's value.
func Decode[T any](value []byte) (T, error) {
	var t T
	if err := json.Unmarshal(value, &t); err != nil {
		return t, fault.Wrap(fault.Corrupt, err, "a system record does not parse")
	}
	return t, nil
}
