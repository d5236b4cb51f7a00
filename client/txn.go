package client

import (
	"context"

	almanacv1 "github.com/almanacdb/almanac/api/almanac/v1"
)

// Relation is how a Compare compares what is stored with its operand.
type Relation uint8

// Relations.
const (
	Equal Relation = iota
	Greater
	Less
	NotEqual
)

// Compare is one condition of a transaction. It holds when every key of its span does.
type Compare struct{ p *almanacv1.Compare }

// CompareVersion compares the number of writes since the key's creation; 0: no such key.
func CompareVersion(key []byte, r Relation, version int64) Compare {
	return compareNumber(almanacv1.Compare_TARGET_VERSION, key, r, version)
}

// CompareCreated compares the revision of the key's creation; 0: no such key.
func CompareCreated(key []byte, r Relation, revision uint64) Compare {
	return compareNumber(almanacv1.Compare_TARGET_CREATE_REVISION, key, r, int64(revision))
}

// CompareModified compares the revision of the key's last write; 0: no such key.
func CompareModified(key []byte, r Relation, revision uint64) Compare {
	return compareNumber(almanacv1.Compare_TARGET_MOD_REVISION, key, r, int64(revision))
}

// CompareValue compares the key's value bytewise; it fails if there is no such key.
func CompareValue(key []byte, r Relation, value []byte) Compare {
	return Compare{&almanacv1.Compare{
		Key: key, Target: almanacv1.Compare_TARGET_VALUE, Relation: almanacv1.Compare_Relation(r), Value: value,
	}}
}

func compareNumber(t almanacv1.Compare_Target, key []byte, r Relation, n int64) Compare {
	return Compare{&almanacv1.Compare{Key: key, Target: t, Relation: almanacv1.Compare_Relation(r), Number: n}}
}

// Op is one operation of a transaction.
type Op struct{ p *almanacv1.Op }

// OpRange reads a span, as of the transaction; options.Read must be zero.
func OpRange(span Span, options RangeOptions) Op {
	return Op{&almanacv1.Op{Op: &almanacv1.Op_Range{Range: span.rangeRequest(options)}}}
}

// OpPut writes a key.
func OpPut(key, value []byte) Op {
	return Op{&almanacv1.Op{Op: &almanacv1.Op_Put{Put: &almanacv1.PutRequest{Key: key, Value: value}}}}
}

// OpDelete deletes the keys of a span.
func OpDelete(span Span) Op {
	return Op{&almanacv1.Op{Op: &almanacv1.Op_Delete{Delete: span.deleteRequest()}}}
}

// OpTxn is a transaction within.
func OpTxn(t Txn) Op {
	return Op{&almanacv1.Op{Op: &almanacv1.Op_Txn{Txn: t.request()}}}
}

// Txn does Then if all of If holds, else Else, all or nothing.
type Txn struct {
	If   []Compare
	Then []Op
	Else []Op
}

// TxnResult answers a Txn.
type TxnResult struct {
	Revision  uint64
	Succeeded bool       // If held, so Then was done
	Results   []OpResult // in the order of the operations done
}

// OpResult answers one Op: the field of its kind is set, or none for OpPut.
type OpResult struct {
	Range   *RangeResult // OpRange
	Deleted int64        // OpDelete
	Txn     *TxnResult   // OpTxn
}

// Txn does a transaction. A transaction that only reads is repeated like a read.
func (kv *KV) Txn(ctx context.Context, t Txn) (*TxnResult, error) {
	k := write
	if t.reads() {
		k = read
	}
	r := t.request()
	r.Keyspace = kv.keyspace
	reply, err := kv.c.roundTrip(ctx, k, &almanacv1.StreamCall{Request: &almanacv1.StreamCall_Txn{Txn: r}})
	if err != nil {
		return nil, err
	}
	return txnResult(reply.GetTxn()), nil
}

// reads says whether the transaction surely writes nothing.
func (t Txn) reads() bool {
	for _, ops := range [][]Op{t.Then, t.Else} {
		for _, op := range ops {
			if op.p.GetRange() == nil {
				return false
			}
		}
	}
	return true
}

func (t Txn) request() *almanacv1.TxnRequest {
	r := &almanacv1.TxnRequest{}
	for _, c := range t.If {
		r.Compares = append(r.Compares, c.p)
	}
	for _, op := range t.Then {
		r.Then = append(r.Then, op.p)
	}
	for _, op := range t.Else {
		r.Else = append(r.Else, op.p)
	}
	return r
}

func txnResult(p *almanacv1.TxnResponse) *TxnResult {
	if p == nil {
		return nil
	}
	t := &TxnResult{Revision: p.GetRevision(), Succeeded: p.GetSucceeded()}
	for _, r := range p.GetResults() {
		var o OpResult
		switch {
		case r.GetRange() != nil:
			o.Range = rangeResult(r.GetRange())
		case r.GetDelete() != nil:
			o.Deleted = r.GetDelete().GetDeleted()
		case r.GetTxn() != nil:
			o.Txn = txnResult(r.GetTxn())
		}
		t.Results = append(t.Results, o)
	}
	return t
}
