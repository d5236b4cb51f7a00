package timeline

import (
	"fmt"
	"testing"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/engine"
)

// The engine is fresh every 100 batches, so that its size stays out of the numbers.
func BenchmarkPublish100(b *testing.B) {
	for _, withID := range []bool{false, true} {
		b.Run(fmt.Sprintf("id=%v", withID), func(b *testing.B) {
			events := make([]NewEvent, 100)
			for i := range events {
				events[i] = NewEvent{Payload: make([]byte, 256), OrderingKey: []byte("customer-1234"), DelayMS: int64(i)}
				if withID {
					events[i].MessageID = fmt.Sprintf("message-%d", i)
				}
			}
			p := &Publish{Batches: []Batch{{Partition: testPartition, Events: events}}}
			var e engine.Engine
			b.ReportAllocs()
			for n := 0; b.Loop(); n++ {
				if n%100 == 0 {
					e = engine.NewMem(engine.MemOptions{})
				}
				v, clock := e.NewBatch(true), at(int64(1000*(n+1)))
				if _, err := ApplyPublish(v, clock, clock, p); err != nil {
					b.Fatal(err)
				}
				if err := v.Commit(false); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkAck100InOrder(b *testing.B) {
	e := engine.NewMem(engine.MemOptions{})
	setup := e.NewBatch(true)
	createGroup1(b, setup, 100, StartEarliest)
	var chunks [100][]base.Position
	for i := range chunks {
		chunks[i] = positionsOf(publish(b, setup, 100, make([]NewEvent, 100)...))
	}
	if err := setup.Commit(false); err != nil {
		b.Fatal(err)
	}
	v := e.NewBatch(true)
	b.ReportAllocs()
	for n := 0; b.Loop(); n++ {
		if n%len(chunks) == 0 {
			v.Close()
			v = e.NewBatch(true)
		}
		if got, err := ApplyAck(v, at(100), acks(chunks[n%len(chunks)]...)); err != nil || got[99] != AckDone {
			b.Fatal(got, err)
		}
	}
}

func BenchmarkScanDue100(b *testing.B) {
	v := engine.NewMem(engine.MemOptions{}).NewBatch(true)
	events := make([]NewEvent, 1000)
	for i := range events {
		events[i] = NewEvent{Payload: make([]byte, 256), OrderingKey: []byte("customer-1234")}
	}
	publish(b, v, 100, events...)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ScanDue(v, testPartition, pos(100, 499), 100, 100, 0, func(Event) bool { return true }); err != nil {
			b.Fatal(err)
		}
	}
}
