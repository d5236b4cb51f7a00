package node

import (
	"io"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/almanacdb/almanac/internal/transport"
)

// peerPort is the listener of the peer port for gRPC. Connections that begin as those of
// another node's transport do go there instead.
type peerPort struct {
	net.Listener
	transport func(net.Conn) // nil: not a member yet, peers' connections are closed
	grpc      chan net.Conn
	done      chan struct{} // closed when the listener is
	work      sync.WaitGroup

	mu      sync.Mutex
	closed  bool
	unknown map[net.Conn]struct{} // accepted, and not heard of yet
}

// greetTimeout is how long a connection may say nothing.
const greetTimeout = 5 * time.Second

func newPeerPort(l net.Listener, transport func(net.Conn)) *peerPort {
	p := &peerPort{
		Listener: l, transport: transport, grpc: make(chan net.Conn), done: make(chan struct{}),
		unknown: make(map[net.Conn]struct{}),
	}
	p.work.Go(p.accept)
	return p
}

// accept takes connections until the listener is closed.
func (p *peerPort) accept() {
	defer close(p.done)
	for {
		conn, err := p.Listener.Accept()
		if err != nil {
			if p.ended() {
				return
			}
			time.Sleep(10 * time.Millisecond) // out of files, say: it passes or the operator sees it
			continue
		}
		p.mu.Lock()
		if p.closed {
			p.mu.Unlock()
			conn.Close()
			return
		}
		p.unknown[conn] = struct{}{}
		p.work.Go(func() { p.sort(conn) })
		p.mu.Unlock()
	}
}

func (p *peerPort) ended() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.closed
}

// sort reads how a connection begins and hands it on.
func (p *peerPort) sort(conn net.Conn) {
	_ = conn.SetReadDeadline(time.Now().Add(greetTimeout)) // what fails here fails below
	first := make([]byte, len(transport.Preface))
	_, err := io.ReadFull(conn, first)
	p.mu.Lock()
	delete(p.unknown, conn)
	p.mu.Unlock()
	switch {
	case err != nil:
		conn.Close()
	case string(first) != transport.Preface:
		_ = conn.SetReadDeadline(time.Time{})
		select {
		case p.grpc <- &begun{Conn: conn, first: first}:
		case <-p.done:
			conn.Close()
		}
	case p.transport == nil:
		conn.Close()
	default:
		p.transport(conn)
	}
}

// Accept implements net.Listener for gRPC.
func (p *peerPort) Accept() (net.Conn, error) {
	select {
	case conn := <-p.grpc:
		return conn, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener. Connections that were handed to the transport stay.
func (p *peerPort) Close() error {
	p.mu.Lock()
	p.closed = true
	for conn := range p.unknown {
		conn.Close()
	}
	p.mu.Unlock()
	return p.Listener.Close()
}

// begun is a connection of which the first bytes were read.
type begun struct {
	net.Conn
	first []byte
}

// Read implements net.Conn.
func (b *begun) Read(to []byte) (int, error) {
	if len(b.first) > 0 {
		n := copy(to, b.first)
		b.first = b.first[n:]
		return n, nil
	}
	return b.Conn.Read(to)
}

// servePeers runs the peer port's gRPC server, and the transport beside it, if there is
// one, in goroutines that Stop waits for.
func (n *Node) servePeers(s *grpc.Server, transport func(net.Conn)) {
	n.work.Go(func() {
		p := newPeerPort(n.connections.peer.listener(n.ports.peer.reuse()), transport)
		_ = s.Serve(p) // ends when the server is stopped
		p.work.Wait()
	})
}

// peerServerOptions bound what a caller on the peer port may cost.
func peerServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.MaxConcurrentStreams(16),
		grpc.ConnectionTimeout(greetTimeout),
		grpc.MaxRecvMsgSize(1 << 20),
		grpc.MaxHeaderListSize(16 << 10),
	}
}
