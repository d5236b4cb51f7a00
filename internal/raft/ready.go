package raft

import (
	etcdraft "go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/clock"
	"github.com/almanacdb/almanac/internal/effect"
)

// HasReady says whether Ready would return anything.
func (m *Machine) HasReady() bool { return len(m.proposed) > 0 || m.node.HasReady() }

// Ready returns what the machine wants done. Each is carried out and given to Advance
// before the next is asked for; nothing in it may be changed. A leader's appends and
// heartbeats in it count as sent at now.
func (m *Machine) Ready(now clock.Mono) effect.Ready {
	m.at(now)
	m.flush()
	rd := m.node.Ready()
	m.convert.reset()
	m.saving = rd.Entries
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
	m.messages(rd.Messages, &out)
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

// messages sorts messages into those that may leave before the save and the rest. A
// leader's appends may: its own copy counts towards a commit only once saved.
func (m *Machine) messages(in []*pb.Message, out *effect.Ready) {
	early := 0
	for _, msg := range in {
		if fromLeader(msg.GetType()) {
			early++
		}
	}
	if early > 0 {
		out.Early = make([]effect.Message, 0, early)
	}
	if len(in) > early {
		out.Late = make([]effect.Message, 0, len(in)-early)
	}
	for _, msg := range in {
		if fromLeader(msg.GetType()) {
			out.Early = append(out.Early, m.message(msg))
		} else {
			out.Late = append(out.Late, m.message(msg))
		}
	}
}

func fromLeader(t pb.MessageType) bool { return t == pb.MsgApp || t == pb.MsgHeartbeat }

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

// Advance says that a Ready was carried out: saved, sent, applied.
func (m *Machine) Advance(r effect.Ready) {
	m.flush()
	if r.Snapshot != nil {
		m.storage.forget()
		m.storage.applied = r.Snapshot.Mark
	}
	m.storage.saved(m.saving)
	m.saving = nil
	if n := len(r.Committed); n > 0 {
		m.storage.applied = base.LogMark{Index: r.Committed[n-1].Index, Term: r.Committed[n-1].Term}
	}
	m.settled(r.Committed)
	m.node.Advance(etcdraft.Ready{})
	m.observe()
}
