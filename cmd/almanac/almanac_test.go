package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	almanacv1 "github.com/almanacdb/almanac/api/almanac/v1"
	"github.com/almanacdb/almanac/client"
	"github.com/almanacdb/almanac/client/clienttest"
)

// shell runs command lines against a server in memory.
type shell struct {
	t      *testing.T
	server *clienttest.Server
}

func newShell(t *testing.T) *shell {
	t.Setenv("ALMANAC_ENDPOINTS", "a:1")
	s := clienttest.Start()
	t.Cleanup(s.Stop)
	return &shell{t, s}
}

type result struct {
	code     int
	out, err string
}

func (s *shell) input(in string, args ...string) result {
	s.t.Helper()
	var out, errOut bytes.Buffer
	a := &app{in: strings.NewReader(in), out: &out, err: &errOut}
	a.dial = func(ctx context.Context, o client.Options) (*client.Client, error) {
		o.RetryFor = 50 * time.Millisecond
		o.DialOptions = []grpc.DialOption{clienttest.Network{"a:1": s.server}.DialOption()}
		return client.Open(ctx, o)
	}
	code := a.run(s.t.Context(), args)
	return result{code, out.String(), errOut.String()}
}

func (s *shell) run(args ...string) result {
	s.t.Helper()
	return s.input("", args...)
}

// ok runs a command line that must succeed and returns its output.
func (s *shell) ok(args ...string) string {
	s.t.Helper()
	r := s.run(args...)
	if r.code != 0 {
		s.t.Fatalf("%v: exit %d: %s", args, r.code, r.err)
	}
	return r.out
}

var digits = regexp.MustCompile(`[0-9]{10,}`)

// want compares output in which long numbers are replaced by N.
func (s *shell) want(got, want string) {
	s.t.Helper()
	if got = digits.ReplaceAllString(got, "N"); got != want {
		s.t.Errorf("got  %q\nwant %q", got, want)
	}
}

func TestKVCommands(t *testing.T) {
	s := newShell(t)
	s.want(s.ok("kv", "get", "a", "-o", "json"), "")
	s.want(s.ok("kv", "put", "a", "1", "-o", "json"), `{"revision":N,"revision_str":"N"}`+"\n")
	s.want(s.ok("kv", "put", "b", "\xff\x00", "--output=json"), `{"revision":N,"revision_str":"N"}`+"\n")
	const a = `{"key":"a","value":"1","create_revision":N,"create_revision_str":"N","mod_revision":N,"mod_revision_str":"N","version":1}` + "\n"
	const b = `{"key":"b","value_base64":"/wA=","create_revision":N,"create_revision_str":"N","mod_revision":N,"mod_revision_str":"N","version":1}` + "\n"
	s.want(s.ok("kv", "get", "a", "-o", "json"), a)
	s.want(s.ok("-o", "json", "kv", "get", "", "--prefix"), a+b)
	s.want(s.ok("kv", "get", "a", "b", "-o=json"), a)
	s.want(s.ok("kv", "get", "--prefix", "", "--limit", "1", "-o", "json"), a)
	s.want(s.ok("kv", "get", "a", "--keys-only", "-o", "json"),
		`{"key":"a","create_revision":N,"create_revision_str":"N","mod_revision":N,"mod_revision_str":"N","version":1}`+"\n")
	s.want(s.ok("kv", "get", "a", "--value-only", "-o", "json"), `{"value":"1"}`+"\n")
	s.want(s.ok("kv", "get", "--value-only", "b"), "\xff\x00\n")
	s.want(s.ok("kv", "get", "", "--prefix", "--keys-only"), "a\nb\n")
	s.want(s.ok("kv", "del", "a", "z", "-o", "json"), `{"deleted":2}`+"\n")
	s.want(s.ok("kv", "del", "a", "-o", "json"), `{"deleted":0}`+"\n")
}

func TestKVConditions(t *testing.T) {
	s := newShell(t)
	var put struct {
		Revision uint64 `json:"revision"`
		Str      string `json:"revision_str"`
	}
	if err := json.Unmarshal([]byte(s.ok("kv", "put", "k", "1", "--if-absent", "-o", "json")), &put); err != nil {
		t.Fatal(err)
	}
	if put.Str != fmt.Sprint(put.Revision) {
		t.Errorf("got %+v", put)
	}
	lost := s.run("kv", "put", "k", "2", "--if-absent", "-o", "json")
	s.want(lost.err, `{"error":"the compare did not hold","reason":"compare_failed","remedy":"remedy of compare_failed"}`+"\n")
	if lost.code != 1 || lost.out != "" {
		t.Errorf("exit %d, output %q", lost.code, lost.out)
	}
	s.ok("kv", "put", "k", "2", "--if-rev", put.Str)
	if r := s.run("kv", "put", "k", "3", "--if-rev", put.Str); r.code != 1 || !strings.Contains(r.err, "compare_failed") {
		t.Errorf("got %+v", r)
	}
	if r := s.run("kv", "put", "k", "3", "--if-rev", "0"); r.code != 1 {
		t.Errorf("got %+v", r)
	}
	s.want(s.ok("kv", "get", "k", "--value-only"), "2\n")
}

