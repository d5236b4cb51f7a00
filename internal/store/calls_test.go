package store

import (
	"log/slog"
	"testing"
	"time"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/clock"
	"github.com/almanacdb/almanac/internal/engine"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/logstore"
	"github.com/almanacdb/almanac/internal/transport"
	"github.com/almanacdb/almanac/internal/wire"
)

// outbox is a transport that keeps what is sent.
type outbox struct {
	sent   []*wire.Call
	refuse bool
}

func (o *outbox) Send(_ base.NodeID, _ transport.Class, msgs ...wire.Message) bool {
	for _, m := range msgs {
		o.sent = append(o.sent, m.Call)
	}
	return !o.refuse
}

// caller is a store that runs nothing by itself, under a clock moved by hand.
type caller struct {
	*Store
	out     *outbox
	clock   *clock.Manual
	answers []error
}

func newCaller(t *testing.T, c *clock.Manual) *caller {
	t.Helper()
	logs, err := logstore.Open(engine.NewMem(engine.MemOptions{WAL: true}))
	if err != nil {
		t.Fatal(err)
	}
	out := &outbox{}
	s, err := Open(Options{
		Node: 1, Clock: c, Log: logs, Engine: engine.NewMem(engine.MemOptions{}), Transport: out,
		Logger: slog.New(slog.DiscardHandler), Fatal: func(err error) { t.Error(err) },
	})
	if err != nil {
		t.Fatal(err)
	}
	return &caller{Store: s, out: out, clock: c}
}

func (c *caller) ask(to base.NodeID, m wire.Method, timeout time.Duration) (id uint64) {
	c.Call(to, m, 2, nil, timeout, func(_ []byte, err error) { c.answers = append(c.answers, err) })
	return c.out.sent[len(c.out.sent)-1].ID
}

func (c *caller) reply(from base.NodeID, id uint64) {
	c.Receive(from, []wire.Message{{Reply: &wire.Reply{ID: id}}})
}

// wants checks the answers so far by kind, 0 for success, and forgets them.
func (c *caller) wants(t *testing.T, kinds ...fault.Kind) {
	t.Helper()
	if len(c.answers) != len(kinds) {
		t.Fatalf("%d answers, not %d: %v", len(c.answers), len(kinds), c.answers)
	}
	for i, err := range c.answers {
		if fault.KindOf(err) != kinds[i] {
			t.Errorf("answer %d is %v, not of kind %v", i, err, kinds[i])
		}
	}
	c.answers = nil
}

func TestCallsAreAnsweredOnce(t *testing.T) {
	c := newCaller(t, clock.NewManual(1e12))
	id := c.ask(2, wire.MethodRead, time.Second)
	c.wants(t)
	c.reply(2, id)
	c.wants(t, 0)
	c.reply(2, id) // twice
	c.PeerLost(2)
	c.clock.Advance(time.Hour)
	c.Expire()
	c.wants(t)
}

func TestCallsTimeOut(t *testing.T) {
	c := newCaller(t, clock.NewManual(1e12))
	slow := c.ask(2, wire.MethodRead, 2*time.Second)
	write := c.ask(3, wire.MethodPropose, time.Second)
	admin := c.ask(3, wire.MethodAdmin, time.Second)
	c.clock.Advance(time.Second) // the callee may still say why
	c.Expire()
	c.wants(t)
	c.clock.Advance(callGrace)
	c.Expire()
	c.wants(t, fault.UnknownOutcome, fault.UnknownOutcome)
	c.reply(3, write)
	c.reply(3, admin)
	c.wants(t)
	c.clock.Advance(time.Second)
	c.Expire()
	c.wants(t, fault.Unavailable)
	c.reply(2, slow)
	c.wants(t)
}

func TestPeerLost(t *testing.T) {
	c := newCaller(t, clock.NewManual(1e12))
	read := c.ask(2, wire.MethodRead, time.Second)
	c.ask(2, wire.MethodPropose, time.Second)
	other := c.ask(3, wire.MethodRead, time.Second)
	c.PeerLost(2)
	c.wants(t, fault.Unavailable, fault.UnknownOutcome)
	c.reply(2, read)
	c.wants(t)
	c.reply(3, other)
	c.wants(t, 0)
}

