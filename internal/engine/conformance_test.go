package engine

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"pgregory.net/rapid"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/effect"
	"github.com/almanacdb/almanac/internal/keys"
)

// subject is one implementation under test together with its way to crash.
type subject struct {
	Engine
	crash func() *subject
}

func memSubject(m *Mem) *subject {
	return &subject{m, func() *subject { return memSubject(m.Crash(nil)) }}
}

func pebbleSubject(t testing.TB, fs *vfs.MemFS, wal bool) *subject {
	e, err := OpenPebble("db", Options{WAL: wal, FS: fs, FlushAge: 1 << 40})
	if err != nil {
		t.Fatal(err)
	}
	return &subject{e, func() *subject {
		clone := fs.CrashClone(vfs.CrashCloneCfg{})
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
		return pebbleSubject(t, clone, wal)
	}}
}

// forEachEngine runs f on both implementations, with and without a write-ahead log.
func forEachEngine(t *testing.T, f func(t *testing.T, wal bool, open func() *subject)) {
	for _, wal := range []bool{true, false} {
		t.Run(fmt.Sprintf("mem/wal=%v", wal), func(t *testing.T) {
			f(t, wal, func() *subject { return memSubject(NewMem(MemOptions{WAL: wal})) })
		})
		t.Run(fmt.Sprintf("pebble/wal=%v", wal), func(t *testing.T) {
			f(t, wal, func() *subject { return pebbleSubject(t, vfs.NewCrashableMem(), wal) })
		})
	}
}

// world is what a naive engine would hold.
type world map[string]string

func (w world) apply(ops []op) {
	for _, o := range ops {
		switch {
		case o.upper != nil:
			maps.DeleteFunc(w, func(k, _ string) bool { return k >= string(o.key) && k < string(o.upper) })
		case o.value == nil:
			delete(w, string(o.key))
		default:
			w[string(o.key)] = string(o.value)
		}
	}
}

// event is a commit or an ingest that may not be durable yet.
type event struct {
	ops    []op
	ingest bool
}

// model is the oracle: the visible world, and what a crash may leave, which is durable
// with every ingest and with the first k commits, for some k >= sure.
type model struct {
	visible world
	durable world
	events  []event
	sure    int // commits among events that are durable for sure
}

func (m *model) after(k int) world {
	w := maps.Clone(m.durable)
	for _, e := range m.events {
		if e.ingest {
			w.apply(e.ops)
		} else if k > 0 {
			w.apply(e.ops)
			k--
		}
	}
	return w
}

func (m *model) commits() (n int) {
	for _, e := range m.events {
		if !e.ingest {
			n++
		}
	}
	return n
}

func (m *model) settle() {
	m.durable, m.events, m.sure = maps.Clone(m.visible), nil, 0
}

// testKeys mixes versions, whose keys share prefixes, with keys of other families.
var testKeys = func() [][]byte {
	var ks [][]byte
	for _, user := range []string{"", "a", "a\x00", "a\x00\xff", "ab", "b\x01", "\xff"} {
		logical := keys.User(base.DefaultKeyspace, []byte(user))
		for ts := base.Timestamp(1); ts <= 3; ts++ {
			ks = append(ks, keys.AppendVersion(nil, logical, ts<<40))
		}
		ks = append(ks, keys.AppendPrefix(nil, keys.FamilyLock, logical))
	}
	for r := base.RangeID(1); r < 4; r++ {
		ks = append(ks, keys.RangeState(r))
	}
	part := keys.Partition(base.PartitionID{Topic: 1})
	for i := range int64(4) {
		k := keys.AppendPrefix(nil, keys.FamilyTimeline, part)
		ks = append(ks, keys.AppendPosition(k, base.Position{DueMS: i % 2, Seq: uint64(i)}))
	}
	slices.SortFunc(ks, bytes.Compare)
	return ks
}()

var genKey = rapid.SampledFrom(testKeys)

// genSpan draws two bounds: keys, or the bounds of a logical span.
func genSpan(t *rapid.T) (lower, upper []byte) {
	if rapid.Bool().Draw(t, "family span") {
		s := base.Span{Start: keys.User(2, []byte("a")), End: keys.User(2, []byte("b"))}
		return keys.FamilySpan(rapid.SampledFrom([]keys.Family{keys.FamilyVersion, keys.FamilyLock}).Draw(t, "family"), s)
	}
	lower, upper = genKey.Draw(t, "lower"), genKey.Draw(t, "upper")
	if bytes.Compare(lower, upper) > 0 {
		lower, upper = upper, lower
	}
	return lower, upper
}

type machine struct {
	*model
	s     *subject
	wal   bool
	value uint64
	snaps []snap
}

type snap struct {
	Snapshot
	w world
}

func (m *machine) nextValue() []byte {
	m.value++
	return binary.AppendUvarint(nil, m.value*m.value) // of several lengths
}

