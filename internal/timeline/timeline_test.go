package timeline

import (
	"bytes"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/effect"
	"github.com/almanacdb/almanac/internal/engine"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/keys"
)

// probe is a view that counts what a command costs and can fail one of its steps.
type probe struct {
	effect.View
	gets, iters, deletes int
	sets                 map[keys.Family]int
	failAt               int // the step that fails, from 1; 0: none
	steps                int
}

var errDisk = fault.New(fault.DiskFull, "no room")

func (p *probe) step() error {
	if p.steps++; p.steps == p.failAt {
		return errDisk
	}
	return nil
}

func (p *probe) Get(key []byte) ([]byte, bool, error) {
	p.gets++
	if err := p.step(); err != nil {
		return nil, false, err
	}
	return p.View.Get(key)
}

func (p *probe) NewIter(lower, upper []byte) (effect.Iterator, error) {
	p.iters++
	if err := p.step(); err != nil {
		return nil, err
	}
	it, err := p.View.NewIter(lower, upper)
	return &probeIter{it, p, nil}, err
}

func (p *probe) Set(key, value []byte) error {
	if p.sets == nil {
		p.sets = map[keys.Family]int{}
	}
	p.sets[keys.Family(key[0])]++
	if err := p.step(); err != nil {
		return err
	}
	return p.View.Set(key, value)
}

func (p *probe) Delete(key []byte) error {
	p.deletes++
	if err := p.step(); err != nil {
		return err
	}
	return p.View.Delete(key)
}

// probeIter fails moves the way an engine does: the move finds nothing, Error says why.
type probeIter struct {
	effect.Iterator
	p   *probe
	err error
}

func (it *probeIter) move(fn func() bool) bool {
	if err := it.p.step(); err != nil {
		it.err = err
		return false
	}
	return fn()
}

func (it *probeIter) First() bool { return it.move(it.Iterator.First) }
func (it *probeIter) Next() bool  { return it.move(it.Iterator.Next) }
func (it *probeIter) SeekGE(k []byte) bool {
	return it.move(func() bool { return it.Iterator.SeekGE(k) })
}
func (it *probeIter) Error() error { return it.err }

// newView returns an empty range's view.
func newView(tb testing.TB) effect.View {
	b := engine.NewMem(engine.MemOptions{}).NewBatch(true)
	tb.Cleanup(func() { b.Close() })
	return strict{b}
}

func at(ms int64) base.Timestamp { return base.TimestampAt(ms) }

func publish(tb testing.TB, v effect.View, clockMS int64, events ...NewEvent) []Published {
	tb.Helper()
	p := &Publish{Batches: []Batch{{Partition: testPartition, Events: events}}}
	got, err := ApplyPublish(v, at(clockMS), at(clockMS), p)
	if err != nil {
		tb.Fatal(err)
	}
	return got
}

func createGroup1(tb testing.TB, v effect.View, clockMS int64, start StartRule) {
	tb.Helper()
	c := &CreateGroup{Group: 1, Start: start, Partitions: []base.PartitionID{testPartition}}
	if err := ApplyCreateGroup(v, at(clockMS), at(clockMS), c); err != nil {
		tb.Fatal(err)
	}
}

func acks(ps ...base.Position) *Ack {
	return &Ack{Batches: []AckBatch{{Partition: testPartition, Group: 1, Positions: ps}}}
}

func ack(tb testing.TB, v effect.View, clockMS int64, ps ...base.Position) []AckOutcome {
	tb.Helper()
	got, err := ApplyAck(v, at(clockMS), acks(ps...))
	if err != nil {
		tb.Fatal(err)
	}
	return got
}

func group1(tb testing.TB, v effect.View) Group {
	tb.Helper()
	g, ok, err := ReadGroup(v, testPartition, 1)
	if err != nil || !ok {
		tb.Fatalf("group: %v, %v", ok, err)
	}
	return g
}

func wantCursor(t *testing.T, v effect.View, cursor base.Position, acked uint32) {
	t.Helper()
	if g := group1(t, v); g.Cursor != cursor || g.Acked != acked {
		t.Fatalf("cursor %v with %d acked above, want %v with %d", g.Cursor, g.Acked, cursor, acked)
	}
}

