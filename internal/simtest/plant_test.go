package simtest

import (
	"bytes"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/effect"
	"github.com/almanacdb/almanac/internal/engine"
	"github.com/almanacdb/almanac/internal/keys"
	"github.com/almanacdb/almanac/internal/wire"
)

// Plant is a bug that a run is given on purpose. Each is planted in what surrounds the
// product's code, so that the product carries no hook for it.
type Plant uint8

// Planted bugs.
const (
	NoBug       Plant = iota
	AckUnsynced       // the log's disk says synced before it is: acknowledged writes are lost
	FiresEarly        // node 1 takes timestamps for two seconds later than they are
	CursorBack        // a node's disk now and then keeps a group's record from before
	StopsClock        // monotonic time stands still on a node that is alone: its lease lasts too long
	OtherEntry        // a replica's log now and then saves another command than it was sent
	StartsEmpty       // a node that lost its disks makes its replicas anew
)

var plants = [...]string{"none", "ack before sync", "event fired early", "cursor backwards", "clock stands still", "other entry",
	"starts empty"}

// String returns the bug in words.
func (p Plant) String() string { return plants[p] }

// logEngine returns what the log store is given as its disk.
func (p Plant) logEngine(n *node) engine.Engine {
	if p == AckUnsynced {
		return unsynced{n.log}
	}
	return n.log
}

// stateEngine returns what the state store is given as its disk.
func (p Plant) stateEngine(n *node) engine.Engine {
	if p == CursorBack && n.id == 2 {
		return &forgetful{Engine: n.state, old: make(map[string][]byte)}
	}
	return n.state
}

// unsynced takes synced commits for unsynced ones.
type unsynced struct{ engine.Engine }

func (e unsynced) NewBatch(indexed bool) engine.Batch {
	return unsyncedBatch{e.Engine.NewBatch(indexed)}
}

type unsyncedBatch struct{ engine.Batch }

func (b unsyncedBatch) Commit(bool) error { return b.Batch.Commit(false) }

// forgetful writes, every so many times, a group's record as it was first written.
type forgetful struct {
	engine.Engine
	old    map[string][]byte
	writes int
}

func (e *forgetful) NewBatch(indexed bool) engine.Batch {
	return forgetfulBatch{e.Engine.NewBatch(indexed), e}
}

type forgetfulBatch struct {
	engine.Batch
	e *forgetful
}

func (b forgetfulBatch) Set(key, value []byte) error {
	if keys.Family(key[0]) != keys.FamilyGroup {
		return b.Batch.Set(key, value)
	}
	if b.e.writes++; b.e.writes%20 == 0 && b.e.old[string(key)] != nil {
		value = b.e.old[string(key)]
	}
	if b.e.old[string(key)] == nil {
		b.e.old[string(key)] = bytes.Clone(value)
	}
	return b.Batch.Set(key, value)
}

// sending sees what a node sends.
func (p Plant) sending(n *node, msgs []wire.Message) {
	if p != FiresEarly || n.id != 1 {
		return
	}
	for i := range msgs {
		if c := msgs[i].Call; c != nil && c.Method == wire.MethodStamps {
			if n.stampCalls == nil {
				n.stampCalls = make(map[uint64]bool)
			}
			n.stampCalls[c.ID] = true
		}
	}
}

// received returns what a node gets of what it was sent.
func (p Plant) received(n *node, msgs []wire.Message) []wire.Message {
	for i := range msgs {
		switch m := &msgs[i]; {
		case p == FiresEarly && m.Reply != nil && m.Reply.Fault == nil && n.stampCalls[m.Reply.ID]:
			var s wire.StampsReply
			if s.Decode(m.Reply.Body) == nil {
				s.First += base.TimestampAt(2000)
				m.Reply.Body = s.Append(nil)
			}
		case p == OtherEntry && m.Replication != nil && n.id == 3:
			p.swap(n, m.Replication)
		}
	}
	return msgs
}

// swap makes an entry another command: the one before it.
func (p Plant) swap(n *node, m *effect.Message) {
	e := m.Entries
	for i := 1; i < len(e); i++ {
		if e[i].Type == base.EntryCommand && e[i-1].Type == base.EntryCommand && n.w.chance(0.05) {
			e[i].Data = e[i-1].Data
		}
	}
}

// partitioned sees who is kept apart from the others.
func (p Plant) partitioned(w *World, part []base.NodeID) {
	if p != StopsClock {
		return
	}
	for _, n := range w.nodes {
		n.clock.run()
		if len(part) == 1 && part[0] == n.id {
			n.clock.stop()
		}
	}
}
