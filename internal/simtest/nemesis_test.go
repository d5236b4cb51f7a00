package simtest

import (
	"slices"
	"time"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/replica"
)

// nemesis does harm at random, one thing after another; what it does may overlap.
type nemesis struct {
	w       *World
	stopped bool
	pace    time.Duration
	faults  []func(*node)
	stepped bool // a wall clock is stepped, or was a moment ago
	moving  bool // the oracle is on its way round; see lateOracle
}

// start chooses what this run suffers from: not everything, and not as often in each, for
// faults hide one another.
func (m *nemesis) start() {
	w := m.w
	w.harm = true
	m.pace = w.between(150*time.Millisecond, 1500*time.Millisecond)
	if w.cfg.LoseDisks {
		m.faults = slices.Repeat([]func(*node){m.loseDisks}, 12)
	}
	for _, k := range m.kinds() {
		if w.chance(0.3) {
			continue
		}
		for range 1 + w.rng.IntN(k.weight) {
			m.faults = append(m.faults, k.strike)
		}
	}
	if p := w.cfg.Plant; p != nil && p.focus != nil {
		m.pace, m.faults = time.Second, p.focus.faults(m)
	}
	w.after(w.between(2*time.Second, 3*time.Second), m.strike)
}

type faultKind struct {
	weight int
	strike func(*node)
}

func (m *nemesis) kinds() []faultKind {
	w := m.w
	return []faultKind{
		{6, func(n *node) {
			w.tracef("nemesis: power loss of node %d", n.id)
			if n.up {
				n.crash(w.partly)
				n.restartLater()
			}
		}},
		{4, func(n *node) {
			w.tracef("nemesis: node %d is killed", n.id)
			if n.up {
				w.count.Kills++
				n.crash(all)
				n.restartLater()
			}
		}},
		{10, func(n *node) {
			n.armed, n.survive = 1+w.rng.IntN(60), w.partly
			if w.chance(0.3) {
				n.survive = all
			}
			w.tracef("nemesis: node %d will die at its point %d", n.id, n.armed)
		}},
		{3, m.failDisk},
		{2, m.loseDisks},
		{1, func(*node) { m.powerCut() }},
		{6, func(n *node) { n.pause(w.between(20*time.Millisecond, 3*time.Second)) }},
		{6, func(*node) { m.partition() }},
		{6, func(*node) { m.cut() }},
		{4, func(*node) { m.badLinks() }},
		{3, m.stepWall},
		{6, func(*node) { m.transfer() }},
		{3, m.slowDisk},
		{2, m.slowLink},
		{3, m.handOverUnheard},
		{3, m.slowStamps},
		{2, m.lateOracle},
		{3, m.cutFromVoters},
		{3, m.dieAtVote},
		{3, m.dieAtSnapshot},
		{3, m.rumour},
	}
}

func (m *nemesis) stop() { m.stopped, m.w.harm = true, false }

// later runs f unless the faults are over by then.
func (m *nemesis) later(lo, hi time.Duration, f func()) {
	m.w.after(m.w.between(lo, hi), func() {
		if !m.stopped {
			f()
		}
	})
}

func (m *nemesis) strike() {
	if m.stopped || len(m.faults) == 0 {
		return
	}
	m.faults[m.w.rng.IntN(len(m.faults))](m.w.anyNode())
	m.later(m.pace/10, 2*m.pace, m.strike)
}

// failDisk makes one step of a node's disks fail, once.
func (m *nemesis) failDisk(n *node) {
	steps := [...]string{"any", "log commit", "log sync", "log sync", "log sync", "state commit", "state flush", "state stage", "state ingest"}
	n.failAt = steps[m.w.rng.IntN(len(steps))]
	m.w.tracef("nemesis: node %d's disk will fail at its next %s", n.id, n.failAt)
}

func (m *nemesis) slowDisk(n *node) {
	m.w.count.SlowDisks++
	n.slow = m.w.between(time.Millisecond, 40*time.Millisecond)
	m.w.tracef("nemesis: node %d's disk is slow, %v a turn", n.id, n.slow)
	m.later(time.Second, 3*time.Second, func() { n.slow = 0 })
}

// rumour has the others take a node for gone, which may be alive.
func (m *nemesis) rumour(n *node) {
	m.w.count.Rumours++
	m.w.tracef("nemesis: node %d is taken for gone", n.id)
	m.w.peerGone(n)
}

func (m *nemesis) powerCut() {
	m.w.tracef("nemesis: all lose power")
	m.w.count.PowerCuts++
	for _, n := range m.w.nodes {
		if n.up {
			n.crash(m.w.partly)
			n.restartLater()
		}
	}
}

