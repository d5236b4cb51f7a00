//go:build linux && amd64

package chaos

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/almanacdb/almanac/client"
	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/localcluster"
	"github.com/almanacdb/almanac/internal/proctest"
)

const (
	topic         = "jobs"
	window        = 2 * time.Second  // healed, between two faults
	recovery      = 30 * time.Second // the most from the end of a fault to a cluster that is well
	minPerSecond  = 10               // operations on keys: over the run, and in each healed window
	minDeliveries = 5                // each second of a healed window
	mostUnknown   = 0.05             // of all operations on keys
)

// chaos is one run.
type chaos struct {
	*proctest.Cluster
	t      *testing.T
	net    *network
	rng    *rand.Rand
	keys   *keyLoad
	events *eventLoad
	alone  []proctest.Store // of each node, clients that know no other

	fired map[string]int // strokes with proof, by kind
}

// newChaos forms a cluster on a network of its own.
func newChaos(t *testing.T, n int) *chaos {
	t.Helper()
	needChaos(t)
	c := &chaos{t: t, net: newNetwork(t, n), rng: rand.New(rand.NewPCG(*seed, 0)), fired: make(map[string]int)}
	dir, err := os.MkdirTemp(work(), "nodes-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.keep(dir) })
	var hosts []string
	for i := range n {
		hosts = append(hosts, host(i+1))
	}
	c.Cluster = proctest.LayOut(t, localcluster.Options{Binary: binary(), Dir: dir, Nodes: n, Hosts: hosts, Memory: "256MiB", Args: []string{"--insecure"}})
	for _, node := range c.Nodes {
		plain := node.Command
		node.Command = func() (string, []string) {
			program, args := plain()
			in := c.net.within(node.Index, append([]string{program}, args...)...)
			return in[0], in[1:]
		}
	}
	c.Form()
	for _, node := range c.Nodes {
		c.alone = append(c.alone, proctest.Almanac{KV: c.NewClient(client.Options{Endpoints: []string{node.Address}}).KV})
	}
	return c
}

// keep saves what tells of a failure: the nodes' logs and data, and the histories.
func (c *chaos) keep(dir string) {
	if !c.t.Failed() {
		return
	}
	kept := c.kept()
	if err := os.CopyFS(filepath.Join(kept, "nodes"), os.DirFS(dir)); err != nil {
		c.t.Log(err)
	}
	if c.keys != nil {
		c.save(kept, "keys.json", c.keys.recorder.Keys())
	}
	if c.events != nil {
		c.save(kept, "events.json", c.events.recorder.Events())
	}
	c.t.Logf("histories, drawings, and the nodes' logs and data are kept in %s", kept)
}

// kept returns the directory for what tells of a failure of this run.
func (c *chaos) kept() string {
	dir := filepath.Join(os.TempDir(), "almanac-chaos-failures", fmt.Sprintf("%s-seed%d-%d", c.t.Name(), *seed, os.Getpid()))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		c.t.Log(err)
	}
	return dir
}

func (c *chaos) save(dir, name string, history any) {
	b, err := json.MarshalIndent(history, "", " ")
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, name), b, 0o644)
	}
	if err != nil {
		c.t.Log(err)
	}
}

func (c *chaos) pause(d time.Duration) { proctest.Pause(c.t.Context(), d) }

// others returns the numbers of all nodes but one.
func (c *chaos) others(n *localcluster.Node) []int {
	var list []int
	for _, m := range c.Nodes {
		if m != n {
			list = append(list, m.Index)
		}
	}
	return list
}

// victim finds who is in a role now.
func (c *chaos) victim(who role) *localcluster.Node {
	switch who {
	case oracle:
		return c.Leader(base.SystemRange)
	case orderer:
		return c.Leader(base.DefaultRange)
	case handsOut:
		ranges, err := c.Client.Cluster.Ranges(proctest.Within(c.t, 20*time.Second), "", topic)
		if err != nil || len(ranges) == 0 {
			c.t.Fatalf("%d ranges of the topic, %v", len(ranges), err)
		}
		return c.Leader(base.RangeID(ranges[c.rng.IntN(len(ranges))].GetRangeId()))
	}
	leaders := []*localcluster.Node{c.Leader(base.SystemRange), c.Leader(base.DefaultRange)}
	for _, i := range c.rng.Perm(len(c.Nodes)) {
		if !slices.Contains(leaders, c.Nodes[i]) {
			return c.Nodes[i]
		}
	}
	return c.Nodes[0]
}

