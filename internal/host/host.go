// Package host runs replicas: a fixed number of workers own them by range id. One turn
// of a worker drains its mailbox, steps machines, sends what may leave early, hands what
// is to be saved to the node's committer, and hands committed entries to apply. The
// committer writes the batches of all workers in order, with one sync for all that wait,
// sends what had to wait for it, and tells the workers. Turns and commits are plain
// functions of their inputs, so that a simulator calls the same code. The package refuses
// to know what a replica does with its turn.
package host

import (
	"fmt"
	"runtime/debug"
	"slices"
	"time"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/clock"
	"github.com/almanacdb/almanac/internal/effect"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/logstore"
	"github.com/almanacdb/almanac/internal/transport"
	"github.com/almanacdb/almanac/internal/wire"
)

// Resident is one range's replica as its worker sees it. All methods are called by the
// owning worker only, in the order of a turn.
type Resident interface {
	Range() base.RangeID
	// Deliver takes one mailbox item.
	Deliver(now clock.Mono, item any)
	// Tick is called once per tick interval, never in bursts.
	Tick(now clock.Mono)
	// Wake returns when Poke is wanted; 0 for never.
	Wake(now clock.Mono) clock.Mono
	// Poke is called at or after the time that Wake returned.
	Poke(now clock.Mono)
	// Collect steps the machine's effects into the turn.
	Collect(now clock.Mono, t *Turn)
	// Finish applies what was committed. It returns true if another turn should follow at
	// once.
	Finish(now clock.Mono) bool
	// Saved is called in a later turn, when what a turn collected is durable, if that turn
	// was asked to tell: once for each such turn, in their order.
	Saved(now clock.Mono)
	// Stop answers whoever still waits; the replica gets no more calls.
	Stop()
}

// Turn gathers what the residents of a worker want done in one turn.
type Turn struct {
	Batch *logstore.Batch
	early outbox
	save  save
}

// MustSync asks for a synced commit of the turn's batch.
func (t *Turn) MustSync() { t.save.sync = true }

// TellSaved asks for a call of r's Saved once the turn's batch is durable, or, if it needs
// no sync, once those before it are.
func (t *Turn) TellSaved(r Resident) { t.save.tell = append(t.save.tell, r) }

// SendEarly queues a message that may leave before the save.
func (t *Turn) SendEarly(to base.NodeID, m *effect.Message) { t.early.add(to, m) }

// SendLate queues a message that must not leave before the save.
func (t *Turn) SendLate(to base.NodeID, m *effect.Message) { t.save.late.add(to, m) }

// outbox groups messages by node, in order of first use.
type outbox struct {
	nodes []base.NodeID
	msgs  [][]wire.Message
}

func (o *outbox) add(to base.NodeID, m *effect.Message) {
	i := slices.Index(o.nodes, to)
	if i < 0 {
		i = len(o.nodes)
		o.nodes = append(o.nodes, to)
		o.msgs = append(o.msgs, nil)
	}
	o.msgs[i] = append(o.msgs[i], wire.Message{Replication: m})
}

func (o *outbox) flush(tr transport.Transport) {
	for i, n := range o.nodes {
		tr.Send(n, transport.ClassReplication, o.msgs[i]...)
	}
	o.nodes, o.msgs = o.nodes[:0], o.msgs[:0]
}

// Options configure a worker.
type Options struct {
	Clock     clock.Clock
	Tick      time.Duration
	Log       *logstore.Store
	Committer *Committer // of the node
	Transport transport.Transport
	Mailbox   int // items; default 65,536
	// Fatal is told, once, that a replica panicked: the worker takes no more turns, and
	// the node must stop.
	Fatal func(error)
	// Dropped is told of an item whose range is not here.
	Dropped func(base.RangeID, any)
}

// Worker owns replicas and runs their turns.
type Worker struct {
	opts      Options
	box       *mailbox
	residents map[base.RangeID]Resident
	order     []base.RangeID // sorted, so that a turn's order is a function of its inputs
	active    []Resident
	spare     []Resident
	isActive  map[base.RangeID]bool
	turn      Turn
	nextTick  clock.Mono
	running   base.RangeID // whose replica is being called; 0: none
	failed    bool
	done      chan struct{}
}

