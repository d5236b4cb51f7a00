package badinput

import (
	"context"
	"encoding/hex"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/almanacdb/almanac/client"
	"github.com/almanacdb/almanac/internal/base"
	"github.com/almanacdb/almanac/internal/effect"
	"github.com/almanacdb/almanac/internal/localcluster"
	"github.com/almanacdb/almanac/internal/transport"
	"github.com/almanacdb/almanac/internal/wire"
)

// awaitLog waits until a node has logged something.
func awaitLog(t *testing.T, n *localcluster.Node, says string) {
	t.Helper()
	await(t, says, func() bool { return strings.Contains(n.LogTail(1<<20), says) })
}

func await(t *testing.T, what string, done func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-ctx.Done():
			t.Fatalf("waited in vain: %s", what)
		case <-tick.C:
		}
	}
}

// A node with data that is told to join another cluster stays in its own, and says so.
func TestMemberToldToJoinAnotherCluster(t *testing.T) {
	other, _ := single(t)
	c := processes(t, 1)
	n := c.Nodes[0]
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	s := shell{n.Address}
	s.ok(t, "kv", "put", "witness", "unharmed")
	_ = n.Stop(t.Context())

	path, _ := binary()
	moved, err := localcluster.New(localcluster.Options{
		Binary: path, Dir: t.TempDir(), Nodes: 1, Memory: "128MiB", Args: []string{"--join", other.Peer},
	})
	if err != nil {
		t.Fatal(err)
	}
	moved.Nodes[0].Dir = n.Dir
	if err := moved.Nodes[0].Start(); err != nil {
		t.Fatal(err)
	}
	defer moved.KillAll()
	awaitLog(t, moved.Nodes[0], "belongs to another cluster")
	awaitLog(t, moved.Nodes[0], "remedy")
	unharmed(t, moved.Nodes[0], shell{moved.Endpoints()})
}

type ignored struct{}

func (ignored) Receive(base.NodeID, []wire.Message) {}

// A stream from a node of another cluster is refused, and both sides can say why.
func TestPeerStreamOfAnotherCluster(t *testing.T) {
	n, s := single(t)
	g, err := transport.NewTCP(transport.Options{
		Self: 2, Cluster: base.ClusterID{1}, Handler: ignored{},
		Resolve: func(base.NodeID) (string, bool) { return n.Peer, true },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	g.Send(1, transport.ClassCalls, wire.Message{Call: &wire.Call{ID: 1, Method: wire.MethodClockSample}})
	awaitLog(t, n, "belongs to cluster "+base.ClusterID{1}.String())
	unharmed(t, n, s)
}

// A peer with the right cluster and wrong messages is refused message by message.
func TestNonsenseFromAPeer(t *testing.T) {
	n, s := single(t)
	c := connect(t, client.Options{}, n.Address)
	st, err := c.Cluster.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	id, err := hex.DecodeString(st.ClusterId)
	if err != nil {
		t.Fatal(err)
	}
	g, err := transport.NewTCP(transport.Options{
		Self: 2, Cluster: base.ClusterID(id), Handler: ignored{},
		Resolve: func(base.NodeID) (string, bool) { return n.Peer, true },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	r := rand.New(rand.NewPCG(5, 6))
	small := func() uint64 {
		if r.IntN(8) == 0 {
			return r.Uint64()
		}
		return uint64(r.IntN(14))
	}
	for i := range 3000 {
		method := wire.Method(r.IntN(40))
		if method == wire.MethodReplicaRemove {
			continue // which does what it says
		}
		g.Send(1, transport.ClassCalls, wire.Message{Call: &wire.Call{
			ID: uint64(i), Method: method, Range: base.RangeID(small()), TimeoutMS: uint32(r.IntN(100)), Body: garbage(r),
		}})
		m := &effect.Message{
			Range: base.RangeID(r.IntN(3)), From: base.ReplicaID(small()), To: 1, Type: effect.MessageType(r.IntN(20)),
			Term: small(), LogTerm: small(), Index: small(), Commit: small(), Vote: base.ReplicaID(small()), Reject: r.IntN(2) == 0,
			Hint: small(), ConfigEpoch: small(), Round: int64(small() >> 1),
		}
		if r.IntN(3) == 0 {
			m.Entries = []base.Entry{{Index: m.Index + 1, Term: m.Term, Type: base.EntryType(r.IntN(6)), Data: garbage(r)}}
		}
		if r.IntN(5) == 0 {
			m.Snapshot = &effect.SnapshotMeta{Mark: base.LogMark{Index: small(), Term: small()},
				Config: effect.Configuration{Voters: []base.ReplicaID{1, base.ReplicaID(small())}}}
		}
		g.Send(1, transport.ClassReplication, wire.Message{Replication: m})
	}
	await(t, "the node has received it", func() bool { return received(t, n) > 2000 })
	unharmed(t, n, s)
}

// received returns how many messages a node's metrics have counted.
func received(t *testing.T, n *localcluster.Node) (total float64) {
	t.Helper()
	resp, err := http.Get("http://" + n.HTTP + "/metrics")
	if err != nil {
		t.Fatalf("%v: %s", err, n.LogTail(4096))
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	for line := range strings.Lines(string(body)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "} ")
		if strings.HasPrefix(name, "almanac_transport_messages_total") && strings.Contains(name, `direction="received"`) {
			count, _ := strconv.ParseFloat(value, 64)
			total += count
		}
	}
	return total
}

// Without a majority a range answers nothing, in time, and by its name.
func TestLostMajority(t *testing.T) {
	c := processes(t, 3)
	if err := c.StartAll(); err != nil {
		t.Fatal(err)
	}
	s := shell{c.Endpoints()}
	awaitLog(t, c.Nodes[0], "almanac init")
	awaitLog(t, c.Nodes[1], "almanac init")
	awaitLog(t, c.Nodes[2], "almanac init")
	s.ok(t, "init")
	s.ok(t, "kv", "put", "witness", "unharmed")
	s.ok(t, "topic", "create", "t")
	c.Nodes[0].Kill()
	c.Nodes[1].Kill()
	t.Run("meanwhile", func(t *testing.T) { withoutMajority(t, c.Nodes[2].Address) })
	if err := c.StartAll(); err != nil {
		t.Fatal(err)
	}
	if out := s.ok(t, "kv", "get", "witness"); !strings.Contains(out, "unharmed") {
		t.Errorf("after the nodes came back: %q", out)
	}
}

func withoutMajority(t *testing.T, address string) {
	left := shell{address}
	for _, args := range []string{"kv|get|witness", "kv|put|k|v", "topic|create|u", "event|publish|t|x", "topic|list"} {
		t.Run(args, func(t *testing.T) {
			t.Parallel()
			began := time.Now()
			o := left.run(t, "", append(strings.Split(args, "|"), "--request-timeout", "4s")...)
			if took := time.Since(began); took > 10*time.Second {
				t.Errorf("it took %v", took)
			}
			if o.code == 0 || o.Remedy == "" || !strings.Contains(o.Error, "range ") {
				t.Errorf("exit %d: %s", o.code, o.stderr)
			}
		})
	}
	t.Run("etcd", func(t *testing.T) {
		t.Parallel()
		e := etcdClient(t, address)
		ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
		defer cancel()
		if _, err := e.Get(ctx, "witness"); err == nil {
			t.Error("a read without a majority was answered")
		}
	})
}
