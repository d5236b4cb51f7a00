package engine

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"pgregory.net/rapid"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/keys"
)

func mustOpenPebble(t testing.TB, o Options) Engine {
	t.Helper()
	e, err := OpenPebble("db", o)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// TestComparer checks what Pebble asks of a comparer, on keys and on what it makes of
// them.
func TestComparer(t *testing.T) {
	user := rapid.SliceOfN(rapid.SampledFrom([]byte{0, 1, 2, 0xfe, 0xff, 'a'}), 0, 5)
	key := rapid.Custom(func(t *rapid.T) []byte {
		logical := keys.User(2, user.Draw(t, "user"))
		switch rapid.IntRange(0, 3).Draw(t, "kind") {
		case 0:
			return keys.AppendPrefix(nil, keys.FamilyVersion, logical)
		case 1:
			return keys.AppendPrefix(nil, keys.FamilyTimeline, logical)
		case 2:
			lower, _ := keys.FamilySpan(keys.FamilyVersion, base.Span{Start: logical})
			return lower
		}
		return keys.AppendVersion(nil, logical, base.Timestamp(rapid.Uint64().Draw(t, "ts")))
	})
	rapid.Check(t, func(t *rapid.T) {
		a, b := key.Draw(t, "a"), key.Draw(t, "b")
		pa, pb := a[:keys.Split(a)], b[:keys.Split(b)]
		if keys.Split(pa) != len(pa) {
			t.Fatalf("the prefix %x is not its own prefix", pa)
		}
		if bytes.Compare(a, b) <= 0 && bytes.Compare(pa, pb) > 0 {
			t.Fatalf("%x <= %x, but not their prefixes", a, b)
		}
		next := immediateSuccessor([]byte("x"), pa)
		if next[0] != 'x' {
			t.Fatal("what was in dst is gone")
		}
		next = next[1:]
		if keys.Split(next) != len(next) || bytes.Compare(pa, next) >= 0 {
			t.Fatalf("successor of %x: %x", pa, next)
		}
		if bytes.Compare(pb, pa) > 0 && bytes.Compare(pb, next) < 0 {
			t.Fatalf("prefix %x stands between %x and its successor %x", pb, pa, next)
		}
		if bytes.Equal(pa, pb) && bytes.Compare(b, next) >= 0 {
			t.Fatalf("%x has the prefix %x but stands above its successor", b, pa)
		}
		if bytes.Compare(a, b) < 0 {
			sep := comparer.Separator(nil, a, b)
			if bytes.Compare(a, sep) > 0 || bytes.Compare(sep, b) >= 0 ||
				bytes.Compare(pa, sep[:keys.Split(sep)]) > 0 || bytes.Compare(sep[:keys.Split(sep)], pb) > 0 {
				t.Fatalf("separator of %x and %x: %x", a, b, sep)
			}
		}
	})
}

// fileNames lists the files of a directory that have a suffix.
func fileNames(t *testing.T, fs vfs.FS, dir, suffix string) (names []string) {
	t.Helper()
	list, err := fs.List(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range list {
		if strings.HasSuffix(n, suffix) {
			names = append(names, path.Join(dir, n))
		}
	}
	slices.Sort(names)
	return names
}

func readFile(t *testing.T, fs vfs.FS, name string) []byte {
	t.Helper()
	f, err := fs.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, fi.Size())
	if _, err := f.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	return b
}

func writeFile(t *testing.T, fs vfs.FS, name string, b []byte) {
	t.Helper()
	f, err := fs.Create(name, vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	f.Write(b)
	f.Close()
}

// TestDamagedTable flips bytes all over a sorted file: reads must fail as Corrupt or
// give what was written, and some must fail.
func TestDamagedTable(t *testing.T) {
	fs := vfs.NewMem()
	e := mustOpenPebble(t, Options{FS: fs})
	want := map[string]string{}
	b := e.NewBatch(false)
	for i := range 200 {
		k, v := fmt.Sprintf("k%03d", i), strings.Repeat(fmt.Sprint(i), 5)
		want[k] = v
		b.Set([]byte(k), []byte(v))
	}
	b.Commit(false)
	if err := e.Flush(); err != nil {
		t.Fatal(err)
	}
	e.Close()
	tables := fileNames(t, fs, "db", ".sst")
	if len(tables) != 1 {
		t.Fatalf("tables %v", tables)
	}
	good := readFile(t, fs, tables[0])
	caught := 0
	for at := 0; at < len(good); at += len(good)/40 + 1 {
		bad := bytes.Clone(good)
		bad[at] ^= 0x40
		writeFile(t, fs, tables[0], bad)
		var told atomic.Int32
		e, err := OpenPebble("db", Options{FS: fs, Listener: Listener{Corruption: func(err error) {
			if fault.KindOf(err) != fault.Corrupt || !strings.Contains(err.Error(), tables[0]) {
				t.Errorf("byte %d: the listener hears %v", at, err)
			}
			told.Add(1)
		}}})
		if err == nil {
			for k, v := range want {
				var got []byte
				var ok bool
				if got, ok, err = e.Get([]byte(k)); err != nil {
					break
				}
				if !ok || string(got) != v {
					t.Fatalf("byte %d: served %q, %v for %s", at, got, ok, k)
				}
			}
			e.Close()
			if err != nil && told.Load() == 0 {
				t.Errorf("byte %d: the listener heard nothing of %v", at, err)
			}
		}
		if err != nil {
			caught++
			if fault.KindOf(err) != fault.Corrupt {
				t.Errorf("byte %d: kind %v: %v", at, fault.KindOf(err), err)
			}
			if told.Load() > 0 && !strings.Contains(err.Error(), tables[0]) {
				t.Errorf("byte %d: the reader is not told which file: %v", at, err)
			}
		}
	}
	if caught < 30 {
		t.Fatalf("only %d damages were noticed", caught)
	}
}

// Damage that nobody reads is found by the compaction that rewrites the file.
func TestDamageFoundByCompaction(t *testing.T) {
	fs := vfs.NewMem()
	write := func(e Engine) {
		b := e.NewBatch(false)
		for i := range 500 {
			b.Set(fmt.Appendf(nil, "k%03d", i), bytes.Repeat([]byte{byte(i)}, 200))
		}
		b.Commit(false)
		if err := e.Flush(); err != nil && fault.KindOf(err) != fault.Corrupt { // of a compaction meanwhile
			t.Fatal(err)
		}
	}
	e := mustOpenPebble(t, Options{FS: fs})
	write(e)
	e.Close()
	table := fileNames(t, fs, "db", ".sst")[0]
	bad := readFile(t, fs, table)
	bad[1000] ^= 0x40 // in the first block of keys
	writeFile(t, fs, table, bad)
	told := make(chan error, 100)
	e = mustOpenPebble(t, Options{FS: fs, Listener: Listener{Corruption: func(err error) {
		select {
		case told <- err:
		default:
		}
	}}})
	defer e.Close()
	for range 4 {
		write(e)
	}
	if err := <-told; fault.KindOf(err) != fault.Corrupt || !strings.Contains(err.Error(), table) {
		t.Fatal(err)
	}
}

// TestDamagedLog flips a byte of the write-ahead log: what was synced behind it must not
// be dropped silently. Within the last blocks of 32 KiB damage looks like a torn write,
// since nothing later says that more was synced; that part is left out.
func TestDamagedLog(t *testing.T) {
	fs := vfs.NewCrashableMem()
	e := mustOpenPebble(t, Options{WAL: true, FS: fs})
	for i := range 50 {
		mustSet(t, e, true, fmt.Sprintf("k%03d", i), strings.Repeat("v", 3000))
	}
	clone := fs.CrashClone(vfs.CrashCloneCfg{})
	e.Close()
	logs := fileNames(t, clone, "db", ".log")
	log := logs[len(logs)-1]
	good := readFile(t, clone, log)
	used := bytes.LastIndex(good, []byte("vvv"))
	for at := 20; at < used-(64<<10); at += used / 20 {
		bad := bytes.Clone(good)
		bad[at] ^= 0x40
		writeFile(t, clone, log, bad)
		e, err := OpenPebble("db", Options{WAL: true, FS: clone})
		if err == nil {
			e.Close()
			t.Fatalf("byte %d of %d: opened", at, used)
		}
		if f := fault.As(err); f.Kind != fault.Corrupt || f.Remedy == "" {
			t.Fatalf("byte %d: %v", at, err)
		}
	}
	writeFile(t, clone, log, good)
	mustOpenPebble(t, Options{WAL: true, FS: clone}).Close()
}

// TestTornLog cuts the power while any part of what was not synced may have reached the
// disk: the store opens, with all that was synced and a prefix of the rest.
func TestTornLog(t *testing.T) {
	for seed := range uint64(40) {
		rng := rand.New(rand.NewPCG(seed, 0))
		fs := vfs.NewCrashableMem()
		e := mustOpenPebble(t, Options{WAL: true, FS: fs})
		value := strings.Repeat("v", 1+rng.IntN(9000))
		synced, all := rng.IntN(20), 40
		for i := range all {
			mustSet(t, e, i < synced, fmt.Sprintf("k%02d", i), value)
		}
		clone := fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 50, RNG: rng})
		e.Close()
		e = mustOpenPebble(t, Options{WAL: true, FS: clone})
		n := 0
		for i := range all {
			v, ok, err := e.Get(fmt.Appendf(nil, "k%02d", i))
			if err != nil || ok && string(v) != value {
				t.Fatalf("seed %d: %v, %d bytes", seed, err, len(v))
			}
			if ok && n != i {
				t.Fatalf("seed %d: commit %d is there without %d", seed, i, n)
			}
			if ok {
				n++
			}
		}
		if n < synced {
			t.Fatalf("seed %d: %d commits are left of %d that were synced", seed, n, synced)
		}
		e.Close()
	}
}

