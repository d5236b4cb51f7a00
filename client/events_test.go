package client

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	almanacv1 "github.com/almanacdb/almanac/api/almanac/v1"
	"github.com/almanacdb/almanac/client/clienttest"
)

func TestTopics(t *testing.T) {
	_, c := start(t)
	ctx := t.Context()
	made := must[Topic](t)(c.Events.CreateTopic(ctx, "t", TopicOptions{Partitions: 4, Retention: time.Hour}))
	if made.Partitions != 4 || made.Retention != time.Hour {
		t.Fatalf("got %+v", made)
	}
	_, err := c.Events.CreateTopic(ctx, "t", TopicOptions{})
	wantReason(t, err, ReasonAlreadyExists)
	if again := must[Topic](t)(c.Events.CreateTopic(ctx, "t", TopicOptions{IfNotExists: true})); again != made {
		t.Fatalf("got %+v, want %+v", again, made)
	}
	if got := must[[]Topic](t)(c.Events.ListTopics(ctx)); !slices.Equal(got, []Topic{made}) {
		t.Fatalf("got %+v", got)
	}
	if got := must[Topic](t)(c.Events.DescribeTopic(ctx, "t")); got != made {
		t.Fatalf("got %+v", got)
	}
	if err := c.Events.DeleteTopic(ctx, "t"); err != nil {
		t.Fatal(err)
	}
	wantReason(t, c.Events.DeleteTopic(ctx, "t"), ReasonNotFound)
	_, err = c.Events.Publish(ctx, "t", NewEvent{})
	wantReason(t, err, ReasonNotFound)
}

// TestPublishRepeatsWhatIsSafe checks that of a batch only the events that certainly
// were not added are sent again.
func TestPublishRepeatsWhatIsSafe(t *testing.T) {
	s, c := start(t)
	var mu sync.Mutex
	seen := map[string]int{}
	s.Faults.Publish = func(e *almanacv1.NewEvent) *almanacv1.Published {
		mu.Lock()
		defer mu.Unlock()
		id := e.GetMessageId()
		seen[id]++
		switch {
		case id == "busy" && seen[id] < 3:
			return &almanacv1.Published{Error: clienttest.Error(codes.ResourceExhausted, "busy", "full")}
		case id == "unknown":
			return &almanacv1.Published{Error: clienttest.Error(codes.Unavailable, "unknown_outcome", "perhaps")}
		}
		return nil
	}
	must[Topic](t)(c.Events.CreateTopic(t.Context(), "t", TopicOptions{}))
	results, err := c.Events.Publish(t.Context(), "t",
		NewEvent{MessageID: "good"}, NewEvent{MessageID: "unknown"}, NewEvent{MessageID: "busy"})
	wantReason(t, err, ReasonUnknownOutcome)
	if results[0].Err != nil || ReasonOf(results[1].Err) != ReasonUnknownOutcome || results[2].Err != nil {
		t.Fatalf("got %+v", results)
	}
	if seen["good"] != 1 || seen["unknown"] != 1 || seen["busy"] != 3 {
		t.Fatalf("sent %v", seen)
	}
	again := must[[]Published](t)(c.Events.Publish(t.Context(), "t", NewEvent{MessageID: "good"}))
	if !again[0].Duplicate || again[0].Position != results[0].Position {
		t.Fatalf("got %+v, want a duplicate of %+v", again[0], results[0])
	}
}

// TestPublishUnsure checks that a failure without detail, after the request was sent, is
// an unknown outcome and not repeated, whether it went on the stream or alone.
func TestPublishUnsure(t *testing.T) {
	s, c := start(t)
	var calls, unary atomic.Int32
	s.Faults.Unary = func(string, any) error {
		unary.Add(1)
		return status.Error(codes.Unavailable, "the connection broke")
	}
	s.Faults.Call = func(*almanacv1.StreamCall) *almanacv1.StreamReply {
		calls.Add(1)
		s.BreakStreams()
		<-s.Stopped() // never answers
		return nil
	}
	for _, size := range []int{manyBytes, manyBytes + 1} {
		_, err := c.Events.Publish(t.Context(), "t", NewEvent{Payload: make([]byte, size)})
		wantReason(t, err, ReasonUnknownOutcome)
	}
	if calls.Load() != 1 || unary.Load() != 1 {
		t.Fatalf("sent %d times on a stream, %d times alone", calls.Load(), unary.Load())
	}
}

