package logstore

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"pgregory.net/rapid"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/effect"
	"github.com/almanacdb/almanac/internal/engine"
	"github.com/almanacdb/almanac/internal/fault"
)

func newMem() *engine.Mem { return engine.NewMem(engine.MemOptions{WAL: true}) }

func open(t testing.TB, e engine.Engine) *Store {
	t.Helper()
	s, err := Open(e)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func entries(lo, n, term uint64) []base.Entry {
	var es []base.Entry
	for i := lo; i < lo+n; i++ {
		es = append(es, base.Entry{Index: i, Term: term, Type: base.EntryCommand, Data: fmt.Appendf(nil, "%d@%d", i, term)})
	}
	return es
}

func commit(t testing.TB, s *Store, write func(b *Batch)) {
	t.Helper()
	b := s.NewBatch()
	write(b)
	if err := b.Commit(true); err != nil {
		t.Fatal(err)
	}
}

func all(t testing.TB, l *Log) []base.Entry {
	t.Helper()
	es, err := l.Entries(l.First(), l.Last()+1, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	return es
}

func sameEntries(a, b []base.Entry) bool {
	return slices.EqualFunc(a, b, func(x, y base.Entry) bool {
		return x.Index == y.Index && x.Term == y.Term && x.Type == y.Type && bytes.Equal(x.Data, y.Data)
	})
}

func TestAppendReplacesConflictingSuffix(t *testing.T) {
	s := open(t, newMem())
	l := s.Log(7)
	commit(t, s, func(b *Batch) { b.Append(l, entries(1, 50, 1)) })
	commit(t, s, func(b *Batch) { b.Append(l, entries(4, 2, 2)) })
	if want := append(entries(1, 3, 1), entries(4, 2, 2)...); !sameEntries(all(t, l), want) {
		t.Fatalf("got %v", all(t, l))
	}
	if l.Last() != 5 || l.LastMark().Term != 2 {
		t.Fatalf("last %v", l.LastMark())
	}
	// What was replaced must not come back behind a later append.
	commit(t, s, func(b *Batch) { b.Append(l, entries(6, 1, 3)) })
	l = open(t, s.e).Log(7)
	if l.Last() != 6 || len(all(t, l)) != 6 {
		t.Fatalf("after reopening: last %d", l.Last())
	}
}

func TestReadsOutsideOfTheLog(t *testing.T) {
	s := open(t, newMem())
	l := s.Log(1)
	commit(t, s, func(b *Batch) {
		b.Append(l, entries(1, 10, 1))
		b.Truncate(l, base.LogMark{Index: 4, Term: 1})
	})
	if _, err := l.Entries(4, 6, 1000); !errors.Is(err, ErrCompacted) {
		t.Fatal(err)
	}
	if _, err := l.Entries(9, 12, 1000); !errors.Is(err, ErrUnavailable) {
		t.Fatal(err)
	}
	if _, err := l.Term(3); !errors.Is(err, ErrCompacted) {
		t.Fatal(err)
	}
	if _, err := l.Term(11); !errors.Is(err, ErrUnavailable) {
		t.Fatal(err)
	}
	for i := uint64(4); i <= 10; i++ {
		if term, err := l.Term(i); term != 1 || err != nil {
			t.Fatalf("term of %d: %d, %v", i, term, err)
		}
	}
	if es, err := l.Entries(5, 11, 0); err != nil || len(es) != 1 {
		t.Fatalf("at least one entry: %v, %v", es, err)
	}
	es := entries(5, 2, 1)
	if got, err := l.Entries(5, 11, es[0].Size()+es[1].Size()); err != nil || !sameEntries(got, es) {
		t.Fatalf("limited: %v, %v", got, err)
	}
}

func TestBatchMisuseIsAnError(t *testing.T) {
	for name, write := range map[string]func(b *Batch, l *Log){
		"gap after the log":  func(b *Batch, l *Log) { b.Append(l, entries(5, 1, 1)) },
		"gap inside":         func(b *Batch, l *Log) { b.Append(l, append(entries(4, 1, 1), entries(6, 1, 1)...)) },
		"below the mark":     func(b *Batch, l *Log) { b.Append(l, entries(1, 5, 2)) },
		"truncate above end": func(b *Batch, l *Log) { b.Truncate(l, base.LogMark{Index: 9, Term: 1}) },
	} {
		s := open(t, newMem())
		l := s.Log(1)
		commit(t, s, func(b *Batch) {
			b.Append(l, entries(1, 3, 1))
			b.Truncate(l, base.LogMark{Index: 1, Term: 1})
		})
		b := s.NewBatch()
		write(b, l)
		if err := b.Commit(true); fault.KindOf(err) != fault.Internal {
			t.Errorf("%s: %v", name, err)
		}
		if l.First() != 2 || l.Last() != 3 {
			t.Errorf("%s: the handle changed: [%d, %d]", name, l.First(), l.Last())
		}
	}
}

func TestHandlesChangeOnlyWithCommit(t *testing.T) {
	s := open(t, newMem())
	l := s.Log(3)
	b := s.NewBatch()
	b.Append(l, entries(1, 3, 1))
	b.SetHardState(l, effect.HardState{Term: 1, Commit: 2})
	if l.Last() != 0 || l.Exists() || l.HardState() != (effect.HardState{}) {
		t.Fatal("the handle ran ahead of the commit")
	}
	b.Close()
	if l.Last() != 0 || l.Exists() || len(s.Ranges()) != 0 {
		t.Fatal("a dropped batch changed the handle")
	}
	commit(t, s, func(b *Batch) { b.Append(l, entries(1, 1, 1)) })
	if l.Last() != 1 || !slices.Equal(s.Ranges(), []base.RangeID{3}) {
		t.Fatal("the commit did not reach the handle")
	}
}

func TestFailedCommitLatches(t *testing.T) {
	broken := false
	ioErr := errors.New("input/output error")
	m := engine.NewMem(engine.MemOptions{WAL: true, Fail: func(op engine.Op) error {
		if broken && op == engine.OpSync {
			return ioErr
		}
		return nil
	}})
	s := open(t, m)
	l := s.Log(1)
	commit(t, s, func(b *Batch) { b.Append(l, entries(1, 1, 1)) })
	broken = true
	b := s.NewBatch()
	b.Append(l, entries(2, 1, 1))
	if err := b.Commit(true); !errors.Is(err, ioErr) {
		t.Fatal(err)
	}
	if l.Last() != 1 {
		t.Fatal("the handle shows an entry that is not durable")
	}
	broken = false
	b = s.NewBatch()
	b.Append(s.Log(2), entries(1, 1, 1))
	if err := b.Commit(false); !errors.Is(err, ioErr) || !errors.Is(s.Failed(), ioErr) {
		t.Fatalf("commit after the failure: %v", err)
	}
}

func TestRecordsOfANode(t *testing.T) {
	m := newMem()
	s := open(t, m)
	if _, ok, err := s.Node(); ok || err != nil {
		t.Fatal(ok, err)
	}
	commit(t, s, func(b *Batch) {
		b.SetNode([]byte("node 4"))
		b.SetTombstone(Tombstone{9, 2})
		b.SetTombstone(Tombstone{3, 8})
		b.SetInitial(s.Log(9), []byte("first state"))
	})
	m = m.Crash(nil)
	s = open(t, m)
	if v, ok, err := s.Node(); !ok || err != nil || string(v) != "node 4" {
		t.Fatal(v, ok, err)
	}
	ts, err := s.Tombstones()
	if err != nil || !slices.Equal(ts, []Tombstone{{3, 8}, {9, 2}}) {
		t.Fatal(ts, err)
	}
	for _, tt := range []Tombstone{{9, 2}, {9, 3}} {
		if has, err := s.HasTombstone(tt); err != nil || has != (tt.Replica == 2) {
			t.Fatal(tt, has, err)
		}
	}
	if v, ok, err := s.Log(9).Initial(); !ok || err != nil || string(v) != "first state" {
		t.Fatal(v, ok, err)
	}
	commit(t, s, func(b *Batch) { b.DeleteRange(9) })
	if _, ok, _ := s.Log(9).Initial(); ok || len(s.Ranges()) != 0 {
		t.Fatal("deleted range is still there")
	}
	if has, _ := s.HasTombstone(Tombstone{9, 2}); !has {
		t.Fatal("the tombstone went with the range")
	}
}

// TestDamageIsReported flips each byte of each stored value and moves values between
// keys: whatever is read must say Corrupt or be what was written.
func TestDamageIsReported(t *testing.T) {
	m := newMem()
	s := open(t, m)
	l := s.Log(5)
	want := entries(1, 3, 1)
	commit(t, s, func(b *Batch) {
		b.Append(l, want)
		b.SetHardState(l, effect.HardState{Term: 1, Vote: 2, Commit: 3})
		b.SetInitial(l, []byte("initial"))
		b.SetNode([]byte("node"))
	})
	it, _ := m.NewIter(nil, nil)
	type kv struct{ k, v []byte }
	var stored []kv
	for ok := it.First(); ok; ok = it.Next() {
		v, _ := it.Value()
		stored = append(stored, kv{bytes.Clone(it.Key()), bytes.Clone(v)})
	}
	read := func(m *engine.Mem) error {
		s, err := Open(m)
		if err != nil {
			return err
		}
		l := s.Log(5)
		_, _, err1 := s.Node()
		_, _, err2 := l.Initial()
		_, err3 := l.Entries(1, l.Last()+1, 1000)
		return errors.Join(err1, err2, err3)
	}
	damage := func(k, v []byte) {
		t.Helper()
		c := m.CrashClone(nil)
		b := c.NewBatch(false)
		b.Set(k, v)
		b.Commit(true)
		if err := read(c); fault.KindOf(err) != fault.Corrupt {
			t.Fatalf("value %x at %x: %v", v, k, err)
		}
	}
	if err := read(m); err != nil {
		t.Fatal(err)
	}
	for i, x := range stored {
		for j := range x.v {
			v := bytes.Clone(x.v)
			v[j] ^= 0x10
			damage(x.k, v)
		}
		damage(x.k, stored[(i+1)%len(stored)].v)
		damage(x.k, nil)
	}
	opened := open(t, m)
	b := m.NewBatch(false)
	b.Delete(appendEntryKey(nil, 5, 2))
	b.Commit(true)
	_, atRead := opened.Log(5).Entries(1, 4, 1000)
	_, atStart := Open(m)
	for _, err := range []error{atRead, atStart} {
		if f := fault.As(err); f == nil || f.Kind != fault.Corrupt || f.Range != 5 {
			t.Fatalf("a missing entry: %v", err)
		}
	}
}

// shadow is what a log should hold.
type shadow struct {
	hard    effect.HardState
	mark    base.LogMark
	entries []base.Entry
}

func (sh *shadow) last() uint64 { return sh.mark.Index + uint64(len(sh.entries)) }

func (sh shadow) check(t *rapid.T, r base.RangeID, l *Log) {
	if l.First() != sh.mark.Index+1 || l.Last() != sh.last() || l.HardState() != sh.hard || l.Truncated() != sh.mark {
		t.Fatalf("range %d: handle [%d, %d] %+v, want %+v", r, l.First(), l.Last(), l.HardState(), sh)
	}
	got, err := l.Entries(l.First(), l.Last()+1, 1<<30)
	if err != nil || !sameEntries(got, sh.entries) {
		t.Fatalf("range %d: %v, %v; want %v", r, got, err, sh.entries)
	}
	for _, e := range sh.entries {
		if term, err := l.Term(e.Index); err != nil || term != e.Term {
			t.Fatalf("range %d: term of %d: %d, %v", r, e.Index, term, err)
		}
	}
}

// TestModel drives the store beside a model; synced commits must survive power cuts.
func TestModel(t *testing.T) {
	t.Run("mem", func(t *testing.T) {
		testModel(t, func() (engine.Engine, func() engine.Engine) {
			m := newMem()
			return m, func() engine.Engine { m = m.Crash(nil); return m }
		})
	})
	t.Run("pebble", func(t *testing.T) {
		testModel(t, func() (engine.Engine, func() engine.Engine) {
			fs := vfs.NewCrashableMem()
			openFS := func() engine.Engine {
				e, err := engine.OpenPebble("log", engine.Options{WAL: true, FS: fs})
				if err != nil {
					t.Fatal(err)
				}
				return e
			}
			e := openFS()
			return e, func() engine.Engine {
				clone := fs.CrashClone(vfs.CrashCloneCfg{})
				e.Close()
				fs = clone
				e = openFS()
				return e
			}
		})
	})
}

func testModel(t *testing.T, start func() (engine.Engine, func() engine.Engine)) {
	rapid.Check(t, func(rt *rapid.T) {
		e, crash := start()
		s := open(t, e)
		logs := map[base.RangeID]shadow{}
		rangeID := rapid.SampledFrom([]base.RangeID{1, 2, 256})
		draw := func(name string, lo, hi uint64) uint64 { return rapid.Uint64Range(lo, hi).Draw(rt, name) }
		write := func(b *Batch, r base.RangeID) {
			l, sh := s.Log(r), logs[r]
			switch rapid.IntRange(0, 7).Draw(rt, "write") {
			case 0:
				sh.hard = effect.HardState{Term: draw("term", 0, 9), Vote: 2, Commit: draw("commit", 0, 300)}
				b.SetHardState(l, sh.hard)
			case 1:
				if len(sh.entries) > 0 {
					n := draw("drop", 1, uint64(len(sh.entries)))
					last := sh.entries[n-1]
					sh.mark, sh.entries = base.LogMark{Index: last.Index, Term: last.Term}, slices.Clone(sh.entries[n:])
				}
				b.Truncate(l, sh.mark)
			case 2:
				sh.mark = base.LogMark{Index: draw("mark", 0, 500), Term: draw("term", 0, 9)}
				sh.entries = nil
				b.Reset(l, sh.mark)
			case 3:
				if rapid.IntRange(0, 3).Draw(rt, "delete") == 0 {
					b.DeleteRange(r)
					sh = shadow{}
				}
			default:
				at := draw("at", sh.mark.Index+1, sh.last()+1)
				es := entries(at, draw("count", 1, 60), draw("term", 1, 9))
				b.Append(l, es)
				sh.entries = append(slices.Clone(sh.entries[:at-sh.mark.Index-1]), es...)
			}
			logs[r] = sh
		}
		rt.Repeat(map[string]func(*rapid.T){
			"turn": func(rt *rapid.T) {
				b := s.NewBatch()
				for range rapid.IntRange(1, 5).Draw(rt, "writes") {
					write(b, rangeID.Draw(rt, "range"))
				}
				if err := b.Commit(true); err != nil {
					rt.Fatal(err)
				}
			},
			"crash": func(rt *rapid.T) { s = open(t, crash()) },
			"": func(rt *rapid.T) {
				for _, r := range []base.RangeID{1, 2, 256} {
					logs[r].check(rt, r, s.Log(r))
				}
			},
		})
		s.e.Close()
	})
}

func BenchmarkAppend(b *testing.B) {
	s := open(b, newMem())
	var logs []*Log
	for r := range base.RangeID(16) {
		logs = append(logs, s.Log(r+1))
	}
	data := make([]byte, 256)
	b.ReportAllocs()
	for i := uint64(1); b.Loop(); i++ {
		batch := s.NewBatch()
		for _, l := range logs {
			batch.Append(l, []base.Entry{{Index: i, Term: 1, Type: base.EntryCommand, Data: data}})
			batch.SetHardState(l, effect.HardState{Term: 1, Commit: i})
			if i%256 == 0 {
				batch.Truncate(l, base.LogMark{Index: i - 64, Term: 1})
			}
		}
		if err := batch.Commit(true); err != nil {
			b.Fatal(err)
		}
	}
}
