package node

import (
	"context"
	"encoding/json"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/placement"
)

// Formation is how nodes come together before they have identities: one describes
// itself, one decides who the cluster is and offers it, a late one registers. It runs on
// the peer port, in calls of JSON; it is the only traffic between nodes that is not on
// the peer streams, because those need an identity at both ends.
type formation struct {
	node *Node
	mu   sync.Mutex // one decision at a time
}

type describeReply struct {
	Node    base.NodeDescriptor `json:"node"` // its id is 0 if it has none yet
	Cluster base.ClusterID      `json:"cluster"`
}

type offerRequest struct {
	Node      base.NodeID         `json:"node"`
	Bootstrap placement.Bootstrap `json:"bootstrap"`
}

type initReply struct {
	Cluster base.ClusterID `json:"cluster"`
}

type registerReply struct {
	Node      base.NodeID           `json:"node"`
	Bootstrap placement.Bootstrap   `json:"bootstrap"`
	Known     []base.NodeDescriptor `json:"known"`
}

// outcome carries an answer or a fault, so that a fault's kind and remedy survive.
type outcome struct {
	Fault *fault.Error    `json:"fault,omitempty"`
	Body  json.RawMessage `json:"body,omitempty"`
}

const formationService = "almanac.peer.v1.Formation"

// register adds the service to the peer server.
func (f *formation) register(s grpc.ServiceRegistrar) {
	s.RegisterService(&grpc.ServiceDesc{
		ServiceName: formationService,
		HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{
			method("Describe", f.describe), method("Init", f.init),
			method("Offer", f.offer), method("Register", f.registerNode),
		},
	}, f)
}

func method[Req, Rep any](name string, do func(context.Context, *Req) (*Rep, error)) grpc.MethodDesc {
	return grpc.MethodDesc{MethodName: name, Handler: func(_ any, ctx context.Context, dec func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
		in := &wrapperspb.BytesValue{}
		if err := dec(in); err != nil {
			return nil, err
		}
		var out outcome
		if rep, err := answer(ctx, in.Value, do); err != nil {
			f := *fault.As(err)
			f.Text, f.Cause = f.Error(), nil
			out.Fault = &f
		} else {
			out.Body = placement.Encode(rep)
		}
		return wrapperspb.Bytes(placement.Encode(out)), nil
	}}
}

func answer[Req, Rep any](ctx context.Context, body []byte, do func(context.Context, *Req) (*Rep, error)) (*Rep, error) {
	req, err := decodeRequest[Req](body)
	if err != nil {
		return nil, err
	}
	return do(ctx, req)
}

func decodeRequest[Req any](body []byte) (*Req, error) {
	req := new(Req)
	if err := json.Unmarshal(body, req); err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "the request does not parse")
	}
	return req, nil
}

// decodeOutcome returns the answer or the fault that a peer sent.
func decodeOutcome[Rep any](addr string, body []byte) (*Rep, error) {
	var o outcome
	rep := new(Rep)
	err := json.Unmarshal(body, &o)
	if err == nil && o.Fault != nil {
		return nil, o.Fault
	}
	if err == nil {
		err = json.Unmarshal(o.Body, rep)
	}
	if err != nil {
		return nil, fault.Wrap(fault.Corrupt, err, "the answer of peer %s does not parse", addr)
	}
	return rep, nil
}

// callPeer calls a method of a peer's formation service.
func callPeer[Rep any](ctx context.Context, addr, name string, req any) (*Rep, error) {
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "peer address %q", addr)
	}
	defer conn.Close()
	out := &wrapperspb.BytesValue{}
	if err := conn.Invoke(ctx, "/"+formationService+"/"+name, wrapperspb.Bytes(placement.Encode(req)), out); err != nil {
		return nil, fault.New(fault.Unavailable, "peer %s does not answer: %s", addr, status.Convert(err).Message()).
			WithRemedy("start the node there, and check --join and --advertise-peer")
	}
	return decodeOutcome[Rep](addr, out.Value)
}

func (f *formation) describe(context.Context, *struct{}) (*describeReply, error) {
	d := &describeReply{Node: f.node.descriptor()}
	if id := f.node.identity(); id != nil {
		d.Cluster = id.Bootstrap.Cluster
	}
	return d, nil
}

// founders returns the peer addresses that form the cluster, sorted: those of --join
// and this node's own. The first decides.
func (f *formation) founders() []string {
	list := append(slices.Clone(f.node.opts.Join), f.node.opts.AdvertisePeer)
	slices.Sort(list)
	return slices.Compact(list)
}

