package raft

import (
	"math"
	"time"

	"go.etcd.io/raft/v3/quorum"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/clock"
	"github.com/almanacdb/almanac/internal/plant"
)

// Leases. A leader stamps each round of appends or heartbeats with its send time. A
// replica that handles one promises, from then on for a promise's length, to help no
// one else to lead: it gives no vote and wins no pre-vote. It echoes the highest round
// handled in the term. A round that a quorum echoed was sent before each of them
// promised, so until its send time plus something shorter than a promise every other
// quorum lacks a replica that would vote.
//
// The promise is kept by monotonic time here, not by upstream's ticks: upstream forgets
// its leader, and with it its own protection, whenever it meets a higher term. Only
// votes on behalf of a leadership transfer pass; that leader gave up its lease first.
// A restarted replica can't know what it promised and acts as if it just had.

// leaseDuration is what a leader counts on: a tenth below the promise, so that clocks
// may run apart by as much.
func leaseDuration(tick time.Duration, electionTicks int) time.Duration {
	if plant.On(plant.LeaseTooLong) {
		return promiseDuration(tick, electionTicks) * 2
	}
	return promiseDuration(tick, electionTicks) / 10 * 9
}

// promiseDuration is below the election timeout, however the ticks fall, so a promise
// delays no election.
func promiseDuration(tick time.Duration, electionTicks int) time.Duration {
	return time.Duration(electionTicks-1) * tick
}

// rounds is the leader's side for one term, and the follower's.
type rounds struct {
	self   base.ReplicaID
	voters quorum.JointConfig

	sent        clock.Mono                    // the latest stamp given out in this term
	echoed      map[base.ReplicaID]clock.Mono // the highest stamp that came back
	quorum      clock.Mono                    // the highest stamp that a quorum echoed
	transferred bool                          // a transfer was started in this term

	handled clock.Mono // the highest stamp of the term's leader handled here
}

// always stands for a leader's agreement with itself.
const always = clock.Mono(math.MaxInt64)

// reset starts a term, or a configuration.
func (r *rounds) reset(voters quorum.JointConfig) {
	*r = rounds{self: r.self, voters: voters, echoed: r.echoed}
	clear(r.echoed)
	r.count()
}

// echo counts a stamp that came back from a replica.
func (r *rounds) echo(from base.ReplicaID, stamp clock.Mono) {
	if stamp > r.echoed[from] {
		r.echoed[from] = stamp
		r.count()
	}
}

func (r *rounds) count() {
	if len(r.voters[0]) == 0 {
		r.quorum = 0
		return
	}
	r.quorum = clock.Mono(r.voters.CommittedIndex(r))
}

// AckedIndex implements quorum.AckedIndexer: a quorum agrees on a stamp as it does on
// an index.
func (r *rounds) AckedIndex(id uint64) (quorum.Index, bool) {
	if base.ReplicaID(id) == r.self {
		return quorum.Index(always), true
	}
	stamp, ok := r.echoed[base.ReplicaID(id)]
	return quorum.Index(stamp), ok
}

// LeaseUntil returns when this leader's lease ends; 0 when it holds none. A sole
// voter's lease counts from the last time that the machine was told.
func (m *Machine) LeaseUntil() clock.Mono {
	switch {
	case !m.status.Orderer || m.rounds.transferred && !plant.On(plant.LeaseAfterTransfer) || m.rounds.quorum == 0:
		return 0
	case m.rounds.quorum == always:
		return m.now.Add(m.lease)
	}
	return m.rounds.quorum.Add(m.lease)
}

// HasLease says whether no other replica can lead at now.
func (m *Machine) HasLease(now clock.Mono) bool {
	m.at(now)
	return now < m.LeaseUntil() || plant.On(plant.LeaseExpired) && m.LeaseUntil() != 0
}

// ConfirmedSince says whether a quorum acknowledged, in this term, a round sent at or
// after t: then this replica still led at some instant after t.
func (m *Machine) ConfirmedSince(t clock.Mono) bool {
	return m.status.Orderer && m.rounds.quorum != 0 && (m.rounds.quorum >= t || plant.On(plant.OldRound))
}

// at notes the time; it never goes back.
func (m *Machine) at(now clock.Mono) { m.now = max(m.now, now) }

// bound says whether a promise, or the rule for restarts, keeps this replica from
// helping anyone to lead now.
func (m *Machine) bound() bool {
	return m.now < max(m.promisedUntil, m.withheldUntil) && !m.soleVoter()
}

// withheld says whether the rule for restarts holds now; unlike a promise it withstands
// transfers, and elections are not even attempted.
func (m *Machine) withheld() bool { return m.now < m.withheldUntil && !m.soleVoter() }

func (m *Machine) soleVoter() bool {
	_, self := m.rounds.voters[0][uint64(m.opts.Replica)]
	return self && len(m.rounds.voters[0]) == 1 && len(m.rounds.voters[1]) == 0
}
