package load

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/almanacdb/almanac/client"
)

// A load does as many operations as it is asked for, whatever the batches, and counts
// what failed apart.
func TestCounts(t *testing.T) {
	var asked atomic.Int64
	l := Load{Clients: 7, Batch: 10, Count: 103, Request: func(client int) Request {
		return func(_ context.Context, _ *rand.Rand, n int) (int, error) {
			asked.Add(int64(n))
			if client == 3 {
				return n / 2, errors.New("half of it")
			}
			return n, nil
		}
	}}
	tally, err := l.Run(t.Context(), io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if asked.Load() != 103 || tally.Ops+tally.Errors != 103 {
		t.Errorf("%d were asked for, %d done, %d failed", asked.Load(), tally.Ops, tally.Errors)
	}
	if tally.Errors > 0 && tally.FirstError == nil {
		t.Error("the error is lost")
	}
}

// What a busy server refused, of either API, is no failure.
func TestRefusalsAreCountedApart(t *testing.T) {
	outcomes := []error{&client.Error{Reason: client.ReasonBusy}, rpctypes.ErrTooManyRequests, errors.New("broken"), nil}
	l := Load{Clients: 1, Batch: 1, Count: 4, Request: func(int) Request {
		return func(context.Context, *rand.Rand, int) (int, error) {
			err := outcomes[0]
			outcomes = outcomes[1:]
			if err != nil {
				return 0, err
			}
			return 1, nil
		}
	}}
	tally, err := l.Run(t.Context(), io.Discard)
	if err != nil || tally.Ops != 1 || tally.Refused != 2 || tally.Errors != 1 {
		t.Errorf("%+v, %v", tally, err)
	}
	if tally.FirstError == nil || tally.FirstError.Error() != "broken" {
		t.Errorf("the first error is %v", tally.FirstError)
	}
}

// With a rate nobody waits for an answer: while one request gets none, the others go out.
func TestRateWaitsForNoAnswer(t *testing.T) {
	const clients = 4
	var sent atomic.Int64
	stuck := make(chan struct{})
	l := Load{Clients: clients, Batch: 1, Count: 100, Rate: 10_000, Request: func(int) Request {
		return func(context.Context, *rand.Rand, int) (int, error) {
			switch n := sent.Add(1); {
			case n < clients:
				<-stuck
			case n == 100:
				close(stuck)
			}
			return 1, nil
		}
	}}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	go func() { // so that a failure ends
		<-ctx.Done()
		if sent.Load() < 100 {
			close(stuck)
		}
	}()
	if tally, err := l.Run(ctx, io.Discard); err != nil || tally.Ops != 100 {
		t.Errorf("%d of 100 done, %v", tally.Ops, err)
	}
}

// With a rate, latency counts from the scheduled time: a server that stalls once makes
// all that was due meanwhile late.
func TestRateCountsFromTheSchedule(t *testing.T) {
	stalled := false
	l := Load{Clients: 1, Batch: 1, Count: 20, Rate: 1000, Request: func(int) Request {
		return func(ctx context.Context, _ *rand.Rand, _ int) (int, error) {
			if !stalled {
				stalled = true
				pause(ctx, 50*time.Millisecond)
			}
			return 1, nil
		}
	}}
	tally, err := l.Run(t.Context(), io.Discard)
	if err != nil || tally.Ops != 20 {
		t.Fatalf("%+v, %v", tally, err)
	}
	if p50 := tally.Quantile(50); p50 < 25*time.Millisecond {
		t.Errorf("half of the operations took %v or less, though all waited for the stall", p50)
	}
}

func TestTally(t *testing.T) {
	tally := Tally{Ops: 500, Elapsed: 2 * time.Second, Latencies: newHistogram()}
	for i := range 100 {
		observe(tally.Latencies, time.Duration(i+1)*time.Millisecond)
	}
	if tally.PerSecond() != 250 || (Tally{Ops: 1}).PerSecond() != 0 {
		t.Errorf("%v a second", tally.PerSecond())
	}
	if q := tally.Quantile(99); q < 99*time.Millisecond || q > 100*time.Millisecond {
		t.Errorf("99 %% took %v or less", q)
	}
}

func TestRandomKeysDiffer(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 100 {
		seen := make(map[string]bool)
		for _, k := range randomKeys(random, 50, 50) {
			seen[string(k)] = true
		}
		if len(seen) != 50 {
			t.Fatalf("%d different keys of 50", len(seen))
		}
	}
}

func TestFireTimes(t *testing.T) {
	start := time.Unix(1000, 0)
	due := FireTimes(start, 10, 5*time.Second)
	if due(0) != start || due(9) != start.Add(4500*time.Millisecond) {
		t.Errorf("from %v to %v", due(0), due(9))
	}
	if lead := FireLead(Load{Count: 10_000, Rate: 5000}); lead != 4*time.Second {
		t.Errorf("a lead of %v", lead)
	}
}

func TestLateness(t *testing.T) {
	l := NewLateness()
	for _, late := range []time.Duration{3 * time.Millisecond, -time.Millisecond, time.Millisecond} {
		l.Observe(late)
	}
	if f := l.Fired(); f.Ops != 3 || f.Early != 1 || f.Soonest != -time.Millisecond || f.Quantile(100).Round(time.Millisecond) != 3*time.Millisecond {
		t.Errorf("%+v", f)
	}
}

// What counts is what is answered within the duration, after the warm-up; the load goes on
// until then, and whoever looks at both ends sees it from outside.
func TestWarmup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		var edges []time.Duration
		l := Load{
			Clients: 2, Batch: 1, Warmup: 3 * time.Second, Duration: 5 * time.Second,
			Edge: func() { edges = append(edges, time.Since(began)) },
			Request: func(int) Request {
				return func(ctx context.Context, _ *rand.Rand, _ int) (int, error) {
					took := time.Second
					if time.Since(began) < 2*time.Second {
						took = time.Second / 10 // would lift the rate if it counted
					}
					pause(ctx, took-time.Millisecond)
					return 1, nil
				}
			},
		}
		tally, err := l.Run(t.Context(), io.Discard)
		if err != nil || tally.Ops != 10 || tally.Elapsed != 5*time.Second || tally.Quantile(50) < time.Second/2 {
			t.Errorf("%d operations in %v, of %v each, %v", tally.Ops, tally.Elapsed, tally.Quantile(50), err)
		}
		if !slices.Equal(edges, []time.Duration{3 * time.Second, 8 * time.Second}) {
			t.Errorf("the edges are %v", edges)
		}
	})
}
