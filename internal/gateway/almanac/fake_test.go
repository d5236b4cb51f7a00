package almanac

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	almanacv1 "github.com/almanacdb/almanac/api/almanac/v1"
	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/mvcc"
	"github.com/almanacdb/almanac/internal/placement"
	"github.com/almanacdb/almanac/internal/router"
	"github.com/almanacdb/almanac/internal/timeline"
	"github.com/almanacdb/almanac/internal/wire"
)

// routes is a Router of functions; those that a test does not set must not be called.
type routes struct {
	Router
	read      func(context.Context, []wire.Read, router.Consistency, base.Timestamp) (wire.ReadReply, error)
	scan      func([]mvcc.Op, base.Timestamp, bool) ([]mvcc.RangeResult, base.Timestamp, error)
	txn       func(context.Context, *mvcc.Txn) (*mvcc.TxnResult, base.Timestamp, error)
	stamp     func() (base.Timestamp, error)
	topics    []placement.Topic
	create    func(placement.CreateTopic) (placement.Topic, bool, error)
	publish   func(string, []timeline.NewEvent) ([]router.Published, error)
	ack       func(context.Context, []timeline.AckBatch) ([]timeline.AckOutcome, error)
	subscribe func(topic, group string, start timeline.StartRule) (Subscription, error)
	ranges    []base.RangeDescriptor
	reports   []placement.Report
	broken    error // of the catalogue and placement
	begins    bool  // reads and transactions are begun
}

func (r *routes) BeginRead(ctx context.Context, timeout time.Duration, span base.Span, done func(wire.ReadReply, error)) bool {
	if r.begins {
		go func() {
			ctx, cancel := context.WithTimeout(ctx, timeout)
			defer cancel()
			done(r.read(ctx, []wire.Read{{Span: span}}, router.Newest, 0))
		}()
	}
	return r.begins
}

func (r *routes) BeginPublish(_ context.Context, _ time.Duration, topic string, events []timeline.NewEvent, done func([]router.Published, error)) bool {
	if r.begins {
		done(r.publish(topic, events))
	}
	return r.begins
}

func (r *routes) BeginTxn(ctx context.Context, _ time.Duration, txn *mvcc.Txn, done func(*mvcc.TxnResult, base.Timestamp, error)) bool {
	if r.begins {
		done(r.txn(ctx, txn))
	}
	return r.begins
}

func (r *routes) Read(ctx context.Context, reads []wire.Read, c router.Consistency, at base.Timestamp) (wire.ReadReply, error) {
	return r.read(ctx, reads, c, at)
}

func (r *routes) Range(_ context.Context, ops []mvcc.Op, at base.Timestamp, local bool) ([]mvcc.RangeResult, base.Timestamp, error) {
	return r.scan(ops, at, local)
}

func (r *routes) Txn(ctx context.Context, txn *mvcc.Txn) (*mvcc.TxnResult, base.Timestamp, error) {
	return r.txn(ctx, txn)
}

func (r *routes) FreshTimestamp(context.Context) (base.Timestamp, error) { return r.stamp() }

func (r *routes) Topic(_ context.Context, name string) (placement.Topic, error) {
	for _, t := range r.topics {
		if t.Name == name {
			return t, nil
		}
	}
	return placement.Topic{}, placement.UnknownTopic(name)
}

func (r *routes) Topics(context.Context) ([]placement.Topic, error) { return r.topics, r.broken }

func (r *routes) CreateTopic(_ context.Context, req placement.CreateTopic) (placement.Topic, bool, error) {
	return r.create(req)
}

func (r *routes) DeleteTopic(ctx context.Context, name string) error {
	_, err := r.Topic(ctx, name)
	return err
}

func (r *routes) Publish(_ context.Context, topic string, events []timeline.NewEvent) ([]router.Published, error) {
	return r.publish(topic, events)
}

func (r *routes) Ack(ctx context.Context, batches []timeline.AckBatch) ([]timeline.AckOutcome, error) {
	return r.ack(ctx, batches)
}

