package e2e

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// object is one line of a result.
type object map[string]any

// fields returns the names, in order of the alphabet.
func (o object) fields() []string {
	var names []string
	for name := range o {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func (o object) num(name string) int64 {
	f, _ := o[name].(float64)
	return int64(f)
}

// shell is a user at the command line of one cluster.
type shell struct {
	*cluster
	t *testing.T
}

// do runs a command with -o json, wants the exit code, and returns the lines of stdout.
func (s shell) do(code int, args ...string) []object {
	s.t.Helper()
	objects, _ := s.doErr(code, args...)
	return objects
}

// doErr also returns the error's line, whose fields it checks.
func (s shell) doErr(code int, args ...string) (objects []object, failure object) {
	s.t.Helper()
	a := s.cli(append([]string{"-o", "json"}, args...)...)
	if a.code != code {
		s.t.Fatalf("%v: exit %d, want %d\n%s%s", args, a.code, code, a.out, a.err)
	}
	if code == 0 && a.err != "" {
		s.t.Errorf("%v: stderr says %q", args, a.err)
	}
	for line := range strings.Lines(a.out) {
		var o object
		if err := json.Unmarshal([]byte(line), &o); err != nil {
			s.t.Fatalf("%v: %q: %v", args, line, err)
		}
		objects = append(objects, o)
	}
	if code != 0 {
		if err := json.Unmarshal([]byte(a.err), &failure); err != nil {
			s.t.Fatalf("%v: stderr %q: %v", args, a.err, err)
		}
		if got := failure.fields(); !slices.Equal(got, []string{"error", "reason", "remedy"}) || failure["error"] == "" {
			s.t.Errorf("%v: the error has fields %v: %v", args, got, failure)
		}
	}
	return objects, failure
}

// fails wants exit code 1 and a reason.
func (s shell) fails(reason string, args ...string) {
	s.t.Helper()
	if _, f := s.doErr(1, args...); f["reason"] != reason || f["remedy"] == "" {
		s.t.Errorf("%v: %v, want reason %s and a remedy", args, f, reason)
	}
}

// wants checks the fields of every line.
func (s shell) wants(objects []object, n int, fields string) []object {
	s.t.Helper()
	want := strings.Fields(fields)
	slices.Sort(want)
	if len(objects) != n {
		s.t.Fatalf("%d lines, want %d: %v", len(objects), n, objects)
	}
	for _, o := range objects {
		if got := o.fields(); !slices.Equal(got, want) {
			s.t.Fatalf("fields %v, want %v", got, want)
		}
	}
	return objects
}

const (
	kvFields    = "key value create_revision create_revision_str mod_revision mod_revision_str version"
	eventFields = "topic partition position id key due_ms delivered_ms lateness_ms attempt payload"
	topicFields = "topic partitions replicas retention_ms"
)

// TestCommandLine goes through every command as a user would.
func TestCommandLine(t *testing.T) {
	c := start(t, 3)
	for _, part := range []struct {
		name string
		run  func(shell)
	}{
		{"keys", shellKeys}, {"usage", shellUsage}, {"topics", shellTopics},
		{"events", shellEvents}, {"subscribe", shellSubscribe}, {"prefetch", shellPrefetch}, {"cluster", shellCluster},
	} {
		t.Run(part.name, func(t *testing.T) {
			part.run(shell{c, t})
		})
	}
}

func shellKeys(s shell) {
	put := s.wants(s.do(0, "kv", "put", "k", "v1"), 1, "revision revision_str")[0]
	first := put["revision_str"].(string)
	if len(s.do(0, "kv", "get", "missing")) != 0 {
		s.t.Error("a missing key prints something")
	}
	if a := s.cli("kv", "get", "missing"); a.code != 0 || a.out != "" || a.err != "" {
		s.t.Errorf("a missing key as text: %+v", a)
	}
	got := s.wants(s.do(0, "kv", "get", "k"), 1, kvFields)[0]
	if got["key"] != "k" || got["value"] != "v1" || got["version"] != 1.0 || got["mod_revision_str"] != first || got["create_revision_str"] != first {
		s.t.Errorf("got %v, written at %s", got, first)
	}
	s.fails("compare_failed", "kv", "put", "k", "v2", "--if-absent")
	s.fails("compare_failed", "kv", "put", "k", "v2", "--if-rev", "1")
	s.fails("compare_failed", "kv", "put", "k", "v2", "--if-rev", "0")
	s.do(0, "kv", "put", "k", "v2", "--if-rev", first)
	if a := s.cli("kv", "get", "k", "--value-only"); a.out != "v2\n" {
		s.t.Errorf("%+v", a)
	}
	if old := s.do(0, "kv", "get", "k", "--rev", first); len(old) != 1 || old[0]["value"] != "v1" {
		s.t.Errorf("at revision %s: %v", first, old)
	}
	s.fails("future_revision", "kv", "get", "k", "--rev", "9000000000000000000")
	s.do(0, "kv", "put", "new", "n", "--if-absent")
	s.do(0, "kv", "put", "bytes", "\xff\xfe")
	s.wants(s.do(0, "kv", "get", "bytes"), 1, strings.Replace(kvFields, " value ", " value_base64 ", 1))
	for i := range 5 {
		s.do(0, "kv", "put", fmt.Sprintf("p/%d", i), "x")
	}
	s.wants(s.do(0, "kv", "get", "p/", "--prefix"), 5, kvFields)
	s.wants(s.do(0, "kv", "get", "p/", "--prefix", "--limit", "2"), 2, kvFields)
	s.wants(s.do(0, "kv", "get", "p/1", "p/3"), 2, kvFields)
	s.wants(s.do(0, "kv", "get", "p/", "--prefix", "--keys-only"), 5, strings.Replace(kvFields, " value ", " ", 1))
	if a := s.cli("kv", "get", "p/", "--prefix", "--keys-only"); a.out != "p/0\np/1\np/2\np/3\np/4\n" {
		s.t.Errorf("%+v", a)
	}
	for _, del := range []struct {
		args string
		want int64
	}{{"p/0", 1}, {"p/1 p/3", 2}, {"p/", 0}, {"p/ --prefix", 2}} {
		o := s.wants(s.do(0, append([]string{"kv", "del"}, strings.Fields(del.args)...)...), 1, "deleted")
		if o[0].num("deleted") != del.want {
			s.t.Errorf("del %s: %v, want %d", del.args, o, del.want)
		}
	}
	if left := s.do(0, "kv", "get", "p/", "--prefix"); len(left) != 0 {
		s.t.Errorf("left after deleting: %v", left)
	}
	s.fails("too_large", "kv", "put", strings.Repeat("k", 5000), "v")
}

func shellUsage(s shell) {
	for _, args := range [][]string{
		{"kv", "get"}, {"kv", "put", "k"}, {"kv", "put", "", "v"}, {"kv", "get", "k", "--no-such-flag"}, {"no-such-command"},
		{"kv", "get", "k", "--keys-only", "--value-only"}, {"topic", "create"}, {"topic", "create", "t", "--partitions", "0"},
		{"event", "subscribe", "t"}, {"event", "publish", "t", "x", "--at", "yesterday"},
		{"event", "publish", "t", "x", "--at", "5", "--in", "5s"}, {"event", "publish", "t", "x", "--count", "0"},
		{"event", "subscribe", "t", "--group", "g", "--timeout", "0s"}, {"kv"}, {"cluster", "status", "x"},
	} {
		if _, f := s.doErr(2, args...); f["reason"] != "usage" {
			s.t.Errorf("%v: %v", args, f)
		}
	}
	// Nobody listens there.
	a := run(s.t, time.Minute, "", binary, "--endpoints", "127.0.0.1:1", "--request-timeout", "2s", "-o", "json", "kv", "get", "k")
	if a.code != 3 || a.took > 4*time.Second || !strings.Contains(a.err, "127.0.0.1:1") {
		s.t.Errorf("without a server: %+v", a)
	}
}

func shellTopics(s shell) {
	made := s.wants(s.do(0, "topic", "create", "orders", "--partitions", "4", "--retention", "1h"), 1, topicFields)[0]
	if made["topic"] != "orders" || made.num("partitions") != 4 || made.num("retention_ms") != 3_600_000 {
		s.t.Errorf("made %v", made)
	}
	s.fails("already_exists", "topic", "create", "orders")
	again := s.wants(s.do(0, "topic", "create", "orders", "--partitions", "9", "--if-not-exists"), 1, topicFields)[0]
	if again.num("partitions") != 4 {
		s.t.Errorf("--if-not-exists changed the topic: %v", again)
	}
	s.do(0, "topic", "create", "default")
	list := s.wants(s.do(0, "topic", "list"), 2, topicFields)
	if list[0]["topic"] != "default" || list[0].num("partitions") != 8 || list[1]["topic"] != "orders" {
		s.t.Errorf("topics %v", list)
	}
	if d := s.wants(s.do(0, "topic", "describe", "orders"), 1, topicFields)[0]; d.num("partitions") != 4 {
		s.t.Errorf("described %v", d)
	}
	s.fails("not_found", "topic", "describe", "none")
	s.fails("not_found", "topic", "delete", "none")
	s.fails("invalid_argument", "topic", "create", "a/b")
	s.fails("invalid_argument", "topic", "create", "many", "--replicas", "5")

	s.do(0, "event", "publish", "orders", "old", "--count", "3")
	if d := s.wants(s.do(0, "topic", "delete", "orders"), 1, "topic deleted")[0]; d["deleted"] != true {
		s.t.Errorf("%v", d)
	}
	s.fails("not_found", "event", "publish", "orders", "x")
	s.fails("not_found", "event", "subscribe", "orders", "--group", "g", "--count", "1", "--timeout", "5s")
	s.do(0, "topic", "create", "orders", "--partitions", "2")
	s.do(0, "event", "publish", "orders", "new")
	got := s.do(3, "event", "subscribe", "orders", "--group", "g", "--count", "2", "--timeout", "2s")
	if len(got) != 1 || got[0]["payload"] != "new" {
		s.t.Errorf("a topic made again holds %v", got)
	}
	s.do(0, "topic", "delete", "orders")
	s.do(0, "topic", "delete", "default")
	if left := s.do(0, "topic", "list"); len(left) != 0 {
		s.t.Errorf("topics left: %v", left)
	}
}

func shellEvents(s shell) {
	const fields = "topic partition position id due_ms"
	s.do(0, "topic", "create", "e", "--partitions", "4")
	one := s.wants(s.do(0, "event", "publish", "e", "hello", "--id", "m1", "--in", "1h"), 1, fields)[0]
	if due := time.UnixMilli(one.num("due_ms")); time.Until(due) < 59*time.Minute || one["id"] != "m1" ||
		!strings.HasPrefix(one["position"].(string), fmt.Sprint(one.num("due_ms"), "-")) {
		s.t.Errorf("published %v", one)
	}
	dup := s.wants(s.do(0, "event", "publish", "e", "hello", "--id", "m1", "--in", "1h"), 1, fields+" duplicate")[0]
	if dup["duplicate"] != true || dup["position"] != one["position"] {
		s.t.Errorf("published again: %v", dup)
	}
	at := time.Now().Add(2 * time.Hour).Truncate(time.Millisecond)
	for _, form := range []string{fmt.Sprint(at.UnixMilli()), at.UTC().Format(time.RFC3339Nano)} {
		if o := s.do(0, "event", "publish", "e", "x", "--at", form); o[0].num("due_ms") != at.UnixMilli() {
			s.t.Errorf("--at %s: %v", form, o)
		}
	}
	many := s.wants(s.do(0, "event", "publish", "e", "m", "--count", "2500", "--in", "1h"), 2500, fields)
	partitions := map[int64]int{}
	for _, o := range many {
		partitions[o.num("partition")]++
	}
	s.t.Logf("2500 events over partitions: %v", partitions)
	keyed := s.do(0, "event", "publish", "e", "k", "--key", "same", "--count", "50", "--in", "1h")
	for _, o := range keyed {
		if o["partition"] != keyed[0]["partition"] {
			s.t.Fatalf("one ordering key in partitions %v and %v", o["partition"], keyed[0]["partition"])
		}
	}
	a := run(s.t, time.Minute, "from stdin", binary, "--endpoints", s.Endpoints(), "event", "publish", "e", "-", "--id", "stdin")
	if a.code != 0 {
		s.t.Errorf("%+v", a)
	}
	got := s.do(0, "event", "subscribe", "e", "--group", "g", "--count", "1", "--timeout", "10s")
	if s.wants(got, 1, eventFields); got[0]["payload"] != "from stdin" || got[0]["id"] != "stdin" {
		s.t.Errorf("got %v", got)
	}
	s.fails("too_large", "event", "publish", "e", "x", "--id", strings.Repeat("i", 2000))
	s.fails("invalid_argument", "event", "publish", "e", "x", "--at", "9000000000000000")
}

func shellSubscribe(s shell) {
	s.do(0, "topic", "create", "sub", "--partitions", "1")
	s.do(0, "event", "publish", "sub", "x", "--count", "20", "--id", "i", "--key", "k")
	first := s.wants(s.do(0, "event", "subscribe", "sub", "--group", "a", "--count", "5"), 5, eventFields)
	for i, o := range first {
		if o["payload"] != fmt.Sprintf("x-%d", i+1) || o["id"] != fmt.Sprintf("i-%d", i+1) || o["key"] != "k" || o.num("attempt") != 1 ||
			o.num("lateness_ms") < 0 || o.num("lateness_ms") != o.num("delivered_ms")-o.num("due_ms") {
			s.t.Errorf("delivery %d: %v", i, o)
		}
	}
	rest := s.do(3, "event", "subscribe", "sub", "--group", "a", "--count", "100", "--timeout", "2s")
	if len(rest) != 15 || rest[0]["payload"] != "x-6" {
		s.t.Errorf("the rest: %d, first %v", len(rest), rest[0])
	}
	if none := s.do(0, "event", "subscribe", "sub", "--group", "a", "--timeout", "1s"); len(none) != 0 {
		s.t.Errorf("acked events come again: %v", none)
	}
	if all := s.do(0, "event", "subscribe", "sub", "--group", "another", "--count", "20"); len(all) != 20 {
		s.t.Errorf("another group gets %d", len(all))
	}
	began := time.Now()
	s.do(0, "event", "publish", "sub", "later", "--in", "1500ms")
	later := s.do(0, "event", "subscribe", "sub", "--group", "a", "--count", "1", "--timeout", "10s")
	if took := time.Since(began); took < 1500*time.Millisecond || later[0]["payload"] != "later" {
		s.t.Errorf("%v after %v", later, took)
	}
	s.t.Logf("an event with --in 1500ms came %d ms late", later[0].num("lateness_ms"))
	text := s.cli("event", "subscribe", "sub", "--group", "text", "--count", "1")
	if text.code != 0 || !strings.Contains(text.out, "sub/0 ") || !strings.Contains(text.out, "id=i-1 key=k x-1") {
		s.t.Errorf("as text: %+v", text)
	}
}

// shellPrefetch: what a member took ahead and did not print goes back at once.
func shellPrefetch(s shell) {
	s.do(0, "topic", "create", "ahead", "--partitions", "3")
	s.do(0, "event", "publish", "ahead", "x", "--count", "300")
	seen := map[string]bool{}
	began := time.Now()
	for _, n := range []int{1, 10, 89, 200} {
		for _, o := range s.do(0, "event", "subscribe", "ahead", "--group", "g", "--count", fmt.Sprint(n), "--timeout", "10s") {
			if seen[o["payload"].(string)] {
				s.t.Errorf("%v came twice", o)
			}
			seen[o["payload"].(string)] = true
		}
	}
	took := time.Since(began)
	s.t.Logf("four members in a row got all %d events in %v", len(seen), took.Round(time.Millisecond))
	if len(seen) != 300 || took > 5*time.Second {
		s.t.Errorf("%d of 300 events in %v", len(seen), took)
	}
}

func shellCluster(s shell) {
	status := s.wants(s.do(0, "cluster", "status"), 1, "cluster_id nodes_alive nodes_total ranges ranges_below_target ranges_without_leader "+
		"oracle oracle_node_id revision revision_str node_id version uptime_ms rss_bytes heap_bytes disk_bytes problems")[0]
	if status.num("nodes_alive") != 3 || status.num("nodes_total") != 3 || status["oracle"] != "ready" || len(status["problems"].([]any)) != 0 {
		s.t.Errorf("status %v", status)
	}
	if status.num("rss_bytes") == 0 || status.num("heap_bytes") == 0 || status.num("disk_bytes") == 0 || status["cluster_id"] == "" {
		s.t.Errorf("status lacks numbers: %v", status)
	}
	leaders, replicas := int64(0), int64(0)
	for i, n := range s.wants(s.do(0, "cluster", "nodes"), 3, "node_id address peer alive leaders replicas version") {
		if n.num("node_id") != int64(i+1) || n["alive"] != true || s.At(n["address"].(string)) == nil {
			s.t.Errorf("node %v", n)
		}
		leaders, replicas = leaders+n.num("leaders"), replicas+n.num("replicas")
	}
	ranges := s.wants(s.do(0, "cluster", "ranges"), int(status.num("ranges")),
		"range_id keyspace topic start end span_epoch config_epoch protocol replicas leader bytes")
	if leaders != int64(len(ranges)) || replicas != 3*leaders {
		s.t.Errorf("%d leaders and %d replicas of %d ranges", leaders, replicas, len(ranges))
	}
	for _, r := range ranges {
		if len(r["replicas"].([]any)) != 3 || r["leader"] == nil || r["protocol"] != "raft" {
			s.t.Errorf("range %v", r)
		}
	}
	s.do(0, "topic", "create", "wide", "--partitions", "6")
	if wide := s.do(0, "cluster", "ranges", "--topic", "wide"); len(wide) != 3 || wide[0]["topic"] != "wide" {
		s.t.Errorf("ranges of a topic of six partitions: %v", wide)
	}
	if keyspace := s.do(0, "cluster", "ranges", "--keyspace", "default"); len(keyspace) != 1 {
		s.t.Errorf("ranges of the default keyspace: %v", keyspace)
	}
	s.fails("not_found", "cluster", "ranges", "--topic", "none")
	again := s.wants(s.do(0, "init"), 1, "cluster_id node_id")[0]
	if again["cluster_id"] != status["cluster_id"] {
		s.t.Errorf("init again: %v", again)
	}
}

// TestDemo: the tour ends well, and soon.
func TestDemo(t *testing.T) {
	needE2E(t)
	a := run(t, 90*time.Second, "", binary, "demo", "--exit")
	if a.code != 0 || a.took > 45*time.Second {
		t.Fatalf("exit %d after %v\n%s%s", a.code, a.took, a.out, a.err)
	}
	t.Logf("demo --exit took %v", a.took.Round(time.Millisecond))
}
