package host

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/clock"
	"github.com/almanacdb/almanac/internal/effect"
	"github.com/almanacdb/almanac/internal/engine"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/logstore"
	"github.com/almanacdb/almanac/internal/transport"
	"github.com/almanacdb/almanac/internal/wire"
)

// bench is a worker whose every act is noted, in order.
type bench struct {
	t       *testing.T
	clock   *clock.Manual
	log     *logstore.Store
	w       *Worker
	c       *Committer
	trace   []string
	fatal   []error
	fail    map[engine.Op]error
	members []*fake
}

func newBench(t *testing.T, o Options) *bench {
	b := &bench{t: t, clock: clock.NewManual(0), fail: make(map[engine.Op]error)}
	mem := engine.NewMem(engine.MemOptions{WAL: true, Fail: func(op engine.Op) error {
		b.note("%s", op)
		return b.fail[op]
	}})
	var err error
	if b.log, err = logstore.Open(mem); err != nil {
		t.Fatal(err)
	}
	o.Clock, o.Tick, o.Log, o.Transport = b.clock, 100*time.Millisecond, b.log, b
	o.Fatal = func(err error) { b.note("fatal"); b.fatal = append(b.fatal, err) }
	b.c = NewCommitter(b, o.Fatal)
	o.Committer = b.c
	o.Dropped = func(r base.RangeID, item any) { b.note("dropped %d %v", r, item) }
	b.w = NewWorker(o)
	return b
}

func (b *bench) note(format string, args ...any) {
	b.trace = append(b.trace, fmt.Sprintf(format, args...))
}

// Send implements transport.Transport.
func (b *bench) Send(to base.NodeID, c transport.Class, msgs ...wire.Message) bool {
	var s strings.Builder
	for _, m := range msgs {
		fmt.Fprintf(&s, " %d/%d", m.Replication.Range, m.Replication.Index)
	}
	b.note("send to %d:%s", to, s.String())
	return true
}

// wants compares the trace with lines and clears it.
func (b *bench) wants(lines ...string) {
	b.t.Helper()
	if !slices.Equal(b.trace, lines) {
		b.t.Fatalf("got\n\t%s\nwant\n\t%s", strings.Join(b.trace, "\n\t"), strings.Join(lines, "\n\t"))
	}
	b.trace = nil
}

func (b *bench) add(id base.RangeID) *fake {
	f := &fake{b: b, id: id}
	b.members = append(b.members, f)
	b.w.Do(func(w *Worker) { w.Add(f) })
	return f
}

// settle takes turns until there is nothing to do, and forgets what happened.
func (b *bench) settle() {
	for b.w.Turn() || b.c.Pending() {
		b.c.Commit()
	}
	b.trace = nil
}

// fake is a resident that notes its calls and does what the test says.
type fake struct {
	b       *bench
	id      base.RangeID
	quiet   bool // notes no Collect and Finish
	wake    clock.Mono
	again   int // how often Finish asks for another turn
	collect func(t *Turn)
	panics  string // the call that panics
}

func (f *fake) act(format string, args ...any) {
	f.b.note("%d "+format, append([]any{f.id}, args...)...)
	if name, _, _ := strings.Cut(format, " "); name == f.panics {
		panic("the log is broken")
	}
}

func (f *fake) Range() base.RangeID            { return f.id }
func (f *fake) Deliver(_ clock.Mono, item any) { f.act("deliver %v", item) }
func (f *fake) Tick(clock.Mono)                { f.act("tick") }
func (f *fake) Wake(clock.Mono) clock.Mono     { return f.wake }
func (f *fake) Poke(clock.Mono)                { f.wake = 0; f.act("poke") }
func (f *fake) Stop()                          { f.act("stop") }
func (f *fake) Saved(clock.Mono)               { f.act("saved") }

func (f *fake) Collect(_ clock.Mono, t *Turn) {
	if !f.quiet {
		f.act("collect")
	}
	if f.collect != nil {
		f.collect(t)
	}
}

func (f *fake) Finish(clock.Mono) bool {
	if !f.quiet {
		f.act("finish")
	}
	f.again--
	return f.again >= 0
}

// saves makes a resident append one synced entry and send a message on either side.
func (f *fake) saves(index uint64) {
	f.collect = func(t *Turn) {
		l := f.b.log.Log(f.id)
		t.Batch.Append(l, []base.Entry{{Index: index, Term: 1, Type: base.EntryNoop}})
		t.MustSync()
		t.TellSaved(f)
		t.SendEarly(9, &effect.Message{Range: f.id, Index: index})
		t.SendLate(8, &effect.Message{Range: f.id, Index: index})
	}
}

