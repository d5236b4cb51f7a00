package router

import (
	"context"
	"sync"
	"time"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/clock"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/keys"
	"github.com/almanacdb/almanac/internal/placement"
	"github.com/almanacdb/almanac/internal/timeline"
	"github.com/almanacdb/almanac/internal/wire"
)

// Subscription receives a topic's due events as one member of a group. It holds a
// hand-out session at the orderer of each of the topic's ranges and opens it anew when
// the orderer changes. Safe for concurrent use.
type Subscription struct {
	router *Router
	topic  placement.Topic
	group  placement.Group
	cancel context.CancelFunc
	lanes  []*subLane
	done   sync.WaitGroup

	mu      sync.Mutex
	credit  int           // deliveries that the client has asked for and not got
	owed    []*subLane    // whose delivery the client's next credits make up for, in order
	queue   []queued      // handed out to us, not yet to the client
	taken   int           // bytes that Next returned last, held until it is called again
	average int           // bytes of a delivery, about, as of late
	err     error         // the subscription is over
	changed chan struct{} // capacity 1: something to look at
}

type queued struct {
	lane     *subLane
	session  uint64
	delivery wire.Delivery
	bytes    int // held for it
	at       clock.Mono
}

const (
	sessionRefresh = time.Second
	// prefetchHold is how long an event may be held here for a client without credit;
	// then it goes back to its group.
	prefetchHold = time.Second
	// firstAverage is what a delivery is taken to weigh before one came.
	firstAverage = 4 << 10
)

// Subscribe joins a group of a topic, which is made if it is new.
func (r *Router) Subscribe(ctx context.Context, topic, group string, start timeline.StartRule) (*Subscription, error) {
	t, err := r.Topic(ctx, topic)
	if err != nil {
		return nil, err
	}
	g, err := r.EnsureGroup(ctx, &t, group, start)
	if err != nil {
		return nil, r.topicGone(ctx, &t, err)
	}
	ranges, err := r.topicRanges(ctx, &t)
	if err != nil {
		return nil, r.topicGone(ctx, &t, err)
	}
	run, cancel := context.WithCancel(context.Background())
	s := &Subscription{router: r, topic: t, group: g, cancel: cancel, average: firstAverage, changed: make(chan struct{}, 1)}
	for _, tr := range ranges {
		s.lanes = append(s.lanes, &subLane{sub: s, partitions: tr.partitions, wake: make(chan struct{}, 1)})
	}
	for _, l := range s.lanes {
		s.done.Add(1)
		go l.run(run)
	}
	return s, nil
}

// Topic returns the topic.
func (s *Subscription) Topic() placement.Topic { return s.topic }

// Group returns the group.
func (s *Subscription) Group() placement.Group { return s.group }

// Grant lets n more deliveries be returned by Next.
func (s *Subscription) Grant(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.credit += n
	// Make up to each lane for what it delivered; what is new is shared out evenly.
	for n > 0 && len(s.owed) > 0 {
		s.owed[0].grant(1)
		s.owed = s.owed[1:]
		n--
	}
	for i, l := range s.lanes {
		share := n / len(s.lanes)
		if i < n%len(s.lanes) {
			share++
		}
		// Every lane may always hand out one event, so that a client with few credits
		// hears of every partition; what it has no credit for yet waits here.
		l.grant(max(share, 1-l.open-l.held))
	}
	s.poke()
}

func (s *Subscription) poke() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// Next returns deliveries as far as there is credit, waiting for the first.
func (s *Subscription) Next(ctx context.Context) ([]wire.Delivery, error) {
	for {
		out, err := s.take()
		if len(out) > 0 || err != nil {
			return out, err
		}
		select {
		case <-ctx.Done():
			return nil, fault.Wrap(fault.Cancelled, ctx.Err(), "the caller went away")
		case <-s.changed:
		}
	}
}

func (s *Subscription) take() ([]wire.Delivery, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.release()
	n := min(s.credit, len(s.queue))
	if n == 0 {
		return nil, s.err
	}
	out := make([]wire.Delivery, n)
	for i := range out {
		out[i] = s.queue[i].delivery
		s.owed = append(s.owed, s.queue[i].lane)
		s.taken += s.queue[i].bytes
		if l := s.queue[i].lane; l.forget(&s.queue[i]) && l.allowed() > l.told {
			l.poke()
		}
	}
	clear(s.queue[:n])
	s.queue = s.queue[n:]
	s.credit -= n
	return out, nil
}

