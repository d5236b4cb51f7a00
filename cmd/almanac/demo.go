package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/almanacdb/almanac/client"
	"github.com/almanacdb/almanac/internal/localcluster"
)

// demoTimeout bounds the tour; it normally takes about half of that.
const demoTimeout = 90 * time.Second

func newDemoCommand(a *app) *cobra.Command {
	d := &demo{app: a}
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Run a real cluster on this machine and take a tour of it",
		Long: `Run a real cluster on this machine, one process a node, and take a tour: write keys,
schedule events, kill a node, read it all back, see the events fire, bring the node
back. Afterwards the cluster stays up until Ctrl-C, unless --exit is given.`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return d.run(cmd.Context()) },
	}
	cmd.Flags().IntVar(&d.nodes, "nodes", 3, "number of nodes, 1 to 9")
	cmd.Flags().BoolVar(&d.exit, "exit", false, "end after the tour")
	cmd.Flags().StringVar(&d.dir, "data-dir", "", "keep data and logs here (default: a temporary directory, removed at the end)")
	return cmd
}

// demo is one run of the tour.
type demo struct {
	*app
	nodes int
	exit  bool
	dir   string

	cluster *localcluster.Cluster
	client  *client.Client
	step    int
}

func (d *demo) run(ctx context.Context) error {
	if d.nodes < 1 || d.nodes > 9 {
		return usagef("--nodes is 1 to 9, not %d", d.nodes)
	}
	if d.dir == "" {
		dir, err := os.MkdirTemp("", "almanac-demo-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		d.dir = dir
	}
	binary, err := os.Executable()
	if err != nil {
		return err
	}
	d.cluster, err = localcluster.New(localcluster.Options{Binary: binary, Dir: d.dir, Nodes: d.nodes, BasePort: 7400})
	if err != nil {
		return err
	}
	defer func() {
		stop, cancel := context.WithTimeout(context.Background(), 15*time.Second)
		defer cancel()
		d.cluster.StopAll(stop)
	}()
	tour, cancel := context.WithTimeout(ctx, demoTimeout)
	defer cancel()
	if err := d.tour(tour); err != nil {
		d.showLogs()
		return err
	}
	if d.exit {
		return nil
	}
	d.say("The cluster stays up. Press Ctrl-C to stop it.")
	<-ctx.Done()
	return nil
}

func (d *demo) say(format string, args ...any) { fmt.Fprintf(d.out, format+"\n", args...) }

func (d *demo) title(format string, args ...any) {
	d.step++
	d.say("\n%d. %s", d.step, fmt.Sprintf(format, args...))
}

func (d *demo) showLogs() {
	for _, n := range d.cluster.Nodes {
		fmt.Fprintf(d.err, "--- end of %s ---\n%s\n", n.LogPath, n.LogTail(1500))
	}
}

func (d *demo) tour(ctx context.Context) error {
	for _, step := range []func(context.Context) error{
		d.form, d.writeKeys, d.schedule, d.kill, d.readBack, d.watchFire, d.bringBack,
	} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	if err := d.client.Close(); err != nil {
		return err
	}
	d.say("\nTry it yourself:\n")
	d.say("  export ALMANAC_ENDPOINTS=%s", d.cluster.Endpoints())
	d.say("  almanac kv put hello world")
	d.say("  almanac event publish reminders 'call back' --in 5s")
	d.say("  almanac event subscribe reminders --group me --count 1")
	return nil
}

// form starts the processes and makes a cluster of them.
func (d *demo) form(ctx context.Context) error {
	d.title("Start %d nodes, each a process with its own data directory in %s", d.nodes, d.dir)
	if d.cluster.Moved {
		d.say("   Ports from 7400 on are taken, so free ones are used.")
	}
	if err := d.cluster.StartAll(); err != nil {
		return err
	}
	for _, n := range d.cluster.Nodes {
		d.say("   node at %s, pid %d", n.Address, n.PID())
	}
	if err := d.until(ctx, "the nodes to answer", func() (bool, error) {
		for _, n := range d.cluster.Nodes {
			if !n.Running() {
				return false, fmt.Errorf("node %d ended: %s", n.Index, n.LogTail(800))
			}
			if !n.Answers() {
				return false, nil
			}
		}
		return true, nil
	}); err != nil {
		return err
	}
	var err error
	d.client, err = d.dial(ctx, client.Options{Endpoints: strings.Split(d.cluster.Endpoints(), ","), RetryFor: 20 * time.Second})
	if err != nil {
		return err
	}
	if d.nodes > 1 {
		r, err := d.client.Cluster.Init(ctx)
		if err != nil {
			return err
		}
		d.say("   almanac init: they form cluster %.8s…", r.GetClusterId())
	}
	started := time.Now()
	if _, err := d.client.KV.Put(ctx, []byte("demo/ready"), nil); err != nil {
		return err
	}
	d.say("   Leaders are elected and the first write is committed after %.1f s.", time.Since(started).Seconds())
	return nil
}

func (d *demo) writeKeys(ctx context.Context) error {
	d.title("Write keys: each write is acknowledged once a majority of the replicas has it on disk")
	for i, user := range []string{"ada", "grace", "barbara"} {
		rev, err := d.client.KV.Put(ctx, []byte("users/"+user), fmt.Appendf(nil, "balance %d", 100*(i+1)))
		if err != nil {
			return err
		}
		d.say("   users/%s = balance %d   (revision %d, a timestamp)", user, 100*(i+1), rev)
	}
	_, err := d.client.KV.PutIfAbsent(ctx, []byte("users/ada"), []byte("balance 0"))
	if client.ReasonOf(err) != client.ReasonCompareFailed {
		return fmt.Errorf("a put-if-absent of a key that exists answered %v", err)
	}
	d.say("   put-if-absent users/ada is refused: it exists")
	return nil
}

const (
	demoTopic  = "reminders"
	demoEvents = 12
)

func (d *demo) schedule(ctx context.Context) error {
	d.title("Schedule %d events that fall due 6 to 12 seconds from now", demoEvents)
	if _, err := d.client.Events.CreateTopic(ctx, demoTopic, client.TopicOptions{IfNotExists: true}); err != nil {
		return err
	}
	events := make([]client.NewEvent, demoEvents)
	for i := range events {
		events[i] = client.NewEvent{
			Payload: fmt.Appendf(nil, "reminder %d", i+1),
			Delay:   6*time.Second + time.Duration(i)*500*time.Millisecond,
		}
	}
	published, err := d.client.Events.Publish(ctx, demoTopic, events...)
	if err != nil {
		return err
	}
	d.say("   first at %s, last at %s, spread over the topic's partitions",
		clockTime(published[0].Position.DueMS), clockTime(published[demoEvents-1].Position.DueMS))
	return nil
}

func clockTime(ms int64) string { return time.UnixMilli(ms).Format("15:04:05.000") }

// victim returns the node to kill: the one that runs the oracle, so that the tour shows
// the hardest case.
func (d *demo) victim(ctx context.Context) (*localcluster.Node, error) {
	st, err := d.client.Cluster.Status(ctx)
	if err != nil {
		return nil, err
	}
	nodes, err := d.client.Cluster.Nodes(ctx)
	if err != nil {
		return nil, err
	}
	for _, n := range nodes {
		for _, p := range d.cluster.Nodes {
			if n.GetNodeId() == st.GetOracleNodeId() && n.GetAddress() == p.Address {
				return p, nil
			}
		}
	}
	return d.cluster.Nodes[0], nil
}

func (d *demo) kill(ctx context.Context) error {
	v, err := d.victim(ctx)
	if err != nil {
		return err
	}
	if d.nodes < 3 {
		d.title("Kill the node at %s with kill -9 and start it again: what was acknowledged is on its disk", v.Address)
		v.Kill()
		return v.Start()
	}
	d.title("Kill the node at %s with kill -9: it leads ranges and issues the timestamps", v.Address)
	v.Kill()
	d.say("   pid is gone; the other nodes elect new leaders")
	return nil
}

func (d *demo) readBack(ctx context.Context) error {
	d.title("Read everything back from the nodes that are left")
	started := time.Now()
	r, err := d.client.KV.Range(ctx, client.Prefix([]byte("users/")), client.RangeOptions{})
	if err != nil {
		return err
	}
	if len(r.KVs) != 3 {
		return fmt.Errorf("%d of 3 keys are there", len(r.KVs))
	}
	for _, kv := range r.KVs {
		d.say("   %s = %s", kv.Key, kv.Value)
	}
	rev, err := d.client.KV.Put(ctx, []byte("users/ada"), []byte("balance 90"))
	if err != nil {
		return err
	}
	d.say("   and a new write: users/ada = balance 90 (revision %d), %.1f s after the question", rev, time.Since(started).Seconds())
	return nil
}

func (d *demo) watchFire(ctx context.Context) error {
	d.title("See the events fire, each at its time, none lost")
	sub, err := d.client.Events.Subscribe(ctx, client.SubscribeOptions{Topic: demoTopic, Group: "demo"})
	if err != nil {
		return err
	}
	seen := make(map[string]bool)
	for len(seen) < demoEvents {
		ev, err := sub.Next(ctx)
		if err != nil {
			return fmt.Errorf("%d of %d events fired: %w", len(seen), demoEvents, err)
		}
		if ev.Lateness() < 0 {
			return fmt.Errorf("event %s fired %v early", ev.Position, -ev.Lateness())
		}
		if err := sub.Ack(ev); err != nil {
			return err
		}
		if !seen[string(ev.Payload)] {
			seen[string(ev.Payload)] = true
			d.say("   %s  %-12s due %s, %d ms late", ev.ReceivedAt.Format("15:04:05.000"), ev.Payload,
				clockTime(ev.Position.DueMS), ev.Lateness().Milliseconds())
		}
	}
	return sub.Close(ctx)
}

func (d *demo) bringBack(ctx context.Context) error {
	if d.nodes >= 3 {
		d.title("Bring the node back: it catches up by itself")
		if err := d.cluster.StartAll(); err != nil {
			return err
		}
	} else {
		d.title("Look at the cluster")
	}
	if err := d.until(ctx, "every node to be alive", func() (bool, error) {
		st, err := d.client.Cluster.Status(ctx)
		return err == nil && int(st.GetNodesAlive()) == d.nodes && st.GetRangesWithoutLeader() == 0, nil
	}); err != nil {
		return err
	}
	nodes, err := d.client.Cluster.Nodes(ctx)
	if err != nil {
		return err
	}
	for _, n := range nodes {
		d.say("   node %d at %s: alive, %d replicas, leads %d", n.GetNodeId(), n.GetAddress(), n.GetReplicas(), n.GetLeaders())
	}
	return nil
}

// until polls a condition.
func (d *demo) until(ctx context.Context, what string, ok func() (bool, error)) error {
	for {
		done, err := ok()
		if done || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w", what, ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
}
