package command

import (
	"fmt"

	"pgregory.net/rapid"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/keys"
	"github.com/almanacdb/almanac/internal/mvcc"
	"github.com/almanacdb/almanac/internal/timeline"
)

// Generators of everything that has a codec. Empty slices are drawn as nil, as decoders
// return them.

func drawBytes(t *rapid.T, label string) []byte {
	b := rapid.SliceOfN(rapid.SampledFrom([]byte{0, 1, 'a', 0xff}), 0, 4).Draw(t, label)
	if len(b) == 0 {
		return nil
	}
	return b
}

func drawSpan(t *rapid.T) base.Span {
	if rapid.Bool().Draw(t, "point") {
		return drawPoint(t)
	}
	return base.Span{Start: drawBytes(t, "start"), End: drawBytes(t, "end")}
}

func drawPoint(t *rapid.T) base.Span {
	return base.PointSpan(keys.User(base.DefaultKeyspace, drawBytes(t, "key")))
}

func drawStamp(t *rapid.T, label string) base.Timestamp {
	return base.Timestamp(rapid.Uint64().Draw(t, label))
}

func drawPartition(t *rapid.T) base.PartitionID {
	return base.PartitionID{
		Topic:     base.TopicID(rapid.Uint64Range(1, 300).Draw(t, "topic")),
		Partition: base.Partition(rapid.Uint32().Draw(t, "partition")),
	}
}

// several draws up to n items; nil if none.
func several[T any](t *rapid.T, n int, label string, item func(*rapid.T) T) []T {
	var out []T
	for range rapid.IntRange(0, n).Draw(t, label) {
		out = append(out, item(t))
	}
	return out
}

func drawCompare(t *rapid.T) mvcc.Compare {
	c := mvcc.Compare{
		Span:     drawSpan(t),
		Target:   mvcc.Target(rapid.IntRange(0, int(mvcc.TargetLease)).Draw(t, "target")),
		Relation: mvcc.Relation(rapid.IntRange(0, int(mvcc.NotEqual)).Draw(t, "relation")),
	}
	if c.Target == mvcc.TargetValue {
		c.Value = drawBytes(t, "value")
	} else {
		c.Number = rapid.Int64().Draw(t, "number")
	}
	return c
}

func drawOp(depth int) func(t *rapid.T) mvcc.Op {
	return func(t *rapid.T) mvcc.Op {
		last := mvcc.OpTxn
		if depth == 3 {
			last = mvcc.OpDelete
		}
		op := mvcc.Op{Kind: mvcc.OpKind(rapid.IntRange(int(mvcc.OpRange), int(last)).Draw(t, "op"))}
		switch op.Kind {
		case mvcc.OpRange:
			op.Span = drawSpan(t)
			op.Range = drawRangeOptions(t)
		case mvcc.OpPut:
			op.Span, op.Value = drawPoint(t), drawBytes(t, "value")
			op.Lease = rapid.Int64().Draw(t, "lease")
			op.IgnoreValue, op.IgnoreLease = rapid.Bool().Draw(t, "iv"), rapid.Bool().Draw(t, "il")
			op.PrevKV = rapid.Bool().Draw(t, "prev")
		case mvcc.OpDelete:
			op.Span, op.PrevKV = drawSpan(t), rapid.Bool().Draw(t, "prev")
		case mvcc.OpTxn:
			op.Txn = drawTxn(depth + 1)(t)
		}
		return op
	}
}

func drawRangeOptions(t *rapid.T) mvcc.RangeOptions {
	o := mvcc.RangeOptions{
		At: drawStamp(t, "at"), Limit: rapid.Int64().Draw(t, "limit"),
		CountOnly: rapid.Bool().Draw(t, "count"), KeysOnly: rapid.Bool().Draw(t, "keys"),
		Sort:  mvcc.SortTarget(rapid.IntRange(0, int(mvcc.SortValue)).Draw(t, "sort")),
		Order: mvcc.SortOrder(rapid.IntRange(0, int(mvcc.SortDescend)).Draw(t, "order")),
	}
	if rapid.Bool().Draw(t, "filter") {
		o.MinMod, o.MaxMod = drawStamp(t, "min mod"), drawStamp(t, "max mod")
		o.MinCreate, o.MaxCreate = drawStamp(t, "min create"), drawStamp(t, "max create")
	}
	return o
}

func drawTxn(depth int) func(t *rapid.T) *mvcc.Txn {
	return func(t *rapid.T) *mvcc.Txn {
		return &mvcc.Txn{
			Compares: several(t, 2, "compares", drawCompare),
			Then:     several(t, 3, "then", drawOp(depth)),
			Else:     several(t, 2, "else", drawOp(depth)),
		}
	}
}

