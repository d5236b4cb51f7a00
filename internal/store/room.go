package store

import (
	"slices"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/command"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/mvcc"
	"github.com/almanacdb/almanac/internal/wire"
)

// SetDisk tells the store what its disk has left. While that is less than the reserve,
// ranges that this node orders take no new data; deletes, acks and whatever else frees
// space go on, and so do reads. With half the reserve gone its followers stand still too,
// because a write-ahead log that finds no room ends the node. Both end by themselves
// when there is space again.
//
// The system range is left out: without it nothing could be read, and it hardly grows.
func (s *Store) SetDisk(c wire.Capacity) {
	var f *fault.Error
	if c.Scarce() {
		f = fault.New(fault.DiskFull, "the disk of node %d has %d MiB left and keeps %d MiB in reserve; it takes no new data",
			s.opts.Node, c.DiskFree>>20, c.Reserve()>>20).
			WithRemedy("free space on that disk, or delete what is not needed; writes go on by themselves after that")
	}
	if old := s.scarce.Swap(f); (old == nil) != (f == nil) {
		s.opts.Logger.Warn("space on the disk", "scarce", f != nil, "free_bytes", c.DiskFree, "reserve_bytes", c.Reserve())
	}
	s.full.Store(c.Scarce() && c.DiskFree < c.Reserve()/2)
}

// DiskScarce is the error of what would need space on a disk that has none to spare; nil
// if it has.
func (s *Store) DiskScarce() error {
	if f := s.scarce.Load(); f != nil {
		return f
	}
	return nil
}

// Behind says that this node's replicas of a range stand still, for want of space: reads
// are better asked of the orderer.
func (s *Store) Behind(r base.RangeID) bool { return s.full.Load() && r != base.SystemRange }

// noRoom is the error of a command that would need space where there is none to spare.
func (s *Store) noRoom(r base.RangeID, env []byte) error {
	f := s.scarce.Load()
	if f == nil || r == base.SystemRange || !grows(env) {
		return nil
	}
	if v := s.Replica(r); v == nil || !v.Orderer {
		return nil // another node's disk counts
	}
	return f
}

// grows says whether a command stores something new.
func grows(env []byte) bool {
	h, err := command.DecodeHeader(env)
	if err != nil || h.Kind == command.KindPublish {
		return err == nil
	}
	if h.Kind != command.KindTxn {
		return false
	}
	c, err := command.Decode(env)
	return err == nil && puts(c.Body.(*mvcc.Txn))
}

func puts(t *mvcc.Txn) bool {
	put := func(o mvcc.Op) bool { return o.Kind == mvcc.OpPut || o.Kind == mvcc.OpTxn && puts(o.Txn) }
	return slices.ContainsFunc(t.Then, put) || slices.ContainsFunc(t.Else, put)
}
