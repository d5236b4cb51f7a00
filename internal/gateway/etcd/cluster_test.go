package etcd

import (
	"context"
	"reflect"
	"strings"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/almanacdb/almanac/internal/fault"
)

func TestMemberList(t *testing.T) {
	r := newRig(t)
	resp, err := r.cli.MemberList(r.ctx())
	if err != nil || len(resp.Members) != 3 || !r.node.linearizable {
		t.Fatalf("%v %v", resp, err)
	}
	m := resp.Members[1]
	if m.ID != 3 || m.Name != "node-3" || m.ClientURLs[0] != "http://10.0.0.3:7001" || m.PeerURLs[0] != "http://10.0.0.3:7002" {
		t.Errorf("%v", m)
	}
	if m := resp.Members[2]; len(m.ClientURLs)+len(m.PeerURLs) != 0 {
		t.Errorf("%v", m)
	}
	if _, err := r.cli.MemberList(r.ctx(), clientv3.WithSerializable()); err != nil || r.node.linearizable {
		t.Errorf("serializable: %v", err)
	}
}

func TestStatus(t *testing.T) {
	r := newRig(t)
	resp, err := r.cli.Status(r.ctx(), "passthrough:///almanac")
	if err != nil {
		t.Fatal(err)
	}
	if resp.Version != APIVersion || resp.StorageVersion != "0.1.0" || resp.Leader != 3 || resp.Header.MemberId != 3 ||
		resp.RaftIndex != 99 || resp.RaftTerm != 12 || resp.RaftAppliedIndex != 98 || resp.Header.Revision != 77 ||
		resp.DbSize != 4096 || resp.DbSizeInUse != 1024 || resp.DbSizeQuota != 1<<30 || len(resp.Errors) != 0 {
		t.Errorf("%v", resp)
	}
	r.node.status.Leader, r.node.status.DiskFull = 0, true
	if resp, err = r.cli.Status(r.ctx(), "passthrough:///almanac"); err != nil || len(resp.Errors) != 2 ||
		resp.Errors[0] != "etcdserver: no leader" || !strings.Contains(resp.Errors[1], "NOSPACE") {
		t.Errorf("%v %v", resp, err)
	}
	r.node.err = fault.New(fault.Stopped, "the node is shutting down")
	if _, err = pb.NewMaintenanceClient(r.conn).Status(r.ctx(), &pb.StatusRequest{}); status.Code(err) != codes.Unavailable {
		t.Error(err)
	}
}

// What `etcdctl endpoint health` does.
func TestHealth(t *testing.T) {
	r := newRig(t)
	if resp := r.get("health"); resp.Count != 0 || r.keys.local {
		t.Errorf("%v", resp)
	}
	resp, err := r.cli.AlarmList(r.ctx())
	if err != nil || len(resp.Alarms) != 0 {
		t.Errorf("%v %v", resp, err)
	}
	r.node.status.DiskFull = true
	if resp, err = r.cli.AlarmList(r.ctx()); err != nil || len(resp.Alarms) != 1 || resp.Alarms[0].Alarm != pb.AlarmType_NOSPACE {
		t.Errorf("%v %v", resp, err)
	}
}

// built are the methods that work; every other one must say what it is.
var built = map[string]bool{
	"/etcdserverpb.KV/Range": true, "/etcdserverpb.KV/Put": true, "/etcdserverpb.KV/DeleteRange": true,
	"/etcdserverpb.KV/Txn": true, "/etcdserverpb.KV/Compact": true,
	"/etcdserverpb.Cluster/MemberList": true, "/etcdserverpb.Maintenance/Status": true,
}

func TestUnbuiltMethodsSaySo(t *testing.T) {
	r := newRig(t)
	unbuilt := 0
	for _, desc := range []grpc.ServiceDesc{pb.KV_ServiceDesc, pb.Watch_ServiceDesc, pb.Lease_ServiceDesc,
		pb.Cluster_ServiceDesc, pb.Maintenance_ServiceDesc, pb.Auth_ServiceDesc} {
		var names []string
		for _, m := range desc.Methods {
			names = append(names, m.MethodName)
		}
		for _, m := range desc.Streams {
			names = append(names, m.StreamName)
		}
		for _, name := range names {
			full := "/" + desc.ServiceName + "/" + name
			if built[full] {
				continue
			}
			unbuilt++
			err := call(r.ctx(), r.conn, full)
			text := status.Convert(err).Message()
			if status.Code(err) != codes.Unimplemented || !strings.HasPrefix(text, name) ||
				!strings.Contains(text, "is not built yet") || !strings.Contains(text, "(") {
				t.Errorf("%s: %v", full, err)
			}
		}
	}
	if unbuilt < 30 {
		t.Errorf("only %d methods tried", unbuilt)
	}
	if _, err := r.cli.Grant(r.ctx(), 10); status.Code(err) != codes.Unimplemented && !strings.Contains(err.Error(), "LeaseGrant") {
		t.Error(err)
	}
}

// call sends one message to a method, unary or not, and returns how it ended. An alarm
// request with action 1 (ACTIVATE) has the same bytes whatever the message's type.
func call(ctx context.Context, conn *grpc.ClientConn, method string) error {
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method)
	if err != nil {
		return err
	}
	if err := stream.SendMsg(&pb.AlarmRequest{Action: pb.AlarmRequest_ACTIVATE}); err != nil {
		return err
	}
	_ = stream.CloseSend()
	return stream.RecvMsg(reflect.New(reflect.TypeFor[pb.AlarmResponse]()).Interface())
}
