package simtest

import (
	"flag"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/cryptotest"
	"time"

	"github.com/cockroachdb/datadriven"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/transport"
)

var otherSeeds = flag.Int("otherseeds", 1, "with how many seeds besides their own scripts are played")

// TestScenarios plays the scripts in testdata: blocks of commands, one a line, with what
// each showed below. -rewrite writes the answers anew. Played twice, a script must do the
// same to the bit; played with another seed, everything takes another time, and what it
// shows must still be the same.
func TestScenarios(t *testing.T) {
	paths, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, path := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txt"), func(t *testing.T) {
			first := play(t, path, 0)
			if t.Failed() {
				return
			}
			if again := play(t, path, 0); first != again {
				t.Errorf("played twice, the traces are %x and %x", first, again)
			}
			for i := 1; i <= *otherSeeds && !t.Failed(); i++ {
				play(t, path, uint64(1000*i))
			}
		})
	}
}

// script is a cluster that does what a script says.
type script struct {
	w       *World
	shift   uint64 // added to its seed
	dir     string // where drawings of histories go
	begun   map[string]*attempt
	shots   map[string]*snapshot
	members int
	lines   []string // of the trace, since it was last shown
}

func newScript(shift uint64) *script {
	return &script{shift: shift, begun: make(map[string]*attempt), shots: make(map[string]*snapshot)}
}

// play plays a script, with its seed shifted, and returns the hash of its trace.
func play(t *testing.T, path string, shift uint64) (hash uint64) {
	s := newScript(shift)
	t.Run(fmt.Sprintf("shift=%d", shift), func(t *testing.T) {
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			var out strings.Builder
			for _, line := range strings.Split(d.FullCmd()+"\n"+d.Input, "\n") {
				words := strings.Fields(line)
				if len(words) == 0 {
					continue
				}
				answer, err := s.do(t, words)
				if err != nil {
					t.Fatalf("%s: %s: %v", d.Pos, line, err)
				}
				if answer != "" {
					fmt.Fprintf(&out, "%s: %s\n", line, answer)
				}
				if len(s.w.broken) > 0 {
					tail := s.w.trace.tail()
					t.Fatalf("%s: %s: %s\n%s", d.Pos, line, strings.Join(s.w.broken, "\n"),
						strings.Join(tail[max(0, len(tail)-told):], "\n"))
				}
			}
			return out.String()
		})
	})
	if s.w == nil {
		return 0
	}
	return s.w.trace.hash.Sum64()
}

// args are a command's words: plain ones in order, and those of the form key=value.
type args struct {
	plain []string
	named map[string]string
}

func parseArgs(words []string) args {
	a := args{named: make(map[string]string)}
	for _, word := range words {
		if k, v, ok := strings.Cut(word, "="); ok {
			a.named[k] = v
		} else {
			a.plain = append(a.plain, word)
		}
	}
	return a
}

// at returns the i-th plain word, "" if there are fewer.
func (a args) at(i int) string {
	if i < len(a.plain) {
		return a.plain[i]
	}
	return ""
}

func (a args) duration(name string, otherwise time.Duration) time.Duration {
	if d, err := time.ParseDuration(a.named[name]); err == nil {
		return d
	}
	return otherwise
}

func (a args) number(name string) float64 {
	f, _ := strconv.ParseFloat(a.named[name], 64)
	return f
}

// do carries a command out and returns what it showed.
func (s *script) do(t *testing.T, words []string) (string, error) {
	a := parseArgs(words[1:])
	if words[0] == "start" {
		return s.start(t, a)
	}
	if s.w == nil {
		return "", fmt.Errorf("nothing was started")
	}
	if f, ok := clusterCommands[words[0]]; ok {
		return f(s, a)
	}
	if f, ok := clientCommands[words[0]]; ok {
		return f(s, words[1:], a)
	}
	return "", fmt.Errorf("no such command")
}

// start boots a cluster and waits until all its ranges serve and its groups are made.
func (s *script) start(t *testing.T, a args) (string, error) {
	seed := uint64(a.number("seed")) + s.shift
	cryptotest.SetGlobalRandom(t, seed)
	w := newWorld(Config{Seed: seed, Nodes: int(a.number("nodes")), Small: true, Dir: s.dir, Trace: s.noteLine})
	s.w, w.manual = w, true
	w.flushEvery = a.duration("flush", 200*time.Millisecond)
	w.start()
	made := 0
	for r := range 2 {
		g := &groupMaker{w: w, r: rangeOf(base.Partition(r * partsPerRange)), leader: make(leaders), then: func() { made++ }}
		w.after(0, g.make)
	}
	ready := func() bool {
		for i := range w.ranges {
			if n := w.orderer(w.ranges[i].Range); n == nil || !n.store.Replica(w.ranges[i].Range).Serving {
				return false
			}
		}
		return made == 2
	}
	if w.runUntil(w.mono().Add(20*time.Second), ready); !ready() {
		return "", fmt.Errorf("not ready after 20 s")
	}
	return "ready", nil
}

