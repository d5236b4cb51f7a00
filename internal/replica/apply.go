package replica

import (
	"bytes"
	"fmt"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/clock"
	"github.com/almanacdb/almanac/internal/command"
	"github.com/almanacdb/almanac/internal/engine"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/keys"
	"github.com/almanacdb/almanac/internal/timeline"
)

// answer is a proposal with its result, given once the batch is visible.
type answer struct {
	p      *Proposal
	result command.Result
}

// apply evaluates committed entries in one batch, together with the state record that
// describes them (S1), then answers their proposers.
func (r *Replica) apply(now clock.Mono, entries []base.Entry) {
	if len(entries) == 0 {
		return
	}
	batch := r.opts.Engine.NewBatch(true)
	defer batch.Close()
	var answers []answer
	for i := range entries {
		e := &entries[i]
		if e.Index != r.state.Applied.Index+1 {
			panic(fmt.Sprintf("invariant violated: range %d applies entry %d after %d", r.id, e.Index, r.state.Applied.Index))
		}
		if !r.applyEntry(batch, e, &answers) {
			r.doubt(answers)
			return
		}
	}
	err := batch.Set(keys.RangeState(r.id), command.EncodeState(nil, r.state))
	if err == nil {
		err = batch.Commit(false)
	}
	if err != nil {
		r.fatal(fmt.Errorf("range %d cannot write its state: %w", r.id, err))
		r.doubt(answers)
		return
	}
	// First what others may see, then the answers: who was answered reads no less.
	r.publish()
	for _, a := range answers {
		r.answer(a)
	}
	r.applied(now)
}

// doubt answers proposers whose commands are committed and could not be applied here.
func (r *Replica) doubt(answers []answer) {
	for _, a := range answers {
		a.p.Done(command.Result{}, unknownOutcome(r.id))
	}
}

func (r *Replica) applyEntry(batch engine.Batch, e *base.Entry, answers *[]answer) bool {
	mark := base.LogMark{Index: e.Index, Term: e.Term}
	var p *Proposal
	if r.writes.wants(e.Index) {
		p = r.writes.applied(mark, r.notLeader())
	}
	if e.Type == base.EntryCommand {
		result, err := command.Apply(batch, r.state, e.Data, p != nil)
		if err != nil {
			if p != nil {
				p.Done(command.Result{}, unknownOutcome(r.id))
			}
			r.fatal(fmt.Errorf("range %d cannot apply entry %d: %w", r.id, e.Index, err))
			return false
		}
		if p != nil {
			*answers = append(*answers, answer{p, result})
		}
		if result.Refusal == nil {
			r.noteEffects(e.Data)
		}
	} else if p != nil {
		p.Done(command.Result{}, r.notLeader())
	}
	r.state.Applied = mark
	return true
}

// noteEffects collects what the orderer must look at once the batch is visible.
func (r *Replica) noteEffects(env []byte) {
	h, err := command.DecodeHeader(env)
	if err != nil {
		return
	}
	switch h.Kind {
	case command.KindPublish:
		r.firing.dirty = true
	case command.KindAck:
		if r.events != nil && !r.events.Idle() {
			if c, err := command.Decode(env); err == nil {
				r.firing.acks = append(r.firing.acks, c.Body.(*timeline.Ack))
			}
		}
	}
}

func (r *Replica) answer(a answer) {
	if f := a.result.Refusal; f != nil && f.Kind == fault.Restamp && r.serving {
		// Nothing but the applied index changed, so the write may be tried again (K3), as
		// another entry: followers may still be sent the one that was refused.
		a.p.Envelope = bytes.Clone(a.p.Envelope)
		r.restamp(a.p)
		return
	}
	a.p.Done(a.result, nil)
}

// applied follows what became visible.
func (r *Replica) applied(now clock.Mono) {
	if r.oracle != nil {
		r.oracle.bound(r, now)
	}
	if r.events == nil {
		r.firing.acks = nil
		return
	}
	acks := r.firing.acks
	r.firing.acks = nil
	for _, a := range acks {
		for _, b := range a.Batches {
			if err := r.events.Settled(r.opts.Engine, b.Partition, b.Group, b.Positions); err != nil {
				r.fatal(fmt.Errorf("range %d cannot read group %d: %w", r.id, b.Group, err))
				return
			}
		}
	}
}
