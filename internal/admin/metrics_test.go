package admin

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"google.golang.org/grpc/codes"

	almanacv1 "github.com/almanacdb/almanac/api/almanac/v1"
	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/replica"
	"github.com/almanacdb/almanac/internal/transport"
)

func TestTable(t *testing.T) {
	seen := make(map[string]bool)
	name := regexp.MustCompile(`^almanac(_[a-z]+)+$`)
	for i, m := range table {
		switch {
		case !name.MatchString(m.name) || seen[m.name]:
			t.Errorf("row %d: name %q", i, m.name)
		case m.kind != counter && m.kind != gauge && m.kind != histogram:
			t.Errorf("%s: kind %q", m.name, m.kind)
		case !strings.HasSuffix(m.help, "."):
			t.Errorf("%s: %q is no sentence", m.name, m.help)
		case strings.HasSuffix(m.name, "_total") != (m.kind == counter):
			t.Errorf("%s is a %s", m.name, m.kind)
		case (m.unit == "seconds" || m.unit == "bytes") && !strings.Contains(m.name, "_"+m.unit):
			t.Errorf("%s is in %s and does not say so", m.name, m.unit)
		case m.unit == "" && m.kind != gauge:
			t.Errorf("%s has no unit", m.name)
		}
		seen[m.name] = true
	}
}

func TestRegisteredAreThoseInTheTable(t *testing.T) {
	ch := make(chan *prometheus.Desc)
	go func() {
		New(Options{}).registry.Describe(ch)
		close(ch)
	}()
	fqName := regexp.MustCompile(`fqName: "(almanac_[^"]*)"`)
	var got, want []string
	for d := range ch {
		if m := fqName.FindStringSubmatch(d.String()); m != nil {
			got = append(got, m[1])
		}
	}
	for _, m := range table {
		want = append(want, m.name)
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("registered:\n%v\nin the table:\n%v", got, want)
	}
}

// exercised returns a server that has something to say about every metric.
func exercised(m Member) *Server {
	s := New(Options{
		Version: "v1", Memory: 1 << 30,
		Parts:      func() []MemoryPart { return []MemoryPart{{Name: "requests", Budget: 10, Used: 1, Counted: true}} },
		Disk:       func() (uint64, uint64) { return 100, 60 },
		StoreBytes: func() uint64 { return 40 },
	})
	s.SetMember(m)
	tl := s.TransportListener()
	for c := transport.ClassReplication; c <= transport.ClassBulk; c++ {
		tl.Connected(2, c)
		tl.Sent(2, c, 1, 10)
	}
	for _, store := range []string{"log", "state"} {
		s.EngineListener(store).Flushed()
	}
	s.metrics.request("almanac.v1.KV", "Get", codes.OK, time.Now())
	s.metrics.streams.WithLabelValues("almanac.v1.KV", "Stream").Inc()
	s.metrics.ended.WithLabelValues("almanac.v1.KV", "Stream", "OK").Inc()
	s.delivered(&almanacv1.Deliveries{Events: []*almanacv1.Delivery{{Position: &almanacv1.Position{DueMs: wallMS}}}})
	return s
}

// gathered returns the names of what a server shows, with kind and labels.
func gathered(t *testing.T, s *Server) (shown map[string]metric, series int) {
	t.Helper()
	families, err := s.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	shown = make(map[string]metric)
	for _, f := range families {
		if !strings.HasPrefix(f.GetName(), "almanac_") {
			continue
		}
		m := metric{name: f.GetName(), kind: kind(strings.ToLower(f.GetType().String())), help: f.GetHelp()}
		for _, l := range f.GetMetric()[0].GetLabel() {
			m.labels = append(m.labels, l.GetName())
		}
		shown[m.name] = m
		series += len(f.GetMetric())
	}
	return shown, series
}

func TestShownAreThoseInTheTable(t *testing.T) {
	shown, _ := gathered(t, exercised(newCluster(leading())))
	for _, m := range table {
		got, ok := shown[m.name]
		if !ok {
			t.Errorf("%s is not shown", m.name)
			continue
		}
		labels := slices.Sorted(slices.Values(m.labels))
		if got.kind != m.kind || got.help != m.help || !slices.Equal(got.labels, labels) {
			t.Errorf("%s is shown as %+v", m.name, got)
		}
		delete(shown, m.name)
	}
	for name := range shown {
		t.Errorf("%s is shown but not in the table", name)
	}
}

