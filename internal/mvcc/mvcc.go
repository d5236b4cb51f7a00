// Package mvcc is the keys half of the state machine: multi-version keys, reads at a
// timestamp, and transactions of compare → then / else evaluated when applied. It is
// pure: it reads and writes through the view it is given, and time comes with the
// command. All keys here are logical keys.
package mvcc

import "github.com/almanacdb/almanac/internal/base"

// KeyValue is one version of a key.
type KeyValue struct {
	Key            []byte // logical key
	Value          []byte
	CreateRevision base.Timestamp // commit timestamp of the key's creation
	ModRevision    base.Timestamp // commit timestamp of this version
	Version        int64          // 1 at creation, one more with each write
	Lease          int64          // 0 means none
}

// Target is what a Compare looks at. On disk; never renumber.
type Target uint8

// Targets, as in the etcd API.
const (
	TargetVersion Target = iota
	TargetCreate
	TargetMod
	TargetValue
	TargetLease
)

// Relation is how a Compare compares. On disk; never renumber.
type Relation uint8

// Relations, as in the etcd API.
const (
	Equal Relation = iota
	Greater
	Less
	NotEqual
)

// Compare holds when every key in Span relates to the operand. A span without keys, be
// it a point or wider, compares as one key with version, revisions and lease 0, and
// fails a value compare, as in etcd.
type Compare struct {
	Span     base.Span
	Target   Target
	Relation Relation
	Number   int64  // operand, unless Target is TargetValue
	Value    []byte // operand of TargetValue
}

// OpKind says what an Op does. On disk; never renumber.
type OpKind uint8

// Operations.
const (
	OpRange OpKind = iota + 1
	OpPut
	OpDelete // every key in the span
	OpTxn
)

// Op is one operation of a transaction.
type Op struct {
	Kind        OpKind
	Span        base.Span    // all but OpTxn; a point for OpPut
	Range       RangeOptions // OpRange
	Value       []byte       // OpPut
	Lease       int64        // OpPut
	IgnoreValue bool         // OpPut: keep the current value; the key must exist
	IgnoreLease bool         // OpPut: keep the current lease; the key must exist
	PrevKV      bool         // OpPut, OpDelete: return what was there before
	Txn         *Txn         // OpTxn
}

// Txn is compare → then / else on one range.
type Txn struct {
	Compares   []Compare
	Then, Else []Op
}

// SortTarget is what a range read sorts by. On disk; never renumber.
type SortTarget uint8

// Sort targets, as in the etcd API.
const (
	SortKey SortTarget = iota
	SortVersion
	SortCreate
	SortMod
	SortValue
)

// SortOrder is the direction of a sort. On disk; never renumber.
type SortOrder uint8

// Sort orders, as in the etcd API. SortNone is key order.
const (
	SortNone SortOrder = iota
	SortAscend
	SortDescend
)

// RangeOptions refine a range read.
type RangeOptions struct {
	At        base.Timestamp // 0: the newest version (in a command: as of this command)
	Limit     int64          // 0: all
	CountOnly bool
	KeysOnly  bool
	Sort      SortTarget
	Order     SortOrder
	// Revision filters; 0 means no bound. They apply before Limit and do not change
	// Count, as in etcd.
	MinMod, MaxMod, MinCreate, MaxCreate base.Timestamp
}

// RangeResult answers a range read.
type RangeResult struct {
	KVs   []KeyValue
	Count int64 // keys in the span at that timestamp, whatever the limit
	More  bool
}

// OpResult answers one Op, by the same Kind.
type OpResult struct {
	Kind    OpKind
	Range   RangeResult // OpRange
	Prev    []KeyValue  // OpPut (none or one), OpDelete, if PrevKV was asked
	Deleted int64       // OpDelete
	Txn     *TxnResult  // OpTxn
}

// TxnResult answers a Txn.
type TxnResult struct {
	Succeeded bool // the compares held, so Then was done
	Ops       []OpResult
}
