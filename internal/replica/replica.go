// Package replica is one replica of one range: it joins the machine that keeps the
// range's logs equal to the state machine that applies them, orders commands and reads
// while it is the orderer, fires events, hands them out, and runs the oracle on the
// system range. A replica is owned by one worker and does nothing but in its turns.
package replica

import (
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/clock"
	"github.com/almanacdb/almanac/internal/command"
	"github.com/almanacdb/almanac/internal/dispatch"
	"github.com/almanacdb/almanac/internal/effect"
	"github.com/almanacdb/almanac/internal/engine"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/host"
	"github.com/almanacdb/almanac/internal/logstore"
	"github.com/almanacdb/almanac/internal/oracle"
)

// Machine keeps the logs of a range's replicas equal. The raft face implements it; the
// chain will. Nothing else in this package knows which one runs.
type Machine interface {
	Tick(now clock.Mono)
	Step(now clock.Mono, m effect.Message) error
	// Propose appends an entry and says where it stands.
	Propose(data []byte) (base.LogMark, error)
	HasReady() bool
	Ready(now clock.Mono) effect.Ready
	// Saved says that the oldest save under way is durable.
	Saved(now clock.Mono)
	// Applied says that what a Ready showed as committed was applied.
	Applied(entries []base.Entry)
	Campaign()
	// LeaderGone says that the process of a replica no longer runs.
	LeaderGone(id base.ReplicaID)
	// Transfer hands orderership over; no lease is held for the rest of the term.
	Transfer(to base.ReplicaID)
	Status() effect.Status
	HasLease(now clock.Mono) bool
	// ConfirmedSince says that a quorum acknowledged, in this term, a round sent at or
	// after t.
	ConfirmedSince(t clock.Mono) bool
	// StartRound asks the quorum to acknowledge this orderer now.
	StartRound(now clock.Mono)
	ReportSnapshot(to base.ReplicaID, ok bool)
}

// Env is what a replica needs from its node. Calls return at once; answers come back
// as mailbox items.
type Env interface {
	// Stamps asks the oracle for n timestamps; a StampGrant with the token follows.
	Stamps(r base.RangeID, n int, token uint64)
	// OracleAnchor returns the last oracle time seen here and when it was received.
	OracleAnchor() (ms int64, at clock.Mono, ok bool)
	// Samples asks the nodes for their wall clocks; ClockSamples follow.
	Samples(r base.RangeID, nodes []base.NodeID)
	// SendSession sends deliveries to a gateway.
	SendSession(r base.RangeID, out dispatch.Out)
	// SendSnapshot streams a snapshot of the range as of now, then m; a SnapshotSent
	// follows. False says that there is no room for another one now, and none follows.
	// Called within the worker's turn, before it applies anything.
	SendSnapshot(desc *base.RangeDescriptor, m effect.Message) bool
	// DurableApplied returns the applied index that a crash would leave.
	DurableApplied(r base.RangeID) (uint64, error)
	// Fatal stops the node: its state can't be trusted to go on.
	Fatal(err error)
}

// Installer is a received snapshot, staged and checked.
type Installer interface {
	// Install makes the snapshot and the state record visible and durable, atomically.
	Install(stateRecord []byte) error
	// Abort drops what was staged.
	Abort()
}

// Options configure a replica.
type Options struct {
	State    *command.State
	Node     base.NodeID // the node this replica is on
	Machine  Machine
	Log      *logstore.Log
	Engine   engine.Engine
	Env      Env
	Oracle   *oracle.Oracle // on the system range, else nil
	Dispatch dispatch.Options
	Logger   *slog.Logger
	// KeepEntries is how many applied entries stay in the log for slow followers.
	KeepEntries uint64
	// MaxQueued bounds requests that wait for a timestamp or for the first entry of
	// the term.
	MaxQueued int
}

