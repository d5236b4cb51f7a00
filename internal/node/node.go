// Package node wires a process: data directory, stores, transport, replicas, routing
// and the faces that clients speak to, in the order in which each needs the others, and
// stops them in the reverse order. It owns the node's identity and how nodes form a
// cluster.
package node

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc"

	"github.com/almanacdb/almanac/internal/admin"
	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/clock"
	"github.com/almanacdb/almanac/internal/datadir"
	"github.com/almanacdb/almanac/internal/engine"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/logstore"
)

// Options say how a node runs.
type Options struct {
	DataDir       string
	Listen        string   // client address
	Peer          string   // peer address
	HTTP          string   // address of health checks and metrics
	Advertise     string   // client address that others use; default: Listen
	AdvertisePeer string   // peer address that others use; default: Peer
	Join          []string // peer addresses of the nodes to form a cluster with
	Memory        int64    // bytes the process should stay within
	Insecure      bool     // listen on non-loopback addresses without encryption
	Version       string
	Logger        *slog.Logger

	Limits Limits

	MaxClockOffset time.Duration // default 500 ms
	Tick           time.Duration // default 100 ms
	ElectionTicks  int           // default 10
	// ClientPatience is how long a client may take nothing of what it is sent, or leave a
	// call without its message; default 30 s.
	ClientPatience time.Duration

	// Storage, if set, adjusts how a store ("log" or "state") is opened; for tests that
	// make disks fail.
	Storage func(store string, o *engine.Options)
}

// Limits on the memory budget: below the one a node can't work, above the other no
// machine is, and shares of the budget could overflow.
const (
	minMemory = 128 << 20
	maxMemory = 1 << 50
)

// Limits bound what one request may ask for; zero fields take the documented defaults.
type Limits struct {
	KeyBytes     int           // a key: 4 KiB
	EtcdBytes    int           // an etcd request that writes: 1.5 MiB
	PayloadBytes int           // an event's payload: 4 MiB
	BatchBytes   int           // a request, or a publish batch: 16 MiB
	BatchEvents  int           // a publish batch: 10,000
	Connections  int           // clients' connections: 10,000
	DueAhead     time.Duration // how far ahead an event may be due: 100 years
}

// maxBatchBytes is the most that a limit in bytes may be: a peer message has to hold it.
const maxBatchBytes = 24 << 20

func (l *Limits) validate() error {
	for _, v := range []int{l.KeyBytes, l.EtcdBytes, l.PayloadBytes, l.BatchBytes, l.BatchEvents, l.Connections, int(l.DueAhead)} {
		if v < 0 {
			return fault.New(fault.Invalid, "a limit is negative").WithRemedy("give limits above 0, or leave them out")
		}
	}
	if largest := max(l.KeyBytes, l.EtcdBytes, l.PayloadBytes, l.BatchBytes); largest > maxBatchBytes {
		return fault.New(fault.Invalid, "a limit of %d bytes is more than a message between nodes holds", largest).
			WithRemedy("give limits of at most %d bytes", maxBatchBytes)
	}
	return nil
}

// Validate says what is wrong with the options; it opens nothing.
func (o *Options) Validate() error {
	if err := o.Limits.validate(); err != nil {
		return err
	}
	if o.DataDir == "" {
		return fault.New(fault.Invalid, "no data directory was given").WithRemedy("pass --data-dir")
	}
	if o.Memory < minMemory || o.Memory > maxMemory {
		return fault.New(fault.Invalid, "--memory of %d bytes is out of bounds", o.Memory).
			WithRemedy("give the node at least %dMiB, and no more than the machine has", minMemory>>20)
	}
	if o.MaxClockOffset < 0 {
		return fault.New(fault.Invalid, "--max-clock-offset %s is negative", o.MaxClockOffset).WithRemedy("use 0 for the default of 500ms")
	}
	for _, a := range [...]struct{ flag, addr string }{
		{"listen", o.Listen}, {"peer", o.Peer}, {"http", o.HTTP}, {"advertise", o.Advertise}, {"advertise-peer", o.AdvertisePeer},
	} {
		told := a.flag == "advertise" || a.flag == "advertise-peer"
		if told && a.addr == "" {
			continue
		}
		if err := checkAddress(a.flag, a.addr, told); err != nil {
			return err
		}
	}
	for _, addr := range o.Join {
		if err := checkAddress("join", addr, true); err != nil {
			return err
		}
	}
	return nil
}

// Node is a running process. Safe for concurrent use.
type Node struct {
	opts    Options
	memory  *memory
	clock   clock.Clock
	started time.Time

	dir    *datadir.Dir
	cache  *engine.Cache
	logs   engine.Engine
	states engine.Engine
	log    *logstore.Store
	ports  ports

	connections struct{ client, peer, http *connections }

	form  *formation
	admin *admin.Server

	adopted chan struct{} // closed once the node has an identity
	fatal   chan error    // capacity 1: why the node can't go on
	stop    context.CancelFunc
	work    sync.WaitGroup
	forming sync.WaitGroup // the goroutine that makes a waiting node a member

	mu      sync.Mutex
	id      *identity
	run     *running
	waiting *waiting
	failed  error
	opening bool  // the stores are being opened
	found   error // damage that showed meanwhile
}