func TestMetricsFollowPrometheusConventions(t *testing.T) {
	families, err := exercised(newCluster(leading())).registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	problems, err := promlint.NewWithMetricFamilies(families).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, "almanac_") {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
}

func TestGoAndProcessMetricsAreShown(t *testing.T) {
	_, body := get(t, New(Options{}), "/metrics")
	for _, name := range []string{"go_goroutines ", "process_open_fds ", "almanac_node_up 1", "almanac_node_member 0"} {
		if !strings.Contains(body, name) {
			t.Errorf("%s is missing", name)
		}
	}
}

// However many ranges a node holds, it shows the same number of series.
func TestSeriesDoNotGrowWithRanges(t *testing.T) {
	few, many := newCluster(leading()), newCluster(leading())
	for r := base.RangeID(2); r < 3000; r++ {
		v := replicaOf(r, base.NodeID(r%7))
		v.Orderer, v.NextDueMS, v.Sessions = r%2 == 0, wallMS-int64(r), int(r)
		v.Descriptor.Topic = base.TopicID(r)
		many.replicas = append(many.replicas, v)
	}
	_, a := gathered(t, exercised(few))
	_, b := gathered(t, exercised(many))
	if a != b {
		t.Errorf("%d series with one range, %d with many", a, b)
	}
}

func TestNodeMetrics(t *testing.T) {
	var failed error
	s := exercised(newCluster(leading()))
	s.opts.Failed = func() error { return failed }
	expect(t, s, "almanac_node_up 1", "almanac_node_member 1", "almanac_node_memory_limit_bytes 1.073741824e+09",
		"almanac_node_disk_size_bytes 100", "almanac_node_disk_free_bytes 60", "almanac_state_bytes 40")
	failed = errors.New("gone")
	expect(t, s, "almanac_node_up 0")
}

// expect checks that a server shows these lines.
func expect(t *testing.T, s *Server, lines ...string) {
	t.Helper()
	_, body := get(t, s, "/metrics")
	for _, line := range lines {
		if !strings.Contains("\n"+body, "\n"+line+"\n") {
			i := strings.IndexAny(line, "{ ")
			got := regexp.MustCompile(`(?m)^`+line[:i]+`[{ ].*$`).FindAllString(body, -1)
			t.Errorf("want %s\ngot  %s", line, strings.Join(got, "\n     "))
		}
	}
}