func must(t *rapid.T, err error) {
	if err != nil {
		t.Helper()
		t.Fatal(err)
	}
}

// batch draws a batch, reads through it as it grows, and commits it.
func (m *machine) batch(t *rapid.T) {
	indexed := rapid.Bool().Draw(t, "indexed")
	b := m.s.NewBatch(indexed)
	var ops []op
	w := maps.Clone(m.visible)
	for range rapid.IntRange(0, 8).Draw(t, "writes") {
		var o op
		switch rapid.IntRange(0, 6).Draw(t, "op") {
		case 0:
			o = op{key: genKey.Draw(t, "key")}
			must(t, b.Delete(o.key))
		case 1:
			o.key, o.upper = genSpan(t)
			must(t, b.DeleteRange(o.key, o.upper))
		case 2:
			if indexed {
				checkReader(t, b, w)
			}
			continue
		default:
			o = op{key: genKey.Draw(t, "key"), value: m.nextValue()}
			must(t, b.Set(o.key, o.value))
		}
		ops = append(ops, o)
		w.apply([]op{o})
	}
	if indexed {
		checkReader(t, b, w)
	}
	if rapid.IntRange(0, 5).Draw(t, "drop") == 0 {
		must(t, b.Close())
		return
	}
	sync := m.wal && rapid.Bool().Draw(t, "sync")
	must(t, b.Commit(sync))
	must(t, b.Close())
	m.visible = w
	m.events = append(m.events, event{ops: ops})
	if sync {
		m.settle()
	}
}

// ingest draws disjoint files with range deletes and points and ingests them at once.
func (m *machine) ingest(t *rapid.T) {
	cuts := rapid.SliceOfNDistinct(rapid.IntRange(0, len(testKeys)-1), 2, 6,
		func(i int) int { return i }).Draw(t, "cuts")
	slices.Sort(cuts)
	var names []string
	e := event{ingest: true}
	for i := 0; i+1 < len(cuts); i += 2 {
		lower, upper := testKeys[cuts[i]], testKeys[cuts[i+1]]
		w := m.s.NewSST()
		if rapid.Bool().Draw(t, "cover") {
			must(t, w.DeleteRange(lower, upper))
			e.ops = append(e.ops, op{key: lower, upper: upper})
		}
		for _, k := range testKeys[cuts[i]:cuts[i+1]] {
			if rapid.Bool().Draw(t, "point") {
				v := m.nextValue()
				must(t, w.Set(k, v))
				e.ops = append(e.ops, op{key: k, value: v})
			}
		}
		f, err := w.Finish()
		must(t, err)
		name := fmt.Sprintf("f%d", i)
		must(t, m.s.Stage(name, f))
		names = append(names, name)
	}
	if rapid.IntRange(0, 5).Draw(t, "unstage") == 0 {
		m.s.Unstage(names...)
		if m.s.Ingest(names...) == nil {
			t.Fatal("ingested files that are not staged")
		}
		return
	}
	must(t, m.s.Ingest(names...))
	m.visible.apply(e.ops)
	m.events = append(m.events, e)
	// A commit that wrote under a file must now be durable, and all before it.
	n := 0
	for _, old := range m.events[:len(m.events)-1] {
		if old.ingest {
			continue
		}
		n++
		for _, o := range old.ops {
			if o.upper == nil && touches(e.ops, string(o.key)) {
				m.sure = max(m.sure, n)
			}
		}
	}
}

func touches(ops []op, key string) bool {
	for _, o := range ops {
		if string(o.key) == key || o.upper != nil && key >= string(o.key) && key < string(o.upper) {
			return true
		}
	}
	return false
}

func (m *machine) flush(t *rapid.T) {
	must(t, m.s.Flush())
	m.settle()
}

// crash cuts the power and finds out what survived.
func (m *machine) crash(t *rapid.T) {
	m.dropSnaps(t)
	was := map[string]string{}
	for _, k := range testKeys {
		v, ok, err := m.s.DurableGet(k)
		must(t, err)
		if ok {
			was[string(k)] = string(v)
		}
	}
	m.s = m.s.crash()
	got := contents(t, m.s)
	if !maps.Equal(got, was) {
		t.Fatalf("DurableGet promised\n%x\nand the crash left\n%x", was, got)
	}
	for k := m.sure; k <= m.commits(); k++ {
		if w := m.after(k); maps.Equal(got, w) {
			m.visible = w
			m.settle()
			return
		}
	}
	t.Fatalf("after the crash: %x\nwhich is no prefix of the commits after: %x", got, m.after(m.sure))
}

func (m *machine) dropSnaps(t *rapid.T) {
	for _, s := range m.snaps {
		checkReader(t, s, s.w)
		must(t, s.Close())
	}
	m.snaps = nil
}