// NewWorker returns a worker without residents. Run it, or call Turn.
func NewWorker(o Options) *Worker {
	if o.Mailbox == 0 {
		o.Mailbox = 65536
	}
	return &Worker{
		opts:      o,
		box:       newMailbox(o.Mailbox),
		residents: make(map[base.RangeID]Resident),
		isActive:  make(map[base.RangeID]bool),
		nextTick:  o.Clock.Mono().Add(o.Tick),
		done:      make(chan struct{}),
	}
}

// Post hands an item to a range's replica; false if the mailbox is full. An item for a
// range that is not here is dropped.
func (w *Worker) Post(r base.RangeID, item any) bool {
	return w.box.post(mail{rng: r, item: item})
}

// Answer is Post for what a replica asked for and waits for without a deadline: it comes
// though the mailbox is full, because a replica bounds what it asks for.
func (w *Worker) Answer(r base.RangeID, item any) bool {
	return w.box.post(mail{rng: r, item: item, answer: true})
}

// Do runs f in the worker's next turn, before the items posted after it.
func (w *Worker) Do(f func(*Worker)) bool { return w.box.post(mail{run: f}) }

// Add makes the worker own r. Called through Do.
func (w *Worker) Add(r Resident) {
	id := r.Range()
	w.residents[id] = r
	i, _ := slices.BinarySearch(w.order, id)
	w.order = slices.Insert(w.order, i, id)
	w.activate(r)
}

// Remove makes the worker forget a range and stops its replica. Called through Do.
func (w *Worker) Remove(id base.RangeID) {
	r, ok := w.residents[id]
	if !ok {
		return
	}
	delete(w.residents, id)
	i, _ := slices.BinarySearch(w.order, id)
	w.order = slices.Delete(w.order, i, i+1)
	if w.isActive[id] {
		delete(w.isActive, id)
		w.active = slices.DeleteFunc(w.active, func(a Resident) bool { return a == r })
	}
	r.Stop()
}

// Resident returns the replica of a range, nil if the worker does not own it. Called
// through Do.
func (w *Worker) Resident(id base.RangeID) Resident { return w.residents[id] }

func (w *Worker) activate(r Resident) {
	if id := r.Range(); !w.isActive[id] {
		w.isActive[id] = true
		w.active = append(w.active, r)
	}
}

// Turn runs one turn and says whether another should follow at once.
func (w *Worker) Turn() bool {
	if w.failed {
		return false
	}
	mails := w.box.drain()
	// Read after the drain: all that is handled below arrived before now, so a lease
	// that is valid at now was valid after the request arrived (T1, K4).
	now := w.opts.Clock.Mono()
	for _, m := range mails {
		if w.failed {
			w.leave(m)
		} else if m.saved != nil {
			w.saved(now, m.saved)
		} else if m.run != nil {
			m.run(w)
		} else if r, ok := w.residents[m.rng]; ok {
			w.running = m.rng
			r.Deliver(now, m.item)
			w.running = 0
			w.activate(r)
		} else if w.opts.Dropped != nil {
			w.opts.Dropped(m.rng, m.item)
		}
	}
	if w.failed {
		return false
	}
	w.tickAndPoke(now)
	w.turn.Batch = w.opts.Log.NewBatch()
	for _, r := range w.active {
		w.running = r.Range()
		r.Collect(now, &w.turn)
	}
	w.running = 0
	w.turn.early.flush(w.opts.Transport)
	w.submit()
	return w.finish(now)
}

// submit hands what the turn wants saved to the committer.
func (w *Worker) submit() {
	t := &w.turn
	s := t.save
	t.save = save{}
	if t.Batch.Empty() && len(s.tell) == 0 && len(s.late.nodes) == 0 {
		t.Batch.Close()
		return
	}
	t.Batch.Seal()
	s.worker, s.batch = w, t.Batch
	w.opts.Committer.submit(&s)
}

// saved tells the residents of an earlier turn that it is durable.
func (w *Worker) saved(now clock.Mono, s *save) {
	if s.err != nil {
		w.failed = true // the committer told why
		return
	}
	s.batch.Publish()
	for _, r := range s.tell {
		if w.residents[r.Range()] == r {
			w.running = r.Range()
			r.Saved(now)
			w.running = 0
			w.activate(r)
		}
	}
}

