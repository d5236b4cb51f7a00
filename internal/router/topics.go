package router

import (
	"context"
	"sync"
	"time"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/clock"
	"github.com/almanacdb/almanac/internal/command"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/keys"
	"github.com/almanacdb/almanac/internal/mvcc"
	"github.com/almanacdb/almanac/internal/placement"
	"github.com/almanacdb/almanac/internal/timeline"
	"github.com/almanacdb/almanac/internal/wire"
)

// topicCache remembers topics by name for a while. A topic's partitions never change;
// one that was deleted, and perhaps made again, shows by its ranges being gone.
type topicCache struct {
	mu     sync.Mutex
	byName map[string]cachedTopic
}

type cachedTopic struct {
	topic placement.Topic
	until clock.Mono
}

const topicCacheFor = 10 * time.Second

func (c *topicCache) get(name string, now clock.Mono) (placement.Topic, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	t, ok := c.byName[name]
	return t.topic, ok && now < t.until
}

func (c *topicCache) put(t placement.Topic, now clock.Mono) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.byName) > 10_000 {
		clear(c.byName)
	}
	c.byName[t.Name] = cachedTopic{t, now.Add(topicCacheFor)}
}

func (c *topicCache) drop(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.byName, name)
}

// record reads one system record; ok is false if there is none.
func record[T any](ctx context.Context, r *Router, key []byte) (t T, ok bool, err error) {
	kvs, err := r.records(ctx, base.PointSpan(key))
	if err != nil || len(kvs) == 0 {
		return t, false, err
	}
	t, err = placement.Decode[T](kvs[0].Value)
	return t, err == nil, err
}

// records reads system records, linearizably.
func (r *Router) records(ctx context.Context, span base.Span) ([]mvcc.KeyValue, error) {
	ctx, cancel := r.bound(ctx)
	defer cancel()
	reply, err := r.readRange(ctx, r.systemRoute(), wire.ReadRequest{Newest: true, Reads: []wire.Read{{Span: span}}})
	if err != nil {
		return nil, err
	}
	return reply.Results[0].KVs, nil
}

// Topic returns a topic by name; NotFound if there is none.
func (r *Router) Topic(ctx context.Context, name string) (placement.Topic, error) {
	now := r.store.Clock().Mono()
	if t, ok := r.topics.get(name, now); ok {
		return t, nil
	}
	t, ok, err := record[placement.Topic](ctx, r, placement.TopicKey(name))
	if err != nil {
		return t, err
	}
	if !ok {
		return t, placement.UnknownTopic(name)
	}
	r.topics.put(t, now)
	return t, nil
}

// Topics returns all topics, by name.
func (r *Router) Topics(ctx context.Context) ([]placement.Topic, error) {
	kvs, err := r.records(ctx, placement.TopicsSpan())
	if err != nil {
		return nil, err
	}
	list := make([]placement.Topic, 0, len(kvs))
	for _, kv := range kvs {
		t, err := placement.Decode[placement.Topic](kv.Value)
		if err != nil {
			return nil, err
		}
		list = append(list, t)
	}
	return list, nil
}

// Ranges returns all range descriptors, by span.
func (r *Router) Ranges(ctx context.Context) ([]base.RangeDescriptor, error) {
	kvs, err := r.records(ctx, placement.RangesSpan())
	if err != nil {
		return nil, err
	}
	list := make([]base.RangeDescriptor, 0, len(kvs))
	for _, kv := range kvs {
		d, err := placement.Decode[base.RangeDescriptor](kv.Value)
		if err != nil {
			return nil, err
		}
		list = append(list, d)
	}
	return list, nil
}

// adminTimeout bounds a change of the catalogue whose context has no nearer deadline:
// new ranges must elect leaders.
const adminTimeout = 15 * time.Second

// Admin asks placement. A change is not tried again once it may have been made.
func (r *Router) Admin(ctx context.Context, req *placement.Request) (*placement.Reply, error) {
	ctx, cancel := within(ctx, adminTimeout)
	defer cancel()
	// To do these twice changes nothing more.
	harmless := req.Reports || req.Register != nil || req.CreateGroup != nil || req.GroupReady != nil
	body, err := r.callSystem(ctx, wire.MethodAdmin, placement.Encode(req))
	for attempt := 0; harmless && fault.KindOf(err) == fault.UnknownOutcome && pause(ctx, attempt); attempt++ {
		body, err = r.callSystem(ctx, wire.MethodAdmin, placement.Encode(req))
	}
	if err != nil {
		return nil, err
	}
	reply, err := placement.Decode[placement.Reply](body)
	return &reply, err
}

