package dispatch

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/clock"
	"github.com/almanacdb/almanac/internal/engine"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/timeline"
)

// The model runs a dispatcher as a replica does, over real timelines, and knows of every
// event what may happen to it: who holds it, how often it was handed out, whether it is
// settled. Every delivery is checked when it is made.

const (
	modelWindow  = 12
	modelTimeout = time.Second
)

var modelParts = []base.PartitionID{{Topic: 7, Partition: 0}, {Topic: 7, Partition: 1}, {Topic: 7, Partition: 2}}

// laneKey names a group in a partition.
type laneKey struct {
	part  base.PartitionID
	group base.GroupID
}

type modelSession struct {
	id      SessionID
	group   base.GroupID
	parts   []base.PartitionID
	granted uint64
	sent    uint64
	seen    clock.Mono
}

type holder struct {
	session SessionID
	until   clock.Mono
}

type modelLane struct {
	settled  map[base.Position]bool
	held     map[base.Position]holder
	attempts map[base.Position]uint32
	last     base.Position // of first hand-outs
}

type model struct {
	t        *rapid.T
	e        engine.Engine
	d        *Dispatcher
	now      clock.Mono
	clockMS  int64
	stamp    base.Timestamp
	events   map[base.PartitionID][]base.Position
	lanes    map[laneKey]*modelLane
	sessions []*modelSession
	nextID   uint64
	fresh    map[laneKey]bool // lanes with a first hand-out in the pump under way
}

func newModel(t *rapid.T) *model {
	m := &model{
		t: t, e: engine.NewMem(engine.MemOptions{}), now: clock.Mono(time.Second), clockMS: 1000,
		events: make(map[base.PartitionID][]base.Position), lanes: make(map[laneKey]*modelLane),
		fresh: make(map[laneKey]bool),
	}
	for g := base.GroupID(1); g <= 2; g++ {
		createGroup(t, m.e, g, modelParts...)
		for _, p := range modelParts {
			m.lanes[laneKey{p, g}] = &modelLane{settled: make(map[base.Position]bool)}
		}
	}
	m.begin()
	return m
}

// begin starts a term: a dispatcher that knows nothing.
func (m *model) begin() {
	m.d = New(Options{
		AckTimeout: modelTimeout, SessionTimeout: 2 * modelTimeout, Window: modelWindow,
		BatchEvents: rapid.IntRange(1, 6).Draw(m.t, "batch"), BatchBytes: 200,
	})
	m.sessions = nil
	for _, l := range m.lanes {
		l.held, l.attempts = make(map[base.Position]holder), make(map[base.Position]uint32)
		l.last = base.Position{}
	}
}

func (m *model) emit(o Out) {
	i := slices.IndexFunc(m.sessions, func(s *modelSession) bool { return s.id == o.Session })
	if i < 0 {
		m.t.Fatalf("session %v got something and is not open", o.Session)
	}
	s := m.sessions[i]
	if o.End != nil {
		if len(o.Deliveries) > 0 || s.seen.Add(2*modelTimeout) > m.now {
			m.t.Fatalf("session %v was ended, last seen %v ago: %v", s.id, m.now.Sub(s.seen), o.End)
		}
		m.forget(s)
		return
	}
	if o.First != s.sent {
		m.t.Fatalf("session %v got a batch numbered %d after %d deliveries", s.id, o.First, s.sent)
	}
	for _, d := range o.Deliveries {
		m.delivered(s, d.Partition, d.Event.Position, d.Attempt)
	}
}

func (m *model) delivered(s *modelSession, p base.PartitionID, pos base.Position, attempt uint32) {
	if s.sent++; s.sent > s.granted {
		m.t.Fatalf("session %v got %d deliveries for %d credits", s.id, s.sent, s.granted)
	}
	if !slices.Contains(s.parts, p) {
		m.t.Fatalf("session %v got an event of partition %v", s.id, p)
	}
	k := laneKey{p, s.group}
	l := m.lanes[k]
	h, held := l.held[pos]
	switch {
	case pos.DueMS > m.clockMS:
		m.t.Fatalf("%v of %v was handed out at %d, before it was due", pos, k, m.clockMS)
	case l.settled[pos]:
		m.t.Fatalf("%v of %v was handed out after it was acked", pos, k)
	case held:
		m.t.Fatalf("%v of %v was handed to %v while %v holds it", pos, k, s.id, h.session)
	case attempt != l.attempts[pos]+1:
		m.t.Fatalf("%v of %v: attempt %d after %d", pos, k, attempt, l.attempts[pos])
	case attempt == 1 && pos.Compare(l.last) <= 0:
		m.t.Fatalf("%v of %v was first handed out after %v", pos, k, l.last)
	}
	if attempt == 1 {
		l.last = pos
		m.fresh[k] = true
	}
	l.attempts[pos] = attempt
	l.held[pos] = holder{s.id, m.now.Add(modelTimeout)}
}

func (m *model) forget(s *modelSession) {
	m.sessions = slices.DeleteFunc(m.sessions, func(t *modelSession) bool { return t == s })
	for _, l := range m.lanes {
		for pos, h := range l.held {
			if h.session == s.id {
				delete(l.held, pos)
			}
		}
	}
}

