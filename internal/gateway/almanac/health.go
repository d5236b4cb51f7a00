package almanac

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	almanacv1 "github.com/almanacdb/almanac/api/almanac/v1"
	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/fault"
)

// statusTimeout bounds each question that Status asks: it answers even when nothing
// else does.
const statusTimeout = 2 * time.Second

// Status implements almanacv1.ClusterServer.
func (s *clusterServer) Status(ctx context.Context, _ *almanacv1.StatusRequest) (*almanacv1.StatusResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	var revision base.Timestamp
	var stampErr error
	fetched := make(chan struct{})
	go func() {
		defer close(fetched)
		revision, stampErr = s.routes.FreshTimestamp(ctx)
	}()
	v, viewErr := s.view(ctx)
	<-fetched
	resp := &almanacv1.StatusResponse{
		ClusterId: s.cluster.String(), Revision: uint64(revision), Node: nodeStatus(s.node),
		OracleNodeId: uint64(s.node.OracleNode()),
	}
	resp.Oracle, resp.Problems = oracleState(s.node.OracleNode(), stampErr)
	if viewErr != nil {
		f := fault.As(viewErr)
		problem := "the catalogue cannot be read: " + f.Error()
		if f.Remedy != "" {
			problem += "; " + f.Remedy
		}
		resp.Problems = append(resp.Problems, problem)
	} else {
		v.judge(resp)
	}
	resp.Problems = append(resp.Problems, rebuilding(v, s.node.Status())...)
	for i := range resp.Problems {
		resp.Problems[i] = strings.ToValidUTF8(resp.Problems[i], "\uFFFD")
	}
	return resp, nil
}

func oracleState(leader base.NodeID, err error) (almanacv1.OracleState, []string) {
	switch {
	case err == nil:
		return almanacv1.OracleState_ORACLE_STATE_READY, nil
	case leader != 0:
		return almanacv1.OracleState_ORACLE_STATE_WAITING, []string{fmt.Sprintf(
			"the oracle on node %d issues no timestamps, so nothing is written and nothing fires: %v", leader, err)}
	}
	return almanacv1.OracleState_ORACLE_STATE_UNAVAILABLE, []string{fmt.Sprintf(
		"the system range has no leader that this node knows, so nothing is written and nothing fires: %v", err)}
}

// judge counts nodes and ranges, and says what is wrong with them.
func (v *view) judge(resp *almanacv1.StatusResponse) {
	var down, headless, below, scarce []uint64
	dead := make(map[base.NodeID]bool)
	for i := range v.reports {
		resp.NodesTotal++
		if v.reports[i].Alive {
			resp.NodesAlive++
			if v.reports[i].Heartbeat.Capacity.Scarce() {
				scarce = append(scarce, uint64(v.reports[i].Node.Node))
			}
			continue
		}
		dead[v.reports[i].Node.Node] = true
		down = append(down, uint64(v.reports[i].Node.Node))
	}
	crippled := 0 // ranges with replicas on dead nodes
	for i := range v.ranges {
		d := &v.ranges[i]
		resp.Ranges++
		if _, ok := v.orderer[d.Range]; !ok {
			headless = append(headless, uint64(d.Range))
		}
		if uint32(len(d.Replicas)) < v.target(d) {
			below = append(below, uint64(d.Range))
		}
		if slices.ContainsFunc(d.Replicas, func(r base.ReplicaDescriptor) bool { return dead[r.Node] }) {
			crippled++
		}
	}
	resp.RangesWithoutLeader, resp.RangesBelowTarget = uint32(len(headless)), uint32(len(below))
	if len(down) > 0 {
		p := fmt.Sprintf("%s not been heard from lately", enumerate("node", "has", "have", down))
		if crippled > 0 {
			p += fmt.Sprintf("; %d of %d ranges have replicas there", crippled, len(v.ranges))
		}
		resp.Problems = append(resp.Problems, p)
	}
	if len(scarce) > 0 {
		resp.Problems = append(resp.Problems, fmt.Sprintf("%s no space to spare on the disk; ranges led there take no new data; free space there",
			enumerate("node", "has", "have", scarce)))
	}
	if len(headless) > 0 {
		resp.Problems = append(resp.Problems, fmt.Sprintf("%s no leader that placement has heard of",
			enumerate("range", "has", "have", headless)))
	}
	if len(below) > 0 {
		resp.Problems = append(resp.Problems, fmt.Sprintf("%s fewer replicas than the policy wants",
			enumerate("range", "has", "have", below)))
	}
}

// rebuilding names the nodes that get their replicas back: this one by what it knows
// itself, the others by their heartbeats, if there is a view.
func rebuilding(v *view, own NodeStatus) (problems []string) {
	say := func(n base.NodeID, how string) {
		if how != "" {
			problems = append(problems, fmt.Sprintf(
				"the stores of node %d were damaged; it gets its replicas back from other nodes: %s", n, how))
		}
	}
	say(own.ID, own.Rebuilding)
	if v == nil {
		return problems
	}
	for i := range v.reports {
		if r := &v.reports[i]; r.Alive && r.Node.Node != own.ID {
			say(r.Node.Node, r.Heartbeat.Rebuilding)
		}
	}
	return problems
}

// enumerated is how many ids a sentence lists.
const enumerated = 5

// enumerate writes "range 7 has", "ranges 7 and 9 have", or, of many, the first few.
func enumerate(what, has, have string, ids []uint64) string {
	slices.Sort(ids)
	if len(ids) == 1 {
		return fmt.Sprintf("%s %d %s", what, ids[0], has)
	}
	var b strings.Builder
	for i, id := range ids {
		switch {
		case i == enumerated:
			fmt.Fprintf(&b, " and %d more", len(ids)-i)
		case i > enumerated:
		case i == len(ids)-1:
			fmt.Fprintf(&b, " and %d", id)
		case i > 0:
			fmt.Fprintf(&b, ", %d", id)
		default:
			fmt.Fprintf(&b, "%d", id)
		}
	}
	return what + "s " + b.String() + " " + have
}
