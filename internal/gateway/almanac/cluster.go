package almanac

import (
	"bytes"
	"context"
	"runtime"
	"slices"
	"strconv"
	"time"

	almanacv1 "github.com/almanacdb/almanac/api/almanac/v1"
	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/keys"
	"github.com/almanacdb/almanac/internal/placement"
)

// clusterServer is the Cluster service.
type clusterServer struct {
	*Server
	almanacv1.UnsafeClusterServer
}

// Init implements almanacv1.ClusterServer.
func (s *clusterServer) Init(ctx context.Context, _ *almanacv1.InitRequest) (*almanacv1.InitResponse, error) {
	if s.init != nil {
		return initCluster(ctx, s.init, s.node.ClientAddress)
	}
	f := fault.New(fault.AlreadyExists, "this node belongs to cluster %s already", s.cluster).
		WithRemedy("see `almanac cluster status`")
	return nil, s.status(f)
}

// Nodes implements almanacv1.ClusterServer.
func (s *clusterServer) Nodes(ctx context.Context, _ *almanacv1.NodesRequest) (*almanacv1.NodesResponse, error) {
	reply, err := s.routes.Admin(ctx, &placement.Request{Reports: true})
	if err != nil {
		return nil, s.status(err)
	}
	resp := &almanacv1.NodesResponse{}
	for i := range reply.Reports {
		r := &reply.Reports[i]
		n := &almanacv1.Node{
			NodeId: uint64(r.Node.Node), Address: r.Node.Address, PeerAddress: r.Node.Peer, HttpAddress: r.Node.HTTP,
			Version: r.Node.Version, Alive: r.Alive, Replicas: uint32(len(r.Heartbeat.Replicas)),
		}
		for j := range r.Heartbeat.Replicas {
			if r.Alive && r.Heartbeat.Replicas[j].Orderer {
				n.Leaders++
			}
		}
		resp.Nodes = append(resp.Nodes, n)
	}
	slices.SortFunc(resp.Nodes, func(a, b *almanacv1.Node) int {
		return compareIDs(a.NodeId, b.NodeId)
	})
	return resp, nil
}

func compareIDs[T ~uint64](a, b T) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// Ranges implements almanacv1.ClusterServer.
func (s *clusterServer) Ranges(ctx context.Context, r *almanacv1.RangesRequest) (*almanacv1.RangesResponse, error) {
	var keyspace base.KeyspaceID
	switch r.Keyspace {
	case "":
	case defaultKeyspace:
		keyspace = base.DefaultKeyspace
	case systemKeyspace:
		keyspace = base.SystemKeyspace
	default:
		return nil, s.status(checkKeyspace(r.Keyspace))
	}
	v, err := s.view(ctx)
	if err != nil {
		return nil, s.status(err)
	}
	var wanted base.TopicID
	if r.Topic != "" {
		for id, t := range v.topics {
			if t.Name == r.Topic {
				wanted = id
			}
		}
		if wanted == 0 {
			return nil, s.status(placement.UnknownTopic(r.Topic))
		}
	}
	all := keyspace == 0 && wanted == 0
	resp := &almanacv1.RangesResponse{}
	for i := range v.ranges {
		d := &v.ranges[i]
		if all || (keyspace != 0 && d.Keyspace == keyspace) || (wanted != 0 && d.Topic == wanted) {
			resp.Ranges = append(resp.Ranges, v.info(d))
		}
	}
	return resp, nil
}

// view is the cluster as the catalogue and placement see it.
type view struct {
	ranges  []base.RangeDescriptor // by start
	topics  map[base.TopicID]placement.Topic
	reports []placement.Report
	orderer map[base.RangeID]ordered
}

// ordered says who orders a range, by the latest report.
type ordered struct {
	node  base.NodeID
	term  uint64
	bytes uint64
}

