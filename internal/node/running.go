package node

import (
	"context"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"

	"github.com/almanacdb/almanac/internal/admission"
	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/fault"
	gateway "github.com/almanacdb/almanac/internal/gateway/almanac"
	"github.com/almanacdb/almanac/internal/gateway/etcd"
	"github.com/almanacdb/almanac/internal/oracle"
	"github.com/almanacdb/almanac/internal/placement"
	"github.com/almanacdb/almanac/internal/router"
	"github.com/almanacdb/almanac/internal/store"
	"github.com/almanacdb/almanac/internal/transport"
	"github.com/almanacdb/almanac/internal/wire"
)

// running is what serves a member of a cluster.
type running struct {
	node      *Node
	system    base.RangeDescriptor
	directory *directory
	transport *transport.TCP
	store     *store.Store
	placement *placement.Placement
	router    *router.Router
	gateway   *gateway.Server
	client    *grpc.Server
	peer      *grpc.Server
	health    *health.Server
	waits     *admission.Waits
	ranges    []base.RangeDescriptor // of the catalogue, as rebuild read it last
}

// receiver passes what the transport receives to the store, which is made after it.
type receiver struct{ r *running }

// Receive implements transport.Handler.
func (h receiver) Receive(from base.NodeID, msgs []wire.Message) { h.r.store.Receive(from, msgs) }

// serve makes the node a member: transport, store with its replicas, placement,
// routing, then the servers, so that nothing arrives before who handles it is there.
func (n *Node) serve(ctx context.Context) error {
	id := n.identity()
	r := &running{node: n, directory: newDirectory(id.Bootstrap.Nodes, id.Known)}
	for _, d := range id.Bootstrap.Ranges() {
		if d.Range == base.SystemRange {
			r.system = d
		}
	}
	var err error
	r.transport, err = transport.NewTCP(transport.Options{
		Self: id.Node, Cluster: id.Bootstrap.Cluster, Resolve: r.directory.peer, Handler: receiver{r},
		Logger:   n.opts.Logger,
		Queues:   n.memory.queues(),
		Listener: r.transportListener(),
	})
	if err != nil {
		return err
	}
	if err := r.openStore(id); err != nil {
		r.transport.Close()
		return err
	}
	r.placement = placement.New(placement.Options{Store: r.store, Logger: n.opts.Logger, Bootstrap: &id.Bootstrap})
	r.router = router.New(router.Options{Gates: n.gates(), Deliveries: n.memory.pushed, Store: r.store, Logger: n.opts.Logger, System: func() base.RangeDescriptor { return r.system }})
	r.makeServers(id)

	n.mu.Lock()
	w := n.waiting
	n.waiting, n.run = nil, r
	n.mu.Unlock()
	if w != nil {
		w.stop()
	}
	n.servePeers(r.peer, r.transport.Serve)
	r.store.Start()
	if err := r.found(id); err != nil {
		return err
	}
	n.admin.SetMember(r.store)
	n.goDo(ctx, r.placement.Run)
	n.goDo(ctx, r.heartbeats)
	if _, on := r.store.Rebuilding(); on {
		n.goDo(ctx, r.rebuild)
	}
	n.goDo(ctx, r.watchDisk)
	n.goDo(ctx, r.sweepClients)
	n.serveOn(r.client, n.ports.client, n.connections.client)
	n.opts.Logger.Info("serving", "node", id.Node, "cluster", id.Bootstrap.Cluster.String(), "address", n.opts.Advertise)
	return nil
}

// transportListener counts traffic, and tells the store when a peer's calls are lost and
// when its process is gone.
func (r *running) transportListener() transport.Listener {
	l := r.node.admin.TransportListener()
	count := l.Disconnected
	l.Disconnected = func(to base.NodeID, class transport.Class, err error) {
		count(to, class, err)
		if class == transport.ClassCalls {
			r.store.PeerLost(to)
		}
	}
	l.Unreachable = func(to base.NodeID, class transport.Class, refused bool) {
		if class == transport.ClassCalls {
			r.store.PeerUnreachable(to)
		}
		if refused {
			r.store.PeerGone(to)
		}
	}
	return l
}

