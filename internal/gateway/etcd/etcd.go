// Package etcd is the etcd v3 face of the gateway. It owns the translation between
// etcd's messages and Almanac's: validation as etcd does it, user keys to logical keys,
// timestamps as revisions, faults as etcd's own errors. It refuses to know where keys
// live, how they are replicated, or how a timestamp comes to be; that is behind Keys.
package etcd

import (
	"context"
	"encoding/binary"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/keys"
	"github.com/almanacdb/almanac/internal/mvcc"
)

// Limits, as etcd sets them.
const (
	MaxRequestBytes = 3 << 19 // of a write, unless configured: 1.5 MiB
	MaxKeyBytes     = 4 << 10 // of a key to write, unless configured
	MaxTxnOps       = 128     // operations along one path of a transaction

	// MaxReceiveBytes is what a gRPC server must accept, so that a request that is too
	// large is answered with etcd's error and not with gRPC's.
	MaxReceiveBytes = MaxRequestBytes + 512<<10
)

// APIVersion is the version of etcd's API that this package speaks; clients decide by
// it what they may ask for.
const APIVersion = "3.6.0"

// Keys reads and writes keys. All keys and spans are logical. Slices that are passed
// in belong to Keys from then on; those that are returned belong to the caller.
// Errors are faults.
type Keys interface {
	// Range does one or more reads, all of kind mvcc.OpRange, at one timestamp, in order. A
	// read with its own Range.At is exact at that; the others read at `at`. With at == 0
	// they are linearizable at a fresh timestamp, or, if local, at what the replica that
	// answers is closed to; with at != 0 they are exact, local or not. A span whose end is
	// not above its start holds no key.
	//
	// The revision is that one timestamp. With at == 0, a Range.At that the oracle has not
	// issued is a FutureRevision (K5); with at != 0, every Range.At is at or below it.
	Range(ctx context.Context, reads []mvcc.Op, at base.Timestamp, local bool) (results []mvcc.RangeResult, revision base.Timestamp, err error)

	// Txn evaluates txn in one log entry and returns its commit timestamp. NotFound
	// says that a put was to keep the value or lease of a key that does not exist.
	Txn(ctx context.Context, txn *mvcc.Txn) (result *mvcc.TxnResult, revision base.Timestamp, err error)

	// Compact raises the keyspace's history horizon to `at`, and returns once every range
	// has applied it (K8). The revision is one that the oracle has issued, not below
	// `at`. Compacted says that the horizon is there already.
	Compact(ctx context.Context, at base.Timestamp) (revision base.Timestamp, err error)
}

// Node tells about this node and its cluster. ClusterID, NodeID and Term are asked on
// every request.
type Node interface {
	ClusterID() base.ClusterID
	NodeID() base.NodeID
	Term() uint64 // of the default keyspace's range, as known here
	Status(ctx context.Context) (Status, error)
	// Members lists the cluster's nodes, by id; linearizable or as known here.
	Members(ctx context.Context, linearizable bool) ([]base.NodeDescriptor, error)
}

// Status is what this node knows of itself and the default keyspace's range.
type Status struct {
	Version  string         // of Almanac
	Leader   base.NodeID    // of the range; 0: none known
	Commit   base.LogMark   // of the range
	Applied  uint64         // log index, of the range
	Revision base.Timestamp // last stamp applied in the range
	Bytes    int64          // state store, on disk
	Live     int64          // thereof, not yet superseded; 0: unknown
	Quota    int64          // of the state store, bytes; 0: none
	DiskFull bool           // writes are refused
}

// Options adjust the face.
type Options struct {
	Keyspace base.KeyspaceID // 0: the default keyspace
	// MaxKey and MaxRequest bound, in bytes, a key to write and a request to write; 0:
	// MaxKeyBytes and MaxRequestBytes.
	MaxKey, MaxRequest int
	Timeout            time.Duration // of a request that brings no shorter deadline; 0: 7 s, as etcd; negative: none, Keys and Node bound it
}

// Server answers the etcd API. Safe for concurrent use.
type Server struct {
	keys     Keys
	node     Node
	keyspace base.KeyspaceID
	prefix   int // bytes of a logical key before the user's key
	timeout  time.Duration

	maxKey, maxRequest int // bytes
}

// New returns a server over k and n.
func New(k Keys, n Node, o Options) *Server {
	if o.Keyspace == 0 {
		o.Keyspace = base.DefaultKeyspace
	}
	if o.Timeout == 0 {
		o.Timeout = 7 * time.Second
	}
	if o.MaxKey == 0 {
		o.MaxKey = MaxKeyBytes
	}
	if o.MaxRequest == 0 {
		o.MaxRequest = MaxRequestBytes
	}
	return &Server{
		maxKey: o.MaxKey, maxRequest: o.MaxRequest,
		keys: k, node: n, keyspace: o.Keyspace, timeout: o.Timeout,
		prefix: len(keys.User(o.Keyspace, nil)),
	}
}

// Register adds every service of the etcd API to r.
func (s *Server) Register(r grpc.ServiceRegistrar) {
	pb.RegisterKVServer(r, &kvServer{Server: s})
	pb.RegisterClusterServer(r, &clusterServer{Server: s})
	pb.RegisterMaintenanceServer(r, &maintenanceServer{Server: s})
	pb.RegisterWatchServer(r, watchServer{})
	pb.RegisterLeaseServer(r, leaseServer{})
	pb.RegisterAuthServer(r, authServer{})
}

// header returns a response header; revision 0 is left out.
func (s *Server) header(revision base.Timestamp) *pb.ResponseHeader {
	id := s.node.ClusterID()
	return &pb.ResponseHeader{
		ClusterId: binary.BigEndian.Uint64(id[:]),
		MemberId:  uint64(s.node.NodeID()),
		Revision:  int64(revision),
		RaftTerm:  s.node.Term(),
	}
}

// within bounds a request in time.
func (s *Server) within(ctx context.Context) (context.Context, context.CancelFunc) {
	if s.timeout < 0 {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, s.timeout)
}
