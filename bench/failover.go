package main

import (
	"context"
	"fmt"
	"hash/fnv"
	"strconv"
	"sync"
	"time"

	"github.com/almanacdb/almanac/client"
	"github.com/almanacdb/almanac/internal/load"
	"github.com/almanacdb/almanac/internal/localcluster"
)

const (
	// attempt bounds one try of a probe, and so how exact a gap is.
	attempt = 200 * time.Millisecond
	// calm is how long every probe must succeed after a failover until it counts as over.
	calm = 2 * time.Second
	// patience bounds a failover.
	patience = 60 * time.Second
)

// failoverMeasure kills leaders again and again. The gap of a failover is the longest
// time that any probe was without an acknowledgement. What is killed alternates between
// the keys' leader and, in Almanac, the system range's, which issues the timestamps of all
// writes; a node that is both counts as the latter.
func failoverMeasure(s system) measure {
	return measure{system: s, name: "failover", run: func(ctx context.Context, b *bench, c *cluster) (figures, error) {
		probes, done, err := c.probes(ctx)
		if err != nil {
			return nil, err
		}
		defer done()
		k := kills{wanted: b.kills, apart: s == almanac}
		for !k.over() {
			if !pause(ctx, b.settle) {
				return nil, ctx.Err()
			}
			gap, what, err := c.failover(ctx, probes, &k)
			if err != nil {
				return nil, fmt.Errorf("after %d failovers: %w", k.done, err)
			}
			b.say("    kill %d, %s: %v", k.done, what, gap.Round(time.Millisecond))
		}
		return k.figures(), nil
	}}
}

// kills chooses what to kill, and keeps what came of it.
type kills struct {
	wanted       int  // of each kind
	apart        bool // the system range has a leader of its own
	done         int
	keys, system sample // gaps in seconds
}

// over says whether there were enough of both. Where one node stays both leaders, keys are
// given up after a while.
func (k *kills) over() bool {
	enough := len(k.keys) >= k.wanted && (!k.apart || len(k.system) >= k.wanted)
	return enough || k.done >= 4*k.wanted
}

// next chooses between the leaders of the keys and of the system range.
func (k *kills) next(keys, system string) (victim, what string, gaps *sample) {
	if k.apart && (keys == system || len(k.keys) > len(k.system)) {
		return system, "system range's leader", &k.system
	}
	return keys, "keys' leader", &k.keys
}

func (k *kills) figures() figures {
	f := make(figures)
	for name, gaps := range map[string]sample{"keys": k.keys, "system": k.system} {
		if len(gaps) > 0 {
			_, longest := gaps.spread()
			f[name+" p50"], f[name+" max"] = gaps.median(), longest
		}
	}
	return f
}

// failover kills a leader and returns the gap that probes saw; afterwards the cluster is
// whole again.
func (c *cluster) failover(ctx context.Context, probes []*probe, k *kills) (gap time.Duration, what string, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var keys, system string
	if err := until(ctx, func(ctx context.Context) (err error) {
		keys, system, err = c.leaders(ctx)
		return err
	}); err != nil {
		return 0, "", fmt.Errorf("finding the leaders: %w", err)
	}
	victim, what, gaps := k.next(keys, system)
	node, err := c.at(victim)
	if err != nil {
		return 0, what, err
	}
	if gap, err = killUnder(ctx, node, probes); err != nil {
		return 0, what, err
	}
	k.done++
	*gaps = append(*gaps, gap.Seconds())
	if err := node.Start(); err != nil {
		return 0, what, err
	}
	if err := c.await(ctx); err != nil {
		return 0, what, fmt.Errorf("after the node's return: %w", err)
	}
	return gap, what, nil
}

// killUnder kills a node while probes are under way, and returns the longest gap that one
// saw until all were well again.
func killUnder(ctx context.Context, node *localcluster.Process, probes []*probe) (gap time.Duration, err error) {
	watching, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	for _, p := range probes {
		p.reset()
		wg.Go(func() { p.run(watching) })
	}
	for _, p := range probes { // each is under way when the leader goes
		if err := p.await(ctx, time.Now()); err != nil {
			return 0, err
		}
	}
	node.Kill()
	killed := time.Now()
	for _, p := range probes {
		if err := p.await(ctx, killed); err != nil {
			return 0, err
		}
	}
	if !pause(ctx, calm) {
		return 0, ctx.Err()
	}
	for _, p := range probes {
		if err := p.await(ctx, time.Now()); err != nil {
			return 0, err
		}
		gap = max(gap, p.longest())
	}
	return gap, nil
}

// probe is a client that writes one thing after another, to the next endpoint after each
// failure, and notes when it was acknowledged.
type probe struct {
	what  string
	write []func(ctx context.Context) error // one an endpoint

	mu   sync.Mutex
	last time.Time     // the last acknowledgement
	gap  time.Duration // the longest time between two
}

