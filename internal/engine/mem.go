package engine

import (
	"bytes"
	"sync"

	"github.com/google/btree"

	"github.com/almanacdb/almanac/internal/effect"
	"github.com/almanacdb/almanac/internal/fault"
)

// Op names a step of an in-memory engine that can be made to fail.
type Op string

// The steps that MemOptions.Fail is asked about.
const (
	OpCommit Op = "commit" // any commit, before it is visible
	OpSync   Op = "sync"   // a synced commit, after it is visible and before it is durable
	OpFlush  Op = "flush"
	OpStage  Op = "stage"
	OpIngest Op = "ingest"
)

// MemOptions configures an in-memory engine.
type MemOptions struct {
	// WAL gives the engine a write-ahead log: synced commits are durable. Without it
	// only Flush and Ingest make anything durable.
	WAL bool
	// Fail, if set, is asked before each step; an error makes the step fail. A failed
	// commit or sync latches: the engine takes no further writes, as a real one whose
	// log can't be written (S6). A failed flush, stage or ingest changes nothing.
	Fail func(Op) error
}

// Mem is the in-memory engine. It runs no goroutine: what is durable changes only
// inside Commit, Flush and Ingest, and Crash shows what a power cut leaves.
type Mem struct {
	opts MemOptions

	mu      sync.Mutex
	version uint64 // counts changes of current
	current *tree
	durable *tree
	pending [][]op // commits that durable lacks, oldest first
	staged  map[string]*memFile
	failed  error // latched; every write returns it
	closed  bool
}

var _ Engine = (*Mem)(nil)

// NewMem returns an empty in-memory engine.
func NewMem(opts MemOptions) *Mem {
	t := newTree()
	return &Mem{opts: opts, current: t, durable: t.Clone(), staged: map[string]*memFile{}}
}

type item struct{ key, value []byte }

// tree is copy-on-write: Clone costs nothing, and a tree that is no longer written to
// may be read without a lock.
type tree = btree.BTreeG[item]

func newTree() *tree {
	return btree.NewG(16, func(a, b item) bool { return bytes.Compare(a.key, b.key) < 0 })
}

// op is one write of a batch. With upper set it deletes [key, upper); else with value
// nil it deletes key.
type op struct{ key, value, upper []byte }

func applyOp(t *tree, o op) {
	switch {
	case o.upper != nil:
		deleteSpan(t, o.key, o.upper)
	case o.value == nil:
		t.Delete(item{key: o.key})
	default:
		t.ReplaceOrInsert(item{o.key, o.value})
	}
}

func deleteSpan(t *tree, lower, upper []byte) {
	var dead []item
	t.AscendRange(item{key: lower}, item{key: upper}, func(it item) bool {
		dead = append(dead, it)
		return true
	})
	for _, it := range dead {
		t.Delete(it)
	}
}

func getFrom(t *tree, key []byte) ([]byte, bool) {
	it, ok := t.Get(item{key: key})
	if !ok {
		return nil, false
	}
	return append(make([]byte, 0, len(it.value)), it.value...), true
}

var errMemClosed = fault.New(fault.Stopped, "the in-memory engine is closed")

func (m *Mem) fail(o Op) error {
	if m.opts.Fail == nil {
		return nil
	}
	return m.opts.Fail(o)
}

func (m *Mem) writable() error {
	if m.closed {
		return errMemClosed
	}
	return m.failed
}

// Get implements Engine.
func (m *Mem) Get(key []byte) ([]byte, bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, false, errMemClosed
	}
	v, ok := getFrom(m.current, key)
	return v, ok, nil
}

// NewIter implements Engine.
func (m *Mem) NewIter(lower, upper []byte) (effect.Iterator, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, errMemClosed
	}
	return newMemIter(m.current.Clone(), lower, upper), nil
}

// NewSnapshot implements Engine.
func (m *Mem) NewSnapshot() Snapshot {
	m.mu.Lock()
	defer m.mu.Unlock()
	return &memSnapshot{t: m.current.Clone()}
}

type memSnapshot struct{ t *tree }

func (s *memSnapshot) Get(key []byte) ([]byte, bool, error) {
	v, ok := getFrom(s.t, key)
	return v, ok, nil
}

func (s *memSnapshot) NewIter(lower, upper []byte) (effect.Iterator, error) {
	return newMemIter(s.t, lower, upper), nil
}

func (s *memSnapshot) Close() error { return nil }

// DurableGet implements Engine.
func (m *Mem) DurableGet(key []byte) ([]byte, bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, false, errMemClosed
	}
	v, ok := getFrom(m.durable, key)
	return v, ok, nil
}

// Flush implements Engine.
func (m *Mem) Flush() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.writable(); err != nil {
		return err
	}
	if err := m.fail(OpFlush); err != nil {
		return err
	}
	m.persist()
	return nil
}

// persist makes everything committed durable.
func (m *Mem) persist() {
	if len(m.pending) == 0 {
		return
	}
	m.durable, m.pending = m.current.Clone(), nil
}

// commit applies ops. merged, if not nil, is current as of version base with ops
// applied already.
func (m *Mem) commit(ops []op, merged *tree, base uint64, sync bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.writable(); err != nil {
		return err
	}
	if sync && !m.opts.WAL {
		return fault.New(fault.Internal, "synced commit on an engine without a write-ahead log")
	}
	if err := m.fail(OpCommit); err != nil {
		m.failed = err
		return err
	}
	if len(ops) > 0 {
		if merged != nil && base == m.version {
			m.current = merged
		} else {
			for _, o := range ops {
				applyOp(m.current, o)
			}
		}
		m.version++
		m.pending = append(m.pending, ops)
	}
	if !sync {
		return nil
	}
	if err := m.fail(OpSync); err != nil {
		m.failed = err
		return err
	}
	m.persist()
	return nil
}

// DiskUsage implements Engine; it counts keys and values exactly.
func (m *Mem) DiskUsage(lower, upper []byte) (uint64, error) {
	it, err := m.NewIter(lower, upper)
	if err != nil {
		return 0, err
	}
	var n uint64
	for ok := it.First(); ok; ok = it.Next() {
		v, _ := it.Value()
		n += uint64(len(it.Key()) + len(v))
	}
	return n, it.Close()
}

// Close implements Engine.
func (m *Mem) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	return nil
}

// Crash closes the engine and returns it as a power cut now would leave it. With a
// write-ahead log, survive is asked how many of the n commits that were never synced
// reached the disk all the same (the oldest ones survive); nil means none. Staged
// files are gone. The result keeps the options, with no failure latched.
func (m *Mem) Crash(survive func(n int) int) *Mem {
	c := m.CrashClone(survive)
	m.Close()
	return c
}

// CrashClone returns what Crash would and leaves the engine running.
func (m *Mem) CrashClone(survive func(n int) int) *Mem {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := &Mem{opts: m.opts, current: m.durable.Clone(), staged: map[string]*memFile{}}
	if m.opts.WAL && survive != nil && len(m.pending) > 0 {
		for _, ops := range m.pending[:min(survive(len(m.pending)), len(m.pending))] {
			for _, o := range ops {
				applyOp(c.current, o)
			}
		}
	}
	c.durable = c.current.Clone()
	return c
}