// nodeID returns a node's id in its cluster.
func (c *chaos) nodeID(n *localcluster.Node) uint64 {
	list, err := c.Client.Cluster.Nodes(proctest.Within(c.t, 20*time.Second))
	if err != nil {
		c.t.Fatal(err)
	}
	for _, m := range list {
		if m.GetAddress() == n.Address {
			return m.GetNodeId()
		}
	}
	c.t.Fatalf("node %d is not among the cluster's nodes", n.Index)
	return 0
}

// begin starts the load: at each node a client of each API that knows no other node, and
// a reader, besides clients that know all, publishers and two members of each group.
//
// Stop ends the clients of keys and the publishers, leave the members.
func (c *chaos) begin() (stop, leave func()) {
	working, stopWork := context.WithCancel(c.t.Context())
	receiving, stopReceiving := context.WithCancel(c.t.Context())
	c.keys, c.events = newKeyLoad("chaos"), newEventLoad(c.t, c.Client, topic)
	all := strings.Split(c.Endpoints(), ",")
	var work, members sync.WaitGroup
	number := 0
	for _, endpoints := range append([][]string{all}, each(all)...) {
		for _, s := range []proctest.Store{
			proctest.Almanac{KV: c.NewClient(client.Options{Endpoints: endpoints}).KV},
			proctest.Etcd{KV: proctest.NewEtcdClient(c.t, endpoints...)},
		} {
			number++
			work.Go(func() { c.keys.work(working, s, number) })
		}
	}
	for i, s := range c.alone {
		work.Go(func() { c.keys.read(working, s, 100+i) })
	}
	for i := range 2 {
		turned := append(slices.Clone(all[i:]), all[:i]...)
		publisher := c.NewClient(client.Options{Endpoints: turned})
		work.Go(func() { c.events.publish(working, publisher, i) })
	}
	for g := range groups {
		for i := range 2 {
			member := c.NewClient(client.Options{Endpoints: append(slices.Clone(all[i+1:]), all[:i+1]...)})
			members.Go(func() { c.events.member(receiving, member, g, i) })
		}
	}
	stop = func() { stopWork(); work.Wait() }
	leave = func() { stopReceiving(); members.Wait() }
	c.t.Cleanup(func() { stop(); leave() })
	return stop, leave
}

func each(all []string) [][]string {
	var list [][]string
	for _, one := range all {
		list = append(list, []string{one})
	}
	return list
}

// TestChaos: invariants 1, 2, 3, 5 and 9 under all faults, in an order that comes from
// the seed, until the time is over and each kind of fault has fired.
func TestChaos(t *testing.T) {
	c := newChaos(t, *nodes)
	t.Logf("seed %d, %d nodes; the same schedule again: ALMANAC_CHAOS=1 go test ./internal/chaos -run TestChaos -v -timeout 0 -seed %d -nodes %d -duration %v",
		*seed, *nodes, *seed, *nodes, *duration)
	stop, leave := c.begin()
	began := time.Now()
	c.healed("before any fault")
	kinds := make(map[string]bool)
	enough := func() bool {
		return time.Since(began) > *duration && len(kinds) > 0 && len(c.fired) == len(kinds) || t.Failed()
	}
	for round := 1; !enough(); round++ {
		strokes := deck(c.rng, *duration > 5*time.Minute)
		for _, s := range strokes {
			kinds[s.kind] = true
		}
		for i, s := range strokes {
			if enough() {
				break
			}
			c.keys.generation.Add(int64(i % 2))
			c.suffer(fmt.Sprintf("%d.%d", round, i+1), s)
		}
	}
	took := time.Since(began)
	stop()
	proctest.Until(t, 90*time.Second, "every acknowledged event", c.events.owed)
	leave()
	c.judge(took)
}

