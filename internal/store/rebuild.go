package store

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/clock"
	"github.com/almanacdb/almanac/internal/command"
	"github.com/almanacdb/almanac/internal/effect"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/logstore"
	"github.com/almanacdb/almanac/internal/replica"
	"github.com/almanacdb/almanac/internal/wire"
)

// rebuildBook keeps the replicas that this node held before its stores were lost and that
// are not here again. Such a replica takes no part in its range: what is sent to it finds
// no replica. See DESIGN.md for why a rebuilt one may.
type rebuildBook struct {
	on     bool // set at Open; cleared by Rebuilt
	mu     sync.Mutex
	ranges map[base.RangeID]*rebuild
}

// rebuild is one replica on its way back. Guarded by the book's mu.
type rebuild struct {
	desc    base.RangeDescriptor
	own     base.ReplicaID
	attempt uint64
	running bool       // an attempt is under way
	until   clock.Mono // when it is given up
	retryAt clock.Mono // when the next one may begin
	why     string     // the last one failed
	answers map[base.ReplicaID]wire.RebuildReply
	arrived *incoming // a snapshot, whole
	placing bool      // it is being made the replica
}

const (
	// rebuildsAtOnce bounds the snapshots under way to this node.
	rebuildsAtOnce = 2
	rebuildTimeout = 5 * time.Second // of a question
	// rebuildPatience bounds the wait for the snapshot, or its next file.
	rebuildPatience = snapshotFileTimeout + 5*time.Second
	rebuildPause    = 500 * time.Millisecond
)

// Rebuilding says how far the node is with getting its replicas back.
type Rebuilding struct {
	Left, Total int    // replicas not here yet, of all
	Why         string // what the first of those waits for, if an attempt failed
}

// String says it in words.
func (r Rebuilding) String() string {
	text := "asking which ranges it holds"
	if r.Total > 0 {
		text = fmt.Sprintf("%d of %d ranges are back", r.Total-r.Left, r.Total)
	}
	if r.Why != "" {
		text += "; " + r.Why
	}
	return text
}

// Rebuilding returns how far the node is with getting its replicas back; false if its
// stores are whole.
func (s *Store) Rebuilding() (Rebuilding, bool) {
	b := &s.rebuilds
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.on {
		return Rebuilding{}, false
	}
	st := Rebuilding{Left: len(b.ranges)}
	for _, r := range slices.Sorted(maps.Keys(b.ranges)) {
		if why := b.ranges[r].why; why != "" {
			st.Why = fmt.Sprintf("range %d: %s", r, why)
			break
		}
	}
	s.mu.RLock()
	st.Total = st.Left + len(s.replicas)
	s.mu.RUnlock()
	return st, true
}

// Rebuild says which replicas belong on this node; those that are not here are fetched
// from the other voters of their ranges. It takes the place of an earlier list. It
// returns how many are missing.
func (s *Store) Rebuild(list []base.RangeDescriptor) (left int) {
	b := &s.rebuilds
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.on {
		return 0
	}
	wanted := make(map[base.RangeID]*rebuild, len(list))
	for _, d := range list {
		own, ok := d.ReplicaOn(s.opts.Node)
		if !ok || s.Replica(d.Range) != nil {
			continue
		}
		x := b.ranges[d.Range]
		if x == nil {
			x = &rebuild{desc: d, own: own.Replica}
		}
		wanted[d.Range] = x
	}
	for r, x := range b.ranges {
		if wanted[r] == nil {
			if x.placing {
				wanted[r] = x // it is here in a moment
			} else {
				s.drop(x)
			}
		}
	}
	b.ranges = wanted
	return len(wanted)
}

// Rebuilt ends what Options.Rebuild began, once every replica is here: from now on
// replicas are created as on any node.
func (s *Store) Rebuilt() {
	b := &s.rebuilds
	b.mu.Lock()
	defer b.mu.Unlock()
	b.on = false
}

// rebuilding is the error of what would make a replica afresh where one may be lost.
func (s *Store) rebuilding(r base.RangeID) error {
	b := &s.rebuilds
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.on {
		return nil
	}
	return fault.New(fault.Unavailable, "node %d is getting its replicas back from other nodes", s.opts.Node).OnRange(r).
		WithRemedy("wait until `almanac cluster status` does not name it any more")
}

// wants says whether a snapshot of a range may come although no replica is here.
func (b *rebuildBook) wants(s *Store, r base.RangeID) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	x := b.ranges[r]
	if x == nil || !x.running {
		return false
	}
	x.until = s.opts.Clock.Mono().Add(rebuildPatience)
	return true
}