// TestLogFailureIsFatal fails the sync of the write-ahead log: the commit must not be
// acknowledged, nor any later one, and the owner hears of it once (S6).
func TestLogFailureIsFatal(t *testing.T) {
	for name, cause := range map[string]error{"fsync": syscall.EIO, "disk full": syscall.ENOSPC} {
		t.Run(name, func(t *testing.T) {
			var broken atomic.Bool
			var fatal atomic.Int32
			fs := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
				write := op.Kind == errorfs.OpFileSync || op.Kind == errorfs.OpFileSyncData ||
					op.Kind == errorfs.OpFileSyncTo || op.Kind == errorfs.OpFileWrite
				if broken.Load() && write && strings.HasSuffix(op.Path, ".log") {
					return cause
				}
				return nil
			}))
			e := mustOpenPebble(t, Options{WAL: true, FS: fs, Fatal: func(error) { fatal.Add(1) }})
			mustSet(t, e, true, "a", "1")
			broken.Store(true)
			for range 2 {
				b := e.NewBatch(false)
				b.Set([]byte("b"), []byte("1"))
				err := b.Commit(true)
				if err == nil {
					t.Fatal("acknowledged a commit that is not durable")
				}
				if name == "disk full" && fault.KindOf(err) != fault.DiskFull {
					t.Errorf("kind %v: %v", fault.KindOf(err), err)
				}
				if !strings.Contains(err.Error(), ".log") {
					t.Errorf("the error names no file: %v", err)
				}
			}
			broken.Store(false)
			b := e.NewBatch(false)
			b.Set([]byte("c"), []byte("1"))
			if b.Commit(false) == nil || e.Flush() == nil || e.Ingest() == nil {
				t.Fatal("the engine goes on after its log failed")
			}
			if n := fatal.Load(); n != 1 {
				t.Fatalf("Fatal was called %d times", n)
			}
		})
	}
}

