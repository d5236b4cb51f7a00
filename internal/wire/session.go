package wire

import (
	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/timeline"
)

// SessionOpen opens a hand-out session at a range's orderer (E7). The range is the
// Call's, the session its id, the gateway its sender.
type SessionOpen struct {
	Topic      base.TopicID
	Partitions []base.Partition
	Group      base.GroupID
	Credits    uint32 // how many events may be in flight
}

// Append implements Body.
func (x *SessionOpen) Append(b []byte) []byte {
	b = appendUvarint(b, uint64(x.Topic))
	b = appendIDs(b, x.Partitions)
	b = appendUvarint(b, uint64(x.Group))
	return appendUvarint(b, uint64(x.Credits))
}

// Decode implements Body.
func (x *SessionOpen) Decode(b []byte) error {
	d := decoder{b: b}
	x.Topic = base.TopicID(d.uvarint())
	x.Partitions = decodeList(&d, 1, func(d *decoder, p *base.Partition) { *p = base.Partition(d.uint32()) })
	x.Group = base.GroupID(d.uvarint())
	x.Credits = d.uint32()
	return d.end()
}

// SessionCredit lets more events of a session be in flight.
type SessionCredit struct {
	Credits uint32 // added to what the session has
}

// Append implements Body.
func (x *SessionCredit) Append(b []byte) []byte { return appendUvarint(b, uint64(x.Credits)) }

// Decode implements Body.
func (x *SessionCredit) Decode(b []byte) error {
	d := decoder{b: b}
	x.Credits = d.uint32()
	return d.end()
}

// SessionEvents hands out events.
type SessionEvents struct {
	Deliveries []Delivery
}

// Delivery is one event handed out.
type Delivery struct {
	Partition base.PartitionID
	Attempt   uint32 // 1 the first time
	Event     timeline.Event
}

// Append implements Body.
func (x *SessionEvents) Append(b []byte) []byte {
	return appendList(b, x.Deliveries, func(b []byte, d *Delivery) []byte {
		b = appendUvarint(b, uint64(d.Partition.Topic))
		b = appendUvarint(b, uint64(d.Partition.Partition))
		b = appendUvarint(b, uint64(d.Attempt))
		return appendEvent(b, &d.Event)
	})
}

// Decode implements Body.
func (x *SessionEvents) Decode(b []byte) error {
	d := decoder{b: b}
	x.Deliveries = decodeList(&d, 12, func(d *decoder, y *Delivery) {
		y.Partition.Topic = base.TopicID(d.uvarint())
		y.Partition.Partition = base.Partition(d.uint32())
		y.Attempt = d.uint32()
		decodeEvent(d, &y.Event)
	})
	return d.end()
}

// SessionEnd says that the orderer ended a session, and why.
type SessionEnd struct {
	Fault *fault.Error // nil: as asked
}

// Append implements Body.
func (x *SessionEnd) Append(b []byte) []byte { return appendFault(b, x.Fault) }

// Decode implements Body.
func (x *SessionEnd) Decode(b []byte) error {
	d := decoder{b: b}
	x.Fault = decodeFault(&d)
	return d.end()
}

// appendEvent appends an event; its first sequence, mostly its sequence, as the difference.
func appendEvent(b []byte, e *timeline.Event) []byte {
	b = appendVarint(b, e.Position.DueMS)
	b = appendUvarint(b, e.Position.Seq)
	b = appendUvarint(b, e.Position.Seq-e.FirstSeq)
	b = appendUvarint(b, uint64(e.Revision))
	b = append(b, byte(e.Flags))
	b = appendBytes(b, e.MessageID)
	b = appendBytes(b, e.OrderingKey)
	b = appendList(b, e.Headers, func(b []byte, h *timeline.Header) []byte {
		return appendBytes(appendBytes(b, h.Name), h.Value)
	})
	return appendBytes(b, e.Payload)
}

func decodeEvent(d *decoder, e *timeline.Event) {
	e.Position.DueMS = d.varint()
	e.Position.Seq = d.uvarint()
	e.FirstSeq = e.Position.Seq - d.uvarint()
	e.Revision = base.Timestamp(d.uvarint())
	e.Flags = timeline.Flags(d.byte())
	e.MessageID = d.string()
	e.OrderingKey = d.bytes()
	e.Headers = decodeList(d, 2, func(d *decoder, h *timeline.Header) {
		h.Name = d.string()
		h.Value = d.bytes()
	})
	e.Payload = d.bytes()
}
