package almanac

import (
	"context"
	"time"

	almanacv1 "github.com/almanacdb/almanac/api/almanac/v1"
	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/mvcc"
	"github.com/almanacdb/almanac/internal/router"
	"github.com/almanacdb/almanac/internal/wire"
)

// kvServer is the KV service. Embedding the Unsafe interface makes a method that a later
// version adds a compile error. Its unexported methods do the work and return faults;
// the unary calls and the stream share them.
type kvServer struct {
	*Server
	almanacv1.UnsafeKVServer
}

// Get implements almanacv1.KVServer.
func (s *kvServer) Get(ctx context.Context, r *almanacv1.GetRequest) (*almanacv1.GetResponse, error) {
	resp, err := s.get(ctx, r)
	return resp, s.status(err)
}

// Range implements almanacv1.KVServer.
func (s *kvServer) Range(ctx context.Context, r *almanacv1.RangeRequest) (*almanacv1.RangeResponse, error) {
	resp, err := s.scan(ctx, r)
	return resp, s.status(err)
}

// Put implements almanacv1.KVServer.
func (s *kvServer) Put(ctx context.Context, r *almanacv1.PutRequest) (*almanacv1.PutResponse, error) {
	resp, err := s.put(ctx, r)
	return resp, s.status(err)
}

// Delete implements almanacv1.KVServer.
func (s *kvServer) Delete(ctx context.Context, r *almanacv1.DeleteRequest) (*almanacv1.DeleteResponse, error) {
	resp, err := s.delete(ctx, r)
	return resp, s.status(err)
}

// Txn implements almanacv1.KVServer.
func (s *kvServer) Txn(ctx context.Context, r *almanacv1.TxnRequest) (*almanacv1.TxnResponse, error) {
	resp, err := s.txn(ctx, r)
	return resp, s.status(err)
}

func (s *kvServer) get(ctx context.Context, r *almanacv1.GetRequest) (*almanacv1.GetResponse, error) {
	if err := checkKeyspace(r.Keyspace); err != nil {
		return nil, err
	}
	if err := s.checkKey(r.Key); err != nil {
		return nil, err
	}
	mode, err := readMode(r)
	if err != nil {
		return nil, err
	}
	return getResponse(s.read(ctx, userPoint(r.Key), mvcc.RangeOptions{}, mode))
}

func getResponse(res mvcc.RangeResult, revision base.Timestamp, err error) (*almanacv1.GetResponse, error) {
	if err != nil {
		return nil, err
	}
	resp := &almanacv1.GetResponse{Revision: uint64(revision)}
	if len(res.KVs) > 0 {
		resp.Kv = keyValue(&res.KVs[0])
	}
	return resp, nil
}

// beginGet is get that does not wait: done is called with the answer, once, and must not
// block. False means that get has to do it.
func (s *kvServer) beginGet(ctx context.Context, timeout time.Duration, r *almanacv1.GetRequest, done func(*almanacv1.GetResponse, error)) bool {
	if checkKeyspace(r.Keyspace) != nil || s.checkKey(r.Key) != nil {
		return false
	}
	if mode, err := readMode(r); err != nil || mode.consistency != router.Newest {
		return false
	}
	return s.routes.BeginRead(ctx, timeout, userPoint(r.Key), func(reply wire.ReadReply, err error) {
		done(getResponse(single(reply, err)))
	})
}

func (s *kvServer) scan(ctx context.Context, r *almanacv1.RangeRequest) (*almanacv1.RangeResponse, error) {
	if err := checkKeyspace(r.Keyspace); err != nil {
		return nil, err
	}
	op, err := s.rangeOp(r)
	if err != nil {
		return nil, err
	}
	mode, err := readMode(r)
	if err != nil {
		return nil, err
	}
	if mode.consistency == router.Newest {
		// A caller who gets a part goes on reading at the revision: it must be exact.
		mode.consistency = router.Fresh
	}
	res, revision, err := s.read(ctx, op.Span, op.Range, mode)
	if err != nil {
		return nil, err
	}
	return rangeResponse(&res, revision), nil
}

// read does one read and returns the revision that it was done at. A read of the newest
// versions needs no timestamp of its own: it was done at the range's last stamp, or at
// the revision of what it found if that came after.
func (s *kvServer) read(ctx context.Context, span base.Span, o mvcc.RangeOptions, mode mode) (mvcc.RangeResult, base.Timestamp, error) {
	if mode.consistency == router.At {
		// The router refuses a revision that was not issued (K5) when it stands in the read.
		o.At = mode.at
		res, _, err := s.routes.Range(ctx, []mvcc.Op{{Kind: mvcc.OpRange, Span: span, Range: o}}, 0, false)
		if err != nil {
			return mvcc.RangeResult{}, 0, err
		}
		return res[0], mode.at, nil
	}
	return single(s.routes.Read(ctx, []wire.Read{{Span: span, Options: o}}, mode.consistency, 0))
}

// single returns the result of the only read, and the revision that it was done at.
func single(reply wire.ReadReply, err error) (mvcc.RangeResult, base.Timestamp, error) {
	if err != nil {
		return mvcc.RangeResult{}, 0, err
	}
	if len(reply.Results) != 1 {
		return mvcc.RangeResult{}, 0, fault.New(fault.Internal, "one read got %d answers", len(reply.Results))
	}
	revision := reply.At
	for i := range reply.Results[0].KVs {
		revision = max(revision, reply.Results[0].KVs[i].ModRevision)
	}
	return reply.Results[0], revision, nil
}

