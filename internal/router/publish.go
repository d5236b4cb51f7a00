package router

import (
	"context"
	"hash/fnv"
	"math/rand/v2"
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

// publishPart is one command of a publish: events of partitions of one range.
type publishPart struct {
	span  base.Span
	body  timeline.Publish
	index [][]int // by batch: where its events stood in the request
	bytes int
}

// Publish adds events to a topic. The events of one partition that travel in one
// command are added all or nothing, in order. The error is about the whole request;
// each event's own is in its result.
func (r *Router) Publish(ctx context.Context, name string, events []timeline.NewEvent) ([]Published, error) {
	t, err := r.Topic(ctx, name)
	if err != nil || len(events) == 0 {
		return nil, err
	}
	results := make([]Published, len(events))
	parts, err := r.plan(ctx, &t, events, results)
	if err != nil {
		return nil, err
	}
	var wg sync.WaitGroup
	for _, p := range parts[1:] {
		wg.Add(1)
		go func() {
			defer wg.Done()
			r.publishPart(ctx, &t, p, results)
		}()
	}
	r.publishPart(ctx, &t, parts[0], results)
	wg.Wait()
	return results, nil
}

// plan sorts events into commands. Events of a partition keep their order: a command
// that follows another of the same range is proposed after it.
func (r *Router) plan(ctx context.Context, t *placement.Topic, events []timeline.NewEvent, results []Published) ([]*publishChain, error) {
	otherwise := base.Partition(rand.N(t.Partitions))
	byRange := make(map[base.RangeID]*publishChain)
	var chains []*publishChain
	for i := range events {
		p := PartitionOf(&events[i], t.Partitions, otherwise)
		results[i].Partition = p
		id := base.PartitionID{Topic: t.ID, Partition: p}
		rt, err := r.lookup(ctx, keys.Partition(id))
		if err != nil {
			return nil, r.topicGone(ctx, t, err)
		}
		c := byRange[rt.desc.Range]
		if c == nil {
			c = &publishChain{}
			byRange[rt.desc.Range] = c
			chains = append(chains, c)
		}
		c.add(rt.desc.Span, id, i, &events[i])
	}
	return chains, nil
}

// publishChain is the commands of a publish for one range, one after another.
type publishChain struct{ parts []*publishPart }

func (c *publishChain) add(span base.Span, id base.PartitionID, index int, e *timeline.NewEvent) {
	if n := len(c.parts); n == 0 || c.parts[n-1].bytes >= commandBytes {
		c.parts = append(c.parts, &publishPart{span: span})
	}
	p := c.parts[len(c.parts)-1]
	p.bytes += len(e.Payload) + len(e.MessageID) + len(e.OrderingKey) + 64
	for i := range e.Headers {
		p.bytes += len(e.Headers[i].Name) + len(e.Headers[i].Value)
	}
	for i := range p.body.Batches {
		if p.body.Batches[i].Partition == id {
			p.body.Batches[i].Events = append(p.body.Batches[i].Events, *e)
			p.index[i] = append(p.index[i], index)
			return
		}
	}
	p.body.Batches = append(p.body.Batches, timeline.Batch{Partition: id, Events: []timeline.NewEvent{*e}})
	p.index = append(p.index, []int{index})
}

func (r *Router) publishPart(ctx context.Context, t *placement.Topic, c *publishChain, results []Published) {
	var failed error
	for _, p := range c.parts {
		var res command.Result
		err := failed
		if err == nil {
			res, err = r.Propose(ctx, p.span, command.Header{Kind: command.KindPublish}, &p.body)
		}
		if err == nil && res.Refusal != nil {
			err = res.Refusal
		}
		if err != nil {
			err = r.topicGone(ctx, t, err)
			failed = err
		}
		n := 0
		for _, index := range p.index {
			for _, i := range index {
				if err != nil {
					results[i].Err = err
				} else {
					results[i].Published = res.Published[n]
				}
				n++
			}
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
