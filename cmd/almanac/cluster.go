package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	almanacv1 "github.com/almanacdb/almanac/api/almanac/v1"
	"github.com/almanacdb/almanac/client"
)

func newClusterCommand(a *app) *cobra.Command {
	cluster := &cobra.Command{Use: "cluster", Short: "Show the state of the cluster", Args: usageArgs(cobra.ArbitraryArgs), RunE: group}
	cluster.AddCommand(newClusterStatusCommand(a), newClusterNodesCommand(a), newClusterRangesCommand(a))
	return cluster
}

func newClusterStatusCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Say whether the cluster is well",
		Args:  usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(cmd.Context(), func(c *client.Client) error {
				s, err := c.Cluster.Status(cmd.Context())
				if err != nil {
					return err
				}
				return a.sheet(statusRecord(s))
			})
		},
	}
}

func statusRecord(s *almanacv1.StatusResponse) *record {
	r := &record{}
	r.str("cluster_id", s.GetClusterId())
	if s.GetClusterId() == "" {
		r.reads("none yet: run almanac init")
	}
	r.num("nodes_alive", int64(s.GetNodesAlive())).num("nodes_total", int64(s.GetNodesTotal()))
	r.num("ranges", int64(s.GetRanges()))
	r.num("ranges_below_target", int64(s.GetRangesBelowTarget()))
	r.num("ranges_without_leader", int64(s.GetRangesWithoutLeader()))
	r.str("oracle", oracleState(s.GetOracle())).node("oracle_node_id", s.GetOracleNodeId())
	r.revision("revision", s.GetRevision())
	n := s.GetNode()
	r.node("node_id", n.GetNodeId()).str("version", n.GetVersion())
	r.num("uptime_ms", n.GetUptimeMs())
	r.num("rss_bytes", int64(n.GetRssBytes())).reads(byteCount(n.GetRssBytes()))
	r.num("heap_bytes", int64(n.GetHeapBytes())).reads(byteCount(n.GetHeapBytes()))
	r.num("disk_bytes", int64(n.GetDiskBytes())).reads(byteCount(n.GetDiskBytes()))
	problems := make([]string, len(s.GetProblems()))
	for i, p := range s.GetProblems() {
		problems[i] = jsonString(p)
	}
	text := strings.Join(s.GetProblems(), "; ")
	if text == "" {
		text = "none"
	}
	return r.add("problems", text, member("problems", "["+strings.Join(problems, ",")+"]"))
}

func oracleState(s almanacv1.OracleState) string {
	switch s {
	case almanacv1.OracleState_ORACLE_STATE_READY:
		return "ready"
	case almanacv1.OracleState_ORACLE_STATE_WAITING:
		return "waiting"
	case almanacv1.OracleState_ORACLE_STATE_UNAVAILABLE:
		return "unavailable"
	}
	return "unknown"
}

func newClusterNodesCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "nodes",
		Short: "Show all nodes",
		Args:  usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(cmd.Context(), func(c *client.Client) error {
				nodes, err := c.Cluster.Nodes(cmd.Context())
				if err != nil {
					return err
				}
				records := make([]*record, len(nodes))
				for i, n := range nodes {
					r := &record{}
					r.num("node_id", int64(n.GetNodeId())).str("address", n.GetAddress()).str("peer", n.GetPeerAddress())
					r.flag("alive", n.GetAlive())
					r.num("leaders", int64(n.GetLeaders())).num("replicas", int64(n.GetReplicas()))
					records[i] = r.str("version", n.GetVersion())
				}
				return a.list(records)
			})
		},
	}
}

func newClusterRangesCommand(a *app) *cobra.Command {
	var keyspace, topic string
	cmd := &cobra.Command{
		Use:   "ranges",
		Short: "Show all ranges",
		Args:  usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(cmd.Context(), func(c *client.Client) error {
				ranges, err := c.Cluster.Ranges(cmd.Context(), keyspace, topic)
				if err != nil {
					return err
				}
				records := make([]*record, len(ranges))
				for i, g := range ranges {
					r := &record{}
					r.num("range_id", int64(g.GetRangeId())).str("keyspace", g.GetKeyspace()).str("topic", g.GetTopic())
					r.bytes("start", g.GetStart()).bytes("end", g.GetEnd())
					r.num("span_epoch", int64(g.GetSpanEpoch())).num("config_epoch", int64(g.GetConfigEpoch()))
					r.str("protocol", g.GetProtocol()).list("replicas", g.GetReplicas()).node("leader", g.GetLeader())
					records[i] = r.num("bytes", int64(g.GetBytes())).reads(byteCount(g.GetBytes()))
				}
				return a.list(records)
			})
		},
	}
	cmd.Flags().StringVar(&keyspace, "keyspace", "", "only ranges of this keyspace")
	cmd.Flags().StringVar(&topic, "topic", "", "only ranges of this topic")
	return cmd
}

// byteCount writes a size for people.
func byteCount(n uint64) string {
	if n < 1<<10 {
		return fmt.Sprintf("%d B", n)
	}
	size, unit := float64(n)/(1<<10), 0
	for size >= 1<<10 && unit < 3 {
		size /= 1 << 10
		unit++
	}
	return fmt.Sprintf("%.1f %s", size, [...]string{"KiB", "MiB", "GiB", "TiB"}[unit])
}