func drawEvent(t *rapid.T) timeline.NewEvent {
	return timeline.NewEvent{
		MessageID:   rapid.StringN(0, 3, -1).Draw(t, "message id"),
		OrderingKey: drawBytes(t, "ordering key"),
		Headers: several(t, 2, "headers", func(t *rapid.T) timeline.Header {
			return timeline.Header{Name: rapid.StringN(0, 3, -1).Draw(t, "name"), Value: drawBytes(t, "value")}
		}),
		Payload: drawBytes(t, "payload"),
		DueMS:   rapid.Int64().Draw(t, "due"),
		DelayMS: rapid.Int64().Draw(t, "delay"),
	}
}

func drawPosition(t *rapid.T) base.Position {
	return base.Position{DueMS: rapid.Int64().Draw(t, "due"), Seq: rapid.Uint64().Draw(t, "sequence")}
}

func drawBody(t *rapid.T, k Kind) any {
	switch k {
	case KindTxn:
		return drawTxn(1)(t)
	case KindPublish:
		return &timeline.Publish{Batches: several(t, 3, "batches", func(t *rapid.T) timeline.Batch {
			return timeline.Batch{Partition: drawPartition(t), Events: several(t, 3, "events", drawEvent)}
		})}
	case KindAck:
		return &timeline.Ack{Batches: several(t, 3, "batches", func(t *rapid.T) timeline.AckBatch {
			return timeline.AckBatch{
				Partition: drawPartition(t),
				Group:     base.GroupID(rapid.Uint64().Draw(t, "group")),
				Positions: several(t, 3, "positions", drawPosition),
			}
		})}
	case KindCreateGroup:
		return &timeline.CreateGroup{
			Group:      base.GroupID(rapid.Uint64().Draw(t, "group")),
			Start:      timeline.StartRule(rapid.Byte().Draw(t, "start")),
			Partitions: several(t, 3, "partitions", drawPartition),
		}
	case KindSetHorizon:
		return &SetHorizon{Span: drawSpan(t), Horizon: drawStamp(t, "horizon")}
	case KindSetBound:
		return &SetBound{Bound: drawStamp(t, "bound")}
	case KindRaiseFeature:
		return &RaiseFeature{Level: rapid.Uint32().Draw(t, "level")}
	}
	return nil
}

func drawKind(t *rapid.T) Kind {
	return Kind(rapid.IntRange(int(KindNoop), int(KindRaiseFeature)).Draw(t, "kind"))
}

func drawHeader(t *rapid.T, k Kind) Header {
	return Header{
		Kind: k, ClientID: rapid.Uint64().Draw(t, "client"), Request: rapid.Uint64().Draw(t, "request"),
		SpanEpoch: rapid.Uint64().Draw(t, "span epoch"),
		Stamp:     drawStamp(t, "stamp"), Time: drawStamp(t, "time"),
	}
}

func drawDescriptor(t *rapid.T) base.RangeDescriptor {
	n := func(label string) uint64 { return rapid.Uint64().Draw(t, label) }
	return base.RangeDescriptor{
		Range: base.RangeID(n("range")), Span: drawSpan(t), SpanEpoch: n("span epoch"),
		ConfigEpoch: n("configuration epoch"), Protocol: base.Protocol(rapid.Byte().Draw(t, "protocol")),
		Keyspace: base.KeyspaceID(n("keyspace")), Topic: base.TopicID(n("topic")),
		Replicas: several(t, 5, "replicas", func(t *rapid.T) base.ReplicaDescriptor {
			return base.ReplicaDescriptor{
				Node: base.NodeID(n("node")), Replica: base.ReplicaID(n("replica")),
				Role: base.Role(rapid.Byte().Draw(t, "role")),
			}
		}),
	}
}

// normal makes what was drawn comparable with what was decoded: an empty start is nil.
func normal(v any) string { return fmt.Sprintf("%+v", flatten(v)) }

func flatten(v any) any {
	switch b := v.(type) {
	case *mvcc.Txn:
		return flattenTxn(b)
	case *timeline.Publish:
		return *b
	case *timeline.Ack:
		return *b
	case *timeline.CreateGroup:
		return *b
	case *SetHorizon:
		return *b
	case *SetBound:
		return *b
	case *RaiseFeature:
		return *b
	}
	return v
}

func flattenTxn(t *mvcc.Txn) string {
	s := fmt.Sprintf("if %+v", t.Compares)
	for _, ops := range [][]mvcc.Op{t.Then, t.Else} {
		s += " branch"
		for _, op := range ops {
			if op.Txn != nil {
				s += " [" + flattenTxn(op.Txn) + "]"
				op.Txn = nil
			}
			s += fmt.Sprintf(" %+v", op)
		}
	}
	return s
}
