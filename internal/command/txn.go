package command

import (
	"encoding/binary"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/mvcc"
)

// Flags of operations on disk; never renumber.
const (
	rangeCountOnly = 1 << iota
	rangeKeysOnly
	rangeAt
	rangeLimit
	rangeSort
	rangeFilter

	knownRangeFlags = rangeFilter<<1 - 1
)

const (
	putIgnoreValue = 1 << iota
	putIgnoreLease
	putPrevKV
	putLease

	knownPutFlags = putLease<<1 - 1
)

// txn appends a transaction: compares, then branch, else branch.
func (p *parts) txn(t *mvcc.Txn, depth int) {
	if depth > mvcc.MaxDepth {
		p.err = fault.New(fault.Invalid, "transactions are nested more than %d deep", mvcc.MaxDepth)
		return
	}
	p.body = binary.AppendUvarint(p.body, uint64(len(t.Compares)))
	for i := range t.Compares {
		c := &t.Compares[i]
		p.reads = append(p.reads, c.Span)
		p.body = append(p.body, byte(c.Target), byte(c.Relation))
		if c.Target == mvcc.TargetValue {
			p.body = appendBytes(p.body, c.Value)
		} else {
			p.body = binary.AppendVarint(p.body, c.Number)
		}
	}
	for _, ops := range [][]mvcc.Op{t.Then, t.Else} {
		p.body = binary.AppendUvarint(p.body, uint64(len(ops)))
		for i := range ops {
			p.op(&ops[i], depth)
		}
	}
}

func (p *parts) op(op *mvcc.Op, depth int) {
	p.body = append(p.body, byte(op.Kind))
	switch op.Kind {
	case mvcc.OpRange:
		p.reads = append(p.reads, op.Span)
		p.rangeOptions(&op.Range)
	case mvcc.OpPut:
		if !op.Span.IsPoint() {
			p.err = fault.New(fault.Invalid, "a put names a span instead of a key")
			return
		}
		p.writes = append(p.writes, op.Span)
		flags := bit(op.IgnoreValue, putIgnoreValue) | bit(op.IgnoreLease, putIgnoreLease) |
			bit(op.PrevKV, putPrevKV) | bit(op.Lease != 0, putLease)
		p.body = append(p.body, flags)
		if op.Lease != 0 {
			p.body = binary.AppendVarint(p.body, op.Lease)
		}
		p.body = appendBytes(p.body, op.Value)
	case mvcc.OpDelete:
		p.writes = append(p.writes, op.Span)
		p.body = appendFlag(p.body, op.PrevKV)
	case mvcc.OpTxn:
		if op.Txn == nil {
			p.err = fault.New(fault.Invalid, "a nested transaction is missing")
			return
		}
		p.txn(op.Txn, depth+1)
	default:
		p.err = fault.New(fault.Invalid, "an operation has the unknown kind %d", op.Kind)
	}
}

func (p *parts) rangeOptions(o *mvcc.RangeOptions) {
	filter := o.MinMod != 0 || o.MaxMod != 0 || o.MinCreate != 0 || o.MaxCreate != 0
	sort := o.Sort != 0 || o.Order != 0
	b := append(p.body, bit(o.CountOnly, rangeCountOnly)|bit(o.KeysOnly, rangeKeysOnly)|
		bit(o.At != 0, rangeAt)|bit(o.Limit != 0, rangeLimit)|
		bit(sort, rangeSort)|bit(filter, rangeFilter))
	if o.At != 0 {
		b = binary.AppendUvarint(b, uint64(o.At))
	}
	if o.Limit != 0 {
		b = binary.AppendVarint(b, o.Limit)
	}
	if sort {
		b = append(b, byte(o.Sort), byte(o.Order))
	}
	if filter {
		for _, t := range []base.Timestamp{o.MinMod, o.MaxMod, o.MinCreate, o.MaxCreate} {
			b = binary.AppendUvarint(b, uint64(t))
		}
	}
	p.body = b
}

