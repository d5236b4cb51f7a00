package router

import (
	"context"
	"time"

	"github.com/almanacdb/almanac/internal/admission"
	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/clock"
	"github.com/almanacdb/almanac/internal/command"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/mvcc"
	"github.com/almanacdb/almanac/internal/timeline"
	"github.com/almanacdb/almanac/internal/wire"
)

// What is begun here has no goroutine that waits for it, so that a stream of many small
// calls costs few switches between goroutines. Only the straight way is gone without one:
// what would have to wait for its turn or for a route is not begun, and what has to be
// tried again goes on as if it had been asked for anew.

// ShortestBegun is the shortest time in which a begun call is sure to be answered: who
// waits for it looks at its deadline with every tick only.
const ShortestBegun = time.Second

// BeginTxn is Txn that does not wait. done is called once, within timeout, which is not
// below ShortestBegun, on a goroutine that must not be blocked. False means that nothing was
// begun: Txn can do it.
func (r *Router) BeginTxn(ctx context.Context, timeout time.Duration, txn *mvcc.Txn, done func(*mvcc.TxnResult, base.Timestamp, error)) bool {
	span, ok := hull(nil, txn)
	if !ok {
		return false
	}
	rt, ok := r.routes.get(span.Start)
	if !ok || !rt.desc.Span.Contains(span) {
		return false
	}
	if !r.gates.TryEnter(rt.desc.Range) {
		return false
	}
	env, err := command.Encode(command.Header{Kind: command.KindTxn}, txn)
	if err != nil {
		r.gates.Leave(rt.desc.Range)
		return false
	}
	timeout = min(r.opts.Timeout, callersPart(timeout))
	deadline := r.store.Clock().Mono().Add(timeout)
	r.propose(r.orderer(&rt, 0), rt.desc.Range, env, answersPart(timeout), func(res command.Result, err error) {
		r.gates.Leave(rt.desc.Range)
		if err == nil && res.Refusal != nil {
			err = res.Refusal
		}
		if err != nil && safe(err) {
			r.learn(&rt, err)
			go func() {
				ctx, cancel := r.until(ctx, deadline)
				defer cancel()
				done(r.txn(ctx, txn))
			}()
			return
		}
		done(res.Txn, res.Stamp, err)
	})
	return true
}

// BeginRead is Read of one span's newest versions that does not wait. done is called once,
// within timeout, on a goroutine that does other reads too. False means that nothing was
// begun: Read can do it.
func (r *Router) BeginRead(ctx context.Context, timeout time.Duration, span base.Span, done func(wire.ReadReply, error)) bool {
	rt, ok := r.routes.get(span.Start)
	if !ok || !rt.desc.Span.Contains(span) {
		return false
	}
	id := rt.desc.Range
	if r.store.Replica(id) == nil || r.store.Behind(id) || !r.gates.TryEnter(id) {
		return false
	}
	timeout = min(r.opts.Timeout, callersPart(timeout))
	deadline := r.store.Clock().Mono().Add(timeout)
	reads := []wire.Read{{Span: span}}
	begun := func(at base.Timestamp, err error) {
		var reply wire.ReadReply
		if err == nil {
			reply, err = r.store.ReadWithin(admission.Room(ctx), id, reads, at)
		}
		r.gates.Leave(id)
		if err != nil && (safe(err) || fault.KindOf(err) == fault.Deadline) {
			r.learn(&rt, err)
			go func() {
				ctx, cancel := r.until(ctx, deadline)
				defer cancel()
				done(r.Read(ctx, reads, Newest, 0))
			}()
			return
		}
		done(reply, err)
	}
	r.barriers.join(rt, true, 0, &barrierWaiter{deadline: deadline, begun: begun})
	return true
}

// BeginPublish is Publish that does not wait. done is called once, within timeout, on a
// goroutine that answers other publishes too. False means that nothing was begun: Publish
// can do it.
func (r *Router) BeginPublish(ctx context.Context, timeout time.Duration, topic string, events []timeline.NewEvent, done func([]Published, error)) bool {
	t, ok := r.topics.get(topic, r.store.Clock().Mono())
	if !ok {
		return false
	}
	results := make([]Published, len(events))
	chains, err := r.plan(&t, events, results, func(key []byte) (rt route, err error) {
		if rt, ok = r.routes.get(key); !ok {
			err = errNotKnown
		}
		return rt, err
	})
	if err != nil || len(chains) != 1 || len(chains[0].parts) != 1 {
		return false
	}
	to, p := chains[0].to, chains[0].parts[0]
	if !r.gates.TryEnter(to) {
		return false
	}
	p.deadline = r.store.Clock().Mono().Add(min(r.opts.Timeout, callersPart(timeout)))
	p.begun = func() {
		r.gates.Leave(to)
		if p.err != nil { // why may have to be looked up
			go func() {
				ctx, cancel := r.until(ctx, p.deadline)
				defer cancel()
				p.tell(results, r.topicGone(ctx, &t, p.err))
				done(results, nil)
			}()
			return
		}
		p.tell(results, nil)
		done(results, nil)
	}
	r.publishes.join(to, p)
	return true
}

var errNotKnown = fault.New(fault.Unavailable, "the route is not known yet")

// until gives ctx what is left of a deadline on the store's clock.
func (r *Router) until(ctx context.Context, deadline clock.Mono) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, deadline.Sub(r.store.Clock().Mono()))
}
