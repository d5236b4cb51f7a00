package main

import (
	"github.com/spf13/cobra"

	"github.com/almanacdb/almanac/client"
)

func newInitCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "init",
		Short: "Form a cluster out of the nodes that name each other in --join",
		Long: `Form a cluster out of the nodes that were started with --join and name each other
there. Any of them may be asked, several at once, and again after a failure: one of them
decides, and it fails until a majority of them answers. Formed already, it says so.`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(cmd.Context(), func(c *client.Client) error {
				r, err := c.Cluster.Init(cmd.Context())
				if err != nil {
					return err
				}
				rec := &record{}
				rec.str("cluster_id", r.GetClusterId()).node("node_id", r.GetNodeId())
				return a.sheet(rec)
			})
		},
	}
}
