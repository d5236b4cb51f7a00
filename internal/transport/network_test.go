package transport

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/clock"
	"github.com/almanacdb/almanac/internal/wire"
	"pgregory.net/rapid"
)

// callLog is a Handler that keeps the ids of the calls that it gets.
type callLog []uint64

func (l *callLog) Receive(_ base.NodeID, msgs []wire.Message) {
	for _, m := range msgs {
		*l = append(*l, m.Call.ID)
	}
}

func newTestNetwork(seed uint64) (*Network, *clock.Manual) {
	c := clock.NewManual(0)
	return NewNetwork(rand.New(rand.NewPCG(seed, 1)), c), c
}

func sendCalls(t testing.TB, e *Endpoint, to base.NodeID, ids ...uint64) {
	t.Helper()
	for _, id := range ids {
		if !e.Send(to, ClassCalls, call(id, "body")) {
			t.Fatalf("call %d refused", id)
		}
	}
}

func drain(n *Network) {
	for n.Step() {
	}
}

func TestNetworkDelivers(t *testing.T) {
	n, c := newTestNetwork(1)
	n.SetDefault(Faults{Delay: time.Millisecond})
	var got callLog
	a := n.Attach(1, &callLog{})
	n.Attach(2, &got)
	start := c.Mono()
	sendCalls(t, a, 2, 1, 2)
	if at, ok := n.Next(); !ok || at != start.Add(time.Millisecond) {
		t.Fatalf("next at %v, %v", at, ok)
	}
	n.DeliverUntil(start.Add(time.Millisecond - 1))
	if len(got) != 0 {
		t.Fatal("too early")
	}
	n.DeliverUntil(start.Add(time.Second))
	if !slices.Equal(got, callLog{1, 2}) || c.Mono() != start.Add(time.Second) {
		t.Fatalf("got %v at %v", got, c.Mono())
	}
	if _, ok := n.Next(); ok || n.Step() {
		t.Fatal("something is still under way")
	}
}

func TestNetworkFaults(t *testing.T) {
	ids := make([]uint64, 200)
	for i := range ids {
		ids[i] = uint64(i)
	}
	run := func(f Faults) callLog {
		n, _ := newTestNetwork(7)
		n.SetFaults(1, 2, f)
		var got callLog
		a := n.Attach(1, &callLog{})
		n.Attach(2, &got)
		sendCalls(t, a, 2, ids...)
		drain(n)
		return got
	}
	if got := run(Faults{Jitter: time.Second}); !slices.Equal(got, callLog(ids)) {
		t.Errorf("jitter alone changed the order: %v", got)
	}
	if got := run(Faults{Loss: 0.5}); len(got) == 0 || len(got) == len(ids) || !slices.IsSorted(got) {
		t.Errorf("loss: %d of %d", len(got), len(ids))
	}
	if got := run(Faults{Duplicate: 0.5}); len(got) <= len(ids) || len(got) == 2*len(ids) {
		t.Errorf("duplication: %d of %d", len(got), len(ids))
	}
	if got := run(Faults{Jitter: time.Second, Reorder: 0.5}); len(got) != len(ids) || slices.IsSorted(got) {
		t.Errorf("reorder: %v", got)
	}
	if got := run(Faults{Cut: true}); len(got) != 0 {
		t.Errorf("cut: %v", got)
	}
}

func TestNetworkCutsAndPartitions(t *testing.T) {
	n, _ := newTestNetwork(1)
	var logs [4]callLog
	var ends [4]*Endpoint
	for id := base.NodeID(1); id <= 3; id++ {
		ends[id] = n.Attach(id, &logs[id])
	}
	// expect sends once over every route and compares who heard whom.
	expect := func(want ...callLog) {
		t.Helper()
		logs = [4]callLog{}
		for from := base.NodeID(1); from <= 3; from++ {
			for to := base.NodeID(1); to <= 3; to++ {
				if from != to {
					sendCalls(t, ends[from], to, uint64(from))
				}
			}
		}
		drain(n)
		for i, w := range want {
			if !slices.Equal(logs[i+1], w) {
				t.Errorf("node %d heard %v, want %v", i+1, logs[i+1], w)
			}
		}
	}
	expect(callLog{2, 3}, callLog{1, 3}, callLog{1, 2})
	n.Cut(1, 2)
	expect(callLog{2, 3}, callLog{3}, callLog{1, 2})
	n.Heal()
	n.Partition([]base.NodeID{1})
	expect(nil, callLog{3}, callLog{2})
	n.Partition([]base.NodeID{1, 2}, []base.NodeID{3})
	expect(callLog{2}, callLog{1}, nil)
	n.Heal()
	expect(callLog{2, 3}, callLog{1, 3}, callLog{1, 2})
}

