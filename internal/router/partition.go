package router

import (
	"context"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/keys"
)

// RangeOf returns the range that holds a partition, as far as this gateway knows: what
// concerns partitions of one range can be asked in one command.
func (r *Router) RangeOf(ctx context.Context, p base.PartitionID) (base.RangeID, error) {
	ctx, cancel := r.bound(ctx)
	defer cancel()
	rt, err := r.lookup(ctx, keys.Partition(p))
	return rt.desc.Range, err
}
