package etcd

import (
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/almanacdb/almanac/internal/command"
)

// Whatever a client sends, the face answers or refuses it by a code of its own; what it
// lets through makes a command.
func FuzzTxn(f *testing.F) {
	put := &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("k"), Value: []byte("v"), PrevKv: true}}}
	get := &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte("k"), RangeEnd: []byte{0}, Limit: 3, SortTarget: pb.RangeRequest_VALUE}}}
	del := &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte{0}, RangeEnd: []byte{0}}}}
	nested := &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: &pb.TxnRequest{Success: []*pb.RequestOp{get}, Failure: []*pb.RequestOp{put}}}}
	compare := &pb.Compare{Key: []byte("k"), Target: pb.Compare_VALUE, Result: pb.Compare_GREATER, TargetUnion: &pb.Compare_Value{Value: []byte("v")}}
	for _, r := range []*pb.TxnRequest{
		{}, {Success: []*pb.RequestOp{put, get}}, {Compare: []*pb.Compare{compare}, Success: []*pb.RequestOp{nested}, Failure: []*pb.RequestOp{del}},
		{Success: []*pb.RequestOp{{}}}, {Compare: []*pb.Compare{{}}},
	} {
		b, err := proto.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r := &pb.TxnRequest{}
		if proto.Unmarshal(b, r) != nil {
			return
		}
		kv := &kvServer{Server: New(newFakeKeys(), &fakeNode{}, Options{})}
		_, err := kv.Txn(t.Context(), r)
		if c := status.Code(err); c == codes.Unknown || c == codes.Internal || c == codes.DataLoss {
			t.Errorf("%v: got %v", r, err)
		}
		if err == nil {
			if _, err := command.Encode(command.Header{Kind: command.KindTxn}, kv.txn(r)); err != nil {
				t.Errorf("%v was let through: %v", r, err)
			}
		}
		for _, op := range r.Success {
			switch op := op.GetRequest().(type) {
			case *pb.RequestOp_RequestRange:
				_, err = kv.Range(t.Context(), op.RequestRange)
			case *pb.RequestOp_RequestPut:
				_, err = kv.Put(t.Context(), op.RequestPut)
			case *pb.RequestOp_RequestDeleteRange:
				_, err = kv.DeleteRange(t.Context(), op.RequestDeleteRange)
			}
			if c := status.Code(err); c == codes.Unknown || c == codes.Internal || c == codes.DataLoss {
				t.Errorf("%v: got %v", op, err)
			}
		}
	})
}
