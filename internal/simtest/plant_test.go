package simtest

import (
	"flag"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/almanacdb/almanac/internal/plant"
)

var plantSeeds = flag.Int("plantseeds", 0, "run every planted bug with this many seeds, and print how often it is found")

// Plant is a bug that runs are given on purpose.
type Plant struct {
	name  string
	rule  string
	where string
	// caught is what the check says that is for it, as a regular expression.
	caught string
	// bugs are switched on in the product's code, which needs the build tag "plant".
	bugs []plant.Bug
	// outside is planted around the product's code, in every build.
	outside outside
	// focus, if set, is what else runs suffer from alone: without it any fault may strike.
	focus *focus
	// script, if set, is played instead of random runs: chance hardly meets what it needs.
	script string
	// nodes is how many nodes the runs have, if it must not be left to the seed.
	nodes int
	// masked says that another check makes up for the bug, nearly always or always, so that
	// it is not demanded; the table tells how often it is found all the same.
	masked bool
}

// What is said of a stale read, and of writes that are gone.
const (
	stale = `invariant (2|11)`
	lost  = `invariant (1|2|5|7|11)`
)

var plants = []Plant{
	{name: "ack before sync", rule: "invariant 1", where: "log's disk", caught: `invariant|two orderers|holds nothing of range`, outside: ackUnsynced},
	{name: "applied index ahead of its writes", rule: "S1", where: "state's disk", caught: lost + `|did not recover`, outside: indexAhead},
	{name: "event fired early", rule: "invariant 3", where: "replica/events.go", caught: `early`, bugs: []plant.Bug{plant.FiresEarly}},
	{name: "cursor backwards", rule: "invariant 5", where: "state's disk", caught: `invariant 5`, outside: cursorBack},
	{name: "clock stands still", rule: "invariant 9", where: "clock", caught: stale, outside: stopsClock, focus: partitionsOnly},
	{name: "other entry", rule: "invariant 7", where: "replication", caught: `invariant 7`, outside: otherEntry},
	{name: "node that lost its disks starts empty", rule: "invariant 1", where: "node", caught: `two orderers|invariant (1|7)|the log.s end is lost`, outside: startsEmpty, focus: disksLost, nodes: 3},

	{name: "lease too long", rule: "invariant 9", where: "raft/lease.go", caught: stale, bugs: []plant.Bug{plant.LeaseTooLong}, focus: isolation, nodes: 3},
	{name: "lease kept after a transfer", rule: "invariant 9", where: "raft/lease.go", caught: stale, bugs: []plant.Bug{plant.LeaseAfterTransfer}, focus: handOvers, nodes: 3},
	{name: "lease used while expired", rule: "invariant 9", where: "raft/lease.go", caught: stale, bugs: []plant.Bug{plant.LeaseExpired}, focus: isolation, nodes: 3},
	{name: "promise forgotten at a restart", rule: "invariant 9", where: "raft/machine.go", caught: stale, bugs: []plant.Bug{plant.PromiseForgotten}, script: "restart_amid_lease"},
	{name: "read confirmed by an old round", rule: "K4", where: "raft/lease.go", caught: stale, bugs: []plant.Bug{plant.OldRound}, focus: isolation, nodes: 3},
	{name: "promised ignored", rule: "K4", where: "replica/writes.go", caught: `invariant 11`, bugs: []plant.Bug{plant.PromisedIgnored}, focus: slowStamps, nodes: 3},
	{name: "stamp unchecked by the orderer", rule: "K3", where: "replica/writes.go", bugs: []plant.Bug{plant.StampUnchecked}, masked: true},
	{name: "stamp unchecked at apply", rule: "K3", where: "command/apply.go", bugs: []plant.Bug{plant.ApplyUnchecked}, masked: true},
	{name: "stamp unchecked by both", rule: "K3", where: "both", caught: `invariant|K3`, bugs: []plant.Bug{plant.StampUnchecked, plant.ApplyUnchecked}, focus: slowStamps, nodes: 3},
	{name: "vote before save", rule: "S1", where: "raft/ready.go", caught: `two orderers|invariant 7`, bugs: []plant.Bug{plant.VoteBeforeSave}, focus: deaths, nodes: 3},
	{name: "commit lost at start", rule: "S4", where: "logstore/recover.go", caught: `saved raft state`, bugs: []plant.Bug{plant.CommitNotRaised}},
	{name: "snapshot's index first", rule: "S2", where: "statestore/snapshot.go", caught: lost, bugs: []plant.Bug{plant.SnapshotIndexFirst}, focus: deaths, nodes: 3},
	{name: "log truncated above what is flushed", rule: "S1", where: "replica/truncation.go", caught: `starts at index`, bugs: []plant.Bug{plant.TruncatedTooFar}},
	{name: "oracle without lease", rule: "T1", where: "replica/oraclerole.go", caught: `invariant 2`, bugs: []plant.Bug{plant.OracleWithoutLease}, script: "deposed_oracle"},
	{name: "oracle jumps to its bound", rule: "T3", where: "oracle/oracle.go", caught: `early`, bugs: []plant.Bug{plant.OracleJumps}, focus: transfers, nodes: 3},
	{name: "event lost at a change of leader", rule: "invariant 3", where: "dispatch/dispatch.go", caught: `did not recover.* for group|lost`, bugs: []plant.Bug{plant.EventsForgotten}},
	{name: "acks forgotten at a change of leader", rule: "invariant 5", where: "dispatch/dispatch.go", caught: `invariant 5: .*delivered after ack`, bugs: []plant.Bug{plant.AcksForgotten}},
}

