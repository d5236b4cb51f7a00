package base

// Protocol is how a group keeps its logs equal. On disk; never renumber.
type Protocol uint8

const (
	ProtocolRaft  Protocol = 1
	ProtocolChain Protocol = 2
)

// String returns the protocol's name as policies and the command line write it.
func (p Protocol) String() string {
	switch p {
	case ProtocolRaft:
		return "raft"
	case ProtocolChain:
		return "chain"
	}
	return "unknown"
}

// Role is a replica's part in its group. On disk; never renumber.
type Role uint8

const (
	RoleVoter   Role = 1
	RoleLearner Role = 2
)

// ReplicaDescriptor places one replica.
type ReplicaDescriptor struct {
	Node    NodeID
	Replica ReplicaID
	Role    Role
}

// RangeDescriptor says what a range is and where it lives. The first replica is the
// one that placement would like to order commands.
type RangeDescriptor struct {
	Range       RangeID
	Span        Span
	SpanEpoch   uint64 // rises with split and merge; fences keys
	ConfigEpoch uint64 // rises with membership; fences replica messages
	Protocol    Protocol
	Keyspace    KeyspaceID // 0 when the range belongs to a topic
	Topic       TopicID    // 0 when the range belongs to a keyspace
	Replicas    []ReplicaDescriptor
}

// ReplicaOn returns the range's replica on a node.
func (d *RangeDescriptor) ReplicaOn(n NodeID) (ReplicaDescriptor, bool) {
	for _, r := range d.Replicas {
		if r.Node == n {
			return r, true
		}
	}
	return ReplicaDescriptor{}, false
}

// NodeOf returns the node that holds a replica; 0 if none does.
func (d *RangeDescriptor) NodeOf(id ReplicaID) NodeID {
	for _, r := range d.Replicas {
		if r.Replica == id {
			return r.Node
		}
	}
	return 0
}

// NodeDescriptor is how a node is reached.
type NodeDescriptor struct {
	Node    NodeID
	Address string // client address, host:port
	Peer    string // peer address, host:port
	HTTP    string // HTTP address, host:port; empty if unknown
	Version string // version of the binary
}

// EntryType says what a log entry is. On disk; never renumber.
type EntryType uint8

const (
	EntryCommand        EntryType = 1
	EntryConfiguration  EntryType = 2
	EntryNoop           EntryType = 3
	EntryProtocolSwitch EntryType = 4
)

// Entry is one entry of a range's log. Data is never modified once the entry exists.
type Entry struct {
	Index uint64
	Term  uint64
	Type  EntryType
	Data  []byte
}

// Size returns the entry's approximate size in memory and on disk, in bytes.
func (e *Entry) Size() int { return len(e.Data) + 24 }

// LogMark names a place in a range's log.
type LogMark struct {
	Index uint64
	Term  uint64
}
