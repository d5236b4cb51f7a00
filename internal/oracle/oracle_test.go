package oracle

import (
	"errors"
	"fmt"
	"math"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/clock"
	"github.com/almanacdb/almanac/internal/fault"
)

const (
	startMS  = int64(1_763_683_200_000)
	offsetMS = 500
	window   = time.Second
)

// cluster is a world of clocks around oracles that take over from one another: true
// time, one wall and one monotonic clock per node, a log that applies bounds, and
// messages that take time or get lost.
type cluster struct {
	t     *rapid.T
	trueT time.Duration // since startMS
	nodes []*node
	mail  []message

	term   uint64
	leader int
	bound  base.Timestamp // in the applied state of the system range
	last   base.Timestamp // highest handed out to anyone
}

type node struct {
	*Oracle
	id     base.NodeID
	origin clock.Mono
	ppm    int64 // drift of the monotonic clock
	skew   time.Duration
	term   uint64
	ready  bool
	floor  base.Timestamp // bound at Ready
	since  clock.Mono     // of Ready
	lastMS int64          // oracle time at the last tick
	lastAt clock.Mono
	jumped bool // oracle time may have moved forward since the last tick
}

type message struct {
	at   time.Duration
	to   int
	term uint64
	do   func()
}

func newCluster(t *rapid.T, n int) *cluster {
	c := &cluster{t: t, leader: -1}
	for i := range n {
		c.nodes = append(c.nodes, &node{
			Oracle: New(Options{MaxClockOffsetMS: offsetMS, Election: window}),
			id:     base.NodeID(i + 1),
			origin: clock.Mono(rapid.Int64Range(1, 1e15).Draw(t, "origin")),
			ppm:    rapid.Int64Range(-100, 100).Draw(t, "ppm"),
			skew:   skew(t, offsetMS),
		})
	}
	return c
}

func skew(t *rapid.T, ms int64) time.Duration {
	return time.Duration(rapid.Int64Range(-ms, ms).Draw(t, "skew")) * time.Millisecond
}

func (c *cluster) mono(n *node) clock.Mono {
	return n.origin + clock.Mono(c.trueT+c.trueT/1_000_000*time.Duration(n.ppm))
}

func (c *cluster) wall(n *node) int64 { return startMS + (c.trueT + n.skew).Milliseconds() }

func (c *cluster) voters() (ids []base.NodeID) {
	for _, n := range c.nodes {
		ids = append(ids, n.id)
	}
	return ids
}

func (c *cluster) send(to int, delay time.Duration, do func()) {
	c.mail = append(c.mail, message{at: c.trueT + delay, to: to, term: c.nodes[to].term, do: do})
}

// takeOver elects a node. The one before learns of it later, or never.
func (c *cluster) takeOver(to int, applyIn, oldLearnsIn time.Duration) {
	if old := c.leader; old >= 0 && old != to {
		o := c.nodes[old]
		c.send(old, oldLearnsIn, func() { o.StepDown(); o.term = 0 })
	}
	c.term++
	c.leader = to
	n := c.nodes[to]
	n.term, n.ready = c.term, false
	n.Lead(c.term, n.id, c.voters(), c.mono(n))
	n.jumped = true
	c.send(to, applyIn, func() {
		if c.leader != to {
			return
		}
		n.ready, n.floor, n.since = true, c.bound, c.mono(n)
		n.Ready(c.bound, c.mono(n))
	})
	c.tick(to)
}

// tick ticks one oracle, checks it, and carries out what it wants.
func (c *cluster) tick(i int) {
	n := c.nodes[i]
	now := c.mono(n)
	e := n.Tick(now)
	if n.term == 0 {
		return
	}
	if at := n.NextWake(now); at != 0 && at <= now {
		c.t.Fatalf("node %d wants to be ticked again at once: %+v", n.id, n.Status(now))
	}
	for _, ev := range e.Events {
		switch ev.Kind {
		case Anchored, SteppedForward, ContinuedFromBound:
			n.jumped = true
		}
	}
	c.checkPace(n, now)
	if e.Bound != 0 {
		c.propose(i, e.Bound)
	}
	if e.Sample {
		c.ask(i)
	}
}

