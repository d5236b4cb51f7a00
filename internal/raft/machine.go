// Package raft is a thin face on go.etcd.io/raft: it owns what Almanac adds to a raft
// group — leases measured in monotonic time, the rule for restarts, marks for proposals,
// checks on what arrives, a memory of recent entries — and it is the only package that
// sees upstream's types. It refuses to know what entries mean, where the log lies, how
// messages travel, and what a snapshot holds.
//
// A Machine is not safe for concurrent use. Upstream's election timeouts are random;
// nothing else here is.
package raft

import (
	"fmt"
	"time"

	etcdraft "go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/clock"
	"github.com/almanacdb/almanac/internal/effect"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/plant"
)

// Machine is one replica's raft: Step, Tick and Propose change it, Ready says what it
// wants done, Applied and Saved say that it was done.
type Machine struct {
	opts    Options
	node    *etcdraft.RawNode
	storage storage
	convert converter

	now              clock.Mono
	status           effect.Status
	transferring     bool
	rounds           rounds
	lease, promise   time.Duration
	promisedUntil    clock.Mono // set by handling a round
	withheldUntil    clock.Mono // set at a restart
	succession       succession
	lastMin, lastMax uint64 // the log's end lies between, until the next Ready shows it

	proposed      []base.Entry // since upstream was last called
	proposedBytes int
	uncommitted   int         // bytes proposed in this term and not applied yet
	saves         []save      // under way, oldest first
	applying      *pb.Message // upstream is told with it that Committed was applied
}

// New returns the machine of a replica, as its host saved it.
func New(o Options) (*Machine, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	appliedTerm, err := o.Log.Term(o.Applied)
	if err != nil {
		return nil, err
	}
	last := o.Log.Last()
	lastTerm, err := o.Log.Term(last)
	if err != nil {
		return nil, err
	}
	m := &Machine{
		opts: o,
		now:  o.Now,
		storage: storage{
			log: o.Log, hard: o.HardState, config: o.Config,
			applied:  base.LogMark{Index: o.Applied, Term: appliedTerm},
			maxBytes: o.CacheBytes,
		},
		status:  effect.Status{LastIndex: last, LastTerm: lastTerm, Applied: o.Applied},
		lease:   leaseDuration(o.Tick, o.ElectionTicks),
		promise: promiseDuration(o.Tick, o.ElectionTicks),
		rounds:  rounds{self: o.Replica, echoed: make(map[base.ReplicaID]clock.Mono)},
		lastMin: last, lastMax: last,
	}
	if o.Restarted && !plant.On(plant.PromiseForgotten) {
		m.withheldUntil = o.Now.Add(m.promise)
	}
	m.node, err = etcdraft.NewRawNode(&etcdraft.Config{
		ID:                        uint64(o.Replica),
		ElectionTick:              o.ElectionTicks,
		HeartbeatTick:             o.HeartbeatTicks,
		Storage:                   &m.storage,
		Applied:                   o.Applied,
		MaxSizePerMsg:             uint64(o.MaxMessageBytes),
		MaxUncommittedEntriesSize: 0, // Propose keeps the limit
		MaxInflightMsgs:           o.MaxInflightMessages,
		MaxInflightBytes:          uint64(o.MaxInflightBytes),
		AsyncStorageWrites:        true,
		CheckQuorum:               true,
		PreVote:                   true,
		StepDownOnRemoval:         true,
		DisableProposalForwarding: true,
		Logger:                    &logger{to: o.Logger, rangeID: o.Range, replica: o.Replica},
	})
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "raft options").OnRange(o.Range)
	}
	m.rounds.reset(m.node.Status().Config.Voters)
	m.observe()
	return m, nil
}

// observe takes over upstream's state after it may have changed.
func (m *Machine) observe() {
	st := m.node.BasicStatus()
	led, was := m.status.Orderer, m.status.Term
	s := &m.status
	s.Term, s.Commit, s.Applied = st.GetTerm(), st.GetCommit(), st.Applied
	s.Leader, s.Orderer = base.ReplicaID(st.Lead), st.RaftState == etcdraft.StateLeader
	m.transferring = st.LeadTransferee != etcdraft.None
	if s.Term != was {
		m.rounds.reset(m.rounds.voters)
		m.uncommitted = 0
	}
	switch {
	case !s.Orderer:
		s.TermStart = 0
	case !led || s.Term != was:
		// A new leader knows its own match, the log's end before the no-op of the
		// term, which it has just appended.
		m.node.WithProgress(func(id uint64, _ etcdraft.ProgressType, pr tracker.Progress) {
			if id == uint64(m.opts.Replica) {
				s.TermStart = pr.Match + 1
			}
		})
		s.LastIndex, s.LastTerm = s.TermStart, s.Term
		m.lastMin, m.lastMax = s.LastIndex, s.LastIndex
	}
}

// Tick tells the machine that one tick passed; late ticks are not made up for.
func (m *Machine) Tick(now clock.Mono) {
	m.at(now)
	if m.withheld() {
		return
	}
	m.flush()
	m.node.Tick()
	m.observe()
	m.succeed()
}

// Campaign makes the replica stand for election now, unless a lease may be in the way.
func (m *Machine) Campaign() {
	if m.bound() {
		return
	}
	m.flush()
	_ = m.node.Campaign() // refusals are not errors to the caller
	m.observe()
}

