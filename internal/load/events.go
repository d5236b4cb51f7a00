package load

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/almanacdb/almanac/client"
)

// grace is how long a load waits for the last events after they fell due.
const grace = 30 * time.Second

// publishesPerSecond is a cautious guess; it decides how far ahead the first event of
// Fire falls due, so that all are published by then.
const publishesPerSecond = 20_000

// Events is a load on a topic of its own, whose events are numbered in their first 8
// bytes.
type Events struct {
	Topic      string
	Publishers []*client.Client // clients share them, one after another
	Subscriber *client.Client
	Payloads   Filler // of at least 8 bytes

	next atomic.Int64
}

// AtOnce makes events due when they are published.
func AtOnce(int64) time.Time { return time.Time{} }

// Publish returns requests that publish numbered events; due returns the due time of
// the nth one, zero for at once.
func (e *Events) Publish(due func(n int64) time.Time) func(client int) Request {
	return func(i int) Request {
		c := e.Publishers[i%len(e.Publishers)]
		return func(ctx context.Context, _ *rand.Rand, n int) (int, error) {
			events := make([]client.NewEvent, n)
			for k := range events {
				number := e.next.Add(1) - 1
				payload := append([]byte(nil), e.Payloads.Value(number)...)
				binary.BigEndian.PutUint64(payload, uint64(number))
				events[k] = client.NewEvent{Payload: payload, Due: due(number)}
			}
			results, err := c.Events.Publish(ctx, e.Topic, events...)
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

func (e *Events) subscribe(ctx context.Context) (*client.Subscription, error) {
	return e.Subscriber.Events.Subscribe(ctx, client.SubscribeOptions{Topic: e.Topic, Group: "bench", Prefetch: 10_000})
}

// Consume receives and acks published events, for a while and a grace, and measures
// each batch's wait.
func (e *Events) Consume(ctx context.Context, published int64, while time.Duration) (Tally, error) {
	s, err := e.subscribe(ctx)
	if err != nil {
		return Tally{}, err
	}
	t := Tally{Latencies: newHistogram()}
	start := time.Now()
	r := &receiver{s: s, want: published}
	r.seen = func(_ *client.Event, waited time.Duration) { observe(t.Latencies, waited) }
	err = r.run(ctx, start.Add(while+grace))
	t.Ops, t.Errors, t.Elapsed = r.distinct, published-r.distinct, time.Since(start)
	return t, err
}

// Through publishes as l says and receives at the same time; latency is from due to
// receipt.
func (e *Events) Through(ctx context.Context, l Load, w io.Writer) (Tally, error) {
	s, err := e.subscribe(ctx)
	if err != nil {
		return Tally{}, err
	}
	latencies := newHistogram()
	r := &receiver{s: s}
	r.seen = func(e *client.Event, _ time.Duration) { observe(latencies, e.Lateness()) }
	received := make(chan error, 1)
	until := make(chan int64, 1)
	start := time.Now()
	go func() { received <- r.follow(ctx, until) }()
	l.Request = e.Publish(AtOnce)
	t, err := l.Run(ctx, w)
	until <- t.Ops
	if followErr := <-received; err == nil {
		err = followErr
	}
	t.Errors += t.Ops - r.distinct
	t.Ops, t.Elapsed, t.Latencies = r.distinct, time.Since(start), latencies
	return t, err
}

// Fired is what came of events that fell due while someone waited for them. Latencies
// are from due to receipt.
type Fired struct {
	Tally
	Early   int64         // received before they were due
	Missing int64         // published, and not received
	Soonest time.Duration // the earliest receipt after the due time; negative if before
}

// Lateness gathers how late events are received. Not for concurrent use.
type Lateness struct{ f Fired }

// NewLateness returns a Lateness that has seen nothing.
func NewLateness() *Lateness {
	return &Lateness{Fired{Tally: Tally{Latencies: newHistogram()}, Soonest: grace}}
}

// Observe notes an event that was received this long after it was due; negative is early.
func (l *Lateness) Observe(late time.Duration) {
	if late < 0 {
		l.f.Early++
	}
	l.f.Soonest = min(l.f.Soonest, late)
	l.f.Ops++
	observe(l.f.Latencies, late)
}

// Fired returns what was seen so far; nothing is Missing.
func (l *Lateness) Fired() Fired { return l.f }

// Fire publishes l.Count events, due over a while, as l says, and measures how late each
// is received.
func (e *Events) Fire(ctx context.Context, l Load, over time.Duration, w io.Writer) (Fired, error) {
	s, err := e.subscribe(ctx)
	if err != nil {
		return Fired{}, err
	}
	begin := time.Now()
	start := begin.Add(FireLead(l))
	lateness := NewLateness()
	r := &receiver{s: s, want: l.Count}
	r.seen = func(e *client.Event, _ time.Duration) { lateness.Observe(e.Lateness()) }
	received := make(chan error, 1)
	go func() { received <- r.run(ctx, start.Add(over+grace)) }()
	l.Request = e.Publish(FireTimes(start, l.Count, over))
	published, err := l.Run(ctx, w)
	if late := time.Since(start); late > 0 {
		fmt.Fprintf(w, "publishing took %s longer than planned; late events were due at once\n", late.Round(time.Millisecond))
	}
	if receiveErr := <-received; err == nil {
		err = receiveErr
	}
	if err != nil {
		return Fired{}, err
	}
	f := lateness.Fired()
	f.Errors, f.Refused, f.Elapsed = published.Errors, published.Refused, time.Since(begin)
	f.Missing = max(0, published.Ops-r.distinct)
	return f, nil
}

// FireLead returns how far ahead the first event must fall due, so that all are
// published by then.
func FireLead(l Load) time.Duration {
	rate := l.Rate
	if rate == 0 {
		rate = publishesPerSecond
	}
	return 2*time.Second + time.Duration(float64(l.Count)/rate*float64(time.Second))
}

// FireTimes spreads due times evenly over a while.
func FireTimes(start time.Time, count int64, over time.Duration) func(n int64) time.Time {
	return func(n int64) time.Time {
		return start.Add(time.Duration(float64(over) * float64(n) / float64(count)))
	}
}

// PendTimes spreads due times over one second.
func PendTimes(start time.Time) func(n int64) time.Time {
	return func(n int64) time.Time { return start.Add(time.Duration(n%1000) * time.Millisecond) }
}