// checkPace: oracle time never runs back, and runs within 1 ‰ of monotonic time
// unless it was stepped.
func (c *cluster) checkPace(n *node, now clock.Mono) {
	s := n.Status(now)
	if s.TimeMS != 0 && n.lastMS != 0 && !n.jumped {
		ran, real := s.TimeMS-n.lastMS, now.Sub(n.lastAt).Milliseconds()
		if ran < 0 || ran < real-real/1000-2 || ran > real+real/1000+2 {
			c.t.Fatalf("node %d: oracle time ran %d ms in %d ms", n.id, ran, real)
		}
	}
	n.lastMS, n.lastAt, n.jumped = s.TimeMS, now, false
}

func (c *cluster) propose(i int, b base.Timestamp) {
	n := c.nodes[i]
	if s := n.Status(c.mono(n)); b > base.TimestampAt(s.TimeMS+window.Milliseconds()) {
		c.t.Fatalf("bound %v is more than a window ahead of oracle time %d", b, s.TimeMS)
	}
	if rapid.IntRange(0, 9).Draw(c.t, "lose proposal") == 0 {
		return
	}
	delay := time.Duration(rapid.IntRange(0, 300).Draw(c.t, "commit in")) * time.Millisecond
	c.send(i, delay, func() {
		if c.leader == i { // a deposed leader's proposals do not commit
			c.bound = max(c.bound, b)
			n.BoundApplied(b, c.mono(n))
		}
	})
}

func (c *cluster) ask(i int) {
	n := c.nodes[i]
	for j, v := range c.nodes {
		there, back := 0, 0
		if j != i {
			there = rapid.IntRange(0, 400).Draw(c.t, "there")
			back = rapid.IntRange(0, 599).Draw(c.t, "back")
			if rapid.IntRange(0, 2).Draw(c.t, "lose sample") == 0 {
				continue
			}
		}
		c.send(i, time.Duration(there)*time.Millisecond, func() {
			wall := c.wall(v)
			c.send(i, time.Duration(back)*time.Millisecond, func() { n.Sampled(v.id, wall, c.mono(n)) })
		})
	}
}

// issue asks an oracle. What it returns is handed out only by the true leader, as the
// lease check of T1 ensures; a deposed oracle's timestamps must still lie below what
// its successors issue.
func (c *cluster) issue(i, n int) bool {
	o := c.nodes[i]
	first, err := o.Issue(n, c.mono(o))
	if err != nil {
		if !errors.Is(err, fault.New(fault.Unavailable, "")) {
			c.t.Fatalf("refused: %v", err)
		}
		return false
	}
	last := first + base.Timestamp(n) - 1
	if last >= c.bound || last > base.MaxTimestamp {
		c.t.Fatalf("issued %v at or above the persisted bound %v", last, c.bound)
	}
	if i != c.leader {
		if l := c.nodes[c.leader]; l.ready && last >= l.floor {
			c.t.Fatalf("deposed node %d issued %v, its successor issues from %v", o.id, last, l.floor)
		}
		return false
	}
	if first <= c.last {
		c.t.Fatalf("issued %v after %v", first, c.last)
	}
	c.last = last
	if early := first.Millis() - startMS - c.trueT.Milliseconds(); early > offsetMS+10 {
		c.t.Fatalf("issued %d ms ahead of true time", early)
	}
	return true
}

// run lets true time pass in small steps; see is called after each.
func (c *cluster) run(d time.Duration, see func()) {
	for end := c.trueT + d; c.trueT < end; {
		c.trueT += 5 * time.Millisecond
		for k := 0; k < len(c.mail); {
			m := c.mail[k]
			if m.at > c.trueT {
				k++
				continue
			}
			c.mail = append(c.mail[:k], c.mail[k+1:]...)
			if m.term == c.nodes[m.to].term {
				m.do()
				c.tick(m.to)
			}
			k = 0
		}
		for i, n := range c.nodes {
			if at := n.NextWake(c.mono(n)); at != 0 && at <= c.mono(n) {
				c.tick(i)
			}
		}
		if see != nil {
			see()
		}
	}
}

