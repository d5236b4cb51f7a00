package almanac

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"

	almanacv1 "github.com/almanacdb/almanac/api/almanac/v1"
	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/placement"
	"github.com/almanacdb/almanac/internal/timeline"
	"github.com/almanacdb/almanac/internal/wire"
)

func delivery(seq uint64) wire.Delivery {
	return wire.Delivery{
		Partition: base.PartitionID{Topic: 5, Partition: 1}, Attempt: 2,
		Event: timeline.Event{
			Position: base.Position{DueMS: 100, Seq: seq}, MessageID: fmt.Sprint("m", seq), Payload: []byte("p"),
			OrderingKey: []byte("o"), Headers: []timeline.Header{{Name: "h", Value: []byte("v")}},
		},
	}
}

func acks(list ...*almanacv1.Ack) *almanacv1.SubscribeRequest {
	return &almanacv1.SubscribeRequest{Request: &almanacv1.SubscribeRequest_Acks{Acks: &almanacv1.SubscribeAcks{Acks: list}}}
}

func ackOf(id uint64, partition uint32, seqs ...uint64) *almanacv1.Ack {
	a := &almanacv1.Ack{AckId: id, Partition: partition}
	for _, s := range seqs {
		a.Positions = append(a.Positions, &almanacv1.Position{DueMs: 100, Sequence: s})
	}
	return a
}

func credit(n uint32) *almanacv1.SubscribeRequest {
	return &almanacv1.SubscribeRequest{Request: &almanacv1.SubscribeRequest_Credit{Credit: &almanacv1.SubscribeCredit{Credits: n}}}
}

type subscribed struct {
	*testing.T
	almanacv1.Events_SubscribeClient
	cancel context.CancelFunc
}

func (s *subscribed) send(list ...*almanacv1.SubscribeRequest) {
	s.Helper()
	for _, m := range list {
		if err := s.Send(m); err != nil {
			s.Fatal(err)
		}
	}
}

func (s *subscribed) receive() *almanacv1.SubscribeResponse {
	s.Helper()
	m, err := s.Recv()
	if err != nil {
		s.Fatal(err)
	}
	return m
}

// results returns the next n answers to acks by id.
func (s *subscribed) results(n int) map[uint64]*almanacv1.AckResult {
	s.Helper()
	got := map[uint64]*almanacv1.AckResult{}
	for len(got) < n {
		for _, r := range s.receive().GetAckResults().GetResults() {
			got[r.AckId] = r
		}
	}
	return got
}

func (s *subscribed) wantEnd(want error) {
	s.Helper()
	if m, err := s.Recv(); !errors.Is(err, want) {
		s.Fatalf("got %v, %v, want %v", m, err, want)
	}
}

func openSubscription(t *testing.T, r *routes, l Limits, credits uint32) *subscribed {
	t.Helper()
	ctx, cancel := context.WithCancel(testContext(t))
	t.Cleanup(cancel)
	stream, err := almanacv1.NewEventsClient(serve(t, r, l)).Subscribe(ctx)
	if err != nil {
		t.Fatal(err)
	}
	s := &subscribed{T: t, Events_SubscribeClient: stream, cancel: cancel}
	s.send(&almanacv1.SubscribeRequest{Request: &almanacv1.SubscribeRequest_Open{
		Open: &almanacv1.SubscribeOpen{Topic: "orders", Group: "g", Credits: credits},
	}})
	return s
}

func withSubscription(sub *subscription) *routes {
	return &routes{subscribe: func(topic, group string, start timeline.StartRule) (Subscription, error) {
		if topic != "orders" || group != "g" || start != timeline.StartEarliest {
			return nil, fault.New(fault.Internal, "asked for %s, %s, %d", topic, group, start)
		}
		return sub, nil
	}}
}

func TestSubscribeDeliversWithinCredit(t *testing.T) {
	sub := newSubscription(4)
	s := openSubscription(t, withSubscription(sub), Limits{}, 2)
	if n := s.receive().GetOpened().GetPartitions(); n != 4 {
		t.Fatalf("opened with %d partitions", n)
	}
	for seq := range uint64(5) {
		sub.feed <- delivery(seq)
	}
	for seq := range uint64(2) {
		d := s.receive().GetDeliveries().GetEvents()[0]
		if d.Position.Sequence != seq || d.Position.DueMs != 100 || d.Partition != 1 || d.Attempt != 2 ||
			d.MessageId != fmt.Sprint("m", seq) || string(d.OrderingKey) != "o" || string(d.Payload) != "p" ||
			d.Headers[0].Name != "h" || string(d.Headers[0].Value) != "v" {
			t.Fatalf("got %v", d)
		}
	}
	s.send(credit(1))
	if d := s.receive().GetDeliveries().GetEvents(); d[0].Position.Sequence != 2 {
		t.Fatalf("got %v", d)
	}
	if err := s.CloseSend(); err != nil {
		t.Fatal(err)
	}
	s.wantEnd(io.EOF)
	<-sub.closed
	if len(sub.feed) != 2 {
		t.Fatalf("%d events were left, want 2", len(sub.feed))
	}
}

