// Package store is a node's set of replicas: it brings them back after a start, creates
// and destroys them, carries messages between them and other nodes, and keeps what they
// share: calls under way, timestamps on order, snapshots in transit, hand-out sessions.
// It refuses to know how requests are routed to ranges and what clients speak.
package store

import (
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/almanacdb/almanac/internal/admission"
	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/clock"
	"github.com/almanacdb/almanac/internal/dispatch"
	"github.com/almanacdb/almanac/internal/engine"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/host"
	"github.com/almanacdb/almanac/internal/logstore"
	"github.com/almanacdb/almanac/internal/oracle"
	"github.com/almanacdb/almanac/internal/replica"
	"github.com/almanacdb/almanac/internal/statestore"
	"github.com/almanacdb/almanac/internal/transport"
)

// Options configure a Store. Tick, ElectionTicks and HeartbeatTicks must be the same
// on every node of a cluster.
type Options struct {
	Node           base.NodeID
	Clock          clock.Clock
	Tick           time.Duration // default 100 ms
	ElectionTicks  int           // default 10
	HeartbeatTicks int           // default 2
	Workers        int           // besides the system range's own; default 2
	Log            *logstore.Store
	Engine         engine.Engine // of the state store
	Transport      transport.Transport
	Oracle         oracle.Options
	Dispatch       dispatch.Options
	KeepEntries    uint64 // see replica.Options
	// Proposals is the share of memory that commands hold from their arrival until their
	// answer; Reads takes in what is read for other nodes. Nil: unbounded.
	Proposals *admission.Pool
	Reads     *admission.Intake
	// Snapshots is the share that snapshots on their way to other nodes take from.
	Snapshots *admission.Pool
	Limits    Limits
	Logger    *slog.Logger
	// SystemNodes returns where the system range's replicas were last known to be.
	SystemNodes func() []base.NodeID
	// Rebuild says that the node lost what its stores held: replicas come back from other
	// nodes before they take part, until Rebuilt is called.
	Rebuild bool
	// Background runs work that may block off the caller's goroutine; the default
	// starts a goroutine, a simulator runs it in place.
	Background func(func())
	// Calls takes calls of methods that the store does not know; false if it does not
	// know them either. It must not block.
	Calls Handler
	// Fatal is called when the node can't go on: it must stop (S6).
	Fatal func(error)
	// LogDamaged is called instead when a replica found its log damaged or its end lost,
	// which other replicas can make good. Nil means Fatal.
	LogDamaged func(error)
}

// Limits bound what a node holds in memory, whatever it stores and however much is asked of
// it. A field that is 0 means the default of the package that it belongs to.
type Limits struct {
	Mailbox             int // items that wait for a worker; see host.Options
	MaxQueued           int // requests that wait in a range; see replica.Options
	HeadBytes           int // newest versions of keys kept in memory; see engine.WithHeads
	CacheBytes          int // of each range, like those below; see raft.Options
	MaxMessageBytes     int
	MaxInflightMessages int
	MaxInflightBytes    int
	MaxUncommittedBytes int
}

// ElectionTimeout is the least time without a leader's word before an election.
func (o *Options) ElectionTimeout() time.Duration {
	return time.Duration(o.ElectionTicks) * o.Tick
}

func (o *Options) setDefaults() {
	if o.Tick == 0 {
		o.Tick = 100 * time.Millisecond
	}
	if o.ElectionTicks == 0 {
		o.ElectionTicks = 10
	}
	if o.HeartbeatTicks == 0 {
		o.HeartbeatTicks = 2
	}
	if o.Workers == 0 {
		o.Workers = 2
	}
	if o.Background == nil {
		o.Background = func(f func()) { go f() }
	}
	if o.SystemNodes == nil {
		o.SystemNodes = func() []base.NodeID { return nil }
	}
	if o.Oracle.Election == 0 {
		o.Oracle.Election = o.ElectionTimeout()
	}
}

// Store is a node's set of replicas. Safe for concurrent use.
type Store struct {
	opts     Options
	state    *statestore.Store
	workers  []*host.Worker
	commits  *host.Committer
	calls    *callBook
	stamps   stampBook
	sessions sessionBook
	incoming incomingBook
	rebuilds rebuildBook

	started atomic.Bool
	scarce  atomic.Pointer[fault.Error] // what SetDisk makes of a disk without space to spare
	full    atomic.Bool                 // followers stand still

	mu        sync.RWMutex
	replicas  map[base.RangeID]*replica.Replica
	snapshots uint64                // numbers snapshots sent
	changing  map[base.RangeID]bool // being created or destroyed
	closed    bool
}

// Open brings back every replica that the node holds. Nothing runs before Start.
func Open(o Options) (*Store, error) {
	o.setDefaults()
	if err := o.Oracle.Validate(); err != nil {
		return nil, err
	}
	o.Engine = engine.WithHeads(o.Engine, o.Limits.HeadBytes)
	s := &Store{
		opts:     o,
		state:    statestore.New(o.Engine),
		replicas: make(map[base.RangeID]*replica.Replica),
		changing: make(map[base.RangeID]bool),
	}
	s.calls = newCallBook(s)
	s.stamps.store = s
	s.sessions.open = make(map[uint64]SessionSink)
	s.incoming.ranges = make(map[base.RangeID]*incoming)
	s.rebuilds.on = o.Rebuild
	s.commits = host.NewCommitter(o.Transport, o.Fatal)
	for range 1 + o.Workers {
		s.workers = append(s.workers, host.NewWorker(host.Options{
			Clock: o.Clock, Tick: o.Tick, Log: o.Log, Committer: s.commits, Transport: o.Transport,
			Mailbox: o.Limits.Mailbox, Fatal: s.panicked, Dropped: s.dropped,
		}))
	}
	return s, s.recover()
}

