package admin

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/engine"
	"github.com/almanacdb/almanac/internal/transport"
)

// traffic is what is counted of one class of messages between nodes.
type traffic struct {
	sent, received, sentBytes, receivedBytes, dropped, connects prometheus.Counter
	connections                                                 prometheus.Gauge
}

// TransportListener returns functions that count what a transport does. They neither
// block nor allocate; a caller that listens itself calls them from its own.
func (s *Server) TransportListener() transport.Listener {
	var counts []traffic // by class
	m := s.metrics
	for c := transport.ClassReplication; c <= transport.ClassBulk; c++ {
		name := c.String()
		counts = append(counts, traffic{
			sent: m.messages.WithLabelValues(name, "sent"), received: m.messages.WithLabelValues(name, "received"),
			sentBytes: m.bytes.WithLabelValues(name, "sent"), receivedBytes: m.bytes.WithLabelValues(name, "received"),
			dropped: m.dropped.WithLabelValues(name), connects: m.connects.WithLabelValues(name),
			connections: m.connections.WithLabelValues(name),
		})
	}
	return transport.Listener{
		Connected: func(_ base.NodeID, c transport.Class) {
			counts[c].connects.Inc()
			counts[c].connections.Inc()
		},
		Disconnected: func(_ base.NodeID, c transport.Class, _ error) { counts[c].connections.Dec() },
		Dropped:      func(_ base.NodeID, c transport.Class, messages int) { counts[c].dropped.Add(float64(messages)) },
		Sent: func(_ base.NodeID, c transport.Class, messages, bytes int) {
			counts[c].sent.Add(float64(messages))
			counts[c].sentBytes.Add(float64(bytes))
		},
		Received: func(_ base.NodeID, c transport.Class, messages, bytes int) {
			counts[c].received.Add(float64(messages))
			counts[c].receivedBytes.Add(float64(bytes))
		},
	}
}

// EngineListener returns functions that count what befalls an engine; store is "log" or
// "state". They neither block nor allocate.
func (s *Server) EngineListener(store string) engine.Listener {
	m := s.metrics
	stalls, stalled := m.stalls.WithLabelValues(store), m.stalled.WithLabelValues(store)
	slow, full := m.slow.WithLabelValues(store), m.full.WithLabelValues(store)
	failures, corruptions := m.failures.WithLabelValues(store), m.corruptions.WithLabelValues(store)
	flushes := m.flushes.WithLabelValues(store)
	return engine.Listener{
		WriteStall: func(now bool, _ string) {
			if now {
				stalls.Inc()
			}
			stalled.Set(truth(now))
		},
		DiskSlow:        func(string, string, time.Duration) { slow.Inc() },
		DiskFull:        func() { full.Inc() },
		BackgroundError: func(error) { failures.Inc() },
		Corruption:      func(error) { corruptions.Inc() },
		Flushed:         func() { flushes.Inc() },
	}
}
