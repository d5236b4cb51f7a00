package router

import (
	"context"
	"sync"

	"github.com/almanacdb/almanac/internal/admission"
	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/clock"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/replica"
	"github.com/almanacdb/almanac/internal/wire"
)

// Consistency is what a read asks for (K7).
type Consistency uint8

// Consistencies.
const (
	Fresh  Consistency = iota // linearizable, at a fresh timestamp that is returned
	At                        // exact, at a given timestamp
	Newest                    // linearizable, the newest versions of one range, no timestamp
	Local                     // whatever the nearest replica has applied
)

// Read reads spans, all of one range, in one go.
func (r *Router) Read(ctx context.Context, reads []wire.Read, c Consistency, at base.Timestamp) (wire.ReadReply, error) {
	ctx, cancel := r.bound(ctx)
	defer cancel()
	req := wire.ReadRequest{At: at, Newest: c == Newest, Local: c == Local, Reads: reads}
	var rt route
	var err error
	for attempt := 0; ; attempt++ {
		rt, err = r.lookup(ctx, reads[0].Span.Start)
		for i := 0; err == nil && i < len(reads); i++ {
			if !rt.desc.Span.Contains(reads[i].Span) {
				return wire.ReadReply{}, fault.New(fault.Unimplemented, "the read touches more than one range").
					WithRemedy("reads across ranges are not built yet; split the request")
			}
		}
		if err == nil {
			if err := r.gates.Enter(ctx, rt.desc.Range); err != nil {
				return wire.ReadReply{}, err
			}
			defer r.gates.Leave(rt.desc.Range)
			return r.readRange(ctx, rt, req)
		}
		if !safe(err) {
			return wire.ReadReply{}, err
		}
		if !pause(ctx, attempt) {
			return wire.ReadReply{}, outOfTime(ctx, &rt, err)
		}
	}
}

// readRange reads one range: through the local replica if there is one that keeps up, else
// through the orderer's node.
func (r *Router) readRange(ctx context.Context, rt route, req wire.ReadRequest) (wire.ReadReply, error) {
	var err error
	for attempt := 0; ; attempt++ {
		var reply wire.ReadReply
		if r.store.Replica(rt.desc.Range) != nil && !r.store.Behind(rt.desc.Range) {
			reply, err = r.readHere(ctx, &rt, &req, attempt)
		} else {
			reply, err = r.readThere(ctx, &rt, &req, attempt)
		}
		if err == nil || (!safe(err) && fault.KindOf(err) != fault.Deadline) {
			return reply, err
		}
		r.learn(&rt, err)
		if !pause(ctx, attempt) {
			return reply, outOfTime(ctx, &rt, err)
		}
		if again, lookupErr := r.lookupAgain(ctx, rt); lookupErr == nil {
			rt = again
		}
	}
}

// lookupAgain looks a route up anew if it was dropped; the system range's is known.
func (r *Router) lookupAgain(ctx context.Context, rt route) (route, error) {
	if rt.desc.Range == base.SystemRange {
		return r.systemRoute(), nil
	}
	return r.lookup(ctx, rt.desc.Span.Start)
}

func (r *Router) readHere(ctx context.Context, rt *route, req *wire.ReadRequest, attempt int) (wire.ReadReply, error) {
	if req.Local {
		return r.store.ReadWithin(admission.Room(ctx), rt.desc.Range, req.Reads, 0)
	}
	at, err := r.barriers.wait(ctx, rt, req, attempt)
	if err != nil {
		return wire.ReadReply{}, err
	}
	return r.store.ReadWithin(admission.Room(ctx), rt.desc.Range, req.Reads, at)
}

func (r *Router) readThere(ctx context.Context, rt *route, req *wire.ReadRequest, attempt int) (wire.ReadReply, error) {
	ch := make(chan answer[[]byte], 1)
	timeout := min(left(ctx), r.opts.Attempt)
	r.store.Call(r.orderer(rt, attempt), wire.MethodRead, rt.desc.Range, req.Append(nil), timeout, func(b []byte, err error) {
		ch <- answer[[]byte]{b, err}
	})
	select {
	case a := <-ch:
		var reply wire.ReadReply
		if a.err == nil {
			if a.err = admission.Hold(ctx, len(a.v)); a.err == nil {
				a.err = reply.Decode(a.v)
			}
		}
		return reply, a.err
	case <-ctx.Done():
		return wire.ReadReply{}, outOfTime(ctx, rt, nil)
	}
}

