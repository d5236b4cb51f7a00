package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/almanacdb/almanac/client"
	"github.com/almanacdb/almanac/internal/load"
	"github.com/almanacdb/almanac/internal/localcluster"
	"github.com/almanacdb/almanac/internal/proctest"
)

// overloadMemory is each node's --memory.
const overloadMemory = 512 << 20

// More than nodes can do is refused, and not suffered: of the peak most is left, what is
// answered is answered soon, refusals say what to do, nothing that was acknowledged is
// lost, memory is held, nobody is elected, and when it is over all is as before. Machines
// that run this are small and shared, so what counts as most and soon is generous.
func TestOverload(t *testing.T) {
	needE2E(t)
	c := &cluster{t: t, Cluster: proctest.LayOut(t, localcluster.Options{
		Binary: binary, Dir: t.TempDir(), Nodes: 3, Memory: fmt.Sprintf("%dMiB", overloadMemory>>20),
	})}
	c.Form()
	held := watchMemory(t, c)
	o := newOverload(c)
	quiet := o.alone()
	elections := c.elections()

	var peak float64
	for _, clients := range []int{64, 128, 256} {
		peak = max(peak, o.run(fmt.Sprintf("%d clients", clients), load.Load{Clients: clients, Duration: 2 * time.Second}).PerSecond())
	}
	closed := o.over("closed loop", load.Load{Clients: 1024})
	// So many outstanding that the last would wait longer than the 250 ms that one may.
	open := o.over("open loop", load.Load{Clients: 3*256 + int(0.35*peak), Rate: 4 * peak})
	// Who else uses the machine takes from both, so what it can do now counts as well.
	peak = min(peak, o.run("256 clients, afterwards", load.Load{Clients: 256, Duration: 2 * time.Second}).PerSecond())
	if closed < peak/2 || open < peak/3 { // the open loop's thousands of refusals are work too, here and there
		t.Errorf("of a peak of %.0f puts a second, %.0f are left in a closed loop and %.0f in an open one", peak, closed, open)
	}
	if o.refused.Load() == 0 {
		t.Error("nothing was refused: that was no overload")
	}
	if now := c.elections(); now != elections {
		t.Errorf("%d elections under overload", now-elections)
	}
	proctest.Until(t, 10*time.Second, fmt.Sprintf("latency to be as before, %v", quiet), func(context.Context) string {
		if now := o.alone(); now > 3*quiet+10*time.Millisecond {
			return now.String()
		}
		return ""
	})
	for i, n := range c.Nodes {
		if peak := held[i].Load(); peak > overloadMemory+overhead {
			t.Errorf("node %d took %d MiB", n.Index, peak>>20)
		}
	}
	o.nothingLost()
	c.Well(len(c.Nodes))
}

// elections counts how often a node became the leader of a range.
func (c *cluster) elections() (n int) {
	for _, node := range c.Nodes {
		n += strings.Count(node.LogTail(1<<20), `msg="leads range"`)
	}
	return n
}

// overload puts keys, each of them once, by clients that repeat nothing.
type overload struct {
	c       *cluster
	clients []*client.Client
	next    atomic.Int64
	refused atomic.Int64

	mu    sync.Mutex
	acked []string
	took  []time.Duration // of the present run's answers
}

func newOverload(c *cluster) *overload {
	o := &overload{c: c}
	for i := range 24 {
		o.clients = append(o.clients, c.NewClient(client.Options{
			Endpoints: []string{c.Nodes[i%len(c.Nodes)].Address}, RetryFor: -1,
		}))
	}
	return o
}

// run carries a load out; it chooses what is requested.
func (o *overload) run(name string, l load.Load) load.Tally {
	o.c.t.Helper()
	o.took = o.took[:0]
	l.Batch = 1
	l.Request = func(i int) load.Request {
		cl := o.clients[i%len(o.clients)]
		return func(_ context.Context, _ *rand.Rand, n int) (int, error) {
			if err := o.put(cl); err != nil {
				return 0, err
			}
			return n, nil
		}
	}
	tally, err := l.Run(o.c.t.Context(), io.Discard)
	if err != nil {
		o.c.t.Fatal(err)
	}
	o.c.t.Logf("%s: %.0f puts a second, %d refused, %d errors, p50 %v, p99 %v, from schedule p99 %v",
		name, tally.PerSecond(), tally.Refused, tally.Errors, o.answered(50), o.answered(99), tally.Quantile(99))
	return tally
}

// over carries a load out that is more than the nodes can do, and returns puts a second.
func (o *overload) over(name string, l load.Load) float64 {
	o.c.t.Helper()
	l.Duration = 4 * time.Second
	tally := o.run(name, l)
	if p99 := o.answered(99); p99 > 3*time.Second {
		o.c.t.Errorf("%s: p99 of what was answered is %v", name, p99)
	}
	if tally.Errors > 0 {
		o.c.t.Errorf("%s: %d failed that were not refused, the first one: %v", name, tally.Errors, tally.FirstError)
	}
	return tally.PerSecond()
}

func (o *overload) put(cl *client.Client) error {
	key := fmt.Sprintf("overload/%08d", o.next.Add(1))
	ctx, cancel := context.WithTimeout(o.c.t.Context(), 10*time.Second)
	defer cancel()
	began := time.Now()
	_, err := cl.KV.Put(ctx, []byte(key), []byte("v"))
	took := time.Since(began)
	if err == nil {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.acked, o.took = append(o.acked, key), append(o.took, took)
		return nil
	}
	var e *client.Error
	if errors.As(err, &e) && e.Reason == client.ReasonBusy {
		o.refused.Add(1)
		if e.Remedy == "" {
			o.c.t.Errorf("a refusal without a remedy: %v", err)
		}
	}
	return err
}

// answered returns the latency that a share of the last run's answers, in percent, stayed
// within.
func (o *overload) answered(percent int) time.Duration {
	if len(o.took) == 0 {
		return 0
	}
	slices.Sort(o.took)
	return o.took[min(len(o.took)*percent/100, len(o.took)-1)]
}

// alone returns the median latency of a few puts, one after the other.
func (o *overload) alone() time.Duration {
	o.took = o.took[:0]
	for i := range 30 {
		if err := o.put(o.clients[i%len(o.clients)]); err != nil {
			o.c.t.Logf("a put with nothing else to do: %v", err)
			return time.Minute
		}
	}
	return o.answered(50)
}

// nothingLost reads what was acknowledged.
func (o *overload) nothingLost() {
	found := make(map[string]bool)
	for from := []byte("overload/"); ; {
		span := client.Between(from, []byte("overload0"))
		r, err := o.c.Client.KV.Range(proctest.Within(o.c.t, 20*time.Second), span, client.RangeOptions{Limit: 5000, KeysOnly: true})
		if err != nil {
			o.c.t.Fatal(err)
		}
		for _, kv := range r.KVs {
			found[string(kv.Key)] = true
		}
		if !r.More {
			break
		}
		from = append(r.KVs[len(r.KVs)-1].Key, 0)
	}
	for _, key := range o.acked {
		if !found[key] {
			o.c.t.Fatalf("%s was acknowledged and is gone", key)
		}
	}
	o.c.t.Logf("%d puts were acknowledged, all are there; %d were refused", len(o.acked), o.refused.Load())
}
