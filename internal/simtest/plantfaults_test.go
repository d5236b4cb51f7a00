package simtest

import (
	"slices"
	"time"

	pb "go.etcd.io/raft/v3/raftpb"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/replica"
	"github.com/almanacdb/almanac/internal/wire"
)

// Faults that strike at a moment which chance alone would hardly meet.

// trap waits for a message to arrive at any node, and springs once.
type trap struct {
	is     func(*wire.Message) bool
	strike func(at *node, from base.NodeID)
}

// set lays a trap; it is taken away after a while.
func (w *World) set(t *trap) {
	w.traps = append(w.traps, t)
	w.after(5*time.Second, func() { w.unset(t) })
}

func (w *World) unset(t *trap) {
	w.traps = slices.DeleteFunc(w.traps, func(u *trap) bool { return u == t })
}

// spring is told of what arrives.
func (w *World) spring(n *node, from base.NodeID, msgs []wire.Message) {
	for _, t := range slices.Clone(w.traps) {
		if slices.ContainsFunc(msgs, func(m wire.Message) bool { return t.is(&m) }) {
			w.unset(t)
			t.strike(n, from)
		}
	}
}

// anyRange returns a random range with its orderer, nil if it has none or is on one node.
func (w *World) anyRange() (*base.RangeDescriptor, *node) {
	d := &w.ranges[w.rng.IntN(len(w.ranges))]
	if len(d.Replicas) < 2 {
		return d, nil
	}
	return d, w.orderer(d.Range)
}

// other returns a random replica of a range on another node.
func (w *World) other(d *base.RangeDescriptor, n *node) base.ReplicaDescriptor {
	for {
		if r := d.Replicas[w.rng.IntN(len(d.Replicas))]; r.Node != n.id {
			return r
		}
	}
}

// slowLink delays one direction between two nodes so long that what is sent later by
// another way comes first.
func (m *nemesis) slowLink(*node) {
	from, to := m.w.anyNode().id, m.w.anyNode().id
	if from == to {
		return
	}
	m.slow(from, to, m.w.chance(0.5))
	m.healLater(500*time.Millisecond, 4*time.Second)
}

// slow delays calls from one node to another, and replication if that is wanted.
func (m *nemesis) slow(from, to base.NodeID, replication bool) {
	w := m.w
	delay := w.between(50*time.Millisecond, 400*time.Millisecond)
	w.tracef("nemesis: %d → %d takes %v", from, to, delay)
	f := w.calls.Faults(from, to)
	f.Delay, f.Jitter = delay, w.between(time.Millisecond, 100*time.Millisecond)
	w.calls.SetFaults(from, to, f)
	if replication {
		w.repl.SetFaults(from, to, f)
	}
}

// healLater takes cuts and slow links away.
func (m *nemesis) healLater(lo, hi time.Duration) {
	m.later(lo, hi, func() {
		m.w.tracef("nemesis: links heal")
		m.w.repl.Heal()
		m.w.calls.Heal()
	})
}

// handOverUnheard has a leader hand over, and hear nothing of what becomes of it: nothing
// at all, or nothing from the range's other replicas.
func (m *nemesis) handOverUnheard(*node) {
	w := m.w
	d, n := w.anyRange()
	if n == nil {
		return
	}
	m.handOver(d, n, w.other(d, n), func() {
		m.later(200*time.Microsecond, 2*time.Millisecond, func() {
			alone := w.chance(0.5)
			for _, peer := range w.nodes {
				if _, ok := d.ReplicaOn(peer.id); peer != n && (ok || alone) {
					w.cut(peer.id, n.id)
				}
			}
			m.healLater(100*time.Millisecond, 2*time.Second)
		})
	})
}

// handOver has a range's orderer hand over to a replica, the system range's as a node that
// stops does, or at once. then is called when it is told to for good.
func (m *nemesis) handOver(d *base.RangeDescriptor, n *node, to base.ReplicaDescriptor, then func()) {
	w := m.w
	prepared := d.Range == base.SystemRange && w.chance(0.7)
	w.tracef("nemesis: node %d is to hand range %d over to node %d", n.id, d.Range, to.Node)
	w.count.Transfers++
	life, tries := n.life, 0
	var ask func()
	ask = func() {
		if tries++; m.stopped || n.life != life || !n.up || tries > 50 {
			return
		}
		v := n.store.Replica(d.Range)
		if v == nil || !v.Orderer {
			return
		}
		n.deliver(func() { _ = n.store.Post(d.Range, replica.Transfer{To: to.Replica, Prepared: prepared}) })
		if o := v.Oracle; prepared && (o == nil || o.Bound.Millis()-o.TimeMS > 100) {
			w.after(20*time.Millisecond, ask)
			return
		}
		then()
	}
	ask()
}

