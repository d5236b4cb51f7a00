package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/almanacdb/almanac/client"
	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/datadir"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/placement"
	"github.com/almanacdb/almanac/internal/replica"
)

// three forms a cluster of three nodes, whose client addresses stay when they restart.
func three(t *testing.T) ([]Options, []*Node) {
	t.Helper()
	options := joined(t, 3)
	for i, addr := range freeAddresses(t, 3) {
		options[i].Listen = addr
	}
	nodes := startAll(t, options)
	if _, _, err := nodes[0].Init(within(t, 20*time.Second)); err != nil {
		t.Fatal(err)
	}
	members(t, nodes)
	return options, nodes
}

// damage changes a byte in the middle of the newest file that matches.
func damage(t *testing.T, dir, pattern string) {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil || len(list) == 0 {
		t.Fatalf("no file %s: %v", pattern, err)
	}
	path := slices.Max(list)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[len(bytes.TrimRight(b, "\x00"))/2] ^= 0x10
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// crash stops a node and puts its directory back as a power cut would have left it.
func crash(t *testing.T, n *Node, dir string) {
	t.Helper()
	image := t.TempDir()
	if err := os.CopyFS(image, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	stop(n)
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(dir, os.DirFS(image)); err != nil {
		t.Fatal(err)
	}
}

// whole waits until a node has all its replicas back.
func whole(t *testing.T, n *Node) {
	t.Helper()
	eventually(t, "the node is whole", func(context.Context) error {
		r := n.running()
		if r == nil {
			return errors.New("not a member")
		}
		if st, on := r.store.Rebuilding(); on {
			return errors.New(st.String())
		}
		return nil
	})
}

// localValue reads a key from a node's own replica.
func localValue(t *testing.T, n *Node, key string) string {
	t.Helper()
	kv, err := connect(t, n).KV.Get(within(t, 20*time.Second), []byte(key), client.Local())
	if err != nil {
		t.Fatal(err)
	}
	if kv == nil {
		return ""
	}
	return string(kv.Value)
}

func aside(t *testing.T, dir string) []string {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(dir, "*.damaged-*"))
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// A node with a damaged store starts, sets both stores aside, and comes back from the
// others as the node that it was.
func TestDamagedNodeIsRebuiltAtStart(t *testing.T) {
	options, nodes := three(t)
	c := connect(t, nodes...)

	if _, err := c.Events.CreateTopic(within(t, 20*time.Second), "t", client.TopicOptions{Partitions: 4}); err != nil {
		t.Fatal(err)
	}
	nodesEnd := t // whose end stops the nodes
	for round, pattern := range []string{"log/*.log", "state/MANIFEST-*", "log/MANIFEST-*"} {
		t.Run(pattern, func(t *testing.T) {
			for i := range 20 {
				put(t, c, fmt.Sprintf("%d-%d", round, i), strings.Repeat("x", 300))
			}
			n := nodes[round]
			id := n.identity()
			crash(t, n, options[round].DataDir)
			put(t, c, fmt.Sprint("without", round), "1")
			damage(t, options[round].DataDir, pattern)
			n = start(nodesEnd, options[round])
			nodes[round] = n
			whole(t, n)
			if got := n.identity(); got.Node != id.Node || got.Bootstrap.Cluster != id.Bootstrap.Cluster {
				t.Errorf("it is node %d of %v, and was %d of %v", got.Node, got.Bootstrap.Cluster, id.Node, id.Bootstrap.Cluster)
			}
			if list := aside(t, options[round].DataDir); len(list) != 2 {
				t.Errorf("set aside: %v", list)
			}
			if v := localValue(t, n, fmt.Sprint("without", round)); v != "1" {
				t.Errorf("it reads %q", v)
			}
			if held := len(n.running().store.Replicas()); held < 3 {
				t.Errorf("it holds %d replicas", held)
			}
			// It counts: with another away, writes go on.
			other := (round + 1) % 3
			stop(nodes[other])
			put(t, c, fmt.Sprint("majority", round), "1")
			nodes[other] = start(nodesEnd, options[other])
			// A restart finds its stores whole.
			stop(n)
			nodes[round] = start(nodesEnd, options[round])
			if _, on := nodes[round].running().store.Rebuilding(); on {
				t.Error("it rebuilds again")
			}
			wantValue(t, connect(t, nodes[round]), fmt.Sprint("majority", round), "1")
		})
	}
}

// While it is rebuilt a node says so, and requests through it are answered by others.
func TestNodeThatRebuildsSaysSo(t *testing.T) {
	options, nodes := three(t)
	c := connect(t, nodes...)
	put(t, c, "a", "1")
	eventually(t, "node 3 follows", func(context.Context) error {
		if v := nodes[2].running().store.Replica(base.DefaultRange); v.Leader == 0 || v.Orderer {
			return errors.New("not yet")
		}
		return nil
	})
	stop(nodes[2])
	if err := nodes[2].dir.MarkDamaged("the test says so", time.Now()); err != nil {
		t.Fatal(err)
	}
	stop(nodes[1]) // it can't get on without
	n := start(t, options[2])
	eventually(t, "it says why it waits", func(ctx context.Context) error {
		if st, on := n.running().store.Rebuilding(); !on || !strings.Contains(st.String(), "0 of 2 ranges are back; range 1: node 2") {
			return errors.New(st.String())
		}
		return nil
	})
	resp, err := http.Get("http://" + n.ports.http.Addr().String() + "/readyz")
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	http.DefaultClient.CloseIdleConnections()
	if resp.StatusCode != http.StatusServiceUnavailable || !strings.Contains(string(body), "rebuilding the replicas from other nodes: 0 of 2 ranges are back") {
		t.Errorf("ready: %d %s", resp.StatusCode, body)
	}
	st, err := connect(t, n).Cluster.Status(within(t, 20*time.Second))
	if err != nil || !strings.Contains(strings.Join(st.GetProblems(), "\n"), "the stores of node 3 were damaged; it gets its replicas back from other nodes: 0 of 2") {
		t.Errorf("status: %v, %v", st.GetProblems(), err)
	}
	nodes[1] = start(t, options[1])
	whole(t, n)
	wantValue(t, connect(t, n), "a", "1")
	if v := localValue(t, n, "a"); v != "1" {
		t.Errorf("it reads %q", v)
	}
}

// Damage that shows at run time ends the node; its next start repairs it.
func TestDamageAtRunTimeIsRepairedByTheNextStart(t *testing.T) {
	options, nodes := three(t)
	c := connect(t, nodes...)
	put(t, c, "a", "1")
	nodes[1].damaged("state", fault.New(fault.Corrupt, "file 000007.sst is damaged"))
	err := <-nodes[1].Failed()
	if f := wantFault(t, err, fault.Corrupt); !strings.Contains(f.Error(), "the state store is damaged: file 000007.sst is damaged") {
		t.Errorf("it stops because of %v", err)
	}
	stop(nodes[1])
	put(t, c, "a", "2")
	n := start(t, options[1])
	whole(t, n)
	if v := localValue(t, n, "a"); v != "2" {
		t.Errorf("it reads %q", v)
	}
}

// A log that lost its end looks like a whole one. The leader that counts on what was there
// tells, and the node is repaired.
func TestLostEndOfALogIsRepaired(t *testing.T) {
	options, nodes := three(t)
	c := connect(t, nodes...)
	put(t, c, "a", "1")
	follower := -1
	eventually(t, "a node leads nothing", func(context.Context) error {
		follower = slices.IndexFunc(nodes, func(n *Node) bool {
			return !slices.ContainsFunc(n.running().store.Replicas(), func(v *replica.Visible) bool { return v.Orderer || v.Leader == 0 })
		})
		if follower < 0 {
			return errors.New("not yet")
		}
		return nil
	})
	for i := range 20 {
		put(t, c, fmt.Sprint(i), strings.Repeat("x", 300))
	}
	dir := options[follower].DataDir
	eventually(t, "it holds them", func(context.Context) error {
		if v := localValue(t, nodes[follower], "19"); v == "" {
			return errors.New("not yet")
		}
		return nil
	})
	crash(t, nodes[follower], dir)
	logs, err := filepath.Glob(filepath.Join(dir, "log", "*.log"))
	if err != nil || len(logs) == 0 {
		t.Fatal(logs, err)
	}
	b, err := os.ReadFile(slices.Max(logs))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(slices.Max(logs), int64(len(bytes.TrimRight(b, "\x00"))/2)); err != nil {
		t.Fatal(err)
	}
	n := start(t, options[follower])
	select {
	case err = <-n.Failed():
	case <-within(t, 20*time.Second).Done():
		t.Fatal("the node goes on")
	}
	if f := wantFault(t, err, fault.Corrupt); !strings.Contains(f.Error(), "the log's end is lost") || !strings.Contains(f.Error(), filepath.Join(dir, "log")) {
		t.Errorf("it stops because of %v", err)
	}
	stop(n)
	n = start(t, options[follower])
	whole(t, n)
	if len(aside(t, dir)) != 2 {
		t.Error("its stores are not set aside")
	}
	if v := localValue(t, n, "19"); v == "" {
		t.Error("it does not hold what was written")
	}
}

// What can be repaired depends on how many nodes there are, and on whether this one was
// alone once: then its ranges have one replica still.
func TestRepairable(t *testing.T) {
	nodes := func(n int) (list []base.NodeDescriptor) {
		for i := range n {
			list = append(list, base.NodeDescriptor{Node: base.NodeID(i + 1), Peer: fmt.Sprint("peer", i+1)})
		}
		return list
	}
	for _, tt := range []struct {
		founders, known int
		node            base.NodeID
		why             string
	}{
		{1, 1, 1, "with 1 nodes"},
		{2, 2, 2, "with 2 nodes"},
		{3, 0, 1, ""},
		{3, 3, 3, ""},
		{5, 5, 5, ""},
		{1, 3, 1, "only replica of range 1"},
		{2, 4, 2, ""}, // of topics made since
	} {
		d, err := datadir.Open(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		b, err := newBootstrap(nodes(tt.founders))
		if err != nil {
			t.Fatal(err)
		}
		id := &identity{Node: tt.node, Bootstrap: b, Known: nodes(tt.known)}
		if err := d.SaveIdentity(placement.Encode(id)); err != nil {
			t.Fatal(err)
		}
		err = (&Node{dir: d}).repairable(fault.New(fault.Corrupt, "file 7 is damaged"))
		switch {
		case tt.why == "" && err != nil:
			t.Errorf("node %d of %d, %d now: %v", tt.node, tt.founders, tt.known, err)
		case tt.why != "":
			if f := wantFault(t, err, fault.Corrupt); !strings.Contains(f.Error(), tt.why) || !strings.Contains(f.Error(), "file 7") {
				t.Errorf("node %d of %d, %d now: %v", tt.node, tt.founders, tt.known, err)
			}
		}
	}
	d, err := datadir.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := (&Node{dir: d}).repairable(fault.New(fault.Corrupt, "file 7 is damaged")); fault.KindOf(err) != fault.Corrupt {
		t.Errorf("a node that nobody knows: %v", err)
	}
}

// With nobody to repair it from, a damaged node does not start, and touches nothing.
func TestLoneNodeIsNotRepaired(t *testing.T) {
	o := testOptions(t.TempDir())
	n := start(t, o)
	c := connect(t, n)
	for i := range 20 {
		put(t, c, fmt.Sprint(i), strings.Repeat("x", 300))
	}
	crash(t, n, o.DataDir)
	damage(t, o.DataDir, "log/*.log")
	n, err := Start(o)
	if err == nil {
		stop(n)
	}
	f := wantFault(t, err, fault.Corrupt)
	if !strings.Contains(f.Error(), "with 1 nodes there is one replica") || !strings.Contains(f.Error(), "log") || !strings.Contains(f.Remedy, "from a copy") {
		t.Errorf("error %v; %s", f, f.Remedy)
	}
	if list := aside(t, o.DataDir); len(list) > 0 {
		t.Errorf("set aside: %v", list)
	}
}