func TestSummary(t *testing.T) {
	follower := replicaOf(2, 2)
	follower.Commit, follower.Applied.Index, follower.Last = 30, 10, 90
	follower.Sessions, follower.NextDueMS = 5, 1 // what only a leader's count for
	led := replicaOf(3, 1)
	led.Orderer, led.Serving = true, true
	led.Commit, led.Applied.Index, led.Last = 7, 7, 12
	led.Sessions, led.NextDueMS = 2, 1000
	elected := replicaOf(4, 1)
	elected.Orderer, elected.Sessions, elected.NextDueMS = true, 1, 2500
	ahead := replicaOf(5, 0) // applied may be seen ahead of commit
	ahead.Applied.Index, ahead.Commit = 9, 8
	got := summarize([]*replica.Visible{follower, led, elected, ahead}, 3000)
	want := summary{
		held: 4, led: 2, serving: 1, leaderless: 1, applyLag: 20, uncommitted: 5, sessions: 3, overdueMS: 2000,
	}
	if got != want {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	led.NextDueMS, elected.NextDueMS = 0, 4000
	if got := summarize([]*replica.Visible{led, elected}, 3000); got.overdueMS != 0 {
		t.Errorf("nothing is late, but %d ms are shown", got.overdueMS)
	}
}

// Events stay overdue while the oracle is away: oracle time goes on from its last word.
func TestOverdueGrowsWithoutOracle(t *testing.T) {
	v := replicaOf(2, 1)
	v.Orderer, v.NextDueMS = true, 10_000
	m := newCluster(v)
	m.anchorMS, m.anchorAt = 9_000, m.clock.Mono()
	s := exercised(m)
	expect(t, s, "almanac_events_overdue_seconds 0")
	m.clock.Advance(3500 * time.Millisecond)
	expect(t, s, "almanac_events_overdue_seconds 2.5")
}

func TestOracleMetrics(t *testing.T) {
	s := exercised(newCluster(leading()))
	expect(t, s,
		`almanac_oracle_phase{phase="idle"} 0`, `almanac_oracle_phase{phase="issuing"} 1`,
		"almanac_oracle_issued_total 11", `almanac_oracle_rounds_total{result="majority"} 12`,
		`almanac_oracle_rounds_total{result="failed"} 13`, "almanac_oracle_steps_total 14",
		"almanac_oracle_stepped_seconds_total 15", "almanac_oracle_continued_total 16",
		"almanac_oracle_transfers_total 17", "almanac_oracle_bound_retries_total 18",
		"almanac_oracle_bound_stalls_total 19", "almanac_oracle_ahead_seconds 0.02",
		`almanac_oracle_clock_offset_seconds{node="1"} -0.005`, `almanac_oracle_clock_offset_seconds{node="2"} 2`,
		"almanac_oracle_clocks_outside 1",
	)
	if _, body := get(t, s, "/metrics"); strings.Contains(body, `node="3"`) {
		t.Error("a voter that did not answer has an offset")
	}
	s = exercised(newCluster(replicaOf(1, 2)))
	expect(t, s, `almanac_oracle_phase{phase="idle"} 1`, `almanac_oracle_phase{phase="issuing"} 0`)
	if _, body := get(t, s, "/metrics"); strings.Contains(body, "almanac_oracle_issued_total ") {
		t.Error("a node without the oracle counts its timestamps")
	}
}

func TestTransportListener(t *testing.T) {
	s := New(Options{})
	l := s.TransportListener()
	for c := transport.ClassReplication; c.String() != "unknown"; c++ {
		l.Connected(2, c)
		l.Connected(3, c)
		l.Disconnected(3, c, errors.New("reset"))
		l.Sent(2, c, 3, 300)
		l.Received(2, c, 4, 400)
		l.Dropped(2, c, 5)
		expect(t, s,
			fmt.Sprintf(`almanac_transport_connects_total{class="%s"} 2`, c),
			fmt.Sprintf(`almanac_transport_connections{class="%s"} 1`, c),
			fmt.Sprintf(`almanac_transport_messages_total{class="%s",direction="sent"} 3`, c),
			fmt.Sprintf(`almanac_transport_bytes_total{class="%s",direction="sent"} 300`, c),
			fmt.Sprintf(`almanac_transport_messages_total{class="%s",direction="received"} 4`, c),
			fmt.Sprintf(`almanac_transport_bytes_total{class="%s",direction="received"} 400`, c),
			fmt.Sprintf(`almanac_transport_dropped_messages_total{class="%s"} 5`, c),
		)
	}
}

func TestEngineListener(t *testing.T) {
	s := New(Options{})
	l := s.EngineListener("log")
	s.EngineListener("state")
	l.WriteStall(true, "memtables")
	l.DiskSlow("000001.log", "sync", 3*time.Second)
	l.DiskFull()
	l.BackgroundError(errors.New("no"))
	l.Corruption(errors.New("no"))
	l.Flushed()
	expect(t, s,
		`almanac_store_write_stalls_total{store="log"} 1`, `almanac_store_write_stalled{store="log"} 1`,
		`almanac_store_slow_operations_total{store="log"} 1`, `almanac_store_disk_full_total{store="log"} 1`,
		`almanac_store_background_errors_total{store="log"} 1`, `almanac_store_corruptions_total{store="log"} 1`,
		`almanac_store_flushes_total{store="log"} 1`, `almanac_store_flushes_total{store="state"} 0`,
	)
	l.WriteStall(false, "")
	expect(t, s, `almanac_store_write_stalls_total{store="log"} 1`, `almanac_store_write_stalled{store="log"} 0`)
}

func TestListenersDoNotAllocate(t *testing.T) {
	s := New(Options{})
	tl, el := s.TransportListener(), s.EngineListener("log")
	if n := testing.AllocsPerRun(100, func() {
		tl.Sent(2, transport.ClassCalls, 1, 100)
		tl.Received(2, transport.ClassCalls, 1, 100)
		el.Flushed()
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
