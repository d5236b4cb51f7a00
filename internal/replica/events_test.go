package replica

import (
	"testing"
	"time"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/command"
	"github.com/almanacdb/almanac/internal/dispatch"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/timeline"
	"github.com/almanacdb/almanac/internal/wire"
)

// anchored tells the node that oracle time is ms now.
func (g *rig) anchored(ms int64) { g.env.anchorMS, g.env.anchorAt = ms, g.now }

// pending is a topic's range that serves, at oracle time 1000 ms, with an event that is
// due at dueMS.
func pending(t *testing.T, dueMS int64) *rig {
	g := newRig(t, topicRange)
	g.serve()
	g.anchored(1000)
	g.do(publish("e", dueMS), base.TimestampAt(1000))
	if got := g.r.Visible().NextDueMS; got != dueMS {
		t.Fatalf("next due is %d, not %d", got, dueMS)
	}
	return g
}

// sleep runs turns whenever the replica wants to be woken, until d has passed.
func (g *rig) sleep(d time.Duration) (turns int) {
	g.t.Helper()
	end := g.now.Add(d)
	for {
		at := g.r.Wake(g.now)
		if at == 0 || at > end {
			break
		}
		g.now = max(g.now, at)
		g.sameTime(false)
		if turns++; turns > 5000 {
			g.t.Fatalf("is woken for ever")
		}
		if len(g.env.asks) > 0 {
			return turns
		}
	}
	g.now = end
	return turns
}

func TestE2TheTimerAsksWhenSomethingFallsDueByTheLastOracleTime(t *testing.T) {
	g := pending(t, 3000)
	from := g.now
	g.sleep(1900 * time.Millisecond)
	if len(g.env.asks) != 0 {
		t.Fatalf("asked %v after the anchor", g.now.Sub(from))
	}
	g.sleep(200 * time.Millisecond)
	if len(g.env.asks) != 1 || g.now.Sub(g.env.anchorAt) != 2*time.Second {
		t.Fatalf("asks %v, %v after the anchor", g.env.asks, g.now.Sub(g.env.anchorAt))
	}
	// The oracle is slower than this node's clock: nothing is proposed, and the timer is
	// set anew for the difference.
	last := g.m.st.LastIndex
	g.anchored(2995)
	g.grant(base.TimestampAt(2995))
	if g.m.st.LastIndex != last || len(g.env.asks) != 0 {
		t.Fatal("an advance that makes nothing due was proposed")
	}
	g.sleep(time.Second)
	if len(g.env.asks) != 1 || g.now.Sub(g.env.anchorAt) != 5*time.Millisecond {
		t.Fatalf("asks %v, %v after the second anchor", g.env.asks, g.now.Sub(g.env.anchorAt))
	}
	g.anchored(3000)
	g.grant(base.TimestampAt(3000))
	if g.m.st.LastIndex != last+1 || g.r.state.Clock.Millis() >= 3000 {
		t.Fatalf("after the third: log ends at %d", g.m.st.LastIndex)
	}
	g.commit()
	if g.r.state.Clock != base.TimestampAt(3000) || g.r.Visible().NextDueMS != 0 || g.r.Wake(g.now) != 0 {
		t.Errorf("clock %v, next due %d, wake %v", g.r.state.Clock, g.r.Visible().NextDueMS, g.r.Wake(g.now))
	}
}

func TestE2OneAdvanceFliesAtATimeAndTheyAreAMillisecondApart(t *testing.T) {
	g := pending(t, 2000)
	g.do(publish("f", 2001), base.TimestampAt(1001))
	g.sleep(2 * time.Second)
	g.anchored(2000)
	g.grant(base.TimestampAt(2000))
	at, last := g.now, g.m.st.LastIndex
	g.anchored(2010)
	g.sleep(time.Minute)
	if len(g.env.asks) != 0 || g.m.st.LastIndex != last {
		t.Fatal("a second advance was begun while one is in the log")
	}
	g.now = at
	g.anchored(2010)
	g.commit()
	g.sleep(time.Second)
	if len(g.env.asks) != 1 || g.now.Sub(at) < time.Millisecond {
		t.Errorf("asks %v, %v after the last advance", g.env.asks, g.now.Sub(at))
	}
}

