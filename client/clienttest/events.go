package clienttest

import (
	"context"
	"errors"
	"hash/fnv"
	"io"
	"math"
	"sort"
	"sync"
	"time"

	"google.golang.org/grpc/codes"

	almanacv1 "github.com/almanacdb/almanac/api/almanac/v1"
)

// topic is a model of a topic: all its events, and its groups.
type topic struct {
	info    *almanacv1.Topic
	events  []*almanacv1.Delivery
	groups  map[string]*groupState
	changed chan struct{} // closed and replaced when there may be something to deliver
}

// groupState says per event whether it is settled and to whom it is handed out.
type groupState struct {
	acked    map[eventKey]bool
	holder   map[eventKey]*int // the session that has it
	attempts map[eventKey]uint32
}

type eventKey struct {
	partition uint32
	due       int64
	sequence  uint64
}

func keyOf(partition uint32, p *almanacv1.Position) eventKey {
	return eventKey{partition, p.GetDueMs(), p.GetSequence()}
}

func (t *topic) wake() {
	close(t.changed)
	t.changed = make(chan struct{})
}

// CreateTopic implements Events.
func (s *Server) CreateTopic(_ context.Context, r *almanacv1.CreateTopicRequest) (*almanacv1.CreateTopicResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.topics[r.GetName()]; t != nil {
		if r.GetIfNotExists() {
			return &almanacv1.CreateTopicResponse{Topic: t.info}, nil
		}
		return nil, StatusError(codes.AlreadyExists, "already_exists", "topic "+r.GetName()+" exists already")
	}
	t := &topic{groups: map[string]*groupState{}, changed: make(chan struct{})}
	t.info = &almanacv1.Topic{
		Name: r.GetName(), TopicId: uint64(len(s.topics) + 1), Partitions: r.GetPartitions(),
		Replicas: r.GetReplicas(), RetentionMs: r.GetRetentionMs(),
	}
	if t.info.Partitions == 0 {
		t.info.Partitions = 8
	}
	if t.info.Replicas == 0 {
		t.info.Replicas = 3
	}
	s.topics[r.GetName()] = t
	return &almanacv1.CreateTopicResponse{Topic: t.info, Created: true}, nil
}

// ListTopics implements Events.
func (s *Server) ListTopics(context.Context, *almanacv1.ListTopicsRequest) (*almanacv1.ListTopicsResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := &almanacv1.ListTopicsResponse{}
	for _, t := range s.topics {
		out.Topics = append(out.Topics, t.info)
	}
	sort.Slice(out.Topics, func(i, j int) bool { return out.Topics[i].Name < out.Topics[j].Name })
	return out, nil
}

// topic returns a topic; the caller holds the lock.
func (s *Server) topic(name string) (*topic, error) {
	if t := s.topics[name]; t != nil {
		return t, nil
	}
	return nil, StatusError(codes.NotFound, "not_found", "there is no topic "+name)
}

// DescribeTopic implements Events.
func (s *Server) DescribeTopic(_ context.Context, r *almanacv1.DescribeTopicRequest) (*almanacv1.DescribeTopicResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, err := s.topic(r.GetName())
	if err != nil {
		return nil, err
	}
	return &almanacv1.DescribeTopicResponse{Topic: t.info}, nil
}

// DeleteTopic implements Events.
func (s *Server) DeleteTopic(_ context.Context, r *almanacv1.DeleteTopicRequest) (*almanacv1.DeleteTopicResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.topic(r.GetName()); err != nil {
		return nil, err
	}
	delete(s.topics, r.GetName())
	return &almanacv1.DeleteTopicResponse{}, nil
}

// Publish implements Events.
func (s *Server) Publish(_ context.Context, r *almanacv1.PublishRequest) (*almanacv1.PublishResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, err := s.topic(r.GetTopic())
	if err != nil {
		return nil, err
	}
	out := &almanacv1.PublishResponse{}
	for _, e := range r.GetEvents() {
		var p *almanacv1.Published
		if s.Faults.Publish != nil {
			p = s.Faults.Publish(e)
		}
		if p == nil {
			p = t.publish(e)
		}
		out.Results = append(out.Results, p)
	}
	t.wake()
	return out, nil
}

func (t *topic) publish(e *almanacv1.NewEvent) *almanacv1.Published {
	name := e.GetOrderingKey()
	if len(name) == 0 {
		name = []byte(e.GetMessageId())
	}
	h := fnv.New64a()
	_, _ = h.Write(name) // never fails
	partition := uint32(h.Sum64() % uint64(t.info.GetPartitions()))
	for _, d := range t.events {
		if e.GetMessageId() != "" && d.GetMessageId() == e.GetMessageId() {
			return &almanacv1.Published{Partition: d.GetPartition(), Position: d.GetPosition(), Duplicate: true}
		}
	}
	now := time.Now().UnixMilli()
	due := max(now, e.GetDueMs(), now+e.GetDelayMs())
	d := &almanacv1.Delivery{
		Partition: partition, Position: &almanacv1.Position{DueMs: due, Sequence: uint64(len(t.events))},
		MessageId: e.GetMessageId(), OrderingKey: e.GetOrderingKey(), Headers: e.GetHeaders(), Payload: e.GetPayload(),
	}
	t.events = append(t.events, d)
	return &almanacv1.Published{Partition: partition, Position: d.GetPosition()}
}

// Acked returns how many events a group has acked.
func (s *Server) Acked(topic, group string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.topics[topic]
	if t == nil || t.groups[group] == nil {
		return 0
	}
	return len(t.groups[group].acked)
}

// HandedOut returns how many events of a group are handed out and not acked.
func (s *Server) HandedOut(topic, group string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.topics[topic]
	if t == nil || t.groups[group] == nil {
		return 0
	}
	return len(t.groups[group].holder)
}