// Heartbeat reports to placement and returns its answer.
func (r *Router) Heartbeat(ctx context.Context, h *wire.Heartbeat) (*wire.HeartbeatReply, error) {
	body, err := r.callSystem(ctx, wire.MethodHeartbeat, h.Append(nil))
	if err != nil {
		return nil, err
	}
	reply := &wire.HeartbeatReply{}
	return reply, reply.Decode(body)
}

// callSystem calls a method at the leader of the system range.
func (r *Router) callSystem(ctx context.Context, m wire.Method, body []byte) ([]byte, error) {
	rt := r.systemRoute()
	for attempt := 0; ; attempt++ {
		ch := make(chan answer[[]byte], 1)
		r.store.Call(r.orderer(&rt, attempt), m, base.SystemRange, body, left(ctx), func(b []byte, err error) {
			ch <- answer[[]byte]{b, err}
		})
		var err error
		select {
		case a := <-ch:
			if a.err == nil || !safe(a.err) {
				return a.v, a.err
			}
			err = a.err
			r.learn(&rt, err)
		case <-ctx.Done():
		}
		if !pause(ctx, attempt) {
			return nil, outOfTime(ctx, &rt, err)
		}
	}
}

// CreateTopic makes a topic; created is false if it existed and that was allowed.
func (r *Router) CreateTopic(ctx context.Context, req placement.CreateTopic) (t placement.Topic, created bool, err error) {
	if req.IfNotExists {
		if t, err := r.Topic(ctx, req.Name); err == nil {
			return t, false, nil
		}
	}
	reply, err := r.Admin(ctx, &placement.Request{CreateTopic: &req})
	if err != nil {
		return t, false, err
	}
	return *reply.Topic, true, nil
}

// DeleteTopic destroys a topic and its ranges.
func (r *Router) DeleteTopic(ctx context.Context, name string) error {
	r.topics.drop(name)
	_, err := r.Admin(ctx, &placement.Request{DeleteTopic: &placement.DeleteTopic{Name: name}})
	return err
}

// topicRanges returns the ranges of a topic with the partitions in each.
func (r *Router) topicRanges(ctx context.Context, t *placement.Topic) ([]topicRange, error) {
	var list []topicRange
	for p := base.Partition(0); p < base.Partition(t.Partitions); p++ {
		key := keys.Partition(base.PartitionID{Topic: t.ID, Partition: p})
		if n := len(list); n > 0 && list[n-1].desc.Span.ContainsKey(key) {
			list[n-1].partitions = append(list[n-1].partitions, p)
			continue
		}
		rt, err := r.lookup(ctx, key)
		if err != nil {
			return nil, err
		}
		list = append(list, topicRange{desc: rt.desc, partitions: []base.Partition{p}})
	}
	return list, nil
}

type topicRange struct {
	desc       base.RangeDescriptor
	partitions []base.Partition
}

// EnsureGroup returns a group of a topic, with its cursor in every partition; a new one
// starts by the rule.
func (r *Router) EnsureGroup(ctx context.Context, t *placement.Topic, name string, start timeline.StartRule) (placement.Group, error) {
	if err := placement.CheckName("group", name); err != nil {
		return placement.Group{}, err
	}
	g, ok, err := record[placement.Group](ctx, r, placement.GroupKey(t.ID, name))
	if err != nil || (ok && g.Ready) {
		return g, err
	}
	if !ok {
		reply, err := r.Admin(ctx, &placement.Request{CreateGroup: &placement.CreateGroup{Topic: t.ID, Name: name, Start: start}})
		if err != nil {
			return g, err
		}
		g = *reply.Group
	}
	ranges, err := r.topicRanges(ctx, t)
	if err != nil {
		return g, err
	}
	for _, tr := range ranges {
		body := &timeline.CreateGroup{Group: g.ID, Start: timeline.StartRule(g.Start)}
		for _, p := range tr.partitions {
			body.Partitions = append(body.Partitions, base.PartitionID{Topic: t.ID, Partition: p})
		}
		res, err := r.proposeAgain(ctx, tr.desc.Span, command.Header{Kind: command.KindCreateGroup}, body)
		if err == nil && res.Refusal != nil {
			err = res.Refusal
		}
		if err != nil {
			return g, err
		}
	}
	if !g.Ready {
		reply, err := r.Admin(ctx, &placement.Request{GroupReady: &g})
		if err != nil {
			return g, err
		}
		g = *reply.Group
	}
	return g, nil
}

// proposeAgain is Propose for a command that does no harm when done twice: it is tried
// again even if its outcome is unknown.
func (r *Router) proposeAgain(ctx context.Context, span base.Span, h command.Header, body any) (command.Result, error) {
	ctx, cancel := r.bound(ctx)
	defer cancel()
	for attempt := 0; ; attempt++ {
		res, err := r.Propose(ctx, span, h, body)
		if fault.KindOf(err) != fault.UnknownOutcome || !pause(ctx, attempt) {
			return res, err
		}
	}
}
