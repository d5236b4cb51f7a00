package client

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"
)

// safety says when a call may be repeated.
type safety uint8

const (
	// read: repeating does no harm.
	read safety = iota
	// write: only if it is certain that nothing was done.
	write
)

// mayRepeat says whether a failed call may be sent again.
func (k safety) mayRepeat(e *Error) bool {
	if e.Reason == ReasonDeadline || e.Reason == ReasonCancelled || e.Reason == ReasonClosed {
		return false
	}
	if e.notSent {
		return true
	}
	switch e.Reason {
	case ReasonNotLeader, ReasonBusy, ReasonUninitialized:
		return true
	case ReasonUnavailable, ReasonUnknownOutcome, "range_not_found", "wrong_range", "restamp", "locked", reasonStopped:
		return k == read
	}
	return false
}

// another says whether another endpoint may do better.
func another(e *Error) bool {
	switch e.Reason {
	case ReasonUnavailable, ReasonUninitialized, ReasonUnknownOutcome, "range_not_found", reasonStopped:
		return true
	}
	return e.notSent
}

// attempts steers one call through its attempts.
type attempts struct {
	c     *Client
	until time.Time // no attempt starts after it
	n     int
	next  *server // where to go next; nil: the endpoint in use
}

// bound gives ctx the client's default deadline if it has none.
func (c *Client) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok || c.opts.Timeout < 0 {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, c.opts.Timeout)
}

// server returns where this attempt goes.
func (a *attempts) server() *server {
	if a.next != nil {
		return a.next
	}
	return a.c.current()
}

// again judges a failure: it returns nil, after a pause, when the call should be
// repeated, else the error to return.
func (a *attempts) again(ctx context.Context, k safety, from *server, e *Error) *Error {
	if k == write {
		e = admitDoubt(e)
	}
	if errors.Is(e.cause, context.DeadlineExceeded) { // no answer: the node may hang, so the next call goes elsewhere
		a.c.leave(from)
	}
	if !k.mayRepeat(e) || a.c.opts.RetryFor < 0 {
		return e
	}
	now := time.Now()
	if a.n == 0 {
		a.until = now.Add(a.c.opts.RetryFor)
	}
	pause := a.c.opts.pause(a.n)
	a.n++
	hint := a.c.hinted(e)
	if hint == nil && another(e) {
		a.c.leave(from)
	}
	if hint != nil && hint != from && a.n <= 3 {
		pause = 0 // a fresh hint is worth following at once, but not in circles
	}
	a.next = hint
	if now.Add(pause).After(a.until) {
		return e
	}
	return sleep(ctx, pause, e)
}

// admitDoubt makes the error of a write say so if the write may have been done.
func admitDoubt(e *Error) *Error {
	if e.notSent {
		return e
	}
	const remedy = "the write may or may not have been done: read before repeating it"
	switch {
	case e.lost && (e.Reason == ReasonUnavailable || e.Reason == ReasonInternal):
		return &Error{
			Reason:  ReasonUnknownOutcome,
			Message: "the connection was lost before the answer came: " + e.Message,
			Remedy:  remedy,
			cause:   e,
		}
	case e.Reason == ReasonDeadline || e.Reason == ReasonCancelled:
		if e.Remedy == "" {
			e.Remedy = remedy
		}
	}
	return e
}

// sleep waits for d, or until ctx ends, which it reports together with last.
func sleep(ctx context.Context, d time.Duration, last *Error) *Error {
	if ctx.Err() != nil {
		return gaveUp(ctx.Err(), last)
	}
	if d <= 0 {
		return nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return gaveUp(ctx.Err(), last)
	}
}

// jitteredPause grows from 10 ms to 1 s; each is between half and the whole of that.
func jitteredPause(attempt int) time.Duration {
	const first, most = 10 * time.Millisecond, time.Second
	d := most
	if attempt < 7 {
		d = min(first<<attempt, most)
	}
	return d/2 + rand.N(d/2)
}
