package simtest

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/keys"
	"github.com/almanacdb/almanac/internal/lincheck"
	"github.com/almanacdb/almanac/internal/wire"
)

// What the cluster holds.
const (
	topic         = base.TopicID(7)
	topicName     = "t"
	partsPerRange = 2
	partitions    = 2 * partsPerRange
)

var (
	systemRange = base.RangeDescriptor{
		Range: base.SystemRange, Span: keys.KeyspaceSpan(base.SystemKeyspace), Keyspace: base.SystemKeyspace,
	}
	keyRange = base.RangeDescriptor{
		Range: base.DefaultRange, Span: keys.KeyspaceSpan(base.DefaultKeyspace), Keyspace: base.DefaultKeyspace,
	}
	groups = []base.GroupID{1, 2}
)

func topicRange(i base.Partition) base.RangeDescriptor {
	return base.RangeDescriptor{
		Range: rangeOf(i * partsPerRange), Topic: topic,
		Span: keys.PartitionSpan(topic, i*partsPerRange, (i+1)*partsPerRange),
	}
}

// rangeOf returns the range that holds a partition.
func rangeOf(p base.Partition) base.RangeID { return 10 + base.RangeID(p/partsPerRange) }

// partitionsOf returns the partitions of a topic range, none of another.
func partitionsOf(r base.RangeID) []base.PartitionID {
	var ids []base.PartitionID
	for p := base.Partition(0); p < partitions; p++ {
		if rangeOf(p) == r {
			ids = append(ids, base.PartitionID{Topic: topic, Partition: p})
		}
	}
	return ids
}

// load is all clients.
type load struct {
	w        *World
	stopping bool
	clients  []client
	events   eventBook
	acked    []ackedWrite
	shots    []*snapshot
	latest   base.Timestamp // the latest that clients know of
	asked    base.Timestamp // the highest horizon that was asked for
	horizon  base.Timestamp // the highest that was acknowledged
}

// client is something that settled waits for.
type client interface {
	idle() bool // stopped, with nothing under way
	String() string
}

func (l *load) init(w *World) {
	l.w = w
	l.events.init(l)
}

func (l *load) start(w *World) {
	l.startKeys(w)
	made := 0
	for r := range 2 {
		g := &groupMaker{w: w, r: rangeOf(base.Partition(r * partsPerRange)), leader: make(leaders)}
		g.then = func() {
			if made++; made == 2 {
				l.startEvents()
			}
		}
		l.clients = append(l.clients, g)
		w.after(500*time.Millisecond, g.make)
	}
}

// startKeys starts the clients of keys.
func (l *load) startKeys(w *World) {
	clients := 6
	if w.cfg.Small {
		clients = 2
	}
	for i := range clients {
		c := &keyClient{w: w, id: i, leader: make(leaders)}
		l.clients = append(l.clients, c)
		w.after(w.between(500*time.Millisecond, time.Second), c.next)
	}
	snapshots := 1
	if !w.cfg.Small {
		snapshots = 2
		l.startStubborn(w)
	}
	for range snapshots {
		c := &snapshotClient{w: w, leader: make(leaders)}
		l.clients = append(l.clients, c)
		w.after(w.between(500*time.Millisecond, time.Second), c.next)
	}
	if w.chance(0.5) { // what is compacted can't be checked in the end
		k := &compactClient{w: w, leader: make(leaders)}
		l.clients = append(l.clients, k)
		w.after(5*time.Second, k.next)
	}
}

// startEvents starts the clients of events, once every group stands in every partition.
func (l *load) startEvents() {
	w := l.w
	publishers := 2
	if w.cfg.Small {
		publishers = 1
	}
	for i := range publishers {
		p := &publisher{w: w, id: i, leader: make(leaders)}
		l.clients = append(l.clients, p)
		w.after(w.between(0, 50*time.Millisecond), p.next)
	}
	for i, g := range []base.GroupID{1, 1, 2} {
		for r := range 2 {
			s := &member{w: w, id: i, group: g, r: rangeOf(base.Partition(r * partsPerRange)), leader: make(leaders)}
			w.after(w.between(0, 200*time.Millisecond), s.open)
		}
	}
}

func (l *load) stop() { l.stopping = true }

// settled says that all clients got their last answers and all events reached all groups.
func (l *load) settled() bool {
	for _, c := range l.clients {
		if !c.idle() {
			return false
		}
	}
	return len(l.events.owed) == 0
}

func (l *load) unsettled() string {
	var s []string
	for _, c := range l.clients {
		if !c.idle() {
			s = append(s, c.String())
		}
	}
	var owed []string
	for k := range l.events.owed {
		owed = append(owed, fmt.Sprintf("%s for group %d", k.id, k.group))
	}
	slices.Sort(owed)
	return strings.Join(append(s, owed...), ", ")
}

