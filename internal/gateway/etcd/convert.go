package etcd

import (
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/keys"
	"github.com/almanacdb/almanac/internal/mvcc"
)

// isFromKey says that a range end means "all keys from the first on".
func isFromKey(rangeEnd []byte) bool { return len(rangeEnd) == 1 && rangeEnd[0] == 0 }

// span returns the logical span of etcd's (key, range_end).
func (s *Server) span(key, rangeEnd []byte) base.Span {
	switch {
	case len(rangeEnd) == 0:
		// One allocation: User leaves room for the byte that closes a point.
		b := keys.User(s.keyspace, key)
		n := len(b)
		b = append(b, 0)
		return base.Span{Start: b[:n:n], End: b}
	case isFromKey(rangeEnd):
		return keys.UserSpan(s.keyspace, key, nil)
	}
	sp := keys.UserSpan(s.keyspace, key, rangeEnd)
	if string(sp.End) < string(sp.Start) {
		sp.End = sp.Start // holds no key
	}
	return sp
}

// upper converts a revision as an upper bound, or to read at: 0 is none, a negative one
// is older than every key and every horizon, as revision 1 is.
func upper(revision int64) base.Timestamp {
	if revision < 0 {
		return 1
	}
	return base.Timestamp(revision)
}

func lower(revision int64) base.Timestamp { return base.Timestamp(max(revision, 0)) }

func (s *Server) rangeOp(r *pb.RangeRequest) mvcc.Op {
	order := mvcc.SortOrder(r.SortOrder)
	if order == mvcc.SortNone && r.SortTarget != pb.RangeRequest_KEY {
		order = mvcc.SortAscend
	}
	return mvcc.Op{
		Kind: mvcc.OpRange,
		Span: s.span(r.Key, r.RangeEnd),
		Range: mvcc.RangeOptions{
			At:        upper(r.Revision),
			Limit:     max(r.Limit, 0),
			CountOnly: r.CountOnly,
			KeysOnly:  r.KeysOnly,
			Sort:      mvcc.SortTarget(r.SortTarget),
			Order:     order,
			MinMod:    lower(r.MinModRevision),
			MaxMod:    upper(r.MaxModRevision),
			MinCreate: lower(r.MinCreateRevision),
			MaxCreate: upper(r.MaxCreateRevision),
		},
	}
}

func (s *Server) putOp(r *pb.PutRequest) mvcc.Op {
	return mvcc.Op{
		Kind:        mvcc.OpPut,
		Span:        s.span(r.Key, nil),
		Value:       r.Value,
		Lease:       r.Lease,
		IgnoreValue: r.IgnoreValue,
		IgnoreLease: r.IgnoreLease,
		PrevKV:      r.PrevKv,
	}
}

func (s *Server) deleteOp(r *pb.DeleteRangeRequest) mvcc.Op {
	return mvcc.Op{Kind: mvcc.OpDelete, Span: s.span(r.Key, r.RangeEnd), PrevKV: r.PrevKv}
}

// txn converts a checked request.
func (s *Server) txn(r *pb.TxnRequest) *mvcc.Txn {
	t := &mvcc.Txn{Then: s.ops(r.GetSuccess()), Else: s.ops(r.GetFailure())}
	if len(r.GetCompare()) > 0 {
		t.Compares = make([]mvcc.Compare, len(r.Compare))
	}
	for i, c := range r.GetCompare() {
		t.Compares[i] = s.compare(c)
	}
	return t
}

func (s *Server) ops(reqs []*pb.RequestOp) []mvcc.Op {
	if len(reqs) == 0 {
		return nil
	}
	ops := make([]mvcc.Op, len(reqs))
	for i, req := range reqs {
		switch u := req.Request.(type) {
		case *pb.RequestOp_RequestRange:
			ops[i] = s.rangeOp(u.RequestRange)
		case *pb.RequestOp_RequestPut:
			ops[i] = s.putOp(u.RequestPut)
		case *pb.RequestOp_RequestDeleteRange:
			ops[i] = s.deleteOp(u.RequestDeleteRange)
		case *pb.RequestOp_RequestTxn:
			ops[i] = mvcc.Op{Kind: mvcc.OpTxn, Txn: s.txn(u.RequestTxn)}
		}
	}
	return ops
}

