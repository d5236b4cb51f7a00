package e2e

import (
	"context"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/almanacdb/almanac/client"
	"github.com/almanacdb/almanac/internal/localcluster"
	"github.com/almanacdb/almanac/internal/proctest"
)

// put writes a key that nothing else writes, through any node, within the time that an
// election takes. A write whose outcome is unknown, because the node that had it was
// killed, is made again.
func (c *cluster) put(key, value string) {
	c.t.Helper()
	ctx := proctest.Within(c.t, 20*time.Second)
	for {
		_, err := c.Client.KV.Put(ctx, []byte(key), []byte(value))
		if err == nil {
			return
		}
		if client.ReasonOf(err) != client.ReasonUnknownOutcome {
			c.t.Fatalf("put %s: %v", key, err)
		}
		c.t.Logf("put %s: %v", key, err)
	}
}

// has wants a key's value from each of the nodes.
func (c *cluster) has(key, value string, nodes ...*localcluster.Node) {
	c.t.Helper()
	for _, n := range nodes {
		cl := c.NewClient(client.Options{Endpoints: []string{n.Address}})
		kv, err := cl.KV.Get(proctest.Within(c.t, 20*time.Second), []byte(key))
		if err != nil || kv == nil || string(kv.Value) != value {
			c.t.Errorf("node %d: %s is %v (%v), want %q", n.Index, key, kv, err, value)
		}
		_ = cl.Close()
	}
}

// TestRestartInAnyOrder: two nodes serve, whichever they are and however they ended;
// the third comes when it comes.
func TestRestartInAnyOrder(t *testing.T) {
	c := start(t, 3)
	c.put("round", "0")
	for round, order := range [][3]int{{0, 1, 2}, {2, 0, 1}, {1, 2, 0}} {
		how := "SIGTERM"
		if round%2 == 1 {
			how = "kill -9"
			c.KillAll()
		} else {
			c.StopAll(proctest.Within(t, 20*time.Second))
		}
		for _, n := range c.Nodes {
			if n.Running() || n.Answers() {
				t.Fatalf("node %d still runs", n.Index)
			}
		}
		first, second, third := c.Nodes[order[0]], c.Nodes[order[1]], c.Nodes[order[2]]
		c.Restart(first)
		c.Answering(first)
		ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
		alone := c.NewClient(client.Options{Endpoints: []string{first.Address}})
		if _, err := alone.KV.Put(ctx, []byte("alone"), nil); client.ReasonOf(err) != client.ReasonDeadline {
			t.Errorf("a write with one of three nodes: %v", err)
		}
		cancel()
		began := time.Now()
		c.Restart(second)
		c.put("two", fmt.Sprint(round))
		took := time.Since(began)
		c.has("round", fmt.Sprint(round), first, second)
		c.Restart(third)
		c.Well(3)
		c.has("two", fmt.Sprint(round), third)
		c.put("round", fmt.Sprint(round+1))
		t.Logf("all stopped by %s, started in order %d, %d, %d: first write %v after the second node's start",
			how, first.Index, second.Index, third.Index, took.Round(time.Millisecond))
	}
}

