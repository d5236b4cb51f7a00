package etcd

import (
	"fmt"
	"strings"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/almanacdb/almanac/internal/mvcc"
)

// show writes key=value of an answer, in its order.
func show(kvs []*mvccpb.KeyValue) string {
	var b strings.Builder
	for i, kv := range kvs {
		if i > 0 {
			b.WriteByte(' ')
		}
		fmt.Fprintf(&b, "%s=%s", kv.Key, kv.Value)
	}
	return b.String()
}

func (r *rig) wantKVs(resp *clientv3.GetResponse, want string, count int64, more bool) {
	r.Helper()
	if got := show(resp.Kvs); got != want || resp.Count != count || resp.More != more {
		r.Errorf("got %q, count %d, more %v; want %q, %d, %v", got, resp.Count, resp.More, want, count, more)
	}
}

func TestHeaderRevisionIsTheTimestamp(t *testing.T) { // K9
	r := newRig(t)
	resp, err := r.cli.Put(r.ctx(), "k", "v")
	if err != nil {
		t.Fatal(err)
	}
	h := resp.Header
	if h.Revision != int64(r.keys.applied) || h.MemberId != 3 || h.RaftTerm != 12 || h.ClusterId != 0x0102030405060708 {
		t.Errorf("put's header is %v, commit timestamp %d", h, r.keys.applied)
	}
	if kv := r.get("k").Kvs[0]; kv.ModRevision != h.Revision || kv.CreateRevision != h.Revision || kv.Version != 1 {
		t.Errorf("key has %v, put answered %d", kv, h.Revision)
	}
	if got := r.get("k").Header.Revision; got != int64(r.keys.clock) || got <= h.Revision {
		t.Errorf("a linearizable read answered %d, its timestamp is %d", got, r.keys.clock)
	}
	if got := r.get("k", clientv3.WithSerializable()).Header.Revision; got != h.Revision || !r.keys.local {
		t.Errorf("a serializable read answered %d, the replica applied %d", got, h.Revision)
	}
	del, err := r.cli.Delete(r.ctx(), "nothing")
	if err != nil || del.Deleted != 0 || del.Header.Revision != int64(r.keys.clock) {
		t.Errorf("delete of nothing: %v %v", del, err)
	}
}

func TestRangeSpans(t *testing.T) {
	r := newRig(t)
	for _, k := range []string{"\x00", "a", "a\x00", "aa", "ab", "b", "b\xff", "b\xff\xff", "\xff", "\xff\xff"} {
		r.put(k, strings.ToUpper("v"))
	}
	for _, tc := range []struct {
		key  string
		opts []clientv3.OpOption
		want int
	}{
		{"a", nil, 1},
		{"none", nil, 0},
		{"a", []clientv3.OpOption{clientv3.WithPrefix()}, 4},
		{"b\xff", []clientv3.OpOption{clientv3.WithPrefix()}, 2},
		{"\xff", []clientv3.OpOption{clientv3.WithPrefix()}, 2},
		{"", []clientv3.OpOption{clientv3.WithPrefix()}, 10},
		{"", []clientv3.OpOption{clientv3.WithFromKey()}, 10},
		{"\x00", []clientv3.OpOption{clientv3.WithFromKey()}, 10},
		{"b", []clientv3.OpOption{clientv3.WithFromKey()}, 5},
		{"a", []clientv3.OpOption{clientv3.WithRange("aa")}, 2},
		{"a", []clientv3.OpOption{clientv3.WithRange("b")}, 4},
		{"a", []clientv3.OpOption{clientv3.WithRange("a\x00")}, 1},
		{"a", []clientv3.OpOption{clientv3.WithRange("a")}, 0},
		{"b", []clientv3.OpOption{clientv3.WithRange("a")}, 0}, // upside down
	} {
		resp := r.get(tc.key, tc.opts...)
		if len(resp.Kvs) != tc.want || resp.Count != int64(tc.want) {
			t.Errorf("%q: %d keys, count %d, want %d", tc.key, len(resp.Kvs), resp.Count, tc.want)
		}
	}
}

