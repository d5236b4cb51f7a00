package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/almanacdb/almanac/client"
)

// What one publish request carries at most; well below the server's limits.
const (
	publishEvents = 1000
	publishBytes  = 4 << 20
)

func newEventCommand(a *app) *cobra.Command {
	event := &cobra.Command{Use: "event", Short: "Publish and receive events", Args: usageArgs(cobra.ArbitraryArgs), RunE: group}
	event.AddCommand(newEventPublishCommand(a), newEventSubscribeCommand(a))
	return event
}

// publishFlags are the flags of event publish.
type publishFlags struct {
	at, id, key string
	in          time.Duration
	count       int
}

func newEventPublishCommand(a *app) *cobra.Command {
	var f publishFlags
	cmd := &cobra.Command{
		Use:   "publish T [PAYLOAD|-]",
		Short: "Publish events that are due now or later",
		Long: `Publish an event, due at once unless --at or --in says otherwise. The payload - is
read from stdin. With --count N the payloads become PAYLOAD-1 to PAYLOAD-N, and the ids
ID-1 to ID-N if --id is given.`,
		Args: usageArgs(cobra.RangeArgs(1, 2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			many := cmd.Flags().Changed("count")
			pattern, err := f.event(cmd.Flags().Changed("at"), cmd.Flags().Changed("in"), many)
			if err != nil {
				return err
			}
			if len(args) == 2 {
				pattern.Payload = []byte(args[1])
				if args[1] == "-" {
					if pattern.Payload, err = io.ReadAll(a.in); err != nil {
						return fmt.Errorf("reading the payload from stdin: %w", err)
					}
				}
			}
			return a.with(cmd.Context(), func(c *client.Client) error {
				return a.publish(cmd.Context(), c, args[0], pattern, f.count, many)
			})
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.at, "at", "", "due time: RFC 3339 or milliseconds since 1970")
	flags.DurationVar(&f.in, "in", 0, "due this long after it is accepted")
	flags.StringVar(&f.id, "id", "", "message id: publishing it again while it is pending does nothing")
	flags.StringVar(&f.key, "key", "", "ordering key: events with the same one share a partition")
	flags.IntVar(&f.count, "count", 1, "number of events")
	return cmd
}

// event returns the event that the flags describe.
func (f *publishFlags) event(at, in, many bool) (client.NewEvent, error) {
	e := client.NewEvent{MessageID: f.id}
	if f.key != "" {
		e.OrderingKey = []byte(f.key)
	}
	switch {
	case at && in:
		return e, usagef("--at and --in exclude one another")
	case many && f.count < 1:
		return e, usagef("--count is at least 1")
	case in && f.in < 0:
		return e, usagef("--in is not negative")
	case in:
		e.Delay = f.in
	case at:
		due, err := parseTime(f.at)
		if err != nil {
			return e, err
		}
		e.Due = due
	}
	return e, nil
}

// parseTime reads RFC 3339 or milliseconds since 1970.
func parseTime(s string) (time.Time, error) {
	t, err := time.Parse(time.RFC3339Nano, s)
	if ms, numErr := strconv.ParseInt(s, 10, 64); numErr == nil {
		t, err = time.UnixMilli(ms), nil
	}
	switch {
	case err != nil:
		return t, usagef("time %q is neither RFC 3339 nor milliseconds since 1970", s)
	case t.UnixMilli() < 0:
		return t, usagef("time %q is before 1970", s)
	}
	return t, nil
}

// publish sends count events made from the pattern, in batches.
func (a *app) publish(ctx context.Context, c *client.Client, topic string, pattern client.NewEvent, count int, many bool) error {
	out := bufio.NewWriter(a.out)
	per := max(1, min(publishEvents, publishBytes/(len(pattern.Payload)+64)))
	for done := 0; done < count; {
		batch := make([]client.NewEvent, 0, min(per, count-done))
		for len(batch) < cap(batch) {
			e := pattern
			if many {
				suffix := "-" + strconv.Itoa(done+len(batch)+1)
				e.Payload = append(pattern.Payload[:len(pattern.Payload):len(pattern.Payload)], suffix...)
				if e.MessageID != "" {
					e.MessageID += suffix
				}
			}
			batch = append(batch, e)
		}
		results, err := c.Events.Publish(ctx, topic, batch...)
		for i, p := range results {
			if p.Err != nil {
				continue // the first such error is reported
			}
			r := (&record{}).str("topic", topic).num("partition", int64(p.Partition))
			r.str("position", p.Position.String()).str("id", batch[i].MessageID).num("due_ms", p.Position.DueMS)
			text := fmt.Sprintf("%s/%d %s", topic, p.Partition, p.Position)
			if p.Duplicate {
				r.flag("duplicate", true)
				text += " duplicate"
			}
			if err := a.emit(out, r, text); err != nil {
				return err
			}
		}
		if flushErr := out.Flush(); err == nil {
			err = flushErr
		}
		if err != nil {
			return err
		}
		done += len(batch)
	}
	return nil
}

// subscribeFlags are the flags of event subscribe.
type subscribeFlags struct {
	group   string
	count   int
	timeout time.Duration
}

func newEventSubscribeCommand(a *app) *cobra.Command {
	var f subscribeFlags
	cmd := &cobra.Command{
		Use:   "subscribe T --group G",
		Short: "Print due events as a member of a group, and ack them",
		Long: `Print each event that is delivered, then ack it. A new group starts at the earliest
event kept. The command returns when its acks are committed; what was delivered to it
and not printed goes back to the group at once.`,
		Args: usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case f.group == "":
				return usagef("--group is needed")
			case cmd.Flags().Changed("count") && f.count < 1:
				return usagef("--count is at least 1")
			case cmd.Flags().Changed("timeout") && f.timeout <= 0:
				return usagef("--timeout is above 0")
			}
			return a.with(cmd.Context(), func(c *client.Client) error {
				return a.subscribe(cmd.Context(), c, args[0], f)
			})
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.group, "group", "", "the group to be a member of")
	flags.IntVar(&f.count, "count", 0, "return after this many deliveries (default: never)")
	flags.DurationVar(&f.timeout, "timeout", 0, "return after this time; with fewer events than --count the exit code is 3")
	return cmd
}

// subscribe prints and acks events until there were enough, or time or patience ends.
func (a *app) subscribe(ctx context.Context, c *client.Client, topic string, f subscribeFlags) error {
	timed := ctx
	if f.timeout > 0 {
		var cancel context.CancelFunc
		timed, cancel = context.WithTimeout(ctx, f.timeout)
		defer cancel()
	}
	s, err := c.Events.Subscribe(timed, client.SubscribeOptions{Topic: topic, Group: f.group, Prefetch: min(f.count, publishEvents)})
	if err != nil {
		return err
	}
	received, err := a.drain(timed, s, f.count)
	// The command's context may have ended; the acks must still be committed.
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), max(a.timeout, time.Second))
	defer cancel()
	closeErr := s.Close(closing)
	switch {
	case timed.Err() == nil || err != nil && client.ReasonOf(err) != client.ReasonDeadline && client.ReasonOf(err) != client.ReasonCancelled:
		return errors.Join(err, closeErr)
	case closeErr != nil:
		return closeErr
	case f.count == 0 || received >= f.count:
		return nil // told to stop, and nothing is missing
	case ctx.Err() != nil:
		return fmt.Errorf("stopped after %d of %d events: %w", received, f.count, context.Cause(ctx))
	}
	return &client.Error{
		Reason:  client.ReasonDeadline,
		Message: fmt.Sprintf("the deadline passed after %d of %d events", received, f.count),
	}
}

