package etcd

import (
	"context"
	"errors"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/almanacdb/almanac/internal/fault"
)

// StatusOf turns a fault into the status that ends a call.
func StatusOf(ctx context.Context, err error) error { return toStatus(ctx, err) }

// toStatus translates a fault into the error that an etcd client knows. Clients compare
// etcd's errors by their text, so a fault that has an equal there loses its own; the
// others keep sentence and remedy. ctx is the caller's: if its time ran out or it went
// away, gRPC says that.
//
// What a client may take for "not done" must not be said of a write that may have been:
// UnknownOutcome and Deadline become errors of etcd's request-timed-out family, whose
// outcome is unknown there too.
func toStatus(ctx context.Context, err error) error {
	if cause := ctx.Err(); cause != nil {
		return status.FromContextError(cause).Err()
	}
	if errors.Is(err, context.DeadlineExceeded) { // the face's own, see within
		return rpctypes.ErrGRPCTimeout
	}
	f := fault.As(err)
	switch f.Kind {
	case fault.NotFound:
		return rpctypes.ErrGRPCKeyNotFound
	case fault.Compacted:
		return rpctypes.ErrGRPCCompacted
	case fault.FutureRevision:
		return rpctypes.ErrGRPCFutureRev
	case fault.TooLarge:
		return rpctypes.ErrGRPCRequestTooLarge
	case fault.DiskFull:
		return rpctypes.ErrGRPCNoSpace
	case fault.Busy:
		return rpctypes.ErrGRPCRequestTooManyRequests
	case fault.UnknownOutcome:
		return rpctypes.ErrGRPCTimeoutDueToLeaderFail
	case fault.Deadline:
		return rpctypes.ErrGRPCTimeout
	case fault.Unavailable:
		return rpctypes.ErrGRPCNoLeader
	case fault.NotLeader, fault.RangeNotFound, fault.WrongRange, fault.Restamp:
		return rpctypes.ErrGRPCLeaderChanged
	case fault.Stopped:
		return rpctypes.ErrGRPCStopped
	case fault.Corrupt:
		return rpctypes.ErrGRPCCorrupt
	case fault.WrongCluster:
		return rpctypes.ErrGRPCClusterIDMismatch
	}
	return status.Error(code(f.Kind), sentence(f))
}

// code is the gRPC code of a kind without an equal in etcd.
func code(k fault.Kind) codes.Code {
	switch k {
	case fault.Invalid:
		return codes.InvalidArgument
	case fault.AlreadyExists:
		return codes.AlreadyExists
	case fault.CompareFailed:
		return codes.FailedPrecondition
	case fault.Locked, fault.Uninitialized:
		return codes.Unavailable
	case fault.Unimplemented:
		return codes.Unimplemented
	case fault.Cancelled:
		return codes.Canceled
	}
	return codes.Internal
}

func sentence(f *fault.Error) string {
	if f.Remedy == "" {
		return f.Error()
	}
	return f.Error() + "; " + f.Remedy
}
