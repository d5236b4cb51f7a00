package raft

import "github.com/almanacdb/almanac/internal/base"

// Succession. A follower tells a leader that died from one that is slow by its silence
// alone, and waits a random time on top, so that followers do not stand against each other.
// One that is told that the leader's process is gone need not guess: it forgets the leader
// and stands as soon as its promise has run out, in the order of replica ids. Promises and
// leases are as long as ever, and what it was told may be wrong: a leader that is alive
// takes it back with its next message, and whoever has heard one lately helps nobody.

// standingTicks are left to who stands until the next replica in order does: longer than
// an election takes, and than the ticks of two replicas lie apart.
const standingTicks = 2

// succession is what a follower knows of a leader whose process is gone.
type succession struct {
	gone base.ReplicaID // 0: nothing is known
	wait int            // ticks until this replica stands, counted while nothing binds it
}

// LeaderGone says that the process of a replica no longer runs. It matters only if that
// replica leads.
func (m *Machine) LeaderGone(id base.ReplicaID) {
	if id == 0 || id != m.status.Leader || id == m.opts.Replica || id == m.succession.gone {
		return
	}
	m.succession.gone = id
	_, place := m.order(0)
	m.succession.wait = place * standingTicks
}

// order returns how many voters may succeed the leader that is gone, and how many of them
// stand between after and this one; after 0: before this one.
func (m *Machine) order(after base.ReplicaID) (heirs, between int) {
	self := m.opts.Replica
	for v := range m.rounds.voters.IDs() {
		switch id := base.ReplicaID(v); {
		case id == m.succession.gone:
			continue
		case after < self && after < id && id < self, after > self && (id > after || id < self):
			between++
		}
		heirs++
	}
	return heirs, between
}

// succeed stands for election when it is this replica's turn. Called with every tick.
func (m *Machine) succeed() {
	s := &m.succession
	switch {
	case s.gone == 0 || m.bound():
	case m.status.Leader != 0 && m.status.Leader != s.gone:
		*s = succession{}
	case s.wait > 0:
		m.forgetLeader()
		s.wait--
	default:
		m.forgetLeader()
		// All others have their turn before this one's next. Two that stood at the same
		// time do not do so again.
		heirs, place := m.order(0)
		s.wait = heirs*standingTicks + place
		m.Campaign()
	}
}

// yield leaves time to another replica that stands, and to those between it and this one.
func (m *Machine) yield(to base.ReplicaID) {
	if s := &m.succession; s.gone != 0 {
		_, between := m.order(to)
		s.wait = max(s.wait, (1+between)*standingTicks)
	}
}

// forgetLeader makes upstream believe that there is no leader, if the leader is gone and
// nothing binds this replica; else upstream would help nobody for some ticks more.
func (m *Machine) forgetLeader() {
	if s := &m.succession; s.gone != 0 && s.gone == m.status.Leader && !m.bound() {
		_ = m.node.ForgetLeader() // never fails without upstream's lease reads
		m.observe()
	}
}
