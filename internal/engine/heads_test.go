package engine

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/effect"
	"github.com/almanacdb/almanac/internal/keys"
	"github.com/almanacdb/almanac/internal/mvcc"
)

// headWorld is an engine with heads, batches that are open on it, and reads half way.
type headWorld struct {
	e       Engine
	at      base.Timestamp
	batches []*headWorldBatch
	reads   []headRead
	newest  map[string]string // what is known to be the newest version, by key; absent: perhaps none
}

// headWorldBatch sets versions of keys that no other open batch sets, as ranges do.
type headWorldBatch struct {
	b    Batch
	sets map[string]string
}

// headRead has a ticket, and looks for the head later than that.
type headRead struct {
	key    string
	ticket effect.HeadTicket
	suffix []byte
	value  []byte
	found  bool
}

func headPrefix(key string) []byte {
	k := keys.AppendVersion(nil, []byte(key), 0)
	return k[:keys.Split(k)]
}

// oneShard returns keys that share a shard.
var oneShard = sync.OnceValue(func() (list []string) {
	h := &heads{}
	for i := 0; len(list) < 4; i++ {
		if key := fmt.Sprint(i); h.shard(headPrefix(key)) == &h.shards[0] {
			list = append(list, key)
		}
	}
	return list
})

// check compares what is known of a key with what it should be.
func (w *headWorld) check(t *rapid.T, key string) effect.HeadTicket {
	suffix, value, ticket, ok := w.e.(effect.Heads).Head(headPrefix(key))
	if !ok {
		return ticket
	}
	want, set := w.newest[key]
	for _, b := range w.batches {
		if v, mine := b.sets[key]; mine {
			want, set = v, true
		}
	}
	if got := fmt.Sprintf("%x=%s", suffix, value); !set || got != want {
		t.Fatalf("the head of %q is said to be %s, and is %s", key, got, want)
	}
	return ticket
}

func (w *headWorld) step(t *rapid.T) {
	key := rapid.SampledFrom(oneShard()).Draw(t, "key")
	owner := -1
	for i, b := range w.batches {
		if _, ok := b.sets[key]; ok {
			owner = i
		}
	}
	pick := func() int { return rapid.IntRange(0, len(w.batches)-1).Draw(t, "batch") }
	switch what := rapid.IntRange(0, 9).Draw(t, "what"); {
	case what <= 2: // set
		if len(w.batches) == 0 || (owner < 0 && len(w.batches) < 2 && rapid.Bool().Draw(t, "open")) {
			w.batches = append(w.batches, &headWorldBatch{w.e.NewBatch(true), map[string]string{}})
		}
		if owner < 0 {
			owner = pick()
		}
		w.at++
		k, v := keys.AppendVersion(nil, []byte(key), w.at), fmt.Sprint(w.at)
		if rapid.IntRange(0, 2).Draw(t, "large") == 0 {
			v += strings.Repeat("x", 300) // too large to be kept, if there is little memory
		}
		if err := w.batches[owner].b.Set(k, []byte(v)); err != nil {
			t.Fatal(err)
		}
		w.batches[owner].sets[key] = fmt.Sprintf("%x=%s", k[keys.Split(k):], v)
	case what <= 4 && len(w.batches) > 0: // commit, or drop
		i := pick()
		b := w.batches[i]
		w.batches = append(w.batches[:i:i], w.batches[i+1:]...)
		if rapid.IntRange(0, 3).Draw(t, "drop") == 0 {
			b.b.Close()
			return
		}
		if err := b.b.Commit(false); err != nil {
			t.Fatal(err)
		}
		for k, v := range b.sets {
			w.newest[k] = v
		}
	case what == 5 && len(w.batches) == 0: // a range is removed, or replaced by a snapshot
		b := w.e.NewBatch(false)
		lower := headPrefix(key)
		upper := append(bytes.Clone(lower[:len(lower)-1]), lower[len(lower)-1]+1)
		if rapid.Bool().Draw(t, "remove") {
			if err := b.DeleteRange(lower, upper); err != nil {
				t.Fatal(err)
			}
			if err := b.Commit(false); err != nil {
				t.Fatal(err)
			}
			delete(w.newest, key)
			return
		}
		b.Close()
		sst := w.e.NewSST()
		w.at++
		k := keys.AppendVersion(nil, []byte(key), w.at)
		if err := sst.DeleteRange(lower, upper); err != nil {
			t.Fatal(err)
		}
		if err := sst.Set(k, []byte("snapshot")); err != nil {
			t.Fatal(err)
		}
		file, err := sst.Finish()
		if err != nil {
			t.Fatal(err)
		}
		if err := w.e.Stage("s", file); err != nil {
			t.Fatal(err)
		}
		if err := w.e.Ingest("s"); err != nil {
			t.Fatal(err)
		}
		w.newest[key] = fmt.Sprintf("%x=snapshot", k[keys.Split(k):])
	case what == 6: // a read begins
		w.reads = append(w.reads, headRead{key: key, ticket: w.check(t, key)})
	case what == 7 && len(w.reads) > 0: // and looks
		r := &w.reads[rapid.IntRange(0, len(w.reads)-1).Draw(t, "read")]
		prefix := headPrefix(r.key)
		it, err := w.e.NewIter(prefix, nil)
		if err != nil {
			t.Fatal(err)
		}
		if r.found = it.SeekPrefixGE(prefix) && bytes.HasPrefix(it.Key(), prefix); r.found {
			v, err := it.Value()
			if err != nil {
				t.Fatal(err)
			}
			r.suffix, r.value = bytes.Clone(it.Key()[len(prefix):]), bytes.Clone(v)
		}
		it.Close()
	case what == 8 && len(w.reads) > 0: // and tells what it found
		i := rapid.IntRange(0, len(w.reads)-1).Draw(t, "read")
		if r := w.reads[i]; r.found {
			w.e.(effect.Heads).Learn(r.ticket, headPrefix(r.key), r.suffix, r.value)
		}
		w.reads = append(w.reads[:i:i], w.reads[i+1:]...)
	}
	w.check(t, key)
}

