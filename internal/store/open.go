package store

import (
	"fmt"
	"maps"
	"slices"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/command"
	"github.com/almanacdb/almanac/internal/effect"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/host"
	"github.com/almanacdb/almanac/internal/logstore"
	"github.com/almanacdb/almanac/internal/oracle"
	"github.com/almanacdb/almanac/internal/raft"
	"github.com/almanacdb/almanac/internal/replica"
	"github.com/almanacdb/almanac/internal/statestore"
)

// firstMark is where a created range's log begins: above zero, so that its first state
// is never mistaken for an empty log (S3).
var firstMark = base.LogMark{Index: 10, Term: 5}

// recover brings back the replicas found in the two stores, and finishes what a crash
// interrupted: a destroyed replica's tombstone is carried out again (S3).
func (s *Store) recover() error {
	records, err := s.state.Records()
	if err != nil {
		return err
	}
	states := make(map[base.RangeID]*command.State, len(records))
	for _, rec := range records {
		st, err := command.DecodeState(rec.State)
		if err != nil {
			return fmt.Errorf("state record of range %d: %w", rec.Range, err)
		}
		states[rec.Range] = st
	}
	for _, id := range s.opts.Log.Ranges() {
		if states[id] != nil {
			continue
		}
		initial, ok, err := s.opts.Log.Log(id).Initial()
		if err != nil {
			return err
		}
		if !ok {
			continue // never became a replica
		}
		if states[id], err = command.DecodeState(initial); err != nil {
			return fmt.Errorf("first state record of range %d: %w", id, err)
		}
	}
	if err := s.finishDestroying(states); err != nil {
		return err
	}
	if err := s.lostHalf(states); err != nil {
		return err
	}
	// In order: what reopening draws and saves is then a function of what is on disk.
	for _, id := range slices.Sorted(maps.Keys(states)) {
		rep, err := s.reopen(states[id])
		if err != nil {
			return fmt.Errorf("range %d: %w", id, err)
		}
		s.replicas[id] = rep
	}
	for _, v := range s.Replicas() {
		s.own(s.replicas[v.Descriptor.Range])
	}
	return nil
}

// own gives a replica to its worker.
func (s *Store) own(rep *replica.Replica) {
	s.worker(rep.Range()).Do(func(w *host.Worker) { w.Add(rep) })
}

func (s *Store) finishDestroying(states map[base.RangeID]*command.State) error {
	tombstones, err := s.opts.Log.Tombstones()
	if err != nil {
		return err
	}
	for _, t := range tombstones {
		if st := states[t.Range]; st != nil && st.Replica == t.Replica {
			delete(states, t.Range)
			if err := s.erase(&st.Descriptor); err != nil {
				return err
			}
		}
	}
	return nil
}

// reopen makes a replica from what the stores hold, by rule S4.
func (s *Store) reopen(st *command.State) (*replica.Replica, error) {
	log := s.opts.Log.Log(st.Descriptor.Range)
	rec, err := logstore.Recover(st.Descriptor.Range, log.HardState(), log, st.Applied)
	if err != nil {
		return nil, err
	}
	b := s.opts.Log.NewBatch()
	if rec.Reset {
		b.Reset(log, st.Applied)
	}
	if rec.HardState != log.HardState() {
		b.SetHardState(log, rec.HardState)
	}
	if err := b.Commit(true); err != nil {
		return nil, err
	}
	return s.newReplica(st, rec.HardState, true)
}

// known refuses a range that this version can't replicate.
func known(d *base.RangeDescriptor) error {
	if d.Protocol == base.ProtocolRaft {
		return nil
	}
	return fault.New(fault.Unimplemented, "range %d replicates by %s, which this version does not know", d.Range, d.Protocol).
		OnRange(d.Range).WithRemedy("run a version that does")
}

func (s *Store) newReplica(st *command.State, hs effect.HardState, restarted bool) (*replica.Replica, error) {
	d := &st.Descriptor
	if err := known(d); err != nil {
		return nil, err
	}
	config := effect.Configuration{Epoch: d.ConfigEpoch}
	for _, r := range d.Replicas {
		if r.Role == base.RoleLearner {
			config.Learners = append(config.Learners, r.Replica)
		} else {
			config.Voters = append(config.Voters, r.Replica)
		}
	}
	log, limits := s.opts.Log.Log(d.Range), s.opts.Limits
	m, err := raft.New(raft.Options{
		Range: d.Range, Replica: st.Replica, Config: config, HardState: hs, Applied: st.Applied.Index, Log: log,
		Tick: s.opts.Tick, ElectionTicks: s.opts.ElectionTicks, HeartbeatTicks: s.opts.HeartbeatTicks,
		Restarted: restarted, Now: s.opts.Clock.Mono(), Logger: s.opts.Logger,
		CacheBytes: limits.CacheBytes, MaxMessageBytes: limits.MaxMessageBytes,
		MaxInflightMessages: limits.MaxInflightMessages, MaxInflightBytes: limits.MaxInflightBytes,
		MaxUncommittedBytes: limits.MaxUncommittedBytes,
	})
	if err != nil {
		return nil, err
	}
	o := replica.Options{
		State: st, Node: s.opts.Node, Machine: m, Log: log, Engine: s.opts.Engine, Env: s,
		Dispatch: s.opts.Dispatch, Logger: s.opts.Logger, KeepEntries: s.opts.KeepEntries,
		MaxQueued: limits.MaxQueued,
	}
	if d.Range == base.SystemRange {
		o.Oracle = oracle.New(s.opts.Oracle)
	}
	return replica.New(o), nil
}

