package engine

import (
	"bytes"

	"github.com/cockroachdb/pebble/v2"

	"github.com/almanacdb/almanac/internal/effect"
	"github.com/almanacdb/almanac/internal/fault"
)

type iterSource interface {
	NewIter(*pebble.IterOptions) (*pebble.Iterator, error)
}

// pebbleIter is a Pebble iterator with its errors mapped. One that reads through a
// batch goes back to the batch when it is closed, for the next NewIter.
type pebbleIter struct {
	*pebble.Iterator
	b       *pebbleBatch // nil if not to be reused
	version uint64       // of the engine when it was made
}

func iterOptions(lower, upper []byte) pebble.IterOptions {
	return pebble.IterOptions{LowerBound: lower, UpperBound: upper, UseL6Filters: true}
}

func newIter(r iterSource, lower, upper []byte) (*pebbleIter, error) {
	o := iterOptions(lower, upper)
	it, err := r.NewIter(&o)
	if err != nil {
		return nil, mapErr(err)
	}
	return &pebbleIter{Iterator: it}, nil
}

func readIter(r iterSource, lower, upper []byte) (effect.Iterator, error) {
	it, err := newIter(r, lower, upper)
	if err != nil {
		return nil, err
	}
	return it, nil
}

func (it *pebbleIter) Value() ([]byte, error) {
	v, err := it.ValueAndErr()
	return v, mapErr(err)
}

func (it *pebbleIter) Error() error { return mapErr(it.Iterator.Error()) }

func (it *pebbleIter) Close() error {
	if it.Iterator == nil {
		return nil
	}
	if err := it.Iterator.Error(); err == nil && it.b != nil && it.b.spare == nil && it.b.b != nil {
		it.b.spare = &pebbleIter{it.Iterator, it.b, it.version}
		it.Iterator = nil
		return nil
	}
	err := it.Iterator.Close()
	it.Iterator = nil
	return mapErr(err)
}

type pebbleBatch struct {
	p       *Pebble
	b       *pebble.Batch // nil once finished
	indexed bool
	spare   *pebbleIter // a closed iterator, kept for the next NewIter
	last    *sequence   // of the last key set that has one
}

// NewBatch implements Engine.
func (p *Pebble) NewBatch(indexed bool) Batch {
	b := &pebbleBatch{p: p, indexed: indexed}
	if indexed {
		b.b = p.db.NewIndexedBatch()
	} else {
		b.b = p.db.NewBatch()
	}
	return b
}

func (b *pebbleBatch) Set(key, value []byte) error {
	if b.b == nil {
		return errBatchDone
	}
	if q := b.p.sequences.of(key, b.last); q != nil {
		q.bytes.Add(int64(len(key) + len(value)))
		b.last = q
	}
	return mapErr(b.b.Set(key, value, nil))
}

func (b *pebbleBatch) Delete(key []byte) error {
	if b.b == nil {
		return errBatchDone
	}
	return mapErr(b.b.Delete(key, nil))
}

func (b *pebbleBatch) DeleteRange(lower, upper []byte) error {
	if b.b == nil {
		return errBatchDone
	}
	if bytes.Compare(lower, upper) >= 0 {
		return nil
	}
	return mapErr(b.b.DeleteRange(lower, upper, nil))
}

func (b *pebbleBatch) readable() error {
	if b.b == nil {
		return errBatchDone
	}
	if !b.indexed {
		return fault.New(fault.Internal, "read through a batch that is not indexed")
	}
	return b.p.use()
}

// Get goes through an iterator because that one is reused: half the cost of Pebble's Get.
func (b *pebbleBatch) Get(key []byte) ([]byte, bool, error) {
	it, err := b.iter(nil, nil)
	if err != nil {
		return nil, false, err
	}
	var value []byte
	ok := it.SeekPrefixGE(key) && bytes.Equal(it.Key(), key)
	if ok {
		var v []byte
		if v, err = it.Value(); err == nil {
			value = append(make([]byte, 0, len(v)), v...)
		}
	}
	if err == nil {
		err = it.Error()
	}
	if cerr := it.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return nil, false, err
	}
	return value, ok, nil
}

func (b *pebbleBatch) NewIter(lower, upper []byte) (effect.Iterator, error) {
	it, err := b.iter(lower, upper)
	if err != nil {
		return nil, err
	}
	return it, nil
}

// iter reuses the last closed iterator if the engine did not change since it was made;
// that costs a third of a new one.
func (b *pebbleBatch) iter(lower, upper []byte) (*pebbleIter, error) {
	if err := b.readable(); err != nil {
		return nil, err
	}
	defer b.p.release()
	version := b.p.version.Load()
	if it := b.spare; it != nil {
		b.spare = nil
		if it.version == version {
			o := iterOptions(lower, upper)
			it.SetOptions(&o)
			return it, nil
		}
		if err := it.Iterator.Close(); err != nil {
			return nil, mapErr(err)
		}
	}
	it, err := newIter(b.b, lower, upper)
	if err != nil {
		return nil, err
	}
	it.b, it.version = b, version
	return it, nil
}

func (b *pebbleBatch) Empty() bool { return b.b == nil || b.b.Empty() }

func (b *pebbleBatch) Commit(sync bool) error {
	if b.b == nil {
		return errBatchDone
	}
	defer b.Close()
	if err := b.dropSpare(); err != nil {
		return err
	}
	if sync && !b.p.opts.WAL {
		return fault.New(fault.Internal, "synced commit on an engine without a write-ahead log")
	}
	if err := b.p.commit(b.b, sync); err != nil {
		return err
	}
	b.p.flushByAge()
	return nil
}

func (p *Pebble) commit(b *pebble.Batch, sync bool) error {
	if err := p.use(); err != nil {
		return err
	}
	defer p.release()
	if err := p.err(); err != nil {
		return err
	}
	wo := pebble.NoSync
	if sync && syncs {
		wo = pebble.Sync
	} else {
		p.unsynced.Store(true)
	}
	err := mapErr(b.Commit(wo))
	p.version.Add(1)
	if err != nil {
		p.fail(err)
		return err
	}
	// When a write to the log fails, Pebble logs it as fatal and returns no error.
	return p.err()
}

func (b *pebbleBatch) dropSpare() error {
	it := b.spare
	if it == nil {
		return nil
	}
	b.spare = nil
	return mapErr(it.Iterator.Close())
}

func (b *pebbleBatch) Close() error {
	if b.b == nil {
		return nil
	}
	err := b.dropSpare()
	if cerr := b.b.Close(); err == nil {
		err = mapErr(cerr)
	}
	b.b = nil
	return err
}
