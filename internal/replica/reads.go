package replica

import (
	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/clock"
	"github.com/almanacdb/almanac/internal/fault"
)

// Barrier asks the orderer up to where a replica must apply before it may serve a
// linearizable read (K4).
type Barrier struct {
	// At is the read's timestamp; 0 asks for a fresh one.
	At base.Timestamp
	// Newest asks for no timestamp: the read takes the newest versions of one range.
	Newest bool
	// Apply asks to be answered only when this replica has applied up to the mark.
	Apply    bool
	Deadline clock.Mono // 0 means none
	// Done is called once, on the worker; it must not block.
	Done func(BarrierReply, error)

	since clock.Mono
	reply BarrierReply
}

// BarrierReply says: apply up to Mark.Index, then read at At. If a higher term than
// Mark.Term is learnt of first, ask again with the same At.
type BarrierReply struct {
	At   base.Timestamp // 0 if Newest
	Mark base.LogMark
}

// Wait asks any replica to say when it has applied up to Mark.Index.
type Wait struct {
	Mark     base.LogMark
	Deadline clock.Mono // 0 means none
	// Done is called once, on the worker; it must not block. NotLeader means that a
	// higher term is known: ask the orderer again.
	Done func(error)
}

// readQueue holds reads from their arrival until their answer.
type readQueue struct {
	promised    base.Timestamp // highest timestamp at which a read was allowed in this term
	unstamped   []*Barrier     // need a fresh timestamp
	blocked     []*Barrier     // wait behind a restamped write
	unconfirmed []*Barrier     // promised; the quorum's word that this is the orderer is missing
	waits       []*Wait
}

func (r *Replica) barrier(now clock.Mono, b *Barrier) {
	b.since = now
	switch {
	case !r.status.Orderer:
		b.Done(BarrierReply{}, r.notLeader())
	case !r.serving:
		r.holdEarly(b, func(err error) { b.Done(BarrierReply{}, err) })
	case len(r.reads.unstamped)+len(r.reads.blocked)+len(r.reads.unconfirmed) >= r.opts.MaxQueued,
		b.Apply && len(r.reads.waits) >= r.opts.MaxQueued:
		b.Done(BarrierReply{}, r.busy())
	case b.Newest:
		b.reply.Mark = base.LogMark{Index: r.status.Commit, Term: r.status.Term}
		r.confirm(now, b)
	case b.At == 0:
		r.reads.unstamped = append(r.reads.unstamped, b)
	default:
		r.promise(now, b)
	}
}

// promise allows a read at b.At: no write gets a stamp at or below it any more, and
// all that have one stand at or before the returned index (K4).
func (r *Replica) promise(now clock.Mono, b *Barrier) {
	if r.writes.behind > 0 {
		r.reads.blocked = append(r.reads.blocked, b)
		return
	}
	r.reads.promised = max(r.reads.promised, b.At)
	last := r.machine.Status().LastIndex
	b.reply = BarrierReply{At: b.At, Mark: base.LogMark{Index: last, Term: r.status.Term}}
	b.since = now
	r.confirm(now, b)
}

// confirm answers once it is sure that this replica was the orderer after the promise.
func (r *Replica) confirm(now clock.Mono, b *Barrier) {
	if r.machine.HasLease(now) {
		r.allow(b)
		return
	}
	if len(r.reads.unconfirmed) == 0 || r.reads.unconfirmed[len(r.reads.unconfirmed)-1].since != now {
		r.machine.StartRound(now)
	}
	r.reads.unconfirmed = append(r.reads.unconfirmed, b)
}

// answerReads answers what became answerable in this turn.
func (r *Replica) answerReads(now clock.Mono) {
	if len(r.reads.blocked) > 0 && r.writes.behind == 0 {
		blocked := r.reads.blocked
		r.reads.blocked = nil
		for _, b := range blocked {
			r.promise(now, b)
		}
	}
	if len(r.reads.unconfirmed) > 0 {
		lease := r.machine.HasLease(now)
		keep := r.reads.unconfirmed[:0]
		for _, b := range r.reads.unconfirmed {
			if lease || r.machine.ConfirmedSince(b.since) {
				r.allow(b)
			} else {
				keep = append(keep, b)
			}
		}
		clear(r.reads.unconfirmed[len(keep):])
		r.reads.unconfirmed = keep
	}
	r.answerWaits()
}

// allow answers a confirmed barrier, after the entries below it if it asked for that.
func (r *Replica) allow(b *Barrier) {
	if !b.Apply || r.state.Applied.Index >= b.reply.Mark.Index {
		b.Done(b.reply, nil)
		return
	}
	r.reads.waits = append(r.reads.waits, &Wait{Mark: b.reply.Mark, Deadline: b.Deadline, Done: func(err error) {
		b.Done(b.reply, err)
	}})
}

func (r *Replica) wait(w *Wait) {
	switch {
	case r.answerWait(w):
	case len(r.reads.waits) >= r.opts.MaxQueued:
		w.Done(r.busy())
	default:
		r.reads.waits = append(r.reads.waits, w)
	}
}

func (r *Replica) answerWait(w *Wait) bool {
	switch {
	case r.state.Applied.Index >= w.Mark.Index:
		w.Done(nil)
	case r.status.Term > w.Mark.Term:
		w.Done(r.notLeader())
	default:
		return false
	}
	return true
}

func (r *Replica) answerWaits() {
	if len(r.reads.waits) == 0 {
		return
	}
	keep := r.reads.waits[:0]
	for _, w := range r.reads.waits {
		if !r.answerWait(w) {
			keep = append(keep, w)
		}
	}
	clear(r.reads.waits[len(keep):])
	r.reads.waits = keep
}

func (q *readQueue) failAll(why error) {
	for _, list := range [][]*Barrier{q.unstamped, q.blocked, q.unconfirmed} {
		for _, b := range list {
			b.Done(BarrierReply{}, why)
		}
	}
	q.unstamped, q.blocked, q.unconfirmed = nil, nil, nil
}

func (q *readQueue) failWaits(why error) {
	for _, w := range q.waits {
		w.Done(why)
	}
	q.waits = nil
}

func (q *readQueue) expire(now clock.Mono, r *Replica) {
	q.unstamped = expireBarriers(q.unstamped, now, r.noStamp)
	noMajority := func() *fault.Error { return r.noMajority() }
	q.blocked = expireBarriers(q.blocked, now, noMajority)
	q.unconfirmed = expireBarriers(q.unconfirmed, now, noMajority)
	keep := q.waits[:0]
	for _, w := range q.waits {
		if expired(w.Deadline, now) {
			w.Done(r.noMajority())
			continue
		}
		keep = append(keep, w)
	}
	clear(q.waits[len(keep):])
	q.waits = keep
}

func expireBarriers(list []*Barrier, now clock.Mono, why func() *fault.Error) []*Barrier {
	keep := list[:0]
	for _, b := range list {
		if expired(b.Deadline, now) {
			b.Done(BarrierReply{}, why())
			continue
		}
		keep = append(keep, b)
	}
	clear(list[len(keep):])
	return keep
}

func (r *Replica) noMajority() *fault.Error {
	return fault.New(fault.Deadline, "no majority of range %d answered in time", r.id).
		OnRange(r.id).WithRemedy("see `almanac cluster ranges` and bring its nodes back")
}
