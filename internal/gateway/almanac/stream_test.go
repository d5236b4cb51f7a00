package almanac

import (
	"context"
	"errors"
	"io"
	"testing"

	almanacv1 "github.com/almanacdb/almanac/api/almanac/v1"
	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/mvcc"
	"github.com/almanacdb/almanac/internal/router"
	"github.com/almanacdb/almanac/internal/wire"
)

// gate holds reads until a test lets them go, by key.
type gate struct {
	started chan string
	ended   chan string
	free    map[string]chan struct{}
}

func newGate(keys ...string) *gate {
	g := &gate{started: make(chan string, 100), ended: make(chan string, 100), free: map[string]chan struct{}{}}
	for _, k := range keys {
		g.free[k] = make(chan struct{})
	}
	return g
}

func (g *gate) routes() *routes { return g.behind(&routes{}) }

// behind makes r's reads wait at the gate.
func (g *gate) behind(r *routes) *routes {
	r.read = func(ctx context.Context, reads []wire.Read, _ router.Consistency, _ base.Timestamp) (wire.ReadReply, error) {
		key := string(reads[0].Span.Start[userPrefix:])
		g.started <- key
		defer func() { g.ended <- key }()
		select {
		case <-g.free[key]:
			kv := mvcc.KeyValue{Key: reads[0].Span.Start, Value: []byte("of " + key), ModRevision: 5}
			return wire.ReadReply{At: 3, Results: []mvcc.RangeResult{{KVs: []mvcc.KeyValue{kv}, Count: 1}}}, nil
		case <-ctx.Done():
			return wire.ReadReply{}, ctx.Err()
		}
	}
	return r
}

func getCall(id uint64, key string) *almanacv1.StreamCall {
	return &almanacv1.StreamCall{Id: id, Request: &almanacv1.StreamCall_Get{Get: &almanacv1.GetRequest{Key: []byte(key)}}}
}

func openStream(t *testing.T, r *routes, l Limits) (almanacv1.KV_StreamClient, context.CancelFunc) {
	t.Helper()
	ctx, cancel := context.WithCancel(testContext(t))
	stream, err := almanacv1.NewKVClient(serve(t, r, l)).Stream(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cancel)
	return stream, cancel
}

func sendCalls(t *testing.T, stream almanacv1.KV_StreamClient, calls ...*almanacv1.StreamCall) {
	t.Helper()
	if err := stream.Send(&almanacv1.StreamRequest{Calls: calls}); err != nil {
		t.Fatal(err)
	}
}

// receive returns the next n replies by id.
func receive(t *testing.T, stream almanacv1.KV_StreamClient, n int) map[uint64]*almanacv1.StreamReply {
	t.Helper()
	got := map[uint64]*almanacv1.StreamReply{}
	for len(got) < n {
		frame, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range frame.Replies {
			if got[r.Id] != nil {
				t.Fatalf("call %d was answered twice", r.Id)
			}
			got[r.Id] = r
		}
	}
	return got
}

// bothWays runs a test with calls that workers do, and with calls that are only begun.
func bothWays(t *testing.T, test func(t *testing.T, r *routes)) {
	t.Run("workers", func(t *testing.T) { test(t, &routes{}) })
	t.Run("begun", func(t *testing.T) { test(t, &routes{begins: true}) })
}

func TestStreamAnswersAsCallsAreDone(t *testing.T) { bothWays(t, testStreamAnswersAsCallsAreDone) }

func testStreamAnswersAsCallsAreDone(t *testing.T, r *routes) {
	g := newGate("a", "b")
	stream, _ := openStream(t, g.behind(r), Limits{})
	sendCalls(t, stream, getCall(1, "a"), getCall(2, "b"), &almanacv1.StreamCall{Id: 3})
	if r := receive(t, stream, 1)[3]; r.GetError().GetDetail().GetReason() != "invalid_argument" {
		t.Fatalf("a call without request got %v", r)
	}
	close(g.free["b"])
	got := receive(t, stream, 1)[2].GetGet()
	if string(got.GetKv().GetKey()) != "b" || string(got.GetKv().GetValue()) != "of b" || got.GetRevision() != 5 {
		t.Fatalf("got %v", got)
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	close(g.free["a"])
	if r := receive(t, stream, 1)[1].GetGet(); string(r.GetKv().GetKey()) != "a" {
		t.Fatalf("got %v", r)
	}
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
		t.Fatalf("the stream ended with %v", err)
	}
}