func pos(due int64, seq uint64) base.Position { return base.Position{DueMS: due, Seq: seq} }

func positionsOf(ps []Published) (out []base.Position) {
	for _, p := range ps {
		out = append(out, p.Position)
	}
	return out
}

func TestDueTime(t *testing.T) {
	tests := []struct {
		name            string
		clock, due, del int64
		want            int64
	}{
		{"neither means now", 100, 0, 0, 100},
		{"requested", 100, 150, 0, 150},
		{"requested in the past", 100, 50, 0, 100},
		{"requested before 1970", 100, -50, 0, 100},
		{"delay", 100, 0, 7, 107},
		{"negative delay", 100, 0, -7, 100},
		{"requested wins over delay", 100, 150, 7, 150},
		{"the last millisecond", 100, MaxDueMS, 0, MaxDueMS},
		{"a delay to the last millisecond", 100, 0, MaxDueMS - 100, MaxDueMS},
		{"the first millisecond", 0, 0, 0, 1},
	}
	for _, tt := range tests {
		got := publish(t, newView(t), tt.clock, NewEvent{DueMS: tt.due, DelayMS: tt.del})
		if got[0].Position != pos(tt.want, 0) {
			t.Errorf("%s: %v, want due %d", tt.name, got[0].Position, tt.want)
		}
	}
}

func TestRefusedPublishWritesNothing(t *testing.T) {
	tests := []struct {
		name string
		e    NewEvent
		kind fault.Kind
	}{
		{"due after the end of time", NewEvent{DueMS: MaxDueMS + 1}, fault.Invalid},
		{"due at the end of int64", NewEvent{DueMS: math.MaxInt64}, fault.Invalid},
		{"delay past the end of time", NewEvent{DelayMS: MaxDueMS - 99}, fault.Invalid},
		{"delay that overflows", NewEvent{DelayMS: math.MaxInt64}, fault.Invalid},
		{"message id", NewEvent{MessageID: strings.Repeat("x", MaxMessageID+1)}, fault.TooLarge},
		{"ordering key", NewEvent{OrderingKey: make([]byte, MaxOrderingKey+1)}, fault.TooLarge},
		{"headers", NewEvent{Headers: make([]Header, MaxHeaders+1)}, fault.TooLarge},
	}
	for _, tt := range tests {
		v := &probe{View: newView(t)}
		p := &Publish{Batches: []Batch{
			{Partition: testPartition, Events: []NewEvent{{}}},
			{Partition: base.PartitionID{Topic: 9}, Events: []NewEvent{{}, tt.e}},
		}}
		_, err := ApplyPublish(v, at(100), at(100), p)
		if fault.KindOf(err) != tt.kind || v.steps != 0 {
			t.Errorf("%s: %v after %d steps", tt.name, err, v.steps)
		}
	}
}

func TestRefusedCreateGroupWritesNothing(t *testing.T) {
	for _, c := range []CreateGroup{
		{Group: 0, Start: StartEarliest}, {Group: 1, Start: 0}, {Group: 1, Start: 3},
	} {
		c.Partitions = []base.PartitionID{testPartition}
		v := &probe{View: newView(t)}
		if err := ApplyCreateGroup(v, at(1), at(1), &c); fault.KindOf(err) != fault.Invalid || v.steps != 0 {
			t.Errorf("%+v: %v after %d steps", c, err, v.steps)
		}
	}
}

func TestMessageIDIsTakenWhilePending(t *testing.T) {
	v := newView(t)
	later, now := NewEvent{MessageID: "a", DueMS: 200}, NewEvent{MessageID: "a"}
	got := publish(t, v, 100, later, now, later)
	want := []Published{{pos(200, 0), false}, {pos(200, 0), true}, {pos(200, 0), true}}
	if !slices.Equal(got, want) {
		t.Fatalf("in one command: %v", got)
	}
	if got := publish(t, v, 199, later); got[0] != want[1] {
		t.Fatalf("in a later command: %v", got)
	}
	if s, _, _ := ReadStats(v, testPartition); s.NextSeq != 1 || s.Events != 1 {
		t.Fatalf("duplicates changed the partition: %+v", s)
	}
	// Due events free their ids; one due at once never takes it.
	got = publish(t, v, 200, now, now, NewEvent{MessageID: "a", DueMS: 201}, now)
	want = []Published{{pos(200, 1), false}, {pos(200, 2), false}, {pos(201, 3), false}, {pos(201, 3), true}}
	if !slices.Equal(got, want) {
		t.Fatalf("once due: %v", got)
	}
	// Another partition has ids of its own.
	p := &Publish{Batches: []Batch{{Partition: base.PartitionID{Topic: 7, Partition: 4}, Events: []NewEvent{later}}}}
	if other, err := ApplyPublish(v, at(100), at(100), p); err != nil || other[0] != (Published{Position: pos(200, 0)}) {
		t.Fatalf("in another partition: %v, %v", other, err)
	}
}

