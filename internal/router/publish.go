package router

import (
	"context"
	"hash/fnv"
	"slices"
	"sync"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/command"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/keys"
	"github.com/almanacdb/almanac/internal/placement"
	"github.com/almanacdb/almanac/internal/timeline"
)

// Published says what became of one event.
type Published struct {
	Partition base.Partition
	timeline.Published
	Err error // its command failed; the rest is not set
}

// commandBytes is about how many bytes of events go into one command: large enough to
// share its cost, small enough not to hold others up.
const commandBytes = 512 << 10

// PartitionOf returns the partition of an event: FNV-1a 64 of the ordering key, else of
// the message id, modulo the number of partitions; with neither, any (E4).
func PartitionOf(e *timeline.NewEvent, partitions uint32, otherwise base.Partition) base.Partition {
	h := fnv.New64a()
	switch {
	case len(e.OrderingKey) > 0:
		_, _ = h.Write(e.OrderingKey)
	case e.MessageID != "":
		_, _ = h.Write([]byte(e.MessageID))
	default:
		return otherwise
	}
	return base.Partition(h.Sum64() % uint64(partitions))
}

// Publish adds events to a topic. The events of one partition that travel in one
// command are added all or nothing, in order. The error is about the whole request;
// each event's own is in its result. Events stay in use until their command is over,
// which may be after a caller who went away got its answer: they must not be changed.
func (r *Router) Publish(ctx context.Context, name string, events []timeline.NewEvent) ([]Published, error) {
	t, err := r.Topic(ctx, name)
	if err != nil || len(events) == 0 {
		return nil, err
	}
	results := make([]Published, len(events))
	ctx, cancel := r.bound(ctx)
	defer cancel()
	chains, err := r.plan(&t, events, results, func(key []byte) (route, error) { return r.lookup(ctx, key) })
	if err != nil {
		err = r.topicGone(ctx, &t, err)
	}
	if err != nil {
		return nil, err
	}
	var wg sync.WaitGroup
	for _, c := range chains[1:] {
		wg.Go(func() { r.publishChain(ctx, &t, c, results) })
	}
	r.publishChain(ctx, &t, chains[0], results)
	wg.Wait()
	return results, nil
}

// plan sorts events into parts. Events of a partition keep their order: a part that
// follows another of the same range goes into a later command.
func (r *Router) plan(t *placement.Topic, events []timeline.NewEvent, results []Published, find func(key []byte) (route, error)) ([]*publishChain, error) {
	otherwise := r.publishes.otherwise(t, events, r.store.Clock().Mono())
	var chains []*publishChain
	var c *publishChain // of the event before
	for i := range events {
		p := PartitionOf(&events[i], t.Partitions, otherwise)
		results[i].Partition = p
		id := base.PartitionID{Topic: t.ID, Partition: p}
		if i == 0 || p != results[i-1].Partition {
			rt, err := find(keys.Partition(id))
			if err != nil {
				return nil, err
			}
			n := slices.IndexFunc(chains, func(c *publishChain) bool { return c.to == rt.desc.Range })
			if n < 0 {
				n = len(chains)
				chains = append(chains, &publishChain{to: rt.desc.Range})
			}
			c = chains[n]
		}
		c.add(id, i, &events[i])
	}
	return chains, nil
}

// publishChain is the parts of a publish for one range, one after another.
type publishChain struct {
	to    base.RangeID
	parts []*publishPart
}

func (c *publishChain) add(id base.PartitionID, index int, e *timeline.NewEvent) {
	if n := len(c.parts); n == 0 || c.parts[n-1].bytes >= commandBytes {
		c.parts = append(c.parts, &publishPart{})
	}
	p := c.parts[len(c.parts)-1]
	p.events = append(p.events, plannedEvent{id, index, e})
	p.bytes += eventBytes(e)
}

// eventBytes is about how many bytes an event takes in a command.
func eventBytes(e *timeline.NewEvent) int {
	n := len(e.Payload) + len(e.MessageID) + len(e.OrderingKey) + 64
	for i := range e.Headers {
		n += len(e.Headers[i].Name) + len(e.Headers[i].Value)
	}
	return n
}

func (r *Router) publishChain(ctx context.Context, t *placement.Topic, c *publishChain, results []Published) {
	var failed error
	for _, p := range c.parts {
		if failed == nil {
			if err := r.publishes.add(ctx, c.to, p); err != nil {
				failed = r.topicGone(ctx, t, err)
			}
		}
		p.tell(results, failed)
	}
}

// tell gives the events of a part their results.
func (p *publishPart) tell(results []Published, failed error) {
	for i := range p.events {
		to := &results[p.events[i].index]
		if failed != nil {
			to.Err = failed
		} else {
			to.Published = p.results[i]
		}
	}
}

// topicGone says it if an error comes from the topic having been deleted.
func (r *Router) topicGone(ctx context.Context, t *placement.Topic, err error) error {
	switch fault.KindOf(err) {
	case fault.NotFound, fault.RangeNotFound, fault.WrongRange, fault.Deadline:
		r.topics.drop(t.Name)
		now, lookupErr := r.Topic(ctx, t.Name)
		if fault.KindOf(lookupErr) == fault.NotFound || (lookupErr == nil && now.ID != t.ID) {
			return placement.UnknownTopic(t.Name)
		}
	}
	return err
}

// Ack acknowledges events of one partition for a group, and says what became of each.
func (r *Router) Ack(ctx context.Context, batches []timeline.AckBatch) ([]timeline.AckOutcome, error) {
	span := base.Span{}
	for i, b := range batches {
		p := base.PointSpan(keys.Partition(b.Partition))
		if i == 0 {
			span = p
		}
		if string(p.Start) < string(span.Start) {
			span.Start = p.Start
		}
		if string(p.End) > string(span.End) {
			span.End = p.End
		}
	}
	res, err := r.proposeAgain(ctx, span, command.Header{Kind: command.KindAck}, &timeline.Ack{Batches: batches})
	if err == nil && res.Refusal != nil {
		err = res.Refusal
	}
	return res.Acks, err
}
