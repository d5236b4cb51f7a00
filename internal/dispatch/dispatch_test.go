package dispatch

import (
	"slices"
	"testing"
	"time"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/clock"
	"github.com/almanacdb/almanac/internal/engine"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/timeline"
)

// fixture is a dispatcher with group 1 in some partitions, at clock 1000.
type fixture struct {
	t   *testing.T
	e   engine.Engine
	d   *Dispatcher
	now clock.Mono
}

func newFixture(t *testing.T, o Options) *fixture {
	f := &fixture{t: t, e: engine.NewMem(engine.MemOptions{}), d: New(o), now: clock.Mono(time.Second)}
	createGroup(t, f.e, 1, modelParts...)
	return f
}

// due publishes n due events to a partition.
func (f *fixture) due(p int, n int) []base.Position {
	f.t.Helper()
	done := publish(f.t, f.e, 1000, timeline.Batch{Partition: modelParts[p], Events: make([]timeline.NewEvent, n)})
	f.d.Raised()
	ps := make([]base.Position, n)
	for i := range done {
		ps[i] = done[i].Position
	}
	return ps
}

func (f *fixture) open(id uint64, granted uint64, parts ...base.PartitionID) {
	f.t.Helper()
	must(f.t, f.d.Open(f.now, f.e, SessionID{1, id}, parts, 1, granted))
}

// pump pumps until nothing more is ready and returns what each session got.
func (f *fixture) pump() map[uint64][]Out {
	f.t.Helper()
	got := make(map[uint64][]Out)
	for more, rounds := true, 0; more; rounds++ {
		if rounds > 10_000 {
			f.t.Fatal("there is always more, and nothing comes")
		}
		var err error
		more, err = f.d.Pump(f.now, f.e, 1000, func() bool { return true }, func(o Out) {
			got[o.Session.ID] = append(got[o.Session.ID], o)
		})
		must(f.t, err)
	}
	return got
}

func (f *fixture) expire(d time.Duration) (ended []uint64) {
	f.now = f.now.Add(d)
	f.d.Expire(f.now, func(o Out) {
		if o.End == nil || o.End.Kind != fault.Unavailable {
			f.t.Errorf("session %v got %+v from Expire", o.Session, o)
		}
		ended = append(ended, o.Session.ID)
	})
	return ended
}

func (f *fixture) ack(p int, ps ...base.Position) []timeline.AckOutcome {
	f.t.Helper()
	out := ack(f.t, f.e, 1000, laneKey{modelParts[p], 1}, ps...)
	must(f.t, f.d.Settled(f.e, modelParts[p], 1, ps))
	return out
}

func positions(outs []Out) (ps []base.Position) {
	for _, o := range outs {
		for _, d := range o.Deliveries {
			ps = append(ps, d.Event.Position)
		}
	}
	return ps
}

// Batches of a session are numbered over all its partitions, so that a lost one shows.
func TestFirstCountsAllDeliveriesOfASession(t *testing.T) {
	f := newFixture(t, Options{BatchEvents: 3})
	f.due(0, 7)
	f.due(1, 4)
	f.open(1, 100, modelParts[:2]...)
	f.open(2, 100, modelParts[1])
	total := 0
	for id, outs := range f.pump() {
		next := uint64(0)
		for _, o := range outs {
			if o.First != next || len(o.Deliveries) == 0 || len(o.Deliveries) > 3 {
				t.Fatalf("session %d: a batch of %d numbered %d, after %d", id, len(o.Deliveries), o.First, next)
			}
			next += uint64(len(o.Deliveries))
		}
		total += int(next)
	}
	if total != 11 {
		t.Fatalf("%d of 11 events came", total)
	}
}