func TestUsage(t *testing.T) {
	s := newShell(t)
	for _, line := range []string{
		"nonsense", "kv", "kv nonsense", "kv get", "kv get a b c", "kv put a", "kv get a --nonsense", "kv get a --limit x",
		"kv get a b --prefix", "kv get a --rev 0", "kv get a --keys-only --value-only", "kv put k v --if-absent --if-rev 1",
		"kv get a -o yaml", "topic create", "topic create t --partitions 0", "topic create t --retention 1y", "topic list x",
		"event publish", "event publish t p --at soon", "event publish t p --at 1 --in 1s", "event publish t p --count 0",
		"event subscribe t", "event subscribe t --group g --count 0", "event subscribe t --group g --timeout x",
		"cluster", "cluster nodes x", "bench", "bench kv --op x", "bench kv --clients 0", "bench event --api etcd", "bench timer --over 0s",
	} {
		r := s.run(append(strings.Fields(line), "-o", "json")...)
		if strings.Contains(line, "-o yaml") {
			r = s.run(strings.Fields(line)...)
		}
		if r.code != 2 || r.out != "" || r.err == "" {
			t.Errorf("%s: exit %d, output %q, error %q", line, r.code, r.out, r.err)
		}
		var f failure
		if !strings.Contains(line, "-o yaml") {
			if err := json.Unmarshal([]byte(r.err), &f); err != nil || f.Reason != "usage" || f.Error == "" {
				t.Errorf("%s: %q is no error in JSON", line, r.err)
			}
		}
	}
	if r := s.run(); r.code != 0 || !strings.Contains(r.out, "Usage:") {
		t.Errorf("bare: %+v", r)
	}
	if r := s.run("--help"); r.code != 0 || !strings.Contains(r.out, "4 KiB") {
		t.Errorf("help: %+v", r)
	}
}

func TestTopicCommands(t *testing.T) {
	s := newShell(t)
	const topic = `{"topic":"t","partitions":4,"replicas":3,"retention_ms":3600000}` + "\n"
	s.want(s.ok("topic", "create", "t", "--partitions", "4", "--retention", "1h", "-o", "json"), topic)
	if r := s.run("topic", "create", "t"); r.code != 1 || !strings.Contains(r.err, "already_exists") {
		t.Errorf("got %+v", r)
	}
	s.want(s.ok("topic", "create", "t", "--if-not-exists", "-o", "json"), topic)
	s.ok("topic", "create", "u")
	s.want(s.ok("topic", "describe", "t", "-o", "json"), topic)
	s.want(s.ok("topic", "list", "-o", "json"), topic+`{"topic":"u","partitions":8,"replicas":3,"retention_ms":0}`+"\n")
	s.want(s.ok("topic", "list"), "TOPIC  PARTITIONS  REPLICAS  RETENTION_MS\nt      4           3         1h0m0s\nu      8           3         forever\n")
	s.want(s.ok("topic", "delete", "t", "-o", "json"), `{"topic":"t","deleted":true}`+"\n")
	if r := s.run("topic", "describe", "t", "-o", "json"); r.code != 1 || !strings.Contains(r.err, `"reason":"not_found"`) {
		t.Errorf("got %+v", r)
	}
}

