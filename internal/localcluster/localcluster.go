// Package localcluster runs a cluster of real processes on this machine, one a node:
// for the demo, for tests that kill nodes, and for comparisons with other systems. It
// owns ports, directories and processes; it refuses to know what the nodes do.
package localcluster

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Options say what to run.
type Options struct {
	Binary string   // the almanac binary
	Dir    string   // data directories and logs, one a node, go below it
	Nodes  int      // default 3
	Memory string   // each node's --memory; default 512MiB
	Args   []string // further flags of every node
	// BasePort is the first node's client port; the next two are its peer and HTTP
	// ports, and node i's are 10·(i−1) higher. 0, or taken: free ones are found.
	BasePort int
	// Hosts are addresses for the nodes to listen on, one each, at the default ports;
	// BasePort is not used then. None: the loopback address for all.
	Hosts []string
}

// Cluster is a set of node processes. Safe for concurrent use.
type Cluster struct {
	opts  Options
	Nodes []*Node
	// Moved says that the ports asked for were taken.
	Moved bool
}

// Node is one node's process, which may be down.
type Node struct {
	Process
	Index   int // from 1
	Address string
	Peer    string
	HTTP    string
	Dir     string

	cluster *Cluster
}

// New lays out a cluster; nothing runs yet.
func New(o Options) (*Cluster, error) {
	if o.Nodes == 0 {
		o.Nodes = 3
	}
	if o.Memory == "" {
		o.Memory = "512MiB"
	}
	c := &Cluster{opts: o}
	if len(o.Hosts) > 0 {
		for _, host := range o.Hosts[:o.Nodes] {
			c.layOut(host, []int{7400, 7401, 7402})
		}
		return c, nil
	}
	ports, moved, err := choosePorts(o.BasePort, o.Nodes)
	if err != nil {
		return nil, err
	}
	c.Moved = moved
	for i := range o.Nodes {
		c.layOut(loopback, ports[3*i:])
	}
	return c, nil
}

const loopback = "127.0.0.1"

// layOut adds a node that listens on the first three ports of an address.
func (c *Cluster) layOut(host string, ports []int) *Node {
	addr := func(n int) string { return net.JoinHostPort(host, strconv.Itoa(ports[n])) }
	index := len(c.Nodes) + 1
	dir := filepath.Join(c.opts.Dir, fmt.Sprintf("node%d", index))
	n := &Node{
		Index: index, Address: addr(0), Peer: addr(1), HTTP: addr(2), Dir: dir, cluster: c,
	}
	n.Process = Process{LogPath: dir + ".log", Command: n.command}
	c.Nodes = append(c.Nodes, n)
	return n
}

// Add lays out one more node, which names the others in --join. Not safe beside other
// calls.
func (c *Cluster) Add() (*Node, error) {
	ports, _, err := choosePorts(0, 1)
	if err != nil {
		return nil, err
	}
	return c.layOut(loopback, ports), nil
}

// choosePorts returns three ports a node: the wanted ones if all are free.
func choosePorts(base, nodes int) (ports []int, moved bool, err error) {
	if base != 0 {
		for i := range nodes {
			for j := range 3 {
				ports = append(ports, base+10*i+j)
			}
		}
		if allFree(ports) {
			return ports, false, nil
		}
	}
	ports, err = FreePorts(3 * nodes)
	return ports, base != 0, err
}

// FreePorts returns n different ports of the loopback address that nothing listens on.
func FreePorts(n int) ([]int, error) {
	var ports []int
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close() // held until all are found, so that they differ
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}

func allFree(ports []int) bool {
	for _, p := range ports {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", p))
		if err != nil {
			return false
		}
		l.Close()
	}
	return true
}

// Endpoints returns the client addresses, as --endpoints takes them.
func (c *Cluster) Endpoints() string {
	list := make([]string, len(c.Nodes))
	for i, n := range c.Nodes {
		list[i] = n.Address
	}
	return strings.Join(list, ",")
}

// StartAll starts every node that is down.
func (c *Cluster) StartAll() error {
	for _, n := range c.Nodes {
		if err := n.Start(); err != nil {
			return err
		}
	}
	return nil
}

// StopAll stops every node, gently until ctx ends.
func (c *Cluster) StopAll(ctx context.Context) {
	var wg sync.WaitGroup
	for _, n := range c.Nodes {
		wg.Add(1)
		go func() {
			defer wg.Done()
			_ = n.Stop(ctx)
		}()
	}
	wg.Wait()
}

// KillAll kills every node at once, as a power cut of the whole rack would.
func (c *Cluster) KillAll() {
	for _, n := range c.Nodes {
		n.signal(syscall.SIGKILL)
	}
	for _, n := range c.Nodes {
		n.wait(context.Background())
	}
}

// command says how to run the node.
func (n *Node) command() (program string, args []string) {
	var peers []string
	for _, m := range n.cluster.Nodes {
		peers = append(peers, m.Peer)
	}
	args = []string{"start", "--data-dir", n.Dir, "--listen", n.Address, "--peer", n.Peer, "--http", n.HTTP,
		"--memory", n.cluster.opts.Memory}
	if len(peers) > 1 {
		args = append(args, "--join", strings.Join(peers, ","))
	}
	return n.cluster.opts.Binary, append(args, n.cluster.opts.Args...)
}

// Answers says whether something accepts connections on the client address.
func (n *Node) Answers() bool {
	conn, err := net.DialTimeout("tcp", n.Address, 200*time.Millisecond)
	if err != nil {
		return false
	}
	conn.Close()
	return true
}