// Replica implements host.Resident.
type Replica struct {
	opts    Options
	id      base.RangeID
	state   *command.State
	machine Machine
	env     Env

	status    effect.Status
	serving   bool         // orderer, and its first entry of the term is applied (K3, K4)
	committed []base.Entry // what this turn has to apply
	saves     int          // under way

	writes writeQueue
	reads  readQueue
	asks   askBook
	firing firing
	events *dispatch.Dispatcher // while serving a topic's range
	oracle *oracleRole          // on the system range
	snap   snapshots
	trunc  truncation
	// rebuilds are the requests of replicas that lost what they had saved.
	rebuilds []*RebuildRequest
	ticks    uint64
	// campaigns is how many more ticks to stand for orderer, while there is none.
	campaigns int
	visible   atomic.Pointer[Visible]
	// broken says that its storage failed: what is in memory is ahead of the store, so
	// nothing is answered from it any more.
	broken bool
}

var _ host.Resident = (*Replica)(nil)

// Visible is what other goroutines may know of a replica; immutable.
type Visible struct {
	Descriptor *base.RangeDescriptor
	Replica    base.ReplicaID
	Applied    base.LogMark
	Commit     uint64
	Last       uint64
	Term       uint64
	LastStamp  base.Timestamp
	Clock      base.Timestamp
	Horizon    base.Timestamp
	Leader     base.NodeID // 0 if unknown
	Orderer    bool
	Serving    bool
	Oracle     *oracle.Status // on the system range's orderer
	NextDueMS  int64          // 0 if nothing is pending, or this is not the orderer
	Sessions   int
}

// New returns a replica. It does nothing until a worker owns it.
func New(o Options) *Replica {
	if o.KeepEntries == 0 {
		o.KeepEntries = 4096
	}
	if o.MaxQueued == 0 {
		o.MaxQueued = 16384
	}
	r := &Replica{opts: o, id: o.State.Descriptor.Range, state: o.State, machine: o.Machine, env: o.Env}
	r.firing.partitions = partitionsOf(&o.State.Descriptor)
	if o.Oracle != nil {
		r.oracle = &oracleRole{oracle: o.Oracle}
	}
	r.status = r.machine.Status()
	r.publish()
	return r
}

// Range implements host.Resident.
func (r *Replica) Range() base.RangeID { return r.id }

// Visible returns what is known of the replica as of its last turn.
func (r *Replica) Visible() *Visible { return r.visible.Load() }

func (r *Replica) publish() {
	v := &Visible{
		Descriptor: &r.state.Descriptor,
		Replica:    r.state.Replica,
		Applied:    r.state.Applied,
		Commit:     r.status.Commit,
		Last:       r.status.LastIndex,
		Term:       r.status.Term,
		LastStamp:  r.state.LastStamp,
		Clock:      r.state.Clock,
		Horizon:    r.state.Horizon,
		Leader:     r.leaderNode(),
		Orderer:    r.status.Orderer,
		Serving:    r.serving,
		NextDueMS:  r.firing.nextDue,
	}
	if r.events != nil {
		v.Sessions = r.events.Sessions()
	}
	if r.oracle != nil && r.status.Orderer {
		v.Oracle = r.oracle.status
	}
	r.visible.Store(v)
}

func (r *Replica) leaderNode() base.NodeID {
	if r.status.Orderer {
		return r.opts.Node
	}
	return r.state.Descriptor.NodeOf(r.status.Leader)
}

func (r *Replica) notLeader() *fault.Error { return fault.NotLeaderOf(r.id, r.leaderNode()) }

// fatal ends the node, and this replica's part in it at once (S6).
func (r *Replica) fatal(err error) {
	r.broken = true
	r.env.Fatal(err)
}

func (r *Replica) stopping() *fault.Error {
	return fault.New(fault.Stopped, "the storage of range %d failed on this node", r.id).OnRange(r.id).
		WithRemedy("see the log of the node")
}

