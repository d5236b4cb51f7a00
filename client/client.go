// Package client is Almanac's Go client: keys, events and the state of the cluster. It
// owns connections, retries and subscriptions; it refuses to know how ranges are
// placed, beyond following the hints that nodes give.
//
// Everything here may be used by many goroutines at once. Every error is an *Error.
//
// Calls are repeated with growing, jittered pauses only where that is safe: reads on
// any passing failure, writes only when it is certain that nothing was done.
package client

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
)

// DefaultEndpoint is where a node listens unless it is told otherwise.
const DefaultEndpoint = "127.0.0.1:7400"

const (
	defaultTimeout   = 30 * time.Second
	defaultRetryFor  = 10 * time.Second
	maxReceiveBytes  = 64 << 20
	maxHintedServers = 256 // addresses learned from hints, beyond the endpoints
)

// Options says how to reach a cluster.
type Options struct {
	// Endpoints are client addresses (host:port) of some nodes, in any order. None
	// means DefaultEndpoint.
	Endpoints []string
	// Timeout bounds a call whose context has no deadline; 0 means 30 s, a negative one
	// no bound. Subscriptions are not bounded.
	Timeout time.Duration
	// RetryFor bounds how long one call is repeated; 0 means 10 s, a negative one turns
	// retries off.
	RetryFor time.Duration
	// DialOptions are added to those of every connection.
	DialOptions []grpc.DialOption

	pause func(attempt int) time.Duration // replaced by tests
}

// Client talks to one cluster. Close it after use.
type Client struct {
	KV      *KV
	Events  *Events
	Cluster *Cluster

	opts      Options
	preferred atomic.Uint32 // index into endpoints of the one in use

	mu        sync.Mutex
	endpoints []*server          // as configured
	servers   map[string]*server // by address, hinted ones included
	closed    bool
}

// Open returns a client. It makes no connection yet: nodes may come up later.
func Open(ctx context.Context, opts Options) (*Client, error) {
	if err := ctx.Err(); err != nil {
		return nil, fromContext(err)
	}
	if len(opts.Endpoints) == 0 {
		opts.Endpoints = []string{DefaultEndpoint}
	}
	if opts.Timeout == 0 {
		opts.Timeout = defaultTimeout
	}
	if opts.RetryFor == 0 {
		opts.RetryFor = defaultRetryFor
	}
	if opts.pause == nil {
		opts.pause = jitteredPause
	}
	c := &Client{opts: opts, servers: make(map[string]*server)}
	c.KV, c.Events, c.Cluster = &KV{c: c}, &Events{c: c}, &Cluster{c: c}
	for _, address := range opts.Endpoints {
		if _, _, err := net.SplitHostPort(address); err != nil {
			return nil, &Error{
				Reason:  ReasonInvalid,
				Message: "endpoint \"" + address + "\" is not an address",
				Remedy:  "write it as host:port, for example " + DefaultEndpoint,
			}
		}
		s, err := c.server(address)
		if err != nil {
			_ = c.Close()
			return nil, err
		}
		c.endpoints = append(c.endpoints, s)
	}
	return c, nil
}

// Close breaks all connections. Calls in flight fail; writes among them have an unknown
// outcome. Subscriptions should be closed before.
func (c *Client) Close() error {
	c.mu.Lock()
	c.closed = true
	servers := c.servers
	c.servers = map[string]*server{}
	c.mu.Unlock()
	var errs []error
	for _, s := range servers {
		errs = append(errs, s.close())
	}
	return errors.Join(errs...)
}

// server returns the server at an address, known or new.
func (c *Client) server(address string) (*server, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, errClosed("the client")
	}
	if s := c.servers[address]; s != nil {
		return s, nil
	}
	s, err := newServer(address, c.opts.DialOptions)
	if err == nil {
		c.servers[address] = s
	}
	return s, err
}

// hinted returns the server that an error named, or nil.
func (c *Client) hinted(e *Error) *server {
	if e.Reason != ReasonNotLeader || e.leader == "" {
		return nil
	}
	c.mu.Lock()
	full := c.servers[e.leader] == nil && len(c.servers) >= len(c.endpoints)+maxHintedServers
	c.mu.Unlock()
	if full {
		return nil
	}
	s, err := c.server(e.leader)
	if err != nil {
		return nil
	}
	return s
}

// current returns the endpoint in use.
func (c *Client) current() *server {
	return c.endpoints[int(c.preferred.Load())%len(c.endpoints)]
}

// leave makes another endpoint the one in use, unless somebody did so already.
func (c *Client) leave(s *server) {
	i := c.preferred.Load()
	if c.endpoints[int(i)%len(c.endpoints)] == s {
		c.preferred.CompareAndSwap(i, i+1)
	}
}

// server is one node as the client sees it: a connection, and the stream that KV calls
// share.
type server struct {
	address string
	conn    *grpc.ClientConn

	mu  sync.Mutex
	mux *mux // nil or broken: the next call opens one
}

func newServer(address string, extra []grpc.DialOption) (*server, error) {
	options := append([]grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
			MinConnectTimeout: 3 * time.Second,
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 15 * time.Second, Timeout: 5 * time.Second}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxReceiveBytes)),
		grpc.WithDisableServiceConfig(),
		grpc.WithDisableRetry(), // repeating is decided here alone
	}, extra...)
	conn, err := grpc.NewClient("passthrough:///"+address, options...)
	if err != nil {
		return nil, &Error{Reason: ReasonInvalid, Message: "cannot use endpoint \"" + address + "\": " + err.Error(), cause: err}
	}
	return &server{address: address, conn: conn}, nil
}

func (s *server) close() error {
	s.mu.Lock()
	m := s.mux
	s.mux = nil
	s.mu.Unlock()
	if m != nil {
		m.fail(errClosed("the client"))
	}
	if err := s.conn.Close(); err != nil {
		return fromStatus(err)
	}
	return nil
}
