package client

import (
	"context"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/peer"

	almanacv1 "github.com/almanacdb/almanac/api/almanac/v1"
)

// Events publishes events and subscribes to them.
type Events struct{ c *Client }

// Topic is a named event stream.
type Topic struct {
	Name       string
	ID         uint64
	Partitions uint32
	Replicas   uint32
	Retention  time.Duration // how long events are kept after they fell due; 0: forever
}

// TopicOptions say how to make a topic; zero values are the cluster's defaults.
type TopicOptions struct {
	Partitions  uint32
	Replicas    uint32
	Retention   time.Duration // 0: forever
	IfNotExists bool          // an existing topic is returned as it is
}

// Position is where an event stands in its partition: by due time, then by sequence.
type Position struct {
	DueMS    int64 // milliseconds since 1970
	Sequence uint64
}

// String returns "DUE_MS-SEQUENCE".
func (p Position) String() string {
	return strconv.FormatInt(p.DueMS, 10) + "-" + strconv.FormatUint(p.Sequence, 10)
}

// Header is one name and value that travels with an event.
type Header struct {
	Name  string
	Value []byte
}

// NewEvent is an event to publish: due at Due, or after Delay, or at once.
type NewEvent struct {
	Payload     []byte
	Headers     []Header
	MessageID   string // publishing it again while it is pending does nothing; empty: none
	OrderingKey []byte // events with the same one share a partition; empty: none
	Due         time.Time
	Delay       time.Duration
}

// Published says what became of one event.
type Published struct {
	Partition uint32
	Position  Position
	Duplicate bool   // the message id was known; Position is that event's
	Err       *Error // this event was not published; with ReasonUnknownOutcome: perhaps
}

// CreateTopic makes a topic.
func (e *Events) CreateTopic(ctx context.Context, name string, o TopicOptions) (Topic, error) {
	request := &almanacv1.CreateTopicRequest{
		Name: name, Partitions: o.Partitions, Replicas: o.Replicas,
		RetentionMs: o.Retention.Milliseconds(), IfNotExists: o.IfNotExists,
	}
	k := write
	if o.IfNotExists {
		k = read // repeating it does no harm
	}
	response := new(almanacv1.CreateTopicResponse)
	err := e.c.unary(ctx, k, almanacv1.Events_CreateTopic_FullMethodName, request, response)
	if err != nil {
		return Topic{}, err
	}
	return topic(response.GetTopic()), nil
}

// ListTopics returns all topics, by name.
func (e *Events) ListTopics(ctx context.Context) ([]Topic, error) {
	response := new(almanacv1.ListTopicsResponse)
	err := e.c.unary(ctx, read, almanacv1.Events_ListTopics_FullMethodName, &almanacv1.ListTopicsRequest{}, response)
	if err != nil {
		return nil, err
	}
	topics := make([]Topic, 0, len(response.GetTopics()))
	for _, t := range response.GetTopics() {
		topics = append(topics, topic(t))
	}
	return topics, nil
}

// DescribeTopic returns one topic.
func (e *Events) DescribeTopic(ctx context.Context, name string) (Topic, error) {
	response := new(almanacv1.DescribeTopicResponse)
	request := &almanacv1.DescribeTopicRequest{Name: name}
	err := e.c.unary(ctx, read, almanacv1.Events_DescribeTopic_FullMethodName, request, response)
	if err != nil {
		return Topic{}, err
	}
	return topic(response.GetTopic()), nil
}

// DeleteTopic deletes a topic with all its events and groups.
func (e *Events) DeleteTopic(ctx context.Context, name string) error {
	request := &almanacv1.DeleteTopicRequest{Name: name}
	return e.c.unary(ctx, write, almanacv1.Events_DeleteTopic_FullMethodName, request, new(almanacv1.DeleteTopicResponse))
}

func topic(t *almanacv1.Topic) Topic {
	return Topic{
		Name: t.GetName(), ID: t.GetTopicId(), Partitions: t.GetPartitions(), Replicas: t.GetReplicas(),
		Retention: time.Duration(t.GetRetentionMs()) * time.Millisecond,
	}
}

