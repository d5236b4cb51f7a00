package store

import (
	"cmp"
	"container/heap"
	"slices"
	"sync"
	"time"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/clock"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/replica"
	"github.com/almanacdb/almanac/internal/transport"
	"github.com/almanacdb/almanac/internal/wire"
)

// Done takes the answer to a call, once. It must not block.
type Done func(body []byte, err error)

// callBook keeps the calls to other nodes that are under way.
type callBook struct {
	store *Store
	mu    sync.Mutex
	last  uint64
	calls map[uint64]*pendingCall
	due   callHeap
	stop  chan struct{}
	// closed: a call would get no answer any more.
	closed bool
}

type pendingCall struct {
	id       uint64
	to       base.NodeID
	class    transport.Class
	method   wire.Method
	deadline clock.Mono
	done     Done
}

// callGrace is how much longer than the callee the caller waits, so that the callee's
// more telling error wins.
const callGrace = 200 * time.Millisecond

func newCallBook(s *Store) *callBook {
	return &callBook{store: s, last: s.firstNumber(), calls: make(map[uint64]*pendingCall), stop: make(chan struct{})}
}

// firstNumber returns where this life of the node begins to number its calls and
// sessions: above those of earlier lives, so that an answer or a delivery that is late
// by a whole restart is not taken for another's. No life numbers a million a
// millisecond.
func (s *Store) firstNumber() uint64 { return uint64(max(0, s.opts.Clock.WallMS())) << 20 }

// Call asks a node, this one included, and gives the answer to done.
func (s *Store) Call(to base.NodeID, m wire.Method, r base.RangeID, body []byte, timeout time.Duration, done Done) {
	s.call(transport.ClassCalls, to, m, r, body, timeout, done)
}

// callBulk is Call for bodies of megabytes, which must not hold up others.
func (s *Store) callBulk(to base.NodeID, m wire.Method, r base.RangeID, body []byte, timeout time.Duration, done Done) {
	s.call(transport.ClassBulk, to, m, r, body, timeout, done)
}

func (s *Store) call(class transport.Class, to base.NodeID, m wire.Method, r base.RangeID, body []byte, timeout time.Duration, done Done) {
	call := &wire.Call{Method: m, Range: r, Body: body, TimeoutMS: uint32(max(1, timeout.Milliseconds()))}
	if to == s.opts.Node {
		s.handle(to, call, done)
		return
	}
	b := s.calls
	deadline := s.opts.Clock.Mono().Add(timeout + callGrace)
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		done(nil, fault.New(fault.Stopped, "node %d is shutting down", s.opts.Node))
		return
	}
	b.last++
	call.ID = b.last
	p := &pendingCall{id: call.ID, to: to, class: class, method: m, deadline: deadline, done: done}
	b.calls[p.id] = p
	b.wait(p)
	b.mu.Unlock()
	if !s.opts.Transport.Send(to, class, wire.Message{Call: call}) && b.take(to, p.id) != nil {
		done(nil, notSent(to))
	}
}

// manyAnswered is how many answered calls may wait for their deadline beside as many that
// are under way.
const manyAnswered = 1024

// wait adds a call to those that wait for their deadline. The answered ones among them are
// cleared away from time to time, so that what they hold is not kept for seconds, and each
// call costs little. Called with mu held.
func (b *callBook) wait(p *pendingCall) {
	if len(b.due) < 2*len(b.calls)+manyAnswered {
		heap.Push(&b.due, p)
		return
	}
	clear(b.due)
	b.due = b.due[:0]
	for _, p := range b.calls { // in any order: the heap has its own, which is total
		b.due = append(b.due, p)
	}
	heap.Init(&b.due)
}

func notSent(to base.NodeID) *fault.Error {
	return fault.New(fault.Unavailable, "node %d cannot be reached, or too much is queued for it", to)
}

func (b *callBook) take(to base.NodeID, id uint64) *pendingCall {
	b.mu.Lock()
	defer b.mu.Unlock()
	p := b.calls[id]
	if p == nil || p.to != to {
		return nil
	}
	delete(b.calls, id)
	answered := *p
	p.done = nil // what it holds is not kept until the deadline
	return &answered
}

