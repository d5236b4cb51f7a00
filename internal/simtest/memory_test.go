package simtest

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/cryptotest"
	"time"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/command"
	"github.com/almanacdb/almanac/internal/mvcc"
	"github.com/almanacdb/almanac/internal/store"
	"github.com/almanacdb/almanac/internal/timeline"
)

// A census counts what a process holds in memory: every slice and map that can be reached
// from its store, named by the field that holds it. So what somebody adds tomorrow is
// counted too, and has to have a bound (invariant 10).
type census map[string]int

// holdsNothing lists packages that are not looked into: the disks and the network, whose
// contents are not the process's memory, and the simulator itself.
var holdsNothing = []string{"internal/engine", "internal/simtest", "internal/transport", "internal/clock", "log/slog", "sync", "time",
	"google.golang.org/protobuf/internal/impl"}

// takeCensus counts what can be reached from root.
func takeCensus(root any) census {
	c := make(census)
	c.walk(reflect.ValueOf(root), "", make(map[place]bool))
	return c
}

// place is where a struct stands: it may be reached on several ways.
type place struct {
	at uintptr
	of reflect.Type
}

func (c census) walk(v reflect.Value, in string, seen map[place]bool) {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			c.walk(v.Elem(), in, seen)
		}
	case reflect.Interface:
		c.walk(v.Elem(), in, seen)
	case reflect.Struct:
		t := v.Type()
		if v.CanAddr() {
			k := place{v.UnsafeAddr(), t}
			if seen[k] {
				return
			}
			seen[k] = true
		}
		for _, p := range holdsNothing {
			if strings.HasSuffix(t.PkgPath(), p) {
				return
			}
		}
		for i := range v.NumField() {
			if holds(t.Field(i).Type) {
				name := t.String() + "." + t.Field(i).Name
				if t.String() == "raftpb.Entry" {
					name = in + "/" + name
				}
				c.walk(v.Field(i), name, seen)
			}
		}
	case reflect.Slice, reflect.Array:
		c[in] += v.Len()
		if holds(v.Type().Elem()) {
			for i := range v.Len() {
				c.walk(v.Index(i), in, seen)
			}
		}
	case reflect.Map:
		c[in] += v.Len()
		if holds(v.Type().Elem()) {
			for it := v.MapRange(); it.Next(); {
				c.walk(it.Value(), in, seen)
			}
		}
	}
}

// holds says whether a value of a type can hold elements.
func holds(t reflect.Type) bool {
	switch t.Kind() {
	case reflect.Pointer, reflect.Interface, reflect.Struct, reflect.Slice, reflect.Map:
		return true
	case reflect.Array:
		return holds(t.Elem())
	}
	return false
}

// most is how many elements, or bytes, a field may hold, over all ranges of a node. It
// follows from the limits and from how many clients there are, not from how long a run
// takes or what is stored.
func (w *World) most(field string) int {
	l, ranges := &w.limits, len(w.ranges)
	switch field {
	case "raft.storage.recent":
		return ranges * (l.CacheBytes/128 + 1)
	case "raft.storage.recent/raftpb.Entry.Data":
		return ranges * l.CacheBytes
	case "raft.run.from", "raft.run.to": // what a turn shows: saved, sent to two, committed
		return ranges * 4 * (l.MaxMessageBytes/16 + 1)
	case "raft.run.from/raftpb.Entry.Data", "base.Entry.Data":
		return ranges * 4 * (l.MaxMessageBytes + 1024)
	case "raft.unstable.entries/raftpb.Entry.Data":
		return ranges * (l.MaxUncommittedBytes + l.MaxMessageBytes + 1024)
	case "tracker.Inflights.buffer":
		return 3 * ranges * l.MaxInflightMessages
	case "dispatch.Dispatcher.expiry":
		return ranges * 2 * (1024 + 8*credits)
	case "replica.Proposal.Envelope", "logstore.Batch.val", "logstore.Batch.key":
		return 64 << 10
	}
	return 1024
}