func TestStreamBoundsCallsInFlight(t *testing.T) { bothWays(t, testStreamBoundsCallsInFlight) }

func testStreamBoundsCallsInFlight(t *testing.T, r *routes) {
	for name, limits := range map[string]Limits{
		"calls": {StreamCalls: 2},
		"bytes": {StreamBytes: 2 * (callWeight + 1)},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGate("a", "b", "c")
			stream, _ := openStream(t, g.behind(r), limits)
			sendCalls(t, stream, getCall(1, "a"), getCall(2, "b"), getCall(3, "c"))
			first, second := <-g.started, <-g.started
			if first+second != "ab" && first+second != "ba" {
				t.Fatalf("started %s and %s", first, second)
			}
			close(g.free["a"])
			receive(t, stream, 1)
			if key := <-g.started; key != "c" || len(g.ended) != 1 {
				t.Fatalf("%s started when %d calls were done", key, len(g.ended))
			}
			close(g.free["b"])
			close(g.free["c"])
			receive(t, stream, 2)
		})
	}
}

func TestBrokenStreamEndsItsCalls(t *testing.T) { bothWays(t, testBrokenStreamEndsItsCalls) }

func testBrokenStreamEndsItsCalls(t *testing.T, r *routes) {
	g := newGate("a", "b")
	stream, cancel := openStream(t, g.behind(r), Limits{StreamCalls: 1})
	sendCalls(t, stream, getCall(1, "a"), getCall(2, "b")) // the second waits to be admitted
	<-g.started
	cancel()
	if key := <-g.ended; key != "a" {
		t.Fatalf("%s ended", key)
	}
}

func TestStreamCallTimeout(t *testing.T) {
	g := newGate("a")
	stream, _ := openStream(t, g.routes(), Limits{})
	call := getCall(1, "a")
	call.TimeoutMs = 1
	sendCalls(t, stream, call)
	if r := receive(t, stream, 1)[1]; r.GetError().GetDetail().GetReason() != "deadline_exceeded" {
		t.Fatalf("got %v", r)
	}
}

func TestStreamManyCalls(t *testing.T) { bothWays(t, testStreamManyCalls) }

func testStreamManyCalls(t *testing.T, r *routes) {
	r.txn = func(_ context.Context, txn *mvcc.Txn) (*mvcc.TxnResult, base.Timestamp, error) {
		if len(txn.Then[0].Value) == 0 {
			return nil, 0, fault.New(fault.Busy, "too much to do")
		}
		return &mvcc.TxnResult{Succeeded: true, Ops: []mvcc.OpResult{{Kind: mvcc.OpPut}}}, base.Timestamp(txn.Then[0].Value[0]), nil
	}
	stream, _ := openStream(t, r, Limits{StreamCalls: 16})
	const frames, perFrame = 40, 100
	go func() {
		for f := range frames {
			frame := &almanacv1.StreamRequest{}
			for i := range perFrame {
				put := &almanacv1.PutRequest{Key: []byte("k"), Value: []byte{byte(i)}}
				if i == 0 {
					put.Value = nil
				}
				frame.Calls = append(frame.Calls, &almanacv1.StreamCall{
					Id: uint64(f*perFrame + i), Request: &almanacv1.StreamCall_Put{Put: put},
				})
			}
			if stream.Send(frame) != nil {
				return
			}
		}
		_ = stream.CloseSend()
	}()
	for id, reply := range receive(t, stream, frames*perFrame) {
		if i := id % perFrame; i == 0 {
			if reply.GetError().GetDetail().GetReason() != "busy" {
				t.Fatalf("call %d got %v", id, reply)
			}
		} else if reply.GetPut().GetRevision() != i {
			t.Fatalf("call %d got %v", id, reply)
		}
	}
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
		t.Fatalf("the stream ended with %v", err)
	}
}
