package effect

import "github.com/almanacdb/almanac/internal/base"

// Status is what a group's machine knows of itself.
type Status struct {
	Term    uint64
	Orderer bool           // this replica orders the range's commands in Term
	Leader  base.ReplicaID // who orders in Term, as far as known; 0 if unknown
	// LastIndex and LastTerm are the end of the log. At an orderer they count what was
	// proposed; elsewhere they are as of the last Ready.
	LastIndex uint64
	LastTerm  uint64
	// TermStart is the index of the first entry of Term, at the orderer; else 0. An
	// orderer serves nothing before it has applied that entry (K4).
	TermStart uint64
	Commit    uint64
	Applied   uint64
}

// Progress is what an orderer knows of another replica of its group.
type Progress struct {
	Replica base.ReplicaID
	Learner bool
	Match   uint64 // the highest index known to be saved there
	Active  bool   // heard from within the last election timeout
	// NeedsSnapshot says that the log no longer reaches back to what it lacks; a
	// snapshot is on its way.
	NeedsSnapshot bool
}
