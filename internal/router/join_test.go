package router

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/command"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/keys"
	"github.com/almanacdb/almanac/internal/placement"
	"github.com/almanacdb/almanac/internal/timeline"
	"github.com/almanacdb/almanac/internal/wire"
)

// publishing is a router with one topic of two partitions in one range, led by node 2,
// which the test plays.
type publishing struct {
	t   *testing.T
	r   *Router
	tap *wireTap
}

func newPublishing(t *testing.T) *publishing {
	r, tap, hand := newRouter(t)
	r.topics.put(placement.Topic{ID: 1, Name: "t", Partitions: 2}, hand.Mono())
	start, end := base.PartitionID{Topic: 1}, base.PartitionID{Topic: 2}
	r.routes.put(desc(5, string(keys.Partition(start)), string(keys.Partition(end)), 2, 3))
	r.routes.led(5, 2)
	return &publishing{t, r, tap}
}

// outcome is what a caller learned.
type outcome struct {
	results []Published
	err     error
	done    bool
}

// publish begins a publish of an event for each id, and returns where its outcome will be.
func (p *publishing) publish(ctx context.Context, ids ...string) *outcome {
	events := make([]timeline.NewEvent, len(ids))
	for i, id := range ids {
		events[i].MessageID = id
	}
	return p.publishEvents(ctx, events)
}

func (p *publishing) publishEvents(ctx context.Context, events []timeline.NewEvent) *outcome {
	o := &outcome{}
	go func() {
		o.results, o.err = p.r.Publish(ctx, "t", events)
		o.done = true
	}()
	synctest.Wait()
	return o
}

// sent returns the ids of the n-th command, by batch, and fails if it is not the last.
func (p *publishing) sent(n int) [][]string {
	p.t.Helper()
	p.tap.mu.Lock()
	calls := p.tap.calls
	p.tap.mu.Unlock()
	if len(calls) != n+1 {
		p.t.Fatalf("%d commands were sent, not %d", len(calls), n+1)
	}
	c, err := command.Decode(calls[n].Body)
	if err != nil {
		p.t.Fatal(err)
	}
	var ids [][]string
	for _, b := range c.Body.(*timeline.Publish).Batches {
		var list []string
		for i := range b.Events {
			if got := PartitionOf(&b.Events[i], 2, b.Partition.Partition); got != b.Partition.Partition {
				p.t.Errorf("event %q went to partition %d", b.Events[i].MessageID, b.Partition.Partition)
			}
			list = append(list, b.Events[i].MessageID)
		}
		ids = append(ids, list)
	}
	return ids
}

// answer settles the n-th command: sequence numbers count its events, an id that begins
// with "known" is a duplicate.
func (p *publishing) answer(n int, ids [][]string) {
	res := &command.Result{}
	for _, id := range slices.Concat(ids...) {
		res.Published = append(res.Published, timeline.Published{
			Position: base.Position{DueMS: int64(n), Seq: uint64(len(res.Published))}, Duplicate: strings.HasPrefix(id, "known"),
		})
	}
	p.reply(n, &wire.Reply{Body: command.EncodeResult(nil, res)})
}

func (p *publishing) refuse(n int, f *fault.Error) {
	p.reply(n, &wire.Reply{Body: command.EncodeResult(nil, &command.Result{Refusal: f})})
}

func (p *publishing) fail(n int, f *fault.Error) { p.reply(n, &wire.Reply{Fault: f}) }

func (p *publishing) reply(n int, m *wire.Reply) {
	m.ID = p.tap.calls[n].ID
	p.r.store.Receive(p.tap.to[n], []wire.Message{{Reply: m}})
	synctest.Wait()
}

// published checks that a caller got the answer to each of its ids in the n-th command.
func (p *publishing) published(o *outcome, n int, ids [][]string, own ...string) {
	p.t.Helper()
	if !o.done || o.err != nil || len(o.results) != len(own) {
		p.t.Fatalf("%v: %+v", own, o)
	}
	for i, id := range own {
		got := o.results[i]
		at := slices.Index(slices.Concat(ids...), id)
		if got.Err != nil || got.Position != (base.Position{DueMS: int64(n), Seq: uint64(at)}) || got.Duplicate != strings.HasPrefix(id, "known") {
			p.t.Errorf("event %q, number %d of the command, got %+v", id, at, got)
		}
	}
}

