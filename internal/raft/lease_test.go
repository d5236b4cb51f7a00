package raft

import (
	"testing"
	"testing/cryptotest"
	"time"

	"go.etcd.io/raft/v3/quorum"
	pb "go.etcd.io/raft/v3/raftpb"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/clock"
	"github.com/almanacdb/almanac/internal/effect"
)

const (
	testPromise = (testElection - 1) * testTick
	testLease   = testPromise / 10 * 9
)

func quiet(t *testing.T, n int) *cluster {
	cryptotest.SetGlobalRandom(t, 1)
	return newCluster(t, 1, n).startAll()
}

func (c *cluster) holds(p *peer) bool { return p.machine.HasLease(c.clock(p)) }

func TestLeaseIsCountedFromTheSendTime(t *testing.T) {
	c := quiet(t, 3)
	c.latency = func() time.Duration { return 15 * time.Millisecond }
	l := c.peer(1)
	l.machine.Campaign()
	for !l.machine.Status().Orderer {
		c.step()
	}
	elected := c.clock(l)
	for l.machine.LeaseUntil() == 0 {
		if c.holds(l) {
			t.Fatal("lease before a round came back")
		}
		c.step()
	}
	if d := c.clock(l).Sub(elected); d < 30*time.Millisecond {
		t.Fatalf("lease %v after the election, before a round trip", d)
	}
	if until := l.machine.LeaseUntil(); until > elected.Add(testLease+time.Millisecond) {
		t.Fatalf("lease until %v after the send", until.Sub(elected))
	}
}

func TestLeaseNeedsAQuorum(t *testing.T) {
	c := quiet(t, 5)
	l := c.elect(1)
	c.run(100 * time.Millisecond)
	if !c.holds(l) {
		t.Fatal("no lease with everyone there")
	}
	c.isolate(1, 2, 3)
	c.run(2 * testLease)
	if !c.holds(l) {
		t.Fatal("no lease with two of four followers")
	}
	c.isolate(1, 4)
	c.run(testLease + testTick)
	if c.holds(l) {
		t.Fatal("lease with one of four followers")
	}
	since := c.clock(l)
	l.machine.StartRound(since)
	c.run(10 * time.Millisecond)
	if l.machine.ConfirmedSince(since) {
		t.Fatal("confirmed by one of four followers")
	}
}

func TestConfirmedSince(t *testing.T) {
	c := quiet(t, 3)
	l := c.elect(1)
	since := c.clock(l)
	if l.machine.ConfirmedSince(since) {
		t.Fatal("confirmed before the round began")
	}
	l.machine.StartRound(since)
	if l.machine.ConfirmedSince(since) {
		t.Fatal("confirmed before anyone answered")
	}
	c.run(3 * time.Millisecond)
	if !l.machine.ConfirmedSince(since) {
		t.Fatal("not confirmed after a round trip")
	}
	if f := c.peer(2).machine; f.ConfirmedSince(1) || f.LeaseUntil() != 0 {
		t.Fatal("a follower confirms")
	}
}

func TestNoLeaseAfterTransfer(t *testing.T) {
	c := quiet(t, 3)
	l := c.elect(1)
	c.run(100 * time.Millisecond)
	term := l.machine.Status().Term
	l.machine.Transfer(9)
	l.machine.Transfer(1)
	if !c.holds(l) {
		t.Fatal("a transfer to nobody cost the lease")
	}
	c.cut[[2]base.ReplicaID{1, 2}] = true // the request is lost
	l.machine.Transfer(2)
	if c.holds(l) {
		t.Fatal("lease right after the transfer began")
	}
	c.run(time.Millisecond)
	c.heal()
	c.run(500 * time.Millisecond)
	st := l.machine.Status()
	if !st.Orderer || st.Term != term {
		t.Fatalf("the transfer was lost, yet %+v", st)
	}
	if c.holds(l) {
		t.Fatal("lease in the rest of the term")
	}
	if _, err := c.propose(l, "a"); err != nil {
		t.Fatalf("proposals after a failed transfer: %v", err)
	}
	l.machine.Transfer(2)
	c.run(100 * time.Millisecond)
	if l = c.leader(); l.id != 2 || !c.holds(l) {
		t.Fatalf("replica %d leads, lease %v", l.id, c.holds(l))
	}
	l.machine.Transfer(1)
	c.run(100 * time.Millisecond)
	if l = c.leader(); l.id != 1 || !c.holds(l) {
		t.Fatal("no lease in a later term")
	}
}

