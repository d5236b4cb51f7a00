package router

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/clock"
	"github.com/almanacdb/almanac/internal/engine"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/logstore"
	"github.com/almanacdb/almanac/internal/mvcc"
	"github.com/almanacdb/almanac/internal/placement"
	"github.com/almanacdb/almanac/internal/store"
	"github.com/almanacdb/almanac/internal/timeline"
	"github.com/almanacdb/almanac/internal/transport"
	"github.com/almanacdb/almanac/internal/wire"
)

// wireTap is a transport that keeps the calls sent.
type wireTap struct {
	mu    sync.Mutex
	to    []base.NodeID
	calls []*wire.Call
}

func (w *wireTap) Send(to base.NodeID, _ transport.Class, msgs ...wire.Message) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, m := range msgs {
		w.to, w.calls = append(w.to, to), append(w.calls, m.Call)
	}
	return true
}

// newRouter returns a router of node 9, which holds no replica, under a manual clock.
func newRouter(t *testing.T) (*Router, *wireTap, *clock.Manual) {
	t.Helper()
	logs, err := logstore.Open(engine.NewMem(engine.MemOptions{WAL: true}))
	if err != nil {
		t.Fatal(err)
	}
	tap, hand := &wireTap{}, clock.NewManual(1e12)
	s, err := store.Open(store.Options{
		Node: 9, Clock: hand, Log: logs, Engine: engine.NewMem(engine.MemOptions{}), Transport: tap,
		Logger: slog.New(slog.DiscardHandler), Fatal: func(err error) { t.Error(err) },
	})
	if err != nil {
		t.Fatal(err)
	}
	return New(Options{Store: s, Logger: slog.New(slog.DiscardHandler)}), tap, hand
}

func desc(id base.RangeID, start, end string, nodes ...base.NodeID) base.RangeDescriptor {
	d := base.RangeDescriptor{Range: id, Span: base.Span{Start: []byte(start), End: []byte(end)}}
	for i, n := range nodes {
		d.Replicas = append(d.Replicas, base.ReplicaDescriptor{Node: n, Replica: base.ReplicaID(i + 1)})
	}
	return d
}

func TestRouteCache(t *testing.T) {
	var c routeCache
	wants := func(key string, id base.RangeID, leader base.NodeID) {
		t.Helper()
		rt, ok := c.get([]byte(key))
		if ok != (id != 0) || rt.desc.Range != id || rt.leader != leader {
			t.Errorf("%q is in range %d, led by %d; not %d, %d", key, rt.desc.Range, rt.leader, id, leader)
		}
	}
	wants("a", 0, 0)
	c.put(desc(2, "m", "t"))
	c.put(desc(1, "a", "f"))
	c.put(desc(3, "t", ""))
	wants("a", 1, 0)
	wants("ez", 1, 0)
	wants("f", 0, 0) // a gap
	wants("A", 0, 0)
	wants("m", 2, 0)
	wants("zz", 3, 0)
	c.led(2, 7)
	wants("n", 2, 7)
	c.put(desc(2, "m", "q")) // split: the hint stays, the right side is unknown
	wants("n", 2, 7)
	wants("r", 0, 0)
	c.put(desc(9, "c", "n")) // in place of all that it overlaps
	wants("b", 0, 0)
	wants("d", 9, 0)
	wants("p", 0, 0)
	wants("u", 3, 0)
	c.drop(3)
	wants("u", 0, 0)
	c.drop(3)
}

