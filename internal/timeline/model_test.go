package timeline

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"pgregory.net/rapid"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/effect"
	"github.com/almanacdb/almanac/internal/engine"
	"github.com/almanacdb/almanac/internal/keys"
)

// The model: a partition is a sorted list of events, a group a set of settled
// positions. It is as naive as can be, so that it is right by inspection.

type modelGroup struct {
	start   StartRule
	cursor  base.Position
	settled map[base.Position]bool // above the cursor
}

type modelPartition struct {
	nextSeq uint64
	bytes   uint64
	events  []Event // in position order
	ids     map[string]base.Position
	groups  map[base.GroupID]*modelGroup
	due     []base.Position // events seen due by the last check: their order is final
}

func (m *modelPartition) find(pos base.Position) int {
	return slices.IndexFunc(m.events, func(e Event) bool { return e.Position == pos })
}

func (m *modelPartition) ack(g *modelGroup, clockMS int64, window int, ps []base.Position) []AckOutcome {
	out := make([]AckOutcome, len(ps))
	candidates := map[base.Position]bool{}
	for i, pos := range ps {
		switch {
		case pos.Compare(g.cursor) <= 0:
			out[i] = AckAlready
		case pos.DueMS > clockMS || m.find(pos) < 0:
			out[i] = AckNotFound
		case g.settled[pos] || candidates[pos]:
			out[i] = AckAlready // unless the first ack of pos finds the window full
		default:
			out[i] = AckDone
			candidates[pos] = true
		}
	}
	for _, e := range m.events {
		pos := e.Position
		if pos.Compare(g.cursor) <= 0 {
			continue
		}
		if !g.settled[pos] && !candidates[pos] {
			break
		}
		g.cursor = pos
		delete(g.settled, pos)
		delete(candidates, pos)
	}
	rest := slices.SortedFunc(maps.Keys(candidates), base.Position.Compare)
	for _, pos := range rest {
		if len(g.settled) < window {
			g.settled[pos] = true
			continue
		}
		for i := range ps {
			if ps[i] == pos {
				out[i] = AckWindowFull
			}
		}
	}
	return out
}

// machine drives the model and the package side by side.
type machine struct {
	e      engine.Engine
	clock  base.Timestamp
	window uint32
	ids    []base.PartitionID
	model  map[base.PartitionID]*modelPartition
}

func newMachine(t *rapid.T, e engine.Engine, topic base.TopicID) *machine {
	m := &machine{
		e:      e,
		clock:  base.TimestampAt(rapid.SampledFrom([]int64{0, 1000}).Draw(t, "start ms")),
		window: rapid.Uint32Range(0, 4).Draw(t, "window"),
		ids:    []base.PartitionID{{Topic: topic, Partition: 0}, {Topic: topic, Partition: 256}},
		model:  map[base.PartitionID]*modelPartition{},
	}
	for _, id := range m.ids {
		m.model[id] = &modelPartition{ids: map[string]base.Position{}, groups: map[base.GroupID]*modelGroup{}}
	}
	return m
}

// apply runs one command in a batch of its own, as a replica does.
func (m *machine) apply(t *rapid.T, fn func(v effect.View) error) {
	b := m.e.NewBatch(true)
	defer b.Close()
	if err := fn(strict{b}); err != nil {
		t.Fatal(err)
	}
	if err := b.Commit(false); err != nil {
		t.Fatal(err)
	}
}

func (m *machine) raise(t *rapid.T) {
	m.clock += base.Timestamp(rapid.SampledFrom([]uint64{1, 1, 1 << base.LogicalBits, 5 << base.LogicalBits}).Draw(t, "raise"))
}

func drawEvent(t *rapid.T) NewEvent {
	e := NewEvent{Payload: rapid.SliceOfN(rapid.Byte(), 0, 8).Draw(t, "payload")}
	if rapid.Bool().Draw(t, "has id") {
		e.MessageID = rapid.SampledFrom([]string{"a", "b", "c", "\x00", "\x00\x01"}).Draw(t, "id")
	}
	if rapid.Bool().Draw(t, "has more") {
		e.OrderingKey = rapid.SliceOfN(rapid.Byte(), 0, 3).Draw(t, "key")
		for range rapid.IntRange(0, 2).Draw(t, "headers") {
			e.Headers = append(e.Headers, Header{
				Name:  rapid.StringN(0, 3, 9).Draw(t, "name"),
				Value: rapid.SliceOfN(rapid.Byte(), 0, 3).Draw(t, "value"),
			})
		}
	}
	return e
}

