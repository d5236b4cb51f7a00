package transport

import (
	"context"
	"net"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/wire"
)

// TCP carries messages over connections of its own: for each peer and class one that this
// node dials, one way. Goroutines: per outgoing link one that dials and sends, and one
// that notices the connection's end; per incoming connection one that receives. Safe for
// concurrent use.
type TCP struct {
	opts   Options
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup // every goroutine that may call out

	refusals, breaks rate.Sometimes // how often the log tells of connections that came in

	mu      sync.RWMutex
	closed  bool
	links   map[linkKey]*link
	inbound map[linkKey]*inbound
	conns   map[net.Conn]struct{} // incoming
}

// linkKey names a peer and a class.
type linkKey struct {
	node  base.NodeID
	class Class
}

var _ Transport = (*TCP)(nil)

// NewTCP returns a transport without connections; it dials when there is something to
// send. Invalid options are an Invalid error.
func NewTCP(opts Options) (*TCP, error) {
	opts, err := opts.withDefaults()
	if err != nil {
		return nil, err
	}
	t := &TCP{opts: opts, links: make(map[linkKey]*link), inbound: make(map[linkKey]*inbound), conns: make(map[net.Conn]struct{})}
	t.refusals.First, t.refusals.Interval = 10, time.Second
	t.breaks.First, t.breaks.Interval = 10, time.Second
	t.ctx, t.cancel = context.WithCancel(context.Background())
	return t, nil
}

// Send implements Transport.
func (t *TCP) Send(to base.NodeID, class Class, msgs ...wire.Message) bool {
	if class >= classes || to == t.opts.Self {
		return false
	}
	size := 0
	for i := range msgs {
		n := wire.Size(&msgs[i])
		if n > MaxMessage {
			t.opts.Logger.Error("message too large for a peer", "node", to, "class", class, "bytes", n)
			t.opts.Listener.Dropped(to, class, len(msgs))
			return false
		}
		size += n
	}
	l := t.link(linkKey{to, class})
	if l != nil && l.queue.add(msgs, size) {
		return true
	}
	t.opts.Listener.Dropped(to, class, len(msgs))
	return false
}

// link returns the link for a peer and class, starting it if need be; nil if the node is
// unknown or the transport closed.
func (t *TCP) link(key linkKey) *link {
	t.mu.RLock()
	l := t.links[key]
	t.mu.RUnlock()
	if l != nil {
		return l
	}
	if _, ok := t.opts.Resolve(key.node); !ok {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if l = t.links[key]; l != nil || t.closed {
		return l
	}
	l = newLink(t, key)
	t.links[key] = l
	t.wg.Go(l.run)
	return l
}

// forget ends a link whose node is no longer known.
func (t *TCP) forget(l *link) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.links, l.key)
}

// Kick makes links that wait to reconnect to a node try again now: its address has
// changed, or it is known to be back.
func (t *TCP) Kick(node base.NodeID) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for class := range classes {
		if l := t.links[linkKey{node, class}]; l != nil {
			l.wake()
		}
	}
}

// Close ends all connections in both directions and waits until nothing calls the handler
// or the listener any more. What was queued is dropped.
func (t *TCP) Close() {
	t.mu.Lock()
	t.closed = true
	for conn := range t.conns {
		conn.Close()
	}
	t.mu.Unlock()
	t.cancel()
	t.wg.Wait()
}
