package oracle

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/clock"
)

// TestTranscripts plays testdata/transcripts against one oracle. Every command takes at=, in
// milliseconds of monotonic time; walls and bounds are milliseconds too. After each
// command the oracle is ticked, and what it wants is printed.
func TestTranscripts(t *testing.T) {
	datadriven.Walk(t, "testdata/transcripts", func(t *testing.T, path string) {
		var o *Oracle
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			var out strings.Builder
			now := clock.Mono(num(t, d, "at") * int64(time.Millisecond))
			switch d.Cmd {
			case "new":
				o = New(Options{MaxClockOffsetMS: num(t, d, "offset"), Election: time.Duration(num(t, d, "election")) * time.Millisecond})
				return ""
			case "lead":
				var voters []base.NodeID
				for _, v := range d.CmdArgs {
					if v.Key == "voters" {
						for i := range v.Vals {
							var id uint64
							v.Scan(t, i, &id)
							voters = append(voters, base.NodeID(id))
						}
					}
				}
				o.Lead(uint64(num(t, d, "term")), base.NodeID(num(t, d, "self")), voters, now)
			case "ready":
				o.Ready(base.TimestampAt(num(t, d, "bound")), now)
			case "step-down":
				o.StepDown()
			case "sampled":
				for _, line := range strings.Fields(d.Input) {
					var node uint64
					var wall int64
					if _, err := fmt.Sscanf(line, "%d:%d", &node, &wall); err != nil {
						d.Fatalf(t, "%q: %v", line, err)
					}
					o.Sampled(base.NodeID(node), wall, now)
				}
			case "failed":
				asked := clock.Mono(num(t, d, "asked") * int64(time.Millisecond))
				o.Failed(base.NodeID(num(t, d, "node")), asked, now)
			case "bound-applied":
				o.BoundApplied(base.TimestampAt(num(t, d, "bound")), now)
			case "issue":
				first, err := o.Issue(int(num(t, d, "n")), now)
				if err != nil {
					return fmt.Sprintf("refused: %v\n", err)
				}
				return fmt.Sprintf("%v\n", first)
			case "tick":
			case "status":
				s := o.Status(now)
				fmt.Fprintf(&out, "%v term=%d time=%d ahead=%v bound=%v latest=%v\n",
					s.Phase, s.Term, s.TimeMS, s.Ahead, s.Bound, s.Latest)
				for _, c := range s.Clocks {
					fmt.Fprintf(&out, "  %+v\n", c)
				}
				fmt.Fprintf(&out, "  %+v\n", s.Counted)
				return out.String()
			default:
				d.Fatalf(t, "unknown command")
			}
			describe(&out, o.Tick(now))
			fmt.Fprintf(&out, "%v, wake %s\n", o.Phase(), wake(o.NextWake(now)))
			return out.String()
		})
	})
}

func num(t *testing.T, d *datadriven.TestData, key string) (n int64) {
	if d.HasArg(key) {
		d.ScanArgs(t, key, &n)
	}
	return n
}

func wake(m clock.Mono) string {
	if m == 0 {
		return "never"
	}
	return fmt.Sprintf("at %v", float64(m)/1e6)
}

func describe(out *strings.Builder, e Effects) {
	for _, ev := range e.Events {
		fmt.Fprintf(out, "event: %v\n", ev)
	}
	if e.Sample {
		out.WriteString("ask all voters\n")
	}
	if e.Bound != 0 {
		fmt.Fprintf(out, "propose bound %v\n", e.Bound)
	}
	if e.Transfer != 0 {
		fmt.Fprintf(out, "hand leadership to %d\n", e.Transfer)
	}
}