func TestStartLatest(t *testing.T) {
	v := newView(t)
	createGroup1(t, v, 100, StartLatest)
	// The first event of an empty partition belongs to a group created before it, even in
	// the same millisecond.
	first := publish(t, v, 100, NewEvent{}, NewEvent{DueMS: 150})
	if got := ack(t, v, 100, first[0].Position); got[0] != AckDone {
		t.Fatalf("first event: %v", got)
	}
	// A group created later skips what is due, not what is pending.
	c := &CreateGroup{Group: 2, Start: StartLatest, Partitions: []base.PartitionID{testPartition}}
	if err := ApplyCreateGroup(v, at(100), at(100), c); err != nil {
		t.Fatal(err)
	}
	publish(t, v, 100, NewEvent{})
	g, _, _ := ReadGroup(v, testPartition, 2)
	if g.Cursor != pos(100, 1) {
		t.Fatalf("latest is %v", g.Cursor)
	}
	var got []base.Position
	ScanDue(v, testPartition, g.Cursor, 200, 0, 0, func(e Event) bool {
		got = append(got, e.Position)
		return true
	})
	if !slices.Equal(got, []base.Position{pos(100, 2), pos(150, 1)}) {
		t.Fatalf("latest sees %v", got)
	}
	// Creating again changes nothing.
	c.Start = StartEarliest
	if err := ApplyCreateGroup(v, at(300), at(300), c); err != nil {
		t.Fatal(err)
	}
	if again, _, _ := ReadGroup(v, testPartition, 2); again != g {
		t.Fatalf("created again: %+v", again)
	}
}

func TestAckOutcomes(t *testing.T) {
	v := newView(t)
	ps := positionsOf(publish(t, v, 100, NewEvent{}, NewEvent{}, NewEvent{}, NewEvent{DueMS: 101}))
	if got := ack(t, v, 100, ps[0]); got[0] != AckNotFound {
		t.Fatalf("without the group: %v", got)
	}
	createGroup1(t, v, 100, StartEarliest)
	got := ack(t, v, 100, ps[2], ps[3], pos(99, 0), ps[2], pos(100, 9), pos(0, 0), pos(-1, 0))
	want := []AckOutcome{AckDone, AckNotFound, AckNotFound, AckAlready, AckNotFound, AckAlready, AckAlready}
	if !slices.Equal(got, want) {
		t.Fatalf("above the cursor: %v, want %v", got, want)
	}
	wantCursor(t, v, pos(0, 0), 1)
	// Twice in one command, at the cursor: the first wins. The mark at ps[2] is passed.
	if got := ack(t, v, 100, ps[2], ps[1], ps[0], ps[0]); !slices.Equal(got,
		[]AckOutcome{AckAlready, AckDone, AckDone, AckAlready}) {
		t.Fatalf("at the cursor: %v", got)
	}
	wantCursor(t, v, ps[2], 0)
	// A pending event that has fallen due.
	if got := ack(t, v, 101, ps[3]); got[0] != AckDone {
		t.Fatalf("once due: %v", got)
	}
	wantCursor(t, v, ps[3], 0)
}

// Two batches of one command for the same group see each other.
func TestAckBatchesOfOneGroup(t *testing.T) {
	v := newView(t)
	createGroup1(t, v, 100, StartEarliest)
	ps := positionsOf(publish(t, v, 100, NewEvent{}, NewEvent{}))
	a := acks(ps[1])
	a.Batches = append(a.Batches, acks(ps[1], ps[0]).Batches...)
	got, err := ApplyAck(v, at(100), a)
	if err != nil || !slices.Equal(got, []AckOutcome{AckDone, AckAlready, AckDone}) {
		t.Fatalf("%v, %v", got, err)
	}
	wantCursor(t, v, ps[1], 0)
}

