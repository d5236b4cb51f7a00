package store

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/command"
	"github.com/almanacdb/almanac/internal/engine"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/statestore"
	"github.com/almanacdb/almanac/internal/wire"
)

// loseDisks stops a node, which comes back with empty disks and knows it.
func (m *member) loseDisks() {
	m.c.t.Helper()
	m.crash()
	m.log, m.state, m.lost = engine.NewMem(engine.MemOptions{WAL: true}), engine.NewMem(engine.MemOptions{}), true
}

// rebuild tells a node which replicas it lost; it is whole once done is called.
func (m *member) rebuild() {
	t := m.c.t
	t.Helper()
	list := []base.RangeDescriptor{
		descriptor(base.SystemRange, base.SystemKeyspace, m.c.ids()...),
		descriptor(base.DefaultRange, base.DefaultKeyspace, m.c.ids()...),
	}
	until(t, "all replicas back", func() bool { return m.store.Rebuild(list) == 0 })
	m.store.Rebuilt()
	m.lost = false
}

func TestRebuild(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.found()
	for i := range 50 {
		c.put(fmt.Sprint("k", i), fmt.Sprint(i))
	}
	for round := range 3 { // the leader too, wherever it is
		m := c.members[round]
		terms := map[base.RangeID]uint64{}
		for _, v := range m.store.Replicas() {
			terms[v.Descriptor.Range] = v.Term
		}
		m.loseDisks()
		c.put("meanwhile", fmt.Sprint(round))
		m.start()
		if st, on := m.store.Rebuilding(); !on || st.Total != 0 {
			t.Errorf("before it knows its ranges: %+v, %v", st, on)
		}
		m.rebuild()
		m.wants("k49", "49")
		m.wants("meanwhile", fmt.Sprint(round))
		for _, v := range m.store.Replicas() {
			hs := m.store.opts.Log.Log(v.Descriptor.Range).HardState()
			if own, _ := v.Descriptor.ReplicaOn(m.id); hs.Term == terms[v.Descriptor.Range] && hs.Vote != own.Replica {
				t.Errorf("range %d came back in term %d with its vote for %d still to give", v.Descriptor.Range, hs.Term, hs.Vote)
			}
			if v.Term < terms[v.Descriptor.Range] || hs.Term < terms[v.Descriptor.Range] {
				t.Errorf("range %d came back in term %d, saved %d; it was in %d", v.Descriptor.Range, v.Term, hs.Term, terms[v.Descriptor.Range])
			}
		}
		if _, on := m.store.Rebuilding(); on {
			t.Error("rebuilt, and still rebuilding")
		}
		// It counts towards a majority, and comes back from its own disks.
		other := c.members[(round+1)%3]
		other.crash()
		c.put("without another", fmt.Sprint(round))
		m.crash()
		m.start()
		c.put("after a restart", fmt.Sprint(round))
		m.wants("k0", "0")
		other.start()
		other.wants("after a restart", fmt.Sprint(round))
	}
}

// What the leader counted on is on the replica again, though no one else has it: it takes
// the snapshot only when it reaches the leader's last index.
func TestRebuildWaitsForAllVoters(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.found()
	c.put("a", "1")
	m, away := c.members[0], c.members[1]
	m.loseDisks()
	away.crash()
	m.start()
	list := []base.RangeDescriptor{descriptor(base.DefaultRange, base.DefaultKeyspace, c.ids()...)}
	m.store.Rebuild(list)
	until(t, "word of the one that is away", func() bool {
		st, _ := m.store.Rebuilding()
		return st.Left == 1 && strings.Contains(st.Why, "node 2")
	})
	// It takes part in nothing: one node of three is no majority.
	if _, err := c.members[2].propose("a", "2", 2*time.Second); err == nil {
		t.Error("a write was acknowledged with one whole replica of three")
	}
	if err := m.store.CreateReplica(list[0]); fault.KindOf(err) != fault.Unavailable {
		t.Errorf("it would create the replica it lost: %v", err)
	}
	away.start()
	m.rebuild()
	m.wants("a", c.valueAt(away, "a"))
}

// valueAt reads a key at a node.
func (c *cluster) valueAt(m *member, k string) (value string) {
	c.t.Helper()
	until(c.t, "a read", func() bool {
		var err error
		value, _, err = m.read(k)
		return err == nil
	})
	return value
}

