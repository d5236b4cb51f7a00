package etcd

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/keys"
	"github.com/almanacdb/almanac/internal/mvcc"
)

// Short forms of operations; an op is put, del, get or txn.
func put(key string) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte(key)}}}
}

func del(key, end string) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{
		RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte(key), RangeEnd: []byte(end)}}}
}

func get(key string) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte(key)}}}
}

func nest(then, els []*pb.RequestOp) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: &pb.TxnRequest{Success: then, Failure: els}}}
}

func repeat(n int, f func(i int) *pb.RequestOp) []*pb.RequestOp {
	ops := make([]*pb.RequestOp, n)
	for i := range ops {
		ops[i] = f(i)
	}
	return ops
}

type ops = []*pb.RequestOp

func TestRequestChecks(t *testing.T) {
	r := newRig(t)
	kv := pb.NewKVClient(r.conn)
	past := r.put("k", "1")
	r.put("k", "2")
	r.put("full", strings.Repeat("x", 1000))
	if _, err := r.cli.Compact(r.ctx(), int64(r.keys.applied)); err != nil {
		t.Fatal(err)
	}
	key, big := []byte("k"), make([]byte, MaxRequestBytes)
	rng := func(q *pb.RangeRequest) func(context.Context) error {
		return func(ctx context.Context) error { _, err := kv.Range(ctx, q); return err }
	}
	pt := func(q *pb.PutRequest) func(context.Context) error {
		return func(ctx context.Context) error { _, err := kv.Put(ctx, q); return err }
	}
	dl := func(q *pb.DeleteRangeRequest) func(context.Context) error {
		return func(ctx context.Context) error { _, err := kv.DeleteRange(ctx, q); return err }
	}
	txn := func(q *pb.TxnRequest) func(context.Context) error {
		return func(ctx context.Context) error { _, err := kv.Txn(ctx, q); return err }
	}
	then := func(o ...*pb.RequestOp) func(context.Context) error { return txn(&pb.TxnRequest{Success: o}) }
	putReq := func(q *pb.PutRequest) *pb.RequestOp {
		return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: q}}
	}
	rangeReq := func(q *pb.RangeRequest) *pb.RequestOp {
		return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: q}}
	}
	compact := func(rev int64) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := kv.Compact(ctx, &pb.CompactionRequest{Revision: rev})
			return err
		}
	}
	future := int64(r.keys.clock) + 1<<40
	for _, tc := range []struct {
		name string
		do   func(context.Context) error
		want error
	}{
		{"range without key", rng(&pb.RangeRequest{}), rpctypes.ErrEmptyKey},
		{"range end without key", rng(&pb.RangeRequest{RangeEnd: []byte{0}}), rpctypes.ErrEmptyKey},
		{"sort order", rng(&pb.RangeRequest{Key: key, SortOrder: 3}), rpctypes.ErrInvalidSortOption},
		{"sort target", rng(&pb.RangeRequest{Key: key, SortTarget: -1}), rpctypes.ErrInvalidSortOption},
		{"compacted", rng(&pb.RangeRequest{Key: key, Revision: past}), rpctypes.ErrCompacted},
		{"compacted serializable", rng(&pb.RangeRequest{Key: key, Revision: past, Serializable: true}), rpctypes.ErrCompacted},
		{"future", rng(&pb.RangeRequest{Key: key, Revision: future}), rpctypes.ErrFutureRev},

		{"put without key", pt(&pb.PutRequest{Value: key}), rpctypes.ErrEmptyKey},
		{"value provided", pt(&pb.PutRequest{Key: key, Value: key, IgnoreValue: true}), rpctypes.ErrValueProvided},
		{"lease provided", pt(&pb.PutRequest{Key: key, Lease: 5, IgnoreLease: true}), rpctypes.ErrLeaseProvided},
		{"no such lease", pt(&pb.PutRequest{Key: key, Lease: 5}), rpctypes.ErrLeaseNotFound},
		{"ignored value of no key", pt(&pb.PutRequest{Key: []byte("none"), IgnoreValue: true}), rpctypes.ErrKeyNotFound},
		{"ignored lease of no key", pt(&pb.PutRequest{Key: []byte("none"), IgnoreLease: true}), rpctypes.ErrKeyNotFound},
		{"too large", pt(&pb.PutRequest{Key: key, Value: big}), rpctypes.ErrRequestTooLarge},
		{"just fits", pt(&pb.PutRequest{Key: key, Value: big[:len(big)-16]}), nil},

		{"delete without key", dl(&pb.DeleteRangeRequest{}), rpctypes.ErrEmptyKey},
		{"delete too large", dl(&pb.DeleteRangeRequest{Key: big}), rpctypes.ErrRequestTooLarge},

		{"compact future", compact(future), rpctypes.ErrFutureRev},
		{"compact again", compact(past), rpctypes.ErrCompacted},
		{"compact zero", compact(0), rpctypes.ErrCompacted},
		{"compact negative", compact(-1), rpctypes.ErrCompacted},

		{"compare without key", txn(&pb.TxnRequest{Compare: []*pb.Compare{{}}}), rpctypes.ErrEmptyKey},
		{"txn put without key", then(put("")), rpctypes.ErrEmptyKey},
		{"txn range without key", then(get("")), rpctypes.ErrEmptyKey},
		{"txn delete without key", then(del("", "z")), rpctypes.ErrEmptyKey},
		{"txn else is checked", txn(&pb.TxnRequest{Failure: ops{put("")}}), rpctypes.ErrEmptyKey},
		{"txn value provided", then(putReq(&pb.PutRequest{Key: key, Value: key, IgnoreValue: true})), rpctypes.ErrValueProvided},
		{"txn lease provided", then(putReq(&pb.PutRequest{Key: key, Lease: 1, IgnoreLease: true})), rpctypes.ErrLeaseProvided},
		{"txn no such lease", then(putReq(&pb.PutRequest{Key: key, Lease: 1})), rpctypes.ErrLeaseNotFound},
		{"txn sort", then(rangeReq(&pb.RangeRequest{Key: key, SortTarget: 9})), rpctypes.ErrInvalidSortOption},
		{"empty operation", then(&pb.RequestOp{}), rpctypes.ErrKeyNotFound},
		{"empty put", then(putReq(nil)), rpctypes.ErrEmptyKey},
		{"nested put without key", then(nest(nil, ops{put("")})), rpctypes.ErrEmptyKey},
		{"ignored value of no key in txn", then(putReq(&pb.PutRequest{Key: []byte("none"), IgnoreValue: true})), rpctypes.ErrKeyNotFound},
		{"write txn reads the compacted", then(put("x"), rangeReq(&pb.RangeRequest{Key: key, Revision: past})), rpctypes.ErrCompacted},
		{"write txn reads before all", then(put("x"), rangeReq(&pb.RangeRequest{Key: key, Revision: -1})), rpctypes.ErrCompacted},
		{"write txn reads the future", then(put("x"), rangeReq(&pb.RangeRequest{Key: key, Revision: future})), rpctypes.ErrFutureRev},
		{"read txn reads the compacted", then(rangeReq(&pb.RangeRequest{Key: key, Revision: past})), rpctypes.ErrCompacted},
		{"read txn reads the future", then(rangeReq(&pb.RangeRequest{Key: key, Revision: future})), rpctypes.ErrFutureRev},
		{"compared read txn reads the future", txn(&pb.TxnRequest{
			Compare: []*pb.Compare{{Key: key, Target: pb.Compare_VERSION, Result: pb.Compare_GREATER}},
			Success: ops{rangeReq(&pb.RangeRequest{Key: key, Revision: future})}}), rpctypes.ErrFutureRev},
		{"txn too large", then(putReq(&pb.PutRequest{Key: key, Value: big})), rpctypes.ErrRequestTooLarge},

		{"128 operations", then(repeat(128, func(i int) *pb.RequestOp { return put(fmt.Sprint(i)) })...), nil},
		{"129 operations", then(repeat(129, func(i int) *pb.RequestOp { return put(fmt.Sprint(i)) })...), rpctypes.ErrTooManyOps},
		{"129 in else", txn(&pb.TxnRequest{Failure: repeat(129, func(int) *pb.RequestOp { return get("k") })}), rpctypes.ErrTooManyOps},
		{"nested 1 + 127", then(nest(repeat(127, func(i int) *pb.RequestOp { return put(fmt.Sprint(i)) }), nil)), nil},
		{"nested 1 + 128", then(nest(repeat(128, func(i int) *pb.RequestOp { return put(fmt.Sprint(i)) }), nil)), rpctypes.ErrTooManyOps},
		{"nested 128 + 1", then(repeat(128, func(i int) *pb.RequestOp { return nest(ops{put(fmt.Sprint(i))}, nil) })...), rpctypes.ErrTooManyOps},

		{"two puts", then(put("a"), put("a")), rpctypes.ErrDuplicateKey},
		{"put and delete", then(put("a"), del("a", "")), rpctypes.ErrDuplicateKey},
		{"delete and put", then(del("a", ""), put("a")), rpctypes.ErrDuplicateKey},
		{"put in a deleted span", then(put("b"), del("a", "c")), rpctypes.ErrDuplicateKey},
		{"put at the end of a deleted span", then(put("c"), del("a", "c")), nil},
		{"put in all", then(put("c"), del("a", "\x00")), rpctypes.ErrDuplicateKey},
		{"two deletes", then(del("a", "c"), del("b", "d"), del("b", "")), nil},
		{"branches exclude each other", txn(&pb.TxnRequest{Success: ops{put("a")}, Failure: ops{put("a")}}), nil},
		{"duplicate in else", txn(&pb.TxnRequest{Failure: ops{put("a"), put("a")}}), rpctypes.ErrDuplicateKey},
		{"nested branches exclude each other", then(nest(ops{put("a")}, ops{put("a")})), nil},
		{"nested put and put", then(put("a"), nest(ops{put("a")}, nil)), rpctypes.ErrDuplicateKey},
		{"nested else put and put", then(put("a"), nest(nil, ops{put("a")})), rpctypes.ErrDuplicateKey},
		{"nested delete and put", then(nest(nil, ops{del("a", "c")}), put("b")), rpctypes.ErrDuplicateKey},
		{"delete and nested put", then(del("a", "c"), nest(ops{put("b")}, nil)), rpctypes.ErrDuplicateKey},
		{"siblings", then(nest(ops{put("a")}, nil), nest(nil, ops{put("a")})), rpctypes.ErrDuplicateKey},
	} {
		if err := tc.do(r.ctx()); !errors.Is(rpctypes.Error(err), tc.want) {
			t.Errorf("%s: %v, want %v", tc.name, err, tc.want)
		}
	}
}

