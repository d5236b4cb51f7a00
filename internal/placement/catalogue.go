package placement

import (
	"context"
	"slices"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/keys"
)

// catalogue is the system range's records, as of one moment. Immutable.
type catalogue struct {
	stamp   base.Timestamp // the system range's last stamp when it was read
	nodes   []base.NodeDescriptor
	ranges  []base.RangeDescriptor
	dropped map[base.RangeID]bool
}

func (c *catalogue) node(id base.NodeID) *base.NodeDescriptor {
	for i := range c.nodes {
		if c.nodes[i].Node == id {
			return &c.nodes[i]
		}
	}
	return nil
}

func (c *catalogue) byID(id base.RangeID) *base.RangeDescriptor {
	for i := range c.ranges {
		if c.ranges[i].Range == id {
			return &c.ranges[i]
		}
	}
	return nil
}

// read returns the catalogue, read anew if the system range has changed.
func (p *Placement) read(ctx context.Context) (*catalogue, error) {
	stamp := base.Timestamp(0)
	if v := p.opts.Store.Replica(base.SystemRange); v != nil {
		stamp = v.LastStamp
	}
	p.mu.Lock()
	cat := p.catalogue
	p.mu.Unlock()
	if cat != nil && cat.stamp == stamp {
		return cat, nil
	}
	res, err := p.system.read(ctx, tableSpan(tableNode), RangesSpan(), tableSpan(tableDropped))
	if err != nil {
		return nil, err
	}
	cat = &catalogue{stamp: stamp, dropped: make(map[base.RangeID]bool)}
	for _, kv := range res[0].KVs {
		n, err := Decode[base.NodeDescriptor](kv.Value)
		if err != nil {
			return nil, err
		}
		cat.nodes = append(cat.nodes, n)
	}
	for _, kv := range res[1].KVs {
		d, err := Decode[base.RangeDescriptor](kv.Value)
		if err != nil {
			return nil, err
		}
		cat.ranges = append(cat.ranges, d)
	}
	slices.SortFunc(cat.ranges, func(a, b base.RangeDescriptor) int { return int(a.Range) - int(b.Range) })
	prefix := len(systemKey(tableDropped))
	for _, kv := range res[2].KVs {
		id, _, err := keys.DecodeOrdered(kv.Key[prefix:])
		if err != nil {
			return nil, err
		}
		cat.dropped[base.RangeID(id)] = true
	}
	p.mu.Lock()
	p.catalogue = cat
	p.mu.Unlock()
	return cat, nil
}
