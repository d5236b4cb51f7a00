package simtest

import (
	"bytes"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/effect"
	"github.com/almanacdb/almanac/internal/engine"
	"github.com/almanacdb/almanac/internal/keys"
	"github.com/almanacdb/almanac/internal/wire"
)

// outside is a bug in what surrounds the product's code: the engines, clocks and messages
// that it is given.
type outside uint8

// Bugs outside.
const (
	intact      outside = iota
	ackUnsynced         // the log's disk says synced before it is
	indexAhead          // the state's disk takes state records first, and flushes before the rest
	cursorBack          // a node's disk now and then keeps a group's record from before
	stopsClock          // monotonic time stands still on a node that is alone
	otherEntry          // a replica's log now and then saves another command than it was sent
	startsEmpty         // a node that lost its disks makes its replicas anew
)

// is says whether the run's bug is this one.
func (p *Plant) is(o outside) bool { return p != nil && p.outside == o }

// logEngine returns what the log store is given as its disk.
func (p *Plant) logEngine(n *node) engine.Engine {
	if p.is(ackUnsynced) {
		return unsynced{n.log}
	}
	return n.log
}

// stateEngine returns what the state store is given as its disk.
func (p *Plant) stateEngine(n *node) engine.Engine {
	if p.is(cursorBack) && n.id == 2 {
		return &forgetful{Engine: n.state, old: make(map[string][]byte)}
	}
	if p.is(indexAhead) {
		return recordFirst{n.state}
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

// recordFirst makes state records durable before the writes that they describe.
type recordFirst struct{ engine.Engine }

func (e recordFirst) NewBatch(indexed bool) engine.Batch {
	return recordFirstBatch{e.Engine.NewBatch(indexed), e.Engine, e.Engine.NewBatch(false)}
}

type recordFirstBatch struct {
	engine.Batch
	e      engine.Engine
	record engine.Batch
}

func (b recordFirstBatch) Set(key, value []byte) error {
	if keys.Family(key[0]) == keys.FamilyRangeState {
		return b.record.Set(key, value)
	}
	return b.Batch.Set(key, value)
}

func (b recordFirstBatch) Commit(bool) error {
	if err := b.record.Commit(false); err != nil {
		return err
	}
	if err := b.e.Flush(); err != nil {
		return err
	}
	return b.Batch.Commit(false)
}

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

// received returns what a node gets of what it was sent.
func (p *Plant) received(n *node, msgs []wire.Message) []wire.Message {
	for i := range msgs {
		if m := msgs[i].Replication; p.is(otherEntry) && m != nil && n.id == 3 {
			p.swap(n, m)
		}
	}
	return msgs
}

// swap makes an entry another command: the one before it.
func (p *Plant) swap(n *node, m *effect.Message) {
	e := m.Entries
	for i := 1; i < len(e); i++ {
		if e[i].Type == base.EntryCommand && e[i-1].Type == base.EntryCommand && n.w.chance(0.05) {
			e[i].Data = e[i-1].Data
		}
	}
}

// partitioned sees who is kept apart from the others.
func (p *Plant) partitioned(w *World, part []base.NodeID) {
	if !p.is(stopsClock) {
		return
	}
	for _, n := range w.nodes {
		n.clock.run()
		if len(part) == 1 && part[0] == n.id {
			n.clock.stop()
		}
	}
}