func TestLearn(t *testing.T) {
	r, _, _ := newRouter(t)
	r.routes.put(desc(5, "a", "b", 1, 2, 3))
	rt, _ := r.routes.get([]byte("a"))
	r.learn(&rt, fault.NotLeaderOf(5, 3))
	if again, _ := r.routes.get([]byte("a")); rt.leader != 3 || again.leader != 3 {
		t.Errorf("%d and %d after a hint", rt.leader, again.leader)
	}
	r.learn(&rt, fault.New(fault.Deadline, "slow"))
	if again, ok := r.routes.get([]byte("a")); !ok || again.leader != 3 {
		t.Error("a slow answer is no reason to forget")
	}
	r.learn(&rt, fault.New(fault.WrongRange, "split"))
	if _, ok := r.routes.get([]byte("a")); ok {
		t.Error("a wrong route stays")
	}
}

// However wrong the hint, every replica is asked in the end, soon.
func TestEveryReplicaIsAsked(t *testing.T) {
	r, _, _ := newRouter(t)
	for _, nodes := range [][]base.NodeID{{1}, {1, 2}, {1, 2, 3}, {1, 2, 3, 4, 5}} {
		for _, hint := range []base.NodeID{0, 1, 8} {
			rt := route{desc: desc(5, "a", "b", nodes...), leader: hint}
			asked := make(map[base.NodeID]bool)
			for attempt := range 3 * len(nodes) {
				asked[r.orderer(&rt, attempt)] = true
			}
			for _, n := range nodes {
				if !asked[n] {
					t.Errorf("of %v with hint %d, %d was not asked", nodes, hint, n)
				}
			}
			if hint != 0 && r.orderer(&rt, 0) != hint {
				t.Error("the hint is not asked first")
			}
		}
	}
}

// Only errors which say that nothing was done are tried again.
func TestWhatIsTriedAgain(t *testing.T) {
	again := []fault.Kind{fault.NotLeader, fault.RangeNotFound, fault.WrongRange, fault.Restamp, fault.Unavailable, fault.Stopped}
	for k := fault.Internal; k <= fault.Cancelled; k++ {
		if got, want := safe(fault.New(k, "x")), slices.Contains(again, k); got != want {
			t.Errorf("%v: %v", k, got)
		}
	}
	if safe(fmt.Errorf("unforeseen")) {
		t.Error("an unforeseen error is tried again")
	}
}

// A read waits for a barrier that was asked for after it came, and shares it with all
// that came meanwhile.
func TestBarriersAreShared(t *testing.T) {
	r, tap, _ := newRouter(t)
	rt := route{desc: desc(5, "a", "b", 2), leader: 2}
	waiter := func() *barrierWaiter {
		w := &barrierWaiter{deadline: r.store.Clock().Mono().Add(time.Second), ch: make(chan answer[base.Timestamp], 1)}
		r.barriers.join(rt, false, 0, w)
		return w
	}
	answered := func(w *barrierWaiter) bool {
		select {
		case <-w.ch:
			return true
		default:
			return false
		}
	}
	first := waiter()
	second, third := waiter(), waiter()
	if len(tap.calls) != 1 {
		t.Fatalf("%d barriers are under way", len(tap.calls))
	}
	reply := func(i int) {
		body := (&wire.BarrierReply{At: 7, Mark: base.LogMark{Index: 1, Term: 1}}).Append(nil)
		r.store.Receive(2, []wire.Message{{Reply: &wire.Reply{ID: tap.calls[i].ID, Body: body}}})
	}
	// Another kind of read does not share it.
	r.barriers.join(rt, true, 0, &barrierWaiter{deadline: 1, ch: make(chan answer[base.Timestamp], 1)})
	if len(tap.calls) != 2 {
		t.Fatal("a read of the newest versions shares a fresh one's barrier")
	}
	flown := make(chan struct{})
	go func() { // the next flight starts on its own goroutine; wait for it by its lock
		defer close(flown)
		for {
			r.barriers.mu.Lock()
			n := len(r.barriers.ranges[5].fresh.waiting)
			r.barriers.mu.Unlock()
			if n == 0 {
				return
			}
		}
	}()
	reply(0)
	if !answered(first) || answered(second) || answered(third) {
		t.Fatal("a barrier answered reads that came after it")
	}
	<-flown
}

