package simtest

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/clock"
	"github.com/almanacdb/almanac/internal/dispatch"
	"github.com/almanacdb/almanac/internal/engine"
	"github.com/almanacdb/almanac/internal/logstore"
	"github.com/almanacdb/almanac/internal/oracle"
	"github.com/almanacdb/almanac/internal/store"
	"github.com/almanacdb/almanac/internal/wire"
)

// Timing of every simulated cluster.
const (
	tick          = 50 * time.Millisecond
	electionTicks = 10
	ackTimeout    = 2 * time.Second
	sessionSilent = 3 * time.Second
)

// node is a simulated machine: its disks and clock last, its process comes and goes.
type node struct {
	w     *World
	id    base.NodeID
	clock nodeClock
	log   *engine.Mem // the disks
	state *engine.Mem

	up      bool
	life    int // counts starts
	inside  bool
	paused  bool
	inbox   []func() // what came while paused
	slow    time.Duration
	store   *store.Store
	logs    *logstore.Store
	workers []worker
	commit  clock.Mono // true time of the committer's next commit; 0: not scheduled
	net     *port

	armed   int           // the process dies at the armed-th point from now; 0: not armed
	armedAt string        // only points count whose name begins so
	survive func(int) int // what of the log's unsynced commits a death leaves; see engine.Mem
	passed  *[]string     // takes the names of the points it passes, if set
	failAt  string        // the disk step that fails next, once; "any" for any; "": none
	failed  bool          // a disk of this life failed in a step after which the node must stop
	dying   bool          // the store said that it can't go on
	seen    map[base.RangeID]*progress
	lost    bool // the disks were lost, and not all that was on them is back
}

// worker is when one of the store's workers takes its next turn.
type worker struct {
	due   clock.Mono // true time; 0: not scheduled
	again bool
}

// died unwinds a process that loses power.
type died struct{ node base.NodeID }

func newNode(w *World, id base.NodeID) *node {
	n := &node{w: w, id: id, clock: nodeClock{w: w}, survive: none}
	// Honest clocks are up to honestOffset off and drift by up to 200 ppm.
	n.clock.offset = w.between(-honestOffset, honestOffset)
	n.clock.ppm = w.rng.Int64N(401) - 200
	n.freshDisks()
	return n
}

// diskStep is asked by an engine before each step of a write.
func (n *node) diskStep(disk string) func(engine.Op) error {
	return func(op engine.Op) error {
		step := disk + " " + string(op)
		n.point(step)
		if !n.inside || n.failAt == "" || n.failAt != step && n.failAt != "any" {
			return nil
		}
		n.failAt = ""
		n.w.tracef("node %d: its %s disk fails at %s", n.id, disk, op)
		switch op {
		case engine.OpSync:
			n.w.count.SyncErrors++
		case engine.OpStage: // a part of a snapshot, which is sent again
			n.w.count.DiskErrors++
			return errDisk
		}
		n.w.count.DiskErrors++
		n.failed = true
		return errDisk
	}
}

var errDisk = errors.New("the simulated disk fails")

// point is a place where the process may die.
func (n *node) point(where string) {
	if !n.inside {
		return
	}
	if n.passed != nil {
		*n.passed = append(*n.passed, where)
	}
	if n.armed == 0 || !strings.HasPrefix(where, n.armedAt) {
		return
	}
	if n.armed--; n.armed == 0 {
		n.w.count.PointCrashes++
		n.w.tracef("node %d dies at %s", n.id, where)
		panic(died{n.id})
	}
}

// start boots the process on what its disks hold.
func (n *node) start() {
	if n.up {
		return
	}
	n.life++
	n.w.tracef("node %d starts, life %d", n.id, n.life)
	n.clock.boot()
	n.up, n.paused, n.slow, n.failed, n.dying = true, false, 0, false, false
	n.inbox, n.store, n.workers, n.commit = nil, nil, nil, 0
	n.seen = make(map[base.RangeID]*progress)
	n.net = n.w.attach(n)
	n.enter(func() {
		if err := n.open(); err != nil {
			n.fatal(err)
		}
	})
	if !n.up {
		return
	}
	if n.life > 1 {
		n.w.count.Restarts++
	}
	n.every(50*time.Millisecond, func() { n.store.Expire() })
	n.every(300*time.Millisecond, n.rebuild)
	n.flushLater()
}

