package transport

import (
	"container/heap"
	"slices"
	"time"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/clock"
	"github.com/almanacdb/almanac/internal/invariant"
	"github.com/almanacdb/almanac/internal/wire"
)

// Rand is a source of randomness, for example a seeded math/rand/v2 generator.
type Rand interface{ Uint64() uint64 }

// Faults say how a link from one node to another misbehaves. The probabilities are in
// [0, 1], for each message.
type Faults struct {
	Delay     time.Duration // every message takes this long, at least a nanosecond
	Jitter    time.Duration // plus up to this
	Loss      float64
	Duplicate float64 // arrives a second time, on its own way
	Reorder   float64 // may overtake earlier messages of its class
	Cut       bool    // loses everything
	Capacity  int     // messages under way per class above which Send refuses; 0: any
}

// Network is a simulated network in memory. It is single-threaded: nothing moves but in
// Step and DeliverUntil, and the same seed and calls give the same deliveries in the
// same order. Every message passes through the wire codec.
type Network struct {
	rand     Rand
	clock    *clock.Manual
	nodes    map[base.NodeID]*Endpoint
	defaults Faults
	faults   map[route]Faults
	lanes    map[lane]*laneState
	parts    map[base.NodeID]int // nodes in different parts don't reach each other
	seq      uint64
	pending  packets
	trace    func(TraceEvent)
}

// route is one direction between two nodes.
type route struct{ from, to base.NodeID }

// lane is one class on a route; it keeps order.
type lane struct {
	route
	class Class
}

type laneState struct {
	last  clock.Mono // when its last message in order arrives
	count int        // messages under way
}

// NewNetwork returns a network without nodes, whose links deliver after a nanosecond.
func NewNetwork(rand Rand, c *clock.Manual) *Network {
	return &Network{
		rand: rand, clock: c,
		nodes:  make(map[base.NodeID]*Endpoint),
		faults: make(map[route]Faults),
		lanes:  make(map[lane]*laneState),
	}
}

// Endpoint is one node's Transport, from Attach until the node goes down.
type Endpoint struct {
	net     *Network
	node    base.NodeID
	handler Handler
}

var _ Transport = (*Endpoint)(nil)

// Attach connects a node and returns its transport. A node that was attached before goes
// down first.
func (n *Network) Attach(node base.NodeID, h Handler) *Endpoint {
	e := &Endpoint{net: n, node: node, handler: h}
	n.nodes[node] = e
	return e
}

// Down disconnects a node: its endpoint refuses to send, and what is under way to it is
// lost, even if the node is attached again before it would have arrived.
func (n *Network) Down(node base.NodeID) { delete(n.nodes, node) }

// SetDefault sets the faults of all routes that have none of their own.
func (n *Network) SetDefault(f Faults) { n.defaults = f }

// SetFaults sets the faults of the route from one node to another.
func (n *Network) SetFaults(from, to base.NodeID, f Faults) { n.faults[route{from, to}] = f }

// Faults returns the faults of a route.
func (n *Network) Faults(from, to base.NodeID) Faults {
	if f, ok := n.faults[route{from, to}]; ok {
		return f
	}
	return n.defaults
}

// Cut cuts the route from one node to another, in that direction alone. What is under
// way still arrives.
func (n *Network) Cut(from, to base.NodeID) {
	f := n.Faults(from, to)
	f.Cut = true
	n.SetFaults(from, to, f)
}

// Partition keeps apart nodes of different parts; nodes not named form one more part.
// It replaces the partition before it.
func (n *Network) Partition(parts ...[]base.NodeID) {
	n.parts = make(map[base.NodeID]int)
	for i, part := range parts {
		for _, node := range part {
			n.parts[node] = i + 1
		}
	}
}

// Heal ends all partitions and gives every route the default faults.
func (n *Network) Heal() {
	n.parts = nil
	clear(n.faults)
}