func (p *publishing) failed(o *outcome, want fault.Kind) {
	p.t.Helper()
	if !o.done || len(o.results) == 0 {
		p.t.Fatalf("a caller has %+v", o)
	}
	for _, r := range o.results {
		if fault.KindOf(r.Err) != want {
			p.t.Errorf("%v, not %v", r.Err, want)
		}
	}
}

// pass lets time pass.
func pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

func bubble(t *testing.T, f func(t *testing.T, p *publishing)) {
	synctest.Test(t, func(t *testing.T) { f(t, newPublishing(t)) })
}

// What arrives while a command is under way shares the next one, in order, and each
// caller gets the answers to its own events.
func TestPublishesJoin(t *testing.T) {
	bubble(t, func(t *testing.T, p *publishing) {
		ctx := t.Context()
		first := p.publish(ctx, "a")
		one := p.publish(ctx, "b", "c", "known1", "d")
		two := p.publish(ctx, "known2")
		three := p.publish(ctx, "e", "f")
		zero := p.sent(0)
		p.answer(0, zero)
		p.published(first, 0, zero, "a")
		ids := p.sent(1)
		if len(ids) != 2 || len(slices.Concat(ids...)) != 7 {
			t.Fatalf("the next command has %v", ids)
		}
		order := []string{"b", "c", "known1", "d", "known2", "e", "f"}
		for _, batch := range ids {
			if !slices.IsSortedFunc(batch, func(a, b string) int { return slices.Index(order, a) - slices.Index(order, b) }) {
				t.Errorf("order %v", batch)
			}
		}
		if one.done || two.done || three.done {
			t.Fatal("answered before the command was")
		}
		p.answer(1, ids)
		p.published(one, 1, ids, "b", "c", "known1", "d")
		p.published(two, 1, ids, "known2")
		p.published(three, 1, ids, "e", "f")
		if len(p.r.publishes.ranges) != 0 {
			t.Error("a flight is left")
		}
	})
}

func TestJoinedPublishesAreBounded(t *testing.T) {
	bubble(t, func(t *testing.T, p *publishing) {
		p.publish(t.Context(), "a")
		for i := range 5 {
			p.publishEvents(t.Context(), []timeline.NewEvent{{MessageID: fmt.Sprint(i), Payload: make([]byte, commandBytes/5*2)}})
		}
		p.publishEvents(t.Context(), []timeline.NewEvent{{MessageID: "whale", Payload: make([]byte, 2*commandBytes)}})
		for n, want := range []int{1, 2, 2, 1, 1} {
			ids := p.sent(n)
			if got := len(slices.Concat(ids...)); got != want {
				t.Errorf("command %d has %d events, not %d", n, got, want)
			}
			p.answer(n, ids)
		}
	})
}

// An event that is refused costs its own caller alone.
func TestRefusedPublishHurtsNobodyElse(t *testing.T) {
	bubble(t, func(t *testing.T, p *publishing) {
		ctx := t.Context()
		p.publish(ctx, "a")
		good, bad, also := p.publish(ctx, "good"), p.publish(ctx, "bad"), p.publish(ctx, "also")
		p.answer(0, p.sent(0))
		if n := len(slices.Concat(p.sent(1)...)); n != 3 {
			t.Fatalf("%d joined", n)
		}
		p.refuse(1, fault.New(fault.Invalid, "due after the end of time"))
		p.answer(2, p.sent(2))
		p.sent(3)
		p.refuse(3, fault.New(fault.Invalid, "due after the end of time"))
		p.answer(4, p.sent(4))
		p.published(good, 2, [][]string{{"good"}}, "good")
		p.failed(bad, fault.Invalid)
		p.published(also, 4, [][]string{{"also"}}, "also")
	})
}

func TestUnknownOutcomeIsToldToEach(t *testing.T) {
	bubble(t, func(t *testing.T, p *publishing) {
		ctx := t.Context()
		p.publish(ctx, "a")
		one, two := p.publish(ctx, "b"), p.publish(ctx, "c")
		p.answer(0, p.sent(0))
		p.sent(1)
		p.fail(1, fault.New(fault.UnknownOutcome, "who knows"))
		p.failed(one, fault.UnknownOutcome)
		p.failed(two, fault.UnknownOutcome)
		p.sent(1) // and nothing is tried again
	})
}

