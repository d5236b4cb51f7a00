package replica

import (
	"slices"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/clock"
	"github.com/almanacdb/almanac/internal/command"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/plant"
)

// Proposal asks a range to order a command.
type Proposal struct {
	// Envelope is the encoded command, unstamped; the replica owns it from then on.
	Envelope []byte
	// Deadline ends the wait; 0 means none. Before the command was appended, the
	// answer is then that nothing was done; after, that its outcome is unknown.
	Deadline clock.Mono
	// Done is called once, on the worker; it must not block. A Result with a Refusal
	// had no effect.
	Done func(command.Result, error)

	stamped   bool
	restamped bool
}

// waitingWrite is a proposal in the log whose fate is not known yet.
type waitingWrite struct {
	mark base.LogMark
	p    *Proposal
}

// writeQueue holds proposals from their arrival until their answer.
type writeQueue struct {
	early     []any          // items that came before the first entry of the term was applied
	unstamped []*Proposal    // no timestamp asked for yet
	waiting   []waitingWrite // appended, by index
	lastStamp base.Timestamp // highest stamp appended in this term, or applied before it
	behind    int            // proposals that were restamped and not yet appended
}

func (r *Replica) propose(p *Proposal) {
	h, err := command.DecodeHeader(p.Envelope)
	if err != nil {
		p.Done(command.Result{}, err)
		return
	}
	p.stamped = h.Kind.Stamped()
	switch {
	case !r.status.Orderer:
		p.Done(command.Result{}, r.notLeader())
	case !r.serving:
		r.holdEarly(p, func(err error) { p.Done(command.Result{}, err) })
	case len(r.writes.unstamped) >= r.opts.MaxQueued:
		p.Done(command.Result{}, r.busy())
	case p.stamped:
		r.writes.unstamped = append(r.writes.unstamped, p)
	default:
		r.append(p, 0)
	}
}

func (r *Replica) busy() *fault.Error {
	return fault.New(fault.Busy, "range %d has too many requests waiting", r.id).
		OnRange(r.id).WithRemedy("slow down and try again")
}

// holdEarly keeps an item until this orderer may serve.
func (r *Replica) holdEarly(item any, refuse func(error)) {
	if len(r.writes.early) >= r.opts.MaxQueued {
		refuse(r.busy())
		return
	}
	r.writes.early = append(r.writes.early, item)
}

// append puts a proposal into the log. The stamp is above promised and above every
// stamp appended before, checked by the caller in this same turn (K4).
func (r *Replica) append(p *Proposal, stamp base.Timestamp) {
	if p.restamped {
		p.restamped = false
		r.writes.behind--
	}
	if p.stamped {
		command.SetStamp(p.Envelope, stamp)
	}
	mark, err := r.machine.Propose(p.Envelope)
	if err != nil {
		p.Done(command.Result{}, fault.As(err).OnRange(r.id))
		return
	}
	if p.stamped {
		r.writes.lastStamp = stamp
	}
	r.writes.add(mark, p)
}

// add books a write that was appended at mark. One of an earlier term that stands at the
// same index or above is not answered yet: this orderer's log does not hold it, but until
// something is committed there a replica that holds it may still come to order. What is
// applied at its index tells (K3).
func (q *writeQueue) add(mark base.LogMark, p *Proposal) {
	i := len(q.waiting)
	for i > 0 && q.waiting[i-1].mark.Index > mark.Index {
		i--
	}
	q.waiting = slices.Insert(q.waiting, i, waitingWrite{mark, p})
}

// stampable says whether a write may carry the stamp (K4).
func (r *Replica) stampable(stamp base.Timestamp) bool {
	return (stamp > r.reads.promised || plant.On(plant.PromisedIgnored)) &&
		(stamp > r.writes.lastStamp || plant.On(plant.StampUnchecked))
}

