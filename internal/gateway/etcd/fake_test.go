package etcd

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/engine"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/mvcc"
)

// fakeKeys is a keyspace of one replica: the real state machine over the in-memory
// engine, with a counter for an oracle.
type fakeKeys struct {
	mu      sync.Mutex
	eng     *engine.Mem
	clock   base.Timestamp // last issued
	applied base.Timestamp // last commit
	horizon base.Timestamp

	onCall  func() // called first, if set
	err     error  // what every call answers, if set
	block   bool   // calls wait for their context
	commits int    // transactions that went through the log
	ranges  int    // calls of Range
	local   bool   // of the last Range
}

// step is how far apart issued timestamps are, so that revisions are not dense.
const step = 7

func newFakeKeys() *fakeKeys {
	start := base.TimestampAt(1_763_683_200_000)
	return &fakeKeys{eng: engine.NewMem(engine.MemOptions{}), clock: start, applied: start}
}

func (f *fakeKeys) enter(ctx context.Context) error {
	if f.onCall != nil {
		f.onCall()
	}
	if f.block {
		<-ctx.Done()
		return ctx.Err()
	}
	return f.err
}

func (f *fakeKeys) issue() base.Timestamp {
	f.clock += step
	return f.clock
}

func (f *fakeKeys) Range(ctx context.Context, reads []mvcc.Op, at base.Timestamp, local bool) ([]mvcc.RangeResult, base.Timestamp, error) {
	if err := f.enter(ctx); err != nil {
		return nil, 0, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ranges, f.local = f.ranges+1, local
	switch {
	case at == 0 && local:
		at = f.applied
	case at == 0:
		at = f.issue()
	}
	if len(reads) == 0 {
		return nil, 0, fault.New(fault.Invalid, "there is nothing to read")
	}
	results := make([]mvcc.RangeResult, len(reads))
	for i, read := range reads {
		if read.Range.At == 0 {
			read.Range.At = at
		}
		if err := mvcc.CheckAt(read.Range.At, f.horizon, f.clock); err != nil {
			return nil, 0, err
		}
		var err error
		if results[i], err = mvcc.Range(f.eng, read.Span, read.Range); err != nil {
			return nil, 0, err
		}
	}
	return results, at, nil
}

func (f *fakeKeys) Txn(ctx context.Context, txn *mvcc.Txn) (*mvcc.TxnResult, base.Timestamp, error) {
	if err := f.enter(ctx); err != nil {
		return nil, 0, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.commits++
	stamp := f.issue()
	batch := f.eng.NewBatch(true)
	defer batch.Close()
	result, err := mvcc.Apply(batch, txn, stamp, f.horizon, true)
	if err != nil {
		return nil, 0, err
	}
	if err := batch.Commit(false); err != nil {
		return nil, 0, err
	}
	f.applied = stamp
	return result, stamp, nil
}

func (f *fakeKeys) Compact(ctx context.Context, at base.Timestamp) (base.Timestamp, error) {
	if err := f.enter(ctx); err != nil {
		return 0, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := mvcc.CheckAt(at, f.horizon+1, f.clock); err != nil {
		return 0, err
	}
	f.horizon = at
	return f.issue(), nil
}

// fakeNode is node 3 of three.
type fakeNode struct {
	status       Status
	err          error
	linearizable bool
}

func (n *fakeNode) ClusterID() base.ClusterID {
	return base.ClusterID{1, 2, 3, 4, 5, 6, 7, 8, 9}
}
func (n *fakeNode) NodeID() base.NodeID                    { return 3 }
func (n *fakeNode) Term() uint64                           { return 12 }
func (n *fakeNode) Status(context.Context) (Status, error) { return n.status, n.err }

func (n *fakeNode) Members(_ context.Context, linearizable bool) ([]base.NodeDescriptor, error) {
	n.linearizable = linearizable
	return []base.NodeDescriptor{
		{Node: 1, Address: "10.0.0.1:7001", Peer: "10.0.0.1:7002"},
		{Node: 3, Address: "10.0.0.3:7001", Peer: "10.0.0.3:7002"},
		{Node: 4},
	}, n.err
}

// rig is a server and etcd's own client of it.
type rig struct {
	*testing.T
	keys *fakeKeys
	node *fakeNode
	cli  *clientv3.Client
	conn *grpc.ClientConn
}

func newRig(t *testing.T) *rig { return newRigWith(t, Options{}) }

func newRigWith(t *testing.T, o Options) *rig {
	t.Helper()
	r := &rig{T: t, keys: newFakeKeys(), node: &fakeNode{status: Status{
		Version: "0.1.0", Leader: 3, Commit: base.LogMark{Index: 99, Term: 12}, Applied: 98,
		Revision: 77, Bytes: 4096, Live: 1024, Quota: 1 << 30,
	}}}
	lis := bufconn.Listen(1 << 20)
	server := grpc.NewServer(grpc.MaxRecvMsgSize(MaxReceiveBytes))
	New(r.keys, r.node, o).Register(server)
	go func() { _ = server.Serve(lis) }()
	dial := []grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }),
	}
	var err error
	if r.cli, err = clientv3.New(clientv3.Config{Endpoints: []string{"passthrough:///almanac"}, DialOptions: dial}); err != nil {
		t.Fatal(err)
	}
	if r.conn, err = grpc.NewClient("passthrough:///almanac", dial...); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = r.cli.Close()
		_ = r.conn.Close()
		server.Stop()
	})
	return r
}

func (r *rig) ctx() context.Context {
	ctx, cancel := context.WithTimeout(r.Context(), 20*time.Second)
	r.Cleanup(cancel)
	return ctx
}

func (r *rig) put(key, value string) int64 {
	r.Helper()
	resp, err := r.cli.Put(r.ctx(), key, value)
	if err != nil {
		r.Fatal(err)
	}
	return resp.Header.Revision
}

func (r *rig) get(key string, opts ...clientv3.OpOption) *clientv3.GetResponse {
	r.Helper()
	resp, err := r.cli.Get(r.ctx(), key, opts...)
	if err != nil {
		r.Fatal(err)
	}
	return resp
}
