package command

import (
	"fmt"
	"testing"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/timeline"
)

func BenchmarkEncodePut(b *testing.B) {
	txn := putTxn("key-000001", "a value")
	b.ReportAllocs()
	for b.Loop() {
		_ = mustEncode(b, Header{Kind: KindTxn}, txn)
	}
}

func BenchmarkDecodePut(b *testing.B) {
	env := mustEncode(b, Header{Kind: KindTxn}, putTxn("key-000001", "a value"))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Decode(env); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkTouches(b *testing.B) {
	env := mustEncode(b, Header{Kind: KindTxn}, putTxn("key-000001", "a value"))
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := Touches(env); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkApplyPut(b *testing.B) {
	v, st := newView(), newState()
	envs := make([][]byte, 1000)
	for i := range envs {
		envs[i] = mustEncode(b, Header{Kind: KindTxn}, putTxn(fmt.Sprintf("key-%06d", i), "a value"))
	}
	b.ReportAllocs()
	for b.Loop() {
		env := envs[int(st.LastStamp)%len(envs)]
		SetStamp(env, st.LastStamp+1)
		if res, err := Apply(v, st, env, false); err != nil || res.Refusal != nil {
			b.Fatal(res, err)
		}
	}
}

func BenchmarkEncodeState(b *testing.B) {
	st := newState()
	st.Descriptor.Replicas = make([]base.ReplicaDescriptor, 3)
	buf := make([]byte, 0, 256)
	b.ReportAllocs()
	for b.Loop() {
		buf = EncodeState(buf[:0], st)
	}
}

func BenchmarkEncodePublish(b *testing.B) {
	for _, events := range []int{1, 100} {
		batch := timeline.Batch{Partition: base.PartitionID{Topic: 7, Partition: 3}}
		for range events {
			batch.Events = append(batch.Events, timeline.NewEvent{MessageID: "order-4711", Payload: make([]byte, 256)})
		}
		p := &timeline.Publish{Batches: []timeline.Batch{batch}}
		b.Run(fmt.Sprintf("%d events", events), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				_ = mustEncode(b, Header{Kind: KindPublish}, p)
			}
		})
	}
}