// restamp queues a write for another timestamp; promises wait behind it from then on,
// so that it is not overtaken for ever.
func (r *Replica) restamp(p *Proposal) {
	if !p.restamped {
		p.restamped = true
		r.writes.behind++
	}
	r.writes.unstamped = append(r.writes.unstamped, p)
}

// wants says whether somebody waits for the result of the entry at index.
func (q *writeQueue) wants(index uint64) bool {
	return len(q.waiting) > 0 && q.waiting[0].mark.Index <= index
}

// applied takes out the proposal that waits for index; nil if there is none. Proposals
// that stood at index in another term are answered: another entry took their place.
func (q *writeQueue) applied(mark base.LogMark, why error) *Proposal {
	for len(q.waiting) > 0 && q.waiting[0].mark.Index <= mark.Index {
		w := q.waiting[0]
		q.waiting[0] = waitingWrite{}
		q.waiting = q.waiting[1:]
		if w.mark == mark {
			return w.p
		}
		w.p.Done(command.Result{}, why)
	}
	return nil
}

func (q *writeQueue) failQueued(why error) {
	early, unstamped := q.early, q.unstamped
	q.early, q.unstamped, q.behind = nil, nil, 0
	for _, item := range early {
		Refuse(item, why)
	}
	for _, p := range unstamped {
		p.Done(command.Result{}, why)
	}
}

// Refuse answers an item that nothing was done for.
func Refuse(item any, why error) {
	switch m := item.(type) {
	case *Proposal:
		m.Done(command.Result{}, why)
	case *Barrier:
		m.Done(BarrierReply{}, why)
	case *StampRequest:
		m.Done(0, why)
	case *Wait:
		m.Done(why)
	case *RebuildRequest:
		m.Done(RebuildAnswer{}, why)
	case *SnapshotArrived:
		m.Files.Abort()
	case *SessionOpen:
		m.Done(why)
	}
}

func unknownOutcome(r base.RangeID) *fault.Error {
	return fault.New(fault.UnknownOutcome,
		"range %d did not commit the write in time (is a majority of its replicas alive?); it may or may not take effect", r).
		OnRange(r).WithRemedy("read the key back before trying again")
}

func (q *writeQueue) failWaiting(r base.RangeID) {
	for _, w := range q.waiting {
		w.p.Done(command.Result{}, unknownOutcome(r))
	}
	q.waiting = nil
}

// expire answers what waited too long: what was not appended with a definite no.
func (q *writeQueue) expire(now clock.Mono, r *Replica) {
	keep := q.unstamped[:0]
	for _, p := range q.unstamped {
		if !expired(p.Deadline, now) {
			keep = append(keep, p)
			continue
		}
		if p.restamped {
			q.behind--
		}
		p.Done(command.Result{}, r.noStamp())
	}
	clear(q.unstamped[len(keep):])
	q.unstamped = keep
	early := q.early[:0]
	for _, item := range q.early {
		if deadline := deadlineOf(item); expired(deadline, now) {
			Refuse(item, fault.New(fault.Deadline, "range %d has a new leader that is not ready yet", r.id).OnRange(r.id))
			continue
		}
		early = append(early, item)
	}
	q.early = early
	waiting := q.waiting[:0]
	for _, w := range q.waiting {
		if expired(w.p.Deadline, now) {
			w.p.Done(command.Result{}, unknownOutcome(r.id))
			continue
		}
		waiting = append(waiting, w)
	}
	q.waiting = waiting
}

func deadlineOf(item any) clock.Mono {
	switch m := item.(type) {
	case *Proposal:
		return m.Deadline
	case *Barrier:
		return m.Deadline
	}
	return 0
}

// noStamp says why a request got no timestamp.
func (r *Replica) noStamp() *fault.Error {
	why := "the oracle did not answer"
	if r.asks.lastErr != nil {
		why = r.asks.lastErr.Error()
	}
	return fault.New(fault.Deadline, "no timestamp could be had for range %d: %s", r.id, why).
		OnRange(base.SystemRange).WithRemedy("see `almanac cluster status`: the system range needs a majority of its replicas")
}
