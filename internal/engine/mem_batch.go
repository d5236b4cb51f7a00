package engine

import (
	"bytes"

	"github.com/almanacdb/almanac/internal/effect"
	"github.com/almanacdb/almanac/internal/fault"
)

// memBatch keeps its writes as a list. An indexed one also keeps merged, a tree of the
// engine as of version base with the writes so far; reading is then as cheap as from
// the engine, and committing an undisturbed batch swaps the trees. When the engine
// changed underneath, the next read rebuilds merged.
type memBatch struct {
	m       *Mem
	indexed bool
	done    bool
	ops     []op
	merged  *tree
	base    uint64
	merging int // ops[:merging] are in merged
}

// NewBatch implements Engine.
func (m *Mem) NewBatch(indexed bool) Batch { return &memBatch{m: m, indexed: indexed} }

var errBatchDone = fault.New(fault.Internal, "batch used after it was committed or closed")

func (b *memBatch) add(o op) error {
	if b.done {
		return errBatchDone
	}
	b.ops = append(b.ops, o)
	return nil
}

func (b *memBatch) Set(key, value []byte) error {
	buf := make([]byte, len(key)+len(value))
	n := copy(buf, key)
	copy(buf[n:], value)
	return b.add(op{key: buf[:n:n], value: buf[n:]})
}

func (b *memBatch) Delete(key []byte) error {
	return b.add(op{key: bytes.Clone(key)})
}

func (b *memBatch) DeleteRange(lower, upper []byte) error {
	if bytes.Compare(lower, upper) >= 0 {
		return nil
	}
	return b.add(op{key: bytes.Clone(lower), upper: bytes.Clone(upper)})
}

// view returns the merged tree, brought up to date.
func (b *memBatch) view() (*tree, error) {
	if b.done {
		return nil, errBatchDone
	}
	if !b.indexed {
		return nil, fault.New(fault.Internal, "read through a batch that is not indexed")
	}
	b.m.mu.Lock()
	defer b.m.mu.Unlock()
	if b.m.closed {
		return nil, errMemClosed
	}
	if b.merged == nil || b.base != b.m.version {
		b.merged, b.base, b.merging = b.m.current.Clone(), b.m.version, 0
	}
	for ; b.merging < len(b.ops); b.merging++ {
		applyOp(b.merged, b.ops[b.merging])
	}
	return b.merged, nil
}

func (b *memBatch) Get(key []byte) ([]byte, bool, error) {
	t, err := b.view()
	if err != nil {
		return nil, false, err
	}
	v, ok := getFrom(t, key)
	return v, ok, nil
}

func (b *memBatch) NewIter(lower, upper []byte) (effect.Iterator, error) {
	t, err := b.view()
	if err != nil {
		return nil, err
	}
	return newMemIter(t.Clone(), lower, upper), nil
}

func (b *memBatch) Empty() bool { return len(b.ops) == 0 }

func (b *memBatch) Commit(sync bool) error {
	if b.done {
		return errBatchDone
	}
	b.done = true
	merged := b.merged
	if b.merging != len(b.ops) {
		merged = nil
	}
	return b.m.commit(b.ops, merged, b.base, sync)
}

func (b *memBatch) Close() error {
	b.done = true
	return nil
}
