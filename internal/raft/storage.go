package raft

import (
	etcdraft "go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/effect"
	"github.com/almanacdb/almanac/internal/fault"
)

// storage shows the durable log to upstream, the recent end of it from memory: what is
// appended to followers and what is committed are the entries just saved, so they are
// neither read back nor converted again.
type storage struct {
	log     Log
	hard    effect.HardState
	config  effect.Configuration
	applied base.LogMark // what a snapshot taken now holds

	recent      []*pb.Entry // consecutive, saved; slices handed out are never written to
	recentBytes int
	maxBytes    int
}

var _ etcdraft.Storage = (*storage)(nil)

// entryOverhead approximates what an entry costs in memory besides its data.
const entryOverhead = 128

func cost(e *pb.Entry) int { return len(e.Data) + entryOverhead }

// saved adds entries that the host has saved. They replace what stood at and above the
// first of them.
func (s *storage) saved(entries []*pb.Entry) {
	if len(entries) == 0 {
		return
	}
	lo := entries[0].GetIndex()
	if len(s.recent) > 0 {
		first := s.recent[0].GetIndex()
		if lo < first || lo > first+uint64(len(s.recent)) {
			s.forget()
		} else if n := lo - first; n < uint64(len(s.recent)) {
			for _, e := range s.recent[n:] {
				s.recentBytes -= cost(e)
			}
			s.recent = s.recent[:n:n]
		}
	}
	s.recent = append(s.recent, entries...)
	for _, e := range entries {
		s.recentBytes += cost(e)
	}
	n := 0
	for s.recentBytes > s.maxBytes {
		s.recentBytes -= cost(s.recent[n])
		n++
	}
	s.recent = s.recent[n:]
}

// forget drops what is in memory; the log is about to change below it.
func (s *storage) forget() { s.recent, s.recentBytes = nil, 0 }

// held returns the position of index i in recent.
func (s *storage) held(i uint64) (int, bool) {
	if len(s.recent) == 0 || i < s.recent[0].GetIndex() {
		return 0, false
	}
	n := i - s.recent[0].GetIndex()
	return int(n), n < uint64(len(s.recent))
}

// InitialState implements etcdraft.Storage.
func (s *storage) InitialState() (*pb.HardState, *pb.ConfState, error) {
	return &pb.HardState{
		Term:   new(s.hard.Term),
		Vote:   new(uint64(s.hard.Vote)),
		Commit: new(s.hard.Commit),
	}, confState(s.config), nil
}

// Entries implements etcdraft.Storage.
func (s *storage) Entries(lo, hi, maxBytes uint64) ([]*pb.Entry, error) {
	if lo < s.log.First() {
		return nil, etcdraft.ErrCompacted
	}
	if at, ok := s.held(lo); ok {
		end := min(at+int(hi-lo), len(s.recent))
		size := uint64(0)
		for n := at; n < end; n++ {
			size += uint64(len(s.recent[n].Data) + 24)
			if size > maxBytes && n > at {
				end = n
			}
		}
		return s.recent[at:end:end], nil
	}
	if hi > s.log.Last()+1 {
		return nil, etcdraft.ErrUnavailable
	}
	if len(s.recent) > 0 {
		hi = min(hi, s.recent[0].GetIndex())
	}
	entries, err := s.log.Entries(lo, hi, int(min(maxBytes, 1<<30)))
	if err != nil {
		return nil, err
	}
	if len(entries) == 0 {
		return nil, etcdraft.ErrUnavailable
	}
	return toPB(entries), nil
}

// Term implements etcdraft.Storage.
func (s *storage) Term(i uint64) (uint64, error) {
	if n, ok := s.held(i); ok {
		return s.recent[n].GetTerm(), nil
	}
	switch {
	case i+1 < s.log.First():
		return 0, etcdraft.ErrCompacted
	case i > s.log.Last():
		return 0, etcdraft.ErrUnavailable
	}
	return s.log.Term(i)
}

// FirstIndex implements etcdraft.Storage.
func (s *storage) FirstIndex() (uint64, error) { return s.log.First(), nil }

// LastIndex implements etcdraft.Storage.
func (s *storage) LastIndex() (uint64, error) { return s.log.Last(), nil }

// Snapshot implements etcdraft.Storage: it names the applied state. The host streams it.
func (s *storage) Snapshot() (*pb.Snapshot, error) {
	if s.applied.Index == 0 || s.applied.Term == 0 {
		return nil, etcdraft.ErrSnapshotTemporarilyUnavailable
	}
	return snapshotToPB(&effect.SnapshotMeta{Mark: s.applied, Config: s.config}), nil
}

// sameMembers refuses a configuration with other members than the present one.
func (s *storage) sameMembers(c effect.Configuration) error {
	if err := confState(s.config).Equivalent(confState(c)); err != nil {
		return fault.New(fault.Unimplemented, "membership can't change yet: from voters %v to %v", s.config.Voters, c.Voters)
	}
	return nil
}