func TestTurnOrder(t *testing.T) {
	b := newBench(t, Options{})
	b.add(2).saves(1)
	b.add(1).saves(1)
	b.add(3)
	b.w.Post(2, "a")
	b.w.Post(1, "b")
	b.w.Post(2, "c")
	if b.w.Turn() {
		t.Error("another turn is wanted for nothing")
	}
	b.wants(
		"2 deliver a", "1 deliver b", "2 deliver c",
		"2 collect", "1 collect", "3 collect",
		"send to 9: 2/1 1/1", // before the save, one batch a node
		"2 finish", "1 finish", "3 finish",
	)
	// Nothing came: nobody is asked, nothing is saved or sent again.
	b.w.Turn()
	b.wants()
	b.c.Commit()
	b.wants("commit", "sync", "send to 8: 2/1 1/1") // one for all
	for _, f := range b.members {
		f.collect = nil
	}
	b.w.Turn()
	b.wants("2 saved", "1 saved", "2 collect", "1 collect", "2 finish", "1 finish")
	// Only who got something takes part, and an empty batch is no commit.
	b.w.Post(3, "d")
	b.w.Turn()
	b.wants("3 deliver d", "3 collect", "3 finish")
	if b.c.Pending() {
		t.Error("something is to be written")
	}
}

func TestTurnWithoutSync(t *testing.T) {
	b := newBench(t, Options{})
	f := b.add(1)
	f.quiet = true
	f.collect = func(t *Turn) { t.Batch.SetHardState(b.log.Log(1), effect.HardState{Term: 2}) }
	b.w.Turn()
	b.c.Commit()
	b.wants("commit")
	// What one turn asked for does not stick to the next.
	f.saves(1)
	b.w.Post(1, "a")
	b.w.Turn()
	f.collect = func(t *Turn) { t.Batch.SetHardState(b.log.Log(1), effect.HardState{Term: 3}) }
	b.c.Commit()
	b.w.Turn()
	b.wants("1 deliver a", "send to 9: 1/1", "commit", "sync", "send to 8: 1/1", "1 saved")
	b.c.Commit()
	b.wants("commit")
}

// While one sync is under way turns go on; all that they want saved shares the next.
func TestTurnsShareASync(t *testing.T) {
	b := newBench(t, Options{})
	other := NewWorker(b.w.opts)
	f, g := b.add(1), &fake{b: b, id: 2}
	other.Do(func(w *Worker) { w.Add(g) })
	f.quiet, g.quiet = true, true
	f.saves(1)
	b.w.Turn()
	f.saves(2)
	b.w.Post(1, "a")
	b.w.Turn()
	g.saves(1)
	other.Turn()
	if last := b.log.Log(1).Last(); last != 0 {
		t.Errorf("the log answers %d before it is written", last)
	}
	b.wants("send to 9: 1/1", "1 deliver a", "send to 9: 1/2", "send to 9: 2/1")
	b.c.Commit()
	b.wants("commit", "commit", "commit", "sync", "send to 8: 1/1", "send to 8: 1/2", "send to 8: 2/1")
	f.collect, g.collect = nil, nil
	b.w.Turn()
	other.Turn()
	b.wants("1 saved", "1 saved", "2 saved") // once for each turn
	if last := b.log.Log(1).Last(); last != 2 {
		t.Errorf("the log ends at %d", last)
	}
}

// What is sent late with nothing to save still waits for the saves before it.
func TestLateWithoutASave(t *testing.T) {
	b := newBench(t, Options{})
	f := b.add(1)
	f.quiet = true
	f.saves(1)
	b.w.Turn()
	f.collect = func(t *Turn) { t.SendLate(7, &effect.Message{Range: 1, Index: 5}) }
	b.w.Post(1, "a")
	b.w.Turn()
	b.wants("send to 9: 1/1", "1 deliver a")
	b.c.Commit()
	b.wants("commit", "sync", "send to 8: 1/1", "send to 7: 1/5")
}

// With nothing under way, what writes nothing waits for nothing.
func TestLateWithNothingUnderWay(t *testing.T) {
	b := newBench(t, Options{})
	f := b.add(1)
	f.quiet = true
	b.settle()
	f.collect = func(t *Turn) {
		t.SendLate(7, &effect.Message{Range: 1, Index: 5})
		t.TellSaved(f)
	}
	b.w.Post(1, "a")
	b.w.Turn()
	f.collect = nil
	b.wants("1 deliver a", "send to 7: 1/5")
	if b.c.Pending() {
		t.Error("the committer has something to do")
	}
	b.w.Turn()
	b.wants("1 saved")
}

