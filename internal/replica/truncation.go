package replica

import (
	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/host"
	"github.com/almanacdb/almanac/internal/plant"
)

// truncation decides when a log gives up its oldest entries.
type truncation struct {
	bytes int    // appended since the last truncation, roughly
	to    uint64 // drop entries at or below; 0: nothing to do
}

// truncateBytes is how much log is let grow before a truncation is considered.
const truncateBytes = 4 << 20

func (t *truncation) grew(entries []base.Entry) {
	for i := range entries {
		t.bytes += entries[i].Size()
	}
}

// considerTruncation chooses where to truncate: never above what the state store has
// durably flushed (S1), and not so far that a follower a little behind would need a
// snapshot. While a snapshot is being sent, the log that continues it is kept.
func (r *Replica) considerTruncation() {
	first, applied := r.opts.Log.First(), r.state.Applied.Index
	held := applied + 1 - first
	if applied < first || applied > r.opts.Log.Last() || r.snap.sending || (held < 2*r.opts.KeepEntries && r.trunc.bytes < 2*truncateBytes) {
		return
	}
	keep := r.opts.KeepEntries
	if r.trunc.bytes >= 2*truncateBytes {
		// Large entries: keep about truncateBytes of them.
		keep = min(keep, held*truncateBytes/uint64(r.trunc.bytes))
	}
	durable, err := r.env.DurableApplied(r.id)
	if err != nil {
		r.opts.Logger.Warn("cannot read what is durable", "range", r.id, "err", err)
		return
	}
	if applied-keep < durable || plant.On(plant.TruncatedTooFar) {
		durable = applied - keep
	}
	if durable >= first {
		r.trunc.to = durable
	}
}

// truncate writes a decided truncation into the turn's batch. It needs no sync of its
// own: a log that kept too much is harmless.
func (r *Replica) truncate(t *host.Turn) {
	to := r.trunc.to
	if to == 0 {
		return
	}
	r.trunc.to = 0
	term, err := r.opts.Log.Term(to)
	if err != nil {
		r.opts.Logger.Warn("cannot truncate the log", "range", r.id, "err", err)
		return
	}
	held := r.opts.Log.Last() + 1 - r.opts.Log.First()
	dropped := to + 1 - r.opts.Log.First()
	t.Batch.Truncate(r.opts.Log, base.LogMark{Index: to, Term: term})
	r.trunc.bytes -= int(uint64(r.trunc.bytes) * dropped / max(held, 1))
}
