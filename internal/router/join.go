package router

import (
	"bytes"
	"cmp"
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/clock"
	"github.com/almanacdb/almanac/internal/command"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/keys"
	"github.com/almanacdb/almanac/internal/placement"
	"github.com/almanacdb/almanac/internal/timeline"
)

// publishPart is what one request adds to one range in one command.
type publishPart struct {
	events   []plannedEvent
	bytes    int // of the events, about
	deadline clock.Mono

	// Of the book: guarded by its lock until done is closed.
	sent bool  // in a try that is not answered
	gone bool  // the caller left
	last error // why the last try did nothing

	done    chan struct{} // closed once results or err are set
	begun   func()        // instead of done: called then, by who may be blocked
	results []timeline.Published
	err     error
}

// plannedEvent is an event, where it goes, and where it stood in its request.
type plannedEvent struct {
	id    base.PartitionID
	index int
	event *timeline.NewEvent
}

// publishBook joins the publishes of this node: those that arrive while a command is
// under way to their range share the next one, up to commandBytes. What each caller
// learns is of its own events alone, and who leaves takes nobody along.
type publishBook struct {
	router  *Router
	mu      sync.Mutex
	ranges  map[base.RangeID]*publishQueue // those with a flight
	choices map[base.TopicID]*choice
}

type publishQueue struct {
	waiting []*publishPart // in the order they came
	flight  int            // the number of the one that takes them
}

// overtakeAfter is how long one command may hold up those that wait behind it: it may be
// lost with the node that it went to.
const overtakeAfter = 100 * time.Millisecond

// choice is the partition of a topic that events without key and id go to for now.
type choice struct {
	partition base.Partition
	until     clock.Mono
	bytes     int // that it may still get
}

// A choice stands for so long, or for so many bytes.
const (
	choiceFor   = 50 * time.Millisecond
	choiceBytes = 64 << 10
)

// otherwise returns the partition for events without key and id (E4). Those that come
// together get the same, so that one command takes them; if this node leads a range of the
// topic, it is a partition of that, so that the command need not travel.
func (b *publishBook) otherwise(t *placement.Topic, events []timeline.NewEvent, now clock.Mono) base.Partition {
	b.mu.Lock()
	defer b.mu.Unlock()
	c := b.choices[t.ID]
	if c == nil {
		if len(b.choices) > 10_000 { // of topics long gone, too
			clear(b.choices)
		}
		c = &choice{}
		b.choices[t.ID] = c
	}
	if now >= c.until || c.bytes <= 0 {
		*c = choice{b.router.choose(t), now.Add(choiceFor), choiceBytes}
	}
	for i := range events {
		c.bytes -= eventBytes(&events[i])
	}
	return c.partition
}

// chooseAmong is how many partitions are looked at for one that is led here: enough to find
// it if there is one in a few.
const chooseAmong = 16

// choose returns a partition by chance, of a range that this node leads if one is found.
func (r *Router) choose(t *placement.Topic) (p base.Partition) {
	for range chooseAmong {
		p = base.Partition(rand.N(t.Partitions))
		rt, ok := r.routes.get(keys.Partition(base.PartitionID{Topic: t.ID, Partition: p}))
		if ok && r.orderer(&rt, 0) == r.store.Node() {
			break
		}
	}
	return p
}

// add has a part added to the range that was looked up for it. The gate bounds how many
// wait. With an error nothing was added, unless it is UnknownOutcome.
func (b *publishBook) add(ctx context.Context, to base.RangeID, p *publishPart) error {
	if err := b.router.gates.Enter(ctx, to); err != nil {
		return err
	}
	defer b.router.gates.Leave(to)
	at, _ := ctx.Deadline() // Publish set one
	p.deadline = b.router.store.Clock().Mono().Add(time.Until(at))
	p.done = make(chan struct{})
	b.join(to, p)
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
	}
	if last, ok := b.leave(p); ok {
		return outOfTime(ctx, &route{desc: base.RangeDescriptor{Range: to}}, last)
	}
	// As in proposeTo: the answer of the replica, which knows more, has the last word.
	t := time.NewTimer(2 * time.Millisecond)
	defer t.Stop()
	select {
	case <-p.done:
		return p.err
	case <-t.C:
		return noAnswer(ctx, to)
	}
}

func (b *publishBook) join(to base.RangeID, p *publishPart) {
	b.mu.Lock()
	defer b.mu.Unlock()
	q := b.ranges[to]
	if q == nil {
		q = &publishQueue{}
		b.ranges[to] = q
		go b.fly(to, q, 0)
	}
	q.waiting = append(q.waiting, p)
}

// leave takes a part out of what will be tried, and says whether nothing was done for it
// and what stood in the way.
func (b *publishBook) leave(p *publishPart) (last error, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	p.gone = true
	select {
	case <-p.done:
		return nil, false
	default:
		return p.last, !p.sent
	}
}

// fly carries what waits for a range, command by command, until nothing does or another
// flight has taken over.
func (b *publishBook) fly(to base.RangeID, q *publishQueue, flight int) {
	for parts := b.board(to, q, flight); len(parts) > 0; parts = b.board(to, q, flight) {
		late := time.AfterFunc(overtakeAfter, func() { b.overtake(to, q, flight) })
		b.carry(parts)
		late.Stop()
	}
}

