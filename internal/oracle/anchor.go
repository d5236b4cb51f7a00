package oracle

import (
	"slices"
	"time"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/clock"
)

const never = clock.Mono(1<<63 - 1)

// millis returns ms as a duration; far times are cut so that it cannot overflow.
func millis(ms int64) time.Duration {
	return time.Duration(max(0, min(ms, 1<<40))) * time.Millisecond
}

// msCeil returns the first millisecond whose timestamps are all at or above t.
func msCeil(t base.Timestamp) int64 {
	ms := t.Millis()
	if t.Logical() > 0 {
		ms++
	}
	return ms
}

// pace is oracle time: a value in microseconds at a monotonic instant, running with
// monotonic time, a little slower or faster until its debt is paid. It never runs
// back.
type pace struct {
	us   int64
	at   clock.Mono
	debt time.Duration // how far ahead of the median it is, as last measured; negative: behind
	slew int64         // thousandths
}

func (p *pace) elapsed(now clock.Mono) (run, paid time.Duration) {
	d := max(0, now.Sub(p.at))
	paid = min(d/1000*time.Duration(p.slew), p.debt.Abs())
	if p.debt < 0 {
		paid = -paid
	}
	return d - paid, paid
}

func (p *pace) read(now clock.Mono) int64 {
	run, _ := p.elapsed(now)
	return p.us + run.Microseconds()
}

func (p *pace) ms(now clock.Mono) int64 {
	return min(p.read(now)/1000, base.MaxTimestamp.Millis())
}

// settle folds the time since p.at into p.us; the fraction of a microsecond stays.
func (p *pace) settle(now clock.Mono) {
	run, paid := p.elapsed(now)
	p.us += run.Microseconds()
	p.debt -= paid
	p.at = now.Add(-(run % time.Microsecond))
}

// steer lets p approach a time that is off by ahead; it never moves p at once.
func (p *pace) steer(ahead time.Duration, now clock.Mono) {
	p.settle(now)
	p.debt = ahead
}

// raiseTo moves p forward to a millisecond, not backward, and returns by how much.
// What it gains becomes debt.
func (p *pace) raiseTo(ms int64, now clock.Mono) time.Duration {
	p.settle(now)
	gain := max(0, ms*1000-p.us)
	if gain == 0 {
		return 0
	}
	p.us, p.at = p.us+gain, now
	p.debt += micros(gain)
	return micros(gain)
}

// micros returns us as a duration, cut where it would overflow.
func micros(us int64) time.Duration {
	const most = int64(never) / 4000
	return time.Duration(max(-most, min(us, most))) * time.Microsecond
}

// round is one asking of all voters for their wall clocks.
type round struct {
	voters []base.NodeID // ascending
	clocks []sample      // beside voters
	open   bool
	since  clock.Mono
	next   clock.Mono // when the next one opens
}

type sample struct {
	told   bool
	failed bool // it will not answer this round
	wallMS int64
	at     clock.Mono
	ahead  time.Duration // of the median, when a round last closed with it
	known  bool          // ahead has been measured
}

func (r *round) setVoters(voters []base.NodeID) {
	voters = slices.Clone(voters)
	slices.Sort(voters)
	voters = slices.Compact(voters)
	clocks := make([]sample, len(voters))
	for i, v := range voters {
		if j, ok := slices.BinarySearch(r.voters, v); ok {
			clocks[i] = r.clocks[j]
		}
	}
	r.voters, r.clocks = voters, clocks
}

// add takes a voter's wall clock; of two in one round the later one counts.
func (r *round) add(node base.NodeID, wallMS int64, now clock.Mono) {
	i, ok := slices.BinarySearch(r.voters, node)
	if !ok || !r.open {
		return
	}
	s := &r.clocks[i]
	s.told, s.at = true, now
	s.wallMS = max(0, min(wallMS, base.MaxTimestamp.Millis()))
}

// fail notes that a voter will not answer what it was asked at that time; what an earlier
// round asked says nothing about this one.
func (r *round) fail(node base.NodeID, asked clock.Mono) {
	if i, ok := slices.BinarySearch(r.voters, node); ok && r.open && asked >= r.since {
		r.clocks[i].failed = true
	}
}

func (r *round) answers() int {
	n := 0
	for i := range r.clocks {
		if r.clocks[i].told {
			n++
		}
	}
	return n
}

func (r *round) begin(now clock.Mono, every time.Duration) {
	r.open, r.since, r.next = true, now, now.Add(every)
	for i := range r.clocks {
		r.clocks[i].told, r.clocks[i].failed = false, false
	}
}

