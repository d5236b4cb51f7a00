package lincheck

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/almanacdb/almanac/internal/base"
)

// history returns a flawless one: ten events of topic t, two groups, one of them in
// ordered mode, every event delivered when due and acked, cursors rising.
func history() (EventHistory, EventRules) {
	var h EventHistory
	for i := range 10 {
		e := EventID{"t", fmt.Sprintf("e%d", i)}
		pos := base.Position{DueMS: int64(1000 + 100*i), Seq: uint64(i)}
		h.Publishes = append(h.Publishes, Publish{EventID: e, Key: "k", Position: pos, Acked: time.Duration(i)})
		for _, g := range []string{"g", "ordered"} {
			at := time.Duration(pos.DueMS)
			h.Deliveries = append(h.Deliveries, Delivery{EventID: e, Group: g, Position: pos, Attempt: 1, AtMS: pos.DueMS, At: at})
			h.Acks = append(h.Acks, Ack{EventID: e, Group: g, At: at + 1})
			h.Cursors = append(h.Cursors, Cursor{Topic: "t", Group: g, Position: pos, Asked: at + 2, At: at + 3})
		}
	}
	return h, EventRules{Groups: []Group{{Topic: "t", Name: "g"}, {Topic: "t", Name: "ordered", Ordered: true}}, EndMS: 5000}
}

func TestCheckEvents(t *testing.T) {
	late := base.Position{DueMS: 9000, Seq: 99}
	for _, tc := range []struct {
		name  string
		plant func(*EventHistory, *EventRules)
		want  []ViolationKind
	}{
		{"flawless", func(*EventHistory, *EventRules) {}, nil},
		{"lost for one group", func(h *EventHistory, _ *EventRules) {
			h.Deliveries = slices.Delete(h.Deliveries, 6, 7)
		}, []ViolationKind{Lost}},
		{"lost for all groups", func(h *EventHistory, _ *EventRules) {
			h.Publishes = append(h.Publishes, Publish{EventID: EventID{"t", "lost"}, Position: base.Position{DueMS: 5000}})
		}, []ViolationKind{Lost, Lost}},
		{"not due yet", func(h *EventHistory, _ *EventRules) {
			h.Publishes = append(h.Publishes, Publish{EventID: EventID{"t", "later"}, Position: late})
		}, nil},
		{"another topic's groups", func(h *EventHistory, _ *EventRules) {
			h.Publishes = append(h.Publishes, Publish{EventID: EventID{"u", "x"}, Position: base.Position{DueMS: 1}})
		}, nil},
		{"early", func(h *EventHistory, _ *EventRules) { h.Deliveries[4].AtMS -= 1 }, []ViolationKind{Early}},
		{"early within the judging clock's offset", func(h *EventHistory, r *EventRules) {
			h.Deliveries[4].AtMS -= 500
			r.EarlyMS = 500
		}, nil},
		{"after the ack, to a member of before", func(h *EventHistory, _ *EventRules) {
			d, at := h.Deliveries[4], h.Acks[4].At
			d.At, d.Joined = at+10, at-1
			h.Deliveries = append(h.Deliveries, d)
		}, nil},
		{"after the ack, to a new member", func(h *EventHistory, _ *EventRules) {
			d, at := h.Deliveries[4], h.Acks[4].At
			d.At, d.Joined = at+10, at+1
			h.Deliveries = append(h.Deliveries, d)
		}, []ViolationKind{AckUndone}},
		{"early redelivery", func(h *EventHistory, _ *EventRules) {
			d := h.Deliveries[4]
			d.Attempt, d.AtMS = 2, d.AtMS-1
			h.Deliveries = append(h.Deliveries, d)
		}, []ViolationKind{Early}},
		{"invented", func(h *EventHistory, _ *EventRules) {
			h.Deliveries = append(h.Deliveries, Delivery{EventID: EventID{"t", "ghost"}, Group: "g", Position: late, AtMS: 9000})
		}, []ViolationKind{Invented}},
		{"another topic's event", func(h *EventHistory, _ *EventRules) {
			d := h.Deliveries[0]
			d.Topic = "u"
			h.Deliveries = append(h.Deliveries, d)
		}, []ViolationKind{Invented}},
		{"unknown publish delivered", func(h *EventHistory, _ *EventRules) {
			h.Attempts = append(h.Attempts, Attempt{EventID: EventID{"t", "maybe"}, DueMS: 8000})
			h.Deliveries = append(h.Deliveries, Delivery{EventID: EventID{"t", "maybe"}, Group: "g", Position: late, AtMS: 9000})
		}, nil},
		{"unknown publish never delivered", func(h *EventHistory, _ *EventRules) {
			h.Attempts = append(h.Attempts, Attempt{EventID: EventID{"t", "maybe"}, DueMS: 1000})
		}, nil},
		{"unknown publish delivered before it was asked to be", func(h *EventHistory, _ *EventRules) {
			h.Attempts = append(h.Attempts, Attempt{EventID: EventID{"t", "maybe"}, DueMS: 9001})
			h.Deliveries = append(h.Deliveries, Delivery{EventID: EventID{"t", "maybe"}, Group: "g", Position: late, AtMS: 9000})
		}, []ViolationKind{Early}},
		{"other position", func(h *EventHistory, _ *EventRules) { h.Deliveries[2].Position.Seq++ }, []ViolationKind{Misplaced}},
		{"other partition", func(h *EventHistory, _ *EventRules) { h.Deliveries[2].Partition++ }, []ViolationKind{Misplaced}},
		{"moved", func(h *EventHistory, _ *EventRules) {
			p := h.Publishes[3]
			p.Position = base.Position{DueMS: 3000, Seq: 50}
			h.Publishes = append(h.Publishes, p)
			for i := range h.Deliveries {
				if h.Deliveries[i].EventID == p.EventID {
					h.Deliveries[i].Position, h.Deliveries[i].AtMS, h.Deliveries[i].At = p.Position, 3000, 3000
				}
			}
		}, nil},
		{"cancelled and delivered", func(h *EventHistory, _ *EventRules) {
			h.Cancels = append(h.Cancels, Cancel{h.Deliveries[0].EventID})
		}, []ViolationKind{CancelDelivered, CancelDelivered}},
		{"cancelled and not delivered", func(h *EventHistory, _ *EventRules) {
			h.Publishes = append(h.Publishes, Publish{EventID: EventID{"t", "gone"}})
			h.Cancels = append(h.Cancels, Cancel{EventID{"t", "gone"}})
		}, nil},
		{"cursor back", func(h *EventHistory, _ *EventRules) {
			h.Cursors = append(h.Cursors, Cursor{Topic: "t", Group: "g", Position: base.Position{DueMS: 1800, Seq: 8}, Asked: 5000, At: 5001})
		}, []ViolationKind{CursorRegression}},
		{"cursor of another partition", func(h *EventHistory, _ *EventRules) {
			h.Cursors = append(h.Cursors, Cursor{Topic: "t", Group: "g", Partition: 1, Asked: 5000, At: 5001})
		}, nil},
		{"overlapping sightings of a cursor", func(h *EventHistory, _ *EventRules) {
			h.Cursors = append(h.Cursors, Cursor{Topic: "t", Group: "g", Position: base.Position{DueMS: 1800, Seq: 8}, Asked: 1850, At: 6000})
		}, nil},
		{"order swapped", func(h *EventHistory, _ *EventRules) {
			a, b := &h.Deliveries[3], &h.Deliveries[5] // e1 and e2 for the ordered group
			a.At, a.AtMS = b.At+5, b.AtMS+5
		}, []ViolationKind{OutOfOrder}},
		{"order swapped in shared mode", func(h *EventHistory, _ *EventRules) {
			h.Deliveries[2].At += 500
		}, nil},
		{"redelivery out of order", func(h *EventHistory, _ *EventRules) {
			d := h.Deliveries[3]
			d.Attempt, d.At = 2, 4000
			h.Deliveries = append(h.Deliveries, d)
		}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h, rules := history()
			tc.plant(&h, &rules)
			r := CheckEvents(h, rules)
			var got []ViolationKind
			for _, v := range r.Violations {
				got = append(got, v.Kind)
			}
			if !slices.Equal(got, tc.want) {
				t.Fatalf("found %v, want %v", r.Violations, tc.want)
			}
		})
	}
}

