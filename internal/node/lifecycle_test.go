package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	almanacv1 "github.com/almanacdb/almanac/api/almanac/v1"
	"github.com/almanacdb/almanac/internal/fault"
)

func TestNodeKeepsItsDataOverRestarts(t *testing.T) {
	dir := t.TempDir()
	for i := range 3 {
		n := start(t, testOptions(dir))
		c := connect(t, n)
		if i > 0 {
			wantValue(t, c, "a", fmt.Sprint(i-1))
		}
		put(t, c, "a", fmt.Sprint(i))
		stop(n)
	}
}

func TestStartRefuses(t *testing.T) {
	n := start(t, testOptions(t.TempDir()))
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name string
		set  func(*Options)
		kind fault.Kind
		says string // in text or remedy
	}{
		{"no directory", func(o *Options) { o.DataDir = "" }, fault.Invalid, "--data-dir"},
		{"file as directory", func(o *Options) { o.DataDir = file }, fault.Invalid, file},
		{"below a file", func(o *Options) { o.DataDir = file + "/x" }, fault.Invalid, file},
		{"foreign directory", func(o *Options) { o.DataDir = filepath.Dir(file) }, fault.Invalid, "file"},
		{"directory in use", func(o *Options) { o.DataDir = n.opts.DataDir }, fault.Unavailable, n.opts.DataDir},
		{"client port in use", func(o *Options) { o.Listen = n.Address() }, fault.Unavailable, "--listen"},
		{"peer port in use", func(o *Options) { o.Peer = n.opts.AdvertisePeer }, fault.Unavailable, "--peer"},
		{"HTTP port in use", func(o *Options) { o.HTTP = n.ports.http.Addr().String() }, fault.Unavailable, "--http"},
		{"address of another machine", func(o *Options) { o.Listen, o.Insecure = "192.0.2.1:7400", true }, fault.Unavailable, "--listen"},
		{"no port", func(o *Options) { o.Peer = "127.0.0.1" }, fault.Invalid, "HOST:PORT"},
		{"port too high", func(o *Options) { o.HTTP = "127.0.0.1:70000" }, fault.Invalid, "--http"},
		{"not loopback", func(o *Options) { o.Listen = "0.0.0.0:0" }, fault.Invalid, "--insecure"},
		{"all addresses", func(o *Options) { o.Peer = ":0" }, fault.Invalid, "--insecure"},
		{"unreachable for others", func(o *Options) {
			o.Peer, o.Insecure, o.Join = "0.0.0.0:0", true, []string{"127.0.0.1:1"}
		}, fault.Invalid, "--advertise-peer"},
		{"nonsense to join", func(o *Options) { o.Join = []string{"x y"} }, fault.Invalid, "--join"},
		{"nonsense to advertise", func(o *Options) { o.Advertise = "here" }, fault.Invalid, "--advertise"},
		{"no host to advertise", func(o *Options) { o.AdvertisePeer = ":7401" }, fault.Invalid, "--advertise-peer"},
		{"little memory", func(o *Options) { o.Memory = 1 << 20 }, fault.Invalid, "--memory"},
		{"absurd memory", func(o *Options) { o.Memory = 1 << 62 }, fault.Invalid, "--memory"},
		{"negative offset", func(o *Options) { o.MaxClockOffset = -time.Second }, fault.Invalid, "--max-clock-offset"},
	} {
		t.Run(test.name, func(t *testing.T) {
			o := testOptions(t.TempDir())
			test.set(&o)
			n, err := Start(o)
			if err == nil {
				stop(n)
			}
			f := wantFault(t, err, test.kind)
			if !strings.Contains(f.Error()+f.Remedy, test.says) {
				t.Errorf("%q, %q does not say %q", f.Error(), f.Remedy, test.says)
			}
		})
	}
}

func TestAdvertisedAddressesAreToldToOthers(t *testing.T) {
	o := testOptions(t.TempDir())
	o.Listen, o.Peer = freeAddresses(t, 1)[0], freeAddresses(t, 1)[0]
	_, client, _ := strings.Cut(o.Listen, ":")
	_, peer, _ := strings.Cut(o.Peer, ":")
	o.Advertise, o.AdvertisePeer = "localhost:"+client, "localhost:"+peer
	n := start(t, o)
	if n.Address() != o.Advertise {
		t.Errorf("the node's address is %s", n.Address())
	}
	c := connect(t, n)
	eventually(t, "the node is listed under what it advertises", func(ctx context.Context) error {
		list, err := c.Cluster.Nodes(ctx)
		if err == nil && (len(list) != 1 || list[0].Address != o.Advertise || list[0].PeerAddress != o.AdvertisePeer) {
			err = fmt.Errorf("nodes %v", list)
		}
		return err
	})
}

func TestNodeIsFoundAgainAfterItsPortsChanged(t *testing.T) {
	options := joined(t, 3)
	nodes := startAll(t, options)
	if _, _, err := nodes[0].Init(within(t, 20*time.Second)); err != nil {
		t.Fatal(err)
	}
	members(t, nodes)
	put(t, connect(t, nodes...), "a", "1")
	stop(nodes[2])
	options[2].Peer = freeAddresses(t, 1)[0]
	nodes[2] = start(t, options[2])
	moved := nodes[2].identity().Node
	for _, n := range nodes[:2] {
		eventually(t, "the others learn the new address", func(context.Context) error {
			if r := n.running(); r != nil {
				if addr, _ := r.directory.peer(moved); addr == options[2].Peer {
					return nil
				}
			}
			return errors.New("still the old one")
		})
	}
	// With another node down the moved one is needed for a majority.
	stop(nodes[0])
	c := connect(t, nodes[1], nodes[2])
	put(t, c, "a", "2")
	wantValue(t, c, "a", "2")
}

// A subscription never ends by itself; Stop must not wait for it beyond its context.
func TestStopCutsOffWhatDoesNotEnd(t *testing.T) {
	n := start(t, testOptions(t.TempDir()))
	conn, err := grpc.NewClient(n.Address(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	stream, err := almanacv1.NewKVClient(conn).Stream(t.Context())
	if err == nil {
		err = stream.Send(&almanacv1.StreamRequest{Calls: []*almanacv1.StreamCall{{Id: 1}}})
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	began := time.Now()
	stopped.Store(n, true)
	n.Stop(ctx)
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("stopping took %v", took)
	}
	if _, err := stream.Recv(); err == nil {
		t.Error("the stream outlives the node")
	}
}

func TestStopOfAWaitingNode(t *testing.T) {
	n := start(t, joined(t, 2)[0])
	stop(n)
	if again, err := Start(n.opts); err != nil {
		t.Fatal(err)
	} else {
		stop(again)
	}
}