func (m *machine) Publish(t *rapid.T) {
	m.raise(t)
	clockMS := m.clock.Millis()
	var p Publish
	var want []Published
	for range rapid.IntRange(1, 3).Draw(t, "batches") {
		b := Batch{Partition: rapid.SampledFrom(m.ids).Draw(t, "partition")}
		mp := m.model[b.Partition]
		for range rapid.IntRange(0, 4).Draw(t, "events") {
			e := drawEvent(t)
			due := clockMS
			switch rapid.IntRange(0, 3).Draw(t, "when") {
			case 0:
				e.DueMS = max(clockMS+rapid.Int64Range(-5, 20).Draw(t, "due"), 1)
				due = max(due, e.DueMS)
			case 1:
				e.DelayMS = rapid.Int64Range(-3, 20).Draw(t, "delay")
				due += max(e.DelayMS, 0)
			}
			b.Events = append(b.Events, e)
			want = append(want, mp.publish(clockMS, max(due, 1), m.clock, &e))
		}
		p.Batches = append(p.Batches, b)
	}
	m.apply(t, func(v effect.View) error {
		got, err := ApplyPublish(v, m.clock, m.clock, &p)
		if err == nil && !slices.Equal(got, want) {
			t.Fatalf("published %v, want %v", got, want)
		}
		for _, x := range got {
			if x.Position.DueMS < clockMS {
				t.Fatalf("%v inserted below the clock %d", x.Position, clockMS)
			}
		}
		return err
	})
}

func (m *modelPartition) publish(clockMS, due int64, revision base.Timestamp, e *NewEvent) Published {
	if first, ok := m.ids[e.MessageID]; ok && e.MessageID != "" && first.DueMS > clockMS {
		return Published{Position: first, Duplicate: true}
	}
	pos := base.Position{DueMS: due, Seq: m.nextSeq}
	m.nextSeq++
	m.ids[e.MessageID] = pos
	m.bytes += uint64(len(appendEvent(nil, e, revision)))
	m.events = append(m.events, stored(pos, revision, e))
	slices.SortFunc(m.events, func(a, b Event) int { return a.Position.Compare(b.Position) })
	return Published{Position: pos}
}

// stored returns a published event as it must read back; empty fields are nil.
func stored(pos base.Position, revision base.Timestamp, e *NewEvent) Event {
	return Event{
		Position: pos, FirstSeq: pos.Seq, Revision: revision, MessageID: e.MessageID,
		OrderingKey: e.OrderingKey, Headers: e.Headers, Payload: e.Payload,
	}
}

func (m *machine) Advance(t *rapid.T) { m.raise(t) }

func (m *machine) CreateGroup(t *rapid.T) {
	m.raise(t)
	c := CreateGroup{
		Group:      base.GroupID(rapid.Uint64Range(1, 2).Draw(t, "group")),
		Start:      rapid.SampledFrom([]StartRule{StartEarliest, StartLatest}).Draw(t, "start"),
		Partitions: m.ids[:rapid.IntRange(1, 2).Draw(t, "partitions")],
	}
	m.apply(t, func(v effect.View) error { return ApplyCreateGroup(v, m.clock, m.clock, &c) })
	for _, id := range c.Partitions {
		mp := m.model[id]
		if mp.groups[c.Group] != nil {
			continue
		}
		g := &modelGroup{start: c.Start, settled: map[base.Position]bool{}}
		if c.Start == StartLatest && mp.nextSeq > 0 {
			g.cursor = base.Position{DueMS: m.clock.Millis(), Seq: mp.nextSeq - 1}
		}
		mp.groups[c.Group] = g
	}
}