func TestSoleVoterAlwaysHoldsTheLease(t *testing.T) {
	c := quiet(t, 1)
	c.elect(1)
	c.run(time.Second)
	l := c.peer(1)
	if !c.holds(l) || !l.machine.ConfirmedSince(c.clock(l)) {
		t.Fatal("sole voter without lease")
	}
	c.restart(1)
	l.machine.Campaign()
	c.run(time.Millisecond)
	if !c.holds(l) {
		t.Fatal("a restarted sole voter waits")
	}
}

// TestRestartRule lets a replica forget its promise by a restart: without the rule it
// would elect a rival while the old leader holds its lease.
func TestRestartRule(t *testing.T) {
	for _, rule := range []bool{true, false} {
		c := quiet(t, 3)
		if !rule {
			c.afterRestart = func(m *Machine) { m.withheldUntil = 0 }
		}
		old := c.elect(1)
		c.isolate(3)
		for c.peer(3).machine.Status().Leader != 0 || c.now.Milliseconds()%20 != 0 {
			c.step()
		}
		c.heal()
		c.isolate(1) // its lease has most of its time left
		c.flights = nil
		if left := old.machine.LeaseUntil().Sub(c.clock(old)); left < testLease/2 {
			t.Fatalf("bad script: %v left of the lease", left)
		}
		c.restart(2)
		at := c.now
		c.peer(3).machine.Campaign()
		c.run(testLease / 2)
		if rule == (c.violation != "") {
			t.Fatalf("with the rule %v: %q", rule, c.violation)
		}
		if !rule {
			continue
		}
		for l := c.leader(); l == nil || l.id == 1; l = c.leader() {
			c.step()
		}
		if d := c.now - at; d < testPromise-time.Millisecond || d > 3*testElection*testTick {
			t.Fatalf("a new leader %v after the restart", d)
		}
	}
}

func TestRestartedReplicaDoesNotCampaign(t *testing.T) {
	c := quiet(t, 3)
	c.elect(1)
	c.isolate(2)
	c.restart(2)
	m, until := c.peer(2).machine, c.clock(c.peer(2)).Add(testPromise)
	term := m.Status().Term
	for c.clock(c.peer(2)) < until-clock.Mono(2*time.Millisecond) {
		m.Campaign()
		err := m.Step(c.clock(c.peer(2)), effect.Message{
			Range: testRange, From: 1, To: 2, Term: term, Type: effect.MessageType(pb.MsgTimeoutNow)})
		if err != nil {
			t.Fatal(err)
		}
		if m.HasReady() {
			t.Fatal("a restarted replica stirs")
		}
		c.step()
	}
	c.run(2 * testTick)
	m.Campaign()
	if !m.HasReady() {
		t.Fatal("still withheld after one promise")
	}
}

// TestPromiseOutlivesAHigherTerm has a replica learn of a higher term right after it
// handled its leader's round. Upstream then no longer protects that leader.
func TestPromiseOutlivesAHigherTerm(t *testing.T) {
	for _, promise := range []bool{true, false} {
		c := quiet(t, 3)
		c.elect(1)
		c.run(100 * time.Millisecond)
		p, m := c.peer(2), c.peer(2).machine
		st := m.Status()
		step := func(msg effect.Message) {
			t.Helper()
			msg.Range, msg.To = testRange, 2
			if err := m.Step(c.clock(p), msg); err != nil {
				t.Fatal(err)
			}
		}
		vote := effect.Message{
			From: 3, Type: effect.MessageType(pb.MsgVote), Term: st.Term + 1, Index: st.LastIndex, LogTerm: st.LastTerm,
		}
		granted := func() bool {
			for m.HasReady() {
				rd := m.Ready(c.clock(p))
				done(m, c.clock(p), rd)
				for _, msg := range rd.Late {
					if pb.MessageType(msg.Type) == pb.MsgVoteResp && !msg.Reject {
						return true
					}
				}
			}
			return false
		}
		step(effect.Message{From: 1, Type: effect.MessageType(pb.MsgHeartbeat), Term: st.Term, Round: 1})
		step(effect.Message{From: 3, Type: effect.MessageType(pb.MsgPreVoteResp), Term: st.Term + 1, Reject: true})
		if !promise {
			m.promisedUntil = 0
		}
		step(vote)
		if granted() == promise {
			t.Fatalf("with the promise %v, vote granted: %v", promise, !promise)
		}
		if promise {
			c.now += testPromise + time.Millisecond
			step(vote)
			if !granted() {
				t.Fatal("no vote after the promise ended")
			}
		}
	}
}