// drain prints events, then acks them; count 0 means no end.
func (a *app) drain(ctx context.Context, s *client.Subscription, count int) (received int, _ error) {
	out := bufio.NewWriter(a.out)
	for count == 0 || received < count {
		limit := publishEvents
		if count > 0 {
			limit = min(limit, count-received)
		}
		batch, err := s.NextBatch(ctx, limit)
		if err != nil {
			return received, err
		}
		for _, e := range batch {
			if err := a.emit(out, eventRecord(e), eventText(e)); err != nil {
				return received, err
			}
		}
		if err := out.Flush(); err != nil {
			return received, err
		}
		if err := s.Ack(batch...); err != nil {
			return received, err
		}
		received += len(batch)
	}
	return received, nil
}

func eventRecord(e *client.Event) *record {
	r := (&record{}).str("topic", e.Topic).num("partition", int64(e.Partition))
	r.str("position", e.Position.String()).str("id", e.MessageID).bytes("key", e.OrderingKey)
	r.num("due_ms", e.Position.DueMS).num("delivered_ms", e.ReceivedAt.UnixMilli())
	r.num("lateness_ms", e.ReceivedAt.UnixMilli()-e.Position.DueMS)
	return r.num("attempt", int64(e.Attempt)).bytes("payload", e.Payload)
}

func eventText(e *client.Event) string {
	text := fmt.Sprintf("%s/%d %s +%dms", e.Topic, e.Partition, e.Position, e.ReceivedAt.UnixMilli()-e.Position.DueMS)
	if e.MessageID != "" {
		text += " id=" + printable([]byte(e.MessageID))
	}
	if len(e.OrderingKey) > 0 {
		text += " key=" + printable(e.OrderingKey)
	}
	if e.Attempt > 1 {
		text += " attempt=" + strconv.Itoa(int(e.Attempt))
	}
	return text + " " + printable(e.Payload)
}
