package admin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	almanacv1 "github.com/almanacdb/almanac/api/almanac/v1"
)

// call1 sends a unary call through a server's interceptor.
func call1(s *Server, method string, req, resp any, err error) {
	_, _ = s.unary(context.Background(), req, &grpc.UnaryServerInfo{FullMethod: method},
		func(context.Context, any) (any, error) { return resp, err })
}

func TestUnaryCallsAreTimed(t *testing.T) {
	s := New(Options{})
	for range 3 {
		call1(s, almanacv1.KV_Get_FullMethodName, nil, nil, nil)
	}
	call1(s, almanacv1.KV_Get_FullMethodName, nil, nil, status.Error(codes.NotFound, "no such key"))
	call1(s, "/etcdserverpb.KV/Put", nil, nil, errors.New("no status"))
	expect(t, s,
		`almanac_request_duration_seconds_count{code="OK",method="Get",service="almanac.v1.KV"} 3`,
		`almanac_request_duration_seconds_count{code="NotFound",method="Get",service="almanac.v1.KV"} 1`,
		`almanac_request_duration_seconds_count{code="Unknown",method="Put",service="etcdserverpb.KV"} 1`,
		"almanac_requests_in_flight 0",
	)
}

func TestCallsUnderWayAreCounted(t *testing.T) {
	s := New(Options{})
	_, _ = s.unary(context.Background(), nil, &grpc.UnaryServerInfo{FullMethod: "/a/b"}, func(context.Context, any) (any, error) {
		expect(t, s, "almanac_requests_in_flight 1")
		return nil, nil
	})
	func() {
		defer func() { _ = recover() }()
		_, _ = s.unary(context.Background(), nil, &grpc.UnaryServerInfo{FullMethod: "/a/b"}, func(context.Context, any) (any, error) {
			panic("a handler's")
		})
	}()
	expect(t, s, "almanac_requests_in_flight 0")
}

func TestPublishedEventsAreCounted(t *testing.T) {
	s := New(Options{})
	req := &almanacv1.PublishRequest{Events: make([]*almanacv1.NewEvent, 6)}
	resp := &almanacv1.PublishResponse{Results: []*almanacv1.Published{
		{}, {}, {}, {Duplicate: true}, {Error: &almanacv1.Error{Code: 14}}, {Error: &almanacv1.Error{Code: 14}},
	}}
	call1(s, almanacv1.Events_Publish_FullMethodName, req, resp, nil)
	expect(t, s,
		`almanac_events_published_total{result="accepted"} 3`, `almanac_events_published_total{result="duplicate"} 1`,
		`almanac_events_published_total{result="failed"} 2`)
	call1(s, almanacv1.Events_Publish_FullMethodName, req, nil, status.Error(codes.Unavailable, "no leader"))
	expect(t, s, `almanac_events_published_total{result="accepted"} 3`, `almanac_events_published_total{result="failed"} 8`)
}

// Publishes on a KV stream count as those that come alone.
func TestPublishesOnAStreamAreCounted(t *testing.T) {
	s := New(Options{})
	publish := func(id uint64, events int) *almanacv1.StreamCall {
		req := &almanacv1.PublishRequest{Events: make([]*almanacv1.NewEvent, events)}
		return &almanacv1.StreamCall{Id: id, Request: &almanacv1.StreamCall_Publish{Publish: req}}
	}
	c := &script{in: []any{&almanacv1.StreamRequest{Calls: []*almanacv1.StreamCall{publish(1, 2), publish(2, 3)}}}}
	answer := &almanacv1.PublishResponse{Results: []*almanacv1.Published{{}, {Duplicate: true}}}
	_ = streamed(s, almanacv1.KV_Stream_FullMethodName, c, &almanacv1.StreamResponse{Replies: []*almanacv1.StreamReply{
		{Id: 1, Response: &almanacv1.StreamReply_Publish{Publish: answer}},
		{Id: 2, Response: &almanacv1.StreamReply_Error{Error: &almanacv1.Error{Code: 14}}},
	}})
	expect(t, s,
		`almanac_events_published_total{result="accepted"} 1`, `almanac_events_published_total{result="duplicate"} 1`,
		`almanac_events_published_total{result="failed"} 3`,
		`almanac_request_duration_seconds_count{code="OK",method="Publish",service="almanac.v1.Events"} 1`)
}

// script is a stream whose client has said everything already.
type script struct {
	grpc.ServerStream
	in  []any
	bad bool // what is sent gets lost
}

func (c *script) RecvMsg(any) error {
	if len(c.in) == 0 {
		return io.EOF
	}
	c.in = c.in[1:]
	return nil
}

