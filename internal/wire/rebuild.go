package wire

import "github.com/almanacdb/almanac/internal/base"

// Rebuild asks a voter of a range what a replica that lost all it had saved must know
// before it takes part again. A snapshot follows from the orderer.
type Rebuild struct {
	Replica base.ReplicaID // that asks
}

// Append implements Body.
func (x *Rebuild) Append(b []byte) []byte { return appendUvarint(b, uint64(x.Replica)) }

// Decode implements Body.
func (x *Rebuild) Decode(b []byte) error {
	d := decoder{b: b}
	x.Replica = base.ReplicaID(d.uvarint())
	return d.end()
}

// RebuildReply is a voter's answer.
type RebuildReply struct {
	// Whole says that the answering replica takes part itself; else the rest is zero.
	Whole bool
	Term  uint64 // at least any term in which it ever sent a message
	// Orderer says that a quorum confirmed it as the orderer after it was asked, and that
	// it has applied up to Last, its last index then.
	Orderer bool
	Last    uint64
}

// Append implements Body.
func (x *RebuildReply) Append(b []byte) []byte {
	b = appendUvarint(appendBool(b, x.Whole), x.Term)
	return appendUvarint(appendBool(b, x.Orderer), x.Last)
}

// Decode implements Body.
func (x *RebuildReply) Decode(b []byte) error {
	d := decoder{b: b}
	x.Whole = d.bool()
	x.Term = d.uvarint()
	x.Orderer = d.bool()
	x.Last = d.uvarint()
	return d.end()
}