// However batches, ingests and reads interleave, what is known as a head is the newest
// version that the engine holds, or that an open batch sets.
func TestHeadsAreTheNewest(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := &headWorld{newest: map[string]string{}}
		w.e = WithHeads(NewMem(MemOptions{}), rapid.SampledFrom([]int{32 * 600, 1 << 20}).Draw(t, "bytes"))
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			w.step(t)
		}
		for _, b := range w.batches {
			b.b.Close()
		}
	})
}

// A head is found, and learned by a read; what it says of the past is not believed.
func TestHeadsAreUsed(t *testing.T) {
	e := WithHeads(NewMem(MemOptions{}), 1<<20)
	put := func(at base.Timestamp, value string) {
		t.Helper()
		b := e.NewBatch(true)
		txn := &mvcc.Txn{Then: []mvcc.Op{{Kind: mvcc.OpPut, Span: base.PointSpan([]byte("k")), Value: []byte(value)}}}
		if _, err := mvcc.Apply(b, txn, at, 0, true); err != nil {
			t.Fatal(err)
		}
		if err := b.Commit(false); err != nil {
			t.Fatal(err)
		}
	}
	known := func() string {
		_, value, _, ok := e.(effect.Heads).Head(headPrefix("k"))
		if !ok {
			return "nothing"
		}
		return string(value[len(value)-1:])
	}
	get := func(at base.Timestamp) string {
		t.Helper()
		res, err := mvcc.Range(e, base.PointSpan([]byte("k")), mvcc.RangeOptions{At: at})
		if err != nil || len(res.KVs) != 1 {
			t.Fatalf("at %d: %v, %v", at, res, err)
		}
		return string(res.KVs[0].Value)
	}
	put(10, "1")
	put(20, "2")
	if known() != "2" || get(25) != "2" || get(15) != "1" || known() != "2" {
		t.Fatalf("known %s; at 25 %s, at 15 %s", known(), get(25), get(15))
	}
	var touched uint16
	e.(*headed).heads.forget(&touched)
	if get(25) != "2" || known() != "nothing" {
		t.Fatal("learned while a batch is open")
	}
	e.(*headed).heads.end(touched, true)
	if get(15) != "1" || known() != "2" {
		t.Fatalf("a read of the past learned %s", known())
	}
}

// Heads take no more memory than they may, and keep what is used.
func TestHeadsAreBounded(t *testing.T) {
	const limit = 1 << 20
	e := WithHeads(NewMem(MemOptions{}), limit)
	h := e.(*headed).heads
	hot := headPrefix("hot")
	for i := range 100_000 {
		b := e.NewBatch(false)
		if i == 0 {
			_ = b.Set(keys.AppendVersion(nil, []byte("hot"), 1), []byte("v"))
		}
		_ = b.Set(keys.AppendVersion(nil, binary.BigEndian.AppendUint32(nil, uint32(i)), 1), make([]byte, 100))
		if err := b.Commit(false); err != nil {
			t.Fatal(err)
		}
		if _, _, _, ok := h.Head(hot); !ok {
			t.Fatalf("what is used all the time was forgotten after %d others", i)
		}
	}
	total := 0
	for i := range h.shards {
		for _, generation := range []map[string]*head{h.shards[i].young, h.shards[i].old} {
			for k, v := range generation {
				total += headBytes + len(k) + len(v.suffix) + len(v.value)
			}
		}
	}
	if total > limit || total < limit/4 {
		t.Fatalf("%d bytes of %d are used", total, limit)
	}
}
