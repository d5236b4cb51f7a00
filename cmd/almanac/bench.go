package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/almanacdb/almanac/internal/load"
)

// benchFlags say what load to make.
type benchFlags struct {
	op, api, target string
	clients, batch  int
	size, keys      int
	duration        time.Duration
	count           int64
	rate            float64
	over            time.Duration
	pending         int64
	dueIn           time.Duration
	seed            uint64

	counted bool // --count was given
	timed   bool // --duration was given
}

const benchHelp = `Make load and measure it. Results go to stdout, progress to stderr.

Each of --clients sends a request, waits for the answer, then sends the next. With
--rate, requests go out on a schedule of that many operations a second in all, whatever
became of those before, as long as no more than --clients are outstanding; latency
counts from the scheduled time. refused counts operations that a busy server refused
until the client gave up; errors counts those that failed otherwise. --batch puts that many operations into one request: a
transaction of kv (its keys must lie in one range), a batch of events. ops counts
operations, latencies are those of requests. The same --seed gives the same keys.`

func newBenchCommand(a *app) *cobra.Command {
	bench := &cobra.Command{Use: "bench", Short: "Make load and measure it", Long: benchHelp, Args: usageArgs(cobra.ArbitraryArgs), RunE: group}
	bench.AddCommand(
		a.newWorkCommand("kv", "Put or get random keys", (*app).benchKV),
		a.newWorkCommand("event", "Publish events that are due at once (put), receive them (get), or both (mixed)", (*app).benchEvent),
		a.newWorkCommand("timer", "Publish events that are due later and measure their lateness", (*app).benchTimer),
	)
	return bench
}

// newWorkCommand makes one of bench's commands; they share their flags.
func (a *app) newWorkCommand(work, short string, do func(*app, context.Context, *benchFlags) (*record, error)) *cobra.Command {
	f := &benchFlags{}
	cmd := &cobra.Command{
		Use:   work,
		Short: short,
		Args:  usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			f.counted = cmd.Flags().Changed("count")
			f.timed = cmd.Flags().Changed("duration")
			if err := f.check(work); err != nil {
				return err
			}
			r, err := do(a, cmd.Context(), f)
			if err != nil {
				return err
			}
			return a.sheet(r)
		},
	}
	f.register(cmd.Flags())
	return cmd
}

func (f *benchFlags) register(flags *pflag.FlagSet) {
	flags.StringVar(&f.op, "op", "put", "put, get or mixed (half of each)")
	flags.StringVar(&f.api, "api", "almanac", "almanac, or etcd: any server that speaks etcd's API")
	flags.StringVar(&f.target, "target", "all", "all: spread over the endpoints; leader: only the node that leads the range")
	flags.IntVar(&f.clients, "clients", 16, "clients at the same time")
	flags.IntVar(&f.batch, "batch", 0, "operations in one request (default 1; timer: 100)")
	flags.IntVar(&f.size, "size", 256, "bytes of a value or payload")
	flags.IntVar(&f.keys, "keys", 10_000, "number of different keys")
	flags.DurationVar(&f.duration, "duration", 10*time.Second, "how long")
	flags.Int64Var(&f.count, "count", 0, "stop after this many operations; timer: number of events (default 10000)")
	flags.Float64Var(&f.rate, "rate", 0, "operations a second in all, on a schedule; 0 means as many as possible")
	flags.DurationVar(&f.over, "over", 5*time.Second, "timer: spread the due times over this long")
	flags.Int64Var(&f.pending, "pending", 0, "timer: publish this many events that stay pending, and report rate and memory")
	flags.DurationVar(&f.dueIn, "due-in", time.Hour, "timer: when the pending events fall due")
	flags.Uint64Var(&f.seed, "seed", 1, "of all random choices")
}

func (f *benchFlags) check(work string) error {
	if f.batch == 0 {
		f.batch = 1
		if work == "timer" {
			f.batch = 100 // what is measured is firing, and publishing must not be in its way
		}
	}
	switch {
	case f.op != "put" && f.op != "get" && f.op != "mixed":
		return usagef("--op is put, get or mixed, not %q", f.op)
	case f.api != "almanac" && f.api != "etcd":
		return usagef("--api is almanac or etcd, not %q", f.api)
	case f.target != "all" && f.target != "leader":
		return usagef("--target is all or leader, not %q", f.target)
	case f.api == "etcd" && work != "kv":
		return usagef("etcd has no events: --api etcd goes with bench kv")
	case f.clients < 1 || f.batch < 1 || f.keys < 1 || f.size < 0:
		return usagef("--clients, --batch and --keys are at least 1, --size is not negative")
	case work == "kv" && f.batch > f.keys:
		return usagef("--batch is at most --keys: a transaction writes no key twice")
	case f.counted && f.count < 1:
		return usagef("--count is at least 1")
	case f.timed && f.duration <= 0, f.over <= 0, f.dueIn <= 0:
		return usagef("--duration, --over and --due-in are above 0")
	case f.rate < 0 || f.pending < 0:
		return usagef("--rate and --pending are not negative")
	}
	return nil
}

// load returns the load that the flags describe: until the count, if only that was
// given, else for the duration.
func (f *benchFlags) load(count int64, request func(client int) load.Request) load.Load {
	l := load.Load{Clients: f.clients, Batch: f.batch, Rate: f.rate, Seed: f.seed, Count: count, Request: request}
	if f.timed || !f.counted {
		l.Duration = f.duration
	}
	return l
}

// record returns the fields that every bench reports.
func (f *benchFlags) record(work string, t load.Tally) *record {
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	r := (&record{}).str("work", work)
	if work != "timer" {
		r.str("op", f.op)
	}
	r.num("clients", int64(f.clients)).num("batch", int64(f.batch)).num("size", int64(f.size))
	r.num("ops", t.Ops).num("refused", t.Refused).num("errors", t.Errors).float("seconds", t.Elapsed.Seconds(), 3).float("ops_per_s", t.PerSecond(), 1)
	r.float("p50_ms", ms(t.Quantile(50)), 3).float("p95_ms", ms(t.Quantile(95)), 3)
	return r.float("p99_ms", ms(t.Quantile(99)), 3).float("max_ms", ms(t.Quantile(100)), 3)
}
