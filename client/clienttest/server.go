// Package clienttest is a server in memory for tests of programs that use the client.
// It owns a small model of keys and events and the means to make it fail; it refuses to
// know how a real node works.
package clienttest

import (
	"context"
	"errors"
	"net"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	almanacv1 "github.com/almanacdb/almanac/api/almanac/v1"
)

// Faults are asked before the model does something; a nil func, or a nil answer, lets it
// go on. They may block. Set them before the server is used.
type Faults struct {
	// Call may answer a call on the KV stream in the model's place.
	Call func(*almanacv1.StreamCall) *almanacv1.StreamReply
	// Unary may fail a unary call, by its full method name.
	Unary func(method string, request any) error
	// Publish may answer one event in the model's place.
	Publish func(*almanacv1.NewEvent) *almanacv1.Published
	// Ack may answer an ack in the model's place.
	Ack func(*almanacv1.Ack) *almanacv1.AckResult
	// Notice may tell a subscriber, once it has joined, why events are held back.
	Notice func() *almanacv1.Error
	// Open may fail a subscription.
	Open func(*almanacv1.SubscribeOpen) error
}

// Server is one node in memory.
type Server struct {
	almanacv1.UnimplementedKVServer
	almanacv1.UnimplementedEventsServer

	Faults Faults

	// What the Cluster service answers.
	StatusAnswer *almanacv1.StatusResponse
	NodeList     []*almanacv1.Node
	RangeList    []*almanacv1.RangeInfo

	listener *bufconn.Listener
	grpc     *grpc.Server
	done     chan struct{} // closed when the server stops

	mu       sync.Mutex
	cut      chan struct{} // closed to break all streams
	frames   int           // KV frames received
	calls    int           // calls in them
	revision uint64
	keys     map[string]*almanacv1.KeyValue
	topics   map[string]*topic
}

// Start returns a running server; Stop it.
func Start() *Server {
	s := &Server{
		listener: bufconn.Listen(1 << 20), done: make(chan struct{}), cut: make(chan struct{}),
		revision: 1 << 60, keys: map[string]*almanacv1.KeyValue{}, topics: map[string]*topic{},
	}
	s.grpc = grpc.NewServer(grpc.UnaryInterceptor(s.intercept), grpc.MaxRecvMsgSize(64<<20))
	almanacv1.RegisterKVServer(s.grpc, s)
	almanacv1.RegisterEventsServer(s.grpc, s)
	almanacv1.RegisterClusterServer(s.grpc, clusterServer{s: s})
	go func() { _ = s.grpc.Serve(s.listener) }() // ends when the server stops
	return s
}

// Stop breaks every connection.
func (s *Server) Stop() {
	s.mu.Lock()
	select {
	case <-s.done:
	default:
		close(s.done)
	}
	s.mu.Unlock()
	s.grpc.Stop()
	_ = s.listener.Close()
}

// BreakStreams ends every stream with an error, as a lost connection does.
func (s *Server) BreakStreams() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.cut)
	s.cut = make(chan struct{})
}

// Received returns how many KV frames came, and how many calls in them.
func (s *Server) Received() (frames, calls int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.frames, s.calls
}

// broken returns a channel that is closed when streams opened now are broken.
func (s *Server) broken() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cut
}

// errBroken is what a stream ends with when it is broken: gRPC's own words, without
// detail.
var errBroken = status.Error(codes.Unavailable, "the connection broke")

func (s *Server) intercept(ctx context.Context, request any, info *grpc.UnaryServerInfo, do grpc.UnaryHandler) (any, error) {
	if s.Faults.Unary != nil {
		if err := s.Faults.Unary(info.FullMethod, request); err != nil {
			return nil, err
		}
	}
	return do(ctx, request)
}

// Network connects clients with servers by address.
type Network map[string]*Server

// DialOption makes a client use the network.
func (n Network) DialOption() grpc.DialOption {
	return grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
		s := n[address]
		if s == nil {
			return nil, errors.New("connection refused")
		}
		select {
		case <-s.done:
			return nil, errors.New("connection refused")
		default:
		}
		return s.listener.DialContext(ctx)
	})
}

// Error returns an error as servers send it inside a message.
func Error(code codes.Code, reason, message string) *almanacv1.Error {
	return &almanacv1.Error{
		Code: int32(code), Message: message,
		Detail: &almanacv1.ErrorDetail{Reason: reason, Remedy: "remedy of " + reason},
	}
}

// StatusError returns an error as servers fail a call with it.
func StatusError(code codes.Code, reason, message string) error {
	e := Error(code, reason, message)
	st, err := status.New(code, message).WithDetails(e.GetDetail())
	if err != nil {
		return err
	}
	return st.Err()
}

// clusterServer answers what the Server was told to.
type clusterServer struct {
	almanacv1.UnimplementedClusterServer
	s *Server
}

func (c clusterServer) Init(context.Context, *almanacv1.InitRequest) (*almanacv1.InitResponse, error) {
	return &almanacv1.InitResponse{ClusterId: "00112233445566778899aabbccddeeff", NodeId: 1}, nil
}

func (c clusterServer) Status(context.Context, *almanacv1.StatusRequest) (*almanacv1.StatusResponse, error) {
	if c.s.StatusAnswer == nil {
		return &almanacv1.StatusResponse{}, nil
	}
	return c.s.StatusAnswer, nil
}

func (c clusterServer) Nodes(context.Context, *almanacv1.NodesRequest) (*almanacv1.NodesResponse, error) {
	return &almanacv1.NodesResponse{Nodes: c.s.NodeList}, nil
}

func (c clusterServer) Ranges(context.Context, *almanacv1.RangesRequest) (*almanacv1.RangesResponse, error) {
	return &almanacv1.RangesResponse{Ranges: c.s.RangeList}, nil
}

// Stopped is closed when the server stops; a fault that never answers waits for it.
func (s *Server) Stopped() <-chan struct{} { return s.done }
