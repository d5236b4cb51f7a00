// Bench measures Almanac and other systems on this machine, one after the other, with the
// same load, and prints a table. It owns which comparisons are made and what is to be
// reached; the load itself is internal/load.
//
//	cd bench && go run .                          # everything; takes about 40 minutes
//	cd bench && go run . -only put,get -repeat 1
//	cd bench && go run . -only failover -n 5
//
// Each system runs as three processes on the loopback address, with data on one disk, and
// acknowledges what a majority has synced.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/almanacdb/almanac/internal/load"
)

func main() {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	if ctx.Err() != nil {
		err = errors.New("interrupted")
	}
	cancel()
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

// settings are the flags.
type settings struct {
	only             []string
	output           string
	dir              string
	repeat           int
	duration, warmup time.Duration
	settle           time.Duration
	kills            int
	pending          int64
	idle             time.Duration
}

func parse(args []string, p *plan, w io.Writer) (*settings, error) {
	s := &settings{}
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(w)
	only := flags.String("only", "", "workloads, separated by commas: "+strings.Join(p.workloads(), ", "))
	flags.StringVar(&s.output, "o", "markdown", "markdown or json")
	flags.StringVar(&s.dir, "dir", "", "keep data below this directory (default: the system's temporary directory)")
	flags.IntVar(&s.repeat, "repeat", 3, "how often each comparison is made; the table shows medians")
	flags.DurationVar(&s.duration, "duration", 5*time.Second, "how long each load is measured")
	flags.DurationVar(&s.warmup, "warmup", 2*time.Second, "how long each load runs before it is measured")
	flags.DurationVar(&s.settle, "pause", time.Second, "how long the machine rests before each load")
	flags.IntVar(&s.kills, "n", 50, "failover: how often each leader is killed")
	flags.Int64Var(&s.pending, "pending", 1_000_000, "pending: how many events")
	flags.DurationVar(&s.idle, "idle", 30*time.Second, "pending: how long nodes rest before their memory is looked at")
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	if *only != "" {
		s.only = strings.Split(*only, ",")
	}
	switch {
	case flags.NArg() > 0:
		return nil, fmt.Errorf("there are no arguments besides flags, so not %q", flags.Arg(0))
	case s.output != "markdown" && s.output != "json":
		return nil, fmt.Errorf("-o is markdown or json, not %q", s.output)
	case s.repeat < 1:
		return nil, errors.New("-repeat is at least 1")
	case s.kills < 1 || s.pending < 1 || s.idle < 0:
		return nil, errors.New("-n and -pending are at least 1, -idle is not negative")
	case s.duration <= 0 || s.warmup < 0 || s.settle < 0:
		return nil, errors.New("-duration is above 0, -warmup and -pause are not negative")
	}
	return s, nil
}

func run(ctx context.Context, args []string, out, errOut io.Writer) error {
	p := newPlan()
	s, err := parse(args, p, errOut)
	if err != nil {
		return err
	}
	if p, err = p.only(s.only); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(s.dir, "almanac-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	root, err := output(ctx, "", "go", "list", "-m", "-f", "{{.Dir}}", "github.com/almanacdb/almanac")
	if err != nil {
		return err
	}
	b := &bench{settings: *s, dir: dir, log: errOut, samples: make(map[ref]sample), failed: make(map[*measure]error)}
	b.say("building")
	if b.programs, err = build(ctx, root, dir); err != nil {
		return err
	}
	r := report{
		Repeat: s.repeat, Duration: s.duration.String(), Warmup: s.warmup.String(),
		Kills: s.kills, Pending: s.pending, Idle: s.idle.String(),
	}
	if r.Origin, err = look(ctx, root); err != nil {
		return err
	}
	if r.Origin.Peers, err = b.programs.versions(ctx); err != nil {
		return err
	}
	for _, ph := range p.phases {
		if err := b.phase(ctx, ph); err != nil {
			return err
		}
	}
	r.Origin.Fdatasyncs = newValue(b.syncs)
	for _, row := range p.rows {
		r.Rows = append(r.Rows, b.judge(row))
	}
	write := r.markdown
	if s.output == "json" {
		write = r.json
	}
	if err := write(out); err != nil {
		return err
	}
	if len(b.failed) > 0 {
		return fmt.Errorf("%d measurements failed", len(b.failed))
	}
	return nil
}

// bench is one run.
type bench struct {
	settings
	dir      string
	log      io.Writer
	programs programs
	syncs    sample // fdatasyncs a second, before each turn
	samples  map[ref]sample
	failed   map[*measure]error
}

func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(b.log, time.Now().Format("15:04:05 ")+format+"\n", args...)
}

// phase lets the systems take turns.
func (b *bench) phase(ctx context.Context, ph phase) error {
	repeat := b.repeat
	if ph.once {
		repeat = 1
	}
	for n := range repeat {
		for _, s := range ph.systems() {
			syncs, err := measureSyncs(b.dir, time.Second/2)
			if err != nil {
				return err
			}
			b.syncs = append(b.syncs, syncs)
			b.say("%s, %d of %d: %s, with %s fdatasyncs a second", ph.name, n+1, repeat, s, thousands(syncs))
			if err := b.turn(ctx, s, ph.of(s)); err != nil {
				return err
			}
		}
	}
	return nil
}

// turn measures one system, in a cluster of its own. What fails is noted; the error is
// that the run was interrupted.
func (b *bench) turn(ctx context.Context, s system, measures []*measure) error {
	dir := filepath.Join(b.dir, "data")
	defer os.RemoveAll(dir)
	c, err := b.programs.start(ctx, s, dir)
	if err != nil {
		for _, m := range measures {
			b.fail(m, err)
		}
		return ctx.Err()
	}
	defer c.stop()
	for _, m := range measures {
		if !pause(ctx, b.settle) {
			return ctx.Err()
		}
		found, err := m.run(ctx, b, c)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			b.fail(m, err)
			continue
		}
		b.say("  %s: %s", m, found)
		for name, v := range found {
			b.samples[m.as(name)] = append(b.samples[m.as(name)], v)
		}
	}
	return nil
}

