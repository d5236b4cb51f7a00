package raft

import (
	"testing"
	"testing/cryptotest"
	"time"

	"github.com/almanacdb/almanac/internal/base"
)

// told has all replicas told that one is gone, every millisecond as long as it lasts.
func (c *cluster) told(gone base.ReplicaID, d time.Duration) {
	for end := c.now + d; c.now < end; c.step() {
		for _, p := range c.peers {
			if p.machine != nil {
				p.machine.LeaderGone(gone)
			}
		}
	}
}

// successor kills the leader, tells the others, and returns who leads next and after how
// long.
func (c *cluster) successor(gone base.ReplicaID) (next *peer, took time.Duration) {
	c.crash(c.peer(gone))
	at := c.now
	c.run(50 * time.Millisecond) // it takes a while to find out
	for c.leader() == nil {
		if c.told(gone, time.Millisecond); c.now-at > time.Minute {
			c.t.Fatal("nobody leads")
		}
	}
	return c.leader(), c.now - at
}

// A leader that died is followed as soon as promises to it have run out, not earlier, and
// without a vote that is split: whenever it died, and however the others' ticks lie.
func TestADeadLeaderIsFollowedWhenPromisesEnd(t *testing.T) {
	const seeds = 200
	second, late := 0, 0
	for seed := uint64(1); seed <= seeds; seed++ {
		cryptotest.SetGlobalRandom(t, seed)
		c := newCluster(t, seed, 3).startAll()
		for _, p := range c.peers {
			p.nextTick = p.nextTick.Add(time.Duration(c.rng.Int64N(int64(testTick))))
		}
		c.elect(1)
		c.run(time.Second + time.Duration(c.rng.Int64N(int64(time.Second))))
		promised := c.clock(c.peer(2)) - c.peer(2).machine.promisedUntil // below 0
		term := c.peer(2).machine.Status().Term
		next, took := c.successor(1)
		if took < -time.Duration(promised) {
			t.Fatalf("seed %d: replica %d leads after %v, %v before promises end", seed, next.id, took, -time.Duration(promised)-took)
		}
		if got := next.machine.Status().Term; got != term+1 || took > testPromise+2*testTick {
			t.Logf("seed %d: replica %d leads term %d after %d, after %v", seed, next.id, got, term, took)
			late++
		}
		if took > testPromise+4*standingTicks*testTick {
			t.Errorf("seed %d: replica %d leads after %v", seed, next.id, took)
		}
		if next.id != 2 {
			second++
		}
		if c.violation != "" {
			t.Fatal(c.violation)
		}
	}
	// Elections that silence begins can still get in the way.
	if second > seeds/10 || late > seeds/50 {
		t.Errorf("of %d times, the first in order did not lead %d times, and votes were split %d times", seeds, second, late)
	}
}

// Who is first may be dead too, or lack what is committed: then the next one leads.
func TestTheNextInOrderStandsIfTheFirstCannotLead(t *testing.T) {
	t.Run("dead", func(t *testing.T) {
		c := quiet(t, 5)
		c.elect(1)
		c.run(time.Second)
		c.crash(c.peer(2))
		if next, took := c.successor(1); next.id != 3 || took > testPromise+(standingTicks+2)*testTick {
			t.Errorf("replica %d leads after %v", next.id, took)
		}
	})
	t.Run("behind", func(t *testing.T) {
		// Its promise ends first, so it stands in vain twice.
		c := quiet(t, 3)
		l := c.elect(1)
		c.run(time.Second)
		c.isolate(1, 2)
		if _, err := c.propose(l, "x"); err != nil {
			t.Fatal(err)
		}
		c.run(20 * time.Millisecond)
		if next, took := c.successor(1); next.id != 3 || took > testPromise+3*standingTicks*testTick {
			t.Errorf("replica %d leads after %v", next.id, took)
		}
	})
}

// A leader that is alive stays, whatever others are told of it, and wherever it is cut off
// from some of them.
func TestALeaderThatLivesStays(t *testing.T) {
	for _, cut := range [][]base.ReplicaID{nil, {2}, {3}} {
		c := quiet(t, 3)
		l := c.elect(1)
		c.run(time.Second)
		term := l.machine.Status().Term
		if cut != nil {
			c.isolate(1, cut...)
		}
		c.told(1, 20*testElection*testTick)
		if st := l.machine.Status(); !st.Orderer || st.Term != term || !c.holds(l) || c.violation != "" {
			t.Errorf("cut off from %v: %+v, %s", cut, st, c.violation)
		}
		c.heal()
		c.run(time.Second)
		if st := c.peer(3).machine.Status(); st.Leader != 1 || c.peer(3).machine.succession.gone != 0 {
			t.Errorf("cut off from %v: replica 3 follows %d", cut, st.Leader)
		}
	}
}

// Without being told, silence alone tells, for a whole election timeout at least.
func TestAnUntoldReplicaWaits(t *testing.T) {
	for seed := uint64(1); seed <= 20; seed++ {
		cryptotest.SetGlobalRandom(t, seed)
		c := newCluster(t, seed, 3).startAll()
		c.elect(1)
		c.run(time.Second)
		c.isolate(1)
		at := c.now
		for l := c.leader(); l == nil || l.id == 1; l = c.leader() {
			c.step()
		}
		if took := c.now - at; took < (testElection-2)*testTick || took > 6*testElection*testTick {
			t.Errorf("seed %d: another leads after %v", seed, took)
		}
	}
}
