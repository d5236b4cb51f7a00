package almanac

import (
	"context"

	"google.golang.org/grpc"

	almanacv1 "github.com/almanacdb/almanac/api/almanac/v1"
	"github.com/almanacdb/almanac/internal/fault"
)

// Uninitialized answers the API on a node that belongs to no cluster yet: it can be made
// one, and its state be asked; all else is refused with the command that helps. Safe for
// concurrent use.
type Uninitialized struct {
	// Node describes this node; nil: nothing is known of it. Set before Register.
	Node Node

	init    InitFunc
	address string
}

// NewUninitialized returns a server whose Init is initFn; address is where clients reach
// this node, for the remedy.
func NewUninitialized(initFn InitFunc, address string) *Uninitialized {
	return &Uninitialized{init: initFn, address: address}
}

// Register adds every service of the API to r.
func (u *Uninitialized) Register(r grpc.ServiceRegistrar) {
	for _, d := range []grpc.ServiceDesc{almanacv1.KV_ServiceDesc, almanacv1.Events_ServiceDesc} {
		refused := grpc.ServiceDesc{ServiceName: d.ServiceName, HandlerType: (*any)(nil), Metadata: d.Metadata}
		for _, m := range d.Methods {
			refused.Methods = append(refused.Methods, grpc.MethodDesc{MethodName: m.MethodName, Handler: u.refuse})
		}
		for _, st := range d.Streams {
			refused.Streams = append(refused.Streams, grpc.StreamDesc{
				StreamName: st.StreamName, ServerStreams: true, ClientStreams: true,
				Handler: func(any, grpc.ServerStream) error { return u.refusal() },
			})
		}
		r.RegisterService(&refused, u)
	}
	almanacv1.RegisterClusterServer(r, &lonelyCluster{u: u})
}

func (u *Uninitialized) refuse(any, context.Context, func(any) error, grpc.UnaryServerInterceptor) (any, error) {
	return nil, u.refusal()
}

func (u *Uninitialized) fault() *fault.Error {
	return fault.New(fault.Uninitialized, "this node belongs to no cluster yet").
		WithRemedy("form one: almanac init --endpoints %s", u.address)
}

// Refuse answers calls of services that are not registered, for grpc.UnknownServiceHandler.
// Those are other APIs, the etcd one foremost, whose clients show nothing but the
// message, so the remedy is in it.
func (u *Uninitialized) Refuse(any, grpc.ServerStream) error {
	f := u.fault()
	f.Text += "; " + f.Remedy
	return addresses(nil).status(f)
}

func (u *Uninitialized) refusal() error { return addresses(nil).status(u.fault()) }

// lonelyCluster is the Cluster service of a node without a cluster.
type lonelyCluster struct {
	u *Uninitialized
	almanacv1.UnsafeClusterServer
}

// Init implements almanacv1.ClusterServer.
func (c *lonelyCluster) Init(ctx context.Context, _ *almanacv1.InitRequest) (*almanacv1.InitResponse, error) {
	return initCluster(ctx, c.u.init, addresses(nil))
}

// Status implements almanacv1.ClusterServer.
func (c *lonelyCluster) Status(context.Context, *almanacv1.StatusRequest) (*almanacv1.StatusResponse, error) {
	f := c.u.fault()
	return &almanacv1.StatusResponse{
		Node: nodeStatus(c.u.Node), Problems: []string{f.Text + "; " + f.Remedy},
	}, nil
}

// Nodes implements almanacv1.ClusterServer.
func (c *lonelyCluster) Nodes(context.Context, *almanacv1.NodesRequest) (*almanacv1.NodesResponse, error) {
	return nil, c.u.refusal()
}

// Ranges implements almanacv1.ClusterServer.
func (c *lonelyCluster) Ranges(context.Context, *almanacv1.RangesRequest) (*almanacv1.RangesResponse, error) {
	return nil, c.u.refusal()
}

func initCluster(ctx context.Context, init InitFunc, a addresses) (*almanacv1.InitResponse, error) {
	cluster, node, err := init(ctx)
	if err != nil {
		return nil, a.status(err)
	}
	return &almanacv1.InitResponse{ClusterId: cluster.String(), NodeId: uint64(node)}, nil
}
