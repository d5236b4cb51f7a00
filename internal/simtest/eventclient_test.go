package simtest

import (
	"fmt"
	"time"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/command"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/lincheck"
	"github.com/almanacdb/almanac/internal/timeline"
	"github.com/almanacdb/almanac/internal/wire"
)

// eventBook is what clients know of events.
type eventBook struct {
	l      *load
	owed   map[eventFor]bool
	acked  map[eventFor]bool
	got    map[eventFor]int // deliveries
	nextID int
}

type eventFor struct {
	id    string
	group base.GroupID
}

func (b *eventBook) init(l *load) {
	b.l = l
	b.owed, b.acked, b.got = make(map[eventFor]bool), make(map[eventFor]bool), make(map[eventFor]int)
}

// published records an acknowledged publish: every group is owed the event.
func (b *eventBook) published(id string) {
	for _, g := range groups {
		if k := (eventFor{id, g}); !b.acked[k] {
			b.owed[k] = true
		}
	}
}

func (b *eventBook) settled(id string, g base.GroupID) {
	k := eventFor{id, g}
	b.acked[k] = true
	delete(b.owed, k)
}

func eventID(id string) lincheck.EventID { return lincheck.EventID{Topic: topicName, ID: id} }

func groupName(g base.GroupID) string { return fmt.Sprintf("g%d", g) }

// groupMaker makes the groups in one range before anything is published.
type groupMaker struct {
	w      *World
	r      base.RangeID
	leader leaders
	done   int
	then   func()
}

func (m *groupMaker) idle() bool     { return m.done == len(groups) }
func (m *groupMaker) String() string { return fmt.Sprintf("the groups of range %d", m.r) }

func (m *groupMaker) make() {
	body := &timeline.CreateGroup{Group: groups[m.done], Start: timeline.StartEarliest, Partitions: partitionsOf(m.r)}
	m.w.propose(m.leader, m.r, command.KindCreateGroup, body, time.Second, func(_ *command.Result, err error) {
		if err == nil {
			if m.done++; m.idle() {
				m.then()
				return
			}
		}
		m.w.after(m.w.backoff(), m.make)
	})
}

// publisher publishes events due now, or up to a few seconds later.
type publisher struct {
	w      *World
	id     int
	leader leaders
	busy   bool
}

func (p *publisher) idle() bool     { return !p.busy }
func (p *publisher) String() string { return fmt.Sprintf("publisher %d", p.id) }

func (p *publisher) next() {
	w := p.w
	if w.load.stopping {
		return
	}
	part := base.Partition(w.rng.IntN(partitions))
	var events []timeline.NewEvent
	for range 1 + w.rng.IntN(3) {
		w.load.events.nextID++
		e := timeline.NewEvent{MessageID: fmt.Sprintf("e%d", w.load.events.nextID), Payload: []byte("x")}
		switch w.rng.IntN(4) {
		case 0: // now
		case 1:
			e.DelayMS = w.rng.Int64N(3000)
		default:
			e.DueMS = w.trueMS() + w.rng.Int64N(4000) - 200
		}
		events = append(events, e)
	}
	p.busy = true
	asked, begun := w.trueMS(), w.load.latest
	body := &timeline.Publish{Batches: []timeline.Batch{{Partition: base.PartitionID{Topic: topic, Partition: part}, Events: events}}}
	w.propose(p.leader, rangeOf(part), command.KindPublish, body, 2*time.Second, func(res *command.Result, err error) {
		p.busy = false
		if err == nil {
			w.stamped(begun, res.Stamp)
		}
		for i := range events {
			p.answered(part, &events[i], i, asked, res, err)
		}
		w.after(w.between(5*time.Millisecond, 100*time.Millisecond), p.next)
	})
}

// answered records what became of one event. asked is true time before the publish.
func (p *publisher) answered(part base.Partition, e *timeline.NewEvent, i int, asked int64, res *command.Result, err error) {
	w := p.w
	// No honest oracle is further behind than this, so the event can't be due before.
	due := max(e.DueMS, asked-honestOffset.Milliseconds()-slackMS+e.DelayMS)
	switch {
	case fault.KindOf(err) == fault.UnknownOutcome:
		w.rec.Attempted(lincheck.Attempt{EventID: eventID(e.MessageID), DueMS: e.DueMS})
		return
	case err != nil:
		return
	}
	pub := res.Published[i]
	w.tracef("publisher %d: %s in %d at %v", p.id, e.MessageID, part, pub.Position)
	w.count.Published++
	if pub.Duplicate {
		w.violated("event %s is new and was answered as a duplicate", e.MessageID)
	}
	if e.DueMS != 0 && pub.Position.DueMS < e.DueMS {
		w.violated("invariant 3: event %s was asked for at %d and stands at %v", e.MessageID, due, pub.Position)
	}
	w.rec.Published(lincheck.Publish{
		EventID: eventID(e.MessageID), Partition: part, Position: pub.Position, Acked: w.rec.Now(),
	})
	w.load.events.published(e.MessageID)
}

// slackMS is what drift between two anchors of the oracle adds to the clocks' offsets.
const slackMS = 20

// member receives a range's events as one member of a group, through some gateway.
type member struct {
	w       *World
	id      int
	group   base.GroupID
	r       base.RangeID
	leader  leaders
	via     *node // the gateway of its choice; nil for any
	holds   bool  // acks nothing
	gw      *node
	life    int
	at      base.NodeID   // who was asked for the session
	session uint64        // 0: none
	joined  time.Duration // when the session was asked for
	got     uint64        // deliveries of the session
}

