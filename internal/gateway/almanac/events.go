package almanac

import (
	"context"
	"fmt"
	"math"
	"time"

	almanacv1 "github.com/almanacdb/almanac/api/almanac/v1"
	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/placement"
	"github.com/almanacdb/almanac/internal/router"
	"github.com/almanacdb/almanac/internal/timeline"
)

// eventsServer is the Events service.
type eventsServer struct {
	*Server
	almanacv1.UnsafeEventsServer
}

// defaultPartitions is how many partitions a topic has that was created without a number.
const defaultPartitions = 8

// CreateTopic implements almanacv1.EventsServer.
func (s *eventsServer) CreateTopic(ctx context.Context, r *almanacv1.CreateTopicRequest) (*almanacv1.CreateTopicResponse, error) {
	req := placement.CreateTopic{
		Name: r.Name, Partitions: r.Partitions, Replicas: int(r.Replicas), RetentionMS: r.RetentionMs, IfNotExists: r.IfNotExists,
	}
	if req.Partitions == 0 {
		req.Partitions = defaultPartitions
	}
	if err := checkTopic(&req); err != nil {
		return nil, s.status(err)
	}
	t, created, err := s.routes.CreateTopic(ctx, req)
	if err != nil {
		return nil, s.status(err)
	}
	// The topic exists: not knowing how many replicas are aimed at must not hide that.
	nodes, _ := s.nodeCount(ctx, t.Replicas)
	return &almanacv1.CreateTopicResponse{Topic: topic(&t, nodes), Created: created}, nil
}

// checkTopic refuses at once what placement would.
func checkTopic(r *placement.CreateTopic) error {
	if err := placement.CheckName("topic", r.Name); err != nil {
		return err
	}
	switch {
	case r.Partitions > placement.MaxPartitions:
		return fault.New(fault.Invalid, "%d partitions are above the limit of %d", r.Partitions, placement.MaxPartitions).
			WithRemedy("ask for fewer; a topic's partitions share its ranges anyway")
	case r.RetentionMS < 0:
		return fault.New(fault.Invalid, "retention_ms is negative").WithRemedy("use 0 to keep events for ever")
	}
	return nil
}

// ListTopics implements almanacv1.EventsServer.
func (s *eventsServer) ListTopics(ctx context.Context, _ *almanacv1.ListTopicsRequest) (*almanacv1.ListTopicsResponse, error) {
	list, err := s.routes.Topics(ctx)
	if err != nil {
		return nil, s.status(err)
	}
	resp := &almanacv1.ListTopicsResponse{}
	if len(list) == 0 {
		return resp, nil
	}
	nodes, err := s.nodeCount(ctx, 0)
	if err != nil {
		return nil, s.status(err)
	}
	for i := range list {
		resp.Topics = append(resp.Topics, topic(&list[i], nodes))
	}
	return resp, nil
}

// DescribeTopic implements almanacv1.EventsServer.
func (s *eventsServer) DescribeTopic(ctx context.Context, r *almanacv1.DescribeTopicRequest) (*almanacv1.DescribeTopicResponse, error) {
	t, err := s.topicNamed(ctx, r.Name)
	if err != nil {
		return nil, s.status(err)
	}
	nodes, err := s.nodeCount(ctx, t.Replicas)
	if err != nil {
		return nil, s.status(err)
	}
	return &almanacv1.DescribeTopicResponse{Topic: topic(&t, nodes)}, nil
}

func (s *Server) topicNamed(ctx context.Context, name string) (placement.Topic, error) {
	if err := placement.CheckName("topic", name); err != nil {
		return placement.Topic{}, err
	}
	return s.routes.Topic(ctx, name)
}

// DeleteTopic implements almanacv1.EventsServer.
func (s *eventsServer) DeleteTopic(ctx context.Context, r *almanacv1.DeleteTopicRequest) (*almanacv1.DeleteTopicResponse, error) {
	if err := placement.CheckName("topic", r.Name); err != nil {
		return nil, s.status(err)
	}
	if err := s.routes.DeleteTopic(ctx, r.Name); err != nil {
		return nil, s.status(err)
	}
	return &almanacv1.DeleteTopicResponse{}, nil
}

// nodeCount returns the number of nodes if a policy that wants so many replicas needs
// it: one that wants 0 aims at what the nodes allow (R6).
func (s *Server) nodeCount(ctx context.Context, replicas int) (int, error) {
	if replicas > 0 {
		return 0, nil
	}
	reply, err := s.routes.Admin(ctx, &placement.Request{Reports: true})
	if err != nil {
		return 0, err
	}
	return len(reply.Reports), nil
}

// target returns how many replicas a policy aims at; 0 if it needs the number of nodes
// and that is unknown.
func target(replicas, nodes int) uint32 {
	if replicas > 0 {
		return uint32(min(replicas, math.MaxInt32))
	}
	if nodes == 0 {
		return 0
	}
	return uint32(placement.DefaultReplicas(nodes))
}

func topic(t *placement.Topic, nodes int) *almanacv1.Topic {
	return &almanacv1.Topic{
		Name: t.Name, TopicId: uint64(t.ID), Partitions: t.Partitions,
		Replicas: target(t.Replicas, nodes), RetentionMs: t.RetentionMS,
	}
}

// Publish implements almanacv1.EventsServer.
func (s *eventsServer) Publish(ctx context.Context, r *almanacv1.PublishRequest) (*almanacv1.PublishResponse, error) {
	resp, err := s.publish(ctx, r)
	return resp, s.status(err)
}

