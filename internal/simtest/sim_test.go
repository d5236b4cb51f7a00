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
	start := time.Now()
	for i := range *seeds {
		cfg := Config{Seed: *first + uint64(i), Faults: *simtime}
		res := simulate(t, cfg)
		virtual += res.Virtual
		report(t, cfg, res)
		if t.Failed() {
			return
		}
	}
	t.Logf("%v of virtual time, %.0f times as fast as real time", virtual, virtual.Seconds()/time.Since(start).Seconds())
}
