package admin

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/clock"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/oracle"
	"github.com/almanacdb/almanac/internal/replica"
	"github.com/almanacdb/almanac/internal/store"
)

var _ Member = (*store.Store)(nil)

const wallMS = 1_763_683_200_000

// cluster is a member whose replicas and oracle a test decides.
type cluster struct {
	clock    *clock.Manual
	replicas []*replica.Visible
	anchorMS int64
	anchorAt clock.Mono
	fetch    func(done func(base.Timestamp, error)) // nil: answers at once
	lost     *store.Rebuilding
}

func newCluster(replicas ...*replica.Visible) *cluster {
	return &cluster{clock: clock.NewManual(wallMS), replicas: replicas}
}

func (c *cluster) Clock() clock.Clock           { return c.clock }
func (c *cluster) Replicas() []*replica.Visible { return c.replicas }

func (c *cluster) Rebuilding() (store.Rebuilding, bool) {
	if c.lost == nil {
		return store.Rebuilding{}, false
	}
	return *c.lost, true
}

func (c *cluster) OracleAnchor() (int64, clock.Mono, bool) {
	return c.anchorMS, c.anchorAt, c.anchorMS != 0
}

func (c *cluster) FetchStamps(_ int, done func(base.Timestamp, error)) {
	if c.fetch != nil {
		c.fetch(done)
		return
	}
	done(base.TimestampAt(wallMS), nil)
}

// replicaOf returns a replica of a range as it looks at a follower.
func replicaOf(r base.RangeID, leader base.NodeID) *replica.Visible {
	return &replica.Visible{Descriptor: &base.RangeDescriptor{Range: r}, Leader: leader}
}

// get asks a server for a path.
func get(t *testing.T, s *Server, path string) (int, string) {
	t.Helper()
	w := httptest.NewRecorder()
	s.Handler().ServeHTTP(w, httptest.NewRequest("GET", path, nil))
	return w.Code, w.Body.String()
}

func TestHealth(t *testing.T) {
	var failed error
	s := New(Options{Failed: func() error { return failed }})
	if code, body := get(t, s, "/healthz"); code != 200 || body != "ok\n" {
		t.Errorf("a node that waits to be formed: %d %q", code, body)
	}
	s.SetMember(newCluster(replicaOf(base.SystemRange, 0)))
	if code, body := get(t, s, "/healthz"); code != 200 || body != "ok\n" {
		t.Errorf("a member without a leader is alive: %d %q", code, body)
	}
	s.Stopping()
	if code, _ := get(t, s, "/healthz"); code != 200 {
		t.Errorf("a node that shuts down is alive: %d", code)
	}
	failed = fmt.Errorf("range 3: %w", fault.New(fault.Corrupt, "file 7 is damaged").WithRemedy("replace the disk"))
	const want = "the node has failed and must be restarted: range 3: file 7 is damaged; replace the disk\n"
	if code, body := get(t, s, "/healthz"); code != 503 || body != want {
		t.Errorf("a failed node: %d %q", code, body)
	}
}

func TestReady(t *testing.T) {
	unavailable := func(done func(base.Timestamp, error)) {
		done(0, fault.New(fault.Unavailable, "no quorum").WithRemedy("start more nodes"))
	}
	many := newCluster(replicaOf(1, 1))
	for r := base.RangeID(2); r < 2000; r++ {
		many.replicas = append(many.replicas, replicaOf(r, 0))
	}
	noOracle := newCluster(replicaOf(1, 0), replicaOf(2, 0))
	noOracle.fetch = unavailable
	for _, tt := range []struct {
		name   string
		member *cluster
		failed error
		stop   bool
		want   string // empty: ready
	}{
		{name: "uninitialised", want: "this node belongs to no cluster yet; form one with: almanac init --endpoints 10.0.0.1:7400"},
		{name: "ready", member: newCluster(replicaOf(1, 2), replicaOf(2, 1))},
		{name: "holds nothing", member: newCluster()},
		{name: "system range", member: newCluster(replicaOf(1, 0), replicaOf(2, 1)),
			want: "the system range has no known leader; a majority of its nodes must be up and reach one another"},
		{name: "one range", member: newCluster(replicaOf(1, 2), replicaOf(5, 0)), want: "range 5 has no known leader"},
		{name: "two ranges", member: newCluster(replicaOf(5, 0), replicaOf(6, 0)), want: "ranges 5, 6 have no known leader"},
		{name: "many ranges", member: many,
			want: "1998 ranges have no known leader, among them 2, 3, 4, 5, 6, 7, 8, 9, 10, 11"},
		{name: "all at once", member: noOracle,
			want: "the system range has no known leader; a majority of its nodes must be up and reach one another\n" +
				"range 2 has no known leader\nthe oracle issues no timestamps: no quorum; start more nodes"},
		{name: "oracle alone", member: &cluster{fetch: unavailable},
			want: "the oracle issues no timestamps: no quorum; start more nodes"},
		{name: "rebuilding", member: &cluster{lost: &store.Rebuilding{Left: 3, Total: 4, Why: "range 2: node 3 went away"}},
			want: "the stores were damaged; rebuilding the replicas from other nodes: 1 of 4 ranges are back; range 2: node 3 went away"},
		{name: "rebuilding what", member: &cluster{lost: &store.Rebuilding{}},
			want: "the stores were damaged; rebuilding the replicas from other nodes: asking which ranges it holds"},
		{name: "failed", member: newCluster(), failed: errors.New("disk gone"),
			want: "the node has failed and must be restarted: disk gone"},
		{name: "shutting down", member: newCluster(), stop: true, want: "the node is shutting down"},
	} {
		s := New(Options{Address: "10.0.0.1:7400", Failed: func() error { return tt.failed }})
		if tt.member != nil {
			s.SetMember(tt.member)
		}
		if tt.stop {
			s.Stopping()
		}
		wantCode, want := http.StatusServiceUnavailable, tt.want
		if want == "" {
			wantCode, want = http.StatusOK, "ok"
		}
		if code, body := get(t, s, "/readyz"); code != wantCode || body != want+"\n" {
			t.Errorf("%s: got %d %q, want %d %q", tt.name, code, body, wantCode, want)
		}
	}
}

