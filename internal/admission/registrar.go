package admission

import (
	"context"

	"google.golang.org/grpc"
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
			if err := s.RecvMsg(m); err != nil {
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
		return s.SendMsg(reply)
	}
}

func (r *Registrar) stream(handle grpc.StreamHandler) grpc.StreamHandler {
	return func(impl any, s grpc.ServerStream) error {
		if !r.Intake.Streams.Take(streamBytes) {
			return r.Status(s.Context(), fault.New(fault.Busy, "the memory of this node that is for streams is used up").
				WithRemedy("use fewer streams, or give the node more memory with --memory"))
		}
		defer r.Intake.Streams.Put(streamBytes)
		return handle(impl, s)
	}
}

// messageBytes is about what a received message takes: itself, and the command that is
// made of it.
func messageBytes(m any) int {
	if p, ok := m.(proto.Message); ok {
		return 2 * proto.Size(p)
	}
	return 0
}