// release gives back what was held for the deliveries that the client has got. Called
// with mu held.
func (s *Subscription) release() {
	s.router.opts.Deliveries.Put(s.taken)
	s.taken = 0
}

// giveBack makes lanes return what was held too long for a client without credit.
func (s *Subscription) giveBack() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.credit > 0 || len(s.queue) == 0 || s.router.store.Clock().Mono().Sub(s.queue[0].at) < prefetchHold {
		return
	}
	for _, q := range s.queue {
		q.lane.reset = true
		q.lane.poke()
	}
}

func (s *Subscription) fail(err error) {
	s.mu.Lock()
	if s.err == nil {
		s.err = err
	}
	s.mu.Unlock()
	s.poke()
}

// Close gives back at once what was handed out and not acked.
func (s *Subscription) Close() {
	s.fail(fault.New(fault.Cancelled, "the subscription was closed"))
	s.cancel()
	s.done.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.release()
}

// subLane keeps a session at the orderer of one range. Its goroutine opens, refreshes
// and closes it; the store calls Deliver and End.
type subLane struct {
	sub        *Subscription
	partitions []base.Partition
	wake       chan struct{}

	// Guarded by sub.mu.
	open     int    // credit that the range has not used
	held     int    // of sub.queue, what this lane delivered
	id       uint64 // of the session; 0: none
	granted  uint64 // to the session, since it opened
	received uint64 // from the session, since it opened
	told     uint64 // of granted, what the orderer was told
	waiting  uint64 // of received, what is in sub.queue
	reset    bool   // close the session: it ended, or something was lost
}

func (l *subLane) poke() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// grant adds credit. Called with sub.mu held.
func (l *subLane) grant(n int) {
	if n > 0 {
		l.open += n
		l.granted += uint64(n)
		l.poke()
	}
}

// forget takes a delivery that leaves the queue off what the lane holds; true if it
// came by the present session. Called with sub.mu held.
func (l *subLane) forget(q *queued) bool {
	l.held--
	if q.session != l.id {
		return false
	}
	l.waiting--
	return true
}

// allowed returns how much of granted the orderer may be told: as many deliveries may
// wait for a slow client as fit in a lane's part of the share, by what they weighed of
// late, and one always. Called with sub.mu held.
func (l *subLane) allowed() uint64 {
	share := l.sub.router.opts.Deliveries
	if share == nil {
		return l.granted
	}
	lane := min(max(share.Limit()/32, 64<<10), 4<<20)
	return min(l.granted, l.received-l.waiting+uint64(max(1, lane/int64(l.sub.average))))
}

// weigh returns what each delivery takes, and their sum, and learns from them. Called
// with sub.mu held.
func (s *Subscription) weigh(deliveries []wire.Delivery) (each []int, sum int) {
	each = make([]int, len(deliveries))
	for i := range deliveries {
		each[i] = 256 + len(deliveries[i].Event.Payload)
		sum += each[i]
	}
	s.average = max(sum/len(each), (7*s.average+sum/len(each))/8)
	return each, sum
}

// laneSink is a session's sink; it outlives the session by a little.
type laneSink struct {
	lane *subLane
	id   uint64
}

// Deliver implements store.SessionSink.
func (k *laneSink) Deliver(first uint64, deliveries []wire.Delivery) {
	l, s := k.lane, k.lane.sub
	s.mu.Lock()
	defer s.mu.Unlock()
	if l.id != k.id || l.reset {
		return
	}
	if first != l.received {
		l.reset = true // something was lost on the way: what we hold is not all
		l.poke()
		return
	}
	if len(deliveries) == 0 {
		return
	}
	each, sum := s.weigh(deliveries)
	if !s.router.opts.Deliveries.Take(sum) {
		l.reset = true // no room: they go back to the group
		l.poke()
		return
	}
	now := s.router.store.Clock().Mono()
	l.received += uint64(len(deliveries))
	l.waiting += uint64(len(deliveries))
	l.open -= len(deliveries)
	l.held += len(deliveries)
	for i, d := range deliveries {
		s.queue = append(s.queue, queued{lane: l, session: k.id, delivery: d, bytes: each[i], at: now})
	}
	s.poke()
}