func (s *Server) publish(ctx context.Context, r *almanacv1.PublishRequest) (*almanacv1.PublishResponse, error) {
	events, err := s.newEvents(r)
	if err != nil {
		return nil, err
	}
	if len(events) == 0 {
		_, err := s.topicNamed(ctx, r.Topic)
		return &almanacv1.PublishResponse{}, err
	}
	results, err := s.routes.Publish(ctx, r.Topic, events)
	return s.published(len(events), results, err)
}

// beginPublish is publish that does not wait: done is called with the answer, once, and must
// not block. False means that publish has to do it.
func (s *Server) beginPublish(ctx context.Context, timeout time.Duration, r *almanacv1.PublishRequest, done func(*almanacv1.PublishResponse, error)) bool {
	events, err := s.newEvents(r)
	if err != nil || len(events) == 0 {
		return false
	}
	return s.routes.BeginPublish(ctx, timeout, r.Topic, events, func(results []router.Published, err error) {
		done(s.published(len(events), results, err))
	})
}

// published makes the answer to a request of so many events.
func (s *Server) published(events int, results []router.Published, err error) (*almanacv1.PublishResponse, error) {
	if err != nil {
		return nil, err
	}
	if len(results) != events {
		return nil, fault.New(fault.UnknownOutcome, "%d events got %d answers", events, len(results))
	}
	all := make([]struct {
		published almanacv1.Published
		position  almanacv1.Position
	}, len(results))
	resp := &almanacv1.PublishResponse{Results: make([]*almanacv1.Published, len(results))}
	for i := range results {
		p, to := &results[i], &all[i].published
		resp.Results[i] = to
		to.Partition = uint32(p.Partition)
		if p.Err != nil {
			to.Error = s.message(p.Err)
			continue
		}
		all[i].position.DueMs, all[i].position.Sequence = p.Position.DueMS, p.Position.Seq
		to.Position, to.Duplicate = &all[i].position, p.Duplicate
	}
	return resp, nil
}

// newEvents checks and converts the events of a request. One bad event refuses all.
func (s *Server) newEvents(r *almanacv1.PublishRequest) ([]timeline.NewEvent, error) {
	if err := placement.CheckName("topic", r.Topic); err != nil {
		return nil, err
	}
	if n := len(r.Events); n > s.limits.PublishEvents {
		return nil, fault.New(fault.TooLarge, "%d events in one request are above the limit of %d", n, s.limits.PublishEvents).
			WithRemedy("publish them in several requests")
	}
	if err := s.checkRequest(r); err != nil {
		return nil, err
	}
	latest := s.now().Add(s.limits.DueAhead).UnixMilli()
	events := make([]timeline.NewEvent, len(r.Events))
	for i, e := range r.Events {
		if err := s.checkEvent(e, latest); err != nil {
			err.Text = fmt.Sprintf("event %d: ", i) + err.Text
			return nil, err
		}
		to := &events[i]
		to.MessageID, to.OrderingKey, to.Payload = e.GetMessageId(), e.GetOrderingKey(), e.GetPayload()
		to.DueMS, to.DelayMS = e.GetDueMs(), e.GetDelayMs()
		if n := len(e.GetHeaders()); n > 0 {
			to.Headers = make([]timeline.Header, n)
			for j, h := range e.GetHeaders() {
				to.Headers[j] = timeline.Header{Name: h.GetName(), Value: h.GetValue()}
			}
		}
	}
	return events, nil
}

// checkEvent refuses an event that could never be published.
func (s *Server) checkEvent(e *almanacv1.NewEvent, latestMS int64) *fault.Error {
	above := func(what string, n, limit int) *fault.Error {
		return fault.New(fault.TooLarge, "%s of %d bytes is above the limit of %d", what, n, limit)
	}
	due, delay := e.GetDueMs(), e.GetDelayMs()
	switch {
	case len(e.GetPayload()) > s.limits.PayloadBytes:
		return above("a payload", len(e.GetPayload()), s.limits.PayloadBytes).
			WithRemedy("store what it says elsewhere, and publish where")
	case len(e.GetMessageId()) > timeline.MaxMessageID:
		return above("a message id", len(e.GetMessageId()), timeline.MaxMessageID).WithRemedy("use a hash of it")
	case len(e.GetOrderingKey()) > timeline.MaxOrderingKey:
		return above("an ordering key", len(e.GetOrderingKey()), timeline.MaxOrderingKey).WithRemedy("use a hash of it")
	case len(e.GetHeaders()) > timeline.MaxHeaders:
		return fault.New(fault.TooLarge, "%d headers are above the limit of %d", len(e.GetHeaders()), timeline.MaxHeaders).
			WithRemedy("put them into the payload")
	case due != 0 && delay != 0:
		return fault.New(fault.Invalid, "due_ms and delay_ms are both set").WithRemedy("set one of them")
	case due < 0 || delay < 0:
		return fault.New(fault.Invalid, "due_ms or delay_ms is negative").WithRemedy("leave both 0 to publish at once")
	case due > latestMS || delay > s.limits.DueAhead.Milliseconds():
		return fault.New(fault.Invalid, "the due time is more than %d years ahead", int(s.limits.DueAhead/year)).
			WithRemedy("use milliseconds, and check that microseconds or nanoseconds were not passed instead")
	}
	return nil
}

const year = 365 * 24 * time.Hour

func position(p *almanacv1.Position) base.Position {
	return base.Position{DueMS: p.GetDueMs(), Seq: p.GetSequence()}
}
