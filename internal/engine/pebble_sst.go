package engine

import (
	"github.com/cockroachdb/pebble/v2/sstable"
)

// memObject is a sorted file being written to memory.
type memObject struct{ b []byte }

func (o *memObject) Write(p []byte) error {
	o.b = append(o.b, p...)
	return nil
}
func (o *memObject) Finish() error { return nil }
func (o *memObject) Abort()        {}

type pebbleSSTWriter struct {
	order sstOrder
	obj   *memObject
	w     *sstable.Writer
}

// NewSST implements Engine.
func (p *Pebble) NewSST() SSTWriter {
	obj := &memObject{}
	o := p.po.MakeWriterOptions(0, pebbleFormat.MaxTableFormat())
	return &pebbleSSTWriter{obj: obj, w: sstable.NewWriter(obj, o)}
}

func (w *pebbleSSTWriter) Set(key, value []byte) error {
	if err := w.order.set(key); err != nil {
		return err
	}
	return mapErr(w.w.Set(key, value))
}

func (w *pebbleSSTWriter) DeleteRange(lower, upper []byte) error {
	if err := w.order.deleteRange(lower, upper); err != nil {
		return err
	}
	return mapErr(w.w.DeleteRange(lower, upper))
}

func (w *pebbleSSTWriter) Size() int { return int(w.w.Raw().EstimatedSize()) }

func (w *pebbleSSTWriter) Finish() ([]byte, error) {
	if err := w.w.Close(); err != nil {
		return nil, mapErr(err)
	}
	return w.obj.b, nil
}
