package almanac

import (
	"context"
	"errors"
	"io"
	"math"
	"sync"

	almanacv1 "github.com/almanacdb/almanac/api/almanac/v1"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/timeline"
	"github.com/almanacdb/almanac/internal/wire"
)

// A message of deliveries takes this many, or this many bytes.
const (
	deliveriesCount = 1000
	deliveriesBytes = 1 << 20
)

// subscriber is one Subscribe stream. The handler's goroutine delivers; a second one
// receives; a range with acks under way has a third. Messages are sent under sending.
type subscriber struct {
	server *eventsServer
	stream almanacv1.Events_SubscribeServer
	sub    Subscription
	acks   *acker

	sending sync.Mutex
	ended   bool // guarded by sending: the handler is about to return

	mu      sync.Mutex
	surplus uint64 // credits that the client granted beyond what may be under way
	granted int    // credits that the subscription has
}

// Subscribe implements almanacv1.EventsServer.
func (s *eventsServer) Subscribe(stream almanacv1.Events_SubscribeServer) error {
	open, start, err := receiveOpen(stream)
	if err != nil {
		return s.status(err)
	}
	sub, err := s.routes.Subscribe(stream.Context(), open.GetTopic(), open.GetGroup(), start)
	if err != nil {
		return s.status(err)
	}
	c := &subscriber{server: s, stream: stream, sub: sub}
	defer c.end()
	return s.status(c.run(open.GetCredits()))
}

// receiveOpen takes the first message.
func receiveOpen(stream almanacv1.Events_SubscribeServer) (*almanacv1.SubscribeOpen, timeline.StartRule, error) {
	first, err := stream.Recv()
	if errors.Is(err, io.EOF) {
		return nil, 0, fault.New(fault.Invalid, "the stream ended before it was opened").WithRemedy("send open first")
	}
	if err != nil {
		return nil, 0, err
	}
	open := first.GetOpen()
	if open == nil {
		return nil, 0, fault.New(fault.Invalid, "the first message is not open").WithRemedy("send open first")
	}
	switch open.GetStart() {
	case almanacv1.StartRule_START_RULE_UNSPECIFIED, almanacv1.StartRule_START_RULE_EARLIEST:
		return open, timeline.StartEarliest, nil
	case almanacv1.StartRule_START_RULE_LATEST:
		return open, timeline.StartLatest, nil
	}
	return nil, 0, fault.New(fault.Invalid, "start rule %d is unknown", open.GetStart()).WithRemedy("use earliest or latest")
}

// run delivers until the client half-closes, which is nil, the server stops, or
// something fails.
func (c *subscriber) run(credits uint32) error {
	ackCtx, stopAcks := context.WithCancel(c.stream.Context())
	defer stopAcks()
	c.acks = newAcker(ackCtx, c)
	topic := c.sub.Topic()
	err := c.send(&almanacv1.SubscribeResponse{Response: &almanacv1.SubscribeResponse_Opened{
		Opened: &almanacv1.SubscribeOpened{Partitions: topic.Partitions},
	}})
	var received error // why receiving ended; io.EOF: the client half-closed
	if err == nil {
		c.grant(credits)
		ctx, stop := context.WithCancelCause(c.stream.Context())
		unwatch := context.AfterFunc(c.server.stopping, func() { stop(errStopping()) })
		go func() { stop(c.receive()) }()
		err = c.deliver(ctx)
		received = context.Cause(ctx)
		unwatch()
		stop(nil)
	}
	if eof := errors.Is(received, io.EOF); eof || fault.KindOf(received) == fault.Stopped {
		c.acks.finish()
		c.sub.Close()
		if eof {
			return nil
		}
		return received
	}
	c.sub.Close()
	stopAcks()
	c.acks.finish()
	if received != nil {
		return received
	}
	return err
}