func (m *machine) Ack(t *rapid.T) {
	if rapid.Bool().Draw(t, "later") {
		m.raise(t)
	}
	var a Ack
	var want []AckOutcome
	for range rapid.IntRange(1, 2).Draw(t, "batches") {
		b := AckBatch{
			Partition: rapid.SampledFrom(m.ids).Draw(t, "partition"),
			Group:     base.GroupID(rapid.Uint64Range(1, 3).Draw(t, "group")),
		}
		mp := m.model[b.Partition]
		g := mp.groups[b.Group]
		var after base.Position
		if g != nil {
			after = g.cursor
		}
		// Mostly events at the cursor and a little above; sometimes any position.
		near := slices.IndexFunc(mp.events, func(e Event) bool { return e.Position.Compare(after) > 0 })
		for range rapid.IntRange(0, 6).Draw(t, "acks") {
			pos := base.Position{
				DueMS: rapid.Int64Range(-1, m.clock.Millis()+3).Draw(t, "due"),
				Seq:   rapid.Uint64Range(0, 9).Draw(t, "seq"),
			}
			if near >= 0 && rapid.IntRange(0, 9).Draw(t, "real") > 0 {
				i := near + rapid.IntRange(-1, 6).Draw(t, "above")
				pos = mp.events[min(max(i, 0), len(mp.events)-1)].Position
			}
			b.Positions = append(b.Positions, pos)
		}
		if g == nil {
			want = append(want, slices.Repeat([]AckOutcome{AckNotFound}, len(b.Positions))...)
		} else {
			want = append(want, mp.ack(g, m.clock.Millis(), int(m.window), b.Positions)...)
		}
		a.Batches = append(a.Batches, b)
	}
	m.apply(t, func(v effect.View) error {
		got, err := applyAck(v, m.clock, m.window, &a)
		if err == nil && !slices.Equal(got, want) {
			t.Fatalf("acks %+v at clock %d answered %v, want %v", a.Batches, m.clock.Millis(), got, want)
		}
		return err
	})
}

// Check compares everything that can be read with the model.
func (m *machine) Check(t *rapid.T) {
	var seen []base.PartitionID
	for _, id := range m.ids {
		mp := m.model[id]
		stats, ok, err := ReadStats(m.e, id)
		want := Stats{NextSeq: mp.nextSeq, Events: uint64(len(mp.events)), Bytes: mp.bytes}
		if err != nil || ok != (mp.nextSeq > 0) || stats != want {
			t.Fatalf("stats %+v, %v, %v; want %+v", stats, ok, err, want)
		}
		if ok {
			seen = append(seen, id)
		}
		m.checkScan(t, id, mp)
		m.checkGroups(t, id, mp)
	}
	got, err := Partitions(m.e, keys.PartitionSpan(m.ids[0].Topic, 0, 300))
	if err != nil || !slices.Equal(got, seen) {
		t.Fatalf("partitions %v, %v; want %v", got, err, seen)
	}
}

func (m *machine) checkScan(t *rapid.T, id base.PartitionID, mp *modelPartition) {
	clockMS := m.clock.Millis()
	var due []Event
	var next int64
	for _, e := range mp.events {
		if e.Position.DueMS <= clockMS {
			due = append(due, e)
		} else if next == 0 {
			next = e.Position.DueMS
		}
	}
	all := scan(t, m.e, id, base.Position{}, clockMS, 0, 0, due, false)
	if len(all) < len(mp.due) || !slices.Equal(all[:len(mp.due)], mp.due) {
		t.Fatalf("order below the clock changed from %v to %v", mp.due, all)
	}
	mp.due = all
	// From anywhere, with a limit.
	from := rapid.IntRange(0, len(due)).Draw(t, "from")
	limit := rapid.IntRange(1, 4).Draw(t, "limit")
	var after base.Position
	if from > 0 {
		after = due[from-1].Position
	}
	end := min(from+limit, len(due))
	scan(t, m.e, id, after, clockMS, limit, 0, due[from:end], end < len(due))
	// One byte lets one event through.
	end = min(from+1, len(due))
	scan(t, m.e, id, after, clockMS, 0, 1, due[from:end], end < len(due))

	ms, ok, err := NextDue(m.e, id, clockMS)
	if err != nil || ok != (next > 0) || ok && ms != next {
		t.Fatalf("next due %d, %v, %v; want %d", ms, ok, err, next)
	}
}

func scan(
	t *rapid.T, r effect.Reader, id base.PartitionID, after base.Position, clockMS int64,
	limit, maxBytes int, want []Event, wantMore bool,
) (ps []base.Position) {
	more, err := ScanDue(r, id, after, clockMS, limit, maxBytes, func(e Event) bool {
		if len(ps) >= len(want) {
			t.Fatalf("scan passes %v, want no more after %d", e.Position, len(want))
		}
		wantSameEvent(t, e, want[len(ps)])
		ps = append(ps, e.Position)
		return true
	})
	if err != nil || len(ps) != len(want) || more != wantMore {
		t.Fatalf("scan passed %v, more %v, %v; want %d events, more %v", ps, more, err, len(want), wantMore)
	}
	return ps
}

