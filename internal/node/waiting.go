package node

import (
	"context"
	"time"

	"google.golang.org/grpc"

	"github.com/almanacdb/almanac/internal/base"
	gateway "github.com/almanacdb/almanac/internal/gateway/almanac"
)

// waiting serves a node that belongs to no cluster yet: clients are told what to do,
// peers may form one.
type waiting struct {
	client, peer *grpc.Server
}

func (n *Node) serveWaiting() {
	api := gateway.NewUninitialized(n.Init, n.opts.Advertise)
	w := &waiting{
		client: grpc.NewServer(append(clientServerOptions(), grpc.UnknownServiceHandler(api.Refuse))...),
		peer:   grpc.NewServer(peerServerOptions()...),
	}
	api.Register(w.client)
	n.form.register(w.peer)
	n.mu.Lock()
	n.waiting = w
	n.mu.Unlock()
	n.serveOn(w.client, n.ports.client, n.connections.client)
	n.servePeers(w.peer, nil)
}

// stop lets the calls under way finish, among them the Init that formed the cluster.
func (w *waiting) stop() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	stopServer(ctx, w.client)
	stopServer(ctx, w.peer)
}

// serveOn runs a server on a port in a goroutine of its own.
func (n *Node) serveOn(s *grpc.Server, l keptListener, bound *connections) {
	use := bound.listener(l.reuse())
	n.work.Add(1)
	go func() {
		defer n.work.Done()
		_ = s.Serve(use) // ends when the server is stopped
	}()
}

// Init forms the cluster, or returns the one that was formed.
func (n *Node) Init(ctx context.Context) (base.ClusterID, base.NodeID, error) {
	if id := n.identity(); id != nil && len(id.Bootstrap.Nodes) == 1 {
		return id.Bootstrap.Cluster, id.Node, nil
	}
	rep, err := n.form.init(ctx, nil)
	if err != nil {
		return base.ClusterID{}, 0, err
	}
	select {
	case <-n.adopted:
	case <-ctx.Done():
		return rep.Cluster, 0, ctx.Err()
	}
	return rep.Cluster, n.identity().Node, nil
}