// overtake begins another flight in place of one that takes long.
func (b *publishBook) overtake(to base.RangeID, q *publishQueue, flight int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if q.flight == flight {
		q.flight++
		go b.fly(to, q, q.flight)
	}
}

// board takes what goes into the next command; with nothing to take the flight is over.
func (b *publishBook) board(to base.RangeID, q *publishQueue, flight int) []*publishPart {
	b.mu.Lock()
	defer b.mu.Unlock()
	if q.flight != flight {
		return nil
	}
	if len(q.waiting) == 0 {
		q.flight = -1 // nobody overtakes
		delete(b.ranges, to)
		return nil
	}
	n, size := 1, q.waiting[0].bytes
	for n < len(q.waiting) && size+q.waiting[n].bytes <= commandBytes {
		size += q.waiting[n].bytes
		n++
	}
	parts := q.waiting[:n:n]
	q.waiting = slices.Clip(q.waiting[n:])
	return parts
}

// carry has one command with the parts' events ordered, and answers each part. It goes
// on until the last of its callers has left or has no time left.
func (b *publishBook) carry(parts []*publishPart) {
	r := b.router
	latest := slices.MaxFunc(parts, func(a, b *publishPart) int { return cmp.Compare(a.deadline, b.deadline) }).deadline
	ctx, cancel := r.until(context.Background(), latest)
	defer cancel()
	for attempt := 0; ; attempt++ {
		if parts = b.send(parts); len(parts) == 0 {
			return
		}
		c := compose(parts)
		env, err := command.Encode(command.Header{Kind: command.KindPublish}, &c.body)
		refused := err != nil
		var rt route
		var res command.Result
		if err == nil {
			rt, err = r.holder(ctx, c.span)
		}
		if err == nil {
			res, err = r.proposeTo(ctx, r.orderer(&rt, attempt), rt.desc.Range, env, false)
		}
		if err == nil && res.Refusal != nil {
			err, refused = res.Refusal, true
		}
		switch {
		case err == nil:
			err = c.deliver(res.Published)
			fallthrough
		case !safe(err) && (!refused || len(parts) == 1):
			b.settle(parts, err)
			return
		case !safe(err): // one's events must not cost the others theirs
			for _, p := range parts {
				b.carry([]*publishPart{p})
			}
			return
		}
		r.learn(&rt, err)
		b.hold(parts, err)
		if !pause(ctx, attempt) {
			b.settle(parts, outOfTime(ctx, &rt, err))
			return
		}
	}
}

// send marks the parts whose callers still wait as sent, and returns them.
func (b *publishBook) send(parts []*publishPart) []*publishPart {
	b.mu.Lock()
	defer b.mu.Unlock()
	stay := make([]*publishPart, 0, len(parts))
	for _, p := range parts {
		if !p.gone {
			p.sent = true
			stay = append(stay, p)
		}
	}
	return stay
}

// hold notes that a try did nothing.
func (b *publishBook) hold(parts []*publishPart, why error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, p := range parts {
		p.sent, p.last = false, why
	}
}

func (b *publishBook) settle(parts []*publishPart, err error) {
	b.mu.Lock()
	for _, p := range parts {
		p.err = err
		if p.begun == nil {
			close(p.done)
		}
	}
	b.mu.Unlock()
	for _, p := range parts {
		if p.begun != nil {
			p.begun()
		}
	}
}

// joined is one command made of parts.
type joined struct {
	body  timeline.Publish
	span  base.Span // the smallest that holds its partitions
	parts []*publishPart
	from  [][]origin // by batch, by event
}

// origin is where an event of a command came from.
type origin struct{ part, event int }

// compose makes one command of parts: their events by partition, in the order they came.
func compose(parts []*publishPart) *joined {
	c := &joined{parts: parts}
	batches := make(map[base.PartitionID]int)
	for i, part := range parts {
		for j := range part.events {
			e := &part.events[j]
			n, ok := batches[e.id]
			if !ok {
				n = len(c.body.Batches)
				batches[e.id] = n
				c.body.Batches = append(c.body.Batches, timeline.Batch{Partition: e.id})
				c.from = append(c.from, nil)
				c.widen(e.id)
			}
			batch := &c.body.Batches[n]
			batch.Events = append(batch.Events, *e.event)
			c.from[n] = append(c.from[n], origin{i, j})
		}
	}
	return c
}

func (c *joined) widen(id base.PartitionID) {
	s := base.PointSpan(keys.Partition(id))
	if c.span.Start == nil || bytes.Compare(s.Start, c.span.Start) < 0 {
		c.span.Start = s.Start
	}
	if bytes.Compare(s.End, c.span.End) > 0 {
		c.span.End = s.End
	}
}

// deliver gives each part the answers to its events.
func (c *joined) deliver(answers []timeline.Published) error {
	n := 0
	for _, from := range c.from {
		n += len(from)
	}
	if n != len(answers) {
		return fault.New(fault.UnknownOutcome, "%d events got %d answers", n, len(answers))
	}
	for _, p := range c.parts {
		p.results = make([]timeline.Published, len(p.events))
	}
	for _, from := range c.from {
		for i, o := range from {
			c.parts[o.part].results[o.event] = answers[i]
		}
		answers = answers[len(from):]
	}
	return nil
}
