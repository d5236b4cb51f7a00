package almanac

import (
	"context"
	"strings"
	"testing"

	almanacv1 "github.com/almanacdb/almanac/api/almanac/v1"
	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/keys"
	"github.com/almanacdb/almanac/internal/placement"
	"github.com/almanacdb/almanac/internal/wire"
)

// threeNodes has node 3 dead, range 2 split, range 8 led by nobody alive and below target.
func threeNodes() *routes {
	report := func(n base.NodeID, alive bool, list ...wire.ReplicaStatus) placement.Report {
		return placement.Report{Node: base.NodeDescriptor{Node: n, Address: "x"}, Alive: alive, Heartbeat: wire.Heartbeat{Replicas: list}}
	}
	on := func(nodes ...base.NodeID) (list []base.ReplicaDescriptor) {
		for i, n := range nodes {
			list = append(list, base.ReplicaDescriptor{Node: n, Replica: base.ReplicaID(i + 1)})
		}
		return list
	}
	user := keys.KeyspaceSpan(base.DefaultKeyspace)
	return &routes{
		stamp:  func() (base.Timestamp, error) { return 77, nil },
		topics: []placement.Topic{{ID: 5, Name: "orders", Partitions: 4}},
		ranges: []base.RangeDescriptor{
			{Range: 8, Span: keys.PartitionSpan(5, 2, 4), Topic: 5, Replicas: on(3)},
			{Range: 7, Span: keys.PartitionSpan(5, 0, 2), Topic: 5, Replicas: on(2, 1, 3)},
			{Range: 9, Span: base.Span{Start: logical("m"), End: user.End}, Keyspace: base.DefaultKeyspace, Replicas: on(1, 2, 3)},
			{Range: 2, Span: base.Span{Start: user.Start, End: logical("m")}, Keyspace: base.DefaultKeyspace, Replicas: on(1, 2, 3)},
			{Range: 1, Span: keys.KeyspaceSpan(base.SystemKeyspace), Keyspace: base.SystemKeyspace, Replicas: on(1, 2, 3)},
		},
		reports: []placement.Report{
			report(2, true, wire.ReplicaStatus{Range: 7, Orderer: true, Bytes: 70}, wire.ReplicaStatus{Range: 2, Term: 3, Orderer: true}),
			report(1, true, wire.ReplicaStatus{Range: 1, Orderer: true}, wire.ReplicaStatus{Range: 2, Term: 4, Orderer: true},
				wire.ReplicaStatus{Range: 9, Orderer: true}),
			report(3, false, wire.ReplicaStatus{Range: 8, Orderer: true}),
		},
	}
}