// publish makes a topic with n events, due at once.
func publish(t *testing.T, c *Client, n int) {
	t.Helper()
	must[Topic](t)(c.Events.CreateTopic(t.Context(), "t", TopicOptions{IfNotExists: true}))
	events := make([]NewEvent, n)
	for i := range events {
		events[i] = NewEvent{MessageID: fmt.Sprint("id-", i), Payload: fmt.Append(nil, i)}
	}
	must[[]Published](t)(c.Events.Publish(t.Context(), "t", events...))
}

func subscribe(t *testing.T, c *Client, prefetch int) *Subscription {
	t.Helper()
	s := must[*Subscription](t)(c.Events.Subscribe(t.Context(), SubscribeOptions{Topic: "t", Group: "g", Prefetch: prefetch}))
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = s.Close(ctx)
	})
	return s
}

// take receives and acks n events and returns their payloads, sorted.
func take(t *testing.T, s *Subscription, n int) []string {
	t.Helper()
	var payloads []string
	for len(payloads) < n {
		batch := must[[]*Event](t)(s.NextBatch(t.Context(), n-len(payloads)))
		for _, e := range batch {
			payloads = append(payloads, string(e.Payload))
		}
		if err := s.Ack(batch...); err != nil {
			t.Fatal(err)
		}
	}
	slices.Sort(payloads)
	return payloads
}

// TestSubscribe checks that every event comes once, that few credits suffice for many
// events, and that Close returns when the acks are committed.
func TestSubscribe(t *testing.T) {
	const events = 300
	for _, prefetch := range []int{1, 7, 1000} {
		t.Run(fmt.Sprint(prefetch), func(t *testing.T) {
			server, c := start(t)
			publish(t, c, events)
			s := subscribe(t, c, prefetch)
			got := take(t, s, events)
			if len(slices.Compact(got)) != events {
				t.Fatalf("got %d different events", len(slices.Compact(got)))
			}
			if err := s.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			if n := server.Acked("t", "g"); n != events {
				t.Fatalf("%d acks are committed", n)
			}
			_, err := s.Next(t.Context())
			wantReason(t, err, ReasonClosed)
			wantReason(t, s.Ack(&Event{}), ReasonClosed)
		})
	}
}

