package admin

import "github.com/prometheus/client_golang/prometheus"

// metrics are those that are counted as things happen; state looks the others up when
// it is asked.
type metrics struct {
	all []prometheus.Collector

	published   *prometheus.CounterVec
	delivered   prometheus.Counter
	redelivered prometheus.Counter
	lateness    prometheus.Histogram
	acked       *prometheus.CounterVec

	duration *prometheus.HistogramVec
	inFlight prometheus.Gauge
	refused  *prometheus.CounterVec
	streams  *prometheus.GaugeVec
	ended    *prometheus.CounterVec

	messages    *prometheus.CounterVec
	bytes       *prometheus.CounterVec
	dropped     *prometheus.CounterVec
	connects    *prometheus.CounterVec
	connections *prometheus.GaugeVec

	stalls, slow, full, failures, corruptions, flushes *prometheus.CounterVec
	stalled                                            *prometheus.GaugeVec
}

// Buckets in seconds. A request takes from a read in memory to its deadline; an event
// may be late by what an election takes, or by however long its group was away.
var (
	durationBuckets = []float64{0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10}
	latenessBuckets = []float64{0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60, 600, 3600}
)

func newMetrics() *metrics {
	m := &metrics{}
	m.published = m.counters(eventsPublished)
	m.delivered = m.counters(eventsDelivered).WithLabelValues()
	m.redelivered = m.counters(eventsRedelivered).WithLabelValues()
	m.acked = m.counters(eventsAcked)
	m.duration = m.histograms(requestDuration, durationBuckets)
	m.inFlight = m.gauges(requestsInFlight).WithLabelValues()
	m.refused = m.counters(requestsRefused)
	m.streams = m.gauges(streamsOpen)
	m.ended = m.counters(streamsEnded)
	m.messages = m.counters(transportMessages)
	m.bytes = m.counters(transportBytes)
	m.dropped = m.counters(transportDropped)
	m.connects = m.counters(transportConnects)
	m.connections = m.gauges(transportConnections)
	m.stalls = m.counters(storeStalls)
	m.stalled = m.gauges(storeStalled)
	m.slow = m.counters(storeSlow)
	m.full = m.counters(storeFull)
	m.failures = m.counters(storeErrors)
	m.corruptions = m.counters(storeCorruptions)
	m.flushes = m.counters(storeFlushes)

	for _, result := range []string{"accepted", "duplicate", "failed"} {
		m.published.WithLabelValues(result) // shown before the first is counted
	}
	for _, by := range []string{"memory", "range"} {
		m.refused.WithLabelValues(by)
	}
	for _, outcome := range []string{"done", "already", "not_found", "window_full", "failed"} {
		m.acked.WithLabelValues(outcome)
	}
	lateness := &table[deliveryLateness]
	m.lateness = prometheus.NewHistogram(prometheus.HistogramOpts{Name: lateness.name, Help: lateness.help, Buckets: latenessBuckets})
	m.all = append(m.all, m.lateness)
	return m
}

func (m *metrics) counters(i id) *prometheus.CounterVec {
	d := &table[i]
	v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: d.name, Help: d.help}, d.labels)
	m.all = append(m.all, v)
	return v
}

func (m *metrics) gauges(i id) *prometheus.GaugeVec {
	d := &table[i]
	v := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: d.name, Help: d.help}, d.labels)
	m.all = append(m.all, v)
	return v
}

func (m *metrics) histograms(i id, buckets []float64) *prometheus.HistogramVec {
	d := &table[i]
	v := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: d.name, Help: d.help, Buckets: buckets}, d.labels)
	m.all = append(m.all, v)
	return v
}
