// Package almanac is the public face of the gateway, the API almanac.v1. It owns the
// translation between its messages and Almanac's: checks and limits, user keys to
// logical keys, faults to statuses, and the pace of streams. It refuses to know where
// things live and how they are replicated; that is behind Router.
package almanac

import (
	"context"
	"time"

	"google.golang.org/grpc"

	almanacv1 "github.com/almanacdb/almanac/api/almanac/v1"
	"github.com/almanacdb/almanac/internal/admission"
	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/mvcc"
	"github.com/almanacdb/almanac/internal/placement"
	"github.com/almanacdb/almanac/internal/router"
	"github.com/almanacdb/almanac/internal/timeline"
	"github.com/almanacdb/almanac/internal/wire"
)

// Router is what the face asks of the routes. *router.Router is one, once Routed has
// narrowed its subscriptions. Errors are faults.
type Router interface {
	Read(ctx context.Context, reads []wire.Read, c router.Consistency, at base.Timestamp) (wire.ReadReply, error)
	Range(ctx context.Context, ops []mvcc.Op, at base.Timestamp, local bool) ([]mvcc.RangeResult, base.Timestamp, error)
	Txn(ctx context.Context, txn *mvcc.Txn) (*mvcc.TxnResult, base.Timestamp, error)
	FreshTimestamp(ctx context.Context) (base.Timestamp, error)
	BeginRead(ctx context.Context, timeout time.Duration, span base.Span, done func(wire.ReadReply, error)) bool
	BeginTxn(ctx context.Context, timeout time.Duration, txn *mvcc.Txn, done func(*mvcc.TxnResult, base.Timestamp, error)) bool

	Topic(ctx context.Context, name string) (placement.Topic, error)
	Topics(ctx context.Context) ([]placement.Topic, error)
	CreateTopic(ctx context.Context, req placement.CreateTopic) (t placement.Topic, created bool, err error)
	DeleteTopic(ctx context.Context, name string) error

	Publish(ctx context.Context, topic string, events []timeline.NewEvent) ([]router.Published, error)
	BeginPublish(ctx context.Context, timeout time.Duration, topic string, events []timeline.NewEvent, done func([]router.Published, error)) bool
	Ack(ctx context.Context, batches []timeline.AckBatch) ([]timeline.AckOutcome, error)
	RangeOf(ctx context.Context, p base.PartitionID) (base.RangeID, error)
	Subscribe(ctx context.Context, topic, group string, start timeline.StartRule) (Subscription, error)

	Ranges(ctx context.Context) ([]base.RangeDescriptor, error)
	Admin(ctx context.Context, req *placement.Request) (*placement.Reply, error)
}

// Subscription is one member's place in a group.
type Subscription interface {
	Topic() placement.Topic
	Group() placement.Group
	// Grant lets n more deliveries be returned by Next.
	Grant(n int)
	// Next returns deliveries as far as there is credit, waiting for the first.
	Next(ctx context.Context) ([]wire.Delivery, error)
	// Close gives back at once what was handed out and not acked.
	Close()
}

// Routed makes a *router.Router a Router.
func Routed(r *router.Router) Router { return routed{r} }

type routed struct{ *router.Router }

// Subscribe implements Router.
func (r routed) Subscribe(ctx context.Context, topic, group string, start timeline.StartRule) (Subscription, error) {
	s, err := r.Router.Subscribe(ctx, topic, group, start)
	if err != nil {
		return nil, err // not a nil *Subscription in the interface
	}
	return s, nil
}

// Node tells about this node. Safe for concurrent use.
type Node interface {
	// Status describes this node's process.
	Status() NodeStatus
	// ClientAddress returns where clients reach a node; empty if unknown.
	ClientAddress(base.NodeID) string
	// OracleNode returns the leader of the system range, as known here; 0: none known.
	OracleNode() base.NodeID
}

// NodeStatus describes a node's process. What is unknown is zero.
type NodeStatus struct {
	ID        base.NodeID
	Version   string // of the binary
	Uptime    time.Duration
	RSSBytes  uint64 // resident memory
	HeapBytes uint64 // in use
	DiskBytes uint64 // of the stores in the data directory
	// Rebuilding says how far the node is with getting back the replicas that it lost with
	// its stores; empty if they are whole.
	Rebuilding string
}

// InitFunc forms a cluster whose first node is this one. A node that belongs to one
// already answers AlreadyExists.
type InitFunc func(context.Context) (base.ClusterID, base.NodeID, error)

// Limits bound what clients may ask for and hold. Zero fields get the API's defaults.
type Limits struct {
	KeyBytes     int // of a key: 4 KiB
	RequestBytes int // of a request: 16 MiB

	PayloadBytes  int           // of an event: 4 MiB
	PublishEvents int           // of a publish request: 10,000
	DueAhead      time.Duration // of a due time: 100 years

	StreamCalls int // calls in flight on one KV stream: 1,024
	StreamBytes int // requests and replies held for one KV stream: 64 MiB
	Credits     int // deliveries under way to one subscriber: 10,000; what it grants beyond waits
	AckedEvents int // events whose ack is under way for one subscriber: 100,000
}

func (l *Limits) setDefaults() {
	for _, d := range []struct {
		field *int
		value int
	}{
		{&l.KeyBytes, 4 << 10}, {&l.RequestBytes, 16 << 20},
		{&l.PayloadBytes, 4 << 20}, {&l.PublishEvents, 10_000},
		{&l.StreamCalls, 1024}, {&l.StreamBytes, 64 << 20},
		{&l.Credits, 10_000}, {&l.AckedEvents, 100_000},
	} {
		if *d.field == 0 {
			*d.field = d.value
		}
	}
	if l.DueAhead == 0 {
		l.DueAhead = 100 * 366 * 24 * time.Hour
	}
}

// Options configure a Server.
type Options struct {
	Router  *router.Router
	Cluster base.ClusterID
	Node    Node
	Init    InitFunc // nil: AlreadyExists
	Limits  Limits
	// Intake takes in the calls inside streams; nil: unbounded.
	Intake *admission.Intake

	// Routes takes Router's place; for tests.
	Routes Router
}

// Server answers the API on a node that belongs to a cluster. Safe for concurrent use.
type Server struct {
	routes  Router
	cluster base.ClusterID
	node    Node
	init    InitFunc
	limits  Limits
	intake  *admission.Intake
	now     func() time.Time // the wall clock, to refuse absurd due times

	stopping context.Context // ends with Stop
	stop     context.CancelFunc
}

// New returns a server.
func New(o Options) *Server {
	o.Limits.setDefaults()
	if o.Routes == nil {
		o.Routes = Routed(o.Router)
	}
	s := &Server{routes: o.Routes, cluster: o.Cluster, node: o.Node, init: o.Init, limits: o.Limits, intake: o.Intake, now: time.Now}
	if s.intake == nil {
		s.intake = &admission.Intake{}
	}
	s.stopping, s.stop = context.WithCancel(context.Background())
	return s
}

// Stop ends the streams, which would last as long as their clients like: calls and acks
// that were received are answered first, and then the stream's status is Stopped, which
// tells the client that nothing else was done.
func (s *Server) Stop() { s.stop() }

func errStopping() error { return fault.New(fault.Stopped, "the node is shutting down") }

// Register adds every service of the API to r.
func (s *Server) Register(r grpc.ServiceRegistrar) {
	almanacv1.RegisterKVServer(r, &kvServer{Server: s})
	almanacv1.RegisterEventsServer(r, &eventsServer{Server: s})
	almanacv1.RegisterClusterServer(r, &clusterServer{Server: s})
}