// leaders is what a client believes of who leads.
type leaders map[base.RangeID]base.NodeID

// pick returns the node to ask.
func (l leaders) pick(w *World, r base.RangeID) base.NodeID {
	if n := l[r]; n != 0 && !w.chance(0.1) {
		return n
	}
	nodes := w.nodesOf(r)
	return nodes[w.rng.IntN(len(nodes))]
}

// learn follows an error's hint.
func (l leaders) learn(r base.RangeID, err error) { l[r] = fault.As(err).Leader }

// nothingDone says that an error means that the request had no effect and may be sent
// again (K10).
func nothingDone(err error) bool {
	switch fault.KindOf(err) {
	case fault.NotLeader, fault.RangeNotFound, fault.WrongRange, fault.Restamp, fault.Unavailable,
		fault.Stopped, fault.Busy, fault.Deadline:
		return true
	}
	return false
}

var (
	errLost = fault.New(fault.UnknownOutcome, "no answer")
	errDown = fault.New(fault.Unavailable, "the gateway is down")
)

// inside runs start in a node's process and gives its answer to done, on the simulator's
// own time: once, and errLost if none came within limit.
func inside[T any](w *World, n *node, limit time.Duration, start func(func(T, error)), done func(T, error)) {
	finished, life := false, n.life
	finish := func(v T, err error) {
		if !finished {
			finished = true
			done(v, err)
		}
	}
	var none T
	if !n.up {
		w.after(time.Millisecond, func() { finish(none, errDown) })
		return
	}
	w.after(limit, func() { finish(none, errLost) })
	n.deliver(func() {
		start(func(v T, err error) {
			w.after(w.between(10*time.Microsecond, 200*time.Microsecond), func() {
				if n.up && n.life == life {
					finish(v, err)
				}
			})
		})
	})
}

// ask sends a call through a gateway.
func (w *World) ask(gw *node, to base.NodeID, m wire.Method, r base.RangeID, body []byte, done func([]byte, error)) {
	w.askFor(w.between(100*time.Millisecond, 900*time.Millisecond), gw, to, m, r, body, done)
}

// askFor is ask with the time that the callee is given.
func (w *World) askFor(timeout time.Duration, gw *node, to base.NodeID, m wire.Method, r base.RangeID, body []byte, done func([]byte, error)) {
	inside(w, gw, timeout+300*time.Millisecond, func(answer func([]byte, error)) {
		gw.store.Call(to, m, r, append([]byte(nil), body...), timeout, answer)
	}, func(b []byte, err error) {
		if fault.KindOf(err) == fault.Busy {
			w.count.Busy++
		}
		done(b, err)
	})
}

// backoff is how long a client waits before it tries again.
func (w *World) backoff() time.Duration { return w.between(2*time.Millisecond, 80*time.Millisecond) }

// operation begins the record of a key operation.
func (w *World) operation(client int, in lincheck.Input) func(lincheck.Output) {
	end := w.rec.Begin(client, in)
	return func(out lincheck.Output) {
		switch {
		case out.Unknown:
			w.count.Unknown++
		case out.Refused:
			w.count.Refused++
		case in.Op == lincheck.Get:
			w.count.Reads++
		default:
			w.count.Writes++
		}
		w.tracef("client %d: %s", client, inWords(in, out))
		end(out)
	}
}

// inWords tells of an operation as one would.
func inWords(in lincheck.Input, out lincheck.Output) string {
	var s string
	switch in.Op {
	case lincheck.Get:
		s = "get " + in.Key
	case lincheck.Put:
		s = fmt.Sprintf("put %s %q", in.Key, in.Value)
	case lincheck.Delete:
		s = "delete " + in.Key
	case lincheck.CompareSwap:
		s = fmt.Sprintf("swap %s %q for %q", in.Key, in.Expect, in.Value)
		if in.Absent {
			s = fmt.Sprintf("create %s %q", in.Key, in.Value)
		}
	}
	switch {
	case out.Unknown:
		return s + " → unknown"
	case out.Refused:
		return s + " → not done"
	case in.Op == lincheck.Get && out.Present:
		return fmt.Sprintf("%s → %q", s, out.Value)
	case in.Op == lincheck.Get:
		return s + " → none"
	case in.Op == lincheck.CompareSwap && !out.Swapped:
		return s + " → is another"
	case in.Op == lincheck.Delete && !out.Present:
		return s + " → was none"
	}
	return s + " → done"
}
