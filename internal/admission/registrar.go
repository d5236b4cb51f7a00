package admission

import (
	"context"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/proto"

	"github.com/almanacdb/almanac/internal/fault"
)

// streamBytes is about what an open stream of a client takes while nothing is in flight:
// goroutines, and what flow control lets a peer send unasked.
const streamBytes = 32 << 10

// Registrar registers services so that what their calls make this node hold comes out
// of an Intake, from before a message is received until the answer is sent.
type Registrar struct {
	Server grpc.ServiceRegistrar
	Intake *Intake
	// Status turns a fault into what ends a call, as the face of the services does.
	Status func(context.Context, error) error
	// Unary, if set, is called around the handlers of unary methods.
	Unary grpc.UnaryServerInterceptor
	// Waits, if set, ends what clients let wait. The server needs Codec then.
	Waits *Waits

	mu      sync.Mutex
	streams map[any]int // open ones, by connection: each has an address of its own
}

// RegisterService implements grpc.ServiceRegistrar. Unary methods are served as streams
// of one message each way, which look the same to a client: a handler of gRPC's own
// receives the message before anybody is asked, and returns before the answer is sent.
func (r *Registrar) RegisterService(d *grpc.ServiceDesc, impl any) {
	wrapped := *d
	wrapped.Methods = nil
	wrapped.Streams = make([]grpc.StreamDesc, 0, len(d.Methods)+len(d.Streams))
	for _, m := range d.Methods {
		wrapped.Streams = append(wrapped.Streams, grpc.StreamDesc{
			StreamName: m.MethodName, Handler: r.unary("/"+d.ServiceName+"/"+m.MethodName, m.Handler),
		})
	}
	for _, s := range d.Streams {
		s.Handler = r.stream(s.Handler)
		wrapped.Streams = append(wrapped.Streams, s)
	}
	r.Server.RegisterService(&wrapped, impl)
}

func (r *Registrar) unary(method string, handle grpc.MethodHandler) grpc.StreamHandler {
	around := func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		info.FullMethod = method
		return r.Unary(ctx, req, info, next)
	}
	if r.Unary == nil {
		around = nil
	}
	return func(impl any, s grpc.ServerStream) error {
		call, err := r.Intake.Enter()
		if err != nil {
			return r.Status(s.Context(), err)
		}
		defer call.Leave()
		receive := func(m any) error {
			if err := r.Waits.receive(s, r.Intake.begun(), m); err != nil {
				if fault.KindOf(err) == fault.Busy {
					return r.Status(s.Context(), err)
				}
				return err
			}
			if err := call.Hold(messageBytes(m)); err != nil {
				return r.Status(s.Context(), err)
			}
			return nil
		}
		reply, err := handle(impl, With(s.Context(), call), receive, around)
		if err != nil {
			return err
		}
		return r.Waits.sendReply(s, reply)
	}
}

func (r *Registrar) stream(handle grpc.StreamHandler) grpc.StreamHandler {
	return func(impl any, s grpc.ServerStream) error {
		leave, err := r.join(s.Context())
		if err != nil {
			return r.Status(s.Context(), err)
		}
		defer leave()
		if !r.Intake.Streams.Take(streamBytes) {
			return r.Status(s.Context(), fault.New(fault.Busy, "the memory of this node that is for streams is used up").
				WithRemedy("use fewer streams, or give the node more memory with --memory"))
		}
		defer r.Intake.Streams.Put(streamBytes)
		if r.Waits != nil {
			s = &watchedStream{ServerStream: s, waits: r.Waits}
		}
		return handle(impl, s)
	}
}

// join counts a stream of a connection, so that no connection takes more than a quarter of
// what there is for streams from the others. The error is Busy; else the caller must leave.
func (r *Registrar) join(ctx context.Context) (leave func(), err error) {
	p, ok := peer.FromContext(ctx)
	if !ok || r.Intake.Streams == nil {
		return func() {}, nil
	}
	most := max(int(r.Intake.Streams.Limit())/streamBytes/4, 1)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.streams[p.Addr] >= most {
		return nil, fault.New(fault.Busy, "the connection has %d streams, which is all that this node's --memory allows one", most).
			WithRemedy("close streams, use more connections, or give the node more memory")
	}
	if r.streams == nil {
		r.streams = make(map[any]int)
	}
	r.streams[p.Addr]++
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.streams[p.Addr]--; r.streams[p.Addr] == 0 {
			delete(r.streams, p.Addr)
		}
	}, nil
}

// messageBytes is about what a received message takes: itself, and the command that is
// made of it.
func messageBytes(m any) int {
	if p, ok := m.(proto.Message); ok {
		return 2 * proto.Size(p)
	}
	return 0
}
