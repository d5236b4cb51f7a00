package store

import (
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/clock"
	"github.com/almanacdb/almanac/internal/command"
	"github.com/almanacdb/almanac/internal/engine"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/keys"
	"github.com/almanacdb/almanac/internal/logstore"
	"github.com/almanacdb/almanac/internal/mvcc"
	"github.com/almanacdb/almanac/internal/replica"
	"github.com/almanacdb/almanac/internal/transport"
	"github.com/almanacdb/almanac/internal/wire"
)

// patience bounds every wait of a test; it is reached only by one that fails.
const patience = 20 * time.Second

// mesh joins the nodes of a cluster in one process. Messages go through the codec and
// are delivered by a goroutine per node.
type mesh struct {
	mu    sync.Mutex
	ports map[base.NodeID]*port
	cut   map[[2]base.NodeID]bool
}

type packet struct {
	from  base.NodeID
	frame []byte
}

type port struct {
	mesh  *mesh
	node  base.NodeID
	store *Store
	in    chan packet
	done  chan struct{}
}

func (p *port) Send(to base.NodeID, _ transport.Class, msgs ...wire.Message) bool {
	p.mesh.mu.Lock()
	defer p.mesh.mu.Unlock()
	q := p.mesh.ports[to]
	if q == nil || p.mesh.ports[p.node] != p {
		return false
	}
	if p.mesh.cut[[2]base.NodeID{p.node, to}] {
		return true // lost on the way
	}
	select {
	case q.in <- packet{p.node, wire.AppendFrame(nil, msgs)}:
		return true
	default:
		return false
	}
}

func (p *port) run() {
	defer close(p.done)
	for pk := range p.in {
		if msgs, err := wire.DecodeMessages(pk.frame); err == nil {
			p.store.Receive(pk.from, msgs)
		}
	}
}

// member is a node: its disks stay when its store goes.
type member struct {
	c          *cluster
	id         base.NodeID
	log, state *engine.Mem
	store      *Store
	port       *port
	lost       bool // its disks were lost, see rebuild_test.go
}

type cluster struct {
	t       *testing.T
	mesh    *mesh
	members []*member
	opts    func(*Options)
}

func newCluster(t *testing.T, n int, opts func(*Options)) *cluster {
	c := &cluster{t: t, mesh: &mesh{ports: make(map[base.NodeID]*port), cut: make(map[[2]base.NodeID]bool)}, opts: opts}
	for i := range n {
		m := &member{c: c, id: base.NodeID(i + 1),
			log: engine.NewMem(engine.MemOptions{WAL: true}), state: engine.NewMem(engine.MemOptions{})}
		c.members = append(c.members, m)
		m.start()
	}
	t.Cleanup(func() {
		for _, m := range c.members {
			m.stop()
		}
	})
	return c
}

func (m *member) start() {
	m.c.t.Helper()
	if err := m.open(); err != nil {
		m.c.t.Fatal(err)
	}
	m.port.store = m.store
	m.c.mesh.mu.Lock()
	m.c.mesh.ports[m.id] = m.port
	m.c.mesh.mu.Unlock()
	go m.port.run()
	m.store.Start()
}

// open brings back what is on the disks; nothing runs yet.
func (m *member) open() error {
	t := m.c.t
	logs, err := logstore.Open(m.log)
	if err != nil {
		return err
	}
	m.port = &port{mesh: m.c.mesh, node: m.id, in: make(chan packet, 65536), done: make(chan struct{})}
	o := Options{
		Node: m.id, Clock: clock.NewSystem(), Tick: 20 * time.Millisecond, Log: logs, Engine: m.state, Transport: m.port,
		Logger: slog.New(slog.DiscardHandler), Fatal: func(err error) { t.Errorf("node %d calls itself broken: %v", m.id, err) },
		SystemNodes: func() []base.NodeID { return m.c.ids() }, Rebuild: m.lost,
	}
	if m.c.opts != nil {
		m.c.opts(&o)
	}
	st, err := Open(o)
	if err == nil {
		m.store = st
	}
	return err
}

func (m *member) stop() {
	if m.store == nil {
		return
	}
	m.c.mesh.mu.Lock()
	delete(m.c.mesh.ports, m.id)
	m.c.mesh.mu.Unlock()
	close(m.port.in)
	<-m.port.done
	if err := m.store.Close(); err != nil && fault.KindOf(err) != fault.Stopped {
		m.c.t.Errorf("closing node %d: %v", m.id, err)
	}
	m.store = nil
}

// crash cuts the node's power: what was not durable is gone.
func (m *member) crash() {
	log, state := m.log.CrashClone(nil), m.state.CrashClone(nil)
	m.stop()
	m.log, m.state = log, state
}

func (c *cluster) ids() []base.NodeID {
	ids := make([]base.NodeID, len(c.members))
	for i := range ids {
		ids[i] = base.NodeID(i + 1)
	}
	return ids
}

// isolate cuts a node off from all others, or joins it again.
func (c *cluster) isolate(id base.NodeID, cut bool) {
	c.mesh.mu.Lock()
	defer c.mesh.mu.Unlock()
	for _, m := range c.members {
		c.mesh.cut[[2]base.NodeID{id, m.id}], c.mesh.cut[[2]base.NodeID{m.id, id}] = cut, cut
	}
}

func descriptor(id base.RangeID, ks base.KeyspaceID, nodes ...base.NodeID) base.RangeDescriptor {
	d := base.RangeDescriptor{Range: id, Span: keys.KeyspaceSpan(ks), SpanEpoch: 1, ConfigEpoch: 1, Protocol: base.ProtocolRaft, Keyspace: ks}
	for i, n := range nodes {
		d.Replicas = append(d.Replicas, base.ReplicaDescriptor{Node: n, Replica: base.ReplicaID(i + 1), Role: base.RoleVoter})
	}
	return d
}