// Two nodes of three that lost their disks wait for one another: nobody is left who surely
// has what they acknowledged together.
func TestTwoOfThreeRebuildNothing(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.found()
	c.put("a", "1")
	list := []base.RangeDescriptor{descriptor(base.DefaultRange, base.DefaultKeyspace, c.ids()...)}
	for _, m := range c.members[:2] {
		m.loseDisks()
	}
	for _, m := range c.members[:2] {
		m.start()
		m.store.Rebuild(list)
	}
	for _, m := range c.members[:2] {
		until(t, "a refusal", func() bool {
			st, _ := m.store.Rebuilding()
			return strings.Contains(st.Why, "not a majority")
		})
		if m.store.Replica(base.DefaultRange) != nil {
			t.Error("rebuilt from a minority")
		}
	}
}

// A crash between the state and the log record leaves no replica; the next start begins
// again.
func TestRebuildCutOff(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.found()
	c.put("a", "1")
	m := c.members[0]
	leader := func() *member { return c.leader(base.DefaultRange) }
	m.loseDisks()
	// The state of the other replica, without a log record: as if cut off.
	sr, err := statestore.New(leader().state).ReadSnapshot(base.DefaultRange)
	if err != nil {
		t.Fatal(err)
	}
	in := statestore.New(m.state).NewInstaller(base.DefaultRange)
	for last := false; !last; {
		f, err := sr.Next()
		if err != nil {
			t.Fatal(err)
		}
		if err := in.Add(f); err != nil {
			t.Fatal(err)
		}
		last = f.Last
	}
	if err := in.Install(sr.State()); err != nil {
		t.Fatal(err)
	}
	_ = sr.Close()
	m.start()
	if m.store.Replica(base.DefaultRange) != nil {
		t.Fatal("half a replica takes part")
	}
	m.rebuild()
	m.wants("a", "1")
}

// One store without the other is damage, not an empty node.
func TestLostStoreIsFound(t *testing.T) {
	for _, store := range []string{"log", "state"} {
		t.Run(store, func(t *testing.T) {
			c := newCluster(t, 3, nil)
			c.found()
			c.put("a", "1")
			m := c.members[0]
			m.loseDisks()
			m.start()
			m.rebuild()
			m.stop()
			if store == "log" {
				m.log = engine.NewMem(engine.MemOptions{WAL: true})
			} else {
				m.state = engine.NewMem(engine.MemOptions{})
			}
			if err := m.open(); fault.KindOf(err) != fault.Corrupt || !strings.Contains(err.Error(), "the "+store+" store holds nothing of range 1") {
				t.Errorf("opened: %v", err)
			}
		})
	}
}

// The question's own checks: a stranger gets no answer, a follower its term at once.
func TestRebuildQuestions(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.found()
	leader := c.leader(base.DefaultRange)
	ask := func(m *member, of base.ReplicaID) (reply wire.RebuildReply, err error) {
		body, err := await(t, func(done func([]byte, error)) {
			q := wire.Rebuild{Replica: of}
			leader.store.Call(m.id, wire.MethodRebuild, base.DefaultRange, q.Append(nil), time.Second, done)
		})
		if err == nil {
			err = reply.Decode(body)
		}
		return reply, err
	}
	for _, m := range c.members {
		if m == leader {
			continue
		}
		until(t, "word of the leader", func() bool { return m.store.Replica(base.DefaultRange).Leader == leader.id })
		if r, err := ask(m, base.ReplicaID(leader.id)); err != nil || !r.Whole || r.Orderer || r.Term == 0 {
			t.Errorf("a follower: %+v, %v", r, err)
		}
		if _, err := ask(m, 9); fault.KindOf(err) != fault.Invalid {
			t.Errorf("a stranger: %v", err)
		}
		if _, err := ask(m, base.ReplicaID(m.id)); fault.KindOf(err) != fault.Invalid {
			t.Errorf("it asks itself: %v", err)
		}
	}
}