// Deliver implements host.Resident.
func (r *Replica) Deliver(now clock.Mono, item any) {
	if r.broken {
		Refuse(item, r.stopping())
		return
	}
	switch m := item.(type) {
	case *effect.Message:
		if err := r.machine.Step(now, *m); err != nil {
			r.opts.Logger.Debug("replication message refused", "range", r.id, "from", m.From, "err", err)
		}
	case *Proposal:
		r.propose(m)
	case *Barrier:
		r.barrier(now, m)
	case *Wait:
		r.wait(m)
	case StampGrant:
		r.granted(now, m)
	case *StampRequest:
		r.stampRequest(now, m)
	case ClockSample:
		r.clockSample(now, m)
	case *SessionOpen:
		r.openSession(now, m)
	case SessionClose:
		r.closeSession(m)
	case *SnapshotArrived:
		r.snapshotArrived(now, m)
	case *RebuildRequest:
		r.rebuild(now, m)
	case SnapshotSent:
		r.snap.sending = false
		r.machine.ReportSnapshot(m.To, m.OK)
	case PeerGone:
		if rep, ok := r.state.Descriptor.ReplicaOn(m.Node); ok {
			r.machine.LeaderGone(rep.Replica)
		}
	case Campaign:
		r.campaigns = campaignTicks
		r.machine.Campaign()
	case Transfer:
		r.transfer(now, m)
	default:
		panic(fmt.Sprintf("invariant violated: range %d got an item of type %T", r.id, item))
	}
}

// Campaign asks the replica to stand for orderer at once, and again with every tick for
// a while, until there is one: the other replicas of a new range may not be there yet.
type Campaign struct{}

const campaignTicks = 20

// PeerGone says that a node's process no longer runs, as far as this node can see.
type PeerGone struct{ Node base.NodeID }

// Transfer asks the orderer to hand over to another replica.
type Transfer struct {
	To base.ReplicaID
	// Prepared leaves the oracle where it is until its successor would hardly have to wait,
	// which takes an election timeout at most: ask again until it has moved.
	Prepared bool
}

func (r *Replica) transfer(now clock.Mono, t Transfer) {
	switch {
	case !r.status.Orderer || t.To == r.state.Replica:
	case t.Prepared && r.oracle != nil && r.oracle.leading && !r.oracle.oracle.Retire(now):
	default:
		r.machine.Transfer(t.To)
	}
}

// Tick implements host.Resident.
func (r *Replica) Tick(now clock.Mono) {
	if r.broken {
		r.expireQueues(now) // who waits gets an answer all the same
		return
	}
	r.ticks++
	r.machine.Tick(now)
	if r.campaigns > 0 {
		r.campaigns--
		if r.status.Leader == 0 {
			r.machine.Campaign()
		} else {
			r.campaigns = 0
		}
	}
	r.expireQueues(now)
	if r.events != nil {
		r.events.Expire(now, r.emit)
	}
	if r.oracle != nil {
		st := r.oracle.oracle.Status(now)
		r.oracle.status = &st
	}
	if r.ticks%8 == 0 {
		r.considerTruncation()
	}
}

// Wake implements host.Resident.
func (r *Replica) Wake(now clock.Mono) clock.Mono {
	if r.broken {
		return 0
	}
	return earliest(r.firingWake(), r.asks.retryWake(), r.oracleWake(now))
}

func earliest(times ...clock.Mono) clock.Mono {
	var first clock.Mono
	for _, t := range times {
		if t != 0 && (first == 0 || t < first) {
			first = t
		}
	}
	return first
}

// Poke implements host.Resident.
func (r *Replica) Poke(now clock.Mono) {
	r.oraclePoke(now)
	r.firingPoke(now)
}

// Collect implements host.Resident.
func (r *Replica) Collect(now clock.Mono, t *host.Turn) {
	if r.broken {
		return
	}
	r.noteRole(now)
	r.ask(now)
	r.truncate(t)
	if !r.machine.HasReady() {
		return
	}
	rd := r.machine.Ready(now)
	r.committed = rd.Committed
	if rd.Snapshot != nil {
		r.install(t, rd.Snapshot)
		if r.broken {
			return
		}
	}
	r.snap.drop() // what arrived and the machine did not want
	if len(rd.Entries) > 0 {
		t.Batch.Append(r.opts.Log, rd.Entries)
		r.trunc.grew(rd.Entries)
	}
	if rd.HardState != nil && (rd.MustSync || len(rd.Entries) > 0) {
		t.Batch.SetHardState(r.opts.Log, *rd.HardState)
	}
	if rd.MustSync {
		t.MustSync()
	}
	if rd.Save {
		t.TellSaved(r)
		r.saves++
	}
	r.send(t, &rd)
}

