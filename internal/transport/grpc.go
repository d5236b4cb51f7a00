package transport

import (
	"context"
	"sync"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/wire"
	"google.golang.org/grpc"
)

// GRPC carries messages over gRPC streams: for each peer and class a connection and a
// stream that this node dials, one way. Goroutines: per outgoing link one that dials and
// sends, and one that notices the stream's end; per incoming stream one that receives.
// Safe for concurrent use.
type GRPC struct {
	opts   Options
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup // every goroutine that may call out

	mu      sync.RWMutex
	closed  bool
	links   map[linkKey]*link
	inbound map[linkKey]*inbound
}

// linkKey names a peer and a class.
type linkKey struct {
	node  base.NodeID
	class Class
}

var _ Transport = (*GRPC)(nil)

// NewGRPC returns a transport without connections; it dials when there is something to
// send. Invalid options are an Invalid error.
func NewGRPC(opts Options) (*GRPC, error) {
	opts, err := opts.withDefaults()
	if err != nil {
		return nil, err
	}
	g := &GRPC{opts: opts, links: make(map[linkKey]*link), inbound: make(map[linkKey]*inbound)}
	g.ctx, g.cancel = context.WithCancel(context.Background())
	return g, nil
}

// Register adds the peer service to a server. The server's options should be
// ServerOptions, or at least allow frames of 32 MiB.
func (g *GRPC) Register(s grpc.ServiceRegistrar) { s.RegisterService(&serviceDesc, g) }

// Send implements Transport.
func (g *GRPC) Send(to base.NodeID, class Class, msgs ...wire.Message) bool {
	if class >= classes || to == g.opts.Self {
		return false
	}
	size := 0
	for i := range msgs {
		n := wire.Size(&msgs[i])
		if n > MaxMessage {
			g.opts.Logger.Error("message too large for a peer", "node", to, "class", class, "bytes", n)
			g.opts.Listener.Dropped(to, class, len(msgs))
			return false
		}
		size += n
	}
	l := g.link(linkKey{to, class})
	if l != nil && l.queue.add(msgs, size) {
		return true
	}
	g.opts.Listener.Dropped(to, class, len(msgs))
	return false
}

// link returns the link for a peer and class, starting it if need be; nil if the node is
// unknown or the transport closed.
func (g *GRPC) link(key linkKey) *link {
	g.mu.RLock()
	l := g.links[key]
	g.mu.RUnlock()
	if l != nil {
		return l
	}
	if _, ok := g.opts.Resolve(key.node); !ok {
		return nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if l = g.links[key]; l != nil || g.closed {
		return l
	}
	l = newLink(g, key)
	g.links[key] = l
	g.wg.Go(l.run)
	return l
}

// forget ends a link whose node is no longer known.
func (g *GRPC) forget(l *link) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.links, l.key)
}

// Kick makes links that wait to reconnect to a node try again now: its address has
// changed, or it is known to be back.
func (g *GRPC) Kick(node base.NodeID) {
	g.mu.RLock()
	defer g.mu.RUnlock()
	for class := range classes {
		if l := g.links[linkKey{node, class}]; l != nil {
			l.wake()
		}
	}
}

// Close ends all streams in both directions and waits until nothing calls the handler
// or the listener any more. What was queued is dropped.
func (g *GRPC) Close() {
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	g.cancel()
	g.wg.Wait()
}
