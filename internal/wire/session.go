package wire

import (
	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/timeline"
)

// SessionOpen opens a hand-out session at a range's orderer (E7). The range is the
// Call's, the gateway its sender. The Call is answered; open sessions are refreshed by it.
type SessionOpen struct {
	Session    uint64 // chosen by the gateway, unique there
	Topic      base.TopicID
	Partitions []base.Partition
	Group      base.GroupID
	Granted    uint64 // how many events may be handed out, from the session's beginning on
}

// Append implements Body.
func (x *SessionOpen) Append(b []byte) []byte {
	b = appendUvarint(b, x.Session)
	b = appendUvarint(b, uint64(x.Topic))
	b = appendIDs(b, x.Partitions)
	b = appendUvarint(b, uint64(x.Group))
	return appendUvarint(b, x.Granted)
}

// Decode implements Body.
func (x *SessionOpen) Decode(b []byte) error {
	d := decoder{b: b}
	x.Session = d.uvarint()
	x.Topic = base.TopicID(d.uvarint())
	x.Partitions = decodeList(&d, 1, func(d *decoder, p *base.Partition) { *p = base.Partition(d.uint32()) })
	x.Group = base.GroupID(d.uvarint())
	x.Granted = d.uvarint()
	return d.end()
}

// SessionClose closes a session: what it holds returns to its group.
type SessionClose struct {
	Session uint64
}

// Append implements Body.
func (x *SessionClose) Append(b []byte) []byte { return appendUvarint(b, x.Session) }

// Decode implements Body.
func (x *SessionClose) Decode(b []byte) error {
	d := decoder{b: b}
	x.Session = d.uvarint()
	return d.end()
}

// SessionEvents hands out events.
type SessionEvents struct {
	First      uint64 // the first delivery's running number in the session, to see a gap
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
	return appendList(appendUvarint(b, x.First), x.Deliveries, func(b []byte, d *Delivery) []byte {
		b = appendUvarint(b, uint64(d.Partition.Topic))
		b = appendUvarint(b, uint64(d.Partition.Partition))
		b = appendUvarint(b, uint64(d.Attempt))
		return appendEvent(b, &d.Event)
	})
}

// Decode implements Body.
func (x *SessionEvents) Decode(b []byte) error {
	d := decoder{b: b}
	x.First = d.uvarint()
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