// TestDiskFullFlush: a flush that finds no room says so and is retried.
func TestDiskFullFlush(t *testing.T) {
	var full, heard atomic.Bool
	fs := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
		if full.Load() && op.Kind == errorfs.OpFileWrite && strings.HasSuffix(op.Path, ".sst") {
			return syscall.ENOSPC
		}
		return nil
	}))
	e := mustOpenPebble(t, Options{FS: fs, Listener: Listener{DiskFull: func() { heard.Store(true) }},
		Fatal: func(err error) { t.Errorf("fatal: %v", err) }})
	mustSet(t, e, false, "a", "1")
	full.Store(true)
	if err := e.Flush(); fault.KindOf(err) != fault.DiskFull {
		t.Fatalf("flush: %v", err)
	}
	if _, ok, err := e.DurableGet([]byte("a")); ok || err != nil || !heard.Load() {
		t.Fatal(ok, err, heard.Load())
	}
	full.Store(false)
	for e.Flush() != nil { // an error of an earlier try may still come
	}
	if _, ok, err := e.DurableGet([]byte("a")); !ok || err != nil {
		t.Fatal(ok, err)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestFlushByAge(t *testing.T) {
	flushed := make(chan struct{}, 10)
	e := mustOpenPebble(t, Options{FS: vfs.NewMem(), FlushAge: time.Millisecond,
		Listener: Listener{Flushed: func() { flushed <- struct{}{} }}})
	for _, k := range []string{"a", "b"} {
		mustSet(t, e, false, k, "1")
		for {
			<-flushed
			if _, ok, err := e.DurableGet([]byte(k)); err != nil {
				t.Fatal(err)
			} else if ok {
				break
			}
		}
	}
	e.Close()
}

func TestOpeningRemovesStagedFiles(t *testing.T) {
	fs := vfs.NewMem()
	e := mustOpenPebble(t, Options{FS: fs})
	w := e.NewSST()
	w.Set([]byte("a"), []byte("1"))
	f, err := w.Finish()
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Stage("s", f); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"", "..", "../x", "a/b"} {
		if e.Stage(name, f) == nil {
			t.Errorf("staged as %q", name)
		}
	}
	e.Close()
	e = mustOpenPebble(t, Options{FS: fs})
	defer e.Close()
	if left := fileNames(t, fs, "db/staging", ""); len(left) != 0 {
		t.Fatalf("left: %v", left)
	}
	if fault.KindOf(e.Ingest("s")) != fault.NotFound {
		t.Fatal("ingested a file of an earlier life")
	}
}

