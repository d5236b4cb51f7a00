package client

import (
	"context"
	"errors"
	"io"
	"runtime"
	"time"

	almanacv1 "github.com/almanacdb/almanac/api/almanac/v1"
)

// ackPositions is the most positions in one ack.
const ackPositions = 5000

// lastingStream is how long a stream must have lived for the pauses to start over.
const lastingStream = 5 * time.Second

// run keeps the subscription on a stream until it is closed or fails for good.
func (s *Subscription) run(ctx context.Context) {
	defer close(s.done)
	a := attempts{c: s.c}
	for n := 0; ; n++ {
		server, began := a.server(), time.Now()
		e := s.session(ctx, server)
		if s.finished() {
			return
		}
		if e == nil {
			e = &Error{Reason: ReasonUnavailable, Message: "the server ended the subscription"}
		}
		s.mu.Lock()
		s.trouble = e
		s.mu.Unlock()
		if time.Since(began) > lastingStream {
			n = 0
		}
		if s.joinedBefore() {
			e = s.resume(ctx, &a, server, e, n)
		} else {
			e = a.again(ctx, read, server, e)
		}
		if e != nil {
			s.fail(e)
			return
		}
	}
}

// finished says that the caller closed and nothing is left to be confirmed.
func (s *Subscription) finished() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closing && len(s.unsettled) == 0
}

func (s *Subscription) joinedBefore() bool {
	select {
	case <-s.opened:
		return true
	default:
		return false
	}
}

// resume pauses before the next stream, or returns the error that ends the subscription.
func (s *Subscription) resume(ctx context.Context, a *attempts, from *server, e *Error, n int) *Error {
	broken := e.cause != nil && e.Reason == ReasonInternal // gRPC's own words for a lost stream
	if !passes(e) && !broken {
		return e
	}
	a.next = s.c.hinted(e)
	if a.next == nil && (another(e) || broken) {
		s.c.leave(from)
	}
	return sleep(ctx, s.c.opts.pause(n), e)
}

// passes says whether what a server answered a subscription may be otherwise later. Its
// deadline is such: without a majority it gives up on joining or acking after a while.
func passes(e *Error) bool { return read.mayRepeat(e) || e.Reason == ReasonDeadline }

func (s *Subscription) fail(e *Error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = e
}

// session runs one stream to its end; nil means that the server ended it well.
func (s *Subscription) session(ctx context.Context, server *server) *Error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if e := server.connected(ctx); e != nil {
		return e
	}
	stream, err := almanacv1.NewEventsClient(server.conn).Subscribe(ctx)
	if err != nil {
		e := fromStatus(err)
		e.notSent = true
		return e
	}
	if err := stream.Send(s.restart()); err != nil && !errors.Is(err, io.EOF) {
		return fromStatus(err)
	}
	first, err := stream.Recv()
	if err != nil {
		return fromStatus(err)
	}
	if first.GetOpened() == nil {
		return &Error{Reason: ReasonInternal, Message: "the server did not say that the group was joined"}
	}
	s.mu.Lock()
	s.trouble = nil
	s.mu.Unlock()
	if !s.joinedBefore() {
		close(s.opened)
	}
	sender := make(chan struct{})
	go func() {
		defer close(sender)
		s.send(ctx, stream)
	}()
	s.poke()
	e := s.receive(ctx, stream)
	cancel()
	<-sender
	return e
}

// restart forgets what belonged to the last stream and returns the first message of
// the next: acks in flight are sent again, and what was delivered comes again.
func (s *Subscription) restart() *almanacv1.SubscribeRequest {
	s.mu.Lock()
	defer s.mu.Unlock()
	for drained := false; !drained; {
		select {
		case <-s.events:
		default:
			drained = true
		}
	}
	for id, batch := range s.flying {
		delete(s.flying, id)
		s.waiting[batch.partition] = append(batch.positions, s.waiting[batch.partition]...)
	}
	clear(s.held)
	clear(s.busy)
	s.credit = 0
	open := &almanacv1.SubscribeOpen{
		Topic: s.options.Topic, Group: s.options.Group,
		Start: almanacv1.StartRule_START_RULE_EARLIEST, Credits: uint32(s.options.Prefetch),
	}
	if s.options.Start == Latest {
		open.Start = almanacv1.StartRule_START_RULE_LATEST
	}
	if s.closing {
		open.Credits = 0 // back only to confirm acks
	}
	return &almanacv1.SubscribeRequest{Request: &almanacv1.SubscribeRequest_Open{Open: open}}
}

type subscribeStream = almanacv1.Events_SubscribeClient

// send sends acks and credits until the stream ends, or half-closes it when the caller
// has closed and everything is sent.
func (s *Subscription) send(ctx context.Context, stream subscribeStream) {
	for {
		select {
		case <-s.wake:
		case <-ctx.Done():
			return
		}
		runtime.Gosched() // let acks that are about to be made join this one
		acks, credit, last := s.outgoing()
		for _, ack := range acks { // each on its own: an ack can be large
			request := &almanacv1.SubscribeRequest{Request: &almanacv1.SubscribeRequest_Acks{
				Acks: &almanacv1.SubscribeAcks{Acks: []*almanacv1.Ack{ack}},
			}}
			if stream.Send(request) != nil {
				return // the receiver learns why
			}
		}
		if credit > 0 && !last {
			request := &almanacv1.SubscribeRequest{Request: &almanacv1.SubscribeRequest_Credit{
				Credit: &almanacv1.SubscribeCredit{Credits: credit},
			}}
			if stream.Send(request) != nil {
				return
			}
		}
		if last {
			_ = stream.CloseSend() // it always succeeds
			return
		}
	}
}

