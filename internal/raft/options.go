package raft

import (
	"log/slog"
	"math"
	"slices"
	"time"

	etcdraft "go.etcd.io/raft/v3"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/clock"
	"github.com/almanacdb/almanac/internal/effect"
	"github.com/almanacdb/almanac/internal/fault"
)

// Log is the durable log that the host keeps. The machine reads it from within its own
// methods only. An error from Entries, or from Term within bounds, leaves the machine
// unable to go on: it panics with the error, as for every failure of the log (S6).
type Log interface {
	First() uint64 // first index held: the truncated index + 1
	Last() uint64  // last index held; First − 1 if there is none
	// Term returns the term of entry i, which lies in [First − 1, Last].
	Term(i uint64) (uint64, error)
	// Entries returns consecutive entries of [lo, hi) from lo on: at least one, and no
	// more than maxBytes of them otherwise. The caller owns the slice.
	Entries(lo, hi uint64, maxBytes int) ([]base.Entry, error)
}

// Options says who a machine is, where it left off and how it behaves.
type Options struct {
	Range   base.RangeID
	Replica base.ReplicaID

	Config    effect.Configuration // membership as of Applied
	HardState effect.HardState     // as saved, after rule S4
	Applied   uint64               // what the state machine holds
	Log       Log

	Tick           time.Duration // time between calls of Tick
	ElectionTicks  int           // ticks without a leader before a campaign; at least
	HeartbeatTicks int           // ticks between a leader's heartbeats

	// Restarted says that this replica may have promised or voted in an earlier life:
	// then it gives no vote and does not campaign for one lease from Now on, unless it
	// is the sole voter. True unless the replica was just created.
	Restarted bool
	Now       clock.Mono

	CacheBytes          int // recent entries kept in memory; 0 means 1 MiB
	MaxMessageBytes     int // entries in one message or one Ready; 0 means 1 MiB
	MaxInflightMessages int // appends on their way to one follower; 0 means 256
	MaxInflightBytes    int // the same in bytes; 0 means 16 MiB
	MaxUncommittedBytes int // proposals not yet applied; 0 means 64 MiB

	Logger *slog.Logger // nil means silence
}

// limit bounds terms and indexes from outside, so that arithmetic on them never wraps.
const limit = uint64(1) << 62

// Validate fills in defaults and refuses what can't work.
func (o *Options) Validate() error {
	for _, d := range []struct {
		field *int
		value int
	}{
		{&o.CacheBytes, 1 << 20},
		{&o.MaxMessageBytes, 1 << 20},
		{&o.MaxInflightMessages, 256},
		{&o.MaxInflightBytes, 16 << 20},
		{&o.MaxUncommittedBytes, 64 << 20},
	} {
		if *d.field == 0 {
			*d.field = d.value
		}
		if *d.field < 0 {
			return o.invalid("a limit is negative")
		}
	}
	switch {
	case o.Range == 0:
		return o.invalid("no range")
	case !validReplica(o.Replica):
		return o.invalid("replica id %d is out of bounds", o.Replica)
	case o.Log == nil:
		return o.invalid("no log")
	case o.Tick <= 0:
		return o.invalid("tick %v is not positive", o.Tick)
	case o.HeartbeatTicks < 1 || o.ElectionTicks <= o.HeartbeatTicks || o.ElectionTicks < 3:
		return o.invalid("election timeout of %d ticks with a heartbeat every %d", o.ElectionTicks, o.HeartbeatTicks)
	case o.ElectionTicks > math.MaxInt32 || o.Tick > time.Hour:
		return o.invalid("election timeout of %d ticks of %v", o.ElectionTicks, o.Tick)
	case o.MaxInflightBytes < o.MaxMessageBytes:
		return o.invalid("inflight bytes below the size of a message")
	}
	if err := checkConfiguration(o.Config); err != nil {
		return err.OnRange(o.Range)
	}
	return o.validateLog()
}

// validateLog checks that saved state and log fit together, as rule S4 leaves them.
func (o *Options) validateLog() error {
	first, last := o.Log.First(), o.Log.Last()
	if first == 0 || last+1 < first || last >= limit || o.HardState.Term >= limit {
		return o.corrupt("log [%d, %d], term %d is out of bounds", first, last, o.HardState.Term)
	}
	if o.HardState == (effect.HardState{}) {
		// A log that starts above zero with nothing saved yet, after a split.
		t, err := o.Log.Term(first - 1)
		if err != nil {
			return err
		}
		o.HardState = effect.HardState{Term: t, Commit: first - 1}
	}
	commit := o.HardState.Commit
	if commit+1 < first || commit > last {
		return o.corrupt("commit index %d is outside the log [%d, %d]", commit, first, last)
	}
	if o.Applied+1 < first || o.Applied > commit {
		return o.corrupt("applied index %d is outside [%d, %d]", o.Applied, first-1, commit)
	}
	t, err := o.Log.Term(last)
	if err != nil {
		return err
	}
	if t > o.HardState.Term {
		return o.corrupt("the log ends in term %d, above the saved term %d", t, o.HardState.Term)
	}
	return nil
}

func (o *Options) invalid(format string, args ...any) error {
	return fault.New(fault.Invalid, "raft options: "+format, args...).OnRange(o.Range)
}

func (o *Options) corrupt(format string, args ...any) error {
	return fault.New(fault.Corrupt, "saved raft state: "+format, args...).OnRange(o.Range)
}

func validReplica(id base.ReplicaID) bool {
	return uint64(id) != etcdraft.None && uint64(id) < limit
}

// checkConfiguration refuses what would not be a membership: ids that are none, doubled,
// or both voter and learner. An empty one belongs to a replica that awaits a snapshot.
func checkConfiguration(c effect.Configuration) *fault.Error {
	all := slices.Concat(c.Voters, c.Learners)
	slices.Sort(all)
	for i, id := range all {
		if !validReplica(id) || i > 0 && all[i-1] == id {
			return fault.New(fault.Invalid, "configuration with voters %v and learners %v", c.Voters, c.Learners)
		}
	}
	if len(c.Voters) == 0 && len(c.Learners) > 0 {
		return fault.New(fault.Invalid, "configuration with learners %v and no voter", c.Learners)
	}
	return nil
}