// goDo runs f in a goroutine that Stop waits for.
func (n *Node) goDo(ctx context.Context, f func(context.Context)) {
	n.work.Add(1)
	go func() {
		defer n.work.Done()
		f(ctx)
	}()
}

// openStore brings the replicas back. Damage that shows now is repaired as if it had shown
// when the stores were opened.
func (r *running) openStore(id *identity) error {
	err := r.tryStore(id)
	if fault.KindOf(err) == fault.Corrupt {
		if err = r.node.repair(err); err == nil {
			err = r.tryStore(id)
		}
	}
	return err
}

func (r *running) tryStore(id *identity) (err error) {
	o := &r.node.opts
	r.store, err = store.Open(store.Options{
		Node: id.Node, Clock: r.node.clock, Tick: o.Tick, ElectionTicks: o.ElectionTicks,
		Log: r.node.log, Engine: r.node.states, Transport: r.transport,
		Oracle:      oracle.Options{MaxClockOffsetMS: o.MaxClockOffset.Milliseconds()},
		Logger:      o.Logger,
		Limits:      r.node.memory.limits(),
		Proposals:   r.node.memory.proposals,
		Snapshots:   r.node.memory.snapshots,
		Reads:       &admission.Intake{Bytes: r.node.memory.requests},
		SystemNodes: func() []base.NodeID { return systemNodes(&r.system) },
		Calls: func(from base.NodeID, c *wire.Call, done store.Done) bool {
			return r.placement.Handle(from, c, done)
		},
		Fatal: r.node.fail,
		LogDamaged: func(err error) {
			r.node.damaged("log", unreadable(r.node.dir.Log(), err))
		},
		Rebuild: r.node.dir.Rebuilding(),
	})
	return unreadable(r.node.dir.Path(), err)
}

// found creates the replicas that the cluster was formed with, once.
func (r *running) found(id *identity) error {
	if id.Founded || r.node.dir.Rebuilding() {
		return nil
	}
	for _, d := range id.Bootstrap.Ranges() {
		if _, ok := d.ReplicaOn(id.Node); !ok {
			continue
		}
		if err := r.store.CreateReplica(d); err != nil {
			return err
		}
	}
	next := id.clone()
	next.Founded = true
	return r.node.adopt(next)
}

// clientServerOptions bound what a client may cost.
func clientServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.MaxRecvMsgSize(32 << 20),   // a publish batch of 16 MiB, with room
		grpc.MaxConcurrentStreams(1024), // of one connection
		// Goroutines that stay, their stacks grown, for as many calls at once; more get their own.
		grpc.NumStreamWorkers(256),
		grpc.ConnectionTimeout(5 * time.Second),
		grpc.MaxHeaderListSize(64 << 10),
		admission.Codec(),
		// A client that is gone, or takes nothing from its socket, is noticed within 40 s;
		// a ping every 5 s is no abuse: etcd's clients are told to send some.
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
	}
}

// sweepClients closes, until ctx ends, the connections of clients that do not do their part.
func (r *running) sweepClients(ctx context.Context) {
	t := time.NewTicker(max(min(time.Second, r.waits.Patience/4), time.Millisecond))
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			r.waits.Sweep()
		}
	}
}

// admitting registers services whose calls come out of the intake.
func (r *running) admitting(in *admission.Intake, status func(context.Context, error) error) grpc.ServiceRegistrar {
	return &admission.Registrar{Server: r.client, Intake: in, Status: status, Unary: r.node.admin.Unary, Waits: r.waits}
}

// gates bound what this node's clients have in one range at once: enough to fill a group
// commit many times over, or a link of 100 ms at 2,500 requests a second; and little
// enough that nobody waits long behind them.
func (n *Node) gates() *admission.Gates {
	return &admission.Gates{Inside: 256, Waiting: 4096, Patience: 250 * time.Millisecond, Refused: n.admin.Refused("range")}
}