func TestTakeoversWithBadClocks(t *testing.T) {
	issued := 0
	rapid.Check(t, func(t *rapid.T) {
		c := newCluster(t, rapid.SampledFrom([]int{1, 3, 5}).Draw(t, "nodes"))
		bad := -1
		if len(c.nodes) > 1 {
			bad = rapid.IntRange(-1, len(c.nodes)-1).Draw(t, "bad")
		}
		if bad >= 0 {
			c.nodes[bad].skew = skew(t, 100_000_000)
		}
		c.takeOver(0, 0, 0)
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			switch rapid.IntRange(0, 4).Draw(t, "step") {
			case 0:
				ms := func(name string) time.Duration {
					return time.Duration(rapid.IntRange(0, 2000).Draw(t, name)) * time.Millisecond
				}
				to := rapid.IntRange(0, len(c.nodes)-1).Draw(t, "to")
				c.takeOver(to, ms("apply in"), ms("old learns in"))
			case 1: // any clock may step within the offset
				i := rapid.IntRange(0, len(c.nodes)-1).Draw(t, "node")
				c.nodes[i].skew = skew(t, offsetMS)
			case 2: // one may be wrong by any amount
				if bad >= 0 {
					c.nodes[bad].skew = skew(t, 100_000_000)
				}
			}
			d := time.Duration(rapid.IntRange(0, 1500).Draw(t, "pass")) * time.Millisecond
			n := rapid.IntRange(1, 1000).Draw(t, "n")
			c.run(d, func() {
				for i := range c.nodes {
					if c.issue(i, n) {
						issued++
					}
				}
			})
		}
	})
	if issued == 0 {
		t.Fatal("nothing was ever issued: the test is empty")
	}
}

// With clocks within the offset, an oracle that has applied its first entry and heard
// of its voters issues after at most one window and the bound's way through the log,
// at a time that is not late by more than that offset.
func TestTakeoverIsLateByAtMostOneWindow(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		o := make([]*Oracle, 2)
		skews := make([]int64, 2)
		for i := range o {
			o[i] = New(Options{MaxClockOffsetMS: offsetMS, Election: window})
			skews[i] = rapid.Int64Range(-offsetMS, offsetMS).Draw(t, "skew")
		}
		var now clock.Mono = 1e9
		wall := func(i int) int64 { return startMS + int64(now)/1e6 + skews[i] }
		var bound base.Timestamp
		serve := func(i int, until clock.Mono) (first base.Timestamp) {
			for ; now <= until; now += 1e6 {
				e := o[i].Tick(now)
				if e.Sample {
					o[i].Sampled(1, wall(i), now)
					e.Bound = max(e.Bound, o[i].Tick(now).Bound)
				}
				if e.Bound != 0 {
					bound = e.Bound
					o[i].BoundApplied(bound, now)
				}
				ts, err := o[i].Issue(1, now)
				if err == nil && first == 0 {
					first = ts
					if late := wall(i) - ts.Millis(); late > 0 {
						t.Fatalf("%d ms behind the clock it is anchored on", late)
					}
				}
			}
			return first
		}
		o[0].Lead(1, 1, []base.NodeID{1}, now)
		o[0].Ready(0, now)
		serve(0, now+clock.Mono(rapid.Int64Range(1e7, 5e9).Draw(t, "first term")))

		o[1].Lead(2, 1, []base.NodeID{1}, now)
		o[1].Ready(bound, now)
		if serve(1, now.Add(window+2*time.Millisecond)) == 0 {
			t.Fatalf("nothing issued within a window: %+v", o[1].Status(now))
		}
	})
}

// anchored returns an oracle of one voter that issues, its bound far ahead.
func anchored(t *testing.T, bound base.Timestamp) (*Oracle, clock.Mono) {
	t.Helper()
	o := New(Options{Election: window})
	now := clock.Mono(time.Second)
	o.Lead(1, 1, []base.NodeID{1}, now)
	o.Tick(now)
	o.Sampled(1, startMS, now)
	o.Ready(0, now)
	o.Tick(now)
	o.BoundApplied(bound, now)
	return o, now
}

