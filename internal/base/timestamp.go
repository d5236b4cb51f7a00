package base

import "fmt"

// Timestamp is 64-bit hybrid time: milliseconds since 1970 in the upper bits, a
// logical counter in the lower LogicalBits. Totally ordered; only the oracle issues
// them. In the etcd API it is the revision.
type Timestamp uint64

// LogicalBits is the width of a timestamp's logical counter.
const LogicalBits = 18

// MaxTimestamp is the highest timestamp that is a positive int64, as the etcd API
// needs it.
const MaxTimestamp = Timestamp(1<<63 - 1)

// TimestampAt returns the first timestamp of a millisecond.
func TimestampAt(ms int64) Timestamp { return Timestamp(ms) << LogicalBits }

// Millis returns the milliseconds since 1970.
func (t Timestamp) Millis() int64 { return int64(t >> LogicalBits) }

// Logical returns the logical counter.
func (t Timestamp) Logical() uint32 { return uint32(t & (1<<LogicalBits - 1)) }

// String returns milliseconds and counter, for logs and traces.
func (t Timestamp) String() string { return fmt.Sprintf("%d.%d", t.Millis(), t.Logical()) }