// receive takes credits and acks until the stream ends, and says why it did.
func (c *subscriber) receive() error {
	for {
		m, err := c.stream.Recv()
		if err != nil {
			return err
		}
		switch r := m.GetRequest().(type) {
		case *almanacv1.SubscribeRequest_Credit:
			c.grant(r.Credit.GetCredits())
		case *almanacv1.SubscribeRequest_Acks:
			for _, a := range r.Acks.GetAcks() {
				if err := c.acks.add(a); err != nil {
					return err
				}
			}
		default:
			return fault.New(fault.Invalid, "a message is neither credit nor acks").
				WithRemedy("send open once, at first, and nothing else that this version does not know")
		}
	}
}

// grant takes credits from the client and passes on as many as may be under way.
func (c *subscriber) grant(n uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.surplus += min(uint64(n), math.MaxUint64-c.surplus)
	c.passOn()
}

// used notes that deliveries were sent.
func (c *subscriber) used(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.granted -= n
	c.passOn()
}

// passOn passes credits on to the subscription. Called with mu held.
func (c *subscriber) passOn() {
	room := max(0, c.server.limits.Credits-c.granted)
	n := int(min(c.surplus, uint64(room)))
	if n > 0 {
		c.surplus -= uint64(n)
		c.granted += n
		c.sub.Grant(n)
	}
}

// deliver sends what the subscription hands out, until ctx ends or something fails.
func (c *subscriber) deliver(ctx context.Context) error {
	for {
		batch, err := c.sub.Next(ctx)
		if err != nil {
			return err
		}
		for len(batch) > 0 {
			if ctx.Err() != nil {
				return ctx.Err() // half-closed: what is left goes back to the group
			}
			n := deliveriesIn(batch)
			if err := c.send(deliveries(batch[:n])); err != nil {
				return err
			}
			c.used(n)
			batch = batch[n:]
		}
	}
}

// deliveriesIn returns how many of a batch, which is not empty, go into one message.
func deliveriesIn(batch []wire.Delivery) int {
	n, size := 0, 0
	for n < len(batch) && n < deliveriesCount {
		e := &batch[n].Event
		size += 64 + len(e.Payload) + len(e.MessageID) + len(e.OrderingKey)
		for i := range e.Headers {
			size += 8 + len(e.Headers[i].Name) + len(e.Headers[i].Value)
		}
		if n > 0 && size > deliveriesBytes {
			break
		}
		n++
	}
	return n
}

func deliveries(batch []wire.Delivery) *almanacv1.SubscribeResponse {
	all := make([]struct {
		delivery almanacv1.Delivery
		position almanacv1.Position
	}, len(batch))
	list := make([]*almanacv1.Delivery, len(batch))
	for i := range batch {
		from, to, at := &batch[i], &all[i].delivery, &all[i].position
		at.DueMs, at.Sequence = from.Event.Position.DueMS, from.Event.Position.Seq
		to.Partition, to.Position, to.Attempt = uint32(from.Partition.Partition), at, from.Attempt
		to.MessageId, to.OrderingKey, to.Payload = from.Event.MessageID, from.Event.OrderingKey, from.Event.Payload
		if n := len(from.Event.Headers); n > 0 {
			to.Headers = make([]*almanacv1.Header, n)
			for j := range from.Event.Headers {
				h := &from.Event.Headers[j]
				to.Headers[j] = &almanacv1.Header{Name: h.Name, Value: h.Value}
			}
		}
		list[i] = to
	}
	return &almanacv1.SubscribeResponse{Response: &almanacv1.SubscribeResponse_Deliveries{
		Deliveries: &almanacv1.Deliveries{Events: list},
	}}
}

// send sends one message; it blocks while the client does not read.
func (c *subscriber) send(m *almanacv1.SubscribeResponse) error {
	c.sending.Lock()
	defer c.sending.Unlock()
	if c.ended {
		return fault.New(fault.Cancelled, "the stream has ended")
	}
	return c.stream.Send(m)
}

// end keeps the receiver, which outlives the handler by a little, from sending.
func (c *subscriber) end() {
	c.sending.Lock()
	defer c.sending.Unlock()
	c.ended = true
}
