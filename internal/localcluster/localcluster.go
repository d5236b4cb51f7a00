// Package localcluster runs a cluster of real processes on this machine, one a node:
// for the demo, and for tests that kill nodes. It owns ports, directories and
// processes; it refuses to know what the nodes do.
package localcluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
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
	Index   int // from 1
	Address string
	Peer    string
	HTTP    string
	Dir     string
	LogPath string

	cluster *Cluster
	mu      sync.Mutex
	cmd     *exec.Cmd
	exited  chan struct{}
	err     error
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
	ports, moved, err := choosePorts(o.BasePort, o.Nodes)
	if err != nil {
		return nil, err
	}
	c.Moved = moved
	for i := range o.Nodes {
		c.layOut(ports[3*i:])
	}
	return c, nil
}

// layOut adds a node that listens on the first three ports.
func (c *Cluster) layOut(ports []int) *Node {
	addr := func(n int) string { return fmt.Sprintf("127.0.0.1:%d", ports[n]) }
	index := len(c.Nodes) + 1
	dir := filepath.Join(c.opts.Dir, fmt.Sprintf("node%d", index))
	n := &Node{
		Index: index, Address: addr(0), Peer: addr(1), HTTP: addr(2),
		Dir: dir, LogPath: dir + ".log", cluster: c,
	}
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
	return c.layOut(ports), nil
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
	var held []net.Listener
	defer func() {
		for _, l := range held {
			l.Close()
		}
	}()
	ports = ports[:0]
	for range 3 * nodes {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, false, err
		}
		held = append(held, l)
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports, base != 0, nil
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

// Start runs the node's process; its output is appended to its log.
func (n *Node) Start() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cmd != nil {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(n.Dir), 0o755); err != nil {
		return err
	}
	log, err := os.OpenFile(n.LogPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	var peers []string
	for _, m := range n.cluster.Nodes {
		peers = append(peers, m.Peer)
	}
	args := []string{"start", "--data-dir", n.Dir, "--listen", n.Address, "--peer", n.Peer, "--http", n.HTTP,
		"--memory", n.cluster.opts.Memory}
	if len(peers) > 1 {
		args = append(args, "--join", strings.Join(peers, ","))
	}
	cmd := exec.Command(n.cluster.opts.Binary, append(args, n.cluster.opts.Args...)...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = processAttributes()
	if err := cmd.Start(); err != nil {
		log.Close()
		return err
	}
	exited := make(chan struct{})
	n.cmd, n.exited = cmd, exited
	go func() {
		err := cmd.Wait()
		log.Close()
		n.mu.Lock()
		n.cmd, n.err = nil, err
		n.mu.Unlock()
		close(exited)
	}()
	return nil
}

// Running says whether the process is alive.
func (n *Node) Running() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.cmd != nil
}

// PID returns the process's id; 0 if it is down.
func (n *Node) PID() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cmd == nil {
		return 0
	}
	return n.cmd.Process.Pid
}

func (n *Node) signal(s syscall.Signal) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cmd != nil {
		_ = n.cmd.Process.Signal(s)
	}
}

// wait waits until the process has ended.
func (n *Node) wait(ctx context.Context) error {
	n.mu.Lock()
	exited, running := n.exited, n.cmd != nil
	n.mu.Unlock()
	if !running {
		return nil
	}
	select {
	case <-exited:
		n.mu.Lock()
		defer n.mu.Unlock()
		return n.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Stop sends SIGTERM and waits; when ctx ends it kills.
func (n *Node) Stop(ctx context.Context) error {
	n.signal(syscall.SIGTERM)
	err := n.wait(ctx)
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		n.Kill()
	}
	return err
}

// Kill ends the process at once, as kill -9 does, and waits until it is gone.
func (n *Node) Kill() {
	n.signal(syscall.SIGKILL)
	_ = n.wait(context.Background())
}

// Pause freezes the process; Resume lets it go on.
func (n *Node) Pause() { n.signal(syscall.SIGSTOP) }

// Resume lets a paused process go on.
func (n *Node) Resume() { n.signal(syscall.SIGCONT) }

// Answers says whether something accepts connections on the client address.
func (n *Node) Answers() bool {
	conn, err := net.DialTimeout("tcp", n.Address, 200*time.Millisecond)
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

// LogTail returns the end of the node's log.
func (n *Node) LogTail(bytes int64) string {
	f, err := os.Open(n.LogPath)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	if st, err := f.Stat(); err == nil && st.Size() > bytes {
		if _, err := f.Seek(-bytes, io.SeekEnd); err != nil {
			return err.Error()
		}
	}
	b, _ := io.ReadAll(f)
	return string(b)
}