func (n *node) open() error {
	logs, err := logstore.Open(n.w.cfg.Plant.logEngine(n))
	if err != nil {
		return err
	}
	n.logs = logs
	st, err := store.Open(store.Options{
		Node: n.id, Clock: &n.clock, Tick: tick, ElectionTicks: electionTicks,
		Workers: 1 + int(n.id)%2, Log: logs, Engine: n.w.cfg.Plant.stateEngine(n), Transport: n.net,
		Oracle:      oracle.Options{MaxClockOffsetMS: 500},
		Dispatch:    dispatch.Options{AckTimeout: ackTimeout, SessionTimeout: sessionSilent},
		KeepEntries: n.w.keepEntries, Limits: n.w.limits, Logger: n.w.logger(n.id),
		SystemNodes: func() []base.NodeID { return n.w.systemNodes() },
		Background:  func(f func()) { f() },
		Fatal:       n.fatal,
		Rebuild:     n.lost && !n.w.cfg.Plant.is(startsEmpty),
	})
	if err != nil {
		return err
	}
	n.store = st
	n.workers = make([]worker, len(st.Workers()))
	return nil
}

// fatal is where the store says that it can't go on: right if a disk failed, else a
// violation (S6). It takes the process a moment to end, in which its other parts run.
func (n *node) fatal(err error) {
	if !n.failed {
		n.w.violated("node %d calls itself broken: %v", n.id, err)
	}
	if n.store == nil || !n.failed {
		panic(died{n.id})
	}
	if n.dying {
		return
	}
	n.w.tracef("node %d stops: %v", n.id, err)
	n.dying = true
	life := n.life
	n.w.after(n.w.between(time.Microsecond, 30*time.Millisecond), func() {
		if n.up && n.life == life {
			n.crash(n.w.partly)
			n.restartLater()
		}
	})
}

// enter runs code of the node's process, which may die in it.
func (n *node) enter(f func()) {
	if !n.up {
		return
	}
	if n.inside {
		panic("the simulator entered a node twice")
	}
	n.inside = true
	defer func() {
		n.inside = false
		if r := recover(); r != nil {
			if d, ok := r.(died); !ok || d.node != n.id {
				panic(r)
			}
			n.crash(n.survive)
			n.restartLater()
		}
	}()
	f()
	if n.failed && !n.dying {
		n.w.violated("S6: node %d goes on although its disk failed", n.id)
	}
	n.reschedule()
}

// deliver runs f in the process now, or when it is no longer paused.
func (n *node) deliver(f func()) {
	if n.paused {
		n.inbox = append(n.inbox, f)
		return
	}
	n.enter(f)
}

// dropInbox takes back what was delivered last, if it waits for the end of a pause.
func (n *node) dropInbox() {
	if k := len(n.inbox); n.paused && k > 0 {
		n.inbox = n.inbox[:k-1]
	}
}

// receive implements transport.Handler for the networks.
func (n *node) receive(from base.NodeID, msgs []wire.Message) {
	msgs = n.w.cfg.Plant.received(n, msgs)
	n.w.spring(n, from, msgs)
	n.deliver(func() { n.store.Receive(from, msgs) })
}

// every runs f in the process again and again, while it lives and is not paused.
func (n *node) every(d time.Duration, f func()) {
	life := n.life
	n.w.after(d, func() {
		if n.life != life || !n.up {
			return
		}
		if !n.paused {
			n.enter(f)
		}
		if n.life == life && n.up {
			n.every(d, f)
		}
	})
}

// flushLater makes the state store durable now and then, as its size and age would.
func (n *node) flushLater() {
	life := n.life
	n.w.after(n.w.between(n.w.flushEvery/10, 2*n.w.flushEvery), func() {
		if n.life != life || !n.up {
			return
		}
		n.enter(func() {
			if err := n.state.Flush(); err != nil {
				n.fatal(err)
			}
		})
		if n.life == life && n.up {
			n.flushLater()
		}
	})
}

// reschedule looks at what the process wants done next.
func (n *node) reschedule() {
	n.scheduleCommit()
	for i := range n.workers {
		k, wk := &n.workers[i], n.store.Workers()[i]
		var at clock.Mono
		if k.again || wk.Pending() {
			at = n.w.mono().Add(n.turnDelay())
		} else {
			at = n.clock.trueTime(wk.NextWake(n.clock.Mono()))
			at = max(at, n.w.mono().Add(time.Microsecond))
		}
		if k.due != 0 && k.due <= at {
			continue
		}
		k.due = at
		life := n.life
		n.w.at(at, func() {
			if n.life == life && n.up && n.workers[i].due == at {
				n.workers[i].due = 0
				n.turn(i)
			}
		})
	}
}

// turnDelay is how long mail waits for a turn: the turn before it.
func (n *node) turnDelay() time.Duration {
	return n.w.between(10*time.Microsecond, 200*time.Microsecond)
}

// scheduleCommit has what waits for the committer written after the sync before it.
func (n *node) scheduleCommit() {
	if n.store == nil || n.commit != 0 || !n.store.Committer().Pending() {
		return
	}
	at, life := n.w.mono().Add(n.w.between(20*time.Microsecond, time.Millisecond)+n.slow), n.life
	n.commit = at
	n.w.at(at, func() {
		if n.life != life || !n.up || n.commit != at {
			return
		}
		n.commit = 0
		if n.paused {
			return // resume schedules anew
		}
		n.enter(func() {
			n.point("commit")
			n.store.Committer().Commit()
			n.point("committed")
		})
	})
}

