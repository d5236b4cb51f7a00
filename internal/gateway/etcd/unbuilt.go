package etcd

import (
	"context"
	"fmt"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// What of the etcd API is not built yet, each method with a sentence that says what it
// does. Embedding the Unsafe interfaces makes a method that a later version adds a
// compile error, so that none is forgotten.

// unbuilt is the answer of a method that is not built yet; instead may be empty.
func unbuilt(method, does, instead string) error {
	text := fmt.Sprintf("%s (%s) is not built yet", method, does)
	if instead != "" {
		text += "; " + instead
	}
	return status.Error(codes.Unimplemented, text)
}

// watchServer is etcd's Watch service.
type watchServer struct{ pb.UnsafeWatchServer }

// leaseServer is etcd's Lease service.
type leaseServer struct{ pb.UnsafeLeaseServer }

// authServer is etcd's Auth service.
type authServer struct{ pb.UnsafeAuthServer }

// Watch implements pb.WatchServer.
func (watchServer) Watch(pb.Watch_WatchServer) error {
	return unbuilt("Watch", "streams the changes of keys as they commit", "")
}

// LeaseGrant implements pb.LeaseServer.
func (leaseServer) LeaseGrant(context.Context, *pb.LeaseGrantRequest) (*pb.LeaseGrantResponse, error) {
	return nil, unbuilt("LeaseGrant", "creates a lease, whose end deletes the keys attached to it", "")
}

// LeaseRevoke implements pb.LeaseServer.
func (leaseServer) LeaseRevoke(context.Context, *pb.LeaseRevokeRequest) (*pb.LeaseRevokeResponse, error) {
	return nil, unbuilt("LeaseRevoke", "ends a lease and deletes the keys attached to it", "")
}

// LeaseKeepAlive implements pb.LeaseServer.
func (leaseServer) LeaseKeepAlive(pb.Lease_LeaseKeepAliveServer) error {
	return unbuilt("LeaseKeepAlive", "renews leases", "")
}

// LeaseTimeToLive implements pb.LeaseServer.
func (leaseServer) LeaseTimeToLive(context.Context, *pb.LeaseTimeToLiveRequest) (*pb.LeaseTimeToLiveResponse, error) {
	return nil, unbuilt("LeaseTimeToLive", "tells how long a lease has to live", "")
}

// LeaseLeases implements pb.LeaseServer.
func (leaseServer) LeaseLeases(context.Context, *pb.LeaseLeasesRequest) (*pb.LeaseLeasesResponse, error) {
	return nil, unbuilt("LeaseLeases", "lists the leases", "")
}

// MemberAdd implements pb.ClusterServer.
func (*clusterServer) MemberAdd(context.Context, *pb.MemberAddRequest) (*pb.MemberAddResponse, error) {
	return nil, unbuilt("MemberAdd", "adds a node to the cluster", "start a node that joins")
}

// MemberRemove implements pb.ClusterServer.
func (*clusterServer) MemberRemove(context.Context, *pb.MemberRemoveRequest) (*pb.MemberRemoveResponse, error) {
	return nil, unbuilt("MemberRemove", "removes a node from the cluster", "")
}

// MemberUpdate implements pb.ClusterServer.
func (*clusterServer) MemberUpdate(context.Context, *pb.MemberUpdateRequest) (*pb.MemberUpdateResponse, error) {
	return nil, unbuilt("MemberUpdate", "changes the peer addresses of a node", "")
}

// MemberPromote implements pb.ClusterServer.
func (*clusterServer) MemberPromote(context.Context, *pb.MemberPromoteRequest) (*pb.MemberPromoteResponse, error) {
	return nil, unbuilt("MemberPromote", "makes a learner a voter", "")
}

// Defragment implements pb.MaintenanceServer.
func (*maintenanceServer) Defragment(context.Context, *pb.DefragmentRequest) (*pb.DefragmentResponse, error) {
	return nil, unbuilt("Defragment", "gives unused disk space back", "the storage engine does so by itself")
}

// Hash implements pb.MaintenanceServer.
func (*maintenanceServer) Hash(context.Context, *pb.HashRequest) (*pb.HashResponse, error) {
	return nil, unbuilt("Hash", "hashes a whole state store", "")
}

// HashKV implements pb.MaintenanceServer.
func (*maintenanceServer) HashKV(context.Context, *pb.HashKVRequest) (*pb.HashKVResponse, error) {
	return nil, unbuilt("HashKV", "hashes the keys at a revision", "")
}

// Snapshot implements pb.MaintenanceServer.
func (*maintenanceServer) Snapshot(*pb.SnapshotRequest, pb.Maintenance_SnapshotServer) error {
	return unbuilt("Snapshot", "streams a copy of the state store", "")
}

// MoveLeader implements pb.MaintenanceServer.
func (*maintenanceServer) MoveLeader(context.Context, *pb.MoveLeaderRequest) (*pb.MoveLeaderResponse, error) {
	return nil, unbuilt("MoveLeader", "hands leadership to another node", "")
}

// Downgrade implements pb.MaintenanceServer.
func (*maintenanceServer) Downgrade(context.Context, *pb.DowngradeRequest) (*pb.DowngradeResponse, error) {
	return nil, unbuilt("Downgrade", "prepares the cluster for an older version", "")
}

// AuthEnable implements pb.AuthServer.
func (authServer) AuthEnable(context.Context, *pb.AuthEnableRequest) (*pb.AuthEnableResponse, error) {
	return nil, unbuilt("AuthEnable", "turns authentication on", "")
}

// AuthDisable implements pb.AuthServer.
func (authServer) AuthDisable(context.Context, *pb.AuthDisableRequest) (*pb.AuthDisableResponse, error) {
	return nil, unbuilt("AuthDisable", "turns authentication off", "")
}

// AuthStatus implements pb.AuthServer.
func (authServer) AuthStatus(context.Context, *pb.AuthStatusRequest) (*pb.AuthStatusResponse, error) {
	return nil, unbuilt("AuthStatus", "tells whether authentication is on", "")
}

// Authenticate implements pb.AuthServer.
func (authServer) Authenticate(context.Context, *pb.AuthenticateRequest) (*pb.AuthenticateResponse, error) {
	return nil, unbuilt("Authenticate", "exchanges a password for a token", "")
}

// UserAdd implements pb.AuthServer.
func (authServer) UserAdd(context.Context, *pb.AuthUserAddRequest) (*pb.AuthUserAddResponse, error) {
	return nil, unbuilt("UserAdd", "adds a user", "")
}

// UserGet implements pb.AuthServer.
func (authServer) UserGet(context.Context, *pb.AuthUserGetRequest) (*pb.AuthUserGetResponse, error) {
	return nil, unbuilt("UserGet", "tells the roles of a user", "")
}

// UserList implements pb.AuthServer.
func (authServer) UserList(context.Context, *pb.AuthUserListRequest) (*pb.AuthUserListResponse, error) {
	return nil, unbuilt("UserList", "lists the users", "")
}

// UserDelete implements pb.AuthServer.
func (authServer) UserDelete(context.Context, *pb.AuthUserDeleteRequest) (*pb.AuthUserDeleteResponse, error) {
	return nil, unbuilt("UserDelete", "deletes a user", "")
}

// UserChangePassword implements pb.AuthServer.
func (authServer) UserChangePassword(context.Context, *pb.AuthUserChangePasswordRequest) (*pb.AuthUserChangePasswordResponse, error) {
	return nil, unbuilt("UserChangePassword", "changes the password of a user", "")
}

// UserGrantRole implements pb.AuthServer.
func (authServer) UserGrantRole(context.Context, *pb.AuthUserGrantRoleRequest) (*pb.AuthUserGrantRoleResponse, error) {
	return nil, unbuilt("UserGrantRole", "grants a role to a user", "")
}

// UserRevokeRole implements pb.AuthServer.
func (authServer) UserRevokeRole(context.Context, *pb.AuthUserRevokeRoleRequest) (*pb.AuthUserRevokeRoleResponse, error) {
	return nil, unbuilt("UserRevokeRole", "revokes a role of a user", "")
}

// RoleAdd implements pb.AuthServer.
func (authServer) RoleAdd(context.Context, *pb.AuthRoleAddRequest) (*pb.AuthRoleAddResponse, error) {
	return nil, unbuilt("RoleAdd", "adds a role", "")
}

// RoleGet implements pb.AuthServer.
func (authServer) RoleGet(context.Context, *pb.AuthRoleGetRequest) (*pb.AuthRoleGetResponse, error) {
	return nil, unbuilt("RoleGet", "tells the permissions of a role", "")
}

// RoleList implements pb.AuthServer.
func (authServer) RoleList(context.Context, *pb.AuthRoleListRequest) (*pb.AuthRoleListResponse, error) {
	return nil, unbuilt("RoleList", "lists the roles", "")
}

// RoleDelete implements pb.AuthServer.
func (authServer) RoleDelete(context.Context, *pb.AuthRoleDeleteRequest) (*pb.AuthRoleDeleteResponse, error) {
	return nil, unbuilt("RoleDelete", "deletes a role", "")
}

// RoleGrantPermission implements pb.AuthServer.
func (authServer) RoleGrantPermission(context.Context, *pb.AuthRoleGrantPermissionRequest) (*pb.AuthRoleGrantPermissionResponse, error) {
	return nil, unbuilt("RoleGrantPermission", "grants a permission to a role", "")
}

// RoleRevokePermission implements pb.AuthServer.
func (authServer) RoleRevokePermission(context.Context, *pb.AuthRoleRevokePermissionRequest) (*pb.AuthRoleRevokePermissionResponse, error) {
	return nil, unbuilt("RoleRevokePermission", "revokes a permission of a role", "")
}
