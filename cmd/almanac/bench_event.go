package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/almanacdb/almanac/client"
)

// benchGrace is how long a bench waits for the last events after they fell due.
const benchGrace = 30 * time.Second

// eventBench is one run of bench event or bench timer, in a topic of its own.
type eventBench struct {
	a       *app
	f       *benchFlags
	topic   string
	control *client.Client
	clients []*client.Client // one for each endpoint, or the leader's
	payload []byte
}

// newEventBench opens clients and makes the topic.
func (a *app) newEventBench(ctx context.Context, f *benchFlags) (_ *eventBench, err error) {
	b := &eventBench{a: a, f: f, topic: "bench-" + strconv.FormatInt(time.Now().UnixNano(), 36)}
	b.payload = randomBytes(f.seed, max(f.size, 8)) // the first 8 bytes number the event
	defer func() {
		if err != nil {
			b.close()
		}
	}()
	if b.control, err = a.open(ctx); err != nil {
		return nil, err
	}
	if _, err = b.control.Events.CreateTopic(ctx, b.topic, client.TopicOptions{}); err != nil {
		return nil, err
	}
	endpoints := a.options(a.endpoints).Endpoints
	if f.target == "leader" {
		ranges, err := b.control.Cluster.Ranges(ctx, "", b.topic)
		if err != nil {
			return nil, err
		}
		var leader uint64
		if len(ranges) > 0 {
			leader = ranges[0].GetLeader()
		}
		address, err := leaderAddress(ctx, b.control, leader)
		if err != nil {
			return nil, err
		}
		endpoints = []string{address}
	}
	for _, e := range endpoints {
		c, err := a.dial(ctx, a.options([]string{e}))
		if err != nil {
			return nil, err
		}
		b.clients = append(b.clients, c)
	}
	return b, nil
}

func (b *eventBench) close() {
	if b.control != nil {
		_ = b.control.Close()
	}
	for _, c := range b.clients {
		_ = c.Close()
	}
}

// remove deletes the topic; a failure is only told.
func (b *eventBench) remove(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), b.a.timeout)
	defer cancel()
	if err := b.control.Events.DeleteTopic(ctx, b.topic); err != nil {
		fmt.Fprintf(b.a.err, "topic %s could not be deleted: %v\n", b.topic, err)
	}
}

// publisher returns requests that publish numbered events; due returns the due time of
// the nth one, zero for at once.
func (b *eventBench) publisher(next *atomic.Int64, due func(n int64) time.Time) func(int) request {
	return func(i int) request {
		c := b.clients[i%len(b.clients)]
		return func(ctx context.Context, _ *rand.Rand, n int) (int, error) {
			events := make([]client.NewEvent, n)
			for k := range events {
				number := next.Add(1) - 1
				payload := append([]byte(nil), b.payload...)
				binary.BigEndian.PutUint64(payload, uint64(number))
				events[k] = client.NewEvent{Payload: payload, Due: due(number)}
			}
			results, err := c.Events.Publish(ctx, b.topic, events...)
			done := 0
			for _, r := range results {
				if r.Err == nil {
					done++
				}
			}
			return done, err
		}
	}
}

func atOnce(int64) time.Time { return time.Time{} }

// load returns the load that the flags describe.
func (b *eventBench) load(count int64, request func(int) request) load {
	return load{clients: b.f.clients, batch: b.f.batch, rate: b.f.rate, seed: b.f.seed, count: count, request: request}
}

func (a *app) benchEvent(ctx context.Context, f *benchFlags) (*record, error) {
	b, err := a.newEventBench(ctx, f)
	if err != nil {
		return nil, err
	}
	defer b.close()
	defer b.remove(ctx)
	var next atomic.Int64
	l := b.load(f.count, b.publisher(&next, atOnce))
	if f.timed || !f.counted {
		l.duration = f.duration
	}
	var t tally
	switch f.op {
	case "put":
		t, err = l.loop(ctx, a.err)
	case "get":
		if !f.counted {
			l.count, l.duration = 100_000, 0
		}
		if t, err = l.loop(ctx, a.err); err == nil {
			t, err = b.consume(ctx, t.ops)
		}
	case "mixed":
		t, err = b.through(ctx, l)
	}
	if err != nil {
		return nil, err
	}
	return t.record("event", f), nil
}

// consume receives and acks published events and measures each batch's wait.
func (b *eventBench) consume(ctx context.Context, published int64) (tally, error) {
	s, err := b.control.Events.Subscribe(ctx, client.SubscribeOptions{Topic: b.topic, Group: "bench", Prefetch: 10_000})
	if err != nil {
		return tally{}, err
	}
	t := tally{latencies: newHistogram()}
	start := time.Now()
	r := newReceiver(s, published)
	r.seen = func(_ *client.Event, waited time.Duration) { observe(t.latencies, waited) }
	err = r.run(ctx, start.Add(b.f.duration+benchGrace))
	t.ops, t.errors, t.elapsed = r.distinct, published-r.distinct, time.Since(start)
	return t, err
}

// through publishes and receives at the same time; latency is from due to receipt.
func (b *eventBench) through(ctx context.Context, l load) (tally, error) {
	s, err := b.control.Events.Subscribe(ctx, client.SubscribeOptions{Topic: b.topic, Group: "bench", Prefetch: 10_000})
	if err != nil {
		return tally{}, err
	}
	latencies := newHistogram()
	r := newReceiver(s, 0)
	r.seen = func(e *client.Event, _ time.Duration) { observe(latencies, e.Lateness()) }
	received := make(chan error, 1)
	until := make(chan int64, 1)
	start := time.Now()
	go func() { received <- r.follow(ctx, until) }()
	t, err := l.loop(ctx, b.a.err)
	until <- t.ops
	if followErr := <-received; err == nil {
		err = followErr
	}
	t.errors += t.ops - r.distinct
	t.ops, t.elapsed, t.latencies = r.distinct, time.Since(start), latencies
	return t, err
}