// mostLog is how many entries a log may hold: it is truncated up to what the last flush of
// the state store covers, but not while a snapshot is on its way.
func (w *World) mostLog() uint64 {
	const perSecond, snapshot = 250, 1500
	return 2*w.keepEntries + uint64(perSecond*2*w.flushEvery.Seconds()) + snapshot
}

// lookAtMemory takes a census of every node now and then.
func (w *World) lookAtMemory() {
	w.after(w.between(time.Second, 6*time.Second), func() {
		for _, n := range w.nodes {
			if n.up {
				w.boundedMemory(n)
			}
		}
		w.lookAtMemory()
	})
}

func (w *World) boundedMemory(n *node) {
	w.count.MemoryLooks++
	c := takeCensus(n.store)
	for _, f := range slices.Sorted(maps.Keys(c)) {
		if c[f] > w.most(f) {
			w.violated("invariant 10: node %d holds %d in %s, not at most %d", n.id, c[f], f, w.most(f))
		}
	}
	for _, v := range n.store.Replicas() {
		l := n.logs.Log(v.Descriptor.Range)
		if held := l.Last() + 1 - l.First(); held > w.mostLog() {
			w.violated("invariant 10: node %d holds %d entries of range %d, not at most %d",
				n.id, held, v.Descriptor.Range, w.mostLog())
		}
	}
}

// sum adds up all that was counted.
func (c census) sum() int {
	n := 0
	for _, k := range c {
		n += k
	}
	return n
}

// What a process holds in memory does not grow with keys, versions and pending events.
func TestMemoryDoesNotGrow(t *testing.T) {
	cryptotest.SetGlobalRandom(t, 1)
	w := newWorld(Config{Seed: 1, Nodes: 3})
	w.limits = store.Limits{CacheBytes: 16 << 10}
	w.keepEntries, w.flushEvery = 64, time.Second
	w.start()
	l := make(leaders)
	stored := 0
	storeMore := func(n int) {
		for end := stored + n; stored < end; stored++ {
			k := fmt.Sprintf("key %06d", stored)
			op := mvcc.Op{Kind: mvcc.OpPut, Span: base.PointSpan(logical(k)), Value: []byte(k)}
			done := 0
			count := func(_ *command.Result, err error) {
				if err != nil {
					t.Fatal(err)
				}
				done++
			}
			w.propose(l, base.DefaultRange, command.KindTxn, &mvcc.Txn{Then: []mvcc.Op{op}}, time.Minute, count)
			events := make([]timeline.NewEvent, 10)
			for i := range events {
				events[i] = timeline.NewEvent{MessageID: fmt.Sprintf("%s.%d", k, i), DelayMS: 1 << 30, Payload: make([]byte, 50)}
			}
			body := &timeline.Publish{Batches: []timeline.Batch{{Partition: base.PartitionID{Topic: topic}, Events: events}}}
			w.propose(l, rangeOf(0), command.KindPublish, body, time.Minute, count)
			w.runUntil(w.mono().Add(2*time.Minute), func() bool { return done == 2 })
		}
		w.runFor(5 * time.Second)
	}
	storeMore(100)
	before := takeCensus(w.node(1).store)
	storeMore(900)
	after := takeCensus(w.node(1).store)
	if len(w.broken) > 0 {
		t.Fatal(w.broken)
	}
	t.Logf("%d elements and bytes with 100 keys and 1000 events, %d with ten times as many", before.sum(), after.sum())
	if after.sum() > before.sum()+before.sum()/4 {
		t.Errorf("memory grew with what is stored:\n%v\nthen\n%v", before, after)
	}
}

// String lists what holds something.
func (c census) String() string {
	var b strings.Builder
	for _, f := range slices.Sorted(maps.Keys(c)) {
		if c[f] > 0 {
			fmt.Fprintf(&b, "%6d %s\n", c[f], f)
		}
	}
	return b.String()
}