func TestNetworkNodeDown(t *testing.T) {
	n, _ := newTestNetwork(1)
	var before, after callLog
	a, b := n.Attach(1, &callLog{}), n.Attach(2, &before)
	sendCalls(t, a, 2, 1)
	n.Down(2)
	if b.Send(1, ClassCalls, call(9, "")) {
		t.Error("a node that is down sent")
	}
	sendCalls(t, a, 2, 2)
	n.Attach(2, &after)
	sendCalls(t, a, 2, 3)
	drain(n)
	if len(before) != 0 || !slices.Equal(after, callLog{3}) {
		t.Errorf("before %v, after %v", before, after)
	}
	if b.Send(1, ClassCalls, call(9, "")) {
		t.Error("a node sent through its former endpoint")
	}
}

func TestNetworkCapacity(t *testing.T) {
	n, _ := newTestNetwork(1)
	n.SetDefault(Faults{Capacity: 2})
	var got callLog
	a := n.Attach(1, &callLog{})
	n.Attach(2, &got)
	sendCalls(t, a, 2, 1, 2)
	if a.Send(2, ClassCalls, call(3, "")) {
		t.Fatal("a third message was taken")
	}
	if !a.Send(2, ClassBulk, call(4, "")) {
		t.Fatal("classes share their capacity")
	}
	n.Step()
	sendCalls(t, a, 2, 5)
	drain(n)
	if !slices.Equal(got, callLog{1, 2, 4, 5}) {
		t.Fatalf("got %v", got)
	}
}

type mutator struct{ got []string }

func (m *mutator) Receive(_ base.NodeID, msgs []wire.Message) {
	m.got = append(m.got, string(msgs[0].Call.Body))
	clear(msgs[0].Call.Body)
}

func TestNetworkSharesNoMemory(t *testing.T) {
	n, _ := newTestNetwork(1)
	n.SetDefault(Faults{Duplicate: 1})
	var h mutator
	a := n.Attach(1, &callLog{})
	n.Attach(2, &h)
	m := call(1, "body")
	a.Send(2, ClassCalls, m)
	drain(n)
	if !slices.Equal(h.got, []string{"body", "body"}) || string(m.Call.Body) != "body" {
		t.Fatalf("got %q, the sender has %q", h.got, m.Call.Body)
	}
}

// relay sends each call on, to a node that depends on it, a bounded number of times.
type relay struct{ e *Endpoint }

func (r *relay) Receive(_ base.NodeID, msgs []wire.Message) {
	for _, m := range msgs {
		if id := m.Call.ID; id > 0 {
			to := base.NodeID(id%5 + 1)
			r.e.Send(to, Class(id%3), call(id-1, "x"), call(id/2, "y"))
		}
	}
}

func traceOf(seed uint64) (lines []string) {
	n, _ := newTestNetwork(seed)
	n.SetDefault(Faults{
		Delay: time.Millisecond, Jitter: 5 * time.Millisecond, Loss: 0.1, Duplicate: 0.05, Reorder: 0.1, Capacity: 20,
	})
	n.Trace(func(e TraceEvent) { lines = append(lines, e.String()) })
	for id := base.NodeID(1); id <= 5; id++ {
		r := &relay{}
		r.e = n.Attach(id, r)
		if id > 1 {
			r.e.Send(1, ClassCalls, call(30, ""))
		}
	}
	for i := 0; i < 3000 && n.Step(); i++ {
		if i == 500 {
			n.Partition([]base.NodeID{1, 2})
		}
		if i == 1000 {
			n.Heal()
		}
	}
	return lines
}

func TestSameSeedSameTrace(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		seed := rapid.Uint64().Draw(t, "seed")
		if !slices.Equal(traceOf(seed), traceOf(seed)) {
			t.Fatal("two runs of one seed differ")
		}
	})
	if slices.Equal(traceOf(1), traceOf(2)) {
		t.Fatal("the seed changes nothing")
	}
}