func TestDeepNestingIsRefused(t *testing.T) {
	r := newRig(t)
	kv := pb.NewKVClient(r.conn)
	deep := func(n int) *pb.TxnRequest {
		txn := &pb.TxnRequest{Success: ops{put("k")}}
		for range n - 1 {
			txn = &pb.TxnRequest{Success: ops{{Request: &pb.RequestOp_RequestTxn{RequestTxn: txn}}}}
		}
		return txn
	}
	if _, err := kv.Txn(r.ctx(), deep(mvcc.MaxDepth)); err != nil {
		t.Error(err)
	}
	if _, err := kv.Txn(r.ctx(), deep(mvcc.MaxDepth+1)); !errors.Is(rpctypes.Error(err), rpctypes.ErrTooManyOps) {
		t.Error(err)
	}
	wide := func(int) *pb.RequestOp {
		return nest(repeat(70, func(int) *pb.RequestOp { return nest(nil, nil) }), nil)
	}
	many := &pb.TxnRequest{Success: repeat(58, wide), Failure: repeat(58, wide)} // above mvcc.MaxOps in all
	if _, err := kv.Txn(r.ctx(), many); !errors.Is(rpctypes.Error(err), rpctypes.ErrTooManyOps) {
		t.Error(err)
	}
}

func TestUnknownCompareIsRefused(t *testing.T) {
	r := newRig(t)
	for _, c := range []*pb.Compare{
		{Key: []byte("k"), Target: 5}, {Key: []byte("k"), Result: 4}, {Key: []byte("k"), Target: -1}, {Key: []byte("k"), Result: -1},
	} {
		_, err := pb.NewKVClient(r.conn).Txn(r.ctx(), &pb.TxnRequest{Compare: []*pb.Compare{c}})
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("%v: %v", c, err)
		}
	}
}