func TestRangeOptions(t *testing.T) {
	r := newRig(t)
	first := r.put("k1", "z")
	r.put("k2", "y")
	third := r.put("k3", "x")
	r.put("k1", "m") // k1: created first, modified last, version 2
	p := clientv3.WithPrefix()

	r.wantKVs(r.get("k", p), "k1=m k2=y k3=x", 3, false)
	r.wantKVs(r.get("k", p, clientv3.WithLimit(2)), "k1=m k2=y", 3, true)
	r.wantKVs(r.get("k", p, clientv3.WithLimit(3)), "k1=m k2=y k3=x", 3, false)
	r.wantKVs(r.get("k", p, clientv3.WithLimit(-1)), "k1=m k2=y k3=x", 3, false)
	r.wantKVs(r.get("k", p, clientv3.WithCountOnly()), "", 3, false)
	r.wantKVs(r.get("k", p, clientv3.WithKeysOnly()), "k1= k2= k3=", 3, false)
	r.wantKVs(r.get("k", p, clientv3.WithRev(third)), "k1=z k2=y k3=x", 3, false)
	r.wantKVs(r.get("k", p, clientv3.WithRev(third-1)), "k1=z k2=y", 2, false)
	r.wantKVs(r.get("k", p, clientv3.WithRev(third), clientv3.WithSerializable()), "k1=z k2=y k3=x", 3, false)
	r.wantKVs(r.get("k", p, clientv3.WithRev(-5)), "k1=m k2=y k3=x", 3, false)
	r.wantKVs(r.get("k", p, clientv3.WithMinModRev(third)), "k1=m k3=x", 3, false)
	r.wantKVs(r.get("k", p, clientv3.WithMaxModRev(third)), "k2=y k3=x", 3, false)
	r.wantKVs(r.get("k", p, clientv3.WithMinCreateRev(first+1)), "k2=y k3=x", 3, false)
	r.wantKVs(r.get("k", p, clientv3.WithMaxCreateRev(first)), "k1=m", 3, false)
	r.wantKVs(r.get("k", p, clientv3.WithMaxCreateRev(-1)), "", 3, false)
	r.wantKVs(r.get("k", p, clientv3.WithMinModRev(-1)), "k1=m k2=y k3=x", 3, false)
	r.wantKVs(r.get("k", p, clientv3.WithMinModRev(third), clientv3.WithLimit(1)), "k1=m", 3, true)
}

func TestRangeSorts(t *testing.T) {
	r := newRig(t)
	r.put("k1", "z")
	r.put("k2", "y")
	r.put("k3", "x")
	r.put("k1", "m")
	p := clientv3.WithPrefix()
	for _, tc := range []struct {
		target clientv3.SortTarget
		order  clientv3.SortOrder
		want   string
	}{
		{clientv3.SortByKey, clientv3.SortNone, "k1=m k2=y k3=x"},
		{clientv3.SortByKey, clientv3.SortAscend, "k1=m k2=y k3=x"},
		{clientv3.SortByKey, clientv3.SortDescend, "k3=x k2=y k1=m"},
		{clientv3.SortByValue, clientv3.SortAscend, "k1=m k3=x k2=y"},
		{clientv3.SortByValue, clientv3.SortDescend, "k2=y k3=x k1=m"},
		{clientv3.SortByModRevision, clientv3.SortAscend, "k2=y k3=x k1=m"},
		{clientv3.SortByModRevision, clientv3.SortNone, "k2=y k3=x k1=m"}, // a target alone ascends
		{clientv3.SortByModRevision, clientv3.SortDescend, "k1=m k3=x k2=y"},
		{clientv3.SortByCreateRevision, clientv3.SortDescend, "k3=x k2=y k1=m"},
		{clientv3.SortByVersion, clientv3.SortDescend, "k1=m k2=y k3=x"},
	} {
		r.wantKVs(r.get("k", p, clientv3.WithSort(tc.target, tc.order)), tc.want, 3, false)
	}
	r.wantKVs(r.get("k", p, clientv3.WithSort(clientv3.SortByValue, clientv3.SortDescend), clientv3.WithKeysOnly(),
		clientv3.WithLimit(2)), "k2= k3=", 3, true)
	r.wantKVs(r.get("k", clientv3.WithLastKey()...), "k3=x", 3, true)
}