// memberSink is a session's sink.
type memberSink struct {
	m       *member
	n       *node
	life    int
	session uint64
}

const credits = 25

// open opens a session at whom it takes for the orderer.
func (m *member) open() {
	if m.gw = m.via; m.gw == nil {
		m.gw = m.w.anyNode()
	}
	m.life, m.got, m.session, m.joined = m.gw.life, 0, 0, m.w.rec.Now()
	if !m.gw.up {
		m.w.after(m.w.backoff(), m.open)
		return
	}
	m.at = m.leader.pick(m.w, m.r)
	m.gw.deliver(func() {
		sink := &memberSink{m: m, n: m.gw, life: m.gw.life}
		sink.session = m.gw.store.NewSession(sink)
		m.session = sink.session
	})
	if m.session == 0 { // the gateway is paused, or died
		m.gw.dropInbox()
		m.w.after(m.w.backoff(), m.open)
		return
	}
	m.tell(m.session)
}

// tell opens the session at the orderer, or refreshes it with more credit.
func (m *member) tell(session uint64) {
	if !m.gw.up || m.gw.life != m.life { // the connection to the gateway is gone
		m.reset()
		return
	}
	parts := make([]base.Partition, 0, partsPerRange)
	for _, p := range partitionsOf(m.r) {
		parts = append(parts, p.Partition)
	}
	body := wire.SessionOpen{Session: session, Topic: topic, Partitions: parts, Group: m.group, Granted: m.got + credits}
	m.w.ask(m.gw, m.at, wire.MethodSessionOpen, m.r, body.Append(nil), func(_ []byte, err error) {
		if m.session != session {
			return
		}
		if err != nil {
			if k := fault.KindOf(err); k == fault.NotFound || k == fault.Invalid || k == fault.Internal {
				m.w.violated("member %d of group %d cannot open a session: %v", m.id, m.group, err)
			}
			m.leader.learn(m.r, err)
			m.reset()
			return
		}
		m.w.after(m.w.between(300*time.Millisecond, 900*time.Millisecond), func() {
			if m.session == session {
				m.tell(session)
			}
		})
	})
}

// reset gives the session up and opens another.
func (m *member) reset() {
	gw, session, at := m.gw, m.session, m.at
	m.session = 0
	if gw.up && gw.life == m.life {
		gw.deliver(func() {
			gw.store.DropSession(session)
			gw.store.Call(at, wire.MethodSessionClose, m.r, (&wire.SessionClose{Session: session}).Append(nil), time.Second, func([]byte, error) {})
		})
	}
	m.w.after(m.w.backoff(), m.open)
}

// Deliver implements store.SessionSink.
func (s *memberSink) Deliver(first uint64, deliveries []wire.Delivery) {
	s.later(func(m *member) {
		if first != m.got {
			m.w.tracef("member %d of group %d missed deliveries", m.id, m.group)
			m.reset()
			return
		}
		m.got += uint64(len(deliveries))
		for i := range deliveries {
			m.delivered(&deliveries[i])
		}
	})
}

// End implements store.SessionSink.
func (s *memberSink) End(why *fault.Error) {
	s.later(func(m *member) {
		if why != nil {
			m.leader.learn(m.r, why)
		}
		m.reset()
	})
}

// later carries on outside of the process, if process and session still live then.
func (s *memberSink) later(f func(*member)) {
	s.m.w.after(10*time.Microsecond, func() {
		if s.n.up && s.n.life == s.life && s.m.session == s.session {
			f(s.m)
		}
	})
}

func (m *member) delivered(d *wire.Delivery) {
	w := m.w
	id, pos := d.Event.MessageID, d.Event.Position
	w.count.Delivered++
	w.load.events.got[eventFor{id, m.group}]++
	if d.Attempt > 1 {
		w.count.Repeated++
	}
	w.tracef("member %d of group %d gets %s, attempt %d", m.id, m.group, id, d.Attempt)
	w.rec.Delivered(lincheck.Delivery{
		EventID: eventID(id), Group: groupName(m.group), Partition: d.Partition.Partition, Position: pos,
		Attempt: int(d.Attempt), AtMS: w.trueMS(), At: w.rec.Now(), Joined: m.joined,
	})
	if !m.holds && (w.manual || w.load.stopping || w.chance(0.85)) {
		w.after(w.between(time.Millisecond, 100*time.Millisecond), func() { m.ack(id, d.Partition, pos) })
	}
}

func (m *member) ack(id string, p base.PartitionID, pos base.Position) {
	w := m.w
	body := &timeline.Ack{Batches: []timeline.AckBatch{{Partition: p, Group: m.group, Positions: []base.Position{pos}}}}
	w.propose(m.leader, m.r, command.KindAck, body, 2*time.Second, func(res *command.Result, err error) {
		if err != nil { // an earlier try may have settled it; another is harmless
			w.after(w.backoff(), func() { m.ack(id, p, pos) })
			return
		}
		switch res.Acks[0] {
		case timeline.AckDone, timeline.AckAlready:
			w.count.Acked++
			w.load.events.settled(id, m.group)
			w.rec.Acked(lincheck.Ack{EventID: eventID(id), Group: groupName(m.group), At: w.rec.Now()})
		default:
			w.violated("an ack of %s for group %d, which was delivered, was answered %d", id, m.group, res.Acks[0])
		}
	})
}
