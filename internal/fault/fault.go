// Package fault defines each error of Almanac once: a kind that programs match on, a
// sentence that says what was wrong, a remedy that says what to do, and a hint where
// to go instead. It refuses to know any API's codes; faces translate kinds.
package fault

import (
	"errors"
	"fmt"

	"github.com/almanacdb/almanac/internal/base"
)

// Kind classifies an error. On the wire between nodes; never renumber.
type Kind uint8

const (
	Internal       Kind = iota + 1 // a broken invariant or an unforeseen failure
	Invalid                        // the request can never succeed as it stands
	NotFound                       // the named thing does not exist
	AlreadyExists                  // the named thing exists already
	CompareFailed                  // a compare in the request did not hold
	TooLarge                       // above a documented limit
	NotLeader                      // this replica does not order the range; see Leader
	RangeNotFound                  // this node has no replica of the range
	WrongRange                     // the range does not own the key, or its span epoch moved
	Restamp                        // refused at apply, the stamp was not above the range's last
	Locked                         // another transaction's lock is in the way
	UnknownOutcome                 // the write may or may not have been done
	Unavailable                    // no quorum, no oracle, or no connection: try again later
	Deadline                       // the caller's time ran out; names what was waited for
	Busy                           // a bounded queue is full: back off
	Compacted                      // a read below the history horizon
	FutureRevision                 // a read above what the oracle has issued
	Corrupt                        // data failed its checksum or does not parse
	WrongCluster                   // the peer belongs to another cluster
	Uninitialized                  // no cluster has been formed here yet
	Unimplemented                  // not built yet
	Stopped                        // the node is shutting down
	DiskFull                       // the disk has no room for writes
	Cancelled                      // the caller went away
)

var reasons = [...]string{
	Internal: "internal", Invalid: "invalid_argument", NotFound: "not_found",
	AlreadyExists: "already_exists", CompareFailed: "compare_failed", TooLarge: "too_large",
	NotLeader: "not_leader", RangeNotFound: "range_not_found", WrongRange: "wrong_range",
	Restamp: "restamp", Locked: "locked", UnknownOutcome: "unknown_outcome",
	Unavailable: "unavailable", Deadline: "deadline_exceeded", Busy: "busy",
	Compacted: "compacted", FutureRevision: "future_revision", Corrupt: "corrupt",
	WrongCluster: "wrong_cluster", Uninitialized: "uninitialized",
	Unimplemented: "unimplemented", Stopped: "stopped", DiskFull: "disk_full",
	Cancelled: "cancelled",
}

// String returns the kind's reason code as it stands in JSON errors, for example
// "compare_failed".
func (k Kind) String() string {
	if int(k) < len(reasons) && reasons[k] != "" {
		return reasons[k]
	}
	return fmt.Sprintf("kind_%d", uint8(k))
}

// Error is Almanac's one error type.
type Error struct {
	Kind   Kind
	Text   string       // what was wrong, one sentence without a final period
	Remedy string       // what to do about it; may be empty
	Leader base.NodeID  // with NotLeader: who orders the range, if known
	Range  base.RangeID // the range concerned, if any
	Cause  error        // may be nil; does not cross the wire
}

// Error implements error.
func (e *Error) Error() string {
	s := e.Text
	if s == "" {
		s = e.Kind.String()
	}
	if e.Cause != nil {
		s += ": " + e.Cause.Error()
	}
	return s
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Cause }

// Is makes errors.Is compare kinds, so that New(k, "") serves as a pattern.
func (e *Error) Is(target error) bool {
	var t *Error
	return errors.As(target, &t) && t.Kind == e.Kind && t.Text == ""
}

// New returns an error of a kind.
func New(k Kind, format string, args ...any) *Error {
	return &Error{Kind: k, Text: fmt.Sprintf(format, args...)}
}

// Wrap returns an error of a kind with a cause.
func Wrap(k Kind, cause error, format string, args ...any) *Error {
	return &Error{Kind: k, Text: fmt.Sprintf(format, args...), Cause: cause}
}

// WithRemedy adds what to do and returns e.
func (e *Error) WithRemedy(format string, args ...any) *Error {
	e.Remedy = fmt.Sprintf(format, args...)
	return e
}

// OnRange names the range concerned and returns e.
func (e *Error) OnRange(r base.RangeID) *Error {
	e.Range = r
	return e
}

// NotLeaderOf says that a replica does not order its range, and who does, if known.
func NotLeaderOf(r base.RangeID, leader base.NodeID) *Error {
	e := New(NotLeader, "this node does not lead range %d", r)
	e.Range, e.Leader = r, leader
	return e
}

// KindOf returns the kind of err: Internal when err is not an *Error, 0 when nil.
func KindOf(err error) Kind {
	if err == nil {
		return 0
	}
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return Internal
}

// As returns err as an *Error, wrapping it as Internal if it is none.
func As(err error) *Error {
	if err == nil {
		return nil
	}
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	return Wrap(Internal, err, "internal error")
}
