package command

import (
	"encoding/binary"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/mvcc"
	"github.com/almanacdb/almanac/internal/timeline"
)

const resultFormat = 1

// EncodeResult appends a result, as it travels to the replica that proposed for
// another. A refusal's cause stays behind.
func EncodeResult(b []byte, r *Result) []byte {
	b = append(b, resultFormat)
	b = appendFlag(b, r.Refusal != nil)
	if e := r.Refusal; e != nil {
		b = append(b, byte(e.Kind))
		b = appendString(appendString(b, e.Text), e.Remedy)
		b = binary.AppendUvarint(b, uint64(e.Leader))
		b = binary.AppendUvarint(b, uint64(e.Range))
	}
	b = binary.AppendUvarint(b, uint64(r.Stamp))
	b = binary.AppendUvarint(b, uint64(r.Clock))
	b = appendFlag(b, r.Txn != nil)
	if r.Txn != nil {
		b = appendTxnResult(b, r.Txn)
	}
	b = binary.AppendUvarint(b, uint64(len(r.Published)))
	for _, p := range r.Published {
		b = appendFlag(appendPosition(b, p.Position), p.Duplicate)
	}
	b = binary.AppendUvarint(b, uint64(len(r.Acks)))
	for _, a := range r.Acks {
		b = append(b, byte(a))
	}
	return b
}

// DecodeResult reads what EncodeResult appended; what it returns aliases b. Errors are
// faults of kind Corrupt, or Unimplemented for an unknown format version.
func DecodeResult(b []byte) (*Result, error) {
	d := decoder{b: b}
	d.format(resultFormat, "a result")
	r := &Result{}
	if d.flag() {
		r.Refusal = &fault.Error{
			Kind:   fault.Kind(d.byte()),
			Text:   d.string(),
			Remedy: d.string(),
			Leader: base.NodeID(d.uvarint()),
			Range:  base.RangeID(d.uvarint()),
		}
	}
	r.Stamp, r.Clock = base.Timestamp(d.uvarint()), base.Timestamp(d.uvarint())
	if d.flag() {
		r.Txn = d.txnResult(1)
	}
	if n := d.count(3); n > 0 {
		r.Published = make([]timeline.Published, n)
	}
	for i := range r.Published {
		r.Published[i] = timeline.Published{Position: d.position(), Duplicate: d.flag()}
	}
	if n := d.count(1); n > 0 {
		r.Acks = make([]timeline.AckOutcome, n)
	}
	for i := range r.Acks {
		r.Acks[i] = timeline.AckOutcome(d.byte())
	}
	if err := d.finish("a result"); err != nil {
		return nil, err
	}
	return r, nil
}

func appendTxnResult(b []byte, r *mvcc.TxnResult) []byte {
	b = appendFlag(b, r.Succeeded)
	b = binary.AppendUvarint(b, uint64(len(r.Ops)))
	for i := range r.Ops {
		op := &r.Ops[i]
		b = append(b, byte(op.Kind))
		switch op.Kind {
		case mvcc.OpRange:
			b = appendKeyValues(b, op.Range.KVs)
			b = appendFlag(binary.AppendVarint(b, op.Range.Count), op.Range.More)
		case mvcc.OpPut:
			b = appendKeyValues(b, op.Prev)
		case mvcc.OpDelete:
			b = binary.AppendVarint(appendKeyValues(b, op.Prev), op.Deleted)
		case mvcc.OpTxn:
			b = appendTxnResult(b, op.Txn)
		}
	}
	return b
}

func (d *decoder) txnResult(depth int) *mvcc.TxnResult {
	if depth > mvcc.MaxDepth {
		d.fail("a nested transaction's result")
		return nil
	}
	r := &mvcc.TxnResult{Succeeded: d.flag()}
	n := d.count(2)
	if n > 0 {
		// A result is far larger in memory than on the wire: grow with what parses.
		r.Ops = make([]mvcc.OpResult, 0, min(n, 64))
	}
	for range n {
		if d.err != nil {
			return nil
		}
		op := mvcc.OpResult{Kind: mvcc.OpKind(d.byte())}
		switch op.Kind {
		case mvcc.OpRange:
			op.Range = mvcc.RangeResult{KVs: d.keyValues(), Count: d.varint(), More: d.flag()}
		case mvcc.OpPut:
			op.Prev = d.keyValues()
		case mvcc.OpDelete:
			op.Prev, op.Deleted = d.keyValues(), d.varint()
		case mvcc.OpTxn:
			op.Txn = d.txnResult(depth + 1)
		default:
			d.fail("an operation's result")
		}
		r.Ops = append(r.Ops, op)
	}
	return r
}

func appendKeyValues(b []byte, kvs []mvcc.KeyValue) []byte {
	b = binary.AppendUvarint(b, uint64(len(kvs)))
	for i := range kvs {
		kv := &kvs[i]
		b = appendBytes(appendBytes(b, kv.Key), kv.Value)
		b = binary.AppendUvarint(b, uint64(kv.CreateRevision))
		b = binary.AppendUvarint(b, uint64(kv.ModRevision))
		b = binary.AppendVarint(b, kv.Version)
		b = binary.AppendVarint(b, kv.Lease)
	}
	return b
}

func (d *decoder) keyValues() []mvcc.KeyValue {
	n := d.count(6)
	if n == 0 {
		return nil
	}
	kvs := make([]mvcc.KeyValue, n)
	for i := range kvs {
		kvs[i] = mvcc.KeyValue{
			Key:            d.bytes(),
			Value:          d.bytes(),
			CreateRevision: base.Timestamp(d.uvarint()),
			ModRevision:    base.Timestamp(d.uvarint()),
			Version:        d.varint(),
			Lease:          d.varint(),
		}
	}
	return kvs
}