// ports are the node's listeners, kept from start to end.
type ports struct {
	client, peer, http keptListener
}

// gcPercent is how much a node allocates between two collections, in percent of what is
// live: far more than by default, because little is live, so that collecting would take
// a fifth of a put's CPU. The memory limit holds the budget whatever this says, but a
// small one leaves no room to be so late.
func gcPercent(memory int64) int {
	if memory < 512<<20 {
		return 100
	}
	return 400
}

// Start brings a node up. It returns once the node answers clients: as a member of its
// cluster, or, with --join and an empty directory, to be formed into one.
func Start(o Options) (*Node, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.ClientPatience <= 0 {
		o.ClientPatience = 30 * time.Second
	}
	m := shareOut(o.Memory)
	debug.SetMemoryLimit(m.limit())
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent(o.Memory))
	}
	n := &Node{opts: o, memory: m, clock: clock.NewSystem(), started: time.Now(), adopted: make(chan struct{}), fatal: make(chan error, 1)}
	n.form = &formation{node: n}
	n.bound()
	if err := n.open(); err != nil {
		n.closeStores()
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	n.stop = cancel
	if err := n.begin(ctx); err != nil {
		n.Stop(ctx)
		return nil, err
	}
	return n, nil
}

// open takes the ports first, so that a second node on the same ones fails before it
// touches a disk, then the data directory, then its stores.
func (n *Node) open() (err error) {
	o := &n.opts
	if n.ports.client, err = listen("listen", o.Listen, o.Insecure); err != nil {
		return err
	}
	if n.ports.peer, err = listen("peer", o.Peer, o.Insecure); err != nil {
		return err
	}
	if n.ports.http, err = listen("http", o.HTTP, o.Insecure); err != nil {
		return err
	}
	joins := len(o.Join) > 0
	if o.Advertise, err = reachable("advertise", o.Advertise, n.ports.client.Addr(), joins); err != nil {
		return err
	}
	if o.AdvertisePeer, err = reachable("advertise-peer", o.AdvertisePeer, n.ports.peer.Addr(), joins); err != nil {
		return err
	}
	if n.dir, err = datadir.Open(o.DataDir); err != nil {
		return err
	}
	n.admin = admin.New(admin.Options{
		Version: o.Version, Logger: o.Logger, Address: o.Advertise, Memory: o.Memory, Parts: n.parts, Failed: n.failure, Disk: n.disk,
	})
	if err := n.openStores(); err != nil {
		return err
	}
	if n.id != nil {
		close(n.adopted)
	}
	return nil
}

// unreadable says which store an error came from when it was read at start, and what to
// do; nil stays nil.
func unreadable(dir string, err error) error {
	if err == nil {
		return nil
	}
	f := fault.As(err)
	remedy := f.Remedy
	if remedy == "" {
		remedy = "check the disk, and restore the store from a copy"
	}
	return fault.Wrap(f.Kind, err, "cannot read the store in %s", dir).WithRemedy("%s", remedy)
}

// openEngines opens both stores on one block cache.
func (n *Node) openEngines() (err error) {
	n.cache = engine.NewCache(n.memory.cache)
	if n.logs, err = n.openEngine("log", n.dir.Log(), n.memory.memtables[0], engine.Options{WAL: true, ShortLived: true}); err != nil {
		return err
	}
	n.states, err = n.openEngine("state", n.dir.State(), n.memory.memtables[1], engine.Options{})
	return err
}

func (n *Node) openEngine(store, dir string, m memtables, o engine.Options) (engine.Engine, error) {
	o.Cache, o.MemtableBytes, o.Memtables = n.cache, m.bytes, m.count
	o.Logger, o.Fatal, o.Listener = n.opts.Logger, n.fail, n.listener(store)
	if n.opts.Storage != nil {
		n.opts.Storage(store, &o)
	}
	return engine.OpenPebble(dir, o)
}

// listener counts what befalls a store's engine, and logs what a person should know.
func (n *Node) listener(store string) engine.Listener {
	log, l := n.opts.Logger, n.admin.EngineListener(store)
	count := l
	l.DiskSlow = func(path, op string, took time.Duration) {
		count.DiskSlow(path, op, took)
		log.Warn("the disk is slow", "store", store, "path", path, "op", op, "took", took)
	}
	l.DiskFull = func() {
		count.DiskFull()
		log.Error("the disk is full", "store", store)
	}
	told := &rate.Sometimes{Interval: time.Second} // what fails is tried again at once
	l.BackgroundError = func(err error) {
		count.BackgroundError(err)
		told.Do(func() { log.Error("a flush or compaction failed; it is tried again", "store", store, "err", err) })
	}
	l.Corruption = func(err error) {
		count.Corruption(err)
		n.damaged(store, err)
	}
	return l
}

// fail stops the node: its storage can't be trusted (S6).
func (n *Node) fail(err error) {
	n.mu.Lock()
	first := n.failed == nil
	if first {
		n.failed = err
	}
	n.mu.Unlock()
	if first {
		n.opts.Logger.Error("the node must stop", "err", err)
		n.fatal <- err
	}
}

