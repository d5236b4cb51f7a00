package etcd

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/almanacdb/almanac/internal/base"
)

// peer returns the path of another system's program, as tools/peers/build left it in
// the directory that ALMANAC_PEERS names.
func peer(t *testing.T, name string) string {
	dir := os.Getenv("ALMANAC_PEERS")
	if dir == "" {
		t.Skip("ALMANAC_PEERS is not set; see tools/peers/build")
	}
	return filepath.Join(dir, name)
}

// startEtcd runs a single etcd and returns a connection to it.
func startEtcd(t *testing.T) *grpc.ClientConn {
	t.Helper()
	program := peer(t, "etcd")
	var urls [2]string
	for i := range urls {
		lis, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		urls[i] = "http://" + lis.Addr().String()
		_ = lis.Close()
	}
	cmd := exec.Command(program, "--data-dir", t.TempDir(), "--unsafe-no-fsync", "--log-level", "error",
		"--listen-client-urls", urls[0], "--advertise-client-urls", urls[0],
		"--listen-peer-urls", urls[1], "--initial-advertise-peer-urls", urls[1], "--initial-cluster", "default="+urls[1])
	cmd.Stderr = t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	conn, err := grpc.NewClient(strings.TrimPrefix(urls[0], "http://"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if _, err := pb.NewKVClient(conn).Range(ctx, &pb.RangeRequest{Key: []byte("health")}, grpc.WaitForReady(true)); err != nil {
		t.Fatal(err)
	}
	return conn
}

// system is one of the two that are compared: how each numbers its revisions is its
// own, so requests and answers speak of the n-th write.
type system struct {
	kv        pb.KVClient
	revisions []int64 // of the n-th acknowledged write
}

// revision is that of the n-th write; beyond the last, a future one.
func (s *system) revision(n int) int64 {
	switch {
	case n < 0:
		return 0
	case n < len(s.revisions):
		return s.revisions[n]
	}
	return s.revisions[len(s.revisions)-1] + 1<<50
}

func (s *system) write(revision int64) int {
	for n, r := range s.revisions {
		if r == revision {
			return n
		}
	}
	return -1
}

func (s *system) show(kvs []*mvccpb.KeyValue) string {
	var b strings.Builder
	for _, kv := range kvs {
		fmt.Fprintf(&b, " %q=%q created %d modified %d version %d lease %d", kv.Key, kv.Value,
			s.write(kv.CreateRevision), s.write(kv.ModRevision), kv.Version, kv.Lease)
	}
	return b.String()
}

func (s *system) showOp(op *pb.ResponseOp) string {
	switch r := op.Response.(type) {
	case *pb.ResponseOp_ResponseRange:
		return fmt.Sprintf("range%s count %d more %v", s.show(r.ResponseRange.Kvs), r.ResponseRange.Count, r.ResponseRange.More)
	case *pb.ResponseOp_ResponsePut:
		if kv := r.ResponsePut.PrevKv; kv != nil {
			return "put" + s.show([]*mvccpb.KeyValue{kv})
		}
		return "put"
	case *pb.ResponseOp_ResponseDeleteRange:
		return fmt.Sprintf("delete%s deleted %d", s.show(r.ResponseDeleteRange.PrevKvs), r.ResponseDeleteRange.Deleted)
	case *pb.ResponseOp_ResponseTxn:
		return "txn " + s.showTxn(r.ResponseTxn)
	}
	return "nothing"
}

func (s *system) showTxn(r *pb.TxnResponse) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%v {", r.Succeeded)
	for _, op := range r.Responses {
		b.WriteString(s.showOp(op) + "; ")
	}
	return b.String() + "}"
}

// do sends one transaction, unless it is of one operation the way of that operation,
// and says how it went, in terms that must be the same for both systems.
func (s *system) do(ctx context.Context, g *txnGen) string {
	req := g.request(s)
	var err error
	var said string
	var revision int64
	if g.plain {
		var resp *pb.ResponseOp
		resp, revision, err = s.plain(ctx, req.Success[0])
		if err == nil {
			said = s.noting(revision, g.writes, func() string { return s.showOp(resp) })
		}
	} else {
		var resp *pb.TxnResponse
		if resp, err = s.kv.Txn(ctx, req); err == nil {
			said = s.noting(resp.Header.Revision, g.writes, func() string { return s.showTxn(resp) })
		}
	}
	if err != nil {
		return "error: " + status.Convert(err).Message()
	}
	return said
}

// noting records a write's revision first, so that answers can name it. A write that
// changed nothing leaves etcd's revision alone; it counts as a write in neither.
func (s *system) noting(revision int64, writes bool, show func() string) string {
	if writes && (len(s.revisions) == 0 || revision != s.revisions[len(s.revisions)-1]) {
		s.revisions = append(s.revisions, revision)
	}
	return show()
}

func (s *system) plain(ctx context.Context, op *pb.RequestOp) (*pb.ResponseOp, int64, error) {
	switch {
	case op.GetRequestRange() != nil:
		r, err := s.kv.Range(ctx, op.GetRequestRange())
		return &pb.ResponseOp{Response: &pb.ResponseOp_ResponseRange{ResponseRange: r}}, r.GetHeader().GetRevision(), err
	case op.GetRequestPut() != nil:
		r, err := s.kv.Put(ctx, op.GetRequestPut())
		return &pb.ResponseOp{Response: &pb.ResponseOp_ResponsePut{ResponsePut: r}}, r.GetHeader().GetRevision(), err
	default:
		r, err := s.kv.DeleteRange(ctx, op.GetRequestDeleteRange())
		return &pb.ResponseOp{Response: &pb.ResponseOp_ResponseDeleteRange{ResponseDeleteRange: r}}, r.GetHeader().GetRevision(), err
	}
}

// txnGen is a request in which revisions are numbers of writes.
type txnGen struct {
	seed   uint64
	nth    int // writes so far
	plain  bool
	writes bool
}

// request builds the same request for either system: the same random numbers, with
// each one's own revisions.
func (g *txnGen) request(s *system) *pb.TxnRequest {
	b := &builder{Rand: rand.New(rand.NewPCG(g.seed, 1)), s: s, nth: g.nth}
	if g.plain = b.IntN(2) == 0; g.plain {
		req := &pb.TxnRequest{Success: []*pb.RequestOp{b.op(false)}}
		g.writes = b.wrote
		return req
	}
	req := b.txn(2)
	g.writes = b.wrote
	return req
}

// builder makes random requests. It leaves out what differs knowingly: deletes up to
// the end of all keys beside puts, several nested transactions in a row, leases in
// transactions, and a limit on an order that is named without a direction.
type builder struct {
	*rand.Rand
	s     *system
	nth   int
	wrote bool
}

func (b *builder) maybe() bool { return b.IntN(2) == 0 }

func (b *builder) key() []byte {
	keys := []string{"a", "b", "c", "d", "a\x00", "\xff", "", "aa"}
	if b.IntN(20) > 0 {
		return []byte(keys[b.IntN(5)])
	}
	return []byte(keys[b.IntN(len(keys))])
}

// anyRevision is 0, a past one, or rarely a future one.
func (b *builder) anyRevision() int64 {
	switch b.IntN(8) {
	case 0, 1, 2:
		return 0
	case 3:
		return b.s.revision(b.nth + 5)
	}
	return b.s.revision(b.IntN(b.nth))
}

func (b *builder) op(inTxn bool) *pb.RequestOp {
	switch b.IntN(3) {
	case 0:
		return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: b.rangeRequest()}}
	case 1:
		b.wrote = true
		put := &pb.PutRequest{Key: b.key(), PrevKv: b.maybe()}
		if put.IgnoreValue = b.IntN(5) == 0; !put.IgnoreValue || b.IntN(5) == 0 {
			put.Value = []byte{byte('m' + b.IntN(4))}
		}
		put.IgnoreLease = b.IntN(6) == 0
		if !inTxn && b.IntN(10) == 0 {
			put.Lease = 77
		}
		return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: put}}
	}
	b.wrote = true
	d := &pb.DeleteRangeRequest{Key: b.key(), PrevKv: b.maybe()}
	if b.maybe() {
		d.RangeEnd = b.end(d.Key, inTxn)
	}
	return &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: d}}
}

