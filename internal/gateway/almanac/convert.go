package almanac

import (
	almanacv1 "github.com/almanacdb/almanac/api/almanac/v1"
	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/keys"
	"github.com/almanacdb/almanac/internal/mvcc"
)

// userPrefix is how many bytes of a logical key stand before the user's key.
var userPrefix = len(keys.User(base.DefaultKeyspace, nil))

func (s *Server) rangeOp(r *almanacv1.RangeRequest) (mvcc.Op, error) {
	span, err := s.span(r)
	if err != nil {
		return mvcc.Op{}, err
	}
	if r.Limit < 0 {
		return mvcc.Op{}, fault.New(fault.Invalid, "limit %d is negative", r.Limit).WithRemedy("use 0 for no limit")
	}
	return mvcc.Op{Kind: mvcc.OpRange, Span: span, Range: mvcc.RangeOptions{
		Limit: r.Limit, KeysOnly: r.KeysOnly, CountOnly: r.CountOnly,
	}}, nil
}

// putOp leaves the conditions to the caller.
func (s *Server) putOp(r *almanacv1.PutRequest) (mvcc.Op, error) {
	if err := s.checkKey(r.Key); err != nil {
		return mvcc.Op{}, err
	}
	if err := s.checkBytes(len(r.Key) + len(r.Value)); err != nil {
		return mvcc.Op{}, err
	}
	if r.Lease != 0 {
		return mvcc.Op{}, fault.New(fault.NotFound, "lease %d does not exist", r.Lease).
			WithRemedy("leave lease 0; leases are not built yet")
	}
	return mvcc.Op{Kind: mvcc.OpPut, Span: userPoint(r.Key), Value: r.Value, PrevKV: r.PrevKv}, nil
}

func (s *Server) deleteOp(r *almanacv1.DeleteRequest) (mvcc.Op, error) {
	span, err := s.span(r)
	if err != nil {
		return mvcc.Op{}, err
	}
	return mvcc.Op{Kind: mvcc.OpDelete, Span: span, PrevKV: r.PrevKv}, nil
}

// txnOf converts a transaction. Depth is checked on the way down, so that no nesting
// outgrows the stack; mvcc.Validate checks the rest.
func (s *Server) txnOf(r *almanacv1.TxnRequest, depth int) (*mvcc.Txn, error) {
	if depth > mvcc.MaxDepth {
		return nil, fault.New(fault.Invalid, "transactions are nested more than %d deep", mvcc.MaxDepth)
	}
	txn := &mvcc.Txn{Compares: make([]mvcc.Compare, len(r.Compares))}
	for i, c := range r.Compares {
		var err error
		if txn.Compares[i], err = s.compare(c); err != nil {
			return nil, err
		}
	}
	var err error
	if txn.Then, err = s.ops(r.Then, depth); err != nil {
		return nil, err
	}
	txn.Else, err = s.ops(r.Else, depth)
	return txn, err
}

// compareSpan gives a compare the shape of other spans.
type compareSpan struct{ *almanacv1.Compare }

func (compareSpan) GetPrefix() bool { return false }
func (compareSpan) GetToEnd() bool  { return false }

// compare relies on targets and relations having the same numbers here and there.
func (s *Server) compare(c *almanacv1.Compare) (mvcc.Compare, error) {
	span, err := s.span(compareSpan{c})
	if err != nil {
		return mvcc.Compare{}, err
	}
	if c.GetTarget() < 0 || c.GetTarget() > almanacv1.Compare_TARGET_LEASE ||
		c.GetRelation() < 0 || c.GetRelation() > almanacv1.Compare_RELATION_NOT_EQUAL {
		return mvcc.Compare{}, fault.New(fault.Invalid, "a compare has target %d and relation %d", c.GetTarget(), c.GetRelation())
	}
	return mvcc.Compare{
		Span: span, Target: mvcc.Target(c.GetTarget()), Relation: mvcc.Relation(c.GetRelation()),
		Number: c.GetNumber(), Value: c.GetValue(),
	}, nil
}

