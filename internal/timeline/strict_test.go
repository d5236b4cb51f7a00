package timeline

import (
	"bytes"

	"github.com/almanacdb/almanac/internal/effect"
)

// strict is a view that allows no more than its contract: what an iterator hands out is
// destroyed by the next move, and what a writer hands in is used before the call returns.
type strict struct{ effect.View }

func (s strict) NewIter(lower, upper []byte) (effect.Iterator, error) {
	it, err := s.View.NewIter(lower, upper)
	return &strictIter{Iterator: it}, err
}

type strictIter struct {
	effect.Iterator
	lent [][]byte
}

func (it *strictIter) spoil() {
	for _, b := range it.lent {
		for i := range b {
			b[i] = 0xdb
		}
	}
	it.lent = it.lent[:0]
}

func (it *strictIter) lend(b []byte) []byte {
	b = bytes.Clone(b)
	it.lent = append(it.lent, b)
	return b
}

func (it *strictIter) First() bool            { it.spoil(); return it.Iterator.First() }
func (it *strictIter) Next() bool             { it.spoil(); return it.Iterator.Next() }
func (it *strictIter) SeekGE(key []byte) bool { it.spoil(); return it.Iterator.SeekGE(key) }
func (it *strictIter) Close() error           { it.spoil(); return it.Iterator.Close() }
func (it *strictIter) Key() []byte            { return it.lend(it.Iterator.Key()) }
func (it *strictIter) Value() ([]byte, error) {
	b, err := it.Iterator.Value()
	return it.lend(b), err
}
