// Package lincheck judges histories that tests record: whether single-key operations
// were linearizable, and whether events were lost, early, invented, or passed over by
// a cursor. It owns the models of what clients may see; it refuses to know how a
// cluster is run or what went wrong inside. Tests only.
package lincheck

import (
	"slices"
	"sync"
	"time"
)

// Recorder collects a history from many goroutines. The zero Recorder is not usable.
type Recorder struct {
	now    func() time.Duration
	mu     sync.Mutex
	keys   []Operation
	events EventHistory
}

// NewRecorder returns an empty recorder. Now is monotonic time, safe for concurrent
// use; nil means the process's own.
func NewRecorder(now func() time.Duration) *Recorder {
	if now == nil {
		start := time.Now()
		now = func() time.Duration { return time.Since(start) }
	}
	return &Recorder{now: now}
}

// Begin records that a client is about to call, and returns what ends the record: call
// it once, when the answer is there. An operation whose record never ends has an
// unknown outcome. One client's operations must not overlap.
func (r *Recorder) Begin(client int, in Input) func(Output) {
	call := r.now()
	r.mu.Lock()
	i := len(r.keys)
	r.keys = append(r.keys, Operation{Client: client, Input: in, Output: Output{Unknown: true}, Call: call, Return: Forever})
	r.mu.Unlock()
	return func(out Output) {
		at := r.now()
		r.mu.Lock()
		defer r.mu.Unlock()
		op := &r.keys[i]
		op.Output = out
		if !out.Unknown {
			op.Return = at
		}
	}
}

// Keys returns the operations so far, in the order of their calls' records.
func (r *Recorder) Keys() []Operation {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.keys)
}

// Now returns the recorder's monotonic time.
func (r *Recorder) Now() time.Duration { return r.now() }

// Published records an acknowledged publish.
func (r *Recorder) Published(p Publish) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events.Publishes = append(r.events.Publishes, p)
}

// Attempted records a publish whose outcome is unknown.
func (r *Recorder) Attempted(a Attempt) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events.Attempts = append(r.events.Attempts, a)
}

// Delivered records a delivery.
func (r *Recorder) Delivered(d Delivery) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events.Deliveries = append(r.events.Deliveries, d)
}

// CursorSeen records a group's cursor as a client saw it.
func (r *Recorder) CursorSeen(c Cursor) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events.Cursors = append(r.events.Cursors, c)
}

// Acked records an acknowledged ack.
func (r *Recorder) Acked(a Ack) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events.Acks = append(r.events.Acks, a)
}

// Cancelled records an acknowledged cancel whose answer was *cancelled* or *withdrawn*.
func (r *Recorder) Cancelled(c Cancel) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events.Cancels = append(r.events.Cancels, c)
}

// Events returns the event history so far.
func (r *Recorder) Events() EventHistory {
	r.mu.Lock()
	defer r.mu.Unlock()
	return EventHistory{
		Publishes:  slices.Clone(r.events.Publishes),
		Attempts:   slices.Clone(r.events.Attempts),
		Deliveries: slices.Clone(r.events.Deliveries),
		Acks:       slices.Clone(r.events.Acks),
		Cancels:    slices.Clone(r.events.Cancels),
		Cursors:    slices.Clone(r.events.Cursors),
	}
}