// compare converts a compare. An operand of another target than the one compared with
// counts as absent, thus as zero.
func (s *Server) compare(c *pb.Compare) mvcc.Compare {
	m := mvcc.Compare{
		Span:     s.span(c.Key, c.RangeEnd),
		Target:   mvcc.Target(c.Target),
		Relation: mvcc.Relation(c.Result),
	}
	switch u := c.TargetUnion.(type) {
	case *pb.Compare_Version:
		if c.Target == pb.Compare_VERSION {
			m.Number = u.Version
		}
	case *pb.Compare_CreateRevision:
		if c.Target == pb.Compare_CREATE {
			m.Number = u.CreateRevision
		}
	case *pb.Compare_ModRevision:
		if c.Target == pb.Compare_MOD {
			m.Number = u.ModRevision
		}
	case *pb.Compare_Lease:
		if c.Target == pb.Compare_LEASE {
			m.Number = u.Lease
		}
	case *pb.Compare_Value:
		if c.Target == pb.Compare_VALUE {
			m.Value = u.Value
		}
	}
	return m
}

// Answers. Values and keys are not copied: the messages take over the results' slices.

func (s *Server) fill(to *mvccpb.KeyValue, kv *mvcc.KeyValue) {
	to.Key = kv.Key[s.prefix:]
	to.Value = kv.Value
	to.CreateRevision = int64(kv.CreateRevision)
	to.ModRevision = int64(kv.ModRevision)
	to.Version = kv.Version
	to.Lease = kv.Lease
}

// kvs converts key values with two allocations, whatever their number.
func (s *Server) kvs(from []mvcc.KeyValue) []*mvccpb.KeyValue {
	if len(from) == 0 {
		return nil
	}
	all := make([]mvccpb.KeyValue, len(from))
	out := make([]*mvccpb.KeyValue, len(from))
	for i := range from {
		s.fill(&all[i], &from[i])
		out[i] = &all[i]
	}
	return out
}

func (s *Server) rangeResponse(r *mvcc.RangeResult, h *pb.ResponseHeader) *pb.RangeResponse {
	return &pb.RangeResponse{Header: h, Kvs: s.kvs(r.KVs), More: r.More, Count: r.Count}
}

func (s *Server) putResponse(r *mvcc.OpResult, h *pb.ResponseHeader) *pb.PutResponse {
	resp := &pb.PutResponse{Header: h}
	if len(r.Prev) > 0 {
		resp.PrevKv = new(mvccpb.KeyValue)
		s.fill(resp.PrevKv, &r.Prev[0])
	}
	return resp
}

func (s *Server) deleteResponse(r *mvcc.OpResult, h *pb.ResponseHeader) *pb.DeleteRangeResponse {
	return &pb.DeleteRangeResponse{Header: h, Deleted: r.Deleted, PrevKvs: s.kvs(r.Prev)}
}

// txnResponse converts a transaction's result. As in etcd, only the outermost header
// names cluster, member and term; all carry the revision.
func (s *Server) txnResponse(r *mvcc.TxnResult, h *pb.ResponseHeader) *pb.TxnResponse {
	return s.nestedResponse(r, h, &pb.ResponseHeader{Revision: h.Revision})
}

func (s *Server) nestedResponse(r *mvcc.TxnResult, h, inner *pb.ResponseHeader) *pb.TxnResponse {
	resp := &pb.TxnResponse{Header: h, Succeeded: r.Succeeded}
	if len(r.Ops) > 0 {
		resp.Responses = make([]*pb.ResponseOp, len(r.Ops))
	}
	for i := range r.Ops {
		op := &r.Ops[i]
		out := new(pb.ResponseOp)
		switch op.Kind {
		case mvcc.OpRange:
			out.Response = &pb.ResponseOp_ResponseRange{ResponseRange: s.rangeResponse(&op.Range, inner)}
		case mvcc.OpPut:
			out.Response = &pb.ResponseOp_ResponsePut{ResponsePut: s.putResponse(op, inner)}
		case mvcc.OpDelete:
			out.Response = &pb.ResponseOp_ResponseDeleteRange{ResponseDeleteRange: s.deleteResponse(op, inner)}
		case mvcc.OpTxn:
			out.Response = &pb.ResponseOp_ResponseTxn{ResponseTxn: s.nestedResponse(op.Txn, inner, inner)}
		}
		resp.Responses[i] = out
	}
	return resp
}