// noteLine keeps the lines that tell the story: no messages, no debugging.
func (s *script) noteLine(line string) {
	if len(line) > 12 && line[12] != ' ' {
		s.lines = append(s.lines, line)
	}
}

// rangeNamed finds a range by its name; 0 if there is none.
func rangeNamed(name string) base.RangeID {
	for r, n := range rangeNames {
		if n == name {
			return r
		}
	}
	return 0
}

// node finds a node by its name.
func (s *script) node(name string) (*node, error) {
	id, err := strconv.Atoi(strings.TrimPrefix(name, "n"))
	if err != nil || id < 1 || id > len(s.w.nodes) {
		return nil, fmt.Errorf("there is no node %q", name)
	}
	return s.w.node(base.NodeID(id)), nil
}

// nodes finds nodes by names with commas between, or all by "all".
func (s *script) nodes(names string) ([]*node, error) {
	if names == "all" {
		return s.w.nodes, nil
	}
	var ns []*node
	for _, name := range strings.Split(names, ",") {
		n, err := s.node(name)
		if err != nil {
			return nil, err
		}
		ns = append(ns, n)
	}
	return ns, nil
}

// each makes a command of what is done to each of the nodes that its first word names.
func each(f func(*script, *node, args) (string, error)) func(*script, args) (string, error) {
	return func(s *script, a args) (string, error) {
		ns, err := s.nodes(a.at(0))
		if err != nil {
			return "", err
		}
		var shown []string
		for _, n := range ns {
			one, err := f(s, n, a)
			if err != nil {
				return "", err
			}
			if one != "" {
				shown = append(shown, one)
			}
		}
		return strings.Join(shown, ", "), nil
	}
}

// clusterCommands do things to nodes, disks, clocks and the network.
var clusterCommands = map[string]func(*script, args) (string, error){
	"run": func(s *script, a args) (string, error) {
		d, err := time.ParseDuration(a.at(0))
		if err == nil {
			s.w.runFor(d)
		}
		return "", err
	},
	"crash": each((*script).crash),
	"powercut": func(s *script, _ args) (string, error) {
		for _, n := range s.w.nodes {
			n.crash(none)
		}
		return "", nil
	},
	"restart": each(func(s *script, n *node, a args) (string, error) {
		if at, ok := a.named["at"]; ok { // and dies again there
			n.armed, n.armedAt, n.survive = 1, pointName(at), none
		}
		n.start()
		return "", nil
	}),
	"pause": each(func(s *script, n *node, _ args) (string, error) {
		n.pause(time.Hour)
		return "", nil
	}),
	"resume": each(func(s *script, n *node, _ args) (string, error) {
		n.resume()
		return "", nil
	}),
	"wallstep": each(func(s *script, n *node, a args) (string, error) {
		d, err := time.ParseDuration(strings.TrimPrefix(a.at(1), "+"))
		n.clock.step += d
		return "", err
	}),
	"slowdisk": each(func(s *script, n *node, a args) (string, error) {
		d, err := time.ParseDuration(a.at(1))
		n.slow = d
		return "", err
	}),
	"faildisk": each(func(s *script, n *node, a args) (string, error) {
		n.failAt = pointName(a.named["at"])
		return "", nil
	}),
	"partition": func(s *script, a args) (string, error) {
		var part []base.NodeID
		ns, err := s.nodes(a.at(0))
		for _, n := range ns {
			part = append(part, n.id)
		}
		s.w.partition(part)
		return "", err
	},
	"cut": (*script).cut,
	"gone": each(func(s *script, n *node, a args) (string, error) { // n1 n2: n1 takes n2's process for gone
		peer, err := s.node(a.at(1))
		if err == nil {
			n.deliver(func() { n.store.PeerGone(peer.id) })
		}
		return "", err
	}),
	"heal": func(s *script, _ args) (string, error) { s.w.healNetwork(); return "", nil },
	"links": func(s *script, a args) (string, error) {
		f := transport.Faults{
			Delay: a.duration("delay", 100*time.Microsecond), Jitter: a.duration("jitter", 600*time.Microsecond), Loss: a.number("loss"),
		}
		s.w.calls.SetDefault(f)
		f.Duplicate, f.Reorder = a.number("duplicate"), a.number("reorder")
		s.w.repl.SetDefault(f)
		return "", nil
	},
	"transfer": func(s *script, a args) (string, error) { return "", s.transfer(a.at(0), a.at(1)) },
	"lead":     (*script).lead,
	"expect":   (*script).expect,
	"trace":    (*script).trace,
}

// pointName returns a point's name from how scripts write it, without spaces.
func pointName(s string) string { return strings.ReplaceAll(s, "-", " ") }

