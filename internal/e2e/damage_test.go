package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/almanacdb/almanac/client"
	"github.com/almanacdb/almanac/internal/localcluster"
	"github.com/almanacdb/almanac/internal/proctest"
)

// TestDamagedStoresAreRepaired: under load a node is killed and a file of its stores is
// damaged, each kind of file of each store in turn, each time on another node. Started
// again it comes back with everything that was acknowledged, and is as good as the others:
// with one of those killed, it makes the majority.
func TestDamagedStoresAreRepaired(t *testing.T) {
	c := start(t, 3)
	if _, err := c.Client.Events.CreateTopic(proctest.Within(t, 20*time.Second), eventTopic, client.TopicOptions{Partitions: 6}); err != nil {
		t.Fatal(err)
	}
	l := newKeyLoad()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var workers sync.WaitGroup
	for i := range keyClients {
		s := proctest.Almanac{KV: c.NewClient(client.Options{}).KV}
		workers.Add(1)
		go func() {
			defer workers.Done()
			l.work(ctx, s, i)
		}()
	}
	c.progress(l, 400)
	for i, pattern := range []string{"log/*.log", "state/*.sst", "log/MANIFEST-*", "state/MANIFEST-*", "log/*.sst"} {
		n, other := c.Nodes[i%3], c.Nodes[(i+1)%3]
		c.damage(n, pattern)
		c.progress(l, 200)
		c.repaired(n)
		c.holdsAll(l, n)
		c.Kill(other, "the repaired node must make the majority")
		c.progress(l, 200)
		c.Restart(other)
		c.Well(3)
		c.ready(other)
	}
	stop()
	workers.Wait()
	t.Logf("%d operations, %d of unknown outcome, %d failed: %v", l.done.Load(), l.unsure.Load(), l.failed.Load(), l.reasons)
	c.readBack(l)
	c.sameEverywhere()
	judgeKeys(t, l)
}

// damage kills a node, flips bits all over the newest file that matches, and starts the
// node again.
func (c *cluster) damage(n *localcluster.Node, pattern string) {
	c.t.Helper()
	var list []string
	proctest.Until(c.t, 30*time.Second, "a file "+pattern, func(context.Context) string {
		list, _ = filepath.Glob(filepath.Join(n.Dir, pattern))
		if len(list) == 0 {
			return "none yet"
		}
		return ""
	})
	c.Kill(n, "to damage its "+pattern)
	list, _ = filepath.Glob(filepath.Join(n.Dir, pattern))
	path := slices.Max(list)
	b, err := os.ReadFile(path)
	if err != nil {
		c.t.Fatal(err)
	}
	end := len(bytes.TrimRight(b, "\x00"))
	for at := end / 3; at < 2*end/3+1; at += 200 {
		b[at] ^= 0x20
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		c.t.Fatal(err)
	}
	c.t.Logf("%s node %d: damaged %s, of %d bytes", proctest.Clock(), n.Index, path, end)
	c.Restart(n)
}

// repaired waits until a node has set its stores aside and is ready. What shows only when
// it is read ends the process, which is started again as a supervisor would.
func (c *cluster) repaired(n *localcluster.Node) {
	c.t.Helper()
	began, starts := time.Now(), 1
	cl := c.NewClient(client.Options{Endpoints: []string{n.Address}, RetryFor: -1})
	proctest.Until(c.t, time.Minute, fmt.Sprintf("node %d to be repaired", n.Index), func(ctx context.Context) string {
		if !n.Running() {
			starts++
			c.Restart(n)
			return "it ended"
		}
		aside, _ := filepath.Glob(filepath.Join(n.Dir, "*.damaged-*"))
		if len(aside) != 2 || slices.ContainsFunc(aside, func(path string) bool { return c.seen[path] }) {
			ctx, cancel := context.WithTimeout(ctx, time.Second)
			defer cancel()
			_, err := cl.KV.Range(ctx, client.Prefix(nil), client.RangeOptions{Read: client.Local()}) // reads the damage
			return fmt.Sprintf("set aside is %v; it reads %v", aside, err)
		}
		if why := readiness(n); why != "" {
			return why
		}
		for _, path := range aside {
			c.seen[path] = true
		}
		return ""
	})
	c.t.Logf("%s node %d is repaired after %v and %d starts", proctest.Clock(), n.Index, time.Since(began).Round(time.Millisecond), starts)
	if log := n.LogTail(1 << 20); !strings.Contains(log, "this node has all its replicas back") {
		c.t.Errorf("its log does not say so:\n%s", log)
	}
}

// ready waits until a node is.
func (c *cluster) ready(n *localcluster.Node) {
	c.t.Helper()
	proctest.Until(c.t, 30*time.Second, fmt.Sprintf("node %d to be ready", n.Index), func(context.Context) string { return readiness(n) })
}

// readiness returns why a node is not ready; "" if it is.
func readiness(n *localcluster.Node) string {
	cl := http.Client{Timeout: 2 * time.Second}
	resp, err := cl.Get("http://" + n.HTTP + "/readyz")
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	if resp.StatusCode == http.StatusOK {
		return ""
	}
	return string(body)
}

// holdsAll reads from a node's own replica what had been acknowledged.
func (c *cluster) holdsAll(l *keyLoad, n *localcluster.Node) {
	c.t.Helper()
	l.mu.Lock()
	kept := make(map[string]string, len(l.kept))
	for k, v := range l.kept {
		kept[k] = v
	}
	l.mu.Unlock()
	cl := c.NewClient(client.Options{Endpoints: []string{n.Address}})
	if _, err := cl.KV.Get(proctest.Within(c.t, 20*time.Second), []byte("k0")); err != nil { // it has applied as much as anyone
		c.t.Fatal(err)
	}
	r, err := cl.KV.Range(proctest.Within(c.t, 20*time.Second), client.Prefix([]byte("kept/")), client.RangeOptions{Read: client.Local()})
	if err != nil {
		c.t.Fatal(err)
	}
	found := make(map[string]string, len(r.KVs))
	for _, kv := range r.KVs {
		found[string(kv.Key)] = string(kv.Value)
	}
	for k, v := range kept {
		if found[k] != v {
			c.t.Errorf("node %d has %s = %q, acknowledged was %q", n.Index, k, found[k], v)
		}
	}
	c.t.Logf("node %d holds all of %d keys", n.Index, len(kept))
}

// sameEverywhere compares what the nodes' own replicas hold, at rest.
func (c *cluster) sameEverywhere() {
	c.t.Helper()
	var first []client.KeyValue
	for i, n := range c.Nodes {
		cl := c.NewClient(client.Options{Endpoints: []string{n.Address}})
		if _, err := cl.KV.Get(proctest.Within(c.t, 20*time.Second), []byte("k0")); err != nil {
			c.t.Fatal(err)
		}
		r, err := cl.KV.Range(proctest.Within(c.t, 20*time.Second), client.Prefix(nil), client.RangeOptions{Read: client.Local()})
		if err != nil {
			c.t.Fatal(err)
		}
		if i == 0 {
			first = r.KVs
		}
		same := slices.EqualFunc(first, r.KVs, func(a, b client.KeyValue) bool {
			return bytes.Equal(a.Key, b.Key) && bytes.Equal(a.Value, b.Value) && a.ModRevision == b.ModRevision && a.Version == b.Version
		})
		if !same || len(r.KVs) == 0 {
			c.t.Errorf("nodes 1 and %d differ: %d and %d keys", n.Index, len(first), len(r.KVs))
		}
	}
}