// What waited for a connection that did not come about was never sent.
func TestPeerUnreachable(t *testing.T) {
	c := newCaller(t, clock.NewManual(1e12))
	c.ask(2, wire.MethodPropose, time.Second)
	c.PeerLost(2) // that one may have left with the connection
	c.wants(t, fault.UnknownOutcome)
	write := c.ask(2, wire.MethodPropose, time.Second)
	c.ask(2, wire.MethodRead, time.Second)
	other := c.ask(3, wire.MethodPropose, time.Second)
	c.callBulk(2, wire.MethodSnapshotFile, 2, nil, time.Second, func(_ []byte, err error) { c.answers = append(c.answers, err) })
	bulk := c.out.sent[len(c.out.sent)-1].ID
	c.PeerUnreachable(2)
	c.wants(t, fault.Unavailable, fault.Unavailable)
	c.reply(2, write)
	c.wants(t)
	c.reply(3, other)
	c.reply(2, bulk) // on a connection of its own
	c.wants(t, 0, 0)
}

// What was never sent was not done, a write neither.
func TestRefusedSendIsDefinite(t *testing.T) {
	c := newCaller(t, clock.NewManual(1e12))
	c.out.refuse = true
	c.ask(2, wire.MethodPropose, time.Second)
	c.wants(t, fault.Unavailable)
}

func TestReplyOfAnotherNodeIsIgnored(t *testing.T) {
	c := newCaller(t, clock.NewManual(1e12))
	id := c.ask(2, wire.MethodPropose, time.Second)
	c.reply(3, id)
	c.wants(t)
	c.reply(2, id)
	c.wants(t, 0)
}

// A restarted node must not take an answer to its earlier life's call, or deliveries to
// its earlier life's session, for its own.
func TestNumbersOfEarlierLivesAreNotUsedAgain(t *testing.T) {
	hand := clock.NewManual(1e12)
	first := newCaller(t, hand)
	var calls, sessions []uint64
	for range 100 {
		calls = append(calls, first.ask(2, wire.MethodStamps, time.Second))
		sessions = append(sessions, first.NewSession(nil))
	}
	hand.Advance(time.Millisecond)
	second := newCaller(t, hand)
	for range 100 {
		id, session := second.ask(2, wire.MethodPropose, time.Second), second.NewSession(nil)
		if id <= calls[len(calls)-1] || session <= sessions[len(sessions)-1] {
			t.Fatalf("call %d and session %d after %d and %d", id, session, calls[len(calls)-1], sessions[len(sessions)-1])
		}
	}
	for _, id := range calls {
		second.reply(2, id)
	}
	second.wants(t)
}

func TestCloseAnswersCalls(t *testing.T) {
	c := newCaller(t, clock.NewManual(1e12))
	c.ask(2, wire.MethodRead, time.Hour)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	c.wants(t, fault.Unavailable)
	c.Call(2, wire.MethodRead, 2, nil, time.Hour, func(_ []byte, err error) { c.answers = append(c.answers, err) })
	c.wants(t, fault.Stopped)
}

// Answered calls are not kept until their deadline, nor what their callers hold; those under
// way still get theirs.
func TestAnsweredCallsAreCleared(t *testing.T) {
	c := newCaller(t, clock.NewManual(1e12))
	waiting := c.ask(2, wire.MethodBarrier, time.Second)
	const n = 10 * manyAnswered
	for range n {
		c.reply(2, c.ask(2, wire.MethodBarrier, time.Minute))
	}
	if got := len(c.calls.due); got > 2*manyAnswered {
		t.Errorf("%d calls wait for their deadline, one is under way", got)
	}
	for _, p := range c.calls.due {
		if (p.done != nil) != (p.id == waiting) {
			t.Fatalf("call %d of %d: its caller is kept: %v", p.id, waiting, p.done != nil)
		}
	}
	c.clock.Advance(2 * time.Second)
	c.Expire()
	if len(c.answers) != n+1 || fault.KindOf(c.answers[n]) != fault.Unavailable {
		t.Errorf("%d answers, the last is %v", len(c.answers), c.answers[len(c.answers)-1])
	}
}
