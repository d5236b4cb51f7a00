package placement

import (
	"context"
	"time"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/clock"
	"github.com/almanacdb/almanac/internal/command"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/mvcc"
	"github.com/almanacdb/almanac/internal/replica"
	"github.com/almanacdb/almanac/internal/store"
	"github.com/almanacdb/almanac/internal/wire"
)

// system reads and writes the system range through its replica on this node, which
// must be the orderer.
type system struct{ store *store.Store }

func (s system) deadline(ctx context.Context) clock.Mono {
	d := 10 * time.Second
	if at, ok := ctx.Deadline(); ok {
		d = time.Until(at)
	}
	return s.store.Clock().Mono().Add(d)
}

// await waits for one answer.
func await[T any](ctx context.Context, start func(done func(T, error))) (T, error) {
	type answer struct {
		v   T
		err error
	}
	ch := make(chan answer, 1)
	start(func(v T, err error) { ch <- answer{v, err} })
	select {
	case a := <-ch:
		return a.v, a.err
	case <-ctx.Done():
		var zero T
		return zero, fault.Wrap(fault.Deadline, ctx.Err(), "the system range did not answer in time").OnRange(base.SystemRange)
	}
}

// txn commits a transaction; a refusal is an error.
func (s system) txn(ctx context.Context, txn *mvcc.Txn) (*mvcc.TxnResult, error) {
	env, err := command.Encode(command.Header{Kind: command.KindTxn}, txn)
	if err != nil {
		return nil, err
	}
	res, err := await(ctx, func(done func(command.Result, error)) {
		s.store.Propose(base.SystemRange, env, s.deadline(ctx), done)
	})
	if fault.KindOf(err) == fault.Deadline && ctx.Err() != nil {
		return nil, fault.Wrap(fault.UnknownOutcome, err, "the change may or may not take effect").OnRange(base.SystemRange)
	}
	if err != nil {
		return nil, err
	}
	if res.Refusal != nil {
		return nil, res.Refusal
	}
	return res.Txn, nil
}

// read reads spans linearizably.
func (s system) read(ctx context.Context, spans ...base.Span) ([]mvcc.RangeResult, error) {
	_, err := await(ctx, func(done func(replica.BarrierReply, error)) {
		s.store.Barrier(base.SystemRange, &replica.Barrier{Newest: true, Apply: true, Deadline: s.deadline(ctx), Done: done})
	})
	if err != nil {
		return nil, err
	}
	reads := make([]wire.Read, len(spans))
	for i := range spans {
		reads[i].Span = spans[i]
	}
	reply, err := s.store.ReadLocal(base.SystemRange, reads, 0)
	return reply.Results, err
}

// get reads one record; nil if it does not exist.
func (s system) get(ctx context.Context, key []byte) (*mvcc.KeyValue, error) {
	res, err := s.read(ctx, base.PointSpan(key))
	if err != nil || len(res[0].KVs) == 0 {
		return nil, err
	}
	return &res[0].KVs[0], nil
}

func put(key []byte, record any) mvcc.Op {
	return mvcc.Op{Kind: mvcc.OpPut, Span: base.PointSpan(key), Value: Encode(record)}
}

func remove(span base.Span) mvcc.Op { return mvcc.Op{Kind: mvcc.OpDelete, Span: span} }

// unchanged holds while a key's newest version is the one with modification revision
// rev; 0: while it does not exist.
func unchanged(key []byte, rev base.Timestamp) mvcc.Compare {
	return mvcc.Compare{Span: base.PointSpan(key), Target: mvcc.TargetMod, Relation: mvcc.Equal, Number: int64(rev)}
}
