// Package logstore keeps the logs of all ranges of a node, with what each group must
// remember besides (hard state, truncated mark, first state record), the node record
// and the tombstones of removed replicas, in one engine with a write-ahead log. It owns
// the layout of that engine. It refuses to know what entries mean and which protocol
// ordered them.
package logstore

import (
	"cmp"
	"encoding/binary"
	"slices"
	"sync"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/engine"
	"github.com/almanacdb/almanac/internal/fault"
)

// Store is the log store of a node. Safe for concurrent use; see Log for what is not.
type Store struct {
	e engine.Engine

	mu     sync.Mutex
	logs   map[base.RangeID]*Log
	failed error // the first failed commit; every later one returns it (S6)
}

// Open reads what each range's log spans from an engine with a write-ahead log, and checks
// every entry. The caller closes the engine.
func Open(e engine.Engine) (*Store, error) {
	s := &Store{e: e, logs: map[base.RangeID]*Log{}}
	it, err := e.NewIter([]byte{keyRange}, []byte{keyRange + 1})
	if err != nil {
		return nil, err
	}
	defer it.Close()
	for ok := it.First(); ok; {
		k := it.Key()
		if len(k) < 10 {
			return nil, fault.New(fault.Corrupt, "log store: key %x is none of ours", k)
		}
		r := base.RangeID(binary.BigEndian.Uint64(k[1:]))
		l := &Log{s: s, r: r}
		if err := l.load(it); err != nil {
			return nil, err
		}
		s.logs[r] = l
		ok = it.SeekGE(appendRecord(nil, r, 0xff))
	}
	return s, it.Error()
}

// Log returns the handle of a range's log, which may hold nothing yet. There is one
// handle per range.
func (s *Store) Log(r base.RangeID) *Log {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.logs[r]
	if l == nil {
		l = &Log{s: s, r: r}
		s.logs[r] = l
	}
	return l
}

// Ranges lists the ranges with any log record, in order. It must not run beside a
// Commit.
func (s *Store) Ranges() []base.RangeID {
	s.mu.Lock()
	defer s.mu.Unlock()
	var rs []base.RangeID
	for r, l := range s.logs {
		if l.now.exists {
			rs = append(rs, r)
		}
	}
	slices.Sort(rs)
	return rs
}

// Failed returns the error that a commit failed with, if any did.
func (s *Store) Failed() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed
}

func (s *Store) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed == nil {
		s.failed = err
	}
}

// Node returns the node record; ok is false if there is none yet.
func (s *Store) Node() (record []byte, ok bool, err error) {
	key := []byte{keyNode}
	v, ok, err := s.e.Get(key)
	if err != nil || !ok {
		return nil, false, err
	}
	body, ok := unseal(key, v)
	if !ok {
		return nil, false, fault.New(fault.Corrupt, "log store: the node record fails its checksum")
	}
	return body, true, nil
}

// Tombstone says that a replica was removed from this node for good.
type Tombstone struct {
	Range   base.RangeID
	Replica base.ReplicaID
}

// HasTombstone says whether the replica was removed.
func (s *Store) HasTombstone(t Tombstone) (bool, error) {
	_, ok, err := s.e.Get(appendTombstone(nil, t.Range, t.Replica))
	return ok, err
}

// Tombstones lists all tombstones, by range and replica.
func (s *Store) Tombstones() ([]Tombstone, error) {
	it, err := s.e.NewIter([]byte{keyTombstone}, []byte{keyTombstone + 1})
	if err != nil {
		return nil, err
	}
	defer it.Close()
	var ts []Tombstone
	for ok := it.First(); ok; ok = it.Next() {
		k := it.Key()
		if len(k) != 17 {
			return nil, fault.New(fault.Corrupt, "log store: key %x is no tombstone", k)
		}
		ts = append(ts, Tombstone{
			Range:   base.RangeID(binary.BigEndian.Uint64(k[1:])),
			Replica: base.ReplicaID(binary.BigEndian.Uint64(k[9:])),
		})
	}
	return ts, it.Error()
}

// Compare orders tombstones by range and replica.
func (t Tombstone) Compare(u Tombstone) int {
	return cmp.Or(cmp.Compare(t.Range, u.Range), cmp.Compare(t.Replica, u.Replica))
}
