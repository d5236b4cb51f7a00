package engine

import (
	"context"
	"errors"
	"os"
	"strings"

	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/almanacdb/almanac/internal/fault"
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

// clearStaging makes an empty staging directory.
func (p *Pebble) clearStaging() error {
	if err := p.fs.RemoveAll(p.staging); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return p.fs.MkdirAll(p.staging, 0o755)
}

// Stage implements Engine.
func (p *Pebble) Stage(name string, sst []byte) error {
	if err := p.use(); err != nil {
		return err
	}
	defer p.release()
	if strings.ContainsAny(name, `/\`) || name == "" || name[0] == '.' {
		return fault.New(fault.Internal, "%q is no name for a staged file", name)
	}
	path := p.fs.PathJoin(p.staging, name)
	f, err := p.fs.Create(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return mapErr(err)
	}
	buf := make([]byte, min(len(sst), 64<<10))
	for rest := sst; err == nil && len(rest) > 0; {
		n := copy(buf, rest) // a vfs.File may write into what it is given
		_, err = f.Write(buf[:n])
		rest = rest[n:]
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		p.fs.Remove(path)
		return mapErr(err)
	}
	return nil
}

// Unstage implements Engine.
func (p *Pebble) Unstage(names ...string) {
	if p.use() != nil {
		return
	}
	defer p.release()
	for _, n := range names {
		p.fs.Remove(p.fs.PathJoin(p.staging, n)) // opening clears what stays behind
	}
}

// Ingest implements Engine. It is durable on return: Pebble syncs the links and the
// manifest, and flushes memtables that the files overlap first.
func (p *Pebble) Ingest(names ...string) error {
	if err := p.use(); err != nil {
		return err
	}
	defer p.release()
	if err := p.err(); err != nil {
		return err
	}
	paths := make([]string, len(names))
	for i, n := range names {
		paths[i] = p.fs.PathJoin(p.staging, n)
		if _, err := p.fs.Stat(paths[i]); err != nil {
			return fault.Wrap(fault.NotFound, err, "no staged file %q", n)
		}
	}
	if err := p.db.Ingest(context.Background(), paths); err != nil {
		return mapErr(err)
	}
	p.version.Add(1)
	for _, path := range paths {
		p.fs.Remove(path) // Pebble removes them itself, except empty ones
	}
	return p.err()
}
