package admin

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	almanacv1 "github.com/almanacdb/almanac/api/almanac/v1"
)

// maxTimedCalls bounds the calls of one stream that are timed at once. Beyond, calls are
// answered as ever but not counted.
const maxTimedCalls = 1 << 16

// countedStream counts and times the calls inside one stream. gRPC allows one goroutine
// to send while another receives.
type countedStream struct {
	grpc.ServerStream
	server  *Server
	service string

	mu    sync.Mutex
	calls map[uint64]call // by the id that the client chose
}

// call is a call that has no answer yet.
type call struct {
	service string
	method  string
	events  int // of an ack or a publish
	begun   time.Time
}

// RecvMsg implements grpc.ServerStream.
func (s *countedStream) RecvMsg(m any) error {
	if err := s.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	switch m := m.(type) {
	case *almanacv1.StreamRequest:
		now := time.Now()
		s.mu.Lock()
		for _, c := range m.GetCalls() {
			s.begin(c.GetId(), s.callOf(c, now))
		}
		s.mu.Unlock()
	case *almanacv1.SubscribeRequest:
		now := time.Now()
		s.mu.Lock()
		for _, a := range m.GetAcks().GetAcks() {
			s.begin(a.GetAckId(), call{service: s.service, method: "Ack", events: len(a.GetPositions()), begun: now})
		}
		s.mu.Unlock()
	}
	return nil
}

// SendMsg implements grpc.ServerStream.
func (s *countedStream) SendMsg(m any) error {
	if err := s.ServerStream.SendMsg(m); err != nil {
		return err
	}
	switch m := m.(type) {
	case *almanacv1.StreamResponse:
		for _, r := range m.GetReplies() {
			if c := s.end(r.GetId(), r.GetError()); c.method == methodPublish {
				s.server.metrics.publish(c.events, r.GetPublish())
			}
		}
	case *almanacv1.SubscribeResponse:
		if d := m.GetDeliveries(); d != nil {
			s.server.delivered(d)
		}
		for _, r := range m.GetAckResults().GetResults() {
			s.server.metrics.ack(r, s.end(r.GetAckId(), r.GetError()).events)
		}
	}
	return nil
}

// begin notes a call. Called with mu held.
func (s *countedStream) begin(id uint64, c call) {
	if len(s.calls) >= maxTimedCalls {
		return
	}
	if s.calls == nil {
		s.calls = make(map[uint64]call)
	}
	s.calls[id] = c
}

// end times a call that was answered and returns what was noted of it, if anything.
func (s *countedStream) end(id uint64, failed *almanacv1.Error) call {
	s.mu.Lock()
	c, ok := s.calls[id]
	delete(s.calls, id)
	s.mu.Unlock()
	if ok {
		s.server.metrics.request(c.service, c.method, codes.Code(failed.GetCode()), c.begun)
	}
	return c
}

const methodPublish = "Publish"

// callOf returns what a call inside the stream stands for.
func (s *countedStream) callOf(c *almanacv1.StreamCall, now time.Time) call {
	as := call{service: s.service, method: "unknown", begun: now}
	switch r := c.GetRequest().(type) {
	case *almanacv1.StreamCall_Get:
		as.method = "Get"
	case *almanacv1.StreamCall_Range:
		as.method = "Range"
	case *almanacv1.StreamCall_Put:
		as.method = "Put"
	case *almanacv1.StreamCall_Delete:
		as.method = "Delete"
	case *almanacv1.StreamCall_Txn:
		as.method = "Txn"
	case *almanacv1.StreamCall_Publish:
		as.service, as.method = almanacv1.Events_ServiceDesc.ServiceName, methodPublish
		as.events = len(r.Publish.GetEvents())
	}
	return as
}

// delivered counts a batch of deliveries.
func (s *Server) delivered(d *almanacv1.Deliveries) {
	m := s.joined()
	if m == nil {
		return
	}
	now, again := oracleNow(m), 0
	for _, e := range d.GetEvents() {
		if e.GetAttempt() > 1 {
			again++
			continue
		}
		late := now - time.Duration(e.GetPosition().GetDueMs())*time.Millisecond
		s.metrics.lateness.Observe(max(0, late).Seconds())
	}
	s.metrics.delivered.Add(float64(len(d.GetEvents())))
	s.metrics.redelivered.Add(float64(again))
}

// ack counts what became of the events of one ack. One outcome may stand for all.
func (m *metrics) ack(r *almanacv1.AckResult, events int) {
	outcomes := r.GetOutcomes()
	switch {
	case r.GetError() != nil:
		add(m.acked, max(events, 1), "failed")
	case len(outcomes) == 1:
		add(m.acked, max(events, 1), outcomeName(outcomes[0]))
	default:
		for _, o := range outcomes {
			add(m.acked, 1, outcomeName(o))
		}
	}
}

func outcomeName(o almanacv1.AckOutcome) string {
	switch o {
	case almanacv1.AckOutcome_ACK_OUTCOME_DONE:
		return "done"
	case almanacv1.AckOutcome_ACK_OUTCOME_ALREADY:
		return "already"
	case almanacv1.AckOutcome_ACK_OUTCOME_NOT_FOUND:
		return "not_found"
	case almanacv1.AckOutcome_ACK_OUTCOME_WINDOW_FULL:
		return "window_full"
	}
	return "failed"
}

func add(v *prometheus.CounterVec, n int, label string) {
	if n > 0 {
		v.WithLabelValues(label).Add(float64(n))
	}
}
