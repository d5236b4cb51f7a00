package wire

import (
	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/effect"
)

// Body is what a Call or a Reply carries, by method. Append appends the encoding.
// Decode fills a zero value from one, whole; byte slices alias b, and anything that
// Append did not write yields a Corrupt error.
type Body interface {
	Append(b []byte) []byte
	Decode(b []byte) error
}

// Barrier asks a range's orderer up to where to apply before a read (K4).
type Barrier struct {
	At     base.Timestamp // of the read; 0: issue a fresh one
	Newest bool           // no timestamp: the newest versions of this one range
}

// Append implements Body.
func (x *Barrier) Append(b []byte) []byte {
	return appendBool(appendUvarint(b, uint64(x.At)), x.Newest)
}

// Decode implements Body.
func (x *Barrier) Decode(b []byte) error {
	d := decoder{b: b}
	x.At = base.Timestamp(d.uvarint())
	x.Newest = d.bool()
	return d.end()
}

// BarrierReply allows a read at At once its replica has applied up to Mark.Index; a
// replica that learns of a term above Mark.Term before that asks again.
type BarrierReply struct {
	At    base.Timestamp
	Mark  base.LogMark
	Clock base.Timestamp // the range's clock at its orderer
}

// Append implements Body.
func (x *BarrierReply) Append(b []byte) []byte {
	b = appendUvarint(b, uint64(x.At))
	b = appendMark(b, x.Mark)
	return appendUvarint(b, uint64(x.Clock))
}

// Decode implements Body.
func (x *BarrierReply) Decode(b []byte) error {
	d := decoder{b: b}
	x.At = base.Timestamp(d.uvarint())
	x.Mark = decodeMark(&d)
	x.Clock = base.Timestamp(d.uvarint())
	return d.end()
}

// Stamps asks the oracle for timestamps.
type Stamps struct {
	N uint32 // how many
}

// Append implements Body.
func (x *Stamps) Append(b []byte) []byte { return appendUvarint(b, uint64(x.N)) }

// Decode implements Body.
func (x *Stamps) Decode(b []byte) error {
	d := decoder{b: b}
	x.N = d.uint32()
	return d.end()
}

// StampsReply issues N timestamps: First, First+1, and so on.
type StampsReply struct {
	First base.Timestamp
	N     uint32
}

// Append implements Body.
func (x *StampsReply) Append(b []byte) []byte {
	return appendUvarint(appendUvarint(b, uint64(x.First)), uint64(x.N))
}

// Decode implements Body.
func (x *StampsReply) Decode(b []byte) error {
	d := decoder{b: b}
	x.First = base.Timestamp(d.uvarint())
	x.N = d.uint32()
	return d.end()
}

// ClockSampleReply is a node's wall clock.
type ClockSampleReply struct {
	WallMS int64 // milliseconds since 1970
}

// Append implements Body.
func (x *ClockSampleReply) Append(b []byte) []byte { return appendVarint(b, x.WallMS) }

// Decode implements Body.
func (x *ClockSampleReply) Decode(b []byte) error {
	d := decoder{b: b}
	x.WallMS = d.varint()
	return d.end()
}

// ReplicaCreate tells a node to hold a replica of a range.
type ReplicaCreate struct {
	Descriptor base.RangeDescriptor
}

// Append implements Body.
func (x *ReplicaCreate) Append(b []byte) []byte { return appendRangeDescriptor(b, &x.Descriptor) }

// Decode implements Body.
func (x *ReplicaCreate) Decode(b []byte) error {
	d := decoder{b: b}
	decodeRangeDescriptor(&d, &x.Descriptor)
	return d.end()
}

// ReplicaRemove tells a node to destroy a replica.
type ReplicaRemove struct {
	Range   base.RangeID
	Replica base.ReplicaID
}

// Append implements Body.
func (x *ReplicaRemove) Append(b []byte) []byte {
	return appendUvarint(appendUvarint(b, uint64(x.Range)), uint64(x.Replica))
}

// Decode implements Body.
func (x *ReplicaRemove) Decode(b []byte) error {
	d := decoder{b: b}
	x.decode(&d)
	return d.end()
}

func (x *ReplicaRemove) decode(d *decoder) {
	x.Range = base.RangeID(d.uvarint())
	x.Replica = base.ReplicaID(d.uvarint())
}

// SnapshotFile is one piece of a snapshot, in order from Seq 0 to the one that is Last.
type SnapshotFile struct {
	Range base.RangeID
	From  base.ReplicaID
	To    base.ReplicaID
	ID    uint64 // of the snapshot, chosen by the sender
	Seq   uint32
	Last  bool
	Term  uint64 // of the sender
	Meta  effect.SnapshotMeta
	State []byte // the range's state record
	File  []byte
	Sum   uint32 // CRC32C of File
}

// Append implements Body.
func (x *SnapshotFile) Append(b []byte) []byte {
	b = appendUvarint(b, uint64(x.Range))
	b = appendUvarint(b, uint64(x.From))
	b = appendUvarint(b, uint64(x.To))
	b = appendUvarint(b, x.ID)
	b = appendUvarint(b, uint64(x.Seq))
	b = appendBool(b, x.Last)
	b = appendUvarint(b, x.Term)
	b = appendSnapshotMeta(b, &x.Meta)
	b = appendBytes(b, x.State)
	b = appendBytes(b, x.File)
	return appendUvarint(b, uint64(x.Sum))
}

// Decode implements Body.
func (x *SnapshotFile) Decode(b []byte) error {
	d := decoder{b: b}
	x.Range = base.RangeID(d.uvarint())
	x.From = base.ReplicaID(d.uvarint())
	x.To = base.ReplicaID(d.uvarint())
	x.ID = d.uvarint()
	x.Seq = d.uint32()
	x.Last = d.bool()
	x.Term = d.uvarint()
	decodeSnapshotMeta(&d, &x.Meta)
	x.State = d.bytes()
	x.File = d.bytes()
	x.Sum = d.uint32()
	return d.end()
}