// complete says that there is nothing to wait for: every voter answered or will not, and
// those that did are a majority. Without one the round stays open, so that voters that
// cannot be reached are not asked again and again at once.
func (r *round) complete() bool {
	for i := range r.clocks {
		if s := &r.clocks[i]; !s.told && !s.failed {
			return false
		}
	}
	return r.majority(r.answers())
}

func (r *round) majority(n int) bool { return n >= len(r.voters)/2+1 }

func (r *round) wakeAt(window time.Duration) clock.Mono {
	switch {
	case len(r.voters) == 0:
		return never
	case !r.open:
		return r.next
	case r.complete():
		return r.since
	}
	return r.since.Add(window)
}

// estimate returns what a voter's clock shows now, in microseconds.
func (s *sample) estimate(now clock.Mono) int64 {
	return s.wallMS*1000 + now.Sub(s.at).Microseconds()
}

// median returns the lower median of the voters' clocks now, in microseconds, and
// records each voter's distance from it. Not ok without a majority.
func (r *round) median(now clock.Mono) (us int64, ok bool) {
	var told []int64
	for i := range r.clocks {
		if s := &r.clocks[i]; s.told {
			told = append(told, s.estimate(now))
		}
	}
	if !r.majority(len(told)) {
		return 0, false
	}
	slices.Sort(told)
	us = told[(len(told)-1)/2]
	for i := range r.clocks {
		s := &r.clocks[i]
		s.known = s.told
		if s.told {
			s.ahead = micros(s.estimate(now) - us)
		}
	}
	return us, true
}

// openRound opens a round when one is due and says so.
func (o *Oracle) openRound() bool {
	if o.round.open || o.now < o.round.next || len(o.round.voters) == 0 {
		return false
	}
	o.round.begin(o.now, o.opt.SampleEvery)
	return true
}

// finishRound closes the open round once it is complete or its window is over, and anchors or steers oracle time by it. It returns whom to hand leadership.
func (o *Oracle) finishRound() (transfer base.NodeID) {
	r := &o.round
	if !r.open || !r.complete() && o.now < r.since.Add(o.opt.Election) {
		return 0
	}
	r.open = false
	us, ok := r.median(o.now)
	if !ok {
		r.next = o.now
		o.counters.RoundsFailed++
		o.emit(Event{Kind: RoundFailed, Voters: r.answers()})
		return 0
	}
	o.counters.Rounds++
	if o.anchored {
		o.measure(us)
	} else {
		o.anchored = true
		o.time.us, o.time.at, o.time.debt = us, o.now, 0
		o.emit(Event{Kind: Anchored, Voters: r.answers()})
	}
	return o.handOver()
}

// measure compares oracle time with the median. Ahead of it, oracle time only runs
// slower; behind it, a little faster, which never carries it past the median, and if
// it stays behind by more than the offset it steps.
func (o *Oracle) measure(us int64) {
	ahead := micros(o.time.read(o.now) - us)
	o.time.steer(ahead, o.now)
	if ahead >= -o.offset() {
		o.behind = 0
		return
	}
	o.behind++
	if o.behind < o.opt.StepRounds {
		return
	}
	o.behind = 0
	o.time.us, o.time.at, o.time.debt = us, o.now, 0
	o.proposed = o.bound // what is under way is of no use
	o.counters.Steps++
	o.counters.SteppedBy += -ahead
	o.emit(Event{Kind: SteppedForward, By: -ahead})
}

// handOver returns the voter nearest to the median, if this node's wall clock is
// outside the offset and that one's inside.
func (o *Oracle) handOver() base.NodeID {
	r := &o.round
	i, ok := slices.BinarySearch(r.voters, o.self)
	if o.handed || !ok || !r.clocks[i].known || r.clocks[i].ahead.Abs() <= o.offset() {
		return 0
	}
	best := -1
	for j, s := range r.clocks {
		if s.known && s.ahead.Abs() <= o.offset() && (best < 0 || s.ahead.Abs() < r.clocks[best].ahead.Abs()) {
			best = j
		}
	}
	if best < 0 {
		return 0
	}
	o.handed = true
	o.counters.Transfers++
	o.emit(Event{Kind: HandedOver, Node: r.voters[best], By: r.clocks[i].ahead})
	return r.voters[best]
}

func (o *Oracle) offset() time.Duration { return millis(o.opt.MaxClockOffsetMS) }