// Who leaves is told what may have been done, and takes nobody along.
func TestCallersLeaveAlone(t *testing.T) {
	bubble(t, func(t *testing.T, p *publishing) {
		first, leaveFirst := context.WithCancel(t.Context())
		second, leaveSecond := context.WithCancel(t.Context())
		third, leaveThird := context.WithCancel(t.Context())
		flying := p.publish(first, "a")
		joined, stays, early := p.publish(second, "b"), p.publish(t.Context(), "c"), p.publish(third, "early")
		leaveThird()
		synctest.Wait()
		p.failed(early, fault.Cancelled) // surely not done: it was never sent
		leaveFirst()
		pass(3 * time.Millisecond)
		p.failed(flying, fault.UnknownOutcome)
		p.answer(0, p.sent(0))
		if ids := slices.Concat(p.sent(1)...); len(ids) != 2 || slices.Contains(ids, "early") {
			t.Fatalf("%v were sent", ids)
		}
		// The try did nothing: who leaves now knows that too, and is not in the next.
		p.fail(1, fault.New(fault.Unavailable, "the peer is gone"))
		leaveSecond()
		synctest.Wait()
		p.failed(joined, fault.Cancelled)
		pass(50 * time.Millisecond)
		ids := p.sent(2)
		p.answer(2, ids)
		p.published(stays, 2, [][]string{{"c"}}, "c")
	})
}

// A command that is not answered holds the next one up for a bounded time, and those who
// wait for it until their time is over.
func TestLostCommandIsOvertaken(t *testing.T) {
	bubble(t, func(t *testing.T, p *publishing) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		lost := p.publish(ctx, "a")
		waits := p.publish(t.Context(), "b")
		pass(overtakeAfter - 1)
		p.sent(0)
		pass(2)
		ids := p.sent(1)
		p.answer(1, ids)
		p.published(waits, 1, ids, "b")
		later := p.publish(t.Context(), "c")
		p.answer(2, p.sent(2))
		p.published(later, 2, [][]string{{"c"}}, "c")
		pass(time.Second)
		p.failed(lost, fault.UnknownOutcome)
		if len(p.r.publishes.ranges) != 0 {
			t.Error("a flight is left")
		}
		over := &publishQueue{}
		p.r.publishes.board(7, over, 0)
		if p.r.publishes.overtake(7, over, 0); over.flight > 0 {
			t.Error("a flight that is over was overtaken")
		}
	})
}

// Events without key and id that come together go to one partition, and over time to all.
func TestChoiceOfPartition(t *testing.T) {
	r, _, hand := newRouter(t)
	topic := &placement.Topic{ID: 1, Partitions: 8}
	events := []timeline.NewEvent{{Payload: make([]byte, choiceBytes/4)}}
	choose := func() base.Partition { return r.publishes.otherwise(topic, events, hand.Mono()) }
	byBytes, byTime := make(map[base.Partition]bool), make(map[base.Partition]bool)
	for range 200 {
		first := choose()
		hand.Advance(choiceFor - 1)
		for range 3 {
			if got := choose(); got != first {
				t.Fatalf("%d after %d", got, first)
			}
		}
		byBytes[first] = true
	}
	events[0].Payload = nil
	for range 200 {
		hand.Advance(choiceFor)
		byTime[choose()] = true
	}
	if len(byBytes) != 8 || len(byTime) != 8 {
		t.Errorf("%v and %v of 8 partitions", byBytes, byTime)
	}

	// Of the partitions that are led here, each has its turn.
	at := func(p base.Partition) string { return string(keys.Partition(base.PartitionID{Topic: 1, Partition: p})) }
	r.routes.put(desc(5, at(0), at(4), 2, 9))
	r.routes.put(desc(6, at(4), at(8), 2, 9))
	r.routes.led(5, 2)
	r.routes.led(6, 9)
	here := make(map[base.Partition]int)
	for range 400 {
		hand.Advance(choiceFor)
		here[choose()]++
	}
	if here[4]+here[5]+here[6]+here[7] < 390 || min(here[4], here[5], here[6], here[7]) < 50 {
		t.Errorf("of 4 partitions led here and 4 led elsewhere: %v", here)
	}
}