// TestPromiseNeedsNoTicks has a host tick in a burst right after a leader's round.
func TestPromiseNeedsNoTicks(t *testing.T) {
	c := quiet(t, 3)
	c.elect(1)
	c.run(100 * time.Millisecond)
	p, m := c.peer(2), c.peer(2).machine
	term := m.Status().Term
	beat := effect.Message{
		Range: testRange, From: 1, To: 2, Type: effect.MessageType(pb.MsgHeartbeat), Term: term, Round: 1,
	}
	grant := beat
	grant.From, grant.Type, grant.Term, grant.Round = 3, effect.MessageType(pb.MsgPreVoteResp), term+1, 0
	if err := m.Step(c.clock(p), beat); err != nil {
		t.Fatal(err)
	}
	m.Campaign()
	if m.Status().Leader != 1 {
		t.Fatal("campaigns against its promise")
	}
	for range 3 * testElection {
		m.Tick(c.clock(p))
	}
	if m.Status().Leader != 0 {
		t.Fatal("bad script: the timeout has not passed")
	}
	c.turn(p, noCrash)
	if err := m.Step(c.clock(p), grant); err != nil || m.Status().Term != term {
		t.Fatalf("stands for term %d against its promise, %v", m.Status().Term, err)
	}
	c.now += testPromise + time.Millisecond
	if err := m.Step(c.clock(p), grant); err != nil || m.Status().Term != term+1 {
		t.Fatalf("in term %d after the promise, %v", m.Status().Term, err)
	}
}

// TestEchoStaysInItsTerm has a follower answer two leaders in one turn.
func TestEchoStaysInItsTerm(t *testing.T) {
	c := quiet(t, 3)
	c.elect(1)
	p, m := c.peer(2), c.peer(2).machine
	term := m.Status().Term
	for i, from := range []base.ReplicaID{1, 3} {
		err := m.Step(c.clock(p), effect.Message{
			Range: testRange, From: from, To: 2, Type: effect.MessageType(pb.MsgHeartbeat),
			Term: term + uint64(i), Round: int64(c.clock(p)) + int64(from),
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	rd := m.Ready(c.clock(p))
	if len(rd.Early) != 2 || rd.Early[0].To != 1 || rd.Early[0].Round != 0 || rd.Early[1].Round != int64(c.clock(p))+3 {
		t.Fatalf("%+v", rd.Early)
	}
}

func TestEchoedRounds(t *testing.T) {
	c := quiet(t, 3)
	l := c.elect(1)
	st := l.machine.Status()
	resp := effect.Message{
		Range: testRange, From: 2, To: 1, Term: st.Term, Type: effect.MessageType(pb.MsgHeartbeatResp),
		Round: int64(c.clock(l).Add(time.Hour)),
	}
	before := l.machine.LeaseUntil()
	if err := l.machine.Step(c.clock(l), resp); err == nil {
		t.Fatal("a round from the future was taken")
	}
	resp.From, resp.Round = 3, 1
	if err := l.machine.Step(c.clock(l), resp); err != nil {
		t.Fatal(err)
	}
	if l.machine.LeaseUntil() != before {
		t.Fatal("an old echo moved the lease")
	}
}

// TestJointQuorum needs both configurations to agree.
func TestJointQuorum(t *testing.T) {
	ids := func(ids ...uint64) quorum.MajorityConfig {
		out := quorum.MajorityConfig{}
		for _, id := range ids {
			out[id] = struct{}{}
		}
		return out
	}
	r := rounds{self: 1, echoed: make(map[base.ReplicaID]clock.Mono)}
	r.reset(quorum.JointConfig{ids(1, 2, 3), ids(1, 4, 5)})
	for _, s := range []struct {
		from base.ReplicaID
		at   clock.Mono
		want clock.Mono
	}{{2, 50, 0}, {3, 60, 0}, {4, 40, 40}, {5, 70, 60}, {9, 99, 60}, {4, 10, 60}} {
		r.echo(s.from, s.at)
		if r.quorum != s.want {
			t.Fatalf("after %d echoed %d: %d, want %d", s.from, s.at, r.quorum, s.want)
		}
	}
	r.reset(quorum.JointConfig{ids(2, 3, 4)}) // the leader is no voter
	r.echo(2, 50)
	if r.quorum != 0 {
		t.Fatalf("one of three voters: %d", r.quorum)
	}
	r.echo(3, 30)
	if r.quorum != 30 {
		t.Fatalf("two of three voters: %d", r.quorum)
	}
	r.reset(quorum.JointConfig{})
	if r.quorum != 0 {
		t.Fatal("a group without voters agrees")
	}
}
