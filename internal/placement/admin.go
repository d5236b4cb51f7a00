package placement

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/keys"
	"github.com/almanacdb/almanac/internal/mvcc"
	"github.com/almanacdb/almanac/internal/store"
	"github.com/almanacdb/almanac/internal/timeline"
	"github.com/almanacdb/almanac/internal/wire"
)

// Limits on topics.
const (
	MaxPartitions = 4096
	MaxNameLength = 255
)

// Request is the body of MethodAdmin; exactly one field is set.
type Request struct {
	CreateTopic *CreateTopic         `json:"create_topic,omitempty"`
	DeleteTopic *DeleteTopic         `json:"delete_topic,omitempty"`
	CreateGroup *CreateGroup         `json:"create_group,omitempty"`
	GroupReady  *Group               `json:"group_ready,omitempty"`
	Register    *base.NodeDescriptor `json:"register,omitempty"`
	Reports     bool                 `json:"reports,omitempty"`
}

// Reply answers a Request.
type Reply struct {
	Topic     *Topic                `json:"topic,omitempty"`
	Group     *Group                `json:"group,omitempty"`
	Node      base.NodeID           `json:"node,omitempty"`
	Nodes     []base.NodeDescriptor `json:"nodes,omitempty"`
	Reports   []Report              `json:"reports,omitempty"`
	Bootstrap *Bootstrap            `json:"bootstrap,omitempty"`
}

// CreateTopic asks for a topic and its ranges.
type CreateTopic struct {
	Name        string `json:"name"`
	Partitions  uint32 `json:"partitions"`
	Replicas    int    `json:"replicas"` // 0: the default target
	RetentionMS int64  `json:"retention_ms"`
	IfNotExists bool   `json:"if_not_exists"`
}

// DeleteTopic asks to destroy a topic and its ranges.
type DeleteTopic struct {
	Name string `json:"name"`
}

// CreateGroup asks for a group's id; its cursors are made by the caller, who then says
// that the group is ready.
type CreateGroup struct {
	Topic base.TopicID       `json:"topic"`
	Name  string             `json:"name"`
	Start timeline.StartRule `json:"start"`
}

func decodeRequest(body []byte) (*Request, error) {
	req := &Request{}
	if err := json.Unmarshal(body, req); err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "the request to placement does not parse")
	}
	return req, nil
}

func (p *Placement) admin(c *wire.Call, done store.Done) {
	req, err := decodeRequest(c.Body)
	if err != nil {
		done(nil, err)
		return
	}
	if err := p.lead(); err != nil {
		done(nil, err)
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(c.TimeoutMS)*time.Millisecond)
	defer cancel()
	reply, err := p.do(ctx, req)
	if err != nil {
		done(nil, err)
		return
	}
	done(Encode(reply), nil)
}

func (p *Placement) do(ctx context.Context, req *Request) (*Reply, error) {
	if req.Reports {
		return p.reports(ctx)
	}
	p.change.Lock()
	defer p.change.Unlock()
	switch {
	case req.CreateTopic != nil:
		return p.createTopic(ctx, req.CreateTopic)
	case req.DeleteTopic != nil:
		return p.deleteTopic(ctx, req.DeleteTopic)
	case req.CreateGroup != nil:
		return p.createGroup(ctx, req.CreateGroup)
	case req.GroupReady != nil:
		return p.groupReady(ctx, req.GroupReady)
	case req.Register != nil:
		return p.register(ctx, *req.Register)
	}
	return nil, fault.New(fault.Invalid, "the request to placement asks for nothing that this version knows")
}

// CheckName says whether a topic or group may bear the name.
func CheckName(what, name string) error {
	problem := ""
	switch {
	case name == "":
		problem = "is empty"
	case len(name) > MaxNameLength:
		problem = fmt.Sprintf("has %d bytes", len(name))
		name = name[:32] + "..."
	case !utf8.ValidString(name):
		problem = "is not valid UTF-8"
	case strings.Contains(name, "/"):
		problem = "contains a slash"
	case strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsPrint(r) }):
		problem = "contains what can't be printed"
	default:
		return nil
	}
	return fault.New(fault.Invalid, "%s name %q %s", what, name, problem).
		WithRemedy("use 1 to %d bytes of printable characters without slashes", MaxNameLength)
}