// crash takes a node down: "kill" leaves what was written, else only what was synced is
// left. With at= it happens when the node next comes to that point.
func (s *script) crash(n *node, a args) (string, error) {
	survive := none
	if a.at(1) == "kill" {
		survive = all
	}
	if at, ok := a.named["at"]; ok {
		n.armed, n.armedAt, n.survive = 1, pointName(at), survive
		return "", nil
	}
	n.crash(survive)
	return "", nil
}

// cut cuts links in one direction: n1->n2, n1->all, all->n1; with "replication" after it,
// calls still pass.
func (s *script) cut(a args) (string, error) {
	from, to, ok := strings.Cut(a.at(0), "->")
	if !ok {
		return "", fmt.Errorf("cut what? n1->n2")
	}
	sources, err1 := s.nodes(from)
	targets, err2 := s.nodes(to)
	for _, f := range sources {
		for _, t := range targets {
			switch {
			case f == t:
			case a.at(1) == "replication":
				s.w.repl.Cut(f.id, t.id)
			default:
				s.w.cut(f.id, t.id)
			}
		}
	}
	if err1 != nil {
		return "", err1
	}
	return "", err2
}

func (s *script) transfer(rangeName, to string) error {
	r := rangeNamed(rangeName)
	target, err := s.node(to)
	if err != nil {
		return err
	}
	v := target.store.Replica(r)
	if v == nil {
		return fmt.Errorf("%s has no replica of %s", to, rangeName)
	}
	if n := s.w.orderer(r); n != nil {
		n.deliver(func() { n.store.TransferOrderer(r, v.Replica) })
	}
	return nil
}

// lead has ranges handed over to a node, and waits until it serves all of them.
func (s *script) lead(a args) (string, error) {
	n, err := s.node(a.at(1))
	if err != nil {
		return "", err
	}
	for _, name := range strings.Split(a.at(0), ",") {
		serves := func() bool {
			v := n.store.Replica(rangeNamed(name))
			return v != nil && v.Orderer && v.Serving
		}
		for range 50 {
			if serves() {
				break
			}
			if err := s.transfer(name, a.at(1)); err != nil {
				return "", err
			}
			s.w.runUntil(s.w.mono().Add(time.Second), serves)
		}
		if !serves() {
			return "", fmt.Errorf("%s does not lead %s", a.at(1), name)
		}
	}
	s.w.runFor(300 * time.Millisecond) // until it has leases
	return "", nil
}

// expect waits until something holds.
func (s *script) expect(a args) (string, error) {
	w := s.w
	limit := a.duration("within", 10*time.Second)
	wait := func(f func() bool) (string, error) {
		if w.runUntil(w.mono().Add(limit), f); f() || len(w.broken) > 0 {
			return "yes", nil
		}
		return fmt.Sprintf("no, not within %v", limit), nil
	}
	switch a.at(0) {
	case "leader": // expect leader keys n2,n3
		among, err := s.nodes(a.at(2))
		if err != nil {
			return "", err
		}
		return wait(func() bool {
			for _, n := range among {
				if !n.up {
					continue
				}
				if v := n.store.Replica(rangeNamed(a.at(1))); v != nil && v.Orderer && v.Serving {
					return true
				}
			}
			return false
		})
	case "down":
		n, err := s.node(a.at(1))
		if err != nil {
			return "", err
		}
		return wait(func() bool { return !n.up })
	case "snapshots":
		return wait(func() bool { return w.count.Installs > 0 })
	case "level":
		return wait(w.level)
	case "delivered": // expect delivered e1 group=1
		k := eventFor{a.at(1), base.GroupID(a.number("group"))}
		return wait(func() bool { return w.load.events.got[k] > 0 })
	case "violations":
		return s.noViolations()
	}
	return "", fmt.Errorf("expect what?")
}

// noViolations ends all faults, has every event delivered to every group, and holds all
// that was seen to the invariants.
func (s *script) noViolations() (string, error) {
	w := s.w
	for _, g := range groups {
		for r := range 2 {
			s.members++
			m := &member{w: w, id: s.members, group: g, r: rangeOf(base.Partition(r * partsPerRange)), leader: make(leaders)}
			w.after(w.between(0, 200*time.Millisecond), m.open)
		}
	}
	w.settle()
	for _, n := range w.nodes {
		if n.up && len(w.broken) == 0 {
			w.boundedMemory(n)
		}
	}
	w.check()
	if len(w.broken) > 0 {
		return strings.Join(w.broken, "\n"), nil
	}
	return "none", nil
}

// trace shows what happened since the last trace, without the times: lines that hold one of
// the words given, or all.
func (s *script) trace(a args) (string, error) {
	var out strings.Builder
	for _, line := range s.lines {
		if len(a.plain) == 0 || slices.ContainsFunc(a.plain, func(w string) bool { return strings.Contains(line, w) }) {
			out.WriteString("\n" + line[12:])
		}
	}
	s.lines = nil
	return out.String(), nil
}
