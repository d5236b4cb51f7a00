package replica

import (
	"fmt"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/clock"
	"github.com/almanacdb/almanac/internal/command"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/oracle"
	"github.com/almanacdb/almanac/internal/plant"
)

// StampRequest asks the oracle for N consecutive timestamps.
type StampRequest struct {
	N    int
	Done func(first base.Timestamp, err error) // on the worker; must not block

	since clock.Mono
}

// ClockSample is a voter's wall clock, which counts as of its receipt, or that the call
// for it failed.
type ClockSample struct {
	Node   base.NodeID
	WallMS int64
	Failed bool       // no answer will come to what was asked at Asked
	Asked  clock.Mono // by the node's clock, once Env.Samples was called
}

// oracleRole runs the oracle while the system range's replica is the orderer.
type oracleRole struct {
	oracle  *oracle.Oracle
	leading bool
	status  *oracle.Status  // as of the last tick
	waiting []*StampRequest // the quorum's word that this is the orderer is missing
	shown   base.Timestamp  // the last bound told to the oracle
}

func (o *oracleRole) lead(r *Replica, now clock.Mono) {
	var voters []base.NodeID
	for _, rep := range r.state.Descriptor.Replicas {
		if rep.Role == base.RoleVoter {
			voters = append(voters, rep.Node)
		}
	}
	o.oracle.Lead(r.status.Term, r.opts.Node, voters, now)
	o.leading = true
	o.step(r, now)
}

func (o *oracleRole) ready(r *Replica, now clock.Mono) {
	o.shown = r.state.Bound
	o.oracle.Ready(r.state.Bound, now)
	o.step(r, now)
}

func (o *oracleRole) bound(r *Replica, now clock.Mono) {
	if r.serving && r.state.Bound > o.shown {
		o.shown = r.state.Bound
		o.oracle.BoundApplied(r.state.Bound, now)
	}
}

func (o *oracleRole) stepDown(why error) {
	o.oracle.StepDown()
	o.leading = false
	for _, q := range o.waiting {
		q.Done(0, why)
	}
	o.waiting = nil
}

// step carries out what the oracle wants done.
func (o *oracleRole) step(r *Replica, now clock.Mono) {
	fx := o.oracle.Tick(now)
	if fx.Sample {
		var nodes []base.NodeID
		for _, rep := range r.state.Descriptor.Replicas {
			nodes = append(nodes, rep.Node)
		}
		r.env.Samples(r.id, nodes)
	}
	if fx.Bound != 0 {
		env, err := command.Encode(command.Header{Kind: command.KindSetBound}, &command.SetBound{Bound: fx.Bound})
		if err != nil {
			panic(fmt.Sprintf("invariant violated: a bound does not encode: %v", err))
		}
		r.append(&Proposal{Envelope: env, Done: func(command.Result, error) {}}, 0)
	}
	if fx.Transfer != 0 {
		if rep, ok := r.state.Descriptor.ReplicaOn(fx.Transfer); ok {
			r.opts.Logger.Warn("this node's clock is off; handing the oracle over", "to", fx.Transfer)
			r.transfer(now, Transfer{To: rep.Replica})
		}
	}
	for _, e := range fx.Events {
		r.opts.Logger.Info("oracle", "event", fmt.Sprint(e))
	}
}

func (r *Replica) oracleWake(now clock.Mono) clock.Mono {
	if r.oracle == nil || !r.oracle.leading {
		return 0
	}
	return r.oracle.oracle.NextWake(now)
}

func (r *Replica) oraclePoke(now clock.Mono) {
	if at := r.oracleWake(now); at != 0 && at <= now {
		r.oracle.step(r, now)
	}
}

func (r *Replica) clockSample(now clock.Mono, s ClockSample) {
	if r.oracle == nil || !r.oracle.leading {
		return
	}
	if s.Failed {
		r.oracle.oracle.Failed(s.Node, s.Asked, now)
	} else {
		r.oracle.oracle.Sampled(s.Node, s.WallMS, now)
	}
	r.oracle.step(r, now)
}

// stampRequest answers under the lease, or after a quorum round that began after the
// request arrived (T1).
func (r *Replica) stampRequest(now clock.Mono, q *StampRequest) {
	switch {
	case r.oracle == nil:
		q.Done(0, fault.New(fault.Invalid, "range %d has no oracle", r.id))
	case !r.status.Orderer:
		q.Done(0, r.notLeader())
	case !r.serving:
		q.Done(0, fault.New(fault.Unavailable, "the oracle's node has just become leader of the system range").OnRange(r.id))
	case r.machine.HasLease(now) || plant.On(plant.OracleWithoutLease):
		q.Done(r.oracle.oracle.Issue(q.N, now))
	case len(r.oracle.waiting) >= r.opts.MaxQueued:
		q.Done(0, r.busy())
	default:
		if len(r.oracle.waiting) == 0 {
			r.machine.StartRound(now)
		}
		q.since = now
		r.oracle.waiting = append(r.oracle.waiting, q)
	}
}

func (r *Replica) answerStamps(now clock.Mono) {
	o := r.oracle
	if len(o.waiting) == 0 {
		return
	}
	lease, asked := r.machine.HasLease(now), len(o.waiting)
	keep := o.waiting[:0]
	for _, q := range o.waiting {
		if lease || r.machine.ConfirmedSince(q.since) {
			q.Done(o.oracle.Issue(q.N, now))
		} else {
			keep = append(keep, q)
		}
	}
	clear(o.waiting[len(keep):])
	o.waiting = keep
	if len(keep) > 0 && len(keep) < asked {
		r.machine.StartRound(now) // for those that came after the round that is over
	}
}