// slowStamps has timestamps travel slowly to an orderer that asks for them, and mostly
// moves the oracle meanwhile, to where they travel fast from: then later ones come first.
func (m *nemesis) slowStamps(*node) {
	w := m.w
	d := &w.ranges[0]
	n, slow := w.orderer(d.Range), w.orderer(base.DefaultRange)
	if n == nil || slow == nil || n == slow {
		return
	}
	m.slow(n.id, slow.id, false)
	heal := func() { m.healLater(500*time.Millisecond, 2*time.Second) }
	if to := w.other(d, n); to.Node != slow.id {
		m.later(50*time.Millisecond, 300*time.Millisecond, func() { m.handOver(d, n, to, heal) })
		return
	}
	heal()
}

// lateOracle moves the oracle to a node that hears late of the others' clocks, and from
// there to a third, while the second is cut off from the others that vote for it. So the
// second's time is behind the third's.
func (m *nemesis) lateOracle(*node) {
	w := m.w
	d := &w.ranges[0]
	n := w.orderer(d.Range)
	if n == nil || len(d.Replicas) < 3 {
		return
	}
	if m.moving {
		return
	}
	m.moving = true
	late := w.other(d, n)
	w.tracef("nemesis: the oracle moves to node %d, which hears late of clocks", late.Node)
	f := w.calls.Faults(n.id, late.Node)
	f.Delay = w.between(150*time.Millisecond, 400*time.Millisecond)
	for _, r := range d.Replicas {
		w.calls.SetFaults(r.Node, late.Node, f)
	}
	m.handOver(d, n, late, func() { m.healLater(600*time.Millisecond, 900*time.Millisecond) })
	m.later(1800*time.Millisecond, 2500*time.Millisecond, func() {
		m.moving = false
		if second := w.orderer(d.Range); second != nil && second.id == late.Node {
			m.handOver(d, second, w.other(d, second), func() {
				m.later(300*time.Microsecond, 1500*time.Microsecond, func() { m.cutOff(d, second) })
			})
		}
	})
}

// cutFromVoters cuts a range's orderer off from the range's other replicas, and from
// nobody else.
func (m *nemesis) cutFromVoters(*node) {
	w := m.w
	d, n := w.anyRange()
	if n == nil {
		return
	}
	m.cutOff(d, n)
}

func (m *nemesis) cutOff(d *base.RangeDescriptor, n *node) {
	w := m.w
	w.tracef("nemesis: node %d is cut off from the other replicas of range %d", n.id, d.Range)
	for _, r := range d.Replicas {
		if r.Node != n.id {
			w.cut(n.id, r.Node)
			w.cut(r.Node, n.id)
		}
	}
	m.healLater(300*time.Millisecond, 3*time.Second)
}

// dieAtVote lets a range's leader vanish, a voter die as it is asked for its vote, and the
// one that it voted for vanish in turn.
func (m *nemesis) dieAtVote(*node) {
	w := m.w
	d, n := w.anyRange()
	if n == nil {
		return
	}
	r := d.Range
	w.tracef("nemesis: node %d vanishes; who is asked for its vote in range %d will die", n.id, r)
	w.partition([]base.NodeID{n.id})
	w.set(&trap{
		is: func(m *wire.Message) bool {
			return m.Replication != nil && m.Replication.Range == r && pb.MessageType(m.Replication.Type) == pb.MsgVote
		},
		strike: func(at *node, from base.NodeID) {
			at.armed, at.armedAt, at.survive = 1, "log commit", none
			if w.chance(0.3) {
				at.armed, at.armedAt = 1+w.rng.IntN(4), ""
			}
			w.after(w.between(time.Millisecond, 5*time.Millisecond), func() {
				if !m.stopped {
					w.tracef("nemesis: node %d, which asked for votes, vanishes", from)
					w.partition([]base.NodeID{from})
				}
			})
		},
	})
	m.later(3*time.Second, 5*time.Second, func() {
		w.tracef("nemesis: partition ends")
		w.partition(nil)
	})
}

// dieAtSnapshot keeps a node away until it needs a snapshot, and lets it die when one
// comes.
func (m *nemesis) dieAtSnapshot(n *node) {
	w := m.w
	w.tracef("nemesis: node %d vanishes; when a snapshot comes its receiver will die", n.id)
	w.partition([]base.NodeID{n.id})
	m.later(time.Second, 4*time.Second, func() {
		w.tracef("nemesis: partition ends")
		w.partition(nil)
		w.set(&trap{
			is: func(m *wire.Message) bool { return m.Call != nil && m.Call.Method == wire.MethodSnapshotFile },
			strike: func(at *node, _ base.NodeID) {
				at.armed, at.armedAt, at.survive = 1+w.rng.IntN(2), "state ingest", none
				if w.chance(0.3) {
					at.armed, at.armedAt = 1+w.rng.IntN(10), ""
				}
			},
		})
	})
}
