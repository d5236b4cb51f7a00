package placement

import (
	"reflect"
	"testing"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/fuzztest"
)

// roundTrip decodes bytes as a record of type T, and what it encodes to.
func roundTrip[T any](t *testing.T, b []byte) {
	t.Helper()
	var x T
	var err error
	fuzztest.Bounded(t, len(b), func() { x, err = Decode[T](b) })
	if err != nil {
		if fault.KindOf(err) != fault.Corrupt {
			t.Errorf("%T: got %v", x, err)
		}
		return
	}
	again, err := Decode[T](Encode(x))
	if err != nil || !reflect.DeepEqual(again, x) && string(Encode(again)) != string(Encode(x)) {
		t.Errorf("%q is %+v, then %+v, %v", b, x, again, err)
	}
}

// Records stand in the catalogue; requests and answers come from other nodes.
func FuzzDecode(f *testing.F) {
	node := base.NodeDescriptor{Node: 1, Address: "a:1", Peer: "a:2", HTTP: "a:3", Version: "v"}
	for _, x := range []any{
		Topic{Name: "t"}, Group{Name: "g"}, node, base.RangeDescriptor{Range: 7, Replicas: []base.ReplicaDescriptor{{Node: 1, Replica: 2}}},
		Bootstrap{Cluster: base.ClusterID{1}, Nodes: []base.NodeDescriptor{node}},
		Request{CreateTopic: &CreateTopic{Name: "t", Partitions: 4}}, Request{Register: &node},
		Reply{Nodes: []base.NodeDescriptor{node}},
	} {
		f.Add(Encode(x))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		roundTrip[Topic](t, b)
		roundTrip[Group](t, b)
		roundTrip[base.NodeDescriptor](t, b)
		roundTrip[base.RangeDescriptor](t, b)
		roundTrip[Reply](t, b)
		if req, err := decodeRequest(b); err != nil && fault.KindOf(err) != fault.Invalid || err == nil && req == nil {
			t.Errorf("request %+v, %v", req, err)
		}
		if boot, err := Decode[Bootstrap](b); err == nil && boot.Check() == nil {
			_ = boot.Ranges()
		}
	})
}
