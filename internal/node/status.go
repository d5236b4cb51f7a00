package node

import (
	"bytes"
	"context"
	"os"
	"runtime"
	"runtime/metrics"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/almanacdb/almanac/internal/base"
	gateway "github.com/almanacdb/almanac/internal/gateway/almanac"
	"github.com/almanacdb/almanac/internal/gateway/etcd"
	"github.com/almanacdb/almanac/internal/keys"
	"github.com/almanacdb/almanac/internal/placement"
	"github.com/almanacdb/almanac/internal/wire"
)

// report is this node's heartbeat: always in full, ranges are few.
func (r *running) report() *wire.Heartbeat {
	h := &wire.Heartbeat{Node: r.node.descriptor(), Full: true}
	h.Capacity = r.capacity()
	if st, on := r.store.Rebuilding(); on {
		h.Rebuilding = st.String()
	}
	for _, v := range r.store.Replicas() {
		h.Replicas = append(h.Replicas, wire.ReplicaStatus{
			Range: v.Descriptor.Range, Replica: v.Replica, Orderer: v.Serving, Leader: leaderReplica(v.Descriptor, v.Leader),
			Term: v.Term, Applied: v.Applied.Index, Commit: v.Commit, Last: v.Last, Bytes: r.rangeBytes(v.Descriptor),
			ConfigEpoch: v.Descriptor.ConfigEpoch, SpanEpoch: v.Descriptor.SpanEpoch,
		})
	}
	return h
}

func (r *running) capacity() wire.Capacity {
	c := wire.Capacity{MemoryLimit: uint64(r.node.opts.Memory), CPUs: uint32(runtime.NumCPU())}
	c.DiskTotal, c.DiskFree = r.node.disk()
	return c
}

// watchDisk tells the store what its disk has left until ctx ends: often enough that a
// reserve is not used up between two looks.
func (r *running) watchDisk(ctx context.Context) {
	t := time.NewTicker(100 * time.Millisecond)
	defer t.Stop()
	for {
		r.store.SetDisk(r.capacity())
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

// disk returns the size of the file system that holds the data directory, and what is
// free on it; zeros if that can't be told.
func (n *Node) disk() (size, free uint64) {
	var fs unix.Statfs_t
	if unix.Statfs(n.dir.Path(), &fs) != nil {
		return 0, 0
	}
	return fs.Blocks * uint64(fs.Bsize), fs.Bavail * uint64(fs.Bsize)
}

func leaderReplica(d *base.RangeDescriptor, n base.NodeID) base.ReplicaID {
	rep, _ := d.ReplicaOn(n)
	return rep.Replica
}

// rangeBytes estimates what a range's state takes on disk.
func (r *running) rangeBytes(d *base.RangeDescriptor) uint64 {
	var total uint64
	for _, f := range keys.SpanFamilies {
		lower, upper := keys.FamilySpan(f, d.Span)
		if n, err := r.node.states.DiskUsage(lower, upper); err == nil {
			total += n
		}
	}
	return total
}

// remember keeps how to reach the other nodes, for after a restart.
func (r *running) remember(nodes []base.NodeDescriptor) error {
	id := r.node.identity()
	if slices.Equal(id.Known, nodes) {
		return nil
	}
	next := id.clone()
	next.Known = nodes
	return r.node.adopt(next)
}

// rssBytes returns the process's resident memory; 0 if unknown.
func rssBytes() uint64 {
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	f := bytes.Fields(b)
	if len(f) < 2 {
		return 0
	}
	pages, _ := strconv.ParseUint(string(f[1]), 10, 64)
	return pages * uint64(os.Getpagesize())
}

func heapBytes() uint64 {
	s := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}

// etcdNode tells the etcd face about this node.
type etcdNode struct{ *running }

// ClusterID implements etcd.Node.
func (n etcdNode) ClusterID() base.ClusterID { return n.node.identity().Bootstrap.Cluster }

// NodeID implements etcd.Node.
func (n etcdNode) NodeID() base.NodeID { return n.store.Node() }

// Term implements etcd.Node.
func (n etcdNode) Term() uint64 {
	if v := n.store.Replica(base.DefaultRange); v != nil {
		return v.Term
	}
	return 0
}

// Status implements etcd.Node.
func (n etcdNode) Status(ctx context.Context) (etcd.Status, error) {
	s := etcd.Status{Version: n.node.opts.Version}
	v := n.store.Replica(base.DefaultRange)
	if v == nil {
		return s, nil
	}
	s.Leader, s.Applied, s.Revision = v.Leader, v.Applied.Index, v.LastStamp
	s.DiskFull = n.store.DiskScarce() != nil
	s.Commit = base.LogMark{Index: v.Commit, Term: v.Term}
	// etcdctl divides by it, so it is never 0: a record at least is there.
	s.Bytes = int64(max(n.rangeBytes(v.Descriptor), 1))
	return s, nil
}

// Members implements etcd.Node.
func (n etcdNode) Members(ctx context.Context, linearizable bool) ([]base.NodeDescriptor, error) {
	if !linearizable {
		if known := n.node.identity().Known; len(known) > 0 {
			return known, nil
		}
	}
	reply, err := n.router.Admin(ctx, &placement.Request{Reports: true})
	if err != nil {
		return nil, err
	}
	var list []base.NodeDescriptor
	for _, rep := range reply.Reports {
		list = append(list, rep.Node)
	}
	return list, nil
}

// nodeInfo tells the public API about this node.
type nodeInfo struct{ *running }

// Status implements the gateway's Node.
func (n nodeInfo) Status() gateway.NodeStatus {
	s := gateway.NodeStatus{
		ID: n.store.Node(), Version: n.node.opts.Version, Uptime: time.Since(n.node.started),
		RSSBytes: rssBytes(), HeapBytes: heapBytes(),
	}
	if st, on := n.store.Rebuilding(); on {
		s.Rebuilding = st.String()
	}
	for _, v := range n.store.Replicas() {
		s.DiskBytes += n.rangeBytes(v.Descriptor)
	}
	return s
}

// ClientAddress implements the gateway's Node.
func (n nodeInfo) ClientAddress(id base.NodeID) string { return n.directory.client(id) }

// OracleNode implements the gateway's Node.
func (n nodeInfo) OracleNode() base.NodeID {
	if v := n.store.Replica(base.SystemRange); v != nil {
		return v.Leader
	}
	return 0
}
