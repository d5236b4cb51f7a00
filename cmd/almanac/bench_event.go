package main

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/almanacdb/almanac/client"
	"github.com/almanacdb/almanac/internal/load"
)

// eventBench is one run of bench event or bench timer, in a topic of its own.
type eventBench struct {
	load.Events
	a *app
	f *benchFlags
}

// newEventBench opens clients and makes the topic.
func (a *app) newEventBench(ctx context.Context, f *benchFlags) (_ *eventBench, err error) {
	b := &eventBench{a: a, f: f}
	b.Topic = "bench-" + strconv.FormatInt(time.Now().UnixNano(), 36)
	b.Payloads = load.NewFiller(f.seed, max(f.size, 8)) // the first 8 bytes number the event
	defer func() {
		if err != nil {
			b.close()
		}
	}()
	if b.Subscriber, err = a.open(ctx); err != nil {
		return nil, err
	}
	if _, err = b.Subscriber.Events.CreateTopic(ctx, b.Topic, client.TopicOptions{}); err != nil {
		return nil, err
	}
	endpoints := a.options(a.endpoints).Endpoints
	if f.target == "leader" {
		leader, err := load.TopicLeader(ctx, b.Subscriber, b.Topic)
		if err != nil {
			return nil, err
		}
		endpoints = []string{leader}
	}
	for _, e := range endpoints {
		c, err := a.dial(ctx, a.options([]string{e}))
		if err != nil {
			return nil, err
		}
		b.Publishers = append(b.Publishers, c)
	}
	return b, nil
}

func (b *eventBench) close() {
	if b.Subscriber != nil {
		_ = b.Subscriber.Close()
	}
	for _, c := range b.Publishers {
		_ = c.Close()
	}
}

// remove deletes the topic; a failure is only told.
func (b *eventBench) remove(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), b.a.timeout)
	defer cancel()
	if err := b.Subscriber.Events.DeleteTopic(ctx, b.Topic); err != nil {
		fmt.Fprintf(b.a.err, "topic %s could not be deleted: %v\n", b.Topic, err)
	}
}

func (a *app) benchEvent(ctx context.Context, f *benchFlags) (*record, error) {
	b, err := a.newEventBench(ctx, f)
	if err != nil {
		return nil, err
	}
	defer b.close()
	defer b.remove(ctx)
	l := f.load(f.count, b.Publish(load.AtOnce))
	var t load.Tally
	switch f.op {
	case "put":
		t, err = l.Run(ctx, a.err)
	case "get":
		if !f.counted {
			l.Count, l.Duration = 100_000, 0
		}
		if t, err = l.Run(ctx, a.err); err == nil {
			t, err = b.Consume(ctx, t.Ops, f.duration)
		}
	case "mixed":
		t, err = b.Through(ctx, l, a.err)
	}
	if err != nil {
		return nil, err
	}
	return f.record("event", t), nil
}

func (a *app) benchTimer(ctx context.Context, f *benchFlags) (*record, error) {
	b, err := a.newEventBench(ctx, f)
	if err != nil {
		return nil, err
	}
	defer b.close()
	if f.pending > 0 {
		return b.pend(ctx)
	}
	defer b.remove(ctx)
	count := int64(10_000)
	if f.counted {
		count = f.count
	}
	l := f.load(count, nil)
	l.Duration = 0
	fired, err := b.Fire(ctx, l, f.over, a.err)
	if err != nil {
		return nil, err
	}
	return f.record("timer", fired.Tally).num("early", fired.Early).num("missing", fired.Missing), nil
}

// pend publishes events that stay pending and reports the rate and the nodes' memory.
func (b *eventBench) pend(ctx context.Context) (*record, error) {
	before, err := b.memory(ctx)
	if err != nil {
		return nil, err
	}
	l := b.f.load(b.f.pending, b.Publish(load.PendTimes(time.Now().Add(b.f.dueIn))))
	l.Duration = 0
	t, err := l.Run(ctx, b.a.err)
	if err != nil {
		return nil, err
	}
	after, err := b.memory(ctx)
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(b.a.err, "topic %s keeps the pending events; delete it when done\n", b.Topic)
	r := b.f.record("timer", t).str("topic", b.Topic).num("pending", t.Ops)
	r.list("rss_before_bytes", before)
	return r.list("rss_bytes", after), nil
}

// memory returns the resident memory of every living node, by node_id, in bytes.
func (b *eventBench) memory(ctx context.Context) ([]uint64, error) {
	nodes, err := b.Subscriber.Cluster.Nodes(ctx)
	if err != nil {
		return nil, err
	}
	var sizes []uint64
	for _, n := range nodes {
		if !n.GetAlive() {
			continue
		}
		c, err := b.a.dial(ctx, b.a.options([]string{n.GetAddress()}))
		if err != nil {
			return nil, err
		}
		s, err := c.Cluster.Status(ctx)
		_ = c.Close()
		if err != nil {
			return nil, err
		}
		sizes = append(sizes, s.GetNode().GetRssBytes())
	}
	return sizes, nil
}