func (p *Placement) createTopic(ctx context.Context, req *CreateTopic) (*Reply, error) {
	if err := CheckName("topic", req.Name); err != nil {
		return nil, err
	}
	if req.Partitions == 0 || req.Partitions > MaxPartitions {
		return nil, fault.New(fault.Invalid, "a topic has 1 to %d partitions, not %d", MaxPartitions, req.Partitions).
			WithRemedy("ask for a number in between; a topic's partitions share its ranges anyway")
	}
	if req.Replicas < 0 || req.RetentionMS < 0 {
		return nil, fault.New(fault.Invalid, "a topic can't have %d replicas or a retention of %d ms", req.Replicas, req.RetentionMS).
			WithRemedy("use 0 for the default")
	}
	kv, err := p.system.get(ctx, TopicKey(req.Name))
	if err != nil {
		return nil, err
	}
	if kv != nil {
		if !req.IfNotExists {
			return nil, fault.New(fault.AlreadyExists, "topic %q exists already", req.Name).
				WithRemedy("use another name, or --if-not-exists")
		}
		t, err := Decode[Topic](kv.Value)
		return &Reply{Topic: &t}, err
	}
	nodes, replicas, err := p.choose(ctx, req.Replicas)
	if err != nil {
		return nil, err
	}
	counters, rev, err := p.counters(ctx)
	if err != nil {
		return nil, err
	}
	t := Topic{ID: counters.Topic, Name: req.Name, Partitions: req.Partitions, Replicas: req.Replicas,
		RetentionMS: req.RetentionMS, Protocol: base.ProtocolRaft.String()}
	counters.Topic++
	ranges := topicRanges(&t, &counters, nodes, replicas)
	txn := &mvcc.Txn{
		Compares: []mvcc.Compare{unchanged(CountersKey(), rev), unchanged(TopicKey(t.Name), 0)},
		Then:     []mvcc.Op{put(CountersKey(), counters), put(TopicKey(t.Name), t)},
	}
	for _, d := range ranges {
		txn.Then = append(txn.Then, put(RangeKey(d.Span), d))
	}
	if err := p.commit(ctx, txn); err != nil {
		return nil, err
	}
	return &Reply{Topic: &t}, p.createRanges(ctx, ranges)
}

// topicRanges cuts a topic's partitions into min(partitions, nodes) ranges, whose
// preferred leaders are spread over the nodes.
func topicRanges(t *Topic, c *Counters, nodes []base.NodeID, replicas int) []base.RangeDescriptor {
	n := min(int(t.Partitions), len(nodes))
	var ranges []base.RangeDescriptor
	for i := range n {
		from := base.Partition(int(t.Partitions) * i / n)
		to := base.Partition(int(t.Partitions) * (i + 1) / n)
		span := keys.PartitionSpan(t.ID, from, to)
		ranges = append(ranges, newRange(c.Range, span, 0, t.ID, pick(nodes, int(c.Range)%len(nodes), replicas)))
		c.Range++
	}
	return ranges
}

// commit runs a transaction that another leader's change may have overtaken.
func (p *Placement) commit(ctx context.Context, txn *mvcc.Txn) error {
	res, err := p.system.txn(ctx, txn)
	if err == nil && !res.Succeeded {
		err = fault.New(fault.Busy, "the catalogue changed at the same time").WithRemedy("try again")
	}
	return err
}

func (p *Placement) counters(ctx context.Context) (Counters, base.Timestamp, error) {
	kv, err := p.system.get(ctx, CountersKey())
	if err != nil {
		return Counters{}, 0, err
	}
	if kv == nil {
		return Counters{}, 0, fault.New(fault.Unavailable, "the cluster is just being formed").WithRemedy("try again")
	}
	c, err := Decode[Counters](kv.Value)
	return c, kv.ModRevision, err
}

