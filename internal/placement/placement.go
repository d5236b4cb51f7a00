package placement

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/clock"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/mvcc"
	"github.com/almanacdb/almanac/internal/store"
	"github.com/almanacdb/almanac/internal/wire"
)

// Options configure placement.
type Options struct {
	Store  *store.Store
	Logger *slog.Logger
	// Bootstrap is what the cluster was formed with; the first leader of the system
	// range writes it there.
	Bootstrap *Bootstrap
	// DeadAfter is how long a node may be silent before it counts as not alive.
	// Default 3 s.
	DeadAfter time.Duration
}

// Placement answers heartbeats and requests to change the catalogue, while this node
// leads the system range. Safe for concurrent use.
type Placement struct {
	opts   Options
	system system
	change sync.Mutex // one change of the catalogue at a time

	mu        sync.Mutex
	term      uint64
	since     clock.Mono // when this node took over
	beats     map[base.NodeID]beat
	catalogue *catalogue
	moved     map[base.RangeID]clock.Mono // when a leader was last asked to move
}

type beat struct {
	at     clock.Mono
	report wire.Heartbeat
}

// New returns a placement that acts once this node leads the system range.
func New(o Options) *Placement {
	if o.DeadAfter == 0 {
		o.DeadAfter = 3 * time.Second
	}
	return &Placement{
		opts: o, system: system{o.Store},
		beats: make(map[base.NodeID]beat), moved: make(map[base.RangeID]clock.Mono),
	}
}

// Handle implements store.Handler for the methods that placement answers.
func (p *Placement) Handle(from base.NodeID, c *wire.Call, done store.Done) bool {
	switch c.Method {
	case wire.MethodHeartbeat:
		go p.heartbeat(from, c, done)
	case wire.MethodAdmin:
		go p.admin(c, done)
	default:
		return false
	}
	return true
}

