package load

import (
	"context"
	"encoding/binary"
	"time"

	"github.com/almanacdb/almanac/client"
)

// receiver counts numbered events of one subscription.
type receiver struct {
	s        *client.Subscription
	want     int64
	numbers  []uint64 // a bit for each event seen
	distinct int64
	seen     func(e *client.Event, waited time.Duration) // first deliveries only
}

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
	return r.run(ctx, time.Now().Add(grace))
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
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
	defer cancel()
	if closeErr := r.s.Close(ctx); err == nil {
		err = closeErr
	}
	return err
}
