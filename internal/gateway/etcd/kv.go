package etcd

import (
	"context"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/mvcc"
)

// kvServer is etcd's KV service. Embedding the Unsafe interface makes a method that a
// later version adds a compile error.
type kvServer struct {
	*Server
	pb.UnsafeKVServer
}

// oneOp is a transaction of one unconditional operation, in one allocation.
type oneOp struct {
	txn mvcc.Txn
	ops [1]mvcc.Op
}

func newOneOp(op mvcc.Op) *mvcc.Txn {
	o := &oneOp{ops: [1]mvcc.Op{op}}
	o.txn.Then = o.ops[:]
	return &o.txn
}

// RangeStream implements pb.KVServer.
func (s *kvServer) RangeStream(*pb.RangeRequest, pb.KV_RangeStreamServer) error {
	return unbuilt("RangeStream", "reads a range in chunks", "use Range with a limit")
}

// Range implements pb.KVServer.
func (s *kvServer) Range(ctx context.Context, r *pb.RangeRequest) (*pb.RangeResponse, error) {
	if err := checkRange(r); err != nil {
		return nil, err
	}
	read := s.rangeOp(r)
	read.Range.At = lower(r.Revision) // outside a transaction, a negative one means the newest
	bounded, cancel := s.within(ctx)
	defer cancel()
	results, revision, err := s.keys.Range(bounded, []mvcc.Op{read}, 0, r.Serializable)
	if err != nil {
		return nil, toStatus(ctx, err)
	}
	return s.rangeResponse(&results[0], s.header(revision)), nil
}

// Put implements pb.KVServer.
func (s *kvServer) Put(ctx context.Context, r *pb.PutRequest) (*pb.PutResponse, error) {
	if err := checkPut(r); err != nil {
		return nil, err
	}
	txn := newOneOp(s.putOp(r))
	if err := s.checkSize(r, txn); err != nil {
		return nil, err
	}
	result, header, err := s.commit(ctx, txn)
	if err != nil {
		return nil, err
	}
	return s.putResponse(&result.Ops[0], header), nil
}

// DeleteRange implements pb.KVServer.
func (s *kvServer) DeleteRange(ctx context.Context, r *pb.DeleteRangeRequest) (*pb.DeleteRangeResponse, error) {
	if err := checkDelete(r); err != nil {
		return nil, err
	}
	txn := newOneOp(s.deleteOp(r))
	if err := s.checkSize(r, txn); err != nil {
		return nil, err
	}
	result, header, err := s.commit(ctx, txn)
	if err != nil {
		return nil, err
	}
	return s.deleteResponse(&result.Ops[0], header), nil
}

// Txn implements pb.KVServer. A transaction that cannot write does not go through the
// log: it is a read at one timestamp.
func (s *kvServer) Txn(ctx context.Context, r *pb.TxnRequest) (*pb.TxnResponse, error) {
	if err := checkTxn(r, MaxTxnOps, 1); err != nil {
		return nil, err
	}
	txn := s.txn(r)
	if err := checkWrites(txn); err != nil {
		return nil, err
	}
	if !writes(txn) {
		bounded, cancel := s.within(ctx)
		defer cancel()
		result, revision, err := s.readTxn(bounded, txn, serializable(r))
		if err != nil {
			return nil, toStatus(ctx, err)
		}
		return s.txnResponse(result, s.header(revision)), nil
	}
	if err := s.checkSize(r, txn); err != nil {
		return nil, err
	}
	result, header, err := s.commit(ctx, txn)
	if err != nil {
		return nil, err
	}
	return s.txnResponse(result, header), nil
}

// Compact implements pb.KVServer.
func (s *kvServer) Compact(ctx context.Context, r *pb.CompactionRequest) (*pb.CompactionResponse, error) {
	if r.Revision <= 0 {
		return nil, rpctypes.ErrGRPCCompacted // nothing is that old
	}
	bounded, cancel := s.within(ctx)
	defer cancel()
	revision, err := s.keys.Compact(bounded, base.Timestamp(r.Revision))
	if err != nil {
		return nil, toStatus(ctx, err)
	}
	return &pb.CompactionResponse{Header: s.header(revision)}, nil
}

func (s *kvServer) commit(ctx context.Context, txn *mvcc.Txn) (*mvcc.TxnResult, *pb.ResponseHeader, error) {
	bounded, cancel := s.within(ctx)
	defer cancel()
	result, revision, err := s.keys.Txn(bounded, txn)
	if err != nil {
		return nil, nil, toStatus(ctx, err)
	}
	return result, s.header(revision), nil
}
