package powercut

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/almanacdb/almanac/internal/localcluster"
	"github.com/almanacdb/almanac/internal/proctest"
)

var scratch string // where binaries are built

func TestMain(m *testing.M) {
	if name := os.Getenv(syncerFile); name != "" {
		syncer(name)
		os.Exit(1)
	}
	dir, err := os.MkdirTemp("", "almanac-powercut-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	scratch = dir
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// The program under test, and the one that does not sync.
var (
	binary  = sync.OnceValues(func() (string, error) { return proctest.Build(filepath.Join(scratch, "sync")) })
	nosyncs = sync.OnceValues(func() (string, error) { return proctest.Build(filepath.Join(scratch, "nosync"), "-tags", "nosync") })
)

// needPower skips the test unless it was asked for; then what it needs must be there.
func needPower(t *testing.T, commands ...string) {
	t.Helper()
	if os.Getenv("ALMANAC_POWER") != "1" {
		t.Skip("mounts file systems, as root; run with ALMANAC_POWER=1 go test ./internal/powercut -v")
	}
	if os.Geteuid() != 0 {
		t.Fatal("only root mounts file systems")
	}
	for _, c := range commands {
		if _, err := exec.LookPath(c); err != nil {
			t.Fatalf("%v; install e2fsprogs, xfsprogs and mount", err)
		}
	}
}

// cluster is a cluster whose nodes have a disk each.
type cluster struct {
	*proctest.Cluster
	disks []*disk
	began time.Time // the last cut
}

// form runs a cluster of a binary on disks of a kind.
func form(t *testing.T, build func() (string, error), nodes int, kind string) *cluster {
	t.Helper()
	program, err := build()
	if err != nil {
		t.Fatal(err)
	}
	var disks []*disk
	for range nodes {
		disks = append(disks, newDisk(t, kind))
	}
	c := &cluster{disks: disks, Cluster: proctest.LayOut(t, localcluster.Options{
		Binary: program, Dir: t.TempDir(), Nodes: nodes, Memory: "128MiB",
	})}
	for i, n := range c.Nodes {
		n.Dir = filepath.Join(disks[i].dir, "data")
	}
	c.Form()
	return c
}

// cut takes the power from nodes at the same time; the first loses it a moment before
// the last. Then it brings it back, and the nodes.
//
// A node stops before its disk does. A file system that is shut down tells some of the
// syncs under way that they succeeded though they did not; without power nobody is left to
// hear that, and to acknowledge what is not there.
func (c *cluster) cut(t *testing.T, nodes ...int) {
	t.Helper()
	c.began = time.Now()
	var wg sync.WaitGroup
	for _, i := range nodes {
		wg.Go(func() {
			if err := errors.Join(freeze(c.Nodes[i].PID()), c.disks[i].cut()); err != nil {
				t.Errorf("node %d: %v", i+1, err)
			}
			c.Nodes[i].Kill()
		})
	}
	wg.Wait()
	for _, i := range nodes {
		c.disks[i].power(t)
		c.Restart(c.Nodes[i])
	}
}

// settled waits for each node to answer a read of the catalogue, or to have ended.
func (c *cluster) settled(ctx context.Context) string {
	for _, n := range c.Nodes {
		if !n.Running() {
			return ""
		}
	}
	if _, err := c.Client.Cluster.Ranges(ctx, "", ""); err != nil {
		return err.Error()
	}
	return ""
}