// Propose appends a command to the leader's log and says where it stands. It fails with
// NotLeader, or with Busy while too much is uncommitted or leadership is being handed
// over; then nothing was appended. data must not be changed any more.
//
// Proposals reach upstream together, before anything else does: each call there costs a
// message to every follower.
func (m *Machine) Propose(data []byte) (base.LogMark, error) {
	switch {
	case len(data) == 0:
		return base.LogMark{}, fault.New(fault.Invalid, "a command is empty").OnRange(m.opts.Range)
	case !m.status.Orderer:
		return base.LogMark{}, fault.NotLeaderOf(m.opts.Range, 0)
	case m.transferring:
		return base.LogMark{}, fault.New(fault.Busy, "range %d is handing its leadership over", m.opts.Range).
			OnRange(m.opts.Range).WithRemedy("try again")
	case m.uncommitted > 0 && m.uncommitted+len(data) > m.opts.MaxUncommittedBytes:
		return base.LogMark{}, fault.New(fault.Busy, "range %d has too much that is not committed yet", m.opts.Range).
			OnRange(m.opts.Range).WithRemedy("back off and try again")
	}
	m.status.LastIndex++
	m.status.LastTerm = m.status.Term
	m.lastMin, m.lastMax = m.status.LastIndex, m.status.LastIndex
	m.proposed = append(m.proposed, base.Entry{Type: base.EntryCommand, Data: data})
	m.proposedBytes += len(data)
	m.uncommitted += len(data)
	if m.proposedBytes >= m.opts.MaxMessageBytes {
		m.flush()
	}
	return base.LogMark{Index: m.status.LastIndex, Term: m.status.Term}, nil
}

// flush hands proposals to upstream; whatever may change upstream's state calls it first.
func (m *Machine) flush() {
	if len(m.proposed) == 0 {
		return
	}
	err := m.node.Step(&pb.Message{
		Type: pb.MsgProp.Enum(), From: new(uint64(m.opts.Replica)), Entries: toPB(m.proposed),
	})
	if err != nil {
		m.broken("a leader's proposals were refused: %v", err)
	}
	clear(m.proposed)
	m.proposed, m.proposedBytes = m.proposed[:0], 0
}

// settled takes entries that were applied off what is uncommitted.
func (m *Machine) settled(entries []base.Entry) {
	for i := range entries {
		m.uncommitted = max(0, m.uncommitted-len(entries[i].Data))
	}
}

// Transfer asks another voter to take leadership over. From here on this leader holds
// no lease for the rest of its term, whether the transfer succeeds or not.
func (m *Machine) Transfer(to base.ReplicaID) {
	_, voter := m.rounds.voters.IDs()[uint64(to)]
	if !m.status.Orderer || !voter || to == m.opts.Replica {
		return
	}
	m.flush()
	m.rounds.transferred = true
	m.node.TransferLeader(uint64(to))
	m.observe()
}

// StartRound sends a heartbeat to everyone with the next Ready, so that ConfirmedSince
// soon holds for now.
func (m *Machine) StartRound(now clock.Mono) {
	m.at(now)
	if !m.status.Orderer {
		return
	}
	// The sender marks it as this replica's own; no such message is taken from outside.
	_ = m.node.Step(&pb.Message{Type: pb.MsgBeat.Enum(), From: new(etcdraft.LocalAppendThread)})
}

// ReportSnapshot tells the leader how the transfer of a snapshot ended.
func (m *Machine) ReportSnapshot(to base.ReplicaID, ok bool) {
	status := etcdraft.SnapshotFinish
	if !ok {
		status = etcdraft.SnapshotFailure
	}
	m.node.ReportSnapshot(uint64(to), status)
}

// ReportUnreachable tells the leader that messages to a replica were dropped.
func (m *Machine) ReportUnreachable(to base.ReplicaID) { m.node.ReportUnreachable(uint64(to)) }

// Status returns what the machine knows of itself.
func (m *Machine) Status() effect.Status { return m.status }

// Progress returns what the leader knows of the other replicas, by id; nil elsewhere.
func (m *Machine) Progress() []effect.Progress {
	if !m.status.Orderer {
		return nil
	}
	var out []effect.Progress
	m.node.WithProgress(func(id uint64, typ etcdraft.ProgressType, pr tracker.Progress) {
		if id == uint64(m.opts.Replica) {
			return
		}
		out = append(out, effect.Progress{
			Replica: base.ReplicaID(id), Learner: typ == etcdraft.ProgressTypeLearner,
			Match: pr.Match, Active: pr.RecentActive,
			NeedsSnapshot: pr.State == tracker.StateSnapshot,
		})
	})
	return out
}

// ApplyConfiguration takes over the configuration of a committed configuration entry.
// Only its epoch may differ from the present one: membership does not change yet.
func (m *Machine) ApplyConfiguration(c effect.Configuration) error {
	if err := m.storage.sameMembers(c); err != nil {
		return err
	}
	m.storage.config.Epoch = max(m.storage.config.Epoch, c.Epoch)
	return nil
}

// broken panics: the machine contradicts itself.
func (m *Machine) broken(format string, v ...any) {
	panic(fault.New(fault.Internal, "raft, replica %d: %s", m.opts.Replica, fmt.Sprintf(format, v...)).OnRange(m.opts.Range))
}
