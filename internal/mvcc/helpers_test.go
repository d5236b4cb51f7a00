package mvcc

import (
	"bytes"
	"testing"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/effect"
	"github.com/almanacdb/almanac/internal/engine"
	"github.com/almanacdb/almanac/internal/keys"
)

// newView returns an empty view whose iterators destroy what they lent as soon as they
// move or close, and that counts writes, refuses them while an iterator is open, and refuses inverted bounds.
func newView() *strictView {
	return &strictView{View: engine.NewMem(engine.MemOptions{}).NewBatch(true)}
}

type strictView struct {
	effect.View
	open   int // iterators
	writes int
	seeks  int
}

func (v *strictView) NewIter(lower, upper []byte) (effect.Iterator, error) {
	if lower != nil && bytes.Compare(lower, upper) >= 0 {
		panic("bounds are inverted")
	}
	it, err := v.View.NewIter(lower, upper)
	v.open++
	return &strictIter{Iterator: it, v: v}, err
}

func (v *strictView) Set(key, value []byte) error {
	if v.open != 0 {
		panic("write while an iterator is open")
	}
	v.writes++
	return v.View.Set(key, value)
}

type strictIter struct {
	effect.Iterator
	v          *strictView
	key, value []byte
}

func (it *strictIter) spoil() {
	for _, b := range [][]byte{it.key, it.value} {
		for i := range b {
			b[i] = 0xdb
		}
	}
	it.key, it.value = nil, nil
}

func (it *strictIter) First() bool { it.spoil(); return it.Iterator.First() }
func (it *strictIter) SeekGE(k []byte) bool {
	it.v.seeks++
	k = bytes.Clone(k)
	it.spoil()
	return it.Iterator.SeekGE(k)
}
func (it *strictIter) SeekPrefixGE(k []byte) bool { it.spoil(); return it.Iterator.SeekPrefixGE(k) }
func (it *strictIter) Next() bool                 { it.spoil(); return it.Iterator.Next() }
func (it *strictIter) NextPrefix() bool           { it.spoil(); return it.Iterator.NextPrefix() }
func (it *strictIter) Close() error               { it.spoil(); it.v.open--; return it.Iterator.Close() }

func (it *strictIter) Key() []byte {
	if it.key == nil {
		it.key = bytes.Clone(it.Iterator.Key())
	}
	return it.key
}

func (it *strictIter) Value() ([]byte, error) {
	v, err := it.Iterator.Value()
	it.value = bytes.Clone(v)
	return it.value, err
}

// fataler is what testing.TB and rapid.T share.
type fataler interface {
	Helper()
	Fatal(args ...any)
}

// dump returns every version in a view, in key order.
func dump(t fataler, r effect.Reader) []string {
	t.Helper()
	it, err := r.NewIter(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer it.Close()
	var out []string
	for ok := it.First(); ok; ok = it.Next() {
		v, err := it.Value()
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, string(it.Key())+"\x00="+string(v))
	}
	return out
}

// user returns a logical key in the default keyspace.
func user(k string) []byte { return keys.User(base.DefaultKeyspace, []byte(k)) }

func point(k string) base.Span { return base.PointSpan(user(k)) }

func span(start, end string) base.Span {
	return keys.UserSpan(base.DefaultKeyspace, []byte(start), []byte(end))
}

func put(k, v string) Op { return Op{Kind: OpPut, Span: point(k), Value: []byte(v)} }

func mustApply(t testing.TB, v effect.View, txn *Txn, at base.Timestamp) *TxnResult {
	t.Helper()
	res, err := Apply(v, txn, at, 0, true)
	if err != nil {
		t.Fatalf("apply at %d: %v", at, err)
	}
	return res
}