func (c *script) SendMsg(any) error {
	if c.bad {
		return io.ErrClosedPipe
	}
	return nil
}

// streamed runs a handler that receives all of in, then sends all of out.
func streamed(s *Server, method string, c *script, out ...any) error {
	in := c.in
	return s.stream(nil, c, &grpc.StreamServerInfo{FullMethod: method, IsServerStream: true}, func(_ any, ss grpc.ServerStream) error {
		for _, m := range in {
			if err := ss.RecvMsg(m); err != nil {
				return err
			}
		}
		for _, m := range out {
			if err := ss.SendMsg(m); err != nil {
				return err
			}
		}
		return ss.RecvMsg(nil)
	})
}

func TestCallsInsideStreamsAreTimed(t *testing.T) {
	s := New(Options{})
	in := &script{in: []any{
		&almanacv1.StreamRequest{Calls: []*almanacv1.StreamCall{
			{Id: 1, Request: &almanacv1.StreamCall_Get{}},
			{Id: 2, Request: &almanacv1.StreamCall_Put{}},
			{Id: 3, Request: &almanacv1.StreamCall_Range{}},
		}},
		&almanacv1.StreamRequest{Calls: []*almanacv1.StreamCall{
			{Id: 4, Request: &almanacv1.StreamCall_Delete{}},
			{Id: 5, Request: &almanacv1.StreamCall_Txn{}},
			{Id: 6},
			{Id: 7, Request: &almanacv1.StreamCall_Get{}}, // never answered
		}},
	}}
	err := streamed(s, almanacv1.KV_Stream_FullMethodName, in,
		&almanacv1.StreamResponse{Replies: []*almanacv1.StreamReply{{Id: 5}, {Id: 1}, {Id: 4}, {Id: 3}}},
		&almanacv1.StreamResponse{Replies: []*almanacv1.StreamReply{
			{Id: 2, Response: &almanacv1.StreamReply_Error{Error: &almanacv1.Error{Code: int32(codes.FailedPrecondition)}}},
			{Id: 6, Response: &almanacv1.StreamReply_Error{Error: &almanacv1.Error{Code: 1234}}},
			{Id: 6}, {Id: 99}, // answers to nothing
		}},
	)
	if err != io.EOF {
		t.Fatal(err)
	}
	const line = `almanac_request_duration_seconds_count{code="%s",method="%s",service="almanac.v1.KV"} 1`
	for method, code := range map[string]string{
		"Get": "OK", "Range": "OK", "Delete": "OK", "Txn": "OK", "Put": "FailedPrecondition", "unknown": "Unknown",
	} {
		expect(t, s, fmt.Sprintf(line, code, method))
	}
	expect(t, s, `almanac_streams_open{method="Stream",service="almanac.v1.KV"} 0`,
		`almanac_streams_ended_total{code="Unknown",method="Stream",service="almanac.v1.KV"} 1`)
}

func TestUnansweredCallsOfAStreamAreBounded(t *testing.T) {
	cs := &countedStream{server: New(Options{}), service: "almanac.v1.KV"}
	cs.ServerStream = &script{in: make([]any, 1)}
	flood := &almanacv1.StreamRequest{Calls: make([]*almanacv1.StreamCall, maxTimedCalls+10)}
	for i := range flood.Calls {
		flood.Calls[i] = &almanacv1.StreamCall{Id: uint64(i)}
	}
	if err := cs.RecvMsg(flood); err != nil || len(cs.calls) != maxTimedCalls {
		t.Errorf("%d calls are noted (%v)", len(cs.calls), err)
	}
}

func delivery(dueMS int64, attempt uint32) *almanacv1.Delivery {
	return &almanacv1.Delivery{Position: &almanacv1.Position{DueMs: dueMS}, Attempt: attempt}
}

