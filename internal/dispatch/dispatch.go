// Package dispatch hands due events of one range to the sessions that subscribed to
// them (E7). A Dispatcher lives at the range's orderer for one term; what it knows is
// not replicated: what was handed out, to whom, and until when. It is a plain machine,
// stepped by the replica that owns it; it refuses to know leases, logs and networks.
package dispatch

import (
	"math"
	"slices"
	"time"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/clock"
	"github.com/almanacdb/almanac/internal/effect"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/plant"
	"github.com/almanacdb/almanac/internal/timeline"
	"github.com/almanacdb/almanac/internal/wire"
)

// SessionID names a hand-out session: the gateway's node, and its number there.
type SessionID struct {
	Gateway base.NodeID
	ID      uint64
}

// Out is a batch of deliveries for one session, or its end.
type Out struct {
	Session SessionID
	// First is the running number, within the session, of the batch's first delivery;
	// a gap tells the gateway that something was lost on the way.
	First      uint64
	Deliveries []wire.Delivery
	End        *fault.Error // the session is over; nothing follows
}

// Options configure a Dispatcher.
type Options struct {
	AckTimeout     time.Duration // an unacked delivery returns to its group; default 30 s
	SessionTimeout time.Duration // a session that is not refreshed ends; default 6 s
	BatchEvents    int           // most events handed out in one batch; default 500
	BatchBytes     int           // most payload bytes in one batch; default 1 MiB
	Window         int           // most unsettled or out-of-order events per lane
}

func (o *Options) setDefaults() {
	if o.AckTimeout == 0 {
		o.AckTimeout = 30 * time.Second
	}
	if o.SessionTimeout == 0 {
		o.SessionTimeout = 6 * time.Second
	}
	if o.BatchEvents == 0 {
		o.BatchEvents = 500
	}
	if o.BatchBytes == 0 {
		o.BatchBytes = 1 << 20
	}
	if o.Window == 0 {
		o.Window = timeline.MaxAckedWindow
	}
}

// Dispatcher hands out one range's due events.
type Dispatcher struct {
	opts     Options
	sessions []*session // in order of opening
	lanes    []*lane    // in order of opening
	first    int        // whose turn it is among lanes
	expiry   []expiring // by deadline, because the ack timeout is one for all
}

type session struct {
	id       SessionID
	granted  uint64 // credits given since it opened
	sent     uint64 // deliveries handed to it since it opened
	lastSeen clock.Mono
}

func (s *session) credit() int { return int(s.granted - s.sent) }

type expiring struct {
	deadline clock.Mono
	lane     *lane
	pos      base.Position
	delivery *delivery
}

// New returns a dispatcher without sessions.
func New(o Options) *Dispatcher {
	o.setDefaults()
	return &Dispatcher{opts: o}
}

// Idle says that there is nothing to keep up to date: no session, and nothing that an
// earlier one gave back.
func (d *Dispatcher) Idle() bool { return len(d.lanes) == 0 }

// Sessions returns the number of open sessions.
func (d *Dispatcher) Sessions() int { return len(d.sessions) }

// Open opens a session, or refreshes it if it is open: granted is the sum of all
// credits given since it opened. The group must exist in every partition.
func (d *Dispatcher) Open(now clock.Mono, r effect.Reader, id SessionID, parts []base.PartitionID, g base.GroupID, granted uint64) error {
	if s := d.session(id); s != nil {
		s.lastSeen = now
		s.granted = max(s.granted, granted)
		return nil
	}
	s := &session{id: id, granted: granted, lastSeen: now}
	lanes := make([]*lane, 0, len(parts))
	for _, p := range parts {
		l, err := d.openLane(r, p, g)
		if err != nil {
			return err
		}
		if !slices.Contains(lanes, l) { // one credit is counted once
			lanes = append(lanes, l)
		}
	}
	for _, l := range lanes {
		l.sessions = append(l.sessions, s)
	}
	d.sessions = append(d.sessions, s)
	return nil
}

// Close ends a session; what it holds returns to its group at once.
func (d *Dispatcher) Close(id SessionID) {
	if s := d.session(id); s != nil {
		d.drop(s)
	}
}

func (d *Dispatcher) drop(s *session) {
	for _, l := range d.lanes {
		l.leave(s)
	}
	d.sessions = slices.DeleteFunc(d.sessions, func(t *session) bool { return t == s })
	d.lanes = slices.DeleteFunc(d.lanes, (*lane).forgettable)
}

func (d *Dispatcher) session(id SessionID) *session {
	for _, s := range d.sessions {
		if s.id == id {
			return s
		}
	}
	return nil
}

func (d *Dispatcher) lane(p base.PartitionID, g base.GroupID) *lane {
	for _, l := range d.lanes {
		if l.partition == p && l.group == g {
			return l
		}
	}
	return nil
}

