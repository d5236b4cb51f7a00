package command

import (
	"encoding/binary"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/fault"
)

const descriptorFormat = 1

// EncodeDescriptor appends a range descriptor as it stands on disk.
func EncodeDescriptor(b []byte, r *base.RangeDescriptor) []byte {
	b = append(b, descriptorFormat)
	b = binary.AppendUvarint(b, uint64(r.Range))
	b = appendBytes(b, r.Span.Start)
	b = appendBytes(b, r.Span.End)
	b = binary.AppendUvarint(b, r.SpanEpoch)
	b = binary.AppendUvarint(b, r.ConfigEpoch)
	b = append(b, byte(r.Protocol))
	b = binary.AppendUvarint(b, uint64(r.Keyspace))
	b = binary.AppendUvarint(b, uint64(r.Topic))
	b = binary.AppendUvarint(b, uint64(len(r.Replicas)))
	for _, p := range r.Replicas {
		b = binary.AppendUvarint(b, uint64(p.Node))
		b = binary.AppendUvarint(b, uint64(p.Replica))
		b = append(b, byte(p.Role))
	}
	return b
}

// DecodeDescriptor reads what EncodeDescriptor appended; its span aliases b. Errors
// are faults of kind Corrupt, or Unimplemented for an unknown format version.
func DecodeDescriptor(b []byte) (*base.RangeDescriptor, error) {
	d := decoder{b: b}
	d.format(descriptorFormat, "a range descriptor")
	r := &base.RangeDescriptor{
		Range:       base.RangeID(d.uvarint()),
		Span:        base.Span{Start: d.bytes(), End: d.bytes()},
		SpanEpoch:   d.uvarint(),
		ConfigEpoch: d.uvarint(),
		Protocol:    base.Protocol(d.byte()),
		Keyspace:    base.KeyspaceID(d.uvarint()),
		Topic:       base.TopicID(d.uvarint()),
	}
	if n := d.count(3); n > 0 {
		r.Replicas = make([]base.ReplicaDescriptor, n)
	}
	for i := range r.Replicas {
		r.Replicas[i] = base.ReplicaDescriptor{
			Node:    base.NodeID(d.uvarint()),
			Replica: base.ReplicaID(d.uvarint()),
			Role:    base.Role(d.byte()),
		}
	}
	if err := d.finish("a range descriptor"); err != nil {
		return nil, err
	}
	return r, nil
}

// format reads a format version and fails unless it is the known one.
func (d *decoder) format(known byte, what string) {
	if f := d.byte(); d.err == nil && f != known {
		d.err = fault.New(fault.Unimplemented, "%s has format %d, this binary reads %d", what, f, known).
			WithRemedy("run a version of Almanac that knows this format")
		d.b = nil
	}
}
