package simtest

import (
	"fmt"
	"hash/fnv"
	"time"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/keys"
	"github.com/almanacdb/almanac/internal/mvcc"
	"github.com/almanacdb/almanac/internal/wire"
)

// snapshot is what all keys were at a timestamp.
type snapshot struct {
	at  base.Timestamp
	n   int
	sum uint64
}

// snapshotClient reads all keys at fresh timestamps, some of them taken for a read of
// another range, and again at those of before (invariant 11).
type snapshotClient struct {
	w      *World
	leader leaders
	done   bool
}

func (c *snapshotClient) idle() bool     { return c.done }
func (c *snapshotClient) String() string { return "the snapshot client" }

func (c *snapshotClient) next() {
	w := c.w
	if w.load.stopping {
		c.done = true
		return
	}
	req := wire.ReadRequest{Reads: []wire.Read{{Span: keys.KeyspaceSpan(base.DefaultKeyspace)}}}
	var again *snapshot
	if n := len(w.load.shots); n > 0 && w.chance(0.6) {
		again = w.load.shots[w.rng.IntN(n)]
		req.At = again.at
	}
	if again != nil || w.chance(0.5) {
		c.read(req, again)
		return
	}
	c.elsewhere(func(at base.Timestamp) {
		req.At = at
		c.read(req, nil)
	})
}

// elsewhere takes a timestamp as a read of several ranges does: at the first of them.
func (c *snapshotClient) elsewhere(then func(base.Timestamp)) {
	w := c.w
	r, begun := rangeOf(base.Partition(w.rng.IntN(partitions))), w.load.latest
	w.ask(w.anyNode(), c.leader.pick(w, r), wire.MethodBarrier, r, (&wire.Barrier{}).Append(nil), func(b []byte, err error) {
		var m wire.BarrierReply
		if err == nil {
			err = m.Decode(b)
		}
		if err != nil {
			c.leader.learn(r, err)
			w.after(w.backoff(), c.next)
			return
		}
		w.stamped(begun, m.At)
		then(m.At)
	})
}

// read reads at req.At, or at a fresh timestamp; again is what was read there before.
func (c *snapshotClient) read(req wire.ReadRequest, again *snapshot) {
	w := c.w
	begun, horizon, fresh := w.load.latest, w.load.horizon, req.At == 0
	w.read(c.leader, req, 2*time.Second, func(reply *wire.ReadReply, err error) {
		if err == nil {
			if fresh {
				w.stamped(begun, reply.At)
			} else if req.At < horizon {
				w.violated("K8: read at %v, below the acknowledged horizon %v", req.At, horizon)
			}
			c.got(reply, again)
		}
		w.after(w.between(5*time.Millisecond, 150*time.Millisecond), c.next)
	})
}

func (c *snapshotClient) got(reply *wire.ReadReply, again *snapshot) {
	w := c.w
	s := fingerprint(reply.At, reply.Results[0].KVs)
	w.tracef("snapshot at %v: %d keys, %x", s.at, s.n, s.sum)
	if again == nil {
		w.count.Snapshots++
		w.load.shots = append(w.load.shots, s)
		return
	}
	w.count.SnapshotsAgain++
	if *s != *again {
		w.violated("invariant 11: at %v there were %d keys, %x; now there are %d, %x", s.at, again.n, again.sum, s.n, s.sum)
	}
}

func fingerprint(at base.Timestamp, kvs []mvcc.KeyValue) *snapshot {
	h := fnv.New64a()
	for i := range kvs {
		kv := &kvs[i]
		fmt.Fprintf(h, "%q %q %d %d %d\n", kv.Key, kv.Value, kv.CreateRevision, kv.ModRevision, kv.Version)
	}
	return &snapshot{at: at, n: len(kvs), sum: h.Sum64()}
}