func (b *callBook) reply(from base.NodeID, m *wire.Reply) {
	p := b.take(from, m.ID)
	if p == nil {
		return // answered too late
	}
	if m.Fault != nil {
		p.done(m.Body, m.Fault)
		return
	}
	p.done(m.Body, nil)
}

// lost is the error of a call that was sent and got no answer.
func (p *pendingCall) lost(why string) *fault.Error {
	switch p.method {
	case wire.MethodPropose:
		return fault.New(fault.UnknownOutcome, "node %d %s; the write may or may not take effect", p.to, why).
			WithRemedy("read the key back before trying again")
	case wire.MethodAdmin:
		return fault.New(fault.UnknownOutcome, "node %d %s; the change may or may not have been made", p.to, why).
			WithRemedy("look whether it was made before trying again")
	}
	return fault.New(fault.Unavailable, "node %d %s", p.to, why)
}

func (b *callBook) expire(now clock.Mono) {
	var late []*pendingCall
	b.mu.Lock()
	for len(b.due) > 0 && b.due[0].deadline <= now {
		p := heap.Pop(&b.due).(*pendingCall)
		if b.calls[p.id] == p {
			delete(b.calls, p.id)
			late = append(late, p)
		}
	}
	b.mu.Unlock()
	for _, p := range late {
		p.done(nil, p.lost("did not answer in time"))
	}
}

// PeerLost tells that the connection to a node broke: calls to it get no answer.
func (s *Store) PeerLost(n base.NodeID) {
	for _, p := range s.calls.takeAll(func(p *pendingCall) bool { return p.to == n }) {
		p.done(nil, p.lost("went away"))
	}
}

// PeerUnreachable tells that an attempt to connect to a node failed: calls that waited for
// a connection, because they came after PeerLost, were never sent.
func (s *Store) PeerUnreachable(n base.NodeID) {
	waited := func(p *pendingCall) bool { return p.to == n && p.class == transport.ClassCalls }
	for _, p := range s.calls.takeAll(waited) {
		p.done(nil, notSent(n))
	}
}

// PeerGone tells that the process of a node no longer runs, as far as this node can see:
// replicas that follow one there need not wait for its silence.
func (s *Store) PeerGone(n base.NodeID) {
	for _, v := range s.Replicas() {
		if v.Leader == n {
			_ = s.Post(v.Descriptor.Range, replica.PeerGone{Node: n})
		}
	}
}

// takeAll takes calls that are under way, oldest first.
func (b *callBook) takeAll(which func(*pendingCall) bool) (list []*pendingCall) {
	b.mu.Lock()
	for id, p := range b.calls {
		if which(p) {
			delete(b.calls, id)
			answered := *p
			p.done = nil
			list = append(list, &answered)
		}
	}
	b.mu.Unlock()
	slices.SortFunc(list, func(a, b *pendingCall) int { return cmp.Compare(a.id, b.id) })
	return list
}

func (b *callBook) run() {
	t := time.NewTicker(50 * time.Millisecond)
	defer t.Stop()
	for {
		select {
		case <-b.stop:
			return
		case <-t.C:
			b.store.Expire()
		}
	}
}

// close answers all calls under way. Called once.
func (b *callBook) close() {
	close(b.stop)
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	b.expire(clock.Mono(1<<63 - 1))
}

// callHeap orders calls by deadline, then id.
type callHeap []*pendingCall

func (h callHeap) Len() int { return len(h) }
func (h callHeap) Less(i, j int) bool {
	if h[i].deadline != h[j].deadline {
		return h[i].deadline < h[j].deadline
	}
	return h[i].id < h[j].id
}
func (h callHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *callHeap) Push(x any)   { *h = append(*h, x.(*pendingCall)) }
func (h *callHeap) Pop() any {
	old := *h
	n := len(old) - 1
	p := old[n]
	old[n] = nil
	*h = old[:n]
	return p
}
