package wire

import "github.com/almanacdb/almanac/internal/base"

// Heartbeat is what a node tells placement about itself (R1).
type Heartbeat struct {
	Node     base.NodeDescriptor
	Capacity Capacity
	// Full says that Replicas lists every replica of the node; else those that changed
	// since the last heartbeat.
	Full     bool
	Replicas []ReplicaStatus
	// Rebuilding says how far the node is with getting back the replicas that it lost with
	// its stores, in words; empty if they are whole.
	Rebuilding string
}

// Capacity is what a node has and has left, in bytes.
type Capacity struct {
	DiskTotal   uint64
	DiskFree    uint64
	MemoryLimit uint64
	CPUs        uint32
}

// Reserve is how much of a disk a node keeps free, for what it writes though it takes
// nothing new: flushes, compactions, and the logs of ranges that others order.
func (c Capacity) Reserve() uint64 {
	const least, most = 64 << 20, 1 << 30
	return min(max(c.DiskTotal/20, least), most, c.DiskTotal/4)
}

// Scarce says that only the reserve is left of the disk, or less.
func (c Capacity) Scarce() bool { return c.DiskFree < c.Reserve() }

// ReplicaStatus is one replica's state.
type ReplicaStatus struct {
	Range       base.RangeID
	Replica     base.ReplicaID
	Orderer     bool           // this replica orders the range's commands
	Leader      base.ReplicaID // the orderer, as far as this replica knows; 0: unknown
	Term        uint64
	Applied     uint64
	Commit      uint64
	Last        uint64 // last log index
	Bytes       uint64 // of the range's state on disk
	ConfigEpoch uint64
	SpanEpoch   uint64
}

// HeartbeatReply is placement's answer: how to reach every node, and what this one
// should change.
type HeartbeatReply struct {
	Nodes    []base.NodeDescriptor
	Create   []base.RangeDescriptor // ranges of which this node should hold a replica
	Remove   []ReplicaRemove
	Transfer []LeaderTransfer
}

// LeaderTransfer asks the orderer of a range to make another replica the orderer.
type LeaderTransfer struct {
	Range base.RangeID
	To    base.ReplicaID
}

// Append implements Body.
func (x *Heartbeat) Append(b []byte) []byte {
	b = AppendNodeDescriptor(b, &x.Node)
	b = appendUvarint(b, x.Capacity.DiskTotal)
	b = appendUvarint(b, x.Capacity.DiskFree)
	b = appendUvarint(b, x.Capacity.MemoryLimit)
	b = appendUvarint(b, uint64(x.Capacity.CPUs))
	b = appendBool(b, x.Full)
	b = appendList(b, x.Replicas, appendReplicaStatus)
	return appendBytes(b, x.Rebuilding)
}

// Decode implements Body.
func (x *Heartbeat) Decode(b []byte) error {
	d := decoder{b: b}
	decodeNodeDescriptor(&d, &x.Node)
	x.Capacity.DiskTotal = d.uvarint()
	x.Capacity.DiskFree = d.uvarint()
	x.Capacity.MemoryLimit = d.uvarint()
	x.Capacity.CPUs = d.uint32()
	x.Full = d.bool()
	x.Replicas = decodeList(&d, 11, decodeReplicaStatus)
	x.Rebuilding = d.string()
	return d.end()
}

func appendReplicaStatus(b []byte, r *ReplicaStatus) []byte {
	b = appendBool(b, r.Orderer)
	for _, n := range [...]uint64{uint64(r.Range), uint64(r.Replica), uint64(r.Leader), r.Term,
		r.Applied, r.Commit, r.Last, r.Bytes, r.ConfigEpoch, r.SpanEpoch} {
		b = appendUvarint(b, n)
	}
	return b
}

func decodeReplicaStatus(d *decoder, r *ReplicaStatus) {
	r.Orderer = d.bool()
	r.Range = base.RangeID(d.uvarint())
	r.Replica = base.ReplicaID(d.uvarint())
	r.Leader = base.ReplicaID(d.uvarint())
	r.Term = d.uvarint()
	r.Applied = d.uvarint()
	r.Commit = d.uvarint()
	r.Last = d.uvarint()
	r.Bytes = d.uvarint()
	r.ConfigEpoch = d.uvarint()
	r.SpanEpoch = d.uvarint()
}

// Append implements Body.
func (x *HeartbeatReply) Append(b []byte) []byte {
	b = appendList(b, x.Nodes, AppendNodeDescriptor)
	b = appendList(b, x.Create, appendRangeDescriptor)
	b = appendList(b, x.Remove, func(b []byte, r *ReplicaRemove) []byte { return r.Append(b) })
	return appendList(b, x.Transfer, func(b []byte, t *LeaderTransfer) []byte {
		return appendUvarint(appendUvarint(b, uint64(t.Range)), uint64(t.To))
	})
}

// Decode implements Body.
func (x *HeartbeatReply) Decode(b []byte) error {
	d := decoder{b: b}
	x.Nodes = decodeList(&d, 5, decodeNodeDescriptor)
	x.Create = decodeList(&d, 11, decodeRangeDescriptor)
	x.Remove = decodeList(&d, 2, func(d *decoder, r *ReplicaRemove) { r.decode(d) })
	x.Transfer = decodeList(&d, 2, func(d *decoder, t *LeaderTransfer) {
		t.Range = base.RangeID(d.uvarint())
		t.To = base.ReplicaID(d.uvarint())
	})
	return d.end()
}