func bit(set bool, flag byte) byte {
	if set {
		return flag
	}
	return 0
}

// txnDecoder reads a transaction; its operations use up the lists.
type txnDecoder struct {
	*decoder
	reads, writes *spanCursor
}

func (d *txnDecoder) txn(depth int) *mvcc.Txn {
	if depth > mvcc.MaxDepth {
		d.fail("a nested transaction")
		return nil
	}
	t := &mvcc.Txn{}
	if n := d.count(3); n > 0 {
		t.Compares = make([]mvcc.Compare, n)
	}
	for i := range t.Compares {
		c := &t.Compares[i]
		c.Span = d.reads.next(d.decoder)
		c.Target, c.Relation = mvcc.Target(d.byte()), mvcc.Relation(d.byte())
		if c.Target == mvcc.TargetValue {
			c.Value = d.bytes()
		} else {
			c.Number = d.varint()
		}
	}
	t.Then = d.ops(depth)
	t.Else = d.ops(depth)
	return t
}

func (d *txnDecoder) ops(depth int) []mvcc.Op {
	n := d.count(2)
	if n == 0 {
		return nil
	}
	// An operation is far larger in memory than on disk: grow with what parses.
	ops := make([]mvcc.Op, 0, min(n, 64))
	for range n {
		if d.err != nil {
			return nil
		}
		ops = append(ops, d.op(depth))
	}
	return ops
}

func (d *txnDecoder) op(depth int) mvcc.Op {
	op := mvcc.Op{Kind: mvcc.OpKind(d.byte())}
	switch op.Kind {
	case mvcc.OpRange:
		op.Span = d.reads.next(d.decoder)
		d.rangeOptions(&op.Range)
	case mvcc.OpPut:
		op.Span = d.writes.next(d.decoder)
		flags := d.byte()
		if flags&^knownPutFlags != 0 || d.err == nil && !op.Span.IsPoint() {
			d.fail("a put")
		}
		op.IgnoreValue = flags&putIgnoreValue != 0
		op.IgnoreLease = flags&putIgnoreLease != 0
		op.PrevKV = flags&putPrevKV != 0
		if flags&putLease != 0 {
			op.Lease = d.varint()
			d.said(op.Lease != 0, "a put")
		}
		op.Value = d.bytes()
	case mvcc.OpDelete:
		op.Span = d.writes.next(d.decoder)
		op.PrevKV = d.flag()
	case mvcc.OpTxn:
		op.Txn = d.txn(depth + 1)
	default:
		d.fail("an operation")
	}
	return op
}

func (d *txnDecoder) rangeOptions(o *mvcc.RangeOptions) {
	flags := d.byte()
	if flags&^knownRangeFlags != 0 {
		d.fail("a range read")
		return
	}
	o.CountOnly = flags&rangeCountOnly != 0
	o.KeysOnly = flags&rangeKeysOnly != 0
	if flags&rangeAt != 0 {
		o.At = base.Timestamp(d.uvarint())
		d.said(o.At != 0, "a range read")
	}
	if flags&rangeLimit != 0 {
		o.Limit = d.varint()
		d.said(o.Limit != 0, "a range read")
	}
	if flags&rangeSort != 0 {
		o.Sort, o.Order = mvcc.SortTarget(d.byte()), mvcc.SortOrder(d.byte())
		d.said(o.Sort != 0 || o.Order != 0, "a range read")
	}
	if flags&rangeFilter != 0 {
		for _, t := range []*base.Timestamp{&o.MinMod, &o.MaxMod, &o.MinCreate, &o.MaxCreate} {
			*t = base.Timestamp(d.uvarint())
		}
		d.said(o.MinMod != 0 || o.MaxMod != 0 || o.MinCreate != 0 || o.MaxCreate != 0, "a range read")
	}
}

// said fails unless what a flag announces is there: a command has one encoding.
func (d *decoder) said(there bool, what string) {
	if !there {
		d.fail(what)
	}
}
