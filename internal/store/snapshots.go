package store

import (
	"sync"
	"time"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/command"
	"github.com/almanacdb/almanac/internal/effect"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/replica"
	"github.com/almanacdb/almanac/internal/statestore"
	"github.com/almanacdb/almanac/internal/transport"
	"github.com/almanacdb/almanac/internal/wire"
)

// snapshotFileTimeout bounds how long one file of a snapshot may take.
const snapshotFileTimeout = 30 * time.Second

// SendSnapshot implements replica.Env: files go one at a time, each answered, then the
// message that announces them.
func (s *Store) SendSnapshot(d *base.RangeDescriptor, m effect.Message) bool {
	if !s.opts.Snapshots.Take(sendingBytes) {
		return false
	}
	reader, err := s.state.ReadSnapshot(d.Range)
	if err != nil {
		s.opts.Snapshots.Put(sendingBytes)
		s.snapshotSent(m, err)
		return true
	}
	s.mu.Lock()
	s.snapshots++
	id := s.snapshots
	s.mu.Unlock()
	t := &sending{store: s, to: d.NodeOf(m.To), message: m, reader: reader, id: id}
	s.opts.Background(t.next)
	return true
}

// sendingBytes is about what a snapshot on its way takes: a file, and its message.
const sendingBytes = 3 * statestore.FileBytes

// sending is a snapshot on its way to another node.
type sending struct {
	store   *Store
	to      base.NodeID
	message effect.Message
	reader  *statestore.SnapshotReader
	id      uint64
}

func (t *sending) next() {
	f, err := t.reader.Next()
	if err != nil {
		t.finish(err)
		return
	}
	body := wire.SnapshotFile{
		Range: t.message.Range, From: t.message.From, To: t.message.To, ID: t.id, Seq: f.Seq, Last: f.Last,
		Meta: *t.message.Snapshot, Term: t.message.Term, File: f.Data, Sum: f.Sum,
	}
	if f.Last {
		body.State = t.reader.State()
	}
	last := f.Last // the file itself is not kept until the answer
	t.store.callBulk(t.to, wire.MethodSnapshotFile, t.message.Range, body.Append(nil), snapshotFileTimeout, func(_ []byte, err error) {
		switch {
		case err != nil:
			t.store.opts.Background(func() { t.finish(err) })
		case last:
			t.store.opts.Background(func() { t.finish(nil) })
		default:
			t.store.opts.Background(t.next)
		}
	})
}

func (t *sending) finish(err error) {
	defer t.store.opts.Snapshots.Put(sendingBytes)
	if cerr := t.reader.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		m := t.message
		if !t.store.opts.Transport.Send(t.to, transport.ClassReplication, wire.Message{Replication: &m}) {
			err = fault.New(fault.Unavailable, "node %d cannot be reached", t.to)
		}
	}
	t.store.snapshotSent(t.message, err)
}

func (s *Store) snapshotSent(m effect.Message, err error) {
	if err != nil {
		s.opts.Logger.Warn("a snapshot was not sent", "range", m.Range, "to", m.To, "err", err)
	} else {
		s.opts.Logger.Info("sent a snapshot", "range", m.Range, "to", m.To, "index", m.Snapshot.Mark.Index)
	}
	s.answer(m.Range, replica.SnapshotSent{To: m.To, OK: err == nil})
}

// incomingBook keeps snapshots that are being received, one a range.
type incomingBook struct {
	mu     sync.Mutex
	ranges map[base.RangeID]*incoming
}

type incoming struct {
	id    uint64
	from  base.NodeID
	mark  base.LogMark
	state *command.State // guarded by the book's mu

	adding sync.Mutex // a sender that gave up on a file may begin again while it is staged
	files  *statestore.Installer
}

// add stages a file.
func (in *incoming) add(f statestore.File) error {
	in.adding.Lock()
	defer in.adding.Unlock()
	return in.files.Add(f)
}

// abort drops what was staged, after a file that is being staged.
func (in *incoming) abort() {
	in.adding.Lock()
	defer in.adding.Unlock()
	in.files.Abort()
}

func (b *incomingBook) begin(s *Store, from base.NodeID, m *wire.SnapshotFile) *incoming {
	b.mu.Lock()
	in := b.ranges[m.Range]
	var stale *incoming
	if in != nil && (in.id != m.ID || in.from != from || m.Seq == 0) {
		in, stale = nil, in
		delete(b.ranges, m.Range)
	}
	if in == nil && m.Seq == 0 {
		in = &incoming{id: m.ID, from: from, mark: m.Meta.Mark, files: s.state.NewInstaller(m.Range)}
		b.ranges[m.Range] = in
	}
	b.mu.Unlock()
	if stale != nil {
		stale.abort() // may wait for a disk, so not while others need the book
	}
	return in
}

func (b *incomingBook) take(r base.RangeID, mark base.LogMark) *incoming {
	b.mu.Lock()
	defer b.mu.Unlock()
	in := b.ranges[r]
	if in == nil || in.mark != mark || in.state == nil {
		return nil
	}
	delete(b.ranges, r)
	return in
}

func (s *Store) handleSnapshotFile(from base.NodeID, c *wire.Call, done Done) {
	var m wire.SnapshotFile
	if err := m.Decode(c.Body); err != nil {
		done(nil, err)
		return
	}
	if s.Replica(m.Range) == nil && !s.rebuilds.wants(s, m.Range) {
		done(nil, rangeNotFound(m.Range))
		return
	}
	if err := s.DiskScarce(); err != nil && m.Range != base.SystemRange {
		done(nil, err)
		return
	}
	in := s.incoming.begin(s, from, &m)
	if in == nil {
		done(nil, fault.New(fault.Invalid, "file %d of a snapshot came without its beginning", m.Seq))
		return
	}
	err := in.add(statestore.File{Seq: m.Seq, Last: m.Last, Data: m.File, Sum: m.Sum})
	if err == nil && m.Last {
		st, decodeErr := command.DecodeState(m.State)
		if err = decodeErr; err == nil {
			s.incoming.mu.Lock()
			in.state = st
			s.incoming.mu.Unlock()
		}
	}
	done(nil, err)
}

// announced takes the replication message that follows a snapshot's files.
func (s *Store) announced(m *effect.Message) {
	in := s.incoming.take(m.Range, m.Snapshot.Mark)
	if in == nil {
		return // the sender will try again
	}
	if s.rebuilds.arrived(s, m.Range, in) {
		return
	}
	if s.Post(m.Range, &replica.SnapshotArrived{Message: *m, State: in.state, Files: in.files}) != nil {
		in.files.Abort()
	}
}

func (s *Store) handleCreate(c *wire.Call, done Done) {
	var m wire.ReplicaCreate
	err := m.Decode(c.Body)
	if err == nil {
		err = s.CreateReplica(m.Descriptor)
	}
	done(nil, err)
}

func (s *Store) handleRemove(c *wire.Call, done Done) {
	var m wire.ReplicaRemove
	err := m.Decode(c.Body)
	if err == nil {
		err = s.RemoveReplica(m.Range, m.Replica)
	}
	done(nil, err)
}
