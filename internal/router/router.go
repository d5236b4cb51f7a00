// Package router takes requests of any node to the ranges that they concern: it finds
// the range, asks its orderer, corrects what it knew wrong, and tries again what is safe
// to try again (K10, R5). It refuses to know what clients speak.
package router

import (
	"bytes"
	"context"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/almanacdb/almanac/internal/admission"
	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/clock"
	"github.com/almanacdb/almanac/internal/command"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/mvcc"
	"github.com/almanacdb/almanac/internal/store"
	"github.com/almanacdb/almanac/internal/wire"
)

// Options configure a Router.
type Options struct {
	Store  *store.Store
	Logger *slog.Logger
	// System returns the system range's descriptor.
	System func() base.RangeDescriptor
	// Timeout bounds a request whose context has no nearer deadline. Default 5 s.
	Timeout time.Duration
	// Attempt bounds one try of a request that is safe to try again. Default 1 s.
	Attempt time.Duration
	// Deliveries is the share of memory for what waits for slow subscribers; nil:
	// unbounded.
	Deliveries *admission.Pool
	// Gates let what clients read and write into the ranges; nil: all at once.
	Gates *admission.Gates
}

// Router routes requests. Safe for concurrent use.
type Router struct {
	opts      Options
	store     *store.Store
	routes    routeCache
	gates     *admission.Gates
	barriers  barrierBook
	publishes publishBook
	topics    topicCache
}

// New returns a router.
func New(o Options) *Router {
	if o.Timeout == 0 {
		o.Timeout = 5 * time.Second
	}
	if o.Attempt == 0 {
		o.Attempt = time.Second
	}
	if o.Gates == nil {
		o.Gates = &admission.Gates{}
	}
	r := &Router{opts: o, store: o.Store, gates: o.Gates}
	r.barriers.router = r
	r.barriers.ranges = make(map[base.RangeID]*barrierQueue)
	r.publishes.router = r
	r.publishes.choices = make(map[base.TopicID]*choice)
	r.publishes.ranges = make(map[base.RangeID]*publishQueue)
	r.topics.byName = make(map[string]cachedTopic)
	return r
}

var firstOnly = mvcc.RangeOptions{Limit: 1}

// bound gives ctx the router's timeout, or a nearer deadline.
func (r *Router) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	return within(ctx, r.opts.Timeout)
}

// within gives ctx a timeout, or a deadline a little before its own if that is nearer: a
// caller who waits until then still hears what stood in the way.
func within(ctx context.Context, timeout time.Duration) (context.Context, context.CancelFunc) {
	if at, ok := ctx.Deadline(); ok {
		timeout = min(timeout, callersPart(time.Until(at)))
	}
	return context.WithTimeout(ctx, timeout)
}

// callersPart leaves the caller who waits for so long time to hear the answer.
func callersPart(d time.Duration) time.Duration { return d - min(d/10, 100*time.Millisecond) }

// answersPart leaves room for the way back of the answer of one try.
func answersPart(d time.Duration) time.Duration {
	return max(time.Millisecond, d-min(d/10, 50*time.Millisecond))
}

// left returns how much of ctx's time is left, with room for the answer's way back.
func left(ctx context.Context) time.Duration {
	at, ok := ctx.Deadline()
	if !ok {
		return 5 * time.Second
	}
	return answersPart(time.Until(at))
}

// maxPause bounds the time between two attempts, and so what a request adds to a failover
// that it waits for: half as much more at most.
const maxPause = 100 * time.Millisecond