// focus is faults of one kind, one about every second, for bugs that show under them alone.
type focus struct {
	name   string
	faults func(*nemesis) []func(*node)
}

var (
	partitionsOnly = &focus{"partitions", func(m *nemesis) []func(*node) { return []func(*node){func(*node) { m.partition() }} }}
	disksLost      = &focus{"disks lost", func(m *nemesis) []func(*node) { return []func(*node){m.loseDisks, func(*node) { m.partition() }} }}
	handOvers      = &focus{"hand-overs unheard", func(m *nemesis) []func(*node) { return []func(*node){m.handOverUnheard} }}
	transfers      = &focus{"hand-overs", func(m *nemesis) []func(*node) { return []func(*node){func(*node) { m.transfer() }} }}
	isolation      = &focus{"orderers cut off", func(m *nemesis) []func(*node) { return []func(*node){m.cutFromVoters, m.handOverUnheard} }}
	slowStamps     = &focus{"timestamps slow", func(m *nemesis) []func(*node) { return []func(*node){m.slowStamps} }}
	deaths         = &focus{"deaths at votes and snapshots", func(m *nemesis) []func(*node) { return []func(*node){m.dieAtVote, m.dieAtSnapshot} }}
)

// on plants the bug in the product's code until the function that it returns is called.
func (p *Plant) on() func() {
	if p == nil {
		return func() {}
	}
	plant.Set(p.bugs...)
	return func() { plant.Set() }
}

// missing says that this build can't have the bug.
func (p *Plant) missing() bool { return len(p.bugs) > 0 && !plant.Built }

// hunt runs seeds from first on until one violates something or there are no more.
func (p *Plant) hunt(t *testing.T, first, last uint64) (found *Result, seed uint64, virtual, wall time.Duration) {
	for seed = first; seed <= last; seed++ {
		start := time.Now()
		var res Result
		if p.script != "" {
			res = p.play(t, seed)
		} else {
			res = simulate(t, Config{Seed: seed, Faults: *simtime, Nodes: p.nodes, Plant: p, Dir: t.TempDir()})
		}
		virtual += res.Virtual
		wall += time.Since(start)
		if len(res.Violations) > 0 {
			return &res, seed, virtual, wall
		}
	}
	return nil, last, virtual, wall
}

