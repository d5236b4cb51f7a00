package main

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// request is one request of a bench client; it returns how many operations it did.
type request func(ctx context.Context, random *rand.Rand, n int) (ops int, err error)

// load is what to run: requests by clients, until count operations or the duration.
type load struct {
	clients, batch int
	count          int64         // operations; 0 means no limit
	duration       time.Duration // 0 means no limit
	rate           float64       // operations a second in all; 0 means no schedule
	seed           uint64
	request        func(client int) request
}

// tally is what came of a load.
type tally struct {
	ops, errors int64
	elapsed     time.Duration
	latencies   *hdrhistogram.Histogram // microseconds
	firstError  error
}

func newHistogram() *hdrhistogram.Histogram {
	return hdrhistogram.New(1, int64(10*time.Minute/time.Microsecond), 3)
}

func observe(h *hdrhistogram.Histogram, d time.Duration) {
	us := min(max(d.Microseconds(), 1), h.HighestTrackableValue())
	_ = h.RecordValue(us) // it is in range
}

// loop carries a load out. Progress goes to w once a second.
func (l load) loop(ctx context.Context, w io.Writer) (tally, error) {
	var ops, failed, taken atomic.Int64
	start := time.Now()
	stop := func() bool {
		return ctx.Err() != nil || l.duration > 0 && time.Since(start) >= l.duration
	}
	take := func() int { // the size of the next request, within count
		if l.count == 0 {
			return l.batch
		}
		left := l.count - (taken.Add(int64(l.batch)) - int64(l.batch))
		return int(min(left, int64(l.batch)))
	}
	total := tally{latencies: newHistogram()}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for i := range l.clients {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(l.seed, uint64(i)))
			send, latencies := l.request(i), newHistogram()
			var first error
			for turn := 0; !stop(); turn++ {
				due, ok := l.schedule(ctx, start, i, turn)
				n := 0
				if ok {
					n = take()
				}
				if n <= 0 {
					break
				}
				did, err := send(ctx, random, n)
				if err != nil {
					if ctx.Err() != nil {
						break
					}
					failed.Add(int64(n - did))
					if first == nil {
						first = err
					}
					pause(ctx, 10*time.Millisecond)
				} else {
					observe(latencies, time.Since(due))
				}
				ops.Add(int64(did))
			}
			mu.Lock()
			defer mu.Unlock()
			total.latencies.Merge(latencies)
			if total.firstError == nil {
				total.firstError = first
			}
		})
	}
	quiet := progress(w, func(since time.Duration) string {
		return fmt.Sprintf("%.0fs  %d operations, %d errors", since.Seconds(), ops.Load(), failed.Load())
	})
	wg.Wait()
	quiet()
	total.ops, total.errors, total.elapsed = ops.Load(), failed.Load(), time.Since(start)
	if total.firstError != nil {
		fmt.Fprintf(w, "first error: %v\n", total.firstError)
	}
	return total, ctx.Err()
}

// schedule waits until a client's turn and returns when that was due. Without a rate
// it is now. It says false if the load ends before.
func (l load) schedule(ctx context.Context, start time.Time, client, turn int) (time.Time, bool) {
	if l.rate <= 0 {
		return time.Now(), true
	}
	nth := float64(turn*l.clients+client) * float64(l.batch)
	after := time.Duration(nth / l.rate * float64(time.Second))
	if l.duration > 0 && after >= l.duration {
		return start, false
	}
	due := start.Add(after)
	pause(ctx, time.Until(due))
	return due, ctx.Err() == nil
}

func pause(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// progress prints a line a second until the function that it returns is called.
func progress(w io.Writer, line func(since time.Duration) string) (stop func()) {
	start, end, ended := time.Now(), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				fmt.Fprintln(w, line(time.Since(start)))
			case <-end:
				return
			}
		}
	}()
	return func() {
		close(end)
		<-ended
	}
}

// record returns the fields that every bench reports.
func (t tally) record(work string, f *benchFlags) *record {
	seconds := t.elapsed.Seconds()
	perSecond := 0.0
	if seconds > 0 {
		perSecond = float64(t.ops) / seconds
	}
	ms := func(us int64) float64 { return float64(us) / 1000 }
	h := t.latencies
	r := (&record{}).str("work", work)
	if work != "timer" {
		r.str("op", f.op)
	}
	r.num("clients", int64(f.clients)).num("batch", int64(f.batch)).num("size", int64(f.size))
	r.num("ops", t.ops).num("errors", t.errors).float("seconds", seconds, 3).float("ops_per_s", perSecond, 1)
	r.float("p50_ms", ms(h.ValueAtQuantile(50)), 3).float("p95_ms", ms(h.ValueAtQuantile(95)), 3)
	return r.float("p99_ms", ms(h.ValueAtQuantile(99)), 3).float("max_ms", ms(h.Max()), 3)
}

// randomBytes returns n bytes that don't compress.
func randomBytes(seed uint64, n int) []byte {
	random := rand.New(rand.NewPCG(seed, ^seed))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(random.Uint32())
	}
	return b
}