// Start runs the workers and the committer on goroutines of their own, and a timer for
// calls that get no answer. A simulator calls Workers, Committer and Expire instead.
func (s *Store) Start() {
	s.started.Store(true)
	go s.commits.Run()
	for _, w := range s.workers {
		go w.Run()
	}
	go s.calls.run()
}

// Workers returns the workers, for a simulator that runs their turns.
func (s *Store) Workers() []*host.Worker { return s.workers }

// Committer returns the committer, for a simulator that runs its commits.
func (s *Store) Committer() *host.Committer { return s.commits }

// Expire answers calls whose time ran out, and goes on with what is being rebuilt; for a
// simulator.
func (s *Store) Expire() {
	now := s.opts.Clock.Mono()
	s.calls.expire(now)
	s.rebuilds.step(s, now)
}

// Close stops the workers after the turns under way, and makes what they applied
// durable.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	s.mu.Unlock()
	if s.started.Load() {
		for _, w := range s.workers {
			w.Close()
		}
		s.commits.Close()
	}
	s.calls.close()
	return s.opts.Engine.Flush()
}

// Node returns the node's id.
func (s *Store) Node() base.NodeID { return s.opts.Node }

// Clock returns the node's clock.
func (s *Store) Clock() clock.Clock { return s.opts.Clock }

// Engine returns the state store's engine, for reads.
func (s *Store) Engine() engine.Engine { return s.opts.Engine }

// worker returns the worker that owns a range. The system range has the first to
// itself: the oracle answers every write and read of the cluster, and must not wait for
// another range's sync.
func (s *Store) worker(r base.RangeID) *host.Worker {
	if r == base.SystemRange {
		return s.workers[0]
	}
	return s.workers[1+uint64(r)%uint64(len(s.workers)-1)]
}

// Post hands an item to a range's replica.
func (s *Store) Post(r base.RangeID, item any) error {
	s.mu.RLock()
	_, ok := s.replicas[r]
	s.mu.RUnlock()
	if !ok {
		return rangeNotFound(r)
	}
	if !s.worker(r).Post(r, item) {
		return fault.New(fault.Busy, "range %d has too many messages waiting", r).OnRange(r).
			WithRemedy("slow down and try again")
	}
	return nil
}

// answer hands a range's replica what it asked for and waits for, however much else
// waits. A replica that is not here any more waits for nothing.
func (s *Store) answer(r base.RangeID, item any) { s.worker(r).Answer(r, item) }

func rangeNotFound(r base.RangeID) *fault.Error {
	return fault.New(fault.RangeNotFound, "this node holds no replica of range %d", r).OnRange(r)
}

// dropped answers an item that found no replica.
func (s *Store) dropped(r base.RangeID, item any) { replica.Refuse(item, rangeNotFound(r)) }

// Replica returns what is known of a range's replica here; nil if there is none.
func (s *Store) Replica(r base.RangeID) *replica.Visible {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if rep := s.replicas[r]; rep != nil {
		return rep.Visible()
	}
	return nil
}

// Replicas returns what is known of all replicas here, by range id.
func (s *Store) Replicas() []*replica.Visible {
	s.mu.RLock()
	defer s.mu.RUnlock()
	list := make([]*replica.Visible, 0, len(s.replicas))
	for _, rep := range s.replicas {
		list = append(list, rep.Visible())
	}
	slices.SortFunc(list, func(a, b *replica.Visible) int {
		return int(a.Descriptor.Range) - int(b.Descriptor.Range)
	})
	return list
}

// panicked ends the node because a replica can't go on. What a replica panics with that is
// Corrupt comes from its log.
func (s *Store) panicked(err error) {
	if s.opts.LogDamaged != nil && fault.KindOf(err) == fault.Corrupt {
		s.opts.LogDamaged(err)
		return
	}
	s.opts.Fatal(err)
}

// Fatal implements replica.Env.
func (s *Store) Fatal(err error) { s.opts.Fatal(err) }

// DurableApplied implements replica.Env.
func (s *Store) DurableApplied(r base.RangeID) (uint64, error) {
	mark, ok, err := s.state.DurableApplied(r)
	if err != nil || !ok {
		return 0, err
	}
	return mark.Index, nil
}

// oraclePrepares is the number of attempts, 50 ms apart, that let the oracle prepare its
// move: a little more than an election timeout.
const oraclePrepares = 25

// HandOver asks every range that this node orders to be taken over by another replica,
// a different one with each attempt, and returns how many there are that could be.
func (s *Store) HandOver(attempt int) int {
	n := 0
	for _, v := range s.Replicas() {
		if !v.Orderer {
			continue
		}
		var others []base.ReplicaID
		for _, rep := range v.Descriptor.Replicas {
			if rep.Node != s.opts.Node && rep.Role == base.RoleVoter {
				others = append(others, rep.Replica)
			}
		}
		if len(others) == 0 {
			continue
		}
		n++
		// A transfer takes a moment; another candidate is tried only after a while. The
		// oracle prepares its own first, as long as there is time.
		switch oracle := v.Descriptor.Range == base.SystemRange; {
		case oracle && attempt < oraclePrepares:
			_ = s.Post(v.Descriptor.Range, replica.Transfer{To: others[0], Prepared: true})
		case attempt%10 == 0:
			s.TransferOrderer(v.Descriptor.Range, others[attempt/10%len(others)])
		}
	}
	return n
}

// TransferOrderer asks a range's orderer, if it is here, to hand over to a replica.
func (s *Store) TransferOrderer(r base.RangeID, to base.ReplicaID) {
	_ = s.Post(r, replica.Transfer{To: to})
}

func (s *Store) String() string { return fmt.Sprintf("store of node %d", s.opts.Node) }