func (d *Dispatcher) openLane(r effect.Reader, p base.PartitionID, g base.GroupID) (*lane, error) {
	if l := d.lane(p, g); l != nil {
		return l, nil
	}
	rec, ok, err := timeline.ReadGroup(r, p, g)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, fault.New(fault.NotFound, "group %d does not exist in partition %v", g, p)
	}
	l := &lane{partition: p, group: g, scan: rec.Cursor, cursor: rec.Cursor, marks: int(rec.Acked), more: true}
	l.skipMarks = rec.Acked > 0 && !plant.On(plant.AcksForgotten)
	if plant.On(plant.EventsForgotten) {
		last := base.Position{DueMS: math.MaxInt64}
		if err := timeline.AckedAbove(r, p, g, rec.Cursor, last, func(pos base.Position) bool { l.scan = pos; return true }); err != nil {
			return nil, err
		}
	}
	l.flight = make(map[base.Position]*delivery)
	d.lanes = append(d.lanes, l)
	return l, nil
}

// Settled tells that an applied command acked positions of a group. What of them is
// settled is read anew: an ack that found the window full settled nothing.
func (d *Dispatcher) Settled(r effect.Reader, p base.PartitionID, g base.GroupID, positions []base.Position) error {
	l := d.lane(p, g)
	if l == nil {
		return nil
	}
	rec, ok, err := timeline.ReadGroup(r, p, g)
	if err != nil || !ok {
		return err
	}
	positions, err = settledAmong(r, p, rec, positions)
	if err != nil {
		return err
	}
	l.settled(rec, positions)
	if l.forgettable() {
		d.lanes = slices.DeleteFunc(d.lanes, func(m *lane) bool { return m == l })
	}
	return nil
}

// Raised tells that the clock rose or events were published: there may be more to
// hand out.
func (d *Dispatcher) Raised() {
	for _, l := range d.lanes {
		l.more = true
	}
}

// Expire returns overdue deliveries to their groups and ends silent sessions.
func (d *Dispatcher) Expire(now clock.Mono, emit func(Out)) {
	for len(d.expiry) > 0 && d.expiry[0].deadline <= now {
		e := d.expiry[0]
		d.expiry = d.expiry[1:]
		if e.lane.flight[e.pos] == e.delivery {
			e.lane.giveBack(e.pos)
		}
	}
	for _, s := range slices.Clone(d.sessions) {
		if s.lastSeen.Add(d.opts.SessionTimeout) <= now {
			d.drop(s)
			emit(Out{Session: s.id, End: fault.New(fault.Unavailable, "the session was silent for %v", d.opts.SessionTimeout)})
		}
	}
}

// Wake returns the next ack deadline; 0 if nothing is in flight.
func (d *Dispatcher) Wake() clock.Mono {
	if len(d.expiry) == 0 {
		return 0
	}
	return d.expiry[0].deadline
}

// Pump hands out what is due by the range's clock and has a session with credit.
// confirm is asked once, before anything leaves: false means that the orderer's lease
// is not sure, and nothing is handed out. It returns true if more is ready.
func (d *Dispatcher) Pump(now clock.Mono, r effect.Reader, clockMS int64, confirm func() bool, emit func(Out)) (bool, error) {
	more, confirmed := false, false
	// Another lane comes first each time: a session's credit is shared by its lanes,
	// and a long one must not take all of it for ever.
	d.first++
	for i := range d.lanes {
		l := d.lanes[(d.first+i)%len(d.lanes)]
		if !l.ready() {
			continue
		}
		picked, err := l.pick(r, clockMS, d.opts)
		if err != nil {
			return false, err
		}
		if len(picked) == 0 {
			continue
		}
		if !confirmed {
			if !confirm() {
				l.unpick(picked)
				return false, nil
			}
			confirmed = true
		}
		d.handOut(now, l, picked, emit)
		more = more || l.ready()
	}
	return more, nil
}

// handOut spreads picked events evenly over the lane's sessions with credit, in turn.
func (d *Dispatcher) handOut(now clock.Mono, l *lane, picked []pick, emit func(Out)) {
	deadline := now.Add(d.opts.AckTimeout)
	d.compactExpiry()
	members := l.withCredit()
	even := (len(picked) + members - 1) / members
	for len(picked) > 0 {
		s := l.nextSession()
		share := min(s.credit(), even, len(picked))
		out := Out{Session: s.id, First: s.sent, Deliveries: make([]wire.Delivery, share)}
		for i, p := range picked[:share] {
			del := &delivery{session: s, attempt: p.attempt}
			l.flight[p.event.Position] = del
			d.expiry = append(d.expiry, expiring{deadline: deadline, lane: l, pos: p.event.Position, delivery: del})
			out.Deliveries[i] = wire.Delivery{Partition: l.partition, Attempt: p.attempt, Event: p.event}
		}
		s.sent += uint64(share)
		picked = picked[share:]
		emit(out)
	}
}

// compactExpiry drops the deadlines of what was settled, once they are the most.
func (d *Dispatcher) compactExpiry() {
	flying := 0
	for _, l := range d.lanes {
		flying += len(l.flight)
	}
	if len(d.expiry) < 2*flying+1024 {
		return
	}
	d.expiry = slices.DeleteFunc(d.expiry, func(e expiring) bool { return e.lane.flight[e.pos] != e.delivery })
}

// EndAll ends every session, because this replica orders the range no more.
func (d *Dispatcher) EndAll(why *fault.Error, emit func(Out)) {
	for _, s := range d.sessions {
		emit(Out{Session: s.id, End: why})
	}
	d.sessions, d.lanes, d.expiry = nil, nil, nil
}
