package command

import (
	"encoding/binary"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/timeline"
)

// The bodies of package timeline. Partitions stand in the write list.

func (p *parts) publish(pub *timeline.Publish) {
	size := binary.MaxVarintLen32
	for i := range pub.Batches {
		size += binary.MaxVarintLen32
		for j := range pub.Batches[i].Events {
			size += newEventSize(&pub.Batches[i].Events[j])
		}
	}
	p.body = make([]byte, 0, size)
	p.body = binary.AppendUvarint(p.body, uint64(len(pub.Batches)))
	for i := range pub.Batches {
		batch := &pub.Batches[i]
		p.partition(batch.Partition)
		p.body = binary.AppendUvarint(p.body, uint64(len(batch.Events)))
		for j := range batch.Events {
			p.body = appendNewEvent(p.body, &batch.Events[j])
		}
	}
}

// newEventSize is about the most bytes that appendNewEvent appends.
func newEventSize(e *timeline.NewEvent) int {
	n := 4*binary.MaxVarintLen32 + 2*binary.MaxVarintLen64 + len(e.MessageID) + len(e.OrderingKey) + len(e.Payload)
	for i := range e.Headers {
		n += 2*binary.MaxVarintLen32 + len(e.Headers[i].Name) + len(e.Headers[i].Value)
	}
	return n
}

func appendNewEvent(b []byte, e *timeline.NewEvent) []byte {
	b = appendString(b, e.MessageID)
	b = appendBytes(b, e.OrderingKey)
	b = binary.AppendUvarint(b, uint64(len(e.Headers)))
	for _, h := range e.Headers {
		b = appendBytes(appendString(b, h.Name), h.Value)
	}
	b = appendBytes(b, e.Payload)
	b = binary.AppendVarint(b, e.DueMS)
	return binary.AppendVarint(b, e.DelayMS)
}

func (d *decoder) publish(writes *spanCursor) *timeline.Publish {
	p := &timeline.Publish{}
	if n := d.count(1); n > 0 {
		p.Batches = make([]timeline.Batch, n)
	}
	for i := range p.Batches {
		batch := &p.Batches[i]
		batch.Partition = d.partition(writes)
		if n := d.count(6); n > 0 {
			batch.Events = make([]timeline.NewEvent, n)
		}
		for j := range batch.Events {
			d.newEvent(&batch.Events[j])
		}
	}
	return p
}

func (d *decoder) newEvent(e *timeline.NewEvent) {
	e.MessageID = d.string()
	e.OrderingKey = d.bytes()
	if n := d.count(2); n > 0 {
		e.Headers = make([]timeline.Header, n)
		for i := range e.Headers {
			e.Headers[i] = timeline.Header{Name: d.string(), Value: d.bytes()}
		}
	}
	e.Payload = d.bytes()
	e.DueMS, e.DelayMS = d.varint(), d.varint()
}

func (p *parts) ack(a *timeline.Ack) {
	p.body = binary.AppendUvarint(p.body, uint64(len(a.Batches)))
	for i := range a.Batches {
		batch := &a.Batches[i]
		p.partition(batch.Partition)
		p.body = binary.AppendUvarint(p.body, uint64(batch.Group))
		p.body = binary.AppendUvarint(p.body, uint64(len(batch.Positions)))
		for _, pos := range batch.Positions {
			p.body = appendPosition(p.body, pos)
		}
	}
}

func (d *decoder) ack(writes *spanCursor) *timeline.Ack {
	a := &timeline.Ack{}
	if n := d.count(2); n > 0 {
		a.Batches = make([]timeline.AckBatch, n)
	}
	for i := range a.Batches {
		batch := &a.Batches[i]
		batch.Partition = d.partition(writes)
		batch.Group = base.GroupID(d.uvarint())
		if n := d.count(2); n > 0 {
			batch.Positions = make([]base.Position, n)
		}
		for j := range batch.Positions {
			batch.Positions[j] = d.position()
		}
	}
	return a
}

func (p *parts) createGroup(c *timeline.CreateGroup) {
	p.body = binary.AppendUvarint(p.body, uint64(c.Group))
	p.body = append(p.body, byte(c.Start))
	p.body = binary.AppendUvarint(p.body, uint64(len(c.Partitions)))
	for _, id := range c.Partitions {
		p.partition(id)
	}
}

func (d *decoder) createGroup(writes *spanCursor) *timeline.CreateGroup {
	c := &timeline.CreateGroup{Group: base.GroupID(d.uvarint()), Start: timeline.StartRule(d.byte())}
	n := d.uvarint()
	if n != uint64(len(writes.spans)) {
		d.fail("a group's partitions")
		return c
	}
	if n > 0 {
		c.Partitions = make([]base.PartitionID, n)
	}
	for i := range c.Partitions {
		c.Partitions[i] = d.partition(writes)
	}
	return c
}

func appendPosition(b []byte, p base.Position) []byte {
	return binary.AppendUvarint(binary.AppendVarint(b, p.DueMS), p.Seq)
}

func (d *decoder) position() base.Position {
	return base.Position{DueMS: d.varint(), Seq: d.uvarint()}
}