func (w *Worker) tickAndPoke(now clock.Mono) {
	tick := now >= w.nextTick
	if tick {
		// A late tick is not caught up: the next one is at least half an interval away.
		w.nextTick = max(w.nextTick.Add(w.opts.Tick), now.Add(w.opts.Tick/2))
	}
	for _, id := range w.order {
		r := w.residents[id]
		w.running = id
		if tick {
			r.Tick(now)
			w.activate(r)
		}
		if at := r.Wake(now); at != 0 && at <= now {
			r.Poke(now)
			w.activate(r)
		}
	}
	w.running = 0
}

func (w *Worker) fail(err error) {
	w.failed = true
	w.opts.Fatal(err)
}

// guarded is Turn for Run. A replica panics when it can't go on, for example because its
// log can't be read. That is fatal to the node, for what the other replicas did in this
// turn is half done too; nothing of the turn is saved or sent any more. A simulator,
// which calls Turn, gets the panic itself.
func (w *Worker) guarded() (again bool) {
	defer func() {
		if cause := recover(); cause != nil {
			again = false
			w.panicked(cause)
		}
	}()
	return w.Turn()
}

// panicked makes a panic the worker's end.
func (w *Worker) panicked(cause any) {
	if w.turn.Batch != nil && !w.turn.Batch.Sealed() {
		w.turn.Batch.Close()
	}
	where := "a worker"
	if w.running != 0 {
		where = fmt.Sprintf("range %d", w.running)
	}
	err := fault.New(fault.Internal, "%s can't go on: %v", where, cause).OnRange(w.running)
	if f, ok := cause.(error); ok && fault.KindOf(f) == fault.Corrupt {
		err.Kind = fault.Corrupt // damage found by a replica is damage, not a broken program
	}
	err.Cause = fmt.Errorf("\n%s", debug.Stack())
	w.fail(err)
}

func (w *Worker) finish(now clock.Mono) bool {
	active := w.active
	w.active, w.spare = w.spare[:0], active
	for _, r := range active {
		delete(w.isActive, r.Range())
	}
	for _, r := range active {
		w.running = r.Range()
		if r.Finish(now) {
			w.activate(r)
		}
	}
	w.running = 0
	return len(w.active) > 0 || w.box.pending()
}

// NextWake returns when the next turn is due if no mail comes.
func (w *Worker) NextWake(now clock.Mono) clock.Mono {
	at := w.nextTick
	for _, id := range w.order {
		if t := w.residents[id].Wake(now); t != 0 && t < at {
			at = t
		}
	}
	return at
}

// Pending says whether mail waits for the next turn, for a simulator.
func (w *Worker) Pending() bool { return w.box.pending() }

// Failed says that the worker was told that the log store failed, or that a replica
// panicked: it takes no more turns.
func (w *Worker) Failed() bool { return w.failed }

// Run takes turns until Close. It is the worker's goroutine and owns its residents.
func (w *Worker) Run() {
	defer close(w.done)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		if w.guarded() {
			continue
		}
		w.box.mu.Lock()
		closed := w.box.closed
		w.box.mu.Unlock()
		if closed || w.failed {
			w.stopAll()
			return
		}
		now := w.opts.Clock.Mono()
		timer.Reset(max(0, w.NextWake(now).Sub(now)))
		select {
		case <-w.box.signal:
		case <-timer.C:
		}
	}
}

// stopAll answers what still waits in the mailbox, then stops the replicas.
func (w *Worker) stopAll() {
	w.box.close()
	for _, m := range w.box.drain() {
		w.leave(m)
	}
	for _, id := range slices.Clone(w.order) {
		w.stop(id)
	}
}

// leave answers mail that comes too late for a turn.
func (w *Worker) leave(m mail) {
	if m.run != nil {
		m.run(w)
	} else if m.saved == nil && w.opts.Dropped != nil {
		w.opts.Dropped(m.rng, m.item)
	}
}

// stop removes a replica; one that panicked may do so again.
func (w *Worker) stop(id base.RangeID) {
	defer func() {
		if cause := recover(); cause != nil && !w.failed {
			w.running = id
			w.panicked(cause)
		}
	}()
	w.Remove(id)
}

// Close stops Run after the turn under way and waits for it.
func (w *Worker) Close() {
	w.box.close()
	<-w.done
}
