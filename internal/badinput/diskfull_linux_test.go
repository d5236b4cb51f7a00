package badinput

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/almanacdb/almanac/client"
	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/localcluster"
)

// smallDisk mounts a file system of so many MiB; grow makes it larger.
func smallDisk(t *testing.T, mib int) (dir string, grow func(mib int)) {
	t.Helper()
	dir = t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%dm", mib)); err != nil {
		t.Skipf("a small file system is needed, and this user cannot mount one: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	return dir, func(mib int) {
		if err := syscall.Mount("tmpfs", dir, "tmpfs", syscall.MS_REMOUNT, fmt.Sprintf("size=%dm", mib)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestDirectoryThatCannotBeWritten(t *testing.T) {
	disk, _ := smallDisk(t, 1)
	if err := os.Mkdir(disk+"/data", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", disk, "tmpfs", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
		t.Skipf("cannot make a file system read-only: %v", err)
	}
	for _, dir := range []string{disk + "/data", disk + "/new", "/proc/new/data"} {
		shell{}.refused(t, exitError, "internal", "this user may", "", "start", "--data-dir", dir,
			"--listen", "127.0.0.1:0", "--peer", "127.0.0.1:0", "--http", "127.0.0.1:0", "--memory", "128MiB")
	}
}

// ballast fills a disk until so many MiB are left, and returns what gives the space back.
func ballast(t *testing.T, disk string, left uint64) (release func()) {
	t.Helper()
	var fs syscall.Statfs_t
	if err := syscall.Statfs(disk, &fs); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(disk + "/ballast")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := syscall.Fallocate(int(f.Fd()), 0, 0, int64(fs.Bavail*uint64(fs.Bsize)-left<<20)); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := os.Remove(disk + "/ballast"); err != nil {
			t.Fatal(err)
		}
	}
}

// onDisks lays out a cluster whose nodes have a small disk each: 128 MiB, of which a quarter
// is the reserve.
func onDisks(t *testing.T, nodes int) (c *localcluster.Cluster, disks []string, grow []func(mib int)) {
	t.Helper()
	c = processesWithin(t, "256MiB", nodes) // a log's file is laid out as large as a memtable: 16 MiB
	for _, n := range c.Nodes {
		disk, larger := smallDisk(t, 128)
		n.Dir = disk + "/data"
		disks, grow = append(disks, disk), append(grow, larger)
	}
	t.Cleanup(c.KillAll) // before the disks go
	return c, disks, grow
}

// refusedForSpace checks that a write is refused with what is wrong and what helps.
func refusedForSpace(t *testing.T, what string, err error) {
	t.Helper()
	var e *client.Error
	if !errors.As(err, &e) || e.Reason != client.ReasonDiskFull || !strings.Contains(e.Remedy, "free space") {
		t.Errorf("%s: %v", what, err)
	}
}

// A node whose disk has no space to spare refuses what would need it, says so wherever one
// looks, serves all else, and goes on by itself when there is space again.
func TestDiskWithoutSpaceToSpare(t *testing.T) {
	c, disks, _ := onDisks(t, 1)
	if err := c.StartAll(); err != nil {
		t.Fatal(err)
	}
	n, s := c.Nodes[0], shell{c.Endpoints()}
	s.ok(t, "kv", "put", "witness", "unharmed")
	s.ok(t, "kv", "put", "needless", "1")
	s.ok(t, "topic", "create", "t")
	cl := connect(t, client.Options{RetryFor: time.Second}, n.Address)
	release := ballast(t, disks[0], 25)
	await(t, "writes are refused", func() bool {
		_, err := cl.KV.Put(t.Context(), []byte("k"), []byte("1"))
		return err != nil
	})
	_, err := cl.KV.Put(t.Context(), []byte("k"), []byte("1"))
	refusedForSpace(t, "put", err)
	s.refused(t, exitError, "disk_full", "free space", "", "kv", "put", "k", "1")
	s.refused(t, exitError, "disk_full", "free space", "", "event", "publish", "t", "x")
	s.ok(t, "kv", "del", "needless")
	unharmed(t, n, s)
	await(t, "cluster status says so", func() bool { return strings.Contains(s.ok(t, "cluster", "status"), "no space to spare") })
	for path, says := range map[string]string{"/healthz": "in reserve", "/metrics": "almanac_node_disk_scarce 1"} {
		resp, err := http.Get("http://" + n.HTTP + path)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK || !strings.Contains(string(body), says) {
			t.Errorf("%s: %d, without %q", path, resp.StatusCode, says)
		}
	}
	if alarms, err := etcdClient(t, n.Address).AlarmList(t.Context()); err != nil || len(alarms.Alarms) != 1 {
		t.Errorf("etcd's alarms: %v, %v", alarms, err)
	}
	pid := n.PID()
	release()
	await(t, "writes go on", func() bool {
		_, err := cl.KV.Put(t.Context(), []byte("k"), []byte("2"))
		return err == nil
	})
	s.ok(t, "event", "publish", "t", "x")
	if n.PID() != pid {
		t.Error("the node was restarted")
	}
}

// A node that fills its disk itself stops before the disk is full, and lives.
func TestNodeFillsItsDisk(t *testing.T) {
	c, _, grow := onDisks(t, 1)
	if err := c.StartAll(); err != nil {
		t.Fatal(err)
	}
	n := c.Nodes[0]
	shell{n.Address}.ok(t, "kv", "put", "witness", "unharmed")
	cl := connect(t, client.Options{RetryFor: time.Second}, n.Address)
	value := make([]byte, 256<<10)
	_, _ = rand.Read(value) // does not compress
	acked := 0
	var refusal error
	for ; acked < 1000 && refusal == nil; acked++ {
		_, refusal = cl.KV.Put(t.Context(), fmt.Appendf(nil, "key%d", acked), value)
	}
	acked--
	t.Logf("after %d writes of 256 KiB: %v", acked, refusal)
	refusedForSpace(t, "put", refusal)
	unharmed(t, n, shell{n.Address})
	pid := n.PID()
	grow[0](512)
	await(t, "writes go on", func() bool {
		_, err := cl.KV.Put(t.Context(), []byte("after"), []byte("1"))
		return err == nil
	})
	for i := range acked {
		kv, err := cl.KV.Get(t.Context(), fmt.Appendf(nil, "key%d", i))
		if err != nil || kv == nil || string(kv.Value) != string(value) {
			t.Fatalf("key%d of %d is lost: %v", i, acked, err)
		}
	}
	if n.PID() != pid {
		t.Error("the node was restarted")
	}
}

// When others take even the reserve, a node that has to write its log stops with the
// reason, and with space again it has all that was acknowledged.
func TestDiskFull(t *testing.T) {
	c, disks, _ := onDisks(t, 1)
	if err := c.StartAll(); err != nil {
		t.Fatal(err)
	}
	n := c.Nodes[0]
	s := shell{n.Address}
	s.ok(t, "kv", "put", "witness", "unharmed")
	release := ballast(t, disks[0], 0)
	cl := connect(t, client.Options{RetryFor: -1}, n.Address)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if kv, err := cl.KV.Get(ctx, []byte("witness")); err == nil && (kv == nil || string(kv.Value) != "unharmed") {
		t.Error("a wrong value was read")
	}
	for i := 0; n.Running() && ctx.Err() == nil; i++ { // deletes are logged, so in the end the log finds no room
		_, _ = cl.KV.Delete(ctx, client.Key(fmt.Appendf(nil, "%d%s", i, strings.Repeat("x", 4000))))
	}
	if n.Running() {
		t.Log("the node goes on")
		n.Kill()
	} else if log := n.LogTail(1 << 20); !strings.Contains(log, "no space left on device") || !strings.Contains(log, n.Dir) {
		t.Errorf("the log does not say that the disk is full, and which: %s", n.LogTail(4096))
	}
	wantNoTrace(t, n.LogTail(1<<20))
	if !n.Running() {
		s.refused(t, exitError, "disk_full", disks[0], "", "start", "--data-dir", disks[0]+"/new",
			"--listen", "127.0.0.1:0", "--peer", "127.0.0.1:0", "--http", "127.0.0.1:0", "--memory", "128MiB")
	}
	// Files that a start finds to be needless may be room enough to serve again.
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	await(t, "the start ends well or badly", func() bool { return !n.Running() || time.Since(began) > 2*time.Second })
	if kv, err := cl.KV.Get(t.Context(), []byte("witness")); err == nil && (kv == nil || string(kv.Value) != "unharmed") {
		t.Error("a wrong value was read")
	}
	if log := n.LogTail(2000); !n.Running() && !strings.Contains(log, "disk_full") && !strings.Contains(log, "disk is full") {
		t.Errorf("a start on a full disk: %s", log)
	}
	wantNoTrace(t, n.LogTail(1<<20))
	release()
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	await(t, "it serves", n.Answers)
	if !n.Running() {
		t.Fatalf("with space again: %s", n.LogTail(2000))
	}
	unharmed(t, n, s)
	s.ok(t, "kv", "put", "after", "1")
}

// One full disk of three: leaders go to the other nodes, and the cluster goes on.
func TestOneFullDiskOfThree(t *testing.T) {
	c, disks, _ := onDisks(t, 3)
	if err := c.StartAll(); err != nil {
		t.Fatal(err)
	}
	s := shell{c.Endpoints()}
	for _, n := range c.Nodes {
		awaitLog(t, n, "almanac init")
	}
	s.ok(t, "init")
	s.ok(t, "kv", "put", "witness", "unharmed")
	cl := connect(t, client.Options{}, strings.Split(c.Endpoints(), ",")...)
	leader := -1
	await(t, "the leader is known", func() bool {
		leader = leaderOf(t, c, cl, base.DefaultRange)
		return leader >= 0
	})
	release := ballast(t, disks[leader], 10) // below half the reserve
	began := time.Now()
	await(t, "another node leads", func() bool {
		now := leaderOf(t, c, cl, base.DefaultRange)
		return now >= 0 && now != leader
	})
	await(t, "writes go on", func() bool {
		_, err := cl.KV.Put(t.Context(), []byte("meanwhile"), []byte("1"))
		return err == nil
	})
	t.Logf("writes went on after %v", time.Since(began).Round(time.Millisecond))
	for i := range 200 {
		if _, err := cl.KV.Put(t.Context(), fmt.Appendf(nil, "key%d", i), make([]byte, 8<<10)); err != nil {
			t.Fatal(err)
		}
	}
	full := shell{c.Nodes[leader].Address}
	if out := full.ok(t, "kv", "get", "meanwhile"); !strings.Contains(out, "1") {
		t.Errorf("through the full node: %s", out)
	}
	await(t, "cluster status says so", func() bool { return strings.Contains(s.ok(t, "cluster", "status"), "no space to spare") })
	for i, n := range c.Nodes {
		if !n.Running() {
			t.Errorf("node %d is gone: %s", i+1, n.LogTail(4096))
		}
	}
	release()
	await(t, "the node is well again", func() bool { return !strings.Contains(s.ok(t, "cluster", "status"), "no space to spare") })
	// It has what was written meanwhile: with it, another node may go.
	c.Nodes[(leader+1)%3].Kill()
	full.ok(t, "kv", "put", "after", "1")
	if kv, err := cl.KV.Get(t.Context(), []byte("key199")); err != nil || kv == nil {
		t.Errorf("key199: %v, %v", kv, err)
	}
}

// leaderOf returns which node leads a range, by its place in the cluster; -1: none known.
func leaderOf(t *testing.T, c *localcluster.Cluster, cl *client.Client, r base.RangeID) int {
	t.Helper()
	nodes, err := cl.Cluster.Nodes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ranges, err := cl.Cluster.Ranges(t.Context(), "", "")
	if err != nil {
		t.Fatal(err)
	}
	for _, info := range ranges {
		for _, n := range nodes {
			if info.GetRangeId() == uint64(r) && n.GetNodeId() == info.GetLeader() {
				return slices.IndexFunc(c.Nodes, func(p *localcluster.Node) bool { return p.Address == n.GetAddress() })
			}
		}
	}
	return -1
}
