package engine

import (
	"slices"
	"sort"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"

	"github.com/almanacdb/almanac/internal/keys"
)

// sequences finds out which sequences of keys (keys.Sequence) much is appended to, so that
// each of these gets sorted files of its own. A file with a piece of several sequences spans
// all that is between them, so that every compaction rewrites it together with all that was
// there before, at each level; nothing overlaps a piece of one sequence, which is moved from
// level to level as it is. Safe for concurrent use.
type sequences struct {
	mu   sync.Mutex
	all  map[string]*sequence
	busy []string // prefixes of those that get their own files, sorted
}

// sequence is what was written of one.
type sequence struct {
	prefix string
	bytes  atomic.Int64 // since the last flush
	lately int64        // bytes; follows what comes at once, and halves at each flush when less comes
}

// busyBytes is how much of a sequence must come with a flush to be worth a file.
const busyBytes = 1 << 20

func newSequences() *sequences { return &sequences{all: make(map[string]*sequence)} }

// of returns the sequence of a key, nil if it has none. last, the answer for an earlier key,
// may save the search.
func (s *sequences) of(key []byte, last *sequence) *sequence {
	if last != nil && len(key) > len(last.prefix) && string(key[:len(last.prefix)]) == last.prefix {
		return last
	}
	n := keys.Sequence(key)
	if n == 0 {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	q := s.all[string(key[:n])]
	if q == nil {
		q = &sequence{prefix: string(key[:n])}
		s.all[q.prefix] = q
	}
	return q
}

// flushing chooses the busy sequences, by what was written of them since the last flush, or
// lately.
func (s *sequences) flushing() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.busy = nil
	for prefix, q := range s.all {
		now := q.bytes.Swap(0)
		q.lately = max(now, (q.lately+now)/2)
		switch {
		case q.lately >= busyBytes:
			s.busy = append(s.busy, prefix)
		case q.lately == 0:
			delete(s.all, prefix)
		}
	}
	slices.Sort(s.busy)
}

// cut returns where a sorted file that begins with a key has to end: before the next key of
// another busy sequence. Empty means nowhere.
func (s *sequences) cut(start []byte) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := sort.Search(len(s.busy), func(i int) bool { return s.busy[i] > string(start) })
	switch {
	case i > 0 && strings.HasPrefix(string(start), s.busy[i-1]):
		return end(s.busy[i-1])
	case i < len(s.busy):
		return []byte(s.busy[i])
	}
	return nil
}

// end returns the first key behind a sequence, whose prefix ends with a terminator.
func end(prefix string) []byte {
	e := []byte(prefix)
	e[len(e)-1]++
	return e
}

// policy is Pebble's SpanPolicyFunc. Old versions stay beside the new ones: blocks of old
// values would be held in memory until their file is complete.
func (s *sequences) policy(start []byte) (pebble.SpanPolicy, []byte, error) {
	p := pebble.SpanPolicy{DisableValueSeparationBySuffix: true, ValueStoragePolicy: pebble.ValueStorageLowReadLatency}
	return p, s.cut(start), nil
}
