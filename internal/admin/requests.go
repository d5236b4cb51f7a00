package admin

import (
	"context"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	almanacv1 "github.com/almanacdb/almanac/api/almanac/v1"
)

// ServerOptions returns what makes a gRPC server for clients count and time its calls.
// Labels stay bounded whatever clients send: interceptors see registered methods only.
func (s *Server) ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.ChainUnaryInterceptor(s.unary),
		grpc.ChainStreamInterceptor(s.stream),
	}
}

// Unary counts and times a call, for services whose unary methods are served as streams.
func (s *Server) Unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	return s.unary(ctx, req, info, handle)
}

// Refused returns what counts requests that found no room: "memory" or "range".
func (s *Server) Refused(by string) func() { return s.metrics.refused.WithLabelValues(by).Inc }

func (s *Server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	begun := time.Now()
	s.metrics.inFlight.Inc()
	defer s.metrics.inFlight.Dec()
	resp, err := handle(ctx, req)
	service, method := split(info.FullMethod)
	s.metrics.request(service, method, status.Code(err), begun)
	if p, ok := req.(*almanacv1.PublishRequest); ok {
		answer, _ := resp.(*almanacv1.PublishResponse)
		if err != nil {
			answer = nil
		}
		s.metrics.publish(len(p.GetEvents()), answer)
	}
	return resp, err
}

func (s *Server) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	if !info.IsClientStream && !info.IsServerStream {
		return handle(srv, ss) // a unary method, see Unary
	}
	service, method := split(info.FullMethod)
	open := s.metrics.streams.WithLabelValues(service, method)
	open.Inc()
	defer open.Dec()
	switch info.FullMethod {
	case almanacv1.KV_Stream_FullMethodName, almanacv1.Events_Subscribe_FullMethodName:
		ss = &countedStream{ServerStream: ss, server: s, service: service}
	}
	err := handle(srv, ss)
	s.metrics.ended.WithLabelValues(service, method, codeName(status.Code(err))).Inc()
	return err
}

// split takes "/service/method" apart.
func split(full string) (service, method string) {
	service, method, _ = strings.Cut(strings.TrimPrefix(full, "/"), "/")
	return service, method
}

// codeName returns a status code's name; what is no code of gRPC's is as good as Unknown.
func codeName(c codes.Code) string {
	if c > codes.Unauthenticated {
		c = codes.Unknown
	}
	return c.String()
}

func (m *metrics) request(service, method string, c codes.Code, begun time.Time) {
	m.duration.WithLabelValues(service, method, codeName(c)).Observe(time.Since(begun).Seconds())
}

// publish counts what became of the events of one call; without an answer it failed.
func (m *metrics) publish(events int, answer *almanacv1.PublishResponse) {
	var accepted, duplicate, failed int
	if answer != nil {
		for _, e := range answer.GetResults() {
			switch {
			case e.GetError() != nil:
				failed++
			case e.GetDuplicate():
				duplicate++
			default:
				accepted++
			}
		}
	} else {
		failed = events
	}
	add(m.published, accepted, "accepted")
	add(m.published, duplicate, "duplicate")
	add(m.published, failed, "failed")
}
