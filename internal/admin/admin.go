// Package admin is a node's HTTP face: whether it is alive, whether it is ready, and its
// metrics. It owns the list of metrics and what feeds them: interceptors for gRPC
// servers, listeners for transport and engines, and a look at the replicas when it is
// asked. It refuses to know how a node is wired; package node gives it what it looks at.
package admin

import (
	"log/slog"
	"net/http"
	"net/http/pprof"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/clock"
	"github.com/almanacdb/almanac/internal/replica"
	"github.com/almanacdb/almanac/internal/store"
)

// Options configure a Server. The functions are called from requests, several at a
// time, and must return soon; each may be nil, then what it tells is left out.
type Options struct {
	Version string
	Logger  *slog.Logger // default: discard
	// Address is the client address that the node advertises; remedies name it.
	Address string
	// Failed returns why the node can't go on; nil while it can.
	Failed func() error
	// Memory is what the process should stay within, in bytes; 0 for no limit.
	Memory int64
	// Parts returns the shares of it.
	Parts func() []MemoryPart
	// Disk returns the size of the file system that holds the data directory, and what
	// is free on it.
	Disk func() (size, free uint64)
	// StoreBytes returns what the state store takes on disk.
	StoreBytes func() uint64
}

// MemoryPart is a share of the memory budget, in bytes.
type MemoryPart struct {
	Name    string
	Budget  int64
	Used    int64
	Counted bool // Used is known
}

// Member is what a node knows once it belongs to a cluster; *store.Store is one.
type Member interface {
	Clock() clock.Clock
	// Replicas returns what is known of all replicas here.
	Replicas() []*replica.Visible
	// Rebuilding returns how far the node is with getting back the replicas that it lost
	// with its stores; false if they are whole.
	Rebuilding() (store.Rebuilding, bool)
	// OracleAnchor returns the last oracle time seen here and when that was; false if
	// none has been seen yet.
	OracleAnchor() (ms int64, at clock.Mono, ok bool)
	// FetchStamps asks the oracle for n timestamps; done must not block.
	FetchStamps(n int, done func(first base.Timestamp, err error))
}

// Server answers health checks and serves metrics. Safe for concurrent use.
type Server struct {
	opts     Options
	member   atomic.Pointer[Member] // nil: uninitialised
	stopping atomic.Bool
	registry *prometheus.Registry
	metrics  *metrics
	http     *http.Server
}

// New returns a server for a node that belongs to no cluster yet.
func New(o Options) *Server {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Failed == nil {
		o.Failed = func() error { return nil }
	}
	s := &Server{opts: o, registry: prometheus.NewRegistry(), metrics: newMetrics()}
	s.registry.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		state{s},
	)
	s.registry.MustRegister(s.metrics.all...)
	s.http = &http.Server{
		Handler:           s.routes(),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(o.Logger.Handler(), slog.LevelDebug),
	}
	return s
}

// SetMember tells the server that the node has joined its cluster. Before, the node is
// uninitialised and not ready.
func (s *Server) SetMember(m Member) { s.member.Store(&m) }

// Stopping tells the server that the node shuts down: it is alive but not ready, so that
// load balancers turn away from it.
func (s *Server) Stopping() { s.stopping.Store(true) }

// Handler returns what answers /healthz, /readyz and /metrics.
func (s *Server) Handler() http.Handler { return s.http.Handler }

// HTTPServer returns the server to run, bounded against slow and greedy clients. It is
// always the same one; the caller serves and closes it.
func (s *Server) HTTPServer() *http.Server { return s.http }

func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", s.index)
	mux.HandleFunc("GET /healthz", s.healthz)
	mux.HandleFunc("GET /readyz", s.readyz)
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.registry, promhttp.HandlerOpts{
		ErrorLog:            slog.NewLogLogger(s.opts.Logger.Handler(), slog.LevelWarn),
		ErrorHandling:       promhttp.ContinueOnError,
		MaxRequestsInFlight: 4,
		Timeout:             20 * time.Second,
	}))
	return mux
}

// joined returns the member; nil before the node has joined.
func (s *Server) joined() Member {
	if m := s.member.Load(); m != nil {
		return *m
	}
	return nil
}

// oracleNow returns oracle time since 1970 as this node knows it: the last fetch plus
// monotonic time, or the wall clock if there was no fetch yet. Fetches come in whole
// milliseconds and count as of their receipt, so it is never ahead.
func oracleNow(m Member) time.Duration {
	if ms, at, ok := m.OracleAnchor(); ok {
		return time.Duration(ms)*time.Millisecond + m.Clock().Mono().Sub(at)
	}
	return time.Duration(m.Clock().WallMS()) * time.Millisecond
}
