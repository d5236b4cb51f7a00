package engine

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"slices"

	"github.com/almanacdb/almanac/internal/fault"
)

// A file of the in-memory engine is a list of records (tag, key, value or upper bound,
// both with a length), in the order they were added, and a CRC32C of all of it.

const (
	memFileSet         = 1
	memFileDeleteRange = 2
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// sstOrder checks the order that SSTWriter demands of both engines.
type sstOrder struct {
	lastKey, lastUpper []byte
	any                bool
}

func (o *sstOrder) set(key []byte) error {
	if o.any && bytes.Compare(key, o.lastKey) <= 0 {
		return fault.New(fault.Internal, "sorted file: key %x is not above %x", key, o.lastKey)
	}
	o.any = true
	o.lastKey = append(o.lastKey[:0], key...)
	return nil
}

func (o *sstOrder) deleteRange(lower, upper []byte) error {
	if bytes.Compare(lower, upper) >= 0 || bytes.Compare(lower, o.lastUpper) < 0 {
		return fault.New(fault.Internal, "sorted file: range delete [%x, %x) is empty or out of order", lower, upper)
	}
	o.lastUpper = append(o.lastUpper[:0], upper...)
	return nil
}

type memSSTWriter struct {
	order sstOrder
	buf   []byte
}

// NewSST implements Engine.
func (m *Mem) NewSST() SSTWriter { return &memSSTWriter{} }

func (w *memSSTWriter) add(tag byte, a, b []byte) {
	w.buf = append(w.buf, tag)
	w.buf = binary.AppendUvarint(w.buf, uint64(len(a)))
	w.buf = append(w.buf, a...)
	w.buf = binary.AppendUvarint(w.buf, uint64(len(b)))
	w.buf = append(w.buf, b...)
}

func (w *memSSTWriter) Set(key, value []byte) error {
	if err := w.order.set(key); err != nil {
		return err
	}
	w.add(memFileSet, key, value)
	return nil
}

func (w *memSSTWriter) DeleteRange(lower, upper []byte) error {
	if err := w.order.deleteRange(lower, upper); err != nil {
		return err
	}
	w.add(memFileDeleteRange, lower, upper)
	return nil
}

func (w *memSSTWriter) Size() int { return len(w.buf) }

func (w *memSSTWriter) Finish() ([]byte, error) {
	return binary.BigEndian.AppendUint32(w.buf, crc32.Checksum(w.buf, castagnoli)), nil
}

// memFile is a staged file: its writes, range deletes first since they cover only what
// is older, and the span [lower, upper) that it touches.
type memFile struct {
	ops          []op
	lower, upper []byte
}

func parseMemFile(name string, b []byte) (*memFile, error) {
	bad := func(what string) error {
		return fault.New(fault.Corrupt, "sorted file %q is damaged: %s", name, what)
	}
	if len(b) < 4 {
		return nil, bad("cut short")
	}
	body, sum := b[:len(b)-4], binary.BigEndian.Uint32(b[len(b)-4:])
	if crc32.Checksum(body, castagnoli) != sum {
		return nil, bad("wrong checksum")
	}
	field := func() ([]byte, bool) {
		n, l := binary.Uvarint(body)
		if l <= 0 || n > uint64(len(body)-l) {
			return nil, false
		}
		f := body[l : l+int(n) : l+int(n)]
		body = body[l+int(n):]
		return f, true
	}
	body = bytes.Clone(body)
	f := &memFile{}
	var sets []op
	for len(body) > 0 {
		tag := body[0]
		body = body[1:]
		key, ok1 := field()
		second, ok2 := field()
		if !ok1 || !ok2 || (tag != memFileSet && tag != memFileDeleteRange) {
			return nil, bad("it does not parse")
		}
		upper := second
		if tag == memFileSet {
			sets = append(sets, op{key: key, value: second})
			upper = append(bytes.Clone(key), 0)
		} else {
			f.ops = append(f.ops, op{key: key, upper: second})
		}
		if f.lower == nil || bytes.Compare(key, f.lower) < 0 {
			f.lower = key
		}
		if bytes.Compare(upper, f.upper) > 0 {
			f.upper = upper
		}
	}
	f.ops = append(f.ops, sets...)
	return f, nil
}

// Stage implements Engine.
func (m *Mem) Stage(name string, sst []byte) error {
	f, err := parseMemFile(name, sst)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.writable(); err != nil {
		return err
	}
	if err := m.fail(OpStage); err != nil {
		return err
	}
	m.staged[name] = f
	return nil
}

// Unstage implements Engine.
func (m *Mem) Unstage(names ...string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, n := range names {
		delete(m.staged, n)
	}
}

// Ingest implements Engine. As in Pebble, files that touch nothing that is not durable
// yet become durable ahead of older commits elsewhere; else everything is flushed first.
func (m *Mem) Ingest(names ...string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.writable(); err != nil {
		return err
	}
	files := make([]*memFile, 0, len(names))
	for _, n := range names {
		f, ok := m.staged[n]
		if !ok {
			return fault.New(fault.NotFound, "no staged file %q", n)
		}
		if len(f.ops) > 0 {
			files = append(files, f)
		}
	}
	slices.SortFunc(files, func(a, b *memFile) int { return bytes.Compare(a.lower, b.lower) })
	for i := 1; i < len(files); i++ {
		if bytes.Compare(files[i].lower, files[i-1].upper) < 0 {
			return fault.New(fault.Internal, "ingested files overlap at %x", files[i].lower)
		}
	}
	if err := m.fail(OpIngest); err != nil {
		return err
	}
	if m.touchesPending(files) {
		m.persist()
	}
	for _, f := range files {
		for _, o := range f.ops {
			applyOp(m.current, o)
			applyOp(m.durable, o)
		}
	}
	m.version++
	for _, n := range names {
		delete(m.staged, n)
	}
	return nil
}

func (m *Mem) touchesPending(files []*memFile) bool {
	for _, ops := range m.pending {
		for _, o := range ops {
			for _, f := range files {
				above := bytes.Compare(o.key, f.upper) >= 0
				below := o.upper == nil && bytes.Compare(o.key, f.lower) < 0 ||
					o.upper != nil && bytes.Compare(o.upper, f.lower) <= 0
				if !above && !below {
					return true
				}
			}
		}
	}
	return false
}