func (m *model) Publish(t *rapid.T) {
	m.stamp++
	p := rapid.SampledFrom(modelParts).Draw(t, "partition")
	var batch timeline.Batch
	batch.Partition = p
	for range rapid.IntRange(1, 8).Draw(t, "events") {
		batch.Events = append(batch.Events, timeline.NewEvent{
			DueMS: m.clockMS + rapid.Int64Range(-3, 6).Draw(t, "due"), Payload: make([]byte, rapid.IntRange(0, 90).Draw(t, "payload")),
		})
	}
	for _, done := range publish(t, m.e, m.clockMS, batch) {
		m.events[p] = append(m.events[p], done.Position)
	}
	slices.SortFunc(m.events[p], base.Position.Compare)
	m.d.Raised()
}

func (m *model) Raise(t *rapid.T) {
	m.clockMS += rapid.Int64Range(1, 4).Draw(t, "ms")
	m.d.Raised()
}

func (m *model) Open(t *rapid.T) {
	m.nextID++
	s := &modelSession{
		id: SessionID{Gateway: base.NodeID(1 + m.nextID%2), ID: m.nextID}, seen: m.now,
		group: base.GroupID(rapid.IntRange(1, 2).Draw(t, "group")), granted: rapid.Uint64Range(0, 8).Draw(t, "granted"),
		parts: rapid.SliceOfN(rapid.SampledFrom(modelParts), 1, 4).Draw(t, "partitions"), // one may come twice
	}
	m.open(s)
}

func (m *model) open(s *modelSession) {
	if err := m.d.Open(m.now, m.e, s.id, s.parts, s.group, s.granted); err != nil {
		m.t.Fatal(err)
	}
	m.sessions = append(m.sessions, s)
}

func (m *model) Refresh(t *rapid.T) {
	if len(m.sessions) == 0 {
		t.Skip()
	}
	s := rapid.SampledFrom(m.sessions).Draw(t, "session")
	// An old refresh may come late: the sum of credits only rises.
	granted := s.granted + rapid.Uint64Range(0, 6).Draw(t, "more") - min(s.granted, rapid.Uint64Range(0, 2).Draw(t, "less"))
	s.granted, s.seen = max(s.granted, granted), m.now
	if err := m.d.Open(m.now, m.e, s.id, nil, 0, granted); err != nil {
		t.Fatal(err)
	}
}

func (m *model) Close(t *rapid.T) {
	if len(m.sessions) == 0 {
		t.Skip()
	}
	s := rapid.SampledFrom(m.sessions).Draw(t, "session")
	m.d.Close(s.id)
	m.forget(s)
}

// Ack acks anything that is due: what is held, what came back, what nobody has seen.
func (m *model) Ack(t *rapid.T) {
	k := laneKey{rapid.SampledFrom(modelParts).Draw(t, "partition"), base.GroupID(rapid.IntRange(1, 2).Draw(t, "group"))}
	if len(m.events[k.part]) == 0 {
		t.Skip()
	}
	m.ack(k, rapid.SliceOfN(rapid.SampledFrom(m.events[k.part]), 1, 4).Draw(t, "positions"))
}

func (m *model) ack(k laneKey, ps []base.Position) {
	l := m.lanes[k]
	for i, o := range ack(m.t, m.e, m.clockMS, k, ps...) {
		if o == timeline.AckDone {
			l.settled[ps[i]] = true
			delete(l.held, ps[i])
		}
	}
	if !m.d.Idle() { // as a replica asks, to save itself the work
		if err := m.d.Settled(m.e, k.part, k.group, ps); err != nil {
			m.t.Fatal(err)
		}
	}
}

func (m *model) Pump(t *rapid.T) { m.pump(rapid.Bool().Draw(t, "lease")) }

func (m *model) pump(lease bool) {
	asked := 0
	clear(m.fresh)
	_, err := m.d.Pump(m.now, m.e, m.clockMS, func() bool { asked++; return lease }, func(o Out) {
		if asked != 1 || !lease {
			m.t.Fatalf("something left with the lease asked %d times and answered %v", asked, lease)
		}
		m.emit(o)
	})
	if err != nil {
		m.t.Fatal(err)
	}
	for k := range m.fresh {
		l := m.d.lane(k.part, k.group)
		// Beyond the window only the lowest unsettled event may go out.
		if open := len(l.flight) + len(l.returned); open > 1 && l.marks+open > modelWindow {
			m.t.Fatalf("%v: %d acks out of order, %d unsettled, the window is %d", k, l.marks, open, modelWindow)
		}
	}
}

func (m *model) Expire(t *rapid.T) {
	m.now = m.now.Add(rapid.SampledFrom([]time.Duration{modelTimeout / 3, modelTimeout, 2 * modelTimeout}).Draw(t, "passed"))
	if at := m.d.Wake(); at != 0 && at <= m.now {
		for _, l := range m.lanes {
			for pos, h := range l.held {
				if h.until <= m.now {
					delete(l.held, pos)
				}
			}
		}
	}
	m.d.Expire(m.now, m.emit)
}