// End implements store.SessionSink.
func (k *laneSink) End(*fault.Error) {
	l, s := k.lane, k.lane.sub
	s.mu.Lock()
	defer s.mu.Unlock()
	if l.id == k.id {
		l.reset = true
		l.poke()
	}
}

func (l *subLane) run(ctx context.Context) {
	defer l.sub.done.Done()
	r := l.sub.router
	first := keys.Partition(base.PartitionID{Topic: l.sub.topic.ID, Partition: l.partitions[0]})
	for attempt := 0; ctx.Err() == nil; attempt++ {
		rt, err := r.lookup(ctx, first)
		if err == nil {
			to := r.orderer(&rt, attempt)
			var opened bool
			opened, err = l.hold(ctx, &rt, to)
			if opened {
				attempt = -1
			}
		}
		if err != nil {
			r.learn(&rt, err)
			if gone := r.topicGone(ctx, &l.sub.topic, err); fault.KindOf(gone) == fault.NotFound && gone != err {
				l.sub.fail(gone)
				return
			}
		}
		if attempt >= 0 && !pause(ctx, attempt) {
			return
		}
	}
}

// hold keeps one session until it must be opened anew. opened says that it was open.
func (l *subLane) hold(ctx context.Context, rt *route, to base.NodeID) (opened bool, err error) {
	st := l.sub.router.store
	sink := &laneSink{lane: l}
	id := st.NewSession(sink)
	l.begin(sink, id)
	defer func() {
		st.DropSession(id)
		st.Call(to, wire.MethodSessionClose, rt.desc.Range, (&wire.SessionClose{Session: id}).Append(nil), time.Second, func([]byte, error) {})
		l.end(id)
	}()
	refresh := time.NewTicker(sessionRefresh)
	defer refresh.Stop()
	tell := true
	for {
		if tell {
			if err := l.tell(ctx, rt, to, id); err != nil {
				return opened, err
			}
			opened = true
		}
		tell = true
		select {
		case <-ctx.Done():
			return opened, nil
		case <-refresh.C:
			l.sub.giveBack()
		case <-l.wake:
			var reset bool
			reset, tell = l.look()
			if reset {
				return opened, nil
			}
		}
	}
}

func (l *subLane) begin(sink *laneSink, id uint64) {
	l.sub.mu.Lock()
	defer l.sub.mu.Unlock()
	sink.id = id
	l.id, l.granted, l.received, l.told, l.reset = id, uint64(max(l.open, 0)), 0, 0, false
	l.waiting = 0
}

// end forgets what the session handed out and the client has not got: it returns to
// the group.
func (l *subLane) end(id uint64) {
	s := l.sub
	s.mu.Lock()
	defer s.mu.Unlock()
	keep := s.queue[:0]
	for _, q := range s.queue {
		if q.lane == l && q.session == id {
			l.open++
			l.forget(&q)
			s.router.opts.Deliveries.Put(q.bytes)
			continue
		}
		keep = append(keep, q)
	}
	clear(s.queue[len(keep):])
	s.queue = keep
	l.id = 0
}

func (l *subLane) look() (reset, tell bool) {
	l.sub.mu.Lock()
	defer l.sub.mu.Unlock()
	return l.reset, l.allowed() > l.told
}

// tell opens or refreshes the session, with the credit granted so far.
func (l *subLane) tell(ctx context.Context, rt *route, to base.NodeID, id uint64) error {
	r := l.sub.router
	l.sub.mu.Lock()
	m := wire.SessionOpen{
		Session: id, Topic: l.sub.topic.ID, Partitions: l.partitions, Group: l.sub.group.ID, Granted: l.allowed(),
	}
	l.told = m.Granted
	l.sub.mu.Unlock()
	ch := make(chan error, 1)
	r.store.Call(to, wire.MethodSessionOpen, rt.desc.Range, m.Append(nil), r.opts.Attempt, func(_ []byte, err error) { ch <- err })
	select {
	case err := <-ch:
		return err
	case <-ctx.Done():
		return nil
	}
}