func contents(t *rapid.T, r effect.Reader) world {
	it, err := r.NewIter(nil, nil)
	must(t, err)
	w := world{}
	for ok := it.First(); ok; ok = it.Next() {
		v, err := it.Value()
		must(t, err)
		w[string(it.Key())] = string(v)
	}
	must(t, it.Error())
	must(t, it.Close())
	return w
}

// checkReader compares a reader with w by a few gets and a random walk.
func checkReader(t *rapid.T, r effect.Reader, w world) {
	for range 3 {
		k := genKey.Draw(t, "get")
		v, ok, err := r.Get(k)
		must(t, err)
		if want, has := w[string(k)]; ok != has || string(v) != want {
			t.Fatalf("get %x: %x, %v; want %x, %v", k, v, ok, want, has)
		}
	}
	var lower, upper []byte
	if rapid.Bool().Draw(t, "bounded") {
		lower, upper = genSpan(t)
	}
	it, err := r.NewIter(lower, upper)
	must(t, err)
	walk(t, it, w, lower, upper)
	must(t, it.Error())
	must(t, it.Close())
}

func prefix(k string) string { return k[:keys.Split([]byte(k))] }

// walk drives an iterator beside a position in the sorted keys of w.
func walk(t *rapid.T, it effect.Iterator, w world, lower, upper []byte) {
	var ks []string
	for k := range w {
		if k >= string(lower) && (upper == nil || k < string(upper)) {
			ks = append(ks, k)
		}
	}
	slices.Sort(ks)
	at, within := -1, "" // index of the current key; the prefix after SeekPrefixGE
	inPrefix := false
	for range rapid.IntRange(1, 12).Draw(t, "moves") {
		move := rapid.IntRange(0, 4).Draw(t, "absolute")
		valid := at >= 0 && at < len(ks)
		if valid && rapid.IntRange(0, 3).Draw(t, "relative") != 0 {
			move = rapid.IntRange(5, 7).Draw(t, "relative move")
			if inPrefix || move == 7 && keys.Split(upper) != len(upper) {
				move = 5
			}
		} else {
			inPrefix = false
		}
		k := genKey.Draw(t, "to")
		ge, _ := slices.BinarySearch(ks, string(k))
		if move == 4 && (string(k) < string(lower) || upper != nil && string(k) >= string(upper)) {
			move = 2 // prefix seeks must stay inside the bounds
		}
		var ok bool
		switch move {
		case 0:
			ok, at = it.First(), 0
		case 1:
			ok, at = it.Last(), len(ks)-1
		case 2:
			ok, at = it.SeekGE(k), ge
		case 3:
			ok, at = it.SeekLT(k), ge-1
		case 4:
			ok, at = it.SeekPrefixGE(k), ge
			within, inPrefix = prefix(string(k)), true
		case 5:
			ok = it.Next()
			at++
		case 6:
			ok = it.Prev()
			at--
		case 7:
			ok = it.NextPrefix()
			for p := prefix(ks[at]); at < len(ks) && prefix(ks[at]) == p; {
				at++
			}
		}
		want := at >= 0 && at < len(ks)
		if want && inPrefix && prefix(ks[at]) != within {
			want, at = false, len(ks)
		}
		if ok != want || it.Valid() != want {
			t.Fatalf("move %d: valid %v, want %v at %d of %x; error %v", move, ok, want, at, ks, it.Error())
		}
		if !want {
			continue
		}
		v, err := it.Value()
		must(t, err)
		if string(it.Key()) != ks[at] || string(v) != w[ks[at]] {
			t.Fatalf("move %d: at %x = %x, want %x = %x", move, it.Key(), v, ks[at], w[ks[at]])
		}
	}
}

// TestConformance drives each engine beside the model with random batches, ingests,
// snapshots, walks, flushes and power cuts.
func TestConformance(t *testing.T) {
	forEachEngine(t, func(t *testing.T, wal bool, open func() *subject) {
		rapid.Check(t, func(rt *rapid.T) {
			m := &machine{model: &model{visible: world{}, durable: world{}}, s: open(), wal: wal}
			rt.Repeat(map[string]func(*rapid.T){
				"batch":  m.batch,
				"batch2": m.batch,
				"ingest": m.ingest,
				"flush":  m.flush,
				"crash":  m.crash,
				"snapshot": func(rt *rapid.T) {
					if len(m.snaps) < 3 {
						m.snaps = append(m.snaps, snap{m.s.NewSnapshot(), maps.Clone(m.visible)})
					}
				},
				"check snapshots": func(rt *rapid.T) {
					for _, s := range m.snaps {
						checkReader(rt, s, s.w)
					}
				},
				"read": func(rt *rapid.T) { checkReader(rt, m.s, m.visible) },
			})
			m.dropSnaps(rt)
			m.crash(rt)
			if err := m.s.Close(); err != nil {
				rt.Fatal(err)
			}
		})
	})
}