// session is one Subscribe stream.
type session struct {
	s       *Server
	t       *topic
	g       *groupState
	me      *int
	credits uint32

	sending sync.Mutex
	stream  almanacv1.Events_SubscribeServer
}

// Subscribe implements Events.
func (s *Server) Subscribe(stream almanacv1.Events_SubscribeServer) error {
	broken := s.broken()
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	open := first.GetOpen()
	if s.Faults.Open != nil {
		if err := s.Faults.Open(open); err != nil {
			return err
		}
	}
	x, err := s.join(stream, open)
	if err != nil {
		return err
	}
	defer x.release()
	opened := &almanacv1.SubscribeOpened{Partitions: x.t.info.GetPartitions()}
	if err := x.send(&almanacv1.SubscribeResponse{Response: &almanacv1.SubscribeResponse_Opened{Opened: opened}}); err != nil {
		return err
	}
	if s.Faults.Notice != nil {
		if err := x.send(&almanacv1.SubscribeResponse{Response: &almanacv1.SubscribeResponse_Notice{Notice: s.Faults.Notice()}}); err != nil {
			return err
		}
	}
	ended := make(chan error, 1)
	go func() { ended <- x.listen() }()
	for {
		due, changed, next := x.take()
		if len(due) > 0 {
			response := &almanacv1.SubscribeResponse{Response: &almanacv1.SubscribeResponse_Deliveries{
				Deliveries: &almanacv1.Deliveries{Events: due},
			}}
			if err := x.send(response); err != nil {
				return err
			}
		}
		select {
		case <-changed:
		case <-next:
		case <-broken:
			return errBroken
		case err := <-ended:
			return err
		}
	}
}

func (s *Server) join(stream almanacv1.Events_SubscribeServer, open *almanacv1.SubscribeOpen) (*session, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, err := s.topic(open.GetTopic())
	if err != nil {
		return nil, err
	}
	g := t.groups[open.GetGroup()]
	if g == nil {
		g = &groupState{acked: map[eventKey]bool{}, holder: map[eventKey]*int{}, attempts: map[eventKey]uint32{}}
		t.groups[open.GetGroup()] = g
	}
	return &session{s: s, t: t, g: g, me: new(int), credits: open.GetCredits(), stream: stream}, nil
}

func (x *session) send(r *almanacv1.SubscribeResponse) error {
	x.sending.Lock()
	defer x.sending.Unlock()
	return x.stream.Send(r)
}

// release returns what the session holds to the group.
func (x *session) release() {
	x.s.mu.Lock()
	defer x.s.mu.Unlock()
	for k, holder := range x.g.holder {
		if holder == x.me {
			delete(x.g.holder, k)
		}
	}
	x.t.wake()
}

// take hands out what is due, and says when to look again.
func (x *session) take() (due []*almanacv1.Delivery, changed <-chan struct{}, next <-chan time.Time) {
	x.s.mu.Lock()
	defer x.s.mu.Unlock()
	now, soonest := time.Now().UnixMilli(), int64(math.MaxInt64)
	for _, d := range x.t.events {
		k := keyOf(d.GetPartition(), d.GetPosition())
		switch {
		case x.g.acked[k] || x.g.holder[k] != nil:
		case d.GetPosition().GetDueMs() > now:
			soonest = min(soonest, d.GetPosition().GetDueMs())
		case x.credits > 0:
			x.credits--
			x.g.holder[k] = x.me
			x.g.attempts[k]++
			due = append(due, &almanacv1.Delivery{
				Partition: d.GetPartition(), Position: d.GetPosition(), MessageId: d.GetMessageId(),
				OrderingKey: d.GetOrderingKey(), Headers: d.GetHeaders(), Payload: d.GetPayload(), Attempt: x.g.attempts[k],
			})
		}
	}
	if soonest != math.MaxInt64 {
		next = time.After(time.Duration(soonest-now) * time.Millisecond)
	}
	return due, x.t.changed, next
}

// listen takes credits and acks until the client half-closes; then every ack is
// answered.
func (x *session) listen() error {
	var working sync.WaitGroup
	for {
		r, err := x.stream.Recv()
		if errors.Is(err, io.EOF) {
			working.Wait()
			return nil
		}
		if err != nil {
			return err
		}
		if c := r.GetCredit(); c != nil {
			x.s.mu.Lock()
			x.credits += c.GetCredits()
			x.t.wake()
			x.s.mu.Unlock()
		}
		for _, ack := range r.GetAcks().GetAcks() {
			working.Go(func() {
				results := &almanacv1.AckResults{Results: []*almanacv1.AckResult{x.ack(ack)}}
				// A broken stream is noticed by its receiver.
				_ = x.send(&almanacv1.SubscribeResponse{Response: &almanacv1.SubscribeResponse_AckResults{AckResults: results}})
			})
		}
	}
}

func (x *session) ack(ack *almanacv1.Ack) *almanacv1.AckResult {
	if x.s.Faults.Ack != nil {
		if result := x.s.Faults.Ack(ack); result != nil {
			result.AckId = ack.GetAckId()
			return result
		}
	}
	x.s.mu.Lock()
	defer x.s.mu.Unlock()
	result := &almanacv1.AckResult{AckId: ack.GetAckId()}
	for _, p := range ack.GetPositions() {
		k := keyOf(ack.GetPartition(), p)
		outcome := almanacv1.AckOutcome_ACK_OUTCOME_DONE
		if x.g.acked[k] {
			outcome = almanacv1.AckOutcome_ACK_OUTCOME_ALREADY
		}
		x.g.acked[k] = true
		delete(x.g.holder, k)
		result.Outcomes = append(result.Outcomes, outcome)
	}
	return result
}
