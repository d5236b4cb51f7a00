package host

import (
	"sync"

	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/logstore"
	"github.com/almanacdb/almanac/internal/transport"
)

// save is what one turn wants durable, and what waits for that.
type save struct {
	worker *Worker
	batch  *logstore.Batch
	sync   bool
	late   outbox
	tell   []Resident
	err    error // why it failed; once it was written
}

// Committer writes the batches of all workers of a node to the log store, in the order in
// which they were handed over, with one sync for all that wait. A worker goes on
// meanwhile, so that a sync delays what depends on it and nothing else. What is handed
// over and not durable yet is bounded by what replication lets be uncommitted.
type Committer struct {
	transport transport.Transport
	fatal     func(error)

	mu     sync.Mutex
	queue  []*save
	spare  []*save
	busy   bool // saves are under way; for good, once one failed
	closed bool
	signal chan struct{} // capacity 1
	done   chan struct{}
	failed error // the log store's first error: nothing is written or sent any more (S6)
}

// NewCommitter returns a committer that sends through t what waited for a save. fatal is
// told, once, that the log store failed: the node must stop. Run it, or call Commit.
func NewCommitter(t transport.Transport, fatal func(error)) *Committer {
	return &Committer{transport: t, fatal: fatal, signal: make(chan struct{}, 1), done: make(chan struct{})}
}

// submit takes a turn's save over; its batch is sealed. One that writes nothing and has
// nothing to wait for is done at once.
func (c *Committer) submit(s *save) {
	c.mu.Lock()
	idle := len(c.queue) == 0 && !c.busy
	if idle && s.batch.Empty() {
		c.mu.Unlock()
		c.release(s)
		return
	}
	c.queue = append(c.queue, s)
	first := len(c.queue) == 1
	c.mu.Unlock()
	if first {
		select {
		case c.signal <- struct{}{}:
		default:
		}
	}
}

// Pending says whether something waits to be written, for a simulator.
func (c *Committer) Pending() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.queue) > 0
}

// Commit writes all that waits, with one sync if any of it needs one, sends what had to
// wait, and tells the workers.
func (c *Committer) Commit() {
	c.mu.Lock()
	saves := c.queue
	c.queue, c.busy = c.spare[:0], true
	c.mu.Unlock()
	if c.failed == nil {
		c.write(saves)
	}
	for _, s := range saves {
		s.err = c.failed
		c.release(s)
	}
	clear(saves)
	c.mu.Lock()
	c.spare, c.busy = saves, c.failed != nil
	c.mu.Unlock()
}

// release sends what waited for a save and tells its worker.
func (c *Committer) release(s *save) {
	if s.err == nil {
		s.late.flush(c.transport)
	}
	s.worker.box.post(mail{saved: s})
}

// write writes batches in order. A sync covers all that was written before it, so only
// the last write asks for one.
func (c *Committer) write(saves []*save) {
	last, sync := -1, false
	for i, s := range saves {
		sync = sync || s.sync
		if !s.batch.Empty() {
			last = i
		}
	}
	for i, s := range saves[:last+1] {
		if err := s.batch.Write(sync && i == last); err != nil {
			c.failed = err
			c.fatal(err)
			return
		}
	}
}

// Run commits until Close. It is the committer's goroutine.
func (c *Committer) Run() {
	defer close(c.done)
	for {
		<-c.signal
		c.guarded()
		c.mu.Lock()
		end := c.closed && len(c.queue) == 0
		c.mu.Unlock()
		if end {
			return
		}
	}
}

// guarded is Commit for Run: a panic of the log store is an error like others.
func (c *Committer) guarded() {
	defer func() {
		if cause := recover(); cause != nil && c.failed == nil {
			c.failed = fault.New(fault.Internal, "the log store can't go on: %v", cause)
			c.fatal(c.failed)
		}
	}()
	c.Commit()
}

// Close ends Run once all that was handed over is written. The workers have been closed.
func (c *Committer) Close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	select {
	case c.signal <- struct{}{}:
	default:
	}
	<-c.done
}
