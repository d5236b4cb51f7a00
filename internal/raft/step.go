package raft

import (
	pb "go.etcd.io/raft/v3/raftpb"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/clock"
	"github.com/almanacdb/almanac/internal/effect"
	"github.com/almanacdb/almanac/internal/fault"
)

// transferContext marks votes asked for at a leader's wish; upstream's word.
const transferContext = "CampaignTransfer"

// Step takes in a message from another replica. The error says why a message can't have
// come from a sound one; the machine is then unchanged. What is merely late, or must
// wait for a promise to end, is dropped without an error.
func (m *Machine) Step(now clock.Mono, msg effect.Message) error {
	m.at(now)
	if err := m.check(&msg); err != nil {
		return err
	}
	if m.mustIgnore(&msg) {
		return nil
	}
	m.flush()
	if asksForVote(&msg) {
		m.forgetLeader()
		m.yield(msg.From)
	}
	in := m.incoming(&msg)
	if err := m.node.Step(&in.message); err != nil {
		return m.refuse(fault.Invalid, &msg, err.Error())
	}
	m.observe()
	m.afterStep(&msg)
	return nil
}

// mustIgnore says whether a message would make this replica help someone to lead while
// it is bound not to.
func (m *Machine) mustIgnore(msg *effect.Message) bool {
	switch pb.MessageType(msg.Type) {
	case pb.MsgVote:
		return m.withheld() || m.bound() && string(msg.Context) != transferContext
	case pb.MsgPreVote:
		return m.bound()
	case pb.MsgPreVoteResp:
		return m.bound() && !msg.Reject
	case pb.MsgTimeoutNow:
		return m.withheld()
	}
	return false
}

func asksForVote(msg *effect.Message) bool {
	kind := pb.MessageType(msg.Type)
	return kind == pb.MsgPreVote || kind == pb.MsgVote
}

// afterStep counts rounds: those handled here for a leader, those echoed to this one.
func (m *Machine) afterStep(msg *effect.Message) {
	if msg.Term != m.status.Term {
		return
	}
	switch pb.MessageType(msg.Type) {
	case pb.MsgApp, pb.MsgHeartbeat:
		if m.status.Leader == msg.From && msg.Round > 0 {
			m.rounds.handled = max(m.rounds.handled, clock.Mono(msg.Round))
			m.promisedUntil = m.now.Add(m.promise)
			m.succession = succession{} // it lives, or another one leads
		}
	case pb.MsgAppResp, pb.MsgHeartbeatResp:
		// A refused append was handled too.
		if m.status.Orderer {
			m.rounds.echo(msg.From, clock.Mono(msg.Round))
		}
	}
}

// check refuses what no sound replica would send, so that upstream never sees it.
func (m *Machine) check(msg *effect.Message) error {
	switch {
	case msg.Range != m.opts.Range:
		return m.refuse(fault.Invalid, msg, "is for another range")
	case msg.To != m.opts.Replica:
		return m.refuse(fault.Invalid, msg, "is for another replica")
	case !validReplica(msg.From) || msg.From == m.opts.Replica:
		return m.refuse(fault.Invalid, msg, "has no sound sender")
	case msg.Term == 0 || msg.Term >= limit || msg.LogTerm > msg.Term && msg.Type != effect.MessageType(pb.MsgAppResp) ||
		msg.LogTerm >= limit || msg.Index >= limit || msg.Hint >= limit || msg.Commit >= limit || msg.Round < 0:
		return m.refuse(fault.Corrupt, msg, "has a number out of bounds")
	}
	kind := pb.MessageType(msg.Type)
	if len(msg.Entries) > 0 && kind != pb.MsgApp || msg.Snapshot != nil && kind != pb.MsgSnap {
		return m.refuse(fault.Corrupt, msg, "carries what its type does not")
	}
	switch kind {
	case pb.MsgApp, pb.MsgHeartbeat, pb.MsgSnap:
		return m.checkLeader(msg)
	case pb.MsgAppResp:
		if m.status.Orderer && msg.Term == m.status.Term &&
			(msg.Index > m.status.LastIndex || msg.Reject && msg.Hint > msg.Index) {
			return m.refuse(fault.Corrupt, msg, "acknowledges what was never sent")
		}
		fallthrough
	case pb.MsgHeartbeatResp:
		if m.status.Orderer && msg.Term == m.status.Term && clock.Mono(msg.Round) > m.rounds.sent {
			return m.refuse(fault.Corrupt, msg, "echoes a round that was never sent")
		}
	case pb.MsgVote, pb.MsgVoteResp, pb.MsgPreVote, pb.MsgPreVoteResp, pb.MsgTimeoutNow:
	default:
		return m.refuse(fault.Invalid, msg, "is of an unknown type")
	}
	return nil
}

