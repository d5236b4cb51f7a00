package simtest

import (
	"bytes"
	"fmt"
	"hash/fnv"
	"time"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/keys"
	"github.com/almanacdb/almanac/internal/lincheck"
	"github.com/almanacdb/almanac/internal/wire"
)

// check holds the history and the final state to the invariants.
func (w *World) check() {
	if len(w.broken) > 0 {
		return
	}
	w.checkReplicas()
	w.checkAcked()
	w.checkSnapshots()
	w.checkEvents()
	w.checkKeys()
}

// checkReplicas: at rest, all replicas of a range hold the same state (invariant 7).
func (w *World) checkReplicas() {
	for i := range w.ranges {
		d := &w.ranges[i]
		var first *node
		var sum uint64
		for _, rep := range d.Replicas {
			n := w.node(rep.Node)
			v := n.store.Replica(d.Range)
			s, err := stateSum(n, d)
			switch {
			case err != nil:
				w.violated("node %d cannot read range %d: %v", n.id, d.Range, err)
			case first == nil:
				first, sum = n, s
			case v.LastStamp != first.store.Replica(d.Range).LastStamp || s != sum:
				w.violated("invariant 7: range %d differs between node %d at %v and node %d at %v",
					d.Range, first.id, first.store.Replica(d.Range).Applied, n.id, v.Applied)
			}
		}
	}
}

func stateSum(n *node, d *base.RangeDescriptor) (uint64, error) {
	h := fnv.New64a()
	for _, f := range keys.SpanFamilies {
		it, err := n.state.NewIter(keys.FamilySpan(f, d.Span))
		if err != nil {
			return 0, err
		}
		for ok := it.First(); ok; ok = it.Next() {
			v, err := it.Value()
			if err != nil {
				return 0, err
			}
			fmt.Fprintf(h, "%x %x\n", it.Key(), v)
		}
		if err := it.Close(); err != nil {
			return 0, err
		}
	}
	return h.Sum64(), nil
}

// keyNodes returns the nodes that hold the keys.
func (w *World) keyNodes() []*node {
	var ns []*node
	for _, id := range w.nodesOf(base.DefaultRange) {
		ns = append(ns, w.node(id))
	}
	return ns
}

// checkAcked: every acknowledged write is in every replica's history (invariant 1).
func (w *World) checkAcked() {
	for _, a := range w.load.acked {
		if a.stamp < w.load.asked {
			continue
		}
		reads := []wire.Read{{Span: base.PointSpan(logical(a.key))}}
		for _, n := range w.keyNodes() {
			reply, err := n.store.ReadLocal(base.DefaultRange, reads, a.stamp)
			if err != nil {
				w.violated("node %d cannot read at %v: %v", n.id, a.stamp, err)
				return
			}
			kvs := reply.Results[0].KVs
			ok := len(kvs) == 0
			if !a.deleted {
				ok = len(kvs) == 1 && kvs[0].ModRevision == a.stamp && bytes.Equal(kvs[0].Value, []byte(a.value))
			}
			if !ok {
				w.violated("invariant 1: %s = %q was acknowledged at %v; node %d has %v", a.key, a.value, a.stamp, n.id, kvs)
				return
			}
		}
	}
}

// checkSnapshots: what was read at a timestamp reads the same everywhere (invariant 11).
func (w *World) checkSnapshots() {
	reads := []wire.Read{{Span: keys.KeyspaceSpan(base.DefaultKeyspace)}}
	for _, s := range w.load.shots {
		if s.at < w.load.asked {
			continue
		}
		for _, n := range w.keyNodes() {
			reply, err := n.store.ReadLocal(base.DefaultRange, reads, s.at)
			if err != nil {
				w.violated("node %d cannot read at %v: %v", n.id, s.at, err)
				return
			}
			if now := fingerprint(s.at, reply.Results[0].KVs); *now != *s {
				w.violated("invariant 11: at %v there were %d keys, %x; in the end node %d has %d, %x", s.at, s.n, s.sum, n.id, now.n, now.sum)
				return
			}
		}
	}
}

// checkEvents: invariant 3, with true time as the judge, and that an event whose ack was
// acknowledged is not handed out to a session opened after that (invariant 5). No oracle
// runs ahead of the honest clocks, of which a majority of the voters always was.
func (w *World) checkEvents() {
	rules := lincheck.EventRules{EndMS: 1 << 60, EarlyMS: honestOffset.Milliseconds() + slackMS}
	for _, g := range groups {
		rules.Groups = append(rules.Groups, lincheck.Group{Topic: topicName, Name: groupName(g)})
	}
	if all := lincheck.CheckEvents(w.rec.Events(), rules).Violations; len(all) > 0 {
		invariant := 3
		if all[0].Kind == lincheck.AckUndone {
			invariant = 5
		}
		w.violated("invariant %d: %v", invariant, all[0])
	}
}

// checkKeys: invariants 2 and 9.
func (w *World) checkKeys() {
	v, err := lincheck.CheckKeys(w.rec.Keys(), 10*time.Second, w.cfg.Dir)
	switch {
	case err != nil:
		w.violated("the checker failed: %v", err)
	case !v.OK():
		w.violated("invariant 2: %v", v)
	}
}
