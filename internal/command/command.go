// Package command is a range's deterministic state machine: the envelope every
// command travels in, the range's state record, and Apply. It is pure; keys are
// delegated to mvcc, events to timeline (same-floor imports: mvcc, timeline).
package command

import (
	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/mvcc"
	"github.com/almanacdb/almanac/internal/timeline"
)

// Kind says what a command does. On disk; never renumber.
type Kind uint8

// Kinds of command, with their bodies.
const (
	KindNoop         Kind = 1 // no body
	KindTxn          Kind = 2 // *mvcc.Txn; stamped
	KindPublish      Kind = 3 // *timeline.Publish; stamped
	KindAdvance      Kind = 4 // no body; carries only Time (E2)
	KindAck          Kind = 5 // *timeline.Ack; unstamped
	KindCreateGroup  Kind = 6 // *timeline.CreateGroup; stamped
	KindSetHorizon   Kind = 7 // *SetHorizon; unstamped
	KindSetBound     Kind = 8 // *SetBound; neither stamp nor time (T3)
	KindRaiseFeature Kind = 9 // *RaiseFeature; unstamped
)

// Stamped says whether commands of this kind carry a commit timestamp (K3).
func (k Kind) Stamped() bool {
	return k == KindTxn || k == KindPublish || k == KindCreateGroup
}

// Header is the fixed part of the envelope (K10).
type Header struct {
	Kind      Kind
	Version   uint8          // of the command's semantics
	ClientID  uint64         // with Request: names the request for deduplication †; 0: none
	Request   uint64         // 0: none
	SpanEpoch uint64         // the proposer's view of the range; 0: not checked
	Stamp     base.Timestamp // commit timestamp, set by the orderer; 0: unstamped
	Time      base.Timestamp // raises the clock; 0: none
}

// Command is a decoded envelope. Reads and Writes list the keys and spans that any
// branch may read and may write; Encode derives them from the body.
type Command struct {
	Header
	Reads  []base.Span
	Writes []base.Span
	Body   any // by Kind; nil where the kind has none
}

// SetHorizon fences reads of Span below Horizon (K8); Span is the range's own.
type SetHorizon struct {
	Span    base.Span
	Horizon base.Timestamp
}

// SetBound raises the oracle's persisted bound (T3).
type SetBound struct {
	Bound base.Timestamp
}

// RaiseFeature raises the range's feature level.
type RaiseFeature struct {
	Level uint32
}

// State is a range's replicated state beside its keys, and what this replica has
// applied. It is stored as the range's state record, in the batch that it describes.
type State struct {
	Descriptor   base.RangeDescriptor // range id, span, epochs, protocol, replicas
	Replica      base.ReplicaID       // this replica
	Applied      base.LogMark         // last applied entry
	LastStamp    base.Timestamp       // highest stamp applied (K3)
	Clock        base.Timestamp       // highest stamp or time applied (E2)
	Horizon      base.Timestamp       // reads below it are refused (K8)
	Bound        base.Timestamp       // oracle's persisted bound; system range only (T3)
	FeatureLevel uint32
	Unknown      []byte // fields that a later version wrote, preserved
}

// Result is what applying a command yields. At most one of the answers is set, by the
// command's kind.
type Result struct {
	// Refusal is set when the command had no effect but the applied index: Restamp,
	// WrongRange, or what its body asked for was not possible (for example Compacted).
	Refusal   *fault.Error
	Stamp     base.Timestamp // the commit timestamp, if stamped
	Clock     base.Timestamp // the range's clock after the command
	Txn       *mvcc.TxnResult
	Published []timeline.Published
	Acks      []timeline.AckOutcome // in the order of batches and positions
}
