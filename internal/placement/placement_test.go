package placement

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/clock"
	"github.com/almanacdb/almanac/internal/engine"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/logstore"
	"github.com/almanacdb/almanac/internal/mvcc"
	"github.com/almanacdb/almanac/internal/store"
	"github.com/almanacdb/almanac/internal/transport"
	"github.com/almanacdb/almanac/internal/wire"
)

// nowhere is a transport that reaches nobody.
type nowhere struct{}

func (nowhere) Send(base.NodeID, transport.Class, ...wire.Message) bool { return false }

// lead returns the placement of a cluster of one node, with the catalogue written.
func lead(t *testing.T) (*Placement, context.Context) {
	t.Helper()
	logs, err := logstore.Open(engine.NewMem(engine.MemOptions{WAL: true}))
	if err != nil {
		t.Fatal(err)
	}
	quiet := slog.New(slog.DiscardHandler)
	s, err := store.Open(store.Options{
		Node: 1, Clock: clock.NewSystem(), Tick: 10 * time.Millisecond, Log: logs, Engine: engine.NewMem(engine.MemOptions{}),
		Transport: nowhere{}, Logger: quiet, Fatal: func(err error) { t.Error(err) },
	})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() { s.Close() })
	b := &Bootstrap{Cluster: base.ClusterID{1}, Nodes: []base.NodeDescriptor{{Node: 1, Peer: "a:1"}}}
	for _, d := range b.Ranges() {
		if err := s.CreateReplica(d); err != nil {
			t.Fatal(err)
		}
	}
	p := New(Options{Store: s, Logger: quiet, Bootstrap: b})
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	poll := time.NewTicker(2 * time.Millisecond)
	defer poll.Stop()
	for p.lead() != nil || p.writeBootstrap(ctx) != nil {
		select {
		case <-poll.C:
		case <-ctx.Done():
			t.Fatal("no leader")
		}
	}
	p.beat(1, wire.Heartbeat{})
	return p, ctx
}

// beat notes that a node was heard just now.
func (p *Placement) beat(n base.NodeID, h wire.Heartbeat) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.beats[n] = beat{at: p.opts.Store.Clock().Mono(), report: h}
}

func TestDefaultReplicas(t *testing.T) {
	for n, want := range map[int]int{1: 1, 2: 1, 3: 3, 4: 3, 100: 3} {
		if got := DefaultReplicas(n); got != want {
			t.Errorf("%d nodes: %d", n, got)
		}
	}
}

func TestPick(t *testing.T) {
	nodes := []base.NodeID{4, 5, 6, 7}
	for first, want := range [][]base.NodeID{{4, 5, 6}, {5, 6, 7}, {6, 7, 4}, {7, 4, 5}} {
		if got := pick(nodes, first, 3); !slices.Equal(got, want) {
			t.Errorf("from %d: %v", first, got)
		}
	}
}

// A topic's ranges cover its partitions, once each, and are led by different nodes.
func TestTopicRanges(t *testing.T) {
	for _, x := range []struct{ partitions, nodes, ranges int }{{1, 3, 1}, {2, 3, 2}, {3, 3, 3}, {16, 3, 3}, {5, 4, 4}, {4096, 1, 1}} {
		var nodes []base.NodeID
		for i := range x.nodes {
			nodes = append(nodes, base.NodeID(i+1))
		}
		c := Counters{Range: 10}
		ranges := topicRanges(&Topic{ID: 3, Partitions: uint32(x.partitions)}, &c, nodes, min(3, x.nodes))
		if len(ranges) != x.ranges || c.Range != base.RangeID(10+x.ranges) {
			t.Errorf("%+v: %d ranges, next id %d", x, len(ranges), c.Range)
		}
		first := map[base.NodeID]bool{}
		for i, d := range ranges {
			first[d.Replicas[0].Node] = true
			if d.Topic != 3 || d.Keyspace != 0 || len(d.Replicas) != min(3, x.nodes) || d.Range != base.RangeID(10+i) {
				t.Errorf("%+v: %+v", x, d)
			}
			if i > 0 && string(ranges[i-1].Span.End) != string(d.Span.Start) {
				t.Errorf("%+v: a gap before range %d", x, d.Range)
			}
		}
		if len(first) != x.ranges {
			t.Errorf("%+v: led by %v", x, first)
		}
	}
}