func (m *machine) checkGroups(t *rapid.T, id base.PartitionID, mp *modelPartition) {
	var listed []Group
	if err := Groups(m.e, id, func(g Group) bool { listed = append(listed, g); return true }); err != nil {
		t.Fatal(err)
	}
	for gid := base.GroupID(1); gid <= 2; gid++ {
		got, ok, err := ReadGroup(m.e, id, gid)
		g := mp.groups[gid]
		if err != nil || ok != (g != nil) {
			t.Fatalf("group %d: %v, %v", gid, ok, err)
		}
		if !ok {
			continue
		}
		want := Group{Group: gid, Start: g.start, Cursor: g.cursor, Acked: uint32(len(g.settled))}
		if got != want || len(listed) == 0 || listed[0] != want {
			t.Fatalf("group is %+v, listed %+v, want %+v", got, listed, want)
		}
		listed = listed[1:]
		if got.Acked > m.window {
			t.Fatalf("%d acked positions exceed the window of %d", got.Acked, m.window)
		}
		var marks []base.Position
		keep := func(p base.Position) bool { marks = append(marks, p); return true }
		err = AckedAbove(m.e, id, gid, base.Position{}, endOf(m.clock.Millis()), keep)
		wantMarks := slices.SortedFunc(maps.Keys(g.settled), base.Position.Compare)
		if err != nil || !slices.Equal(marks, wantMarks) {
			t.Fatalf("marks %v, %v; want %v", marks, err, wantMarks)
		}
		// Both ends of the bounds: the first mark is excluded, the last one included.
		if n := len(marks); n > 1 {
			marks = nil
			err = AckedAbove(m.e, id, gid, wantMarks[0], wantMarks[n-1], keep)
			if err != nil || !slices.Equal(marks, wantMarks[1:]) {
				t.Fatalf("marks above the first are %v, %v; want %v", marks, err, wantMarks[1:])
			}
		}
	}
	if len(listed) > 0 {
		t.Fatalf("unknown groups %+v", listed)
	}
}

// wantSameEvent compares events, empty and nil being equal.
func wantSameEvent(t *rapid.T, got, want Event) {
	t.Helper()
	same := got.Position == want.Position && got.FirstSeq == want.FirstSeq &&
		got.Revision == want.Revision && got.Flags == want.Flags && got.MessageID == want.MessageID &&
		bytes.Equal(got.OrderingKey, want.OrderingKey) && bytes.Equal(got.Payload, want.Payload) &&
		slices.EqualFunc(got.Headers, want.Headers, func(a, b Header) bool {
			return a.Name == b.Name && bytes.Equal(a.Value, b.Value)
		})
	if !same {
		t.Fatalf("event is %+v, want %+v", got, want)
	}
}

func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		runModel(t, engine.NewMem(engine.MemOptions{}), 1)
	})
}

// The same on Pebble, whose iterators and batches are another implementation. Each run
// has a topic of its own, among the remains of earlier ones.
func TestModelOnPebble(t *testing.T) {
	e, err := engine.OpenPebble("", engine.Options{FS: vfs.NewMem()})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	topic := base.TopicID(0)
	rapid.Check(t, func(t *rapid.T) {
		topic++
		runModel(t, e, topic)
	})
}

func runModel(t *rapid.T, e engine.Engine, topic base.TopicID) {
	m := newMachine(t, e, topic)
	cursors := map[string]base.Position{}
	t.Repeat(map[string]func(*rapid.T){
		"publish": m.Publish,
		"advance": m.Advance,
		"create":  m.CreateGroup,
		"ack":     m.Ack,
		"ack2":    m.Ack, // twice as likely
		"": func(t *rapid.T) {
			m.Check(t)
			for _, id := range m.ids {
				err := Groups(m.e, id, func(g Group) bool {
					k := fmt.Sprint(id, g.Group)
					if g.Cursor.Compare(cursors[k]) < 0 {
						t.Fatalf("cursor of %s moved back from %v to %v", k, cursors[k], g.Cursor)
					}
					cursors[k] = g.Cursor
					return true
				})
				if err != nil {
					t.Fatal(err)
				}
			}
		},
	})
}
