package simtest

import (
	"flag"
	"fmt"
	"strings"
	"testing"
	"testing/cryptotest"
	"time"

	"github.com/almanacdb/almanac/internal/base"
)

var (
	mostPoints = flag.Int("points", 60, "about how many deaths TestEveryPoint tries; 0: at every point")
	onePoint   = flag.String("point", "", "the one that TestEveryPoint tries, as its report names it")
)

// death is when and how a node dies in the small workload of TestEveryPoint.
type death struct {
	node  base.NodeID
	point int  // of the node's points since its replicas were made; 0: it does not die
	kill  bool // what was written survives although it was not synced
	again int  // on its way back it dies once more, at that point; 0: it does not
}

// String returns the death as the flag -point takes it.
func (d death) String() string {
	how := "power"
	if d.kill {
		how = "kill"
	}
	return fmt.Sprintf("%d/%d/%s/%d", d.node, d.point, how, d.again)
}

func parseDeath(s string) (d death, err error) {
	var how string
	_, err = fmt.Sscanf(strings.ReplaceAll(s, "/", " "), "%d %d %s %d", &d.node, &d.point, &how, &d.again)
	d.kill = how == "kill"
	return d, err
}

// dieAt runs the small workload: three nodes; one is left behind until it needs a
// snapshot, a leader hands over, keys are written and read, events fall due and are acked.
// When the dead node comes back, another is cut off for a while, so that what the dead one
// kept decides. It returns the points that the node passed: if it dies, those of its way
// back.
func dieAt(t *testing.T, d death, trace func(string)) (res Result, passed []string) {
	t.Helper()
	t.Run(d.String(), func(t *testing.T) {
		const seed = 3
		cryptotest.SetGlobalRandom(t, seed)
		res = run(Config{Seed: seed, Nodes: 3, Small: true, Trace: trace}, func(w *World) {
			w.manual = true
			passed = w.smallWorkload(d)
		})
	})
	return res, passed
}

func (w *World) smallWorkload(d death) (passed []string) {
	n := w.node(d.node)
	survive := none
	if d.kill {
		survive = all
	}
	n.armed, n.survive = d.point, survive
	if d.point == 0 {
		n.passed = &passed
	}
	// Dead nodes come back after a while, and at once if they die on the way.
	var back func()
	lives := 1
	back = func() {
		if !n.up {
			delay := 300 * time.Millisecond
			if lives > 1 {
				delay = 10 * time.Millisecond
			}
			w.after(delay, func() {
				if lives == 1 && d.again != 0 {
					n.armed, n.survive = d.again, survive
				}
				if lives++; lives == 2 {
					other := w.node(d.node%2 + 1)
					if o := w.orderer(base.DefaultRange); o != nil && o != n {
						other = o
					}
					w.partition([]base.NodeID{other.id})
					w.after(1200*time.Millisecond, func() { w.partition(nil) })
				}
				passed, n.passed = nil, &passed
				n.start()
				n.passed = nil
			})
			w.after(delay+time.Millisecond, back)
			return
		}
		w.after(5*time.Millisecond, back)
	}
	back()
	w.after(1100*time.Millisecond, func() { w.partition([]base.NodeID{3}) })
	w.after(2700*time.Millisecond, func() { w.partition(nil) })
	w.after(2900*time.Millisecond, func() {
		for i := range w.ranges {
			for _, rep := range w.ranges[i].Replicas {
				if n := w.node(rep.Node); n.up {
					n.enter(func() { n.store.TransferOrderer(w.ranges[i].Range, 2) })
				}
			}
		}
	})
	w.runFor(3600 * time.Millisecond)
	return passed
}

// A node dies at each of its points in turn, by power loss and by a kill, and comes back:
// every invariant holds.
func TestEveryPoint(t *testing.T) {
	if *onePoint != "" {
		d, err := parseDeath(*onePoint)
		if err != nil {
			t.Fatal(err)
		}
		res, _ := dieAt(t, d, func(s string) { fmt.Println(s) })
		pointReport(t, d, res)
		return
	}
	var saving, others []death // at points of a save, and at all others
	for node := base.NodeID(1); node <= 3; node++ {
		d := death{node: node}
		res, passed := dieAt(t, d, nil)
		pointReport(t, d, res)
		if res.Counts.Installs == 0 || res.Counts.Acked == 0 || res.Counts.Truncations == 0 || res.Counts.Writes < 10 {
			t.Fatalf("the workload does too little: %+v", res.Counts)
		}
		t.Logf("node %d: %d points", node, len(passed))
		for i, name := range passed {
			list := &others
			if strings.HasPrefix(name, "log ") || strings.HasPrefix(name, "state ") || strings.HasPrefix(name, "send ack") {
				list = &saving
			}
			*list = append(*list, death{node: node, point: i + 1}, death{node: node, point: i + 1, kill: true})
		}
	}
	t.Logf("%d deaths in saves, %d others", len(saving), len(others))
	tried := 0
	for _, list := range [][]death{saving, others} {
		step := 1
		if *mostPoints > 0 {
			step = max(1, 2*len(list) / *mostPoints) | 1 // odd, so that both kinds of death have their turn
		}
		for i := 0; i < len(list) && !t.Failed(); i += step {
			d := list[i]
			res, wayBack := dieAt(t, d, nil)
			pointReport(t, d, res)
			tried++
			if i%(50*step) != 25*step {
				continue
			}
			for d.again = 1; d.again <= len(wayBack) && !t.Failed(); d.again++ {
				res, _ := dieAt(t, d, nil)
				pointReport(t, d, res)
				tried++
			}
		}
	}
	t.Logf("%d deaths tried", tried)
}

func pointReport(t *testing.T, d death, res Result) {
	t.Helper()
	if deaths := min(d.point, 1) + min(d.again, 1); len(res.Violations) == 0 && res.Counts.PointCrashes != deaths {
		t.Errorf("%v: %d deaths, not %d", d, res.Counts.PointCrashes, deaths)
	}
	if len(res.Violations) > 0 {
		tail := res.Tail[max(0, len(res.Tail)-told):]
		t.Errorf("%s\nreplay: go test ./internal/simtest -run TestEveryPoint -point %v\n%s",
			strings.Join(res.Violations, "\n"), d, strings.Join(tail, "\n"))
	}
}