// TestPrefetchBounds checks that no more than Prefetch events are handed out unacked.
func TestPrefetchBounds(t *testing.T) {
	server, c := start(t)
	publish(t, c, 50)
	s := subscribe(t, c, 5)
	for range 5 {
		must[*Event](t)(s.Next(t.Context()))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	_, err := s.Next(ctx)
	wantReason(t, err, ReasonDeadline)
	if n := server.HandedOut("t", "g"); n != 5 {
		t.Fatalf("%d events are handed out", n)
	}
}

// TestCloseReturnsPrefetched checks that what was not acked is with the group again when
// Close returns.
func TestCloseReturnsPrefetched(t *testing.T) {
	server, c := start(t)
	publish(t, c, 20)
	s := subscribe(t, c, 20)
	take(t, s, 3)
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if acked, out := server.Acked("t", "g"), server.HandedOut("t", "g"); acked != 3 || out != 0 {
		t.Fatalf("%d are acked, %d handed out", acked, out)
	}
	take(t, subscribe(t, c, 20), 17)
}

// TestFlushWaits checks that Flush returns when acks are committed, not before.
func TestFlushWaits(t *testing.T) {
	server, c := start(t)
	acking, release := make(chan struct{}, 10), make(chan struct{})
	server.Faults.Ack = func(*almanacv1.Ack) *almanacv1.AckResult {
		acking <- struct{}{}
		<-release
		return nil
	}
	publish(t, c, 1)
	s := subscribe(t, c, 10)
	take(t, s, 1)
	<-acking
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	err := s.Flush(ctx)
	wantReason(t, err, ReasonDeadline)
	if !strings.Contains(err.Error(), "1 acks were not confirmed") {
		t.Errorf("got %v", err)
	}
	close(release)
	if err := s.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := server.Acked("t", "g"); n != 1 {
		t.Fatalf("%d acks are committed", n)
	}
}

// TestResume checks that a subscription outlives its stream: unacked events come again,
// acks in flight are repeated, and events whose ack is in flight are not shown again.
func TestResume(t *testing.T) {
	server, c := start(t)
	var lose atomic.Bool
	lose.Store(true)
	lost := make(chan struct{})
	server.Faults.Ack = func(*almanacv1.Ack) *almanacv1.AckResult {
		if lose.CompareAndSwap(true, false) {
			close(lost)
			<-server.Stopped() // this answer never comes
		}
		return nil
	}
	publish(t, c, 3)
	s := subscribe(t, c, 10)
	events := map[string]*Event{}
	for range 3 {
		e := must[*Event](t)(s.Next(t.Context()))
		events[e.MessageID] = e
	}
	if err := s.Ack(events["id-0"]); err != nil {
		t.Fatal(err)
	}
	<-lost
	server.BreakStreams()
	for range 2 {
		e := must[*Event](t)(s.Next(t.Context()))
		if e.MessageID == "id-0" || e.Attempt != 2 {
			t.Fatalf("got %+v", e)
		}
		if err := s.Ack(e); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := server.Acked("t", "g"); n != 3 {
		t.Fatalf("%d acks are committed", n)
	}
}

// TestCloseConfirmsAfterLoss checks that Close comes back for acks whose answer was lost
// with the stream, even while closing.
func TestCloseConfirmsAfterLoss(t *testing.T) {
	server, c := start(t)
	var acks atomic.Int32
	server.Faults.Ack = func(*almanacv1.Ack) *almanacv1.AckResult {
		if acks.Add(1) == 1 {
			server.BreakStreams()
			<-server.Stopped()
		}
		return nil
	}
	publish(t, c, 1)
	s := subscribe(t, c, 10)
	e := must[*Event](t)(s.Next(t.Context()))
	if err := s.Ack(e); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := server.Acked("t", "g"); n != 1 {
		t.Fatalf("%d acks are committed", n)
	}
}

// TestAckAgain checks that acks refused for a passing reason are repeated, and that a
// lasting one ends the subscription.
func TestAckAgain(t *testing.T) {
	server, c := start(t)
	var acks atomic.Int32
	server.Faults.Ack = func(ack *almanacv1.Ack) *almanacv1.AckResult {
		switch acks.Add(1) {
		case 1:
			return &almanacv1.AckResult{Error: clienttest.Error(codes.Unavailable, "unknown_outcome", "perhaps")}
		case 2:
			full := almanacv1.AckOutcome_ACK_OUTCOME_WINDOW_FULL
			return &almanacv1.AckResult{Outcomes: []almanacv1.AckOutcome{full}}
		case 4:
			return &almanacv1.AckResult{Error: clienttest.Error(codes.NotFound, "not_found", "the topic is gone")}
		}
		return nil
	}
	publish(t, c, 2)
	s := subscribe(t, c, 1)
	take(t, s, 1)
	if err := s.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if acks.Load() != 3 || server.Acked("t", "g") != 1 {
		t.Fatalf("%d acks sent, %d committed", acks.Load(), server.Acked("t", "g"))
	}
	take(t, s, 1)
	wantReason(t, s.Flush(t.Context()), ReasonNotFound)
	_, err := s.Next(t.Context())
	wantReason(t, err, ReasonNotFound)
}

// TestSubscribeFails checks that what will not pass is told at once, what passes is
// waited for.
func TestSubscribeFails(t *testing.T) {
	server, c := start(t)
	_, err := c.Events.Subscribe(t.Context(), SubscribeOptions{Topic: "none", Group: "g"})
	wantReason(t, err, ReasonNotFound)
	var opens atomic.Int32
	server.Faults.Open = func(*almanacv1.SubscribeOpen) error {
		if opens.Add(1) < 3 {
			return clienttest.StatusError(codes.Unavailable, "uninitialized", "no cluster yet")
		}
		return nil
	}
	publish(t, c, 1)
	take(t, subscribe(t, c, 1), 1)
	if opens.Load() != 3 {
		t.Fatalf("opened %d times", opens.Load())
	}
}

// TestNotice checks that who waits in vain learns why.
func TestNotice(t *testing.T) {
	server, c := start(t)
	server.Faults.Notice = func() *almanacv1.Error {
		return clienttest.Error(codes.Unavailable, "busy", "the acked window of partition 3 is full")
	}
	must[Topic](t)(c.Events.CreateTopic(t.Context(), "t", TopicOptions{}))
	s := subscribe(t, c, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := s.Next(ctx)
	wantReason(t, err, ReasonDeadline)
	if !strings.Contains(err.Error(), "partition 3 is full") {
		t.Errorf("got %v", err)
	}
}

// TestMembersShare checks that two members of a group get different events.
func TestMembersShare(t *testing.T) {
	server, c := start(t)
	publish(t, c, 100)
	a, b := subscribe(t, c, 10), subscribe(t, c, 10)
	var mu sync.Mutex
	seen := map[string]int{}
	var left atomic.Int32
	left.Store(100)
	done, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for _, s := range []*Subscription{a, b} {
		wg.Go(func() {
			for {
				e, err := s.Next(done)
				if err != nil {
					return
				}
				mu.Lock()
				seen[e.MessageID]++
				mu.Unlock()
				if err := s.Ack(e); err != nil {
					t.Error(err)
				}
				if left.Add(-1) == 0 {
					cancel()
				}
			}
		})
	}
	wg.Wait()
	cancel()
	for _, s := range []*Subscription{a, b} {
		if err := s.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if len(seen) != 100 || server.Acked("t", "g") != 100 {
		t.Fatalf("%d events seen, %d acked", len(seen), server.Acked("t", "g"))
	}
}

func TestDueTime(t *testing.T) {
	at := time.UnixMilli(1763683200123)
	for _, test := range []struct {
		event      NewEvent
		due, delay int64
	}{
		{NewEvent{}, 0, 0},
		{NewEvent{Due: at}, 1763683200123, 0},
		{NewEvent{Due: time.UnixMilli(0)}, 1, 0}, // long past, yet not "none"
		{NewEvent{Due: time.UnixMilli(-5)}, 1, 0},
		{NewEvent{Delay: 5 * time.Second}, 0, 5000},
		{NewEvent{Delay: time.Microsecond}, 0, 1},
	} {
		if p := test.event.proto(); p.DueMs != test.due || p.DelayMs != test.delay {
			t.Errorf("%+v: due %d, delay %d", test.event, p.DueMs, p.DelayMs)
		}
	}
}

// TestSubscriptionOutlivesALostMajority checks that one that has joined goes on when, for a
// while, a server cannot join the group again in the time that a request may take.
func TestSubscriptionOutlivesALostMajority(t *testing.T) {
	server, c := start(t)
	var opens atomic.Int32
	server.Faults.Open = func(*almanacv1.SubscribeOpen) error {
		if n := opens.Add(1); n == 2 || n == 3 {
			return clienttest.StatusError(codes.DeadlineExceeded, "deadline_exceeded", "range 3 has no leader")
		}
		return nil
	}
	publish(t, c, 1)
	s := subscribe(t, c, 10)
	if err := s.Ack(must[*Event](t)(s.Next(t.Context()))); err != nil {
		t.Fatal(err)
	}
	if err := s.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	later := NewEvent{MessageID: "later", Delay: 200 * time.Millisecond}
	must[[]Published](t)(c.Events.Publish(t.Context(), "t", later))
	server.BreakStreams()
	if e := must[*Event](t)(s.Next(t.Context())); e.MessageID != "later" || opens.Load() != 4 {
		t.Fatalf("got %+v after joining %d times", e, opens.Load())
	}
}