// question is one that an attempt asks.
type question struct {
	rng     base.RangeID
	attempt uint64
	to      base.ReplicaDescriptor
	own     base.ReplicaID
}

// step begins attempts that are due and gives up those that took too long.
func (b *rebuildBook) step(s *Store, now clock.Mono) {
	b.mu.Lock()
	var ask []question
	running := 0
	for _, r := range slices.Sorted(maps.Keys(b.ranges)) {
		x := b.ranges[r]
		if x.running && !x.placing && now >= x.until {
			s.failed(x, "no snapshot came in time")
		}
		if !x.running && now >= x.retryAt && running < rebuildsAtOnce {
			ask = append(ask, s.attempt(x, now)...)
		}
		if x.running {
			running++
		}
	}
	b.mu.Unlock()
	for _, q := range ask {
		m := wire.Rebuild{Replica: q.own}
		s.Call(q.to.Node, wire.MethodRebuild, q.rng, m.Append(nil), rebuildTimeout, func(body []byte, err error) {
			var reply wire.RebuildReply
			if err == nil {
				err = reply.Decode(body)
			}
			b.answered(s, q, reply, err)
		})
	}
}

// attempt begins an attempt: every other voter is asked. Called with the book locked.
func (s *Store) attempt(x *rebuild, now clock.Mono) (ask []question) {
	x.attempt++
	x.running, x.until = true, now.Add(rebuildPatience)
	x.answers = make(map[base.ReplicaID]wire.RebuildReply)
	for _, to := range x.desc.Replicas {
		if to.Replica != x.own && to.Role == base.RoleVoter {
			ask = append(ask, question{x.desc.Range, x.attempt, to, x.own})
		}
	}
	if len(ask) == 0 {
		s.failed(x, "it has no other replica; what is left of it is in the stores that were set aside")
	}
	return ask
}

// failed ends an attempt. Called with the book locked.
func (s *Store) failed(x *rebuild, why string) {
	if x.why != why {
		s.opts.Logger.Warn("cannot rebuild a replica yet", "range", x.desc.Range, "why", why)
	}
	x.why = why
	s.drop(x)
	x.retryAt = s.opts.Clock.Mono().Add(rebuildPause)
}

// drop forgets what an attempt has got. Called with the book locked.
func (s *Store) drop(x *rebuild) {
	x.running = false
	if in := x.arrived; in != nil {
		x.arrived = nil
		s.opts.Background(in.abort)
	}
}

func (b *rebuildBook) answered(s *Store, q question, reply wire.RebuildReply, err error) {
	b.mu.Lock()
	x := b.ranges[q.rng]
	var place func()
	switch {
	case x == nil || !x.running || x.attempt != q.attempt:
	case err != nil:
		s.failed(x, fmt.Sprintf("node %d: %v", q.to.Node, err))
	default:
		x.answers[q.to.Replica] = reply
		place = b.place(s, x)
	}
	b.mu.Unlock()
	if place != nil {
		s.opts.Background(place)
	}
}

// arrived takes in a snapshot, whole; false if its range is not being rebuilt.
func (b *rebuildBook) arrived(s *Store, r base.RangeID, in *incoming) bool {
	b.mu.Lock()
	x := b.ranges[r]
	if x == nil || !x.running || x.placing {
		b.mu.Unlock()
		return false
	}
	if old := x.arrived; old != nil {
		s.opts.Background(old.abort)
	}
	x.arrived = in
	place := b.place(s, x)
	b.mu.Unlock()
	if place != nil {
		s.opts.Background(place)
	}
	return true
}

// place returns what makes the replica, to be run in the background, once all that it
// takes is here. Called with the book locked.
func (b *rebuildBook) place(s *Store, x *rebuild) func() {
	term, last, why := x.learnt()
	if why != "" {
		s.failed(x, why)
		return nil
	}
	if last == 0 || x.arrived == nil || x.placing {
		return nil
	}
	st := x.arrived.state
	own, ok := st.Descriptor.ReplicaOn(s.opts.Node)
	switch {
	case st.Applied.Index < last:
		s.failed(x, "an older snapshot came first")
		return nil
	case st.Descriptor.Range != x.desc.Range || !ok || own.Replica != x.own:
		s.failed(x, fmt.Sprintf("the snapshot that came is not for replica %d", x.own))
		return nil
	}
	in := x.arrived
	x.arrived, x.placing = nil, true
	hs := effect.HardState{Term: max(term, st.Applied.Term), Vote: x.own, Commit: st.Applied.Index}
	return func() {
		err := s.putBack(x.desc.Range, x.own, in, hs)
		b.mu.Lock()
		defer b.mu.Unlock()
		x.placing = false
		if err != nil {
			s.failed(x, err.Error())
			return
		}
		x.running = false
		delete(b.ranges, x.desc.Range)
	}
}

