package command

import (
	"encoding/binary"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/keys"
	"github.com/almanacdb/almanac/internal/mvcc"
)

// parts is what a body contributes to an envelope.
type parts struct {
	reads, writes []base.Span
	body          []byte
	err           error
}

// size is the most bytes that the parts take in an envelope.
func (p *parts) size() int {
	n := len(p.body)
	for _, list := range [][]base.Span{p.reads, p.writes} {
		for _, s := range list {
			n += 2*binary.MaxVarintLen32 + len(s.Start) + len(s.End)
		}
	}
	return n
}

// gather fills p from a body of a kind.
func (p *parts) gather(k Kind, body any) error {
	ok := false
	switch k {
	case KindNoop, KindAdvance:
		ok = body == nil
	case KindTxn:
		ok = fill(body, func(t *mvcc.Txn) { p.txn(t, 1) })
	case KindPublish:
		ok = fill(body, p.publish)
	case KindAck:
		ok = fill(body, p.ack)
	case KindCreateGroup:
		ok = fill(body, p.createGroup)
	case KindSetHorizon:
		ok = fill(body, func(h *SetHorizon) {
			p.writes = []base.Span{h.Span}
			p.body = binary.AppendUvarint(nil, uint64(h.Horizon))
		})
	case KindSetBound:
		ok = fill(body, func(b *SetBound) { p.body = binary.AppendUvarint(nil, uint64(b.Bound)) })
	case KindRaiseFeature:
		ok = fill(body, func(r *RaiseFeature) { p.body = binary.AppendUvarint(nil, uint64(r.Level)) })
	}
	if !ok {
		return fault.New(fault.Invalid, "a body of type %T does not belong to command kind %d", body, k)
	}
	return p.err
}

// fill calls f if body is a *T that is not nil, and says whether it was.
func fill[T any](body any, f func(*T)) bool {
	b, ok := body.(*T)
	if !ok || b == nil {
		return false
	}
	f(b)
	return true
}

// body reads the body of a command whose header and lists are read. Its parts use up
// the lists.
func (d *decoder) body(c *Command) any {
	reads, writes := spanCursor{c.Reads}, spanCursor{c.Writes}
	var body any
	switch c.Kind {
	case KindTxn:
		td := txnDecoder{decoder: d, reads: &reads, writes: &writes}
		body = td.txn(1)
	case KindPublish:
		body = d.publish(&writes)
	case KindAck:
		body = d.ack(&writes)
	case KindCreateGroup:
		body = d.createGroup(&writes)
	case KindSetHorizon:
		body = &SetHorizon{Span: writes.next(d), Horizon: base.Timestamp(d.uvarint())}
	case KindSetBound:
		body = &SetBound{Bound: base.Timestamp(d.uvarint())}
	case KindRaiseFeature:
		body = &RaiseFeature{Level: d.uint32()}
	}
	if len(reads.spans) != 0 || len(writes.spans) != 0 {
		d.fail("a span list")
	}
	return body
}

// partition lists a partition among the writes; the body does not repeat it.
func (p *parts) partition(id base.PartitionID) {
	p.writes = append(p.writes, base.PointSpan(keys.Partition(id)))
}

// partition reads the next of the writes as a partition.
func (d *decoder) partition(writes *spanCursor) base.PartitionID {
	s := writes.next(d)
	if d.err != nil {
		return base.PartitionID{}
	}
	id, err := keys.DecodePartition(s.Start)
	if err != nil || !s.IsPoint() {
		d.fail("a partition")
	}
	return id
}
