package etcd

import (
	"bytes"
	"cmp"
	"context"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/mvcc"
)

// writes says whether any branch of txn may write.
func writes(txn *mvcc.Txn) bool {
	for _, branch := range [...][]mvcc.Op{txn.Then, txn.Else} {
		for i := range branch {
			switch op := &branch[i]; op.Kind {
			case mvcc.OpPut, mvcc.OpDelete:
				return true
			case mvcc.OpTxn:
				if writes(op.Txn) {
					return true
				}
			}
		}
	}
	return false
}

// serializable says whether a transaction without writes may be answered by the
// nearest replica: it reads something, and every read says so.
func serializable(r *pb.TxnRequest) bool {
	for _, branch := range [...][]*pb.RequestOp{r.Success, r.Failure} {
		for _, op := range branch {
			if rr := op.GetRequestRange(); rr == nil || !rr.Serializable {
				return false
			}
		}
	}
	return len(r.Success)+len(r.Failure) > 0
}

// readTxn evaluates a transaction without writes at one timestamp: first what its
// compares look at, then the branch that they choose. So it may span ranges, and the
// branch not taken costs nothing and fails nothing.
func (s *Server) readTxn(ctx context.Context, txn *mvcc.Txn, local bool) (*mvcc.TxnResult, base.Timestamp, error) {
	var at base.Timestamp
	var seen, results []mvcc.RangeResult
	var err error
	looks := appendLooks(nil, txn)
	if len(looks) > 0 {
		if seen, at, err = s.keys.Range(ctx, looks, 0, local); err != nil {
			return nil, 0, err
		}
	}
	taken := make(map[*mvcc.Txn]bool)
	decide(txn, seen, taken)
	reads := appendReads(nil, txn, taken)
	if len(looks)+len(reads) == 0 { // nothing to look at: for the revision, look anywhere
		reads = []mvcc.Op{{Kind: mvcc.OpRange, Span: s.span([]byte{0}, nil), Range: mvcc.RangeOptions{CountOnly: true}}}
	}
	for i := range reads {
		if own := reads[i].Range.At; at != 0 && own > at {
			return nil, 0, fault.New(fault.FutureRevision, "revision %d is above the transaction's own, %d", own, at)
		}
	}
	if len(reads) > 0 {
		if results, at, err = s.keys.Range(ctx, reads, at, local); err != nil {
			return nil, 0, err
		}
	}
	return assemble(txn, taken, &results), at, nil
}

// appendLooks lists what the compares of txn look at, nested ones included.
func appendLooks(looks []mvcc.Op, txn *mvcc.Txn) []mvcc.Op {
	for i := range txn.Compares {
		c := &txn.Compares[i]
		looks = append(looks, mvcc.Op{
			Kind:  mvcc.OpRange,
			Span:  c.Span,
			Range: mvcc.RangeOptions{KeysOnly: c.Target != mvcc.TargetValue},
		})
	}
	for _, branch := range [...][]mvcc.Op{txn.Then, txn.Else} {
		for i := range branch {
			if branch[i].Kind == mvcc.OpTxn {
				looks = appendLooks(looks, branch[i].Txn)
			}
		}
	}
	return looks
}

// decide notes for txn and those in it whether their compares hold; seen is in the
// order of appendLooks. It returns what is left of seen.
func decide(txn *mvcc.Txn, seen []mvcc.RangeResult, taken map[*mvcc.Txn]bool) []mvcc.RangeResult {
	holds := true
	for i := range txn.Compares {
		holds = holds && compareHolds(&txn.Compares[i], seen[i].KVs)
	}
	taken[txn] = holds
	seen = seen[len(txn.Compares):]
	for _, branch := range [...][]mvcc.Op{txn.Then, txn.Else} {
		for i := range branch {
			if branch[i].Kind == mvcc.OpTxn {
				seen = decide(branch[i].Txn, seen, taken)
			}
		}
	}
	return seen
}

func chosen(txn *mvcc.Txn, taken map[*mvcc.Txn]bool) []mvcc.Op {
	if taken[txn] {
		return txn.Then
	}
	return txn.Else
}

func appendReads(reads []mvcc.Op, txn *mvcc.Txn, taken map[*mvcc.Txn]bool) []mvcc.Op {
	ops := chosen(txn, taken)
	for i := range ops {
		if op := &ops[i]; op.Kind == mvcc.OpTxn {
			reads = appendReads(reads, op.Txn, taken)
		} else {
			reads = append(reads, *op)
		}
	}
	return reads
}

// assemble builds the result of txn; results is in the order of appendReads, and
// consumed.
func assemble(txn *mvcc.Txn, taken map[*mvcc.Txn]bool, results *[]mvcc.RangeResult) *mvcc.TxnResult {
	ops := chosen(txn, taken)
	r := &mvcc.TxnResult{Succeeded: taken[txn], Ops: make([]mvcc.OpResult, len(ops))}
	for i := range ops {
		r.Ops[i].Kind = ops[i].Kind
		if ops[i].Kind == mvcc.OpTxn {
			r.Ops[i].Txn = assemble(ops[i].Txn, taken, results)
			continue
		}
		r.Ops[i].Range = (*results)[0]
		*results = (*results)[1:]
	}
	return r
}

// compareHolds evaluates a compare over what was read in its span, as the state machine
// does over its state.
func compareHolds(c *mvcc.Compare, kvs []mvcc.KeyValue) bool {
	if len(kvs) == 0 {
		return c.Target != mvcc.TargetValue && matches(c, &mvcc.KeyValue{})
	}
	for i := range kvs {
		if !matches(c, &kvs[i]) {
			return false
		}
	}
	return true
}

func matches(c *mvcc.Compare, kv *mvcc.KeyValue) bool {
	var d int
	switch c.Target {
	case mvcc.TargetVersion:
		d = cmp.Compare(kv.Version, c.Number)
	case mvcc.TargetCreate:
		d = cmp.Compare(int64(kv.CreateRevision), c.Number)
	case mvcc.TargetMod:
		d = cmp.Compare(int64(kv.ModRevision), c.Number)
	case mvcc.TargetValue:
		d = bytes.Compare(kv.Value, c.Value)
	case mvcc.TargetLease:
		d = cmp.Compare(kv.Lease, c.Number)
	}
	switch c.Relation {
	case mvcc.Equal:
		return d == 0
	case mvcc.Greater:
		return d > 0
	case mvcc.Less:
		return d < 0
	}
	return d != 0
}