// play plays the bug's script, with its seed shifted, whatever the answers.
func (p *Plant) play(t *testing.T, shift uint64) (res Result) {
	defer p.on()()
	t.Run(fmt.Sprintf("shift=%d", shift), func(t *testing.T) {
		text, err := os.ReadFile("testdata/" + p.script + ".txt")
		if err != nil {
			t.Fatal(err)
		}
		s := newScript(shift)
		s.dir = t.TempDir()
		answer := false
		for line := range strings.Lines(string(text)) {
			words := strings.Fields(line)
			switch {
			case len(words) == 0:
				answer = false
			case words[0] == "----":
				answer = true
			case !answer && words[0] != "#":
				if _, err := s.do(t, words); err != nil {
					t.Logf("%s: %v", strings.TrimSpace(line), err)
					return
				}
			}
			if s.w != nil && len(s.w.broken) > 0 {
				break
			}
		}
		res = Result{Violations: s.w.broken, Tail: s.w.trace.tail(), Virtual: time.Duration(s.w.mono()) - time.Second}
	})
	return res
}

// Every planted bug is found within a few seeds, by the check that is for it, and without
// the bug nothing is found in them.
func TestPlanted(t *testing.T) {
	if *plantSeeds > 0 {
		plantTable(t, uint64(*plantSeeds))
		return
	}
	for i := range plants {
		p := &plants[i]
		if p.missing() || p.masked {
			continue
		}
		t.Run(p.name, func(t *testing.T) { p.clean(t, p.demand(t)) })
	}
}

// mostSeeds is after how many seeds a bug that is demanded counts as not found.
const mostSeeds = 15

// demand fails the test unless the bug is found, and returns the last seed that it ran.
func (p *Plant) demand(t *testing.T) (last uint64) {
	caught := regexp.MustCompile(p.caught)
	for seed := uint64(1); seed <= mostSeeds; seed++ {
		res, at, virtual, wall := p.hunt(t, seed, mostSeeds)
		if res == nil {
			break
		}
		seed = at
		t.Logf("seed %d, after %v, in %v: %s", seed, virtual, wall, firstLine(res))
		if caught.MatchString(res.Violations[0]) {
			return seed
		}
	}
	t.Errorf("not found as %q in %d seeds", p.caught, mostSeeds)
	return mostSeeds
}

// ran is what a run without a bug depends on.
type ran struct {
	focus  *focus
	script string
	nodes  int
	seed   uint64
}

var cleanRuns = make(map[ran]bool)

// clean runs the seeds up to last under the same faults without the bug.
func (p *Plant) clean(t *testing.T, last uint64) {
	for seed := uint64(1); seed <= last; seed++ {
		k := ran{p.focus, p.script, p.nodes, seed}
		if cleanRuns[k] {
			continue
		}
		cleanRuns[k] = true
		sound := &Plant{name: "none", focus: p.focus, script: p.script, nodes: p.nodes}
		if res, _, _, _ := sound.hunt(t, seed, seed); res != nil {
			t.Errorf("without the bug, seed %d: %s\n%s", seed, res.Violations[0], strings.Join(res.Tail, "\n"))
		}
	}
}

func firstLine(res *Result) string { return strings.SplitN(res.Violations[0], "\n", 2)[0] }

// plantTable prints, for each bug, in how many seeds it is found, and how long the hunt
// from one find to the next takes. What another check than the one for it says is logged.
func plantTable(t *testing.T, n uint64) {
	fmt.Println("| bug | rule | planted in | faults | found | virtual time | real time |")
	fmt.Println("|---|---|---|---|---|---|---|")
	for i := range plants {
		p := &plants[i]
		if p.missing() {
			continue
		}
		t.Run(p.name, func(t *testing.T) {
			var virtual, wall []time.Duration
			for seed := uint64(1); seed <= n; seed++ {
				res, at, v, r := p.hunt(t, seed, n)
				if seed = at; res == nil {
					break
				}
				virtual, wall = append(virtual, v), append(wall, r)
				if !regexp.MustCompile(p.caught).MatchString(res.Violations[0]) {
					t.Logf("seed %d: %s", seed, firstLine(res))
				}
			}
			faults := "any"
			switch {
			case p.focus != nil:
				faults = p.focus.name
			case p.script != "":
				faults = "script " + p.script
			}
			fmt.Printf("| %s | %s | %s | %s | %d of %d | %v | %v |\n", p.name, p.rule, p.where, faults, len(virtual), n,
				median(virtual).Round(time.Second), median(wall).Round(100*time.Millisecond))
		})
	}
}

func median(d []time.Duration) time.Duration {
	if len(d) == 0 {
		return 0
	}
	slices.Sort(d)
	return d[len(d)/2]
}