func TestPartitionOf(t *testing.T) {
	const fnvEmpty, fnvA, fnvFoobar = 0xcbf29ce484222325, 0xaf63dc4c8601ec8c, 0x85944171f73967e8
	for _, x := range []struct {
		event timeline.NewEvent
		sum   uint64
	}{
		{timeline.NewEvent{OrderingKey: []byte("a")}, fnvA},
		{timeline.NewEvent{MessageID: "foobar"}, fnvFoobar},
		{timeline.NewEvent{OrderingKey: []byte("foobar"), MessageID: "a"}, fnvFoobar}, // the key wins
	} {
		for _, n := range []uint32{1, 2, 3, 7, 4096} {
			if got, want := PartitionOf(&x.event, n, 99), base.Partition(x.sum%uint64(n)); got != want {
				t.Errorf("%+v of %d: %d, not %d", x.event, n, got, want)
			}
		}
	}
	if got := PartitionOf(&timeline.NewEvent{OrderingKey: []byte{}}, 8, 5); got != 5 {
		t.Errorf("without key and id: %d (FNV of nothing would be %d)", got, uint64(fnvEmpty)%8)
	}
}

func TestHull(t *testing.T) {
	span := func(a, b string) base.Span { return base.Span{Start: []byte(a), End: []byte(b)} }
	op := func(a, b string) mvcc.Op { return mvcc.Op{Kind: mvcc.OpRange, Span: span(a, b)} }
	for name, x := range map[string]struct {
		txn  mvcc.Txn
		want base.Span
	}{
		"one":      {mvcc.Txn{Then: []mvcc.Op{op("c", "d")}}, span("c", "d")},
		"branches": {mvcc.Txn{Then: []mvcc.Op{op("c", "d")}, Else: []mvcc.Op{op("a", "b")}}, span("a", "d")},
		"compares": {mvcc.Txn{Compares: []mvcc.Compare{{Span: span("x", "z")}}, Then: []mvcc.Op{op("m", "n")}}, span("m", "z")},
		"no end":   {mvcc.Txn{Then: []mvcc.Op{op("m", ""), op("a", "b")}}, span("a", "")},
		"nested": {mvcc.Txn{Then: []mvcc.Op{op("m", "n"), {Kind: mvcc.OpTxn, Txn: &mvcc.Txn{
			Compares: []mvcc.Compare{{Span: span("b", "c")}}, Else: []mvcc.Op{op("p", "q")}}}}}, span("b", "q")},
		"empty nested": {mvcc.Txn{Then: []mvcc.Op{{Kind: mvcc.OpTxn, Txn: &mvcc.Txn{}}, op("m", "n")}}, span("m", "n")},
	} {
		got, ok := hull(nil, &x.txn)
		if !ok || string(got.Start) != string(x.want.Start) || string(got.End) != string(x.want.End) {
			t.Errorf("%s: %q", name, got)
		}
	}
	if _, ok := hull(nil, &mvcc.Txn{}); ok {
		t.Error("a hull of nothing")
	}
}

// Commands of one range keep the order of a partition's events, and say where each
// stood in the request.
func TestPublishChain(t *testing.T) {
	c := &publishChain{}
	big := make([]byte, commandBytes/2)
	ids := []base.PartitionID{{Topic: 1, Partition: 0}, {Topic: 1, Partition: 1}}
	for i := range 9 {
		e := timeline.NewEvent{MessageID: fmt.Sprint(i), Payload: big}
		if i%3 == 0 { // headers count as payload does
			e = timeline.NewEvent{MessageID: fmt.Sprint(i), Headers: []timeline.Header{{Name: "h", Value: big}}}
		}
		c.add(ids[i%2], i, &e)
	}
	if len(c.parts) != 5 {
		t.Fatalf("%d commands", len(c.parts))
	}
	var seen [2][]int
	for _, p := range c.parts {
		joined := compose([]*publishPart{p})
		for b, batch := range joined.body.Batches {
			for n, e := range batch.Events {
				i := p.events[joined.from[b][n].event].index
				if e.MessageID != fmt.Sprint(i) || batch.Partition != ids[i%2] {
					t.Errorf("event %s of partition %v stands for %d", e.MessageID, batch.Partition, i)
				}
				seen[i%2] = append(seen[i%2], i)
			}
		}
	}
	if !slices.Equal(seen[0], []int{0, 2, 4, 6, 8}) || !slices.Equal(seen[1], []int{1, 3, 5, 7}) {
		t.Errorf("order %v", seen)
	}
}

