package node

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/almanacdb/almanac/client"
	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/fault"
	"github.com/almanacdb/almanac/internal/placement"
)

func startAll(t *testing.T, options []Options) []*Node {
	t.Helper()
	nodes := make([]*Node, len(options))
	for i, o := range options {
		nodes[i] = start(t, o)
	}
	return nodes
}

// members waits until every node belongs to one and the same cluster.
func members(t *testing.T, nodes []*Node) base.ClusterID {
	t.Helper()
	var cluster base.ClusterID
	seen := make(map[base.NodeID]bool)
	for _, n := range nodes {
		select {
		case <-n.adopted:
		case <-within(t, 20*time.Second).Done():
			t.Fatalf("node %s has no identity", n.opts.AdvertisePeer)
		}
		id := n.identity()
		if cluster.IsZero() {
			cluster = id.Bootstrap.Cluster
		}
		if id.Bootstrap.Cluster != cluster {
			t.Fatalf("clusters %s and %s were formed", cluster, id.Bootstrap.Cluster)
		}
		if seen[id.Node] {
			t.Fatalf("two nodes are node %d", id.Node)
		}
		seen[id.Node] = true
	}
	return cluster
}

func TestInitOnAllNodesAtOnceFormsOneCluster(t *testing.T) {
	nodes := startAll(t, joined(t, 3))
	var wg sync.WaitGroup
	for _, n := range nodes {
		wg.Go(func() {
			if _, _, err := n.Init(within(t, 20*time.Second)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	members(t, nodes)
	c := connect(t, nodes...)
	put(t, c, "a", "1")
	wantValue(t, c, "a", "1")
	first, _, err := nodes[1].Init(t.Context())
	if err != nil || first != nodes[0].identity().Bootstrap.Cluster {
		t.Fatalf("init of a formed cluster: %s %v", first, err)
	}
}

func TestDeciderThatCrashesBeforeItOffersKeepsItsDecision(t *testing.T) {
	options := joined(t, 3)
	// The decider persists the cluster and dies before it tells anyone.
	alone := start(t, options[0])
	b, err := newBootstrap([]base.NodeDescriptor{
		alone.descriptor(), {Peer: options[1].Peer}, {Peer: options[2].Peer},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := (&identity{Node: 1, Bootstrap: b}).save(alone.log, alone.dir); err != nil {
		t.Fatal(err)
	}
	stop(alone)

	nodes := startAll(t, options)
	if _, _, err := nodes[2].Init(within(t, 20*time.Second)); err != nil {
		t.Fatal(err)
	}
	if got := members(t, nodes); got != b.Cluster {
		t.Fatalf("cluster %s was formed, %s was decided", got, b.Cluster)
	}
	put(t, connect(t, nodes...), "a", "1")
}

func TestInitWithoutAMajorityFailsAndMayBeRepeated(t *testing.T) {
	options := joined(t, 3)
	nodes := startAll(t, options[:1])
	_, _, err := nodes[0].Init(within(t, 20*time.Second))
	wantFault(t, err, fault.Unavailable)
	if nodes[0].identity() != nil {
		t.Fatal("a node decided without a majority")
	}
	nodes = append(nodes, startAll(t, options[1:2])...)
	if _, _, err := nodes[0].Init(within(t, 20*time.Second)); err != nil {
		t.Fatal(err)
	}
	put(t, connect(t, nodes...), "a", "1")
	// The third comes late and registers by itself.
	nodes = append(nodes, startAll(t, options[2:])...)
	members(t, nodes)
}

func TestInitNamesTheDeciderThatDoesNotAnswer(t *testing.T) {
	options := joined(t, 3)
	n := start(t, options[1])
	_, _, err := n.Init(within(t, 20*time.Second))
	if f := wantFault(t, err, fault.Unavailable); !strings.Contains(f.Text, options[0].Peer) {
		t.Errorf("%q does not name %s", f.Text, options[0].Peer)
	}
}

func TestMemberOfAnotherClusterRefusesOffers(t *testing.T) {
	member := start(t, testOptions(t.TempDir()))
	b, err := newBootstrap([]base.NodeDescriptor{{Peer: "127.0.0.1:1"}, member.descriptor()})
	if err != nil {
		t.Fatal(err)
	}
	_, err = callPeer[struct{}](within(t, 5*time.Second), member.opts.AdvertisePeer, "Offer", offerRequest{Node: 2, Bootstrap: b})
	f := wantFault(t, err, fault.WrongCluster)
	if cluster := member.identity().Bootstrap.Cluster; cluster == b.Cluster || !strings.Contains(f.Text, cluster.String()) {
		t.Errorf("%q does not name cluster %s", f.Text, cluster)
	}

	// A node that names the member and itself registers there instead of forming another.
	o := testOptions(t.TempDir())
	o.Join = []string{member.opts.AdvertisePeer}
	late := start(t, o)
	members(t, []*Node{member, late})
}

func TestOffersThatDoNotAddUpAreRefused(t *testing.T) {
	options := joined(t, 2)
	n := start(t, options[0])
	sound, err := newBootstrap([]base.NodeDescriptor{n.descriptor(), {Peer: options[1].Peer}})
	if err != nil {
		t.Fatal(err)
	}
	unnumbered := sound
	unnumbered.Nodes = []base.NodeDescriptor{{Node: 2, Peer: options[0].Peer}, {Node: 1, Peer: options[1].Peer}}
	for name, offer := range map[string]offerRequest{
		"nothing":         {},
		"no cluster":      {Node: 1, Bootstrap: placement.Bootstrap{Nodes: sound.Nodes}},
		"no nodes":        {Node: 1, Bootstrap: placement.Bootstrap{Cluster: sound.Cluster}},
		"no place":        {Node: 0, Bootstrap: sound},
		"place too high":  {Node: 3, Bootstrap: sound},
		"huge place":      {Node: 1 << 63, Bootstrap: sound},
		"another's place": {Node: 2, Bootstrap: sound},
		"odd numbers":     {Node: 1, Bootstrap: unnumbered},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := callPeer[struct{}](within(t, 5*time.Second), n.opts.AdvertisePeer, "Offer", offer)
			wantFault(t, err, fault.Invalid)
			if n.identity() != nil {
				t.Fatal("the offer was accepted")
			}
		})
	}
	if _, err := callPeer[struct{}](within(t, 5*time.Second), n.opts.AdvertisePeer, "Offer", offerRequest{Node: 1, Bootstrap: sound}); err != nil {
		t.Fatal(err)
	}
}

// One node under two addresses would count as two of a majority.
func TestNodesUnderOtherAddressesAreRefused(t *testing.T) {
	t.Run("decider", func(t *testing.T) {
		options := joined(t, 1)
		_, port, _ := strings.Cut(options[0].Peer, ":")
		options[0].Join = append(options[0].Join, "localhost:"+port)
		n := start(t, options[0])
		_, _, err := n.Init(within(t, 20*time.Second))
		wantFault(t, err, fault.Invalid)
	})
	t.Run("another", func(t *testing.T) {
		options := joined(t, 1)
		_, port, _ := strings.Cut(options[0].Peer, ":")
		// This name sorts first, so the node would ask itself for ever.
		options[0].Join, options[0].AdvertisePeer = []string{options[0].Peer}, "localhost:"+port
		n := start(t, options[0])
		_, _, err := n.Init(within(t, 20*time.Second))
		wantFault(t, err, fault.Invalid)
	})
}

func TestLateNodeRegistersAndServes(t *testing.T) {
	founder := start(t, testOptions(t.TempDir()))
	put(t, connect(t, founder), "a", "1")
	o := testOptions(t.TempDir())
	o.Join = []string{founder.opts.AdvertisePeer}
	late := start(t, o)
	if members(t, []*Node{founder, late}); late.identity().Node == 1 {
		t.Fatal("the late node got the founder's id")
	}
	wantValue(t, connect(t, late), "a", "1")
	id := late.identity().Node
	stop(late)
	o.Join = nil
	again := start(t, o)
	if again.identity().Node != id {
		t.Fatalf("node %d came back as %d", id, again.identity().Node)
	}
	wantValue(t, connect(t, again), "a", "1")
}

func TestRegisteringNeedsAddresses(t *testing.T) {
	n := start(t, testOptions(t.TempDir()))
	put(t, connect(t, n), "a", "1")
	for _, d := range []base.NodeDescriptor{{}, {Peer: "127.0.0.1:1"}, {Address: "127.0.0.1:1"}} {
		_, err := callPeer[registerReply](within(t, 10*time.Second), n.opts.AdvertisePeer, "Register", d)
		wantFault(t, err, fault.Invalid)
	}
	list, err := connect(t, n).Cluster.Nodes(within(t, 10*time.Second))
	if err != nil || len(list) != 1 {
		t.Errorf("nodes %v %v", list, err)
	}
}

func TestWaitingNodeSaysWhatToDo(t *testing.T) {
	n := start(t, joined(t, 2)[0])
	command := "almanac init --endpoints " + n.Address()
	c := connect(t, n)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err := c.KV.Get(ctx, []byte("a"))
	if e, ok := err.(*client.Error); !ok || !strings.Contains(e.Remedy, command) {
		t.Errorf("error %v does not tell to run %s", err, command)
	}
	st, err := c.Cluster.Status(within(t, 5*time.Second))
	if err != nil || len(st.Problems) != 1 || !strings.Contains(st.Problems[0], command) {
		t.Errorf("status %v %v does not tell to run %s", st, err, command)
	}
}