func (c *cluster) create(d base.RangeDescriptor) {
	c.t.Helper()
	for i := len(d.Replicas) - 1; i >= 0; i-- {
		if err := c.members[d.Replicas[i].Node-1].store.CreateReplica(d); err != nil {
			c.t.Fatal(err)
		}
	}
}

// found creates the system range and the default keyspace's on all nodes.
func (c *cluster) found() {
	c.t.Helper()
	c.create(descriptor(base.SystemRange, base.SystemKeyspace, c.ids()...))
	c.create(descriptor(base.DefaultRange, base.DefaultKeyspace, c.ids()...))
}

// until polls; what says what was waited for.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	poll := time.NewTicker(2 * time.Millisecond)
	defer poll.Stop()
	end := time.NewTimer(patience)
	defer end.Stop()
	for !ok() {
		select {
		case <-poll.C:
		case <-end.C:
			t.Fatalf("in %v there was not: %s", patience, what)
		}
	}
}

// leader waits until a living node serves a range.
func (c *cluster) leader(r base.RangeID) (found *member) {
	c.t.Helper()
	until(c.t, fmt.Sprintf("a leader of range %d", r), func() bool {
		for _, m := range c.members {
			if m.store == nil {
				continue
			}
			if v := m.store.Replica(r); v != nil && v.Serving {
				found = m
				return true
			}
		}
		return false
	})
	return found
}

// await calls start and waits for the one answer; a second one fails the test.
func await[T any](t *testing.T, start func(done func(T, error))) (T, error) {
	t.Helper()
	type answer struct {
		v   T
		err error
	}
	ch := make(chan answer, 2)
	var once sync.Once
	start(func(v T, err error) {
		first := false
		once.Do(func() { first = true })
		if !first {
			t.Error("answered twice")
			return
		}
		ch <- answer{v, err}
	})
	select {
	case a := <-ch:
		return a.v, a.err
	case <-time.After(patience):
		t.Fatal("no answer")
		panic("not reached")
	}
}

func key(s string) []byte { return keys.User(base.DefaultKeyspace, []byte(s)) }

func putEnvelope(t *testing.T, k, v string) []byte {
	t.Helper()
	env, err := command.Encode(command.Header{Kind: command.KindTxn}, &mvcc.Txn{
		Then: []mvcc.Op{{Kind: mvcc.OpPut, Span: base.PointSpan(key(k)), Value: []byte(v)}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return env
}

// propose asks the node's own replica to put a key.
func (m *member) propose(k, v string, within time.Duration) (command.Result, error) {
	m.c.t.Helper()
	return await(m.c.t, func(done func(command.Result, error)) {
		m.store.Propose(base.DefaultRange, putEnvelope(m.c.t, k, v), m.store.Clock().Mono().Add(within), done)
	})
}

// put puts a key at whoever leads, until it is done.
func (c *cluster) put(k, v string) base.Timestamp {
	c.t.Helper()
	var res command.Result
	until(c.t, "a put", func() bool {
		var err error
		res, err = c.leader(base.DefaultRange).propose(k, v, patience)
		if err == nil && res.Refusal != nil {
			err = res.Refusal
		}
		return err == nil
	})
	return res.Stamp
}

// read reads a key at a node, linearizably, in the way that a gateway does.
func (m *member) read(k string) (value string, at base.Timestamp, err error) {
	t := m.c.t
	t.Helper()
	v := m.store.Replica(base.DefaultRange)
	if v == nil || v.Leader == 0 {
		return "", 0, fault.NotLeaderOf(base.DefaultRange, 0)
	}
	body, err := await(t, func(done func([]byte, error)) {
		m.store.Call(v.Leader, wire.MethodBarrier, base.DefaultRange, (&wire.Barrier{}).Append(nil), time.Second, done)
	})
	var b wire.BarrierReply
	if err == nil {
		err = b.Decode(body)
	}
	if err != nil {
		return "", 0, err
	}
	_, err = await(t, func(done func(struct{}, error)) {
		m.store.WaitApplied(base.DefaultRange, b.Mark, m.store.Clock().Mono().Add(time.Second), func(err error) { done(struct{}{}, err) })
	})
	if err != nil {
		return "", 0, err
	}
	reply, err := m.store.ReadLocal(base.DefaultRange, []wire.Read{{Span: base.PointSpan(key(k))}}, b.At)
	if err != nil || len(reply.Results[0].KVs) == 0 {
		return "", b.At, err
	}
	return string(reply.Results[0].KVs[0].Value), b.At, nil
}

// wants reads a key at a node until that succeeds, and compares.
func (m *member) wants(k, value string) {
	t := m.c.t
	t.Helper()
	var got string
	until(t, "a read", func() (ok bool) {
		var err error
		got, _, err = m.read(k)
		return err == nil
	})
	if got != value {
		t.Errorf("node %d reads %s=%q, not %q", m.id, k, got, value)
	}
}

// stamps fetches n timestamps at a node, until it gets them.
func (m *member) stamps(n int) (first base.Timestamp) {
	m.c.t.Helper()
	until(m.c.t, "a timestamp", func() bool {
		var err error
		first, err = await(m.c.t, func(done func(base.Timestamp, error)) { m.store.FetchStamps(n, done) })
		return err == nil
	})
	return first
}

var _ replica.Env = (*Store)(nil)
