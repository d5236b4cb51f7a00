package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/almanacdb/almanac/client"
	"github.com/almanacdb/almanac/internal/load"
	"github.com/almanacdb/almanac/internal/localcluster"
)

// How each system is set up: three nodes on the loopback address, every acknowledgement
// after a majority has synced, and what else is as each comes.

func (c *cluster) layOutAlmanac(p programs) error {
	l, err := localcluster.New(localcluster.Options{Binary: p.almanac, Dir: c.dir, Nodes: nodes, Memory: "512MiB"})
	if err != nil {
		return err
	}
	for _, n := range l.Nodes {
		c.nodes = append(c.nodes, &n.Process)
		c.endpoints = append(c.endpoints, n.Address)
		c.http = append(c.http, n.HTTP)
	}
	return nil
}

// formAlmanac makes a cluster of the nodes.
func (c *cluster) formAlmanac(ctx context.Context) error {
	a, err := client.Open(ctx, client.Options{Endpoints: c.endpoints})
	if err != nil {
		return err
	}
	defer func() { _ = a.Close() }()
	if err := until(ctx, func(ctx context.Context) error {
		_, err := a.Cluster.Init(ctx)
		return err
	}); err != nil {
		return err
	}
	return c.awaitAlmanac(ctx)
}

// awaitAlmanac waits until the cluster is whole and takes writes.
func (c *cluster) awaitAlmanac(ctx context.Context) error {
	a, err := client.Open(ctx, client.Options{Endpoints: c.endpoints})
	if err != nil {
		return err
	}
	defer func() { _ = a.Close() }()
	return until(ctx, func(ctx context.Context) error {
		if err := whole(ctx, a); err != nil {
			return err
		}
		_, err := a.KV.Put(ctx, []byte("ready"), nil)
		return err
	})
}

// whole says what a cluster of Almanac lacks.
func whole(ctx context.Context, a *client.Client) error {
	s, err := a.Cluster.Status(ctx)
	if err != nil {
		return err
	}
	if s.GetNodesAlive() != nodes || s.GetRangesWithoutLeader() > 0 || s.GetRangesBelowTarget() > 0 {
		return fmt.Errorf("%d nodes are alive, %d of %d ranges have no leader, %d are below target: %v", s.GetNodesAlive(),
			s.GetRangesWithoutLeader(), s.GetRanges(), s.GetRangesBelowTarget(), s.GetProblems())
	}
	return nil
}

func (c *cluster) layOutEtcd(p programs) error {
	ports, err := localcluster.FreePorts(2 * nodes)
	if err != nil {
		return err
	}
	url := func(port int) string { return fmt.Sprintf("http://127.0.0.1:%d", port) }
	var members []string
	for i := range nodes {
		members = append(members, fmt.Sprintf("n%d=%s", i, url(ports[2*i+1])))
	}
	for i := range nodes {
		own, peer := url(ports[2*i]), url(ports[2*i+1])
		c.endpoints = append(c.endpoints, strings.TrimPrefix(own, "http://"))
		c.addProcess(p.etcd, []string{
			"--name", fmt.Sprintf("n%d", i), "--data-dir", filepath.Join(c.dir, fmt.Sprintf("node%d", i)),
			"--listen-client-urls", own, "--advertise-client-urls", own,
			"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
			"--initial-cluster", strings.Join(members, ","), "--initial-cluster-state", "new",
			"--quota-backend-bytes", "8589934592", // the default is soon full
			"--log-level", "warn",
		})
	}
	return nil
}

// awaitEtcd waits until every node answers a write.
func (c *cluster) awaitEtcd(ctx context.Context) error {
	for _, e := range c.endpoints {
		s, err := load.Etcd(ctx, e)
		if err != nil {
			return err
		}
		err = until(ctx, func(ctx context.Context) error { return s.Put(ctx, [][]byte{[]byte("ready")}, []byte("x")) })
		_ = s.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

const natsConfiguration = `
server_name: n%d
listen: 127.0.0.1:%d
jetstream { store_dir: %q, sync_interval: always, max_file_store: 20GB }
cluster { name: bench, listen: 127.0.0.1:%d, routes: [%s] }
`

func (c *cluster) layOutNATS(p programs) error {
	ports, err := localcluster.FreePorts(2 * nodes)
	if err != nil {
		return err
	}
	var routes []string
	for i := range nodes {
		routes = append(routes, fmt.Sprintf("nats://127.0.0.1:%d", ports[2*i+1]))
	}
	if err := os.MkdirAll(c.dir, 0o755); err != nil {
		return err
	}
	for i := range nodes {
		c.endpoints = append(c.endpoints, fmt.Sprintf("127.0.0.1:%d", ports[2*i]))
		file := filepath.Join(c.dir, fmt.Sprintf("node%d.conf", i))
		text := fmt.Sprintf(natsConfiguration, i, ports[2*i], filepath.Join(c.dir, fmt.Sprintf("node%d", i)), ports[2*i+1], strings.Join(routes, ", "))
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			return err
		}
		c.addProcess(p.nats, []string{"--config", file})
	}
	return nil
}

// awaitNATS waits until streams can be made.
func (c *cluster) awaitNATS(ctx context.Context) error {
	return until(ctx, func(ctx context.Context) error {
		for _, e := range c.endpoints {
			conn, err := natsgo.Connect(e)
			if err != nil {
				return err
			}
			js, err := jetstream.New(conn)
			if err == nil {
				_, err = js.CreateOrUpdateStream(ctx, jetstream.StreamConfig{
					Name: "ready", Subjects: []string{"ready"}, Replicas: nodes, Storage: jetstream.FileStorage,
				})
			}
			conn.Close()
			if err != nil {
				return err
			}
		}
		return nil
	})
}
