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
	oneSeed = flag.Uint64("seed", 0, "run this seed alone, with -v print its trace")
	seeds   = flag.Int("seeds", 12, "how many seeds to run")
	first   = flag.Uint64("first", 1, "the first seed")
	simtime = flag.Duration("simtime", 0, "virtual time under faults, by seed")
)

// TestMain lets -seed and -search alone say what to run.
func TestMain(m *testing.M) {
	flag.Parse()
	if flag.Lookup("test.run").Value.String() == "" {
		switch {
		case *oneSeed != 0:
			_ = flag.Set("test.run", "^TestSeeds$")
		case *search != 0:
			_ = flag.Set("test.run", "^TestSearch$")
		}
	}
	os.Exit(m.Run())
}

// simulate runs one seed with the product's randomness made to depend on it.
func simulate(t *testing.T, cfg Config) (res Result) {
	t.Helper()
	t.Run(fmt.Sprintf("seed=%d", cfg.Seed), func(t *testing.T) {
		cryptotest.SetGlobalRandom(t, cfg.Seed)
		res = Run(cfg)
	})
	return res
}

// replay is the command that runs a configuration again.
func replay(cfg Config) string {
	s := fmt.Sprintf("go test ./internal/simtest -seed %d", cfg.Seed)
	if cfg.Faults != 0 {
		s += fmt.Sprintf(" -simtime %v", cfg.Faults)
	}
	return s
}

// told is how much of a trace a report shows.
const told = 100

func report(t *testing.T, cfg Config, res Result) {
	t.Helper()
	if len(res.Violations) > 0 {
		t.Error(story(cfg, res))
	}
}

// story tells of a violation: what, how to see it again, and what led to it.
func story(cfg Config, res Result) string {
	tail := res.Tail[max(0, len(res.Tail)-told):]
	return fmt.Sprintf("seed %d: %s\nreplay: %s\nwith the whole trace: %[3]s -v\nthe last that happened:\n%s",
		cfg.Seed, strings.Join(res.Violations, "\n"), replay(cfg), strings.Join(tail, "\n"))
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
	var sum found
	for i := range *seeds {
		cfg := Config{Seed: *first + uint64(i), Faults: *simtime}
		res := simulate(t, cfg)
		sum.add(&res)
		report(t, cfg, res)
		if t.Failed() {
			return
		}
	}
	sum.enough(t)
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