// end returns a range's end; above its start and below the end of all keys, if upright.
func (b *builder) end(start []byte, upright bool) []byte {
	if upright {
		return append(start[:len(start):len(start)], byte('0'+b.IntN(60)))
	}
	return [][]byte{{0}, {'b'}, {'d'}, {'z'}, base.PrefixEnd(start)}[b.IntN(5)]
}

func (b *builder) rangeRequest() *pb.RangeRequest {
	r := &pb.RangeRequest{Key: b.key(), Revision: b.anyRevision(), CountOnly: b.IntN(6) == 0, KeysOnly: b.IntN(4) == 0}
	if b.IntN(3) > 0 {
		r.RangeEnd = b.end(r.Key, false)
	}
	r.SortOrder = pb.RangeRequest_SortOrder(b.IntN(3))
	r.SortTarget = pb.RangeRequest_SortTarget(b.IntN(5))
	if b.IntN(20) == 0 {
		r.SortTarget = 7
	}
	if r.SortOrder != pb.RangeRequest_NONE || r.SortTarget == pb.RangeRequest_KEY {
		r.Limit = int64(b.IntN(5) - 1)
	}
	for _, bound := range []*int64{&r.MinModRevision, &r.MaxModRevision, &r.MinCreateRevision, &r.MaxCreateRevision} {
		if b.IntN(5) == 0 {
			*bound = b.anyRevision()
		}
	}
	return r
}

