package powercut

import (
	"flag"
	"testing"
	"time"

	"github.com/almanacdb/almanac/internal/proctest"
)

var longer = flag.Duration("longer", 0, "go on with power cuts for so long, on each file system")

// loaded is for how long a cluster is written to before a cut.
const loaded = 1500 * time.Millisecond

// Nodes lose their power one after another while the others go on, then all at once, twice:
// nothing that was acknowledged is lost (invariants 1 and 3).
func TestPowerCuts(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs"} {
		t.Run(kind, func(t *testing.T) {
			needPower(t, "losetup", "mkfs."+kind)
			c := form(t, binary, 3, kind)
			l := newLoad(t, c)
			end := time.Now().Add(*longer)
			for pass := 0; pass == 0 || time.Now().Before(end); pass++ {
				l.start(t)
				for i := range c.Nodes {
					proctest.Pause(t.Context(), loaded)
					c.cut(t, i)
					c.Well(3)
				}
				l.stop()
				if x := l.judge(t); !x.none() {
					t.Fatalf("one node after another lost its power, and of what was acknowledged is lost: %+v", x)
				}
				for range 2 {
					l.start(t)
					proctest.Pause(t.Context(), loaded)
					c.cut(t, 0, 1, 2)
					l.stop()
					c.Well(3)
					if x := l.judge(t); !x.none() {
						t.Fatalf("all nodes lost their power, and of what was acknowledged is lost: %+v", x)
					}
				}
			}
		})
	}
}

// A single node has nobody to help it.
func TestPowerCutsOfASingleNode(t *testing.T) {
	needPower(t, "losetup", "mkfs.ext4")
	c := form(t, binary, 1, "ext4")
	l := newLoad(t, c)
	for range 2 {
		l.start(t)
		proctest.Pause(t.Context(), loaded)
		c.cut(t, 0)
		l.stop()
		c.Well(1)
		if x := l.judge(t); !x.none() {
			t.Fatalf("the node lost its power, and of what was acknowledged is lost: %+v", x)
		}
	}
}

// The control: a build that does not sync loses what it acknowledged, and this test
// notices. Else the ones above would prove nothing.
func TestPowerCutsAreNoticed(t *testing.T) {
	needPower(t, "losetup", "mkfs.ext4")
	c := form(t, nosyncs, 3, "ext4")
	l := newLoad(t, c)
	proctest.Pause(t.Context(), time.Second)
	l.start(t)
	proctest.Pause(t.Context(), loaded)
	c.cut(t, 0, 1, 2)
	l.stop()
	proctest.Until(t, 30*time.Second, "nodes that answer, or ended", c.settled)
	for _, n := range c.Nodes {
		if !n.Running() {
			t.Logf("node %d, which never synced, does not come back", n.Index)
			return
		}
	}
	if x := l.judge(t); x.none() {
		t.Fatal("without a sync nothing was lost: the power was not cut")
	}
}
