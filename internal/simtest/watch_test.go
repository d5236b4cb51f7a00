package simtest

import (
	"cmp"
	"hash/fnv"
	"slices"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/logstore"
	"github.com/almanacdb/almanac/internal/replica"
	"github.com/almanacdb/almanac/internal/timeline"
)

// watcher looks at every replica after each of its turns.
type watcher struct {
	w       *World
	entries map[base.RangeID]map[uint64]seenEntry
	leaders map[rangeTerm]base.NodeID
	cursors map[groupAt]*cursorLine
}

type seenEntry struct {
	term uint64
	sum  uint64
	node base.NodeID
}

type rangeTerm struct {
	r    base.RangeID
	term uint64
}

type groupAt struct {
	partition base.PartitionID
	group     base.GroupID
}

// progress is what was seen of a replica in this life.
type progress struct {
	applied uint64
	term    uint64
	first   uint64
	stamp   base.Timestamp
	clock   base.Timestamp
}

func (o *watcher) init(w *World) {
	o.w = w
	o.entries = make(map[base.RangeID]map[uint64]seenEntry)
	o.leaders = make(map[rangeTerm]base.NodeID)
	o.cursors = make(map[groupAt]*cursorLine)
}

// turned looks at a node after one of its turns.
func (o *watcher) turned(n *node) {
	for _, v := range n.store.Replicas() {
		o.replica(n, v)
	}
}

func (o *watcher) replica(n *node, v *replica.Visible) {
	r := v.Descriptor.Range
	p := n.seen[r]
	if p == nil {
		// What this life found on disk was applied in an earlier one.
		p = &progress{applied: n.logs.Log(r).First() - 1}
		n.seen[r] = p
	}
	if v.Orderer {
		o.leader(n, r, v.Term)
	}
	if v.Applied.Index < p.applied || v.Term < p.term {
		o.w.violated("range %d on node %d went back from index %d, term %d to %d, %d",
			r, n.id, p.applied, p.term, v.Applied.Index, v.Term)
	}
	p.term = v.Term
	if v.LastStamp < p.stamp || v.Clock < p.clock {
		o.w.violated("K3: range %d on node %d fell from stamp %v, clock %v to %v, %v",
			r, n.id, p.stamp, p.clock, v.LastStamp, v.Clock)
	}
	p.stamp, p.clock = v.LastStamp, v.Clock
	if first := n.logs.Log(r).First(); first > p.first {
		if p.first != 0 {
			o.w.count.Truncations++
		}
		p.first = first
	}
	if v.Applied.Index > p.applied && logHolds(n.logs.Log(r), v.Applied) {
		o.applied(n, r, p.applied+1, v.Applied.Index)
		o.w.count.Applied += int(v.Applied.Index - p.applied)
		p.applied = v.Applied.Index
		o.groups(n, v)
	}
}

// logHolds says whether a log has what was applied. One that ends below, or has another entry
// there, has yet to be reset for a snapshot that was installed (S4).
func logHolds(l *logstore.Log, applied base.LogMark) bool {
	if applied.Index > l.Last() || applied.Index+1 < l.First() {
		return false
	}
	term, err := l.Term(applied.Index)
	return err == nil && term == applied.Term
}

// leader: one replica at most orders in a term.
func (o *watcher) leader(n *node, r base.RangeID, term uint64) {
	k := rangeTerm{r, term}
	switch was, ok := o.leaders[k]; {
	case !ok:
		o.leaders[k] = n.id
		o.w.count.Leaders++
	case was != n.id:
		o.w.violated("range %d has two orderers in term %d: nodes %d and %d", r, term, was, n.id)
	}
}

// applied compares the entries that a replica applied with what others did (invariant 7).
func (o *watcher) applied(n *node, r base.RangeID, from, to uint64) {
	l := n.logs.Log(r)
	from = max(from, l.First())
	known := o.entries[r]
	if known == nil {
		known = make(map[uint64]seenEntry)
		o.entries[r] = known
	}
	for from <= to {
		entries, err := l.Entries(from, to+1, 1<<20)
		if err != nil {
			o.w.violated("node %d cannot read what range %d applied at %d: %v", n.id, r, from, err)
			return
		}
		for i := range entries {
			e := &entries[i]
			s := seenEntry{term: e.Term, sum: sum(byte(e.Type), e.Data), node: n.id}
			was, ok := known[e.Index]
			if ok && (was.term != s.term || was.sum != s.sum) {
				o.w.violated("invariant 7: range %d at %d: node %d applied term %d, %x; node %d term %d, %x",
					r, e.Index, was.node, was.term, was.sum, n.id, s.term, s.sum)
			}
			if !ok {
				known[e.Index] = s
				o.w.trace.note(s.sum)
			}
		}
		from += uint64(len(entries))
	}
}

func sum(t byte, data []byte) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte{t})
	_, _ = h.Write(data)
	return h.Sum64()
}

// groups looks where groups' cursors stand (invariant 5).
func (o *watcher) groups(n *node, v *replica.Visible) {
	for _, p := range partitionsOf(v.Descriptor.Range) {
		for _, g := range groups {
			rec, ok, err := timeline.ReadGroup(n.state, p, g)
			if err != nil {
				o.w.violated("node %d cannot read group %d of partition %v: %v", n.id, g, p, err)
				return
			}
			if !ok {
				continue
			}
			k := groupAt{p, g}
			line := o.cursors[k]
			if line == nil {
				line = &cursorLine{}
				o.cursors[k] = line
			}
			if low, high, ok := line.add(v.Applied.Index, rec.Cursor); !ok {
				o.w.violated("invariant 5: group %d in partition %v: node %d at index %d has its cursor at %v, not between %v and %v",
					g, p, n.id, v.Applied.Index, rec.Cursor, low, high)
			}
		}
	}
}

// cursorLine is a cursor as a function of the applied index, as far as it was seen.
type cursorLine struct{ points []cursorPoint }

type cursorPoint struct {
	index  uint64
	cursor base.Position
}

// add puts a sighting in; false if the line would fall.
func (l *cursorLine) add(index uint64, c base.Position) (low, high base.Position, ok bool) {
	i, found := slices.BinarySearchFunc(l.points, index, func(p cursorPoint, i uint64) int { return cmp.Compare(p.index, i) })
	if found {
		low = l.points[i].cursor
		return low, low, low == c
	}
	if i > 0 {
		low = l.points[i-1].cursor
	}
	if high = c; i < len(l.points) {
		high = l.points[i].cursor
	}
	if c.Compare(low) < 0 || c.Compare(high) > 0 {
		return low, high, false
	}
	l.points = slices.Insert(l.points, i, cursorPoint{index, c})
	return low, high, true
}
