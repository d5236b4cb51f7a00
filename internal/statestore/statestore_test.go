package statestore

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/command"
	"github.com/almanacdb/almanac/internal/effect"
	"github.com/almanacdb/almanac/internal/engine"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/keys"
)

// disk is an engine that can lose its power.
type disk struct {
	engine.Engine
	crash func() *disk
}

func memDisk(m *engine.Mem) *disk {
	return &disk{m, func() *disk { return memDisk(m.Crash(nil)) }}
}

func pebbleDisk(t *testing.T, fs *vfs.MemFS) *disk {
	e, err := engine.OpenPebble("state", engine.Options{FS: fs, FlushAge: 1 << 40})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	return &disk{e, func() *disk {
		clone := fs.CrashClone(vfs.CrashCloneCfg{})
		e.Close()
		return pebbleDisk(t, clone)
	}}
}

func forEachEngine(t *testing.T, f func(t *testing.T, open func() *disk)) {
	t.Run("mem", func(t *testing.T) {
		f(t, func() *disk { return memDisk(engine.NewMem(engine.MemOptions{})) })
	})
	t.Run("pebble", func(t *testing.T) {
		f(t, func() *disk { return pebbleDisk(t, vfs.NewCrashableMem()) })
	})
}

var span = keys.UserSpan(base.DefaultKeyspace, []byte("d"), []byte("p"))

func state(r base.RangeID, replica base.ReplicaID, index uint64) []byte {
	return command.EncodeState(nil, &command.State{
		Descriptor: base.RangeDescriptor{
			Range: r, Span: span, SpanEpoch: 1, ConfigEpoch: 1, Protocol: base.ProtocolRaft,
			Keyspace: base.DefaultKeyspace,
			Replicas: []base.ReplicaDescriptor{{Node: 1, Replica: replica, Role: base.RoleVoter}},
		},
		Replica: replica,
		Applied: base.LogMark{Index: index, Term: 1},
	})
}

func write(t *testing.T, e engine.Engine, f func(b engine.Batch)) {
	t.Helper()
	b := e.NewBatch(false)
	f(b)
	if err := b.Commit(false); err != nil {
		t.Fatal(err)
	}
}

