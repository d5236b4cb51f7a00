package main

import (
	"time"

	"github.com/spf13/cobra"

	"github.com/almanacdb/almanac/client"
)

func newTopicCommand(a *app) *cobra.Command {
	topic := &cobra.Command{Use: "topic", Short: "Make, show and delete topics", Args: usageArgs(cobra.ArbitraryArgs), RunE: group}
	topic.AddCommand(newTopicCreateCommand(a), newTopicListCommand(a), newTopicDescribeCommand(a), newTopicDeleteCommand(a))
	return topic
}

func newTopicCreateCommand(a *app) *cobra.Command {
	var o client.TopicOptions
	cmd := &cobra.Command{
		Use:   "create T",
		Short: "Make a topic",
		Args:  usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case o.Partitions == 0:
				return usagef("--partitions is at least 1")
			case cmd.Flags().Changed("replicas") && o.Replicas == 0:
				return usagef("--replicas is at least 1")
			case o.Retention < 0:
				return usagef("--retention is not negative")
			}
			return a.with(cmd.Context(), func(c *client.Client) error {
				t, err := c.Events.CreateTopic(cmd.Context(), args[0], o)
				if err != nil {
					return err
				}
				return a.list([]*record{topicRecord(t)})
			})
		},
	}
	flags := cmd.Flags()
	flags.Uint32Var(&o.Partitions, "partitions", 8, "number of partitions, fixed for the topic's life")
	flags.Uint32Var(&o.Replicas, "replicas", 0, "replicas of each range (default: the cluster's)")
	flags.DurationVar(&o.Retention, "retention", 0, "how long events are kept after they fell due; 0 means forever")
	flags.BoolVar(&o.IfNotExists, "if-not-exists", false, "an existing topic is no error and stays as it is")
	return cmd
}

func newTopicListCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "Show all topics",
		Args:  usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(cmd.Context(), func(c *client.Client) error {
				topics, err := c.Events.ListTopics(cmd.Context())
				if err != nil {
					return err
				}
				records := make([]*record, len(topics))
				for i, t := range topics {
					records[i] = topicRecord(t)
				}
				return a.list(records)
			})
		},
	}
}

func newTopicDescribeCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "describe T",
		Short: "Show a topic",
		Args:  usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(cmd.Context(), func(c *client.Client) error {
				t, err := c.Events.DescribeTopic(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				return a.list([]*record{topicRecord(t)})
			})
		},
	}
}

func newTopicDeleteCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "delete T",
		Short: "Delete a topic with all its events and groups",
		Args:  usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(cmd.Context(), func(c *client.Client) error {
				if err := c.Events.DeleteTopic(cmd.Context(), args[0]); err != nil {
					return err
				}
				return a.emit(a.out, (&record{}).str("topic", args[0]).flag("deleted", true), "deleted "+args[0])
			})
		},
	}
}

func topicRecord(t client.Topic) *record {
	r := &record{}
	r.str("topic", t.Name).num("partitions", int64(t.Partitions)).num("replicas", int64(t.Replicas))
	r.num("retention_ms", t.Retention.Milliseconds())
	kept := "forever"
	if t.Retention > 0 {
		kept = t.Retention.Round(time.Millisecond).String()
	}
	r.reads(kept)
	return r
}
