package engine

import (
	"errors"
	"fmt"
	"testing"
)

func mustSet(t *testing.T, e Engine, sync bool, kv ...string) {
	t.Helper()
	b := e.NewBatch(false)
	for i := 0; i < len(kv); i += 2 {
		if err := b.Set([]byte(kv[i]), []byte(kv[i+1])); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Commit(sync); err != nil {
		t.Fatal(err)
	}
}

func wantGet(t *testing.T, e Engine, key, want string) {
	t.Helper()
	v, ok, err := e.Get([]byte(key))
	if err != nil || ok != (want != "") || string(v) != want {
		t.Fatalf("get %q: %q, %v, %v; want %q", key, v, ok, err, want)
	}
}

func TestMemCrashWithLog(t *testing.T) {
	for survive := 0; survive <= 2; survive++ {
		m := NewMem(MemOptions{WAL: true})
		mustSet(t, m, true, "a", "1")
		mustSet(t, m, false, "b", "1")
		mustSet(t, m, false, "c", "1")
		m = m.Crash(func(n int) int {
			if n != 2 {
				t.Fatalf("%d commits unsynced, want 2", n)
			}
			return survive
		})
		wantGet(t, m, "a", "1")
		for i, k := range []string{"b", "c"} {
			want := ""
			if i < survive {
				want = "1"
			}
			wantGet(t, m, k, want)
		}
	}
}

func TestMemSyncCoversOlderCommits(t *testing.T) {
	m := NewMem(MemOptions{WAL: true})
	mustSet(t, m, false, "a", "1")
	mustSet(t, m, true, "b", "1")
	m = m.Crash(nil)
	wantGet(t, m, "a", "1")
	wantGet(t, m, "b", "1")
}

func TestMemFailedSyncLatches(t *testing.T) {
	broken := false
	ioErr := errors.New("input/output error")
	m := NewMem(MemOptions{WAL: true, Fail: func(op Op) error {
		if broken && op == OpSync {
			return ioErr
		}
		return nil
	}})
	mustSet(t, m, true, "a", "1")
	broken = true
	b := m.NewBatch(false)
	b.Set([]byte("a"), []byte("2"))
	if err := b.Commit(true); err != ioErr {
		t.Fatalf("commit: %v", err)
	}
	broken = false
	b = m.NewBatch(false)
	b.Set([]byte("z"), []byte("2"))
	if err := b.Commit(true); err != ioErr {
		t.Fatalf("commit after a failed sync: %v", err)
	}
	wantGet(t, m.CrashClone(nil), "a", "1")
	wantGet(t, m.CrashClone(func(n int) int { return n }), "a", "2")
}

// TestMemIngestAheadOfOlderWrites: an ingest that touches nothing unflushed is durable
// before older commits elsewhere; one that does flushes them first.
func TestMemIngestAheadOfOlderWrites(t *testing.T) {
	for _, overlap := range []bool{false, true} {
		m := NewMem(MemOptions{})
		key := "a"
		if overlap {
			key = "n"
		}
		mustSet(t, m, false, key, "old")
		w := m.NewSST()
		w.DeleteRange([]byte("m"), []byte("p"))
		w.Set([]byte("o"), []byte("new"))
		f, err := w.Finish()
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Stage("s", f); err != nil {
			t.Fatal(err)
		}
		if err := m.Ingest("s"); err != nil {
			t.Fatal(err)
		}
		want := "old"
		if overlap {
			want = ""
		}
		wantGet(t, m, key, want)
		m = m.Crash(nil)
		wantGet(t, m, key, "")
		wantGet(t, m, "o", "new")
	}
}

func BenchmarkMemApply(b *testing.B) {
	m := NewMem(MemOptions{})
	key := make([]byte, 0, 32)
	for i := 0; b.Loop(); i++ {
		batch := m.NewBatch(true)
		for j := range 10 {
			key = fmt.Appendf(key[:0], "key%07d", (i*7919+j*104729)%100000)
			batch.Get(key)
			batch.Set(key, key)
		}
		it, _ := batch.NewIter(key, nil)
		it.First()
		it.Close()
		batch.Commit(false)
		if i%1000 == 0 {
			m.Flush()
		}
	}
}