func TestSubscribeHoldsBackSurplusCredit(t *testing.T) {
	sub := newSubscription(4)
	s := openSubscription(t, withSubscription(sub), Limits{Credits: 3}, 1<<31)
	s.send(credit(1<<32-1), credit(1<<32-1))
	s.receive()
	for seq := range uint64(20) { // more than may be under way at once, and none is lost
		sub.feed <- delivery(seq)
		if d := s.receive().GetDeliveries().GetEvents(); d[0].Position.Sequence != seq {
			t.Fatalf("got %v", d)
		}
	}
	sub.mu.Lock()
	defer sub.mu.Unlock()
	if sub.most > 3 {
		t.Fatalf("%d credits were under way", sub.most)
	}
}

// proposals is an Ack that tells the test of each proposal and waits to be answered.
type proposals struct {
	made   chan []timeline.AckBatch
	answer chan error
}

func (p *proposals) ack(_ context.Context, batches []timeline.AckBatch) ([]timeline.AckOutcome, error) {
	p.made <- batches
	var out []timeline.AckOutcome
	for _, b := range batches {
		for _, pos := range b.Positions {
			out = append(out, timeline.AckOutcome(pos.Seq%4+1))
		}
	}
	return out, <-p.answer
}

func TestAcksGatherByRangeAndAreAnsweredOnHalfClose(t *testing.T) {
	sub := newSubscription(4)
	r := withSubscription(sub)
	p := &proposals{make(chan []timeline.AckBatch), make(chan error)}
	r.ack = p.ack
	s := openSubscription(t, r, Limits{}, 0)
	s.receive()
	s.send(acks(ackOf(1, 0, 0, 1, 2, 3)))
	if first := <-p.made; len(first) != 1 || first[0].Group != 9 || first[0].Partition.Topic != 5 {
		t.Fatalf("proposed %v", first)
	}
	// Partitions 0 and 1 share a range whose proposal is under way; 2 has another.
	s.send(acks(ackOf(2, 0, 4), ackOf(3, 1, 8, 12)), acks(ackOf(5, 1)), acks(ackOf(4, 2, 5)))
	if other := <-p.made; len(other) != 1 || other[0].Partition.Partition != 2 {
		t.Fatalf("proposed %v", other)
	}
	p.answer <- nil
	s.results(1) // of either range
	if err := s.CloseSend(); err != nil {
		t.Fatal(err)
	}
	p.answer <- nil
	second := <-p.made
	if len(second) != 2 || len(second[0].Positions) != 1 || len(second[1].Positions) != 2 {
		t.Fatalf("proposed %v", second)
	}
	select {
	case <-sub.closed:
		t.Fatal("closed while acks were under way")
	default:
	}
	p.answer <- nil
	got := s.results(4)
	if o := got[2].GetOutcomes(); len(o) != 1 || o[0] != almanacv1.AckOutcome_ACK_OUTCOME_DONE {
		t.Fatalf("ack 2 got %v", got[2])
	}
	if o := got[3].GetOutcomes(); len(o) != 1 || o[0] != almanacv1.AckOutcome_ACK_OUTCOME_DONE {
		t.Fatalf("ack 3, all the same, got %v", got[3])
	}
	if got[5] == nil || len(got[5].GetOutcomes()) != 0 || got[5].GetError() != nil {
		t.Fatalf("an empty ack got %v", got[5])
	}
	s.wantEnd(io.EOF)
	<-sub.closed
}

func TestAckOutcomesAndErrors(t *testing.T) {
	sub := newSubscription(4)
	r := withSubscription(sub)
	p := &proposals{make(chan []timeline.AckBatch, 10), make(chan error, 10)}
	r.ack = p.ack
	s := openSubscription(t, r, Limits{}, 0)
	s.receive()
	p.answer <- nil
	s.send(acks(ackOf(1, 0, 0, 1, 2, 3)))
	want := []almanacv1.AckOutcome{
		almanacv1.AckOutcome_ACK_OUTCOME_DONE, almanacv1.AckOutcome_ACK_OUTCOME_ALREADY,
		almanacv1.AckOutcome_ACK_OUTCOME_NOT_FOUND, almanacv1.AckOutcome_ACK_OUTCOME_WINDOW_FULL,
	}
	if o := s.results(1)[1].GetOutcomes(); fmt.Sprint(o) != fmt.Sprint(want) {
		t.Fatalf("got %v, want %v", o, want)
	}
	p.answer <- fault.New(fault.Unavailable, "no majority")
	s.send(acks(ackOf(2, 0, 0)))
	if e := s.results(1)[2].GetError(); e.GetDetail().GetReason() != "unavailable" {
		t.Fatalf("got %v", e)
	}
	s.send(acks(ackOf(3, 4, 0)))
	if e := s.results(1)[3].GetError(); e.GetDetail().GetReason() != "invalid_argument" {
		t.Fatalf("got %v", e)
	}
}

