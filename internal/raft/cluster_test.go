package raft

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	pb "go.etcd.io/raft/v3/raftpb"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/clock"
	"github.com/almanacdb/almanac/internal/effect"
)

const (
	testTick     = 10 * time.Millisecond
	testElection = 10
	testRange    = base.RangeID(7)
)

// memLog is a durable log in memory.
type memLog struct {
	before  base.LogMark // the truncated place
	entries []base.Entry
	reads   int // entries read
}

func (l *memLog) First() uint64 { return l.before.Index + 1 }
func (l *memLog) Last() uint64  { return l.before.Index + uint64(len(l.entries)) }

func (l *memLog) Term(i uint64) (uint64, error) {
	switch {
	case i == l.before.Index:
		return l.before.Term, nil
	case i < l.before.Index || i > l.Last():
		return 0, fmt.Errorf("no term at %d in [%d, %d]", i, l.before.Index, l.Last())
	}
	return l.entries[i-l.First()].Term, nil
}

func (l *memLog) Entries(lo, hi uint64, maxBytes int) ([]base.Entry, error) {
	if lo < l.First() || hi > l.Last()+1 || lo >= hi {
		return nil, fmt.Errorf("no entries [%d, %d) in [%d, %d]", lo, hi, l.First(), l.Last())
	}
	var out []base.Entry
	for i := lo; i < hi; i++ {
		e := l.entries[i-l.First()]
		if maxBytes -= e.Size(); maxBytes < 0 && len(out) > 0 {
			break
		}
		out = append(out, e)
		l.reads++
	}
	return out, nil
}

func (l *memLog) save(entries []base.Entry) {
	if len(entries) == 0 {
		return
	}
	if n := entries[0].Index - l.First(); n < uint64(len(l.entries)) {
		l.entries = l.entries[:n:n]
	}
	l.entries = append(l.entries, entries...)
}

func (l *memLog) truncate(i uint64) {
	t, err := l.Term(i)
	if err != nil {
		panic(err)
	}
	l.entries = l.entries[i-l.before.Index:]
	l.before = base.LogMark{Index: i, Term: t}
}

func (l *memLog) reset(mark base.LogMark) { *l = memLog{before: mark} }

// peer is one replica with what it has saved.
type peer struct {
	id      base.ReplicaID
	machine *Machine       // nil while crashed
	saves   []effect.Ready // under way
	log     *memLog
	hard    effect.HardState
	config  effect.Configuration
	applied uint64 // durable at once

	skew     time.Duration // its clock's start
	rate     float64       // its clock's speed
	nextTick clock.Mono
	paused   time.Duration // until this global time
	downTo   time.Duration
}

// flight is a message on its way.
type flight struct {
	at  time.Duration
	msg effect.Message
}

// cluster is a group of replicas, a network and a global time that no replica sees.
type cluster struct {
	t       testing.TB
	rng     *rand.Rand
	now     time.Duration
	peers   []*peer
	flights []flight
	options func(*Options)

	lazy      bool // disks take more than a turn for a save, now and then
	cut       map[[2]base.ReplicaID]bool
	latency   func() time.Duration // negative: lost
	committed map[uint64]base.Entry
	proposed  map[base.LogMark]string
	highest   uint64
	elected   map[uint64]time.Duration // by term: the first instant with that leader
	violation string

	afterRestart func(*Machine) // planted bugs
	everyTurn    func(*Machine)
}

func newCluster(t testing.TB, seed uint64, n int) *cluster {
	c := &cluster{
		t: t, rng: rand.New(rand.NewPCG(seed, 1)),
		cut:       make(map[[2]base.ReplicaID]bool),
		committed: make(map[uint64]base.Entry),
		proposed:  make(map[base.LogMark]string),
		elected:   make(map[uint64]time.Duration),
		latency:   func() time.Duration { return time.Millisecond },
	}
	config := effect.Configuration{Epoch: 1}
	for i := range n {
		config.Voters = append(config.Voters, base.ReplicaID(i+1))
	}
	for _, id := range config.Voters {
		p := &peer{
			id: id, log: &memLog{before: base.LogMark{Index: 10, Term: 5}}, config: config,
			applied: 10, rate: 1, skew: time.Duration(c.rng.IntN(1e9)) + time.Second,
		}
		c.peers = append(c.peers, p)
	}
	for i := uint64(1); i <= 10; i++ {
		c.committed[i] = base.Entry{Index: i, Term: 5}
	}
	c.highest = 10
	return c
}

func (c *cluster) startAll() *cluster {
	for _, p := range c.peers {
		c.start(p, false)
	}
	return c
}

func (c *cluster) peer(id base.ReplicaID) *peer { return c.peers[id-1] }