// RangeOf puts two partitions into each range.
func (r *routes) RangeOf(_ context.Context, p base.PartitionID) (base.RangeID, error) {
	return base.RangeID(10 + p.Partition/2), nil
}

func (r *routes) Subscribe(_ context.Context, topic, group string, start timeline.StartRule) (Subscription, error) {
	return r.subscribe(topic, group, start)
}

func (r *routes) Ranges(context.Context) ([]base.RangeDescriptor, error) { return r.ranges, r.broken }

func (r *routes) Admin(context.Context, *placement.Request) (*placement.Reply, error) {
	return &placement.Reply{Reports: r.reports}, r.broken
}

// node is a Node.
type node struct{ oracle base.NodeID }

func (node) Status() NodeStatus {
	return NodeStatus{ID: 1, Version: "v1", Uptime: 3 * time.Second, RSSBytes: 7}
}

func (node) ClientAddress(n base.NodeID) string {
	if n == 2 {
		return "two:7400"
	}
	return ""
}

func (n node) OracleNode() base.NodeID { return n.oracle }

var testCluster = base.ClusterID{0xab, 0xcd}

// registrar is what a test serves.
type registrar interface{ Register(grpc.ServiceRegistrar) }

// dial serves s in memory and returns a connection to it.
func dial(t *testing.T, s registrar) *grpc.ClientConn {
	t.Helper()
	listener := bufconn.Listen(1 << 20)
	server := grpc.NewServer(grpc.MaxRecvMsgSize(64 << 20))
	s.Register(server)
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(listener)
	}()
	conn, err := grpc.NewClient("passthrough:///memory", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		server.Stop()
		<-served
	})
	return conn
}

func serve(t *testing.T, r *routes, l Limits) *grpc.ClientConn {
	return dial(t, New(Options{Routes: r, Cluster: testCluster, Node: node{oracle: 1}, Limits: l}))
}

// testContext bounds a test that hangs.
func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// detail returns the detail of a failed call.
func detail(t *testing.T, err error) *almanacv1.ErrorDetail {
	t.Helper()
	for _, d := range status.Convert(err).Details() {
		if d, ok := d.(*almanacv1.ErrorDetail); ok {
			return d
		}
	}
	t.Fatalf("error %v carries no detail", err)
	return nil
}

func wantReason(t *testing.T, err error, want fault.Kind) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want %s", want)
	}
	if got := detail(t, err).Reason; got != want.String() {
		t.Fatalf("reason %q (%v), want %q", got, err, want)
	}
}

// subscription is a Subscription that hands out what a test feeds it, within credit.
type subscription struct {
	topic   placement.Topic
	feed    chan wire.Delivery
	failure chan error
	closed  chan struct{}

	mu     sync.Mutex
	credit int
	most   int // credit ever held
	more   chan struct{}
}

func newSubscription(partitions uint32) *subscription {
	return &subscription{
		topic: placement.Topic{ID: 5, Name: "orders", Partitions: partitions},
		feed:  make(chan wire.Delivery, 1000), failure: make(chan error, 1),
		closed: make(chan struct{}), more: make(chan struct{}, 1),
	}
}

func (s *subscription) Topic() placement.Topic { return s.topic }
func (s *subscription) Group() placement.Group { return placement.Group{ID: 9, Name: "g"} }
func (s *subscription) Close()                 { close(s.closed) } // twice panics

func (s *subscription) Grant(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.credit += n
	s.most = max(s.most, s.credit)
	select {
	case s.more <- struct{}{}:
	default:
	}
}

func (s *subscription) Next(ctx context.Context) ([]wire.Delivery, error) {
	for {
		s.mu.Lock()
		feed := s.feed
		if s.credit == 0 {
			feed = nil
		}
		s.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil, fault.Wrap(fault.Cancelled, ctx.Err(), "the caller went away")
		case err := <-s.failure:
			return nil, err
		case <-s.more:
		case d := <-feed:
			s.mu.Lock()
			s.credit--
			s.mu.Unlock()
			return []wire.Delivery{d}, nil
		}
	}
}