func TestClosedEngineAnswersStopped(t *testing.T) {
	forEachEngine(t, func(t *testing.T, _ bool, open func() *subject) {
		e := open()
		b := e.NewBatch(true)
		b.Set([]byte("a"), nil)
		b.Close()
		for range 2 {
			if err := e.Close(); err != nil {
				t.Fatal(err)
			}
		}
		_, _, err1 := e.Get([]byte("a"))
		_, _, err2 := e.DurableGet([]byte("a"))
		_, err3 := e.NewIter(nil, nil)
		for _, err := range []error{err1, err2, err3, e.Flush(), e.Stage("a", nil), e.Ingest("a")} {
			if k := fault.KindOf(err); k != fault.Stopped && k != fault.Corrupt { // an empty file is no file
				t.Errorf("%v", err)
			}
		}
	})
}

// TestBatchSeesTheEngineBelow: what others commit is seen through a batch that has
// iterators to reuse.
func TestBatchSeesTheEngineBelow(t *testing.T) {
	forEachEngine(t, func(t *testing.T, wal bool, open func() *subject) {
		e := open()
		defer e.Close()
		b := e.NewBatch(true)
		defer b.Close()
		count := func() (n int) {
			it, err := b.NewIter([]byte("a"), []byte("z"))
			if err != nil {
				t.Fatal(err)
			}
			for ok := it.First(); ok; ok = it.Next() {
				n++
			}
			if err := it.Close(); err != nil {
				t.Fatal(err)
			}
			return n
		}
		for i := range 6 {
			k := fmt.Appendf(nil, "k%d", i)
			if i%2 == 0 {
				b.Set(k, k)
			} else {
				mustSet(t, e, false, string(k), "x")
			}
			if n := count(); n != i+1 {
				t.Fatalf("%d keys, want %d", n, i+1)
			}
		}
		b.DeleteRange([]byte("k0"), []byte("k4"))
		if n := count(); n != 2 {
			t.Fatalf("%d keys after a range delete, want 2", n)
		}
	})
}

