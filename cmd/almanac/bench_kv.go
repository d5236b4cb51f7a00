package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"

	etcd "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/almanacdb/almanac/client"
)

// kvStore is what bench kv measures: Almanac's API or etcd's.
type kvStore interface {
	put(ctx context.Context, keys [][]byte, value []byte) error
	get(ctx context.Context, keys [][]byte) error
	close()
}

func (a *app) benchKV(ctx context.Context, f *benchFlags) (*record, error) {
	stores, err := a.benchStores(ctx, f)
	for _, s := range stores {
		defer s.close()
	}
	if err != nil {
		return nil, err
	}
	value := randomBytes(f.seed, f.size)
	if f.op != "put" {
		if err := a.fill(ctx, f, stores, value); err != nil {
			return nil, err
		}
	}
	l := load{clients: f.clients, batch: f.batch, rate: f.rate, seed: f.seed, count: f.count}
	if f.timed || !f.counted {
		l.duration = f.duration
	}
	l.request = func(i int) request {
		store := stores[i%len(stores)]
		return func(ctx context.Context, random *rand.Rand, n int) (int, error) {
			ctx, cancel := context.WithTimeout(ctx, a.timeout)
			defer cancel()
			keys := randomKeys(random, f.keys, n)
			var err error
			if f.op == "get" || f.op == "mixed" && random.IntN(2) == 0 {
				err = store.get(ctx, keys)
			} else {
				err = store.put(ctx, keys, value)
			}
			if err != nil {
				return 0, err
			}
			return n, nil
		}
	}
	t, err := l.loop(ctx, a.err)
	if err != nil {
		return nil, err
	}
	return t.record("kv", f), nil
}

// fill writes every key once, so that gets find something.
func (a *app) fill(ctx context.Context, f *benchFlags, stores []kvStore, value []byte) error {
	fmt.Fprintf(a.err, "writing %d keys\n", f.keys)
	next := make(chan []byte)
	go func() {
		defer close(next)
		for i := range f.keys {
			select {
			case next <- benchKey(i):
			case <-ctx.Done():
				return
			}
		}
	}()
	t, err := load{clients: f.clients, batch: 1, request: func(i int) request {
		return func(ctx context.Context, _ *rand.Rand, _ int) (int, error) {
			key, ok := <-next
			if !ok {
				return 0, nil
			}
			return 1, stores[i%len(stores)].put(ctx, [][]byte{key}, value)
		}
	}, count: int64(f.keys)}.loop(ctx, a.err)
	if err == nil {
		err = t.firstError
	}
	return err
}

func benchKey(i int) []byte {
	return strconv.AppendInt([]byte("bench/"), int64(1_000_000_000+i), 10)
}

// randomKeys returns n ≤ keys different keys, as one transaction writes no key twice.
func randomKeys(random *rand.Rand, keys, n int) [][]byte {
	picked := make([][]byte, 0, n)
	if n == 1 {
		return append(picked, benchKey(random.IntN(keys)))
	}
	first := random.IntN(keys)
	for i := range n {
		picked = append(picked, benchKey((first+i)%keys))
	}
	return picked
}

// benchStores opens what the clients share: one store for each endpoint, or one for the
// leader.
func (a *app) benchStores(ctx context.Context, f *benchFlags) ([]kvStore, error) {
	endpoints := a.options(a.endpoints).Endpoints
	if f.target == "leader" {
		leader, err := a.benchLeader(ctx, f, endpoints)
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(a.err, "the leader is at %s\n", leader)
		endpoints = []string{leader}
	}
	var stores []kvStore
	for _, endpoint := range endpoints {
		if f.api == "etcd" {
			c, err := openEtcd(ctx, endpoint)
			if err != nil {
				return stores, err
			}
			stores = append(stores, etcdStore{c})
			continue
		}
		c, err := a.dial(ctx, a.options([]string{endpoint}))
		if err != nil {
			return stores, err
		}
		stores = append(stores, almanacStore{c})
	}
	return stores, nil
}