func TestCheckEventsCounts(t *testing.T) {
	h, rules := history()
	again := h.Deliveries[0]
	again.Attempt, again.At = 2, again.At+1 // in flight as the ack was acknowledged
	h.Deliveries = append(h.Deliveries, again)
	again.Attempt, again.At = 3, again.At+100
	h.Deliveries = append(h.Deliveries, again)
	r := CheckEvents(h, rules)
	if r.Delivered != 20 || r.Repeated != 2 || r.AfterAck != 1 || len(r.Violations) != 0 {
		t.Fatalf("%+v", r)
	}
}

func TestRecorderKeepsEvents(t *testing.T) {
	r := NewRecorder(nil)
	h, rules := history()
	for _, p := range h.Publishes {
		r.Published(p)
	}
	for _, d := range h.Deliveries {
		r.Delivered(d)
	}
	for _, a := range h.Acks {
		r.Acked(a)
	}
	for _, c := range h.Cursors {
		r.CursorSeen(c)
	}
	r.Attempted(Attempt{EventID: EventID{"t", "maybe"}})
	r.Cancelled(Cancel{EventID{"t", "gone"}})
	got := r.Events()
	if rep := CheckEvents(got, rules); len(rep.Violations) != 0 || rep.Delivered != 20 {
		t.Fatalf("%+v", rep)
	}
	if len(got.Attempts) != 1 || len(got.Cancels) != 1 || r.Now() < 0 {
		t.Fatalf("%+v", got)
	}
}
