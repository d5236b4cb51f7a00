package transport

import (
	"sync"

	"github.com/almanacdb/almanac/internal/wire"
)

// queue holds the messages that wait for one peer and class. It is bounded, in bytes
// and count, and refuses everything while shut.
type queue struct {
	bounds Bounds
	ready  chan struct{} // holds a token when there may be something to take

	mu    sync.Mutex
	msgs  []wire.Message // from head on
	head  int
	bytes int // of msgs from head on
	shut  bool
}

func newQueue(b Bounds) *queue { return &queue{bounds: b, ready: make(chan struct{}, 1)} }

// add queues all of msgs, which take size bytes, or none. An empty queue takes anything.
func (q *queue) add(msgs []wire.Message, size int) bool {
	q.mu.Lock()
	waiting := len(q.msgs) - q.head
	full := waiting > 0 && (q.bytes+size > q.bounds.Bytes || waiting+len(msgs) > q.bounds.Count)
	if q.shut || full {
		q.mu.Unlock()
		return false
	}
	if q.head > len(q.msgs)/2 { // keep the slice from creeping through memory
		n := copy(q.msgs, q.msgs[q.head:])
		clear(q.msgs[n:])
		q.msgs, q.head = q.msgs[:n], 0
	}
	q.msgs = append(q.msgs, msgs...)
	q.bytes += size
	q.mu.Unlock()
	if waiting == 0 {
		q.wake()
	}
	return true
}

func (q *queue) wake() {
	select {
	case q.ready <- struct{}{}:
	default:
	}
}

// take appends to batch the longest prefix of at most limit bytes, at least one
// message if there is one, and returns their size. If more wait, ready holds a token
// again.
func (q *queue) take(batch []wire.Message, limit int) (_ []wire.Message, total int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for ; q.head < len(q.msgs); q.head++ {
		size := wire.Size(&q.msgs[q.head])
		if total > 0 && total+size > limit {
			q.wake()
			return batch, total
		}
		total += size
		q.bytes -= size
		batch = append(batch, q.msgs[q.head])
		q.msgs[q.head] = wire.Message{}
	}
	q.msgs, q.head = q.msgs[:0], 0
	return batch, total
}

// close drops what waits and refuses more; it returns how many messages it dropped.
func (q *queue) close() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := len(q.msgs) - q.head
	q.msgs, q.head, q.bytes, q.shut = nil, 0, 0, true
	return n
}

// open takes messages again.
func (q *queue) open() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.shut = false
}
