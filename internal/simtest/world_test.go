package simtest

import (
	"container/heap"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"reflect"
	"time"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/clock"
	"github.com/almanacdb/almanac/internal/lincheck"
	"github.com/almanacdb/almanac/internal/store"
	"github.com/almanacdb/almanac/internal/transport"
)

// Config says what to simulate.
type Config struct {
	Seed   uint64
	Faults time.Duration // how long clients run under faults; default 30 s
	Nodes  int           // default by seed
	Small  bool          // few clients, which do little
	Plant  *Plant
	// LoseDisks makes nodes lose their disks more often than other faults happen.
	LoseDisks bool
	Dir       string // where a drawing of a history that is not linearizable goes
	// Trace gets every line of the trace; nil keeps only the last ones.
	Trace func(string)
}

// World is a simulated cluster with all that surrounds it. One goroutine owns it.
type World struct {
	cfg    Config
	rng    *rand.Rand    // the simulator's own decisions
	now    *clock.Manual // true time; nodes see it through their own clocks
	repl   *transport.Network
	calls  *transport.Network
	lost   map[[2]base.NodeID]bool // who is about to be told of a broken connection to whom
	nodes  []*node
	ranges []base.RangeDescriptor
	timers timerHeap
	seq    uint64
	trace  trace
	count  Counts
	rec    *lincheck.Recorder
	watch  watcher
	load   load
	traps  []*trap
	broken []string // violations

	second clock.Mono // of true time, and what happened in it so far
	steps  int

	manual bool // a script says when a node starts again
	harm   bool // faults are not over

	keepEntries uint64 // see store.Options
	limits      store.Limits
	flushEvery  time.Duration // about, of the state stores
}

// Counts says what a run went through, so that a test can tell that it was no idle one.
type Counts struct {
	Crashes, Kills, PowerCuts, PointCrashes, RecoveryCrashes, Restarts    int
	DiskErrors, SyncErrors, SlowDisks, DisksLost, Rebuilt                 int // SyncErrors are among DiskErrors
	Pauses, WallSteps, Transfers                                          int
	Partitions, OneWayCuts, BadLinks, Lost, Duplicated, Overtaken, Reset  int // the last four are messages and connections
	Gone, Rumours                                                         int // nodes that others took for gone; Rumours: wrongly
	Writes, Reads, Snapshots, Unknown, Refused                            int // of keys, by clients
	FollowerReads, SnapshotsAgain, Compactions, Compacted, Busy           int
	Published, Delivered, Repeated, Acked                                 int // of events
	Leaders, Installs, Applied, Turns, Messages, Truncations, MemoryLooks int
}

// add adds up runs.
func (c *Counts) add(d *Counts) {
	to, from := reflect.ValueOf(c).Elem(), reflect.ValueOf(d).Elem()
	for i := range to.NumField() {
		to.Field(i).SetInt(to.Field(i).Int() + from.Field(i).Int())
	}
}

// Result is a finished run.
type Result struct {
	Violations []string
	Tail       []string // the last lines of the trace
	Hash       uint64   // of the whole trace
	Counts     Counts
	Virtual    time.Duration
}

// startMS is true time when a run begins.
const startMS = 1_800_000_000_000

// newWorld returns a cluster that has not started.
func newWorld(cfg Config) *World {
	if cfg.Faults == 0 {
		cfg.Faults = 30 * time.Second
	}
	w := &World{
		cfg: cfg,
		rng: rand.New(rand.NewPCG(cfg.Seed, 1)),
		now: clock.NewManual(startMS),
	}
	w.trace = trace{hash: fnv.New64a(), to: cfg.Trace}
	w.rec = lincheck.NewRecorder(func() time.Duration { return time.Duration(w.now.Mono()) })
	w.watch.init(w)
	w.load.init(w)
	w.buildNetwork()
	w.keepEntries = 4 << w.rng.IntN(5)
	w.flushEvery = w.between(100*time.Millisecond, 8*time.Second)
	w.limits = store.Limits{
		Mailbox: 64 << w.rng.IntN(6), MaxQueued: 2 << w.rng.IntN(10), CacheBytes: 256 << w.rng.IntN(10),
		MaxMessageBytes: 512 << w.rng.IntN(8), MaxInflightMessages: 2 << w.rng.IntN(8), MaxUncommittedBytes: 1024 << w.rng.IntN(8),
		HeadBytes: [...]int{0, 64 << 10, 1 << 20}[w.flushEvery.Milliseconds()%3],
	}
	if cfg.Small {
		w.keepEntries, w.flushEvery, w.limits = 4, 100*time.Millisecond, store.Limits{
			Mailbox: 1024, MaxQueued: 256, CacheBytes: 4096, MaxMessageBytes: 8192, MaxInflightMessages: 16, MaxUncommittedBytes: 65536, HeadBytes: 64 << 10,
		}
	}
	n := [...]int{1, 3, 3, 3, 5, 5}[w.rng.IntN(6)]
	if cfg.Nodes != 0 {
		n = cfg.Nodes
	}
	for i := range n {
		w.nodes = append(w.nodes, newNode(w, base.NodeID(i+1)))
	}
	w.ranges = layout(n)
	return w
}