func (b *builder) txn(depth int) *pb.TxnRequest {
	t := &pb.TxnRequest{}
	for range b.IntN(3) {
		t.Compare = append(t.Compare, b.compare())
	}
	for _, branch := range []*[]*pb.RequestOp{&t.Success, &t.Failure} {
		for range b.IntN(4) {
			*branch = append(*branch, b.op(true))
		}
		if depth > 0 && b.IntN(3) == 0 {
			nested := &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: b.txn(depth - 1)}}
			at := b.IntN(len(*branch) + 1)
			*branch = append((*branch)[:at:at], append([]*pb.RequestOp{nested}, (*branch)[at:]...)...)
		}
		if b.IntN(40) == 0 {
			*branch = append(*branch, &pb.RequestOp{})
		}
	}
	return t
}

func (b *builder) compare() *pb.Compare {
	c := &pb.Compare{Key: b.key(), Result: pb.Compare_CompareResult(b.IntN(4)), Target: pb.Compare_CompareTarget(b.IntN(5))}
	if b.IntN(3) == 0 {
		c.RangeEnd = b.end(c.Key, false)
	}
	switch c.Target {
	case pb.Compare_VERSION:
		c.TargetUnion = &pb.Compare_Version{Version: int64(b.IntN(4))}
	case pb.Compare_CREATE:
		c.TargetUnion = &pb.Compare_CreateRevision{CreateRevision: b.anyRevision()}
	case pb.Compare_MOD:
		c.TargetUnion = &pb.Compare_ModRevision{ModRevision: b.anyRevision()}
	case pb.Compare_VALUE:
		c.TargetUnion = &pb.Compare_Value{Value: []byte{byte('m' + b.IntN(4))}}
	case pb.Compare_LEASE:
		c.TargetUnion = &pb.Compare_Lease{Lease: int64(b.IntN(2))}
	}
	if b.IntN(10) == 0 {
		c.TargetUnion = &pb.Compare_Version{Version: 1} // maybe of another target
	}
	return c
}

// TestAgreesWithEtcd sends the same random requests to both and wants the same answers
// and errors, revisions aside: those are compared as "of the n-th write".
func TestAgreesWithEtcd(t *testing.T) {
	const requests = 3000
	r := newRig(t)
	ours := &system{kv: pb.NewKVClient(r.conn)}
	etcd := &system{kv: pb.NewKVClient(startEtcd(t))}
	errs := 0
	for i := range requests {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		for _, s := range []*system{ours, etcd} { // every request has a past to speak of
			if i%50 == 0 {
				resp, err := s.kv.Put(ctx, &pb.PutRequest{Key: []byte("a"), Value: []byte("m")})
				if err != nil {
					t.Fatal(err)
				}
				s.revisions = append(s.revisions, resp.Header.Revision)
			}
		}
		g := &txnGen{seed: uint64(i), nth: len(etcd.revisions)}
		want := etcd.do(ctx, g)
		before := len(ours.revisions)
		got := ours.do(ctx, g)
		cancel()
		if got != want {
			t.Fatalf("request %d %v\nAlmanac: %s\netcd:    %s", i, g.request(etcd), got, want)
		}
		if len(ours.revisions) > len(etcd.revisions) { // changed nothing, so etcd's revision stands
			ours.revisions = ours.revisions[:before]
		}
		if strings.HasPrefix(want, "error") {
			errs++
		}
	}
	t.Logf("%d requests agree, %d of them errors, %d writes", requests, errs, len(etcd.revisions))
}

// TestEtcdctl runs etcd's own command line client.
func TestEtcdctl(t *testing.T) {
	program := peer(t, "etcdctl")
	r := newRig(t)
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	New(r.keys, r.node, Options{}).Register(server)
	go func() { _ = server.Serve(lis) }()
	t.Cleanup(server.Stop)
	for _, tc := range []struct{ args, want string }{
		{"put greeting hello", "OK"},
		{"get greeting", "greeting\nhello"},
		{"get --prefix g --keys-only", "greeting"},
		{"get --from-key a --count-only -w fields", `"Count" : 1`},
		{"del greeting --prev-kv", "1\ngreeting\nhello"},
		{"endpoint health", "is healthy"},
		{"endpoint status -w table", "0.1.0"},
		{"endpoint status -w json", `"leader":3`},
		{"member list", "3, started, node-3, http://10.0.0.3:7002, http://10.0.0.3:7001, false"},
		{"alarm list", ""},
		{"lease grant 10", "LeaseGrant"},
		{"compaction 9223372036854775807", "required revision is a future revision"},
	} {
		cmd := exec.CommandContext(r.ctx(), program, append([]string{"--endpoints", lis.Addr().String()}, strings.Fields(tc.args)...)...)
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) || !strings.Contains(string(out), tc.want) {
			t.Errorf("etcdctl %s: %v\n%s", tc.args, err, out)
		}
	}
}