// choose returns the nodes to place on and how many replicas each range gets: the living
// ones, and where the default target needs more, dead ones behind them, which get their
// replicas when they come back (R6). Right after a change of leader it waits until the
// nodes have reported in.
func (p *Placement) choose(ctx context.Context, want int) ([]base.NodeID, int, error) {
	cat, err := p.read(ctx)
	if err != nil {
		return nil, 0, err
	}
	var alive []base.NodeID
	for {
		p.mu.Lock()
		now := p.opts.Store.Clock().Mono()
		alive = p.alive(now)
		waited := now.Sub(p.since)
		p.mu.Unlock()
		if len(alive) >= len(cat.nodes) || waited > p.opts.DeadAfter {
			break
		}
		select {
		case <-ctx.Done():
			return nil, 0, fault.New(fault.Deadline, "only %d of %d nodes have reported in", len(alive), len(cat.nodes))
		case <-time.After(20 * time.Millisecond):
		}
	}
	n := want
	if n == 0 {
		return p.chooseDefault(cat, alive)
	}
	if n > len(alive) {
		return nil, 0, fault.New(fault.Invalid, "%d replicas were asked for, and %d nodes are alive", n, len(alive)).
			WithRemedy("ask for at most %d, or bring nodes back", len(alive))
	}
	return alive, n, nil
}

func (p *Placement) chooseDefault(cat *catalogue, alive []base.NodeID) ([]base.NodeID, int, error) {
	n := DefaultReplicas(len(cat.nodes))
	if len(alive) <= n/2 {
		return nil, 0, fault.New(fault.Unavailable, "only %d of %d nodes are alive, not enough for a majority of %d replicas",
			len(alive), len(cat.nodes), n).WithRemedy("bring nodes back")
	}
	nodes := slices.Clone(alive)
	for _, d := range cat.nodes {
		if len(nodes) < n && !slices.Contains(alive, d.Node) {
			nodes = append(nodes, d.Node)
		}
	}
	return nodes, n, nil
}

// createRanges has the replicas created: the one that is to lead last, so that it is
// elected at once. Nodes that do not answer now get theirs with a later heartbeat.
func (p *Placement) createRanges(ctx context.Context, ranges []base.RangeDescriptor) error {
	for i := range ranges {
		d := &ranges[i]
		body := (&wire.ReplicaCreate{Descriptor: *d}).Append(nil)
		for j := len(d.Replicas) - 1; j >= 0; j-- {
			_, err := await(ctx, func(done func([]byte, error)) {
				p.opts.Store.Call(d.Replicas[j].Node, wire.MethodReplicaCreate, d.Range, body, 3*time.Second, done)
			})
			if err != nil {
				p.opts.Logger.Warn("cannot create a replica yet", "range", d.Range, "node", d.Replicas[j].Node, "err", err)
			}
		}
	}
	for i := range ranges {
		if err := p.awaitLeader(ctx, &ranges[i]); err != nil {
			return err
		}
	}
	return nil
}

