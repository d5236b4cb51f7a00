package client

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	almanacv1 "github.com/almanacdb/almanac/api/almanac/v1"
)

// Reason is the code that programs match on.
type Reason string

// Reasons that callers most often tell apart. A server may send others.
const (
	ReasonInvalid        Reason = "invalid_argument"
	ReasonNotFound       Reason = "not_found"
	ReasonAlreadyExists  Reason = "already_exists"
	ReasonCompareFailed  Reason = "compare_failed"
	ReasonTooLarge       Reason = "too_large"
	ReasonNotLeader      Reason = "not_leader"
	ReasonUnknownOutcome Reason = "unknown_outcome"
	ReasonUnavailable    Reason = "unavailable"
	ReasonDeadline       Reason = "deadline_exceeded"
	ReasonBusy           Reason = "busy"
	ReasonDiskFull       Reason = "disk_full"
	ReasonUninitialized  Reason = "uninitialized"
	ReasonUnimplemented  Reason = "unimplemented"
	ReasonCancelled      Reason = "cancelled"
	ReasonClosed         Reason = "closed"
	ReasonInternal       Reason = "internal"
)

// reasonStopped: the node is shutting down.
const reasonStopped Reason = "stopped"

// Error is the one error type of this package.
type Error struct {
	Reason  Reason
	Message string // what was wrong, one sentence
	Remedy  string // what to do about it; may be empty

	leader  string // with ReasonNotLeader: where to go instead, if known
	notSent bool   // the request never left this process
	lost    bool   // the connection broke before the answer came
	cause   error
}

// Error implements error.
func (e *Error) Error() string {
	if e.Message == "" {
		return string(e.Reason)
	}
	return e.Message
}

// Unwrap returns the cause, for example context.DeadlineExceeded; it may be nil.
func (e *Error) Unwrap() error { return e.cause }

// ReasonOf returns the reason of err: empty if nil, ReasonInternal if it is no *Error.
func ReasonOf(err error) Reason {
	if err == nil {
		return ""
	}
	var e *Error
	if !errors.As(err, &e) {
		return ReasonInternal
	}
	if e == nil { // a nil *Error in an error, such as Published.Err passed on
		return ""
	}
	return e.Reason
}

// errClosed says that the caller closed what it now uses.
func errClosed(what string) *Error {
	return &Error{Reason: ReasonClosed, Message: what + " is closed"}
}

// fromStatus turns what gRPC returned into an *Error.
func fromStatus(err error) *Error {
	if err == nil {
		return nil
	}
	var already *Error
	if errors.As(err, &already) {
		return already
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return fromContext(err)
	}
	st := status.Convert(err)
	for _, d := range st.Details() {
		if detail, ok := d.(*almanacv1.ErrorDetail); ok {
			return withDetail(st.Code(), st.Message(), detail)
		}
	}
	e := withDetail(st.Code(), st.Message(), nil)
	e.cause = err
	e.Remedy = remedyOf(e.Reason)
	return e
}

// RemedyUnreachable is the remedy of an error that no server answered with: a program
// that knows better where its endpoints come from says that instead.
const RemedyUnreachable = "check that a node runs there, and that the endpoints are client addresses of nodes"

// remedyOf serves errors of gRPC itself, of which no server knew.
func remedyOf(r Reason) string {
	switch r {
	case ReasonUnavailable:
		return RemedyUnreachable
	case ReasonTooLarge:
		return "send less in one request"
	case ReasonUnimplemented:
		return "check that the endpoints are client addresses of nodes, of a version that knows the call"
	}
	return ""
}

// fromProto turns an error inside a message into an *Error.
func fromProto(p *almanacv1.Error) *Error {
	return withDetail(codes.Code(uint32(p.GetCode())), p.GetMessage(), p.GetDetail())
}

func withDetail(code codes.Code, message string, d *almanacv1.ErrorDetail) *Error {
	e := &Error{
		Reason:  Reason(d.GetReason()),
		Message: message,
		Remedy:  d.GetRemedy(),
		leader:  d.GetLeaderAddress(),
	}
	if e.Reason == "" {
		e.Reason = reasonOfCode(code)
	}
	return e
}

// reasonOfCode serves errors that carry no detail: those of gRPC itself.
func reasonOfCode(c codes.Code) Reason {
	switch c {
	case codes.Unavailable:
		return ReasonUnavailable
	case codes.DeadlineExceeded:
		return ReasonDeadline
	case codes.Canceled:
		return ReasonCancelled
	case codes.InvalidArgument, codes.OutOfRange:
		return ReasonInvalid
	case codes.NotFound:
		return ReasonNotFound
	case codes.AlreadyExists:
		return ReasonAlreadyExists
	case codes.ResourceExhausted: // a message above a size limit
		return ReasonTooLarge
	case codes.Unimplemented:
		return ReasonUnimplemented
	}
	return ReasonInternal
}

// fromContext names the end of the caller's patience.
func fromContext(err error) *Error {
	if errors.Is(err, context.DeadlineExceeded) {
		return &Error{Reason: ReasonDeadline, Message: "the deadline passed", cause: context.DeadlineExceeded}
	}
	return &Error{Reason: ReasonCancelled, Message: "the call was cancelled", cause: context.Canceled}
}

// gaveUp joins the end of the caller's patience with what stood in the way until then.
func gaveUp(err error, last *Error) *Error {
	e := fromContext(err)
	if last != nil {
		e.Message = fmt.Sprintf("%s; before that: %s", e.Message, last.Message)
		e.Remedy = last.Remedy
	}
	return e
}
