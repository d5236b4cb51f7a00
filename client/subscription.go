package client

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// defaultPrefetch is how many events a subscription has in hand unless told otherwise.
const defaultPrefetch = 1000

// Start says where a new group starts; a group that exists goes on where it stands.
type Start uint8

// Starts.
const (
	Earliest Start = iota // at the earliest event kept
	Latest                // after what is due now
)

// SubscribeOptions say what to receive.
type SubscribeOptions struct {
	Topic, Group string
	Start        Start
	// Prefetch is the most events delivered and not yet acked; 0 means 1,000.
	Prefetch int
}

// Event is one delivery of an event.
type Event struct {
	Topic       string
	Partition   uint32
	Position    Position // its DueMS is when it fell due
	MessageID   string
	OrderingKey []byte
	Headers     []Header
	Payload     []byte
	Attempt     uint32    // number of this delivery to the group, from 1, as far as known
	ReceivedAt  time.Time // by this machine's clock
}

// Lateness is the time from the due time to the receipt. It is negative if this
// machine's clock is behind the cluster's.
func (e *Event) Lateness() time.Duration {
	return e.ReceivedAt.Sub(time.UnixMilli(e.Position.DueMS))
}

// eventID names an event within a subscription.
type eventID struct {
	partition uint32
	position  Position
}

func (e *Event) id() eventID { return eventID{e.Partition, e.Position} }

// Subscription receives a topic's due events as a member of a group, each at least
// once. When its connection is lost it joins again by itself: acks that were not
// answered are repeated, and events that were not acked come again, here or at another
// member.
//
// One goroutine owns the connection; for each stream it runs a sender beside it.
type Subscription struct {
	c       *Client
	options SubscribeOptions
	cancel  context.CancelFunc

	events chan *Event   // as many places as credits
	wake   chan struct{} // one token: the sender has work
	opened chan struct{} // closed when the group was joined the first time
	closed chan struct{} // closed when the caller closes
	done   chan struct{} // closed when the connection's goroutine has ended

	mu        sync.Mutex
	held      map[eventID]struct{} // delivered on this stream, not acked by the caller
	unsettled map[eventID]struct{} // acked by the caller, not answered
	waiting   map[uint32][]Position
	flying    map[uint64]ackBatch // by ack id
	busy      map[uint32]int      // acks in flight by partition
	lastAck   uint64
	credit    uint32 // to give back
	ackPause  bool   // acks pause after one that failed
	pauses    int    // in a row
	settled   chan struct{}
	closing   bool
	err       *Error // why it ended; nil while it lives or when closed well
	trouble   *Error // why there is no stream just now
	notice    *Error // why the server holds events back, since the last delivery
}

// ackBatch is one ack in flight.
type ackBatch struct {
	partition uint32
	positions []Position
}

// Subscribe joins a group, and makes it if it is new. ctx bounds the joining alone; the
// subscription lives until it is closed.
func (e *Events) Subscribe(ctx context.Context, o SubscribeOptions) (*Subscription, error) {
	if o.Prefetch <= 0 {
		o.Prefetch = defaultPrefetch
	}
	life, cancel := context.WithCancel(context.Background())
	s := &Subscription{
		c: e.c, options: o, cancel: cancel,
		events: make(chan *Event, o.Prefetch),
		wake:   make(chan struct{}, 1),
		opened: make(chan struct{}), closed: make(chan struct{}), done: make(chan struct{}),
		held: map[eventID]struct{}{}, unsettled: map[eventID]struct{}{},
		waiting: map[uint32][]Position{}, flying: map[uint64]ackBatch{}, busy: map[uint32]int{},
		settled: make(chan struct{}),
	}
	ctx, stop := e.c.bound(ctx)
	defer stop()
	go s.run(life)
	select {
	case <-s.opened:
		return s, nil
	case <-s.done:
		cancel()
		return nil, s.failure()
	case <-ctx.Done():
		cancel()
		<-s.done
		s.mu.Lock()
		defer s.mu.Unlock()
		return nil, gaveUp(ctx.Err(), s.trouble)
	}
}