func TestARangeThatLeftIsNotTold(t *testing.T) {
	b := newBench(t, Options{})
	b.add(1).saves(1)
	b.w.Turn()
	b.c.Commit()
	b.w.Do(func(w *Worker) { w.Remove(1) })
	b.trace = nil
	b.w.box.items[0], b.w.box.items[1] = b.w.box.items[1], b.w.box.items[0] // removed first
	b.w.Turn()
	b.wants("1 stop")
}

func TestFailedCommitEndsTheWorker(t *testing.T) {
	for _, op := range []engine.Op{engine.OpCommit, engine.OpSync} {
		b := newBench(t, Options{})
		b.add(1).saves(1)
		b.add(2)
		b.fail[op] = errors.New("no room")
		b.w.Turn()
		b.c.Commit()
		b.w.Post(1, "a")
		if b.w.Turn() || !b.w.Failed() {
			t.Fatal("goes on after its log failed")
		}
		want := []string{"1 collect", "2 collect", "send to 9: 1/1", "1 finish", "2 finish", "commit", "sync", "fatal", "dropped 1 a"}
		if op == engine.OpCommit {
			want = slices.Delete(want, 6, 7)
		}
		b.wants(want...) // nothing late left, nothing was told or delivered
		b.fail[op] = nil
		b.w.Post(1, "a")
		if b.w.Turn() {
			t.Fatal("takes turns")
		}
		b.wants()
		if len(b.fatal) != 1 || !strings.Contains(b.fatal[0].Error(), "no room") {
			t.Fatalf("told %v", b.fatal)
		}
	}
}

// A replica that finds its log damaged panics with the error; the kind tells the node that
// its disk is to blame.
func TestPanicOverDamageIsCorrupt(t *testing.T) {
	b := newBench(t, Options{})
	b.add(7)
	b.w.Do(func(*Worker) { panic(fault.New(fault.Corrupt, "entry 9 is missing")) })
	if b.w.guarded(); len(b.fatal) != 1 || fault.KindOf(b.fatal[0]) != fault.Corrupt {
		t.Fatalf("told %v", b.fatal)
	}
}