func TestFaultsBecomeEtcdErrors(t *testing.T) {
	want := map[fault.Kind]error{
		fault.NotFound: rpctypes.ErrKeyNotFound, fault.Compacted: rpctypes.ErrCompacted,
		fault.FutureRevision: rpctypes.ErrFutureRev, fault.TooLarge: rpctypes.ErrRequestTooLarge,
		fault.DiskFull: rpctypes.ErrNoSpace, fault.Busy: rpctypes.ErrTooManyRequests,
		fault.UnknownOutcome: rpctypes.ErrTimeoutDueToLeaderFail, fault.Deadline: rpctypes.ErrTimeout,
		fault.Unavailable: rpctypes.ErrNoLeader, fault.NotLeader: rpctypes.ErrLeaderChanged,
		fault.RangeNotFound: rpctypes.ErrLeaderChanged, fault.WrongRange: rpctypes.ErrLeaderChanged,
		fault.Restamp: rpctypes.ErrLeaderChanged, fault.Stopped: rpctypes.ErrStopped,
		fault.Corrupt: rpctypes.ErrCorrupt, fault.WrongCluster: rpctypes.ErrClusterIDMismatch,
	}
	plain := map[fault.Kind]codes.Code{
		fault.Internal: codes.Internal, fault.Invalid: codes.InvalidArgument, fault.AlreadyExists: codes.AlreadyExists,
		fault.CompareFailed: codes.FailedPrecondition, fault.Locked: codes.Unavailable,
		fault.Uninitialized: codes.Unavailable, fault.Unimplemented: codes.Unimplemented, fault.Cancelled: codes.Canceled,
	}
	for k := fault.Internal; k <= fault.Cancelled; k++ {
		err := toStatus(context.Background(), fault.New(k, "it broke").WithRemedy("mend it"))
		if etcd, ok := want[k]; ok {
			if !errors.Is(rpctypes.Error(err), etcd) {
				t.Errorf("%v became %v, want %v", k, err, etcd)
			}
			continue
		}
		code, ok := plain[k]
		if !ok {
			t.Errorf("kind %v is in no table", k)
		}
		if st := status.Convert(err); st.Code() != code || st.Message() != "it broke; mend it" {
			t.Errorf("%v became %v, want %v", k, err, code)
		}
	}
	if err := toStatus(context.Background(), errors.New("boom")); status.Code(err) != codes.Internal {
		t.Errorf("a foreign error became %v", err)
	}
}

