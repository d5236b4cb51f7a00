package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/almanacdb/almanac/client"
)

// publishesPerSecond is a cautious guess; it decides how far ahead the first event of
// bench timer falls due, so that all are published by then.
const publishesPerSecond = 20_000

// receiver counts numbered events of one subscription.
type receiver struct {
	s        *client.Subscription
	want     int64
	numbers  []uint64 // a bit for each event seen
	distinct int64
	seen     func(e *client.Event, waited time.Duration) // first deliveries only
}

func newReceiver(s *client.Subscription, want int64) *receiver { return &receiver{s: s, want: want} }

// run receives until all came or the time has passed, then leaves the group.
func (r *receiver) run(ctx context.Context, until time.Time) error {
	timed, cancel := context.WithDeadline(ctx, until)
	defer cancel()
	err := r.receive(timed)
	if timed.Err() != nil && ctx.Err() == nil {
		err = nil // what is missing is reported as a number
	}
	return r.leave(ctx, err)
}

// follow receives what it can, until it is told how many were published and has them
// all, or a grace has passed.
func (r *receiver) follow(ctx context.Context, published <-chan int64) error {
	r.want = 1<<63 - 1
	first, cancel := context.WithCancel(ctx)
	told := make(chan int64, 1)
	go func() {
		told <- <-published
		cancel()
	}()
	err := r.receive(first)
	if ctx.Err() != nil || first.Err() == nil {
		cancel()
		return r.leave(ctx, err)
	}
	r.want = <-told
	return r.run(ctx, time.Now().Add(benchGrace))
}

func (r *receiver) receive(ctx context.Context) error {
	asked := time.Now()
	for r.distinct < r.want {
		batch, err := r.s.NextBatch(ctx, 1000)
		if err != nil {
			return err
		}
		waited := time.Since(asked)
		for _, e := range batch {
			if r.first(e) && r.seen != nil {
				r.seen(e, waited)
			}
		}
		if err := r.s.Ack(batch...); err != nil {
			return err
		}
		asked = time.Now()
	}
	return nil
}

// first notes an event and says whether it is new.
func (r *receiver) first(e *client.Event) bool {
	if len(e.Payload) < 8 {
		return false
	}
	n := binary.BigEndian.Uint64(e.Payload)
	if n>>40 != 0 {
		return false // not one of ours
	}
	for uint64(len(r.numbers)) <= n/64 {
		r.numbers = append(r.numbers, 0)
	}
	if r.numbers[n/64]&(1<<(n%64)) != 0 {
		return false
	}
	r.numbers[n/64] |= 1 << (n % 64)
	r.distinct++
	return true
}

// leave closes the subscription and returns the first error.
func (r *receiver) leave(ctx context.Context, err error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), benchGrace)
	defer cancel()
	if closeErr := r.s.Close(ctx); err == nil {
		err = closeErr
	}
	return err
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
	return b.fire(ctx)
}

// fire publishes events due over a while and measures how late each is received.
func (b *eventBench) fire(ctx context.Context) (*record, error) {
	count := int64(10_000)
	if b.f.counted {
		count = b.f.count
	}
	s, err := b.control.Events.Subscribe(ctx, client.SubscribeOptions{Topic: b.topic, Group: "bench", Prefetch: 10_000})
	if err != nil {
		return nil, err
	}
	lead := 2*time.Second + time.Duration(count)*time.Second/publishesPerSecond
	if b.f.rate > 0 {
		lead = 2*time.Second + time.Duration(float64(count)/b.f.rate*float64(time.Second))
	}
	start := time.Now().Add(lead)
	due := func(n int64) time.Time {
		return start.Add(time.Duration(float64(b.f.over) * float64(n) / float64(count)))
	}
	lateness := newHistogram()
	var early int64
	r := newReceiver(s, count)
	r.seen = func(e *client.Event, _ time.Duration) {
		if e.ReceivedAt.UnixMilli() < e.Position.DueMS {
			early++
		}
		observe(lateness, e.Lateness())
	}
	received := make(chan error, 1)
	begin := time.Now()
	go func() { received <- r.run(ctx, start.Add(b.f.over+benchGrace)) }()
	var next atomic.Int64
	published, err := b.load(count, b.publisher(&next, due)).loop(ctx, b.a.err)
	if late := time.Since(start); late > 0 {
		fmt.Fprintf(b.a.err, "publishing took %s longer than planned; late events were due at once\n", late.Round(time.Millisecond))
	}
	if receiveErr := <-received; err == nil {
		err = receiveErr
	}
	if err != nil {
		return nil, err
	}
	t := tally{ops: r.distinct, errors: published.errors, elapsed: time.Since(begin), latencies: lateness}
	return t.record("timer", b.f).num("early", early).num("missing", max(0, published.ops-r.distinct)), nil
}

// pend publishes events that stay pending and reports the rate and the nodes' memory.
func (b *eventBench) pend(ctx context.Context) (*record, error) {
	before, err := b.memory(ctx)
	if err != nil {
		return nil, err
	}
	start := time.Now().Add(b.f.dueIn)
	due := func(n int64) time.Time { return start.Add(time.Duration(n%1000) * time.Millisecond) }
	var next atomic.Int64
	t, err := b.load(b.f.pending, b.publisher(&next, due)).loop(ctx, b.a.err)
	if err != nil {
		return nil, err
	}
	after, err := b.memory(ctx)
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(b.a.err, "topic %s keeps the pending events; delete it when done\n", b.topic)
	r := t.record("timer", b.f).str("topic", b.topic).num("pending", t.ops)
	r.list("rss_before_bytes", before)
	return r.list("rss_bytes", after), nil
}

// memory returns the resident memory of every living node, by node_id, in bytes.
func (b *eventBench) memory(ctx context.Context) ([]uint64, error) {
	nodes, err := b.control.Cluster.Nodes(ctx)
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
