package wire

import (
	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/command"
)

// Range descriptors travel as they stand on disk, with their length before them where
// something follows.

func appendRangeDescriptor(b []byte, r *base.RangeDescriptor) []byte {
	return appendBytes(b, command.EncodeDescriptor(nil, r))
}

func decodeRangeDescriptor(d *decoder, r *base.RangeDescriptor) {
	b := d.bytes()
	if d.err != nil {
		return
	}
	got, err := command.DecodeDescriptor(b)
	if err != nil {
		d.fail("%v", err)
		return
	}
	*r = *got
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