func TestE2AnAdvanceOfAnEarlierTermSaysNothingOfTheOneInFlight(t *testing.T) {
	g := pending(t, 2000)
	committed := g.m.st.Commit
	publishes := func(stamp int64) {
		g.t.Helper()
		for range 4 {
			p, _ := proposal(publish("", 9000))
			g.turn(p)
			g.grant(base.TimestampAt(stamp))
			stamp++
		}
		g.sleep(time.Second)
		g.anchored(2000)
		g.grant(base.TimestampAt(2000))
		if !g.r.firing.flying {
			t.Fatal("no advance is in flight")
		}
	}
	publishes(1010)
	lost := g.m.st.LastIndex
	g.m.follow(102, committed)
	g.anchored(1000)
	g.commit()
	g.serve()
	publishes(1020)
	g.m.commitTo(lost)
	if g.turn(); !g.r.firing.flying || g.m.st.LastIndex <= lost {
		t.Error("the end of an earlier term's advance was taken for the present one's")
	}
}

func TestE2AnAdvanceThatIsNotAppendedIsTriedAgain(t *testing.T) {
	g := pending(t, 2000)
	g.sleep(time.Second)
	g.anchored(2000)
	g.m.busy = fault.New(fault.Busy, "too much")
	g.grant(base.TimestampAt(2000))
	g.m.busy = nil
	g.sleep(time.Second)
	g.grant(base.TimestampAt(2001))
	g.commit()
	if g.r.state.Clock.Millis() != 2001 {
		t.Errorf("the clock is %v", g.r.state.Clock)
	}
}

func TestE2AFailingOracleFiresNothingAndIsAskedAtMostEvery10ms(t *testing.T) {
	g := pending(t, 2000)
	g.sleep(2 * time.Second)
	last, from, tries := g.m.st.LastIndex, g.now, 0
	for g.now.Sub(from) < 5*time.Second {
		if len(g.env.asks) > 0 {
			tries++
			g.turn(g.take(0, 0, fault.New(fault.Unavailable, "no oracle")))
		}
		before := g.now
		g.sleep(200 * time.Millisecond)
		if gap := g.now.Sub(before); gap > stampRetryMax {
			t.Fatalf("waits %v", gap)
		}
	}
	if g.m.st.LastIndex != last || g.r.state.Clock.Millis() >= 2000 {
		t.Error("something fired")
	}
	if tries < 50 || tries > 60 {
		t.Errorf("%d attempts in 5 s", tries)
	}
}

func TestE2FarDueTimesDoNotOverflow(t *testing.T) {
	far := base.MaxTimestamp.Millis()
	g := pending(t, far)
	for range 3 {
		if at := g.r.Wake(g.now); at <= g.now || at > g.now.Add(25*time.Hour) {
			t.Fatalf("woken at %v, it is %v", at, g.now)
		}
		g.now = g.r.Wake(g.now)
		g.sameTime(false)
		g.anchored(2000)
		g.grant(base.TimestampAt(2000))
	}
	// And a due time long past, as after an outage.
	g = pending(t, 2000)
	g.anchored(far)
	if at := g.r.Wake(g.now); at <= 0 || at > g.now.Add(time.Millisecond) {
		t.Errorf("woken at %v, it is %v", at, g.now)
	}
}

func TestE11WithoutAnyOracleTimeTheTimerAsksAtOnce(t *testing.T) {
	g := pending(t, 2000)
	g.env.anchorMS = 0
	g.m.follow(102, 99)
	g.commit()
	if g.r.Wake(g.now) != 0 {
		t.Fatal("a replica that orders nothing wants to fire")
	}
	g.serve()
	g.sleep(10 * time.Millisecond)
	if len(g.env.asks) != 1 {
		t.Errorf("asks %v", g.env.asks)
	}
}

// subscribed is a topic's range with a group, one due event and a session.
func subscribed(t *testing.T) *rig {
	g := newRig(t, topicRange)
	g.serve()
	g.do(createGroup(1), base.TimestampAt(1000))
	g.do(publish("e", 0), base.TimestampAt(1001))
	return g
}

func (g *rig) open(session uint64, group base.GroupID) *outcome {
	g.t.Helper()
	o := new(outcome)
	g.turn(&SessionOpen{Gateway: 2, Request: wire.SessionOpen{Session: session, Topic: topic,
		Partitions: []base.Partition{0, 1}, Group: group, Granted: 100}, Done: func(err error) { o.done++; o.err = err }})
	return o
}

func (g *rig) deliveries() (ids []string) {
	for _, o := range g.env.outs {
		for _, d := range o.Deliveries {
			ids = append(ids, d.Event.MessageID)
		}
	}
	g.env.outs = nil
	return ids
}