// suffer makes one fault, then waits until the cluster is well and looks whether it works.
func (c *chaos) suffer(name string, s stroke) {
	c.t.Logf("%s %s %s", proctest.Clock(), name, s.text)
	before := c.keys.done.Load()
	proof, err := s.strike(c)
	if err != nil {
		c.t.Fatalf("%s: no proof that it fired: %v", s.text, err)
	}
	c.fired[s.kind]++
	healed := time.Now()
	c.t.Logf("%s      proof: %s; %d operations meanwhile", proctest.Clock(), proof, c.keys.done.Load()-before)
	c.Answering(c.Nodes...)
	c.Well(len(c.Nodes))
	c.serving()
	if took := time.Since(healed); took > recovery {
		c.t.Errorf("%v until the cluster was well again", took)
	} else {
		c.t.Logf("%s      well after %v", proctest.Clock(), took.Round(time.Millisecond))
	}
	c.healed("after " + s.text)
}

// serving waits until each node, asked alone, writes and reads.
func (c *chaos) serving() {
	c.t.Helper()
	for _, n := range c.Nodes {
		store, key := c.alone[n.Index-1], fmt.Sprintf("serving/%d", n.Index)
		value := time.Now().String()
		proctest.Until(c.t, recovery, fmt.Sprintf("node %d to serve", n.Index), func(ctx context.Context) string {
			ctx, cancel := context.WithTimeout(ctx, callTimeout)
			defer cancel()
			if err := store.Put(ctx, key, value); err != nil {
				return err.Error()
			}
			got, _, err := store.Get(ctx, key)
			if err != nil {
				return err.Error()
			}
			return missing(got == value, fmt.Sprintf("wrote %s, read %s", value, got))
		})
	}
}

// healed demands work for as long as nothing is wrong.
func (c *chaos) healed(when string) {
	c.t.Helper()
	keys, events := c.keys.done.Load(), c.events.delivered.Load()
	began := time.Now()
	c.pause(window)
	seconds := time.Since(began).Seconds()
	rate, delivered := float64(c.keys.done.Load()-keys)/seconds, float64(c.events.delivered.Load()-events)/seconds
	c.t.Logf("%s      healed: %.0f operations/s, %.0f deliveries/s", proctest.Clock(), rate, delivered)
	if rate < minPerSecond || delivered < minDeliveries {
		c.t.Errorf("%s: %.0f operations/s and %.0f deliveries/s in a healed window, want at least %d and %d",
			when, rate, delivered, minPerSecond, minDeliveries)
	}
}

// judge reads everything once more through each node, and holds the histories to the
// promises.
func (c *chaos) judge(took time.Duration) {
	for _, n := range c.Nodes {
		c.keys.readAll(c.t, c.alone[n.Index-1])
		c.keys.readAll(c.t, proctest.Etcd{KV: proctest.NewEtcdClient(c.t, n.Address)})
	}
	done, unsure := c.keys.done.Load(), c.keys.unsure.Load()
	rate, share := float64(done)/took.Seconds(), c.keys.unknownShare()
	c.t.Logf("%v, seed %d: faults with proof: %v", took.Round(time.Second), *seed, c.fired)
	c.t.Logf("keys: %d operations, %.0f/s; %d of unknown outcome (%.2f %%), %d refused or failed reads; failures: %s",
		done, rate, unsure, 100*share, c.keys.failed.Load(), c.keys.failures())
	c.t.Logf("events: %v", c.events)
	if rate < minPerSecond {
		c.t.Errorf("%.0f operations/s over the run, want at least %d", rate, minPerSecond)
	}
	if share > mostUnknown {
		c.t.Errorf("%.2f %% of the operations have an unknown outcome, want at most %.0f %%", 100*share, 100*mostUnknown)
	}
	began := time.Now()
	dir := c.kept()
	report, wrong := c.events.judge()
	wrong = append(wrong, c.keys.judge(dir)...)
	for i, w := range wrong {
		if i == 20 {
			c.t.Errorf("and %d more", len(wrong)-i)
			break
		}
		c.t.Error(w)
	}
	_ = os.Remove(dir) // goes if it is empty
	c.t.Logf("judged in %v: %d (event, group) pairs delivered, %d deliveries repeated, %d of them after the ack was acknowledged; %d violations",
		time.Since(began).Round(time.Millisecond), report.Delivered, report.Repeated, report.AfterAck, len(wrong))
}