func TestPanicIsFatalAndNamesTheRange(t *testing.T) {
	for _, call := range []string{"deliver", "tick", "poke", "collect", "finish"} {
		t.Run(call, func(t *testing.T) {
			b := newBench(t, Options{})
			first, f := b.add(6), b.add(7)
			b.settle()
			first.quiet, f.panics, f.wake = true, call, 1
			first.saves(1)
			b.w.Post(6, "a")
			b.w.Post(7, "b")
			b.clock.Advance(time.Second)
			if b.w.guarded() || !b.w.Failed() {
				t.Fatal("goes on after a replica panicked")
			}
			if len(b.fatal) != 1 {
				t.Fatalf("told %v", b.fatal)
			}
			e := fault.As(b.fatal[0])
			if e.Kind != fault.Internal || e.Range != 7 || !strings.Contains(e.Text, "range 7") || !strings.Contains(e.Text, "the log is broken") {
				t.Errorf("told %v: %s", e.Kind, e.Text)
			}
			if !strings.Contains(e.Error(), "host_test.go") {
				t.Errorf("no stack in %s", e)
			}
			if call != "finish" && (slices.Contains(b.trace, "commit") || slices.Contains(b.trace, "send to 8: 6/1")) {
				t.Errorf("saved or sent after the panic: %v", b.trace)
			}
			// The batch was given up: the log is free for another.
			next := b.log.NewBatch()
			next.SetHardState(b.log.Log(6), effect.HardState{Term: 9})
			if err := next.Commit(true); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestPanicOfTheWorkersOwnMail(t *testing.T) {
	b := newBench(t, Options{})
	b.w.Do(func(*Worker) { panic("nobody's fault") })
	b.w.guarded()
	if len(b.fatal) != 1 || !strings.Contains(b.fatal[0].Error(), "a worker can't go on: nobody's fault") {
		t.Fatalf("told %v", b.fatal)
	}
}

func TestTicksAreNotCaughtUp(t *testing.T) {
	b := newBench(t, Options{})
	b.add(1).quiet = true
	b.settle()
	turn := func(d time.Duration, lines ...string) {
		t.Helper()
		b.clock.Advance(d)
		b.w.Turn()
		b.wants(lines...)
	}
	turn(99 * time.Millisecond)
	turn(1*time.Millisecond, "1 tick")
	turn(0)
	turn(10*time.Second, "1 tick") // a hundred are due
	turn(0)
	turn(49 * time.Millisecond)
	turn(1*time.Millisecond, "1 tick")
	turn(99 * time.Millisecond)
	turn(5*time.Millisecond, "1 tick") // a little late: the rhythm is kept
	turn(96*time.Millisecond, "1 tick")
}

func TestWakes(t *testing.T) {
	b := newBench(t, Options{})
	f, g := b.add(1), b.add(2)
	f.quiet, g.quiet = true, true
	b.settle()
	now := b.clock.Mono()
	if at := b.w.NextWake(now); at != now.Add(100*time.Millisecond) {
		t.Fatalf("next turn at %v, the tick is due at %v", at, now.Add(100*time.Millisecond))
	}
	g.wake = now.Add(30 * time.Millisecond)
	if at := b.w.NextWake(now); at != g.wake {
		t.Fatalf("next turn at %v, wanted at %v", at, g.wake)
	}
	b.clock.Advance(29 * time.Millisecond)
	b.w.Turn()
	b.wants()
	b.clock.Advance(time.Millisecond)
	b.w.Turn()
	b.wants("2 poke")
}

func TestFinishAsksForAnotherTurn(t *testing.T) {
	b := newBench(t, Options{})
	f := b.add(1)
	b.add(2)
	f.again = 2
	turns := 1
	for b.w.Turn() {
		turns++
	}
	if turns != 3 {
		t.Errorf("%d turns", turns)
	}
	b.wants("1 collect", "2 collect", "1 finish", "2 finish", "1 collect", "1 finish", "1 collect", "1 finish")
}

func TestRemove(t *testing.T) {
	b := newBench(t, Options{})
	b.add(1)
	b.add(2)
	b.settle()
	b.w.Post(1, "a")
	b.w.Do(func(w *Worker) { w.Remove(1); w.Remove(1); w.Remove(3) })
	b.w.Post(1, "b")
	b.w.Post(2, "c")
	b.clock.Advance(time.Second)
	b.w.Turn()
	b.wants("1 deliver a", "1 stop", "dropped 1 b", "2 deliver c", "2 tick", "2 collect", "2 finish")
	b.w.Do(func(w *Worker) {
		if w.Resident(1) != nil || w.Resident(2) == nil {
			t.Error("owns the wrong ranges")
		}
	})
	b.w.Turn()
}

func TestMailboxIsBounded(t *testing.T) {
	b := newBench(t, Options{Mailbox: 3})
	b.add(1)
	b.settle()
	for i := range 5 {
		if got, want := b.w.Post(1, i), i < 3; got != want {
			t.Errorf("post %d: %v", i, got)
		}
	}
	ran := false
	if !b.w.Do(func(*Worker) { ran = true }) {
		t.Error("mail to the worker itself was refused")
	}
	if !b.w.Answer(1, "answer") {
		t.Error("an answer that a replica waits for was refused")
	}
	if !b.w.Pending() {
		t.Error("nothing is pending")
	}
	b.w.Turn()
	b.wants("1 deliver 0", "1 deliver 1", "1 deliver 2", "1 deliver answer", "1 collect", "1 finish")
	if !ran || b.w.Pending() || !b.w.Post(1, 6) {
		t.Error("the mailbox was not emptied")
	}
}

func TestRunAndClose(t *testing.T) {
	defer goleak.VerifyNone(t)
	b := newBench(t, Options{})
	b.w.opts.Clock = clock.NewSystem()
	b.add(1).quiet = true
	b.add(2).quiet = true
	go b.c.Run()
	go b.w.Run()
	ran := make(chan struct{})
	b.w.Do(func(*Worker) { close(ran) })
	<-ran
	b.w.Close()
	b.c.Close()
	if n := len(b.trace); n < 2 || !slices.Equal(b.trace[n-2:], []string{"1 stop", "2 stop"}) {
		t.Errorf("ended with %v", b.trace)
	}
	if b.w.Post(1, "late") || b.w.Do(func(*Worker) {}) {
		t.Error("takes mail after Close")
	}
}

// Whoever got mail in is answered, even if the worker never reads it in a turn: Close
// may come between, or the log may fail.
func TestMailLeftBehindIsAnswered(t *testing.T) {
	defer goleak.VerifyNone(t)
	b := newBench(t, Options{})
	b.add(1).saves(1)
	b.fail[engine.OpCommit] = errors.New("no room")
	done := make(chan struct{})
	b.w.box.post(mail{saved: &save{err: errors.New("no room")}})
	b.w.Post(1, "a")
	b.w.Do(func(w *Worker) { w.Remove(1); close(done) })
	go b.w.Run()
	<-done
	b.w.Close()
	b.wants("dropped 1 a", "1 stop")
}

func TestStopMayPanicToo(t *testing.T) {
	defer goleak.VerifyNone(t)
	b := newBench(t, Options{})
	b.add(1).panics = "collect"
	b.add(2).panics = "stop"
	b.add(3)
	b.w.Run() // ends by itself
	b.wants("1 collect", "fatal", "1 stop", "2 stop", "3 stop")
	b.w.Close()
}
