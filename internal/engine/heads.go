package engine

import (
	"bytes"
	"sync"

	"github.com/cespare/xxhash/v2"

	"github.com/almanacdb/almanac/internal/effect"
	"github.com/almanacdb/almanac/internal/keys"
)

// WithHeads returns e with a memory of about so many bytes for heads: the newest version
// of each of the keys that were written or read last, which spares finding it. 0 or less
// returns e as it is. All writes must go through what is returned, and a version must be
// newer than all that its key has.
//
// A head is known from when it is set in a batch, which is before it can be read from the
// engine. Who reads as of a moment knows by the version's timestamp that it is too new,
// and looks for itself.
func WithHeads(e Engine, bytes int) Engine {
	if bytes <= 0 {
		return e
	}
	h := &heads{limit: bytes / len(heads{}.shards) / 2}
	for i := range h.shards {
		h.shards[i].young = make(map[string]*head)
	}
	return &headed{e, h}
}

// headed is an engine with heads.
type headed struct {
	Engine
	heads *heads
}

// heads are kept in shards by their prefix.
type heads struct {
	limit  int // bytes of one generation of one shard
	shards [16]shard
}

// shard has two generations: when the young one is full it becomes the old one, and what was
// old and not used since is forgotten.
type shard struct {
	mu         sync.RWMutex
	bytes      int // of the young generation
	young, old map[string]*head

	moment uint64 // rises with every change of what the engine holds, or will hold
	open   int    // batches that changed something and are not committed
}

// head is a version. Its bytes are immutable, for readers have them.
type head struct{ suffix, value []byte }

func (d *head) size(prefix []byte) int {
	return headBytes + len(prefix) + len(d.suffix) + len(d.value)
}

// headBytes is about what a head takes besides the bytes of its key and value.
const headBytes = 200

func (h *heads) shard(prefix []byte) *shard {
	return &h.shards[xxhash.Sum64(prefix)%uint64(len(h.shards))]
}

