package wire

import (
	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/effect"
)

// A replication message is its type, a set of flags, the range and replicas, then each
// field whose flag is set. On the wire; never renumber.
const (
	hasTerm = 1 << iota
	hasLogTerm
	hasIndex
	hasCommit
	hasVote
	isReject
	hasHint
	hasContext
	hasEntries
	hasSnapshot
	hasRound
	hasConfigEpoch
	knownFlags = 1<<iota - 1
)

func replicationFlags(m *effect.Message) (flags uint64) {
	set := func(flag uint64, present bool) {
		if present {
			flags |= flag
		}
	}
	set(hasTerm, m.Term != 0)
	set(hasLogTerm, m.LogTerm != 0)
	set(hasIndex, m.Index != 0)
	set(hasCommit, m.Commit != 0)
	set(hasVote, m.Vote != 0)
	set(isReject, m.Reject)
	set(hasHint, m.Hint != 0)
	set(hasContext, len(m.Context) != 0)
	set(hasEntries, len(m.Entries) != 0)
	set(hasSnapshot, m.Snapshot != nil)
	set(hasRound, m.Round != 0)
	set(hasConfigEpoch, m.ConfigEpoch != 0)
	return flags
}

func appendReplication(b []byte, m *effect.Message) []byte {
	flags := replicationFlags(m)
	b = append(b, byte(m.Type))
	b = appendUvarint(b, flags)
	b = appendUvarint(b, uint64(m.Range))
	b = appendUvarint(b, uint64(m.From))
	b = appendUvarint(b, uint64(m.To))
	for _, n := range [...]uint64{m.Term, m.LogTerm, m.Index, m.Commit, uint64(m.Vote), m.Hint, m.ConfigEpoch} {
		if n != 0 {
			b = appendUvarint(b, n)
		}
	}
	if flags&hasRound != 0 {
		b = appendVarint(b, m.Round)
	}
	if flags&hasContext != 0 {
		b = appendBytes(b, m.Context)
	}
	if flags&hasSnapshot != 0 {
		b = appendSnapshotMeta(b, m.Snapshot)
	}
	if flags&hasEntries != 0 {
		b = appendEntries(b, m)
	}
	return b
}

func decodeReplication(d *decoder, m *effect.Message) {
	m.Type = effect.MessageType(d.byte())
	flags := d.uvarint()
	if flags > knownFlags {
		d.fail("a replication message has unknown flags %#x", flags)
		return
	}
	m.Range = base.RangeID(d.uvarint())
	m.From = base.ReplicaID(d.uvarint())
	m.To = base.ReplicaID(d.uvarint())
	number := func(flag uint64) uint64 {
		if flags&flag == 0 {
			return 0
		}
		return d.uvarint()
	}
	m.Term = number(hasTerm)
	m.LogTerm = number(hasLogTerm)
	m.Index = number(hasIndex)
	m.Commit = number(hasCommit)
	m.Vote = base.ReplicaID(number(hasVote))
	m.Reject = flags&isReject != 0
	m.Hint = number(hasHint)
	m.ConfigEpoch = number(hasConfigEpoch)
	if flags&hasRound != 0 {
		m.Round = d.varint()
	}
	if flags&hasContext != 0 {
		m.Context = d.bytes()
	}
	if flags&hasSnapshot != 0 {
		m.Snapshot = &effect.SnapshotMeta{}
		decodeSnapshotMeta(d, m.Snapshot)
	}
	if flags&hasEntries != 0 {
		decodeEntries(d, m)
	}
}

func replicationSize(m *effect.Message) int {
	n := 192 + len(m.Context)
	for i := range m.Entries {
		n += 40 + len(m.Entries[i].Data)
	}
	if s := m.Snapshot; s != nil {
		n += 64 + 10*(len(s.Config.Voters)+len(s.Config.Learners))
	}
	return n
}

// Entries follow one another, and mostly in the message's term: each is its type with
// two flags, then only the differences from what is expected, then its data.
const (
	entryIndexDiffers = 1 << iota
	entryTermDiffers
	entryTypeShift = iota
)

func appendEntries(b []byte, m *effect.Message) []byte {
	b = appendUvarint(b, uint64(len(m.Entries)))
	index, term := m.Index, m.Term
	for i := range m.Entries {
		e := &m.Entries[i]
		skip, rise := int64(e.Index-index-1), int64(e.Term-term)
		head := uint64(e.Type) << entryTypeShift
		if skip != 0 {
			head |= entryIndexDiffers
		}
		if rise != 0 {
			head |= entryTermDiffers
		}
		b = appendUvarint(b, head)
		if skip != 0 {
			b = appendVarint(b, skip)
		}
		if rise != 0 {
			b = appendVarint(b, rise)
		}
		b = appendBytes(b, e.Data)
		index, term = e.Index, e.Term
	}
	return b
}

func decodeEntries(d *decoder, m *effect.Message) {
	index, term := m.Index, m.Term
	m.Entries = decodeList(d, 2, func(d *decoder, e *base.Entry) {
		head := d.uvarint()
		if head>>entryTypeShift > 0xff {
			d.fail("an entry has type %d", head>>entryTypeShift)
			return
		}
		index++
		if head&entryIndexDiffers != 0 {
			index += uint64(d.varint())
		}
		if head&entryTermDiffers != 0 {
			term += uint64(d.varint())
		}
		e.Type = base.EntryType(head >> entryTypeShift)
		e.Index, e.Term = index, term
		e.Data = d.bytes()
	})
}

func appendSnapshotMeta(b []byte, s *effect.SnapshotMeta) []byte {
	b = appendMark(b, s.Mark)
	b = appendUvarint(b, s.Config.Epoch)
	b = appendIDs(b, s.Config.Voters)
	return appendIDs(b, s.Config.Learners)
}

func decodeSnapshotMeta(d *decoder, s *effect.SnapshotMeta) {
	s.Mark = decodeMark(d)
	s.Config.Epoch = d.uvarint()
	s.Config.Voters = decodeIDs[base.ReplicaID](d)
	s.Config.Learners = decodeIDs[base.ReplicaID](d)
}

func appendMark(b []byte, m base.LogMark) []byte {
	return appendUvarint(appendUvarint(b, m.Index), m.Term)
}

func decodeMark(d *decoder) base.LogMark {
	index := d.uvarint()
	return base.LogMark{Index: index, Term: d.uvarint()}
}
