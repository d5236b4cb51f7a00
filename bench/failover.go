package main

import (
	"context"
	"fmt"
	"hash/fnv"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/almanacdb/almanac/client"
	"github.com/almanacdb/almanac/internal/load"
)

const (
	// attempt bounds one try of a probe, and so how exact a gap is.
	attempt = 200 * time.Millisecond
	// calm is how long every probe must succeed after a failover until it counts as over.
	calm = 2 * time.Second
	// patience bounds a failover.
	patience = 60 * time.Second
)

// failoverMeasure kills a leader again and again. The gap of a failover is the longest
// time that any probe was without an acknowledgement.
func failoverMeasure(s system, name string, leader func(ctx context.Context, c *cluster) (string, error)) measure {
	return measure{system: s, name: "failover of " + name, run: func(ctx context.Context, b *bench, c *cluster) (figures, error) {
		probes, done, err := c.probes(ctx)
		if err != nil {
			return nil, err
		}
		defer done()
		var gaps sample
		for n := range b.kills {
			if !pause(ctx, b.settle) {
				return nil, ctx.Err()
			}
			gap, err := c.failover(ctx, probes, leader)
			if err != nil {
				return nil, fmt.Errorf("failover %d: %w", n+1, err)
			}
			b.say("    kill %d of %d: %v", n+1, b.kills, gap.Round(time.Millisecond))
			gaps = append(gaps, gap.Seconds())
		}
		shortest, longest := gaps.spread()
		return figures{"p50": gaps.median(), "max": longest, "min": shortest}, nil
	}}
}

// failover kills the leader and returns the gap that probes saw; afterwards the cluster
// is whole again.
func (c *cluster) failover(ctx context.Context, probes []*probe, leader func(context.Context, *cluster) (string, error)) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var address string
	if err := until(ctx, func(ctx context.Context) (err error) {
		address, err = leader(ctx, c)
		return err
	}); err != nil {
		return 0, fmt.Errorf("finding the leader: %w", err)
	}
	node, err := c.at(address)
	if err != nil {
		return 0, err
	}
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
	var gap time.Duration
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
	stop()
	wg.Wait()
	if err := node.Start(); err != nil {
		return 0, err
	}
	if err := c.await(ctx); err != nil {
		return 0, fmt.Errorf("after the node's return: %w", err)
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
		p.write = append(p.write, func(ctx context.Context) error { return s.Put(ctx, [][]byte{load.Key(0)}, keys.Value) })
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
		event := client.NewEvent{Payload: events.Payload, OrderingKey: keyOf(first, nodes)}
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

// keysLeader is the leader of the keys, systemLeader that of the system range, which
// issues the timestamps of all writes.
func keysLeader(ctx context.Context, c *cluster) (string, error) { return c.keysLeader(ctx) }

func systemLeader(ctx context.Context, c *cluster) (string, error) {
	a, err := client.Open(ctx, client.Options{Endpoints: c.endpoints})
	if err != nil {
		return "", err
	}
	defer func() { _ = a.Close() }()
	s, err := a.Cluster.Status(ctx)
	if err != nil {
		return "", err
	}
	list, err := a.Cluster.Nodes(ctx)
	if err != nil {
		return "", err
	}
	for _, n := range list {
		if n.GetNodeId() == s.GetOracleNodeId() && slices.Contains(c.endpoints, n.GetAddress()) {
			return n.GetAddress(), nil
		}
	}
	return "", fmt.Errorf("node %d, which issues timestamps, is none of ours", s.GetOracleNodeId())
}
