package command

import (
	"encoding/binary"

	"github.com/almanacdb/almanac/internal/base"
)

// Spans in an envelope: a varint of twice the start's length, plus one for a point,
// then the start. A point is followed by a zero byte, so that its start and end alias
// the envelope; another span by its end's length and its end.

func appendSpans(b []byte, spans []base.Span) []byte {
	b = binary.AppendUvarint(b, uint64(len(spans)))
	for _, s := range spans {
		b = appendSpan(b, s)
	}
	return b
}

func appendSpan(b []byte, s base.Span) []byte {
	n := uint64(len(s.Start)) << 1
	if s.IsPoint() {
		return append(binary.AppendUvarint(b, n|1), s.End...)
	}
	b = append(binary.AppendUvarint(b, n), s.Start...)
	return appendBytes(b, s.End)
}

func (d *decoder) spans() []base.Span {
	n := d.count(2)
	if n == 0 {
		return nil
	}
	spans := make([]base.Span, n)
	for i := range spans {
		spans[i] = d.span()
	}
	return spans
}

func (d *decoder) span() base.Span {
	n := d.uvarint()
	if n&1 == 0 {
		var s base.Span
		if n > 0 {
			s.Start = d.take(n >> 1)
		}
		s.End = d.bytes()
		if s.IsPoint() {
			d.fail("a span")
		}
		return s
	}
	end := d.take(n>>1 + 1)
	if d.err != nil {
		return base.Span{}
	}
	l := len(end) - 1
	if end[l] != 0 {
		d.fail("a span")
		return base.Span{}
	}
	return base.Span{Start: end[:l:l], End: end}
}

// spanCursor hands out the spans of a list in the order in which the body's parts
// use them.
type spanCursor struct {
	spans []base.Span
}

func (c *spanCursor) next(d *decoder) base.Span {
	if len(c.spans) == 0 {
		d.fail("a span list")
		return base.Span{}
	}
	s := c.spans[0]
	c.spans = c.spans[1:]
	return s
}