// subscription returns one over n ranges, whose sessions are open and driven by hand.
func subscription(r *Router, n int) (*Subscription, []*laneSink) {
	s := &Subscription{router: r, changed: make(chan struct{}, 1), cancel: func() {}}
	var sinks []*laneSink
	for i := range n {
		l := &subLane{sub: s, wake: make(chan struct{}, 1), partitions: []base.Partition{base.Partition(i)}}
		sink := &laneSink{lane: l}
		l.begin(sink, uint64(i+1))
		s.lanes, sinks = append(s.lanes, l), append(sinks, sink)
	}
	return s, sinks
}

func deliveries(n int) []wire.Delivery { return make([]wire.Delivery, n) }

func next(t *testing.T, s *Subscription) int {
	t.Helper()
	out, err := s.take()
	if err != nil {
		t.Fatal(err)
	}
	return len(out)
}

func TestCreditReachesEveryRange(t *testing.T) {
	r, _, _ := newRouter(t)
	s, sinks := subscription(r, 3)
	s.Grant(1)
	for i, l := range s.lanes {
		if l.granted != 1 {
			t.Fatalf("range %d may hand out %d", i, l.granted)
		}
	}
	for _, k := range sinks {
		k.Deliver(0, deliveries(1))
	}
	if n := next(t, s); n != 1 {
		t.Fatalf("%d deliveries for one credit", n)
	}
	// Each credit brings one; the range that delivered may go on.
	for i := range 2 {
		s.Grant(1)
		if n := next(t, s); n != 1 {
			t.Fatalf("credit %d brought %d", i, n)
		}
	}
	if n := next(t, s); n != 0 {
		t.Fatalf("%d without credit", n)
	}
}

func TestCreditIsNeverExceeded(t *testing.T) {
	r, _, _ := newRouter(t)
	s, sinks := subscription(r, 4)
	got, granted, most := 0, 0, 0
	for round := range 5000 {
		s.Grant(round % 7)
		granted += round % 7
		for i, l := range s.lanes {
			n := int(l.granted - l.received) // as greedy as an orderer may be
			sinks[i].Deliver(l.received, deliveries(n))
		}
		if got += next(t, s); got > granted {
			t.Fatalf("%d deliveries for %d credits", got, granted)
		}
		most = max(most, len(s.queue))
	}
	if got != granted {
		t.Errorf("%d deliveries for %d credits, with events without end", got, granted)
	}
	if most > 16 {
		t.Errorf("%d waited here for a client without credit", most)
	}
}

func TestGapResetsTheSession(t *testing.T) {
	r, _, _ := newRouter(t)
	s, sinks := subscription(r, 1)
	s.Grant(10)
	sinks[0].Deliver(0, deliveries(2))
	sinks[0].Deliver(3, deliveries(1)) // the third is missing
	if reset, _ := s.lanes[0].look(); !reset {
		t.Fatal("a gap went unseen")
	}
	sinks[0].Deliver(2, deliveries(1))
	s.lanes[0].end(1)
	if len(s.queue) != 0 || s.lanes[0].open != 10 || s.lanes[0].held != 0 {
		t.Errorf("%d queued, %d open, %d held after the end", len(s.queue), s.lanes[0].open, s.lanes[0].held)
	}
	// The next session has all the credit again, and the old one's deliveries are not its.
	again := &laneSink{lane: s.lanes[0]}
	s.lanes[0].begin(again, 2)
	sinks[0].Deliver(0, deliveries(1))
	sinks[0].End(nil)
	if s.lanes[0].granted != 10 || len(s.queue) != 0 || s.lanes[0].reset {
		t.Errorf("granted %d, queued %d, reset %v", s.lanes[0].granted, len(s.queue), s.lanes[0].reset)
	}
}

