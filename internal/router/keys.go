package router

import (
	"bytes"
	"context"
	"time"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/command"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/keys"
	"github.com/almanacdb/almanac/internal/mvcc"
	"github.com/almanacdb/almanac/internal/wire"
)

// Range does reads at one timestamp. A read with its own Range.At is exact at that; the
// others read at `at`; with at == 0 they are linearizable at a fresh timestamp or, if
// local, at what the local replica has applied (K9). The timestamp is returned; one
// that the oracle has not issued is a FutureRevision (K5).
func (r *Router) Range(ctx context.Context, ops []mvcc.Op, at base.Timestamp, local bool) ([]mvcc.RangeResult, base.Timestamp, error) {
	results := make([]mvcc.RangeResult, len(ops))
	var reads []wire.Read
	var into []int
	newest := base.Timestamp(0)
	for i := range ops {
		newest = max(newest, ops[i].Range.At)
		if empty(ops[i].Span) {
			continue
		}
		reads = append(reads, wire.Read{Span: ops[i].Span, Options: ops[i].Range})
		into = append(into, i)
	}
	if len(reads) == 0 || (newest != 0 && at == 0) {
		// A fresh timestamp is at or above all that were issued before: one that is
		// asked for and is above it has not been issued.
		fresh, err := r.FreshTimestamp(ctx)
		if err != nil {
			return nil, 0, err
		}
		if newest > fresh {
			return nil, fresh, fault.New(fault.FutureRevision, "revision %d has not been issued yet; the newest is %d", newest, fresh).
				WithRemedy("use a revision that a read or write returned")
		}
		if at == 0 {
			at = fresh
		}
	}
	if len(reads) == 0 {
		return results, at, nil
	}
	consistency := At
	if at == 0 {
		consistency = Fresh
		if local {
			consistency = Local
		}
	}
	reply, err := r.Read(ctx, reads, consistency, at)
	if err != nil {
		return nil, 0, err
	}
	for i, res := range reply.Results {
		results[into[i]] = res
	}
	return results, reply.At, nil
}

func empty(s base.Span) bool {
	return len(s.End) > 0 && bytes.Compare(s.End, s.Start) <= 0
}

// FreshTimestamp fetches a timestamp above all issued before the call.
func (r *Router) FreshTimestamp(ctx context.Context) (base.Timestamp, error) {
	ctx, cancel := r.bound(ctx)
	defer cancel()
	for attempt := 0; ; attempt++ {
		ch := make(chan answer[base.Timestamp], 1)
		r.store.FetchStamps(1, func(t base.Timestamp, err error) { ch <- answer[base.Timestamp]{t, err} })
		var err error
		select {
		case a := <-ch:
			if a.err == nil {
				return a.v, nil
			}
			err = a.err
		case <-ctx.Done():
		}
		if !pause(ctx, attempt) {
			system := r.systemRoute()
			return 0, outOfTime(ctx, &system, err)
		}
	}
}

// Txn commits a transaction in one log entry and returns its commit timestamp.
func (r *Router) Txn(ctx context.Context, txn *mvcc.Txn) (*mvcc.TxnResult, base.Timestamp, error) {
	ch := make(chan answer[command.Result], 1)
	timeout := r.opts.Timeout
	if at, ok := ctx.Deadline(); ok {
		timeout = time.Until(at)
	}
	if timeout < ShortestBegun || !r.BeginTxn(ctx, timeout, txn, func(res *mvcc.TxnResult, at base.Timestamp, err error) {
		ch <- answer[command.Result]{command.Result{Txn: res, Stamp: at}, err}
	}) {
		return r.txn(ctx, txn)
	}
	select {
	case a := <-ch:
		return a.v.Txn, a.v.Stamp, a.err
	case <-ctx.Done():
		return nil, 0, fault.Wrap(fault.UnknownOutcome, ctx.Err(), "no answer came in time; the write may or may not take effect")
	}
}

// txn is Txn by a goroutine that waits, as often as it takes.
func (r *Router) txn(ctx context.Context, txn *mvcc.Txn) (*mvcc.TxnResult, base.Timestamp, error) {
	span, ok := hull(nil, txn)
	if !ok {
		return nil, 0, fault.New(fault.Invalid, "the transaction touches no key").WithRemedy("name at least one")
	}
	res, err := r.Propose(ctx, span, command.Header{Kind: command.KindTxn}, txn)
	if err != nil {
		return nil, 0, err
	}
	if res.Refusal != nil {
		return nil, res.Stamp, res.Refusal
	}
	return res.Txn, res.Stamp, nil
}

// hull returns the smallest span that holds all that a transaction touches.
func hull(into *base.Span, txn *mvcc.Txn) (base.Span, bool) {
	var h base.Span
	have := into != nil
	if have {
		h = *into
	}
	add := func(s base.Span) {
		switch {
		case !have:
			h, have = s, true
			return
		case bytes.Compare(s.Start, h.Start) < 0:
			h.Start = s.Start
		}
		if len(s.End) == 0 || (len(h.End) > 0 && bytes.Compare(s.End, h.End) > 0) {
			h.End = s.End
		}
	}
	for i := range txn.Compares {
		add(txn.Compares[i].Span)
	}
	for _, branch := range [...][]mvcc.Op{txn.Then, txn.Else} {
		for i := range branch {
			if op := &branch[i]; op.Kind != mvcc.OpTxn {
				add(op.Span)
			} else if inner, ok := hull(nil, op.Txn); ok {
				add(inner)
			}
		}
	}
	return h, have
}

// Compact raises the default keyspace's history horizon; it returns once every range of
// the keyspace has applied it (K8).
func (r *Router) Compact(ctx context.Context, at base.Timestamp) (base.Timestamp, error) {
	fresh, err := r.FreshTimestamp(ctx)
	if err != nil {
		return 0, err
	}
	if at > fresh {
		return fresh, fault.New(fault.FutureRevision, "revision %d has not been issued yet; the newest is %d", at, fresh).
			WithRemedy("use a revision that a read or write returned")
	}
	span := keys.KeyspaceSpan(base.DefaultKeyspace)
	// An advance first, so that the horizon is not above the range's clock.
	if _, err := r.Propose(ctx, span, command.Header{Kind: command.KindAdvance, Time: fresh}, nil); err != nil {
		return fresh, err
	}
	res, err := r.Propose(ctx, span, command.Header{Kind: command.KindSetHorizon}, &command.SetHorizon{Span: span, Horizon: at})
	if err == nil && res.Refusal != nil {
		err = res.Refusal
	}
	return fresh, err
}
