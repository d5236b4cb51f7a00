package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	almanacv1 "github.com/almanacdb/almanac/api/almanac/v1"
	"github.com/almanacdb/almanac/client"
	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/localcluster"
)

// binary is the program under test, built once.
var binary string

func enabled() bool { return os.Getenv("ALMANAC_E2E") == "1" }

func TestMain(m *testing.M) {
	if !enabled() {
		os.Exit(m.Run()) // every test skips
	}
	dir, err := os.MkdirTemp("", "almanac-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	binary = filepath.Join(dir, "almanac")
	build := exec.Command("go", "build", "-o", binary, "github.com/almanacdb/almanac/cmd/almanac")
	build.Stdout, build.Stderr = os.Stderr, os.Stderr
	code := 1
	if err := build.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "building the program:", err)
	} else {
		code = m.Run()
	}
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// needE2E skips the test unless end-to-end tests were asked for.
func needE2E(t *testing.T) {
	t.Helper()
	if !enabled() {
		t.Skip("real processes; run with ALMANAC_E2E=1 go test ./internal/e2e/ -v -timeout 10m")
	}
}

// within returns a context that ends after d, or with the test.
func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// pause waits for d or the end of ctx; it says whether there is more time.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// until polls a condition, which says what is still missing; "" means it holds.
func until(t *testing.T, limit time.Duration, what string, missing func(ctx context.Context) string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	last := "never asked"
	for {
		now := missing(ctx)
		if now == "" {
			return
		}
		if ctx.Err() == nil || last == "never asked" {
			last = now
		}
		if !pause(ctx, 50*time.Millisecond) {
			t.Fatalf("after %v still waiting for %s: %s", limit, what, last)
		}
	}
}

// cluster is a cluster of processes and a client of all its nodes.
type cluster struct {
	*localcluster.Cluster
	t      *testing.T
	client *client.Client
}

// layOut prepares a cluster of n nodes; none runs yet.
func layOut(t *testing.T, n int, args ...string) *cluster {
	t.Helper()
	needE2E(t)
	lc, err := localcluster.New(localcluster.Options{Binary: binary, Dir: t.TempDir(), Nodes: n, Args: args})
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{Cluster: lc, t: t}
	t.Cleanup(func() {
		if t.Failed() {
			for _, n := range lc.Nodes {
				t.Logf("--- end of node %d's log ---\n%s", n.Index, n.LogTail(4000))
			}
		}
		lc.KillAll()
	})
	c.client = c.newClient(client.Options{})
	return c
}

// newClient returns a client; of all nodes, unless the options say otherwise.
func (c *cluster) newClient(o client.Options) *client.Client {
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

// start runs n nodes, forms a cluster of them and waits until it is well.
func start(t *testing.T, n int) *cluster {
	t.Helper()
	c := layOut(t, n)
	if err := c.StartAll(); err != nil {
		t.Fatal(err)
	}
	c.answering(c.Nodes...)
	if n > 1 {
		if _, err := c.client.Cluster.Init(within(t, 20*time.Second)); err != nil {
			t.Fatalf("init: %v", err)
		}
	}
	c.well(n)
	return c
}

// answering waits until nodes accept connections.
func (c *cluster) answering(nodes ...*localcluster.Node) {
	c.t.Helper()
	until(c.t, 20*time.Second, "nodes to answer", func(context.Context) string {
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

// well waits until so many nodes are alive and every range has a leader and its
// replicas.
func (c *cluster) well(alive int) {
	c.t.Helper()
	until(c.t, 30*time.Second, "the cluster to be well", func(ctx context.Context) string {
		ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
		defer cancel()
		s, err := c.client.Cluster.Status(ctx)
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

// leader waits until a range has a leader that runs, and returns its node.
func (c *cluster) leader(r base.RangeID) (leader *localcluster.Node) {
	c.t.Helper()
	until(c.t, 30*time.Second, fmt.Sprintf("a leader of range %d", r), func(ctx context.Context) string {
		ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
		defer cancel()
		nodes, err := c.client.Cluster.Nodes(ctx)
		if err != nil {
			return err.Error()
		}
		ranges, err := c.client.Cluster.Ranges(ctx, "", "")
		if err != nil {
			return err.Error()
		}
		for _, info := range ranges {
			for _, n := range nodes {
				if info.GetRangeId() != uint64(r) || n.GetNodeId() != info.GetLeader() {
					continue
				}
				if p := c.at(n.GetAddress()); p != nil && p.Running() {
					leader = p
					return ""
				}
			}
		}
		return "none known"
	})
	return leader
}

// at returns the node with a client address.
func (c *cluster) at(address string) *localcluster.Node {
	for _, n := range c.Nodes {
		if n.Address == address {
			return n
		}
	}
	return nil
}

// kill kills a node as kill -9 does, and proves that it is gone.
func (c *cluster) kill(n *localcluster.Node, why string) {
	c.t.Helper()
	pid := n.PID()
	n.Kill()
	err := syscall.Kill(pid, 0)
	if pid == 0 || n.Running() || n.Answers() || !errors.Is(err, syscall.ESRCH) {
		c.t.Fatalf("node %d, pid %d, lives on after kill -9 (%v)", n.Index, pid, err)
	}
	c.t.Logf("%s kill -9 of node %d (%s): pid %d is gone", clock(), n.Index, why, pid)
}

// terminate stops a node with SIGTERM and returns how long that took.
func (c *cluster) terminate(n *localcluster.Node) time.Duration {
	c.t.Helper()
	began := time.Now()
	if err := n.Stop(within(c.t, 20*time.Second)); err != nil {
		c.t.Fatalf("node %d after SIGTERM: %v", n.Index, err)
	}
	return time.Since(began)
}

// restart starts a node again.
func (c *cluster) restart(n *localcluster.Node) {
	c.t.Helper()
	if err := n.Start(); err != nil {
		c.t.Fatal(err)
	}
}

func clock() string { return time.Now().Format("15:04:05.000") }

// answer is how a command line ended.
type answer struct {
	out, err string
	code     int
	took     time.Duration
}

// run runs a program to its end.
func run(t *testing.T, limit time.Duration, in, program string, args ...string) answer {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Stdin = strings.NewReader(in)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	began := time.Now()
	err := cmd.Run()
	a := answer{out: out.String(), err: errOut.String(), took: time.Since(began)}
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		t.Fatalf("%s %s did not end within %v\n%s%s", filepath.Base(program), strings.Join(args, " "), limit, a.out, a.err)
	case errors.As(err, &exit):
		a.code = exit.ExitCode()
	case err != nil:
		t.Fatal(err)
	}
	return a
}

// cli runs the program's command line against the cluster.
func (c *cluster) cli(args ...string) answer {
	c.t.Helper()
	return run(c.t, time.Minute, "", binary, append([]string{"--endpoints", c.Endpoints()}, args...)...)
}