func TestPutOptions(t *testing.T) {
	r := newRig(t)
	resp, err := r.cli.Put(r.ctx(), "k", "1", clientv3.WithPrevKV())
	if err != nil || resp.PrevKv != nil {
		t.Fatalf("first put: %v %v", resp, err)
	}
	resp, err = r.cli.Put(r.ctx(), "k", "2", clientv3.WithPrevKV())
	if err != nil || show([]*mvccpb.KeyValue{resp.PrevKv}) != "k=1" || resp.PrevKv.Version != 1 {
		t.Fatalf("second put: %v %v", resp, err)
	}
	if _, err = r.cli.Put(r.ctx(), "k", "", clientv3.WithIgnoreValue()); err != nil {
		t.Fatal(err)
	}
	if _, err = r.cli.Put(r.ctx(), "k", "3", clientv3.WithIgnoreLease()); err != nil {
		t.Fatal(err)
	}
	if kv := r.get("k").Kvs[0]; string(kv.Value) != "3" || kv.Version != 4 {
		t.Errorf("after four puts: %v", kv)
	}
	r.put("empty", "")
	r.wantKVs(r.get("empty"), "empty=", 1, false)
}

func TestDelete(t *testing.T) {
	r := newRig(t)
	for _, k := range []string{"a", "b1", "b2", "c", "d"} {
		r.put(k, k)
	}
	del := func(key string, opts ...clientv3.OpOption) *clientv3.DeleteResponse {
		t.Helper()
		resp, err := r.cli.Delete(r.ctx(), key, opts...)
		if err != nil {
			t.Fatal(err)
		}
		return resp
	}
	if d := del("b", clientv3.WithPrefix(), clientv3.WithPrevKV()); d.Deleted != 2 || show(d.PrevKvs) != "b1=b1 b2=b2" {
		t.Errorf("prefix: %v", d)
	}
	if d := del("a", clientv3.WithPrevKV()); d.Deleted != 1 || show(d.PrevKvs) != "a=a" {
		t.Errorf("one: %v", d)
	}
	if d := del("d", clientv3.WithRange("a")); d.Deleted != 0 {
		t.Errorf("upside down: %v", d)
	}
	if d := del("", clientv3.WithFromKey()); d.Deleted != 2 || len(d.PrevKvs) != 0 {
		t.Errorf("all: %v", d)
	}
	r.wantKVs(r.get("", clientv3.WithPrefix()), "", 0, false)
}

func TestCompact(t *testing.T) {
	r := newRig(t)
	old := r.put("k", "1")
	now := r.put("k", "2")
	resp, err := r.cli.Compact(r.ctx(), now)
	if err != nil || resp.Header.Revision < now {
		t.Fatalf("%v %v", resp, err)
	}
	r.wantKVs(r.get("k", clientv3.WithRev(now)), "k=2", 1, false)
	if r.keys.horizon != 0 && int64(r.keys.horizon) != now {
		t.Errorf("horizon %d, want %d", r.keys.horizon, now)
	}
	if _, err := r.cli.Get(r.ctx(), "k", clientv3.WithRev(old)); err == nil {
		t.Error("read below the horizon")
	}
}

// The messages must take over the results' slices, and the number of allocations must
// not depend on the number of keys.
func TestConversionAllocates(t *testing.T) {
	r := newRig(t)
	for i := range 100 {
		r.put(fmt.Sprintf("k%03d", i), "value")
	}
	s := New(r.keys, r.node, Options{})
	read := mvcc.Op{Kind: mvcc.OpRange, Span: s.span([]byte("k"), []byte("l"))}
	results, at, err := r.keys.Range(r.ctx(), []mvcc.Op{read}, 0, false)
	if err != nil {
		t.Fatal(err)
	}
	resp := s.rangeResponse(&results[0], s.header(at))
	if len(resp.Kvs) != 100 || &resp.Kvs[7].Value[0] != &results[0].KVs[7].Value[0] {
		t.Error("a value was copied")
	}
	if n := testing.AllocsPerRun(100, func() { s.rangeResponse(&results[0], s.header(at)) }); n > 4 {
		t.Errorf("an answer of 100 keys took %v allocations", n)
	}
	put := &pb.PutRequest{Key: []byte("some/key"), Value: []byte("v")}
	if n := testing.AllocsPerRun(100, func() { newOneOp(s.putOp(put)) }); n > 2 {
		t.Errorf("a put's transaction took %v allocations", n)
	}
}
