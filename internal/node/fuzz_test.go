package node

import (
	"reflect"
	"testing"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/placement"
)

// The node record is read from the log store.
func FuzzDecodeIdentity(f *testing.F) {
	boot, err := newBootstrap([]base.NodeDescriptor{{Address: "a:1", Peer: "a:2"}, {Address: "b:1", Peer: "b:2"}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(placement.Encode(&identity{Node: 1, Bootstrap: boot, Founded: true, Known: boot.Nodes}))
	f.Fuzz(func(t *testing.T, record []byte) {
		id, err := decodeIdentity(record)
		if err != nil {
			if fault.KindOf(err) != fault.Corrupt {
				t.Errorf("got %v", err)
			}
			return
		}
		_ = id.Bootstrap.Ranges()
		again, err := decodeIdentity(placement.Encode(id))
		if err != nil || !reflect.DeepEqual(again, id) && string(placement.Encode(again)) != string(placement.Encode(id)) {
			t.Errorf("%s is %+v, then %+v, %v", record, id, again, err)
		}
	})
}

// Formation's requests and answers come from whoever reaches the peer port, or answers
// there.
func FuzzDecodeFormation(f *testing.F) {
	n := base.NodeDescriptor{Node: 3, Address: "a:1", Peer: "a:2"}
	f.Add(placement.Encode(offerRequest{Node: 3, Bootstrap: placement.Bootstrap{Nodes: []base.NodeDescriptor{n}}}))
	f.Add(placement.Encode(n))
	f.Add(placement.Encode(outcome{Fault: fault.New(fault.WrongCluster, "text").WithRemedy("remedy")}))
	f.Add(placement.Encode(outcome{Body: placement.Encode(describeReply{Node: n})}))
	f.Add(placement.Encode(outcome{Body: placement.Encode(registerReply{Node: 3, Known: []base.NodeDescriptor{n}})}))
	f.Fuzz(func(t *testing.T, body []byte) {
		if req, err := decodeRequest[offerRequest](body); err == nil {
			_ = req.Bootstrap.Check()
		} else if fault.KindOf(err) != fault.Invalid {
			t.Errorf("got %v", err)
		}
		_, _ = decodeRequest[base.NodeDescriptor](body)
		for _, f := range []func() error{
			func() error { _, err := decodeOutcome[describeReply]("a:1", body); return err },
			func() error { _, err := decodeOutcome[initReply]("a:1", body); return err },
			func() error { _, err := decodeOutcome[registerReply]("a:1", body); return err },
		} {
			if err := f(); err != nil && err.Error() == "" && fault.KindOf(err) == fault.Corrupt {
				t.Error("an answer that does not parse has no text")
			}
		}
	})
}