func BenchmarkBatch(b *testing.B) {
	for _, name := range []string{"mem", "pebble"} {
		var e Engine = NewMem(MemOptions{})
		if name == "pebble" {
			e = mustOpenPebble(b, Options{FS: vfs.NewMem(), CacheBytes: 64 << 20})
		}
		logical := func(i int) []byte { return keys.User(2, fmt.Appendf(nil, "user%06d", i)) }
		batch := e.NewBatch(false)
		for i := range 100000 {
			batch.Set(keys.AppendVersion(nil, logical(i), 1<<40), make([]byte, 100))
		}
		batch.Commit(false)
		e.Flush()
		for _, size := range []int{1, 100} {
			view := e.NewBatch(true)
			for i := range size {
				view.Set(keys.AppendVersion(nil, logical(i*7), 2<<40), make([]byte, 100))
			}
			key := func(i int) []byte { return keys.AppendVersion(nil, logical(i*7919%100000), 3<<40) }
			b.Run(fmt.Sprintf("%s/get/writes=%d", name, size), func(b *testing.B) {
				b.ReportAllocs()
				for i := 0; b.Loop(); i++ {
					view.Get(key(i))
				}
			})
			b.Run(fmt.Sprintf("%s/iter/writes=%d", name, size), func(b *testing.B) {
				b.ReportAllocs()
				for i := 0; b.Loop(); i++ {
					k := key(i)
					it, _ := view.NewIter(k, base.PrefixEnd(k[:keys.Split(k)]))
					if !it.SeekPrefixGE(k) {
						b.Fatal("not found")
					}
					it.Close()
				}
			})
			view.Close()
		}
		e.Close()
	}
}

// TestMachineFileSystem goes once through commit, ingest, close and reopen on the real
// file system, with a cache shared by both kinds of engine.
func TestMachineFileSystem(t *testing.T) {
	dir := t.TempDir()
	cache := NewCache(1 << 20)
	defer cache.Unref()
	for range 2 { // the second time on what the first left
		for _, wal := range []bool{true, false} {
			e, err := OpenPebble(path.Join(dir, fmt.Sprint(wal)), Options{WAL: wal, Cache: cache})
			if err != nil {
				t.Fatal(err)
			}
			mustSet(t, e, wal, "a", "1")
			w := e.NewSST()
			w.DeleteRange([]byte("b"), []byte("d"))
			w.Set([]byte("c"), []byte("2"))
			f, err := w.Finish()
			if err != nil {
				t.Fatal(err)
			}
			if err := e.Stage("s", f); err != nil {
				t.Fatal(err)
			}
			if err := e.Ingest("s"); err != nil {
				t.Fatal(err)
			}
			if err := e.Flush(); err != nil {
				t.Fatal(err)
			}
			if n, err := e.DiskUsage([]byte("a"), nil); n == 0 || err != nil {
				t.Fatal(n, err)
			}
			if err := e.Close(); err != nil {
				t.Fatal(err)
			}
			e, err = OpenPebble(path.Join(dir, fmt.Sprint(wal)), Options{WAL: wal, Cache: cache})
			if err != nil {
				t.Fatal(err)
			}
			wantGet(t, e, "a", "1")
			wantGet(t, e, "c", "2")
			if err := e.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
}