func (s *Server) ops(list []*almanacv1.Op, depth int) ([]mvcc.Op, error) {
	out := make([]mvcc.Op, len(list))
	for i, op := range list {
		var err error
		if out[i], err = s.op(op, depth); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (s *Server) op(op *almanacv1.Op, depth int) (mvcc.Op, error) {
	misplaced := func(what string) (mvcc.Op, error) {
		return mvcc.Op{}, fault.New(fault.Invalid, "%s is set inside a transaction", what).
			WithRemedy("set it on the transaction, or use a compare")
	}
	switch o := op.GetOp().(type) {
	case *almanacv1.Op_Range:
		switch r := o.Range; {
		case r.GetKeyspace() != "":
			return misplaced("keyspace")
		case r.GetConsistency() != 0 || r.GetRevision() != 0 || r.GetMaxStalenessMs() != 0:
			return misplaced("consistency")
		}
		return s.rangeOp(o.Range)
	case *almanacv1.Op_Put:
		switch r := o.Put; {
		case r.GetKeyspace() != "":
			return misplaced("keyspace")
		case r.GetIfAbsent() || r.GetIfRevision() != 0:
			return misplaced("a condition")
		}
		return s.putOp(o.Put)
	case *almanacv1.Op_Delete:
		if o.Delete.GetKeyspace() != "" {
			return misplaced("keyspace")
		}
		return s.deleteOp(o.Delete)
	case *almanacv1.Op_Txn:
		if o.Txn.GetKeyspace() != "" {
			return misplaced("keyspace")
		}
		txn, err := s.txnOf(o.Txn, depth+1)
		return mvcc.Op{Kind: mvcc.OpTxn, Txn: txn}, err
	}
	return mvcc.Op{}, fault.New(fault.Invalid, "an operation of the transaction is empty")
}

func keyValue(kv *mvcc.KeyValue) *almanacv1.KeyValue {
	to := new(almanacv1.KeyValue)
	fillKeyValue(to, kv)
	return to
}

func fillKeyValue(to *almanacv1.KeyValue, kv *mvcc.KeyValue) {
	to.Key, to.Value = kv.Key[min(userPrefix, len(kv.Key)):], kv.Value
	to.CreateRevision, to.ModRevision = uint64(kv.CreateRevision), uint64(kv.ModRevision)
	to.Version, to.Lease = kv.Version, kv.Lease
}

// keyValues converts a list with two allocations.
func keyValues(kvs []mvcc.KeyValue) []*almanacv1.KeyValue {
	if len(kvs) == 0 {
		return nil
	}
	all, list := make([]almanacv1.KeyValue, len(kvs)), make([]*almanacv1.KeyValue, len(kvs))
	for i := range kvs {
		fillKeyValue(&all[i], &kvs[i])
		list[i] = &all[i]
	}
	return list
}

func rangeResponse(r *mvcc.RangeResult, revision base.Timestamp) *almanacv1.RangeResponse {
	return &almanacv1.RangeResponse{Kvs: keyValues(r.KVs), Count: r.Count, More: r.More, Revision: uint64(revision)}
}

func putResponse(r *mvcc.OpResult, revision base.Timestamp) *almanacv1.PutResponse {
	resp := &almanacv1.PutResponse{Revision: uint64(revision)}
	if len(r.Prev) > 0 {
		resp.PrevKv = keyValue(&r.Prev[0])
	}
	return resp
}

func deleteResponse(r *mvcc.OpResult, revision base.Timestamp) *almanacv1.DeleteResponse {
	return &almanacv1.DeleteResponse{Revision: uint64(revision), Deleted: r.Deleted, PrevKvs: keyValues(r.Prev)}
}

func txnResponse(r *mvcc.TxnResult, revision base.Timestamp) (*almanacv1.TxnResponse, error) {
	resp := &almanacv1.TxnResponse{
		Revision: uint64(revision), Succeeded: r.Succeeded, Results: make([]*almanacv1.OpResult, len(r.Ops)),
	}
	for i := range r.Ops {
		op, to := &r.Ops[i], &almanacv1.OpResult{}
		switch op.Kind {
		case mvcc.OpRange:
			to.Result = &almanacv1.OpResult_Range{Range: rangeResponse(&op.Range, revision)}
		case mvcc.OpPut:
			to.Result = &almanacv1.OpResult_Put{Put: putResponse(op, revision)}
		case mvcc.OpDelete:
			to.Result = &almanacv1.OpResult_Delete{Delete: deleteResponse(op, revision)}
		case mvcc.OpTxn:
			if op.Txn == nil {
				return nil, fault.New(fault.Internal, "the transaction was committed, and its answer is cut short")
			}
			inner, err := txnResponse(op.Txn, revision)
			if err != nil {
				return nil, err
			}
			to.Result = &almanacv1.OpResult_Txn{Txn: inner}
		default:
			return nil, fault.New(fault.Internal, "the transaction was committed, and its answer has the unknown kind %d", op.Kind)
		}
		resp.Results[i] = to
	}
	return resp, nil
}
