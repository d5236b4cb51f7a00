package router

import (
	"bytes"
	"context"
	"slices"
	"sync"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/keys"
	"github.com/almanacdb/almanac/internal/placement"
	"github.com/almanacdb/almanac/internal/wire"
)

// route is a range as the gateway last knew it, and who led it then.
type route struct {
	desc   base.RangeDescriptor
	leader base.NodeID // 0: unknown
}

// routeCache keeps routes by span. What it says may be old; the replica that is asked
// corrects it (R5).
type routeCache struct {
	mu     sync.RWMutex
	routes []*route // by start of span; spans do not overlap
}

func (c *routeCache) search(key []byte) (int, bool) {
	i, found := slices.BinarySearchFunc(c.routes, key, func(r *route, k []byte) int {
		return bytes.Compare(r.desc.Span.Start, k)
	})
	if found {
		return i, true
	}
	return i - 1, i > 0 && c.routes[i-1].desc.Span.ContainsKey(key)
}

// get returns the route of the range that holds key.
func (c *routeCache) get(key []byte) (route, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	i, ok := c.search(key)
	if !ok {
		return route{}, false
	}
	return *c.routes[i], true
}

// put remembers a descriptor in place of all that overlap it.
func (c *routeCache) put(d base.RangeDescriptor) {
	c.mu.Lock()
	defer c.mu.Unlock()
	leader := base.NodeID(0)
	c.routes = slices.DeleteFunc(c.routes, func(r *route) bool {
		if r.desc.Range == d.Range {
			leader = r.leader
		}
		return r.desc.Span.Overlaps(d.Span)
	})
	i, _ := slices.BinarySearchFunc(c.routes, d.Span.Start, func(r *route, k []byte) int {
		return bytes.Compare(r.desc.Span.Start, k)
	})
	c.routes = slices.Insert(c.routes, i, &route{desc: d, leader: leader})
}

// led remembers who leads a range.
func (c *routeCache) led(id base.RangeID, leader base.NodeID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range c.routes {
		if r.desc.Range == id {
			r.leader = leader
		}
	}
}

// drop forgets a range.
func (c *routeCache) drop(id base.RangeID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.routes = slices.DeleteFunc(c.routes, func(r *route) bool { return r.desc.Range == id })
}

// lookup returns the range that holds key, from the cache or the system range.
func (r *Router) lookup(ctx context.Context, key []byte) (route, error) {
	if found, ok := r.routes.get(key); ok {
		return found, nil
	}
	reply, err := r.readRange(ctx, r.systemRoute(), wire.ReadRequest{Newest: true, Reads: []wire.Read{{
		Span: placement.RangesAfter(key), Options: firstOnly,
	}}})
	if err != nil {
		return route{}, err
	}
	kvs := reply.Results[0].KVs
	if len(kvs) > 0 {
		d, err := placement.Decode[base.RangeDescriptor](kvs[0].Value)
		if err != nil {
			return route{}, err
		}
		if d.Span.ContainsKey(key) {
			r.routes.put(d)
			found, _ := r.routes.get(key)
			return found, nil
		}
	}
	if _, err := keys.DecodePartition(key); err == nil {
		return route{}, fault.New(fault.NotFound, "no range holds the key %x", key)
	}
	// Keyspaces are covered whole, once the first leader has written the catalogue.
	return route{}, fault.New(fault.Unavailable, "the catalogue of ranges is not written yet").OnRange(base.SystemRange)
}

// systemRoute returns the route of the system range, which every node knows.
func (r *Router) systemRoute() route {
	d := r.opts.System()
	found, ok := r.routes.get(d.Span.Start)
	if !ok {
		r.routes.put(d)
		found, _ = r.routes.get(d.Span.Start)
	}
	return found
}

// orderer returns the node to ask first for a range: the local replica's word, else
// the cached hint, else a replica, another one with each attempt.
func (r *Router) orderer(rt *route, attempt int) base.NodeID {
	if attempt == 0 || attempt%3 == 1 {
		if v := r.store.Replica(rt.desc.Range); v != nil && v.Leader != 0 {
			return v.Leader
		}
		if rt.leader != 0 {
			return rt.leader
		}
	}
	if len(rt.desc.Replicas) == 0 {
		return r.store.Node()
	}
	// Hints take every third attempt; the others go round all replicas all the same.
	round := attempt - (attempt+1)/3
	return rt.desc.Replicas[round%len(rt.desc.Replicas)].Node
}

// learn corrects the cache from an error.
func (r *Router) learn(rt *route, err error) {
	switch f := fault.As(err); f.Kind {
	case fault.NotLeader:
		rt.leader = f.Leader
		r.routes.led(rt.desc.Range, f.Leader)
	case fault.RangeNotFound, fault.WrongRange:
		r.routes.drop(rt.desc.Range)
	}
}
