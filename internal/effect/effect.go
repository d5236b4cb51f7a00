// Package effect says what a machine wants done: entries to save, messages to send,
// entries to apply, state to read and write. Machines return effects; hosts carry them
// out. Nothing here says which replication protocol runs.
package effect

import (
	"github.com/almanacdb/almanac/internal/base"
)

// HardState is what a group must remember besides its log.
type HardState struct {
	Term   uint64
	Vote   base.ReplicaID
	Commit uint64
}

// SnapshotMeta names the state that a snapshot holds: everything up to Mark.
type SnapshotMeta struct {
	Mark   base.LogMark
	Config Configuration
}

// Configuration is a group's membership as the replication protocol sees it.
type Configuration struct {
	Epoch    uint64
	Voters   []base.ReplicaID
	Learners []base.ReplicaID
}

// MessageType is a replication message's type. The raft face uses the values of
// raftpb.MessageType; the chain will use values from 128 on.
type MessageType uint8

// Message is one replication message from one replica of a range to another.
type Message struct {
	Range    base.RangeID
	From, To base.ReplicaID
	Type     MessageType
	Term     uint64
	LogTerm  uint64
	Index    uint64
	Commit   uint64
	Vote     base.ReplicaID
	Reject   bool
	Hint     uint64
	Context  []byte
	Entries  []base.Entry
	Snapshot *SnapshotMeta
	// Round is the sender's monotonic send time in nanoseconds on what a leader sends
	// (appends, heartbeats); on what it gets back it is the highest Round that the
	// replier had handled in that term. 0 means none. Leases are counted from it.
	Round int64
	// ConfigEpoch is the configuration epoch that the sender was in.
	ConfigEpoch uint64
}

// Ready is all that a group's machine wants done since the last time. The host installs
// Snapshot, sends Early, and hands Committed to apply; it says with Applied that this was
// done. If Save is set it also saves HardState and Entries, sends Late once they are
// durable, and then tells the machine with Saved. Saves end in the order of their Readys,
// and the machine may be asked for the next Ready before they do.
type Ready struct {
	HardState *HardState // nil if unchanged
	Entries   []base.Entry
	Snapshot  *SnapshotMeta
	// Save asks for a call of Saved. Even with nothing to save, it comes after the saves
	// before it: Late may speak of what they hold.
	Save bool
	// MustSync is false when nothing but the commit index changed; then no save is
	// needed for its own sake (S4).
	MustSync  bool
	Early     []Message // may leave before the save
	Late      []Message // votes, and acknowledgements of appends: only after the save
	Committed []base.Entry
}

// Iterator walks physical keys in order, within the bounds it was made with. Key and
// Value are valid until the next move.
type Iterator interface {
	First() bool
	Last() bool
	SeekGE(key []byte) bool
	SeekLT(key []byte) bool
	// SeekPrefixGE seeks to the first key at or after key that shares key's prefix
	// (keys.Split); it may use a filter. Only Next may follow it, within that prefix. key
	// lies within the bounds.
	SeekPrefixGE(key []byte) bool
	Next() bool
	Prev() bool
	// NextPrefix moves to the first key with another prefix (keys.Split). It needs an
	// upper bound that is nil or a whole prefix.
	NextPrefix() bool
	Valid() bool
	Key() []byte
	Value() ([]byte, error)
	Error() error
	Close() error
}

// Reader reads physical keys.
type Reader interface {
	// Get returns the value of key, owned by the caller; ok is false if there is none.
	Get(key []byte) (value []byte, ok bool, err error)
	// NewIter returns an iterator over [lower, upper); nil means unbounded. It sees
	// the reader's contents as of now, writes made through a View so far included.
	NewIter(lower, upper []byte) (Iterator, error)
}

// Heads is a Reader that may know the head of a prefix, the first key under it, without
// looking for it.
type Heads interface {
	// Head returns what follows the prefix in its first key, and that key's value. They are
	// shared and must not be changed. If ok is false, t lets Learn take what is found.
	Head(prefix []byte) (suffix, value []byte, t HeadTicket, ok bool)
	// Learn is told the head that a read found which began after t was given.
	Learn(t HeadTicket, prefix, suffix, value []byte)
}

// HeadTicket is a moment in the history of a reader's contents; the zero ticket is none.
type HeadTicket struct{ Moment uint64 }

// View is a state machine's window on its range: it reads its own writes. Keys and
// values are copied, or consumed before the call returns.
type View interface {
	Reader
	Set(key, value []byte) error
	Delete(key []byte) error
	DeleteRange(lower, upper []byte) error
}