// init forms the cluster, or says that it is formed. It may be called on several nodes
// at once and again after a failure: the first node in the sorted list decides, once.
func (f *formation) init(ctx context.Context, _ *struct{}) (*initReply, error) {
	founders := f.founders()
	if id := f.node.identity(); id != nil {
		if founders[0] != f.node.opts.AdvertisePeer || id.Node != 1 || len(id.Bootstrap.Nodes) == 1 {
			return &initReply{Cluster: id.Bootstrap.Cluster}, nil
		}
		return f.offerAll(ctx, id) // decided before; make sure that a majority knows
	}
	if founders[0] != f.node.opts.AdvertisePeer {
		if _, err := describePeer(ctx, founders[0]); err != nil {
			return nil, err
		}
		return callPeer[initReply](ctx, founders[0], "Init", struct{}{})
	}
	id, err := f.decide(ctx, founders)
	if err != nil {
		return nil, err
	}
	return f.offerAll(ctx, id)
}

// decide makes this node's identity and the cluster's, and keeps them before anyone is
// offered them.
func (f *formation) decide(ctx context.Context, founders []string) (*identity, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if id := f.node.identity(); id != nil {
		return id, nil
	}
	nodes := make([]base.NodeDescriptor, len(founders))
	answered := 0
	for i, addr := range founders {
		nodes[i] = base.NodeDescriptor{Peer: addr}
		if addr == f.node.opts.AdvertisePeer {
			nodes[i] = f.node.descriptor()
			answered++
			continue
		}
		rep, err := describePeer(ctx, addr)
		if fault.KindOf(err) == fault.Invalid {
			return nil, err
		}
		if err != nil {
			continue
		}
		if !rep.Cluster.IsZero() {
			return nil, fault.New(fault.AlreadyExists, "peer %s belongs to cluster %s already; this node will register there",
				addr, rep.Cluster).WithRemedy("wait a moment and see `almanac cluster status`")
		}
		nodes[i] = rep.Node
		answered++
	}
	if answered <= len(founders)/2 {
		return nil, noMajority(answered, len(founders))
	}
	b, err := newBootstrap(nodes)
	if err != nil {
		return nil, err
	}
	id := &identity{Node: 1, Bootstrap: b}
	return id, f.node.adopt(id)
}

func noMajority(answered, of int) *fault.Error {
	return fault.New(fault.Unavailable, "only %d of the %d nodes named in --join answer", answered, of).
		WithRemedy("start the others, then run `almanac init` again")
}

// describePeer asks a founder who it is. One that goes by another address is refused:
// under two addresses, one node would count as two.
func describePeer(ctx context.Context, addr string) (*describeReply, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	rep, err := callPeer[describeReply](ctx, addr, "Describe", struct{}{})
	if err == nil && rep.Node.Peer != addr {
		return nil, fault.New(fault.Invalid, "--join names %s, but the node there advertises %s", addr, rep.Node.Peer).
			WithRemedy("write the same address in --join on every node and in that node's --advertise-peer")
	}
	return rep, err
}

// offerAll offers the cluster to the founders; a majority must have accepted.
func (f *formation) offerAll(ctx context.Context, id *identity) (*initReply, error) {
	nodes := id.Bootstrap.Nodes
	errs := make([]error, len(nodes))
	var wg sync.WaitGroup
	for i, n := range nodes {
		if n.Node == id.Node {
			continue
		}
		wg.Add(1)
		go func() {
			defer wg.Done()
			ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
			defer cancel()
			_, errs[i] = callPeer[struct{}](ctx, n.Peer, "Offer", offerRequest{Node: n.Node, Bootstrap: id.Bootstrap})
		}()
	}
	wg.Wait()
	accepted := 0
	for i, err := range errs {
		if err == nil {
			accepted++
		} else if fault.KindOf(err) == fault.WrongCluster {
			return nil, err
		} else {
			f.node.opts.Logger.Warn("a founding node has not joined yet", "peer", nodes[i].Peer, "err", err)
		}
	}
	if accepted <= len(nodes)/2 {
		return nil, noMajority(accepted, len(nodes))
	}
	return &initReply{Cluster: id.Bootstrap.Cluster}, nil
}

