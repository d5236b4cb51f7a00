package admin

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
)

var rewrite = flag.Bool("rewrite", false, "write docs/METRICS.md anew")

const metricsDoc = "../../docs/METRICS.md"

// sections are the headings of docs/METRICS.md, each with its first metric.
var sections = []struct {
	from  id
	title string
}{
	{nodeInfo, "Node"},
	{rangesHeld, "Ranges"},
	{oraclePhase, "Oracle"},
	{sessionsOpen, "Events"},
	{requestDuration, "Requests"},
	{transportMessages, "Transport"},
	{stateBytes, "Stores"},
}

const preface = `# Metrics

Every node serves its metrics in Prometheus' text format at ` + "`/metrics`" + ` of its HTTP address
(` + "`--http`, by default `127.0.0.1:7402`" + `). Beside it stand ` + "`/healthz`" + `, which answers 200 while the process
can serve at all, and ` + "`/readyz`" + `, which answers 200 only if the node is a member of its cluster, every
range it holds has a known leader and the oracle issues timestamps; else 503, and says why.

No label is named after a range, topic, group or key, so the number of series does not grow with
data. The metrics of the Go runtime (` + "`go_*`" + `) and of the process (` + "`process_*`" + `) are served too.

What to watch first:

| if | then |
|---|---|
| ` + "`almanac_node_up == 0`" + ` | the node's storage failed; it must be restarted, see its log |
| ` + "`almanac_ranges_rebuilding > 0`" + ` | a store of the node was damaged; it gets its replicas back from other nodes; check its disk |
| ` + "`almanac_ranges_without_leader > 0`" + ` for longer than an election | a majority of some range is down or cut off |
| ` + "`max(almanac_oracle_phase{phase=\"issuing\"}) == 0`" + ` over all nodes | no timestamps: no writes, nothing falls due |
| ` + "`almanac_oracle_clocks_outside > 0`" + ` | a node's wall clock is off; see to its time service |
| ` + "`almanac_events_overdue_seconds > 1`" + ` | events fall due and do not fire |
| ` + "`almanac_store_write_stalled == 1`, or `almanac_store_slow_operations_total`" + ` rises | the disk does not keep up |
| ` + "`almanac_node_disk_scarce == 1`" + ` | ranges led there take no new data; free space, and they do again |
| ` + "`almanac_transport_dropped_messages_total`" + ` rises | a peer is down or too slow |

This file is written from the list in ` + "`internal/admin/table.go`" + ` by
` + "`go test ./internal/admin -run TestMetricsDoc -rewrite`" + `.
`

// document renders the table.
func document() string {
	var b strings.Builder
	b.WriteString(preface)
	next := sections
	for i, m := range table {
		if len(next) > 0 && id(i) == next[0].from {
			fmt.Fprintf(&b, "\n## %s\n\n| metric | kind | unit | labels | meaning |\n|---|---|---|---|---|\n", next[0].title)
			next = next[1:]
		}
		labels := strings.Join(m.labels, "`, `")
		if labels != "" {
			labels = "`" + labels + "`"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s |\n", m.name, m.kind, m.unit, labels, m.help)
	}
	return b.String()
}

func TestMetricsDoc(t *testing.T) {
	want := document()
	if *rewrite {
		if err := os.WriteFile(metricsDoc, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(metricsDoc)
	if err != nil || string(got) != want {
		t.Errorf("docs/METRICS.md is not what internal/admin/table.go says (%v); run\n"+
			"go test ./internal/admin -run TestMetricsDoc -rewrite", err)
	}
	for _, s := range sections {
		if !strings.Contains(want, "## "+s.title+"\n") {
			t.Errorf("section %s is out of order", s.title)
		}
	}
}

// The preface must not tell of metrics that are not there.
func TestPrefaceNamesKnownMetrics(t *testing.T) {
	for _, word := range strings.FieldsFunc(preface, func(r rune) bool { return r != '_' && (r < 'a' || r > 'z') }) {
		if !strings.HasPrefix(word, "almanac_") {
			continue
		}
		known := false
		for _, m := range table {
			known = known || m.name == word
		}
		if !known {
			t.Errorf("%s is not in the table", word)
		}
	}
}
