package mvcc

import "github.com/almanacdb/almanac/internal/base"

// Recent remembers what a range's keys that were written last are like, their values
// excepted: a write needs its key's creation and version count, and finding them in the
// view is most of its cost. What it holds is equal to what the view holds, so the state
// does not depend on it. It belongs to one state machine and is thrown away with it. A
// nil *Recent remembers nothing.
//
// It has two generations: when the young one is full it becomes the old one, and what
// was old and not used since is forgotten.
type Recent struct {
	limit      int // bytes of one generation
	bytes      int // of the young generation
	young, old map[string]*header
}

// header is a live version without its value.
type header struct {
	create, mod base.Timestamp
	version     int64
	lease       int64
}

// recentBytes is about what a key takes in a generation, besides its own bytes.
const recentBytes = 112

// NewRecent returns a Recent that takes about so many bytes; nil if that is none.
func NewRecent(bytes int) *Recent {
	if bytes <= 0 {
		return nil
	}
	return &Recent{limit: bytes / 2, young: make(map[string]*header)}
}

// get returns the newest version of a key without its value; ok is false if it is not
// known.
func (r *Recent) get(key []byte) (kv KeyValue, ok bool) {
	if r == nil {
		return kv, false
	}
	h := r.young[string(key)]
	if h == nil {
		if h = r.old[string(key)]; h == nil {
			return kv, false
		}
		delete(r.old, string(key))
		r.add(key, h)
	}
	return KeyValue{Key: key, CreateRevision: h.create, ModRevision: h.mod, Version: h.version, Lease: h.lease}, true
}

// put notes a version that was just written.
func (r *Recent) put(key []byte, kv *KeyValue) {
	if r == nil {
		return
	}
	h := r.young[string(key)]
	if h == nil {
		if h = r.old[string(key)]; h == nil {
			h = new(header)
		} else {
			delete(r.old, string(key))
		}
		r.add(key, h)
	}
	*h = header{create: kv.CreateRevision, mod: kv.ModRevision, version: kv.Version, lease: kv.Lease}
}

func (r *Recent) add(key []byte, h *header) {
	size := recentBytes + len(key)
	if r.bytes+size > r.limit {
		r.young, r.old, r.bytes = make(map[string]*header), r.young, 0
	}
	r.young[string(key)] = h
	r.bytes += size
}

// forget notes that a key was deleted.
func (r *Recent) forget(key []byte) {
	if r == nil {
		return
	}
	delete(r.young, string(key)) // its bytes count until the generation ends
	delete(r.old, string(key))
}