// Publish adds events to a topic: by default limits at most 10,000 of them and 16 MiB in
// all, 4 MiB each. It returns one Published for each event, in order; the
// error is that of the first event that failed. Events that go to one partition are
// added all or nothing; partitions succeed or fail apart. What certainly was not added
// is tried again, so without an ordering key events of one call may change order.
func (e *Events) Publish(ctx context.Context, topic string, events ...NewEvent) ([]Published, error) {
	ctx, cancel := e.c.bound(ctx)
	defer cancel()
	request := &almanacv1.PublishRequest{Topic: topic, Events: make([]*almanacv1.NewEvent, len(events))}
	results := make([]Published, len(events))
	left := make([]int, len(events)) // indices into events and results still to be done
	for i := range events {
		request.Events[i] = events[i].proto()
		left[i] = i
	}
	a := attempts{c: e.c}
	for {
		s := a.server()
		response, failure := s.publish(ctx, request)
		if failure == nil && len(response.GetResults()) != len(left) {
			failure = &Error{Reason: ReasonUnknownOutcome, Message: "the server answered for another number of events"}
		}
		var repeat []int
		if failure != nil {
			repeat = left
			for _, i := range left {
				results[i].Err = failure
			}
		} else {
			repeat, failure = settle(results, left, response.GetResults())
		}
		if failure != nil {
			stop := a.again(ctx, write, s, failure)
			if stop == nil {
				request.Events = request.Events[:0]
				for _, i := range repeat {
					request.Events = append(request.Events, events[i].proto())
				}
				left = repeat
				continue
			}
			for _, i := range repeat {
				results[i].Err = stop
			}
		}
		for i := range results {
			if results[i].Err != nil {
				return results, results[i].Err
			}
		}
		return results, nil
	}
}

// manyBytes is from when on a publish goes alone: on the shared stream it would hold up
// others.
const manyBytes = 64 << 10

// publish makes one try.
func (s *server) publish(ctx context.Context, request *almanacv1.PublishRequest) (*almanacv1.PublishResponse, *Error) {
	size := 0
	for _, e := range request.GetEvents() {
		size += len(e.GetPayload())
	}
	if size > manyBytes {
		response := new(almanacv1.PublishResponse)
		err := s.unary(ctx, almanacv1.Events_Publish_FullMethodName, request, response)
		return response, err
	}
	m := s.live()
	if m == nil {
		var err *Error
		if m, err = s.join(ctx); err != nil {
			return nil, err
		}
	}
	deadline, _ := ctx.Deadline()
	reply, err := m.call(ctx, deadline, &almanacv1.StreamCall{Request: &almanacv1.StreamCall_Publish{Publish: request}})
	if err != nil {
		return nil, err
	}
	return reply.GetPublish(), nil
}

// settle records a response. It returns what may be tried again, and why.
func settle(results []Published, left []int, answers []*almanacv1.Published) (repeat []int, why *Error) {
	for n, i := range left {
		p := answers[n]
		if p.GetError() == nil {
			results[i] = Published{
				Partition: p.GetPartition(),
				Position:  position(p.GetPosition()),
				Duplicate: p.GetDuplicate(),
			}
			continue
		}
		results[i].Partition = p.GetPartition()
		results[i].Err = fromProto(p.GetError())
		if write.mayRepeat(results[i].Err) {
			repeat = append(repeat, i)
			why = results[i].Err
		}
	}
	return repeat, why
}

func (n *NewEvent) proto() *almanacv1.NewEvent {
	p := &almanacv1.NewEvent{
		Payload: n.Payload, MessageId: n.MessageID, OrderingKey: n.OrderingKey,
	}
	if !n.Due.IsZero() {
		p.DueMs = max(1, n.Due.UnixMilli()) // 0 would mean none; all that is past is due at once
	} else if n.Delay > 0 {
		p.DelayMs = max(1, n.Delay.Milliseconds())
	}
	for _, h := range n.Headers {
		p.Headers = append(p.Headers, &almanacv1.Header{Name: h.Name, Value: h.Value})
	}
	return p
}

func position(p *almanacv1.Position) Position {
	return Position{DueMS: p.GetDueMs(), Sequence: p.GetSequence()}
}

func (p Position) proto() *almanacv1.Position {
	return &almanacv1.Position{DueMs: p.DueMS, Sequence: p.Sequence}
}

// unary does one call with retries.
func (c *Client) unary(ctx context.Context, k safety, method string, request, response any) error {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	a := attempts{c: c}
	for {
		s := a.server()
		e := s.unary(ctx, method, request, response)
		if e == nil {
			return nil
		}
		if e = a.again(ctx, k, s, e); e != nil {
			return e
		}
	}
}

// unary does one call, and says whether a failed one may have reached the server.
func (s *server) unary(ctx context.Context, method string, request, response any) *Error {
	var to peer.Peer // set once the call was bound to a connection
	err := s.conn.Invoke(ctx, method, request, response, grpc.Peer(&to))
	if err == nil {
		return nil
	}
	e := fromStatus(err)
	e.notSent = to.Addr == nil
	e.lost = !e.notSent && e.cause != nil // no detail: not from a server that knows
	return e
}