func TestHeldTooLongGoesBack(t *testing.T) {
	r, _, hand := newRouter(t)
	s, sinks := subscription(r, 2)
	s.Grant(1)
	sinks[0].Deliver(0, deliveries(1))
	sinks[1].Deliver(0, deliveries(1))
	next(t, s)
	hand.Advance(prefetchHold - 1)
	s.giveBack()
	if s.lanes[1].reset {
		t.Fatal("given back early")
	}
	hand.Advance(1)
	s.giveBack()
	if !s.lanes[1].reset || s.lanes[0].reset {
		t.Fatal("the one that waits is not given back, or the client's own is")
	}
}

func TestSubscriptionEndsWithItsReason(t *testing.T) {
	r, _, _ := newRouter(t)
	s, _ := subscription(r, 1)
	s.fail(fault.New(fault.NotFound, "gone"))
	s.fail(fault.New(fault.Cancelled, "later"))
	if _, err := s.Next(context.Background()); fault.KindOf(err) != fault.NotFound {
		t.Errorf("%v", err)
	}
	open, _ := subscription(r, 1)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := open.Next(ctx); fault.KindOf(err) != fault.Cancelled {
		t.Errorf("%v", err)
	}
}

func TestPublishOfNothing(t *testing.T) {
	r, _, hand := newRouter(t)
	r.topics.put(placement.Topic{ID: 1, Name: "t", Partitions: 4}, hand.Mono())
	if got, err := r.Publish(context.Background(), "t", nil); len(got) != 0 || err != nil {
		t.Errorf("%v, %v", got, err)
	}
}

func TestTopicCacheForgets(t *testing.T) {
	_, _, hand := newRouter(t)
	c := topicCache{byName: make(map[string]cachedTopic)}
	c.put(placement.Topic{ID: 1, Name: "t", Partitions: 4}, hand.Mono())
	if _, ok := c.get("t", hand.Mono().Add(topicCacheFor-1)); !ok {
		t.Error("forgotten early")
	}
	if _, ok := c.get("t", hand.Mono().Add(topicCacheFor)); ok {
		t.Error("remembered too long")
	}
	c.drop("t")
	if _, ok := c.get("t", hand.Mono()); ok {
		t.Error("not dropped")
	}
}

// Who ran out of time hears what stood in the way: a range without a leader only if that was
// the last answer.
func TestOutOfTimeSaysWhy(t *testing.T) {
	for _, tc := range []struct {
		id   base.RangeID
		last error
		want string
	}{
		{0, fault.New(fault.Unavailable, "away"), "the range could not be looked up in time"},
		{5, fault.NotLeaderOf(5, 0), "range 5 has no leader with a majority of its replicas"},
		{5, fault.New(fault.Unavailable, "away"), "range 5 has no leader with a majority of its replicas"},
		{5, fault.New(fault.Restamp, "late"), "range 5 did not answer in time"},
		{5, nil, "range 5 did not answer in time"},
	} {
		err := outOfTime(t.Context(), &route{desc: base.RangeDescriptor{Range: tc.id}}, tc.last)
		if fault.KindOf(err) != fault.Deadline || !strings.Contains(err.Error(), tc.want) || tc.last != nil && !errors.Is(err, tc.last) {
			t.Errorf("range %d, last %v: %v", tc.id, tc.last, err)
		}
	}
}
