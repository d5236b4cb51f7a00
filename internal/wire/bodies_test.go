package wire

import (
	"reflect"
	"testing"

	"github.com/almanacdb/almanac/internal/base"
	"pgregory.net/rapid"
)

// bodyGens makes every kind of body. A new Body belongs here.
func bodyGens() map[string]*rapid.Generator[Body] {
	return map[string]*rapid.Generator[Body]{
		"Barrier":          bodies[Barrier](),
		"BarrierReply":     bodies[BarrierReply](),
		"Stamps":           bodies[Stamps](),
		"StampsReply":      bodies[StampsReply](),
		"ClockSampleReply": bodies[ClockSampleReply](),
		"ReplicaCreate":    bodies[ReplicaCreate](),
		"ReplicaRemove":    bodies[ReplicaRemove](),
		"SnapshotFile":     bodies[SnapshotFile](),
		"Rebuild":          bodies[Rebuild](),
		"RebuildReply":     bodies[RebuildReply](),
		"SessionOpen":      bodies[SessionOpen](),
		"SessionClose":     bodies[SessionClose](),
		"SessionEvents":    bodies[SessionEvents](),
		"ReadRequest":      bodies[ReadRequest](),
		"ReadReply":        bodies[ReadReply](),
		"Heartbeat":        bodies[Heartbeat](),
		"HeartbeatReply":   bodies[HeartbeatReply](),
		"SessionEnd": rapid.Custom(func(t *rapid.T) Body {
			return &SessionEnd{Fault: faultGen.Draw(t, "fault")}
		}),
	}
}

func bodies[T any, P interface {
	*T
	Body
}]() *rapid.Generator[Body] {
	return rapid.Custom(func(t *rapid.T) Body {
		v := rapid.Make[T]().Draw(t, "body")
		return P(&v)
	})
}

func fresh(b Body) Body { return reflect.New(reflect.TypeOf(b).Elem()).Interface().(Body) }

func TestBodiesRoundTrip(t *testing.T) {
	for name, gen := range bodyGens() {
		t.Run(name, rapid.MakeCheck(func(t *rapid.T) {
			want := gen.Draw(t, "body")
			b := want.Append([]byte("prefix"))
			got := fresh(want)
			if err := got.Decode(b[len("prefix"):]); err != nil {
				t.Fatal(err)
			}
			normal(reflect.ValueOf(want))
			if !reflect.DeepEqual(got, want) {
				t.Fatalf("got %+v, want %+v", got, want)
			}
		}))
	}
}

func TestDamagedBodies(t *testing.T) {
	for name, gen := range bodyGens() {
		t.Run(name, rapid.MakeCheck(func(t *rapid.T) {
			body := gen.Draw(t, "body")
			whole := body.Append(nil)
			if err := fresh(body).Decode(append(whole[:len(whole):len(whole)], 0)); err == nil {
				t.Fatal("bytes after the end were accepted")
			}
			cut := rapid.IntRange(0, len(whole)-1).Draw(t, "cut")
			if err := fresh(body).Decode(whole[:cut]); err == nil {
				t.Fatalf("%d of %d bytes were accepted", cut, len(whole))
			}
			wantCorrupt(t, fresh(body).Decode(mutate(t, mutate(t, whole))))
			wantCorrupt(t, fresh(body).Decode(rapid.SliceOf(rapid.Byte()).Draw(t, "garbage")))
		}))
	}
}

func TestNodeDescriptorRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.Make[base.NodeDescriptor]().Draw(t, "node")
		gotNode, err := DecodeNodeDescriptor(AppendNodeDescriptor(nil, &n))
		if err != nil || gotNode != n {
			t.Fatalf("got %+v, %v, want %+v", gotNode, err, n)
		}
	})
}