func TestRangesAsUsersWriteThem(t *testing.T) {
	c := almanacv1.NewClusterClient(serve(t, threeNodes(), Limits{}))
	r, err := c.Ranges(testContext(t), &almanacv1.RangesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	want := []almanacv1.RangeInfo{
		{RangeId: 1, Keyspace: "system", Leader: 1},
		{RangeId: 2, Keyspace: "default", End: []byte("m"), Leader: 1},
		{RangeId: 9, Keyspace: "default", Start: []byte("m"), Leader: 1},
		{RangeId: 7, Topic: "orders", Start: []byte("0"), End: []byte("2"), Leader: 2, Bytes: 70},
		{RangeId: 8, Topic: "orders", Start: []byte("2")},
	}
	if len(r.Ranges) != len(want) {
		t.Fatalf("got %d ranges", len(r.Ranges))
	}
	for i := range want {
		g, w := r.Ranges[i], &want[i]
		if g.RangeId != w.RangeId || g.Keyspace != w.Keyspace || g.Topic != w.Topic || string(g.Start) != string(w.Start) ||
			string(g.End) != string(w.End) || g.Leader != w.Leader || g.Bytes != w.Bytes || g.TargetReplicas != 3 {
			t.Errorf("got %v, want %v", g, w)
		}
	}
	for filter, n := range map[*almanacv1.RangesRequest]int{{Topic: "orders"}: 2, {Keyspace: "default"}: 2, {Keyspace: "default", Topic: "orders"}: 4} {
		if r, err := c.Ranges(testContext(t), filter); err != nil || len(r.Ranges) != n {
			t.Errorf("%v: %v, %v", filter, r, err)
		}
	}
	for _, unknown := range []*almanacv1.RangesRequest{{Topic: "x"}, {Keyspace: "x"}} {
		_, err := c.Ranges(testContext(t), unknown)
		wantReason(t, err, fault.NotFound)
	}
	nodes, err := c.Nodes(testContext(t), &almanacv1.NodesRequest{})
	if err != nil || len(nodes.Nodes) != 3 || nodes.Nodes[0].NodeId != 1 || nodes.Nodes[0].Leaders != 3 || nodes.Nodes[2].Alive {
		t.Fatal(nodes, err)
	}
}

func TestStatusSaysWhatIsWrong(t *testing.T) {
	r := threeNodes()
	c := almanacv1.NewClusterClient(serve(t, r, Limits{}))
	st, err := c.Status(testContext(t), &almanacv1.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if st.ClusterId != testCluster.String() || st.NodesAlive != 2 || st.NodesTotal != 3 || st.Ranges != 5 || st.RangesBelowTarget != 1 ||
		st.RangesWithoutLeader != 1 || st.Oracle != almanacv1.OracleState_ORACLE_STATE_READY || st.OracleNodeId != 1 ||
		st.Revision != 77 || st.Node.NodeId != 1 || st.Node.UptimeMs != 3000 {
		t.Errorf("got %v", st)
	}
	want := "node 3 has not been heard from lately; 5 of 5 ranges have replicas there\n" +
		"range 8 has no leader that placement has heard of\nrange 8 has fewer replicas than the policy wants"
	if got := strings.Join(st.Problems, "\n"); got != want {
		t.Errorf("problems:\n%s", got)
	}
	// It answers even when nothing else does.
	r.broken = fault.New(fault.Deadline, "range 1 has no leader").WithRemedy("bring nodes back")
	r.stamp = func() (base.Timestamp, error) { return 0, r.broken }
	st, err = c.Status(testContext(t), &almanacv1.StatusRequest{})
	if err != nil || st.Oracle != almanacv1.OracleState_ORACLE_STATE_WAITING || len(st.Problems) != 2 || st.Node.NodeId != 1 {
		t.Fatal(st, err)
	}
	if s, _ := oracleState(0, r.broken); s != almanacv1.OracleState_ORACLE_STATE_UNAVAILABLE {
		t.Errorf("without a leader the oracle is %s", s)
	}
}

func TestEnumerate(t *testing.T) {
	for want, ids := range map[string][]uint64{
		"node 3 has": {3}, "nodes 1 and 3 have": {3, 1}, "nodes 1, 2 and 3 have": {1, 2, 3},
		"nodes 1, 2, 3, 4, 5 and 2 more have": {1, 2, 3, 4, 5, 6, 7},
	} {
		if got := enumerate("node", "has", "have", ids); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestUninitialized(t *testing.T) {
	conn := dial(t, NewUninitialized(func(context.Context) (base.ClusterID, base.NodeID, error) { return testCluster, 1, nil }, "here:7400"))
	ctx, cluster := testContext(t), almanacv1.NewClusterClient(conn)
	_, getErr := almanacv1.NewKVClient(conn).Get(ctx, &almanacv1.GetRequest{})
	stream, err := almanacv1.NewKVClient(conn).Stream(ctx)
	if err != nil {
		t.Fatal(err)
	}
	_, streamErr := stream.Recv()
	_, publishErr := almanacv1.NewEventsClient(conn).Publish(ctx, &almanacv1.PublishRequest{})
	_, nodesErr := cluster.Nodes(ctx, &almanacv1.NodesRequest{})
	for _, err := range []error{getErr, streamErr, publishErr, nodesErr} {
		wantReason(t, err, fault.Uninitialized)
		if r := detail(t, err).Remedy; !strings.Contains(r, "almanac init --endpoints here:7400") {
			t.Errorf("the remedy is %q", r)
		}
	}
	if st, err := cluster.Status(ctx, &almanacv1.StatusRequest{}); err != nil || st.ClusterId != "" || len(st.Problems) != 1 {
		t.Error(st, err)
	}
	if r, err := cluster.Init(ctx, &almanacv1.InitRequest{}); err != nil || r.ClusterId != testCluster.String() || r.NodeId != 1 {
		t.Error(r, err)
	}
	_, err = almanacv1.NewClusterClient(serve(t, &routes{}, Limits{})).Init(ctx, &almanacv1.InitRequest{})
	wantReason(t, err, fault.AlreadyExists)
}