func (r *Replica) send(t *host.Turn, rd *effect.Ready) {
	for i := range rd.Early {
		m := &rd.Early[i]
		if m.Snapshot != nil {
			r.sendSnapshot(m)
			continue
		}
		t.SendEarly(r.state.Descriptor.NodeOf(m.To), m)
	}
	for i := range rd.Late {
		m := &rd.Late[i]
		t.SendLate(r.state.Descriptor.NodeOf(m.To), m)
	}
}

// Saved implements host.Resident.
func (r *Replica) Saved(now clock.Mono) {
	r.saves--
	if !r.broken {
		r.machine.Saved(now)
	}
}

// Finish implements host.Resident.
func (r *Replica) Finish(now clock.Mono) bool {
	if r.broken {
		return false
	}
	if entries := r.committed; len(entries) > 0 {
		r.committed = nil
		r.apply(now, entries)
		if r.broken {
			return false
		}
		r.machine.Applied(entries)
	}
	r.noteRole(now)
	more := r.work(now)
	r.publish()
	return more || r.machine.HasReady()
}

// work answers what this turn made answerable and hands out what is due.
func (r *Replica) work(now clock.Mono) bool {
	r.answerReads(now)
	r.answerRebuilds()
	if r.oracle != nil {
		r.answerStamps(now)
	}
	return r.pump(now) || r.asks.wanted(r)
}

// noteRole follows changes of term and orderership.
func (r *Replica) noteRole(now clock.Mono) {
	was := r.status
	r.status = r.machine.Status()
	if was.Orderer && (!r.status.Orderer || was.Term != r.status.Term) {
		r.stepDown()
	}
	if r.status.Orderer && (!was.Orderer || was.Term != r.status.Term) {
		r.opts.Logger.Info("leads range", "range", r.id, "term", r.status.Term)
		if r.oracle != nil {
			r.oracle.lead(r, now)
		}
	}
	if r.status.Orderer && !r.serving && r.state.Applied.Index >= r.status.TermStart && r.status.TermStart > 0 {
		r.startServing(now)
	}
}

func (r *Replica) startServing(now clock.Mono) {
	r.serving = true
	r.writes.lastStamp = r.state.LastStamp
	r.reads.promised = 0 // later fetches exceed every promise of earlier terms (K4)
	if len(r.firing.partitions) > 0 {
		r.events = dispatch.New(r.opts.Dispatch)
		r.firing.dirty = true
	}
	if r.oracle != nil {
		r.oracle.ready(r, now)
	}
	early := r.writes.early
	r.writes.early = nil
	for _, item := range early {
		r.Deliver(now, item)
	}
}

// stepDown answers all that only an orderer could have gone on with. What was appended
// stays in the book of waiting writes: its fate is still to be seen (K3).
func (r *Replica) stepDown() {
	r.serving = false
	why := r.notLeader()
	r.writes.failQueued(why)
	r.reads.failAll(why)
	r.asks.failAll(why)
	r.failRebuilds(why)
	r.firing.reset()
	if r.events != nil {
		r.events.EndAll(why, r.emit)
		r.events = nil
	}
	if r.oracle != nil {
		r.oracle.stepDown(why)
	}
	r.opts.Logger.Info("no longer leads range", "range", r.id, "term", r.status.Term, "leader", r.leaderNode())
}

// Stop implements host.Resident.
func (r *Replica) Stop() {
	why := fault.New(fault.Stopped, "range %d was stopped on this node", r.id).OnRange(r.id)
	if r.events != nil {
		r.events.EndAll(why, r.emit)
	}
	r.writes.failQueued(why)
	r.writes.failWaiting(r.id)
	r.reads.failAll(why)
	r.reads.failWaits(why)
	r.asks.failAll(why)
	r.failRebuilds(why)
	if r.oracle != nil {
		r.oracle.stepDown(why)
	}
	r.snap.drop()
}

func (r *Replica) expireQueues(now clock.Mono) {
	r.writes.expire(now, r)
	r.reads.expire(now, r)
	r.asks.expire(now, r)
	r.expireRebuilds(now)
}

// expired says whether a deadline passed; 0 never does.
func expired(deadline, now clock.Mono) bool { return deadline != 0 && deadline <= now }

const (
	stampRetryMin = 10 * time.Millisecond
	stampRetryMax = 100 * time.Millisecond
)