func TestAckedWindowIsBounded(t *testing.T) {
	v := newView(t)
	createGroup1(t, v, 100, StartEarliest)
	ps := positionsOf(publish(t, v, 100, make([]NewEvent, MaxAckedWindow+3)...))
	got := ack(t, v, 100, ps[2:]...)
	for i, o := range got {
		want := AckDone
		if i >= MaxAckedWindow {
			want = AckWindowFull
		}
		if o != want {
			t.Fatalf("ack %d: %v, want %v", i, o, want)
		}
	}
	wantCursor(t, v, pos(0, 0), MaxAckedWindow)
	// A full window takes nothing more above the cursor, but always what advances it.
	if got := ack(t, v, 100, ps[1]); got[0] != AckWindowFull {
		t.Fatalf("above a full window: %v", got)
	}
	if got := ack(t, v, 100, ps[0], ps[1]); !slices.Equal(got, []AckOutcome{AckDone, AckDone}) {
		t.Fatalf("at the cursor: %v", got)
	}
	wantCursor(t, v, ps[MaxAckedWindow+1], 0)
	if err := AckedAbove(v, testPartition, 1, pos(0, 0), endOf(100), func(p base.Position) bool {
		t.Errorf("mark at %v was left behind", p)
		return false
	}); err != nil {
		t.Fatal(err)
	}
}

// Acks in order cost one read of the group, one iterator and one write.
func TestInOrderAckCost(t *testing.T) {
	v := &probe{View: newView(t)}
	createGroup1(t, v, 100, StartEarliest)
	ps := positionsOf(publish(t, v, 100, make([]NewEvent, 100)...))
	*v = probe{View: v.View}
	ack(t, v, 100, ps...)
	if v.gets != 1 || v.iters != 1 || v.deletes != 0 || len(v.sets) != 1 || v.sets[keys.FamilyGroup] != 1 {
		t.Fatalf("%d gets, %d iterators, %d deletes, sets %v", v.gets, v.iters, v.deletes, v.sets)
	}
	// Acks settled before cost the read alone.
	*v = probe{View: v.View}
	ack(t, v, 100, ps...)
	if v.gets != 1 || v.steps != 1 {
		t.Fatalf("%d gets in %d steps", v.gets, v.steps)
	}
}

// A cursor passes events that nobody is to get (E6), though no command makes them yet.
func TestCursorPassesWithdrawnEvents(t *testing.T) {
	v := newView(t)
	createGroup1(t, v, 100, StartEarliest)
	ps := positionsOf(publish(t, v, 100, make([]NewEvent, 4)...))
	for i, f := range map[int]Flags{1: FlagCancelled, 2: FlagSkipped} {
		key := bytes.Clone(newPartition(testPartition).eventKey(ps[i]))
		value, _, err := v.Get(key)
		if err != nil {
			t.Fatal(err)
		}
		value[1] = byte(f)
		if err := v.Set(key, value); err != nil {
			t.Fatal(err)
		}
	}
	ack(t, v, 100, ps[0])
	wantCursor(t, v, ps[2], 0)
}

// An error of the view is fatal whatever its kind: half a command may be written.
func TestViewErrorsAreFatal(t *testing.T) {
	v := newView(t)
	createGroup1(t, v, 100, StartEarliest)
	ps := positionsOf(publish(t, v, 100, NewEvent{MessageID: "a"}, NewEvent{}, NewEvent{}, NewEvent{}))
	ack(t, v, 100, ps[1])
	commands := map[string]func(v effect.View) error{
		"publish": func(v effect.View) error {
			p := &Publish{Batches: []Batch{{Partition: testPartition, Events: []NewEvent{{MessageID: "a"}}}}}
			_, err := ApplyPublish(v, at(100), at(100), p)
			return err
		},
		"create group": func(v effect.View) error {
			c := &CreateGroup{Group: 2, Start: StartLatest, Partitions: []base.PartitionID{testPartition}}
			return ApplyCreateGroup(v, at(100), at(100), c)
		},
		"ack": func(v effect.View) error {
			_, err := ApplyAck(v, at(100), acks(ps[0], ps[3]))
			return err
		},
	}
	for name, apply := range commands {
		dry := &probe{View: &discard{v}}
		if err := apply(dry); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for step := 1; step <= dry.steps; step++ {
			err := apply(&probe{View: &discard{v}, failAt: step})
			if fault.KindOf(err) != fault.Internal || !errors.Is(err, errDisk) {
				t.Errorf("%s with step %d of %d failing: %v", name, step, dry.steps, err)
			}
		}
	}
}

