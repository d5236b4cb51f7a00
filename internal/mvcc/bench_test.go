package mvcc

import (
	"fmt"
	"testing"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/engine"
)

func BenchmarkPutApply(b *testing.B) {
	v := engine.NewMem(engine.MemOptions{}).NewBatch(true)
	txns := make([]*Txn, 1000)
	for i := range txns {
		txns[i] = &Txn{Then: []Op{put(fmt.Sprintf("key-%06d", i), "a value of a hundred bytes or so")}}
	}
	b.ReportAllocs()
	at := base.Timestamp(0)
	for b.Loop() {
		at++
		if _, err := Apply(v, txns[int(at)%len(txns)], at, 0, false); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkPointRead(b *testing.B) {
	v := engine.NewMem(engine.MemOptions{}).NewBatch(true)
	spans := make([]base.Span, 10_000)
	for i := range spans {
		k := fmt.Sprintf("key-%06d", i)
		spans[i] = point(k)
		mustApply(b, v, &Txn{Then: []Op{put(k, "a value")}}, base.Timestamp(i+1))
	}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		i++
		if res, err := Range(v, spans[i%len(spans)], RangeOptions{}); err != nil || res.Count != 1 {
			b.Fatal(res, err)
		}
	}
}

func BenchmarkScan1000(b *testing.B) {
	v := engine.NewMem(engine.MemOptions{}).NewBatch(true)
	for i := range 1000 {
		mustApply(b, v, &Txn{Then: []Op{put(fmt.Sprintf("key-%06d", i), "a value")}}, base.Timestamp(i+1))
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Range(v, span("", ""), RangeOptions{}); err != nil {
			b.Fatal(err)
		}
	}
}
