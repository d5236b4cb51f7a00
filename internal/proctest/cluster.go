package proctest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	almanacv1 "github.com/almanacdb/almanac/api/almanac/v1"
	"github.com/almanacdb/almanac/client"
	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/localcluster"
)

// Cluster is a cluster of processes and a client of all its nodes.
type Cluster struct {
	*localcluster.Cluster
	Client *client.Client
	t      *testing.T
}

// LayOut prepares a cluster; none of its nodes runs yet. When the test ends they are
// killed, and the ends of their logs shown if it failed.
func LayOut(t *testing.T, o localcluster.Options) *Cluster {
	t.Helper()
	lc, err := localcluster.New(o)
	if err != nil {
		t.Fatal(err)
	}
	c := &Cluster{Cluster: lc, t: t}
	t.Cleanup(func() {
		if t.Failed() {
			for _, n := range lc.Nodes {
				t.Logf("--- end of node %d's log ---\n%s", n.Index, n.LogTail(4000))
			}
		}
		lc.KillAll()
	})
	c.Client = c.NewClient(client.Options{})
	return c
}

// NewClient returns a client; of all nodes, unless the options say otherwise.
func (c *Cluster) NewClient(o client.Options) *client.Client {
	c.t.Helper()
	if o.Endpoints == nil {
		o.Endpoints = strings.Split(c.Endpoints(), ",")
	}
	cl, err := client.Open(c.t.Context(), o)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = cl.Close() })
	return cl
}

// Form runs all nodes, makes them a cluster and waits until it is well.
func (c *Cluster) Form() {
	c.t.Helper()
	if err := c.StartAll(); err != nil {
		c.t.Fatal(err)
	}
	c.Answering(c.Nodes...)
	if len(c.Nodes) > 1 {
		if _, err := c.Client.Cluster.Init(Within(c.t, 20*time.Second)); err != nil {
			c.t.Fatalf("init: %v", err)
		}
	}
	c.Well(len(c.Nodes))
}

// Answering waits until nodes accept connections.
func (c *Cluster) Answering(nodes ...*localcluster.Node) {
	c.t.Helper()
	Until(c.t, 20*time.Second, "nodes to answer", func(context.Context) string {
		for _, n := range nodes {
			if !n.Running() {
				c.t.Fatalf("node %d ended: %s", n.Index, n.LogTail(2000))
			}
			if !n.Answers() {
				return fmt.Sprintf("node %d does not answer", n.Index)
			}
		}
		return ""
	})
}

// Well waits until so many nodes are alive and every range has a leader and its
// replicas.
func (c *Cluster) Well(alive int) {
	c.t.Helper()
	Until(c.t, 30*time.Second, "the cluster to be well", func(ctx context.Context) string {
		ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
		defer cancel()
		s, err := c.Client.Cluster.Status(ctx)
		if err != nil {
			return err.Error()
		}
		if int(s.GetNodesAlive()) != alive || s.GetRangesWithoutLeader() > 0 || s.GetRanges() < 2 ||
			s.GetOracle() != almanacv1.OracleState_ORACLE_STATE_READY {
			return fmt.Sprintf("%d nodes alive, %d of %d ranges without leader, oracle %v, %v", s.GetNodesAlive(),
				s.GetRangesWithoutLeader(), s.GetRanges(), s.GetOracle(), s.GetProblems())
		}
		return ""
	})
}

// Leader waits until a range has a leader that runs, and returns its node.
func (c *Cluster) Leader(r base.RangeID) (leader *localcluster.Node) {
	c.t.Helper()
	Until(c.t, 30*time.Second, fmt.Sprintf("a leader of range %d", r), func(ctx context.Context) string {
		ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
		defer cancel()
		nodes, err := c.Client.Cluster.Nodes(ctx)
		if err != nil {
			return err.Error()
		}
		ranges, err := c.Client.Cluster.Ranges(ctx, "", "")
		if err != nil {
			return err.Error()
		}
		for _, info := range ranges {
			for _, n := range nodes {
				if info.GetRangeId() != uint64(r) || n.GetNodeId() != info.GetLeader() {
					continue
				}
				if p := c.At(n.GetAddress()); p != nil && p.Running() {
					leader = p
					return ""
				}
			}
		}
		return "none known"
	})
	return leader
}

// At returns the node with a client address.
func (c *Cluster) At(address string) *localcluster.Node {
	for _, n := range c.Nodes {
		if n.Address == address {
			return n
		}
	}
	return nil
}

// Kill kills a node as kill -9 does, and proves that it is gone.
func (c *Cluster) Kill(n *localcluster.Node, why string) {
	c.t.Helper()
	pid := n.PID()
	n.Kill()
	err := syscall.Kill(pid, 0)
	if pid == 0 || n.Running() || n.Answers() || !errors.Is(err, syscall.ESRCH) {
		c.t.Fatalf("node %d, pid %d, lives on after kill -9 (%v)", n.Index, pid, err)
	}
	c.t.Logf("%s kill -9 of node %d (%s): pid %d is gone", Clock(), n.Index, why, pid)
}

// Terminate stops a node with SIGTERM and returns how long that took.
func (c *Cluster) Terminate(n *localcluster.Node) time.Duration {
	c.t.Helper()
	began := time.Now()
	if err := n.Stop(Within(c.t, 20*time.Second)); err != nil {
		c.t.Fatalf("node %d after SIGTERM: %v", n.Index, err)
	}
	return time.Since(began)
}

// Restart starts a node again.
func (c *Cluster) Restart(n *localcluster.Node) {
	c.t.Helper()
	if err := n.Start(); err != nil {
		c.t.Fatal(err)
	}
}