func (p *probe) run(ctx context.Context) {
	for at := 0; ctx.Err() == nil; {
		try, cancel := context.WithTimeout(ctx, attempt)
		err := p.write[at](try)
		cancel()
		if err == nil {
			p.acknowledged(time.Now())
		} else {
			at = (at + 1) % len(p.write)
			pause(ctx, 5*time.Millisecond)
		}
	}
}

func (p *probe) acknowledged(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.last.IsZero() {
		p.gap = max(p.gap, now.Sub(p.last))
	}
	p.last = now
}

func (p *probe) reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last, p.gap = time.Time{}, 0
}

func (p *probe) longest() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.gap
}

// await waits for an acknowledgement after a time.
func (p *probe) await(ctx context.Context, after time.Time) error {
	for {
		p.mu.Lock()
		ok := p.last.After(after)
		p.mu.Unlock()
		if ok {
			return nil
		}
		if !pause(ctx, time.Millisecond) {
			return fmt.Errorf("%s was not acknowledged again: %w", p.what, ctx.Err())
		}
	}
}

// probes makes one probe a range that clients write to. The caller ends them by done.
func (c *cluster) probes(ctx context.Context) (list []*probe, done func(), err error) {
	if c.system == etcd {
		p, done, err := c.keyProbe(ctx, etcdAPI)
		return []*probe{p}, done, err
	}
	p, closeKeys, err := c.keyProbe(ctx, ownAPI)
	if err != nil {
		return nil, nil, err
	}
	events, closeEvents, err := c.eventProbes(ctx)
	if err != nil {
		closeKeys()
		return nil, nil, err
	}
	return append(events, p), func() { closeKeys(); closeEvents() }, nil
}

func (c *cluster) keyProbe(ctx context.Context, a api) (*probe, func(), error) {
	keys, err := c.keys(ctx, a, everywhere)
	if err != nil {
		return nil, nil, err
	}
	p := &probe{what: "a put"}
	for _, s := range keys.Stores {
		p.write = append(p.write, func(ctx context.Context) error { return s.Put(ctx, [][]byte{load.Key(0)}, keys.Values.Value(0)) })
	}
	return p, func() { closeAll(keys.Stores) }, nil
}

// eventProbes makes a topic of three ranges and a publisher for each.
func (c *cluster) eventProbes(ctx context.Context) ([]*probe, func(), error) {
	name := "failover-" + strconv.FormatInt(time.Now().UnixNano(), 36)
	events, done, err := c.topicOf(ctx, name, nodes)
	if err != nil {
		return nil, nil, err
	}
	ranges, err := events.Subscriber.Cluster.Ranges(ctx, "", name)
	if err != nil {
		done()
		return nil, nil, err
	}
	var list []*probe
	for _, r := range ranges {
		first := 0
		if len(r.GetStart()) > 0 {
			if first, err = strconv.Atoi(string(r.GetStart())); err != nil {
				done()
				return nil, nil, fmt.Errorf("range %d starts at partition %q: %w", r.GetRangeId(), r.GetStart(), err)
			}
		}
		event := client.NewEvent{Payload: events.Payloads.Value(0), OrderingKey: keyOf(first, nodes)}
		p := &probe{what: fmt.Sprintf("a publish to partition %d", first)}
		for _, o := range events.Publishers {
			p.write = append(p.write, func(ctx context.Context) error {
				_, err := o.Events.Publish(ctx, name, event)
				return err
			})
		}
		list = append(list, p)
	}
	return list, done, nil
}

// keyOf returns an ordering key of a partition.
func keyOf(partition, partitions int) []byte {
	for i := 0; ; i++ {
		key := strconv.AppendInt(nil, int64(i), 10)
		h := fnv.New64a()
		_, _ = h.Write(key)
		if h.Sum64()%uint64(partitions) == uint64(partition) {
			return key
		}
	}
}

// leaders returns the client addresses of the leaders of the keys and of the system range,
// which etcd does not have.
func (c *cluster) leaders(ctx context.Context) (keys, system string, err error) {
	if keys, err = c.keysLeader(ctx); err != nil || c.system == etcd {
		return keys, "", err
	}
	a, err := client.Open(ctx, client.Options{Endpoints: c.endpoints})
	if err != nil {
		return "", "", err
	}
	defer func() { _ = a.Close() }()
	s, err := a.Cluster.Status(ctx)
	if err != nil {
		return "", "", err
	}
	list, err := a.Cluster.Nodes(ctx)
	if err != nil {
		return "", "", err
	}
	for _, n := range list {
		if n.GetNodeId() == s.GetOracleNodeId() {
			return keys, n.GetAddress(), nil
		}
	}
	return "", "", fmt.Errorf("node %d, which issues timestamps, is unknown", s.GetOracleNodeId())
}
