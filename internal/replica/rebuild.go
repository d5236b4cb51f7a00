package replica

import (
	"slices"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/clock"
	"github.com/almanacdb/almanac/internal/effect"
	"github.com/almanacdb/almanac/internal/fault"
)

// RebuildRequest asks a whole replica for what another one, which lost all that it had
// saved, must know before it takes part again; see the store's DESIGN.md.
type RebuildRequest struct {
	Replica  base.ReplicaID // that asks
	Deadline clock.Mono     // 0 means none
	// Done is called once, on the worker; it must not block.
	Done func(RebuildAnswer, error)

	since clock.Mono
	last  uint64
}

// RebuildAnswer is what a replica says of itself.
type RebuildAnswer struct {
	Term uint64 // at least any term in which it ever sent a message
	// Orderer says that a quorum confirmed it after the request came, and that it has
	// applied up to Last, its last index when the request came. A snapshot follows.
	Orderer bool
	Last    uint64
}

// rebuild answers at once but at the orderer, where the quorum's word is needed. A lease
// would not do: the promises that it rests on may be those of the replica that asks.
func (r *Replica) rebuild(now clock.Mono, q *RebuildRequest) {
	rep := slices.IndexFunc(r.state.Descriptor.Replicas, func(d base.ReplicaDescriptor) bool { return d.Replica == q.Replica })
	if rep < 0 || q.Replica == r.state.Replica {
		q.Done(RebuildAnswer{}, fault.New(fault.Invalid, "range %d has no other replica %d", r.id, q.Replica).OnRange(r.id))
		return
	}
	if !r.serving {
		q.Done(RebuildAnswer{Term: r.machine.Status().Term}, nil)
		return
	}
	// One request of each replica, so there are few.
	r.rebuilds = slices.DeleteFunc(r.rebuilds, func(old *RebuildRequest) bool {
		if old.Replica == q.Replica {
			old.Done(RebuildAnswer{}, fault.New(fault.Busy, "replica %d of range %d asked again", q.Replica, r.id).OnRange(r.id))
		}
		return old.Replica == q.Replica
	})
	q.since, q.last = now, r.machine.Status().LastIndex
	r.rebuilds = append(r.rebuilds, q)
	r.machine.StartRound(now)
}

// answerRebuilds answers the requests that a quorum has confirmed and whose entries are
// applied, and sends the snapshot that each is for.
func (r *Replica) answerRebuilds() {
	r.rebuilds = slices.DeleteFunc(r.rebuilds, func(q *RebuildRequest) bool {
		if !r.machine.ConfirmedSince(q.since) || r.state.Applied.Index < q.last || r.snap.sending {
			return false
		}
		// Of no type that the machine knows: the receiver's store alone takes it in. The
		// engine is exactly at the applied mark, as nothing is applied before this returns.
		r.snap.sending = r.env.SendSnapshot(&r.state.Descriptor, effect.Message{
			Range: r.id, From: r.state.Replica, To: q.Replica, Term: r.status.Term,
			Snapshot: &effect.SnapshotMeta{Mark: r.state.Applied}, ConfigEpoch: r.state.Descriptor.ConfigEpoch,
		})
		if r.snap.sending {
			q.Done(RebuildAnswer{Term: r.status.Term, Orderer: true, Last: q.last}, nil)
		}
		return r.snap.sending // else with a later turn, a tick's at the latest
	})
}

func (r *Replica) failRebuilds(why error) {
	for _, q := range r.rebuilds {
		q.Done(RebuildAnswer{}, why)
	}
	r.rebuilds = nil
}

func (r *Replica) expireRebuilds(now clock.Mono) {
	r.rebuilds = slices.DeleteFunc(r.rebuilds, func(q *RebuildRequest) bool {
		if expired(q.Deadline, now) {
			q.Done(RebuildAnswer{}, r.noMajority())
			return true
		}
		return false
	})
}
