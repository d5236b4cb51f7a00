package raft

import (
	etcdraft "go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/clock"
	"github.com/almanacdb/almanac/internal/effect"
	"github.com/almanacdb/almanac/internal/plant"
)

// HasReady says whether Ready would return anything.
func (m *Machine) HasReady() bool { return len(m.proposed) > 0 || m.node.HasReady() }

// save is what a Ready asked to save, and what upstream is told once it is.
type save struct {
	entries  []*pb.Entry
	snapshot *effect.SnapshotMeta
	then     []*pb.Message
}

// Ready returns what the machine wants done; nothing in it may be changed. A leader's
// appends and heartbeats in it count as sent at now.
func (m *Machine) Ready(now clock.Mono) effect.Ready {
	m.at(now)
	m.flush()
	rd := m.node.Ready()
	m.convert.reset()
	out := effect.Ready{
		Entries:   m.convert.convert(rd.Entries),
		Committed: m.convert.convert(rd.CommittedEntries),
		MustSync:  rd.MustSync,
	}
	if !etcdraft.IsEmptyHardState(rd.HardState) {
		out.HardState = &effect.HardState{
			Term:   rd.HardState.GetTerm(),
			Vote:   base.ReplicaID(rd.HardState.GetVote()),
			Commit: rd.HardState.GetCommit(),
		}
	}
	if !etcdraft.IsEmptySnap(rd.Snapshot) {
		out.Snapshot = snapshotFromPB(rd.Snapshot)
		out.MustSync = true
		m.storage.config = out.Snapshot.Config
		m.rounds.reset(m.node.Status().Config.Voters)
	}
	m.messages(&rd, &out)
	m.end(&out)
	return out
}

// end learns where the log ends, which upstream shows only here.
func (m *Machine) end(rd *effect.Ready) {
	end := base.LogMark{Index: m.status.LastIndex, Term: m.status.LastTerm}
	if rd.Snapshot != nil {
		end = rd.Snapshot.Mark
	}
	if n := len(rd.Entries); n > 0 {
		end = base.LogMark{Index: rd.Entries[n-1].Index, Term: rd.Entries[n-1].Term}
	}
	if m.status.Orderer && (end.Index != m.status.LastIndex || end.Term != m.status.LastTerm) {
		m.broken("the log ends at %d in term %d, but proposals were told %d in term %d",
			end.Index, end.Term, m.status.LastIndex, m.status.LastTerm)
	}
	m.status.LastIndex, m.status.LastTerm = end.Index, end.Term
	m.lastMin, m.lastMax = end.Index, end.Index
}

// messages sorts what is to be sent: upstream says what depends on the save, and tells
// itself, through us, that the save and the apply were done.
func (m *Machine) messages(rd *etcdraft.Ready, out *effect.Ready) {
	if n := len(rd.Messages); n > 0 {
		out.Early = make([]effect.Message, 0, n)
	}
	for _, msg := range rd.Messages {
		switch msg.GetTo() {
		case etcdraft.LocalAppendThread:
			m.saving(msg, rd, out)
		case etcdraft.LocalApplyThread:
			m.applying = msg.GetResponses()[0]
		default:
			out.Early = append(out.Early, m.message(msg))
		}
	}
}

// saving notes a save, unless nobody waits for it and there is nothing worth saving for
// its own sake.
func (m *Machine) saving(msg *pb.Message, rd *etcdraft.Ready, out *effect.Ready) {
	s := save{entries: rd.Entries, snapshot: out.Snapshot}
	for _, r := range msg.GetResponses() {
		switch {
		case r.GetTo() == uint64(m.opts.Replica):
			s.then = append(s.then, r)
		case r.GetType() == pb.MsgVoteResp && plant.On(plant.VoteBeforeSave):
			out.Early = append(out.Early, m.message(r))
		default:
			out.Late = append(out.Late, m.message(r))
		}
	}
	out.Save = rd.MustSync || len(msg.GetResponses()) > 0
	if out.Save {
		m.saves = append(m.saves, s)
	}
}

func (m *Machine) message(in *pb.Message) effect.Message {
	out := effect.Message{
		Range:       m.opts.Range,
		From:        base.ReplicaID(in.GetFrom()),
		To:          base.ReplicaID(in.GetTo()),
		Type:        effect.MessageType(in.GetType()),
		Term:        in.GetTerm(),
		LogTerm:     in.GetLogTerm(),
		Index:       in.GetIndex(),
		Commit:      in.GetCommit(),
		Vote:        base.ReplicaID(in.GetVote()),
		Reject:      in.GetReject(),
		Hint:        in.GetRejectHint(),
		Context:     in.Context,
		Entries:     m.convert.convert(in.Entries),
		ConfigEpoch: m.storage.config.Epoch,
	}
	current := in.GetTerm() == m.status.Term
	switch in.GetType() {
	case pb.MsgApp, pb.MsgHeartbeat:
		// What was queued in a term that is over proves nothing about this one.
		if current && m.status.Orderer {
			m.rounds.sent = max(m.rounds.sent, m.now)
			out.Round = int64(m.now)
		}
	case pb.MsgAppResp, pb.MsgHeartbeatResp:
		if current && m.status.Leader == out.To {
			out.Round = int64(m.rounds.handled)
		}
	case pb.MsgSnap:
		// The host streams what is applied as of this Ready, which may be more than
		// when upstream asked.
		out.Snapshot = &effect.SnapshotMeta{Mark: m.storage.applied, Config: m.storage.config}
	}
	return out
}

// Saved says that the oldest save under way is durable.
func (m *Machine) Saved(now clock.Mono) {
	if len(m.saves) == 0 {
		m.broken("told of a save that was not asked for")
	}
	m.at(now)
	m.flush()
	s := m.saves[0]
	m.saves[0] = save{}
	m.saves = m.saves[1:]
	if s.snapshot != nil {
		m.storage.forget()
		m.storage.applied = s.snapshot.Mark
	}
	m.storage.saved(s.entries)
	for _, msg := range s.then {
		// What is of a term that is over, upstream drops.
		_ = m.node.Step(msg)
	}
	m.observe()
}

// Applied says that what a Ready showed as committed was applied.
func (m *Machine) Applied(entries []base.Entry) {
	if len(entries) == 0 {
		return
	}
	m.flush()
	last := &entries[len(entries)-1]
	m.storage.applied = base.LogMark{Index: last.Index, Term: last.Term}
	m.settled(entries)
	_ = m.node.Step(m.applying)
	m.applying = nil
	m.observe()
}