// awaitLeader waits until a range serves.
func (p *Placement) awaitLeader(ctx context.Context, d *base.RangeDescriptor) error {
	body := (&wire.Barrier{Newest: true}).Append(nil)
	for n := 0; ; n++ {
		to := d.Replicas[n%len(d.Replicas)].Node
		_, err := await(ctx, func(done func([]byte, error)) {
			p.opts.Store.Call(to, wire.MethodBarrier, d.Range, body, time.Second, done)
		})
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fault.Wrap(fault.Deadline, err, "range %d has no leader yet", d.Range).OnRange(d.Range)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (p *Placement) deleteTopic(ctx context.Context, req *DeleteTopic) (*Reply, error) {
	kv, err := p.system.get(ctx, TopicKey(req.Name))
	if err != nil {
		return nil, err
	}
	if kv == nil {
		return nil, UnknownTopic(req.Name)
	}
	t, err := Decode[Topic](kv.Value)
	if err != nil {
		return nil, err
	}
	cat, err := p.read(ctx)
	if err != nil {
		return nil, err
	}
	txn := &mvcc.Txn{
		Compares: []mvcc.Compare{unchanged(TopicKey(t.Name), kv.ModRevision)},
		Then:     []mvcc.Op{remove(base.PointSpan(TopicKey(t.Name))), remove(GroupsSpan(t.ID))},
	}
	var gone []base.RangeDescriptor
	for _, d := range cat.ranges {
		if d.Topic == t.ID {
			gone = append(gone, d)
			txn.Then = append(txn.Then, remove(base.PointSpan(RangeKey(d.Span))), put(DroppedKey(d.Range), d))
		}
	}
	if err := p.commit(ctx, txn); err != nil {
		return nil, err
	}
	p.removeRanges(gone)
	return &Reply{Topic: &t}, nil
}

// removeRanges tells the nodes to destroy replicas; who does not hear it now is told in
// answer to a heartbeat.
func (p *Placement) removeRanges(ranges []base.RangeDescriptor) {
	for i := range ranges {
		for _, r := range ranges[i].Replicas {
			body := (&wire.ReplicaRemove{Range: ranges[i].Range, Replica: r.Replica}).Append(nil)
			p.opts.Store.Call(r.Node, wire.MethodReplicaRemove, ranges[i].Range, body, 3*time.Second, func([]byte, error) {})
		}
	}
}

// UnknownTopic is the error of a topic that does not exist.
func UnknownTopic(name string) *fault.Error {
	return fault.New(fault.NotFound, "topic %q does not exist", name).WithRemedy("create it: almanac topic create %s", name)
}

func (p *Placement) createGroup(ctx context.Context, req *CreateGroup) (*Reply, error) {
	if err := CheckName("group", req.Name); err != nil {
		return nil, err
	}
	key := GroupKey(req.Topic, req.Name)
	kv, err := p.system.get(ctx, key)
	if err != nil {
		return nil, err
	}
	if kv != nil {
		g, err := Decode[Group](kv.Value)
		return &Reply{Group: &g}, err
	}
	counters, rev, err := p.counters(ctx)
	if err != nil {
		return nil, err
	}
	g := Group{ID: counters.Group, Topic: req.Topic, Name: req.Name, Start: uint8(req.Start)}
	counters.Group++
	err = p.commit(ctx, &mvcc.Txn{
		Compares: []mvcc.Compare{unchanged(CountersKey(), rev), unchanged(key, 0)},
		Then:     []mvcc.Op{put(CountersKey(), counters), put(key, g)},
	})
	return &Reply{Group: &g}, err
}

func (p *Placement) groupReady(ctx context.Context, g *Group) (*Reply, error) {
	key := GroupKey(g.Topic, g.Name)
	kv, err := p.system.get(ctx, key)
	if err != nil {
		return nil, err
	}
	if kv == nil {
		return nil, fault.New(fault.NotFound, "group %q does not exist", g.Name)
	}
	g.Ready = true
	return &Reply{Group: g}, p.commit(ctx, &mvcc.Txn{
		Compares: []mvcc.Compare{unchanged(key, kv.ModRevision)},
		Then:     []mvcc.Op{put(key, g)},
	})
}

// register gives a new node its id; a node known by its peer address keeps the one it
// has, so that asking twice does no harm.
func (p *Placement) register(ctx context.Context, n base.NodeDescriptor) (*Reply, error) {
	if n.Peer == "" || n.Address == "" {
		return nil, fault.New(fault.Invalid, "a node wants to register without saying how it is reached").
			WithRemedy("run the same release on all nodes")
	}
	cat, err := p.read(ctx)
	if err != nil {
		return nil, err
	}
	reply := &Reply{Bootstrap: p.opts.Bootstrap, Nodes: cat.nodes}
	for _, known := range cat.nodes {
		if known.Peer == n.Peer {
			reply.Node = known.Node
			return reply, nil
		}
	}
	counters, rev, err := p.counters(ctx)
	if err != nil {
		return nil, err
	}
	n.Node = counters.Node
	counters.Node++
	reply.Node = n.Node
	return reply, p.commit(ctx, &mvcc.Txn{
		Compares: []mvcc.Compare{unchanged(CountersKey(), rev)},
		Then:     []mvcc.Op{put(CountersKey(), counters), put(NodeKey(n.Node), n)},
	})
}

// reports returns what is known of every node.
func (p *Placement) reports(ctx context.Context) (*Reply, error) {
	cat, err := p.read(ctx)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.opts.Store.Clock().Mono()
	reply := &Reply{}
	for _, n := range cat.nodes {
		b, ok := p.beats[n.Node]
		reply.Reports = append(reply.Reports, Report{
			Node: n, Alive: ok && now.Sub(b.at) <= p.opts.DeadAfter, Heartbeat: b.report,
		})
	}
	return reply, nil
}
