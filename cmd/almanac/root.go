package main

import (
	"context"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/almanacdb/almanac/client"
)

// commands lists the top-level commands, each in a file of its own.
var commands = []func(*app) *cobra.Command{
	newStartCommand,
	newInitCommand,
	newDemoCommand,
	newKVCommand,
	newTopicCommand,
	newEventCommand,
	newClusterCommand,
	newBenchCommand,
}

// app is what the commands of one run share.
type app struct {
	in       io.Reader
	out, err io.Writer

	endpoints []string
	output    string
	timeout   time.Duration

	dial func(ctx context.Context, o client.Options) (*client.Client, error) // replaced by tests
}

const rootHelp = `Almanac keeps what is, what was, and what happens next: keys with their past
versions, and events with their future times.

Results go to stdout, messages and progress to stderr. With -o json a result is one
JSON object a line; positions are strings, revisions are numbers with a _str beside
them, and bytes that are not UTF-8 stand in <field>_base64. TIME is RFC 3339 or
milliseconds since 1970; durations are written like 1h30m, 5s, 100ms.

Default limits: a key has at most 4 KiB, an etcd request 1.5 MiB, an event's payload
4 MiB, a batch 16 MiB or 10,000 events; a due time lies at most 100 years ahead.

Exit codes: 0 done, 1 error, 2 usage, 3 the deadline passed.`

// run executes one command line and returns its exit code.
func run(ctx context.Context, args []string, in io.Reader, out, errOut io.Writer) int {
	return (&app{in: in, out: out, err: errOut, dial: client.Open}).run(ctx, args)
}

func (a *app) run(ctx context.Context, args []string) int {
	root := a.root()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err != nil {
		a.report(err, a.json() || asksForJSON(args))
	}
	return exitCode(err)
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:           "almanac",
		Short:         "A distributed database for what is, what was, and what happens next",
		Long:          rootHelp,
		Args:          usageArgs(cobra.ArbitraryArgs),
		RunE:          group,
		SilenceErrors: true,
		SilenceUsage:  true,
		PersistentPreRunE: func(*cobra.Command, []string) error {
			if a.output != "text" && a.output != "json" {
				return usagef("--output is text or json, not %q", a.output)
			}
			if a.timeout <= 0 {
				return usagef("--request-timeout is above 0")
			}
			return nil
		},
	}
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.err)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	flags := root.PersistentFlags()
	flags.StringSliceVar(&a.endpoints, "endpoints", defaultEndpoints(),
		"client addresses of some nodes, in any order (env ALMANAC_ENDPOINTS)")
	flags.StringVarP(&a.output, "output", "o", "text", "text or json")
	flags.DurationVar(&a.timeout, "request-timeout", 30*time.Second, "the most time that one request may take")
	for _, command := range commands {
		root.AddCommand(command(a))
	}
	return root
}

// group is what a command that only has subcommands does by itself.
func group(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usagef("unknown command %q for %q", args[0], cmd.CommandPath())
	}
	if cmd.HasParent() {
		return usagef("%q needs a subcommand", cmd.CommandPath())
	}
	return cmd.Help()
}

func defaultEndpoints() []string {
	if list := os.Getenv("ALMANAC_ENDPOINTS"); list != "" {
		return strings.Split(list, ",")
	}
	return []string{client.DefaultEndpoint}
}

func (a *app) json() bool { return a.output == "json" }

// asksForJSON looks for the output flag in a command line that was not parsed whole.
func asksForJSON(args []string) bool {
	for i, arg := range args {
		switch arg {
		case "--":
			return false
		case "--output=json", "-o=json", "-ojson":
			return true
		case "--output", "-o":
			if i+1 < len(args) && args[i+1] == "json" {
				return true
			}
		}
	}
	return false
}

// open connects to the cluster.
func (a *app) open(ctx context.Context) (*client.Client, error) {
	return a.dial(ctx, a.options(a.endpoints))
}

func (a *app) options(endpoints []string) client.Options {
	o := client.Options{Timeout: a.timeout}
	for _, e := range endpoints {
		if e = strings.TrimSpace(e); e != "" {
			o.Endpoints = append(o.Endpoints, e)
		}
	}
	return o
}

// with runs f with a client.
func (a *app) with(ctx context.Context, f func(*client.Client) error) error {
	c, err := a.open(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	return f(c)
}