func TestE7NothingIsHandedOutWithoutALeaseOrARound(t *testing.T) {
	g := subscribed(t)
	rounds := len(g.m.rounds)
	g.m.confirmed = g.now // of an earlier round
	if o := g.open(1, 1); o.err != nil {
		t.Fatal(o)
	}
	if ids := g.deliveries(); ids != nil || len(g.m.rounds) != rounds+1 {
		t.Fatalf("handed out %v after rounds %v", ids, g.m.rounds)
	}
	g.m.confirmed = g.m.rounds[rounds]
	g.turn()
	if ids := g.deliveries(); len(ids) != 1 {
		t.Fatalf("after the round: %v", ids)
	}
	// The next batch needs its own.
	g.do(publish("f", 0), base.TimestampAt(1002))
	if ids := g.deliveries(); ids != nil || len(g.m.rounds) <= rounds+1 {
		t.Fatalf("handed out %v by an old round", ids)
	}
	g.m.lease = true
	g.turn()
	if ids := g.deliveries(); len(ids) != 1 || ids[0] != "f" {
		t.Errorf("under the lease: %v", ids)
	}
}

func TestE7NotYetDueIsNotHandedOut(t *testing.T) {
	g := subscribed(t)
	g.m.lease = true
	g.do(publish("later", 5000), base.TimestampAt(1002))
	g.open(1, 1)
	if ids := g.deliveries(); len(ids) != 1 || ids[0] != "e" {
		t.Fatalf("%v", ids)
	}
	g.anchored(5000)
	g.sleep(10 * time.Millisecond)
	g.grant(base.TimestampAt(5000))
	if ids := g.deliveries(); ids != nil {
		t.Fatalf("%v before the advance is applied", ids)
	}
	g.commit()
	if ids := g.deliveries(); len(ids) != 1 || ids[0] != "later" {
		t.Errorf("%v", ids)
	}
}

func TestE7SessionsEndAtStepDownAndAtAStop(t *testing.T) {
	ends := map[string]func(g *rig){
		"step-down": func(g *rig) { g.m.follow(103, 99); g.turn() },
		"stop":      func(g *rig) { g.r.Stop() },
	}
	for name, end := range ends {
		g := subscribed(t)
		g.m.lease = true
		g.open(1, 1)
		g.env.outs = nil
		end(g)
		if len(g.env.outs) != 1 || g.env.outs[0].End == nil || g.env.outs[0].Session != (dispatch.SessionID{Gateway: 2, ID: 1}) {
			t.Errorf("%s: %+v", name, g.env.outs)
		}
		if name == "stop" {
			continue
		}
		if end := g.env.outs[0].End; end.Kind != fault.NotLeader || end.Leader != 3 {
			t.Errorf("ended with %v", end)
		}
		if o := g.open(1, 1); o.kind() != fault.NotLeader {
			t.Errorf("a session with who orders nothing: %v", o)
		}
	}
}

func TestE7AnAckOfAnEarlierOrderersDeliveryCounts(t *testing.T) {
	g := subscribed(t)
	g.m.lease = true
	g.open(1, 1)
	var at base.Position
	for _, o := range g.env.outs {
		at = o.Deliveries[0].Event.Position
	}
	if at == (base.Position{}) {
		t.Fatal("nothing was handed out")
	}
	g.m.follow(102, 99)
	g.commit()
	g.serve()
	g.m.lease = true
	g.env.outs = nil
	ack, err := command.Encode(command.Header{Kind: command.KindAck}, &timeline.Ack{Batches: []timeline.AckBatch{
		{Partition: base.PartitionID{Topic: topic}, Group: 1, Positions: []base.Position{at}}}})
	g.must(err)
	o := g.do(ack, 0)
	if len(o.result.Acks) != 1 || o.result.Acks[0] != timeline.AckDone {
		t.Fatalf("acks %v", o.result.Acks)
	}
	g.open(2, 1)
	if ids := g.deliveries(); ids != nil {
		t.Errorf("handed out %v, which is acked", ids)
	}
}

func TestE7ASessionThatComesEarlyIsHeld(t *testing.T) {
	g := subscribed(t)
	g.m.follow(102, 99)
	g.commit()
	g.m.lead()
	g.m.lease = true
	g.turn()
	o := g.open(1, 1)
	if o.done != 0 || g.deliveries() != nil {
		t.Fatalf("before the first entry: %v", o)
	}
	g.commit()
	if ids := g.deliveries(); o.done != 1 || o.err != nil || len(ids) != 1 {
		t.Errorf("%v, handed out %v", o, ids)
	}
	if o := g.open(2, 9); o.kind() != fault.NotFound {
		t.Errorf("a group that is not there: %v", o)
	}
}