func (s *kvServer) put(ctx context.Context, r *almanacv1.PutRequest) (*almanacv1.PutResponse, error) {
	txn, err := s.putTxn(r)
	if err != nil {
		return nil, err
	}
	return putAnswer(r, txn)(s.routes.Txn(ctx, txn))
}

// beginPut is to put as beginGet is to get.
func (s *kvServer) beginPut(ctx context.Context, timeout time.Duration, r *almanacv1.PutRequest, done func(*almanacv1.PutResponse, error)) bool {
	txn, err := s.putTxn(r)
	if err != nil {
		return false
	}
	answer := putAnswer(r, txn)
	return s.routes.BeginTxn(ctx, timeout, txn, func(res *mvcc.TxnResult, revision base.Timestamp, err error) {
		done(answer(res, revision, err))
	})
}

func (s *kvServer) putTxn(r *almanacv1.PutRequest) (*mvcc.Txn, error) {
	if err := checkKeyspace(r.Keyspace); err != nil {
		return nil, err
	}
	op, err := s.putOp(r)
	if err != nil {
		return nil, err
	}
	txn := newOneOp(op)
	switch {
	case r.IfAbsent && r.IfRevision != 0:
		return nil, fault.New(fault.Invalid, "if_absent and if_revision are both set").WithRemedy("set one of them")
	case r.IfAbsent:
		txn.Compares = []mvcc.Compare{{Span: op.Span, Target: mvcc.TargetCreate, Relation: mvcc.Equal}}
	case r.IfRevision > uint64(base.MaxTimestamp):
		return nil, fault.New(fault.Invalid, "if_revision %d is no revision", r.IfRevision)
	case r.IfRevision != 0:
		txn.Compares = []mvcc.Compare{{Span: op.Span, Target: mvcc.TargetMod, Relation: mvcc.Equal, Number: int64(r.IfRevision)}}
	}
	return txn, nil
}

// putAnswer makes a put's answer of what became of its transaction.
func putAnswer(r *almanacv1.PutRequest, txn *mvcc.Txn) func(*mvcc.TxnResult, base.Timestamp, error) (*almanacv1.PutResponse, error) {
	return func(res *mvcc.TxnResult, revision base.Timestamp, err error) (*almanacv1.PutResponse, error) {
		if err == nil {
			err = fits(txn, res)
		}
		switch {
		case err != nil:
			return nil, err
		case res.Succeeded:
			return putResponse(&res.Ops[0], revision), nil
		case r.IfAbsent:
			return nil, fault.New(fault.CompareFailed, "the key exists").WithRemedy("drop if_absent to overwrite it")
		}
		return nil, fault.New(fault.CompareFailed, "the key's revision is not %d", r.IfRevision).
			WithRemedy("read the key and decide anew")
	}
}

func (s *kvServer) delete(ctx context.Context, r *almanacv1.DeleteRequest) (*almanacv1.DeleteResponse, error) {
	if err := checkKeyspace(r.Keyspace); err != nil {
		return nil, err
	}
	op, err := s.deleteOp(r)
	if err != nil {
		return nil, err
	}
	res, revision, err := s.commit(ctx, newOneOp(op))
	if err != nil {
		return nil, err
	}
	return deleteResponse(&res.Ops[0], revision), nil
}

func (s *kvServer) txn(ctx context.Context, r *almanacv1.TxnRequest) (*almanacv1.TxnResponse, error) {
	if err := checkKeyspace(r.Keyspace); err != nil {
		return nil, err
	}
	if err := s.checkRequest(r); err != nil {
		return nil, err
	}
	txn, err := s.txnOf(r, 1)
	if err != nil {
		return nil, err
	}
	if err := mvcc.Validate(txn); err != nil {
		return nil, err
	}
	if onlyReads(txn) {
		results, at, err := s.routes.Range(ctx, txn.Then, 0, false)
		if err != nil {
			return nil, err
		}
		res := &mvcc.TxnResult{Succeeded: true, Ops: make([]mvcc.OpResult, len(results))}
		for i := range results {
			res.Ops[i] = mvcc.OpResult{Kind: mvcc.OpRange, Range: results[i]}
		}
		return txnResponse(res, at)
	}
	res, revision, err := s.commit(ctx, txn)
	if err != nil {
		return nil, err
	}
	return txnResponse(res, revision)
}

// onlyReads says that a transaction has nothing but unconditional reads: these are done
// at one timestamp, without the log.
func onlyReads(txn *mvcc.Txn) bool {
	if len(txn.Compares) > 0 {
		return false
	}
	for i := range txn.Then {
		if txn.Then[i].Kind != mvcc.OpRange {
			return false
		}
	}
	return true
}

// commit has a transaction committed, and checks that its answer has its shape.
func (s *kvServer) commit(ctx context.Context, txn *mvcc.Txn) (*mvcc.TxnResult, base.Timestamp, error) {
	res, revision, err := s.routes.Txn(ctx, txn)
	if err == nil {
		err = fits(txn, res)
	}
	return res, revision, err
}

// fits checks that an answer has its transaction's shape.
func fits(txn *mvcc.Txn, res *mvcc.TxnResult) error {
	ops := txn.Then
	if res != nil && !res.Succeeded {
		ops = txn.Else
	}
	if res == nil || len(res.Ops) != len(ops) {
		return fault.New(fault.Internal, "the transaction was committed, and its answer does not fit it")
	}
	return nil
}

// oneOp is a transaction of one operation, in one allocation.
type oneOp struct {
	txn mvcc.Txn
	ops [1]mvcc.Op
}

func newOneOp(op mvcc.Op) *mvcc.Txn {
	o := &oneOp{ops: [1]mvcc.Op{op}}
	o.txn.Then = o.ops[:]
	return &o.txn
}
