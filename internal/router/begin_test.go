package router

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/almanacdb/almanac/internal/admission"
	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/command"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/keys"
	"github.com/almanacdb/almanac/internal/mvcc"
	"github.com/almanacdb/almanac/internal/timeline"
	"github.com/almanacdb/almanac/internal/wire"
)

// into lets so many requests into a range at once.
func (p *publishing) into(n int) {
	p.r.gates = &admission.Gates{Inside: n, Waiting: 1, Patience: time.Minute}
}

// beginPut begins a put of a key of the range, and returns its outcomes.
func (p *publishing) beginPut(partition base.Partition) (outcomes *[]answer[base.Timestamp], ok bool) {
	outcomes = new([]answer[base.Timestamp])
	key := keys.Partition(base.PartitionID{Topic: 1, Partition: partition})
	txn := &mvcc.Txn{Then: []mvcc.Op{{Kind: mvcc.OpPut, Span: base.PointSpan(key)}}}
	ok = p.r.BeginTxn(p.t.Context(), 5*time.Second, txn, func(_ *mvcc.TxnResult, at base.Timestamp, err error) {
		*outcomes = append(*outcomes, answer[base.Timestamp]{at, err})
	})
	return outcomes, ok
}

func (p *publishing) commit(n int, at base.Timestamp) {
	p.reply(n, &wire.Reply{Body: command.EncodeResult(nil, &command.Result{Stamp: at, Txn: &mvcc.TxnResult{Succeeded: true}})})
}

// A begun transaction goes to the leader at once, holds its place in the range's gate until
// it is answered, and is answered once.
func TestBegunTxn(t *testing.T) {
	bubble(t, func(t *testing.T, p *publishing) {
		p.into(1)
		got, ok := p.beginPut(0)
		if !ok || len(p.tap.calls) != 1 || p.tap.to[0] != 2 || p.tap.calls[0].Method != wire.MethodPropose {
			t.Fatalf("%v; sent %v", ok, p.tap.calls)
		}
		if _, ok := p.beginPut(1); ok {
			t.Fatal("begun although the range has no room")
		}
		p.commit(0, 77)
		p.commit(0, 78) // late
		if len(*got) != 1 || (*got)[0] != (answer[base.Timestamp]{77, nil}) {
			t.Fatalf("got %v", *got)
		}
		if _, ok := p.beginPut(1); !ok {
			t.Fatal("the place in the gate was not given back")
		}
		if _, ok := p.beginPut(1 << 20); ok || len(p.tap.calls) != 2 {
			t.Fatal("begun outside of the range")
		}
	})
}

// Where nothing was done the transaction is tried again elsewhere; where something may have
// been done, the caller is told (K10).
func TestBegunTxnIsTriedAgainWhenSafe(t *testing.T) {
	bubble(t, func(t *testing.T, p *publishing) {
		p.into(1)
		got, _ := p.beginPut(0)
		p.fail(0, fault.NotLeaderOf(5, 3))
		if len(p.tap.calls) != 2 || p.tap.to[1] != 3 || len(*got) != 0 {
			t.Fatalf("asked nodes %v, got %v", p.tap.to, *got)
		}
		p.commit(1, 78)
		if len(*got) != 1 || (*got)[0] != (answer[base.Timestamp]{78, nil}) {
			t.Fatalf("got %v", *got)
		}
		got, _ = p.beginPut(0)
		p.fail(2, fault.New(fault.UnknownOutcome, "perhaps"))
		pass(10 * time.Second)
		if len(*got) != 1 || fault.KindOf((*got)[0].err) != fault.UnknownOutcome || len(p.tap.calls) != 3 {
			t.Fatalf("got %v after %d calls", *got, len(p.tap.calls))
		}
	})
}

// A read is not begun where there is no replica to read.
func TestBegunReadNeedsAReplica(t *testing.T) {
	r, tap, _ := newRouter(t)
	r.routes.put(desc(5, "a", "b", 2))
	if r.BeginRead(t.Context(), time.Second, base.PointSpan([]byte("a")), nil) || len(tap.calls) != 0 {
		t.Fatal("begun")
	}
}

// Reads that were begun go on together once their barrier is there, after those that wait
// were told.
func TestBegunReadsGoOnTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		waits := &barrierWaiter{ch: make(chan answer[base.Timestamp], 1)}
		var order []int
		begun := func(i int) *barrierWaiter {
			return &barrierWaiter{begun: func(at base.Timestamp, err error) {
				if at != 7 || err != nil {
					t.Errorf("told %d, %v", at, err)
				}
				order = append(order, i)
			}}
		}
		tell([]*barrierWaiter{begun(0), waits, begun(1), begun(2)}, 7, nil)
		if a := <-waits.ch; a.v != 7 {
			t.Errorf("told %v", a)
		}
		synctest.Wait()
		if len(order) != 3 || order[0] != 0 || order[2] != 2 {
			t.Errorf("went on in order %v", order)
		}
	})
}

// A begun publish joins the others, holds its place in the gate, and is told of its own.
func TestBegunPublish(t *testing.T) {
	bubble(t, func(t *testing.T, p *publishing) {
		p.into(2)
		begin := func(topic, id string) (o *outcome, ok bool) {
			o = &outcome{}
			events := []timeline.NewEvent{{MessageID: id}}
			ok = p.r.BeginPublish(t.Context(), 5*time.Second, topic, events, func(results []Published, err error) {
				*o = outcome{results, err, true}
			})
			synctest.Wait()
			return o, ok
		}
		if _, ok := begin("unknown", "a"); ok {
			t.Fatal("begun for a topic that is not known")
		}
		one, ok := begin("t", "a")
		if !ok {
			t.Fatal("not begun")
		}
		first := p.sent(0)
		two, _ := begin("t", "known1")
		if _, ok := begin("t", "c"); ok {
			t.Fatal("begun although the range has no room")
		}
		p.answer(0, first)
		p.published(one, 0, first, "a")
		second := p.sent(1)
		p.answer(1, second)
		p.published(two, 1, second, "known1")
		three, ok := begin("t", "d")
		if !ok {
			t.Fatal("the places in the gate were not given back")
		}
		p.fail(2, fault.New(fault.UnknownOutcome, "perhaps"))
		p.failed(three, fault.UnknownOutcome)
	})
}

// Who waits for a transaction hears of it once it is answered, or hears at once that the
// outcome is unknown once it goes away.
func TestTxnWaitsForWhatWasBegun(t *testing.T) {
	bubble(t, func(t *testing.T, p *publishing) {
		key := keys.Partition(base.PartitionID{Topic: 1})
		put := func(ctx context.Context) *answer[base.Timestamp] {
			a := &answer[base.Timestamp]{}
			go func() {
				_, a.v, a.err = p.r.Txn(ctx, &mvcc.Txn{Then: []mvcc.Op{{Kind: mvcc.OpPut, Span: base.PointSpan(key)}}})
			}()
			synctest.Wait()
			return a
		}
		done := put(t.Context())
		p.commit(0, 77)
		synctest.Wait()
		if *done != (answer[base.Timestamp]{v: 77}) {
			t.Errorf("got %v", *done)
		}
		ctx, cancel := context.WithCancel(t.Context())
		left := put(ctx)
		cancel()
		synctest.Wait()
		if fault.KindOf(left.err) != fault.UnknownOutcome || !errors.Is(left.err, context.Canceled) {
			t.Errorf("got %v", *left)
		}
		p.commit(1, 78) // late
		synctest.Wait()
		if left.v != 0 {
			t.Errorf("got %v", *left)
		}
	})
}
