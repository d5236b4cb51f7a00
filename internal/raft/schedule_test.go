package raft

import (
	"fmt"
	"testing"
	"testing/cryptotest"
	"time"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/clock"
)

// round is a quorum round that a leader began.
type pendingRound struct {
	p       *peer
	machine *Machine
	term    uint64
	since   clock.Mono
	at      time.Duration
}

// chaos runs a cluster through a random schedule: loss, delay, duplicates and with them
// reordering, cut links, pauses, crashes within turns, truncated logs, transfers and
// campaigns at bad moments, disks behind by several saves, clocks that drift apart by up to 8 %.
func chaos(c *cluster, d time.Duration) {
	rng := c.rng
	c.lazy = rng.IntN(4) > 0
	for _, p := range c.peers {
		p.rate = 0.96 + 0.08*rng.Float64()
	}
	c.latency = func() time.Duration {
		switch n := rng.IntN(100); {
		case n < 5:
			return -1
		case n < 10:
			return time.Duration(rng.IntN(150)) * time.Millisecond
		}
		return time.Duration(rng.IntN(8)) * time.Millisecond
	}
	var rounds []pendingRound
	for end := c.now + d; c.now < end && c.violation == ""; {
		for _, p := range c.peers {
			if p.machine == nil {
				if c.now >= p.downTo {
					c.start(p, true)
				}
				continue
			}
			if st := p.machine.Status(); st.Orderer && p.paused <= c.now {
				if rng.IntN(4) == 0 {
					_, _ = c.propose(p, fmt.Sprintf("%d at %v", p.id, c.now))
				}
				if rng.IntN(20) == 0 {
					p.machine.StartRound(c.clock(p))
					rounds = append(rounds, pendingRound{p, p.machine, st.Term, c.clock(p), c.now})
				}
			}
			switch n := rng.IntN(1500); {
			case n < 3:
				crash := noCrash + rng.IntN(4)
				c.turn(p, crash)
				c.crash(p)
				p.downTo = c.now + time.Duration(rng.IntN(60))*time.Millisecond
			case n < 5:
				p.paused = c.now + time.Duration(rng.IntN(150))*time.Millisecond
			case n < 8:
				p.machine.Campaign()
			case n < 10:
				p.machine.Transfer(base.ReplicaID(1 + rng.IntN(len(c.peers))))
			case n < 20 && p.applied > p.log.First()+5:
				p.log.truncate(p.applied - uint64(rng.IntN(5)))
			}
		}
		if rng.IntN(50) == 0 {
			c.heal()
			for range rng.IntN(3) {
				a, b := base.ReplicaID(1+rng.IntN(len(c.peers))), base.ReplicaID(1+rng.IntN(len(c.peers)))
				if rng.IntN(3) == 0 {
					c.isolate(a)
				} else if a != b {
					c.cut[[2]base.ReplicaID{a, b}] = true
				}
			}
		}
		if n := len(c.flights); n > 0 && rng.IntN(10) == 0 {
			again := c.flights[rng.IntN(n)]
			again.at += time.Duration(rng.IntN(100)) * time.Millisecond
			c.flights = append(c.flights, again)
		}
		c.step()
		rounds = c.checkRounds(rounds)
	}
}

// checkRounds checks that a confirmed round had no leader of a later term before it.
func (c *cluster) checkRounds(rounds []pendingRound) []pendingRound {
	var keep []pendingRound
	for _, r := range rounds {
		st := r.machine.Status()
		if r.p.machine != r.machine || !st.Orderer || st.Term != r.term {
			continue
		}
		if !r.machine.ConfirmedSince(r.since) {
			keep = append(keep, r)
			continue
		}
		for term, at := range c.elected {
			if term > r.term && at < r.at {
				c.violation = fmt.Sprintf("round of term %d begun at %v is confirmed, but term %d had a leader at %v",
					r.term, r.at, term, at)
			}
		}
	}
	return keep
}

// settle ends the chaos and demands that everyone arrives at the same log.
func settle(c *cluster) {
	c.heal()
	c.latency = func() time.Duration { return time.Millisecond }
	for _, p := range c.peers {
		p.paused = 0
		if p.machine == nil {
			c.start(p, true)
		}
	}
	c.run(2 * time.Second)
	l := c.leader()
	if l == nil {
		c.t.Fatal("no leader after two quiet seconds")
	}
	if _, err := c.propose(l, "last"); err != nil {
		c.t.Fatal(err)
	}
	c.run(200 * time.Millisecond)
	c.converged()
	if string(c.committed[c.highest].Data) != "last" {
		c.t.Fatal("the last proposal was not committed")
	}
}

func TestRandomSchedules(t *testing.T) {
	seeds := 30
	if testing.Short() {
		seeds = 5
	}
	commands, terms := 0, 0
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			cryptotest.SetGlobalRandom(t, uint64(seed))
			c := newCluster(t, uint64(seed), 3+2*(seed%2)).startAll()
			c.options = func(o *Options) { o.CacheBytes = 1 + int(c.rng.IntN(4000)) }
			chaos(c, 4*time.Second)
			if c.violation != "" {
				t.Fatal(c.violation)
			}
			settle(c)
			commands += int(c.highest)
			terms += len(c.elected)
		})
	}
	t.Logf("%d entries, %d terms", commands, terms)
	if !t.Failed() && (commands < 50*seeds || terms < 4*seeds) {
		t.Errorf("schedules too tame: %d entries, %d terms", commands, terms)
	}
}

// TestPlantedBugs shows that the schedules find what the rules prevent. The rule for
// restarts and the promise have scripts of their own: their violations are rarer.
func TestPlantedBugs(t *testing.T) {
	for name, plant := range map[string]func(*cluster){
		"lease kept in transfer": func(c *cluster) {
			c.everyTurn = func(m *Machine) { m.rounds.transferred = false }
		},
		"lease counted from receipt": func(c *cluster) {
			c.everyTurn = func(m *Machine) {
				if m.rounds.quorum != 0 && m.rounds.quorum != always {
					m.rounds.quorum = m.now
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			for seed := range 50 {
				found := ""
				t.Run(fmt.Sprint(seed), func(t *testing.T) {
					cryptotest.SetGlobalRandom(t, uint64(seed))
					c := newCluster(t, uint64(seed), 3).startAll()
					plant(c)
					chaos(c, 4*time.Second)
					found = c.violation
				})
				if found != "" {
					t.Logf("seed %d: %s", seed, found)
					return
				}
			}
			t.Error("not found")
		})
	}
}
