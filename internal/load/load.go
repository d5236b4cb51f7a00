// Package load makes load and measures it: the loop of clients that each send a request,
// wait for its answer and send the next, and the requests themselves, to Almanac's API and
// to etcd's. It owns what is the same whatever is measured, so that systems are compared by
// the same code; it refuses to know flags, and where the servers come from.
package load

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/almanacdb/almanac/client"
)

// Request is one request of a client, of n operations; it returns how many it did.
type Request func(ctx context.Context, random *rand.Rand, n int) (ops int, err error)

// Load is what to run: requests by clients, until Count operations or the Duration.
type Load struct {
	Clients, Batch int           // Batch is the operations in one request
	Count          int64         // operations; 0 means no limit
	Duration       time.Duration // 0 means no limit
	// Warmup is how long the load runs before the Duration begins, if it has one. Then what
	// counts is what is answered within the Duration: neither how the load begins nor how it
	// ends. Edge, if set, is called at both ends of it.
	Warmup time.Duration
	Edge   func()
	// Rate is operations a second in all, on a schedule that waits for no answer while
	// fewer than Clients requests are outstanding; 0 means no schedule.
	Rate    float64
	Seed    uint64 // of all random choices
	Request func(client int) Request
}

// Tally is what came of a load.
type Tally struct {
	Ops        int64 // operations done
	Refused    int64 // operations that a busy server refused, so that they were not done
	Errors     int64 // operations that failed otherwise
	Elapsed    time.Duration
	Latencies  *hdrhistogram.Histogram // of requests, in microseconds
	FirstError error                   // of whichever client had one; no refusal
}

// PerSecond returns operations a second.
func (t Tally) PerSecond() float64 {
	if t.Elapsed <= 0 {
		return 0
	}
	return float64(t.Ops) / t.Elapsed.Seconds()
}

// Quantile returns the latency that a share of the requests (in percent) stayed within.
func (t Tally) Quantile(percent float64) time.Duration {
	return time.Duration(t.Latencies.ValueAtQuantile(percent)) * time.Microsecond
}

func newHistogram() *hdrhistogram.Histogram {
	return hdrhistogram.New(1, int64(10*time.Minute/time.Microsecond), 3)
}

func observe(h *hdrhistogram.Histogram, d time.Duration) {
	us := min(max(d.Microseconds(), 1), h.HighestTrackableValue())
	_ = h.RecordValue(us) // it is in range
}

// Run carries a load out. Progress goes to w once a second.
func (l Load) Run(ctx context.Context, w io.Writer) (Tally, error) {
	var ops, refused, failed, taken, turns atomic.Int64
	start := time.Now()
	stop := func() bool {
		return ctx.Err() != nil || l.Duration > 0 && time.Since(start) >= l.Warmup+l.Duration
	}
	take := func() int { // the size of the next request, within count
		if l.Count == 0 {
			return l.Batch
		}
		left := l.Count - (taken.Add(int64(l.Batch)) - int64(l.Batch))
		return int(min(left, int64(l.Batch)))
	}
	total := Tally{Latencies: newHistogram()}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for i := range l.Clients {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(l.Seed, uint64(i)))
			send, latencies := l.Request(i), newHistogram()
			var first error
			for !stop() {
				due, ok := l.schedule(ctx, start, turns.Add(1)-1)
				n := 0
				if ok {
					n = take()
				}
				if n <= 0 {
					break
				}
				did, err := send(ctx, random, n)
				if err != nil && ctx.Err() != nil {
					break
				}
				now := time.Now()
				if l.counts(now.Sub(start)) {
					ops.Add(int64(did))
					switch {
					case err == nil:
						observe(latencies, now.Sub(due))
					case isRefusal(err):
						refused.Add(int64(n - did))
					default:
						failed.Add(int64(n - did))
						first = cmp.Or(first, err)
					}
				}
				if err != nil {
					pause(ctx, 10*time.Millisecond)
				}
			}
			mu.Lock()
			defer mu.Unlock()
			total.Latencies.Merge(latencies)
			if total.FirstError == nil {
				total.FirstError = first
			}
		})
	}
	if l.Edge != nil {
		wg.Go(func() {
			pause(ctx, l.Warmup)
			l.Edge()
			pause(ctx, l.Duration)
			l.Edge()
		})
	}
	quiet := progress(w, func(since time.Duration) string {
		return fmt.Sprintf("%.0fs  %d operations, %d refused, %d errors", since.Seconds(), ops.Load(), refused.Load(), failed.Load())
	})
	wg.Wait()
	quiet()
	total.Ops, total.Refused, total.Errors, total.Elapsed = ops.Load(), refused.Load(), failed.Load(), time.Since(start)
	if l.warms() {
		total.Elapsed = l.Duration
	}
	if total.FirstError != nil {
		fmt.Fprintf(w, "first error: %v\n", total.FirstError)
	}
	return total, ctx.Err()
}

func (l Load) warms() bool { return l.Warmup > 0 && l.Duration > 0 }

// counts says whether what is answered so long after the start counts.
func (l Load) counts(after time.Duration) bool {
	return !l.warms() || after >= l.Warmup && after < l.Warmup+l.Duration
}

// schedule waits until the nth request is due and returns when that was. Without a rate
// it is now. It says false if the load ends before.
func (l Load) schedule(ctx context.Context, start time.Time, nth int64) (time.Time, bool) {
	if l.Rate <= 0 {
		return time.Now(), true
	}
	after := time.Duration(float64(nth) * float64(l.Batch) / l.Rate * float64(time.Second))
	if l.Duration > 0 && after >= l.Warmup+l.Duration {
		return start, false
	}
	due := start.Add(after)
	pause(ctx, time.Until(due))
	return due, ctx.Err() == nil
}

// isRefusal says whether a server refused a request because it has no room for it.
func isRefusal(err error) bool {
	return client.ReasonOf(err) == client.ReasonBusy || errors.Is(err, rpctypes.ErrTooManyRequests)
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

// Filler gives values that don't compress, alone or together.
type Filler struct {
	size int
	pool []byte // of some values
}

// fillerPool is about how many bytes pass before a Filler's values come again.
const fillerPool = 1 << 20

// NewFiller returns a filler of values of size bytes.
func NewFiller(seed uint64, size int) Filler {
	random := rand.New(rand.NewPCG(seed, ^seed))
	f := Filler{size, make([]byte, size*max(1, fillerPool/max(size, 1)))}
	for i := range f.pool {
		f.pool[i] = byte(random.Uint32())
	}
	return f
}

// Value returns the nth value, to be read only; n is not negative.
func (f Filler) Value(n int64) []byte {
	if f.size == 0 {
		return nil
	}
	at := int(n%int64(len(f.pool)/f.size)) * f.size
	return f.pool[at : at+f.size : at+f.size]
}