func TestCreateTopic(t *testing.T) {
	p, ctx := lead(t)
	for name, x := range map[string]struct {
		req  CreateTopic
		kind fault.Kind
	}{
		"no name":             {CreateTopic{Partitions: 1}, fault.Invalid},
		"a long name":         {CreateTopic{Name: strings.Repeat("x", 256), Partitions: 1}, fault.Invalid},
		"a slash":             {CreateTopic{Name: "a/b", Partitions: 1}, fault.Invalid},
		"no partitions":       {CreateTopic{Name: "t"}, fault.Invalid},
		"too many partitions": {CreateTopic{Name: "t", Partitions: MaxPartitions + 1}, fault.Invalid},
		"above the living":    {CreateTopic{Name: "t", Partitions: 1, Replicas: 2}, fault.Invalid},
		"negative replicas":   {CreateTopic{Name: "t", Partitions: 1, Replicas: -1}, fault.Invalid},
		"negative retention":  {CreateTopic{Name: "t", Partitions: 1, RetentionMS: -1}, fault.Invalid},
	} {
		if _, err := p.do(ctx, &Request{CreateTopic: &x.req}); fault.KindOf(err) != x.kind {
			t.Errorf("%s: %v", name, err)
		}
	}
	made, err := p.do(ctx, &Request{CreateTopic: &CreateTopic{Name: "t", Partitions: 4}})
	if err != nil || made.Topic.ID != 1 {
		t.Fatalf("%+v, %v", made, err)
	}
	if _, err := p.do(ctx, &Request{CreateTopic: &CreateTopic{Name: "t", Partitions: 4}}); fault.KindOf(err) != fault.AlreadyExists {
		t.Errorf("again: %v", err)
	}
	again, err := p.do(ctx, &Request{CreateTopic: &CreateTopic{Name: "t", Partitions: 4, IfNotExists: true}})
	if err != nil || *again.Topic != *made.Topic {
		t.Errorf("if it does not exist: %+v, %v", again, err)
	}
	if v := p.opts.Store.Replica(base.DefaultRange + 1); v == nil || !v.Serving {
		t.Error("the topic's range does not serve")
	}
	if _, err := p.do(ctx, &Request{DeleteTopic: &DeleteTopic{Name: "t"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := p.do(ctx, &Request{DeleteTopic: &DeleteTopic{Name: "t"}}); fault.KindOf(err) != fault.NotFound {
		t.Errorf("deleted again: %v", err)
	}
	reborn, err := p.do(ctx, &Request{CreateTopic: &CreateTopic{Name: "t", Partitions: 4}})
	if err != nil || reborn.Topic.ID != 2 {
		t.Errorf("an id was used again, or not made: %+v, %v", reborn, err)
	}
	if _, err := p.do(ctx, &Request{}); fault.KindOf(err) != fault.Invalid {
		t.Errorf("nothing: %v", err)
	}
}

// Two changes from one reading of the counters: the second is told to try again.
func TestCountersAreNotGivenTwice(t *testing.T) {
	p, ctx := lead(t)
	c, rev, err := p.counters(ctx)
	if err != nil {
		t.Fatal(err)
	}
	txn := &mvcc.Txn{Compares: []mvcc.Compare{unchanged(CountersKey(), rev)}, Then: []mvcc.Op{put(CountersKey(), c)}}
	if err := p.commit(ctx, txn); err != nil {
		t.Fatal(err)
	}
	if err := p.commit(ctx, txn); fault.KindOf(err) != fault.Busy {
		t.Errorf("%v", err)
	}
}

func TestRegister(t *testing.T) {
	p, ctx := lead(t)
	var ids []base.NodeID
	for _, peer := range []string{"b:1", "c:1", "b:1", "a:1"} {
		r, err := p.do(ctx, &Request{Register: &base.NodeDescriptor{Peer: peer, Address: peer + "0"}})
		if err != nil || r.Bootstrap == nil {
			t.Fatalf("%+v, %v", r, err)
		}
		ids = append(ids, r.Node)
	}
	if !slices.Equal(ids, []base.NodeID{2, 3, 2, 1}) {
		t.Errorf("ids %v", ids)
	}
}

func TestGroups(t *testing.T) {
	p, ctx := lead(t)
	for range 2 {
		r, err := p.do(ctx, &Request{CreateGroup: &CreateGroup{Topic: 1, Name: "g", Start: 1}})
		if err != nil || r.Group.ID != 1 || r.Group.Ready {
			t.Fatalf("%+v, %v", r, err)
		}
	}
	r, err := p.do(ctx, &Request{GroupReady: &Group{ID: 1, Topic: 1, Name: "g", Start: 1}})
	if err != nil || !r.Group.Ready {
		t.Errorf("%+v, %v", r, err)
	}
	if _, err := p.do(ctx, &Request{GroupReady: &Group{ID: 2, Topic: 1, Name: "other"}}); fault.KindOf(err) != fault.NotFound {
		t.Errorf("%v", err)
	}
}

// The catalogue is read anew when the system range changed, and only then.
func TestCatalogueIsCached(t *testing.T) {
	p, ctx := lead(t)
	var first, again *catalogue
	for first == nil || first != again { // bounds of the oracle may come between
		first, again = again, nil
		var err error
		if again, err = p.read(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if len(again.nodes) != 1 || len(again.ranges) != 2 || again.byID(base.DefaultRange) == nil || again.node(2) != nil {
		t.Errorf("%+v", again)
	}
}

func TestHeartbeatAnswers(t *testing.T) {
	p := &Placement{opts: Options{DeadAfter: 3 * time.Second}, beats: map[base.NodeID]beat{}, moved: map[base.RangeID]clock.Mono{}}
	span := base.Span{Start: []byte("a"), End: []byte("b")}
	cat := &catalogue{
		nodes:   []base.NodeDescriptor{{Node: 1}, {Node: 2}},
		ranges:  []base.RangeDescriptor{newRange(4, span, 2, 0, []base.NodeID{1, 2}), newRange(5, span, 2, 0, []base.NodeID{2})},
		dropped: map[base.RangeID]bool{6: true},
	}
	now := clock.Mono(time.Minute)
	state := func(r base.RangeID, orderer bool, term, last uint64) wire.ReplicaStatus {
		return wire.ReplicaStatus{Range: r, Replica: 2, Orderer: orderer, Term: term, Last: last}
	}
	report := &wire.Heartbeat{Full: true, Replicas: []wire.ReplicaStatus{state(4, true, 7, 5000), state(6, false, 1, 1)}}
	a := p.answer(cat, 2, report, now)
	if len(a.Create) != 1 || a.Create[0].Range != 5 || len(a.Nodes) != 2 {
		t.Errorf("create %+v", a.Create)
	}
	if !slices.Equal(a.Remove, []wire.ReplicaRemove{{Range: 6, Replica: 2}}) {
		t.Errorf("remove %+v", a.Remove)
	}
	for _, x := range []struct {
		what  string
		since clock.Mono
		at    clock.Mono // of the preferred node's heartbeat
		first wire.ReplicaStatus
		want  int
	}{
		{"not heard of", 0, 0, state(4, false, 7, 5000), 0},
		{"far behind", 0, now, state(4, false, 7, 3999), 0},
		{"in another term", 0, now, state(4, false, 6, 5000), 0},
		{"placement is new", now - 1, now, state(4, false, 7, 5000), 0},
		{"ready", 0, now, state(4, false, 7, 4000), 1},
		{"moved lately", 0, now, state(4, false, 7, 5000), 0},
	} {
		p.since = x.since
		p.beats[1] = beat{at: x.at, report: wire.Heartbeat{Replicas: []wire.ReplicaStatus{x.first}}}
		got := p.answer(cat, 2, report, now).Transfer
		if len(got) != x.want || (x.want == 1 && got[0] != wire.LeaderTransfer{Range: 4, To: 1}) {
			t.Errorf("%s: %+v", x.what, got)
		}
	}
}

// Leaders leave a node whose disk has no space to spare, for one whose disk has.
func TestLeadersGoWhereThereIsSpace(t *testing.T) {
	p := &Placement{opts: Options{DeadAfter: 3 * time.Second}, beats: map[base.NodeID]beat{}, moved: map[base.RangeID]clock.Mono{}}
	full, room := wire.Capacity{DiskTotal: 1 << 30, DiskFree: 1 << 20}, wire.Capacity{DiskTotal: 1 << 30, DiskFree: 1 << 29}
	system := newRange(base.SystemRange, base.Span{Start: []byte("a"), End: []byte("b")}, 3, 0, []base.NodeID{1, 2, 3})
	data := newRange(4, base.Span{Start: []byte("b"), End: []byte("c")}, 3, 0, []base.NodeID{1, 2, 3})
	cat := &catalogue{ranges: []base.RangeDescriptor{system, data}}
	beats := func(led bool, on wire.Capacity) wire.Heartbeat {
		return wire.Heartbeat{Full: true, Capacity: on, Replicas: []wire.ReplicaStatus{
			{Range: base.SystemRange, Orderer: led, Term: 7, Last: 10}, {Range: 4, Orderer: led, Term: 7, Last: 10}}}
	}
	moves := func(now clock.Mono, node base.NodeID, capacities ...wire.Capacity) []wire.LeaderTransfer {
		for i, c := range capacities {
			id := base.NodeID(i + 1)
			p.beats[id] = beat{at: now, report: beats(id == node, c)}
		}
		report := p.beats[node].report
		return p.answer(cat, node, &report, now).Transfer
	}
	now := clock.Mono(time.Minute)
	got := moves(now, 1, full, full, room)
	want := []wire.LeaderTransfer{{Range: base.SystemRange, To: system.Replicas[2].Replica}, {Range: 4, To: data.Replicas[2].Replica}}
	if !slices.Equal(got, want) {
		t.Errorf("from the full node: %+v", got)
	}
	now += clock.Mono(time.Minute)
	if got := moves(now, 1, full, full, full); len(got) != 0 {
		t.Errorf("with no space anywhere: %+v", got)
	}
	if got := moves(now, 3, full, full, room); len(got) != 0 {
		t.Errorf("back to the full node: %+v", got)
	}
	if got := moves(now, 3, room, full, room); len(got) != 1 || got[0].Range != 4 {
		t.Errorf("back to the node with space again: %+v", got)
	}
}

func TestAlive(t *testing.T) {
	p := &Placement{opts: Options{DeadAfter: 3 * time.Second}, beats: map[base.NodeID]beat{
		3: {at: clock.Mono(7 * time.Second)}, 1: {at: clock.Mono(10 * time.Second)}, 2: {at: clock.Mono(6 * time.Second)},
	}}
	if got := p.alive(clock.Mono(10 * time.Second)); !slices.Equal(got, []base.NodeID{1, 3}) {
		t.Errorf("%v", got)
	}
}