// claim marks a range as being created or destroyed; false if it is already.
func (s *Store) claim(r base.RangeID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.changing[r] || s.closed {
		return false
	}
	s.changing[r] = true
	return true
}

func (s *Store) release(r base.RangeID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.changing, r)
}

// CreateReplica makes this node's replica of a new range, if it does not exist yet and
// was never removed. It is durable on return (S3). The replica that the descriptor
// names first campaigns at once.
func (s *Store) CreateReplica(d base.RangeDescriptor) error {
	own, ok := d.ReplicaOn(s.opts.Node)
	if !ok {
		return fault.New(fault.Invalid, "range %d has no replica on node %d", d.Range, s.opts.Node).OnRange(d.Range)
	}
	// Before anything is on disk, from where every start would bring it back.
	if err := known(&d); err != nil {
		return err
	}
	if !s.claim(d.Range) {
		return fault.New(fault.Busy, "range %d is being changed on this node", d.Range).OnRange(d.Range)
	}
	defer s.release(d.Range)
	if s.Replica(d.Range) != nil {
		return nil
	}
	if err := s.rebuilding(d.Range); err != nil {
		return err
	}
	gone, err := s.opts.Log.HasTombstone(logstore.Tombstone{Range: d.Range, Replica: own.Replica})
	if err != nil {
		return err
	}
	if gone {
		return fault.New(fault.Invalid, "replica %d of range %d was removed for good", own.Replica, d.Range).OnRange(d.Range)
	}
	st := &command.State{Descriptor: d, Replica: own.Replica, Applied: firstMark}
	hs := effect.HardState{Term: firstMark.Term, Commit: firstMark.Index}
	log := s.opts.Log.Log(d.Range)
	b := s.opts.Log.NewBatch()
	b.SetInitial(log, command.EncodeState(nil, st))
	b.Reset(log, firstMark)
	b.SetHardState(log, hs)
	if err := b.Commit(true); err != nil {
		return err
	}
	rep, err := s.newReplica(st, hs, false)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.replicas[d.Range] = rep
	s.mu.Unlock()
	s.own(rep)
	if d.Replicas[0].Node == s.opts.Node {
		return s.Post(d.Range, replica.Campaign{})
	}
	return nil
}

// RemoveReplica destroys this node's replica of a range for good: first a tombstone,
// then the data, and the log once the deletion is durable (S3).
func (s *Store) RemoveReplica(r base.RangeID, id base.ReplicaID) error {
	if !s.claim(r) {
		return fault.New(fault.Busy, "range %d is being changed on this node", r).OnRange(r)
	}
	defer s.release(r)
	b := s.opts.Log.NewBatch()
	b.SetTombstone(logstore.Tombstone{Range: r, Replica: id})
	if err := b.Commit(true); err != nil {
		return err
	}
	v := s.Replica(r)
	if v == nil || v.Replica != id {
		return nil
	}
	s.mu.Lock()
	delete(s.replicas, r)
	s.mu.Unlock()
	stopped := make(chan struct{})
	if s.worker(r).Do(func(w *host.Worker) { w.Remove(r); close(stopped) }) {
		s.awaitTurn(stopped)
	}
	return s.erase(v.Descriptor)
}

// awaitTurn waits for the worker; under a simulator, whose worker runs on this very
// goroutine, the removal happens in its next turn, before any other mail.
func (s *Store) awaitTurn(stopped chan struct{}) {
	if s.started.Load() {
		<-stopped
	}
}

func (s *Store) erase(d *base.RangeDescriptor) error {
	b := s.opts.Engine.NewBatch(true)
	defer b.Close()
	if err := statestore.DestroyRange(b, d.Range, d.Span); err != nil {
		return err
	}
	if err := b.Commit(false); err != nil {
		return err
	}
	if err := s.opts.Engine.Flush(); err != nil {
		return err
	}
	lb := s.opts.Log.NewBatch()
	lb.DeleteRange(d.Range)
	return lb.Commit(true)
}
