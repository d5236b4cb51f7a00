package etcd

import (
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func (r *rig) txn(cmps []clientv3.Cmp, then, els []clientv3.Op) *clientv3.TxnResponse {
	r.Helper()
	resp, err := r.cli.Txn(r.ctx()).If(cmps...).Then(then...).Else(els...).Commit()
	if err != nil {
		r.Fatal(err)
	}
	return resp
}

func TestTxnCommits(t *testing.T) {
	r := newRig(t)
	r.put("a", "1")
	resp := r.txn(
		[]clientv3.Cmp{clientv3.Compare(clientv3.Value("a"), "=", "1"), clientv3.Compare(clientv3.CreateRevision("b"), "=", 0)},
		[]clientv3.Op{
			clientv3.OpPut("b", "2", clientv3.WithPrevKV()),
			clientv3.OpGet("b"),
			clientv3.OpDelete("a", clientv3.WithPrevKV()),
			clientv3.OpTxn([]clientv3.Cmp{clientv3.Compare(clientv3.Version("b"), ">", 0)},
				[]clientv3.Op{clientv3.OpPut("c", "then")}, []clientv3.Op{clientv3.OpPut("c", "else"), clientv3.OpGet("a")}),
		}, nil)
	stamp := int64(r.keys.applied)
	if !resp.Succeeded || len(resp.Responses) != 4 || resp.Header.Revision != stamp {
		t.Fatalf("%v, stamp %d", resp, stamp)
	}
	get := resp.Responses[1].GetResponseRange()
	if show(get.Kvs) != "b=2" || get.Kvs[0].ModRevision != stamp || get.Header.Revision != stamp {
		t.Errorf("a read does not see what the transaction wrote: %v", get)
	}
	if show(resp.Responses[2].GetResponseDeleteRange().PrevKvs) != "a=1" {
		t.Errorf("delete: %v", resp.Responses[2])
	}
	// Nested compares see the state before the transaction, so b does not exist yet.
	nested := resp.Responses[3].GetResponseTxn()
	if nested.Succeeded || len(nested.Responses) != 2 || nested.Header.Revision != stamp {
		t.Errorf("nested: %v", nested)
	}
	r.wantKVs(r.get("", clientv3.WithPrefix()), "b=2 c=else", 2, false)
}

func TestTxnElse(t *testing.T) {
	r := newRig(t)
	r.put("a", "1")
	resp := r.txn([]clientv3.Cmp{clientv3.Compare(clientv3.Value("a"), "=", "2")},
		[]clientv3.Op{clientv3.OpPut("a", "3")}, []clientv3.Op{clientv3.OpGet("a")})
	if resp.Succeeded || show(resp.Responses[0].GetResponseRange().Kvs) != "a=1" || r.keys.commits != 2 {
		t.Errorf("%v, %d commits", resp, r.keys.commits)
	}
}

func TestReadOnlyTxnStaysOutOfTheLog(t *testing.T) {
	r := newRig(t)
	rev := r.put("a", "1")
	r.put("a", "2")
	r.put("b", "1")
	commits := r.keys.commits
	resp := r.txn(
		[]clientv3.Cmp{clientv3.Compare(clientv3.Version("a"), "=", 2)},
		[]clientv3.Op{
			clientv3.OpGet("a"),
			clientv3.OpTxn([]clientv3.Cmp{clientv3.Compare(clientv3.Value("b"), ">", "1")},
				[]clientv3.Op{clientv3.OpGet("none")},
				[]clientv3.Op{clientv3.OpGet("b"), clientv3.OpGet("a", clientv3.WithRev(rev))}),
			clientv3.OpGet("", clientv3.WithPrefix(), clientv3.WithCountOnly()),
		},
		[]clientv3.Op{clientv3.OpGet("a", clientv3.WithRev(1))}) // compacted, but not taken
	if r.keys.commits != commits || r.keys.ranges != 2 {
		t.Errorf("%d commits, %d ranges", r.keys.commits-commits, r.keys.ranges)
	}
	if !resp.Succeeded || len(resp.Responses) != 3 || resp.Header.Revision != int64(r.keys.clock) {
		t.Fatalf("%v, timestamp %d", resp, r.keys.clock)
	}
	nested := resp.Responses[1].GetResponseTxn()
	if nested.Succeeded || len(nested.Responses) != 2 || show(nested.Responses[0].GetResponseRange().Kvs) != "b=1" ||
		show(nested.Responses[1].GetResponseRange().Kvs) != "a=1" {
		t.Errorf("nested: %v", nested)
	}
	if show(resp.Responses[0].GetResponseRange().Kvs) != "a=2" || resp.Responses[2].GetResponseRange().Count != 2 {
		t.Errorf("reads: %v", resp)
	}
}

func TestReadOnlyTxnRounds(t *testing.T) {
	r := newRig(t)
	r.put("a", "1")
	for _, tc := range []struct {
		name   string
		cmps   []clientv3.Cmp
		then   []clientv3.Op
		rounds int
		local  bool
	}{
		{"empty", nil, nil, 1, false},
		{"compares only", []clientv3.Cmp{clientv3.Compare(clientv3.Version("a"), "=", 1)}, nil, 1, false},
		{"reads only", nil, []clientv3.Op{clientv3.OpGet("a")}, 1, false},
		{"both", []clientv3.Cmp{clientv3.Compare(clientv3.Version("a"), "=", 1)}, []clientv3.Op{clientv3.OpGet("a")}, 2, false},
		{"serializable", nil, []clientv3.Op{clientv3.OpGet("a", clientv3.WithSerializable())}, 1, true},
		{"mixed", nil, []clientv3.Op{clientv3.OpGet("a", clientv3.WithSerializable()), clientv3.OpGet("b")}, 1, false},
	} {
		r.keys.ranges = 0
		resp := r.txn(tc.cmps, tc.then, nil)
		if r.keys.ranges != tc.rounds || r.keys.local != tc.local || !resp.Succeeded || resp.Header.Revision == 0 {
			t.Errorf("%s: %d rounds, local %v, %v", tc.name, r.keys.ranges, r.keys.local, resp)
		}
	}
}

// Every compare must come out alike whether the transaction reads only or goes through
// the state machine.
func TestComparesOfReadsAndWritesAgree(t *testing.T) {
	r := newRig(t)
	r.put("a", "5")
	mod := r.put("a", "5")
	r.put("b", "6")
	r.put("z", "")
	numbers := map[pb.Compare_CompareTarget][]int64{
		pb.Compare_VERSION: {0, 1, 2, 3}, pb.Compare_CREATE: {0, mod - step, mod - step + 1},
		pb.Compare_MOD: {0, mod - 1, mod, mod + 1}, pb.Compare_LEASE: {-1, 0, 1},
	}
	var compares []*pb.Compare
	for relation := range pb.Compare_CompareResult_name {
		for _, sp := range [][2]string{{"a", ""}, {"none", ""}, {"z", ""}, {"a", "c"}, {"c", "d"}, {"b", "a"}, {"a", "\x00"}} {
			add := func(c *pb.Compare) {
				c.Key, c.RangeEnd, c.Result = []byte(sp[0]), []byte(sp[1]), pb.Compare_CompareResult(relation)
				compares = append(compares, c)
			}
			for target, ns := range numbers {
				for _, n := range ns {
					c := &pb.Compare{Target: target}
					switch target {
					case pb.Compare_VERSION:
						c.TargetUnion = &pb.Compare_Version{Version: n}
					case pb.Compare_CREATE:
						c.TargetUnion = &pb.Compare_CreateRevision{CreateRevision: n}
					case pb.Compare_MOD:
						c.TargetUnion = &pb.Compare_ModRevision{ModRevision: n}
					case pb.Compare_LEASE:
						c.TargetUnion = &pb.Compare_Lease{Lease: n}
					}
					add(c)
				}
				add(&pb.Compare{Target: target})                                                           // no operand: zero
				add(&pb.Compare{Target: target, TargetUnion: &pb.Compare_Value{Value: []byte("foreign")}}) // another's: zero
			}
			for _, v := range []string{"", "5", "6"} {
				add(&pb.Compare{Target: pb.Compare_VALUE, TargetUnion: &pb.Compare_Value{Value: []byte(v)}})
			}
		}
	}
	kv := &kvServer{Server: New(r.keys, r.node, Options{})}
	held := 0
	for _, c := range compares {
		read, err := kv.Txn(r.ctx(), &pb.TxnRequest{Compare: []*pb.Compare{c}})
		if err != nil {
			t.Fatal(err)
		}
		write, err := kv.Txn(r.ctx(), &pb.TxnRequest{Compare: []*pb.Compare{c}, Success: []*pb.RequestOp{
			{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("\x01other")}}}}})
		if err != nil {
			t.Fatal(err)
		}
		if read.Succeeded != write.Succeeded {
			t.Errorf("%v: %v as a read, %v as a write", c, read.Succeeded, write.Succeeded)
		}
		if read.Succeeded {
			held++
		}
	}
	if held == 0 || held == len(compares) {
		t.Errorf("%d of %d compares held", held, len(compares))
	}
}