// benchLeader returns the client address of the node that leads the range of the keys.
func (a *app) benchLeader(ctx context.Context, f *benchFlags, endpoints []string) (string, error) {
	if f.api == "etcd" {
		return etcdLeader(ctx, endpoints)
	}
	var address string
	err := a.with(ctx, func(c *client.Client) error {
		ranges, err := c.Cluster.Ranges(ctx, "default", "")
		if err != nil {
			return err
		}
		key := benchKey(0)
		for _, r := range ranges {
			if bytes.Compare(r.GetStart(), key) <= 0 && (len(r.GetEnd()) == 0 || bytes.Compare(key, r.GetEnd()) < 0) {
				address, err = leaderAddress(ctx, c, r.GetLeader())
				return err
			}
		}
		return errors.New("no range holds the keys of the benchmark")
	})
	return address, err
}

// leaderAddress returns a node's client address.
func leaderAddress(ctx context.Context, c *client.Client, node uint64) (string, error) {
	nodes, err := c.Cluster.Nodes(ctx)
	if err != nil {
		return "", err
	}
	for _, n := range nodes {
		if n.GetNodeId() == node && node != 0 {
			return n.GetAddress(), nil
		}
	}
	return "", &client.Error{
		Reason: client.ReasonUnavailable, Message: "the range has no leader",
		Remedy: "wait for an election, or look at almanac cluster ranges",
	}
}

type almanacStore struct{ c *client.Client }

func (s almanacStore) close() { _ = s.c.Close() }

func (s almanacStore) put(ctx context.Context, keys [][]byte, value []byte) error {
	if len(keys) == 1 {
		_, err := s.c.KV.Put(ctx, keys[0], value)
		return err
	}
	t := client.Txn{Then: make([]client.Op, len(keys))}
	for i, k := range keys {
		t.Then[i] = client.OpPut(k, value)
	}
	_, err := s.c.KV.Txn(ctx, t)
	return err
}

func (s almanacStore) get(ctx context.Context, keys [][]byte) error {
	if len(keys) == 1 {
		_, err := s.c.KV.Get(ctx, keys[0])
		return err
	}
	t := client.Txn{Then: make([]client.Op, len(keys))}
	for i, k := range keys {
		t.Then[i] = client.OpRange(client.Key(k), client.RangeOptions{})
	}
	_, err := s.c.KV.Txn(ctx, t)
	return err
}

type etcdStore struct{ c *etcd.Client }

func openEtcd(ctx context.Context, endpoints ...string) (*etcd.Client, error) {
	c, err := etcd.New(etcd.Config{
		Endpoints: endpoints, DialTimeout: 5 * time.Second, Context: ctx, Logger: zap.NewNop(),
	})
	if err != nil {
		return nil, fmt.Errorf("connecting to etcd at %v: %w", endpoints, err)
	}
	return c, nil
}

// etcdLeader asks every endpoint who it is and who leads.
func etcdLeader(ctx context.Context, endpoints []string) (string, error) {
	c, err := openEtcd(ctx, endpoints...)
	if err != nil {
		return "", err
	}
	defer func() { _ = c.Close() }()
	for _, e := range endpoints {
		s, err := c.Status(ctx, e)
		if err == nil && s.Leader != 0 && s.Leader == s.Header.GetMemberId() {
			return e, nil
		}
	}
	return "", errors.New("none of the endpoints leads")
}

func (s etcdStore) close() { _ = s.c.Close() }

func (s etcdStore) put(ctx context.Context, keys [][]byte, value []byte) error {
	if len(keys) == 1 {
		_, err := s.c.Put(ctx, string(keys[0]), string(value))
		return err
	}
	ops := make([]etcd.Op, len(keys))
	for i, k := range keys {
		ops[i] = etcd.OpPut(string(k), string(value))
	}
	_, err := s.c.Txn(ctx).Then(ops...).Commit()
	return err
}

func (s etcdStore) get(ctx context.Context, keys [][]byte) error {
	if len(keys) == 1 {
		_, err := s.c.Get(ctx, string(keys[0]))
		return err
	}
	ops := make([]etcd.Op, len(keys))
	for i, k := range keys {
		ops[i] = etcd.OpGet(string(k))
	}
	_, err := s.c.Txn(ctx).Then(ops...).Commit()
	return err
}
