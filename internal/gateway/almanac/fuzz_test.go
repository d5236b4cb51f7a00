package almanac

import (
	"context"
	"testing"

	"google.golang.org/protobuf/proto"

	almanacv1 "github.com/almanacdb/almanac/api/almanac/v1"
	"github.com/almanacdb/almanac/internal/admission"
	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/command"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/mvcc"
	"github.com/almanacdb/almanac/internal/router"
	"github.com/almanacdb/almanac/internal/timeline"
	"github.com/almanacdb/almanac/internal/wire"
)

func addMessages(f *testing.F, messages ...proto.Message) {
	for _, m := range messages {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
}

// refusing answers whatever reaches it as if the range refused, after a look at whether it
// can travel.
func refusing(t *testing.T) *routes {
	refusal := fault.New(fault.Busy, "refused")
	return &routes{
		read: func(_ context.Context, reads []wire.Read, _ router.Consistency, _ base.Timestamp) (wire.ReadReply, error) {
			var again wire.ReadRequest
			if err := again.Decode((&wire.ReadRequest{Reads: reads}).Append(nil)); err != nil {
				t.Errorf("reads %+v were let through: %v", reads, err)
			}
			return wire.ReadReply{}, refusal
		},
		scan: func([]mvcc.Op, base.Timestamp, bool) ([]mvcc.RangeResult, base.Timestamp, error) {
			return nil, 0, refusal
		},
		txn: func(_ context.Context, txn *mvcc.Txn) (*mvcc.TxnResult, base.Timestamp, error) {
			if _, err := command.Encode(command.Header{Kind: command.KindTxn}, txn); err != nil {
				t.Errorf("%+v was let through: %v", txn, err)
			}
			return nil, 0, refusal
		},
		publish: func(_ string, events []timeline.NewEvent) ([]router.Published, error) {
			p := &timeline.Publish{Batches: []timeline.Batch{{Partition: base.PartitionID{Topic: 7}, Events: events}}}
			if _, err := command.Encode(command.Header{Kind: command.KindPublish}, p); err != nil {
				t.Errorf("%+v was let through: %v", events, err)
			}
			return nil, refusal
		},
	}
}

// Whatever a client asks for on a KV stream, it is refused as invalid or can travel.
func FuzzStreamCall(f *testing.F) {
	key := []byte("k")
	put := &almanacv1.PutRequest{Key: key, Value: []byte("v"), IfRevision: 7}
	scan := &almanacv1.RangeRequest{Key: key, Limit: 3}
	addMessages(f,
		&almanacv1.StreamCall{Id: 1, TimeoutMs: 5, Request: &almanacv1.StreamCall_Get{Get: &almanacv1.GetRequest{Key: key}}},
		&almanacv1.StreamCall{Request: &almanacv1.StreamCall_Put{Put: put}},
		&almanacv1.StreamCall{Request: &almanacv1.StreamCall_Range{Range: scan}},
		&almanacv1.StreamCall{Request: &almanacv1.StreamCall_Delete{Delete: &almanacv1.DeleteRequest{}}},
		&almanacv1.StreamCall{Request: &almanacv1.StreamCall_Txn{Txn: &almanacv1.TxnRequest{}}},
	)
	f.Fuzz(func(t *testing.T, b []byte) {
		call := &almanacv1.StreamCall{}
		if proto.Unmarshal(b, call) != nil {
			return
		}
		call.TimeoutMs = 0
		kv := &kvServer{Server: New(Options{Routes: refusing(t), Cluster: testCluster, Node: node{}})}
		reply := kv.answer(t.Context(), (&admission.Intake{}).Begin(), call)
		if r := reply.GetError().GetDetail().GetReason(); reply.GetError() != nil && r == fault.Internal.String() {
			t.Errorf("%v: got %v", call, reply.GetError())
		}
		if weight(call) < 0 || replyWeight(reply) < 0 {
			t.Errorf("%v has a negative weight", call)
		}
	})
}

// Whatever a client publishes, it is refused as invalid or can travel.
func FuzzPublish(f *testing.F) {
	addMessages(f,
		&almanacv1.PublishRequest{Topic: "t", Events: []*almanacv1.NewEvent{
			{Payload: []byte("p"), OrderingKey: []byte("k"), MessageId: "id", Headers: []*almanacv1.Header{{Name: "n", Value: []byte("v")}}}, {},
		}},
		&almanacv1.PublishRequest{Topic: "t\x00"},
	)
	f.Fuzz(func(t *testing.T, b []byte) {
		r := &almanacv1.PublishRequest{}
		if proto.Unmarshal(b, r) != nil || len(r.Events) == 0 {
			return
		}
		events := &eventsServer{Server: New(Options{Routes: refusing(t), Cluster: testCluster, Node: node{}})}
		if _, err := events.Publish(t.Context(), r); err == nil || detail(t, err).Reason == fault.Internal.String() {
			t.Errorf("%v: got %v", r, err)
		}
	})
}