func (c *cluster) clock(p *peer) clock.Mono {
	return clock.Mono(p.skew + time.Duration(float64(c.now)*p.rate))
}

func (c *cluster) start(p *peer, restarted bool) {
	p.hard.Commit = max(p.applied, min(p.hard.Commit, p.log.Last()))
	if p.hard.Term == 0 {
		p.hard.Term = p.log.before.Term
	}
	o := Options{
		Range: testRange, Replica: p.id, Config: p.config, HardState: p.hard, Applied: p.applied,
		Log: p.log, Tick: testTick, ElectionTicks: testElection, HeartbeatTicks: 2,
		Restarted: restarted, Now: c.clock(p),
	}
	if c.options != nil {
		c.options(&o)
	}
	m, err := New(o)
	if err != nil {
		c.t.Fatal(err)
	}
	p.machine = m
	p.nextTick = c.clock(p).Add(testTick)
	if restarted && c.afterRestart != nil {
		c.afterRestart(m)
	}
}

// crash loses what was not saved. A snapshot is installed before the log knows; the start
// resets the log then (S4).
func (c *cluster) crash(p *peer) {
	for _, rd := range p.saves {
		if rd.Snapshot != nil {
			p.log.reset(rd.Snapshot.Mark)
			p.hard.Term = max(p.hard.Term, rd.Snapshot.Mark.Term)
		}
	}
	p.machine, p.saves = nil, nil
}

func (c *cluster) restart(id base.ReplicaID) {
	c.crash(c.peer(id))
	c.start(c.peer(id), true)
}

// Where a turn may be cut off by a crash.
const (
	noCrash = iota
	crashBeforeSave
	crashBeforeLate
	crashBeforeApply
)

// turn is a host's turn: early messages, apply, and the saves that the disk gets round to.
func (c *cluster) turn(p *peer, crash int) {
	for p.machine != nil && p.machine.HasReady() {
		m := p.machine
		if c.everyTurn != nil {
			c.everyTurn(m)
		}
		rd := m.Ready(c.clock(p))
		c.send(rd.Early)
		if rd.Snapshot != nil {
			if _, ok := c.committed[rd.Snapshot.Mark.Index]; !ok {
				c.t.Fatalf("snapshot of %+v, which is not committed", rd.Snapshot.Mark)
			}
			p.applied, p.config = rd.Snapshot.Mark.Index, rd.Snapshot.Config
		}
		if !rd.MustSync && (len(rd.Entries) > 0 || rd.Snapshot != nil) || rd.MustSync && !rd.Save {
			c.t.Fatalf("entries or a snapshot without MustSync, or that without Save: %+v", rd)
		}
		if rd.Save {
			p.saves = append(p.saves, rd)
		}
		if crash == crashBeforeApply {
			c.crash(p)
			return
		}
		for _, e := range rd.Committed {
			if e.Index > p.log.Last() {
				c.t.Fatalf("entry %d is applied before it is saved", e.Index)
			}
			c.commit(p, e)
		}
		m.Applied(rd.Committed)
		c.save(p, crash)
	}
	if p.machine != nil {
		c.save(p, crash)
	}
}

// save carries out saves under way, all or, on a lazy disk, some.
func (c *cluster) save(p *peer, crash int) {
	for len(p.saves) > 0 && !(c.lazy && c.rng.IntN(3) == 0) {
		if crash == crashBeforeSave {
			c.crash(p)
			return
		}
		rd := p.saves[0]
		p.saves = p.saves[1:]
		if rd.Snapshot != nil {
			p.log.reset(rd.Snapshot.Mark)
		}
		// A commit index alone is lost in a crash (S4).
		if rd.HardState != nil && (rd.MustSync || crash == noCrash) {
			p.hard = *rd.HardState
		}
		p.log.save(rd.Entries)
		if crash == crashBeforeLate {
			c.crash(p)
			return
		}
		c.send(rd.Late)
		p.machine.Saved(c.clock(p))
	}
}

// done says that a Ready was carried out.
func done(m *Machine, now clock.Mono, rd effect.Ready) {
	m.Applied(rd.Committed)
	if rd.Save {
		m.Saved(now)
	}
}

// commit checks that no two replicas apply different entries at an index, and that an
// entry stands where its proposer was told.
func (c *cluster) commit(p *peer, e base.Entry) {
	if e.Index != p.applied+1 {
		c.t.Fatalf("replica %d applies %d after %d", p.id, e.Index, p.applied)
	}
	p.applied = e.Index
	if was, ok := c.committed[e.Index]; !ok {
		c.committed[e.Index] = e
		c.highest = max(c.highest, e.Index)
	} else if was.Term != e.Term || was.Type != e.Type || string(was.Data) != string(e.Data) {
		c.t.Fatalf("replica %d applies %+v where another applied %+v", p.id, e, was)
	}
	want, ok := c.proposed[base.LogMark{Index: e.Index, Term: e.Term}]
	if ok != (e.Type == base.EntryCommand) || want != string(e.Data) {
		c.t.Fatalf("at %d in term %d stands %q, proposed %q", e.Index, e.Term, e.Data, want)
	}
}