// What the answers must come to before a replica is made.
func TestRebuildLearns(t *testing.T) {
	yes := func(term uint64) *wire.RebuildReply { return &wire.RebuildReply{Whole: true, Term: term} }
	orders := func(term, last uint64) *wire.RebuildReply {
		return &wire.RebuildReply{Whole: true, Term: term, Orderer: true, Last: last}
	}
	no := &wire.RebuildReply{}
	for _, tt := range []struct {
		name       string
		answers    []*wire.RebuildReply // of replicas 2, 3, ...; nil: none yet
		term, last uint64
		why        string
	}{
		{"nobody yet", []*wire.RebuildReply{nil, nil}, 0, 0, ""},
		{"one is missing", []*wire.RebuildReply{orders(7, 90), nil}, 0, 0, ""},
		{"all", []*wire.RebuildReply{orders(7, 90), yes(6)}, 7, 90, ""},
		{"a follower has voted in a later term", []*wire.RebuildReply{orders(7, 90), yes(9)}, 9, 90, ""},
		{"nobody orders", []*wire.RebuildReply{yes(7), yes(7)}, 0, 0, "no replica is the confirmed orderer"},
		{"two orderers, one was deposed", []*wire.RebuildReply{orders(7, 90), orders(8, 95)}, 8, 95, ""},
		{"another is lost too", []*wire.RebuildReply{orders(7, 90), no}, 0, 0, "only 1 of 3 replicas are whole, not a majority"},
		{"of five two are lost", []*wire.RebuildReply{orders(7, 90), no, yes(8), yes(7)}, 8, 90, ""},
		{"of five one is silent", []*wire.RebuildReply{orders(7, 90), nil, yes(8), yes(7)}, 0, 0, ""},
		{"of five three are lost", []*wire.RebuildReply{orders(7, 90), no, no, yes(7)}, 0, 0, "only 2 of 5 replicas are whole, not a majority"},
		{"of two", []*wire.RebuildReply{orders(7, 90)}, 0, 0, "only 1 of 2 replicas are whole, not a majority"},
	} {
		x := &rebuild{own: 1, answers: make(map[base.ReplicaID]wire.RebuildReply)}
		x.desc.Replicas = []base.ReplicaDescriptor{{Node: 1, Replica: 1, Role: base.RoleVoter}}
		for i, a := range tt.answers {
			id := i + 2
			x.desc.Replicas = append(x.desc.Replicas, base.ReplicaDescriptor{Node: base.NodeID(id), Replica: base.ReplicaID(id), Role: base.RoleVoter})
			if a != nil {
				x.answers[base.ReplicaID(id)] = *a
			}
		}
		if term, last, why := x.learnt(); term != tt.term || last != tt.last || why != tt.why {
			t.Errorf("%s: term %d, last %d, %q", tt.name, term, last, why)
		}
	}
}

// A snapshot below the orderer's last index is not taken: what the lost replica had
// acknowledged may be above.
func TestRebuildRefusesAnOlderSnapshot(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.found()
	c.put("a", "1")
	m := c.members[0]
	m.loseDisks()
	c.leader(base.DefaultRange)
	if err := m.open(); err != nil { // nothing runs
		t.Fatal(err)
	}
	defer func() { m.store = nil }()
	s := m.store
	d := descriptor(base.DefaultRange, base.DefaultKeyspace, c.ids()...)
	x := &rebuild{desc: d, own: 1, running: true, answers: map[base.ReplicaID]wire.RebuildReply{
		2: {Whole: true, Term: 9, Orderer: true, Last: 50}, 3: {Whole: true, Term: 9},
	}}
	s.rebuilds.ranges = map[base.RangeID]*rebuild{d.Range: x}
	snapshot := func(index uint64, own base.ReplicaID) *incoming {
		st := &command.State{Descriptor: d, Replica: 2, Applied: base.LogMark{Index: index, Term: 9}}
		st.Descriptor.Replicas = slices.Clone(d.Replicas)
		st.Descriptor.Replicas[0].Replica = own
		return &incoming{state: st, files: s.state.NewInstaller(d.Range)}
	}
	for _, tt := range []struct {
		in  *incoming
		why string
	}{
		{snapshot(49, 1), "an older snapshot came first"},
		{snapshot(50, 8), "the snapshot that came is not for replica 1"},
	} {
		x.running = true
		if !s.rebuilds.arrived(s, d.Range, tt.in) || x.why != tt.why || x.running || s.Replica(d.Range) != nil {
			t.Errorf("%q: %+v", tt.why, x)
		}
	}
}
