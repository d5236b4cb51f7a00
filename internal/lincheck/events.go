package lincheck

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/almanacdb/almanac/internal/base"
)

// EventID names an event across publishes and deliveries. A history can be judged only
// if message ids are unique within their topic.
type EventID struct{ Topic, ID string }

// Publish is an acknowledged publish, or an acknowledged move to a new position.
type Publish struct {
	EventID
	Key       string // ordering key; empty if none
	Partition base.Partition
	Position  base.Position // its DueMS is when the event falls due
	Acked     time.Duration // monotonic
}

// Attempt is a publish whose outcome is unknown: the event may be delivered, but need
// not be.
type Attempt struct {
	EventID
	DueMS int64 // as asked for
}

// Delivery is a hand-out as a member saw it.
type Delivery struct {
	EventID
	Group     string
	Partition base.Partition
	Position  base.Position
	Attempt   int           // from 1
	AtMS      int64         // milliseconds since 1970, by the clock that judges early
	At        time.Duration // monotonic
	// Joined is when the member that got it began to join: monotonic, 0 if not known.
	Joined time.Duration
}

// Ack is an acknowledged ack: the event is settled for that group.
type Ack struct {
	EventID
	Group string
	At    time.Duration // monotonic
}

// Cancel is an acknowledged cancel of an event that was pending or withdrawn.
type Cancel struct{ EventID }

// Cursor is where a group's cursor stood at some time between Asked and At.
type Cursor struct {
	Topic     string
	Group     string
	Partition base.Partition
	Position  base.Position
	Asked, At time.Duration // monotonic
}

// EventHistory is what clients saw of events.
type EventHistory struct {
	Publishes  []Publish
	Attempts   []Attempt
	Deliveries []Delivery
	Acks       []Ack
	Cancels    []Cancel
	Cursors    []Cursor
}

// Group is a group that existed before any event of the history fell due.
type Group struct {
	Topic, Name string
	Ordered     bool // ordered mode
}

// EventRules say what a history is held to.
type EventRules struct {
	Groups []Group
	// EndMS: every event due at or before it had time to be delivered. Milliseconds
	// since 1970.
	EndMS int64
	// EarlyMS is how far ahead of its due time a delivery may seem, because the clock
	// that judges may be off; 0 if that clock is the oracle's own.
	EarlyMS int64
}

// ViolationKind says which promise was broken.
type ViolationKind uint8

// Violations.
const (
	Lost             ViolationKind = iota + 1 // acknowledged, due, and never delivered (invariant 3)
	Early                                     // delivered before its due time (invariant 3)
	Invented                                  // delivered, but never published
	Misplaced                                 // delivered at a place other than the acknowledged one
	CancelDelivered                           // delivered though cancelled before (invariant 4)
	CursorRegression                          // the cursor moved backwards (invariant 5)
	AckUndone                                 // handed to a member that joined after the ack was acknowledged (invariant 5)
	OutOfOrder                                // first hand-outs of an ordering key not in order (invariant 6)
)

var violationKinds = [...]string{
	Lost: "lost", Early: "early", Invented: "invented", Misplaced: "misplaced",
	CancelDelivered: "delivered after cancel", CursorRegression: "cursor moved backwards", AckUndone: "delivered after ack",
	OutOfOrder: "out of order",
}

// String returns the kind in words.
func (k ViolationKind) String() string {
	if int(k) < len(violationKinds) && violationKinds[k] != "" {
		return violationKinds[k]
	}
	return fmt.Sprintf("violation_%d", uint8(k))
}

// Violation is one broken promise.
type Violation struct {
	Kind  ViolationKind
	Event EventID // its ID is empty for a cursor
	Group string
	Text  string // the particulars
}

// String returns the violation as one line.
func (v Violation) String() string {
	return fmt.Sprintf("%v: %s/%s for group %s: %s", v.Kind, v.Event.Topic, v.Event.ID, v.Group, v.Text)
}

// EventReport is the outcome of CheckEvents.
type EventReport struct {
	Violations []Violation
	Delivered  int // (event, group) pairs delivered at least once
	Repeated   int // deliveries beyond the first of a pair: allowed, worth knowing
	AfterAck   int // of these, those seen after the ack was acknowledged: they may have been on their way
}

type eventGroup struct {
	event EventID
	group string
}

// CheckEvents holds a history to the rules. Violations come in the order of the
// history: acks undone and lost events first, then deliveries, cursors, orderings.
func CheckEvents(h EventHistory, rules EventRules) EventReport {
	published := make(map[EventID][]Publish)
	for _, p := range h.Publishes {
		published[p.EventID] = append(published[p.EventID], p)
	}
	cancelled := make(map[EventID]bool)
	for _, c := range h.Cancels {
		cancelled[c.EventID] = true
	}
	var r EventReport
	first := r.firstDeliveries(h)
	r.checkLost(h, rules, published, cancelled, first)
	r.checkDeliveries(h, rules, published, cancelled)
	r.checkCursors(h.Cursors)
	for _, g := range rules.Groups {
		if g.Ordered {
			r.checkOrder(h, g, published, first)
		}
	}
	return r
}

func (r *EventReport) add(k ViolationKind, e EventID, group, format string, args ...any) {
	r.Violations = append(r.Violations, Violation{Kind: k, Event: e, Group: group, Text: fmt.Sprintf(format, args...)})
}