// failure returns the error that the node can't go on with; nil while it can.
func (n *Node) failure() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.failed
}

// serveHTTP serves health checks and metrics from the first moment to the last.
func (n *Node) serveHTTP() {
	n.work.Add(1)
	go func() {
		defer n.work.Done()
		_ = n.admin.HTTPServer().Serve(n.connections.http.listener(n.ports.http.reuse())) // ends when the server is closed
	}()
}

// begin serves: as a member if the node has an identity, or forms one by itself, else
// waiting to be formed.
func (n *Node) begin(ctx context.Context) error {
	n.serveHTTP()
	n.goDo(ctx, returnMemory)
	if n.identity() == nil && len(n.opts.Join) == 0 {
		b, err := newBootstrap([]base.NodeDescriptor{n.descriptor()})
		if err != nil {
			return err
		}
		if err := n.adopt(&identity{Node: 1, Bootstrap: b}); err != nil {
			return err
		}
	}
	if n.identity() != nil {
		if len(n.opts.Join) > 0 {
			n.goDo(ctx, n.form.warnOfStrangers)
		}
		return n.serve(ctx)
	}
	n.serveWaiting()
	n.forming.Go(func() { n.awaitIdentity(ctx) })
	return nil
}

// awaitIdentity is the goroutine that turns a waiting node into a member.
func (n *Node) awaitIdentity(ctx context.Context) {
	n.opts.Logger.Info("waiting to be formed into a cluster", "command", "almanac init --endpoints "+n.opts.Advertise)
	n.form.join(ctx)
	if ctx.Err() != nil {
		return
	}
	if err := n.serve(ctx); err != nil {
		n.fail(err)
	}
}

// identity returns what the node knows of itself; nil if it belongs to no cluster.
func (n *Node) identity() *identity {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.id
}

// adopt makes an identity durable, and the node's own.
func (n *Node) adopt(id *identity) error {
	if err := id.save(n.log, n.dir); err != nil {
		return err
	}
	n.mu.Lock()
	first := n.id == nil
	n.id = id
	n.mu.Unlock()
	if first {
		close(n.adopted)
	}
	return nil
}

// running returns what serves a member; nil before.
func (n *Node) running() *running {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.run
}

// descriptor says how this node is reached.
func (n *Node) descriptor() base.NodeDescriptor {
	d := base.NodeDescriptor{
		Address: n.opts.Advertise, Peer: n.opts.AdvertisePeer, HTTP: n.ports.http.Addr().String(), Version: n.opts.Version,
	}
	if id := n.identity(); id != nil {
		d.Node = id.Node
	}
	return d
}

// Address returns the client address that the node advertises.
func (n *Node) Address() string { return n.opts.Advertise }

// Failed delivers the error that the node can't go on with.
func (n *Node) Failed() <-chan error { return n.fatal }

// Stop stops the node: no new requests, leadership handed away, what was applied made
// durable. ctx bounds how long the gentle part may take.
func (n *Node) Stop(ctx context.Context) {
	n.stop()
	n.forming.Wait() // what it began to serve is stopped below
	n.mu.Lock()
	w, r := n.waiting, n.run
	n.mu.Unlock()
	if w != nil {
		w.stop()
	}
	if n.admin != nil {
		n.admin.Stopping()
	}
	if r != nil {
		r.stop(ctx)
	}
	if n.admin != nil {
		_ = n.admin.HTTPServer().Close()
	}
	n.work.Wait()
	n.closeStores()
}

// closeEngines closes the stores.
func (n *Node) closeEngines() error {
	var errs []error
	for _, e := range []*engine.Engine{&n.states, &n.logs} {
		if *e != nil {
			errs = append(errs, (*e).Close())
			*e = nil
		}
	}
	if n.cache != nil {
		n.cache.Unref()
		n.cache = nil
	}
	return errors.Join(errs...)
}

// closeStores closes what open opened, in reverse.
func (n *Node) closeStores() {
	errs := []error{n.closeEngines()}
	if n.dir != nil {
		errs = append(errs, n.dir.Close())
	}
	for _, l := range []keptListener{n.ports.http, n.ports.peer, n.ports.client} {
		if l.TCPListener != nil {
			errs = append(errs, l.TCPListener.Close())
		}
	}
	if err := errors.Join(errs...); err != nil {
		n.opts.Logger.Warn("closing", "err", err)
	}
}

// stopServer lets a server finish what it does until ctx ends, then cuts it off.
func stopServer(ctx context.Context, s *grpc.Server) {
	done := make(chan struct{})
	go func() {
		s.GracefulStop()
		close(done)
	}()
	select {
	case <-done:
	case <-ctx.Done():
		s.Stop()
		<-done
	}
}

// systemNodes returns the nodes of the system range's replicas.
func systemNodes(d *base.RangeDescriptor) []base.NodeID {
	nodes := make([]base.NodeID, 0, len(d.Replicas))
	for _, r := range d.Replicas {
		nodes = append(nodes, r.Node)
	}
	slices.Sort(nodes)
	return nodes
}