func TestLogicalOverflowSpillsBelowBound(t *testing.T) {
	bound := base.TimestampAt(startMS + 3)
	o, now := anchored(t, bound)
	var last base.Timestamp
	for i := range 3 {
		first, err := o.Issue(MaxBatch, now)
		if err != nil {
			t.Fatal(err)
		}
		if first != base.TimestampAt(startMS+int64(i)) {
			t.Fatalf("batch %d starts at %v", i, first)
		}
		last = first + MaxBatch - 1
	}
	if last != bound-1 {
		t.Fatalf("issued up to %v, not to the last below %v", last, bound)
	}
	if _, err := o.Issue(1, now); fault.KindOf(err) != fault.Unavailable {
		t.Fatalf("at the bound: %v", err)
	}
	o.BoundApplied(bound+1, now)
	if first, err := o.Issue(1, now); err != nil || first != bound {
		t.Fatalf("above the old bound: %v, %v", first, err)
	}
}

// A batch that does not fit below the bound uses nothing up.
func TestRefusedBatchUsesNothing(t *testing.T) {
	o, now := anchored(t, base.TimestampAt(startMS)+10)
	if _, err := o.Issue(11, now); fault.KindOf(err) != fault.Unavailable {
		t.Fatalf("too large a batch: %v", err)
	}
	if first, err := o.Issue(10, now); err != nil || first != base.TimestampAt(startMS) {
		t.Fatalf("the whole rest: %v, %v", first, err)
	}
}

func TestTimestampsEndAtTheMaximum(t *testing.T) {
	o := New(Options{})
	now := clock.Mono(time.Second)
	o.Lead(1, 1, []base.NodeID{1}, now)
	o.Tick(now)
	o.Sampled(1, math.MaxInt64, now)
	o.Ready(0, now)
	e := o.Tick(now)
	if e.Bound == 0 || e.Bound > base.MaxTimestamp {
		t.Fatalf("proposed %d", e.Bound)
	}
	o.BoundApplied(e.Bound, now)
	for range 3 {
		now = now.Add(time.Second)
		if first, err := o.Issue(1, now); err == nil && first > base.MaxTimestamp {
			t.Fatalf("issued %d", first)
		}
		if e := o.Tick(now); e.Bound > base.MaxTimestamp {
			t.Fatalf("proposed %d", e.Bound)
		}
	}
}

func TestLatest(t *testing.T) {
	o, now := anchored(t, base.TimestampAt(startMS+1000))
	first, err := o.Issue(5, now)
	if err != nil || o.Latest() != first+4 {
		t.Fatalf("latest %v after %v, %v", o.Latest(), first, err)
	}
	o.StepDown()
	if o.Latest() != 0 {
		t.Fatal("an oracle that does not lead cannot know the latest")
	}
	// What earlier terms issued is not known, only that it lies below their bound.
	bound := base.TimestampAt(startMS + 5000)
	o.Lead(2, 1, []base.NodeID{1}, now)
	o.Ready(bound, now)
	if o.Latest() != bound-1 {
		t.Fatalf("latest %v below the bound %v", o.Latest(), bound)
	}
}

func TestMedian(t *testing.T) {
	for _, tc := range []struct {
		walls []int64 // −1: no answer
		want  int64   // −1: no majority
	}{
		{[]int64{7}, 7},
		{[]int64{-1}, -1},
		{[]int64{9, 5}, 5},
		{[]int64{9, -1}, -1},
		{[]int64{9, 5, 7}, 7},
		{[]int64{9, -1, 7}, 7},
		{[]int64{-1, -1, 7}, -1},
		{[]int64{1, 2, 3, 4}, 2},
		{[]int64{1, -1, 3, 4}, 3},
		{[]int64{1, -1, -1, 4}, -1},
		{[]int64{5, 4, 3, 2, 1}, 3},
		{[]int64{5, 4, -1, 2, -1}, 4},
	} {
		t.Run(fmt.Sprint(tc.walls), func(t *testing.T) {
			var r round
			var voters []base.NodeID
			for i := range tc.walls {
				voters = append(voters, base.NodeID(i+1))
			}
			r.setVoters(voters)
			r.begin(0, time.Second)
			for i, w := range tc.walls {
				if w >= 0 {
					r.add(base.NodeID(i+1), w, 0)
				}
			}
			us, ok := r.median(clock.Mono(time.Millisecond))
			if ok != (tc.want >= 0) || ok && us != (tc.want+1)*1000 {
				t.Fatalf("median %d µs, %v; want %d ms", us, ok, tc.want+1)
			}
		})
	}
}