func TestPublishCommand(t *testing.T) {
	s := newShell(t)
	s.ok("topic", "create", "t", "--partitions", "1")
	s.want(s.ok("event", "publish", "t", "p", "--id", "i", "-o", "json"),
		`{"topic":"t","partition":0,"position":"N-0","id":"i","due_ms":N}`+"\n")
	s.want(s.ok("event", "publish", "t", "p", "--id", "i", "-o", "json"),
		`{"topic":"t","partition":0,"position":"N-0","id":"i","due_ms":N,"duplicate":true}`+"\n")
	out := s.ok("event", "publish", "t", "--at", "4102444800123", "-o", "json")
	if out != `{"topic":"t","partition":0,"position":"4102444800123-1","id":"","due_ms":4102444800123}`+"\n" {
		t.Errorf("got %s", out)
	}
	out = s.ok("event", "publish", "t", "--at", "2100-01-01T00:00:00.123Z", "-o", "json")
	if !strings.Contains(out, `"due_ms":4102444800123`) {
		t.Errorf("got %s", out)
	}
	lines := strings.Split(strings.TrimSpace(s.ok("event", "publish", "t", "q", "--count", "2500", "--id", "m", "--in", "1h", "-o", "json")), "\n")
	if len(lines) != 2500 || !strings.Contains(lines[0], `"id":"m-1"`) || !strings.Contains(lines[2499], `"id":"m-2500"`) {
		t.Errorf("%d lines, from %s to %s", len(lines), lines[0], lines[len(lines)-1])
	}
	if r := s.input("from stdin\n", "event", "publish", "t", "-"); r.code != 0 {
		t.Fatalf("got %+v", r)
	}
	got := s.ok("event", "subscribe", "t", "--group", "g", "--count", "2", "-o", "json")
	if !strings.Contains(got, `"payload":"from stdin\n"`) {
		t.Errorf("got %s", got)
	}
}

func TestSubscribeCommand(t *testing.T) {
	s := newShell(t)
	s.ok("topic", "create", "t", "--partitions", "1")
	s.ok("event", "publish", "t", "p", "--count", "3", "--id", "i", "--key", "k")
	got := s.ok("event", "subscribe", "t", "--group", "g", "--count", "1", "-o", "json")
	pattern := `^\{"topic":"t","partition":0,"position":"\d+-0","id":"i-1","key":"k","due_ms":\d+,"delivered_ms":\d+,"lateness_ms":-?\d+,"attempt":1,"payload":"p-1"\}\n$`
	if !regexp.MustCompile(pattern).MatchString(got) {
		t.Errorf("got %s", got)
	}
	if n, out := s.server.Acked("t", "g"), s.server.HandedOut("t", "g"); n != 1 || out != 0 {
		t.Errorf("%d acked, %d handed out", n, out)
	}
	late := s.run("event", "subscribe", "t", "--group", "g", "--count", "5", "--timeout", "100ms", "-o", "json")
	if late.code != 3 || strings.Count(late.out, "\n") != 2 || !strings.Contains(late.err, `"reason":"deadline_exceeded"`) {
		t.Errorf("got %+v", late)
	}
	if n := s.server.Acked("t", "g"); n != 3 {
		t.Errorf("%d acked", n)
	}
	if r := s.run("event", "subscribe", "t", "--group", "h", "--timeout", "50ms"); r.code != 0 || strings.Count(r.out, "\n") != 3 {
		t.Errorf("got %+v", r)
	}
}

func TestClusterCommands(t *testing.T) {
	s := newShell(t)
	s.server.StatusAnswer = &almanacv1.StatusResponse{
		ClusterId: "cafe", NodesAlive: 2, NodesTotal: 3, Ranges: 5, RangesBelowTarget: 1, Oracle: almanacv1.OracleState_ORACLE_STATE_READY,
		OracleNodeId: 1, Revision: 7, Problems: []string{"node 3 is down"},
		Node: &almanacv1.NodeStatus{NodeId: 2, Version: "v1", RssBytes: 3 << 20},
	}
	s.server.NodeList = []*almanacv1.Node{{NodeId: 1, Address: "h:1", PeerAddress: "h:2", Version: "v1", Alive: true, Leaders: 2, Replicas: 5}}
	s.server.RangeList = []*almanacv1.RangeInfo{
		{RangeId: 2, Keyspace: "default", End: []byte{0xff}, SpanEpoch: 1, ConfigEpoch: 4, Protocol: "raft", Replicas: []uint64{1, 2, 3}, Leader: 2, Bytes: 2048},
		{RangeId: 3, Topic: "t", Start: []byte("0"), Protocol: "raft"},
	}
	s.want(s.ok("cluster", "status", "-o", "json"), `{"cluster_id":"cafe","nodes_alive":2,"nodes_total":3,"ranges":5,"ranges_below_target":1,`+
		`"ranges_without_leader":0,"oracle":"ready","oracle_node_id":1,"revision":7,"revision_str":"7","node_id":2,"version":"v1","uptime_ms":0,`+
		`"rss_bytes":3145728,"heap_bytes":0,"disk_bytes":0,"problems":["node 3 is down"]}`+"\n")
	if text := s.ok("cluster", "status"); !strings.Contains(text, "ranges below target    1\n") || !strings.Contains(text, "3.0 MiB") {
		t.Errorf("got %s", text)
	}
	s.want(s.ok("cluster", "nodes", "-o", "json"), `{"node_id":1,"address":"h:1","peer":"h:2","alive":true,"leaders":2,"replicas":5,"version":"v1"}`+"\n")
	s.want(s.ok("cluster", "ranges", "-o", "json"),
		`{"range_id":2,"keyspace":"default","topic":"","start":"","end_base64":"/w==","span_epoch":1,"config_epoch":4,"protocol":"raft","replicas":[1,2,3],"leader":2,"bytes":2048}`+"\n"+
			`{"range_id":3,"keyspace":"","topic":"t","start":"0","end":"","span_epoch":0,"config_epoch":0,"protocol":"raft","replicas":[],"leader":null,"bytes":0}`+"\n")
}

