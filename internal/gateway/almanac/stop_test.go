package almanac

import (
	"context"
	"testing"

	almanacv1 "github.com/almanacdb/almanac/api/almanac/v1"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/timeline"
)

// A stopping node answers the calls that it began; whether the one that waits is begun is
// a matter of chance.
func TestStopAnswersWhatWasTaken(t *testing.T) { bothWays(t, testStopAnswersWhatWasTaken) }

func testStopAnswersWhatWasTaken(t *testing.T, r *routes) {
	g := newGate("a", "b")
	s := New(Options{Routes: g.behind(r), Cluster: testCluster, Node: node{oracle: 1}, Limits: Limits{StreamCalls: 1}})
	stream, err := almanacv1.NewKVClient(dial(t, s)).Stream(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	sendCalls(t, stream, getCall(1, "a"), getCall(2, "b"))
	<-g.started
	s.Stop()
	close(g.free["a"])
	close(g.free["b"])
	answered := 0
	for {
		frame, err := stream.Recv()
		if err != nil {
			wantReason(t, err, fault.Stopped)
			break
		}
		answered += len(frame.Replies)
	}
	if began := 1 + len(g.started); answered != began {
		t.Fatalf("%d calls begun, %d answered", began, answered)
	}
}

// A stopping node commits the acks that it took, gives back the rest, and says why.
func TestStopEndsSubscriptions(t *testing.T) {
	sub := newSubscription(4)
	r := withSubscription(sub)
	proposed, commit := make(chan struct{}), make(chan struct{})
	r.ack = func(context.Context, []timeline.AckBatch) ([]timeline.AckOutcome, error) {
		close(proposed)
		<-commit
		return []timeline.AckOutcome{timeline.AckDone}, nil
	}
	s := New(Options{Routes: r, Cluster: testCluster, Node: node{oracle: 1}})
	stream, err := almanacv1.NewEventsClient(dial(t, s)).Subscribe(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	c := &subscribed{T: t, Events_SubscribeClient: stream}
	c.send(&almanacv1.SubscribeRequest{Request: &almanacv1.SubscribeRequest_Open{
		Open: &almanacv1.SubscribeOpen{Topic: "orders", Group: "g", Credits: 1},
	}})
	if c.receive().GetOpened() == nil {
		t.Fatal("not opened")
	}
	sub.feed <- delivery(1)
	c.receive()
	c.send(acks(ackOf(7, 1, 1)))
	<-proposed
	s.Stop()
	close(commit)
	if c.results(1)[7].GetError() != nil {
		t.Fatal("the ack failed")
	}
	_, err = c.Recv()
	wantReason(t, err, fault.Stopped)
	<-sub.closed
}
