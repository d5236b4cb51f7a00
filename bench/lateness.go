package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"strconv"
	"sync/atomic"
	"time"

	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/almanacdb/almanac/internal/load"
)

const (
	// lateEvents fall due within lateOver, evenly.
	lateEvents = 10_000
	lateOver   = 5 * time.Second
	// latePublishers publish them in time.
	latePublishers = 16
	// natsSchedulesPerSecond is a cautious guess, as NATS is slow at it; it decides how
	// far ahead the first message is due.
	natsSchedulesPerSecond = 500
)

// latenessMeasure publishes events for a while ahead and measures from due to receipt,
// after a smaller round of the same as warm-up.
func latenessMeasure(s system) measure {
	return measure{system: s, name: "lateness", run: func(ctx context.Context, b *bench, c *cluster) (figures, error) {
		fire := c.fireAlmanac
		if s == nats {
			fire = c.fireNATS
		}
		if b.warmup > 0 {
			if _, err := fire(ctx, "warm", lateEvents/10, lateOver/10); err != nil {
				return nil, err
			}
		}
		f, err := fire(ctx, "late", lateEvents, lateOver)
		if err != nil {
			return nil, err
		}
		return figures{
			"p50": f.Quantile(50).Seconds(), "p99": f.Quantile(99).Seconds(), "max": f.Quantile(100).Seconds(),
			"soonest": f.Soonest.Seconds(), "early": float64(f.Early), "missing": float64(f.Missing + f.Refused + f.Errors),
		}, nil
	}}
}

func (c *cluster) fireAlmanac(ctx context.Context, name string, count int64, over time.Duration) (load.Fired, error) {
	events, done, err := c.topic(ctx, name)
	if err != nil {
		return load.Fired{}, err
	}
	defer done()
	return events.Fire(ctx, load.Load{Clients: latePublishers, Batch: 100, Count: count, Seed: 1}, over, io.Discard)
}

// fireNATS does the same with scheduled messages, which begin with their due time. They
// are received without acknowledgements, which is less work than ours.
func (c *cluster) fireNATS(ctx context.Context, name string, count int64, over time.Duration) (load.Fired, error) {
	s, err := c.stream(ctx, jetstream.StreamConfig{Name: name, AllowMsgSchedules: true}, latePublishers, 100)
	if err != nil {
		return load.Fired{}, err
	}
	defer s.close()
	target := s.subject + "due"
	consumer, err := s.js[0].CreateConsumer(ctx, name, jetstream.ConsumerConfig{
		FilterSubject: target, AckPolicy: jetstream.AckNonePolicy, MemoryStorage: true,
	})
	if err != nil {
		return load.Fired{}, err
	}
	late := load.NewLateness()
	all := make(chan struct{})
	var received atomic.Int64
	reading, err := consumer.Consume(func(m jetstream.Msg) {
		due := int64(binary.BigEndian.Uint64(m.Data()))
		late.Observe(time.Since(time.UnixMilli(due)))
		if received.Add(1) == count {
			close(all)
		}
	})
	if err != nil {
		return load.Fired{}, err
	}
	defer reading.Stop()
	start := time.Now().Add(2*time.Second + time.Duration(count)*time.Second/natsSchedulesPerSecond)
	due := load.FireTimes(start, count, over)
	for n := range count {
		if err := s.schedule(int(n), due(n), target); err != nil {
			return load.Fired{}, err
		}
	}
	for _, js := range s.js {
		select {
		case <-js.PublishAsyncComplete():
		case <-ctx.Done():
			return load.Fired{}, ctx.Err()
		}
	}
	if behind := time.Since(start); behind > 0 {
		return load.Fired{}, fmt.Errorf("the last message was scheduled %v after the first one was due", behind)
	}
	timeout := time.NewTimer(time.Until(start) + over + 30*time.Second)
	defer timeout.Stop()
	select {
	case <-all:
	case <-timeout.C:
	case <-ctx.Done():
		return load.Fired{}, ctx.Err()
	}
	reading.Stop()
	<-reading.Closed()
	f := late.Fired()
	f.Missing = count - received.Load()
	return f, nil
}

// schedule publishes a message that NATS publishes again, to the target, when it is due.
// The client's own option knows whole seconds only.
func (s *natsStream) schedule(n int, due time.Time, target string) error {
	m := natsgo.NewMsg(s.subject + "at." + strconv.Itoa(n))
	m.Data = append([]byte(nil), s.payloads.Value(int64(n))...)
	binary.BigEndian.PutUint64(m.Data, uint64(due.UnixMilli()))
	m.Header.Set("Nats-Schedule", "@at "+due.Truncate(time.Millisecond).UTC().Format(time.RFC3339Nano))
	m.Header.Set("Nats-Schedule-Target", target)
	_, err := s.js[n%len(s.js)].PublishMsgAsync(m)
	return err
}