// Run simulates one seed. What the product draws from crypto/rand must have been made
// to depend on the seed before (testing/cryptotest).
func Run(cfg Config) Result {
	return run(cfg, func(w *World) {
		nemesis := &nemesis{w: w}
		nemesis.start()
		w.runFor(cfg.faults())
		nemesis.stop()
	})
}

// run simulates a cluster under load while harm does what it does, then checks.
func run(cfg Config, harm func(*World)) (res Result) {
	w := newWorld(cfg)
	defer cfg.Plant.on()()
	defer func() {
		if r := recover(); r != nil {
			w.violated("panic: %v\n%s", r, stack())
		}
		res = Result{
			Violations: w.broken, Tail: w.trace.tail(), Hash: w.trace.hash.Sum64(), Counts: w.count,
			Virtual: time.Duration(w.now.Mono()) - time.Second,
		}
	}()
	w.start()
	w.load.start(w)
	w.lookAtMemory()
	harm(w)
	w.settle()
	w.check()
	return res
}

func (c *Config) faults() time.Duration {
	if c.Faults == 0 {
		return 30 * time.Second
	}
	return c.Faults
}

// start boots all nodes and creates their replicas.
func (w *World) start() {
	for _, n := range w.nodes {
		n.start()
	}
	for _, d := range w.ranges {
		for _, n := range w.nodes {
			if _, ok := d.ReplicaOn(n.id); ok {
				n.enter(func() {
					if err := n.store.CreateReplica(d); err != nil {
						w.violated("node %d cannot create range %d: %v", n.id, d.Range, err)
					}
				})
			}
		}
	}
}

// violated records that an invariant does not hold; the run ends.
func (w *World) violated(format string, args ...any) {
	s := fmt.Sprintf(format, args...)
	w.tracef("VIOLATION %s", s)
	w.broken = append(w.broken, s)
}

// mono returns true time since a second before the run began.
func (w *World) mono() clock.Mono { return w.now.Mono() }

// trueMS returns true time in milliseconds since 1970.
func (w *World) trueMS() int64 { return w.now.WallMS() }

// timer is something that happens at a true time.
type timer struct {
	at  clock.Mono
	seq uint64
	f   func()
}

// after makes f happen d from now.
func (w *World) after(d time.Duration, f func()) { w.at(w.mono().Add(d), f) }

func (w *World) at(at clock.Mono, f func()) {
	w.seq++
	heap.Push(&w.timers, timer{at: max(at, w.mono()), seq: w.seq, f: f})
}

// runFor lets d pass, or less if something is violated.
func (w *World) runFor(d time.Duration) { w.runUntil(w.mono().Add(d), func() bool { return false }) }

// runUntil lets time pass until an instant, a violation, or until done holds.
func (w *World) runUntil(end clock.Mono, done func() bool) {
	for len(w.broken) == 0 && !done() {
		if !w.step(end) {
			if d := end.Sub(w.mono()); d > 0 {
				w.now.Advance(d)
			}
			return
		}
	}
}

// step does the next thing that happens by end; false if there is none. At one instant
// messages come before timers, replication before calls.
func (w *World) step(end clock.Mono) bool {
	at, what := end+1, 0
	if len(w.timers) > 0 && w.timers[0].at < at {
		at, what = w.timers[0].at, 1
	}
	if t, ok := w.calls.Next(); ok && t <= at {
		at, what = t, 2
	}
	if t, ok := w.repl.Next(); ok && t <= at {
		at, what = t, 3
	}
	if at > end {
		return false
	}
	w.busy(at)
	switch what {
	case 1:
		t := heap.Pop(&w.timers).(timer)
		if d := t.at.Sub(w.mono()); d > 0 {
			w.now.Advance(d)
		}
		t.f()
	case 2:
		w.calls.Step()
	case 3:
		w.repl.Step()
	}
	return true
}

// busy tells a cluster that works without end from one that is loaded: a second of true
// time may take so many steps, and no more.
func (w *World) busy(at clock.Mono) {
	const most = 60_000
	if second := at / clock.Mono(time.Second); second != w.second {
		w.second, w.steps = second, 0
	}
	if w.steps++; w.steps == most {
		w.violated("storm: %d steps within a second", most)
	}
}

// between returns a duration in [lo, hi).
func (w *World) between(lo, hi time.Duration) time.Duration {
	return lo + time.Duration(w.rng.Int64N(int64(hi-lo)))
}

func (w *World) chance(p float64) bool { return w.rng.Float64() < p }

// node returns a node by id.
func (w *World) node(id base.NodeID) *node { return w.nodes[id-1] }

// anyNode returns a random node, one that is up if there is any.
func (w *World) anyNode() *node {
	first := w.rng.IntN(len(w.nodes))
	for i := range w.nodes {
		if n := w.nodes[(first+i)%len(w.nodes)]; n.up {
			return n
		}
	}
	return w.nodes[first]
}

type timerHeap []timer

func (h timerHeap) Len() int      { return len(h) }
func (h timerHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h timerHeap) Less(i, j int) bool {
	if h[i].at != h[j].at {
		return h[i].at < h[j].at
	}
	return h[i].seq < h[j].seq
}
func (h *timerHeap) Push(x any) { *h = append(*h, x.(timer)) }
func (h *timerHeap) Pop() any {
	old := *h
	t := old[len(old)-1]
	old[len(old)-1] = timer{}
	*h = old[:len(old)-1]
	return t
}
