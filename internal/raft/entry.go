package raft

import (
	"encoding/binary"

	pb "go.etcd.io/raft/v3/raftpb"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/effect"
)

// Upstream knows three types of entry and only asks whether one is a configuration; any
// other passes through untouched. It appends its own no-op as an ordinary entry without
// data, so a command always has data.
const pbProtocolSwitch pb.EntryType = 4

// Entry types are shared: messages and entries are never changed once made.
var (
	pbNormal        = pb.EntryNormal.Enum()
	pbConfiguration = pb.EntryConfChangeV2.Enum()
	pbSwitch        = pbProtocolSwitch.Enum()
)

// pbEntry is an upstream entry with room for what its fields point to.
type pbEntry struct {
	entry       pb.Entry
	index, term uint64
}

// toPB converts entries with two allocations, whatever their number.
func toPB(entries []base.Entry) []*pb.Entry {
	if len(entries) == 0 {
		return nil
	}
	slab := make([]pbEntry, len(entries))
	out := make([]*pb.Entry, len(entries))
	for i := range entries {
		e, s := &entries[i], &slab[i]
		s.index, s.term = e.Index, e.Term
		s.entry.Index, s.entry.Term = &s.index, &s.term
		switch e.Type {
		case base.EntryConfiguration:
			s.entry.Type = pbConfiguration
		case base.EntryProtocolSwitch:
			s.entry.Type = pbSwitch
		default:
			s.entry.Type = pbNormal
		}
		s.entry.Data = e.Data
		out[i] = &s.entry
	}
	return out
}

func fromPB(e *pb.Entry) base.Entry {
	out := base.Entry{Index: e.GetIndex(), Term: e.GetTerm(), Type: base.EntryCommand, Data: e.Data}
	switch {
	case e.GetType() == pb.EntryConfChange || e.GetType() == pb.EntryConfChangeV2:
		out.Type = base.EntryConfiguration
	case e.GetType() == pbProtocolSwitch:
		out.Type = base.EntryProtocolSwitch
	case len(e.Data) == 0:
		out.Type = base.EntryNoop
	}
	return out
}

// converter turns upstream's entries into ours, once for all the places of one Ready
// that show the same run of entries: the save, each follower's append, the commit.
type converter struct {
	runs []run
}

type run struct {
	from []*pb.Entry
	to   []base.Entry
}

func (c *converter) convert(entries []*pb.Entry) []base.Entry {
	if len(entries) == 0 {
		return nil
	}
	for _, r := range c.runs {
		// Indexes in a run are consecutive, so two ends decide.
		first := entries[0].GetIndex() - r.to[0].Index
		last := first + uint64(len(entries)) - 1
		if last < uint64(len(r.to)) && first <= last && r.from[first] == entries[0] && r.from[last] == entries[len(entries)-1] {
			return r.to[first : last+1 : last+1]
		}
	}
	to := make([]base.Entry, len(entries))
	for i, e := range entries {
		to[i] = fromPB(e)
	}
	c.runs = append(c.runs, run{entries, to})
	return to
}

func (c *converter) reset() {
	clear(c.runs)
	c.runs = c.runs[:0]
}

func confState(c effect.Configuration) *pb.ConfState {
	cs := &pb.ConfState{AutoLeave: new(false)}
	for _, id := range c.Voters {
		cs.Voters = append(cs.Voters, uint64(id))
	}
	for _, id := range c.Learners {
		cs.Learners = append(cs.Learners, uint64(id))
	}
	return cs
}

// snapshotToPB carries the configuration epoch, which upstream has no word for, as the
// snapshot's data.
func snapshotToPB(s *effect.SnapshotMeta) *pb.Snapshot {
	return &pb.Snapshot{
		Data: binary.LittleEndian.AppendUint64(nil, s.Config.Epoch),
		Metadata: &pb.SnapshotMetadata{
			ConfState: confState(s.Config),
			Index:     new(s.Mark.Index),
			Term:      new(s.Mark.Term),
		},
	}
}

func snapshotFromPB(s *pb.Snapshot) *effect.SnapshotMeta {
	md := s.GetMetadata()
	out := &effect.SnapshotMeta{Mark: base.LogMark{Index: md.GetIndex(), Term: md.GetTerm()}}
	if len(s.Data) == 8 {
		out.Config.Epoch = binary.LittleEndian.Uint64(s.Data)
	}
	for _, id := range md.GetConfState().GetVoters() {
		out.Config.Voters = append(out.Config.Voters, base.ReplicaID(id))
	}
	for _, id := range md.GetConfState().GetLearners() {
		out.Config.Learners = append(out.Config.Learners, base.ReplicaID(id))
	}
	return out
}