func (r *running) makeServers(id *identity) {
	n, l := r.node, &r.node.opts.Limits
	r.waits = &admission.Waits{Now: time.Now, Patience: n.opts.ClientPatience, Pressed: min(n.opts.ClientPatience, 5*time.Second)}
	refused := n.admin.Refused("memory")
	intake := &admission.Intake{Bytes: n.memory.requests, Streams: n.memory.streams, Refused: func() { r.waits.Press(); refused() }}
	r.client = grpc.NewServer(append(clientServerOptions(), n.admin.ServerOptions()...)...)
	r.gateway = gateway.New(gateway.Options{
		Intake: intake,
		Router: r.router, Cluster: id.Bootstrap.Cluster, Node: nodeInfo{r}, Init: n.Init,
		Limits: gateway.Limits{
			KeyBytes: l.KeyBytes, RequestBytes: l.BatchBytes, PayloadBytes: l.PayloadBytes,
			PublishEvents: l.BatchEvents, DueAhead: l.DueAhead,
		},
	})
	r.gateway.Register(r.admitting(intake, r.gateway.Status))
	etcd.New(r.router, etcdNode{r}, etcd.Options{
		Timeout: -1, MaxKey: l.KeyBytes, MaxRequest: l.EtcdBytes,
	}).Register(r.admitting(intake, etcd.StatusOf))
	r.health = health.NewServer()
	healthpb.RegisterHealthServer(r.client, r.health)
	reflection.Register(r.client)
	r.peer = grpc.NewServer(peerServerOptions()...)
	n.form.register(r.peer)
}

// heartbeats reports to placement until ctx ends, and does what it answers.
func (r *running) heartbeats(ctx context.Context) {
	t := time.NewTicker(heartbeatEvery / 6)
	defer t.Stop()
	for {
		told, at := r.led(), time.Now()
		if err := r.heartbeat(ctx); err != nil && ctx.Err() == nil {
			r.node.opts.Logger.Debug("no heartbeat was answered", "err", err)
		}
		// Who leads is worth telling at once.
		for time.Since(at) < heartbeatEvery && slices.Equal(told, r.led()) {
			select {
			case <-ctx.Done():
				return
			case <-t.C:
			}
		}
		if ctx.Err() != nil {
			return
		}
	}
}

const heartbeatEvery = 300 * time.Millisecond

// led lists the ranges that this node leads.
func (r *running) led() []base.RangeID {
	var list []base.RangeID
	for _, v := range r.store.Replicas() {
		if v.Serving {
			list = append(list, v.Descriptor.Range)
		}
	}
	return list
}

func (r *running) heartbeat(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	reply, err := r.router.Heartbeat(ctx, r.report())
	if err != nil {
		return err
	}
	for _, moved := range r.directory.learn(reply.Nodes) {
		r.transport.Kick(moved)
	}
	if err := r.remember(reply.Nodes); err != nil {
		return err
	}
	if _, on := r.store.Rebuilding(); on {
		reply.Create = nil // rebuild sees to them
	}
	for _, d := range reply.Create {
		if err := r.store.CreateReplica(d); err != nil && fault.KindOf(err) != fault.Invalid {
			r.node.opts.Logger.Warn("cannot create a replica", "range", d.Range, "err", err)
		}
	}
	for _, m := range reply.Remove {
		if err := r.store.RemoveReplica(m.Range, m.Replica); err != nil {
			r.node.opts.Logger.Warn("cannot remove a replica", "range", m.Range, "err", err)
		}
	}
	for _, m := range reply.Transfer {
		r.store.TransferOrderer(m.Range, m.To)
	}
	return nil
}

// stop ends what serve began: leadership is handed away while peers still hear us and
// clients are served; then the clients, so that none sees the rest go; then the replicas,
// whose last state is flushed; then the peers.
func (r *running) stop(ctx context.Context) {
	r.health.Shutdown()
	r.handOver(ctx)
	r.gateway.Stop()
	stopServer(ctx, r.client)
	if err := r.store.Close(); err != nil {
		r.node.opts.Logger.Warn("flushing the state store", "err", err)
	}
	r.transport.Close()
	r.peer.Stop()
}

// handOver waits until no other node has to wait for an election because of us.
func (r *running) handOver(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	for attempt := 0; r.store.HandOver(attempt) > 0; attempt++ {
		select {
		case <-ctx.Done():
			return
		case <-time.After(50 * time.Millisecond):
		}
	}
}