// StepDown ends the term; the next one knows only what the timelines hold.
func (m *model) StepDown(t *rapid.T) {
	ended := map[SessionID]bool{}
	m.d.EndAll(fault.NotLeaderOf(1, 2), func(o Out) { ended[o.Session] = o.End != nil })
	for _, s := range m.sessions {
		if !ended[s.id] {
			t.Fatalf("session %v was not told", s.id)
		}
	}
	if len(ended) != len(m.sessions) || !m.d.Idle() {
		t.Fatalf("%d sessions of %d were ended", len(ended), len(m.sessions))
	}
	m.begin()
}

// Check compares the dispatcher's books with the model's, event by event.
func (m *model) Check(t *rapid.T) {
	for k, l := range m.lanes {
		dl := m.d.lane(k.part, k.group)
		if dl == nil {
			if len(l.held) > 0 {
				t.Fatalf("%v: events are held and the lane is gone", k)
			}
			continue
		}
		for _, pos := range m.events[k.part] {
			m.checkEvent(t, k, l, dl, pos)
		}
		if len(dl.flight) != len(l.held) {
			t.Fatalf("%v: %d in flight, %d held", k, len(dl.flight), len(l.held))
		}
	}
}

func (m *model) checkEvent(t *rapid.T, k laneKey, l *modelLane, dl *lane, pos base.Position) {
	var places []string
	if del := dl.flight[pos]; del != nil {
		places = append(places, "in flight")
		if h := l.held[pos]; h.session != del.session.id {
			t.Fatalf("%v of %v is in flight to %v, held by %v", pos, k, del.session.id, h.session)
		}
	}
	if _, ok := slices.BinarySearchFunc(dl.returned, pos, comparePos); ok {
		places = append(places, "returned")
	}
	if pos.Compare(dl.scan) > 0 {
		places = append(places, "above scan")
		if pos.DueMS <= m.clockMS && !dl.more {
			t.Fatalf("%v of %v is due and would not be looked for", pos, k)
		}
	}
	switch {
	case l.settled[pos]:
		if len(places) > 0 && (places[0] != "above scan" || !dl.skipMarks) {
			t.Fatalf("%v of %v is settled and %v", pos, k, places)
		}
	case len(places) != 1:
		t.Fatalf("%v of %v (clock %d) is %v", pos, k, m.clockMS, places)
	}
}

// drain closes everything, opens everything anew, and acks what comes until nothing is
// left: no event may be missing.
func (m *model) drain() {
	for _, s := range slices.Clone(m.sessions) {
		m.d.Close(s.id)
		m.forget(s)
	}
	for g := base.GroupID(1); g <= 2; g++ {
		m.nextID++
		m.open(&modelSession{id: SessionID{ID: m.nextID}, group: g, parts: modelParts, granted: 1 << 20, seen: m.now})
	}
	for again := true; again; {
		m.pump(true)
		again = false
		for k, l := range m.lanes {
			var ps []base.Position
			for pos := range l.held {
				ps = append(ps, pos)
			}
			if len(ps) > 0 {
				m.ack(k, ps)
				again = true
			}
		}
	}
	for k, l := range m.lanes {
		for _, pos := range m.events[k.part] {
			if pos.DueMS <= m.clockMS && !l.settled[pos] {
				m.t.Fatalf("%v of %v was lost", pos, k)
			}
		}
	}
}

func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newModel(t)
		t.Repeat(rapid.StateMachineActions(m))
		m.drain()
	})
}

// createGroup, publish and ack do at once what a range does when it applies a command.

func createGroup(t fataler, e engine.Engine, g base.GroupID, parts ...base.PartitionID) {
	b := e.NewBatch(true)
	err := timeline.ApplyCreateGroup(b, 0, 1, &timeline.CreateGroup{Group: g, Start: timeline.StartEarliest, Partitions: parts})
	must(t, err)
	must(t, b.Commit(false))
}

func publish(t fataler, e engine.Engine, clockMS int64, batches ...timeline.Batch) []timeline.Published {
	b := e.NewBatch(true)
	done, err := timeline.ApplyPublish(b, base.TimestampAt(clockMS), 1, &timeline.Publish{Batches: batches})
	must(t, err)
	must(t, b.Commit(false))
	return done
}

func ack(t fataler, e engine.Engine, clockMS int64, k laneKey, ps ...base.Position) []timeline.AckOutcome {
	b := e.NewBatch(true)
	out, err := timeline.ApplyAck(b, base.TimestampAt(clockMS), &timeline.Ack{
		Batches: []timeline.AckBatch{{Partition: k.part, Group: k.group, Positions: ps}},
	})
	must(t, err)
	must(t, b.Commit(false))
	return out
}

type fataler interface{ Fatal(...any) }

func must(t fataler, err error) {
	if err != nil {
		t.Fatal(err)
	}
}

func (k laneKey) String() string { return fmt.Sprintf("partition %v, group %d", k.part, k.group) }