// TestSingleNode: one node is a cluster by itself, and comes back by itself.
func TestSingleNode(t *testing.T) {
	c := start(t, 1)
	n := c.Nodes[0]
	c.put("a", "1")
	if _, err := c.Client.Events.CreateTopic(proctest.Within(t, 10*time.Second), eventTopic, client.TopicOptions{}); err != nil {
		t.Fatal(err)
	}
	ctx := proctest.Within(t, 30*time.Second)
	published, err := c.Client.Events.Publish(ctx, eventTopic, client.NewEvent{MessageID: "later", Delay: 4 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("SIGTERM took %v", c.Terminate(n).Round(time.Millisecond))
	began := time.Now()
	c.Restart(n)
	c.put("b", "2")
	t.Logf("first write %v after the restart", time.Since(began).Round(time.Millisecond))
	c.Kill(n, "the only one")
	began = time.Now()
	c.Restart(n)
	c.put("c", "3")
	t.Logf("first write %v after the restart", time.Since(began).Round(time.Millisecond))
	for key, value := range map[string]string{"a": "1", "b": "2", "c": "3"} {
		c.has(key, value, n)
	}
	sub, err := c.Client.Events.Subscribe(ctx, client.SubscribeOptions{Topic: eventTopic, Group: "g"})
	if err != nil {
		t.Fatal(err)
	}
	e, err := sub.Next(ctx)
	if err != nil || e.Position != published[0].Position || e.Lateness() < 0 {
		t.Fatalf("got %+v, %v", e, err)
	}
	if err := sub.Ack(e); err != nil {
		t.Fatal(err)
	}
	if err := sub.Close(ctx); err != nil {
		t.Fatal(err)
	}
	// A cluster of one has nobody to hand over to, and --join means nothing to it.
	c.Terminate(n)
	c.runWithJoin(n, "127.0.0.1:1")
}

// runWithJoin runs a node that has data with another --join, and wants its data.
func (c *cluster) runWithJoin(n *localcluster.Node, join string) {
	c.t.Helper()
	cmd := exec.Command(binary, "start", "--data-dir", n.Dir, "--listen", n.Address, "--peer", n.Peer, "--http", n.HTTP,
		"--memory", "512MiB", "--join", join)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	c.has("a", "1", n)
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		c.t.Error(err)
	}
	if err := cmd.Wait(); err != nil {
		c.t.Errorf("after SIGTERM: %v", err)
	}
}

// TestFormation: init, asked of all nodes at once and again, while one is missing; and
// nodes that come later.
func TestFormation(t *testing.T) {
	c := layOut(t, 3)
	sorted := slices.Clone(c.Nodes)
	slices.SortFunc(sorted, func(a, b *localcluster.Node) int { return strings.Compare(a.Peer, b.Peer) })
	late := sorted[2]
	here := []*localcluster.Node{sorted[0], sorted[1]}
	c.Restart(here[1]) // the one that does not decide
	c.Answering(here[1])
	a := run(t, 30*time.Second, "", binary, "--endpoints", here[1].Address, "--request-timeout", "3s", "init")
	if a.code == 0 {
		t.Fatalf("init with one of three nodes: %+v", a)
	}
	t.Logf("init with one of three nodes: exit %d after %v: %s", a.code, a.took.Round(time.Millisecond), a.err)
	if a := run(t, 30*time.Second, "", binary, "--endpoints", here[1].Address, "--request-timeout", "3s", "kv", "get", "k"); a.code == 0 {
		t.Errorf("a node without a cluster answers a read: %+v", a)
	}
	c.Restart(here[0])
	c.Answering(here...)
	ids := c.initAll(here)
	c.Well(2)
	c.put("before", "1")
	c.has("before", "1", here...)

	c.Restart(late)
	c.Well(3)
	proctest.Until(t, 20*time.Second, "the late node's replicas", func(ctx context.Context) string {
		nodes, err := c.Client.Cluster.Nodes(ctx)
		if err != nil {
			return err.Error()
		}
		for _, n := range nodes {
			if n.GetAddress() == late.Address && n.GetReplicas() == 2 {
				return ""
			}
		}
		return fmt.Sprint(nodes)
	})
	c.has("before", "1", late)
	c.Kill(here[0], "so that the late one is needed") // a majority is the late one and another
	c.put("after", "2")
	c.Restart(here[0])
	c.Well(3)
	again := c.initAll(c.Nodes)
	if again != ids {
		t.Errorf("init again: cluster %s, was %s", again, ids)
	}
	c.fourth(ids)
}

// initAll asks all the nodes at once, several times each, and returns the one cluster
// that they speak of.
func (c *cluster) initAll(nodes []*localcluster.Node) string {
	c.t.Helper()
	ctx := proctest.Within(c.t, 30*time.Second)
	var all sync.WaitGroup
	var mu sync.Mutex
	seen := map[string]int{}
	for _, n := range nodes {
		for range 3 {
			cl := c.NewClient(client.Options{Endpoints: []string{n.Address}})
			all.Add(1)
			go func() {
				defer all.Done()
				r, err := cl.Cluster.Init(ctx)
				if err != nil {
					c.t.Errorf("init at node %d: %v", n.Index, err)
				}
				mu.Lock()
				seen[r.GetClusterId()]++
				mu.Unlock()
			}()
		}
	}
	all.Wait()
	if len(seen) != 1 {
		c.t.Fatalf("init answered with clusters %v", seen)
	}
	for id := range seen {
		return id
	}
	return ""
}

// fourth adds a node to the cluster of three.
func (c *cluster) fourth(cluster string) {
	c.t.Helper()
	n, err := c.Add()
	if err != nil {
		c.t.Fatal(err)
	}
	c.Restart(n)
	c.Well(4)
	c.has("before", "1", n)
	c.has("after", "2", n)
	one := c.NewClient(client.Options{Endpoints: []string{n.Address}})
	s, err := one.Cluster.Status(proctest.Within(c.t, 10*time.Second))
	if err != nil || s.GetClusterId() != cluster || s.GetNode().GetNodeId() != 4 {
		c.t.Errorf("the fourth node's status: %v, %v", s, err)
	}
	if r, err := one.Cluster.Init(proctest.Within(c.t, 10*time.Second)); err != nil || r.GetClusterId() != cluster {
		c.t.Errorf("init at the fourth node: %v, %v", r, err)
	}
	if _, err := one.KV.Put(proctest.Within(c.t, 10*time.Second), []byte("through four"), []byte("4")); err != nil {
		c.t.Error(err)
	}
	if _, err := one.Events.CreateTopic(proctest.Within(c.t, 20*time.Second), "four", client.TopicOptions{Partitions: 4, Replicas: 4}); err != nil {
		c.t.Errorf("a topic with a replica on every node: %v", err)
	}
	c.Kill(n, "the fourth")
	c.has("through four", "4", c.Nodes[:3]...)
	c.Restart(n)
	c.Well(4)
	c.has("through four", "4", n)
}
