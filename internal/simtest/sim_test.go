package simtest

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"testing/cryptotest"
	"time"
)

var (
	oneSeed = flag.Uint64("seed", 0, "run this seed alone and print its trace")
	seeds   = flag.Int("seeds", 12, "how many seeds to run")
	first   = flag.Uint64("first", 1, "the first seed")
	simtime = flag.Duration("simtime", 0, "virtual time under faults, by seed")
)

// simulate runs one seed with the product's randomness made to depend on it.
func simulate(t *testing.T, cfg Config) (res Result) {
	t.Helper()
	t.Run(fmt.Sprintf("seed=%d", cfg.Seed), func(t *testing.T) {
		cryptotest.SetGlobalRandom(t, cfg.Seed)
		res = Run(cfg)
	})
	return res
}

func report(t *testing.T, cfg Config, res Result) {
	t.Helper()
	if len(res.Violations) == 0 {
		return
	}
	t.Errorf("seed %d: %s\nreplay: go test ./internal/simtest -run Seeds -v -seed %d -simtime %v\n%s",
		cfg.Seed, strings.Join(res.Violations, "\n"), cfg.Seed, cfg.faults(), strings.Join(res.Tail, "\n"))
}

func TestSeeds(t *testing.T) {
	if *oneSeed != 0 {
		cfg := Config{Seed: *oneSeed, Faults: *simtime}
		if testing.Verbose() {
			cfg.Trace = func(s string) { fmt.Fprintln(os.Stdout, s) }
		}
		res := simulate(t, cfg)
		t.Logf("%+v", res.Counts)
		report(t, cfg, res)
		return
	}
	var virtual time.Duration
	var sum Counts
	start := time.Now()
	for i := range *seeds {
		cfg := Config{Seed: *first + uint64(i), Faults: *simtime}
		res := simulate(t, cfg)
		virtual += res.Virtual
		sum.add(&res.Counts)
		report(t, cfg, res)
		if t.Failed() {
			return
		}
	}
	if *seeds >= 12 && *simtime == 0 {
		enough(t, &sum)
	}
	t.Logf("%v of virtual time, %.0f times as fast as real time", virtual, virtual.Seconds()/time.Since(start).Seconds())
}

// The same seed gives the same run, to the bit.
func TestDeterministic(t *testing.T) {
	for seed := uint64(501); seed < 503; seed++ {
		cfg := Config{Seed: seed, Faults: 15 * time.Second}
		a, b := simulate(t, cfg), simulate(t, cfg)
		if a.Hash != b.Hash || a.Counts != b.Counts {
			t.Errorf("seed %d: %x, %+v\nthen %x, %+v", seed, a.Hash, a.Counts, b.Hash, b.Counts)
		}
		cfg.Seed += 1000
		if c := simulate(t, cfg); c.Hash == a.Hash {
			t.Errorf("seeds %d and %d have the same trace", seed, cfg.Seed)
		}
	}
}

// enough fails the test if runs did little: then they prove little.
func enough(t *testing.T, sum *Counts) {
	t.Helper()
	t.Logf("%+v", *sum)
	for what, n := range map[string][2]int{
		"crashes":            {sum.Crashes, 30},
		"deaths in a turn":   {sum.PointCrashes, 15},
		"disk errors":        {sum.DiskErrors, 1},
		"restarts":           {sum.Restarts, 30},
		"pauses":             {sum.Pauses, 5},
		"partitions":         {sum.Partitions, 5},
		"one-way cuts":       {sum.OneWayCuts, 5},
		"bad links":          {sum.BadLinks, 5},
		"wall clock steps":   {sum.WallSteps, 1},
		"transfers":          {sum.Transfers, 5},
		"writes":             {sum.Writes, 700},
		"reads":              {sum.Reads, 1000},
		"follower reads":     {sum.FollowerReads, 500},
		"snapshots":          {sum.Snapshots, 30},
		"snapshots again":    {sum.SnapshotsAgain, 50},
		"compactions":        {sum.Compactions, 5},
		"reads compacted":    {sum.Compacted, 5},
		"unknown outcomes":   {sum.Unknown, 50},
		"events published":   {sum.Published, 600},
		"events delivered":   {sum.Delivered, 1200},
		"events redelivered": {sum.Repeated, 20},
		"acks":               {sum.Acked, 1200},
		"leaders":            {sum.Leaders, 60},
		"snapshots received": {sum.Installs, 5},
		"log truncations":    {sum.Truncations, 60},
	} {
		if n[0] < n[1] {
			t.Errorf("%s: only %d, not %d", what, n[0], n[1])
		}
	}
}

// Each planted bug is found, and by the check that is for it.
func TestPlanted(t *testing.T) {
	for _, tc := range []struct {
		bug  Plant
		want string
	}{
		{AckUnsynced, "invariant"}, // 1 or 7, whichever is seen first
		{FiresEarly, "early"},
		{CursorBack, "invariant 5"},
		{StopsClock, "invariant"}, // 2 or 11: stale reads
		{OtherEntry, "invariant 7"},
	} {
		t.Run(tc.bug.String(), func(t *testing.T) {
			const most = 15
			for seed := uint64(1); seed <= most; seed++ {
				res := simulate(t, Config{Seed: seed, Plant: tc.bug, Dir: t.TempDir()})
				if len(res.Violations) == 0 {
					continue
				}
				t.Logf("seed %d, after %v: %s", seed, res.Virtual, res.Violations[0])
				if strings.Contains(res.Violations[0], tc.want) {
					return
				}
			}
			t.Errorf("not found as %q in %d seeds", tc.want, most)
		})
	}
}