// A check must come back although the oracle never answers, and an answer that comes
// late must find nobody to block on.
func TestReadyWithSilentOracle(t *testing.T) {
	var late func(base.Timestamp, error)
	m := newCluster()
	ctx, cancel := context.WithCancel(context.Background())
	m.fetch = func(done func(base.Timestamp, error)) { late = done; cancel() }
	s := New(Options{})
	s.SetMember(m)
	w := httptest.NewRecorder()
	s.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/readyz", nil).WithContext(ctx))
	if want := "the oracle issues no timestamps: it did not answer within 1s\n"; w.Code != 503 || w.Body.String() != want {
		t.Errorf("got %d %q, want %q", w.Code, w.Body, want)
	}
	late(1, nil)
}

func TestRoutes(t *testing.T) {
	s := New(Options{Version: "v1.2.3"})
	for _, tt := range []struct {
		method, path string
		code         int
		body         string
	}{
		{"GET", "/", 200, "almanac v1.2.3\n\n/healthz\n/readyz\n/metrics\n"},
		{"GET", "/metrics", 200, `almanac_node_info{version="v1.2.3"} 1`},
		{"GET", "/nothing", 404, ""},
		{"POST", "/healthz", 405, ""},
		{"POST", "/metrics", 405, ""},
		{"HEAD", "/readyz", 503, ""},
	} {
		w := httptest.NewRecorder()
		s.Handler().ServeHTTP(w, httptest.NewRequest(tt.method, tt.path, nil))
		if w.Code != tt.code || !strings.Contains(w.Body.String(), tt.body) {
			t.Errorf("%s %s: %d %q", tt.method, tt.path, w.Code, w.Body)
		}
	}
}

func TestServerIsBounded(t *testing.T) {
	h := New(Options{}).HTTPServer()
	for name, d := range map[string]time.Duration{
		"ReadHeaderTimeout": h.ReadHeaderTimeout, "ReadTimeout": h.ReadTimeout,
		"WriteTimeout": h.WriteTimeout, "IdleTimeout": h.IdleTimeout,
	} {
		if d <= 0 || d > time.Minute {
			t.Errorf("%s is %v", name, d)
		}
	}
	if h.MaxHeaderBytes <= 0 || h.MaxHeaderBytes > 64<<10 {
		t.Errorf("MaxHeaderBytes is %d", h.MaxHeaderBytes)
	}
}

func TestOracleNow(t *testing.T) {
	m := newCluster()
	if now := oracleNow(m); now != wallMS*time.Millisecond {
		t.Errorf("without an anchor: %v", now)
	}
	m.anchorMS, m.anchorAt = 5000, m.clock.Mono()
	m.clock.Advance(1500*time.Millisecond + 300*time.Microsecond)
	m.clock.StepWall(time.Hour)
	if now := oracleNow(m); now != 6500*time.Millisecond+300*time.Microsecond {
		t.Errorf("1.5003 s after an anchor at 5 s: %v", now)
	}
}

// leading returns the system range's replica at its leader, with an oracle that issues.
func leading() *replica.Visible {
	v := replicaOf(base.SystemRange, 1)
	v.Orderer, v.Serving = true, true
	v.Oracle = &oracle.Status{
		Phase: oracle.Issuing, Ahead: 20 * time.Millisecond,
		Clocks: []oracle.VoterClock{
			{Node: 1, Known: true, Ahead: -5 * time.Millisecond},
			{Node: 2, Known: true, Ahead: 2 * time.Second, Outside: true},
			{Node: 3},
		},
		Counted: oracle.Counters{
			Issued: 11, Rounds: 12, RoundsFailed: 13, Steps: 14, SteppedBy: 15 * time.Second,
			Continued: 16, Transfers: 17, BoundRetries: 18, BoundStalls: 19,
		},
	}
	return v
}