// learnt sums the answers up: the highest term that any voter knows, and the index that
// the snapshot must reach, 0 while an answer is missing; or why this attempt fails.
func (x *rebuild) learnt() (term, last uint64, why string) {
	voters, whole := 1, 0
	for _, d := range x.desc.Replicas {
		if d.Role != base.RoleVoter || d.Replica == x.own {
			continue
		}
		voters++
		a, ok := x.answers[d.Replica]
		if !ok {
			return 0, 0, ""
		}
		if a.Whole {
			whole++
		}
		term = max(term, a.Term)
		if a.Orderer {
			last = max(last, a.Last)
		}
	}
	switch {
	case 2*whole <= voters:
		return 0, 0, fmt.Sprintf("only %d of %d replicas are whole, not a majority", whole, voters)
	case last == 0:
		return 0, 0, "no replica is the confirmed orderer"
	}
	return term, last, ""
}

// putBack makes a snapshot this node's replica of a range: first its state, then its log
// record, which alone says that the replica is here. A crash in between leaves a state
// that the next attempt replaces.
func (s *Store) putBack(r base.RangeID, own base.ReplicaID, in *incoming, hs effect.HardState) error {
	if !s.claim(r) {
		in.abort()
		return fault.New(fault.Busy, "range %d is being changed on this node", r).OnRange(r)
	}
	defer s.release(r)
	st := *in.state
	st.Replica = own
	if err := in.files.Install(command.EncodeState(nil, &st)); err != nil {
		return err
	}
	log := s.opts.Log.Log(r)
	lb := s.opts.Log.NewBatch()
	lb.Reset(log, st.Applied)
	lb.SetHardState(log, hs)
	if err := lb.Commit(true); err != nil {
		s.opts.Fatal(err) // what is on disk is not known (S6)
		return err
	}
	rep, err := s.newReplica(&st, hs, true)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.replicas[r] = rep
	s.mu.Unlock()
	s.own(rep)
	s.opts.Logger.Info("rebuilt a replica", "range", r, "index", st.Applied.Index, "term", hs.Term)
	return nil
}

// handleRebuild answers for this node's replica; one that is lost itself says so.
func (s *Store) handleRebuild(c *wire.Call, done Done) {
	var m wire.Rebuild
	if err := m.Decode(c.Body); err != nil {
		done(nil, err)
		return
	}
	if s.Replica(c.Range) == nil && s.rebuilding(c.Range) != nil {
		done((&wire.RebuildReply{}).Append(nil), nil)
		return
	}
	q := &replica.RebuildRequest{Replica: m.Replica, Deadline: s.deadline(c), Done: func(a replica.RebuildAnswer, err error) {
		if err != nil {
			done(nil, err)
			return
		}
		reply := wire.RebuildReply{Whole: true, Term: a.Term, Orderer: a.Orderer, Last: a.Last}
		done(reply.Append(nil), nil)
	}}
	if err := s.Post(c.Range, q); err != nil {
		done(nil, err)
	}
}

// lostHalf refuses a start with one half of a replica: a state without a log, or a log
// that neither a state nor a tombstone goes with, is what a lost store leaves (S3).
func (s *Store) lostHalf(states map[base.RangeID]*command.State) error {
	tombstones, err := s.opts.Log.Tombstones()
	if err != nil {
		return err
	}
	for _, r := range s.opts.Log.Ranges() {
		removed := slices.ContainsFunc(tombstones, func(t logstore.Tombstone) bool { return t.Range == r })
		if states[r] == nil && !removed {
			return fault.New(fault.Corrupt, "the state store holds nothing of range %d, which the log store holds", r).OnRange(r)
		}
	}
	for _, r := range slices.Sorted(maps.Keys(states)) {
		if s.opts.Log.Log(r).Exists() {
			continue
		}
		if s.rebuilds.on { // putBack was cut off
			delete(states, r)
			continue
		}
		return fault.New(fault.Corrupt, "the log store holds nothing of range %d, which the state store holds", r).OnRange(r)
	}
	return nil
}