// offer accepts the first cluster offered, durably, and refuses others (R7).
func (f *formation) offer(_ context.Context, req *offerRequest) (*struct{}, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := checkIdentity(req.Node, &req.Bootstrap); err != nil {
		return nil, err
	}
	if id := f.node.identity(); id != nil {
		if id.Bootstrap.Cluster != req.Bootstrap.Cluster {
			return nil, wrongCluster(f.node.opts.AdvertisePeer, id.Bootstrap.Cluster)
		}
		return &struct{}{}, nil
	}
	own := req.Bootstrap.Nodes[req.Node-1].Peer // founders have their places by id
	if own != f.node.opts.AdvertisePeer {
		return nil, fault.New(fault.Invalid, "node %s was offered the place of %s in a cluster", f.node.opts.AdvertisePeer, own).
			WithRemedy("write the same addresses in --join on every node")
	}
	return &struct{}{}, f.node.adopt(&identity{Node: req.Node, Bootstrap: req.Bootstrap})
}

func wrongCluster(peer string, cluster base.ClusterID) *fault.Error {
	return fault.New(fault.WrongCluster, "node %s belongs to cluster %s", peer, cluster).
		WithRemedy("give it an empty --data-dir, or take it out of --join")
}

// checkIdentity refuses a founder's place that no sound node offers.
func checkIdentity(n base.NodeID, b *placement.Bootstrap) error {
	if err := b.Check(); err != nil {
		return err
	}
	if n == 0 || uint64(n) > uint64(len(b.Nodes)) {
		return fault.New(fault.Invalid, "a cluster of %d nodes was offered, with the place of node %d", len(b.Nodes), n).
			WithRemedy("run the same release on all nodes")
	}
	return nil
}

// registerNode gives a node its id: a founding one from what the cluster was formed
// with, any other from placement.
func (f *formation) registerNode(ctx context.Context, n *base.NodeDescriptor) (*registerReply, error) {
	id := f.node.identity()
	if id == nil {
		return nil, fault.New(fault.Uninitialized, "node %s belongs to no cluster yet", f.node.opts.AdvertisePeer)
	}
	for flag, addr := range map[string]string{"advertise": n.Address, "advertise-peer": n.Peer} {
		if err := checkAddress(flag, addr, true); err != nil {
			return nil, err
		}
	}
	reply := &registerReply{Bootstrap: id.Bootstrap, Known: id.Known}
	for _, founder := range id.Bootstrap.Nodes {
		if founder.Peer == n.Peer {
			reply.Node = founder.Node
			return reply, nil
		}
	}
	r := f.node.running()
	if r == nil {
		return nil, fault.New(fault.Unavailable, "node %s is still starting", f.node.opts.AdvertisePeer)
	}
	got, err := r.router.Admin(ctx, &placement.Request{Register: n})
	if err != nil {
		return nil, err
	}
	reply.Node, reply.Known = got.Node, got.Nodes
	return reply, nil
}

// join waits until the node has an identity: offered by the node that decides, or, if
// a peer is initialised, by registering there.
func (f *formation) join(ctx context.Context) {
	t := time.NewTicker(300 * time.Millisecond)
	defer t.Stop()
	for f.node.identity() == nil {
		for _, addr := range f.founders() {
			if addr == f.node.opts.AdvertisePeer {
				continue
			}
			if rep, err := describePeer(ctx, addr); err == nil && !rep.Cluster.IsZero() {
				if err := f.registerAt(ctx, addr); err != nil {
					f.node.opts.Logger.Warn("cannot register yet", "peer", addr, "err", err)
				}
				break
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-f.node.adopted:
			return
		case <-t.C:
		}
	}
}

func (f *formation) registerAt(ctx context.Context, addr string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	rep, err := callPeer[registerReply](ctx, addr, "Register", f.node.descriptor())
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.node.identity() != nil {
		return nil
	}
	if err := rep.Bootstrap.Check(); err != nil || rep.Node == 0 {
		return fault.New(fault.Corrupt, "peer %s gave node %d of a cluster that does not add up", addr, rep.Node)
	}
	return f.node.adopt(&identity{Node: rep.Node, Bootstrap: rep.Bootstrap, Known: rep.Known})
}

// warnOfStrangers says if a node that --join names belongs to another cluster: with data
// a node resumes whatever --join says, and that is then not what was meant.
func (f *formation) warnOfStrangers(ctx context.Context) {
	ours := f.node.identity().Bootstrap.Cluster
	for _, addr := range f.node.opts.Join {
		if addr == f.node.opts.AdvertisePeer {
			continue
		}
		if rep, err := describePeer(ctx, addr); err == nil && !rep.Cluster.IsZero() && rep.Cluster != ours {
			f.node.opts.Logger.Error("a node in --join belongs to another cluster, and this one stays where its data is from",
				"peer", addr, "its_cluster", rep.Cluster, "this_cluster", ours,
				"remedy", "to move this node give it an empty --data-dir; else take that peer out of --join")
		}
	}
}