func (b *bench) fail(m *measure, err error) {
	b.say("  %s FAILED: %v", m, err)
	if b.failed[m] == nil {
		b.failed[m] = err
	}
}

// drive measures a load: rate, latencies, and the CPU time that the servers needed for
// each operation.
func (b *bench) drive(ctx context.Context, c *cluster, l load.Load) (figures, error) {
	t, cpu, err := b.under(ctx, c, l)
	if err != nil {
		return nil, err
	}
	if t.Ops == 0 || (t.Errors+t.Refused)*100 > t.Ops {
		return nil, fmt.Errorf("%d operations were done, %d refused and %d failed, the first one: %v", t.Ops, t.Refused, t.Errors, t.FirstError)
	}
	return figures{
		"rate": t.PerSecond(), "p50": t.Quantile(50).Seconds(), "p99": t.Quantile(99).Seconds(),
		"cpu": cpu.Seconds() / float64(t.Ops),
	}, nil
}

// under runs a load that counts once it is warm. It returns the servers' CPU time too.
func (b *bench) under(ctx context.Context, c *cluster, l load.Load) (load.Tally, time.Duration, error) {
	var cpu time.Duration // at the end of what counts, less that at its begin
	var failed error
	l.Warmup, l.Duration = b.warmup, b.duration
	l.Edge = func() {
		now, err := c.cpu()
		cpu, failed = now-cpu, cmp.Or(failed, err)
	}
	t, err := l.Run(ctx, io.Discard)
	return t, cpu, cmp.Or(err, failed)
}

func (f figures) String() string {
	var names []string
	for name := range f {
		names = append(names, name)
	}
	slices.Sort(names)
	var b strings.Builder
	for i, name := range names {
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "%s %.6g", name, f[name])
	}
	return b.String()
}