func TestSilentSessionEnds(t *testing.T) {
	f := newFixture(t, Options{SessionTimeout: 6 * time.Second, AckTimeout: time.Minute})
	ps := f.due(0, 2)
	f.open(1, 10, modelParts[0])
	f.open(2, 0, modelParts[0])
	if got := positions(f.pump()[1]); !slices.Equal(got, ps) {
		t.Fatalf("got %v", got)
	}
	if ended := f.expire(5 * time.Second); ended != nil {
		t.Fatalf("%v ended early", ended)
	}
	f.open(2, 10, modelParts[0]) // refreshed
	if ended := f.expire(time.Second); !slices.Equal(ended, []uint64{1}) {
		t.Fatalf("%v ended", ended)
	}
	got := f.pump()[2]
	if !slices.Equal(positions(got), ps) || got[0].Deliveries[0].Attempt != 2 {
		t.Fatalf("the other member got %+v", got)
	}
	if ended := f.expire(6 * time.Second); !slices.Equal(ended, []uint64{2}) || f.d.Sessions() != 0 {
		t.Fatalf("%v ended, %d are left", ended, f.d.Sessions())
	}
}

func TestMembersShareEvenly(t *testing.T) {
	f := newFixture(t, Options{})
	f.due(0, 300)
	for id := range uint64(3) {
		f.open(id, 1000, modelParts[0])
	}
	for id, outs := range f.pump() {
		if n := len(positions(outs)); n != 100 {
			t.Errorf("member %d got %d of 300", id, n)
		}
	}
	// One at a time, too.
	counts := make(map[uint64]int)
	for range 9 {
		f.due(0, 1)
		for id, outs := range f.pump() {
			counts[id] += len(positions(outs))
		}
	}
	for id := range uint64(3) {
		if counts[id] != 3 {
			t.Errorf("member %d got %d of 9 single events", id, counts[id])
		}
	}
}

func TestMemberWithoutCreditIsPassedOver(t *testing.T) {
	f := newFixture(t, Options{})
	f.due(0, 50)
	f.open(1, 0, modelParts[0])
	f.open(2, 7, modelParts[0])
	f.open(3, 1000, modelParts[0])
	got := f.pump()
	if len(got[1]) != 0 || len(positions(got[2])) > 7 || len(positions(got[2]))+len(positions(got[3])) != 50 {
		t.Fatalf("%d, %d and %d came", len(positions(got[1])), len(positions(got[2])), len(positions(got[3])))
	}
}

// A session's credit is shared by its partitions: a backlog in one must not keep what
// is due in another waiting until it is done.
func TestPartitionsTakeTurns(t *testing.T) {
	f := newFixture(t, Options{})
	f.due(0, 1000)
	f.due(1, 10)
	granted := uint64(2)
	heard := map[base.PartitionID]int{}
	for range 40 {
		f.open(1, granted, modelParts[:2]...)
		for _, o := range f.pump()[1] {
			for _, d := range o.Deliveries {
				heard[d.Partition]++
			}
		}
		granted += 2
	}
	if heard[modelParts[1]] != 10 {
		t.Fatalf("of 80 deliveries %d were the other partition's, which has 10 due", heard[modelParts[1]])
	}
}

func TestDoubledPartitionCountsOnce(t *testing.T) {
	f := newFixture(t, Options{})
	f.due(0, 10)
	f.open(1, 3, modelParts[0], modelParts[0])
	if n := len(positions(f.pump()[1])); n != 3 {
		t.Fatalf("%d deliveries for 3 credits", n)
	}
}

func TestUnknownGroup(t *testing.T) {
	f := newFixture(t, Options{})
	err := f.d.Open(f.now, f.e, SessionID{1, 1}, modelParts[:1], 9, 1)
	if fault.KindOf(err) != fault.NotFound || f.d.Sessions() != 0 {
		t.Fatalf("%v, %d sessions", err, f.d.Sessions())
	}
}

func TestDeadlineOfAnEarlierDeliveryIsForgotten(t *testing.T) {
	f := newFixture(t, Options{AckTimeout: 10 * time.Second, SessionTimeout: time.Hour})
	f.due(0, 1)
	f.open(1, 5, modelParts[0])
	f.pump()
	f.expire(4 * time.Second)
	f.d.Close(SessionID{1, 1})
	f.open(2, 5, modelParts[0])
	if got := f.pump()[2]; len(got) != 1 || got[0].Deliveries[0].Attempt != 2 {
		t.Fatalf("after the close: %+v", got)
	}
	f.expire(6 * time.Second) // the first delivery's deadline
	if got := f.pump(); len(got) != 0 {
		t.Fatalf("taken from its holder early: %+v", got)
	}
	f.expire(4 * time.Second)
	if got := f.pump()[2]; len(got) != 1 || got[0].Deliveries[0].Attempt != 3 {
		t.Fatalf("after its own deadline: %+v", got)
	}
}