func (s *Server) view(ctx context.Context) (*view, error) {
	v := &view{topics: make(map[base.TopicID]placement.Topic), orderer: make(map[base.RangeID]ordered)}
	var err error
	if v.ranges, err = s.routes.Ranges(ctx); err != nil {
		return nil, err
	}
	slices.SortFunc(v.ranges, func(a, b base.RangeDescriptor) int { return bytes.Compare(a.Span.Start, b.Span.Start) })
	topics, err := s.routes.Topics(ctx)
	if err != nil {
		return nil, err
	}
	for _, t := range topics {
		v.topics[t.ID] = t
	}
	reply, err := s.routes.Admin(ctx, &placement.Request{Reports: true})
	if err != nil {
		return nil, err
	}
	v.reports = reply.Reports
	for i := range v.reports {
		v.hear(&v.reports[i])
	}
	return v, nil
}

// hear takes from a report which ranges the node orders. Two may claim one for a moment:
// the higher term is right.
func (v *view) hear(r *placement.Report) {
	if !r.Alive {
		return
	}
	for i := range r.Heartbeat.Replicas {
		rep := &r.Heartbeat.Replicas[i]
		if known, ok := v.orderer[rep.Range]; rep.Orderer && (!ok || rep.Term > known.term) {
			v.orderer[rep.Range] = ordered{node: r.Node.Node, term: rep.Term, bytes: rep.Bytes}
		}
	}
}

// target returns how many replicas the range's policy aims at.
func (v *view) target(d *base.RangeDescriptor) uint32 {
	return target(v.topics[d.Topic].Replicas, len(v.reports))
}

func (v *view) info(d *base.RangeDescriptor) *almanacv1.RangeInfo {
	o := v.orderer[d.Range]
	info := &almanacv1.RangeInfo{
		RangeId: uint64(d.Range), SpanEpoch: d.SpanEpoch, ConfigEpoch: d.ConfigEpoch, Protocol: d.Protocol.String(),
		Leader: uint64(o.node), Bytes: o.bytes, TargetReplicas: v.target(d),
	}
	for _, r := range d.Replicas {
		info.Replicas = append(info.Replicas, uint64(r.Node))
	}
	slices.Sort(info.Replicas)
	if d.Topic != 0 {
		t := v.topics[d.Topic]
		info.Topic = t.Name
		info.Start, info.End = partitionBound(d.Span.Start, &t, d.Topic), partitionBound(d.Span.End, &t, d.Topic)
		return info
	}
	info.Keyspace = keyspaceName(d.Keyspace)
	info.Start, info.End = keyBound(d.Span.Start, d.Keyspace), keyBound(d.Span.End, d.Keyspace)
	return info
}

func keyspaceName(id base.KeyspaceID) string {
	switch id {
	case base.DefaultKeyspace:
		return defaultKeyspace
	case base.SystemKeyspace:
		return systemKeyspace
	}
	return strconv.FormatUint(uint64(id), 10)
}

// partitionBound writes a bound of a topic's range; empty if it lies at or beyond the
// topic's end.
func partitionBound(bound []byte, t *placement.Topic, id base.TopicID) []byte {
	p, err := keys.DecodePartition(bound)
	if err != nil || p.Topic != id || (t.Partitions > 0 && uint32(p.Partition) >= t.Partitions) {
		return nil
	}
	return strconv.AppendUint(nil, uint64(p.Partition), 10)
}

// keyBound writes a bound of a keyspace's range as a user's key; empty if it lies
// outside of the keyspace.
func keyBound(bound []byte, ks base.KeyspaceID) []byte {
	in, key, err := keys.DecodeUser(bound)
	if err != nil || in != ks {
		return nil
	}
	return key
}

// nodeStatus describes a node's process.
func nodeStatus(n Node) *almanacv1.NodeStatus {
	if n == nil {
		return &almanacv1.NodeStatus{Goroutines: uint32(runtime.NumGoroutine())}
	}
	st := n.Status()
	return &almanacv1.NodeStatus{
		NodeId: uint64(st.ID), Version: st.Version, UptimeMs: int64(st.Uptime / time.Millisecond),
		RssBytes: st.RSSBytes, HeapBytes: st.HeapBytes, DiskBytes: st.DiskBytes,
		Goroutines: uint32(runtime.NumGoroutine()),
	}
}
