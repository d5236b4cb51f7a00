package statestore

import (
	"bytes"
	"fmt"
	"hash/crc32"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/command"
	"github.com/almanacdb/almanac/internal/effect"
	"github.com/almanacdb/almanac/internal/engine"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/keys"
	"github.com/almanacdb/almanac/internal/plant"
)

// FileBytes is the size from which a snapshot goes on in a new file. A file is larger
// by at most one record and what the format adds.
const FileBytes = 2 << 20

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func corruptKey(err error) error {
	return fault.Wrap(fault.Corrupt, err, "the state store holds a bad key")
}

// File is one piece of a snapshot: a sorted file as the engine writes it.
type File struct {
	Seq  uint32 // from 0
	Last bool
	Data []byte
	Sum  uint32 // CRC32C of Data
}

// SnapshotReader yields a range's data as files, one at a time, all from one instant.
// Together the files delete all of the range's span in every family, each key once, and
// set what the range holds. Not safe for concurrent use.
type SnapshotReader struct {
	e     engine.Engine
	snap  engine.Snapshot
	state []byte
	span  base.Span
	limit int

	seq      uint32
	family   int // index into keys.SpanFamilies; at its end, all is read
	it       effect.Iterator
	from     []byte // where the next range delete starts
	upper    []byte // of the family's span
	finished bool
}

// ReadSnapshot opens a snapshot of a range as of now; close it. The error is of kind
// RangeNotFound if the range has no state record.
func (s *Store) ReadSnapshot(r base.RangeID) (*SnapshotReader, error) {
	snap := s.e.NewSnapshot()
	rec, ok, err := snap.Get(keys.RangeState(r))
	if err == nil && !ok {
		err = fault.New(fault.RangeNotFound, "no state record of range %d", r).OnRange(r)
	}
	var st *command.State
	if err == nil {
		st, err = command.DecodeState(rec)
	}
	if err != nil {
		snap.Close()
		return nil, err
	}
	return &SnapshotReader{
		e: s.e, snap: snap, state: rec, span: st.Descriptor.Span, limit: FileBytes,
	}, nil
}

// State returns the range's state record as of the snapshot.
func (r *SnapshotReader) State() []byte { return r.state }

// Next returns the next file, which is the caller's. After the one that is Last there
// is none: an error of kind Internal.
func (r *SnapshotReader) Next() (File, error) {
	if r.finished {
		return File{}, fault.New(fault.Internal, "read a snapshot past its last file")
	}
	w := r.e.NewSST()
	for r.family < len(keys.SpanFamilies) {
		more, err := r.fill(w)
		if err != nil {
			return File{}, err
		}
		if more {
			return r.finish(w)
		}
		r.family++
	}
	r.finished = true
	return r.finish(w)
}

// fill adds what is left of the current family. It returns true if the file is full
// before that; then the iterator stands on the next record.
func (r *SnapshotReader) fill(w engine.SSTWriter) (full bool, err error) {
	if r.it == nil {
		r.from, r.upper = keys.FamilySpan(keys.SpanFamilies[r.family], r.span)
		if r.it, err = r.snap.NewIter(r.from, r.upper); err != nil {
			return false, err
		}
		r.it.First()
	}
	for ; r.it.Valid(); r.it.Next() {
		if w.Size() >= r.limit {
			next := bytes.Clone(r.it.Key())
			err := w.DeleteRange(r.from, next)
			r.from = next
			return true, err
		}
		v, err := r.it.Value()
		if err != nil {
			return false, err
		}
		if err := w.Set(r.it.Key(), v); err != nil {
			return false, err
		}
	}
	if err := r.it.Error(); err != nil {
		return false, err
	}
	if err := w.DeleteRange(r.from, r.upper); err != nil {
		return false, err
	}
	err = r.it.Close()
	r.it = nil
	return false, err
}

func (r *SnapshotReader) finish(w engine.SSTWriter) (File, error) {
	data, err := w.Finish()
	if err != nil {
		return File{}, err
	}
	f := File{Seq: r.seq, Last: r.finished, Data: data, Sum: crc32.Checksum(data, castagnoli)}
	r.seq++
	return f, nil
}

// Close releases the snapshot.
func (r *SnapshotReader) Close() error {
	r.finished = true
	if r.it != nil {
		r.it.Close()
		r.it = nil
	}
	return r.snap.Close()
}

// Installer receives a snapshot's files in order, holds them staged, and makes them the
// range's data at once. Not safe for concurrent use.
type Installer struct {
	s      *Store
	r      base.RangeID
	prefix string
	staged []string
	last   bool // the last file is here
	done   bool
}

// NewInstaller starts receiving a snapshot of a range. Several may be under way.
func (s *Store) NewInstaller(r base.RangeID) *Installer {
	return &Installer{s: s, r: r, prefix: fmt.Sprintf("snapshot-%d-%d", r, s.staged.Add(1))}
}

// Add stages the next file, durably. The error is of kind Corrupt if it fails its
// checksum, and Invalid if it is not the next one; then abort.
func (i *Installer) Add(f File) error {
	if i.done || i.last || int(f.Seq) != len(i.staged) {
		return fault.New(fault.Invalid, "file %d of a snapshot of range %d is out of order", f.Seq, i.r).OnRange(i.r)
	}
	if crc32.Checksum(f.Data, castagnoli) != f.Sum {
		return fault.New(fault.Corrupt, "file %d of a snapshot of range %d fails its checksum", f.Seq, i.r).OnRange(i.r)
	}
	name := fmt.Sprintf("%s-%d", i.prefix, f.Seq)
	if err := i.s.e.Stage(name, f.Data); err != nil {
		return err
	}
	i.staged = append(i.staged, name)
	i.last = f.Last
	return nil
}

// Complete says that every file is here.
func (i *Installer) Complete() bool { return i.last && !i.done }

// Install makes the snapshot and the receiving replica's own state record visible and
// durable, atomically (S2). If it fails nothing has changed, and the installer is
// finished either way.
func (i *Installer) Install(state []byte) error {
	if !i.Complete() {
		i.Abort()
		return fault.New(fault.Internal, "installing an incomplete snapshot of range %d", i.r).OnRange(i.r)
	}
	err := i.stageState(state)
	if n := len(i.staged) - 1; err == nil && plant.On(plant.SnapshotIndexFirst) {
		err, i.staged = i.s.e.Ingest(i.staged[n]), i.staged[:n]
	}
	if err == nil {
		err = i.s.e.Ingest(i.staged...)
	}
	if err != nil {
		i.Abort()
		return err
	}
	i.done = true
	return nil
}

func (i *Installer) stageState(state []byte) error {
	st, err := command.DecodeState(state)
	if err != nil {
		return err
	}
	if st.Descriptor.Range != i.r {
		return fault.New(fault.Internal, "the state record of range %d for a snapshot of range %d",
			st.Descriptor.Range, i.r).OnRange(i.r)
	}
	w := i.s.e.NewSST()
	if err := w.Set(keys.RangeState(i.r), state); err != nil {
		return err
	}
	data, err := w.Finish()
	if err != nil {
		return err
	}
	name := i.prefix + "-state"
	if err := i.s.e.Stage(name, data); err != nil {
		return err
	}
	i.staged = append(i.staged, name)
	return nil
}

// Abort drops what was staged; harmless after Install.
func (i *Installer) Abort() {
	if !i.done {
		i.done = true
		i.s.e.Unstage(i.staged...)
	}
}
