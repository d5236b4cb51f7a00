package node

import (
	"sync"

	"github.com/almanacdb/almanac/internal/base"
)

// directory knows how to reach the cluster's nodes.
type directory struct {
	mu    sync.RWMutex
	nodes map[base.NodeID]base.NodeDescriptor
}

func newDirectory(lists ...[]base.NodeDescriptor) *directory {
	d := &directory{nodes: make(map[base.NodeID]base.NodeDescriptor)}
	for _, list := range lists {
		d.learn(list)
	}
	return d
}

// learn takes in descriptors and returns the nodes whose peer address changed.
func (d *directory) learn(list []base.NodeDescriptor) (moved []base.NodeID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, n := range list {
		if old, ok := d.nodes[n.Node]; ok && old.Peer != n.Peer {
			moved = append(moved, n.Node)
		}
		d.nodes[n.Node] = n
	}
	return moved
}

func (d *directory) peer(id base.NodeID) (string, bool) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	n, ok := d.nodes[id]
	return n.Peer, ok && n.Peer != ""
}

// client returns a node's client address; empty if unknown.
func (d *directory) client(id base.NodeID) string {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.nodes[id].Address
}
