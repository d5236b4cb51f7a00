package almanac

import (
	"context"
	"sync"

	almanacv1 "github.com/almanacdb/almanac/api/almanac/v1"
	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/timeline"
)

// proposalEvents is about how many events one proposal acknowledges.
const proposalEvents = 20_000

// acker commits the acks of one subscriber. While a proposal of a range is under way
// the acks for that range gather, and the next proposal carries them all. Events whose
// ack was received and is not answered are bounded: add waits, and with it the stream.
type acker struct {
	ctx context.Context
	to  *subscriber

	work sync.WaitGroup // ranges with a proposal under way

	mu     sync.Mutex
	room   sync.Cond // held fell, or closed was set
	held   int       // events whose ack is not answered; an empty ack counts as one
	ranges map[base.RangeID]*rangeAcks
	closed bool // finish was called
}

// rangeAcks are the acks for one range that wait; it exists while a proposal is under way.
type rangeAcks struct{ waiting []ack }

// ack is one ack of the client.
type ack struct {
	id    uint64
	batch timeline.AckBatch
}

func (a *ack) weight() int { return max(1, len(a.batch.Positions)) }

func newAcker(ctx context.Context, to *subscriber) *acker {
	a := &acker{ctx: ctx, to: to, ranges: make(map[base.RangeID]*rangeAcks)}
	a.room.L = &a.mu
	context.AfterFunc(ctx, func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.room.Broadcast()
	})
	return a
}

// finish returns when every ack that was added is answered. None may be added after it.
func (a *acker) finish() {
	a.mu.Lock()
	a.closed = true
	a.room.Broadcast()
	a.mu.Unlock()
	a.work.Wait()
}

// add takes an ack; its answer follows. The error is that of the stream.
func (a *acker) add(m *almanacv1.Ack) error {
	topic, group := a.to.sub.Topic(), a.to.sub.Group()
	if m.GetPartition() >= topic.Partitions {
		return a.refuse(m, fault.New(fault.Invalid, "topic %q has no partition %d, only %d", topic.Name, m.GetPartition(), topic.Partitions))
	}
	one := ack{id: m.GetAckId(), batch: timeline.AckBatch{
		Partition: base.PartitionID{Topic: topic.ID, Partition: base.Partition(m.GetPartition())},
		Group:     group.ID,
		Positions: make([]base.Position, len(m.GetPositions())),
	}}
	for i, p := range m.GetPositions() {
		one.batch.Positions[i] = position(p)
	}
	where, err := a.to.server.routes.RangeOf(a.ctx, one.batch.Partition)
	if err != nil {
		return a.refuse(m, err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for !a.closed && a.ctx.Err() == nil && a.held > 0 && a.held+one.weight() > a.to.server.limits.AckedEvents {
		a.room.Wait()
	}
	if a.closed || a.ctx.Err() != nil {
		return fault.New(fault.Cancelled, "the stream is ending")
	}
	a.held += one.weight()
	if r := a.ranges[where]; r != nil {
		r.waiting = append(r.waiting, one)
		return nil
	}
	r := &rangeAcks{waiting: []ack{one}}
	a.ranges[where] = r
	a.work.Go(func() { a.commit(where, r) })
	return nil
}

// refuse answers an ack that is not proposed.
func (a *acker) refuse(m *almanacv1.Ack, err error) error {
	return a.answer([]*almanacv1.AckResult{{AckId: m.GetAckId(), Error: a.to.server.message(err)}})
}

// commit proposes a range's acks until none wait.
func (a *acker) commit(where base.RangeID, r *rangeAcks) {
	for {
		batch := a.take(where, r)
		if batch == nil {
			return
		}
		results, events := a.propose(batch), 0
		for i := range batch {
			events += batch[i].weight()
		}
		// A stream that is broken is noticed by who receives; until then acks go on.
		_ = a.answer(results)
		a.mu.Lock()
		a.held -= events
		a.room.Broadcast()
		a.mu.Unlock()
	}
}

// take takes the acks of one proposal; nil if none wait.
func (a *acker) take(where base.RangeID, r *rangeAcks) []ack {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(r.waiting) == 0 {
		delete(a.ranges, where)
		return nil
	}
	n, events := 1, r.waiting[0].weight()
	for n < len(r.waiting) && events+r.waiting[n].weight() <= proposalEvents {
		events += r.waiting[n].weight()
		n++
	}
	batch := r.waiting[:n:n]
	if r.waiting = r.waiting[n:]; len(r.waiting) == 0 {
		r.waiting = nil
	}
	return batch
}

// propose has acks committed and returns their answers.
func (a *acker) propose(batch []ack) []*almanacv1.AckResult {
	bodies, events := make([]timeline.AckBatch, 0, len(batch)), 0
	for i := range batch {
		if n := len(batch[i].batch.Positions); n > 0 {
			bodies = append(bodies, batch[i].batch)
			events += n
		}
	}
	var outcomes []timeline.AckOutcome
	var failed *almanacv1.Error
	if events > 0 {
		var err error
		outcomes, err = a.to.server.routes.Ack(a.ctx, bodies)
		if err == nil && len(outcomes) != events {
			err = fault.New(fault.Internal, "%d acks got %d answers", events, len(outcomes))
		}
		if err != nil {
			failed = a.to.server.message(err)
		}
	}
	results := make([]*almanacv1.AckResult, len(batch))
	for i := range batch {
		results[i] = &almanacv1.AckResult{AckId: batch[i].id}
		n := len(batch[i].batch.Positions)
		switch {
		case n == 0:
		case failed != nil:
			results[i].Error = failed
		default:
			results[i].Outcomes = ackOutcomes(outcomes[:n])
			outcomes = outcomes[n:]
		}
	}
	return results
}

// ackOutcomes converts outcomes; what is all the same is written once.
func ackOutcomes(from []timeline.AckOutcome) []almanacv1.AckOutcome {
	same := true
	for _, o := range from {
		same = same && o == from[0]
	}
	if same {
		from = from[:1]
	}
	to := make([]almanacv1.AckOutcome, len(from))
	for i, o := range from {
		switch o {
		case timeline.AckDone:
			to[i] = almanacv1.AckOutcome_ACK_OUTCOME_DONE
		case timeline.AckAlready:
			to[i] = almanacv1.AckOutcome_ACK_OUTCOME_ALREADY
		case timeline.AckNotFound:
			to[i] = almanacv1.AckOutcome_ACK_OUTCOME_NOT_FOUND
		case timeline.AckWindowFull:
			to[i] = almanacv1.AckOutcome_ACK_OUTCOME_WINDOW_FULL
		}
	}
	return to
}

// answer sends answers to the client.
func (a *acker) answer(results []*almanacv1.AckResult) error {
	return a.to.send(&almanacv1.SubscribeResponse{Response: &almanacv1.SubscribeResponse_AckResults{
		AckResults: &almanacv1.AckResults{Results: results},
	}})
}
