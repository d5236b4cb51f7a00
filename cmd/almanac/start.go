package main

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/almanacdb/almanac/internal/config"
	"github.com/almanacdb/almanac/internal/node"
)

// stopTimeout bounds the gentle part of stopping: handing leadership over and letting
// requests finish.
const stopTimeout = 10 * time.Second

func newStartCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "start --data-dir DIR",
		Short: "Run a node",
		Long: `Run a node until it gets SIGTERM or an interrupt.

Alone it makes a cluster of one node. With --join it waits, with an empty data
directory, until "almanac init" forms a cluster out of the nodes that name each other,
or registers with the cluster that one of them belongs to. With data it resumes and
ignores --join.

Every flag can also be set in a YAML file (--config) and by an environment variable:
--data-dir is data-dir there and ALMANAC_DATA_DIR here. Flags win over the environment,
which wins over the file.`,
		Args: usageArgs(cobra.NoArgs),
	}
	flags := cmd.Flags()
	config.Flags(flags)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := config.Load(flags)
		if err != nil {
			return usageError{err}
		}
		return a.start(cmd.Context(), c)
	}
	return cmd
}

func (a *app) start(ctx context.Context, c *config.Config) error {
	o := c.Node
	o.Version = version
	o.Logger = slog.New(a.logHandler(c))
	n, err := node.Start(o)
	if err != nil {
		return err
	}
	fmt.Fprintf(a.err, "almanac %s listens on %s\n", version, n.Address())
	var failed error
	select {
	case <-ctx.Done():
	case failed = <-n.Failed():
	}
	stop, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	n.Stop(stop)
	return failed
}

func (a *app) logHandler(c *config.Config) slog.Handler {
	o := &slog.HandlerOptions{Level: c.LogLevel}
	if strings.EqualFold(c.LogFormat, "json") {
		return slog.NewJSONHandler(a.err, o)
	}
	return slog.NewTextHandler(a.err, o)
}