// firstDeliveries finds each pair's earliest delivery and counts the others.
func (r *EventReport) firstDeliveries(h EventHistory) map[eventGroup]Delivery {
	acked := make(map[eventGroup]time.Duration)
	for _, a := range h.Acks {
		k := eventGroup{a.EventID, a.Group}
		if at, ok := acked[k]; !ok || a.At < at {
			acked[k] = a.At
		}
	}
	first := make(map[eventGroup]Delivery)
	for _, d := range h.Deliveries {
		k := eventGroup{d.EventID, d.Group}
		if at, ok := acked[k]; ok && d.At > at {
			r.AfterAck++
			if d.Joined > at {
				r.add(AckUndone, d.EventID, d.Group, "acknowledged at %v, attempt %d came at %v to a member that joined at %v", at, d.Attempt, d.At, d.Joined)
			}
		}
		f, ok := first[k]
		if ok {
			r.Repeated++
		}
		if !ok || d.At < f.At {
			first[k] = d
		}
	}
	r.Delivered = len(first)
	return first
}

func (r *EventReport) checkLost(h EventHistory, rules EventRules, published map[EventID][]Publish,
	cancelled map[EventID]bool, first map[eventGroup]Delivery) {
	seen := make(map[EventID]bool)
	for _, p := range h.Publishes {
		if seen[p.EventID] || cancelled[p.EventID] {
			continue
		}
		seen[p.EventID] = true
		due := slices.MaxFunc(published[p.EventID], func(a, b Publish) int { return cmp.Compare(a.Position.DueMS, b.Position.DueMS) })
		if due.Position.DueMS > rules.EndMS {
			continue
		}
		for _, g := range rules.Groups {
			if _, ok := first[eventGroup{p.EventID, g.Name}]; g.Topic == p.Topic && !ok {
				r.add(Lost, p.EventID, g.Name, "position %v acknowledged at %v, never delivered", due.Position, p.Acked)
			}
		}
	}
}

func (r *EventReport) checkDeliveries(h EventHistory, rules EventRules, published map[EventID][]Publish, cancelled map[EventID]bool) {
	attempted := make(map[EventID]int64) // earliest due time asked for
	for _, a := range h.Attempts {
		if due, ok := attempted[a.EventID]; !ok || a.DueMS < due {
			attempted[a.EventID] = a.DueMS
		}
	}
	for _, d := range h.Deliveries {
		due := d.Position.DueMS
		asked, tried := attempted[d.EventID]
		pubs := published[d.EventID]
		placed := tried // an unknown publish may have placed it anywhere
		for _, p := range pubs {
			placed = placed || p.Partition == d.Partition && p.Position == d.Position
		}
		switch {
		case len(pubs) == 0 && !tried:
			r.add(Invented, d.EventID, d.Group, "delivered at %v, never published", d.Position)
		case !placed:
			r.add(Misplaced, d.EventID, d.Group, "delivered at %d:%v, acknowledged at %d:%v",
				d.Partition, d.Position, pubs[0].Partition, pubs[0].Position)
		}
		if len(pubs) == 0 && tried {
			due = max(due, asked)
		}
		if d.AtMS < due-rules.EarlyMS {
			r.add(Early, d.EventID, d.Group, "due %d, delivered %d ms before", due, due-d.AtMS)
		}
		if cancelled[d.EventID] {
			r.add(CancelDelivered, d.EventID, d.Group, "attempt %d at %v", d.Attempt, d.At)
		}
	}
}

// checkCursors compares each sighting with the highest that was over before it was
// asked for; overlapping ones may be seen in either order.
func (r *EventReport) checkCursors(cursors []Cursor) {
	type place struct {
		topic, group string
		partition    base.Partition
	}
	at := func(c Cursor) place { return place{c.Topic, c.Group, c.Partition} }
	asked, over := slices.Clone(cursors), slices.Clone(cursors)
	slices.SortStableFunc(asked, func(a, b Cursor) int { return cmp.Compare(a.Asked, b.Asked) })
	slices.SortStableFunc(over, func(a, b Cursor) int { return cmp.Compare(a.At, b.At) })
	highest := make(map[place]Cursor)
	for _, c := range asked {
		for len(over) > 0 && over[0].At < c.Asked {
			if h, ok := highest[at(over[0])]; !ok || over[0].Position.Compare(h.Position) > 0 {
				highest[at(over[0])] = over[0]
			}
			over = over[1:]
		}
		if h, ok := highest[at(c)]; ok && c.Position.Compare(h.Position) < 0 {
			r.add(CursorRegression, EventID{Topic: c.Topic}, c.Group,
				"partition %d: %v seen at %v, %v asked for at %v", c.Partition, h.Position, h.At, c.Position, c.Asked)
		}
	}
}

// checkOrder: in the order of positions, each event of an ordering key is first handed
// out after the one before. Events that were moved are left out: their place changed.
func (r *EventReport) checkOrder(h EventHistory, g Group, published map[EventID][]Publish, first map[eventGroup]Delivery) {
	type line struct {
		partition base.Partition
		key       string
	}
	var lines []line // in the order of the history
	byLine := make(map[line][]Publish)
	for _, p := range h.Publishes {
		if p.Topic != g.Topic || p.Key == "" || len(published[p.EventID]) > 1 {
			continue
		}
		if _, ok := first[eventGroup{p.EventID, g.Name}]; !ok {
			continue
		}
		l := line{p.Partition, p.Key}
		if byLine[l] == nil {
			lines = append(lines, l)
		}
		byLine[l] = append(byLine[l], p)
	}
	for _, l := range lines {
		events := byLine[l]
		slices.SortStableFunc(events, func(a, b Publish) int { return a.Position.Compare(b.Position) })
		for i := 1; i < len(events); i++ {
			before, after := events[i-1], events[i]
			a, b := first[eventGroup{before.EventID, g.Name}], first[eventGroup{after.EventID, g.Name}]
			if b.At < a.At {
				r.add(OutOfOrder, after.EventID, g.Name, "key %q: %v first handed out at %v, before %s's at %v",
					l.key, after.Position, b.At, before.ID, a.At)
			}
		}
	}
}