// pause waits before another attempt; false if ctx ended.
func pause(ctx context.Context, attempt int) bool {
	d := min(5*time.Millisecond<<min(attempt, 6), maxPause)
	t := time.NewTimer(d/2 + rand.N(d))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// safe says that an error means that nothing was done, and another try may succeed.
func safe(err error) bool {
	switch fault.KindOf(err) {
	case fault.NotLeader, fault.RangeNotFound, fault.WrongRange, fault.Restamp, fault.Unavailable, fault.Stopped:
		return true
	}
	return false
}

// outOfTime is the error of a request that was tried until its time ran out.
func outOfTime(ctx context.Context, rt *route, last error) error {
	if ctx.Err() == context.Canceled {
		return fault.Wrap(fault.Cancelled, ctx.Err(), "the caller went away")
	}
	var f *fault.Error
	switch why := fault.KindOf(last); {
	case rt.desc.Range == 0:
		f = fault.New(fault.Deadline, "the range could not be looked up in time")
	case why == fault.NotLeader || why == fault.Unavailable:
		f = fault.New(fault.Deadline, "range %d has no leader with a majority of its replicas", rt.desc.Range)
	default:
		f = fault.New(fault.Deadline, "range %d did not answer in time", rt.desc.Range)
	}
	f = f.OnRange(rt.desc.Range).WithRemedy("see `almanac cluster ranges` and bring its nodes back")
	if last != nil {
		f.Cause = last
	}
	return f
}

type answer[T any] struct {
	v   T
	err error
}

// Propose has a command ordered by the range that holds its span. A returned result
// may carry a refusal.
func (r *Router) Propose(ctx context.Context, span base.Span, h command.Header, body any) (command.Result, error) {
	env, err := command.Encode(h, body)
	if err != nil {
		return command.Result{}, err
	}
	ctx, cancel := r.bound(ctx)
	defer cancel()
	var rt route
	entered := h.Kind != command.KindTxn // clients' writes wait for their turn; see also publishBook
	for attempt := 0; ; attempt++ {
		var res command.Result
		rt, err = r.holder(ctx, span)
		if err == nil && !entered {
			id := rt.desc.Range
			if err := r.gates.Enter(ctx, id); err != nil {
				return res, err
			}
			defer r.gates.Leave(id)
			entered = true
		}
		if err == nil {
			res, err = r.proposeTo(ctx, r.orderer(&rt, attempt), rt.desc.Range, env, attempt > 0)
		}
		if err == nil && res.Refusal != nil && safe(res.Refusal) {
			err = res.Refusal
		}
		if err == nil || !safe(err) {
			return res, err
		}
		r.learn(&rt, err)
		if !pause(ctx, attempt) {
			return res, outOfTime(ctx, &rt, err)
		}
	}
}

// holder returns the range that holds a whole span.
func (r *Router) holder(ctx context.Context, span base.Span) (route, error) {
	rt, err := r.lookup(ctx, span.Start)
	if err == nil && !rt.desc.Span.Contains(span) {
		return rt, fault.New(fault.Unimplemented, "the request touches more than one range").
			WithRemedy("transactions across ranges are not built yet; split the request")
	}
	return rt, err
}

// proposeTo makes one try. The local replica keeps the envelope and stamps it in place, so
// that each try but the first must be another's copy.
func (r *Router) proposeTo(ctx context.Context, to base.NodeID, id base.RangeID, env []byte, again bool) (command.Result, error) {
	ch := make(chan answer[command.Result], 1)
	if again && to == r.store.Node() {
		env = bytes.Clone(env)
	}
	r.propose(to, id, env, left(ctx), func(res command.Result, err error) { ch <- answer[command.Result]{res, err} })
	select {
	case a := <-ch:
		return a.v, a.err
	case <-ctx.Done():
	}
	// The replica's own deadline comes a little before ours; give its answer, which
	// knows more, the last word.
	t := time.NewTimer(2 * time.Millisecond)
	defer t.Stop()
	select {
	case a := <-ch:
		return a.v, a.err
	case <-t.C:
		return command.Result{}, noAnswer(ctx, id)
	}
}

// propose has a node order a command. done is called once, on a goroutine that must not be
// blocked.
func (r *Router) propose(to base.NodeID, id base.RangeID, env []byte, timeout time.Duration, done func(command.Result, error)) {
	if to == r.store.Node() {
		r.store.Propose(id, env, r.store.Clock().Mono().Add(timeout), done)
		return
	}
	r.store.Call(to, wire.MethodPropose, id, env, timeout, func(body []byte, err error) {
		var res *command.Result
		if err == nil {
			res, err = command.DecodeResult(body)
		}
		if err != nil {
			done(command.Result{}, err)
			return
		}
		done(*res, nil)
	})
}

func noAnswer(ctx context.Context, id base.RangeID) error {
	return fault.Wrap(fault.UnknownOutcome, ctx.Err(),
		"no answer from range %d; the write may or may not take effect", id).OnRange(id)
}

// deadline turns what is left of ctx into a deadline on the store's clock.
func (r *Router) deadline(ctx context.Context) clock.Mono {
	return r.store.Clock().Mono().Add(left(ctx))
}
