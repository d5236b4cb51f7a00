package placement

import (
	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/keys"
)

// Bootstrap is what a cluster is formed with. Every founding node keeps it, so that
// the first ranges can be created anywhere from it alone.
type Bootstrap struct {
	Cluster base.ClusterID        `json:"cluster"`
	Nodes   []base.NodeDescriptor `json:"nodes"` // by node id, from 1
}

// Check says whether a cluster can be formed with b; it may come from the network.
func (b *Bootstrap) Check() error {
	sound := !b.Cluster.IsZero() && len(b.Nodes) > 0
	for i, n := range b.Nodes {
		sound = sound && n.Node == base.NodeID(i+1) && n.Peer != ""
	}
	if !sound {
		return fault.New(fault.Invalid, "what a cluster is to be formed with names no cluster, or its nodes are not numbered from 1").
			WithRemedy("run the same release on all nodes")
	}
	return nil
}

// DefaultReplicas is the number of replicas that a policy without a number aims at: 1
// below three nodes, 3 from three on (R6).
func DefaultReplicas(nodes int) int {
	if nodes < 3 {
		return 1
	}
	return 3
}

// Ranges returns the first ranges: the system range, and one for the default keyspace,
// led by different nodes where there are several.
func (b *Bootstrap) Ranges() []base.RangeDescriptor {
	ids := make([]base.NodeID, len(b.Nodes))
	for i, n := range b.Nodes {
		ids[i] = n.Node
	}
	n := DefaultReplicas(len(ids))
	return []base.RangeDescriptor{
		newRange(base.SystemRange, keys.KeyspaceSpan(base.SystemKeyspace), base.SystemKeyspace, 0, pick(ids[:n], 0, n)),
		newRange(base.DefaultRange, keys.KeyspaceSpan(base.DefaultKeyspace), base.DefaultKeyspace, 0, pick(ids[:n], 1, n)),
	}
}

// pick returns n nodes, going round from the first-th.
func pick(nodes []base.NodeID, first, n int) []base.NodeID {
	picked := make([]base.NodeID, n)
	for i := range picked {
		picked[i] = nodes[(first+i)%len(nodes)]
	}
	return picked
}

func newRange(id base.RangeID, span base.Span, ks base.KeyspaceID, t base.TopicID, nodes []base.NodeID) base.RangeDescriptor {
	d := base.RangeDescriptor{
		Range: id, Span: span, SpanEpoch: 1, ConfigEpoch: 1, Protocol: base.ProtocolRaft, Keyspace: ks, Topic: t,
	}
	for i, n := range nodes {
		d.Replicas = append(d.Replicas, base.ReplicaDescriptor{Node: n, Replica: base.ReplicaID(i + 1), Role: base.RoleVoter})
	}
	return d
}
