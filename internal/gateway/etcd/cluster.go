package etcd

import (
	"context"
	"strconv"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/almanacdb/almanac/internal/base"
)

// clusterServer is etcd's Cluster service: nodes are its members.
type clusterServer struct {
	*Server
	pb.UnsafeClusterServer
}

// MemberList implements pb.ClusterServer.
func (s *clusterServer) MemberList(ctx context.Context, r *pb.MemberListRequest) (*pb.MemberListResponse, error) {
	bounded, cancel := s.within(ctx)
	defer cancel()
	nodes, err := s.node.Members(bounded, r.Linearizable)
	if err != nil {
		return nil, toStatus(ctx, err)
	}
	resp := &pb.MemberListResponse{Header: s.header(0), Members: make([]*pb.Member, len(nodes))}
	for i := range nodes {
		resp.Members[i] = member(&nodes[i])
	}
	return resp, nil
}

func member(n *base.NodeDescriptor) *pb.Member {
	m := &pb.Member{ID: uint64(n.Node), Name: "node-" + strconv.FormatUint(uint64(n.Node), 10)}
	if n.Peer != "" {
		m.PeerURLs = []string{"http://" + n.Peer}
	}
	if n.Address != "" {
		m.ClientURLs = []string{"http://" + n.Address}
	}
	return m
}

// maintenanceServer is etcd's Maintenance service.
type maintenanceServer struct {
	*Server
	pb.UnsafeMaintenanceServer
}

// Status implements pb.MaintenanceServer. Version is that of the API; Almanac's own
// stands as the storage version.
func (s *maintenanceServer) Status(ctx context.Context, _ *pb.StatusRequest) (*pb.StatusResponse, error) {
	st, err := s.status(ctx)
	if err != nil {
		return nil, err
	}
	resp := &pb.StatusResponse{
		Header:           s.header(st.Revision),
		Version:          APIVersion,
		StorageVersion:   st.Version,
		DbSize:           st.Bytes,
		DbSizeInUse:      st.Live,
		DbSizeQuota:      st.Quota,
		Leader:           uint64(st.Leader),
		RaftIndex:        st.Commit.Index,
		RaftTerm:         st.Commit.Term,
		RaftAppliedIndex: st.Applied,
		DowngradeInfo:    &pb.DowngradeInfo{},
	}
	if st.Leader == 0 {
		resp.Errors = append(resp.Errors, rpctypes.ErrorDesc(rpctypes.ErrGRPCNoLeader))
	}
	for _, a := range s.alarms(&st) {
		resp.Errors = append(resp.Errors, a.String())
	}
	return resp, nil
}

// Alarm implements pb.MaintenanceServer: alarms are read off this node's state, so they
// can be listed, but neither raised nor disarmed.
func (s *maintenanceServer) Alarm(ctx context.Context, r *pb.AlarmRequest) (*pb.AlarmResponse, error) {
	if r.Action != pb.AlarmRequest_GET {
		return nil, unbuilt("Alarm with an action other than GET", "raises and disarms alarms",
			"an alarm ends by itself when its cause does")
	}
	st, err := s.status(ctx)
	if err != nil {
		return nil, err
	}
	return &pb.AlarmResponse{Header: s.header(st.Revision), Alarms: s.alarms(&st)}, nil
}

func (s *maintenanceServer) status(ctx context.Context) (Status, error) {
	bounded, cancel := s.within(ctx)
	defer cancel()
	st, err := s.node.Status(bounded)
	if err != nil {
		return Status{}, toStatus(ctx, err)
	}
	return st, nil
}

func (s *maintenanceServer) alarms(st *Status) []*pb.AlarmMember {
	if !st.DiskFull {
		return nil
	}
	return []*pb.AlarmMember{{MemberID: uint64(s.node.NodeID()), Alarm: pb.AlarmType_NOSPACE}}
}
