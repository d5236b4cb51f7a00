package wire

import "github.com/almanacdb/almanac/internal/base"

// AppendRangeDescriptor appends a range descriptor.
func AppendRangeDescriptor(b []byte, r *base.RangeDescriptor) []byte {
	b = appendUvarint(b, uint64(r.Range))
	b = appendSpan(b, &r.Span)
	b = appendUvarint(b, r.SpanEpoch)
	b = appendUvarint(b, r.ConfigEpoch)
	b = append(b, byte(r.Protocol))
	b = appendUvarint(b, uint64(r.Keyspace))
	b = appendUvarint(b, uint64(r.Topic))
	return appendList(b, r.Replicas, func(b []byte, r *base.ReplicaDescriptor) []byte {
		b = appendUvarint(b, uint64(r.Node))
		b = appendUvarint(b, uint64(r.Replica))
		return append(b, byte(r.Role))
	})
}

// DecodeRangeDescriptor reads what AppendRangeDescriptor wrote, whole. The span aliases b.
func DecodeRangeDescriptor(b []byte) (base.RangeDescriptor, error) {
	var r base.RangeDescriptor
	d := decoder{b: b}
	decodeRangeDescriptor(&d, &r)
	return r, d.end()
}

func decodeRangeDescriptor(d *decoder, r *base.RangeDescriptor) {
	r.Range = base.RangeID(d.uvarint())
	r.Span = decodeSpan(d)
	r.SpanEpoch = d.uvarint()
	r.ConfigEpoch = d.uvarint()
	r.Protocol = base.Protocol(d.byte())
	r.Keyspace = base.KeyspaceID(d.uvarint())
	r.Topic = base.TopicID(d.uvarint())
	r.Replicas = decodeList(d, 3, func(d *decoder, r *base.ReplicaDescriptor) {
		r.Node = base.NodeID(d.uvarint())
		r.Replica = base.ReplicaID(d.uvarint())
		r.Role = base.Role(d.byte())
	})
}

// AppendNodeDescriptor appends a node descriptor.
func AppendNodeDescriptor(b []byte, n *base.NodeDescriptor) []byte {
	b = appendUvarint(b, uint64(n.Node))
	b = appendBytes(b, n.Address)
	b = appendBytes(b, n.Peer)
	b = appendBytes(b, n.HTTP)
	return appendBytes(b, n.Version)
}

// DecodeNodeDescriptor reads what AppendNodeDescriptor wrote, whole.
func DecodeNodeDescriptor(b []byte) (base.NodeDescriptor, error) {
	var n base.NodeDescriptor
	d := decoder{b: b}
	decodeNodeDescriptor(&d, &n)
	return n, d.end()
}

func decodeNodeDescriptor(d *decoder, n *base.NodeDescriptor) {
	n.Node = base.NodeID(d.uvarint())
	n.Address = d.string()
	n.Peer = d.string()
	n.HTTP = d.string()
	n.Version = d.string()
}

func appendSpan(b []byte, s *base.Span) []byte {
	return appendBytes(appendBytes(b, s.Start), s.End)
}

func decodeSpan(d *decoder) base.Span {
	start := d.bytes()
	return base.Span{Start: start, End: d.bytes()}
}