func TestAcksUnderWayAreBounded(t *testing.T) {
	sub := newSubscription(4)
	r := withSubscription(sub)
	p := &proposals{make(chan []timeline.AckBatch), make(chan error)}
	r.ack = p.ack
	s := openSubscription(t, r, Limits{AckedEvents: 3}, 0)
	s.receive()
	s.send(acks(ackOf(1, 0, 0, 1)), acks(ackOf(2, 0, 4)), acks(ackOf(3, 0, 8)))
	// However they gather, what is proposed and not answered never exceeds the limit.
	left := 3
	for left > 0 {
		batch := <-p.made
		n := 0
		for _, b := range batch {
			n += len(b.Positions)
		}
		if n > 3 {
			t.Fatalf("%d events were under way", n)
		}
		left -= len(batch)
		p.answer <- nil
	}
	s.results(3)
}

func TestBrokenSubscriptionClosesAtOnce(t *testing.T) {
	sub := newSubscription(4)
	r := withSubscription(sub)
	proposing := make(chan struct{})
	r.ack = func(ctx context.Context, _ []timeline.AckBatch) ([]timeline.AckOutcome, error) {
		close(proposing)
		select {
		case <-sub.closed: // not held up by acks
		case <-testContext(t).Done():
		}
		return nil, fault.New(fault.UnknownOutcome, "no answer")
	}
	s := openSubscription(t, r, Limits{}, 1)
	s.receive()
	s.send(acks(ackOf(1, 0, 0)))
	<-proposing
	s.cancel()
	<-sub.closed
}

func TestSubscribeFailures(t *testing.T) {
	open := func(t *testing.T, r *routes, first *almanacv1.SubscribeRequest) error {
		stream, err := almanacv1.NewEventsClient(serve(t, r, Limits{})).Subscribe(testContext(t))
		if err != nil {
			t.Fatal(err)
		}
		if first == nil {
			_ = stream.CloseSend()
		} else if err := stream.Send(first); err != nil {
			t.Fatal(err)
		}
		_, err = stream.Recv()
		return err
	}
	wantReason(t, open(t, &routes{}, nil), fault.Invalid)
	wantReason(t, open(t, &routes{}, credit(1)), fault.Invalid)
	wantReason(t, open(t, &routes{}, &almanacv1.SubscribeRequest{Request: &almanacv1.SubscribeRequest_Open{
		Open: &almanacv1.SubscribeOpen{Topic: "orders", Group: "g", Start: 7},
	}}), fault.Invalid)
	unknown := &routes{subscribe: func(topic, _ string, _ timeline.StartRule) (Subscription, error) {
		return nil, placement.UnknownTopic(topic)
	}}
	err := open(t, unknown, &almanacv1.SubscribeRequest{Request: &almanacv1.SubscribeRequest_Open{
		Open: &almanacv1.SubscribeOpen{Topic: "orders", Group: "g"},
	}})
	wantReason(t, err, fault.NotFound)
	if detail(t, err).Remedy == "" {
		t.Error("no remedy")
	}

	t.Run("later", func(t *testing.T) {
		sub := newSubscription(4)
		s := openSubscription(t, withSubscription(sub), Limits{}, 1)
		s.receive()
		sub.failure <- placement.UnknownTopic("orders")
		_, err := s.Recv()
		wantReason(t, err, fault.NotFound)
		<-sub.closed
	})
	t.Run("opened twice", func(t *testing.T) {
		sub := newSubscription(4)
		s := openSubscription(t, withSubscription(sub), Limits{}, 1)
		s.receive()
		s.send(&almanacv1.SubscribeRequest{Request: &almanacv1.SubscribeRequest_Open{Open: &almanacv1.SubscribeOpen{}}})
		_, err := s.Recv()
		wantReason(t, err, fault.Invalid)
		<-sub.closed
	})
}

func TestDeliveriesAreCutBySizeAndCount(t *testing.T) {
	small := make([]wire.Delivery, deliveriesCount+1)
	if n := deliveriesIn(small); n != deliveriesCount {
		t.Errorf("%d small ones in a message", n)
	}
	big := []wire.Delivery{
		{Event: timeline.Event{Payload: make([]byte, 2*deliveriesBytes)}},
		{Event: timeline.Event{Payload: make([]byte, deliveriesBytes/2)}},
		{Event: timeline.Event{Headers: []timeline.Header{{Value: make([]byte, deliveriesBytes/2)}}}},
	}
	if n := deliveriesIn(big); n != 1 {
		t.Errorf("%d deliveries with one above the size", n)
	}
	if n := deliveriesIn(big[1:]); n != 1 {
		t.Errorf("%d deliveries, two are above the size", n)
	}
}