// discard reads a view and drops what is written.
type discard struct{ effect.View }

func (discard) Set(key, value []byte) error { return nil }
func (discard) Delete(key []byte) error     { return nil }

func TestDamagedStateIsCorrupt(t *testing.T) {
	p := newPartition(testPartition)
	tests := map[string]struct{ key, value []byte }{
		"meta":     {bytes.Clone(p.metaKey()), []byte{9}},
		"index":    {bytes.Clone(p.messageIDKey("a")), nil},
		"group":    {bytes.Clone(p.groupKey(1)), []byte{1}},
		"group id": {append(bytes.Clone(p.groupKey(1)), 0), []byte{1}},
		"event":    {bytes.Clone(p.eventKey(pos(100, 0))), []byte{1}},
		"position": {append(bytes.Clone(p.eventKey(pos(100, 0))), 0), nil},
		"mark":     {append(bytes.Clone(p.ackedKey(1, pos(100, 0))), 0), nil},
	}
	for name, tt := range tests {
		v := newView(t)
		createGroup1(t, v, 100, StartEarliest)
		ps := positionsOf(publish(t, v, 100, make([]NewEvent, 3)...))
		ack(t, v, 100, ps[2]) // a mark, so that marks are read
		if err := v.Set(tt.key, tt.value); err != nil {
			t.Fatal(err)
		}
		found := 0
		check := func(err error) {
			if fault.KindOf(err) == fault.Corrupt {
				found++
			} else if err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		_, err := ApplyPublish(v, at(100), at(100), &Publish{Batches: []Batch{
			{Partition: testPartition, Events: []NewEvent{{MessageID: "a"}}}}})
		check(err)
		check(Groups(v, testPartition, func(Group) bool { return true }))
		_, err = ScanDue(v, testPartition, pos(0, 0), 100, 0, 0, func(Event) bool { return true })
		check(err)
		check(AckedAbove(v, testPartition, 1, pos(0, 0), endOf(100), func(base.Position) bool { return true }))
		_, err = ApplyAck(v, at(100), acks(ps[1], ps[0]))
		check(err)
		if found == 0 {
			t.Errorf("%s: nothing noticed", name)
		}
	}
}

// A count that disagrees with the marks is noticed, and never wraps around.
func TestMarksBeyondTheCountAreCorrupt(t *testing.T) {
	v := newView(t)
	createGroup1(t, v, 100, StartEarliest)
	ps := positionsOf(publish(t, v, 100, make([]NewEvent, 3)...))
	ack(t, v, 100, ps[2])
	if err := v.Set(newPartition(testPartition).ackedKey(1, ps[1]), nil); err != nil {
		t.Fatal(err)
	}
	if _, err := ApplyAck(v, at(100), acks(ps[0])); fault.KindOf(err) != fault.Corrupt {
		t.Fatalf("got %v", err)
	}
}

// A mark whose event is gone is cleared on the way and settles nothing else.
func TestMarkWithoutEvent(t *testing.T) {
	v := newView(t)
	createGroup1(t, v, 100, StartEarliest)
	ps := positionsOf(publish(t, v, 100, make([]NewEvent, 4)...))
	ack(t, v, 100, ps[1])
	if err := v.Delete(newPartition(testPartition).eventKey(ps[1])); err != nil {
		t.Fatal(err)
	}
	ack(t, v, 100, ps[0])
	wantCursor(t, v, ps[0], 0)
}

// Readers take any bounds, and what they hand out outlives the scan.
func TestReadEdges(t *testing.T) {
	v := newView(t)
	publish(t, v, 100, NewEvent{Payload: []byte("one")}, NewEvent{Payload: []byte("two")}, NewEvent{DueMS: 300})
	var events []Event
	keep := func(e Event) bool { events = append(events, e); return true }
	for _, tt := range []struct {
		after   base.Position
		clockMS int64
		want    int
	}{
		{pos(0, 0), 100, 2}, {pos(-9, 9), 100, 2}, {pos(0, 0), -1, 0}, {pos(0, 0), math.MinInt64, 0},
		{pos(0, 0), math.MaxInt64, 3}, {pos(100, 0), 100, 1}, {pos(100, math.MaxUint64), 100, 0},
		{pos(500, 0), 100, 0}, {pos(math.MaxInt64, math.MaxUint64), math.MaxInt64, 0},
	} {
		events = nil
		more, err := ScanDue(v, testPartition, tt.after, tt.clockMS, 0, 0, keep)
		if err != nil || more || len(events) != tt.want {
			t.Errorf("after %v at %d: %d events, %v, %v; want %d", tt.after, tt.clockMS, len(events), more, err, tt.want)
		}
	}
	events = nil
	more, err := ScanDue(v, testPartition, pos(0, 0), 100, 0, 0, func(e Event) bool { keep(e); return false })
	if err != nil || !more || len(events) != 1 {
		t.Fatalf("stopped after one: %d events, %v, %v", len(events), more, err)
	}
	ScanDue(v, testPartition, pos(100, 0), 100, 0, 0, keep)
	if string(events[0].Payload) != "one" || string(events[1].Payload) != "two" {
		t.Fatalf("kept %q, %q", events[0].Payload, events[1].Payload)
	}
	if cap(events[0].Payload) != len(events[0].Payload) {
		t.Fatal("an append to a payload would write into the shared buffer")
	}
	for clockMS, want := range map[int64]int64{-5: 100, 0: 100, 99: 100, 100: 300, 299: 300, 300: 0, math.MaxInt64: 0} {
		if due, ok, err := NextDue(v, testPartition, clockMS); err != nil || ok != (want > 0) || due != want {
			t.Errorf("next due at %d: %d, %v, %v", clockMS, due, ok, err)
		}
	}
	if e, ok, err := ReadEvent(v, testPartition, pos(300, 2)); err != nil || !ok || e.Position != pos(300, 2) {
		t.Errorf("pending event: %+v, %v, %v", e, ok, err)
	}
	if _, ok, err := ReadEvent(v, testPartition, pos(300, 1)); err != nil || ok {
		t.Errorf("no event: %v, %v", ok, err)
	}
}

// Neighbours in key order must not see each other's events, ids or groups.
func TestPartitionsAreApart(t *testing.T) {
	v := newView(t)
	ids := []base.PartitionID{{Topic: 1}, {Topic: 1, Partition: 1}, {Topic: 1, Partition: 256}, {Topic: 256}, {Topic: 256, Partition: 1}}
	for i, id := range ids {
		p := &Publish{Batches: []Batch{{Partition: id, Events: make([]NewEvent, i+1)}}}
		if _, err := ApplyPublish(v, at(100), at(100), p); err != nil {
			t.Fatal(err)
		}
		c := &CreateGroup{Group: base.GroupID(i) + 255, Start: StartEarliest, Partitions: []base.PartitionID{id}}
		if err := ApplyCreateGroup(v, at(100), at(100), c); err != nil {
			t.Fatal(err)
		}
	}
	for i, id := range ids {
		n := 0
		if _, err := ScanDue(v, id, pos(0, 0), 100, 0, 0, func(Event) bool { n++; return true }); err != nil || n != i+1 {
			t.Errorf("%v holds %d events, %v", id, n, err)
		}
		var groups []base.GroupID
		err := Groups(v, id, func(g Group) bool { groups = append(groups, g.Group); return true })
		if err != nil || !slices.Equal(groups, []base.GroupID{base.GroupID(i) + 255}) {
			t.Errorf("%v has groups %v, %v", id, groups, err)
		}
	}
	got, err := Partitions(v, base.Span{})
	if err != nil || !slices.Equal(got, ids) {
		t.Errorf("all partitions: %v, %v", got, err)
	}
	got, err = Partitions(v, keys.PartitionSpan(1, 1, 256))
	if err != nil || !slices.Equal(got, ids[1:2]) {
		t.Errorf("one span: %v, %v", got, err)
	}
}