// Events acked after the last member left are not handed to the next one.
func TestAckAfterTheLastMemberLeft(t *testing.T) {
	f := newFixture(t, Options{})
	ps := f.due(0, 5)
	f.open(1, 5, modelParts[0])
	f.pump()
	f.d.Close(SessionID{1, 1})
	if f.d.Idle() {
		t.Fatal("idle, with five events that came back")
	}
	f.ack(0, ps[0], ps[2], ps[4])
	f.open(2, 5, modelParts[0])
	if got := positions(f.pump()[2]); !slices.Equal(got, []base.Position{ps[1], ps[3]}) {
		t.Fatalf("got %v", got)
	}
	f.ack(0, ps[1], ps[3])
	f.d.Close(SessionID{1, 2})
	if !f.d.Idle() {
		t.Fatal("nothing is left, and not idle")
	}
}

// An ack that finds the window full settles nothing: the event stays with its holder
// and comes again after its deadline.
func TestAckThatFoundTheWindowFull(t *testing.T) {
	f := newFixture(t, Options{AckTimeout: 10 * time.Second, SessionTimeout: time.Hour})
	ps := f.due(0, timeline.MaxAckedWindow+2)
	f.open(1, 2, modelParts[0])
	if got := positions(f.pump()[1]); !slices.Equal(got, ps[:2]) {
		t.Fatalf("got %v", got)
	}
	f.ack(0, ps[2:]...)
	if out := f.ack(0, ps[1]); out[0] != timeline.AckWindowFull {
		t.Fatalf("outcome %d", out[0])
	}
	f.expire(10 * time.Second)
	f.open(1, 4, modelParts[0])
	if got := positions(f.pump()[1]); !slices.Equal(got, ps[:2]) {
		t.Fatalf("after the deadline came %v", got)
	}
}

// A window full of acks must not stop the one event whose ack would empty it.
func TestLowestUnsettledNeedsNoRoom(t *testing.T) {
	f := newFixture(t, Options{Window: 8})
	ps := f.due(0, 20)
	f.ack(0, ps[1:9]...)
	f.open(1, 100, modelParts[0])
	if got := positions(f.pump()[1]); !slices.Equal(got, ps[:1]) {
		t.Fatalf("got %v", got)
	}
	f.ack(0, ps[0])
	if got := positions(f.pump()[1]); !slices.Equal(got, ps[9:17]) {
		t.Fatalf("then %v", got)
	}
}

func TestPayloadBoundsABatch(t *testing.T) {
	f := newFixture(t, Options{BatchBytes: 1000})
	publish(t, f.e, 1000, timeline.Batch{Partition: modelParts[0], Events: []timeline.NewEvent{
		{Payload: make([]byte, 5000)}, {Payload: make([]byte, 400)}, {Payload: make([]byte, 400)}, {Payload: make([]byte, 400)},
	}})
	f.open(1, 100, modelParts[0])
	var sizes []int
	for _, o := range f.pump()[1] {
		sizes = append(sizes, len(o.Deliveries))
	}
	if !slices.Equal(sizes, []int{1, 2, 1}) {
		t.Fatalf("batches of %v", sizes)
	}
}

func TestWakeIsTheNextDeadline(t *testing.T) {
	f := newFixture(t, Options{AckTimeout: 10 * time.Second})
	if f.d.Wake() != 0 {
		t.Fatal("a deadline without anything in flight")
	}
	f.due(0, 1)
	f.open(1, 1, modelParts[0])
	f.pump()
	if want := f.now.Add(10 * time.Second); f.d.Wake() != want {
		t.Fatalf("wakes at %d, not %d", f.d.Wake(), want)
	}
}
