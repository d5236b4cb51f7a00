package simtest

import (
	"testing"
	"time"

	"github.com/almanacdb/almanac/internal/engine"
)

// A node may lose both disks, one node at a time: it comes back with empty ones, knows it,
// and gets its replicas back from the others. That is one failure more than a power loss,
// of which any number may happen beside it.

// freshDisks gives a node empty disks.
func (n *node) freshDisks() {
	n.log = engine.NewMem(engine.MemOptions{WAL: true, Fail: n.diskStep("log")})
	n.state = engine.NewMem(engine.MemOptions{Fail: n.diskStep("state")})
}

// loseDisks is the fault.
func (m *nemesis) loseDisks(n *node) {
	w := m.w
	if len(w.nodes) < 3 {
		return // nobody has a second copy
	}
	for _, other := range w.nodes {
		if other.lost {
			return
		}
	}
	w.tracef("nemesis: node %d loses its disks", n.id)
	w.count.DisksLost++
	if n.up {
		n.crash(w.partly)
		n.restartLater()
	}
	n.freshDisks()
	n.lost = true
}

// rebuild does what package node does: it tells the store which replicas are missing until
// none is. The catalogue is what the cluster was laid out with.
func (n *node) rebuild() {
	if !n.lost {
		return
	}
	if n.w.cfg.Plant.is(startsEmpty) {
		for _, d := range n.w.ranges {
			if _, ok := d.ReplicaOn(n.id); ok {
				_ = n.store.CreateReplica(d)
			}
		}
		n.lost = false
		return
	}
	if n.store.Rebuild(n.w.ranges) > 0 {
		return
	}
	n.w.tracef("node %d has all its replicas back", n.id)
	n.w.count.Rebuilt++
	n.store.Rebuilt()
	n.lost = false
}

// Nodes lose their disks again and again, among all other faults.
func TestDisksLost(t *testing.T) {
	var sum Counts
	for seed := uint64(301); seed <= 310; seed++ {
		cfg := Config{Seed: seed, Faults: 20 * time.Second, LoseDisks: true}
		res := simulate(t, cfg)
		sum.add(&res.Counts)
		report(t, cfg, res)
	}
	t.Logf("%+v", sum)
	if sum.DisksLost < 10 || sum.Rebuilt < 10 {
		t.Errorf("disks were lost %d times, and nodes rebuilt %d times", sum.DisksLost, sum.Rebuilt)
	}
}
