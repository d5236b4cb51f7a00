// Package plant lets a simulation break the product on purpose, to see whether its checks
// notice. A hook in product code reads `plant.On(plant.LeaseTooLong)` and stands where the
// bug would. Only a build with the tag "plant" has bugs to switch on; in every other On is
// false at compile time and a hook leaves nothing in the binary. The package knows the
// bugs' names alone, not what they do.
package plant

// Bug is something that a hook in product code can do wrong.
type Bug uint8

// The bugs, each with the rule that it breaks.
const (
	LeaseTooLong       Bug = iota // 9: a lease outlives the promises that it rests on
	LeaseAfterTransfer            // 9: a leader that began to hand over keeps its lease
	LeaseExpired                  // 9: a lease that ran out is used
	OldRound                      // K4: a quorum round begun before the request confirms it
	StampUnchecked                // K3: the orderer appends a stamp at or below the last
	ApplyUnchecked                // K3: apply takes a stamp at or below the last
	PromisedIgnored               // K4: the orderer appends a stamp at or below promised
	VoteBeforeSave                // S1: a vote leaves before it is saved
	CommitNotRaised               // S4: a start takes the saved commit, though more is applied
	SnapshotIndexFirst            // S2: a snapshot's state record is durable before its data
	TruncatedTooFar               // S1: a log is truncated above what is flushed
	OracleWithoutLease            // T1: the oracle answers with neither lease nor round
	OracleJumps                   // T3: a new oracle goes on from the bound without waiting
	FiresEarly                    // 3: an advance is two seconds ahead of the oracle
	EventsForgotten               // E7: a new orderer goes on above the highest acked event
	PromiseForgotten              // 9: a restarted replica votes and stands at once
	AcksForgotten                 // E6: a new orderer hands out what was acked above the cursor
)