// outgoing takes what should be sent now. While an ack of a partition is in flight its
// later ones gather, so that the slower commits are, the more each carries.
func (s *Subscription) outgoing() (acks []*almanacv1.Ack, credit uint32, last bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for partition, positions := range s.waiting {
		for len(positions) > 0 && (s.closing || s.busy[partition] == 0 && !s.ackPause) {
			n := min(len(positions), ackPositions)
			s.lastAck++
			ack := &almanacv1.Ack{AckId: s.lastAck, Partition: partition, Positions: make([]*almanacv1.Position, n)}
			for i, p := range positions[:n] {
				ack.Positions[i] = p.proto()
			}
			s.flying[s.lastAck] = ackBatch{partition, positions[:n:n]}
			s.busy[partition]++
			positions = positions[n:]
			acks = append(acks, ack)
		}
		if len(positions) == 0 {
			delete(s.waiting, partition)
		} else {
			s.waiting[partition] = positions
		}
	}
	credit, s.credit = s.credit, 0
	return acks, credit, s.closing
}

// receive takes events and answers until the stream ends; nil means that it ended well.
func (s *Subscription) receive(ctx context.Context, stream subscribeStream) *Error {
	for {
		response, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fromStatus(err)
		}
		switch r := response.GetResponse().(type) {
		case *almanacv1.SubscribeResponse_Notice:
			s.note(fromProto(r.Notice))
		case *almanacv1.SubscribeResponse_Deliveries:
			s.note(nil)
			s.deliver(ctx, r.Deliveries.GetEvents())
		case *almanacv1.SubscribeResponse_AckResults:
			for _, result := range r.AckResults.GetResults() {
				if e := s.settle(result); e != nil {
					return e
				}
			}
		}
	}
}

func (s *Subscription) note(e *Error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.notice = e
}

// deliver queues events, without those whose ack is only waiting for its answer.
func (s *Subscription) deliver(ctx context.Context, deliveries []*almanacv1.Delivery) {
	now := time.Now()
	for _, d := range deliveries {
		e := s.event(d, now)
		id := e.id()
		s.mu.Lock()
		_, acked := s.unsettled[id]
		_, again := s.held[id]
		if acked || again {
			s.credit++ // one delivery, one ack: the other's credit comes from here
			s.poke()
		}
		if !acked {
			s.held[id] = struct{}{}
		}
		s.mu.Unlock()
		if acked {
			continue
		}
		select {
		case s.events <- e:
		case <-s.closed:
			return
		case <-ctx.Done():
			return
		}
	}
}

func (s *Subscription) event(d *almanacv1.Delivery, now time.Time) *Event {
	e := &Event{
		Topic: s.options.Topic, Partition: d.GetPartition(), Position: position(d.GetPosition()),
		MessageID: d.GetMessageId(), OrderingKey: d.GetOrderingKey(), Payload: d.GetPayload(),
		Attempt: d.GetAttempt(), ReceivedAt: now,
	}
	for _, h := range d.GetHeaders() {
		e.Headers = append(e.Headers, Header{Name: h.GetName(), Value: h.GetValue()})
	}
	return e
}

// settle takes the answer to an ack. What was not committed, but may be later, is sent
// again after a pause; the error is one that will not pass.
func (s *Subscription) settle(result *almanacv1.AckResult) *Error {
	s.mu.Lock()
	defer s.mu.Unlock()
	batch, ok := s.flying[result.GetAckId()]
	if !ok {
		return nil
	}
	delete(s.flying, result.GetAckId())
	s.busy[batch.partition]--
	defer s.poke()

	var again []Position
	outcomes := result.GetOutcomes()
	switch {
	case result.GetError() != nil:
		again = batch.positions
		if e := fromProto(result.GetError()); !passes(e) {
			s.waiting[batch.partition] = append(again, s.waiting[batch.partition]...)
			return e
		}
	case len(outcomes) != 1 && len(outcomes) != len(batch.positions):
		return &Error{Reason: ReasonInternal, Message: "the server answered an ack for another number of events"}
	default:
		for i, p := range batch.positions {
			if outcomes[min(i, len(outcomes)-1)] == almanacv1.AckOutcome_ACK_OUTCOME_WINDOW_FULL {
				again = append(again, p)
				continue
			}
			delete(s.unsettled, eventID{batch.partition, p})
		}
	}
	if len(s.unsettled) == 0 {
		close(s.settled)
		s.settled = make(chan struct{})
	}
	if len(again) == 0 {
		s.pauses = 0
		return nil
	}
	s.waiting[batch.partition] = append(again, s.waiting[batch.partition]...)
	s.holdAcks()
	return nil
}

// holdAcks pauses the sending of acks. The caller holds the lock.
func (s *Subscription) holdAcks() {
	if s.ackPause {
		return
	}
	s.ackPause = true
	time.AfterFunc(s.c.opts.pause(s.pauses), func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.ackPause = false
		s.poke()
	})
	s.pauses++
}