// A put whose outcome is unknown must not be sent again by etcd's client.
func TestUnknownOutcomeIsNotRetried(t *testing.T) {
	r := newRig(t)
	for _, k := range []fault.Kind{fault.UnknownOutcome, fault.Deadline} {
		calls := 0
		r.keys.onCall = func() { calls++ }
		r.keys.err = fault.New(k, "lost")
		if _, err := r.cli.Put(r.ctx(), "k", "v"); err == nil || calls != 1 {
			t.Errorf("%v: %v after %d calls", k, err, calls)
		}
	}
}

func TestRequestsAreBoundedInTime(t *testing.T) {
	r := newRigWith(t, Options{Timeout: 20 * time.Millisecond})
	r.keys.block = true
	kv := pb.NewKVClient(r.conn)
	if _, err := kv.Range(r.ctx(), &pb.RangeRequest{Key: []byte("k")}); !errors.Is(rpctypes.Error(err), rpctypes.ErrTimeout) {
		t.Errorf("range: %v", err)
	}
	if _, err := kv.Put(r.ctx(), &pb.PutRequest{Key: []byte("k")}); !errors.Is(rpctypes.Error(err), rpctypes.ErrTimeout) {
		t.Errorf("put: %v", err)
	}
	unbounded := New(r.keys, r.node, Options{Timeout: -1})
	if ctx, _ := unbounded.within(context.Background()); ctx != context.Background() {
		t.Error("a negative timeout bounds")
	}
	ctx, cancel := context.WithCancel(r.ctx())
	cancel()
	if err := toStatus(ctx, context.Canceled); status.Code(err) != codes.Canceled {
		t.Errorf("gone: %v", err)
	}
	if _, err := kv.Range(ctx, &pb.RangeRequest{Key: []byte("k")}); status.Code(err) != codes.Canceled {
		t.Errorf("gone: %v", err)
	}
}

func TestTxnOfClient(t *testing.T) {
	r := newRig(t)
	_, err := r.cli.Txn(r.ctx()).Then(clientv3.OpPut("a", "1"), clientv3.OpPut("a", "2")).Commit()
	if !errors.Is(err, rpctypes.ErrDuplicateKey) {
		t.Error(err)
	}
}

// A configured limit on keys holds for every put of a request, nested ones included,
// and not for reads.
func TestKeyLimit(t *testing.T) {
	s := New(nil, nil, Options{MaxKey: 8})
	put := func(n int) mvcc.Op {
		return mvcc.Op{Kind: mvcc.OpPut, Span: base.PointSpan(keys.User(base.DefaultKeyspace, make([]byte, n)))}
	}
	read := put(9)
	read.Kind = mvcc.OpRange
	for _, c := range []struct {
		name string
		txn  *mvcc.Txn
		long bool
	}{
		{"at the limit", &mvcc.Txn{Then: []mvcc.Op{put(8)}}, false},
		{"above", &mvcc.Txn{Then: []mvcc.Op{put(9)}}, true},
		{"in the other branch", &mvcc.Txn{Else: []mvcc.Op{put(9)}}, true},
		{"nested", &mvcc.Txn{Then: []mvcc.Op{{Kind: mvcc.OpTxn, Txn: &mvcc.Txn{Else: []mvcc.Op{put(9)}}}}}, true},
		{"a read", &mvcc.Txn{Then: []mvcc.Op{read}}, false},
	} {
		if err := s.checkSize(&pb.PutRequest{}, c.txn); (err != nil) != c.long {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}
