package engine

import (
	"bytes"

	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/keys"
)

// memIter walks a tree that nobody writes to. It fetches items in chunks that grow, so
// that a seek stays cheap and a scan does not descend the tree for every key.
type memIter struct {
	t            *tree
	lower, upper []byte
	prefix       []byte // not nil after SeekPrefixGE
	chunk        []item // in walking order
	pos          int    // chunk[pos] is the current item if 0 <= pos < len(chunk)
	want         int    // size of the next chunk
	backward     bool   // the chunk's walking order
	skip         []byte // a key that a refill leaves out: the one it continues from
	err          error
}

const (
	firstChunk = 2
	maxChunk   = 64
)

func newMemIter(t *tree, lower, upper []byte) *memIter {
	return &memIter{t: t, lower: bytes.Clone(lower), upper: bytes.Clone(upper)}
}

func (it *memIter) collect(x item) bool {
	if it.backward {
		if it.lower != nil && bytes.Compare(x.key, it.lower) < 0 {
			return false
		}
		if it.upper != nil && bytes.Compare(x.key, it.upper) >= 0 {
			return true // only the starting key can be the excluded bound
		}
	} else if it.upper != nil && bytes.Compare(x.key, it.upper) >= 0 {
		return false
	}
	if it.skip != nil && bytes.Equal(x.key, it.skip) {
		return true
	}
	it.chunk = append(it.chunk, x)
	return len(it.chunk) < it.want
}

func (it *memIter) reset() {
	it.chunk, it.pos = it.chunk[:0], 0
	it.want = min(max(it.want*2, firstChunk), maxChunk)
}

func (it *memIter) ascend(from, skip []byte) bool {
	it.reset()
	it.backward, it.skip = false, skip
	if it.lower != nil && bytes.Compare(from, it.lower) < 0 {
		from = it.lower
	}
	it.t.AscendGreaterOrEqual(item{key: from}, it.collect)
	return it.Valid()
}

// descend fills with the items at or below from; nil means from the end.
func (it *memIter) descend(from, skip []byte) bool {
	it.reset()
	it.backward, it.skip = true, skip
	if it.upper != nil && (from == nil || bytes.Compare(from, it.upper) > 0) {
		from = it.upper
	}
	if from == nil {
		it.t.Descend(it.collect)
	} else {
		it.t.DescendLessOrEqual(item{key: from}, it.collect)
	}
	return it.Valid()
}

func (it *memIter) First() bool { return it.SeekGE(nil) }

func (it *memIter) Last() bool {
	it.prefix, it.want = nil, 0
	return it.descend(nil, nil)
}

func (it *memIter) SeekGE(key []byte) bool {
	it.prefix, it.want = nil, 0
	return it.ascend(key, nil)
}

func (it *memIter) SeekLT(key []byte) bool {
	it.prefix, it.want = nil, 0
	if key == nil {
		key = []byte{}
	}
	return it.descend(key, key)
}

func (it *memIter) SeekPrefixGE(key []byte) bool {
	if bytes.Compare(key, it.lower) < 0 || it.upper != nil && bytes.Compare(key, it.upper) >= 0 {
		it.err = fault.New(fault.Internal, "prefix seek to %x, outside of the iterator's bounds", key)
		it.chunk, it.pos = it.chunk[:0], 0
		return false
	}
	it.SeekGE(key)
	it.prefix = bytes.Clone(key[:keys.Split(key)])
	return it.Valid()
}

func (it *memIter) Next() bool {
	if it.pos >= len(it.chunk) { // ran out
		if it.backward {
			return it.First()
		}
		return false
	}
	if it.backward {
		cur := it.chunk[it.pos].key
		return it.ascend(cur, cur)
	}
	if it.pos++; it.pos == len(it.chunk) && len(it.chunk) == it.want {
		last := it.chunk[it.pos-1].key
		it.ascend(last, last)
	}
	return it.Valid()
}

func (it *memIter) Prev() bool {
	if it.pos >= len(it.chunk) {
		if !it.backward {
			return it.Last()
		}
		return false
	}
	if !it.backward {
		cur := it.chunk[it.pos].key
		return it.descend(cur, cur)
	}
	if it.pos++; it.pos == len(it.chunk) && len(it.chunk) == it.want {
		last := it.chunk[it.pos-1].key
		it.descend(last, last)
	}
	return it.Valid()
}

func (it *memIter) NextPrefix() bool {
	if it.prefix != nil || !it.Valid() {
		it.chunk, it.pos = it.chunk[:0], 0
		return false
	}
	if it.upper != nil && keys.Split(it.upper) != len(it.upper) {
		it.err = fault.New(fault.Internal, "NextPrefix with an upper bound that has a suffix: %x", it.upper)
		it.chunk, it.pos = it.chunk[:0], 0
		return false
	}
	cur := it.Key()
	cur = cur[:keys.Split(cur)]
	for it.Next() {
		if k := it.Key(); !bytes.Equal(k[:keys.Split(k)], cur) {
			return true
		}
	}
	return false
}

func (it *memIter) Valid() bool {
	if it.pos >= len(it.chunk) {
		return false
	}
	if it.prefix == nil {
		return true
	}
	k := it.chunk[it.pos].key
	return bytes.Equal(k[:keys.Split(k)], it.prefix)
}

func (it *memIter) Key() []byte            { return it.chunk[it.pos].key }
func (it *memIter) Value() ([]byte, error) { return it.chunk[it.pos].value, nil }
func (it *memIter) Error() error           { return it.err }
func (it *memIter) Close() error           { return it.err }