// lead makes sure that this node leads the system range, and starts afresh in a new
// term: what an earlier term heard is not known to be true any more (R1).
func (p *Placement) lead() error {
	v := p.opts.Store.Replica(base.SystemRange)
	if v == nil {
		return fault.New(fault.RangeNotFound, "this node holds no replica of the system range").OnRange(base.SystemRange)
	}
	if !v.Serving {
		return fault.NotLeaderOf(base.SystemRange, v.Leader)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.term != v.Term {
		p.term, p.since = v.Term, p.opts.Store.Clock().Mono()
		clear(p.beats)
		clear(p.moved)
		p.catalogue = nil
	}
	return nil
}

// Run keeps the catalogue's beginnings in place until ctx ends: the first leader of the
// system range writes what the cluster was formed with.
func (p *Placement) Run(ctx context.Context) {
	t := time.NewTicker(50 * time.Millisecond)
	defer t.Stop()
	written := uint64(0)
	for {
		if p.opts.Bootstrap != nil && p.lead() == nil && written != p.currentTerm() {
			if err := p.writeBootstrap(ctx); err == nil {
				written = p.currentTerm()
			} else {
				p.opts.Logger.Debug("cannot write the bootstrap records yet", "err", err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

func (p *Placement) currentTerm() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.term
}

func (p *Placement) writeBootstrap(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	kv, err := p.system.get(ctx, ClusterKey())
	if err != nil || kv != nil {
		return err
	}
	b := p.opts.Bootstrap
	txn := &mvcc.Txn{Compares: []mvcc.Compare{unchanged(ClusterKey(), 0)}}
	counters := Counters{Node: 1, Range: base.DefaultRange + 1, Topic: 1, Group: 1}
	txn.Then = append(txn.Then,
		put(ClusterKey(), Cluster{ID: b.Cluster.String()}),
		put(KeyspaceKey("system"), Keyspace{ID: base.SystemKeyspace, Name: "system", Protocol: base.ProtocolRaft.String()}),
		put(KeyspaceKey("default"), Keyspace{ID: base.DefaultKeyspace, Name: "default", Protocol: base.ProtocolRaft.String()}))
	for _, n := range b.Nodes {
		counters.Node = max(counters.Node, n.Node+1)
		txn.Then = append(txn.Then, put(NodeKey(n.Node), n))
	}
	for _, d := range b.Ranges() {
		txn.Then = append(txn.Then, put(RangeKey(d.Span), d))
	}
	txn.Then = append(txn.Then, put(CountersKey(), counters))
	_, err = p.system.txn(ctx, txn)
	return err
}

// heartbeat takes a node's report and answers what it should know and change.
func (p *Placement) heartbeat(from base.NodeID, c *wire.Call, done store.Done) {
	var report wire.Heartbeat
	if err := report.Decode(c.Body); err != nil {
		done(nil, err)
		return
	}
	if err := p.lead(); err != nil {
		done(nil, err)
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(c.TimeoutMS)*time.Millisecond)
	defer cancel()
	cat, err := p.read(ctx)
	if err != nil {
		done(nil, err)
		return
	}
	if known := cat.node(from); known != nil && *known != report.Node && report.Node.Node == from {
		if _, err := p.system.txn(ctx, &mvcc.Txn{Then: []mvcc.Op{put(NodeKey(from), report.Node)}}); err != nil {
			done(nil, err)
			return
		}
	}
	p.mu.Lock()
	now := p.opts.Store.Clock().Mono()
	p.beats[from] = beat{at: now, report: report}
	reply := p.answer(cat, from, &report, now)
	p.mu.Unlock()
	done(reply.Append(nil), nil)
}

// answer compares a report with the catalogue. Called with mu held.
func (p *Placement) answer(cat *catalogue, from base.NodeID, report *wire.Heartbeat, now clock.Mono) wire.HeartbeatReply {
	reply := wire.HeartbeatReply{Nodes: cat.nodes}
	held := make(map[base.RangeID]bool, len(report.Replicas))
	for _, r := range report.Replicas {
		held[r.Range] = true
		if cat.dropped[r.Range] {
			reply.Remove = append(reply.Remove, wire.ReplicaRemove{Range: r.Range, Replica: r.Replica})
		}
	}
	for i := range cat.ranges {
		d := &cat.ranges[i]
		if _, ok := d.ReplicaOn(from); ok && !held[d.Range] {
			reply.Create = append(reply.Create, *d)
		}
	}
	reply.Transfer = p.balance(cat, from, report, now)
	return reply
}

// balance gives leaders back to the replica that the descriptor names first, once its
// node is alive and the group has been calm for a while; and takes them, the system range's
// too, from a node whose disk has no space to spare, to one whose disk has.
func (p *Placement) balance(cat *catalogue, from base.NodeID, report *wire.Heartbeat, now clock.Mono) []wire.LeaderTransfer {
	const settle, again = 5 * time.Second, 10 * time.Second
	if now.Sub(p.since) < settle {
		return nil
	}
	var moves []wire.LeaderTransfer
	scarce := report.Capacity.Scarce()
	for _, r := range report.Replicas {
		d := cat.byID(r.Range)
		if d == nil || !r.Orderer || r.Range == base.SystemRange && !scarce {
			continue
		}
		candidates := d.Replicas[:1]
		if scarce {
			candidates = d.Replicas
		}
		i := slices.IndexFunc(candidates, func(to base.ReplicaDescriptor) bool {
			b, known := p.beats[to.Node]
			return known && to.Node != from && to.Role == base.RoleVoter && now.Sub(b.at) <= p.opts.DeadAfter &&
				!b.report.Capacity.Scarce() && caughtUp(&b.report, r)
		})
		if i < 0 {
			continue
		}
		if last, ok := p.moved[r.Range]; ok && now.Sub(last) < again {
			continue
		}
		p.moved[r.Range] = now
		moves = append(moves, wire.LeaderTransfer{Range: r.Range, To: candidates[i].Replica})
	}
	return moves
}

// caughtUp says that a node's replica of a range is close behind its leader.
func caughtUp(report *wire.Heartbeat, leader wire.ReplicaStatus) bool {
	i := slices.IndexFunc(report.Replicas, func(r wire.ReplicaStatus) bool { return r.Range == leader.Range })
	return i >= 0 && report.Replicas[i].Term == leader.Term && report.Replicas[i].Last+1000 >= leader.Last
}

// Report is what placement knows of a node.
type Report struct {
	Node      base.NodeDescriptor
	Alive     bool
	Heartbeat wire.Heartbeat
}

// alive returns the ids of the nodes heard from lately. Called with mu held.
func (p *Placement) alive(now clock.Mono) []base.NodeID {
	var ids []base.NodeID
	for id, b := range p.beats {
		if now.Sub(b.at) <= p.opts.DeadAfter {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}
