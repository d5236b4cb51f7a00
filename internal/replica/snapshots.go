package replica

import (
	"fmt"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/clock"
	"github.com/almanacdb/almanac/internal/command"
	"github.com/almanacdb/almanac/internal/effect"
	"github.com/almanacdb/almanac/internal/host"
)

// SnapshotArrived hands a received snapshot to its replica: the replication message
// that announces it, the sender's state record, and the staged files.
type SnapshotArrived struct {
	Message effect.Message
	State   *command.State
	Files   Installer
}

// SnapshotSent says how sending a snapshot ended.
type SnapshotSent struct {
	To base.ReplicaID
	OK bool
}

// snapshots tracks the snapshot under way in either direction.
type snapshots struct {
	sending bool
	arrived *SnapshotArrived
}

func (s *snapshots) drop() {
	if s.arrived != nil {
		s.arrived.Files.Abort()
		s.arrived = nil
	}
}

func (r *Replica) sendSnapshot(m *effect.Message) {
	// The store is exactly at the applied mark here: what this turn commits is applied
	// after its messages are collected.
	m.Snapshot.Mark = r.state.Applied
	if r.snap.sending || !r.env.SendSnapshot(&r.state.Descriptor, *m) {
		r.machine.ReportSnapshot(m.To, false)
		return
	}
	r.snap.sending = true
}

func (r *Replica) snapshotArrived(now clock.Mono, s *SnapshotArrived) {
	if s.State.Descriptor.Range != r.id || s.State.Applied != s.Message.Snapshot.Mark {
		r.opts.Logger.Warn("snapshot does not match its announcement", "range", r.id)
		s.Files.Abort()
		return
	}
	if r.snap.arrived != nil {
		// The machine may have taken the one that came earlier in this turn, whose files
		// are then needed. The sender tries again.
		s.Files.Abort()
		return
	}
	r.snap.arrived = s
	if err := r.machine.Step(now, s.Message); err != nil || !r.machine.HasReady() {
		r.snap.drop()
	}
}

// install makes a snapshot this replica's state: the files and the state record in one
// durable ingest, then the log is reset, in the same commit as the turn's entries and
// before them (S2, S3).
func (r *Replica) install(t *host.Turn, meta *effect.SnapshotMeta) {
	s := r.snap.arrived
	if s == nil || s.Message.Snapshot.Mark != meta.Mark {
		r.fatal(fmt.Errorf("range %d: the machine took a snapshot at %v that is not here", r.id, meta.Mark))
		return
	}
	r.snap.arrived = nil
	st := *s.State
	st.Replica = r.state.Replica
	if err := s.Files.Install(command.EncodeState(nil, &st)); err != nil {
		r.fatal(fmt.Errorf("range %d cannot install a snapshot: %w", r.id, err))
		return
	}
	r.state = &st
	t.Batch.Reset(r.opts.Log, meta.Mark)
	t.MustSync()
	r.trunc = truncation{}
	r.firing.partitions = partitionsOf(&st.Descriptor)
	for r.writes.wants(meta.Mark.Index) {
		w := r.writes.waiting[0]
		r.writes.waiting = r.writes.waiting[1:]
		w.p.Done(command.Result{}, unknownOutcome(r.id))
	}
	r.publish() // before anybody is told to read what was installed
	r.opts.Logger.Info("installed a snapshot", "range", r.id, "index", meta.Mark.Index)
}