// barrierBook shares barriers: all reads of a range on this node that want the same
// kind of barrier, and arrived before it was asked for, wait for one.
type barrierBook struct {
	router *Router
	mu     sync.Mutex
	ranges map[base.RangeID]*barrierQueue
}

type barrierQueue struct {
	fresh, newest shared
}

// shared is the barrier under way for a kind of read, and who waits for the next.
type shared struct {
	flying  bool
	waiting []*barrierWaiter
}

// barrierWaiter is a read that waits for a barrier: one of a waiting goroutine, or one that
// was only begun.
type barrierWaiter struct {
	deadline clock.Mono
	ch       chan answer[base.Timestamp]
	begun    func(base.Timestamp, error) // instead of ch
}

// tell tells all that waited for a barrier. What was only begun goes on together.
func tell(batch []*barrierWaiter, at base.Timestamp, err error) {
	n := 0
	for _, w := range batch {
		if w.ch != nil {
			w.ch <- answer[base.Timestamp]{at, err}
			continue
		}
		batch[n] = w
		n++
	}
	if begun := batch[:n]; n > 0 {
		go func() { // not on this goroutine: it is a worker's or a connection's
			for _, w := range begun {
				w.begun(at, err)
			}
		}()
	}
}

// wait returns once the local replica may serve the read, and at which timestamp.
func (b *barrierBook) wait(ctx context.Context, rt *route, req *wire.ReadRequest, attempt int) (base.Timestamp, error) {
	w := &barrierWaiter{deadline: b.router.deadline(ctx), ch: make(chan answer[base.Timestamp], 1)}
	if req.At != 0 {
		b.router.allow(*rt, replica.Barrier{At: req.At}, attempt, w.deadline, func(at base.Timestamp, err error) {
			w.ch <- answer[base.Timestamp]{at, err}
		})
	} else {
		b.join(*rt, req.Newest, attempt, w)
	}
	select {
	case a := <-w.ch:
		return a.v, a.err
	case <-ctx.Done():
		return 0, outOfTime(ctx, rt, nil)
	}
}

func (b *barrierBook) join(rt route, newest bool, attempt int, w *barrierWaiter) {
	b.mu.Lock()
	q := b.ranges[rt.desc.Range]
	if q == nil {
		q = &barrierQueue{}
		b.ranges[rt.desc.Range] = q
	}
	s := &q.fresh
	if newest {
		s = &q.newest
	}
	s.waiting = append(s.waiting, w)
	start := !s.flying
	s.flying = true
	b.mu.Unlock()
	if start {
		b.fly(rt, s, newest, attempt)
	}
}

// fly asks for one barrier for all that wait now, and for another when it is answered
// if more came meanwhile: a barrier serves only reads that arrived before it (T4, K4).
func (b *barrierBook) fly(rt route, s *shared, newest bool, attempt int) {
	b.mu.Lock()
	batch := s.waiting
	s.waiting = nil
	b.mu.Unlock()
	var latest clock.Mono
	for _, w := range batch {
		latest = max(latest, w.deadline)
	}
	latest = min(latest, b.router.store.Clock().Mono().Add(b.router.opts.Attempt))
	b.router.allow(rt, replica.Barrier{Newest: newest}, attempt, latest, func(at base.Timestamp, err error) {
		tell(batch, at, err)
		b.mu.Lock()
		again := len(s.waiting) > 0
		s.flying = again
		b.mu.Unlock()
		if again {
			// Not on this goroutine: it is a worker's or a connection's.
			go b.fly(rt, s, newest, 0)
		}
	})
}

// allow gets a barrier from the orderer and waits until the local replica has applied
// up to it.
func (r *Router) allow(rt route, b replica.Barrier, attempt int, deadline clock.Mono, done func(base.Timestamp, error)) {
	id, st := rt.desc.Range, r.store
	to := r.orderer(&rt, attempt)
	if to == st.Node() {
		b.Apply, b.Deadline = true, deadline
		b.Done = func(reply replica.BarrierReply, err error) { done(reply.At, err) }
		st.Barrier(id, &b)
		return
	}
	body := (&wire.Barrier{At: b.At, Newest: b.Newest}).Append(nil)
	timeout := deadline.Sub(st.Clock().Mono())
	st.Call(to, wire.MethodBarrier, id, body, timeout, func(body []byte, err error) {
		var m wire.BarrierReply
		if err == nil {
			err = m.Decode(body)
		}
		if err != nil {
			done(0, err)
			return
		}
		st.WaitApplied(id, m.Mark, deadline, func(err error) { done(m.At, err) })
	})
}