// fill writes n records of each of several families under logical keys inside and
// around the span, all with values that start with tag.
func fill(t *testing.T, e engine.Engine, tag string, n int) {
	t.Helper()
	write(t, e, func(b engine.Batch) {
		for i := range n {
			for _, at := range []string{"a", "c\xff", "d", "d\x00", "k", "o\xff\xff", "p", "z"} {
				logical := keys.User(base.DefaultKeyspace, []byte(at))
				for _, f := range []keys.Family{keys.FamilyVersion, keys.FamilyLock, keys.FamilyTimer} {
					k := keys.AppendPrefix(nil, f, logical)
					k = fmt.Appendf(k, "%08d", i)
					if err := b.Set(k, fmt.Appendf(nil, "%s %d", tag, i)); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
	})
}

func contents(t *testing.T, r effect.Reader) map[string]string {
	t.Helper()
	it, err := r.NewIter(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer it.Close()
	m := map[string]string{}
	for ok := it.First(); ok; ok = it.Next() {
		v, err := it.Value()
		if err != nil {
			t.Fatal(err)
		}
		m[string(it.Key())] = string(v)
	}
	if err := it.Error(); err != nil {
		t.Fatal(err)
	}
	return m
}

func inSpan(k string) bool {
	if keys.Family(k[0]) < keys.FamilyVersion {
		return false
	}
	_, logical, _, err := keys.Decode([]byte(k))
	return err == nil && span.ContainsKey(logical)
}

func files(t *testing.T, r *SnapshotReader) []File {
	t.Helper()
	var fs []File
	for {
		f, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		fs = append(fs, f)
		if f.Last {
			if _, err := r.Next(); err == nil {
				t.Fatal("a file after the last")
			}
			return fs
		}
	}
}

// TestSnapshotReplacesTheSpan installs a snapshot of many files over a replica with
// other data, with power cuts before and after.
func TestSnapshotReplacesTheSpan(t *testing.T) {
	forEachEngine(t, func(t *testing.T, open func() *disk) {
		from := open()
		fill(t, from, "new", 40)
		write(t, from, func(b engine.Batch) { b.Set(keys.RangeState(7), state(7, 1, 100)) })
		source := contents(t, from)
		r, err := New(from).ReadSnapshot(7)
		if err != nil {
			t.Fatal(err)
		}
		r.limit = 1000
		fill(t, from, "newer", 60) // must not be in the snapshot
		fs := files(t, r)
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		if len(fs) < 3 {
			t.Fatalf("%d files are too few to test with", len(fs))
		}
		if !bytes.Equal(r.State(), state(7, 1, 100)) {
			t.Fatal("wrong state record")
		}

		to := open()
		fill(t, to, "old", 50)
		write(t, to, func(b engine.Batch) { b.Set(keys.RangeState(7), state(7, 2, 10)) })
		if err := to.Flush(); err != nil {
			t.Fatal(err)
		}
		write(t, to, func(b engine.Batch) { // not flushed, and inside the span
			b.Set(keys.AppendPrefix(nil, keys.FamilyLock, keys.User(base.DefaultKeyspace, []byte("e"))), []byte("old"))
			b.Set(keys.RangeState(7), state(7, 2, 11))
		})
		before := contents(t, to)
		receive := func() *Installer {
			i := New(to).NewInstaller(7)
			for n, f := range fs {
				if i.Complete() != (n == len(fs)) {
					t.Fatal("complete too early")
				}
				if err := i.Add(f); err != nil {
					t.Fatal(err)
				}
			}
			return i
		}
		receive().Abort()
		i := receive()
		if got := contents(t, to); !maps.Equal(got, before) {
			t.Fatal("staging is visible")
		}
		if err := i.Install(state(7, 2, 100)); err != nil {
			t.Fatal(err)
		}
		i.Abort() // harmless now
		want := map[string]string{string(keys.RangeState(7)): string(state(7, 2, 100))}
		for k, v := range source {
			if inSpan(k) {
				want[k] = v
			}
		}
		for k, v := range before {
			if keys.Family(k[0]) != keys.FamilyRangeState && !inSpan(k) {
				want[k] = v
			}
		}
		if got := contents(t, to); !maps.Equal(got, want) {
			t.Fatalf("after the install: %d records, want %d", len(got), len(want))
		}
		to = to.crash()
		if got := contents(t, to); !maps.Equal(got, want) {
			t.Fatalf("after a crash: %d records, want %d", len(got), len(want))
		}
		if mark, ok, err := New(to).DurableApplied(7); !ok || err != nil || mark.Index != 100 {
			t.Fatal(mark, ok, err)
		}
	})
}

func TestCrashBeforeInstallLeavesTheOldState(t *testing.T) {
	forEachEngine(t, func(t *testing.T, open func() *disk) {
		e := open()
		fill(t, e, "old", 5)
		write(t, e, func(b engine.Batch) { b.Set(keys.RangeState(7), state(7, 2, 10)) })
		e.Flush()
		want := contents(t, e)
		r, err := New(e).ReadSnapshot(7)
		if err != nil {
			t.Fatal(err)
		}
		f, err := r.Next()
		if err != nil || !f.Last {
			t.Fatal(f.Last, err)
		}
		r.Close()
		i := New(e).NewInstaller(7)
		if err := i.Add(f); err != nil {
			t.Fatal(err)
		}
		e = e.crash()
		if !maps.Equal(contents(t, e), want) {
			t.Fatal("a staged file came to life")
		}
		if err := e.Ingest(i.staged...); err == nil {
			t.Fatal("a staged file outlived the process")
		}
	})
}

// recorder records the range deletes of the files that are written through it.
type recorder struct {
	engine.Engine
	deletes *[][2]string
}

func (r recorder) NewSST() engine.SSTWriter { return recordingWriter{r.Engine.NewSST(), r.deletes} }

type recordingWriter struct {
	engine.SSTWriter
	deletes *[][2]string
}

func (w recordingWriter) DeleteRange(lower, upper []byte) error {
	*w.deletes = append(*w.deletes, [2]string{string(lower), string(upper)})
	return w.SSTWriter.DeleteRange(lower, upper)
}

func TestRangeDeletesCoverTheSpanOnce(t *testing.T) {
	e := engine.NewMem(engine.MemOptions{})
	fill(t, e, "x", 30)
	write(t, e, func(b engine.Batch) { b.Set(keys.RangeState(7), state(7, 1, 1)) })
	for _, limit := range []int{1, 500, FileBytes} {
		var got [][2]string
		r, err := New(recorder{e, &got}).ReadSnapshot(7)
		if err != nil {
			t.Fatal(err)
		}
		r.limit = limit
		fs := files(t, r)
		if r.Close(); limit == FileBytes && len(fs) != 1 {
			t.Fatalf("%d files", len(fs))
		}
		for _, f := range keys.SpanFamilies {
			lower, upper := keys.FamilySpan(f, span)
			at := string(lower)
			for at != string(upper) {
				if len(got) == 0 || got[0][0] != at {
					t.Fatalf("limit %d: no range delete starts at %x", limit, at)
				}
				at, got = got[0][1], got[1:]
			}
		}
		if len(got) != 0 {
			t.Fatalf("limit %d: range deletes beyond the span: %x", limit, got)
		}
	}
}

func TestInstallerRefusesWhatIsNotTheSnapshot(t *testing.T) {
	e := engine.NewMem(engine.MemOptions{})
	fill(t, e, "x", 30)
	write(t, e, func(b engine.Batch) { b.Set(keys.RangeState(7), state(7, 1, 1)) })
	s := New(e)
	r, _ := s.ReadSnapshot(7)
	r.limit = 500
	fs := files(t, r)
	r.Close()
	want := contents(t, e)
	add := func(fs ...File) (i *Installer, err error) {
		i = s.NewInstaller(7)
		for _, f := range fs {
			if err = i.Add(f); err != nil {
				break
			}
		}
		return i, err
	}
	damaged := fs[1]
	damaged.Data = bytes.Clone(damaged.Data)
	damaged.Data[len(damaged.Data)/2] ^= 1
	for name, tc := range map[string]struct {
		files []File
		kind  fault.Kind
	}{
		"damaged":        {[]File{fs[0], damaged}, fault.Corrupt},
		"skipped":        {[]File{fs[0], fs[2]}, fault.Invalid},
		"repeated":       {[]File{fs[0], fs[0]}, fault.Invalid},
		"after the last": {append(slices.Clone(fs), fs[0]), fault.Invalid},
	} {
		i, err := add(tc.files...)
		if fault.KindOf(err) != tc.kind {
			t.Errorf("%s: %v", name, err)
		}
		i.Abort()
	}
	if i, err := add(fs[0]); err != nil || i.Install(state(7, 1, 1)) == nil {
		t.Error("an incomplete snapshot was installed")
	}
	if i, err := add(fs...); err != nil || i.Install(state(8, 1, 1)) == nil {
		t.Error("a snapshot was installed with another range's state record")
	}
	if i, err := add(fs...); err != nil || fault.KindOf(i.Install([]byte("junk"))) == 0 {
		t.Error("a snapshot was installed with a damaged state record")
	}
	if !maps.Equal(contents(t, e), want) {
		t.Error("something was installed all the same")
	}
	if _, err := s.ReadSnapshot(8); fault.KindOf(err) != fault.RangeNotFound {
		t.Errorf("snapshot of no range: %v", err)
	}
}

func TestFailedIngestChangesNothing(t *testing.T) {
	diskFull := false
	e := engine.NewMem(engine.MemOptions{Fail: func(op engine.Op) error {
		if diskFull && op == engine.OpIngest {
			return fault.New(fault.DiskFull, "no room")
		}
		return nil
	}})
	fill(t, e, "x", 3)
	write(t, e, func(b engine.Batch) { b.Set(keys.RangeState(7), state(7, 1, 1)) })
	s := New(e)
	r, _ := s.ReadSnapshot(7)
	fs := files(t, r)
	r.Close()
	fill(t, e, "y", 3)
	want := contents(t, e)
	i := s.NewInstaller(7)
	if err := i.Add(fs[0]); err != nil {
		t.Fatal(err)
	}
	diskFull = true
	if err := i.Install(state(7, 1, 2)); !errors.Is(err, fault.New(fault.DiskFull, "")) {
		t.Fatal(err)
	}
	if !maps.Equal(contents(t, e), want) {
		t.Fatal("a failed install changed the store")
	}
	diskFull = false
	if err := e.Ingest(i.staged...); err == nil {
		t.Fatal("files of a failed install are still staged")
	}
}

// TestStateRecordMatchesData applies commands as replicas do, a batch each with its
// state record, cuts the power at random and checks that what is left is a state that
// was: never a record without its writes or writes without their record.
func TestStateRecordMatchesData(t *testing.T) {
	forEachEngine(t, func(t *testing.T, open func() *disk) {
		rng := rand.New(rand.NewPCG(1, 2))
		e := open()
		key := func(r base.RangeID, i uint64) []byte {
			return keys.AppendPrefix(nil, keys.FamilyGroup, fmt.Appendf(nil, "%d/%04d", r, i))
		}
		applied := map[base.RangeID]uint64{1: 0, 2: 0}
		flushed := maps.Clone(applied)
		for range 300 {
			switch n := rng.IntN(40); {
			case n < 2:
				if err := e.Flush(); err != nil {
					t.Fatal(err)
				}
				flushed = maps.Clone(applied)
			case n == 2:
				s := New(e)
				for r := range flushed {
					mark, _, err := s.DurableApplied(r)
					if err != nil || mark.Index != flushed[r] {
						t.Fatalf("range %d: durable %d, want %d, %v", r, mark.Index, flushed[r], err)
					}
				}
				e = e.crash()
				applied = maps.Clone(flushed)
				s = New(e)
				for r, want := range applied {
					b, ok, err := s.Record(r)
					if err != nil || ok != (want > 0) {
						t.Fatal(ok, err)
					}
					if ok && !bytes.Equal(b, state(r, 1, want)) {
						t.Fatalf("range %d: another state record than that of %d", r, want)
					}
					for i := uint64(1); i <= want+5; i++ {
						if _, ok, _ := e.Get(key(r, i)); ok != (i <= want) {
							t.Fatalf("range %d applied %d: write %d there: %v", r, want, i, ok)
						}
					}
				}
			default:
				r := base.RangeID(1 + rng.IntN(2))
				applied[r]++
				write(t, e, func(b engine.Batch) {
					b.Set(key(r, applied[r]), []byte("x"))
					b.Set(keys.RangeState(r), state(r, 1, applied[r]))
				})
			}
		}
	})
}

func TestDestroyRange(t *testing.T) {
	forEachEngine(t, func(t *testing.T, open func() *disk) {
		e := open()
		fill(t, e, "x", 3)
		write(t, e, func(b engine.Batch) {
			b.Set(keys.RangeState(6), state(6, 1, 1))
			b.Set(keys.RangeState(7), state(7, 1, 1))
			b.Set(keys.RangeState(8), state(8, 1, 1))
		})
		want := contents(t, e)
		maps.DeleteFunc(want, func(k, _ string) bool { return inSpan(k) || k == string(keys.RangeState(7)) })
		write(t, e, func(b engine.Batch) {
			if err := DestroyRange(b, 7, span); err != nil {
				t.Fatal(err)
			}
		})
		if !maps.Equal(contents(t, e), want) {
			t.Fatal("more or less was destroyed than the range")
		}
		rs, err := New(e).Records()
		if err != nil || len(rs) != 2 || rs[0].Range != 6 || rs[1].Range != 8 || !bytes.Equal(rs[1].State, state(8, 1, 1)) {
			t.Fatal(rs, err)
		}
	})
}