func (n *node) turn(i int) {
	if n.paused {
		return // resume schedules anew
	}
	n.w.count.Turns++
	n.enter(func() { n.workers[i].again = n.store.Workers()[i].Turn() })
	if n.up {
		n.w.watch.turned(n)
	}
}

// pause stops the process for a while: it hears and does nothing, then all at once.
func (n *node) pause(d time.Duration) {
	if !n.up || n.paused {
		return
	}
	n.w.count.Pauses++
	n.w.tracef("node %d pauses for %v", n.id, d)
	n.paused = true
	life := n.life
	n.w.after(d, func() {
		if n.life == life {
			n.resume()
		}
	})
}

func (n *node) resume() {
	if !n.up || !n.paused {
		return
	}
	n.w.tracef("node %d resumes", n.id)
	n.paused = false
	inbox := n.inbox
	n.inbox = nil
	for _, f := range inbox {
		n.enter(f)
	}
	for i := range n.workers {
		n.workers[i].due = 0
	}
	n.commit = 0
	n.enter(func() {})
}

// crash ends the process and loses what was not durable. survive says how many of the
// commits that the log's disk was given and not told to sync are there afterwards: see
// none, all and partly.
func (n *node) crash(survive func(int) int) {
	if !n.up {
		return
	}
	n.w.tracef("node %d is down", n.id)
	n.w.count.Crashes++
	n.up, n.armed, n.armedAt, n.failAt = false, 0, "", ""
	n.w.detach(n)
	n.log = n.log.Crash(survive)
	n.state = n.state.Crash(nil)
	n.store, n.workers, n.inbox = nil, nil, nil
	n.w.peerGone(n)
}

// A power cut leaves nothing unsynced, or what happened to reach the disk; a process that
// is killed leaves all that it wrote.
func none(int) int                { return 0 }
func all(k int) int               { return k }
func (w *World) partly(k int) int { return w.rng.IntN(k + 1) }

// restartLater starts the process again in a while. Now and then it dies again on the way.
func (n *node) restartLater() {
	if n.w.manual {
		return
	}
	n.w.after(n.w.between(50*time.Millisecond, 4*time.Second), func() {
		if !n.up && n.w.harm && n.w.chance(0.1) {
			n.armed, n.survive = 1+n.w.rng.IntN(25), n.w.partly
			n.w.count.RecoveryCrashes++
		}
		n.start()
	})
}

func (n *node) String() string { return fmt.Sprintf("node %d", n.id) }

// honestOffset bounds how far wall clocks are off that are not stepped.
const honestOffset = 100 * time.Millisecond

// nodeClock is a machine's clock: monotonic time starts with each boot and drifts, wall
// time is off.
type nodeClock struct {
	w      *World
	offset time.Duration // honest
	step   time.Duration // on top of it, while stepped
	ppm    int64         // drift of monotonic time
	bootAt clock.Mono    // true time of the boot
	origin clock.Mono    // monotonic time at the boot

	stoppedAt clock.Mono // true time since when it stands still; 0: it runs
	missed    clock.Mono // what it stood still before
}

// stop makes monotonic time stand still, which it never should.
func (c *nodeClock) stop() {
	if c.stoppedAt == 0 {
		c.stoppedAt = c.w.mono()
	}
}

// run ends stop.
func (c *nodeClock) run() {
	if c.stoppedAt != 0 {
		c.missed += c.w.mono() - c.stoppedAt
		c.stoppedAt = 0
	}
}

func (c *nodeClock) boot() {
	c.bootAt, c.stoppedAt, c.missed = c.w.mono(), 0, 0
	c.origin = clock.Mono(c.w.between(time.Second, time.Hour))
}

// Mono implements clock.Clock.
func (c *nodeClock) Mono() clock.Mono { return c.monoAt(c.w.mono()) }

func (c *nodeClock) monoAt(t clock.Mono) clock.Mono {
	if c.stoppedAt != 0 {
		t = c.stoppedAt
	}
	d := int64(t - c.missed - c.bootAt)
	return c.origin + clock.Mono(d+d*c.ppm/1_000_000)
}

// trueTime returns when Mono will be at least m.
func (c *nodeClock) trueTime(m clock.Mono) clock.Mono {
	d := int64(m - c.origin)
	if d <= 0 {
		return c.bootAt
	}
	if d > int64(24*time.Hour) || c.stoppedAt != 0 {
		return c.w.mono().Add(time.Second)
	}
	t := c.bootAt + c.missed + clock.Mono(d-d*c.ppm/1_000_000)
	for c.monoAt(t) < m {
		t += m - c.monoAt(t)
	}
	return t
}

// WallMS implements clock.Clock.
func (c *nodeClock) WallMS() int64 {
	return c.w.trueMS() + (c.offset + c.step).Milliseconds()
}