func TestDeadlineExit(t *testing.T) {
	s := newShell(t)
	s.server.Faults.Call = func(*almanacv1.StreamCall) *almanacv1.StreamReply {
		<-s.server.Stopped()
		return nil
	}
	if r := s.run("kv", "put", "k", "v", "--request-timeout", "30ms", "-o", "json"); r.code != 3 {
		t.Errorf("got %+v", r)
	}
}

func TestUnreachable(t *testing.T) {
	s := newShell(t)
	r := s.run("kv", "get", "k", "--endpoints", "b:1,c:1", "-o", "json")
	if r.code != 1 || !strings.Contains(r.err, `"reason":"unavailable"`) {
		t.Errorf("got %+v", r)
	}
	s.ok("kv", "get", "k", "--endpoints", "b:1,a:1")
}

func TestErrorInText(t *testing.T) {
	s := newShell(t)
	s.server.Faults.Call = func(*almanacv1.StreamCall) *almanacv1.StreamReply {
		return clienttest.ErrorReply(codes.Internal, "corrupt", "range 2 is damaged")
	}
	if r := s.run("kv", "get", "k"); r.code != 1 || r.err != "error: range 2 is damaged (corrupt)\nremedy: remedy of corrupt\n" {
		t.Errorf("got %+v", r)
	}
}

// TestBench checks that every work reports the same fields, with sound numbers.
func TestBench(t *testing.T) {
	s := newShell(t)
	s.server.NodeList = []*almanacv1.Node{{NodeId: 1, Address: "a:1", Alive: true}}
	s.server.RangeList = []*almanacv1.RangeInfo{{RangeId: 2, Keyspace: "default", Leader: 1}}
	s.server.StatusAnswer = &almanacv1.StatusResponse{Node: &almanacv1.NodeStatus{RssBytes: 42}}
	const fields = `"work clients batch size ops refused errors seconds ops_per_s p50_ms p95_ms p99_ms max_ms"`
	for _, test := range []struct {
		line string
		ops  float64
		more []string
	}{
		{"kv --count 1000 --keys 50 --size 8", 1000, nil},
		{"kv --count 103 --op mixed --batch 10 --keys 50 --target leader", 103, nil},
		{"kv --op get --count 100 --keys 20 --rate 10000", 100, nil},
		{"event --count 200 --batch 7", 200, nil},
		{"event --count 200 --op get --batch 50", 200, nil},
		{"event --count 200 --op mixed --batch 50 --target leader", 200, nil},
		{"timer --count 100 --over 50ms --batch 20", 100, []string{"early", "missing"}},
		{"timer --pending 100 --due-in 1h --batch 50", 100, []string{"pending", "rss_bytes"}},
	} {
		r := s.run(append(append([]string{"bench"}, strings.Fields(test.line)...), "-o", "json", "--clients", "4")...)
		if r.code != 0 {
			t.Errorf("%s: %+v", test.line, r)
			continue
		}
		var got map[string]any
		if err := json.Unmarshal([]byte(r.out), &got); err != nil {
			t.Fatal(err)
		}
		for _, name := range append(strings.Fields(strings.Trim(fields, `"`)), test.more...) {
			if got[name] == nil {
				t.Errorf("%s: no %s in %s", test.line, name, r.out)
			}
		}
		if got["ops"] != test.ops || got["errors"] != 0.0 || got["refused"] != 0.0 {
			t.Errorf("%s: %s", test.line, r.out)
		}
		if got["missing"] != nil && (got["missing"] != 0.0 || got["early"] != 0.0) {
			t.Errorf("%s: %s", test.line, r.out)
		}
	}
	if left := s.ok("topic", "list", "-o", "json"); strings.Count(left, "\n") != 1 {
		t.Errorf("topics left behind: %s", left)
	}
}