// Next waits for an event. Ack it, or it comes again and holds up one place of Prefetch.
func (s *Subscription) Next(ctx context.Context) (*Event, error) {
	select {
	case <-s.closed:
		return nil, errClosed("the subscription")
	default:
	}
	select {
	case e := <-s.events:
		return e, nil
	default:
	}
	select {
	case e := <-s.events:
		return e, nil
	case <-s.closed:
		return nil, errClosed("the subscription")
	case <-s.done:
		return nil, s.failure()
	case <-ctx.Done():
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.trouble == nil {
			return nil, gaveUp(ctx.Err(), s.notice)
		}
		return nil, gaveUp(ctx.Err(), s.trouble)
	}
}

// NextBatch waits for an event and returns it with what else is at hand, at most limit.
func (s *Subscription) NextBatch(ctx context.Context, limit int) ([]*Event, error) {
	first, err := s.Next(ctx)
	if err != nil {
		return nil, err
	}
	batch := []*Event{first}
	for len(batch) < limit {
		select {
		case e := <-s.events:
			batch = append(batch, e)
		default:
			return batch, nil
		}
	}
	return batch, nil
}

// Ack says that events have been processed. It does not wait; Flush and Close do. An
// ack that is lost is repeated.
func (s *Subscription) Ack(events ...*Event) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closing:
		return errClosed("the subscription")
	case s.err != nil:
		return s.err
	}
	for _, e := range events {
		id := e.id()
		if _, ok := s.held[id]; ok {
			delete(s.held, id)
			s.credit++
		}
		if _, ok := s.unsettled[id]; !ok {
			s.unsettled[id] = struct{}{}
			s.waiting[id.partition] = append(s.waiting[id.partition], id.position)
		}
	}
	s.poke()
	return nil
}

// Flush waits until every ack so far is committed.
func (s *Subscription) Flush(ctx context.Context) error {
	for {
		s.mu.Lock()
		left, settled, err := len(s.unsettled), s.settled, s.err
		s.mu.Unlock()
		if left == 0 {
			return nil
		}
		if err != nil {
			return err
		}
		select {
		case <-settled:
		case <-s.done:
			if err := s.unconfirmed(); err != nil {
				return err
			}
		case <-ctx.Done():
			return gaveUp(ctx.Err(), s.unconfirmed())
		}
	}
}

// Close leaves the group: what was delivered and not acked goes back to it at once.
// Close returns when every ack is committed, or with an error when ctx ends before.
func (s *Subscription) Close(ctx context.Context) error {
	s.mu.Lock()
	if !s.closing {
		s.closing = true
		close(s.closed)
	}
	if s.trouble != nil && len(s.unsettled) == 0 {
		s.cancel() // there is no stream, and nothing to open one for
	}
	s.poke()
	s.mu.Unlock()
	select {
	case <-s.done:
	case <-ctx.Done():
		s.cancel()
		<-s.done
	}
	s.cancel()
	if e := s.unconfirmed(); e != nil {
		if ctx.Err() != nil {
			return gaveUp(ctx.Err(), e)
		}
		return e
	}
	return nil
}

// poke tells the sender that there is work.
func (s *Subscription) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// failure says why the subscription ended.
func (s *Subscription) failure() *Error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	return errClosed("the subscription")
}

// unconfirmed returns an error if acks are unanswered.
func (s *Subscription) unconfirmed() *Error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.unsettled) == 0 {
		return nil
	}
	e := &Error{
		Reason:  ReasonUnknownOutcome,
		Message: fmt.Sprintf("%d acks were not confirmed", len(s.unsettled)),
		Remedy:  "events whose acks were not committed are delivered again",
	}
	if s.err != nil {
		e.Reason, e.Message, e.cause = s.err.Reason, e.Message+": "+s.err.Message, s.err
	}
	return e
}
