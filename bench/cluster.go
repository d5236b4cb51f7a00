package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/almanacdb/almanac/internal/localcluster"
)

// system is one of those that are compared.
type system string

const (
	almanac system = "Almanac"
	etcd    system = "etcd"
	nats    system = "NATS"
)

// nodes is the size of every cluster.
const nodes = 3

// programs are the paths of what was built.
type programs struct{ almanac, etcd, nats string }

// build builds Almanac, as README says, and, with tools/peers/build, the others, into a
// directory.
func build(ctx context.Context, root, dir string) (programs, error) {
	p := programs{
		almanac: filepath.Join(dir, "almanac"), etcd: filepath.Join(dir, "etcd"), nats: filepath.Join(dir, "nats-server"),
	}
	if _, err := output(ctx, root, "env", "CGO_ENABLED=0", "go", "build", "-o", p.almanac, "./cmd/almanac"); err != nil {
		return p, err
	}
	if peers := os.Getenv("ALMANAC_PEERS"); peers != "" { // built before
		p.etcd, p.nats = filepath.Join(peers, "etcd"), filepath.Join(peers, "nats-server")
		return p, nil
	}
	_, err := output(ctx, root, filepath.Join(root, "tools", "peers", "build"), dir)
	return p, err
}

// versions returns what the peers say they are.
func (p programs) versions(ctx context.Context) ([]string, error) {
	var list []string
	for _, program := range []string{p.etcd, p.nats} {
		v, err := output(ctx, "", program, "--version")
		if err != nil {
			return nil, err
		}
		first, _, _ := strings.Cut(v, "\n")
		list = append(list, first)
	}
	return list, nil
}

// cluster is three running nodes of one system, with data of their own.
type cluster struct {
	system    system
	dir       string
	nodes     []*localcluster.Process
	endpoints []string // client addresses, one a node
	http      []string // where a node of Almanac says whether it is ready
}

// start runs a new cluster and waits until it serves.
func (p programs) start(ctx context.Context, s system, dir string) (*cluster, error) {
	c := &cluster{system: s, dir: dir}
	lay, ready := c.layOutAlmanac, c.formAlmanac
	switch s {
	case etcd:
		lay, ready = c.layOutEtcd, c.awaitEtcd
	case nats:
		lay, ready = c.layOutNATS, c.awaitNATS
	}
	if err := lay(p); err != nil {
		return nil, err
	}
	for _, n := range c.nodes {
		if err := n.Start(); err != nil {
			c.stop()
			return nil, err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := ready(ctx); err != nil {
		err = fmt.Errorf("%s did not become ready: %w\nlast words of its first node:\n%s", s, err, c.nodes[0].LogTail(2000))
		c.stop()
		return nil, err
	}
	return c, nil
}

// stop kills the nodes: their data is not needed any more.
func (c *cluster) stop() {
	for _, n := range c.nodes {
		n.Kill()
	}
}

// cpu returns the CPU time that the nodes have used.
func (c *cluster) cpu() (time.Duration, error) {
	var sum time.Duration
	for _, n := range c.nodes {
		d, err := cpuTime(n.PID())
		if err != nil {
			return 0, fmt.Errorf("a node of %s: %w", c.system, err)
		}
		sum += d
	}
	return sum, nil
}

// largest returns the resident memory of the node that has most, in bytes.
func (c *cluster) largest() (int64, error) {
	var most int64
	for _, n := range c.nodes {
		bytes, err := residentMemory(n.PID())
		if err != nil {
			return 0, fmt.Errorf("a node of %s: %w", c.system, err)
		}
		most = max(most, bytes)
	}
	return most, nil
}

// at returns the node with a client address.
func (c *cluster) at(address string) (*localcluster.Process, error) {
	for i, e := range c.endpoints {
		if e == address {
			return c.nodes[i], nil
		}
	}
	return nil, fmt.Errorf("no node of %s is at %q", c.system, address)
}

// await waits until the cluster is whole.
func (c *cluster) await(ctx context.Context) error {
	if c.system == almanac {
		return c.awaitAlmanac(ctx)
	}
	return c.awaitEtcd(ctx)
}

// until tries again and again until it succeeds.
func until(ctx context.Context, try func(ctx context.Context) error) error {
	for {
		attempt, cancel := context.WithTimeout(ctx, 2*time.Second)
		err := try(attempt)
		cancel()
		if err == nil {
			return nil
		}
		if !pause(ctx, 50*time.Millisecond) {
			return errors.Join(ctx.Err(), err)
		}
	}
}

// pause waits, and says false if ctx ended before.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// addProcess adds a node that runs a program.
func (c *cluster) addProcess(program string, args []string) {
	c.nodes = append(c.nodes, &localcluster.Process{
		LogPath: filepath.Join(c.dir, fmt.Sprintf("node%d.log", len(c.nodes)+1)),
		Command: func() (string, []string) { return program, args },
	})
}