func (m *nemesis) partition() {
	w := m.w
	var part []base.NodeID
	for _, n := range w.nodes {
		if w.chance(0.4) {
			part = append(part, n.id)
		}
	}
	if n := w.orderer(base.DefaultRange); n != nil && w.chance(0.4) {
		part = []base.NodeID{n.id}
	}
	w.tracef("nemesis: partition of %v", part)
	w.count.Partitions++
	w.partition(part)
	m.later(100*time.Millisecond, 4*time.Second, func() {
		w.tracef("nemesis: partition ends")
		w.partition(nil)
	})
}

// orderer returns a node that takes itself for a range's orderer.
func (w *World) orderer(r base.RangeID) *node {
	for _, n := range w.nodes {
		if !n.up {
			continue
		}
		if v := n.store.Replica(r); v != nil && v.Orderer {
			return n
		}
	}
	return nil
}

func (m *nemesis) cut() {
	w := m.w
	from, to := w.anyNode().id, w.anyNode().id
	if w.chance(0.5) { // all of what one node hears, or says
		for _, n := range w.nodes {
			if n.id == from {
				continue
			}
			if to%2 == 0 {
				w.cut(from, n.id)
			} else {
				w.cut(n.id, from)
			}
		}
		w.tracef("nemesis: node %d is cut off in one direction", from)
	} else if from != to {
		w.cut(from, to)
		w.tracef("nemesis: %d → %d is cut", from, to)
	}
	w.count.OneWayCuts++
	m.later(100*time.Millisecond, 4*time.Second, func() {
		w.tracef("nemesis: cuts end")
		w.repl.Heal()
		w.calls.Heal()
	})
}

func (m *nemesis) badLinks() {
	f := m.w.badNetwork()
	m.w.count.BadLinks++
	m.w.tracef("nemesis: links are bad: %+v", f)
	m.later(500*time.Millisecond, 4*time.Second, func() {
		m.w.tracef("nemesis: links are good")
		m.w.goodNetwork()
	})
}

// stepWall steps one node's wall clock. Only one is off at a time, and for one more round
// of samples after that: then a majority of the voters is always honest (T2).
func (m *nemesis) stepWall(n *node) {
	if m.stepped || len(m.w.nodes) < 3 {
		return
	}
	m.stepped = true
	n.clock.step = m.w.between(-200*time.Second, 200*time.Second)
	m.w.count.WallSteps++
	m.w.tracef("nemesis: node %d's wall clock steps by %v", n.id, n.clock.step)
	m.later(500*time.Millisecond, 8*time.Second, func() {
		m.w.tracef("nemesis: node %d's wall clock is right", n.id)
		n.clock.step = 0
		m.later(3*time.Second, 4*time.Second, func() { m.stepped = false })
	})
}

func (m *nemesis) transfer() {
	w := m.w
	d := w.ranges[w.rng.IntN(len(w.ranges))]
	to := d.Replicas[w.rng.IntN(len(d.Replicas))].Replica
	w.count.Transfers++
	for _, rep := range d.Replicas {
		n := w.node(rep.Node)
		n.deliver(func() {
			if v := n.store.Replica(d.Range); v != nil && v.Orderer {
				w.tracef("nemesis: range %d is to be led by replica %d", d.Range, to)
				_ = n.store.Post(d.Range, replica.Transfer{To: to})
			}
		})
	}
}

// settle ends all faults and lets the cluster come to rest.
func (w *World) settle() {
	if len(w.broken) > 0 {
		return
	}
	w.tracef("faults end")
	w.load.stop()
	w.healNetwork()
	w.partition(nil)
	for _, n := range w.nodes {
		n.armed, n.failAt, n.slow, n.clock.step = 0, "", 0, 0
		if n.paused {
			n.resume()
		}
		n.start()
	}
	w.runUntil(w.mono().Add(settleTime), w.load.settled)
	if len(w.broken) == 0 && !w.load.settled() {
		w.violated("the cluster did not recover within %v: %s", settleTime, w.load.unsettled())
	}
	w.runUntil(w.mono().Add(settleTime), w.level)
	if len(w.broken) == 0 && !w.level() {
		w.violated("replicas still lag behind one another %v after all was well", settleTime)
	}
}

// level says that no replica is behind another.
func (w *World) level() bool {
	for i := range w.ranges {
		d := &w.ranges[i]
		var mark base.LogMark
		for j, rep := range d.Replicas {
			n := w.node(rep.Node)
			if !n.up {
				return false
			}
			v := n.store.Replica(d.Range)
			if v == nil { // it was lost, and is not back
				return false
			}
			if j > 0 && v.Applied != mark {
				return false
			}
			mark = v.Applied
		}
	}
	return true
}

// settleTime is how long recovery may take at most.
const settleTime = 30 * time.Second