func TestSubscriptionsAreCounted(t *testing.T) {
	m := newCluster()
	m.anchorMS, m.anchorAt = 100_000, m.clock.Mono()
	m.clock.Advance(250 * time.Millisecond)
	s := New(Options{})
	s.SetMember(m)
	ack := func(id uint64, positions int) *almanacv1.Ack {
		return &almanacv1.Ack{AckId: id, Positions: make([]*almanacv1.Position, positions)}
	}
	in := &script{in: []any{
		&almanacv1.SubscribeRequest{Request: &almanacv1.SubscribeRequest_Open{}},
		&almanacv1.SubscribeRequest{Request: &almanacv1.SubscribeRequest_Acks{Acks: &almanacv1.SubscribeAcks{
			Acks: []*almanacv1.Ack{ack(1, 5), ack(2, 3), ack(3, 2)},
		}}},
	}}
	const done, already = almanacv1.AckOutcome_ACK_OUTCOME_DONE, almanacv1.AckOutcome_ACK_OUTCOME_ALREADY
	err := streamed(s, almanacv1.Events_Subscribe_FullMethodName, in,
		&almanacv1.SubscribeResponse{Response: &almanacv1.SubscribeResponse_Deliveries{Deliveries: &almanacv1.Deliveries{
			Events: []*almanacv1.Delivery{
				delivery(100_250, 1), delivery(100_000, 1), delivery(100_300, 1), // on time, 250 ms late, clamped
				delivery(0, 2), // repeated: its lateness says nothing
			},
		}}},
		&almanacv1.SubscribeResponse{Response: &almanacv1.SubscribeResponse_AckResults{AckResults: &almanacv1.AckResults{
			Results: []*almanacv1.AckResult{
				{AckId: 1, Outcomes: []almanacv1.AckOutcome{done}}, // one for all five
				{AckId: 2, Outcomes: []almanacv1.AckOutcome{
					already, almanacv1.AckOutcome_ACK_OUTCOME_NOT_FOUND, almanacv1.AckOutcome_ACK_OUTCOME_WINDOW_FULL,
				}},
				{AckId: 3, Error: &almanacv1.Error{Code: int32(codes.Unavailable)}},
			},
		}}},
	)
	if err != io.EOF {
		t.Fatal(err)
	}
	expect(t, s,
		"almanac_events_delivered_total 4", "almanac_events_redelivered_total 1",
		"almanac_delivery_lateness_seconds_count 3", "almanac_delivery_lateness_seconds_sum 0.25",
		`almanac_events_acked_total{outcome="done"} 5`, `almanac_events_acked_total{outcome="already"} 1`,
		`almanac_events_acked_total{outcome="not_found"} 1`, `almanac_events_acked_total{outcome="window_full"} 1`,
		`almanac_events_acked_total{outcome="failed"} 2`,
		`almanac_request_duration_seconds_count{code="OK",method="Ack",service="almanac.v1.Events"} 2`,
		`almanac_request_duration_seconds_count{code="Unavailable",method="Ack",service="almanac.v1.Events"} 1`,
	)
}

func TestWhatIsNotSentIsNotCounted(t *testing.T) {
	s := New(Options{})
	s.SetMember(newCluster())
	err := streamed(s, almanacv1.Events_Subscribe_FullMethodName, &script{bad: true},
		&almanacv1.SubscribeResponse{Response: &almanacv1.SubscribeResponse_Deliveries{Deliveries: &almanacv1.Deliveries{
			Events: []*almanacv1.Delivery{delivery(1, 1)},
		}}})
	if err != io.ErrClosedPipe {
		t.Fatal(err)
	}
	expect(t, s, "almanac_events_delivered_total 0", "almanac_delivery_lateness_seconds_count 0")
}

// Whatever methods a client makes up and whatever codes a handler answers with, the
// labels are those of registered methods and of gRPC's codes.
func TestRequestLabelsAreBounded(t *testing.T) {
	s := New(Options{})
	l := bufconn.Listen(1 << 16)
	server := grpc.NewServer(s.ServerOptions()...)
	almanacv1.RegisterKVServer(server, almanacv1.UnimplementedKVServer{})
	go func() { _ = server.Serve(l) }()
	defer server.Stop()
	conn, err := grpc.NewClient("passthrough:///node", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	kv := almanacv1.NewKVClient(conn)
	for i := range 50 {
		method := fmt.Sprintf("/almanac.v1.KV/Invented%d", i)
		if err := conn.Invoke(context.Background(), method, &almanacv1.GetRequest{}, &almanacv1.GetResponse{}); status.Code(err) != codes.Unimplemented {
			t.Fatal(err)
		}
	}
	if _, err := kv.Get(context.Background(), &almanacv1.GetRequest{}); status.Code(err) != codes.Unimplemented {
		t.Fatal(err)
	}
	for c := codes.Code(0); c < 500; c++ {
		call1(s, almanacv1.KV_Put_FullMethodName, nil, nil, status.Error(c, ""))
	}
	families, err := s.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != table[requestDuration].name {
			continue
		}
		if n := len(f.GetMetric()); n != 1+17 {
			t.Errorf("%d series for one call of Get, and Put with all codes", n)
		}
	}
	if _, body := get(t, s, "/metrics"); strings.Contains(body, "Invented") {
		t.Error("a client's invention became a label")
	}
}
