package host

import (
	"sync"

	"github.com/almanacdb/almanac/internal/base"
)

// mail is one mailbox item: for a range's replica, or for the worker itself.
type mail struct {
	rng   base.RangeID
	item  any
	run   func(*Worker) // set on mail to the worker
	saved *save         // set on mail from the committer
	// answer says that the item answers what the replica asked for.
	answer bool
}

// mailbox is a worker's bounded inbox. Any goroutine posts, the worker drains.
type mailbox struct {
	mu     sync.Mutex
	items  []mail
	spare  []mail
	limit  int
	closed bool
	signal chan struct{} // capacity 1
}

func newMailbox(limit int) *mailbox {
	return &mailbox{limit: limit, signal: make(chan struct{}, 1)}
}

// post adds an item; false if the mailbox is full or closed. Answers, what the committer
// says, and items for the worker itself are few and never refused for fullness.
func (b *mailbox) post(m mail) bool {
	b.mu.Lock()
	if b.closed || (m.run == nil && m.saved == nil && !m.answer && len(b.items) >= b.limit) {
		b.mu.Unlock()
		return false
	}
	b.items = append(b.items, m)
	first := len(b.items) == 1
	b.mu.Unlock()
	if first {
		select {
		case b.signal <- struct{}{}:
		default:
		}
	}
	return true
}

// drain takes all items. The slice is valid until the next drain.
func (b *mailbox) drain() []mail {
	b.mu.Lock()
	items := b.items
	b.items = b.spare[:0]
	b.mu.Unlock()
	b.spare = items
	return items
}

func (b *mailbox) pending() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.items) > 0
}

func (b *mailbox) close() {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	select {
	case b.signal <- struct{}{}:
	default:
	}
}