// checkLeader checks what only a leader sends.
func (m *Machine) checkLeader(msg *effect.Message) error {
	if msg.Term == m.status.Term && m.status.Leader != 0 && m.status.Leader != msg.From {
		return m.refuse(fault.Corrupt, msg, "comes from a second leader of its term")
	}
	switch pb.MessageType(msg.Type) {
	case pb.MsgApp:
		return m.checkEntries(msg)
	case pb.MsgHeartbeat:
		// A leader names only what this replica acknowledged in the term, once it was saved.
		if msg.Term >= m.status.Term && msg.Commit > m.lastMax {
			m.forgot(msg)
		}
	case pb.MsgSnap:
		return m.checkSnapshot(msg)
	}
	return nil
}

// forgot panics: what this replica had saved is not there any more. A log that lost its
// end looks as if it had not got that far, so only the leader, who counts on it, can tell.
// It will not send it again: the replica could neither go on nor say why.
func (m *Machine) forgot(msg *effect.Message) {
	panic(fault.New(fault.Corrupt, "raft, replica %d: it acknowledged index %d to replica %d, but its log ends at %d: the log's end is lost",
		m.opts.Replica, msg.Commit, msg.From, m.lastMax).OnRange(m.opts.Range))
}

func (m *Machine) checkEntries(msg *effect.Message) error {
	term := msg.LogTerm
	for i := range msg.Entries {
		e := &msg.Entries[i]
		if e.Index != msg.Index+1+uint64(i) || e.Term < term || e.Term == 0 || e.Term > msg.Term || e.Index >= limit {
			return m.refuse(fault.Corrupt, msg, "carries entries out of order")
		}
		term = e.Term
		switch e.Type {
		case base.EntryCommand:
			if len(e.Data) == 0 {
				return m.refuse(fault.Corrupt, msg, "carries an empty command")
			}
		case base.EntryNoop:
			if len(e.Data) != 0 {
				return m.refuse(fault.Corrupt, msg, "carries a no-op with data")
			}
		case base.EntryConfiguration, base.EntryProtocolSwitch:
		default:
			return m.refuse(fault.Corrupt, msg, "carries an entry of an unknown type")
		}
	}
	return nil
}

func (m *Machine) checkSnapshot(msg *effect.Message) error {
	s := msg.Snapshot
	if s == nil || s.Mark.Index == 0 || s.Mark.Index >= limit || s.Mark.Term == 0 || s.Mark.Term > msg.Term {
		return m.refuse(fault.Corrupt, msg, "carries no sound snapshot")
	}
	if err := checkConfiguration(s.Config); err != nil || len(s.Config.Voters) == 0 {
		return m.refuse(fault.Corrupt, msg, "carries a snapshot without a sound configuration")
	}
	for _, ids := range [][]base.ReplicaID{s.Config.Voters, s.Config.Learners} {
		for _, id := range ids {
			if id == m.opts.Replica {
				return nil
			}
		}
	}
	return m.refuse(fault.Invalid, msg, "carries a snapshot of a group that this replica is no part of")
}

func (m *Machine) refuse(kind fault.Kind, msg *effect.Message, why string) error {
	return fault.New(kind, "message of type %d from replica %d to %d in term %d: %s",
		msg.Type, msg.From, msg.To, msg.Term, why).OnRange(m.opts.Range)
}

// incoming is an upstream message with room for what its fields point to.
type incoming struct {
	message                                      pb.Message
	kind                                         pb.MessageType
	to, from, term, logTerm, index, commit, hint uint64
	reject                                       bool
}

// incoming turns a checked message into upstream's, and keeps account of where the log
// may end after it.
func (m *Machine) incoming(msg *effect.Message) *incoming {
	in := &incoming{
		kind: pb.MessageType(msg.Type),
		to:   uint64(msg.To), from: uint64(msg.From), term: msg.Term,
		logTerm: msg.LogTerm, index: msg.Index, commit: msg.Commit, hint: msg.Hint,
		reject: msg.Reject,
	}
	switch in.kind {
	case pb.MsgApp:
		m.mayEndAt(msg.Index + uint64(len(msg.Entries)))
		in.message.Entries = toPB(msg.Entries)
	case pb.MsgHeartbeat:
		// Only a lower bound of the log's end is known when appends of this turn may
		// have cut it short. The next message carries the commit index again.
		in.commit = min(in.commit, max(m.lastMin, m.status.Commit))
	case pb.MsgSnap:
		m.mayEndAt(msg.Snapshot.Mark.Index)
		in.message.Snapshot = snapshotToPB(msg.Snapshot)
	case pb.MsgVote:
		// Contexts of heartbeats are upstream's way to confirm reads, unused here.
		in.message.Context = msg.Context
	}
	p := &in.message
	p.Type, p.To, p.From, p.Term = &in.kind, &in.to, &in.from, &in.term
	p.LogTerm, p.Index, p.Commit, p.RejectHint, p.Reject = &in.logTerm, &in.index, &in.commit, &in.hint, &in.reject
	return in
}

func (m *Machine) mayEndAt(i uint64) {
	m.lastMin, m.lastMax = min(m.lastMin, i), max(m.lastMax, i)
}
