package powercut

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/almanacdb/almanac/client"
	"github.com/almanacdb/almanac/internal/localcluster"
	"github.com/almanacdb/almanac/internal/proctest"
)

// onFaulty runs a cluster of which the first node has a faulty disk.
func onFaulty(t *testing.T, nodes int) (*proctest.Cluster, *faulty) {
	t.Helper()
	needPower(t)
	program, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	disk := newFaulty(t)
	c := proctest.LayOut(t, localcluster.Options{Binary: program, Dir: t.TempDir(), Nodes: nodes, Memory: "128MiB"})
	c.Nodes[0].Dir = filepath.Join(disk.dir, "data")
	c.Form()
	return c, disk
}

// fill writes keys until stop says so, and returns how many were acknowledged.
func fill(t *testing.T, cl *client.Client, prefix string, stop func(i int) bool) (acked []string) {
	t.Helper()
	for i := 0; !stop(i); i++ {
		key := fmt.Sprintf("%s%d", prefix, i)
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		_, err := cl.KV.Put(ctx, []byte(key), []byte(strings.Repeat(key, 20)))
		cancel()
		if err == nil {
			acked = append(acked, key)
		}
	}
	return acked
}

func whole(t *testing.T, cl *client.Client, keys []string) {
	t.Helper()
	for _, key := range keys {
		kv, err := cl.KV.Get(proctest.Within(t, 30*time.Second), []byte(key))
		if err != nil || kv == nil || string(kv.Value) != strings.Repeat(key, 20) {
			t.Fatalf("%s of %d keys that were acknowledged: %v, %v", key, len(keys), kv, err)
		}
	}
}

// A sync of the log that fails once, and would succeed if tried again, ends the node: it
// acknowledges nothing more, names the file, and is whole after a restart (S6).
func TestFailedSyncOfTheLog(t *testing.T) {
	for _, nodes := range []int{1, 3} {
		t.Run(fmt.Sprintf("%d nodes", nodes), func(t *testing.T) {
			c, disk := onFaulty(t, nodes)
			n := c.Nodes[0]
			cl := c.NewClient(client.Options{RetryFor: -1})
			keys := fill(t, cl, "before", func(i int) bool { return i == 50 })
			disk.failOnce("data/log")
			keys = append(keys, fill(t, cl, "during", func(i int) bool { return disk.failed.Load() != nil || i == 1000 })...)
			file := disk.failed.Load()
			if file == nil {
				t.Fatal("nothing was synced")
			}
			proctest.Until(t, 20*time.Second, "the node to stop", func(context.Context) string {
				if n.Running() {
					return "it runs"
				}
				return ""
			})
			log := n.LogTail(1 << 20)
			if path := filepath.Join(disk.dir, *file); !strings.Contains(log, path) || !strings.Contains(log, "input/output error") {
				t.Errorf("the log does not name %s: %s", path, n.LogTail(3000))
			}
			if nodes > 1 {
				c.Well(nodes - 1)
				keys = append(keys, fill(t, cl, "meanwhile", func(i int) bool { return i == 20 })...)
			}
			c.Restart(n)
			c.Well(nodes)
			whole(t, c.NewClient(client.Options{Endpoints: []string{n.Address}}), keys)
			t.Logf("%d acknowledged keys are there after the sync of %s failed", len(keys), *file)
		})
	}
}

// A sync of the state store that fails once loses nothing, because the log is kept until a
// flush succeeded: the node writes the file again, or stops.
func TestFailedSyncOfTheState(t *testing.T) {
	c, disk := onFaulty(t, 1)
	n := c.Nodes[0]
	keys := fill(t, c.Client, "before", func(i int) bool { return i == 50 })
	disk.failOnce("data/state")
	keys = append(keys, fill(t, c.NewClient(client.Options{RetryFor: -1}), "during", func(i int) bool {
		return disk.failed.Load() != nil || i == 20_000
	})...)
	file := disk.failed.Load()
	if file == nil {
		t.Fatal("nothing was synced")
	}
	proctest.Until(t, 20*time.Second, "word of it", func(context.Context) string {
		if !strings.Contains(n.LogTail(1<<20), filepath.Join(disk.dir, *file)) {
			return "the log does not name " + *file
		}
		return ""
	})
	if n.Running() {
		whole(t, c.Client, keys)
		n.Kill()
	}
	c.Restart(n)
	c.Well(1)
	whole(t, c.Client, keys)
	t.Logf("%d acknowledged keys are there after the sync of %s failed", len(keys), *file)
}