func (c *cluster) send(msgs []effect.Message) {
	for _, msg := range msgs {
		lost := c.cut[[2]base.ReplicaID{msg.From, msg.To}]
		d := c.latency()
		if lost = lost || d < 0; !lost {
			c.flights = append(c.flights, flight{c.now + d, msg})
		}
		if pb.MessageType(msg.Type) == pb.MsgSnap && c.peer(msg.From).machine != nil {
			// The host learns how the transfer went.
			c.peer(msg.From).machine.ReportSnapshot(msg.To, !lost)
		}
	}
}

func (c *cluster) deliver() {
	var later []flight
	due := c.flights
	c.flights = nil
	for _, f := range due {
		p := c.peer(f.msg.To)
		switch {
		case f.at > c.now || p.paused > c.now && p.machine != nil:
			later = append(later, f)
		case p.machine != nil:
			if err := p.machine.Step(c.clock(p), f.msg); err != nil {
				c.t.Fatalf("a sound message was refused: %v", err)
			}
		}
	}
	c.flights = append(c.flights, later...)
}

// step moves global time by one millisecond.
func (c *cluster) step() {
	c.now += time.Millisecond
	c.deliver()
	for _, p := range c.peers {
		if p.machine == nil || p.paused > c.now {
			continue
		}
		if now := c.clock(p); now >= p.nextTick {
			p.machine.Tick(now)
			p.nextTick = max(p.nextTick.Add(testTick), now) // never caught up
		}
		c.turn(p, noCrash)
	}
	c.check()
}

// check looks at all replicas at one instant: whoever holds a lease has no rival.
func (c *cluster) check() {
	for _, p := range c.peers {
		if p.machine == nil {
			continue
		}
		st := p.machine.Status()
		if st.Orderer {
			if _, ok := c.elected[st.Term]; !ok {
				c.elected[st.Term] = c.now
			}
		}
		if p.machine.LeaseUntil() <= c.clock(p) {
			continue
		}
		for _, q := range c.peers {
			if q.machine != nil && q.machine.Status().Orderer && q.machine.Status().Term > st.Term {
				c.violation = fmt.Sprintf("at %v replica %d holds a lease in term %d while %d leads term %d",
					c.now, p.id, st.Term, q.id, q.machine.Status().Term)
			}
		}
	}
}

func (c *cluster) run(d time.Duration) *cluster {
	for end := c.now + d; c.now < end; {
		c.step()
	}
	return c
}

// leader returns the replica that leads the highest term.
func (c *cluster) leader() *peer {
	var out *peer
	for _, p := range c.peers {
		if p.machine != nil && p.machine.Status().Orderer &&
			(out == nil || p.machine.Status().Term > out.machine.Status().Term) {
			out = p
		}
	}
	return out
}

// isolate cuts a replica off, or with others cuts it off from those alone.
func (c *cluster) isolate(id base.ReplicaID, others ...base.ReplicaID) {
	for _, p := range c.peers {
		if p.id != id && (len(others) == 0 || contains(others, p.id)) {
			c.cut[[2]base.ReplicaID{id, p.id}], c.cut[[2]base.ReplicaID{p.id, id}] = true, true
		}
	}
}

func contains(ids []base.ReplicaID, id base.ReplicaID) bool {
	for _, i := range ids {
		if i == id {
			return true
		}
	}
	return false
}

func (c *cluster) heal() { clear(c.cut) }

func (c *cluster) propose(p *peer, data string) (base.LogMark, error) {
	mark, err := p.machine.Propose([]byte(data))
	if err == nil {
		if was, ok := c.proposed[mark]; ok {
			c.t.Fatalf("mark %+v given out for %q and %q", mark, was, data)
		}
		c.proposed[mark] = data
	}
	return mark, err
}

// elect lets replica id lead.
func (c *cluster) elect(id base.ReplicaID) *peer {
	c.peer(id).machine.Campaign()
	c.run(20 * time.Millisecond)
	if l := c.leader(); l == nil || l.id != id {
		c.t.Fatalf("replica %d does not lead", id)
	}
	return c.peer(id)
}

func (c *cluster) converged() {
	c.t.Helper()
	for _, p := range c.peers {
		if p.applied != c.highest {
			c.t.Fatalf("replica %d applied %d of %d", p.id, p.applied, c.highest)
		}
	}
}
