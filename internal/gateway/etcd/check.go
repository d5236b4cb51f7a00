package etcd

import (
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/mvcc"
)

// The checks that etcd makes before it looks at any key, with its errors.

func checkRange(r *pb.RangeRequest) error {
	if len(r.GetKey()) == 0 {
		return rpctypes.ErrGRPCEmptyKey
	}
	if r.SortOrder < pb.RangeRequest_NONE || r.SortOrder > pb.RangeRequest_DESCEND ||
		r.SortTarget < pb.RangeRequest_KEY || r.SortTarget > pb.RangeRequest_VALUE {
		return rpctypes.ErrGRPCInvalidSortOption
	}
	return nil
}

func checkPut(r *pb.PutRequest) error {
	switch {
	case len(r.GetKey()) == 0:
		return rpctypes.ErrGRPCEmptyKey
	case r.IgnoreValue && len(r.Value) != 0:
		return rpctypes.ErrGRPCValueProvided
	case r.IgnoreLease && r.Lease != 0:
		return rpctypes.ErrGRPCLeaseProvided
	case r.Lease != 0:
		return rpctypes.ErrGRPCLeaseNotFound // leases are not built yet, so none exists
	}
	return nil
}

func checkDelete(r *pb.DeleteRangeRequest) error {
	if len(r.GetKey()) == 0 {
		return rpctypes.ErrGRPCEmptyKey
	}
	return nil
}

// checkTxn allows budget operations at this depth; a nested transaction has what its
// parent's longest list leaves.
func checkTxn(r *pb.TxnRequest, budget, depth int) error {
	longest := max(len(r.GetCompare()), len(r.GetSuccess()), len(r.GetFailure()))
	if longest > budget || depth > mvcc.MaxDepth {
		return rpctypes.ErrGRPCTooManyOps
	}
	for _, c := range r.GetCompare() {
		if err := checkCompare(c); err != nil {
			return err
		}
	}
	for _, branch := range [...][]*pb.RequestOp{r.GetSuccess(), r.GetFailure()} {
		for _, op := range branch {
			if err := checkOp(op, budget-longest, depth); err != nil {
				return err
			}
		}
	}
	return nil
}

func checkOp(op *pb.RequestOp, budget, depth int) error {
	switch u := op.GetRequest().(type) {
	case *pb.RequestOp_RequestRange:
		return checkRange(u.RequestRange)
	case *pb.RequestOp_RequestPut:
		return checkPut(u.RequestPut)
	case *pb.RequestOp_RequestDeleteRange:
		return checkDelete(u.RequestDeleteRange)
	case *pb.RequestOp_RequestTxn:
		return checkTxn(u.RequestTxn, budget, depth+1)
	}
	return rpctypes.ErrGRPCKeyNotFound // etcd's answer to an operation that is none
}

// checkCompare also refuses what a later version of the API may add to the enums:
// etcd lets such a compare hold, which guards nothing.
func checkCompare(c *pb.Compare) error {
	if len(c.GetKey()) == 0 {
		return rpctypes.ErrGRPCEmptyKey
	}
	if c.Result < pb.Compare_EQUAL || c.Result > pb.Compare_NOT_EQUAL ||
		c.Target < pb.Compare_VERSION || c.Target > pb.Compare_LEASE {
		return status.Error(codes.InvalidArgument,
			"a compare asks for a target or relation that this version does not know")
	}
	return nil
}

// checkWrites makes the checks of the state machine itself, of a transaction that
// passed checkTxn: what they can still find is a key written twice, or sheer number.
func checkWrites(txn *mvcc.Txn) error {
	switch err := mvcc.Validate(txn); fault.KindOf(err) {
	case 0:
		return nil
	case fault.TooLarge:
		return rpctypes.ErrGRPCTooManyOps
	default:
		return rpctypes.ErrGRPCDuplicateKey
	}
}

// checkSize bounds what goes through the log: the request, and each key it would write.
// etcd has no limit for keys and so no error of its own for one; this is the nearest.
func (s *Server) checkSize(r proto.Message, txn *mvcc.Txn) error {
	if proto.Size(r) > s.maxRequest || s.longKey(txn) {
		return rpctypes.ErrGRPCRequestTooLarge
	}
	return nil
}

func (s *Server) longKey(txn *mvcc.Txn) bool {
	for _, branch := range [...][]mvcc.Op{txn.Then, txn.Else} {
		for i := range branch {
			switch op := &branch[i]; op.Kind {
			case mvcc.OpPut:
				if len(op.Span.Start)-s.prefix > s.maxKey {
					return true
				}
			case mvcc.OpTxn:
				if s.longKey(op.Txn) {
					return true
				}
			}
		}
	}
	return false
}