// Head implements effect.Heads.
func (h *heads) Head(prefix []byte) (suffix, value []byte, t effect.HeadTicket, ok bool) {
	s := h.shard(prefix)
	s.mu.RLock()
	found := s.young[string(prefix)]
	if found != nil {
		suffix, value = found.suffix, found.value
		s.mu.RUnlock()
		return suffix, value, t, true
	}
	aged := s.old[string(prefix)] != nil
	if !aged && s.open == 0 {
		t.Moment = s.moment + 1
	}
	s.mu.RUnlock()
	if !aged {
		return nil, nil, t, false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if found = h.renew(s, prefix); found == nil {
		return nil, nil, t, false // just now
	}
	return found.suffix, found.value, t, true
}

// renew returns a key's head from the young generation, where it brings it if it is in the
// old one; nil if there is none. Called with the shard's mu held.
func (h *heads) renew(s *shard, prefix []byte) *head {
	found := s.young[string(prefix)]
	if found == nil {
		if found = s.old[string(prefix)]; found != nil {
			delete(s.old, string(prefix))
			h.add(s, prefix, found)
		}
	}
	return found
}

// Learn implements effect.Heads. What was found is the head if nothing has changed since
// before the read, and nothing was about to then.
func (h *heads) Learn(t effect.HeadTicket, prefix, suffix, value []byte) {
	if t.Moment == 0 || len(suffix) == 0 {
		return
	}
	made, ok := h.copy(prefix, suffix, value)
	if !ok {
		return
	}
	s := h.shard(prefix)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.moment+1 == t.Moment && s.young[string(prefix)] == nil {
		h.add(s, prefix, &made)
	}
}

// copy copies a head, unless it is too large to be kept.
func (h *heads) copy(prefix, suffix, value []byte) (made head, ok bool) {
	if made = (head{suffix, value}); made.size(prefix) > h.limit/2 {
		return head{}, false
	}
	n := len(suffix)
	b := append(append(make([]byte, 0, n+len(value)), suffix...), value...)
	return head{b[:n:n], b[n:]}, true
}

// add adds a head that the young generation does not have. Called with the shard's mu held.
func (h *heads) add(s *shard, prefix []byte, made *head) {
	size := made.size(prefix)
	if s.bytes+size > h.limit {
		s.young, s.old, s.bytes = make(map[string]*head), s.young, 0
	}
	s.young[string(prefix)] = made
	s.bytes += size
}

// set notes that a batch sets a version. touched says in which shards it did before.
func (h *heads) set(key, value []byte, touched *uint16) {
	n := keys.Split(key)
	if n == len(key) {
		return
	}
	prefix := key[:n]
	made, ok := h.copy(prefix, key[n:], value)
	i := xxhash.Sum64(prefix) % uint64(len(h.shards))
	s := &h.shards[i]
	s.mu.Lock()
	defer s.mu.Unlock()
	s.change(i, touched)
	known := h.renew(s, prefix)
	switch {
	case !ok && known != nil:
		s.bytes -= known.size(prefix)
		delete(s.young, string(prefix))
	case ok && known != nil:
		s.bytes += made.size(prefix) - known.size(prefix)
		*known = made
	case ok:
		h.add(s, prefix, &made)
	}
}

// change begins a change by a batch. Called with mu held.
func (s *shard) change(i uint64, touched *uint16) {
	s.moment++
	if *touched&(1<<i) == 0 {
		*touched |= 1 << i
		s.open++
	}
}

// forget forgets all heads while a batch, or an ingest, takes versions away.
func (h *heads) forget(touched *uint16) {
	for i := range h.shards {
		s := &h.shards[i]
		s.mu.Lock()
		s.change(uint64(i), touched)
		s.young, s.old, s.bytes = make(map[string]*head), nil, 0
		s.mu.Unlock()
	}
}

// end ends what a batch did: the engine holds it now, or never will.
func (h *heads) end(touched uint16, held bool) {
	for i := range h.shards {
		if touched&(1<<i) == 0 {
			continue
		}
		s := &h.shards[i]
		s.mu.Lock()
		s.open--
		s.moment++
		if !held {
			s.young, s.old, s.bytes = make(map[string]*head), nil, 0
		}
		s.mu.Unlock()
	}
}

// Head implements effect.Heads.
func (e *headed) Head(prefix []byte) (suffix, value []byte, t effect.HeadTicket, ok bool) {
	return e.heads.Head(prefix)
}

// Learn implements effect.Heads.
func (e *headed) Learn(t effect.HeadTicket, prefix, suffix, value []byte) {
	e.heads.Learn(t, prefix, suffix, value)
}

// NewBatch implements Engine.
func (e *headed) NewBatch(indexed bool) Batch {
	return &headedBatch{Batch: e.Engine.NewBatch(indexed), heads: e.heads}
}

// Ingest implements Engine.
func (e *headed) Ingest(names ...string) error {
	var touched uint16
	e.heads.forget(&touched)
	err := e.Engine.Ingest(names...)
	e.heads.end(touched, err == nil)
	return err
}

// headedBatch is a batch whose versions are known as heads before they are committed.
type headedBatch struct {
	Batch
	heads   *heads
	touched uint16 // shards
}

// Head implements effect.Heads; what is not known is not learned from within a batch.
func (b *headedBatch) Head(prefix []byte) (suffix, value []byte, t effect.HeadTicket, ok bool) {
	suffix, value, _, ok = b.heads.Head(prefix)
	return suffix, value, t, ok
}

// Learn implements effect.Heads.
func (b *headedBatch) Learn(effect.HeadTicket, []byte, []byte, []byte) {}

// Set implements effect.View.
func (b *headedBatch) Set(key, value []byte) error {
	b.heads.set(key, value, &b.touched)
	return b.Batch.Set(key, value)
}

// Delete implements effect.View.
func (b *headedBatch) Delete(key []byte) error {
	if keys.Split(key) < len(key) {
		b.heads.forget(&b.touched)
	}
	return b.Batch.Delete(key)
}

// DeleteRange implements effect.View.
func (b *headedBatch) DeleteRange(lower, upper []byte) error {
	if bytes.Compare(lower, []byte{byte(keys.FamilyVersion) + 1}) < 0 && bytes.Compare(upper, []byte{byte(keys.FamilyVersion)}) > 0 {
		b.heads.forget(&b.touched)
	}
	return b.Batch.DeleteRange(lower, upper)
}

// Commit implements Batch.
func (b *headedBatch) Commit(sync bool) error {
	err := b.Batch.Commit(sync)
	b.heads.end(b.touched, err == nil)
	b.touched = 0
	return err
}

// Close implements Batch.
func (b *headedBatch) Close() error {
	b.heads.end(b.touched, false)
	b.touched = 0
	return b.Batch.Close()
}
