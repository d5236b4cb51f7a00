package almanac

import (
	"context"
	"errors"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	almanacv1 "github.com/almanacdb/almanac/api/almanac/v1"
	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/fault"
)

// statusCodes are gRPC's codes by kind; programs match on the reason. Retries that gRPC
// itself may be told to do look at Unavailable, so no kind that leaves a write in doubt
// has that code.
var statusCodes = [...]codes.Code{
	fault.Internal: codes.Internal, fault.Invalid: codes.InvalidArgument, fault.NotFound: codes.NotFound,
	fault.AlreadyExists: codes.AlreadyExists, fault.CompareFailed: codes.FailedPrecondition,
	fault.TooLarge: codes.ResourceExhausted, fault.NotLeader: codes.Unavailable,
	fault.RangeNotFound: codes.Unavailable, fault.WrongRange: codes.Unavailable,
	fault.Restamp: codes.Aborted, fault.Locked: codes.Aborted, fault.UnknownOutcome: codes.Unknown,
	fault.Unavailable: codes.Unavailable, fault.Deadline: codes.DeadlineExceeded,
	fault.Busy: codes.ResourceExhausted, fault.Compacted: codes.OutOfRange,
	fault.FutureRevision: codes.OutOfRange, fault.Corrupt: codes.DataLoss,
	fault.WrongCluster: codes.FailedPrecondition, fault.Uninitialized: codes.Unavailable,
	fault.Unimplemented: codes.Unimplemented, fault.Stopped: codes.Unavailable,
	fault.DiskFull: codes.ResourceExhausted, fault.Cancelled: codes.Canceled,
}

func codeOf(k fault.Kind) codes.Code {
	if int(k) < len(statusCodes) && statusCodes[k] != codes.OK {
		return statusCodes[k]
	}
	return codes.Internal
}

// remedies stand in for those that a fault lacks, by kind.
var remedies = [...]string{
	fault.Internal: "see the log of the node", fault.Invalid: "correct the request", fault.NotFound: "check the name",
	fault.AlreadyExists: "use what is there, or another name", fault.CompareFailed: "read again, and decide anew",
	fault.TooLarge: "split the request", fault.NotLeader: "try again", fault.RangeNotFound: "try again",
	fault.WrongRange: "try again", fault.Restamp: "try again", fault.Locked: "try again",
	fault.UnknownOutcome: "read what was written before repeating it",
	fault.Unavailable:    "try again, and see `almanac cluster status`", fault.Deadline: "allow more time, and see `almanac cluster status`",
	fault.Busy: "slow down and try again", fault.Compacted: "read at a newer revision",
	fault.FutureRevision: "use a revision that a read or write returned",
	fault.Corrupt:        "see the log of the node, and rebuild it on an empty data directory",
	fault.WrongCluster:   "check the addresses", fault.Uninitialized: "form a cluster: almanac init",
	fault.Unimplemented: "run a newer version on every node", fault.Stopped: "ask another node, or wait until this one is back",
	fault.DiskFull: "free space or add a disk",
}

// remedy returns what to do about a fault.
func remedy(f *fault.Error) string {
	if f.Remedy == "" && int(f.Kind) < len(remedies) {
		return remedies[f.Kind]
	}
	return f.Remedy
}

// addresses finds where clients reach a node; empty if unknown.
type addresses func(base.NodeID) string

// message translates an error for its place inside a message. Text may quote what a
// client sent, which need not be UTF-8 and must be here.
func (a addresses) message(err error) *almanacv1.Error {
	f := asFault(err)
	detail := &almanacv1.ErrorDetail{
		Reason: f.Kind.String(), Remedy: strings.ToValidUTF8(remedy(f), "\uFFFD"), RangeId: uint64(f.Range),
	}
	if f.Leader != 0 && a != nil {
		detail.LeaderAddress = a(f.Leader)
	}
	return &almanacv1.Error{
		Code: int32(codeOf(f.Kind)), Message: strings.ToValidUTF8(f.Error(), "\uFFFD"), Detail: detail,
	}
}

// status translates an error into the status of a call; nil stays nil, and what is a
// status already stays one.
func (a addresses) status(err error) error {
	if err == nil {
		return nil
	}
	var f *fault.Error
	if _, ok := status.FromError(err); ok && !errors.As(err, &f) {
		return err
	}
	m := a.message(err)
	st, detailErr := status.New(codes.Code(uint32(m.Code)), m.Message).WithDetails(m.Detail)
	if detailErr != nil {
		return status.Error(codes.Internal, m.Message)
	}
	return st.Err()
}

// asFault returns err as a fault; the bare end of a context is the caller's doing.
func asFault(err error) *fault.Error {
	var f *fault.Error
	switch {
	case errors.As(err, &f):
		return f
	case errors.Is(err, context.Canceled):
		return fault.Wrap(fault.Cancelled, err, "the caller went away")
	case errors.Is(err, context.DeadlineExceeded):
		return fault.Wrap(fault.Deadline, err, "the caller's time ran out")
	}
	return fault.As(err)
}

func (s *Server) message(err error) *almanacv1.Error {
	return addresses(s.node.ClientAddress).message(err)
}

// Status turns a fault into the status that ends a call.
func (s *Server) Status(_ context.Context, err error) error { return s.status(err) }

func (s *Server) status(err error) error {
	if err == nil {
		return nil // without the method value below
	}
	return addresses(s.node.ClientAddress).status(err)
}
