package simtest

import (
	"math/rand/v2"
	"time"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/effect"
	"github.com/almanacdb/almanac/internal/transport"
	"github.com/almanacdb/almanac/internal/wire"
)

// Two networks, because faults differ by class: over gRPC nothing arrives twice and a
// class keeps its order, and calls count on that; replication withstands anything.

func (w *World) buildNetwork() {
	w.repl = transport.NewNetwork(rand.NewPCG(w.cfg.Seed, 2), w.now)
	w.calls = transport.NewNetwork(rand.NewPCG(w.cfg.Seed, 3), w.now)
	newest := make(map[[3]int]uint64) // sequence of the newest message that arrived, by lane
	w.repl.Trace(func(e transport.TraceEvent) {
		w.traceMessage(e)
		switch lane := [3]int{int(e.From), int(e.To), int(e.Class)}; e.Kind {
		case transport.TraceLost:
			w.count.Lost++
		case transport.TraceDuplicated:
			w.count.Duplicated++
		case transport.TraceDelivered:
			if e.Seq < newest[lane] {
				w.count.Overtaken++
			}
			newest[lane] = max(e.Seq, newest[lane])
		}
	})
	w.lost = make(map[[2]base.NodeID]bool)
	w.calls.Trace(func(e transport.TraceEvent) {
		w.traceMessage(e)
		if e.Kind == transport.TraceLost {
			w.peerLost(e.From, e.To)
			w.peerLost(e.To, e.From)
		}
	})
	w.goodNetwork()
}

// peerLost tells a node, a little later, that its connection to another broke: over gRPC
// no call is lost but with its connection.
func (w *World) peerLost(n, peer base.NodeID) {
	link := [2]base.NodeID{n, peer}
	if w.lost[link] {
		return
	}
	w.lost[link] = true
	w.count.Reset++
	w.after(w.between(time.Millisecond, 500*time.Millisecond), func() {
		delete(w.lost, link)
		node := w.node(n)
		node.deliver(func() { node.store.PeerLost(peer) })
	})
}

// peerGone tells all others, a little later, that a node's process no longer runs: who
// dials it is refused, now and then because of something else.
func (w *World) peerGone(gone *node) {
	for _, n := range w.nodes {
		if n == gone {
			continue
		}
		w.after(w.between(25*time.Millisecond, 150*time.Millisecond), func() {
			n.deliver(func() { n.store.PeerGone(gone.id) })
		})
	}
	w.count.Gone++
}

func (w *World) goodNetwork() {
	good := transport.Faults{Delay: 100 * time.Microsecond, Jitter: 600 * time.Microsecond}
	w.repl.SetDefault(good)
	w.calls.SetDefault(good)
}

func (w *World) healNetwork() {
	w.repl.Heal()
	w.calls.Heal()
	w.goodNetwork()
}

// badNetwork makes every link delay, lose, and where that is allowed repeat and reorder.
func (w *World) badNetwork() transport.Faults {
	f := transport.Faults{
		Delay:  w.between(100*time.Microsecond, 20*time.Millisecond),
		Jitter: w.between(time.Millisecond, 60*time.Millisecond),
		Loss:   w.rng.Float64() * 0.2,
	}
	w.calls.SetDefault(f)
	f.Duplicate, f.Reorder = w.rng.Float64()*0.3, w.rng.Float64()*0.3
	w.repl.SetDefault(f)
	return f
}

func (w *World) partition(part []base.NodeID) {
	w.repl.Partition(part)
	w.calls.Partition(part)
	w.cfg.Plant.partitioned(w, part)
}

func (w *World) cut(from, to base.NodeID) {
	w.repl.Cut(from, to)
	w.calls.Cut(from, to)
}

// port is a process's way into the networks.
type port struct {
	n           *node
	repl, calls *transport.Endpoint
}

type handler struct{ n *node }

// Receive implements transport.Handler.
func (h handler) Receive(from base.NodeID, msgs []wire.Message) { h.n.receive(from, msgs) }

func (w *World) attach(n *node) *port {
	return &port{n: n, repl: w.repl.Attach(n.id, handler{n}), calls: w.calls.Attach(n.id, handler{n})}
}

func (w *World) detach(n *node) {
	w.repl.Down(n.id)
	w.calls.Down(n.id)
}

// Send implements transport.Transport. The process may die before each message.
func (p *port) Send(to base.NodeID, class transport.Class, msgs ...wire.Message) bool {
	e := p.calls
	if class == transport.ClassReplication {
		e = p.repl
	}
	if class != transport.ClassReplication {
		p.n.point("send call")
		return e.Send(to, class, msgs...)
	}
	ok := true
	for i := range msgs {
		m := msgs[i].Replication
		p.n.point("send " + replicationNames[m.Type] + " " + rangeNames[m.Range])
		ok = e.Send(to, class, msgs[i]) && ok
	}
	return ok
}

// replicationNames are words for the types of replication messages that matter.
var replicationNames = map[effect.MessageType]string{
	3: "append", 4: "ack", 5: "candidacy", 6: "vote", 7: "snapshot", 8: "heartbeat", 9: "heartbeat answer",
}

// rangeNames are words for the ranges.
var rangeNames = map[base.RangeID]string{
	base.SystemRange: "system", base.DefaultRange: "keys", rangeOf(0): "events", rangeOf(partsPerRange): "events2",
}

// layout returns the ranges of a cluster of n nodes: three replicas each, going round.
func layout(n int) []base.RangeDescriptor {
	at := func(d base.RangeDescriptor, first int) base.RangeDescriptor {
		d.SpanEpoch, d.ConfigEpoch, d.Protocol = 1, 1, base.ProtocolRaft
		for i := range min(3, n) {
			node := base.NodeID((first+i)%n + 1)
			d.Replicas = append(d.Replicas, base.ReplicaDescriptor{Node: node, Replica: base.ReplicaID(i + 1), Role: base.RoleVoter})
		}
		return d
	}
	return []base.RangeDescriptor{
		at(systemRange, 0), at(keyRange, 1), at(topicRange(0), 2), at(topicRange(1), 3),
	}
}

func (w *World) systemNodes() []base.NodeID {
	var ids []base.NodeID
	for _, r := range w.ranges[0].Replicas {
		ids = append(ids, r.Node)
	}
	return ids
}

// nodesOf returns the nodes with a replica of a range.
func (w *World) nodesOf(r base.RangeID) []base.NodeID {
	var ids []base.NodeID
	for i := range w.ranges {
		if w.ranges[i].Range == r {
			for _, rep := range w.ranges[i].Replicas {
				ids = append(ids, rep.Node)
			}
		}
	}
	return ids
}