// Send implements Transport. A node that is down or cut off is not told so: messages to
// it are lost.
func (e *Endpoint) Send(to base.NodeID, class Class, msgs ...wire.Message) bool {
	n := e.net
	if n.nodes[e.node] != e || to == e.node || class >= classes {
		return false
	}
	for i := range msgs {
		if wire.Size(&msgs[i]) > MaxMessage {
			return false
		}
	}
	l := lane{route{e.node, to}, class}
	f := n.Faults(e.node, to)
	if s := n.lane(l); f.Capacity > 0 && s.count > 0 && s.count+len(msgs) > f.Capacity {
		n.note(TraceRefused, &packet{lane: l, seq: n.seq}, nil)
		return false
	}
	for i := range msgs {
		n.send(l, &f, &msgs[i])
	}
	return true
}

func (n *Network) lane(l lane) *laneState {
	s := n.lanes[l]
	if s == nil {
		s = &laneState{}
		n.lanes[l] = s
	}
	return s
}

// send decides one message's fate.
func (n *Network) send(l lane, f *Faults, m *wire.Message) {
	p := &packet{lane: l, frame: wire.AppendFrame(nil, []wire.Message{*m}), target: n.nodes[l.to]}
	p.seq = n.nextSeq()
	n.note(TraceSent, p, m)
	if f.Cut || n.parts[l.from] != n.parts[l.to] || n.chance(f.Loss) {
		n.note(TraceLost, p, m)
		return
	}
	n.schedule(p, f)
	if n.chance(f.Duplicate) {
		again := *p
		again.frame = slices.Clone(p.frame)
		again.seq = n.nextSeq()
		n.note(TraceDuplicated, &again, m)
		n.schedule(&again, f)
	}
}

func (n *Network) nextSeq() uint64 {
	n.seq++
	return n.seq
}

func (n *Network) schedule(p *packet, f *Faults) {
	delay := max(f.Delay, 1)
	if f.Jitter > 0 {
		delay += time.Duration(n.rand.Uint64() % uint64(f.Jitter))
	}
	s := n.lane(p.lane)
	p.at = n.clock.Mono().Add(delay)
	if !n.chance(f.Reorder) {
		p.at = max(p.at, s.last)
		s.last = p.at
	}
	s.count++
	heap.Push(&n.pending, p)
}

// chance draws only where there is something to decide.
func (n *Network) chance(p float64) bool {
	return p > 0 && float64(n.rand.Uint64()>>11)/(1<<53) < p
}

// Next returns when the next message arrives; ok is false if none is under way.
func (n *Network) Next() (at clock.Mono, ok bool) {
	if len(n.pending) == 0 {
		return 0, false
	}
	return n.pending[0].at, true
}

// Step advances the clock to the next arrival, if that is ahead, and delivers that one
// message. It returns false if none is under way.
func (n *Network) Step() bool {
	if len(n.pending) == 0 {
		return false
	}
	p := heap.Pop(&n.pending).(*packet)
	n.lanes[p.lane].count--
	n.advance(p.at)
	msgs, err := wire.DecodeMessages(p.frame)
	if err != nil {
		invariant.Violated("the codec does not read what it wrote: %v", err)
	}
	if p.target == nil || n.nodes[p.to] != p.target {
		n.note(TraceLost, p, &msgs[0])
		return true
	}
	n.note(TraceDelivered, p, &msgs[0])
	p.target.handler.Receive(p.from, msgs)
	return true
}

// DeliverUntil delivers what arrives up to now, in order, and leaves the clock there.
func (n *Network) DeliverUntil(now clock.Mono) {
	for len(n.pending) > 0 && n.pending[0].at <= now {
		n.Step()
	}
	n.advance(now)
}

func (n *Network) advance(to clock.Mono) {
	if d := to.Sub(n.clock.Mono()); d > 0 {
		n.clock.Advance(d)
	}
}

// packet is one message under way.
type packet struct {
	lane
	at     clock.Mono
	seq    uint64
	frame  []byte
	target *Endpoint // who was there when it was sent
}

// packets is a heap by arrival, then by sequence.
type packets []*packet

func (h packets) Len() int      { return len(h) }
func (h packets) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h packets) Less(i, j int) bool {
	if h[i].at != h[j].at {
		return h[i].at < h[j].at
	}
	return h[i].seq < h[j].seq
}

// Push implements heap.Interface.
func (h *packets) Push(x any) { *h = append(*h, x.(*packet)) }

// Pop implements heap.Interface.
func (h *packets) Pop() any {
	old := *h
	p := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return p
}