// Only the round that is open counts, and only voters.
func TestSamplesThatDoNotCount(t *testing.T) {
	o := New(Options{Election: window})
	now := clock.Mono(time.Second)
	o.Lead(1, 1, []base.NodeID{1, 2, 3}, now)
	o.Sampled(2, startMS, now) // before anyone was asked
	o.Tick(now)
	o.Sampled(4, startMS, now) // a learner
	o.Sampled(1, startMS, now)
	now = now.Add(window)
	o.Tick(now)
	if o.Phase() != Anchoring {
		t.Fatalf("one of three voters answered, yet %v", o.Phase())
	}
}

// Voters may change within a term, from one to three and back (R6).
func TestVotersChange(t *testing.T) {
	o, now := anchored(t, base.MaxTimestamp)
	now = now.Add(time.Second)
	o.SetVoters([]base.NodeID{3, 1, 2})
	if !o.Tick(now).Sample {
		t.Fatal("no round was opened")
	}
	o.Sampled(1, startMS+1000, now)
	rounds := o.Status(now).Counted.Rounds
	if o.Tick(now); o.Status(now).Counted.Rounds != rounds {
		t.Fatal("a round closed with one of three voters")
	}
	o.SetVoters([]base.NodeID{1})
	if o.Tick(now); o.Status(now).Counted.Rounds != rounds+1 {
		t.Fatal("a round with all its voters' answers stayed open")
	}
}

// A median that is ahead or behind draws oracle time closer, and never past it.
func TestSlewConverges(t *testing.T) {
	for _, by := range []int64{400, -400, 3, -3} {
		o, now := anchored(t, base.MaxTimestamp)
		start := now
		for range 600 {
			now = now.Add(time.Second)
			o.Tick(now)
			o.Sampled(1, startMS+now.Sub(start).Milliseconds()+by, now)
			o.Tick(now)
		}
		s := o.Status(now)
		if off := s.TimeMS - startMS - now.Sub(start).Milliseconds(); off < by-1 || off > by+1 {
			t.Errorf("the median moved by %d ms, oracle time by %d ms", by, off)
		}
		if s.Counted.Steps != 0 {
			t.Error("stepped within the offset")
		}
	}
}

func TestOptionsValidate(t *testing.T) {
	if err := (Options{}).Validate(); err != nil {
		t.Fatalf("the defaults are refused: %v", err)
	}
	for _, o := range []Options{
		{MaxClockOffsetMS: -1},
		{Election: time.Millisecond},
		{Election: 1500 * time.Microsecond},
		{SampleEvery: time.Microsecond},
		{SlewPerMille: -1},
		{SlewPerMille: 101},
		{StepRounds: -1},
	} {
		if fault.KindOf(o.Validate()) != fault.Invalid {
			t.Errorf("%+v is accepted", o)
		}
	}
}

func BenchmarkIssue(b *testing.B) {
	o := New(Options{Election: window})
	now := clock.Mono(time.Second)
	o.Lead(1, 1, []base.NodeID{1}, now)
	o.Tick(now)
	o.Sampled(1, startMS, now)
	o.Ready(0, now)
	o.Tick(now)
	o.BoundApplied(base.MaxTimestamp, now)
	b.ReportAllocs()
	for i := range b.N {
		if _, err := o.Issue(1, now.Add(time.Duration(i)*time.Microsecond)); err != nil {
			b.Fatal(err)
		}
	}
}
