// Package timeline is the events half of the state machine: partitions as ordered
// timelines on disk, groups with their cursors and acked windows. It is pure: it reads
// and writes through the view it is given, and the range's clock comes with the call.
package timeline

import "github.com/almanacdb/almanac/internal/base"

// Header is one name and value that travels with an event.
type Header struct {
	Name  string
	Value []byte
}

// NewEvent is an event as a publisher hands it in.
type NewEvent struct {
	MessageID   string // optional
	OrderingKey []byte // optional
	Headers     []Header
	Payload     []byte
	DueMS       int64 // requested due time, milliseconds since 1970; 0: none
	DelayMS     int64 // added to the range's clock at apply; used if DueMS is 0
}

// Batch is what one publish command adds to one partition.
type Batch struct {
	Partition base.PartitionID
	Events    []NewEvent
}

// Publish adds events to partitions of one range.
type Publish struct {
	Batches []Batch
}

// Published answers one NewEvent, in the order of the batches and their events.
type Published struct {
	Position  base.Position
	Duplicate bool // a pending event with this message id exists; Position is its
}

// Event is an event as it stands in a timeline.
type Event struct {
	Position    base.Position
	FirstSeq    uint64         // with the partition, the event's identity
	Revision    base.Timestamp // stamp of the command that wrote this value
	Flags       Flags
	MessageID   string
	OrderingKey []byte
	Headers     []Header
	Payload     []byte
}

// Flags mark an event. On disk; never renumber.
type Flags uint8

// Flags. Those marked † are reserved.
const (
	FlagCancelled Flags = 1 << iota // †
	FlagSkipped                     // †
	FlagGuarded                     // †
)

// StartRule says where a new group's cursor begins. On disk; never renumber.
type StartRule uint8

// Start rules.
const (
	StartEarliest StartRule = 1
	StartLatest   StartRule = 2 // at (clock, last sequence) when created
)

// CreateGroup makes a group's cursor stand in partitions of one range. A partition
// that has the group already is left as it is.
type CreateGroup struct {
	Group      base.GroupID
	Start      StartRule
	Partitions []base.PartitionID
}

// AckBatch acknowledges events of one partition for one group.
type AckBatch struct {
	Partition base.PartitionID
	Group     base.GroupID
	Positions []base.Position
}

// Ack acknowledges events in partitions of one range.
type Ack struct {
	Batches []AckBatch
}

// AckOutcome says what became of one acknowledged position. On disk; never renumber.
type AckOutcome uint8

// Ack outcomes.
const (
	AckDone       AckOutcome = 1 // settled by this command
	AckAlready    AckOutcome = 2 // was settled before: the first ack won
	AckNotFound   AckOutcome = 3 // no such due event, or no such group
	AckWindowFull AckOutcome = 4 // the acked window has no room; the event stays unsettled
)

// MaxAckedWindow is the default bound on acked positions above a cursor (E6).
const MaxAckedWindow = 10_000

// Group is a group's record in one partition.
type Group struct {
	Group      base.GroupID
	Start      StartRule
	Generation uint64        // † ordered mode
	Cursor     base.Position // every event at or before it is settled
	Acked      uint32        // positions in the acked window
}
